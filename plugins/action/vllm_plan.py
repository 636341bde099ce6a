# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from dataclasses import fields
from pathlib import Path

from ansible.errors import AnsibleError
from ansible.module_utils.common.yaml import yaml_load
from ansible.module_utils.parsing.convert_bool import boolean
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import LOGGING, ULIMITS
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding, as_text
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, make_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_skip import without_skipped
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import RUNTIMES
from ansible_collections.gpufleet.vllm.plugins.module_utils._settings_check import (
    Setting,
    bad_settings,
    settings_of,
    unknown_variables,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import printable
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

display = Display()
ELSEWHERE = "elsewhere"

ARGUMENT_SPEC: dict[str, t.Any] = {
    "services": {"type": "raw", "required": True},
    "facts": {"type": "dict", "required": True},
    "root": {"type": "str", "default": "/var/lib/gpufleet-vllm"},
    "model_root": {"type": "str", "required": True},
    "device": {"type": "str", "choices": ["auto", "cuda", "cpu"], "default": "auto"},
    "allow_cpu": {"type": "bool", "default": False},
    "runtime": {"type": "str", "choices": list(RUNTIMES), "default": "auto"},
    "bind_address": {"type": "str", "default": "127.0.0.1"},
    "address": {"type": "str", "default": ""},
    "drain_seconds": {"type": "int", "default": 120},
    "ready_timeout": {"type": "int", "default": 1800},
    "default_args": {"type": "dict", "default": {}},
    "default_environment": {"type": "dict", "default": {}},
    "cpu_args": {"type": "dict", "default": {}},
    "cpu_environment": {"type": "dict", "default": {}},
    "engine_path": {"type": "str", "default": ""},
    "engine_python": {"type": "str", "default": ""},
    "engine_versions": {"type": "dict", "default": {}},
    "engine_managed": {"type": "bool", "default": True},
    "image": {"type": "str", "default": ""},
    "container_user": {"type": "str", "default": "2000:0"},
    "container_shm_size": {"type": "str", "default": "16gb"},
    "container_read_only": {"type": "bool", "default": True},
    "container_gpu_driver": {"type": "str", "choices": ["nvidia", "cdi"], "default": "nvidia"},
    "container_ulimits": {"type": "dict", "default": ULIMITS},
    "container_logging": {"type": "dict", "default": LOGGING},
    "container_limits": {"type": "dict", "default": {}},
    "allow_remote_code": {"type": "bool", "default": False},
    "allow_public_bind": {"type": "bool", "default": False},
    "allow_pickle": {"type": "bool", "default": False},
    "repin": {"type": "raw", "default": []},
    "models": {"type": "dict", "default": {}},
    "skip": {"type": "list", "elements": "str", "default": []},
    "findings": {"type": "list", "elements": "dict", "default": []},
    "check_variables": {"type": "bool", "default": False},
    "fail_on_errors": {"type": "bool", "default": True},
    "show": {"type": "bool", "default": True},
}
# The variables of the role vllm that options come from under another name.
VARIABLES = {"allow_pickle": "vllm_artifact_allow_pickle", "skip": "vllm_preflight_skip"}
ROLES = Path(__file__).resolve().parents[2] / "roles"


def read_settings(roles: Path) -> dict[str, Setting]:
    specs = {path.parents[1].name: _yaml(path) for path in sorted(roles.glob("*/meta/argument_specs.yml"))}
    return settings_of(specs)


def _yaml(path: Path) -> t.Any:
    try:
        return yaml_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


# Read once: the strategy loads this file before it starts a worker for each host.
SETTINGS = read_settings(ROLES)


class ActionModule(ActionBase):
    """Plans on the controller: pure arithmetic, no connection to the host."""

    TRANSFERS_FILES = False
    _requires_connection = False

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        found = self._check_variables(task_vars or {})
        _validated, options = self.validate_argument_spec(argument_spec=ARGUMENT_SPEC)
        if options["facts"].get("unreachable"):
            result.update(changed=False, failed=True, msg="The host was not reached, so nothing is planned or changed.")
            return result
        settings = Settings(**{item.name: options[item.name] for item in fields(Settings)})
        facts = options["facts"]
        facts = {**facts, "models": {**_elsewhere(options["models"]), **(facts.get("models") or {})}}
        plan = make_plan(options["services"], settings, facts)
        earlier = options["findings"]
        kept, skipped = without_skipped(found, options["skip"])
        plan["skipped"] = sorted({*plan["skipped"], *skipped})
        earlier = [*earlier, *(finding.as_dict() for finding in kept)]
        plan["findings"] = [*earlier, *plan["findings"]]
        plan["errors"] += sum(finding.get("severity") == "error" for finding in earlier)
        result.update(changed=False, plan=plan)
        if options["show"]:
            self._show(plan, str((task_vars or {}).get("inventory_hostname", "")), options["fail_on_errors"])
        if plan["errors"] and options["fail_on_errors"]:
            text = as_text(Finding(**finding) for finding in plan["findings"] if finding["severity"] == "error")
            result.update(
                failed=True, msg=f"The plan has {plural(plan['errors'], 'error')}, nothing was changed.\n{text}"
            )
        return result

    def _check_variables(self, variables: dict[str, t.Any]) -> list[Finding]:
        """What is wrong with the variables of the host. Options that come from such a one take their default."""
        if not boolean(self._task.args.get("check_variables", False), strict=False):
            return []
        bad = bad_settings(variables, SETTINGS, self._read)
        self._task.args = {
            option: value
            for option, value in self._task.args.items()
            if VARIABLES.get(option, f"vllm_{option}") not in bad
        }
        return [*bad.values(), *unknown_variables(variables, SETTINGS)]

    def _read(self, value: t.Any) -> t.Any:
        try:
            return self._templar.template(value)
        except AnsibleError as exc:
            raise LookupError from exc

    def _show(self, plan: dict[str, t.Any], host: str, failing: bool) -> None:
        """What the plan decided on its own is said as it happens."""
        for finding in plan["findings"]:
            if finding["severity"] != "error" or not failing:
                text = f"[{host}] {finding['seen']} ({finding['code']}; {finding['remedy']})"
                display.display(printable(text))  # some of it are words of a host or a hub


def _elsewhere(models: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Models as another host read them: that they lie there says nothing of this host."""
    return {
        name: {**entry, "source": ELSEWHERE} if isinstance(entry, dict) and entry.get("source") == "artifact" else entry
        for name, entry in models.items()
    }
