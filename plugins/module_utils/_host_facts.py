# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a preflight wants to know of a host beside its GPUs and services, asked side by side, each with a deadline."""

from __future__ import annotations

import platform
import time
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _host_kernel,
    _host_models,
    _host_network,
    _host_processes,
    _host_storage,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_probe import Host, nvidia_pci_gpus
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import Runner, run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._sources import Sources

_COMMAND_SECONDS = 7.0
_DISK_SECONDS = 10.0
# Its name may take as long as the request.
_HUB_SECONDS = 2 * _host_network.HUB_SECONDS + 1
_DOCKER_SECONDS = 10.0
_MODEL_SECONDS = 20.0
_DOCKER_ROOT = "/var/lib/docker"
# What Docker calls containerd's way of keeping images; its own is overlay2.
SNAPSHOTTER, CONTAINERD_ROOT = "overlayfs", "/var/lib/containerd"

Facts = dict[str, t.Any]


class HostFacts:
    """Starts to ask at once; :meth:`complete` waits for the answers."""

    def __init__(
        self,
        runtime: str,
        paths: t.Sequence[str],
        hub_endpoint: str = "",
        hub_token: str = "",
        models: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
        run: Runner = run_command,
        host: Host | None = None,
    ) -> None:
        self.runtime, self.paths, self.run = runtime, list(dict.fromkeys(paths)), run
        self.host = host or Host()
        self.hub_endpoint, self.hub_token = hub_endpoint, hub_token
        self.sources = Sources()
        find = self.host.find
        if hub_endpoint:
            self._ask("the hub", lambda: _host_network.hub(hub_endpoint, hub_token), _HUB_SECONDS)
        self.models = models or {}
        for name, item in self.models.items():
            self._ask_model(name, item)
        self._ask("whether a reboot waits", lambda: _host_kernel.reboot(run, self.host, find, platform.release()))
        self._ask("the clock", lambda: _host_kernel.clock(run, find))
        self._ask("PCI bridges", lambda: _host_kernel.acs(self.host))
        self._ask("the size of /dev/shm", _host_storage.shm)
        for path in self.paths:
            self._ask_path(path)

    def _ask(self, name: str, function: t.Callable[[], t.Any], seconds: float = _COMMAND_SECONDS) -> None:
        self.sources.ask(name, function, seconds)

    def _ask_model(self, name: str, item: t.Mapping[str, t.Any]) -> None:
        endpoint, token = self.hub_endpoint, self.hub_token
        self._ask(f"the model {name}", lambda: _host_models.describe_model(item, endpoint, token), _MODEL_SECONDS)

    def _ask_path(self, path: str) -> None:
        # A server of files that is away holds up whoever asks for its space.
        self._ask(f"the file system of {path}", lambda: _host_storage.filesystems([path]), _DISK_SECONDS)
        self._ask(f"the label of {path}", lambda: _host_kernel.label(path), _DISK_SECONDS)

    def complete(self, facts: Facts, services: t.Mapping[str, int], root: str) -> Facts:
        """Add to the facts of :func:`_host_info.gather` what was asked here.

        :param services: our services and their main processes.
        """
        docker = ((facts["nvidia"].get("container") or {}).get("docker")) or {}
        docker_root = docker.get("root_dir") or (_DOCKER_ROOT if docker.get("installed") else None)
        paths = list(self.paths)
        for place in (docker_root, self._image_store(docker)):
            if place and place not in paths:
                paths.append(place)
                self._ask_path(place)
        self._owners(facts["gpus"], docker.get("path") if docker.get("running") else None, services, root)
        answer, none = self.sources.answer, t.cast("t.Any", None)
        disks: list[list[Facts]] = [answer(f"the file system of {path}", []) for path in paths]
        facts.update(
            {
                "filesystems": [entry for disk in disks for entry in disk],
                "labels": {path: answer(f"the label of {path}", none) for path in paths},
                "boot": _host_kernel.boot(self.host),
                "reboot": answer("whether a reboot waits", {"required": none, "why": ""}),
                "clock": answer("the clock", none),
                "limits": _host_kernel.limits(self.host, self.runtime),
                "shm": answer("the size of /dev/shm", {"size_bytes": none}),
                "addresses": _host_network.addresses(),
                "iommu": _host_kernel.iommu(self.host, nvidia_pci_gpus(self.host)),
                "acs": answer("PCI bridges", none),
                "apparmor": _host_kernel.apparmor(self.host),
                "hub": answer("the hub", none) if self.hub_endpoint else None,
                "models": {name: answer(f"the model {name}", none) for name in self.models},
            }
        )
        facts["nvidia"].setdefault("problems", []).extend(self.sources.problems)
        if facts["clock"]:
            # As late as can be: it is compared with when the facts arrive.
            facts["clock"]["epoch"] = time.time()
        return facts

    def _image_store(self, docker: Facts) -> str | None:
        """Where containerd keeps Docker's images, which it does from Docker 29 on; None where Docker itself does."""
        if docker.get("storage_driver") != SNAPSHOTTER or self.host.names(
            f"{docker.get('root_dir')}/containerd/daemon"
        ):
            return None
        return CONTAINERD_ROOT if self.host.names(CONTAINERD_ROOT) else None

    def _owners(self, gpus: t.Sequence[Facts], docker: str | None, services: t.Mapping[str, int], root: str) -> None:
        processes = [process for gpu in gpus for process in gpu["processes"]]
        owners = _host_processes.owners(
            self.run, docker, [process["pid"] for process in processes], services, root, _DOCKER_SECONDS
        )
        for process in processes:
            process.update(owners[process["pid"]])
