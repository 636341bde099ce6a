# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from unittest.mock import Mock

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.gpufleet.vllm.plugins.action import vllm_prune_report
from ansible_collections.gpufleet.vllm.plugins.modules import vllm_prune_report as documented


def run(monkeypatch: pytest.MonkeyPatch, **arguments: t.Any) -> tuple[dict[str, t.Any], list[str]]:
    shown: list[str] = []
    screen = Mock()
    screen.display = lambda text, color=None: shown.append(text)
    monkeypatch.setattr(vllm_prune_report, "display", screen)
    loader = DataLoader()
    task = Task()
    task.action = "gpufleet.vllm.vllm_prune_report"
    task.args = arguments
    action = vllm_prune_report.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    return action.run(task_vars={}), shown


def test_it_is_shown_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    result, shown = run(monkeypatch, title="Pruned", hosts={"gpu-01": {"artifacts": []}}, done=True)
    assert (result["changed"], result["ok"]) == (False, True)
    assert shown[:2] == ["", "Pruned: 1 host: nothing to remove, 0 kept"]


def test_a_lost_host(monkeypatch: pytest.MonkeyPatch) -> None:
    result, shown = run(monkeypatch, hosts={}, lost=["gpu-02"], done=False)
    assert not result["ok"]
    assert "UNREACHABLE: gpu-02" in shown[1]


def test_documented_options_are_the_action_s() -> None:
    options = yaml.safe_load(documented.DOCUMENTATION)["options"]
    assert set(options) == set(vllm_prune_report.ARGUMENT_SPEC)
    for name, spec in vllm_prune_report.ARGUMENT_SPEC.items():
        assert options[name]["type"] == spec["type"]
        assert options[name].get("default") == spec.get("default")
        assert options[name].get("required", False) == spec.get("required", False)
