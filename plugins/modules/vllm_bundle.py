#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle
short_description: Write models, images, wheels and the collection as one signed bundle
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Puts what other modules fetched into one directory or one tar, split where a size is given, with a manifest of every
    file's size and SHA-256 that OpenSSH signs. M(gpufleet.vllm.vllm_unbundle) reads it on the other side.
  - A bundle that holds the same already is left alone. A run that is killed leaves nothing that looks complete.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - The content of a bundle that is there is not read again; its sizes and its manifest are.
options:
  path:
    description:
      - The directory to write, or what the files of the tar are called, without C(.tar).
    type: path
    required: true
  format:
    description:
      - V(directory), in which files are linked where that is possible, or V(tar).
    type: str
    choices: [directory, tar]
    default: directory
  split_size:
    description:
      - Size of the parts of a tar, such as V(4000m) for a FAT file system; V(0) for one file.
    type: str
    default: "0"
  models:
    description:
      - Artifacts on this host that M(gpufleet.vllm.modelscope_model) published, each with C(model), C(revision) and
        C(path).
    type: list
    elements: dict
    default: []
  images:
    description:
      - Images, as RV(gpufleet.vllm.vllm_bundle_images#module:images).
    type: list
    elements: dict
    default: []
  images_path:
    description:
      - The directory that M(gpufleet.vllm.vllm_bundle_images) keeps them in. Required with O(images).
    type: path
  wheels:
    description:
      - Directories with Python packages, each with C(name) and C(path).
    type: list
    elements: dict
    default: []
  collection:
    description:
      - The tarball of a collection.
    type: path
  files:
    description:
      - Further files that the other side needs, such as packages of the operating system.
    type: list
    elements: path
    default: []
  signing_key:
    description:
      - The path of an OpenSSH private key without a passphrase, or of a public key whose private key C(ssh-agent)
        holds. Without it the bundle is not signed.
    type: path
seealso:
  - module: gpufleet.vllm.vllm_unbundle
  - module: gpufleet.vllm.vllm_bundle_images
  - module: gpufleet.vllm.vllm_bundle_wheels
  - module: gpufleet.vllm.vllm_bundle_collection
"""

EXAMPLES = r"""
- name: Write a bundle for sticks with a FAT file system
  gpufleet.vllm.vllm_bundle:
    path: /mnt/stick/fleet
    format: tar
    split_size: 4000m
    models:
      - model: Qwen/Qwen2.5-VL-7B-Instruct
        revision: master
        path: /srv/bundle/models/Qwen/Qwen2.5-VL-7B-Instruct/master
    images: "{{ stored.images }}"
    images_path: /srv/bundle/images
    wheels:
      - name: controller
        path: /srv/bundle/wheels/controller
    collection: /srv/bundle/collection/gpufleet-vllm-0.1.0.tar.gz
    files:
      - /srv/packages/nvidia-container-toolkit_1.17.8_amd64.deb
    signing_key: ~/.ssh/bundle_ed25519
"""

RETURN = r"""
path:
  description: The directory, or the name of the tar without C(.tar).
  returned: success
  type: str
  sample: /mnt/stick/fleet
parts:
  description: The files of a tar, without C(NAME.sha256). Empty for a directory.
  returned: success
  type: list
  elements: str
content:
  description: The C(models), C(images), C(wheels) and the C(collection) in it.
  returned: success
  type: dict
files:
  description: How many files it holds.
  returned: success
  type: int
bytes_total:
  description: Bytes of all files in it.
  returned: success
  type: int
bytes_written:
  description: Bytes that were written, or linked; in check mode those that would be.
  returned: success
  type: int
signed:
  description: Whether it is signed.
  returned: success
  type: bool
format:
  description: As O(format).
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle_module import run_bundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "format": {"type": "str", "choices": ["directory", "tar"], "default": "directory"},
            "split_size": {"type": "str", "default": "0"},
            "models": {"type": "list", "elements": "dict", "default": []},
            "images": {"type": "list", "elements": "dict", "default": []},
            "images_path": {"type": "path"},
            "wheels": {"type": "list", "elements": "dict", "default": []},
            "collection": {"type": "path"},
            "files": {"type": "list", "elements": "path", "default": []},
            "signing_key": {"type": "path", "no_log": False},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run_bundle(module.params, module.check_mode))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
