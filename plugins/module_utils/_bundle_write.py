# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Writing a bundle. Order of things: collect and hash, compare with the bundle that is there, check the space
(read-only so far, and the whole of check mode), write beside or in place, and make it a bundle in the last step."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils import (
    _artifact,
    _bundle,
    _bundle_signature,
    _bundle_tar,
    _bundle_tree,
    _safefs,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle import Bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import Entry, path_fault

_TARBALL = re.compile(r"([a-z0-9_]+)-([a-z0-9_]+)-([0-9][0-9A-Za-z.+-]*)\.tar\.gz\Z")


@dataclass(frozen=True)
class Request:
    """What is wanted. ``split`` in bytes, 0 for one file."""

    path: str
    format: str = "directory"
    split: int = 0
    models: Sequence[Mapping[str, Any]] = ()
    images: Sequence[Mapping[str, Any]] = ()
    images_path: str = ""
    wheels: Sequence[Mapping[str, Any]] = ()
    collection: str = ""
    files: Sequence[str] = ()
    signing_key: str = ""
    check_mode: bool = False


@dataclass
class Collected:
    """Every file with the place of its bytes, and what they are."""

    sources: dict[str, tuple[Entry, str]] = field(default_factory=dict)
    content: dict[str, Any] = field(
        default_factory=lambda: {"models": [], "images": [], "wheels": [], "collection": None}
    )

    def add(self, entry: Entry, source: str) -> None:
        known = self.sources.get(entry.path)
        if known is not None and known[0] != entry:
            raise _bad(f"two different files would be {entry.path}: {known[1]} and {source}", "give each its own name")
        self.sources[entry.path] = (entry, source)

    def entries(self) -> tuple[Entry, ...]:
        return tuple(self.sources[path][0] for path in sorted(self.sources))


def _bad(seen: str, remedy: str) -> FleetError:
    return FleetError("bundle.bad_content", seen, "content that can be put into one bundle", remedy)


# --- collecting ------------------------------------------------------------------------------------------------------


def collect(request: Request) -> Collected:
    collected = Collected()
    for model in request.models:
        _add_model(collected, model)
    for image in request.images:
        _add_image(collected, image, request.images_path)
    for wheels in request.wheels:
        _add_wheels(collected, wheels)
    if request.collection:
        _add_collection(collected, request.collection)
    for path in request.files:
        name = os.path.basename(path.rstrip("/"))
        collected.add(_hashed(f"files/{name}", path), path)
    if not collected.sources:
        raise _bad("no models, images, wheels, collection or files were given", "name what the fleet needs")
    content = collected.content
    content["models"].sort(key=lambda item: (item["model"], item["revision"]))
    content["images"].sort(key=lambda item: (item["repository"], item["tag"]))
    content["wheels"].sort(key=lambda item: item["name"])
    return collected


def _add_model(collected: Collected, model: Mapping[str, Any]) -> None:
    name, revision, path = str(model["model"]), str(model.get("revision") or "master"), str(model["path"])
    warnings: list[str] = []
    try:
        root = _safefs.open_directory(path)
    except OSError as exc:
        raise _changed(name, f"{path} cannot be opened: {exc.strerror}") from exc
    try:
        manifest = _artifact.read_manifest(root, path, warnings)
        if manifest is None or manifest.model != name:
            raise _changed(name, f"{path} is not an artifact of {name} that modelscope_model has published")
        for entry in manifest.entries:
            state = _safefs.lstat(root, entry.path)
            known = manifest.stats[entry.path]
            if state is None or (state.st_size, state.st_mtime_ns) != (known.size, known.mtime_ns):
                raise _changed(name, f"{path}/{entry.path} is not as it was when it was verified")
    finally:
        os.close(root)
    commit = manifest.commit or manifest.digest[:40]
    directory = f"models/{name}/{commit}"
    for entry in manifest.entries:
        collected.add(Entry(f"{directory}/{entry.path}", entry.size, entry.sha256), f"{path}/{entry.path}")
    item = {
        "model": name,
        "revision": revision,
        "commit": commit,
        "directory": directory,
        "digest": manifest.digest,
        "files": len(manifest.entries),
        "bytes": manifest.bytes_total,
    }
    if item not in collected.content["models"]:
        collected.content["models"].append(item)


def _changed(model: str, seen: str) -> FleetError:
    return FleetError(
        "bundle.model_changed",
        seen,
        f"the verified files of {model}",
        "fetch it with gpufleet.vllm.modelscope_model, state verified, then run this again",
    )


