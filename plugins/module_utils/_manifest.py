# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What a model artifact consists of: entries, path rules, patterns, and the manifest kept beside the files. No I/O.

A hub's listing is untrusted input. Nothing of it reaches the file system before :func:`entries_from_rows` accepted
every row.
"""

from __future__ import annotations

import fnmatch
import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

STATE_DIRECTORY = ".gpufleet"
"""The one name inside an artifact directory that belongs to us; no hub may offer a file there."""

MANIFEST_NAME = "manifest.json"
MANIFEST_FORMAT = 1

_FOREIGN_PARTIAL = ".incomplete"
_COMPONENT_BYTES_MAX = 255
_PATH_BYTES_MAX = 3072
_SIZE_MAX = 2**50
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Entry:
    """One file of an artifact: path relative to its root with ``/``, size in bytes, lower-case hex SHA-256."""

    path: str
    size: int
    sha256: str

    def as_dict(self) -> dict[str, Any]:
        return {"path": self.path, "size": self.size, "sha256": self.sha256}


@dataclass(frozen=True)
class FileStat:
    """What tells cheaply whether a verified file was touched since: size in bytes and mtime in nanoseconds."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Manifest:
    """An artifact as it was published: which model at which commit, selected how, and every file.

    ``stats`` holds the :class:`FileStat` each file had right after its hash was verified; ``left_out`` names the files
    that were selected and not taken, since they are pickles.
    """

    model: str
    revision: str
    commit: str | None
    endpoint: str
    include: tuple[str, ...]
    exclude: tuple[str, ...]
    left_out: tuple[str, ...]
    entries: tuple[Entry, ...]
    stats: Mapping[str, FileStat]
    published: str = ""
    """Another one each time that bytes were put in place: who loaded the files before has to load them again."""

    @property
    def digest(self) -> str:
        return digest_of(self.entries)

    @property
    def bytes_total(self) -> int:
        return sum(entry.size for entry in self.entries)

    def by_path(self) -> dict[str, Entry]:
        return {entry.path: entry for entry in self.entries}


def digest_of(entries: Iterable[Entry]) -> str:
    """SHA-256 (hex) over one line ``SHA256 SIZE PATH`` per entry, sorted by path: equal digests mean equal content."""
    state = hashlib.sha256()
    for entry in sorted(entries, key=lambda item: item.path):
        state.update(f"{entry.sha256} {entry.size} {entry.path}\n".encode())
    return state.hexdigest()


# --- paths -----------------------------------------------------------------------------------------------------------


def path_fault(path: object) -> str | None:
    """Why ``path`` may not be written below an artifact's root, or None when it may."""
    if not isinstance(path, str) or not path:
        return "is not a non-empty string"
    if any(unicodedata.category(char) in ("Cc", "Cf", "Cs") for char in path):
        return "holds a control or invisible character"
    if "\\" in path:
        return "holds a backslash"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "is absolute"
    if path.endswith("/"):
        return "ends in a slash"
    components = path.split("/")
    if "" in components:
        return "has an empty component"
    if ".." in components or "." in components:
        return "has a '.' or '..' component"
    if _fold(components[0]) == STATE_DIRECTORY:
        return f"collides with our own {STATE_DIRECTORY} directory"
    if len(path.encode()) > _PATH_BYTES_MAX or any(len(item.encode()) > _COMPONENT_BYTES_MAX for item in components):
        return "is longer than a file system allows"
    return None


