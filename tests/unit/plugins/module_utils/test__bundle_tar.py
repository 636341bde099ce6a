# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import io
import subprocess
import tarfile
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle, _bundle_tar
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry
from hypothesis import given
from hypothesis import strategies as st

LONG = "models/" + "/".join(["directory-with-a-name"] * 6) + "/weights-00001-of-00002.safetensors"
NAMES = ["files/a", LONG, "files/größe", "files/" + "x" * 94, "files/" + "x" * 95]


def tar_of(files: list[tuple[str, bytes]]) -> bytes:
    out = b""
    for name, content in files:
        out += _bundle_tar.header(name, len(content)) + content + b"\0" * _bundle_tar.padding(len(content))
    return out + _bundle_tar.trailer(len(out))


def test_any_tar_program_reads_it(tmp_path: Path) -> None:
    files = [(name, name.encode() * 3) for name in NAMES]
    raw = tar_of(files)
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        found = [(member.name, archive.extractfile(member).read()) for member in archive]  # type: ignore[union-attr]
        assert all(member.isfile() and member.mode == 0o644 and member.uid == 0 for member in archive)
    assert found == files
    (tmp_path / "x.tar").write_bytes(raw)
    subprocess.run(["tar", "-xf", "x.tar"], cwd=tmp_path, check=True, capture_output=True)
    assert [(tmp_path / name).read_bytes() for name in NAMES] == [content for _name, content in files]


def test_a_file_larger_than_the_old_format_allows_has_its_size_beside() -> None:
    size = 300 * 10**9
    raw = _bundle_tar.header("models/big", size)
    with tarfile.open(fileobj=io.BytesIO(raw), mode="r|") as archive:
        member = archive.next()
        assert member is not None
        assert (member.name, member.size) == ("models/big", size)


@given(st.lists(st.tuples(st.sampled_from(NAMES), st.integers(0, 2000)), max_size=6))
def test_the_layout_foretells_every_offset_and_the_length(files: list[tuple[str, int]]) -> None:
    content = [(name, b"x" * size) for name, size in files]
    raw = tar_of(content)
    layout = _bundle_tar.layout(files)
    assert layout.total == len(raw)
    assert len(raw) % _bundle_tar.RECORD == 0
    for offset, (_name, size) in zip(layout.offsets, files, strict=True):
        assert raw[offset : offset + size] == b"x" * size
    with tarfile.open(fileobj=io.BytesIO(raw)) as archive:
        assert [(member.name, member.size) for member in archive] == files


# --- reading


def read(raw: bytes, entries: list[Entry]) -> tuple[bytes, bytes | None]:
    stream = io.BytesIO(raw)
    manifest, signature, begun = _bundle_tar.read_head(stream)
    for entry in entries:
        _bundle_tar.expect_header(stream, entry.path, entry.size, begun)
        begun = b""
        _bundle_tar.read_exactly(stream, entry.size, entry.path)
        _bundle_tar.expect_padding(stream, entry.path, entry.size)
    _bundle_tar.expect_end(stream, stream.tell() - len(begun), begun)
    return manifest, signature


HEAD = [(_bundle.MANIFEST, b"{}"), (_bundle.SIGNATURE, b"signed")]
FILES = [(name, b"content of " + name.encode()) for name in sorted(NAMES)]
ENTRIES = [Entry(name, len(content), "") for name, content in FILES]
WHOLE = tar_of(HEAD + FILES)


def test_what_was_written_is_read() -> None:
    assert read(WHOLE, ENTRIES) == (b"{}", b"signed")
    assert read(tar_of(HEAD[:1] + FILES), ENTRIES) == (b"{}", None)
    assert read(tar_of(HEAD[:1]), []) == (b"{}", None)


def refused(raw: bytes, entries: list[Entry] | None = None) -> FleetError:
    with pytest.raises(FleetError) as caught:
        read(raw, ENTRIES if entries is None else entries)
    return caught.value


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a character device"),
        (tarfile.BLKTYPE, "a block device"),
        (tarfile.FIFOTYPE, "a FIFO"),
        (tarfile.DIRTYPE, "a directory"),
    ],
)
def test_a_member_that_is_no_regular_file_is_refused_and_named(kind: bytes, said: str) -> None:
    member = tarfile.TarInfo("files/a")
    member.type, member.linkname = kind, "/etc/passwd"
    error = refused(tar_of(HEAD)[:2048] + member.tobuf(tarfile.USTAR_FORMAT) + b"\0" * 4096, ENTRIES)
    assert error.code == "bundle.unexpected_member"
    assert f", {said}, where 'files/a' belongs" in error.seen


