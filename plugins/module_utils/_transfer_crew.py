# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The connections of one transfer: who fetches which range of which file, what is hashed, what is tried again.

Locks: the crew's condition guards what is to be done and by whom, a job's own lock its part and its hash. The second is
only ever taken without the first, or inside it, never the other way round.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import (
    CHUNK,
    Adaptive,
    Bucket,
    Interrupted,
    Observer,
    OverloadError,
    RangeRefusedError,
    Silence,
    TransientError,
    describe,
)

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._progress import Monitor
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import (
        Limits,
        Part,
        RetryPolicy,
        Source,
        Store,
        Stream,
    )

WHOLE = 8 * 1024 * 1024
"""Files up to this size are asked for as a whole: hubs answer ranges of small ones in odd ways."""

PIECE_MIN = 4 * 1024 * 1024
PIECE_MAX = 32 * 1024 * 1024
"""A range is so large that the round trip before it does not count, and so small that the last ones end together."""

NOTE = 16 * 1024 * 1024
NOTE_SECONDS = 0.25
"""What a connection may lose when the process is killed: so many bytes, or what came in so long."""

SLOW_SECONDS = 2.0
"""A range that would take longer than this is shared with a connection that has nothing else to do."""

SILENT_SECONDS = 15.0
"""A range of which nothing came for so long is handed to a connection that has nothing else to do."""

_STOP_SECONDS = 2.0
_WAIT = 0.25


class _Stale(Exception):
    """What this connection brings is not wanted any more."""


class _Claim:
    """One connection's range of one job: ``[pos, end)`` is still to come."""

    def __init__(self, job: _Job, start: int, end: int, now: float) -> None:
        self.job, self.start, self.pos, self.end = job, start, start, end
        self.noted, self.noted_at = start, now
        self.generation = job.generation
        self.began = self.heard = now
        self.hashing = False


class _Job:
    """One entry on its way."""

    def __init__(self, entry: Entry) -> None:
        self.entry = entry
        self.lock = threading.Lock()
        self.part: Part | None = None
        self.ranged = True
        self.todo = Ranges()
        self.claims: list[_Claim] = []
        self.complete = False
        self.generation = 0
        self.retry_at = self.failed_at = 0.0
        self.failures = self.bad = self.furthest = 0
        self.inherited = False
        self.done = Ranges()
        self.hashed = 0
        self.digest = hashlib.sha256()
        self.hasher: object | None = None

    def reset(self) -> None:
        """Everything anew. Both locks are held."""
        self.generation += 1
        self.done, self.hashed, self.digest, self.hasher = Ranges(), 0, hashlib.sha256(), None
        self.todo = Ranges([(0, self.entry.size)])
        if self.part is not None:
            self.part.restart()


@contextlib.contextmanager
def _disk(job: _Job) -> Iterator[None]:
    """What fails in here is the disk and not the network: to try again is vain. A full disk has its own words."""
    try:
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _broken(job, exc.strerror or type(exc).__name__) from exc


def _broken(job: _Job, said: str) -> FleetError:
    return FleetError(
        "disk.failed",
        f"{job.entry.path}: the file system failed ({said})",
        "a file system that gives back what was written to it",
        "See the kernel's log, mend the file system or choose another one, then run it again",
    )


