# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Build the packages as NVIDIA divides them, index them in a flat repository, and sign that."""

from __future__ import annotations

import hashlib
import tempfile
from dataclasses import dataclass
from pathlib import Path

import nvidia_sim
from gpu_lab import apt
from gpu_lab._base import SEARCH, built, cache_root, digest_of, locked, need, run

# The first has no service that keeps the CDI specification fresh, as before 1.18.
VERSIONS = ("1.17.8-1", "1.18.1-1")
NAME = "toolkit"
KEY_NAME = "gpufleet.vllm lab"
TOOLS = "nvidia-container-toolkit"
BASE = "nvidia-container-toolkit-base"
# The library and its tools are part of the simulator's programs: here they are names with a version.
EMPTY = ("libnvidia-container-tools", "libnvidia-container1")

CONTROL = """Package: {name}
Version: {version}
Architecture: all
Maintainer: gpufleet.vllm contributors <nobody@example.com>
Depends: {depends}
Description: NVIDIA Container Toolkit, simulated ({name})
"""
REFRESH = {
    "nvidia-cdi-refresh.service": """[Unit]
Description=Refresh NVIDIA CDI specification file
ConditionPathExists=/usr/bin/nvidia-smi

[Service]
Type=oneshot
ExecStart=/usr/bin/nvidia-ctk cdi generate --output=/var/run/cdi/nvidia.yaml

[Install]
WantedBy=multi-user.target
""",
    "nvidia-cdi-refresh.path": """[Unit]
Description=Trigger CDI refresh on changes of the driver

[Path]
PathChanged=/usr/bin/nvidia-smi

[Install]
WantedBy=multi-user.target
""",
}
# As the real one does: this reload is why nothing is installed under GPU containers.
POSTINST = """#!/bin/sh
set -e
if [ "$1" = configure ] && systemctl --quiet is-system-running 2>/dev/null; then
    systemctl daemon-reload
    systemctl enable --quiet --now nvidia-cdi-refresh.path nvidia-cdi-refresh.service || true
fi
"""


@dataclass(frozen=True)
class Published:
    """Where hosts of a lab reach the repository, and the public key that signs it."""

    url: str
    key: str


def packages(into: Path, version: str) -> list[Path]:
    """The four packages of one version."""
    need({"dpkg-deb": "dpkg"})
    into.mkdir(parents=True, exist_ok=True)
    made = [_package(into, name, version, "base-files") for name in EMPTY]
    made.append(_package(into, BASE, version, "base-files"))
    needs = ", ".join([f"{name} (= {version})" for name in (BASE, EMPTY[0])])
    return [*made, _package(into, TOOLS, version, needs)]


def _package(into: Path, name: str, version: str, depends: str) -> Path:
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory)
        root.chmod(0o755)
        (root / "DEBIAN").mkdir()
        (root / "DEBIAN/control").write_text(CONTROL.format(name=name, version=version, depends=depends))
        if name in (BASE, TOOLS):
            _programs(root, name)
        if name == BASE and version != VERSIONS[0]:
            _service(root)
        path = into / f"{name}_{version}_all.deb"
        run("dpkg-deb", "--root-owner-group", "--build", root, path, environment={"PATH": SEARCH})
        return path


def _programs(root: Path, name: str) -> None:
    nvidia_sim.install(root, driver=False, toolkit=True)
    hook = root / "usr/bin/nvidia-container-runtime-hook"
    # Docker looks for the hook, which is in the package that needs the others.
    for program in sorted((root / "usr/bin").iterdir()):
        if (program == hook) != (name == TOOLS):
            program.unlink()


def _service(root: Path) -> None:
    units = root / "usr/lib/systemd/system"
    units.mkdir(parents=True)
    for unit, text in REFRESH.items():
        (units / unit).write_text(text)
    script = root / "DEBIAN/postinst"
    script.write_text(POSTINST)
    script.chmod(0o755)


def publish() -> Published:
    """Have the repository among those that the hosts of labs reach. Built once for each state of the simulator."""
    digest = digest_of(nvidia_sim.digest(), Path(__file__).read_text(), *VERSIONS)
    directory = cache_root() / "apt-repo" / digest
    with locked(cache_root() / "apt-repo.lock"):
        if not directory.exists():
            with built(directory) as partial:
                partial.chmod(0o755)
                for version in VERSIONS:
                    packages(partial, version)
                apt.index(partial)
                _sign(partial)
        apt.publish(NAME, directory)
    return Published(f"{apt.apt_url()}/{NAME}", (directory / "key.asc").read_text())


def _sign(directory: Path) -> None:
    """``Release`` and its signature, with a key that lives as long as this directory is built."""
    need({"gpg": "gpg", "gpg-agent": "gpg-agent"})
    index = (directory / "Packages").read_bytes()
    digest = hashlib.sha256(index).hexdigest()
    release = directory / "Release"
    release.write_text(
        f"Origin: gpufleet\nLabel: {NAME}\nSuite: stable\nDate: Thu, 01 Jan 2026 00:00:00 UTC\n"
        f"SHA256:\n {digest} {len(index)} Packages\n"
    )
    # The socket of gpg-agent needs a short path.
    with tempfile.TemporaryDirectory(prefix="gpg-", dir="/tmp") as home:
        gpg = ["gpg", "--homedir", home, "--batch", "--quiet", "--yes", "--no-tty"]
        try:
            run(*gpg, "--passphrase", "", "--quick-gen-key", KEY_NAME, "rsa3072", "sign", "never")
            run(*gpg, "--clearsign", "--output", directory / "InRelease", release)
            run(*gpg, "--armor", "--output", directory / "key.asc", "--export", KEY_NAME)
        finally:
            run("gpgconf", "--homedir", home, "--kill", "all", check=False)
