# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import os
import stat
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _systemd
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import TIMED_OUT, CommandResult
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Desired, Layout
from ansible_collections.gpufleet.vllm.plugins.module_utils._systemd import SystemdBackend, parse_show, parse_status

# `systemctl show --property=Id,ActiveState,...` answers in its own order; one empty line between units.
SYSTEMD_252 = """\
MainPID=48211
NRestarts=0
Result=success
Id=vllm-qwen-vl.service
ActiveState=active
SubState=running
ActiveEnterTimestampMonotonic=873215447012

MainPID=0
NRestarts=3
Result=exit-code
Id=vllm-whisper.service
ActiveState=activating
SubState=auto-restart
ActiveEnterTimestampMonotonic=873215990000

MainPID=0
NRestarts=5
Result=exit-code
Id=vllm-broken.service
ActiveState=failed
SubState=failed
ActiveEnterTimestampMonotonic=0

MainPID=0
NRestarts=0
Result=success
Id=vllm-idle.service
ActiveState=inactive
SubState=dead
ActiveEnterTimestampMonotonic=0

MainPID=48999
NRestarts=0
Result=success
Id=vllm-slow.service
ActiveState=deactivating
SubState=stop-sigterm
ActiveEnterTimestampMonotonic=873215447012
"""
# A unit that systemd does not know: no error, exit status 0.
UNKNOWN = """\
MainPID=0
NRestarts=0
Result=success
Id=vllm-nothing.service
ActiveState=inactive
SubState=dead
ActiveEnterTimestampMonotonic=0
"""


class Recorder:
    """Runs nothing: answers by verb, and keeps every argument vector with its time limit."""

    def __init__(self, **answers: CommandResult) -> None:
        self.answers = answers
        self.calls: list[list[str]] = []
        self.limits: dict[str, float] = {}

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        self.calls.append(list(argv))
        word = argv[2] if argv[0] == "systemctl" else f"{argv[0]}_{argv[1]}" if argv[0] == "docker" else argv[0]
        self.limits[word] = timeout
        return self.answers.get(word.replace("-", "_"), CommandResult(0, "", ""))

    @property
    def verbs(self) -> list[str]:
        return [" ".join(argv[2:]) for argv in self.calls if argv[0] == "systemctl"]


def backend_of(tmp_path: Path, run: Recorder, **options: t.Any) -> SystemdBackend:
    (tmp_path / "units").mkdir(exist_ok=True)
    return SystemdBackend(
        Layout("/var/lib/gpufleet-vllm"), run, "vllm", "vllm", unit_directory=str(tmp_path / "units"), **options
    )


def desired(name: str = "a") -> Desired:
    service = {"name": name, "model": "org/m", "command": ["/opt/vllm", "serve", "/m"], "stop_timeout": 45,
               "environment": {}}  # fmt: skip
    return Desired(service, {"VLLM_API_KEY": "sk-secret"}, "abc123")


def test_several_units_of_systemd_252() -> None:
    blocks = parse_show(SYSTEMD_252)
    assert list(blocks) == [
        "vllm-qwen-vl.service", "vllm-whisper.service", "vllm-broken.service", "vllm-idle.service", "vllm-slow.service"
    ]  # fmt: skip
    states = {name[5:-8]: parse_status(values, 1000.0) for name, values in blocks.items()}
    assert {name: status.state for name, status in states.items()} == {
        "qwen-vl": "running", "whisper": "restarting", "broken": "failed", "idle": "stopped", "slow": "stopped"
    }  # fmt: skip
    assert (states["qwen-vl"].pid, states["qwen-vl"].restarts) == (48211, 0)
    assert states["qwen-vl"].since == pytest.approx(1000 + 873215.447012)
    assert (states["whisper"].pid, states["whisper"].restarts, states["whisper"].since) == (None, 3, None)
    assert states["whisper"].detail == "activating (auto-restart), exit-code"
    assert states["qwen-vl"].detail == "active (running)"
    assert [name for name, status in states.items() if status.alive] == ["qwen-vl", "whisper"]


@pytest.mark.parametrize(
    ("active", "sub", "state"),
    [
        ("activating", "start", "starting"),
        ("activating", "start-pre", "starting"),
        ("reloading", "reload", "running"),
        # systemd 254 and later (257 is in Debian 13)
        ("activating", "auto-restart-queued", "restarting"),
        ("inactive", "dead-before-auto-restart", "restarting"),
        ("failed", "failed-before-auto-restart", "restarting"),
        ("deactivating", "final-sigkill", "stopped"),
        ("maintenance", "", "stopped"),
        ("", "", "stopped"),
    ],
)
def test_states(active: str, sub: str, state: str) -> None:
    assert parse_status({"ActiveState": active, "SubState": sub}).state == state


