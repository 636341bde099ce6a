# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""By what hosts that mount one disk at different paths know that an artifact is the same.

Each publication writes a random token into the manifest, which everybody who sees the disk reads. A copy of the
directory has the token as well, and only the inode of the manifest tells it apart; so a mark holds both where the file
system has one number for all hosts. Where in doubt two marks are of one artifact.
"""

from __future__ import annotations

import os
import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils import _artifact, _prune_use, _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Manifest

# Whose inodes are the server's, the same on each client. FUSE and the others may number anew on each mount.
_NUMBERED = {
    "ceph": "ceph",
    "gfs2": "gfs2",
    "gpfs": "gpfs",
    "lustre": "lustre",
    "nfs": "nfs",
    "nfs4": "nfs",
    "ocfs2": "ocfs2",
}

_MARK = re.compile(r"([^@]+)(?:@([^:]+):(\d+))?")
_PATH = re.compile(r"/[^\s'\"`,;:=(){}\[\]<>|&*?\\]+")


@dataclass(frozen=True)
class Published:
    """A manifest as it lies on the disk: where, what, and the inode of its file."""

    path: str
    manifest: Manifest
    inode: int


def mark(found: Published, mounts: t.Sequence[_prune_use.Mount]) -> str:
    """The artifact's mark, as :func:`same` compares it with those of other hosts."""
    token = re.sub(r"[@\s]", "_", found.manifest.published) or found.manifest.digest
    mount = _prune_use.covering(mounts, found.path)
    if mount is None:
        return token
    kind = mount.kind if not _prune_use.is_shared(mount) else _NUMBERED.get(mount.kind)
    return f"{token}@{kind}:{found.inode}" if kind else token


def same(one: str, other: str) -> bool:
    """Whether two marks may be of one artifact: nothing but two inodes of one kind of file system tells them apart."""
    first, second = _MARK.fullmatch(one), _MARK.fullmatch(other)
    if first is None or second is None or first[1] != second[1]:
        return False
    return first[2] != second[2] or first[3] == second[3]


def named_in(texts: t.Iterable[str]) -> list[Published]:
    """The artifacts whose directories, or something in them, stand anywhere in the texts."""
    found: dict[str, Published] = {}
    looked: set[str] = set()
    for text in texts:
        for path in [*([text] if text.startswith("/") else []), *_PATH.findall(text)]:
            nearest = _nearest(os.path.normpath(path), looked)
            if nearest is not None:
                found[nearest.path] = nearest
    return [found[path] for path in sorted(found)]


def _nearest(path: str, looked: set[str]) -> Published | None:
    """The artifact at ``path`` or around it; None where there is none, or one that was looked at before."""
    while path not in looked and path != "/":
        looked.add(path)
        found = _published(path)
        if found is not None:
            return found
        path = os.path.dirname(path)
    return None


def _published(path: str) -> Published | None:
    try:
        root = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except (OSError, ValueError):
        return None
    try:
        manifest = _artifact.read_manifest(root, path, [])
        state = _safefs.lstat(root, _artifact.MANIFEST_PATH)
    except OSError:
        return None
    finally:
        os.close(root)
    if manifest is None or state is None:
        return None
    return Published(os.path.realpath(path), manifest, state.st_ino)
