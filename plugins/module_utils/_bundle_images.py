# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Container images between registries and a directory of blobs, by ``skopeo``, with the digests that they have.

``PATH/sha256/HEX`` holds every layer, configuration and manifest of all images once, byte for byte as the registry has
it. skopeo's OCI directories share blobs but rewrite Docker's manifests, and its plain directories do the reverse; so
the layers come through the one, manifests and configurations as they are, and everything leaves through the other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
import typing as t
from collections.abc import Iterator
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils import _bundle_tree
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image import split_reference
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import NOT_FOUND, CommandResult, run_command

INDEXES = (
    "application/vnd.oci.image.index.v1+json",
    "application/vnd.docker.distribution.manifest.list.v2+json",
)
MANIFESTS = (
    "application/vnd.oci.image.manifest.v1+json",
    "application/vnd.docker.distribution.manifest.v2+json",
)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})\Z")
_REPOSITORY = re.compile(r"[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*\Z")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}\Z")
_MANIFEST_BYTES_MAX = 16 * 1024 * 1024
_ABSENT = re.compile(r"manifest unknown|name unknown|not found|NAME_UNKNOWN|MANIFEST_UNKNOWN", re.IGNORECASE)
_SCRATCH = ".skopeo-"
MARKER = ".gpufleet-images"
"""Tells that a directory is ours: what no image needs is removed from it."""
_DIRECTORY_VERSION = "Directory Transport Version: 1.1\n"


@dataclass(frozen=True)
class Options:
    """``timeout`` in seconds, for one image."""

    images: t.Sequence[t.Any]
    path: str
    state: str = "stored"
    exclusive: bool = True
    registry: str = ""
    platforms: t.Sequence[str] = ()
    tls_verify: bool = True
    cert_dir: str = ""
    authfile: str = ""
    timeout: int = 7200
    check_mode: bool = False


@dataclass(frozen=True)
class Wanted:
    """One image: where it comes from, and its name in a registry of the inside."""

    image: str
    repository: str
    tag: str
    digest: str = ""


# --- names -----------------------------------------------------------------------------------------------------------


def _bad_name(seen: str, expected: str) -> FleetError:
    return FleetError("image.bad_name", seen, expected, "correct the image's name")


def origin(image: str) -> tuple[str, str, str, str]:
    """Registry, repository, tag and digest of an image as Docker understands its name; tag or digest may be empty."""
    name, tag, digest = split_reference(image)
    head, slash, rest = name.partition("/")
    if slash and ("." in head or ":" in head or head == "localhost"):
        registry, repository = head, rest
    else:
        registry, repository = "docker.io", name if slash else f"library/{name}"
    if not _REPOSITORY.match(repository) or (tag and not _TAG.match(tag)) or (digest and not _DIGEST.match(digest)):
        raise _bad_name(f"the image {image!a}", "[REGISTRY/]NAME[:TAG][@sha256:DIGEST]")
    return registry, repository, tag if tag or digest else "latest", digest


def wanted(item: t.Any) -> Wanted:
    """What an element of ``images`` means: a name, or a dict with the ``repository`` and ``tag`` to give it inside."""
    item = {"image": item} if isinstance(item, str) else dict(item)
    image = str(item.get("image") or "")
    _registry, repository, tag, digest = origin(image)
    repository = str(item.get("repository") or repository.removeprefix("library/"))
    # A registry forgets what has no tag, so an image that is known by its digest alone gets one.
    tag = str(item.get("tag") or tag or f"sha256-{digest.partition(':')[2][:12]}")
    if not _REPOSITORY.match(repository) or not _TAG.match(tag):
        raise _bad_name(f"{image} would be {repository!a}:{tag!a}", "a repository in lower case, and a tag")
    return Wanted(image, repository, tag, str(item.get("digest") or digest))


def check_distinct(images: t.Sequence[Wanted]) -> None:
    names: dict[tuple[str, str], str] = {}
    for item in images:
        other = names.setdefault((item.repository, item.tag), item.image)
        if other != item.image:
            raise _bad_name(
                f"{other} and {item.image} would both be {item.repository}:{item.tag}",
                "a name of its own for each: {image: ..., repository: ..., tag: ...}",
            )


# --- manifests -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Manifest:
    """What one manifest refers to; of an index the other manifests, else configuration and layers. By digest, size."""

    digest: str
    is_index: bool
    manifests: tuple[tuple[str, str], ...] = ()
    """Digest and platform (``linux/amd64``) of each; other things that an index lists have none."""
    config: str = ""
    layers: tuple[tuple[str, int], ...] = ()


