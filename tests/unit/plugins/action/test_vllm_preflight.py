# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
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
from ansible_collections.gpufleet.vllm.plugins.action import vllm_preflight
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import host_rules
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_preflight as documented

HEALTHY = Path(__file__).resolve().parents[1] / "module_utils" / "fixtures" / "facts" / "healthy.json"
ERROR = {
    "code": "plan.port_taken", "severity": "error", "seen": "port 8000 is taken", "expected": "a free port",
    "remedy": "set port:", "service": "chat", "page": "",
}  # fmt: skip


def run(**arguments: t.Any) -> dict[str, t.Any]:
    loader = DataLoader()
    task = Task()
    task.action = "gpufleet.vllm.vllm_preflight"
    task.args = arguments
    action = vllm_preflight.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    result: dict[str, t.Any] = action.run(task_vars={"inventory_hostname": "gpu-01"})
    return result


@pytest.fixture
def facts() -> dict[str, t.Any]:
    loaded: dict[str, t.Any] = json.loads(HEALTHY.read_text(encoding="utf-8"))
    return loaded


def test_each_rule_is_told_of(facts: dict[str, t.Any]) -> None:
    result = run(facts=facts, plan={"device": "cuda", "services": []})
    report = result["report"]
    assert (report["host"], result["changed"]) == ("gpu-01", False)
    told = [*report["passed"], *(one["code"] for one in [*report["unknown"], *report["findings"]])]
    assert sorted(set(told)) == sorted(one.code for one in host_rules())
    assert json.loads(json.dumps(result)) == result


def test_facts_that_are_empty_are_held_against_nobody() -> None:
    result = run(facts={})
    assert "failed" not in result
    assert result["report"]["findings"] == []
    assert result["stopped_by"] == ""


def test_an_error_of_the_plan_fails_the_host_whatever_is_turned_off(facts: dict[str, t.Any]) -> None:
    plan = {"services": [], "findings": [ERROR]}
    result = run(facts=facts, plan=plan, fail_on="never", skip=["plan.port_taken"])
    assert result["failed"]
    assert result["msg"].startswith("The preflight has 1 error, nothing was changed.\nerror plan.port_taken (chat)")
    assert "preflight.skip_unknown" in [one["code"] for one in result["report"]["findings"]]
    kept = run(facts=facts, plan=plan, fail=False)
    assert "failed" not in kept
    assert "plan.port_taken" in kept["stopped_by"]


def test_a_rule_that_is_turned_off(facts: dict[str, t.Any]) -> None:
    code = host_rules()[0].code
    report = run(facts=facts, skip=[code])["report"]
    assert report["skipped"] == [code]
    assert code not in report["passed"]
    assert report["counts"]["skipped"] == 1


@pytest.mark.parametrize("facts", [{"unreachable": True, "msg": "x"}, {"failed": True}])
def test_a_host_that_was_not_reached(facts: dict[str, t.Any]) -> None:
    result = run(facts=facts)
    assert result["failed"]
    assert "report" not in result


def test_both_clocks_are_compared(facts: dict[str, t.Any]) -> None:
    facts["clock"] = {"epoch": 1000.0, "synchronized": True, "source": "adjtimex"}
    late = run(facts={**facts, "arrived_at": 1900.0})["report"]
    assert "host.clock_skew" in [one["code"] for one in late["findings"]]
    right = run(facts={**facts, "arrived_at": 1000.4})["report"]
    assert "host.clock_skew" in right["passed"]
    untold = run(facts={key: value for key, value in facts.items() if key != "arrived_at"})["report"]
    assert "host.clock_skew" in [one["code"] for one in untold["unknown"]]


@pytest.mark.parametrize("arguments", [{}, {"facts": "x"}, {"facts": {}, "fail_on": "info"}, {"facts": {}, "skp": []}])
def test_arguments_are_checked(arguments: dict[str, t.Any]) -> None:
    with pytest.raises(AnsibleError):
        run(**arguments)


def test_the_documentation_is_the_argument_spec() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_preflight.ARGUMENT_SPEC)
    for name, spec in vllm_preflight.ARGUMENT_SPEC.items():
        for key in ("type", "default", "required", "choices", "elements"):
            assert options[name].get(key) == spec.get(key), (name, key)
