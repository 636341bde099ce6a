# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What decides over containers and is in no answer of Docker's: limits of its processes, daemon.json, device links."""

from __future__ import annotations

import json
import os
import re
import stat
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_health import Reader

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia import Docker

_CONFIGURATION = "/etc/docker/daemon.json"
_SNAP_CONFIGURATION = "/var/snap/docker/current/config/daemon.json"
_ULIMIT_OPTION = re.compile(r"nofile=(-?\d+)")
_LIMIT_ROW = re.compile(r"^Max (open files|locked memory)\s+(\S+)\s+(\S+)", re.MULTILINE)
UNLIMITED = -1
_FILE_LIMIT = 1 << 20


class Limits(t.NamedTuple):
    """Limits of a process; -1 is unlimited."""

    nofile_soft: int | None = None
    nofile_hard: int | None = None
    memlock_soft: int | None = None
    memlock_hard: int | None = None


def parse_limits(text: str) -> Limits:
    """/proc/PID/limits."""
    rows = {name: (_limit(soft), _limit(hard)) for name, soft, hard in _LIMIT_ROW.findall(text)}
    nofile, memlock = rows.get("open files", (None, None)), rows.get("locked memory", (None, None))
    return Limits(nofile[0], nofile[1], memlock[0], memlock[1])


def _limit(word: str) -> int | None:
    if word == "unlimited":
        return UNLIMITED
    return int(word) if word.isdigit() else None


def processes_called(reader: Reader, *names: str) -> dict[str, int]:
    """The first process of each of these names."""
    found: dict[str, int] = {}
    pids = sorted(int(entry) for entry in reader.names("/proc") if entry.isdigit())
    for pid in pids:
        name = (reader.read(f"/proc/{pid}/comm", 64) or "").strip()
        if name in names:
            found.setdefault(name, pid)
    return found


def parse_daemon_json(text: str) -> tuple[dict[str, t.Any], str]:
    """The object in daemon.json, and why it can not be used (empty where it can)."""
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        return {}, f"is no JSON ({error})"
    return (value, "") if isinstance(value, dict) else ({}, "holds no JSON object")


def configured_nofile(configuration: t.Mapping[str, t.Any], command_line: str) -> int | None:
    """``default-ulimits`` of daemon.json, or ``--default-ulimit`` of the daemon: the soft limit of open files."""
    limits = configuration.get("default-ulimits")
    nofile = limits.get("nofile") if isinstance(limits, dict) else None
    soft = nofile.get("Soft") if isinstance(nofile, dict) else None
    if isinstance(soft, int) and not isinstance(soft, bool):
        return soft
    words = command_line.split("\0")
    for word, following in zip(words, [*words[1:], ""]):
        if word.startswith("--default-ulimit"):
            match = _ULIMIT_OPTION.search(word if "=" in word else following)
            if match:
                return int(match.group(1))
    return None


def device_links(reader: Reader) -> bool | None:
    """Whether /dev/char has a link for each NVIDIA device node; None where there are no nodes.

    Without the links ``systemctl daemon-reload`` takes the GPUs away from running containers (cgroup v2, systemd).
    """
    numbers = []
    for name in reader.names("/dev"):
        if re.match(r"nvidia(?:\d+|ctl|-uvm|-uvm-tools|-modeset)$", name):
            try:
                state = os.stat(reader.path(f"/dev/{name}"))
            except OSError:
                continue
            if stat.S_ISCHR(state.st_mode):
                numbers.append(f"{os.major(state.st_rdev)}:{os.minor(state.st_rdev)}")
    if not numbers:
        return None
    links = set(reader.names("/dev/char"))
    return links.issuperset(numbers)


def complete(docker: Docker, reader: Reader) -> None:
    """Add to Docker's facts what its own answers lack."""
    docker["dev_char_links"] = device_links(reader)
    if not docker["installed"] or docker["podman"]:
        return
    path = _SNAP_CONFIGURATION if docker["snap"] else _CONFIGURATION
    configuration, error = parse_daemon_json(reader.read(path, _FILE_LIMIT) or "")
    if error:
        docker["daemon_error"] = f"{path} {error}: Docker will not start again. Correct it, then restart Docker."
    pids = processes_called(reader, "containerd", "dockerd")
    limits = {name: parse_limits(reader.read(f"/proc/{pid}/limits", 8192) or "") for name, pid in pids.items()}
    containerd = limits.get("containerd", Limits()).nofile_soft
    docker["containerd_nofile_soft"] = containerd
    command_line = reader.read(f"/proc/{pids['dockerd']}/cmdline", 65536) or "" if "dockerd" in pids else ""
    own = configured_nofile(configuration, command_line)
    # A container inherits from the shim that containerd starts.
    docker["default_nofile_soft"] = (
        own
        if own is not None
        else containerd
        if containerd is not None
        else limits.get("dockerd", Limits()).nofile_soft
    )
