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
import signal
import socket
import sys
import time
import typing as t
import xml.parsers.expat
import xmlrpc.client

from ansible_collections.gpufleet.vllm.plugins.module_utils import _host, _render
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

# sockaddr_un.sun_path holds 108 bytes, its end included; supervisord first binds the name with ".PID" behind it.
SOCKET_PATH_LIMIT = 107 - len(".4194304")
STOP_WAIT = re.compile(r"^stopwaitsecs=(\d+)$", re.MULTILINE)
LONGEST_EXIT = 60.0
# supervisor.xmlrpc.Faults
BAD_NAME, NOT_RUNNING, SHUTDOWN_STATE = 10, 70, 6
DIGEST = re.compile(r'^environment=GPUFLEET_DIGEST="([0-9a-f]+)"$', re.MULTILINE)
# supervisord's process states (supervisor.states.ProcessStates) in our words.
STATES = {
    "STARTING": "starting",
    "RUNNING": "running",
    "BACKOFF": "restarting",
    "STOPPING": "stopped",
    "STOPPED": "stopped",
    "EXITED": "restarting",
    "FATAL": "failed",
    "UNKNOWN": "failed",
}


class _NoAnswer(FleetError):
    """No supervisord at the socket, or one that hung up."""


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=30)
        self._path = path

    def connect(self) -> None:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self._path)
        except BaseException:
            connection.close()
            raise
        self.sock = connection


class _Leaving(FleetError):
    """A supervisord on its way out: it waits for its processes, and refuses every request."""


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._path = path

    def make_connection(self, host: t.Any) -> http.client.HTTPConnection:
        # Kept where close() looks for it.
        self._connection = host, _UnixConnection(self._path)
        return self._connection[1]

    def parse_response(self, response: t.Any) -> t.Any:
        with response:  # an answer that is no XML would leave it open
            return super().parse_response(response)


