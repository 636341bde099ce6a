# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest
from ansible import constants
from ansible.errors import AnsibleConnectionFailure
from ansible.playbook.task import Task
from ansible_collections.gpufleet.vllm.plugins.action import vllm_artifacts

Answer = dict[str, t.Any]
JOB = {"id": "0123456789abcdef", "pid": 4711, "models": ["acme/tiny"], "attached": False}
STARTED: Answer = {"changed": False, "job": JOB, "warnings": ["an earlier job was killed"]}
ENTRY = {"path": "/data/tiny", "changed": True, "bytes_fetched": 9, "item": {"model": "acme/tiny"}, "failed": False}
SETTLED: Answer = {"changed": False, "results": [{**ENTRY, "changed": False, "bytes_fetched": 0}]}
DONE: Answer = {"changed": True, "done": True, "lingers": False, "results": [ENTRY]}
GONE: Answer = {"changed": False, "done": False, "gone": True}
ARTIFACTS = [{"model": "acme/tiny", "path": "/data/tiny"}]


def going(done: int, **more: t.Any) -> Answer:
    status = {"phase": "fetching", "model": "acme/tiny", "total": 100, "done": done, "rate": 10, "eta": 5.0, **more}
    return {"changed": False, "done": False, "status": status}


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Host:
    """A managed host: answers its calls in their order, the last wait for ever; each wait takes as long as it may."""

    def __init__(self, clock: Clock) -> None:
        self.clock, self.starts, self.waits = clock, [STARTED], [DONE]
        self.calls: list[dict[str, t.Any]] = []
        self.cuts: list[bool] = []

    def execute(self, module_name: str, module_args: dict[str, t.Any], task_vars: dict[str, t.Any]) -> Answer:
        assert module_name == "gpufleet.vllm.vllm_artifacts"
        self.calls.append(module_args)
        if self.cuts and self.cuts.pop(0):
            raise AnsibleConnectionFailure("Failed to connect to the host via ssh: Broken pipe")
        if module_args["phase"] != "wait":
            return dict(self.starts.pop(0) if len(self.starts) > 1 else self.starts[0])
        answer = self.waits.pop(0) if len(self.waits) > 1 else self.waits[0]
        if "status" in answer:
            self.clock.now += module_args["slice"]
        return dict(answer)

    @property
    def phases(self) -> list[str]:
        return [call["phase"] for call in self.calls]


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    clock = Clock()
    monkeypatch.setattr(vllm_artifacts, "time", clock)
    return Host(clock)


@pytest.fixture(autouse=True)
def shown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    lines: list[str] = []
    monkeypatch.setattr(vllm_artifacts.display, "display", lambda text, **_options: lines.append(text))
    monkeypatch.setattr(vllm_artifacts, "PROGRESS_SECONDS", 20.0)
    monkeypatch.setattr(constants, "DEFAULT_LOCAL_TMP", str(tmp_path))
    return lines


def run(host: Host, check_mode: bool = False, **args: t.Any) -> dict[str, t.Any]:
    task = Task()
    task.args = {"artifacts": ARTIFACTS, "token": "secret", **args}
    task.check_mode = check_mode
    connection = type("Connection", (), {"_shell": type("Shell", (), {"tmpdir": None})()})()
    action = vllm_artifacts.ActionModule(task, connection, None, None, None, None)  # type: ignore[arg-type]
    action._execute_module = host.execute  # type: ignore[method-assign]
    return action.run(task_vars={"inventory_hostname": "gpu-01"})


def test_nothing_to_do_is_one_call(host: Host, shown: list[str]) -> None:
    host.starts = [SETTLED]
    result = run(host)
    assert (result["changed"], result["results"]) == (False, SETTLED["results"])
    assert host.calls == [{"artifacts": ARTIFACTS, "token": "secret", "phase": "start"}]
    assert shown == []


