# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import sys
import typing as t
from datetime import UTC, datetime

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_map import ASCII, UTF8, Charset
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_report import (
    WIDTH,
    all_well,
    as_parts,
    document,
    stopped,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_view import without_values
from ansible_collections.gpufleet.vllm.plugins.module_utils._report_file import written

display = Display()

ARGUMENT_SPEC: dict[str, t.Any] = {
    "title": {"type": "str", "default": "Plan"},
    "hosts": {"type": "dict", "required": True},
    "lost": {"type": "list", "elements": "str", "default": []},
    "placement": {"type": "list", "elements": "dict", "default": []},
    "plans": {"type": "dict", "default": {}},
    "definitions": {"type": "bool", "default": False},
    "charset": {"type": "str", "choices": ["auto", "utf8", "ascii"], "default": "auto"},
    "path": {"type": "path", "default": ""},
}
NARROWEST = 80
# Of the run's own output: the strategy loads this file before it starts the worker that runs the task, whose output is
# neither the terminal nor has its encoding.
ENCODING = sys.stdout.encoding
COLUMNS = shutil.get_terminal_size((WIDTH, 24)).columns


def charset_of(name: str, encoding: str | None) -> Charset:
    """Plain ASCII where the output could not hold the blocks of a bar."""
    if name == "auto":
        return UTF8 if (encoding or "").lower().replace("-", "") == "utf8" else ASCII
    return UTF8 if name == "utf8" else ASCII


class ActionModule(ActionBase):
    """Shows the plan of the fleet on the controller, and writes it as JSON where asked."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        views = {**options["hosts"], **{name: {} for name in options["lost"]}}
        charset = charset_of(options["charset"], ENCODING)
        # Wider lines are harder to read; a narrower terminal gets what fits it.
        width = min(WIDTH, max(NARROWEST, COLUMNS))
        display.display("")
        placement = options["placement"]
        for text, colour in as_parts(options["title"], views, charset, width, options["definitions"], placement):
            # Colour only reaches a terminal that takes it: display() leaves it out elsewhere.
            display.display(text, color=colour)
        result.update(changed=False, ok=all_well(views, placement), stopped=stopped(views))
        if options["path"]:
            plans = {name: without_values(plan) for name, plan in options["plans"].items() if plan}
            finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            data = document(options["title"], views, plans, finished, placement)
            # A command line may hold a secret by mistake.
            result.update(written(options["path"], data, "plan", "plan", 0o600))
        return result
