# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the plan makes of a host: device, runtime, engine, and whether the host can carry them. Pure, no I/O."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import usable_cards
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_compose import image_version
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_settings import COMPOSE, Facts, Settings
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service


def choose_device(services: t.Sequence[Service], settings: Settings, facts: Facts) -> tuple[str, list[Finding]]:
    """``cuda`` where the host has GPUs, ``cpu`` where it has none and the inventory allows it."""
    cards = facts.get("gpus") or []
    reason = str(facts.get("gpu_reason") or "no NVIDIA GPU was found").rstrip(".")
    if settings.device == "cuda" or (settings.device == "auto" and cards):
        if cards:
            return "cuda", []
        return "cuda", [_no_gpu(reason, facts)]
    wanting = [service for service in services if service.gpus not in (None, 0)]
    if settings.device == "cpu":
        reason = "vllm_device is cpu" if cards else reason
        return "cpu", [_gpus_on_cpu(service.name) for service in wanting] + _check_cpu(settings, facts, reason)
    if wanting:
        return "cuda", [_no_gpu(f"{reason}, but the service asks for GPUs", facts, service.name) for service in wanting]
    if not settings.allow_cpu:
        return "cuda", [_no_gpu(reason, facts)]
    return "cpu", _check_cpu(settings, facts, reason)


def _gpus_on_cpu(service: str) -> Finding:
    return Finding(
        "plan.gpus_on_cpu",
        ERROR,
        "the service asks for GPUs, and vllm_device is cpu",
        "a service without gpus:, or a host that uses its GPUs",
        "delete gpus: to run it on the CPU, or set vllm_device: auto",
        service,
    )


def _no_gpu(seen: str, facts: Facts, service: str = "") -> Finding:
    broken = _repair(facts)
    if service:
        remedy = "put it on a host with GPUs, or delete gpus: and set vllm_allow_cpu: true to run it on the CPU"
        return Finding("plan.no_gpu", ERROR, seen, "the GPUs that gpus: names", broken or remedy, service)
    remedy = "install the NVIDIA driver (nvidia-smi must list the cards), or set vllm_allow_cpu: true to run on the CPU"
    return Finding("plan.no_gpu", ERROR, seen, "at least one NVIDIA GPU", broken or remedy)


def _repair(facts: Facts) -> str:
    """What to do where a driver or a card is there and does not work; empty where the host has none."""
    nvidia = facts.get("nvidia")
    nvidia = nvidia if isinstance(nvidia, t.Mapping) else {}
    if nvidia.get("reason_code") in (None, "", "nvidia.no_gpu"):
        return ""
    remedy = nvidia.get("remedy")
    how = remedy if isinstance(remedy, str) and remedy else "'nvidia-smi' on the host as root and 'dmesg' say more"
    return f"repair the driver: {how}"


def _check_cpu(settings: Settings, facts: Facts, reason: str) -> list[Finding]:
    cpu = facts.get("cpu")
    cpu = cpu if isinstance(cpu, t.Mapping) else {}
    flags = cpu.get("flags")
    if facts.get("machine") == "x86_64" and isinstance(flags, (list, tuple)) and "avx2" not in flags:
        seen = f"the CPU ({cpu.get('model') or 'unknown model'}) has no AVX2"
        return [
            Finding(
                "plan.cpu_without_avx2",
                ERROR,
                seen,
                "AVX2, which vLLM's CPU engine needs",
                "use another host",
            )
        ]
    allowed = "vllm_device: cpu" if settings.device == "cpu" else "vllm_allow_cpu: true"
    seen = f"the CPU engine is used: {reason}"
    return [
        Finding(
            "plan.cpu_engine",
            INFO,
            seen,
            "a GPU for production",
            f"nothing to do: {allowed} allows it",
        )
    ]


def choose_runtime(settings: Settings, facts: Facts) -> tuple[str, list[Finding]]:
    """``compose`` where an image is set, else ``systemd`` where it is the init system, else ``supervisor``.

    An explicit choice is checked, not changed.
    """
    has_systemd = facts.get("service_manager") == "systemd"
    if settings.runtime == "auto" and settings.image:
        return COMPOSE, []
    if settings.runtime == "auto":
        return ("systemd" if has_systemd else "supervisor"), []
    if settings.runtime == "systemd" and not has_systemd:
        return "systemd", [
            Finding(
                "plan.no_systemd", ERROR, "systemd is not the init system of this host", "systemd as PID 1",
                "set vllm_runtime: supervisor (or auto)",
            )
        ]  # fmt: skip
    return settings.runtime, _unused_image(settings) if settings.image and settings.runtime != COMPOSE else []


def _unused_image(settings: Settings) -> list[Finding]:
    seen = f"vllm_image is {settings.image}, and vllm_runtime is {settings.runtime}, which runs no containers"
    remedy = "delete vllm_runtime (or set it to compose), or set vllm_image: '' for this host"
    return [Finding("plan.image_unused", WARNING, seen, "services that run in the image", remedy)]


