# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``nvidia-smi`` for the GPUs of the data file: the reports that programs read, and the table that people read."""

from __future__ import annotations

import argparse
import sys
import time
import typing as t
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

from nvidia_sim.state import REASONS, Gpu, Process, State, read

_LAYOUT = Path(__file__).with_name("layout.xml")
_DTDS = ((580, "v13"), (535, "v12"), (0, "v11"))
_POLL_SECONDS = 0.2

NOT_LOADED = (
    "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver. Make sure that the latest NVIDIA "
    "driver is installed and running.\n"
)


class Failed(Exception):
    """nvidia-smi says this on its standard output and ends with that status."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


# --------------------------------------------------------------------------------------------------------------------
# -q -x
# --------------------------------------------------------------------------------------------------------------------


def _or_na(value: object) -> str:
    return "N/A" if value is None else str(value)


def _yes_no(value: bool) -> str:
    return "Yes" if value else "No"


def _values(state: State, gpu: Gpu) -> dict[str, str]:
    ecc = gpu.ecc == "Enabled"
    values = {name: _or_na(value) for name, value in vars(gpu).items()}
    return {
        **values,
        "driver": state.driver,
        "minor": str(gpu.index),
        "pdi": "0x" + gpu.uuid.replace("-", "")[-16:],
        "pci_bus": gpu.pci_bus_id.split(":")[1],
        "fan": "N/A" if gpu.fan_percent is None else f"{gpu.fan_percent} %",
        "memory_free_mib": str(gpu.memory_free_mib),
        "bar1_free_mib": str(gpu.bar1_mib - 1),
        "memory_utilization_percent": str(gpu.utilization_percent // 2),
        "ecc_zero": "0" if ecc else "N/A",
        "ecc_uncorrected": str(gpu.ecc_uncorrected) if ecc else "N/A",
        "retired_pages": str(int(gpu.retired_pending)),
        "retired_pending": _yes_no(gpu.retired_pending) if gpu.retires_pages else "N/A",
        "remapped_uncorrected": str(int(gpu.remapped_pending or gpu.remapped_failure)),
        "remapped_pending": _yes_no(gpu.remapped_pending),
        "remapped_failure": _yes_no(gpu.remapped_failure),
        "power_draw": f"{gpu.power_draw_w:.2f}",
        "power_limit": f"{gpu.power_limit_w:.2f}",
        "power_default": f"{gpu.power_default_w:.2f}",
        # It slows down two degrees behind the point that it tells its distance from.
        "tlimit": str(gpu.slowdown_c - 2 - gpu.temperature_c),
        "shutdown_c": str(gpu.slowdown_c + 3),
        **{f"reason_{word}": "Active" if word in gpu.reasons else "Not Active" for word in REASONS},
    }


def _conditions(state: State, gpu: Gpu) -> dict[str, bool]:
    return {
        "splits_sram": gpu.ecc == "Enabled" and state.branch >= 535,
        "remapped_banks": gpu.remapped_banks is not None,
        "retires_pages": gpu.retires_pages,
        "fabric": gpu.fabric,
        "nvlinks": gpu.nvlinks > 0,
        "tlimit": gpu.tells_margin and state.branch >= 535,
    }


def _fill(element: ElementTree.Element, branch: int, conditions: dict[str, bool], values: dict[str, str]) -> bool:
    """Keep what this driver prints of this GPU; False where the element itself goes."""
    since, until = int(element.attrib.pop("since", 0)), int(element.attrib.pop("until", sys.maxsize))
    when, unless = element.attrib.pop("when", None), element.attrib.pop("unless", None)
    if not since <= branch < until or (when and not conditions[when]) or (unless and conditions[unless]):
        return False
    for name, value in element.attrib.items():
        element.set(name, value.format_map(values))
    element.text = (element.text or "").strip().format_map(values)
    for child in list(element):
        if not _fill(child, branch, conditions, values):
            element.remove(child)
    return True


def _add_process(parent: ElementTree.Element, process: Process) -> None:
    info = ElementTree.SubElement(parent, "process_info")
    for name, value in (
        ("gpu_instance_id", "N/A"),
        ("compute_instance_id", "N/A"),
        ("pid", str(process.pid)),
        ("type", process.type),
        ("process_name", process.name),
        ("used_memory", f"{process.memory_mib} MiB"),
    ):
        ElementTree.SubElement(info, name).text = value


def as_xml(state: State, chosen: t.Sequence[Gpu]) -> str:
    root = ElementTree.Element("nvidia_smi_log")
    for name, value in (
        ("timestamp", time.strftime("%a %b %d %H:%M:%S %Y")),
        ("driver_version", state.driver),
        ("cuda_version", state.cuda),
        ("attached_gpus", str(len(state.gpus))),
    ):
        ElementTree.SubElement(root, name).text = value
    for gpu in chosen:
        element = ElementTree.parse(_LAYOUT).getroot()
        _fill(element, state.branch, _conditions(state, gpu), _values(state, gpu))
        processes = element.find("processes")
        for process in gpu.processes if processes is not None else ():
            _add_process(t.cast(ElementTree.Element, processes), process)
        root.append(element)
    ElementTree.indent(root, "\t")
    dtd = next(name for branch, name in _DTDS if state.branch >= branch)
    body = ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")
    return f'<?xml version="1.0" ?>\n<!DOCTYPE nvidia_smi_log SYSTEM "nvsmi_device_{dtd}.dtd">\n{body}\n'


# --------------------------------------------------------------------------------------------------------------------
# --query-gpu, --query-compute-apps
# --------------------------------------------------------------------------------------------------------------------


class _Field(t.NamedTuple):
    """``unit`` stands behind each value, unless nounits is asked for, and in brackets in the header."""

    value: Callable[[State, Gpu], object]
    unit: str = ""
    header: str = ""


def _of(name: str, unit: str = "") -> _Field:
    return _Field(lambda state, gpu: getattr(gpu, name), unit)


def _ecc_count(count: Callable[[Gpu], int]) -> _Field:
    return _Field(lambda state, gpu: count(gpu) if gpu.ecc == "Enabled" else None)


def _remapped(value: Callable[[Gpu], object]) -> _Field:
    return _Field(lambda state, gpu: None if gpu.remapped_banks is None else value(gpu))


FIELDS: dict[str, _Field] = {
    "timestamp": _Field(lambda state, gpu: time.strftime("%Y/%m/%d %H:%M:%S.000")),
    "driver_version": _Field(lambda state, gpu: state.driver),
    "count": _Field(lambda state, gpu: len(state.gpus)),
    "index": _of("index"),
    "name": _of("name"),
    "gpu_name": _of("name"),
    "serial": _of("serial"),
    "gpu_serial": _of("serial"),
    "uuid": _of("uuid"),
    "gpu_uuid": _of("uuid"),
    "vbios_version": _of("vbios"),
    "compute_cap": _of("compute_capability"),
    "compute_mode": _of("compute_mode"),
    "persistence_mode": _of("persistence_mode"),
    "display_mode": _of("display_mode"),
    "display_active": _Field(lambda state, gpu: "Disabled"),
    "pstate": _of("performance_state"),
    "pci.bus_id": _of("pci_bus_id"),
    "gpu_bus_id": _of("pci_bus_id"),
    "pci.bus": _Field(lambda state, gpu: "0x" + gpu.pci_bus_id.split(":")[1]),
    "pci.domain": _Field(lambda state, gpu: "0x0000"),
    "pci.device": _Field(lambda state, gpu: "0x00"),
    "pci.device_id": _Field(lambda state, gpu: "0x" + gpu.pci_device_id),
    "pci.sub_device_id": _Field(lambda state, gpu: "0x" + gpu.pci_subsystem_id),
    "pcie.link.gen.max": _of("pcie_gen"),
    "pcie.link.gen.current": _of("pcie_gen"),
    "pcie.link.width.max": _of("pcie_width"),
    "pcie.link.width.current": _of("pcie_width_current"),
    "fan.speed": _of("fan_percent", "%"),
    "memory.total": _of("memory_total_mib", "MiB"),
    "memory.reserved": _of("memory_reserved_mib", "MiB"),
    "memory.used": _of("memory_used_mib", "MiB"),
    "memory.free": _of("memory_free_mib", "MiB"),
    "utilization.gpu": _of("utilization_percent", "%"),
    "utilization.memory": _Field(lambda state, gpu: gpu.utilization_percent // 2, "%"),
    "temperature.gpu": _of("temperature_c"),
    "temperature.memory": _Field(lambda state, gpu: None),
    "power.draw": _Field(lambda state, gpu: f"{gpu.power_draw_w:.2f}", "W"),
    "power.limit": _Field(lambda state, gpu: f"{gpu.power_limit_w:.2f}", "W"),
    "enforced.power.limit": _Field(lambda state, gpu: f"{gpu.power_limit_w:.2f}", "W"),
    "clocks.max.memory": _of("clock_memory_mhz", "MHz"),
    "clocks.max.graphics": _of("clock_graphics_mhz", "MHz"),
    "mig.mode.current": _of("mig"),
    "mig.mode.pending": _of("mig"),
    "ecc.mode.current": _of("ecc"),
    "ecc.mode.pending": _of("ecc"),
    "ecc.errors.corrected.volatile.total": _ecc_count(lambda gpu: 0),
    "ecc.errors.uncorrected.volatile.total": _ecc_count(lambda gpu: gpu.ecc_uncorrected),
    "ecc.errors.corrected.aggregate.total": _ecc_count(lambda gpu: 0),
    "ecc.errors.uncorrected.aggregate.total": _ecc_count(lambda gpu: gpu.ecc_uncorrected),
    "retired_pages.pending": _Field(lambda state, gpu: _yes_no(gpu.retired_pending) if gpu.retires_pages else None),
    "remapped_rows.correctable": _remapped(lambda gpu: 0),
    "remapped_rows.uncorrectable": _remapped(lambda gpu: int(gpu.remapped_pending or gpu.remapped_failure)),
    "remapped_rows.pending": _remapped(lambda gpu: _yes_no(gpu.remapped_pending)),
    "remapped_rows.failure": _remapped(lambda gpu: _yes_no(gpu.remapped_failure)),
}


class _AppField(t.NamedTuple):
    value: Callable[[Gpu, Process], object]
    unit: str = ""
    header: str = ""


_USED_MEMORY = _AppField(lambda gpu, process: process.memory_mib, "MiB", "used_gpu_memory")
APP_FIELDS: dict[str, _AppField] = {
    "timestamp": _AppField(lambda gpu, process: time.strftime("%Y/%m/%d %H:%M:%S.000")),
    "gpu_name": _AppField(lambda gpu, process: gpu.name),
    "gpu_bus_id": _AppField(lambda gpu, process: gpu.pci_bus_id),
    "gpu_serial": _AppField(lambda gpu, process: gpu.serial),
    "gpu_uuid": _AppField(lambda gpu, process: gpu.uuid),
    "pid": _AppField(lambda gpu, process: process.pid),
    "process_name": _AppField(lambda gpu, process: process.name),
    "name": _AppField(lambda gpu, process: process.name, header="process_name"),
    "used_gpu_memory": _USED_MEMORY,
    "used_memory": _USED_MEMORY,
}


def _cell(value: object, unit: str, units: bool) -> str:
    if value is None:
        return "[N/A]"
    return f"{value} {unit}" if unit and units else str(value)


def _csv(
    names: list[str], fields: t.Mapping[str, _Field | _AppField], rows: t.Iterable[tuple[t.Any, t.Any]], form: str
) -> str:
    options = form.split(",")
    if options[0] != "csv" or set(options[1:]) - {"noheader", "nounits"}:
        raise Failed(2, f'Option "{form}" is not recognized. Only csv, noheader and nounits are supported here.\n')
    unknown = next((name for name in names if name not in fields), None)
    if unknown is not None:
        raise Failed(2, f'Field "{unknown}" is not a valid field to query.\n\n')
    units = "nounits" not in options
    wanted = [(name, fields[name]) for name in names]
    heads = [(field.header or name) + (f" [{field.unit}]" if field.unit else "") for name, field in wanted]
    lines = [] if "noheader" in options else [", ".join(heads)]
    lines += [", ".join(_cell(field.value(*row), field.unit, units) for _name, field in wanted) for row in rows]
    return "".join(f"{line}\n" for line in lines)


# --------------------------------------------------------------------------------------------------------------------
# What people read
# --------------------------------------------------------------------------------------------------------------------


def _list(gpus: t.Sequence[Gpu]) -> str:
    return "".join(f"GPU {gpu.index}: {gpu.name} (UUID: {gpu.uuid})\n" for gpu in gpus)


def _versions(state: State) -> str:
    short = ".".join(state.driver.split(".")[:2])
    rows = (
        ("NVIDIA-SMI version", state.driver),
        ("NVML version", short),
        ("DRIVER version", state.driver),
        ("CUDA Version", state.cuda),
    )
    return "".join(f"{name:<19} : {value}\n" for name, value in rows)


def _topology(state: State) -> str:
    gpus = state.gpus
    header = "\t" + "\t".join(f"GPU{gpu.index}" for gpu in gpus) + "\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\n"
    rows = [
        f"GPU{gpu.index}\t"
        + "\t".join(" X " if gpu is other else state.between(gpu, other)[0] for other in gpus)
        + f"\t0-63\t{state.node(gpu)}\t\tN/A\n"
        for gpu in gpus
    ]
    return header + "".join(rows) + _LEGEND


_LEGEND = """
Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NODE = Connection traversing PCIe as well as the interconnect between PCIe Host Bridges within a NUMA node
  PHB  = Connection traversing PCIe as well as a PCIe Host Bridge (typically the CPU)
  PXB  = Connection traversing multiple PCIe bridges (without traversing the PCIe Host Bridge)
  PIX  = Connection traversing at most a single PCIe bridge
  NV#  = Connection traversing a bonded set of # NVLinks
