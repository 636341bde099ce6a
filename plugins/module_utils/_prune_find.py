# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The model artifacts below some directories, and what interrupted runs left there. Reads only, follows no link."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _lock, _manifest, _safefs, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import (
    MANIFEST_NAME,
    STATE_DIRECTORY,
    FileStat,
    Found,
    Manifest,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_use import Watched

ARTIFACT = "artifact"
LEFTOVER = "leftover"
DEPTH = 8
"""Directories below a root that are looked at: a hub's cache has six, and a data set must not cost minutes."""

_STAGED = (
    _staging.LOCK_NAME,
    _staging.PARTS_NAME,
    _staging.TREE_NAME,
    _staging.OLD_NAME,
    _staging.OFFICIAL_NAME,
    _lock.PROBE,
)
_BLOCK = 512
Moment = tuple[float, str]


@dataclass(frozen=True)
class File:
    """One file that would go: which inode it is, how many names that has, and the bytes it takes on the disk."""

    identity: tuple[int, int]
    links: int
    allocated: int


@dataclass(frozen=True)
class Candidate:
    """Something of ours below a root.

    ``path`` is what would go, ``target`` the artifact's directory (for a leftover: where it would have been),
    ``places`` the names under which a plan may know it. ``moments`` are what is known of its use. ``fault`` says why
    nothing can be said about it.
    """

    path: str
    kind: str
    target: str
    staging: str
    places: tuple[str, ...]
    moments: tuple[Moment, ...] = ()
    manifest: Manifest | None = None
    published: float | None = None
    inode: int = 0
    files: tuple[File, ...] = ()
    size: int = 0
    foreign: tuple[str, ...] = ()
    watched: Watched = field(default_factory=lambda: Watched(""))
    fault: str = ""
    interrupted: bool = False


def find(roots: t.Sequence[str], warnings: list[str]) -> list[Candidate]:
    """All that is ours below the roots, by path.

    A root may be a link that the operator made; below it none is followed. Raises FleetError for one that is no root.
    """
    found: dict[str, Candidate] = {}
    for given in roots:
        root = _checked_root(given)
        if not os.path.isdir(root):
            warnings.append(f"{given} is not there; nothing was looked for in it.")
            continue
        for relative, kind in _walk(root, warnings):
            path = f"{root}/{relative}"
            if path not in found:
                candidate = artifact_at(path) if kind == ARTIFACT else leftover_at(path)
                alias = os.path.normpath(f"{given}/{os.path.relpath(candidate.target, root)}")
                found[path] = replace(candidate, places=tuple(dict.fromkeys((candidate.target, alias))))
    return [found[path] for path in sorted(found)]


def _checked_root(given: str) -> str:
    root = os.path.realpath(given)
    if not given.startswith("/") or root == "/":
        raise FleetError(
            "prune.bad_root",
            f"{given!r} is to be searched for models",
            "an absolute path of a directory that holds models, not the root directory",
            "Correct vllm_model_root or vllm_prune_roots",
        )
    return root


def _walk(root: str, warnings: list[str]) -> t.Iterator[tuple[str, str]]:
    """Relative path and kind of each artifact and leftover."""
    handle = _safefs.open_directory(root)
    try:
        pending = [("", 0)]
        while pending:
            base, depth = pending.pop()
            try:
                names = _directories(handle, base)
            except OSError as exc:
                if exc.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                    warnings.append(f"{root}/{base} cannot be read ({exc.strerror}); nothing was looked for in it.")
                continue
            if base and STATE_DIRECTORY in names:
                yield base, ARTIFACT
                continue
            if STATE_DIRECTORY in names:
                warnings.append(f"{root} is a model itself; only directories below it are looked at.")
            for name in names:
                path = f"{base}/{name}" if base else name
                if is_staging(name):
                    yield path, LEFTOVER
                elif name != STATE_DIRECTORY and depth < DEPTH:
                    pending.append((path, depth + 1))
    finally:
        os.close(handle)


def is_staging(name: str) -> bool:
    """Whether a directory's name is that of a staging directory."""
    return name.startswith(".") and name.endswith(STATE_DIRECTORY) and len(name) > len(STATE_DIRECTORY) + 1


def _directories(root: int, path: str) -> list[str]:
    with _safefs.directory(root, path) as handle, os.scandir(handle) as items:
        return sorted(item.name for item in items if item.is_dir(follow_symlinks=False))


# --- artifacts -------------------------------------------------------------------------------------------------------