def parse(raw: bytes, image: str) -> Manifest:
    """Read a manifest that a registry or a bundle has."""
    digest = f"sha256:{hashlib.sha256(raw).hexdigest()}"
    try:
        document = json.loads(raw.decode())
        kind = document.get("mediaType") or (INDEXES[0] if "manifests" in document else MANIFESTS[0])
        if kind in INDEXES:
            items = document["manifests"]
            return Manifest(digest, True, tuple((_digest(item["digest"]), _platform(item)) for item in items))
        if kind in MANIFESTS:
            layers = tuple((_digest(item["digest"]), int(item["size"])) for item in document["layers"])
            return Manifest(digest, False, (), _digest(document["config"]["digest"]), layers)
    except (AttributeError, KeyError, TypeError, ValueError) as exc:
        raise _strange(image, f"a manifest that is not well formed ({exc})") from exc
    raise _strange(image, f"a manifest of the type {kind!a}")


def _digest(value: t.Any) -> str:
    if not isinstance(value, str) or not _DIGEST.match(value):
        raise ValueError(f"bad digest {value!a}")
    return value


def _platform(item: t.Mapping[str, t.Any]) -> str:
    given = item.get("platform") or {}
    return "/".join(str(given[key]) for key in ("os", "architecture", "variant") if given.get(key))


def _strange(image: str, seen: str) -> FleetError:
    return FleetError(
        "image.unsupported",
        f"{image} has {seen}",
        "a manifest of OCI or of Docker's schema 2",
        "use an image that was built in the last years, or convert it with skopeo copy --format oci",
    )


# --- work ------------------------------------------------------------------------------------------------------------


@dataclass
class Stored:
    """An image and every blob that it consists of."""

    item: Wanted
    digest: str
    action: str = "unchanged"
    blobs: list[str] = field(default_factory=list)
    bytes_missing: int = 0

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "image": self.item.image,
            "repository": self.item.repository,
            "tag": self.item.tag,
            "digest": self.digest,
            "action": self.action,
            "blobs": sorted(self.blobs),
            "bytes_missing": self.bytes_missing,
        }


Run = t.Callable[[t.Sequence[str], float], CommandResult]


