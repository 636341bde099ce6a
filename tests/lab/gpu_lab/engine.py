# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab's own Docker Engine: a ``dockerd`` in namespaces of its own, shared by all labs of this cache directory.

Its network namespace holds every bridge of every lab and one link to the machine, so nothing of it meets the machine's
firewall or another engine: it sets no iptables rules. The machine is 10.213.255.1 to the hosts, and that is all they
reach. Its mount namespace has only cgroup2 in ``/sys/fs/cgroup``, which a modern systemd needs, on machines too that
mount version 1. ``sleep`` holds both namespaces, so that a killed dockerd finds its running containers again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import typing as t
from collections.abc import Iterator
from pathlib import Path

from ._base import (
    Daemon,
    LabError,
    cache_root,
    command_line,
    find,
    kill,
    locked,
    need,
    require_root,
    run,
    runtime_root,
    timed,
)

# Another engine beside this one needs another cache directory and another half of an address.
NETWORK = os.environ.get("GPUFLEET_LAB_NETWORK") or "10.213"
MACHINE = f"{NETWORK}.255.1"
INSIDE = f"{NETWORK}.255.2"
LINK = f"gpulab-{NETWORK.replace('.', '-')}"
# systemd and dockerd watch files; 128, the kernel's default for root, is enough for about five hosts.
INOTIFY = Path("/proc/sys/fs/inotify/max_user_instances")
INOTIFY_NEEDED = 4096

NAMESPACES = """
set -eu
mount --make-rprivate /
umount -R /sys/fs/cgroup 2>/dev/null || :
mount -t sysfs sysfs /sys
mount -t cgroup2 cgroup2 /sys/fs/cgroup
mkdir -p /run/containerd
mount -t tmpfs -o mode=0711 tmpfs /run/containerd
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
exec sleep infinity
"""


