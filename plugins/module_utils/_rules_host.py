# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.
"""Preflight rules about the host itself: processor, memory, limits, kernel, clock, reboot, SELinux. Pure, no I/O."""

from __future__ import annotations

import posixpath
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING
from ansible_collections.gpufleet.vllm.plugins.module_utils._preflight import (
    Context,
    Failure,
    Rule,
    Unknown,
    Verdict,
    rules_into,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_disk import artifact_bytes, artifacts
from ansible_collections.gpufleet.vllm.plugins.module_utils._rules_facts import (
    GIB,
    Map,
    amount,
    contained,
    dig,
    docker,
    dotted,
    flag,
    items,
    listed,
    mapping,
    number,
    on_gpus,
    security_options,
    service_name,
    services,
    size,
    text,
    texts,
    version,
    whole,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

RULES: list[Rule] = []
rule = rules_into(RULES)

OLDEST_PYTHON = (3, 9)
# RHEL 8's kernel: the oldest of the distributions that NVIDIA's R580 driver and Docker support.
OLDEST_KERNEL = (4, 18)
SKEW_WARNING_S, SKEW_ERROR_S = 30, 300
# What an engine's processes take of the host's memory besides the model: measured order of size, not a bound.
SERVICE_BYTES, WORKER_BYTES = 3 * GIB, 3 * GIB
LEAST_SHM, GOOD_SHM = GIB, 8 * GIB
LEAST_NOFILE = 65535
UNITS = {"": 1, "b": 1, "k": 2**10, "kb": 2**10, "m": 2**20, "mb": 2**20, "g": GIB, "gb": GIB, "t": 2**40, "tb": 2**40}
# Types that a container may read (container_t, SELinux for containers).
CONTAINER_TYPES = ("container_file_t", "container_ro_file_t", "container_share_t", "svirt_sandbox_file_t")


def _bytes(value: t.Any) -> int | None:
    """A size as Docker writes it, ``16gb``."""
    if whole(value) is not None:
        return whole(value)
    words = text(value).strip().lower()
    digits = words.rstrip("kmgtb")
    unit = UNITS.get(words[len(digits) :])
    return int(digits) * unit if digits.isdecimal() and len(digits) < 16 and unit else None


def _wide(context: Context) -> list[Map]:
    """The services with more than one GPU, whose workers talk through shared memory."""
    return [service for service in services(context) if on_gpus(context) and len(items(service.get("gpus"))) > 1]


@rule(
    "host.python", ERROR, "The host's Python is one that Ansible's modules run on",
    "The modules of this collection need Python 3.9, as those of ansible-core 2.20 and newer do.",
)  # fmt: skip
def python(context: Context) -> Verdict:
    have = version(mapping(context.facts).get("python_version"))[:2]
    if not have:
        return Unknown("the host's version of Python is not told")
    if have >= OLDEST_PYTHON:
        return None
    remedy = "install a newer Python and set ansible_python_interpreter to it"
    return [Failure(f"Python {dotted(have)}", f"{dotted(OLDEST_PYTHON)} or newer", remedy)]


@rule(
    "host.kernel_old", WARNING, "The kernel is one that the driver and Docker support",
    "Older kernels than 4.18 are of no distribution that NVIDIA's current drivers list (CUDA Installation Guide for "
    "Linux).",
)  # fmt: skip
def kernel_old(context: Context) -> Verdict:
    have = version(mapping(context.facts).get("kernel"))[:2]
    if not have:
        return Unknown("the kernel's version is not told")
    if have >= OLDEST_KERNEL:
        return None
    seen = f"Linux {text(mapping(context.facts).get('kernel'))}"
    return [Failure(seen, f"{dotted(OLDEST_KERNEL)} or newer", "upgrade the operating system, then reboot (uname -r)")]


@rule(
    "host.cpu_avx2", WARNING, "The processor has AVX2",
    "torch and what vLLM builds on it are compiled for AVX2, and end with an illegal instruction without it.",
)  # fmt: skip
def cpu_avx2(context: Context) -> Verdict:
    facts = mapping(context.facts)
    # For the CPU engine it is a finding of the plan.
    if text(facts.get("machine")) not in ("x86_64", "") or not on_gpus(context):
        return None
    flags = dig(facts, "cpu", "flags")
    if not text(facts.get("machine")) or not isinstance(flags, list) or not text(dig(facts, "cpu", "model")):
        return Unknown("the processor's features are not told")
    if "avx2" in flags:
        return None
    remedy = (
        "move its vllm_services to another host; a virtual machine gets the host's processor with cpu host-passthrough"
    )
    return [Failure(f"{text(dig(facts, 'cpu', 'model'))} without AVX2", "AVX2", remedy)]


@rule(
    "host.cpu_avx512", INFO, "The CPU engine has AVX-512",
    "vLLM's CPU engine is built around AVX-512; with AVX2 alone it is slow (vLLM: CPU installation).",
)  # fmt: skip
def cpu_avx512(context: Context) -> Verdict:
    facts = mapping(context.facts)
    if mapping(context.plan).get("device") != "cpu" or text(facts.get("machine")) not in ("x86_64", ""):
        return None
    flags = dig(facts, "cpu", "flags")
    if not isinstance(flags, list) or not flags:
        return Unknown("the processor's features are not told")
    if "avx512f" in flags:
        return None
    remedy = "nothing to do for a trial; for production set vllm_device: cuda on a host with GPUs"
    return [Failure(f"{text(dig(facts, 'cpu', 'model')) or 'the processor'} has no AVX-512", "AVX-512", remedy)]


@rule(
    "host.memory", WARNING, "The host's memory carries the engines",
    "Each engine and each of its workers holds some GiB of the host's memory, and the CPU engine the whole model; "
    "the kernel ends what does not fit (OOM killer).",
)  # fmt: skip
def memory(context: Context) -> Verdict:
    if not services(context):
        return None
    total = amount(dig(context.facts, "memory", "total_bytes"))
    if not total:
        return Unknown("the host's memory is not told")
    wanted = sum(
        SERVICE_BYTES + WORKER_BYTES * max(1, len(items(service.get("gpus")))) for service in services(context)
    )
    severity = WARNING
    count = len(services(context))
    words = f"{plural(count, 'service')} {'takes' if count == 1 else 'take'} about {size(wanted)}"
    if mapping(context.plan).get("device") == "cpu":
        models = [artifact_bytes(artifact, context) or 0 for artifact in artifacts(context)]
        space = [_kv_space(service) for service in services(context)]
        wanted = sum(models) + sum(space) + GIB * len(space)
        words = f"models of {size(sum(models))} and {size(sum(space))} for their KV caches take about {size(wanted)}"
        severity = ERROR
    if wanted <= total:
        return None
    remedy = "run fewer services on this host, or smaller models (vllm_services)"
    return [Failure(f"{size(total)} of memory, and {words}", f"{size(wanted)}", remedy, severity=severity)]


def _kv_space(service: Map) -> int:
    value = str(mapping(service.get("environment")).get("VLLM_CPU_KVCACHE_SPACE", "1"))
    return int(value) * GIB if value.isdecimal() and len(value) < 6 else GIB


@rule(
    "host.shm", ERROR, "Workers of one service have shared memory to talk through",
    "NCCL and torch put their buffers into /dev/shm: too small, and a start ends with a bus error or No space left "
    "on device (vLLM #1710; vLLM: GPU installation, --shm-size).",
)  # fmt: skip
def shm(context: Context) -> Verdict:
    found, silent = [], []
    for service in _wide(context):
        if contained(context):
            have, variable = amount(_bytes(dig(service, "container", "shm_size"))), "vllm_container_shm_size: 16gb"
        else:
            have, variable = amount(dig(context.facts, "shm", "size_bytes")), "mount -o remount,size=16G /dev/shm"
        if have is None:
            silent.append(service_name(service))
        elif have < GOOD_SHM:
            severity = ERROR if have < LEAST_SHM else WARNING
            seen = f"{size(have)} of shared memory for {len(items(service.get('gpus')))} workers"
            remedy = f"set {variable}" if contained(context) else f"run: {variable} (and in /etc/fstab)"
            found.append(Failure(seen, "16 GiB", remedy, service_name(service), severity))
    return Unknown(f"the shared memory of {listed(silent)} is not told") if silent and not found else found


@rule(
    "host.limits", WARNING, "The supervisor may open files and lock memory enough",
    "Without systemd or Docker an engine inherits the limits of the session that starts it (getrlimit(2)); systemd's "
    "units and containers have their own.",
)  # fmt: skip
def limits(context: Context) -> Verdict:
    if mapping(context.plan).get("runtime") != "supervisor" or not services(context):
        return None
    told = mapping(mapping(context.facts).get("limits"))
    files, locked = whole(told.get("nofile_hard")), whole(told.get("memlock_bytes"))
    if files is None or locked is None:
        return Unknown("the limits of the session are not told")
    found = []
    if 0 <= files < LEAST_NOFILE:
        remedy = "add '* hard nofile 1048576' to /etc/security/limits.d/vllm.conf, and log in anew"
        found.append(Failure(f"{files} open files at most", f"{LEAST_NOFILE} or more", remedy))
    if _wide(context) and 0 <= locked < GIB:
        remedy = "add '* - memlock unlimited' to /etc/security/limits.d/vllm.conf, and log in anew"
        found.append(Failure(f"{size(locked)} of locked memory at most", "unlimited", remedy))
    return found


# ---- time


@rule(
    "host.clock_skew", WARNING, "The host's clock agrees with the controller's",
    "With a wrong clock certificates and tokens are refused, and logs of hosts cannot be laid side by side (RFC 5280).",
)  # fmt: skip
def clock_skew(context: Context) -> Verdict:
    epoch = number(dig(context.facts, "clock", "epoch"))
    if epoch is None or number(context.now) is None:
        return Unknown("the host's or the controller's time is not told")
    apart = epoch - (number(context.now) or 0)
    if abs(apart) <= SKEW_WARNING_S:
        return None
    seen = f"the host's clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} the controller's"
    remedy = "set it right and keep it so: systemctl enable --now chrony (or chronyd), then 'chronyc makestep'"
    severity = ERROR if abs(apart) > SKEW_ERROR_S else WARNING
    return [Failure(seen, f"within {SKEW_WARNING_S} s", remedy, severity=severity)]


@rule(
    "host.clock_unsynchronised", WARNING, "The host's clock is kept right",
    "The kernel says that nothing disciplines its clock, so that it drifts (adjtimex(2): STA_UNSYNC).",
)  # fmt: skip
def clock_unsynchronised(context: Context) -> Verdict:
    state = flag(dig(context.facts, "clock", "synchronized"))
    if state is None:
        return Unknown("whether the clock is synchronised is not told")
    if state:
        return None
    remedy = (
        "systemctl enable --now chrony (or chronyd, or systemd-timesyncd); 'chronyc tracking' and 'timedatectl' show it"
    )
    return [Failure("the clock is not synchronised", "a clock that NTP keeps", remedy)]


@rule(
    "host.reboot_pending", WARNING, "The host waits for no reboot",
    "A new kernel or driver that waits takes effect at the next reboot, planned or not: better now than under load.",
)  # fmt: skip
def reboot_pending(context: Context) -> Verdict:
    required = flag(dig(context.facts, "reboot", "required"))
    if required is None:
        return Unknown("whether a reboot is pending is not told")
    if not required:
        return None
    uptime = number(dig(context.facts, "boot", "uptime_s"))
    why = text(dig(context.facts, "reboot", "why")).rstrip(".")
    seen = "a reboot is pending" + (f": {why}" if why else "") + (f" (up {uptime / 86400:.0f} days)" if uptime else "")
    remedy = "drain the host and reboot it before the deploy (ansible.builtin.reboot, or systemctl reboot)"
    return [Failure(seen, "no pending reboot", remedy)]


# ---- mandatory access control


@rule(
    "host.selinux_models", ERROR, "Containers may read the models under SELinux",
    "Where Docker runs with SELinux, a container reads only files of its types; others are permission denied, "
    "whatever their mode (Docker: Configure the SELinux label).",
)  # fmt: skip
def selinux_models(context: Context) -> Verdict:
    facts = mapping(context.facts)
    if not contained(context) or text(facts.get("selinux")) != "enforcing":
        return None
    options = security_options(context)
    if options is None:
        return Unknown("whether Docker runs with SELinux is not told")
    if not any(option.split(",")[0] == "name=selinux" for option in options):
        return None
    labels, found, silent = mapping(facts.get("labels")), [], []
    for artifact in artifacts(context):
        path = text(artifact.get("path"))
        above = [str(known) for known in labels if (path + "/").startswith(str(known).rstrip("/") + "/")]
        kind = text(labels.get(max(above, key=len))) if above else ""
        if not kind:
            silent.append(path)
        elif kind not in CONTAINER_TYPES:
            # A model is built beside its path and renamed, so that it has the type of the directory above.
            place = posixpath.dirname(path.rstrip("/")).rstrip("/") or path
            remedy = _relabel(place)
            seen = f"{path} has the type {kind}"
            services_of = texts(artifact.get("services"))
            found.append(Failure(seen, "container_file_t", remedy, services_of[0] if services_of else ""))
    root = text(mapping(context.plan).get("root"))
    kind = text(labels.get(root))
    if services(context) and kind and kind not in CONTAINER_TYPES:
        seen = f"{root}, where containers keep their caches, has the type {kind}"
        found.append(Failure(seen, "container_file_t", _relabel(root), severity=WARNING))
    return Unknown(f"the SELinux type of {listed(silent, 4)} is not told") if silent and not found else found


def _relabel(place: str) -> str:
    return f"mkdir -p {place} && semanage fcontext -a -t container_file_t '{place}(/.*)?' && restorecon -R {place}"


@rule(
    "host.apparmor", INFO, "Docker confines containers with AppArmor where the host has it",
    "Without apparmor_parser Docker leaves its default profile out, and containers run unconfined (Docker: AppArmor "
    "security profiles).",
)  # fmt: skip
def apparmor(context: Context) -> Verdict:
    if not contained(context) or mapping(context.facts).get("apparmor") == "disabled":
        return None
    options = security_options(context)
    if mapping(context.facts).get("apparmor") != "enabled" or options is None:
        return Unknown("whether the host or Docker uses AppArmor is not told")
    if any(option.split(",")[0] == "name=apparmor" for option in options):
        return None
    remedy = "apt install apparmor, then 'systemctl restart docker' (docker info lists it under Security Options)"
    return [Failure("the kernel has AppArmor, and Docker does not use it", "name=apparmor among docker info's", remedy)]


@rule(
    "host.services_unknown", WARNING, "The state of running services can be told",
    "What runs cannot be compared with the plan, so that a deploy may restart what it need not.",
)  # fmt: skip
def services_unknown(context: Context) -> Verdict:
    problem = mapping(context.facts).get("services_problem")
    if not isinstance(problem, str):
        return Unknown("whether the state of services could be read is not told")
    # A Docker that does not answer is a finding of the plan.
    if not problem or (contained(context) and docker(context).get("running") is False):
        return None
    remedy = "run as root (become: true), and see that the process manager answers: systemctl status"
    return [Failure(problem.partition(" Expected:")[0].rstrip("."), "the state of each service", remedy)]
