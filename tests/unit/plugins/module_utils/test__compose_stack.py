# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The Compose backend against a docker command that keeps containers; the real one stands in tests/integration."""

from __future__ import annotations

import json
import os
import stat
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _stack
from ansible_collections.gpufleet.vllm.plugins.module_utils._compose_stack import (
    ComposeBackend,
    merged_log,
    parse_status,
    parse_time,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Desired, Layout, Stack

SECRET = "sk-super-secret-1"
ME = f"{os.geteuid()}:{os.getegid()}"


class FakeDocker:
    """docker and docker compose over a dictionary of containers, as the commands that the backend uses see them."""

    def __init__(self) -> None:
        self.containers: dict[str, dict[str, t.Any]] = {}
        self.calls: list[str] = []
        self.refuse: dict[str, str] = {}
        self.judged: t.Any = None
        self.refusal = ""

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        words = list(argv[1:])
        verb = words[0]
        if verb == "compose":
            verb += " " + next(word for word in ("version", "config", "up") if word in words)
        handler = getattr(self, "do_" + verb.replace(" ", "_"))
        result: CommandResult = handler(words)
        return result

    def do_ps(self, words: list[str]) -> CommandResult:
        if any("oneoff" in word for word in words):
            chosen = [
                name for name, entry in self.containers.items()
                if entry["Config"]["Labels"].get("com.docker.compose.oneoff") == "True"
            ]  # fmt: skip
            return CommandResult(0, "\n".join(chosen), "")
        if "--format" in words:
            return CommandResult(0, "\n".join(self.containers), "")
        label = words[words.index("--filter") + 1].removeprefix("label=")
        name, value = label.split("=", 1)
        chosen = [key for key, entry in self.containers.items() if entry["Config"]["Labels"].get(name) == value]
        return CommandResult(0, "\n".join(chosen), "")

    def do_container(self, words: list[str]) -> CommandResult:
        return CommandResult(0, json.dumps([self.containers[name] for name in words[2:]]), "")

    def do_compose_version(self, words: list[str]) -> CommandResult:
        return CommandResult(0, "2.26.1\n", "")

    def do_compose_config(self, words: list[str]) -> CommandResult:
        self.judged = yaml.safe_load(Path(words[words.index("--file") + 1]).read_text(encoding="utf-8"))
        return CommandResult(1 if self.refusal else 0, "", self.refusal)

    def do_compose_up(self, words: list[str]) -> CommandResult:
        assert "--no-recreate" in words
        names = words[words.index("--no-recreate") + 1 :]
        self.calls.append("up " + " ".join(names))
        for name in names:
            if name in self.refuse:
                return CommandResult(1, "", self.refuse[name])
        document = yaml.safe_load(Path(words[words.index("--file") + 1]).read_text(encoding="utf-8"))
        for name in names:
            entry = document["services"][name]
            known = self.containers.setdefault(entry["container_name"], container(entry["labels"]))
            known["State"].update(Status="running", Running=True, Pid=4242)
        return CommandResult(0, "", "")

    def do_stop(self, words: list[str]) -> CommandResult:
        self.calls.append("stop " + " ".join(words[1:]))
        for name in words[1:]:
            self.containers[name]["State"].update(Status="exited", Running=False, Pid=0)
        return CommandResult(0, "", "")

    def do_rm(self, words: list[str]) -> CommandResult:
        self.calls.append("rm " + words[-1])
        for name in words[3:]:
            del self.containers[name]
        return CommandResult(0, "", "")

    def do_unpause(self, words: list[str]) -> CommandResult:
        self.calls.append("unpause " + " ".join(words[1:]))
        return CommandResult(0, "", "")

    def do_network(self, words: list[str]) -> CommandResult:
        self.calls.append(" ".join(words[:2]))
        return CommandResult(0, "f00\n" if words[1] == "ls" else "", "")

    def do_logs(self, words: list[str]) -> CommandResult:
        return CommandResult(0, "2026-11-23T10:00:02.5Z two\n", "2026-11-23T10:00:01.5Z one\n")


def container(labels: dict[str, str], **state: t.Any) -> dict[str, t.Any]:
    return {
        "Config": {"Labels": labels},
        "State": {"Status": "running", "Running": True, "Paused": False, "Pid": 4242, **state},
        "HostConfig": {
            "RestartPolicy": {"Name": "unless-stopped"},
            "PortBindings": {"8000/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8081"}]},
        },
        "RestartCount": 0,
    }


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    (tmp_path / "root").mkdir()
    return Layout(str(tmp_path / "root"))


@pytest.fixture
def docker() -> FakeDocker:
    return FakeDocker()


def desired(layout: Layout, name: str, port: int = 8000, secrets: dict[str, str] | None = None) -> Desired:
    planned = {
        "name": name, "path": f"/models/{name}", "arguments": ["/model"], "environment": {}, "gpus": [], "port": port,
        "bind_address": "127.0.0.1", "secrets": list(secrets or {}), "stop_timeout": 31, "ready_timeout": 60,
    }  # fmt: skip
    made = _compose.definition(planned, "engine:1", layout.root, _compose.Container(user=ME))
    service = {**planned, "container": made}
    return Desired(service, secrets or {}, _stack.service_digest(service, {}))


