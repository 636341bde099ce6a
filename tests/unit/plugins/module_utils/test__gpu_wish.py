# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _service_spec as spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import (
    GpuWish,
    as_wish,
    parse_gpus,
    same_wish,
    wish_data,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import number
from hypothesis import given
from hypothesis import strategies as st

UUID = "GPU-a0000009-0000-4000-8000-000000000001"
KEYS = "keys among count, link, min_compute_capability, min_memory_gib, name under gpus"


def refused(**keys: t.Any) -> tuple[str, str, str]:
    service, findings = spec.parse_service({"name": "chat", "model": "acme/tiny", **keys})
    assert service is None
    (finding,) = findings
    return finding.code, finding.expected, finding.remedy


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"count": 2}, GpuWish(2)),
        ({"count": "2", "min_memory_gib": "40"}, GpuWish(2, 40.0)),
        ({"min_memory_gib": 39.5}, GpuWish(1, 39.5)),
        ({"count": 2, "link": "nvlink", "name": "H100|H200"}, GpuWish(2, link="nvlink", name="H100|H200")),
        ({"min_compute_capability": 8.9}, GpuWish(min_compute_capability=8.9)),
        ({"min_compute_capability": 9}, GpuWish(min_compute_capability=9.0)),
        ({"min_compute_capability": "10.0"}, GpuWish(min_compute_capability=10.0)),
        ({"count": 2, "link": None, "name": ""}, GpuWish(2)),
    ],
)
def test_constraints(value: dict[str, t.Any], expected: GpuWish) -> None:
    assert parse_gpus(value) == expected


@pytest.mark.parametrize(
    ("value", "expected", "remedy"),
    [
        ({"min_memory": 40}, KEYS, "write min_memory_gib: instead of min_memory:"),
        ({"cuont": 2}, KEYS, "write count: instead of cuont:"),
        ({"colour": "green"}, KEYS, "delete colour:"),
        ({1: 2}, KEYS, "delete 1:"),
        ({"count": 0}, "a whole number from 1 to 256 for count", "correct gpus: in vllm_services"),
        ({"count": True}, "a whole number from 1 to 256 for count", "correct gpus: in vllm_services"),
        ({"min_memory_gib": 0}, "a number of GiB above 0, such as 40 for min_memory_gib", ""),
        ({"min_memory_gib": "40G"}, "a number of GiB above 0, such as 40 for min_memory_gib", ""),
        ({"link": "nvlnk"}, "one of any, nvlink, pcie for link", "write link: nvlink"),
        ({"link": ["nvlink"]}, "one of any, nvlink, pcie for link", ""),
        ({"name": "H100("}, "a regular expression such as 'H100|H200' for name", ""),
        ({"name": 100}, "a regular expression such as 'H100|H200' for name", ""),
        ({"min_compute_capability": "sm_89"}, "a compute capability such as 8.9 for min_compute_capability", ""),
        ({"min_compute_capability": True}, "a compute capability such as 8.9 for min_compute_capability", ""),
    ],
)
def test_constraints_that_are_none(value: dict[t.Any, t.Any], expected: str, remedy: str) -> None:
    code, said, cure = refused(gpus=value)
    assert (code, said) == ("service.bad_value", expected)
    assert cure == (remedy or cure)


@pytest.mark.parametrize("pasted", ["GPU-5c2d...", "MIG-9f3e...", "gpu-a0000009-0000-4000-8000-000000000001", "GPU-"])
def test_a_uuid_that_is_not_whole(pasted: str) -> None:
    code, expected, remedy = refused(gpus=[0, pasted])
    assert (code, expected) == ("service.bad_value", "whole UUIDs as 'nvidia-smi -L' prints them")
    assert remedy == f"write the whole UUID instead of {pasted}; GPU- and MIG- are upper-case, and no dots"


def test_anything_else_is_told_of_uuids_too() -> None:
    assert "whole UUIDs as 'nvidia-smi -L' prints them" in refused(gpus=["first"])[1]


