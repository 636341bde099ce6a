#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_collection
short_description: Make the tarball of a collection, from a checkout or an installed one
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Makes what C(ansible-galaxy collection install) takes. Equal content makes an equal tarball.
  - An installed collection is held to the SHA-256 of its files. Of a checkout the inventories stay out; it is built by
    C(ansible-galaxy collection build), so this must run where ansible-core is.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  source:
    description:
      - The directory of the collection.
    type: path
    required: true
  path:
    description:
      - The directory to have the tarball in.
    type: path
    required: true
seealso:
  - module: gpufleet.vllm.vllm_bundle
"""

EXAMPLES = r"""
- name: Make the tarball of this collection
  gpufleet.vllm.vllm_bundle_collection:
    source: "{{ role_path }}/../.."
    path: /srv/bundle/collection
  delegate_to: localhost
"""

RETURN = r"""
path:
  description: The tarball.
  returned: success
  type: str
  sample: /srv/bundle/collection/gpufleet-vllm-0.1.0.tar.gz
sha256:
  description: Its SHA-256.
  returned: success
  type: str
bytes_total:
  description: Its size.
  returned: success
  type: int
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle_collection import present
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "source": {"type": "path", "required": True},
            "path": {"type": "path", "required": True},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**present(module.params["source"], module.params["path"], module.check_mode))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
