# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The simulated NVIDIA (tests/lab/nvidia_sim), seen by what reads the real one: nvidia-ml-py and the probe.

Its answers agree with each other and look like the recorded ones, and each fault is noticed.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import nvidia_sim
import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia import parse_cdi, parse_kernel_module

REPOSITORY = Path(__file__).parents[2]
FIXTURES = REPOSITORY / "tests/unit/plugins/module_utils/fixtures/nvidia"
HOSTNAME = "gpu-host-01"
H100 = {"model": "h100-80gb", "count": 3}
GIB = 2**30
PENDING = {"pending": True, "failure": False}
# In a process of its own: the loader finds libnvidia-ml.so.1 by a path that a process has from its start.
PROBE = """
import json, shutil, sys
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_probe as probe

root, containers, timeout, *sources = sys.argv[1:]

def gather(source):
    host = probe.Host(
        root=root,
        find=lambda name: shutil.which(name, path=root + "/usr/bin"),
        load_nvml=probe.load_nvml if source == "nvml" else lambda: None,
    )
    return probe.gather(with_containers=containers == "True", timeout=float(timeout), host=host)

print(json.dumps([gather(source) for source in sources]))
"""


class Ran(t.NamedTuple):
    rc: int
    out: str
    err: str


class Lab:
    """A host's file system with the simulation in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.data = root / "etc/gpusim/gpus.json"
        self.data.parent.mkdir(parents=True, exist_ok=True)

    def set(self, data: t.Mapping[str, t.Any]) -> nvidia_sim.State:
        whole = {"hostname": HOSTNAME, **data}
        self.data.write_text(json.dumps(whole))
        return nvidia_sim.expand(whole, HOSTNAME)

    def run(self, program: str, *arguments: str, given: str = "", path: str = "") -> Ran:
        command = [str(self.root / program if "/" in program else self.root / "usr/bin" / program), *arguments]
        environment = {**os.environ, "PATH": path or os.environ["PATH"]}
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=20, env=environment
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    def gather(self, *sources: str, containers: bool = False, timeout: float = 20) -> list[dict[str, t.Any]]:
        """The facts as the collection's probe gathers them, with NVIDIA's binding (nvml) or without one (smi)."""
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(self.root / f"usr/lib/{platform.machine()}-linux-gnu"),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY / ".venv/collections"), str(nvidia_sim.binding())]),
        }
        command = [sys.executable, "-c", PROBE, str(self.root), str(containers), str(timeout), *sources]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=30, env=environment)
        facts: list[dict[str, t.Any]] = json.loads(done.stdout)
        return facts

    def facts(self, source: str, *, containers: bool = False, timeout: float = 20) -> dict[str, t.Any]:
        return self.gather(source, containers=containers, timeout=timeout)[0]

    def apply(self) -> None:
        assert self.run("gpusim", "apply").rc == 0

    def csv(self, fields: str) -> list[list[str]]:
        done = self.run("nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader,nounits")
        assert done.rc == 0, done
        return [line.split(", ") for line in done.out.splitlines()]

    def bundle(self, *environment: str) -> str:
        """An OCI bundle as Docker makes it; what the runtime gives a hook on standard input."""
        directory = self.root / "run/bundle"
        directory.mkdir(parents=True, exist_ok=True)
        config = {
            "ociVersion": "1.0.2-dev",
            "process": {"user": {"uid": 0, "gid": 0}, "args": ["serve"], "env": ["PATH=/usr/bin:/bin", *environment]},
            "root": {"path": "/var/lib/docker/overlay2/0f/merged"},
            "hostname": "f3b6a1d20c57",
        }
        (directory / "config.json").write_text(json.dumps(config))
        state = {
            "ociVersion": "1.0.2-dev",
            "id": "f3b6a1d20c57e84c",
            "status": "creating",
            "pid": 4711,
            "bundle": str(directory),
        }
        return json.dumps(state)

    def hook(self, *environment: str) -> Ran:
        return self.run("nvidia-container-runtime-hook", "prestart", given=self.bundle(*environment))

    def records(self) -> list[dict[str, t.Any]]:
        path = self.root / "var/lib/gpusim/hook.jsonl"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Installed, and compiled to byte code by a first use."""
    root = tmp_path_factory.mktemp("installed")
    nvidia_sim.install(root, python=sys.executable)
    lab = Lab(root)
    lab.set(H100)
    for program in ("nvidia-smi", "nvidia-ctk", "gpusim"):
        assert lab.run(program, "--help").rc == 0
    return root


@pytest.fixture
def lab(installed: Path, tmp_path: Path) -> Lab:
    shutil.copytree(installed, tmp_path / "root", symlinks=True)
    return Lab(tmp_path / "root")


# -- what the tools say of a healthy host


