# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which directories something on this host uses now: open and mapped files, working directories, bind mounts.

It reads ``/proc`` alone. A container shows there as its processes, with a table of mounts of their own. A file is only
looked at (``stat``) if one of ours has its name, so that a dead network file system elsewhere does not hang us.
"""

from __future__ import annotations

import contextlib
import os
import re
import typing as t
from dataclasses import dataclass, field

# What more than one host may write to. FUSE counts as well, whatever it calls itself, but for a local disk (fuseblk).
SHARED_FILE_SYSTEMS = (
    "9p", "afs", "beegfs", "ceph", "cifs", "coda", "fhgfs", "fuse", "gfs2", "glusterfs", "gpfs", "lustre", "nfs",
    "nfs4", "ocfs2", "orangefs", "panfs", "pvfs2", "quobyte", "smb3", "smbfs", "virtiofs", "wekafs",
)  # fmt: skip

_ESCAPED = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mount:
    """One line of a mountinfo: the device, what of its file system is mounted, where, and the type."""

    device: str
    root: str
    point: str
    kind: str


def parse_mounts(text: str) -> list[Mount]:
    """A /proc/PID/mountinfo. Lines that are none are left out."""
    mounts = []
    for line in text.splitlines():
        fields, _dash, rest = line.partition(" - ")
        words, kind = fields.split(" "), rest.split(" ")[0]
        if len(words) > 5 and kind:
            mounts.append(Mount(words[2], _unescaped(words[3]), _unescaped(words[4]), kind))
    return mounts


def _unescaped(text: str) -> str:
    return _ESCAPED.sub(lambda match: chr(int(match[1], 8)), text)


def is_below(path: str, above: str) -> bool:
    """Whether ``path`` is ``above`` or something in it; both absolute."""
    return path == above or path.startswith(above.rstrip("/") + "/")


def covering(mounts: t.Sequence[Mount], path: str) -> Mount | None:
    """The mount that ``path`` lies on: the longest point, and of several on one point the last."""
    found: Mount | None = None
    for mount in mounts:
        if is_below(path, mount.point) and (found is None or len(mount.point) >= len(found.point)):
            found = mount
    return found


def is_shared(mount: Mount | None) -> bool:
    """Whether other hosts may use what lies on this mount."""
    if mount is None:
        return False
    return mount.kind in SHARED_FILE_SYSTEMS or mount.kind.startswith("fuse.")


def inner_path(mount: Mount, path: str) -> str:
    """``path`` as its file system knows it."""
    return os.path.normpath(f"{mount.root.rstrip('/')}/{os.path.relpath(path, mount.point)}")


@dataclass(frozen=True)
class Watched:
    """A directory whose use matters, with the files in it: their names, and device and inode of each."""

    path: str
    names: frozenset[str] = frozenset()
    inodes: frozenset[tuple[int, int]] = frozenset()


@dataclass
class Uses:
    """What was found: for each path the first use of it, and how many processes could not be looked into."""

    found: dict[str, str] = field(default_factory=dict)
    hidden: int = 0


def uses_of(watched: t.Sequence[Watched], proc: str = "/proc") -> Uses:
    """Who uses the directories now."""
    return _Scan(watched, proc).run() if watched else Uses()


class _Scan:
    def __init__(self, watched: t.Sequence[Watched], proc: str) -> None:
        self._watched, self._proc = watched, proc
        self._names = frozenset(name for item in watched for name in item.names)
        self._numbers = frozenset(number for item in watched for _device, number in item.inodes)
        self._mine = parse_mounts(self._read("self/mountinfo"))
        self._uses = Uses()
        self._seen_namespaces: set[str] = set()

    def run(self) -> Uses:
        for entry in os.listdir(self._proc):
            if entry.isdigit() and int(entry) != os.getpid():
                self._process(entry)
        return self._uses

    def _read(self, path: str) -> str:
        with open(f"{self._proc}/{path}", encoding="utf-8", errors="surrogateescape") as stream:
            return stream.read()

    def _link(self, path: str) -> str:
        return os.readlink(f"{self._proc}/{path}")

    def _process(self, pid: str) -> None:
        hidden = False
        for look in (self._mounts, self._directories, self._descriptors, self._mappings):
            try:
                look(pid)
            except PermissionError:
                hidden = True
            except OSError:  # it ended meanwhile
                pass
        self._uses.hidden += hidden

    def _note(self, path: str, pid: str, what: str) -> None:
        if path not in self._uses.found:
            name = ""
            with contextlib.suppress(OSError):
                name = f" ({self._read(f'{pid}/comm').strip()})"
            self._uses.found[path] = f"process {pid}{name} {what}"

    def _mounts(self, pid: str) -> None:
        namespace = ""
        with contextlib.suppress(PermissionError):  # the table itself may be open
            namespace = self._link(f"{pid}/ns/mnt")
        if namespace in self._seen_namespaces:
            return
        mounts = parse_mounts(self._read(f"{pid}/mountinfo"))
        if namespace:
            self._seen_namespaces.add(namespace)
        for item in self._watched:
            own = covering(self._mine, item.path)
            if own is None:
                continue
            inner = inner_path(own, item.path)
            for mount in mounts:
                # The mount that the directory itself lies on is no use of it, in whichever namespace.
                if mount.device == own.device and is_below(mount.root, inner) and mount.point != own.point:
                    self._note(item.path, pid, f"has it mounted at {mount.point}")

    def _directories(self, pid: str) -> None:
        for kind in ("cwd", "root"):
            target = self._link(f"{pid}/{kind}")
            for item in self._watched:
                if is_below(target, item.path):
                    self._note(item.path, pid, "works in it")

    def _descriptors(self, pid: str) -> None:
        for descriptor in os.listdir(f"{self._proc}/{pid}/fd"):
            path = f"{pid}/fd/{descriptor}"
            with contextlib.suppress(FileNotFoundError):
                self._open_file(pid, path, self._link(path))

    def _open_file(self, pid: str, path: str, target: str) -> None:
        if not target.startswith("/"):  # a socket or a pipe
            return
        identity = None
        if os.path.basename(target) in self._names:
            with contextlib.suppress(OSError):  # somebody's FUSE mount, which is closed to root
                state = os.stat(f"{self._proc}/{path}")
                identity = (state.st_dev, state.st_ino)
        for item in self._watched:
            if is_below(target, item.path) or identity in item.inodes:
                self._note(item.path, pid, f"has {os.path.basename(target)} open")

    def _mappings(self, pid: str) -> None:
        for line in self._read(f"{pid}/maps").splitlines():
            words = line.split(None, 5)
            if len(words) < 6 or not words[5].startswith("/"):
                continue
            target, number = words[5], int(words[4])
            # Some file systems show another device here than stat does, so name and number have to do.
            same = os.path.basename(target) in self._names and number in self._numbers
            for item in self._watched:
                if is_below(target, item.path) or (same and any(number == inode for _device, inode in item.inodes)):
                    self._note(item.path, pid, f"has {os.path.basename(target)} mapped")
