# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m nvidia_sim install|show|digest``."""

from __future__ import annotations

import argparse
import json
import socket
import sys
from pathlib import Path

from nvidia_sim.build import digest, install
from nvidia_sim.state import SimError, expand
from nvidia_sim.views import as_json


def main() -> int:
    parser = argparse.ArgumentParser(prog="nvidia_sim")
    commands = parser.add_subparsers(dest="command", required=True)
    into = commands.add_parser("install", help="put the simulation into a root file system")
    into.add_argument("--root", type=Path, required=True)
    into.add_argument("--no-driver", action="store_true")
    into.add_argument("--no-toolkit", action="store_true")
    into.add_argument("--nvidia-ml-py", action="store_true")
    show = commands.add_parser("show", help="the full state that a data file means")
    show.add_argument("--data", type=Path, required=True)
    show.add_argument("--hostname", default=socket.gethostname())
    commands.add_parser("digest", help="the digest of everything that is installed")
    options = parser.parse_args()
    try:
        if options.command == "install":
            install(
                options.root,
                driver=not options.no_driver,
                toolkit=not options.no_toolkit,
                nvidia_ml_py=options.nvidia_ml_py,
            )
        elif options.command == "show":
            sys.stdout.write(as_json(expand(json.loads(options.data.read_text()), options.hostname)))
        else:
            sys.stdout.write(digest() + "\n")
    except (SimError, OSError, ValueError) as error:
        sys.exit(f"nvidia_sim: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