def converge(layout: Layout, docker: FakeDocker, wanted: list[Desired]) -> dict[str, str]:
    backend = ComposeBackend(layout, docker)
    stack = Stack(layout, backend)
    changes = stack.changes(wanted)
    if any(change.action != _stack.UNCHANGED for change in changes) or backend.pending(wanted):
        stack.apply(wanted, changes, 1.0)
    return {change.name: change.action for change in changes}


def test_created_then_unchanged_then_started(layout: Layout, docker: FakeDocker) -> None:
    wanted = [desired(layout, "a", secrets={"VLLM_API_KEY": SECRET})]
    assert converge(layout, docker, wanted) == {"a": "created"}
    assert converge(layout, docker, wanted) == {"a": "unchanged"}
    assert docker.calls == ["up a"]
    docker.containers["vllm-a"]["State"].update(Status="exited", Pid=0)
    assert converge(layout, docker, wanted) == {"a": "started"}
    assert docker.calls == ["up a", "up a"]


def test_secrets_are_in_a_file_of_the_container_s_user_and_nowhere_else(layout: Layout, docker: FakeDocker) -> None:
    converge(layout, docker, [desired(layout, "a", secrets={"VLLM_API_KEY": SECRET})])
    path = Path(layout.environment("a"))
    assert path.read_text() == f"VLLM_API_KEY={SECRET}\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o400
    assert f"{path.stat().st_uid}:{path.stat().st_gid}" == ME
    others = [file for file in Path(layout.root).rglob("*") if file.is_file() and file != path]
    assert others
    assert not any(SECRET in file.read_text() for file in others)


def test_only_what_changed_is_recreated(layout: Layout, docker: FakeDocker) -> None:
    converge(layout, docker, [desired(layout, "a"), desired(layout, "b", 8001)])
    docker.calls.clear()
    assert converge(layout, docker, [desired(layout, "a"), desired(layout, "b", 8002)]) == {
        "a": "unchanged", "b": "updated"
    }  # fmt: skip
    assert docker.calls == ["stop vllm-b", "rm vllm-b", "up b"]


def test_a_removed_service_takes_only_its_own_container_along(layout: Layout, docker: FakeDocker) -> None:
    docker.containers["somebody-elses"] = container({})
    converge(layout, docker, [desired(layout, "a"), desired(layout, "b", 8001)])
    assert converge(layout, docker, [desired(layout, "a")]) == {"a": "unchanged", "b": "removed"}
    assert sorted(docker.containers) == ["somebody-elses", "vllm-a"]
    assert "b" not in yaml.safe_load(Path(layout.root, "compose.yaml").read_text())["services"]


def test_swapped_ports_stop_both_before_either_starts(layout: Layout, docker: FakeDocker) -> None:
    converge(layout, docker, [desired(layout, "a", 8000), desired(layout, "b", 8001)])
    docker.calls.clear()
    converge(layout, docker, [desired(layout, "a", 8001), desired(layout, "b", 8000)])
    assert docker.calls == ["stop vllm-a vllm-b", "rm vllm-a", "rm vllm-b", "up a b"]


def test_docker_is_asked_once_about_all_that_stops(layout: Layout, docker: FakeDocker) -> None:
    docker.containers = {
        f"vllm-{name}": container({"gpufleet.vllm.root": layout.root, "gpufleet.vllm.service": name}) for name in "abc"
    }
    asked: list[str] = []

    def counting(argv: t.Sequence[str], timeout: float) -> CommandResult:
        asked.append(argv[1])
        return docker(argv, timeout)

    ComposeBackend(layout, counting).stop(["a", "b", "c", "gone"], 60)
    assert docker.calls == ["stop vllm-a vllm-b vllm-c"]
    assert asked == ["ps", "container", "stop"]


def test_a_compose_file_that_somebody_changed_is_written_anew(layout: Layout, docker: FakeDocker) -> None:
    wanted = [desired(layout, "a")]
    converge(layout, docker, wanted)
    path = Path(layout.root, "compose.yaml")
    good = path.read_text()
    path.write_text(good + "# by hand\n")
    assert ComposeBackend(layout, docker).pending(wanted)
    assert converge(layout, docker, wanted) == {"a": "unchanged"}
    assert path.read_text() == good
    assert docker.calls == ["up a"]


def test_one_that_can_not_start_does_not_keep_the_others_from_it(layout: Layout, docker: FakeDocker) -> None:
    docker.refuse["a"] = "listen tcp4 127.0.0.1:8000: bind: address already in use"
    with pytest.raises(FleetError) as caught:
        converge(layout, docker, [desired(layout, "a"), desired(layout, "b", 8001)])
    assert caught.value.code == "stack.port_taken"
    assert caught.value.seen.startswith("service a: ")
    assert list(docker.containers) == ["vllm-b"]
    docker.refuse.clear()
    assert converge(layout, docker, [desired(layout, "a"), desired(layout, "b", 8001)])["a"] == "created"


