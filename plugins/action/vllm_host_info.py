# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import time
import typing as t

from ansible.plugins.action import ActionBase
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

# Of the modules of this collection; ansible-core 2.19 itself still takes 3.8.
OLDEST_PYTHON = (3, 9)


class ActionModule(ActionBase):
    """Runs the module, and adds when its answer arrived: only here are both clocks, the host's and the controller's."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        result.update(self._execute_module(module_name="gpufleet.vllm.vllm_host_info", task_vars=task_vars))
        if not result.get("failed"):
            result["arrived_at"] = time.time()
        elif not (result.get("code") or result.get("unreachable")):
            # It did not come to a message of its own.
            better = self._python_too_old(task_vars)
            if better:
                result.pop("exception", None)
                result.update(better)
        return result

    def _python_too_old(self, task_vars: dict[str, t.Any] | None) -> dict[str, t.Any]:
        """The failure to give in place of Python's own, such as: 'type' object is not subscriptable."""
        arguments = {"gather_subset": ["!all", "!min", "python"]}
        answer = self._execute_module(module_name="ansible.builtin.setup", module_args=arguments, task_vars=task_vars)
        python = (answer.get("ansible_facts") or {}).get("ansible_python") or {}
        have = tuple((python.get("version") or {}).get(key) for key in ("major", "minor"))
        if not all(isinstance(number, int) for number in have) or have >= OLDEST_PYTHON:
            return {}
        error = FleetError(
            "host.python",
            f"Ansible uses Python {have[0]}.{have[1]} on this host ({python.get('executable')})",
            f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer",
            "apt install python3.9 (or dnf install python3.11), and set ansible_python_interpreter to it",
        )
        return {"msg": str(error), **error.as_result()}
