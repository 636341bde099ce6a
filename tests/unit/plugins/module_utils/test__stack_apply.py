# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import shutil
import stat
import typing as t
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _stack_apply
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Layout
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import Options
from ansible_collections.gpufleet.vllm.plugins.module_utils._systemd import SystemdBackend

SECRET = "sk-super-secret"


class Systemctl:
    """systemd in a few lines: a started unit runs."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []
        self.running: set[str] = set()

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        self.calls.append(list(argv))
        if argv[0] != "systemctl":
            return CommandResult(127, "", f"{argv[0]}: not found")
        verb, units = argv[2], [word for word in argv[3:] if word.endswith(".service")]
        if verb == "start":
            self.running.update(units)
        elif verb == "stop":
            self.running.difference_update(units)
        elif verb == "show":
            blocks = [
                f"Id={unit}\nActiveState={'active' if unit in self.running else 'inactive'}\n"
                f"SubState={'running' if unit in self.running else 'dead'}\nMainPID={int(unit in self.running) * 42}\n"
                for unit in units
            ]
            return CommandResult(0, "\n".join(blocks), "")
        return CommandResult(0, "", "")


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemctl:
    """A host under systemd, whose units lie in a directory of the test's own."""
    (tmp_path / "units").mkdir()
    systemctl = Systemctl()

    def make(_runtime: str, layout: Layout, *, allow_daemon_reload: bool = False, **_options: t.Any) -> SystemdBackend:
        return SystemdBackend(layout, systemctl, "vllm", "vllm", allow_daemon_reload, str(tmp_path / "units"))

    monkeypatch.setattr(_stack_apply, "make_backend", make)
    monkeypatch.setattr(_stack_apply, "service_owner", lambda *_args: (os.geteuid(), os.getegid()))
    return systemctl


def entry(name: str, port: int = 8000, **extra: t.Any) -> dict[str, t.Any]:
    return {
        "name": name, "model": f"org/{name}", "path": f"/models/{name}", "port": port, "stop_timeout": 20,
        "command": ["vllm", "serve", f"/models/{name}", "--port", str(port)], "environment": {"A": "1"}, **extra,
    }  # fmt: skip


def options(tmp_path: Path, *services: dict[str, t.Any], **extra: t.Any) -> Options:
    return Options(root=str(tmp_path / "root"), runtime="systemd", services=services, **extra)


def tree(tmp_path: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}


def test_present_twice(tmp_path: Path, host: Systemctl) -> None:
    wanted = options(tmp_path, entry("a"), secrets={"a": {"VLLM_API_KEY": SECRET}})
    first = _stack_apply.present(wanted, False)
    assert first["changed"]
    assert [(one["name"], one["action"], one["state"]) for one in first["services"]] == [("a", "created", "running")]
    before = tree(tmp_path)
    host.calls.clear()
    second = _stack_apply.present(wanted, False)
    assert not second["changed"]
    assert second["plan_digest"] == first["plan_digest"]
    assert second["diff"] == []
    assert {argv[2] for argv in host.calls} == {"show"}
    assert tree(tmp_path) == before


def test_plan_holds_no_secret_and_is_private(tmp_path: Path, host: Systemctl) -> None:
    result = _stack_apply.present(options(tmp_path, entry("a"), secrets={"a": {"VLLM_API_KEY": SECRET}}), False)
    plan = tmp_path / "root/plan.json"
    assert stat.S_IMODE(plan.stat().st_mode) == 0o600
    assert SECRET not in plan.read_text()
    assert json.loads(plan.read_text())["digest"] == result["plan_digest"]
    holders = [path for path, content in tree(tmp_path).items() if SECRET.encode() in content]
    assert holders == ["root/services/a/environment"]


def test_check_mode_writes_nothing_and_says_all(tmp_path: Path, host: Systemctl) -> None:
    wanted = options(tmp_path, entry("a"), secrets={"a": {"VLLM_API_KEY": SECRET}})
    planned = _stack_apply.present(wanted, True)
    assert planned["changed"]
    assert planned["services"][0]["action"] == "created"
    assert not (tmp_path / "root").exists()
    assert list((tmp_path / "units").iterdir()) == []
    _stack_apply.present(wanted, False)
    before = tree(tmp_path)
    assert _stack_apply.present(options(tmp_path, entry("b", 8001)), True)["changed"]
    assert _stack_apply.absent(options(tmp_path), True)["changed"]
    assert tree(tmp_path) == before


