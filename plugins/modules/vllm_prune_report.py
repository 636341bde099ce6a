#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_prune_report
short_description: Show what pruning a fleet came to
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Prints each artifact with its size, its last use and why it stays or goes, for all hosts in one table; what goes
    comes first.
  - Runs on the controller. Use it once for the play.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
options:
  title:
    description:
      - The first words of the summary.
    type: str
    default: Pruned
  hosts:
    description:
      - For each host C(artifacts), which is RV(gpufleet.vllm.vllm_artifact_prune#module:artifacts), C(failure) where it
        failed, and C(unreachable).
    type: dict
    required: true
  lost:
    description:
      - Hosts of the run that left it because their connection broke, so that they have no part in O(hosts).
    type: list
    elements: str
    default: []
  done:
    description:
      - Whether the artifacts were removed, and not only looked at.
    type: bool
    required: true
  following:
    description:
      - Commands that a user may want next, each under a label.
    type: dict
    default: {}
seealso:
  - module: gpufleet.vllm.vllm_artifact_prune
"""

EXAMPLES = r"""
- name: Show what would go
  gpufleet.vllm.vllm_prune_report:
    title: Would prune
    hosts:
      gpu-01:
        artifacts: "{{ pruned.artifacts }}"
    lost: "{{ ansible_play_hosts_all | difference(ansible_play_hosts) }}"
    done: false
    following:
      remove it: ansible-playbook playbooks/prune.yml -e vllm_prune_confirm=true
  run_once: true
"""

RETURN = r"""
ok:
  description: Whether no host failed.
  returned: success
  type: bool
  sample: true
"""
