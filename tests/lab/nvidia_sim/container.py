# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the container engine calls: the runtime hook, the runtime, the CDI hook, and ``nvidia-container-cli``.

They give a container no GPU, as there is none. They check what it asks for as the real ones do, and write down which
GPUs it was given, one JSON object a line in ``/var/lib/gpusim/hook.jsonl``.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import sys
import time
import typing as t
from pathlib import Path

from nvidia_sim.smi import settled
from nvidia_sim.state import Gpu, State, read

HOOK = "nvidia-container-runtime-hook"
CDI_ENVIRONMENT = "GPUSIM_DEVICE_"
_ERRORS = {9: "driver not loaded", 18: "driver/library version mismatch"}
_SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


class Refused(Exception):
    """nvidia-container-cli says this and the container does not start."""


def record_path(root: Path) -> Path:
    return root / "var/lib/gpusim/hook.jsonl"


# --------------------------------------------------------------------------------------------------------------------
# Which GPUs
# --------------------------------------------------------------------------------------------------------------------


def usable(state: State) -> tuple[Gpu, ...]:
    """The GPUs, where the driver can be used at all: one GPU that is lost fails the detection of all."""
    if state.error:
        raise Refused(f"initialization error: nvml error: {_ERRORS[state.error]}")
    if state.lost:
        raise Refused("detection error: nvml error: gpu is lost")
    return state.gpus


def resolve(state: State, asked: str) -> list[Gpu]:
    """The GPUs that ``NVIDIA_VISIBLE_DEVICES`` names: indices, UUIDs or the start of one, ``all`` or ``none``."""
    gpus = usable(state)
    if asked == "none":
        return []
    if asked == "all":
        return list(gpus)
    names = [name.strip() for name in asked.split(",") if name.strip()]
    chosen = {_resolve_one(gpus, name).index for name in names}
    return [gpu for gpu in gpus if gpu.index in chosen]


def _resolve_one(gpus: t.Iterable[Gpu], name: str) -> Gpu:
    for gpu in gpus:
        if name == str(gpu.index) or (len(name) > 4 and gpu.uuid.lower().startswith(name.lower())):
            return gpu
    raise Refused(f"device error: {name}: unknown device")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part.isdigit())


def _holds(condition: str, facts: dict[str, str]) -> bool:
    match = re.fullmatch(r"(\w+)(>=|<=|!=|=|>|<)(\S+)", condition)
    if not match or match[1] not in facts:
        return False
    if match[1] == "brand":
        return (facts["brand"] == match[3].lower()) == (match[2] == "=")
    have, want = _numbers(facts[match[1]]), _numbers(match[3])
    size = min(len(have), len(want))
    order = (have[:size] > want[:size]) - (have[:size] < want[:size])
    return {">=": order >= 0, "<=": order <= 0, "!=": order != 0, "=": order == 0, ">": order > 0, "<": order < 0}[
        match[2]
    ]


def check_requirements(state: State, environment: t.Mapping[str, str]) -> None:
    """``NVIDIA_REQUIRE_*`` of the image: alternatives between blanks, of which each is a comma-separated "and"."""
    if environment.get("NVIDIA_DISABLE_REQUIRE", "").lower() in ("1", "true"):
        return
    facts = {"cuda": state.cuda, "driver": state.driver}
    if state.gpus:
        facts.update(arch=state.gpus[0].compute_capability, brand=state.gpus[0].brand.lower())
    for name, value in environment.items():
        if not name.startswith("NVIDIA_REQUIRE_") or not value.strip():
            continue
        if not any(all(_holds(item, facts) for item in group.split(",")) for group in value.split()):
            raise Refused(
                f"requirement error: unsatisfied condition: {value.split()[0]}, please update your driver to a newer "
                "version, or use an earlier cuda container"
            )


# --------------------------------------------------------------------------------------------------------------------
# The record
# --------------------------------------------------------------------------------------------------------------------


def _environment(config: t.Mapping[str, t.Any]) -> dict[str, str]:
    # Docker appends to what the image sets: the last one counts.
    return dict(item.partition("=")[::2] for item in config.get("process", {}).get("env") or [])


def _docker_names(root: Path, identity: str) -> dict[str, str | None]:
    """The names that Docker and Compose have for a container, where it is one of theirs."""
    try:
        text = (root / "var/lib/docker/containers" / identity / "config.v2.json").read_text()
        document = json.loads(text)
    except (OSError, ValueError):
        document = {}
    labels = document.get("Config", {}).get("Labels") or {}
    return {
        "name": document.get("Name", "").lstrip("/") or None,
        "project": labels.get("com.docker.compose.project"),
        "service": labels.get("com.docker.compose.service"),
    }


def record(
    root: Path, identity: str, config: t.Mapping[str, t.Any], gpus: t.Iterable[Gpu], *, via: str, asked: str
) -> None:
    chosen = list(gpus)
    line = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "via": via,
        "id": identity,
        "hostname": config.get("hostname"),
        **_docker_names(root, identity),
        "asked": asked,
        "capabilities": _environment(config).get("NVIDIA_DRIVER_CAPABILITIES"),
        "uuids": [gpu.uuid for gpu in chosen],
        "indices": [gpu.index for gpu in chosen],
    }
    path = record_path(root)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        stream.write(json.dumps(line) + "\n")