@pytest.mark.parametrize("text", ["", "\n\n", "no equals sign\n", "ActiveState=active\n"])
def test_what_names_no_unit_is_none(text: str) -> None:
    assert parse_show(text) == {}


def test_values_may_hold_equals_signs() -> None:
    assert parse_show("Id=a.service\nResult=x=y\n")["a.service"]["Result"] == "x=y"


def test_install_writes_a_unit_that_is_found_again(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, Recorder())
    backend.install(desired())
    unit = tmp_path / "units/vllm-a.service"
    assert stat.S_IMODE(unit.stat().st_mode) == 0o644
    assert "sk-secret" not in unit.read_text()
    assert "TimeoutStopSec=45\n" in unit.read_text()
    assert "User=vllm\n" in unit.read_text()
    assert backend.installed() == {"a": "abc123"}
    other = SystemdBackend(Layout("/srv/other"), Recorder(), "vllm", "vllm", unit_directory=str(tmp_path / "units"))
    assert other.installed() == {}


def test_installed_ignores_what_is_not_ours(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, Recorder())
    units = tmp_path / "units"
    (units / "vllm-binary.service").write_bytes(b"\xff\xfe")
    (units / "vllm-masked.service").symlink_to("/dev/null")
    (units / "vllm-dangling.service").symlink_to("/nowhere")
    (units / "ssh.service").write_text("# root=/var/lib/gpufleet-vllm\n")
    (units / "vllm-longer-root.service").write_text("#\n# root=/var/lib/gpufleet-vllm2\n")
    assert backend.installed() == {}
    backend.unit_directory = str(tmp_path / "nowhere")
    assert backend.installed() == {}


@pytest.mark.parametrize("kind", ["foreign", "masked", "other-root"])
def test_a_foreign_unit_is_never_overwritten_or_removed(tmp_path: Path, kind: str) -> None:
    run = Recorder()
    backend = backend_of(tmp_path, run, allow_daemon_reload=True)
    unit = tmp_path / "units/vllm-a.service"
    if kind == "masked":
        unit.symlink_to("/dev/null")
    else:
        unit.write_text("[Service]\n" if kind == "foreign" else "#\n# root=/srv/other\n# digest=ff\n")
    for act in (lambda: backend.check(["a"]), lambda: backend.install(desired())):
        with pytest.raises(FleetError) as caught:
            act()
        assert caught.value.code == "stack.foreign_unit"
    backend.stop(["a"], 10)
    backend.remove("a")
    assert run.calls == []
    assert unit.exists()


def test_status_asks_once_for_those_installed(tmp_path: Path) -> None:
    run = Recorder(show=CommandResult(0, UNKNOWN.replace("nothing", "a"), ""))
    backend = backend_of(tmp_path, run)
    assert backend.status(["a", "b"]) == {}
    assert run.calls == []
    backend.install(desired("a"))
    backend.install(desired("b"))
    seen = backend.status(["a", "b", "a", "c"])
    assert {name: status.state for name, status in seen.items()} == {"a": "stopped", "b": "stopped"}
    (argv,) = run.calls
    assert argv[:3] == ["systemctl", "--no-ask-password", "show"]
    assert argv[4:] == ["vllm-a.service", "vllm-b.service"]


def test_order_of_start_and_remove(tmp_path: Path) -> None:
    run = Recorder(reset_failed=CommandResult(1, "", "Failed to reset failed state of unit: Unit not loaded."))
    backend = backend_of(tmp_path, run)
    backend.start([])
    assert run.calls == []
    backend.install(desired())
    backend.start(["a"])
    backend.stop(["a", "unknown"], 123)
    assert run.limits["stop"] == 123
    backend.remove("a")
    assert run.verbs == [
        "daemon-reload", "reset-failed vllm-a.service", "enable vllm-a.service", "start vllm-a.service",
        "stop vllm-a.service",
        "disable vllm-a.service", "daemon-reload", "reset-failed vllm-a.service",
    ]  # fmt: skip
    assert os.listdir(tmp_path / "units") == []


def test_a_stop_that_outlasts_our_patience(tmp_path: Path) -> None:
    words = "systemctl did not end within 60 s"
    backend = backend_of(tmp_path, Recorder(stop=CommandResult(TIMED_OUT, "", words, timed_out=True)))
    backend.install(desired())
    with pytest.raises(FleetError) as caught:
        backend.stop(["a"], 60)
    assert caught.value.code == "stack.stop_timeout"
    assert "vllm-a.service still runs 60 s" in caught.value.seen
    assert "systemctl list-jobs" in caught.value.remedy


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            (
                "Failed to stop vllm-a.service: Interactive authentication required.\n"
                "See system logs and 'systemctl status vllm-a.service' for details.\n"
            ),
            "Interactive authentication required",
        ),
        (
            (
                "Job for vllm-a.service failed because the control process exited with error code.\n"
                'See "systemctl status vllm-a.service" and "journalctl -xeu vllm-a.service" for details.\n'
            ),
            "Job for vllm-a.service failed because",
        ),
        (
            (
                "System has not been booted with systemd as init system (PID 1). Can't operate.\n"
                "Failed to connect to bus: Host is down\n"
            ),
            "System has not been booted with systemd",
        ),
        ("", "exit status 1"),
    ],
)
def test_a_refusal_shows_the_line_that_says_why(tmp_path: Path, words: str, said: str) -> None:
    backend = backend_of(tmp_path, Recorder(stop=CommandResult(1, "", words)))
    backend.install(desired())
    with pytest.raises(FleetError) as caught:
        backend.stop(["a"], 60)
    assert said in caught.value.seen
    assert "become: true" in caught.value.remedy


