# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Ask a host what runs containers on it: the container toolkit, Docker, Compose, CDI files, images."""

from __future__ import annotations

import os
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia as nv
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_docker, _nvidia_images
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_health import Find, Reader
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner
from ansible_collections.gpufleet.vllm.plugins.module_utils._sources import Sources

_CDI_DIRECTORIES = ("/etc/cdi", "/var/run/cdi")
_CDI_MAX_FILES = 64
_CDI_MAX_BYTES = 16 * 2**20


class Tools(Reader, t.Protocol):
    """Where files are read and programs are found: :class:`_nvidia_probe.Host`."""

    @property
    def find(self) -> Find: ...


def _toolkit(run: Runner, host: Tools, timeout: float) -> nv.Toolkit:
    ctk = host.find("nvidia-ctk")
    # The hook's name before toolkit 1.12 was nvidia-container-toolkit.
    hook = host.find("nvidia-container-runtime-hook") or host.find("nvidia-container-toolkit")
    runtime = host.find("nvidia-container-runtime")
    cli = host.find("nvidia-container-cli")
    version = None
    for tool in (ctk, hook, cli):
        if tool and version is None:
            end = run([tool, "--version"], timeout)
            version = nv.parse_tool_version(end.out or end.err) if end.rc == 0 else None
    return {
        "installed": bool(ctk or hook or runtime),
        "version": version,
        "nvidia_ctk": ctk,
        "runtime": runtime,
        "runtime_hook": hook,
    }


def _is_snap(path: str) -> bool:
    return path.startswith("/snap/") or os.path.realpath(path).startswith("/snap/")


def _docker(run: Runner, host: Tools, timeout: float, problems: list[str]) -> tuple[nv.Docker, str]:
    """Docker's facts and the text of ``docker info``, which holds those of CDI and Compose too."""
    docker = nv.empty_docker()
    path = host.find("docker")
    if path is None:
        return docker, ""
    docker.update({"installed": True, "path": path, "snap": _is_snap(path), "running": None})
    version = run([path, "version", "--format", "{{json .}}"], timeout)
    nv.apply_docker_version(docker, version.out)
    # A server that held up the first question holds up the second one.
    info = version if version.timed_out else run([path, "info", "--format", "{{json .}}"], timeout)
    if info.timed_out:
        docker["error"] = (
            f"The Docker server gave no answer within {timeout:g} s. Restart it: systemctl restart docker."
        )
    else:
        nv.apply_docker_info(docker, info.out)
        if docker["server_version"]:
            docker["running"] = True
        elif not docker["podman"]:
            docker["running"], docker["error"] = nv.docker_failure(version.err or info.err or version.out)
    if docker["error"]:
        problems.append(docker["error"])
    return docker, "" if info.timed_out else info.out


def _compose(run: Runner, host: Tools, timeout: float, docker: nv.Docker, info: str) -> nv.Compose:
    version, path = nv.compose_plugin(info)
    if version:
        return {"installed": True, "version": version, "path": path, "plugin": True}
    # podman's information names no plugins, and a server that hangs gives none.
    if docker["path"] and not nv.parse_json_object(info):
        end = run([docker["path"], "compose", "version", "--short"], timeout)
        version = nv.version_text(nv.first_line(end.out)) if end.rc == 0 else None
        if version and version[0].isdigit():
            return {"installed": True, "version": version, "path": None, "plugin": True}
    path = host.find("docker-compose")
    if path:
        end = run([path, "version", "--short"], timeout)
        version = nv.version_text(nv.first_line(end.out)) if end.rc == 0 else None
        return {"installed": True, "version": version, "path": path, "plugin": False}
    return {"installed": False, "version": None, "path": None, "plugin": None}


def _cdi_spec(host: Tools, path: str) -> nv.CdiSpec:
    spec: nv.CdiSpec = {
        "path": path,
        "mtime": None,
        "kind": None,
        "devices": [],
        "driver_version": None,
        "error": None,
    }
    try:
        spec["mtime"] = int(os.stat(host.path(path)).st_mtime)
    except OSError as error:
        spec["error"] = error.strerror
        return spec
    text = host.read(path, _CDI_MAX_BYTES)
    if text is None:
        spec["error"] = "cannot be read by this user"
        return spec
    spec["kind"], spec["devices"], spec["driver_version"] = nv.parse_cdi(text)
    if spec["kind"] is None:
        spec["error"] = "names no kind: not a CDI specification"
    return spec


def _cdi(host: Tools, info: str) -> nv.Cdi:
    enabled, directories, devices = nv.docker_cdi(info)
    specs: list[nv.CdiSpec] = []
    seen: set[str] = set()
    for directory in directories or _CDI_DIRECTORIES:
        # /var/run is a link to /run: the same directory can come under both names.
        real = os.path.realpath(host.path(directory))
        if real in seen:
            continue
        seen.add(real)
        names = [name for name in host.names(directory) if name.endswith((".json", ".yaml"))]
        specs.extend(_cdi_spec(host, f"{directory.rstrip('/')}/{name}") for name in names[:_CDI_MAX_FILES])
    return {
        "enabled_in_docker": enabled,
        "spec_dirs": directories or list(_CDI_DIRECTORIES),
        "specs": specs,
        "docker_devices": devices,
        "newest_mtime": max((spec["mtime"] for spec in specs if spec["mtime"] is not None), default=None),
    }


def stale_cdi(cdi: nv.Cdi, driver_version: str | None) -> list[str]:
    return [
        f"{spec['path']} was generated for driver {spec['driver_version']} and the host runs {driver_version}: run "
        f"'nvidia-ctk cdi generate --output={spec['path']}' or 'systemctl restart nvidia-cdi-refresh'."
        for spec in cdi["specs"]
        if spec["driver_version"] and driver_version and not nv.same_version(spec["driver_version"], driver_version)
    ]


def read_containers(
    run: Runner, host: Tools, timeout: float, images: t.Sequence[str], problems: list[str]
) -> nv.Container:
    """Toolkit, Docker, Compose, CDI and images; ``problems`` gets what an operator should know."""
    sources = Sources()
    sources.ask("the container toolkit", lambda: _toolkit(run, host, timeout), 3 * timeout + 1)
    docker, info = _docker(run, host, timeout, problems)
    found: dict[str, _nvidia_images.Image] | None = {} if not images else None
    if images and docker["path"] and docker["running"]:
        found = _nvidia_images.read_images(run, docker["path"], images, timeout)
    _nvidia_docker.complete(docker, host)
    if docker["daemon_error"]:
        problems.append(docker["daemon_error"])
    nothing: nv.Toolkit = {
        "installed": False, "version": None, "nvidia_ctk": None, "runtime": None, "runtime_hook": None,
    }  # fmt: skip
    container: nv.Container = {
        "docker": docker,
        "compose": _compose(run, host, timeout, docker, info),
        "cdi": _cdi(host, info),
        "images": found,
        "toolkit": sources.answer("the container toolkit", nothing),
    }
    problems.extend(sources.problems)
    return container
