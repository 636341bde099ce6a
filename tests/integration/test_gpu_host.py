# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The role gpu_host on the RHEL family, with stand-ins for its package manager and Docker (tests/lab/rhel_box).

The Debian family is real, in the molecule scenario ``prerequisites``.
"""

from __future__ import annotations

import configparser
import json
import sys
import typing as t
from pathlib import Path

import pytest
from fleet_box import REPOSITORY, Run, controller_environment
from rhel_box import RhelBox, is_root

KEY = "-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nmQGNBGsEeXEBDADE\n-----END PGP PUBLIC KEY BLOCK-----\n"
DOCKER = {"url": "https://mirror.example.com/docker/$releasever/$basearch/stable", "key": KEY}
TOOLKIT = {
    "url": "https://mirror.example.com/toolkit/$basearch",
    "key": KEY,
    "gpgcheck": False,
    "repo_gpgcheck": True,
}
PREPARED = {
    "gpu_host_docker_source": "repository",
    "gpu_host_docker_repository": DOCKER,
    "gpu_host_toolkit_repository": TOOLKIT,
}
PACKAGES = {"docker-ce": "28.5.1-1.el9", "docker-ce-cli": "28.5.1-1.el9"}
RUNNING = {"docker": "active", "enabled": True, "tools": ["docker", "dockerd"]}


@pytest.fixture(autouse=True)
def root() -> None:
    assert is_root(), "these tests mount, in a namespace of their own: run them as root (in a container: --privileged)"


def play(box: RhelBox, variables: dict[str, t.Any], *arguments: str) -> Run:
    inventory = box.directory / "hosts.json"
    host = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    inventory.write_text(json.dumps({"gpu_hosts": {"hosts": {"gpu-01": host}, "vars": variables}}))
    playbook = REPOSITORY / "playbooks" / "prerequisites.yml"
    command = [Path(sys.executable).with_name("ansible-playbook"), "-i", inventory, playbook, *arguments]
    done = box.run(*command, environment=controller_environment())
    return Run(done.returncode, done.stdout)


def repository(box: RhelBox, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(box.etc / "yum.repos.d" / f"{name}.repo")
    return dict(parser[name])


def test_a_fresh_host() -> None:
    with RhelBox() as box:
        predicted = play(box, PREPARED, "--check", "--diff")
        assert predicted.rc == 0, predicted.output
        assert box.state["packages"] == {}
        assert not (box.etc / "docker").exists()
        first = play(box, PREPARED)
        assert first.rc == 0, first.output
        assert first.changed == predicted.changed

        packages = ["containerd.io", "docker-buildx-plugin", "docker-ce", "docker-ce-cli", "docker-compose-plugin"]
        packages.append("nvidia-container-toolkit")
        assert box.asked("dnf") == [f"dnf --assumeyes --refresh install {' '.join(packages)}"]
        key_file = "etc/pki/rpm-gpg/RPM-GPG-KEY-gpufleet-docker"
        assert repository(box, "gpufleet-docker") == {
            "name": "Docker, from gpu_host_docker_repository",
            "baseurl": DOCKER["url"],
            "gpgcheck": "1",
            "repo_gpgcheck": "0",
            "gpgkey": f"file:///{key_file}",
        }
        assert (box.directory / key_file).read_text() == KEY
        toolkit = repository(box, "gpufleet-nvidia-container-toolkit")
        assert (toolkit["gpgcheck"], toolkit["repo_gpgcheck"]) == ("0", "1")

        # Its preset leaves Docker disabled; --no-reload keeps systemd's units as they are.
        assert box.asked("systemctl") == [
            "systemctl --no-ask-password enable --no-reload docker.service",
            "systemctl --no-ask-password start docker.service",
        ]
        daemon = json.loads((box.etc / "docker/daemon.json").read_text())
        assert daemon["runtimes"]["nvidia"]["path"] == "nvidia-container-runtime"
        assert "Docker 28.5.1, Compose 2.40.1, toolkit 1.20.0" in " ".join(first.output.split())
        assert "no NVIDIA driver answers" in " ".join(first.output.split())

        for arguments in (["--check"], []):
            again = play(box, PREPARED, *arguments)
            assert (again.rc, again.changed) == (0, 0), again.output
        assert len(box.asked("dnf")) == 1
        assert box.asked("apt-get") == []


@pytest.mark.parametrize("version", ["8.10", "10.0"])
def test_other_releases_of_the_family(version: str) -> None:
    with RhelBox(version=version) as box:
        run = play(box, PREPARED)
        assert (run.rc, run.changed) == (0, 6), run.output
        assert box.state["docker"] == "active"
        assert box.state["enabled"]


def test_a_release_of_the_toolkit() -> None:
    state = {"packages": {**PACKAGES, "docker-compose-plugin": "1", "docker-buildx-plugin": "1", "containerd.io": "1"}}
    with RhelBox({**state, **RUNNING}) as box:
        pinned = {**PREPARED, "gpu_host_toolkit_version": "1.18.2"}
        run = play(box, pinned)
        assert run.rc == 0, run.output
        names = ["libnvidia-container-tools", "libnvidia-container1", "nvidia-container-toolkit"]
        names.append("nvidia-container-toolkit-base")
        assert box.asked("dnf")[0].endswith("install " + " ".join(f"{name}-1.18.2" for name in names))
        assert box.state["packages"]["libnvidia-container1"] == "1.18.2-1"
        assert play(box, pinned).changed == 0
        assert play(box, {**pinned, "gpu_host_toolkit_version": "1.19"}, "--check").changed == 1


@pytest.mark.parametrize(
    ("state", "variables", "words"),
    [
        ({}, {"gpu_host_docker_source": "distribution"}, "Rocky 9.4 carries no Docker Engine"),
        ({}, {"gpu_host_toolkit_repository": {}}, "Unable to find a match: nvidia-container-toolkit"),
        ({}, {"gpu_host_docker_repository": {"url": DOCKER["url"]}}, "no key"),
        ({}, {"gpu_host_docker_repository": {**DOCKER, "url": "https://me:secret@mirror/x"}}, "without credentials"),
        ({}, {"gpu_host_docker_repository": {**DOCKER, "suites": "x"}}, "suites. Supported parameters include"),
        ({}, {"gpu_host_package_files": ["/x/docker.deb"]}, "end with .rpm"),
        ({**RUNNING, "root_dir": "/var/snap/docker/x"}, {}, "Docker is a snap here"),
        ({**RUNNING, "podman": True}, {}, "is Podman's here"),
        ({**RUNNING, "docker_version": "19.03.9"}, {}, "Docker 19.03.9 is installed"),
        ({**RUNNING, "no_compose": True}, {}, "has no Compose plugin, and it is not from the packages"),
        ({**RUNNING, "packages": PACKAGES, "containers": {"vllm-chat": True}},
         {}, "Docker must be restarted (the NVIDIA Container Toolkit is new"),
        ({**RUNNING, "packages": PACKAGES, "containers": {"vllm-chat": True}},
         {"gpu_host_allow_docker_restart": True}, "GPU containers run here (vllm-chat), and these packages"),
    ],
    ids=["distribution", "toolkit", "key", "credentials", "typo", "files", "snap", "podman", "old", "foreign",
         "restart", "reload"],
)  # fmt: skip
def test_refused_before_anything_is_changed(state: dict[str, t.Any], variables: dict[str, t.Any], words: str) -> None:
    with RhelBox(state) as box:
        run = play(box, {**PREPARED, **variables})
        assert run.rc != 0
        assert words in " ".join(run.output.split()).replace("''", "'"), run.output
        assert "secret@" not in run.output
        assert box.state["packages"] == state.get("packages", {})
        assert not (box.etc / "docker").exists()
        assert [call for call in box.asked("systemctl") if "show" not in call] == []
