# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The stack under systemd: one hardened unit a service."""

from __future__ import annotations

import contextlib
import json
import os
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _render
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import (
    Desired,
    Layout,
    Status,
    read_text,
    write_file,
)

PREFIX = "vllm-"
UNIT_DIRECTORY = "/etc/systemd/system"
DIGEST = re.compile(r"^# digest=([0-9a-f]+)$", re.MULTILINE)
PROPERTIES = (
    "Id",
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "Result",
    "ActiveEnterTimestampMonotonic",
)


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """``systemctl show`` of several units: blocks of ``Name=value`` with an empty line between them, by ``Id``."""
    units = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id"):
            units[values["Id"]] = values
    return units


def parse_status(values: t.Mapping[str, str]) -> Status:
    """Our state from systemd's: ``activating (auto-restart)`` has died and waits to be started again."""
    active, sub = values.get("ActiveState", ""), values.get("SubState", "")
    pid = int(values.get("MainPID") or 0) or None
    restarts = int(values["NRestarts"]) if values.get("NRestarts", "").isdigit() else None
    detail = f"{active} ({sub})" + (f", {values['Result']}" if values.get("Result", "success") != "success" else "")
    state = {
        "active": "running",
        "activating": "starting",
        "reloading": "running",
        "failed": "failed",
    }.get(active, "stopped")
    if sub == "auto-restart":
        state = "failed"
    return Status(state=state, pid=pid, restarts=restarts, detail=detail)


class SystemdBackend:
    """``owner`` is the user and group of the services; ``allow_daemon_reload`` lifts the guard for GPU containers."""

    def __init__(
        self,
        layout: Layout,
        run: Runner,
        user: str,
        group: str,
        allow_daemon_reload: bool = False,
        unit_directory: str = UNIT_DIRECTORY,
    ) -> None:
        self.layout = layout
        self.run = run
        self.user = user
        self.group = group
        self.allow_daemon_reload = allow_daemon_reload
        self.unit_directory = unit_directory

    # Backend

    def check(self, changing: bool) -> None:
        if self.allow_daemon_reload or not changing:
            return
        containers = gpu_containers(self.run)
        if containers:
            # https://github.com/NVIDIA/nvidia-container-toolkit/issues/48
            raise FleetError(
                "stack.daemon_reload",
                f"GPU containers run here ({', '.join(containers)}), and a daemon-reload can take their GPUs away",
                "no GPU container while units change",
                "stop them first, or accept it with vllm_runtime_allow_daemon_reload: true",
            )

    def prepare(self) -> None:
        """Nothing to do: systemd is there."""

    def installed(self) -> dict[str, str]:
        found = {}
        try:
            files = sorted(os.listdir(self.unit_directory))
        except FileNotFoundError:
            return {}
        for file in files:
            if file.startswith(PREFIX) and file.endswith(".service"):
                text = read_text(f"{self.unit_directory}/{file}") or ""
                if f"\n# root={self.layout.root}\n" in text:
                    digest = DIGEST.search(text)
                    found[file[len(PREFIX) : -len(".service")]] = digest.group(1) if digest else ""
        return found

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        installed = self.installed()
        wanted = [name for name in dict.fromkeys(names) if name in installed]
        if not wanted:
            return {}
        units = [self._unit(name) for name in wanted]
        shown = self._systemctl("show", "--property=" + ",".join(PROPERTIES), *units)
        blocks = parse_show(shown.out)
        return {name: parse_status(blocks.get(self._unit(name), {})) for name in wanted}

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        installed = self.installed()
        units = [self._unit(name) for name in names if name in installed]
        if units:
            self._systemctl("stop", *units, timeout=timeout)

    def install(self, desired: Desired) -> None:
        path = f"{self.unit_directory}/{self._unit(desired.name)}"
        present = read_text(path)
        if present is not None and f"\n# root={self.layout.root}\n" not in present:
            raise FleetError(
                "stack.foreign_unit",
                f"{path} exists and is not ours",
                f"a unit made by this collection for {self.layout.root}, or none",
                "rename the service, or remove that unit",
            )
        paths = {
            "root": self.layout.root,
            "state": f"{self.layout.workdir(desired.name)}/state",
            "environment": self.layout.environment(desired.name),
        }
        unit = _render.systemd_unit(desired.service, paths, self.user, self.group, desired.digest)
        write_file(path, unit, 0o644)

    def remove(self, name: str) -> None:
        self._systemctl("disable", self._unit(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.unit_directory}/{self._unit(name)}")
        self._systemctl("daemon-reload")

    def start(self, names: t.Sequence[str]) -> None:
        if not names:
            return
        units = [self._unit(name) for name in names]
        self._systemctl("daemon-reload")
        self._systemctl("reset-failed", *units, check=False)
        self._systemctl("enable", *units)
        self._systemctl("start", *units)

    def tail(self, name: str, lines: int) -> list[str]:
        shown = self.run(
            ["journalctl", "--unit", self._unit(name), "--lines", str(lines), "--output", "cat", "--no-pager"], 30
        )
        return [line.rstrip() for line in shown.out.splitlines() if line.strip()]

    # systemctl

    def _unit(self, name: str) -> str:
        return f"{PREFIX}{name}.service"

    def _systemctl(self, verb: str, *arguments: str, timeout: float = 90.0, check: bool = True) -> CommandResult:
        done = self.run(["systemctl", "--no-ask-password", verb, *arguments], timeout)
        if check and done.rc != 0:
            raise FleetError(
                "stack.systemctl",
                f"systemctl {verb} {' '.join(arguments)} failed: {done.last_words}",
                "exit status 0",
                "look at journalctl -xe on the host; a run as root (become: true) is needed",
            )
        return done


def gpu_containers(run: Runner) -> list[str]:
    """Names of the running containers that were given GPUs; empty without Docker."""
    listed = run(["docker", "ps", "--quiet"], 20)
    identifiers = listed.out.split()
    if listed.rc != 0 or not identifiers:
        return []
    form = "{{json .Name}}\t{{json .HostConfig.DeviceRequests}}\t{{json .HostConfig.Runtime}}"
    inspected = run(["docker", "inspect", "--format", form, *identifiers], 20)
    names = []
    for line in inspected.out.splitlines():
        fields = line.split("\t")
        if len(fields) == 3 and (json.loads(fields[1]) or json.loads(fields[2]) == "nvidia"):
            names.append(str(json.loads(fields[0])).lstrip("/"))
    return names