@pytest.mark.parametrize("model", nvidia_sim.types())
def test_every_source_says_the_same_of_every_type(lab: Lab, model: str) -> None:
    process = {"gpu": 1, "pid": 4242, "name": "VLLM::Worker_TP0 --api-key x", "memory_mib": 2048}
    state = lab.set({"model": model, "count": 2, "processes": [process]})
    lab.apply()
    nvml, smi = lab.gather("nvml", "smi")
    assert (nvml["source"], smi["source"]) == ("nvml", "nvidia-smi")
    assert nvml["gpus"] == smi["gpus"]
    assert [gpu["uuid"] for gpu in nvml["gpus"]] == [gpu.uuid for gpu in state.gpus]
    for facts in (nvml, smi):
        assert (facts["driver_version"], facts["cuda_version"]) == ("580.95.05", "13.0")
        assert facts["kernel_module_version"] == "580.95.05"
        assert (facts["reason"], facts["problems"], facts["library_version_mismatch"]) == (None, [], False)
        assert facts["pci_devices"] == ["0000:19:00.0", "0000:3b:00.0"]
        assert facts["gpus"][1]["processes"][0]["name"] == "VLLM::Worker_TP0"
        assert facts["gpus"][1]["memory_used_bytes"] - facts["gpus"][0]["memory_used_bytes"] == 2 * GIB
    rows = lab.csv("index,uuid,name,driver_version,memory.total,memory.used,compute_cap,pci.bus_id")
    assert rows == [
        [
            str(gpu["index"]),
            gpu["uuid"],
            gpu["name"],
            nvml["driver_version"],
            str(gpu["memory_total_bytes"] // 2**20),
            str(gpu["memory_used_bytes"] // 2**20),
            gpu["compute_capability"],
            gpu["pci_bus_id"],
        ]
        for gpu in nvml["gpus"]
    ]


def element_paths(text: str) -> set[str]:
    gpu = ElementTree.fromstring(text[text.index("<nvidia_smi_log>") :]).find("gpu")
    assert gpu is not None

    def walk(element: ElementTree.Element, above: str) -> t.Iterator[str]:
        yield above + element.tag
        for child in element:
            yield from walk(child, f"{above}{element.tag}/")

    return set(walk(gpu, ""))


@pytest.mark.parametrize(
    ("model", "driver", "recorded", "but_for"),
    [
        ("t4", "515.105.01", "t4-515.xml", "processes"),
        ("rtx4090", "535.86.05", "rtx4090-535.xml", "processes"),
        ("h100-80gb", "535.161.08", "h100-535.xml", "processes"),
        ("l40s", "550.127.05", "l40s-550-faulty.xml", "processes"),
        ("h100-80gb", "580.95.05", "h200-580.xml", "nothing"),
        # Recorded with MIG on, which takes the rows and splits the GPU.
        ("a100-40gb", "510.47.03", "a100-mig-510.xml", "mig_devices|remapped_rows|processes"),
    ],
)
def test_xml_has_the_elements_that_were_recorded(
    lab: Lab, model: str, driver: str, recorded: str, but_for: str
) -> None:
    process = {"gpu": 0, "pid": 20481, "name": "VLLM::Worker_TP0", "memory_mib": 100}
    lab.set({"model": model, "count": 1, "driver": driver, "processes": [process]})
    text = lab.run("nvidia-smi", "-q", "-x").out
    kept = [
        {path for path in element_paths(xml) if not re.match(f"gpu/({but_for})/", path)}
        for xml in (text, (FIXTURES / recorded).read_text())
    ]
    assert kept[0] == kept[1]
    assert text.splitlines()[1] == (FIXTURES / recorded).read_text().splitlines()[1]


def test_reports_for_people(lab: Lab) -> None:
    state = lab.set({**H100, "processes": [{"gpu": 2, "pid": 99, "name": "python3", "memory_mib": 512}]})
    assert lab.run("nvidia-smi", "-L").out == "".join(
        f"GPU {gpu.index}: NVIDIA H100 80GB HBM3 (UUID: {gpu.uuid})\n" for gpu in state.gpus
    )
    table = lab.run("nvidia-smi").out
    assert all(text in table for text in ("Driver Version: 580.95.05", "512MiB / 81559MiB", "python3"))
    assert {len(line) for line in table.splitlines()[1:] if line} == {91}
    assert "DRIVER version      : 580.95.05" in lab.run("nvidia-smi", "--version").out
    assert "GPU1\tNV18\t X \tNV18" in lab.run("nvidia-smi", "topo", "-m").out
    assert '"memory.total"' in lab.run("nvidia-smi", "--help-query-gpu").out
    apps = lab.run("nvidia-smi", "--query-compute-apps=gpu_uuid,pid,name,used_memory", "--format=csv").out
    assert apps.splitlines() == [
        "gpu_uuid, pid, process_name, used_gpu_memory [MiB]",
        f"{state.gpus[2].uuid}, 99, python3, 512 MiB",
    ]
    one = lab.run("nvidia-smi", "-i", "1", "--query-gpu=index,fan.speed,power.draw", "--format=csv")
    assert one.out == "index, fan.speed [%], power.draw [W]\n1, [N/A], 67.74 W\n"


def test_a_field_that_it_does_not_know(lab: Lab) -> None:
    lab.set(H100)
    done = lab.run("nvidia-smi", "--query-gpu=index,memory.size", "--format=csv")
    assert (done.rc, done.out) == (2, 'Field "memory.size" is not a valid field to query.\n\n')


def test_hosts_have_other_cards_each_with_its_own_for_good(lab: Lab) -> None:
    first, again, other = (nvidia_sim.expand(H100, name) for name in ("a", "a", "b"))
    assert first == again
    assert not {gpu.uuid for gpu in first.gpus} & {gpu.uuid for gpu in other.gpus}
    mixed = lab.set({"model": "t4", "count": 2, "gpus": [{"model": "l40s", "uuid": "GPU-1", "temperature_c": 80}]})
    assert [(gpu.name, gpu.uuid == "GPU-1", gpu.temperature_c) for gpu in mixed.gpus] == [
        ("NVIDIA L40S", True, 80),
        ("Tesla T4", False, 40),
    ]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"model": "h1000", "count": 1}, "one of a100-40gb, h100-80gb"),
        ({"modle": "t4"}, "the data file has modle"),
        ({"model": "t4", "count": 1, "faults": {"melted": True}}, "faults has melted"),
        ({"model": "t4", "count": 1, "faults": {"fallen_off_bus": 1}}, "an index below 1"),
        ({"model": "t4", "count": 1, "faults": {"remapped_pending": 0}}, "remaps no rows"),
        ({"model": "h100-80gb", "count": 1, "faults": {"retired_pending": 0}}, "retires no pages"),
        ({"model": "rtx4090", "count": 1, "faults": {"ecc_pending": 0}}, "counts no ECC errors"),
        ({"model": "t4", "count": 1, "faults": {"xid": {"gpu": 0}}}, "a mapping with code, gpu"),
        ({"model": "t4", "count": 1, "processes": [{"gpu": 0, "pid": 1, "name": "x", "memory_mib": 15000}]}, "in use"),
        ({"model": "t4", "count": 0, "gpus": [{}]}, "no more entries than GPUs"),
        ({"model": "t4", "count": 2, "faults": {"topology": {"gpus": [0]}}}, "a mapping with gpus (two)"),
        ({"model": "t4", "count": 2, "faults": {"topology": {"gpus": [0, 2], "link": "SYS"}}}, "an index below 2"),
        ({"model": "t4", "count": 1, "faults": {"throttle": {"gpu": 0, "reasons": ["wind"]}}}, "throttle is ['wind']"),
        ({"model": "t4", "count": 1, "faults": {"compute_mode": {"gpu": 0, "mode": "Any"}}}, "compute_mode is 'Any'"),
    ],
)  # fmt: skip
def test_data_that_means_nothing_is_refused(lab: Lab, data: dict[str, t.Any], said: str) -> None:
    with pytest.raises(nvidia_sim.SimError, match=re.escape(said)):
        lab.set(data)
    done = lab.run("nvidia-smi")
    assert done.rc == 1
    assert said in done.err


