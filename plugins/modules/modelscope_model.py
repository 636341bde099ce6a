#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: modelscope_model
short_description: Keep a verified ModelScope model in a directory
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Downloads a model repository from ModelScope, or a hub that speaks its protocol, verifies every file's size and
    SHA-256 against the hub's listing, and publishes all of them at once. Interrupted downloads resume.
  - What is in the directory keeps serving until the new version is complete and verified. A failure leaves it as it
    was.
  - A directory that the official C(modelscope) client filled is adopted after its files were verified; only missing
    or wrong ones are fetched. The official client, run on a directory of this module, finds nothing to fetch.
  - A second run sends one request for a branch or tag, none for a commit, and looks at size and modification time of
    the files only.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._hub
  - gpufleet.vllm._hub.connection
  - gpufleet.vllm._transfer
attributes:
  check_mode:
    support: full
    details:
      - RV(bytes_fetched) is the exact number of bytes that would be fetched. Nothing is written, not even a lock.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  path:
    description:
      - Directory of the model.
      - The default is the place where the official client keeps it,
        C($MODELSCOPE_CACHE/models/OWNER--NAME/snapshots/REVISION), with C(~/.cache/modelscope) if E(MODELSCOPE_CACHE)
        is not set on the managed host.
      - Must not be a symbolic link. Links below it are not followed.
      - Downloads are put together in a private directory beside it, C(.NAME.gpufleet), and swapped in with one
        rename. If O(path) is a mount point or its parent is not writable, they are put together in
        C(.gpufleet/staging) inside it, and each file is replaced atomically but not all of them at once.
    type: path
    aliases: [local_dir]
  state:
    description:
      - V(present) makes sure that the files are there. Files whose size or modification time is not as recorded are
        hashed again. If the hub cannot be reached and the complete artifact of this model and revision is there, that
        is a success with a warning.
      - V(verified) is V(present) with every file hashed again; only bad ones are fetched.
      - V(absent) removes the files that this module keeps in O(path), whichever revision they are, then directories
        left empty. Other files stay and are reported in RV(foreign). A directory without this module's manifest, or
        with that of another model, is left alone with a warning. The hub is not asked.
    type: str
    choices: [present, absent, verified]
    default: present
  lock_timeout:
    description:
      - Seconds to wait for another run on the same directory. The error names that run's process, host and start.
    type: float
    default: 60.0
notes:
  - Files get mode V(0644) and directories V(0755), so that a service's own user can read them; directories that are
    there keep mode and owner. Files belong to the remote user.
  - The module keeps C(.gpufleet/manifest.json) in O(path), and nothing else once it succeeded.
seealso:
  - module: gpufleet.vllm.modelscope_model_info
"""

EXAMPLES = r"""
- name: Keep a model where the official client would
  gpufleet.vllm.modelscope_model:
    model: Qwen/Qwen2.5-VL-7B-Instruct

- name: Pin a release, without the weights in other formats
  gpufleet.vllm.modelscope_model:
    model: Qwen/Qwen2.5-VL-7B-Instruct
    revision: v1.0.0
    path: /srv/models/qwen2.5-vl
    include:
      - "*.safetensors"
      - "*.json"
      - "*.txt"
    exclude:
      - onnx/*

- name: Fetch a private model from a mirror, with patience for a slow link and for another run
  gpufleet.vllm.modelscope_model:
    model: acme/private-llm
    path: /srv/models/private-llm
    endpoint: https://models.example.com
    token: "{{ vault_modelscope_token }}"
    timeout: 120
    connections: 8
    bandwidth: 200MB
    retries: 20
    lock_timeout: 3600

- name: Take pickles from an author whose code is trusted, with the official client
  gpufleet.vllm.modelscope_model:
    model: acme/old-llm
    path: /srv/models/old-llm
    allow_pickle: true
    engine: modelscope
    client: /opt/modelscope-client/bin/modelscope

- name: Hash everything again and repair what is bad
  gpufleet.vllm.modelscope_model:
    model: acme/private-llm
    path: /srv/models/private-llm
    state: verified

- name: Remove the model's files, leaving others alone
  gpufleet.vllm.modelscope_model:
    model: acme/private-llm
    path: /srv/models/private-llm
    state: absent
"""

RETURN = r"""
commit:
  description: Commit that the revision resolved to. Null if the hub does not tell it.
  returned: success
  type: str
  sample: 2e50b77b0eee3083842019e257b74854323d880a
path:
  description: The model's directory, absolute.
  returned: success
  type: str
  sample: /srv/models/qwen2.5-vl
bytes_fetched:
  description: Bytes received from the hub for file contents. In check mode, the bytes that would be.
  returned: success
  type: int
  sample: 16584333312
bytes_total:
  description: Size of all files of the artifact.
  returned: success
  type: int
  sample: 16584333312
files:
  description: Every file of the artifact, sorted by path; with O(state=absent), the files removed.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Path relative to RV(path).
      type: str
      sample: model-00001-of-00005.safetensors
    size:
      description: Bytes.
      type: int
      sample: 3900233256
    sha256:
      description: Hexadecimal SHA-256 of the content.
      type: str
      sample: 9bda9a6dbb5ff9a0d4a5b7d0d7d1e1c0f1a5d5e1a3b2c1d0e9f8a7b6c5d4e3f2
published:
  description:
    - A mark that changes each time that other bytes were put in place, for a new revision or to repair a file. Who
      loaded the files before has to load them again.
    - V(null) where there is no artifact, and in check mode where one would be put in place.
  returned: success
  type: str
  sample: 9f86d081884c7d65
manifest_digest:
  description: >-
    SHA-256 over one line C(SHA256 SIZE PATH) per file, sorted by path. Two directories with equal digests hold equal
    models.
  returned: success
  type: str
  sample: 4f6d3c2b1a09f8e7d6c5b4a392817060f5e4d3c2b1a0f9e8d7c6b5a493827160
left_out:
  description: Paths that were selected and not taken, since they are pickles. See O(allow_pickle).
  returned: success
  type: list
  elements: str
  sample: [pytorch_model.bin]
adopted:
  description: Files that were there, were not in the manifest, and were found right.
  returned: success
  type: int
  sample: 0
foreign:
  description: Paths in the directory that are not of the model, at most 100. They are never removed.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_module import argument_spec, run
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import run_module


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    run_module(module, run)


if __name__ == "__main__":
    main()
