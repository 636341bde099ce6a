# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import threading
import typing as t
from collections.abc import Sequence
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_facts as facts
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_info, _host_processes, _nvidia_probe
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

FIXTURES = Path(__file__).parent / "fixtures"
HEALTHY = json.loads((FIXTURES / "facts" / "healthy.json").read_text(encoding="utf-8"))
SMI = (FIXTURES / "nvidia" / "h200-580.xml").read_text(encoding="utf-8")


def nothing(argv: Sequence[str], _timeout: float) -> CommandResult:
    return CommandResult(127, "", f"{argv[0]}: No such file or directory")


def a_host(root: Path, *tools: str) -> Host:
    return Host(root=str(root), find={tool: tool for tool in tools}.get, load_nvml=lambda: None)


def bare() -> dict[str, t.Any]:
    return {"gpus": [], "nvidia": {"problems": [], "container": None}}


def complete(root: Path, paths: Sequence[str] = (), **options: t.Any) -> dict[str, t.Any]:
    more = facts.HostFacts("compose", paths, run=nothing, host=a_host(root), **options)
    return more.complete(bare(), {}, str(root))


def test_a_host_that_tells_nothing(tmp_path: Path) -> None:
    found = complete(tmp_path, [str(tmp_path)])
    assert [entry["path"] for entry in found["filesystems"]] == [str(tmp_path)]
    assert found["boot"] == {"id": None, "time": None, "uptime_s": None}
    assert found["reboot"] == {"required": None, "why": ""}
    assert (found["acs"], found["apparmor"], found["hub"]) == (None, None, None)
    assert found["iommu"] == {"enabled": None, "passthrough": None}
    assert found["nvidia"]["problems"] == []
    assert json.dumps(found)


def test_where_docker_keeps_images_is_always_measured(tmp_path: Path) -> None:
    more = facts.HostFacts("compose", [str(tmp_path)], run=nothing, host=a_host(tmp_path))
    given = bare()
    given["nvidia"]["container"] = {"docker": {"installed": True, "root_dir": str(tmp_path / "docker")}}
    found = more.complete(given, {}, "/x")
    assert [entry["path"] for entry in found["filesystems"]] == [str(tmp_path), str(tmp_path / "docker")]
    assert set(found["labels"]) == {str(tmp_path), str(tmp_path / "docker")}


@pytest.mark.parametrize(
    ("driver", "there", "measured"),
    [
        ("overlayfs", ["var/lib/containerd/io.containerd.content.v1.content"], True),
        ("overlay2", ["var/lib/containerd/io.containerd.content.v1.content"], False),
        ("overlayfs", [], False),
        # A containerd that Docker starts keeps its files below Docker's own.
        ("overlayfs", ["var/lib/containerd/x", "var/lib/docker/containerd/daemon/x"], False),
    ],
)
def test_where_containerd_keeps_images_is_measured(
    tmp_path: Path, driver: str, there: list[str], measured: bool
) -> None:
    for directory in there:
        (tmp_path / directory).mkdir(parents=True)
    given = bare()
    docker = {"installed": True, "root_dir": "/var/lib/docker", "storage_driver": driver}
    given["nvidia"]["container"] = {"docker": docker}
    found = facts.HostFacts("compose", [], run=nothing, host=a_host(tmp_path)).complete(given, {}, "/x")
    places = [entry["path"] for entry in found["filesystems"]]
    assert places == ["/var/lib/docker", *(["/var/lib/containerd"] if measured else [])]


def test_a_file_system_that_hangs_is_left_out_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, never = facts._host_storage.filesystems, threading.Event()
    monkeypatch.setattr(facts, "_DISK_SECONDS", 0.2)
    monkeypatch.setattr(
        facts._host_storage, "filesystems", lambda paths: never.wait() if paths == ["/nas"] else real(paths)
    )
    found = complete(tmp_path, ["/nas", str(tmp_path)])
    never.set()
    assert [entry["path"] for entry in found["filesystems"]] == [str(tmp_path)]
    assert found["nvidia"]["problems"] == [
        "Reading the file system of /nas gave no answer within 0.2 s, so it is not known."
    ]


def test_a_source_that_fails_costs_its_own_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def crash(*_arguments: t.Any) -> t.NoReturn:
        raise ValueError("of all things")

    monkeypatch.setattr(facts._host_kernel, "clock", crash)
    monkeypatch.setattr(facts._host_network, "hub", crash)
    found = complete(tmp_path, hub_endpoint="https://hub.example.com", hub_token="ms-1")
    assert (found["clock"], found["hub"]) == (None, None)
    assert found["nvidia"]["problems"] == [
        "The clock can not be told: of all things.",
        "The hub can not be told: of all things.",
    ]


