# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What this host can give to the others: contents by SHA-256, piece by piece, as the transfer writes them.

A piece is given only when its bytes are in the file and a digest vouches for them: that of the chain's authority for
bytes that came from a peer, our own for what came from the hub and for a whole file that was verified.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils._ranges import Ranges
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import piece_count, piece_range

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

HASHED_AT_ONCE = 64 * 1024 * 1024
"""Bytes that are hashed to answer one request for digests; who wants more asks again."""

_READ = 1024 * 1024

Opener = Callable[[], int]
"""Opens a complete file for reading. Raises OSError when it is not there any more."""

Judge = Callable[["Entry", int], "bytes | None"]
"""The digest that a piece has to have, or None where nobody knows better than we do. Raises LookupError where somebody
does and does not say."""

_LATER = 1.0
"""Seconds until a question that nobody answered is asked again."""


@dataclass(frozen=True)
class Ready:
    """A piece that can be given. The caller closes ``handle``."""

    handle: int
    digest: bytes
    generation: int


@dataclass(frozen=True)
class Absent:
    """A piece that cannot be given: now (``waiting``), or not before the content changes."""

    waiting: bool
    generation: int


@dataclass
class _Content:
    entry: Entry
    handle: int | None = None
    opener: Opener | None = None
    written: Ranges = field(default_factory=Ranges)
    digests: dict[int, bytes] = field(default_factory=dict)
    own: Ranges = field(default_factory=Ranges)
    """Bytes that came from the hub: nobody else can vouch for them."""
    bad: set[int] = field(default_factory=set)
    generation: int = 0
    verified: bool = False
    gone: bool = False
    hashing: set[int] = field(default_factory=set)
    later: dict[int, float] = field(default_factory=dict)
    """Pieces that nobody could judge, and when to ask again."""

    def forget(self) -> None:
        self.written, self.digests, self.own, self.bad = Ranges(), {}, Ranges(), set()
        self.later.clear()
        self.verified = False


