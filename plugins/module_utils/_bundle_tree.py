# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A bundle as a directory: written in place, complete as soon as it has a manifest and never before.

``.gpufleet.json`` says which files are ours, and what each looked like right after it was verified: a file whose size
and time did not change since is not read again. It is no part of the bundle.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, path_fault

STATE = ".gpufleet.json"
LOCK = ".gpufleet.lock"
PARTIAL = ".gpufleet.partial"
CHUNK = 1 << 20
OWN = (STATE, LOCK, PARTIAL, _bundle.MANIFEST, _bundle.SIGNATURE)
_STATE_BYTES_MAX = 1 << 30
_SLACK = 16 * 1024 * 1024
_SHOWN = 5

Sink = Callable[[bytes], None]


def shown(paths: Iterable[str]) -> str:
    """Some names for a message, and how many more there are."""
    listed = sorted(paths)
    more = f" and {len(listed) - _SHOWN} more" if len(listed) > _SHOWN else ""
    return ", ".join(ascii(path)[1:-1] for path in listed[:_SHOWN]) + more


def hash_file(handle: int, sink: Sink | None = None) -> tuple[int, str]:
    """Size and SHA-256 of what an open file holds from here on."""
    digest, size = hashlib.sha256(), 0
    while piece := os.read(handle, CHUNK):
        digest.update(piece)
        size += len(piece)
        if sink is not None:
            sink(piece)
    return size, digest.hexdigest()


def check_space(path: str, needed: int, files: int, code: str = "bundle.no_space") -> None:
    """Raise where the file system of ``path``, which need not exist yet, has no room for it."""
    place = os.path.abspath(path)
    while not os.path.isdir(place):
        place = os.path.dirname(place)
    state = os.statvfs(place)
    wanted = needed + 4096 * files + _SLACK
    free = state.f_bavail * state.f_frsize
    if free < wanted:
        raise FleetError(
            code,
            f"{place} has {free} bytes free, {wanted} are needed",
            "room for all of the bundle that is not there yet",
            "free some space, or use another file system; nothing was written",
        )


@dataclass(frozen=True)
class Survey:
    """The wanted files that are right, those that are not, and ours that nobody wants any more."""

    kept: tuple[Entry, ...]
    missing: tuple[Entry, ...]
    obsolete: tuple[str, ...]

    @property
    def bytes_missing(self) -> int:
        return sum(entry.size for entry in self.missing)


