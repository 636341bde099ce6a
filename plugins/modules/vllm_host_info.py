#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_host_info
short_description: Gather in one call all that planning vLLM services on a host needs
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Reads the system, CPU, memory, file systems, GPUs, container tooling, listening ports and the state of the services
    that this collection runs on the host.
  - One call a host, so that a fleet pays for one connection. Nothing is changed.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
  - gpufleet.vllm._runtime
options:
  ports:
    description:
      - TCP ports whose listeners are looked up; all, if none is named.
    type: list
    elements: int
    default: []
  paths:
    description:
      - Paths whose file systems are measured. A path need not exist, its nearest existing parent counts.
    type: list
    elements: path
    default: []
  user:
    description:
      - The service user whose existence is looked up.
    type: str
    default: vllm
seealso:
  - module: gpufleet.vllm.nvidia_info
  - module: gpufleet.vllm.vllm_plan
"""

EXAMPLES = r"""
- name: Gather what the plan needs
  gpufleet.vllm.vllm_host_info:
    root: /var/lib/gpufleet-vllm
    runtime: auto
    user: vllm
    ports: [8000, 8081]
    paths: [/data/models]
  register: host
"""

RETURN = r"""
hostname:
  description: The name that the host gives itself.
  returned: success
  type: str
  sample: gpu-01
machine:
  description: The machine architecture.
  returned: success
  type: str
  sample: x86_64
kernel:
  description: The kernel release.
  returned: success
  type: str
  sample: 6.1.0-26-amd64
os:
  description: C(id), C(version_id), C(id_like) and C(name) of the distribution.
  returned: success
  type: dict
  sample: {"id": "debian", "version_id": "12", "id_like": "", "name": "Debian GNU/Linux 12 (bookworm)"}
python_version:
  description: The version of the Python that ran the module.
  returned: success
  type: str
  sample: 3.11.2
service_manager:
  description: V(systemd) where it is the init system, V(none) elsewhere.
  returned: success
  type: str
  sample: systemd
selinux:
  description: V(enforcing), V(permissive) or V(disabled).
  returned: success
  type: str
  sample: disabled
cpu:
  description: C(count), C(model) and those of the C(flags) that an engine cares about.
  returned: success
  type: dict
  sample: {"count": 64, "model": "AMD EPYC 9334", "flags": ["avx2", "avx512f"]}
memory:
  description: C(total_bytes) and C(available_bytes).
  returned: success
  type: dict
  sample: {"total_bytes": 540000000000, "available_bytes": 512000000000}
filesystems:
  description: For each of O(paths) its C(device) number, C(total_bytes), C(free_bytes) and C(free_inodes).
  returned: success
  type: list
  elements: dict
  sample: [{"path": "/data/models", "device": 2049, "total_bytes": 8000000000000, "free_bytes": 7000000000000,
    "free_inodes": 100000000}]
listening:
  description:
    - The listeners on O(ports), each with C(address), C(port), C(pid), C(process) and C(service), which names the
      service of this collection that the listener belongs to.
  returned: success
  type: list
  elements: dict
  sample: [{"address": "127.0.0.1", "port": 8000, "pid": 4242, "process": "python3", "service": "qwen-vl"}]
runtime:
  description: The process manager that O(runtime) came to.
  returned: success
  type: str
  sample: systemd
services:
  description: The services installed under O(root), each with C(state), C(pid), C(restarts), C(since) and C(detail).
  returned: success
  type: dict
  sample: {"qwen-vl": {"state": "running", "pid": 4242, "restarts": 0, "since": null, "detail": "active (running)"}}
services_problem:
  description: Why the services can not be told, for example since Docker does not run; empty otherwise.
  returned: success
  type: str
  sample: ""
user_exists:
  description: Whether O(user) exists.
  returned: success
  type: bool
  sample: true
plan_digest:
  description: The digest of the plan that was applied last, or V(null).
  returned: success
  type: str
  sample: 0f343b0931126a20f133d67c2b018a3b3e8e9d7a0c7cf7e7d5a7a7d1e2f3a4b5
deployed:
  description:
    - What the last deploy applied, proved or not, as a plan is compared with it; V(null) on a host that never had one.
      It has C(digest), C(runtime), C(engine), C(images), C(artifacts), C(services) by name, and C(installed), the digest
      of each service that is installed. No value of an environment is in it.
  returned: success
  type: dict
record:
  description:
    - What the host last ran successfully, or V(null).
    - C(services) has the services by name, each with C(gpus) (the cards it was proved on), C(wish) (C(gpus) as it was
      written; absent where an older release kept the record), C(model), C(revision), C(path), C(port),
      C(bind_address), C(image), C(tensor_parallel_size), C(arguments) and the names in its C(environment).
  returned: success
  type: dict
  sample: {"digest": "0f343b0931126a20f133d67c2b018a3b3e8e9d7a0c7cf7e7d5a7a7d1e2f3a4b5", "recorded_at":
    "2026-01-01T00:00:00Z", "services": {}}
applied:
  description: What was applied last, proved or not, or V(null). C(services) has C(gpus) and C(wish) by name.
  returned: success
  type: dict
  sample: {"digest": "0f343b0931126a20f133d67c2b018a3b3e8e9d7a0c7cf7e7d5a7a7d1e2f3a4b5", "services": {}}
gpus:
  description: As RV(gpufleet.vllm.nvidia_info#module:gpus).
  returned: success
  type: list
  elements: dict
  sample: []
gpu_reason:
  description: Why there are no GPUs, or why their facts are degraded; empty otherwise.
  returned: success
  type: str
  sample: ""
nvidia:
  description: Everything else that M(gpufleet.vllm.nvidia_info) returns.
  returned: success
  type: dict
  sample: {"driver_version": "580.95.05", "cuda_version": "13.0", "source": "nvml"}
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._host_info import gather
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import argument_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **argument_spec(),
            "ports": {"type": "list", "elements": "int", "default": []},
            "paths": {"type": "list", "elements": "path", "default": []},
            "user": {"type": "str", "default": "vllm"},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(changed=False, **gather(**module.params))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