def test_it_starts_and_waits(host: Host, shown: list[str]) -> None:
    host.waits = [going(10), going(20), going(30), DONE]
    result = run(host)
    assert (result["changed"], result["results"], "done" in result, "job" in result) == (True, [ENTRY], False, False)
    assert result["warnings"] == STARTED["warnings"]
    assert host.phases == ["start", "wait", "wait", "wait", "wait"]
    assert shown == [
        vllm_artifacts.IN_BACKGROUND,
        "[gpu-01] acme/tiny: 10 of 100 B (10 %), 10 B/s, 5 s left",
        "[gpu-01] acme/tiny: 20 of 100 B (20 %), 10 B/s, 5 s left",
        "[gpu-01] acme/tiny: 30 of 100 B (30 %), 10 B/s, 5 s left",
    ]
    assert [call["slice"] for call in host.calls[1:]] == [5.0, 20.0, 20.0, 20.0]
    assert all(set(call) == {"phase", "started", "slice"} for call in host.calls[1:]), "no secret is sent to wait"
    assert host.calls[1]["started"] == {"job": JOB}


def test_the_notice_is_for_the_run_and_not_for_each_host(host: Host, shown: list[str]) -> None:
    host.waits = [going(10), DONE]
    run(host)
    host.waits = [going(10), DONE]
    run(host)
    assert shown.count(vllm_artifacts.IN_BACKGROUND) == 1
    assert len(shown) == 3


def test_a_long_wait_is_told_of_rarely(host: Host, shown: list[str]) -> None:
    host.waits = [going(number) for number in range(180)] + [DONE]
    started = host.clock.now
    run(host)
    assert host.clock.now - started > 3500
    assert 60 < len(shown) < 110


def test_two_tasks(host: Host) -> None:
    started = run(host, background=True)
    assert host.phases == ["start"]
    assert started["job"] == JOB
    result = run(host, started=started)
    assert host.phases == ["start", "wait"]
    assert result["results"] == [ENTRY]
    assert not result.get("warnings"), "they were said with the first task"


def test_two_tasks_with_nothing_to_do_are_one_call(host: Host) -> None:
    host.starts = [{**SETTLED, "diff": []}]
    started = run(host, background=True)
    result = run(host, started={**started, "changed": False})
    assert (result["changed"], result["results"]) == (False, SETTLED["results"])
    assert host.phases == ["start"]


def test_a_prediction_is_handed_on(host: Host) -> None:
    """The first task says changed_when: false, so that one of the two counts."""
    host.starts = [{"changed": True, "results": [ENTRY], "diff": ["x"]}]
    started = run(host, check_mode=True, background=True)
    assert host.phases == ["run"]
    result = run(host, check_mode=True, started={**started, "changed": False})
    assert (result["changed"], result["diff"], host.phases) == (True, ["x"], ["run"])


@pytest.mark.parametrize("state", ["absent", "stopped"])
def test_what_needs_no_job(host: Host, state: str) -> None:
    host.starts = [{"changed": True, "results": [], "stopped": [JOB]}]
    started = run(host, state=state, background=True)
    assert host.phases == ["run"]
    assert run(host, state=state, started={**started, "changed": False})["changed"]


def test_an_attached_job_is_told_of(host: Host, shown: list[str]) -> None:
    host.starts = [{"changed": False, "job": {**JOB, "attached": True}}]
    run(host)
    assert shown == ["[gpu-01] a job that an earlier run started goes on (process 4711)"]


def test_somebody_else_took_the_result(host: Host) -> None:
    host.starts, host.waits = [STARTED, SETTLED], [GONE]
    result = run(host)
    assert (result["changed"], result["results"]) == (False, SETTLED["results"])
    assert host.phases == ["start", "wait", "start"]
    host.calls.clear()
    host.starts = [STARTED]
    result = run(host, started={"job": JOB})
    assert host.phases == ["wait", "start", "wait", "start", "wait"], "not for ever"
    assert (result["failed"], "gone" in result) == (True, False)
    assert "run it again" in result["msg"]


@pytest.mark.parametrize(
    "failure",
    [
        {"failed": True, "msg": "the job died", "code": "job.died"},
        {"failed": True, "msg": "1 of 2 artifacts failed.", "results": [ENTRY, {"failed": True}], "changed": True},
        {"unreachable": True, "msg": "Failed to connect to the host via ssh"},
    ],
)
def test_failures_are_passed_on(host: Host, failure: dict[str, t.Any]) -> None:
    host.waits = [going(10), failure]
    result = run(host)
    assert {name: result[name] for name in failure} == failure
    host.starts = [failure]
    result = run(host, background=True)
    assert {name: result[name] for name in failure} == failure


