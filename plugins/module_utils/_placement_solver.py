# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Placement as a constraint problem for OR-Tools' CP-SAT, which is imported only when it is asked.

Cards that no service of the problem tells apart are counted as one cell; only where services share cards, each card is
one of its own. One worker, a fixed seed and a limit in deterministic time: the same problem has the same answer.
"""

from __future__ import annotations

import importlib
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_fit import HostState, usable
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    ISLAND,
    MOST_SHARED,
    WHOLE,
    Assignment,
    Shape,
    Want,
)

PACKAGE = "ortools"
# CP-SAT's own measure, about a second each on a common processor.
SEARCH_LIMIT, POLISH_LIMIT = 10.0, 0.5
# Beyond so many pairs of a service and a host, only the hosts that matter most are packed anew.
MOST_PAIRS = 60_000
# ... again and again, as long as that places more.
MOST_ROUNDS = 12


@dataclass(frozen=True)
class Solution:
    """``proven``: no other packing beside what runs places more."""

    assignments: tuple[Assignment, ...]
    proven: bool


def available() -> bool:
    try:
        importlib.import_module("ortools.sat.python.cp_model")
    except ImportError:
        return False
    return True


def solve(
    states: t.Sequence[HostState], still: t.Sequence[tuple[Want, int]], known: t.Sequence[Assignment]
) -> Solution | None:
    """The best packing of ``still`` into what is free, ``known`` being one to begin with; ``None`` without OR-Tools."""
    try:
        cp_model = importlib.import_module("ortools.sat.python.cp_model")
    except ImportError:
        return None
    found: list[Assignment] = []
    proven = True
    for part, wanted in _parts(states, still):
        names = {state.host.name for state in part}
        mine = tuple(item for item in known if item.host in names)
        if len(mine) == sum(min(count, len(part)) for _want, count in wanted):
            found += mine
            continue
        solution = _solve_part(cp_model, part, wanted, mine)
        found += solution.assignments
        proven = proven and solution.proven
    return Solution(tuple(found), proven)


def _parts(
    states: t.Sequence[HostState], still: t.Sequence[tuple[Want, int]]
) -> list[tuple[list[HostState], list[tuple[Want, int]]]]:
    """The problem in pieces: hosts that have no service in common have nothing to do with each other."""
    root = list(range(len(states)))

    def find(number: int) -> int:
        while root[number] != number:
            root[number] = root[root[number]]
            number = root[number]
        return number

    first: list[int | None] = []
    for want, _count in still:
        able = [number for number, state in enumerate(states) if state.admits(want)]
        first.append(able[0] if able else None)
        for number in able[1:]:
            root[find(number)] = find(able[0])
    hosts: dict[int, list[HostState]] = {}
    for number, state in enumerate(states):
        hosts.setdefault(find(number), []).append(state)
    wants: dict[int, list[tuple[Want, int]]] = {}
    for pair, able_first in zip(still, first):
        if able_first is not None:
            wants.setdefault(find(able_first), []).append(pair)
    return [(hosts[number], wants[number]) for number in sorted(wants)]


def _solve_part(
    cp_model: t.Any, states: t.Sequence[HostState], still: t.Sequence[tuple[Want, int]], known: tuple[Assignment, ...]
) -> Solution:
    best = known
    total = sum(count for _want, count in still)
    for _round in range(MOST_ROUNDS):
        part, fixed = _neighbourhood(states, still, best)
        placed: dict[str, int] = {}
        for item in fixed:
            placed[item.service] = placed.get(item.service, 0) + 1
        wanted = [(want, count - placed.get(want.service, 0)) for want, count in still]
        problem = _Problem(cp_model, part, [pair for pair in wanted if pair[1] > 0])
        assignments, proven = problem.solve([item for item in best if item not in fixed])
        if len(fixed) + len(assignments) <= len(best):
            return Solution(best, proven and len(part) == len(states))
        best = (*fixed, *assignments)
        if len(best) == total or len(part) == len(states):
            return Solution(best, proven and len(part) == len(states))
    return Solution(best, False)


def _neighbourhood(
    states: t.Sequence[HostState], still: t.Sequence[tuple[Want, int]], known: t.Sequence[Assignment]
) -> tuple[list[HostState], list[Assignment]]:
    """The hosts to pack anew, and the known assignments on all others, which stay.

    All hosts where that is few enough. Else first those that what is left over may have, and of these the ones with the
    most free cards.
    """
    if len(states) * len(still) <= MOST_PAIRS:
        return list(states), []
    cards: dict[str, int] = {}
    services: dict[str, int] = {}
    placed: dict[str, int] = {}
    for item in known:
        cards[item.host] = cards.get(item.host, 0) + len(item.cards)
        services[item.host] = services.get(item.host, 0) + 1
        placed[item.service] = placed.get(item.service, 0) + 1
    lacking = [want for want, count in still if placed.get(want.service, 0) < count]
    may = {state.host.name: any(state.admits(want) for want in lacking) for state in states}
    order = sorted(
        range(len(states)),
        key=lambda number: (
            not may[states[number].host.name],
            cards.get(states[number].host.name, 0) - states[number].free(),
            number,
        ),
    )
    chosen: list[int] = []
    inside = len(lacking)
    for number in order:
        inside += services.get(states[number].host.name, 0)
        if chosen and inside * (len(chosen) + 1) > MOST_PAIRS:
            break
        chosen.append(number)
    part = [states[number] for number in sorted(chosen)]
    names = {state.host.name for state in part}
    return part, [item for item in known if item.host not in names]


@dataclass(frozen=True)
class _Way:
    """One way to run a service on a host: a shape, and the group of linked cards where it needs one."""

    service: str
    state: HostState
    shape: Shape
    var: t.Any
    # By cell how many cards of it, or by card whether it is one of them.
    cells: tuple[tuple[tuple[int, ...], t.Any], ...]
    cards: tuple[tuple[int, t.Any], ...]


class _Problem:
    """The variables of one problem, and what holds for them."""

    def __init__(self, cp_model: t.Any, states: t.Sequence[HostState], still: t.Sequence[tuple[Want, int]]) -> None:
        self.cp_model, self.states = cp_model, states
        self.still = sorted(still, key=lambda pair: pair[0].service)
        self.model = cp_model.CpModel()
        self.levels = sorted({want.link or ISLAND for want, _count in self.still})
        self.ways: list[_Way] = []
        self.hosts_used: list[t.Any] = []
        for state in states:
            self._add_host(state)
        for want, count in self.still:
            self.model.add(sum(way.var for way in self.ways if way.service == want.service) <= count)

    def _cells(self, state: HostState) -> list[tuple[int, ...]]:
        """Free cards that are alike in all that the services ask for."""
        places: dict[t.Any, list[int]] = {}
        for number, card in enumerate(state.cards):
            if state.used[number]:
                continue
            linked = []
            for level in self.levels:
                groups = state.groups(level)
                linked.append(-1 if groups is None else next(i for i, group in enumerate(groups) if number in group))
            kind = (card.memory_bytes, card.name, card.capability, card.healthy, tuple(linked))
            places.setdefault(kind, []).append(number)
        return [tuple(numbers) for numbers in places.values()]

    def _add_host(self, state: HostState) -> None:
        cells = self._cells(state)
        load: dict[tuple[int, ...], list[t.Any]] = {cell: [] for cell in cells}
        shares: dict[int, list[t.Any]] = {}
        ways: list[_Way] = []
        for want, _count in self.still:
            mine = list(self._ways_of(want, state, cells)) if state.admits(want) else []
            if len(mine) > 1:
                self.model.add_at_most_one(way.var for way in mine)
            for way in mine:
                for cell, amount in way.cells:
                    load[cell].append(amount)
                for number, chosen in way.cards:
                    shares.setdefault(number, []).append(want.share * chosen)
            ways += mine
        for number, parts in sorted(shares.items()):
            if state.used[number]:
                self.model.add(sum(parts) <= MOST_SHARED - state.used[number])
                continue
            opened = self.model.new_bool_var("")
            self.model.add(sum(parts) <= MOST_SHARED * opened)
            load[next(cell for cell in cells if number in cell)].append(opened)
        for cell, parts in load.items():
            if parts:
                self.model.add(sum(parts) <= len(cell))
        self._add_ports(ways)
        if ways:
            used = self.model.new_bool_var("")
            for way in ways:
                self.model.add_implication(way.var, used)
            self.hosts_used.append(used)
        self.ways += ways

    def _add_ports(self, ways: t.Sequence[_Way]) -> None:
        ports = {want.service: want.port for want, _count in self.still if want.port is not None}
        same: dict[int, list[t.Any]] = {}
        for way in ways:
            if way.service in ports:
                same.setdefault(ports[way.service], []).append(way.var)
        for variables in same.values():
            if len(variables) > 1:
                self.model.add_at_most_one(variables)

    def _ways_of(self, want: Want, state: HostState, cells: t.Sequence[tuple[int, ...]]) -> t.Iterator[_Way]:
        for shape in want.shapes:
            if shape.count == 0:
                if not state.cards:
                    yield _Way(want.service, state, shape, self.model.new_bool_var(""), (), ())
                continue
            able = set(usable(state, want, shape))
            groups: t.Sequence[tuple[int, ...]] | None = state.groups(want.link) if want.link else None
            for group in groups if groups is not None else [tuple(range(len(state.cards)))]:
                members = able & set(group)
                if len(members) >= shape.count:
                    yield self._way(want, state, shape, members, cells)

    def _way(
        self, want: Want, state: HostState, shape: Shape, members: set[int], cells: t.Sequence[tuple[int, ...]]
    ) -> _Way:
        var = self.model.new_bool_var("")
        if want.share < WHOLE:
            cards = tuple((number, self.model.new_bool_var("")) for number in sorted(members))
            self.model.add(sum(chosen for _number, chosen in cards) == shape.count * var)
            return _Way(want.service, state, shape, var, (), cards)
        # A group is a union of cells, since the cells are split by every level that is asked for.
        fitting = [cell for cell in cells if cell[0] in members]
        if len(fitting) == 1:
            return _Way(want.service, state, shape, var, ((fitting[0], shape.count * var),), ())
        amounts = tuple((cell, self.model.new_int_var(0, min(shape.count, len(cell)), "")) for cell in fitting)
        self.model.add(sum(amount for _cell, amount in amounts) == shape.count * var)
        return _Way(want.service, state, shape, var, amounts, ())

    def solve(self, known: t.Sequence[Assignment]) -> tuple[list[Assignment], bool]:
        """As many replicas as can be placed, then on few hosts and in few pieces of islands."""
        if not self.ways:
            return [], True
        hinted = {(item.service, item.host) for item in known}
        for way in self.ways:
            self.model.add_hint(way.var, (way.service, way.state.host.name) in hinted)
        placed = sum(way.var for way in self.ways)
        self.model.maximize(placed)
        solver, status = self._run(SEARCH_LIMIT)
        if status not in (self.cp_model.OPTIMAL, self.cp_model.FEASIBLE):
            return [], False
        proven = status == self.cp_model.OPTIMAL
        found = self._read(solver)
        self.model.add(placed >= len(found))
        self.model.clear_hints()
        for way in self.ways:
            self.model.add_hint(way.var, solver.value(way.var))
        self.model.minimize(sum(self.hosts_used) * 10 + sum(self._pieces()))
        solver, status = self._run(POLISH_LIMIT)
        if status in (self.cp_model.OPTIMAL, self.cp_model.FEASIBLE):
            found = self._read(solver)
        return found, proven

    def _pieces(self) -> list[t.Any]:
        """One for each cell beyond the first that a service with several cards touches."""
        pieces: list[t.Any] = []
        for way in self.ways:
            if way.shape.count > 1 and len(way.cells) > 1:
                for cell, amount in way.cells:
                    touched = self.model.new_bool_var("")
                    self.model.add(amount <= len(cell) * touched)
                    pieces.append(touched)
        return pieces

    def _run(self, limit: float) -> tuple[t.Any, t.Any]:
        solver = self.cp_model.CpSolver()
        solver.parameters.num_workers = 1
        solver.parameters.random_seed = 1
        # All that packing is about is in the linear relaxation.
        solver.parameters.linearization_level = 2
        solver.parameters.max_deterministic_time = limit
        # It would take SIGINT, and leave it so that Ctrl-C kills the process at once.
        solver.parameters.catch_sigint_signal = False
        return solver, solver.solve(self.model)

    def _read(self, solver: t.Any) -> list[Assignment]:
        found: list[Assignment] = []
        given: set[tuple[str, int]] = set()
        # Shared cards are chosen one by one, so what only counts takes what these leave.
        chosen = [way for way in self.ways if solver.value(way.var)]
        for way in sorted(chosen, key=lambda way: not way.cards):
            state, cards = way.state, [number for number, variable in way.cards if solver.value(variable)]
            given |= {(state.host.name, number) for number in cards}
            for cell, amount in way.cells:
                count = solver.value(amount)
                left = [number for number in cell if (state.host.name, number) not in given]
                cards += left[:count]
                given |= {(state.host.name, number) for number in left[:count]}
            uuids = tuple(state.cards[number].uuid for number in sorted(cards))
            found.append(Assignment(way.service, state.host.name, uuids))
        return found
