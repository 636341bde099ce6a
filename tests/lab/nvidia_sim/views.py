# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The state as other programs read it: the NVML library, and whoever reads the kernel's log and files."""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict

from nvidia_sim.state import (
    COMPUTE_MODES,
    LEVELS,
    MISMATCH,
    NOT_LOADED,
    P2P,
    REASONS,
    Gpu,
    State,
    Xid,
)


def as_json(state: State) -> str:
    return json.dumps(asdict(state), indent=2) + "\n"


def cuda_number(cuda: str) -> int:
    major, _dot, minor = cuda.partition(".")
    return int(major) * 1000 + int(minor or 0) * 10


def flat(state: State) -> str:
    """``key=value`` lines for the NVML library, which leaves out what a GPU does not have."""
    lines = {
        "error": state.error,
        "hang": int(state.hang),
        "driver": state.driver,
        "nvml": f"{state.cuda.split('.')[0]}.{state.driver}",
        "cuda": cuda_number(state.cuda),
        "gpus": len(state.gpus),
    }
    for gpu in state.gpus:
        for key, value in _flat_gpu(gpu).items():
            if value is not None:
                lines[f"{gpu.index}.{key}"] = value
    for gpu in state.gpus:
        for other in state.gpus[gpu.index + 1 :]:
            link, p2p = state.between(gpu, other)
            lines[f"{gpu.index}.level.{other.index}"] = LEVELS.get(link, LEVELS["SYS"])
            lines[f"{gpu.index}.p2p.{other.index}"] = P2P[p2p]
    for process in (process for gpu in state.gpus for process in gpu.processes):
        lines[f"process.{process.pid}"] = process.name
    return "".join(f"{key}={str(value).splitlines()[0]}\n" for key, value in lines.items())


_MIB = 2**20
_PROCESS_KINDS = ("C", "G")
_ARCHITECTURES = {"Turing": 6, "Ampere": 7, "Ada Lovelace": 8, "Hopper": 9, "Blackwell": 10}


def _flat_gpu(gpu: Gpu) -> dict[str, t.Any]:
    if gpu.lost:
        return {"uuid": gpu.uuid, "pci": gpu.pci_bus_id, "lost": 1}
    ecc = gpu.ecc == "Enabled"
    major, minor = gpu.compute_capability.split(".")
    values: dict[str, t.Any] = {
        "uuid": gpu.uuid,
        "name": gpu.name,
        "serial": gpu.serial,
        "pci": gpu.pci_bus_id,
        "bus": int(gpu.pci_bus_id.split(":")[1], 16),
        "pci_device_id": int(gpu.pci_device_id, 16),
        "pci_subsystem_id": int(gpu.pci_subsystem_id, 16),
        "vbios": gpu.vbios,
        "architecture": _ARCHITECTURES.get(gpu.architecture),
        "memory_total": gpu.memory_total_mib * _MIB,
        "memory_reserved": gpu.memory_reserved_mib * _MIB,
        "memory_used": gpu.memory_used_mib * _MIB,
        "memory_free": gpu.memory_free_mib * _MIB,
        "bar1_total": gpu.bar1_mib * _MIB,
        "bar1_used": _MIB,
        "capability_major": major,
        "capability_minor": minor,
        "compute_mode": COMPUTE_MODES[gpu.compute_mode],
        "persistence": int(gpu.persistence_mode == "Enabled"),
        "display_mode": int(gpu.display_mode == "Enabled"),
        "performance_state": gpu.performance_state.lstrip("P"),
        "mig": None if gpu.mig is None else int(gpu.mig == "Enabled"),
        "ecc": None if gpu.ecc is None else int(ecc),
        "ecc_corrected": 0 if ecc else None,
        "ecc_uncorrected": gpu.ecc_uncorrected if ecc else None,
        "remapped": None if gpu.remapped_banks is None else int(gpu.remapped_pending or gpu.remapped_failure),
        "remapped_pending": int(gpu.remapped_pending),
        "remapped_failure": int(gpu.remapped_failure),
        "retired_pending": int(gpu.retired_pending) if gpu.retires_pages else None,
        "pcie_gen": gpu.pcie_gen,
        "pcie_width": gpu.pcie_width,
        "pcie_width_current": gpu.pcie_width_current,
        "temperature": gpu.temperature_c,
        "power_draw": round(gpu.power_draw_w * 1000),
        "power_limit": round(gpu.power_limit_w * 1000),
        "power_default": round(gpu.power_default_w * 1000),
        "slowdown": gpu.slowdown_c,
        "reasons": sum(1 << bit for bit, word in enumerate(REASONS) if word in gpu.reasons),
        "nvlinks": gpu.nvlinks,
        "fan": gpu.fan_percent,
        "utilization": gpu.utilization_percent,
        "utilization_memory": gpu.utilization_percent // 2,
        "fabric": 3 if gpu.fabric else 0,
    }
    for kind in _PROCESS_KINDS:
        for number, process in enumerate(item for item in gpu.processes if kind in item.type.split("+")):
            values[f"{kind}.{number}.pid"] = process.pid
            values[f"{kind}.{number}.memory"] = process.memory_mib * _MIB
    return values


