# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_map import ASCII
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_report import (
    WIDTH,
    all_well,
    artifact_state,
    as_page,
    as_parts,
    bottom_line,
    document,
    folded_names,
    groups,
    host_parts,
    totals,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_view import plan_view
from ansible_collections.gpufleet.vllm.plugins.module_utils._summary import cells
from deployed_case import deploy
from plan_case import SECRET, facts, plan, service

MODEL = {
    "acme/chat@master": {
        "commit": "2e50b77b0eee3083842019e257b74854323d880a",
        "artifact_bytes": 16_600_000_000,
        "source": "hub",
    }
}
LOST = {"unreachable": True, "msg": "Connection refused"}


def fresh(**keys: t.Any) -> dict[str, t.Any]:
    """A host on which nothing was ever done."""
    return plan_view(plan(service(**keys)), facts(services={}), models=MODEL)


def settled() -> dict[str, t.Any]:
    planned = plan(service(api_key=SECRET))
    return plan_view(planned, deploy(planned))


def test_one_host_byte_for_byte() -> None:
    assert as_page("Plan", {"gpu-01": fresh(gpus=[0, 1])}, charset=ASCII) == (
        "gpu-01: vLLM 0.33.0 under systemd, 3 x NVIDIA H200, 140.4 GiB\n"
        "    GPU 0  ????????????????????????????..  129.2 of 140.4 GiB  chat\n"
        "    GPU 1  ????????????????????????????..  129.2 of 140.4 GiB  chat\n"
        "    GPU 2  ..............................    0.0 of 140.4 GiB  free\n"
        "  artifacts\n"
        "    fetch 16.6 GB  acme/chat @ 2e50b77b0eee  /data/models/chat\n"
        "  changes\n"
        "    + chat  starts    it is not there yet\n"
        "\n"
        "? taken, not sized  . free\n"
        "\n"
        "Plan: 1 host; 3 GPUs (2 used, 1 free); 16.6 GB to fetch; 1 service: 1 to start\n"
    )


def test_hosts_that_look_alike_are_one_and_errors_come_last() -> None:
    views = {f"gpu-{number:02}": fresh() for number in range(1, 15)}
    views["gpu-03"] = fresh(gpus=[9])
    views["gpu-20"] = settled()
    views["gpu-21"] = {}
    page = as_page("Plan", views)
    assert [names for names, _view in groups(views)] == [
        ["gpu-01", "gpu-02", *(f"gpu-{number:02}" for number in range(4, 15))], ["gpu-20"], ["gpu-03"], ["gpu-21"]
    ]  # fmt: skip
    assert "gpu-01 .. gpu-02, gpu-04 .. gpu-14 (13 hosts): vLLM" in page
    assert "changes: none, chat goes on" in page
    assert page.endswith(
        "Plan: 16 hosts; 45 GPUs (14 used, 31 free); 232.4 GB to fetch; "
        "15 services: 14 to start, 1 goes on\n"
        "1 error: nothing can be deployed on gpu-03\n"
        "UNREACHABLE: gpu-21\n"
    ), page[-300:]


def test_other_cards_of_the_same_kind_look_alike() -> None:
    first, second = fresh(), fresh()
    for number, card in enumerate(second["cards"]):
        card["uuid"] = f"GPU-{number}"
    second["services"][0]["public_url"] = "http://10.0.0.99:8000"
    assert len(groups({"a": first, "b": second})) == 1
    second["cards"][0]["memory_total_bytes"] -= 1
    assert len(groups({"a": first, "b": second})) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["gpu-01"], "gpu-01"),
        (["gpu-10", "gpu-9", "gpu-8"], "gpu-8 .. gpu-9, gpu-10 (3 hosts)"),
        (["gpu-1", "gpu-2", "gpu-3"], "gpu-1 .. gpu-3 (3 hosts)"),
        (["a", "b"], "a, b (2 hosts)"),
        (["n1.rack2.example", "n2.rack2.example"], "n1.rack2.example .. n2.rack2.example (2 hosts)"),
        (["n1.rack2.example", "n2.rack3.example"], "n1.rack2.example, n2.rack3.example (2 hosts)"),
        (["10.0.0.10", "10.0.0.11", "10.0.0.12"], "10.0.0.10 .. 10.0.0.12 (3 hosts)"),
        (["node.rack1", "node.rack2"], "node.rack1 .. node.rack2 (2 hosts)"),
        ([f"h{number}" for number in range(0, 20, 2)], "h0, h2, h4, h6, h8 and 5 more (10 hosts)"),
    ],
)
def test_folded_names(names: list[str], expected: str) -> None:
    assert folded_names(names) == expected