# -- faults


@pytest.mark.parametrize("source", ["nvml", "smi"])
def test_a_library_newer_than_the_module_is_a_mismatch(lab: Lab, source: str) -> None:
    lab.set({**H100, "faults": {"driver_library_mismatch": "580.82.07"}})
    lab.apply()
    facts = lab.facts(source)
    assert (facts["gpus"], facts["reason_code"]) == ([], "nvidia.version_mismatch")
    assert facts["library_version_mismatch"] is True
    assert facts["kernel_module_version"] == "580.82.07"
    assert lab.run("nvidia-smi")[:2] == (
        18,
        "Failed to initialize NVML: Driver/library version mismatch\nNVML library version: 580.95\n",
    )
    assert "the client has the version 580.95.05" in lab.run("usr/local/bin/dmesg").out
    refused = lab.hook("NVIDIA_VISIBLE_DEVICES=all")
    assert refused.rc == 1
    assert "nvidia-container-cli: initialization error: nvml error: driver/library version mismatch" in refused.err


@pytest.mark.parametrize("source", ["nvml", "smi"])
def test_a_module_that_is_not_loaded(lab: Lab, source: str) -> None:
    lab.set(H100)
    lab.apply()
    lab.set({**H100, "faults": {"no_driver": True}})
    lab.apply()
    facts = lab.facts(source)
    assert (facts["gpus"], facts["reason_code"]) == ([], "nvidia.driver_not_loaded")
    assert (facts["kernel_module_version"], len(facts["pci_devices"])) == (None, 3)
    assert lab.run("nvidia-smi").rc == 9
    assert "nvml error: driver not loaded" in lab.hook("NVIDIA_VISIBLE_DEVICES=0").err
    assert lab.run("nvidia-ctk", "cdi", "generate").rc == 1


