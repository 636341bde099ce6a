# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The result of the preflight of a host and of a fleet, as data. Pure, no I/O."""

from __future__ import annotations

import typing as t
from collections import Counter

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    INFO,
    SEVERITIES,
    WARNING,
    Finding,
    as_text,
    worst_first,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_types import FAILED
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    FleetRule,
    HostReport,
    as_findings,
    evaluate_fleet,
)

# The number of the document's shape: raised when a key changes its meaning or goes, not when one is added.
SCHEMA = 1
FAIL_ON = (ERROR, WARNING, "never")
# Findings of the plan: a plan with errors can not be carried out, whatever is to fail.
PLANNED = ("plan.", "service.")
FLEET_KEYS = ("findings", "passed", "unknown", "skipped")
NOT_LOOKED_AT = "the host was not looked at; the output above says why"
VERSIONS = {
    "kernel": ("kernel",),
    "python": ("python_version",),
    "driver": ("nvidia", "driver_version"),
    "cuda": ("nvidia", "cuda_version"),
    "docker": ("nvidia", "container", "docker", "version"),
    "compose": ("nvidia", "container", "docker", "compose_version"),
    "toolkit": ("nvidia", "container", "toolkit_version"),
}


def versions(facts: t.Mapping[str, t.Any], plan: t.Mapping[str, t.Any]) -> dict[str, str]:
    """What stands on the host, as far as it tells; a report is read weeks later."""
    found: dict[str, str] = {}
    for name, path in VERSIONS.items():
        value: t.Any = facts
        for key in path:
            value = value.get(key) if isinstance(value, t.Mapping) else None
        if isinstance(value, (str, int, float)) and not isinstance(value, bool) and str(value):
            found[name] = str(value)
    engine = plan.get("engine")
    if isinstance(engine, t.Mapping) and engine.get("version"):
        found["vllm"] = str(engine["version"])
    return found


def host_result(report: HostReport, context: Context, added: t.Iterable[Finding] = ()) -> dict[str, t.Any]:
    """One host's part: what its rules say, and what its plan says already."""
    planned = [item for item in context.plan.get("findings") or [] if isinstance(item, t.Mapping)]
    findings = worst_first([*as_findings(planned), *added, *report.findings])
    data = {**report.as_dict(), "findings": [finding.as_dict() for finding in findings]}
    off = context.plan.get("skipped")
    data["skipped"] = sorted({*data["skipped"], *map(str, off if isinstance(off, list) else ())})
    return {**data, "counts": counts(data), "versions": versions(context.facts, context.plan)}


def counts(host: t.Mapping[str, t.Any]) -> dict[str, int]:
    """``failed`` counts rules, as ``passed`` does; the severities count findings, of which a rule may make several."""
    findings = host.get("findings") or []
    broken = {one["code"] for one in findings if not str(one["code"]).startswith((*PLANNED, "preflight."))}
    tally = {name: len(host.get(name) or []) for name in ("passed", "unknown", "skipped")}
    severities = {f"{name}s": sum(1 for one in findings if one["severity"] == name) for name in SEVERITIES}
    return {"checks": len(broken) + tally["passed"] + tally["unknown"], "failed": len(broken), **tally, **severities}


def stops(finding: Finding, fail_on: str) -> bool:
    """Whether a finding fails its host."""
    if finding.code.startswith(PLANNED) and finding.severity == ERROR:
        return True
    return fail_on != "never" and SEVERITIES.index(finding.severity) <= SEVERITIES.index(fail_on)


def failure_text(findings: t.Iterable[Finding], fail_on: str) -> str:
    """Why the host stops here; empty where it does not."""
    stopping = [finding for finding in findings if stops(finding, fail_on)]
    if not stopping:
        return ""
    kind = "error" if all(finding.severity == ERROR for finding in stopping) else "finding"
    count = f"{len(stopping)} {kind}" + ("" if len(stopping) == 1 else "s")
    return f"The preflight has {count}, nothing was changed.\n{as_text(stopping)}"


