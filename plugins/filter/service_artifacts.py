# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: service_artifacts
short_description: The model artifacts that services need
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Makes of services the list that O(gpufleet.vllm.vllm_artifacts#module:artifacts) takes, without asking the host
    anything. It is what M(gpufleet.vllm.vllm_plan) returns as C(artifacts).
  - Fails for services with an unknown key or a value that cannot be, and where two would keep different models in one
    directory.
positional: _input
options:
  _input:
    description: The services, as C(vllm_services) has them.
    type: list
    elements: dict
    required: true
  model_root:
    description: The directory on the host under which models without C(path) lie.
    type: str
    required: true
  more:
    description: Artifacts besides, each with C(model), and optionally C(revision), C(path), C(include) and C(exclude).
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Fetch what the services need, and the model of next week
  gpufleet.vllm.vllm_artifacts:
    artifacts: "{{ vllm_services | gpufleet.vllm.service_artifacts('/data/models', more=[{'model': 'acme/next'}]) }}"
"""

RETURN = r"""
_value:
  description: The artifacts, each with C(model), C(revision), C(path), C(include), C(exclude) and C(services).
  type: list
  elements: dict
"""

import typing as t

from ansible.errors import AnsibleFilterError
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import as_text, errors
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan import Settings, plan_artifacts
from ansible_collections.gpufleet.vllm.plugins.module_utils._service_spec import parse_services
from ansible_collections.gpufleet.vllm.plugins.module_utils._units import plural

# Names that no service of a user can have, so that a message tells where to look.
_MORE = "vllm-fetch-models-"
_KEYS = ("model", "revision", "path", "include", "exclude")


def service_artifacts(
    services: t.Any, model_root: str, more: t.Sequence[t.Mapping[str, t.Any]] = ()
) -> list[dict[str, t.Any]]:
    others = []
    for number, entry in enumerate(more, 1):
        if not isinstance(entry, dict) or not set(entry) <= set(_KEYS):
            raise AnsibleFilterError(f"{entry!r} is no artifact. Expected: a mapping of model, and of {_KEYS[1:]}.")
        others.append({"name": f"{_MORE}{number}", **entry})
    wanted = services or []
    parsed, findings = parse_services([*wanted, *others] if isinstance(wanted, (list, tuple)) else wanted)
    settings = Settings(root=model_root, model_root=model_root)
    artifacts, found = plan_artifacts(parsed, settings)
    wrong = errors([*findings, *found])
    if wrong:
        raise AnsibleFilterError(
            f"The services have {plural(len(wrong), 'error')}, nothing is fetched.\n{as_text(wrong)}"
        )
    return [
        {**artifact, "services": [name for name in artifact["services"] if not name.startswith(_MORE)]}
        for artifact in artifacts
    ]


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"service_artifacts": service_artifacts}
