# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Placement: its goals one by one, what it never does, and where only the solver finds a packing."""

from __future__ import annotations

import ctypes
import itertools
import random
import signal
import typing as t
from dataclasses import replace

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _placement_fit, _placement_solver
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement import Board, place
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    CHANGED,
    KEPT,
    MOST_SHARED,
    MOVED,
    NEW,
    WHOLE,
    Card,
    Host,
    Placement,
    Running,
    Shape,
    Want,
    natural,
)
from hypothesis import given, settings
from hypothesis import strategies as st

GIB = 1 << 30


def no_solver(*_unused: t.Any) -> None:
    """A controller without OR-Tools."""


def host(name: str, count: int = 8, island: int = 0, gib: int = 80, **more: t.Any) -> Host:
    """A host whose NVLink islands have so many cards each; 0: all of them are one, 1: there is no NVLink."""
    size = island or count
    cards = tuple(
        Card(f"{name}/{index}", index, "NVIDIA H100", gib * GIB, (9, 0), index // 4) for index in range(count)
    )
    islands = tuple(tuple(card.uuid for card in cards[start : start + size]) for start in range(0, count, size or 1))
    everything = (tuple(card.uuid for card in cards),) if cards else ()
    return Host(name, cards, more.pop("groups", {"nvlink": islands, "pcie": everything}), **more)


def want(service: str, count: int = 1, gib: int = 0, **more: t.Any) -> Want:
    return Want(service, shapes=(Shape(count, gib * GIB),), **more)


def runs(**services: t.Sequence[str]) -> dict[str, Running]:
    return {name: Running(tuple(cards)) for name, cards in services.items()}


def where(placement: Placement) -> dict[str, list[str]]:
    """The cards of each service, on all its hosts."""
    found: dict[str, list[str]] = {}
    for item in placement.assignments:
        found.setdefault(item.service, []).extend(item.cards)
    return found


def recorded(hosts: t.Iterable[Host], placement: Placement) -> list[Host]:
    """The hosts after a deploy of this placement."""
    return [
        replace(one, running={item.service: Running(item.cards) for item in placement.on(one.name)}) for one in hosts
    ]


def state_of(one: Host) -> _placement_fit.HostState:
    return _placement_fit.HostState(one, {})


def test_the_cards_of_a_record_are_held_to_the_wish() -> None:
    there = state_of(host("a", 4, 2, taken={"a/3": "own"}))
    pair = want("one", 2, 40, link="nvlink")
    assert _placement_fit.fits_as_is(there, pair, ["a/1", "a/0"]) == (0, 1)
    for cards in (["a/1", "a/2"], ["a/2", "a/3"], ["a/0"], ["a/0", "a/9"], []):
        assert _placement_fit.fits_as_is(there, pair, cards) is None
    assert _placement_fit.fits_as_is(there, want("one", 2, 100), ["a/0", "a/1"]) is None


def test_hosts_in_equal_states_have_equal_keys() -> None:
    kinds: dict[t.Any, int] = {}
    one, other, third = (_placement_fit.HostState(made, kinds) for made in (host("a"), host("b"), host("c", 8, 4)))
    assert one.key == other.key != third.key
    one.take(want("x", share=400), [0])
    assert one.key != other.key
    twin = one.copy()
    twin.take(want("y"), [1])
    assert (one.used[1], twin.used[:2], one.services) == (0, [400, WHOLE], {"x"})


# --- goals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wish", "fitting"),
    [
        ({"gib": 100}, "h200"),
        ({"name": "h200|b200"}, "h200"),
        ({"capability": (9, 1)}, "h200"),
        ({"count": 6}, "wide"),
        ({"count": 2, "link": "nvlink"}, "wide"),
        ({"hosts": frozenset({"h200"})}, "h200"),
        ({"port": 8000}, "h200"),
        ({"count": 0}, "cpu"),
    ],
    ids=str,
)
def test_constraints_are_kept(wish: dict[str, t.Any], fitting: str) -> None:
    h200 = Host("h200", (Card("h200/0", 0, "NVIDIA H200", 141 * GIB, (9, 1)),), {"nvlink": (), "pcie": ()})
    hosts = [
        h200,
        host("wide", 6, 2, ports={8000: "own"}),
        host("small", 1, gib=24, ports={8000: "own"}),
        host("cpu", 0),
    ]
    placement = place(hosts, [want("one", **wish)], solve=no_solver)
    assert [item.host for item in placement.assignments] == [fitting]


