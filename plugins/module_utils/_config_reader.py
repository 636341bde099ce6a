# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A JSON object of a config.json, read with types and bounds: what cannot be is a FleetError that names the key."""

from __future__ import annotations

import math
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

_WORDS_MAX = 4096


class Reader:
    """Values by name; ``where`` is put before a name in messages, such as ``text_config.``"""

    def __init__(self, values: object, where: str) -> None:
        if not isinstance(values, dict):
            raise bad_config(where.rstrip(".") or "config.json", values, "a JSON object")
        self.values: dict[str, t.Any] = values
        self.where = where

    def with_defaults(self, defaults: t.Mapping[str, t.Any]) -> Reader:
        """The same, with ``defaults`` for what is absent or null."""
        missing = {key: value for key, value in defaults.items() if self.values.get(key) is None}
        return Reader({**self.values, **missing}, self.where) if missing else self

    def count(self, names: t.Sequence[str], low: int, high: int, default: int | None = None) -> int:
        """The first of ``names`` that is there, a whole number from ``low`` to ``high``."""
        for name in names:
            value = self.values.get(name)
            if isinstance(value, list) and value:  # one for each layer: the largest decides
                value = _largest(value)
            if value is None:
                continue
            if isinstance(value, float) and value.is_integer():
                value = int(value)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise bad_config(self.where + name, value, f"a whole number from {low} to {high}")
            return value
        if default is None:
            raise bad_config(self.where + names[0], None, f"a whole number from {low} to {high}")
        return default

    def number(self, name: str, low: float, high: float, default: float) -> float:
        value = self.values.get(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
            raise bad_config(self.where + name, value, f"a number from {low:g} to {high:g}")
        return value

    def text(self, name: str) -> str:
        """A text, or an empty one where there is none."""
        return words(self.values.get(name))

    def flag(self, name: str, default: bool) -> bool:
        value = self.values.get(name)
        return value if isinstance(value, bool) else default

    def mapping(self, name: str) -> dict[str, t.Any] | None:
        value = self.values.get(name)
        return value if isinstance(value, dict) and value else None


def words(value: object) -> str:
    """A text of a stranger, fit for a message: short, and without what moves a terminal's cursor."""
    text = value[:_WORDS_MAX] if isinstance(value, str) else ""
    return text if text.isprintable() else "".join(char if char.isprintable() else " " for char in text).strip()


def _largest(values: t.Sequence[t.Any]) -> t.Any:
    counts = [value for value in values if isinstance(value, (int, float)) and not isinstance(value, bool)]
    # An int may be longer than any float.
    finite = all(isinstance(value, int) or math.isfinite(value) for value in counts)
    return max(counts, default=None) if len(counts) == len(values) and finite else values


def bad_config(key: str, value: object, expected: str) -> FleetError:
    text = ascii(value) if not isinstance(value, int) or abs(value) < 2**64 else "a number of more than 64 bits"
    seen = f"config.json has no {key}" if value is None else f"{key} in config.json is {text[:80]}"
    return FleetError(
        "model.bad_config",
        seen,
        expected,
        "set tensor_parallel_size and max_model_len yourself, or use another revision of the model: the memory of this "
        "one cannot be reckoned",
    )
