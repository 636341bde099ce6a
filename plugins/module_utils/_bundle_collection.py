# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A collection as the tarball that ``ansible-galaxy collection install`` takes, from a checkout or an installed one.

Equal content makes an equal tarball, so that one that did not change is not carried twice.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import sys
import tarfile
import tempfile
import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._manifest import path_fault
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import run_command

_FILES = ("README.md", "LICENSE", "CHANGELOG.md", "galaxy.yml")
# Not inventory: beside the examples a checkout has its user's own, with what is nobody else's to know.
_DIRECTORIES = ("meta", "plugins", "roles", "playbooks", "docs", "changelogs")
_SECONDS = 300.0


def present(source: str, directory: str, check_mode: bool) -> dict[str, t.Any]:
    """Have the tarball of the collection at ``source`` in ``directory``. Raises FleetError or OSError."""
    name, content = _make(source)
    path = os.path.join(directory, name)
    try:
        with open(path, "rb") as stream:
            changed = stream.read() != content
    except FileNotFoundError:
        changed = True
    if changed and not check_mode:
        os.makedirs(directory, 0o755, exist_ok=True)
        with open(f"{path}.new", "wb") as stream:
            stream.write(content)
            os.fchmod(stream.fileno(), 0o644)
            os.fsync(stream.fileno())
        os.rename(f"{path}.new", path)
    digest = hashlib.sha256(content).hexdigest()
    return {"changed": changed, "path": path, "sha256": digest, "bytes_total": len(content)}


def _make(source: str) -> tuple[str, bytes]:
    if os.path.isfile(os.path.join(source, "MANIFEST.json")):
        return _from_installed(source)
    if os.path.isfile(os.path.join(source, "galaxy.yml")):
        return _from_checkout(source)
    raise FleetError(
        "collection.not_found",
        f"{source} has neither MANIFEST.json nor galaxy.yml",
        "an installed collection, or a checkout of one",
        "correct source, or name a tarball (bundle_collection)",
    )


def _from_installed(source: str) -> tuple[str, bytes]:
    """Exactly what was installed: each file is held to the SHA-256 that came with it."""
    members: dict[str, bytes] = {}
    try:
        with open(os.path.join(source, "MANIFEST.json"), "rb") as stream:
            members["MANIFEST.json"] = stream.read()
        manifest = json.loads(members["MANIFEST.json"])
        info, listing = manifest["collection_info"], manifest["file_manifest_file"]
        wanted = [(listing["name"], listing["chksum_sha256"])]
        with open(os.path.join(source, listing["name"]), "rb") as stream:
            files = json.loads(stream.read())["files"]
        wanted += [(item["name"], item["chksum_sha256"]) for item in files if item["ftype"] == "file"]
        for name, digest in wanted:
            if path_fault(name):
                raise ValueError(f"the path {name!a}")
            with open(os.path.join(source, name), "rb") as stream:
                members[name] = stream.read()
            if hashlib.sha256(members[name]).hexdigest() != digest:
                raise FleetError(
                    "collection.changed",
                    f"{os.path.join(source, name)} is not as it was installed",
                    "the collection as it was published",
                    "install it again (ansible-galaxy collection install --force), or name a tarball",
                )
        title = f"{info['namespace']}-{info['name']}-{info['version']}.tar.gz"
    except (KeyError, TypeError, ValueError) as exc:
        raise FleetError(
            "collection.damaged",
            f"{source} has a list of files that cannot be used: {exc}",
            "the collection as ansible-galaxy installs it",
            "install it again (ansible-galaxy collection install --force)",
        ) from exc
    return title, _pack(members)


def _from_checkout(source: str) -> tuple[str, bytes]:
    """From a copy of what belongs into it: the build walks everything that it finds, environments and links too."""
    with tempfile.TemporaryDirectory(prefix="gpufleet-collection-") as scratch:
        tree, out, settings = (os.path.join(scratch, name) for name in ("tree", "out", "ansible.cfg"))
        os.mkdir(tree)
        for name in _FILES:
            if os.path.isfile(os.path.join(source, name)):
                shutil.copyfile(os.path.join(source, name), os.path.join(tree, name))
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".*")
        for name in _DIRECTORIES:
            if os.path.isdir(os.path.join(source, name)):
                shutil.copytree(os.path.join(source, name), os.path.join(tree, name), ignore=ignore)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("ANSIBLE_")}
        environment = {**kept, "LC_ALL": "C.UTF-8", "ANSIBLE_CONFIG": settings}
        with open(settings, "w", encoding="utf-8"):
            pass
        argv = [sys.executable, "-m", "ansible.cli.galaxy", "collection", "build", tree, "--output-path", out]
        done = run_command(argv, _SECONDS, environment)
        built = sorted(os.listdir(out)) if os.path.isdir(out) else []
        if done.rc != 0 or len(built) != 1:
            raise FleetError(
                "collection.build",
                f"ansible-galaxy collection build ended with status {done.rc}: {done.last_words}",
                "a tarball of the checkout",
                "make setup installs what it needs (ansible-core, distlib); or name a tarball (bundle_collection)",
            )
        with tarfile.open(os.path.join(out, built[0])) as archive:
            members = {
                member.name: content.read()
                for member in archive
                if member.isfile() and (content := archive.extractfile(member)) is not None
            }
    return built[0], _pack(members)


def _pack(members: t.Mapping[str, bytes]) -> bytes:
    """A tarball that follows from its content alone. What is read first when it is installed comes first."""
    first = ("MANIFEST.json", "FILES.json")
    listed = json.loads(members.get("FILES.json", b'{"files": []}'))["files"]
    directories = {item["name"] for item in listed if item["ftype"] == "dir" and item["name"] != "."}
    out = io.BytesIO()
    with gzip.GzipFile(fileobj=out, mode="wb", mtime=0) as packed, tarfile.open(fileobj=packed, mode="w") as archive:
        for name in sorted({*members, *directories}, key=lambda name: (name not in first, name != first[0], name)):
            member = tarfile.TarInfo(name)
            if name in directories:
                member.type, member.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(member)
                continue
            member.size, member.mode = len(members[name]), 0o644
            archive.addfile(member, io.BytesIO(members[name]))
    return out.getvalue()
