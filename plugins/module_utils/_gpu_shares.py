# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Shares: services on one card, each with a stated part of its memory. Pure, no I/O."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import Card
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import share_flag
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import Refused, share

# Each engine's CUDA context and the driver need some memory that no engine counts.
MOST_SHARED = 0.95
KV_BYTES = "kv-cache-memory-bytes"
STATE_IT = f"gpu_memory_utilization: (for example 0.45) on each of them, together at most {MOST_SHARED:g}"


def stated_share(arguments: t.Mapping[str, t.Any]) -> float | None:
    """The part of a card's memory that a service's flags ask for; ``None`` where they state none."""
    try:
        return share(arguments[share_flag(arguments)])
    except (KeyError, Refused):
        return None


def check_sharing(
    card: Card,
    owners: t.Sequence[str],
    shares: t.Mapping[str, float | None],
    flags: t.Mapping[str, t.Any],
    service: str,
) -> Finding | None:
    """A service that comes to a card of others: each of them must state its share."""
    silent = [name for name in [*owners, service] if shares.get(name) is None]
    if not silent:
        return None
    seen = f"GPU {card['index']} ({card['uuid']}) is already the GPU of {', '.join(owners)}"
    said = f"{', '.join(silent)} {'states' if len(silent) == 1 else 'state'} none"
    if any(KV_BYTES in (flags.get(name) or {}) for name in silent):
        # It bounds the cache alone: weights and activations come on top, and vLLM ignores the share then.
        said += f"; {KV_BYTES} alone is no share"
    expected = f"one service per GPU, or a stated share of its memory for each ({said})"
    remedy = f"give one of them another GPU, or set {STATE_IT}"
    return Finding("plan.gpu_shared", ERROR, seen, expected, remedy, service)


def check_sums(
    cards: t.Sequence[Card], owners: t.Mapping[str, t.Sequence[str]], shares: t.Mapping[str, float | None]
) -> list[Finding]:
    """The shares of each card that several services hold, summed; services that meet on several cards are told once."""
    groups: dict[tuple[str, ...], list[Card]] = {}
    for card in cards:
        names = tuple(owners.get(card["uuid"]) or ())
        if len(names) > 1 and all(shares.get(name) is not None for name in names):
            groups.setdefault(names, []).append(card)
    findings = []
    for names, held in groups.items():
        parts = {name: t.cast(float, shares[name]) for name in names}
        total = round(sum(parts.values()), 6)
        if total > MOST_SHARED:
            where = ", ".join(f"{card['index']} ({card['uuid']})" for card in held)
            summed = " + ".join(f"{name} {part:g}" for name, part in parts.items())
            findings.append(
                Finding(
                    "plan.gpu_overcommitted",
                    ERROR,
                    f"GPU {where}: {summed} = {total:g} of its memory",
                    f"at most {MOST_SHARED:g} together: the driver and each CUDA context need some as well",
                    f"lower gpu_memory_utilization: of {' or '.join(names)}, or give one of them another GPU",
                    names[-1],
                )
            )
    return findings
