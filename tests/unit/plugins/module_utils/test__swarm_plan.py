# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The chain, the pieces and what a host is told: pure."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._swarm_plan import (
    SPARES,
    HostState,
    Membership,
    Pinned,
    chains,
    contents,
    hub_connections,
    normal_address,
    piece_count,
    piece_range,
    piece_size,
    preference,
    read_membership,
    short_rows,
)
from hypothesis import given
from hypothesis import strategies as st

MIB = 1024 * 1024
ROW = {"Path": "a/model.safetensors", "Type": "blob", "Size": 3 * MIB, "Sha256": "AB" * 32, "Revision": "x" * 500}
names = st.sampled_from([f"gpu-{number:02}" for number in range(12)])
keys = st.sampled_from(["a", "b", "c"])
fleets = st.dictionaries(names, st.dictionaries(keys, st.integers(0, 5), max_size=3), max_size=12).map(
    lambda found: [HostState(name, missing) for name, missing in sorted(found.items())]
)


# ---- pieces


@given(st.integers(0, 50 * MIB), st.integers(4096, 4 * MIB))
def test_pieces_are_the_file_cut_without_gap(size: int, piece: int) -> None:
    ranges = [piece_range(index, size, piece) for index in range(piece_count(size, piece))]
    assert [start for start, _end in ranges] == [0, *(end for _start, end in ranges)][: len(ranges)]
    assert all(0 < end - start <= piece for start, end in ranges)
    assert (ranges[-1][1] if ranges else 0) == size


@pytest.mark.parametrize(("total", "piece"), [(0, MIB), (1024 * MIB, MIB), (1024 * MIB + 1, 4 * MIB), (2**40, 4 * MIB)])
def test_pieces_of_much_are_larger(total: int, piece: int) -> None:
    assert piece_size(total) == piece


@pytest.mark.parametrize(
    ("total", "most", "connections"),
    [
        pytest.param(10 * MIB, 32, 4, id="little: few, so that the chain begins soon"),
        pytest.param(256 * MIB, 32, 8, id="more: more"),
        pytest.param(1024 * MIB, 32, None, id="much: as many as help"),
        pytest.param(10 * MIB, 2, 2, id="never more than the user allows"),
    ],
)
def test_first_host_takes_few_pieces_at_a_time_of_little(total: int, most: int, connections: int | None) -> None:
    assert hub_connections(total, MIB, most) == connections


# ---- the chain


@given(fleets, st.one_of(st.none(), names))
def test_chain_has_all_in_need_behind_those_who_have_it(states: list[HostState], seed: str | None) -> None:
    found = {chain.key: chain for chain in chains(states, seed)}
    for key in {key for state in states for key in state.missing}:
        needy = {state.name for state in states if state.missing.get(key, 0) > 0}
        complete = {state.name for state in states if state.missing.get(key) == 0}
        if not needy:
            assert key not in found
            continue
        chain = found[key]
        assert len(set(chain.hosts)) == len(chain.hosts)
        assert set(chain.hosts[chain.complete :]) == needy
        assert set(chain.hosts[: chain.complete]) <= complete
        assert chain.complete == min(len(complete), 1 + SPARES)
        if seed in needy:
            assert chain.hosts[chain.complete] == seed
        if seed in complete:
            assert chain.hosts[chain.complete - 1] == seed
        lacking = {state.name: state.missing.get(key, 0) for state in states}
        order = [lacking[name] for name in chain.hosts[chain.complete :] if name != seed]
        assert order == sorted(order), "what earlier runs left is not asked of the hub again"


@given(fleets)
def test_nobody_waits_in_a_circle(states: list[HostState]) -> None:
    """All hosts take the artifacts in one order, and ask only hosts before them: there is always one who need not."""
    for chain in chains(states):
        for place, name in enumerate(chain.hosts):
            asked = preference(chain.hosts, chain.complete, name, "swarm")
            assert asked == tuple(reversed(chain.hosts[:place]))


def test_what_most_lack_comes_first() -> None:
    states = [HostState("x", {"rare": 9, "common": 1, "big": 5}), HostState("y", {"common": 1, "big": 5, "rare": 0})]
    assert [chain.key for chain in chains(states)] == ["big", "common", "rare"]


def test_seed_without_a_way_to_the_hub_stands_behind_those_that_have_one() -> None:
    """The first one has nobody but the hub to ask."""
    states = [HostState("seed", {"a": 5}, frozenset("a")), HostState("b", {"a": 9}), HostState("c", {"a": 7})]
    assert chains(states, "seed")[0].hosts == ("c", "b", "seed")
    blind = [HostState(state.name, state.missing, frozenset("a")) for state in states]
    assert chains(blind, "seed")[0].hosts == ("seed", "c", "b"), "where nobody has one, it is as good as any"


