# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A service's flags as the sum of its memory needs them, and those of them that the sum cannot follow. Pure."""

from __future__ import annotations

import json
import math
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._kv_cache import known_dtype
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_weights import ONLINE

MIB, GIB = 2**20, 2**30
Flags = t.Mapping[str, t.Any]

# What can make a service need less than the sum says, by itself.
_NOT_RECKONED = (
    "additional-config",
    "cpu-offload-params",
    "hf-config-path",
    "hf-overrides",
    "mm-encoder-only",
    "num-gpu-blocks-override",
    "offload-backend",
    "offload-group-size",
    "offload-params",
    "quantization-config",
    "worker-cls",
    "worker-extension-cls",
)
_POOLING = ("classify", "embed", "embedding", "pooling", "reward", "score")
_UNITS = {
    "k": 1000,
    "m": 1000**2,
    "g": 1000**3,
    "t": 1000**4,
    "K": 1024,
    "M": MIB,
    "G": GIB,
    "T": 1024 * GIB,
}


def plain_flags(arguments: Flags) -> dict[str, t.Any]:
    """Names with dashes, ``no-x: true`` as ``x: false``, and ``x.key: value`` as a key of x."""
    flags: dict[str, t.Any] = {}
    for name, value in arguments.items():
        head, dot, within = str(name).partition(".")
        spelled = head.replace("_", "-")
        bare = spelled.removeprefix("no-")
        if dot:
            flags[bare] = _with_key(json_of(flags.get(bare)), within.split("."), value)
        else:
            flags[bare] = (not value if bare != spelled else value) if isinstance(value, bool) else value
    return flags


def _with_key(values: dict[str, t.Any], path: t.Sequence[str], value: t.Any) -> dict[str, t.Any]:
    inner = values.get(path[0])
    nested = _with_key(inner if isinstance(inner, dict) else {}, path[1:], value) if path[1:] else value
    return {**values, path[0]: nested}


def doubt_of(flags: Flags) -> str:
    """The flags that may make a service need less than the sum says, in words; empty where there is none."""
    named = [name for name in _NOT_RECKONED if flags.get(name) not in (None, False, "", 0, "0", "auto", {}, "{}")]
    if not known_dtype(str(flags.get("kv-cache-dtype") or "auto")):
        named.append("kv-cache-dtype")
    if flags.get("quantization") and str(flags["quantization"]) not in ONLINE:
        named.append("quantization")
    named += [name for name in ("runner", "task", "convert") if str(flags.get(name)) in _POOLING]
    return ", ".join(sorted(named))


def whole(value: object) -> int | None:
    """A positive whole number as vLLM reads one: ``8192``, ``"25.6k"``, ``"2G"``; None for anything else."""
    if isinstance(value, str):
        text = value.strip()
        factor = _UNITS.get(text[-1:], 0)
        found = number(text[:-1] if factor else text)
        value = None if found is None else int(found * (factor or 1))
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return value if 0 < value < 2**60 else None


def number(value: object) -> float | None:
    if isinstance(value, bool):
        return None
    try:
        found = float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return None
    return found if math.isfinite(found) else None


def json_of(value: object) -> dict[str, t.Any]:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, dict) else {}


def offload_of(flags: Flags) -> int:
    """``--cpu-offload-gb`` in bytes: so much of the layers of each GPU stays in the memory of the host."""
    return int(min(max(0.0, number(flags.get("cpu-offload-gb")) or 0.0), 2.0**30) * GIB)


def limits_of(flags: Flags) -> dict[str, int]:
    """``--limit-mm-per-prompt``: how many items of a kind a request may have, written as a number or with options."""
    if flags.get("language-model-only") is True:
        return {"image": 0, "video": 0, "audio": 0}
    limits = {}
    for kind, wanted in json_of(flags.get("limit-mm-per-prompt")).items():
        count = wanted.get("count") if isinstance(wanted, dict) else wanted
        if isinstance(count, int) and not isinstance(count, bool) and count >= 0:
            limits[str(kind)] = count
    return limits


def pixels_of(flags: Flags) -> int:
    options = json_of(flags.get("mm-processor-kwargs"))
    size = options.get("size")
    edge = size.get("longest_edge") if isinstance(size, dict) else None
    return whole(options.get("max_pixels")) or whole(edge) or 0