def test_what_is_not_known_is_held_against_no_card_but_taken_last() -> None:
    blank = Host("a", (Card("a/0", 0), Card("a/1", 1)))
    asked = want("one", 2, 40, link="nvlink", name="H100", capability=(9, 0))
    assert where(place([blank], [asked])) == {"one": ["a/0", "a/1"]}
    assert place([blank, host("b", 2)], [asked]).assignments[0].host == "b"


def test_a_card_with_errors_gets_nothing_new_and_what_runs_there_stays() -> None:
    ill = Host("a", (Card("a/0", 0, healthy=False), Card("a/1", 1)), {"nvlink": (), "pcie": ()})
    assert where(place([ill], [want("one")])) == {"one": ["a/1"]}
    assert where(place([replace(ill, running=runs(one=["a/0"]))], [want("one")])) == {"one": ["a/0"]}


def test_what_runs_and_fits_stays_wherever_it_is() -> None:
    # Placed anew they would share the smallest island.
    hosts = [host("a", 8, running=runs(one=["a/5"])), host("b", 8, running=runs(two=["b/3"])), host("c", 2)]
    placement = place(hosts, [want("one"), want("two")])
    assert {(item.service, item.host, item.cards, item.how) for item in placement.assignments} == {
        ("one", "a", ("a/5",), KEPT),
        ("two", "b", ("b/3",), KEPT),
    }


def test_what_does_not_fit_its_cards_any_more_first_looks_on_its_host() -> None:
    hosts = [host("a", 4, running=runs(one=["a/2"])), host("b", 2)]
    (grown,) = place(hosts, [want("one", 2)]).assignments
    assert (grown.host, grown.how) == ("a", CHANGED)
    assert "a/2" in grown.cards
    (gone,) = place([host("a", 1, running=runs(one=["a/7"])), host("b", 1)], [want("one")]).assignments
    assert (gone.host, gone.cards, gone.how) == ("a", ("a/0",), CHANGED)
    (moved,) = place([host("a", 1, running=runs(one=["a/0"])), host("b", 2)], [want("one", 2)]).assignments
    assert (moved.host, moved.how, moved.origin) == ("b", MOVED, "a")


def test_a_grown_service_drives_no_other_away() -> None:
    hosts = [host("a", 2, running=runs(grows=["a/0"], stays=["a/1"])), host("b", 2)]
    assert where(place(hosts, [want("grows", 2), want("stays")])) == {"stays": ["a/1"], "grows": ["b/0", "b/1"]}


def test_a_card_of_the_hosts_own_services_is_theirs() -> None:
    taken = host("a", 2, taken={"a/0": "own"}, running=runs(one=["a/0"]))
    (item,) = place([taken], [want("one")]).assignments
    assert (item.cards, item.how) == (("a/1",), CHANGED)
    assert place([host("a", 1, names=frozenset({"one"}))], [want("one")]).unplaced == {"one": 1}


def test_a_busy_port_keeps_others_away_but_not_what_runs() -> None:
    busy = host("a", 1, busy={8000: "nginx"})
    assert place([busy], [want("one", port=8000)]).unplaced == {"one": 1}
    assert not place([replace(busy, running=runs(one=["a/0"]))], [want("one", port=8000)]).unplaced


def test_the_port_that_a_running_service_was_given_stays_its_own() -> None:
    """A new service, or one that lost its host, would else restart it on another port."""
    held = replace(host("a", 4), running={"one": Running(("a/0",), 8000)})
    fixed = [want("one"), want("two", port=8000)]
    assert place([held], fixed).unplaced == {"two": 1}
    assert {item.service: item.host for item in place([held, host("b", 4)], fixed).assignments} == {
        "one": "a",
        "two": "b",
    }
    both = replace(held, running={**held.running, "two": Running(("a/1",), 8003)})
    assert not place([both], fixed).unplaced, "a port that somebody wrote down decides among those that are there"


