# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import typing as t

import pytest
from plan_case import codes, facts, only, plan, service, without_gpus


@pytest.mark.parametrize(
    ("device", "allow_cpu", "host", "gpus", "expected", "found"),
    [
        ("auto", False, facts(), None, "cuda", []),
        ("auto", True, facts(), 1, "cuda", []),
        ("cuda", False, facts(), [0], "cuda", []),
        ("auto", False, without_gpus(), None, "cuda", [("plan.no_gpu", "")]),
        ("cuda", True, without_gpus(), None, "cuda", [("plan.no_gpu", "")]),
        ("auto", True, without_gpus(), None, "cpu", [("plan.cpu_engine", "")]),
        ("auto", True, without_gpus(), 0, "cpu", [("plan.cpu_engine", "")]),
        ("auto", True, without_gpus(), 1, "cuda", [("plan.no_gpu", "chat")]),
        ("auto", False, without_gpus(), [0], "cuda", [("plan.no_gpu", "chat")]),
        ("cpu", False, without_gpus(), None, "cpu", [("plan.cpu_engine", "")]),
        ("cpu", False, facts(), None, "cpu", [("plan.cpu_engine", "")]),
        ("cpu", False, facts(), [0], "cpu", [("plan.gpus_on_cpu", "chat"), ("plan.cpu_engine", "")]),
        ("cpu", False, without_gpus(cpu={"model": "Xeon X5650", "flags": []}), None, "cpu",
         [("plan.cpu_without_avx2", "")]),
        ("cpu", False, without_gpus(machine="aarch64", cpu={"flags": []}), None, "cpu", [("plan.cpu_engine", "")]),
    ],
)  # fmt: skip
def test_device(
    device: str, allow_cpu: bool, host: t.Any, gpus: t.Any, expected: str, found: list[tuple[str, str]]
) -> None:
    planned = plan(service(gpus=gpus), on=host, device=device, allow_cpu=allow_cpu)
    assert (planned["device"], codes(planned)) == (expected, found)


def test_what_is_said_about_the_device() -> None:
    refused = plan(service(), on=without_gpus())["findings"][0]
    assert refused["seen"] == "nvidia-smi is not installed"
    assert "vllm_allow_cpu: true" in refused["remedy"]
    allowed = only(plan(service(), on=without_gpus(), allow_cpu=True))
    assert (allowed["severity"], allowed["seen"]) == ("info", "the CPU engine is used: nvidia-smi is not installed")
    assert allowed["remedy"] == "nothing to do: vllm_allow_cpu: true allows it"
    chosen = only(plan(service(), device="cpu"))
    assert chosen["seen"] == "the CPU engine is used: vllm_device is cpu"
    old = only(plan(service(), on=without_gpus(cpu={"model": "Xeon X5650", "flags": []}), device="cpu"))
    assert old["seen"] == "the CPU (Xeon X5650) has no AVX2"


BROKEN = {
    "gpu_reason": "nvidia-smi -L gave no answer within 30 s and was killed.",
    "nvidia": {"reason_code": "nvidia.hung", "remedy": "read 'dmesg', drain and reboot the host"},
}


@pytest.mark.parametrize(("gpus", "about"), [(1, "chat"), (None, "")])
def test_a_driver_that_is_broken_is_to_be_repaired_and_not_gone_without(gpus: t.Any, about: str) -> None:
    """Nobody shall move a model to the CPU, because nvidia-smi hangs."""
    finding = only(plan(service(gpus=gpus), on=without_gpus(**BROKEN)))
    assert (finding["code"], finding["service"]) == ("plan.no_gpu", about)
    assert "was killed." not in finding["seen"]
    assert finding["seen"].startswith("nvidia-smi -L gave no answer within 30 s and was killed")
    assert finding["remedy"] == "repair the driver: read 'dmesg', drain and reboot the host"
    assert "vllm_allow_cpu" not in finding["remedy"]


def test_a_broken_driver_that_says_no_remedy() -> None:
    found = plan(service(gpus=1), on=without_gpus(nvidia={"reason_code": "nvidia.smi_failed", "remedy": 7}))
    assert only(found)["remedy"].startswith("repair the driver: 'nvidia-smi' on the host")


@pytest.mark.parametrize("nvidia", [None, {}, "text", {"reason_code": None}, {"reason_code": "nvidia.no_gpu"}])
def test_a_host_without_gpus_may_run_on_the_cpu(nvidia: t.Any) -> None:
    finding = only(plan(service(gpus=1), on=without_gpus(nvidia=nvidia, gpu_reason="no GPU is there.")))
    assert finding["seen"] == "no GPU is there, but the service asks for GPUs"
    assert "vllm_allow_cpu: true" in finding["remedy"]


def test_no_gpu_is_said_once() -> None:
    assert codes(plan(service("a"), service("b", port=8001), on=without_gpus())) == [("plan.no_gpu", "")]


def test_a_host_that_runs_nothing_needs_nothing() -> None:
    planned = plan(on=without_gpus(), engine_versions={})
    assert (planned["services"], planned["findings"]) == ([], [])


@pytest.mark.parametrize(
    ("wanted", "manager", "expected", "errors"),
    [
        ("auto", "systemd", "systemd", 0),
        ("auto", "none", "supervisor", 0),
        ("systemd", "systemd", "systemd", 0),
        ("systemd", "none", "systemd", 1),
        ("supervisor", "systemd", "supervisor", 0),
        ("supervisor", "none", "supervisor", 0),
    ],
)
def test_runtime(wanted: str, manager: str, expected: str, errors: int) -> None:
    planned = plan(service(), on=facts(service_manager=manager), runtime=wanted)
    assert (planned["runtime"], planned["errors"]) == (expected, errors)


def test_an_engine_of_ones_own() -> None:
    engine = plan(service(), engine_path="/opt/vllm/", engine_managed=False, engine_versions={})["engine"]
    assert (engine["executable"], engine["managed"], engine["version"]) == ("/opt/vllm/bin/vllm", False, "")


HOPPER = {"nvidia": {"driver_version": "580.95.05", "cuda_version": "13.0"}, "python_version": "3.11.2"}


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        (HOPPER, []),
        ({}, []),  # what is unknown is not held against a host
        ({**HOPPER, "python_version": "3.10.12"}, ["plan.python_too_old"]),
        ({**HOPPER, "nvidia": {"driver_version": "535.1", "cuda_version": "12.2"}}, ["plan.driver_too_old"]),
        ({**HOPPER, "selinux": "enforcing"}, ["plan.selinux"]),
        ({**HOPPER, "selinux": "permissive"}, []),
    ],
    ids=["good", "unknown", "python", "driver", "selinux", "permissive"],
)
def test_what_the_engine_needs_of_a_host(host: dict[str, t.Any], expected: list[str]) -> None:
    planned = plan(service(), on=facts(**host), engine_versions={"cuda": "0.33.0"})
    assert [finding["code"] for finding in planned["findings"]] == expected


def test_a_gpu_that_the_release_dropped() -> None:
    old = facts([{"index": 0, "uuid": "GPU-0", "name": "Tesla V100", "compute_capability": "7.0"}])
    finding = only(plan(service(), on=old, engine_versions={"cuda": "0.33.0"}))
    assert (finding["code"], finding["severity"]) == ("plan.gpu_too_old", "warning")
    assert plan(service(), on=old, engine_versions={"cuda": "0.10.0"})["findings"] == []


def test_an_interpreter_of_ones_own_is_not_judged_by_ansibles() -> None:
    planned = plan(service(), on=facts(python_version="3.9.2"), engine_python="/usr/bin/python3.12")
    assert planned["findings"] == []
