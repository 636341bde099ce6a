# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The inventory of a lab, as a person would write it."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

SSH = (
    "-o IdentitiesOnly=yes -o IdentityAgent=none -o StrictHostKeyChecking=yes "
    "-o UserKnownHostsFile={known_hosts} -o GlobalKnownHostsFile=/dev/null -o ControlMaster=auto -o ControlPersist=60s "
    "-o PreferredAuthentications=publickey -o ServerAliveInterval=5 -o ServerAliveCountMax=6"
)


def render(
    addresses: dict[str, str], *, user: str, key: Path, known_hosts: Path, control: Path, more: dict[str, t.Any]
) -> str:
    """YAML of the group ``gpu_hosts``. ``control`` keeps connections of this lab apart from those to a host before."""
    variables = {
        "ansible_user": user,
        **({} if user == "root" else {"ansible_become": True}),
        "ansible_ssh_private_key_file": str(key),
        "ansible_ssh_common_args": SSH.format(known_hosts=known_hosts),
        "ansible_control_path_dir": str(control),
        "ansible_python_interpreter": "/usr/bin/python3",
        **more,
    }
    lines = ["---", "# Written by python -m gpu_lab up; gone with the lab.", "gpu_hosts:", "  hosts:"]
    for name, address in addresses.items():
        lines += [f"    {name}:", f"      ansible_host: {address}"]
    lines += ["  vars:", *(f"    {key}: {json.dumps(value)}" for key, value in variables.items())]
    return "\n".join(lines) + "\n"
