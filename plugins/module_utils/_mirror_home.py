# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""One model's directory on a mirror (``_mirror`` has the layout): its content, its lock, and the steps of a change."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import _mirror, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror import Ref

LOCK = ".lock"
OLD = ".old-"

_JSON_MAX = 256 << 20
_POLL = 0.25


def read(root: int, path: str) -> bytes | None:
    try:
        handle = _safefs.open_regular(root, path)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            return None
        raise
    with open(handle, "rb") as stream:
        return stream.read(_JSON_MAX)


def _json(root: int, path: str) -> Any:
    """The document at ``path``; None where there is none that can be read."""
    data = read(root, path)
    try:
        return None if data is None else json.loads(data)
    except ValueError:
        return None


def described(refs: Mapping[str, Ref], commits: Mapping[str, Sequence[Entry]]) -> str:
    """A model in lines, for a diff."""
    lines = [f"{name} -> {refs[name].commit}\n" for name in sorted(refs)]
    for commit in sorted(commits):
        size = sum(entry.size for entry in commits[commit])
        lines.append(f"{commit}: {len(commits[commit])} files, {size} bytes\n")
    return "".join(lines)


class Home:
    """One model's directory on the mirror, open. What is damaged counts as missing, and is made anew by a publish."""

    def __init__(self, handle: int, model: str) -> None:
        self.handle, self.model = handle, model
        self.commits = {name for name in self._names(_mirror.COMMITS) if _mirror.is_commit(name)}
        self.refs = self._refs()

    def _names(self, directory: str) -> list[str]:
        try:
            with _safefs.directory(self.handle, directory) as handle:
                return sorted(os.listdir(handle))
        except FileNotFoundError:
            return []

    def _refs(self) -> dict[str, Ref]:
        """The links tell what a name means; the list of revisions only whether it is a tag, and since when."""
        try:
            told = _mirror.refs_of(_json(self.handle, _mirror.REVISIONS))
        except ValueError:
            told = {}
        found = {}
        for name in self._names(_mirror.REFS):
            with _safefs.directory(self.handle, _mirror.REFS) as handle:
                try:
                    commit = os.path.basename(os.readlink(name, dir_fd=handle))
                except OSError:
                    continue
            if _mirror.is_part(name) and _mirror.is_commit(commit):
                known = told.get(name, Ref(name, commit))
                found[name] = Ref(name, commit, known.tag, known.created)
        return found

    def entries(self, commit: str) -> tuple[Entry, ...]:
        try:
            return _mirror.entries_of(_json(self.handle, f"{_mirror.COMMITS}/{commit}/{_mirror.FILES}"))
        except ValueError:
            return ()

    def stats(self, commit: str) -> dict[str, int]:
        """When each file was when it was verified, in nanoseconds."""
        found = _json(self.handle, f"{_mirror.COMMITS}/{commit}/{_mirror.STATS}")
        return found if isinstance(found, dict) else {}

    def listed(self) -> dict[str, tuple[Entry, ...]]:
        """The files of every commit."""
        return {commit: self.entries(commit) for commit in self.commits}

    def stale(self, answers: Mapping[str, bytes], below: str = "") -> bool:
        return any(read(self.handle, below + path) != data for path, data in answers.items())

    # --- changes; the caller holds the lock ---

    def write_answers(self, answers: Mapping[str, bytes]) -> None:
        for path, data in answers.items():
            if read(self.handle, path) != data:
                _safefs.write_file(self.handle, path, data)

    def point(self, name: str, commit: str) -> None:
        """Make a branch or tag mean ``commit``, in one step."""
        temporary = f".{name}.new"
        with _safefs.directory(self.handle, _mirror.REFS, create=True) as handle:
            _safefs.remove_tree(handle, temporary)
            os.symlink(f"../{_mirror.COMMITS}/{commit}", temporary, dir_fd=handle)
            try:
                os.rename(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
            except IsADirectoryError:  # what no link is was put there by hand
                _safefs.remove_tree(handle, name)
                os.rename(temporary, name, src_dir_fd=handle, dst_dir_fd=handle)
            _safefs.sync_directory(handle)

    def drop_leftovers(self) -> None:
        """What runs that were killed left behind."""
        for directory in (_mirror.COMMITS, _mirror.REFS):
            for name in self._names(directory):
                if name.startswith("."):
                    with _safefs.directory(self.handle, directory) as handle:
                        _safefs.remove_tree(handle, name)

    def remove(self, refs: Sequence[str], commits: Sequence[str]) -> None:
        """Take names and commits away, the list of revisions first: what it lists is there."""
        left = {name: ref for name, ref in self.refs.items() if name not in refs}
        self.write_answers(_mirror.model_answers(self.model, left, self.listed()))
        if refs:
            with _safefs.directory(self.handle, _mirror.REFS) as handle:
                for name in refs:
                    os.unlink(name, dir_fd=handle)
                _safefs.sync_directory(handle)
        if commits:
            with _safefs.directory(self.handle, _mirror.COMMITS) as handle:
                for name in commits:
                    os.rename(name, OLD + name, src_dir_fd=handle, dst_dir_fd=handle)
                _safefs.sync_directory(handle)
                for name in commits:
                    _safefs.remove_tree(handle, OLD + name)


def make_root(root: str) -> None:
    """Make the mirror's root where it is missing, readable for the web server whatever the umask."""
    missing = []
    path = os.path.abspath(root)
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    for item in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(item)
            os.chmod(item, _safefs.DIRECTORY_MODE)


def models(root: str) -> list[str]:
    """Every model of the mirror, sorted."""
    found = []
    base = os.path.join(os.path.realpath(root), _mirror.MODELS)
    for owner in _directories(base):
        found += [f"{owner}/{name}" for name in _directories(os.path.join(base, owner))]
    return found


def _directories(path: str) -> list[str]:
    try:
        with os.scandir(path) as items:
            return sorted(
                item.name for item in items if _mirror.is_part(item.name) and item.is_dir(follow_symlinks=False)
            )
    except FileNotFoundError:
        return []


@contextlib.contextmanager
def opened(root: str, model: str) -> Iterator[Home | None]:
    """A model's directory for reading; None where the mirror has no such model."""
    handle = _open_home(root, model)
    if handle is None:
        yield None
        return
    try:
        yield Home(handle, model)
    finally:
        os.close(handle)


def _open_home(root: str, model: str, create: bool = False) -> int | None:
    try:
        base = _safefs.open_directory(os.path.realpath(root))
    except FileNotFoundError:
        return None
    try:
        with _safefs.directory(base, f"{_mirror.MODELS}/{model}", create=create) as handle:
            return os.dup(handle)
    except FileNotFoundError:
        return None
    finally:
        os.close(base)


@contextlib.contextmanager
def locked(root: str, model: str, timeout: float, create: bool) -> Iterator[Home | None]:
    """A model's directory, held by this process alone. Raises FleetError ``mirror.locked``."""
    deadline = time.monotonic() + timeout
    if create:
        make_root(root)
    while True:
        handle = _open_home(root, model, create)
        if handle is None:
            yield None
            return
        lock = _lock(handle)
        if lock is not None and _still_there(root, model, handle):
            break
        if lock is not None:
            os.close(lock)
        os.close(handle)
        if time.monotonic() >= deadline:
            raise FleetError(
                "mirror.locked",
                f"{model} on the mirror at {root} is being worked on by another run",
                f"the other run to end within lock_timeout ({timeout:g} s)",
                "Wait for it or stop it, then run this again; a lock whose process is gone frees itself",
            )
        time.sleep(_POLL)
    try:
        home = Home(handle, model)
        home.drop_leftovers()
        yield home
    finally:
        _drop_empty(root, model, handle)
        os.close(lock)
        os.close(handle)


def _drop_empty(root: str, model: str, handle: int) -> None:
    """What was made for nothing goes again: a directory that holds the lock alone."""
    for name in (_mirror.COMMITS, _mirror.REFS):
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=handle)
    if os.listdir(handle) != [LOCK]:
        return
    base = _safefs.open_directory(os.path.realpath(root))
    try:
        os.unlink(LOCK, dir_fd=handle)
        _safefs.remove_empty_directories(base, {f"{_mirror.MODELS}/{model}/{LOCK}"})
    finally:
        os.close(base)


def _lock(home: int) -> int | None:
    """The lock, held; None while somebody else holds it."""
    lock = os.open(LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=home)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(lock)
        if exc.errno not in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            raise
        return None
    return lock


def _still_there(root: str, model: str, handle: int) -> bool:
    """Whether the directory that we locked is the one that the next run will find."""
    again = _open_home(root, model)
    if again is None:
        return False
    try:
        return os.path.samestat(os.fstat(again), os.fstat(handle))
    finally:
        os.close(again)
