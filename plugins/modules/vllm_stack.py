#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_stack
short_description: Run the vLLM services of a plan on a host, and nothing else
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Brings the services under O(root) to those of O(services). What is new is created, what changed is stopped,
    rewritten and started again, what is gone is removed, what died is started, and everything else is left running.
  - All services that change stop before any of them starts, so that ports and GPUs can be swapped in one run.
  - It does not wait for an engine to answer. That is what M(gpufleet.vllm.vllm_probe) is for.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
  - gpufleet.vllm._runtime
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
    details:
      - Shows each changed service as the command that a person would type, or as its part of the Compose file. Secrets
        are named, their values hidden.
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) runs exactly the services of O(services).
      - V(absent) stops and removes every service under O(root), and the state of this collection in it. Models and
        engines stay.
    type: str
    choices: [present, absent]
    default: present
  services:
    description:
      - The services as M(gpufleet.vllm.vllm_plan) resolved them.
      - Required if O(state=present).
    type: list
    elements: dict
  secrets:
    description:
      - For each service the environment variables that are secret, such as C(VLLM_API_KEY).
      - They are written to the service's environment file (mode 0600) and nowhere else.
    type: dict
    default: {}
  artifacts:
    description:
      - The model artifacts behind the services, each with C(path), C(commit), C(manifest_digest) and C(published). A
        service restarts when the artifact at its path becomes another one, or was repaired.
    type: list
    elements: dict
    default: []
  engine:
    description:
      - The engine, with C(version) and, if known, C(digest). Services restart when it changes.
    type: dict
    default: {}
  images:
    description:
      - The images of containers, as RV(gpufleet.vllm.vllm_image#module:images) has them, each with C(image), C(pinned)
        and C(id). Containers run the pinned one.
    type: list
    elements: dict
    default: []
  user:
    description:
      - The user of the services under systemd. It must exist.
      - Under supervisor the services run as the user that runs this module.
    type: str
    default: vllm
  group:
    description:
      - The group of the services under systemd. It must exist.
    type: str
    default: vllm
  allow_daemon_reload:
    description:
      - Whether systemd may reload its units while Docker containers with GPUs run on the host. Such a reload can take
        their GPUs away (U(https://github.com/NVIDIA/nvidia-container-toolkit/issues/48)).
    type: bool
    default: false
  supervisor_requirements:
    description:
      - The text of a pip requirements file with hashes that supervisor is installed from, under supervisor.
      - If it is empty, supervisor must be in C(supervisor/venv) below O(root) already.
    type: str
    default: ""
  pip_args:
    description:
      - More arguments for pip when it installs supervisor.
    type: list
    elements: str
    default: []
seealso:
  - module: gpufleet.vllm.vllm_plan
  - module: gpufleet.vllm.vllm_probe
"""

EXAMPLES = r"""
- name: Run what the plan says
  gpufleet.vllm.vllm_stack:
    root: /var/lib/gpufleet-vllm
    runtime: systemd
    services: "{{ vllm_plan.services }}"
    secrets:
      qwen-vl:
        VLLM_API_KEY: "{{ vault_qwen_vl_key }}"
    artifacts:
      - path: /data/models/Qwen2.5-VL-7B-Instruct
        commit: 2e50b77b0eee3083842019e257b74854323d880a
    engine:
      version: 0.33.0
    user: vllm
    group: vllm
    allow_daemon_reload: false

- name: Run it in containers
  gpufleet.vllm.vllm_stack:
    runtime: compose
    services: "{{ vllm_plan.services }}"
    images: "{{ pulled.images }}"

- name: Run it without systemd
  gpufleet.vllm.vllm_stack:
    runtime: supervisor
    services: "{{ vllm_plan.services }}"
    supervisor_requirements: "{{ lookup('ansible.builtin.file', 'supervisor.txt') }}"
    pip_args: [--no-index, --find-links, /srv/wheels]

- name: Stop and remove all of it
  gpufleet.vllm.vllm_stack:
    state: absent
"""

RETURN = r"""
services:
  description:
    - What was done to each service (C(action), V(unchanged), V(created), V(updated), V(started) or V(removed)) and
      its C(state), C(pid), C(restarts), C(since) and C(detail) afterwards.
  returned: success
  type: list
  elements: dict
  sample: [{"name": "qwen-vl", "action": "created", "state": "starting", "pid": 4242, "restarts": 0, "since": null,
    "detail": ""}]
plan_digest:
  description: The digest of the applied plan.
  returned: success
  type: str
  sample: 0f343b0931126a20f133d67c2b018a3b3e8e9d7a0c7cf7e7d5a7a7d1e2f3a4b5
runtime:
  description: The process manager that O(runtime) came to.
  returned: success
  type: str
  sample: systemd
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import argument_spec
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack_apply import Options, absent, present


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            **argument_spec(),
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "services": {"type": "list", "elements": "dict"},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
            "artifacts": {"type": "list", "elements": "dict", "default": []},
            "engine": {"type": "dict", "default": {}},
            "images": {"type": "list", "elements": "dict", "default": []},
            "user": {"type": "str", "default": "vllm"},
            "group": {"type": "str", "default": "vllm"},
            "allow_daemon_reload": {"type": "bool", "default": False},
            "supervisor_requirements": {"type": "str", "default": ""},
            "pip_args": {"type": "list", "elements": "str", "default": []},
        },
        required_if=[("state", "present", ["services"])],
        supports_check_mode=True,
    )
    parameters = dict(module.params)
    apply = {"present": present, "absent": absent}[parameters.pop("state")]
    parameters["requirements"] = parameters.pop("supervisor_requirements")
    parameters["services"] = parameters["services"] or []
    try:
        module.exit_json(**apply(Options(**parameters), module.check_mode))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
