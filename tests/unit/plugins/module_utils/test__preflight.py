# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t
from collections.abc import Sequence

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    FleetRule,
    FleetVerdict,
    Rule,
    Unknown,
    Verdict,
    anchor_of,
    as_findings,
    evaluate,
    evaluate_fleet,
    fleet_rules_into,
    page_of,
    rules_into,
)

HOST = Context("gpu-01", {}, {})


def answering(code: str, verdict: t.Any, severity: str = "error") -> Rule:
    def check(_context: Context) -> Verdict:
        if isinstance(verdict, Exception):
            raise verdict
        return t.cast(Verdict, verdict)

    return Rule(code, severity, "A title", "A reason", check)


def answering_all(code: str, verdict: t.Any) -> FleetRule:
    def check(_contexts: Sequence[Context]) -> FleetVerdict:
        if isinstance(verdict, Exception):
            raise verdict
        return t.cast(FleetVerdict, verdict)

    return FleetRule(code, "warning", "A title", "A reason", check)


def test_a_file_of_rules_registers_them_in_order_and_leaves_the_functions_alone() -> None:
    rules: list[Rule] = []
    fleet: list[FleetRule] = []
    rule, fleet_rule = rules_into(rules), fleet_rules_into(fleet)

    @rule("gpu.one", "error", "One", "Why one")
    def one(context: Context) -> Verdict:
        return [Failure(context.host, "e", "r")]

    @rule("gpu.two_more", "info", "Two", "Why two")
    def two(_context: Context) -> Verdict:
        return None

    @fleet_rule("fleet.all", "warning", "All", "Why all")
    def every(_contexts: Sequence[Context]) -> FleetVerdict:
        return None

    assert [(each.code, each.severity, each.page) for each in rules] == [
        ("gpu.one", "error", "docs/preflight.md#gpu-one"),
        ("gpu.two_more", "info", "docs/preflight.md#gpu-two-more"),
    ]
    assert [each.code for each in fleet] == ["fleet.all"]
    assert one(HOST) == [Failure("gpu-01", "e", "r")]
    assert (two(HOST), every([HOST])) == (None, None)


def test_a_rule_is_in_exactly_one_place() -> None:
    rules = [
        answering("a.none", None),
        answering("a.empty", []),
        answering("a.unknown", Unknown("the log could not be read")),
        answering("a.fails", [Failure("s", "e", "r"), Failure("s2", "e2", "r2", "chat", "warning")]),
        answering("a.off", [Failure("never", "asked", "at all")]),
    ]
    report = evaluate(HOST, ["a.off", "no.rule"], rules)
    assert report.passed == ["a.none", "a.empty"]
    assert report.unknown == [("a.unknown", "the log could not be read")]
    assert report.skipped == ["a.off"]
    assert report.findings == [
        Finding("a.fails", "error", "s", "e", "r", "", "docs/preflight.md#a-fails"),
        Finding("a.fails", "warning", "s2", "e2", "r2", "chat", "docs/preflight.md#a-fails"),
    ]


def test_a_rule_that_is_turned_off_is_not_even_asked() -> None:
    assert evaluate(HOST, ["a.breaks"], [answering("a.breaks", KeyError("x"))]).unknown == []


@pytest.mark.parametrize(
    "verdict", [KeyError("x"), RecursionError(), 7, ["no failure"], [Failure("s", "e", "r", severity="fatal")]],
    ids=["raises", "recursion", "number", "wrong-item", "wrong-severity"],
)  # fmt: skip
def test_a_rule_that_breaks_is_unknown_and_hides_no_other(verdict: t.Any) -> None:
    report = evaluate(HOST, [], [answering("a.breaks", verdict), answering("a.fails", [Failure("s", "e", "r")])])
    ((code, reason),) = report.unknown
    assert code == "a.breaks"
    assert "a fault of the collection" in reason
    if isinstance(verdict, Exception):
        assert type(verdict).__name__ in reason
    assert [finding.code for finding in report.findings] == ["a.fails"]
    assert report.passed == []


def test_findings_are_worst_first() -> None:
    rules = [answering(f"a.{name}", [Failure("s", "e", "r")], name) for name in ("info", "warning", "error")]
    assert [finding.severity for finding in evaluate(HOST, [], rules).findings] == ["error", "warning", "info"]


def test_rules_across_hosts() -> None:
    hosts = [HOST, Context("gpu-02", {}, {})]
    rules = [
        answering_all("fleet.mixed", [(("gpu-02", "gpu-01"), Failure("two", "one", "same", "chat"))]),
        answering_all("fleet.bad", [(("gpu-01",), Failure("x", "y", "z", severity="error"))]),
        answering_all("fleet.fine", []),
        answering_all("fleet.unknown", Unknown("one host only")),
        answering_all("fleet.breaks", TypeError("x")),
        answering_all("fleet.off", KeyError("x")),
    ]
    report = evaluate_fleet(hosts, ["fleet.off"], rules)
    assert [(names, finding.code, finding.severity) for names, finding in report.findings] == [
        (("gpu-01",), "fleet.bad", "error"),
        (("gpu-01", "gpu-02"), "fleet.mixed", "warning"),
    ]
    assert report.passed == ["fleet.fine"]
    assert [code for code, _reason in report.unknown] == ["fleet.unknown", "fleet.breaks"]
    assert report.skipped == ["fleet.off"]
    assert report.as_dict()["findings"][1] == {
        "hosts": ["gpu-01", "gpu-02"], "code": "fleet.mixed", "severity": "warning", "seen": "two", "expected": "one",
        "remedy": "same", "service": "chat", "page": "docs/preflight.md#fleet-mixed",
    }  # fmt: skip


def test_a_severity_that_is_none_is_a_mistake_in_the_file_of_rules() -> None:
    with pytest.raises(ValueError, match="bad is none of error, warning, info"):
        answering("a.b", None, "bad")


def test_data_has_everything_and_comes_back() -> None:
    report = evaluate(HOST, [], [answering("a.b", [Failure("s", "e", "r")]), answering("a.c", Unknown("why"))])
    data = report.as_dict()
    assert data["unknown"] == [{"code": "a.c", "reason": "why"}]
    assert as_findings(data["findings"]) == report.findings
    assert as_findings([{"code": "x", "severity": "error", "seen": 3, "expected": "e", "remedy": "r", "more": 1}]) == [
        Finding("x", "error", "3", "e", "r")
    ]


def test_where_a_code_is_documented() -> None:
    assert anchor_of("host.clock_skew") == "host-clock-skew"
    assert page_of("gpu.ecc") == "docs/preflight.md#gpu-ecc"
