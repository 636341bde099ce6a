# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The choice of cards; most of it through assign_gpus, as a plan comes to it."""

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_cards
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import GpuWish
from pin_case import GIB, L40S, assign, card, cards, codes, letters, links, only, services, uuid

# -- counts and what joins the cards


@pytest.mark.parametrize(
    ("wanted", "topology", "expected"),
    [
        ({"a": 2}, None, {"a": "ab"}),
        ({"a": 1, "b": 2}, None, {"a": "a", "b": "bc"}),
        ({"a": 2}, [], {"a": "ab"}),
        # Whole islands, and the smallest that is large enough.
        ({"a": 2}, links(4, [1, 2]), {"a": "bc"}),
        ({"a": 1}, links(4, [0, 1]), {"a": "c"}),
        ({"a": 1, "b": 2}, links(4, [0, 1]), {"a": "c", "b": "ab"}),
        ({"a": 2}, links(4, [0, 1, 2]), {"a": "ab"}),
        ({"a": 2, "b": 2}, links(4, [0, 3], [1, 2]), {"a": "ad", "b": "bc"}),
        ({"a": 1, "b": 1, "c": 2}, links(4, [0, 3], [1, 2]), {"a": "a", "b": "d", "c": "bc"}),
        # NVSwitch: all are joined.
        ({"a": 2, "b": 2}, links(4, [0, 1, 2, 3]), {"a": "ab", "b": "cd"}),
        ({"a": 3}, links(4, [0, 1], [2, 3]), {"a": "abc"}),
        # A chain is no set in which every two are joined.
        ({"a": {"count": 2, "link": "nvlink"}}, links(4, [0, 1], [1, 2]), {"a": "ab"}),
    ],
)  # fmt: skip
def test_counts(wanted: dict[str, t.Any], topology: t.Any, expected: dict[str, str]) -> None:
    result = assign(services(**wanted), cards(4), topology=topology)
    assert result[1] == []
    assert letters(result) == expected


def test_one_numa_node_is_preferred() -> None:
    host = [card(index, numa_node=int(index > 0)) for index in range(4)]
    assert letters(assign(services(a=2), host, topology=links(4))) == {"a": "bc"}
    assert letters(assign(services(a=4), host)) == {"a": "abcd"}
    assert letters(assign(services(a=2), [{**one, "numa_node": None} for one in host])) == {"a": "ab"}


def test_one_model_is_preferred_and_a_mixture_is_told() -> None:
    host = [card(0, name=L40S), card(1), card(2)]
    assert letters(assign(services(a=2), host)) == {"a": "bc"}
    mixed = assign(services(a=3), host)
    assert letters(mixed) == {"a": "abc"}
    finding = only(mixed)
    assert (finding.code, finding.severity, finding.service) == ("plan.gpu_mixed", "warning", "a")
    assert finding.seen.endswith("0 NVIDIA L40S, 1 NVIDIA H100 80GB HBM3, 2 NVIDIA H100 80GB HBM3")
    assert codes(assign(services(a=[0, 1]), host)) == [("plan.gpu_mixed", "a")]


def test_a_list_that_does_not_go_in_order_goes_in_another() -> None:
    """The first service would take the pair that the second one needs."""
    wanted = services(a={"count": 1, "min_memory_gib": 40}, b={"count": 2, "link": "nvlink"})
    host = [card(0), card(1), card(2, memory_total_bytes=24 * GIB)]
    result = assign(wanted, host, topology=links(3, [0, 2]))
    assert (letters(result), result[1]) == ({"a": "b", "b": "ac"}, [])
    small = [card(0), card(1, memory_total_bytes=24 * GIB)]
    result = assign(services(a=1, b={"min_memory_gib": 40}), small)
    assert (letters(result), result[1]) == ({"a": "b", "b": "a"}, [])


# -- what the cards must be like


