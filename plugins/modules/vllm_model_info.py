#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_model_info
short_description: Read what decides the memory of models, before they are fetched
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Reads the config.json and the headers of the safetensors files of models, and returns what a plan needs to reckon
    their memory - the sizes in the config, and the bytes of the weights by how they split over GPUs.
  - A model is read from its directory where it lies there complete at its revision, else from the hub. There only
    config.json, the index and the first bytes of each file are asked for, so that it takes seconds and some hundred
    kilobytes, and at most 64 MiB a model. Where the hub cannot be reached, a directory that has a config.json is read
    as it lies.
  - A model that cannot be read has an C(error) in its entry; the module fails only for options that cannot be.
  - Writes nothing.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
  - gpufleet.vllm._hub.connection
options:
  models:
    description:
      - The models to read. One call can read all models of a host.
    type: list
    elements: dict
    required: true
    suboptions:
      model:
        description:
          - The model's id on the hub, V(owner/name).
        type: str
        required: true
      revision:
        description:
          - Branch, tag, or commit of 40 hexadecimal digits.
        type: str
        default: master
      path:
        description:
          - The directory in which the model lies, or will lie. It need not exist.
        type: path
      include:
        description:
          - Shell patterns; only files that match one of them are looked at, as M(gpufleet.vllm.modelscope_model) would
            fetch them. Empty means all files.
        type: list
        elements: str
        default: []
      exclude:
        description:
          - Shell patterns; files that match one of them are not looked at. Applied after O(models[].include).
        type: list
        elements: str
        default: []
  model_root:
    description:
      - Where each model without O(models[].path) lies, or will lie, under its name without the owner.
    type: path
seealso:
  - module: gpufleet.vllm.modelscope_model_info
  - module: gpufleet.vllm.vllm_plan
"""

EXAMPLES = r"""
- name: Read what decides the memory of the models of a host
  gpufleet.vllm.vllm_model_info:
    models:
      - model: Qwen/Qwen2.5-VL-7B-Instruct
        revision: master
        path: /data/models/Qwen2.5-VL-7B-Instruct
      - model: openai-mirror/whisper-large-v3-turbo
        exclude: "*.fp32*"
  register: known

- name: Read one of a mirror, weights only
  gpufleet.vllm.vllm_model_info:
    models:
      - model: acme/private-llm
        include:
          - "*.json"
          - "*.safetensors"
    model_root: /data/models
    endpoint: https://models.example.com
    token: "{{ vault_modelscope_token }}"
    timeout: 20
  register: private
"""

RETURN = r"""
models:
  description: An entry for each model, by C(OWNER/NAME@REVISION).
  returned: success
  type: dict
  sample:
    "Qwen/Qwen2.5-VL-7B-Instruct@master":
      commit: 2e50b77b0eee3083842019e257b74854323d880a
      source: hub
      path: /data/models/Qwen2.5-VL-7B-Instruct
      bytes_total: 16584414680
      artifact_bytes: 16595981281
      missing_bytes: 16595981281
      files: [model-00001-of-00005.safetensors]
      config: {"model_type": "qwen2_5_vl", "num_hidden_layers": 28}
      weights: {"exact": true, "total_bytes": 16584333312}
      error: null
  contains:
    commit:
      description: Commit that the revision resolved to. Null if it is not known.
      type: str
    source:
      description: >-
        Where it was read from - V(artifact), its complete directory; V(hub); V(directory), a directory that nobody
        vouches for, since the hub could not be reached.
      type: str
    path:
      description: The directory that was asked for. Null if none was.
      type: str
    bytes_total:
      description: Bytes of the files that hold the weights.
      type: int
    artifact_bytes:
      description: Bytes of all files of the artifact.
      type: int
    missing_bytes:
      description: >-
        Bytes of them that a fetch to C(path) would still bring, by what lies there and what an interrupted fetch left.
        Null without a path or the hub's list.
      type: int
    files:
      description: The files among them that an engine could load weights from.
      type: list
      elements: str
    config:
      description: The config.json without lists of tokens and the like.
      type: dict
    weights:
      description: >-
        Bytes of the weights as they are loaded - C(layers), for each layer what is split over all GPUs, what over KV
        heads at most and what is whole on each; C(embedding), C(head), C(tower) for the encoder of images or audio and
        C(tower_whole) for what of it is not split, C(other), and C(unused) for what is not loaded.
      type: dict
    error:
      description: Why it could not be read, with C(code), C(seen), C(expected) and C(remedy). Null if it could.
      type: dict
requests:
  description: Requests that were sent to the hub.
  returned: success
  type: int
  sample: 9
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._hub_options import run_module
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_info import argument_spec, run


def main() -> None:
    module = AnsibleModule(argument_spec=argument_spec(), supports_check_mode=True)
    run_module(module, run)


if __name__ == "__main__":
    main()
