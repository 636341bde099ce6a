# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The plan: what a host should run, resolved from inventory and facts. Pure functions, no I/O, on the controller."""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose, _render
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, Finding, errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_compose import (
    check_containers,
    check_docker,
    check_unused_images,
    plan_images,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_gpus import (
    assign_gpus,
    recorded_pins,
    tensor_parallel_size,
    visible_devices,
    wish_data,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_host import (
    check_engine_host,
    choose_device,
    choose_runtime,
    plan_engine,
    plan_image_engine,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_memory import (
    doubt_count,
    known_models,
    models_of,
    reckon,
    with_counts,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_ports import (
    bind_address,
    check_ports,
    probe_host,
    public_host,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_release import check_release, release_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_safety import check_safety
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_settings import (
    COMPOSE,
    Facts,
    Settings,
    check_settings,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_skip import without_skipped
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import Service, parse_services

__all__ = ["Settings", "make_plan", "plan_artifacts"]

VISIBLE = "CUDA_VISIBLE_DEVICES"
# How long a stop may take beyond the drain: the engine frees its GPUs and its workers leave.
STOP_MARGIN_SECONDS = 30


def make_plan(raw_services: t.Any, settings: Settings, facts: Facts) -> dict[str, t.Any]:
    """Resolve everything one host should run.

    ``facts`` is what the module ``vllm_host_info`` returned, with what is known of the models among them. The result is
    plain data: ``device``, ``runtime``, ``engine``, ``services``, ``artifacts``, ``images``, ``models``, ``findings``
    and ``skipped``, the codes that were turned off. With an error among the findings nothing may be changed on the
    host.
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
    arguments = {service.name: all_arguments(service, settings, device) for service in services}
    models = models_of(facts)
    gpus: dict[str, list[dict[str, t.Any]]] = {}
    wishes = {service.name: wish_data(service.gpus) for service in services}
    pins = recorded_pins(facts)
    cards = facts.get("gpus") or []
    # Without any card there is one finding, not one for each service.
    if device == "cuda" and cards:
        counted = with_counts(services, arguments, models, cards, pins)
        gpus, found = assign_gpus(
            counted,
            cards,
            topology_of(facts),
            pins,
            repin=settings.repin,
            contained=contained,
            flags=arguments,
        )
        findings += found
    findings += check_ports(services, settings, facts)
    findings += check_release(services, settings, engine, device, contained, facts)
    findings += check_safety(services, settings, device, models)
    artifacts, found = plan_artifacts(services, settings)
    findings += found
    resolved = []
    for service in services:
        mine = gpus.get(service.name, [])
        flags = arguments[service.name]
        tensor_parallel, found = tensor_parallel_size(service, len(mine), device, flags)
        findings += found
        release = release_of(service, settings, engine, contained, facts)
        entry = resolve_service(service, settings, engine, device, mine, tensor_parallel, contained, release)
        memory, found = reckon(service, flags, models, mine, tensor_parallel, entry["environment"])
        findings += doubt_count(found, service, flags, pins)
        resolved.append({**entry, "wish": wishes[service.name], "memory": memory})
    findings += check_containers(resolved, settings.container()) if contained else check_unused_images(services)
    # What can not be rendered has an error among the findings, and nothing is changed then.
    if contained and not errors(findings):
        resolved = [contain(item, service, settings) for item, service in zip(resolved, services)]
    findings, skipped = without_skipped(findings, settings.skip)
    return {
        "device": device,
        "runtime": runtime,
        "root": settings.root,
        "engine": engine,
        "services": resolved,
        "artifacts": artifacts,
        "images": plan_images(resolved) if contained else [],
        "models": known_models(services, models),
        "findings": [finding.as_dict() for finding in findings],
        "errors": len(errors(findings)),
        "skipped": skipped,
    }


def topology_of(facts: Facts) -> t.Any:
    nvidia = facts.get("nvidia")
    return nvidia.get("topology") if isinstance(nvidia, t.Mapping) else None


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


def resolve_service(
    service: Service,
    settings: Settings,
    engine: t.Mapping[str, t.Any],
    device: str,
    gpus: t.Sequence[t.Mapping[str, t.Any]],
    tensor_parallel: int,
    contained: bool = False,
    release: str = "",
) -> dict[str, t.Any]:
    """One service of the plan: what the inventory declared, and what the collection adds to run it safely.

    ``arguments`` is what follows ``vllm serve``. In a container the model lies at a path and the engine listens on a
    port of its own; Docker puts both where the service wants them. ``shell`` is what a person would type today, with
    today's indices; ``environment`` is sorted, so that a plan reads the same however an inventory was written.
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
    mine = [] if contained else gpus
    typed = {VISIBLE: ",".join(str(gpu["index"]) for gpu in mine)} if mine else {}
    environment = service_environment(service, settings, device, engine_paths(service, settings, engine))
    if mine:
        environment[VISIBLE] = visible_devices(mine, release, environment)
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
        "public_url": f"http://{public_host(address, settings)}:{service.port}",
        "gpus": [dict(gpu) for gpu in gpus],
        "tensor_parallel_size": tensor_parallel,
        "command": [engine["executable"], "serve", *arguments],
        "arguments": arguments,
        "declared": _flat(declared),
        "operational": _flat(operational),
        "shell": _render.shell_command(typed, ["vllm", "serve", model], declared),
        "environment": dict(sorted(environment.items())),
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
    paths: t.Mapping[str, str],
) -> dict[str, str]:
    """All but the cards. The API key is never in it."""
    environment: dict[str, t.Any] = {**paths, **settings.default_environment}
    if device == "cuda":
        # Without it CUDA numbers cards by speed, and index 0 need not be nvidia-smi's 0.
        environment["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"
    else:
        environment.update(settings.cpu_environment)
    environment.update(service.environment)
    return {name: str(value) for name, value in environment.items()}


def _flat(options: t.Sequence[t.Sequence[str]]) -> list[str]:
    return [word for option in options for word in option]
