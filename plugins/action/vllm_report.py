# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import os
import typing as t

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import write_file
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import all_well, as_text

display = Display()

ARGUMENT_SPEC: dict[str, t.Any] = {
    "title": {"type": "str", "default": "vLLM fleet"},
    "hosts": {"type": "dict", "required": True},
    "following": {"type": "dict", "default": {}},
    "path": {"type": "path", "default": ""},
}


class ActionModule(ActionBase):
    """Shows the summary on the controller, and writes it as JSON where asked."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        hosts, well = options["hosts"], all_well(options["hosts"])
        # Colour only reaches a terminal that takes it: display() leaves it out elsewhere.
        display.display("\n" + as_text(options["title"], hosts, options["following"]), color="green" if well else "red")
        if options["path"]:
            path = os.path.abspath(options["path"])
            document = {"title": options["title"], "ok": well, "hosts": hosts}
            try:
                os.makedirs(os.path.dirname(path), exist_ok=True)
                write_file(path, json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n", 0o644)
            except OSError as exc:
                error = FleetError(
                    "report.not_written",
                    f"the report could not be written to {path}: {exc.strerror}",
                    "a file that the controller's user may write",
                    "set vllm_report_path to another, or leave it empty",
                )
                result.update(failed=True, ok=well, msg=str(error), **error.as_result())
                return result
        result.update(changed=False, ok=well)
        return result
