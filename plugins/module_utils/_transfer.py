# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Resumable, verified transfer of an artifact's files from a source into a store of parts.

The two interfaces are the seam for other engines: a :class:`Source` gives the bytes of an entry from an offset on (a
hub, a mirror, a peer), a :class:`Store` keeps parts by digest until they are complete. :func:`fetch_all` joins them.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

CHUNK = 256 * 1024
"""Bytes asked for in one read: large enough for speed, small enough that many workers stay within a few MiB."""


class TransientError(FleetError):
    """A failure that a later try may not meet. ``retry_after`` is the wait in seconds the other side asked for."""

    def __init__(
        self,
        code: str,
        seen: str,
        expected: str = "",
        remedy: str = "",
        retry_after: float | None = None,
    ) -> None:
        self.retry_after = retry_after
        super().__init__(code, seen, expected, remedy)


class RangeRefusedError(Exception):
    """The source says that the offset lies past the end of what it has (HTTP 416)."""


class Interrupted(Exception):
    """The transfer was asked to stop; parts are kept."""


class Stream(Protocol):
    """Bytes of one entry.

    ``offset`` is where they start according to the source, None when it does not say; ``total`` is the size of the
    whole file according to the source, None when unknown. ``read`` returns at most ``limit`` bytes, as soon as some
    are there, and b"" at the end.
    """

    offset: int | None
    total: int | None
    described: str

    def read(self, limit: int) -> bytes: ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where bytes come from. Raises TransientError, RangeRefusedError, OSError, or FleetError when retrying is vain."""

    def open(self, entry: Entry, offset: int) -> Stream: ...


class Part(Protocol):
    """The growing local copy of one entry; ``size`` bytes are there already."""

    size: int

    def prefix(self, state: hashlib._Hash, stop: Callable[[], bool]) -> None:
        """Feed the bytes that are already there to ``state``."""

    def append(self, data: bytes) -> None: ...

    def restart(self) -> None:
        """Drop everything: the next append writes byte 0."""

    def complete(self) -> None:
        """The part is verified: make it durable."""

    def close(self) -> None: ...


class Store(Protocol):
    """Keeps parts between runs, by digest, so that a part is right for any revision that has the same content."""

    def part(self, entry: Entry) -> Part: ...


@dataclass(frozen=True)
class RetryPolicy:
    """How patient a transfer is.

    ``attempts`` tries in a row may pass without progress, ``bad_contents`` full tries may give wrong bytes. The wait is
    ``first_wait`` seconds after a first failure, as a connection that broke after giving much is worth no more, then
    one second and doubling up to ``longest_wait``. A Retry-After is honoured up to ``longest_wait``.
    """

    attempts: int = 5
    bad_contents: int = 3
    first_wait: float = 0.1
    longest_wait: float = 60.0
    sleep: Callable[[float], None] = time.sleep

    def wait(self, failures: int, retry_after: float | None = None) -> float:
        """Seconds to wait after the ``failures``-th failure in a row (1 is the first)."""
        if retry_after is not None:
            return min(max(retry_after, 0.0), self.longest_wait)
        return self.first_wait if failures <= 1 else min(2.0 ** (failures - 2), self.longest_wait)


@dataclass
class Tally:
    """Bytes received over all workers, wasted ones included."""

    received: int = 0


def fetch_all(
    entries: Sequence[Entry],
    source: Source,
    store: Store,
    workers: int = 4,
    policy: RetryPolicy | None = None,
    tally: Tally | None = None,
) -> int:
    """Bring every entry into the store, verified. Returns the bytes received.

    Entries of equal content are fetched once. The first failure stops all workers and is raised; parts stay in the
    store. KeyboardInterrupt and SystemExit in the calling thread stop the workers too.
    """
    policy, tally = policy or RetryPolicy(), tally or Tally()
    unique = list({entry.sha256: entry for entry in entries}.values())
    # Largest first, so that the last worker does not start on a big file when the others are done.
    unique.sort(key=lambda entry: (-entry.size, entry.path))
    if not unique:
        return 0
    todo: queue.SimpleQueue[Entry] = queue.SimpleQueue()
    for entry in unique:
        todo.put(entry)
    crew = _Crew(todo, source, store, policy, tally)
    crew.run(min(max(workers, 1), len(unique)))
    return tally.received


class _Crew:
    """The worker threads of one fetch_all call."""

    def __init__(
        self,
        todo: queue.SimpleQueue[Entry],
        source: Source,
        store: Store,
        policy: RetryPolicy,
        tally: Tally,
    ) -> None:
        self._todo, self._source, self._store, self._policy, self._tally = (
            todo,
            source,
            store,
            policy,
            tally,
        )
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._failure: BaseException | None = None

    def run(self, workers: int) -> None:
        # Daemon threads: a worker that is blocked in a read must not keep an interrupted module alive.
        threads = [threading.Thread(target=self._work, daemon=True) for _unused in range(workers)]
        for thread in threads:
            thread.start()
        try:
            for thread in threads:
                while thread.is_alive():
                    thread.join(0.5)
        except BaseException:
            self._stop.set()
            deadline = time.monotonic() + 2.0
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
            raise
        if self._failure is not None:
            raise self._failure

    def _work(self) -> None:
        while not self._stop.is_set():
            try:
                entry = self._todo.get_nowait()
            except queue.Empty:
                return
            try:
                _Fetch(
                    entry,
                    self._source,
                    self._store,
                    self._policy,
                    self._count,
                    self._stop,
                ).run()
            except Interrupted:
                return
            except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
                with self._lock:
                    self._failure = self._failure or exc
                self._stop.set()
                return

    def _count(self, received: int) -> None:
        with self._lock:
            self._tally.received += received


class _Fetch:
    """One entry: read, resume, verify, start again, until it is right or there is no point in going on."""

    def __init__(
        self,
        entry: Entry,
        source: Source,
        store: Store,
        policy: RetryPolicy,
        count: Callable[[int], None],
        stop: threading.Event,
    ) -> None:
        self._entry, self._source, self._policy, self._count, self._stop = (
            entry,
            source,
            policy,
            count,
            stop,
        )
        self._part = store.part(entry)
        self._hash = hashlib.sha256()
        self._furthest = 0
        self._failures = 0
        self._bad = 0
        self._inherited = False

    def run(self) -> None:
        try:
            self._resume()
            while True:
                try:
                    if self._part.size < self._entry.size:
                        self._read()
                    if self._verified():
                        self._part.complete()
                        return
                except RangeRefusedError:
                    self._bad_content(f"the server has no byte {self._part.size} of it")
                except TransientError as exc:
                    self._failed(exc, exc.retry_after)
                except FleetError:
                    raise
                except (OSError, http.client.HTTPException) as exc:
                    if isinstance(exc, OSError) and exc.errno in (
                        errno.ENOSPC,
                        errno.EDQUOT,
                    ):
                        raise self._disk_full(exc) from exc
                    self._failed(exc, None)
        finally:
            self._part.close()

    def _resume(self) -> None:
        if self._part.size > self._entry.size:
            self._part.restart()
        self._part.prefix(self._hash, self._stop.is_set)
        self._furthest = self._part.size
        self._inherited = self._part.size > 0
        self._check_stop()

    def _restart(self) -> None:
        self._part.restart()
        self._hash = hashlib.sha256()

    def _check_stop(self) -> None:
        if self._stop.is_set():
            raise Interrupted

    def _read(self) -> None:
        """Append what one connection gives. Returns at the end of the file; raises when the connection gives less."""
        stream = self._source.open(self._entry, self._part.size)
        try:
            if stream.total is not None and stream.total != self._entry.size:
                self._bad_content(f"the server offers {stream.total} bytes ({stream.described})")
                return
            if stream.offset != self._part.size:
                # The range was ignored, or the answer does not say where it starts: only byte 0 is certain.
                asked = self._part.size
                self._restart()
                if stream.offset != 0:
                    if asked == 0:
                        self._bad_content(f"the server's answer starts at byte {stream.offset}")
                    return
            self._copy(stream)
        finally:
            stream.close()

    def _copy(self, stream: Stream) -> None:
        missing = self._entry.size - self._part.size
        while missing > 0:
            data = stream.read(min(CHUNK, missing))
            self._check_stop()
            if not data:
                raise TransientError(
                    "transfer.incomplete",
                    f"the connection ended at byte {self._part.size} of {self._entry.size}",
                )
            self._count(len(data))
            self._part.append(data)
            self._hash.update(data)
            missing -= len(data)
            if self._part.size > self._furthest:
                # Progress is what no earlier try reached; re-reading the same prefix for ever is not progress.
                self._furthest = self._part.size
                self._failures = 0
        if stream.total is None and stream.read(1):
            self._bad_content("the server sends more bytes than that")

    def _verified(self) -> bool:
        if self._part.size != self._entry.size:
            return False
        found = self._hash.hexdigest()
        if found == self._entry.sha256:
            return True
        self._bad_content(f"its content has SHA-256 {found}")
        return False

    def _bad_content(self, what: str) -> None:
        self._restart()
        self._furthest = 0
        if self._inherited:
            # Not this run's bytes alone: an earlier run may have left a damaged part. That is no verdict on the server.
            self._inherited = False
            return
        self._bad += 1
        if self._bad < self._policy.bad_contents and self._entry.size > 0:
            return
        raise FleetError(
            "transfer.wrong_content",
            f"{self._entry.path}: {what}, in {self._bad} tries",
            f"{self._entry.size} bytes with SHA-256 {self._entry.sha256}, as the hub's own listing says",
            "A cache or proxy between this host and the hub may be damaged, or the repository is being changed; "
            "nothing was published, try again later or through another endpoint",
        )

    def _failed(self, exc: Exception, retry_after: float | None) -> None:
        self._failures += 1
        if self._failures >= self._policy.attempts:
            raise FleetError(
                "transfer.no_progress",
                f"{self._entry.path}: {describe(exc)}, {self._failures} tries in a row without progress at byte "
                f"{self._furthest} of {self._entry.size}",
                "some bytes before the timeout in each try",
                "Run it again: what was received is kept and resumed. Check the network, or raise timeout",
            ) from exc
        self._sleep(self._policy.wait(self._failures, retry_after))
        self._check_stop()

    def _sleep(self, seconds: float) -> None:
        if self._policy.sleep is time.sleep:
            self._stop.wait(seconds)
        else:
            self._policy.sleep(seconds)

    def _disk_full(self, exc: OSError) -> FleetError:
        return FleetError(
            "disk.full",
            f"{self._entry.path}: the disk filled up at byte {self._part.size} of {self._entry.size} ({exc.strerror})",
            "room for the whole artifact, which was there when the run began",
            "Free some space and run it again: what was received is kept and resumed",
        )


def describe(exc: BaseException) -> str:
    """A failure of the network in one clause, without its class hierarchy."""
    if isinstance(exc, FleetError):
        return exc.seen.rstrip(".")
    if isinstance(exc, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
        return "no byte arrived before the timeout"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
