#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_bundle_wheels
short_description: Download Python packages for hosts without an index
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Has what requirements ask for in a directory, with the requirements themselves, so that
    C(pip install --no-index --find-links DIRECTORY -r requirements.txt) works without a network.
  - Requirements with hashes are held to them. Where nothing changed pip is not asked.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - Which files an update would bring is for pip to find out, and not known before.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  path:
    description:
      - The directory. It is this module's own, and replaced as a whole; one that holds anything else is refused.
    type: path
    required: true
  requirements:
    description:
      - Texts of requirements files. Each is resolved by itself; with hashes it must list everything.
    type: list
    elements: str
    required: true
  python:
    description:
      - The interpreter whose pip downloads. Without further arguments packages are chosen for its version and platform.
        By default that of this module.
    type: str
  pip_args:
    description:
      - Further arguments of C(pip download), such as C(--python-version) and C(--platform). No credentials belong here.
    type: list
    elements: str
    default: ["--only-binary=:all:"]
  timeout:
    description:
      - How long each download may take, in seconds.
    type: int
    default: 3600
seealso:
  - module: gpufleet.vllm.vllm_bundle
"""

EXAMPLES = r"""
- name: Have what a controller needs
  gpufleet.vllm.vllm_bundle_wheels:
    path: /srv/bundle/wheels/controller
    requirements:
      - "{{ lookup('ansible.builtin.file', 'requirements/controller.txt') }}"
    python: python3.12
    pip_args:
      - --only-binary=:all:
      - --platform=manylinux_2_28_x86_64
    timeout: 1800
"""

RETURN = r"""
path:
  description: The directory.
  returned: success
  type: str
files:
  description: The names of its files. Empty in check mode where they would change.
  returned: success
  type: list
  elements: str
bytes_total:
  description: Bytes of its files.
  returned: success
  type: int
"""

import sys

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._bundle_module import run_wheels
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "required": True},
            "requirements": {"type": "list", "elements": "str", "required": True},
            "python": {"type": "str"},
            "pip_args": {"type": "list", "elements": "str", "default": ["--only-binary=:all:"]},
            "timeout": {"type": "int", "default": 3600},
        },
        supports_check_mode=True,
    )
    try:
        module.exit_json(**run_wheels(module.params, module.check_mode, sys.executable))
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())


if __name__ == "__main__":
    main()
