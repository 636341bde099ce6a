# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    """Which stack on a host: the companion of :func:`_runtimes.argument_spec`."""

    DOCUMENTATION = r"""
options:
  root:
    description:
      - The directory on the host that holds everything this collection keeps there, the models aside.
    type: path
    default: /var/lib/gpufleet-vllm
  runtime:
    description:
      - The process manager of the services.
      - V(compose) runs containers with Docker Compose, V(systemd) and V(supervisor) run C(vllm serve) on the host.
      - V(auto) is V(systemd) where systemd is the init system, and V(supervisor) elsewhere.
    type: str
    choices: [auto, compose, systemd, supervisor]
    default: auto
"""
