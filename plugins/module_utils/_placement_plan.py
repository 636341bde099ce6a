# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The services of a fleet to its hosts, from what Ansible knows to what each host's plan takes. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _placement_solver
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    INFO,
    WARNING,
    Finding,
    errors,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement import Solve, place
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_fit import HostState, suits
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_input import (
    LEFT_OUT,
    LOST,
    VARIABLE,
    FleetService,
    memories,
    read_services,
    to_host,
    to_want,
    why_unusable,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_short import Shortfalls
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import (
    CHANGED,
    FAILED,
    MOVED,
    Assignment,
    Host,
    Placement,
    Unsized,
    Want,
    natural,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import check_answer, with_deployed
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

PORTS = re.compile(r"(\d{1,5})-(\d{1,5})")
KEEP, FREE = "keep", "free"
# Why a host is not there, as it is said of one and of several.
VERBS = {LEFT_OUT: ("is not in this run", "are not in this run"), LOST: ("was not reached", "were not reached")}
# So many names are said in one message.
SHOWN = 8


@dataclass(frozen=True)
class Known:
    """One host of the fleet as a run sees it: its facts and its own ``vllm_services``.

    ``unusable`` says why it cannot be reckoned with, and ``differs`` that its list of fleet services is another one.
    """

    facts: t.Any = None
    services: t.Any = ()
    unusable: str = ""
    differs: bool = False


@dataclass(frozen=True)
class Fleet:
    """What the action ``vllm_place`` returns: by host the placed services, and findings."""

    hosts: t.Mapping[str, list[dict[str, t.Any]]] = field(default_factory=dict)
    findings: tuple[Finding, ...] = ()
    search: str = "heuristic"


def place_fleet(
    raw: t.Any,
    known: t.Mapping[str, Known],
    resolve: t.Callable[[t.Sequence[str]], t.Collection[str]],
    ports: str = "8000-8999",
    missing: str = KEEP,
    models: t.Any = None,
    solve: Solve = _placement_solver.solve,
    unread: str = "",
) -> Fleet:
    """Choose hosts, cards and ports. ``resolve`` turns Ansible's patterns into names of hosts.

    ``unread`` says why none of the models could be read.

    With an error among the findings nothing may be changed anywhere; what could be placed is returned all the same, for
    those who only look.
    """
    services, findings = read_services(raw)
    span, found = _span(ports)
    findings += found
    findings += _differing(known)
    names = {fleet.service.name for fleet in services}
    if errors(findings):
        # Of services that cannot be read nothing is known, so nothing is given up and nothing is placed.
        return Fleet(findings=(*findings, *_refused_models(services, known, models)))
    unusable = {name: why_unusable(one.facts) or one.unusable for name, one in known.items()}
    absent = {name: why for name, why in unusable.items() if why}
    hosts = [to_host(name, one.facts, one.services, names) for name, one in known.items() if name not in absent]
    sizes, any_cards = memories(hosts), any(host.cards for host in hosts)
    wants: list[Want] = []
    for fleet in sorted(services, key=lambda fleet: fleet.service.name):
        allowed = None if fleet.patterns is None else frozenset(resolve(fleet.patterns)) & frozenset(known)
        want, found = to_want(fleet, allowed, sizes, models, any_cards)
        wants.append(want)
        findings += found
        if allowed is not None and not allowed:
            findings.append(_no_host(fleet.service.name, t.cast("tuple[str, ...]", fleet.patterns)))
    unseen = sorted(absent, key=natural) if missing == KEEP else []
    placement = place(hosts, wants, unseen, solve)
    given, found = _assign_ports(hosts, wants, placement, span)
    findings += found
    told = {finding.service for finding in errors(findings)}
    findings += Shortfalls(hosts, wants, unseen, placement).findings(told) if placement.unplaced else []
    placed = [want for want in wants if want.replicas and want.service not in placement.unplaced]
    findings += [_unsized(want.service, want.unsized) for want in placed if want.unsized]
    findings += _moves(hosts, wants, placement)
    findings += _unread(unread) if unread else []
    findings += _missing(absent, placement, missing)
    chosen: dict[str, list[dict[str, t.Any]]] = {}
    for item in placement.assignments:
        entry = {"name": item.service, "gpus": list(item.cards), "port": given.get((item.host, item.service))}
        chosen.setdefault(item.host, []).append(entry)
    return Fleet(chosen, tuple(findings), placement.search)


def brief(findings: t.Sequence[Finding]) -> list[Finding]:
    """One finding for each host, where the whole is said once for the fleet."""
    wrong = errors(findings)
    if not wrong:
        return []
    services = sorted({finding.service for finding in wrong if finding.service})
    about = f" ({', '.join(services[:SHOWN])}{', ...' if len(services) > SHOWN else ''})" if services else ""
    seen = f"the placement of {VARIABLE} has {plural(len(wrong), 'error')}{about}"
    expected = "a place for every replica, before anything changes on any host"
    remedy = "see what is said of the fleet, once for all hosts (fleet.findings in the file of a report)"
    return [Finding(FAILED, ERROR, seen, expected, remedy)]


# --- ports -----------------------------------------------------------------------------------------------------------


def _span(text: str) -> tuple[range, list[Finding]]:
    match = PORTS.fullmatch(text.strip())
    low, high = (int(match[1]), int(match[2])) if match else (0, 0)
    if 0 < low <= high < 65536:
        return range(low, high + 1), []
    expected = "two ports from 1 to 65535 with a dash between, the lower one first"
    seen = f"vllm_fleet_ports is {text!r}"
    return range(0), [Finding("plan.bad_setting", ERROR, seen, expected, "correct vllm_fleet_ports: such as 8000-8999")]


def _assign_ports(
    hosts: t.Sequence[Host], wants: t.Sequence[Want], placement: Placement, span: range
) -> tuple[dict[tuple[str, str], int], list[Finding]]:
    """Given ports, then the ports that services have now, then the lowest free one of the range, by name."""
    by_name = {want.service: want for want in wants}
    by_host: dict[str, list[Assignment]] = {}
    for item in placement.assignments:
        by_host.setdefault(item.host, []).append(item)
    given: dict[tuple[str, str], int] = {}
    findings: list[Finding] = []
    for host in hosts:
        items = sorted(by_host.get(host.name, ()), key=lambda item: item.service)
        used = set(host.ports)
        for item in items:
            port = by_name[item.service].port
            if port is not None:
                given[host.name, item.service] = port
                used.add(port)
        open_ones = [item for item in items if by_name[item.service].port is None]
        for item in open_ones:
            now = host.running[item.service].port if item.service in host.running else None
            if now in span and now not in used:
                given[host.name, item.service] = t.cast(int, now)
                used.add(t.cast(int, now))
        for item in open_ones:
            if (host.name, item.service) in given:
                continue
            address = by_name[item.service].address
            port = next((port for port in span if port not in used and not host.is_busy(port, address)), None)
            if port is None:
                findings.append(_no_port(item, span))
                continue
            given[host.name, item.service] = port
            used.add(port)
    return given, findings


def _no_port(item: Assignment, span: range) -> Finding:
    seen = f"all ports from {span.start} to {span.stop - 1} are held on {item.host}"
    remedy = "widen vllm_fleet_ports, or set port: on the service"
    return Finding("plan.port_short", ERROR, seen, "a free port in vllm_fleet_ports", remedy, item.service)


# --- what is said ----------------------------------------------------------------------------------------------------


def _no_host(service: str, patterns: t.Sequence[str]) -> Finding:
    seen = f"hosts: {', '.join(patterns)} matches no host of the fleet"
    remedy = f"correct hosts: of {service} (ansible-inventory --graph lists hosts and groups)"
    return Finding("plan.no_host", ERROR, seen, "hosts, groups or patterns of this inventory", remedy, service)


def _unread(why: str) -> list[Finding]:
    seen = f"the models of {VARIABLE} could not be read on {why}"
    expected = "a host that reads their sizes, so that they get GPUs on which they fit"
    remedy = "see what that host says, or set gpus: with min_memory_gib: for each service"
    return [Finding("plan.models_unread", WARNING, seen, expected, remedy)]


def _unsized(service: str, unsized: Unsized) -> Finding:
    """Of a service that goes on all the same."""
    expected = "a model whose size is known"
    return Finding("plan.model_unknown", WARNING, unsized.seen, expected, unsized.remedy, service)


def _differing(known: t.Mapping[str, Known]) -> list[Finding]:
    names = sorted((name for name, one in known.items() if one.differs), key=natural)
    if not names:
        return []
    seen = f"{VARIABLE} is another list on {_listed(names)} than on the first host"
    remedy = f"write it once, in group_vars of all hosts; restrict a service with hosts:, not {VARIABLE}"
    return [Finding("plan.fleet_differs", ERROR, seen, "one list for the whole fleet", remedy)]


def _moves(hosts: t.Sequence[Host], wants: t.Sequence[Want], placement: Placement) -> list[Finding]:
    """Services that cannot stay on their cards, and why; nothing else is ever moved."""
    by_host, by_name = {host.name: host for host in hosts}, {want.service: want for want in wants}
    findings = []
    for item in placement.assignments:
        if item.how not in (MOVED, CHANGED):
            continue
        host = by_host[item.origin or item.host]
        running = host.running[item.service]
        if item.how == CHANGED and (not running.cards or set(running.cards) == set(item.cards)):
            continue
        why = _why_not_there(host, by_name[item.service], placement)
        seen = (
            f"moves from {host.name} to {item.host}: {why}" if item.how == MOVED else f"changes on {host.name}: {why}"
        )
        cards = {card.uuid: card.index for card in by_host[item.host].cards}
        now = ", ".join(str(cards[uuid]) for uuid in item.cards)
        expected = "a service that stays on the cards that it runs on"
        remedy = f"nothing to do; it is started on GPU {now} of {item.host}" if now else "nothing to do"
        findings.append(Finding("plan.service_moved", WARNING, seen, expected, remedy, item.service))
    return findings


def _why_not_there(host: Host, want: Want, placement: Placement) -> str:
    cards = {card.uuid: card for card in host.cards}
    running = host.running[want.service]
    if not want.allows(host.name):
        return "hosts: does not name it any more"
    if want.port is not None and want.port in host.ports:
        return f"port {want.port} is that of {host.ports[want.port]}"
    if not running.cards:
        return "its cards are not known, and there is no room"
    gone = [uuid for uuid in running.cards if uuid not in cards]
    if gone:
        return f"GPU {', '.join(gone)} is gone"
    taken = [f"GPU {cards[uuid].index} is that of {host.taken[uuid]}" for uuid in running.cards if uuid in host.taken]
    if taken:
        return ", ".join(taken)
    counts = sorted({shape.count for shape in want.shapes})
    if len(running.cards) not in counts and not want.elastic:
        noun = "GPU" if counts == [1] else "GPUs"
        return f"it wants {' or '.join(map(str, counts))} {noun} and has {len(running.cards)}"
    least = min((shape.memory_bytes for shape in want.shapes), default=0)
    unfit = [cards[uuid].index for uuid in running.cards if not suits(cards[uuid], want, least)]
    if unfit:
        return f"GPU {', '.join(map(str, unfit))} is not what gpus: asks for"
    others = [
        item.service
        for item in placement.on(host.name)
        if item.service != want.service and set(item.cards) & set(running.cards)
    ]
    if others:
        return f"its cards are those of {', '.join(others)} as well"
    state = HostState(host, {})
    joined = state.groups(want.link) if want.link else None
    positions = {state.position[uuid] for uuid in running.cards}
    if joined is not None and not any(positions <= set(group) for group in joined):
        return f"its GPUs are not joined by {want.link}"
    return "it does not fit there any more"


def _refused_models(services: t.Sequence[FleetService], known: t.Mapping[str, Known], models: t.Any) -> list[Finding]:
    """Models that the hub does not have, and no host runs: one mistake shall not hide another."""
    entries = {name: one for name, one in models.items() if isinstance(one, dict)} if isinstance(models, dict) else {}
    for one in known.values():
        entries = with_deployed(entries, one.facts) if isinstance(one.facts, t.Mapping) else entries
    asked = ((fleet.service.name, f"{fleet.service.model}@{fleet.service.revision}") for fleet in services)
    answers = [check_answer(service, entries.get(name)) for service, name in asked]
    return [answer for answer in answers if answer is not None]


def _missing(absent: t.Mapping[str, str], placement: Placement, policy: str) -> list[Finding]:
    """Hosts of which nothing is known: what they run stays theirs."""
    if not absent:
        return []
    findings = []
    reasons: dict[str, list[str]] = {}
    for name in sorted(absent, key=natural):
        reasons.setdefault(absent[name], []).append(name)
    waiting = sorted(placement.waiting)
    for why, names in reasons.items():
        left_out = why == LEFT_OUT
        seen, one = _who(names, why), len(names) == 1
        if policy == FREE:
            seen += f"; what {'it runs' if one else 'they run'} is placed on other hosts"
            back = "it is back" if one else "they are back"
            remedy = f"when {back}, run without vllm_fleet_missing=free: what runs twice then ends in one place"
            findings.append(Finding("plan.host_missing", WARNING, seen, "every host of the fleet", remedy))
            continue
        if waiting:
            count = sum(placement.waiting.values())
            stay = "stays" if count == 1 else "stay"
            colon = ":" if why in VERBS else ";"
            seen += f"{colon} {plural(count, 'replica')} ({_listed(waiting)}) may run there and {stay} there"
        if not waiting and left_out:
            continue
        again = "run without --limit" if left_out else f"run again when {'it answers' if one else 'they answer'}"
        gone, them = ("it is", "it") if one else ("they are", "them")
        remedy = f"{again}; if {gone} gone for good take {them} out of the inventory, or use -e vllm_fleet_missing=free"
        severity = INFO if left_out else WARNING
        findings.append(Finding("plan.host_missing", severity, seen, "every host of the fleet", remedy))
    return findings


def _who(names: t.Sequence[str], why: str) -> str:
    predicate = VERBS.get(why, ("", ""))[len(names) > 1]
    return f"{_listed(names)} {predicate}" if predicate else f"{_listed(names)}: {why}"


def _listed(names: t.Sequence[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"


# --- the services of one host ----------------------------------------------------------------------------------------


def host_services(own: t.Any, fleet: t.Any, placed: t.Any) -> t.Any:
    """The host's own services and those that were placed on it, each as ``vllm_services`` has them.

    Anything that is no list is handed on as it is: the plan says what is wrong with it.
    """
    if not placed:
        return own
    entries = {str(entry.get("name")): entry for entry in fleet if isinstance(entry, dict)}
    chosen = []
    for item in placed:
        # Without an entry the plan of the host says that the service lacks its model.
        entry = {key: value for key, value in entries.get(item["name"], {}).items() if key not in ("replicas", "hosts")}
        entry.update(name=item["name"], gpus=list(item["gpus"]) or None)
        if item.get("port") is not None:
            entry["port"] = item["port"]
        chosen.append(entry)
    return [*own, *chosen] if isinstance(own, (list, tuple)) else own
