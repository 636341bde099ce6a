# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Amounts, times and rates as people read them. Pure.

Decimal units, as disks and networks are sold: 1 GB is 1000 MB.
"""

from __future__ import annotations

_UNITS = ("B", "kB", "MB", "GB")


def human_bytes(count: float) -> str:
    """269.1 MB."""
    for unit in _UNITS:
        digits = 0 if unit == "B" else 1
        if round(count, digits) < 1000:
            return f"{count:.{digits}f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def human_share(done: int, total: int) -> str:
    """How much of it, in one unit: ``3.2 of 16.6 GB (19 %)``."""
    number, _space, unit = human_bytes(total).partition(" ")
    power = ("B", "kB", "MB", "GB", "TB").index(unit)
    digits = 0 if power == 0 else 1
    percent = 100 if total <= 0 else min(100, done * 100 // total)
    return f"{done / 1000**power:.{digits}f} of {number} {unit} ({percent} %)"


def human_rate(rate: float) -> str:
    """410 MB/s: three digits say enough."""
    for unit in _UNITS:
        if rate < 999.5:
            return f"{rate:.1f} {unit}/s" if rate < 9.95 and unit != "B" else f"{rate:.0f} {unit}/s"
        rate /= 1000
    return f"{rate:.1f} TB/s"


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def human_seconds(seconds: float) -> str:
    """Of an answer: ``71 ms`` or ``4.2 s``."""
    return f"{seconds * 1000:.0f} ms" if round(seconds, 3) < 1 else f"{seconds:.1f} s"


def human_duration(seconds: float) -> str:
    """Of long work: ``41 s``, ``3 min 20 s``, ``1 h 5 min``."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 600:
        return f"{whole // 60} min {whole % 60} s" if whole % 60 else f"{whole // 60} min"
    hours, minutes = divmod(round(whole / 60), 60)
    if not hours:
        return f"{minutes} min"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
