#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: modelscope_model_info
short_description: List the files of a ModelScope model at a revision
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Resolves a revision of a model repository on ModelScope, or a hub that speaks its protocol, to its commit and
    lists the files with size and SHA-256, as M(gpufleet.vllm.modelscope_model) would fetch them.
  - Writes nothing.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
  - gpufleet.vllm._hub
  - gpufleet.vllm._hub.connection
seealso:
  - module: gpufleet.vllm.modelscope_model
"""

EXAMPLES = r"""
- name: See what a model consists of
  gpufleet.vllm.modelscope_model_info:
    model: Qwen/Qwen2.5-VL-7B-Instruct
    revision: master
  register: model

- name: Say how large its weights are, asking a mirror
  gpufleet.vllm.modelscope_model_info:
    model: acme/private-llm
    include: "*.safetensors"
    exclude: "onnx/*"
    endpoint: https://models.example.com
    token: "{{ vault_modelscope_token }}"
    timeout: 20
  register: weights
"""

RETURN = r"""
commit:
  description: Commit that the revision resolved to. Null if the hub does not tell it.
  returned: success
  type: str
  sample: 2e50b77b0eee3083842019e257b74854323d880a
bytes_total:
  description: Size of all selected files.
  returned: success
  type: int
  sample: 16584333312
files:
  description: The selected files, sorted by path.
  returned: success
  type: list
  elements: dict
  contains:
    path:
      description: Path in the repository.
      type: str
      sample: config.json
    size:
      description: Bytes.
      type: int
      sample: 1374
    sha256:
      description: Hexadecimal SHA-256 of the content.
      type: str
      sample: 9bda9a6dbb5ff9a0d4a5b7d0d7d1e1c0f1a5d5e1a3b2c1d0e9f8a7b6c5d4e3f2
manifest_digest:
  description: >-
    SHA-256 over one line C(SHA256 SIZE PATH) per file, sorted by path; the same as
    RV(gpufleet.vllm.modelscope_model#module:manifest_digest).
  returned: success
  type: str
  sample: 4f6d3c2b1a09f8e7d6c5b4a392817060f5e4d3c2b1a0f9e8d7c6b5a493827160
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._artifact_module import run_info
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import hub_argument_spec, run_module


def main() -> None:
    module = AnsibleModule(argument_spec=hub_argument_spec(), supports_check_mode=True)
    run_module(module, run_info)


if __name__ == "__main__":
    main()
