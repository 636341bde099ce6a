# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Takes models, revisions and commits out of a mirror, and tells what that frees."""

from __future__ import annotations

import contextlib
import os
import stat
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _artifact,
    _mirror,
    _prune_find,
    _prune_use,
    _safefs,
    _staging,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror import Kept
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror_home import (
    OLD,
    Home,
    described,
    locked,
    models,
    opened,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_find import LEFTOVER, Candidate

_SHOWN = 3


@dataclass
class Removal:
    """What is removed, by name: models whole; branches, tags and commits as ``owner/name@revision``; directories.

    ``left`` says what stays beside, and why.
    """

    models: list[str] = field(default_factory=list)
    refs: list[str] = field(default_factory=list)
    commits: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    bytes_freed: int = 0
    before: str = ""
    after: str = ""

    @property
    def changed(self) -> bool:
        return bool(self.models or self.refs or self.commits or self.artifacts)


class _Freed:
    """Counts bytes: a file's room is free once its last name is gone."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], list[int]] = {}

    def add(self, root: int, path: str, only: Collection[str] | None = None) -> None:
        """Count the files below ``path``: all of them, or ``only`` these."""
        try:
            with _safefs.directory(root, path) as handle:
                items = {name: item.stat for name, item in _safefs.walk(handle, "").items() if item.kind == "file"}
        except (FileNotFoundError, NotADirectoryError):
            return
        for found in (state for name, state in items.items() if only is None or name in only):
            counted = self._seen.setdefault((found.st_dev, found.st_ino), [0, found.st_nlink, found.st_size])
            counted[0] += 1

    @property
    def bytes(self) -> int:
        return sum(size for names, links, size in self._seen.values() if names >= links)


def absent(root: str, model: str, revision: str | None, timeout: float, check_mode: bool) -> Removal:
    """Take a model, or one revision of it, out of the mirror."""
    _mirror.check_model(model)
    removal, freed = Removal(), _Freed()
    with contextlib.ExitStack() as stack:
        home = stack.enter_context(opened(root, model) if check_mode else locked(root, model, timeout, create=False))
        if home is not None:
            chosen = _mirror.removed_with(home.refs, home.commits, revision)
            if chosen is not None:
                _take(root, home, *chosen, removal, freed, check_mode)
    removal.bytes_freed = freed.bytes
    return removal


def prune(root: str, keep: Sequence[Kept], work: Work | None, timeout: float, check_mode: bool) -> Removal:
    """Leave nothing on the mirror but what is kept."""
    removal, freed = Removal(), _Freed()
    for model in models(root):
        with contextlib.ExitStack() as stack:
            home = stack.enter_context(
                opened(root, model) if check_mode else locked(root, model, timeout, create=False)
            )
            if home is None:
                continue
            refs, commits = _mirror.doomed(model, home.refs, home.commits, keep)
            whole = all(item.model != model for item in keep)
            if whole or refs or commits:
                _take(root, home, refs, commits, removal, freed, check_mode)
            else:
                text = _text(model, described(home.refs, home.listed()))
                removal.before += text
                removal.after += text
    if work is not None:
        for stranger in work.strangers(removal.left):
            removal.artifacts.append(stranger.path)
            work.remove(stranger, freed, removal.left, timeout, check_mode)
    removal.bytes_freed = freed.bytes
    return removal


def _text(model: str, lines: str) -> str:
    return "".join(f"{model} {line}" for line in lines.splitlines(keepends=True))


def _take(
    root: str,
    home: Home,
    refs: Sequence[str],
    commits: Sequence[str],
    removal: Removal,
    freed: _Freed,
    check_mode: bool,
) -> None:
    left_refs = {name: ref for name, ref in home.refs.items() if name not in refs}
    listed = home.listed()
    left = {commit: entries for commit, entries in listed.items() if commit not in commits}
    removal.before += _text(home.model, described(home.refs, listed))
    removal.after += _text(home.model, described(left_refs, left))
    removal.refs += [f"{home.model}@{name}" for name in refs]
    removal.commits += [f"{home.model}@{commit}" for commit in commits]
    for commit in commits:
        freed.add(home.handle, f"{_mirror.COMMITS}/{commit}/{_mirror.TREE}")
    if not left_refs and not left:
        removal.models.append(home.model)
        if not check_mode:
            _remove_home(root, home.model)
    elif not check_mode:
        home.remove(refs, commits)


def _remove_home(root: str, model: str) -> None:
    """Out of sight with one rename, then away; the owner's directory too when it is empty."""
    owner, name = model.split("/")
    base = _safefs.open_directory(os.path.realpath(root))
    try:
        with _safefs.directory(base, f"{_mirror.MODELS}/{owner}") as handle:
            _safefs.remove_tree(handle, OLD + name)
            os.rename(name, OLD + name, src_dir_fd=handle, dst_dir_fd=handle)
            _safefs.sync_directory(handle)
            _safefs.remove_tree(handle, OLD + name)
        _safefs.remove_empty_directories(base, {f"{_mirror.MODELS}/{model}"})
    finally:
        os.close(base)


class Work:
    """The directory in which a mirror's artifacts are fetched, and what of it is wanted."""

    def __init__(self, path: str, keep: Iterable[str]) -> None:
        self.path = os.path.realpath(path)
        self._keep = {os.path.realpath(item) for item in keep}

    def strangers(self, left: list[str]) -> list[Candidate]:
        """Artifacts that nobody wants, and what unfinished downloads of such left; ``left`` gets what must stay."""
        try:
            names = sorted(os.listdir(self.path))
        except FileNotFoundError:
            return []
        found = [one for one in map(self._stranger, names) if one is not None]
        left += [f"{one.path}: {one.fault}." for one in found if one.fault]
        found = [one for one in found if not one.fault]
        # By path alone: the files themselves are the mirror's as well, which may be sending them.
        uses = _prune_use.uses_of([_prune_use.Watched(one.path) for one in found]).found
        left += [f"{path} is in use: {use}." for path, use in sorted(uses.items())]
        return [one for one in found if one.path not in uses]

    def _stranger(self, name: str) -> Candidate | None:
        path = os.path.join(self.path, name)
        if path in self._keep or not stat.S_ISDIR(os.lstat(path).st_mode):
            return None
        if _prune_find.is_staging(name):
            found = _prune_find.leftover_at(path)
            return None if found.target in self._keep else found
        if not os.path.isfile(os.path.join(path, _artifact.MANIFEST_PATH)):
            return None
        return _prune_find.artifact_at(path)

    def remove(self, stranger: Candidate, freed: _Freed, left: list[str], timeout: float, check_mode: bool) -> None:
        """What the manifest owns, or what a run left, under the artifact's lock. Raises FleetError."""
        manifest = stranger.manifest
        owned = None if manifest is None else {*manifest.by_path(), _artifact.MANIFEST_PATH}
        if stranger.foreign:
            left.append(f"{stranger.path} keeps what is not of the model: {_some(stranger.foreign)}.")
        handle = _safefs.open_directory(self.path)
        try:
            freed.add(handle, os.path.basename(stranger.path), owned)
        finally:
            os.close(handle)
        if check_mode:
            return
        if stranger.kind == LEFTOVER:
            self._remove_leftover(stranger, timeout)
            if not stranger.interrupted:
                return
            manifest = _prune_find.artifact_at(stranger.target).manifest  # the lock's next holder put it back
        if manifest is not None:
            request = _artifact.Request(
                manifest.model, manifest.revision, stranger.target, manifest.endpoint, lock_timeout=timeout
            )
            _artifact.absent(request)

    @staticmethod
    def _remove_leftover(stranger: Candidate, timeout: float) -> None:
        with _artifact.os_errors():
            staging = _staging.acquire(_staging.locate(stranger.target), timeout)
            try:
                staging.discard()
            finally:
                staging.release()


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else ""
    return ", ".join(ascii(path)[1:-1] for path in paths[:_SHOWN]) + more


def as_kept(item: Mapping[str, str | None]) -> Kept:
    """One element of the module's option ``keep``."""
    model, revision = _mirror.check_model(str(item["model"])), _mirror.check_revision(str(item["revision"]))
    return Kept(model, revision, item.get("commit") or None)
