# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m apt_repo publish|packages``: the repository for the hosts of a lab, or its packages as files."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from gpu_lab import LabError

from . import VERSIONS, packages, publish


def main() -> int:
    parser = argparse.ArgumentParser(prog="apt_repo", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("publish", help="serve it to the hosts of labs; prints its url and key as JSON")
    files = commands.add_parser("packages", help="write the packages of one version into a directory")
    files.add_argument("--into", type=Path, required=True)
    files.add_argument("--version", choices=VERSIONS, default=VERSIONS[-1])
    options = parser.parse_args()
    try:
        if options.command == "publish":
            sys.stdout.write(json.dumps(asdict(publish())) + "\n")
        else:
            for package in packages(options.into, options.version):
                sys.stdout.write(f"{package}\n")
    except LabError as error:
        sys.exit(f"apt_repo: {error}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