@pytest.mark.parametrize(
    ("wish", "expected"),
    [
        ({"min_memory_gib": 48}, "b"),
        ({"name": "h100|h200"}, "b"),
        ({"name": "l40s$"}, "a"),
        ({"min_compute_capability": 8.9}, "a"),
        ({"min_compute_capability": "9.0"}, "b"),
        ({"count": 2, "min_compute_capability": 8.9, "name": "NVIDIA"}, "ab"),
    ],
)
def test_constraints(wish: dict[str, t.Any], expected: str) -> None:
    host = [
        card(0, name=L40S, compute_capability="8.9", memory_total_bytes=45 * GIB),
        card(1, compute_capability="10.0"),
    ]
    assert letters(assign(services(a=wish), host)) == {"a": expected}


def test_what_keeps_a_wish_from_being_met() -> None:
    host = [
        card(0), card(1, memory_total_bytes=85520809984), card(2, name=L40S, memory_total_bytes=48 * GIB),
        card(3, mig={"current": "enabled"}), card(4, ecc={"uncorrected_volatile": 2}),
        card(5, compute_capability="8.0"),
    ]  # fmt: skip
    wish = {"count": 2, "min_memory_gib": 80, "name": "H100", "min_compute_capability": 9.0, "link": "nvlink"}
    finding = only(assign(services(a=[0], b=wish), host))
    assert (finding.code, finding.severity, finding.service) == ("plan.gpu_short", "error", "b")
    assert finding.seen == (
        "0 of 6 GPUs are free and fit (held: 0 by a; left out: 1 (79.6 GiB), 2 (48 GiB), 3 (MIG is on), "
        "4 (2 uncorrected memory errors since the driver was loaded), 5 (compute capability 8.0))"
    )
    assert finding.expected == (
        "2 free GPUs of 80 GiB or more of compute capability 9.0 or higher named like 'H100' joined by NVLink"
    )


@pytest.mark.parametrize(
    ("wish", "topology", "code", "seen"),
    [
        ({"count": 2, "link": "nvlink"}, None, "plan.gpu_link_unknown", "what joins GPUs 0, 1, 2 could not be told"),
        ({"count": 2, "link": "pcie"}, [{"gpus": [0, 1]}], "plan.gpu_link_unknown", "what joins GPUs 0, 1, 2"),
        ({"count": 2, "link": "nvlink"}, links(3), "plan.gpu_unlinked",
         "no 2 of the 3 free GPUs are joined by NVLink (0-1 sys, 0-2 sys, 1-2 sys)"),
        ({"count": 3, "link": "nvlink"}, links(3, [0, 1], [1, 2], other="pix"), "plan.gpu_unlinked",
         "no 3 of the 3 free GPUs are joined by NVLink (0-1 nvlink, 0-2 pix, 1-2 nvlink)"),
        ({"count": 2, "link": "pcie"}, links(3), "plan.gpu_unlinked",
         "no 2 of the 3 free GPUs are joined by PCI Express within one socket"),
    ],
)  # fmt: skip
def test_links_that_are_not_there(wish: dict[str, t.Any], topology: t.Any, code: str, seen: str) -> None:
    finding = only(assign(services(a=wish), cards(3), topology=topology))
    assert (finding.code, finding.severity) == (code, "error")
    assert finding.seen.startswith(seen)
    assert "nvidia-smi topo -m" in finding.remedy


@pytest.mark.parametrize("topology", [None, "x", [None, {"gpus": [0]}, {"gpus": ["0", 1]}, {"gpus": [True, 1]}, {}]])
def test_links_that_nobody_asks_for_may_be_unknown(topology: t.Any) -> None:
    for wish in (3, {"count": 3, "min_memory_gib": 40}, {"link": "nvlink"}):
        assert assign(services(a=wish), cards(3), topology=topology)[1] == []


def test_pcie_within_a_socket_or_nvlink() -> None:
    topology = links(4, [0, 3], other="sys")
    topology[-1] = {"gpus": [2, 3], "link": "pxb", "nvlinks": 0}
    assert letters(assign(services(a={"count": 2, "link": "pcie"}), cards(4), topology=topology)) == {"a": "ad"}
    assert letters(assign(services(a=[0], b={"count": 2, "link": "pcie"}), cards(4), topology=topology))["b"] == "cd"