def artifact_at(path: str) -> Candidate:
    """The artifact in this directory, without links in its path; ``fault`` where it is none that can be told."""
    staging = _staging.Location(*os.path.split(path), inside=False).staging
    bare = Candidate(path, ARTIFACT, path, staging, (path,), watched=Watched(path))
    warnings: list[str] = []
    try:
        staging = _staging.locate(path).staging
        root = _safefs.open_directory(path)
    except (FleetError, OSError) as exc:
        return replace(bare, fault=str(exc))
    try:
        manifest = _artifact.read_manifest(root, path, warnings)
        if manifest is None:
            fault = warnings[0].rstrip(".") if warnings else "it has no manifest: a run was cut, or works on it"
            return replace(bare, fault=fault)
        items = _safefs.walk(root, skip=STATE_DIRECTORY)
        state = _safefs.lstat(root, f"{STATE_DIRECTORY}/{MANIFEST_NAME}")
    except OSError as exc:
        return replace(bare, fault=f"it cannot be read: {exc.strerror}")
    finally:
        os.close(root)
    owned = manifest.by_path()
    # A link or FIFO in the place of a file of ours goes too, and frees nothing worth a word.
    mine = {name: item for name, item in items.items() if name in owned and item.kind != "directory"}
    regular = [item.stat for item in mine.values() if item.kind == "file"]
    published = state.st_mtime if state else 0.0
    read = max((one.st_atime for one in regular), default=0.0)
    # The publication itself read all of it, too.
    moments = [(published, "published"), *([(read, "read")] if read > published else [])]
    return Candidate(
        path=path,
        kind=ARTIFACT,
        target=path,
        staging=staging,
        places=(path,),
        moments=tuple(moments),
        manifest=manifest,
        published=published,
        inode=state.st_ino if state else 0,
        files=tuple(_file(one) for one in regular),
        size=sum(one.st_size for one in regular),
        foreign=tuple(_manifest.foreign({name: _found(item) for name, item in items.items()}, owned)),
        watched=_watched(path, items),
    )


def published(path: str) -> float | None:
    """When the artifact at ``path`` was published; None when there is none."""
    try:
        return os.lstat(os.path.join(path, STATE_DIRECTORY, MANIFEST_NAME)).st_mtime
    except OSError:
        return None


def _file(state: os.stat_result) -> File:
    return File((state.st_dev, state.st_ino), state.st_nlink, state.st_blocks * _BLOCK)


def _found(item: _safefs.Item) -> Found:
    return Found(item.kind, FileStat(item.stat.st_size, item.stat.st_mtime_ns))


def _watched(path: str, items: t.Mapping[str, _safefs.Item]) -> Watched:
    return Watched(
        path,
        frozenset(os.path.basename(name) for name in items),
        frozenset((item.stat.st_dev, item.stat.st_ino) for item in items.values()),
    )


# --- leftovers -------------------------------------------------------------------------------------------------------


def leftover_at(path: str) -> Candidate:
    """What is left in this staging directory; ``fault`` where it may hold something that is not ours."""
    parent, name = os.path.split(path)
    target = os.path.join(parent, name[1 : -len(STATE_DIRECTORY)])
    bare = Candidate(path, LEFTOVER, target, path, (target,), watched=Watched(path))
    try:
        root = _safefs.open_directory(path)
    except OSError as exc:
        return replace(bare, fault=f"it cannot be read: {exc.strerror}")
    try:
        items = _safefs.walk(root, skip="")
        own = os.fstat(root)
    except OSError as exc:
        return replace(bare, fault=f"it cannot be read: {exc.strerror}")
    finally:
        os.close(root)
    fault = ""
    if own.st_uid != os.geteuid() or own.st_mode & 0o022:
        fault = f"it belongs to uid {own.st_uid} with mode {stat.S_IMODE(own.st_mode):04o}, so it may not be ours"
    foreign = sorted(name for name in items if name.split("/")[0].split(".")[0] not in _STAGED)
    if foreign:
        fault = f"it holds {foreign[0]!a}, which no run of ours leaves"
    regular = [item.stat for item in items.values() if item.kind == "file"]
    newest = max([own.st_mtime, *(item.stat.st_mtime for item in items.values())])
    return Candidate(
        path=path,
        kind=LEFTOVER,
        target=target,
        staging=path,
        places=(target,),
        moments=((newest, "written"),),
        files=tuple(_file(one) for one in regular),
        size=sum(one.st_blocks * _BLOCK for one in regular),
        watched=_watched(path, items),
        fault=fault,
        # Between two renames: what served before is in here, and only there.
        interrupted=_staging.OLD_NAME in items and not os.path.lexists(target),
    )


def holder(staging: str) -> str | None:
    """Who works on the artifact of this staging directory now; None when nobody does. Takes no lock for long."""
    try:
        handle = os.open(os.path.join(staging, _staging.LOCK_NAME), os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return _holder_text(handle)
    finally:
        os.close(handle)
    return None


def _holder_text(lock: int) -> str:
    try:
        who = json.loads(os.pread(lock, 4096, 0))
        return f"process {int(who['pid'])} on host {str(who['host'])!a}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another run"