def fleet_report(
    hosts: t.Mapping[str, t.Mapping[str, t.Any]],
    contexts: t.Sequence[Context],
    skip: t.Collection[str],
    rules: t.Sequence[FleetRule],
    fail_on: str,
    placement: t.Iterable[t.Mapping[str, t.Any]] = (),
) -> dict[str, t.Any]:
    """The document without its title and time; each of ``hosts`` is a `host_result`, or says why there is none.

    Findings of the ``placement`` are about no host, and so about all of them.
    """
    every = {name: _whole(host) for name, host in hosts.items()}
    looked = any(not host["failure"] for host in every.values())
    # Of no host there is nothing to compare, and none of that passed.
    asked = [rule for rule in rules if looked or rule.code in skip]
    fleet = evaluate_fleet(contexts, skip, asked).as_dict()
    placed = [{"hosts": [], **one.as_dict()} for one in worst_first(as_findings(placement))]
    fleet["findings"] = [*placed, *fleet["findings"]]
    across: dict[str, list[dict[str, t.Any]]] = {}
    for item in fleet["findings"]:
        # Where the placement has errors, each host's plan has one that says so.
        for name in item["hosts"] or (() if item["severity"] == ERROR else every):
            across.setdefault(name, []).append({key: value for key, value in item.items() if key != "hosts"})
    for name, host in every.items():
        findings = as_findings([*host["findings"], *across.get(name, [])])
        host["stopped_by"] = failure_text(findings, fail_on)
        host["severity"] = _severity(host, findings)
        host["ok"] = not host["failure"] and not host["stopped_by"]
    return {
        "schema": SCHEMA,
        "ok": all(host["ok"] for host in every.values()),
        "fail_on": fail_on,
        "counts": _fleet_counts(every, fleet),
        "skipped": sorted({code for host in [*every.values(), fleet] for code in host["skipped"]}),
        "hosts": every,
        "fleet": fleet,
    }


def _whole(host: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Every key; a host that was lost on the way left none of them."""
    made: dict[str, t.Any] = {key: list(host.get(key) or []) for key in FLEET_KEYS}
    unreachable = bool(host.get("unreachable"))
    failure = str(host.get("failure") or ("" if host.get("counts") and not unreachable else NOT_LOOKED_AT))
    return {
        **made,
        "counts": counts(made),
        "versions": dict(host.get("versions") or {}),
        "unreachable": unreachable,
        "failure": failure,
    }


def _severity(host: t.Mapping[str, t.Any], findings: t.Iterable[Finding]) -> str:
    if host["failure"]:
        return ERROR
    return next((one for one in SEVERITIES if any(each.severity == one for each in findings)), "")


def placement_failed(fleet: t.Mapping[str, t.Any]) -> bool:
    """Whether the errors are there to which the plan of each host points."""
    return any(one.get("severity") == ERROR and not one.get("hosts") for one in fleet.get("findings") or [])


def _own(host: t.Mapping[str, t.Any]) -> list[dict[str, t.Any]]:
    return [one for one in host["findings"] if str(one["code"]).startswith("preflight.")]


def _fleet_counts(every: t.Mapping[str, t.Mapping[str, t.Any]], fleet: t.Mapping[str, t.Any]) -> dict[str, int]:
    tallies = [host["counts"] for host in every.values()] + [counts(fleet)]
    total = {key: sum(tally[key] for tally in tallies) for key in tallies[0]}
    # What one variable of the run has in it is one thing to correct, whoever was told.
    said = Counter((one["severity"], one["seen"]) for host in every.values() for one in _own(host))
    for (severity, _seen), times in said.items():
        total[f"{severity}s"] -= times - 1
    if placement_failed(fleet):
        total["errors"] -= sum(one["code"] == FAILED for host in every.values() for one in host["findings"])
    lost = sum(1 for host in every.values() if host["unreachable"])
    return {
        "hosts": len(every),
        "hosts_unreachable": lost,
        "hosts_failed": sum(1 for host in every.values() if host["severity"] == ERROR) - lost,
        "hosts_warned": sum(1 for host in every.values() if host["severity"] == WARNING),
        "hosts_ok": sum(1 for host in every.values() if host["severity"] in ("", INFO)),
        **total,
    }
