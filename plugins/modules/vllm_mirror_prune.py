#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_mirror_prune
short_description: Leave nothing on a mirror but the named models
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Removes every model, branch, tag and commit from a mirror that O(keep) does not name. A commit that a kept branch or
    tag means stays.
  - Hosts that pinned a commit which is removed cannot fetch it any more. Run in check mode first; RV(bytes_freed) says
    what it is worth.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  root:
    description:
      - The directory that the mirror serves.
    type: path
    required: true
  keep:
    description:
      - What stays. An empty list removes everything.
    type: list
    elements: dict
    required: true
    suboptions:
      model:
        description: Model id, C(owner/name).
        type: str
        required: true
      revision:
        description: Branch, tag or commit.
        type: str
        default: master
      commit:
        description: A commit that stays whatever the revision means now.
        type: str
      path:
        description: The artifact below O(work) that the model was published from.
        type: path
  work:
    description:
      - The directory in which the artifacts were fetched. Artifacts directly below it that no O(keep[].path) names are
        removed, and what their unfinished downloads left. Of an artifact only what its manifest has goes. What a
        process on the host uses by a path in it, or a container has mounted, stays. Nothing else in it is touched.
      - Name a directory that is the mirror's own. Other hosts are not asked.
    type: path
  lock_timeout:
    description:
      - Seconds to wait for another run on the same model, on the mirror or below O(work).
    type: float
    default: 60.0
seealso:
  - module: gpufleet.vllm.vllm_mirror_model
"""

EXAMPLES = r"""
- name: Keep two revisions of one model
  gpufleet.vllm.vllm_mirror_prune:
    root: /srv/mirror
    keep:
      - model: Qwen/Qwen2.5-VL-7B-Instruct
        revision: master
        path: /srv/mirror/work/qwen2.5-vl
      - model: Qwen/Qwen2.5-VL-7B-Instruct
        revision: v1.0.0
        commit: 2e50b77b0eee3083842019e257b74854323d880a
    work: /srv/mirror/work
    lock_timeout: 600
"""

RETURN = r"""
models_removed:
  description: Models of which nothing is left.
  returned: success
  type: list
  elements: str
  sample: [acme/old]
revisions_removed:
  description: Branches and tags that were removed.
  returned: success
  type: list
  elements: str
  sample: [acme/old@master]
commits_removed:
  description: Commits that were removed.
  returned: success
  type: list
  elements: str
  sample: [acme/old@2e50b77b0eee3083842019e257b74854323d880a]
artifacts_removed:
  description: Directories below O(work) that were removed.
  returned: success
  type: list
  elements: str
  sample: [/srv/mirror/work/acme--old--master]
left:
  description:
    - What stays below O(work) although nobody wants it, and why. Files that are not of a model, what is in use, and
      what cannot be told to be ours. Each is a warning, too.
  returned: success
  type: list
  elements: str
  sample: ["/srv/mirror/work/acme--old--master keeps what is not of the model: notes.txt."]
bytes_freed:
  description: Size of the files of which no other name is left.
  returned: success
  type: int
  sample: 16584333312
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import run_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._mirror_module import prune_argument_spec, run_prune


def main() -> None:
    module = AnsibleModule(argument_spec=prune_argument_spec(), supports_check_mode=True)
    run_module(module, run_prune)


if __name__ == "__main__":
    main()
