# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which cards of one host a service would get, and how good a choice that is. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    ISLAND,
    MOST_SHARED,
    WHOLE,
    Card,
    Host,
    Shape,
    Want,
)

GIB = 1024**3


@dataclass(frozen=True)
class Choice:
    """Positions of cards in the host's own order. A lower ``score`` is better, and compares between hosts."""

    score: tuple[int, ...]
    cards: tuple[int, ...]


class HostState:
    """A host while it fills up. ``used`` is in thousandths of each card, ``key`` the same for hosts in equal states."""

    def __init__(self, host: Host, kinds: dict[t.Any, int]) -> None:
        self.host = host
        self.cards = tuple(sorted(host.cards, key=lambda card: (card.index, card.uuid)))
        self.position = {card.uuid: number for number, card in enumerate(self.cards)}
        self.used = [host.parts.get(card.uuid, WHOLE) if card.uuid in host.taken else 0 for card in self.cards]
        self.holders: list[list[str]] = [
            [host.taken[card.uuid]] if card.uuid in host.taken else [] for card in self.cards
        ]
        self.services: set[str] = set()
        self.ports = set(host.ports)
        self._groups: dict[str, list[tuple[int, ...]] | None] = {}
        # What an equal host has in the same places; uuids and names do not matter to a choice.
        kind = (
            tuple((card.name, card.memory_bytes, card.capability, card.numa, card.healthy) for card in self.cards),
            None
            if host.groups is None
            else tuple((level, tuple(self.groups(level) or ())) for level in sorted(host.groups)),
        )
        self.kind = kinds.setdefault(kind, len(kinds))
        self.key = (self.kind, tuple(self.used))

    def groups(self, level: str) -> list[tuple[int, ...]] | None:
        """The cards by position, linked at this level; each card is in one group. ``None`` where nothing is known."""
        if self.host.groups is None:
            return None
        if level not in self._groups:
            found: list[tuple[int, ...]] = []
            seen: set[int] = set()
            for group in self.host.groups.get(level, ()):
                members = {self.position[uuid] for uuid in group if uuid in self.position} - seen
                if members:
                    found.append(tuple(sorted(members)))
                    seen |= members
            found += [(number,) for number in range(len(self.cards)) if number not in seen]
            self._groups[level] = sorted(found)
        return self._groups[level]

    def copy(self) -> HostState:
        twin = HostState.__new__(HostState)
        twin.__dict__.update(self.__dict__)
        twin.used = list(self.used)
        twin.holders = [list(names) for names in self.holders]
        twin.services = set(self.services)
        twin.ports = set(self.ports)
        return twin

    def take(self, want: Want, cards: t.Iterable[int]) -> None:
        for number in cards:
            self.used[number] += want.share
            self.holders[number].append(want.service)
        self.services.add(want.service)
        if want.port is not None:
            self.ports.add(want.port)
        self.key = (self.kind, tuple(self.used))

    def free(self) -> int:
        return self.used.count(0)

    def admits(self, want: Want, running: bool = False) -> bool:
        """Whether a replica may come here at all, whatever the cards; ``running``: it is here already."""
        port = want.port
        if port in self.ports or (port is not None and not running and self.host.is_busy(port, want.address)):
            return False
        if want.service in self.services or want.service in self.host.names:
            return False
        return want.allows(self.host.name)


def suits(card: Card, want: Want, memory_bytes: int) -> bool:
    """Whether a card is of the right kind, however full it is. What is not known is held against no card."""
    if want.name and card.name and not re.search(want.name, card.name, re.IGNORECASE):
        return False
    if want.capability is not None and card.capability is not None and card.capability < want.capability:
        return False
    return card.memory_bytes is None or card.memory_bytes >= memory_bytes


def doubtful(card: Card, want: Want, memory_bytes: int) -> bool:
    """Whether something that matters is not known of a card."""
    unnamed, unrated = bool(want.name) and not card.name, want.capability is not None and card.capability is None
    return unnamed or unrated or (memory_bytes > 0 and card.memory_bytes is None)


def has_room(state: HostState, number: int, want: Want) -> bool:
    used = state.used[number]
    return used == 0 or used + want.share <= MOST_SHARED


def usable(state: HostState, want: Want, shape: Shape) -> list[int]:
    """The cards that a replica could have now."""
    return [
        number
        for number, card in enumerate(state.cards)
        if has_room(state, number, want) and card.healthy is not False and suits(card, want, shape.memory_bytes)
    ]


