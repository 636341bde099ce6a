#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_engine
short_description: Install vLLM into a virtual environment on a host
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Builds a virtual environment with one pinned release of vLLM, checks that it starts, and records what it was built
    from.
  - An installation that is there as wanted is left alone, and recognised without running anything. One that was
    interrupted, that was built from other inputs or that lost its executable is removed and built again.
  - A virtual environment cannot be moved, so it is built in place. Stop the services that run from O(path) before its
    inputs change, or choose another path for other inputs, for example one with RV(digest) in it.
  - A directory that this module did not make is never touched.
  - The role P(gpufleet.vllm.vllm_engine#role) brings the requirements of the CPU engine.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - RV(bytes) and RV(packages) are V(null) in check mode when something would be installed.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  path:
    description:
      - The directory of the virtual environment. Its parents are made when they are missing.
      - Beside it lies a lock file with its name and a leading dot.
    type: path
    required: true
  state:
    description:
      - Whether the engine is to be there.
      - V(absent) removes the directory, when this module made it.
    type: str
    choices: [present, absent]
    default: present
  flavor:
    description:
      - V(cpu) for the build that needs no GPU, V(cuda) for NVIDIA GPUs.
      - V(cpu) needs O(requirements) and O(torch_requirements). With the requirements of the role, text, image and audio
        models run on it; video input and n-gram speculative decoding do not.
    type: str
    choices: [cpu, cuda]
    default: cpu
  version:
    description:
      - The release of vLLM. O(requirements) must hold the same.
      - The default is V(0.32.0) for O(flavor=cpu) and V(0.33.0) for O(flavor=cuda).
    type: str
  python:
    description:
      - The interpreter to build with, CPython 3.11 to 3.14.
      - The default is the one that runs the module.
      - The environment links to it, so the user that runs the engine must be able to reach it too.
    type: path
  requirements:
    description:
      - Every package to install, with hashes, in pip's format - the text itself, or the absolute path of a file on the
        host.
      - Installed with C(--require-hashes --no-deps --only-binary :all:). Without it, pip resolves vLLM's dependencies.
    type: str
  torch_requirements:
    description:
      - As O(requirements), for torch, which is installed first. For O(flavor=cpu) the build for CPUs.
    type: str
  large_torch_requirements:
    description:
      - As O(requirements), for the torch with CUDA libraries that O(allow_large_torch) allows.
    type: str
  allow_large_torch:
    description:
      - Whether O(large_torch_requirements) are installed when no index has what O(torch_requirements) name.
      - They are 2.5 GB to download and 4 GB on disk, instead of 0.2 GB and 0.6 GB.
    type: bool
    default: false
  extras:
    description:
      - Extras of the vLLM distribution, such as V(audio). Not together with O(requirements).
    type: list
    elements: str
    default: []
  extra_index_url:
    description:
      - Package indexes to use beside those that pip on the host is configured with, for example PyTorch's CPU wheel
        index.
      - May hold credentials. They are not shown, logged or put on a command line.
    type: list
    elements: str
    default: []
  find_links:
    description:
      - Directories on the host, or addresses of pages, where pip looks for wheels too.
    type: list
    elements: str
    default: []
  pip_args:
    description:
      - Further arguments of C(pip install), such as V(--no-index) or V(--proxy).
      - They are on pip's command line, so addresses with credentials are refused here.
    type: list
    elements: str
    default: []
  timeout:
    description:
      - Seconds that each step may take, and that a run waits for another one on the same path.
    type: int
    default: 3600
seealso:
  - module: gpufleet.vllm.vllm_stack
"""

EXAMPLES = r"""
- name: Install vLLM for NVIDIA GPUs, with what Whisper needs
  gpufleet.vllm.vllm_engine:
    path: /var/lib/gpufleet-vllm/engine/cuda
    flavor: cuda
    version: 0.33.0
    python: /usr/bin/python3.12
    extras: [audio]
    timeout: 7200

- name: Install the CPU engine from a mirror
  gpufleet.vllm.vllm_engine:
    path: /var/lib/gpufleet-vllm/engine/cpu
    requirements: "{{ lookup('ansible.builtin.file', 'engine-cpu.txt') }}"
    torch_requirements: "{{ lookup('ansible.builtin.file', 'engine-cpu-torch.txt') }}"
    large_torch_requirements: "{{ lookup('ansible.builtin.file', 'engine-cpu-torch-large.txt') }}"
    allow_large_torch: false
    extra_index_url:
      - "https://deploy:{{ mirror_password }}@mirror.example.com/pytorch/cpu/simple"
    find_links: [/srv/wheels]
    pip_args: [--retries, "10"]
  register: engine

- name: Show what runs the server
  ansible.builtin.command:
    argv: ["{{ engine.executable }}", --version]
  changed_when: false

- name: Remove it
  gpufleet.vllm.vllm_engine:
    path: /var/lib/gpufleet-vllm/engine/cpu
    state: absent
"""

RETURN = r"""
path:
  description: The directory of the virtual environment.
  returned: success
  type: str
  sample: /var/lib/gpufleet-vllm/engine/cpu
executable:
  description: The program C(vllm).
  returned: O(state=present)
  type: str
  sample: /var/lib/gpufleet-vllm/engine/cpu/bin/vllm
version:
  description: The release of vLLM.
  returned: O(state=present)
  type: str
  sample: 0.32.0
flavor:
  description: As O(flavor).
  returned: O(state=present)
  type: str
  sample: cpu
python:
  description: The Python release that it is built with, major and minor.
  returned: O(state=present)
  type: str
  sample: "3.11"
digest:
  description:
    - SHA-256 of what decides the content of the environment. The same inputs have the same digest on every host of the
      same architecture, in check mode too.
  returned: O(state=present)
  type: str
  sample: 9f4c0e3b7a5d1f2e8c6b4a39281706f5e4d3c2b1a0998877665544332211ff00
bytes:
  description: The size of the environment on disk.
  returned: O(state=present)
  type: int
  sample: 1798000000
packages:
  description: The number of distributions in it.
  returned: O(state=present)
  type: int
  sample: 148
reason:
  description:
    - Why it was, or in check mode would be, built - V(absent), V(unfinished), V(changed) and the inputs that differ, or
      V(broken) and what is gone. Empty when there is nothing to do.
  returned: success
  type: str
  sample: "changed: version, requirements"
"""

import os

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._engine import VERSIONS, Wanted, absent, present, text_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
            "flavor": {"type": "str", "choices": ["cpu", "cuda"], "default": "cpu"},
            "version": {"type": "str"},
            "python": {"type": "path"},
            "requirements": {"type": "str"},
            "torch_requirements": {"type": "str"},
            "large_torch_requirements": {"type": "str"},
            "allow_large_torch": {"type": "bool", "default": False},
            "extras": {"type": "list", "elements": "str", "default": []},
            "extra_index_url": {"type": "list", "elements": "str", "default": [], "no_log": True},
            "find_links": {"type": "list", "elements": "str", "default": []},
            "pip_args": {"type": "list", "elements": "str", "default": []},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    params = module.params
    # A link may be an address with a password in it; a directory must stay readable in results.
    module.no_log_values.update(link for link in params["find_links"] if "@" in link)
    path = os.path.normpath(params["path"])
    try:
        if params["state"] == "absent":
            result = absent(path, check=module.check_mode, timeout=params["timeout"])
        else:
            wanted = Wanted(
                path=path,
                flavor=params["flavor"],
                version=params["version"] or VERSIONS[params["flavor"]],
                python=params["python"] or "",
                requirements=text_of(params["requirements"]),
                torch_requirements=text_of(params["torch_requirements"]),
                large_torch_requirements=text_of(params["large_torch_requirements"]),
                allow_large_torch=params["allow_large_torch"],
                extras=tuple(params["extras"]),
                extra_index_urls=tuple(params["extra_index_url"]),
                find_links=tuple(params["find_links"]),
                pip_args=tuple(params["pip_args"]),
                timeout=params["timeout"],
            )
            result = present(wanted, check=module.check_mode)
        module.exit_json(**result)
    except FleetError as exc:
        module.fail_json(msg=str(exc), **exc.as_result())


if __name__ == "__main__":
    main()
