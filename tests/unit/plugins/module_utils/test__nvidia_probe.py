# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import ctypes
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia as nv
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_probe as probe
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"
MIB = 2**20
SMI = "/usr/bin/nvidia-smi"
MISMATCH = "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 535.161\n"
OPEN_MODULE = (
    "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (dvs-builder@U22-I3)  "
    "Tue Sep 23 10:11:16 UTC 2025\nGCC version:  gcc version 13.3.0\n"
)


def fixture(name: str) -> str:
    return (FIXTURES / name).read_text(encoding="utf-8")


class Commands:
    """A runner that answers by the words of a command; everything else is as a missing program."""

    def __init__(self, answers: dict[str, CommandResult]) -> None:
        self.answers = answers
        self.calls: list[str] = []

    def __call__(self, argv: Sequence[str], timeout: float) -> CommandResult:
        line = " ".join(argv)
        self.calls.append(line)
        for words, answer in self.answers.items():
            if words in line:
                return answer
        return CommandResult(127, "", f"{argv[0]}: No such file or directory")


def ok(text: str) -> CommandResult:
    return CommandResult(0, text, "")


def failed(rc: int, out: str = "", err: str = "") -> CommandResult:
    return CommandResult(rc, out, err)


TIMED_OUT = CommandResult(124, "", "", timed_out=True)


def make_host(root: Path, *tools: str, nvml: Any = None, **files: str) -> probe.Host:
    """A host whose files lie under ``root``; a path's ``/`` is written ``__`` in the keywords."""
    for name, text in files.items():
        path = root / name.replace("__", "/").lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    found = {tool: f"/usr/bin/{tool}" for tool in tools}
    return probe.Host(root=str(root), find=found.get, load_nvml=lambda: nvml)


def add_pci_device(root: Path, address: str, vendor: str, device_class: str) -> None:
    device = root / "sys/bus/pci/devices" / address
    device.mkdir(parents=True)
    (device / "vendor").write_text(vendor + "\n", encoding="utf-8")
    (device / "class").write_text(device_class + "\n", encoding="utf-8")


def gather(run: probe.Runner, host: probe.Host, **options: Any) -> nv.Facts:
    options.setdefault("with_containers", False)
    facts = probe.gather(run, host=host, timeout=5, **options)
    json.dumps(facts)
    return cast("nv.Facts", facts)


# -- running commands


def _sleep() -> None:
    time.sleep(60)


def _crash() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise() -> None:
    raise ValueError("no good")


def _exit() -> None:
    sys.exit(7)


def test_isolated_gives_the_value() -> None:
    value = {"text": "x" * 200_000, "none": None}
    assert probe.isolated(lambda: value, 30) == (value, False, None)


def test_isolated_ends_what_hangs() -> None:
    start = time.monotonic()
    assert probe.isolated(_sleep, 0.3) == (None, True, None)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (_crash, "without an answer"),
        (_raise, "ValueError: no good"),
        (_exit, "without an answer"),
        (object, "TypeError"),
    ],
)
def test_isolated_survives_what_fails(function: Callable[[], Any], expected: str) -> None:
    end = probe.isolated(function, 30)
    assert end.value is None
    assert not end.timed_out
    assert expected in str(end.error)


# -- hosts without facts


def test_a_host_without_gpus(tmp_path: Path) -> None:
    facts = gather(Commands({}), make_host(tmp_path))
    assert facts["gpus"] == []
    assert facts["source"] == "none"
    assert facts["reason_code"] == "nvidia.no_gpu"
    assert facts["remedy"]
    assert facts["container"] is None
    assert facts["library_version_mismatch"] is False


def test_a_gpu_without_a_driver(tmp_path: Path) -> None:
    add_pci_device(tmp_path, "0000:19:00.0", "0x10de", "0x030200")
    add_pci_device(tmp_path, "0000:1a:00.0", "0x10de", "0x068000")
    add_pci_device(tmp_path, "0000:00:02.0", "0x8086", "0x030000")
    facts = gather(Commands({}), make_host(tmp_path))
    assert facts["pci_devices"] == ["0000:19:00.0"]
    assert facts["reason_code"] == "nvidia.no_driver"
    assert "0000:19:00.0" in str(facts["reason"])


def test_a_driver_without_nvidia_smi(tmp_path: Path) -> None:
    facts = gather(Commands({}), make_host(tmp_path, __proc__driver__nvidia__version=OPEN_MODULE))
    assert facts["reason_code"] == "nvidia.no_smi"
    assert facts["driver_version"] == facts["kernel_module_version"] == "580.95.05"
    assert facts["kernel_module_type"] == "open"


