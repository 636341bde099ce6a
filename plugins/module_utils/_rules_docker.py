# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about Docker, Compose, the container toolkit and the images. Pure, no I/O.

What keeps a plan from being carried out at all (no Docker, no Compose, a snap, no toolkit) is a finding of the plan.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_compose import image_version
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_driver import image_facts
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    Map,
    cards,
    contained,
    dig,
    docker,
    dotted,
    flag,
    index_of,
    items,
    listed,
    mapping,
    number,
    nvidia,
    on_gpus,
    security_options,
    service_name,
    services,
    setting,
    short_image,
    text,
    texts,
    upgrade,
    users_of,
    version,
    whole,
)

RULES: list[Rule] = []
rule = rules_into(RULES)

# From this release on `driver: nvidia` goes through CDI where there is a specification (moby/moby#50228).
CDI_FIRST = (29, 2)
# From this release on containers get containerd's own soft limit of 1024 open files (Docker Engine 29 release notes).
LOW_NOFILE = (29, 0)
ENOUGH_NOFILE = 4096
OLDEST_ENGINE = (25, 0)
# CVE-2025-23266: a container that takes over the host. Later bulletins of NVIDIA may ask for more.
SAFE_TOOLKIT = (1, 17, 8)
COMPOSE_TRAPS = {
    (2, 32, 0): "it recreates containers whose definition did not change (docker/compose#12383)",
    (2, 32, 3): "it may not tell its version, which is read before each deploy (Docker Compose release notes, 2.32.3)",
}
SLOW_STORAGE = {
    "vfs": "it copies the whole image for each layer and container",
    "devicemapper": "it was removed from Docker 25",
    "aufs": "it was removed from Docker 24",
    "overlay": "it was removed from Docker 24",
}
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
# What lies below /run is gone after a reboot.
CDI_PATH = "/etc/cdi/nvidia.yaml"


def _engine(context: Context) -> tuple[int, ...]:
    return version(docker(context).get("server_version"))


def _runs(context: Context) -> bool:
    """Whether the rule concerns the host: containers, and a Docker that the plan does not refuse anyway."""
    return contained(context) and docker(context).get("installed") is not False


def _silent(context: Context, what: str) -> Unknown:
    reason = text(docker(context).get("error"))
    return Unknown(f"{what} is not told" + (f" ({reason.rstrip('.')})" if reason else ""))


@rule(
    "docker.engine_old", WARNING, "Docker Engine is maintained",
    "Releases before 25.0 get no fixes any more, and know no start_interval, so that a service is seen to be ready "
    "late (Docker Engine 25.0 release notes).",
)  # fmt: skip
def engine_old(context: Context) -> Verdict:
    if not _runs(context):
        return None
    have = _engine(context)
    if not have:
        return _silent(context, "the version of Docker Engine")
    if have >= OLDEST_ENGINE:
        return None
    remedy = f"{upgrade('docker-ce docker-ce-cli containerd.io', context)} (drain the host: containers restart)"
    return [Failure(f"Docker Engine {dotted(have)}", f"{dotted(OLDEST_ENGINE)} or newer", remedy)]


@rule(
    "docker.compose_trap", WARNING, "Docker Compose is not a release with a known fault",
    "Some releases have a fault that a deploy meets (Docker Compose release notes).",
)  # fmt: skip
def compose_trap(context: Context) -> Verdict:
    compose = mapping(dig(nvidia(context), "container", "compose"))
    if not _runs(context) or compose.get("installed") is False:
        return None
    have = version(compose.get("version"))[:3]
    if not have:
        return Unknown("the version of Docker Compose is not told (docker compose version)")
    trap = COMPOSE_TRAPS.get(t.cast("tuple[int, int, int]", have))
    if not trap:
        return None
    remedy = upgrade("docker-compose-plugin", context)
    return [Failure(f"Docker Compose {dotted(have)}: {trap}", "any later release", remedy)]


