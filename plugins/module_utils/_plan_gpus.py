# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which service gets which GPUs, and how it runs on them. Pure, no I/O, on the controller.

In this order: services that were deployed keep their cards; indices and UUIDs; counts and wishes of services whose
wish changed; those of new services. So a new service never takes a card that another one has.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_cards, _gpu_pins, _gpu_shares
from ansible_collections.gpufleet.vllm.plugins.module_utils import _plan_gpus_said as said
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding, errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import Card
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_pins import Pin, Repin, recorded_pins, repinned
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import as_wish, wish_data
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service

__all__ = ["assign_gpus", "recorded_pins", "tensor_parallel_size", "visible_devices", "wish_data"]

# Older ones read CUDA_VISIBLE_DEVICES as numbers (platforms/interface.py, custom_all_reduce.py).
UUIDS_SINCE = (0, 24)
# It names a file after the cards where it tests their peer access, and a name has at most 255 characters.
MOST_TESTED_UUIDS = 5
P2P_CHECK = "VLLM_SKIP_P2P_CHECK"

Flags = t.Mapping[str, t.Mapping[str, t.Any]]
Resolved = dict[str, list[dict[str, t.Any]]]


def assign_gpus(
    services: t.Sequence[Service],
    cards: t.Sequence[t.Any],
    topology: t.Any = None,
    pins: t.Mapping[str, t.Any] | None = None,
    *,
    repin: Repin = (),
    contained: bool = False,
    flags: Flags | None = None,
    reckoned: t.Mapping[str, float] | None = None,
) -> tuple[Resolved, list[Finding]]:
    """Cards to services, each service's in the order of its ranks.

    ``pins`` are what :func:`recorded_pins` returns, ``flags`` each service's vLLM flags with the fleet's defaults,
    ``reckoned`` the shares of services that state theirs in another way. A service that does not get all of its cards
    gets none: the finding says why.
    """
    table = _Table(services, cards, topology, flags or {}, reckoned or {}, contained)
    known = {name: pin if isinstance(pin, Pin) else _gpu_pins.as_pin(pin) for name, pin in (pins or {}).items()}
    waiting = [service for service in services if not table.keep(service, known.get(service.name), repin)]
    for service in waiting:
        if isinstance(service.gpus, tuple):
            table.take_named(service)
    counted = [_as_many(service, known) for service in waiting if not isinstance(service.gpus, tuple)]
    held = {service.name: pin.uuids for service in counted for pin in [known.get(service.name)] if pin}
    table.take_counted(counted, held)
    for mine in table.chosen.values():
        for card in mine:
            # Services on one card must not load at the same time: what starts them looks at this.
            card.update({"shared": True} if len(table.owners[card["uuid"]]) > 1 else {})
    findings = [*table.findings, *_gpu_shares.check_sums(table.all_cards, table.owners, table.shares)]
    for service in services:
        findings += said.check_alike(table.chosen[service.name], service.name)
    return table.chosen, findings


def _as_many(service: Service, pins: t.Mapping[str, Pin | None]) -> Service:
    """A service that leaves open how many it gets: as many as it has, also where it is given others."""
    pin = pins.get(service.name)
    return replace(service, gpus=len(pin.cards)) if pin and service.gpus is None else service


