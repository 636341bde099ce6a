# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which service gets which GPUs, and how it runs on them. Pure, no I/O, on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service


def assign_gpus(
    services: t.Sequence[Service], cards: t.Sequence[t.Mapping[str, t.Any]]
) -> tuple[dict[str, list[dict[str, t.Any]]], list[Finding]]:
    """Cards to services: named ones first, then counts from the lowest free index; no card twice.

    A service that does not get all of its cards gets none: the finding says why.
    """
    cards = sorted(cards, key=lambda card: int(card["index"]))
    findings: list[Finding] = []
    owner: dict[str, str] = {}
    chosen: dict[str, list[dict[str, t.Any]]] = {}
    named = [service for service in services if isinstance(service.gpus, tuple)]
    counted = [service for service in services if not isinstance(service.gpus, tuple)]
    for service in named:
        found: list[Finding] = []
        mine: list[dict[str, t.Any]] = []
        for wanted in t.cast("tuple[int | str, ...]", service.gpus):
            card, finding = _find_card(wanted, cards, service.name)
            if card is not None and card["uuid"] in owner:
                finding = _shared(card, owner[card["uuid"]], service.name)
            if finding or card is None:
                found += [finding] if finding else []
                continue
            owner[card["uuid"]] = service.name
            mine.append(_card(card))
        findings += found
        chosen[service.name] = [] if found else mine
    for service in counted:
        count = 1 if service.gpus is None else t.cast(int, service.gpus)
        free = [card for card in cards if card["uuid"] not in owner and not _has_mig(card)]
        if count == 0:
            findings.append(_cpu_beside_gpus(service.name))
        elif len(free) < count:
            findings.append(_too_few(service.name, count, free, cards, owner))
            free = []
        for card in free[:count]:
            owner[card["uuid"]] = service.name
        chosen[service.name] = [_card(card) for card in free[:count]]
    return chosen, findings


def _card(card: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"index": card["index"], "uuid": card["uuid"], "name": card.get("name")}


def _has_mig(card: t.Mapping[str, t.Any]) -> bool:
    return bool((card.get("mig") or {}).get("current") == "enabled")


def _find_card(
    wanted: int | str, cards: t.Sequence[t.Mapping[str, t.Any]], service: str
) -> tuple[t.Mapping[str, t.Any] | None, Finding | None]:
    if isinstance(wanted, str) and wanted.startswith("MIG-"):
        return None, _mig(f"{wanted} is a MIG device", service)
    for card in cards:
        if wanted in (card["index"], card["uuid"]):
            if _has_mig(card):
                return None, _mig(f"GPU {wanted} is partitioned (MIG)", service)
            return card, None
    present = ", ".join(f"{card['index']} ({card['uuid']})" for card in cards) or "none"
    remedy = "correct gpus: (nvidia-smi -L lists the cards), or look for a card that fell off the bus"
    return None, Finding(
        "plan.gpu_missing",
        ERROR,
        f"GPU {wanted} is not on this host",
        f"one of {present}",
        remedy,
        service,
    )


def _mig(seen: str, service: str) -> Finding:
    return Finding(
        "plan.gpu_mig",
        ERROR,
        seen,
        "whole GPUs for the bare form",
        "name another GPU, or turn MIG off",
        service,
    )


def _shared(card: t.Mapping[str, t.Any], owner: str, service: str) -> Finding:
    if owner == service:
        seen = f"GPU {card['index']} ({card['uuid']}) is named twice"
        return Finding("plan.gpu_shared", ERROR, seen, "each GPU once", "delete its index or its UUID", service)
    seen = f"GPU {card['index']} ({card['uuid']}) is already the GPU of {owner}"
    return Finding(
        "plan.gpu_shared",
        ERROR,
        seen,
        "one service per GPU",
        "give one of the two another GPU",
        service,
    )


def _too_few(
    service: str,
    count: int,
    free: t.Sequence[t.Any],
    cards: t.Sequence[t.Any],
    owner: t.Mapping[str, str],
) -> Finding:
    held = ", ".join(f"{card['index']} by {owner[card['uuid']]}" for card in cards if card["uuid"] in owner)
    seen = f"{len(free)} of {len(cards)} GPUs are free" + (f" (held: {held})" if held else "")
    remedy = "lower gpus:, or move a service to another host"
    return Finding("plan.gpu_short", ERROR, seen, f"{count} free GPUs", remedy, service)


def _cpu_beside_gpus(service: str) -> Finding:
    remedy = "give the service a GPU, or put it on a host with vllm_device: cpu"
    return Finding(
        "plan.cpu_beside_gpus",
        ERROR,
        "gpus is 0 on a host with GPUs",
        "one engine per host",
        remedy,
        service,
    )


def tensor_parallel_size(
    service: Service, gpus: int, device: str, arguments: t.Mapping[str, t.Any]
) -> tuple[int, list[Finding]]:
    """GPUs = tensor x pipeline x data parallel (vLLM's world size); tensor parallel follows if unset.

    ``arguments`` are all flags of the service, the fleet's defaults included.
    """
    if device == "cpu":
        return service.tensor_parallel_size or 1, []
    others = _count(arguments, "pipeline-parallel-size") * _count(arguments, "data-parallel-size")
    size = service.tensor_parallel_size or max(1, gpus // others)
    if gpus and size * others != gpus:
        seen = f"tensor parallel {size} x pipeline and data parallel {others} on {gpus} GPUs"
        return size, [
            Finding(
                "plan.parallelism", ERROR, seen, "a product equal to the number of GPUs",
                "correct tensor_parallel_size: or gpus:", service.name,
            )
        ]  # fmt: skip
    return size, []


def _count(arguments: t.Mapping[str, t.Any], name: str) -> int:
    value = str(arguments.get(name, 1))
    return max(1, int(value)) if value.isdecimal() else 1
