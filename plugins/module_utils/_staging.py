# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The private directory in which an artifact is put together: where it lies, its lock, its parts.

Normally it is ``.NAME.gpufleet`` beside the artifact directory ``NAME``, so that publishing is one rename. Where that
is impossible (the parent is not writable, or the directory is a mount point) it lies inside, in
``NAME/.gpufleet/staging``. It holds ``lock``, ``parts/SHA256`` and, while publishing, ``tree/``. A large part is
written at several places at once; ``parts/SHA256.ranges`` says which of its bytes are there.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import struct
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils import _lock, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import STATE_DIRECTORY
from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

LOCK_NAME = "lock"
PARTS_NAME = "parts"
TREE_NAME = "tree"
OLD_NAME = "old"
OFFICIAL_NAME = "official"
"""Where the official client works, where it is asked for."""

INSIDE_NAME = "staging"

JOURNAL_MIN = 1024 * 1024
"""Parts of larger files have a journal; smaller ones are written from their beginning."""

_JOURNAL = ".ranges"
_JOURNAL_BYTES_MAX = 16 * 1024 * 1024
_RECORD = struct.Struct("<QQ")

_PRIVATE = 0o700
_POLL = 0.25
_SYNCERS = 16


@dataclass(frozen=True)
class Location:
    """Where an artifact and its staging directory lie; ``parent`` has no symbolic links, ``name`` is one component."""

    parent: str
    name: str
    inside: bool

    @property
    def path(self) -> str:
        return os.path.join(self.parent, self.name)

    @property
    def staging(self) -> str:
        if self.inside:
            return os.path.join(self.path, STATE_DIRECTORY, INSIDE_NAME)
        return os.path.join(self.parent, f".{self.name}{STATE_DIRECTORY}")

    @property
    def nearest(self) -> str:
        """The nearest directory that exists now and lies on the file system that staging will use."""
        path = self.path if self.inside else self.parent
        while not os.path.isdir(path) and path != "/":
            path = os.path.dirname(path)
        return path


def locate(path: str) -> Location:
    """Decide where the artifact at ``path`` is staged. Raises FleetError for a path that cannot be used."""
    absolute = os.path.abspath(path)
    parent, name = os.path.split(absolute)
    if not name:
        raise _unusable(absolute, "is the root directory", "a directory of its own for the model")
    parent = os.path.realpath(parent)
    absolute = os.path.join(parent, name)
    try:
        mode = os.lstat(absolute).st_mode
    except (FileNotFoundError, NotADirectoryError):
        mode = None
    if mode is not None and stat.S_ISLNK(mode):
        target = os.path.realpath(absolute)
        raise _unusable(absolute, "is a symbolic link", f"a directory; for the link's target set path to {target}")
    if mode is not None and not stat.S_ISDIR(mode):
        raise _unusable(absolute, "is not a directory", "a directory, or nothing yet")
    beside = Location(parent, name, inside=False)
    if mode is None:
        existing = parent
        while not os.path.lexists(existing):
            existing = os.path.dirname(existing)
        if not os.path.isdir(existing):
            raise _unusable(absolute, f"cannot be made: {existing} is not a directory", "directories on the way")
        if not os.access(beside.nearest, os.W_OK | os.X_OK):
            raise _unusable(absolute, f"cannot be made: {beside.nearest} is not writable for this user", "write access")
        return beside
    if os.access(parent, os.W_OK | os.X_OK) and not _is_mount_point(absolute, parent):
        return beside
    return Location(parent, name, inside=True)


def _is_mount_point(path: str, parent: str) -> bool:
    # A bind mount of the same file system has the same device number; only the mount table tells.
    if os.stat(path).st_dev != os.stat(parent).st_dev or os.path.ismount(path):
        return True
    try:
        with open("/proc/self/mountinfo", "rb") as table:
            return any(line.split(b" ")[4] == _mount_escaped(path) for line in table)
    except OSError:
        return False


