# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The stack under systemd: one hardened unit a service."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _render
from ansible_collections.gpufleet.vllm.plugins.module_utils._compose import container_name
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
SEAL = re.compile(r"^# sha256=([0-9a-f]{64})\n", re.MULTILINE)
PROPERTIES = (
    "Id",
    "ActiveState",
    "SubState",
    "MainPID",
    "NRestarts",
    "Result",
    "ActiveEnterTimestampMonotonic",
    "UnitFileState",
)


def sealed(unit: str) -> str:
    """A unit with the checksum of itself, so that an edit shows."""
    return unit.replace("\n[Unit]\n", f"\n# sha256={hashlib.sha256(unit.encode()).hexdigest()}\n[Unit]\n", 1)


def installed_digest(text: str) -> str:
    """The digest that a unit was installed with; empty, so that it is written anew, where somebody edited it."""
    digest, seal = DIGEST.search(text), SEAL.search(text)
    if not digest or not seal or hashlib.sha256(SEAL.sub("", text, count=1).encode()).hexdigest() != seal.group(1):
        return ""
    return digest.group(1)


def parse_show(text: str) -> dict[str, dict[str, str]]:
    """``systemctl show`` of several units: blocks of ``Name=value`` with an empty line between them, by ``Id``."""
    units = {}
    for block in text.split("\n\n"):
        values = dict(line.split("=", 1) for line in block.splitlines() if "=" in line)
        if values.get("Id"):
            units[values["Id"]] = values
    return units


