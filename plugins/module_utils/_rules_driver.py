# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about the NVIDIA driver: loaded, of one version, new enough for the images. Pure, no I/O."""

from __future__ import annotations

import calendar
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    Map,
    cards,
    cards_of,
    contained,
    dig,
    dotted,
    flag,
    hold,
    install_driver,
    install_fabric_manager,
    is_data_centre,
    label,
    listed,
    mapping,
    number,
    nvidia,
    of_cards,
    on_gpus,
    service_name,
    services,
    short_image,
    text,
    users_of,
    version,
    whole,
)

RULES: list[Rule] = []
rule = rules_into(RULES)

# The oldest driver branch that runs each major version of CUDA (CUDA Compatibility, table 1: minor version
# compatibility, https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html).
OLDEST_BRANCH = {11: 450, 12: 525, 13: 580}
# Long-term and production branches with their last month (NVIDIA Data Center Drivers, table 2,
# https://docs.nvidia.com/datacenter/tesla/drivers/); what is not in it and older than the newest has ended.
BRANCHES = {535: (2026, 6), 570: (2026, 2), 580: (2028, 6), 595: (2027, 3), 610: (2026, 8), 620: (2029, 9)}
ADVISED = 580
# The lowest compute capability that a major version of CUDA still builds for, and that vLLM is built for.
LOWEST_CAPABILITY = {11: (7, 0), 12: (7, 0), 13: (7, 5)}
# The CUDA version that first knows a generation of GPUs.
FIRST_CUDA = (
    ((12, 0), (12, 8)),
    ((11, 0), (13, 0)),
    ((10, 3), (12, 9)),
    ((10, 0), (12, 8)),
    ((8, 9), (11, 8)),
)
COMPATIBILITY = "VLLM_ENABLE_CUDA_COMPATIBILITY"
# Reasons without a fault: a host that simply has no GPU, which the plan speaks of.
NO_FAULT = ("", "nvidia.no_gpu")


def branch(context: Context) -> int | None:
    numbers = version(nvidia(context).get("driver_version"))
    return numbers[0] if numbers else None


def image_facts(service: Map, context: Context) -> Map | None:
    """What the host knows of a service's image; None where the image is not there."""
    images = mapping(dig(nvidia(context), "container", "images"))
    facts = images.get(text(service.get("image")))
    return facts if isinstance(facts, t.Mapping) and facts.get("present") is not False else None


def image_cuda(service: Map, context: Context) -> tuple[int, ...]:
    """The CUDA version that an image was built with: what its environment says, or what it asks of the driver."""
    facts = mapping(image_facts(service, context))
    found = version(facts.get("cuda_version"))
    if found:
        return found[:2]
    asked = re.search(r"\bcuda>=(\d{1,3}\.\d{1,3})", text(facts.get("require_cuda")))
    return version(asked[1]) if asked else ()


Look = t.Callable[[Map, "tuple[int, ...]"], "Failure | None"]


def of_images(context: Context, look: Look) -> Verdict:
    """Look at each service in a container with the CUDA version of its image."""
    if not on_gpus(context) or not contained(context):
        return None
    found, silent = [], []
    for service in services(context):
        cuda = image_cuda(service, context)
        failure = look(service, cuda) if cuda else None
        if failure:
            found.append(failure)
        if not cuda:
            silent.append(text(service.get("image")) or service_name(service))
    if silent and not found:
        return Unknown(
            f"the CUDA version of {listed(sorted(set(silent)))} is not told (the image may not be there yet)"
        )
    return found


@rule(
    "driver.unusable", ERROR, "The NVIDIA driver works",
    "Without a working driver no engine starts, and what helps differs from cause to cause.",
)  # fmt: skip
def unusable(context: Context) -> Verdict:
    if not on_gpus(context):
        return None
    facts = nvidia(context)
    if not facts:
        return Unknown("nothing of the driver is told")
    code = text(facts.get("reason_code"))
    if code in NO_FAULT or code == "nvidia.version_mismatch":
        return None
    seen = text(facts.get("reason")).rstrip(".") or code
    # A driver that lists all cards of the plan works for them, whatever ails the rest.
    severity = WARNING if any(users_of(card, context) for card in cards(context)) else ERROR
    remedy = text(facts.get("remedy")) or "run 'nvidia-smi' on the host as root and read 'dmesg | grep -i nvrm'"
    return [Failure(f"{seen} ({code})", "a driver that lists the GPUs", remedy, severity=severity)]