def test_a_connection_that_comes_back(host: Host, shown: list[str]) -> None:
    host.cuts = [False, True, True, False]
    result = run(host)
    assert (result["results"], host.phases) == ([ENTRY], ["start", "wait", "wait", "wait"])
    assert shown == [
        "[gpu-01] no connection, trying again for 60 s: Failed to connect to the host via ssh: Broken pipe"
    ]


def test_a_connection_that_does_not_come_back(host: Host) -> None:
    host.waits, host.cuts = [going(10)], [False, False] + [True] * 100
    started = host.clock.now
    result = run(host)
    assert result["failed"]
    assert "unreachable" not in result, "Ansible rescues no unreachable host"
    assert result["connection_lost"] == "Failed to connect to the host via ssh: Broken pipe (for 60 s)"
    assert "the host cannot be reached\n  seen:     Failed to connect" in result["msg"]
    assert host.clock.now - started < 90


def test_a_host_that_is_off_is_not_waited_for(host: Host) -> None:
    host.cuts = [True]
    with pytest.raises(AnsibleConnectionFailure):
        run(host, background=True)
    result = run(host, started={"unreachable": True, "msg": "Connection refused", "changed": False})
    assert (result["failed"], result["connection_lost"]) == (True, "Connection refused")
    assert "unreachable" not in result
    assert host.phases == ["start"]


def test_a_failure_that_was_let_pass_is_no_success(host: Host) -> None:
    assert run(host, started={"failed": True, "msg": "no", "results": []})["failed"]


# ---- together with the other hosts


def look_of(complete: bool = False, is_open: bool = True, address: str = "10.0.0.1") -> Answer:
    rows = [{"Path": "model.safetensors", "Type": "blob", "Size": 9, "Sha256": "ab" * 32}]
    files = [{"path": "model.safetensors", "size": 9, "sha256": "ab" * 32}]
    there = {"missing": 0, "files": files} if complete else {"missing": 9, "rows": rows}
    wanted = {"model": "acme/tiny", "revision": "master", "include": [], "exclude": []}
    artifact = {**wanted, "complete": complete, "commit": "c" * 40, **there}
    return {"address": address, "artifacts": [artifact], "open": is_open}


LACKS: Answer = {"changed": False, "results": [], "look": look_of()}
HAS: Answer = {**SETTLED, "look": look_of(complete=True, is_open=False, address="10.0.0.2")}


def join(host: Host, said: dict[str, Answer], **args: t.Any) -> dict[str, t.Any]:
    """The second task of the role, on the first host of the play."""
    task = Task()
    options = {
        "artifacts": ARTIFACTS,
        "distribution": "swarm",
        "peer_port": 8791,
        "peers": "models",
        "background": True,
    }
    task.args = {**options, **args}
    task.check_mode = bool(args.pop("check_mode", False))
    connection = type("Connection", (), {"_shell": type("Shell", (), {"tmpdir": None})()})()
    action = vllm_artifacts.ActionModule(task, connection, None, None, None, None)  # type: ignore[arg-type]
    action._execute_module = host.execute  # type: ignore[method-assign]
    names = list(said)
    hostvars = {name: {"models": answer} for name, answer in said.items()}
    return action.run(
        task_vars={"inventory_hostname": names[0], "ansible_play_batch": names, "hostvars": hostvars},
    )


def test_a_task_that_goes_together_only_looks(host: Host) -> None:
    host.starts = [LACKS]
    result = run(host, background=True, distribution="swarm", seed="gpu-09", address="10.0.0.1")
    assert host.phases == ["look"]
    assert "seed" not in host.calls[0]
    assert result["look"] == LACKS["look"]


@pytest.mark.parametrize("more", [{"check_mode": True}, {"state": "verified"}, {"state": "absent"}])
def test_other_tasks_do_not_go_together(host: Host, more: dict[str, t.Any]) -> None:
    run(host, background=True, distribution="swarm", **more)
    assert host.phases[0] in ("run", "start")
    passed_on = {"changed": True, "results": [ENTRY], "job": JOB}
    host.calls.clear()
    result = join(host, {"gpu-01": passed_on}, **{key: value for key, value in more.items() if key != "check_mode"})
    assert host.calls == []
    assert (result["results"], result["job"]) == ([ENTRY], JOB)


