#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_plan_report
short_description: Show the plan of a fleet
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Prints for each host a map of its GPUs, the memory that each service takes, the artifacts and images with what is
    there already, what a deploy would start, restart and stop, because of what, and the findings. It can write the same
    as JSON.
  - Hosts whose plans look alike are shown once. The last lines sum up the fleet.
  - Runs on the controller. Use it once for the play.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
notes:
  - The file is written at once or not at all, and only its owner can read it. No value of an environment is in it. Its
    C(schema) is 1, and rises when a key changes its meaning or goes, not when one is added. Beside it stand C(title),
    C(finished) (when, in UTC), C(ok), C(totals) (the fleet in numbers), C(fleet) and C(hosts).
  - Each host has C(cards), C(islands) (groups of GPUs that NVLink joins), C(services), C(artifacts), C(images),
    C(changes) (each with C(service), C(change) and C(reasons)), C(findings), C(errors), C(failure), C(unreachable) and
    C(plan), which is RV(gpufleet.vllm.vllm_plan#module:plan).
  - C(fleet) has C(findings), which are O(placement). Where they have errors, C(plan.placement_failed) of each host
    points to them, and is not counted.
options:
  title:
    description:
      - The first word of the last line.
    type: str
    default: Plan
  hosts:
    description:
      - For each host what P(gpufleet.vllm.plan_view#filter) makes of its plan.
    type: dict
    required: true
  lost:
    description:
      - Hosts of the run that left it because their connection broke, so that they have no part in O(hosts).
    type: list
    elements: str
    default: []
  placement:
    description:
      - What M(gpufleet.vllm.vllm_place) returned as C(findings), where services were placed.
    type: list
    elements: dict
    default: []
  plans:
    description:
      - For each host its whole plan, for the file at O(path).
    type: dict
    default: {}
  definitions:
    description:
      - Whether to show also what each service would run as, which is its command or its part of the Compose file.
    type: bool
    default: false
  charset:
    description:
      - What the bars are made of. V(auto) is V(utf8) where the output is, and V(ascii) elsewhere.
    type: str
    choices: [auto, utf8, ascii]
    default: auto
  path:
    description:
      - A file on the controller that the plan is written to, as JSON, in a directory that is there. Empty
        writes none.
    type: path
    default: ""
seealso:
  - module: gpufleet.vllm.vllm_plan
"""

EXAMPLES = r"""
- name: Show the plan
  gpufleet.vllm.vllm_plan_report:
    title: Plan
    hosts:
      gpu-01: "{{ vllm_plan | gpufleet.vllm.plan_view(facts=vllm_host) }}"
    lost: "{{ ansible_play_hosts_all | difference(ansible_play_hosts) }}"
    placement: "{{ placed.findings | default([]) }}"
    plans:
      gpu-01: "{{ vllm_plan }}"
    definitions: true
    charset: auto
    path: plan.json
  run_once: true
"""

RETURN = r"""
ok:
  description: Whether every host was reached and its plan has no error.
  returned: success
  type: bool
  sample: true
stopped:
  description: Why a host has no plan that can be carried out, in a few words, by host; the others are not in it.
  returned: success
  type: dict
  sample: {"gpu-03": "plan.docker_down (1 error)"}
"""
