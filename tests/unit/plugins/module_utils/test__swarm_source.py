# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Pieces from peers that say one thing and do another, on a clock of the test's own."""

from __future__ import annotations

import hashlib
import threading
from collections import Counter
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _swarm_wire
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_client import Authorities, Reply
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Patience, Peers
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_shelf import Shelf
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_source import Common, SwarmSource
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_wire import Facts, Question
from ansible_collections.gpufleet.vllm.plugins.module_utils._transfer import TransientError

PIECE = 4096
DATA = bytes(range(256)) * 16 * 40
ENTRY = Entry("model.safetensors", len(DATA), hashlib.sha256(DATA).hexdigest())
PATIENCE = Patience()


class Bytes:
    whole = False
    described = "from memory"

    def __init__(self, start: int, end: int) -> None:
        self.offset: int | None = start
        self.total: int | None = len(DATA)
        self._pos, self._end = start, end

    def read(self, limit: int) -> bytes:
        found = DATA[self._pos : min(self._end, self._pos + limit)]
        self._pos += len(found)
        return found

    def close(self) -> None:
        """Nothing."""


class Fleet:
    """Peers that answer as they are told; each question that waits takes its time on the test's clock.

    ``promise``: says with every answer that it got on, and gives nothing. ``give``: gives. ``stuck``: neither.
    ``give`` after a while: a number, the time from which it gives.
    """

    piece: int | None = None
    connections: int | None = None

    def __init__(self, hub: bool = True, **peers: str | float) -> None:
        self.now, self.hub, self.behaviour = 1000.0, hub, peers
        self.asked: Counter[str] = Counter()
        self.said: list[str] = []
        self.peers = Peers(PATIENCE, self.said.append, lambda: self.now)
        shelf, stop = Shelf(PIECE), threading.Event()
        authorities = Authorities(self.ask, 0.0)
        common = Common("me", shelf, self.peers, self, authorities, PATIENCE, self.said.append, stop)  # type: ignore[arg-type]
        common.clock = lambda: self.now
        self.source = SwarmSource(common, list(peers), self, PIECE)

    def ask(self, name: str, question: Question) -> Reply:
        self.asked[name] += 1
        assert sum(self.asked.values()) < 20_000, "it asks for ever"
        self.now += question.wait + 0.01
        how = self.behaviour[name]
        progress = 7 if how == "stuck" else self.asked[name]
        if how == "give" or (isinstance(how, float) and self.now >= how):
            pieces = [DATA[place : place + PIECE] for place in range(0, len(DATA), PIECE)]
            if question.kind == _swarm_wire.DIGESTS:
                body = b"".join(hashlib.sha256(piece).digest() for piece in pieces[question.start :])
            else:
                body = DATA[question.start : question.end]
            facts = Facts(0, False, progress, hashlib.sha256(body).hexdigest())
            return Reply(_swarm_wire.OK, facts, bytearray(body))
        return Reply(_swarm_wire.WAITING, Facts(0, False, progress, ""), bytearray())

    def open(self, entry: Entry, start: int, end: int) -> Bytes:
        self.asked["hub"] += 1
        if not self.hub:
            self.now += 1.0
            raise TransientError("hub.unreachable", "the hub cannot be reached: no route to host")
        return Bytes(start, end)

    def get(self, index: int) -> bytes:
        start, end = index * PIECE, (index + 1) * PIECE
        stream: Any = self.source.open(ENTRY, start, end)
        found = b""
        while data := stream.read(PIECE):
            found += bytes(data)
        return found

    def right(self, index: int) -> bool:
        return self.get(index) == DATA[index * PIECE : (index + 1) * PIECE]


def test_a_promise_is_not_believed_for_ever() -> None:
    fleet = Fleet(liar="promise")
    began = fleet.now
    assert fleet.right(0)
    assert fleet.asked["hub"] == 1
    assert PATIENCE.hub < fleet.now - began < 10 * PATIENCE.hub
    assert fleet.peers.report()["given_up"] == {"liar": ["said that it got on and gave nothing"]}
    assert any("The hub is asked instead" in text for text in fleet.said)


def test_who_has_the_piece_is_asked_before_the_hub_whatever_the_nearest_says() -> None:
    fleet = Fleet(liar="promise", honest="give")
    fleet.peers.answered("honest", 0)
    began = fleet.now
    assert fleet.right(0)
    assert fleet.asked["hub"] == 0
    assert fleet.now - began < 2 * PATIENCE.hub
    assert "liar said that it got on and gave nothing. Others are asked instead." in fleet.said
    before = fleet.asked["liar"]
    assert all(fleet.right(index) for index in range(1, 20))
    assert fleet.asked["liar"] == before, "the others come first now"


def test_each_time_the_patience_is_shorter_and_then_it_is_over() -> None:
    fleet = Fleet(liar="promise")
    took = []
    for index in range(20):
        began = fleet.now
        assert fleet.right(index)
        took.append(fleet.now - began)
    assert took[0] > took[1] > took[2] > took[3]
    assert took[-1] == 0.0
    assert "liar" in fleet.peers.report()["banned"]
    assert sum(took) < 3 * took[0]


def test_slow_but_honest_peer_is_waited_for() -> None:
    fleet = Fleet(slow=1000.0 + 4 * PATIENCE.hub)
    assert fleet.right(0)
    assert fleet.asked["hub"] == 0
    assert fleet.said == []


def test_without_a_hub_a_promise_is_all_there_is() -> None:
    """It may be at another artifact for hours; a host that has nobody else to ask waits, and says for whom."""
    fleet = Fleet(hub=False, busy=1000.0 + 3600.0)
    assert fleet.right(0)
    assert fleet.asked["hub"] > 1
    assert fleet.peers.report()["banned"] == {}
    assert [text for text in fleet.said if "busy" in text and "waited for" in text]


def test_without_a_hub_a_promise_is_not_believed_for_days() -> None:
    fleet = Fleet(hub=False, liar="promise")
    with pytest.raises(TransientError, match="cannot be reached"):
        fleet.get(0)
    assert fleet.now - 1000.0 < 2 * PATIENCE.longest


def test_who_says_that_it_gets_nowhere_is_believed_at_once() -> None:
    fleet = Fleet(stuck="stuck")
    began = fleet.now
    assert fleet.right(0)
    assert fleet.now - began < 2 * PATIENCE.hub
    assert "liar" not in str(fleet.said)
    assert fleet.peers.report()["banned"] == {}
