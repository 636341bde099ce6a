# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The findings about GPUs, in words. Pure, no I/O, on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_cards
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import Card, Links
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import ANY, NVLINK, PCIE, GpuWish

LINK_NAMES = {NVLINK: "NVLink", PCIE: "PCI Express within one socket", ANY: "anything"}


def listed(cards: t.Sequence[Card]) -> str:
    return ", ".join(str(card["index"]) for card in cards)


def missing(wanted: int | str, cards: t.Sequence[Card], silent: t.Sequence[Card], service: str) -> Finding:
    seen = f"GPU {wanted} is not on this host"
    remedy = "correct gpus: (nvidia-smi -L lists the cards), or look for a card that fell off the bus"
    if any(wanted == card.get("index") for card in silent):
        seen = f"GPU {wanted} does not answer"
        remedy = "look for its Xid (dmesg | grep -i xid), reset it or reboot, or name another GPU"
    present = ", ".join(f"{card['index']} ({card['uuid']})" for card in cards) or "none"
    return Finding("plan.gpu_missing", ERROR, seen, f"one of {present}", remedy, service)


def twice(card: Card, service: str) -> Finding:
    seen = f"GPU {card['index']} ({card['uuid']}) is named twice"
    return Finding("plan.gpu_shared", ERROR, seen, "each GPU once", "delete its index or its UUID", service)


def mig(seen: str, service: str) -> Finding:
    remedy = "name another GPU, or one MIG device by its UUID (nvidia-smi -L), or turn MIG off"
    return Finding("plan.gpu_mig", ERROR, seen, "whole GPUs for indices and counts", remedy, service)


def check_mig(
    devices: t.Sequence[str], named: int, contained: bool, present: t.Mapping[str, t.Any], service: str
) -> Finding | None:
    """A MIG device is given alone, and by Docker."""
    first = devices[0]
    if not contained:
        remedy = "set vllm_image, so that it runs in a container, or name a whole GPU"
        expected = "whole GPUs for a service without a container"
        return Finding("plan.gpu_mig", ERROR, f"{first} is a MIG device", expected, remedy, service)
    if named > 1:
        seen = f"{named} devices are named, and {first} is a MIG device"
        remedy = "name one of them, or whole GPUs"
        expected = "one MIG device alone: they have no way to each other, which tensor parallel needs"
        return Finding("plan.gpu_mig", ERROR, seen, expected, remedy, service)
    if first not in present:
        remedy = "correct gpus: (nvidia-smi -L lists them), or make it again: nvidia-smi mig -cgi PROFILE -C"
        expected = f"one of {', '.join(sorted(present)) or 'none'}"
        return Finding("plan.gpu_missing", ERROR, f"{first} is not on this host", expected, remedy, service)
    return None


def wish_words(wish: GpuWish) -> str:
    """``2 free GPUs of 40 GiB or more``."""
    words = [f"{wish.count} free GPU{'s' if wish.count > 1 else ''}"]
    if wish.min_memory_gib is not None:
        words.append(f"of {wish.min_memory_gib:g} GiB or more")
    if wish.min_compute_capability is not None:
        words.append(f"of compute capability {wish.min_compute_capability} or higher")
    if wish.name:
        words.append(f"named like '{wish.name}'")
    if wish.link != ANY and wish.count > 1:
        words.append(f"joined by {LINK_NAMES[wish.link]}")
    return " ".join(words)


def too_few(
    service: str, wish: GpuWish, free: t.Sequence[Card], cards: t.Sequence[Card], reasons: t.Mapping[str, str]
) -> Finding:
    """``reasons`` says of each card why it is none of the free ones; ``by NAME`` where it is held."""
    asked = wish != GpuWish(wish.count)
    kept = [f"{card['index']} {reasons[card['uuid']]}" for card in cards if reasons[card["uuid"]].startswith("by ")]
    others = [
        f"{card['index']} ({reasons[card['uuid']]})"
        for card in cards
        if reasons[card["uuid"]] and not reasons[card["uuid"]].startswith("by ")
    ]
    details = ([f"held: {', '.join(kept)}"] if kept else []) + ([f"left out: {', '.join(others)}"] if others else [])
    seen = f"{len(free)} of {len(cards)} GPUs are free" + (" and fit" if asked else "")
    seen += f" ({'; '.join(details)})" if details else ""
    remedy = "lower gpus:, or move a service to another host"
    if asked:
        remedy = "ask for less under gpus:, or move a service to another host"
    expected = wish_words(wish) if asked else f"{wish.count} free GPUs"
    return Finding("plan.gpu_short", ERROR, seen, expected, remedy, service)


