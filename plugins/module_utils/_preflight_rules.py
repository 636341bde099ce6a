# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""All rules of the preflight, in the order of the documentation, and what can be said about their codes. Pure."""

from __future__ import annotations

import difflib
import fnmatch
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _rules_disk,
    _rules_docker,
    _rules_driver,
    _rules_fleet,
    _rules_gpu,
    _rules_host,
    _rules_network,
    _rules_speed,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_skip import SKIPPABLE
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import FleetRule, Rule, page_of

SKIP_UNKNOWN = "preflight.skip_unknown"
TABLE = "take the codes from the table in docs/preflight.md"
_SHOWN = 4


def host_rules() -> list[Rule]:
    return [
        *_rules_gpu.RULES,
        *_rules_speed.RULES,
        *_rules_driver.RULES,
        *_rules_docker.RULES,
        *_rules_host.RULES,
        *_rules_disk.RULES,
        *_rules_network.RULES,
    ]


def fleet_rules() -> list[FleetRule]:
    return list(_rules_fleet.RULES)


def codes() -> list[str]:
    """Of every rule, as a user names them to turn one off."""
    return [one.code for one in host_rules()] + [one.code for one in fleet_rules()]


SAID_YES = {
    "plan.remote_code": "vllm_allow_remote_code",
    "plan.public_bind": "vllm_allow_public_bind",
    "plan.pickle": "vllm_artifact_allow_pickle",
}
"""What needs an explicit yes, and where it is said."""


def check_skip(skip: t.Iterable[str]) -> list[Finding]:
    """One finding for each name that turns nothing off: a typo would leave a rule on, and nobody would know why."""
    known = [*codes(), *sorted(SKIPPABLE)]
    return [_unknown_code(name, known) for name in dict.fromkeys(skip) if name not in known]


def _unknown_code(name: str, known: t.Sequence[str]) -> Finding:
    near = difflib.get_close_matches(name, known, 1)
    remedy = f"write {near[0]}" if near else "take the code from the table in docs/preflight.md, or leave it out"
    seen = f"vllm_preflight_skip names {name}, and no rule has that code"
    expected = "codes of rules, such as gpu.persistence"
    family = name.lower().rstrip(".*")
    if name in SAID_YES:
        seen = f"vllm_preflight_skip names {name}, which has a variable of its own"
        remedy = f"set {SAID_YES[name]}: true instead, if it shall be so"
    elif any(char in name for char in "*?[") or family in {code.partition(".")[0] for code in known}:
        expected = "codes that are written out; there are no patterns"
        meant = fnmatch.filter(known, name.lower()) or [code for code in known if code.startswith(f"{family}.")]
        more = ", ..." if len(meant) > _SHOWN else ""
        remedy = f"write each of them: {', '.join(meant[:_SHOWN])}{more}" if meant else TABLE
    elif name.startswith(("plan.", "service.")):
        seen = f"vllm_preflight_skip names {name}, which cannot be turned off"
        remedy = "leave it out, and correct what the finding says"
    return Finding(
        SKIP_UNKNOWN,
        WARNING,
        seen,
        expected,
        remedy,
        page=page_of(SKIP_UNKNOWN),
    )
