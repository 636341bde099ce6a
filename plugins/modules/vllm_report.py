#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_report
short_description: Show the summary of a run over the fleet
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Prints for each host its services with their URL, model and revision, what they were asked, what they answered and
    how fast, or why they failed, and writes the same as JSON if asked to.
  - Runs on the controller. Use it once for the play.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
options:
  title:
    description:
      - The first words of the summary.
    type: str
    default: vLLM fleet
  hosts:
    description:
      - For each host C(engine), C(runtime), C(services) and C(failure), as P(gpufleet.vllm.host_report#filter) makes
        them.
    type: dict
    required: true
  following:
    description:
      - Commands that a user may want next, each under a label.
    type: dict
    default: {}
  path:
    description:
      - A file on the controller that the report is written to, as JSON. Empty writes none.
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Show what answers
  gpufleet.vllm.vllm_report:
    title: Deployed
    hosts:
      gpu-01: "{{ vllm_plan | gpufleet.vllm.host_report(reports=probed.reports) }}"
    following:
      ask it: curl http://10.0.0.11:8000/v1/models
    path: report.json
  run_once: true
"""

RETURN = r"""
ok:
  description: Whether every service of every host answered right.
  returned: success
  type: bool
  sample: true
"""
