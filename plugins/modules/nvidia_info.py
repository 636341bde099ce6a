#!/usr/bin/python
# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: nvidia_info
short_description: Gather facts about NVIDIA GPUs, their driver and the container runtime
version_added: 0.1.0
author: gpufleet.vllm contributors (@gpufleet)
description:
  - Reads the NVIDIA GPUs of a host with their memory, health and processes, the driver and CUDA versions, and what runs
    containers on it. That is the NVIDIA Container Toolkit, Docker, Compose and the CDI specifications.
  - The GPUs are read through NVML where the C(nvidia-ml-py) package is importable, else through C(nvidia-smi -q -x).
  - A host without GPUs, or with a broken driver, is no failure. Then RV(gpus) is empty or short and RV(reason) says
    why.
  - A driver that hangs does not hang the module. What gives no answer within O(timeout) is killed and reported.
options:
  gather:
    description:
      - Which facts to read.
      - V(gpus) reads GPUs and driver. V(containers) reads the container toolkit, Docker, Compose and CDI.
    type: list
    elements: str
    choices:
      - gpus
      - containers
    default:
      - gpus
      - containers
  nvidia_smi:
    description:
      - The C(nvidia-smi) to use where none is on the C(PATH) or in one of the usual places.
    type: path
  timeout:
    description:
      - Seconds that each command, and NVML as a whole, may take.
      - On hosts with many GPUs and without persistence mode the first query can need more than ten seconds.
    type: int
    default: 30
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._attributes.info_module
notes:
  - Needs nothing but Python 3.9 on the host. The package C(nvidia-ml-py) is used where it is installed.
  - Without root the facts can be incomplete. Docker's socket, the MIG devices and the names of other users' processes
    are not open to everyone.
  - Process names are given without arguments, as a command line can hold an API key.
seealso:
  - name: NVML API reference
    description: The meaning of the values.
    link: https://docs.nvidia.com/deploy/nvml-api/index.html
  - name: NVIDIA Container Toolkit
    description: How containers get GPUs, and CDI.
    link: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit/latest/index.html
"""

EXAMPLES = r"""
- name: Gather all GPU and container facts
  gpufleet.vllm.nvidia_info:
  register: nvidia

- name: Require GPUs
  ansible.builtin.assert:
    that: nvidia.gpus | length > 0
    fail_msg: "{{ nvidia.reason }} {{ nvidia.remedy }}"

- name: Show the UUID and the free memory of each GPU
  ansible.builtin.debug:
    msg: "{{ item.index }} {{ item.uuid }} {{ item.memory_free_bytes | human_readable }}"
  loop: "{{ nvidia.gpus }}"
  loop_control:
    label: "{{ item.name }}"

- name: Read the GPUs only, from a driver container's nvidia-smi, with more patience
  gpufleet.vllm.nvidia_info:
    gather: [gpus]
    nvidia_smi: /run/nvidia/driver/usr/bin/nvidia-smi
    timeout: 90