def choose(state: HostState, want: Want, prefer: t.AbstractSet[int] = frozenset()) -> Choice | None:
    """The best cards of this host; ``prefer`` are those that the service has now."""
    found: list[Choice] = []
    for order, shape in enumerate(want.shapes):
        if shape.count == 0:
            # The CPU engine: only on hosts without any GPU, as the plan wants it, and where there is least beside it.
            if not state.cards:
                found.append(Choice((0, 0, order, 0, 0, 0, len(state.services)), ()))
            continue
        open_cards = usable(state, want, shape)
        if len(open_cards) >= shape.count:
            found += _within(state, want, shape, order, open_cards, prefer)
    return min(found, key=lambda choice: (choice.score, choice.cards), default=None)


def _within(
    state: HostState, want: Want, shape: Shape, order: int, open_cards: list[int], prefer: t.AbstractSet[int]
) -> t.Iterator[Choice]:
    """One choice for each group that has the cards; without a wished link, at last one across groups."""
    groups = state.groups(want.link or ISLAND)
    unlinked = bool(want.link) and groups is None

    def unknown(cards: t.Sequence[int]) -> int:
        return int(unlinked or any(doubtful(state.cards[number], want, shape.memory_bytes) for number in cards))

    available = set(open_cards)
    host_left = state.free() - shape.count
    whole = False
    for group in groups if groups is not None else [tuple(range(len(state.cards)))]:
        members = [number for number in group if number in available]
        if len(members) < shape.count:
            continue
        whole = True
        cards = _pick(state, want, shape, members, prefer)
        untouched = groups is not None and len(group) > 1 and all(state.used[number] == 0 for number in group)
        breaks = int(untouched and shape.count < len(group))
        kept = -len(prefer & set(cards))
        score = (
            kept,
            unknown(cards),
            order,
            0,
            breaks,
            _surplus(state, cards, shape),
            _left(state, members, cards),
            host_left,
        )
        yield Choice(score, cards)
    if not whole and not want.link and groups is not None:
        fullest_first = sorted(groups, key=lambda group: (-len(available & set(group)), group))
        members = [number for group in fullest_first for number in group if number in available]
        cards = tuple(sorted(members[: shape.count]))
        kept = -len(prefer & set(cards))
        yield Choice((kept, unknown(cards), order, 1, 0, _surplus(state, cards, shape), 0, host_left), cards)


def _pick(
    state: HostState, want: Want, shape: Shape, members: list[int], prefer: t.AbstractSet[int]
) -> tuple[int, ...]:
    """Of one group: what the service has already, then cards on one NUMA node, then shared and small ones first."""
    count = shape.count

    def rank(number: int) -> tuple[int, ...]:
        card = state.cards[number]
        unsure = doubtful(card, want, shape.memory_bytes)
        return (number not in prefer, unsure, -state.used[number], card.memory_bytes or 0, number)

    nodes: dict[int | None, list[int]] = {}
    for number in members:
        nodes.setdefault(state.cards[number].numa, []).append(number)
    fitting = [node for node in nodes.values() if len(node) >= count]
    if fitting:
        members = min(fitting, key=lambda node: (-len(prefer & set(node)), len(node), node))
    return tuple(sorted(sorted(members, key=rank)[:count]))


def _surplus(state: HostState, cards: t.Sequence[int], shape: Shape) -> int:
    """GiB per card beyond the need: a small model leaves large cards to others."""
    if not shape.memory_bytes:
        return 0
    return max(max(0, (state.cards[number].memory_bytes or 0) - shape.memory_bytes) // GIB for number in cards)


def _left(state: HostState, members: t.Iterable[int], cards: t.Collection[int]) -> int:
    """Whole cards that stay free in the group."""
    return sum(1 for number in members if state.used[number] == 0 and number not in cards)


def holds_together(state: HostState, want: Want, cards: t.Collection[int]) -> bool:
    """Whether these cards have the wished link; also where that is not known."""
    if not want.link or len(cards) < 2:
        return True
    groups = state.groups(want.link)
    return groups is None or any(set(cards) <= set(group) for group in groups)


def fits_as_is(state: HostState, want: Want, uuids: t.Sequence[str]) -> tuple[int, ...] | None:
    """The positions of cards that a service holds, where it may go on just so; a card's health is for the preflight."""
    if not all(uuid in state.position for uuid in uuids):
        return None
    cards = tuple(sorted(state.position[uuid] for uuid in uuids))
    right = (want.elastic and not want.shapes and bool(cards)) or any(
        (shape.count == len(cards) or (want.elastic and 0 < shape.count < len(cards)))
        and all(suits(state.cards[number], want, 0 if shape.reckoned else shape.memory_bytes) for number in cards)
        for shape in want.shapes
    )
    if not right or (not cards and state.cards) or not holds_together(state, want, cards):
        return None
    return cards if all(has_room(state, number, want) for number in cards) else None
