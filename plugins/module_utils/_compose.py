# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The Compose file of a host: services of the plan into containers, and containers into text. Pure, no I/O.

What differs from the compose files that circulate, and why, stands in ``docs/compose.md``.
"""

from __future__ import annotations

import ipaddress
import json
import re
import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _render, _turns

MODEL_PATH = "/model"
HOME = "/home/vllm"
PORT = 8000
TARGET = "environment"
SECRET_FILE = f"/run/secrets/{TARGET}"
# What a compiler makes there is loaded from there.
TMPFS = "/tmp:rw,exec,nosuid,nodev,mode=1777"  # noqa: S108
LABEL = "gpufleet.vllm"
PREFIX = "vllm-"
# Without secrets the image's own entry point, spelled out: older images start another program by default. With
# secrets a shell reads them first, so that they are in no environment that `docker inspect` shows.
ENTRYPOINT = ("vllm", "serve")
SECRET_ENTRYPOINT = ("/bin/sh", "-c", f'set -a; . {SECRET_FILE}; set +a; exec vllm serve "$@"', "vllm")
# Not through a proxy, which Docker's configuration may give to every container.
HEALTH = (
    "import urllib.request as u; "
    f"u.build_opener(u.ProxyHandler({{}})).open('http://127.0.0.1:{PORT}/health', timeout=8)"
)
# vLLM raises its soft limit itself, as far as the hard one allows; 29.0 of Docker lowered both.
ULIMITS: dict[str, t.Any] = {"nofile": {"soft": 65535, "hard": 1048576}, "memlock": -1, "stack": 67108864}
LOGGING: dict[str, t.Any] = {"driver": "json-file", "options": {"max-size": "50m", "max-file": "5"}}
DEFAULT_ROOT = "/var/lib/gpufleet-vllm"
_PLAIN = re.compile(r"[A-Za-z_/.][A-Za-z0-9_/.-]*")
_RESERVED = {"null", "true", "false", "yes", "no", "on", "off", "y", "n", "~"}


@dataclass(frozen=True)
class Container:
    """The fleet's choices about containers. ``user`` is numeric, ``uid:gid``; sizes are Docker's (``16gb``)."""

    user: str = "2000:0"
    shm_size: str = "16gb"
    read_only: bool = True
    gpu_driver: str = "nvidia"
    ulimits: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(ULIMITS))
    logging: t.Mapping[str, t.Any] = field(default_factory=lambda: dict(LOGGING))
    limits: t.Mapping[str, t.Any] = field(default_factory=dict)


def project_name(root: str) -> str:
    """One Compose project a root; the name of another than the default one tells where it is from."""
    if root == DEFAULT_ROOT:
        return "gpufleet-vllm"
    return "gpufleet-" + (re.sub(r"[^a-z0-9]+", "-", root.lower()).strip("-") or "root")


def container_name(service: str) -> str:
    return f"{PREFIX}{service}"


def published_address(address: str) -> str:
    """An IP address for ``host_ip``; empty for all of the host's."""
    if address == "localhost":
        return "127.0.0.1"
    return "" if address in ("", "::", "0.0.0.0") else str(ipaddress.ip_address(address))


def resources(gpus: t.Sequence[t.Mapping[str, t.Any]], choices: Container) -> dict[str, t.Any]:
    """GPUs and limits; empty where there are neither."""
    found: dict[str, t.Any] = {}
    if choices.limits:
        found["limits"] = {key: str(value) for key, value in choices.limits.items()}
    if gpus:
        found["reservations"] = {"devices": [devices(gpus, choices.gpu_driver)]}
    return found


def devices(gpus: t.Sequence[t.Mapping[str, t.Any]], driver: str) -> dict[str, t.Any]:
    """A reservation of exactly these GPUs. Docker gives ``count: n`` the first n, whoever holds them already."""
    identifiers = [str(gpu["uuid"]) for gpu in gpus]
    if driver == "cdi":
        identifiers = [f"nvidia.com/gpu={uuid}" for uuid in identifiers]
    return {"driver": driver, "device_ids": identifiers, "capabilities": ["gpu"]}