def test_diff_shows_the_command_and_hides_secrets(tmp_path: Path, host: Systemctl) -> None:
    secrets = {"a": {"VLLM_API_KEY": SECRET}}
    _stack_apply.present(options(tmp_path, entry("a"), secrets=secrets), False)
    (diff,) = _stack_apply.present(options(tmp_path, entry("a", 8001), secrets=secrets), False)["diff"]
    assert "--port 8000" in diff["before"]
    assert "--port 8001" in diff["after"]
    assert "VLLM_API_KEY" in diff["before"]
    assert SECRET not in json.dumps(diff)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"artifacts": [{"path": "/models/a", "commit": "1"}]}, {"artifacts": [{"path": "/models/a", "commit": "2"}]}),
        ({"engine": {"version": "1"}}, {"engine": {"version": "2"}}),
        ({"engine": {"version": "1", "digest": "x"}}, {"engine": {"version": "1", "digest": "y"}}),
        ({"user": "vllm"}, {"user": "other"}),
    ],
    ids=["artifact", "engine-version", "engine-digest", "user"],
)
def test_what_else_restarts_a_service(
    tmp_path: Path, host: Systemctl, before: dict[str, t.Any], after: dict[str, t.Any]
) -> None:
    _stack_apply.present(options(tmp_path, entry("a"), **before), False)
    result = _stack_apply.present(options(tmp_path, entry("a"), **after), False)
    assert result["services"][0]["action"] == "updated"


def test_another_services_artifact_does_not(tmp_path: Path, host: Systemctl) -> None:
    _stack_apply.present(options(tmp_path, entry("a"), artifacts=[{"path": "/models/b", "commit": "1"}]), False)
    host.calls.clear()
    wanted = options(tmp_path, entry("a"), artifacts=[{"path": "/models/b", "commit": "2"}])
    result = _stack_apply.present(wanted, False)
    assert result["services"][0]["action"] == "unchanged"
    assert result["changed"], "the plan file is another one"
    assert {argv[2] for argv in host.calls} == {"show"}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"services": 5}', '{"services": ["x", {"stop_timeout": "y"}]}'])
def test_a_damaged_plan_is_written_anew(tmp_path: Path, host: Systemctl, text: str) -> None:
    wanted = options(tmp_path, entry("a"))
    _stack_apply.present(wanted, False)
    good = (tmp_path / "root/plan.json").read_text()
    (tmp_path / "root/plan.json").write_text(text)
    host.running.clear()
    assert _stack_apply.present(wanted, False)["services"][0]["action"] == "started"
    assert (tmp_path / "root/plan.json").read_text() == good


def test_a_stop_waits_for_the_drain_it_was_started_with(tmp_path: Path, host: Systemctl) -> None:
    layout = Layout(str(tmp_path / "root"))
    _stack_apply.present(options(tmp_path, entry("a", stop_timeout=600)), False)
    assert _stack_apply._stop_timeout(options(tmp_path, entry("a", stop_timeout=30)), layout) == 615
    assert _stack_apply._stop_timeout(options(tmp_path / "new"), Layout(str(tmp_path / "new"))) == 75


def test_a_foreign_unit_is_refused_before_anything_is_touched(tmp_path: Path, host: Systemctl) -> None:
    _stack_apply.present(options(tmp_path, entry("a")), False)
    (tmp_path / "units/vllm-b.service").write_text("[Service]\nExecStart=/opt/mine\n")
    before = tree(tmp_path)
    host.calls.clear()
    for check_mode in (True, False):
        with pytest.raises(FleetError) as caught:
            _stack_apply.present(options(tmp_path, entry("a", 8001), entry("b")), check_mode)
        assert caught.value.code == "stack.foreign_unit"
    assert host.running == {"vllm-a.service"}
    assert tree(tmp_path) == before


def test_absent_removes_ours_alone(tmp_path: Path, host: Systemctl) -> None:
    _stack_apply.present(options(tmp_path, entry("a"), entry("b", 8001)), False)
    _stack_apply.record(str(tmp_path / "root"), False)
    (tmp_path / "units/vllm-mine.service").write_text("[Service]\n")
    (tmp_path / "root/engine").mkdir()
    result = _stack_apply.absent(options(tmp_path), False)
    assert result["changed"]
    assert [one["action"] for one in result["services"]] == ["removed", "removed"]
    assert host.running == set()
    assert os.listdir(tmp_path / "root") == ["engine"]
    assert os.listdir(tmp_path / "units") == ["vllm-mine.service"]
    assert not _stack_apply.absent(options(tmp_path), False)["changed"]


def test_absent_of_units_whose_root_is_gone(tmp_path: Path, host: Systemctl) -> None:
    _stack_apply.present(options(tmp_path, entry("a")), False)
    shutil.rmtree(tmp_path / "root")
    assert _stack_apply.absent(options(tmp_path), False)["changed"]
    assert os.listdir(tmp_path / "units") == []
    assert not (tmp_path / "root").exists()