def test_a_container_of_somebody_else_is_not_taken_over(layout: Layout, docker: FakeDocker) -> None:
    docker.containers["vllm-a"] = container({"gpufleet.vllm.root": "/another", "gpufleet.vllm.service": "a"})
    with pytest.raises(FleetError) as caught:
        ComposeBackend(layout, docker).check(["a"])
    assert caught.value.code == "stack.foreign_container"
    ComposeBackend(layout, docker).check([])


def test_compose_judges_the_file_before_anything_is_touched(layout: Layout, docker: FakeDocker) -> None:
    backend = ComposeBackend(layout, docker)
    wanted = [desired(layout, "a")]
    backend.judge(wanted)
    assert list(docker.judged["services"]) == ["a"]
    docker.refusal = "services.deploy.resources.limits Additional property memori is not allowed"
    with pytest.raises(FleetError) as caught:
        backend.judge(wanted)
    assert caught.value.code == "stack.bad_compose"
    assert "memori" in caught.value.seen
    assert not Path(layout.root, "compose.yaml").exists()
    backend.judge([])


def test_files_that_can_not_be_given_away(layout: Layout, docker: FakeDocker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4242)
    with pytest.raises(FleetError) as caught:
        ComposeBackend(layout, docker).judge([desired(layout, "a")])
    assert caught.value.code == "stack.not_root"


def test_a_container_that_a_person_runs_beside_a_service_is_not_the_service(layout: Layout, docker: FakeDocker) -> None:
    wanted = [desired(layout, "a")]
    labels = {f"gpufleet.vllm.{key}": value for key, value in (("root", layout.root), ("service", "a"))}
    docker.containers["a-run-1"] = container({**labels, "com.docker.compose.oneoff": "True"})
    assert converge(layout, docker, wanted) == {"a": "created"}
    assert converge(layout, docker, wanted) == {"a": "unchanged"}
    assert converge(layout, docker, []) == {"a": "removed"}
    assert converge(layout, docker, []) == {}
    ComposeBackend(layout, docker).shutdown(1.0)
    assert docker.containers == {}


def test_the_compose_file_is_root_s_alone(layout: Layout, docker: FakeDocker) -> None:
    wanted = [desired(layout, "a")]
    converge(layout, docker, wanted)
    path = Path(layout.root, "compose.yaml")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    path.chmod(0o644)
    assert ComposeBackend(layout, docker).pending(wanted)
    converge(layout, docker, wanted)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_paused_container_goes_on(layout: Layout, docker: FakeDocker) -> None:
    wanted = [desired(layout, "a")]
    converge(layout, docker, wanted)
    docker.containers["vllm-a"]["State"].update(Status="paused", Paused=True)
    assert converge(layout, docker, wanted) == {"a": "started"}
    assert docker.calls == ["up a", "unpause vllm-a", "up a"]


def test_what_is_published_and_what_is_left_at_the_end(layout: Layout, docker: FakeDocker) -> None:
    backend = ComposeBackend(layout, docker)
    converge(layout, docker, [desired(layout, "a")])
    assert backend.published() == {8081: "a"}
    assert backend.tail("a", 5) == ["one", "two"]
    assert backend.shutdown(1.0)
    assert docker.calls[-2:] == ["network ls", "network rm"]
    backend.define([])
    assert not Path(layout.root, "compose.yaml").exists()


@pytest.mark.parametrize(
    ("state", "expected", "alive"),
    [
        ({"Status": "running", "Pid": 7, "Health": {"Status": "starting"}}, "starting", True),
        ({"Status": "running", "Pid": 7, "Health": {"Status": "healthy"}}, "running", True),
        ({"Status": "running", "Pid": 7, "Health": {"Status": "unhealthy"}}, "running", True),
        ({"Status": "restarting", "ExitCode": 1}, "restarting", True),
        ({"Status": "exited", "ExitCode": 137, "OOMKilled": True}, "stopped", False),
        ({"Status": "created", "ExitCode": 128, "Error": "could not select device driver"}, "stopped", False),
        ({"Status": "dead", "ExitCode": 0}, "failed", False),
    ],
)
def test_states(state: dict[str, t.Any], expected: str, alive: bool) -> None:
    status = parse_status({"State": state, "HostConfig": {"RestartPolicy": {"Name": "unless-stopped"}}})
    assert (status.state, status.alive) == (expected, alive)
    if state.get("OOMKilled"):
        assert status.detail == "exited (exit status 137), killed for want of memory"


def test_a_container_that_no_reboot_brings_back_is_not_lasting() -> None:
    assert not parse_status({"State": {"Status": "running"}, "HostConfig": {"RestartPolicy": {"Name": "no"}}}).lasting


def test_times_and_logs() -> None:
    assert parse_time("2026-11-23T10:00:00.123456789Z") == 1795428000.0
    assert parse_time("0001-01-01T00:00:00Z") is None
    assert parse_time("yesterday") is None
    out, err = "2026-11-23T10:00:00.2Z b\nnoise\n2026-11-23T10:00:00.4Z \n", "2026-11-23T10:00:00.1Z a\n"
    assert merged_log(out, err, 9) == ["a", "b"]
