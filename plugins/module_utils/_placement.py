# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which hosts and cards the services of a fleet get. Pure, no I/O, on the controller.

What runs and still fits stays. The rest is placed by best fit, the most demanding first; only where that leaves
something without a place, and another packing may exist, a solver looks for it. The same input gives the same output,
in whatever order it comes.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _placement_solver
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_fit import (
    Choice,
    HostState,
    choose,
    fits_as_is,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    CHANGED,
    KEPT,
    MOVED,
    NEW,
    Assignment,
    Host,
    Placement,
    Shape,
    Want,
    natural,
)

Open = list[tuple[Want, int]]
Solve = t.Callable[
    [t.Sequence[HostState], t.Sequence[tuple[Want, int]], t.Sequence[Assignment]],
    t.Optional[_placement_solver.Solution],
]


class Board:
    """All hosts while they fill up, in the order of their names."""

    def __init__(self, hosts: t.Iterable[Host]) -> None:
        kinds: dict[t.Any, int] = {}
        self.states = [HostState(host, kinds) for host in sorted(hosts, key=lambda host: natural(host.name))]
        self.by_name = {state.host.name: state for state in self.states}
        # Hosts of one kind in one state offer the same: a fleet is a few kinds in a few states.
        self._seen: dict[t.Any, dict[t.Any, Choice | None]] = {}

    def copy(self) -> Board:
        twin = Board.__new__(Board)
        twin.states = [state.copy() for state in self.states]
        twin.by_name = {state.host.name: state for state in twin.states}
        twin._seen = self._seen
        return twin

    def offers(self, want: Want) -> t.Iterator[tuple[HostState, Choice]]:
        seen = self._seen.setdefault(want.needs, {})
        for state in self.states:
            if not state.admits(want):
                continue
            if not state.cards:
                choice = choose(state, want)
            elif state.key in seen:
                choice = seen[state.key]
            else:
                choice = seen[state.key] = choose(state, want)
            if choice is not None:
                yield state, choice

    def take(self, want: Want, state: HostState, cards: t.Sequence[int], how: str, origin: str = "") -> Assignment:
        state.take(want, cards)
        uuids = tuple(state.cards[number].uuid for number in cards)
        return Assignment(want.service, state.host.name, uuids, how, origin)

    def reserve(self, staying: t.Iterable[Assignment], wants: t.Iterable[Want]) -> None:
        """The ports that were chosen for what stays: its clients know them, so no other service is given them."""
        free = {want.service for want in wants if want.port is None}
        for item in staying:
            state = self.by_name[item.host]
            running = state.host.running.get(item.service)
            if item.service in free and item.how in (KEPT, CHANGED) and running and running.port is not None:
                state.ports.add(running.port)


@dataclass
class _Stay:
    """What stays where it is, the hosts that services have to leave, and how many hosts have each."""

    assignments: list[Assignment] = field(default_factory=list)
    leaving: dict[str, list[str]] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)


def place(
    hosts: t.Iterable[Host],
    wants: t.Iterable[Want],
    missing: t.Collection[str] = (),
    solve: Solve = _placement_solver.solve,
) -> Placement:
    """Each replica of ``wants`` to a host of its own.

    ``missing`` are hosts of the fleet of which nothing is known now. A replica that no other host has is taken to be on
    one of them, as far as they may have it, and is placed nowhere else.
    """
    ordered = sorted(wants, key=lambda want: want.service)
    board = Board(hosts)
    stay = _keep(board, ordered)
    board.reserve(stay.assignments, ordered)
    kept: dict[str, int] = {}
    for item in stay.assignments:
        kept[item.service] = kept.get(item.service, 0) + 1
    waiting: dict[str, int] = {}
    still: Open = []
    for want in ordered:
        need = want.replicas - kept.get(want.service, 0)
        unseen = max(0, want.replicas - stay.found.get(want.service, 0))
        wait = min(need, unseen, sum(1 for name in missing if want.allows(name)))
        if wait > 0:
            waiting[want.service] = wait
        if need > wait:
            still.append((want, need - wait))
    found, unplaced, search = _place_open(board, still, solve)
    placed = [*stay.assignments, *_name_origins(found, stay.leaving)]
    placed.sort(key=lambda item: (natural(item.host), item.service))
    return Placement(tuple(placed), unplaced, waiting, search)