@rule(
    "docker.nofile", WARNING, "Containers may open enough files",
    "Docker 29.0 lowered the soft limit of containers from 1048576 to 1024 open files: too many open files under "
    "load (Docker Engine 29 release notes; vLLM #7920).",
)  # fmt: skip
def nofile(context: Context) -> Verdict:
    if not _runs(context):
        return None
    bare = [service for service in services(context) if _own_nofile(service) is None]
    low = [service for service in services(context) if (_own_nofile(service) or ENOUGH_NOFILE) < ENOUGH_NOFILE]
    remedy = "set vllm_container_ulimits: {nofile: {soft: 65535, hard: 1048576}, memlock: -1, stack: 67108864}"
    found = [
        Failure(f"its container may open {_own_nofile(service)} files", f"{ENOUGH_NOFILE} or more", remedy,
                service_name(service))
        for service in low
    ]  # fmt: skip
    # What daemon.json sets holds, whatever containerd itself has.
    told = [whole(docker(context).get(key)) for key in ("default_nofile_soft", "containerd_nofile_soft")]
    limit = next((limit for limit in told if limit is not None), None)
    if bare and limit is None:
        if _engine(context) and _engine(context) < LOW_NOFILE:
            return found
        return found or _silent(context, "the default limit of open files")
    if bare and limit is not None and 0 <= limit < ENOUGH_NOFILE:
        seen = f"vllm_container_ulimits sets no nofile, and Docker {dotted(_engine(context))} gives {limit}"
        found.append(Failure(seen, f"{ENOUGH_NOFILE} or more", remedy))
    return found


def _own_nofile(service: Map) -> int | None:
    """The soft limit of open files that the plan gives to a container; None where it leaves it to Docker."""
    limit = dig(service, "container", "ulimits", "nofile")
    soft = whole(mapping(limit).get("soft")) if isinstance(limit, t.Mapping) else whole(limit)
    return ENOUGH_NOFILE if soft == -1 else soft


@rule(
    "docker.cgroup_reload", WARNING, "A systemctl daemon-reload takes no GPU from running containers",
    "With systemd's cgroup driver and no links in /dev/char containers lose their GPUs: Failed to initialize NVML: "
    "Unknown Error (NVIDIA/nvidia-container-toolkit#48).",
)  # fmt: skip
def cgroup_reload(context: Context) -> Verdict:
    if not _runs(context) or not on_gpus(context) or _through_cdi(context):
        return None
    driver, links = text(docker(context).get("cgroup_driver")), flag(docker(context).get("dev_char_links"))
    if not driver:
        return _silent(context, "Docker's cgroup driver")
    if driver != "systemd" or links is True:
        return None
    if links is None:
        return Unknown("whether /dev/char has the links to the NVIDIA devices is not told")
    remedy = (
        "nvidia-ctk system create-dev-char-symlinks --create-all (and its udev rule), or vllm_container_gpu_driver: cdi"
    )
    return [Failure("cgroup driver systemd, and no links to the NVIDIA devices in /dev/char", "the links", remedy)]


@rule(
    "docker.storage_driver", WARNING, "Docker stores images in a way that suits large ones",
    "An image of vLLM has more than 20 GiB: a driver that copies layers fills the disk and takes long (Docker: "
    "Select a storage driver).",
)  # fmt: skip
def storage_driver(context: Context) -> Verdict:
    if not _runs(context):
        return None
    driver = text(docker(context).get("storage_driver"))
    if not driver:
        return _silent(context, "Docker's storage driver")
    if driver not in SLOW_STORAGE:
        return None
    remedy = 'set "storage-driver": "overlay2" in /etc/docker/daemon.json and restart Docker (images are pulled anew)'
    return [Failure(f"storage driver {driver}: {SLOW_STORAGE[driver]}", "overlay2 or overlayfs", remedy)]


