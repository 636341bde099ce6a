#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_preflight_report
short_description: Show what the preflight found over the fleet
version_added: 0.2.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Asks the rules across hosts, such as whether the replicas of a service have the same GPUs, and shows all findings as
    one table, worst first and grouped by host. Equal findings of several hosts are one.
  - Writes the same as JSON if asked to.
  - Runs on the controller. Use it once for the play.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
notes:
  - The file is written at once or not at all. Its C(schema) is 1, and rises when a key changes its meaning or goes, not
    when one is added. Beside it stand C(title), C(finished) (when, in UTC), C(ok) (whether no host fails), C(fail_on),
    C(skipped) (the codes that were turned off), C(counts), C(hosts) and C(fleet).
  - C(counts) has C(hosts), of them C(hosts_unreachable), C(hosts_failed), C(hosts_warned) and C(hosts_ok), then
    C(checks), C(passed), C(failed), C(unknown) and C(skipped), which count rules on all hosts, and C(errors),
    C(warnings) and C(infos), which count findings.
  - Each of C(hosts) has C(ok), C(severity) (of its worst finding, or empty), C(unreachable), C(failure) (why it was not
    looked at, or empty), C(stopped_by) (the findings that fail it, as text, or empty), C(findings), C(passed),
    C(unknown), C(skipped), C(counts) and C(versions), as in RV(gpufleet.vllm.vllm_preflight#module:report).
  - C(fleet) has C(findings), C(passed), C(unknown) and C(skipped) of the rules across hosts. Each of these findings has
    also C(hosts), those that it is about. Those of the placement stand first, and have none, since they are about the
    fleet. Where they have errors, C(plan.placement_failed) of each host points to them, and is not counted.
options:
  title:
    description:
      - The first words of the table.
    type: str
    default: Preflight
  hosts:
    description:
      - What M(gpufleet.vllm.vllm_preflight) returned, by host; empty for a host on which it did not come to that.
    type: dict
    required: true
  facts:
    description:
      - What M(gpufleet.vllm.vllm_host_info) returned, by host.
    type: dict
    default: {}
  plans:
    description:
      - RV(gpufleet.vllm.vllm_plan#module:plan) by host.
    type: dict
    default: {}
  failures:
    description:
      - Why a host could not be looked at, by host; empty or left out for the others.
    type: dict
    default: {}
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
  skip:
    description:
      - Codes of rules across hosts that are not asked.
    type: list
    elements: str
    default: []
  fail_on:
    description:
      - From which severity on a finding fails its host. Errors of the plan always do.
    type: str
    choices: [error, warning, never]
    default: error
  quiet:
    description:
      - Whether nothing is shown where there is no finding and no rule is turned off.
    type: bool
    default: false
  path:
    description:
      - A file on the controller that the report is written to, as JSON, in a directory that is there. Empty
        writes none.
    type: path
    default: ""
seealso:
  - module: gpufleet.vllm.vllm_preflight
"""

EXAMPLES = r"""
- name: Show what was found
  gpufleet.vllm.vllm_preflight_report:
    title: Preflight
    hosts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'preflight'))) }}"
    facts: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'vllm_host'))) }}"
    plans: "{{ dict(ansible_play_hosts | zip(ansible_play_hosts | map('extract', hostvars, 'vllm_plan'))) }}"
    failures:
      gpu-07: Docker could not be asked.
    lost: "{{ ansible_play_hosts_all | difference(ansible_play_hosts) }}"
    placement: "{{ placed.findings | default([]) }}"
    skip: [fleet.drivers]
    fail_on: warning
    quiet: false
    path: preflight.json
  register: all_hosts
  run_once: true

- name: End where this host has an error
  ansible.builtin.fail:
    msg: "{{ all_hosts.stopped[inventory_hostname] }}"
  when: inventory_hostname in all_hosts.stopped
"""

RETURN = r"""
ok:
  description: Whether no host fails.
  returned: success
  type: bool
  sample: true
counts:
  description: The C(counts) of the report's file.
  returned: success
  type: dict
  sample: {"hosts": 20, "hosts_failed": 1, "checks": 1000, "passed": 990}
stopped:
  description: The findings that fail a host, as text, by host; hosts that do not fail are not in it.
  returned: success
  type: dict
  sample: {}
brief:
  description: Why a host fails or was not looked at, in a few words, by host; the others are not in it.
  returned: success
  type: dict
  sample: {"gpu-03": "plan.docker_down (1 error)"}
notes:
  description: The warnings and the rules that are turned off, a line for each, for the end of a longer run.
  returned: success
  type: list
  elements: str
  sample: ["gpu.persistence: persistence mode is off (14 hosts: gpu-01 .. gpu-14)"]
"""