def test_a_card_that_fell_off_the_bus(lab: Lab) -> None:
    state = lab.set({**H100, "faults": {"fallen_off_bus": 1}})
    lab.apply()
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["reason_code"] == smi["reason_code"] == "nvidia.gpu_lost"
    assert [gpu["uuid"] for gpu in nvml["gpus"]] == [state.gpus[0].uuid, state.gpus[2].uuid]
    assert smi["gpus"] == []
    said = (
        "Unable to determine the device handle for GPU0000:3B:00.0: GPU is lost.  Reboot the system to recover this GPU"
    )
    done = lab.run("nvidia-smi")
    assert (done.rc, done.out.strip()) == (15, said)
    assert "Xid (PCI:0000:3B:00): 79," in lab.run("usr/local/bin/dmesg").out
    assert "detection error: nvml error: gpu is lost" in lab.hook("NVIDIA_VISIBLE_DEVICES=0").err


def test_a_card_that_did_not_come_back_after_a_boot(lab: Lab) -> None:
    before = lab.set(H100)
    lab.set({**H100, "faults": {"missing_gpu": [1]}})
    lab.apply()
    for facts in lab.gather("nvml", "smi"):
        assert [gpu["index"] for gpu in facts["gpus"]] == [0, 1]
        assert [gpu["uuid"] for gpu in facts["gpus"]] == [before.gpus[0].uuid, before.gpus[2].uuid]
        assert len(facts["pci_devices"]) == 2


def test_no_card_at_all(lab: Lab) -> None:
    lab.set({"count": 0})
    lab.apply()
    assert lab.run("nvidia-smi")[:2] == (6, "No devices were found\n")
    assert [facts["reason_code"] for facts in lab.gather("nvml", "smi")] == ["nvidia.no_devices"] * 2


@pytest.mark.parametrize(
    ("model", "fault", "changed"),
    [
        ("h100-80gb", {"ecc_pending": 0}, {"uncorrected_volatile": 1, "remapped_rows": PENDING}),
        ("t4", {"ecc_pending": [0]}, {"uncorrected_volatile": 1, "retired_pages_pending": True}),
        ("l40s", {"ecc_uncorrected": {"gpu": 0, "count": 7}}, {"uncorrected_volatile": 7}),
        ("a100-40gb", {"remapped_pending": 0}, {"remapped_rows": PENDING}),
        ("a100-40gb", {"remapped_failure": 0}, {"remapped_rows": {"pending": False, "failure": True}}),
        ("t4", {"retired_pending": 0}, {"retired_pages_pending": True}),
    ],
)  # fmt: skip
def test_broken_memory(lab: Lab, model: str, fault: dict[str, t.Any], changed: dict[str, t.Any]) -> None:
    lab.set({"model": model, "count": 2, "faults": fault})
    lab.apply()
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["gpus"] == smi["gpus"]
    broken, sound = (gpu["ecc"] for gpu in nvml["gpus"])
    assert broken == {**sound, **changed}
    assert broken != sound


def test_a_foreign_process_holds_memory(lab: Lab) -> None:
    fault = {"gpu": 2, "pid": 31337, "name": "/usr/bin/blender", "memory_mib": 20480}
    lab.set({**H100, "faults": {"foreign_process": fault}})
    lab.apply()
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["gpus"] == smi["gpus"]
    assert nvml["gpus"][2]["processes"] == [
        {
            "pid": 31337,
            "name": "/usr/bin/blender",
            "memory_used_bytes": 20 * GIB,
            "type": "C",
            "gpu_instance_id": None,
        }
    ]
    assert nvml["gpus"][2]["memory_used_bytes"] == 20 * GIB
    assert lab.csv("memory.used")[2] == ["20480"]


@pytest.mark.parametrize(
    ("model", "fault", "changed"),
    [
        ("l40s", {"persistence_off": [1]}, {"persistence_mode": "disabled"}),
        ("t4", {"compute_mode": {"gpu": 1, "mode": "Exclusive_Process"}}, {"compute_mode": "exclusive_process"}),
        ("h100-80gb", {"temperature": {"gpu": 1, "celsius": 88}}, {"temperature_c": 88}),
        (
            "a100-40gb",
            {"throttle": {"gpu": 1, "reasons": ["sw_power_cap", "hw_thermal_slowdown"]}},
            {"throttle": ["hw_thermal_slowdown", "sw_power_cap"]},
        ),
    ],
)
def test_settings_of_one_card(lab: Lab, model: str, fault: dict[str, t.Any], changed: dict[str, t.Any]) -> None:
    lab.set({"model": model, "count": 2})
    lab.apply()
    healthy = lab.facts("smi")["gpus"]
    lab.set({"model": model, "count": 2, "faults": fault})
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["gpus"] == smi["gpus"]
    assert nvml["gpus"] == [healthy[0], {**healthy[1], **changed}]
    assert healthy[1] != nvml["gpus"][1]


