# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The root file systems of hosts: Debian with systemd and sshd (``bare``), and the same with Docker and Compose.

``mmdebstrap`` makes the bare one and fetches Docker's packages beside it. Docker is then installed from those, in a
container, as a person would: so the packages that a host without Docker can get are known to install. Packages that
only some hosts need (``OFFERED``) are in the same source, and in no image.
"""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from . import apt
from ._base import SEARCH, built, cache_root, digest_of, locked, need, run, say, timed
from .engine import Engine

HERE = Path(__file__).parent
CUSTOMIZE = HERE / "host" / "customize.sh"
INIT = HERE / "host" / "init.sh"

BASE = (
    "ca-certificates", "curl", "dbus", "iproute2", "kmod", "openssh-server", "procps", "python3", "python3-apt", "sudo",
    "systemd-sysv",
)  # fmt: skip
OFFERED = ("docker-registry", "nginx", "skopeo")
"""What a host can install from its package source beside Docker: a mirror's and a registry's programs."""
UNREAD = ("doc", "info", "lintian", "locale", "man")
INSTALL = """
set -eu
echo 'deb [trusted=yes] file:/srv/apt ./' >/tmp/sources.list
apt() { apt-get -qq -o Dir::Etc::SourceList=/tmp/sources.list "$@"; }
apt update
DEBIAN_FRONTEND=noninteractive apt -y --no-install-recommends install "$@" >/dev/null
rm -rf /tmp/sources.list /var/lib/apt/lists/* /var/cache/apt/*.bin /var/log/apt /var/log/dpkg.log
"""


@dataclass(frozen=True)
class Family:
    """A Debian release as a host. ``borrowed`` are packages that its release lacks and another's satisfy."""

    name: str
    suite: str
    docker: tuple[str, ...]
    borrowed: tuple[tuple[str, str], ...] = ()

    @property
    def digest(self) -> str:
        return digest_of(self, BASE, OFFERED, CUSTOMIZE.read_text(), INIT.read_text())

    @property
    def directory(self) -> Path:
        return cache_root() / "images" / f"{self.name}-{self.digest}"

    def tag(self, docker: bool) -> str:
        if docker:
            return f"gpulab/{self.name}:{digest_of(self.digest, INSTALL)}"
        return f"gpulab/{self.name}-bare:{self.digest}"


FAMILIES = {
    family.name: family
    for family in (
        Family("debian13", "trixie", ("docker.io", "docker-cli", "docker-compose", "iptables")),
        # Debian 12 has no Compose 2. Debian 13's is one static program that wants glibc 2.34 and nothing else.
        Family("debian12", "bookworm", ("docker.io", "docker-compose", "iptables"), (("trixie", "docker-compose"),)),
    )
}


def ensure(engine: Engine, names: set[str]) -> None:
    """Have the images of these families in the engine and their packages in the package source."""
    with locked(cache_root() / "images.lock"):
        families = [FAMILIES[name] for name in sorted(names)]
        missing = [family for family in families if not family.directory.exists()]
        if missing:
            need({"mmdebstrap": "mmdebstrap"})
            mirrors = apt.mirrors()
            with ThreadPoolExecutor(len(missing)) as pool:
                list(pool.map(lambda family: _bootstrap(family, *mirrors), missing))
        for family in families:
            apt.publish(family.name, family.directory / "packages")
            _import(engine, family)
            _forget_older(engine, family)


def _bootstrap(family: Family, mirror: str, security: str | None) -> None:
    with timed(f"built {family.name}"), built(family.directory) as directory:
        packages = directory / "packages"
        packages.mkdir()
        packages.chmod(0o755)
        sources = [f"deb {mirror} {family.suite} main", f"deb {mirror} {family.suite}-updates main"]
        sources += [f"deb {security} {family.suite}-security main"] if security else []
        borrowed = [package for suite, package in family.borrowed]
        wanted = [*(package for package in family.docker if package not in borrowed), *OFFERED]
        fetch = f"APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -qq -y --download-only install {' '.join(wanted)}"
        options = ["--quiet", "--variant=minbase", f"--include={','.join(BASE)}"]
        options += [f"--dpkgopt=path-exclude=/usr/share/{name}/*" for name in UNREAD]
        options += ['--aptopt=Acquire::Languages "none"', '--aptopt=APT::Install-Recommends "false"']
        hooks = [
            "APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get clean",
            fetch,
            f'mv "$1"/var/cache/apt/archives/*.deb "{packages}"',
            f'sh "{CUSTOMIZE}" "$1" "{INIT}"',
        ]
        options += [f"--customize-hook={hook}" for hook in hooks]
        run("mmdebstrap", *options, family.suite, directory / "rootfs.tar", *sources, environment={"PATH": SEARCH})
        for suite, package in family.borrowed:
            apt.download(suite, package, packages)
        apt.index(packages)


def _import(engine: Engine, family: Family) -> None:
    bare, full = family.tag(False), family.tag(True)
    known = engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split()
    if bare not in known:
        with timed(f"imported {family.name}"):
            change = ['ENTRYPOINT ["/usr/local/sbin/gpulab-init"]', "ENV container=docker"]
            words = [word for line in change for word in ("--change", line)]
            engine.docker("import", *words, family.directory / "rootfs.tar", bare)
    if full not in known:
        with timed(f"installed Docker in {family.name}"):
            builder = f"gpulab-build-{family.name}"
            engine.docker("rm", "--force", "--volumes", builder, check=False)
            engine.docker(
                "run", "--name", builder, "--network", "none", "--entrypoint", "/bin/sh",
                "--volume", f"{family.directory / 'packages'}:/srv/apt:ro",
                bare, "-c", INSTALL, "sh", *family.docker,
            )  # fmt: skip
            engine.docker("commit", "--change", 'ENTRYPOINT ["/usr/local/sbin/gpulab-init"]', builder, full)
            engine.docker("rm", "--volumes", builder)


def _forget_older(engine: Engine, family: Family) -> None:
    """Images and trees of this family that were made of other inputs; one that a lab still runs stays."""
    current = {family.tag(True), family.tag(False)}
    names = tuple(f"{tag.partition(':')[0]}:" for tag in current)
    for tag in engine.docker("images", "--format", "{{.Repository}}:{{.Tag}}").split():
        if tag.startswith(names) and tag not in current:
            engine.docker("rmi", tag, check=False)
    for directory in family.directory.parent.glob(f"{family.name}-*"):
        if directory != family.directory and directory.is_dir():
            say(f"removing {directory.name}, made of older inputs")
            shutil.rmtree(directory)