def _leads_group(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False


def _runs(pid: int) -> bool:
    """Not a zombie, which only its parent can clear away."""
    return _host.read(f"/proc/{pid}/stat").rpartition(")")[2].split()[:1] not in ([], ["Z"], ["X"])


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
        # What supervisord runs without a file is ours as well: the file of it was lost.
        found = dict.fromkeys(self._processes(), "")
        found.update((name, parse_digest(read_text(self._program(name)) or "")) for name in self._files())
        return found

    def status(self, names: t.Iterable[str]) -> dict[str, Status]:
        known = {name: parse_status(info) for name, info in self._processes().items()}
        files = self._files()
        if files and not known:
            known = {
                name: Status("stopped", pid=pid, detail="left behind by a supervisord that is gone")
                for name, pid in self._orphans().items()
            }
        return {name: known.get(name, Status("stopped")) for name in names if name in known or name in files}

    def check(self, changing: t.Sequence[str], _leaving: t.Sequence[str] = ()) -> None:
        if changing and len(os.fsencode(self.socket)) > SOCKET_PATH_LIMIT:
            raise FleetError(
                "stack.path_too_long",
                f"the control socket {self.socket} has {len(os.fsencode(self.socket))} bytes",
                f"at most {SOCKET_PATH_LIMIT}, a limit of Unix sockets",
                "set vllm_root to a shorter path",
            )

    def pending(self, _desired: t.Sequence[Desired]) -> bool:
        return False

    def judge(self, _desired: t.Sequence[Desired]) -> None:
        """Nothing to do: each service is judged by the plan."""

    def define(self, _desired: t.Sequence[Desired]) -> None:
        """Nothing to do: each service has a program file of its own."""

    def published(self) -> dict[int, str]:
        return {}

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
        if self._leaving():
            self._await_exit(LONGEST_EXIT)
        if not self._answers():
            self._refuse_deaf_daemon()
            self._end_orphans()
            self._start_daemon()

    def install(self, desired: Desired) -> None:
        script = self.layout.script(desired.name)
        environment = self.layout.environment(desired.name)
        write_file(
            script,
            _render.launch_script(
                environment, desired.service["command"], f"{self.layout.workdir(desired.name)}/state"
            ),
            0o700,
        )
        paths = {
            "script": script,
            "state": self._state(desired.name),
            "log": self.layout.log(desired.name),
        }
        program = _render.supervisor_program(desired.service, paths, desired.digest)
        write_file(self._program(desired.name), program, 0o600)

    def remove(self, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self._program(name))
        self._forget(name)
        # supervisor ends the group of the process that it started last; workers of one that was killed are left.
        for pid in _host.workers_in(self._state(name)):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)

    def stop(self, names: t.Sequence[str], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        running = self._alive(names)
        while running and time.monotonic() < deadline:
            for name in running:
                # Asked again and again, since one that exited by itself can only be stopped once it is started again.
                self._call("stopProcess", name, False, missing_ok=True)
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
            self.stop([name], LONGEST_EXIT)
            self._forget(name)
            self._call("addProcessGroup", name)

    def tail(self, name: str, lines: int) -> list[str]:
        """Of the process that started last: what an earlier one said is not its."""
        said = tail_file(self.layout.log(name), 10_000)
        if _render.STARTED in said:
            said = said[len(said) - said[::-1].index(_render.STARTED) :]
        return said[-lines:]

    def shutdown(self, timeout: float) -> bool:
        """End supervisord and all that it runs; ``False`` if it did not run."""
        if not self._answers():
            self._refuse_deaf_daemon()
            self._end_orphans()
            return False
        if not self._leaving():
            self._call("shutdown")
        self._await_exit(timeout)
        return True

    def _await_exit(self, timeout: float) -> None:
        deadline = time.monotonic() + timeout
        # It closes its socket before it ends.
        while self._answers() or self._daemon():
            if time.monotonic() > deadline:
                raise FleetError(
                    "stack.stop_timeout",
                    f"supervisord of {self.layout.root} still runs {timeout:g} s after it was asked to stop",
                    "a stop within the drain time",
                    f"look at {self.layout.logs}/supervisord.log, then run again",
                )
            time.sleep(0.2)

    def version(self) -> str:
        marker = read_text(f"{self.venv}/gpufleet-requirements") or ""
        return marker.strip()

    # supervisord

    def _state(self, name: str) -> str:
        return f"{self.layout.workdir(name)}/state"

    def _program(self, name: str) -> str:
        return f"{self.programs}/{name}.conf"

    def _call(self, method: str, *arguments: t.Any, missing_ok: bool = False) -> t.Any:
        try:
            with xmlrpc.client.ServerProxy("http://localhost/RPC2", _UnixTransport(self.socket)) as proxy:
                return getattr(proxy.supervisor, method)(*arguments)
        except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError, xml.parsers.expat.ExpatError) as exc:
            raise _NoAnswer(
                "stack.supervisor",
                f"supervisord did not answer {method} at {self.socket}: {getattr(exc, 'strerror', None) or exc}",
                "an answer within 30 s",
                f"look at {self.layout.logs}/supervisord.log, then run again",
            ) from None
        except xmlrpc.client.Fault as exc:
            if missing_ok and exc.faultCode in (BAD_NAME, NOT_RUNNING):
                return None
            if exc.faultCode == SHUTDOWN_STATE:
                raise _Leaving(
                    "stack.supervisor",
                    f"supervisord of {self.layout.root} is shutting down",
                    "one that runs, or none",
                    "wait until it has ended, then run again",
                ) from None
            raise FleetError(
                "stack.supervisor",
                f"supervisord refused {method}{arguments}: {exc.faultString}",
                "success",
                f"look at {self.layout.logs}/supervisord.log",
            ) from None

    def _files(self) -> list[str]:
        """Names of the services that have a definition."""
        try:
            return sorted(name[:-5] for name in os.listdir(self.programs) if name.endswith(".conf"))
        except FileNotFoundError:
            return []

    def _processes(self) -> dict[str, dict[str, t.Any]]:
        """``getAllProcessInfo`` by name; empty where no supervisord runs."""
        try:
            return {str(info["name"]): info for info in self._call("getAllProcessInfo")}
        except (_NoAnswer, _Leaving):
            return {}

    def _answers(self) -> bool:
        try:
            self._call("getState")
        except _NoAnswer:
            return False
        except _Leaving:
            pass
        return True

    def _leaving(self) -> bool:
        try:
            self._call("getState")
        except _NoAnswer:
            return False
        except _Leaving:
            return True
        return False

    def _alive(self, names: t.Sequence[str]) -> list[str]:
        states = {name: str(info.get("statename")) for name, info in self._processes().items()}
        # BACKOFF and EXITED have no process, yet supervisor starts them again: a stop is what ends that.
        alive = ("STARTING", "RUNNING", "BACKOFF", "STOPPING", "EXITED")
        return [name for name in names if states.get(name) in alive]

    def _forget(self, name: str) -> None:
        with contextlib.suppress(_NoAnswer):
            self._call("removeProcessGroup", name, missing_ok=True)

    def _daemon(self) -> int:
        """The pid of this root's supervisord, 0 if none runs; a pid that another program took over is none."""
        text = (read_text(f"{self.base}/supervisord.pid") or "").strip()
        ours = text.isdigit() and self.config in _host.read(f"/proc/{text}/cmdline").split("\0")
        return int(text) if ours else 0

    def _refuse_deaf_daemon(self) -> None:
        """A second supervisord beside one that lost its socket would run every service twice."""
        pid = self._daemon()
        if pid:
            raise FleetError(
                "stack.supervisor",
                f"supervisord (pid {pid}) runs, but does not answer at {self.socket}",
                "an answer at its control socket",
                f"end it and its services with 'kill {pid}', then run again",
            )

    def _orphans(self) -> dict[str, int]:
        """Main processes that outlived a killed supervisord, by service: they hold ports and GPUs."""
        found: dict[str, int] = {}
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                values = _host.read(f"/proc/{entry}/environ").split("\0")
                words = dict(value.split("=", 1) for value in values if "=" in value)
                if words.get("SUPERVISOR_SERVER_URL") == f"unix://{self.socket}" and _leads_group(int(entry)):
                    found[words.get("SUPERVISOR_PROCESS_NAME", "")] = int(entry)
        return found

    def _end_orphans(self) -> None:
        """As supervisord would: SIGTERM to the main process, and SIGKILL to its group when it does not end in time."""
        for name, pid in self._orphans().items():
            wait = STOP_WAIT.search(read_text(self._program(name)) or "")
            deadline = time.monotonic() + (int(wait.group(1)) if wait else LONGEST_EXIT)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
            while _runs(pid) and time.monotonic() < deadline:
                time.sleep(0.1)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _start_daemon(self) -> None:
        # Whatever the caller has exported, keys and tokens among it, is none of supervisord's business.
        clean = ["env", "-i", f"PATH={os.defpath}", f"HOME={self.layout.root}", "LC_ALL=C.UTF-8"]
        done = self.run([*clean, f"{self.venv}/bin/supervisord", "-c", self.config], 60)
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
