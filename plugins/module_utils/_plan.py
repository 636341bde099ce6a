# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The plan: what a host should run, resolved from inventory and facts. Pure functions, no I/O, on the controller."""

from __future__ import annotations

import ipaddress
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _render
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import (
    ERROR,
    INFO,
    WARNING,
    Finding,
    errors,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_compose import (
    check_containers,
    check_docker,
    check_unused_images,
    image_version,
    plan_images,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import (
    Service,
    parse_services,
    parse_setting,
)

# How long a stop may take beyond the drain: the engine frees its GPUs and its workers leave.
STOP_MARGIN_SECONDS = 30
WILDCARDS = ("", "0.0.0.0", "::")
LOOPBACK = "127.0.0.1"
COMPOSE = "compose"


@dataclass(frozen=True)
class Settings:
    """The fleet-wide choices behind a plan; paths are absolute and on the host."""

    root: str
    model_root: str
    device: str = "auto"
    allow_cpu: bool = False
    runtime: str = "auto"
    bind_address: str = "127.0.0.1"
    address: str = ""
    drain_seconds: int = 120
    ready_timeout: int = 1800
    default_args: t.Mapping[str, t.Any] = field(default_factory=dict)
    default_environment: t.Mapping[str, t.Any] = field(default_factory=dict)
    cpu_args: t.Mapping[str, t.Any] = field(default_factory=dict)
    cpu_environment: t.Mapping[str, t.Any] = field(default_factory=dict)
    engine_path: str = ""
    engine_python: str = ""
    engine_versions: t.Mapping[str, str] = field(default_factory=dict)
    engine_managed: bool = True
    image: str = ""
    container_user: str = "2000:0"
    container_shm_size: str = "16gb"
    container_read_only: bool = True
    container_gpu_driver: str = "nvidia"
    container_ulimits: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(_compose.ULIMITS))
    container_logging: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(_compose.LOGGING))
    container_limits: t.Mapping[str, t.Any] = field(default_factory=dict)

    def container(self, shm_size: str = "") -> _compose.Container:
        return _compose.Container(
            user=self.container_user,
            shm_size=shm_size or self.container_shm_size,
            read_only=self.container_read_only,
            gpu_driver=self.container_gpu_driver,
            ulimits=self.container_ulimits,
            logging=self.container_logging,
            limits=self.container_limits,
        )


Facts = t.Mapping[str, t.Any]


def make_plan(raw_services: t.Any, settings: Settings, facts: Facts) -> dict[str, t.Any]:
    """Resolve everything one host should run.

    ``facts`` is what the module ``vllm_host_info`` returned. The result is plain data: ``device``, ``runtime``,
    ``engine``, ``services``, ``artifacts``, ``images`` and ``findings``. With an error among the findings nothing may
    be changed on the host.
    """
    services, findings = parse_services(raw_services)
    nothing_to_run = not services and not findings
    settings, found = check_settings(settings)
    findings += found
    device, found = choose_device(services, settings, facts)
    # A host whose driver broke can still be told to run nothing.
    findings += [] if nothing_to_run else found
    runtime, found = choose_runtime(settings, facts)
    findings += found
    contained = runtime == COMPOSE
    engine, found = plan_image_engine(device, settings) if contained else plan_engine(device, settings)
    found += check_engine_host(engine, runtime, settings, facts)
    found += check_docker(facts, device, settings.container_gpu_driver) if contained else []
    findings += [] if nothing_to_run else found
    gpus: dict[str, list[dict[str, t.Any]]] = {}
    cards = facts.get("gpus") or []
    # Without any card there is one finding, not one for each service.
    if device == "cuda" and cards:
        gpus, found = assign_gpus(services, cards)
        findings += found
    findings += check_ports(services, settings, facts)
    artifacts, found = plan_artifacts(services, settings)
    findings += found
    resolved = []
    for service in services:
        arguments = all_arguments(service, settings, device)
        tensor_parallel, found = tensor_parallel_size(service, len(gpus.get(service.name, [])), device, arguments)
        findings += found
        resolved.append(
            resolve_service(
                service,
                settings,
                engine,
                device,
                gpus.get(service.name, []),
                tensor_parallel,
                contained,
            )
        )
    findings += check_containers(resolved, settings.container()) if contained else check_unused_images(services)
    # What can not be rendered has an error among the findings, and nothing is changed then.
    if contained and not errors(findings):
        resolved = [contain(item, service, settings) for item, service in zip(resolved, services)]
    return {
        "device": device,
        "runtime": runtime,
        "root": settings.root,
        "engine": engine,
        "services": resolved,
        "artifacts": artifacts,
        "images": plan_images(resolved) if contained else [],
        "findings": [finding.as_dict() for finding in findings],
        "errors": len(errors(findings)),
    }


