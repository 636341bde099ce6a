# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Reading a bundle. Order of things: the signature of the manifest, then the names and sizes of all files or parts,
then the content of every file while it is copied to where it is loaded from. Nothing is loaded before all is right."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _bundle,
    _bundle_signature,
    _bundle_tar,
    _bundle_tree,
    _manifest,
    _safefs,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle import Bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry

_ARTIFACT = f"{_manifest.STATE_DIRECTORY}/{_manifest.MANIFEST_NAME}"


@dataclass(frozen=True)
class Request:
    """What is wanted. Without ``dest`` everything is checked, and nothing written."""

    path: str
    dest: str = ""
    allowed_signers: str = ""
    signer: str = ""
    allow_unsigned: bool = False
    check_mode: bool = False


Take = Callable[[Entry], "contextlib.AbstractContextManager[_bundle_tree.Sink | None]"]
"""Where the bytes of a file go; None where they are not wanted, and need not be read."""


def read(request: Request) -> dict[str, Any]:
    """Have the content of a bundle in ``dest``, verified. Raises FleetError or OSError."""
    source = _open(request.path)
    try:
        manifest, signature = source.head()
        warnings: list[str] = []
        signer = _authenticate(request, manifest, signature, warnings)
        bundle = _bundle.load(manifest)
        source.check(bundle, manifest, signature)
        unpack = _Unpack(request, source, bundle, manifest, signature)
        result = unpack.run() if request.dest else unpack.check()
    finally:
        source.close()
    return {
        **result,
        "path": source.path,
        "created": bundle.created,
        "content": dict(bundle.content),
        "files": len(bundle.entries),
        "bytes_total": bundle.bytes_total,
        "manifest_sha256": hashlib.sha256(manifest).hexdigest(),
        "signer": signer,
        "warnings": warnings,
    }


def _authenticate(request: Request, manifest: bytes, signature: bytes | None, warnings: list[str]) -> str:
    if signature is not None and request.allowed_signers.strip():
        return _bundle_signature.verify(manifest, signature, request.allowed_signers, request.signer).identity
    if request.allow_unsigned:
        what = "is not signed" if signature is None else "was not verified: no signers are allowed"
        warnings.append(f"The bundle {request.path} {what}; anybody may have made it.")
        return ""
    if signature is None:
        raise FleetError(
            "bundle.unsigned",
            f"the bundle {request.path} is not signed",
            "a bundle with a signature",
            "make it again with a signing key (bundle_signing_key), or set allow_unsigned if you trust the way it came",
        )
    raise FleetError(
        "bundle.no_signers",
        f"the bundle {request.path} is signed, and no signers are allowed",
        "the public key of who makes the bundles, in allowed_signers",
        "write a line 'NAME KEYTYPE KEY' there, with the content of the signing key's .pub file",
    )


# --- sources ---------------------------------------------------------------------------------------------------------


def _open(path: str) -> _Source:
    if os.path.isdir(path):
        return _DirectorySource(path)
    return _TarSource(_bundle.stem_of(os.path.abspath(path)))


class _Source:
    path: str

    def head(self) -> tuple[bytes, bytes | None]:
        """The manifest and its signature, neither of them verified."""
        raise NotImplementedError

    def check(self, bundle: Bundle, manifest: bytes, signature: bytes | None) -> None:
        """Raise where a file or part is missing, too many, or has another size."""
        raise NotImplementedError

    def file_of(self, entry: Entry) -> str | None:
        """A file with these bytes that may be linked to; only after its content was verified."""
        return None

    def verify(self, entry: Entry) -> None:
        """Raise where the file of :meth:`file_of` has other content."""

    def copy(self, entries: Sequence[Entry], take: Take) -> None:
        """Hand out every wanted file in the order of the manifest, and raise for one that has other content."""
        raise NotImplementedError

    def close(self) -> None:
        pass


def _wrong(where: str, entry: Entry, found: tuple[int, str]) -> FleetError:
    return _bundle.damaged(
        f"{where}: {entry.path!a} has {found[0]} bytes and SHA-256 {found[1]}, "
        f"the manifest says {entry.size} and {entry.sha256}"
    )


