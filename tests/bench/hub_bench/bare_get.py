# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Download and hash known files over a few connections, one a file, and nothing else: the least a download costs here.

``bare_get.py THREADS FSYNC ENDPOINT MODEL SOURCE TARGET``; SOURCE tells paths and sizes, FSYNC is 1 or 0. No listing,
no ranges, no resume, no check of anything.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import sys
import threading
from urllib.parse import quote, urlsplit

CHUNK = 1024 * 1024


class Getter:
    """One thread's connection and buffer."""

    def __init__(self, endpoint: str, model: str, fsync: bool) -> None:
        self._host, self._model, self._fsync = urlsplit(endpoint).netloc, model, fsync
        self._connection = http.client.HTTPConnection(self._host)
        self._view = memoryview(bytearray(CHUNK))

    def get(self, path: str, size: int, target: str) -> str:
        """Fetch one file; returns its SHA-256."""
        response = self._ask(f"/api/v1/models/{self._model}/repo?Revision=master&FilePath={quote(path, safe='')}")
        if response.status == 302:
            response.read()
            response = self._ask((response.getheader("Location") or "").split(self._host, 1)[1])
        if response.status != 200 or response.length != size:
            raise SystemExit(f"{path}: HTTP {response.status}, {response.length} bytes instead of {size}")
        state, left = hashlib.sha256(), size
        with open(target, "xb", buffering=0) as writer:
            while left:
                count = response.fp.readinto1(self._view[: min(CHUNK, left)])
                if not count:
                    raise SystemExit(f"{path}: the connection ended")
                writer.write(self._view[:count])
                state.update(self._view[:count])
                left -= count
            if self._fsync:
                os.fsync(writer.fileno())
        response.length = 0
        response.read()
        return state.hexdigest()

    def _ask(self, target: str) -> http.client.HTTPResponse:
        self._connection.request("GET", target)
        return self._connection.getresponse()


def main(threads: int, fsync: bool, endpoint: str, model: str, source: str, target: str) -> None:
    """Fetch all files that ``source`` has into ``target``, which must not exist."""
    todo: list[tuple[int, str]] = []
    for directory, _unused, names in os.walk(source):
        relative = os.path.relpath(directory, source)
        os.makedirs(os.path.normpath(os.path.join(target, relative)))
        todo += [(os.path.getsize(os.path.join(directory, name)), os.path.join(relative, name)) for name in names]
    todo.sort()  # the largest last, and so taken first
    lock = threading.Lock()

    def work() -> None:
        getter = Getter(endpoint, model, fsync)
        while True:
            with lock:
                if not todo:
                    return
                size, path = todo.pop()
            path = os.path.normpath(path)
            digest = getter.get(path, size, os.path.join(target, path))
            with lock:
                print(digest, path)

    workers = [threading.Thread(target=work) for _unused in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2] == "1", *sys.argv[3:7])
