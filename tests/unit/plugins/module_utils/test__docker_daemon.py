# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import dataclasses
import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _docker_daemon as dd
from ansible_collections.gpufleet.vllm.plugins.module_utils._docker_daemon import Options
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult

LOG = {"max-size": "50m", "max-file": "5"}
RUNNING_SINCE = 1_795_000_000  # Wed 2026-11-18 11:06:40 UTC
SHOWN = """\
LoadState={load}
ActiveState={active}
UnitFileState={file}
StateChangeTimestamp=Wed 2026-11-18 11:06:40 UTC
"""


class Machine:
    """Docker and systemd as far as this module asks them. ``containers`` are names, with True for those with GPUs."""

    def __init__(self, state: str = "active", containers: dict[str, bool] | None = None) -> None:
        self.state, self.load, self.file = state, "loaded", "enabled"
        self.containers = containers or {}
        self.after_restart: list[str] | None = None
        self.live_restore = False
        self.silent = False
        self.validation = CommandResult(0, "configuration OK\n", "")
        self.breaks_on: str | None = None
        self.path: Path | None = None
        self.verbs: list[str] = []
        self.validated: dict[str, t.Any] = {}

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        words = list(argv)
        if words[0] == "env":
            return CommandResult(0, SHOWN.format(load=self.load, active=self.state, file=self.file), "")
        handler = {"docker": self.docker, "systemctl": self.systemctl, "dockerd": self.dockerd}.get(words[0])
        return handler(words[1:]) if handler else CommandResult(0, "failed to start daemon: no such thing\n", "")

    def dockerd(self, words: list[str]) -> CommandResult:
        self.validated = json.loads(Path(words[1].partition("=")[2]).read_text())
        return self.validation

    def docker(self, words: list[str]) -> CommandResult:
        if self.silent:
            return CommandResult(1, "", "Cannot connect to the Docker daemon")
        names = list(self.containers)
        if words[0] == "ps":
            return CommandResult(0, "".join(f"{name}\n" for name in names), "")
        if words[0] == "inspect":
            rows = [f'"/{n}"\t{"[{}]" if self.containers[n] else "null"}\t"runc"\n' for n in names]
            return CommandResult(0, "".join(rows), "")
        return CommandResult(0, "true\n" if self.live_restore else "false\n", "")

    def systemctl(self, words: list[str]) -> CommandResult:
        verb = next(word for word in words if not word.startswith("--"))
        self.verbs.append(" ".join(word for word in words if word != "--no-ask-password"))
        if verb in ("start", "restart", "reload"):
            if self.breaks_on and self.path and self.path.exists() and self.breaks_on in self.path.read_text():
                self.state = "failed"
                return CommandResult(1, "", "Job for docker.service failed.")
            self.state = "active"
            if verb == "restart" and self.after_restart is not None:
                self.containers = dict.fromkeys(self.after_restart, False)
        return CommandResult(0, "", "")


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "docker" / "daemon.json"


def write(file: Path, value: t.Any, age: float = 3600) -> None:
    """A file that is older than the daemon that runs."""
    file.parent.mkdir(exist_ok=True)
    file.write_text(value if isinstance(value, str) else json.dumps(value))
    os.utime(file, (RUNNING_SINCE - age, RUNNING_SINCE - age))


def run(file: Path, machine: Machine, check_mode: bool = False, **options: t.Any) -> dict[str, t.Any]:
    machine.path = file
    applier = dd.Applier(Options(path=str(file), timeout=1, **options), check_mode, machine, settle=0)
    return applier()


# ---- the file


def test_a_fresh_host(file: Path) -> None:
    result = run(file, Machine(), log_opts=LOG, nvidia_runtime=True, cdi=True)
    assert json.loads(file.read_text()) == {
        "log-driver": "json-file",
        "log-opts": LOG,
        "runtimes": {"nvidia": {"args": [], "path": "nvidia-container-runtime"}},
        "features": {"cdi": True},
    }
    assert file.stat().st_mode & 0o777 == 0o644
    assert (result["changed"], result["action"]) == (True, "restarted")
    assert result["diff"]["before"] == ""


def test_what_the_operator_put_there_stays(file: Path) -> None:
    mine = {
        "log-driver": "journald",
        "data-root": "/data/docker",
        "insecure-registries": ["a:5000"],
        "runtimes": {"nvidia": {"path": "/opt/bin/nvidia-container-runtime"}, "kata": {"path": "kata"}},
        "features": {"cdi": False, "buildkit": True},
    }
    write(file, mine)
    file.chmod(0o600)
    run(
        file, Machine(), log_opts=LOG, nvidia_runtime=True, cdi=True,
        config={"insecure-registries": ["a:5000", "b:5000"], "features": {"containerd-snapshotter": True}},
    )  # fmt: skip
    assert json.loads(file.read_text()) == {
        **mine,
        "insecure-registries": ["a:5000", "b:5000"],
        "features": {"cdi": False, "buildkit": True, "containerd-snapshotter": True},
    }
    assert file.stat().st_mode & 0o777 == 0o600


