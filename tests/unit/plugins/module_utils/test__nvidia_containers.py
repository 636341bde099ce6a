# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What Docker and CDI say in all their versions is held in test__nvidia_probe.py, through the whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_containers as containers
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

FIXTURES = Path(__file__).parent / "fixtures" / "nvidia"


class Run:
    """Docker 28.5, which hangs when it is asked for what ``hangs`` names."""

    def __init__(self, hangs: str = "") -> None:
        self.hangs, self.calls = hangs, list[str]()

    def __call__(self, argv: Sequence[str], timeout: float) -> CommandResult:
        del timeout
        self.calls.append(" ".join(argv))
        if argv[1] == self.hangs:
            return CommandResult(124, "", "", timed_out=True)
        text = {"version": "docker-28.5-version.json", "info": "docker-28.5-info.json"}.get(argv[1])
        if text:
            return CommandResult(0, (FIXTURES / text).read_text(encoding="utf-8"), "")
        return CommandResult(0, json.dumps([{"Id": "sha256:1"}]), "")


def host(root: Path) -> Host:
    return Host(root=str(root), find={"docker": "docker"}.get, load_nvml=lambda: None)


def test_images_are_asked_for_in_one_question(tmp_path: Path) -> None:
    run, problems = Run(), list[str]()
    found = containers.read_containers(run, host(tmp_path), 9, ["a:1"], problems)
    assert found["images"] is not None
    assert found["images"]["a:1"]["id"] == "sha256:1"
    assert [call for call in run.calls if "image" in call] == ["docker image inspect a:1"]
    assert problems == []


def test_without_images_none_is_asked_for(tmp_path: Path) -> None:
    run = Run()
    found = containers.read_containers(run, host(tmp_path), 9, [], [])
    assert found["images"] == {}
    assert not [call for call in run.calls if "image" in call]


def test_a_server_that_hangs_is_not_asked_for_images(tmp_path: Path) -> None:
    run, problems = Run(hangs="version"), list[str]()
    found = containers.read_containers(run, host(tmp_path), 9, ["a:1"], problems)
    assert found["images"] is None
    assert not [call for call in run.calls if "image" in call]
    assert problems == ["The Docker server gave no answer within 9 s. Restart it: systemctl restart docker."]


def test_a_configuration_that_is_broken_is_said(tmp_path: Path) -> None:
    path = tmp_path / "etc/docker/daemon.json"
    path.parent.mkdir(parents=True)
    path.write_text("{")
    problems = list[str]()
    docker = containers.read_containers(Run(), host(tmp_path), 9, [], problems)["docker"]
    assert problems == [docker["daemon_error"]]
    assert docker["running"] is True


def test_the_newest_specification_and_one_of_another_driver(tmp_path: Path) -> None:
    directory = tmp_path / "etc/cdi"
    directory.mkdir(parents=True)
    text = (FIXTURES / "cdi-nvidia-ctk-1.17.yaml").read_text(encoding="utf-8")
    (directory / "nvidia.yaml").write_text(text, encoding="utf-8")
    cdi = containers.read_containers(Run(), host(tmp_path), 9, [], [])["cdi"]
    assert cdi["newest_mtime"] == cdi["specs"][0]["mtime"]
    assert containers.stale_cdi(cdi, cdi["specs"][0]["driver_version"]) == []
    (said,) = containers.stale_cdi(cdi, "535.1")
    assert "and the host runs 535.1" in said
