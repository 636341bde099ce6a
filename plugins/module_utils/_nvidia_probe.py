# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Ask a host for its GPU and container facts: NVML, nvidia-smi, the container toolkit, Docker, CDI files.

:func:`gather` is the whole interface. It reads only, never raises for a broken host, and cannot be held up by a driver
that hangs: every command has a deadline, and NVML runs in a child process that is left behind if it does not end.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import json
import os
import platform
import select
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, cast

from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia as nv
from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _nvidia_containers,
    _nvidia_health,
    _nvidia_topology,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import (
    REAP_SECONDS,
    CommandResult,
    Runner,
    decode,
    reap,
    run_command,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._sources import Sources
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

DEFAULT_TIMEOUT = 30.0


# --------------------------------------------------------------------------------------------------------------------
# Calls that may hang
# --------------------------------------------------------------------------------------------------------------------


class Isolated(NamedTuple):
    """The end of :func:`isolated`: a value, or the reason why there is none."""

    value: Any = None
    timed_out: bool = False
    error: str | None = None


def isolated(function: Callable[[], Any], timeout: float) -> Isolated:
    """Call ``function`` in a forked child and return its JSON-able value.

    For library calls that can hang in the kernel or crash the interpreter: neither may take the module with it.
    """
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        _answer_and_exit(function, writer)
    os.close(writer)
    try:
        data, complete = _read_until(reader, time.monotonic() + timeout)
    finally:
        os.close(reader)
    if not complete:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)
    status = reap(pid, REAP_SECONDS)
    if not complete:
        return Isolated(timed_out=True)
    answer = nv.parse_json_object(decode(data))
    if not answer:
        return Isolated(error=f"the child process ended without an answer (wait status {status})")
    return Isolated(value=answer.get("value"), error=answer.get("error"))


def _answer_and_exit(function: Callable[[], Any], writer: int) -> None:
    # Nothing of the parent may run in the child: no exit handler, no flush of its buffers.
    try:
        # Other threads may run commands, whose pipes must not stay open here once those have ended.
        _close_all_but(writer)
        try:
            data = json.dumps({"value": function()}).encode()
        except Exception as error:  # noqa: BLE001 - whatever a foreign library raises
            data = json.dumps({"error": f"{type(error).__name__}: {error}"}).encode()
        while data:
            data = data[os.write(writer, data) :]
    finally:
        os._exit(0)


def _close_all_but(kept: int) -> None:
    for name in os.listdir("/proc/self/fd"):
        descriptor = int(name)
        if descriptor > 2 and descriptor != kept:
            with contextlib.suppress(OSError):
                os.close(descriptor)


