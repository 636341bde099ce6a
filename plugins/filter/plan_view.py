# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: plan_view
short_description: What a person wants to see of one host's plan
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Joins the plan of a host with its facts into what O(gpufleet.vllm.vllm_plan_report#module:hosts) takes. It has the
    GPUs with who holds them and how full they are, the services, artifacts and images with what is there already, the
    changes that a deploy would make with their reasons, and the findings.
positional: _input
options:
  _input:
    description: The plan of the host; an empty mapping where it did not come to one.
    type: dict
    required: true
  facts:
    description: What M(gpufleet.vllm.vllm_host_info) returned.
    type: dict
    default: {}
  models:
    description: RV(gpufleet.vllm.vllm_model_info#module:models); by default C(models) of O(facts).
    type: dict
  artifacts:
    description: RV(gpufleet.vllm.vllm_artifacts#module:results) of a run in check mode, if there was one.
    type: list
    elements: dict
    default: []
  failure:
    description: Why there is no plan; empty if there is one.
    type: str
    default: ""
  user:
    description: The user of the services under systemd.
    type: str
    default: vllm
"""

EXAMPLES = r"""
- name: Keep what the plan shows
  ansible.builtin.set_fact:
    vllm_plan_view: "{{ vllm_plan | gpufleet.vllm.plan_view(facts=vllm_host, user=vllm_user) }}"
"""

RETURN = r"""
_value:
  description: The host's part of the plan's report.
  type: dict
"""

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _plan_view


def plan_view(
    plan: t.Mapping[str, t.Any] | None,
    facts: t.Mapping[str, t.Any] | None = None,
    models: t.Mapping[str, t.Any] | None = None,
    artifacts: t.Sequence[t.Mapping[str, t.Any]] = (),
    failure: str = "",
    user: str = "vllm",
) -> dict[str, t.Any]:
    return _plan_view.plan_view(plan or {}, facts or {}, models, artifacts, failure, user)


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"plan_view": plan_view}
