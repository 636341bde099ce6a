# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules across hosts: replicas that are alike, hosts that are not the same one, clocks. Pure, no I/O.

Replicas are the services of one name on several hosts; what differs is said once, with all hosts that it is about.
"""

from __future__ import annotations

import typing as t
from dataclasses import replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._addresses import is_loopback
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    FleetRule,
    FleetVerdict,
    Unknown,
    fleet_rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_driver import image_facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    Map,
    argument,
    cards_of,
    contained,
    dig,
    dotted,
    items,
    listed,
    mapping,
    number,
    nvidia,
    on_gpus,
    service_name,
    services,
    setting,
    text,
    texts,
    version,
)

RULES: list[FleetRule] = []
rule = fleet_rules_into(RULES)

CLOCKS_APART_S = 30
# A message that a person reads to its end: each of 500 hosts may be of a kind of its own.
MOST_KINDS = 4

Replica = tuple[Context, Map]
# What a replica is, in words; an empty text where it cannot be told, None where the question does not concern it.
Trait = t.Callable[[Context, Map], t.Optional[str]]


def replicas(contexts: t.Sequence[Context]) -> dict[str, list[Replica]]:
    """The services that stand on more than one host, by name."""
    found: dict[str, list[Replica]] = {}
    for context in contexts:
        for service in services(context):
            if service_name(service):
                found.setdefault(service_name(service), []).append((context, service))
    return {name: group for name, group in found.items() if len({context.host for context, _service in group}) > 1}


def differing(contexts: t.Sequence[Context], trait: Trait, expected: str, remedy: str, silent: str) -> FleetVerdict:
    """A failure for each service whose replicas differ in a trait; the most common kind is named first."""
    found: list[tuple[tuple[str, ...], Failure]] = []
    untold: list[str] = []
    for name, group in sorted(replicas(contexts).items()):
        kinds: dict[str, list[str]] = {}
        for context, service in group:
            kind = trait(context, service)
            if kind == "":
                untold.append(context.host)
            elif kind is not None:
                kinds.setdefault(kind, []).append(context.host)
        if len(kinds) < 2:
            continue
        order = sorted(kinds, key=lambda kind: (-len(kinds[kind]), kind))
        words = [f"{kind} on {listed(sorted(kinds[kind]), 3)}" for kind in order]
        hosts = tuple(sorted({host for group_hosts in kinds.values() for host in group_hosts}))
        seen = "; ".join(words[:MOST_KINDS])
        if len(words) > MOST_KINDS:
            seen += f"; and {len(words) - MOST_KINDS} more kinds"
        found.append((hosts, Failure(seen, expected, remedy.format(service=name), name)))
    return Unknown(f"{silent} of {listed(sorted(set(untold)), 4)} is not told") if untold and not found else found


@rule(
    "fleet.gpus", WARNING, "Replicas of a service run on the same kind of GPUs",
    "Replicas behind one gateway get equal parts: the slower one queues, and the smaller one holds fewer tokens.",
)  # fmt: skip
def gpus(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(context: Context, service: Map) -> str | None:
        if not on_gpus(context):
            return None
        chosen = cards_of(service, context)
        names = sorted(text(card.get("name")) for card in chosen)
        if not names or not all(names):
            return ""
        return f"{len(names)} x {listed(sorted(set(names)))}"

    remedy = "put {service} on hosts of one kind, or give the kinds names of their own in vllm_services"
    return differing(contexts, trait, "one kind and number of GPUs", remedy, "the GPUs")


@rule(
    "fleet.driver", WARNING, "Replicas of a service have one driver branch",
    "Another branch has other faults and speeds, so that a replica that differs is the one that is looked for at "
    "night.",
)  # fmt: skip
def driver(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(context: Context, service: Map) -> str | None:
        if not on_gpus(context):
            return None
        numbers = version(nvidia(context).get("driver_version"))
        return f"driver R{numbers[0]}" if numbers and service else ""

    remedy = "install one branch on all hosts of {service} (nvidia-smi shows it), host by host"
    return differing(contexts, trait, "one driver branch", remedy, "the driver")


@rule(
    "fleet.image", WARNING, "Replicas of a service run one image",
    "A tag that moved is another build on each host that pulled it at another time; a digest is one build everywhere.",
)  # fmt: skip
def image(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(context: Context, service: Map) -> str | None:
        if not contained(context):
            return None
        reference = text(service.get("image"))
        if "@sha256:" in reference:
            return _short(reference.partition("@")[2])
        facts = image_facts(service, context)
        # What is not there yet is pulled by the same tag, and is no other build than the next host's.
        if facts is None:
            return None
        # A build that was pushed to two registries may have a digest for each.
        name = reference.partition("@")[0].rpartition(":")[0] or reference
        digests = sorted(texts(facts.get("digests")), key=lambda digest: (not digest.startswith(f"{name}@"), digest))
        found = [digest.partition("@")[2] for digest in digests if "@" in digest]
        return _short((found or [text(facts.get("id"))])[0])

    remedy = (
        "name a digest (vllm_image: NAME:TAG@sha256:...), or set vllm_image_pull: always for one deploy of {service}"
    )
    return differing(contexts, trait, "one image digest", remedy, "the image")


def _short(digest: str) -> str:
    return digest[:19]


@rule(
    "fleet.vllm", WARNING, "Replicas of a service have one version of vLLM",
    "Flags, defaults and answers differ between versions: a request then depends on which replica gets it.",
)  # fmt: skip
def vllm(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(context: Context, service: Map) -> str | None:
        inside = text(mapping(image_facts(service, context)).get("vllm_version")) if contained(context) else ""
        found = version(inside) or version(dig(context.plan, "engine", "version"))
        return f"vLLM {dotted(found)}" if found else ""

    remedy = "set vllm_image (or vllm_engine_versions) for the group of hosts that runs {service}, not for single hosts"
    return differing(contexts, trait, "one version of vLLM", remedy, "the version of vLLM")


@rule(
    "fleet.model", ERROR, "Replicas of a service serve one model",
    "One name that answers with two models gives wrong answers, and nobody sees which.",
)  # fmt: skip
def model(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(_context: Context, service: Map) -> str | None:
        return text(service.get("model"))

    remedy = "set one model: for {service} in vllm_services of all hosts, or give each model a service of its own name"
    verdict = differing(contexts, trait, "one model", remedy, "the model")
    if verdict is None or isinstance(verdict, Unknown):
        return verdict
    groups = replicas(contexts)
    return [
        (hosts, failure if _serve_one_name(groups[failure.service]) else replace(failure, severity=WARNING))
        for hosts, failure in verdict
    ]


def _serve_one_name(group: t.Sequence[Replica]) -> bool:
    """Whether a request cannot tell the replicas apart: clients and gateways go by the name of the model."""
    served = {argument(service, "served-model-name") for _context, service in group}
    return len(served) == 1 and "" not in served


@rule(
    "fleet.revision", WARNING, "Replicas of a service serve one revision of the model",
    "Other weights or another chat template under one name answer differently from replica to replica.",
)  # fmt: skip
def revision(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(_context: Context, service: Map) -> str | None:
        asked = text(service.get("revision"))
        return f"revision {asked}" if asked else ""

    def commit(context: Context, service: Map) -> str | None:
        found = _commit(context, service)
        return f"revision {text(service.get('revision'))} at commit {found[:12]}" if found else None

    remedy = "set one revision: for {service} in vllm_services of all hosts; a canary gets a name of its own"
    verdict = differing(contexts, trait, "one revision", remedy, "the revision")
    if verdict:
        return verdict
    remedy = "set revision: of {service} to a commit, so that a branch that moves is the same on all hosts"
    return differing(contexts, commit, "one commit", remedy, "the commit")


def _commit(context: Context, service: Map) -> str:
    """The commit that a host has of a service's model, or will have."""
    same = ("model", "revision", "path")
    for artifact in items(dig(context.facts, "deployed", "artifacts")):
        if all(text(artifact.get(key)) == text(service.get(key)) for key in same):
            return text(artifact.get("commit"))
    key = f"{text(service.get('model'))}@{text(service.get('revision'))}"
    return text(mapping(mapping(mapping(context.plan).get("models")).get(key)).get("commit"))