@rule(
    "docker.user_namespaces", ERROR, "Containers see the host's user numbers",
    "The files of models and caches belong to the container's uid on the host; with remapped or rootless users "
    "another uid asks for them, and is refused (Docker: userns-remap, rootless mode).",
)  # fmt: skip
def user_namespaces(context: Context) -> Verdict:
    if not _runs(context):
        return None
    rootless, options = flag(docker(context).get("rootless")), security_options(context)
    mapped = [option for option in options or () if option.split(",")[0] in ("name=userns", "name=rootless")]
    if rootless is True or mapped:
        without_root = rootless is True or any(option.startswith("name=rootless") for option in mapped)
        what = "Docker runs without root" if without_root else "Docker remaps users (userns-remap)"
        remedy = "delete userns-remap from /etc/docker/daemon.json, then 'systemctl restart docker'"
        if without_root:
            remedy = "use the system's Docker: 'systemctl enable --now docker', and no DOCKER_HOST in the environment"
        remedy += "; or set vllm_image: '' for the bare form"
        return [Failure(what, "Docker as root, without remapped users", remedy)]
    if options is None:
        return _silent(context, "whether Docker remaps users")
    return None


# ---- GPUs in containers


@rule(
    "docker.toolkit_old", WARNING, "The container toolkit is none that an image can break out of",
    "Before 1.17.8 an image can take over the host (CVE-2025-23266, NVIDIA security bulletin of July 2025).",
)  # fmt: skip
def toolkit_old(context: Context) -> Verdict:
    toolkit = mapping(dig(nvidia(context), "container", "toolkit"))
    if not _runs(context) or not on_gpus(context) or toolkit.get("installed") is False:
        return None
    have = version(toolkit.get("version"))
    if not have:
        return Unknown("the version of the container toolkit is not told (nvidia-ctk --version)")
    if have >= SAFE_TOOLKIT:
        return None
    packages = "nvidia-container-toolkit nvidia-container-toolkit-base libnvidia-container1"
    remedy = f"{upgrade(packages, context)}, then 'systemctl restart docker'"
    return [Failure(f"NVIDIA Container Toolkit {dotted(have)}", f"{dotted(SAFE_TOOLKIT)} or newer", remedy)]


@rule(
    "docker.toolkit_unregistered", WARNING, "Docker knows the NVIDIA runtime",
    "Docker looks for the toolkit when it starts; not registered usually means not restarted since: could not select "
    "device driver nvidia with capabilities [[gpu]] (NVIDIA Container Toolkit: Troubleshooting).",
)  # fmt: skip
def toolkit_unregistered(context: Context) -> Verdict:
    if not _runs(context) or not on_gpus(context) or dig(nvidia(context), "container", "toolkit", "installed") is False:
        return None
    runtimes = docker(context).get("runtimes")
    if not isinstance(runtimes, t.Mapping) or not runtimes:
        return _silent(context, "Docker's list of runtimes")
    if "nvidia" in runtimes or _through_cdi(context):
        return None
    remedy = "nvidia-ctk runtime configure --runtime=docker && systemctl restart docker"
    return [Failure(f"Docker's runtimes are {listed(sorted(map(str, runtimes)))}", "nvidia among them", remedy)]


def _gpu_driver(context: Context) -> str:
    """``nvidia`` or ``cdi``: what the plan's containers ask for, else what the settings say."""
    for service in services(context):
        for device in items(dig(service, "container", "deploy", "resources", "reservations", "devices")):
            if text(device.get("driver")):
                return text(device.get("driver"))
    return text(setting(context, "vllm_container_gpu_driver")) or "nvidia"


def _specs(context: Context) -> list[Map]:
    """The specifications that count: of two directories the later one wins, /run over /etc."""
    specs = [
        spec
        for spec in items(dig(nvidia(context), "container", "cdi", "specs"))
        if text(spec.get("kind")) in ("nvidia.com/gpu", "")
    ]
    volatile = [spec for spec in specs if text(spec.get("path")).startswith(("/run/", "/var/run/"))]
    return volatile or specs