@pytest.mark.parametrize(
    ("answer", "code"),
    [
        (
            failed(12, err="NVIDIA-SMI couldn't find libnvidia-ml.so library in your system.\n"),
            "nvidia.library_missing",
        ),
        (
            failed(9, "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n"),
            "nvidia.driver_not_loaded",
        ),
        (failed(255, "Failed to initialize NVML: Unknown Error\n"), "nvidia.nvml_unknown_error"),
        (failed(6, "No devices were found\n"), "nvidia.no_devices"),
        (failed(0, "No devices were found\n"), "nvidia.no_devices"),
        (
            failed(15, "Unable to determine the device handle for GPU 0000:02:00.0: GPU is lost.  Reboot the system\n"),
            "nvidia.gpu_lost",
        ),
        (failed(139, ""), "nvidia.smi_failed"),
        (failed(0, ""), "nvidia.smi_failed"),
        (failed(0, "<nvidia_smi_log><gpu>"), "nvidia.smi_output"),
        (failed(127, err="/usr/bin/nvidia-smi: Permission denied"), "nvidia.smi_failed"),
    ],
)
def test_nvidia_smi_that_fails(tmp_path: Path, answer: CommandResult, code: str) -> None:
    facts = gather(Commands({"-q -x": answer}), make_host(tmp_path, "nvidia-smi"))
    assert facts["gpus"] == []
    assert facts["source"] == "none"
    assert facts["reason_code"] == code
    assert facts["reason"]
    assert facts["remedy"]


def test_version_mismatch(tmp_path: Path) -> None:
    host = make_host(tmp_path, "nvidia-smi", __proc__driver__nvidia__version=OPEN_MODULE)
    facts = gather(Commands({"-q -x": failed(18, MISMATCH)}), host)
    assert facts["library_version_mismatch"] is True
    assert facts["library_version"] == "535.161"
    assert facts["driver_version"] == "580.95.05"
    assert facts["reason_code"] == "nvidia.version_mismatch"


def test_nvidia_smi_that_hangs(tmp_path: Path) -> None:
    run = Commands({"-q -x": TIMED_OUT})
    facts = gather(run, make_host(tmp_path, "nvidia-smi"))
    assert facts["reason_code"] == "nvidia.hung"
    assert "within 5 s" in str(facts["reason"])
    assert run.calls == [f"{SMI} -q -x"]


# -- nvidia-smi


def test_facts_from_nvidia_smi(tmp_path: Path) -> None:
    run = Commands(
        {
            "-q -x": ok(fixture("h200-580.xml")),
            "--query-gpu=index,uuid,compute_cap --format=csv,noheader": ok(
                "".join(f"{index}, GPU-a0000009-0000-4000-8000-00000000000{index + 1}, 9.0\n" for index in range(3))
            ),
        }
    )
    facts = gather(run, make_host(tmp_path, "nvidia-smi", __proc__driver__nvidia__version=OPEN_MODULE))
    assert facts["source"] == "nvidia-smi"
    assert facts["reason"] is None
    assert facts["problems"] == []
    assert facts["driver_version"] == "580.95.05"
    assert facts["cuda_version"] == "13.0"
    assert facts["library_version_mismatch"] is False
    assert [gpu["compute_capability"] for gpu in facts["gpus"]] == ["9.0"] * 3
    assert [gpu["throttle"] for gpu in facts["gpus"]] == [["sw_power_cap"], [], []]
    assert [gpu["temperature_limit_c"] for gpu in facts["gpus"]] == [89] * 3
    # No MIG device: nvidia-smi -L would tell nothing new.
    assert {call.split(" ", 1)[1] for call in run.calls[1:]} == {
        "--query-gpu=index,uuid,compute_cap --format=csv,noheader", "topo -m", "topo -p2p r",
    }  # fmt: skip


def test_mig_devices_need_the_list(tmp_path: Path) -> None:
    run = Commands({"-q -x": ok(fixture("a100-mig-535.xml")), " -L": ok(fixture("smi-list-a100-mig-535.txt"))})
    facts = gather(run, make_host(tmp_path, "nvidia-smi"))
    assert facts["gpus"][0]["mig"]["devices"][3]["uuid"] == "MIG-b0000004-0000-5000-8000-000000000003"
    assert facts["gpus"][0]["mig"]["devices"][3]["name"] == "1g.20gb"


def test_a_driver_without_compute_capability(tmp_path: Path) -> None:
    run = Commands(
        {
            "-q -x": ok(fixture("v100-470.xml")),
            "--query-gpu": failed(2, 'Field "compute_cap" is not a valid field to query.\n'),
        }
    )
    facts = gather(run, make_host(tmp_path, "nvidia-smi"))
    assert facts["gpus"][0]["compute_capability"] is None
    assert facts["reason"] is None
    assert "compute_cap" in facts["problems"][0]