def _fold(path: str) -> str:
    """The key under which two names are one file on a case-insensitive or normalising file system."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _shown(value: object) -> str:
    """An untrusted value, safe and short enough for a message."""
    text = ascii(value)
    return text if len(text) <= 120 else text[:117] + "..."


def _refuse(reason: str) -> FleetError:
    return FleetError(
        "manifest.unsafe_listing",
        f"The hub's file listing was refused: {reason}",
        "relative paths without '..', control characters or clashes, so that every file stays inside the directory",
        "Do not use this repository or mirror before its owner explained or repaired it; nothing was written",
    )


def check_paths(paths: Iterable[object]) -> None:
    """Raise for the first path that breaks a rule of its own or clashes with another one."""
    files: dict[str, str] = {}
    for path in paths:
        fault = path_fault(path)
        if fault is not None:
            raise _refuse(f"path {_shown(path)} {fault}")
        name = str(path)
        key = _fold(name)
        other = files.get(key)
        if other is not None:
            how = "is listed twice" if other == name else f"differs from {_shown(other)} only in case or normalisation"
            raise _refuse(f"path {_shown(name)} {how}")
        files[key] = name
    for key, name in files.items():
        if key.endswith(_FOREIGN_PARTIAL) and key[: -len(_FOREIGN_PARTIAL)] in files:
            raise _refuse(f"path {_shown(name)} is what the official client would take for a partial download")
        parents = key.split("/")[:-1]
        for depth in range(1, len(parents) + 1):
            parent = "/".join(parents[:depth])
            if parent in files:
                raise _refuse(f"path {_shown(files[parent])} is both a file and the directory of {_shown(name)}")


# --- listing ---------------------------------------------------------------------------------------------------------


def row_path(row: Mapping[str, Any]) -> object:
    """The path of a listing row, under whichever of its names the hub used."""
    for key in ("Path", "path", "Name"):
        if row.get(key):
            return row[key]
    return row.get("Path", "")


def is_directory(row: Mapping[str, Any]) -> bool:
    return bool(row.get("Type", "blob") == "tree")


def entries_from_rows(
    rows: Sequence[Mapping[str, Any]],
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
) -> tuple[Entry, ...]:
    """Validate a listing and return the selected files, sorted by path.

    Every path is checked, selected or not: one hostile row condemns the listing. Size and digest are required of the
    selected files only, so that ``exclude`` can leave out a file that the hub cannot vouch for.
    """
    blobs = []
    for row in rows:
        if is_directory(row):
            continue
        if row.get("Type", "blob") != "blob":
            raise _refuse(f"path {_shown(row_path(row))} is of type {_shown(row.get('Type'))}, neither blob nor tree")
        blobs.append(row)
    check_paths(row_path(row) for row in blobs)
    if not blobs:
        raise FleetError(
            "manifest.empty_listing",
            "The hub listed no files",
            "at least one file in the repository at this revision",
            "Check model and revision; an unknown revision can be answered with an empty listing",
        )
    chosen = [row for row in blobs if selected(str(row_path(row)), include, exclude)]
    if not chosen:
        raise FleetError(
            "manifest.nothing_selected",
            f"None of the {len(blobs)} files of the repository passes include={list(include)} exclude={list(exclude)}",
            "at least one matching file",
            "Patterns match the whole path, for example '*.safetensors' or 'onnx/*'; list the files with "
            "gpufleet.vllm.modelscope_model_info",
        )
    entries = tuple(sorted((_entry(row) for row in chosen), key=lambda entry: entry.path))
    sizes: dict[str, int] = {}
    for entry in entries:
        if sizes.setdefault(entry.sha256, entry.size) != entry.size:
            raise _refuse(f"SHA-256 {entry.sha256} is listed with two different sizes")
    return entries


def _entry(row: Mapping[str, Any]) -> Entry:
    path, size, sha256 = str(row_path(row)), row.get("Size"), row.get("Sha256")
    if isinstance(size, bool) or not isinstance(size, int) or not 0 <= size <= _SIZE_MAX:
        raise _unverifiable(path, f"size {_shown(size)}", "a size in bytes")
    digest = sha256.strip().lower() if isinstance(sha256, str) else ""
    if not _SHA256.fullmatch(digest):
        raise _unverifiable(path, f"Sha256 {_shown(sha256)}", "64 hexadecimal digits")
    return Entry(path, size, digest)


def _unverifiable(path: str, seen: str, expected: str) -> FleetError:
    return FleetError(
        "manifest.unverifiable",
        f"The hub lists {_shown(path)} with {seen}, so the file could not be verified",
        expected,
        "Leave the file out with exclude if it is not needed, or ask the owner of the repository to repair it",
    )


def selected(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether the patterns choose ``path``: any of ``include`` (all when empty), then none of ``exclude``."""
    if include and not _matches(path, include):
        return False
    return not _matches(path, exclude)