def _keep(board: Board, wants: t.Sequence[Want]) -> _Stay:
    """First every service that can go on just as it runs, then those that get other cards of the same host."""
    stay = _Stay()
    again: list[tuple[Want, HostState]] = []
    kept: dict[str, int] = {}
    for want in wants:
        holders = [state for state in board.states if want.service in state.host.running]
        stay.found[want.service] = len(holders)
        for state in holders:
            admitted = state.admits(want, running=True)
            cards = fits_as_is(state, want, state.host.running[want.service].cards) if admitted else None
            if cards is None:
                again.append((want, state))
            elif kept.get(want.service, 0) < want.replicas:
                stay.assignments.append(board.take(want, state, cards, KEPT))
                kept[want.service] = kept.get(want.service, 0) + 1
    again.sort(key=lambda pair: (_demand(pair[0]), natural(pair[1].host.name)))
    for want, state in again:
        if kept.get(want.service, 0) >= want.replicas:
            continue
        held = state.host.running[want.service].cards
        prefer = frozenset(state.position[uuid] for uuid in held if uuid in state.position)
        choice = choose(state, want, prefer) if state.admits(want, running=True) else None
        if choice is None:
            stay.leaving.setdefault(want.service, []).append(state.host.name)
            continue
        stay.assignments.append(board.take(want, state, choice.cards, CHANGED))
        kept[want.service] = kept.get(want.service, 0) + 1
    return stay


def _name_origins(found: t.Iterable[Assignment], leaving: t.Mapping[str, t.Sequence[str]]) -> list[Assignment]:
    """Say of new places which of them replace one that a service leaves."""
    left = {service: list(names) for service, names in leaving.items()}
    named: list[Assignment] = []
    for item in sorted(found, key=lambda item: (item.service, natural(item.host))):
        origins = left.get(item.service)
        named.append(replace(item, how=MOVED, origin=origins.pop(0)) if origins else item)
    return named


def _demand(want: Want) -> tuple[t.Any, ...]:
    """The most demanding first."""
    first = want.shapes[0] if want.shapes else Shape(0)
    return (-first.count, -first.memory_bytes, -want.share, want.service)


def _place_open(board: Board, still: Open, solve: Solve) -> tuple[list[Assignment], dict[str, int], str]:
    """What has no place yet: the assignments, the replicas left over by service, and how it came about."""
    room = {want.service: sum(1 for _offer in board.offers(want)) for want, _count in still}
    by_demand = sorted(still, key=lambda pair: (*_demand(pair[0])[:2], room[pair[0].service], *_demand(pair[0])[2:]))
    best, left = _best_fit(board.copy(), by_demand)
    if left:
        by_choice = sorted(still, key=lambda pair: (room[pair[0].service] - pair[1], _demand(pair[0])))
        other, other_left = _best_fit(board.copy(), by_choice)
        if _count(other_left) < _count(left):
            best, left = other, other_left
    if not left:
        return best, left, "heuristic"
    # Even alone beside what runs, these replicas have no host.
    hopeless = sum(max(0, count - room[want.service]) for want, count in still)
    if _count(left) <= hopeless:
        return best, left, "impossible"
    solution = solve(board.states, still, best)
    if solution is None:
        return best, left, "missing"
    wanted = {want.service: count for want, count in still}
    solved_left = _left_over(wanted, solution.assignments)
    if _count(solved_left) < _count(left):
        best, left = list(solution.assignments), solved_left
    if not left:
        return best, left, "solver"
    return best, left, "impossible" if solution.proven else "limit"


def _best_fit(board: Board, still: Open) -> tuple[list[Assignment], dict[str, int]]:
    found: list[Assignment] = []
    left: dict[str, int] = {}
    for want, count in still:
        for done in range(count):
            offer = min(board.offers(want), key=lambda pair: pair[1].score, default=None)
            if offer is None:
                left[want.service] = count - done
                break
            found.append(board.take(want, offer[0], offer[1].cards, NEW))
    return found, left


def _left_over(wanted: t.Mapping[str, int], found: t.Iterable[Assignment]) -> dict[str, int]:
    left = dict(wanted)
    for item in found:
        left[item.service] -= 1
    return {service: count for service, count in left.items() if count > 0}


def _count(left: t.Mapping[str, int]) -> int:
    return sum(left.values())
