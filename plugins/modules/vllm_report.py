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
  - Prints what the services of a run were asked, what they answered and how fast, or why they failed, and writes the
    same as JSON if asked to. Up to five hosts are shown one after the other, more of them as a table with a line for
    each service and the failures below.
  - In the table V(-) is a question that was not asked, and V(none) under C(key) a service that needs no API key.
    Columns that do not fit the terminal are left out, or taken together.
  - Runs on the controller. Use it once for the play.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
notes:
  - The file is written at once or not at all. Its C(schema) is 1, and rises when a key changes its meaning or goes, not
    when one is added. Beside it stand C(title), C(finished) (when, in UTC), C(ok) (whether all is well), C(notes),
    C(counts) (C(hosts), C(hosts_failed), C(hosts_unreachable), C(services), C(services_ok)) and C(hosts).
  - Each host has C(failure) (empty if there is none), C(unreachable), C(engine), C(runtime), C(artifacts) (each with
    C(model), C(path), C(commit), C(bytes_total), C(bytes_fetched), C(seconds), C(changed) and C(ok)) and C(services).
    Each service has C(name), C(model), C(revision), C(served_model_name), C(url), C(keyed) (whether it asks for an API
    key), C(gpus), C(artifact), C(state), C(state_text), C(version), C(ok) and C(results), which are those of
    RV(gpufleet.vllm.vllm_probe#module:reports).
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
  lost:
    description:
      - Hosts of the run that left it because their connection broke, so that they have no part in O(hosts).
    type: list
    elements: str
    default: []
  following:
    description:
      - Commands that a user may want next, each under a label.
    type: dict
    default: {}
  notes:
    description:
      - Lines that are not failures and still have to be read, such as the warnings of a preflight.
    type: list
    elements: str
    default: []
  layout:
    description:
      - How the hosts are shown. V(auto) is V(blocks) for up to five hosts and V(table) for more.
    type: str
    choices: [auto, blocks, table]
    default: auto
  path:
    description:
      - A file on the controller that the report is written to, as JSON, in a directory that is there. Empty
        writes none.
    type: path
    default: ""
"""

EXAMPLES = r"""
- name: Show what answers
  gpufleet.vllm.vllm_report:
    title: Deployed
    hosts:
      gpu-01: "{{ vllm_plan | gpufleet.vllm.host_report(reports=probed.reports) }}"
    lost: "{{ ansible_play_hosts_all | difference(ansible_play_hosts) }}"
    layout: auto
    notes:
      - "gpu.persistence: persistence mode is off (all 14 hosts)"
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
