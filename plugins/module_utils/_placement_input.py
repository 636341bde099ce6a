# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Inventory and facts as placement takes them: fleet services to wants, facts to hosts. Pure, no I/O.

Facts are a host's: whatever is of another type than we expect is unknown, never an exception.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _gpu_cards, _gpu_shares
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_wish import ANY, GpuWish, as_wish
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    MOST_SHARED,
    WHOLE,
    Card,
    Groups,
    Host,
    Running,
    Shape,
    Unsized,
    Want,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import assign_gpus, gpus_of_flags, recorded_pins
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import ANSWERS, remedy_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_ports import listeners
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import AS_A_LIST, KEYS, Service, parse_service
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import model_of, size_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_plan import demand_of, propose
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import Refused, integer, nearest, type_name

# Keys that only a fleet service has.
FLEET_KEYS = ("replicas", "hosts")
ALL_KEYS = tuple(sorted((*KEYS, *FLEET_KEYS)))
VARIABLE = "vllm_fleet_services"
LEFT_OUT, LOST = "it is not in this run", "it was not reached"
LINKS = ("nvlink", "pcie")
MOST_REPLICAS = 10_000
# A display server on a card is no reason to leave the card out; an engine that nobody knows is.
FOREIGN_BYTES = 1 << 30
PARALLEL = ("pipeline-parallel-size", "data-parallel-size", "prefill-context-parallel-size")


@dataclass(frozen=True)
class FleetService:
    """One entry of ``vllm_fleet_services``: the service, and what is the fleet's to know."""

    service: Service
    replicas: int = 1
    patterns: tuple[str, ...] | None = None
    port_given: bool = False

    @property
    def sized(self) -> bool:
        """Whether the number of its cards follows from its model."""
        return self.service.gpus is None and self.service.tensor_parallel_size is None


def read_services(raw: t.Any) -> tuple[list[FleetService], list[Finding]]:
    """All of ``vllm_fleet_services``."""
    if not isinstance(raw, (list, tuple)):
        seen = f"{VARIABLE} is {type_name(raw)}"
        remedy = AS_A_LIST.replace("vllm_services", VARIABLE)
        return [], [Finding("service.bad_value", ERROR, seen, "a list of services", remedy)]
    services: list[FleetService] = []
    findings: list[Finding] = []
    names: set[str] = set()
    for position, entry in enumerate(raw):
        one, found = _read_service(entry, position)
        findings += found
        if one is None:
            continue
        if one.service.name in names:
            seen = f"two fleet services are named '{one.service.name}'"
            findings.append(
                Finding("service.duplicate_name", ERROR, seen, "one name per service", "rename one", one.service.name)
            )
            continue
        names.add(one.service.name)
        services.append(one)
    return services, findings


def _read_service(entry: t.Any, position: int) -> tuple[FleetService | None, list[Finding]]:
    own = {key: value for key, value in entry.items() if key not in FLEET_KEYS} if isinstance(entry, dict) else entry
    service, findings = parse_service(own, position)
    findings = [_of_the_fleet(finding) for finding in findings if finding.code != "service.unknown_key"]
    if not isinstance(entry, dict):
        return None, findings
    name = str(entry.get("name") or f"entry {position + 1}")
    findings = [*(_unknown_key(str(key), name) for key in entry if key not in ALL_KEYS), *findings]
    values: dict[str, t.Any] = {"port_given": entry.get("port") not in (None, "")}
    for key, convert, field in (("replicas", _replicas, "replicas"), ("hosts", _patterns, "patterns")):
        if entry.get(key) not in (None, ""):
            try:
                values[field] = convert(entry[key])
            except Refused as exc:
                findings.append(_bad(key, entry[key], exc.expected, f"correct {key}: in {VARIABLE}", name))
    if service is not None and isinstance(service.gpus, tuple):
        expected = "a count, or what the cards must be like: indices and UUIDs are those of one host"
        remedy = "write gpus: {count: 2, min_memory_gib: 40}, or move the service to vllm_services of its host"
        findings.append(_bad("gpus", list(service.gpus), expected, remedy, name))
    return (FleetService(service, **values) if service is not None and not findings else None), findings


def _bad(key: str, value: t.Any, expected: str, remedy: str, service: str) -> Finding:
    return Finding("service.bad_value", ERROR, f"{key} is {value!r}", expected, remedy, service)


def _of_the_fleet(finding: Finding) -> Finding:
    seen, remedy = (text.replace("vllm_services", VARIABLE) for text in (finding.seen, finding.remedy))
    return replace(finding, seen=seen, remedy=remedy)


