# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The stack under supervisor (the PyPI project), for hosts without systemd and for a try-out that needs no root."""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import os
import re
import shutil
import socket
import sys
import time
import typing as t
import xmlrpc.client

from ansible_collections.gpufleet.vllm.plugins.module_utils import _render
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import (
    Desired,
    Layout,
    Status,
    make_directory,
    read_text,
    tail_file,
    write_file,
)

# sockaddr_un.sun_path holds 108 bytes, its end included.
SOCKET_PATH_LIMIT = 107
DIGEST = re.compile(r'^environment=GPUFLEET_DIGEST="([0-9a-f]+)"$', re.MULTILINE)
# supervisord's process states (supervisor.states.ProcessStates) in our words.
STATES = {
    "STARTING": "starting",
    "RUNNING": "running",
    "BACKOFF": "failed",
    "STOPPING": "stopped",
    "STOPPED": "stopped",
    "EXITED": "failed",
    "FATAL": "failed",
    "UNKNOWN": "failed",
}


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: t.Any) -> http.client.HTTPConnection:
        return _UnixConnection(self._path)


def parse_digest(program: str) -> str:
    found = DIGEST.search(program)
    return found.group(1) if found else ""


def parse_status(info: t.Mapping[str, t.Any]) -> Status:
    """One entry of ``supervisor.getAllProcessInfo``."""
    state = STATES.get(str(info.get("statename")), "failed")
    pid = int(info.get("pid") or 0) or None
    since = float(info.get("start") or 0) or None
    detail = str(info.get("spawnerr") or info.get("description") or "")
    return Status(state=state, pid=pid, since=since if pid else None, detail=detail)