def definition(service: t.Mapping[str, t.Any], image: str, root: str, choices: Container) -> dict[str, t.Any]:
    """One service of the Compose file, the digest's label aside.

    ``service`` has ``name``, ``path``, ``arguments``, ``environment``, ``gpus``, ``port``, ``bind_address``,
    ``secrets``, ``stop_timeout`` and ``ready_timeout``, as the plan resolved them.
    """
    name = str(service["name"])
    publish: dict[str, t.Any] = {"target": PORT, "published": str(service["port"]), "protocol": "tcp"}
    address = published_address(str(service["bind_address"]))
    if address:
        publish["host_ip"] = address
    result: dict[str, t.Any] = {
        "container_name": container_name(name),
        "image": image,
        "pull_policy": "missing",
        "user": choices.user,
        "init": True,
        "restart": "unless-stopped",
        "stop_grace_period": f"{service['stop_timeout']}s",
        "entrypoint": _entrypoint(service),
        "command": list(service["arguments"]),
        "environment": dict(service["environment"]),
        "ports": [publish],
        "volumes": [
            _bind(str(service["path"]), MODEL_PATH, read_only=True),
            _bind(f"{root}/services/{name}/state", HOME),
            *_turn_mounts(service, root),
        ],
        "tmpfs": [TMPFS],
        "shm_size": choices.shm_size,
        "ulimits": dict(choices.ulimits),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "read_only": choices.read_only,
        "healthcheck": {
            "test": ["CMD", "python3", "-c", HEALTH],
            "start_period": f"{service['ready_timeout']}s",
            "interval": "15s",
            "timeout": "10s",
            "retries": 6,
        },
        "logging": dict(choices.logging),
    }
    if service["secrets"]:
        result["secrets"] = [{"source": name, "target": TARGET}]
    asked = resources(service["gpus"], choices)
    if asked:
        result["deploy"] = {"resources": asked}
    return result


def _entrypoint(service: t.Mapping[str, t.Any]) -> list[str]:
    entrypoint = list(SECRET_ENTRYPOINT if service["secrets"] else ENTRYPOINT)
    if not _turns.shared_cards(service):
        return entrypoint
    called = _turns.arguments(service, _turns.CONTAINER_PATH, f"http://127.0.0.1:{PORT}/health")
    return ["python3", "-c", _turns.START, *called, *entrypoint]


def _turn_mounts(service: t.Mapping[str, t.Any], root: str) -> list[dict[str, t.Any]]:
    if not _turns.shared_cards(service):
        return []
    return [_bind(_turns.directory(root), _turns.CONTAINER_PATH, read_only=True)]


def _bind(source: str, target: str, read_only: bool = False) -> dict[str, t.Any]:
    """A directory that must be there: Docker would make a missing one, empty and root's."""
    mount: dict[str, t.Any] = {"type": "bind", "source": source, "target": target}
    if read_only:
        mount["read_only"] = True
    mount["bind"] = {"create_host_path": False}
    return mount


def labelled(container: t.Mapping[str, t.Any], name: str, root: str, digest: str) -> dict[str, t.Any]:
    labels = {f"{LABEL}.root": root, f"{LABEL}.service": name, f"{LABEL}.digest": digest}
    return {**container, "labels": labels}


def document(root: str, containers: t.Mapping[str, t.Mapping[str, t.Any]]) -> str:
    """The text of ``compose.yaml``: containers, labels included, by service name."""
    model: dict[str, t.Any] = {"name": project_name(root), "services": dict(containers)}
    secrets = {
        name: {"file": f"{root}/services/{name}/environment"}
        for name, container in containers.items()
        if container.get("secrets")
    }
    if secrets:
        model["secrets"] = secrets
    head = f"# {_render.MANAGED}\n# By hand: docker compose --file {root}/compose.yaml ps\n"
    return head + to_yaml(escaped(model))


def escaped(value: t.Any) -> t.Any:
    """Compose substitutes variables in every text; ``$$`` is a dollar sign."""
    if isinstance(value, str):
        return value.replace("$", "$$")
    if isinstance(value, t.Mapping):
        return {key: escaped(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [escaped(item) for item in value]
    return value


def scalar(value: t.Any) -> str:
    """A number, a truth value, or a text: plain where no reader could take it for anything else, else quoted."""
    if value is True or value is False:
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    text = str(value)
    if _PLAIN.fullmatch(text) and text.lower() not in _RESERVED and text not in (".", ".."):
        return text if not text.startswith(".") else json.dumps(text)
    # A JSON string is a double-quoted YAML one.
    return json.dumps(text, ensure_ascii=False)


def to_yaml(value: t.Any, indent: int = 0) -> str:
    """Mappings, lists and scalars as block YAML, which hosts have no library for; lists of scalars that fit, inline."""
    pad = " " * indent
    if isinstance(value, t.Mapping):
        return "".join(f"{pad}{scalar(key)}:{_nested(item, indent)}" for key, item in value.items())
    lines = []
    for item in value:
        if isinstance(item, (t.Mapping, list)):
            block = to_yaml(item, indent + 2)
            lines.append(f"{pad}- {block[indent + 2 :]}")
        else:
            lines.append(f"{pad}- {scalar(item)}\n")
    return "".join(lines)


def _nested(item: t.Any, indent: int) -> str:
    if isinstance(item, t.Mapping):
        return f"\n{to_yaml(item, indent + 2)}" if item else " {}\n"
    if isinstance(item, list):
        inline = _inline(item, 100 - indent)
        return f" {inline}\n" if inline else f"\n{to_yaml(item, indent + 2)}"
    return f" {scalar(item)}\n"


def _inline(items: t.Sequence[t.Any], width: int) -> str:
    if any(isinstance(item, (t.Mapping, list)) for item in items):
        return ""
    text = "[" + ", ".join(scalar(item) for item in items) + "]"
    return text if len(text) <= width else ""