# --------------------------------------------------------------------------------------------------------------------
# The kernel's side
# --------------------------------------------------------------------------------------------------------------------

_XID_MESSAGES = {
    13: "Graphics SM Warp Exception on (GPC 0, TPC 0, SM 0): Out Of Range Address",
    31: "Ch 00000008, intr 00000000. MMU Fault: ENGINE GRAPHICS GPCCLIENT_T1_0 faulted @ 0x7f1d_40000000",
    43: "Ch 00000008, engmask 00000101",
    48: "DBE (double bit error) ECC Error has occurred on GPU",
    63: "Row Remapper: New row marked for remapping, reset gpu to activate.",
    64: "Row Remapper: Failed to remap a row.",
    74: "NVLink: fatal error detected on link 0",
    79: "GPU has fallen off the bus.",
    94: "Contained: SM (0x1). RST: No, D-RST: No",
    95: "Uncontained: LTC FBHUB (0x2). RST: Yes, D-RST: No",
    119: "Timeout after 6s of waiting for RPC response from GPU0 GSP! Expected function 76",
}


class Logged(t.NamedTuple):
    """A line of the kernel's log; ``time`` is ISO 8601, or None for the time of the boot."""

    time: str | None
    text: str


def kernel_log(state: State) -> list[Logged]:
    """What the NVIDIA module would have written to the kernel's log."""
    if state.error == NOT_LOADED:
        return []
    flavour = "Open Kernel Module" if state.kernel_module == "open" else "Kernel Module"
    lines = [Logged(None, f"NVRM: loading NVIDIA UNIX {flavour} for x86_64  {state.kernel_version}  Release Build")]
    if state.error == MISMATCH:
        lines.append(
            Logged(
                None,
                f"NVRM: API mismatch: the client has the version {state.driver}, but\n"
                f"NVRM: this kernel module has the version {state.kernel_version}.  Please\n"
                "NVRM: make sure that this kernel module and all NVIDIA driver\n"
                "NVRM: components have the same version.",
            )
        )
    own = {xid.gpu for xid in state.xids if xid.code == 79}
    lost = [Xid(gpu.index, 79) for gpu in state.lost if gpu.index not in own]
    return lines + [_xid_line(state, xid) for xid in (*state.xids, *lost)]


def _xid_line(state: State, xid: Xid) -> Logged:
    bus = next((gpu.pci_bus_id[4:-2] for gpu in state.gpus if gpu.index == xid.gpu), "0000:00:00")
    message = xid.message or _XID_MESSAGES.get(xid.code, "Unknown error")
    return Logged(xid.time, f"NVRM: Xid (PCI:{bus}): {xid.code}, pid='<unknown>', name=<unknown>, {message}")


def proc_files(state: State) -> dict[str, str]:
    """The files below /proc/driver/nvidia, none where the module is not loaded."""
    if state.error == NOT_LOADED:
        return {}
    flavour = "Open Kernel Module for x86_64" if state.kernel_module == "open" else "x86_64 Kernel Module"
    version = (
        f"NVRM version: NVIDIA UNIX {flavour}  {state.kernel_version}  Release Build  (dvs-builder@lab)\n"
        "GCC version:  gcc version 12.2.0 (Debian 12.2.0-14)\n"
    )
    files = {"version": version}
    for gpu in state.gpus:
        files[f"gpus/{gpu.pci_bus_id[4:].lower()}/information"] = (
            f"Model: \t\t {gpu.name}\nIRQ:   \t\t {200 + gpu.index}\nGPU UUID: \t {gpu.uuid}\n"
            f"Video BIOS: \t {gpu.vbios}\nBus Type: \t PCIe\nDMA Size: \t 52 bits\n"
            f"Bus Location: \t {gpu.pci_bus_id[4:].lower()}\nDevice Minor: \t {gpu.index}\n"
        )
    return files


def pci_files(state: State) -> dict[str, str]:
    """The files below /sys/bus/pci/devices: a card is on the bus without a driver too."""
    files: dict[str, str] = {}
    for gpu in state.gpus:
        place = gpu.pci_bus_id[4:].lower()
        files[f"{place}/vendor"] = "0x10de\n"
        files[f"{place}/device"] = f"0x{gpu.pci_device_id[:4].lower()}\n"
        files[f"{place}/class"] = "0x030000\n" if gpu.brand == "GeForce" else "0x030200\n"
        files[f"{place}/numa_node"] = f"{state.node(gpu)}\n"
    return files
