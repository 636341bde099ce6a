# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import random
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    FleetRule,
    HostReport,
    page_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_report import fleet_report, host_result
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight_view import (
    closing,
    compact,
    fold,
    heading,
    notes,
    table,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import unreachable_text


def finding(code: str, severity: str = "error", seen: str = "", service: str = "", remedy: str = "") -> Finding:
    return Finding(code, severity, seen or f"{code} seen", "as it should be", remedy or "mend it", service,
                   page_of(code))  # fmt: skip


def made(host: str, *findings: Finding, skipped: tuple[str, ...] = ()) -> dict[str, t.Any]:
    return host_result(HostReport(host, list(findings), ["a.b"] * 40, [], list(skipped)), Context(host, {}, {}))


def document(hosts: dict[str, t.Any], *fleet: tuple[tuple[str, ...], Failure]) -> dict[str, t.Any]:
    rules = [FleetRule("fleet.mixed", "warning", "A title", "A reason", lambda _contexts: list(fleet))]
    return fleet_report(hosts, [], [], rules, "error")


def text(found: dict[str, t.Any], width: int = 100, verbose: bool = False) -> str:
    return "\n".join(part for part, _colour in table("Preflight", found, width, verbose))


# ---- names


@pytest.mark.parametrize(
    ("names", "shown"),
    [
        (["gpu-01"], "gpu-01"),
        (["gpu-02", "gpu-01"], "gpu-01, gpu-02"),
        ([f"gpu-{number:02}" for number in range(1, 15)], "gpu-01 .. gpu-14"),
        (["gpu-9", "gpu-10", "gpu-11"], "gpu-9 .. gpu-11"),
        (["gpu-08", "gpu-09", "gpu-10", "gpu-12"], "gpu-08 .. gpu-10, gpu-12"),
        (["a1", "a2", "a3", "b4"], "a1 .. a3, b4"),
        (["n1.dc2.example.com", "n2.dc2.example.com", "n3.dc2.example.com"],
         "n1.dc2.example.com .. n3.dc2.example.com"),
        (["n1.dc1.example.com", "n2.dc2.example.com", "n3.dc3.example.com"],
         "n1.dc1.example.com, n2.dc2.example.com, n3.dc3.example.com"),
        (["10.0.0.9", "10.0.0.10", "10.0.0.11"], "10.0.0.9 .. 10.0.0.11"),
        (["gpu-1a", "gpu-2a", "gpu-3a"], "gpu-1a .. gpu-3a"),
        (["alpha", "beta", "gamma"], "alpha, beta, gamma"),
        (["gpu-01", "gpu-1", "gpu-2", "gpu-02"], "gpu-01, gpu-1, gpu-02, gpu-2"),
        (["gpu-1", "gpu-1", "gpu-1"], "gpu-1"),
        ([], ""),
    ],
)  # fmt: skip
def test_names_are_ranges(names: list[str], shown: str) -> None:
    random.Random(1).shuffle(names)
    assert compact(names) == shown


def test_many_names_are_cut_and_the_rest_is_counted() -> None:
    odd = [f"gpu-{number:03}" for number in range(1, 100, 2)]
    assert compact([*odd, "z-1", "z-2", "z-3"], most=2) == "gpu-001, gpu-003 and 51 more"


def test_headings() -> None:
    names = ["gpu-01", "gpu-02", "gpu-03"]
    assert heading(names[:1], 5) == "gpu-01"
    assert heading(names, 5) == "3 hosts: gpu-01 .. gpu-03"
    assert heading(names, 3) == "all 3 hosts"
    assert heading(names[:1], 1) == "gpu-01"


# ---- folding


def test_equal_findings_are_one_and_different_ones_are_not() -> None:
    same = [((f"gpu-{number:02}",), finding("gpu.a")) for number in range(1, 15)]
    other = [(("gpu-01",), finding("gpu.a", service="chat")), (("gpu-01",), finding("gpu.a", remedy="other"))]
    folds = fold([*same, *other])
    assert [len(one.hosts) for one in folds] == [14, 1, 1]


def test_hosts_that_show_it_in_numbers_of_their_own_share_the_remedy() -> None:
    hosts = {f"gpu-{n:02}": made(f"gpu-{n:02}", finding("disk.space", seen=f"{n} GiB are free")) for n in range(1, 10)}
    shown = text(document(hosts))
    assert shown.count("remedy:") == 1
    assert "all 9 hosts\n  error disk.space:\n    gpu-01: 1 GiB are free\n    gpu-02: 2 GiB" in shown
    assert "    gpu-06: 6 GiB are free\n    and likewise on gpu-07 .. gpu-09\n    expected: as it should be" in shown


def test_few_hosts_with_numbers_of_their_own_stay_apart() -> None:
    hosts = {f"gpu-{n:02}": made(f"gpu-{n:02}", finding("disk.space", seen=f"{n // 2} GiB")) for n in range(1, 4)}
    shown = text(document(hosts))
    assert "\n2 hosts: gpu-02, gpu-03\n  error disk.space: 1 GiB\n" in shown
    assert "\ngpu-01\n  error disk.space: 0 GiB\n" in shown


def test_what_most_hosts_have_comes_first() -> None:
    hosts = {f"gpu-{n:02}": made(f"gpu-{n:02}", finding("hub.name")) for n in range(2, 9)}
    hosts["gpu-01"] = made("gpu-01", finding("gpu.a"))
    shown = text(document(hosts))
    assert shown.index("7 hosts: gpu-02 .. gpu-08") < shown.index("\ngpu-01\n")


def test_two_findings_of_one_rule_on_one_host_are_two_lines() -> None:
    found = document({"gpu-01": made("gpu-01", finding("gpu.a", seen="GPU 0"), finding("gpu.a", seen="GPU 1"))})
    assert "  error gpu.a: GPU 0\n    GPU 1\n    expected:" in text(found)
    assert found["counts"]["errors"] == 2


# ---- the table


def test_worst_first_and_by_host() -> None:
    persistence = finding("gpu.persistence", "warning")
    hosts = {f"gpu-{number:02}": made(f"gpu-{number:02}", persistence) for number in range(1, 15)}
    hosts["gpu-20"] = made("gpu-20", finding("gpu.lost"), persistence)
    hosts["gpu-21"] = made("gpu-21", finding("host.info", "info"))
    hosts["gpu-22"] = made("gpu-22")
    shown = text(document(hosts))
    assert shown.startswith("Preflight: 17 hosts: 1 with errors, 14 with warnings, 2 well\n\n")
    places = [shown.index(words) for words in ("\ngpu-20\n  error gpu.lost", "\n15 hosts: gpu-01 .. gpu-14, gpu-20\n",
                                               "\ngpu-21\n  info host.info")]  # fmt: skip
    assert places == sorted(places)
    assert "gpu-22" not in shown
    # 17 hosts with 40 rules passed each, 17 that failed, and the one across hosts.
    assert "17 hosts, 698 checks: 681 passed, 17 failed, 0 unknown, 0 turned off; 1 error, 15 warnings" in shown


def test_a_finding_says_everything_and_its_page_once() -> None:
    hosts = {"a": made("a", finding("gpu.ecc", service="chat")), "b": made("b", finding("gpu.ecc", remedy="other"))}
    shown = text(document(hosts))
    assert "a\n  error gpu.ecc (chat): gpu.ecc seen\n    expected: as it should be\n    remedy:   mend it\n" in shown
    assert shown.count("more:     docs/preflight.md#gpu-ecc") == 1


def test_findings_across_hosts_stand_with_their_hosts() -> None:
    hosts = {name: made(name) for name in ("gpu-01", "gpu-02", "gpu-03")}
    shown = text(document(hosts, (("gpu-03", "gpu-01"), Failure("two drivers", "one", "upgrade", "chat"))))
    assert "\n2 hosts: gpu-01, gpu-03\n  warning fleet.mixed (chat): two drivers\n" in shown


def test_hosts_that_were_not_looked_at_come_first_and_are_named() -> None:
    gone = {"unreachable": True, "failure": "No route to host"}
    hosts = {"gpu-01": made("gpu-01", finding("gpu.a")), "gpu-02": gone, "gpu-03": gone, "gpu-04": {"failure": "no\nx"}}
    found = document(hosts)
    shown = text(found)
    assert (
        "Preflight: 4 hosts: 2 UNREACHABLE, 2 with errors\n\n2 hosts: gpu-02, gpu-03\n  UNREACHABLE: No route" in shown
    )
    assert "gpu-04\n  NOT CHECKED: no\n  x\n\ngpu-01\n  error" in shown
    assert "\n4 hosts (3 not looked at), 42 checks: " in shown


def test_a_host_that_is_not_reached_has_what_to_do_too() -> None:
    gone = {
        "unreachable": True,
        "failure": unreachable_text("Failed to connect to the host via ssh: " + "refused " * 9),
    }
    failure = {"failure": "Wrong. Expected: " + "right " * 20 + ". Remedy: " + "correct it " * 12}
    shown = text(document({"gpu-01": gone, "gpu-02": failure}), 80)
    assert "gpu-01\n  UNREACHABLE: the host cannot be reached\n    seen:     Failed to connect to the host" in shown
    assert "    remedy:   check that it is up, and its address, user and key in the\n" in shown
    assert "gpu-02\n  NOT CHECKED: Wrong\n    expected: right right" in shown
    assert "\n    remedy:   correct it correct" in shown
    assert max(map(len, shown.splitlines())) <= 80


def test_two_hosts_are_both() -> None:
    shown = text(document({name: made(name, finding("gpu.a")) for name in ("gpu-01", "gpu-02")}))
    assert "\nboth hosts\n  error gpu.a" in shown


def test_colours() -> None:
    hosts = {"a": made("a", finding("gpu.a"), finding("gpu.b", "warning"), finding("gpu.c", "info")), "b": {}}
    colours = {part.split()[0]: colour for part, colour in table("Preflight", document(hosts), 100) if part}
    assert colours == {
        "Preflight:": "red", "b": None, "NOT": "red", "a": None, "error": "red", "warning": "yellow", "info": None,
        "2": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("severity", "colour", "words"),
    [
        ("error", "red", "1 host, with errors"),
        ("warning", "yellow", "1 host, with warnings"),
        ("info", "green", "1 host, all is well"),
    ],
)
def test_the_first_line(severity: str, colour: str, words: str) -> None:
    (line, shown), *_rest = table("Preflight", document({"a": made("a", finding("gpu.a", severity))}), 100)
    assert (line, shown) == (f"Preflight: {words}", colour)


def test_what_is_turned_off_is_always_said() -> None:
    found = document({"a": made("a", skipped=("gpu.b", "gpu.a"))})
    assert "turned off by vllm_preflight_skip: gpu.a, gpu.b" in text(found)
    assert "2 turned off" in text(found)
    assert notes(found) == ["turned off by vllm_preflight_skip: gpu.a, gpu.b"]


def test_the_unknown_is_counted_and_listed_where_asked() -> None:
    hosts = {}
    for name in ("gpu-01", "gpu-02", "gpu-03"):
        report = HostReport(name, [], [], [("gpu.xid", "the log could not be read")], [])
        hosts[name] = host_result(report, Context(name, {}, {}))
    hosts["gpu-04"] = made("gpu-04")
    found = document(hosts)
    assert "3 unknown" in text(found)
    assert "vllm_preflight_path lists it in a file, and -v" in text(found)
    assert "the log" not in text(found)
    shown = text(found, verbose=True)
    assert "unknown\n  gpu.xid (3 hosts: gpu-01 .. gpu-03): the log could not be read" in shown


@pytest.mark.parametrize("width", [80, 120, 200])
def test_nothing_is_wider_than_the_terminal_but_what_cannot_be_broken(width: int) -> None:
    command = "/usr/bin/" + "x" * 90
    long = finding("gpu.a", seen="many words " * 40, remedy=f"run {command} and wait")
    hosts = {f"host-{number * 3}": made(f"host-{number * 3}", long) for number in range(60)}
    for line in text(document(hosts), width).splitlines():
        assert len(line) <= width or command in line, line
    assert command in text(document(hosts), width)


def test_what_a_host_says_moves_no_cursor() -> None:
    wild = finding("gpu.a", seen="\x1b[2Jgone\r\nsecond \u202eline")
    shown = text(document({"a": made("a", wild), "b": {"failure": "\x1b[31mred"}}))
    assert "\x1b" not in shown
    assert "\u202e" not in shown
    assert "\r" not in shown


def test_the_notes_for_the_end_of_a_run() -> None:
    hosts = {f"gpu-{n:02}": made(f"gpu-{n:02}", finding("gpu.b", "warning", service="chat")) for n in range(1, 5)}
    hosts["gpu-05"] = made(
        "gpu-05", finding("gpu.x"), finding("gpu.z", "info"), finding("gpu.a", "warning", seen="one")
    )
    hosts["gpu-06"] = made("gpu-06", finding("gpu.a", "warning", seen="two"))
    for n in range(1, 5):
        hosts[f"old-{n}"] = made(f"old-{n}", finding("host.c", "warning", seen=f"{n} GiB"))
    assert notes(document(hosts)) == [
        "gpu.a: one (gpu-05)",
        "gpu.a: two (gpu-06)",
        "gpu.b (chat): gpu.b seen (4 hosts: gpu-01 .. gpu-04)",
        "host.c: 1 GiB, and 3 more (4 hosts: old-1 .. old-4)",
    ]


def test_no_host() -> None:
    assert text(document({})).startswith("Preflight: no host")
    assert closing(document({}), 80)[0].startswith("0 hosts, 0 checks: 0 passed"), "no rule across hosts passed either"


def placed(*findings: Finding, hosts: int = 3) -> dict[str, t.Any]:
    failed = any(one.severity == "error" for one in findings)
    plan = {"findings": [finding("plan.placement_failed").as_dict()]} if failed else {}
    names = [f"gpu-{number}" for number in range(hosts)]
    every = {name: host_result(HostReport(name, [], ["a.b"]), Context(name, {}, plan)) for name in names}
    return fleet_report(every, [], [], [], "error", [one.as_dict() for one in findings])


def test_what_the_placement_found_is_a_block_of_the_fleet() -> None:
    found = placed(
        finding("plan.unplaced", service="chat", seen="1 replica has no host; " + "words " * 40),
        finding("plan.host_missing", "info", seen="gpu-8: one"),
        finding("plan.host_missing", "info", seen="gpu-9: other"),
    )
    shown = text(found, 80)
    lines = shown.splitlines()
    assert lines[2] == "the fleet"
    assert lines[3].startswith("  error plan.unplaced (chat): 1 replica has no host")
    assert max(map(len, lines)) <= 80
    assert shown.count("the fleet") == 1
    assert "placement_failed" not in shown, "each host only points to what is said here"
    assert "gpu-8: one" in shown
    assert "gpu-9: other" in shown
    assert "1 error, 0 warnings" in " ".join(shown.split())


def test_the_fleet_stands_before_what_all_hosts_have() -> None:
    found = placed(finding("plan.service_moved", "warning", service="chat"))
    found["hosts"]["gpu-0"]["findings"].append(finding("gpu.a", "warning").as_dict())
    shown = text(found)
    assert shown.index("the fleet") < shown.index("gpu.a")
    assert "plan.service_moved (chat): plan.service_moved seen (the fleet)" in notes(found)