def test_a_narrow_link_and_a_lowered_power_limit(lab: Lab) -> None:
    fault = {"pcie_width": {"gpu": 0, "width": 8}, "power_limit": {"gpu": 0, "watts": 350}}
    lab.set({**H100, "faults": fault})
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["gpus"] == smi["gpus"]
    assert nvml["gpus"][0]["pcie"]["width"] == {"current": 8, "max": 16}
    assert nvml["gpus"][0]["power"] == {"draw_w": 67.74, "limit_w": 350.0, "default_limit_w": 700.0}
    assert nvml["gpus"][0]["temperature_limit_c"] == 89


@pytest.mark.parametrize(("model", "link"), [("h100-80gb", "nv18"), ("a100-40gb", "nv12"), ("l40s", "phb")])
def test_both_sources_say_the_same_of_the_links(lab: Lab, model: str, link: str) -> None:
    fault = {"gpus": [2, 0], "link": "SYS", "p2p": "CNS"}
    lab.set({"model": model, "count": 5, "faults": {"topology": fault}})
    lab.apply()
    nvml, smi = lab.gather("nvml", "smi")
    assert smi["topology"] is not None
    pairs = {tuple(item["gpus"]): item for item in smi["topology"]}
    assert (pairs[0, 1]["link"], pairs[0, 1]["p2p"]) == (link, "ok")
    assert (pairs[0, 2]["link"], pairs[0, 2]["nvlinks"], pairs[0, 2]["p2p"]) == ("sys", 0, "cns")
    assert [gpu["numa_node"] for gpu in smi["gpus"]] == [0, 0, 0, 0, 1]
    # NVML counts the ports of a card, which such a setting does not change.
    assert [item for item in nvml["topology"] if item["gpus"] != [0, 2]] == [
        item for item in smi["topology"] if item["gpus"] != [0, 2]
    ]
    assert next(item["p2p"] for item in nvml["topology"] if item["gpus"] == [0, 2]) == "cns"


def test_cards_of_gamers_do_not_read_each_other(lab: Lab) -> None:
    lab.set({"model": "rtx4090", "count": 2})
    nvml, smi = lab.gather("nvml", "smi")
    assert nvml["topology"] == smi["topology"] == [{"gpus": [0, 1], "link": "phb", "nvlinks": 0, "p2p": "gns"}]


def test_xids_reach_the_facts(lab: Lab) -> None:
    lab.set({**H100, "faults": {"xid": {"gpu": 1, "code": 48, "time": "2026-11-23T14:00:00"}}})
    lab.apply()
    shutil.copy(lab.root / "usr/local/bin/dmesg", lab.root / "usr/bin/dmesg")
    launcher = lab.root / "usr/bin/dmesg"
    launcher.write_text(launcher.read_text().replace("parents[3]", "parents[2]"))
    (lab.root / "proc").mkdir(exist_ok=True)
    (lab.root / "proc/stat").write_text(f"btime {int(time.time() - time.clock_gettime(time.CLOCK_BOOTTIME))}\n")
    (xid,) = lab.facts("smi")["xids"]
    assert (xid["xid"], xid["pci_bus_id"]) == (48, "00000000:3B:00.0")
    assert xid["message"].endswith("DBE (double bit error) ECC Error has occurred on GPU")


def test_fabric_manager_is_installed_where_there_is_a_fabric(lab: Lab) -> None:
    lab.set(H100)
    lab.apply()
    assert lab.facts("smi")["fabric_manager"]["version"] == "580.95.05"
    for value, expected in (("570.1.2", "570.1.2"), ("stopped", "580.95.05")):
        assert lab.run("gpusim", "fault", "fabric_manager", value).rc == 0
        assert lab.run("nv-fabricmanager", "--version").out == f"Fabric Manager version is : {expected}\n"
    assert lab.run("gpusim", "fault", "fabric_manager", "missing").rc == 0
    assert lab.facts("smi")["fabric_manager"]["installed"] is False
    assert lab.run("gpusim", "clear").rc == 0
    assert (lab.root / "usr/bin/nv-fabricmanager").exists()
    lab.set({"model": "t4", "count": 1})
    lab.apply()
    assert not (lab.root / "usr/bin/nv-fabricmanager").exists()


def test_a_reboot_that_waits_leaves_its_files(lab: Lab) -> None:
    lab.set({**H100, "faults": {"reboot_required": ["linux-image-6.8.0-90-generic"]}})
    lab.apply()
    assert (lab.root / "run/reboot-required").exists()
    assert "linux-image-6.8.0-90-generic\n" in (lab.root / "run/reboot-required.pkgs").read_text()
    assert lab.run("gpusim", "clear").rc == 0
    assert not (lab.root / "run/reboot-required").exists()


@pytest.mark.parametrize("source", ["nvml", "smi"])
def test_a_driver_that_hangs(lab: Lab, source: str) -> None:
    lab.set({**H100, "faults": {"hang": True}})
    assert lab.facts(source, timeout=1)["reason_code"] == "nvidia.hung"


