# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A package source that hosts can reach: packages of Docker, nginx and docker-registry and what they need, as a flat
apt repository over HTTP.

The hosts reach nothing but the machine, and a role that installs Docker wants a real ``apt-get update``.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import sys
import tempfile
from pathlib import Path

from ._base import Daemon, LabError, cache_root, need, run, runtime_root
from .engine import MACHINE

PORT = 5080
MIRROR_VARIABLE = "GPUFLEET_LAB_MIRROR"


def apt_url() -> str:
    """The base of the repositories: ``deb [trusted=yes] URL/debian13 ./`` is one."""
    return f"http://{MACHINE}:{PORT}"


def root() -> Path:
    return cache_root() / "apt"


def serve() -> None:
    root().mkdir(parents=True, exist_ok=True)
    # The word after the directory only names whose process this is.
    server = [sys.executable, "-m", "http.server", PORT, "--bind", MACHINE, "--directory", runtime_root() / "apt"]
    link = runtime_root() / "apt"
    if not link.is_symlink():
        link.symlink_to(root())
    Daemon("apt", str(link)).start(server, lambda: listens(MACHINE, PORT))


def listens(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1)
        return probe.connect_ex((host, port)) == 0


def publish(family: str, directory: Path) -> None:
    """Make a directory of packages the repository of a family, at once."""
    root().mkdir(parents=True, exist_ok=True)
    link = root() / family
    new = link.with_name(f"{family}.new")
    new.unlink(missing_ok=True)
    new.symlink_to(os.path.relpath(directory, root()))
    new.replace(link)


def index(directory: Path) -> None:
    """Write the ``Packages`` of a flat repository."""
    need({"dpkg-deb": "dpkg"})
    paragraphs = []
    for package in sorted(directory.glob("*.deb")):
        control = run("dpkg-deb", "--field", package).strip()
        digest = hashlib.sha256(package.read_bytes()).hexdigest()
        size = package.stat().st_size
        paragraphs.append(f"{control}\nFilename: ./{package.name}\nSize: {size}\nSHA256: {digest}\n")
    (directory / "Packages").write_text("\n".join(paragraphs))


def mirrors() -> tuple[str, str | None]:
    """Debian's archive and its security archive, as this machine's apt is configured to reach them."""
    if named := os.environ.get(MIRROR_VARIABLE):
        return named, None
    found = _archives()
    if "Debian" not in found:
        run("apt-get", "-qq", "update")
        found = _archives()
    if "Debian" not in found:
        raise LabError(
            "apt on this machine knows no Debian archive",
            "one in its sources: host images are made of its packages",
            f"set {MIRROR_VARIABLE} to the URL of a mirror of Debian",
        )
    return found["Debian"], found.get("Debian-Security")


def _archives() -> dict[str, str]:
    """What apt's lists say of themselves: the address of each archive, by its label."""
    form = "$(LABEL) $(REPO_URI) $(COMPONENT) $(CREATED_BY)"
    lines = sorted(set(run("apt-get", "indextargets", "--format", form).splitlines()))
    matches = [re.fullmatch(r"(Debian|Debian-Security) (\S+?)/? main Packages", line) for line in lines]
    return {match[1]: match[2] for match in matches if match}


def download(suite: str, package: str, into: Path) -> None:
    """Fetch one package of another Debian release than the one that a host has."""
    mirror, _security = mirrors()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        scratch.chmod(0o755)
        (scratch / "lists/partial").mkdir(parents=True)
        (scratch / "cache/archives/partial").mkdir(parents=True)
        sources = scratch / "sources.list"
        sources.write_text(f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {mirror} {suite} main\n")
        options = {
            "Dir::Etc::SourceList": sources,
            "Dir::Etc::SourceParts": "/dev/null",
            "Dir::State": scratch,
            "Dir::State::Lists": scratch / "lists",
            "Dir::Cache": scratch / "cache",
            "Acquire::Languages": "none",
            "APT::Sandbox::User": "root",
        }
        apt = ["apt-get", "-qq", *(word for key, value in options.items() for word in ("-o", f"{key}={value}"))]
        run(*apt, "update")
        run("sh", "-c", 'cd "$1"; shift; exec "$@"', "sh", into, *apt, "download", package)
