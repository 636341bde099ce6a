# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.gpufleet.vllm.plugins.filter.failure_text import FilterModule, failure_text


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ({"failed": True, "msg": "no space"}, "no space"),
        ({"msg": ["a", "b"]}, "['a', 'b']"),
        ({"failed": True}, "the task failed without a message"),
        ({"msg": ""}, "the task failed without a message"),
        ({"results": None, "msg": "x"}, "x"),
        ({"msg": "All items failed", "results": [{"failed": True, "msg": "a"}, {"msg": "fine"}]}, "a"),
        ({"msg": "One or more items failed",
          "results": [{"failed": True, "msg": text} for text in ("a", "b", "a")]}, "a\nb"),
        ({"msg": "m", "results": [{"msg": "fine"}]}, "m"),
        ({"msg": "m", "results": ["text"]}, "m"),
        ({"results": [{"failed": True, "results": [{"failed": True, "msg": "deep"}]}]}, "deep"),
    ],
)  # fmt: skip
def test_failure_text(result: dict[str, t.Any], text: str) -> None:
    assert failure_text(result) == text


@pytest.mark.parametrize(("value", "told"), [('[{"name": "a"}]', True), ({"a": 1}, False)])
def test_text_where_ansible_wants_a_list(value: t.Any, told: bool) -> None:
    """What ``-e vllm_services=[...]`` comes to, in Ansible's own words."""
    spec = {"vllm_services": {"type": "list", "elements": "dict"}}
    found = ArgumentSpecValidator(spec).validate({"vllm_services": value})
    message = "Validation of arguments failed:\n" + "\n".join(found.error_messages)
    text = failure_text({"failed": True, "msg": message, "argument_errors": found.error_messages})
    assert text.startswith(message)
    assert ("Remedy: on the command line write lists and mappings as JSON" in text) == told


NO_JSON = "Module result deserialization failed: No start of json char found"


@pytest.mark.parametrize(
    ("message", "said", "text"),
    [
        (NO_JSON, "Could not find x\nModuleNotFoundError: No module named 'encodings'\n",
         "the module gave no answer, but: ModuleNotFoundError: No module named 'encodings'"),
        (NO_JSON, "Killed\r\nShared connection to 10.0.0.1 closed.\r\n", "the module gave no answer, but: Killed"),
        (NO_JSON, "Fatal Python error: x\nModuleNotFoundError: No module named 'encodings'\n\n<no Python frame>\n",
         "the module gave no answer, but: ModuleNotFoundError: No module named 'encodings'"),
        (NO_JSON, "Warning: added 'a'\nshim: python3: command not found\n\nSee the help for tips.",
         "the module gave no answer, but: shim: python3: command not found"),
        (NO_JSON, "", NO_JSON),
        (NO_JSON, None, NO_JSON),
        (NO_JSON, "x" * 900, "the module gave no answer, but: " + "x" * 300),
        ("The module interpreter '/opt/py' was not found.", "/bin/sh: 1: /opt/py: not found",
         "The module interpreter '/opt/py' was not found"),
    ],
)  # fmt: skip
def test_a_module_that_did_not_answer(message: str, said: t.Any, text: str) -> None:
    """Ansible's message names no cause then; the host did, in one of the lines that it wrote."""
    result = {"failed": True, "msg": message, "module_stderr": said, "module_stdout": "", "rc": 1}
    told = failure_text(result)
    assert told.startswith(f"{text}. Expected: an answer of the module. Remedy: ")
    assert "set ansible_python_interpreter" in told


def test_a_module_that_answered_before_it_ended_badly_is_told_as_it_told() -> None:
    assert failure_text({"failed": True, "msg": "no space", "module_stderr": "x", "rc": 1}) == "no space"


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"failure_text": failure_text}
