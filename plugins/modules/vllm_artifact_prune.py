#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_artifact_prune
short_description: Remove model artifacts that a host no longer needs
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Looks below directories for what M(gpufleet.vllm.modelscope_model) keeps there, and for what its interrupted runs
    left, and removes what nobody needs.
  - Kept is what O(plan) names, what O(keep) names, what C(record.json) or C(plan.json) below O(root) name (a rollback
    needs the first), what was used within O(age), what a process has open or a container has mounted, and what
    another run is working on. Last use is the newest of its publication, the deploy that stopped naming it, and the
    access times of its files, where the file system keeps them.
  - Of a model only the files in its manifest go; others stay, and are told in C(foreign). Directories without a
    manifest of ours are not looked at. Symbolic links are not followed.
  - It refuses to run where C(record.json) and C(plan.json) are missing or cannot be read, and where nothing at all is
    needed; see O(without_record).
  - While it removes it holds the lock of M(gpufleet.vllm.vllm_stack), so that no deploy is under way.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - The results are those of a run. Nothing is written, not even a lock.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  root:
    description:
      - The directory on the host that holds everything this collection keeps there.
    type: path
    default: /var/lib/gpufleet-vllm
  roots:
    description:
      - Directories to look in, eight levels deep. Each may be a link; below it none is followed.
    type: list
    elements: path
    required: true
  age:
    description:
      - How long an artifact, or what an interrupted run left, has to be unused before it goes. A number and V(m),
        V(h), V(d) or V(w), or V(0).
    type: str
    default: 30d
  keep:
    description:
      - What stays in any case. An absolute path stands for itself, all below it and the artifact that it lies in.
        Anything else is a pattern for the ids of models.
    type: list
    elements: str
    default: []
  keep_published:
    description:
      - Marks of artifacts that stay in any case, as RV(needed.published) of another host has them. They tell an
        artifact on a disk that hosts mount at different paths.
    type: list
    elements: str
    default: []
  plan:
    description:
      - The plan that this run made, as M(gpufleet.vllm.vllm_plan) returns it. Every path that stands in it is needed.
    type: dict
    default: {}
  without_record:
    description:
      - Go on where no record tells what the host needs, or nothing is needed. Then O(plan), O(keep) and O(age) alone
        protect.
    type: bool
    default: false
  shared:
    description:
      - Remove from network file systems, too. Other hosts may need what lies there, so name all of it in O(keep), and
        in O(keep_published) where they have it under other paths. Each host's RV(needed) says what that is.
    type: bool
    default: false
notes:
  - What a process of another user has open is only seen by root. Where some could not be looked into, a warning says
    so.
  - Stopped containers, and hosts other than this one, are not asked.
seealso:
  - module: gpufleet.vllm.modelscope_model
  - module: gpufleet.vllm.vllm_record
"""

EXAMPLES = r"""
- name: Remove models that no service needed for a month
  gpufleet.vllm.vllm_artifact_prune:
    root: /var/lib/gpufleet-vllm
    roots:
      - /var/lib/gpufleet-vllm/models
    plan: "{{ vllm_plan }}"

- name: Make room now, but for one family and a draft model
  gpufleet.vllm.vllm_artifact_prune:
    roots:
      - /data/models
    age: 12h
    keep:
      - Qwen/*
      - /data/models/draft

- name: Empty a disk that several hosts shared, and that none uses any more
  gpufleet.vllm.vllm_artifact_prune:
    roots:
      - /mnt/models
    age: "0"
    without_record: true
    shared: true

- name: Ask each host what it needs of the disks that it shares
  gpufleet.vllm.vllm_artifact_prune:
    roots:
      - /mnt/models
  check_mode: true
  register: look

- name: Remove what none of them needs
  gpufleet.vllm.vllm_artifact_prune:
    roots:
      - /mnt/models
    keep: "{{ looks | map(attribute='paths') | flatten }}"
    keep_published: "{{ looks | map(attribute='published') | flatten }}"
    shared: true
  vars:
    looks: "{{ ansible_play_hosts_all | map('extract', hostvars) | map(attribute='look.needed') }}"
"""

RETURN = r"""
artifacts:
  description: Each artifact and leftover that was found, by path.
  returned: success, and where some could not be removed
  type: list
  elements: dict
  contains:
    path:
      description: Its directory.
      type: str
      sample: /var/lib/gpufleet-vllm/models/Qwen2.5-VL-7B-Instruct
    kind:
      description: V(artifact), or V(leftover) of an interrupted run.
      type: str
      sample: artifact
    model:
      description: The model; V(null) for a leftover.
      type: str
      sample: Qwen/Qwen2.5-VL-7B-Instruct
    revision:
      description: The revision that was asked for.
      type: str
      sample: master
    commit:
      description: The commit that it resolved to.
      type: str
      sample: 2e50b77b0eee3083842019e257b74854323d880a
    bytes:
      description: Size of its files.
      type: int
      sample: 16584333312
    bytes_freed:
      description:
        - What its removal gives back to the file system. A file that has another name elsewhere gives nothing back.
      type: int
      sample: 16584335360
    foreign:
      description: Paths in it that are not of the model, and stay; at most 100.
      type: list
      elements: str
      sample: []
    last_use:
      description: When it was last used, in UTC.
      type: str
      sample: "2026-03-01T12:00:00Z"
    last_use_by:
      description: What tells so, V(published), V(deployed), V(read) or, for a leftover, V(written).
      type: str
      sample: deployed
    action:
      description: V(kept) or V(removed); in check mode what would be.
      type: str
      sample: removed
    reason:
      description:
        - Why, V(unused) for what is removed. What is kept is V(wanted), V(named), V(recorded), V(applied), V(recent),
          V(in_use), V(locked), V(shared), V(interrupted) (it holds the only copy of a version), V(unreadable) or
          V(failed).
      type: str
      sample: unused
    why:
      description: The same in words.
      type: str
      sample: deployed 121 days ago
needed:
  description:
    - What must not go on any other host that sees the same disks. All that is kept, but for V(shared), and all that
      plan and record name, also outside O(roots).
  returned: success, and where some could not be removed
  type: dict
  contains:
    paths:
      description: For O(keep).
      type: list
      elements: str
      sample: [/mnt/models/Qwen2.5-VL-7B-Instruct]
    published:
      description:
        - For O(keep_published). What each publication wrote into the manifest, with the inode of that where it is the
          same number for every host.
      type: list
      elements: str
      sample: ["9f3c0a51d2e47b86@nfs:1074"]
bytes_freed:
  description: What all removals give back.
  returned: success, and where some could not be removed
  type: int
  sample: 16584335360
failures:
  description: What could not be removed. The task fails then, after all the rest was removed.
  returned: success, and where some could not be removed
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._prune import argument_spec, failure, run
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    try:
        result = run(module)
    except (FleetError, OSError) as exc:
        error = as_failure(exc)
        module.fail_json(msg=str(error), **error.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    if result["failures"]:
        error = failure(result["failures"])
        module.fail_json(msg=str(error), **error.as_result(), **result)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
