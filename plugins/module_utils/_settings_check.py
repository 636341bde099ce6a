# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The variables of a host, held to those that the roles have: misspelt names, wrong choices and types. Pure, no I/O."""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass

from ansible.module_utils.common.arg_spec import ArgumentSpecValidator
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._spec_values import nearest, type_name

PREFIX = "vllm_"
# What only playbooks read.
OF_PLAYBOOKS = (
    "vllm_audio_image_hosts",
    "vllm_fetch_models",
    "vllm_hosts",
    "vllm_teardown_artifacts",
    "vllm_teardown_engine",
)
# What roles and playbooks leave behind: nobody sets these, so no typo is meant to be one of them.
RESULTS = (
    "vllm_artifacts_fetched",
    "vllm_audio_image_result",
    "vllm_engine_result",
    "vllm_host",
    "vllm_host_failure",
    "vllm_host_report",
    "vllm_host_services",
    "vllm_image_result",
    "vllm_plan_view",
    "vllm_preflight_report",
    "vllm_preflight_result",
    "vllm_probe_result",
    "vllm_prune_result",
    "vllm_runtime_stack",
    "vllm_plan",
)
# Of the services themselves: where a name is misspelt, everything that runs would be stopped.
SERVICES = ("vllm_services", "vllm_fleet_services")
MEANT = {"vllm_host_services": "vllm_services"}
# The roles whose variables the plan checks, for the playbooks that make a plan.
PLANNING = ("vllm", "vllm_preflight")
DEPLOYING = ("vllm_artifacts", "vllm_engine", "vllm_image", "vllm_runtime", "vllm_probe")
# What playbooks/deploy.yml gives those roles itself: what an inventory says of them is not looked at.
GIVEN = (
    "vllm_artifacts_address",
    "vllm_artifacts_allow_pickle",
    "vllm_artifacts_bandwidth",
    "vllm_artifacts_connections",
    "vllm_artifacts_distribution",
    "vllm_artifacts_endpoint",
    "vllm_artifacts_engine",
    "vllm_artifacts_list",
    "vllm_artifacts_peer_port",
    "vllm_artifacts_seed",
    "vllm_artifacts_token",
    "vllm_engine_flavor",
    "vllm_engine_path",
    "vllm_engine_version",
    "vllm_image_list",
    "vllm_image_root",
    "vllm_preflight_settings",
    "vllm_probe_endpoints",
    "vllm_probe_root",
    "vllm_probe_runtime",
    "vllm_probe_secrets",
    "vllm_probe_timeout",
    "vllm_runtime_artifacts",
    "vllm_runtime_engine",
    "vllm_runtime_images",
    "vllm_runtime_manager",
    "vllm_runtime_root",
    "vllm_runtime_secrets",
    "vllm_runtime_services",
    "vllm_runtime_user",
    "vllm_runtime_user_exists",
)
SECRET = ("token", "secret", "key", "password")
EXPECTED = {
    "bool": "true or false",
    "dict": "a mapping",
    "float": "a number",
    "int": "a whole number",
    "list": "a list",
}
TEMPLATE = re.compile(r"\{[{%]")
SHOWN = 40
# What people call it, where the nearest spelling would be something else.
CALLED = {"docker": "compose", "gpu": "cuda"}


@dataclass(frozen=True)
class Setting:
    """A variable of a role, as its argument spec has it."""

    role: str
    option: t.Mapping[str, t.Any]

    @property
    def type(self) -> str:
        return str(self.option.get("type") or "str")


Settings = t.Mapping[str, Setting]


def settings_of(specs: t.Mapping[str, t.Any]) -> dict[str, Setting]:
    """Every variable by its name, from the parsed argument specs by role. A role that is run first comes first."""
    order = sorted(specs, key=lambda role: (role not in PLANNING, role))
    found: dict[str, Setting] = {}
    for role in order:
        for entry in (specs[role] or {}).get("argument_specs", {}).values():
            for name, option in (entry.get("options") or {}).items():
                found.setdefault(name, Setting(role, option))
    return found


# --- names -----------------------------------------------------------------------------------------------------------


def unknown_variables(variables: t.Mapping[str, t.Any], settings: Settings) -> list[Finding]:
    """A finding for each variable that nearly has the name of one that is read. Others are a user's own business."""
    if not settings:
        return []
    names = [name for name in (*settings, *OF_PLAYBOOKS) if name.startswith(PREFIX)]
    known = {*names, *RESULTS}
    findings = []
    for name in sorted(name for name in variables if name not in known):
        meant = _meant(name, names)
        decisive = meant in SERVICES and not variables.get(meant)
        if not meant or (not name.startswith(PREFIX) and not decisive):
            continue
        if not _mentioned(name, variables):
            findings.append(_unknown(name, meant, ERROR if decisive else WARNING))
    return findings


def _unknown(name: str, meant: str, severity: str) -> Finding:
    remedy = f"write {meant}, or give it another name where it is a variable of your own"
    return Finding(
        "plan.unknown_variable",
        severity,
        f"{name} is set, which nothing reads",
        "a variable of the collection",
        remedy,
    )


def _meant(name: str, names: t.Sequence[str]) -> str:
    """The variable that ``name`` is a typo of, or an empty string."""
    if not name.startswith(PREFIX):
        # vlm_services: too far from home to guess at anything that matters less.
        head, _line, tail = name.partition("_")
        far = not head.startswith("v") or distance(head, PREFIX[:-1]) != 1
        return "" if far else next((one for one in SERVICES if one == PREFIX + tail), "")
    rest = name[len(PREFIX) :]
    best, at = "", 3
    for one in (*names, *MEANT):
        cost = closeness(rest, one[len(PREFIX) :], at)
        if cost is not None and cost < at:
            best, at = one, cost
    return MEANT.get(best, best)