def test_a_given_nvidia_smi_is_used(tmp_path: Path) -> None:
    run = Commands({"/run/nvidia/driver/usr/bin/nvidia-smi -q -x": ok(fixture("t4-515.xml"))})
    facts = gather(run, make_host(tmp_path, "nvidia-smi"), nvidia_smi="/run/nvidia/driver/usr/bin/nvidia-smi")
    assert len(facts["gpus"]) == 1


def test_a_lost_gpu_among_good_ones(tmp_path: Path) -> None:
    text = fixture("h100-535.xml").replace("<attached_gpus>2<", "<attached_gpus>3<")
    facts = gather(Commands({"-q -x": ok(text)}), make_host(tmp_path, "nvidia-smi"))
    assert len(facts["gpus"]) == 2
    assert facts["reason_code"] == "nvidia.gpu_unreachable"
    assert "counts 3 GPUs" in str(facts["reason"])


def test_a_report_without_gpus(tmp_path: Path) -> None:
    text = "<nvidia_smi_log><driver_version>580.95.05</driver_version><attached_gpus>0</attached_gpus></nvidia_smi_log>"
    facts = gather(Commands({"-q -x": ok(text)}), make_host(tmp_path, "nvidia-smi"))
    assert facts["reason_code"] == "nvidia.no_devices"
    assert facts["driver_version"] == "580.95.05"


def test_a_report_with_a_complaint(tmp_path: Path) -> None:
    text = fixture("t4-515.xml") + "WARNING: infoROM is corrupted at gpu 0000:00:1E.0\n"
    facts = gather(Commands({"-q -x": failed(14, text)}), make_host(tmp_path, "nvidia-smi"))
    assert len(facts["gpus"]) == 1
    assert any("infoROM is corrupted" in problem for problem in facts["problems"])


def test_a_process_name_is_no_diagnosis(tmp_path: Path) -> None:
    text = fixture("h200-580.xml").replace("VLLM::Worker_TP0", "No devices were found")
    facts = gather(Commands({"-q -x": ok(text)}), make_host(tmp_path, "nvidia-smi"))
    assert facts["reason"] is None


def test_a_library_that_is_not_the_modules(tmp_path: Path) -> None:
    host = make_host(tmp_path, "nvidia-smi", __proc__driver__nvidia__version=OPEN_MODULE)
    facts = gather(Commands({"-q -x": ok(fixture("h100-535.xml"))}), host)
    assert facts["library_version_mismatch"] is True
    assert any("reboot or reload" in problem for problem in facts["problems"])


def test_gpus_that_are_not_asked_for(tmp_path: Path) -> None:
    run = Commands({"-q -x": ok(fixture("h100-535.xml"))})
    facts = gather(run, make_host(tmp_path, "nvidia-smi"), with_gpus=False)
    assert facts["gpus"] == []
    assert facts["reason"] is None
    assert run.calls == []


# -- NVML


class NvmlError(Exception):
    """As nvidia-ml-py's: a subclass for each code, with the code as ``value``."""

    TEXTS = {
        3: "Not Supported",
        6: "Not Found",
        9: "Driver Not Loaded",
        12: "NVML Shared Library Not Found",
        13: "Function Not Found",
        15: "GPU is lost",
        18: "RM has detected an NVML/RM version mismatch.",
        999: "Unknown Error",
    }

    def __init__(self, value: int) -> None:
        super().__init__(self.TEXTS[value])
        self.value = value


class FabricInfo(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint), ("status", ctypes.c_uint), ("state", ctypes.c_uint)]


def process(pid: int, memory: int | None, instance: int = 0xFFFFFFFF) -> SimpleNamespace:
    return SimpleNamespace(pid=pid, usedGpuMemory=memory, gpuInstanceId=instance, computeInstanceId=instance)


def raiser(value: int) -> Callable[..., Any]:
    def call(*_arguments: Any) -> Any:
        raise NvmlError(value)

    return call


