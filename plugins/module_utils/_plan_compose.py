# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the plan says about containers: images, and whether Docker on the host can run them. Pure functions, no I/O."""

from __future__ import annotations

import ipaddress
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import Container
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._gpu_cards import has_mig, usable_cards
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import SIZE, Service

Facts = t.Mapping[str, t.Any]

# Older ones miss long forms that the Compose file uses, or read them in another way; not tried.
OLDEST_COMPOSE = (2, 20)
PREREQUISITES = "run playbooks/prerequisites.yml"
USER = re.compile(r"\d{1,9}:\d{1,9}")
DOCKER_CURE = re.compile(r"\. (?:Start it: |Run with become: ).*")

TAG_VERSION = re.compile(r":v?(\d+\.\d+\.\d+)")


def image_version(image: str) -> str:
    """vLLM's version as an image's tag tells it (``v0.33.0``); empty where it does not, or the build is for CUDA 12."""
    match = TAG_VERSION.search(image)
    return match[1] if match and "cu12" not in image else ""


def check_docker(facts: Facts, device: str, gpu_driver: str) -> list[Finding]:
    """Docker, Compose and, for GPUs, the container toolkit; unknown facts are held against no host."""
    container = _mapping(_mapping(facts.get("nvidia")).get("container"))
    found = _check_engine(_mapping(container.get("docker")))
    if found:
        return found
    findings = _check_compose(_mapping(container.get("compose")))
    if device == "cuda":
        findings += _check_toolkit(container, gpu_driver)
        findings += _check_cdi(_mapping(container.get("cdi")), facts) if gpu_driver == "cdi" else []
    return findings


def _check_engine(docker: t.Mapping[str, t.Any]) -> list[Finding]:
    def error(code: str, seen: str, expected: str, remedy: str) -> list[Finding]:
        return [Finding(code, ERROR, seen, expected, remedy)]

    if docker.get("podman"):
        seen, remedy = "the command docker is Podman's", f"{PREREQUISITES}, or install Docker Engine instead"
        return error("plan.podman", seen, "Docker Engine", remedy)
    if not docker.get("installed"):
        seen = "Docker is not installed"
        remedy = f"{PREREQUISITES}, or set vllm_image: '' to run vLLM without containers"
        return error("plan.no_docker", seen, "Docker Engine with Compose", remedy)
    if docker.get("snap"):
        seen = "Docker is a snap, which the container toolkit can not work with"
        remedy = f"snap remove docker, then {PREREQUISITES}"
        return error("plan.docker_snap", seen, "Docker from a package", remedy)
    if docker.get("running") is not True:
        # The fact has a sentence on what to do, as a finding has.
        seen = DOCKER_CURE.sub("", str(docker.get("error") or "the Docker daemon gave no answer")).rstrip(".")
        remedy = "start it (systemctl start docker), and deploy as root (become: true)"
        return error("plan.docker_down", seen, "a running Docker daemon that this user may use", remedy)
    return []


def _check_compose(compose: t.Mapping[str, t.Any]) -> list[Finding]:
    expected = f"Docker Compose {'.'.join(map(str, OLDEST_COMPOSE))} or newer, as a plugin of docker"
    if not compose.get("installed") or compose.get("plugin") is False:
        seen = "docker compose is missing"
        if compose.get("installed"):
            seen = f"{compose.get('path')} is stand-alone, and docker has no compose plugin"
        return [Finding("plan.no_compose", ERROR, seen, expected, PREREQUISITES)]
    numbers = re.findall(r"\d+", str(compose.get("version") or ""))[:2]
    if len(numbers) == 2 and tuple(map(int, numbers)) < OLDEST_COMPOSE:
        seen = f"Docker Compose is {compose['version']}"
        return [Finding("plan.compose_old", ERROR, seen, expected, PREREQUISITES)]
    return []


def _check_toolkit(container: t.Mapping[str, t.Any], gpu_driver: str) -> list[Finding]:
    toolkit = container.get("toolkit") or {}
    needed = "runtime_hook" if gpu_driver == "nvidia" else "nvidia_ctk"
    if toolkit.get(needed) or not toolkit:
        return []
    seen = "the NVIDIA container toolkit is not installed" if not toolkit.get("installed") else f"it has no {needed}"
    expected = "nvidia-container-toolkit, which hands GPUs to containers"
    return [Finding("plan.no_toolkit", ERROR, seen, expected, PREREQUISITES)]