class _DirectorySource(_Source):
    def __init__(self, path: str) -> None:
        self.path = os.path.abspath(path)
        self._tree = _bundle_tree.Tree(self.path, check_mode=True)
        self._tree.__enter__()

    def close(self) -> None:
        self._tree.__exit__()

    def head(self) -> tuple[bytes, bytes | None]:
        manifest = self._tree.manifest()
        if manifest is None:
            raise FleetError(
                "bundle.not_found",
                f"{self.path} has no {_bundle.MANIFEST}",
                "a bundle that was written to its end",
                "name the bundle's directory or the path of its tar; one that was cut is written again by bundle",
            )
        return manifest, self._tree.signature()

    def check(self, bundle: Bundle, manifest: bytes, signature: bytes | None) -> None:
        missing, wrong = [], []
        for entry in bundle.entries:
            state = _safefs.lstat(self._tree.root, entry.path)
            if state is None:
                missing.append(entry.path)
            elif not stat.S_ISREG(state.st_mode) or state.st_size != entry.size:
                wrong.append(entry.path)
        if missing:
            raise _bundle.damaged(
                f"{self.path} lacks {_bundle_tree.shown(missing)}", code="bundle.missing_file"
            )  # fmt: skip
        if wrong:
            raise _bundle.damaged(f"{self.path}: of another size than the manifest says: {_bundle_tree.shown(wrong)}")
        # What a file manager or a file system leaves does no harm: only what the manifest lists is read.
        known = {entry.path for entry in bundle.entries} | set(_bundle_tree.OWN)
        found = _safefs.walk(self._tree.root, "lost+found")
        extra = [path for path, item in found.items() if item.kind != "directory" and path not in known]
        if extra:
            raise _bundle.damaged(
                f"{self.path} holds what the manifest does not list: {_bundle_tree.shown(extra)}",
                "remove it, or copy the bundle again; nothing was loaded",
                code="bundle.extra",
            )

    def file_of(self, entry: Entry) -> str | None:
        path = os.path.join(self.path, entry.path)
        state = os.stat(path, follow_symlinks=False)
        # Its owner could change it afterwards, and whoever serves it must be able to read it.
        mine = state.st_uid == os.geteuid() and stat.S_IMODE(state.st_mode) == _safefs.FILE_MODE
        return path if mine else None

    def verify(self, entry: Entry) -> None:
        self._read(entry, None)

    def copy(self, entries: Sequence[Entry], take: Take) -> None:
        for entry in entries:
            with take(entry) as sink:
                if sink is not None:
                    self._read(entry, sink)

    def _read(self, entry: Entry, sink: _bundle_tree.Sink | None) -> None:
        try:
            handle = _safefs.open_regular(self._tree.root, entry.path)
        except OSError as exc:
            raise _bundle.damaged(f"{self.path}: {entry.path!a} cannot be read: {exc.strerror}") from exc
        try:
            found = _bundle_tree.hash_file(handle, sink)
        finally:
            os.close(handle)
        if found != (entry.size, entry.sha256):
            raise _wrong(self.path, entry, found)


