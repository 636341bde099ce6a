# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Cards of a host and what joins them, and the best set of them for a wish. Pure, no I/O.

Facts are a host's: whatever is of another type than we expect is unknown, never an exception.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import ANY, NVLINK, GpuWish
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import number
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

Card = t.Mapping[str, t.Any]
GIB = 1 << 30
# No host has so many cards that a search among those that are joined takes more steps.
MOST_STEPS = 20_000


def _whole(value: t.Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def usable_cards(cards: t.Any) -> list[Card]:
    """The cards that answer, by index."""
    listed = cards if isinstance(cards, (list, tuple)) else []
    found = [card for card in listed if isinstance(card, t.Mapping) and _whole(card.get("index"))]
    return sorted((card for card in found if isinstance(card.get("uuid"), str)), key=lambda card: int(card["index"]))


def mig_devices(cards: t.Sequence[Card]) -> dict[str, dict[str, t.Any]]:
    """The MIG devices of partitioned cards, by UUID, each as a card of its own."""
    found = {}
    for card in cards:
        devices = _mapping(card.get("mig")).get("devices")
        for device in devices if isinstance(devices, (list, tuple)) else []:
            uuid = _mapping(device).get("uuid")
            if isinstance(uuid, str):
                profile = device.get("name")
                name = f"{card.get('name')} ({profile})" if profile else card.get("name")
                memory = device.get("memory_total_bytes")
                found[uuid] = {**resolved(card), "uuid": uuid, "name": name, "memory_total_bytes": memory}
    return found


def resolved(card: Card) -> dict[str, t.Any]:
    """A card as the plan and the record have it."""
    return {key: card.get(key) for key in ("index", "uuid", "name", "pci_bus_id", "memory_total_bytes")}


def has_mig(card: Card) -> bool:
    return _mapping(card.get("mig")).get("current") == "enabled"


def broken(card: Card) -> str:
    """Why no service should be given this card, or an empty string."""
    ecc = _mapping(card.get("ecc"))
    errors = ecc.get("uncorrected_volatile")
    if isinstance(errors, int) and errors > 0:
        return f"{plural(errors, 'uncorrected memory error')} since the driver was loaded"
    if _mapping(ecc.get("remapped_rows")).get("failure") is True:
        return "a memory row that could not be remapped"
    return ""


def misfit(card: Card, wish: GpuWish) -> str | None:
    """What keeps a card from being what a wish asks for; empty where nothing does, ``None`` where it is not known."""
    unknown = False
    memory = card.get("memory_total_bytes")
    if wish.min_memory_gib is not None:
        if not isinstance(memory, int):
            unknown = True
        elif memory < wish.min_memory_gib * GIB:
            # Rounded down: 79.6 must not read as the 80 that was asked for.
            return f"{int(memory / GIB * 10) / 10:g} GiB"
    if wish.name:
        if not isinstance(card.get("name"), str):
            unknown = True
        elif not re.search(wish.name, card["name"], re.IGNORECASE):
            return str(card["name"])
    if wish.min_compute_capability is not None:
        capability = number(card.get("compute_capability"))
        if capability is None:
            unknown = True
        elif capability < wish.min_compute_capability:
            return f"compute capability {card['compute_capability']}"
    return None if unknown else ""


class Links:
    """What joins every two cards, by UUID; ``known`` is false where the host did not say."""

    def __init__(self, cards: t.Sequence[Card], topology: t.Any) -> None:
        self.known = isinstance(topology, (list, tuple))
        self._links: dict[frozenset[str], str] = {}
        uuids = {card["index"]: card["uuid"] for card in cards}
        for entry in topology if self.known else []:
            pair = _mapping(entry).get("gpus")
            if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(_whole, pair)):
                continue
            ends = frozenset(uuids[index] for index in pair if index in uuids)
            link = str(entry.get("link") or "").lower()
            nvlinks = entry.get("nvlinks")
            if len(ends) == 2 and (link or nvlinks):
                joined = isinstance(nvlinks, int) and nvlinks > 0
                self._links[ends] = NVLINK if joined or re.fullmatch(r"nv\d+", link) else link

    def between(self, one: Card, other: Card) -> str:
        """``nvlink``, ``pix``, ``sys``, ...; empty where it is not known."""
        return self._links.get(frozenset((one["uuid"], other["uuid"])), "")

    def joined(self, cards: t.Sequence[Card], link: str) -> bool:
        """Whether every two of them are joined in this way."""
        return all(self.meets(one, other, link) for at, one in enumerate(cards) for other in cards[:at])

    def meets(self, one: Card, other: Card, link: str) -> bool:
        between = self.between(one, other)
        if link == NVLINK:
            return between == NVLINK
        return link == ANY or between not in ("", "sys")

    def gaps(self, cards: t.Sequence[Card]) -> bool:
        """Whether something is not known between any two of them."""
        return any(not self.between(one, other) for at, one in enumerate(cards) for other in cards[:at])

    def island(self, card: Card, cards: t.Sequence[Card]) -> list[Card]:
        """The cards among ``cards`` that NVLink joins with this one, over others too; with it."""
        reached, waiting = {card["uuid"]}, [card]
        while waiting:
            one = waiting.pop()
            for other in cards:
                if other["uuid"] not in reached and self.between(one, other) == NVLINK:
                    reached.add(other["uuid"])
                    waiting.append(other)
        return [other for other in cards if other["uuid"] in reached]


