#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_place
short_description: Choose the hosts and GPUs of services over a fleet
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Gives each replica of the fleet's services a host, GPUs and a port, from the facts of all hosts that the play has
    gathered.
  - What runs and still fits stays where it is. The rest goes where it fits best, without breaking up islands of NVLink
    for small services. Where that leaves something without a place, OR-Tools looks for another packing, if it is
    installed where C(ansible-playbook) runs.
  - Runs on the controller and does no I/O. Use it once for the play, after the facts were gathered. It never fails for
    what it finds, so that each host can say so in its own plan; O(gpufleet.vllm.vllm_plan#module:findings) takes
    RV(host_findings).
  - No secret of a service is in what it returns.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
options:
  services:
    description:
      - The services of the fleet, as C(vllm_fleet_services) has them. The documentation of the role
        P(gpufleet.vllm.vllm#role) lists the keys.
    type: raw
    required: true
  hosts:
    description:
      - All hosts of the fleet, those that are not in this run as well. What a host that is not listed here runs is
        placed anew.
    type: list
    elements: str
    required: true
  facts:
    description:
      - The variable in which each host has what M(gpufleet.vllm.vllm_host_info) returned.
    type: str
    default: vllm_host
  models:
    description:
      - What M(gpufleet.vllm.vllm_model_info) returned as C(models). Of services that say nothing of their GPUs, the
        number follows from it.
    type: dict
    default: {}
  unread:
    description:
      - Why none of the models could be read, which becomes a finding. Empty where they were, or were not asked for.
    type: str
    default: ""
  ports:
    description:
      - The ports for services that name none, as C(LOW-HIGH).
    type: str
    default: 8000-8999
  missing:
    description:
      - What becomes of replicas that may be on hosts of which there are no facts. V(keep) takes them to be there and
        places them nowhere else, V(free) places them on other hosts.
    type: str
    choices: [keep, free]
    default: keep
  show:
    description:
      - Whether the findings are shown. V(false) where a report shows them later, such as
        M(gpufleet.vllm.vllm_preflight_report).
    type: bool
    default: true
seealso:
  - module: gpufleet.vllm.vllm_host_info
  - module: gpufleet.vllm.vllm_model_info
  - module: gpufleet.vllm.vllm_plan
"""

EXAMPLES = r"""
- name: Place the services of the fleet
  gpufleet.vllm.vllm_place:
    services:
      - name: chat
        model: Qwen/Qwen2.5-7B-Instruct
        replicas: 4
        gpus: {count: 2, link: nvlink}
        hosts: [h100_hosts]
      - name: whisper
        model: openai-mirror/whisper-large-v3-turbo
        gpus: 1
    hosts: "{{ query('ansible.builtin.inventory_hostnames', 'gpu_hosts') }}"
    facts: vllm_host
    models: "{{ known.models | default({}) }}"
    unread: "{{ known.msg | default('') }}"
    ports: 8000-8999
    missing: keep
    show: true
  run_once: true
  register: placed

- name: Show what this host gets
  ansible.builtin.debug:
    msg: "{{ placed.hosts[inventory_hostname] | default([]) }}"
"""

RETURN = r"""
hosts:
  description:
    - For each host that gets services, a list of C(name), C(gpus) (the UUIDs) and C(port). The filter
      P(gpufleet.vllm.placed_services#filter) makes services of them.
  returned: success
  type: dict
  sample:
    gpu-01:
      - name: whisper
        gpus: [GPU-0f4c1d5e-0000-4000-8000-000000000001]
        port: 8000
findings:
  description: All findings, worst first, each with C(code), C(severity), C(service), C(seen), C(expected), C(remedy).
  returned: success
  type: list
  elements: dict
  sample: []
host_findings:
  description: What each host's plan is to say of errors, in one finding. Empty where there is none.
  returned: success
  type: list
  elements: dict
  sample: []
errors:
  description: How many of the findings are errors. With one nothing may be changed on any host.
  returned: success
  type: int
  sample: 0
search:
  description:
    - How the placement came about. V(heuristic) and V(solver) placed everything. Not everything was placed with
      V(impossible) (proven, beside what runs), V(limit) (the search was not finished) and V(missing) (there is no
      OR-Tools).
  returned: success
  type: str
  sample: heuristic
"""
