# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the kernel says of a host: its boot, a reboot that waits, clock, limits, IOMMU, ACS, AppArmor, labels.

Reading only. What cannot be told is None; nothing here raises for a host that lacks a file.
"""

from __future__ import annotations

import ctypes
import os
import re
import resource
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_docker import (
    UNLIMITED,
    Limits,
    parse_limits,
    processes_called,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_health import Find, Reader, boot_time
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner

QUICK_SECONDS = 5.0
_PCI_DEVICES = "/sys/bus/pci/devices"


# --------------------------------------------------------------------------------------------------------------------
# Boot and reboot
# --------------------------------------------------------------------------------------------------------------------


def boot(reader: Reader) -> dict[str, t.Any]:
    """``id``, ``time`` in seconds since the epoch, ``uptime_s``."""
    uptime = (reader.read("/proc/uptime", 128) or "").split()
    return {
        "id": (reader.read("/proc/sys/kernel/random/boot_id", 64) or "").strip() or None,
        "time": boot_time(reader),
        "uptime_s": float(uptime[0]) if uptime and re.match(r"\d+(\.\d+)?$", uptime[0]) else None,
    }


_KERNEL = re.compile(r"^(\d+(?:\.\d+)*)(?:-(\d+(?:\.\d+)*))?(.*)$")


def kernel_key(release: str) -> tuple[list[int], list[int], str]:
    """A kernel release to compare: its numbers, those of the package, and its flavour (``-generic``)."""
    match = _KERNEL.match(release)
    if not match:
        return [], [], release
    version, package, flavour = match.groups()
    return _numbers(version), _numbers(package or ""), flavour


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(".") if word]


def newer_kernel(running: str, installed: t.Iterable[str]) -> str | None:
    """The newest installed kernel of the running one's flavour, where that is newer."""
    here = kernel_key(running)
    same = [name for name in installed if kernel_key(name)[2] == here[2] and kernel_key(name)[0]]
    newest = max(same, key=lambda name: kernel_key(name)[:2], default=None)
    return newest if newest is not None and kernel_key(newest)[:2] > here[:2] else None


def reboot(run: Runner, reader: Reader, find: Find, kernel: str) -> dict[str, t.Any]:
    """``required``, and ``why`` in words; None where the host has no way to tell."""
    if "reboot-required" in reader.names("/run"):
        packages = (reader.read("/run/reboot-required.pkgs", 65536) or "").split()
        named = ", ".join(dict.fromkeys(packages[:8])) or "a package that it does not name"
        return {"required": True, "why": f"/run/reboot-required is there, for {named}"}
    path = find("needs-restarting")
    if path:
        # 0 is no, 1 is yes; anything else is a failure, such as of the package database.
        end = run([path, "-r"], QUICK_SECONDS)
        if end.rc == 1 and "Reboot is required" in end.out:
            return {"required": True, "why": "needs-restarting -r says so"}
        if end.rc == 0:
            return {"required": False, "why": ""}
    installed = [name for name in reader.names("/lib/modules") if reader.names(f"/lib/modules/{name}/kernel")]
    if kernel not in installed:
        return {"required": None, "why": ""}
    newer = newer_kernel(kernel, installed)
    why = f"the kernel {newer} is installed and {kernel} runs" if newer else ""
    return {"required": bool(newer), "why": why}


# --------------------------------------------------------------------------------------------------------------------
# Clock
# --------------------------------------------------------------------------------------------------------------------

_STA_UNSYNC = 0x0040
_TIME_ERROR = 5


class _Timex(ctypes.Structure):
    """The first fields of struct timex, and room for the rest."""

    _fields_ = (
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_char * 512),
    )


def kernel_synchronized() -> bool | None:
    """Whether the kernel takes its clock for synchronised; None where it does not answer."""
    try:
        call = ctypes.CDLL(None, use_errno=True).adjtimex
    except (OSError, AttributeError):
        return None
    state = _Timex()  # modes 0 reads only
    result = call(ctypes.byref(state))
    return None if result < 0 else result != _TIME_ERROR and not state.status & _STA_UNSYNC


def parse_chrony(text: str) -> bool | None:
    """The last field of ``chronyc -c tracking``: whether chrony holds the clock, which it may do past the kernel."""
    fields = text.strip().split(",")
    return {"Normal": True, "Not synchronised": False}.get(fields[-1]) if len(fields) > 10 else None


def clock(run: Runner, find: Find) -> dict[str, t.Any]:
    """``epoch`` now, whether it is ``synchronized``, and the ``source`` that said so."""
    held, source = kernel_synchronized(), "adjtimex"
    if held is not True:
        path = find("chronyc")
        chrony = parse_chrony(run([path, "-c", "tracking"], QUICK_SECONDS).out) if path else None
        if chrony is not None:
            held, source = chrony, "chronyc"
    return {"epoch": time.time(), "synchronized": held, "source": "" if held is None else source}


