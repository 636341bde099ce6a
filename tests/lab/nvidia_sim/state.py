# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The GPUs of a host: a small file that a person writes, expanded into the one state that every tool shows.

:func:`expand` is pure. nvidia-smi, the NVML library, the hook and the CDI generator all start from its result, so they
cannot contradict each other; each starts anew at every call, so a fault written into the file shows in the next one.
"""

from __future__ import annotations

import json
import os
import socket
import typing as t
import uuid
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

Data = dict[str, t.Any]

TYPES = Path(__file__).with_name("types")
KEYS = (
    "model",
    "count",
    "driver",
    "cuda",
    "kernel_module",
    "toolkit",
    "cdi",
    "hostname",
    "gpus",
    "processes",
    "faults",
)
FAULTS = {
    "driver_library_mismatch": "true, or the version of the loaded kernel module",
    "no_driver": "true",
    "hang": "true",
    "missing_toolkit": "true",
    "stale_cdi": "true, or the driver version that the specification was made for",
    "fallen_off_bus": "GPU or list of GPUs: counted, but not to be opened",
    "missing_gpu": "GPU or list of GPUs: not there since the last boot",
    "ecc_pending": "GPU or list of GPUs: an uncorrected error, and the repair of its memory waits for a reset",
    "ecc_uncorrected": "{gpu, count} or a list of them",
    "remapped_pending": "GPU or list of GPUs",
    "remapped_failure": "GPU or list of GPUs",
    "retired_pending": "GPU or list of GPUs",
    "foreign_process": "{gpu, pid, name, memory_mib} or a list of them",
    "orphan_engine": "{gpu, memory_mib} or a list of them: a process of an engine whose API server is gone",
    "xid": "{gpu, code, time, message} or a list of them; time (ISO 8601) and message may be left out",
    "persistence_off": "GPU or list of GPUs; the persistence daemon does not run",
    "compute_mode": "{gpu, mode} or a list of them; mode is Default, Exclusive_Process or Prohibited",
    "pcie_width": "{gpu, width} or a list of them: the link is narrower than it could be",
    "temperature": "{gpu, celsius} or a list of them",
    "throttle": "{gpu, reasons} or a list of them; reasons are NVML's words, such as hw_thermal_slowdown",
    "power_limit": "{gpu, watts} or a list of them",
    "topology": "{gpus, link, p2p} or a list of them: two GPUs, PIX to SYS, and OK or why not (CNS, GNS, TNS, NS)",
    "fabric_manager": "stopped, missing, or the version of it that is installed",
    "reboot_required": "true, or a list of the packages that want it",
}
# What an entry of "gpus" may say beside the keys of a type file.
OWN_KEYS = frozenset({"model", "uuid", "serial", "pci_bus_id", "compute_mode", "utilization_percent"})
_BUSES = ("19", "3B", "4C", "5D", "9B", "BB", "CB", "DB")
COMPUTE_MODES = {"Default": 0, "Exclusive_Thread": 1, "Prohibited": 2, "Exclusive_Process": 3}
# In NVML's order of bits.
REASONS = (
    "gpu_idle",
    "applications_clocks_setting",
    "sw_power_cap",
    "hw_slowdown",
    "sync_boost",
    "sw_thermal_slowdown",
    "hw_thermal_slowdown",
    "hw_power_brake_slowdown",
    "display_clocks_setting",
)
LEVELS = {"PIX": 10, "PXB": 20, "PHB": 30, "NODE": 40, "SYS": 50}
P2P = {"OK": 0, "CNS": 1, "GNS": 2, "TNS": 3, "DR": 4, "NS": 5, "U": 6}
# GPUs that one processor has.
_GPUS_PER_NODE = 4
_UUIDS = uuid.UUID("6f0c8a8e-7d57-5a5f-9a52-0a8f3a0d5e11")
MISMATCH, NOT_LOADED = 18, 9


ORPHANS = "run/gpusim/orphans.json"


class SimError(Exception):
    """The data file cannot be used."""

    def __init__(self, seen: str, expected: str, remedy: str) -> None:
        super().__init__(f"{seen}; expected {expected}. Remedy: {remedy}.")


@dataclass(frozen=True)
class Process:
    gpu: int
    pid: int
    name: str
    memory_mib: int = 1024
    type: str = "C"


@dataclass(frozen=True)
class Xid:
    gpu: int
    code: int
    time: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class Orphan:
    """``pid`` comes from the host, which has such a process once ``gpusim apply`` has run."""

    gpu: int
    memory_mib: int = 1024
    pid: int = 0


@dataclass(frozen=True)
class Link:
    """What lies between two GPUs."""

    gpus: list[int]
    link: str | None = None
    p2p: str | None = None


@dataclass(frozen=True)
class Gpu:
    """``memory_used_mib`` has the processes in it. A GPU that is ``lost`` is counted and answers nothing."""

    index: int
    model: str
    uuid: str
    serial: str | None
    pci_bus_id: str
    name: str
    brand: str
    architecture: str
    compute_capability: str
    vbios: str
    pci_device_id: str
    pci_subsystem_id: str
    memory_total_mib: int
    memory_reserved_mib: int
    memory_used_mib: int
    bar1_mib: int
    pcie_gen: int
    pcie_width: int
    pcie_width_current: int
    ecc: str | None
    remapped_banks: int | None
    retires_pages: bool
    mig: str | None
    fabric: bool
    nvlinks: int
    fan_percent: int | None
    temperature_c: int
    slowdown_c: int
    power_draw_w: float
    power_limit_w: float
    power_default_w: float
    display_mode: str
    persistence_mode: str
    performance_state: str
    clock_memory_mhz: int
    clock_graphics_mhz: int
    compute_mode: str = "Default"
    utilization_percent: int = 0
    ecc_uncorrected: int = 0
    remapped_pending: bool = False
    remapped_failure: bool = False
    retired_pending: bool = False
    lost: bool = False
    reasons: tuple[str, ...] = ()
    processes: tuple[Process, ...] = ()

    @property
    def tells_margin(self) -> bool:
        """Newer ones tell how far they are from a temperature, where older ones tell that temperature."""
        return self.architecture not in ("Turing", "Ampere")

    @property
    def memory_free_mib(self) -> int:
        return self.memory_total_mib - self.memory_reserved_mib - self.memory_used_mib


@dataclass(frozen=True)
class State:
    """``error`` is NVML's return code where the driver cannot be used at all, else 0."""

    hostname: str
    driver: str
    cuda: str
    kernel_version: str
    kernel_module: str
    toolkit: str
    gpus: tuple[Gpu, ...]
    error: int = 0
    hang: bool = False
    missing_toolkit: bool = False
    stale_cdi: str | None = None
    write_cdi: bool = True
    xids: tuple[Xid, ...] = ()
    links: tuple[Link, ...] = ()
    fabric_version: str | None = None
    fabric_active: bool = False
    reboot_packages: tuple[str, ...] | None = None
    orphans: tuple[Orphan, ...] = ()

    def node(self, gpu: Gpu) -> int:
        """The NUMA node of a card."""
        return gpu.index // _GPUS_PER_NODE

    def between(self, gpu: Gpu, other: Gpu) -> tuple[str, str]:
        """nvidia-smi's words for what links two cards, and for whether they read each other's memory."""
        ends = {gpu.index, other.index}
        told = next((link for link in self.links if set(link.gpus) == ends), Link([]))
        nvlinks = min(gpu.nvlinks, other.nvlinks)
        near = "PHB" if self.node(gpu) == self.node(other) else "SYS"
        return told.link or (f"NV{nvlinks}" if nvlinks else near), told.p2p or (
            "GNS" if gpu.brand == "GeForce" else "OK"
        )

    @property
    def branch(self) -> int:
        return int(self.driver.split(".")[0])

    @property
    def lost(self) -> list[Gpu]:
        return [gpu for gpu in self.gpus if gpu.lost]


