# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What holds for all preflight rules together, and that none of them breaks on facts of any shape."""

from __future__ import annotations

import copy
import re
import typing as t

import pytest
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
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Unknown,
    evaluate,
    evaluate_fleet,
)
from hypothesis import given
from hypothesis import settings as how
from hypothesis import strategies as st
from rules_case import FACTS, IMAGE, NOW, PLAN, SETTINGS, host

FILES = (_rules_gpu, _rules_speed, _rules_driver, _rules_docker, _rules_disk, _rules_host, _rules_network)
RULES = [rule for file in FILES for rule in file.RULES]
FLEET = _rules_fleet.RULES
CODE = re.compile(r"(?:gpu|driver|docker|host|disk|network|hub|fleet)\.[a-z][a-z0-9_]{2,}")
JUNK: tuple[t.Any, ...] = (
    None, "", "x", "-1", 0, -1, 10**400, 1.5, float("nan"), float("inf"), True, [], {}, [None], [[]], [{}], ["x"],
    {"a": None}, {"x": {"gpus": 5}}, {1: 2}, "9" * 5000, "580.95.05", "\udcff", {"present": True},
)  # fmt: skip


def test_there_are_many_and_each_has_a_code_of_its_own() -> None:
    codes = [rule.code for rule in [*RULES, *FLEET]]
    assert len(codes) >= 40
    assert len(set(codes)) == len(codes)
    assert [code for code in codes if not CODE.fullmatch(code)] == []
    assert all(code.startswith("fleet.") for code in (rule.code for rule in FLEET))


@pytest.mark.parametrize("rule", [*RULES, *FLEET], ids=lambda rule: rule.code)
def test_each_says_what_holds_and_why(rule: t.Any) -> None:
    assert 15 < len(rule.title) < 100
    assert not rule.title.endswith(".")
    assert rule.why.endswith(".")
    assert 30 < len(rule.why) < 300
    # Titles are distinct, so that a table of them can be read.
    assert sum(other.title == rule.title for other in [*RULES, *FLEET]) == 1


def test_a_healthy_host_has_no_finding_and_nothing_unknown() -> None:
    report = evaluate(host(), (), RULES)
    assert (report.findings, report.unknown) == ([], [])
    assert len(report.passed) == len(RULES)


def test_a_healthy_fleet_has_no_finding() -> None:
    other = {
        "boot>id": "other",
        "settings>vllm_address": "10.0.0.12",
        "plan>services>*>public_url": "http://10.0.0.12:1",
    }
    report = evaluate_fleet([host(), host(other, "gpu-02")], (), FLEET)
    assert (report.findings, report.unknown) == ([], [])


CPU_HOST: dict[str, t.Any] = {
    "gpus": [],
    "gpu_reason": "nvidia-smi was not found",
    "nvidia": {
        "driver_version": None,
        "reason_code": "nvidia.no_gpu",
        "pci_devices": [],
        "xids": None,
        "topology": None,
    },
    "plan>device": "cpu",
    "plan>services>*>gpus": [],
    "settings>vllm_expected_gpus": None,
}


@pytest.mark.parametrize("runtime", ["systemd", "supervisor"])
def test_a_bare_cpu_host_hears_nothing_of_gpus_and_docker(runtime: str) -> None:
    report = evaluate(host({**CPU_HOST, "plan>runtime": runtime, "nvidia>container": None}), (), RULES)
    assert report.findings == []
    assert [code for code, _reason in report.unknown] == []


def test_a_bare_gpu_host_hears_nothing_of_docker() -> None:
    report = evaluate(host({"plan>runtime": "systemd", "nvidia>container": None}), (), RULES)
    assert (report.findings, report.unknown) == ([], [])


def _alone(name: str, total: int, **facts: t.Any) -> dict[str, t.Any]:
    """A host with one card of another kind, without NVSwitch."""
    card = {**copy.deepcopy(FACTS["gpus"][2]), "index": 0, "name": name, "memory_total_bytes": total,
            "pci_bus_id": "00000000:1B:00.0", "fabric": {"state": None, "status": None}, **facts}  # fmt: skip
    return {
        "gpus": [card], "nvidia>pci_devices": ["0000:1b:00.0"], "nvidia>topology": None, "record": None,
        "nvidia>fabric_manager": {"installed": False, "active": False, "version": None},
        "settings>vllm_expected_gpus": 1, "plan>services": [{**PLAN["services"][1], "gpus": [card]}],
    }  # fmt: skip