def _add_image(collected: Collected, image: Mapping[str, Any], store: str) -> None:
    for digest in [image["digest"], *image.get("blobs", [])]:
        path = _bundle.blob_path(str(digest))
        source = os.path.join(store, "sha256", str(digest).partition(":")[2])
        try:
            size = os.stat(source, follow_symlinks=False).st_size
        except OSError as exc:
            raise _bad(
                f"{source} of the image {image['image']} cannot be read: {exc.strerror}", "fetch the images again"
            ) from exc
        collected.add(Entry(path, size, str(digest).partition(":")[2]), source)
    item = {key: str(image[key]) for key in ("image", "repository", "tag", "digest")}
    if item not in collected.content["images"]:
        collected.content["images"].append(item)


def _add_wheels(collected: Collected, wheels: Mapping[str, Any]) -> None:
    name, path = str(wheels["name"]), str(wheels["path"])
    files = sorted(item.name for item in os.scandir(path) if item.is_file(follow_symlinks=False))
    files = [file for file in files if not file.startswith(".")]
    if path_fault(name) or "/" in name or not files:
        raise _bad(f"the wheels {name!r} in {path}, which holds {len(files)} files", "correct their name or directory")
    for file in files:
        source = os.path.join(path, file)
        collected.add(_hashed(f"wheels/{name}/{file}", source), source)
    collected.content["wheels"].append({"name": name, "directory": f"wheels/{name}", "files": len(files)})


def _add_collection(collected: Collected, path: str) -> None:
    match = _TARBALL.match(os.path.basename(path))
    if match is None:
        raise _bad(f"{path} is not named as a collection's tarball is", "make it with ansible-galaxy collection build")
    place = f"collection/{match[0]}"
    collected.add(_hashed(place, path), path)
    collected.content["collection"] = {"name": f"{match[1]}.{match[2]}", "version": match[3], "path": place}


def _hashed(place: str, source: str) -> Entry:
    handle = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise _bad(f"{source} is no regular file", "name files; pack a directory into one")
        return Entry(place, *_bundle_tree.hash_file(handle))
    finally:
        os.close(handle)


# --- writing ---------------------------------------------------------------------------------------------------------


def write(request: Request) -> dict[str, Any]:
    """Have the bundle at ``request.path``. Raises FleetError or OSError."""
    collected = collect(request)
    bundle = Bundle(time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), collected.content, collected.entries())
    _bundle.load(_bundle.dump(bundle))  # what the other side would refuse is refused here
    writer = _Directory(request) if request.format == "directory" else _Tar(request)
    return writer.run(bundle, collected)


def _summary(bundle: Bundle | None) -> dict[str, Any]:
    """What a diff shows."""
    if bundle is None:
        return {}
    collection = bundle.content["collection"]
    return {
        "models": {f"{item['model']}@{item['revision']}": item["commit"] for item in bundle.content["models"]},
        "images": {item["image"]: item["digest"] for item in bundle.content["images"]},
        "wheels": {item["name"]: item["files"] for item in bundle.content["wheels"]},
        "collection": f"{collection['name']} {collection['version']}" if collection else None,
        "files": len(bundle.entries),
        "bytes": bundle.bytes_total,
    }


class _Writer:
    def __init__(self, request: Request) -> None:
        self.request = request
        self.path = _bundle.stem_of(os.path.abspath(request.path))

    def run(self, bundle: Bundle, collected: Collected) -> dict[str, Any]:
        raise NotImplementedError

    def same_signature(self, manifest: bytes, signature: bytes | None) -> bool:
        key = self.request.signing_key
        if not key:
            return signature is None
        return signature is not None and _bundle_signature.made_by(manifest, signature, key)

    def signature(self, manifest: bytes) -> bytes | None:
        return _bundle_signature.sign(manifest, self.request.signing_key) if self.request.signing_key else None

    def result(
        self, bundle: Bundle, before: Bundle | None, changed: bool, written: int, parts: list[str]
    ) -> dict[str, Any]:
        return {
            "changed": changed,
            "path": self.path,
            "format": self.request.format,
            "parts": parts,
            "content": dict(bundle.content),
            "bytes_total": bundle.bytes_total,
            "bytes_written": written,
            "files": len(bundle.entries),
            "signed": bool(self.request.signing_key),
            "diff": {
                "before_header": self.path,
                "after_header": self.path,
                "before": _summary(before),
                "after": {**_summary(bundle), "written": f"{written} bytes"} if changed else _summary(bundle),
            },
        }