def read(root: Path, hostname: str | None = None) -> State:
    """The state of the host whose file system ``root`` is, as its file says now."""
    path = data_path(root)
    try:
        data = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise SimError(
            f"{path} cannot be read: {error}",
            'a JSON object such as {"model": "h100-80gb", "count": 2}',
            "write it, or name another file in GPUSIM_DATA",
        ) from error
    return expand(_with_pids(data, root), hostname or socket.gethostname())


def _with_pids(data: Data, root: Path) -> Data:
    """The processes that ``gpusim apply`` has started, in the faults that asked for them."""
    try:
        pids = json.loads((root / ORPHANS).read_text())
        faults = data["faults"]
        value = faults["orphan_engine"]
        items = value if isinstance(value, list) else [value]
        started = [{**item, "pid": pids.get(str(item["gpu"]), 0)} for item in items]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return data
    return {**data, "faults": {**faults, "orphan_engine": started}}


def data_path(root: Path) -> Path:
    return Path(os.environ.get("GPUSIM_DATA") or root / "etc/gpusim/gpus.json")


def types() -> list[str]:
    return sorted(path.stem for path in TYPES.glob("*.json"))


def expand(data: Data, hostname: str) -> State:
    """The full state of a host from what its data file says. Raises SimError for what it cannot mean."""
    if not isinstance(data, dict):
        raise SimError(f"the data is {data!r}", "a JSON object", 'write {"model": "h100-80gb", "count": 2} or the like')
    _only(data, KEYS, "the data file")
    hostname = str(data.get("hostname") or hostname)
    # GPU 0 is a fault too, and 0 equals False.
    faults = {
        name: value
        for name, value in (data.get("faults") or {}).items()
        if value not in (None, []) and value is not False
    }
    _only(faults, FAULTS, "faults")
    driver = str(data.get("driver", "580.95.05"))
    gpus = _faulty(_occupied(_gpus(data, hostname), data, faults), faults)
    mismatch = faults.get("driver_library_mismatch")
    kernel = mismatch if isinstance(mismatch, str) else older(driver) if mismatch else driver
    stale = faults.get("stale_cdi")
    links = tuple(_link(item, len(gpus)) for item in _listed(faults.get("topology")))
    fabric = faults.get("fabric_manager")
    reboot = faults.get("reboot_required")
    has_fabric = any(gpu.fabric for gpu in gpus) and fabric != "missing"
    return State(
        hostname=hostname,
        driver=driver,
        cuda=str(data.get("cuda", "13.0")),
        kernel_version=kernel,
        kernel_module=str(data.get("kernel_module", "open")),
        toolkit=str(data.get("toolkit", "1.17.8")),
        gpus=_renumbered(gpus, _chosen(faults, "missing_gpu", len(gpus))),
        error=NOT_LOADED if faults.get("no_driver") else MISMATCH if mismatch else 0,
        hang=bool(faults.get("hang")),
        missing_toolkit=bool(faults.get("missing_toolkit")),
        stale_cdi=stale if isinstance(stale, str) else older(driver) if stale else None,
        write_cdi=bool(data.get("cdi", True)),
        xids=tuple(Xid(**item) for item in _items(faults, "xid", Xid, len(gpus))),
        links=links,
        fabric_version=(fabric if fabric not in (None, "stopped") else driver) if has_fabric else None,
        fabric_active=has_fabric and fabric != "stopped",
        reboot_packages=tuple(map(str, reboot)) if isinstance(reboot, list) else (("linux-image",) if reboot else None),
        orphans=tuple(Orphan(**item) for item in _items(faults, "orphan_engine", Orphan, len(gpus))),
    )