def choose(wish: GpuWish, free: t.Sequence[Card], links: Links, held: t.Collection[str] = ()) -> list[Card]:
    """The best set of free cards that fit, by index; empty where no set has what must join them.

    One model of card first, then NVLink between all of them, then the cards that the service has (``held``), then the
    smallest island of NVLink that is large enough, then one NUMA node, then the lowest indices.
    """
    best: tuple[t.Any, list[Card]] | None = None
    islands = {card["uuid"]: links.island(card, free) for card in free}
    for pool in _pools(free, islands):
        ordered = sorted(pool, key=lambda card: (card["uuid"] not in held, card["index"]))
        for link in (NVLINK, wish.link):
            chosen = _joined_set(ordered, wish.count, links, link)
            if not chosen or not links.joined(chosen, wish.link):
                continue
            chosen = sorted(chosen, key=lambda card: int(card["index"]))
            score = _score(chosen, links, held, islands)
            if best is None or score < best[0]:
                best = (score, chosen)
    return best[1] if best else []


def _pools(free: t.Sequence[Card], islands: t.Mapping[str, t.Sequence[Card]]) -> t.Iterator[t.Sequence[Card]]:
    """The groups in which a set is looked for: all cards, those of one model, island or NUMA node, and what is both."""
    models = {str(card.get("name")) for card in free}
    nodes = {str(card.get("numa_node")) for card in free}
    seen: set[tuple[str, ...]] = set()
    for model in [*sorted(models), ""]:
        alike = [card for card in free if model in ("", str(card.get("name")))]
        for island in [alike, *(islands[card["uuid"]] for card in alike)]:
            near = {card["uuid"] for card in island}
            for node in ["", *sorted(nodes)]:
                pool = [card for card in alike if card["uuid"] in near and node in ("", str(card.get("numa_node")))]
                mark = tuple(card["uuid"] for card in pool)
                if mark not in seen:
                    seen.add(mark)
                    yield pool


def _score(
    chosen: t.Sequence[Card], links: Links, held: t.Collection[str], islands: t.Mapping[str, t.Sequence[Card]]
) -> tuple[t.Any, ...]:
    linked = links.joined(chosen, NVLINK)
    nodes = {str(card["numa_node"]) for card in chosen if card.get("numa_node") is not None}
    return (
        len({str(card.get("name")) for card in chosen}) > 1,
        not linked,
        -sum(card["uuid"] in held for card in chosen),
        len(islands[chosen[0]["uuid"]]) if linked else 0,
        len(nodes) > 1,
        [card["index"] for card in chosen],
    )


def _joined_set(ordered: t.Sequence[Card], count: int, links: Links, link: str) -> list[Card]:
    """The first ``count`` cards of which every two are joined by ``link``; empty where there are none."""
    steps = 0

    def extend(chosen: list[Card], start: int) -> list[Card]:
        nonlocal steps
        if len(chosen) == count:
            return chosen
        for position in range(start, len(ordered) - (count - len(chosen)) + 1):
            steps += 1
            if steps > MOST_STEPS:
                break
            card = ordered[position]
            if all(links.meets(card, other, link) for other in chosen):
                found = extend([*chosen, card], position + 1)
                if found:
                    return found
        return []

    return extend([], 0)


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}
