# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A host with systemd as PID 1: this machine's own, booted in namespaces over an overlay of / that lives in memory.

Everything in it is real (systemd, journald, useradd, the playbooks) except the engine, which is the simulator. It has
its own processes, network (loopback alone), users and files; nothing it does reaches the machine. ``Box.directory`` is
the one directory that both see, under the same name.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import typing as t
from dataclasses import dataclass, field
from pathlib import Path

from fleet_box import MODEL, REPOSITORY, Box, controller_environment, make_model
from model_hub import add_model

BOOT_SECONDS = 30
HUB_PORT = 8790
HUB_UNIT = "lab-hub.service"
PYTHON = "/usr/bin/python3"
# Beside each command or file that a box needs: the Debian package that brings it.
NEEDED = {
    "/lib/systemd/systemd": "systemd",
    "/usr/bin/systemctl": "systemd",
    PYTHON: "python3",
    "unshare": "util-linux",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "pivot_root": "util-linux",
    "mount": "mount",
    "ip": "iproute2",
    "useradd": "passwd",
}
SEARCH = "/usr/sbin:/usr/bin:/sbin:/bin"


class CannotBoot(Exception):
    """What is missing for a systemd of our own, and what to do about it."""


def require() -> None:
    """Raise where this machine cannot boot a box: a test that needs one fails then, it is not skipped."""
    if os.geteuid() != 0:
        raise CannotBoot(
            f"a systemd of our own needs root, this is uid {os.geteuid()}\n"
            "  do this: run the integration tests as root (sudo make integration)"
        )
    missing = {package: name for name, package in NEEDED.items() if not shutil.which(name, path=SEARCH)}
    if missing:
        raise CannotBoot(
            f"a systemd of our own needs {', '.join(sorted(missing.values()))}\n"
            f"  do this: apt-get install --no-install-recommends {' '.join(sorted(missing))}"
        )
    known = Path("/proc/filesystems").read_text()
    for name in ("overlay", "cgroup2"):
        if f"\t{name}\n" not in known:
            raise CannotBoot(f"the kernel has no {name} file system\n  do this: modprobe {name}")


def _shared_directory() -> Path:
    """Below /run: a unit has a /tmp of its own (``PrivateTmp``), and could not see an engine there."""
    directory = Path(tempfile.mkdtemp(prefix="gf-", dir="/run"))
    directory.chmod(0o755)
    return directory


def _copy(master: int, log: Path) -> None:
    """What the box says on its console, until nobody holds the other end."""
    with log.open("ab", buffering=0) as stream, contextlib.suppress(OSError):
        while said := os.read(master, 4096):
            stream.write(said.replace(b"\r\n", b"\n"))
    os.close(master)


