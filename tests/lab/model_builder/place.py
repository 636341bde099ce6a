# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A finished model directory: written in one step, and only when it is not there yet."""

from __future__ import annotations

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import safe_open

from .errors import BuildError

WEIGHTS = "model.safetensors"

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Built:
    """A model directory, the digest of what it was built from, and whether this call built it."""

    path: str
    input_digest: str
    changed: bool


def place(out: Path, digest: str, files: Sequence[str], write: Callable[[Path], None]) -> Built:
    """Make ``out`` hold ``files``, which ``write`` writes to an empty directory, from the input ``digest`` stands for.

    Does nothing when ``out`` was built from the same input. Replaces an older build, but never a directory that holds
    anything else. Raises BuildError.
    """
    if is_current(out, digest, files):
        return Built(str(out), digest, False)
    _check_replaceable(out, files)
    out.parent.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        write(building)
        for name in files:
            with open(building / name, "rb") as stream:
                os.fsync(stream.fileno())
        building.chmod(0o755)
        _publish(building, out, digest, files)
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return Built(str(out), digest, True)


def is_current(out: Path, digest: str, files: Sequence[str]) -> bool:
    """Whether ``out`` is complete and was built from the input ``digest`` stands for."""
    try:
        if any((out / name).stat().st_size == 0 for name in files):
            return False
        header, begin = read_header(out / WEIGHTS)
        end = max(tensor["data_offsets"][1] for name, tensor in header.items() if name != "__metadata__")
        whole = (out / WEIGHTS).stat().st_size == begin + end
        return whole and bool(header["__metadata__"]["input_digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def read_header(path: Path) -> tuple[dict[str, Any], int]:
    """The header of a safetensors file, and where its data begins."""
    with open(path, "rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(min(length, 1 << 24)))
    if not isinstance(header, dict):
        raise ValueError(f"{path} has a header that is no table")
    return header, 8 + length


def write_header(header: Mapping[str, Any]) -> bytes:
    """The first bytes of a safetensors file, up to its data."""
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def write_weights(path: Path, layout: Mapping[str, Sequence[int]], weights: Iterable[Array], digest: str) -> None:
    """Write the safetensors file: ``weights`` in the order of ``layout``, as bit patterns of bfloat16.

    By hand: the library takes raw addresses of all tensors at once and orders the metadata at random.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt", "input_digest": digest}}
    end = 0
    for name, shape in layout.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [begin, end]}
    with open(path, "wb") as stream:
        stream.write(write_header(header))
        stream.writelines(values.data for values in weights)
    with safe_open(path, "numpy"):
        pass  # the library's reader has now checked the header against the file


def bfloat16(values: Array) -> Array:
    """The little-endian bit patterns of finite float32 values rounded to bfloat16, half to even."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return ((bits + (((bits >> 16) & 1) + np.uint32(0x7FFF))) >> 16).astype("<u2")


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write ``value`` as a person would like to read it."""
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _check_replaceable(out: Path, files: Sequence[str]) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise BuildError(f"{out} is not a directory. Expected: none, or an earlier build. Choose another --out.")
    known = {name.split("/")[0] for name in files}
    foreign = sorted(entry.name for entry in out.iterdir() if entry.name not in known) if out.is_dir() else []
    if foreign:
        raise BuildError(f"{out} holds {foreign[0]}, which no build wrote. Choose another --out, or empty it first.")


def _publish(building: Path, out: Path, digest: str, files: Sequence[str]) -> None:
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
        if not is_current(out, digest, files):
            raise
