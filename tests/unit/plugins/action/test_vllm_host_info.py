# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
import typing as t
from unittest.mock import Mock

import pytest
from ansible.parsing.dataloader import DataLoader
from ansible.playbook.play_context import PlayContext
from ansible.playbook.task import Task
from ansible.template import Templar
from ansible_collections.gpufleet.vllm.plugins.action import vllm_host_info


def run(monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any]) -> tuple[dict[str, t.Any], Mock]:
    loader = DataLoader()
    task = Task()
    task.action = "gpufleet.vllm.vllm_host_info"
    task.args = {"root": "/srv"}
    action = vllm_host_info.ActionModule(
        task=task,
        connection=Mock(),
        play_context=PlayContext(),
        loader=loader,
        templar=Templar(loader=loader),
        shared_loader_obj=None,
    )
    execute = Mock(return_value=answer)
    monkeypatch.setattr(action, "_execute_module", execute)
    return action.run(task_vars={"x": 1}), execute


def test_the_answer_of_one_call_with_the_moment_at_which_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    result, execute = run(monkeypatch, {"changed": False, "hostname": "gpu-01"})
    assert result["hostname"] == "gpu-01"
    assert before <= result["arrived_at"] <= time.time()
    execute.assert_called_once_with(module_name="gpufleet.vllm.vllm_host_info", task_vars={"x": 1})


def test_a_failure_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    result, _execute = run(monkeypatch, {"failed": True, "msg": "no"})
    assert (result["failed"], result["msg"]) == (True, "no")
    assert "arrived_at" not in result