def test_colours_tell_what_moves() -> None:
    old = plan(service("a"), service("b", port=8001), service("d", port=8002))
    new = plan(service("a"), service("b", port=8009), service("c", port=8003))
    parts = as_parts("Plan", {"gpu-01": plan_view(new, deploy(old))})
    colours = {text.split()[1]: colour for text, colour in parts if text[:4] == "    " and text.split()[0] in "+~-"}
    assert colours == {"b": "yellow", "c": "green", "d": "red"}
    assert parts[-1][1] == "yellow"
    assert as_parts("Plan", {"gpu-01": settled()})[-1][1] != "red"
    assert as_parts("Plan", {"gpu-01": {}})[-1][1] == "red"


def test_a_quiet_fleet_is_green() -> None:
    text, colour = bottom_line("Plan", {"gpu-01": settled()})
    assert (text, colour) == ("Plan: 1 host; 3 GPUs (1 used, 2 free); nothing to fetch; 1 service: 1 goes on", "green")
    assert all_well({"gpu-01": settled()})
    assert bottom_line("Plan", {"gpu-01": plan_view(plan(), facts(services={}))})[0].endswith("; nothing to run")


def unlike(view: dict[str, t.Any], count: int) -> dict[str, t.Any]:
    """As many hosts, each with something of its own."""
    hosts = {}
    for number in range(count):
        own = copy.deepcopy(view)
        own["services"][0]["port"] = number
        hosts[f"gpu-{number:02}"] = own
    return hosts


def test_many_hosts_are_shown_in_brief_and_those_with_errors_in_full() -> None:
    page = as_page("Plan", unlike(settled(), 13), charset=ASCII)
    assert page.count(": 1 of 3 GPUs used, nothing to do\n") == 13
    assert "GPU 0" not in page
    assert "--limit HOST shows one in full" in page
    views = {**unlike(fresh(), 13), "gpu-99": fresh(gpus=[9])}
    page = as_page("Plan", views, charset=ASCII)
    assert page.count(": 1 of 3 GPUs used, fetch 16.6 GB\n    + chat  starts    it is not there yet\n") == 13
    assert page.count("GPU 0  ") == 1
    assert "error plan.gpu_missing (chat)" in page
    assert as_page("Plan", unlike(fresh(), 12)).count("GPU 0") == 12


def test_definitions_are_shown_on_request() -> None:
    view = fresh(max_model_len=32000, environment={"NOTE": "x"})
    assert "would run as" not in as_page("Plan", {"gpu-01": view})
    assert (
        "  chat would run as\n"
        "    CUDA_VISIBLE_DEVICES=0 \\\n"
        "    vllm serve /data/models/chat \\\n"
        "        --port 8000 \\\n" in as_page("Plan", {"gpu-01": view}, definitions=True)
    )


def test_lines_fit_but_for_remedies() -> None:
    """Whatever names are like: a remedy stays whole, since it may be a command to copy."""
    long = "a-service-with-a-name-that-is-as-long-as-names-of-services-may-be"[:63]
    model = f"模型{'的' * 60}"
    planned = plan(
        service(
            long,
            model=f"acme/{'m' * 90}",
            gpus=[0, 1],
            args={"hf-overrides": {"a": "x" * 200}},
            environment={"N" * 90: "1"},
        ),
        service("b", gpus=[7], port=8001),
    )
    view = plan_view(planned, {**deploy(plan(service(long), service("b", port=8001))), "services_problem": ""})
    view["artifacts"][0]["model"] = model
    for charset in ({}, {"charset": ASCII}):
        lines = as_page("Plan", {"gpu-01": view, "b" * 120: fresh()}, **charset).splitlines()
        assert [line for line in lines if cells(line) > WIDTH] == []


