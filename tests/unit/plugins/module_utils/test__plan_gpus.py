# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import (
    assign_gpus,
    recorded_pins,
    tensor_parallel_size,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from pin_case import GIB, L40S, assign, card, cards, codes, letters, links, only, record, services, shared, uuid

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
        "4 (2 uncorrected memory error(s) since the driver was loaded), 5 (compute capability 8.0))"
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


# -- MIG devices

MIG = "MIG-11111111-0000-4000-8000-000000000000"


def partitioned() -> list[dict[str, t.Any]]:
    devices = [
        {"uuid": MIG, "name": "3g.40gb", "memory_total_bytes": 40 * GIB},
        {"uuid": MIG.replace("1", "2"), "name": None, "memory_total_bytes": None},
        {"uuid": None},
        None,
    ]
    return [card(0, mig={"current": "enabled", "devices": devices}), card(1)]


def test_a_mig_device_in_a_container() -> None:
    wanted = services(a=[MIG], b=1)
    result = assign(wanted, partitioned(), contained=True)
    assert result[1] == []
    assert result[0]["a"] == [
        {"index": 0, "uuid": MIG, "name": "NVIDIA H100 80GB HBM3 (3g.40gb)", "pci_bus_id": "00000000:10:00.0",
         "memory_total_bytes": 40 * GIB}
    ]  # fmt: skip
    assert assign(wanted, partitioned(), record(wanted, result), contained=True) == result


@pytest.mark.parametrize(
    ("wanted", "contained", "code", "expected"),
    [
        ([MIG], False, "plan.gpu_mig", "whole GPUs for a service without a container"),
        ([MIG, MIG.replace("1", "2")], True, "plan.gpu_mig", "one MIG device alone"),
        ([MIG, 1], True, "plan.gpu_mig", "one MIG device alone"),
        ([MIG.replace("1", "3")], True, "plan.gpu_missing", f"one of {MIG}, {MIG.replace('1', '2')}"),
        ([0], True, "plan.gpu_mig", "whole GPUs for indices and counts"),
    ],
)
def test_mig_devices_that_are_not_given(wanted: t.Any, contained: bool, code: str, expected: str) -> None:
    result = assign(services(a=wanted), partitioned(), contained=contained)
    finding = only(result)
    assert (finding.code, letters(result)) == (code, {"a": ""})
    assert finding.expected.startswith(expected)


# -- pins


def renumber(host: t.Sequence[dict[str, t.Any]], order: t.Sequence[int]) -> list[dict[str, t.Any]]:
    """The same cards in the same slots under other indices."""
    return [{**host[old], "index": new} for new, old in enumerate(order)]


WISHES: tuple[t.Any, ...] = (1, 2, None, [0], [1, 0], [uuid("c")], {"count": 2, "min_memory_gib": 40})


@pytest.mark.parametrize("wish", WISHES)
def test_a_service_keeps_its_cards_under_other_indices(wish: t.Any) -> None:
    wanted = services(a=wish)
    first = assign(wanted, cards(4))
    again = assign(wanted, renumber(cards(4), [3, 2, 1, 0]), record(wanted, first))
    assert letters(again) == letters(first)
    assert [one["index"] for one in again[0]["a"]] == [3 - one["index"] for one in first[0]["a"]]
    assert errors(again[1]) == []


def test_what_indices_mean_is_said() -> None:
    wanted = services(a=[0, 2])
    first = assign(wanted, cards(3))
    finding = only(assign(wanted, renumber(cards(3), [2, 1, 0]), record(wanted, first)))
    assert (finding.code, finding.severity) == ("plan.gpu_renumbered", "info")
    assert finding.seen == (
        f"the indices of GPUs changed since a was deployed: 0 is {uuid('a')}, whose index is 2 now, "
        f"2 is {uuid('c')}, whose index is 0 now"
    )
    taken_anew = assign(wanted, renumber(cards(3), [2, 1, 0]), record(wanted, first), repin=["a"])
    assert (letters(taken_anew), taken_anew[1]) == ({"a": "ca"}, [])


