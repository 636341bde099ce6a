# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What vLLM itself says about its memory while it boots, and how far the estimate was from it. Pure.

The lines have been worded the same for years (vLLM 0.8 to 0.33), with other file names and line numbers before them::

    (Worker_TP0 pid=447) INFO 08-14 14:07:22 [gpu_worker.py:563] Available KV cache memory: 6.87 GiB
    GPU KV cache size: 464,848 tokens, Maximum concurrency for 16,384 tokens per request: 28.37x

Older releases put the concurrency on a line of its own.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import GIB, GRAPHS

_VERSION = re.compile(r"vLLM API server version (\S+)|V1 LLM engine \(v([^)]+)\)")
_LOADED = re.compile(r"(?:Model loading|Loading model weights) took ([0-9.]+) Gi?B")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[0-9.]+) GiB")
_TOKENS = re.compile(r"(?:GPU|CPU|XPU|HPU) KV cache size: ([0-9,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([0-9,]+) tokens per request: ([0-9.]+)x")
_GRAPHS = re.compile(r"(?:Graph capturing finished in [0-9.]+ secs, took|Estimated CUDA graph memory:) (-?[0-9.]+) GiB")
_DIGITS_MAX = 18

CACHE = "KV cache"
LINES = 400
"""How much of a log is read for its last boot; that of a model of many parts takes some two hundred lines."""


@dataclass(frozen=True)
class BootLog:
    """The last boot in a log. Each is None where the log does not say it; the worst GPU's where many do."""

    version: str | None = None
    weights_gib: float | None = None
    available_gib: float | None = None
    tokens: int | None = None
    max_model_len: int | None = None
    concurrency: float | None = None
    graphs_gib: float | None = None


@dataclass(frozen=True)
class Drift:
    """One quantity as reckoned and as vLLM has it. ``percent`` is how far the estimate is above what was seen."""

    what: str
    estimated: float
    seen: float
    unit: str

    @property
    def percent(self) -> float:
        return (self.estimated - self.seen) / self.seen * 100 if self.seen else 0.0

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "what": self.what,
            "estimated": round(self.estimated, 2),
            "seen": round(self.seen, 2),
            "unit": self.unit,
            "percent": round(self.percent, 1),
        }

    def as_text(self) -> str:
        seen = f"vLLM has {self.seen:,.2f} ({self.percent:+.1f} %)"
        return f"{self.what}: reckoned {self.estimated:,.2f} {self.unit}, {seen}"


def parse(text: str) -> BootLog:
    """What the log says of its last boot."""
    start = 0
    for match in re.finditer(r"vLLM API server version", text):
        start = match.start()
    text = text[start:]
    version = _VERSION.search(text)
    sizes = [_whole(match) for match in _TOKENS.findall(text)]
    loads = _numbers(_LOADED, text)
    rooms = _numbers(_AVAILABLE, text)
    graphs = _numbers(_GRAPHS, text)
    at_once = _CONCURRENCY.findall(text)
    return BootLog(
        version=(version.group(1) or version.group(2)) if version else None,
        weights_gib=max(loads) if loads else None,
        available_gib=min(rooms) if rooms else None,
        tokens=min(sizes) if sizes else None,
        max_model_len=_whole(at_once[-1][0]) if at_once else None,
        concurrency=min(_number(times) for _length, times in at_once) if at_once else None,
        graphs_gib=max(graphs) if graphs else None,
    )


def compare(boot: BootLog, memory: t.Mapping[str, t.Any]) -> list[Drift]:
    """How far a sum (``Sizing.as_dict``) was off, for what the log tells; the cache's size counts only at the same
    context length."""
    graphs = [row.get("bytes") for row in memory.get("rows") or [] if row.get("label") == GRAPHS]
    pairs: list[tuple[str, t.Any, float, float | None, str]] = [
        ("weights", memory.get("weights_bytes"), GIB, boot.weights_gib, "GiB"),
        (CACHE, memory.get("kv_available_bytes"), GIB, boot.available_gib, "GiB"),
        (GRAPHS, graphs[0] if graphs else None, GIB, boot.graphs_gib, "GiB"),
    ]
    length, times = memory.get("max_model_len"), memory.get("concurrency")
    if boot.max_model_len == length and isinstance(times, (int, float)) and isinstance(length, int):
        pairs.append((CACHE, times * length, 1, boot.tokens, "tokens"))
        pairs.append(("requests at once", times, 1, boot.concurrency, "requests"))
    return [
        Drift(what, estimated / unit, seen, name)
        for what, estimated, unit, seen, name in pairs
        if seen is not None and isinstance(estimated, (int, float))
    ]


def _numbers(pattern: t.Pattern[str], text: str) -> list[float]:
    return [_number(found) for found in pattern.findall(text)]


def _number(text: str) -> float:
    try:
        return float(text[:_DIGITS_MAX])
    except ValueError:  # 1.2.3
        return 0.0


def _whole(text: str) -> int:
    digits = text.replace(",", "")[:_DIGITS_MAX]
    return int(digits) if digits else 0