def _unknown_key(key: str, service: str) -> Finding:
    guess = nearest(key, ALL_KEYS)
    remedy = f"write {guess}:" if guess else "delete the key; a vLLM flag belongs under args:"
    expected = "keys among " + ", ".join(ALL_KEYS)
    return Finding("service.unknown_key", ERROR, f"unknown key '{key}'", expected, remedy, service)


_replicas = integer(0, MOST_REPLICAS)


def _patterns(value: t.Any) -> tuple[str, ...]:
    items = [value] if isinstance(value, str) else value
    if (
        not isinstance(items, (list, tuple))
        or not items
        or not all(isinstance(item, str) and item.strip() for item in items)
    ):
        raise Refused("a list of hosts, groups or patterns, such as [gpu-01, h100_hosts]")
    return tuple(items)


# --- wants -----------------------------------------------------------------------------------------------------------


def to_want(
    fleet: FleetService, hosts: frozenset[str] | None, memories: t.Sequence[tuple[int, int]], models: t.Any, gpus: bool
) -> tuple[Want, list[Finding]]:
    """``memories`` is what :func:`memories` returns for the fleet, and ``gpus`` whether it has any."""
    service = fleet.service
    wish = as_wish(None if service.gpus is None else t.cast("int | GpuWish", service.gpus))
    share = _share(service)
    shapes, unsized, findings = _shapes(fleet, wish, memories, models, gpus)
    capability = wish.min_compute_capability
    want = Want(
        service=service.name,
        replicas=fleet.replicas,
        shapes=shapes,
        link="" if wish.link == ANY else wish.link,
        name=wish.name,
        capability=None if capability is None else _capability(capability),
        share=share,
        hosts=hosts,
        port=service.port if fleet.port_given else None,
        address=service.bind_address or None,
        elastic=fleet.sized and gpus,
        patterns=fleet.patterns or (),
        unsized=unsized,
    )
    return want, findings


def _share(service: Service) -> int:
    stated = _gpu_shares.stated_share(service.args)
    part = WHOLE if stated is None else max(1, round(stated * WHOLE))
    return part if part <= MOST_SHARED else WHOLE


def _capability(value: t.Any) -> tuple[int, int] | None:
    """8.9 or "8.9" as (8, 9)."""
    try:
        major, _dot, minor = f"{float(value):.1f}".partition(".")
        return int(major), int(minor)
    except (TypeError, ValueError, OverflowError):
        return None


def _shapes(
    fleet: FleetService, wish: GpuWish, memories: t.Sequence[tuple[int, int]], models: t.Any, gpus: bool
) -> tuple[tuple[Shape, ...], Unsized | None, list[Finding]]:
    service = fleet.service
    least = 0 if wish.min_memory_gib is None else int(wish.min_memory_gib * (1 << 30))
    if service.gpus is not None:
        return (_counted_shape(service, wish.count, least, memories, models),), None, []
    if not gpus:
        return (Shape(0),), None, []
    if service.tensor_parallel_size is not None:
        count = service.tensor_parallel_size
        for flag in PARALLEL:
            value = str(service.args.get(flag, 1))
            count *= max(1, int(value)) if value.isdecimal() else 1
        return (_counted_shape(service, count, 0, memories, models),), None, []
    return _sized_shapes(service, memories, models)