class Crew:
    """The connections of one fetch_all call."""

    observer: Observer = Silence()

    def __init__(
        self,
        entries: Sequence[Entry],
        source: Source,
        store: Store,
        limits: Limits,
        policy: RetryPolicy,
        monitor: Monitor,
    ) -> None:
        self._source, self._store, self._policy, self._monitor = source, store, policy, monitor
        self._adaptive = Adaptive(limits.connections, source.connections)
        self._bucket = Bucket(limits.bandwidth)
        jobs = [_Job(entry) for entry in entries]
        if source.piece is None:
            # Largest first, so that the last connection does not start on a big file when the others are done.
            jobs.sort(key=lambda job: (-job.entry.size, job.entry.path))
        self._fresh, self._active = deque(jobs), list[_Job]()
        self._left, self._bytes_left = len(jobs), sum(job.entry.size for job in jobs)
        self._cond, self._count = threading.Condition(), threading.Lock()
        self._stop = threading.Event()
        self._failure: BaseException | None = None
        self._quiet_until = 0.0
        self._idle = self._moved = self._received = 0
        monitor.begin("fetching", self._bytes_left)

    # --- the calling thread ---

    def run(self) -> int:
        """Until everything is there; returns the bytes received. Raises the first failure."""
        # Daemon threads: one that is blocked in a read must not keep an interrupted module alive.
        threads: list[threading.Thread] = []
        try:
            before, used = time.monotonic(), time.process_time()
            while True:
                wanted = min(self._adaptive.allowed, max(self._left, self._bytes_left // PIECE_MIN + 1))
                while len(threads) < wanted and not self._over():
                    thread = threading.Thread(target=self._work, args=(len(threads),), daemon=True)
                    thread.start()
                    threads.append(thread)  # after it: a signal may come between the two
                with self._cond:
                    self._cond.wait_for(self._over, Adaptive.TICK)
                    idle = self._idle
                if self._over():
                    break
                now = time.monotonic()
                if now - before >= Adaptive.TICK:
                    busy = len(threads) - idle >= self._adaptive.allowed
                    spent = time.process_time() - used
                    load = spent / (now - before) / min(self._adaptive.allowed, os.cpu_count() or 1)
                    self._adaptive.tick(self._moved, busy, now - before, load)
                    self._monitor.use(len(threads) - idle)
                    before, used = now, used + spent
        except BaseException as exc:
            self._halt(exc)
            raise
        finally:
            self._end(threads)
        if self._failure is not None:
            raise self._failure
        return self._received

    def _over(self) -> bool:
        return self._left == 0 or self._failure is not None

    def _halt(self, exc: BaseException) -> None:
        with self._cond:
            self._failure = self._failure or exc
            self._stop.set()
            self._cond.notify_all()

    def _end(self, threads: Sequence[threading.Thread]) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        self._monitor.use(0)
        with self._cond:
            for job in self._active:
                for claim in job.claims:
                    self._note(claim)
                # A thread that still sits in a read must not find another file under its descriptor.
                if not job.claims and job.part is not None:
                    job.part.close()

    # --- what to do next ---

    def _work(self, number: int) -> None:
        last: _Job | None = None
        try:
            while True:
                claim = self._next(number, last)
                if claim is None:
                    return
                last = claim.job
                self._serve(claim)
        except Interrupted:
            return
        except BaseException as exc:  # noqa: BLE001 - raised again in the caller's thread
            self._halt(exc)

    def _next(self, number: int, last: _Job | None) -> _Claim | None:
        with self._cond:
            while True:
                if self._stop.is_set():
                    raise Interrupted
                if self._left == 0:
                    return None
                now = time.monotonic()
                if number < self._adaptive.allowed and now >= self._quiet_until:
                    claim = self._choose(last, now) or self._share(now)
                    if claim is not None:
                        claim.job.claims.append(claim)
                        return claim
                self._idle += 1
                try:
                    self._cond.wait(_WAIT)
                finally:
                    self._idle -= 1

    def _choose(self, last: _Job | None, now: float) -> _Claim | None:
        ready = [job for job in self._active if job.todo and job.retry_at <= now and (job.ranged or not job.claims)]
        if self._source.piece is not None:
            # Whoever takes from us, and gives to us, goes through the files in the same order.
            if ready:
                return self._cut(ready[0], now)
        elif last in ready:
            return self._cut(last, now)
        if self._fresh:
            return _Claim(self._fresh.popleft(), 0, 0, now)
        return self._cut(max(ready, key=lambda job: job.todo.size), now) if ready else None

    def _cut(self, job: _Job, now: float) -> _Claim:
        start, end = next(iter(job.todo))
        piece = self._source.piece
        if not job.ranged:
            end = job.entry.size
        elif piece is not None:
            end = min(end, (start // piece + 1) * piece)
        elif job.entry.size > WHOLE:
            fair = self._bytes_left // (2 * self._adaptive.allowed)
            end = min(end, start + min(max(fair, PIECE_MIN), PIECE_MAX))
        job.todo.remove(start, end)
        return _Claim(job, start, end, now)

    def _share(self, now: float) -> _Claim | None:
        """Help where somebody has more before it than it can fetch soon, or hears nothing."""
        if self._source.piece is not None:
            return None
        best, gain = None, SLOW_SECONDS
        for job in self._active:
            for claim in job.claims if job.ranged else ():
                left = claim.end - claim.pos if claim.generation == job.generation else 0
                if left and now - claim.heard >= SILENT_SECONDS:
                    with job.lock:
                        if claim.hashing:
                            continue
                        end, claim.end = claim.end, claim.pos
                        if job.hasher is claim:
                            job.hasher = None
                    return _Claim(job, claim.pos, end, now)
                rate = (claim.pos - claim.start) / (now - claim.began) if now > claim.began else 0.0
                if left >= 2 * PIECE_MIN and rate > 0 and left / rate > gain:
                    best, gain = claim, left / rate
        if best is None:
            return None
        middle, end = best.pos + (best.end - best.pos + 1) // 2, best.end
        best.end = middle
        return _Claim(best.job, middle, end, now)

    # --- doing it ---

    def _serve(self, claim: _Claim) -> None:
        try:
            self._guard(claim, self._bring)
            # Whatever became of it: others may have left the rest of the file to this connection.
            self._guard(claim, lambda one: self._follow(one.job))
        finally:
            self._release(claim)

    def _guard(self, claim: _Claim, work: Callable[[_Claim], None]) -> None:
        """Do it; what goes wrong is tried again, or raised where that is vain."""
        job = claim.job
        try:
            work(claim)
        except _Stale:
            pass
        except RangeRefusedError:
            self._wrong(job, claim.generation, f"the server has no byte {claim.pos} of it")
        except TransientError as exc:
            self._failed(claim, exc, exc.retry_after)
        except FleetError:
            raise
        except OSError as exc:
            if exc.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._disk_full(job, exc) from exc
            if job.part is None:  # not the network: the part cannot be opened
                raise
            self._failed(claim, exc, None)

    def _bring(self, claim: _Claim) -> None:
        if claim.job.part is None:
            self._open(claim.job)
            claim.generation = claim.job.generation
        elif claim.pos < claim.end:
            self._receive(claim)

    def _open(self, job: _Job) -> None:
        entry = job.entry
        part = self._store.part(entry)
        done = Ranges(part.done)
        if done.missing(0, entry.size).size != entry.size - done.size:  # bytes beyond the end
            part.restart()
            done = Ranges()
        with self._cond, job.lock:
            job.part, job.done = part, done
            job.todo = done.missing(0, entry.size)
            job.furthest, job.inherited = done.size, bool(done)
            self.observer.begun(entry, part.fileno(), list(done))
            self._active.append(job)
            self._cond.notify_all()
        with self._count:
            self._bytes_left -= done.size
        self._monitor.add(done.size)

    def _release(self, claim: _Claim) -> None:
        job = claim.job
        with self._cond:
            self._note(claim)
            job.claims.remove(claim)
            if claim.generation == job.generation and not job.complete:
                job.todo.add(claim.pos, claim.end)
            self._cond.notify_all()
        with self._count:
            self._moved += Adaptive.REQUEST

    @staticmethod
    def _note(claim: _Claim) -> None:
        job = claim.job
        if claim.pos > claim.noted and not job.complete and claim.generation == job.generation and job.part is not None:
            job.part.note(claim.noted, claim.pos)
            claim.noted, claim.noted_at = claim.pos, claim.heard

    def _receive(self, claim: _Claim) -> None:
        job = claim.job
        stream = self._source.open(job.entry, claim.pos, claim.end)
        try:
            if self._fits(stream, claim):
                self._copy(stream, claim)
        finally:
            stream.close()
            with job.lock:
                if job.hasher is claim:
                    job.hasher = None

    def _fits(self, stream: Stream, claim: _Claim) -> bool:
        """Whether the stream is of use for the claim, which may become another one for it."""
        job, size = claim.job, claim.job.entry.size
        if stream.total is not None and stream.total != size:
            self._wrong(job, claim.generation, f"the server offers {stream.total} bytes ({stream.described})")
            return False
        if stream.offset == claim.pos and not (stream.whole and claim.end < size):
            return True
        # The range was ignored, or the answer does not say where it starts: from now on one stream, from byte 0.
        with self._cond:
            if claim.generation != job.generation or job.complete or claim.pos >= claim.end:
                raise _Stale
            job.ranged = False
            if stream.offset == claim.pos:
                # It brings all that lies behind; what lies before is others' still.
                for other in job.claims:
                    if other is not claim:
                        other.end = other.pos if other.pos > claim.pos else min(other.end, claim.pos)
                job.todo.remove(claim.pos, size)
                claim.end = size
                return True
            asked = claim.pos
            self._drop(job)
            if stream.offset == 0:
                claim.generation, claim.start, claim.pos, claim.noted = job.generation, 0, 0, 0
                claim.end = size
                job.todo = Ranges()
                return True
        if asked == 0:
            self._wrong(job, job.generation, f"the server's answer starts at byte {stream.offset}")
        return False

    def _copy(self, stream: Stream, claim: _Claim) -> None:
        job, size = claim.job, claim.job.entry.size
        while claim.pos < claim.end:
            data = stream.read(min(self._bucket.chunk_of(self._adaptive.allowed), claim.end - claim.pos))
            if self._stop.is_set():
                raise Interrupted
            if not data:
                raise TransientError("transfer.incomplete", f"the connection ended at byte {claim.pos} of {size}")
            self._write(claim, data)
            claim.heard = time.monotonic()
            if claim.pos - claim.noted >= NOTE or claim.heard - claim.noted_at >= NOTE_SECONDS:
                self._note(claim)
            if wait := self._bucket.draw(len(data)):
                self._stop.wait(wait)
        if stream.total is None and claim.end == size and stream.read(1):
            self._wrong(job, claim.generation, "the server sends more bytes than that")

    def _write(self, claim: _Claim, data: bytes | memoryview) -> None:
        job, start = claim.job, claim.pos
        with job.lock:
            data = data[: max(0, claim.end - start)]  # the rest may have been handed to somebody else meanwhile
            count = len(data)
            if claim.generation != job.generation or job.part is None or job.complete or not count:
                raise _Stale
            with _disk(job):
                job.part.write(data, start)
            before = job.done.size
            job.done.add(start, start + count)
            fresh = job.done.size - before
            if job.done.size > job.furthest:
                # Progress is what no earlier try reached; reading the same prefix for ever is not progress.
                job.furthest, job.failures = job.done.size, 0
            self.observer.written(job.entry, start, start + count)
            inline = job.hashed == start and job.hasher in (None, claim)
            if inline:
                job.hasher, claim.hashing = claim, True
            digest = job.digest
        claim.pos += count
        with self._count:
            self._received += count
            self._moved += count
            self._bytes_left -= fresh
        self._monitor.add(fresh, received=count)
        if inline:
            digest.update(data)
            with job.lock:
                claim.hashing = False
                if claim.generation == job.generation:
                    job.hashed = start + count

    def _follow(self, job: _Job) -> None:
        """Hash what is written behind the last byte that was hashed; the last one to do so verifies the whole."""
        token = object()
        while True:
            with job.lock:
                if job.hasher is not None or job.complete or job.part is None:
                    return
                offset, limit = job.hashed, job.done.reach(job.hashed)
                if offset == limit and offset < job.entry.size:
                    return
                job.hasher, generation, digest, part = token, job.generation, job.digest, job.part
            try:
                while offset < limit:
                    with _disk(job):
                        data = part.read(min(CHUNK // 8, limit - offset), offset)
                    if self._stop.is_set():
                        raise Interrupted
                    if not data:
                        if generation != job.generation:
                            raise _Stale
                        raise _broken(job, "bytes that were written are not there any more")
                    digest.update(data)
                    offset += len(data)
                if offset == job.entry.size:
                    self._verify(job, generation, digest.hexdigest())
                    return
            finally:
                with job.lock:
                    if job.hasher is token:
                        job.hasher, job.hashed = None, offset

    def _verify(self, job: _Job, generation: int, found: str) -> None:
        if found != job.entry.sha256:
            self._wrong(job, generation, f"its content has SHA-256 {found}")
            return
        with self._cond, job.lock:
            part = job.part
            if generation != job.generation or part is None:
                raise _Stale
            # From here on nobody writes to it or drops it.
            job.complete = True
        with _disk(job):
            part.complete()
        self.observer.verified(job.entry)
        with self._cond:
            part.close()
            self._active.remove(job)
            self._left -= 1
            self._cond.notify_all()

    # --- what goes wrong ---

    def _drop(self, job: _Job) -> None:
        """Everything of the job anew. The crew's lock is held."""
        with job.lock:
            lost = job.done.size
            job.reset()
            self.observer.dropped(job.entry)
        with self._count:
            self._bytes_left += lost
        self._monitor.add(-lost)

    def _wrong(self, job: _Job, generation: int, what: str) -> None:
        with self._cond:
            if generation != job.generation or job.complete:
                return
            self._drop(job)
            job.furthest = 0
            # Next time as one stream: the ranges may have been the lie.
            job.ranged = job.ranged and self._source.piece is not None
            if job.inherited:
                # Not this run's bytes alone: an earlier run may have left a damaged part. No verdict on the server.
                job.inherited = False
                return
            job.bad += 1
            if job.bad < self._policy.bad_contents and job.entry.size > 0:
                return
        raise FleetError(
            "transfer.wrong_content",
            f"{job.entry.path}: {what}, in {job.bad} tries",
            f"{job.entry.size} bytes with SHA-256 {job.entry.sha256}, as the hub's own listing says",
            "A cache or proxy between this host and the hub may be damaged, or the repository is being changed; "
            "nothing was published, try again later or through another endpoint",
        )

    def _failed(self, claim: _Claim, exc: Exception, retry_after: float | None) -> None:
        job, now = claim.job, time.monotonic()
        with self._cond:
            if isinstance(exc, OverloadError):
                self._adaptive.back_off()
                self._quiet_until = max(self._quiet_until, now + self._policy.wait(1, retry_after))
            robbed = claim.pos >= claim.end and claim.end > 0
            if robbed or claim.generation != job.generation or claim.began < job.failed_at:
                return  # connections that ran side by side fail together, and that is one failure
            job.failures += 1
            job.failed_at = now
            job.retry_at = now + self._policy.wait(job.failures, retry_after)
            if job.failures < self._policy.attempts:
                return
        raise FleetError(
            "transfer.no_progress",
            f"{job.entry.path}: {describe(exc)}, {job.failures} tries in a row without progress at byte "
            f"{job.furthest} of {job.entry.size}",
            "some bytes before the timeout in each try",
            "Run it again: what was received is kept and resumed. Check the network, or raise timeout or retries",
        ) from exc

    @staticmethod
    def _disk_full(job: _Job, exc: OSError) -> FleetError:
        return FleetError(
            "disk.full",
            f"{job.entry.path}: the disk filled up at byte {job.done.size} of {job.entry.size} ({exc.strerror})",
            "room for the whole artifact, which was there when the run began",
            "Free some space and run it again: what was received is kept and resumed",
        )
