# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: artifact_versions
short_description: What tells one state of a model artifact from another
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Keeps of each M(gpufleet.vllm.modelscope_model) result what O(gpufleet.vllm.vllm_stack#module:artifacts) needs, so
    that transfer figures never look like a change.
positional: _input
options:
  _input:
    description: The results of M(gpufleet.vllm.modelscope_model).
    type: list
    elements: dict
    required: true
"""

EXAMPLES = r"""
- name: Run the services on the artifacts that were fetched
  gpufleet.vllm.vllm_stack:
    services: "{{ vllm_plan.services }}"
    artifacts: "{{ fetched.results | gpufleet.vllm.artifact_versions }}"
"""

RETURN = r"""
_value:
  description: For each artifact its C(path), C(model), C(commit), C(manifest_digest) and C(published).
  type: list
  elements: dict
"""

import typing as t

KEYS = ("path", "commit", "manifest_digest", "published")


def artifact_versions(results: t.Iterable[t.Mapping[str, t.Any]]) -> list[dict[str, t.Any]]:
    return [
        {**{key: result.get(key) for key in KEYS}, "model": (result.get("item") or {}).get("model")}
        for result in results
    ]


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"artifact_versions": artifact_versions}
