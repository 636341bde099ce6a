# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What NVIDIA's and Docker's tools print, as typed facts. Pure: text in, dictionaries out, no I/O.

Units are bytes, watts and degrees Celsius. A value that a tool does not know (``N/A``, ``[Not Supported]``, ``ERR!``,
a missing element) is ``None``, never a guess and never an exception. Words are lower case (``enabled``,
``exclusive_process``), so that NVML and nvidia-smi give the same facts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple, TypedDict
from xml.etree import ElementTree
from xml.sax.saxutils import escape, unescape

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_health import (
    FabricManager,
    Xid,
    throttle_of_elements,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_images import Image
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_topology import Link
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

# --------------------------------------------------------------------------------------------------------------------
# Shapes
# --------------------------------------------------------------------------------------------------------------------


class MigDevice(TypedDict):
    """One MIG partition. ``index`` counts within its GPU; ``name`` is the profile, ``1g.10gb``."""

    index: int
    uuid: str | None
    name: str | None
    gpu_instance_id: int | None
    compute_instance_id: int | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None


class Mig(TypedDict):
    """``current`` and ``pending`` are ``enabled``, ``disabled`` or None where the GPU has no MIG."""

    current: str | None
    pending: str | None
    devices: list[MigDevice]


class RemappedRows(TypedDict):
    pending: bool | None
    failure: bool | None


class Ecc(TypedDict):
    """``uncorrected_volatile`` counts uncorrected errors since the driver was loaded."""

    mode: str | None
    uncorrected_volatile: int | None
    remapped_rows: RemappedRows
    retired_pages_pending: bool | None


class CurrentMax(TypedDict):
    current: int | None
    max: int | None


class Pcie(TypedDict):
    gen: CurrentMax
    width: CurrentMax


class Power(TypedDict):
    """``limit_w`` is the enforced limit, ``default_limit_w`` what the board has without a setting."""

    draw_w: float | None
    limit_w: float | None
    default_limit_w: float | None


class Utilization(TypedDict):
    gpu_percent: int | None
    memory_percent: int | None


class Fabric(TypedDict):
    """NVSwitch fabric registration: ``state`` is ``completed`` and ``status`` ``success`` on a healthy HGX host."""

    state: str | None
    status: str | None


class Process(TypedDict):
    """``name`` is the executable or process title without arguments; ``type`` is C, G, C+G or M+C."""

    pid: int
    name: str | None
    memory_used_bytes: int | None
    type: str | None
    gpu_instance_id: int | None


class Gpu(TypedDict):
    index: int
    uuid: str | None
    name: str | None
    serial: str | None
    pci_bus_id: str | None
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    memory_free_bytes: int | None
    compute_capability: str | None
    compute_mode: str | None
    persistence_mode: str | None
    mig: Mig
    ecc: Ecc
    pcie: Pcie
    temperature_c: int | None
    temperature_limit_c: int | None
    numa_node: int | None
    throttle: list[str] | None
    power: Power
    utilization: Utilization
    fabric: Fabric
    processes: list[Process]


class DriverReport(TypedDict):
    """What one source (NVML or nvidia-smi) said of the driver and its GPUs."""

    driver_version: str | None
    cuda_version: str | None
    library_version: str | None
    attached: int | None
    gpus: list[Gpu]


class KernelModule(TypedDict):
    """``type`` is ``open`` or ``proprietary``."""

    version: str | None
    type: str | None


class Toolkit(TypedDict):
    """The NVIDIA Container Toolkit."""

    installed: bool
    version: str | None
    nvidia_ctk: str | None
    runtime: str | None
    runtime_hook: str | None


class Docker(TypedDict):
    """The Docker CLI and its server. ``running`` is None where it cannot be told (no permission, no answer).

    ``default_nofile_soft`` is what a container without ulimits of its own gets; ``daemon_error`` says why daemon.json
    cannot be used.
    """

    installed: bool
    path: str | None
    podman: bool
    snap: bool
    client_version: str | None
    running: bool | None
    error: str | None
    server_version: str | None
    api_version: str | None
    min_api_version: str | None
    cgroup_driver: str | None
    cgroup_version: str | None
    storage_driver: str | None
    root_dir: str | None
    default_runtime: str | None
    runtimes: dict[str, str | None]
    rootless: bool | None
    live_restore: bool | None
    security_options: list[str]
    http_proxy: str | None
    default_nofile_soft: int | None
    containerd_nofile_soft: int | None
    dev_char_links: bool | None
    daemon_error: str | None


class Compose(TypedDict):
    """``plugin`` is true for ``docker compose``, false for a stand-alone ``docker-compose``."""

    installed: bool
    version: str | None
    path: str | None
    plugin: bool | None


class CdiSpec(TypedDict):
    """One CDI file. ``mtime`` is seconds since the epoch; ``driver_version`` is the driver it was generated for."""

    path: str
    mtime: int | None
    kind: str | None
    devices: list[str]
    driver_version: str | None
    error: str | None


class Cdi(TypedDict):
    """``enabled_in_docker`` is None where the Docker server did not answer."""

    enabled_in_docker: bool | None
    spec_dirs: list[str]
    specs: list[CdiSpec]
    docker_devices: list[str]
    newest_mtime: int | None


class Container(TypedDict):
    toolkit: Toolkit
    docker: Docker
    compose: Compose
    cdi: Cdi
    images: dict[str, Image] | None


class Facts(TypedDict):
    """Everything M(gpufleet.vllm.nvidia_info) returns."""

    gpus: list[Gpu]
    driver_version: str | None
    cuda_version: str | None
    kernel_module_version: str | None
    kernel_module_type: str | None
    library_version: str | None
    library_version_mismatch: bool
    pci_devices: list[str]
    source: str
    reason: str | None
    reason_code: str | None
    remedy: str | None
    problems: list[str]
    topology: list[Link] | None
    xids: list[Xid] | None
    fabric_manager: FabricManager | None
    persistenced: bool | None
    driver_installed_at: int | None
    container: Container | None


def empty_gpu(index: int) -> Gpu:
    """A GPU of which only its index is known."""
    return {
        "index": index,
        "uuid": None,
        "name": None,
        "serial": None,
        "pci_bus_id": None,
        "memory_total_bytes": None,
        "memory_used_bytes": None,
        "memory_free_bytes": None,
        "compute_capability": None,
        "compute_mode": None,
        "persistence_mode": None,
        "mig": {"current": None, "pending": None, "devices": []},
        "ecc": {
            "mode": None,
            "uncorrected_volatile": None,
            "remapped_rows": {"pending": None, "failure": None},
            "retired_pages_pending": None,
        },
        "pcie": {
            "gen": {"current": None, "max": None},
            "width": {"current": None, "max": None},
        },
        "temperature_c": None,
        "temperature_limit_c": None,
        "numa_node": None,
        "throttle": None,
        "power": {"draw_w": None, "limit_w": None, "default_limit_w": None},
        "utilization": {"gpu_percent": None, "memory_percent": None},
        "fabric": {"state": None, "status": None},
        "processes": [],
    }


def empty_docker() -> Docker:
    """Docker is not installed."""
    return {
        "installed": False,
        "path": None,
        "podman": False,
        "snap": False,
        "client_version": None,
        "running": False,
        "error": None,
        "server_version": None,
        "api_version": None,
        "min_api_version": None,
        "cgroup_driver": None,
        "cgroup_version": None,
        "storage_driver": None,
        "root_dir": None,
        "default_runtime": None,
        "runtimes": {},
        "rootless": None,
        "live_restore": None,
        "security_options": [],
        "http_proxy": None,
        "default_nofile_soft": None,
        "containerd_nofile_soft": None,
        "dev_char_links": None,
        "daemon_error": None,
    }


# --------------------------------------------------------------------------------------------------------------------
# Values
# --------------------------------------------------------------------------------------------------------------------

# What the tools write where they have no value, without brackets and in lower case.
_MISSING = frozenset(
    {
        "",
        "n/a",
        "err!",
        "not available",
        "not supported",
        "not found",
        "unknown",
        "unknown error",
        "insufficient permissions",
        "gpu is lost",
        "gpu requires reset",
        "gpu requires restart",
        "requested functionality has been deprecated",
    }
)
_NUMBER = re.compile(r"^[+-]?\d+(?:\.\d+)?")
_SIZE = re.compile(r"^(\d+(?:\.\d+)?)\s*(B|KiB|MiB|GiB|TiB|KB|MB|GB)?$", re.IGNORECASE)
# Old drivers write MB and mean MiB.
_SIZE_UNITS = {
    "b": 1,
    "kib": 2**10,
    "kb": 2**10,
    "mib": 2**20,
    "mb": 2**20,
    "gib": 2**30,
    "gb": 2**30,
    "tib": 2**40,
}


def known(value: str | None) -> str | None:
    """The text a tool wrote, or None where it wrote that it has no value."""
    text = (value or "").strip()
    return None if text.strip("[]").strip().lower() in _MISSING else text


def word(value: str | None) -> str | None:
    """A setting as one lower-case word: ``Exclusive Process`` is ``exclusive_process``."""
    text = known(value)
    return None if text is None else re.sub(r"[\s-]+", "_", text).lower()


def decimal(value: str | None) -> float | None:
    """The number a text starts with, without its unit: ``67.74 W`` is 67.74."""
    match = _NUMBER.match(known(value) or "")
    return float(match.group()) if match else None


def integer(value: str | None) -> int | None:
    """As :func:`decimal`, whole: ``16x`` is 16, ``29 C`` is 29."""
    number = decimal(value)
    return None if number is None else int(number)


def size_bytes(value: str | None) -> int | None:
    """A size as nvidia-smi writes it, ``81559 MiB``, in bytes. A bare number is bytes."""
    match = _SIZE.match(known(value) or "")
    if not match:
        return None
    return int(float(match.group(1)) * _SIZE_UNITS[(match.group(2) or "B").lower()])


def yes_no(value: str | None) -> bool | None:
    """``Yes`` or ``No``; anything else is None."""
    return {"yes": True, "no": False}.get((known(value) or "").lower())


def version_text(value: object) -> str | None:
    """A version without a leading ``v``; None where there is none."""
    text = known(value) if isinstance(value, str) else None
    return text[1:] if text and re.match(r"v\d", text) else text


def cuda_version_text(number: int | None) -> str | None:
    """NVML's integer, 12040 or 13000, as ``12.4`` or ``13.0``."""
    return f"{number // 1000}.{number % 1000 // 10}" if number else None


def process_name(value: str | None) -> str | None:
    """The executable of a process, without its arguments.

    NVML gives some processes with their whole command line, and a command line can hold an API key.
    """
    text = known(value)
    return text.split()[0] if text else None


def first_line(text: str, limit: int = 300) -> str:
    """The first line of a tool's message that says something, cut to ``limit`` characters."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), "")
    return line if len(line) <= limit else line[: limit - 3] + "..."


# --------------------------------------------------------------------------------------------------------------------
# nvidia-smi -q -x
# --------------------------------------------------------------------------------------------------------------------

# XML 1.0 allows no other control character, and a process can put any byte in its name.
_ILLEGAL_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")
_PROCESS_NAME = re.compile(r"(<process_name>)(.*?)(</process_name>)", re.DOTALL)
_PROLOG = re.compile(r"<\?xml[^>]*>|<!DOCTYPE[^>]*>")
_LOG_START, _LOG_END = "<nvidia_smi_log>", "</nvidia_smi_log>"


def has_smi_xml(text: str) -> bool:
    """Whether the output holds the start of a report at all."""
    return _LOG_START in text


def outside_smi_xml(text: str) -> str:
    """What nvidia-smi printed before and after its report: all of it where there is none."""
    start, end = text.find(_LOG_START), text.rfind(_LOG_END)
    if start < 0:
        return text
    before = _PROLOG.sub("", text[:start])
    return before + "\n" + (text[end + len(_LOG_END) :] if end > start else "")


def _smi_root(text: str) -> ElementTree.Element:
    # Only the document element is parsed: the DOCTYPE is what could name entities or files, and nvidia-smi prints
    # warnings (a corrupted infoROM) before or after the document.
    start, end = text.find(_LOG_START), text.rfind(_LOG_END)
    if start < 0 or end < start:
        raise FleetError(
            "nvidia.smi_output",
            seen=f"nvidia-smi -q -x printed no complete <nvidia_smi_log> document: {first_line(text)!r}",
            expected="one XML document that ends with </nvidia_smi_log>",
            remedy="run 'nvidia-smi -q -x' on the host as root and look at its output",
        )
    body = _ILLEGAL_XML.sub("", text[start : end + len(_LOG_END)])
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError:
        pass
    # Some drivers do not escape process names.
    body = _PROCESS_NAME.sub(lambda match: match[1] + escape(unescape(match[2])) + match[3], body)
    try:
        return ElementTree.fromstring(body)
    except ElementTree.ParseError as error:
        raise FleetError(
            "nvidia.smi_output",
            seen=f"the output of nvidia-smi -q -x is not well-formed XML: {error}",
            expected="an <nvidia_smi_log> document",
            remedy="run 'nvidia-smi -q -x' on the host as root and look at its output",
        ) from error


def _text(element: ElementTree.Element | None, *paths: str) -> str | None:
    """The first known value among ``paths``: drivers rename elements."""
    if element is not None:
        for path in paths:
            value = known(element.findtext(path))
            if value is not None:
                return value
    return None


def _sum_known(values: Iterable[int | None]) -> int | None:
    numbers = [value for value in values if value is not None]
    return sum(numbers) if numbers else None


def _uncorrected_volatile(gpu: ElementTree.Element) -> int | None:
    volatile = gpu.find("ecc_errors/volatile")
    if volatile is None:
        return None
    # Volta and older count by location and give a total; Turing and newer count SRAM and DRAM, and from driver 535 the
    # SRAM count is split in two.
    total = integer(_text(volatile, "double_bit/total"))
    if total is not None:
        return total
    names = (
        "sram_uncorrectable",
        "sram_uncorrectable_parity",
        "sram_uncorrectable_secded",
        "dram_uncorrectable",
    )
    return _sum_known(integer(_text(volatile, name)) for name in names)


def _smi_ecc(gpu: ElementTree.Element) -> Ecc:
    return {
        "mode": word(_text(gpu, "ecc_mode/current_ecc")),
        "uncorrected_volatile": _uncorrected_volatile(gpu),
        "remapped_rows": {
            "pending": yes_no(_text(gpu, "remapped_rows/remapped_row_pending")),
            "failure": yes_no(_text(gpu, "remapped_rows/remapped_row_failure")),
        },
        "retired_pages_pending": yes_no(
            _text(
                gpu,
                "retired_pages/pending_retirement",
                "retired_pages/pending_blacklist",
            )
        ),
    }


def _smi_mig(gpu: ElementTree.Element) -> Mig:
    devices: list[MigDevice] = []
    for position, device in enumerate(gpu.findall("mig_devices/mig_device")):
        index = integer(_text(device, "index"))
        devices.append(
            {
                "index": position if index is None else index,
                "uuid": _text(device, "uuid"),
                "name": None,
                "gpu_instance_id": integer(_text(device, "gpu_instance_id")),
                "compute_instance_id": integer(_text(device, "compute_instance_id")),
                "memory_total_bytes": size_bytes(_text(device, "fb_memory_usage/total")),
                "memory_used_bytes": size_bytes(_text(device, "fb_memory_usage/used")),
            }
        )
    return {
        "current": word(_text(gpu, "mig_mode/current_mig")),
        "pending": word(_text(gpu, "mig_mode/pending_mig")),
        "devices": devices,
    }


def _smi_pcie(gpu: ElementTree.Element) -> Pcie:
    link = gpu.find("pci/pci_gpu_link_info")
    return {
        "gen": {
            "current": integer(_text(link, "pcie_gen/current_link_gen")),
            "max": integer(_text(link, "pcie_gen/max_link_gen")),
        },
        "width": {
            "current": integer(_text(link, "link_widths/current_link_width")),
            "max": integer(_text(link, "link_widths/max_link_width")),
        },
    }


def _smi_power(gpu: ElementTree.Element) -> Power:
    # gpu_power_readings since driver 535, power_readings before; the draw was split into average and instant later.
    readings = gpu.find("gpu_power_readings")
    if readings is None:
        readings = gpu.find("power_readings")
    return {
        "draw_w": decimal(_text(readings, "power_draw", "average_power_draw", "instant_power_draw")),
        "limit_w": decimal(_text(readings, "current_power_limit", "enforced_power_limit", "power_limit")),
        "default_limit_w": decimal(_text(readings, "default_power_limit")),
    }


def _smi_temperature_limit(gpu: ElementTree.Element) -> int | None:
    """Where the GPU slows down. Newer ones tell how far away they are from a point, and how far from it they do so."""
    limit = integer(_text(gpu, "temperature/gpu_temp_slow_threshold"))
    if limit is not None:
        return limit
    return temperature_limit(
        integer(_text(gpu, "temperature/gpu_temp")),
        integer(_text(gpu, "temperature/gpu_temp_tlimit")),
        integer(_text(gpu, "temperature/gpu_temp_slow_tlimit_threshold")),
    )


def temperature_limit(temperature: int | None, margin: int | None, threshold: int | None) -> int | None:
    """31 C, 56 C away from the point, slowing down at -2 C from it: 89 C."""
    if temperature is None or margin is None or threshold is None:
        return None
    return temperature + margin - threshold


def _smi_throttle(gpu: ElementTree.Element) -> list[str] | None:
    # clocks_event_reasons since driver 535.
    section = gpu.find("clocks_event_reasons")
    if section is None:
        section = gpu.find("clocks_throttle_reasons")
    return None if section is None else throttle_of_elements((item.tag, item.text) for item in section)


def _smi_processes(gpu: ElementTree.Element) -> list[Process]:
    processes: list[Process] = []
    for info in gpu.findall("processes/process_info"):
        pid = integer(_text(info, "pid"))
        if pid is None:
            continue
        processes.append(
            {
                "pid": pid,
                "name": process_name(_text(info, "process_name")),
                "memory_used_bytes": size_bytes(_text(info, "used_memory")),
                "type": _text(info, "type"),
                "gpu_instance_id": integer(_text(info, "gpu_instance_id")),
            }
        )
    return processes


def _smi_gpu(position: int, gpu: ElementTree.Element) -> Gpu:
    return {
        "index": position,
        "uuid": _text(gpu, "uuid"),
        "name": _text(gpu, "product_name"),
        "serial": _text(gpu, "serial"),
        "pci_bus_id": known(_text(gpu, "pci/pci_bus_id") or gpu.get("id")),
        "memory_total_bytes": size_bytes(_text(gpu, "fb_memory_usage/total")),
        "memory_used_bytes": size_bytes(_text(gpu, "fb_memory_usage/used")),
        "memory_free_bytes": size_bytes(_text(gpu, "fb_memory_usage/free")),
        "compute_capability": None,
        "compute_mode": word(_text(gpu, "compute_mode")),
        "persistence_mode": word(_text(gpu, "persistence_mode")),
        "mig": _smi_mig(gpu),
        "ecc": _smi_ecc(gpu),
        "pcie": _smi_pcie(gpu),
        "temperature_c": integer(_text(gpu, "temperature/gpu_temp")),
        "temperature_limit_c": _smi_temperature_limit(gpu),
        "numa_node": None,
        "throttle": _smi_throttle(gpu),
        "power": _smi_power(gpu),
        "utilization": {
            "gpu_percent": integer(_text(gpu, "utilization/gpu_util")),
            "memory_percent": integer(_text(gpu, "utilization/memory_util")),
        },
        "fabric": {
            "state": word(_text(gpu, "fabric/state")),
            "status": word(_text(gpu, "fabric/status")),
        },
        "processes": _smi_processes(gpu),
    }


def parse_smi_xml(text: str) -> DriverReport:
    """The output of ``nvidia-smi -q -x``, any driver from 340 on.

    The XML holds no compute capability and names no MIG device; see :func:`apply_smi_identity` and
    :func:`apply_smi_list`. Raises FleetError ``nvidia.smi_output`` where the output is no such document.
    """
    root = _smi_root(text)
    return {
        "driver_version": _text(root, "driver_version"),
        "cuda_version": _text(root, "cuda_version"),
        "library_version": None,
        "attached": integer(_text(root, "attached_gpus")),
        "gpus": [_smi_gpu(position, gpu) for position, gpu in enumerate(root.findall("gpu"))],
    }


# --------------------------------------------------------------------------------------------------------------------
# The two small nvidia-smi reports that complete the XML
# --------------------------------------------------------------------------------------------------------------------

SMI_IDENTITY_FIELDS = "index,uuid,compute_cap"
_LIST_GPU = re.compile(r"^GPU\s+(\d+):.*\(UUID:\s*(GPU-[^)\s]+)\)")
_LIST_MIG = re.compile(r"^\s+MIG\s+(\S+)\s+Device\s+(\d+):\s*\(UUID:\s*(MIG-[^)\s]+)\)")


def apply_smi_identity(gpus: list[Gpu], text: str) -> None:
    """Add index and compute capability from ``nvidia-smi --query-gpu=index,uuid,compute_cap --format=csv,noheader``.

    The driver's own index matters where a GPU is missing from the XML: position and index then differ.
    """
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == 3 and cells[0].isdigit():
            rows[cells[1]] = (int(cells[0]), cells[2])
    for gpu in gpus:
        if gpu["uuid"] in rows:
            index, capability = rows[gpu["uuid"] or ""]
            gpu["index"] = index
            gpu["compute_capability"] = capability if re.match(r"^\d+\.\d+$", capability) else None


def apply_smi_list(gpus: list[Gpu], text: str) -> None:
    """Add UUID and profile name to the MIG devices from ``nvidia-smi -L``."""
    names: dict[tuple[str, int], tuple[str, str]] = {}
    parent = ""
    for line in text.splitlines():
        match = _LIST_GPU.match(line)
        if match:
            parent = match.group(2)
            continue
        match = _LIST_MIG.match(line)
        if match:
            names[parent, int(match.group(2))] = (match.group(1), match.group(3))
    for gpu in gpus:
        for device in gpu["mig"]["devices"]:
            found = names.get((gpu["uuid"] or "", device["index"]))
            if found:
                device["name"], device["uuid"] = found


# --------------------------------------------------------------------------------------------------------------------
# /proc/driver/nvidia/version
# --------------------------------------------------------------------------------------------------------------------

_NVRM = re.compile(r"^NVRM version:.*?Kernel Module.*?\s(\d+\.\d+(?:\.\d+)*)\s", re.MULTILINE)


def parse_kernel_module(text: str) -> KernelModule:
    """The version and flavour of the loaded kernel module."""
    match = _NVRM.search(text + "\n")
    if not match:
        return {"version": None, "type": None}
    return {
        "version": match.group(1),
        "type": "open" if "Open Kernel Module" in match.group(0) else "proprietary",
    }


# --------------------------------------------------------------------------------------------------------------------
# Failures
# --------------------------------------------------------------------------------------------------------------------


class Diagnosis(NamedTuple):
    """Why there are no GPU facts, or fewer than there should be. ``code`` is stable; the rest is for a person."""

    code: str
    reason: str
    remedy: str


class _Known(NamedTuple):
    pattern: re.Pattern[str]
    code: str
    reason: str
    remedy: str


def _known_failure(pattern: str, code: str, reason: str, remedy: str) -> _Known:
    return _Known(re.compile(pattern, re.IGNORECASE), code, reason, remedy)


# The first match wins: the specific texts come before the general ones.
_FAILURES = (
    _known_failure(
        r"Driver/library version mismatch|NVML/RM version mismatch",
        "nvidia.version_mismatch",
        "The loaded NVIDIA kernel module and the installed driver library have different versions",
        "stop what uses the GPUs and reload the nvidia kernel modules, or reboot; then hold the driver packages so "
        "that an unattended upgrade cannot replace them under a running module",
    ),
    _known_failure(
        r"couldn't communicate with the NVIDIA driver|Driver Not Loaded",
        "nvidia.driver_not_loaded",
        "The NVIDIA kernel module is not loaded",
        "run 'modprobe nvidia' and read 'dmesg'; after a kernel upgrade rebuild the module (dkms status), and with "
        "Secure Boot enrol its signing key",
    ),
    _known_failure(
        r"couldn't find libnvidia-ml|NVML Shared Library Not Found|libnvidia-ml\.so[^\n]*cannot open shared object",
        "nvidia.library_missing",
        "The NVIDIA driver library libnvidia-ml.so.1 was not found",
        "install the driver's user-space package (libnvidia-compute, or the compute-only package of the branch) and "
        "run 'ldconfig'",
    ),
    _known_failure(
        r"Failed to initialize NVML: Insufficient Permissions",
        "nvidia.no_permission",
        "This user may not open the NVIDIA devices",
        "run with become: true, or correct the mode of /dev/nvidia*",
    ),
    _known_failure(
        r"Failed to initialize NVML: Unknown Error",
        "nvidia.nvml_unknown_error",
        "NVML could not open the NVIDIA devices (Unknown Error)",
        "check that /dev/nvidiactl and /dev/nvidia* exist and read 'dmesg' for NVRM; in a container this happens after "
        "'systemctl daemon-reload' takes its devices away: recreate the container and run 'nvidia-ctk system "
        "create-dev-char-symlinks --create-all'",
    ),
    _known_failure(
        r"GPU is lost|has fallen off the bus",
        "nvidia.gpu_lost",
        "A GPU is lost: it no longer answers on the PCI bus",
        "drain and reboot the host; if it comes back lost, reseat or replace the GPU (read 'dmesg' for Xid 79)",
    ),
    _known_failure(
        r"Unable to determine the device handle",
        "nvidia.gpu_unreachable",
        "The driver cannot open a GPU",
        "read 'dmesg' for NVRM and Xid lines, drain and reboot the host; if it persists, reseat or replace the GPU",
    ),
    _known_failure(
        r"requires (?:a )?(?:reset|restart)",
        "nvidia.gpu_reset_required",
        "A GPU must be reset before it can be used",
        "stop what uses it, then run 'nvidia-smi --gpu-reset -i INDEX' or reboot the host",
    ),
    _known_failure(
        r"No devices were found",
        "nvidia.no_devices",
        "The NVIDIA driver is loaded and found no GPU that it can use",
        "compare with 'lspci -d 10de:' and read 'dmesg' for NVRM: a GPU too old or too new for this driver branch, a "
        "GPU bound to vfio-pci, or the proprietary module on a GPU that needs the open one",
    ),
)
_BUS_ID = re.compile(r"(?<![0-9A-Fa-f])((?:[0-9A-Fa-f]{4}){1,2}:[0-9A-Fa-f]{2}:[0-9A-Fa-f]{2}\.[0-9A-Fa-f])")
_LIBRARY_VERSION = re.compile(r"NVML library version:\s*(\d+(?:\.\d+)+)")


def diagnose(text: str) -> Diagnosis | None:
    """What a message of nvidia-smi or NVML means; None where it is none of the known failures."""
    for failure in _FAILURES:
        match = failure.pattern.search(text)
        if not match:
            continue
        line = next((line for line in text.splitlines() if failure.pattern.search(line)), text)
        bus = _BUS_ID.search(line)
        where = f" (GPU {bus.group(1)})" if bus else ""
        return Diagnosis(
            failure.code,
            f"{failure.reason}{where}: {first_line(line)!r}.",
            failure.remedy,
        )
    return None


def smi_failed(rc: int, text: str) -> Diagnosis:
    """nvidia-smi failed with a text that none of the known failures explains."""
    said = first_line(text)
    return Diagnosis(
        "nvidia.smi_failed",
        f"nvidia-smi failed with exit status {rc}" + (f": {said!r}." if said else " and said nothing."),
        "run 'nvidia-smi' on the host as root and read 'dmesg' for NVRM and Xid lines",
    )


def hung(what: str, timeout: float) -> Diagnosis:
    """``what`` gave no answer in time: with NVIDIA tools nearly always a driver that hangs in the kernel."""
    return Diagnosis(
        "nvidia.hung",
        f"{what} gave no answer within {timeout:g} s and was killed.",
        "the driver hangs: read 'dmesg' for NVRM and Xid lines, drain and reboot the host; where many GPUs without "
        "persistence mode are only slow to start, enable nvidia-persistenced or raise the timeout",
    )


def no_driver(pci_devices: list[str]) -> Diagnosis:
    """Neither nvidia-smi nor a loaded kernel module."""
    if pci_devices:
        return Diagnosis(
            "nvidia.no_driver",
            f"nvidia-smi was not found and no NVIDIA kernel module is loaded, but the host has "
            f"{plural(len(pci_devices), 'NVIDIA GPU')} on the PCI bus ({', '.join(pci_devices)}).",
            "install an NVIDIA driver of the branch that the image's CUDA needs, then reboot",
        )
    return Diagnosis(
        "nvidia.no_gpu",
        "nvidia-smi was not found, no NVIDIA kernel module is loaded and the PCI bus shows no NVIDIA GPU.",
        "nothing to do on a host without GPUs; otherwise check that the GPU is seated and, in a virtual machine, "
        "passed through",
    )


def no_smi(kernel_version: str | None) -> Diagnosis:
    """The kernel module is loaded and the user-space tool is missing."""
    return Diagnosis(
        "nvidia.no_smi",
        f"The NVIDIA kernel module {kernel_version or '(version unknown)'} is loaded but nvidia-smi was not found.",
        "install the driver's nvidia-utils package in the same version, or give its place with the option nvidia_smi",
    )


def nvml_library_version(text: str) -> str | None:
    """The library version that a mismatch message gives, major and minor only: ``NVML library version: 535.161``."""
    match = _LIBRARY_VERSION.search(text)
    return match.group(1) if match else None


def same_version(left: str, right: str) -> bool:
    """Whether two driver versions agree as far as both are given: 535.161 agrees with 535.161.08."""
    return all(a == b for a, b in zip(left.split("."), right.split(".")))


# --------------------------------------------------------------------------------------------------------------------
# Container toolkit, Docker, Compose
# --------------------------------------------------------------------------------------------------------------------

_TOOL_VERSION = re.compile(r"(?:version:?|cli-version:)\s*v?(\d+[\w.+~-]*)", re.IGNORECASE)


def parse_tool_version(text: str) -> str | None:
    """The version in ``NVIDIA Container Toolkit CLI version 1.17.8``, ``cli-version: 1.13.5`` and the like."""
    match = _TOOL_VERSION.search(text)
    return match.group(1) if match else None


def parse_json_object(text: str) -> dict[str, Any]:
    """The JSON object a command printed; empty where it printed something else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _filled(value: object) -> str | None:
    return value if isinstance(value, str) and value else None


def _names(value: object) -> list[str]:
    return [item for item in value if isinstance(item, str)] if isinstance(value, list) else []


def apply_docker_version(docker: Docker, text: str) -> None:
    """Add what ``docker version --format '{{json .}}'`` says; a client without server is no error here."""
    document = parse_json_object(text)
    client, server = _mapping(document.get("Client")), _mapping(document.get("Server"))
    docker["client_version"] = version_text(client.get("Version"))
    # podman-docker answers to the same command; only it has this key.
    docker["podman"] = "OsArch" in client
    docker["server_version"] = version_text(server.get("Version"))
    docker["api_version"] = _filled(server.get("ApiVersion")) or _filled(server.get("APIVersion"))
    docker["min_api_version"] = _filled(server.get("MinAPIVersion"))


def apply_docker_info(docker: Docker, text: str) -> None:
    """Add what ``docker info --format '{{json .}}'`` says. Without a server its fields are empty, so stay None."""
    info = parse_json_object(text)
    server_version = version_text(info.get("ServerVersion"))
    if server_version is None:
        return
    docker["server_version"] = docker["server_version"] or server_version
    docker["cgroup_driver"] = _filled(info.get("CgroupDriver"))
    # Docker before 20.10 does not say, and knows only version 1.
    docker["cgroup_version"] = _filled(info.get("CgroupVersion")) or "1"
    docker["storage_driver"] = _filled(info.get("Driver"))
    docker["root_dir"] = _filled(info.get("DockerRootDir"))
    docker["default_runtime"] = _filled(info.get("DefaultRuntime"))
    docker["runtimes"] = {
        name: _filled(_mapping(runtime).get("path")) or _filled(_mapping(runtime).get("runtimeType"))
        for name, runtime in sorted(_mapping(info.get("Runtimes")).items())
    }
    docker["rootless"] = any("name=rootless" in option.split(",") for option in _names(info.get("SecurityOptions")))
    docker["live_restore"] = info.get("LiveRestoreEnabled") is True
    docker["security_options"] = _names(info.get("SecurityOptions"))
    docker["http_proxy"] = without_credentials(_filled(info.get("HttpsProxy")) or _filled(info.get("HttpProxy")))
    docker["snap"] = docker["snap"] or (docker["root_dir"] or "").startswith("/var/snap/")


def without_credentials(url: str | None) -> str | None:
    """The URL of a proxy without user and password."""
    return re.sub(r"^(?:(\w+://))?[^/@]*@", r"\1", url) if url else None


def docker_cdi(text: str) -> tuple[bool | None, list[str], list[str]]:
    """From ``docker info``: whether CDI is enabled, its directories, the devices it discovered (Docker >= 28.2)."""
    info = parse_json_object(text)
    if version_text(info.get("ServerVersion")) is None:
        return None, [], []
    directories = _names(info.get("CDISpecDirs"))
    discovered = info.get("DiscoveredDevices")
    devices = [
        device["ID"]
        for device in (discovered if isinstance(discovered, list) else [])
        if isinstance(device, dict) and device.get("Source") == "cdi" and isinstance(device.get("ID"), str)
    ]
    return bool(directories), directories, devices


def compose_plugin(text: str) -> tuple[str | None, str | None]:
    """Version and path of the Compose plugin from ``docker info``'s client part (given without a server too)."""
    client = _mapping(parse_json_object(text).get("ClientInfo"))
    plugins = client.get("Plugins")
    for plugin in plugins if isinstance(plugins, list) else []:
        if isinstance(plugin, dict) and plugin.get("Name") == "compose" and _filled(plugin.get("Version")):
            return version_text(plugin["Version"]), _filled(plugin.get("Path"))
    return None, None


def docker_failure(text: str) -> tuple[bool | None, str]:
    """Whether the server runs (None: cannot tell) and the sentence for its failure."""
    said = first_line(text)
    lower = text.lower()
    if "permission denied" in lower:
        return (
            None,
            f"This user may not talk to the Docker server: {said!r}. Run with become: true.",
        )
    if "cannot connect" in lower or "failed to connect" in lower or "is the docker daemon running" in lower:
        return (
            False,
            f"The Docker server does not answer: {said!r}. Start it: systemctl start docker.",
        )
    if "is too new" in lower or "is too old" in lower:
        return (
            True,
            f"The Docker client and server do not agree on an API version: {said!r}. Upgrade the older one.",
        )
    return None, f"docker failed: {said!r}."


# --------------------------------------------------------------------------------------------------------------------
# CDI specifications
# --------------------------------------------------------------------------------------------------------------------

_CDI_DRIVER = re.compile(r"lib(?:cuda|nvidia-ml)\.so\.(\d+\.\d+(?:\.\d+)*)")
_YAML_KIND = re.compile(r"^kind:\s*(\S+)\s*$", re.MULTILINE)


def _unquote(value: str) -> str:
    value = value.split(" #")[0].strip()
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        return value[1:-1]
    return value


def _yaml_device_names(text: str) -> list[str]:
    """The ``name`` of each item of the top-level ``devices`` list, by indentation.

    Hosts have no YAML parser. The generators (nvidia-ctk, Docker, the device plugin) all write plain block style; only
    a ``name`` at the depth of an item's own keys counts, as ``netDevices`` entries deeper in an item have names too.
    """
    names: list[str] = []
    inside, item_depth, key_depth = False, -1, -1
    for line in text.splitlines():
        body = line.lstrip(" ")
        if not body or body.startswith("#"):
            continue
        depth = len(line) - len(body)
        if depth == 0 and not body.startswith("-"):
            inside, item_depth = body.split("#")[0].strip() == "devices:", -1
            continue
        if not inside:
            continue
        if body.startswith("- ") and item_depth in (-1, depth):
            item_depth = depth
            rest = body[1:].lstrip(" ")
            key_depth, body = depth + len(body) - len(rest), rest
            depth = key_depth
        if depth == key_depth and body.startswith("name:"):
            names.append(_unquote(body[len("name:") :]))
    return names


def parse_cdi(text: str) -> tuple[str | None, list[str], str | None]:
    """Kind, qualified device names (``nvidia.com/gpu=0``) and driver version of a CDI specification, JSON or YAML."""
    kind: str | None
    if text.lstrip().startswith("{"):
        document = parse_json_object(text)
        kind = _filled(document.get("kind"))
        devices = document.get("devices")
        names = [_filled(_mapping(device).get("name")) for device in (devices if isinstance(devices, list) else [])]
        found = [name for name in names if name]
    else:
        match = _YAML_KIND.search(text)
        kind = _unquote(match.group(1)) if match else None
        found = _yaml_device_names(text)
    driver = _CDI_DRIVER.search(text)
    return (
        kind,
        [f"{kind}={name}" for name in found] if kind else found,
        driver.group(1) if driver else None,
    )
