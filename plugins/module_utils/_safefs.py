# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""File operations below a directory that never leave it: every component is opened relative to its parent, without
following symbolic links. Paths are relative, with ``/``, and validated by the caller (``_manifest.path_fault``)."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

FILE_MODE = 0o644
DIRECTORY_MODE = 0o755

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_RENAME_EXCHANGE = 2
_SYNC_FILE_RANGE_WRITE = 2


def open_directory(path: str, dir_fd: int | None = None) -> int:
    """Open a directory; its last component must not be a symbolic link (OSError ENOTDIR or ELOOP)."""
    return os.open(path, _DIRECTORY, dir_fd=dir_fd)


def split(path: str) -> tuple[str, str]:
    """``a/b/c`` to (``a/b``, ``c``); a single name to ("", name)."""
    head, _slash, tail = path.rpartition("/")
    return head, tail


@contextlib.contextmanager
def directory(root: int, path: str, create: bool = False) -> Iterator[int]:
    """The directory ``path`` below ``root`` ("" is the root itself), optionally made with mode 0755."""
    current = os.dup(root)
    try:
        for name in path.split("/") if path else ():
            if create:
                make_directory(current, name)
            following = open_directory(name, current)
            os.close(current)
            current = following
        yield current
    finally:
        os.close(current)


def make_directory(parent: int, name: str, mode: int = DIRECTORY_MODE) -> bool:
    """Make a directory with exactly ``mode``, whatever the umask. False when something of that name is there."""
    try:
        os.mkdir(name, mode, dir_fd=parent)
    except FileExistsError:
        return False
    made = open_directory(name, parent)
    try:
        os.fchmod(made, mode)
    finally:
        os.close(made)
    return True


def lstat(root: int, path: str) -> os.stat_result | None:
    """What is at ``path``; None when nothing is, or when a component on the way is not a real directory."""
    head, tail = split(path)
    try:
        with directory(root, head) as parent:
            return os.stat(tail, dir_fd=parent, follow_symlinks=False)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return None
        raise


def open_regular(root: int, path: str) -> int:
    """Open a regular file for reading. Raises OSError; ELOOP or EINVAL when it is something else."""
    head, tail = split(path)
    with directory(root, head) as parent:
        # O_NONBLOCK: opening a FIFO that somebody put there must not hang.
        handle = os.open(tail, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "not a regular file", path)
    return handle


def link(source: int, source_path: str, target: int, target_path: str) -> None:
    """Give a file (or symbolic link, FIFO, ...) a second name below ``target``; directories on the way are made."""
    source_head, source_tail = split(source_path)
    target_head, target_tail = split(target_path)
    with directory(source, source_head) as origin, directory(target, target_head, create=True) as goal:
        os.link(source_tail, target_tail, src_dir_fd=origin, dst_dir_fd=goal, follow_symlinks=False)


def unlink(root: int, path: str) -> bool:
    """Remove a file or symbolic link; False when it was not there."""
    head, tail = split(path)
    try:
        with directory(root, head) as parent:
            os.unlink(tail, dir_fd=parent)
    except FileNotFoundError:
        return False
    return True


def remove_empty_directories(root: int, paths: set[str]) -> None:
    """Remove each of ``paths``' parent directories below the root that became empty, deepest first."""
    parents = set()
    for path in paths:
        head = split(path)[0]
        while head:
            parents.add(head)
            head = split(head)[0]
    for path in sorted(parents, key=lambda item: -item.count("/")):
        head, tail = split(path)
        try:
            with directory(root, head) as parent:
                os.rmdir(tail, dir_fd=parent)
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR, errno.ELOOP):
                raise


def remove_tree(parent: int, name: str) -> bool:
    """Remove ``name`` and everything below it, links themselves and not their targets. False when it was not there."""
    try:
        handle = open_directory(name, parent)
    except FileNotFoundError:
        return False
    except OSError as exc:
        if exc.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        os.unlink(name, dir_fd=parent)
        return True
    try:
        with os.scandir(handle) as found:
            items = [(item.name, item.is_dir(follow_symlinks=False)) for item in found]
        for child, is_directory in items:
            if is_directory:
                remove_tree(handle, child)
            else:
                os.unlink(child, dir_fd=handle)
    finally:
        os.close(handle)
    os.rmdir(name, dir_fd=parent)
    return True


