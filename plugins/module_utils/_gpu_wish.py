# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a user may write under ``gpus:``: a count, indices and UUIDs, or what the cards must be like. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import Refused, integer, nearest, number

GPU_UUID = re.compile(r"(?:GPU|MIG)-[0-9a-fA-F][0-9a-fA-F-]+(?:/\d+/\d+)?")
WHOLE_UUIDS = "whole UUIDs as 'nvidia-smi -L' prints them"
ANY, NVLINK, PCIE = "any", "nvlink", "pcie"
LINKS = (ANY, NVLINK, PCIE)
CAPABILITY = re.compile(r"[1-9]\d?(?:\.\d)?")
MOST_CARDS = 256
AUTO = "auto"
"""How the plan and the record name a choice that was left open."""


@dataclass(frozen=True)
class GpuWish:
    """What the cards of a service must be like; the plan finds them.

    ``link`` is what must join every two of them: ``nvlink``; ``pcie`` (NVLink or PCI Express that does not leave the
    CPU socket); ``any``. ``name`` is a regular expression, searched without regard to case.
    """

    count: int = 1
    min_memory_gib: float | None = None
    link: str = ANY
    name: str = ""
    min_compute_capability: float | None = None

    def as_dict(self) -> dict[str, t.Any]:
        """As a user would write it: only what is asked for."""
        asked = {
            "min_memory_gib": self.min_memory_gib,
            "link": None if self.link == ANY else self.link,
            "name": self.name or None,
            "min_compute_capability": self.min_compute_capability,
        }
        return {"count": self.count, **{key: value for key, value in asked.items() if value is not None}}


Wish = t.Union[int, tuple[t.Union[int, str], ...], GpuWish, None]


def wish_data(wish: Wish) -> t.Any:
    """A wish as plain data, which the plan and the record keep."""
    if wish is None:
        return AUTO
    if isinstance(wish, GpuWish):
        return wish.as_dict()
    return list(wish) if isinstance(wish, tuple) else wish


def as_wish(wish: int | GpuWish | None) -> GpuWish:
    """A count, or none at all, as the wish that it is."""
    if isinstance(wish, GpuWish):
        return wish
    return GpuWish(count=1 if wish is None else wish)


def same_wish(kept: t.Any, wish: Wish) -> bool:
    """Whether a record's ``wish`` is what a service asks for now; in whatever form it was written."""
    if isinstance(wish, tuple):
        return bool(isinstance(kept, list) and kept == list(wish))
    if kept == AUTO:
        return wish is None
    try:
        return not isinstance(kept, list) and as_wish(
            t.cast(t.Any, parse_gpus(1 if kept is None else kept))
        ) == as_wish(wish)
    except Refused:
        return False


def parse_gpus(value: t.Any) -> int | tuple[int | str, ...] | GpuWish:
    if isinstance(value, dict):
        return _constraints(value)
    if isinstance(value, (list, tuple)):
        _check_uuids(value)
    wanted = f"a list of nvidia-smi indices such as [0, 1], {WHOLE_UUIDS}, a count such as 2, or a mapping with count:"
    try:
        if not isinstance(value, (list, tuple)):
            return integer(0, MOST_CARDS)(value)
        chosen = tuple(_gpu(item) for item in value)
    except Refused:
        raise Refused(wanted) from None
    if not chosen:
        raise Refused(wanted, "name at least one GPU, or leave gpus: out")
    if len(set(chosen)) != len(chosen):
        raise Refused("each GPU once")
    return chosen


def _check_uuids(values: t.Sequence[t.Any]) -> None:
    """One that was cut off, as logs and documentation do, shall not be told to be what it looks like."""
    for value in values:
        if isinstance(value, str) and value.upper().startswith(("GPU-", "MIG-")) and not GPU_UUID.fullmatch(value):
            raise Refused(
                WHOLE_UUIDS, f"write the whole UUID instead of {value}; GPU- and MIG- are upper-case, and no dots"
            )


def _gpu(value: t.Any) -> int | str:
    if isinstance(value, str) and GPU_UUID.fullmatch(value):
        return value
    return integer(0, 255)(value)


def _constraints(value: t.Mapping[t.Any, t.Any]) -> GpuWish:
    keys = ", ".join(sorted(_CONSTRAINTS))
    if not value:
        raise Refused(f"a mapping with keys among {keys}", "write gpus: {count: 1}, or leave gpus: out")
    asked: dict[str, t.Any] = {}
    for key, setting in value.items():
        if key not in _CONSTRAINTS:
            guess = nearest(str(key), _CONSTRAINTS)
            remedy = f"write {guess}: instead of {key}:" if guess else f"delete {key}:"
            raise Refused(f"keys among {keys} under gpus", remedy)
        if setting is None or setting == "":
            continue
        try:
            asked[key] = _CONSTRAINTS[key](setting)
        except Refused as exc:
            raise Refused(f"{exc.expected} for {key}", exc.remedy) from None
    return GpuWish(**asked)


def _memory(value: t.Any) -> float:
    memory = number(value)
    if not memory:
        raise Refused("a number of GiB above 0, such as 40")
    return memory


def _link(value: t.Any) -> str:
    if value not in LINKS:
        guess = nearest(str(value), LINKS)
        raise Refused(f"one of {', '.join(LINKS)}", f"write link: {guess}" if guess else "")
    return str(value)


def _name(value: t.Any) -> str:
    try:
        re.compile(value)
    except (re.error, TypeError, RecursionError, OverflowError):
        raise Refused("a regular expression such as 'H100|H200'") from None
    return str(value)


def _capability(value: t.Any) -> float:
    # YAML makes a number of 8.9 and of "9" alike.
    text = str(value).strip()
    if isinstance(value, bool) or not CAPABILITY.fullmatch(text):
        raise Refused("a compute capability such as 8.9")
    return float(text)


_CONSTRAINTS: dict[str, t.Callable[[t.Any], t.Any]] = {
    "count": integer(1, MOST_CARDS),
    "min_memory_gib": _memory,
    "link": _link,
    "name": _name,
    "min_compute_capability": _capability,
}
