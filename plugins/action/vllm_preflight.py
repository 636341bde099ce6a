# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Context, as_findings, evaluate
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import FAIL_ON, failure_text, host_result
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import check_skip, host_rules

ARGUMENT_SPEC: dict[str, t.Any] = {
    "facts": {"type": "dict", "required": True},
    "plan": {"type": "dict", "default": {}},
    "settings": {"type": "dict", "default": {}},
    "skip": {"type": "list", "elements": "str", "default": []},
    "fail_on": {"type": "str", "choices": list(FAIL_ON), "default": "error"},
    "fail": {"type": "bool", "default": True},
}


class ActionModule(ActionBase):
    """Asks the rules about one host: pure arithmetic on the controller, no connection."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        if options["facts"].get("unreachable") or options["facts"].get("failed"):
            result.update(changed=False, failed=True, msg="The host was not reached, so nothing about it is known.")
            return result
        context = Context(
            host=str((task_vars or {}).get("inventory_hostname", "")),
            facts=options["facts"],
            plan=options["plan"],
            settings=options["settings"],
            now=options["facts"].get("arrived_at"),
        )
        skip = options["skip"]
        report = host_result(evaluate(context, skip, host_rules()), context, check_skip(skip))
        stopped_by = failure_text(as_findings(report["findings"]), options["fail_on"])
        result.update(changed=False, report=report, stopped_by=stopped_by, settings=options["settings"])
        if stopped_by and options["fail"]:
            result.update(failed=True, msg=stopped_by)
        return result