class Engine:
    """The engine of this cache directory."""

    def __init__(self) -> None:
        self.runtime = runtime_root()
        self.data = cache_root() / "engine"
        self.group = f"/{self.runtime.name}"
        self.socket = self.runtime / "docker.sock"
        self.holder = Daemon("namespaces", "sleep infinity")
        self.daemon = Daemon("dockerd", str(self.runtime))

    def lock(self) -> contextlib.AbstractContextManager[None]:
        return locked(cache_root() / "engine.lock")

    # Talking to it

    def docker(
        self, *arguments: object, check: bool = True, input_bytes: bytes | None = None, timeout: float = 600
    ) -> str:
        return run(*self.client(), *arguments, check=check, input_bytes=input_bytes, timeout=timeout)

    def client(self) -> list[str]:
        # The distribution's client first: another one on PATH may be of a version that this engine does not speak with.
        program = next((path for path in ("/usr/bin/docker", find("docker")) if path and Path(path).exists()), "docker")
        return [program, "--config", str(self.runtime / "client"), "--host", f"unix://{self.socket}"]

    def answers(self) -> bool:
        return self.socket.exists() and bool(self.docker("version", "-f", "{{.Server.Version}}", check=False).strip())

    def capabilities(self) -> list[str]:
        """All that this process may give away. ``--privileged`` wants more where the bounding set is not full."""
        status = Path("/proc/self/status").read_text()
        bounding = int(next(line for line in status.splitlines() if line.startswith("CapBnd")).split()[1], 16)
        return [name for number, name in enumerate(CAPABILITIES) if bounding >> number & 1]

    # Life

    def start(self) -> None:
        """Bring it up where it is not; a killed dockerd comes back with its containers."""
        require_root()
        with self.lock():
            if self.holder.pid and self.daemon.pid and self.answers():
                return
            need({"dockerd": "docker.io", "ip": "iproute2", "nsenter": "util-linux", "setsid": "util-linux"})
            if not any(path and Path(path).exists() for path in ("/usr/bin/docker", find("docker"))):
                need({"docker": "docker-cli"})
            with timed("started the lab's engine"):
                if not self.holder.pid:
                    self._clean()
                    self._make_namespaces()
                self._start_dockerd()

    def stop(self) -> None:
        """End the engine and every container in it; images and volumes stay on the disk."""
        with self.lock():
            self.stop_locked()

    def stop_locked(self) -> None:
        """The same, for who holds the lock."""
        for daemon in (self.daemon, self.holder):
            daemon.stop()
        self._clean()

    def _clean(self) -> None:
        """End what an engine left that did not end by itself, and undo what it did to the machine."""
        kill(self._leftovers(), gently=False)
        if Path(f"/sys/class/net/{LINK}").exists():
            run("ip", "link", "delete", LINK, check=False)
        with contextlib.suppress(OSError):
            INOTIFY.write_text((self.runtime / "inotify").read_text())
        shutil.rmtree(self.runtime, ignore_errors=True)

    def _leftovers(self) -> Iterator[int]:
        """Daemons and shims name the runtime directory; what ran in containers is in the engine's control group."""
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                pid = int(process.name)
                ours = f"0::{self.group}/" in (process / "cgroup").read_text()
                if ours or f"{self.runtime}/" in command_line(pid):
                    yield pid

    def _make_namespaces(self) -> None:
        self.runtime.mkdir(parents=True, exist_ok=True)
        self.runtime.chmod(0o700)
        if Path(f"/sys/class/net/{LINK}").exists():
            raise LabError(
                f"the interface {LINK} exists and is not of this lab",
                f"{NETWORK}.0.0/16 for this lab's engine",
                "stop the other engine (python -m gpu_lab stop, with its GPUFLEET_CACHE), or set GPUFLEET_LAB_NETWORK",
            )
        self.holder.start(["unshare", "--mount", "--net", "sh", "-c", NAMESPACES], self._have_namespaces, seconds=10)
        inside = ["nsenter", f"--net=/proc/{self.holder.pid}/ns/net", "ip"]
        run("ip", "link", "add", LINK, "type", "veth", "peer", "name", "machine", "netns", self.holder.pid)
        run("ip", "address", "add", f"{MACHINE}/30", "dev", LINK)
        run("ip", "link", "set", LINK, "up")
        run(*inside, "address", "add", f"{INSIDE}/30", "dev", "machine")
        run(*inside, "link", "set", "machine", "up")
        run(*inside, "route", "add", "default", "via", MACHINE)
        run("ip", "route", "replace", f"{NETWORK}.0.0/16", "via", INSIDE)
        self._more_watches()

    def _have_namespaces(self) -> bool:
        return command_line(self.holder.pid or 0).startswith("sleep ")

    def _more_watches(self) -> None:
        before = INOTIFY.read_text()
        if int(before) < INOTIFY_NEEDED:
            (self.runtime / "inotify").write_text(before)
            INOTIFY.write_text(str(INOTIFY_NEEDED))

    def _start_dockerd(self) -> None:
        """It would take for running what was killed and that nobody waited for."""
        self.data.mkdir(parents=True, exist_ok=True)
        (self.runtime / "client").mkdir(exist_ok=True)
        for path in (self.runtime / "engine.pid", self.runtime / "exec/containerd/containerd.pid"):
            if path.exists() and not command_line(int(path.read_text())):
                path.unlink()
        config = self.runtime / "daemon.json"
        config.write_text(json.dumps(self._configuration(), indent=2))
        self.daemon.start(
            ["nsenter", f"--mount=/proc/{self.holder.pid}/ns/mnt", f"--net=/proc/{self.holder.pid}/ns/net",
             "dockerd", "--config-file", config],
            self.answers,
            seconds=60,
        )  # fmt: skip

    def _configuration(self) -> dict[str, t.Any]:
        return {
            "hosts": [f"unix://{self.socket}"],
            "data-root": str(self.data),
            "exec-root": str(self.runtime / "exec"),
            "pidfile": str(self.runtime / "engine.pid"),
            "cgroup-parent": self.group,
            "storage-driver": "overlay2",
            "bridge": "none",
            "iptables": False,
            "ip-masq": False,
            "userland-proxy": False,
            "live-restore": True,
            "max-concurrent-uploads": 2,
            "insecure-registries": [f"{NETWORK}.0.0/16"],
            "log-level": "warn",
            "log-opts": {"max-size": "1m", "max-file": "1"},
        }


# In the order of their numbers; an engine of 2021 knows none of the last three.
CAPABILITIES = (
    "CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
    "LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER",
    "SYS_MODULE", "SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE",
    "SYS_RESOURCE", "SYS_TIME", "SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP",
    "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG", "WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ",
)  # fmt: skip
