# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: service_secrets
short_description: The secret environment of each service
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Turns C(vllm_services) into what O(gpufleet.vllm.vllm_stack#module:secrets) takes, so that secrets travel beside
    the plan and never inside it.
positional: _input
options:
  _input:
    description: The services as the inventory has them.
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Probe with the keys of the services
  gpufleet.vllm.vllm_probe:
    endpoints: "{{ vllm_plan.services }}"
    secrets: "{{ vllm_services | gpufleet.vllm.service_secrets }}"
"""

RETURN = r"""
_value:
  description: For each service with secrets, its secret environment variables and their values.
  type: dict
"""

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import secrets_of


def service_secrets(services: t.Any) -> dict[str, dict[str, str]]:
    """Entries that are no mappings or have no name are skipped: the plan reports those."""
    entries = services if isinstance(services, (list, tuple)) else []
    named = [entry for entry in entries if isinstance(entry, dict) and entry.get("name")]
    return {str(entry["name"]): secrets_of(entry) for entry in named if secrets_of(entry)}


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"service_secrets": service_secrets}
