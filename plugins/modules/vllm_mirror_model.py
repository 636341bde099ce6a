#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_mirror_model
short_description: Put a model artifact on a mirror, or take it off
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Puts an artifact that M(gpufleet.vllm.modelscope_model) fetched and verified into the layout that the role
    P(gpufleet.vllm.mirror#role) serves with nginx. It is served under the commit that the hub gave it, so a revision
    that is pinned means the same on the hub and on every mirror.
  - The files are hard links of those in the artifact, and of those in other commits of the model where the content is
    the same; where the file system cannot, they are copied and hashed on the way.
  - A commit appears whole, by one rename, then the branch or tag moves to it, then the list of revisions changes. What
    is being served meanwhile goes on.
  - Of a commit that is there with other files of the same commit, the union is served.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Where the artifact is not fetched yet and O(commit) is set, C(changed) is exact and RV(files), RV(bytes_total)
        and RV(bytes_copied) are V(null).
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  root:
    description:
      - The directory that the mirror serves. Its models are below C(models).
    type: path
    required: true
  model:
    description:
      - Model id, C(owner/name).
    type: str
    required: true
  path:
    description:
      - The directory of the artifact, with its C(.gpufleet/manifest.json). Needed for O(state=present).
      - It should lie on the file system of O(root), so that files are not stored twice.
    type: path
  revision:
    description:
      - With O(state=present), the branch or tag that is to mean the artifact's commit on the mirror. The default is the
        revision with which it was fetched. A commit makes no name.
      - With O(state=absent), what to remove. A branch or tag goes with its commit, unless another one means that too; a
        commit goes with the names that mean it. Without O(revision) the whole model goes.
    type: str
  commit:
    description:
      - The commit that O(path) must hold. It is an error if it holds another one.
    type: str
  state:
    description:
      - Whether the model is to be on the mirror. The artifact in O(path) is never changed or removed.
    type: str
    choices: [present, absent]
    default: present
  lock_timeout:
    description:
      - Seconds to wait for another run on the same model.
    type: float
    default: 60.0
notes:
  - Files on the mirror are hashed again only where size or modification time differ from what was verified.
seealso:
  - module: gpufleet.vllm.modelscope_model
  - module: gpufleet.vllm.vllm_mirror_prune
"""

EXAMPLES = r"""
- name: Fetch a model to the mirror's file system
  gpufleet.vllm.modelscope_model:
    model: Qwen/Qwen2.5-VL-7B-Instruct
    revision: v1.0.0
    path: /srv/mirror/work/qwen2.5-vl
  register: fetched

- name: Serve it as v1.0.0
  gpufleet.vllm.vllm_mirror_model:
    root: /srv/mirror
    model: Qwen/Qwen2.5-VL-7B-Instruct
    path: /srv/mirror/work/qwen2.5-vl
    revision: v1.0.0
    commit: "{{ fetched.commit }}"

- name: Take one revision off
  gpufleet.vllm.vllm_mirror_model:
    root: /srv/mirror
    model: Qwen/Qwen2.5-VL-7B-Instruct
    revision: v0.9.0
    state: absent
    lock_timeout: 600
"""

RETURN = r"""
commit:
  description: The commit under which the model is served.
  returned: success with O(state=present)
  type: str
  sample: 2e50b77b0eee3083842019e257b74854323d880a
files:
  description: How many files the commit has on the mirror.
  returned: success with O(state=present)
  type: int
  sample: 12
bytes_total:
  description: Their size.
  returned: success with O(state=present)
  type: int
  sample: 16584333312
bytes_copied:
  description: Bytes that were copied because they could not be linked.
  returned: success with O(state=present)
  type: int
  sample: 0
repaired:
  description: Files that were missing or wrong on the mirror and were put there again.
  returned: success with O(state=present)
  type: list
  elements: str
  sample: []
models_removed:
  description: The model, if nothing of it is left.
  returned: success with O(state=absent)
  type: list
  elements: str
  sample: []
revisions_removed:
  description: Branches and tags that were removed.
  returned: success with O(state=absent)
  type: list
  elements: str
  sample: [Qwen/Qwen2.5-VL-7B-Instruct@v0.9.0]
commits_removed:
  description: Commits that were removed.
  returned: success with O(state=absent)
  type: list
  elements: str
  sample: [Qwen/Qwen2.5-VL-7B-Instruct@2e50b77b0eee3083842019e257b74854323d880a]
bytes_freed:
  description: Size of the files of which no other name is left. Files that an artifact shares free nothing.
  returned: success with O(state=absent)
  type: int
  sample: 16584333312
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import run_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror_module import model_argument_spec, run_model


def main() -> None:
    module = AnsibleModule(
        argument_spec=model_argument_spec(),
        required_if=[("state", "present", ("path",))],
        supports_check_mode=True,
    )
    run_module(module, run_model)


if __name__ == "__main__":
    main()