def test_a_link_behind_an_extended_header_is_named_too() -> None:
    raw = bytearray(WHOLE)
    index = [name for name, _content in FILES].index(LONG)
    offset = _bundle_tar.layout([(name, len(content)) for name, content in HEAD + FILES]).offsets[len(HEAD) + index]
    raw[offset - 512 + 156] = ord("2")
    assert "a symbolic link" in refused(bytes(raw)).seen


@pytest.mark.parametrize("name", ["/etc/passwd", "../outside", "files/other", "files/../../x"])
def test_a_member_that_is_not_the_listed_one_is_refused_and_named(name: str) -> None:
    error = refused(tar_of([*HEAD, (name, FILES[0][1]), *FILES[1:]]))
    assert error.code == "bundle.unexpected_member"
    assert name in error.seen


def test_what_follows_the_last_file_is_refused() -> None:
    error = refused(tar_of([*HEAD, *FILES, ("files/z", b"")]))
    assert (error.code, "files/z" in error.seen) == ("bundle.extra", True)
    assert refused(WHOLE + b"\0").code == "bundle.extra"
    padding = _bundle_tar.layout([(name, len(content)) for name, content in HEAD]).offsets[0] + 2
    assert refused(WHOLE[:padding] + b"!" + WHOLE[padding + 1 :]).code == "bundle.extra"


@given(st.integers(0, len(WHOLE) - 1))
def test_one_that_was_cut_is_refused_wherever_it_was_cut(length: int) -> None:
    assert refused(WHOLE[:length]).code in {"bundle.truncated", "bundle.damaged"}


@given(st.integers(0, len(WHOLE) - 1), st.integers(1, 255))
def test_no_changed_byte_outside_of_contents_goes_unnoticed(position: int, change: int) -> None:
    raw = bytearray(WHOLE)
    raw[position] ^= change
    files = [(name, len(content)) for name, content in HEAD + FILES]
    offsets = _bundle_tar.layout(files).offsets
    inside = any(offset <= position < offset + size for offset, (_name, size) in zip(offsets, files, strict=True))
    if inside:
        read(bytes(raw), ENTRIES)  # contents are for their SHA-256 to tell
    else:
        assert refused(bytes(raw)).code.startswith("bundle.")


@given(st.binary(max_size=3000))
def test_no_bytes_make_it_fail_otherwise(raw: bytes) -> None:
    assert refused(raw).code.startswith("bundle.")


def test_a_header_does_not_say_how_much_memory_to_take() -> None:
    raw = _bundle_tar.header(_bundle.MANIFEST, _bundle.MANIFEST_BYTES_MAX + 1)
    assert refused(raw + b"x" * 4096).code == "bundle.unexpected_member"


# --- parts


@given(
    st.binary(min_size=1, max_size=200),
    st.integers(1, 60),
    st.lists(st.tuples(st.booleans(), st.integers(1, 50)), max_size=12),
)
def test_parts_are_read_as_one(
    tmp_path_factory: pytest.TempPathFactory, content: bytes, split: int, steps: list[tuple[bool, int]]
) -> None:
    directory = tmp_path_factory.mktemp("parts")
    pieces = [content[start : start + split] for start in range(0, len(content), split)]
    paths = []
    for number, piece in enumerate(pieces):
        paths.append(str(directory / str(number)))
        Path(paths[-1]).write_bytes(piece)
    parts = _bundle_tar.Parts(paths, [len(piece) for piece in pieces])
    position = 0
    for skipping, wanted in steps:
        count = min(wanted, len(content) - position)
        if skipping:
            parts.skip(count)
        else:
            assert _bundle_tar.read_exactly(parts, count, "it") == content[position : position + count]
        position += count
        assert parts.position == position
    assert _bundle_tar.read_exactly(parts, len(content) - position, "it") == content[position:]
    assert parts.read(1) == b""
    parts.close()


def test_a_part_that_shrinks_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    (tmp_path / "part").write_bytes(b"12345")
    parts = _bundle_tar.Parts([str(tmp_path / "part")], [9])
    with pytest.raises(FleetError) as caught:
        _bundle_tar.read_exactly(parts, 9, "it")
    assert caught.value.code == "bundle.truncated"
    parts.close()
