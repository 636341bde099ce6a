# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The files of one artifact from the other hosts of the run, and from the hub where nobody else can give them.

A piece comes from the host before this one in the chain, else from the one before that, and so on. It reaches the
transfer only after its SHA-256 was compared with that of the chain's authority, the first host that is alive and has
the piece. The first host of all takes everything from the hub.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_client import (
    Authorities,
    PeerClient,
    PeerFailure,
    Reply,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import piece_count, piece_range
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience, Peers
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import Question
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import TransientError, describe

if TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
    from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Shelf
    from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import Source, Stream

CONNECTIONS = 4
"""Pieces on their way at a time: so many that the link never waits for a question, so few that they come in order."""

_GRACE = 1.0
"""Seconds for an authority to have the digest of a piece that somebody behind it has already."""
_BEHIND = 10.0
"""Seconds for which one that had none is not waited for again."""
_POLL = 0.05
_CONFESS = 5.0
"""Seconds for a host whose digests did not add up to notice so itself."""
_DROPS_MAX = 2
"""Times that the bytes of peers may turn out wrong as a whole before the hub is asked for all of a file."""


@dataclass
class Common:
    """What all artifacts of a run share on this host."""

    name: str
    shelf: Shelf
    peers: Peers
    client: PeerClient
    authorities: Authorities
    patience: Patience
    tell: Callable[[str], None]
    stop: threading.Event
    hub_bytes: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)
    clock: Callable[[], float] = time.monotonic

    def ask(self, name: str, question: Question) -> Reply:
        """Ask a peer, and remember that it is there. Raises PeerFailure."""
        reply = self.client.ask(name, question)
        self.peers.answered(name, reply.facts.progress)
        return reply


@dataclass
class _Wait:
    """For one piece: since when, and for whom in vain although it says that it gets on."""

    since: float
    late: str = ""


