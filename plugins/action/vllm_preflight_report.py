# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import re
import shutil
import typing as t
from datetime import UTC, datetime

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import in_brief
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import Context
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import FAIL_ON, fleet_report
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_rules import fleet_rules
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_view import notes, table
from ansible_collections.gpufleet.vllm.plugins.module_utils._report_file import written
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import LOST, lost_connection, unreachable_text

display = Display()

# Lines that are longer are harder to read.
NARROWEST, WIDEST = 80, 140
# Of the run's own output: the strategy loads this file before it starts the worker of a task, which has no terminal.
COLUMNS = shutil.get_terminal_size((120, 24)).columns

# The first line of a finding in the text of those that stop a host.
CODE = re.compile(r"^(?:error|warning|info) ([a-z_]+\.[a-z_]+)", re.MULTILINE)

ARGUMENT_SPEC: dict[str, t.Any] = {
    "title": {"type": "str", "default": "Preflight"},
    "hosts": {"type": "dict", "required": True},
    "facts": {"type": "dict", "default": {}},
    "plans": {"type": "dict", "default": {}},
    "failures": {"type": "dict", "default": {}},
    "lost": {"type": "list", "elements": "str", "default": []},
    "placement": {"type": "list", "elements": "dict", "default": []},
    "skip": {"type": "list", "elements": "str", "default": []},
    "fail_on": {"type": "str", "choices": list(FAIL_ON), "default": "error"},
    "quiet": {"type": "bool", "default": False},
    "path": {"type": "path", "default": ""},
}


class ActionModule(ActionBase):
    """Asks the rules across hosts, shows the table on the controller, and writes it as JSON where asked."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        hosts, contexts = parts_of(options)
        placement = options["placement"]
        found = fleet_report(hosts, contexts, options["skip"], fleet_rules(), options["fail_on"], placement)
        if not (options["quiet"] and _nothing_to_say(found)):
            # Colour only reaches a terminal that takes it: display() leaves it out elsewhere.
            display.display("")
            for text, colour in table(options["title"], found, width(COLUMNS), display.verbosity > 0):
                display.display(text, color=colour)
        stopped = {name: host["stopped_by"] for name, host in found["hosts"].items() if host["stopped_by"]}
        result.update(changed=False, ok=found["ok"], counts=found["counts"], stopped=stopped, notes=notes(found))
        result["brief"] = briefly(found)
        if options["path"]:
            finished = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            data = {**found, "title": options["title"], "finished": finished}
            result.update(written(options["path"], data, "preflight"))
        return result


def width(columns: int) -> int:
    return min(WIDEST, max(NARROWEST, columns))


def parts_of(options: dict[str, t.Any]) -> tuple[dict[str, dict[str, t.Any]], list[Context]]:
    """Each host's report, or why it has none; and what the rules across hosts look at."""
    hosts: dict[str, dict[str, t.Any]] = {}
    contexts: list[Context] = []
    for name, outcome in options["hosts"].items():
        facts, plan = options["facts"].get(name) or {}, options["plans"].get(name) or {}
        gone = lost_connection(facts)
        if gone:
            hosts[name] = {"unreachable": True, "failure": unreachable_text(gone)}
        elif outcome.get("report"):
            hosts[name] = outcome["report"]
            contexts.append(Context(name, facts, plan, outcome.get("settings") or {}, facts.get("arrived_at")))
        else:
            hosts[name] = {"failure": str(options["failures"].get(name) or "")}
    return {**hosts, **{name: {"unreachable": True, "failure": LOST} for name in options["lost"]}}, contexts


def briefly(found: dict[str, t.Any]) -> dict[str, str]:
    """What ends each host that fails, in a few words."""
    noun = "error" if found["fail_on"] in ("error", "never") else "finding"
    bad = {name: host for name, host in found["hosts"].items() if not host["ok"]}
    return {name: in_brief(CODE.findall(host["stopped_by"]), host["failure"], noun) for name, host in bad.items()}


def _nothing_to_say(found: dict[str, t.Any]) -> bool:
    counts = found["counts"]
    said = counts["errors"] or counts["warnings"] or counts["infos"] or found["skipped"]
    return bool(found["ok"] and not said)
