# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Where the config and the headers of a model come from: its directory on this host, or the hub in ranges. Reads only.

Both give the same few bytes: config.json, the index, the head of each safetensors file. From the hub that is some
hundred kilobytes for a model of many gigabytes; what is asked for is bounded, and a file that is read whole is verified
against the listing.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _manifest, _safefs, _staging
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact import MANIFEST_PATH
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import RangeRefusedError, TransientError

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._hub import HubClient, HubSource
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, Manifest

BYTES_MAX = 64 * 1024 * 1024
"""What is read of one model at most; the headers of the largest published ones take some 15 MiB."""

SECONDS_MAX = 120.0
_TIMEOUTS = 4
"""What is read of one model on the hub takes no longer than so many of the client's time-outs, two minutes at most."""

_MANIFEST_MAX = 256 * 1024 * 1024
_TRIES = 3
_PIECE = 64 * 1024


class Files(t.Protocol):
    """The files of one model: ``entries`` by path, and their bytes."""

    source: str
    commit: str | None
    entries: t.Mapping[str, Entry]

    def read(self, entry: Entry, start: int, end: int) -> bytes:
        """Bytes ``[start, end)`` of a file. Raises FleetError."""


class Budget:
    """How many bytes may still be read; shared by the threads that read one model."""

    def __init__(self, limit: int = BYTES_MAX) -> None:
        self._lock, self._left, self.read = threading.Lock(), limit, 0

    def take(self, count: int) -> None:
        with self._lock:
            if count > self._left:
                raise FleetError(
                    "model.too_large",
                    f"More than {BYTES_MAX} bytes of config and headers would have to be read",
                    "headers of a few megabytes",
                    "Set tensor_parallel_size and max_model_len yourself; this repository is out of the ordinary",
                )
            self._left -= count
            self.read += count


# --- a directory -----------------------------------------------------------------------------------------------------


class DirectoryFiles:
    """The files of a directory, opened without following a link anywhere below it."""

    def __init__(self, root: str, source: str, commit: str | None, entries: t.Mapping[str, Entry]) -> None:
        self._root, self.source, self.commit, self.entries = root, source, commit, entries
        self._budget = Budget()

    def read(self, entry: Entry, start: int, end: int) -> bytes:
        self._budget.take(end - start)
        try:
            with _opened(self._root, entry.path) as handle:
                data = os.pread(handle, end - start, start)
        except OSError as exc:
            raise _unreadable(self._root, entry.path, exc.strerror or str(exc)) from exc
        if len(data) != end - start:
            raise _unreadable(self._root, entry.path, f"it ends after {start + len(data)} bytes")
        return data


def artifact_files(path: str, model: str, revision: str) -> DirectoryFiles | None:
    """The files of the artifact that lies at ``path``, where it is this model at this revision and none is missing."""
    manifest = _read_manifest(path)
    if manifest is None or manifest.model != model or revision not in (manifest.revision, manifest.commit):
        return None
    if any(_size(path, entry.path) != entry.size for entry in manifest.entries):
        return None
    return DirectoryFiles(path, "artifact", manifest.commit, manifest.by_path())


def loose_files(path: str) -> DirectoryFiles | None:
    """The files of a directory that nobody vouches for, where it has a config.json; what a host without hub has."""
    entries: dict[str, Entry] = {}
    with contextlib.suppress(OSError):
        for item in os.scandir(path):
            size = _size(path, item.name)
            if size is not None and _manifest.path_fault(item.name) is None:
                entries[item.name] = _manifest.Entry(item.name, size, "")
    return DirectoryFiles(path, "directory", None, entries) if "config.json" in entries else None


def missing_bytes(path: str, entries: t.Iterable[Entry]) -> int:
    """What a fetch to ``path`` would still bring: equal contents count once, and parts of an interrupted run do not.

    What has the right size is taken for right: it is hashed only when the model is fetched.
    """
    try:
        parts = _staging.parts_on_disk(_staging.locate(path))
    except (FleetError, OSError):
        parts = {}
    left = {entry.sha256: entry.size for entry in entries if _size(path, entry.path) != entry.size}
    return sum(size - (parts.get(name, 0) if parts.get(name, 0) <= size else 0) for name, size in left.items())