def _check_cdi(cdi: t.Mapping[str, t.Any], facts: Facts) -> list[Finding]:
    # What is below /run is gone after a reboot, unless the toolkit's own service (from 1.18 on) makes it again.
    generate = (
        "systemctl restart nvidia-cdi-refresh; where there is no such unit: "
        "nvidia-ctk cdi generate --output=/etc/cdi/nvidia.yaml"
    )
    if cdi.get("enabled_in_docker") is False:
        remedy = f'{PREREQUISITES}, or add "features": {{"cdi": true}} to /etc/docker/daemon.json'
        return [
            Finding("plan.cdi_off", ERROR, "Docker does not use CDI", "CDI, as vllm_container_gpu_driver asks", remedy)
        ]
    specs = cdi.get("specs")
    if not isinstance(specs, list):
        return []
    named = {str(device) for spec in specs for device in _mapping(spec).get("devices") or []}
    # A partitioned card is named by its parts, and one that does not answer by nothing.
    whole = [card["uuid"] for card in usable_cards(facts.get("gpus")) if not has_mig(card)]
    missing = [uuid for uuid in whole if f"nvidia.com/gpu={uuid}" not in named]
    if missing:
        seen = f"no CDI specification names {', '.join(missing)}"
        return [Finding("plan.cdi_stale", ERROR, seen, "a specification with every GPU of the host", generate)]
    return []


def check_containers(services: t.Sequence[t.Mapping[str, t.Any]], choices: Container) -> list[Finding]:
    """What only a container asks of a service: an image, an IP address, a numeric user, sizes that Docker reads."""
    findings = []
    if not USER.fullmatch(choices.user):
        expected = "numbers uid:gid, such as 2000:0, since files of the host are given to it"
        findings.append(_bad_setting(f"vllm_container_user is {choices.user}", expected, "vllm_container_user"))
    if not SIZE.fullmatch(choices.shm_size):
        seen = f"vllm_container_shm_size is {choices.shm_size}"
        findings.append(_bad_setting(seen, "a size such as 16gb", "vllm_container_shm_size"))
    for service in services:
        name = str(service["name"])
        if not service["image"]:
            remedy = "set vllm_image, for example to vllm/vllm-openai:v0.33.0, or image: on the service"
            findings.append(Finding("plan.no_image", ERROR, "no image is set", "an image of vLLM", remedy, name))
        elif _floats(service["image"]):
            seen = f"the image is {service['image']}"
            remedy = "name a release, such as vllm/vllm-openai:v0.33.0: the flags of vLLM differ between releases"
            findings.append(Finding("plan.image_latest", WARNING, seen, "a tag of a release", remedy, name))
        if not _publishable(str(service["bind_address"])):
            seen = f"it would listen on {service['bind_address']}"
            remedy = "set vllm_bind_address (or bind_address: of the service) to an address of the host"
            findings.append(Finding("plan.bind_name", ERROR, seen, "an IP address, which Docker needs", remedy, name))
    return findings


def check_unused_images(services: t.Sequence[Service]) -> list[Finding]:
    """An image of a service that will not run in a container."""
    return [
        Finding(
            "plan.image_unused",
            WARNING,
            f"image: {service.image} is set, but the services of this host do not run in containers",
            "vllm_image, or vllm_runtime: compose",
            "set vllm_runtime: compose (or auto, with vllm_image), or delete image: from the service",
            service.name,
        )
        for service in services
        if service.image
    ]


def _bad_setting(seen: str, expected: str, variable: str) -> Finding:
    return Finding("plan.bad_setting", ERROR, seen, expected, f"correct {variable}")


def _floats(image: str) -> bool:
    """Whether the image may be another one tomorrow: no tag, or ``latest``, and no digest."""
    name = image.rsplit("/", 1)[-1]
    return "@" not in name and (":" not in name or name.endswith((":latest", ":nightly")))


def _publishable(address: str) -> bool:
    if address in ("", "localhost"):
        return True
    try:
        ipaddress.ip_address(address)
    except ValueError:
        return False
    return True


def plan_images(services: t.Sequence[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    """The distinct images, each with the services that use it and the paths of their models."""
    images: dict[str, dict[str, t.Any]] = {}
    for service in services:
        if service["image"]:
            known = images.setdefault(service["image"], {"image": service["image"], "services": [], "paths": []})
            known["services"].append(service["name"])
            known["paths"] += [service["path"]] if service["path"] not in known["paths"] else []
    return list(images.values())


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}
