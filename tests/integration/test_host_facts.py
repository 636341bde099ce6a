# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What ``vllm_host_info`` tells of an emulated host is what the simulator was told: over SSH, with the real module."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import typing as t
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, controller_environment
from gpu_lab import HostSpec, Lab

pytestmark = pytest.mark.lab

HOSTS = [
    HostSpec("gpu-01", "debian13", {"model": "h100-80gb", "count": 4}),
    HostSpec("gpu-02", "debian12", {"model": "l40s", "count": 2}),
]
# An image without a shell: one program of the host and its library.
SLEEP = """set -e
libraries=$(ldd /usr/bin/sleep | grep -o '/[^ ]*')
tar -ch /usr/bin/sleep $libraries 2>/dev/null | docker import \
  --change 'ENV CUDA_VERSION=13.0.2' --change 'ENV NVIDIA_REQUIRE_CUDA=cuda>=13.0' \
  --change 'CMD ["/usr/bin/sleep", "infinity"]' - mirror/vllm-openai:v0.33.0
docker run --detach --name notebook mirror/vllm-openai:v0.33.0
"""

Facts = dict[str, t.Any]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    directory = tmp_path_factory.mktemp("facts")
    with Lab("factstest", HOSTS, inventory=directory / "hosts.yml", user="ops", hub=directory) as made:
        yield made


@pytest.fixture(autouse=True)
def _without_faults(lab: Lab) -> Iterator[None]:
    yield
    for host in lab.hosts:
        lab.run(host, ["gpusim", "clear"])


def gather(lab: Lab, **options: t.Any) -> dict[str, Facts]:
    """The facts of every host, by one call of the module on each."""
    arguments = json.dumps({"runtime": "compose", "paths": ["/data/models"], **options})
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "-i", lab.inventory, "gpu_hosts", "--become", "-m",
         "gpufleet.vllm.vllm_host_info", "-a", arguments],
        cwd=REPOSITORY, env=controller_environment(ANSIBLE_CALLBACK_RESULT_FORMAT="json"),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=180, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answers = re.findall(r"^(\S+) \| SUCCESS => (\{[\s\S]*?^\})", done.stdout, re.MULTILINE)
    return {host: json.loads(text) for host, text in answers}


def fault(lab: Lab, host: str, faults: Mapping[str, object]) -> None:
    for name, value in faults.items():
        lab.run(host, ["gpusim", "fault", name, json.dumps(value)])


def test_hosts_that_are_well(lab: Lab) -> None:
    found = gather(lab, hub_endpoint=lab.hub_url)
    first, second = found["gpu-01"], found["gpu-02"]
    links = first["nvidia"]["topology"]
    assert [link["gpus"] for link in links] == [[0, 1], [0, 2], [0, 3], [1, 2], [1, 3], [2, 3]]
    assert {(link["link"], link["nvlinks"], link["p2p"]) for link in links} == {("nv18", 18, "ok")}
    assert first["nvidia"]["fabric_manager"] == {"installed": True, "active": True, "version": "580.95.05"}
    assert second["nvidia"]["topology"] == [{"gpus": [0, 1], "link": "phb", "nvlinks": 0, "p2p": "ok"}]
    assert second["nvidia"]["fabric_manager"] == {"installed": False, "active": False, "version": None}
    for host, facts in found.items():
        assert facts["nvidia"]["problems"] == [], host
        assert facts["nvidia"]["xids"] == []
        assert facts["nvidia"]["persistenced"] is True
        assert {gpu["persistence_mode"] for gpu in facts["gpus"]} == {"enabled"}
        assert [gpu["throttle"] for gpu in facts["gpus"]] == [[]] * len(facts["gpus"])
        assert {gpu["numa_node"] for gpu in facts["gpus"]} == {0}
        assert facts["reboot"]["required"] is not True
        assert {entry["path"] for entry in facts["filesystems"]} == {"/data/models", "/var/lib/docker"}
        assert lab.run(host, ["hostname", "-I"]).split()[0] in facts["addresses"]
        docker = facts["nvidia"]["container"]["docker"]
        assert docker["default_nofile_soft"] == docker["containerd_nofile_soft"] == facts["limits"]["nofile_soft"]
        assert docker["daemon_error"] is None
        assert docker["security_options"]
        assert facts["nvidia"]["container"]["cdi"]["newest_mtime"]
        assert facts["boot"]["id"] == lab.run(host, ["cat", "/proc/sys/kernel/random/boot_id"]).strip()
        assert (facts["hub"]["error"], facts["hub"]["token"]) == (None, "none")
        assert facts["hub"]["status"] == 200


