# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What hosts a lab has, read from JSON and checked before anything is made."""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import asdict, dataclass, field
from pathlib import Path

from ._base import LabError
from .images import FAMILIES

NAME = re.compile(r"[a-z][a-z0-9-]{0,29}[a-z0-9]")
MOST_HOSTS = 200
DEFAULT_GPUS = {"model": "h100-80gb", "count": 3}


class SpecError(LabError):
    """A specification that describes no lab."""


@dataclass(frozen=True)
class HostSpec:
    """One host. ``gpus`` and ``faults`` are nvidia_sim's; ``docker`` is False for a host that has none yet."""

    name: str
    family: str = "debian13"
    gpus: dict[str, t.Any] = field(default_factory=lambda: dict(DEFAULT_GPUS))
    faults: dict[str, t.Any] = field(default_factory=dict)
    docker: bool = True

    def as_json(self) -> dict[str, t.Any]:
        return asdict(self)


def check_name(name: str) -> str:
    if not NAME.fullmatch(name):
        raise SpecError(
            f"the name {name!r}", "2 to 31 of a-z, 0-9 and -, a letter first and no - last", "choose another name"
        )
    return name


def default_hosts(count: int) -> list[HostSpec]:
    """Hosts of both families in turn, with three GPUs each."""
    families = ("debian13", "debian12")
    return parse({"hosts": [{"name": f"gpu-{n + 1:02}", "family": families[n % 2]} for n in range(count)]})


def load(path: Path) -> list[HostSpec]:
    try:
        return parse(json.loads(path.read_text()))
    except (OSError, ValueError) as error:
        raise SpecError(f"{path}: {error}", "a JSON document with a list of hosts", "correct the file") from None


def parse(document: t.Any) -> list[HostSpec]:
    hosts = document.get("hosts") if isinstance(document, dict) else None
    if not isinstance(hosts, list) or not 0 < len(hosts) <= MOST_HOSTS or set(document) != {"hosts"}:
        raise SpecError(
            "a specification without hosts",
            f'{{"hosts": [...]}} with 1 to {MOST_HOSTS} of them',
            "correct it",
        )
    parsed = [_host(host) for host in hosts]
    names = [host.name for host in parsed]
    if twice := {name for name in names if names.count(name) > 1}:
        raise SpecError(f"two hosts named {', '.join(sorted(twice))}", "each name once", "rename one")
    return parsed


def _host(host: t.Any) -> HostSpec:
    kinds: dict[str, type] = {"name": str, "family": str, "gpus": dict, "faults": dict, "docker": bool}
    if not isinstance(host, dict) or "name" not in host:
        raise SpecError(f"the host {host!r}", "an object that has a name", "correct it")
    for key, value in host.items():
        if not isinstance(value, kinds.get(key, ())):
            known = ", ".join(f"{name} ({kind.__name__})" for name, kind in kinds.items())
            raise SpecError(f"{key}: {value!r} of the host {host['name']!r}", f"one of {known}", "correct it")
    spec = HostSpec(**host)
    check_name(spec.name)
    if spec.family not in FAMILIES:
        raise SpecError(f"the family {spec.family!r} of {spec.name}", f"one of {', '.join(FAMILIES)}", "correct it")
    return spec