def closeness(word: str, known: str, below: int = 3) -> int | None:
    """How many slips away ``word`` is from ``known``; ``None`` where it is another word."""
    ours, theirs = word.split("_"), known.split("_")
    if len(ours) != len(theirs):
        return 1 if word.replace("_", "") == known.replace("_", "") else None
    if sorted(ours) == sorted(theirs):
        return 1
    total = 0
    for mine, other in zip(ours, theirs):
        if mine == other:
            continue
        # gpu and cpu are two words, and not one slip of a finger.
        allowed = 2 if len(other) > 5 else int(len(other) > 3 or sorted(mine) == sorted(other))
        if abs(len(mine) - len(other)) > allowed:
            return None
        slips = distance(mine, other)
        total += slips
        if slips > allowed or total >= below:
            return None
    return total


def distance(a: str, b: str) -> int:
    """Letters to insert, to drop, to change, or to swap with their neighbour."""
    before: list[int] = []
    row = list(range(len(b) + 1))
    for i, left in enumerate(a, 1):
        earlier, before, row = before, row, [i]
        for j, right in enumerate(b, 1):
            best = min(before[j] + 1, row[j - 1] + 1, before[j - 1] + (left != right))
            if i > 1 and j > 1 and left == b[j - 2] and a[i - 2] == right:
                best = min(best, earlier[j - 2] + 1)
            row.append(best)
    return row[-1]


def _mentioned(name: str, variables: t.Mapping[str, t.Any]) -> bool:
    """Whether another variable is made of it, so that it is a user's own. Facts are not looked at."""
    pattern = re.compile(rf"\b{re.escape(name)}\b")
    skipped = {name, "groups", "hostvars", "vars", *RESULTS}
    return any(
        _has(pattern, value)
        for key, value in variables.items()
        if key not in skipped and not str(key).startswith("ansible_")
    )


def _has(pattern: re.Pattern[str], value: t.Any) -> bool:
    if isinstance(value, str):
        return bool(TEMPLATE.search(value) and pattern.search(value))
    if isinstance(value, dict):
        return any(_has(pattern, item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_has(pattern, item) for item in value)


# --- values ----------------------------------------------------------------------------------------------------------


def bad_settings(
    variables: t.Mapping[str, t.Any], settings: Settings, read: t.Callable[[t.Any], t.Any]
) -> dict[str, Finding]:
    """By variable, what no role can take. ``read`` gives the value of a template, or a `LookupError`."""
    found: dict[str, Finding] = {}
    for name, setting in settings.items():
        if name not in variables or not _checked(name, setting):
            continue
        value = variables[name]
        if isinstance(value, str) and TEMPLATE.search(value):
            if value == setting.option.get("default"):
                continue
            try:
                value = read(value)
            except LookupError:  # whoever uses it says so
                continue
        # A name with nothing after it: what other roles make of that is theirs.
        wrong = setting.role in PLANNING if value is None else not acceptable(value, setting.option)
        if wrong:
            found[name] = _bad(name, value, setting)
    return found


def _checked(name: str, setting: Setting) -> bool:
    # The lists of services have findings of their own, which name the service.
    if name in SERVICES or name in GIVEN or setting.role not in (*PLANNING, *DEPLOYING):
        return False
    return "choices" in setting.option or setting.type in EXPECTED


def acceptable(value: t.Any, option: t.Mapping[str, t.Any]) -> bool:
    """Whether Ansible takes the value for the option, with the conversions that it makes."""
    wanted = {key: option[key] for key in ("type", "elements", "choices") if key in option}
    return not ArgumentSpecValidator({"value": wanted}).validate({"value": value}).error_messages


def _bad(name: str, value: t.Any, setting: Setting) -> Finding:
    seen = f"{name} is empty" if value is None else f"{name} is {_shown(name, value, setting)}"
    choices = [str(choice) for choice in setting.option.get("choices") or ()]
    default = setting.option.get("default")
    if choices:
        near = _choice(str(value).strip().lower(), choices)
        expected = f"one of {', '.join(choices)}"
        remedy = f"write {near}" if near else f"write one of them, or leave {name} out, which is {default}"
    else:
        expected = EXPECTED[setting.type]
        remedy = f"correct {name}"
        if setting.type in ("dict", "list"):
            example = "{KEY: VALUE}" if setting.type == "dict" else "[VALUE]"
            as_json = '{"KEY": "VALUE"}' if setting.type == "dict" else '["VALUE"]'
            remedy += f": {example} in YAML, or on the command line -e '{{\"{name}\": {as_json}}}'"
        elif isinstance(default, (bool, int, float)):
            remedy += f", such as {str(default).lower()}, which is the default"
    if value is None and not choices:
        remedy = f"write {expected}, or leave {name} out"
    return Finding("plan.bad_setting", ERROR, seen, expected, remedy)


def _choice(word: str, choices: t.Sequence[str]) -> str:
    called = CALLED.get(word, "")
    return called if called in choices else nearest(word, choices)


def _shown(name: str, value: t.Any, setting: Setting) -> str:
    """What was written, unless it may be long or a secret."""
    plain = isinstance(value, (bool, int, float)) or (isinstance(value, str) and setting.type not in ("dict", "list"))
    if not plain or any(word in name for word in SECRET):
        return type_name(value)
    text = f"'{value}'" if isinstance(value, str) else str(value).lower()
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}...'"