def _loaded(manifest: bytes | None) -> Bundle | None:
    """The bundle that is there; None where it cannot be used, for it is replaced then."""
    if manifest is None:
        return None
    try:
        return _bundle.load(manifest)
    except FleetError:
        return None


class _Directory(_Writer):
    def run(self, bundle: Bundle, collected: Collected) -> dict[str, Any]:
        with _bundle_tree.Tree(self.path, self.request.check_mode) as tree:
            tree.check_free_of_others(bundle.entries)
            old, signature = tree.manifest(), tree.signature()
            before = _loaded(old)
            survey = tree.survey(bundle.entries)
            same = before is not None and before.same_as(bundle) and not survey.missing and not survey.obsolete
            if same and old is not None and self.same_signature(old, signature):
                return self.result(bundle, before, False, 0, [])
            if same and before is not None:
                bundle = before
            # Where the files can be linked, this asks for more than it takes; better than to run out half-way.
            if not self._can_link(tree, survey, collected):
                _bundle_tree.check_space(self.path, survey.bytes_missing, len(survey.missing))
            if not self.request.check_mode:
                self._write(tree, survey, bundle, collected)
            return self.result(bundle, before, True, survey.bytes_missing, [])

    def _can_link(self, tree: _bundle_tree.Tree, survey: _bundle_tree.Survey, collected: Collected) -> bool:
        if not tree.exists:
            return False
        device = os.fstat(tree.root).st_dev
        return all(os.stat(collected.sources[entry.path][1]).st_dev == device for entry in survey.missing)

    def _write(
        self, tree: _bundle_tree.Tree, survey: _bundle_tree.Survey, bundle: Bundle, collected: Collected
    ) -> None:
        manifest = _bundle.dump(bundle)
        signature = self.signature(manifest)
        tree.begin(bundle.entries)
        for entry in survey.missing:
            source = collected.sources[entry.path][1]
            # The user may write to a file of his own; what we keep is only ever replaced.
            ours = not entry.path.startswith(("files/", "collection/"))
            if not (ours and tree.link(entry, source)):
                with tree.writing(entry) as sink:
                    _copy(entry, source, sink)
        tree.finish(survey, manifest, signature)


