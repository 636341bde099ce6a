# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_fleet import RULES
from rules_case import IMAGE, NOW, PLAN, Case, ask, fails, holds, incomplete, passes, unknown

CPU = {"plan>device": "cpu"}
FACTS_OF = f"nvidia>container>images>{IMAGE}"
# Another machine, as healthy as the first.
OTHER = {
    "boot>id": "other",
    "settings>vllm_address": "10.0.0.12",
}
TAG = "vllm/vllm-openai:v0.33.0"
TAGGED = {"plan>services>*>image": TAG}
DIGEST = {f"nvidia>container>images>{TAG}": {"present": True, "digests": [f"vllm/vllm-openai@sha256:{'a' * 64}"]}}
MOVED = {f"nvidia>container>images>{TAG}": {"present": True, "digests": [f"vllm/vllm-openai@sha256:{'b' * 64}"]}}
URL = "plan>services>0>public_url"
CHAT = "Qwen/Qwen3-32B@v1.0"
REVISION = "plan>services>0>revision"
DECLARED = "plan>services>0>declared"

CASES = [
    passes("fleet.gpus", {}, OTHER),
    passes("fleet.gpus", {"gpus>*>name": "NVIDIA L40S"}),
    passes("fleet.gpus", {"gpus>*>name": "NVIDIA L40S", "plan>services>*>name": "own"}, OTHER),
    passes("fleet.gpus", {**CPU}, {**OTHER, **CPU}),
    fails("fleet.gpus", "warning", "2 x NVIDIA H100 80GB HBM3 on gpu-01, gpu-03; 2 x NVIDIA L40S on gpu-02",
          {}, {**OTHER, "gpus>*>name": "NVIDIA L40S"}, {**OTHER, "boot>id": "third"}),
    unknown("fleet.gpus", {}, {**OTHER, "gpus>*>name": None}),
    passes("fleet.driver", {}, OTHER),
    fails("fleet.driver", "warning", "driver R570 on gpu-02", {}, {**OTHER, "nvidia>driver_version": "570.1"}),
    unknown("fleet.driver", {}, {**OTHER, "nvidia>driver_version": None}),
    passes("fleet.image", {}, OTHER),
    passes("fleet.image", {**TAGGED, **DIGEST}, {**OTHER, **TAGGED}),
    # One build, and a name in another registry beside it.
    passes("fleet.image", {**TAGGED, **DIGEST}, {**OTHER, **TAGGED, f"nvidia>container>images>{TAG}": {
        "present": True, "digests": ["mirror/a@sha256:0", f"vllm/vllm-openai@sha256:{'a' * 64}"]}}),
    fails("fleet.image", "warning", "sha256:aaaaaaaaaaaa on gpu-01; sha256:bbbbbbbbbbbb on gpu-02",
          {**TAGGED, **DIGEST}, {**OTHER, **TAGGED, **MOVED}),
    unknown("fleet.image",
            {**TAGGED, **DIGEST}, {**OTHER, **TAGGED, f"nvidia>container>images>{TAG}": {"present": True}}),
    passes("fleet.vllm", {}, OTHER),
    fails("fleet.vllm", "warning", "vLLM 0.32.0 on gpu-02", {}, {**OTHER, f"{FACTS_OF}>vllm_version": "0.32.0"}),
    unknown("fleet.vllm", {}, {**OTHER, f"{FACTS_OF}>vllm_version": None, "plan>engine": None}),
    passes("fleet.model", {}, OTHER),
    fails("fleet.model", "error", "acme/other on gpu-02", {}, {**OTHER, "plan>services>0>model": "acme/other"}),
    # Two fleets that call their service the same, each under its model's own name.
    fails("fleet.model", "warning", "acme/other on gpu-02", {}, {
        **OTHER, "plan>services>0>model": "acme/other", "plan>services>0>arguments": ["--served-model-name", "other"]}),
    unknown("fleet.model", {}, {**OTHER, "plan>services>0>model": None}),
    passes("fleet.revision", {}, OTHER),
    fails("fleet.revision", "warning", "revision v1.0 on gpu-01; revision v2.0 on gpu-02",
          {}, {**OTHER, "plan>services>0>revision": "v2.0"}),
    fails("fleet.revision", "warning", "revision v1.0 at commit aaaaaaaaaaaa on gpu-01; revision v1.0 at commit bbb",
          {"plan>models": {CHAT: {"commit": "a" * 40}}}, {**OTHER, "plan>models": {CHAT: {"commit": "b" * 40}}}),
    passes("fleet.revision", {"plan>models": {CHAT: {"commit": "a" * 40}}}, {**OTHER, "plan>models": {}}),
    fails("fleet.revision", "warning", "at commit cccccccccccc", {"plan>models": {CHAT: {"commit": "a" * 40}}},
          {**OTHER, "deployed>artifacts": [{**PLAN["artifacts"][0], "commit": "c" * 40}]}),
    unknown("fleet.revision", {}, {**OTHER, "plan>services>0>revision": None}),
    passes("fleet.arguments", {}, OTHER),
    passes("fleet.arguments", {DECLARED: ["--port", "8000", "--tensor-parallel-size", "2"]},
           {**OTHER, DECLARED: ["--port", "9000"]}),
    fails("fleet.arguments", "warning", "--max-model-len 4096 on gpu-02",
          {DECLARED: ["--max-model-len", "8192"]}, {**OTHER, DECLARED: ["--max-model-len", "4096"]}),
    unknown("fleet.arguments", {}, {**OTHER, DECLARED: None}),
    passes("fleet.same_host"),
    passes("fleet.same_host", {}, OTHER),
    fails("fleet.same_host", "error", "gpu-01, gpu-02 are one machine", {}, {}),
    # Containers of one machine, and two roots on it.
    passes("fleet.same_host", {}, {"hostname": "gpu-02"}),
    passes("fleet.same_host", {"settings>vllm_root": "/srv/a"}, {"settings>vllm_root": "/srv/b"}),
    fails("fleet.same_host", "error", "vllm_root /srv/a", {"settings>vllm_root": "/srv/a"},
          {"settings>vllm_root": "/srv/a"}),
    unknown("fleet.same_host", {}, {**OTHER, "boot": None}),
    passes("fleet.address"),
    passes("fleet.address", {}, OTHER),
    # Two names for one machine are another finding.
    passes("fleet.address", {}, {}),
    passes("fleet.address", {URL: "http://10.0.0.11:8000"}, {**OTHER, URL: "http://10.0.0.12:8000"}),
    passes("fleet.address", {URL: "http://10.0.0.11:8000"}, {**OTHER, URL: "http://10.0.0.11:9000"}),
    passes("fleet.address", {URL: "http://127.0.0.1:8000"}, {**OTHER, URL: "http://127.0.0.1:8000"}),
    passes("fleet.address", {URL: "http://[::1]:8000"}, {**OTHER, URL: "http://[::1]:8000"}),
    fails("fleet.address", "error", "10.0.0.11:8000 is at gpu-01, gpu-02",
          {URL: "http://10.0.0.11:8000"}, {**OTHER, URL: "http://10.0.0.11:8000"}),
    fails("fleet.address", "error", "[fd00::1]:8000 is at gpu-01, gpu-02",
          {URL: "http://[fd00::1]:8000"}, {**OTHER, URL: "http://[fd00::1]:8000"}),
    unknown("fleet.address", {}, {**OTHER, URL: None}),
    passes("fleet.clocks"),
    passes("fleet.clocks", {}, OTHER),
    # Asked a minute later, and right.
    passes("fleet.clocks", {}, {**OTHER, "clock>epoch": NOW + 60, "now": NOW + 60}),
    fails("fleet.clocks", "warning", "gpu-03 +90 s", {}, OTHER, {**OTHER, "clock>epoch": NOW + 90}),
    unknown("fleet.clocks", {}, {**OTHER, "clock": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


def test_the_hosts_of_a_finding_are_those_that_it_is_about() -> None:
    case = fails("fleet.clocks", "warning", "", {}, OTHER, {**OTHER, "clock>epoch": NOW + 90})
    _rule, verdict = ask(RULES, case)
    assert [hosts for hosts, _failure in verdict] == [("gpu-03",)]
    case = fails("fleet.driver", "warning", "", {}, {**OTHER, "nvidia>driver_version": "570.1"})
    _rule, verdict = ask(RULES, case)
    assert [(hosts, failure.service) for hosts, failure in verdict] == [
        (("gpu-01", "gpu-02"), "chat"),
        (("gpu-01", "gpu-02"), "whisper"),
    ]


def test_a_fleet_of_many_kinds_is_told_in_few_words() -> None:
    many = [{**OTHER, "boot>id": f"boot-{number}", REVISION: f"v{number}"} for number in range(40)]
    _rule, verdict = ask(RULES, fails("fleet.revision", "warning", "", {}, *many))
    ((hosts, failure),) = verdict
    assert len(hosts) == 41
    assert failure.seen.endswith("and 37 more kinds")
    assert len(failure.seen) < 300


def test_an_empty_fleet_is_alike() -> None:
    assert not [rule.code for rule in RULES if rule.check([])]