def test_processes_get_their_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    owner = {"service": "chat", "container": None, "orphan": False, "user": "vllm"}
    monkeypatch.setattr(_host_processes, "owners", lambda *arguments: dict.fromkeys(arguments[2], owner))
    given = bare()
    given["gpus"] = [{"processes": [{"pid": 7}, {"pid": 8}]}, {"processes": []}]
    more = facts.HostFacts("systemd", [], run=nothing, host=a_host(tmp_path))
    found = more.complete(given, {"chat": 7}, "/x")
    assert found["gpus"][0]["processes"] == [{"pid": 7, **owner}, {"pid": 8, **owner}]


# -- the fixture that other tests build on


def keys(value: t.Any) -> t.Any:
    if isinstance(value, dict):
        return {key: keys(item) for key, item in value.items()}
    return [keys(value[0])] if isinstance(value, list) and value and isinstance(value[0], dict) else None


@pytest.fixture
def gathered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, t.Any]:
    """What the module returns on a host with three recorded H200, a service's process, Docker and an image."""
    docker = FIXTURES / "nvidia"
    answers = {
        "nvidia-smi -q -x": SMI,
        "nvidia-smi topo -m": (docker / "topo-h100-hgx.txt").read_text(),
        "docker version": (docker / "docker-28.5-version.json").read_text(),
        "docker info": (docker / "docker-28.5-info.json").read_text(),
        "docker image": json.dumps([{"Id": "sha256:1", "RepoTags": ["vllm/vllm-openai:v0.33.0"]}]),
        "journalctl": "-- No entries --\n",
    }

    def run(argv: Sequence[str], timeout: float) -> CommandResult:
        line = " ".join(argv)
        found = next((text for words, text in answers.items() if line.startswith(words)), None)
        return nothing(argv, timeout) if found is None else CommandResult(0, found, "")

    for name in ("0000:19:00.0", "0000:3b:00.0"):
        device = tmp_path / "sys/bus/pci/devices" / name
        device.mkdir(parents=True)
        (device / "vendor").write_text("0x10de\n")
        (device / "class").write_text("0x030200\n")
    bridge = tmp_path / "sys/bus/pci/devices/0000:16:01.0"
    bridge.mkdir()
    (bridge / "class").write_text("0x060400\n")
    (bridge / "config").write_bytes(bytes(4096))
    (tmp_path / "etc/cdi").mkdir(parents=True)
    (tmp_path / "etc/cdi/nvidia.yaml").write_bytes((docker / "cdi-nvidia-ctk-1.17.yaml").read_bytes())
    host = a_host(tmp_path, "nvidia-smi", "docker", "journalctl")
    real = _nvidia_probe.gather
    monkeypatch.setattr(_nvidia_probe, "gather", lambda **more: real(run, host=host, **more))
    monkeypatch.setattr(facts, "Host", lambda: host)
    monkeypatch.setattr(facts, "run_command", run)
    monkeypatch.setattr(facts._host_network, "hub", lambda *_arguments: dict.fromkeys(HEALTHY["hub"]))
    paths = [str(tmp_path)]
    return _host_info.gather(
        str(tmp_path / "root"), "supervisor", [1], paths, "nobody", ["vllm/vllm-openai:v0.33.0"], "https://x", ""
    )


def test_the_healthy_host_has_the_keys_that_the_module_returns(gathered: dict[str, t.Any]) -> None:
    assert set(HEALTHY) == set(gathered)
    assert keys(HEALTHY["gpus"][0]) == keys(next(gpu for gpu in gathered["gpus"] if gpu["processes"]))
    same = sorted(
        set(gathered) - {"gpus", "nvidia", "listening", "services", "record", "deployed", "applied", "labels"}
    )
    assert {name: keys(HEALTHY[name]) for name in same} == {name: keys(gathered[name]) for name in same}
    nvidia, there = dict(HEALTHY["nvidia"]), dict(gathered["nvidia"])
    containers = [dict(part.pop("container")) for part in (nvidia, there)]
    images = [list(container.pop("images").values()) for container in containers]
    assert keys(images[0]) == keys(images[1])
    runtimes = [container["docker"].pop("runtimes") for container in containers]
    assert all(runtimes)
    assert keys(containers[0]) == keys(containers[1])
    assert keys(nvidia) == keys(there)


def test_the_healthy_host_is_of_the_documented_types() -> None:
    assert len(HEALTHY["gpus"]) == 8
    assert len(HEALTHY["nvidia"]["topology"]) == 28
    assert {entry["path"] for entry in HEALTHY["filesystems"]} == set(HEALTHY["labels"])
    assert HEALTHY["nvidia"]["problems"] == []