# --------------------------------------------------------------------------------------------------------------------
# Limits
# --------------------------------------------------------------------------------------------------------------------


def own_limits() -> Limits:
    """Those of this process."""

    def pair(number: int) -> tuple[int, int]:
        soft, hard = resource.getrlimit(number)
        return tuple(UNLIMITED if value == resource.RLIM_INFINITY else value for value in (soft, hard))  # type: ignore[return-value]

    return Limits(*pair(resource.RLIMIT_NOFILE), *pair(resource.RLIMIT_MEMLOCK))


def limits(reader: Reader, runtime: str) -> dict[str, int | None]:
    """What a service starts with: containerd's limits for containers, init's for units, else those of this session.

    Each can raise its soft limit to the hard one, so memlock is given by the hard one.
    """
    found = Limits()
    if runtime == "compose":
        pid = processes_called(reader, "containerd").get("containerd")
        found = parse_limits(reader.read(f"/proc/{pid}/limits", 8192) or "") if pid else found
    elif runtime == "systemd":
        found = parse_limits(reader.read("/proc/1/limits", 8192) or "")
    if found.nofile_soft is None:
        found = own_limits()
    return {
        "memlock_bytes": found.memlock_hard,
        "nofile_soft": found.nofile_soft,
        "nofile_hard": found.nofile_hard,
    }


# --------------------------------------------------------------------------------------------------------------------
# IOMMU and ACS
# --------------------------------------------------------------------------------------------------------------------


def iommu(reader: Reader, gpus: t.Sequence[str]) -> dict[str, bool | None]:
    """Whether an IOMMU is on, and whether it lets the GPUs through untranslated.

    :param gpus: bus addresses as the kernel writes them.
    """
    if not reader.names("/sys/class"):
        return {"enabled": None, "passthrough": None}
    enabled = bool(reader.names("/sys/class/iommu"))
    if not enabled:
        return {"enabled": False, "passthrough": None}
    kinds = {(reader.read(f"{_PCI_DEVICES}/{address}/iommu_group/type", 64) or "").strip() for address in gpus} - {""}
    if kinds:
        return {"enabled": True, "passthrough": kinds == {"identity"}}
    words = (reader.read("/proc/cmdline", 65536) or "").split()
    return {"enabled": True, "passthrough": "iommu=pt" in words or "iommu.passthrough=1" in words}


_BRIDGE_CLASS = "0x0604"
_ACS = 0x000D
_ACS_REDIRECT = 0x0C  # P2P request redirect, P2P completion redirect
_EXTENDED, _CONFIG_SIZE = 0x100, 4096


def acs_redirects(config: bytes) -> bool | None:
    """Whether a bridge sends traffic between its own devices up to the root complex, by its configuration space.

    None where that was not read as a whole: who is not root gets the first 64 bytes.
    """
    if len(config) < _EXTENDED:
        return None
    position, seen = _EXTENDED, set[int]()
    while _EXTENDED <= position <= len(config) - 8 and position not in seen:
        seen.add(position)
        header = int.from_bytes(config[position : position + 4], "little")
        if header in (0, 0xFFFFFFFF):
            return False
        if header & 0xFFFF == _ACS:
            return bool(int.from_bytes(config[position + 6 : position + 8], "little") & _ACS_REDIRECT)
        position = header >> 20 & 0xFFC
    return False


def acs(reader: Reader) -> dict[str, t.Any] | None:
    """The bridges that redirect; None where no bridge can be read."""
    enabled, readable = [], False
    bridges = [
        address
        for address in reader.names(_PCI_DEVICES)
        if (reader.read(f"{_PCI_DEVICES}/{address}/class", 16) or "").startswith(_BRIDGE_CLASS)
    ]
    for address in bridges:
        try:
            with open(reader.path(f"{_PCI_DEVICES}/{address}/config"), "rb") as stream:
                redirects = acs_redirects(stream.read(_CONFIG_SIZE))
        except OSError:
            continue
        readable = readable or redirects is not None
        if redirects:
            enabled.append(address)
    return {"enabled": enabled} if readable else None


# --------------------------------------------------------------------------------------------------------------------
# Security modules
# --------------------------------------------------------------------------------------------------------------------


def apparmor(reader: Reader) -> str | None:
    """``enabled`` or ``disabled``."""
    if not reader.names("/sys/module"):
        return None
    state = (reader.read("/sys/module/apparmor/parameters/enabled", 16) or "").strip()
    return "enabled" if state == "Y" else "disabled"


def label(path: str) -> str | None:
    """The SELinux type of a path, or of its nearest existing parent; None without one."""
    while not os.path.lexists(path) and os.path.dirname(path) != path:
        path = os.path.dirname(path)
    try:
        context = os.getxattr(path, "security.selinux").decode(errors="replace").rstrip("\0")
    except OSError:
        return None
    words = context.split(":")
    return words[2] if len(words) > 2 else None
