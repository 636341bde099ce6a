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
  images:
    description:
      - References of container images that Docker is asked for, in one question. One that is not there is no failure.
    type: list
    elements: str
    default: []
  hub_endpoint:
    description:
      - The model hub that the host is to reach. Its name is resolved and one small request is sent, through the proxy
        that the environment names.
      - No hub is asked where this is left out or empty.
    type: str
  hub_token:
    description:
      - The token whose validity the request to O(hub_endpoint) tells. It is sent to that endpoint alone, and never over
        plain http but to this machine.
    type: str
  models:
    description:
      - Models whose configuration and weights are looked at, each with C(model) and optionally C(revision), C(path),
        C(include) and C(exclude). A model that is complete at its path is read there. Else O(hub_endpoint) is asked,
        for its listing and some hundred kilobytes.
    type: list
    elements: dict
    default: []
  model_root:
    description:
      - The directory under which the models without C(path) lie, each in a directory named like the model.
    type: path
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
    images: ["vllm/vllm-openai:v0.33.0"]
    hub_endpoint: https://modelscope.cn
    hub_token: "{{ vllm_hub_token }}"
    models: [{model: Qwen/Qwen2.5-VL-7B-Instruct}]
    model_root: /data/models
  register: host

- name: Show what throttles the GPUs, and how they are linked
  ansible.builtin.debug:
    msg:
      throttle: "{{ host.gpus | map(attribute='throttle') }}"
      links: "{{ host.nvidia.topology }}"
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
  description:
    - For each of O(paths), and for the directory where Docker keeps its images, the C(device) number, C(total_bytes),
      C(free_bytes), C(total_inodes), C(free_inodes), C(mount), C(type), C(read_only) and the mount's C(options).
    - A path whose file system gives no answer is left out.
  returned: success
  type: list
  elements: dict
  sample: [{"path": "/data/models", "device": 2049, "total_bytes": 8000000000000, "free_bytes": 7000000000000,
    "free_inodes": 100000000, "total_inodes": 100001000, "mount": "/data", "type": "xfs", "read_only": false,
    "options": ["rw", "noatime"]}]
labels:
  description: The SELinux type of each path in RV(filesystems), or of its nearest parent; V(null) without SELinux.
  returned: success
  type: dict
  sample: {"/data/models": "container_file_t"}
shm:
  description: C(size_bytes) of C(/dev/shm).
  returned: success
  type: dict
  sample: {"size_bytes": 270000000000}
boot:
  description: C(id) of the boot, its C(time) in seconds since the epoch, and C(uptime_s).
  returned: success
  type: dict
  sample: {"id": "6a1f3f0e-9d0d-4d39-b0de-8d6d9d6ad7a1", "time": 1763971260.0, "uptime_s": 86340.52}
reboot:
  description:
    - Whether a reboot is C(required), and C(why).
    - From C(/run/reboot-required), C(needs-restarting -r), or a kernel that is installed and newer than the one that
      runs. V(null) where the host has no way to tell.
  returned: success
  type: dict
  sample: {"required": true, "why": "/run/reboot-required is there, for linux-image-6.8.0-87-generic"}
clock:
  description:
    - C(epoch) is the host's time in seconds when it was asked, C(synchronized) whether something holds its clock, and
      C(source) what said so, V(adjtimex) or V(chronyc).
  returned: success
  type: dict
  sample: {"epoch": 1764057600.52, "synchronized": true, "source": "adjtimex"}
limits:
  description:
    - C(memlock_bytes) (V(-1) is unlimited), C(nofile_soft) and C(nofile_hard) that a service starts with. Those of
      containerd with Compose, of init with systemd, else of this session.
  returned: success
  type: dict
  sample: {"memlock_bytes": -1, "nofile_soft": 1024, "nofile_hard": 524288}
addresses:
  description: The addresses of the host's interfaces.
  returned: success
  type: list
  elements: str
  sample: ["127.0.0.1", "10.0.0.11", "::1"]
iommu:
  description: Whether an IOMMU is C(enabled), and whether the GPUs pass through it untranslated (C(passthrough)).
  returned: success
  type: dict
  sample: {"enabled": true, "passthrough": true}
acs:
  description:
    - C(enabled) lists the PCI bridges whose access control sends traffic between GPUs through the processor.
    - V(null) where that can not be read, as by who is not root.
  returned: success
  type: dict
  sample: {"enabled": ["0000:16:01.0"]}
apparmor:
  description: V(enabled) or V(disabled).
  returned: success
  type: str
  sample: enabled
hub:
  description:
    - What became of the request to O(hub_endpoint); V(null) where none was asked for.
    - It has C(endpoint), C(host), C(addresses), C(seconds), C(status), C(proxy) (without credentials), C(error) and
      C(token).
    - C(token) is V(accepted), V(refused), V(none) where there is none, or V(null) where the hub does not tell.
  returned: success
  type: dict
  sample: {"endpoint": "https://modelscope.cn", "host": "modelscope.cn", "addresses": ["203.0.113.7"],
    "seconds": 0.213, "status": 200, "proxy": null, "error": null, "token": "accepted"}
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
      It has C(digest), C(runtime), C(engine), C(images), C(artifacts), C(services) by name, and C(installed), the
      digest of each service that is installed. No value of an environment is in it.
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
  description:
    - As RV(gpufleet.vllm.nvidia_info#module:gpus), and of each of their C(processes) also whose it is.
    - C(service) is a service of this collection, C(container) the name of a container, C(user) the owner, and C(orphan)
      tells of an engine process that has lost its API server. What there is none of is V(null).
  returned: success
  type: list
  elements: dict
  sample:
    - index: 0
      uuid: GPU-6e3ac3a4-9b1f-4a25-8f6e-0c1d2e3f4a5b
      processes:
        - {pid: 4242, name: "VLLM::EngineCore", memory_used_bytes: 70000000000, type: C, gpu_instance_id: null,
           service: null, container: null, orphan: true, user: vllm}
gpu_reason:
  description: Why there are no GPUs, or why their facts are degraded; empty otherwise.
  returned: success
  type: str
  sample: ""
models:
  description: >-
    O(models) by C(OWNER/NAME@REVISION), each as RV(gpufleet.vllm.vllm_model_info#module:models) has it. V(null) for
    one that gave no answer in time.
  returned: success
  type: dict
  sample: {}
nvidia:
  description: Everything else that M(gpufleet.vllm.nvidia_info) returns, with O(images) in C(container).
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
            "images": {"type": "list", "elements": "str", "default": []},
            "hub_endpoint": {"type": "str"},
            "hub_token": {"type": "str", "no_log": True},
            "models": {"type": "list", "elements": "dict", "default": []},
            "model_root": {"type": "path"},
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