def test_two_services_with_one_port_are_on_two_hosts() -> None:
    placement = place([host("a"), host("b")], [want("one", port=8000), want("two", port=8000)])
    assert {item.host for item in placement.assignments} == {"a", "b"}


def test_islands_are_taken_whole_and_not_broken_up_for_little() -> None:
    hosts = [host("a", 8, 4), host("b", 8, 4), host("plain", 2, 1)]
    placement = where(place(hosts, [want("large", 4), want("small"), want("tiny")]))
    assert placement["large"] == ["a/0", "a/1", "a/2", "a/3"]
    assert placement["small"] + placement["tiny"] == ["plain/0", "plain/1"], "cards without NVLink are no island"
    more = where(place(hosts, [want("large", 4), *(want(f"small-{number}") for number in range(6))]))
    used = {card for name, cards in more.items() if name != "large" for card in cards if not card.startswith("plain")}
    assert used == {"a/4", "a/5", "a/6", "a/7"}, "one island is broken up, and then filled"


def test_a_pair_is_within_an_island_without_being_asked() -> None:
    half = host("a", 4, 2, taken={"a/0": "own"})
    assert where(place([half], [want("pair", 2)])) == {"pair": ["a/2", "a/3"]}
    assert where(place([half], [want("three", 3)])) == {"three": ["a/1", "a/2", "a/3"]}, "no link was asked for"
    assert place([half], [want("three", 3, link="nvlink")]).unplaced == {"three": 1}


def test_a_small_model_leaves_large_cards_to_others() -> None:
    hosts = [host("large", 4, gib=141), host("middle", 4, gib=80), host("little", 4, gib=24)]
    assert place(hosts, [want("one", 1, 40)]).assignments[0].host == "middle"


def test_cards_of_one_numa_node_where_no_island_says_more() -> None:
    flat = host("a", 8, 1, taken={"a/0": "own", "a/1": "own"}, groups=None)
    assert where(place([flat], [want("pair", 2)])) == {"pair": ["a/2", "a/3"]}
    assert where(place([flat], [want("three", 3)])) == {"three": ["a/4", "a/5", "a/6"]}


def test_replicas_are_on_hosts_of_their_own_and_the_rest_on_few() -> None:
    hosts = [host(name) for name in "abc"]
    spread = place(hosts, [want("one", replicas=3)])
    assert sorted(item.host for item in spread.assignments) == ["a", "b", "c"]
    packed = place(hosts, [want(f"s{number}") for number in range(8)])
    assert {item.host for item in packed.assignments} == {"a"}
    assert place(hosts, [want("one", replicas=4)]).unplaced == {"one": 1}


def test_fewer_replicas_leave_hosts_and_move_nothing() -> None:
    hosts = [host(name, running=runs(one=[f"{name}/3"])) for name in ("gpu-10", "gpu-9", "gpu-1")]
    placement = place(hosts, [want("one", replicas=2)])
    assert [(item.host, item.how) for item in placement.assignments] == [("gpu-1", KEPT), ("gpu-9", KEPT)]


def test_cards_are_shared_only_where_shares_are_stated() -> None:
    one = [host("a", 1)]
    shared = [want("x", share=450), want("y", share=450)]
    assert where(place(one, shared)) == {"x": ["a/0"], "y": ["a/0"]}
    assert sum(place(one, [want("x", share=450), want("y")]).unplaced.values()) == 1
    assert sum(place(one, [want("x", share=500), want("y", share=500)]).unplaced.values()) == 1, "0.95 at most"
    two = place([host("a", 2)], [want("x", share=400), want("y", share=400), want("z")])
    assert where(two) == {"z": ["a/0"], "x": ["a/1"], "y": ["a/1"]}


def test_the_first_shape_that_fits_is_taken() -> None:
    sized = Want("one", shapes=(Shape(1, 80 * GIB), Shape(2, 40 * GIB)))
    assert where(place([host("a", 4, gib=48)], [sized])) == {"one": ["a/0", "a/1"]}
    assert where(place([host("a", 4, gib=48), host("b", 1, gib=80)], [sized])) == {"one": ["b/0"]}


