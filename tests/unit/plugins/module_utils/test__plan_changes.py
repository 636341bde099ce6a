# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The prediction is held to what ``vllm_stack`` itself writes: each host here is one that it deployed."""

from __future__ import annotations

import copy
import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_deployed import deployed_plan
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_changes import (
    VALUE_CHANGED,
    applied_of,
    counts,
    flags_of,
    plan_changes,
)
from deployed_case import COMMIT, IMAGE, RUNNING, deploy
from plan_case import facts, plan, service

DOCKER = {
    "cuda_version": "13.0",
    "container": {
        "docker": {"installed": True, "running": True},
        "compose": {"installed": True, "plugin": True, "version": "2.40.1"},
    },
}


def only(planned: dict[str, t.Any], host: dict[str, t.Any], **how: t.Any) -> tuple[str, list[str]]:
    (found,) = plan_changes(planned, host, **how)
    return found["change"], found["reasons"]


def changed(before: dict[str, t.Any], after: dict[str, t.Any], **how: t.Any) -> tuple[str, list[str]]:
    """What changing one service from the one to the other comes to."""
    return only(plan(service(**after)), deploy(plan(service(**before))), **how)


def test_a_bare_host_starts_everything() -> None:
    found = plan_changes(plan(service("a"), service("b", port=8001)), {**facts(), "services": {}, "deployed": None})
    assert [(one["service"], one["change"]) for one in found] == [("a", "start"), ("b", "start")]
    assert counts(found) == {"start": 2, "restart": 0, "stop": 0, "keep": 0, "unknown": 0}


def test_the_same_plan_again_keeps_everything() -> None:
    planned = plan(
        service("a", environment={"A": "1"}), service("b", port=8001, secret_environment={"TOKEN": "12345678"})
    )
    assert [one["change"] for one in plan_changes(planned, deploy(planned))] == ["keep", "keep"]
    assert [one["change"] for one in plan_changes(planned, deploy(planned, user="ai"), user="ai")] == ["keep", "keep"]