@dataclass(frozen=True)
class Item:
    """Something found below a directory. ``kind`` is file, directory, symlink or other."""

    kind: str
    stat: os.stat_result


def walk(root: int, skip: str) -> dict[str, Item]:
    """Everything below ``root`` by relative path, not following links, without the top-level name ``skip``."""
    found: dict[str, Item] = {}
    pending = [""]
    while pending:
        base = pending.pop()
        with directory(root, base) as handle, os.scandir(handle) as items:
            for item in items:
                path = f"{base}/{item.name}" if base else item.name
                if path == skip:
                    continue
                try:
                    state = os.stat(item.name, dir_fd=handle, follow_symlinks=False)
                except FileNotFoundError:
                    continue
                found[path] = Item(_kind(state.st_mode), state)
                if stat.S_ISDIR(state.st_mode):
                    pending.append(path)
    return found


def _kind(mode: int) -> str:
    if stat.S_ISREG(mode):
        return "file"
    if stat.S_ISDIR(mode):
        return "directory"
    return "symlink" if stat.S_ISLNK(mode) else "other"


def write_file(parent: int, name: str, data: bytes, mode: int = FILE_MODE) -> None:
    """Write ``name`` in the directory ``parent`` atomically and durably."""
    temporary = f".{name}.{os.getpid()}"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary, dir_fd=parent)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    handle = os.open(temporary, flags, mode, dir_fd=parent)
    try:
        try:
            with os.fdopen(handle, "wb") as stream:
                stream.write(data)
                stream.flush()
                os.fchmod(stream.fileno(), mode)
                os.fsync(stream.fileno())
            os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
    finally:
        sync_directory(parent)


def copy_ownership(model: os.stat_result, handle: int) -> None:
    """Give an open directory the mode and, as far as permitted, the owner of another one."""
    mine = os.fstat(handle)
    if (mine.st_uid, mine.st_gid) != (model.st_uid, model.st_gid):
        with contextlib.suppress(PermissionError):
            os.fchown(handle, model.st_uid, model.st_gid)
    os.fchmod(handle, stat.S_IMODE(model.st_mode))


def start_writing(handle: int, offset: int, count: int) -> None:
    """Let the kernel begin to write these bytes of a file to the disk, without waiting. Nothing where it cannot."""
    try:
        call = ctypes.CDLL(None).sync_file_range
    except (AttributeError, OSError):
        return
    call.argtypes = [ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint]
    call(handle, offset, count, _SYNC_FILE_RANGE_WRITE)


def sync_directory(handle: int) -> None:
    # Some network file systems cannot fsync a directory; what they guarantee instead is out of our hands.
    with contextlib.suppress(OSError):
        os.fsync(handle)


def sync_directories(root: int) -> None:
    """fsync ``root`` and every directory below it."""
    pending = [""]
    while pending:
        base = pending.pop()
        with directory(root, base) as handle:
            with os.scandir(handle) as items:
                names = [item.name for item in items if item.is_dir(follow_symlinks=False)]
            sync_directory(handle)
        pending.extend(f"{base}/{name}" if base else name for name in names)


class ExchangeUnsupported(Exception):
    """This kernel or file system cannot swap two names in one step."""


def exchange(first: int, first_name: str, second: int, second_name: str) -> None:
    """Swap two names atomically. Raises ExchangeUnsupported, or OSError for other failures."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError) as exc:  # a C library older than glibc 2.28
        raise ExchangeUnsupported from exc
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if call(first, os.fsencode(first_name), second, os.fsencode(second_name), _RENAME_EXCHANGE) == 0:
        return
    code = ctypes.get_errno()
    if code in (errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP):
        raise ExchangeUnsupported
    raise OSError(code, os.strerror(code), second_name)