def test_an_empty_mapping_asks_for_nothing() -> None:
    assert refused(gpus={})[2] == "write gpus: {count: 1}, or leave gpus: out"


@pytest.mark.parametrize(
    "value", ["auto", 0, 2, [0, UUID], {"count": 2, "link": "nvlink"}, {"count": 1, "name": "L40S"}]
)
def test_a_wish_as_data_is_what_was_written(value: t.Any) -> None:
    wish = None if value == "auto" else parse_gpus(value)
    assert json.loads(json.dumps(wish_data(wish))) == ("auto" if value is None else value)
    assert same_wish(wish_data(wish), wish)


@pytest.mark.parametrize(
    ("kept", "now", "same"),
    [
        (None, 1, True),
        (1, None, True),
        ({"count": 2}, 2, True),
        ({"count": 2, "link": "any"}, 2, True),
        (2, 3, False),
        ([0, 1], [0, 1], True),
        ([0, 1], [1, 0], False),
        ([0], 1, False),
        (1, [0], False),
        ({"count": 2, "link": "nvlink"}, 2, False),
        ("damaged", 2, False),
        ({"damaged": 1}, 2, False),
        ([["x"]], [0], False),
    ],
)
def test_the_same_wish(kept: t.Any, now: t.Any, same: bool) -> None:
    assert same_wish(kept, None if now is None else parse_gpus(now)) is same


@given(st.integers(1, 256), st.sampled_from(["any", "nvlink", "pcie"]), st.one_of(st.none(), st.floats(0.5, 1000)))
def test_a_wish_survives_the_record(count: int, link: str, memory: float | None) -> None:
    wish = GpuWish(count, memory, link)
    kept = json.loads(json.dumps(wish_data(wish)))
    assert parse_gpus(kept) == wish
    assert same_wish(kept, wish)
    assert as_wish(wish) is wish


# -- gpu_memory_utilization


@pytest.mark.parametrize("value", [0.45, "0.45", 1, "1.0"])
def test_a_share_is_a_flag(value: t.Any) -> None:
    service, findings = spec.parse_service(
        {"name": "chat", "model": "acme/tiny", "gpu_memory_utilization": value, "args": {"max-num-seqs": 8}}
    )
    assert service is not None
    assert findings == []
    assert service.gpu_memory_utilization == float(value)
    assert list(service.args.items()) == [("gpu-memory-utilization", float(value)), ("max-num-seqs", 8)]


@pytest.mark.parametrize("value", [0, -0.5, 1.5, "45%", True, [0.5], "nan"])
def test_a_share_that_is_none(value: t.Any) -> None:
    expected = "a part of each card's memory above 0 and up to 1, such as 0.45"
    assert refused(gpu_memory_utilization=value)[:2] == ("service.bad_value", expected)


@pytest.mark.parametrize("flag", ["gpu-memory-utilization", "gpu_memory_utilization", "gpu-memory"])
def test_a_share_that_is_set_twice(flag: str) -> None:
    code, expected, remedy = refused(gpu_memory_utilization=0.4, args={flag: 0.4})
    assert (code, expected) == ("service.set_twice", "one of the two")
    assert remedy == f"delete {flag.replace('_', '-')} under args"


@pytest.mark.parametrize(
    ("value", "expected"),
    [(1, 1.0), ("1.5", 1.5), (".5", 0.5), (-1, None), ("1e3", None), (float("nan"), None), (float("inf"), None),
     (True, None), (None, None), ([], None), (10**400, None)],
)  # fmt: skip
def test_numbers(value: t.Any, expected: float | None) -> None:
    assert number(value) == expected


def test_what_was_left_open_is_not_what_was_asked_for() -> None:
    """The plan may have given it several cards: one that is asked for now is another wish."""
    assert same_wish("auto", None)
    assert not same_wish("auto", 1)
    assert not same_wish(2, None)
    assert same_wish(None, 1), "as older records have it"