def test_nobody_waits_for_one_that_is_at_something_else_if_there_is_another_way() -> None:
    states = [HostState("busy", {"a": 90, "b": 5}), HostState("free", {"b": 5}), HostState("other", {"a": 90})]
    found = {chain.key: chain.hosts for chain in chains(states)}
    assert found == {"a": ("other", "busy"), "b": ("free", "busy")}


def test_with_a_seed_only_those_are_asked_who_were_first() -> None:
    chain = ("have-1", "have-2", "need-1", "need-2")
    assert preference(chain, 2, "need-2", "seed") == ("have-2", "have-1")
    assert preference(chain[2:], 0, "need-2", "seed") == ("need-1",)
    assert preference(chain[2:], 0, "need-1", "seed") == ()
    assert preference(chain, 2, "stranger", "swarm") == ()


# ---- what a host is told


def membership(**changes: Any) -> Membership:
    pinned = Pinned(
        "acme/tiny", "master", "c" * 40, short_rows([ROW]), ("gpu-1", "gpu-2"), 1, ("*.safetensors",), (), ("w",)
    )
    whole = Membership("gpu-2", "0" * 64, {"gpu-1": "10.0.0.1", "gpu-2": "10.0.0.2"}, (pinned,), bind="10.0.0.2")
    return dataclasses.replace(whole, **changes)


def test_membership_survives_its_way_to_the_host() -> None:
    told = membership()
    assert read_membership(json.loads(json.dumps(told.as_dict()))) == told
    assert "Revision" not in told.as_dict()["artifacts"][0]["rows"][0], "what nobody reads is not sent"


def test_two_listings_of_the_same_files_have_the_same_contents() -> None:
    other = {"Name": ROW["Path"], "Type": "blob", "Size": ROW["Size"], "Sha256": " " + str(ROW["Sha256"]).lower()}
    assert contents([ROW, {"Path": "a", "Type": "tree"}]) == contents([other])
    assert contents([ROW]) != contents([{**ROW, "Size": 1}])
    assert contents([ROW]) != contents([ROW, {**ROW, "Path": "x"}])


def test_secret_is_not_shown() -> None:
    assert "0" * 64 not in repr(membership())
    broken = membership().as_dict() | {"port": "x" + "0" * 64}
    with pytest.raises(FleetError) as caught:
        read_membership({key: value for key, value in broken.items() if key != "mode"})
    assert caught.value.code == "swarm.bad_membership"
    assert "'mode'" in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"secret": "short"},
        {"mode": "flood"},
        {"port": 0},
        {"piece": 1},
        {"piece": 2**40},
        {"name": "stranger"},
        {"addresses": {"gpu-2": "10.0.0.2"}},
        {"addresses": []},
        {"artifacts": [{"model": "x"}]},
        {"artifacts": None},
    ],
    ids=str,
)
def test_membership_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(FleetError, match="cannot be used") as caught:
        read_membership(membership().as_dict() | change)
    assert caught.value.code == "swarm.bad_membership"


def test_chain_that_names_a_host_twice_is_refused() -> None:
    document = membership().as_dict()
    document["artifacts"][0]["chain"] = ["gpu-1", "gpu-1"]
    with pytest.raises(FleetError, match="chain"):
        read_membership(document)


@pytest.mark.parametrize("document", [None, [], "x", 7])
def test_anything_else_is_refused(document: object) -> None:
    with pytest.raises(FleetError):
        read_membership(document)


@pytest.mark.parametrize(
    ("name", "mode", "serves"),
    [("gpu-1", "swarm", True), ("gpu-2", "swarm", False), ("gpu-1", "seed", True)],
)
def test_last_of_the_chain_has_nobody_to_serve(name: str, mode: str, serves: bool) -> None:
    assert membership(name=name, mode=mode).serves is serves


def test_only_files_that_can_be_known_by_content_are_entries() -> None:
    rows = [ROW, {**ROW, "Sha256": ""}, {**ROW, "Size": -1}, {**ROW, "Size": True}, {**ROW, "Type": "tree"}]
    found = Pinned("m/m", "master", None, short_rows(rows)).entries
    assert [(entry.path, entry.size, entry.sha256) for entry in found] == [("a/model.safetensors", 3 * MIB, "ab" * 32)]


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("10.0.0.1", "10.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("FE80::1%eth0", "fe80::1"),
        ("2001:db8:0::1", "2001:db8::1"),
    ],
)
def test_addresses_have_one_spelling(text: str, normal: str) -> None:
    assert normal_address(text) == normal
