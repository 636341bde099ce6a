# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A bundle: everything that a fleet without a way out needs, as one directory or one tar that may be split. No I/O.

::

    manifest.json                       what is in it; every file with its size and SHA-256
    manifest.json.sig                   an OpenSSH signature of the manifest
    models/OWNER/NAME/COMMIT/...        the files of a model
    images/blobs/sha256/HEX             layers, configurations and manifests of images, each once
    wheels/SET/...                      Python packages, and the requirements that they satisfy
    collection/NAMESPACE-NAME-VERSION.tar.gz
    files/...                           what the user added

A tar is ``NAME.tar``, split into ``NAME.tar.001`` and so on where a size is given, with ``NAME.sha256`` for
``sha256sum -c``. Nothing of a bundle is believed before its manifest's signature was verified.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, check_paths, path_fault

KIND = "gpufleet.vllm.bundle"
FORMAT = 1
NAMESPACE = "gpufleet.vllm-bundle"
"""What a signature is for: one made for anything else is not accepted."""

MANIFEST = "manifest.json"
SIGNATURE = "manifest.json.sig"
MANIFEST_BYTES_MAX = 256 * 1024 * 1024
SIGNATURE_BYTES_MAX = 64 * 1024
SPLIT_MIN = 1024 * 1024
PARTS_MAX = 100_000

_TOP = ("models", "images", "wheels", "collection", "files")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SUFFIX = re.compile(r"(\.tar(\.[0-9]{3,6})?|\.sha256)\Z")
_SUM = re.compile(r"([0-9a-f]{64}) [ *]([^/\n]+)\Z")
_CONTENT = {
    "models": ("model", "revision", "commit", "directory", "digest"),
    "images": ("image", "repository", "tag", "digest"),
    "wheels": ("name", "directory"),
}


@dataclass(frozen=True)
class Bundle:
    """What a manifest says. ``content`` holds ``models``, ``images``, ``wheels`` and ``collection``."""

    created: str
    content: Mapping[str, Any]
    entries: tuple[Entry, ...]

    @property
    def bytes_total(self) -> int:
        return sum(entry.size for entry in self.entries)

    def same_as(self, other: Bundle) -> bool:
        """Whether both hold the same, whenever they were made."""
        return self.content == other.content and self.entries == other.entries


def damaged(seen: str, remedy: str = "", code: str = "bundle.damaged") -> FleetError:
    return FleetError(
        code,
        seen,
        "the bundle as it was written, every byte of it",
        remedy or "copy the bundle again from where it was made; nothing was loaded",
    )


# --- the manifest ----------------------------------------------------------------------------------------------------


def dump(bundle: Bundle) -> bytes:
    """The manifest as it is signed; equal bundles give equal bytes."""
    document = {
        "kind": KIND,
        "format": FORMAT,
        "created": bundle.created,
        "bytes_total": bundle.bytes_total,
        "content": bundle.content,
        "files": [entry.as_dict() for entry in bundle.entries],
    }
    return (json.dumps(document, indent=1, ensure_ascii=True) + "\n").encode()


def load(raw: bytes) -> Bundle:
    """Read what :func:`dump` wrote. Its signature is verified before, and it is checked nevertheless."""
    try:
        document = json.loads(raw.decode())
    except ValueError as exc:
        raise damaged(f"{MANIFEST} is no JSON text: {exc}") from exc
    except RecursionError as exc:
        raise damaged(f"{MANIFEST} is nested without end") from exc
    if not isinstance(document, dict) or document.get("kind") != KIND:
        raise damaged(f"{MANIFEST} is not one of a bundle of {KIND}")
    if document.get("format") != FORMAT:
        raise FleetError(
            "bundle.format",
            f"the bundle has format {document.get('format')!r}",
            f"format {FORMAT}",
            "use the collection that is in the bundle, or a newer one",
        )
    try:
        entries = tuple(_entry(item) for item in document["files"])
        content = _content(document["content"])
        created = str(document["created"])
    except (KeyError, TypeError, ValueError) as exc:
        raise damaged(f"{MANIFEST} is not well formed: {exc}") from exc
    _check_entries(entries)
    _check_content(content, {entry.path for entry in entries})
    return Bundle(created, content, entries)


def _entry(item: Any) -> Entry:
    path, size, sha256 = item["path"], item["size"], item["sha256"]
    if not isinstance(path, str) or isinstance(size, bool) or not isinstance(size, int) or size < 0:
        raise ValueError(f"bad entry {ascii(item)[:200]}")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ValueError(f"bad digest of {ascii(path)[:200]}")
    return Entry(path, size, sha256)