class Shelf:
    """The contents of one run on this host; the transfer's Observer. Safe to use from several threads."""

    def __init__(self, piece: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.piece = piece
        self.judge: Judge = lambda _entry, _index: None
        self._clock = clock
        self._cond = threading.Condition()
        self._contents: dict[str, _Content] = {}
        self._progress = 0
        self._closed = False

    # --- what is here, told by the run ---

    def expect(self, entries: Iterable[Entry]) -> None:
        """These contents belong to the run and will come; nothing else is ever given."""
        with self._cond:
            for entry in entries:
                self._contents.setdefault(entry.sha256, _Content(entry))

    def offer(self, entry: Entry, opener: Opener) -> None:
        """The complete, verified file of this content can be opened; a part of it is not needed any more."""
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is None or content.entry.size != entry.size:
                return
            content.opener, content.verified, content.gone = opener, True, False
            self._release(content)
            self._advance()

    def abandon(self, entries: Iterable[Entry]) -> None:
        """What is not complete of these will not be: who waits for it shall ask somebody else."""
        with self._cond:
            for entry in entries:
                content = self._contents.get(entry.sha256)
                if content is not None and not content.verified:
                    content.gone = True
            self._advance()

    def owned(self, entry: Entry, start: int, end: int) -> None:
        """These bytes are on their way from the hub itself."""
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is not None:
                content.own.add(start, end)

    def checked(self, entry: Entry, index: int, digest: bytes) -> None:
        """The bytes of this piece, on their way into the file, were found to have the right digest."""
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is not None:
                content.digests[index] = digest
                content.bad.discard(index)

    def close(self) -> None:
        with self._cond:
            self._closed = True
            for content in self._contents.values():
                self._release(content)
                content.opener, content.gone = None, True
            self._advance()

    # --- the transfer's Observer ---

    def begun(self, entry: Entry, fileno: int, done: Sequence[tuple[int, int]]) -> None:
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is None or self._closed:
                return
            self._release(content)
            content.forget()
            content.opener, content.gone = None, False
            try:
                content.handle = os.dup(fileno)
            except OSError:  # too many open files: this content is given once it is published
                content.gone = True
            content.written = Ranges(done)
            self._advance()

    def written(self, entry: Entry, start: int, end: int) -> None:
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is None:
                return
            content.written.add(start, end)
            self._progress += end - start
            # Only the end of a piece is news for those who wait.
            first, last = start // self.piece, (end - 1) // self.piece
            if any(self._whole(content, index) for index in range(first, last + 1)):
                self._cond.notify_all()

    def dropped(self, entry: Entry) -> None:
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is not None:
                content.forget()
                content.generation += 1
                self._advance()

    def verified(self, entry: Entry) -> None:
        with self._cond:
            content = self._contents.get(entry.sha256)
            if content is not None:
                content.written.add(0, entry.size)
                content.verified = True
                content.bad.clear()
                self._advance()

    # --- what the server asks ---

    @property
    def progress(self) -> int:
        """Grows as long as this host gets anywhere."""
        with self._cond:
            return self._progress

    def entry(self, sha256: str) -> Entry | None:
        with self._cond:
            content = self._contents.get(sha256)
            return content.entry if content is not None else None

    def generation(self, sha256: str) -> tuple[int, bool]:
        """How often the content was dropped, and whether it is verified."""
        with self._cond:
            content = self._contents.get(sha256)
            return (content.generation, content.verified) if content is not None else (0, False)

    def take(self, sha256: str, index: int, wait: float) -> Ready | Absent:
        """A piece of an expected content, waiting up to ``wait`` seconds for it."""
        deadline = self._clock() + wait
        with self._cond:
            content = self._contents[sha256]
            while True:
                generation = content.generation
                if content.gone or index in content.bad:
                    return Absent(False, generation)
                digest = content.digests.get(index) if self._whole(content, index) else None
                if digest is not None:
                    handle = self._open(content)
                    return Absent(False, generation) if handle is None else Ready(handle, digest, generation)
                if self._whole(content, index) and self._may_vouch(content, index):
                    self._vouch(content, index)
                    continue
                left = deadline - self._clock()
                if left <= 0 or self._closed:
                    return Absent(not self._closed, generation)
                self._cond.wait(min(left, _LATER))

    def digests(self, sha256: str, first: int, most: int) -> list[bytes]:
        """The digests of the pieces from ``first`` on that this host vouches for, up to the first that it does not."""
        with self._cond:
            content = self._contents[sha256]
            count, budget, found = piece_count(content.entry.size, self.piece), HASHED_AT_ONCE, list[bytes]()
            for index in range(first, min(count, first + most)):
                if content.gone or not self._whole(content, index):
                    break
                if index not in content.digests:
                    if budget <= 0 or not self._may_vouch(content, index):
                        break
                    budget -= self.piece
                    self._vouch(content, index)
                digest = content.digests.get(index)
                if digest is None:
                    break
                found.append(digest)
            return found

    # --- inside, under the lock ---

    def _advance(self) -> None:
        self._progress += 1
        self._cond.notify_all()

    def _whole(self, content: _Content, index: int) -> bool:
        return content.verified or content.written.covers(*piece_range(index, content.entry.size, self.piece))

    @staticmethod
    def _release(content: _Content) -> None:
        if content.handle is not None:
            os.close(content.handle)
            content.handle = None

    def _open(self, content: _Content) -> int | None:
        """A descriptor of its own, so that nothing is closed under somebody who reads."""
        try:
            if content.opener is None:
                return os.dup(content.handle) if content.handle is not None else None
            handle = content.opener()
            if os.fstat(handle).st_size == content.entry.size:
                return handle
            os.close(handle)
        except OSError:
            pass
        return None

    def _may_vouch(self, content: _Content, index: int) -> bool:
        return index not in content.hashing and content.later.get(index, 0.0) <= self._clock()

    def _vouch(self, content: _Content, index: int) -> None:
        """Find the digest of a whole piece that nobody checked on its way, or that it is bad. Gives up the lock
        while it reads and asks."""
        entry, generation = content.entry, content.generation
        start, end = piece_range(index, entry.size, self.piece)
        handle = self._open(content)
        if handle is None:
            content.bad.add(index)
            return
        alone, undecided = content.verified or content.own.covers(start, end), False
        content.hashing.add(index)
        self._cond.release()
        found, wanted = None, None
        try:
            try:
                found = _hash(handle, start, end)
                if piece_count(entry.size, self.piece) == 1:
                    wanted = bytes.fromhex(entry.sha256)
                elif found is not None and not alone:
                    wanted = self.judge(entry, index)
            except LookupError:
                undecided = True
            finally:
                os.close(handle)
        finally:
            self._cond.acquire()
            content.hashing.discard(index)
            self._cond.notify_all()
        if content.generation != generation:
            return
        if undecided:
            content.later[index] = self._clock() + _LATER
        elif found is None or (wanted is not None and wanted != found):
            content.bad.add(index)
        else:
            content.digests[index] = found


def _hash(handle: int, start: int, end: int) -> bytes | None:
    """The SHA-256 of ``[start, end)``; None where the bytes are not there."""
    state = hashlib.sha256()
    with contextlib.suppress(OSError):
        while start < end:
            data = os.pread(handle, min(_READ, end - start), start)
            if not data:
                return None
            state.update(data)
            start += len(data)
        return state.digest()
    return None
