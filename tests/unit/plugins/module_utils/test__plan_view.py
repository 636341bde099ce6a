# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_view import (
    HIDDEN,
    islands,
    plan_view,
    utilization_of,
    without_values,
)
from plan_case import SECRET, facts, plan, service, without_gpus

GIB = 1 << 30
COMMIT = "2e50b77b0eee3083842019e257b74854323d880a"
MODEL = {"commit": COMMIT, "source": "hub", "bytes_total": 15_000, "artifact_bytes": 16_000, "error": None}


def view(planned: t.Any = None, on: t.Any = None, **how: t.Any) -> dict[str, t.Any]:
    return plan_view(plan(service()) if planned is None else planned, facts() if on is None else on, **how)


def test_cards_know_who_holds_them() -> None:
    shared = plan(service("a", gpus=[0, 1]), service("b", gpus=[2], port=8001, args={"gpu-memory-utilization": 0.5}))
    first, second, third = view(shared)["cards"]
    assert [holder["service"] for holder in first["holders"] + second["holders"]] == ["a", "a"]
    assert first["holders"][0]["bytes"] == round(0.92 * first["memory_total_bytes"])
    assert first["holders"][0]["weights"] is None
    assert third["holders"][0]["bytes"] == round(0.5 * third["memory_total_bytes"])
    assert (first["name"], first["foreign"], first["mig_devices"]) == ("NVIDIA H200", [], None)


def test_a_sizing_says_what_a_card_holds() -> None:
    planned = plan(service())
    planned["services"][0]["memory"] = {
        "budget_bytes": 70 * GIB, "weights_bytes": 15 * GIB, "kv_available_bytes": 50 * GIB, "outside_bytes": GIB
    }  # fmt: skip
    (holder,) = view(planned)["cards"][0]["holders"]
    assert holder == {"service": "chat", "bytes": 71 * GIB, "weights": 15 * GIB, "kv": 50 * GIB, "rest": 6 * GIB}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["/m"], 0.92),
        (["/m", "--gpu-memory-utilization", "0.5"], 0.5),
        (["/m", "--gpu-memory-utilization", "much"], None),
        (["/m", "--gpu-memory-utilization", "90"], None),
        (["/m", "--kv-cache-memory-bytes", "1000"], None),
        (None, 0.92),
    ],
)
def test_the_share_of_a_service(arguments: t.Any, expected: float | None) -> None:
    assert utilization_of({"arguments": arguments}) == expected


def test_strangers_are_those_that_are_known_to_be() -> None:
    host = facts()
    host["gpus"][0]["processes"] = [
        {"pid": 1, "name": "python3", "memory_used_bytes": GIB, "service": None, "user": "ann"},
        {"pid": 2, "name": "VLLM::EngineCore", "memory_used_bytes": GIB, "service": "chat"},
        {"pid": 3, "name": "of an older fact gathering", "memory_used_bytes": GIB},
        {"pid": "x", "service": None, "container": "jupyter", "name": "python3", "orphan": True},
        "?",
    ]  # fmt: skip
    found = view(on=host)["cards"][0]["foreign"]
    assert [(one["pid"], one["name"], one["orphan"]) for one in found] == [
        (1, "python3", False),
        (None, "jupyter", True),
    ]


@pytest.mark.parametrize(
    ("topology", "expected"),
    [
        (None, None),
        ("?", None),
        ([], None),
        ([{"gpus": [0, 1], "link": "sys"}], None),
        ([{"gpus": [0, 1], "link": "nv18"}, {"gpus": [2, 3], "link": "NV4"}], [[0, 1], [2, 3]]),
        (
            [{"gpus": [0, 1], "link": "nv4"}, {"gpus": [1, 2], "link": "nv4"}, {"gpus": [0, 3], "link": "pix"}],
            [[0, 1, 2]],
        ),
        ([{"gpus": [0, "1"], "link": "nv4"}, {"gpus": None, "link": None}, 3], None),
    ],
)
def test_islands(topology: t.Any, expected: t.Any) -> None:
    assert islands({"nvidia": {"topology": topology}}) == expected
    assert islands({}) is None


def test_a_split_card() -> None:
    host = facts()
    host["gpus"][1]["mig"] = {"current": "enabled", "devices": [{}, {}]}
    assert [card["mig_devices"] for card in view(on=host)["cards"]] == [None, 2, None]