def _content(given: Any) -> dict[str, Any]:
    content: dict[str, Any] = {"models": [], "images": [], "wheels": [], "collection": None, **dict(given)}
    for kind, keys in _CONTENT.items():
        if not isinstance(content[kind], list):
            raise ValueError(f"{kind} is no list")
        for item in content[kind]:
            for key in keys:
                if not isinstance(item[key], str):
                    raise ValueError(f"{key} of {kind} is no text")
    if content["collection"] is not None and not isinstance(content["collection"]["path"], str):
        raise ValueError("the path of the collection is no text")
    return content


def _check_entries(entries: Sequence[Entry]) -> None:
    try:
        check_paths(entry.path for entry in entries)
    except FleetError as exc:
        raise FleetError(
            "bundle.unsafe_path",
            f"{MANIFEST} was refused: {exc.seen.partition(': ')[2] or exc.seen}",
            "relative paths without '..', control characters or clashes, so that every file stays inside the directory",
            "do not use this bundle before who made it explained it; nothing was written",
        ) from exc
    for entry in entries:
        if entry.path.split("/")[0] not in _TOP or "/" not in entry.path:
            raise damaged(f"{MANIFEST} lists {entry.path!a}, which is in none of {', '.join(_TOP)}")
    if list(entries) != sorted(entries, key=lambda entry: entry.path):
        raise damaged(f"{MANIFEST} does not list its files in order")


def _check_content(content: Mapping[str, Any], paths: set[str]) -> None:
    """What the manifest offers lies where it says, so that whoever loads it need not look again."""
    directories = {path[: index + 1] for path in paths for index, char in enumerate(path) if char == "/"}
    wanted = [(item["directory"], "models/") for item in content["models"]]
    wanted += [(item["directory"], "wheels/") for item in content["wheels"]]
    for directory, top in wanted:
        if path_fault(directory) or not directory.startswith(top) or f"{directory}/" not in directories:
            raise damaged(f"{MANIFEST} names {directory!a}, and lists no file there")
    for image in content["images"]:
        if blob_path(image["digest"]) not in paths:
            raise damaged(f"{MANIFEST} names the image {image['image']!a}, and does not list {image['digest']}")
    if content["collection"] is not None and content["collection"]["path"] not in paths:
        raise damaged(f"{MANIFEST} does not list the collection {content['collection']['path']!a}")


def blob_path(digest: str) -> str:
    """Where the blob of a digest (``sha256:HEX``) lies in a bundle. Raises FleetError for anything else."""
    kind, _colon, value = digest.partition(":")
    if kind != "sha256" or not _SHA256.fullmatch(value):
        raise FleetError(
            "image.bad_digest", f"the digest {ascii(digest)[:120]}", "sha256: and 64 hexadecimal digits",
            "use an image whose registry has digests of that kind",
        )  # fmt: skip
    return f"images/blobs/sha256/{value}"


# --- names of files --------------------------------------------------------------------------------------------------


def stem_of(path: str) -> str:
    """The bundle's name, from the name of any of its files."""
    return _SUFFIX.sub("", path.rstrip("/"))


def part_count(total: int, split: int) -> int:
    """Into how many parts of ``split`` bytes ``total`` go; 0 splits nothing."""
    return 1 if split <= 0 else max(1, -(-total // split))


def part_names(stem: str, count: int, split: int) -> list[str]:
    """The base names of the parts. Where it is split there is a number even if there is one part only."""
    if split <= 0:
        return [f"{stem}.tar"]
    width = max(3, len(str(count)))
    return [f"{stem}.tar.{number:0{width}d}" for number in range(1, count + 1)]


def parts_of_range(start: int, end: int, split: int) -> range:
    """Which parts (from 0) hold the bytes [start, end) of the whole."""
    if split <= 0:
        return range(1)
    return range(start // split, max(start, end - 1) // split + 1)


def check_split(split: int, total: int) -> None:
    if split < 0 or 0 < split < SPLIT_MIN or part_count(total, split) > PARTS_MAX:
        raise FleetError(
            "bundle.bad_split",
            f"a bundle of {total} bytes in parts of {split}",
            f"0, or at least {SPLIT_MIN} bytes, and at most {PARTS_MAX} parts",
            "correct split_size, for example 4g",
        )


def dump_sums(sums: Iterable[tuple[str, str]]) -> str:
    """What ``sha256sum -c`` reads."""
    return "".join(f"{digest}  {name}\n" for name, digest in sums)


def load_sums(text: str, stem: str) -> dict[str, str]:
    """The SHA-256 of each part, in order. The names are checked: they are not signed."""
    sums: dict[str, str] = {}
    for line in text.splitlines():
        match = _SUM.match(line)
        if match is None or match[2] in sums:
            raise damaged(f"{stem}.sha256 holds the line {ascii(line)[:120]}")
        sums[match[2]] = match[1]
    names = list(sums)
    split = int(names != [f"{stem}.tar"])
    if not names or names != part_names(stem, len(names), split):
        raise damaged(f"{stem}.sha256 lists {ascii(', '.join(names))[:200]}, which are not the parts of one bundle")
    return sums