def _read_until(descriptor: int, deadline: float) -> tuple[bytes, bool]:
    chunks: list[bytes] = []
    while True:
        ready, _unused, _unused = select.select([descriptor], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return b"".join(chunks), False
        chunk = os.read(descriptor, 65536)
        if not chunk:
            return b"".join(chunks), True
        chunks.append(chunk)


# --------------------------------------------------------------------------------------------------------------------
# The host
# --------------------------------------------------------------------------------------------------------------------

# Besides PATH: sudo and cron shorten it, and these tools live in unusual places (WSL, GPU Operator, snap).
_EXTRA_PATH = (
    "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/snap/bin:/opt/bin:/usr/local/nvidia/bin:"
    "/usr/local/nvidia/toolkit:/usr/lib/wsl/lib"
)


def find_executable(name: str) -> str | None:
    """The path of an executable on PATH or in a well-known place."""
    return shutil.which(name, path=os.environ.get("PATH", "") + os.pathsep + _EXTRA_PATH)


def load_nvml() -> Any:
    """The module of nvidia-ml-py, or None where this interpreter has none that works."""
    try:
        return importlib.import_module("pynvml")
    except Exception:  # noqa: BLE001 - several packages ship a module of this name, and they fail in their own ways
        return None


@dataclass(frozen=True)
class Host:
    """Where the facts are read: replaced in tests, and by whoever looks at a mounted root."""

    root: str = "/"
    find: Callable[[str], str | None] = find_executable
    load_nvml: Callable[[], Any] = load_nvml

    def path(self, path: str) -> str:
        return os.path.join(self.root, path.lstrip("/"))

    def read(self, path: str, limit: int = 1 << 20) -> str | None:
        """The text of a file; None where it cannot be read."""
        try:
            with open(self.path(path), "rb") as stream:
                return decode(stream.read(limit))
        except OSError:
            return None

    def names(self, path: str) -> list[str]:
        """The sorted names in a directory; empty where it cannot be read."""
        try:
            return sorted(os.listdir(self.path(path)))
        except OSError:
            return []


def nvidia_pci_gpus(host: Host) -> list[str]:
    """Bus addresses of NVIDIA display and 3D controllers, driver or not."""
    devices = "/sys/bus/pci/devices"
    return [
        address
        for address in host.names(devices)
        if (host.read(f"{devices}/{address}/vendor") or "").strip() == "0x10de"
        and (host.read(f"{devices}/{address}/class") or "").startswith("0x03")
    ]


# --------------------------------------------------------------------------------------------------------------------
# NVML
# --------------------------------------------------------------------------------------------------------------------

# NVML return codes that say something of the GPU and not only of the field that was asked for: timeout, interrupt
# request issue, corrupted infoROM, GPU is lost, reset required, unknown error.
_DEVICE_FAULTS = frozenset({10, 11, 14, 15, 16, 999})
_NO_INSTANCE = 0xFFFFFFFF
_COMPUTE_MODES = {
    0: "default",
    1: "exclusive_thread",
    2: "prohibited",
    3: "exclusive_process",
}
_FABRIC_STATES = {1: "not_started", 2: "in_progress", 3: "completed"}
_PROCESS_LISTS = (("Compute", "C"), ("Graphics", "G"), ("MPSCompute", "M+C"))
_UNCORRECTED, _VOLATILE = 1, 0
_SLOWDOWN = 1  # NVML_TEMPERATURE_THRESHOLD_SLOWDOWN
_SLOWDOWN_TLIMIT = 194  # NVML_FI_DEV_TEMPERATURE_SLOWDOWN_TLIMIT


def _string(value: Any) -> str | None:
    # Older versions of nvidia-ml-py return bytes.
    return nv.known(decode(value) if isinstance(value, bytes) else value) if value is not None else None


def _on_off(value: Any) -> str | None:
    return None if value is None else ("enabled" if value else "disabled")


class _Nvml:
    """Calls into one NVML binding. A call that fails gives None; what it says of the GPU's health is kept."""

    def __init__(self, binding: Any) -> None:
        self.binding = binding
        self.faults: list[str] = []

    def get(self, what: str, name: str, *arguments: Any) -> Any:
        try:
            return getattr(self.binding, name)(*arguments)
        except Exception as error:  # noqa: BLE001 - NVMLError_*, and AttributeError or ctypes errors of old versions
            if getattr(error, "value", None) in _DEVICE_FAULTS:
                fault = f"{what}: {error}"
                if fault not in self.faults:
                    self.faults.append(fault)
            return None

    def pair(self, what: str, name: str, handle: Any) -> tuple[Any, Any]:
        value = self.get(what, name, handle)
        return (value[0], value[1]) if value is not None and len(value) == 2 else (None, None)

    # -- one GPU

    def gpu(self, index: int) -> nv.Gpu | None:
        what = f"GPU {index}"
        handle = self.get(what, "nvmlDeviceGetHandleByIndex", index)
        if handle is None:
            return None
        gpu = nv.empty_gpu(index)
        gpu["uuid"] = _string(self.get(what, "nvmlDeviceGetUUID", handle))
        gpu["name"] = _string(self.get(what, "nvmlDeviceGetName", handle))
        gpu["serial"] = _string(self.get(what, "nvmlDeviceGetSerial", handle))
        gpu["pci_bus_id"] = _string(getattr(self.get(what, "nvmlDeviceGetPciInfo", handle), "busId", None))
        (
            gpu["memory_total_bytes"],
            gpu["memory_used_bytes"],
            gpu["memory_free_bytes"],
        ) = self._memory(what, handle)
        capability = self.pair(what, "nvmlDeviceGetCudaComputeCapability", handle)
        gpu["compute_capability"] = f"{capability[0]}.{capability[1]}" if capability[0] is not None else None
        gpu["compute_mode"] = _COMPUTE_MODES.get(self.get(what, "nvmlDeviceGetComputeMode", handle))
        gpu["persistence_mode"] = _on_off(self.get(what, "nvmlDeviceGetPersistenceMode", handle))
        gpu["mig"] = self._mig(what, handle)
        gpu["ecc"] = self._ecc(what, handle)
        gpu["pcie"] = self._pcie(what, handle)
        gpu["temperature_c"] = self.get(what, "nvmlDeviceGetTemperature", handle, 0)
        gpu["temperature_limit_c"] = self._temperature_limit(what, handle, gpu["temperature_c"])
        gpu["throttle"] = self._throttle(what, handle)
        gpu["power"] = self._power(what, handle)
        rates = self.get(what, "nvmlDeviceGetUtilizationRates", handle)
        gpu["utilization"] = {
            "gpu_percent": getattr(rates, "gpu", None),
            "memory_percent": getattr(rates, "memory", None),
        }
        gpu["fabric"] = self._fabric(what, handle)
        gpu["processes"] = self._processes(what, handle)
        return gpu

    def _memory(self, what: str, handle: Any) -> tuple[int | None, int | None, int | None]:
        # Version 2 keeps the driver's reserve out of "used", as nvidia-smi does; drivers before 510 have version 1.
        version = getattr(self.binding, "nvmlMemory_v2", None)
        memory = self.get(what, "nvmlDeviceGetMemoryInfo", handle, version) if version else None
        if memory is None:
            memory = self.get(what, "nvmlDeviceGetMemoryInfo", handle)
        return (
            getattr(memory, "total", None),
            getattr(memory, "used", None),
            getattr(memory, "free", None),
        )

    def _ecc(self, what: str, handle: Any) -> nv.Ecc:
        rows = self.get(what, "nvmlDeviceGetRemappedRows", handle)
        retired = self.get(what, "nvmlDeviceGetRetiredPagesPendingStatus", handle)
        return {
            "mode": _on_off(self.pair(what, "nvmlDeviceGetEccMode", handle)[0]),
            "uncorrected_volatile": self.get(what, "nvmlDeviceGetTotalEccErrors", handle, _UNCORRECTED, _VOLATILE),
            "remapped_rows": {
                "pending": None if rows is None else bool(rows[2]),
                "failure": None if rows is None else bool(rows[3]),
            },
            "retired_pages_pending": None if retired is None else bool(retired),
        }

    def _pcie(self, what: str, handle: Any) -> nv.Pcie:
        return {
            "gen": {
                "current": self.get(what, "nvmlDeviceGetCurrPcieLinkGeneration", handle),
                "max": self.get(what, "nvmlDeviceGetMaxPcieLinkGeneration", handle),
            },
            "width": {
                "current": self.get(what, "nvmlDeviceGetCurrPcieLinkWidth", handle),
                "max": self.get(what, "nvmlDeviceGetMaxPcieLinkWidth", handle),
            },
        }

    def _power(self, what: str, handle: Any) -> nv.Power:
        draw = self.get(what, "nvmlDeviceGetPowerUsage", handle)
        limit = self.get(what, "nvmlDeviceGetEnforcedPowerLimit", handle)
        if limit is None:
            limit = self.get(what, "nvmlDeviceGetPowerManagementLimit", handle)
        default = self.get(what, "nvmlDeviceGetPowerManagementDefaultLimit", handle)
        return {
            "draw_w": None if draw is None else draw / 1000,
            "limit_w": None if limit is None else limit / 1000,
            "default_limit_w": None if default is None else default / 1000,
        }

    def _throttle(self, what: str, handle: Any) -> list[str] | None:
        mask = self.get(what, "nvmlDeviceGetCurrentClocksEventReasons", handle)
        if mask is None:  # drivers before 535
            mask = self.get(what, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
        return _nvidia_health.throttle_of_mask(mask)

    def _temperature_limit(self, what: str, handle: Any, temperature: int | None) -> int | None:
        limit = self.get(what, "nvmlDeviceGetTemperatureThreshold", handle, _SLOWDOWN)
        if limit is not None:
            return cast(int, limit)
        # NVML is to lose that function for newer GPUs, which tell how far away they are.
        margin = self.get(what, "nvmlDeviceGetMarginTemperature", handle)
        values = self.get(what, "nvmlDeviceGetFieldValues", handle, [_SLOWDOWN_TLIMIT]) if margin is not None else None
        if not values or values[0].nvmlReturn:
            return None
        return nv.temperature_limit(temperature, margin, values[0].value.siVal)

    def _mig(self, what: str, handle: Any) -> nv.Mig:
        current, pending = self.pair(what, "nvmlDeviceGetMigMode", handle)
        mig: nv.Mig = {
            "current": _on_off(current),
            "pending": _on_off(pending),
            "devices": [],
        }
        if not current:
            return mig
        for index in range(self.get(what, "nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
            device = self.get(what, "nvmlDeviceGetMigDeviceHandleByIndex", handle, index)
            if device is not None:
                mig["devices"].append(self._mig_device(f"{what} MIG {index}", index, device))
        return mig

    def _mig_device(self, what: str, index: int, device: Any) -> nv.MigDevice:
        # The name is that of the GPU and the profile: "NVIDIA H100 80GB HBM3 MIG 1g.10gb".
        name = _string(self.get(what, "nvmlDeviceGetName", device))
        total, used, _free = self._memory(what, device)
        return {
            "index": index,
            "uuid": _string(self.get(what, "nvmlDeviceGetUUID", device)),
            "name": name.rpartition("MIG ")[2] if name else None,
            "gpu_instance_id": self.get(what, "nvmlDeviceGetGpuInstanceId", device),
            "compute_instance_id": self.get(what, "nvmlDeviceGetComputeInstanceId", device),
            "memory_total_bytes": total,
            "memory_used_bytes": used,
        }

    def _fabric(self, what: str, handle: Any) -> nv.Fabric:
        structure = getattr(self.binding, "c_nvmlGpuFabricInfoV_t", None)
        if structure is None:
            return {"state": None, "status": None}
        info = structure()
        if self.get(what, "nvmlDeviceGetGpuFabricInfoV", handle, ctypes.byref(info)) is None:
            return {"state": None, "status": None}
        state = _FABRIC_STATES.get(info.state)
        # The status has a meaning only where the GPU has a fabric.
        status = _string(self.get(what, "nvmlErrorString", info.status)) if state else None
        return {"state": state, "status": nv.word(status)}

    def _processes(self, what: str, handle: Any) -> list[nv.Process]:
        processes: dict[int, nv.Process] = {}
        for kind, letter in _PROCESS_LISTS:
            for process in self._process_list(what, handle, kind):
                seen = processes.get(process.pid)
                if seen:
                    seen["type"] = "C+G" if {seen["type"], letter} == {"C", "G"} else seen["type"]
                    continue
                instance = getattr(process, "gpuInstanceId", _NO_INSTANCE)
                processes[process.pid] = {
                    "pid": process.pid,
                    "name": nv.process_name(_string(self.get(what, "nvmlSystemGetProcessName", process.pid))),
                    "memory_used_bytes": process.usedGpuMemory,
                    "type": letter,
                    "gpu_instance_id": None if instance in (None, _NO_INSTANCE) else instance,
                }
        return [processes[pid] for pid in sorted(processes)]

    def _process_list(self, what: str, handle: Any, kind: str) -> list[Any]:
        # A binding newer than the driver has no unversioned function that works.
        for suffix in ("", "_v3", "_v2"):
            found = self.get(what, f"nvmlDeviceGet{kind}RunningProcesses{suffix}", handle)
            if found is not None:
                return list(found)
        return []


class NvmlAnswer(NamedTuple):
    """``report`` is None where NVML could not be initialised: ``error`` says why, in NVML's words."""

    report: nv.DriverReport | None
    faults: list[str]
    error: str | None = None
    topology: list[_nvidia_topology.Link] | None = None


def query_nvml(binding: Any) -> NvmlAnswer:
    """Everything NVML knows, through the binding ``binding`` (nvidia-ml-py's interface). Raises nothing."""
    try:
        binding.nvmlInit()
    except Exception as error:  # noqa: BLE001 - NVMLError_*; foreign modules called pynvml raise what they like
        return NvmlAnswer(None, [], f"{error}")
    nvml = _Nvml(binding)
    try:
        count = nvml.get("NVML", "nvmlDeviceGetCount") or 0
        gpus = [gpu for gpu in map(nvml.gpu, range(count)) if gpu is not None]
        report: nv.DriverReport = {
            "driver_version": _string(nvml.get("NVML", "nvmlSystemGetDriverVersion")),
            "cuda_version": nv.cuda_version_text(nvml.get("NVML", "nvmlSystemGetCudaDriverVersion")),
            "library_version": _string(nvml.get("NVML", "nvmlSystemGetNVMLVersion")),
            "attached": count,
            "gpus": gpus,
        }
        faults = list(nvml.faults)
        links = getattr(binding, "NVML_NVLINK_MAX_LINKS", 18)
        topology = _nvidia_topology.nvml_topology(nvml.get, count, links) if count > 1 else None
        return NvmlAnswer(report, faults, topology=topology)
    finally:
        nvml.get("NVML", "nvmlShutdown")


# --------------------------------------------------------------------------------------------------------------------
# GPUs
# --------------------------------------------------------------------------------------------------------------------


class _GpuFacts:
    """Collects the GPU half of the facts. The first diagnosis becomes the reason: the later ones follow from it."""

    def __init__(self, run: Runner, host: Host, smi: str | None, timeout: float) -> None:
        self.run = run
        self.host = host
        self.smi = smi
        self.timeout = timeout
        self.report: nv.DriverReport | None = None
        self.source = "none"
        self.mismatch = False
        self.library_version: str | None = None
        self.diagnosis: nv.Diagnosis | None = None
        self.nvml_diagnosis: nv.Diagnosis | None = None
        self.problems: list[str] = []
        self.topology: list[_nvidia_topology.Link] | None = None

    def explain(self, diagnosis: nv.Diagnosis) -> None:
        self.diagnosis = self.diagnosis or diagnosis
        self.mismatch = self.mismatch or diagnosis.code == "nvidia.version_mismatch"

    def note(self, text: str) -> None:
        if text not in self.problems:
            self.problems.append(text)

    def collect(self, kernel_version: str | None, pci: list[str]) -> None:
        hung = self._try_nvml()
        # A driver that held up NVML holds up nvidia-smi too: do not wait twice.
        if self.report is None and not hung:
            self._try_smi()
        if self.report is None and self.diagnosis is None:
            if kernel_version:
                self.explain(self.nvml_diagnosis or nv.no_smi(kernel_version))
            else:
                self.explain(nv.no_driver(pci))
        self._check(kernel_version, pci)

    def _try_nvml(self) -> bool:
        binding = self.host.load_nvml()
        if binding is None:
            return False
        end = isolated(lambda: query_nvml(binding), self.timeout)
        if end.timed_out:
            self.explain(nv.hung("NVML", self.timeout))
            return True
        answer = NvmlAnswer(*end.value) if end.value else NvmlAnswer(None, [], end.error)
        if answer.report is not None:
            self._accept("nvml", answer.report)
            self.topology = answer.topology
        elif answer.error:
            self.note(f"NVML through nvidia-ml-py failed ({answer.error}): falling back to nvidia-smi.")
            # The library can be hidden from this interpreter alone, so nvidia-smi gets the last word.
            self.nvml_diagnosis = nv.diagnose(f"Failed to initialize NVML: {answer.error}")
            if self.nvml_diagnosis and self.nvml_diagnosis.code == "nvidia.version_mismatch":
                self.explain(self.nvml_diagnosis)
        for fault in answer.faults:
            self.note(f"{fault}.")
            known = nv.diagnose(fault)
            if known:
                self.explain(known)
        return False

    def _accept(self, source: str, report: nv.DriverReport) -> None:
        self.source, self.report = source, report
        self.library_version = report["library_version"] or self.library_version

    def _try_smi(self) -> None:
        path = self.smi or self.host.find("nvidia-smi")
        if path is None:
            return
        end = self.run([path, "-q", "-x"], self.timeout)
        if end.timed_out:
            self.explain(nv.hung(f"{path} -q -x", self.timeout))
            return
        # Process names are in the document: look for failures only outside it.
        outside = end.err + "\n" + nv.outside_smi_xml(end.out)
        known = nv.diagnose(outside)
        if known:
            self.explain(known)
        self.library_version = nv.nvml_library_version(outside) or self.library_version
        report = None
        if nv.has_smi_xml(end.out):
            try:
                report = nv.parse_smi_xml(end.out)
            except FleetError as error:
                self.explain(nv.Diagnosis(error.code, error.seen.rstrip(".") + ".", error.remedy))
        if report is not None:
            self._accept("nvidia-smi", report)
            if end.rc:
                self.note(f"nvidia-smi ended with exit status {end.rc}: {nv.first_line(outside) or 'no message'}")
            matrices = self._ask_topology(path, len(report["gpus"]))
            self._complete_smi(path, report["gpus"])
            self.topology = matrices([gpu["index"] for gpu in report["gpus"]])
        elif self.diagnosis is None:
            self.explain(nv.smi_failed(end.rc, outside))

    def _complete_smi(self, path: str, gpus: list[nv.Gpu]) -> None:
        if gpus:
            query = [
                path,
                f"--query-gpu={nv.SMI_IDENTITY_FIELDS}",
                "--format=csv,noheader",
            ]
            end = self.run(query, self.timeout)
            nv.apply_smi_identity(gpus, end.out)
            if any(gpu["compute_capability"] is None for gpu in gpus):
                self.note(
                    "nvidia-smi gave no compute capability (drivers before 510 cannot): "
                    f"{nv.first_line(end.err or end.out) or 'no message'}"
                )
        if any(gpu["mig"]["devices"] for gpu in gpus):
            nv.apply_smi_list(gpus, self.run([path, "-L"], self.timeout).out)

    def _ask_topology(self, path: str, count: int) -> Callable[[list[int]], list[_nvidia_topology.Link] | None]:
        """Start to ask how the GPUs are linked; the result waits for the answers.

        Without persistence mode every nvidia-smi initialises all GPUs anew, which takes seconds: side by side it is
        once.
        """
        if count < 2:
            return lambda _indices: None
        sources = Sources()
        for words in (("-m",), ("-p2p", "r")):
            command = [path, "topo", *words]
            sources.ask(" ".join(command), partial(self.run, command, self.timeout), self.timeout + 5)

        def answer(indices: list[int]) -> list[_nvidia_topology.Link] | None:
            ends = [sources.answer(f"{path} topo {words}", CommandResult(1, "", "")) for words in ("-m", "-p2p r")]
            matrices = [_nvidia_topology.parse_matrix(end.out if end.rc == 0 else "") for end in ends]
            return _nvidia_topology.combine(indices, *matrices)

        return answer

    def _check(self, kernel_version: str | None, pci: list[str]) -> None:
        if self.report is None:
            return
        found, attached = len(self.report["gpus"]), self.report["attached"]
        if not found:
            self.explain(cast(nv.Diagnosis, nv.diagnose("No devices were found")))
        elif attached is not None and attached > found:
            lost = nv.Diagnosis(
                "nvidia.gpu_unreachable",
                f"The driver counts {plural(attached, 'GPU')} and {self.source} could read {found}.",
                "read 'dmesg' for NVRM and Xid lines, then drain and reboot the host",
            )
            self.explain(lost)
        for version in (self.library_version, self.report["driver_version"]):
            if kernel_version and version and not _agrees(version, kernel_version):
                self.mismatch = True
                self.note(
                    f"The loaded kernel module is {kernel_version} and the driver library says {version}: reboot or "
                    "reload the module."
                )


def _agrees(version: str, kernel_version: str) -> bool:
    # nvmlSystemGetNVMLVersion() is "13.580.95.05": the CUDA major version comes first.
    return nv.same_version(version, kernel_version) or nv.same_version(version.partition(".")[2], kernel_version)


# --------------------------------------------------------------------------------------------------------------------
# All of it
# --------------------------------------------------------------------------------------------------------------------


_LOG_SECONDS = 16.0


def _numa_node(host: Host, bus_id: str | None) -> int | None:
    """The NUMA node that the card hangs on; None where the machine has none, or does not tell (-1)."""
    # NVML's domain has eight digits, the kernel's four.
    address = (bus_id or "").lower()[-12:]
    text = (host.read(f"/sys/bus/pci/devices/{address}/numa_node", 16) or "").strip() if address else ""
    return int(text) if text.isdigit() else None


def gather(
    run: Runner = run_command,
    *,
    with_gpus: bool = True,
    with_containers: bool = True,
    nvidia_smi: str | None = None,
    timeout: float = DEFAULT_TIMEOUT,
    host: Host | None = None,
    images: Sequence[str] = (),
) -> dict[str, Any]:
    """All GPU and container facts of a host.

    :param run: runs a command: argv and deadline in, :class:`CommandResult` out.
    :param with_gpus: read the GPUs; without, ``gpus`` is empty and ``reason`` is None.
    :param with_containers: read toolkit, Docker, Compose and CDI; without, ``container`` is None.
    :param nvidia_smi: the executable to use in place of the one that is found.
    :param timeout: seconds that each single command, and NVML as a whole, may take.
    :param images: references of images that Docker is asked for.
    :returns: the facts in the shape of :class:`_nvidia.Facts`. Where they are empty or incomplete, ``reason``,
        ``reason_code`` and ``remedy`` say why.
    """
    host = host or Host()
    kernel = nv.parse_kernel_module(host.read("/proc/driver/nvidia/version") or "")
    pci = nvidia_pci_gpus(host)
    # Side by side: none of them needs another's answer, and a broken host has several that are slow.
    sources = Sources()
    docker_problems: list[str] = []
    read = _nvidia_containers.read_containers
    if with_containers:
        sources.ask("Docker", lambda: read(run, host, timeout, images, docker_problems), 9 * timeout)
    has_gpus = with_gpus and bool(pci or kernel["version"])
    if has_gpus:
        sources.ask("the kernel's log", lambda: _nvidia_health.read_xids(run, host, host.find), _LOG_SECONDS)
        sources.ask("NVIDIA's daemons", lambda: _nvidia_health.daemons(run, host, host.find), _LOG_SECONDS)
    gpu_facts = _GpuFacts(run, host, nvidia_smi, timeout)
    if with_gpus:
        gpu_facts.collect(kernel["version"], pci)
    report, diagnosis = gpu_facts.report, gpu_facts.diagnosis
    driver_version = (report["driver_version"] if report else None) or kernel["version"]
    gpus = sorted(report["gpus"], key=lambda gpu: gpu["index"]) if report else []
    for gpu in gpus:
        gpu["numa_node"] = _numa_node(host, gpu["pci_bus_id"])
    container = sources.answer("Docker", cast("nv.Container | None", None)) if with_containers else None
    fabric, persistenced = sources.answer("NVIDIA's daemons", (None, None)) if has_gpus else (None, None)
    xids = sources.answer("the kernel's log", None) if has_gpus else None
    problems = [*gpu_facts.problems, *docker_problems, *sources.problems]
    if container:
        problems.extend(_nvidia_containers.stale_cdi(container["cdi"], driver_version))
    facts: nv.Facts = {
        "gpus": gpus,
        "driver_version": driver_version,
        "cuda_version": report["cuda_version"] if report else None,
        "kernel_module_version": kernel["version"],
        "kernel_module_type": kernel["type"],
        "library_version": gpu_facts.library_version,
        "library_version_mismatch": gpu_facts.mismatch,
        "pci_devices": pci,
        "source": gpu_facts.source,
        "reason": diagnosis.reason if diagnosis else None,
        "reason_code": diagnosis.code if diagnosis else None,
        "remedy": diagnosis.remedy if diagnosis else None,
        "problems": problems,
        "topology": gpu_facts.topology,
        "xids": xids,
        "fabric_manager": fabric,
        "persistenced": persistenced,
        "driver_installed_at": _nvidia_health.driver_installed_at(host, driver_version, platform.release()),
        "container": container,
    }
    return cast("dict[str, Any]", facts)
