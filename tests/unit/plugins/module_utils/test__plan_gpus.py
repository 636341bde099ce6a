# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which service gets which GPUs, in the words of _plan_gpus_said."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import tensor_parallel_size
from hypothesis import given, settings
from hypothesis import strategies as st
from pin_case import GIB, L40S, MIG, assign, card, letters, links, only, partitioned, record, renumber, services, uuid

# -- MIG devices


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


# -- properties

BROKEN: list[dict[str, t.Any]] = [
    {"mig": {"current": "enabled", "devices": []}},
    {"ecc": {"uncorrected_volatile": 1}},
    {"ecc": {"remapped_rows": {"failure": True}}},
]
INDEX = st.lists(st.integers(0, 5), min_size=1, max_size=3, unique=True)
CONSTRAINED = st.fixed_dictionaries(
    {"count": st.integers(1, 3)},
    optional={"link": st.sampled_from(["any", "nvlink", "pcie"]), "min_memory_gib": st.sampled_from([24, 40, 80])},
)
GPUS = st.one_of(
    st.none(), st.integers(0, 3), INDEX, CONSTRAINED, st.sampled_from("abcdef").map(lambda one: [uuid(one)])
)
FLEET = st.dictionaries(st.sampled_from(["s1", "s2", "s3", "s4"]), GPUS, max_size=4)
KINDS: list[dict[str, t.Any]] = [
    {},
    {},
    {"memory_total_bytes": 24 * GIB},
    {"name": L40S},
    {"memory_total_bytes": None},
    *BROKEN,
]
HOST = st.lists(st.sampled_from(KINDS), min_size=1, max_size=6).map(
    lambda kinds: [card(index, **kind) for index, kind in enumerate(kinds)]
)
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