def test_a_card_that_was_replaced_is_refused() -> None:
    wanted = services(a=[0, 1], b=[2])
    kept = record(wanted, assign(wanted, cards(3)))
    host = [card(0), card(1, "f", pci_bus_id="00000000:11:00.0", name=L40S), card(2)]
    result = assign(wanted, host, kept)
    finding = only(result)
    assert (finding.code, finding.severity, finding.service) == ("plan.gpu_changed", "error", "a")
    assert finding.seen == (
        f"slot 00000000:11:00.0 held {uuid('b')} (NVIDIA H100 80GB HBM3), and holds {uuid('f')} (NVIDIA L40S) now"
    )
    assert finding.expected == "the 2 cards that a was deployed on"
    assert finding.remedy == "put the card back, or accept the cards of now with vllm_repin: [a]"
    assert letters(result) == {"a": "", "b": "c"}
    for repin in (["a"], True, "a", "b, a", "true"):
        accepted = assign(wanted, host, kept, repin=repin)
        assert letters(accepted) == {"a": "af", "b": "c"}
        assert codes(accepted) == [("plan.gpu_mixed", "a")]
        assert letters(assign(wanted, host, record(wanted, accepted))) == letters(accepted)
    for other in (["b"], False, "b", "", None):
        assert [finding.code for finding in errors(assign(wanted, host, kept, repin=other)[1])] == ["plan.gpu_changed"]


def test_a_count_whose_card_was_replaced() -> None:
    wanted = services(a=1, b=1)
    kept = record(wanted, assign(wanted, cards(2)))
    host = [card(0, "f", pci_bus_id="00000000:10:00.0"), card(1)]
    assert codes(assign(wanted, host, kept)) == [("plan.gpu_changed", "a")]
    assert letters(assign(wanted, host, kept, repin=["a"])) == {"a": "f", "b": "b"}


@pytest.mark.parametrize(
    ("host", "seen"),
    [
        ([card(0, "b")], "slot 00000000:10:00.0 held {a} (NVIDIA H100 80GB HBM3), and is empty now"),
        ([card(0, uuid=None), card(1)],
         "slot 00000000:10:00.0 held {a} (NVIDIA H100 80GB HBM3), and holds a card that does not answer now"),
    ],
)  # fmt: skip
def test_a_card_that_is_gone(host: t.Any, seen: str) -> None:
    wanted = services(a=1)
    kept = record(wanted, assign(wanted, cards(2)))
    assert only(assign(wanted, host, kept)).seen == seen.format(a=uuid("a"))


def test_a_uuid_that_is_gone_is_put_right_where_it_is_written() -> None:
    wanted = services(a=[uuid("a"), 1])
    kept = record(wanted, assign(wanted, cards(2)))
    gone = only(assign(wanted, [card(0, "b")], kept))
    assert gone.remedy == f"put the card back, or name other cards than {uuid('a')} in gpus: of a"
    both = only(assign(wanted, [card(0, "f")], kept))
    assert both.remedy.endswith(f"name other cards than {uuid('a')} in gpus: of a, with vllm_repin: [a]")


def test_a_card_in_another_slot_is_the_same_card() -> None:
    """Bus numbers change with a BIOS, and with a card for something else."""
    wanted = services(a=[0])
    kept = record(wanted, assign(wanted, cards(2)))
    host = [card(0, pci_bus_id="00000000:11:00.0"), card(1, pci_bus_id="00000000:10:00.0")]
    result = assign(wanted, host, kept)
    assert (letters(result), result[1]) == ({"a": "a"}, [])
    assert result[0]["a"][0]["pci_bus_id"] == "00000000:11:00.0"


