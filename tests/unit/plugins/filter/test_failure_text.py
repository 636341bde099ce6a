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


def test_it_is_a_filter() -> None:
    assert FilterModule().filters() == {"failure_text": failure_text}
