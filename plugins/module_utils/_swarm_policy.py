# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Whom to ask next: what this host has seen of its peers, and what follows from it. No I/O."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

_PROBE = 0.1
_LATES_MAX = 6
"""Times that a peer may keep us waiting, each time half as long as the time before."""
_REDEEMED = 256
"""Right pieces that make up for one time."""


@dataclass(frozen=True)
class Patience:
    """How long a host waits for others, in seconds.

    ``start`` for a peer that was never seen, as its run may begin later; ``stall`` for one that gets nowhere, before
    the others are asked whether they have more; ``hub`` for all of them together, before the hub is asked instead, and
    ``stagger`` more for each place in the chain, so that not all do so at once. ``connect``, ``answer`` and ``piece``
    are for one connection, one answer beyond what was asked to wait, and all bytes of one piece. ``poll`` is how long a
    peer may keep a request.

    What a peer says of its progress may be untrue, or of something else. So a piece is late after ``hub`` whatever it
    says: then the others are asked for it, and after ``promises`` times as long the hub. Where that cannot be asked,
    ``longest`` is the end.
    """

    start: float = 20.0
    stall: float = 10.0
    hub: float = 60.0
    stagger: float = 5.0
    connect: float = 3.0
    answer: float = 10.0
    piece: float = 120.0
    poll: float = 2.5
    first_retry: float = 2.0
    longest_retry: float = 60.0
    promises: float = 5.0
    longest: float = 12 * 3600.0


@dataclass
class _Peer:
    name: str
    seen: bool = False
    down: bool = False
    broke: bool = False
    banned: str = ""
    retry_at: float = 0.0
    failures: int = 0
    probing: bool = False
    slow_until: float = 0.0
    progress: int = -1
    moved_at: float = 0.0
    received: int = 0
    strikes: int = 0
    lates: int = 0
    late_at: float = 0.0
    pieces: int = 0
    given_up: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Choice:
    """Ask ``peer``; where it is None, wait ``wait`` seconds and choose again, or (0) there is nobody to ask."""

    peer: str | None
    wait: float = 0.0


