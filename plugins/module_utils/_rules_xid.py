# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What each Xid means and what to do: NVIDIA's Xid catalogue, for what concerns an inference host. Pure, no I/O.

Numbers, meanings and immediate actions follow "Analyzing Xid Errors with the Xid Catalog"
(https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html); which of them are fatal follows the actions: an
Xid is fatal where the catalogue asks for a reset of the GPU, a reboot or a repair before the GPU is used again.
"""

from __future__ import annotations

import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import Map, bus, number, text, whole

# What an application did longer ago says nothing about the next one.
RECENT_SECONDS = 7 * 86400
CATALOGUE = "https://docs.nvidia.com/deploy/xid-errors/analyzing-xid-catalog.html"


class Xid(t.NamedTuple):
    """``fatal``: no engine should be started on the GPU before the remedy."""

    meaning: str
    fatal: bool
    remedy: str


RESET = "stop what uses the GPU, then run 'nvidia-smi --gpu-reset -i {index}' (or reboot the host)"
REBOOT = "drain the host, then 'ipmitool chassis power cycle' it"
SUPPORT = "if it comes back, replace the GPU: attach 'nvidia-bug-report.sh' to the case"
APPLICATION = "the application's or a library's fault in most cases: read 'dmesg' for the process, and restart it"
NVLINK = (
    "run 'nvidia-smi nvlink --errorcounters', then reset all GPUs of the host together with 'nvidia-smi --gpu-reset' "
    "(or reboot); if it comes back, have the link or the NVSwitch repaired"
)
WATCH = "nothing now; if they become more, plan a reset with 'nvidia-smi --gpu-reset -i {index}'"


def _reset(meaning: str) -> Xid:
    return Xid(meaning, True, f"{RESET}; {SUPPORT}")


def _application(meaning: str) -> Xid:
    return Xid(meaning, False, APPLICATION)


def _watch(meaning: str) -> Xid:
    return Xid(meaning, False, WATCH)


def _nvlink(meaning: str) -> Xid:
    return Xid(meaning, True, NVLINK)


XIDS: dict[int, Xid] = {
    8: _application("the GPU stopped processing"),
    11: _application("an invalid or corrupted push buffer stream"),
    13: _application("an exception of the graphics engine, such as an access out of bounds"),
    25: _application("an illegal push buffer stream"),
    31: _application("a page fault of the GPU's memory"),
    32: _application("an error of the push buffer DMA, often of the PCIe link"),
    37: _watch("an error of the driver's firmware"),
    38: _watch("an error of the driver's firmware"),
    39: _application("an exception of copy engine 0"),
    40: _application("an exception of copy engine 1"),
    41: _application("an exception of copy engine 2"),
    43: _application("the GPU stopped the processing of an application; the GPU stays healthy"),
    44: _watch("a fault of the graphics engine at a context switch"),
    45: Xid(
        "an application was torn down; the cause is another Xid, or someone ended the process", False,
        "look for another Xid before it (dmesg | grep Xid); alone it is a process that was killed",
    ),
    46: _reset("the GPU stopped processing"),
    48: _reset("a double-bit ECC error: memory that could not be corrected"),
    54: Xid(
        "the board's auxiliary power is not connected", True,
        "power the host off and check the power cables of the board; 'nvidia-smi -q -d POWER' shows it afterwards",
    ),
    62: _reset("the GPU's internal micro-controller halted"),
    63: _watch("a row of memory was remapped (or a page retired), which takes effect at the next reset"),
    64: _reset("a row of memory could not be remapped (or a page not retired)"),
    66: _watch("an illegal access by the driver"),
    67: _watch("an illegal access by the driver"),
    68: _application("an exception of the video decoder"),
    69: _application("a class error of the graphics engine"),
    74: _nvlink("an NVLink error, of this GPU or of what it is linked to"),
    78: Xid("a vGPU could not start", True, "update the vGPU software; 'nvidia-smi -q' tells the driver of the guest"),
    79: Xid(
        "the GPU has fallen off the bus", True,
        f"{REBOOT}; if it comes back, reseat or replace the GPU and check its power",
    ),
    92: _watch("a high rate of single-bit ECC errors"),
    93: _watch("the limit of writes to the GPU's InfoROM was reached"),
    94: Xid(
        "a contained memory error: one application was ended, the others go on", False,
        "reset the GPU when it suits: 'nvidia-smi --gpu-reset -i {index}'; the application has to be restarted",
    ),
    95: _reset("an uncontained memory error, which can have hit every application on the GPU"),
    109: _reset("a time-out at a context switch"),
    110: Xid("a security fault", True, "undo recent changes of the hardware, then 'ipmitool power cycle' the host"),
    119: _reset("the GPU's system processor (GSP) did not answer the driver"),
    120: _reset("an error of the GPU's system processor (GSP)"),
    121: _watch("corrected errors of the link between CPU and GPU (C2C)"),
    136: _reset("the training of a link failed"),
    137: _application("an access over NVLink without the right to it"),
    140: _reset("uncorrected ECC errors that the driver could not handle"),
    141: _watch("an error of CUDA's fast path"),
    143: _reset("the GPU could not be initialised"),
    144: _nvlink("an NVLink error (SAW)"),
    145: _nvlink("an NVLink error (RLW)"),
    146: _nvlink("an NVLink error (TLW)"),
    147: _nvlink("an NVLink error (TREX)"),
    148: _nvlink("an NVLink error (NVLPW)"),
    149: _nvlink("an NVLink error (NETIR)"),
    150: _nvlink("an NVLink error (MSE)"),
    151: Xid("a key could not be rotated (confidential computing)", True, "reboot the machine: 'systemctl reboot'"),
    154: Xid(
        "the driver's advice for another Xid: what recovers the GPU", False,
        "do what its text says ('nvidia-smi -q' names it as GPU Recovery Action)",
    ),
    155: _reset("an NVLink went down by software"),
    156: _reset("a resource of the GPU was retired, which takes effect at the next reset"),
    157: _watch("a resource of the GPU could not be retired"),
    158: _reset("a fatal time-out of the GPU"),
    160: _watch("a channel of the GPU was retired"),
    161: _watch("a channel of the GPU could not be retired"),
    162: _watch("the power smoothing of the GPU works again"),
    163: _watch("the power smoothing of the GPU is off"),
    167: _reset("a fatal time-out of the PCIe link"),
    168: _watch("the driver uses less of the memory, for errors in its own region"),
    169: _reset("an internal micro-controller halted"),
    171: _reset("a memory error (DRAM) that could not be corrected"),
    172: _reset("a memory error (SRAM) that could not be corrected"),
}  # fmt: skip
# The copy, decode and JPEG engines that came with later GPUs: their numbers lie in rows.
for _numbers, _what in (
    ((70, 71, 72, 75, 76, 77, 85, *range(126, 136)), "an exception of a copy engine"),
    ((80,), "corrupted data was sent to the GPU"),
    ((82, *range(99, 106)), "an exception of a JPEG decoder"),
    ((60, 83, 84, 88, 89, 96, 97, 98), "an exception of a video decoder"),
    ((86, 139), "an exception of the optical flow engine"),
):
    for _number in _numbers:
        XIDS[_number] = _application(_what)
# Test messages of the board's management.
IGNORED = frozenset({106, 107})
UNLISTED = Xid(
    "not explained in NVIDIA's catalogue for data-centre GPUs", False, "read 'dmesg' around it and the catalogue"
)

# The driver's own summary of what recovers the GPU: "GPU recovery action changed from 0x0 (None) to 0x1 (GPU Reset
# Required)". It comes with other Xids, and its text says whether it asks for anything.
ADVICE = 154
# They follow from another Xid, or from a process that somebody ended.
COMPANIONS = frozenset({45, ADVICE})
_ADVICE = re.compile(r"\bto 0x[0-9a-f]+ \(([^)]{1,60})\)", re.IGNORECASE)


def recovery_advice(message: str) -> str:
    """What the driver asks for now, ``GPU Reset Required`` or ``None``; an empty text where the message is another."""
    match = _ADVICE.search(message)
    return match[1] if match else ""


def explain(number: int) -> Xid:
    return XIDS.get(number, UNLISTED)


def _since_recovery(xids: t.Sequence[Map]) -> list[Map]:
    """The Xids after the last one that says the GPU needs no recovery any more (Xid 154, from driver R565 on)."""
    start: dict[str, int] = {}
    for position, xid in enumerate(xids):
        if whole(xid.get("xid")) == ADVICE and recovery_advice(text(xid.get("message"))) == "None":
            start[bus(xid.get("pci_bus_id"))] = position
    return [xid for position, xid in enumerate(xids) if position > start.get(bus(xid.get("pci_bus_id")), -1)]


def _counts(xid: Map, fatal: bool, now: float | None) -> bool:
    """Whether an Xid is one of these: fatal ones until they are recovered from, others for a week."""
    code, when = whole(xid.get("xid")), number(xid.get("time"))
    if code is None or code in IGNORED:
        return False
    asked = code == ADVICE and bool(recovery_advice(text(xid.get("message"))))
    if fatal:
        return explain(code).fatal or asked
    old = when is not None and now is not None and now - when > RECENT_SECONDS
    return not explain(code).fatal and not asked and code not in COMPANIONS and not old


def that_count(xids: t.Sequence[Map], fatal: bool, now: float | None) -> list[Map]:
    """The Xids of a host that still matter, either the fatal ones or the others."""
    return [xid for xid in _since_recovery(xids) if _counts(xid, fatal, now)]
