# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import sys
import time
import typing as t

from ansible.errors import AnsibleConnectionFailure
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._probe_run import argument_spec, endpoints_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import unreachable_text
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural
from ansible_collections.gpufleet.vllm.plugins.module_utils._wait import Watch, not_ready, progress_line, wrong_answers

display = Display()

# A person watches a terminal; a log is read later.
PROGRESS_SECONDS = 5.0 if sys.stdout.isatty() else 20.0
# A load takes minutes, in which a connection may break; the engine does not mind, and nothing is asked twice.
RECONNECT_SECONDS = 60.0
RETRY_SECONDS = 5.0


class ModuleFailed(Exception):
    """A slice failed as a module; its result is the task's."""

    def __init__(self, result: dict[str, t.Any]) -> None:
        super().__init__(result.get("msg"))
        self.result = result


class ConnectionLost(Exception):
    """The host was not reached for so long that it is given up."""


class ActionModule(ActionBase):
    """Waits in slices, one short module call each, and shows progress between them; then asks."""

    TRANSFERS_FILES = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        spec = {name: option for name, option in argument_spec().items() if name != "phase"}
        _validated, options = self.validate_argument_spec(argument_spec=spec)
        result.update(changed=False, reports=[])
        try:
            endpoints_of(options)
        except FleetError as exc:
            result.update(failed=True, msg=str(exc), **exc.as_result())
            return result
        if self._task.check_mode:
            result["msg"] = f"Check mode: {plural(len(options['endpoints']), 'endpoint')} would be probed."
            return result
        if not options["endpoints"]:
            return result
        try:
            failures = self._wait(options, task_vars)
            if failures:
                result.update(failed=True, msg="\n".join(failures))
                return result
            answer = self._slice(options, task_vars, "ask")
        except ModuleFailed as exc:
            result.update(exc.result)
            return result
        except ConnectionLost as exc:
            # Failed, not unreachable: only so is a host rescued, and its part of the summary written.
            result.update(failed=True, msg=unreachable_text(str(exc)), connection_lost=str(exc))
            return result
        result["reports"] = answer["reports"]
        if not answer["ok"]:
            result.update(failed=True, msg=wrong_answers(answer["reports"]))
        return result

    def _slice(self, options: dict[str, t.Any], task_vars: dict[str, t.Any], phase: str) -> dict[str, t.Any]:
        """One module call; where the connection is lost, the same again until it is back."""
        lost_since: float | None = None
        while True:
            try:
                answer: dict[str, t.Any] = self._execute_module(
                    module_name="gpufleet.vllm.vllm_probe",
                    module_args={**options, "phase": phase},
                    task_vars=task_vars,
                )
                break
            except AnsibleConnectionFailure as exc:
                now = time.monotonic()
                if lost_since is None:
                    lost_since = now
                    host = task_vars.get("inventory_hostname", "")
                    display.display(f"[{host}] no connection, trying again for {RECONNECT_SECONDS:.0f} s: {exc}")
                if now - lost_since >= RECONNECT_SECONDS:
                    raise ConnectionLost(f"{exc} (for {now - lost_since:.0f} s)") from None
                time.sleep(RETRY_SECONDS)
        if answer.get("failed") or answer.get("unreachable"):
            raise ModuleFailed(answer)
        return answer

    def _wait(self, options: dict[str, t.Any], task_vars: dict[str, t.Any]) -> list[str]:
        """Until all are ready, or one will not be; the words for each that is not."""
        host = str(task_vars.get("inventory_hostname", ""))
        urls = {str(entry["name"]): str(entry["url"]) for entry in options["endpoints"]}
        watches = {
            str(entry["name"]): Watch(str(entry["name"]), float(entry.get("ready_timeout") or options["timeout"]))
            for entry in options["endpoints"]
        }
        started = shown = time.monotonic()
        while True:
            answer = self._slice(options, task_vars, "wait")
            elapsed = time.monotonic() - started
            waiting = []
            for name, watch in watches.items():
                watch.observe(answer["services"][name])
                if not watch.last["ready"]:
                    waiting.append(watch)
            lost = [w for w in waiting if w.given_up(options["max_restarts"]) or elapsed >= w.timeout]
            if lost or not waiting:
                return [not_ready(watch, urls[watch.name], elapsed, options["max_restarts"]) for watch in lost]
            if time.monotonic() - shown >= PROGRESS_SECONDS or shown == started:
                shown = time.monotonic()
                for watch in waiting:
                    display.display(progress_line(host, watch, elapsed))