@rule(
    "fleet.arguments", WARNING, "Replicas of a service have the same limits",
    "A request that fits one replica and not the next fails by chance (max-model-len and the like).",
)  # fmt: skip
def arguments(contexts: t.Sequence[Context]) -> FleetVerdict:
    def trait(_context: Context, service: Map) -> str | None:
        declared = service.get("declared")
        if not isinstance(declared, list):
            return ""
        words = texts(declared)
        # A port is a host's own, and tensor parallelism follows from its GPUs.
        own = {position for position, word in enumerate(words) if word in ("--port", "--tensor-parallel-size")}
        kept = " ".join(word for position, word in enumerate(words) if not {position, position - 1} & own)
        return kept or "no flags"

    remedy = "set the same max_model_len: and args: for {service} on all hosts (group_vars instead of host_vars)"
    return differing(contexts, trait, "the same flags", remedy, "the flags")


# ---- hosts


def _shared(contexts: t.Sequence[Context], key: t.Callable[[Context], str]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for context in contexts:
        value = key(context)
        if value:
            found.setdefault(value, []).append(context.host)
    return {value: hosts for value, hosts in found.items() if len(set(hosts)) > 1}


def _machine(context: Context) -> str:
    """What two names for one machine share. Containers share the kernel's boot, and each has a name of its own."""
    boot = text(dig(context.facts, "boot", "id"))
    name = text(mapping(context.facts).get("hostname"))
    return f"hostname {name}, boot id {boot}" if boot and name else ""


def _deployed_to(context: Context) -> str:
    """Below roots of their own, two deploys on one machine do not meet."""
    machine, root = _machine(context), text(setting(context, "vllm_root"))
    return f"{machine}, vllm_root {root}" if machine and root else machine


@rule(
    "fleet.same_host", ERROR, "No host stands in the inventory twice",
    "Two names for one machine make two deploys at once, which take each other's ports and GPUs (the hostname, the "
    "kernel's boot id and vllm_root are the same).",
)  # fmt: skip
def same_host(contexts: t.Sequence[Context]) -> FleetVerdict:
    if len(contexts) < 2:
        return None
    found = [
        (
            tuple(sorted(hosts)),
            Failure(
                f"{listed(sorted(hosts))} are one machine ({machine})",
                "one name for each machine",
                "delete all but one of them from the inventory (ansible-inventory --graph)",
            ),
        )
        for machine, hosts in sorted(_shared(contexts, _deployed_to).items())
    ]
    silent = [context.host for context in contexts if not _machine(context)]
    return Unknown(f"the hostname or the boot id of {listed(silent, 4)} is not told") if silent and not found else found


@rule(
    "fleet.address", ERROR, "Each service is reached at an address of its own host",
    "A gateway or a client that asks one address for two hosts reaches one of them, and never the other.",
)  # fmt: skip
def duplicate_address(contexts: t.Sequence[Context]) -> FleetVerdict:
    if len(contexts) < 2:
        return None
    silent: list[str] = []
    by_place: dict[str, list[Context]] = {}
    for context in contexts:
        for service in services(context):
            url = text(service.get("public_url"))
            if not url:
                silent.append(context.host)
            elif not _is_own(url):
                by_place.setdefault(_place(url), []).append(context)
    shared: dict[tuple[str, ...], list[str]] = {}
    for place, group in by_place.items():
        # Two names for one machine are another finding.
        if len({_deployed_to(context) or context.host for context in group}) > 1:
            shared.setdefault(tuple(sorted({context.host for context in group})), []).append(place)
    if silent and not shared:
        return Unknown(f"the address of {listed(dict.fromkeys(silent), 4)} is not told")
    remedy = "set vllm_address for each of them, or bind_address: of its services, to an address that is its own"
    return [
        (hosts, Failure(f"{listed(sorted(places))} is at {listed(hosts)}", "an address for each host", remedy))
        for hosts, places in sorted(shared.items())
    ]


def _place(url: str) -> str:
    """Address and port: hosts behind one address may have a port each."""
    return url.partition("://")[2].partition("/")[0]


def _is_own(url: str) -> bool:
    """A service on loopback, which is every host's own, and which nobody asks from outside."""
    return is_loopback((_place(url).rpartition(":")[0] or _place(url)).strip("[]"))


@rule(
    "fleet.clocks", WARNING, "The clocks of the hosts agree",
    "With clocks apart the logs of a request that went through two hosts cannot be laid side by side.",
)  # fmt: skip
def clocks(contexts: t.Sequence[Context]) -> FleetVerdict:
    if len(contexts) < 2:
        return None
    # Facts of hosts arrive one after another, so that each clock is held to the controller's at that moment.
    apart = {}
    for context in contexts:
        epoch, now = number(dig(context.facts, "clock", "epoch")), number(context.now)
        if epoch is not None and now is not None:
            apart[context.host] = epoch - now
    if len(apart) < 2:
        return Unknown("the clocks of fewer than two hosts are told")
    middle = sorted(apart.values())[len(apart) // 2]
    off = {host: value - middle for host, value in apart.items() if abs(value - middle) > CLOCKS_APART_S}
    if not off:
        return None
    words = listed((f"{host} {value:+.0f} s" for host, value in sorted(off.items())), 6)
    remedy = "systemctl enable --now chrony (or chronyd) on them, then 'chronyc makestep'"
    return [(tuple(sorted(off)), Failure(f"away from the others: {words}", f"within {CLOCKS_APART_S} s", remedy))]
