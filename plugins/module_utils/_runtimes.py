# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Choosing a process manager: the one place that knows all of them."""

from __future__ import annotations

import grp
import os
import pwd
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._compose_stack import ComposeBackend
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._host import service_manager
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner, run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import Backend, Layout, read_json
from ansible_collections.gpufleet.vllm.plugins.module_utils._supervisor import SupervisorBackend
from ansible_collections.gpufleet.vllm.plugins.module_utils._systemd import SystemdBackend

RUNTIMES = ("auto", "compose", "systemd", "supervisor")
DEFAULT_ROOT = "/var/lib/gpufleet-vllm"
# Two levels deep, and yet no one's own: a deploy sets the mode of its root, a teardown empties it.
SYSTEM_DIRECTORIES = {
    *(f"/var/{name}" for name in ("cache", "lib", "local", "log", "mail", "opt", "run", "spool", "tmp")),
    *(f"/usr/{name}" for name in ("bin", "lib", "lib64", "libexec", "local", "sbin", "share", "src")),
    *("/run/lock", "/run/user", "/etc/systemd"),
}


def argument_spec() -> dict[str, t.Any]:
    """The options of the doc fragment ``_runtime``."""
    return {
        "root": {"type": "path", "default": DEFAULT_ROOT},
        "runtime": {"type": "str", "choices": list(RUNTIMES), "default": "auto"},
    }


def resolve_runtime(runtime: str) -> str:
    if runtime != "auto":
        return runtime
    return "systemd" if service_manager() == "systemd" else "supervisor"


def previous_runtime(layout: Layout, runtime: str) -> str:
    """What the last deploy ran services with, where it is not what this one does; else empty."""
    applied = (read_json(layout.plan) or {}).get("runtime")
    return str(applied) if applied in RUNTIMES[1:] and applied != resolve_runtime(runtime) else ""


def make_backend(
    runtime: str,
    layout: Layout,
    *,
    user: str = "vllm",
    group: str = "vllm",
    allow_daemon_reload: bool = False,
    requirements: str = "",
    pip_args: t.Sequence[str] = (),
    runner: Runner = run_command,
) -> Backend:
    resolved = resolve_runtime(runtime)
    if resolved == "compose":
        return ComposeBackend(layout, runner)
    if resolved == "systemd":
        return SystemdBackend(layout, runner, user, group, allow_daemon_reload)
    return SupervisorBackend(layout, runner, requirements, pip_args)


def service_owner(runtime: str, user: str, group: str) -> tuple[int, int] | None:
    """uid and gid of the service user under systemd.

    ``None`` under supervisor, where services run as whoever deployed them, and under Compose, where each container has
    its own.
    """
    if resolve_runtime(runtime) != "systemd":
        return None
    try:
        return pwd.getpwnam(user).pw_uid, grp.getgrnam(group).gr_gid
    except KeyError as exc:
        raise FleetError(
            "stack.no_user",
            f"the service user is missing ({exc.args[0]})",
            f"user {user} and group {group} on the host",
            "run the role vllm_runtime, which creates them, or set vllm_user to one that exists",
        ) from None


def user_exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def absolute_root(root: str) -> str:
    """The root without trailing slashes; a system directory is refused, since teardown removes a root."""
    cleaned = os.path.normpath(root)
    if cleaned.startswith("//"):  # POSIX keeps two leading slashes; three are one again
        cleaned = cleaned[1:]
    shallow = cleaned.count("/") < 2 and cleaned not in ("/gpufleet", "/vllm")
    if not os.path.isabs(cleaned) or shallow or cleaned in SYSTEM_DIRECTORIES:
        raise FleetError(
            "stack.bad_root",
            f"vllm_root is {root}",
            "an absolute path of its own below a top-level directory",
            "set vllm_root to something like /var/lib/gpufleet-vllm",
        )
    if not cleaned.isprintable():
        raise FleetError(
            "stack.bad_root",
            f"vllm_root is {root!r}",
            "a path without line breaks and control characters",
            "set vllm_root to something like /var/lib/gpufleet-vllm",
        )
    return cleaned