class FakeNvml:
    """A function table in the form of the pynvml module. Handles are names: ``gpu0``, ``gpu0/mig1``."""

    nvmlMemory_v2 = 0x02000028
    c_nvmlGpuFabricInfoV_t = FabricInfo

    def __init__(self, handles: Sequence[str], values: dict[str, dict[str, Any]]) -> None:
        self.handles = handles
        self.values = values
        self.shut_down = False

    def nvmlInit(self) -> None:
        pass

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlDeviceGetCount(self) -> int:
        return len(self.handles)

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:
        if self.handles[index] == "lost":
            raise NvmlError(15)
        return self.handles[index]

    def nvmlSystemGetDriverVersion(self) -> str:
        return "580.95.05"

    def nvmlSystemGetNVMLVersion(self) -> str:
        return "13.580.95.05"

    def nvmlSystemGetCudaDriverVersion(self) -> int:
        return 13000

    def nvmlSystemGetProcessName(self, pid: int) -> bytes:
        if pid == 404:
            raise NvmlError(6)
        return f"/opt/process-{pid} --api-key EXAMPLE-NOT-A-KEY".encode()

    def nvmlErrorString(self, status: int) -> str:
        return "Success" if status == 0 else NvmlError.TEXTS[status]

    def nvmlDeviceGetMigDeviceHandleByIndex(self, handle: str, index: int) -> str:
        name = f"{handle}/mig{index}"
        if name not in self.values:
            raise NvmlError(6)
        return name

    def nvmlDeviceGetGpuFabricInfoV(self, handle: str, reference: Any) -> int:
        state = self.values[handle].get("fabric")
        if state is None:
            raise NvmlError(3)
        reference._obj.state, reference._obj.status = state
        return 0

    def nvmlDeviceGetMemoryInfo(self, handle: str, version: int | None = None) -> Any:
        total, used = self.values[handle]["memory"]
        return SimpleNamespace(total=total, used=used, free=total - used)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if not name.startswith("nvmlDeviceGet"):
            raise AttributeError(name)

        def call(handle: str, *_arguments: Any) -> Any:
            if name not in self.values[handle]:
                raise NvmlError(3)
            return self.values[handle][name]

        return call


H200 = {
    "memory": (143771 * MIB, 613 * MIB),
    "fabric": (3, 0),
    "nvmlDeviceGetUUID": "GPU-a0000009-0000-4000-8000-000000000001",
    "nvmlDeviceGetName": "NVIDIA H200",
    "nvmlDeviceGetSerial": "0000000000109",
    "nvmlDeviceGetPciInfo": SimpleNamespace(busId="00000000:19:00.0"),
    "nvmlDeviceGetCudaComputeCapability": (9, 0),
    "nvmlDeviceGetComputeMode": 0,
    "nvmlDeviceGetPersistenceMode": 1,
    "nvmlDeviceGetMigMode": [0, 0],
    "nvmlDeviceGetEccMode": [1, 1],
    "nvmlDeviceGetTotalEccErrors": 4,
    "nvmlDeviceGetRemappedRows": (0, 2, 1, 0),
    "nvmlDeviceGetCurrPcieLinkGeneration": 5,
    "nvmlDeviceGetMaxPcieLinkGeneration": 5,
    "nvmlDeviceGetCurrPcieLinkWidth": 16,
    "nvmlDeviceGetMaxPcieLinkWidth": 16,
    "nvmlDeviceGetTemperature": 41,
    "nvmlDeviceGetTemperatureThreshold": 89,
    "nvmlDeviceGetCurrentClocksEventReasons": 0x4,
    "nvmlDeviceGetPowerManagementDefaultLimit": 700000,
    "nvmlDeviceGetPowerUsage": 118040,
    "nvmlDeviceGetEnforcedPowerLimit": 700000,
    "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=97, memory=41),
    "nvmlDeviceGetComputeRunningProcesses": [process(20481, 9110 * MIB), process(404, None)],
    "nvmlDeviceGetGraphicsRunningProcesses": [process(20481, 9110 * MIB), process(77, 5 * MIB)],
    "nvmlDeviceGetMPSComputeRunningProcesses": [process(88, 1 * MIB)],
}


def answer(binding: FakeNvml) -> tuple[nv.DriverReport, list[str]]:
    found = probe.query_nvml(binding)
    assert found.report is not None
    assert binding.shut_down
    return found.report, found.faults