class SwarmSource:
    """The transfer's Source. ``order`` is whom to ask, the nearest in the chain first; ``direct`` is the hub's own.
    ``connections`` are for the first host of all, which asks the hub alone."""

    def __init__(
        self, common: Common, order: Sequence[str], direct: Source, piece: int, connections: int | None = CONNECTIONS
    ) -> None:
        self._common, self._order, self._direct = common, tuple(order), direct
        self._vouchers = tuple(reversed(self._order))
        self.piece: int | None = piece
        self.connections: int | None = CONNECTIONS if self._order else connections
        self._piece = piece
        self._lock = threading.Lock()
        self._seen_drops: dict[str, int] = {}
        self._vouched: dict[str, set[str]] = {}
        self._behind: dict[tuple[str, str], float] = {}
        self._direct_only: set[str] = set()
        self._complained: set[str] = set()

    def open(self, entry: Entry, start: int, end: int) -> Stream:
        self._notice_drops(entry)
        if not self._order or entry.sha256 in self._direct_only or start >= end:
            return self._from_hub(entry, start, end)
        found = self.find(entry, start, end)
        if not isinstance(found, bytearray):
            return found
        return _Pieces(self, entry, start, end, found, self._piece)

    def find(self, entry: Entry, start: int, end: int) -> bytearray | Stream:
        """The piece that begins at ``start``, checked; or, from the hub, all that is wanted."""
        common, began = self._common, self._common.clock()
        wait = _Wait(began)
        while True:
            body = self._from_peers(entry, start // self._piece, wait)
            if body is not None:
                return body
            try:
                stream = self._from_hub(entry, start, end)
            except (FleetError, OSError):
                # A host that has nobody else to ask: what it waits for may be hours behind something else.
                if not wait.late or common.clock() - began >= common.patience.longest:
                    raise
                text = f"{wait.late} gives nothing of {entry.path} yet, and the hub cannot. It is waited for."
                self._complain(text, "promise")
                wait = _Wait(common.clock())
            else:
                if wait.late:
                    common.peers.late(wait.late, wait.since)
                return stream

    # --- the hub ---

    def _from_hub(self, entry: Entry, start: int, end: int) -> Stream:
        """The bytes as the hub gives them, which need not be those that were asked for: the transfer judges that."""
        try:
            stream = self._direct.open(entry, start, end)
        except (FleetError, OSError) as exc:
            raise self._nobody(entry, exc) from exc
        if stream.offset == start and not stream.whole:
            self._common.shelf.owned(entry, start, end)
        else:
            self._common.shelf.owned(entry, 0, entry.size)
        return _Counted(stream, self._common)

    def _nobody(self, entry: Entry, exc: FleetError | OSError) -> Exception:
        """The hub's failure; where peers were there to ask, what became of them too."""
        report = self._common.peers.report()
        why = [f"{name} {' and '.join(said)}" for name, said in report["given_up"].items()]
        why += [f"{name} {said}" for name, said in report["banned"].items()]
        if not self._order or not why:
            return exc
        seen = f"No host of the fleet gives {entry.path} ({'; '.join(why)}), and from the hub: {describe(exc)}"
        expected = "one of the hosts before this one, or the hub, to give the bytes"
        remedy = "See why the other hosts were lost, then run it again: what was received is kept"
        if isinstance(exc, (TransientError, OSError)):
            return TransientError("swarm.nobody_gives", seen, expected, remedy, getattr(exc, "retry_after", None))
        return FleetError("swarm.nobody_gives", seen, expected, remedy)

    # --- peers ---

    def _from_peers(self, entry: Entry, index: int, wait: _Wait) -> bytearray | None:
        """One piece, checked; None where the hub has to be asked."""
        common, skip = self._common, set[str]()
        start, end = piece_range(index, entry.size, self._piece)
        question = Question(_swarm_wire.PIECE, entry.sha256, start, end, common.patience.poll)
        while True:
            self._check_stop()
            choice = common.peers.choose(self._order, skip)
            name = choice.peer
            if name is None and choice.wait > 0:
                common.stop.wait(choice.wait)
            elif name is None:
                self._complain(f"{entry.path}: no other host gives it now. It comes from the hub.", "nobody")
                return None
            else:
                body = self._try(name, entry, index, question, skip, wait)
                if body is not None:
                    return body
                if self._out_of_patience(name, wait):
                    return None

    def _try(
        self, name: str, entry: Entry, index: int, question: Question, skip: set[str], wait: _Wait
    ) -> bytearray | None:
        common = self._common
        try:
            reply = common.ask(name, question)
        except PeerFailure as exc:
            common.peers.failed(name, str(exc))
            return None
        if reply.status == _swarm_wire.WAITING:
            stalled = common.peers.stalled(name) >= common.patience.stall
            late = common.clock() - wait.since >= common.peers.due(name, len(self._order))
            if not stalled and not late:
                return None
            body = self._from_another(name, entry, index, question, skip)
            if body is not None and stalled:
                common.peers.slow(name, "got nowhere while others had more")
            elif body is not None:
                common.peers.late(name, wait.since)
            return body
        body = self._accept(name, entry, index, question, reply)
        if body is None:
            skip.add(name)
        return body

    def _from_another(
        self, slow: str, entry: Entry, index: int, question: Question, skip: set[str]
    ) -> bytearray | None:
        """The piece from anybody who has it now, while the one whose turn it is gets nowhere."""
        at_once = Question(question.kind, question.sha256, question.start, question.end)
        for name in self._order:
            if name == slow or name in skip or not self._common.peers.usable(name):
                continue
            try:
                reply = self._common.ask(name, at_once)
            except PeerFailure as exc:
                self._common.peers.failed(name, str(exc))
                continue
            if reply.status == _swarm_wire.OK:
                body = self._accept(name, entry, index, question, reply)
                if body is not None:
                    return body
        return None

    def _out_of_patience(self, name: str, wait: _Wait) -> bool:
        common, place = self._common, len(self._order)
        patience, stalled = common.patience, common.peers.stalled(name)
        if stalled > patience.hub + patience.stagger * place:
            self._complain(f"No other host got anywhere for {stalled:.0f} s. The hub is asked instead.", "stall")
            return True
        waited = common.clock() - wait.since
        if waited < patience.promises * common.peers.due(name, place):
            return False
        wait.late = name
        self._complain(f"{name} gave nothing for {waited:.0f} s. The hub is asked instead.", "late")
        return True

    def _accept(self, name: str, entry: Entry, index: int, question: Question, reply: Reply) -> bytearray | None:
        """The bytes of an answer, if they are the right ones."""
        common = self._common
        if reply.status != _swarm_wire.OK:
            return None
        if len(reply.body) != question.end - question.start:
            common.peers.ban(name, f"gave {len(reply.body)} bytes of {entry.path} where another number was asked for")
            return None
        found = hashlib.sha256(reply.body).digest()
        if found.hex() != reply.facts.digest:
            # It may just have dropped the file, and was writing it anew under our eyes.
            if common.peers.strike(name) > 1:
                common.peers.ban(name, f"gave bytes of {entry.path} other than it said itself")
            return None
        wanted, voucher = self._digest(entry, index, name, found)
        if found != wanted:
            return self._arbitrate(name, voucher, entry, index, found, wanted)
        self._take(name, voucher, entry, index, found, len(reply.body))
        return reply.body

    def _take(self, name: str, voucher: str, entry: Entry, index: int, digest: bytes, count: int) -> None:
        with self._lock:
            self._vouched.setdefault(entry.sha256, set()).add(voucher)
        self._common.peers.gave(name, count)
        self._common.shelf.checked(entry, index, digest)

    # --- who is right ---

    def judge(self, entry: Entry, index: int) -> bytes | None:
        """The digest of a piece that an earlier run left here; None where this host is the authority. Raises
        LookupError where there is one and it does not say."""
        if not any(self._common.peers.possible(name) for name in self._vouchers):
            return None
        wanted, voucher = self._digest(entry, index, "", b"")
        if not voucher:
            raise LookupError(index)
        return wanted

    def _digest(self, entry: Entry, index: int, giver: str, claimed: bytes) -> tuple[bytes, str]:
        """What the SHA-256 of a piece has to be, and who says so: the first host of the chain that is alive and has
        the piece. ``giver`` itself only where nobody before it has. Empty where nobody says anything."""
        sha256, common = entry.sha256, self._common
        if piece_count(entry.size, self._piece) == 1:
            return bytes.fromhex(sha256), "the manifest"
        deadline = time.monotonic() + _GRACE
        for voucher in self._vouchers:
            if voucher == giver:
                return claimed, giver
            while common.peers.possible(voucher):
                try:
                    found = common.authorities.find(voucher, sha256, index)
                except PeerFailure as exc:
                    common.peers.failed(voucher, str(exc))
                    break
                if found is not None:
                    return found, voucher
                now = time.monotonic()
                if now >= deadline or self._behind.get((voucher, sha256), 0.0) > now:
                    self._behind[voucher, sha256] = now + _BEHIND
                    break
                common.stop.wait(_POLL)
                self._check_stop()
        return claimed, giver

    def _arbitrate(
        self, name: str, voucher: str, entry: Entry, index: int, found: bytes, wanted: bytes
    ) -> bytearray | None:
        """Two hosts say different things of a piece. The hub's own bytes tell who is wrong; they are the piece then."""
        common = self._common
        known = common.authorities.facts(voucher, entry.sha256)
        if known is not None and known.generation > 0:
            return None  # the file was dropped and comes anew; the one has it anew already, the other has not
        start, end = piece_range(index, entry.size, self._piece)
        truth = self._from_hub_whole(entry, start, end) if piece_count(entry.size, self._piece) > 1 else None
        right = wanted if truth is None else hashlib.sha256(truth).digest()
        if found != right:
            common.peers.ban(name, f"gave wrong bytes of {entry.path}")
        if wanted != right:
            common.peers.ban(voucher, f"gave a wrong digest of {entry.path}")
            common.authorities.forget(entry.sha256)
        if truth is not None:
            common.shelf.checked(entry, index, right)
        return truth

    def _from_hub_whole(self, entry: Entry, start: int, end: int) -> bytearray | None:
        body = bytearray()
        try:
            stream = self._direct.open(entry, start, end)
            try:
                while stream.offset == start and len(body) < end - start:
                    data = stream.read(end - start - len(body))
                    if not data:
                        break
                    body += data
            finally:
                stream.close()
        except (FleetError, OSError):
            return None
        with self._common.lock:
            self._common.hub_bytes += len(body)
        return body if len(body) == end - start else None

    # --- a whole file that was wrong ---

    def _notice_drops(self, entry: Entry) -> None:
        sha256 = entry.sha256
        drops, _verified = self._common.shelf.generation(sha256)
        with self._lock:
            if drops == self._seen_drops.get(sha256, 0):
                return
            self._seen_drops[sha256] = drops
            vouched = self._vouched.pop(sha256, set())
            if drops >= _DROPS_MAX and self._order:
                self._direct_only.add(sha256)
                self._common.tell(f"{entry.path} was wrong {drops} times. All of it comes from the hub now.")
            for voucher in sorted(vouched & set(self._vouchers)):
                self._hold_to_account(voucher, entry)
            self._common.authorities.forget(sha256)

    def _hold_to_account(self, voucher: str, entry: Entry) -> None:
        """Its digests did not add up to the file's. If it does not drop the file too, it did not tell the truth."""
        common, sha256 = self._common, entry.sha256
        before = common.authorities.facts(voucher, sha256)
        deadline = time.monotonic() + _CONFESS
        while not common.stop.is_set():
            try:
                facts = common.ask(voucher, Question(_swarm_wire.DIGESTS, sha256, 0)).facts
            except PeerFailure as exc:
                common.peers.failed(voucher, str(exc))
                return
            if facts.generation > (before.generation if before is not None else 0):
                return
            if facts.verified or time.monotonic() >= deadline:
                break
            common.stop.wait(0.2)
        common.peers.ban(voucher, f"vouched for pieces of {entry.path} that are not the file")

    # --- small ---

    def _check_stop(self) -> None:
        if self._common.stop.is_set():
            raise TransientError("swarm.stopped", "The run was stopped")

    def _complain(self, text: str, about: str) -> None:
        with self._lock:
            if about in self._complained:
                return
            self._complained.add(about)
        self._common.tell(text)


class _Counted:
    """A stream of the hub whose bytes are counted."""

    def __init__(self, stream: Stream, common: Common) -> None:
        self._stream, self._common = stream, common
        self.offset, self.total = stream.offset, stream.total
        self.whole, self.described = stream.whole, stream.described

    def read(self, limit: int) -> bytes | memoryview:
        data = self._stream.read(limit)
        with self._common.lock:
            self._common.hub_bytes += len(data)
        return data

    def close(self) -> None:
        self._stream.close()


class _Pieces:
    """Bytes ``[start, end)`` out of checked pieces, the first of which is there."""

    whole = False

    def __init__(self, source: SwarmSource, entry: Entry, start: int, end: int, body: bytearray, piece: int) -> None:
        self._source, self._entry = source, entry
        self.offset: int | None = start
        self.total: int | None = entry.size
        self.described = "pieces from the other hosts of the fleet"
        self._pos, self._end = start, end
        self._base, self._body = start // piece * piece, memoryview(body)
        self._hub: Stream | None = None

    def read(self, limit: int) -> bytes | memoryview:
        if self._pos >= self._end:
            return b""
        if self._hub is None and self._pos >= self._base + len(self._body):
            self._next()
        if self._hub is not None:
            data = self._hub.read(min(limit, self._end - self._pos))
        else:
            begin = self._pos - self._base
            data = self._body[begin : begin + min(limit, self._end - self._pos)]
        self._pos += len(data)
        return data

    def close(self) -> None:
        if self._hub is not None:
            self._hub.close()

    def _next(self) -> None:
        stream = self._source.find(self._entry, self._pos, self._end)
        if isinstance(stream, bytearray):
            self._base, self._body = self._pos, memoryview(stream)
            return
        if stream.offset != self._pos:
            stream.close()
            raise TransientError("transfer.incomplete", "the hub gives no ranges")  # asked anew, the transfer adapts
        self._hub = stream
