# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What else says how well NVIDIA's part of a host is: Xids, throttling, Fabric Manager, persistence daemon.

Parsers are pure; the functions that ask take a runner and a host, raise nothing of their own and give None for what
cannot be told.
"""

from __future__ import annotations

import os
import re
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._process import CommandResult, Runner, decode

QUICK_SECONDS = 5.0


class Reader(t.Protocol):
    """Where files are read: :class:`_nvidia_probe.Host`."""

    def path(self, path: str) -> str: ...

    def read(self, path: str, limit: int = ...) -> str | None: ...

    def names(self, path: str) -> list[str]: ...


Find = t.Callable[[str], t.Optional[str]]


# --------------------------------------------------------------------------------------------------------------------
# Xids
# --------------------------------------------------------------------------------------------------------------------


class Xid(t.TypedDict):
    """One error that the NVIDIA kernel module reported. ``time`` is seconds since the epoch."""

    xid: int
    pci_bus_id: str
    time: float | None
    message: str


_XID = re.compile(
    r"NVRM: Xid \((?:PCI:)?([0-9A-Fa-f]{4,8}):([0-9A-Fa-f]{2}):([0-9A-Fa-f]{2})[^)]*\): (\d{1,5})\b[,:]?\s*(.*)"
)
_DMESG_STAMP = re.compile(r"^(?:<\d+>)?\[\s*(\d+\.\d+)\]")
_UNIX_STAMP = re.compile(r"^(\d+\.\d+) ")
_KMSG = re.compile(r"^\d+,\d+,(\d+),[^;]*;")
_UNREADABLE = re.compile(
    r"insufficient permissions|not seeing messages|No journal files|Permission denied", re.IGNORECASE
)
_MOST_XIDS = 200
_MOST_BYTES = 4 << 20
_MESSAGE_LENGTH = 300


def parse_xids(text: str, boot_time: float | None = None) -> list[Xid]:
    """The Xid lines of ``journalctl -o short-unix``, ``dmesg`` or /dev/kmsg, the latest 200.

    :param boot_time: when the kernel's clock began, for lines that count from there.
    """
    found: list[Xid] = []
    for line in text.splitlines():
        match = _XID.search(line)
        if match:
            domain, bus, device, number, message = match.groups()
            found.append(
                {
                    "xid": int(number),
                    "pci_bus_id": f"{domain.zfill(8)}:{bus}:{device}.0".upper(),
                    "time": _stamp(line, boot_time),
                    "message": message.strip()[:_MESSAGE_LENGTH],
                }
            )
    return found[-_MOST_XIDS:]


def _stamp(line: str, boot_time: float | None) -> float | None:
    absolute = _UNIX_STAMP.match(line)
    if absolute:
        return float(absolute.group(1))
    since = _DMESG_STAMP.match(line)
    if since and boot_time is not None:
        return round(boot_time + float(since.group(1)), 6)
    raw = _KMSG.match(line)
    if raw and boot_time is not None:
        return round(boot_time + int(raw.group(1)) / 1e6, 6)
    return None


def merge_xids(*logs: list[Xid] | None) -> list[Xid] | None:
    """The same errors from several logs, each once; None where no log could be read."""
    readable = [log for log in logs if log is not None]
    if not readable:
        return None
    merged: list[Xid] = []
    for log in readable:
        # What an earlier log has too is the same; that this log has it twice stays so.
        known = {(item["xid"], item["pci_bus_id"], item["message"]) for item in merged}
        merged.extend(item for item in log if (item["xid"], item["pci_bus_id"], item["message"]) not in known)
    return sorted(merged, key=lambda item: (item["time"] is not None, item["time"] or 0.0))[-_MOST_XIDS:]


def read_xids(run: Runner, reader: Reader, find: Find) -> list[Xid] | None:
    """The Xids since the last boot, of the journal and of the kernel's own buffer: either may lack some."""
    boot = boot_time(reader)
    logs = [_journal(run, find), _dmesg(run, find, boot)]
    if logs[1] is None:
        logs[1] = _kmsg(reader, boot)
    return merge_xids(*logs)


def boot_time(reader: Reader) -> float | None:
    """When the kernel started, in seconds since the epoch."""
    match = re.search(r"^btime (\d+)$", reader.read("/proc/stat") or "", re.MULTILINE)
    return float(match.group(1)) if match else None


def _journal(run: Runner, find: Find) -> list[Xid] | None:
    path = find("journalctl")
    if path is None:
        return None
    command = [path, "-k", "-b", "-o", "short-unix", "--no-pager", "-n", str(_MOST_XIDS), "--grep", "NVRM: Xid"]
    end = run(command, QUICK_SECONDS)
    # Status 1 means that nothing matched, and also that it cannot search (systemd before 237); only the latter says so.
    if end.timed_out or end.rc not in (0, 1) or (end.rc == 1 and end.err.strip()) or _UNREADABLE.search(end.err):
        return None
    return parse_xids(end.out[-_MOST_BYTES:])


def _dmesg(run: Runner, find: Find, boot: float | None) -> list[Xid] | None:
    path = find("dmesg")
    if path is None:
        return None
    end = run([path], QUICK_SECONDS)
    return parse_xids(end.out[-_MOST_BYTES:], boot) if end.rc == 0 else None


