# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re
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
from ansible.template import Templar, trust_as_template
from ansible_collections.gpufleet.vllm.plugins.action import vllm_preflight_report
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Context, HostReport
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import host_result
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import fleet_rules
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_preflight_report as documented

WARNING = Finding("gpu.persistence", "warning", "it is off", "on", "systemctl enable --now nvidia-persistenced")
ERROR = Finding("gpu.lost", "error", "GPU 2 is gone", "8 GPUs", "reboot")


def outcome(*findings: Finding, skipped: tuple[str, ...] = ()) -> dict[str, t.Any]:
    report = HostReport("", list(findings), ["a.b"], [], list(skipped))
    return {"report": host_result(report, Context("", {}, {})), "settings": {"vllm_address": "10.0.0.1"}}


class Screen:
    """What the action displays, with its colour."""

    verbosity = 0

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
    monkeypatch.setattr(vllm_preflight_report, "display", made)
    return made


def run(**arguments: t.Any) -> dict[str, t.Any]:
    loader = DataLoader()
    task = Task()
    task.action = "gpufleet.vllm.vllm_preflight_report"
    task.args = arguments
    action = vllm_preflight_report.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    result: dict[str, t.Any] = action.run(task_vars={})
    return result


def test_all_is_well(screen: Screen) -> None:
    result = run(hosts={"gpu-01": outcome()})
    assert (result["ok"], result["changed"], result["stopped"], result["notes"]) == (True, False, {}, [])
    assert screen.text.startswith("\nPreflight: 1 host, all is well\n")
    assert screen.shown[1][1] == "green"


def test_a_quiet_one_speaks_only_where_there_is_something_to_say(screen: Screen) -> None:
    assert run(hosts={"gpu-01": outcome()}, quiet=True)["ok"]
    assert screen.shown == []
    for something in (outcome(WARNING), outcome(skipped=("gpu.a",)), {}):
        screen.shown.clear()
        run(hosts={"gpu-01": something}, quiet=True)
        assert "Preflight: " in screen.text


def test_one_host_does_not_hide_another(screen: Screen) -> None:
    result = run(
        title="Before the deploy",
        hosts={"gpu-01": outcome(ERROR), "gpu-02": outcome(WARNING), "gpu-03": {}, "gpu-04": {"failed": True}},
        facts={"gpu-03": {"unreachable": True, "msg": "Connection timed out"}},
        failures={"gpu-03": "The host was not reached.", "gpu-04": "vllm_port is no variable"},
        lost=["gpu-05"],
    )
    assert not result["ok"]
    assert "failed" not in result, "each host fails on its own, after all were shown"
    assert list(result["stopped"]) == ["gpu-01"]
    assert result["notes"] == ["gpu.persistence: it is off (gpu-02)"]
    assert "Before the deploy: 5 hosts: 2 UNREACHABLE, 2 with errors, 1 with warnings" in screen.text
    assert result["brief"] == {
        "gpu-01": "gpu.lost (1 error)",
        "gpu-03": "the host cannot be reached",
        "gpu-04": "vllm_port is no variable",
        "gpu-05": "the connection to the host was lost on the way",
    }
    for words in ("UNREACHABLE: the host cannot be reached\n    seen:     Connection timed out",
                  "NOT CHECKED: vllm_port is no variable", "gpu-05\n",
                  "error gpu.lost", "warning gpu.persistence"):  # fmt: skip
        assert words in screen.text


def test_rules_across_hosts_see_the_facts_and_plans_of_those_that_have_some(screen: Screen) -> None:
    boot = {"boot": {"id": "the same", "time": 1.0, "uptime_s": 5.0}}
    everyone = {"gpu-01": outcome(), "gpu-02": outcome(), "gpu-03": {}}
    arguments = {
        "hosts": everyone, "plans": {"gpu-01": {"services": []}},
        "facts": {name: {**boot, "hostname": "one"} for name in everyone},
    }  # fmt: skip
    result = run(**arguments)
    assert result["stopped"].keys() == {"gpu-01", "gpu-02"}
    assert "fleet.same_host" in result["stopped"]["gpu-01"]
    codes = [rule.code for rule in fleet_rules()]
    screen.shown.clear()
    result = run(**arguments, skip=codes)
    assert result["stopped"] == {}
    assert f"turned off by vllm_preflight_skip: {', '.join(sorted(codes))[:60]}" in screen.text


