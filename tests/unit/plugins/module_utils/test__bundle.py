# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import typing as t

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from hypothesis import given
from hypothesis import strategies as st

HEX = "ab" * 32
ENTRIES = (
    Entry("collection/a-b-1.0.0.tar.gz", 3, HEX),
    Entry(f"images/blobs/sha256/{HEX}", 5, HEX),
    Entry("models/acme/tiny/" + "c" * 40 + "/config.json", 7, HEX),
    Entry("wheels/controller/x-1-py3-none-any.whl", 9, HEX),
)
CONTENT: dict[str, t.Any] = {
    "models": [
        {
            "model": "acme/tiny",
            "revision": "master",
            "commit": "c" * 40,
            "directory": "models/acme/tiny/" + "c" * 40,
            "digest": HEX,
        }
    ],
    "images": [{"image": "a:1", "repository": "a", "tag": "1", "digest": f"sha256:{HEX}"}],
    "wheels": [{"name": "controller", "directory": "wheels/controller"}],
    "collection": {"name": "a.b", "version": "1.0.0", "path": "collection/a-b-1.0.0.tar.gz"},
}
GOOD = _bundle.Bundle("2026-11-25T09:30:00Z", CONTENT, ENTRIES)


def document(**changes: t.Any) -> bytes:
    return json.dumps({**json.loads(_bundle.dump(GOOD)), **changes}).encode()


def with_files(*paths: str) -> bytes:
    files = [{"path": path, "size": 1, "sha256": HEX} for path in paths]
    return document(files=files, content={})


def code(raw: bytes) -> str:
    with pytest.raises(FleetError) as caught:
        _bundle.load(raw)
    return caught.value.code


def test_what_was_dumped_is_loaded() -> None:
    assert _bundle.load(_bundle.dump(GOOD)) == GOOD
    assert GOOD.bytes_total == 24
    assert GOOD.same_as(_bundle.Bundle("another time", CONTENT, ENTRIES))
    assert not GOOD.same_as(_bundle.Bundle(GOOD.created, CONTENT, ENTRIES[1:]))


@pytest.mark.parametrize(
    "path",
    [
        "../outside",
        "/etc/passwd",
        "models/../../outside",
        "models/a\\b",
        "models//x",
        "models/x/",
        "models/a\nb",
        "C:/x",
        "models/" + "x" * 256,
    ],
)
def test_a_path_that_would_lead_outside_is_refused(path: str) -> None:
    assert code(with_files(path)) == "bundle.unsafe_path"


def test_names_that_clash_are_refused() -> None:
    assert code(with_files("files/A", "files/a")) == "bundle.unsafe_path"
    assert code(with_files("files/a", "files/a")) == "bundle.unsafe_path"
    assert code(with_files("files/a", "files/a/b")) == "bundle.unsafe_path"


@pytest.mark.parametrize("path", ["manifest.json", "else/where", "models", ".gpufleet.json"])
def test_a_file_outside_of_the_known_directories_is_refused(path: str) -> None:
    assert code(with_files(path)) == "bundle.damaged"


def test_the_order_of_files_is_one_only() -> None:
    assert code(with_files("files/b", "files/a")) == "bundle.damaged"


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b"{}",
        b"[" * 100_000,
        document(kind="other"),
        document(files=None),
        document(files=[{"path": "files/a"}]),
        document(files=[{"path": 7, "size": 1, "sha256": HEX}]),
        document(files=[{"path": "files/a", "size": True, "sha256": HEX}]),
        document(files=[{"path": "files/a", "size": -1, "sha256": HEX}]),
        document(files=[{"path": "files/a", "size": 1, "sha256": HEX.upper()}]),
        document(content=None),
        document(content={"models": {}}),
        document(content={"models": [{"model": "a/b"}]}),
        document(content={"images": [{"image": "a", "repository": "a", "tag": 1, "digest": "x"}]}),
        document(content={"collection": {"path": 1}}),
        document(content={**CONTENT, "wheels": [{"name": "x", "directory": "wheels/../../etc"}]}),
        document(content={**CONTENT, "wheels": [{"name": "x", "directory": "wheels/nothing"}]}),
        document(content={**CONTENT, "wheels": [{"name": "x", "directory": "models/acme"}]}),
        document(content={**CONTENT, "collection": {"path": "collection/other.tar.gz"}}),
        document(content={"images": [{"image": "a", "repository": "a", "tag": "1", "digest": "sha256:" + "0" * 64}]}),
    ],
)
def test_what_is_not_well_formed_is_damage(raw: bytes) -> None:
    assert code(raw) == "bundle.damaged"


