# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import contextlib
import json

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._safetensors import (
    BITS,
    HEADER_MAX,
    header_length,
    parse_header,
    parse_index,
)
from hypothesis import given
from hypothesis import strategies as st


def header(**tensors):
    return json.dumps(tensors).encode()


def row(dtype, shape, start, end):
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def whole(body):
    """The size of a file whose tensors end at the last offset of the header."""
    ends = [one["data_offsets"][1] for name, one in json.loads(body).items() if name != "__metadata__"]
    return 8 + len(body) + max(ends, default=0)


def code_of(call, *args):
    with pytest.raises(FleetError) as caught:
        call(*args)
    assert caught.value.expected
    assert caught.value.remedy
    return caught.value.code, caught.value.seen


# ---- header


def test_a_file_that_the_library_wrote(tmp_path):
    """The real writer, where it is installed."""
    numpy = pytest.importorskip("numpy")
    library = pytest.importorskip("safetensors.numpy")
    path = tmp_path / "model.safetensors"
    library.save_file(
        {"a": numpy.zeros((3, 5), numpy.float16), "b": numpy.zeros((), numpy.float32), "c": numpy.zeros(7, numpy.int8)},
        str(path),
        {"format": "pt"},
    )
    data = path.read_bytes()
    length = header_length(data[:8], len(data))
    tensors = {tensor.name: tensor for tensor in parse_header(data[8 : 8 + length], len(data))}
    assert {name: (one.dtype, one.shape, one.size) for name, one in tensors.items()} == {
        "a": ("F16", (3, 5), 30),
        "b": ("F32", (), 4),
        "c": ("I8", (7,), 7),
    }


def test_elements_and_packed_dtypes():
    body = header(a=row("F4", [3, 4], 0, 6), b=row("BF16", [2, 0], 6, 6))
    tensors = parse_header(body, whole(body))
    assert [(one.elements, one.size) for one in tensors] == [(12, 6), (0, 0)]


def test_metadata_is_no_tensor_and_padding_is_part_of_the_header():
    body = json.dumps({"__metadata__": {"format": "pt"}, "a": row("U8", [2], 0, 2)}).encode() + b"   "
    assert [one.name for one in parse_header(body, 8 + len(body) + 2)] == ["a"]


@pytest.mark.parametrize(
    "head",
    [b"", b"\x01", (HEADER_MAX + 1).to_bytes(8, "little"), b"\xff" * 8, (1).to_bytes(8, "little")],
)
def test_a_length_that_cannot_be(head):
    code, seen = code_of(header_length, head, HEADER_MAX * 2)
    assert code == "model.bad_safetensors"
    assert "header" in seen


def test_a_header_longer_than_its_file():
    assert header_length((92).to_bytes(8, "little"), 100) == 92
    assert code_of(header_length, (93).to_bytes(8, "little"), 100)[0] == "model.bad_safetensors"


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ({"a": row("F16", [2], 0, 5)}, "has 5 bytes"),
        ({"a": row("F16", [2], 4, 8)}, "bytes 0 to 4"),
        ({"a": row("F16", [2], 0, 4), "b": row("F16", [2], 2, 6)}, "bytes 2 to 4"),
        ({"a": row("F16", [2], 0, 4), "b": row("F16", [2], 6, 10)}, "bytes 4 to 6"),
        ({"a": row("FP99", [2], 0, 4)}, "unknown dtype"),
        ({"a": row(7, [2], 0, 4)}, "unknown dtype"),
        ({"a": row("F16", [-2], 0, 4)}, "shape"),
        ({"a": row("F16", [True], 0, 2)}, "shape"),
        ({"a": row("F16", "2", 0, 4)}, "shape"),
        ({"a": row("F16", [2**60] * 16, 0, 4)}, "has 4 bytes"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [4, 0]}}, "bytes"),
        ({"a": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4, 8]}}, "data_offsets"),
        ({"a": {"dtype": "F16", "shape": [2]}}, "data_offsets"),
        ({"a": [1, 2]}, "tensor 'a'"),
        ({"a" * 2000: row("F16", [2], 0, 4)}, "2000 characters"),
    ],
)
def test_a_header_that_does_not_add_up(rows, said):
    body = json.dumps(rows).encode()
    code, seen = code_of(parse_header, body, 8 + len(body) + 4)
    assert code == "model.bad_safetensors"
    assert said in seen
    assert len(seen) < 400


def test_bytes_that_no_tensor_owns():
    body = header(a=row("F16", [2], 0, 4))
    assert "accounts for" in code_of(parse_header, body, whole(body) + 1)[1]


@pytest.mark.parametrize("body", [b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_json_object(body):
    assert code_of(parse_header, body, 8 + len(body))[0] == "model.bad_safetensors"
    assert code_of(parse_index, body)[0] == "model.bad_index"


@given(st.binary(max_size=200), st.integers(0, 2**63))
def test_anything_else_is_an_error_and_no_crash(body, size):
    with contextlib.suppress(FleetError):
        parse_header(body, size)


@given(st.dictionaries(st.text(max_size=5), st.recursive(st.none() | st.integers() | st.text(max_size=3), st.lists)))
def test_json_of_another_kind_is_an_error_and_no_crash(document):
    body = json.dumps(document).encode()
    with contextlib.suppress(FleetError):
        parse_header(body, 8 + len(body))


@given(st.lists(st.tuples(st.sampled_from(sorted(BITS)), st.lists(st.integers(0, 4), max_size=3)), max_size=6))
def test_what_is_laid_out_without_holes_is_read_as_it_is(shapes):
    rows, position = {}, 0
    for number, (dtype, shape) in enumerate(shapes):
        count = 1
        for length in shape:
            count *= length
        if count * BITS[dtype] % 8:
            continue
        rows[f"t{number}"] = row(dtype, shape, position, position + count * BITS[dtype] // 8)
        position += count * BITS[dtype] // 8
    body = json.dumps(rows).encode()
    tensors = parse_header(body, 8 + len(body) + position)
    assert sum(one.size for one in tensors) == position
    assert [one.name for one in tensors] == list(rows)


# ---- index


def test_an_index():
    index = parse_index(
        json.dumps(
            {
                "metadata": {"total_size": 16060522496},
                "weight_map": {
                    "a": "model-00002-of-00002.safetensors",
                    "b": "model-00001-of-00002.safetensors",
                    "c": "model-00001-of-00002.safetensors",
                },
            }
        ).encode()
    )
    assert index.total_size == 16060522496
    assert dict(index.files) == {
        "model-00001-of-00002.safetensors": ("b", "c"),
        "model-00002-of-00002.safetensors": ("a",),
    }


@pytest.mark.parametrize(
    ("total", "read"), [(12.0, 12), (None, None), ("12", None), (-1, None), (True, None), (2**70, None), (1.5, None)]
)
def test_a_total_size_that_some_tools_write_otherwise(total, read):
    body = json.dumps({"metadata": {"total_size": total}, "weight_map": {"a": "m.safetensors"}}).encode()
    assert parse_index(body).total_size == read


@pytest.mark.parametrize(
    "named",
    [None, [], {}, {"a": 1}, {"a": "../../etc/passwd"}, {"a": "/etc/passwd"}, {"a": "x\x00y"}, {"a": ""}],
)
def test_an_index_that_names_no_file_or_leaves_the_directory(named):
    assert code_of(parse_index, json.dumps({"weight_map": named}).encode())[0] == "model.bad_index"
