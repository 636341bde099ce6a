# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The tar of a bundle: regular files alone, in the manifest's order, with headers that follow from name and size.

Any tar program reads it. We read it by writing it: each header must be, byte for byte, the one that the verified
manifest makes us expect, so there is no way for a link, a device or another name to be in it. ``tarfile`` writes other
headers from one Python to the next, and believes a header's word on how much memory to take.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

BLOCK = 512
RECORD = 20 * BLOCK
_OCTAL_MAX = 8**11 - 1
_NAME_MAX = 100
_KINDS = {
    b"0": "a regular file",
    b"\0": "a regular file",
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a directory",
    b"6": "a FIFO",
    b"x": "an extended header",
    b"g": "a global header",
    b"L": "a long name of GNU tar",
}


class Reader(Protocol):
    """Something to read from. Fewer bytes than asked for mean that it has ended."""

    def read(self, count: int) -> bytes: ...


def padding(size: int) -> int:
    return -size % BLOCK


def header(path: str, size: int) -> bytes:
    """All that stands before a file's bytes: a pax header where the name or size needs one, and the file's own."""
    name = path.encode()
    records = b""
    if len(name) > _NAME_MAX or not name.isascii():
        records += _record(b"path", name)
    if size > _OCTAL_MAX:
        records += _record(b"size", str(size).encode())
    extended = b""
    if records:
        extended = _block(b"PaxHeaders/entry", len(records), b"x") + records + b"\0" * padding(len(records))
    short = name.decode().encode("ascii", "replace")[:_NAME_MAX]
    return extended + _block(short, min(size, _OCTAL_MAX), b"0")


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE``, where the length counts its own digits."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _block(name: bytes, size: int, kind: bytes) -> bytes:
    fields = b"".join(
        (
            name.ljust(_NAME_MAX, b"\0"),
            b"0000644\0",
            b"0000000\0" * 2,  # owner and group: root, by number
            b"%011o\0" % size,
            b"00000000000\0",  # no time: equal content makes an equal tar
            b" " * 8,
            kind,
            b"\0" * 100,
            b"ustar\00000",
            b"root".ljust(32, b"\0") * 2,
            b"0000000\0" * 2,
        )
    ).ljust(BLOCK, b"\0")
    checksum = b"%06o\0 " % sum(fields)
    return fields[:148] + checksum + fields[156:]


@dataclass(frozen=True)
class Layout:
    """Where each file's bytes begin in the tar, and how long the whole is."""

    offsets: tuple[int, ...]
    total: int


def layout(files: Iterable[tuple[str, int]]) -> Layout:
    offsets, position = [], 0
    for path, size in files:
        position += len(header(path, size))
        offsets.append(position)
        position += size + padding(size)
    return Layout(tuple(offsets), position + len(trailer(position)))


def trailer(position: int) -> bytes:
    """What ends a tar: two empty blocks, filled up to a whole record."""
    return b"\0" * (2 * BLOCK + -(position + 2 * BLOCK) % RECORD)


def files_of(manifest: bytes, signature: bytes | None, entries: Sequence[Entry]) -> list[tuple[str, int]]:
    """Names and sizes of everything in the tar: what tells whether to believe the rest comes first."""
    head = [(_bundle.MANIFEST, len(manifest))]
    if signature is not None:
        head.append((_bundle.SIGNATURE, len(signature)))
    return head + [(entry.path, entry.size) for entry in entries]


# --- reading ---------------------------------------------------------------------------------------------------------


def read_exactly(stream: Reader, count: int, what: str) -> bytes:
    pieces, missing = [], count
    while missing:
        piece = stream.read(missing)
        if not piece:
            raise _bundle.damaged(f"the bundle ends {missing} bytes early, in {what}", code="bundle.truncated")
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def read_head(stream: Reader) -> tuple[bytes, bytes | None, bytes]:
    """The manifest and its signature, from the start of a tar; none of it is verified.

    What was read of the header after them is the last: without a signature it takes a block to see that there is none.
    """
    manifest = _read_small(stream, _bundle.MANIFEST, _bundle.MANIFEST_BYTES_MAX, read_exactly(stream, BLOCK, "it"))
    following = read_exactly(stream, BLOCK, "the header of its second file")
    if _name_in(following) != _bundle.SIGNATURE.encode():
        return manifest, None, following
    return manifest, _read_small(stream, _bundle.SIGNATURE, _bundle.SIGNATURE_BYTES_MAX, following), b""