def _mount_escaped(path: str) -> bytes:
    raw = os.fsencode(path).replace(b"\\", b"\\134")
    return raw.replace(b" ", b"\\040").replace(b"\t", b"\\011").replace(b"\n", b"\\012")


def _unusable(path: str, seen: str, expected: str) -> FleetError:
    return FleetError("path.unusable", f"{path} {seen}", expected, "Correct path, or the permissions on the host")


def parts_on_disk(location: Location) -> dict[str, int]:
    """Bytes that an interrupted run left, by digest. Reads only."""
    try:
        handle = _safefs.open_directory(os.path.join(location.staging, PARTS_NAME))
    except OSError:
        return {}
    try:
        with os.scandir(handle) as items:
            states = {item.name: item.stat(follow_symlinks=False) for item in items if _is_part(item)}
        return {name: _written(handle, name, state.st_size).size for name, state in states.items()}
    finally:
        os.close(handle)


def _is_part(item: os.DirEntry[str]) -> bool:
    # A second name means that the file is published already: it is not ours to write to any more.
    regular = item.is_file(follow_symlinks=False) and item.stat(follow_symlinks=False).st_nlink == 1
    return regular and "." not in item.name


def _written(parts: int, name: str, size: int) -> Ranges:
    """What of a part of ``size`` bytes is there; without a journal it was written from its beginning."""
    try:
        handle = os.open(name + _JOURNAL, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parts)
    except OSError:
        return Ranges([(0, size)])
    with open(handle, "rb") as stream:
        data = stream.read(_JOURNAL_BYTES_MAX)
    whole = len(data) - len(data) % _RECORD.size
    return Ranges((start, min(end, size)) for start, end in _RECORD.iter_unpack(data[:whole]))


class FilePart:
    """One part on disk; the transfer's Part. Never follows a link and never writes to a file with a second name.

    The journal is appended to after the bytes were written, so what a kill leaves is never more than what is there. A
    power failure may leave a journal without its bytes: then the hash does not fit, and the part starts anew.
    """

    def __init__(self, parts: int, entry: Entry) -> None:
        self._parts, self._name, self._size = parts, entry.sha256, entry.size
        self._handle = self._open(parts, self._name, os.O_RDWR)
        self._journal: int | None = None
        size = os.fstat(self._handle).st_size
        self.done = _written(parts, self._name, size)
        if entry.size > JOURNAL_MIN:
            self._journal = self._open_journal(size)

    def _open_journal(self, size: int) -> int:
        """Made before the first byte out of order: where there was none, the part's size says how far it is."""
        name, flags = self._name + _JOURNAL, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            made = os.open(name, flags | os.O_CREAT | os.O_EXCL, 0o600, dir_fd=self._parts)
        except FileExistsError:
            made = self._open(self._parts, name, os.O_RDWR | os.O_APPEND)
            length = os.fstat(made).st_size
            os.ftruncate(made, length - length % _RECORD.size)  # a full disk may have cut the last record
            return made
        if size:
            os.write(made, _RECORD.pack(0, size))
        return made

    @staticmethod
    def _open(parts: int, name: str, mode: int) -> int:
        flags = mode | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        for _unused in range(3):
            try:
                handle = os.open(name, flags, 0o600, dir_fd=parts)
            except OSError as exc:
                if exc.errno not in (errno.ELOOP, errno.EISDIR, errno.ENXIO):
                    raise
            else:
                state = os.fstat(handle)
                if stat.S_ISREG(state.st_mode) and state.st_nlink == 1:
                    return handle
                os.close(handle)
            _safefs.remove_tree(parts, name)
        raise OSError(errno.EBUSY, "cannot be replaced by a part", name)

    def fileno(self) -> int:
        return self._handle

    def read(self, limit: int, offset: int) -> bytes:
        return os.pread(self._handle, limit, offset)

    def write(self, data: bytes | memoryview, offset: int) -> None:
        view = memoryview(data)
        while view:
            written = os.pwrite(self._handle, view, offset)
            offset += written
            view = view[written:]

    def note(self, start: int, end: int) -> None:
        if self._journal is not None:
            if os.write(self._journal, _RECORD.pack(start, end)) != _RECORD.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            # Begun now, so that the fsync in the end finds little left to do.
            _safefs.start_writing(self._handle, start, end - start)

    def restart(self) -> None:
        if self._journal is not None:
            os.ftruncate(self._journal, 0)
        os.ftruncate(self._handle, 0)

    def complete(self) -> None:
        os.ftruncate(self._handle, self._size)
        os.fchmod(self._handle, _safefs.FILE_MODE)
        if self._journal is not None:
            os.fsync(self._handle)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._name + _JOURNAL, dir_fd=self._parts)

    def close(self) -> None:
        os.close(self._handle)
        if self._journal is not None:
            os.close(self._journal)