def _read_manifest(path: str) -> Manifest | None:
    size = _size(path, MANIFEST_PATH)
    if size is None or size > _MANIFEST_MAX:
        return None
    try:
        with _opened(path, MANIFEST_PATH) as handle, os.fdopen(os.dup(handle), "rb") as file:
            return _manifest.load(file.read(_MANIFEST_MAX).decode())
    except (OSError, ValueError):  # UnicodeDecodeError included
        return None


@contextlib.contextmanager
def _opened(root: str, path: str) -> t.Iterator[int]:
    directory = _safefs.open_directory(root)
    try:
        handle = _safefs.open_regular(directory, path)
    finally:
        os.close(directory)
    try:
        yield handle
    finally:
        os.close(handle)


def _size(root: str, path: str) -> int | None:
    """The size of a regular file below ``root``; None for anything else."""
    try:
        with _opened(root, path) as handle:
            return os.fstat(handle).st_size
    except OSError:
        return None


def _unreadable(root: str, path: str, why: str) -> FleetError:
    return FleetError(
        "model.unreadable",
        f"{os.path.join(root, path)} cannot be read: {why}",
        "a complete model in its directory",
        "Fetch the model again with gpufleet.vllm.modelscope_model, state: verified",
    )


# --- the hub ---------------------------------------------------------------------------------------------------------


class HubFiles:
    """The files of a model on the hub, read in ranges from one commit."""

    source = "hub"

    def __init__(
        self, client: HubClient, model: str, revision: str, include: t.Sequence[str], exclude: t.Sequence[str]
    ):
        resolution = client.resolve(model, revision, patient=False)
        rows = client.list_rows(model, resolution)
        self.commit = resolution.commit
        entries, _left_out = _manifest.without_pickles(_manifest.entries_from_rows(rows, include, exclude), allow=False)
        self.entries: t.Mapping[str, Entry] = {entry.path: entry for entry in entries}
        self._from: HubSource = client.source(model, resolution)
        self._budget = Budget()
        # The client bounds only how long nothing arrives, and a trickle could last for days.
        self._seconds = min(SECONDS_MAX, _TIMEOUTS * client.timeout)
        self._deadline = time.monotonic() + self._seconds

    def read(self, entry: Entry, start: int, end: int) -> bytes:
        self._budget.take(end - start)
        failures = 0
        while True:
            try:
                data = self._read_once(entry, start, end)
            except (TransientError, OSError) as exc:
                failures += 1
                if failures < _TRIES:
                    continue
                if isinstance(exc, FleetError):
                    raise
                raise _cut(entry, str(exc)) from exc
            if (start, end) == (0, entry.size) and hashlib.sha256(data).hexdigest() != entry.sha256:
                raise _cut(entry, "its content is not what the listing says")
            return data

    def _read_once(self, entry: Entry, start: int, end: int) -> bytes:
        """One request. A hub that ignores ranges sends the file from its beginning; it is read up to ``end``."""
        try:
            stream = self._from.open(entry, start, end)
        except RangeRefusedError:
            raise _cut(entry, f"the hub has no bytes from {start} on") from None
        try:
            position = start if stream.offset is None else stream.offset
            if position > start or (position < start and start - position > BYTES_MAX):
                raise _cut(entry, f"the hub sent bytes from {position} on when asked for those from {start}")
            data = bytearray()
            while position + len(data) < end:
                if time.monotonic() > self._deadline:
                    raise _cut(entry, f"config and headers take longer than {self._seconds:g} seconds")
                piece = stream.read(min(_PIECE, end - position - len(data)))
                if not len(piece):
                    raise TransientError("hub.cut", f"{entry.path} ended {end - position - len(data)} bytes early")
                data += piece
            return bytes(data[start - position :])
        finally:
            stream.close()


def _cut(entry: Entry, why: str) -> FleetError:
    return FleetError(
        "model.unreadable",
        f"{entry.path} cannot be read from the hub: {why}",
        "the bytes that its listing describes",
        "Run it again; if it stays so, the hub or a proxy on the way is out of order",
    )
