# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the last deploy applied on a host, as a plan compares itself with it. Pure, no I/O.

No value of an environment is in it: one may hold a secret by mistake. The digest of each service covers them, so that a
change is seen all the same.
"""

from __future__ import annotations

import typing as t

SERVICE_KEYS = (
    "model", "revision", "path", "port", "bind_address", "gpus", "arguments", "image", "stop_timeout", "secrets",
    "digest",
)  # fmt: skip
ENGINE_KEYS = ("flavor", "version", "path", "executable", "managed", "digest", "image")
# Of a container; the rest follows from other keys, or holds the environment.
CONTAINER_LEFT_OUT = ("environment", "command", "entrypoint", "image", "ports", "volumes", "deploy", "secrets")


def deployed_plan(document: t.Mapping[str, t.Any], installed: t.Mapping[str, str]) -> dict[str, t.Any] | None:
    """``document`` is what plan.json holds, and ``installed`` the digest that each service is really installed with."""
    if not document and not installed:
        return None
    return {
        "digest": document.get("digest"),
        "runtime": document.get("runtime"),
        "engine": {key: _mapping(document.get("engine")).get(key) for key in ENGINE_KEYS},
        "images": [dict(image) for image in _mappings(document.get("images"))],
        "artifacts": [dict(artifact) for artifact in _mappings(document.get("artifacts"))],
        "services": {
            str(service["name"]): deployed_service(service)
            for service in _mappings(document.get("services"))
            if service.get("name")
        },
        "installed": dict(installed),
    }


def deployed_service(service: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """One service without the values of its environment."""
    kept = {key: service.get(key) for key in SERVICE_KEYS}
    kept["environment"] = sorted(map(str, _mapping(service.get("environment"))))
    container = service.get("container")
    kept["container"] = container_choices(container) if isinstance(container, dict) else None
    return kept


def container_choices(container: t.Mapping[str, t.Any]) -> dict[str, t.Any]:
    """What the fleet chose for a container: user, sizes, limits, logging, health check; resource limits among them."""
    kept = {key: value for key, value in container.items() if key not in CONTAINER_LEFT_OUT}
    resources = _mapping(_mapping(container.get("deploy")).get("resources"))
    devices = _mapping(resources.get("reservations")).get("devices")
    kept["limits"] = dict(_mapping(resources.get("limits")))
    kept["gpu_driver"] = next((device.get("driver") for device in _mappings(devices)), None)
    return kept


def _mapping(value: t.Any) -> t.Mapping[str, t.Any]:
    return value if isinstance(value, t.Mapping) else {}


def _mappings(value: t.Any) -> list[t.Mapping[str, t.Any]]:
    return [item for item in value if isinstance(item, t.Mapping)] if isinstance(value, (list, tuple)) else []
