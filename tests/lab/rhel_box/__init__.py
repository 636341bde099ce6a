# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""This machine, seen as a host of the RHEL family: its own /etc, and stand-ins for rpm, dnf, Docker and systemctl.

The stand-ins keep a small state and write down what they were asked. /usr and /var/lib are read-only inside, so that
nothing a role does there reaches this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import typing as t
from pathlib import Path

HERE = Path(__file__).parent
# Of these the machine's own are out of sight.
FOREIGN = ("docker", "dockerd", "docker-compose", "nvidia-smi", "nvidia-ctk", "nvidia-container-runtime-hook")
PLACES = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/snap/bin", "/opt/bin")


class RhelBox:
    """``state`` is what the host has before: ``packages`` (name to version), ``containers`` and the like."""

    def __init__(self, state: dict[str, t.Any] | None = None, version: str = "9.4") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="rhel-box-"))
        self.bin = self.directory / "bin"
        self.etc = self.directory / "etc"
        # What is in the directories of drop-ins is this machine's affair.
        shutil.copytree("/etc", self.etc, symlinks=True, ignore=shutil.ignore_patterns("docker", "cdi", "*.d"))
        for name in ("bin", "run/systemd/system", "etc/yum.repos.d", "etc/pki/rpm-gpg", "cache", "home"):
            (self.directory / name).mkdir(parents=True)
        (self.etc / "os-release").unlink()
        names = {"NAME": "Rocky Linux", "ID": "rocky", "ID_LIKE": "rhel centos fedora", "VERSION_ID": version}
        (self.etc / "os-release").write_text("".join(f'{name}="{value}"\n' for name, value in names.items()))
        (self.etc / "redhat-release").write_text(f"Rocky Linux release {version} (Lab)\n")
        (self.directory / "comm").write_text("systemd\n")
        (self.etc / "debian_version").unlink(missing_ok=True)
        self.save(
            {"packages": {}, "containers": {}, "docker": "missing", "enabled": False, "asked": [], **(state or {})}
        )
        for name in ("rpm", "dnf", "systemctl", "apt-get", *self.state.get("tools", ())):
            self.add_tool(name)

    def __enter__(self) -> RhelBox:
        return self

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def state(self) -> dict[str, t.Any]:
        document: dict[str, t.Any] = json.loads((self.directory / "state.json").read_text())
        return document

    def save(self, state: dict[str, t.Any]) -> None:
        (self.directory / "state.json").write_text(json.dumps(state))

    def asked(self, program: str) -> list[str]:
        """What a program was asked, without the reading."""
        return [line for line in self.state["asked"] if line.split()[0] == program]

    def add_tool(self, name: str) -> None:
        path = self.bin / name
        path.write_text(f"#!{sys.executable}\n{(HERE / 'tool.py').read_text()}")
        path.chmod(0o755)

    def run(self, *command: object, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a command on the host. Needs root that may mount."""
        masks = " ".join(f"{place}/{name}" for place in PLACES for name in FOREIGN)
        enter = ["unshare", "--mount", "--propagation", "private", "sh", str(HERE / "enter.sh"), str(self.directory)]
        box = {"RHEL_BOX": str(self.directory), "ANSIBLE_HOME": str(self.directory / "home")}
        return subprocess.run(
            [*enter, masks, *map(str, command)],
            env={**environment, **box, "PATH": f"{self.bin}:{environment['PATH']}"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
            check=False,
        )


def is_root() -> bool:
    return os.geteuid() == 0
