# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_shares
from pin_case import MIG, assign, cards, codes, letters, only, partitioned, record, services, shared, uuid


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


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"gpu-memory-utilization": 0.4}, 0.4),
        ({"gpu-memory-util": "0.4"}, 0.4),
        ({"gpu-memory-utilization": "0.4", "max-num-seqs": 8}, 0.4),
        ({"gpu-memory-utilization": 40}, None),
        ({"gpu-memory-utilization": True}, None),
        ({"gpu-memory-utilization": [0.4]}, None),
        ({"kv-cache-memory-bytes": "8G"}, None),
        ({}, None),
    ],
)
def test_what_flags_state(arguments: dict[str, t.Any], expected: float | None) -> None:
    assert _gpu_shares.stated_share(arguments) == expected
