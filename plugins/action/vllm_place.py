# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import shutil
import typing as t

from ansible.errors import AnsibleError
from ansible.inventory.manager import InventoryManager
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    Finding,
    as_text,
    worst_first,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._lines import folded
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_plan import FREE, KEEP, Known, brief, place_fleet
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import printable

display = Display()

# Lines that are longer are harder to read.
NARROWEST, WIDEST = 80, 140
# Of the run's own output: the strategy loads this file before it starts the worker of a task, which has no terminal.
COLUMNS = shutil.get_terminal_size((120, 24)).columns

ARGUMENT_SPEC: dict[str, t.Any] = {
    "services": {"type": "raw", "required": True},
    "hosts": {"type": "list", "elements": "str", "required": True},
    "facts": {"type": "str", "default": "vllm_host"},
    "models": {"type": "dict", "default": {}},
    "unread": {"type": "str", "default": ""},
    "ports": {"type": "str", "default": "8000-8999"},
    "missing": {"type": "str", "choices": [KEEP, FREE], "default": KEEP},
    "show": {"type": "bool", "default": True},
}
FLEET, OWN = "vllm_fleet_services", "vllm_services"
# What decides which cards and ports a host's own services hold. Their secrets are not looked at.
OWN_KEYS = ("name", "model", "gpus", "port", "tensor_parallel_size", "gpu_memory_utilization", "args")


class ActionModule(ActionBase):
    """Places the fleet's services on the controller, once for all hosts of the play."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        known = self._known(options["hosts"], options["facts"], task_vars)
        resolve = _Patterns(self._loader, task_vars.get("groups") or {})
        fleet = place_fleet(
            options["services"],
            known,
            resolve,
            options["ports"],
            options["missing"],
            options["models"],
            unread=options["unread"],
        )
        result.update(
            changed=False,
            hosts={host: [dict(entry) for entry in entries] for host, entries in fleet.hosts.items()},
            findings=[finding.as_dict() for finding in worst_first(fleet.findings)],
            host_findings=[finding.as_dict() for finding in brief(fleet.findings)],
            errors=sum(finding.severity == ERROR for finding in fleet.findings),
            search=fleet.search,
        )
        if fleet.findings and options["show"]:
            display.display(_block(fleet.findings, min(WIDEST, max(NARROWEST, COLUMNS))))
        return result

    def _known(self, hosts: t.Sequence[str], facts: str, task_vars: dict[str, t.Any]) -> dict[str, Known]:
        """The hosts of the fleet, without templating more of their variables than is needed."""
        hostvars: t.Any = task_vars.get("hostvars") or {}
        found: dict[str, dict[str, t.Any]] = {}
        for name in hosts:
            if name in hostvars:
                found[name] = dict(hostvars.raw_get(name))
        lists = [variables[FLEET] for variables in found.values() if FLEET in variables]
        return {
            name: Known(
                variables.get(facts),
                *self._own(variables),
                differs=bool(lists) and variables.get(FLEET, lists[0]) != lists[0],
            )
            for name, variables in found.items()
        }

    def _own(self, variables: dict[str, t.Any]) -> tuple[t.Any, str]:
        """What of the host's own services matters to others, and why it cannot be told."""
        raw = variables.get(OWN)
        if not raw:
            return (), ""
        try:
            templar = self._templar.copy_with_new_env(available_variables=variables)
            listed = templar.template(raw) if isinstance(raw, str) else raw
            if not isinstance(listed, list):
                return (), ""
            kept = [
                {key: entry[key] for key in OWN_KEYS if key in entry} for entry in listed if isinstance(entry, dict)
            ]
            return templar.template(kept), ""
        except AnsibleError as exc:
            return (), f"its {OWN} cannot be read ({str(exc).splitlines()[0]})"


def _block(findings: t.Sequence[Finding], width: int) -> str:
    lines = [part for line in as_text(findings).splitlines() for part in folded(f"  {printable(line)}", width)]
    return "\n".join(["the fleet", *lines])


class _Patterns:
    """Ansible's host patterns over the groups of a play, ``--limit`` or not."""

    def __init__(self, loader: t.Any, groups: t.Mapping[str, t.Iterable[str]]) -> None:
        self._loader, self._groups = loader, groups
        self._inventory: InventoryManager | None = None
        self._seen: dict[tuple[str, ...], frozenset[str]] = {}

    def __call__(self, patterns: t.Sequence[str]) -> frozenset[str]:
        key = tuple(patterns)
        if key not in self._seen:
            try:
                self._seen[key] = frozenset(host.name for host in self._manager().get_hosts(pattern=list(key)))
            except AnsibleError:
                self._seen[key] = frozenset()
        return self._seen[key]

    def _manager(self) -> InventoryManager:
        if self._inventory is None:
            self._inventory = InventoryManager(self._loader, parse=False)
            for group, hosts in self._groups.items():
                self._inventory.add_group(group)
                for host in hosts:
                    self._inventory.add_host(host, group=group)
        return self._inventory
