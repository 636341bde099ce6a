# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""From a GGUF file to a finished model directory, written in one step and only when it is not there yet."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFReader
from safetensors import safe_open

from . import llama
from . import tokenizer as tok
from .errors import BuildError

RECIPE = 1
"""Raise it when the same GGUF file gives other output than before: directories built earlier are then rebuilt."""

WEIGHTS = "model.safetensors"
FILES = (
    "README.md",
    "config.json",
    "generation_config.json",
    WEIGHTS,
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True)
class Built:
    """A model directory, the digest of what it was built from, and whether this call built it."""

    path: str
    input_digest: str
    changed: bool


def build(gguf: Path, out: Path, card: str) -> Built:
    """Write the model in ``gguf`` to the directory ``out``; ``card`` is its README.md.

    Does nothing when ``out`` was built from the same input. Replaces an older build, but never a directory that holds
    anything else. Output depends on the input alone. Raises BuildError.
    """
    digest = _input_digest(gguf, card)
    if is_current(out, digest):
        return Built(str(out), digest, False)
    _check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        _write(gguf, building, card, digest)
        building.chmod(0o755)
        _publish(building, out, digest)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Built(str(out), digest, True)


def is_current(out: Path, digest: str) -> bool:
    """Whether ``out`` is complete and was built from the input ``digest`` stands for."""
    try:
        if any((out / name).stat().st_size == 0 for name in FILES):
            return False
        with open(out / WEIGHTS, "rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(min(length, 1 << 24)))
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        whole = (out / WEIGHTS).stat().st_size == 8 + length + end
        return whole and bool(header["__metadata__"]["input_digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _input_digest(gguf: Path, card: str) -> str:
    with open(gguf, "rb") as stream:
        source = hashlib.file_digest(stream, "sha256").hexdigest()
    return hashlib.sha256(f"recipe {RECIPE}\n{source}\n{card}".encode()).hexdigest()


def _check_replaceable(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BuildError(f"{out} is not a directory. Expected: none, or an earlier build. Choose another --out.")
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in FILES) if out.is_dir() else []
    if foreign:
        raise BuildError(f"{out} holds {foreign[0]}, which no build wrote. Choose another --out, or empty it first.")


def _write(gguf: Path, target: Path, card: str, digest: str) -> None:
    reader = _open(gguf)
    config = llama.config(reader)
    _write_weights(target / WEIGHTS, reader, config, digest)
    generation = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(target / "config.json", config)
    _write_json(target / "generation_config.json", generation)
    _write_json(target / "special_tokens_map.json", tok.special_map(reader))
    _write_json(target / "tokenizer_config.json", tok.tokenizer_config(reader))
    tok.tokenizer(reader).save(str(target / "tokenizer.json"))
    (target / "README.md").write_text(card, encoding="utf-8")
    for name in FILES:
        with open(target / name, "rb") as stream:
            os.fsync(stream.fileno())


def _open(gguf: Path) -> GGUFReader:
    try:
        return GGUFReader(gguf)
    except (ValueError, LookupError, OverflowError) as error:  # what the reader meets in a file that ends early
        raise BuildError(f"{gguf} is damaged, or no GGUF file ({error}). Fetch it again.") from error


def _write_weights(path: Path, reader: GGUFReader, config: llama.Config, digest: str) -> None:
    """Write the safetensors file.

    By hand: the library takes raw addresses of all tensors at once and orders the metadata at random.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "input_digest": digest}}
    end = 0
    for name, shape in llama.layout(config).items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.writelines(values.data for values in llama.weights(reader, config))
    with safe_open(path, "numpy"):
        pass  # the library's reader has now checked the header against the file


def _publish(building: Path, out: Path, digest: str) -> None:
    """Put ``building`` in the place of ``out``."""
    if out.exists():
        old = Path(tempfile.mkdtemp(prefix=f".{out.name}-old-", dir=out.parent))
        out.rename(old / "model")
        try:
            building.rename(out)
        finally:
            shutil.rmtree(old, ignore_errors=True)
        return
    try:
        building.rename(out)
    except OSError:
        # Another build of the same input may have been quicker.
        if not is_current(out, digest):
            raise


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