def unlinked(service: str, wish: GpuWish, free: t.Sequence[Card], links: Links) -> Finding:
    """Enough cards, and not what must join them; or nobody knows what does."""
    expected = wish_words(wish)
    if links.gaps(free):
        seen = f"what joins GPUs {listed(free)} could not be told"
        remedy = (
            f"run nvidia-smi topo -m on the host, and delete link: {wish.link} or name the GPUs if it tells nothing"
        )
        return Finding("plan.gpu_link_unknown", ERROR, seen, expected, remedy, service)
    pairs = [
        f"{one['index']}-{other['index']} {links.between(one, other)}"
        for at, one in enumerate(free)
        for other in free[at + 1 :]
    ]
    shown = ", ".join(pairs[:8]) + (", ..." if len(pairs) > 8 else "")
    seen = f"no {wish.count} of the {len(free)} free GPUs are joined by {LINK_NAMES[wish.link]} ({shown})"
    remedy = f"lower count:, delete link: {wish.link}, or free the GPUs that are (nvidia-smi topo -m)"
    return Finding("plan.gpu_unlinked", ERROR, seen, expected, remedy, service)


def unknown(cards: t.Sequence[Card], wish: GpuWish, service: str) -> list[Finding]:
    """Cards that were chosen although nobody knows whether they fit."""
    if not cards:
        return []
    seen = f"whether GPU {listed(cards)} is what gpus: asks for could not be told"
    remedy = "compare with nvidia-smi -q on the host, or name the GPUs"
    return [Finding("plan.gpu_unknown", WARNING, seen, wish_words(wish), remedy, service)]


def moved(service: str, why: str) -> Finding:
    remedy = f"nothing to do; name the GPUs under gpus: to keep {service} on them"
    expected = "cards that are still what gpus: asks for, so others are chosen"
    return Finding("plan.gpu_moved", WARNING, why, expected, remedy, service)


def check_alike(cards: t.Sequence[Card], service: str) -> list[Finding]:
    """Ranks on different cards wait for the slowest, and have no more memory than the smallest."""
    names = {str(card["name"]) for card in cards if card.get("name")}
    if len(names) < 2:
        return []
    seen = "its GPUs are of different models: " + ", ".join(f"{card['index']} {card['name']}" for card in cards)
    remedy = "name GPUs of one model, or ask for one with gpus: {count: ..., name: ...}"
    return [Finding("plan.gpu_mixed", WARNING, seen, "one model: all run as the slowest does", remedy, service)]


def check_broken(cards: t.Sequence[Card], service: str) -> list[Finding]:
    """A card that the service has, or that a person named: it stays, and is told."""
    findings = []
    for card in cards:
        reason = _gpu_cards.broken(card)
        if reason:
            remedy = (
                f"reset it (nvidia-smi --gpu-reset -i {card['index']}, with its services stopped) or reboot; "
                f"or move {service}: another GPU in gpus:, or vllm_repin: [{service}] with a count"
            )
            seen = f"GPU {card['index']} ({card['uuid']}) has {reason}"
            findings.append(Finding("plan.gpu_broken", WARNING, seen, "a sound GPU", remedy, service))
    return findings


def cpu_beside_gpus(service: str) -> Finding:
    remedy = "for the card with index 0 write gpus: [0]; to run on the CPU put it on a host with vllm_device: cpu"
    expected = "1 or more: a number is a count, and a host has one engine"
    return Finding("plan.cpu_beside_gpus", ERROR, "gpus is 0 on a host with GPUs", expected, remedy, service)