def test_a_wish_that_changed_is_resolved_anew_near_what_it_has() -> None:
    before = services(a=1, b=1, c=1)
    kept = record(before, (dict(zip("abc", [[card(2)], [card(0)], [card(3)]], strict=True)), []))
    now = services(c=2, a=1, b=1)
    assert letters(assign(now, cards(5), kept)) == {"a": "c", "b": "a", "c": "bd"}
    smaller = record(services(a=4), ({"a": cards(4)}, []))
    assert letters(assign(services(a=2), cards(5), smaller)) == {"a": "ab"}
    assert letters(assign(services(a=[4]), cards(5), smaller)) == {"a": "e"}
    # NVLink is worth a move: its ranks are made anew anyway.
    assert letters(assign(services(a=2), cards(4), record(services(a=1), ({"a": [card(0)]}, [])),
                          topology=links(4, [2, 3]))) == {"a": "cd"}  # fmt: skip


def test_a_new_service_takes_no_card_of_another_one() -> None:
    before = services(old=2)
    kept = record(before, assign(before, cards(4)))
    assert letters(assign(services(new=1, old=2), cards(4), kept)) == {"new": "c", "old": "ab"}
    # Although its wish changed.
    assert letters(assign(services(new=1, old=1), cards(4), kept)) == {"new": "b", "old": "a"}
    # Although it is refused: its cards may be running it.
    host = [card(1), card(2), card(3, "f", pci_bus_id="00000000:10:00.0")]
    result = assign(services(new=3, old=2), host, kept)
    assert sorted(codes(result)) == [("plan.gpu_changed", "old"), ("plan.gpu_short", "new")]
    assert "held: 1 by old" in next(finding.seen for finding in result[1] if finding.code == "plan.gpu_short")
    # One that is not wanted any more has none.
    assert letters(assign(services(new=1), cards(4), kept)) == {"new": "a"}


def test_an_index_of_a_card_that_a_count_has() -> None:
    before = services(old=1)
    kept = record(before, assign(before, cards(2)))
    wanted = services(old=1, new=[0])
    finding = only(assign(wanted, cards(2), kept))
    assert (finding.code, finding.service) == ("plan.gpu_shared", "new")
    assert letters(assign(wanted, cards(2), kept, repin=["old"])) == {"old": "b", "new": "a"}


def test_services_that_swap_their_cards() -> None:
    before = services(a=[0], b=[1])
    kept = record(before, assign(before, cards(2)))
    result = assign(services(a=[1], b=[0]), cards(2), kept)
    assert (letters(result), result[1]) == ({"a": "b", "b": "a"}, [])


def test_a_count_stays_on_a_card_that_broke_until_it_is_told_to_move() -> None:
    wanted = services(a=1)
    kept = record(wanted, assign(wanted, cards(2)))
    host = [card(0, ecc={"uncorrected_volatile": 3}), card(1)]
    result = assign(wanted, host, kept)
    assert (letters(result), codes(result)) == ({"a": "a"}, [("plan.gpu_broken", "a")])
    assert "vllm_repin: [a]" in only(result).remedy
    assert letters(assign(wanted, host, kept, repin=True)) == {"a": "b"}


def test_cards_that_are_not_what_a_wish_asks_for_any_more() -> None:
    wanted = services(a={"count": 2, "link": "nvlink"})
    kept = record(wanted, assign(wanted, cards(4), topology=links(4, [0, 1], [2, 3])))
    result = assign(wanted, cards(4), kept, topology=links(4, [2, 3]))
    assert letters(result) == {"a": "cd"}
    finding = only(result)
    assert (finding.code, finding.severity) == ("plan.gpu_moved", "warning")
    assert finding.seen == "GPUs 0, 1 are not joined by NVLink"
    # Not known today is no reason to move.
    assert letters(assign(wanted, cards(4), kept)) == {"a": "ab"}
    partitioned = assign(services(a=1), [card(0, mig={"current": "enabled"}), card(1)],
                         record(services(a=1), ({"a": [card(0)]}, [])))  # fmt: skip
    assert (letters(partitioned), codes(partitioned)) == ({"a": "b"}, [("plan.gpu_moved", "a")])
    named = assign(services(a=[0]), [card(0, mig={"current": "enabled"})],
                   record(services(a=[0]), ({"a": [card(0)]}, [])))  # fmt: skip
    assert (letters(named), codes(named)) == ({"a": ""}, [("plan.gpu_mig", "a")])