def test_other_formats_and_digests_are_named() -> None:
    assert code(document(format=2)) == "bundle.format"
    image = {"image": "a", "repository": "a", "tag": "1", "digest": "sha256:../../x"}
    assert code(document(content={"images": [image]})) == "image.bad_digest"


@given(st.binary(max_size=300))
def test_no_bytes_make_it_fail_otherwise(raw: bytes) -> None:
    with pytest.raises(FleetError):
        _bundle.load(raw)


@pytest.mark.parametrize("name", ["x", "x.tar", "x.tar.001", "x.tar.0012", "x.sha256", "x/"])
def test_a_bundle_is_known_by_any_of_its_files(name: str) -> None:
    assert _bundle.stem_of(f"/mnt/{name}") == "/mnt/x"


def test_names_of_parts() -> None:
    assert _bundle.part_names("x", 1, 0) == ["x.tar"]
    assert _bundle.part_names("x", 1, 5) == ["x.tar.001"]
    assert _bundle.part_names("x", 1000, 5)[-1] == "x.tar.1000"
    assert _bundle.part_names("x", 1000, 5)[0] == "x.tar.0001"


@given(st.integers(1, 10**13), st.integers(1, 10**12))
def test_parts_hold_the_whole(total: int, split: int) -> None:
    count = _bundle.part_count(total, split)
    assert (count - 1) * split < total <= count * split
    assert _bundle.part_count(total, 0) == 1


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(1, 10**5))
def test_a_range_is_in_the_parts_that_its_bytes_are_in(start: int, length: int, split: int) -> None:
    found = _bundle.parts_of_range(start, start + length, split)
    assert found[0] == start // split
    assert found[-1] == (start + max(length, 1) - 1) // split
    assert _bundle.parts_of_range(start, start + length, 0) == range(1)


def test_sums_are_what_sha256sum_reads() -> None:
    sums = [("x.tar.001", HEX), ("x.tar.002", "cd" * 32)]
    text = _bundle.dump_sums(sums)
    assert text == f"{HEX}  x.tar.001\n{'cd' * 32}  x.tar.002\n"
    assert list(_bundle.load_sums(text, "x").items()) == sums
    assert _bundle.load_sums(f"{HEX} *x.tar\n", "x") == {"x.tar": HEX}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense\n",
        f"{HEX}  ../x.tar\n",
        f"{HEX}  y.tar\n",
        f"{HEX}  x.tar.002\n",
        f"{HEX}  x.tar.001\n{HEX}  x.tar.001\n",
        f"{HEX}  x.tar.001\n{HEX}  x.tar.003\n",
        f"{HEX}  x.tar\n{HEX}  x.tar.001\n",
    ],
)
def test_sums_of_something_else_are_refused(text: str) -> None:
    with pytest.raises(FleetError) as caught:
        _bundle.load_sums(text, "x")
    assert caught.value.code == "bundle.damaged"


def test_sizes_of_parts_are_sane() -> None:
    _bundle.check_split(0, 10**15)
    _bundle.check_split(4 << 30, 10**13)
    for split, total in ((-1, 5), (1000, 5), (1 << 20, 10**15)):
        with pytest.raises(FleetError) as caught:
            _bundle.check_split(split, total)
        assert caught.value.code == "bundle.bad_split"