def test_cards_that_are_not_well(lab: Lab) -> None:
    fault(
        lab,
        "gpu-02",
        {
            "persistence_off": [0, 1],
            "compute_mode": {"gpu": 0, "mode": "Exclusive_Process"},
            "pcie_width": {"gpu": 1, "width": 4},
            "throttle": {"gpu": 1, "reasons": ["hw_slowdown", "hw_thermal_slowdown"]},
            "temperature": {"gpu": 1, "celsius": 91},
            "power_limit": {"gpu": 0, "watts": 200},
            "topology": {"gpus": [0, 1], "link": "SYS", "p2p": "CNS"},
            "xid": [{"gpu": 0, "code": 13}, {"gpu": 1, "code": 79}],
            "reboot_required": ["linux-image-6.12.0-1-amd64"],
        },
    )
    found = gather(lab)
    well, facts = found["gpu-01"], found["gpu-02"]
    first, second = facts["gpus"]
    assert (first["persistence_mode"], second["persistence_mode"]) == ("disabled", "disabled")
    assert facts["nvidia"]["persistenced"] is False
    assert (first["compute_mode"], second["compute_mode"]) == ("exclusive_process", "default")
    assert second["pcie"]["width"] == {"current": 4, "max": 16}
    assert (first["throttle"], second["throttle"]) == ([], ["hw_slowdown", "hw_thermal_slowdown"])
    assert second["temperature_c"] > second["temperature_limit_c"]
    assert first["power"]["limit_w"] < first["power"]["default_limit_w"]
    assert facts["nvidia"]["topology"] == [{"gpus": [0, 1], "link": "sys", "nvlinks": 0, "p2p": "cns"}]
    xids = facts["nvidia"]["xids"]
    assert [(xid["xid"], xid["pci_bus_id"]) for xid in xids] == [
        (13, first["pci_bus_id"]),
        (79, second["pci_bus_id"]),
    ]
    assert all(xid["time"] >= facts["boot"]["time"] - 2 for xid in xids)
    assert facts["reboot"]["required"] is True
    assert "linux-image-6.12.0-1-amd64" in facts["reboot"]["why"]
    assert well["nvidia"]["xids"] == []
    assert well["reboot"]["required"] is not True


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("stopped", {"installed": True, "active": False, "version": "580.95.05"}),
        ("570.124.06", {"installed": True, "active": True, "version": "570.124.06"}),
        ("missing", {"installed": False, "active": False, "version": None}),
    ],
)
def test_fabric_manager(lab: Lab, told: str, expected: Facts) -> None:
    fault(lab, "gpu-01", {"fabric_manager": told})
    assert gather(lab)["gpu-01"]["nvidia"]["fabric_manager"] == expected


def test_whose_the_processes_are(lab: Lab) -> None:
    lab.run("gpu-01", ["sh", "-c", SLEEP])
    inside = int(lab.run("gpu-01", ["docker", "inspect", "--format", "{{.State.Pid}}", "notebook"]))
    foreign = [
        {"gpu": 1, "pid": inside, "name": "sleep", "memory_mib": 4096},
        {"gpu": 2, "pid": 4194000, "name": "gone", "memory_mib": 100},
    ]
    fault(lab, "gpu-01", {"orphan_engine": {"gpu": 0, "memory_mib": 70000}, "foreign_process": foreign})
    absent, present = "mirror/vllm-openai:v0.32.0", "mirror/vllm-openai:v0.33.0"
    facts = gather(lab, images=[absent, present])["gpu-01"]
    (orphan,), (contained,), (gone,), none = (gpu["processes"] for gpu in facts["gpus"])
    assert none == []
    assert (orphan["name"], orphan["orphan"], orphan["user"]) == ("VLLM::EngineCore", True, "root")
    assert (orphan["service"], orphan["container"]) == (None, None)
    assert "VLLM::EngineCore" in lab.run("gpu-01", ["cat", f"/proc/{orphan['pid']}/cmdline"])
    assert (contained["container"], contained["orphan"], contained["service"]) == ("notebook", False, None)
    assert (gone["user"], gone["container"], gone["orphan"]) == (None, None, False)

    images = facts["nvidia"]["container"]["images"]
    assert images[absent]["present"] is False
    image = images[present]
    assert (image["present"], image["cuda_version"], image["vllm_version"]) == (True, "13.0", "0.33.0")
    assert (image["require_cuda"], image["architecture"]) == ("cuda>=13.0", "amd64")
    assert image["size_bytes"] > 0

    lab.run("gpu-01", ["gpusim", "clear"])
    assert lab.run("gpu-01", ["sh", "-c", f"test -e /proc/{orphan['pid']} || echo ended"]).strip() == "ended"
    assert not any(gpu["processes"] for gpu in gather(lab)["gpu-01"]["gpus"])


def test_docker_that_is_down_or_wrongly_configured_costs_no_other_fact(lab: Lab) -> None:
    keep = "cp -a /etc/docker/daemon.json /root/daemon.json; printf '{\"debug\": true,}' >/etc/docker/daemon.json"
    lab.run("gpu-02", ["sh", "-c", f"{keep}; systemctl stop docker.socket docker.service"])
    try:
        facts = gather(lab, images=["a:1"])["gpu-02"]
    finally:
        lab.run("gpu-02", ["sh", "-c", "mv /root/daemon.json /etc/docker/daemon.json; systemctl start docker.service"])
    docker = facts["nvidia"]["container"]["docker"]
    assert docker["running"] is False
    assert docker["daemon_error"].startswith("/etc/docker/daemon.json is no JSON")
    assert docker["daemon_error"] in facts["nvidia"]["problems"]
    assert facts["nvidia"]["container"]["images"] is None
    assert len(facts["gpus"]) == 2
    assert facts["nvidia"]["topology"]


def test_a_hub_that_can_not_be_reached_is_told_apart(lab: Lab) -> None:
    name = gather(lab, hub_endpoint="https://hub.invalid")["gpu-02"]["hub"]
    assert name["status"] is None
    assert "hub.invalid can not be resolved" in name["error"]
    clear = gather(lab, hub_endpoint=lab.hub_url, hub_token="ms-0123456789")["gpu-02"]["hub"]
    assert "a token is set and the endpoint" in clear["error"]
    assert (clear["status"], clear["token"]) == (None, None)