@pytest.mark.parametrize("wish", [[0, 1], 2, {"count": 2}, [uuid("a"), uuid("b")]])
def test_a_record_of_an_older_release_is_a_pin(wish: t.Any) -> None:
    """It has the index and no wish."""
    old = [{"index": index, "uuid": uuid("ab"[index]), "name": "NVIDIA H100"} for index in range(2)]
    kept = {"record": {"digest": "d", "services": {"x": {"gpus": old}}}}
    host = renumber(cards(3), [2, 1, 0])
    assert letters(assign(services(x=wish), host, kept)) == {"x": "ab"}
    finding = only(assign(services(x=wish), [card(1), card(2)], kept))
    assert finding.seen == f"{uuid('a')} (NVIDIA H100) is not on this host any more"
    assert letters(assign(services(x=[1]), host, kept)) == {"x": "b"}


def test_what_was_applied_last_counts_and_not_what_was_proved_before() -> None:
    """A swap that was accepted stays accepted, although the probes failed after it."""
    wanted = services(a=[0])
    proved = record(wanted, ({"a": [card(0, "f")]}, []))["applied"]
    applied = record(wanted, assign(wanted, cards(2)))["applied"]
    facts = {"record": proved, "applied": applied}
    assert letters(assign(wanted, cards(2), facts)) == {"a": "a"}
    assert codes(assign(wanted, cards(2), {"record": proved, "applied": None})) == [("plan.gpu_changed", "a")]
    on_the_cpu = {"record": proved, "applied": {"services": {"a": {"gpus": []}}}}
    assert recorded_pins(on_the_cpu) == {}


@pytest.mark.parametrize(
    "facts", [{}, {"record": None, "applied": None}, {"record": []}, {"applied": {"services": []}},
              {"applied": {"services": {"a": None, "b": {"gpus": "x"}, "c": {"gpus": [{}, None, {"uuid": 1}]}}}}]
)  # fmt: skip
def test_facts_without_pins(facts: t.Any) -> None:
    assert recorded_pins(facts) == {}
    assert letters(assign(services(a=1), cards(2), facts)) == {"a": "a"}


def test_pins_may_be_plain_data() -> None:
    plain = {"a": {"gpus": [card(1)], "wish": 1}, "b": {"gpus": []}, "c": None}
    assert letters(assign_gpus(services(a=1, b=1), cards(2), None, plain)) == {"a": "b", "b": "a"}


# -- shares


def test_two_services_on_one_card_with_stated_shares() -> None:
    wanted = services(a=shared([0, 1], 0.5), b=shared([0], 0.45), c=shared([1], args={"gpu-memory-utilization": "0.4"}))
    result = assign(wanted, cards(2))
    assert (letters(result), result[1]) == ({"a": "ab", "b": "a", "c": "b"}, [])
    assert assign(wanted, cards(2), record(wanted, result)) == result
    fleet = assign(services(a=[0], b=[0]), cards(1), flags={key: {"gpu-memory-utilization": 0.4} for key in "ab"})
    assert (letters(fleet), fleet[1]) == ({"a": "a", "b": "a"}, [])


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"a": [0], "b": [0]}, "(a, b state none)"),
        ({"a": shared([0], 0.4), "b": [0]}, "(b states none)"),
        ({"a": [0], "b": shared([0], 0.4)}, "(a states none)"),
        ({"a": shared([0], 0.4), "b": shared([0], args={"gpu-memory-utilization": "lots"})}, "(b states none)"),
        ({"a": shared([0], 0.4), "b": shared([0], args={"kv-cache-memory-bytes": "8G"})},
         "(b states none; kv-cache-memory-bytes alone is no share)"),
    ],
)  # fmt: skip
def test_a_share_that_is_not_stated(wanted: dict[str, t.Any], said: str) -> None:
    result = assign(services(**wanted), cards(2))
    finding = only(result)
    assert (finding.code, finding.severity, finding.service) == ("plan.gpu_shared", "error", "b")
    assert finding.seen == f"GPU 0 ({uuid('a')}) is already the GPU of a"
    assert finding.expected.endswith(said)
    assert "gpu_memory_utilization: (for example 0.45) on each" in finding.remedy
    assert letters(result) == {"a": "a", "b": ""}


