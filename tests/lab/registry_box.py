# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A real registry (Debian's ``docker-registry``) on loopback, and images of both formats to push into it; and a Python
package of nobody's."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import io
import json
import signal
import subprocess
import tarfile
import time
import typing as t
import zipfile
from collections.abc import Sequence
from pathlib import Path

from fleet_box import free_port

DOCKER = {
    "manifest": "application/vnd.docker.distribution.manifest.v2+json",
    "config": "application/vnd.docker.container.image.v1+json",
    "layer": "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "index": "application/vnd.docker.distribution.manifest.list.v2+json",
}
OCI = {
    "manifest": "application/vnd.oci.image.manifest.v1+json",
    "config": "application/vnd.oci.image.config.v1+json",
    "layer": "application/vnd.oci.image.layer.v1.tar+gzip",
    "index": "application/vnd.oci.image.index.v1+json",
}


def digest(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def layer(name: str, content: bytes) -> bytes:
    """A tar with one file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


def make_wheel(path: Path) -> None:
    """A package that needs no index."""
    with zipfile.ZipFile(path / "tiny-1.0-py3-none-any.whl", "w") as wheel:
        wheel.writestr("tiny.py", "ANSWER = 42\n")
        wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny-1.0.dist-info/RECORD", "")


class RegistryBox:
    """A registry with its storage in ``directory``; a context manager. ``htpasswd`` is a file of users."""

    def __init__(self, directory: Path, htpasswd: Path | None = None) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.directory, self.port = directory, free_port()
        self.address = f"127.0.0.1:{self.port}"
        settings: dict[str, t.Any] = {
            "version": 0.1,
            "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": str(directory / "storage")}, "delete": {"enabled": True}},
            "http": {"addr": self.address},
        }
        if htpasswd is not None:
            settings["auth"] = {"htpasswd": {"realm": "test", "path": str(htpasswd)}}
        (directory / "config.yml").write_text(json.dumps(settings))
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> RegistryBox:
        with (self.directory / "log").open("wb") as log:
            command = ["docker-registry", "serve", str(self.directory / "config.yml")]
            self._process = subprocess.Popen(command, stdout=log, stderr=log)
        deadline = time.monotonic() + 30
        while True:
            try:
                self.ask("GET", "/v2/")
                return self
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)

    def __exit__(self, *_: object) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)

    @property
    def log(self) -> str:
        return (self.directory / "log").read_text()

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, headers or {})
            answer = connection.getresponse()
            return answer.status, {key.lower(): value for key, value in answer.getheaders()}, answer.read()
        finally:
            connection.close()

    def digest(self, name: str, reference: str) -> str | None:
        """What the registry says of a tag, without a client's conversion."""
        accept = ", ".join(kinds[kind] for kinds in (DOCKER, OCI) for kind in ("manifest", "index"))
        status, headers, _body = self.ask("HEAD", f"/v2/{name}/manifests/{reference}", headers={"Accept": accept})
        return headers["docker-content-digest"] if status == 200 else None

    def push(
        self,
        name: str,
        tag: str,
        layers: Sequence[bytes],
        kinds: dict[str, str] | None = None,
        architecture: str = "amd64",
    ) -> bytes:
        """Push an image of these tars; returns its manifest. Without a tag it is known by its digest alone."""
        kinds = kinds or OCI
        found = []
        for raw in layers:
            packed = gzip.compress(raw, mtime=0) if kinds["layer"].endswith("gzip") else raw
            self._blob(name, packed)
            found.append({"mediaType": kinds["layer"], "digest": digest(packed), "size": len(packed)})
        config = json.dumps(
            {
                "architecture": architecture,
                "os": "linux",
                "config": {"Cmd": ["/bin/true"]},
                "rootfs": {"type": "layers", "diff_ids": [digest(raw) for raw in layers]},
                "unusual": "a field that a client which rewrites configurations would lose",
            },
            indent=1,
        ).encode()
        self._blob(name, config)
        about = {"mediaType": kinds["config"], "digest": digest(config), "size": len(config)}
        document = {"schemaVersion": 2, "mediaType": kinds["manifest"], "config": about, "layers": found}
        return self._manifest(name, tag, document, kinds["manifest"])

    def push_index(
        self, name: str, tag: str, images: Sequence[tuple[str, bytes]], kinds: dict[str, str] | None = None
    ) -> bytes:
        """Push an index of images that are there: their architectures and manifests."""
        kinds = kinds or OCI
        items = [
            {
                "mediaType": kinds["manifest"],
                "digest": digest(raw),
                "size": len(raw),
                "platform": {"os": "linux", "architecture": architecture},
            }
            for architecture, raw in images
        ]
        document = {"schemaVersion": 2, "mediaType": kinds["index"], "manifests": items}
        return self._manifest(name, tag, document, kinds["index"])

    def _manifest(self, name: str, tag: str, document: dict[str, t.Any], kind: str) -> bytes:
        # Indented as nobody else does it: who writes it anew does not get the same digest.
        raw = json.dumps(document, indent=5).encode()
        self._must("PUT", f"/v2/{name}/manifests/{tag or digest(raw)}", raw, {"Content-Type": kind})
        return raw

    def _blob(self, name: str, content: bytes) -> None:
        if self.ask("HEAD", f"/v2/{name}/blobs/{digest(content)}")[0] == 200:
            return
        where = self._must("POST", f"/v2/{name}/blobs/uploads/")["location"].partition(self.address)[2]
        target = f"{where}{'&' if '?' in where else '?'}digest={digest(content)}"
        self._must("PUT", target, content, {"Content-Type": "application/octet-stream"})

    def _must(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> dict[str, str]:
        status, answered, text = self.ask(method, path, body, headers)
        assert 200 <= status < 300, (method, path, status, text)
        return answered
