# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Whom to ask: what follows from what was seen, on a clock of the test's own."""

from __future__ import annotations

from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_policy import Choice, Patience, Peers
from hypothesis import given
from hypothesis import strategies as st

PATIENCE = Patience(start=20.0, stall=10.0, first_retry=2.0, longest_retry=60.0)
ORDER = ("near", "middle", "first")


class World:
    def __init__(self) -> None:
        self.now = 1000.0
        self.said: list[str] = []
        self.peers = Peers(PATIENCE, self.said.append, lambda: self.now)

    def seen(self, *names: str) -> None:
        for name in names:
            self.peers.answered(name, 0)

    def lose(self, name: str, why: str = "cannot be reached: connection refused") -> None:
        self.peers.failed(name, why)
        self.peers.failed(name, why)

    def choose(self, *skip: str) -> str | None:
        return self.peers.choose(ORDER, skip).peer


def test_nearest_is_asked() -> None:
    world = World()
    world.seen(*ORDER)
    assert world.choose() == "near"
    assert world.choose("near") == "middle"


def test_peer_that_was_never_seen_is_waited_for_and_nobody_else_is_asked() -> None:
    world = World()
    world.seen("middle", "first")
    assert world.peers.choose(ORDER) == Choice("near")
    world.peers.failed("near", "cannot be reached: connection refused")
    assert world.peers.choose(ORDER) == Choice(None, 0.25)
    world.now += 0.25
    assert world.choose() == "near"
    assert world.said == [], "it may still be starting"
    world.now += PATIENCE.start
    assert world.choose() == "near", "a last time"
    world.peers.failed("near", "cannot be reached: connection refused")
    assert world.choose() == "middle"
    assert world.said == ["near cannot be reached: connection refused. Others are asked instead."]


def test_while_one_thread_finds_out_the_others_do_not_run_to_the_hub() -> None:
    world = World()
    world.now += PATIENCE.start
    assert [world.choose() for _unused in ORDER] == list(ORDER)
    assert world.peers.choose(ORDER).wait > 0
    for name in ORDER:
        world.peers.failed(name, "is dead")
    assert world.peers.choose(ORDER) == Choice(None)


def test_one_broken_connection_is_no_news() -> None:
    world = World()
    world.seen(*ORDER)
    world.peers.failed("near", "closed the connection")
    assert world.choose() == "near"
    world.peers.answered("near", 1)
    world.peers.failed("near", "closed the connection")
    assert world.choose() == "near"
    assert world.said == []


def test_lost_peer_is_passed_over_and_tried_again_by_one_at_a_time() -> None:
    world = World()
    world.seen(*ORDER)
    world.lose("near")
    assert world.choose() == "middle"
    world.now += PATIENCE.first_retry
    assert world.choose() == "near"
    assert world.choose() == "middle", "one is enough to find out"
    world.peers.failed("near", "cannot be reached")
    world.now += PATIENCE.first_retry
    assert world.choose() == "middle", "rarer each time"
    world.now += PATIENCE.first_retry * 2
    assert world.choose() == "near"
    world.peers.answered("near", 5)
    assert [world.choose(), world.choose()] == ["near", "near"], "it is back"
    assert len(world.said) == 1


def test_with_all_lost_the_hub_is_left() -> None:
    world = World()
    world.seen(*ORDER)
    for name in ORDER:
        world.lose(name)
    assert world.peers.choose(ORDER) == Choice(None)
    assert world.peers.choose(()) == Choice(None)


def test_banned_peer_is_never_asked_again() -> None:
    world = World()
    world.seen(*ORDER)
    world.peers.ban("near", "gave wrong bytes of x")
    world.peers.ban("near", "gave wrong bytes of y")
    world.now += 10_000
    world.seen("near")
    assert world.choose() == "middle"
    assert world.said == ["near gave wrong bytes of x. It is not asked again in this run."]
    assert world.peers.report()["banned"] == {"near": "gave wrong bytes of x"}
    assert not world.peers.usable("near")
    assert not world.peers.possible("near")


def test_slow_peer_comes_last_for_a_while() -> None:
    world = World()
    world.seen(*ORDER)
    world.peers.slow("near", "got nowhere while others had more")
    assert world.choose() == "middle"
    assert world.choose("middle", "first") == "near"
    world.now += 3 * PATIENCE.stall
    assert world.choose() == "near"


def test_stall_is_measured_from_the_last_progress() -> None:
    world = World()
    world.peers.answered("near", 7)
    world.now += 4
    world.peers.answered("near", 7)
    assert world.peers.stalled("near") == 4
    world.peers.answered("near", 8)
    assert world.peers.stalled("near") == 0
    world.now += 3
    world.peers.gave("near", 100)
    assert world.peers.stalled("near") == 0
    assert world.peers.report()["received"] == {"near": 100}


@given(
    st.lists(st.tuples(st.sampled_from(["fail", "answer", "slow", "ban", "wait", "choose"]), st.sampled_from(ORDER)))
)
def test_a_choice_is_always_a_peer_a_wait_or_the_hub(steps: list[tuple[str, str]]) -> None:
    world, banned = World(), set[str]()
    for what, name in steps:
        if what == "fail":
            world.peers.failed(name, "broke")
        elif what == "answer":
            world.peers.answered(name, 1)
        elif what == "slow":
            world.peers.slow(name, "got nowhere")
        elif what == "ban":
            world.peers.ban(name, "lied")
            banned.add(name)
        elif what == "wait":
            world.now += 5
        choice = world.peers.choose(ORDER)
        assert choice.peer is None or (choice.wait == 0 and choice.peer not in banned)
        assert 0 <= choice.wait <= 60
