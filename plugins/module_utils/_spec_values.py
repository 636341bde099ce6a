# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Values that a user wrote, held to what a key may be: converters that return the value or say what was expected."""

from __future__ import annotations

import difflib
import re
import typing as t


class Refused(Exception):
    """A value that a key cannot take: what was expected, and how to put it right."""

    def __init__(self, expected: str, remedy: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.remedy = remedy


def nearest(word: str, known: t.Iterable[str]) -> str:
    """The known spelling closest to ``word``, or an empty string."""
    matches = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return matches[0] if matches else ""


def integer(low: int, high: int) -> t.Callable[[t.Any], int]:
    def convert(value: t.Any) -> int:
        # Templated values arrive as text: "8000" is 8000, but True is not 1.
        if isinstance(value, str) and re.fullmatch(r"\d{1,9}", value.strip()):
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise Refused(f"a whole number from {low} to {high}")
        return value

    return convert


def number(value: t.Any) -> float | None:
    """A finite number of 0 or more, from text too (templated values arrive as text); ``None`` for anything else."""
    if isinstance(value, str) and re.fullmatch(r"\d{1,9}(?:\.\d{0,9})?|\.\d{1,9}", value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value < 1e12:
        return None
    return float(value)


def share(value: t.Any) -> float:
    """A part of a card's memory, as vLLM's ``--gpu-memory-utilization`` takes it."""
    part = number(value)
    if part is None or not 0 < part <= 1:
        raise Refused("a part of each card's memory above 0 and up to 1, such as 0.45")
    return part