def test_a_share_that_is_reckoned() -> None:
    wanted = services(a=shared([0], 0.4), b=shared([0], args={"kv-cache-memory-bytes": "8G"}))
    assert assign(wanted, cards(1), reckoned={"b": 0.3})[1] == []
    assert only(assign(wanted, cards(1), reckoned={"b": 0.6})).code == "plan.gpu_overcommitted"


def test_shares_that_are_too_much_together() -> None:
    wanted = services(a=shared([0, 1], 0.6), b=shared([0, 1], 0.4))
    finding = only(assign(wanted, cards(2)))
    assert (finding.code, finding.severity, finding.service) == ("plan.gpu_overcommitted", "error", "b")
    assert finding.seen == f"GPU 0 ({uuid('a')}), 1 ({uuid('b')}): a 0.6 + b 0.4 = 1 of its memory"
    assert finding.expected.startswith("at most 0.95 together")
    assert assign(services(a=shared([0], 0.55), b=shared([0], 0.4)), cards(1))[1] == []
    assert assign(services(a=shared([0], 0.99)), cards(1))[1] == [], "alone it is vLLM's business"


def test_a_share_that_is_taken_away_is_found_on_the_next_run() -> None:
    before = services(a=shared([0], 0.4), b=shared([0], 0.4))
    kept = record(before, assign(before, cards(1)))
    assert codes(assign(services(a=shared([0], 0.4), b=[0]), cards(1), kept)) == [("plan.gpu_shared", "b")]


def test_a_count_shares_with_nobody() -> None:
    assert codes(assign(services(a=shared([0], 0.4), b=shared(1, 0.4)), cards(1))) == [("plan.gpu_short", "b")]


def test_shares_of_a_mig_device() -> None:
    wanted = services(a=shared([MIG], 0.4), b=shared([MIG], 0.6))
    assert codes(assign(wanted, partitioned(), contained=True)) == [("plan.gpu_overcommitted", "b")]


# -- properties

INDEX = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
CONSTRAINED = st.fixed_dictionaries(
    {"count": st.integers(1, 3)},
    optional={"link": st.sampled_from(["any", "nvlink", "pcie"]), "min_memory_gib": st.sampled_from([24, 40, 80])},
)
GPUS = st.one_of(
    st.none(), st.integers(0, 3), INDEX, CONSTRAINED, st.sampled_from("abcdef").map(lambda one: [uuid(one)])
)
FLEET = st.dictionaries(st.sampled_from(["s1", "s2", "s3", "s4"]), GPUS, max_size=4)
HOST = st.lists(
    st.sampled_from(
        [{}, {}, {"memory_total_bytes": 24 * GIB}, {"name": L40S}, {"memory_total_bytes": None}, *FAULTS[:3]]
    ),
    min_size=1, max_size=6,
).map(lambda kinds: [card(index, **kind) for index, kind in enumerate(kinds)])  # fmt: skip
TOPOLOGY = st.one_of(st.none(), st.sets(st.integers(0, 5)).map(lambda island: links(6, list(island))))