def test_a_card_of_which_little_is_known_comes_last_and_is_told() -> None:
    host = [card(0, memory_total_bytes=None), card(1), card(2, name=None, compute_capability="?")]
    assert codes(assign(services(a={"min_memory_gib": 40}), host)) == []
    result = assign(services(a={"count": 2, "min_memory_gib": 40, "name": "H100"}), host)
    assert (letters(result), codes(result)) == ({"a": "ab"}, [("plan.gpu_unknown", "a")])
    finding = only(result)
    assert (finding.severity, finding.seen) == ("warning", "whether GPU 0 is what gpus: asks for could not be told")
    assert codes(assign(services(a={"count": 3, "min_compute_capability": 8.0}), host)) == [("plan.gpu_unknown", "a")]


# -- cards that no count gets

FAULTS = [
    {"mig": {"current": "enabled", "devices": []}},
    {"ecc": {"uncorrected_volatile": 1}},
    {"ecc": {"remapped_rows": {"failure": True}}},
    {"uuid": None},
]


@pytest.mark.parametrize("fault", FAULTS)
def test_cards_that_no_count_gets(fault: dict[str, t.Any]) -> None:
    host = [card(0, **fault), card(1)]
    assert letters(assign(services(a=1), host)) == {"a": "b"}
    assert codes(assign(services(a=2), host)) == [("plan.gpu_short", "a")]


def test_a_broken_card_that_is_named_is_given_and_told() -> None:
    result = assign(services(a=[0]), [card(0, ecc={"remapped_rows": {"failure": True}})])
    assert letters(result) == {"a": "a"}
    finding = only(result)
    assert (finding.code, finding.severity) == ("plan.gpu_broken", "warning")
    assert finding.seen == f"GPU 0 ({uuid('a')}) has a memory row that could not be remapped"


def test_a_card_that_does_not_answer() -> None:
    finding = only(assign(services(a=[0]), [card(0, uuid=None), card(1)]))
    assert (finding.code, finding.seen) == ("plan.gpu_missing", "GPU 0 does not answer")
    assert "dmesg" in finding.remedy


@pytest.mark.parametrize(
    "host", [[None, "x", {}, {"index": "0", "uuid": "GPU-1"}, {"index": True, "uuid": "GPU-1"}], "damaged"]
)
def test_facts_of_other_types_are_no_cards(host: t.Any) -> None:
    assert codes(assign(services(a=1), host)) == [("plan.gpu_short", "a")]
    strange = card(0, mig=[], ecc="x", name=7, memory_total_bytes="80", compute_capability=[], numa_node="x")
    assert letters(assign(services(a=1), [strange])) == {"a": "a"}
    assert codes(assign(services(a={"min_memory_gib": 1, "name": "x"}), [strange])) == [("plan.gpu_unknown", "a")]


# -- alone


def test_a_host_with_many_cards_is_searched_within_bounds() -> None:
    """More cards than a host has, joined so that a search for many of them goes on and on."""
    host = [card(index, "a", uuid=f"GPU-{index}") for index in range(64)]
    topology = [
        {"gpus": [one, two], "link": "nv2" if (one + two) % 3 else "sys"} for one in range(64) for two in range(one)
    ]
    joined = _gpu_cards.Links(host, topology)
    assert _gpu_cards.choose(GpuWish(40, link="nvlink"), host, joined) == []
    chosen = _gpu_cards.choose(GpuWish(2, link="nvlink"), host, joined)
    assert [one["index"] for one in chosen] == [0, 1]
    assert len(_gpu_cards.choose(GpuWish(64), host, joined)) == 64


def test_an_island_goes_over_other_cards() -> None:
    host = cards(4)
    joined = _gpu_cards.Links(host, links(4, [0, 1], [1, 2]))
    assert [one["index"] for one in joined.island(host[0], host)] == [0, 1, 2]
    assert [one["index"] for one in joined.island(host[3], host)] == [3]
    assert joined.between(host[0], host[2]) == "sys"
