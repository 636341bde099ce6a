# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t
from collections.abc import Sequence

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    FleetRule,
    FleetVerdict,
    HostReport,
    Unknown,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import (
    failure_text,
    fleet_report,
    host_result,
    versions,
)

FACTS = {
    "kernel": "6.1.0",
    "python_version": "3.11.2",
    "nvidia": {"driver_version": "580.95.05", "container": {"docker": {"version": "28.5.1", "compose_version": 2}}},
}


def finding(code: str, severity: str, service: str = "") -> Finding:
    return Finding(code, severity, f"{code} seen", "expected", "remedy", service, "page")


def made(host: str, *findings: Finding, plan: t.Mapping[str, t.Any] | None = None) -> dict[str, t.Any]:
    report = HostReport(host, list(findings), ["a.passed", "a.too"], [("a.unknown", "why")], ["a.off"])
    return host_result(report, Context(host, FACTS, plan or {}))


POINTER = finding("plan.placement_failed", "error")


def across(verdict: FleetVerdict) -> list[FleetRule]:
    def check(_contexts: Sequence[Context]) -> FleetVerdict:
        return verdict

    return [FleetRule("fleet.x", "error", "A title", "A reason", check)]


def fleet(hosts: dict[str, t.Any], verdict: FleetVerdict = None, fail_on: str = "error") -> dict[str, t.Any]:
    return fleet_report(hosts, [], [], across(verdict), fail_on)


def test_the_versions_that_a_host_tells() -> None:
    plan = {"engine": {"version": "0.33.0"}}
    assert versions(FACTS, plan) == {
        "kernel": "6.1.0", "python": "3.11.2", "driver": "580.95.05", "docker": "28.5.1", "compose": "2",
        "vllm": "0.33.0",
    }  # fmt: skip


@pytest.mark.parametrize("facts", [{}, {"nvidia": None}, {"nvidia": []}, {"nvidia": {"container": "x"}, "kernel": []}])
def test_facts_of_any_shape(facts: dict[str, t.Any]) -> None:
    assert versions(facts, {"engine": None}) == {}


def test_one_host() -> None:
    plan = {"findings": [finding("plan.port_taken", "error", "chat").as_dict(), "nonsense"]}
    data = made("gpu-01", finding("gpu.a", "error"), finding("gpu.a", "error"), finding("gpu.b", "warning"), plan=plan)
    assert [one["code"] for one in data["findings"]] == ["gpu.a", "gpu.a", "plan.port_taken", "gpu.b"]
    assert data["counts"] == {
        # The plan's finding is no check: rules are counted, and gpu.a is one.
        "checks": 5, "passed": 2, "failed": 2, "unknown": 1, "skipped": 1, "errors": 3, "warnings": 1, "infos": 0,
    }  # fmt: skip
    assert json.loads(json.dumps(data)) == data


@pytest.mark.parametrize(
    ("code", "severity", "fail_on", "stops"),
    [
        ("gpu.a", "error", "error", True),
        ("gpu.a", "warning", "error", False),
        ("gpu.a", "warning", "warning", True),
        ("gpu.a", "info", "warning", False),
        ("gpu.a", "error", "never", False),
        ("plan.a", "error", "never", True),
        ("service.a", "error", "never", True),
        ("plan.a", "warning", "never", False),
    ],
)
def test_what_stops_a_host(code: str, severity: str, fail_on: str, stops: bool) -> None:
    text = failure_text([finding(code, severity)], fail_on)
    assert bool(text) is stops
    if stops:
        kind = "error" if severity == "error" else "finding"
        assert text.startswith(f"The preflight has 1 {kind}, nothing was changed.\n{severity} {code}: {code} seen\n")


def test_a_host_is_stopped_by_all_that_stops_it_and_nothing_else() -> None:
    text = failure_text([finding("a.x", "error"), finding("a.y", "error"), finding("a.z", "warning")], "error")
    assert text.startswith("The preflight has 2 errors, nothing was changed.")
    assert "a.x seen" in text
    assert "a.y seen" in text
    assert "a.z" not in text


def test_a_fleet() -> None:
    hosts = {
        "gpu-01": made("gpu-01"),
        "gpu-02": made("gpu-02", finding("gpu.a", "error")),
        "gpu-03": made("gpu-03", finding("gpu.b", "warning")),
        "gpu-04": {"unreachable": True, "failure": "No route to host"},
        "gpu-05": {"failure": "Validation of arguments failed"},
        "gpu-06": {},
        "gpu-07": made("gpu-07", finding("gpu.c", "info")),
    }
    document = fleet(hosts)
    assert not document["ok"]
    assert document["skipped"] == ["a.off"]
    assert document["counts"] == {
        "hosts": 7, "hosts_unreachable": 1, "hosts_failed": 3, "hosts_warned": 1, "hosts_ok": 2,
        # Four hosts were asked; the rule across hosts is one more check.
        "checks": 3 + 4 + 4 + 4 + 1, "passed": 4 * 2 + 1, "failed": 3, "unknown": 4, "skipped": 4,
        "errors": 1, "warnings": 1, "infos": 1,
    }  # fmt: skip
    assert {name: host["ok"] for name, host in document["hosts"].items()} == {
        "gpu-01": True, "gpu-02": False, "gpu-03": True, "gpu-04": False, "gpu-05": False, "gpu-06": False,
        "gpu-07": True,
    }  # fmt: skip
    assert document["hosts"]["gpu-02"]["stopped_by"].startswith("The preflight has 1 error")
    assert document["hosts"]["gpu-04"]["unreachable"]
    assert document["hosts"]["gpu-06"]["failure"] == "the host was not looked at; the output above says why"
    assert {len(host) for host in document["hosts"].values()} == {11}, "every host has every key"


