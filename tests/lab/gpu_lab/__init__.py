# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Emulated GPU hosts: containers with systemd, sshd and a Docker Engine of their own, on a private engine and network.

Everything in a host is real except the GPUs, which ``nvidia_sim`` stands in for. ``python -m gpu_lab`` is the same as a
command.
"""

from ._base import LabError
from .apt import apt_url
from .engine import Engine
from .lab import Lab, push_images
from .registry import Registry, registry_address
from .spec import HostSpec, SpecError, default_hosts, parse

__all__ = [
    "Engine",
    "HostSpec",
    "Lab",
    "LabError",
    "Registry",
    "SpecError",
    "apt_url",
    "default_hosts",
    "parse",
    "push_images",
    "registry_address",
]