def _agree(module: tuple[int, ...], library: tuple[int, ...]) -> bool:
    """As far as both are given; NVML puts its own major version in front: 13.580.95.05 is of driver 580.95.05."""
    return any(len(found) > 0 and module[: len(found)] == found[: len(module)] for found in (library, library[1:]))


@rule(
    "driver.mismatch", ERROR, "The loaded kernel module and the driver's library have one version",
    "After an upgrade under a running module nvidia-smi and every new engine fail (Driver/library version mismatch).",
)  # fmt: skip
def mismatch(context: Context) -> Verdict:
    if not on_gpus(context):
        return None
    facts = nvidia(context)
    told, module, library = (
        facts.get("library_version_mismatch"),
        text(facts.get("kernel_module_version")),
        text(facts.get("library_version")),
    )
    if told is not True and (not version(module) or not version(library)):
        return None if told is False else Unknown("the versions of the kernel module and of the library are not told")
    if told is not True and _agree(version(module), version(library)):
        return None
    seen = f"kernel module {module or '(unknown)'}, library {library or '(unknown)'}"
    remedy = (
        "stop the services and nvidia-persistenced (systemctl stop), then 'modprobe -r nvidia_uvm nvidia_drm "
        "nvidia_modeset nvidia && modprobe nvidia' or reboot; then hold the packages: "
        + hold(("nvidia-*", "libnvidia-*"), context)
    )
    return [Failure(seen, "one version", remedy)]


@rule(
    "driver.cuda", ERROR, "The driver runs the CUDA version of each image",
    "CUDA 13 needs branch R580, 12 needs R525 (NVIDIA CUDA Compatibility); the container toolkit no longer refuses "
    "such an image, so that the engine fails later: driver too old.",
)  # fmt: skip
def cuda(context: Context) -> Verdict:
    have = branch(context)
    if on_gpus(context) and contained(context) and services(context) and have is None:
        return Unknown("the driver's version is not told")

    def look(service: Map, wanted: tuple[int, ...]) -> Failure | None:
        oldest = OLDEST_BRANCH.get(wanted[0])
        if oldest is None or have is None or have >= oldest:
            return None
        able = [card for card in cards_of(service, context) if is_data_centre(card)]
        bridged = bool(able) and len(able) == len(cards_of(service, context)) and have >= 535
        if bridged and _forward(service):
            return None
        remedy = (
            f"install driver R{oldest} or newer and reboot ({install_driver(max(oldest, ADVISED), context)}), or set "
        )
        remedy += f"vllm_image to one for CUDA {wanted[0] - 1}" + (" (a tag with -cu129)" if wanted[0] == 13 else "")
        if bridged:
            remedy += f'; until then {COMPATIBILITY}: "1" under environment: bridges it on these data-centre GPUs'
        seen = (
            f"driver {text(nvidia(context).get('driver_version'))}, and {short_image(service)} is for CUDA "
            f"{dotted(wanted)}"
        )
        return Failure(seen, f"driver R{oldest} or newer", remedy, service_name(service))

    verdict = of_images(context, look)
    if verdict == [] and any(image_cuda(service, context)[0] not in OLDEST_BRANCH for service in services(context)):
        return Unknown("which driver this version of CUDA needs is not in the collection's table")
    return verdict


def _forward(service: Map) -> bool:
    return str(mapping(service.get("environment")).get(COMPATIBILITY, "")).lower() in ("1", "true")


@rule(
    "driver.cuda_minor", WARNING, "The driver is as new as the CUDA version of each image",
    "Within one major version an older driver runs, but compiles no newer PTX: the provided PTX was compiled with an "
    "unsupported toolchain (vLLM #31700; NVIDIA CUDA Compatibility).",
)  # fmt: skip
def cuda_minor(context: Context) -> Verdict:
    have = version(nvidia(context).get("cuda_version"))[:2]
    if on_gpus(context) and contained(context) and services(context) and not have:
        return Unknown("the CUDA version of the driver is not told")

    def look(service: Map, wanted: tuple[int, ...]) -> Failure | None:
        if wanted[0] != have[0] or wanted <= have:
            return None
        seen = f"the driver knows CUDA {dotted(have)}, and {short_image(service)} is built with {dotted(wanted)}"
        remedy = (
            f"install the driver that came with CUDA {dotted(wanted)} or a newer one, or an image for {dotted(have)}"
        )
        remedy += " (vllm_image)"
        return Failure(seen, f"a driver for CUDA {dotted(wanted)}", remedy, service_name(service))

    return of_images(context, look)


