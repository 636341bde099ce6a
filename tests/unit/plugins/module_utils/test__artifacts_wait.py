# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifacts_wait import interval, progress_line

FETCHING = {
    "phase": "fetching",
    "model": "Qwen/Qwen2.5-VL-7B-Instruct",
    "position": 1,
    "count": 1,
    "total": 16_584_333_312,
    "done": 3_200_000_000,
    "rate": 410_000_000,
    "eta": 32.6,
    "connections": 16,
    "notes": [],
    "age": 0.4,
}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({}, "Instruct: 3.2 of 16.6 GB (19 %), 410 MB/s, 33 s left, 16 connections"),
        ({"position": 2, "count": 3}, "Instruct (2 of 3): 3.2 of 16.6 GB (19 %), 410 MB/s, 33 s left, 16 connections"),
        ({"connections": 1}, "3.2 of 16.6 GB (19 %), 410 MB/s, 33 s left, 1 connection"),
        ({"rate": 0, "eta": None}, "3.2 of 16.6 GB (19 %), 0 B/s, 16 connections"),
        ({"phase": "checking"}, "Instruct: checking, 3.2 of 16.6 GB (19 %), 410 MB/s, 33 s left"),
        ({"phase": "checking", "total": 0}, "Instruct: looking what is there"),
        ({"phase": "resolving", "total": 0}, "Instruct: starting"),
        ({"phase": "publishing"}, "Instruct: being put in place"),
        ({"phase": "waiting"}, "Instruct: waits for another job that is fetching it"),
        ({"done": 16_584_333_312}, "Instruct: 16.6 GB received, being finished"),
        ({"phase": "checking", "done": 16_584_333_312}, "Instruct: 16.6 GB checked"),
        ({"age": 75.0}, "Instruct: 3.2 of 16.6 GB (19 %), no news for 1 min 15 s"),
        ({"notes": ["the hub asks for patience"]}, "16 connections, the hub asks for patience"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_line(changes: dict[str, object], text: str) -> None:
    line = progress_line("gpu-01", {**FETCHING, **changes})
    assert line.startswith("[gpu-01] Qwen/Qwen2.5-VL-7B-")
    assert line.endswith(text)


def test_a_job_that_said_nothing_yet() -> None:
    assert progress_line("gpu-01", {}) == "[gpu-01] model artifacts: starting"


def test_lines_get_rarer() -> None:
    assert [interval(5.0, elapsed) for elapsed in (0, 60, 300, 3600, 86400)] == [5.0, 5.0, 10.0, 60.0, 60.0]
    assert [interval(20.0, elapsed) for elapsed in (0, 600, 900, 3600)] == [20.0, 20.0, 30.0, 60.0]
