# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about what slows or stops GPUs: their link, heat and power, and the way from one to another.

Only cards that the plan uses are looked at, and only services with more than one card for the way between them.
"""

from __future__ import annotations

import itertools
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import INFO, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    Map,
    cards,
    cards_of,
    dig,
    index_of,
    items,
    kernel_argument,
    label,
    listed,
    mapping,
    number,
    nvidia,
    of_cards,
    on_gpus,
    sequence,
    service_name,
    services,
    text,
    texts,
    users_of,
    whole,
)

RULES: list[Rule] = []
rule = rules_into(RULES)

HOT_MARGIN_C = 3
# More sets of cards than this are not tried for a better one.
MOST_SETS = 2000

Pair = tuple[int, int]

# ---- fast


@rule(
    "gpu.pcie_width", WARNING, "The PCIe links of the plan's GPUs have their full width",
    "A link of half the width loads models at half the speed, and slows tensor parallelism without NVLink; the cause "
    "is a seat, a riser or a slot.",
)  # fmt: skip
def pcie_width(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        now, most = whole(dig(card, "pcie", "width", "current")) or 0, whole(dig(card, "pcie", "width", "max")) or 0
        if not 0 < now < most:
            return None
        remedy = (
            f"reseat the card or its riser ('nvidia-smi -q -i {index_of(card)}', GPU Link Info, and 'lspci -vv'); "
            "where the slot has no more lanes, add gpu.pcie_width to vllm_preflight_skip"
        )
        return Failure(f"the link of {label(card, context)} has x{now} of x{most}", f"x{most}", remedy)

    def known(card: Map) -> bool:
        return all(whole(dig(card, "pcie", "width", key)) is not None for key in ("current", "max"))

    return of_cards(context, "its PCIe link", known, look, chosen=True)


@rule(
    "gpu.pcie_generation", WARNING, "The PCIe links of busy GPUs have their full speed",
    "An idle link slows down on purpose; a busy one that stays slow was trained to it by a bad contact or a BIOS "
    "setting.",
)  # fmt: skip
def pcie_generation(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        now, most = whole(dig(card, "pcie", "gen", "current")) or 0, whole(dig(card, "pcie", "gen", "max")) or 0
        if not 0 < now < most or (whole(dig(card, "utilization", "gpu_percent")) or 0) < 20:
            return None
        remedy = (
            f"reseat the card, or set the slot's speed in the BIOS; 'nvidia-smi -q -i {index_of(card)}' (GPU Link "
            "Info) shows it"
        )
        return Failure(f"the link of {label(card, context)} runs at generation {now} of {most}", f"{most}", remedy)

    def known(card: Map) -> bool:
        return all(whole(dig(card, "pcie", "gen", key)) is not None for key in ("current", "max"))

    return of_cards(context, "its PCIe link", known, look, chosen=True)


# ---- heat and power


@rule(
    "gpu.hot", WARNING, "The plan's GPUs are well below the temperature at which they slow down",
    "At its slowdown threshold the GPU lowers its clocks, and shuts down not far above (nvidia-smi -q -d TEMPERATURE).",
)  # fmt: skip
def hot(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        now, limit = number(card.get("temperature_c")), number(card.get("temperature_limit_c"))
        if now is None or limit is None or now < limit - HOT_MARGIN_C:
            return None
        seen = f"{label(card, context)} has {now:.0f} C, and slows down at {limit:.0f} C"
        remedy = (
            "check fans, filters and the air in front of the host ('ipmitool sdr type Temperature'), before it is "
            "loaded"
        )
        return Failure(seen, f"below {limit - HOT_MARGIN_C:.0f} C", remedy)

    def known(card: Map) -> bool:
        limit = number(card.get("temperature_limit_c"))
        return number(card.get("temperature_c")) is not None and limit is not None and limit > 0

    return of_cards(context, "its temperature or threshold", known, look, chosen=True)


def _throttled(context: Context, reasons: t.Mapping[str, str], remedy: str) -> Verdict:
    def look(card: Map) -> Failure | None:
        active = [reasons[reason] for reason in texts(card.get("throttle")) if reason in reasons]
        if not active:
            return None
        seen = f"{label(card, context)} runs at lower clocks: {listed(active)}"
        return Failure(seen, "full clocks when asked", remedy.format(index=index_of(card)))

    return of_cards(context, "its clocks", lambda card: isinstance(card.get("throttle"), list), look, chosen=True)


@rule(
    "gpu.thermal_throttle", WARNING, "No GPU of the plan is slowed down by heat",
    "Thermal slowdown halves clocks or worse, and one slow card slows its whole tensor-parallel group (nvidia-smi -q "
    "-d PERFORMANCE).",
)  # fmt: skip
def thermal_throttle(context: Context) -> Verdict:
    reasons = {
        "hw_thermal_slowdown": "the hardware's thermal slowdown",
        "sw_thermal_slowdown": "the driver's thermal slowdown",
        "hw_slowdown": "the hardware's slowdown (heat or power)",
    }
    remedy = (
        "check fans and the air in front of the host; 'nvidia-smi -q -i {index} -d TEMPERATURE,PERFORMANCE' shows it"
    )
    return _throttled(context, reasons, remedy)


@rule(
    "gpu.power_brake", WARNING, "No GPU of the plan is held back by the host's power",
    "The power brake is a signal of the power supply or the chassis: a supply failed, or the host draws too much.",
)  # fmt: skip
def power_brake(context: Context) -> Verdict:
    remedy = (
        "check the power supplies and their cables ('ipmitool sdr type \"Power Supply\"'); then 'nvidia-smi -q -i "
        "{index}'"
    )
    return _throttled(context, {"hw_power_brake_slowdown": "the power brake is on"}, remedy)


@rule(
    "gpu.power_limit", WARNING, "The plan's GPUs have their default power limit",
    "A lower limit is a lower speed under load; set on purpose or left over (nvidia-smi --power-limit lasts until "
    "the driver is unloaded).",
)  # fmt: skip
def power_limit(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        limit, default = number(dig(card, "power", "limit_w")), number(dig(card, "power", "default_limit_w"))
        if limit is None or default is None or limit >= default - 1:
            return None
        seen = f"{label(card, context)} is limited to {limit:.0f} W of {default:.0f} W"
        remedy = (
            f"nvidia-smi -i {index_of(card)} --power-limit={default:.0f}; where it is meant, add gpu.power_limit to "
            "vllm_preflight_skip"
        )
        return Failure(seen, f"{default:.0f} W", remedy)

    def known(card: Map) -> bool:
        return all((number(dig(card, "power", key)) or 0) > 0 for key in ("limit_w", "default_limit_w"))

    return of_cards(context, "its power limits", known, look, chosen=True)


@rule(
    "gpu.mixed", WARNING, "The GPUs of one service are of one kind",
    "Tensor parallelism gives each card the same part: the smallest memory and the slowest card decide for all.",
)  # fmt: skip
def mixed(context: Context) -> Verdict:
    found = []
    for service, chosen in _groups(context):
        kinds = {text(card.get("name")) for card in chosen}
        if "" in kinds:
            return Unknown(f"the name of a GPU of {service_name(service)} is not told")
        if len(kinds) > 1:
            remedy = f"give {service_name(service)} cards of one kind under gpus: (nvidia-smi -L)"
            seen = f"its cards are {listed(sorted(kinds))}"
            found.append(Failure(seen, "cards of one kind", remedy, service_name(service)))
    return found


# ---- from one to another


def _groups(context: Context) -> list[tuple[Map, list[Map]]]:
    """The services with more than one card."""
    if not on_gpus(context):
        return []
    each = [(service, cards_of(service, context)) for service in services(context)]
    return [(service, chosen) for service, chosen in each if len(chosen) > 1]


def _topology(context: Context) -> dict[Pair, Map] | None:
    told = nvidia(context).get("topology")
    if not isinstance(told, list):
        return None
    ways: dict[Pair, Map] = {}
    for entry in items(told):
        ends = [whole(end) for end in sequence(entry.get("gpus"))]
        if len(ends) == 2 and ends[0] is not None and ends[1] is not None:
            ways[min(ends[0], ends[1]), max(ends[0], ends[1])] = entry
    return ways


def _pairs(chosen: t.Sequence[Map]) -> list[Pair]:
    indices = sorted(index for index in (whole(card.get("index")) for card in chosen) if index is not None)
    return list(itertools.combinations(indices, 2))


def _nvlinked(way: Map | None) -> bool:
    return way is not None and ((whole(way.get("nvlinks")) or 0) > 0 or text(way.get("link")).startswith("nv"))


def _of_pairs(context: Context, look: t.Callable[[Map, list[Map], dict[Pair, Map]], Failure | None]) -> Verdict:
    """Look at each service with more than one card, once the ways between the cards are known."""
    groups = _groups(context)
    if not groups:
        return None
    ways = _topology(context)
    if ways is None:
        return Unknown("nvidia-smi topo tells no topology")
    lost = [pair for _service, chosen in groups for pair in _pairs(chosen) if pair not in ways]
    found = [failure for failure in (look(service, chosen, ways) for service, chosen in groups) if failure]
    return Unknown(f"the way between GPU {lost[0][0]} and {lost[0][1]} is not told") if lost and not found else found


def _names(pairs: t.Iterable[Pair]) -> str:
    return listed((f"{left}-{right}" for left, right in pairs), 4)


P2P_WORDS = {
    "cns": "the chipset does not support it",
    "gns": "the GPU does not support it",
    "tns": "the topology does not support it",
    "ns": "it is not supported",
}


@rule(
    "gpu.p2p", WARNING, "The GPUs of a service reach each other's memory",
    "Without peer-to-peer NCCL copies through the host's memory, and where P2P only seems to work it hangs at start "
    "(vLLM #9920, nvidia-smi topo -p2p r).",
)  # fmt: skip
def p2p(context: Context) -> Verdict:
    def look(service: Map, chosen: list[Map], ways: dict[Pair, Map]) -> Failure | None:
        without = [pair for pair in _pairs(chosen) if text(mapping(ways.get(pair)).get("p2p")) in P2P_WORDS]
        if not without:
            return None
        reason = P2P_WORDS[text(ways[without[0]].get("p2p"))]
        # Over NVLink it should work; consumer cards over PCIe never have it, and NCCL goes another way.
        linked = any(_nvlinked(ways.get(pair)) for pair in without)
        remedy = (
            "run 'nvidia-smi topo -p2p r'; if the engine hangs while it starts, set NCCL_P2P_DISABLE: \"1\" under "
            "environment: and disable-custom-all-reduce: true under args:"
        )
        seen = f"no peer-to-peer between GPU {_names(without)}: {reason}"
        severity = WARNING if linked else INFO
        return Failure(seen, "peer-to-peer between all of its cards", remedy, service_name(service), severity)

    def told(verdict: Verdict) -> Verdict:
        ways = _topology(context) or {}
        silent = [
            pair
            for _service, chosen in _groups(context)
            for pair in _pairs(chosen)
            if pair in ways and text(ways[pair].get("p2p")) in ("", "u")
        ]
        return Unknown(f"peer-to-peer between GPU {_names(silent)} is not told") if silent and not verdict else verdict

    return told(_of_pairs(context, look))


def _over_pcie(context: Context) -> tuple[list[tuple[Map, list[Pair]]], Verdict]:
    """Services whose cards have a pair without NVLink, and what is unknown about it."""
    crossing: list[tuple[Map, list[Pair]]] = []

    def look(service: Map, chosen: list[Map], ways: dict[Pair, Map]) -> Failure | None:
        pairs = [pair for pair in _pairs(chosen) if pair in ways and not _nvlinked(ways[pair])]
        if pairs:
            crossing.append((service, pairs))
        return None

    return crossing, _of_pairs(context, look)


@rule(
    "gpu.acs", WARNING, "PCIe switches let GPUs without NVLink talk directly",
    "With ACS on, peer traffic goes up to the root complex and back: it is slow, and tensor parallelism can hang in "
    "NCCL (NCCL troubleshooting guide, PCI Access Control Services; vLLM #9920).",
)  # fmt: skip
def acs(context: Context) -> Verdict:
    crossing, unknown = _over_pcie(context)
    if not crossing:
        return unknown
    enabled = dig(context.facts, "acs", "enabled")
    if not isinstance(enabled, list):
        return Unknown("the ACS settings of the PCIe bridges could not be read (lspci -vvv as root)")
    bridges = texts(enabled)
    if not bridges:
        return None
    remedy = "turn ACS off in the BIOS, or for each bridge: setpci -s ADDRESS ECAP_ACS+0x6.w=0000 (lost at a reboot)"
    return [
        Failure(
            f"GPU {_names(pairs)} talk over PCIe, and ACS is on at {listed(bridges, 4)}",
            "ACS off between the cards of one service",
            remedy,
            service_name(service),
        )
        for service, pairs in crossing
    ]


@rule(
    "gpu.iommu", WARNING, "The IOMMU does not stand between GPUs without NVLink",
    "Translated peer traffic is slow or hangs on bare metal; NVIDIA asks for the IOMMU off or in passthrough (NCCL "
    "troubleshooting guide; vLLM #6370).",
)  # fmt: skip
def iommu(context: Context) -> Verdict:
    crossing, unknown = _over_pcie(context)
    if not crossing:
        return unknown
    enabled, passthrough = (dig(context.facts, "iommu", key) for key in ("enabled", "passthrough"))
    if enabled is False or passthrough is True:
        return None
    if not isinstance(enabled, bool) or not isinstance(passthrough, bool):
        return Unknown("whether the IOMMU translates could not be read")
    remedy = f"{kernel_argument('iommu=pt', context)}; then reboot"
    return [
        Failure(
            f"GPU {_names(pairs)} talk over PCIe, and the IOMMU translates",
            "IOMMU off, or in passthrough",
            remedy,
            service_name(service),
        )
        for service, pairs in crossing
    ]


def _free_for(service: Map, context: Context) -> list[Map]:
    """The cards that a service has or could have: its own and the spare ones of the same kind."""
    mine = cards_of(service, context)
    kinds = {text(card.get("name")) for card in mine}
    name = service_name(service)
    usable = [card for card in cards(context) if dig(card, "mig", "current") != "enabled"]
    return [card for card in usable if not set(users_of(card, context)) - {name} and text(card.get("name")) in kinds]


def _better(service: Map, chosen: list[Map], context: Context, good: t.Callable[[Pair], bool]) -> tuple[int, ...]:
    """Another set of as many cards whose pairs are all good; empty where there is none."""
    free = sorted(
        index for index in (whole(card.get("index")) for card in _free_for(service, context)) if index is not None
    )
    for candidate in itertools.islice(itertools.combinations(free, len(chosen)), MOST_SETS):
        if all(good(pair) for pair in itertools.combinations(candidate, 2)):
            return candidate
    return ()


@rule(
    "gpu.nvlink", WARNING, "A service that could have its GPUs on NVLink has them there",
    "NVLink moves several times what PCIe moves, and tensor parallelism waits for the slowest pair (vLLM: "
    "Parallelism and Scaling).",
)  # fmt: skip
def nvlink(context: Context) -> Verdict:
    def look(service: Map, chosen: list[Map], ways: dict[Pair, Map]) -> Failure | None:
        without = [pair for pair in _pairs(chosen) if pair in ways and not _nvlinked(ways[pair])]
        if not without:
            return None
        better = _better(service, chosen, context, lambda pair: _nvlinked(ways.get(pair)))
        if not better:
            return None
        remedy = f"set gpus: [{listed(better, 99)}] for {service_name(service)}"
        seen = f"GPU {_names(without)} have no NVLink between them, and GPU {listed(better, 99)} are free and have"
        return Failure(seen, "NVLink between all of its cards", remedy, service_name(service))

    return _of_pairs(context, look)


@rule(
    "gpu.nvlink_degraded", WARNING, "All NVLinks between the GPUs of a service are up",
    "A pair with fewer links than its like lost some: the traffic goes on, slower, and the rest may follow (Xid 74).",
)  # fmt: skip
def nvlink_degraded(context: Context) -> Verdict:
    def look(service: Map, chosen: list[Map], ways: dict[Pair, Map]) -> Failure | None:
        # NVSwitch gives each pair the same count; bridges and meshes differ by pair, and not by a link or two.
        counts = {pair: whole(way.get("nvlinks")) or 0 for pair, way in ways.items()}
        most = max(counts.values(), default=0)
        switched = len(cards(context)) > 4 and all(counts.values())
        fewer = [pair for pair in _pairs(chosen) if 0 < counts.get(pair, 0) < most]
        if not fewer or not switched:
            return None
        remedy = (
            "run 'nvidia-smi nvlink --status' and '--errorcounters', then reset all GPUs together or reboot the host"
        )
        seen = f"GPU {_names(fewer)} have {counts[fewer[0]]} links between them, and others {most}"
        return Failure(seen, f"{most} links", remedy, service_name(service))

    return _of_pairs(context, look)


@rule(
    "gpu.across_sockets", WARNING, "A service that could have its GPUs on one socket has them there",
    "Between sockets the traffic of tensor parallelism shares the CPUs' link, the slowest way (nvidia-smi topo -m: "
    "SYS).",
)  # fmt: skip
def across_sockets(context: Context) -> Verdict:
    def look(service: Map, chosen: list[Map], ways: dict[Pair, Map]) -> Failure | None:
        across = [pair for pair in _pairs(chosen) if text(mapping(ways.get(pair)).get("link")) == "sys"]
        if not across:
            return None
        better = _better(
            service, chosen, context, lambda pair: pair in ways and text(ways[pair].get("link")) not in ("", "sys")
        )
        if not better:
            return None
        remedy = f"set gpus: [{listed(better, 99)}] for {service_name(service)}"
        seen = f"GPU {_names(across)} lie on different sockets, and GPU {listed(better, 99)} are free and do not"
        return Failure(seen, "cards of one socket", remedy, service_name(service))

    return _of_pairs(context, look)