class _Table:
    """The cards of a host, and who has which so far."""

    def __init__(
        self,
        services: t.Sequence[Service],
        cards: t.Sequence[t.Any],
        topology: t.Any,
        flags: Flags,
        reckoned: t.Mapping[str, float],
        contained: bool,
    ) -> None:
        self.cards = _gpu_cards.usable_cards(cards)
        listed = cards if isinstance(cards, (list, tuple)) else []
        self.silent = [card for card in listed if isinstance(card, t.Mapping) and not isinstance(card.get("uuid"), str)]
        self.by_uuid = {card["uuid"]: card for card in self.cards}
        self.devices = _gpu_cards.mig_devices(self.cards)
        self.all_cards: list[Card] = [*self.cards, *self.devices.values()]
        self.links = _gpu_cards.Links(self.cards, topology)
        self.contained = contained
        self.flags = {service.name: flags.get(service.name, service.args) for service in services}
        shares = {name: _gpu_shares.stated_share(args) for name, args in self.flags.items()}
        self.shares = {name: reckoned.get(name) if part is None else part for name, part in shares.items()}
        self.owners: dict[str, list[str]] = {}
        self.chosen: Resolved = {service.name: [] for service in services}
        self.findings: list[Finding] = []

    # What was deployed

    def keep(self, service: Service, pin: Pin | None, repin: Repin) -> bool:
        """Whether the service is settled by its pin: it keeps its cards, or it may not be given others."""
        wish = service.gpus
        if not pin or wish == 0 or repinned(repin, service.name) or not pin.made_for(wish):
            return False
        if isinstance(wish, tuple) and any(str(wanted).startswith("MIG-") for wanted in wish):
            return False
        changed = _gpu_pins.check_pin(pin, wish, self.cards, self.silent, service.name)
        mine = [self.by_uuid[card["uuid"]] for card in pin.cards if card["uuid"] in self.by_uuid]
        if changed:
            self.findings += changed
            for card in mine:
                self._own(card, service.name)
            return True
        if isinstance(wish, tuple):
            return self._keep_named(service, pin, mine)
        unfit = self._unfit(mine, service)
        if unfit:
            self.findings.append(said.moved(service.name, unfit))
            return False
        self._settle(service, mine)
        return True

    def _keep_named(self, service: Service, pin: Pin, mine: t.Sequence[Card]) -> bool:
        partitioned = [card for card in mine if _gpu_cards.has_mig(card)]
        if partitioned:
            self.findings.append(said.mig(f"GPU {partitioned[0]['index']} is partitioned (MIG)", service.name))
            return True
        self.findings += _gpu_pins.renumbered(pin, service.gpus, self.cards, service.name)
        self._settle(service, mine)
        return True

    def _unfit(self, mine: t.Sequence[Card], service: Service) -> str:
        """Why the cards of a count or wish are not what it asks for any more, or an empty string."""
        wish = as_wish(t.cast(t.Any, service.gpus))
        for card in mine:
            reason = "MIG is on" if _gpu_cards.has_mig(card) else _gpu_cards.misfit(card, wish)
            if reason:
                return f"GPU {card['index']} ({card['uuid']}): {reason}"
        if self.links.known and not self.links.gaps(mine) and not self.links.joined(mine, wish.link):
            return f"GPUs {said.listed(mine)} are not joined by {said.LINK_NAMES[wish.link]}"
        return ""

    # Indices and UUIDs

    def take_named(self, service: Service) -> None:
        wanted = t.cast("tuple[int | str, ...]", service.gpus)
        mine: list[Card] = []
        found: list[Finding] = []
        devices = [item for item in wanted if isinstance(item, str) and item.startswith("MIG-")]
        if devices:
            finding = said.check_mig(devices, len(wanted), self.contained, self.devices, service.name)
            found += [finding] if finding else []
            mine = [self.devices[devices[0]]] if not finding else []
            wanted = ()
        for item in wanted:
            card, finding = self._find(item, service.name)
            if card and any(card is other for other in mine):
                finding = said.twice(card, service.name)
            found += [finding] if finding else []
            mine += [card] if card and not finding else []
        if found:
            # Its cards count as its own: what else is wrong with them is not blamed on a neighbour.
            self.findings += found
            for card in mine:
                self._own(card, service.name)
            return
        self._settle(service, mine)

    def _find(self, wanted: int | str, service: str) -> tuple[Card | None, Finding | None]:
        for card in self.cards:
            if wanted in (card["index"], card["uuid"]):
                if _gpu_cards.has_mig(card):
                    return None, said.mig(f"GPU {wanted} is partitioned (MIG)", service)
                return card, None
        return None, said.missing(wanted, self.cards, self.silent, service)

    # Counts and wishes

    def take_counted(self, services: t.Sequence[Service], held: t.Mapping[str, t.Collection[str]]) -> None:
        """Greedily, in the order of the list; where that does not do, the largest or the most demanding ones first."""
        for service in services:
            if service.gpus == 0:
                self.findings.append(said.cpu_beside_gpus(service.name))
        services = [service for service in services if service.gpus != 0]

        def demand(service: Service) -> int:
            wish = as_wish(t.cast(t.Any, service.gpus))
            return sum(_gpu_cards.misfit(card, wish) in ("", None) for card in self.cards)

        orders = [
            list(services),
            sorted(services, key=lambda service: -as_wish(t.cast(t.Any, service.gpus)).count),
            sorted(services, key=demand),
        ]
        best: tuple[dict[str, list[Card]], list[Finding]] | None = None
        for order in orders:
            # What was deployed comes first: it may keep what it has.
            order = sorted(order, key=lambda service: service.name not in held)
            taken, found = self._try(order, held)
            if best is None or len(errors(found)) < len(errors(best[1])):
                best = (taken, found)
            if not errors(found):
                break
        taken, found = best or ({}, [])
        self.findings += found
        for service in services:
            self._settle(service, taken.get(service.name) or [])

    def _try(
        self, order: t.Sequence[Service], held: t.Mapping[str, t.Collection[str]]
    ) -> tuple[dict[str, list[Card]], list[Finding]]:
        taken: dict[str, list[Card]] = {}
        findings: list[Finding] = []
        owners = {uuid: ", ".join(names) for uuid, names in self.owners.items()}
        for position, service in enumerate(order):
            theirs = {uuid for other in order[position + 1 :] for uuid in held.get(other.name, ())}
            mine, found = self._pick(service, owners, held.get(service.name, ()), theirs)
            taken[service.name] = mine
            findings += found
            owners.update({card["uuid"]: service.name for card in mine})
            if not mine:
                # It is refused, and what it runs on now stays its own.
                owners.update({uuid: service.name for uuid in held.get(service.name, ()) if uuid not in owners})
        return taken, findings

    def _pick(
        self, service: Service, owners: t.Mapping[str, str], held: t.Collection[str], theirs: t.Collection[str]
    ) -> tuple[list[Card], list[Finding]]:
        wish = as_wish(t.cast(t.Any, service.gpus))
        why = {card["uuid"]: self._hindrance(card, owners) for card in self.cards}
        fits = {uuid: _gpu_cards.misfit(self.by_uuid[uuid], wish) for uuid in why}
        sure = [card for card in self.cards if not why[card["uuid"]] and fits[card["uuid"]] == ""]
        unsure = [card for card in self.cards if not why[card["uuid"]] and fits[card["uuid"]] is None]
        # Without those that services yet to be settled have now, if that is possible; the unknown ones last.
        for free in (
            [card for card in sure if card["uuid"] not in theirs],
            sure,
            [card for card in [*sure, *unsure] if card["uuid"] not in theirs],
            [*sure, *unsure],
        ):
            chosen = _gpu_cards.choose(wish, free, self.links, held)
            if chosen:
                doubtful = [card for card in chosen if card in unsure]
                return chosen, said.unknown(doubtful, wish, service.name)
        free = [*sure, *unsure]
        if len(free) >= wish.count:
            return [], [said.unlinked(service.name, wish, free, self.links)]
        reasons = {uuid: why[uuid] or (fits[uuid] or "") for uuid in why}
        return [], [said.too_few(service.name, wish, free, self.cards, reasons)]

    @staticmethod
    def _hindrance(card: Card, owners: t.Mapping[str, str]) -> str:
        """Why this card is not given to anyone else; ``held by ...`` where somebody has it."""
        if card["uuid"] in owners:
            return f"by {owners[card['uuid']]}"
        return "MIG is on" if _gpu_cards.has_mig(card) else _gpu_cards.broken(card)

    # Both

    def _settle(self, service: Service, mine: t.Sequence[Card]) -> None:
        """Give these cards; one that another service has only where both state their shares."""
        found = []
        for card in mine:
            owners = self.owners.get(card["uuid"], [])
            if owners:
                shared = _gpu_shares.check_sharing(card, owners, self.shares, self.flags, service.name)
                found += [shared] if shared else []
        if not found:
            self.findings += said.check_broken(mine, service.name)
            self.chosen[service.name] = [_gpu_cards.resolved(card) for card in mine]
        self.findings += found
        for card in mine if not found else []:
            self._own(card, service.name)

    def _own(self, card: Card, service: str) -> None:
        self.owners.setdefault(card["uuid"], []).append(service)