def check_settings(settings: Settings) -> tuple[Settings, list[Finding]]:
    """The settings, held to the rules of a service's own keys; a mapping that breaks them counts as {}."""
    checks = {
        "root": ("path", "vllm_root"),
        "model_root": ("path", "vllm_model_root"),
        "engine_path": ("path", "vllm_engine_path"),
        "bind_address": ("bind_address", "vllm_bind_address"),
        "image": ("image", "vllm_image"),
        "default_args": ("args", "vllm_default_args"),
        "cpu_args": ("args", "vllm_cpu_args"),
        "default_environment": ("environment", "vllm_default_environment"),
        "cpu_environment": ("environment", "vllm_cpu_environment"),
    }
    findings: list[Finding] = []
    good: dict[str, t.Any] = {}
    for name, (key, variable) in checks.items():
        value = getattr(settings, name)
        if value == "" and name in ("engine_path", "bind_address", "image"):
            continue
        checked, found = parse_setting(key, variable, value)
        findings += found
        if not found:
            good[name] = checked
        elif isinstance(value, dict):
            good[name] = {}
    return replace(settings, **good), findings


def choose_device(services: t.Sequence[Service], settings: Settings, facts: Facts) -> tuple[str, list[Finding]]:
    """``cuda`` where the host has GPUs, ``cpu`` where it has none and the inventory allows it."""
    cards = facts.get("gpus") or []
    reason = str(facts.get("gpu_reason") or "no NVIDIA GPU was found")
    if settings.device == "cuda" or (settings.device == "auto" and cards):
        if cards:
            return "cuda", []
        return "cuda", [_no_gpu(reason)]
    wanting = [service for service in services if service.gpus not in (None, 0)]
    if settings.device == "cpu":
        reason = "vllm_device is cpu" if cards else reason
        return "cpu", [_gpus_on_cpu(service.name) for service in wanting] + _check_cpu(settings, facts, reason)
    if wanting:
        return "cuda", [
            Finding(
                "plan.no_gpu", ERROR, f"{reason}, but the service asks for GPUs", "the GPUs that gpus: names",
                "put it on a host with GPUs, or delete gpus: and set vllm_allow_cpu: true to run it on the CPU",
                service.name,
            )
            for service in wanting
        ]  # fmt: skip
    if not settings.allow_cpu:
        return "cuda", [_no_gpu(reason)]
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


def _no_gpu(reason: str) -> Finding:
    remedy = "install the NVIDIA driver (nvidia-smi must list the cards), or set vllm_allow_cpu: true to run on the CPU"
    return Finding("plan.no_gpu", ERROR, reason, "at least one NVIDIA GPU", remedy)


