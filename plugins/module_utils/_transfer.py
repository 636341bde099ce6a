# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Resumable, verified transfer of an artifact's files from a source into a store of parts, over many connections.

The interfaces are the seam for other engines: a :class:`Source` gives a range of an entry (from a hub, a mirror, a
peer), a :class:`Store` keeps parts by digest until they are complete, an :class:`Observer` hears what became of them.
:func:`fetch_all` joins them. All files share one pool of connections, so that one large file and a thousand small ones
are both as fast as the link: a file is cut into ranges where there are connections to spare, written in place, and
hashed behind the written prefix.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges

CHUNK, CHUNKS = 1024 * 1024, 8 * 1024 * 1024
"""Bytes asked for in one read, and in all reads together: large ones for speed where few connections are fast, small
ones where many are slow, so that they stay within a few MiB."""

CONNECTIONS = 32
"""How many connections a transfer may grow to when nobody says otherwise."""


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


class OverloadError(TransientError):
    """The other side asks for less: HTTP 429 or 503."""


class RangeRefusedError(Exception):
    """The source says that the offset lies past the end of what it has (HTTP 416)."""


class Interrupted(Exception):
    """The transfer was asked to stop; parts are kept."""


class Stream(Protocol):
    """Bytes of one entry.

    ``offset`` is where they start according to the source, None when it does not say; ``total`` is the size of the
    whole file according to the source, None when unknown; ``whole`` says that the stream goes on to the end of the
    file, whatever was asked. ``read`` returns at most ``limit`` bytes, as soon as some are there, and none at the end;
    they are good until the next ``read``.
    """

    offset: int | None
    total: int | None
    whole: bool
    described: str

    def read(self, limit: int) -> bytes | memoryview: ...

    def close(self) -> None: ...


class Source(Protocol):
    """Where bytes come from.

    ``piece`` makes every range asked for one aligned piece of that many bytes, the last one shorter, in the order of
    the entries; it is at least what a Store keeps a journal for (1 MiB). None leaves the choice to the transfer.
    ``connections`` fixes their number; None lets it adapt. ``open`` gives ``[start, end)`` of the entry and may wait
    until they exist; it is called from several threads, and raises TransientError,
    RangeRefusedError, OSError, or FleetError when retrying is vain.
    """

    piece: int | None
    connections: int | None

    def open(self, entry: Entry, start: int, end: int) -> Stream: ...


class Part(Protocol):
    """The growing local copy of one entry; ``done`` is what an earlier run left of it."""

    done: Ranges

    def fileno(self) -> int: ...

    def write(self, data: bytes | memoryview, offset: int) -> None: ...

    def read(self, limit: int, offset: int) -> bytes: ...

    def note(self, start: int, end: int) -> None:
        """These bytes are written: a later run may count on them."""

    def restart(self) -> None:
        """Drop everything."""

    def complete(self) -> None:
        """The part is verified: make it durable."""

    def close(self) -> None: ...


class Store(Protocol):
    """Keeps parts between runs, by digest, so that a part is right for any revision that has the same content."""

    def part(self, entry: Entry) -> Part: ...


class Observer(Protocol):
    """Hears what happens to each entry, in order, from the threads of the transfer, which wait for it meanwhile."""

    def begun(self, entry: Entry, fileno: int, done: Sequence[tuple[int, int]]) -> None:
        """Its part is open for reading at ``fileno``; an earlier run left the ranges ``done``, not verified."""

    def written(self, entry: Entry, start: int, end: int) -> None:
        """These bytes are in the file now."""

    def dropped(self, entry: Entry) -> None:
        """Its content was wrong: all of it starts anew."""

    def verified(self, entry: Entry) -> None:
        """Size and SHA-256 of the whole are right. The descriptor of ``begun`` is closed after this."""


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
        return min(self.first_wait if failures <= 1 else 2.0 ** (failures - 2), self.longest_wait)


@dataclass(frozen=True)
class Limits:
    """What a transfer may take: ``connections`` at most, ``bandwidth`` in bytes per second (0: all there is)."""

    connections: int = CONNECTIONS
    bandwidth: int = 0


class Silence:
    """The observer of a transfer that nobody watches."""

    def begun(self, entry: Entry, fileno: int, done: Sequence[tuple[int, int]]) -> None:
        """Nothing."""

    def written(self, entry: Entry, start: int, end: int) -> None:
        """Nothing."""

    def dropped(self, entry: Entry) -> None:
        """Nothing."""

    def verified(self, entry: Entry) -> None:
        """Nothing."""


