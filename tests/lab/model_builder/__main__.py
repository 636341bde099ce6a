# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""``python -m model_builder smollm2 --out DIR``: build a model directory, once."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .errors import BuildError
from .smollm2 import build_smollm2


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    parser = argparse.ArgumentParser(prog="model_builder", description=__doc__)
    models = parser.add_subparsers(required=True, metavar="MODEL")
    smollm2 = models.add_parser("smollm2", help="SmolLM2-135M-Instruct in bfloat16, 0.27 GB")
    smollm2.add_argument("--out", type=Path, required=True, metavar="DIR")
    smollm2.add_argument("--gguf", type=Path, metavar="FILE", help="instead of the installed package's file")
    arguments = parser.parse_args(argv)
    try:
        built = build_smollm2(arguments.out, arguments.gguf)
    except BuildError as error:
        print(f"model_builder: {error}", file=sys.stderr)
        return 1
    print(json.dumps(asdict(built)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