def _read_small(stream: Reader, name: str, limit: int, block: bytes) -> bytes:
    digits = block[124:135]
    size = int(digits, 8) if digits.isdigit() and not digits.strip(b"01234567") else -1
    if not 0 <= size <= limit or block != header(name, size):
        raise unexpected(block, name)
    content = read_exactly(stream, size, name)
    _read_padding(stream, size, name)
    return content


def _read_padding(stream: Reader, size: int, name: str) -> None:
    if read_exactly(stream, padding(size), name).strip(b"\0"):
        raise _bundle.damaged(f"there is something between {name!a} and the file after it", code="bundle.extra")


def expect_header(stream: Reader, path: str, size: int, begun: bytes = b"") -> None:
    """The next header is that of ``path``, or the tar is refused. ``begun`` is what was read of it."""
    wanted = header(path, size)
    got = begun + read_exactly(stream, len(wanted) - len(begun), f"the header of {path!a}")
    if got != wanted:
        raise unexpected(got if got[:BLOCK] != wanted[:BLOCK] else got[-BLOCK:], path)


def expect_padding(stream: Reader, path: str, size: int) -> None:
    _read_padding(stream, size, path)


def expect_end(stream: Reader, position: int, begun: bytes = b"") -> None:
    """Nothing follows the last file."""
    wanted = trailer(position)
    got = begun + read_exactly(stream, len(wanted) - len(begun), "the end of the tar")
    if got != wanted:
        raise unexpected(got, "")
    if stream.read(1):
        raise _bundle.damaged("something follows the end of the tar", code="bundle.extra")


def unexpected(block: bytes, wanted: str) -> FleetError:
    """What a header says that is not the expected one, for a person: nothing in it is believed."""
    name, kind = _name_in(block), _KINDS.get(block[156:157])
    if not block.strip(b"\0"):
        return _bundle.damaged(f"the tar ends before {wanted!a}", code="bundle.truncated")
    if block[257:262] != b"ustar" or kind is None:
        return _bundle.damaged(f"where {ascii(wanted) if wanted else 'the tar'} should {'be' if wanted else 'end'} is "
                               "no tar header")  # fmt: skip
    shown = ascii(name.decode("utf-8", "backslashreplace"))[:200]
    if not wanted:
        return _bundle.damaged(f"{shown}, {kind}, follows the last file of the manifest", code="bundle.extra")
    return FleetError(
        "bundle.unexpected_member",
        f"the tar has {shown}, {kind}, where {wanted!a} belongs",
        "exactly the regular files that the signed manifest lists, in its order, as this collection writes them",
        "copy the bundle again from where it was made; one that was packed by hand can be unpacked by hand, and the "
        "directory be given instead. Nothing was written outside the directory of the bundle",
    )


def _name_in(block: bytes) -> bytes:
    return block[:_NAME_MAX].partition(b"\0")[0]


# --- parts -----------------------------------------------------------------------------------------------------------


class Parts:
    """Files that are read as one: each of ``split`` bytes but the last."""

    def __init__(self, paths: Sequence[str], sizes: Sequence[int]) -> None:
        self._paths, self._sizes = paths, sizes
        self._number = -1
        self._handle: int | None = None
        self._left = 0
        self.position = 0

    def read(self, count: int) -> bytes:
        """Up to ``count`` bytes, not across a part; none at the end of the last one."""
        while not self._left:
            if self._number + 1 >= len(self._paths):
                return b""
            self._open(self._number + 1, 0)
        piece = os.read(self._handle or 0, min(count, self._left))
        if not piece:
            raise _bundle.damaged(
                f"{self._paths[self._number]} ended {self._left} bytes early while it was read", code="bundle.truncated"
            )
        self._left -= len(piece)
        self.position += len(piece)
        return piece

    def skip(self, count: int) -> None:
        """Go on ``count`` bytes further on, without reading them."""
        self.position += count
        start = 0
        for number, size in enumerate(self._sizes):
            if self.position < start + size:
                self._open(number, self.position - start)
                return
            start += size
        self._open(len(self._paths) - 1, self._sizes[-1])

    def _open(self, number: int, offset: int) -> None:
        if number != self._number or self._handle is None:
            self.close()
            self._handle = os.open(self._paths[number], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            self._number = number
        os.lseek(self._handle, offset, os.SEEK_SET)
        self._left = self._sizes[number] - offset

    def close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None