def _through_cdi(context: Context) -> bool:
    """Whether Docker hands GPUs to our containers through CDI."""
    return _gpu_driver(context) == "cdi" or (_engine(context) >= CDI_FIRST and bool(_specs(context)))


def _generate(path: str) -> str:
    """The toolkit's own service makes it again at each boot, from 1.18 on; a file is made in the place of the old."""
    return f"systemctl restart nvidia-cdi-refresh; where there is no such unit: nvidia-ctk cdi generate --output={path}"


@rule(
    "docker.cdi_stale", ERROR, "The CDI specification was made for this driver",
    "It names files of the driver by version: after an upgrade containers do not start, or get the wrong libraries "
    "(NVIDIA Container Toolkit: CDI; moby/moby#51942).",
)  # fmt: skip
def cdi_stale(context: Context) -> Verdict:
    if not _runs(context) or not on_gpus(context):
        return None
    specs = _specs(context)
    if not specs:
        if isinstance(dig(nvidia(context), "container", "cdi", "specs"), list):
            return None
        return Unknown("the CDI specifications could not be read")
    driver = version(nvidia(context).get("driver_version"))
    found, silent = [], False
    # Where Docker does not use it yet, it is what the next upgrade of Docker will use.
    severity = ERROR if _through_cdi(context) else WARNING
    for spec in specs:
        path, made_for = text(spec.get("path")), version(spec.get("driver_version"))
        length = min(len(made_for), len(driver))
        if length and made_for[:length] != driver[:length]:
            seen = (
                f"{path} was made for driver {text(spec.get('driver_version'))}, and the host runs "
                f"{text(nvidia(context).get('driver_version'))}"
            )
            found.append(Failure(seen, "a specification of this driver", _generate(path), severity=severity))
            continue
        made, installed = number(spec.get("mtime")), number(nvidia(context).get("driver_installed_at"))
        if not length and made is not None and installed is not None and made < installed:
            seen = f"{path} is older than the driver"
            found.append(Failure(seen, "a specification made after the driver", _generate(path), severity=severity))
        silent = silent or (not length and (made is None or installed is None))
    return Unknown("what driver the CDI specification was made for is not told") if silent and not found else found


@rule(
    "docker.cdi_missing", ERROR, "The CDI specification names each GPU of the plan",
    "From 29.2 on Docker hands out GPUs through CDI where it can: a card that the specification lacks is an "
    "unresolvable CDI device (moby/moby#50228).",
)  # fmt: skip
def cdi_missing(context: Context) -> Verdict:
    # With the driver cdi it is a finding of the plan.
    if not _runs(context) or not on_gpus(context) or _gpu_driver(context) == "cdi":
        return None
    if not _engine(context):
        return _silent(context, "the version of Docker Engine")
    if _engine(context) < CDI_FIRST:
        return None
    if not isinstance(dig(nvidia(context), "container", "cdi", "specs"), list):
        return Unknown("the CDI specifications could not be read")
    named = {device for spec in _specs(context) for device in texts(spec.get("devices"))}
    lost = [
        card
        for card in cards(context)
        if users_of(card, context)
        and not {f"nvidia.com/gpu={key}" for key in (text(card.get("uuid")), index_of(card))} & named
    ]
    if not lost:
        return None
    hook = text(dig(nvidia(context), "container", "toolkit", "runtime_hook"))
    # Without any specification Docker falls back to the hook, where there is one.
    severity = INFO if hook and not _specs(context) else ERROR
    where = next((text(spec.get("path")) for spec in _specs(context)), CDI_PATH)
    seen = f"no CDI specification names GPU {listed(index_of(card) for card in lost)}"
    return [Failure(seen, "each GPU of the plan in it", _generate(where), severity=severity)]


# ---- images