class Peers:
    """The hosts that this one may ask, by name. Safe to use from several threads.

    ``tell`` gets a sentence for a person whenever a peer is given up, or found to be wrong.
    """

    def __init__(
        self,
        patience: Patience,
        tell: Callable[[str], None] = lambda _text: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._patience, self._tell, self._clock = patience, tell, clock
        self._lock = threading.Lock()
        self._peers: dict[str, _Peer] = {}
        self._began = clock()

    def choose(self, order: Sequence[str], skip: Collection[str] = ()) -> Choice:
        """The first of ``order`` that is worth asking now.

        A peer that was never seen is waited for, nobody else is asked meanwhile: else all hosts that begin a little
        earlier than the one before them would fall upon the first. One that is down is tried again by one thread.
        """
        with self._lock:
            now = self._clock()
            usable = [self._get(name) for name in order if name not in skip]
            usable = [peer for peer in usable if not peer.banned]
            slow = [peer for peer in usable if peer.slow_until > now]
            for peer in [peer for peer in usable if peer not in slow] + slow:
                if not peer.seen and now - self._began < self._patience.start:
                    if peer.retry_at > now:
                        return Choice(None, peer.retry_at - now)
                    peer.retry_at = now + 0.25
                    return Choice(peer.name)
                if not peer.seen or peer.down:
                    if peer.probing or peer.retry_at > now:
                        continue
                    peer.probing = True
                return Choice(peer.name)
            # Another thread is just finding out about one of them; that is soon known.
            unknown = any(peer.probing and not peer.seen and not peer.failures for peer in usable)
            return Choice(None, _PROBE if unknown else 0.0)

    def answered(self, name: str, progress: int) -> None:
        """It is there, and says how far it is."""
        with self._lock:
            peer = self._get(name)
            peer.seen, peer.down, peer.probing, peer.broke, peer.failures = True, False, False, False, 0
            if progress != peer.progress:
                peer.progress, peer.moved_at = progress, self._clock()

    def gave(self, name: str, count: int) -> None:
        """It gave so many right bytes."""
        with self._lock:
            peer = self._get(name)
            peer.received += count
            peer.pieces += 1
            if peer.pieces % _REDEEMED == 0:
                peer.lates = max(0, peer.lates - 1)
            peer.moved_at = self._clock()

    def failed(self, name: str, why: str) -> None:
        """It could not be reached, or the connection broke. While it may still be starting, that is no news; of one
        that was there a moment ago, one broken connection is none either."""
        with self._lock:
            peer, now = self._get(name), self._clock()
            starting = not peer.seen and now - self._began < self._patience.start
            peer.probing = False
            if starting or peer.banned:
                return
            if peer.seen and not peer.down and not peer.broke:
                peer.broke = True
                return
            first = not peer.down
            if first or peer.retry_at <= now:
                peer.failures += 1
                waits = self._patience.first_retry * 2.0 ** min(peer.failures - 1, 10)
                peer.retry_at = now + min(waits, self._patience.longest_retry)
            peer.down = True
            if first:
                self._give_up(peer, why)

    def slow(self, name: str, why: str) -> None:
        """Others have what it does not give: they are asked first for a while."""
        with self._lock:
            peer, now = self._get(name), self._clock()
            first = peer.slow_until <= now
            peer.slow_until = now + 3 * self._patience.stall
            if first:
                self._give_up(peer, why)

    def late(self, name: str, since: float) -> None:
        """A piece that it was asked for ``since`` then came from elsewhere, though it said that it got on."""
        with self._lock:
            peer, now = self._get(name), self._clock()
            if since < peer.late_at:
                return  # one of several pieces that were asked for at the same time
            peer.late_at = now
            peer.lates += 1
            peer.slow_until = max(peer.slow_until, now + 3 * self._patience.stall * 2.0**peer.lates)
            if peer.lates >= _LATES_MAX:
                self._ban(peer, "said again and again that it got on and gave nothing")
            else:
                self._give_up(peer, "said that it got on and gave nothing")

    def due(self, name: str, place: int) -> float:
        """Seconds after which a piece is late that it is asked for, by a host that has so many before it."""
        with self._lock:
            return (self._patience.hub + self._patience.stagger * place) * 0.5 ** self._get(name).lates

    def ban(self, name: str, why: str) -> None:
        """It gave wrong bytes: it is not asked again in this run."""
        with self._lock:
            self._ban(self._get(name), why)

    def strike(self, name: str) -> int:
        """It contradicted itself; how often it did so far."""
        with self._lock:
            peer = self._get(name)
            peer.strikes += 1
            return peer.strikes

    def usable(self, name: str) -> bool:
        """Whether it is worth a question that somebody else could answer as well."""
        with self._lock:
            peer = self._get(name)
            return not peer.down and not peer.banned

    def possible(self, name: str) -> bool:
        """Whether it may come (back) and know something."""
        with self._lock:
            peer = self._get(name)
            starting = not peer.seen and self._clock() - self._began < self._patience.start
            return not peer.banned and (starting or (peer.seen and not peer.down))

    def stalled(self, name: str) -> float:
        """Seconds since it last got anywhere."""
        with self._lock:
            peer = self._get(name)
            return self._clock() - max(peer.moved_at, self._began)

    def report(self) -> dict[str, Any]:
        """Bytes by peer, and who was given up why."""
        with self._lock:
            peers = sorted(self._peers.values(), key=lambda peer: peer.name)
            return {
                "received": {peer.name: peer.received for peer in peers if peer.received},
                "given_up": {peer.name: list(peer.given_up) for peer in peers if peer.given_up},
                "banned": {peer.name: peer.banned for peer in peers if peer.banned},
            }

    def _get(self, name: str) -> _Peer:
        return self._peers.setdefault(name, _Peer(name))

    def _ban(self, peer: _Peer, why: str) -> None:
        if not peer.banned:
            peer.banned = why
            self._tell(f"{peer.name} {why}. It is not asked again in this run.")

    def _give_up(self, peer: _Peer, why: str) -> None:
        if why not in peer.given_up:
            peer.given_up.append(why)
            self._tell(f"{peer.name} {why}. Others are asked instead.")
