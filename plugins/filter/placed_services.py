# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: placed_services
short_description: The services of a host with those that were placed on it
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Adds to the services of a host those of the fleet that M(gpufleet.vllm.vllm_place) placed there, each with its GPUs
    and port. Everything else of a service, its secrets too, comes from O(fleet).
positional: _input, fleet, placed
options:
  _input:
    description: The host's own services, as C(vllm_services) has them.
    type: list
    elements: dict
    required: true
  fleet:
    description: The services of the fleet, as C(vllm_fleet_services) has them.
    type: list
    elements: dict
    required: true
  placed:
    description: What M(gpufleet.vllm.vllm_place) returned for this host in C(hosts).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Plan the host with what was placed on it
  gpufleet.vllm.vllm_plan:
    services: "{{ vllm_services | gpufleet.vllm.placed_services(vllm_fleet_services, mine) }}"
    facts: "{{ vllm_host }}"
    model_root: /data/models
  vars:
    mine: "{{ placed.hosts[inventory_hostname] | default([]) }}"
"""

RETURN = r"""
_value:
  description: The services of the host, as C(vllm_services) has them.
  type: list
  elements: dict
"""

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._placement_plan import host_services


def placed_services(services: t.Any, fleet: t.Any, placed: t.Any = ()) -> t.Any:
    return host_services(services, fleet, placed)


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"placed_services": placed_services}