"""

RETURN = r"""
gpus:
  description:
    - The GPUs in the driver's order, which is that of C(nvidia-smi).
    - A value that the GPU or its driver does not know is V(null). Words are in lower case.
  returned: success
  type: list
  elements: dict
  contains:
    index:
      description: The driver's index.
      type: int
      sample: 0
    uuid:
      description: The UUID, which does not change with the order of the GPUs.
      type: str
      sample: GPU-6e3ac3a4-9b1f-4a25-8f6e-0c1d2e3f4a5b
    name:
      description: The product name.
      type: str
      sample: NVIDIA H200
    serial:
      description: The serial number. V(null) on GeForce cards.
      type: str
    pci_bus_id:
      description: The address on the PCI bus.
      type: str
      sample: "00000000:19:00.0"
    memory_total_bytes:
      description: Memory of the GPU in bytes. V(null) where the GPU shares the memory of its host.
      type: int
      sample: 150754820096
    memory_used_bytes:
      description: Memory in use, without the driver's own reserve.
      type: int
    memory_free_bytes:
      description: Memory that can be allocated.
      type: int
    compute_capability:
      description: The CUDA compute capability. V(null) with C(nvidia-smi) of drivers before 510.
      type: str
      sample: "9.0"
    compute_mode:
      description: One of V(default), V(exclusive_process), V(exclusive_thread), V(prohibited).
      type: str
      sample: default
    persistence_mode:
      description: V(enabled) or V(disabled).
      type: str
      sample: enabled
    mig:
      description: Multi-Instance GPU.
      type: dict
      contains:
        current:
          description: V(enabled), V(disabled), or V(null) where the GPU has no MIG.
          type: str
        pending:
          description: The mode after the next reset of the GPU.
          type: str
        devices:
          description: The partitions.
          type: list
          elements: dict
          contains:
            index:
              description: The index within the GPU.
              type: int
            uuid:
              description: The UUID to give to a container.
              type: str
              sample: MIG-feb88891-3f70-5fef-9c87-d4af3b54259e
            name:
              description: The profile.
              type: str
              sample: 1g.10gb
            gpu_instance_id:
              description: The GPU instance.
              type: int
            compute_instance_id:
              description: The compute instance within the GPU instance.
              type: int
            memory_total_bytes:
              description: Memory of the partition.
              type: int
            memory_used_bytes:
              description: Memory in use.
              type: int
    ecc:
      description: Memory errors.
      type: dict
      contains:
        mode:
          description: V(enabled), V(disabled), or V(null) where the GPU has no ECC.
          type: str
        uncorrected_volatile:
          description: Uncorrected errors since the driver was loaded.
          type: int
        remapped_rows:
          description: >-
            C(pending) tells whether a row waits for a reset to be remapped, C(failure) whether a row could not be
            remapped.
          type: dict
          sample: {pending: false, failure: false}
        retired_pages_pending:
          description: Whether a page waits for a reset to be retired. Volta and Turing.
          type: bool
    pcie:
      description: Generation and width of the PCIe link, each C(current) and C(max).
      type: dict
      sample: {gen: {current: 5, max: 5}, width: {current: 16, max: 16}}
    temperature_c:
      description: The temperature in degrees Celsius.
      type: int
    temperature_limit_c:
      description: The temperature at which the GPU slows down.
      type: int
      sample: 89
    numa_node:
      description: The NUMA node of the host that the GPU hangs on.
      type: int
      sample: 0
    throttle:
      description:
        - Why the clocks are lower than they could be. Empty where nothing slows the GPU down.
        - Some of V(gpu_idle), V(applications_clocks_setting), V(sw_power_cap), V(hw_slowdown), V(sync_boost),
          V(sw_thermal_slowdown), V(hw_thermal_slowdown), V(hw_power_brake_slowdown), V(display_clocks_setting).
      type: list
      elements: str
      sample: [sw_power_cap]
    power:
      description: The draw, its enforced limit, and the limit without a setting, in watts.
      type: dict
      sample: {draw_w: 118.04, limit_w: 700.0, default_limit_w: 700.0}
    utilization:
      description: How busy the GPU was. V(null) with MIG.
      type: dict
      sample: {gpu_percent: 97, memory_percent: 41}
    fabric:
      description: >-
        Registration with the NVSwitch fabric. V(completed) and V(success) on a healthy host; V(null) on a GPU without
        fabric.
      type: dict
      sample: {state: completed, status: success}
    processes:
      description: What uses the GPU.
      type: list
      elements: dict
      contains:
        pid:
          description: The process id on the host.
          type: int
        name:
          description: The executable or title, without arguments.
          type: str
          sample: VLLM::Worker_TP0
        memory_used_bytes:
          description: GPU memory of the process.
          type: int
        type:
          description: V(C) for compute, V(G) for graphics, V(C+G) for both, V(M+C) for compute through MPS.
          type: str
        gpu_instance_id:
          description: The MIG GPU instance that the process uses.
          type: int
driver_version:
  description: The driver's version.
  returned: success
  type: str
  sample: 580.95.05
cuda_version:
  description: The highest CUDA version that the driver supports.
  returned: success
  type: str
  sample: "13.0"
kernel_module_version:
  description: The version of the loaded kernel module, from C(/proc/driver/nvidia/version).
  returned: success
  type: str
kernel_module_type:
  description: V(open) or V(proprietary).
  returned: success
  type: str
library_version:
  description: The version of the driver library, where NVML or its error message gives it.
  returned: success
  type: str