def _counted_shape(
    service: Service, count: int, least: int, memories: t.Sequence[tuple[int, int]], models: t.Any
) -> Shape:
    """So many cards, as large as the model needs them unless that was stated; where it fits on none the plan of the
    host says why."""
    entry = models.get(f"{service.model}@{service.revision}") if isinstance(models, t.Mapping) else None
    try:
        model = model_of(entry)
    except FleetError:
        model = None
    if model is None or least:
        return Shape(count, least)
    length = service.max_model_len if isinstance(service.max_model_len, int) else None
    for memory, _most in sorted(memories):
        demand = demand_of(service.args, cards_memory=[memory], max_model_len=length)
        others = gpus_of_flags(replace(service, tensor_parallel_size=None), service.args)
        parallel = service.tensor_parallel_size or max(1, count // others)
        if size_of(model, replace(demand, tensor_parallel=parallel)).fits:
            return Shape(count, memory, reckoned=True)
    return Shape(count)


def _sized_shapes(
    service: Service, memories: t.Sequence[tuple[int, int]], models: t.Any
) -> tuple[tuple[Shape, ...], Unsized | None, list[Finding]]:
    """One shape for each size of card on which the model fits, the fewest cards first."""
    entries = models if isinstance(models, t.Mapping) else {}
    entry = entries.get(f"{service.model}@{service.revision}")
    try:
        model = model_of(entry)
    except FleetError as exc:
        return (), _unsized(service, entry, exc), []
    length = service.max_model_len if isinstance(service.max_model_len, int) else None
    shapes = []
    for memory, most in sorted(memories):
        demand = demand_of(service.args, cards_memory=[memory], max_model_len=length)
        proposal = propose(model, [memory] * most, demand)
        if proposal is not None and proposal.sizing.fits:
            shapes.append(Shape(proposal.tensor_parallel_size * demand.pipeline_parallel, memory))
    if not shapes:
        largest = max((memory for memory, _most in memories), default=0)
        seen = f"{service.model} fits on the cards of no host; the largest have {largest / (1 << 30):.1f} GiB"
        remedy = f"lower max_model_len: of {service.name}, take a quantised model, or add hosts with larger GPUs; with "
        remedy += "gpus: COUNT it is placed whatever the sum says"
        expected = "a model that the GPUs of one host can hold"
        return (), None, [Finding("plan.memory_short", ERROR, seen, expected, remedy, service.name)]
    return tuple(sorted(shapes, key=lambda shape: (shape.count, shape.memory_bytes))), None, []


def _unsized(service: Service, entry: t.Any, exc: FleetError) -> Unsized:
    """What stands between us and the size of the model: often the hub, and not the inventory."""
    seen = f"the number of GPUs cannot be told from {service.model}@{service.revision}"
    count = f"set gpus: of {service.name}, for example gpus: 1"
    if entry is None:
        return Unsized(f"{seen}, which was not read", count)
    remedy = remedy_of(exc.code, "", service.name)
    if exc.code not in ANSWERS:
        remedy = f"{remedy}; or {count}" if remedy else count
    return Unsized(f"{seen}: {exc.seen.rstrip('.')}", remedy)


# --- hosts -----------------------------------------------------------------------------------------------------------


def why_unusable(facts: t.Any) -> str:
    """Why nothing can be said of what a host runs, in words; empty where it can."""
    if not isinstance(facts, t.Mapping):
        return LEFT_OUT
    if facts.get("unreachable"):
        return LOST
    if facts.get("failed") or "gpus" not in facts:
        return "its facts could not be gathered"
    if not _gpu_cards.usable_cards(facts.get("gpus")) and any(run.cards for run in _running(facts).values()):
        return "its driver shows none of the GPUs that it has services on"
    return ""


def to_host(name: str, facts: t.Mapping[str, t.Any], own: t.Any, fleet: t.Collection[str]) -> Host:
    """``own`` are the host's ``vllm_services``, ``fleet`` the names of fleet services."""
    cards = _gpu_cards.usable_cards(facts.get("gpus"))
    services = [service for service in _parsed(own) if service.name not in fleet]
    names = frozenset(service.name for service in _parsed(own))
    running = {service: run for service, run in _running(facts).items() if service in fleet and service not in names}
    ports = {service.port: service.name for service in services}
    unusable = _unusable(cards)
    held, parts = _held(services, running, cards, facts)
    return Host(
        name=name,
        cards=tuple(_card(card) for card in cards),
        groups=_groups(cards, facts),
        running=running,
        taken={**unusable, **held},
        parts={uuid: part for uuid, part in parts.items() if uuid not in unusable},
        ports=ports,
        busy=_busy(facts),
        listening=_listening(facts),
        names=names,
    )


def _parsed(own: t.Any) -> list[Service]:
    """What is wrong with a host's own services is told by the plan of the host."""
    parsed = [parse_service(entry)[0] for entry in own] if isinstance(own, (list, tuple)) else []
    return [service for service in parsed if service is not None]


def _card(card: _gpu_cards.Card) -> Card:
    memory, node, name = card.get("memory_total_bytes"), card.get("numa_node"), card.get("name")
    return Card(
        uuid=card["uuid"],
        index=card["index"],
        name=name if isinstance(name, str) else "",
        memory_bytes=memory if (isinstance(memory, int) and not isinstance(memory, bool)) and memory > 0 else None,
        capability=_capability(card.get("compute_capability")),
        numa=node if (isinstance(node, int) and not isinstance(node, bool)) and node >= 0 else None,
        healthy=False if _gpu_cards.broken(card) else None,
    )


def _topology(facts: t.Mapping[str, t.Any]) -> t.Any:
    nvidia = facts.get("nvidia")
    return nvidia.get("topology") if isinstance(nvidia, t.Mapping) else None


def _groups(cards: t.Sequence[_gpu_cards.Card], facts: t.Mapping[str, t.Any]) -> dict[str, Groups] | None:
    """Sets of which every two cards are joined, from the lowest index on. ``None`` where nothing is known."""
    links = _gpu_cards.Links(cards, _topology(facts))
    if not links.known and len(cards) > 1:
        return None
    found: dict[str, Groups] = {}
    for link in LINKS:
        groups: list[list[_gpu_cards.Card]] = []
        for card in cards:
            home = next((group for group in groups if all(links.meets(card, other, link) for other in group)), None)
            if home is None:
                groups.append([card])
            else:
                home.append(card)
        found[link] = tuple(tuple(card["uuid"] for card in group) for group in groups)
    return found


def _unusable(cards: t.Sequence[_gpu_cards.Card]) -> dict[str, str]:
    """Cards that nobody is given: partitioned ones, and those that a stranger's process holds."""
    taken: dict[str, str] = {}
    for card in cards:
        if _gpu_cards.has_mig(card):
            taken[card["uuid"]] = "MIG (it is partitioned)"
            continue
        listed = card.get("processes")
        for process in listed if isinstance(listed, (list, tuple)) else []:
            # Without the key nobody looked whose it is.
            if not isinstance(process, t.Mapping) or process.get("service", "") is not None:
                continue
            used = process.get("memory_used_bytes")
            if (isinstance(used, int) and not isinstance(used, bool)) and used >= FOREIGN_BYTES:
                taken[card["uuid"]] = f"process {process.get('pid')} ({process.get('name') or 'unknown'})"
    return taken


def _held(
    services: t.Sequence[Service],
    running: t.Mapping[str, Running],
    cards: t.Sequence[_gpu_cards.Card],
    facts: t.Mapping[str, t.Any],
) -> tuple[dict[str, str], dict[str, int]]:
    """Who of the host's own services has which card, as the plan of the host will assign them, and how much of it."""
    if not services or not cards:
        return {}, {}
    named = {wanted for service in services if isinstance(service.gpus, tuple) for wanted in service.gpus}
    named |= {card["uuid"] for card in cards if card["index"] in named}
    present = {card["uuid"] for card in cards}
    # What the fleet runs there keeps its cards before a count of the host, as in the plan, but not before a named card.
    kept = [
        Service(name=name, model="fleet/fleet", gpus=run.cards, args={"gpu-memory-utilization": 0.001})
        for name, run in sorted(running.items())
        if run.cards and set(run.cards) <= present and not set(run.cards) & named
    ]
    chosen, _findings = assign_gpus([*kept, *services], cards, _topology(facts), recorded_pins(facts))
    held: dict[str, list[str]] = {}
    parts: dict[str, int] = {}
    for service in services:
        # A count never shares.
        part = _share(service) if isinstance(service.gpus, tuple) else WHOLE
        for card in chosen.get(service.name, []):
            held.setdefault(card["uuid"], []).append(service.name)
            parts[card["uuid"]] = min(WHOLE, parts.get(card["uuid"], 0) + part)
    return {uuid: " and ".join(names) for uuid, names in held.items()}, parts


def _running(facts: t.Mapping[str, t.Any]) -> dict[str, Running]:
    """What was deployed last, proved or not: that is what runs. Ports are also the record's."""
    said = [_services(facts.get(source)) for source in ("deployed", "applied", "record")]
    newest = next((services for services in said if services is not None), {})
    running: dict[str, Running] = {}
    for name, entry in newest.items():
        listed = entry.get("gpus")
        uuids = [card.get("uuid") for card in listed if isinstance(card, t.Mapping)] if isinstance(listed, list) else []
        cards = tuple(uuid for uuid in uuids if isinstance(uuid, str))
        ports = [(services or {}).get(name, {}).get("port") for services in said]
        running[name] = Running(cards, next((port for port in ports if isinstance(port, int)), None))
    return running


def _services(document: t.Any) -> dict[str, t.Mapping[str, t.Any]] | None:
    services = document.get("services") if isinstance(document, t.Mapping) else None
    if not isinstance(services, t.Mapping):
        return None
    return {str(name): entry for name, entry in services.items() if isinstance(entry, t.Mapping)}


def _busy(facts: t.Mapping[str, t.Any]) -> dict[int, str]:
    """Ports on which something listens that is none of our services."""
    return {entry["port"]: str(entry.get("process") or "a process of another user") for entry in _strangers(facts)}


def _listening(facts: t.Mapping[str, t.Any]) -> dict[int, tuple[str, ...]]:
    found: dict[int, tuple[str, ...]] = {}
    for entry in _strangers(facts):
        found[entry["port"]] = (*found.get(entry["port"], ()), entry["address"])
    return found


def _strangers(facts: t.Mapping[str, t.Any]) -> list[t.Mapping[str, t.Any]]:
    return [entry for entry in listeners(facts) if not entry.get("service")]


def memories(hosts: t.Iterable[Host]) -> list[tuple[int, int]]:
    """Each size of card in the fleet, and the most cards of at least that size in one host."""
    per_host = [[card.memory_bytes for card in host.cards if card.memory_bytes is not None] for host in hosts]
    sizes = sorted({memory for found in per_host for memory in found})
    return [(size, max(sum(1 for memory in found if memory >= size) for found in per_host)) for size in sizes]
