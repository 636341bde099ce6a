# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Why a service has no place, which host comes closest, and what would help. Pure, no I/O.

Nothing is advised that was not tried: each remedy was placed, and gave the service its place.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement import Board, place
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_fit import (
    GIB,
    HostState,
    has_room,
    suits,
    usable,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    ISLAND,
    WHOLE,
    Card,
    Host,
    Placement,
    Shape,
    Unsized,
    Want,
    natural,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

LINK_WORDS = {"nvlink": "joined by NVLink", "pcie": "joined without leaving the CPU socket"}
INSTALL = (
    "install OR-Tools where ansible-playbook runs, which looks for another packing: python3 -m pip install ortools"
)
# So many placements are tried at most for advice, fewer where one takes long.
MOST_TRIES, FEW_TRIES, LARGE = 24, 8, 100_000
# So many of them may ask the solver, and only in a fleet that it packs in a moment.
SOLVED_TRIES, SMALL = 4, 2_000
SHOWN = 3


@dataclass(frozen=True)
class _Miss:
    """How close one host comes: ``lacking`` cards, or a hindrance that no card mends."""

    host: str
    hindrance: str
    lacking: int
    text: str
    holders: tuple[str, ...]

    @property
    def only_hindered(self) -> bool:
        return bool(self.hindrance) and self.lacking <= 0

    @property
    def rank(self) -> tuple[t.Any, ...]:
        return (bool(self.hindrance), self.lacking, natural(self.host))


class Shortfalls:
    """All that could not be placed, in words."""

    def __init__(
        self, hosts: t.Sequence[Host], wants: t.Sequence[Want], missing: t.Collection[str], placement: Placement
    ) -> None:
        self.hosts, self.wants, self.missing, self.placement = hosts, wants, missing, placement
        self.board = Board(hosts)
        by_name = {want.service: want for want in wants}
        for item in placement.assignments:
            state = self.board.by_name[item.host]
            state.take(by_name[item.service], [state.position[uuid] for uuid in item.cards])
        self.board.reserve(placement.assignments, wants)
        self.tries = FEW_TRIES if len(hosts) * len(wants) > LARGE else MOST_TRIES
        self.solved = SOLVED_TRIES if len(hosts) * len(wants) <= SMALL and placement.search != "missing" else 0

    def findings(self, told: t.Collection[str] = ()) -> list[Finding]:
        """One for each service without a place, but for those of which it is told already why."""
        unplaced = [want for want in self.wants if want.service in self.placement.unplaced]
        return [self._finding(want) for want in unplaced if want.service not in told]

    def _finding(self, want: Want) -> Finding:
        lacking = self.placement.unplaced[want.service]
        have = "has" if lacking == 1 else "have"
        whose = f"{lacking} of {want.replicas} replicas" if lacking != want.replicas else plural(lacking, "replica")
        seen = f"{whose} {have} no host"
        if not want.shapes:
            unsized = want.unsized or Unsized("the number of GPUs is not known", f"set gpus: of {want.service}")
            expected = "a model whose size is known, or a number of GPUs"
            return Finding("plan.unplaced", ERROR, f"{seen}; {unsized.seen}", expected, unsized.remedy, want.service)
        misses = sorted((self._miss(state, want) for state in self._allowed(want)), key=lambda miss: miss.rank)
        seen += f"; {self._why(want, misses)}"
        hosts = plural(lacking, "more host") + (f" among {', '.join(want.patterns)}" if want.patterns else "")
        fits = ", where its model fits" if any(_of_a_card(want, shape) for shape in want.shapes) else ""
        expected = f"{hosts} with {need_text(want)}{fits}"
        remedy = "; or ".join(self._remedies(want, lacking, misses))
        return Finding("plan.unplaced", ERROR, seen, expected, remedy, want.service)

    def _allowed(self, want: Want) -> list[HostState]:
        """The hosts that a further replica might have."""
        return [
            state
            for state in self.board.states
            if want.allows(state.host.name) and want.service not in state.services | state.host.names
        ]

    def _why(self, want: Want, misses: t.Sequence[_Miss]) -> str:
        if not misses:
            if not any(want.allows(state.host.name) for state in self.board.states):
                whose = "the fleet" if want.hosts is None else f"hosts: of {want.service}"
                return f"no host of {whose} could be looked at"
            return "every host that it may have runs one already, and each replica has a host of its own"
        kinds = self._of_no_kind(want)
        if kinds:
            return kinds
        nearest = misses[0]
        if nearest.only_hindered:
            return f"nearest is {nearest.host}: {nearest.hindrance}"
        words = f"nearest is {nearest.host}: {nearest.text}"
        fitting = sum(1 for miss in misses if not miss.hindrance and miss.lacking == 0)
        if fitting:
            words = f"{plural(fitting, 'host')} would have room, but not for this and all others"
        said = {
            "impossible": "there is no other packing beside what runs",
            "limit": "no other packing was found before the search ended",
            "missing": "whether another packing has room was not searched",
        }
        return f"{words}; {said.get(self.placement.search, '')}".rstrip("; ")

    def _of_no_kind(self, want: Want) -> str:
        """What no host has, however empty it were."""
        states = self._allowed(want)
        cards = [card for state in states for card in state.cards]
        if want.shapes[0].count == 0:
            return "" if any(not state.cards for state in states) else "it asks for no GPU, and every host has some"
        if not cards:
            return "no host that it may have has a GPU"
        if any(_kind(state, want, shape) >= shape.count for state in states for shape in want.shapes):
            return ""
        named = [card for card in cards if suits(card, replace(want, capability=None), 0)]
        if not named:
            return f"no GPU is a '{want.name}' (there are {_names(cards)})"
        able = [card for card in named if suits(card, want, 0)]
        if not able:
            best = max(card.capability for card in named if card.capability is not None)
            return f"the highest compute capability is {best[0]}.{best[1]}"
        least = min(shape.memory_bytes for shape in want.shapes)
        largest = max(card.memory_bytes or 0 for card in able)
        if largest < least:
            return f"the largest GPU has {_gib(largest)} GiB, {_gib(least - largest, up=True)} GiB short"
        shape = want.shapes[-1]
        most, host = max(((_kind(state, want, shape), state.host.name) for state in states), key=lambda pair: pair[0])
        alike = f" {LINK_WORDS[want.link]}" if want.link else ""
        return f"the most GPUs of this kind{alike} in one host are {most} ({host}), {shape.count - most} short"

    def _miss(self, state: HostState, want: Want) -> _Miss:
        host, name = state.host, state.host.name
        hindrance = ""
        if want.port is not None and (want.port in state.ports or host.is_busy(want.port, want.address)):
            fleet = next((other.service for other in self.wants if other.port == want.port), "")
            runs = next((service for service, run in host.running.items() if run.port == want.port), "")
            holder = host.ports.get(want.port) or host.busy.get(want.port) or runs or fleet
            hindrance = f"port {want.port} is held by {holder}"
        count, group, least = min((self._lacking(state, want, shape) for shape in want.shapes), key=lambda one: one[0])
        free = least - count
        blocked = [number for number in group if number not in usable(state, want, Shape(least, self._memory(want)))]
        words = []
        holders: list[str] = []
        for number in blocked:
            card = state.cards[number]
            if not has_room(state, number, want):
                names = state.holders[number]
                holders += names
                words.append(f"GPU {card.index} is held by {' and '.join(names)}")
            elif card.healthy is False:
                words.append(f"GPU {card.index} reports memory errors")
            else:
                words.append(f"GPU {card.index} is of another kind")
        text = f"{free} of {plural(least, 'GPU')} {'is' if free == 1 else 'are'} free"
        text += f" ({', '.join(words)})" if words else ""
        text = f"{hindrance}; {text}" if hindrance else text
        if not state.cards and least:
            text = "it has no GPU"
        return _Miss(name, hindrance, count, text, tuple(dict.fromkeys(holders)))

    @staticmethod
    def _memory(want: Want) -> int:
        return min(shape.memory_bytes for shape in want.shapes)

    @staticmethod
    def _lacking(state: HostState, want: Want, shape: Shape) -> tuple[int, tuple[int, ...], int]:
        """How many cards the best group lacks, the group, and how many are needed."""
        open_cards = set(usable(state, want, shape))
        everything = [tuple(range(len(state.cards)))]
        groups = (state.groups(want.link) or everything) if want.link else everything
        best = max(groups, key=lambda group: len(open_cards & set(group)), default=())
        free = min(shape.count, len(open_cards & set(best)))
        return shape.count - free, best, shape.count

    # --- advice ---

    def _remedies(self, want: Want, lacking: int, misses: t.Sequence[_Miss]) -> list[str]:
        found: list[str] = []
        if self.placement.search == "missing":
            found.append(INSTALL)
        for words, hosts, wants in self._relaxations(want, lacking, misses):
            if len(found) >= SHOWN - 1 or self.tries <= 0:
                break
            if self._helps(want.service, hosts, wants):
                found.append(words)
        if misses and misses[0].only_hindered:
            first = misses[0]
            return found or [
                f"end what holds port {want.port} on {first.host}, or set another port: for {want.service}"
            ]
        spare = self._spare(want, lacking)
        if self._helps(want.service, [*self.hosts, *spare], self._with(self._anywhere(want, spare))):
            more = "a host" if lacking == 1 else f"{lacking} hosts"
            where = f", within its hosts: ({', '.join(want.patterns)})" if want.patterns else ""
            found.append(f"add {more} for {want.service} with {need_text(want)}{where}")
        return found or [f"lower replicas: or gpus: of {want.service}, or add hosts"]

    def _helps(self, service: str, hosts: t.Sequence[Host], wants: t.Sequence[Want]) -> bool:
        """Whether this gives the service its place, and takes nobody else's."""
        self.tries -= 1
        if self._places(service, place(hosts, wants, self.missing, lambda _states, _still, _known: None)):
            return True
        if self.solved <= 0:
            return False
        self.solved -= 1
        return self._places(service, place(hosts, wants, self.missing))

    def _places(self, service: str, tried: Placement) -> bool:
        before = self.placement.unplaced
        return service not in tried.unplaced and all(
            count <= before.get(name, 0) for name, count in tried.unplaced.items()
        )

    def _with(self, changed: Want) -> list[Want]:
        return [changed if want.service == changed.service else want for want in self.wants]

    def _relaxations(
        self, want: Want, lacking: int, misses: t.Sequence[_Miss]
    ) -> t.Iterator[tuple[str, t.Sequence[Host], t.Sequence[Want]]]:
        name = want.service
        yield from self._other_homes(misses)
        if want.port is not None:
            yield (
                f"leave port: of {name} out, which chooses a free one",
                self.hosts,
                self._with(replace(want, port=None)),
            )
        if want.link:
            yield f"link: any instead of {want.link} for {name}", self.hosts, self._with(replace(want, link=""))
        count = max(shape.count for shape in want.shapes)
        memory = min(shape.memory_bytes for shape in want.shapes)
        largest = max((card.memory_bytes or 0 for host in self.hosts for card in host.cards), default=0)
        if not want.elastic and memory > largest > 0:
            words = f"min_memory_gib: {_gib(largest)} for {name}, where its model fits in that"
            yield words, self.hosts, self._with(replace(want, shapes=(Shape(count, largest),)))
        smaller = 1 << (max(0, count - 1).bit_length() - 1) if count > 1 else 0
        while smaller and not want.elastic:
            words = f"gpus: {smaller} instead of {count} for {name}, where its model fits on them"
            yield words, self.hosts, self._with(replace(want, shapes=(Shape(smaller, memory),)))
            smaller //= 2
        if want.hosts is not None:
            yield f"let {name} have other hosts (hosts:)", self.hosts, self._with(replace(want, hosts=None))
        if want.replicas > lacking:
            fewer = want.replicas - lacking
            yield f"replicas: {fewer} for {name}", self.hosts, self._with(replace(want, replicas=fewer))

    def _other_homes(self, misses: t.Sequence[_Miss]) -> t.Iterator[tuple[str, t.Sequence[Host], t.Sequence[Want]]]:
        """Services that stay where they are, and would leave room if they ran elsewhere."""
        by_name = {want.service: want for want in self.wants}
        for miss in [miss for miss in misses if not miss.hindrance][:SHOWN]:
            for holder in miss.holders:
                if holder not in by_name or self.tries <= 0:
                    continue
                others = frozenset(host.name for host in self.hosts if host.name != miss.host)
                held = by_name[holder]
                moved = replace(held, hosts=others if held.hosts is None else held.hosts - {miss.host})
                self.tries -= 1
                tried = place(self.hosts, self._with(moved), self.missing, lambda _states, _still, _known: None)
                homes = sorted((item.host for item in tried.assignments if item.service == holder), key=natural)
                words = f"move {holder} from {miss.host}: set hosts: [{', '.join(homes)}] on {holder}"
                # What is advised is what is tried: these hosts and no others.
                yield words, self.hosts, self._with(replace(held, hosts=frozenset(homes)))

    def _spare(self, want: Want, lacking: int) -> list[Host]:
        """Hosts that have what is needed, and nothing else."""
        shape = want.shapes[0]
        spare = []
        for number in range(lacking):
            cards = tuple(
                Card(f"spare-{number}-{index}", index, memory_bytes=shape.memory_bytes or None)
                for index in range(shape.count)
            )
            group = (tuple(card.uuid for card in cards),)
            spare.append(Host(f"~spare-{number}", cards, {ISLAND: group, "pcie": group}))
        return spare

    @staticmethod
    def _anywhere(want: Want, spare: t.Iterable[Host]) -> Want:
        return replace(want, hosts=None if want.hosts is None else want.hosts | {host.name for host in spare})


def _kind(state: HostState, want: Want, shape: Shape) -> int:
    """How many cards of the right kind the best group has, free or not."""
    right = {number for number, card in enumerate(state.cards) if suits(card, want, shape.memory_bytes)}
    groups = (state.groups(want.link) if want.link else None) or [tuple(range(len(state.cards)))]
    return max((len(right & set(group)) for group in groups), default=0)


def need_text(want: Want) -> str:
    """``4 free GPUs of at least 40 GiB, joined by NVLink``; the alternatives of a sized service with ``or``."""
    shapes: list[Shape] = []
    for shape in sorted(want.shapes, key=lambda one: (one.count, one.memory_bytes)):
        # More cards, or as many larger ones, are no other way to have it.
        if not any(known.memory_bytes <= shape.memory_bytes for known in shapes):
            shapes.append(shape)
    return " or ".join(_shape_text(want, shape) for shape in shapes)


def _of_a_card(want: Want, shape: Shape) -> bool:
    """Whether the memory is that of a card of the fleet on which the model fits, and nobody's wish."""
    return shape.memory_bytes > 0 and (shape.reckoned or want.elastic)


def _shape_text(want: Want, shape: Shape) -> str:
    if shape.count == 0:
        return "no GPU"
    words = "1 free GPU" if shape.count == 1 else f"{shape.count} free GPUs"
    if want.share < WHOLE:
        words = words.replace("free GPU", "GPU") + f" of which {want.share / WHOLE:g} is free"
    if want.name:
        words += f" named '{want.name}'"
    if shape.memory_bytes:
        words += f" of at least {_gib(shape.memory_bytes, up=not _of_a_card(want, shape))} GiB"
    if want.capability:
        words += f" with compute capability {want.capability[0]}.{want.capability[1]}"
    return words + (f", {LINK_WORDS[want.link]}" if want.link and shape.count > 1 else "")


def _gib(size: int, up: bool = False) -> str:
    """In tenths; rounded down, so that 79.6 does not read as 80, and up where it is a need."""
    tenths = -(-size * 10 // GIB) if up else size * 10 // GIB
    return f"{tenths / 10:g}"


def _names(cards: t.Iterable[Card]) -> str:
    return ", ".join(sorted({card.name or "an unknown one" for card in cards}))
