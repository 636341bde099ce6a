# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Labs with what their hosts need: images in the registry, models on a hub.

``stage.sh lab NAME COUNT`` is what ``make lab-up`` starts: simulators, and the inventory ``inventory/lab``. The rest is
the lab of a Molecule scenario: ``stage.sh up``, ``stage.sh down``, and as an inventory script ``--list``.
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
from gpu_lab import Lab, LabError, default_hosts, parse, push_images
from gpu_lab._base import cache_root
from gpu_lab.lab import DEFAULT_INVENTORY
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


def lab(name: str, count: str) -> None:
    """A lab to play with, whose inventory a person uses."""
    try:
        hosts = default_hosts(int(count))
    except ValueError:
        raise LabError(f"HOSTS is {count!r}", "a number", "make lab-up HOSTS=3") from None
    push_images(["engine-sim:1", "engine-sim:2"])
    hub = hub_with(["qwen2.5-vl", "whisper"])
    Lab(name, hosts, hub=hub, inventory=DEFAULT_INVENTORY).up()
    sys.stdout.write(
        "\nTry\n"
        "  deploy to it     .venv/bin/ansible-playbook -i inventory/lab playbooks/deploy.yml\n"
        f"  look into a host PYTHONPATH=tests/lab .venv/bin/python -m gpu_lab shell {hosts[0].name} --name {name}\n"
        f"  remove it        make lab-down{'' if name == 'lab' else f' NAME={name}'}\n"
    )


def inventory() -> dict[str, t.Any]:
    """What Ansible asks an inventory script for; no hosts while the lab is not up."""
    path = Lab(lab_name()).inventory
    if not path.is_file():
        return {"_meta": {"hostvars": {}}}
    group = yaml.safe_load(path.read_text(encoding="utf-8"))["gpu_hosts"]
    return {
        "gpu_hosts": {"hosts": list(group["hosts"]), "vars": group["vars"]},
        "_meta": {"hostvars": group["hosts"]},
    }


def main() -> int:
    command, *rest = sys.argv[1:] or [""]
    try:
        if command == "lab" and len(rest) == 2:
            lab(*rest)
        elif command == "up":
            up()
        elif command == "down":
            Lab(lab_name()).down()
        elif command == "--list":
            json.dump(inventory(), sys.stdout, indent=2)
        else:
            sys.stderr.write(f"usage: {sys.argv[0]} lab NAME COUNT | up | down | --list\n")
            return 2
    except LabError as exc:
        sys.stderr.write(f"{exc}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