class Images:
    """The images of ``options``, in a directory or a registry. Raises FleetError or OSError."""

    def __init__(self, options: Options, run: Run = run_command) -> None:
        self.options = options
        self._execute = run
        self.items = [wanted(item) for item in options.images]
        check_distinct(self.items)

    def run(self) -> dict[str, t.Any]:
        done = self._store() if self.options.state == "stored" else [self._push(item) for item in self.items]
        label = self.options.path if self.options.state == "stored" else self.options.registry
        return {
            "changed": any(stored.action != "unchanged" for stored in done),
            "images": [stored.as_dict() for stored in done],
            "diff": {
                "before_header": label,
                "after_header": label,
                "before": {s.item.image: s.digest for s in done if s.action == "unchanged"},
                "after": {s.item.image: s.digest for s in done},
            },
        }

    # --- into the directory ---

    def _store(self) -> list[Stored]:
        _bundle_tree.check_own(self.options.path, MARKER, "image.path_in_use")
        if self.options.check_mode:
            return [self._fetch(item) for item in self.items]
        os.makedirs(self.options.path, 0o755, exist_ok=True)
        # First of all, so that a run that is killed leaves a directory that the next one knows.
        with open(os.path.join(self.options.path, MARKER), "a", encoding="utf-8"):
            pass
        os.makedirs(os.path.join(self.options.path, "sha256"), 0o755, exist_ok=True)
        handle = _bundle_tree.lock(os.path.join(self.options.path, ".lock"), self.options.path)
        try:
            for name in os.listdir(self.options.path):
                if name.startswith(_SCRATCH):  # of a run that was killed
                    shutil.rmtree(os.path.join(self.options.path, name), ignore_errors=True)
            done = [self._fetch(item) for item in self.items]
            if self.options.exclusive:
                self._prune(done)
        finally:
            os.close(handle)
        return done

    def _fetch(self, item: Wanted) -> Stored:
        registry, repository, tag, digest = origin(item.image)
        name = f"{registry}/{repository}"
        top = self._choose(name, self._raw(f"{name}@{digest}" if digest else f"{name}:{tag}", item.image), item.image)
        stored = Stored(item, top.digest, blobs=[top.digest])
        children = [top] if not top.is_index else []
        for listed, _platform in top.manifests:
            raw = self._raw(f"{name}@{listed}", item.image)
            children.append(self._save(raw, item.image))
            stored.blobs.append(listed)
        missing: dict[str, int] = {}
        for child in children:
            stored.blobs += self._parts_of(child)
            missing.update({layer: size for layer, size in child.layers if not self._has(layer, size)})
        stored.bytes_missing = sum(missing.values())
        incomplete = [child for child in children if not all(map(self._has, self._parts_of(child)))]
        if incomplete:
            stored.action = "stored"
            if not self.options.check_mode:
                _bundle_tree.check_space(self.options.path, stored.bytes_missing, len(missing), "image.no_space")
                for child in incomplete:
                    self._copy_layers(name, child, item.image)
        return stored

    def _parts_of(self, manifest: Manifest) -> list[str]:
        return [manifest.config, *(layer for layer, _size in manifest.layers)]

    def _choose(self, name: str, raw: bytes, image: str) -> Manifest:
        """The manifest, or where platforms were chosen the one of an index that is for the only one."""
        found = parse(raw, image)
        if not found.is_index or not self.options.platforms:
            return self._save(raw, image)
        chosen = [digest for digest, platform in found.manifests if platform in self.options.platforms]
        if len(chosen) != 1:
            have = ", ".join(sorted({platform for _digest, platform in found.manifests})) or "none"
            raise FleetError(
                "image.platform",
                f"{image} is there for {have}",
                f"exactly one image for {', '.join(self.options.platforms)}",
                "name a platform that it has, or none to take all",
            )
        return self._save(self._raw(f"{name}@{chosen[0]}", image), image)

    def _raw(self, reference: str, image: str) -> bytes:
        done = self._skopeo(["inspect", "--raw", *self._access(), f"docker://{reference}"], image, 300.0)
        raw = done.out.encode()
        digest = reference.partition("@")[2]
        if digest and f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
            raise self._altered(image, digest)
        return raw

    def _altered(self, image: str, digest: str) -> FleetError:
        return FleetError(
            "image.altered",
            f"the registry of {image} answered other bytes than those of {digest}",
            "the content that a digest stands for",
            "find out what is between here and the registry, and do not use it",
        )

    def _save(self, raw: bytes, image: str) -> Manifest:
        manifest = parse(raw, image)
        if not self.options.check_mode and not self._has(manifest.digest):
            self._write(manifest.digest, raw)
        return manifest

    def _copy_layers(self, name: str, manifest: Manifest, image: str) -> None:
        """The layers that are missing, and the configuration: skopeo's copy of it may be another one."""
        with self._scratch() as scratch:
            argv = ["copy", "--quiet", "--retry-times", "3", "--remove-signatures", *self._access("src-")]
            argv += ["--dest-oci-accept-uncompressed-layers", "--dest-shared-blob-dir", self.options.path]
            argv += [f"docker://{name}@{manifest.digest}", f"oci:{scratch}:image"]
            self._skopeo(argv, image, self.options.timeout)
        if not self._has(manifest.config):
            argv = ["inspect", "--config", "--raw", *self._access(), f"docker://{name}@{manifest.digest}"]
            raw = self._skopeo(argv, image, 300.0).out.encode()
            if f"sha256:{hashlib.sha256(raw).hexdigest()}" != manifest.config:
                raise self._altered(image, manifest.config)
            self._write(manifest.config, raw)
        missing = [digest for digest in self._parts_of(manifest) if not self._has(digest)]
        if missing:
            raise _strange(image, f"layers that skopeo did not bring ({', '.join(missing)})")

    def _blob(self, digest: str) -> str:
        return os.path.join(self.options.path, "sha256", digest.partition(":")[2])

    def _has(self, digest: str, size: int | None = None) -> bool:
        """Whether the blob is here. One of another size is not, and must not be taken for it by skopeo."""
        path = self._blob(digest)
        if not os.path.isfile(path):
            return False
        if size is None or os.path.getsize(path) == size:
            return True
        if not self.options.check_mode:
            os.unlink(path)
        return False

    def _write(self, digest: str, raw: bytes) -> None:
        path = self._blob(digest)
        with open(f"{path}.new", "wb") as stream:
            stream.write(raw)
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(f"{path}.new", path)

    def _prune(self, done: t.Sequence[Stored]) -> None:
        """What no image needs: older ones, and skopeo's own manifests."""
        wanted = {digest.partition(":")[2] for stored in done for digest in stored.blobs}
        directory = os.path.join(self.options.path, "sha256")
        for name in os.listdir(directory):
            if name not in wanted:
                os.unlink(os.path.join(directory, name))
            else:
                os.chmod(os.path.join(directory, name), 0o644)

    # --- into a registry ---

    def _push(self, item: Wanted) -> Stored:
        if not item.digest:
            raise _bad_name(f"{item.image} comes without its digest", "the digest that the bundle tells")
        name = f"{self.options.registry}/{item.repository}"
        stored = Stored(item, item.digest)
        if self._in_registry(f"{name}:{item.tag}", item.digest, item.image):
            return stored
        stored.action = "pushed"
        if self.options.check_mode:
            return stored
        with self._scratch() as scratch:
            self._lay_out(item, scratch)
            argv = ["copy", "--quiet", "--all", "--preserve-digests", "--retry-times", "3", *self._access("dest-")]
            self._skopeo([*argv, f"dir:{scratch}", f"docker://{name}:{item.tag}"], item.image, self.options.timeout)
        if not self._in_registry(f"{name}:{item.tag}", item.digest, item.image):
            raise FleetError(
                "image.digest_changed",
                f"{name}:{item.tag} is not {item.digest} after it was pushed",
                "a registry that keeps what it is given",
                "see what it is; another process may have pushed the same tag",
            )
        return stored

    def _in_registry(self, reference: str, digest: str, image: str) -> bool:
        """Whether a tag has this digest there. Its layers are there too, or the registry had refused it."""
        argv = ["inspect", "--raw", *self._access(), f"docker://{reference}"]
        done = self._run(argv, 300.0)
        if done.rc == 0:
            return f"sha256:{hashlib.sha256(done.out.encode()).hexdigest()}" == digest
        if _ABSENT.search(done.err):
            return False
        raise self._failure(done, image)

    def _lay_out(self, item: Wanted, scratch: str) -> None:
        """The image as skopeo's plain directory, with links to the blobs."""
        with open(os.path.join(scratch, "version"), "w", encoding="utf-8") as stream:
            stream.write(_DIRECTORY_VERSION)
        top = parse(self._read(item.digest, item.image), item.image)
        os.symlink(self._blob(item.digest), os.path.join(scratch, "manifest.json"))
        children = [] if top.is_index else [top]
        for child, _platform in top.manifests:
            children.append(parse(self._read(child, item.image), item.image))
            os.symlink(self._blob(child), os.path.join(scratch, f"{child.partition(':')[2]}.manifest.json"))
        for digest in {digest for child in children for digest in self._parts_of(child)}:
            if not self._has(digest):
                raise self._lacking(item.image, digest)
            os.symlink(self._blob(digest), os.path.join(scratch, digest.partition(":")[2]))

    def _read(self, digest: str, image: str) -> bytes:
        try:
            with open(self._blob(digest), "rb") as stream:
                raw = stream.read(_MANIFEST_BYTES_MAX)
        except FileNotFoundError:
            raise self._lacking(image, digest) from None
        if f"sha256:{hashlib.sha256(raw).hexdigest()}" != digest:
            raise self._altered(image, digest)
        return raw

    def _lacking(self, image: str, digest: str) -> FleetError:
        return FleetError(
            "image.incomplete",
            f"{self.options.path} has no {digest}, which {image} consists of",
            "every manifest, configuration and layer of the image",
            "load the bundle again",
        )

    # --- skopeo ---

    def _access(self, side: str = "") -> list[str]:
        """How to reach the registry. A password is in the file: a command line is everybody's to read."""
        options = [] if self.options.tls_verify else [f"--{side}tls-verify=false"]
        options += [f"--{side}cert-dir={self.options.cert_dir}"] if self.options.cert_dir else []
        return options + ([f"--{side}authfile={self.options.authfile}"] if self.options.authfile else [])

    def _run(self, argv: t.Sequence[str], timeout: float) -> CommandResult:
        done = self._execute(["skopeo", *argv], timeout)
        if done.rc == NOT_FOUND:
            raise FleetError(
                "image.no_skopeo", done.last_words, "skopeo 1.6 or newer", "install the package skopeo, then run again"
            )
        return done

    def _skopeo(self, argv: t.Sequence[str], image: str, timeout: float) -> CommandResult:
        done = self._run(argv, timeout)
        if done.rc != 0:
            raise self._failure(done, image)
        return done

    def _failure(self, done: CommandResult, image: str) -> FleetError:
        words = re.sub(r'^time="[^"]*" level=\w+ msg=', "", done.last_words)[:600]
        code, remedy = "image.failed", "see what skopeo says; run it again when the registry answers"
        if done.timed_out:
            code, remedy = "image.timeout", "raise timeout; the layers that arrived are kept"
        elif "HTTP response to HTTPS client" in words or "x509" in words or "certificate" in words:
            code = "image.tls"
            remedy = (
                "give the directory with its certificate (cert_dir), or set tls_verify: false if the way is trusted"
            )
        elif re.search(r"unauthorized|authentication required|denied", words, re.IGNORECASE):
            code, remedy = "image.unauthorized", "name a file that skopeo login wrote (authfile)"
        elif _ABSENT.search(words):
            code, remedy = "image.not_found", "correct the image's name, tag or digest"
        return FleetError(code, f"{image}: {words}", "the image, complete", remedy)

    @contextlib.contextmanager
    def _scratch(self) -> Iterator[str]:
        directory = tempfile.mkdtemp(prefix=_SCRATCH, dir=self.options.path)
        try:
            yield directory
        finally:
            shutil.rmtree(directory, ignore_errors=True)