@dataclass
class SystemdBox(Box):
    """One host with systemd and a hub, both up when the ``with`` begins."""

    hub: str = f"http://127.0.0.1:{HUB_PORT}"
    directory: Path = field(default_factory=_shared_directory)
    variables: dict[str, t.Any] = field(default_factory=lambda: {"vllm_runtime": "systemd"})
    python: str = PYTHON

    def __post_init__(self) -> None:
        super().__post_init__()
        self.log = self.directory / "boot.log"
        self.hub_root = self.directory / "hub"
        self.launcher: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> SystemdBox:
        try:
            require()
            self.hub_root.mkdir()
            add_model(self.hub_root, MODEL, make_model(self.directory / "model"))
            self._launch()
            self._wait_until_up()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Without its PID 1 the kernel ends all of its processes, and the launcher cleans up."""
        if self.launcher:
            try:
                subprocess.run(["kill", "-KILL", str(self.init)], check=False, capture_output=True)
                self.launcher.wait(10)
            except (CannotBoot, subprocess.TimeoutExpired):
                self.launcher.terminate()
                self.launcher.wait(10)
            os.close(self.console)
            self.reader.join(10)
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def init(self) -> int:
        """PID 1 of the box, as this machine numbers it."""
        try:
            return int((self.directory / "pid").read_text())
        except FileNotFoundError:
            raise CannotBoot("the box is not up") from None

    def _launch(self) -> None:
        master, self.console = os.openpty()
        self.reader = threading.Thread(target=_copy, args=(master, self.log), daemon=True)
        self.reader.start()
        # The interpreter and the checkout may lie on file systems of their own, which the overlay of / does not show.
        shared = [str(REPOSITORY), sys.prefix, sys.base_prefix]
        self.launcher = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", "unshare", "--mount", "sh", REPOSITORY / "tests/lab/systemd_boot.sh",
             self.directory, os.ttyname(self.console), *dict.fromkeys(shared)],
            stdin=subprocess.DEVNULL, stdout=self.console, stderr=self.console,
        )  # fmt: skip

    def _wait_until_up(self) -> None:
        assert self.launcher
        deadline = time.monotonic() + BOOT_SECONDS
        state = "no systemd"
        while state != "running":
            if self.launcher.poll() is not None or time.monotonic() > deadline or state == "degraded":
                failed = self.systemctl("list-units", "--failed") if state == "degraded" else ""
                time.sleep(0.2)
                raise CannotBoot(
                    f"systemd of our own did not come up: {state}\n{failed}"
                    f"  do this: run it as a root that may mount and make namespaces (in a container: --privileged)\n"
                    f"  its console:\n{self.log.read_text(errors='replace')}"
                )
            time.sleep(0.05)
            if (self.directory / "pid").exists():
                state = self.run("systemctl", "is-system-running", check=False).strip() or "no systemd"
        # Its console is for a boot that goes wrong. What it says of units belongs in their journal, as everywhere.
        self.systemctl("log-target", "journal", check=True)
        self._start_hub()

    def _start_hub(self) -> None:
        ready = self.directory / "hub.ready"
        ready.unlink(missing_ok=True)
        self.run(
            "systemd-run", "--quiet", "--collect", f"--unit={HUB_UNIT}",
            f"--setenv=PYTHONPATH={REPOSITORY / 'tests/lab'}",
            sys.executable, "-m", "model_hub", "serve", "--root", self.hub_root, "--port", HUB_PORT,
            "--ready-file", ready,
        )  # fmt: skip
        deadline = time.monotonic() + BOOT_SECONDS
        while not ready.exists():
            if time.monotonic() > deadline:
                raise CannotBoot(f"the hub in the box did not start\n{self.run('journalctl', '-u', HUB_UNIT)}")
            time.sleep(0.05)

    # Inside

    @property
    def root(self) -> Path:
        return Path(f"/proc/{self.init}/root{self.vllm_root}")

    @property
    def vllm_root(self) -> str:
        return "/var/lib/gpufleet-vllm"

    def inside(self) -> list[str]:
        enter = ["nsenter", "--target", str(self.init), "--all"]
        return [*enter, "env", "--unset=XDG_STATE_HOME", f"--chdir={REPOSITORY}"]

    def run(self, *command: object, check: bool = True, timeout: float = 60) -> str:
        """What a command that root runs in the box prints, errors included."""
        done = subprocess.run(
            [*self.inside(), *map(str, command)],
            env=controller_environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", timeout=timeout, check=False,
        )  # fmt: skip
        if check and done.returncode != 0:
            raise AssertionError(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def systemctl(self, *arguments: object, check: bool = False) -> str:
        return self.run("systemctl", "--no-pager", *arguments, check=check)

    def show(self, service: str) -> dict[str, str]:
        """Every property that systemd has of a service."""
        lines = self.systemctl("show", f"vllm-{service}.service", check=True).splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line)

    def pid(self, service: str) -> int | None:
        """As the box numbers it."""
        return int(self.show(service)["MainPID"]) or None

    def units(self) -> list[str]:
        """Our unit files."""
        return sorted(self.run("sh", "-c", "cd /etc/systemd/system && ls -d vllm-*.service 2>/dev/null || :").split())

    def request(
        self, port: int, path: str = "/health", body: object = None, key: str = "", timeout: float = 5
    ) -> tuple[int, str]:
        """Status and text of an answer; status 0 and the reason where there is none."""
        out = self.run(self.python, "-c", REQUEST, port, path, json.dumps(body) if body else "", key, timeout)
        status, _separator, text = out.partition("\n")
        return int(status), text

    def answers(self, port: int) -> bool:
        return self.request(port)[0] == 200

    def reboot(self) -> None:
        """As a person does it: services are stopped, the kernel's tables start anew, files stay."""
        before = self.init
        (self.directory / "pid").unlink()
        subprocess.run(
            ["nsenter", "--target", str(before), "--all", "systemctl", "reboot"], check=True, capture_output=True
        )
        self._wait_until_up()


REQUEST = """
import sys, urllib.error, urllib.request
port, path, body, key, timeout = sys.argv[1:]
headers = {"Content-Type": "application/json", **({"Authorization": "Bearer " + key} if key else {})}
request = urllib.request.Request(f"http://127.0.0.1:{port}{path}", body.encode() or None, headers)
try:
    with urllib.request.urlopen(request, timeout=float(timeout)) as answer:
        print(answer.status, answer.read().decode(), sep="\\n")
except urllib.error.HTTPError as error:
    print(error.code, error.read().decode(), sep="\\n")
except OSError as error:
    print(0, error, sep="\\n")
"""