def plan_image_engine(device: str, settings: Settings) -> tuple[dict[str, t.Any], list[Finding]]:
    """The engine that an image carries: nothing to install, and its version only where the tag tells it."""
    version = image_version(settings.image)
    engine = {"flavor": device, "version": version, "path": "", "executable": "vllm", "managed": False}
    return {**engine, "image": settings.image}, []


def plan_engine(device: str, settings: Settings) -> tuple[dict[str, t.Any], list[Finding]]:
    """The engine's venv: one directory a flavour and version, so that an upgrade leaves the running engine alone."""
    version = str(settings.engine_versions.get(device) or "")
    path = settings.engine_path or f"{settings.root}/engine/{device}-{version}"
    findings = []
    if settings.engine_managed and not version:
        remedy = f"set {device}: in vllm_engine_versions"
        findings = [
            Finding(
                "plan.bad_setting",
                ERROR,
                f"vllm_engine_versions has no {device}",
                f"a vLLM version for {device}",
                remedy,
            )
        ]
    elif not settings.engine_managed and not settings.engine_path:
        seen = "vllm_engine_managed is false, and vllm_engine_path is empty"
        remedy = "set vllm_engine_path to the engine that is there, or vllm_engine_managed: true"
        findings = [Finding("plan.bad_setting", ERROR, seen, "the directory of an engine", remedy)]
    engine = {
        "flavor": device,
        "version": version,
        "path": path,
        "executable": f"{path}/bin/vllm",
        "managed": settings.engine_managed,
    }
    return engine, findings


@dataclass(frozen=True)
class Requirement:
    """What a release's wheels ask of a GPU host: the CUDA version of the driver and the compute capability."""

    cuda: tuple[int, ...]
    capability: tuple[int, ...]
    driver: str


# By release series. 0.33 is built with CUDA 13.0, which needs the R580 driver and dropped the GPUs before Turing.
REQUIREMENTS = {"0.33": Requirement((13, 0), (7, 5), "580")}


OLDEST_PYTHON = (3, 11)


def _numbers(version: t.Any) -> tuple[int, ...]:
    """``"13.0"`` as (13, 0); empty where it is unknown, which no check holds against a host."""
    parts = str(version or "").split(".")
    return tuple(int(part) for part in parts) if all(part.isdecimal() for part in parts) else ()


def check_engine_host(engine: t.Mapping[str, t.Any], runtime: str, settings: Settings, facts: Facts) -> list[Finding]:
    """What would only show after the models have been fetched: Python, driver, GPUs, SELinux."""
    findings = []
    python = _numbers(facts.get("python_version"))[:2]
    if engine["managed"] and not settings.engine_python and python and python < OLDEST_PYTHON:
        seen = f"Ansible uses Python {facts.get('python_version')} on this host"
        remedy = "install Python 3.11 or newer and set vllm_engine_python to it"
        findings.append(Finding("plan.python_too_old", ERROR, seen, "Python 3.11 or newer for vLLM", remedy))
    needed = REQUIREMENTS.get(".".join(str(engine["version"]).split(".")[:2]))
    if engine["flavor"] == "cuda" and (engine["managed"] or runtime == COMPOSE) and needed:
        findings += _check_cuda(needed, str(engine["version"]), facts)
    if runtime == "systemd" and facts.get("selinux") == "enforcing":
        findings.append(
            Finding(
                "plan.selinux",
                WARNING,
                "SELinux is enforcing, and systemd may not run programs below a directory of type var_lib_t",
                f"type bin_t for {engine['path']}/bin",
                f"semanage fcontext -a -t bin_t '{engine['path']}/bin(/.*)?' && restorecon -R {engine['path']}/bin",
            )
        )
    return findings


def _check_cuda(needed: Requirement, version: str, facts: Facts) -> list[Finding]:
    findings = []
    nvidia = facts.get("nvidia")
    nvidia = nvidia if isinstance(nvidia, t.Mapping) else {}
    cuda = _numbers(nvidia.get("cuda_version"))
    wanted = ".".join(str(number) for number in needed.cuda)
    if cuda and cuda < needed.cuda:
        seen = f"driver {nvidia.get('driver_version')} supports CUDA {nvidia.get('cuda_version')}"
        remedy = f"install driver R{needed.driver} or newer, or choose an older vLLM in vllm_engine_versions"
        expected = f"CUDA {wanted} for vLLM {version}"
        findings.append(Finding("plan.driver_too_old", ERROR, seen, expected, remedy))
    for card in usable_cards(facts.get("gpus")):
        capability = _numbers(card.get("compute_capability"))
        if capability and capability < needed.capability:
            seen = f"GPU {card['index']} ({card.get('name')}) has compute capability {card['compute_capability']}"
            expected = f"{'.'.join(str(number) for number in needed.capability)} or higher for vLLM {version}"
            remedy = "choose an older vLLM in vllm_engine_versions, or leave the card out of every gpus:"
            findings.append(Finding("plan.gpu_too_old", WARNING, seen, expected, remedy))
    return findings