@pytest.mark.parametrize(
    ("models", "deployed", "expected"),
    [
        (None, None, (None, None, None)),
        ({"acme/chat@master": MODEL}, None, (COMMIT, 16_000, 16_000)),
        ({"acme/chat@master": {**MODEL, "source": "artifact"}}, None, (COMMIT, 16_000, 0)),
        ({"acme/chat@master": {**MODEL, "source": "elsewhere"}}, None, (COMMIT, 16_000, 16_000)),
        ({"acme/chat@master": MODEL}, COMMIT, (COMMIT, 16_000, 0)),
        ({"acme/chat@master": MODEL}, "9f86d081", (COMMIT, 16_000, None)),
        (None, COMMIT, (COMMIT, None, 0)),
        ({"acme/chat@master": {**MODEL, "artifact_bytes": "many", "bytes_total": True}}, None, (COMMIT, None, None)),
        ({"acme/chat@master": "?"}, None, (None, None, None)),
    ],
)
def test_what_is_there_of_an_artifact(models: t.Any, deployed: str | None, expected: t.Any) -> None:
    host = facts(deployed={"artifacts": [{"path": "/data/models/chat", "commit": deployed}]} if deployed else None)
    (found,) = view(on=host, models=models)["artifacts"]
    assert (found["commit"], found["bytes_total"], found["bytes_to_fetch"]) == expected


def test_a_look_knows_best() -> None:
    looked = {"path": "/data/models/chat", "commit": COMMIT, "bytes_total": 16_000, "bytes_fetched": 3_000}
    (found,) = view(artifacts=[looked])["artifacts"]
    assert (found["commit"], found["bytes_total"], found["bytes_to_fetch"], found["failure"]) == (
        COMMIT,
        16_000,
        3_000,
        "",
    )
    refused = {"path": "/data/models/chat", "failed": True, "seen": "no space", "remedy": "free some"}
    (found,) = view(artifacts=[refused])["artifacts"]
    assert (found["failure"], found["remedy"], found["bytes_to_fetch"]) == ("no space", "free some", None)


def test_a_look_that_failed_names_its_artifact() -> None:
    """Results of a failed look may lack the path; the artifact itself has it."""
    item = {"model": "acme/chat", "path": "/data/models/chat"}
    (found,) = view(artifacts=[{"failed": True, "msg": "refused", "item": item}])["artifacts"]
    assert found["failure"] == "refused"


def test_a_host_that_was_not_reached() -> None:
    lost = {"unreachable": True, "msg": "Connection refused"}
    found = plan_view({}, lost, failure="a consequence")
    assert found["unreachable"]
    assert "Connection refused" in found["failure"]
    assert (found["cards"], found["changes"], found["errors"]) == ([], [], 0)
    assert view(artifacts=[lost])["unreachable"], "lost on the way"


def test_why_there_is_no_plan() -> None:
    found = plan_view({}, {}, failure="no Python")
    assert (found["failure"], found["unreachable"], found["device"]) == ("no Python", False, None)


def test_images() -> None:
    docker = {"cuda_version": "13.0", "container": {
        "docker": {"installed": True, "running": True},
        "compose": {"installed": True, "plugin": True, "version": "2.40.1"},
        "images": {"vllm/vllm-openai:v0.33.0": {"present": True, "size_bytes": 9_000}},
    }}  # fmt: skip
    host = facts(nvidia=docker)
    planned = plan(service("a"), service("b", port=8001, image="x/y:1.0.0"), on=host, image="vllm/vllm-openai:v0.33.0")
    first, second = plan_view(planned, host)["images"]
    assert (first["present"], first["size_bytes"], first["services"]) == (True, 9_000, ["a"])
    assert (second["present"], second["size_bytes"]) == (None, None)
    pinned = {"images": [{"image": "x/y:1.0.0", "pinned": "x/y:1.0.0@sha256:abc"}]}
    _first, second = plan_view(planned, {**host, "deployed": pinned})["images"]
    assert (second["present"], second["pinned"]) == (True, "x/y:1.0.0@sha256:abc")


@pytest.mark.parametrize("runtime", ["systemd", "compose"])
def test_no_value_of_an_environment_is_kept(runtime: str) -> None:
    docker = {
        "container": {"docker": {"installed": True, "running": True}, "compose": {"installed": True, "plugin": True}}
    }
    host = facts(nvidia=docker)
    image = "vllm/vllm-openai:v0.33.0" if runtime == "compose" else ""
    planned = plan(service(api_key=SECRET, environment={"NOTE": "hunter3"}), on=host, image=image)
    kept = json.dumps(without_values(planned))
    assert "NOTE" in kept
    assert HIDDEN in kept
    assert "hunter3" not in kept
    shown = json.dumps(plan_view(planned, host))
    assert "hunter3" not in shown, "with --diff the definition is shown"
    assert SECRET not in kept + shown
    assert planned["services"][0]["environment"]["NOTE"] == "hunter3", "the plan itself stays whole"


def test_facts_of_any_type_are_no_failure() -> None:
    odd = {"gpus": [{"index": 0, "memory_total_bytes": "80 GB", "mig": 3, "processes": {}}, None], "nvidia": [],
           "services": 7, "deployed": [], "record": "?", "services_problem": None}  # fmt: skip
    found = plan_view(plan(service(), on=without_gpus(), allow_cpu=True), odd)
    assert found["cards"][0]["memory_total_bytes"] is None
    assert json.dumps(found)
