# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The lab of a Molecule scenario: ``stage.sh up``, ``stage.sh down``, and as an inventory script (``--list``).

``MOLECULE_SCENARIO_DIRECTORY`` holds ``lab.json``: the ``hosts`` as ``python -m gpu_lab`` takes them, the ``images``
that the registry should have, the ``models`` that the hub should offer, and the ``user`` to connect as.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import typing as t
from pathlib import Path

import yaml
from gpu_lab import Lab, LabError, parse, push_images, registry_address
from gpu_lab._base import cache_root
from model_builder.catalogue import CATALOGUE
from model_hub import add_model


def scenario() -> Path:
    try:
        return Path(os.environ["MOLECULE_SCENARIO_DIRECTORY"])
    except KeyError:
        raise LabError("MOLECULE_SCENARIO_DIRECTORY is not set", "a run by molecule", "molecule test -s NAME") from None


def lab_name() -> str:
    return f"molecule-{scenario().name}"


def described() -> dict[str, t.Any]:
    document: dict[str, t.Any] = json.loads((scenario() / "lab.json").read_text(encoding="utf-8"))
    return document


def hub_with(models: t.Iterable[str]) -> Path:
    """A hub's directory that offers these models of the catalogue. Built once, and shared by every lab."""
    home = cache_root() / "models"
    home.mkdir(parents=True, exist_ok=True)
    with (home / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for name in models:
            entry = CATALOGUE[name]
            built = entry.build(home / "built" / name, None)
            add_model(home / "hub", entry.id, Path(built.path))
    return home / "hub"


def up() -> None:
    wanted = described()
    hub = hub_with(wanted["models"]) if wanted.get("models") else None
    if wanted.get("images"):
        push_images(wanted["images"])
    hosts = parse({"hosts": wanted["hosts"]})
    Lab(lab_name(), hosts, hub=hub, user=wanted.get("user", "root")).up()


def inventory() -> dict[str, t.Any]:
    """What Ansible asks an inventory script for; no hosts while the lab is not up."""
    path = Lab(lab_name()).inventory
    if not path.is_file():
        return {}
    group = yaml.safe_load(path.read_text(encoding="utf-8"))["gpu_hosts"]
    variables = {**group.get("vars", {}), "lab_name": lab_name(), "lab_registry": registry_address()}
    return {
        "gpu_hosts": {"hosts": list(group["hosts"]), "vars": variables},
        "_meta": {"hostvars": group["hosts"]},
    }


def main() -> int:
    command = sys.argv[1] if len(sys.argv) > 1 else ""
    try:
        if command == "up":
            up()
        elif command == "down":
            Lab(lab_name()).down()
        elif command == "--list":
            json.dump(inventory(), sys.stdout, indent=2)
        else:
            sys.stderr.write(f"usage: {sys.argv[0]} up | down | --list\n")
            return 2
    except LabError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
