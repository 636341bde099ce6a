# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The file systems behind paths: what they are, how they are mounted, and what is free on them."""

from __future__ import annotations

import os
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._host import existing_parent, read


class Mount(t.NamedTuple):
    """A line of /proc/self/mountinfo. ``options`` are the mount's own, then those of the file system."""

    place: str
    kind: str
    options: list[str]


_ESCAPE = re.compile(r"\\([0-7]{3})")


def parse_mounts(text: str) -> list[Mount]:
    """/proc/self/mountinfo, the later mount of one place last."""
    mounts = []
    for line in text.splitlines():
        left, separator, right = line.partition(" - ")
        fields, more = left.split(" "), right.split(" ")
        if separator and len(fields) > 5 and len(more) > 2:
            place = _ESCAPE.sub(lambda match: chr(int(match.group(1), 8)), fields[4])
            options = dict.fromkeys([*fields[5].split(","), *more[2].split(",")])
            mounts.append(Mount(place, more[0], [option for option in options if option]))
    return mounts


def mount_of(path: str, mounts: t.Sequence[Mount]) -> Mount | None:
    """The mount that a path without links lies on."""
    found = None
    for mount in mounts:
        inside = mount.place == "/" or path == mount.place or path.startswith(mount.place.rstrip("/") + "/")
        if inside and (found is None or len(mount.place) >= len(found.place)):
            found = mount
    return found


def filesystems(paths: t.Iterable[str]) -> list[dict[str, t.Any]]:
    """Space and inodes behind each path, and its mount: what a user other than root can still take."""
    mounts = parse_mounts(read("/proc/self/mountinfo"))
    result = []
    for path in dict.fromkeys(paths):
        base = os.path.realpath(existing_parent(path))
        state = os.statvfs(base)
        mount = mount_of(base, mounts)
        result.append(
            {
                "path": path,
                "device": os.stat(base).st_dev,
                "total_bytes": state.f_blocks * state.f_frsize,
                "free_bytes": state.f_bavail * state.f_frsize,
                "free_inodes": state.f_favail,
                "total_inodes": state.f_files,
                "mount": mount.place if mount else None,
                "type": mount.kind if mount else None,
                "read_only": bool(state.f_flag & os.ST_RDONLY),
                "options": mount.options if mount else [],
            }
        )
    return result


def shm() -> dict[str, int | None]:
    """The size of /dev/shm."""
    try:
        state = os.statvfs("/dev/shm")  # noqa: S108 - it is measured, nothing is written there
    except OSError:
        return {"size_bytes": None}
    return {"size_bytes": state.f_blocks * state.f_frsize}
