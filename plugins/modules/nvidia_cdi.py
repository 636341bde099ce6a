#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_cdi
short_description: Keep the CDI specification of the GPUs right for the driver and GPUs of now
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Makes the Container Device Interface specification of the NVIDIA GPUs where there is none, where it is for another
    version of the driver, or where a GPU is not in it. Docker 29.2 and later gives GPUs to containers through it.
  - The toolkit's C(nvidia-cdi-refresh.service) does it where it is there (from 1.18), else C(nvidia-ctk cdi generate).
  - A host without GPUs, or whose driver does not answer, is left alone, and RV(skipped_because) says why.
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
  timeout:
    description:
      - Seconds that making it may take.
    type: int
    default: 120
notes:
  - Needs the NVIDIA Container Toolkit and root.
seealso:
  - module: gpufleet.vllm.nvidia_info
  - module: gpufleet.vllm.docker_daemon
"""

EXAMPLES = r"""
- name: Renew the CDI specification after an update of the driver
  gpufleet.vllm.nvidia_cdi:
    timeout: 300
"""

RETURN = r"""
reasons:
  description: Why it was made.
  returned: success
  type: list
  elements: str
  sample: ["/var/run/cdi/nvidia.yaml was made for driver 570.26, and the host runs 580.95.05"]
devices:
  description: The devices in it.
  returned: success
  type: list
  elements: str
  sample: [nvidia.com/gpu=0, nvidia.com/gpu=all]
skipped_because:
  description: Why there is nothing to do on this host; empty otherwise.
  returned: success
  type: str
  sample: ""
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._nvidia_cdi import refresh
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(argument_spec={"timeout": {"type": "int", "default": 120}}, supports_check_mode=True)
    try:
        module.exit_json(**refresh(module.check_mode, run_command, timeout=module.params["timeout"]))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