def _copy(entry: Entry, source: str, sink: _bundle_tree.Sink) -> None:
    """Copy a file that is still what it was when it was collected."""
    handle = os.open(source, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        found = _bundle_tree.hash_file(handle, sink)
    finally:
        os.close(handle)
    if found != (entry.size, entry.sha256):
        raise FleetError(
            "bundle.source_changed",
            f"{source} has {found[0]} bytes and SHA-256 {found[1]}",
            f"{entry.size} bytes with SHA-256 {entry.sha256}",
            "something writes to it, or its disk is failing: fetch it anew (models: state verified), then run again",
        )


class _Tar(_Writer):
    def run(self, bundle: Bundle, collected: Collected) -> dict[str, Any]:
        self.directory, self.stem = os.path.split(self.path)
        self.partial = os.path.join(self.directory, f".{self.stem}.partial")
        before, same = self._existing(bundle)
        if same and before is not None:
            return self.result(bundle, before, False, 0, self._present())
        manifest = _bundle.dump(bundle)
        signature = self._foreseen(manifest)
        layout = _bundle_tar.layout(_bundle_tar.files_of(manifest, signature, bundle.entries))
        _bundle.check_split(self.request.split, layout.total)
        count = _bundle.part_count(layout.total, self.request.split)
        names = _bundle.part_names(self.stem, count, self.request.split)
        _bundle_tree.check_space(self.directory, layout.total - self._left_by_a_killed_run(), count)
        if not self.request.check_mode:
            self._write(bundle, collected, manifest, signature, names)
        parts = [os.path.join(self.directory, name) for name in names]
        return self.result(bundle, before, True, layout.total, parts)

    def _foreseen(self, manifest: bytes) -> bytes | None:
        # Signing changes nothing, so check mode signs too: the sizes are exact, and a bad key is found now.
        return self.signature(manifest)

    def _left_by_a_killed_run(self) -> int:
        with contextlib.suppress(FileNotFoundError):
            return sum(item.stat().st_size for item in os.scandir(self.partial))
        return 0

    def _present(self) -> list[str]:
        """The parts that the sums name, where all of them are there."""
        try:
            with open(f"{self.path}.sha256", encoding="utf-8", errors="replace") as stream:
                sums = _bundle.load_sums(stream.read(), self.stem)
        except (FileNotFoundError, FleetError):
            return []
        paths = [os.path.join(self.directory, name) for name in sums]
        return paths if all(os.path.isfile(path) for path in paths) else []

    def _existing(self, wanted: Bundle) -> tuple[Bundle | None, bool]:
        """The bundle that is there, and whether it is as it should be. Its content is not hashed."""
        paths = self._present()
        if not paths:
            return None, False
        sizes = [os.stat(path).st_size for path in paths]
        parts = _bundle_tar.Parts(paths, sizes)
        try:
            manifest, signature, _begun = _bundle_tar.read_head(parts)
            before = _bundle.load(manifest)
        except FleetError:
            return None, False
        finally:
            parts.close()
        total = _bundle_tar.layout(_bundle_tar.files_of(manifest, signature, before.entries)).total
        split = self.request.split
        names = _bundle.part_names(self.stem, _bundle.part_count(total, split), split)
        fits = names == [os.path.basename(path) for path in paths] and sum(sizes) == total
        fits = fits and (split <= 0 or all(size == split for size in sizes[:-1]))
        return before, fits and before.same_as(wanted) and self.same_signature(manifest, signature)

    def _write(
        self, bundle: Bundle, collected: Collected, manifest: bytes, signature: bytes | None, names: list[str]
    ) -> None:
        os.makedirs(self.directory, 0o755, exist_ok=True)
        held = _bundle_tree.lock(f"{self.path}.lock", self.path)
        try:
            shutil.rmtree(self.partial, ignore_errors=True)
            os.mkdir(self.partial, 0o755)
            try:
                sums = self._write_parts(bundle, collected, manifest, signature, names)
                self._publish(sums)
            finally:
                shutil.rmtree(self.partial, ignore_errors=True)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(f"{self.path}.lock")
            os.close(held)

    def _write_parts(
        self, bundle: Bundle, collected: Collected, manifest: bytes, signature: bytes | None, names: list[str]
    ) -> list[tuple[str, str]]:
        with _split(self.partial, names, self.request.split) as out:
            head = [(_bundle.MANIFEST, manifest)] + ([(_bundle.SIGNATURE, signature)] if signature is not None else [])
            for name, content in head:
                out.write(_bundle_tar.header(name, len(content)) + content + b"\0" * _bundle_tar.padding(len(content)))
            for entry in bundle.entries:
                out.write(_bundle_tar.header(entry.path, entry.size))
                _copy(entry, collected.sources[entry.path][1], out.write)
                out.write(b"\0" * _bundle_tar.padding(entry.size))
            out.write(_bundle_tar.trailer(out.position))
        return list(zip(names, out.sums))

    def _publish(self, sums: list[tuple[str, str]]) -> None:
        """The sums go first and come last: without them there is no bundle."""
        obsolete = set(self._present())
        with contextlib.suppress(FileNotFoundError):
            os.unlink(f"{self.path}.sha256")
        for name, _digest in sums:
            target = os.path.join(self.directory, name)
            os.rename(os.path.join(self.partial, name), target)
            obsolete.discard(target)
        for path in obsolete:
            os.unlink(path)
        handle = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            _safefs.sync_directory(handle)
            _safefs.write_file(handle, f"{self.stem}.sha256", _bundle.dump_sums(sums).encode())
        finally:
            os.close(handle)


class _Out:
    """A stream that goes on in the next part where one is full."""

    def __init__(self, directory: str, names: Sequence[str], split: int) -> None:
        self._directory, self._names, self._split = directory, list(names), split
        self._handle: int | None = None
        self._digest = hashlib.sha256()
        self._room = 0
        self.position = 0
        self.sums: list[str] = []

    def write(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            if self._handle is None or (self._split > 0 and not self._room):
                self._next()
            piece = view[: self._room] if self._split > 0 else view
            count = os.write(self._handle or 0, piece)
            self._digest.update(piece[:count])
            self._room -= count
            self.position += count
            view = view[count:]

    def _next(self) -> None:
        self.end()
        path = os.path.join(self._directory, self._names[len(self.sums)])
        self._handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._digest = hashlib.sha256()
        self._room = self._split

    def end(self) -> None:
        if self._handle is not None:
            os.fsync(self._handle)
            os.close(self._handle)
            self._handle = None
            self.sums.append(self._digest.hexdigest())


@contextlib.contextmanager
def _split(directory: str, names: Sequence[str], split: int) -> Iterator[_Out]:
    out = _Out(directory, names, split)
    try:
        yield out
    finally:
        out.end()