@pytest.mark.parametrize(
    ("before", "after", "reasons"),
    [
        ({"max_model_len": 32000}, {"max_model_len": 16000}, ["--max-model-len 32000 -> 16000"]),
        ({}, {"max_model_len": 16000}, ["--max-model-len 16000 is new"]),
        ({"max_model_len": 16000}, {}, ["--max-model-len goes (was 16000)"]),
        ({}, {"args": {"enforce-eager": True}}, ["--enforce-eager is new"]),
        ({"args": {"enforce-eager": True}}, {}, ["--enforce-eager goes"]),
        ({"gpus": [0]}, {"gpus": [1]}, ["GPUs 0 -> 1", ]),
        ({"gpus": [0]}, {"gpus": [0, 1]}, ["GPUs 0 -> 0,1", "--tensor-parallel-size 2 is new"]),
        ({"port": 8000}, {"port": 8001}, ["port 8000 -> 8001"]),
        ({}, {"bind_address": "10.0.0.11"}, ["address 127.0.0.1 -> 10.0.0.11"]),
        ({}, {"revision": "v2"}, ["revision master -> v2"]),
        ({}, {"path": "/srv/chat"}, ["path /data/models/chat -> /srv/chat"]),
        ({"environment": {"A": "1"}}, {"environment": {"B": "1"}}, ["environment +B -A"]),
        ({}, {"secret_environment": {"TOKEN": "12345678"}}, ["secrets +TOKEN"]),
        ({}, {"drain_seconds": 7}, ["--shutdown-timeout 120 -> 7"]),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)  # fmt: skip
def test_each_change_names_its_reason(before: t.Any, after: t.Any, reasons: list[str]) -> None:
    assert changed(before, after) == ("restart", reasons)


def test_a_value_of_the_environment_is_seen_and_not_shown() -> None:
    change, reasons = changed({"environment": {"A": "hunter2-old"}}, {"environment": {"A": "hunter2-new"}})
    assert (change, reasons) == ("restart", [VALUE_CHANGED])
    host = deploy(plan(service(environment={"A": "hunter2-old"})))
    assert "hunter2" not in json.dumps(host["deployed"])


def test_what_needs_no_restart() -> None:
    """As in ``service_digest``: who waits longer for a service, or asks it other questions, starts no other one."""
    assert changed({}, {"ready_timeout": 5, "probes": []}) == ("keep", [])


def test_another_model() -> None:
    change, reasons = only(plan(service(model="acme/other")), deploy(plan(service())))
    assert (change, reasons[:2]) == (
        "restart",
        ["model acme/chat -> acme/other", "path /data/models/chat -> /data/models/other"],
    )


def test_another_engine() -> None:
    after = plan(service(), engine_versions={"cuda": "0.34.0"})
    assert only(after, deploy(plan(service()))) == ("restart", ["vLLM 0.33.0 -> 0.34.0"])
    moved = plan(service(), engine_path="/opt/vllm", engine_managed=False)
    change, reasons = only(moved, deploy(plan(service(), engine_path="/opt/old", engine_managed=False)))
    assert (change, reasons) == ("restart", ["engine /opt/old -> /opt/vllm"])


def test_a_revision_that_moved() -> None:
    planned = plan(service())
    host = deploy(planned)
    assert only(planned, host, models={"acme/chat@master": {"commit": COMMIT}}) == ("keep", [])
    moved = {"acme/chat@master": {"commit": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b"}}
    assert only(planned, host, models=moved) == ("restart", ["revision master moved (2e50b77b0eee -> 9f86d081884c)"])
    assert only(planned, host, models={"acme/chat@master": {"commit": None, "error": {}}}) == ("keep", [])


def test_a_card_that_was_exchanged() -> None:
    planned = plan(service(gpus=[0]))
    host = deploy(planned)
    after = copy.deepcopy(planned)
    for gpus in (after["services"][0]["gpus"], host["gpus"]):
        gpus[0]["uuid"] = "GPU-ffffffff-0000-4000-8000-000000000000"
    change, reasons = only(after, host)
    assert (change, reasons) == ("restart", ["GPUs GPU-a0000009 -> 0", "not on this host any more: GPU-a0000009"])


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ({"state": "running"}, ("keep", [])),
        ({"state": "starting"}, ("keep", [])),
        ({"state": "restarting", "detail": "exited"}, ("keep", [])),
        ({"state": "stopped", "detail": "stopped"}, ("start", ["it is stopped"])),
        ({"state": "failed", "detail": "exit status 1"}, ("start", ["it is failed: exit status 1"])),
        ({"state": None, "detail": None}, ("start", ["it is not running"])),
    ],
)
def test_a_service_that_died_is_started(state: dict[str, t.Any], expected: t.Any) -> None:
    planned = plan(service())
    assert only(planned, deploy(planned, **state)) == expected


def test_what_is_not_listed_stops() -> None:
    found = plan_changes(plan(service("a")), deploy(plan(service("a"), service("b", port=8001))))
    assert [(one["service"], one["change"]) for one in found] == [("a", "keep"), ("b", "stop")]


def test_a_service_that_somebody_removed_is_started() -> None:
    planned = plan(service())
    assert only(planned, {**deploy(planned), "services": {}}) == ("start", ["it is not there yet"])


def test_another_process_manager_moves_everything() -> None:
    host = {**deploy(plan(service("a"), service("b", port=8001))), "services": {}}
    found = plan_changes(plan(service("a"), runtime="supervisor"), host)
    assert [(one["service"], one["change"]) for one in found] == [("a", "restart"), ("b", "stop")]
    assert found[0]["reasons"][0] == "process manager systemd -> supervisor"


def test_what_can_not_be_told_is_unknown() -> None:
    planned = plan(service())
    host = {**deploy(planned), "services": {}, "services_problem": "the Docker daemon gave no answer"}
    assert only(planned, host) == ("unknown", ["the Docker daemon gave no answer"])
    older = {**deploy(planned), "deployed": None, "record": None}
    assert only(planned, older)[0] == "unknown"


def test_the_record_serves_where_it_is_what_runs() -> None:
    record = {"digest": "d", "services": {"a": {}}}
    assert applied_of({"plan_digest": "d", "record": record}) == record
    assert applied_of({"plan_digest": "e", "record": record}) == {}
    assert applied_of({"record": "?", "deployed": 3}) == {}


def compose(*services: t.Any, **settings: t.Any) -> dict[str, t.Any]:
    planned = plan(*services, on=facts(nvidia=DOCKER), image=IMAGE, **settings)
    assert planned["errors"] == 0, planned["findings"]
    return planned


def test_containers() -> None:
    before = compose(service(api_key="sk-0123456789"))
    host = deploy(before, on=facts(nvidia=DOCKER))
    assert only(before, host) == ("keep", [])
    assert only(compose(service(api_key="sk-0123456789", gpus=[1])), host) == ("restart", ["GPUs 0 -> 1"])
    assert only(compose(service(api_key="sk-0123456789"), container_shm_size="32gb"), host) == (
        "restart", ["container: shm_size 16gb -> 32gb"]
    )  # fmt: skip
    assert only(compose(service(api_key="sk-0123456789"), container_limits={"memory": "200g"}), host) == (
        "restart", ["container: limits {} -> {'memory': '200g'}"]
    )  # fmt: skip
    assert only(compose(service(api_key="sk-0123456789", port=8001)), host) == ("restart", ["port 8000 -> 8001"])
    other = "vllm/vllm-openai:v0.33.1"
    assert only(compose(service(api_key="sk-0123456789", image=other)), host) == (
        "restart",
        [f"image {IMAGE} -> {other}"],
    )


def test_an_image_whose_tag_moved_on_the_host() -> None:
    planned = compose(service())
    known = {"present": True, "digests": [f"vllm/vllm-openai@sha256:{'b' * 64}"]}
    host = deploy(planned, on=facts(nvidia=DOCKER))
    host["nvidia"] = {**DOCKER, "container": {**DOCKER["container"], "images": {IMAGE: known}}}
    assert only(planned, host) == ("restart", [f"image {IMAGE}: sha256:{'a' * 12} -> sha256:{'b' * 12}"])
    known["digests"] = [f"vllm/vllm-openai@sha256:{'a' * 64}"]
    assert only(planned, host) == ("keep", [])


def test_flags() -> None:
    assert flags_of(["/model", "--a", "--b", "1", "2", "--no-c"]) == {"--a": "", "--b": "1 2", "--no-c": ""}
    assert flags_of(None) == {}


def test_a_damaged_plan_file_is_no_reason_to_fail() -> None:
    assert deployed_plan({}, {}) is None
    found = deployed_plan(
        {"services": [1, {"name": "chat", "environment": 3, "container": "x", "gpus": "?"}], "images": {}},
        {"chat": "d"},
    )
    assert found is not None
    host = {**facts(), "services": {"chat": RUNNING}, "deployed": found}
    assert only(plan(service()), host)[0] == "restart"
