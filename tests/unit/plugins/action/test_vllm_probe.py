# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.task import Task
from ansible_collections.gpufleet.vllm.plugins.action import vllm_probe

Slice = dict[str, t.Any]


class Clock:
    """Every slice takes five seconds."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Host:
    """A managed host: answers slices in their order, the last one for ever."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.waits: list[Slice] = []
        self.answer: Slice = {"ok": True, "reports": [{"name": "a", "ok": True, "results": []}]}
        self.calls: list[dict[str, t.Any]] = []
        self.cuts: list[bool] = []

    def execute(self, module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> Slice:
        assert module_name == "gpufleet.vllm.vllm_probe"
        self.calls.append(module_args)
        if self.cuts and self.cuts.pop(0):
            raise AnsibleConnectionFailure("Failed to connect to the host via ssh: Broken pipe")
        if module_args["phase"] == "ask":
            return self.answer
        self.clock.now += 5
        return self.waits.pop(0) if len(self.waits) > 1 else self.waits[0]

    @property
    def phases(self) -> list[str]:
        return [call["phase"] for call in self.calls]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(vllm_probe, "time", clock)
    return clock


@pytest.fixture
def host(clock: Clock) -> Host:
    return Host(clock)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(vllm_probe.display, "display", lambda text, **_options: lines.append(text))
    monkeypatch.setattr(vllm_probe, "PROGRESS_SECONDS", 20.0)
    return lines


def run(host: Host, check_mode: bool = False, **args: t.Any) -> dict[str, t.Any]:
    endpoints = [{"name": "a", "url": "http://127.0.0.1:8000", "served_model_name": "m"}]
    task = Task()
    task.args = {"endpoints": endpoints, **args}
    task.check_mode = check_mode
    connection = type("Connection", (), {"_shell": type("Shell", (), {"tmpdir": None})()})()
    action = vllm_probe.ActionModule(task, connection, None, None, None, None)  # type: ignore[arg-type]
    action._execute_module = host.execute  # type: ignore[method-assign]
    return action.run(task_vars={"inventory_hostname": "gpu-01"})


def seen(
    state: str = "starting", ready: bool = False, pid: int | None = 7, restarts: int = 0, name: str = "a"
) -> Slice:
    service = {"ready": ready, "seen": "Connection refused", "log": [] if ready else ["Loading 40%"], "state": state,
               "pid": pid, "restarts": restarts}  # fmt: skip
    return {"ready": ready, "services": {name: service}}


READY = seen("running", ready=True)


def test_ready_at_once(host: Host, shown: list[str]) -> None:
    host.waits = [READY]
    result = run(host)
    assert not result.get("failed")
    assert result["changed"] is False
    assert result["reports"] == host.answer["reports"]
    assert host.phases == ["wait", "ask"]
    assert shown == []


def test_progress_is_shown_now_and_then(host: Host, shown: list[str]) -> None:
    host.waits = [seen()] * 9 + [READY]
    assert not run(host).get("failed")
    assert shown == [f"[gpu-01] a: starting, {s} s of 1800 s | Loading 40%" for s in (5, 25, 45)]


def test_the_deadline(host: Host, shown: list[str]) -> None:
    host.waits = [seen()]
    result = run(host, timeout=30)
    assert result["failed"]
    assert "a is not ready after 30 s" in result["msg"]
    assert "Loading 40%" in result["msg"]
    assert "raise ready_timeout" in result["msg"]
    assert host.phases == ["wait"] * 6


def test_a_service_has_its_own_deadline(host: Host, shown: list[str]) -> None:
    host.waits = [seen()]
    endpoint = {"name": "a", "url": "http://127.0.0.1:8000", "served_model_name": "m", "ready_timeout": 10}
    assert "a is not ready after 10 s" in run(host, endpoints=[endpoint])["msg"]


@pytest.mark.parametrize(
    "waits",
    [
        [seen("stopped", pid=None)],
        [seen("failed", pid=None)],
        [seen(pid=7), seen(pid=8), seen(pid=9)],
        [seen(restarts=0), seen(restarts=1), seen(restarts=2)],
    ],
    ids=["stopped", "failed", "new pids", "restarts"],
)
def test_deaths_end_the_wait(host: Host, shown: list[str], waits: list[Slice]) -> None:
    host.waits = waits
    result = run(host)
    assert result["failed"]
    assert "a did not start" in result["msg"]
    assert "Loading 40%" in result["msg"]
    assert "ask" not in host.phases
    assert len(host.calls) <= 3


def test_one_death_is_forgiven(host: Host, shown: list[str]) -> None:
    host.waits = [seen(pid=7), seen(pid=8, restarts=1), seen("running", ready=True, pid=8, restarts=1)]
    assert not run(host).get("failed")
    host.waits = [seen(pid=7), seen(pid=8, restarts=1)]
    assert run(host, max_restarts=0)["failed"]


def test_wrong_answers(host: Host, shown: list[str]) -> None:
    host.waits = [READY]
    wrong = {"kind": "chat", "asked": "capital?", "expected": "paris", "ok": False, "reason": "answered 'Rome'"}
    host.answer = {"ok": False, "reports": [{"name": "a", "ok": False, "results": [wrong], "log": ["last words"]}]}
    result = run(host)
    assert result["failed"]
    assert "a failed the chat probe" in result["msg"]
    assert "answered 'Rome'" in result["msg"]
    assert "last words" in result["msg"]
    assert result["reports"] == host.answer["reports"]


@pytest.mark.parametrize(
    "failure",
    [
        {"failed": True, "msg": "MODULE FAILURE", "code": "host.permission"},
        {"unreachable": True, "msg": "Failed to connect to the host via ssh"},
    ],
)
@pytest.mark.parametrize("phase", ["wait", "ask"])
def test_what_the_module_could_not_do_is_passed_on(
    host: Host, shown: list[str], failure: dict[str, t.Any], phase: str
) -> None:
    host.waits = [failure if phase == "wait" else READY]
    host.answer = failure
    result = run(host)
    assert {name: result[name] for name in failure} == failure
    assert host.phases[-1] == phase


def test_check_mode_asks_nothing(host: Host, shown: list[str]) -> None:
    result = run(host, check_mode=True)
    assert result["msg"] == "Check mode: 1 endpoint would be probed."
    assert result["changed"] is False
    assert host.calls == []


def test_no_endpoints(host: Host, shown: list[str]) -> None:
    assert run(host, endpoints=[])["reports"] == []
    assert host.calls == []


@pytest.mark.parametrize("check_mode", [True, False])
def test_a_bad_endpoint_is_refused_here(host: Host, shown: list[str], check_mode: bool) -> None:
    result = run(host, check_mode, endpoints=[{"name": "a"}])
    assert (result["failed"], result["code"]) == (True, "probe.bad_endpoint")
    assert host.calls == []


@pytest.mark.parametrize("cuts", [[True, True, False], [False, True, True, True]], ids=["wait", "ask"])
def test_a_connection_that_comes_back(host: Host, shown: list[str], cuts: list[bool]) -> None:
    host.waits, host.cuts = [READY], cuts
    result = run(host)
    assert not result.get("failed"), result
    assert result["reports"] == host.answer["reports"]
    assert shown == [
        "[gpu-01] no connection, trying again for 60 s: Failed to connect to the host via ssh: Broken pipe"
    ]


def test_a_connection_that_does_not_come_back(host: Host, shown: list[str], clock: Clock) -> None:
    host.waits, host.cuts = [seen()], [False] + [True] * 100
    started = clock.now
    result = run(host)
    assert result["failed"]
    assert "unreachable" not in result, "Ansible rescues no unreachable host"
    assert result["connection_lost"] == "Failed to connect to the host via ssh: Broken pipe (for 60 s)"
    assert "the host cannot be reached\n  seen:     Failed to connect" in result["msg"]
    assert clock.now - started < 90
    assert len(shown) == 2
