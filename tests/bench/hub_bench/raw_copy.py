# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Copy files and hash them on the way, with a few threads: what a download costs where the network costs nothing.

``raw_copy.py THREADS FSYNC SOURCE TARGET``; FSYNC is 1 or 0. Prints one ``SHA256 PATH`` per file.
"""

from __future__ import annotations

import hashlib
import os
import sys
import threading

CHUNK = 256 * 1024


def copy(source: str, target: str, fsync: bool) -> str:
    """Copy one file; returns its SHA-256."""
    state, buffer = hashlib.sha256(), bytearray(CHUNK)
    view = memoryview(buffer)
    with open(source, "rb", buffering=0) as reader, open(target, "xb", buffering=0) as writer:
        while count := reader.readinto(buffer):
            writer.write(view[:count])
            state.update(view[:count])
        if fsync:
            os.fsync(writer.fileno())
    return state.hexdigest()


def main(threads: int, fsync: bool, source: str, target: str) -> None:
    """Copy the tree ``source`` to ``target``, which must not exist."""
    todo: list[tuple[int, str]] = []
    for directory, _unused, names in os.walk(source):
        relative = os.path.relpath(directory, source)
        os.makedirs(os.path.normpath(os.path.join(target, relative)))
        todo += [(os.path.getsize(os.path.join(directory, name)), os.path.join(relative, name)) for name in names]
    todo.sort()  # the largest last, and so taken first
    lock = threading.Lock()

    def work() -> None:
        while True:
            with lock:
                if not todo:
                    return
                _size, path = todo.pop()
            digest = copy(os.path.join(source, path), os.path.join(target, path), fsync)
            with lock:
                print(digest, os.path.normpath(path))

    workers = [threading.Thread(target=work) for _unused in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "1", sys.argv[3], sys.argv[4])
