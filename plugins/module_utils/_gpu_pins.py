# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Pins: the cards that a service was deployed on, kept by UUID, and what became of them. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import Card
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import AUTO, GpuWish, Wish, as_wish, same_wish

Repin = t.Union[bool, str, t.Sequence[str], None]


@dataclass(frozen=True)
class Pin:
    """``wish`` is what the cards were chosen for; of an older release's record only the cards are known."""

    cards: tuple[Card, ...]
    wish: t.Any = None
    wish_known: bool = True
    uuids: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "uuids", frozenset(card["uuid"] for card in self.cards))

    def made_for(self, wish: Wish) -> bool:
        """Whether the service asks for the same as when it was deployed."""
        # Left open, the plan chose how many. Whoever asks for as many now means these.
        if self.wish_known and self.wish != AUTO:
            return same_wish(self.wish, wish)
        if self.wish == AUTO and wish is None:
            return True
        if isinstance(wish, tuple):
            return len(wish) == len(self.cards) and all(
                wanted in (card["uuid"], card.get("index")) for wanted, card in zip(wish, self.cards)
            )
        return as_wish(wish) == GpuWish(count=len(self.cards))


def recorded_pins(facts: t.Mapping[str, t.Any]) -> dict[str, Pin]:
    """The pins of a host by service: of what was applied last, proved or not, else of the record.

    What was applied last is what runs, and what a person accepted with ``vllm_repin`` even if the probes failed then.
    """
    pins: dict[str, Pin] = {}
    for source in ("record", "applied"):
        services = _mapping(_mapping(facts.get(source)).get("services"))
        for name, entry in services.items():
            pin = as_pin(entry)
            pins.pop(name, None)
            if pin:
                pins[name] = pin
    return pins


def as_pin(entry: t.Any) -> Pin | None:
    """One service of the record as a pin; ``None`` where it has no cards."""
    cards = _mapping(entry).get("gpus")
    kept = [card for card in cards if isinstance(_mapping(card).get("uuid"), str)] if isinstance(cards, list) else []
    return Pin(tuple(kept), entry.get("wish"), "wish" in entry) if kept else None


def repinned(repin: Repin, service: str) -> bool:
    """Whether a service is to be given its cards anew; from an extra variable it is text (``-e vllm_repin=chat``)."""
    if isinstance(repin, str):
        text = repin.strip().lower()
        # Names are such words; a list that was written as text has brackets and quotes around them.
        repin = text in ("true", "yes", "1") or re.findall(r"[a-z0-9-]+", text)
    return service in repin if isinstance(repin, (list, tuple, set, frozenset, dict)) else repin in (True, 1)


def check_pin(pin: Pin, wish: Wish, cards: t.Sequence[Card], silent: t.Sequence[Card], service: str) -> list[Finding]:
    """A finding where a card of the pin is gone; ``silent`` are cards without a UUID, which do not answer."""
    present = {card["uuid"] for card in cards}
    gone = [card for card in pin.cards if card["uuid"] not in present]
    if not gone:
        return []
    seen = "; ".join(_what_became(card, cards, silent) for card in gone)
    named = [card["uuid"] for card in gone if isinstance(wish, tuple) and card["uuid"] in wish]
    remedy = f"accept the cards of now with vllm_repin: [{service}]"
    if named:
        remedy = f"name other cards than {', '.join(named)} in gpus: of {service}"
    if len(named) < len(gone) and named:
        remedy += f", with vllm_repin: [{service}]"
    count = len(pin.cards)
    expected = f"the {'card' if count == 1 else f'{count} cards'} that {service} was deployed on"
    return [Finding("plan.gpu_changed", ERROR, seen, expected, f"put the card back, or {remedy}", service)]


def renumbered(pin: Pin, wish: Wish, cards: t.Sequence[Card], service: str) -> list[Finding]:
    """Indices in a wish are those of the first deploy; where they are others now, that is said."""
    if not isinstance(wish, tuple) or len(wish) != len(pin.cards):
        return []
    now = {card["uuid"]: card["index"] for card in cards}
    moved = [
        f"{wanted} is {card['uuid']}, whose index is {now[card['uuid']]} now"
        for wanted, card in zip(wish, pin.cards)
        if isinstance(wanted, int) and now.get(card["uuid"]) not in (None, wanted)
    ]
    if not moved:
        return []
    seen = f"the indices of GPUs changed since {service} was deployed: {', '.join(moved)}"
    remedy = f"nothing to do; vllm_repin: [{service}] takes the indices of now"
    return [Finding("plan.gpu_renumbered", INFO, seen, "the same cards as before, which it keeps", remedy, service)]


def _what_became(card: Card, cards: t.Sequence[Card], silent: t.Sequence[Card]) -> str:
    was = _named(card)
    slot = card.get("pci_bus_id")
    if not isinstance(slot, str):
        return f"{was} is not on this host any more"
    if any(_same_slot(slot, other.get("pci_bus_id")) for other in silent):
        return f"slot {slot} held {was}, and holds a card that does not answer now"
    now = next((other for other in cards if _same_slot(slot, other.get("pci_bus_id"))), None)
    if now is None:
        return f"slot {slot} held {was}, and is empty now"
    return f"slot {slot} held {was}, and holds {_named(now)} now"


def _named(card: Card) -> str:
    return f"{card['uuid']} ({card['name']})" if card.get("name") else str(card["uuid"])


def _same_slot(one: str, other: t.Any) -> bool:
    """PCI addresses, whose domain has four digits or eight."""
    return isinstance(other, str) and one.lower().lstrip("0") == other.lower().lstrip("0")


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}
