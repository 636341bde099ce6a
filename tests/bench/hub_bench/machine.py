# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the machine is, and how busy others keep it."""

from __future__ import annotations

import contextlib
import os
import platform
import time
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")

AHEAD = -15
"""The priority of what is to run as if it were alone."""


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def busy_seconds() -> float:
    """CPU seconds that all of the machine has used since it started, time stolen by its host included."""
    fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
    user, nice, system, _idle, _iowait, irq, softirq, steal = (int(field) for field in fields[:8])
    return (user + nice + system + irq + softirq + steal) * TICK


def process_seconds(pid: int) -> float:
    """CPU seconds of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK


def foreign_share(seconds: float) -> float:
    """The share of the machine that is used while this process sleeps."""
    began, used = time.monotonic(), busy_seconds()
    time.sleep(seconds)
    return (busy_seconds() - used) / ((time.monotonic() - began) * cores())


def wait_until_quiet(share: float, patience: float) -> bool:
    """Wait until others use less than ``share`` of the machine; False if they did not within ``patience`` seconds."""
    deadline = time.monotonic() + patience
    while foreign_share(0.5) > share:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True


def put_ahead(pid: int) -> None:
    """Give a process that leads a session of its own, and what it starts, the processor before everything else."""
    os.setpriority(os.PRIO_PROCESS, pid, AHEAD)
    with contextlib.suppress(OSError):  # where the kernel groups by session, it is the group that has a priority
        Path(f"/proc/{pid}/autogroup").write_text(str(AHEAD), encoding="ascii")


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``."""
    best, kind = "", "unknown"
    for line in Path("/proc/self/mounts").read_text(encoding="utf-8").splitlines():
        _device, where, name, *_unused = line.split(" ")
        inside = str(path.resolve()) == where or str(path.resolve()).startswith(where.rstrip("/") + "/")
        if inside and len(where) >= len(best):
            best, kind = where, name
    return kind


def free_bytes(path: Path) -> int:
    """Bytes that may still be written below ``path``; on tmpfs no more than the memory that is free."""
    status = os.statvfs(path)
    free = status.f_bavail * status.f_frsize
    return min(free, _available_memory()) if file_system(path) == "tmpfs" else free


def _available_memory() -> int:
    for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0


def description() -> str:
    """Processor, memory and kernel, in a line that names no host."""
    model = "unknown processor"
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30
    kernel = ".".join(platform.release().split(".")[:2])
    return f"{cores()} x {model}, {memory:.0f} GiB, Linux {kernel}"
