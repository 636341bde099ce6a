# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia as nv
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_docker as facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host

LIMITS = """Limit                     Soft Limit           Hard Limit           Units
Max cpu time              unlimited            unlimited            seconds
Max locked memory         {memlock}            unlimited            bytes
Max open files            {soft}                 524288               files
Max pending signals       96149                96149                signals
"""


def host(root: Path, files: dict[str, str]) -> Host:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return Host(root=str(root), find=lambda _name: None, load_nvml=lambda: None)


def docker(**more: t.Any) -> nv.Docker:
    return t.cast(nv.Docker, {**nv.empty_docker(), "installed": True, **more})


def processes(soft: int = 1024, command_line: str = "dockerd\0-H\0fd://\0") -> dict[str, str]:
    return {
        "proc/40/comm": "containerd\n",
        "proc/40/limits": LIMITS.format(soft=soft, memlock=8388608),
        "proc/60/comm": "dockerd\n",
        "proc/60/limits": LIMITS.format(soft=1048576, memlock="unlimited"),
        "proc/60/cmdline": command_line,
    }


def test_limits() -> None:
    assert facts.parse_limits(LIMITS.format(soft=1024, memlock=8388608)) == (1024, 524288, 8388608, -1)
    assert facts.parse_limits("") == facts.parse_limits("Max open files lots of\n") == (None, None, None, None)


def test_a_container_inherits_from_containerd(tmp_path: Path) -> None:
    found = docker()
    facts.complete(found, host(tmp_path, processes()))
    assert (found["default_nofile_soft"], found["containerd_nofile_soft"]) == (1024, 1024)
    assert (found["daemon_error"], found["dev_char_links"]) == (None, None)


@pytest.mark.parametrize(
    ("configuration", "command_line", "expected"),
    [
        ('{"default-ulimits": {"nofile": {"Name": "nofile", "Soft": 64000, "Hard": 64000}}}', "dockerd\0", 64000),
        ("{}", "dockerd\0--default-ulimit=nofile=4096:8192\0", 4096),
        ("", "dockerd\0--default-ulimit\0nofile=4096\0", 4096),
        ('{"default-ulimits": {"nofile": {"Soft": true}, "memlock": {"Soft": -1}}}', "dockerd\0", 1024),
        ('{"default-ulimits": ["nofile"]}', "dockerd\0--default-ulimit\0memlock=-1\0", 1024),
    ],
)
def test_what_the_daemon_was_told_comes_first(
    tmp_path: Path, configuration: str, command_line: str, expected: int
) -> None:
    found = docker()
    files = {**processes(command_line=command_line), "etc/docker/daemon.json": configuration}
    facts.complete(found, host(tmp_path, files))
    assert (found["default_nofile_soft"], found["daemon_error"]) == (expected, None)


@pytest.mark.parametrize(("text", "said"), [('{"a": 1,}', "is no JSON"), ("[]", "holds no JSON object")])
def test_a_configuration_that_can_not_be_read(tmp_path: Path, text: str, said: str) -> None:
    found = docker()
    facts.complete(found, host(tmp_path, {"etc/docker/daemon.json": text}))
    assert found["daemon_error"]
    assert found["daemon_error"].startswith(f"/etc/docker/daemon.json {said}")
    assert "Correct it, then restart Docker." in found["daemon_error"]
    assert found["default_nofile_soft"] is None


def test_docker_of_snap_has_a_file_of_its_own(tmp_path: Path) -> None:
    found = docker(snap=True)
    files = {"etc/docker/daemon.json": "{", "var/snap/docker/current/config/daemon.json": "["}
    facts.complete(found, host(tmp_path, files))
    assert (found["daemon_error"] or "").startswith("/var/snap/docker/current/config/daemon.json")


@pytest.mark.parametrize("other", [{"installed": False}, {"podman": True}])
def test_without_docker_nothing_is_looked_for(tmp_path: Path, other: dict[str, bool]) -> None:
    found = docker(**other)
    facts.complete(found, host(tmp_path, {**processes(), "etc/docker/daemon.json": "{"}))
    assert (found["default_nofile_soft"], found["daemon_error"]) == (None, None)


def test_links_of_devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Making device nodes takes a right that tests may lack: what stat says of them is made up."""
    machine = host(tmp_path, {"dev/nvidiactl": "", "dev/nvidia0": "", "dev/nvidia-caps/x": "", "dev/nvidia1": ""})
    real, minors = os.stat, {"nvidiactl": 255, "nvidia0": 0}

    def made_up(path: str, **options: t.Any) -> t.Any:
        name = os.path.basename(path)
        if name not in minors:
            return real(path, **options)
        values = [stat.S_IFCHR | 0o666, *[0] * 9]
        return os.stat_result(values, {"st_rdev": os.makedev(195, minors[name])})

    assert facts.device_links(machine) is None, "no device among them"
    monkeypatch.setattr(facts.os, "stat", made_up)
    assert facts.device_links(machine) is False
    host(tmp_path, {"dev/char/195:255": ""})
    assert facts.device_links(machine) is False
    host(tmp_path, {"dev/char/195:0": ""})
    assert facts.device_links(machine) is True
