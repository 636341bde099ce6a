# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import os
import signal
import socketserver
import stat
import subprocess
import sys
import tempfile
import threading
import typing as t
import xmlrpc.client
from pathlib import Path
from xmlrpc.server import SimpleXMLRPCDispatcher, SimpleXMLRPCRequestHandler

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _supervisor
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Desired, Layout
from ansible_collections.gpufleet.vllm.plugins.module_utils._supervisor import SupervisorBackend, parse_status

NOT_RUNNING = xmlrpc.client.Fault(70, "NOT_RUNNING: x")
BAD_NAME = xmlrpc.client.Fault(10, "BAD_NAME: x")


class Handler(SimpleXMLRPCRequestHandler):
    rpc_paths = ("/RPC2",)
    disable_nagle_algorithm = False

    def address_string(self) -> str:
        return "unix"

    def log_message(self, *_args: t.Any) -> None:
        pass


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer, SimpleXMLRPCDispatcher):
    daemon_threads = True
    logRequests = False


class Supervisord:
    """The requests of supervisord that we use, with its states and its faults."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.calls: list[str] = []
        self.processes: dict[str, str] = {}
        self.definitions: set[str] = set()
        self.leaving = 0
        self.stubborn: set[str] = set()
        self.server: Server | None = None

    def start(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)
        server = Server(self.path, Handler)
        SimpleXMLRPCDispatcher.__init__(server, allow_none=True)
        server.register_function(self._dispatch_factory("getState"), "supervisor.getState")
        for name in ("getAllProcessInfo", "stopProcess", "removeProcessGroup", "addProcessGroup", "reloadConfig",
                     "shutdown"):  # fmt: skip
            server.register_function(self._dispatch_factory(name), f"supervisor.{name}")
        self.server = server
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()

    def stop(self) -> None:
        if self.server:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def _dispatch_factory(self, name: str) -> t.Callable[..., t.Any]:
        def call(*arguments: t.Any) -> t.Any:
            if self.leaving:
                self.leaving -= 1
                if not self.leaving:
                    threading.Thread(target=self.stop, daemon=True).start()
                raise xmlrpc.client.Fault(6, "SHUTDOWN_STATE")
            if name not in ("getState", "getAllProcessInfo"):
                self.calls.append(" ".join([name, *map(str, arguments)]))
            return getattr(self, f"_{name}")(*arguments)

        return call

    def _getState(self) -> dict[str, t.Any]:
        return {"statecode": 1, "statename": "RUNNING"}

    def _getAllProcessInfo(self) -> list[dict[str, t.Any]]:
        pids = ("RUNNING", "STARTING", "STOPPING")
        answer = [
            {"name": name, "group": name, "statename": state, "pid": 42 if state in pids else 0, "start": 1700000000,
             "spawnerr": "", "description": f"is {state}"}
            for name, state in self.processes.items()
        ]  # fmt: skip
        for name, state in self.processes.items():
            # What a transition of supervisord does meanwhile.
            after = {"STOPPING": "STOPPED", "EXITED": "RUNNING"}.get(state, state)
            self.processes[name] = state if name in self.stubborn else after
        return answer

    def _stopProcess(self, name: str, _wait: bool) -> bool:
        if name not in self.processes:
            raise BAD_NAME
        if self.processes[name] not in ("RUNNING", "STARTING", "BACKOFF"):
            raise NOT_RUNNING
        self.processes[name] = "STOPPED" if self.processes[name] == "BACKOFF" else "STOPPING"
        return True

    def _removeProcessGroup(self, name: str) -> bool:
        if name not in self.processes:
            raise BAD_NAME
        if self.processes[name] not in ("STOPPED", "FATAL"):
            raise xmlrpc.client.Fault(91, f"STILL_RUNNING: {name}")
        del self.processes[name]
        return True

    def _addProcessGroup(self, name: str) -> bool:
        if name not in self.definitions:
            raise BAD_NAME
        self.processes[name] = "STARTING"
        return True

    def _reloadConfig(self) -> list[t.Any]:
        self.definitions = {path.stem for path in Path(self.path).parent.glob("conf.d/*.conf")}
        return [[[], [], []]]

    def _shutdown(self) -> bool:
        self.leaving = 3
        return True


@pytest.fixture
def home() -> t.Iterator[Path]:
    # A socket's path has 107 bytes at most, so not below pytest's own directory.
    with tempfile.TemporaryDirectory(prefix="gf") as directory:
        yield Path(directory)


@pytest.fixture
def daemon(home: Path) -> t.Iterator[Supervisord]:
    (home / "supervisor").mkdir(mode=0o700)
    (home / "supervisor/conf.d").mkdir(mode=0o700)
    (home / "logs").mkdir()
    (home / "services").mkdir()
    fake = Supervisord(str(home / "supervisor/supervisor.sock"))
    yield fake
    fake.stop()


class Runner:
    """Records argument vectors; starting supervisord starts the fake one."""

    def __init__(self, daemon: Supervisord | None = None, fail: str = "") -> None:
        self.daemon = daemon
        self.fail = fail
        self.calls: list[list[str]] = []

    def __call__(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        self.calls.append(list(argv))
        if self.fail and self.fail in " ".join(argv):
            return CommandResult(1, "", "Error: no luck\nFor help, use -h\n")
        if list(argv[1:3]) == ["-m", "venv"]:
            os.makedirs(argv[3])
        # Behind `env -i NAME=VALUE...`: it gets an environment of its own.
        if any(word.endswith("/supervisord") for word in argv) and self.daemon:
            self.daemon.start()
        return CommandResult(0, "", "")


def backend_of(home: Path, run: Runner | None = None, **options: t.Any) -> SupervisorBackend:
    return SupervisorBackend(Layout(str(home)), run or Runner(), **options)


def desired(name: str = "a", digest: str = "abc123") -> Desired:
    service = {"name": name, "model": "org/m", "command": ["/opt/vllm", "serve", "/m"], "stop_timeout": 45,
               "environment": {"A": "1"}}  # fmt: skip
    return Desired(service, {}, digest)


def install(home: Path, backend: SupervisorBackend, *names: str) -> None:
    for name in names:
        (home / "services" / name / "state").mkdir(parents=True, exist_ok=True)
        backend.install(desired(name))


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("STARTING", "starting"),
        ("RUNNING", "running"),
        ("BACKOFF", "restarting"),
        ("EXITED", "restarting"),
        ("FATAL", "failed"),
        ("STOPPING", "stopped"),
        ("STOPPED", "stopped"),
        ("UNKNOWN", "failed"),
        ("SOMETHING_NEW", "failed"),
    ],
)
def test_states(name: str, state: str) -> None:
    status = parse_status({"statename": name, "pid": 0, "start": 1700000000, "spawnerr": "", "description": "words"})
    assert (status.state, status.pid, status.since, status.detail) == (state, None, None, "words")


def test_what_a_dead_process_said() -> None:
    # As supervisord 4.3.0 answers.
    info = {
        "name": "a", "group": "a", "start": 1764000000, "stop": 1764000002, "now": 1764000003, "state": 200,
        "statename": "FATAL", "spawnerr": "Exited too quickly (process log may have details)", "exitstatus": 1,
        "logfile": "/x/a.log", "stdout_logfile": "/x/a.log", "stderr_logfile": "", "pid": 0,
        "description": "Exited too quickly (process log may have details)",
    }  # fmt: skip
    assert parse_status(info).detail == "Exited too quickly (process log may have details)"
    running = parse_status({**info, "statename": "RUNNING", "pid": 7, "spawnerr": "", "description": "pid 7"})
    assert (running.pid, running.since) == (7, 1764000000.0)


def test_install_is_private_and_found_again(home: Path, daemon: Supervisord) -> None:
    backend = backend_of(home)
    assert backend.installed() == {}
    install(home, backend, "a")
    assert backend.installed() == {"a": "abc123"}
    assert stat.S_IMODE((home / "services/a/run.sh").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "supervisor/conf.d/a.conf").stat().st_mode) == 0o600
    (home / "supervisor/conf.d/b.conf").write_bytes(b"\xff[program:b]")
    assert backend.installed() == {"a": "abc123", "b": ""}
    assert backend_of(home / "nowhere").installed() == {}


def test_prepare_starts_a_daemon_once(home: Path, daemon: Supervisord) -> None:
    run = Runner(daemon)
    backend = backend_of(home, run)
    backend.prepare()
    backend.prepare()
    assert [call[-3:] for call in run.calls] == [
        [f"{home}/supervisor/venv/bin/supervisord", "-c", f"{home}/supervisor/supervisord.conf"]
    ]
    # None of the caller\'s keys and tokens reaches it.
    assert run.calls[0][:2] == ["env", "-i"]
    assert stat.S_IMODE((home / "supervisor").stat().st_mode) == 0o700
    assert stat.S_IMODE((home / "supervisor/supervisord.conf").stat().st_mode) == 0o600


def test_a_stale_socket_is_no_daemon(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    daemon.stop()
    assert os.path.exists(daemon.path)
    backend = backend_of(home, Runner(daemon))
    install(home, backend, "a")
    assert backend.status(["a", "b"]) == {"a": _supervisor.Status("stopped")}
    backend.stop(["a"], 1)
    backend.prepare()
    assert backend.status(["a"])["a"].state == "stopped"


def test_order_of_start(home: Path, daemon: Supervisord) -> None:
    backend = backend_of(home, Runner(daemon))
    backend.prepare()
    install(home, backend, "a", "b")
    daemon.processes["b"] = "FATAL"
    backend.start([])
    backend.start(["a", "b"])
    assert daemon.calls == [
        "reloadConfig", "removeProcessGroup a", "addProcessGroup a", "removeProcessGroup b", "addProcessGroup b"
    ]  # fmt: skip
    assert backend.status(["a", "b"])["b"].state == "starting"


@pytest.mark.parametrize("state", ["RUNNING", "STARTING", "BACKOFF", "STOPPING", "EXITED"])
def test_stop_ends_what_lives_or_would_live_again(home: Path, daemon: Supervisord, state: str) -> None:
    daemon.start()
    daemon.processes["a"] = state
    backend = backend_of(home)
    backend.stop(["a", "unknown"], 10)
    assert daemon.processes["a"] == "STOPPED"
    backend.remove("a")
    assert daemon.processes == {}
    backend.remove("a")


def test_a_process_that_does_not_stop(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    daemon.processes["a"] = "RUNNING"
    daemon.stubborn.add("a")
    with pytest.raises(FleetError) as caught:
        backend_of(home).stop(["a"], 0.3)
    assert caught.value.code == "stack.stop_timeout"
    assert "a still runs 0.3 s" in caught.value.seen


def test_a_group_without_its_file_is_still_ours(home: Path, daemon: Supervisord) -> None:
    """Or a service would go on holding its GPU, unseen by every run."""
    daemon.start()
    daemon.processes["lost"] = "RUNNING"
    backend = backend_of(home)
    assert backend.installed() == {"lost": ""}
    assert backend.status(["lost"])["lost"].state == "running"


def test_a_definition_that_supervisor_refuses(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    with pytest.raises(FleetError) as caught:
        backend_of(home).start(["a"])
    assert caught.value.code == "stack.supervisor"
    assert "addProcessGroup" in caught.value.seen
    assert "BAD_NAME" in caught.value.seen


def test_shutdown_waits_for_the_end(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    backend = backend_of(home)
    assert backend.shutdown(10) is True
    assert daemon.calls == ["shutdown"]
    assert daemon.server is None
    assert backend.shutdown(10) is False


def test_shutdown_that_takes_too_long(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    daemon.leaving = 1000
    with pytest.raises(FleetError) as caught:
        backend_of(home).shutdown(0.5)
    assert caught.value.code == "stack.stop_timeout"
    assert daemon.calls == []


def test_a_daemon_on_its_way_out_is_waited_for_and_replaced(home: Path, daemon: Supervisord) -> None:
    daemon.start()
    daemon.leaving = 4
    backend = backend_of(home, Runner(daemon))
    assert backend.status(["a"]) == {}
    backend.prepare()
    assert daemon.server is not None
    assert not daemon.leaving


def test_a_deaf_daemon_gets_no_twin(home: Path, daemon: Supervisord) -> None:
    run = Runner(daemon)
    backend = backend_of(home, run)
    script = "import sys, time; time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", script, "-c", backend.config])
    try:
        (home / "supervisor/supervisord.pid").write_text(f"{process.pid}\n")
        for act in (backend.prepare, lambda: backend.shutdown(1)):
            with pytest.raises(FleetError) as caught:
                act()
            assert f"(pid {process.pid}) runs, but does not answer" in caught.value.seen
            assert f"kill {process.pid}" in caught.value.remedy
        assert run.calls == []
    finally:
        process.kill()
        process.wait()
    backend.prepare()
    assert len(run.calls) == 1


@pytest.mark.parametrize("text", ["", "x", "1", "99999999"])
def test_a_pid_file_of_the_past_is_no_daemon(home: Path, daemon: Supervisord, text: str) -> None:
    (home / "supervisor/supervisord.pid").write_text(text)
    assert backend_of(home)._daemon() == 0


@pytest.mark.parametrize("deaf", [False, True], ids=["ends on SIGTERM", "ignores it"])
def test_processes_that_outlived_their_daemon_are_ended(home: Path, daemon: Supervisord, deaf: bool) -> None:
    backend = backend_of(home, Runner(daemon))
    install(home, backend, "a")
    program = home / "supervisor/conf.d/a.conf"
    program.write_text(program.read_text().replace("stopwaitsecs=45", "stopwaitsecs=1"))
    script = "import signal, time; signal.signal(15, signal.SIG_IGN)" if deaf else "import time"
    environment = {"SUPERVISOR_SERVER_URL": f"unix://{backend.socket}", "SUPERVISOR_PROCESS_NAME": "a"}
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script}; print('up', flush=True); time.sleep(60)"],
        env={**os.environ, **environment}, start_new_session=True, stdout=subprocess.PIPE,
    )  # fmt: skip
    try:
        assert process.stdout
        process.stdout.readline()
        status = backend.status(["a"])["a"]
        assert (status.state, status.pid) == ("stopped", process.pid)
        assert "left behind" in status.detail
        backend.prepare()
        assert process.wait(5) == -(signal.SIGKILL if deaf else signal.SIGTERM)
    finally:
        process.kill()
        process.communicate()


def test_a_server_that_is_no_supervisord(home: Path, daemon: Supervisord) -> None:
    class Html(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/xml\r\n\r\n<html>")

    class Refusal(Html):
        def handle(self) -> None:
            self.rfile.readline()
            self.wfile.write(b"HTTP/1.0 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

    for handler in (Html, Refusal):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(daemon.path)
        with Server(daemon.path, handler) as server:  # type: ignore[arg-type]
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
            backend = backend_of(home)
            assert backend.status(["a"]) == {}
            with pytest.raises(FleetError, match="did not answer reloadConfig"):
                backend.start(["a"])
            server.shutdown()


def test_a_daemon_that_does_not_start(home: Path, daemon: Supervisord) -> None:
    with pytest.raises(FleetError) as caught:
        backend_of(home, Runner(fail="supervisord")).prepare()
    assert "did not start: Error: no luck" in caught.value.seen
    assert "supervisord.log" in caught.value.remedy


def test_supervisor_is_installed_once_and_repaired(home: Path, daemon: Supervisord) -> None:
    run = Runner(daemon)
    options: dict[str, t.Any] = {"requirements": "supervisor==4.3.0 --hash=sha256:x\n", "pip_args": ["--no-index"]}
    backend = backend_of(home, run, **options)
    backend.prepare()
    assert [call[1:4] for call in run.calls[:2]] == [["-m", "venv", backend.venv], ["-m", "pip", "install"]]
    assert run.calls[1][-3:] == ["--no-index", "-r", f"{home}/supervisor/requirements.txt"]
    assert "--require-hashes" in run.calls[1]
    backend.prepare()
    assert len(run.calls) == 3, "supervisord is the third"
    os.unlink(f"{backend.venv}/gpufleet-requirements")
    (home / "supervisor/venv/half").write_text("")
    backend.prepare()
    assert len(run.calls) == 5
    assert os.listdir(backend.venv) == ["gpufleet-requirements"]


def test_supervisor_that_can_not_be_installed(home: Path, daemon: Supervisord) -> None:
    backend = backend_of(home, Runner(daemon, fail="pip install"), requirements="supervisor==4.3.0")
    with pytest.raises(FleetError) as caught:
        backend.prepare()
    assert caught.value.code == "stack.supervisor_install"
    assert "For help, use -h" in caught.value.seen
    assert backend.version() == "", "so the next run installs it anew"


def test_a_root_too_deep_for_a_socket(tmp_path: Path) -> None:
    backend = SupervisorBackend(Layout("/srv/" + "x" * 90), Runner())
    backend.check([])
    with pytest.raises(FleetError) as caught:
        backend.check(["a"])
    assert caught.value.code == "stack.path_too_long"
    fits = "/srv/" + "x" * (99 - len("/srv/" + "/supervisor/supervisor.sock"))
    SupervisorBackend(Layout(fits), Runner()).check(["a"])
    with pytest.raises(FleetError):
        SupervisorBackend(Layout(fits + "x"), Runner()).check(["a"])


def test_tail(home: Path, daemon: Supervisord) -> None:
    (home / "logs/a.log").write_text("one\ntwo\n")
    assert backend_of(home).tail("a", 1) == ["two"]
    assert backend_of(home).tail("b", 1) == []