def test_everything_nvml_knows() -> None:
    report, faults = answer(FakeNvml(["gpu0"], {"gpu0": H200}))
    assert faults == []
    assert report["driver_version"] == "580.95.05"
    assert report["library_version"] == "13.580.95.05"
    assert report["cuda_version"] == "13.0"
    assert report["gpus"] == [
        {
            "index": 0,
            "uuid": "GPU-a0000009-0000-4000-8000-000000000001",
            "name": "NVIDIA H200",
            "serial": "0000000000109",
            "pci_bus_id": "00000000:19:00.0",
            "memory_total_bytes": 143771 * MIB,
            "memory_used_bytes": 613 * MIB,
            "memory_free_bytes": 143158 * MIB,
            "compute_capability": "9.0",
            "compute_mode": "default",
            "persistence_mode": "enabled",
            "mig": {"current": "disabled", "pending": "disabled", "devices": []},
            "ecc": {
                "mode": "enabled",
                "uncorrected_volatile": 4,
                "remapped_rows": {"pending": True, "failure": False},
                "retired_pages_pending": None,
            },
            "pcie": {"gen": {"current": 5, "max": 5}, "width": {"current": 16, "max": 16}},
            "temperature_c": 41,
            "temperature_limit_c": 89,
            "numa_node": None,
            "throttle": ["sw_power_cap"],
            "power": {"draw_w": 118.04, "limit_w": 700.0, "default_limit_w": 700.0},
            "utilization": {"gpu_percent": 97, "memory_percent": 41},
            "fabric": {"state": "completed", "status": "success"},
            "processes": [
                {
                    "pid": 77,
                    "name": "/opt/process-77",
                    "memory_used_bytes": 5 * MIB,
                    "type": "G",
                    "gpu_instance_id": None,
                },
                {
                    "pid": 88,
                    "name": "/opt/process-88",
                    "memory_used_bytes": 1 * MIB,
                    "type": "M+C",
                    "gpu_instance_id": None,
                },
                {"pid": 404, "name": None, "memory_used_bytes": None, "type": "C", "gpu_instance_id": None},
                {
                    "pid": 20481,
                    "name": "/opt/process-20481",
                    "memory_used_bytes": 9110 * MIB,
                    "type": "C+G",
                    "gpu_instance_id": None,
                },
            ],
        }
    ]


def test_what_a_gpu_does_not_support_is_none() -> None:
    report, faults = answer(FakeNvml(["gpu0"], {"gpu0": {"memory": (24576 * MIB, 0)}}))
    expected = nv.empty_gpu(0)
    expected["memory_total_bytes"] = expected["memory_free_bytes"] = 24576 * MIB
    expected["memory_used_bytes"] = 0
    assert report["gpus"] == [expected]
    assert faults == []


def test_mig_through_nvml() -> None:
    mig = {
        "memory": (9984 * MIB, 22 * MIB),
        "nvmlDeviceGetUUID": "MIG-b0000010-0000-5000-8000-000000000001",
        "nvmlDeviceGetName": "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "nvmlDeviceGetGpuInstanceId": 9,
        "nvmlDeviceGetComputeInstanceId": 0,
    }
    gpu = {
        **H200,
        "nvmlDeviceGetMigMode": [1, 0],
        "nvmlDeviceGetMaxMigDeviceCount": 7,
        "nvmlDeviceGetComputeRunningProcesses": [process(5, 1, instance=9)],
        "nvmlDeviceGetGraphicsRunningProcesses": [],
        "nvmlDeviceGetMPSComputeRunningProcesses": [],
    }
    report, _faults = answer(FakeNvml(["gpu0"], {"gpu0": gpu, "gpu0/mig2": mig}))
    assert report["gpus"][0]["mig"] == {
        "current": "enabled",
        "pending": "disabled",
        "devices": [
            {
                "index": 2,
                "uuid": "MIG-b0000010-0000-5000-8000-000000000001",
                "name": "1g.10gb",
                "gpu_instance_id": 9,
                "compute_instance_id": 0,
                "memory_total_bytes": 9984 * MIB,
                "memory_used_bytes": 22 * MIB,
            }
        ],
    }
    assert report["gpus"][0]["processes"][0]["gpu_instance_id"] == 9


def test_a_lost_gpu_keeps_the_index_of_the_others() -> None:
    report, faults = answer(FakeNvml(["lost", "gpu1"], {"gpu1": H200}))
    assert [gpu["index"] for gpu in report["gpus"]] == [1]
    assert report["attached"] == 2
    assert faults == ["GPU 0: GPU is lost"]


def test_a_gpu_that_is_lost_between_two_questions() -> None:
    binding = FakeNvml(["gpu0"], {"gpu0": H200})
    binding.nvmlDeviceGetTemperature = binding.nvmlDeviceGetPowerUsage = raiser(15)  # type: ignore[attr-defined]
    report, faults = answer(binding)
    assert report["gpus"][0]["temperature_c"] is None
    assert faults == ["GPU 0: GPU is lost"]