def test_who_waits_for_a_driver_goes_on_when_it_answers_again(lab: Lab) -> None:
    lab.set({**H100, "faults": {"hang": True}})
    with ThreadPoolExecutor() as pool:
        waiting = [pool.submit(lab.run, "nvidia-smi", "-L"), pool.submit(lab.hook, "NVIDIA_VISIBLE_DEVICES=0")]
        time.sleep(1)
        assert not any(future.done() for future in waiting)
        assert lab.run("gpusim", "clear", "hang").rc == 0
        assert [future.result(timeout=10).rc for future in waiting] == [0, 0]


def test_xids_are_in_dmesg_and_reach_the_journal_once(lab: Lab) -> None:
    fault = [
        {"gpu": 1, "code": 48, "time": "2026-11-23T14:00:00"},
        {"gpu": 0, "code": 31, "message": "MMU Fault: here"},
    ]
    lab.set({**H100, "faults": {"xid": fault}})
    (lab.root / "dev").mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(lab.root / "dev/log"))
        journal.settimeout(5)
        lab.apply()
        lab.apply()
        lines = [journal.recv(4096).decode() for _line in range(3)]
        journal.setblocking(False)
        with pytest.raises(BlockingIOError):
            journal.recv(4096)
    assert lines[0].startswith("<3>kernel: NVRM: loading NVIDIA UNIX Open Kernel Module")
    assert re.search(r"NVRM: Xid \(PCI:0000:3B:00\): 48, .*double bit error", lines[1])
    assert lines[2].endswith("NVRM: Xid (PCI:0000:19:00): 31, pid='<unknown>', name=<unknown>, MMU Fault: here")
    human = lab.run("usr/local/bin/dmesg", "-T").out
    assert "[Mon Nov 23 14:00:00 2026] NVRM: Xid (PCI:0000:3B:00): 48" in human


def test_faults_set_on_the_host(lab: Lab) -> None:
    lab.set(H100)
    assert lab.run("gpusim", "fault", "ecc_uncorrected", '{"gpu": 2, "count": 5}').rc == 0
    assert lab.csv("ecc.errors.uncorrected.volatile.total") == [["0"], ["0"], ["5"]]
    refused = lab.run("gpusim", "fault", "fallen_off_bus", "9")
    assert refused.rc == 1
    assert "an index below 3" in refused.err
    assert json.loads(lab.data.read_text())["faults"] == {"ecc_uncorrected": {"gpu": 2, "count": 5}}
    assert "no fault is called melted" in lab.run("gpusim", "clear", "melted").err
    assert lab.run("gpusim", "clear").rc == 0
    assert lab.csv("ecc.errors.uncorrected.volatile.total") == [["0"]] * 3


# -- the container toolkit


def test_the_toolkit_is_found_and_can_be_missing(lab: Lab) -> None:
    lab.set({**H100, "toolkit": "1.16.2"})
    lab.apply()
    there = lab.facts("smi", containers=True)["container"]
    assert there["toolkit"] == {
        "installed": True,
        "version": "1.16.2",
        "nvidia_ctk": str(lab.root / "usr/bin/nvidia-ctk"),
        "runtime": str(lab.root / "usr/bin/nvidia-container-runtime"),
        "runtime_hook": str(lab.root / "usr/bin/nvidia-container-runtime-hook"),
    }
    assert lab.run("gpusim", "fault", "missing_toolkit").rc == 0
    assert lab.facts("smi", containers=True)["container"]["toolkit"]["installed"] is False
    assert lab.run("gpusim", "clear").rc == 0
    assert lab.facts("smi", containers=True)["container"]["toolkit"] == there["toolkit"]
    nvidia_sim.install(lab.root, toolkit=False, python=sys.executable)
    assert lab.facts("smi", containers=True)["container"]["toolkit"]["installed"] is False


def test_cdi_names_each_card_by_index_and_uuid(lab: Lab) -> None:
    state = lab.set(H100)
    lab.apply()
    names = [f"nvidia.com/gpu={name}" for name in ("0", "1", "2", *(gpu.uuid for gpu in state.gpus), "all")]
    facts = lab.facts("nvml", containers=True)
    assert facts["container"]["cdi"]["specs"][0]["devices"] == names
    assert facts["container"]["cdi"]["specs"][0]["driver_version"] == "580.95.05"
    assert facts["problems"] == []
    assert sorted(lab.run("nvidia-ctk", "cdi", "list").out.splitlines()) == sorted(names)
    generated = lab.run("nvidia-ctk", "cdi", "generate", "--format=json")
    assert parse_cdi(generated.out) == ("nvidia.com/gpu", names, "580.95.05")
    document = json.loads(generated.out)
    assert (lab.root / document["containerEdits"]["mounts"][0]["hostPath"].lstrip("/")).exists()


