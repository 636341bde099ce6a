# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The emulated hosts themselves: two families and one without Docker, over real SSH, with a real registry."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, controller_environment
from gpu_lab import Engine, HostSpec, Lab, LabError, Registry, SpecError, default_hosts, parse, registry_address
from gpu_lab._base import find, need
from gpu_lab.engine import LINK
from gpu_lab.lab import names
from gpu_lab.spec import load

pytestmark = pytest.mark.lab

NAME = "labtest"
HOSTS = [
    HostSpec("gpu-01", "debian13"),
    HostSpec("gpu-02", "debian12", {"model": "l40s", "count": 2}),
    HostSpec("fresh", "debian13", docker=False),
]
# Beside each host with Docker: its systemd and its engine.
VERSIONS = {"gpu-01": ("systemd 257", "26.1"), "gpu-02": ("systemd 252", "20.10")}
SAY = 'echo "from $(hostname)"; wget -q -O - "$1"'


@pytest.fixture(scope="module")
def inventory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("inventory") / "hosts.yml"


@pytest.fixture(scope="module")
def lab(inventory: Path) -> Iterator[Lab]:
    with Lab(NAME, HOSTS, inventory=inventory, user="ops", hub=inventory.parent) as made:
        yield made


@pytest.fixture(scope="module")
def image(lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A small image in the registry, made of busybox; by its digest."""
    root = tmp_path_factory.mktemp("image")
    return f"{registry_address()}/labtest@{push(root)}"


def push(directory: Path) -> str:
    need({"busybox": "busybox-static"})
    rootfs = directory / "rootfs.tar"
    with tarfile.open(rootfs, "w") as tar:
        tar.add(find("busybox") or "", "bin/busybox")
        for name in ("sh", "hostname", "wget"):
            link = tarfile.TarInfo(f"bin/{name}")
            link.type, link.linkname = tarfile.SYMTYPE, "busybox"
            tar.addfile(link)
    return Registry().push(rootfs, "labtest:1", {"Entrypoint": ["/bin/sh"], "Env": ["PATH=/bin"]})


def ansible(inventory: Path, *arguments: str) -> dict[str, str]:
    """What one module answers on every host, by name."""
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible"), "-i", inventory, "gpu_hosts", *arguments],
        cwd=REPOSITORY, env=controller_environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(re.findall(r"^(\S+) \| (?:SUCCESS|CHANGED).*\n([\s\S]*?)(?=^\S+ \||\Z)", done.stdout, re.MULTILINE))


def boots(lab: Lab) -> dict[str, str]:
    """When PID 1 of each host began: another boot has another."""
    return {host: lab.run(host, ["stat", "-c", "%Z", "/proc/1"]).strip() for host in lab.hosts}


def test_ansible_reaches_every_host_and_is_root_there(lab: Lab, inventory: Path) -> None:
    pings = ansible(inventory, "-m", "ping")
    assert set(pings) == set(lab.hosts)
    assert all("pong" in answer for answer in pings.values())
    assert ansible(inventory, "-m", "command", "-a", "id -u") == dict.fromkeys(lab.hosts, "0\n")
    assert inventory.read_text() == lab.inventory.read_text()


def test_hosts_have_booted_with_systemd_docker_and_compose(lab: Lab) -> None:
    for host, (systemd, engine) in VERSIONS.items():
        assert lab.run(host, ["systemctl", "is-system-running"]).strip() == "running"
        assert lab.run(host, ["systemctl", "--version"]).startswith(systemd)
        shown = json.loads(lab.run(host, ["docker", "info", "--format", "{{json .}}"]))
        assert shown["ServerVersion"].startswith(engine)
        assert (shown["CgroupVersion"], shown["Driver"]) == ("2", "overlay2")
        assert lab.run(host, ["docker", "compose", "version", "--short"]).startswith("2.")
        assert lab.run(host, ["hostname"]).strip() == f"{NAME}-{host}"


def test_hosts_have_the_gpus_of_their_specification(lab: Lab) -> None:
    shown = {host: lab.run(host, ["nvidia-smi", "--list-gpus"]).splitlines() for host in lab.hosts}
    assert {host: len(lines) for host, lines in shown.items()} == {"gpu-01": 3, "gpu-02": 2, "fresh": 3}
    assert all("H100" in line for line in shown["gpu-01"])
    assert all("L40S" in line for line in shown["gpu-02"])
    uuids = [line.rpartition("UUID: ")[2] for lines in shown.values() for line in lines]
    assert len(set(uuids)) == len(uuids), "each GPU is one of its own"


def test_a_nested_container_comes_from_the_registry_and_reaches_the_hub(lab: Lab, image: str) -> None:
    assert lab.hub_url
    assert Registry().digest("labtest:1") == image.partition("@")[2]
    for host in VERSIONS:
        said = lab.run(host, ["docker", "run", "--rm", "--hostname", "inner", image, "-c", SAY, "sh",
                              f"http://{registry_address()}/v2/"])  # fmt: skip
        assert said == "from inner\n{}"
        code = ["curl", "--silent", "--output", "/dev/null", "--write-out", "%{http_code}", f"{lab.hub_url}/no/such"]
        assert lab.run(host, code) == "404"


def test_pushing_the_same_files_again_sends_nothing(
    lab: Lab, image: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = push(tmp_path)
    capsys.readouterr()
    again = Registry().push(tmp_path / "rootfs.tar", "labtest:1", {"Entrypoint": ["/bin/sh"], "Env": ["PATH=/bin"]})
    assert again == first
    assert "pushed" not in capsys.readouterr().err


def test_a_host_without_docker_can_install_it(lab: Lab) -> None:
    assert not lab.run("fresh", ["sh", "-c", "command -v docker dockerd nvidia-ctk"], check=False)
    lab.run("fresh", ["apt-get", "-qq", "update"])
    simulated = lab.run("fresh", ["apt-get", "--simulate", "install", "docker.io", "docker-cli", "docker-compose"])
    assert "Inst docker.io" in simulated
    assert "Inst docker-compose" in simulated


def test_a_killed_engine_comes_back_with_its_hosts(lab: Lab, inventory: Path) -> None:
    before = boots(lab)
    pid = lab.engine.daemon.pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    assert len(ansible(inventory, "-m", "ping")) == len(HOSTS), "hosts do not need it to run"
    Lab(NAME).up()
    assert lab.engine.daemon.pid not in (None, pid)
    assert boots(lab) == before


def test_up_repairs_what_is_not_well(lab: Lab, inventory: Path) -> None:
    before = boots(lab)
    lab.pause("gpu-01")
    lab.disconnect("gpu-02")
    lab.kill("fresh")
    assert set(lab.states().values()) == {"paused", "disconnected", "exited"}
    Lab(NAME).up()
    after = boots(lab)
    assert {host for host in after if after[host] != before[host]} == {"fresh"}, "only a dead one is made again"
    assert len(ansible(inventory, "-m", "ping")) == len(HOSTS)


def test_down_leaves_nothing(lab: Lab, inventory: Path) -> None:
    lab.down()
    assert not lab.directory.exists()
    assert not inventory.exists()
    assert NAME not in names()
    if names():
        for kind in (("ps", "--all"), ("volume", "ls"), ("network", "ls")):
            assert not lab.engine.docker(*kind, "--quiet", "--filter", f"label=gpulab={NAME}")
        assert not lab.engine.docker("network", "ls", "--quiet", "--filter", f"name=gpulab-{NAME}")
    else:
        assert not Engine().runtime.exists()
        assert not Path(f"/sys/class/net/{LINK}").exists()
    lab.down()
    with pytest.raises(LabError, match=f"there is no lab {NAME}"):
        lab.host("gpu-01")


@pytest.mark.parametrize(
    ("document", "seen"),
    [
        ({}, "without hosts"),
        ({"hosts": []}, "without hosts"),
        ({"hosts": [{"family": "debian13"}]}, "expected: an object that has a name"),
        ({"hosts": [{"name": "gpu-01", "cpus": 2}]}, "cpus: 2"),
        ({"hosts": [{"name": "gpu-01", "family": "debian9"}]}, "debian9"),
        ({"hosts": [{"name": "GPU_01"}]}, "GPU_01"),
        ({"hosts": [{"name": "gpu-01"}, {"name": "gpu-01"}]}, "two hosts named gpu-01"),
    ],
)
def test_a_wrong_specification_is_refused_before_anything_is_made(document: object, seen: str) -> None:
    with pytest.raises(SpecError, match=seen) as refused:
        parse(document)
    assert "do this:" in str(refused.value)


def test_a_specification_that_is_not_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "spec.json"
    path.write_text("{")
    with pytest.raises(SpecError, match=str(path)):
        load(path)


def test_a_number_of_hosts_alternates_families() -> None:
    assert [(host.name, host.family) for host in default_hosts(3)] == [
        ("gpu-01", "debian13"),
        ("gpu-02", "debian12"),
        ("gpu-03", "debian13"),
    ]