@rule(
    "driver.forward_compatibility", ERROR, "CUDA's forward compatibility is asked of data-centre GPUs alone",
    "On GeForce and most RTX cards the compatibility package fails with error 803 or 804 (NVIDIA CUDA Compatibility: "
    "Forward Compatibility; vLLM #33992).",
)  # fmt: skip
def forward_compatibility(context: Context) -> Verdict:
    if not on_gpus(context):
        return None
    found = []
    for service in services(context):
        chosen = cards_of(service, context)
        if not _forward(service):
            continue
        if any(not text(card.get("name")) for card in chosen) or not chosen:
            return Unknown(f"the names of the GPUs of {service_name(service)} are not told")
        unfit = [card for card in chosen if not is_data_centre(card)]
        if unfit:
            remedy = f"delete {COMPATIBILITY} from environment: and install a driver of branch R{ADVISED} or newer"
            seen = f"{COMPATIBILITY} is set, and {label(unfit[0], context)} is no data-centre GPU"
            found.append(Failure(seen, "data-centre GPUs, or no compatibility package", remedy, service_name(service)))
    return found


def _month_end(year: int, month: int) -> float:
    return float(calendar.timegm((year, month, calendar.monthrange(year, month)[1], 23, 59, 59)))


@rule(
    "driver.branch_ended", WARNING, "The driver's branch is maintained",
    "An ended branch gets no security fixes and no support for new CUDA versions (NVIDIA Data Center Drivers: "
    "Supported Drivers and CUDA Toolkit Versions).",
)  # fmt: skip
def branch_ended(context: Context) -> Verdict:
    if not on_gpus(context) or not nvidia(context):
        return None
    have = branch(context)
    if have is None:
        return Unknown("the driver's version is not told")
    if have > max(BRANCHES):
        return Unknown(f"branch R{have} is newer than the collection's table")
    last, now = BRANCHES.get(have), number(context.now)
    if last and now is None:
        return Unknown("the controller's time is not told")
    if last and now is not None and now <= _month_end(*last):
        return None
    ended = f"ended in {last[0]}-{last[1]:02d}" if last else "has ended, or was a short-lived feature branch"
    seen = f"driver {text(nvidia(context).get('driver_version'))}: branch R{have} {ended}"
    remedy = f"install a branch that is maintained, such as R{ADVISED} ({install_driver(ADVISED, context)}), and reboot"
    return [Failure(seen, "a long-term or production branch", remedy)]


@rule(
    "gpu.compute_capability", ERROR, "Each image can compute on the GPUs of its service",
    "CUDA 13 dropped what is older than compute capability 7.5, and each generation needs a CUDA that knows it (CUDA "
    "Toolkit release notes; B200 needs 12.8).",
)  # fmt: skip
def compute_capability(context: Context) -> Verdict:
    def look(service: Map, wanted: tuple[int, ...]) -> Failure | None:
        lowest = LOWEST_CAPABILITY.get(wanted[0])
        for card in cards_of(service, context):
            have = version(card.get("compute_capability"))[:2]
            first = next((cuda for capability, cuda in FIRST_CUDA if have >= capability), ())
            seen = (
                f"{label(card, context)} has compute capability {dotted(have)}, and {short_image(service)} is for CUDA "
            )
            seen += dotted(wanted)
            if have and lowest and have < lowest:
                remedy = "choose an older image in vllm_image or image:, or give the service other gpus:"
                return Failure(seen, f"{dotted(lowest)} or higher", remedy, service_name(service))
            if have and wanted < first:
                remedy = f"choose an image for CUDA {dotted(first)} or newer in vllm_image or image:"
                return Failure(seen, f"CUDA {dotted(first)} or newer", remedy, service_name(service))
        return None

    verdict = of_images(context, look)
    chosen = [card for service in services(context) for card in cards_of(service, context)]
    if verdict == [] and any(not version(card.get("compute_capability")) for card in chosen):
        return Unknown("the compute capability of a GPU is not told")
    return verdict


# ---- NVSwitch


