# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``nvidia-ctk``: CDI specifications and Docker's configuration."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import typing as t
from dataclasses import replace
from pathlib import Path

from nvidia_sim.container import CDI_ENVIRONMENT, Refused, usable
from nvidia_sim.smi import settled
from nvidia_sim.state import State, expand, read

KIND = "nvidia.com/gpu"
_SPEC_DIRECTORIES = ("etc/cdi", "var/run/cdi")


def _say(text: str) -> None:
    sys.stderr.write(f"INFO[0000] {text}\n")


def library(driver: str) -> str:
    """The driver's library of that version, from the root of the file system."""
    return f"usr/lib/{platform.machine()}-linux-gnu/libnvidia-ml.so.{driver}"


# --------------------------------------------------------------------------------------------------------------------
# CDI
# --------------------------------------------------------------------------------------------------------------------


def specification(state: State) -> dict[str, t.Any]:
    """A CDI specification: each GPU by index and by UUID, and all of them.

    A device is an entry in the environment, where a real one is device nodes. The library of this driver version is
    mounted as in a real one, so a specification of another driver fails as a real one does: the file is not there.
    """
    named: list[tuple[str, list[str]]] = [(str(gpu.index), [_entry(gpu.index, gpu.uuid)]) for gpu in state.gpus]
    named += [(gpu.uuid, [_entry(gpu.index, gpu.uuid)]) for gpu in state.gpus]
    named.append(("all", [_entry(gpu.index, gpu.uuid) for gpu in state.gpus]))
    path = "/" + library(state.driver)
    return {
        "cdiVersion": "0.5.0",
        "kind": KIND,
        "devices": [{"name": name, "containerEdits": {"env": entries}} for name, entries in named],
        "containerEdits": {
            "env": ["NVIDIA_VISIBLE_DEVICES=void"],
            "mounts": [
                {"hostPath": path, "containerPath": path, "options": ["ro", "nosuid", "nodev", "bind"]},
            ],
            "hooks": [
                {
                    "hookName": "createRuntime",
                    "path": "/usr/bin/nvidia-cdi-hook",
                    "args": ["nvidia-cdi-hook", "gpusim-record"],
                }
            ],
        },
    }


def _entry(index: int, uuid: str) -> str:
    return f"{CDI_ENVIRONMENT}{index}={uuid}"


def stale(state: State, driver: str) -> State:
    """What the host was when a stale specification was made: an older driver and other cards."""
    data = {"gpus": [{"model": gpu.model} for gpu in state.gpus], "driver": driver}
    return replace(expand(data, f"{state.hostname}-before"), cuda=state.cuda)


def as_yaml(mapping: t.Mapping[str, t.Any], indent: str = "") -> str:
    """Block style as nvidia-ctk writes it, for the mappings, lists and strings of a specification."""
    text = ""
    for key, value in sorted(mapping.items()):
        if isinstance(value, dict):
            text += f"{indent}{key}:\n{as_yaml(value, indent + '  ')}"
        elif isinstance(value, list):
            text += f"{indent}{key}:\n" + "".join(_yaml_item(item, indent) for item in value)
        else:
            text += f"{indent}{key}: {_scalar(value)}\n"
    return text


def _yaml_item(item: t.Any, indent: str) -> str:
    body = as_yaml(item, indent + "  ").lstrip() if isinstance(item, dict) else f"{_scalar(item)}\n"
    return f"{indent}- {body}"


def _scalar(text: str) -> str:
    return json.dumps(text) if text.isdigit() else text


def _cdi_generate(root: Path, options: argparse.Namespace) -> int:
    state = settled(root)
    try:
        if not usable(state):
            raise Refused("no devices were found")
    except Refused as refusal:
        sys.stderr.write(f"ERRO[0000] failed to generate CDI spec: {refusal}\n")
        return 1
    text = render(state, options.format)
    if not options.output:
        sys.stdout.write(text)
        return 0
    path = root / options.output.lstrip("/")
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, text)
    _say(f"Generated CDI spec with version 0.5.0 in {options.output}")
    return 0


def render(state: State, form: str = "yaml") -> str:
    document = specification(state)
    return json.dumps(document, indent=2) + "\n" if form == "json" else "---\n" + as_yaml(document)