def test_an_error_across_hosts_stops_each_of_them_and_no_other() -> None:
    hosts = {name: made(name) for name in ("gpu-01", "gpu-02", "gpu-03")}
    document = fleet(hosts, [(("gpu-01", "gpu-03"), Failure("one address", "two", "vllm_address"))])
    stopped = {name: host["stopped_by"] for name, host in document["hosts"].items()}
    assert stopped["gpu-01"] == stopped["gpu-03"] != ""
    assert "fleet.x: one address" in stopped["gpu-01"]
    assert stopped["gpu-02"] == ""
    assert document["counts"]["hosts_failed"] == 2
    assert document["counts"]["errors"] == 1, "one finding, though it stops two hosts"
    assert document["hosts"]["gpu-01"]["findings"] == []


def test_what_is_not_known_across_hosts_fails_nobody() -> None:
    document = fleet({"gpu-01": made("gpu-01")}, Unknown("one host"))
    assert document["ok"]
    assert document["fleet"]["unknown"] == [{"code": "fleet.x", "reason": "one host"}]


def test_what_is_wrong_with_the_preflights_own_variables_counts_once() -> None:
    typo = finding("preflight.skip_unknown", "warning")
    hosts = {name: made(name, typo, finding("host.shm", "warning")) for name in ("a", "b", "c")}
    report = fleet(hosts)
    assert report["counts"]["warnings"] == 4
    assert [report["hosts"][name]["counts"]["warnings"] for name in hosts] == [2, 2, 2]
    assert fleet({**hosts, "c": made("c", finding("preflight.skip_unknown", "error"))})["counts"]["errors"] == 1


def test_rules_across_hosts_pass_where_a_host_was_looked_at() -> None:
    gone = {"gpu-01": {"unreachable": True, "failure": "no route"}, "gpu-02": {"failure": "x"}}
    document = fleet(gone)
    assert (document["counts"]["checks"], document["fleet"]["passed"]) == (0, [])
    assert fleet({**gone, "gpu-03": made("gpu-03")})["fleet"]["passed"] == ["fleet.x"]


def test_no_host_at_all() -> None:
    document = fleet({})
    assert document["ok"]
    assert document["counts"]["hosts"] == 0


def placed(*findings: Finding, hosts: int = 3, fail_on: str = "error") -> dict[str, t.Any]:
    """A fleet after a placement; where that has errors, each host's plan points to them."""
    failed = any(one.severity == "error" for one in findings)
    plan = {"findings": [POINTER.as_dict()]} if failed else {}
    every = {f"gpu-{number}": made(f"gpu-{number}", plan=plan) for number in range(hosts)}
    return fleet_report(every, [], [], [], fail_on, [one.as_dict() for one in findings])


def test_findings_of_the_placement_are_the_fleets_and_counted_once() -> None:
    found = placed(finding("plan.host_missing", "info"), finding("plan.unplaced", "error", "chat"))
    assert [(one["code"], one["hosts"]) for one in found["fleet"]["findings"]] == [
        ("plan.unplaced", []), ("plan.host_missing", [])
    ]  # fmt: skip
    assert (found["counts"]["errors"], found["counts"]["infos"], found["counts"]["failed"]) == (1, 1, 0)
    assert (found["ok"], found["counts"]["hosts_failed"]) == (False, 3)
    for host in found["hosts"].values():
        assert "plan.placement_failed" in host["stopped_by"]
        assert "plan.unplaced" not in host["stopped_by"], "not all of it on each of 500 hosts"


def test_a_warning_of_the_placement_is_one_of_every_host() -> None:
    found = placed(finding("plan.service_moved", "warning", "chat"))
    assert (found["ok"], found["counts"]["hosts_warned"], found["counts"]["warnings"]) == (True, 3, 1)
    assert not placed(finding("plan.service_moved", "warning", "chat"), fail_on="warning")["ok"]


def test_a_host_that_points_to_a_placement_that_is_not_there_is_counted() -> None:
    every = {"a": made("a", plan={"findings": [POINTER.as_dict()]})}
    assert fleet_report(every, [], [], [], "error")["counts"]["errors"] == 1