def _matches(path: str, patterns: Sequence[str]) -> bool:
    # As the official client has it: fnmatch on the whole path, and '.*' of old regular expressions also means '*'.
    return any(
        _match(path, pattern) or (".*" in pattern and _match(path, pattern.replace(".*", "*"))) for pattern in patterns
    )


def _match(path: str, pattern: str) -> bool:
    try:
        return fnmatch.fnmatchcase(path, pattern)
    except re.error:  # Python before 3.10.5, for a range that runs backwards: it matches nothing
        return False


# --- pickles ---------------------------------------------------------------------------------------------------------

PICKLES = (".bin", ".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth")
"""Endings under which Python pickles are published: whoever loads one runs what its author wrote."""

_WEIGHTS = (".gguf", ".safetensors")


def is_pickle(path: str) -> bool:
    return path.lower().endswith(PICKLES)


def is_weights(path: str) -> bool:
    """Whether an engine could load it, as tensors or as a pickle."""
    return path.lower().endswith((*_WEIGHTS, *PICKLES))


def without_pickles(entries: Sequence[Entry], allow: bool) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """The entries without pickles, and the paths of those. Raises FleetError where no other weights are left."""
    left_out = () if allow else tuple(entry.path for entry in entries if is_pickle(entry.path))
    kept = tuple(entry for entry in entries if entry.path not in set(left_out))
    if left_out and not any(entry.path.lower().endswith(_WEIGHTS) for entry in kept):
        raise FleetError(
            "manifest.pickle",
            f"The repository has its weights as Python pickles only ({_named(left_out)}): loading one runs whatever "
            "its author put into it",
            "weights as safetensors or GGUF",
            "Use a repository that has them, leave the files out with exclude, or set allow_pickle if you trust its "
            "author as you trust your own code",
        )
    return kept, left_out


def left_out_warning(left_out: Sequence[str]) -> str:
    return (
        f"Left out, since loading a Python pickle can run code and the weights are there as safetensors or GGUF: "
        f"{_named(left_out)}. allow_pickle takes them."
    )


def _named(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - 3} more" if len(paths) > 3 else ""
    return ", ".join(_shown(path)[1:-1] for path in paths[:3]) + more


# --- comparison with the disk ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """Something on disk below the artifact's directory. ``kind`` is file, directory, symlink or other."""

    kind: str
    stat: FileStat


@dataclass(frozen=True)
class Comparison:
    """Wanted entries against the disk: ``trusted`` by the stat the manifest recorded, ``to_hash`` because only their
    content can tell, ``missing`` because they are absent or cannot be right."""

    trusted: tuple[Entry, ...]
    to_hash: tuple[Entry, ...]
    missing: tuple[Entry, ...]


def compare(
    entries: Iterable[Entry], old: Manifest | None, found: Mapping[str, Found], rehash: bool = False
) -> Comparison:
    """Sort the wanted entries by what their files on disk look like; ``rehash`` trusts no recorded stat."""
    known = old.by_path() if old is not None else {}
    trusted, to_hash, missing = [], [], []
    for entry in entries:
        item = found.get(entry.path)
        if item is None or item.kind != "file" or item.stat.size != entry.size:
            missing.append(entry)
        elif not rehash and old is not None and known.get(entry.path) == entry and old.stats[entry.path] == item.stat:
            trusted.append(entry)
        else:
            to_hash.append(entry)
    return Comparison(tuple(trusted), tuple(to_hash), tuple(missing))