def _kmsg(reader: Reader, boot: float | None) -> list[Xid] | None:
    try:
        descriptor = os.open(reader.path("/dev/kmsg"), os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return None
    records: list[bytes] = []
    size, deadline = 0, time.monotonic() + QUICK_SECONDS
    try:
        while size < _MOST_BYTES and time.monotonic() < deadline:
            try:
                record = os.read(descriptor, 8192)
            except BrokenPipeError:
                continue  # overwritten while we read: the next read goes on behind it
            except OSError:
                break
            if not record:
                break
            records.append(record)
            size += len(record)
    finally:
        os.close(descriptor)
    return parse_xids(decode(b"".join(records)), boot)


# --------------------------------------------------------------------------------------------------------------------
# Throttling
# --------------------------------------------------------------------------------------------------------------------

# NVML's bits, in nvidia-smi's words. The first two are no trouble: nothing to do, and clocks that someone set.
_REASONS = {
    0x001: "gpu_idle",
    0x002: "applications_clocks_setting",
    0x004: "sw_power_cap",
    0x008: "hw_slowdown",
    0x010: "sync_boost",
    0x020: "sw_thermal_slowdown",
    0x040: "hw_thermal_slowdown",
    0x080: "hw_power_brake_slowdown",
    0x100: "display_clocks_setting",
}
REASONS = tuple(_REASONS.values())
_REASON_NAME = re.compile(r"^clocks_(?:event|throttle)_reason_(\w+)$")


def throttle_of_mask(mask: int | None) -> list[str] | None:
    """NVML's bits as words."""
    return None if mask is None else sorted(word for bit, word in _REASONS.items() if mask & bit)


def throttle_of_elements(elements: t.Iterable[tuple[str, str | None]]) -> list[str] | None:
    """The reasons that are active, of the XML's pairs of name and text; None where none says whether it is."""
    states: dict[str, bool] = {}
    for name, text in elements:
        match = _REASON_NAME.match(name)
        state = {"active": True, "not active": False}.get((text or "").strip().lower())
        if match and state is not None:
            states[match.group(1)] = state
    return sorted(word for word, active in states.items() if active) if states else None


# --------------------------------------------------------------------------------------------------------------------
# Daemons
# --------------------------------------------------------------------------------------------------------------------


class FabricManager(t.TypedDict):
    """Fabric Manager, without which an NVSwitch host has no NVLink. ``active`` is None where it cannot be told."""

    installed: bool
    active: bool | None
    version: str | None


# /proc/PID/comm holds 15 characters.
_COMM_LENGTH = 15
_FABRIC_MANAGER, _PERSISTENCED = "nv-fabricmanager", "nvidia-persistenced"
_FABRIC_VERSION = re.compile(r"version is\s*:?\s*(\d+(?:\.\d+)+)", re.IGNORECASE)


def parse_fabric_version(text: str) -> str | None:
    """The version in ``Fabric Manager version is : 580.95.05``."""
    match = _FABRIC_VERSION.search(text)
    return match.group(1) if match else None


def parse_active(text: str, count: int) -> list[bool | None]:
    """The lines of ``systemctl is-active UNIT...``, one a unit."""
    words = [line.strip() for line in text.splitlines() if line.strip()]
    if len(words) != count:
        return [None] * count
    known = {"active": True, "reloading": True, "activating": False, "inactive": False, "failed": False}
    return [known.get(word) for word in words]


def _running(reader: Reader, name: str) -> bool | None:
    """Whether a process of that name runs, in a container too; None where /proc shows none at all."""
    pids = [entry for entry in reader.names("/proc") if entry.isdigit()]
    if not pids:
        return None
    wanted = name[:_COMM_LENGTH]
    return any((reader.read(f"/proc/{pid}/comm", 64) or "").strip() == wanted for pid in pids)


def daemons(run: Runner, reader: Reader, find: Find) -> tuple[FabricManager, bool | None]:
    """Fabric Manager, and whether the persistence daemon runs."""
    units = ["nvidia-fabricmanager", _PERSISTENCED]
    active: list[bool | None] = [None, None]
    systemctl = find("systemctl")
    if systemctl:
        end: CommandResult = run([systemctl, "is-active", *units], QUICK_SECONDS)
        active = parse_active(end.out, len(units))
    # A unit of another name, or a container, may run them.
    names = (_FABRIC_MANAGER, _PERSISTENCED)
    states = [state or _running(reader, name) for state, name in zip(active, names)]
    version, program = None, find(_FABRIC_MANAGER)
    if program:
        end = run([program, "--version"], QUICK_SECONDS)
        version = parse_fabric_version(end.out or end.err)
    fabric: FabricManager = {"installed": bool(program or states[0]), "active": states[0], "version": version}
    return fabric, states[1]


# --------------------------------------------------------------------------------------------------------------------
# The driver's files
# --------------------------------------------------------------------------------------------------------------------

_MODULE_DIRECTORIES = ("updates/dkms", "updates", "extra", "kernel/drivers/video", "weak-updates/nvidia")
_LIBRARY_DIRECTORIES = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")


def driver_installed_at(reader: Reader, version: str | None, kernel: str) -> int | None:
    """When the driver was installed last: the newer of its kernel module and its library, in epoch seconds."""
    places = [
        f"/lib/modules/{kernel}/{directory}/nvidia.ko{suffix}"
        for directory in _MODULE_DIRECTORIES
        for suffix in ("", ".xz", ".zst", ".gz")
    ]
    if version:
        places += [f"{directory}/libnvidia-ml.so.{version}" for directory in _LIBRARY_DIRECTORIES]
    times = []
    for place in places:
        try:
            # Not of what a link leads to: the package manager writes the link as well.
            times.append(int(os.lstat(reader.path(place)).st_mtime))
        except OSError:
            continue
    return max(times) if times else None