def test_a_number_of_cards_that_was_ours_to_choose_is_kept() -> None:
    runs_on_two = host("a", 4, running=runs(one=["a/0", "a/1"]))
    for shapes in ((Shape(1, 40 * GIB),), ()):
        (item,) = place([runs_on_two], [Want("one", shapes=shapes, elastic=True)]).assignments
        assert (len(item.cards), item.how) == (2, KEPT)
    assert place([host("a")], [Want("one", shapes=(), elastic=True)]).unplaced == {"one": 1}, "its size is not known"


def test_what_no_host_has_is_taken_to_be_on_a_missing_one() -> None:
    hosts = [host("a", running=runs(one=["a/0"])), host("b")]
    two = want("one", replicas=2)
    kept = place(hosts, [two], missing=["c"])
    assert (kept.waiting, kept.unplaced, len(kept.assignments)) == ({"one": 1}, {}, 1)
    assert not place(hosts, [replace(two, hosts=frozenset("ab"))], missing=["c"]).waiting, "it may not be there"
    three = place([*hosts, host("d")], [replace(two, replicas=3)], missing=["c"])
    assert (three.waiting, len(three.assignments)) == ({"one": 1}, 2), "one host can have one replica"
    moved = place([host("a", 1, running=runs(one=["a/0"])), host("b", 2)], [want("one", 2)], missing=["c"])
    assert (moved.waiting, where(moved)) == ({}, {"one": ["b/0", "b/1"]}), "it is known where its only replica is"


def test_names_are_in_the_order_that_people_count_in() -> None:
    names = ["gpu-10", "gpu-2", "gpu-1", "a10", "a9b", "gpu-02"]
    assert sorted(names, key=natural) == ["a9b", "a10", "gpu-1", "gpu-02", "gpu-2", "gpu-10"]
    assert place([host("gpu-10"), host("gpu-2")], [want("one")]).assignments[0].host == "gpu-2"


# --- the solver ------------------------------------------------------------------------------------------------------

# In each the heuristic leaves something over, and there is a packing.
PACKINGS = {
    "six into two": ([host("a", 8, 1), host("b", 8, 1)], [4, 3, 3, 2, 2, 2]),
    "three hosts": ([host(name, 10, 1) for name in "abc"], [5, 5, 4, 4, 3, 3, 3, 3]),
}


@pytest.mark.parametrize("name", PACKINGS)
def test_the_solver_packs_what_the_heuristic_cannot(name: str) -> None:
    hosts, sizes = PACKINGS[name]
    wants = [want(f"s{number}", size) for number, size in enumerate(sizes)]
    greedy = place(hosts, wants, solve=no_solver)
    assert greedy.unplaced
    assert greedy.search == "missing"
    solved = place(hosts, wants)
    assert (solved.unplaced, solved.search) == ({}, "solver")
    check(hosts, wants, solved)
    for seed in range(3):
        mixed = random.Random(seed)
        assert place(mixed.sample(hosts, len(hosts)), mixed.sample(wants, len(wants))) == solved


def test_the_solver_keeps_ports_links_shares_and_replicas() -> None:
    hosts = [host("a", 4, 2), host("b", 4, 2), host("c", 3, 1)]
    wants = [
        want("pair", 2, link="nvlink", replicas=2),
        want("three", 3),
        want("x", share=475, port=9000),
        want("y", share=475, port=9000),
        want("z", share=475),
        want("w", share=475),
    ]
    solution = _placement_solver.solve(Board(hosts).states, [(one, one.replicas) for one in wants], [])
    assert solution is not None
    assert solution.proven
    check(hosts, wants, Placement(solution.assignments))
    assert len(solution.assignments) == 7


def test_the_solver_proves_that_there_is_no_packing() -> None:
    # Nine cards for ten, and each service alone has room on both hosts.
    hosts = [host("a", 5, 1), host("b", 5, 1)]
    wants = [want("x", 3), want("y", 3), want("z", 3)]
    refused = place(hosts, wants)
    assert (sum(refused.unplaced.values()), refused.search) == (1, "impossible")
    assert place(hosts, wants, solve=no_solver).search == "missing"


