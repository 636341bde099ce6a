# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Whose a process on a GPU is: a service of ours, a container's, a user's, or an engine that nobody owns any more."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._host import is_descendant, parent_pid, read
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner

_CONTAINER = re.compile(r"(?:^|[/:-])([0-9a-f]{64})(?:\.scope)?(?:/|$)")
# vLLM names its processes; before 0.10 they were plain children of Python's multiprocessing.
_ENGINE = re.compile(r"^VLLM::(?!APIServer)|multiprocessing\.(?:spawn|forkserver)|^ray::")
_INIT_NAMES = ("systemd", "init", "tini", "docker-init", "dumb-init", "catatonit", "supervisord", "s6-svscan")
_DEPTH = 64
_FORMAT = '{{.ID}}\t{{.Names}}\t{{.Label "gpufleet.vllm.service"}}\t{{.Label "gpufleet.vllm.root"}}'


class Owner(t.TypedDict):
    service: str | None
    container: str | None
    orphan: bool
    user: str | None


class Named(t.NamedTuple):
    """A container of ``docker ps``."""

    name: str
    service: str
    root: str


def container_id(cgroup: str) -> str | None:
    """The container of a process, by its /proc/PID/cgroup: Docker, containerd and podman write the whole id there."""
    for line in cgroup.splitlines():
        match = _CONTAINER.search(line.partition(":")[2])
        if match:
            return match.group(1)
    return None


def parse_containers(text: str) -> dict[str, Named]:
    """The lines of ``docker ps --no-trunc`` with our format, by id."""
    found = {}
    for line in text.splitlines():
        cells = line.split("\t")
        if len(cells) == 4:
            found[cells[0]] = Named(*cells[1:])
    return found


def is_engine(command_line: str) -> bool:
    """Whether a process is one that an API server of vLLM starts, and not such a server itself."""
    return bool(_ENGINE.search(command_line.replace("\0", " ")))


def _is_init(pid: int) -> bool:
    return pid <= 1 or read(f"/proc/{pid}/comm").strip() in _INIT_NAMES


def is_orphan(pid: int) -> bool:
    """Whether an engine process has lost its API server: no parent but an init that took it in."""
    if not is_engine(read(f"/proc/{pid}/cmdline")):
        return False
    for _step in range(_DEPTH):
        parent = parent_pid(pid)
        if _is_init(parent):
            return True
        if not is_engine(read(f"/proc/{parent}/cmdline")):
            return False
        pid = parent
    return False


def _user(pid: int) -> str | None:
    try:
        uid = os.stat(f"/proc/{pid}").st_uid
    except OSError:
        return None
    with contextlib.suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return str(uid)


def owners(
    run: Runner, docker: str | None, pids: t.Iterable[int], services: t.Mapping[str, int], root: str, timeout: float
) -> dict[int, Owner]:
    """The owner of each process; one question to Docker, and only where a process lives in a container.

    :param services: our services and their main processes.
    :param root: the root of our services: a container of another root is another's.
    """
    ids = {pid: container_id(read(f"/proc/{pid}/cgroup")) for pid in set(pids)}
    containers: dict[str, Named] = {}
    if docker and any(ids.values()):
        containers = parse_containers(run([docker, "ps", "--no-trunc", "--format", _FORMAT], timeout).out)
    found: dict[int, Owner] = {}
    for pid, identity in ids.items():
        named = containers.get(identity or "")
        service = next((name for name, main in services.items() if main and is_descendant(pid, main)), None)
        if service is None and named and named.service and named.root == root:
            service = named.service
        found[pid] = {
            "service": service,
            # A container that Docker does not know belongs to another engine: its id is all there is.
            "container": named.name if named else (identity or "")[:12] or None,
            "orphan": service is None and not identity and is_orphan(pid),
            "user": _user(pid),
        }
    return found