class _TarSource(_Source):
    def __init__(self, stem: str) -> None:
        self.path = stem
        self._directory, self._name = os.path.split(stem)
        self._sums = self._read_sums()
        self._paths = [os.path.join(self._directory, name) for name in self._sums]
        self._sizes = self._stat_parts()
        self._split = max(self._sizes) if len(self._sizes) > 1 else 0
        self._parts = _bundle_tar.Parts(self._paths, self._sizes)
        self._begun = b""
        self._head: list[tuple[str, int]] = []

    def close(self) -> None:
        self._parts.close()

    def _read_sums(self) -> dict[str, str]:
        try:
            with open(f"{self.path}.sha256", encoding="utf-8", errors="replace") as stream:
                return _bundle.load_sums(stream.read(1 << 24), self._name)
        except FileNotFoundError:
            raise FleetError(
                "bundle.not_found",
                f"there is no {self.path}.sha256 and no directory {self.path}",
                "a bundle that was written to its end: its parts, and the file with their SHA-256",
                "correct the path, and copy all files of the bundle; one that was cut is written again by bundle",
            ) from None

    def _stat_parts(self) -> list[int]:
        sizes, missing = [], []
        for path in self._paths:
            try:
                state = os.stat(path, follow_symlinks=False)
                if not stat.S_ISREG(state.st_mode):
                    raise _bundle.damaged(f"{path} is no regular file")
                sizes.append(state.st_size)
            except FileNotFoundError:
                missing.append(os.path.basename(path))
        if missing:
            raise FleetError(
                "bundle.missing_part",
                f"{self._directory} lacks {_bundle_tree.shown(missing)}, of {len(self._paths)} parts",
                f"every part that {self._name}.sha256 lists",
                "copy what is missing; nothing was loaded",
            )
        pattern = re.compile(rf"{re.escape(self._name)}\.tar(\.[0-9]+)?\Z")
        extra = [name for name in os.listdir(self._directory) if pattern.match(name) and name not in self._sums]
        if extra:
            raise FleetError(
                "bundle.extra_part",
                f"{self._directory} holds {_bundle_tree.shown(extra)}, which {self._name}.sha256 does not list",
                "the parts of one bundle",
                "remove what is of another bundle, or copy this one's .sha256 again; nothing was loaded",
            )
        return sizes

    def head(self) -> tuple[bytes, bytes | None]:
        with self._named(lambda: (0, self._parts.position)):
            manifest, signature, self._begun = _bundle_tar.read_head(self._parts)
        return manifest, signature

    def check(self, bundle: Bundle, manifest: bytes, signature: bytes | None) -> None:
        files = _bundle_tar.files_of(manifest, signature, bundle.entries)
        total = _bundle_tar.layout(files).total
        count = len(self._sizes)
        # What the size of a part was is not written down: the one by which the fewest parts are wrong.
        guesses = [self._wanted(total, split) for split in sorted(set(self._sizes))]
        wanted = max(guesses, key=lambda guess: sum(map(int.__eq__, self._sizes, guess)))
        self._split = wanted[0] if count > 1 else 0
        wrong = [
            f"{os.path.basename(path)} ({size} bytes, not {right})"
            for path, size, right in zip(self._paths, self._sizes, wanted)
            if size != right
        ]
        if wrong and wanted[-1] > 0:
            raise _bundle.damaged(f"{self._directory}: of another size than they were: {', '.join(wrong[:5])}")
        if wrong:
            blamed = self._blame(range(count)) or "no part differs from its SHA-256"
            raise _bundle.damaged(f"the parts of {self.path} have {sum(self._sizes)} bytes, not {total}: {blamed}")

    def _wanted(self, total: int, split: int) -> list[int]:
        """The sizes of the parts, if they were made in this size; the last is 0 where they can not have been."""
        before = len(self._sizes) - 1
        last = total - split * before
        return [split] * before + [last if not before or 0 < last <= split else 0]

    def copy(self, entries: Sequence[Entry], take: Take) -> None:
        stream, begun = self._parts, self._begun
        start = stream.position - len(begun)
        with self._named(lambda: (start, stream.position)):
            for entry in entries:
                start = stream.position - len(begun)
                _bundle_tar.expect_header(stream, entry.path, entry.size, begun)
                begun = b""
                with take(entry) as sink:
                    if sink is None:
                        stream.skip(entry.size)
                    else:
                        self._read(entry, sink)
                _bundle_tar.expect_padding(stream, entry.path, entry.size)
            start = stream.position - len(begun)
            _bundle_tar.expect_end(stream, start, begun)

    def _read(self, entry: Entry, sink: _bundle_tree.Sink) -> None:
        digest, left = hashlib.sha256(), entry.size
        while left:
            piece = self._parts.read(min(left, _bundle_tree.CHUNK))
            if not piece:
                raise _bundle.damaged(f"the bundle ends in {entry.path!a}", code="bundle.truncated")
            digest.update(piece)
            sink(piece)
            left -= len(piece)
        if digest.hexdigest() != entry.sha256:
            raise _wrong(self.path, entry, (entry.size, digest.hexdigest()))

    @contextlib.contextmanager
    def _named(self, where: Callable[[], tuple[int, int]]) -> Iterator[None]:
        """Say which part is bad, where one is: the others need not be copied again."""
        try:
            yield
        except FleetError as exc:
            if not exc.code.startswith("bundle."):
                raise
            start, end = where()
            blamed = self._blame(_bundle.parts_of_range(start, end, self._split))
            if not blamed:
                raise
            raise FleetError(exc.code, f"{exc.seen.rstrip('.')}; {blamed}", exc.expected, exc.remedy) from exc

    def _blame(self, numbers: range) -> str:
        bad = []
        for path in self._paths[numbers.start : numbers.stop]:
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                if _bundle_tree.hash_file(handle)[1] != self._sums[os.path.basename(path)]:
                    bad.append(os.path.basename(path))
            finally:
                os.close(handle)
        if not bad:
            return ""
        return f"{_bundle_tree.shown(bad)} {'differs' if len(bad) == 1 else 'differ'} from {self._name}.sha256"