@rule(
    "docker.image_architecture", ERROR, "Each image is for the host's processor",
    "An image for another architecture ends with exec format error.",
)  # fmt: skip
def image_architecture(context: Context) -> Verdict:
    if not _runs(context):
        return None
    machine = MACHINES.get(text(mapping(context.facts).get("machine")))
    found, silent = [], []
    for service in services(context):
        architecture = text(mapping(image_facts(service, context)).get("architecture"))
        if not architecture or not machine:
            silent.append(text(service.get("image")))
        elif architecture != machine:
            remedy = f"choose an image for {machine} in vllm_image, or pull it with --platform linux/{machine}"
            seen = f"{short_image(service)} is for {architecture}, and the host is {machine}"
            found.append(Failure(seen, machine, remedy, service_name(service)))
    if silent and not found:
        return Unknown(f"the architecture of {listed(sorted(set(silent)))} or of the host is not told")
    return found


@rule(
    "docker.image_absent", ERROR, "Images that are not pulled are there",
    "With vllm_image_pull: never an image must have come with a bundle or a build.",
)  # fmt: skip
def image_absent(context: Context) -> Verdict:
    if not _runs(context) or setting(context, "vllm_image_pull") != "never":
        return None
    images = dig(nvidia(context), "container", "images")
    found, silent = [], []
    for service in services(context):
        image = text(service.get("image"))
        present = flag(mapping(mapping(images).get(image)).get("present"))
        if present is None:
            silent.append(image)
        elif not present:
            remedy = f"vllm_image_pull: missing, or 'docker load' it (docker image inspect {image})"
            found.append(
                Failure(
                    f"{short_image(service)} is not on the host, and is not pulled",
                    "the image",
                    remedy,
                    service_name(service),
                )
            )
    if silent and not found:
        return Unknown(f"whether {listed(sorted(set(silent)))} is there is not told")
    return found


@rule(
    "docker.image_version", WARNING, "Each image has the vLLM that its tag says",
    "Flags are checked, and memory is reckoned, for the version in the tag; a build with another one may refuse them.",
)  # fmt: skip
def image_other_version(context: Context) -> Verdict:
    if not _runs(context):
        return None
    found, silent = [], []
    for service in services(context):
        image = text(service.get("image"))
        tagged, inside = (
            version(image_version(image)),
            version(mapping(image_facts(service, context)).get("vllm_version")),
        )
        if tagged and not inside:
            silent.append(image)
        elif tagged and inside and tagged[:3] != inside[:3]:
            remedy = "name the image after its version, or correct vllm_image (docker image inspect tells its labels)"
            seen = f"{short_image(service)} has vLLM {dotted(inside)}"
            found.append(Failure(seen, f"vLLM {dotted(tagged)}", remedy, service_name(service)))
    if silent and not found:
        return Unknown(f"the vLLM version in {listed(sorted(set(silent)))} is not told")
    return found


@rule(
    "docker.memlock", INFO, "Containers may lock memory",
    "Pinned and RDMA buffers need locked memory; with a limit NCCL goes by slower ways or fails (NCCL: "
    "Troubleshooting).",
)  # fmt: skip
def memlock(context: Context) -> Verdict:
    if not _runs(context) or not on_gpus(context):
        return None
    found = []
    for service in services(context):
        container = service.get("container")
        if len(items(service.get("gpus"))) < 2:
            continue
        if not isinstance(container, t.Mapping):
            return Unknown(f"the container of {service_name(service)} is not rendered")
        limit = dig(container, "ulimits", "memlock")
        limit = mapping(limit).get("soft") if isinstance(limit, t.Mapping) else limit
        if whole(limit) != -1:
            remedy = "set memlock: -1 in vllm_container_ulimits"
            seen = f"memlock is {'not set' if limit is None else limit}"
            found.append(Failure(seen, "-1 (unlimited)", remedy, service_name(service)))
    return found
