#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_record
short_description: Record that the applied plan of a host was proved to answer
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Copies C(plan.json) below O(root), which M(gpufleet.vllm.vllm_stack) wrote, to C(record.json), what the host last
    ran successfully. Run it after M(gpufleet.vllm.vllm_probe) succeeded.
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
      - The directory on the host that holds everything this collection keeps there.
    type: path
    default: /var/lib/gpufleet-vllm
seealso:
  - module: gpufleet.vllm.vllm_stack
"""

EXAMPLES = r"""
- name: Remember what works
  gpufleet.vllm.vllm_record:
    root: /var/lib/gpufleet-vllm
"""

RETURN = r"""
digest:
  description: The digest of the recorded plan; V(null) where no plan was ever applied.
  returned: success
  type: str
  sample: 0f343b0931126a20f133d67c2b018a3b3e8e9d7a0c7cf7e7d5a7a7d1e2f3a4b5
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import argument_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import record


def main() -> None:
    module = AnsibleModule(argument_spec={"root": argument_spec()["root"]}, supports_check_mode=True)
    try:
        module.exit_json(**record(module.params["root"], module.check_mode))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