def test_what_the_placement_found(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "preflight.json"
    unplaced = Finding("plan.unplaced", "error", "1 replica has no host", "1 more host", "add one", "chat")
    run(hosts={"gpu-01": outcome()}, placement=[unplaced.as_dict()], quiet=True, path=str(path))
    assert "\nthe fleet\n  error plan.unplaced (chat): 1 replica has no host\n" in screen.text
    (finding,) = json.loads(path.read_text(encoding="utf-8"))["fleet"]["findings"]
    assert finding == {"hosts": [], **unplaced.as_dict()}


def test_the_role_passes_what_the_placement_found() -> None:
    role = Path(documented.__file__).resolve().parents[2] / "roles/vllm_preflight/tasks/report.yml"
    (task,) = yaml.safe_load(role.read_text(encoding="utf-8"))
    arguments = task["gpufleet.vllm.vllm_preflight_report"]
    assert set(arguments) == set(vllm_preflight_report.ARGUMENT_SPEC)
    for variables, expected in (
        ({}, []),
        ({"__vllm_placed": {"skipped": True}}, []),
        ({"__vllm_placed": {"findings": [1]}}, [1]),
    ):
        templar = Templar(loader=DataLoader(), variables=variables)
        assert templar.template(trust_as_template(arguments["placement"])) == expected


def test_warnings_fail_where_they_are_to(screen: Screen) -> None:
    assert run(hosts={"gpu-01": outcome(WARNING)})["stopped"] == {}
    assert "gpu-01" in run(hosts={"gpu-01": outcome(WARNING)}, fail_on="warning")["stopped"]
    assert run(hosts={"gpu-01": outcome(ERROR)}, fail_on="never")["stopped"] == {}


def test_the_file(screen: Screen, tmp_path: Path) -> None:
    path = tmp_path / "preflight.json"
    for _again in range(2):
        run(title="Now", hosts={"gpu-01": outcome(ERROR)}, path=str(path))
        document = json.loads(path.read_text(encoding="utf-8"))
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", document.pop("finished"))
        assert (document["schema"], document["title"], document["ok"]) == (1, "Now", False)
        assert document["hosts"]["gpu-01"]["findings"][0]["remedy"] == "reboot"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    described = " ".join(yaml.safe_load(documented.DOCUMENTATION)["notes"])
    host = document["hosts"]["gpu-01"]
    for key in [*document, *document["counts"], *host, *document["fleet"]]:
        assert f"C({key})" in described, key


@pytest.mark.parametrize(("columns", "expected"), [(60, 80), (100, 100), (300, 140)])
def test_the_width_of_the_terminal(columns: int, expected: int) -> None:
    assert vllm_preflight_report.width(columns) == expected


def test_a_file_that_cannot_be_written(screen: Screen, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for directory in ("file", "nothing/there"):
        result = run(hosts={"gpu-01": outcome()}, path=str(tmp_path / directory / "preflight.json"))
        assert (result["failed"], result["code"]) == (True, "preflight.not_written")
        assert f"mkdir -p {tmp_path}/{directory}, set vllm_preflight_path to another file" in result["msg"]
    assert not (tmp_path / "nothing").exists(), "check mode makes none either"
    assert "Preflight: 1 host" in screen.text, "the table is shown all the same"


@pytest.mark.parametrize("arguments", [{}, {"hosts": "x"}, {"hosts": {}, "titel": "x"}])
def test_arguments_are_checked(screen: Screen, arguments: dict[str, t.Any]) -> None:
    with pytest.raises(AnsibleError):
        run(**arguments)
    assert screen.shown == []


def test_the_documentation_is_the_argument_spec() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_preflight_report.ARGUMENT_SPEC)
    for name, spec in vllm_preflight_report.ARGUMENT_SPEC.items():
        for key in ("type", "default", "required", "choices", "elements"):
            assert options[name].get(key) == spec.get(key), (name, key)