def test_who_lacks_it_is_told_from_whom_it_comes(host: Host, shown: list[str], tmp_path: Path) -> None:
    result = join(host, {"gpu-01": LACKS, "gpu-02": HAS})
    assert host.phases == ["start"]
    told = host.calls[0]
    assert told["membership"]["artifacts"][0]["chain"] == ["gpu-02", "gpu-01"]
    assert told["membership"]["addresses"] == {"gpu-01": "10.0.0.1", "gpu-02": "10.0.0.2"}
    assert "secret" not in told["membership"]
    assert len(told["secret"]) == 64
    assert "peers" not in told
    assert result["job"] == JOB
    assert shown == []
    again = Host(host.clock)
    join(again, {"gpu-02": HAS, "gpu-01": LACKS})
    assert again.calls[0]["secret"] == told["secret"], "one run, one secret"
    assert shown == ["[gpu-02] gives acme/tiny to 1 other host (swarm)"]
    assert [path.stat().st_mode & 0o777 for path in tmp_path.iterdir() if path.is_file()] == [0o600]


def test_hosts_that_contradict_each_other_ask_the_hub_and_say_who_they_are(host: Host) -> None:
    forged = look_of(address="10.0.0.3")
    forged["artifacts"][0]["rows"][0]["Sha256"] = "cd" * 32
    result = join(host, {"gpu-01": LACKS, "gpu-02": HAS, "gpu-03": {**LACKS, "look": forged}})
    assert host.phases == ["start"]
    assert "membership" not in host.calls[0]
    assert "gpu-03" in result["warnings"][0]
    assert result["warnings"][1:] == STARTED["warnings"]


@pytest.mark.parametrize("look", ["x", {"address": 5}, {**look_of(), "artifacts": [{"model": None}]}], ids=str)
def test_host_that_says_what_is_no_look_does_not_stop_the_others(host: Host, look: t.Any) -> None:
    odd: Answer = {**LACKS, "look": look}
    result = join(host, {"gpu-01": LACKS, "gpu-02": odd, "gpu-03": {**LACKS, "look": look_of(address="10.0.0.3")}})
    assert host.calls[0]["membership"]["artifacts"][0]["chain"] == ["gpu-01", "gpu-03"]
    assert "What gpu-02 says of its artifacts cannot be used" in result["warnings"][0]
    host.calls.clear()
    join(host, {"gpu-02": odd, "gpu-01": LACKS})
    assert host.phases == ["start"]
    assert "membership" not in host.calls[0]


def test_seed_that_is_not_in_the_run_is_said(host: Host) -> None:
    result = join(host, {"gpu-01": LACKS, "gpu-02": {**LACKS, "look": look_of(address="10.0.0.3")}}, seed="gpu-99")
    assert "'gpu-99', is none of the hosts" in result["warnings"][0]


def test_who_has_no_part_makes_no_call(host: Host) -> None:
    result = join(host, {"gpu-01": HAS, "gpu-02": HAS})
    assert host.calls == []
    assert (result["changed"], result["results"]) == (False, SETTLED["results"])
    assert "look" not in result


def test_one_alone_asks_the_hub(host: Host) -> None:
    join(host, {"gpu-01": LACKS})
    assert host.phases == ["start"]
    assert "membership" not in host.calls[0]


def test_hosts_that_were_lost_or_failed_are_not_counted_on(host: Host) -> None:
    lost: Answer = {"unreachable": True, "msg": "no route to host"}
    failed: Answer = {**HAS, "failed": True}
    join(host, {"gpu-01": LACKS, "gpu-02": lost, "gpu-03": failed, "gpu-04": {}})
    assert "membership" not in host.calls[0]
    host.calls.clear()
    result = join(host, {"gpu-01": lost, "gpu-02": LACKS})
    assert result["failed"]
    assert host.calls == []


def test_job_that_goes_on_for_others_can_be_ended(host: Host) -> None:
    host.waits = [{**DONE, "lingers": True}]
    result = run(host, started=STARTED)
    assert result["lingering"] == {"id": JOB["id"]}
    assert "lingers" not in result
    host.calls.clear()
    host.starts = [{"changed": False}]
    ended = run(host, ends=result["lingering"])
    assert host.calls == [{"ends": {"id": JOB["id"]}, "phase": "end"}]
    assert not ended["changed"]
