#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: docker_daemon
short_description: Configure the Docker daemon of a GPU host without a surprise for its containers
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Merges settings into Docker's C(daemon.json), registers the NVIDIA runtime and CDI in it, and starts, reloads or
    restarts the daemon where that is needed. What is in the file already stays.
  - A change that Docker takes up while it runs is a reload, which no container notices. Everything else is a restart,
    and that is refused before anything is changed while there are containers that it would meet, unless
    O(allow_restart=true).
  - A daemon that does not start with the new configuration gets its old one back.
  - It never reloads systemd's units, which can take GPUs from running containers.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - A restart that would be refused fails in check mode too. Without Docker on the host only the file is predicted.
  diff_mode:
    support: full
    details:
      - Values whose key names a secret, and passwords in addresses, are hidden.
  idempotent:
    support: full
options:
  path:
    description:
      - The configuration file.
    type: path
    default: /etc/docker/daemon.json
  config:
    description:
      - Settings to have, as C(dockerd) names them. Objects are merged key by key, lists gain the items that they lack,
        other values are replaced. Nothing is ever removed.
    type: dict
    default: {}
  log_opts:
    description:
      - Options of the C(json-file) log driver, for a host where neither the file nor O(config) says how to log.
      - Without any, Docker keeps all that a container ever wrote.
    type: dict
    default: {}
  nvidia_runtime:
    description:
      - Whether the file has the runtime C(nvidia), as C(nvidia-ctk runtime configure --runtime=docker) writes it. One
        that is there under that name stays as it is.
    type: bool
    default: false
  cdi:
    description:
      - Whether CDI is enabled, for releases of Docker where it is not by default (before 28.2). A choice in the file
        stays as it is.
    type: bool
    default: false
  restart_reasons:
    description:
      - Why a daemon that runs must be restarted whatever the file holds. Docker finds the NVIDIA Container Toolkit, for
        one, only when it starts.
    type: list
    elements: str
    default: []
  allow_restart:
    description:
      - Whether Docker may be restarted while containers with GPUs run, or other containers without live restore.
    type: bool
    default: false
  timeout:
    description:
      - Seconds that a start, reload or restart may take, and then the first answer.
    type: int
    default: 90
notes:
  - Needs Docker as the systemd unit C(docker.service), and root.
seealso:
  - module: gpufleet.vllm.nvidia_info
  - name: Docker daemon configuration
    description: What the file may hold.
    link: https://docs.docker.com/reference/cli/dockerd/#daemon-configuration-file
"""

EXAMPLES = r"""
- name: Configure Docker for GPUs
  gpufleet.vllm.docker_daemon:
    path: /etc/docker/daemon.json
    config:
      registry-mirrors: [https://mirror.example.com]
      live-restore: true
    log_opts: {max-size: 50m, max-file: "5"}
    nvidia_runtime: true
    cdi: true
    timeout: 120

- name: Restart Docker for a toolkit that is new, in a maintenance window
  gpufleet.vllm.docker_daemon:
    restart_reasons: "{{ ['the NVIDIA Container Toolkit is new'] if toolkit is changed else [] }}"
    allow_restart: true
"""

RETURN = r"""
action:
  description: What was done with the daemon. V(none), V(started), V(reloaded) or V(restarted).
  returned: success
  type: str
  sample: restarted
reasons:
  description: Why.
  returned: success
  type: list
  elements: str
  sample: ["changed: log-driver, log-opts"]
changed_keys:
  description: The settings that changed.
  returned: success
  type: list
  elements: str
  sample: [log-driver, log-opts, runtimes]
containers:
  description: The containers that ran before.
  returned: success
  type: list
  elements: str
  sample: [vllm-qwen-vl]
gpu_containers:
  description: Those of them that were given GPUs.
  returned: success
  type: list
  elements: str
  sample: [vllm-qwen-vl]
not_running_again:
  description: The containers that ran before a restart and did not come back within some seconds.
  returned: success
  type: list
  elements: str
  sample: []
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._docker_daemon import Options, apply
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._process import run_command
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/docker/daemon.json"},
            "config": {"type": "dict", "default": {}},
            "log_opts": {"type": "dict", "default": {}},
            "nvidia_runtime": {"type": "bool", "default": False},
            "cdi": {"type": "bool", "default": False},
            "restart_reasons": {"type": "list", "elements": "str", "default": []},
            "allow_restart": {"type": "bool", "default": False},
            "timeout": {"type": "int", "default": 90},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**apply(Options(**module.params), module.check_mode, run_command))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
