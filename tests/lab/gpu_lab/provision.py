# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The files that make an image one particular host: keys, Docker's settings, its GPUs."""

from __future__ import annotations

import functools
import io
import json
import tarfile
import tempfile
import typing as t
from dataclasses import dataclass
from pathlib import Path

import nvidia_sim

from ._base import digest_of_tree
from .apt import apt_url
from .registry import registry_address
from .spec import HostSpec

OPS = 1000


@dataclass(frozen=True)
class Files:
    """A tar of files that are the same on every host, and what it is made of."""

    digest: str
    content: bytes


@functools.cache
def simulator(toolkit: bool) -> Files:
    """What ``nvidia_sim`` installs on a host: the driver, and where the host has Docker, the container toolkit too."""
    with tempfile.TemporaryDirectory() as name:
        nvidia_sim.install(Path(name), toolkit=toolkit)
        stream = io.BytesIO()
        with tarfile.open(fileobj=stream, mode="w") as tar:
            tar.add(name, arcname=".", filter=_of_root)
        return Files(digest_of_tree(Path(name)), stream.getvalue())


def _of_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def archive(spec: HostSpec, lab: Path) -> bytes:
    """A tar of the host's own files, from the root of its file system."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as tar:
        for name in (*(["etc/docker"] if spec.docker else []), "etc/gpusim", "var/lib/gpusim"):
            _add(tar, name, None, 0o755)
        public = (lab / "id_ed25519.pub").read_bytes()
        _add(tar, "root/.ssh/authorized_keys", public, 0o600)
        _add(tar, "home/ops/.ssh/authorized_keys", public, 0o600, OPS)
        _add(tar, "etc/ssh/ssh_host_ed25519_key", (lab / "host_ed25519").read_bytes(), 0o600)
        _add(tar, "etc/ssh/ssh_host_ed25519_key.pub", (lab / "host_ed25519.pub").read_bytes(), 0o644)
        _add(tar, "etc/gpusim/gpus.json", _json({**spec.gpus, "faults": spec.faults}), 0o644)
        sources = f"deb [trusted=yes] {apt_url()}/{spec.family} ./\n"
        _add(tar, "etc/apt/sources.list", sources.encode(), 0o644)
        if spec.docker:
            _add(tar, "etc/docker/daemon.json", _json(_docker(spec)), 0o644)
    return stream.getvalue()


def _docker(spec: HostSpec) -> dict[str, t.Any]:
    settings: dict[str, t.Any] = {
        "insecure-registries": [registry_address()],
        "storage-driver": "overlay2",
        "log-driver": "json-file",
        "log-opts": {"max-size": "1m", "max-file": "2"},
        "live-restore": False,
    }
    # Engine 20.10 knows no CDI.
    return settings if spec.family == "debian12" else {**settings, "features": {"cdi": True}}


def _json(document: dict[str, t.Any]) -> bytes:
    return (json.dumps(document, indent=2) + "\n").encode()


def _add(tar: tarfile.TarFile, name: str, content: bytes | None, mode: int, owner: int = 0) -> None:
    member = tarfile.TarInfo(name)
    member.mode = mode
    member.uid = member.gid = owner
    if content is None:
        member.type = tarfile.DIRTYPE
    else:
        member.size = len(content)
    tar.addfile(member, io.BytesIO(content or b""))
