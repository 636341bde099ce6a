# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_pins
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import assign_gpus
from pin_case import L40S, assign, card, cards, codes, letters, links, only, record, renumber, services, uuid

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
    for repin in (["a"], True, "a", "b, a", "true", "True", '["b", "a"]', "['a']", 1, {"a": True}):
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
    assert _gpu_pins.recorded_pins(on_the_cpu) == {}


@pytest.mark.parametrize(
    "facts", [{}, {"record": None, "applied": None}, {"record": []}, {"applied": {"services": []}},
              {"applied": {"services": {"a": None, "b": {"gpus": "x"}, "c": {"gpus": [{}, None, {"uuid": 1}]}}}}]
)  # fmt: skip
def test_facts_without_pins(facts: t.Any) -> None:
    assert _gpu_pins.recorded_pins(facts) == {}
    assert letters(assign(services(a=1), cards(2), facts)) == {"a": "a"}


def test_pins_may_be_plain_data() -> None:
    plain = {"a": {"gpus": [card(1)], "wish": 1}, "b": {"gpus": []}, "c": None}
    assert letters(assign_gpus(services(a=1, b=1), cards(2), None, plain)) == {"a": "b", "b": "a"}


def test_a_number_that_the_plan_chose_is_a_pin_too() -> None:
    """Left out, the model's size may have made it two; the next plan says two, and means these."""
    kept = record(services(a=None), ({"a": [card(2), card(1)]}, []))
    assert letters(assign(services(a=2), cards(4), kept)) == {"a": "cb"}
    assert codes(assign(services(a=2), cards(2), kept)) == [("plan.gpu_changed", "a")]
    assert letters(assign(services(a=1), cards(4), kept)) == {"a": "b"}
    assert letters(assign(services(a=None), cards(4), kept)) == {"a": "cb"}
    assert codes(assign(services(a=None), cards(2), kept)) == [("plan.gpu_changed", "a")]
    assert letters(assign(services(a=None), cards(2), kept, repin=["a"])) == {"a": "ab"}