def test_a_stale_cdi_specification_names_other_cards_and_an_older_driver(lab: Lab) -> None:
    state = lab.set({**H100, "faults": {"stale_cdi": "570.124.06"}})
    lab.apply()
    facts = lab.facts("nvml", containers=True)
    spec = facts["container"]["cdi"]["specs"][0]
    assert spec["driver_version"] == "570.124.06"
    assert not any(gpu.uuid in name for gpu in state.gpus for name in spec["devices"])
    assert any("was generated for driver 570.124.06 and the host runs 580.95.05" in text for text in facts["problems"])
    # What makes a container fail that is started from it.
    library = lab.root / f"usr/lib/{platform.machine()}-linux-gnu/libnvidia-ml.so.570.124.06"
    assert not library.exists()
    assert lab.run("nvidia-ctk", "cdi", "generate", "--output=/etc/cdi/nvidia.yaml").rc == 0
    assert lab.facts("nvml", containers=True)["problems"] == []


def test_docker_is_configured_as_the_real_tool_does(lab: Lab) -> None:
    lab.set(H100)
    path = lab.root / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text('{"log-driver": "local"}')
    assert lab.run("nvidia-ctk", "runtime", "configure", "--runtime=docker").rc == 0
    runtimes = {"nvidia": {"args": [], "path": "nvidia-container-runtime"}}
    assert json.loads(path.read_text()) == {"log-driver": "local", "runtimes": runtimes}
    done = lab.run("nvidia-ctk", "runtime", "configure", "--runtime", "docker", "--set-as-default", "--cdi.enabled")
    assert "It is recommended that docker daemon be restarted." in done.err
    assert json.loads(path.read_text()) == {
        "log-driver": "local",
        "default-runtime": "nvidia",
        "features": {"cdi": True},
        "runtimes": runtimes,
    }
    path.write_text("{")
    assert lab.run("nvidia-ctk", "runtime", "configure").rc == 1
    assert path.read_text() == "{"


@pytest.mark.parametrize(
    ("asked", "indices"),
    [("all", [0, 1, 2]), ("none", []), ("2,0", [0, 2]), ("{1}", [1]), ("{2:12},{0}", [0, 2])],
)
def test_the_hook_records_the_cards_of_a_container(lab: Lab, asked: str, indices: list[int]) -> None:
    state = lab.set(H100)
    uuids = [gpu.uuid for gpu in state.gpus]
    asked = asked.replace("{2:12}", uuids[2][:12]).format(*uuids)
    # The image's own comes first, and Docker's last.
    done = lab.hook(
        "NVIDIA_VISIBLE_DEVICES=all", f"NVIDIA_VISIBLE_DEVICES={asked}", "NVIDIA_DRIVER_CAPABILITIES=compute,utility"
    )
    assert done == (0, "", "")
    (record,) = lab.records()
    assert (record["via"], record["id"], record["hostname"]) == ("hook", "f3b6a1d20c57e84c", "f3b6a1d20c57")
    assert (record["asked"], record["capabilities"]) == (asked, "compute,utility")
    assert (record["indices"], record["uuids"]) == (indices, [uuids[index] for index in indices])


def test_the_hook_knows_docker_and_compose_names(lab: Lab) -> None:
    lab.set(H100)
    config = lab.root / "var/lib/docker/containers/f3b6a1d20c57e84c/config.v2.json"
    config.parent.mkdir(parents=True)
    labels = {"com.docker.compose.project": "vllm", "com.docker.compose.service": "whisper"}
    config.write_text(json.dumps({"Name": "/vllm-whisper-1", "Config": {"Labels": labels}}))
    assert lab.hook("NVIDIA_VISIBLE_DEVICES=2").rc == 0
    (record,) = lab.records()
    assert (record["name"], record["project"], record["service"]) == ("vllm-whisper-1", "vllm", "whisper")


@pytest.mark.parametrize("environment", [[], ["NVIDIA_VISIBLE_DEVICES=void"], ["NVIDIA_VISIBLE_DEVICES="]])
def test_the_hook_leaves_a_container_without_cards_alone(lab: Lab, environment: list[str]) -> None:
    lab.set({**H100, "faults": {"no_driver": True}})
    assert lab.hook(*environment) == (0, "", "")
    assert lab.records() == []


@pytest.mark.parametrize("device", ["GPU-00000000-0000-4000-8000-000000000000", "3", "GPU-"])
def test_the_hook_refuses_a_device_that_is_not_there(lab: Lab, device: str) -> None:
    lab.set(H100)
    done = lab.hook(f"NVIDIA_VISIBLE_DEVICES=0,{device}")
    assert done.rc == 1
    assert f"nvidia-container-cli: device error: {device}: unknown device" in done.err
    assert lab.records() == []


