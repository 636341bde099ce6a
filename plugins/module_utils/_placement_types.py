# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The nouns of placement: hosts with cards, services that want some, and what came of it. Plain data, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_ports import clash

# A whole card, in thousandths: integers add up the same in every order.
WHOLE = 1000
# Of a card with several services; the rest is for the driver and the CUDA contexts, which no engine counts.
MOST_SHARED = 950
ISLAND = "nvlink"
# What the plan of each host has where the placement has errors: it points to those, which are said once.
FAILED = "plan.placement_failed"

Groups = tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Card:
    """One GPU. What is ``None`` is not known, and held against no card."""

    uuid: str
    index: int
    name: str = ""
    memory_bytes: int | None = None
    capability: tuple[int, int] | None = None
    numa: int | None = None
    healthy: bool | None = None


@dataclass(frozen=True)
class Running:
    """What the record of a host says of one service. Without cards only the host is known."""

    cards: tuple[str, ...] = ()
    port: int | None = None


@dataclass(frozen=True)
class Host:
    """``groups`` has for each kind of link the cards that it joins; ``None`` where that is not known.

    ``taken`` names the holder of each card that is not the fleet's to give, and ``parts`` how many thousandths of it
    where that is less than all. ``ports`` names that of each port that only the inventory can free. Ports in ``busy``
    are held by others now, on the addresses in ``listening``, which is no matter to what runs already. ``names`` are
    services of the host's own.
    """

    name: str
    cards: tuple[Card, ...] = ()
    groups: t.Mapping[str, Groups] | None = None
    running: t.Mapping[str, Running] = field(default_factory=dict)
    taken: t.Mapping[str, str] = field(default_factory=dict)
    parts: t.Mapping[str, int] = field(default_factory=dict)
    ports: t.Mapping[int, str] = field(default_factory=dict)
    busy: t.Mapping[int, str] = field(default_factory=dict)
    listening: t.Mapping[int, tuple[str, ...]] = field(default_factory=dict)
    names: frozenset[str] = frozenset()

    def is_busy(self, port: int, address: str | None) -> bool:
        """Whether something of others meets a service on this port and address; ``None``: any address."""
        if port not in self.busy:
            return False
        held = self.listening.get(port)
        return address is None or not held or any(clash(address, other) for other in held)


@dataclass(frozen=True)
class Shape:
    """One way to run a service: so many cards, each with at least so much memory (0: not known).

    Memory that was ``reckoned`` from the model chooses new cards, and takes none away from what runs on others.
    """

    count: int
    memory_bytes: int = 0
    reckoned: bool = False


@dataclass(frozen=True)
class Unsized:
    """Why the number of cards does not follow from the model, and what to do about it."""

    seen: str
    remedy: str


@dataclass(frozen=True)
class Want:
    """A fleet service. Each replica runs on a host of its own.

    ``shapes`` are tried in order; none means that the size is not known. ``hosts`` of ``None`` are all, ``port`` of
    ``None`` leaves the port to the plan, an ``address`` of ``None`` is that of the host, and a ``share`` below
    :data:`WHOLE` is the stated part of each card's memory. ``name`` is a regular expression. Where the number of cards
    is our choice (``elastic``), a replica that has more than it needs keeps them. ``patterns`` are ``hosts`` as
    written, for words alone, and ``unsized`` says why there are no shapes.
    """

    service: str
    replicas: int = 1
    shapes: tuple[Shape, ...] = (Shape(1),)
    link: str = ""
    name: str = ""
    capability: tuple[int, int] | None = None
    share: int = WHOLE
    hosts: frozenset[str] | None = None
    port: int | None = None
    address: str | None = None
    elastic: bool = False
    patterns: tuple[str, ...] = ()
    unsized: Unsized | None = None

    def allows(self, host: str) -> bool:
        return self.hosts is None or host in self.hosts

    @property
    def needs(self) -> tuple[t.Any, ...]:
        """What decides which cards suit, and nothing else: equal needs are looked up once."""
        return (self.shapes, self.link, self.name, self.capability, self.share)


KEPT, CHANGED, MOVED, NEW = "kept", "changed", "moved", "new"


@dataclass(frozen=True)
class Assignment:
    """One replica on one host. ``origin`` is the host that it leaves, where it moves."""

    service: str
    host: str
    cards: tuple[str, ...]
    how: str = NEW
    origin: str = ""


@dataclass(frozen=True)
class Placement:
    """``unplaced`` and ``waiting`` count replicas: those without a place, and those taken to be on a missing host.

    ``search`` says how it came about. Where all have a place: ``heuristic`` or ``solver``. Where not: ``impossible``
    (proven: beside what runs not more can be placed), ``limit`` (the search was not finished) or ``missing`` (there is
    no solver on the controller).
    """

    assignments: tuple[Assignment, ...] = ()
    unplaced: t.Mapping[str, int] = field(default_factory=dict)
    waiting: t.Mapping[str, int] = field(default_factory=dict)
    search: str = "heuristic"

    def on(self, host: str) -> list[Assignment]:
        return [item for item in self.assignments if item.host == host]


def natural(name: str) -> tuple[t.Any, ...]:
    """gpu-2 before gpu-10; a name as a whole decides between those that read the same."""
    parts = re.split(r"(\d+)", name)
    return (*((int(part), "") if part.isdecimal() else (-1, part) for part in parts), (-1, name))