def _check_cpu(settings: Settings, facts: Facts, reason: str) -> list[Finding]:
    cpu = facts.get("cpu") or {}
    if facts.get("machine") == "x86_64" and "avx2" not in (cpu.get("flags") or []):
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
    seen = f"the CPU engine is used: {reason.rstrip('.')}"
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
    return settings.runtime, []


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
    nvidia = facts.get("nvidia") or {}
    cuda = _numbers(nvidia.get("cuda_version"))
    wanted = ".".join(str(number) for number in needed.cuda)
    if cuda and cuda < needed.cuda:
        seen = f"driver {nvidia.get('driver_version')} supports CUDA {nvidia.get('cuda_version')}"
        remedy = f"install driver R{needed.driver} or newer, or choose an older vLLM in vllm_engine_versions"
        expected = f"CUDA {wanted} for vLLM {version}"
        findings.append(Finding("plan.driver_too_old", ERROR, seen, expected, remedy))
    for card in facts.get("gpus") or []:
        capability = _numbers(card.get("compute_capability"))
        if capability and capability < needed.capability:
            seen = f"GPU {card['index']} ({card.get('name')}) has compute capability {card['compute_capability']}"
            expected = f"{'.'.join(str(number) for number in needed.capability)} or higher for vLLM {version}"
            remedy = "choose an older vLLM in vllm_engine_versions, or leave the card out of every gpus:"
            findings.append(Finding("plan.gpu_too_old", WARNING, seen, expected, remedy))
    return findings


def assign_gpus(
    services: t.Sequence[Service], cards: t.Sequence[t.Mapping[str, t.Any]]
) -> tuple[dict[str, list[dict[str, t.Any]]], list[Finding]]:
    """Cards to services: named ones first, then counts from the lowest free index; no card twice.

    A service that does not get all of its cards gets none: the finding says why.
    """
    cards = sorted(cards, key=lambda card: int(card["index"]))
    findings: list[Finding] = []
    owner: dict[str, str] = {}
    chosen: dict[str, list[dict[str, t.Any]]] = {}
    named = [service for service in services if isinstance(service.gpus, tuple)]
    counted = [service for service in services if not isinstance(service.gpus, tuple)]
    for service in named:
        found: list[Finding] = []
        mine: list[dict[str, t.Any]] = []
        for wanted in t.cast("tuple[int | str, ...]", service.gpus):
            card, finding = _find_card(wanted, cards, service.name)
            if card is not None and card["uuid"] in owner:
                finding = _shared(card, owner[card["uuid"]], service.name)
            if finding or card is None:
                found += [finding] if finding else []
                continue
            owner[card["uuid"]] = service.name
            mine.append(_card(card))
        findings += found
        chosen[service.name] = [] if found else mine
    for service in counted:
        count = 1 if service.gpus is None else t.cast(int, service.gpus)
        free = [card for card in cards if card["uuid"] not in owner and not _has_mig(card)]
        if count == 0:
            findings.append(_cpu_beside_gpus(service.name))
        elif len(free) < count:
            findings.append(_too_few(service.name, count, free, cards, owner))
            free = []
        for card in free[:count]:
            owner[card["uuid"]] = service.name
        chosen[service.name] = [_card(card) for card in free[:count]]
    return chosen, findings


