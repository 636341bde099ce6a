#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_images
short_description: Keep container images in a directory, or push them from there, with their digests
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Copies images from registries into a directory of blobs, where layers that images share are kept once, and from
    there into a registry. The digest of an image stays what it was, so what is pinned outside is pinned inside.
  - Uses C(skopeo), and no Docker daemon.
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
  images:
    description:
      - Names of images, or dicts with C(image) and the C(repository) and C(tag) to give it inside. Without them it
        keeps its own, without the registry's name.
      - With O(state=pushed) each has its C(digest), as RV(images) has it.
    type: list
    elements: raw
    required: true
  path:
    description:
      - The directory of blobs. It is this module's own; with O(state=stored) one that holds anything else is refused.
    type: path
    required: true
  state:
    description:
      - V(stored) has the images in O(path), V(pushed) has them in O(registry).
    type: str
    choices: [stored, pushed]
    default: stored
  exclusive:
    description:
      - With O(state=stored), remove what none of these images needs. Otherwise what is in O(path) stays there.
    type: bool
    default: true
  registry:
    description:
      - The registry to push to, such as V(mirror.example.com:5000). Required with O(state=pushed).
    type: str
  platforms:
    description:
      - Of images for several platforms, take the one for the platform that is listed, such as V(linux/amd64). The
        digest is then that of this one. Empty takes all platforms, and keeps the digest of the whole.
    type: list
    elements: str
    default: []
  tls_verify:
    description:
      - Whether the registry must be reached over TLS with a certificate that is known.
    type: bool
    default: true
  cert_dir:
    description:
      - A directory with the certificate of the registry's authority (C(*.crt)), and a client's (C(*.cert), C(*.key)).
    type: path
  authfile:
    description:
      - The file that C(skopeo login) or C(docker login) wrote. Passwords are taken from there only.
    type: path
  timeout:
    description:
      - How long one image may take, in seconds.
    type: int
    default: 7200
seealso:
  - module: gpufleet.vllm.vllm_bundle
  - module: gpufleet.vllm.vllm_image
"""

EXAMPLES = r"""
- name: Keep an image in a directory
  gpufleet.vllm.vllm_bundle_images:
    images:
      - vllm/vllm-openai:v0.33.0
    path: /srv/bundle/images
    platforms: [linux/amd64]
    authfile: ~/.docker/config.json
  register: stored

- name: Push it
  gpufleet.vllm.vllm_bundle_images:
    images: "{{ stored.images }}"
    path: /srv/bundle/images
    state: pushed
    exclusive: false
    registry: mirror.example.com:5000
    tls_verify: true
    cert_dir: /etc/docker/certs.d/mirror.example.com:5000
    timeout: 3600
"""

RETURN = r"""
images:
  description:
    - Each image with C(repository) and C(tag) (its name inside), C(digest), C(action) (V(unchanged), V(stored) or
      V(pushed)), C(blobs) (the digests of all that it consists of) and C(bytes_missing) (of layers that were fetched).
  returned: success
  type: list
  elements: dict
  sample:
    - image: vllm/vllm-openai:v0.33.0
      repository: vllm/vllm-openai
      tag: v0.33.0
      digest: sha256:4c1e...
      action: stored
      blobs: [sha256:4c1e..., sha256:77aa...]
      bytes_missing: 9000000000
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle_module import run_images
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "raw", "required": True},
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["stored", "pushed"], "default": "stored"},
            "exclusive": {"type": "bool", "default": True},
            "registry": {"type": "str"},
            "platforms": {"type": "list", "elements": "str", "default": []},
            "tls_verify": {"type": "bool", "default": True},
            "cert_dir": {"type": "path"},
            "authfile": {"type": "path"},
            "timeout": {"type": "int", "default": 7200},
        },
        required_if=[("state", "pushed", ["registry"])],
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run_images(module.params, module.check_mode))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
