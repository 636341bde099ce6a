# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Preflight: rules over the facts and the plan of a host, and over all hosts. Pure, no I/O.

A file of rules has a list and says each rule with the decorator of that list::

    RULES: list[Rule] = []
    rule = rules_into(RULES)

    @rule("gpu.ecc", "error", "No GPU has uncorrected memory errors", "Such a GPU computes wrong, or stops.")
    def ecc(context: Context) -> Verdict: ...

A rule returns None or nothing in a list where the host passes, or where it does not apply; `Unknown` where a fact that
it needs is missing; one `Failure` for each thing that is wrong.
"""

from __future__ import annotations

import typing as t
from dataclasses import asdict, dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import SEVERITIES, Finding, worst_first

PAGE = "docs/preflight.md"


@dataclass(frozen=True)
class Context:
    """All that a rule may look at; ``now`` is the controller's clock when the facts arrived, None if unknown."""

    host: str
    facts: t.Mapping[str, t.Any]
    plan: t.Mapping[str, t.Any]
    settings: t.Mapping[str, t.Any] = field(default_factory=dict)
    now: float | None = None


@dataclass(frozen=True)
class Failure:
    """``severity`` is empty where it is the rule's own; ``service`` where the failure is about the host."""

    seen: str
    expected: str
    remedy: str
    service: str = ""
    severity: str = ""


@dataclass(frozen=True)
class Unknown:
    """The rule could not tell; ``reason`` says which fact is missing, and why if that is known."""

    reason: str


Verdict = t.Union[None, Unknown, t.Sequence[Failure]]
FleetVerdict = t.Union[None, Unknown, t.Sequence[tuple[tuple[str, ...], Failure]]]
HostCheck = t.Callable[[Context], Verdict]
FleetCheck = t.Callable[[t.Sequence[Context]], FleetVerdict]


def page_of(code: str) -> str:
    """Where the documentation tells more about this code."""
    return f"{PAGE}#{anchor_of(code)}"


def anchor_of(code: str) -> str:
    return code.replace(".", "-").replace("_", "-")


@dataclass(frozen=True)
class Rule:
    """One question about one host."""

    code: str
    severity: str
    title: str
    why: str
    check: HostCheck
    page: str = ""

    def __post_init__(self) -> None:
        _complete(self)


@dataclass(frozen=True)
class FleetRule:
    """One question about all hosts together; each failure names the hosts that it is about."""

    code: str
    severity: str
    title: str
    why: str
    check: FleetCheck
    page: str = ""

    def __post_init__(self) -> None:
        _complete(self)


AnyRule = t.Union[Rule, FleetRule]


def _complete(one: AnyRule) -> None:
    if one.severity not in SEVERITIES:
        raise ValueError(f"{one.code}: {one.severity} is none of {', '.join(SEVERITIES)}")
    if not one.page:
        object.__setattr__(one, "page", page_of(one.code))


def rules_into(rules: list[Rule]) -> t.Callable[[str, str, str, str], t.Callable[[HostCheck], HostCheck]]:
    """The decorator ``rule(code, severity, title, why)`` of a file: adds to its list, leaves the function as it is."""

    def rule(code: str, severity: str, title: str, why: str) -> t.Callable[[HostCheck], HostCheck]:
        def add(check: HostCheck) -> HostCheck:
            rules.append(Rule(code, severity, title, why, check))
            return check

        return add

    return rule


def fleet_rules_into(rules: list[FleetRule]) -> t.Callable[[str, str, str, str], t.Callable[[FleetCheck], FleetCheck]]:
    """The same for rules across hosts."""

    def rule(code: str, severity: str, title: str, why: str) -> t.Callable[[FleetCheck], FleetCheck]:
        def add(check: FleetCheck) -> FleetCheck:
            rules.append(FleetRule(code, severity, title, why, check))
            return check

        return add

    return rule


@dataclass
class HostReport:
    """What the rules say about one host. Each rule is in exactly one of: findings, passed, unknown, skipped."""

    host: str
    findings: list[Finding] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "host": self.host,
            "findings": [finding.as_dict() for finding in self.findings],
            "passed": list(self.passed),
            "unknown": [{"code": code, "reason": reason} for code, reason in self.unknown],
            "skipped": list(self.skipped),
        }


@dataclass
class FleetReport:
    """The same for the rules across hosts; each finding stands beside the hosts that it is about."""

    findings: list[tuple[tuple[str, ...], Finding]] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)
    unknown: list[tuple[str, str]] = field(default_factory=list)
    skipped: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "findings": [{"hosts": list(hosts), **finding.as_dict()} for hosts, finding in self.findings],
            "passed": list(self.passed),
            "unknown": [{"code": code, "reason": reason} for code, reason in self.unknown],
            "skipped": list(self.skipped),
        }


def evaluate(context: Context, skip: t.Collection[str], rules: t.Iterable[Rule]) -> HostReport:
    """Ask each rule about the host. A rule that breaks is unknown: a fault of ours is held against no host."""
    report = HostReport(context.host)
    for one in rules:
        if one.code in skip:
            report.skipped.append(one.code)
            continue
        try:
            verdict = one.check(context)
            found = [] if verdict is None or isinstance(verdict, Unknown) else [_finding(one, each) for each in verdict]
        except Exception as exc:  # noqa: BLE001 - a rule that breaks must not hide what the others found
            verdict, found = _broken(exc), []
        _sort(report, one.code, verdict, found)
    report.findings = worst_first(report.findings)
    return report


def evaluate_fleet(contexts: t.Sequence[Context], skip: t.Collection[str], rules: t.Iterable[FleetRule]) -> FleetReport:
    """The same for the rules across hosts; hosts whose facts are not there should not be among the contexts."""
    report = FleetReport()
    for one in rules:
        if one.code in skip:
            report.skipped.append(one.code)
            continue
        try:
            verdict = one.check(contexts)
            found = [] if verdict is None or isinstance(verdict, Unknown) else [_pair(one, *each) for each in verdict]
        except Exception as exc:  # noqa: BLE001 - a rule that breaks must not hide what the others found
            verdict, found = _broken(exc), []
        _sort(report, one.code, verdict, found)
    report.findings.sort(key=lambda pair: (SEVERITIES.index(pair[1].severity), pair[1].code, pair[0]))
    return report


def _sort(report: t.Any, code: str, verdict: t.Any, found: list[t.Any]) -> None:
    if isinstance(verdict, Unknown):
        report.unknown.append((code, verdict.reason))
    elif found:
        report.findings.extend(found)
    else:
        report.passed.append(code)


def _broken(exc: Exception) -> Unknown:
    return Unknown(f"the rule broke off with {type(exc).__name__}, which is a fault of the collection")


def _finding(one: AnyRule, failure: Failure) -> Finding:
    severity = failure.severity or one.severity
    if severity not in SEVERITIES:
        raise ValueError(severity)
    return Finding(one.code, severity, failure.seen, failure.expected, failure.remedy, failure.service, one.page)


def _pair(one: FleetRule, hosts: t.Sequence[str], failure: Failure) -> tuple[tuple[str, ...], Finding]:
    return tuple(sorted(hosts)), _finding(one, failure)


def as_findings(items: t.Iterable[t.Mapping[str, t.Any]]) -> list[Finding]:
    """Findings that went through Ansible as data."""
    known = set(asdict(Finding("", "", "", "", "")))
    return [Finding(**{key: str(text) for key, text in item.items() if key in known}) for item in items]