class Staging:
    """The staging directory, open and locked by this process. Use :func:`acquire`.

    ``handle`` is the directory; ``parent`` the directory that holds it and (unless inside) the artifact.
    """

    def __init__(self, location: Location, parent: int, name: str, handle: int, lock: int, made: list[str]) -> None:
        self.location, self.parent, self.handle = location, parent, handle
        self._name, self._lock, self._made = name, lock, made
        _safefs.make_directory(handle, PARTS_NAME, _PRIVATE)
        self.parts = _safefs.open_directory(PARTS_NAME, handle)
        self._pulse = _lock.Pulse(lock)

    def part(self, entry: Entry) -> FilePart:
        return FilePart(self.parts, entry)

    def recover(self) -> None:
        """Finish or undo what a run was doing that was killed while it replaced the directory by two renames."""
        if os.path.lexists(self.location.path):
            _safefs.remove_tree(self.handle, OLD_NAME)
            return
        with contextlib.suppress(FileNotFoundError):
            os.rename(OLD_NAME, self.location.name, src_dir_fd=self.handle, dst_dir_fd=self.parent)

    def sync(self, names: Iterable[str]) -> None:
        """Make the small parts durable, which their transfer did not wait for: together, as that is a tenth as long."""
        from concurrent.futures import ThreadPoolExecutor

        pool = ThreadPoolExecutor(max_workers=_SYNCERS)
        try:
            for _unused in pool.map(self._sync_one, names):
                pass
        finally:
            pool.shutdown(cancel_futures=True)

    def _sync_one(self, name: str) -> None:
        handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.parts)
        try:
            if os.fstat(handle).st_size <= JOURNAL_MIN:
                os.fsync(handle)
        finally:
            os.close(handle)

    def discard(self) -> None:
        """Drop the parts: the work is done, or nothing of them is of use."""
        _safefs.remove_tree(self.handle, PARTS_NAME)
        _safefs.remove_tree(self.handle, OFFICIAL_NAME)
        with os.scandir(self.handle) as items:
            probes = [item.name for item in items if item.name.startswith(f"{_lock.PROBE}.")]
        for name in probes:  # of a run that was killed while it read the file system's clock
            _safefs.remove_tree(self.handle, name)

    def release(self) -> None:
        """Give up the lock; the directory goes too unless it holds parts for a later run."""
        self._pulse.stop()
        try:
            _safefs.remove_tree(self.handle, TREE_NAME)
            self._drop_empty_parts()
            os.unlink(LOCK_NAME, dir_fd=self.handle)
            os.rmdir(self._name, dir_fd=self.parent)
            # What was made for nothing goes too; rmdir spares every directory that holds something.
            for path in self._made:
                os.rmdir(path)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.EBUSY):
                raise
        finally:
            for handle in (self.parts, self._lock, self.handle, self.parent):
                os.close(handle)

    def _drop_empty_parts(self) -> None:
        with contextlib.suppress(OSError):
            with os.scandir(self.parts) as items:
                sizes = {item.name: item.stat(follow_symlinks=False).st_size for item in items}
            for name, size in sizes.items():
                part = name.removesuffix(_JOURNAL)
                if not size or not sizes.get(part):
                    os.unlink(name, dir_fd=self.parts)
            os.rmdir(PARTS_NAME, dir_fd=self.handle)


