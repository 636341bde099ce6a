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


def run(
    monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any], *more: dict[str, t.Any]
) -> tuple[dict[str, t.Any], Mock]:
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
    execute = Mock(side_effect=[answer, *more])
    monkeypatch.setattr(action, "_execute_module", execute)
    return action.run(task_vars={"x": 1}), execute


def test_the_answer_of_one_call_with_the_moment_at_which_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    before = time.time()
    result, execute = run(monkeypatch, {"changed": False, "hostname": "gpu-01"})
    assert result["hostname"] == "gpu-01"
    assert before <= result["arrived_at"] <= time.time()
    execute.assert_called_once_with(module_name="gpufleet.vllm.vllm_host_info", task_vars={"x": 1})


def test_a_failure_is_passed_on(monkeypatch: pytest.MonkeyPatch) -> None:
    for answer in ({"failed": True, "msg": "no", "code": "host.x"}, {"failed": True, "msg": "no", "unreachable": True}):
        result, execute = run(monkeypatch, answer)
        assert (result["failed"], result["msg"]) == (True, "no")
        assert "arrived_at" not in result
        execute.assert_called_once()


def python(major: t.Any, minor: t.Any) -> dict[str, t.Any]:
    version = {"major": major, "minor": minor}
    return {"ansible_facts": {"ansible_python": {"executable": "/usr/bin/python3", "version": version}}}


def test_a_python_that_is_too_old_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    crash = {"failed": True, "msg": "Task failed: Module failed: 'type' object is not subscriptable"}
    result, execute = run(monkeypatch, crash, python(3, 8))
    assert result["failed"]
    assert result["code"] == "host.python"
    assert result["msg"].startswith("Ansible uses Python 3.8 on this host (/usr/bin/python3). Expected: Python 3.9 or")
    assert "ansible_python_interpreter" in result["remedy"]
    assert execute.call_args.kwargs["module_name"] == "ansible.builtin.setup"


@pytest.mark.parametrize("answer", [python(3, 9), python(3, 13), python(None, "8"), {}, {"failed": True, "msg": "x"}])
def test_another_failure_is_what_it_is(monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any]) -> None:
    result, _execute = run(monkeypatch, {"failed": True, "msg": "out of memory"}, answer)
    assert (result["failed"], result["msg"]) == (True, "out of memory")
    assert "code" not in result