@given(FLEET, HOST, TOPOLOGY)
@settings(max_examples=300, deadline=None)
def test_no_card_is_given_twice_and_all_or_nothing(fleet: dict[str, t.Any], host: t.Any, topology: t.Any) -> None:
    wanted = services(**copy.deepcopy(fleet))
    result = assign(wanted, host, topology=topology)
    given_cards = [one["uuid"] for mine in result[0].values() for one in mine]
    assert len(given_cards) == len(set(given_cards))
    blamed = {finding.service for finding in errors(result[1])}
    for service in wanted:
        assert bool(result[0][service.name]) != (service.name in blamed)
    assert assign(wanted, list(reversed(host)), topology=topology) == result, "the order of the facts says nothing"
    assert json.dumps(result[0])


@given(FLEET, HOST, TOPOLOGY, st.randoms(use_true_random=False))
@settings(max_examples=300, deadline=None)
def test_a_second_plan_equals_the_first(fleet: dict[str, t.Any], host: t.Any, topology: t.Any, random: t.Any) -> None:
    """Whatever the indices are by then; what has an error was not deployed."""
    wanted = services(**copy.deepcopy(fleet))
    first = assign(wanted, host, topology=topology)
    if errors(first[1]):
        return
    kept = record(wanted, first)
    assert assign(wanted, host, kept, topology=topology)[0] == first[0]
    order = list(range(len(host)))
    random.shuffle(order)
    new = {old: index for index, old in enumerate(order)}
    moved = [
        {**entry, "gpus": [new.get(index, index) for index in entry["gpus"]]} for entry in topology or []
    ] if topology is not None else None  # fmt: skip
    again = assign(wanted, renumber(host, order), kept, topology=moved)
    assert letters(again) == letters(first)
    assert errors(again[1]) == []


@given(FLEET, FLEET, HOST)
@settings(max_examples=200, deadline=None)
def test_counts_leave_alone_what_was_deployed(before: dict[str, t.Any], now: dict[str, t.Any], host: t.Any) -> None:
    wanted = services(**copy.deepcopy(before))
    first = assign(wanted, host)
    if errors(first[1]):
        return
    same = {
        name: wish for name, wish in now.items() if name not in before and isinstance(wish, (int, dict, type(None)))
    }
    together = services(**copy.deepcopy({**same, **before}))
    again = assign(together, host, record(wanted, first))
    assert {name: again[0][name] for name in before} == first[0]


# -- tensor parallel


@pytest.mark.parametrize(
    ("gpus", "size", "args", "expected", "seen"),
    [
        (4, None, {}, 4, ""),
        (4, None, {"pipeline-parallel-size": 2, "data-parallel-size": 2}, 1, ""),
        (2, None, {"data-parallel-size": 8, "data-parallel-size-local": 2}, 1, ""),
        (8, None, {"nnodes": 2, "pipeline-parallel-size": 2}, 8, ""),
        (8, 8, {"nnodes": 2}, 8, "tensor parallel 8 x pipeline and data parallel 1 on 8 GPUs x 2 hosts"),
        (4, None, {"prefill-context-parallel-size": 2}, 2, ""),
        (3, 2, {"prefill-context-parallel-size": 2}, 2,
         "tensor parallel 2 x pipeline, prefill context and data parallel 2 on 3 GPUs"),
        (4, None, {"decode-context-parallel-size": 2}, 4, ""),
        (4, None, {"decode-context-parallel-size": 3}, 4, "decode context parallel 3 in tensor parallel 4"),
        (2, 1, {}, 1, "tensor parallel 1 x pipeline and data parallel 1 on 2 GPUs"),
        (0, 2, {}, 2, ""),
    ],
)  # fmt: skip
def test_tensor_parallel_size(gpus: int, size: int | None, args: dict[str, t.Any], expected: int, seen: str) -> None:
    (service,) = services(a={"service": True, "tensor_parallel_size": size})
    chosen, findings = tensor_parallel_size(service, gpus, "cuda", args)
    assert (chosen, [finding.seen for finding in findings]) == (expected, [seen] if seen else [])
    assert {finding.code for finding in findings} <= {"plan.parallelism"}
