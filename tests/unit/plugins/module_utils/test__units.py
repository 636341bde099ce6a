# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _units as units


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (999_950, "1.0 MB"), (16_584_333_312, "16.6 GB"), (3e12, "3.0 TB")],
)
def test_bytes(count: float, text: str) -> None:
    assert units.human_bytes(count) == text


@pytest.mark.parametrize(
    ("done", "total", "text"),
    [
        (3_200_000_000, 16_584_333_312, "3.2 of 16.6 GB (19 %)"),
        (0, 16_584_333_312, "0.0 of 16.6 GB (0 %)"),
        (16_584_333_311, 16_584_333_312, "16.6 of 16.6 GB (99 %)"),
        (5, 10, "5 of 10 B (50 %)"),
        (7, 0, "7 of 0 B (100 %)"),
        (2_000, 1_000, "2.0 of 1.0 kB (100 %)"),
        (10**12, 3 * 10**12, "1.0 of 3.0 TB (33 %)"),
    ],
)
def test_a_share_is_in_one_unit(done: int, total: int, text: str) -> None:
    assert units.human_share(done, total) == text


@pytest.mark.parametrize(
    ("rate", "text"),
    [
        (0, "0 B/s"),
        (410_200_000, "410 MB/s"),
        (3_040_000, "3.0 MB/s"),
        (9_960_000, "10 MB/s"),
        (999_600, "1.0 MB/s"),
        (1.25e9, "1.2 GB/s"),
        (2e12, "2.0 TB/s"),
    ],
)
def test_rates(rate: float, text: str) -> None:
    assert units.human_rate(rate) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.0714, "71 ms"), (0.9996, "1.0 s"), (4.21, "4.2 s")])
def test_seconds_of_an_answer(seconds: float, text: str) -> None:
    assert units.human_seconds(seconds) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"),
        (40.9, "41 s"),
        (59.6, "1 min"),
        (200, "3 min 20 s"),
        (1199, "20 min"),
        (3600, "1 h"),
        (3590, "1 h"),
        (3900, "1 h 5 min"),
        (90000, "25 h"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert units.human_duration(seconds) == text


def test_one_is_no_plural() -> None:
    assert [units.plural(count, "GPU") for count in (0, 1, 2)] == ["0 GPUs", "1 GPU", "2 GPUs"]