class SupervisorBackend:
    """One supervisord per root, started on demand; ``requirements`` is the hashed lock it is installed from."""

    def __init__(
        self,
        layout: Layout,
        run: Runner,
        requirements: str = "",
        pip_args: t.Sequence[str] = (),
    ) -> None:
        self.layout = layout
        self.run = run
        self.requirements = requirements
        self.pip_args = list(pip_args)
        self.base = f"{layout.root}/supervisor"
        self.programs = f"{self.base}/conf.d"
        self.config = f"{self.base}/supervisord.conf"
        self.socket = f"{self.base}/supervisor.sock"
        self.venv = f"{self.base}/venv"

    # Backend

    def installed(self) -> dict[str, str]:
        try:
            files = sorted(os.listdir(self.programs))
        except FileNotFoundError:
            return {}
        names = [name[:-5] for name in files if name.endswith(".conf")]
        return {name: parse_digest(read_text(self._program(name)) or "") for name in names}

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        known: dict[str, Status] = {}
        with contextlib.suppress(OSError, http.client.HTTPException):
            known = {str(info["name"]): parse_status(info) for info in self._call("getAllProcessInfo")}
        installed = self.installed()
        return {name: known.get(name, Status("stopped")) for name in names if name in known or name in installed}

    def check(self, changing: bool) -> None:
        if changing and len(os.fsencode(self.socket)) > SOCKET_PATH_LIMIT:
            raise FleetError(
                "stack.path_too_long",
                f"the control socket {self.socket} has {len(os.fsencode(self.socket))} bytes",
                f"at most {SOCKET_PATH_LIMIT}, a limit of Unix sockets",
                "set vllm_root to a shorter path",
            )

    def prepare(self) -> None:
        make_directory(self.base, 0o700)
        make_directory(self.programs, 0o700)
        self._install_supervisor()
        paths = {
            "root": self.layout.root,
            "socket": self.socket,
            "pid": f"{self.base}/supervisord.pid",
            "log": f"{self.layout.logs}/supervisord.log",
            "programs": self.programs,
        }
        text = _render.supervisor_config(paths)
        if read_text(self.config) != text:
            write_file(self.config, text, 0o600)
        if not self._answers():
            self._start_daemon()

    def install(self, desired: Desired) -> None:
        script = self.layout.script(desired.name)
        environment = self.layout.environment(desired.name)
        write_file(
            script,
            _render.launch_script(environment, desired.service["command"]),
            0o700,
        )
        paths = {
            "script": script,
            "state": f"{self.layout.workdir(desired.name)}/state",
            "log": self.layout.log(desired.name),
        }
        program = _render.supervisor_program(desired.service, paths, desired.digest)
        write_file(self._program(desired.name), program, 0o600)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._program(name))
        self._forget(name)

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        running = self._alive(names)
        for name in running:
            # BACKOFF has no process, yet supervisor would start it again: stopping it is what ends the retries.
            self._call("stopProcess", name, False, missing_ok=True)
        deadline = time.monotonic() + timeout
        while running and time.monotonic() < deadline:
            time.sleep(0.2)
            running = self._alive(running)
        if running:
            raise FleetError(
                "stack.stop_timeout",
                f"{', '.join(running)} still runs {timeout:g} s after it was asked to stop",
                "a stop within drain_seconds and a margin",
                "look at its log; end it by its pid if it hangs, then run again",
            )

    def start(self, names: t.Sequence[str]) -> None:
        if not names:
            return
        self._call("reloadConfig")
        for name in names:
            # A group keeps the configuration it was added with, so it is added anew; adding starts it (autostart).
            self._call("stopProcess", name, True, missing_ok=True)
            self._forget(name)
            self._call("addProcessGroup", name)

    def tail(self, name: str, lines: int) -> list[str]:
        return tail_file(self.layout.log(name), lines)

    def shutdown(self, timeout: float) -> bool:
        """End supervisord and all that it runs; ``False`` if it did not run."""
        if not self._answers():
            return False
        self._call("shutdown")
        deadline = time.monotonic() + timeout
        while self._answers():
            if time.monotonic() > deadline:
                raise FleetError(
                    "stack.stop_timeout",
                    f"supervisord of {self.layout.root} still runs {timeout:g} s after it was asked to stop",
                    "a stop within the drain time",
                    f"look at {self.layout.logs}/supervisord.log, then run again",
                )
            time.sleep(0.2)
        return True

    def version(self) -> str:
        marker = read_text(f"{self.venv}/gpufleet-requirements") or ""
        return marker.strip()

    # supervisord

    def _program(self, name: str) -> str:
        return f"{self.programs}/{name}.conf"

    def _call(self, method: str, *arguments: t.Any, missing_ok: bool = False) -> t.Any:
        proxy = xmlrpc.client.ServerProxy("http://localhost/RPC2", transport=_UnixTransport(self.socket))
        try:
            return getattr(proxy.supervisor, method)(*arguments)
        except xmlrpc.client.Fault as exc:
            # 10 BAD_NAME, 70 NOT_RUNNING, 90 ALREADY_ADDED
            if missing_ok and exc.faultCode in (10, 70):
                return None
            raise FleetError(
                "stack.supervisor",
                f"supervisord refused {method}{arguments}: {exc.faultString}",
                "success",
                f"look at {self.layout.logs}/supervisord.log",
            ) from None

    def _answers(self) -> bool:
        try:
            self._call("getState")
        except (OSError, http.client.HTTPException):
            return False
        return True

    def _alive(self, names: t.Sequence[str]) -> list[str]:
        try:
            states = {str(info["name"]): str(info["statename"]) for info in self._call("getAllProcessInfo")}
        except (OSError, http.client.HTTPException):
            return []
        return [name for name in names if states.get(name) in ("STARTING", "RUNNING", "BACKOFF", "STOPPING")]

    def _forget(self, name: str) -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            self._call("removeProcessGroup", name, missing_ok=True)

    def _start_daemon(self) -> None:
        done = self.run([f"{self.venv}/bin/supervisord", "-c", self.config], 60)
        deadline = time.monotonic() + 20
        while done.rc == 0 and time.monotonic() < deadline:
            if self._answers():
                return
            time.sleep(0.1)
        raise FleetError(
            "stack.supervisor",
            f"supervisord did not start: {next(iter(done.err.splitlines()), '') or done.last_words}",
            f"a control socket at {self.socket}",
            f"look at {self.layout.logs}/supervisord.log",
        )

    def _install_supervisor(self) -> None:
        wanted = hashlib.sha256(self.requirements.encode()).hexdigest()
        if not self.requirements or self.version() == wanted:
            return
        # A venv without its marker was left by a run that was ended half-way.
        shutil.rmtree(self.venv, ignore_errors=True)
        lock = f"{self.base}/requirements.txt"
        write_file(lock, self.requirements, 0o600)
        steps = (
            [sys.executable, "-m", "venv", self.venv],
            [f"{self.venv}/bin/python", "-m", "pip", "install", "--quiet", "--no-input", "--disable-pip-version-check",
             "--require-hashes", *self.pip_args, "-r", lock],
        )  # fmt: skip
        for step in steps:
            done = self.run(step, 900)
            if done.rc != 0:
                raise FleetError(
                    "stack.supervisor_install",
                    f"'{os.path.basename(step[0])} {' '.join(step[1:3])}' failed: {done.last_words}",
                    "supervisor installed into its own venv",
                    "make pip reach an index (vllm_runtime_pip_args), and on Debian install python3-venv",
                )
        os.unlink(lock)
        write_file(f"{self.venv}/gpufleet-requirements", wanted + "\n", 0o644)