def test_record_moves_once(tmp_path: Path, host: Systemctl) -> None:
    root = tmp_path / "root"
    assert _stack_apply.record(str(root), False) == {
        "changed": False,
        "digest": None,
        "diff": {"before": "record None\n", "after": "record None\n"},
    }
    digest = _stack_apply.present(options(tmp_path, entry("a")), False)["plan_digest"]
    assert _stack_apply.record(str(root), True)["changed"]
    assert not (root / "record.json").exists()
    assert _stack_apply.record(str(root), False)["changed"]
    record = json.loads((root / "record.json").read_text())
    assert record["digest"] == digest
    assert record["recorded_at"].endswith("Z")
    assert stat.S_IMODE((root / "record.json").stat().st_mode) == 0o600
    assert not _stack_apply.record(str(root), False)["changed"]
    (root / "record.json").write_text("{damaged")
    assert _stack_apply.record(str(root), False)["changed"]


def test_when_a_model_was_last_needed_is_written_down(tmp_path: Path, host: Systemctl) -> None:
    """In the plan that was applied, and in the record that a rollback returns to."""
    root = tmp_path / "root"
    models = [{**entry(name), "path": str(tmp_path / name)} for name in ("a", "b")]
    for model in models:
        os.mkdir(model["path"])
    noted = root / "artifacts.json"
    _stack_apply.present(options(tmp_path, models[0]), False)
    _stack_apply.record(str(root), False)
    assert not noted.exists()
    _stack_apply.present(options(tmp_path, models[1]), True)
    assert not noted.exists()
    _stack_apply.present(options(tmp_path, models[1]), False)
    assert list(json.loads(noted.read_text())["left"]) == [str(tmp_path / "a")]
    noted.write_text('{"left": {}}')
    _stack_apply.record(str(root), False)
    assert list(json.loads(noted.read_text())["left"]) == [str(tmp_path / "a")]
    before = tree(tmp_path)
    assert not _stack_apply.present(options(tmp_path, models[1]), False)["changed"]
    assert tree(tmp_path) == before
    _stack_apply.absent(options(tmp_path), False)
    assert not noted.exists()


def test_a_damaged_plan_is_not_recorded_in_silence(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{damaged")
    with pytest.raises(FleetError) as caught:
        _stack_apply.record(str(tmp_path), False)
    assert caught.value.code == "stack.plan_unreadable"


def test_a_runtime_that_changed_hands_its_services_over(
    tmp_path: Path, host: Systemctl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the old process manager runs is stopped there first, on a deploy and on a teardown."""

    class Old:
        def __init__(self) -> None:
            self.services = {"a": "digest", "b": "digest"}
            self.log: list[str] = []

        def check(self, changing: t.Sequence[str], _leaving: t.Sequence[str] = ()) -> None:
            self.checked = list(changing)

        def installed(self) -> dict[str, str]:
            return dict(self.services)

        def stop(self, names: t.Sequence[str], timeout: float) -> None:
            self.log.append(f"stop {' '.join(names)}")

        def remove(self, name: str) -> None:
            del self.services[name]

        def define(self, desired: t.Sequence[t.Any]) -> None:
            assert not desired

        def shutdown(self, timeout: float) -> bool:
            return True

    for act in (
        lambda: _stack_apply.present(options(tmp_path, entry("a")), False),
        lambda: _stack_apply.absent(options(tmp_path), False),
    ):
        _stack_apply.present(options(tmp_path, entry("a")), False)
        plan = tmp_path / "root/plan.json"
        plan.write_text(json.dumps({**json.loads(plan.read_text()), "runtime": "supervisor"}))
        old, new = Old(), _stack_apply.make_backend

        def make(runtime: str, *args: t.Any, old: t.Any = old, new: t.Any = new, **kwargs: t.Any) -> t.Any:
            return old if runtime == "supervisor" else new(runtime, *args, **kwargs)

        monkeypatch.setattr(_stack_apply, "make_backend", make)
        assert _stack_apply.present(options(tmp_path, entry("a")), True)["changed"]
        assert old.log == []
        assert act()["changed"]
        assert old.checked == ["a", "b"], "what the old one could not do is said before anything is touched"
        assert old.log == ["stop a b"]
        assert old.services == {}
        monkeypatch.setattr(_stack_apply, "make_backend", new)


def test_a_card_that_has_another_index_is_no_other_plan(tmp_path: Path, host: Systemctl) -> None:
    def wanted(index: int, slot: str = "00000000:1B:00.0") -> Options:
        card = {"index": index, "uuid": "GPU-1", "name": "NVIDIA H200", "pci_bus_id": slot}
        return options(tmp_path, entry("a", gpus=[card], wish=[0]))

    _stack_apply.present(wanted(0), False)
    kept = json.loads((tmp_path / "root/plan.json").read_text())["services"][0]
    assert kept["gpus"] == [{"uuid": "GPU-1", "name": "NVIDIA H200", "pci_bus_id": "00000000:1B:00.0"}]
    assert kept["wish"] == [0]
    assert not _stack_apply.present(wanted(1), False)["changed"]
    moved = _stack_apply.present(wanted(1, "00000000:3B:00.0"), False)
    assert moved["changed"], "the slot is kept up to date: it is told when the card is gone"
    assert [change["action"] for change in moved["services"]] == ["unchanged"]