@pytest.mark.parametrize("width", [80, 100])
def test_words_are_wrapped_and_never_cut(width: int) -> None:
    command = "/usr/bin/" + "x" * 50
    view = fresh()
    view["cards"][0]["name"] = "NVIDIA H100 80GB HBM3 of a very long name indeed"
    view["findings"] = [
        {"code": "plan.x", "severity": "error", "seen": "s " * 90, "expected": "e " * 90, "service": "",
         "remedy": f"many words {command} " * 3},
    ]  # fmt: skip
    view["images"] = [{"image": "registry.example.com/team/" + "i" * 40, "present": False}]
    view["changes"] = [
        {"service": "chat", "change": "unknown", "reasons": ["Cannot connect to the Docker daemon " * 4]}
    ]
    view["failure"] = "The host was lost " * 9 + ". Expected: an answer. Remedy: run it again " + "and again " * 20
    view["artifacts"][0].update(failure="No space left " * 9, remedy="make room " * 15)
    lines = as_page("Plan", {"gpu-01": view}, width=width).splitlines()
    assert [line for line in lines if len(line) > width] == []
    whole = " ".join(" ".join(lines).split())
    for words in ("remedy: " + f"many words {command} " * 2, "Cannot connect to the Docker daemon " * 3, command,
                  "expected: an answer remedy: run it again and again", "remedy: make room make room", "i" * 40,
                  "2 x NVIDIA H200, 140.4 GiB"):  # fmt: skip
        assert words.strip() in whole, words
    assert [line for line in lines if "…" in line and "GPU 0" not in line] == [], "but for the map, which is a table"
    hanging = next(line for line in lines if line.startswith("    remedy:   many"))
    assert lines[lines.index(hanging) + 1].startswith(" " * 14)


def test_a_service_that_could_not_be_read_is_not_nothing() -> None:
    refused = plan_view(plan(service("a", prot=1)), facts(services={}))
    page = as_page("Plan", {"gpu-01": refused})
    assert "  changes: none, and 1 service could not be read\n" in page
    assert "nothing to fetch; 1 service could not be read\n" in page
    both = plan_view(plan(service("a", prot=1), service("b"), {"x": 1}), facts(services={}))
    assert "1 service: 1 to start; 2 services could not be read" in bottom_line("Plan", {"gpu-01": both}, 200)[0]


def test_what_came_from_elsewhere_moves_no_cursor() -> None:
    view = fresh()
    view["artifacts"][0].update(model="acme/\x1b[2Jchat", failure="\x1b]0;x\x07refused")
    view["findings"] = [
        {"code": "plan.x", "severity": "error", "seen": "\x1b[1m", "expected": "e", "remedy": "r", "service": ""}
    ]
    assert "\x1b" not in as_page("Plan", {"gpu\x1b-01": view})


@pytest.mark.parametrize(
    ("artifact", "expected"),
    [
        ({"bytes_total": 16_600_000_000, "bytes_to_fetch": 16_600_000_000}, "fetch 16.6 GB"),
        ({"bytes_total": 16_600_000_000, "bytes_to_fetch": 2_000_000_000}, "fetch 2.0 GB of 16.6 GB"),
        ({"bytes_total": 16_600_000_000, "bytes_to_fetch": 0}, "there, 16.6 GB"),
        ({"bytes_total": None, "bytes_to_fetch": 0}, "there"),
        ({"bytes_total": 16_600_000_000, "bytes_to_fetch": None}, "16.6 GB, not looked for"),
        ({"bytes_total": None, "bytes_to_fetch": None}, "size not known"),
        ({"failure": "no space", "bytes_total": 1, "bytes_to_fetch": 1}, "FAILED"),
    ],
)
def test_the_state_of_an_artifact(artifact: dict[str, t.Any], expected: str) -> None:
    assert artifact_state(artifact) == expected


def test_images_are_told_apart() -> None:
    view = fresh()
    view["images"] = [
        {"image": "a:1", "present": True, "size_bytes": 9_000_000_000, "pinned": f"a:1@sha256:{'a' * 64}"},
        {"image": "b:1", "present": False},
        {"image": "c:1", "present": None},
    ]
    page = as_page("Plan", {"gpu-01": view})
    assert "    there, 9.0 GB  a:1 (sha256:aaaaaaaaaaaa)\n" in page
    assert "    to pull  b:1\n" in page
    assert "    pulled if it is not there  c:1\n" in page


