# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What one host is: system, CPU, memory, listeners. Reading only; parsing apart from the reads."""

from __future__ import annotations

import contextlib
import os
import platform
import socket
import struct
import typing as t

LISTEN = "0A"
CPU_FLAGS = ("avx2", "avx512f", "avx512_bf16", "amx_bf16", "asimd", "bf16")


def parse_os_release(text: str) -> dict[str, str]:
    """``id``, ``version_id``, ``id_like`` and ``name`` of /etc/os-release; missing keys are empty."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        name, separator, value = line.partition("=")
        if separator:
            values[name.strip()] = value.strip().strip("\"'")
    return {
        "id": values.get("ID", ""),
        "version_id": values.get("VERSION_ID", ""),
        "id_like": values.get("ID_LIKE", ""),
        "name": values.get("PRETTY_NAME", ""),
    }


def parse_cpuinfo(text: str) -> dict[str, t.Any]:
    """``count``, ``model`` and the flags that an engine cares about (``flags`` on x86, ``Features`` on Arm)."""
    count, model, found = 0, "", set()
    for line in text.splitlines():
        name, _separator, value = line.partition(":")
        name, value = name.strip(), value.strip()
        if name == "processor":
            count += 1
        elif name == "model name" and not model:
            model = value
        elif name in ("flags", "Features"):
            found |= set(value.split())
    return {
        "count": count,
        "model": model,
        "flags": [flag for flag in CPU_FLAGS if flag in found],
    }


def parse_meminfo(text: str) -> dict[str, int]:
    """``total_bytes`` and ``available_bytes``."""
    kib: dict[str, int] = {}
    for line in text.splitlines():
        name, _separator, value = line.partition(":")
        words = value.split()
        if words and words[0].isdigit():
            kib[name] = int(words[0])
    return {
        "total_bytes": kib.get("MemTotal", 0) * 1024,
        "available_bytes": kib.get("MemAvailable", 0) * 1024,
    }


def _address(word: str) -> str:
    """An address of /proc/net/tcp: hexadecimal, each 32-bit word in host byte order."""
    raw = b"".join(struct.pack("=I", int(word[i : i + 8], 16)) for i in range(0, len(word), 8))
    if len(raw) == 4:
        return socket.inet_ntop(socket.AF_INET, raw)
    if raw.startswith(b"\0" * 10 + b"\xff\xff"):
        return socket.inet_ntop(socket.AF_INET, raw[12:])
    return socket.inet_ntop(socket.AF_INET6, raw)


def parse_listeners(text: str) -> list[tuple[str, int, int]]:
    """Listening sockets of a /proc/net/tcp or tcp6: (address, port, inode)."""
    found = []
    for line in text.splitlines()[1:]:
        fields = line.split()
        if len(fields) > 9 and fields[3] == LISTEN:
            address, port = fields[1].split(":")
            found.append((_address(address), int(port, 16), int(fields[9])))
    return found


def read(path: str) -> str:
    """A small file of /proc or /etc, empty where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def existing_parent(path: str) -> str:
    """The nearest directory that exists: whose file system a path will be made on."""
    while not os.path.isdir(path):
        parent = os.path.dirname(path)
        if parent == path:
            break
        path = parent
    return path


def _socket_owners(inodes: t.Container[int]) -> dict[int, int]:
    """inode -> pid, for the processes that we may look into."""
    owners: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        for link in _open_files(entry):
            if link.startswith("socket:[") and int(link[8:-1]) in inodes:
                owners.setdefault(int(link[8:-1]), int(entry))
    return owners


def _open_files(pid: str) -> list[str]:
    """What its descriptors point to; none where we may not look, and without those that it closes meanwhile."""
    links = []
    with contextlib.suppress(OSError):
        for fd in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(FileNotFoundError):
                links.append(os.readlink(f"/proc/{pid}/fd/{fd}"))
    return links


def workers_in(directory: str) -> list[int]:
    """Processes that work in a directory and have no terminal, which a person's shell there has."""
    found = []
    for entry in os.listdir("/proc"):
        fields = read(f"/proc/{entry}/stat").rpartition(")")[2].split() if entry.isdigit() else []
        if len(fields) > 4 and fields[4] == "0":
            with contextlib.suppress(OSError):
                if os.readlink(f"/proc/{entry}/cwd") == directory:
                    found.append(int(entry))
    return found


def parent_pid(pid: int) -> int:
    """0 where there is none; the command name in /proc/PID/stat may hold spaces and brackets."""
    fields = read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    return int(fields[1]) if len(fields) > 1 else 0


def is_descendant(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = parent_pid(pid)
    return False


def _process_name(pid: int) -> str:
    words = read(f"/proc/{pid}/cmdline").split("\0")
    return os.path.basename(words[0]) if words and words[0] else read(f"/proc/{pid}/comm").strip()


# What listens for a container: its proxy, the daemon itself where it was told to do without, and one or the other whose
# name this user may not see.
PUBLISHERS = ("docker-proxy", "dockerd", None)


def listeners(
    ports: t.Collection[int], services: t.Mapping[str, int], published: t.Mapping[int, str]
) -> list[dict[str, t.Any]]:
    """Who listens on the wanted ports, or on any where none is named.

    ``services`` maps our services to their main pids, and ``published`` the ports that Docker listens on for them to
    their names, so that ours are told apart.
    """
    found = [
        listener
        for table in ("/proc/net/tcp", "/proc/net/tcp6")
        for listener in parse_listeners(read(table))
        if not ports or listener[1] in ports
    ]
    owners = _socket_owners({inode for _address_, _port, inode in found})
    result = []
    for address, port, inode in sorted(found):
        pid = owners.get(inode)
        process = _process_name(pid) if pid else None
        ours = [name for name, main in services.items() if pid and main and is_descendant(pid, main)]
        if process in PUBLISHERS and port in published:
            ours = [published[port]]
        result.append(
            {
                "address": address,
                "port": port,
                "pid": pid,
                "process": process,
                "service": ours[0] if ours else None,
            }
        )
    return result


def service_manager() -> str:
    """``systemd`` where it runs as the init system (sd_booted(3)), else ``none``."""
    return "systemd" if os.path.isdir("/run/systemd/system") else "none"


def selinux() -> str:
    """``enforcing``, ``permissive`` or ``disabled``."""
    return {"1": "enforcing", "0": "permissive"}.get(read("/sys/fs/selinux/enforce").strip(), "disabled")


def system() -> dict[str, t.Any]:
    return {
        "hostname": socket.gethostname(),
        "machine": platform.machine(),
        "kernel": platform.release(),
        "os": parse_os_release(read("/etc/os-release")),
        "python_version": platform.python_version(),
        "service_manager": service_manager(),
        "cpu": parse_cpuinfo(read("/proc/cpuinfo")),
        "memory": parse_meminfo(read("/proc/meminfo")),
        "selinux": selinux(),
    }