def test_not_root_is_said_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = backend_of(tmp_path, Recorder(), allow_daemon_reload=True)
    monkeypatch.setattr(os, "access", lambda *_args: False)
    backend.check([])
    with pytest.raises(FleetError) as caught:
        backend.check(["a"])
    assert caught.value.code == "stack.not_root"
    assert "become: true" in caught.value.remedy


INSPECTED = (
    '"/training"\t[{"Driver":"","Count":-1,"DeviceIDs":null,"Capabilities":[["gpu"]],"Options":{}}]\t"runc"\n'
    '"/legacy"\tnull\t"nvidia"\n'
    '"/web"\tnull\t"runc"\n'
    '"/cdi"\t[{"Driver":"cdi","Count":0,"DeviceIDs":["nvidia.com/gpu=0"],"Capabilities":null,"Options":null}]\t"runc"\n'
    "Error: No such object: 3f2a\n"
    "not\tjson\tat all\n"
)


def test_guard_against_a_daemon_reload(tmp_path: Path) -> None:
    run = Recorder(docker_ps=CommandResult(0, "1\n2\n3\n4\n", ""), docker_inspect=CommandResult(1, INSPECTED, ""))
    backend = backend_of(tmp_path, run)
    backend.check([])
    assert run.calls == []
    with pytest.raises(FleetError) as caught:
        backend.check(["a"])
    assert caught.value.code == "stack.daemon_reload"
    assert "training, legacy, cdi" in caught.value.seen
    backend_of(tmp_path, run, allow_daemon_reload=True).check(["a"])


def test_containers_that_move_over_to_systemd_are_not_guarded(tmp_path: Path) -> None:
    own = INSPECTED.replace("/training", "/vllm-a").replace("/legacy", "/vllm-b").replace("/cdi", "/vllm-c")
    run = Recorder(docker_ps=CommandResult(0, "1\n2\n3\n4\n", ""), docker_inspect=CommandResult(1, own, ""))
    backend_of(tmp_path, run).check(["a"], ["a", "b", "c"])
    with pytest.raises(FleetError, match="vllm-c") as caught:
        backend_of(tmp_path, run).check(["a"], ["a", "b"])
    assert "vllm-a" not in caught.value.seen


@pytest.mark.parametrize(
    "answer", [CommandResult(127, "", "docker: not found"), CommandResult(1, "", "denied"), CommandResult(0, "\n", "")]
)
def test_no_docker_no_guard(tmp_path: Path, answer: CommandResult) -> None:
    run = Recorder(docker_ps=answer)
    backend_of(tmp_path, run).check(["a"])
    assert _systemd.gpu_containers(run) == []


def test_tail_of_the_journal(tmp_path: Path) -> None:
    backend = backend_of(tmp_path, Recorder(journalctl=CommandResult(0, "one  \n\ntwo\n", "Hint: something\n")))
    assert backend.tail("a", 25) == ["one", "two"]


@pytest.mark.parametrize(
    ("result", "lines"),
    [
        (CommandResult(0, "-- No entries --\n", ""), []),
        (
            CommandResult(
                1,
                "",
                "Hint: You are currently not seeing messages from other users and the system.\n"
                "      Users in groups 'adm', 'systemd-journal' can see all messages.\n"
                "No journal files were opened due to insufficient permissions.\n",
            ),
            [
                "journalctl: Hint: You are currently not seeing messages from other users and the system.",
                "journalctl: Users in groups 'adm', 'systemd-journal' can see all messages.",
                "journalctl: No journal files were opened due to insufficient permissions.",
            ],
        ),
        (
            CommandResult(127, "", "journalctl: No such file or directory"),
            ["journalctl: journalctl: No such file or directory"],
        ),
    ],
    ids=["empty", "not permitted", "missing"],
)
def test_a_journal_that_says_nothing(tmp_path: Path, result: CommandResult, lines: list[str]) -> None:
    assert backend_of(tmp_path, Recorder(journalctl=result)).tail("a", 25) == lines