def visible_devices(cards: t.Sequence[Card], release: str, environment: t.Mapping[str, str]) -> str:
    """How a service without a container is told its cards: by UUID, which a reboot does not hand to another card.

    By index where ``release``, the vLLM that runs it, is not known or reads nothing else.
    """
    series = re.match(r"v?(\d+)\.(\d+)", release)
    named = series is not None and (int(series[1]), int(series[2])) >= UUIDS_SINCE
    if len(cards) > MOST_TESTED_UUIDS and environment.get(P2P_CHECK, "1") != "1":
        named = False
    return ",".join(str(card["uuid" if named else "index"]) for card in cards)


def tensor_parallel_size(
    service: Service, gpus: int, device: str, arguments: t.Mapping[str, t.Any]
) -> tuple[int, list[Finding]]:
    """GPUs = tensor x pipeline x data parallel (vLLM's world size); tensor parallel follows if unset.

    ``arguments`` are all flags of the service, the fleet's defaults included.
    """
    if device == "cpu":
        return service.tensor_parallel_size or 1, []
    others, words = _other_parallelism(arguments)
    # Of a service over several hosts each host has its part.
    nodes = _count(arguments, "nnodes")
    size = service.tensor_parallel_size or max(1, gpus * nodes // others)
    if gpus and size * others != gpus * nodes:
        seen = f"tensor parallel {size} x {words} {others} on {gpus} GPUs" + (f" x {nodes} hosts" if nodes > 1 else "")
        expected = "a product equal to the number of GPUs"
        remedy = "correct tensor_parallel_size: or gpus:"
        return size, [Finding("plan.parallelism", ERROR, seen, expected, remedy, service.name)]
    context = _count(arguments, "decode-context-parallel-size")
    if gpus and size % context and _count(arguments, "prefill-context-parallel-size") == 1:
        seen = f"decode context parallel {context} in tensor parallel {size}"
        remedy = "correct decode-context-parallel-size under args, or tensor_parallel_size:"
        expected = "a divisor of the tensor parallel size, whose GPUs it uses"
        return size, [Finding("plan.parallelism", ERROR, seen, expected, remedy, service.name)]
    return size, []


def gpus_of_flags(service: Service, arguments: t.Mapping[str, t.Any]) -> int:
    """The GPUs on this host that the parallelism of a service asks for, where it says so; 1 where it does not."""
    others, _words = _other_parallelism(arguments)
    return max(1, (service.tensor_parallel_size or 1) * others // _count(arguments, "nnodes"))


def _other_parallelism(arguments: t.Mapping[str, t.Any]) -> tuple[int, str]:
    """By what the tensor parallel size is multiplied on this host, and in words."""
    data = _count(arguments, "data-parallel-size")
    # The other ranks run on other hosts.
    if "data-parallel-size-local" in arguments:
        data = _count(arguments, "data-parallel-size-local")
    pipeline = _count(arguments, "pipeline-parallel-size")
    context = _count(arguments, "prefill-context-parallel-size")
    words = "pipeline and data parallel" if context == 1 else "pipeline, prefill context and data parallel"
    return pipeline * data * context, words


def _count(arguments: t.Mapping[str, t.Any], name: str) -> int:
    value = str(arguments.get(name, 1))
    return max(1, int(value)) if value.isdecimal() else 1