def _card(card: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    return {"index": card["index"], "uuid": card["uuid"], "name": card.get("name")}


def _has_mig(card: t.Mapping[str, t.Any]) -> bool:
    return bool((card.get("mig") or {}).get("current") == "enabled")


def _find_card(
    wanted: int | str, cards: t.Sequence[t.Mapping[str, t.Any]], service: str
) -> tuple[t.Mapping[str, t.Any] | None, Finding | None]:
    if isinstance(wanted, str) and wanted.startswith("MIG-"):
        return None, _mig(f"{wanted} is a MIG device", service)
    for card in cards:
        if wanted in (card["index"], card["uuid"]):
            if _has_mig(card):
                return None, _mig(f"GPU {wanted} is partitioned (MIG)", service)
            return card, None
    present = ", ".join(f"{card['index']} ({card['uuid']})" for card in cards) or "none"
    remedy = "correct gpus: (nvidia-smi -L lists the cards), or look for a card that fell off the bus"
    return None, Finding(
        "plan.gpu_missing",
        ERROR,
        f"GPU {wanted} is not on this host",
        f"one of {present}",
        remedy,
        service,
    )


def _mig(seen: str, service: str) -> Finding:
    return Finding(
        "plan.gpu_mig",
        ERROR,
        seen,
        "whole GPUs for the bare form",
        "name another GPU, or turn MIG off",
        service,
    )


def _shared(card: t.Mapping[str, t.Any], owner: str, service: str) -> Finding:
    if owner == service:
        seen = f"GPU {card['index']} ({card['uuid']}) is named twice"
        return Finding("plan.gpu_shared", ERROR, seen, "each GPU once", "delete its index or its UUID", service)
    seen = f"GPU {card['index']} ({card['uuid']}) is already the GPU of {owner}"
    return Finding(
        "plan.gpu_shared",
        ERROR,
        seen,
        "one service per GPU",
        "give one of the two another GPU",
        service,
    )


def _too_few(
    service: str,
    count: int,
    free: t.Sequence[t.Any],
    cards: t.Sequence[t.Any],
    owner: t.Mapping[str, str],
) -> Finding:
    held = ", ".join(f"{card['index']} by {owner[card['uuid']]}" for card in cards if card["uuid"] in owner)
    seen = f"{len(free)} of {len(cards)} GPUs are free" + (f" (held: {held})" if held else "")
    remedy = "lower gpus:, or move a service to another host"
    return Finding("plan.gpu_short", ERROR, seen, f"{count} free GPUs", remedy, service)


def _cpu_beside_gpus(service: str) -> Finding:
    remedy = "give the service a GPU, or put it on a host with vllm_device: cpu"
    return Finding(
        "plan.cpu_beside_gpus",
        ERROR,
        "gpus is 0 on a host with GPUs",
        "one engine per host",
        remedy,
        service,
    )


def tensor_parallel_size(
    service: Service, gpus: int, device: str, arguments: t.Mapping[str, t.Any]
) -> tuple[int, list[Finding]]:
    """GPUs = tensor x pipeline x data parallel (vLLM's world size); tensor parallel follows if unset.

    ``arguments`` are all flags of the service, the fleet's defaults included.
    """
    if device == "cpu":
        return service.tensor_parallel_size or 1, []
    others = _count(arguments, "pipeline-parallel-size") * _count(arguments, "data-parallel-size")
    size = service.tensor_parallel_size or max(1, gpus // others)
    if gpus and size * others != gpus:
        seen = f"tensor parallel {size} x pipeline and data parallel {others} on {gpus} GPUs"
        return size, [
            Finding(
                "plan.parallelism", ERROR, seen, "a product equal to the number of GPUs",
                "correct tensor_parallel_size: or gpus:", service.name,
            )
        ]  # fmt: skip
    return size, []


def _count(arguments: t.Mapping[str, t.Any], name: str) -> int:
    value = str(arguments.get(name, 1))
    return max(1, int(value)) if value.isdecimal() else 1


def bind_address(service: Service, settings: Settings) -> str:
    return service.bind_address or settings.bind_address


def _clash(first: str, second: str) -> bool:
    """Whether two listeners on one port meet. ``::`` takes IPv4 too (Linux's default), ``0.0.0.0`` takes no IPv6."""
    pair = {LOOPBACK if address == "localhost" else _canonical(address) for address in (first, second)}
    if len(pair) == 1 or pair & {"", "::"}:
        return True
    return "0.0.0.0" in pair and not any(_is_ipv6(address) for address in pair)


def _canonical(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


def check_ports(services: t.Sequence[Service], settings: Settings, facts: Facts) -> list[Finding]:
    """One service per address and port, and no port that something else on the host already listens on."""
    findings: list[Finding] = []
    for position, service in enumerate(services):
        address = bind_address(service, settings)
        for other in services[:position]:
            if other.port == service.port and _clash(address, bind_address(other, settings)):
                seen = f"port {service.port} is already the port of {other.name}"
                remedy = f"set another port: for {service.name}"
                findings.append(
                    Finding(
                        "plan.port_shared",
                        ERROR,
                        seen,
                        "one service per port and address",
                        remedy,
                        service.name,
                    )
                )
        findings += _foreign_listeners(service, address, facts)
    return findings


def _foreign_listeners(service: Service, address: str, facts: Facts) -> list[Finding]:
    for listener in facts.get("listening") or []:
        # A service of ours holds its own port, and a port that services swap is free once they have been stopped.
        if listener["port"] != service.port or listener.get("service") or not _clash(address, listener["address"]):
            continue
        who = f"{listener.get('process') or 'a process of another user'}"
        pid = f" (pid {listener['pid']})" if listener.get("pid") else ""
        seen = f"port {service.port} is in use by {who}{pid} on {listener['address']}"
        remedy = f"stop it, or set another port: for {service.name}"
        return [
            Finding(
                "plan.port_taken",
                ERROR,
                seen,
                f"port {service.port} free on {address or 'all'}",
                remedy,
                service.name,
            )
        ]
    return []


def artifact_path(service: Service, settings: Settings) -> str:
    return service.path or f"{settings.model_root.rstrip('/')}/{service.model.split('/')[1]}"


def plan_artifacts(services: t.Sequence[Service], settings: Settings) -> tuple[list[dict[str, t.Any]], list[Finding]]:
    """The distinct model artifacts; services may share one, but one path never holds two."""
    findings: list[Finding] = []
    artifacts: dict[str, dict[str, t.Any]] = {}
    for service in services:
        wanted = {
            "model": service.model,
            "revision": service.revision,
            "include": list(service.include),
            "exclude": list(service.exclude),
        }
        path = artifact_path(service, settings)
        known = artifacts.setdefault(path, {**wanted, "path": path, "services": []})
        if any(known[key] != value for key, value in wanted.items()):
            seen = f"{path} would hold {known['model']}@{known['revision']} and {service.model}@{service.revision}"
            remedy = f"set path: for {service.name}"
            findings.append(
                Finding(
                    "plan.path_shared",
                    ERROR,
                    seen,
                    "one artifact (with the same patterns) per path",
                    remedy,
                    service.name,
                )
            )
            continue
        known["services"].append(service.name)
    return list(artifacts.values()), findings


def merged_arguments(defaults: t.Mapping[str, t.Any], arguments: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """Defaults that ``arguments`` does not decide, in either spelling (``x`` or ``no-x``)."""
    decided = {name.removeprefix("no-") for name in arguments}
    return {name: value for name, value in defaults.items() if name.removeprefix("no-") not in decided}


def default_arguments(settings: Settings, device: str) -> dict[str, t.Any]:
    """The fleet's flags for a service; those for the CPU engine decide over those for all."""
    special = settings.cpu_args if device == "cpu" else {}
    return {**merged_arguments(settings.default_args, special), **special}


def all_arguments(service: Service, settings: Settings, device: str) -> dict[str, t.Any]:
    return {**merged_arguments(default_arguments(settings, device), service.args), **service.args}


def default_probes(service: Service) -> list[dict[str, t.Any]] | None:
    """``None`` leaves the choice to the probe, which knows the model's architecture and the engine's routes."""
    return None if service.probes is None else [probe.as_dict() for probe in service.probes]


def probe_host(address: str) -> str:
    """Where the host itself reaches a service that listens on ``address``."""
    if address in WILDCARDS:
        return "[::1]" if address == "::" else LOOPBACK
    return f"[{address}]" if _is_ipv6(address) else address


def _is_ipv6(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).version == 6
    except ValueError:
        return False


def resolve_service(
    service: Service,
    settings: Settings,
    engine: t.Mapping[str, t.Any],
    device: str,
    gpus: t.Sequence[t.Mapping[str, t.Any]],
    tensor_parallel: int,
    contained: bool = False,
) -> dict[str, t.Any]:
    """One service of the plan: what the inventory declared, and what the collection adds to run it safely.

    ``arguments`` is what follows ``vllm serve``. In a container the model lies at a path and the engine listens on a
    port of its own; Docker puts both where the service wants them.
    """
    path = artifact_path(service, settings)
    served = service.served_model_name or service.model.split("/")[1]
    address = bind_address(service, settings)
    drain = settings.drain_seconds if service.drain_seconds is None else service.drain_seconds
    model = _compose.MODEL_PATH if contained else path
    declared = [] if contained else [["--port", str(service.port)]]
    declared.append(["--served-model-name", served])
    if tensor_parallel > 1:
        declared.append(["--tensor-parallel-size", str(tensor_parallel)])
    if service.max_model_len is not None:
        declared.append(["--max-model-len", str(service.max_model_len)])
    declared += _render.flags(service.args)
    added: dict[str, t.Any] = {"host": address} if address else {}
    if contained:
        added = {"host": "0.0.0.0", "port": _compose.PORT}
    added["shutdown-timeout"] = drain
    added.update(merged_arguments(default_arguments(settings, device), service.args))
    operational = _render.flags(added)
    visible = {"CUDA_VISIBLE_DEVICES": ",".join(str(gpu["index"]) for gpu in gpus)} if gpus and not contained else {}
    arguments = [model, *_flat(declared), *_flat(operational)]
    return {
        "name": service.name,
        "device": device,
        "model": service.model,
        "revision": service.revision,
        "path": path,
        "served_model_name": served,
        "port": service.port,
        "bind_address": address,
        "url": f"http://{probe_host(address)}:{service.port}",
        "public_url": f"http://{_public_host(address, settings)}:{service.port}",
        "gpus": [dict(gpu) for gpu in gpus],
        "tensor_parallel_size": tensor_parallel,
        "command": [engine["executable"], "serve", *arguments],
        "arguments": arguments,
        "declared": _flat(declared),
        "operational": _flat(operational),
        "shell": _render.shell_command(visible, ["vllm", "serve", model], declared),
        "environment": service_environment(service, settings, device, visible, engine_paths(service, settings, engine)),
        "drain_seconds": drain,
        "stop_timeout": drain + STOP_MARGIN_SECONDS,
        "ready_timeout": service.ready_timeout or settings.ready_timeout,
        "secrets": list(service.secret_names),
        "probes": default_probes(service),
        **({"image": service.image or settings.image} if contained else {}),
    }


def contain(resolved: t.Mapping[str, t.Any], service: Service, settings: Settings) -> dict[str, t.Any]:
    """A resolved service with the container that runs it, as the Compose file has it; the image is not pinned yet."""
    choices = settings.container(service.shm_size)
    container = _compose.definition(resolved, resolved["image"], settings.root, choices)
    return {**resolved, "container": container}


def _public_host(address: str, settings: Settings) -> str:
    if address in WILDCARDS and settings.address:
        return f"[{settings.address}]" if _is_ipv6(settings.address) else settings.address
    return probe_host(address)


def engine_paths(service: Service, settings: Settings, engine: t.Mapping[str, t.Any]) -> dict[str, str]:
    """Where the engine finds its home, caches and tools."""
    if not engine["path"] and "image" in engine:
        # No account need exist for the uid inside the image, and torch asks for a name.
        return {"HOME": _compose.HOME, "USER": "vllm", "VLLM_CACHE_ROOT": f"{_compose.HOME}/.cache/vllm"}
    state = f"{settings.root}/services/{service.name}/state"
    return {
        "HOME": state,
        "XDG_CACHE_HOME": f"{state}/cache",
        "VLLM_CACHE_ROOT": f"{state}/cache/vllm",
        # The engine looks for its own tools (ninja, the compiler) beside its Python.
        "PATH": f"{engine['path']}/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }


def service_environment(
    service: Service,
    settings: Settings,
    device: str,
    visible: t.Mapping[str, str],
    paths: t.Mapping[str, str],
) -> dict[str, str]:
    """Sorted, so that a plan reads the same whatever order an inventory was written in. The API key is never in it."""
    environment: dict[str, t.Any] = {**paths, **settings.default_environment, **visible}
    if device == "cuda":
        # Without it CUDA numbers cards by speed, and index 0 need not be nvidia-smi's 0.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    else:
        environment.update(settings.cpu_environment)
    environment.update(service.environment)
    return {name: str(value) for name, value in sorted(environment.items())}


def _flat(options: t.Sequence[t.Sequence[str]]) -> list[str]:
    return [word for option in options for word in option]
