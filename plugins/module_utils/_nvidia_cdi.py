# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The CDI specification of the GPUs: whether it is right for the driver and GPUs of now, and making it anew."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia import same_version
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import gather
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner

KIND = "nvidia.com/gpu"
REFRESH = "nvidia-cdi-refresh.service"
# Survives a reboot, which what lies below /run does not: that is for the service, which makes it anew at boot.
PERSISTENT = "/etc/cdi/nvidia.yaml"

Facts = t.Mapping[str, t.Any]


def effective(specs: t.Sequence[Facts]) -> list[Facts]:
    """The specifications of the GPUs that count: of two directories the later one wins, /run over /etc."""
    ours = [spec for spec in specs if spec["kind"] == KIND]
    volatile = [spec for spec in ours if os.path.realpath(spec["path"]).startswith("/run/")]
    return volatile or ours


def faults(facts: Facts) -> list[str]:
    """Why the specification has to be made, or made anew; empty where it fits."""
    driver = facts["driver_version"]
    specs = effective(facts["container"]["cdi"]["specs"])
    if not specs:
        return ["no CDI specification names the GPUs"]
    found = [
        f"{spec['path']} was made for driver {spec['driver_version']}, and the host runs {driver}"
        for spec in specs
        if spec["driver_version"] and driver and not same_version(spec["driver_version"], driver)
    ]
    devices = {device for spec in specs for device in spec["devices"]}
    # A GPU in MIG mode is there by its instances alone.
    lost = [
        str(gpu["index"])
        for gpu in facts["gpus"]
        if gpu["mig"]["current"] != "enabled" and not {f"{KIND}={gpu['index']}", f"{KIND}={gpu['uuid']}"} & devices
    ]
    return found + ([f"it does not have GPU {', '.join(lost)}"] if lost else [])


def devices_of(facts: Facts) -> list[str]:
    return sorted({device for spec in effective(facts["container"]["cdi"]["specs"]) for device in spec["devices"]})


def refresh(check_mode: bool, run: Runner, look: t.Callable[[], Facts] = gather, timeout: float = 120.0) -> t.Any:
    """What the module ``nvidia_cdi`` returns."""
    facts = look()
    result = {"changed": False, "reasons": [], "devices": devices_of(facts), "skipped_because": ""}
    ctk = facts["container"]["toolkit"]["nvidia_ctk"]
    if not facts["gpus"]:
        return {**result, "skipped_because": facts["reason"] or "there is no GPU"}
    found = faults(facts)
    if not found:
        return result
    if not ctk:
        raise FleetError(
            "cdi.no_toolkit",
            f"{found[0]}, and there is no nvidia-ctk",
            "the NVIDIA Container Toolkit",
            "install it (gpu_host_toolkit: true), then run again",
        )
    if not check_mode:
        _generate(ctk, facts, run, timeout)
        facts = look()
        left = faults(facts)
        if left:
            raise FleetError(
                "cdi.still_stale",
                f"the CDI specification was made anew, and still: {'; '.join(left)}",
                "a specification with every GPU, for the driver that runs",
                "compare 'nvidia-ctk cdi list' with 'nvidia-smi -L'; after an update of the driver reboot the host",
            )
    return {**result, "changed": True, "reasons": found, "devices": devices_of(facts)}


def _generate(ctk: str, facts: Facts, run: Runner, timeout: float) -> None:
    """By the toolkit's own service where there is one (from 1.18), so that it keeps doing it; else by hand."""
    if _has_service(run):
        argv = ["systemctl", "--no-ask-password", "restart", REFRESH]
    else:
        argv = [ctk, "cdi", "generate", f"--output={_output(facts)}"]
    done = run(argv, timeout)
    if done.rc != 0:
        raise FleetError(
            "cdi.generate",
            f"'{' '.join(argv)}' failed: {done.last_words}",
            "a CDI specification",
            f"run 'nvidia-ctk cdi generate' on the host, and look at 'journalctl -u {REFRESH}'",
        )


def _has_service(run: Runner) -> bool:
    shown = run(["systemctl", "show", REFRESH, "--property=LoadState"], 20)
    return shown.out.strip() == "LoadState=loaded"


def _output(facts: Facts) -> str:
    """The file that is stale, so that no second one contradicts it."""
    specs = effective(facts["container"]["cdi"]["specs"])
    return specs[0]["path"] if specs else PERSISTENT