library_version_mismatch:
  description: Whether the loaded kernel module and the driver library have different versions.
  returned: success
  type: bool
pci_devices:
  description: Bus addresses of NVIDIA GPUs on the PCI bus, driver or not.
  returned: success
  type: list
  elements: str
source:
  description: Where the GPU facts come from. One of V(nvml), V(nvidia-smi), V(none).
  returned: success
  type: str
reason:
  description: Why there are no GPU facts or fewer than there should be. V(null) where all is well.
  returned: success
  type: str
reason_code:
  description:
    - A stable word for RV(reason).
    - One of V(nvidia.no_gpu), V(nvidia.no_driver), V(nvidia.no_smi), V(nvidia.no_devices), V(nvidia.driver_not_loaded),
      V(nvidia.version_mismatch), V(nvidia.library_missing), V(nvidia.no_permission), V(nvidia.nvml_unknown_error),
      V(nvidia.gpu_lost), V(nvidia.gpu_unreachable), V(nvidia.gpu_reset_required), V(nvidia.hung), V(nvidia.smi_failed),
      V(nvidia.smi_output).
  returned: success
  type: str
  sample: nvidia.no_gpu
remedy:
  description: What to do about RV(reason).
  returned: success
  type: str
problems:
  description: What else was seen, each a sentence with what to do. For example a CDI specification of an older driver.
  returned: success
  type: list
  elements: str
topology:
  description:
    - How each two GPUs are linked; V(null) with fewer than two, or where the driver does not tell.
    - C(gpus) are their indices, C(link) is the word of C(nvidia-smi topo -m) in lower case, and C(nvlinks) counts the
      NVLinks between them.
    - C(p2p) is V(ok), or why they can not read each other's memory. V(cns) for the chipset, V(gns) for the GPU, V(tns)
      for the topology, V(dr) for a registry key, V(ns) for no support, V(u) for unknown.
  returned: success
  type: list
  elements: dict
  sample: [{gpus: [0, 1], link: nv18, nvlinks: 18, p2p: ok}]
xids:
  description:
    - The errors that the kernel module reported since the last boot, the latest 200, from the journal and the kernel's
      own buffer. V(null) where neither can be read.
    - Each has C(xid), C(pci_bus_id) as in RV(gpus), C(time) in seconds since the epoch, and C(message).
  returned: success
  type: list
  elements: dict
  sample:
    - {xid: 79, pci_bus_id: "00000000:19:00.0", time: 1764057600.5, message: GPU has fallen off the bus.}
fabric_manager:
  description:
    - Fabric Manager, which hosts with NVSwitch need. C(installed), C(active) and C(version).
    - V(null) on a host without GPUs.
  returned: success
  type: dict
  sample: {installed: true, active: true, version: 580.95.05}
persistenced:
  description: Whether the persistence daemon runs.
  returned: success
  type: bool
  sample: true
driver_installed_at:
  description: The newer change of the driver's kernel module and library, in seconds since the epoch.
  returned: success
  type: int
  sample: 1763971200
