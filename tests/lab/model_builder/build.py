# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a GGUF file to a finished model directory."""

from __future__ import annotations

import hashlib
from pathlib import Path

from gguf import GGUFReader

from . import llama
from . import tokenizer as tok
from .errors import BuildError
from .place import WEIGHTS, Built, place, write_json, write_weights

RECIPE = 1
"""Raise it when the same GGUF file gives other output than before: directories built earlier are then rebuilt."""

FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


def build(gguf: Path, out: Path, card: str) -> Built:
    """Write the model in ``gguf`` to the directory ``out``; ``card`` is its README.md.

    Does nothing when ``out`` was built from the same input. Output depends on the input alone. Raises BuildError.
    """
    digest = _input_digest(gguf, card)
    return place(out, digest, FILES, lambda target: _write(gguf, target, card, digest))


def _input_digest(gguf: Path, card: str) -> str:
    with open(gguf, "rb") as stream:
        source = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(f"recipe {RECIPE}\n{source}\n{card}".encode()).hexdigest()


def _write(gguf: Path, target: Path, card: str, digest: str) -> None:
    reader = _open(gguf)
    config = llama.config(reader)
    write_weights(target / WEIGHTS, llama.layout(config), llama.weights(reader, config), digest)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(target / "config.json", config)
    write_json(target / "generation_config.json", generation)
    write_json(target / "special_tokens_map.json", tok.special_map(reader))
    write_json(target / "tokenizer_config.json", tok.tokenizer_config(reader))
    tok.tokenizer(reader).save(str(target / "tokenizer.json"))
    (target / "README.md").write_text(card, encoding="utf-8")


def _open(gguf: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf)
    except (ValueError, LookupError, OverflowError) as error:  # what the reader meets in a file that ends early
        raise BuildError(f"{gguf} is damaged, or no GGUF file ({error}). Fetch it again.") from error
