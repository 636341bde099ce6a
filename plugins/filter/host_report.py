# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
name: host_report
short_description: One host's part of the report
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Joins what the steps of a run left behind for a host into what O(gpufleet.vllm.vllm_report#module:hosts) takes.
positional: _input
options:
  _input:
    description: The plan of the host; an empty mapping where it did not come to one.
    type: dict
    required: true
  artifacts:
    description: What M(gpufleet.vllm.modelscope_model) returned for each artifact.
    type: list
    elements: dict
    default: []
  reports:
    description: RV(gpufleet.vllm.vllm_probe#module:reports).
    type: list
    elements: dict
    default: []
  states:
    description: RV(gpufleet.vllm.vllm_host_info#module:services).
    type: dict
    default: {}
  failure:
    description: Why the host failed; empty if it did not.
    type: str
    default: ""
  steps:
    description:
      - The registered results of the tasks that need the host, in their order. If one of them did not reach it, the
        report says so instead of O(failure), which is only what came of it.
    type: list
    elements: dict
    default: []
"""

EXAMPLES = r"""
- name: Keep what this host did for the summary
  ansible.builtin.set_fact:
    report: "{{ vllm_plan | gpufleet.vllm.host_report(reports=probed.reports | default([]), steps=[facts, probed]) }}"
"""

RETURN = r"""
_value:
  description: The host's part of the report.
  type: dict
"""

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils import _summary


def host_report(
    plan: t.Mapping[str, t.Any] | None,
    artifacts: t.Sequence[t.Mapping[str, t.Any]] = (),
    reports: t.Sequence[t.Mapping[str, t.Any]] = (),
    states: t.Mapping[str, t.Mapping[str, t.Any]] | None = None,
    failure: str = "",
    steps: t.Sequence[t.Mapping[str, t.Any]] = (),
) -> dict[str, t.Any]:
    return _summary.host_report(plan or {}, artifacts, reports, states, failure, steps)


class FilterModule:
    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        return {"host_report": host_report}
