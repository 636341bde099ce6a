# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Hashing files of an artifact that are on disk, several at a time."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils import _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, FileStat

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor

HASH_CHUNK = 1024 * 1024


@dataclass
class Hashes:
    """Hashed files: the stat of the right ones, the SHA-256 found in the wrong ones."""

    right: dict[str, FileStat] = field(default_factory=dict)
    wrong: dict[str, str] = field(default_factory=dict)


def hash_all(root: int, entries: Sequence[Entry], monitor: Monitor) -> Hashes:
    """Hash these files, one a processor; the monitor hears of each mebibyte."""
    result = Hashes()
    monitor.begin("checking", sum(entry.size for entry in entries))
    # Largest first, so that the last processor does not begin with a large file when the others are done.
    entries = sorted(entries, key=lambda entry: -entry.size)
    pool = ThreadPoolExecutor(max_workers=max(1, min(os.cpu_count() or 1, len(entries))))
    stop = threading.Event()
    try:
        hashed = pool.map(lambda item: _hash_one(root, item, stop, monitor), entries)
        for entry, (state, digest) in zip(entries, hashed):
            if state is not None and digest == entry.sha256:
                result.right[entry.path] = state
            else:
                result.wrong[entry.path] = digest
    finally:
        stop.set()  # an interrupt does not wait for the end of a large file
        pool.shutdown(wait=True, cancel_futures=True)
    return result


def _hash_one(root: int, entry: Entry, stop: threading.Event, monitor: Monitor) -> tuple[FileStat | None, str]:
    """The file's stat, None when it changed meanwhile, and its SHA-256."""
    digest = hashlib.sha256()
    try:
        handle = _safefs.open_regular(root, entry.path)
    except OSError:
        return None, ""
    with open(handle, "rb", buffering=0) as stream:
        before = os.fstat(handle)
        buffer = bytearray(HASH_CHUNK)
        view = memoryview(buffer)
        try:
            while count := stream.readinto(buffer):
                digest.update(view[:count])
                monitor.add(count)
                if stop.is_set():
                    return None, ""
        except OSError as exc:  # a bad sector, say: the file counts as wrong, and is put elsewhere anew
            monitor.note(f"{entry.path} cannot be read ({exc.strerror or exc}); it counts as damaged.")
            return None, ""
        after = os.fstat(handle)
    same = (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    return (FileStat(after.st_size, after.st_mtime_ns) if same else None), digest.hexdigest()
