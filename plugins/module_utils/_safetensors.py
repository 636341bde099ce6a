# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Headers of safetensors files and their index, read without the tensors. Pure parsing; everything is untrusted.

A file is eight bytes (the header's length N, little endian), N bytes of JSON, and the tensors. The JSON says for each
tensor its dtype, shape and where its bytes lie. Nothing of it is believed before it adds up: a hub or a mirror may send
anything.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import path_fault

LENGTH_BYTES = 8
HEADER_MAX = 100_000_000
"""The limit of the safetensors library itself; a longer header no engine would load."""

INDEX_NAME = "model.safetensors.index.json"
INDEX_MAX = 64 * 1024 * 1024
TENSORS_MAX = 1_000_000
_NAME_MAX = 1024
_RANK_MAX = 16
_VALUE_MAX = 2**60

# Bits per element, as the library has them.
BITS: t.Mapping[str, int] = {
    "BOOL": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E5M2FNUZ": 8,
    "F8_E4M3FNUZ": 8,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "C64": 64,
    "F64": 64,
    "I64": 64,
    "U64": 64,
}


@dataclass(frozen=True)
class Tensor:
    """One tensor of a file: ``size`` in bytes, as it lies there."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int

    @property
    def elements(self) -> int:
        count = 1
        for length in self.shape:
            count *= length
        return count


@dataclass(frozen=True)
class Index:
    """Which file holds which tensor. ``total_size`` in bytes is None where the index does not tell it."""

    total_size: int | None
    files: t.Mapping[str, tuple[str, ...]]


def header_length(head: bytes, file_size: int) -> int:
    """How many bytes of JSON follow the first eight. Raises FleetError where that cannot be."""
    if len(head) < LENGTH_BYTES or file_size < LENGTH_BYTES:
        raise _bad_file(f"the file has {min(len(head), file_size)} bytes, which is not even the length of a header")
    length = int.from_bytes(head[:LENGTH_BYTES], "little")
    if length > HEADER_MAX:
        raise _bad_file(f"the header claims {length} bytes, and {HEADER_MAX} are the most that engines load")
    if length < 2 or LENGTH_BYTES + length > file_size:
        raise _bad_file(f"the header claims {length} bytes of a file of {file_size}")
    return length


def parse_header(body: bytes, file_size: int) -> list[Tensor]:
    """The tensors of a file of ``file_size`` bytes whose header is ``body``. Raises FleetError for what is no header.

    Their bytes have to follow each other without hole or overlap up to the end of the file, as the format demands.
    """
    document = _json_object(body, "header")
    if len(document) > TENSORS_MAX:
        raise _bad_file(f"the header names {len(document)} tensors, and {TENSORS_MAX} are read at most")
    spans: list[tuple[int, int]] = []
    tensors: list[Tensor] = []
    for name, row in document.items():
        if name == "__metadata__":
            continue
        tensor, start = _tensor(name, row)
        tensors.append(tensor)
        spans.append((start, start + tensor.size))
    position = 0
    for start, end in sorted(spans):
        if start != position:
            raise _bad_file(f"bytes {min(start, position)} to {max(start, position)} belong to no tensor, or to two")
        position = end
    expected = LENGTH_BYTES + len(body) + position
    if expected != file_size:
        raise _bad_file(f"the file has {file_size} bytes, and its header accounts for {expected}")
    return tensors


def parse_index(body: bytes) -> Index:
    """What ``model.safetensors.index.json`` says. Raises FleetError for what is no index, or leaves the directory."""
    document = _json_object(body, "index")
    named = document.get("weight_map")
    if not isinstance(named, dict) or not named or len(named) > TENSORS_MAX:
        raise _bad_index("weight_map is not a mapping of tensors to files")
    files: dict[str, list[str]] = {}
    for tensor, file in named.items():
        fault = path_fault(file) if isinstance(file, str) else "is not a text"
        if fault is not None:
            raise _bad_index(f"the file of tensor {_shown(tensor)}, {_shown(file)}, {fault}")
        files.setdefault(file, []).append(tensor)
    metadata = document.get("metadata")
    total = metadata.get("total_size") if isinstance(metadata, dict) else None
    if isinstance(total, float) and total.is_integer():  # some tools write it so
        total = int(total)
    if isinstance(total, bool) or not isinstance(total, int) or not 0 < total <= _VALUE_MAX:
        total = None
    return Index(total, {file: tuple(tensors) for file, tensors in sorted(files.items())})


def _tensor(name: str, row: object) -> tuple[Tensor, int]:
    where = f"tensor {_shown(name)}"
    if len(name) > _NAME_MAX:
        raise _bad_file(f"the name of {where} has {len(name)} characters")
    if not isinstance(row, dict):
        raise _bad_file(f"{where} is {_shown(row)}")
    dtype, shape, offsets = row.get("dtype"), row.get("shape"), row.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise _bad_file(f"{where} is of the unknown dtype {_shown(dtype)}")
    if not isinstance(shape, list) or len(shape) > _RANK_MAX or not all(_is_count(length) for length in shape):
        raise _bad_file(f"the shape of {where} is {_shown(shape)}")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(_is_count(offset) for offset in offsets):
        raise _bad_file(f"the data_offsets of {where} are {_shown(offsets)}")
    tensor = Tensor(name, dtype, tuple(shape), offsets[1] - offsets[0])
    bits = tensor.elements * BITS[dtype]
    if bits % 8 or bits // 8 != tensor.size:
        raise _bad_file(
            f"{where} has {tensor.size} bytes, and {dtype} of shape {_shown(shape)} has {_shown(bits // 8)}"
        )
    return tensor, offsets[0]


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _VALUE_MAX


def _json_object(body: bytes, what: str) -> dict[str, t.Any]:
    fail = _bad_index if what == "index" else _bad_file
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):  # UnicodeDecodeError included; nested without end
        raise fail(f"the {what} is not JSON") from None
    if not isinstance(document, dict):
        raise fail(f"the {what} is JSON, but no object")
    return document


def _shown(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else text[:77] + "..."


def _bad_file(why: str) -> FleetError:
    return FleetError(
        "model.bad_safetensors",
        f"A safetensors file cannot be read: {why}",
        "a header that accounts for every byte of the file",
        "Ask the owner of the repository to upload the file again, or use another revision; an engine refuses it too",
    )


def _bad_index(why: str) -> FleetError:
    return FleetError(
        "model.bad_index",
        f"{INDEX_NAME} cannot be read: {why}",
        "the index that comes with weights in several files",
        "Ask the owner of the repository to repair it, or use another revision",
    )