def _listed(value: t.Any) -> list[t.Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def _link(item: t.Any, count: int) -> Link:
    known = isinstance(item, dict) and set(item) <= {"gpus", "link", "p2p"} and len(_listed(item.get("gpus"))) == 2
    if not known or item.get("link", "SYS") not in LEVELS or item.get("p2p", "OK") not in P2P:
        raise SimError(
            f"topology is {item!r}",
            f"a mapping with gpus (two), link ({', '.join(LEVELS)}) and p2p ({', '.join(P2P)}), or a list",
            "correct it",
        )
    for number in item["gpus"]:
        _in_range(number, count, "topology")
    return Link(**item)


def older(driver: str) -> str:
    """A version of an older branch."""
    branch, _dot, rest = driver.partition(".")
    return f"{int(branch) - 5}.{rest}"


def _only(data: Data, known: t.Collection[str], where: str) -> None:
    unknown = sorted(set(data) - set(known))
    if unknown:
        raise SimError(f"{where} has {', '.join(unknown)}", f"only {', '.join(sorted(known))}", "correct the name")


def _type(model: str) -> dict[str, t.Any]:
    if model not in types():
        raise SimError(f"model is {model!r}", f"one of {', '.join(types())}", "correct it, or add a file to types/")
    loaded: dict[str, t.Any] = json.loads((TYPES / f"{model}.json").read_text())
    return loaded


def _gpus(data: Data, hostname: str) -> list[Gpu]:
    own = data.get("gpus") or []
    count = int(data.get("count", len(own)))
    if count < len(own):
        raise SimError(f"count is {count} and gpus has {len(own)} entries", "no more entries than GPUs", "raise count")
    return [_gpu(index, own[index] if index < len(own) else {}, data, hostname) for index in range(count)]


def _gpu(index: int, own: Data, data: Data, hostname: str) -> Gpu:
    model = str(own.get("model") or data.get("model"))
    values = _type(model)
    _only(own, OWN_KEYS | set(values), f"entry {index} of gpus")
    identity = uuid.uuid5(_UUIDS, f"{hostname}/{index}")
    bus = _BUSES[index] if index < len(_BUSES) else f"{0xE0 + index - len(_BUSES):02X}"
    generated = {
        "model": model,
        "uuid": f"GPU-{identity}",
        "serial": f"1{identity.int % 10**12:012d}" if values.pop("has_serial") else None,
        "pci_bus_id": f"00000000:{bus}:00.0",
        "power_default_w": values["power_limit_w"],
    }
    return Gpu(index=index, **{**values, **generated, **own})


def _items(faults: Data, name: str, kind: type[t.Any], count: int) -> list[dict[str, t.Any]]:
    value = faults.get(name) or []
    items = value if isinstance(value, list) else [value]
    for item in items:
        needed = {field.name for field in fields(kind) if field.default is MISSING}
        if not isinstance(item, dict) or not needed <= set(item):
            raise SimError(
                f"{name} is {value!r}", f"a mapping with {', '.join(sorted(needed))}, or a list", "correct it"
            )
        _only(item, {field.name for field in fields(kind)}, name)
        _in_range(item["gpu"], count, name)
    return items


def _chosen(faults: Data, name: str, count: int) -> set[int]:
    value = faults.get(name, [])
    numbers = value if isinstance(value, list) else [value]
    for number in numbers:
        _in_range(number, count, name)
    return set(numbers)


def _in_range(number: object, count: int, name: str) -> None:
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < count:
        raise SimError(f"{name} names GPU {number!r}", f"an index below {count}", "correct it, or raise count")


def _occupied(gpus: list[Gpu], data: Data, faults: Data) -> list[Gpu]:
    wanted = [*_items(data, "processes", Process, len(gpus)), *_items(faults, "foreign_process", Process, len(gpus))]
    processes = [Process(**item) for item in wanted]
    for item in _items(faults, "orphan_engine", Orphan, len(gpus)):
        if item.get("pid"):
            processes.append(Process(item["gpu"], item["pid"], "VLLM::EngineCore", item.get("memory_mib", 1024)))
    return [_with_processes(gpu, tuple(item for item in processes if item.gpu == gpu.index)) for gpu in gpus]


def _with_processes(gpu: Gpu, processes: tuple[Process, ...]) -> Gpu:
    used = gpu.memory_used_mib + sum(process.memory_mib for process in processes)
    full = replace(gpu, memory_used_mib=used, processes=processes)
    if full.memory_free_mib < 0:
        raise SimError(
            f"GPU {gpu.index} has {used} MiB in use",
            f"at most {gpu.memory_total_mib - gpu.memory_reserved_mib} MiB",
            "lower memory_mib of its processes",
        )
    return full


def _faulty(gpus: list[Gpu], faults: Data) -> list[Gpu]:
    count = len(gpus)
    chosen = {name: _chosen(faults, name, count) for name in _GPU_FAULTS}
    errors = {item["gpu"]: item.get("count", 1) for item in _items(faults, "ecc_uncorrected", _EccUncorrected, count)}
    broken = [_with_faults(gpu, {name for name in _GPU_FAULTS if gpu.index in chosen[name]}, errors) for gpu in gpus]
    for name, kind, field in _SETTINGS:
        settings = {item["gpu"]: item for item in _items(faults, name, kind, count)}
        broken = [
            replace(gpu, **{field: _setting(name, settings[gpu.index])}) if gpu.index in settings else gpu
            for gpu in broken
        ]
    return broken


_GPU_FAULTS = (
    "fallen_off_bus", "ecc_pending", "remapped_pending", "remapped_failure", "retired_pending", "persistence_off",
)  # fmt: skip


@dataclass(frozen=True)
class _ComputeMode:
    gpu: int
    mode: str


@dataclass(frozen=True)
class _Width:
    gpu: int
    width: int


@dataclass(frozen=True)
class _Temperature:
    gpu: int
    celsius: int


@dataclass(frozen=True)
class _Throttle:
    gpu: int
    reasons: list[str]


@dataclass(frozen=True)
class _PowerLimit:
    gpu: int
    watts: float


# Faults that set one value of a GPU: their shape, and the field.
_SETTINGS: tuple[tuple[str, type[t.Any], str], ...] = (
    ("compute_mode", _ComputeMode, "compute_mode"),
    ("pcie_width", _Width, "pcie_width_current"),
    ("temperature", _Temperature, "temperature_c"),
    ("throttle", _Throttle, "reasons"),
    ("power_limit", _PowerLimit, "power_limit_w"),
)


def _setting(name: str, item: dict[str, t.Any]) -> t.Any:
    (value,) = (value for key, value in item.items() if key != "gpu")
    known: t.Collection[str] = REASONS if name == "throttle" else COMPUTE_MODES if name == "compute_mode" else ()
    given = tuple(_listed(value)) if name == "throttle" else (value,)
    if known and not set(given) <= set(known):
        raise SimError(f"{name} is {value!r}", f"of {', '.join(known)}", "correct it")
    return given if name == "throttle" else float(value) if name == "power_limit" else value


@dataclass(frozen=True)
class _EccUncorrected:
    gpu: int
    count: int = 1


def _with_faults(gpu: Gpu, faults: set[str], errors: dict[int, int]) -> Gpu:
    repair = "ecc_pending" in faults
    if (repair or gpu.index in errors) and gpu.ecc != "Enabled":
        raise _impossible(gpu, "counts no ECC errors")
    if faults & {"remapped_pending", "remapped_failure"} and gpu.remapped_banks is None:
        raise _impossible(gpu, "remaps no rows")
    if "retired_pending" in faults and not gpu.retires_pages:
        raise _impossible(gpu, "retires no pages")
    return replace(
        gpu,
        lost="fallen_off_bus" in faults,
        persistence_mode="Disabled" if "persistence_off" in faults else gpu.persistence_mode,
        ecc_uncorrected=errors.get(gpu.index, 1 if repair else 0),
        remapped_pending="remapped_pending" in faults or (repair and gpu.remapped_banks is not None),
        remapped_failure="remapped_failure" in faults,
        retired_pending="retired_pending" in faults or (repair and gpu.retires_pages),
    )


def _impossible(gpu: Gpu, what: str) -> SimError:
    return SimError(
        f"GPU {gpu.index} is a {gpu.model}, which {what}", "a fault that it can have", "choose another fault"
    )


def _renumbered(gpus: list[Gpu], missing: set[int]) -> tuple[Gpu, ...]:
    # The driver numbers the cards that it finds, so those behind a missing one move up.
    left = [gpu for gpu in gpus if gpu.index not in missing]
    return tuple(replace(gpu, index=index) for index, gpu in enumerate(left))
