# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m lab_images build [NAME...]``: build images that are not in the cache, and say where they are, as JSON."""

from __future__ import annotations

import argparse
import json
import sys

from .errors import ImageError
from .image import IMAGES, Image, build_all


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="lab_images", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    build = commands.add_parser("build", help="all of them, or those named")
    build.add_argument("names", nargs="*", metavar="NAME", help=", ".join(IMAGES))
    arguments = parser.parse_args(argv)
    try:
        images = build_all(arguments.names or None)
    except ImageError as error:
        print(f"lab_images: {error}", file=sys.stderr)
        return 1
    print(json.dumps([_shown(image) for image in images], indent=1))
    return 0


def _shown(image: Image) -> dict[str, object]:
    size = sum(layer.stat().st_size for layer in image.layers)
    return {"ref": image.ref, "layers": [str(layer) for layer in image.layers], "bytes": size, "config": image.config}


if __name__ == "__main__":
    sys.exit(main())