def has_nvswitch(context: Context) -> bool:
    """Hopper and later tell a fabric state; on an A100 board all of six or more cards reach each other by NVLink."""
    if any(text(dig(card, "fabric", "state")) not in ("", "not_supported") for card in cards(context)):
        return True
    ways = nvidia(context).get("topology")
    links = [way for way in ways if isinstance(way, t.Mapping)] if isinstance(ways, list) else []
    count = len(cards(context))
    return count >= 6 and len(links) == count * (count - 1) // 2 and all(_linked(way) for way in links)


def _linked(way: Map) -> bool:
    return (whole(way.get("nvlinks")) or 0) > 0


def _fabric_ready(context: Context) -> bool:
    """Every card is registered: whoever manages the fabric did so (in a virtual machine that is another one)."""
    states = [text(dig(card, "fabric", "state")) for card in cards(context)]
    return bool(states) and all(state == "completed" for state in states)


RESTART_FABRIC = "systemctl enable nvidia-fabricmanager && systemctl restart nvidia-fabricmanager"


@rule(
    "driver.fabric_manager", ERROR, "Fabric Manager runs where there is NVSwitch",
    "Without it CUDA does not start on any of the cards: error 802, system not yet initialized (NVIDIA Fabric "
    "Manager User Guide).",
)  # fmt: skip
def fabric_manager(context: Context) -> Verdict:
    if not on_gpus(context) or not has_nvswitch(context):
        return None
    manager = nvidia(context).get("fabric_manager")
    if not isinstance(manager, t.Mapping) or flag(manager.get("installed")) is None:
        return Unknown("whether Fabric Manager is installed is not told")
    ready = _fabric_ready(context)
    if manager.get("installed") is False:
        if ready:
            return None
        remedy = f"{install_fabric_manager(context)} in the driver's version, then {RESTART_FABRIC}"
        return [Failure("Fabric Manager is not installed, and the host has NVSwitch", "Fabric Manager", remedy)]
    if flag(manager.get("active")) is None:
        return Unknown("whether Fabric Manager runs is not told")
    if manager.get("active") is True:
        return None
    remedy = f"{RESTART_FABRIC}; 'journalctl -u nvidia-fabricmanager' says why it ended"
    seen = "Fabric Manager does not run" + (", though the cards are registered since it ran" if ready else "")
    return [Failure(seen, "nvidia-fabricmanager active", remedy, severity=WARNING if ready else ERROR)]


@rule(
    "driver.fabric_manager_version", ERROR, "Fabric Manager has the driver's version",
    "It refuses to start beside a driver of any other version, which shows at its next start (NVIDIA Fabric Manager "
    "User Guide).",
)  # fmt: skip
def fabric_manager_version(context: Context) -> Verdict:
    manager = mapping(nvidia(context).get("fabric_manager"))
    if not on_gpus(context) or manager.get("installed") is False or not has_nvswitch(context):
        return None
    theirs, ours = version(manager.get("version")), version(nvidia(context).get("driver_version"))
    if not theirs or not ours:
        return Unknown("the version of Fabric Manager or of the driver is not told")
    length = min(len(theirs), len(ours))
    if theirs[:length] == ours[:length]:
        return None
    driver = text(nvidia(context).get("driver_version"))
    remedy = f"{install_fabric_manager(context)} in version {driver}, and hold both packages"
    seen = f"Fabric Manager {text(manager.get('version'))}, driver {driver}"
    return [Failure(seen, f"Fabric Manager {driver}", f"{remedy}; then {RESTART_FABRIC}")]


@rule(
    "driver.fabric_state", ERROR, "The GPUs are registered with the NVSwitch fabric",
    "Until the state is completed and successful CUDA answers error 802 (nvidia-smi -q: Fabric).",
)  # fmt: skip
def fabric_state(context: Context) -> Verdict:
    if not has_nvswitch(context):
        return None

    def look(card: Map) -> Failure | None:
        state, status = text(dig(card, "fabric", "state")), text(dig(card, "fabric", "status"))
        if state in ("completed", "not_supported", "") and status in ("success", "", "n/a"):
            return None
        seen = f"{label(card, context)}: fabric state {state or 'unknown'}, status {status or 'unknown'}"
        remedy = f"{RESTART_FABRIC}; if it stays so, reset all GPUs together with 'nvidia-smi --gpu-reset', or reboot"
        return Failure(seen, "completed, success", remedy, severity=ERROR if users_of(card, context) else WARNING)

    return of_cards(context, "its fabric state", lambda card: isinstance(card.get("fabric"), t.Mapping), look)
