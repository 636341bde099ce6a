# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import typing as t
from datetime import UTC, datetime

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._report_file import written
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import all_well, as_parts, document
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary_artifacts import foreseen

display = Display()

ARGUMENT_SPEC: dict[str, t.Any] = {
    "title": {"type": "str", "default": "vLLM fleet"},
    "hosts": {"type": "dict", "required": True},
    "lost": {"type": "list", "elements": "str", "default": []},
    "following": {"type": "dict", "default": {}},
    "notes": {"type": "list", "elements": "str", "default": []},
    "layout": {"type": "str", "choices": ["auto", "blocks", "table"], "default": "auto"},
    "path": {"type": "path", "default": ""},
}
NARROWEST = 80
# Of the terminal, or of the COLUMNS of a log; 120 where nothing says it. The strategy loads this file before it starts
# the worker that runs the task, whose output is not the terminal.
COLUMNS = shutil.get_terminal_size((120, 24)).columns


class ActionModule(ActionBase):
    """Shows the summary on the controller, and writes it as JSON where asked."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        hosts = {**options["hosts"], **{name: {"unreachable": True} for name in options["lost"]}}
        if self._task.check_mode:
            hosts = foreseen(hosts)
        well = all_well(hosts)
        parts = as_parts(
            options["title"], hosts, options["following"], options["layout"], max(NARROWEST, COLUMNS), options["notes"]
        )
        # Colour only reaches a terminal that takes it: display() leaves it out elsewhere.
        display.display("")
        for text, colour in parts:
            display.display(text, color=colour)
        result.update(changed=False, ok=well)
        if options["path"]:
            finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            data = document(options["title"], hosts, finished, options["notes"])
            result.update(written(options["path"], data, "report"))
        return result