def test_an_old_library_under_a_new_binding(monkeypatch: pytest.MonkeyPatch) -> None:
    binding = FakeNvml(["gpu0"], {"gpu0": {**H200, "nvmlDeviceGetComputeRunningProcesses_v2": [process(1, 1)]}})
    for name in ("nvmlDeviceGetComputeRunningProcesses", "nvmlDeviceGetComputeRunningProcesses_v3"):
        setattr(binding, name, raiser(13))
    monkeypatch.setattr(FakeNvml, "nvmlMemory_v2", None)
    monkeypatch.setattr(FakeNvml, "c_nvmlGpuFabricInfoV_t", None)
    report, _faults = answer(binding)
    assert 1 in [process["pid"] for process in report["gpus"][0]["processes"]]
    assert report["gpus"][0]["memory_total_bytes"] == 143771 * MIB
    assert report["gpus"][0]["fabric"] == {"state": None, "status": None}


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ((0, 3), {"state": None, "status": None}),
        ((2, 0), {"state": "in_progress", "status": "success"}),
        ((3, 999), {"state": "completed", "status": None}),
    ],
)
def test_fabric_states(state: tuple[int, int], expected: dict[str, str | None]) -> None:
    report, _faults = answer(FakeNvml(["gpu0"], {"gpu0": {**H200, "fabric": state}}))
    assert report["gpus"][0]["fabric"] == expected


def test_nvml_is_preferred(tmp_path: Path) -> None:
    run = Commands({})
    host = make_host(tmp_path, "nvidia-smi", nvml=FakeNvml(["gpu0"], {"gpu0": H200}))
    facts = gather(run, host)
    assert facts["source"] == "nvml"
    assert facts["library_version"] == "13.580.95.05"
    assert facts["gpus"][0]["fabric"]["state"] == "completed"
    assert facts["reason"] is None
    assert run.calls == []


def test_nvml_and_the_module_agree(tmp_path: Path) -> None:
    nvml = FakeNvml(["gpu0"], {"gpu0": H200})
    facts = gather(Commands({}), make_host(tmp_path, nvml=nvml, __proc__driver__nvidia__version=OPEN_MODULE))
    assert facts["library_version_mismatch"] is False
    assert facts["problems"] == []


def test_nvml_reports_the_lost_gpu(tmp_path: Path) -> None:
    facts = gather(Commands({}), make_host(tmp_path, nvml=FakeNvml(["lost", "gpu1"], {"gpu1": H200})))
    assert facts["source"] == "nvml"
    assert len(facts["gpus"]) == 1
    assert facts["reason_code"] == "nvidia.gpu_lost"
    assert facts["problems"] == ["GPU 0: GPU is lost."]


def test_without_the_library_nvidia_smi_is_asked(tmp_path: Path) -> None:
    nvml = FakeNvml([], {})
    nvml.nvmlInit = raiser(12)  # type: ignore[method-assign]
    run = Commands(
        {"-q -x": ok(fixture("t4-515.xml")), "--query-gpu": ok("0, GPU-a0000002-0000-4000-8000-000000000001, 7.5")}
    )
    facts = gather(run, make_host(tmp_path, "nvidia-smi", nvml=nvml))
    assert facts["source"] == "nvidia-smi"
    assert facts["reason"] is None
    assert facts["gpus"][0]["compute_capability"] == "7.5"
    assert facts["problems"] == [
        "NVML through nvidia-ml-py failed (NVML Shared Library Not Found): falling back to nvidia-smi."
    ]


@pytest.mark.parametrize(
    ("code", "kernel", "expected"),
    [
        (12, "", "nvidia.no_gpu"),
        (9, "", "nvidia.no_gpu"),
        (999, OPEN_MODULE, "nvidia.nvml_unknown_error"),
        (18, OPEN_MODULE, "nvidia.version_mismatch"),
        (3, OPEN_MODULE, "nvidia.no_smi"),
    ],
)
def test_nvml_that_cannot_start(tmp_path: Path, code: int, kernel: str, expected: str) -> None:
    nvml = FakeNvml([], {})
    nvml.nvmlInit = raiser(code)  # type: ignore[method-assign]
    facts = gather(Commands({}), make_host(tmp_path, nvml=nvml, __proc__driver__nvidia__version=kernel))
    assert facts["gpus"] == []
    assert facts["reason_code"] == expected
    assert facts["library_version_mismatch"] is (code == 18)


def test_nvml_that_hangs_is_not_followed_by_nvidia_smi(tmp_path: Path) -> None:
    nvml = FakeNvml([], {})
    nvml.nvmlInit = _sleep  # type: ignore[method-assign]
    run = Commands({"-q -x": ok(fixture("t4-515.xml"))})
    facts = probe.gather(run, with_containers=False, timeout=0.3, host=make_host(tmp_path, "nvidia-smi", nvml=nvml))
    assert facts["reason_code"] == "nvidia.hung"
    assert facts["source"] == "none"
    assert run.calls == []


