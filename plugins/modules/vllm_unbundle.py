#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_unbundle
short_description: Verify a bundle and have its content in a directory
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Verifies the signature of the manifest that M(gpufleet.vllm.vllm_bundle) wrote, then that no file or part is missing
    or too many, then size and SHA-256 of every file, and believes nothing else in a bundle. A part that is damaged is
    named.
  - What it writes is verified and can be loaded. Each model is an artifact of its own, as
    M(gpufleet.vllm.modelscope_model) publishes it.
  - Only what is not there yet is copied. On one file system the files of a directory are linked.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - The signature and all names and sizes are verified, the content of the files is not.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  path:
    description:
      - The bundle's directory, or the name of its tar, with or without C(.tar).
    type: path
    required: true
  state:
    description:
      - V(present) has the content in O(dest). V(checked) reads all of the bundle and writes nothing.
    type: str
    choices: [present, checked]
    default: present
  dest:
    description:
      - The directory to have the content in. It is this module's own, and holds the last bundle only.
    type: path
  allowed_signers:
    description:
      - Who may have signed the bundle. Lines of a name, a key type and a public key, as C(ssh-keygen) has it in its
        file of allowed signers.
    type: str
    default: ""
  signer:
    description:
      - The name in O(allowed_signers) that must have signed; without it any of them may have.
    type: str
    default: ""
  allow_unsigned:
    description:
      - Take a bundle that is not signed, or that nobody could verify since O(allowed_signers) is empty.
    type: bool
    default: false
seealso:
  - module: gpufleet.vllm.vllm_bundle
  - module: gpufleet.vllm.vllm_bundle_images
"""

EXAMPLES = r"""
- name: Have a bundle's content on the mirror
  gpufleet.vllm.vllm_unbundle:
    path: /mnt/stick/fleet
    state: present
    dest: /srv/gpufleet-vllm/bundle
    allowed_signers: bundles ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJq6Ff8M1k1VQ1vH5iCkM0iS1JkpQv0m3i3kzIuVtMmT
    signer: bundles
    allow_unsigned: false
"""

RETURN = r"""
content:
  description:
    - The C(models), C(images), C(wheels) and the C(collection) of the bundle. The C(directory) of a model or of wheels
      is below O(dest).
  returned: success
  type: dict
created:
  description: When the bundle was made.
  returned: success
  type: str
  sample: "2026-11-25T09:30:00Z"
signer:
  description: Who signed it; empty where that was not verified.
  returned: success
  type: str
dest:
  description: As O(dest), absolute.
  returned: success
  type: str
path:
  description: The bundle.
  returned: success
  type: str
files:
  description: How many files it holds.
  returned: success
  type: int
bytes_total:
  description: Bytes of all files in it.
  returned: success
  type: int
bytes_copied:
  description: Bytes that were copied or linked; in check mode those that would be.
  returned: success
  type: int
manifest_sha256:
  description: The SHA-256 of the bundle's manifest, to compare with what the other side tells.
  returned: success
  type: str
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle_module import run_unbundle
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "checked"], "default": "present"},
            "dest": {"type": "path"},
            "allowed_signers": {"type": "str", "default": ""},
            "signer": {"type": "str", "default": ""},
            "allow_unsigned": {"type": "bool", "default": False},
        },
        required_if=[("state", "present", ["dest"])],
        supports_check_mode=True,
    )
    try:
        result = run_unbundle(module.params, module.check_mode)
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