def test_totals_of_cards_that_others_hold() -> None:
    view = fresh()
    view["cards"][2]["foreign"] = [{"pid": 1, "name": "x", "bytes": 1, "orphan": False, "user": None}]
    assert totals({"gpu-01": view})["cards_foreign"] == 1
    assert "3 GPUs (1 used, 1 free, 1 held by others)" in bottom_line("Plan", {"gpu-01": view})[0]


def test_the_document() -> None:
    planned = plan(service(environment={"NOTE": "x"}))
    data = document("Plan", {"gpu-01": fresh(), "gpu-02": {}}, {"gpu-01": planned}, "2026-01-01T00:00:00Z")
    assert (data["schema"], data["ok"], data["totals"]["hosts_unreachable"]) == (1, False, 1)
    assert data["hosts"]["gpu-01"]["plan"] == planned
    assert data["hosts"]["gpu-02"]["plan"] is None
    assert "definition" not in data["hosts"]["gpu-01"]["services"][0]
    assert json.dumps(data)


def test_a_long_name_takes_nothing_from_what_the_host_has() -> None:
    """On a line of its own, so that the GPUs are told on a terminal of 80 columns too."""
    seen = plan_view(plan(service("chat", gpus=1)), facts())
    title = "gpu-01.dc1.a-long-domain.example.com .. gpu-19.dc1.a-long-domain.example.com (19 hosts)"
    lines = [text for text, _colour in host_parts(title, seen, width=80)]
    assert lines[0].startswith("gpu-01.dc1.")
    assert "3 x NVIDIA H200" in lines[1]
    assert max(cells(line) for line in lines[:2]) <= 80


def finding(code: str, severity: str = "error", seen: str = "seen") -> dict[str, str]:
    return {"code": code, "severity": severity, "seen": seen, "expected": "it", "remedy": "mend it", "service": "chat"}


def pointing(count: int = 3) -> dict[str, t.Any]:
    """Hosts after a placement with errors, of which each has one finding that points there."""
    planned = plan(service(gpus=[0]))
    planned.update(findings=[finding("plan.placement_failed")], errors=1)
    return {f"gpu-{number}": plan_view(planned, facts(services={})) for number in range(count)}


def test_what_the_placement_found_is_a_block_of_the_fleet_and_counted_once() -> None:
    unplaced = finding("plan.unplaced", seen="1 replica has no host; " + "words " * 30)
    placement = [unplaced, finding("plan.service_moved", "warning"), finding("plan.host_missing", "info")]
    views = pointing()
    page = as_page("Plan", views, width=80, placement=placement)
    assert max(map(len, page.splitlines())) <= 80
    assert page.count("\nthe fleet\n  error plan.unplaced (chat): 1 replica has no host") == 1
    assert page.index("gpu-0") < page.index("the fleet") < page.index("Plan: 3 hosts")
    assert "placement_failed" not in page
    assert page.endswith("1 error: nothing can be deployed on gpu-0 .. gpu-2 (3 hosts)\n")
    made = document("Plan", views, {}, "now", placement)
    assert (made["ok"], made["totals"]["errors"], made["totals"]["warnings"]) == (False, 1, 1)
    assert made["fleet"] == {"findings": placement}
    assert json.loads(json.dumps(made))["fleet"]["findings"][0]["seen"] == unplaced["seen"]
    assert made["hosts"]["gpu-0"]["findings"] == [finding("plan.placement_failed")], "as its plan has it"


def test_warnings_of_the_placement_hide_nothing() -> None:
    moved = [finding("plan.service_moved", "warning")]
    assert all_well({"gpu-0": fresh()}, moved)
    assert not all_well({"gpu-0": fresh()}, [finding("plan.unplaced")])
    assert totals(pointing(), moved)["errors"] == 3
    assert "placement_failed" in as_page("Plan", pointing(), placement=moved)
    assert document("Plan", {"gpu-0": fresh()}, {}, "now")["fleet"] == {"findings": []}