def test_nvml_that_crashes_is_followed_by_nvidia_smi(tmp_path: Path) -> None:
    nvml = FakeNvml([], {})
    nvml.nvmlInit = _crash  # type: ignore[method-assign]
    facts = gather(
        Commands({"-q -x": ok(fixture("t4-515.xml"))}),
        make_host(tmp_path, "nvidia-smi", nvml=nvml),
    )
    assert facts["source"] == "nvidia-smi"


def test_a_foreign_module_called_pynvml(tmp_path: Path) -> None:
    facts = gather(Commands({}), make_host(tmp_path, nvml=SimpleNamespace()))
    assert facts["reason_code"] == "nvidia.no_gpu"


def test_load_nvml_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert probe.load_nvml() is None


def test_load_nvml_with_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    module = SimpleNamespace()
    monkeypatch.setitem(sys.modules, "pynvml", module)
    assert probe.load_nvml() is module


# -- containers


def docker_answers(name: str, **more: CommandResult) -> dict[str, CommandResult]:
    return {
        "docker version": ok(fixture(f"docker-{name}-version.json")),
        "docker info": ok(fixture(f"docker-{name}-info.json")),
        **more,
    }


def containers(run: probe.Runner, host: probe.Host) -> tuple[nv.Container, list[str]]:
    facts = gather(run, host, with_gpus=False, with_containers=True)
    assert facts["container"] is not None
    return facts["container"], facts["problems"]


def test_docker_with_everything(tmp_path: Path) -> None:
    run = Commands(
        {
            **docker_answers("28.5"),
            "nvidia-ctk --version": ok("NVIDIA Container Toolkit CLI version 1.17.8\ncommit: f202b80\n"),
        }
    )
    host = make_host(
        tmp_path,
        "docker",
        "nvidia-ctk",
        "nvidia-container-runtime",
        "nvidia-container-runtime-hook",
        __var__run__cdi__nvidia_yaml=fixture("cdi-nvidia-ctk-1.17.yaml"),
    )
    (tmp_path / "var/run/cdi/nvidia_yaml").rename(tmp_path / "var/run/cdi/nvidia.yaml")
    os.utime(tmp_path / "var/run/cdi/nvidia.yaml", (1_700_000_000, 1_700_000_000))
    found, problems = containers(run, host)
    assert found["toolkit"] == {
        "installed": True,
        "version": "1.17.8",
        "nvidia_ctk": "/usr/bin/nvidia-ctk",
        "runtime": "/usr/bin/nvidia-container-runtime",
        "runtime_hook": "/usr/bin/nvidia-container-runtime-hook",
    }
    assert found["docker"]["installed"] is True
    assert found["docker"]["running"] is True
    assert found["docker"]["error"] is None
    assert found["compose"] == {
        "installed": True,
        "version": "2.40.1",
        "path": "/usr/libexec/docker/cli-plugins/docker-compose",
        "plugin": True,
    }
    assert found["cdi"]["enabled_in_docker"] is True
    assert found["cdi"]["spec_dirs"] == ["/etc/cdi", "/var/run/cdi"]
    assert len(found["cdi"]["docker_devices"]) == 5
    assert [spec["path"] for spec in found["cdi"]["specs"]] == ["/var/run/cdi/nvidia.yaml"]
    assert found["cdi"]["specs"][0]["mtime"] == 1_700_000_000
    assert found["cdi"]["specs"][0]["devices"][0] == "nvidia.com/gpu=0"
    assert problems == []


def test_nothing_is_installed(tmp_path: Path) -> None:
    run = Commands({})
    found, problems = containers(run, make_host(tmp_path))
    assert found["docker"] == nv.empty_docker()
    assert found["toolkit"]["installed"] is False
    assert found["compose"]["installed"] is False
    assert dict(found["cdi"]) == {
        "enabled_in_docker": None,
        "spec_dirs": ["/etc/cdi", "/var/run/cdi"],
        "specs": [],
        "docker_devices": [],
        "newest_mtime": None,
    }
    assert problems == []
    assert run.calls == []


@pytest.mark.parametrize(
    ("error", "running"),
    [
        ("Cannot connect to the Docker daemon at unix:///var/run/docker.sock. Is the docker daemon running?\n", False),
        (
            "permission denied while trying to connect to the Docker daemon socket at unix:///var/run/docker.sock\n",
            None,
        ),
    ],
)
def test_docker_without_a_server(tmp_path: Path, error: str, running: bool | None) -> None:
    run = Commands(
        {
            "docker version": failed(1, fixture("docker-28.2-no-server-version.json"), error),
            "docker info": failed(1, fixture("docker-28.2-no-server-info.json"), error),
        }
    )
    found, problems = containers(run, make_host(tmp_path, "docker"))
    assert found["docker"]["installed"] is True
    assert found["docker"]["running"] is running
    assert found["docker"]["client_version"] == "28.2.2"
    assert problems == [found["docker"]["error"]]
    assert found["cdi"]["enabled_in_docker"] is None
    assert found["compose"]["installed"] is False


