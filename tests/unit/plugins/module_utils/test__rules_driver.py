# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_driver import RULES
from rules_case import DROP, IMAGE, Case, ask, fails, holds, host, incomplete, passes, unknown

CPU = {"plan>device": "cpu", "gpus": []}
CUDA = f"nvidia>container>images>{IMAGE}>cuda_version"
REQUIRE = f"nvidia>container>images>{IMAGE}>require_cuda"
IMAGES = "nvidia>container>images"
OLD = {"nvidia>driver_version": "535.183.06", "nvidia>cuda_version": "12.2"}
FORWARD = {"plan>services>*>environment>VLLM_ENABLE_CUDA_COMPATIBILITY": "1"}
GEFORCE = {"gpus>*>name": "NVIDIA GeForce RTX 4090"}
NO_SWITCH = {"gpus>*>fabric": {"state": None, "status": None}, "nvidia>topology": None}
LATER = 1798761600.0  # 2027-01-01

CASES = [
    passes("driver.unusable"),
    passes("driver.unusable", {"nvidia>reason_code": "nvidia.no_gpu", "gpus": []}),
    fails("driver.unusable", "error", "(nvidia.driver_not_loaded)", {
        "gpus": [], "nvidia>reason_code": "nvidia.driver_not_loaded", "nvidia>reason": "The module is not loaded.",
        "nvidia>remedy": "run 'modprobe nvidia' and read 'dmesg'"}),
    fails("driver.unusable", "warning", "A GPU is lost", {
        "nvidia>reason_code": "nvidia.gpu_lost", "nvidia>reason": "A GPU is lost.", "nvidia>remedy": None}),
    unknown("driver.unusable", {"nvidia": None}),
    passes("driver.mismatch"),
    passes("driver.mismatch", {"nvidia>library_version": "580.95"}),
    passes("driver.mismatch", {"nvidia>library_version": "13.580.95.05"}),
    passes("driver.mismatch", {"nvidia>library_version": None}),
    fails("driver.mismatch", "error", "library 13.575.57.08", {"nvidia>library_version": "13.575.57.08"}),
    fails("driver.mismatch", "error", "kernel module 580.95.05, library 580.105.08",
          {"nvidia>library_version": "580.105.08"}),
    fails("driver.mismatch", "error", "library (unknown)",
          {"nvidia>library_version": None, "nvidia>library_version_mismatch": True}),
    unknown("driver.mismatch", {"nvidia>library_version": None, "nvidia>library_version_mismatch": None}),
    passes("driver.cuda"),
    passes("driver.cuda", {**OLD, CUDA: "12.9"}),
    passes("driver.cuda", {**OLD, **FORWARD}),
    passes("driver.cuda", {**OLD, "plan>runtime": "systemd"}),
    passes("driver.cuda", {**OLD, **CPU}),
    fails("driver.cuda", "error", "driver 535.183.06, and vllm/vllm-openai:v0.33.0", OLD),
    fails("driver.cuda", "error", "is for CUDA 13.0", {**OLD, CUDA: None}),
    fails("driver.cuda", "error", "is for CUDA 13.0", {**OLD, **FORWARD, **GEFORCE}),
    fails("driver.cuda", "error", "is for CUDA 13.0", {**FORWARD, "nvidia>driver_version": "525.60.13"}),
    unknown("driver.cuda", {"nvidia>driver_version": None}),
    unknown("driver.cuda", {CUDA: None, REQUIRE: None}),
    unknown("driver.cuda", {CUDA: "14.0"}),
    unknown("driver.cuda", {IMAGES: None}),
    passes("driver.cuda_minor"),
    passes("driver.cuda_minor", {CUDA: "12.9"}),
    fails("driver.cuda_minor", "warning", "knows CUDA 13.0, and vllm/vllm-openai", {CUDA: "13.2.1"}),
    unknown("driver.cuda_minor", {"nvidia>cuda_version": None}),
    passes("driver.forward_compatibility"),
    passes("driver.forward_compatibility", FORWARD),
    passes("driver.forward_compatibility", GEFORCE),
    fails("driver.forward_compatibility", "error", "RTX 4090, used by chat) is no data-centre GPU",
          {**FORWARD, **GEFORCE}),
    unknown("driver.forward_compatibility", {**FORWARD, "gpus>0>name": None}),
    passes("driver.branch_ended"),
    passes("driver.branch_ended", {**CPU, **OLD, "now": LATER}),
    fails("driver.branch_ended", "warning", "branch R570 ended in 2026-02",
          {"nvidia>driver_version": "570.124.06", "now": LATER}),
    fails("driver.branch_ended", "warning", "R550 has ended", {"nvidia>driver_version": "550.90.07"}),
    unknown("driver.branch_ended", {"nvidia>driver_version": None}),
    unknown("driver.branch_ended", {"now": None}),
    unknown("driver.branch_ended", {"nvidia>driver_version": "700.10"}),
    passes("gpu.compute_capability"),
    passes("gpu.compute_capability", {"gpus>7>compute_capability": "6.1"}),
    fails("gpu.compute_capability", "error", "compute capability 7.0", {"gpus>2>compute_capability": "7.0"}),
    fails("gpu.compute_capability", "error", "compute capability 12.0",
          {"gpus>0>compute_capability": "12.0", CUDA: "12.4"}),
    unknown("gpu.compute_capability", {"gpus>0>compute_capability": None}),
    unknown("gpu.compute_capability", {IMAGES: {IMAGE: {"present": False}}}),
    passes("driver.fabric_manager"),
    passes("driver.fabric_manager", {**NO_SWITCH, "nvidia>fabric_manager>installed": False}),
    # A virtual machine, whose fabric another one manages.
    passes("driver.fabric_manager", {"nvidia>fabric_manager": {"installed": False, "active": False, "version": None}}),
    fails("driver.fabric_manager", "warning", "does not run, though", {"nvidia>fabric_manager>active": False}),
    fails("driver.fabric_manager", "error", "does not run",
          {"nvidia>fabric_manager>active": False, "gpus>*>fabric>state": "in_progress"}),
    fails("driver.fabric_manager", "error", "is not installed, and the host has NVSwitch",
          {"nvidia>fabric_manager>installed": False, "gpus>*>fabric>state": None}),
    unknown("driver.fabric_manager", {"nvidia>fabric_manager": None}),
    unknown("driver.fabric_manager", {"nvidia>fabric_manager>active": None}),
    passes("driver.fabric_manager_version"),
    passes("driver.fabric_manager_version", {**NO_SWITCH, "nvidia>fabric_manager>version": "535.1"}),
    fails("driver.fabric_manager_version", "error", "Fabric Manager 580.82.07, driver 580.95.05",
          {"nvidia>fabric_manager>version": "580.82.07"}),
    unknown("driver.fabric_manager_version", {"nvidia>fabric_manager>version": None}),
    passes("driver.fabric_state"),
    passes("driver.fabric_state", NO_SWITCH),
    fails("driver.fabric_state", "error", "GPU 0 (NVIDIA H100 80GB HBM3, used by chat): fabric state in_progress",
          {"gpus>0>fabric>state": "in_progress"}),
    fails("driver.fabric_state", "warning", "status insufficient_resources",
          {"gpus>7>fabric>status": "insufficient_resources"}),
    unknown("driver.fabric_state", {"gpus>0>fabric": None}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_rule(case: Case) -> None:
    holds(RULES, case)


def test_every_rule_has_cases_of_each_kind() -> None:
    assert incomplete(RULES, CASES) == []


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.code)
def test_a_cpu_host_is_asked_nothing_about_the_driver(rule: t.Any) -> None:
    assert not rule.check(host({"nvidia": {}, **CPU}))


def test_the_bridge_is_offered_where_it_holds() -> None:
    _rule, verdict = ask(RULES, fails("driver.cuda", "error", "", OLD))
    assert "VLLM_ENABLE_CUDA_COMPATIBILITY" in verdict[0].remedy
    _rule, verdict = ask(RULES, fails("driver.cuda", "error", "", {**OLD, **GEFORCE}))
    assert "VLLM_ENABLE_CUDA_COMPATIBILITY" not in verdict[0].remedy
    assert [failure.service for failure in verdict] == ["chat", "whisper"]


def test_a_host_that_runs_nothing_is_asked_nothing_of_images() -> None:
    nothing = host(
        {"plan>services": [], "nvidia>container": DROP, **OLD, "nvidia>fabric_manager>version": "535.183.06"}
    )
    assert [rule.code for rule in RULES if rule.check(nothing)] == []