def test_what_the_user_sets_wins_over_the_file(file: Path) -> None:
    write(file, {"log-driver": "json-file", "log-opts": {"max-size": "1g", "compress": "true"}})
    run(file, Machine(), log_opts=LOG, config={"log-opts": {"max-size": "10m"}})
    assert json.loads(file.read_text())["log-opts"] == {"max-size": "10m", "compress": "true"}


def test_a_second_run_changes_nothing_and_keeps_the_layout(file: Path) -> None:
    write(file, '{"debug":true,\n\n "live-restore" : true}')
    before = file.read_bytes()
    machine = Machine()
    result = run(file, machine, config={"live-restore": True})
    assert (result["changed"], result["action"], result["changed_keys"], machine.verbs) == (False, "none", [], [])
    assert "diff" not in result
    assert file.read_bytes() == before


def test_a_link_stays_a_link(file: Path, tmp_path: Path) -> None:
    target = tmp_path / "managed.json"
    write(file, "{}")
    file.unlink()
    target.write_text("{}")
    file.symlink_to(target)
    run(file, Machine(), config={"debug": True})
    assert file.is_symlink()
    assert json.loads(target.read_text()) == {"debug": True}


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ('{"debug": true,}', "is not JSON"),
        ('["debug"]', "a JSON list"),
        ('{"debug": true, "debug": false}', "debug is there twice"),
        (b'{"a": "\xff"}', "not UTF-8"),
    ],
)
def test_a_file_that_cannot_be_kept_whole_is_refused(file: Path, content: str | bytes, words: str) -> None:
    file.parent.mkdir()
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    machine = Machine()
    with pytest.raises(FleetError, match=words) as caught:
        run(file, machine, config={"debug": True})
    assert caught.value.code == "docker.config_unreadable"
    assert str(file) in caught.value.seen
    assert machine.verbs == []


def test_an_empty_file_is_an_empty_configuration(file: Path) -> None:
    write(file, "\n")
    run(file, Machine(), config={"debug": True})
    assert json.loads(file.read_text()) == {"debug": True}


def test_a_section_of_another_type_is_refused(file: Path) -> None:
    write(file, {"runtimes": []})
    with pytest.raises(FleetError, match="runtimes in Docker's configuration is"):
        run(file, Machine(), nvidia_runtime=True)


def test_dockerd_judges_before_anything_is_written(file: Path) -> None:
    machine = Machine()
    machine.validation = CommandResult(1, "", "unable to configure: the following directives don't match: debugg")
    with pytest.raises(FleetError, match="debugg") as caught:
        run(file, machine, config={"debugg": True})
    assert caught.value.code == "docker.config_invalid"
    assert machine.validated == {"debugg": True}
    assert not file.exists()


@pytest.mark.parametrize(
    "answer",
    [CommandResult(125, "", "unknown flag: --validate"), CommandResult(127, "", "dockerd: No such file or directory")],
    ids=["20.10", "no Docker yet"],
)
def test_a_docker_that_cannot_judge_does_not_matter(file: Path, answer: CommandResult) -> None:
    machine = Machine()
    machine.validation = answer
    assert run(file, machine, config={"debug": True})["changed"]


def test_the_diff_hides_what_is_secret(file: Path) -> None:
    write(file, {"log-driver": "splunk", "log-opts": {"splunk-token": "hush", "splunk-url": "https://s"}})
    diff = run(file, Machine(), config={"proxies": {"http-proxy": "http://me:hush@proxy:3128"}})["diff"]
    assert "hush" not in json.dumps(diff)
    assert "https://s" in diff["before"]
    assert "http://********@proxy:3128" in diff["after"]
    assert "hush" in file.read_text()


# ---- the daemon


@pytest.mark.parametrize(
    ("config", "action"),
    [
        ({"registry-mirrors": ["https://m"], "live-restore": True}, "reloaded"),
        ({"runtimes": {"x": {"path": "x"}}}, "reloaded"),
        ({"log-opts": LOG, "log-driver": "json-file"}, "restarted"),
        ({"debug": True, "features": {"cdi": True}}, "restarted"),
    ],
)
def test_a_restart_only_where_a_reload_is_not_enough(file: Path, config: dict[str, t.Any], action: str) -> None:
    machine = Machine()
    result = run(file, machine, config=config)
    assert result["action"] == action
    assert machine.verbs == [f"{action.removesuffix('ed')} docker.service"]
    assert "changed: " in result["reasons"][0]


@pytest.mark.parametrize("check_mode", [False, True])
def test_a_restart_under_containers_is_refused_before_anything_is_written(file: Path, check_mode: bool) -> None:
    machine = Machine(containers={"vllm-chat": True, "db": False})
    with pytest.raises(FleetError) as caught:
        run(file, machine, check_mode, log_opts=LOG)
    assert caught.value.code == "docker.restart_refused"
    assert "vllm-chat (GPU), db" in caught.value.seen
    assert "log-driver, log-opts" in caught.value.seen
    assert "gpu_host_allow_docker_restart" in caught.value.remedy
    assert not file.exists()
    assert machine.verbs == []


