# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The fleet-wide choices behind a plan, and the rules that hold for them. Pure, no I/O, on the controller."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _compose
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import parse_setting

COMPOSE = "compose"


@dataclass(frozen=True)
class Settings:
    """The fleet-wide choices behind a plan; paths are absolute and on the host."""

    root: str
    model_root: str
    device: str = "auto"
    allow_cpu: bool = False
    runtime: str = "auto"
    bind_address: str = "127.0.0.1"
    address: str = ""
    drain_seconds: int = 120
    ready_timeout: int = 1800
    default_args: t.Mapping[str, t.Any] = field(default_factory=dict)
    default_environment: t.Mapping[str, t.Any] = field(default_factory=dict)
    cpu_args: t.Mapping[str, t.Any] = field(default_factory=dict)
    cpu_environment: t.Mapping[str, t.Any] = field(default_factory=dict)
    engine_path: str = ""
    engine_python: str = ""
    engine_versions: t.Mapping[str, str] = field(default_factory=dict)
    engine_managed: bool = True
    image: str = ""
    container_user: str = "2000:0"
    container_shm_size: str = "16gb"
    container_read_only: bool = True
    container_gpu_driver: str = "nvidia"
    container_ulimits: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(_compose.ULIMITS))
    container_logging: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(_compose.LOGGING))
    container_limits: t.Mapping[str, t.Any] = field(default_factory=dict)
    allow_remote_code: bool = False
    allow_public_bind: bool = False
    allow_pickle: bool = False
    repin: bool | str | t.Sequence[str] = field(default_factory=list)
    skip: t.Sequence[str] = field(default_factory=list)

    def container(self, shm_size: str = "") -> _compose.Container:
        return _compose.Container(
            user=self.container_user,
            shm_size=shm_size or self.container_shm_size,
            read_only=self.container_read_only,
            gpu_driver=self.container_gpu_driver,
            ulimits=self.container_ulimits,
            logging=self.container_logging,
            limits=self.container_limits,
        )


Facts = t.Mapping[str, t.Any]


def check_settings(settings: Settings) -> tuple[Settings, list[Finding]]:
    """The settings, held to the rules of a service's own keys; a mapping that breaks them counts as {}."""
    checks = {
        "root": ("path", "vllm_root"),
        "model_root": ("path", "vllm_model_root"),
        "engine_path": ("path", "vllm_engine_path"),
        "bind_address": ("bind_address", "vllm_bind_address"),
        "image": ("image", "vllm_image"),
        "default_args": ("args", "vllm_default_args"),
        "cpu_args": ("args", "vllm_cpu_args"),
        "default_environment": ("environment", "vllm_default_environment"),
        "cpu_environment": ("environment", "vllm_cpu_environment"),
    }
    findings: list[Finding] = []
    good: dict[str, t.Any] = {}
    for name, (key, variable) in checks.items():
        value = getattr(settings, name)
        if value == "" and name in ("engine_path", "bind_address", "image"):
            continue
        checked, found = parse_setting(key, variable, value)
        findings += found
        if not found:
            good[name] = checked
        elif isinstance(value, dict):
            good[name] = {}
    return replace(settings, **good), findings