class Tree:
    """The directory ``path``. A context manager that holds its lock, in check mode only where it exists."""

    def __init__(self, path: str, check_mode: bool = False) -> None:
        self.path = os.path.abspath(path)
        self.check_mode = check_mode
        self._root: int | None = None
        self._stats: dict[str, list[object]] = {}
        self._ours: set[str] = set()
        self._known = False

    def __enter__(self) -> Tree:
        if os.path.lexists(self.path) and not os.path.isdir(self.path):
            raise FleetError(
                "bundle.path_in_use", f"{self.path} is no directory", "a directory, or nothing", "choose another path"
            )
        if not self.check_mode:
            os.makedirs(self.path, 0o755, exist_ok=True)
        if os.path.isdir(self.path):
            self._root = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            if not self.check_mode:
                self._lock = lock(os.path.join(self.path, LOCK), self.path)
            self._read_state()
        return self

    def __exit__(self, *_: object) -> None:
        if self._root is not None:
            if not self.check_mode:
                os.close(self._lock)
            os.close(self._root)
            self._root = None

    @property
    def root(self) -> int:
        if self._root is None:
            raise AssertionError("the tree is open")
        return self._root

    @property
    def exists(self) -> bool:
        return self._root is not None

    # --- looking ---

    def read(self, name: str, limit: int) -> bytes | None:
        if self._root is None:
            return None
        try:
            handle = _safefs.open_regular(self._root, name)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR):
                return None
            raise
        with open(handle, "rb") as stream:
            content = stream.read(limit + 1)
        if len(content) > limit:
            raise _bundle.damaged(f"{os.path.join(self.path, name)} is larger than {limit} bytes")
        return content

    def manifest(self) -> bytes | None:
        return self.read(_bundle.MANIFEST, _bundle.MANIFEST_BYTES_MAX)

    def signature(self) -> bytes | None:
        return self.read(_bundle.SIGNATURE, _bundle.SIGNATURE_BYTES_MAX)

    def _read_state(self) -> None:
        try:
            document = json.loads(self.read(STATE, _STATE_BYTES_MAX) or b"{}")
            self._stats = {str(path): list(stat) for path, stat in document.get("stats", {}).items()}
            self._ours = {str(path) for path in document.get("ours", [])} | set(self._stats)
        except (ValueError, AttributeError, TypeError):
            # A machine that lost its power: what is here is told from others' files by the manifest, and hashed.
            self._stats, self._ours = {}, set()
        self._known = _safefs.lstat(self.root, STATE) is not None
        with contextlib.suppress(FleetError):
            self._ours |= {entry.path for entry in _bundle.load(self.manifest() or b"").entries}
            self._known = True
        self._ours = {path for path in self._ours if path_fault(path) is None}

    def strangers(self, entries: Iterable[Entry]) -> list[str]:
        """Files that are neither ours nor wanted."""
        if self._root is None:
            return []
        # In a directory that no run of ours wrote to, even a manifest.json, or a file of a wanted name, is another's.
        known = self._ours | {entry.path for entry in entries} | set(OWN) if self._known else {LOCK}
        items = _safefs.walk(self._root, LOCK)
        return sorted(path for path, item in items.items() if item.kind != "directory" and path not in known)

    def allow(self, paths: Iterable[str]) -> None:
        """Files of :meth:`write_own` that may be here."""
        self._ours |= set(paths)

    def check_free_of_others(self, entries: Iterable[Entry]) -> None:
        strangers = self.strangers(entries)
        if strangers:
            raise FleetError(
                "bundle.path_in_use",
                f"{self.path} holds files that are not of a bundle: {shown(strangers)}",
                "a directory of its own, or one that an earlier run wrote",
                "choose another path, or remove them",
            )

    def survey(self, entries: Iterable[Entry]) -> Survey:
        kept: list[Entry] = []
        missing: list[Entry] = []
        for entry in entries:
            (kept if self._is_right(entry) else missing).append(entry)
        wanted = {entry.path for entry in [*kept, *missing]}
        obsolete = [path for path in sorted(self._ours - wanted) if self._root and _safefs.lstat(self._root, path)]
        return Survey(tuple(kept), tuple(missing), tuple(obsolete))

    def _is_right(self, entry: Entry) -> bool:
        if self._root is None:
            return False
        try:
            handle = _safefs.open_regular(self._root, entry.path)
        except OSError as exc:
            if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL, errno.EISDIR, errno.ENXIO):
                return False
            raise
        try:
            state = os.fstat(handle)
            seen = [state.st_size, state.st_mtime_ns, entry.sha256]
            if state.st_size != entry.size:
                return False
            if self._stats.get(entry.path) != seen:
                if hash_file(handle) != (entry.size, entry.sha256):
                    return False
                self._stats[entry.path] = seen
            return True
        finally:
            os.close(handle)

    # --- changing ---

    def begin(self, entries: Iterable[Entry]) -> None:
        """From here until :meth:`finish` it is no bundle."""
        self._ours |= {entry.path for entry in entries}
        # First, so that a run that is killed here leaves a directory that the next one knows.
        self._write_state()
        for name in (_bundle.MANIFEST, _bundle.SIGNATURE, PARTIAL):
            _safefs.unlink(self.root, name)

    def link(self, entry: Entry, source: str) -> bool:
        """Give a verified file a second name here; False where the file systems can not."""
        origin = os.open(os.path.dirname(source) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _safefs.unlink(self.root, PARTIAL)
            os.link(
                os.path.basename(source), PARTIAL, src_dir_fd=origin, dst_dir_fd=self.root, follow_symlinks=False
            )  # fmt: skip
        except OSError as exc:
            if exc.errno in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP, errno.ENOSYS):
                return False
            raise
        finally:
            os.close(origin)
        self._put(entry)
        return True

    @contextlib.contextmanager
    def writing(self, entry: Entry) -> Iterator[Sink]:
        """What is written is the file, if nothing is raised meanwhile; its content is the caller's to verify."""
        _safefs.unlink(self.root, PARTIAL)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        handle = os.open(PARTIAL, flags, _safefs.FILE_MODE, dir_fd=self.root)
        try:
            with os.fdopen(handle, "wb", buffering=0) as stream:
                yield lambda piece: _write_all(stream.fileno(), piece)
                with contextlib.suppress(OSError):  # FAT has no modes
                    os.fchmod(stream.fileno(), _safefs.FILE_MODE)
                os.fsync(stream.fileno())
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(PARTIAL, dir_fd=self.root)
            raise
        self._put(entry)

    def _put(self, entry: Entry) -> None:
        head, tail = _safefs.split(entry.path)
        with _safefs.directory(self.root, head, create=True) as parent:
            os.rename(PARTIAL, tail, src_dir_fd=self.root, dst_dir_fd=parent)
            state = os.stat(tail, dir_fd=parent, follow_symlinks=False)
        self._stats[entry.path] = [state.st_size, state.st_mtime_ns, entry.sha256]

    def write_own(self, path: str, content: bytes) -> None:
        """A file that goes with the bundle's, and is in no manifest."""
        head, tail = _safefs.split(path)
        with _safefs.directory(self.root, head, create=True) as parent:
            _safefs.write_file(parent, tail, content)

    def stat_of(self, path: str) -> tuple[int, int]:
        """Size and mtime_ns of a file when it was verified."""
        size, mtime_ns, _sha256 = self._stats[path]
        return int(str(size)), int(str(mtime_ns))

    def finish(self, survey: Survey, manifest: bytes, signature: bytes | None, own: Iterable[str] = ()) -> None:
        """Remove what nobody wants any more, and make it a bundle. ``own`` are the files of :meth:`write_own`."""
        wanted = {entry.path for entry in [*survey.kept, *survey.missing]}
        obsolete = set(survey.obsolete) - set(own)
        for path in obsolete:
            _safefs.unlink(self.root, path)
        _safefs.remove_empty_directories(self.root, obsolete)
        self._ours = wanted | set(own)
        self._stats = {path: stat for path, stat in self._stats.items() if path in wanted}
        self._write_state()
        _safefs.sync_directories(self.root)
        if signature is None:
            _safefs.unlink(self.root, _bundle.SIGNATURE)
        else:
            _safefs.write_file(self.root, _bundle.SIGNATURE, signature)
        _safefs.write_file(self.root, _bundle.MANIFEST, manifest)

    def remember(self) -> None:
        """Keep what was hashed although nothing was changed, so that the next run need not."""
        self._write_state()

    def _write_state(self) -> None:
        document = {"ours": sorted(self._ours - set(self._stats)), "stats": dict(sorted(self._stats.items()))}
        _safefs.write_file(self.root, STATE, json.dumps(document, separators=(",", ":")).encode())


def _write_all(handle: int, piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(handle, view) :]


def check_own(path: str, marker: str, code: str) -> None:
    """Refuse a directory that holds something and not our ``marker``: what is in it may be anybody's."""
    try:
        names = sorted(os.listdir(path))
    except FileNotFoundError:
        return
    except NotADirectoryError:
        raise FleetError(code, f"{path} is no directory", "a directory, or nothing", "choose another path") from None
    if names and marker not in names:
        raise FleetError(
            code,
            f"{path} holds {names[0]!a}, and not the {marker} of a run of ours",
            "a directory that holds nothing else, as what is not needed in it is removed",
            "choose another path; if this is what a run of ours left, remove it",
        )


def lock(path: str, what: str) -> int:
    """Hold an exclusive lock until the descriptor is closed; the kernel frees it when the process dies."""
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        os.close(handle)
        if exc.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        raise FleetError(
            "bundle.busy", f"another run is at work on {what}", "one run at a time", "wait for it, then run again"
        ) from exc
    return handle
