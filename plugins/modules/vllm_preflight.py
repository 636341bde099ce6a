#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_preflight
short_description: Say what on a host would make its vLLM services fail, before anything is changed
version_added: 0.2.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Asks every rule of the preflight about the facts and the plan of a host. Each finding says what was seen, what was
    expected and what to do.
  - A rule whose facts the host does not give is unknown, and is held against no host.
  - Runs on the controller. Nothing is changed, and the host is not connected to.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
options:
  facts:
    description:
      - What M(gpufleet.vllm.vllm_host_info) returned for the host.
    type: dict
    required: true
  plan:
    description:
      - RV(gpufleet.vllm.vllm_plan#module:plan) of the host. Its findings become part of the report.
    type: dict
    default: {}
  settings:
    description:
      - Variables that rules look at, under their names, such as C(vllm_expected_gpus) and C(vllm_model_root).
    type: dict
    default: {}
  skip:
    description:
      - Codes of rules that are not asked. The report names them.
    type: list
    elements: str
    default: []
  fail_on:
    description:
      - From which severity on a finding fails the host. Errors of the plan always do.
    type: str
    choices: [error, warning, never]
    default: error
  fail:
    description:
      - Whether such a finding fails the task, too. V(false) where all hosts are shown before any of them ends.
    type: bool
    default: true
seealso:
  - module: gpufleet.vllm.vllm_preflight_report
  - module: gpufleet.vllm.vllm_host_info
  - module: gpufleet.vllm.vllm_plan
"""

EXAMPLES = r"""
- name: Ask the rules
  gpufleet.vllm.vllm_preflight:
    facts: "{{ vllm_host }}"
    plan: "{{ vllm_plan }}"
    settings:
      vllm_expected_gpus: 8
      vllm_model_root: /data/models
    skip: [gpu.persistence]
    fail_on: warning
    fail: false
  register: preflight

- name: Show what to do
  ansible.builtin.debug:
    msg: "{{ preflight.report.findings | map(attribute='remedy') }}"
"""

RETURN = r"""
report:
  description: What the rules say about the host.
  returned: success
  type: dict
  contains:
    host:
      description: The host's name in the inventory.
      type: str
      sample: gpu-01
    findings:
      description:
        - Worst first, each with C(code), C(severity), C(seen), C(expected), C(remedy), C(service) (empty where it is
          about the host) and C(page), which names the documentation.
      type: list
      elements: dict
      sample: [{"code": "gpu.persistence", "severity": "warning", "seen": "persistence mode is off on GPU 0",
        "expected": "persistence mode on", "remedy": "systemctl enable --now nvidia-persistenced", "service": "",
        "page": "docs/preflight.md#gpu-persistence"}]
    passed:
      description: Codes of the rules that the host passed, or that do not apply to it.
      type: list
      elements: str
      sample: [gpu.ecc, gpu.lost]
    unknown:
      description: C(code) and C(reason) of the rules that could not be told.
      type: list
      elements: dict
      sample: [{"code": "gpu.xid", "reason": "the kernel's log could not be read"}]
    skipped:
      description: Codes of the rules that O(skip) turned off.
      type: list
      elements: str
      sample: [host.reboot]
    counts:
      description: Rules that C(passed), C(failed) and so on, and findings by severity.
      type: dict
      sample: {"checks": 50, "passed": 48, "failed": 1, "unknown": 1, "skipped": 1, "errors": 0, "warnings": 1,
        "infos": 0}
    versions:
      description: What stands on the host, as far as it tells.
      type: dict
      sample: {"driver": "580.95.05", "docker": "28.5.1"}
stopped_by:
  description: The findings that fail the host by O(fail_on), as text; empty where none does.
  returned: success
  type: str
  sample: ""
settings:
  description: O(settings), which the rules across hosts look at as well.
  returned: success
  type: dict
"""