"""


def _p2p(state: State) -> str:
    gpus = state.gpus
    header = " \t" + "".join(f"GPU{gpu.index}\t" for gpu in gpus) + "\n"
    rows = [
        f" GPU{gpu.index}\t"
        + "".join(("X" if gpu is other else state.between(gpu, other)[1]) + "\t" for other in gpus)
        + "\n"
        for gpu in gpus
    ]
    return header + "".join(rows) + _P2P_LEGEND


_P2P_LEGEND = """
Legend:

  X    = Self
  OK   = Status Ok
  CNS  = Chipset not supported
  GNS  = GPU not supported
  TNS  = Topology not supported
  NS   = Not supported
  DR   = Disabled by regkey
  U    = Unknown
"""


def _boxed(text: str) -> str:
    return f"|{text:<89}|\n"


def _table(state: State, gpus: t.Sequence[Gpu]) -> str:
    edge = "+" + "-" * 89 + "+\n"
    rule = "|" + "=" * 41 + "+" + "=" * 24 + "+" + "=" * 22 + "|\n"
    line = "+" + "-" * 41 + "+" + "-" * 24 + "+" + "-" * 22 + "+\n"
    versions = f" NVIDIA-SMI {state.driver:<22} Driver Version: {state.driver:<14} CUDA Version: {state.cuda:<8}"
    text = time.strftime("%a %b %d %H:%M:%S %Y       \n") + edge + _boxed(versions) + line
    text += _cells("GPU  Name", "Persistence-M", "Bus-Id", "Disp.A", "Volatile Uncorr. ECC")
    text += _cells("Fan  Temp   Perf", "Pwr:Usage/Cap", "", "Memory-Usage", "GPU-Util  Compute M.")
    text += rule
    for gpu in gpus:
        text += _table_gpu(gpu) + line
    return text + "\n" + edge + _table_processes(gpus) + edge


def _cells(left: str, left_end: str, middle: str, middle_end: str, right: str) -> str:
    first = f" {left}{left_end:>{39 - len(left)}} "
    second = f" {middle}{middle_end:>{22 - len(middle)}} "
    return f"|{first}|{second}|{right:>21} |\n"


def _table_gpu(gpu: Gpu) -> str:
    fan = "N/A" if gpu.fan_percent is None else f"{gpu.fan_percent}%"
    power = f"{gpu.power_draw_w:.0f}W / {gpu.power_limit_w:.0f}W"
    memory = f"{gpu.memory_used_mib}MiB / {gpu.memory_total_mib}MiB"
    errors = str(gpu.ecc_uncorrected) if gpu.ecc == "Enabled" else "Off"
    persistence = "On" if gpu.persistence_mode == "Enabled" else "Off"
    return (
        _cells(f"{gpu.index:>3}  {gpu.name}", persistence, gpu.pci_bus_id, "Off", errors if gpu.ecc else "N/A")
        + _cells(
            f"{fan:<4} {gpu.temperature_c:>3}C    {gpu.performance_state}",
            power,
            "",
            memory,
            f"{gpu.utilization_percent:>3}%  {gpu.compute_mode.replace('Exclusive_', 'E. '):>12}",
        )
        + _cells("", "", "", "", gpu.mig or "N/A")
    )


def _table_processes(gpus: t.Sequence[Gpu]) -> str:
    text = _boxed(" Processes:") + _boxed(
        "  GPU   GI   CI              PID   Type   Process name                     GPU Memory"
    )
    rows = [(gpu, process) for gpu in gpus for process in gpu.processes]
    if not rows:
        return text + _boxed("  No running processes found")
    for gpu, process in rows:
        text += _boxed(
            f"  {gpu.index:>3}   N/A  N/A {process.pid:>16} {process.type:>6}   {process.name[:32]:<32} "
            f"{process.memory_mib:>7}MiB"
        )
    return text


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> t.NoReturn:
        raise Failed(1, f"Invalid combination of input arguments ({message}). Please run 'nvidia-smi -h' for help.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="nvidia-smi", allow_abbrev=False, description="Simulated: shows the GPUs of gpus.json.")
    parser.add_argument("-L", "--list-gpus", action="store_true")
    parser.add_argument("-q", "--query", action="store_true")
    parser.add_argument("-x", "--xml-format", action="store_true")
    parser.add_argument("-i", "--id")
    parser.add_argument("--query-gpu")
    parser.add_argument("--query-compute-apps")
    parser.add_argument("--format", default="")
    parser.add_argument("--help-query-gpu", action="store_true")
    parser.add_argument("--version", action="store_true")
    commands = parser.add_subparsers(dest="command")
    topology = commands.add_parser("topo")
    shown = topology.add_mutually_exclusive_group(required=True)
    shown.add_argument("-m", "--matrix", action="store_true")
    shown.add_argument("-p2p", "--p2pstatus", choices=("r", "w", "rw"))
    return parser


def settled(root: Path) -> State:
    """The state, once nothing hangs any more: a driver that hangs holds up whoever asks."""
    state = read(root)
    while state.hang:
        time.sleep(_POLL_SECONDS)
        state = read(root)
    return state


def _refuse_broken(state: State) -> None:
    if state.error == 9:
        raise Failed(9, NOT_LOADED)
    if state.error:
        version = ".".join(state.driver.split(".")[:2])
        raise Failed(
            18, f"Failed to initialize NVML: Driver/library version mismatch\nNVML library version: {version}\n"
        )
    if state.lost:
        raise Failed(
            15,
            "".join(
                f"Unable to determine the device handle for GPU{gpu.pci_bus_id[4:]}: GPU is lost.  Reboot the system "
                "to recover this GPU\n\n"
                for gpu in state.lost
            ),
        )
    if not state.gpus:
        raise Failed(6, "No devices were found\n")


def _selected(state: State, wanted: str | None) -> list[Gpu]:
    if wanted is None:
        return list(state.gpus)
    found = []
    for name in wanted.split(","):
        gpu = next((gpu for gpu in state.gpus if name in (str(gpu.index), gpu.uuid, gpu.pci_bus_id)), None)
        if gpu is None:
            raise Failed(6, f"No devices were found for {name}\n")
        found.append(gpu)
    return found


def _answer(root: Path, arguments: list[str]) -> str:
    options = _parser().parse_args(arguments)
    if options.help_query_gpu:
        return 'List of valid properties to query for the switch "--query-gpu":\n\n' + "".join(
            f'"{name}"\n' for name in FIELDS
        )
    state = settled(root)
    _refuse_broken(state)
    gpus = _selected(state, options.id)
    if options.query_gpu:
        rows = [(state, gpu) for gpu in gpus]
        return _csv(options.query_gpu.split(","), FIELDS, rows, options.format)
    if options.query_compute_apps:
        apps = [(gpu, process) for gpu in gpus for process in gpu.processes if "C" in process.type]
        return _csv(options.query_compute_apps.split(","), APP_FIELDS, apps, options.format)
    return _report(options, state, gpus)


def _report(options: argparse.Namespace, state: State, gpus: list[Gpu]) -> str:
    if options.query != options.xml_format:
        raise Failed(1, "The simulated nvidia-smi prints the full report as XML alone: use -q and -x together.\n")
    if options.query:
        return as_xml(state, gpus)
    if options.list_gpus:
        return _list(gpus)
    if options.command == "topo":
        return _topology(state) if options.matrix else _p2p(state)
    return _versions(state) if options.version else _table(state, gpus)


def main(root: Path, arguments: list[str]) -> int:
    try:
        sys.stdout.write(_answer(root, arguments))
    except Failed as failure:
        sys.stdout.write(str(failure))
        return failure.status
    return 0
