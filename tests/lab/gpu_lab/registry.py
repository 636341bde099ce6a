# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""One image registry for all labs: Debian's ``docker-registry``, at an address that is the same in every lab.

An image is pushed from the tar of its root file system, as one layer that is not compressed: nothing is imported into
an engine first, and a host that pulls it spends its time on writing files.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import platform
import typing as t
from collections.abc import Mapping, Sequence
from pathlib import Path

from ._base import Daemon, LabError, cache_root, locked, need, runtime_root, timed
from .engine import MACHINE

PORT = 5000
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
BLOCK = 1 << 20


def registry_address() -> str:
    return f"{MACHINE}:{PORT}"


class Registry:
    """The registry of this cache directory. It needs the engine's link to the hosts, so that must be up."""

    def __init__(self) -> None:
        self.storage = cache_root() / "registry"
        self.daemon = Daemon("registry", str(runtime_root() / "registry.yml"))

    def start(self) -> None:
        need({"docker-registry": "docker-registry"})
        self.storage.mkdir(parents=True, exist_ok=True)
        settings = {
            "version": 0.1,
            "log": {"level": "warn", "accesslog": {"disabled": True}},
            "storage": {"filesystem": {"rootdirectory": str(self.storage)}, "delete": {"enabled": True}},
            "http": {"addr": registry_address()},
        }
        path = runtime_root() / "registry.yml"
        path.write_text(json.dumps(settings))
        with locked(self.storage.with_name("registry.lock")):
            self.daemon.start(["docker-registry", "serve", path], self.answers)

    def stop(self) -> None:
        self.daemon.stop()

    def answers(self) -> bool:
        try:
            return self._ask("GET", "/v2/")[0] == 200
        except OSError:
            return False

    def digest(self, ref: str) -> str | None:
        """The digest that a name and tag have, for ``NAME@DIGEST``; None where the registry does not have it."""
        name, tag = split(ref)
        status, headers, _body = self._ask("HEAD", f"/v2/{name}/manifests/{tag}", headers={"Accept": MANIFEST})
        return headers["docker-content-digest"] if status == 200 else None

    def push(self, layers: Path | Sequence[Path], ref: str, config: Mapping[str, t.Any] | None = None) -> str:
        """Have an image in the registry, made of tars of files; returns its digest. Repeating it sends nothing."""
        layers = [layers] if isinstance(layers, Path) else list(layers)
        name, tag = split(ref)
        record = self.storage / "pushed.json"
        with locked(self.storage.with_name("push.lock")):
            pushed: dict[str, t.Any] = json.loads(record.read_text()) if record.exists() else {}
            stats = [(layer, layer.stat()) for layer in layers]
            key = [[[str(layer.resolve()), stat.st_size, stat.st_mtime_ns] for layer, stat in stats], config]
            here = self.digest(ref)
            if here and pushed.get(ref) == [key, here]:
                return here
            with timed(f"pushed {ref} ({sum(stat.st_size for _layer, stat in stats) >> 20} MiB)"):
                digest = self._send(name, tag, layers, config or {})
            pushed[ref] = [key, digest]
            record.write_text(json.dumps(pushed, indent=1))
            return digest

    def _send(self, name: str, tag: str, files: Sequence[Path], config: Mapping[str, t.Any]) -> str:
        layers = [{"mediaType": LAYER, "digest": _digest(file), "size": file.stat().st_size} for file in files]
        document = json.dumps(
            {
                "architecture": ARCHITECTURES.get(platform.machine(), platform.machine()),
                "os": "linux",
                "created": "2026-01-01T00:00:00Z",
                "config": config,
                "rootfs": {"type": "layers", "diff_ids": [layer["digest"] for layer in layers]},
                "history": [{"created": "2026-01-01T00:00:00Z", "created_by": "gpu_lab"}] * len(layers),
            }
        ).encode()
        about = {"mediaType": CONFIG, "digest": _digest(document), "size": len(document)}
        for file, layer in zip(files, layers, strict=True):
            self._blob(name, t.cast("str", layer["digest"]), file)
        self._blob(name, t.cast("str", about["digest"]), document)
        manifest = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": about, "layers": layers}).encode()
        self._must("PUT", f"/v2/{name}/manifests/{tag}", manifest, {"Content-Type": MANIFEST})
        return _digest(manifest)

    def _blob(self, name: str, digest: str, content: bytes | Path) -> None:
        if self._ask("HEAD", f"/v2/{name}/blobs/{digest}")[0] == 200:
            return
        where = self._must("POST", f"/v2/{name}/blobs/uploads/")["location"].partition(registry_address())[2]
        target = f"{where}{'&' if '?' in where else '?'}digest={digest}"
        self._must("PUT", target, content, {"Content-Type": "application/octet-stream"})

    def _must(
        self, method: str, path: str, body: bytes | Path | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, str]:
        status, answered, text = self._ask(method, path, body, headers)
        if not 200 <= status < 300:
            raise LabError(
                f"the registry answered {status} to {method} {path}: {text[:500]!r}",
                "a status of 2xx",
                f"see {self.daemon.log}, and whether the disk is full",
            )
        return answered

    def _ask(
        self, method: str, path: str, body: bytes | Path | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(MACHINE, PORT, timeout=120, blocksize=BLOCK)
        try:
            if isinstance(body, Path):
                with body.open("rb") as stream:
                    length = {"Content-Length": str(body.stat().st_size)}
                    connection.request(method, path, stream, {**(headers or {}), **length})
            else:
                connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()


def split(ref: str) -> tuple[str, str]:
    name, colon, tag = ref.rpartition(":")
    if not colon or "/" in tag or not name:
        raise LabError(f"the image reference {ref!r}", "NAME:TAG, without the registry's address", "correct it")
    return name, tag


def _digest(content: bytes | Path) -> str:
    if isinstance(content, bytes):
        return f"sha256:{hashlib.sha256(content).hexdigest()}"
    with content.open("rb") as stream:
        return f"sha256:{hashlib.file_digest(stream, 'sha256').hexdigest()}"