@pytest.mark.parametrize(
    ("environment", "rc"),
    [
        (["NVIDIA_REQUIRE_CUDA=cuda>=13.1 brand=tesla,driver>=535,driver<536"], 1),
        (["NVIDIA_REQUIRE_CUDA=cuda>=13.1", "NVIDIA_DISABLE_REQUIRE=1"], 0),
        (["NVIDIA_REQUIRE_CUDA=cuda>=13.1 brand=nvidia,driver>=580,driver<581"], 0),
        (["NVIDIA_REQUIRE_CUDA=cuda>=12.9"], 0),
    ],
)
def test_the_hook_checks_what_the_image_requires(lab: Lab, environment: list[str], rc: int) -> None:
    lab.set(H100)
    done = lab.hook("NVIDIA_VISIBLE_DEVICES=0", *environment)
    assert done.rc == rc
    assert ("requirement error: unsatisfied condition: cuda>=13.1, please update your driver" in done.err) == bool(rc)


def test_the_cdi_hook_records_what_the_specification_put_in(lab: Lab) -> None:
    state = lab.set(H100)
    document = json.loads(lab.run("nvidia-ctk", "cdi", "generate", "--format=json").out)
    edits = {device["name"]: device["containerEdits"]["env"] for device in document["devices"]}
    environment = [*edits[state.gpus[2].uuid], *edits["0"], "NVIDIA_VISIBLE_DEVICES=void"]
    hook = document["containerEdits"]["hooks"][0]
    done = lab.run(hook["path"].lstrip("/"), *hook["args"][1:], given=lab.bundle(*environment))
    assert done.rc == 0, done
    (record,) = lab.records()
    assert (record["via"], record["indices"]) == ("cdi", [0, 2])
    lab.set({**H100, "hostname": "another"})
    assert lab.run("nvidia-cdi-hook", "gpusim-record", given=lab.bundle(*environment)).rc == 1


def test_the_runtime_adds_the_hook_once_and_becomes_runc(lab: Lab, tmp_path: Path) -> None:
    lab.set(H100)
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "runc").write_text('#!/bin/sh\necho "runc $*"\n')
    (programs / "runc").chmod(0o755)
    lab.bundle("NVIDIA_VISIBLE_DEVICES=1")
    config = lab.root / "run/bundle/config.json"
    arguments = ["--root", "/run/runc", "create", "--bundle", str(config.parent), "f3b6"]
    path = f"{programs}{os.pathsep}{os.environ['PATH']}"
    for _time in range(2):
        done = lab.run("nvidia-container-runtime", *arguments, path=path)
        assert done == (0, f"runc {' '.join(arguments)}\n", "")
    (hook,) = json.loads(config.read_text())["hooks"]["prestart"]
    assert hook["path"] == str(lab.root / "usr/bin/nvidia-container-runtime-hook")
    lab.bundle()
    assert lab.run("nvidia-container-runtime", *arguments, path=path).rc == 0
    assert "hooks" not in json.loads(config.read_text())


def test_nvidia_container_cli(lab: Lab) -> None:
    state = lab.set(H100)
    assert f"GPU UUID:       {state.gpus[1].uuid}\n" in lab.run("nvidia-container-cli", "info").out
    assert lab.run("nvidia-container-cli", "--version").out.startswith("cli-version: 1.17.8\n")


# -- what is installed


def test_the_library_runs_on_older_systems_than_it_was_built_on() -> None:
    done = subprocess.run(["objdump", "-T", nvidia_sim.library()], capture_output=True, text=True, check=True)
    versions = [tuple(map(int, version.split("."))) for version in re.findall(r"GLIBC_(2\.\d+)", done.stdout)]
    assert max(versions) <= (2, 34)


def test_proc_says_which_module_is_loaded(lab: Lab) -> None:
    lab.set({**H100, "kernel_module": "proprietary", "driver": "535.161.08"})
    lab.apply()
    text = (lab.root / "proc/driver/nvidia/version").read_text()
    assert parse_kernel_module(text) == {"version": "535.161.08", "type": "proprietary"}
    assert (lab.root / "proc/driver/nvidia/gpus/0000:19:00.0/information").exists()


def test_command_line(tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY / "tests/lab")}
        command = [sys.executable, "-m", "nvidia_sim", *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False, env=environment)

    assert run("install", "--root", str(tmp_path / "host"), "--no-toolkit", "--nvidia-ml-py").returncode == 0
    assert (tmp_path / "host/usr/lib/python3/dist-packages/pynvml.py").exists()
    assert (tmp_path / "host/etc/systemd/system/multi-user.target.wants/gpusim.service").is_symlink()
    assert not (tmp_path / "host/usr/bin/nvidia-ctk").exists()
    assert run("digest").stdout.strip() == nvidia_sim.digest()
    data = tmp_path / "gpus.json"
    data.write_text(json.dumps(H100))
    shown = json.loads(run("show", "--data", str(data), "--hostname", HOSTNAME).stdout)
    assert [gpu["uuid"] for gpu in shown["gpus"]] == [gpu.uuid for gpu in nvidia_sim.expand(H100, HOSTNAME).gpus]
    data.write_text("[]")
    assert "expected a JSON object" in run("show", "--data", str(data)).stderr
