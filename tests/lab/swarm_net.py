# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A fleet's network on one machine: a namespace for each host and for the hub, all on one switch, with shaped links.

Nothing of it reaches the machine's own network. Needs root, ``ip`` and ``tc`` (Debian: iproute2), and the kernel's
veth, bridge and tbf.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[2]
HUB = "hub"
HUB_PORT = 8790
_ADDRESSES = {HUB: "10.213.77.2"}


class CannotShape(Exception):
    """What is missing for namespaces with shaped links, and what to do about it."""


def require() -> None:
    """Raise where this machine cannot have such a network: a test that needs one fails then, it is not skipped."""
    if os.geteuid() != 0:
        raise CannotShape("namespaces with shaped links need root\n  do this: run the integration tests as root")
    missing = [name for name in ("ip", "tc") if not shutil.which(name)]
    if missing:
        raise CannotShape(
            f"namespaces with shaped links need {' and '.join(missing)}\n"
            "  do this: apt-get install --no-install-recommends iproute2"
        )


def call(*argv: str) -> str:
    """Run a program; its output. Raises with what it said."""
    ran = subprocess.run(argv, capture_output=True, text=True, check=False)
    if ran.returncode:
        raise CannotShape(f"{' '.join(argv)} failed: {ran.stderr.strip()}")
    return ran.stdout


def environment() -> dict[str, str]:
    """For a Python that imports the collection and the lab, and no proxy."""
    kept = {key: value for key, value in os.environ.items() if not key.lower().endswith("_proxy")}
    path = [str(REPOSITORY / ".venv/collections"), str(REPOSITORY / "tests/lab")]
    return {**kept, "PYTHONPATH": os.pathsep.join(path), "PYTHONDONTWRITEBYTECODE": "1"}