def _container() -> tuple[str, dict[str, t.Any]]:
    """The id and the configuration of the container whose state is on standard input."""
    described = json.load(sys.stdin)
    bundle = Path(described.get("bundle") or described["bundlePath"])
    return str(described["id"]), json.loads((bundle / "config.json").read_text())


# --------------------------------------------------------------------------------------------------------------------
# The programs
# --------------------------------------------------------------------------------------------------------------------


def hook(root: Path, arguments: list[str]) -> int:
    """``nvidia-container-runtime-hook prestart``: refuses, or records what the container was given."""
    if "--version" in arguments or "-version" in arguments:
        sys.stdout.write(f"NVIDIA Container Runtime Hook version {read(root).toolkit}\ncommit: simulated\n")
        return 0
    if arguments[-1:] != ["prestart"]:
        return 0 if arguments[-1:] in (["poststart"], ["poststop"]) else _usage(f"{HOOK} prestart")
    identity, config = _container()
    environment = _environment(config)
    asked = environment.get("NVIDIA_VISIBLE_DEVICES", "")
    if asked in ("", "void"):
        return 0
    state = settled(root)
    try:
        gpus = resolve(state, asked)
        check_requirements(state, environment)
    except Refused as refusal:
        sys.stderr.write(f"Auto-detected mode as 'legacy'\nnvidia-container-cli: {refusal}\n")
        return 1
    record(root, identity, config, gpus, via="hook", asked=asked)
    return 0


def cdi_hook(root: Path, arguments: list[str]) -> int:
    """``nvidia-cdi-hook gpusim-record``: the devices stand in the environment, put there by the specification."""
    if arguments != ["gpusim-record"]:
        return _usage("nvidia-cdi-hook gpusim-record")
    identity, config = _container()
    devices = {name: value for name, value in _environment(config).items() if name.startswith(CDI_ENVIRONMENT)}
    asked = ",".join(devices.values())
    try:
        gpus = resolve(settled(root), asked) if devices else []
    except Refused as refusal:
        sys.stderr.write(f"nvidia-cdi-hook: {refusal}\n")
        return 1
    record(root, identity, config, gpus, via="cdi", asked=asked)
    return 0


def cli(root: Path, arguments: list[str]) -> int:
    """``nvidia-container-cli``: ``info`` and ``--version``."""
    if arguments in (["--version"], ["-V"]):
        state = read(root)
        sys.stdout.write(f"cli-version: {state.toolkit}\nlib-version: {state.toolkit}\nbuild revision: simulated\n")
        return 0
    if arguments[-1:] != ["info"]:
        return _usage("nvidia-container-cli info")
    state = settled(root)
    try:
        gpus = usable(state)
    except Refused as refusal:
        sys.stderr.write(f"nvidia-container-cli: {refusal}\n")
        return 1
    sys.stdout.write(f"NVRM version:   {state.driver}\nCUDA version:   {state.cuda}\n")
    for gpu in gpus:
        rows = (
            ("Device Index:", gpu.index),
            ("Device Minor:", gpu.index),
            ("Model:", gpu.name),
            ("Brand:", gpu.brand),
            ("GPU UUID:", gpu.uuid),
            ("Bus Location:", gpu.pci_bus_id),
            ("Architecture:", gpu.compute_capability),
        )
        sys.stdout.write("\n" + "".join(f"{name:<15} {value}\n" for name, value in rows))
    return 0


def runtime(root: Path, arguments: list[str]) -> int:
    """``nvidia-container-runtime``: runc, after the hook is in the bundle of a container that asks for GPUs."""
    if "create" in arguments or "run" in arguments:
        _add_hook(root, Path(_option(arguments, "bundle", "b") or os.getcwd()))
    path = os.environ.get("PATH", "") + os.pathsep + _SYSTEM_PATH
    found = shutil.which("docker-runc", path=path) or shutil.which("runc", path=path)
    if found:
        os.execv(found, [found, *arguments])
    sys.stderr.write("nvidia-container-runtime: found neither docker-runc nor runc: apt-get install runc\n")
    return 1


def _option(arguments: list[str], name: str, short: str) -> str | None:
    for position, argument in enumerate(arguments):
        if argument.startswith(f"--{name}="):
            return argument.partition("=")[2]
        if argument in (f"--{name}", f"-{name}", f"-{short}") and position + 1 < len(arguments):
            return arguments[position + 1]
    return None


def _add_hook(root: Path, bundle: Path) -> None:
    path = bundle / "config.json"
    config = json.loads(path.read_text())
    if _environment(config).get("NVIDIA_VISIBLE_DEVICES", "") in ("", "void"):
        return
    hooks = config.setdefault("hooks", {}).setdefault("prestart", [])
    if any(Path(item["path"]).name == HOOK for item in hooks):
        return
    hooks.append({"path": str(root / "usr/bin" / HOOK), "args": [HOOK, "prestart"]})
    path.write_text(json.dumps(config))


def _usage(text: str) -> int:
    sys.stderr.write(f"usage: {text}\n")
    return 2
