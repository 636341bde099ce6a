# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: failure_text
short_description: The words of a failed task, whatever its shape
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Returns the message of a failed task result. For a loop these are the messages of the items that failed.
  - Where a module gave no answer, it is the line that names the cause, of what was written instead.
  - Where Ansible refused the variables of a role because one of them is text, it says how to write a list or a mapping.
positional: _input
options:
  _input:
    description: The result of a failed task, such as C(ansible_failed_result).
    type: dict
    required: true
"""

EXAMPLES = r"""
- name: Keep why it failed
  ansible.builtin.set_fact:
    failure: "{{ ansible_failed_result | gpufleet.vllm.failure_text }}"
"""

RETURN = r"""
_value:
  description: The message.
  type: str
"""

import re
import typing as t

TEXT = re.compile(r"is of type str and we were unable to convert to (dict|list)")
AS_JSON = (
    "Remedy: on the command line write lists and mappings as JSON (-e '{\"NAME\": [...]}'); -e NAME=VALUE is text."
)

# What ansible-core says where a module ended without an answer; the second has the cause in it.
NO_ANSWER = re.compile(r"Module result deserialization failed|The module interpreter .* was not found", re.DOTALL)
SSH_SAYS = re.compile(r"(Shared c|C)onnection to \S+ closed\.|Warning: .*")
# The line of a traceback that names the cause. What is none, such as a shell, begins with it.
CAUSE = re.compile(r"\w*(Error|Exception): ")
LONGEST = 300
INTERPRETER = (
    "Expected: an answer of the module. "
    "Remedy: where it is the host's Python, set ansible_python_interpreter to one that works there."
)


def failure_text(result: t.Mapping[str, t.Any]) -> str:
    items = [item for item in result.get("results") or [] if isinstance(item, dict) and item.get("failed")]
    messages = [failure_text(item) for item in items] or [_message(result)]
    text = "\n".join(dict.fromkeys(messages))
    return f"{text}\n{AS_JSON}" if "argument_errors" in result and TEXT.search(text) else text


def _message(result: t.Mapping[str, t.Any]) -> str:
    message = str(result.get("msg") or "the task failed without a message")
    if "module_stderr" not in result or not NO_ANSWER.match(message):
        return message
    said = [line.strip() for line in str(result["module_stderr"] or "").splitlines()]
    said = [line for line in said if line and not SSH_SAYS.fullmatch(line)]
    if said and not message.startswith("The module interpreter"):
        cause = next((line for line in reversed(said) if CAUSE.match(line)), said[0])
        message = f"the module gave no answer, but: {cause[:LONGEST]}"
    return f"{message.rstrip('.')}. {INTERPRETER}"


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"failure_text": failure_text}