# --- unpacking -------------------------------------------------------------------------------------------------------


class _Unpack:
    def __init__(
        self, request: Request, source: _Source, bundle: Bundle, manifest: bytes, signature: bytes | None
    ) -> None:
        self.request, self.source, self.bundle = request, source, bundle
        self.manifest, self.signature = manifest, signature

    def check(self) -> dict[str, Any]:
        """Read everything, keep nothing."""
        self.source.copy(self.bundle.entries, lambda entry: contextlib.nullcontext(lambda piece: None))
        return {"changed": False, "dest": "", "bytes_copied": 0, "diff": {"before": "", "after": ""}}

    def run(self) -> dict[str, Any]:
        dest = os.path.abspath(self.request.dest)
        if dest == self.source.path:
            raise FleetError(
                "bundle.path_in_use",
                f"dest is {dest}, which is the bundle itself",
                "another directory: what is in dest was verified, and is loaded from",
                "choose another dest; on one file system the files are linked, not copied",
            )
        own = {f"{item['directory']}/{_ARTIFACT}" for item in self.bundle.content["models"]}
        with _bundle_tree.Tree(dest, self.request.check_mode) as tree:
            tree.allow(own)
            tree.check_free_of_others(self.bundle.entries)
            old = tree.manifest()
            survey = tree.survey(self.bundle.entries)
            obsolete = set(survey.obsolete) - own
            changed = bool(old != self.manifest or survey.missing or obsolete)
            _bundle_tree.check_space(dest, survey.bytes_missing, len(survey.missing))
            if not self.request.check_mode:
                self._apply(tree, survey, own) if changed else tree.remember()
        return {
            "changed": changed,
            "dest": dest,
            "bytes_copied": survey.bytes_missing,
            "diff": {
                "before_header": dest,
                "after_header": dest,
                "before": {"manifest": hashlib.sha256(old).hexdigest() if old else "", "remove": sorted(obsolete)},
                "after": {
                    "manifest": hashlib.sha256(self.manifest).hexdigest(),
                    "add": [entry.path for entry in survey.missing],
                },
            },
        }

    def _apply(self, tree: _bundle_tree.Tree, survey: _bundle_tree.Survey, own: set[str]) -> None:
        tree.begin(self.bundle.entries)
        missing = set(survey.missing)

        @contextlib.contextmanager
        def take(entry: Entry) -> Iterator[_bundle_tree.Sink | None]:
            if entry not in missing or self._link(tree, entry):
                yield None
                return
            with tree.writing(entry) as sink:
                yield sink

        self.source.copy(self.bundle.entries, take)
        for item in self.bundle.content["models"]:
            tree.write_own(f"{item['directory']}/{_ARTIFACT}", self._artifact(tree, item))
        tree.finish(survey, self.manifest, self.signature, own)

    def _link(self, tree: _bundle_tree.Tree, entry: Entry) -> bool:
        path = self.source.file_of(entry)
        if path is None or os.stat(path).st_dev != os.fstat(tree.root).st_dev:
            return False
        self.source.verify(entry)
        return tree.link(entry, path)

    def _artifact(self, tree: _bundle_tree.Tree, item: dict[str, Any]) -> bytes:
        """What makes the files of a model an artifact: the mirror publishes those."""
        prefix = f"{item['directory']}/"
        found = [entry for entry in self.bundle.entries if entry.path.startswith(prefix)]
        entries = tuple(Entry(entry.path[len(prefix) :], entry.size, entry.sha256) for entry in found)
        stats = {entry.path[len(prefix) :]: _manifest.FileStat(*tree.stat_of(entry.path)) for entry in found}
        manifest = _manifest.Manifest(
            model=item["model"],
            revision=item["revision"],
            commit=item["commit"],
            endpoint="bundle",
            include=(),
            exclude=(),
            left_out=(),
            entries=entries,
            stats=stats,
            published=item["digest"],
        )
        return _manifest.dump(manifest).encode()
