# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import pwd
import subprocess
import time
import typing as t
from collections.abc import Iterator, Sequence

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _host_processes as processes
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

ID = "4f1c" * 16
OURS = "/var/lib/gpufleet-vllm"
# Starts one child under another name, says its pid, and stays or goes.
PARENT = '(exec -a "$1" sleep 300 >/dev/null) & echo $!; if [ "$2" = stay ]; then wait; fi'


@pytest.mark.parametrize(
    "cgroup",
    [
        f"0::/system.slice/docker-{ID}.scope\n",
        f"12:devices:/docker/{ID}\n0::/\n",
        f"0::/../docker-{ID}.scope/init\n",
        f"0::/kubepods.slice/kubepods-pod1.slice/cri-containerd-{ID}.scope\n",
        f"0::/machine.slice/libpod-{ID}.scope/container\n",
    ],
)
def test_the_container_of_a_process(cgroup: str) -> None:
    assert processes.container_id(cgroup) == ID


@pytest.mark.parametrize("cgroup", ["", "0::/user.slice\n", f"0::/docker-{ID}0.scope\n", "garbage", "0::/docker/abc\n"])
def test_a_process_of_none(cgroup: str) -> None:
    assert processes.container_id(cgroup) is None


def test_containers() -> None:
    text = f"{ID}\tvllm-chat-1\tchat\t{OURS}\n{'5' * 64}\tother\t\t\nbroken\tline\n"
    assert processes.parse_containers(text) == {
        ID: ("vllm-chat-1", "chat", OURS),
        "5" * 64: ("other", "", ""),
    }


@pytest.mark.parametrize(
    ("command_line", "engine"),
    [
        ("VLLM::EngineCore\0", True),
        ("VLLM::Worker_TP0", True),
        ("python3\0-c\0from multiprocessing.spawn import spawn_main; spawn_main(1)\0--multiprocessing-fork\0", True),
        ("VLLM::APIServer_0", False),
        ("python3\0/usr/bin/vllm\0serve\0/model\0", False),
        ("/usr/bin/blender\0", False),
        ("", False),
    ],
)
def test_engine_processes(command_line: str, engine: bool) -> None:
    assert processes.is_engine(command_line) is engine


class Run:
    def __init__(self, text: str = "") -> None:
        self.text, self.calls = text, list[list[str]]()

    def __call__(self, argv: Sequence[str], timeout: float) -> CommandResult:
        del timeout
        self.calls.append(list(argv))
        return CommandResult(0, self.text, "")


@pytest.fixture
def family() -> Iterator[t.Callable[[str, str, str], tuple[int, int]]]:
    """Starts a parent and its child under these names; whether the parent stays. All are ended afterwards."""
    started: list[subprocess.Popen[str]] = []
    children: list[int] = []

    def start(parent: str, child: str, stays: str) -> tuple[int, int]:
        process = subprocess.Popen(
            [parent, "-c", PARENT, parent, child, stays], executable="/bin/bash", stdout=subprocess.PIPE, text=True
        )
        started.append(process)
        assert process.stdout is not None
        children.append(int(process.stdout.readline()))
        # The child has its name once it has become another program; until then its words are its parent's.
        deadline = time.monotonic() + 30
        while not processes.read(f"/proc/{children[-1]}/cmdline").startswith(child) and time.monotonic() < deadline:
            time.sleep(0.01)
        if stays != "stay":
            process.wait(timeout=30)
        return process.pid, children[-1]

    yield start
    for child in children:
        os.kill(child, 9)
    for process in started:
        process.kill()
        process.wait(timeout=30)
        assert process.stdout is not None
        process.stdout.close()


def whose(pid: int, services: dict[str, int] | None = None, run: Run | None = None) -> processes.Owner:
    return processes.owners(run or Run(), "docker", [pid], services or {}, OURS, 9)[pid]


def test_an_engine_of_a_service_of_ours(family: t.Any) -> None:
    server, engine = family("vllm", "VLLM::EngineCore", "stay")
    user = pwd.getpwuid(os.getuid()).pw_name
    run = Run()
    assert whose(engine, {"chat": server, "stopped": 0}, run) == {
        "service": "chat", "container": None, "orphan": False, "user": user,
    }  # fmt: skip
    assert run.calls == [], "Docker is asked only of what is in a container"


def test_an_engine_whose_server_is_somebody_elses(family: t.Any) -> None:
    _server, engine = family("vllm", "VLLM::EngineCore", "stay")
    assert whose(engine)["orphan"] is False


def test_an_engine_whose_server_is_gone(family: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _server, engine = family("vllm", "VLLM::EngineCore", "go")
    # Where these tests run, another process than init may take orphans in.
    monkeypatch.setattr(processes, "_is_init", lambda pid: pid != engine)
    assert whose(engine) == {
        "service": None, "container": None, "orphan": True, "user": pwd.getpwuid(os.getuid()).pw_name,
    }  # fmt: skip
    assert whose(engine, {"chat": engine})["orphan"] is False


def test_a_worker_below_an_engine_that_nobody_owns(family: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    core, worker = family("VLLM::EngineCore", "VLLM::Worker_TP1", "stay")
    assert whose(worker)["orphan"] is False, "its engine has these tests as a parent"
    monkeypatch.setattr(processes, "_is_init", lambda pid: pid not in (core, worker))
    assert whose(worker)["orphan"] is True


def test_a_process_that_is_no_engine_is_no_orphan(family: t.Any, monkeypatch: pytest.MonkeyPatch) -> None:
    _parent, child = family("bash", "blender", "go")
    monkeypatch.setattr(processes, "_is_init", lambda _pid: True)
    assert whose(child)["orphan"] is False


def test_a_process_that_is_gone() -> None:
    assert whose(2**22 - 3) == {"service": None, "container": None, "orphan": False, "user": None}


@pytest.mark.parametrize(
    ("text", "service", "container"),
    [
        (f"{ID}\tvllm-chat-1\tchat\t{OURS}\n", "chat", "vllm-chat-1"),
        (f"{ID}\tvllm-chat-1\tchat\t/other/root\n", None, "vllm-chat-1"),
        (f"{ID}\tjupyter\t\t\n", None, "jupyter"),
        ("", None, ID[:12]),
    ],
)
def test_a_process_in_a_container(
    monkeypatch: pytest.MonkeyPatch, text: str, service: str | None, container: str
) -> None:
    real = processes.read
    monkeypatch.setattr(
        processes, "read", lambda path: f"0::/docker/{ID}\n" if path.endswith("/cgroup") else real(path)
    )
    run = Run(text)
    found = whose(os.getpid(), run=run)
    assert (found["service"], found["container"], found["orphan"]) == (service, container, False)
    assert len(run.calls) == 1
    assert "--no-trunc" in run.calls[0]
    assert json.dumps(found)