NO_ECC = {
    "mode": None,
    "uncorrected_volatile": None,
    "remapped_rows": {"pending": None, "failure": None},
    "retired_pages_pending": None,
}
UNTOLD = {"current": None, "max": None}
CARDS = list(range(8))
HEALTHY_KINDS: dict[str, dict[str, t.Any]] = {
    "a consumer card with a display": _alone(
        "NVIDIA GeForce RTX 4090", 24 * 2**30, ecc=NO_ECC, processes=[
            {"pid": 7, "name": "Xorg", "memory_used_bytes": 300 << 20, "type": "G", "service": None, "orphan": False}]),
    "an L4": _alone("NVIDIA L4", 23034 << 20),
    "a vGPU": _alone(
        "NVIDIA A40-48Q", 48 * 2**30, ecc={**NO_ECC, "mode": "disabled"}, temperature_c=None, temperature_limit_c=0,
        throttle=None, pcie={"gen": UNTOLD, "width": UNTOLD}, power={"limit_w": None, "default_limit_w": None}),
    "WSL": {
        **_alone("NVIDIA GeForce RTX 4090", 24 * 2**30, ecc=NO_ECC, memory_used_bytes=1300 << 20,
                 memory_free_bytes=23000 << 20),
        "kernel": "5.15.167.4-microsoft-standard-WSL2", "nvidia>pci_devices": [], "nvidia>xids": None,
        "nvidia>persistenced": None, "nvidia>kernel_module_version": None, "nvidia>fabric_manager": None,
        "nvidia>container>docker>cgroup_driver": "cgroupfs", "nvidia>container>docker>dev_char_links": None,
        "nvidia>container>docker>security_options": ["name=seccomp"], "apparmor": "disabled", "acs": None,
    },
    "8 cards over PCIe": {
        "gpus>*>name": "NVIDIA A100 80GB PCIe", "gpus>*>fabric": {"state": None, "status": None},
        "nvidia>fabric_manager": {"installed": False, "active": False, "version": None},
        "nvidia>topology": [{"gpus": [left, right], "link": "node" if right < 4 or left > 3 else "sys", "nvlinks": 0,
                             "p2p": "ok"} for left in CARDS for right in CARDS[left + 1:]],
    },
    "NVSwitch in a virtual machine": {
        "nvidia>fabric_manager": {"installed": False, "active": False, "version": None},
    },
    "addresses of IPv6 alone": {
        "addresses": ["127.0.0.1", "::1", "2001:db8:0:0::11"], "plan>services>*>bind_address": "2001:db8::11",
        "hub>addresses": ["2400:3200::1"],
    },
    "the CPU engine in a small image": {
        **CPU_HOST, "filesystems>*>free_bytes": 95 * 2**30, "record": None,
        "nvidia>container>toolkit": {"installed": False}, "nvidia>container>docker>runtimes": {"runc": "runc"},
        f"nvidia>container>images>{IMAGE}": {"present": False},
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", HEALTHY_KINDS)
def test_a_healthy_host_of_any_kind_has_no_finding(kind: str) -> None:
    report = evaluate(host(HEALTHY_KINDS[kind]), (), RULES)
    assert report.findings == []
    assert not [reason for _code, reason in report.unknown if "fault of the collection" in reason]


def test_facts_that_are_missing_are_held_against_no_host() -> None:
    report = evaluate(Context("empty", {}, PLAN, {}, None), (), RULES)
    assert report.findings == []
    assert {reason for _code, reason in report.unknown if "fault of the collection" in reason} == set()
    nothing = evaluate(Context("nothing", {}, {}, {}, None), (), RULES)
    assert nothing.findings == []


# ---- untrusted


def _paths(tree: t.Any, above: tuple[t.Any, ...] = ()) -> t.Iterator[tuple[t.Any, ...]]:
    yield above
    inside = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in inside:
        yield from _paths(value, (*above, key))


def _small() -> dict[str, t.Any]:
    """The healthy host with three GPUs: every shape is there, and fewer times."""
    facts = copy.deepcopy(FACTS)
    facts["gpus"] = facts["gpus"][:3]
    facts["gpus"][2]["processes"] = [{"pid": 1, "name": "x", "memory_used_bytes": 5, "type": "C", "orphan": True}]
    facts["nvidia"]["topology"] = [way for way in facts["nvidia"]["topology"] if max(way["gpus"]) < 3]
    facts["nvidia"]["xids"] = [{"xid": 48, "pci_bus_id": "0000:1b:00", "time": 1.0, "message": "m"}]
    facts["record"]["services"] = {"chat": {"gpus": [{"uuid": "GPU-gone"}], "model": "a/b", "path": "/p"}}
    return {"facts": facts, "plan": copy.deepcopy(PLAN), "settings": dict(SETTINGS), "now": NOW}


SMALL, HEALTHY = _small(), host()
PATHS = [path for path in _paths(SMALL) if path]


def _with(changes: t.Iterable[tuple[tuple[t.Any, ...], t.Any]]) -> Context:
    trees = copy.deepcopy(SMALL)
    for path, value in changes:
        place: t.Any = trees
        try:
            for key in path[:-1]:
                place = place[key]
            place[path[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            # What is above was replaced already.
            continue
    return Context("fuzzed", trees["facts"], trees["plan"], trees["settings"], trees["now"])


def _stands(context: Context) -> None:
    for rule in RULES:
        _is_verdict(rule.code, rule.check(context))
    for fleet_rule in FLEET:
        verdict = fleet_rule.check([context, HEALTHY])
        pairs = verdict if isinstance(verdict, list) else []
        _is_verdict(fleet_rule.code, [failure for _hosts, failure in pairs] if pairs else verdict)


def _is_verdict(code: str, verdict: t.Any) -> None:
    if verdict is None or isinstance(verdict, Unknown):
        return
    assert isinstance(verdict, list), code
    for failure in verdict:
        assert isinstance(failure, Failure), code
        for words in (failure.seen, failure.expected, failure.remedy, failure.service):
            assert isinstance(words, str), (code, failure)
        assert failure.severity in ("", "error", "warning", "info")


# What a fact that is not there tells by itself: such a card is lost, and such a process is nobody's of ours.
SPEAKS = {
    ("gpus", "*", "uuid"): "gpu.unreadable",
    ("gpus", "*", "memory_total_bytes"): "gpu.unreadable",
    ("gpus", "*", "processes", "*", "service"): "gpu.foreign_process",
}


def _facts_of_each_shape() -> dict[tuple[str, ...], tuple[t.Any, ...]]:
    """A path to each kind of fact; the items of a list, and what Docker names itself, are facts of their own."""
    found: dict[tuple[str, ...], tuple[t.Any, ...]] = {}
    for path in _paths(HEALTHY.facts):
        shape = tuple("*" if isinstance(key, int) else key for key in path)
        if path and shape[-1] != "*" and "runtimes" not in shape[:-1]:
            found.setdefault(shape, path)
    return found


def _without(path: tuple[t.Any, ...], drop: bool) -> Context:
    """The healthy host with one fact unknown; only what leads to it is copied."""
    facts: t.Any = dict(HEALTHY.facts)
    place = facts
    for key in path[:-1]:
        place[key] = copy.copy(place[key])
        place = place[key]
    if drop:
        del place[path[-1]]
    else:
        place[path[-1]] = None
    return Context("gpu-01", facts, HEALTHY.plan, HEALTHY.settings, HEALTHY.now)


@pytest.mark.parametrize("drop", [False, True], ids=["None", "no key"])
def test_a_fact_that_is_not_told_is_held_against_no_host(drop: bool) -> None:
    other = host(
        {"boot>id": "o", "settings>vllm_address": "10.0.0.12", "plan>services>*>public_url": "http://h:1"}, "b"
    )
    shapes = _facts_of_each_shape()
    assert len(shapes) > 200
    for shape, path in shapes.items():
        context = _without(path, drop)
        report, fleet = evaluate(context, (), RULES), evaluate_fleet([context, other], (), FLEET)
        codes = {finding.code for finding in report.findings} | {finding.code for _hosts, finding in fleet.findings}
        assert codes <= {SPEAKS.get(shape)}, ">".join(map(str, path))
        reasons = [reason for _code, reason in [*report.unknown, *fleet.unknown]]
        assert not [reason for reason in reasons if "fault of the collection" in reason], path


def test_no_rule_breaks_where_a_part_is_missing() -> None:
    assert len(PATHS) > 400
    for path in PATHS:
        try:
            _stands(_with([(path, None)]))
        except Exception as exc:
            raise AssertionError(">".join(map(str, path))) from exc


@given(st.lists(st.tuples(st.sampled_from(PATHS), st.sampled_from(JUNK)), min_size=1, max_size=30))
@how(max_examples=400)
def test_no_rule_breaks_on_parts_of_any_type(changes: list[tuple[tuple[t.Any, ...], t.Any]]) -> None:
    _stands(_with(changes))
