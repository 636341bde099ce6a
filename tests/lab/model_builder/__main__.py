# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m model_builder MODEL --out DIR``: build a model directory, once; ``all``: every one, in DIR/<hub id>."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .catalogue import CATALOGUE, build_catalogue
from .errors import BuildError


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    arguments = _parser().parse_args(argv)
    try:
        built = _build(arguments)
    except BuildError as error:
        print(f"model_builder: {error}", file=sys.stderr)
        return 1
    print(json.dumps(built))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="model_builder", description=__doc__)
    models = parser.add_subparsers(dest="model", required=True, metavar="MODEL")
    for name, entry in CATALOGUE.items():
        model = models.add_parser(name, help=entry.summary)
        model.add_argument("--out", type=Path, required=True, metavar="DIR")
        if entry.source:
            model.add_argument(
                f"--{entry.source}", type=Path, dest="source", metavar="PATH", help="instead of the installed package's"
            )
    everything = models.add_parser("all", help="all of these, each in DIR/<the id that the lab's hub gives it>")
    everything.add_argument("--out", type=Path, required=True, metavar="DIR")
    return parser


def _build(arguments: argparse.Namespace) -> dict[str, Any]:
    if arguments.model == "all":
        return {name: asdict(built) for name, built in build_catalogue(arguments.out).items()}
    return asdict(CATALOGUE[arguments.model].build(arguments.out, getattr(arguments, "source", None)))


if __name__ == "__main__":
    sys.exit(main())
