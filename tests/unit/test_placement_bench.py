# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The benchmark of placement on few hosts: it runs, holds what it measures to be right, and its tables make sense."""

from __future__ import annotations

from placement_bench import CARDS, Row, measure, services, table


def test_one_size_is_measured() -> None:
    row = measure(4)
    assert row.services == len(services(4)) > 2
    assert 0 < row.cards <= 4 * CARDS
    assert min(row.first, row.again, row.short) > 0


def test_the_table_has_ratios_to_the_smallest() -> None:
    rows = [Row(10, 20, 25, 70, 0.5, 0.1, 0.2, 30), Row(50, 100, 120, 300, 5, 0.4, 1, 40)]
    assert table(rows).splitlines()[2:] == [
        "| 10 | 20 | 25 | 70 of 80 | 0.500 | 0.100 | 0.200 | 30 | 1 | 1 |",
        "| 50 | 100 | 120 | 300 of 400 | 5.000 | 0.400 | 1.000 | 40 | 5 | 10 |",
    ]