def parse_status(values: t.Mapping[str, str], boot: float = 0.0) -> Status:
    """Our state from systemd's: ``activating (auto-restart)`` has died and waits to be started again.

    ``boot`` is the epoch of the monotonic clock's zero.
    """
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
    # auto-restart, and from systemd 254 auto-restart-queued and dead-before-auto-restart.
    if "auto-restart" in sub:
        state = "restarting"
    entered = values.get("ActiveEnterTimestampMonotonic", "")
    since = boot + int(entered) / 1e6 if state == "running" and entered.isdigit() and int(entered) else None
    lasting = values.get("UnitFileState", "enabled") == "enabled"
    return Status(state=state, pid=pid, restarts=restarts, since=since, detail=detail, lasting=lasting)


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

    def check(self, changing: t.Sequence[str], leaving: t.Sequence[str] = ()) -> None:
        if not changing:
            return
        for name in changing:
            self._refuse_foreign(name)
        if not os.access(self.unit_directory, os.W_OK):
            raise FleetError(
                "stack.not_root",
                f"uid {os.geteuid()} may not write {self.unit_directory}",
                "a run as root, which systemd units need",
                "set become: true, or vllm_runtime: supervisor, which needs no root",
            )
        if self.allow_daemon_reload:
            return
        ended = {container_name(name) for name in leaving}
        containers = [name for name in gpu_containers(self.run) if name not in ended]
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

    def pending(self, _desired: t.Sequence[Desired]) -> bool:
        return False

    def judge(self, _desired: t.Sequence[Desired]) -> None:
        """Nothing to do: each service is judged by the plan."""

    def define(self, _desired: t.Sequence[Desired]) -> None:
        """Nothing to do: each service has a unit of its own."""

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
                    found[file[len(PREFIX) : -len(".service")]] = installed_digest(text)
        return found

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        installed = self.installed()
        wanted = [name for name in dict.fromkeys(names) if name in installed]
        if not wanted:
            return {}
        units = [self._unit(name) for name in wanted]
        shown = self._systemctl("show", "--property=" + ",".join(PROPERTIES), *units)
        blocks = parse_show(shown.out)
        boot = time.time() - time.monotonic()
        return {name: parse_status(blocks.get(self._unit(name), {}), boot) for name in wanted}

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        installed = self.installed()
        units = [self._unit(name) for name in names if name in installed]
        if not units:
            return
        done = self._systemctl("stop", *units, timeout=timeout, check=False)
        if done.timed_out:
            raise FleetError(
                "stack.stop_timeout",
                f"{', '.join(units)} still runs {timeout:g} s after it was asked to stop",
                "a stop within drain_seconds and a margin",
                "systemd goes on stopping it: look at 'systemctl list-jobs' and its journal, then run again",
            )
        self._succeeded(done, "stop", *units)

    def install(self, desired: Desired) -> None:
        self._refuse_foreign(desired.name)
        paths = {
            "root": self.layout.root,
            "state": f"{self.layout.workdir(desired.name)}/state",
            "environment": self.layout.environment(desired.name),
        }
        unit = _render.systemd_unit(desired.service, paths, self.user, self.group, desired.digest)
        write_file(self._path(desired.name), sealed(unit), 0o644)

    def remove(self, name: str) -> None:
        if name not in self.installed():
            return
        self._systemctl("disable", self._unit(name))
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._path(name))
        self._systemctl("daemon-reload")
        # A unit that failed stays listed without its file.
        self._systemctl("reset-failed", self._unit(name), check=False)

    def start(self, names: t.Sequence[str]) -> None:
        if not names:
            return
        units = [self._unit(name) for name in names]
        self._systemctl("daemon-reload")
        self._systemctl("reset-failed", *units, check=False)
        self._systemctl("enable", *units)
        done = self._systemctl("start", *units, check=False)
        if done.rc == 0:
            return
        dead = [name for name, status in self.status(names).items() if status.state not in ("running", "starting")]
        if not dead:
            self._succeeded(done, "start", *units)
        said = " | ".join(line for name in dead for line in self.tail(name, 5))
        raise FleetError(
            "stack.start",
            f"systemd could not start {', '.join(dead)}: {said or done.last_words}",
            "a process that starts",
            "correct what its journal says, then run again",
        )

    def tail(self, name: str, lines: int) -> list[str]:
        shown = self.run(
            ["journalctl", "--unit", self._unit(name), "--lines", str(lines), "--output", "cat", "--no-pager"], 30
        )
        lines_ = [line.rstrip() for line in shown.out.splitlines() if line.strip() and line != "-- No entries --"]
        # Without the right to read the journal it is empty, and says so elsewhere.
        return lines_ or [f"journalctl: {line.strip()}" for line in shown.err.splitlines() if line.strip()][:lines]

    def published(self) -> dict[int, str]:
        return {}

    def shutdown(self, _timeout: float) -> bool:
        return False  # systemd stays

    # systemctl

    def _path(self, name: str) -> str:
        return f"{self.unit_directory}/{self._unit(name)}"

    def _refuse_foreign(self, name: str) -> None:
        path = self._path(name)
        present = read_text(path)
        if os.path.lexists(path) and f"\n# root={self.layout.root}\n" not in (present or ""):
            raise FleetError(
                "stack.foreign_unit",
                f"{path} exists and is not ours",
                f"a unit made by this collection for {self.layout.root}, or none",
                "rename the service, or remove that unit",
            )

    def _unit(self, name: str) -> str:
        return f"{PREFIX}{name}.service"

    def _systemctl(self, verb: str, *arguments: str, timeout: float = 90.0, check: bool = True) -> CommandResult:
        done = self.run(["systemctl", "--no-ask-password", verb, *arguments], timeout)
        if check:
            self._succeeded(done, verb, *arguments)
        return done

    def _succeeded(self, done: CommandResult, verb: str, *arguments: str) -> None:
        if done.rc != 0:
            # The first line says what failed, the last one where to read more.
            said = next((line.strip() for line in done.err.splitlines() if line.strip()), done.last_words)
            raise FleetError(
                "stack.systemctl",
                f"'systemctl {' '.join([verb, *arguments])}' failed: {said}",
                "exit status 0",
                "look at 'journalctl -xe' on the host; a run as root (become: true) is needed",
            )


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
        with contextlib.suppress(ValueError):  # a line that is no container's
            if len(fields) == 3 and (json.loads(fields[1]) or json.loads(fields[2]) == "nvidia"):
                names.append(str(json.loads(fields[0])).lstrip("/"))
    return names
