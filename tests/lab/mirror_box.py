# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real nginx on loopback with the configuration of the role ``mirror``, as the role's own template makes it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

REPOSITORY = Path(__file__).resolve().parents[2]
ROLE = REPOSITORY / "roles" / "mirror"
# Of /proc/net/tcp.
ESTABLISHED, CLOSE_WAIT = "01", "08"
LOG_FORMAT = "log_format requests '$request_method $request_uri \"$http_range\" $status $body_bytes_sent';"


@dataclass
class Request:
    """A request as nginx saw it."""

    method: str
    path: str
    range: str
    status: int
    sent: int


@dataclass
class Answer:
    """An answer, read to its end; header names are lower-case."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Mirror:
    """A mirror of ``root`` on a port of its own; a context manager. ``variables`` are the role's."""

    def __init__(self, directory: Path, root: Path, **variables: Any) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.root = directory, root
        self.port = _free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.config, self.run = directory / "nginx.conf", directory / "run"
        self.log = directory / "requests.log"
        self.variables = {"mirror_root": str(root), "mirror_port": self.port, "mirror_user": "root", **variables}
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Mirror:
        self.render()
        self.run.mkdir(exist_ok=True)
        with (self.directory / "error.log").open("ab") as log:
            self._process = subprocess.Popen(self.command(), cwd=self.run, stderr=log)
        self.wait()
        return self

    def __exit__(self, *_unused: object) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(timeout=30)

    def command(self, *words: str) -> list[str]:
        """nginx as the unit starts it, but in the foreground."""
        program = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program is not None, "nginx is not installed: run tests/tools/packages.sh, or install the package nginx"
        return [program, *words, "-g", "daemon off;", "-p", f"{self.run}/", "-c", str(self.config)]

    def render(self) -> None:
        """Write the configuration with the role's template, defaults and variables. Only the log is another one."""
        play = {
            "hosts": "localhost",
            "connection": "local",
            "gather_facts": False,
            "vars_files": [str(ROLE / "defaults/main.yml"), str(ROLE / "vars/main.yml")],
            "tasks": [
                {
                    "ansible.builtin.template": {
                        "src": str(ROLE / "templates/nginx.conf.j2"),
                        "dest": str(self.config),
                        "mode": "0644",
                    }
                }
            ],
        }
        book, extra = self.directory / "render.yml", self.directory / "variables.json"
        book.write_text(yaml.safe_dump([play]))
        extra.write_text(json.dumps({**self.variables, "__mirror_config_id": "test"}))
        subprocess.run(
            [str(Path(sys.executable).with_name("ansible-playbook")), "-i", "localhost,", str(book), "-e", f"@{extra}",
             "-e", f"ansible_python_interpreter={sys.executable}"],
            env={**os.environ, "ANSIBLE_CONFIG": str(REPOSITORY / "ansible.cfg"), "LC_ALL": "C.UTF-8"},
            check=True, capture_output=True, timeout=120,
        )  # fmt: skip
        text = self.config.read_text(encoding="utf-8")
        text = text.replace("\n    access_log off;", f"\n    {LOG_FORMAT}\n    access_log {self.log} requests;", 1)
        self.config.write_text(text, encoding="utf-8")

    def wait(self) -> None:
        deadline = time.monotonic() + 30
        while True:
            try:
                assert self.get("/__mirror/health").status == 200
                return
            except OSError:
                assert time.monotonic() < deadline, (self.directory / "error.log").read_text()
                time.sleep(0.05)

    def reload(self) -> None:
        """Have it read its configuration again, as systemd does."""
        assert self._process is not None
        self._process.send_signal(signal.SIGHUP)

    def get(self, path: str, headers: dict[str, str] | None = None, method: str = "GET") -> Answer:
        """Ask with exactly this request line, without following redirects."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in (headers or {}).items():
                connection.putheader(name, value)
            connection.endheaders()
            answer = connection.getresponse()
            body = answer.read()
            return Answer(answer.status, {key.lower(): value for key, value in answer.getheaders()}, body)
        finally:
            connection.close()

    def requests(self) -> list[Request]:
        """The requests so far; nginx writes one when its answer is over."""
        found = []
        for line in self.log.read_text(encoding="utf-8").splitlines():
            before, asked, after = line.split('"')
            method, path = before.split()
            status, sent = after.split()
            if path != "/__mirror/health":
                found.append(Request(method, path, asked, int(status), int(sent)))
        return found

    def forget(self) -> None:
        """Begin the log anew, once the answers to clients that are gone are in it."""
        deadline = time.monotonic() + 30
        while self._connected():
            assert time.monotonic() < deadline, f"a client of port {self.port} does not end"
            time.sleep(0.02)
        self.log.write_text("")

    def _connected(self) -> bool:
        """Whether nginx holds a connection still, be it that its client was killed and nginx did not notice yet."""
        rows = [line.split() for line in Path("/proc/net/tcp").read_text("ascii").splitlines()[1:]]
        return any(row[1].endswith(f":{self.port:04X}") and row[3] in (ESTABLISHED, CLOSE_WAIT) for row in rows)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