def test_a_reload_is_not_refused(file: Path) -> None:
    result = run(file, Machine(containers={"vllm-chat": True}), config={"registry-mirrors": ["https://m"]})
    assert (result["action"], result["gpu_containers"]) == ("reloaded", ["vllm-chat"])


@pytest.mark.parametrize(("gpu", "refused"), [(True, True), (False, False)])
def test_live_restore_protects_all_but_gpu_containers(file: Path, gpu: bool, refused: bool) -> None:
    machine = Machine(containers={"a": gpu})
    machine.live_restore = True
    if refused:
        with pytest.raises(FleetError, match=r"a \(GPU\)"):
            run(file, machine, log_opts=LOG)
    else:
        assert run(file, machine, log_opts=LOG)["action"] == "restarted"


def test_a_docker_that_does_not_answer_may_have_containers(file: Path) -> None:
    machine = Machine()
    machine.silent = True
    with pytest.raises(FleetError, match="does not say which containers run"):
        run(file, machine, log_opts=LOG)


def test_an_allowed_restart_says_which_containers_are_gone(file: Path) -> None:
    machine = Machine(containers={"vllm-chat": True, "once": False})
    machine.after_restart = ["vllm-chat"]
    result = run(file, machine, log_opts=LOG, allow_restart=True)
    assert (result["action"], result["not_running_again"]) == ("restarted", ["once"])
    assert result["containers"] == ["once", "vllm-chat"]


def test_a_restart_for_another_reason(file: Path) -> None:
    write(file, {})
    result = run(file, Machine(), restart_reasons=["the toolkit is new"])
    assert (result["action"], result["reasons"], result["changed_keys"]) == ("restarted", ["the toolkit is new"], [])
    with pytest.raises(FleetError, match="the toolkit is new"):
        run(file, Machine(containers={"a": True}), restart_reasons=["the toolkit is new"])


def test_an_interrupted_run_is_finished_by_the_next(file: Path) -> None:
    write(file, {"log-driver": "json-file", "log-opts": LOG}, age=-60)
    result = run(file, Machine(), log_opts=LOG)
    assert (result["changed"], result["action"], result["changed_keys"]) == (True, "restarted", [])
    assert "newer than the daemon" in result["reasons"][0]


def test_a_stopped_docker_is_started_and_kept(file: Path) -> None:
    write(file, {})
    machine = Machine(state="inactive")
    machine.file = "disabled"
    result = run(file, machine)
    assert (result["changed"], result["action"]) == (True, "started")
    assert machine.verbs == ["enable --no-reload docker.service", "start docker.service"]


def test_check_mode_touches_nothing(file: Path) -> None:
    machine = Machine()
    predicted = run(file, machine, True, log_opts=LOG)
    assert machine.verbs == []
    assert not file.parent.exists()
    assert predicted == run(file, Machine(), log_opts=LOG)


def test_without_docker_only_the_file_is_predicted(file: Path) -> None:
    machine = Machine()
    machine.load = "not-found"
    predicted = run(file, machine, True, log_opts=LOG)
    assert (predicted["changed"], predicted["action"]) == (True, "none")
    with pytest.raises(FleetError, match=r"no docker\.service"):
        run(file, machine, log_opts=LOG)
    assert not file.exists()


@pytest.mark.parametrize("before", [None, {"debug": True}])
def test_a_docker_that_does_not_start_gets_its_old_file_back(file: Path, before: t.Any) -> None:
    if before is not None:
        write(file, before)
    machine = Machine()
    machine.breaks_on = "overlay3"
    with pytest.raises(FleetError, match="runs with it again") as caught:
        run(file, machine, config={"storage-driver": "overlay3"})
    assert "failed to start daemon: no such thing" in caught.value.seen
    assert machine.state == "active"
    assert (json.loads(file.read_text()) if file.exists() else None) == before


def test_a_docker_that_was_broken_before_keeps_its_file(file: Path) -> None:
    write(file, {"debug": True})
    machine = Machine(state="failed")
    machine.breaks_on = "debug"
    with pytest.raises(FleetError, match=r"'systemctl start docker\.service' failed"):
        run(file, machine)
    assert json.loads(file.read_text()) == {"debug": True}


def test_a_docker_that_starts_but_gives_no_answer(file: Path) -> None:
    machine = Machine(state="inactive")
    machine.silent = True
    with pytest.raises(FleetError, match="gives no answer"):
        run(file, machine)


def test_timestamps() -> None:
    assert dd.parse_timestamp("Wed 2026-11-18 11:06:40 UTC") == RUNNING_SINCE
    assert dd.parse_timestamp("") is None


def test_options_are_those_of_the_module() -> None:
    names = {field.name for field in dataclasses.fields(Options)}
    assert names == {
        "path", "config", "log_opts", "nvidia_runtime", "cdi", "restart_reasons", "allow_restart", "timeout"
    }  # fmt: skip
