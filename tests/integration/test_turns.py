# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Turns, with processes that really lock: two engines on one card never load at the same time."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _render, _stack, _turns

# Loads for a while, then answers /health; says when it does what.
ENGINE = """
import http.server, sys, time
name, port, seconds = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
def say(what):
    with open("log", "a") as log: log.write(f"{name} {what}\\n")
say("loads")
time.sleep(seconds)
if seconds > 5: sys.exit(1)
class Health(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200); self.end_headers()
    def log_message(self, *args): pass
say("ready")
http.server.HTTPServer(("127.0.0.1", port), Health).serve_forever()
"""


class Host:
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.started: list[subprocess.Popen[bytes]] = []
        (directory / "start.py").write_text(_turns.START)
        (directory / "engine.py").write_text(ENGINE)
        for card in ("GPU-aa", "GPU-bb"):
            (directory / card).touch(mode=0o444)

    def start(self, name: str, cards: str = "GPU-aa", seconds: float = 2, limit: float = 60) -> subprocess.Popen[bytes]:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        url = f"http://127.0.0.1:{port}/health"
        command = [sys.executable, "start.py", cards, url, str(limit), sys.executable, "engine.py", name, str(port)]
        with open(self.directory / f"{name}.out", "wb") as out:
            process = subprocess.Popen([*command, str(seconds)], cwd=self.directory, stdout=out, start_new_session=True)
        self.started.append(process)
        return process

    @property
    def log(self) -> list[str]:
        path = self.directory / "log"
        return path.read_text().splitlines() if path.exists() else []

    def until(self, line: str, seconds: float = 60) -> None:
        end = time.monotonic() + seconds
        while line not in self.log:
            assert time.monotonic() < end, (line, self.log)
            time.sleep(0.05)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.wait()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(tmp_path)
    yield made
    made.close()


def test_one_loads_when_the_other_is_ready(host: Host) -> None:
    for name in ("a", "b", "c"):
        host.start(name)
    for name in ("a", "b", "c"):
        host.until(f"{name} ready")
    order = [line.split()[0] for line in host.log]
    assert order == [name for name in order[::2] for _twice in range(2)], host.log
    waited = [name for name in "abc" if "waits for its turn" in (host.directory / f"{name}.out").read_text()]
    assert len(waited) >= 2


def test_other_cards_are_not_waited_for(host: Host) -> None:
    host.start("a", "GPU-aa", seconds=4)
    host.until("a loads")
    host.start("b", "GPU-bb", seconds=0)
    host.until("b ready")
    assert "a ready" not in host.log


def test_the_turn_of_an_engine_that_dies_ends_with_it(host: Host) -> None:
    first = host.start("a", "GPU-bb,GPU-aa", seconds=600)
    host.until("a loads")
    host.start("b", "GPU-aa,GPU-bb", seconds=0)
    time.sleep(0.5)
    assert "b loads" not in host.log
    first.send_signal(signal.SIGKILL)
    first.wait()
    host.until("b ready")


def test_an_engine_that_never_answers_holds_its_turn_no_longer_than_it_may_load(host: Host) -> None:
    host.start("a", seconds=600, limit=3)
    host.until("a loads")
    host.start("b", seconds=0)
    host.until("b ready")


def test_one_that_waits_can_be_ended(host: Host) -> None:
    host.start("a", seconds=600)
    host.until("a loads")
    waiting = host.start("b")
    while not re.search("waits for its turn", (host.directory / "b.out").read_text()):
        time.sleep(0.05)
    waiting.terminate()
    assert waiting.wait(timeout=30) == -signal.SIGTERM


def test_what_supervisor_and_a_person_start_waits_too(host: Host) -> None:
    """The script of a service, as a deploy writes it, with an engine of its own Python."""
    binaries = host.directory / "engine/bin"
    binaries.mkdir(parents=True)
    (binaries / "python").symlink_to(sys.executable)
    (binaries / "vllm").write_text(f"#!{sys.executable}\n{ENGINE}")
    (binaries / "vllm").chmod(0o755)
    root = host.directory / "root"
    services = []
    for name in ("a", "b"):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        services.append(
            {
                "name": name,
                "gpus": [{"uuid": "GPU-cc", "shared": True}],
                "ready_timeout": 60,
                "url": f"http://127.0.0.1:{port}",
                "command": [f"{binaries}/vllm", name, str(port), "2"],
            }
        )
    _stack.Stack(_stack.Layout(str(root)), None)._turns([_stack.Desired(service) for service in services])  # type: ignore[arg-type]
    (host.directory / "environment").write_text("X=1\n")
    for service in services:
        command = list(_turns.in_turn(service, str(root))["command"])
        script = host.directory / f"{service['name']}.sh"
        script.write_text(_render.launch_script(str(host.directory / "environment"), command))
        host.started.append(subprocess.Popen(["/bin/sh", script], cwd=host.directory, start_new_session=True))
    for service in services:
        host.until(f"{service['name']} ready")
    assert [line.split()[1] for line in host.log] == ["loads", "ready", "loads", "ready"]