@pytest.mark.parametrize("which", ["docker version", "docker info"])
def test_docker_that_hangs(tmp_path: Path, which: str) -> None:
    run = Commands({**docker_answers("26.1"), which: TIMED_OUT})
    found, problems = containers(run, make_host(tmp_path, "docker"))
    assert "no answer within 5 s" in str(found["docker"]["error"])
    assert found["docker"]["running"] is None
    assert len(problems) == 1


def test_compose_stand_alone(tmp_path: Path) -> None:
    run = Commands({**docker_answers("20.10"), "docker-compose version --short": ok("1.29.2\n")})
    found, _problems = containers(run, make_host(tmp_path, "docker", "docker-compose"))
    assert found["compose"] == {
        "installed": True,
        "version": "1.29.2",
        "path": "/usr/bin/docker-compose",
        "plugin": False,
    }


def test_compose_where_docker_info_says_nothing(tmp_path: Path) -> None:
    run = Commands({"docker compose version --short": ok("v2.24.5\n"), "docker info": failed(1, "")})
    found, _problems = containers(run, make_host(tmp_path, "docker"))
    assert found["compose"] == {"installed": True, "version": "2.24.5", "path": None, "plugin": True}


def test_podman_is_no_broken_docker(tmp_path: Path) -> None:
    client = '{"Client": {"APIVersion": "4.9.3", "Version": "4.9.3", "OsArch": "linux/amd64", "Os": "linux"}}'
    run = Commands({"docker version": ok(client), "docker info": ok('{"host": {}, "version": {}}')})
    found, problems = containers(run, make_host(tmp_path, "docker"))
    assert found["docker"]["podman"] is True
    assert found["docker"]["running"] is None
    assert found["docker"]["error"] is None
    assert problems == []


def test_an_old_toolkit_has_only_a_hook(tmp_path: Path) -> None:
    run = Commands(
        {
            "nvidia-container-toolkit --version": failed(2, err="flag provided but not defined: -version"),
            "nvidia-container-cli --version": ok("cli-version: 1.8.1\nlib-version: 1.8.1\n"),
        }
    )
    found, _problems = containers(run, make_host(tmp_path, "nvidia-container-toolkit", "nvidia-container-cli"))
    assert found["toolkit"] == {
        "installed": True,
        "version": "1.8.1",
        "nvidia_ctk": None,
        "runtime": None,
        "runtime_hook": "/usr/bin/nvidia-container-toolkit",
    }


def test_cdi_files_of_every_kind(tmp_path: Path) -> None:
    cdi = tmp_path / "etc/cdi"
    cdi.mkdir(parents=True)
    (cdi / "a.json").write_text(fixture("cdi-nvidia-ctk-1.17.json"), encoding="utf-8")
    (cdi / "b.yaml").write_bytes(b"\xff\xfe not a specification")
    (cdi / "c.txt").write_text("ignored", encoding="utf-8")
    (cdi / "d.json").symlink_to("missing")
    (cdi / "e.yaml").mkdir()
    (tmp_path / "var/run").mkdir(parents=True)
    # One directory under two names is read once.
    (tmp_path / "var/run/cdi").symlink_to(cdi)
    host = make_host(tmp_path, __proc__driver__nvidia__version=OPEN_MODULE)
    found, problems = containers(Commands({}), host)
    specs = found["cdi"]["specs"]
    assert [spec["path"] for spec in specs] == [f"/etc/cdi/{name}" for name in ("a.json", "b.yaml", "d.json", "e.yaml")]
    assert specs[0]["error"] is None
    assert "no kind" in str(specs[1]["error"])
    assert "No such file" in str(specs[2]["error"])
    assert "cannot be read" in str(specs[3]["error"])
    assert len(problems) == 1
    assert "575.57.08" in problems[0]
    assert "580.95.05" in problems[0]


def test_find_executable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = tmp_path / "nvidia-test-tool"
    tool.write_text("#!/bin/sh\n", encoding="utf-8")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert probe.find_executable("nvidia-test-tool") is None
    tool.chmod(0o755)
    assert probe.find_executable("nvidia-test-tool") == str(tool)
    # Also without a useful PATH.
    monkeypatch.setenv("PATH", "")
    assert probe.find_executable("sh")
