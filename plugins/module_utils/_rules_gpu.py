# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about each GPU: there, healthy, free and fast enough. Pure, no I/O.

A card that the plan uses and that would fail is an error; the same on a spare card is a warning.
"""

from __future__ import annotations

import math
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    GIB,
    Map,
    bus,
    cards,
    dig,
    graded,
    index_of,
    is_data_centre,
    is_virtual,
    items,
    label,
    listed,
    mapping,
    number,
    nvidia,
    of_cards,
    on_gpus,
    reset,
    same_card,
    service_name,
    services,
    setting,
    size,
    text,
    texts,
    users_of,
    utilization,
    version,
    whole,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_xid import (
    ADVICE,
    CATALOGUE,
    RESET,
    explain,
    recovery_advice,
    that_count,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

RULES: list[Rule] = []
rule = rules_into(RULES)

# What an idle driver may hold of a card beyond its reserve: display and daemons.
IDLE_BYTES = GIB
# From this branch on the driver logs that a GPU needs no recovery any more (NVIDIA Xid catalogue, Xid 154).
TELLS_RECOVERY = 565

# ---- there


def _expected(value: t.Any) -> tuple[int | None, list[str]]:
    """``vllm_expected_gpus`` as a count, and the UUIDs where it names them."""
    if isinstance(value, str) and value.strip().isdecimal() and len(value) < 6:
        value = int(value)
    if isinstance(value, (list, tuple)):
        return len(value), [item for item in value if isinstance(item, str) and item.startswith("GPU-")]
    count = whole(value)
    return (count if count is not None and count >= 0 else None), []


@rule(
    "gpu.missing", ERROR, "Every GPU of the inventory is there",
    "A card that fell off the bus leaves fewer cards and other indices, and services then share or miss one.",
)  # fmt: skip
def missing(context: Context) -> Verdict:
    count, uuids = _expected(setting(context, "vllm_expected_gpus"))
    if not on_gpus(context) or setting(context, "vllm_expected_gpus") in (None, ""):
        return None
    if count is None:
        return Unknown("vllm_expected_gpus is neither a number nor a list of UUIDs")
    if not isinstance(mapping(context.facts).get("gpus"), list):
        return Unknown("the GPUs of the host are not told")
    there = cards(context)
    gone = [uuid for uuid in uuids if uuid not in {text(card.get("uuid")) for card in there}]
    # A driver that lists no card at all is another finding.
    if (len(there) >= count and not gone) or (not there and text(nvidia(context).get("reason_code"))):
        return None
    seen = plural(len(there), "GPU") + (f", without {listed(gone)}" if gone else "")
    remedy = (
        "run 'nvidia-smi -L' and 'lspci -d 10de:', read 'dmesg | grep -i xid', reboot the host; if the card was taken "
        "out, lower vllm_expected_gpus"
    )
    return [Failure(seen, f"{plural(count, 'GPU')}, as vllm_expected_gpus says", remedy)]


@rule(
    "gpu.gone", WARNING, "The GPUs that services ran on are still there",
    "The record names each card by its UUID; a UUID that is gone is a card that was lost, swapped or moved.",
)  # fmt: skip
def gone(context: Context) -> Verdict:
    if not on_gpus(context):
        return None
    recorded = mapping(dig(context.facts, "record", "services"))
    if recorded and not isinstance(mapping(context.facts).get("gpus"), list):
        return Unknown("the GPUs of the host are not told")
    planned = {service_name(service) for service in services(context)}
    found = []
    for name, entry in recorded.items():
        lost = [
            one
            for one in items(mapping(entry).get("gpus"))
            if text(one.get("uuid")) and not any(same_card(one, card) for card in cards(context))
        ]
        if lost and name in planned:
            seen = f"{listed(text(one.get('uuid')) for one in lost)}, on which {name} ran, is not on the host"
            remedy = (
                f"look for it with 'nvidia-smi -L' and 'lspci -d 10de:'; if it was replaced, set gpus: of {name} anew"
            )
            found.append(Failure(seen, "the cards of the last successful run", remedy, str(name)))
    return found


@rule(
    "gpu.without_driver", WARNING, "The driver uses every NVIDIA GPU on the PCI bus",
    "A card on the bus that the driver does not list failed to start, or belongs to another driver (vfio-pci).",
)  # fmt: skip
def without_driver(context: Context) -> Verdict:
    if not on_gpus(context) or not cards(context):
        return None
    devices = nvidia(context).get("pci_devices")
    if not isinstance(devices, list):
        return Unknown("the PCI bus could not be read")
    listed_there = {bus(card.get("pci_bus_id")) for card in cards(context)}
    if "" in listed_there:
        return Unknown("a GPU does not tell its PCI address")
    lost = [device for device in texts(devices) if bus(device) and bus(device) not in listed_there]
    if not lost:
        return None
    remedy = (
        f"read 'dmesg | grep -i nvrm' and 'lspci -ks {lost[0]}' (which driver holds it); reboot, or reseat the card"
    )
    return [Failure(f"{listed(lost)} is on the bus, and nvidia-smi does not list it", "all of them listed", remedy)]


@rule(
    "gpu.unreadable", ERROR, "Every GPU answers",
    "A card without UUID or memory in nvidia-smi is lost, or waits for a reset; CUDA cannot open it.",
)  # fmt: skip
def unreadable(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if text(card.get("uuid")) and whole(card.get("memory_total_bytes")):
            return None
        what = "UUID" if not text(card.get("uuid")) else "memory"
        seen = f"{label(card, context)} does not tell its {what}"
        return Failure(seen, "a card that answers", f"{reset(card)}; 'nvidia-smi -q -i {index_of(card)}' tells why",
                       severity=graded(card, context))  # fmt: skip

    # Where no card tells anything, nothing could be read, which is not the cards' fault.
    if cards(context) and not any(text(card.get("uuid")) for card in cards(context)):
        return Unknown("no GPU tells its UUID")
    return of_cards(context, "its state", lambda card: True, look)


# ---- healthy


@rule(
    "gpu.ecc_uncorrected", ERROR, "No GPU has uncorrected memory errors",
    "After an uncorrectable ECC error a reset of the GPU or a reboot is needed (NVIDIA Xid catalogue, Xid 48).",
)  # fmt: skip
def ecc_uncorrected(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        count = whole(dig(card, "ecc", "uncorrected_volatile")) or 0
        if count <= 0:
            return None
        seen = f"{label(card, context)} counts {plural(count, 'uncorrected memory error')} since the driver was loaded"
        remedy = f"{reset(card)}; if they come back, replace it ('nvidia-smi -q -d ECC,ROW_REMAPPER' for the case)"
        return Failure(seen, "0", remedy, severity=graded(card, context))

    def known(card: Map) -> bool:
        # A card without ECC counts nothing.
        return dig(card, "ecc", "mode") != "enabled" or whole(dig(card, "ecc", "uncorrected_volatile")) is not None

    return of_cards(context, "its count of ECC errors", known, look)


@rule(
    "gpu.ecc_off", INFO, "ECC is on where the GPU has it",
    "Without ECC a flipped bit of a weight stays unseen: data-centre GPUs are made to run with it (NVIDIA GPU Memory "
    "Error Management).",
)  # fmt: skip
def ecc_off(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if dig(card, "ecc", "mode") != "disabled" or not is_data_centre(card) or is_virtual(card):
            return None
        remedy = f"nvidia-smi -i {index_of(card)} --ecc-config=1, then reset the card or reboot"
        return Failure(f"ECC is off on {label(card, context)}", "ECC on", remedy)

    return of_cards(context, "ECC", lambda card: isinstance(card.get("ecc"), t.Mapping), look, chosen=True)


@rule(
    "gpu.row_remap_failure", ERROR, "No GPU ran out of spare memory rows",
    "A row that could not be remapped is a reason to replace the card (NVIDIA GPU Memory Error Management, Xid 64).",
)  # fmt: skip
def row_remap_failure(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if dig(card, "ecc", "remapped_rows", "failure") is not True:
            return None
        remedy = (
            f"take the card out of every gpus:, and replace it ('nvidia-smi -i {index_of(card)} -q -d ROW_REMAPPER' "
            "for the case)"
        )
        seen = f"a memory row of {label(card, context)} could not be remapped"
        return Failure(seen, "no failed remapping", remedy, severity=graded(card, context))

    def known(card: Map) -> bool:
        remapped = dig(card, "ecc", "remapped_rows")
        return dig(card, "ecc", "mode") != "enabled" or isinstance(remapped, t.Mapping)

    return of_cards(context, "its row remapping", known, look)


@rule(
    "gpu.row_remap_pending", WARNING, "No GPU waits for a reset to remap a memory row",
    "A bad row stays in use until the next reset, so that the same error can come again (NVIDIA GPU Memory Error "
    "Management, Xid 63).",
)  # fmt: skip
def row_remap_pending(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if dig(card, "ecc", "remapped_rows", "pending") is not True:
            return None
        seen = f"{label(card, context)} waits for a reset to remap a memory row"
        return Failure(seen, "nothing pending", f"before the deploy starts engines: {reset(card)}")

    def known(card: Map) -> bool:
        remapped = dig(card, "ecc", "remapped_rows")
        return dig(card, "ecc", "mode") != "enabled" or isinstance(remapped, t.Mapping)

    return of_cards(context, "its row remapping", known, look)


@rule(
    "gpu.retired_pages_pending", WARNING, "No GPU waits for a reboot to retire a memory page",
    "Before Ampere bad memory is retired by pages, which takes effect when the driver is loaded anew (NVIDIA Dynamic "
    "Page Retirement).",
)  # fmt: skip
def retired_pages_pending(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if dig(card, "ecc", "retired_pages_pending") is not True:
            return None
        seen = f"{label(card, context)} waits to retire a memory page"
        return Failure(seen, "nothing pending", f"{reset(card)}; 'nvidia-smi -q -d PAGE_RETIREMENT' counts them")

    return of_cards(context, "its retired pages", lambda card: isinstance(card.get("ecc"), t.Mapping), look)


def _xids(context: Context, fatal: bool) -> Verdict:
    if not on_gpus(context):
        return None
    told = nvidia(context).get("xids")
    if not isinstance(told, list):
        return Unknown("the kernel's log could not be read (journalctl -k, dmesg)")
    groups: dict[tuple[str, int], list[Map]] = {}
    for xid in that_count(items(told), fatal, number(context.now)):
        groups.setdefault((bus(xid.get("pci_bus_id")), whole(xid.get("xid")) or 0), []).append(xid)
    return [_xid_failure(context, key, group, fatal) for key, group in sorted(groups.items())]


def _xid_failure(context: Context, key: tuple[str, int], group: t.Sequence[Map], fatal: bool) -> Failure:
    address, code = key
    card = next((card for card in cards(context) if address and bus(card.get("pci_bus_id")) == address), None)
    where = label(card, context) if card else f"the GPU at {address or 'an unknown address'}, which is not listed"
    known = explain(code)
    meaning = known.meaning
    if code == ADVICE:
        meaning = f"the driver asks for: {recovery_advice(text(group[-1].get('message')))}"
    seen = f"Xid {code} ({meaning}) on {where}" + (f", {len(group)} times" if len(group) > 1 else "")
    remedy = (RESET if code == ADVICE else known.remedy).format(index=index_of(card) if card else "INDEX")
    if fatal and (version(nvidia(context).get("driver_version")) or (TELLS_RECOVERY,)) < (TELLS_RECOVERY,):
        remedy += "; after that this driver logs no recovery: add gpu.xid_fatal to vllm_preflight_skip until the reboot"
    expected = "none since boot, or since the reset of the GPU" if fatal else "none in the last week"
    return Failure(seen, expected, remedy, severity=graded(card or {}, context) if fatal else "")


@rule(
    "gpu.xid_fatal", ERROR, "No GPU had an error that asks for a reset, a reboot or a repair",
    f"The catalogue asks for it before the GPU is used again ({CATALOGUE}).",
)  # fmt: skip
def xid_fatal(context: Context) -> Verdict:
    return _xids(context, fatal=True)


@rule(
    "gpu.xid", WARNING, "The driver reported no other errors (Xids)",
    f"An application's fault in most cases, and a sign of a failing card where they become more ({CATALOGUE}).",
)  # fmt: skip
def xid_seen(context: Context) -> Verdict:
    return _xids(context, fatal=False)


# ---- set right


@rule(
    "gpu.compute_mode", WARNING, "The GPUs take more than one process",
    "In a mode other than Default a second engine, or a tool that looks, is refused; Prohibited refuses all "
    "(nvidia-smi --compute-mode).",
)  # fmt: skip
def compute_mode(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        mode = text(card.get("compute_mode"))
        users = users_of(card, context)
        if mode not in ("prohibited", "exclusive_process", "exclusive_thread"):
            return None
        severity = ERROR if users and (mode == "prohibited" or len(users) > 1) else WARNING
        remedy = f"nvidia-smi -i {index_of(card)} --compute-mode=0"
        return Failure(f"{label(card, context)} is in the mode {mode}", "default", remedy, severity=severity)

    return of_cards(context, "its compute mode", lambda card: bool(text(card.get("compute_mode"))), look)


@rule(
    "gpu.mig_pending", WARNING, "No GPU waits for a reset to change its MIG mode",
    "At the next reset or reboot the card is another device: partitions instead of a whole GPU, or the other way "
    "round.",
)  # fmt: skip
def mig_pending(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        current, pending = text(dig(card, "mig", "current")), text(dig(card, "mig", "pending"))
        if not current or not pending or current == pending:
            return None
        undo = 1 if current == "enabled" else 0
        remedy = (
            f"keep it as it is with 'nvidia-smi -i {index_of(card)} -mig {undo}', or reset the card now and plan anew"
        )
        seen = f"MIG on {label(card, context)} is {current}, and {pending} after the next reset"
        return Failure(seen, "the same before and after", remedy)

    return of_cards(context, "its MIG mode", lambda card: isinstance(card.get("mig"), t.Mapping), look)


@rule(
    "gpu.mig_empty", WARNING, "No GPU in MIG mode is without partitions",
    "In MIG mode only partitions can be used; without any the card serves nobody (NVIDIA MIG User Guide).",
)  # fmt: skip
def mig_empty(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        if dig(card, "mig", "current") != "enabled" or dig(card, "mig", "devices") != []:
            return None
        index = index_of(card)
        remedy = (
            f"turn MIG off: nvidia-smi -i {index} -mig 0; or make partitions: nvidia-smi mig -i {index} -lgip lists "
            "them"
        )
        severity = graded(card, context)
        return Failure(f"{label(card, context)} is in MIG mode and has no partition", "MIG off, or partitions", remedy,
                       severity=severity)  # fmt: skip

    return of_cards(context, "its MIG mode", lambda card: isinstance(card.get("mig"), t.Mapping), look)


@rule(
    "gpu.persistence", WARNING, "The driver stays loaded between processes",
    "Without it the driver lets go of an idle GPU: each start takes seconds longer for each card, and power limits "
    "and clocks are lost (NVIDIA Driver Persistence).",
)  # fmt: skip
def persistence(context: Context) -> Verdict:
    if nvidia(context).get("persistenced") is True:
        return None

    def look(card: Map) -> Failure | None:
        return Failure(index_of(card), "", "") if text(card.get("persistence_mode")) == "disabled" else None

    verdict = of_cards(
        context, "its persistence mode", lambda card: bool(text(card.get("persistence_mode"))), look, True
    )
    if not verdict or isinstance(verdict, Unknown):
        return verdict
    off = listed(failure.seen for failure in verdict)
    seen = f"persistence is off on GPU {off}, and nvidia-persistenced does not run"
    return [Failure(seen, "the persistence daemon", "systemctl enable --now nvidia-persistenced")]


# ---- free


def _is_ours(process: Map) -> bool:
    return bool(text(process.get("service"))) and process.get("orphan") is not True


def _foreign(card: Map) -> list[Map]:
    """What is on the card and neither ours nor left over."""
    return [
        process
        for process in items(card.get("processes"))
        if not _is_ours(process) and process.get("orphan") is not True
    ]


def _who(process: Map) -> str:
    facts = [f"pid {whole(process.get('pid')) or '?'}"]
    facts += [f"{key} {text(process.get(key))}" for key in ("container", "user") if text(process.get(key))]
    held = whole(process.get("memory_used_bytes"))
    return (
        f"{text(process.get('name')) or 'a process'} ({', '.join(facts)}; {size(held) if held else 'memory unknown'})"
    )


def _shortage(card: Map, held: int, context: Context) -> tuple[int, int] | None:
    """(wanted, free) where the services of the card cannot have their shares beside ``held`` bytes of others."""
    total = whole(card.get("memory_total_bytes")) or 0
    used, free = whole(card.get("memory_used_bytes")), whole(card.get("memory_free_bytes"))
    reserve = max(0, total - used - free) if used is not None and free is not None else 0
    mine = [one for one in services(context) if any(same_card(card, other) for other in items(one.get("gpus")))]
    wanted = sum(math.ceil(total * utilization(service)) for service in mine)
    left = total - reserve - held
    return (wanted, left) if total and wanted > left else None


@rule(
    "gpu.foreign_process", ERROR, "No other process computes on the GPUs of the plan",
    "An engine refuses to start where less memory is free than its share of the card (vLLM: Free memory on device is "
    "less than desired GPU memory utilization).",
)  # fmt: skip
def foreign_process(context: Context) -> Verdict:
    problem = text(mapping(context.facts).get("services_problem"))

    def look(card: Map) -> Failure | None:
        every = _foreign(card)
        held = sum(whole(process.get("memory_used_bytes")) or 0 for process in every)
        short = _shortage(card, held, context) if every else None
        # The display's processes are no engines: they matter where their memory is missing.
        others = every if short else [process for process in every if process.get("type") != "G"]
        if not others:
            return None
        pids = " ".join(str(whole(process.get("pid")) or "?") for process in others)
        seen = f"{listed(map(_who, others), 4)} on {label(card, context)}"
        seen += f", which leaves {size(max(0, short[1]))} of the {size(short[0])} that the plan wants" if short else ""
        remedy = (
            f"end it (look first: ps -fp {pids}), give the service other gpus:, or lower its gpu_memory_utilization:"
        )
        return Failure(seen, "a card for the plan's services alone", remedy, severity=ERROR if short else WARNING)

    def known(card: Map) -> bool:
        # Whose a process is, is told by the key's being there; None says that it is nobody's of ours.
        told = card.get("processes")
        if not isinstance(told, list) or not all("service" in process for process in items(told)):
            return False
        # Where the state of services cannot be read, a process that is nobody's may be ours.
        return not problem or all(_is_ours(process) for process in items(told))

    return of_cards(context, "its processes, or whose they are,", known, look, chosen=True)


@rule(
    "gpu.orphan", ERROR, "No engine was left behind on a GPU",
    "Workers whose API server was killed keep their memory for good, and the next engine does not fit (vLLM #55510).",
)  # fmt: skip
def orphan(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        left = [process for process in items(card.get("processes")) if process.get("orphan") is True]
        if not left:
            return None
        pids = " ".join(str(whole(process.get("pid")) or "?") for process in left)
        seen = f"{listed(map(_who, left), 4)} is left of an engine that is gone, on {label(card, context)}"
        remedy = f"kill {pids}; after 30 seconds, if it is still there, kill -KILL {pids}"
        return Failure(seen, "no process without its service", remedy, severity=graded(card, context))

    return of_cards(context, "its processes", lambda card: isinstance(card.get("processes"), list), look)


def _holds(card: Map, context: Context) -> bool:
    """Whether a service that runs was deployed to the card."""
    running = mapping(mapping(context.facts).get("services"))
    deployed = mapping(dig(context.facts, "deployed", "services"))
    return any(
        mapping(running.get(name)).get("state") == "running"
        and any(same_card(card, one) for one in items(mapping(entry).get("gpus")))
        for name, entry in deployed.items()
    )


@rule(
    "gpu.memory_held", WARNING, "No memory of the plan's GPUs is held by nobody",
    "Memory in use without a process is held by a process that cannot be seen (another container's, a dying one), or "
    "by the driver after a crash.",
)  # fmt: skip
def memory_held(context: Context) -> Verdict:
    def look(card: Map) -> Failure | None:
        used = whole(card.get("memory_used_bytes")) or 0
        if items(card.get("processes")) or used <= IDLE_BYTES:
            return None
        short = _shortage(card, used, context)
        # WSL lists no processes, and Windows always holds something.
        if not short and "microsoft" in text(mapping(context.facts).get("kernel")).lower():
            return None
        seen = f"{size(used)} of {label(card, context)} is in use, and no process is listed for it"
        remedy = (
            "look with 'fuser -v /dev/nvidia*' and 'docker ps' as root and end what holds it, or lower "
            f"gpu_memory_utilization:; else {reset(card)}"
        )
        return Failure(seen, f"less than {size(IDLE_BYTES)} in use", remedy, severity=ERROR if short else WARNING)

    def known(card: Map) -> bool:
        told = isinstance(card.get("processes"), list) and whole(card.get("memory_used_bytes")) is not None
        # A service of ours that runs there has processes: where none is listed, we may not see them.
        return told and (bool(card.get("processes")) or not _holds(card, context))

    return of_cards(context, "its memory or processes", known, look, chosen=True)
