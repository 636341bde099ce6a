# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The official client as the transfer of an artifact, inside our own path checks, verification and publication.

It is given the names of the files, which were checked, and so asks for no listing; it writes into a private directory,
with a home and a cache of its own there; and nothing of what it wrote is used before size and SHA-256 were found right.
"""

from __future__ import annotations

import os
import shutil
import stat
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils import _safefs
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_hash import hash_all
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import NOT_FOUND, CommandResult, run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._staging import OFFICIAL_NAME

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, Resolution
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._staging import Staging

LOOK_SECONDS = 1.0
"""How often its directory is looked at for progress."""

DEADLINE = 7 * 24 * 3600.0
"""The client has limits of its own; this one only ends a process that hangs for ever."""

ARGUMENT_BYTES = 100_000
"""File names on one command line, well below what every system takes."""


class Client:
    """The official client's command ``client``, for one model at one resolved revision of one hub."""

    def __init__(self, client: str, model: str, resolution: Resolution, hub: HubClient) -> None:
        self._client, self._model, self._resolution, self._hub = client, model, resolution, hub

    def fetch(self, entries: Sequence[Entry], staging: Staging, monitor: Monitor) -> int:
        """Bring every entry into the staging's parts, verified. Returns the bytes that came. Raises FleetError."""
        wanted = {entry.sha256: entry for entry in entries}
        monitor.begin("fetching", sum(entry.size for entry in wanted.values()))
        _safefs.make_directory(staging.handle, OFFICIAL_NAME, 0o700)
        directory = os.path.join(staging.location.staging, OFFICIAL_NAME)
        watch = _Watch(directory, monitor)
        before = watch.size()
        watch.start()
        try:
            for batch in batches(list(wanted.values())):
                self._run(batch, directory)
        finally:
            watch.stop()
        received = max(0, watch.size() - before)
        self._take(wanted, staging, monitor)
        shutil.rmtree(directory, ignore_errors=True)
        return received

    def _run(self, batch: Sequence[Entry], directory: str) -> None:
        argv = [self._client, "download", "--model", self._model]
        argv += [entry.path for entry in batch]
        argv += ["--revision", self._resolution.ref, "--local_dir", os.path.join(directory, "files")]
        result = run_command(argv, DEADLINE, self._environment(directory))
        if result.rc != 0:
            raise self._failure(result)

    def _environment(self, directory: str) -> dict[str, str]:
        """The caller's, with the client's own state in our directory and the token where no process list shows it."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("MODELSCOPE_")}
        kept.update(
            HOME=directory,
            LC_ALL="C.UTF-8",
            MODELSCOPE_CACHE=os.path.join(directory, "cache"),
            MODELSCOPE_ENDPOINT=self._hub.endpoint.url,
            MODELSCOPE_DOWNLOAD_INTRA_CLOUD="false",
        )
        if self._hub.token:
            kept["MODELSCOPE_API_TOKEN"] = self._hub.token
        return kept

    def _failure(self, result: CommandResult) -> FleetError:
        if result.rc == NOT_FOUND:
            return FleetError(
                "official.no_client",
                f"the official client cannot be started: {self._hub.scrub(result.err)}",
                "the command of the package modelscope",
                "Install it with the role gpufleet.vllm.modelscope_client and name it in client, or use engine: native",
            )
        return FleetError(
            "official.failed",
            f"the official client ended with status {result.rc}: {self._hub.scrub(result.last_words)}",
            "status 0",
            "Run it again: what it fetched is kept. engine: native needs no client and resumes better",
        )

    def _take(self, wanted: dict[str, Entry], staging: Staging, monitor: Monitor) -> None:
        root = _safefs.open_directory(os.path.join(staging.location.staging, OFFICIAL_NAME, "files"))
        try:
            hashes = hash_all(root, list(wanted.values()), monitor)
            for entry in wanted.values():
                if entry.path not in hashes.right:
                    _safefs.unlink(root, entry.path)
                    raise FleetError(
                        "official.wrong_content",
                        f"the official client ended with status 0, and {entry.path} "
                        + (f"has SHA-256 {hashes.wrong[entry.path]}" if hashes.wrong[entry.path] else "is not there"),
                        f"{entry.size} bytes with SHA-256 {entry.sha256}, as the hub's own listing says",
                        "Run it again, or use engine: native; nothing was published",
                    )
            for entry in wanted.values():
                self._move(root, entry, staging)
        finally:
            os.close(root)

    @staticmethod
    def _move(root: int, entry: Entry, staging: Staging) -> None:
        handle = _safefs.open_regular(root, entry.path)
        try:
            os.fchmod(handle, _safefs.FILE_MODE)
            os.fsync(handle)
        finally:
            os.close(handle)
        head, tail = _safefs.split(entry.path)
        with _safefs.directory(root, head) as parent:
            os.rename(tail, entry.sha256, src_dir_fd=parent, dst_dir_fd=staging.parts)


def batches(entries: Sequence[Entry], most: int = ARGUMENT_BYTES) -> list[list[Entry]]:
    """The entries in groups whose names fit on one command line."""
    groups: list[list[Entry]] = []
    size = most
    for entry in entries:
        length = len(entry.path.encode()) + 1
        if size + length > most:
            groups.append([])
            size = 0
        groups[-1].append(entry)
        size += length
    return groups


class _Watch(threading.Thread):
    """Tells the monitor how much lies in a directory."""

    def __init__(self, directory: str, monitor: Monitor) -> None:
        super().__init__(daemon=True)
        self._directory, self._monitor, self._done = directory, monitor, threading.Event()

    def run(self) -> None:
        known = 0
        while not self._done.wait(LOOK_SECONDS):
            size = self.size()
            self._monitor.add(size - known, received=max(0, size - known))
            known = size

    def stop(self) -> None:
        self._done.set()
        self.join()

    def size(self) -> int:
        total = 0
        for place, _directories, names in os.walk(os.path.join(self._directory, "files")):
            for name in names:
                try:
                    state = os.lstat(os.path.join(place, name))
                except FileNotFoundError:
                    continue
                if stat.S_ISREG(state.st_mode):
                    total += state.st_size
        return total