class Bucket:
    """A rate in bytes per second, shared by all who draw from it."""

    def __init__(self, rate: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.rate, self._clock = rate, clock
        self._free_at, self._lock = 0.0, threading.Lock()

    @property
    def chunk(self) -> int:
        """What one of many connections moves at a time."""
        return self.chunk_of(CHUNKS)

    def chunk_of(self, connections: int) -> int:
        """What each of so many connections reads at a time; less where a low rate would become a series of bursts."""
        most = max(CHUNK // 8, min(CHUNK, CHUNKS // connections))
        return min(most, max(4096, self.rate // 10)) if self.rate else most

    def draw(self, count: int) -> float:
        """Take ``count`` bytes; returns the seconds to wait before the next ones."""
        if not self.rate:
            return 0.0
        with self._lock:
            now = self._clock()
            self._free_at = max(self._free_at, now) + count / self.rate
            return self._free_at - now


class Adaptive:
    """How many connections to use: few at first, twice as many while that helps, fewer when told to slow down.

    A level is measured for one tick after one tick of settling; it is kept when it moved at least a tenth more than
    the level before. After ``HOLD`` seconds one more step is tried, as the link may have become free.
    """

    START = 4
    GAIN = 1.1
    HOLD = 8.0
    TICK = 0.25
    DEAF = 1.0
    FULL = 0.6
    REQUEST = 64 * 1024
    """What a finished request counts for, beside its bytes: small files are bound by round trips."""

    def __init__(self, most: int, fixed: int | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._most, self._fixed = clock, max(1, most), fixed
        self.allowed = min(self._most, self.START) if fixed is None else max(1, fixed)
        self._before, self._best = self.allowed, 0.0
        self._settling, self._held_until = True, 0.0
        self._moved = 0
        self._slowed = float("-inf")

    def tick(self, moved: int, busy: bool, seconds: float, load: float = 0.0) -> None:
        """``moved`` is a running total of bytes and requests; ``busy`` says that there was work for all, ``load`` which
        share of the processors' time that so many threads can have at most was used."""
        rate, self._moved = (moved - self._moved) / seconds, moved
        if self._fixed is not None:
            return
        if not busy or load >= self.FULL:  # the processor is what is slow then, and not the link
            self._settling = True
            return
        if self._settling:
            self._settling = False
            return
        if self._clock() < self._held_until:
            self._best = max(self._best * 0.9, rate)
            return
        if rate >= self._best * self.GAIN or self.allowed <= self._before:
            self._step(rate)
            return
        self.allowed, self._settling = self._before, True
        self._held_until = self._clock() + self.HOLD

    def _step(self, rate: float) -> None:
        self._before, self._best = self.allowed, rate
        self.allowed = min(self._most, self.allowed * 2)
        self._settling = True
        if self.allowed == self._before:
            self._held_until = self._clock() + self.HOLD

    def back_off(self) -> None:
        """The other side is overloaded; what it says to many connections at once counts as one word."""
        if self._clock() < self._slowed + self.DEAF:
            return
        self._slowed = self._clock()
        self._before = self.allowed = max(1, self.allowed // 2)
        self._settling, self._best = True, 0.0
        self._held_until = self._clock() + self.HOLD


def fetch_all(
    entries: Sequence[Entry],
    source: Source,
    store: Store,
    limits: Limits | None = None,
    policy: RetryPolicy | None = None,
    monitor: Monitor | None = None,
    observer: Observer | None = None,
) -> int:
    """Bring every entry into the store, verified. Returns the bytes received.

    Entries of equal content are fetched once. The first failure stops all connections and is raised; parts stay in the
    store. KeyboardInterrupt and SystemExit in the calling thread stop them too.
    """
    # A transfer that has nothing to do is the usual case; it shall not load the rest.
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer_crew import Crew

    unique = list({entry.sha256: entry for entry in entries}.values())
    if not unique:
        return 0
    crew = Crew(unique, source, store, limits or Limits(), policy or RetryPolicy(), monitor or Monitor())
    crew.observer = observer or Silence()
    return crew.run()


def describe(exc: BaseException) -> str:
    """A failure of the network in one clause, without its class hierarchy."""
    if isinstance(exc, FleetError):
        return exc.seen.rstrip(".")
    if isinstance(exc, (TimeoutError, socket.timeout)):  # two classes before Python 3.10
        return "no byte arrived before the timeout"
    if isinstance(exc, OSError) and exc.strerror:
        return exc.strerror
    return f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