def handler_of_sigint() -> int | None:
    """Whom the kernel calls: Python's own table does not know what a library did."""
    action = ctypes.create_string_buffer(256)
    ctypes.CDLL(None).sigaction(signal.SIGINT, None, action)
    return ctypes.c_void_p.from_buffer(action).value


def test_the_solver_leaves_ctrl_c_to_python() -> None:
    one, before = want("a"), handler_of_sigint()
    assert _placement_solver.solve(Board([host("one")]).states, [(one, 1)], []) is not None
    assert handler_of_sigint() == before


def test_no_solver_is_asked_where_counting_is_enough() -> None:
    def never(*_unused: t.Any) -> None:
        raise AssertionError

    assert place([host("a", 2)], [want("one", 4)], solve=never).search == "impossible"
    assert place([host("a", 2)], [want("one", replicas=2)], solve=never).search == "impossible"


def test_what_runs_is_never_repacked() -> None:
    hosts = [host("a", 2, 1, running=runs(x=["a/0"])), host("b", 2, 1, running=runs(y=["b/0"]))]
    refused = place(hosts, [want("x"), want("y"), want("pair", 2)])
    assert (refused.unplaced, refused.search) == ({"pair": 1}, "impossible")
    assert where(refused) == {"x": ["a/0"], "y": ["b/0"]}


def test_a_large_fleet_is_searched_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_placement_solver, "MOST_PAIRS", 14)
    hosts = [*(host(name, 8, 1) for name in "ab"), *(host(f"full-{number}", 1) for number in range(4))]
    wants = [want(f"s{number}", size) for number, size in enumerate([4, 3, 3, 2, 2, 2])]
    wants += [want(f"t{number}", hosts=frozenset({f"full-{number}"})) for number in range(4)]
    solved = place(hosts, wants)
    assert (solved.unplaced, solved.search) == ({}, "solver")
    check(hosts, wants, solved)
    refused = place(hosts, [*wants, want("more", 1, hosts=frozenset({"a", "b"}))])
    assert (sum(refused.unplaced.values()), refused.search) == (1, "limit"), "a part proves nothing of the whole"


# --- properties ------------------------------------------------------------------------------------------------------


@st.composite
def fleets(draw: st.DrawFn) -> tuple[list[Host], list[Want]]:
    kinds = st.tuples(st.integers(0, 4), st.sampled_from([1, 2, 0]), st.sampled_from([24, 80]))
    hosts = []
    for number, (count, island, gib) in enumerate(draw(st.lists(kinds, min_size=1, max_size=4))):
        made = host(f"gpu-{number}", count, island, gib)
        if draw(st.booleans()) and made.cards:
            made = replace(made, taken={made.cards[0].uuid: "own"})
        if draw(st.booleans()):
            made = replace(made, ports={8001: "own"})
        if draw(st.integers(0, 3)) == 0:
            made = replace(made, groups=None)
        hosts.append(made)
    names = [made.name for made in hosts]
    wants = [
        Want(
            service=f"s{number}",
            replicas=draw(st.integers(0, 3)),
            shapes=(Shape(draw(st.integers(0, 3)), draw(st.sampled_from([0, 40])) * GIB),),
            link=draw(st.sampled_from(["", "", "nvlink", "pcie"])),
            share=draw(st.sampled_from([WHOLE, WHOLE, 450, 300])),
            hosts=draw(st.one_of(st.none(), st.frozensets(st.sampled_from(names)))),
            port=draw(st.sampled_from([None, None, 8000, 8001])),
        )
        for number in range(draw(st.integers(0, 6)))
    ]
    return hosts, wants


