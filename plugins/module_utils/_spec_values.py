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
    """A value that a key cannot take: what was expected, and how to put it right.

    ``seen`` is for keys whose values are not shown: what follows the key's name, with names and types alone.
    """

    def __init__(self, expected: str, remedy: str = "", seen: str = "") -> None:
        super().__init__(expected)
        self.expected = expected
        self.remedy = remedy
        self.seen = seen

    @property
    def each(self) -> tuple[Refused, ...]:
        return (self,)


class ManyRefused(Refused):
    """All that is wrong with a value of several parts."""

    def __init__(self, refusals: t.Sequence[Refused]) -> None:
        super().__init__(refusals[0].expected)
        self._refusals = tuple(refusals)

    @property
    def each(self) -> tuple[Refused, ...]:
        return self._refusals


def type_name(value: t.Any) -> str:
    """The type of a value as people call it; the value itself may be a secret."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "a boolean"
    names = {str: "a text", dict: "a mapping", list: "a list", tuple: "a list", int: "a number", float: "a number"}
    return next((name for kind, name in names.items() if isinstance(value, kind)), f"a {type(value).__name__}")


def refuse_all(refusals: t.Sequence[Refused]) -> None:
    """Raise what was collected, if anything."""
    if refusals:
        raise refusals[0] if len(refusals) == 1 else ManyRefused(refusals)


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
