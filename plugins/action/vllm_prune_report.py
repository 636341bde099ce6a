# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune_report import all_well, as_parts

display = Display()

ARGUMENT_SPEC: dict[str, t.Any] = {
    "title": {"type": "str", "default": "Pruned"},
    "hosts": {"type": "dict", "required": True},
    "lost": {"type": "list", "elements": "str", "default": []},
    "done": {"type": "bool", "required": True},
    "following": {"type": "dict", "default": {}},
}


class ActionModule(ActionBase):
    """Shows on the controller what pruning came to."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        hosts = {**options["hosts"], **{name: {"unreachable": True} for name in options["lost"]}}
        # Colour only reaches a terminal that takes it: display() leaves it out elsewhere.
        display.display("")
        for text, colour in as_parts(options["title"], hosts, options["done"], options["following"]):
            display.display(text, color=colour)
        result.update(changed=False, ok=all_well(hosts))
        return result
