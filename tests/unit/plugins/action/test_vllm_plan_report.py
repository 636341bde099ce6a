# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import stat
import typing as t
from pathlib import Path
from unittest.mock import Mock

import pytest
import yaml
from ansible.errors import AnsibleError
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.gpufleet.vllm.plugins.action import vllm_plan_report
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_map import ASCII, UTF8
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_view import plan_view
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_plan_report as documented
from plan_case import SECRET, facts, plan, service


class Screen:
    """What the action displays, with its colour."""

    def __init__(self) -> None:
        self.shown: list[tuple[str, str | None]] = []

    def display(self, text: str, color: str | None = None) -> None:
        self.shown.append((text, color))

    @property
    def text(self) -> str:
        return "\n".join(text for text, _colour in self.shown)


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Screen:
    made = Screen()
    monkeypatch.setattr(vllm_plan_report, "display", made)
    return made


def run(**arguments: t.Any) -> dict[str, t.Any]:
    loader = DataLoader()
    task = Task()
    task.action = "gpufleet.vllm.vllm_plan_report"
    task.args = arguments
    action = vllm_plan_report.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    return action.run(task_vars={})


def planned(**keys: t.Any) -> tuple[dict[str, t.Any], dict[str, t.Any]]:
    """A plan, and what a person sees of it."""
    made = plan(service(api_key=SECRET, environment={"NOTE": "hunter3"}, **keys))
    return made, plan_view(made, facts(services={}))


def test_a_fleet(screen: Screen) -> None:
    _plan, view = planned()
    result = run(hosts={"gpu-01": view, "gpu-02": view}, charset="ascii")
    assert (result["changed"], result["ok"], "failed" in result) == (False, True, False)
    assert "gpu-01 .. gpu-02 (2 hosts): vLLM 0.33.0" in screen.text
    assert screen.shown[-1] == (
        "Plan: 2 hosts; 6 GPUs (2 used, 4 free); 2 artifacts of unknown size; 2 services: 2 to start", "yellow"
    )  # fmt: skip
    assert "would run as" not in screen.text


def test_definitions(screen: Screen) -> None:
    run(hosts={"gpu-01": planned()[1]}, definitions=True)
    assert "chat would run as" in screen.text


def test_a_host_that_was_lost_on_the_way(screen: Screen) -> None:
    result = run(hosts={"gpu-01": planned()[1]}, lost=["gpu-02"])
    assert not result["ok"]
    assert screen.text.endswith("UNREACHABLE: gpu-02")
    assert screen.shown[-1][1] == "red"


def test_the_file_has_the_whole_plan_and_no_value_of_an_environment(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    made, view = planned()
    run(hosts={"gpu-01": view, "gpu-02": {}}, plans={"gpu-01": made, "gpu-02": {}}, path=str(path))
    text = path.read_text(encoding="utf-8")
    written = json.loads(text)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert (written["schema"], written["title"], written["ok"]) == (1, "Plan", False)
    assert written["hosts"]["gpu-01"]["plan"]["services"][0]["command"] == made["services"][0]["command"]
    assert written["hosts"]["gpu-02"]["plan"] is None
    assert "hunter3" not in text
    assert SECRET not in text
    assert "NOTE" in text


def test_why_each_host_stops_is_told_in_brief(screen: Screen) -> None:
    _made, view = planned()
    wrong = {**view, "errors": 1, "findings": [{"code": "plan.docker_down", "severity": "error"},
                                               {"code": "plan.x", "severity": "warning"}]}  # fmt: skip
    gone = {**view, "artifacts": [{"failure": "There is no acme/gone"}]}
    result = run(hosts={"gpu-01": view, "gpu-02": wrong, "gpu-03": gone}, lost=["gpu-04"])
    assert result["stopped"] == {
        "gpu-02": "plan.docker_down (1 error)",
        "gpu-03": "There is no acme/gone",
        "gpu-04": "the connection to the host was lost on the way",
    }


def test_what_the_placement_found(screen: Screen, tmp_path: Path) -> None:
    unplaced = {"code": "plan.unplaced", "severity": "error", "seen": "no host", "expected": "one", "remedy": "add one"}
    result = run(hosts={"gpu-01": planned()[1]}, placement=[unplaced], path=str(tmp_path / "plan.json"))
    assert not result["ok"]
    assert "\nthe fleet\n  error plan.unplaced: no host\n" in screen.text
    assert json.loads((tmp_path / "plan.json").read_text(encoding="utf-8"))["fleet"]["findings"] == [unplaced]


def test_the_role_sets_every_option_but_the_characters() -> None:
    role = Path(documented.__file__).resolve().parents[2] / "roles/vllm/tasks/plan_view.yml"
    (task,) = [
        one for one in yaml.safe_load(role.read_text(encoding="utf-8")) if "gpufleet.vllm.vllm_plan_report" in one
    ]
    assert set(task["gpufleet.vllm.vllm_plan_report"]) == set(vllm_plan_report.ARGUMENT_SPEC) - {"charset"}


def test_a_file_that_can_not_be_written(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "taken").write_text("")
    for directory in ("taken", "nothing/there"):
        result = run(hosts={}, path=str(tmp_path / directory / "plan.json"))
        assert result["failed"]
        assert result["code"] == "plan.not_written"
        assert f"mkdir -p {tmp_path}/{directory}, set vllm_plan_path to another file" in result["msg"]
    assert not (tmp_path / "nothing").exists(), "check mode makes none either"
    assert screen.text, "it is shown all the same"


@pytest.mark.parametrize(
    ("name", "encoding", "expected"),
    [
        ("auto", "utf-8", UTF8),
        ("auto", "UTF8", UTF8),
        ("auto", "ANSI_X3.4-1968", ASCII),
        ("auto", None, ASCII),
        ("utf8", "ascii", UTF8),
        ("ascii", "utf-8", ASCII),
    ],
)
def test_the_characters_are_those_that_the_output_takes(name: str, encoding: str | None, expected: t.Any) -> None:
    assert vllm_plan_report.charset_of(name, encoding) is expected


def test_the_width_is_the_terminal_s(screen: Screen, monkeypatch: pytest.MonkeyPatch) -> None:
    _plan, view = planned(path="/data/" + "x" * 200)
    for columns, widest in ((60, 80), (90, 90), (200, 100)):
        monkeypatch.setattr(vllm_plan_report, "COLUMNS", columns)
        screen.shown.clear()
        run(hosts={"gpu-01": view})
        assert max(map(len, screen.text.splitlines())) == widest


@pytest.mark.parametrize(
    ("arguments", "said"),
    [({}, "hosts"), ({"hosts": {}, "charset": "latin1"}, "charset"), ({"hosts": {}, "x": 1}, "x")],
)
def test_arguments_are_checked(arguments: dict[str, t.Any], said: str) -> None:
    with pytest.raises(AnsibleError, match=said):
        run(**arguments)


def test_the_documentation_is_the_argument_spec() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_plan_report.ARGUMENT_SPEC)
    for name, spec in vllm_plan_report.ARGUMENT_SPEC.items():
        for key in ("type", "default", "choices", "required", "elements"):
            assert options[name].get(key) == spec.get(key), (name, key)


def test_the_example_runs(screen: Screen, tmp_path: Path) -> None:
    (task,) = yaml.safe_load(documented.EXAMPLES)
    made, view = planned()
    arguments = {**task["gpufleet.vllm.vllm_plan_report"], "hosts": {"gpu-01": view}, "plans": {"gpu-01": made}}
    result = run(**{**arguments, "lost": [], "placement": [], "path": str(tmp_path / "plan.json")})
    assert result["ok"]