def ancestors(path: str) -> list[str]:
    """Every directory above ``path``, nearest the root first: ``a/b/c`` gives ``a``, ``a/b``."""
    parts = path.split("/")[:-1]
    return ["/".join(parts[: depth + 1]) for depth in range(len(parts))]


def foreign(found: Mapping[str, Found], owned: Iterable[str]) -> list[str]:
    """What is on disk and not ``owned``: files, links, and directories that hold nothing at all. Sorted."""
    mine = set(owned)
    parents = {parent for path in found for parent in ancestors(path)}
    return sorted(
        path for path, item in found.items() if path not in mine and not (item.kind == "directory" and path in parents)
    )


def blockers(entries: Iterable[Entry], strangers: Iterable[str], found: Mapping[str, Found]) -> list[str]:
    """Foreign things that stand where an entry, or a directory above one, has to be.

    A file or symbolic link exactly in an entry's place is no blocker: it is replaced, the link's target untouched.
    """
    files = {entry.path for entry in entries}
    directories = {parent for path in files for parent in ancestors(path)}
    bad = []
    for path in strangers:
        kind = found[path].kind
        replaced = path in files and kind in ("file", "symlink")
        in_place = path in files and not replaced
        as_parent = path in directories and kind != "directory"
        if in_place or as_parent or any(parent in files for parent in ancestors(path)):
            bad.append(path)
    return bad


# --- the manifest file -----------------------------------------------------------------------------------------------


def dump(manifest: Manifest) -> str:
    """The manifest as JSON text; equal manifests give equal text."""
    document = {
        "format": MANIFEST_FORMAT,
        "kind": "gpufleet.vllm.artifact",
        "model": manifest.model,
        "revision": manifest.revision,
        "commit": manifest.commit,
        "endpoint": manifest.endpoint,
        "include": list(manifest.include),
        "exclude": list(manifest.exclude),
        "left_out": list(manifest.left_out),
        "digest": manifest.digest,
        "bytes_total": manifest.bytes_total,
        "published": manifest.published,
        "files": [{**entry.as_dict(), "mtime_ns": manifest.stats[entry.path].mtime_ns} for entry in manifest.entries],
    }
    return json.dumps(document, indent=1, sort_keys=False, ensure_ascii=True) + "\n"


def load(text: str) -> Manifest:
    """Read what :func:`dump` wrote. Raises ValueError for anything else, paths outside the artifact included."""
    try:
        document = json.loads(text)
    except RecursionError as exc:
        raise ValueError("nested too deeply") from exc
    if not isinstance(document, dict) or document.get("kind") != "gpufleet.vllm.artifact":
        raise ValueError("not a gpufleet.vllm artifact manifest")
    if document.get("format") != MANIFEST_FORMAT:
        raise ValueError(f"manifest format {document.get('format')!r}, this collection reads {MANIFEST_FORMAT}")
    entries, stats = [], {}
    try:
        for item in document["files"]:
            entry = Entry(str(item["path"]), int(item["size"]), str(item["sha256"]))
            if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
                raise ValueError(f"bad size or digest of {_shown(entry.path)}")
            entries.append(entry)
            stats[entry.path] = FileStat(entry.size, int(item["mtime_ns"]))
        check_paths(entry.path for entry in entries)
        commit = document["commit"]
        manifest = Manifest(
            model=str(document["model"]),
            revision=str(document["revision"]),
            commit=None if commit is None else str(commit),
            endpoint=str(document["endpoint"]),
            include=tuple(str(item) for item in document["include"]),
            exclude=tuple(str(item) for item in document["exclude"]),
            left_out=tuple(str(item) for item in document.get("left_out", ())),
            entries=tuple(sorted(entries, key=lambda entry: entry.path)),
            stats=stats,
            published=str(document.get("published", "")),
        )
    except (KeyError, TypeError, OverflowError, FleetError) as exc:
        raise ValueError(f"damaged manifest: {exc}") from exc
    if document.get("digest") != manifest.digest:
        raise ValueError("the manifest does not match its own digest")
    return manifest