container:
  description: What runs containers. V(null) where O(gather) does not name V(containers).
  returned: success
  type: dict
  contains:
    toolkit:
      description: The NVIDIA Container Toolkit.
      type: dict
      sample:
        installed: true
        version: 1.17.8
        nvidia_ctk: /usr/bin/nvidia-ctk
        runtime: /usr/bin/nvidia-container-runtime
        runtime_hook: /usr/bin/nvidia-container-runtime-hook
    docker:
      description: The Docker client and server.
      type: dict
      contains:
        installed:
          description: Whether there is a C(docker) command.
          type: bool
        path:
          description: Its path.
          type: str
        podman:
          description: Whether the command is Podman's.
          type: bool
        snap:
          description: Whether Docker is a snap, with which the container toolkit does not work.
          type: bool
        client_version:
          description: The version of the command.
          type: str
        running:
          description: Whether the server runs. V(null) where that cannot be told, as without permission.
          type: bool
        error:
          description: Why the server gave no facts.
          type: str
        server_version:
          description: The version of the server.
          type: str
          sample: 28.5.1
        api_version:
          description: The highest API version of the server.
          type: str
          sample: "1.51"
        min_api_version:
          description: The lowest API version of the server.
          type: str
        cgroup_driver:
          description: V(systemd) or V(cgroupfs).
          type: str
        cgroup_version:
          description: V(1) or V(2).
          type: str
        storage_driver:
          description: The storage driver.
          type: str
          sample: overlay2
        root_dir:
          description: Where images and containers are stored.
          type: str
          sample: /var/lib/docker
        default_runtime:
          description: The runtime of containers that name none.
          type: str
          sample: runc
        runtimes:
          description: The path of each runtime by name.
          type: dict
          sample: {runc: runc, nvidia: nvidia-container-runtime}
        rootless:
          description: Whether the server runs without root.
          type: bool
        live_restore:
          description: Whether containers outlive a restart of the server.
          type: bool
        security_options:
          description: The security options of the server, in its own words.
          type: list
          elements: str
          sample: ["name=apparmor", "name=seccomp,profile=builtin", "name=cgroupns"]
        http_proxy:
          description: The proxy that the server pulls through, without credentials.
          type: str
        default_nofile_soft:
          description: >-
            The open files that a container may have without limits of its own. From the server's configuration, else
            of containerd, whose limit containers inherit.
          type: int
          sample: 1024
        containerd_nofile_soft:
          description: The open files that containerd may have.
          type: int
        dev_char_links:
          description: >-
            Whether C(/dev/char) has a link for each NVIDIA device. Without them C(systemctl daemon-reload) can take the
            GPUs away from running containers. V(null) without such devices.
          type: bool
        daemon_error:
          description: Why the server's configuration file can not be used.
          type: str
    compose:
      description: Docker Compose, as a plugin or stand-alone.
      type: dict
      sample: {installed: true, version: 2.40.1, path: /usr/libexec/docker/cli-plugins/docker-compose, plugin: true}
    cdi:
      description: The Container Device Interface.
      type: dict
      contains:
        enabled_in_docker:
          description: Whether Docker uses CDI. V(null) where the server did not answer.
          type: bool
        spec_dirs:
          description: The directories of the specifications.
          type: list
          elements: str
        specs:
          description: The specifications.
          type: list
          elements: dict
          contains:
            path:
              description: The file.
              type: str
              sample: /var/run/cdi/nvidia.yaml
            mtime:
              description: When it was written, in seconds since the epoch.
              type: int
            kind:
              description: The kind of devices.
              type: str
              sample: nvidia.com/gpu
            devices:
              description: The devices by their full name.
              type: list
              elements: str
              sample: [nvidia.com/gpu=0, nvidia.com/gpu=all]
            driver_version:
              description: The driver version that the file was generated for.
              type: str
            error:
              description: Why the file could not be used.
              type: str
        docker_devices:
          description: The CDI devices that Docker itself found. Docker 28.2 and later.
          type: list
          elements: str
        newest_mtime:
          description: When the newest specification was written, in seconds since the epoch.
          type: int
    images:
      description:
        - The images that M(gpufleet.vllm.vllm_host_info) was asked for, by reference. Empty in this module, and V(null)
          where Docker does not answer.
        - Each has C(present), C(id), C(digests), C(cuda_version), C(require_cuda), C(vllm_version), C(architecture) and
          C(size_bytes).
      type: dict
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils import _nvidia_probe
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError

ARGUMENT_SPEC = {
    "gather": {
        "type": "list",
        "elements": "str",
        "choices": ["gpus", "containers"],
        "default": ["gpus", "containers"],
    },
    "nvidia_smi": {"type": "path"},
    "timeout": {"type": "int", "default": 30},
}


def main() -> None:
    module = AnsibleModule(argument_spec=ARGUMENT_SPEC, supports_check_mode=True)
    gather, timeout = module.params["gather"], module.params["timeout"]
    if timeout < 1:
        error = FleetError("nvidia.timeout", f"timeout is {timeout}", "a whole number of seconds, 1 or more")
        module.fail_json(msg=str(error), **error.as_result())
    facts = _nvidia_probe.gather(
        with_gpus="gpus" in gather,
        with_containers="containers" in gather,
        nvidia_smi=module.params["nvidia_smi"],
        timeout=timeout,
    )
    module.exit_json(changed=False, **facts)


if __name__ == "__main__":
    main()
