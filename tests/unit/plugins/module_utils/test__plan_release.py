# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from plan_case import codes, facts, only, plan, service

ONES_OWN = {"engine_managed": False, "engine_path": "/opt/vllm"}


def test_a_service_s_flag_is_held_against_the_release() -> None:
    finding = only(plan(service(args={"max-num-sequences": 8})))
    assert (finding["code"], finding["severity"], finding["service"]) == ("plan.flag_unknown", "error", "chat")
    assert "max-num-seqs" in finding["remedy"]


def test_the_fleet_s_flags_are_told_once() -> None:
    planned = plan(service(), service("other", port=8001), default_args={"swap-space": 4})
    assert codes(planned) == [("plan.flag_removed", "")]
    assert "vllm_default_args" in only(planned)["remedy"]


def test_a_flag_of_the_fleet_that_every_service_decides_is_not_read() -> None:
    chat = service(args={"enforce-eager": True})
    assert plan(chat, default_args={"enforce-eager": "maybe"})["findings"] == []


@pytest.mark.parametrize(
    ("settings", "code", "severity"),
    [
        ({}, "plan.flag_unknown", "error"),
        ({"engine_versions": {"cuda": "0.33.7"}}, "plan.flag_unknown", "warning"),
        (ONES_OWN, "plan.flag_unknown", "warning"),
    ],
)
def test_what_is_known_of_the_release_decides_how_sure_a_finding_is(
    settings: dict[str, t.Any], code: str, severity: str
) -> None:
    found = plan(service(args={"no-such-flag": 1}), **settings)["findings"]
    assert [(finding["code"], finding["severity"]) for finding in found] == [(code, severity)]


def test_an_image_of_one_s_own_says_that_its_flags_were_not_checked() -> None:
    docker = {"docker": {"installed": True, "running": True}, "compose": {"installed": True, "version": "2.30.0"}}
    host = facts(nvidia={"container": docker})
    planned = plan(service(args={"max-num-seqs": 8}), on=host, image="registry.lan/engine:mine")
    assert codes(planned) == [("plan.flags_unchecked", "chat")]
    assert codes(plan(service(args={"max-num-seqs": 8}), on=host, image="vllm/vllm-openai:v0.33.0")) == []
    told = facts(nvidia={"container": {**docker, "images": {"registry.lan/engine:mine": {"vllm_version": "0.33.0"}}}})
    assert codes(plan(service(args={"max-num-seqs": 8}), on=told, image="registry.lan/engine:mine")) == []


def test_a_flag_may_lead_into_its_json() -> None:
    (entry,) = plan(service(args={"compilation-config.cudagraph_mode": "NONE"}))["services"]
    assert "--compilation-config.cudagraph_mode NONE" in " ".join(entry["command"])


def test_a_variable_that_the_release_does_not_read() -> None:
    planned = plan(service(environment={"VLLM_NO_SUCH_THING": "1", "OTHER": "1"}))
    assert codes(planned) == [("plan.environment_unknown", "chat")]
    assert planned["errors"] == 0