class Member:
    """A process of one host: ``swarm_member``, or anything else that says JSON lines."""

    def __init__(self, net: SwarmNet, name: str, argv: Sequence[str], told: Any = None) -> None:
        self.name, self.said = name, list[dict[str, Any]]()
        self.process = subprocess.Popen(
            ["ip", "netns", "exec", net.namespace(name), *argv],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
        )
        self._queue: Queue[dict[str, Any] | None] = Queue()
        self._errors: list[str] = []
        self._threads = [
            threading.Thread(target=self._read, daemon=True),
            threading.Thread(target=self._read_errors, daemon=True),
        ]
        for thread in self._threads:
            thread.start()
        if told is not None:
            self._tell(json.dumps(told))

    def wait(self, event: str, seconds: float = 120.0) -> dict[str, Any]:
        """What it says next of this kind. Raises AssertionError where it ends or is silent instead."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                raise AssertionError(
                    f"{self.name}: no {event} in {seconds} s; said {self.said} {self.errors}"
                ) from None
            if line is None:
                raise AssertionError(f"{self.name}: ended before {event}; said {self.said} {self.errors}")
            self.said.append(line)
            if line["event"] == event:
                return line

    @property
    def errors(self) -> str:
        return "".join(self._errors)

    def kill(self) -> None:
        """SIGKILL, as the out-of-memory killer does it."""
        self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)

    def stop(self) -> dict[str, Any]:
        """End it in order; its report."""
        self._tell("stop")
        report = self.wait("report", 60)
        self.process.wait(30)
        return report

    def close(self) -> None:
        """End it somehow."""
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(10)
        for thread in self._threads:
            thread.join(10)
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()

    def _tell(self, line: str) -> None:
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.write(line + "\n")
            self.process.stdin.flush()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(ValueError):
                self._queue.put(json.loads(line))
        self._queue.put(None)

    def _read_errors(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self._errors.append(line)


class SwarmNet:
    """``count`` hosts ``host-1``, ... and a hub, each with ``mbit`` per second out and in (0: unshaped); the hub's link
    is ``hub_mbit``. A context manager."""

    def __init__(self, count: int, mbit: int = 200, hub_mbit: int = 0) -> None:
        require()
        self._tag = f"gs{secrets.token_hex(3)}"
        self.hosts = [f"host-{number}" for number in range(1, count + 1)]
        self.addresses = {name: f"10.213.77.{10 + place}" for place, name in enumerate(self.hosts)}
        self._mbit, self._hub_mbit = mbit, hub_mbit
        self._members: list[Member] = []

    def __enter__(self) -> SwarmNet:
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_unused: object) -> None:
        for member in self._members:
            member.close()
        for name in [HUB, *self.hosts, "switch"]:
            subprocess.run(["ip", "netns", "del", self.namespace(name)], check=False, capture_output=True)

    def namespace(self, name: str) -> str:
        """The namespace of a host, or of the hub."""
        return f"{self._tag}-{name}"

    def address(self, name: str) -> str:
        """The address of a host, or of the hub."""
        return _ADDRESSES.get(name) or self.addresses[name]

    def serve_hub(self, root: Path, log: Path | None = None) -> str:
        """Start the lab's hub over ``root``; its endpoint."""
        address = self.address(HUB)
        argv = [sys.executable, "-m", "model_hub", "serve", "--root", str(root), "--host", address]
        argv += ["--port", str(HUB_PORT), "--ready-file", str(root / ".ready")]
        argv += ["--log", str(log)] if log else []
        (root / ".ready").unlink(missing_ok=True)
        member = self.start(HUB, argv)
        deadline = time.monotonic() + 30
        while not (root / ".ready").exists():
            assert time.monotonic() < deadline, f"the hub did not start: {member.errors}"
            assert member.process.poll() is None, member.errors
            time.sleep(0.05)
        return f"http://{address}:{HUB_PORT}"

    def start(self, name: str, argv: Sequence[str], told: Any = None) -> Member:
        """Run a program on a host."""
        member = Member(self, name, argv, told)
        self._members.append(member)
        return member

    def sent(self, name: str) -> int:
        """Bytes that a host's interface sent so far, headers and all."""
        return self._counter(name, "tx")

    def received(self, name: str) -> int:
        """Bytes that a host's interface received so far, headers and all."""
        return self._counter(name, "rx")

    def cut(self, name: str) -> None:
        """Pull the plug of a host: whoever talks to it hears nothing any more."""
        call("ip", "-n", self.namespace("switch"), "link", "set", name, "down")

    def join(self, name: str) -> None:
        """Put it in again."""
        call("ip", "-n", self.namespace("switch"), "link", "set", name, "up")

    def _counter(self, name: str, way: str) -> int:
        shown = json.loads(call("ip", "-n", self.namespace(name), "-s", "-j", "link", "show", "eth0"))
        return int(shown[0]["stats64"][way]["bytes"])

    def _build(self) -> None:
        switch = self.namespace("switch")
        call("ip", "netns", "add", switch)
        call("ip", "-n", switch, "link", "add", "br0", "type", "bridge")
        call("ip", "-n", switch, "link", "set", "br0", "up")
        for name in [HUB, *self.hosts]:
            place = self.namespace(name)
            call("ip", "netns", "add", place)
            call("ip", "-n", switch, "link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", place)
            call("ip", "-n", switch, "link", "set", name, "master", "br0", "up")
            call("ip", "-n", place, "addr", "add", f"{self.address(name)}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                call("ip", "-n", place, "link", "set", device, "up")
            mbit = self._hub_mbit if name == HUB else self._mbit
            if mbit:
                self._shape(place, "eth0", mbit)
                self._shape(switch, name, mbit)

    @staticmethod
    def _shape(namespace: str, device: str, mbit: int) -> None:
        # 100 ms of queue, as a switch has; a burst that holds one segment as the kernel hands it to a veth.
        call(
            *("tc", "-n", namespace, "qdisc", "add", "dev", device, "root", "tbf"),
            *("rate", f"{mbit}mbit", "burst", "131072", "latency", "100ms"),
        )