def write(path: Path, text: str) -> None:
    """Replace a file as a whole: the engine can read it at any time."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(text)
    temporary.replace(path)


def _cdi_list(root: Path, options: argparse.Namespace) -> int:
    names = sorted({name for directory in _SPEC_DIRECTORIES for name in _devices(root / directory)})
    _say(f"Found {len(names)} CDI devices")
    sys.stdout.write("".join(f"{name}\n" for name in names))
    return 0


def _devices(directory: Path) -> list[str]:
    found = []
    for path in sorted(directory.glob("*.yaml")) if directory.is_dir() else ():
        names = [
            line.partition("name:")[2].strip().strip('"') for line in path.read_text().splitlines() if "name:" in line
        ]
        found += [f"{KIND}={name}" for name in names]
    return found


# --------------------------------------------------------------------------------------------------------------------
# Docker's configuration and the links below /dev/char
# --------------------------------------------------------------------------------------------------------------------


def _configure(root: Path, options: argparse.Namespace) -> int:
    if options.runtime != "docker":
        sys.stderr.write(f"ERRO[0000] unrecognized runtime '{options.runtime}': only docker is simulated\n")
        return 1
    path = root / (options.config or "/etc/docker/daemon.json").lstrip("/")
    _say(
        f"Loading config from /{path.relative_to(root)}"
        if path.exists()
        else "Config file does not exist; using empty config"
    )
    text = path.read_text() if path.exists() else ""
    try:
        config = json.loads(text or "{}")
    except ValueError as error:
        sys.stderr.write(f"ERRO[0000] unable to load config from /{path.relative_to(root)}: {error}\n")
        return 1
    name = options.nvidia_runtime_name
    config.setdefault("runtimes", {})[name] = {"args": [], "path": "nvidia-container-runtime"}
    if options.set_as_default:
        config["default-runtime"] = name
    if options.cdi_enabled:
        config.setdefault("features", {})["cdi"] = True
    written = json.dumps(config, indent=4, sort_keys=True)
    if options.dry_run:
        sys.stdout.write(written + "\n")
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    write(path, written)
    _say(f"Wrote updated config to /{path.relative_to(root)}")
    _say("It is recommended that docker daemon be restarted.")
    return 0


def _dev_char(root: Path, options: argparse.Namespace) -> int:
    directory = root / "dev/char"
    directory.mkdir(parents=True, exist_ok=True)
    for node in sorted((root / "dev").glob("nvidia*")):
        if not node.is_char_device():
            continue
        device = node.stat().st_rdev
        link = directory / f"{os.major(device)}:{os.minor(device)}"
        if not link.is_symlink():
            link.symlink_to(f"../{node.name}")
            _say(f"Creating link /{link.relative_to(root)} => /dev/{node.name}")
    return 0


# --------------------------------------------------------------------------------------------------------------------
# The command
# --------------------------------------------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nvidia-ctk", allow_abbrev=False)
    parser.add_argument("-v", "--version", action="store_true")
    commands = parser.add_subparsers()
    cdi = commands.add_parser("cdi").add_subparsers(required=True)
    generate = cdi.add_parser("generate")
    generate.add_argument("--output", default="")
    generate.add_argument("--format", choices=("yaml", "json"), default="yaml")
    generate.set_defaults(run=_cdi_generate)
    cdi.add_parser("list").set_defaults(run=_cdi_list)
    configure = commands.add_parser("runtime").add_subparsers(required=True).add_parser("configure")
    configure.add_argument("--runtime", default="docker")
    configure.add_argument("--config", "--config-file", default="")
    configure.add_argument("--nvidia-runtime-name", default="nvidia")
    for name in ("--set-as-default", "--nvidia-set-as-default", "--cdi.enabled", "--dry-run"):
        configure.add_argument(
            name, action="store_true", dest=name.replace("nvidia-", "").strip("-").replace("-", "_").replace(".", "_")
        )
    configure.set_defaults(run=_configure)
    links = commands.add_parser("system").add_subparsers(required=True).add_parser("create-dev-char-symlinks")
    links.add_argument("--create-all", action="store_true")
    links.set_defaults(run=_dev_char)
    return parser


def main(root: Path, arguments: list[str]) -> int:
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.version:
        sys.stdout.write(f"NVIDIA Container Toolkit CLI version {read(root).toolkit}\ncommit: simulated\n")
        return 0
    if not hasattr(options, "run"):
        parser.print_help()
        return 0
    return int(options.run(root, options))
