# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m gpu_lab``: emulated GPU hosts, up and down. Needs root."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from . import lab as labs
from ._base import LabError, require_root
from .engine import Engine
from .lab import DEFAULT_INVENTORY, USERS, Lab
from .registry import Registry, registry_address
from .spec import load

NOT_RUNNING = 3
"""Exit status of ``status`` where nothing is up, as init scripts have it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        return int(arguments.run(arguments))
    except LabError as error:
        print(f"\nERROR: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="gpu_lab", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", help="have a lab up; hosts that are missing or dead are made again")
    _named(up)
    up.add_argument("--hosts", type=int, metavar="N", help="N hosts of both families in turn, three GPUs each")
    up.add_argument("--spec", type=Path, metavar="FILE", help="JSON: hosts by name, family, gpus, faults, docker")
    up.add_argument(
        "--inventory", type=Path, metavar="PATH", help=f"where it is written; {DEFAULT_INVENTORY} if not said"
    )
    up.add_argument("--user", choices=USERS, default="root", help="ops is an ordinary user with sudo")
    up.add_argument("--hub", type=Path, metavar="ROOT", help="serve this model hub to the hosts")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", help="remove a lab, whatever state it is in")
    _named(down)
    down.set_defaults(run=_down)

    for name, run, text in (
        ("status", _status, "what is up"),
        ("images", _images, "build every host image that is missing"),
        ("push", _push, "build the images of lab_images and push them to the registry"),
        ("stop", _stop, "end the engine and all that runs in it; labs come back with up"),
    ):
        command = commands.add_parser(name, help=text)
        command.set_defaults(run=run)

    shell = commands.add_parser("shell", help="a root shell in a host")
    _named(shell)
    shell.add_argument("host", metavar="HOST")
    shell.set_defaults(run=_shell)
    return parser


def _named(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default="lab", help="which lab; 'lab' if not said")


def _up(arguments: argparse.Namespace) -> int:
    if arguments.hosts and arguments.spec:
        raise LabError("--hosts and --spec", "one of them", "leave one out")
    hosts = load(arguments.spec) if arguments.spec else arguments.hosts
    inventory = arguments.inventory or DEFAULT_INVENTORY
    lab = Lab(arguments.name, hosts, inventory=inventory, user=arguments.user, hub=arguments.hub)
    lab.up()
    print(f"inventory {inventory}")
    print(f"registry  {registry_address()}")
    if lab.hub_url:
        print(f"hub       {lab.hub_url}")
    return 0


def _down(arguments: argparse.Namespace) -> int:
    Lab(arguments.name).down()
    return 0


def _status(_arguments: argparse.Namespace) -> int:
    require_root()
    engine = Engine()
    up = engine.answers()
    print(f"engine    {'up' if up else 'down'}   docker --host unix://{engine.socket}")
    print(f"registry  {registry_address() if Registry().daemon.pid else 'down'}")
    for name in labs.names():
        lab = Lab(name)
        states = lab.states() if up else {}
        for host in lab.hosts.values():
            state = states.get(host.container, "down")
            print(f"{name:9} {host.name:12} {host.address:15} {host.spec.family:9} {state}")
    return 0 if up else NOT_RUNNING


def _images(_arguments: argparse.Namespace) -> int:
    labs.build_images()
    return 0


def _push(_arguments: argparse.Namespace) -> int:
    for ref, digest in labs.push_images().items():
        print(f"{registry_address()}/{ref} {digest}")
    return 0


def _stop(_arguments: argparse.Namespace) -> int:
    require_root()
    Engine().stop()
    return 0


def _shell(arguments: argparse.Namespace) -> int:
    command = Lab(arguments.name).shell_command(arguments.host)
    sys.stdout.flush()
    os.execvp(command[0], command)


if __name__ == "__main__":
    sys.exit(main())