def acquire(
    location: Location,
    lock_timeout: float,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> Staging:
    """Make, open and lock the staging directory, waiting up to ``lock_timeout`` seconds for another run.

    Raises FleetError ``artifact.locked``, naming the holder.
    """
    deadline = clock() + lock_timeout
    made = _make_parents(location)
    while True:
        staging = _try_acquire(location, made)
        if isinstance(staging, Staging):
            staging.recover()
            return staging
        if clock() >= deadline:
            raise FleetError(
                "artifact.locked",
                f"{location.path} is being worked on by {staging}",
                f"the other run to end within lock_timeout ({lock_timeout:g} s)",
                "Wait for it or stop it, then run this again; a lock whose process is gone frees itself",
            )
        sleep(min(_POLL, max(0.0, deadline - clock())))


def _make_parents(location: Location) -> list[str]:
    """Make what is missing above the artifact; returns the directories made, deepest first."""
    missing = []
    path = location.parent
    while not os.path.isdir(path):
        missing.append(path)
        path = os.path.dirname(path)
    made: list[str] = []
    for item in reversed(missing):
        with contextlib.suppress(FileExistsError):
            os.mkdir(item)
            os.chmod(item, _safefs.DIRECTORY_MODE)
            made.insert(0, item)
    if location.inside and not os.path.lexists(os.path.join(location.path, STATE_DIRECTORY)):
        made.insert(0, os.path.join(location.path, STATE_DIRECTORY))
    return made


def _try_acquire(location: Location, made: list[str]) -> Staging | str:
    """The locked directory, or who holds it."""
    parent, name = _open_parent(location)
    opened = [parent]
    try:
        _safefs.make_directory(parent, name, _PRIVATE)
        handle = _safefs.open_directory(name, parent)
        opened.append(handle)
        _check_private(location, handle)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        lock = os.open(LOCK_NAME, flags, 0o600, dir_fd=handle)
        opened.append(lock)
        holder = _lock.take(lock, handle)
        if holder is None and _still_there(parent, name, handle, lock):
            staging = Staging(location, parent, name, handle, lock, made)
            opened.clear()
            return staging
        return holder or "a run that is just ending"
    except FileNotFoundError:  # the other run removed the directory between two of our steps
        return "a run that is just ending"
    finally:
        for item in opened:
            os.close(item)


def _open_parent(location: Location) -> tuple[int, str]:
    base = _safefs.open_directory(location.parent)
    if not location.inside:
        return base, os.path.basename(location.staging)
    try:
        with _safefs.directory(base, f"{location.name}/{STATE_DIRECTORY}", create=True) as handle:
            return os.dup(handle), INSIDE_NAME
    finally:
        os.close(base)


def _check_private(location: Location, handle: int) -> None:
    state = os.fstat(handle)
    if state.st_uid == os.geteuid() and not state.st_mode & 0o022:
        return
    raise FleetError(
        "path.foreign_staging",
        f"{location.staging} exists, owned by uid {state.st_uid} with mode {stat.S_IMODE(state.st_mode):04o}",
        f"a directory of uid {os.geteuid()} that nobody else can write to",
        "If it is left from a run as another user, remove it or run as that user; otherwise find out who put it there",
    )


def _still_there(parent: int, name: str, handle: int, lock: int) -> bool:
    """Whether what we locked is what the next run will find under these names."""
    try:
        here = os.stat(name, dir_fd=parent, follow_symlinks=False)
        file = os.stat(LOCK_NAME, dir_fd=handle, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(here, os.fstat(handle)) and os.path.samestat(file, os.fstat(lock))