def check(hosts: t.Sequence[Host], wants: t.Sequence[Want], placement: Placement) -> None:
    """Nothing over-committed, no constraint broken, each replica accounted for."""
    by_host, by_name = {one.name: one for one in hosts}, {one.service: one for one in wants}
    used: dict[str, list[int]] = {}
    ports: set[tuple[str, int]] = set()
    counts: dict[str, int] = {}
    for item in placement.assignments:
        there, asked = by_host[item.host], by_name[item.service]
        cards = {card.uuid: card for card in there.cards}
        shape = asked.shapes[0]
        assert asked.allows(item.host)
        assert len(set(item.cards)) == shape.count
        assert shape.count or not there.cards
        for uuid in item.cards:
            assert uuid not in there.taken
            assert (cards[uuid].memory_bytes or 0) >= shape.memory_bytes
            used.setdefault(uuid, []).append(asked.share)
        if asked.link and there.groups is not None and len(item.cards) > 1:
            assert any(set(item.cards) <= set(group) for group in there.groups[asked.link])
        if asked.port is not None:
            assert asked.port not in there.ports
            assert (item.host, asked.port) not in ports
            ports.add((item.host, asked.port))
        counts[item.service] = counts.get(item.service, 0) + 1
    for shares in used.values():
        assert len(shares) == 1 or sum(shares) <= MOST_SHARED
    places = [(item.service, item.host) for item in placement.assignments]
    assert len(places) == len(set(places))
    for asked in wants:
        left = placement.unplaced.get(asked.service, 0) + placement.waiting.get(asked.service, 0)
        assert counts.get(asked.service, 0) + left == asked.replicas


@settings(max_examples=120, deadline=None)
@given(fleets(), st.randoms(use_true_random=False))
def test_it_breaks_nothing_and_is_the_same_in_any_order(
    case: tuple[list[Host], list[Want]], mixed: random.Random
) -> None:
    hosts, wants = case
    placement = place(hosts, wants, solve=no_solver)
    check(hosts, wants, placement)
    shuffled = [replace(one, cards=tuple(mixed.sample(one.cards, len(one.cards)))) for one in hosts]
    assert place(mixed.sample(shuffled, len(shuffled)), mixed.sample(wants, len(wants)), solve=no_solver) == placement


@settings(max_examples=120, deadline=None)
@given(fleets())
def test_a_second_placement_changes_nothing(case: tuple[list[Host], list[Want]]) -> None:
    hosts, wants = case
    first = place(hosts, wants, solve=no_solver)
    second = place(recorded(hosts, first), wants, solve=no_solver)
    kept = {(item.service, item.host, item.cards) for item in first.assignments}
    assert kept == {(item.service, item.host, item.cards) for item in second.assignments}
    # Of a service without cards the record tells the host alone, which is all there is.
    assert {item.how for item in second.assignments} <= {KEPT}
    # What others want later moves nothing of it.
    more = [*wants, want("a-new-one"), want("z-new-pair", 2)]
    third = place(recorded(hosts, first), more, solve=no_solver)
    assert kept <= {(item.service, item.host, item.cards) for item in third.assignments}
    assert {item.how for item in third.assignments if not item.service.endswith(("one", "pair"))} <= {KEPT}


@settings(max_examples=40, deadline=None)
@given(fleets())
def test_with_the_solver_it_breaks_nothing_either_and_leaves_no_more(case: tuple[list[Host], list[Want]]) -> None:
    hosts, wants = case
    placement = place(hosts, wants)
    check(hosts, wants, placement)
    assert sum(placement.unplaced.values()) <= sum(place(hosts, wants, solve=no_solver).unplaced.values())
    assert placement.search in ("heuristic", "solver", "impossible")


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.lists(st.integers(1, 5), min_size=1, max_size=2))
def test_what_is_called_impossible_is(sizes: list[int], rooms: list[int]) -> None:
    """Beside every way to put so few services on so few hosts."""
    hosts = [host(f"h{number}", room, 1) for number, room in enumerate(rooms)]
    placement = place(hosts, [want(f"s{number}", size) for number, size in enumerate(sizes)])
    best = 0
    for choice in itertools.product(range(-1, len(rooms)), repeat=len(sizes)):
        loads = [
            sum(size for size, home in zip(sizes, choice, strict=True) if home == number)
            for number in range(len(rooms))
        ]
        if all(load <= room for load, room in zip(loads, rooms, strict=True)):
            best = max(best, sum(home >= 0 for home in choice))
    assert len(placement.assignments) == best
    assert (placement.search in ("heuristic", "solver")) == (best == len(sizes))


def test_new_is_what_a_first_placement_calls_it() -> None:
    assert [item.how for item in place([host("a")], [want("one")]).assignments] == [NEW]
