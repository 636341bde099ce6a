#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_image
short_description: Have the container images of a plan on a host, and know them by their digest
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Pulls the images that are missing and tells each one's digest, by which M(gpufleet.vllm.vllm_stack) then runs it.
    A tag can move, a digest can not.
  - An image for a speech model must be able to decode audio. The official one is not, and the first upload would show
    it. So a clip is decoded in a container of the image, once for each image, before any service starts.
  - Uses the command C(docker) on the host, and no Python package.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - With O(pull=always) it can not tell whether the registry has a newer image, and predicts no change.
      - Whether an image decodes audio is not known before it and the model are on the host.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  images:
    description:
      - The images, as C(images) of RV(gpufleet.vllm.vllm_plan#module:plan). Each has C(image), and may have C(services)
        (who uses it) and C(paths) (the directories of their models, whose C(config.json) tells speech models).
    type: list
    elements: dict
    required: true
  pull:
    description:
      - V(missing) pulls what is not on the host. A tag that moved in the registry does not change what is here.
      - V(always) asks the registry each time, and takes what is here where it does not answer.
      - V(never) fails where an image is missing, for hosts without a way to a registry.
    type: str
    choices: [missing, always, never]
    default: missing
  timeout:
    description:
      - How long one pull may take, in seconds.
    type: int
    default: 3600
  check_audio:
    description:
      - Whether images of speech models must be able to decode audio.
    type: bool
    default: true
  root:
    description:
      - The directory on the host that holds everything this collection keeps there. What is known of images is kept in
        C(images.json) below it.
    type: path
    default: /var/lib/gpufleet-vllm
seealso:
  - module: gpufleet.vllm.vllm_plan
  - module: gpufleet.vllm.vllm_stack
"""

EXAMPLES = r"""
- name: Pull the images of the plan
  gpufleet.vllm.vllm_image:
    images: "{{ vllm_plan.images }}"
    pull: missing
    timeout: 3600
    check_audio: true
    root: /var/lib/gpufleet-vllm
  register: pulled

- name: Pull one by hand
  gpufleet.vllm.vllm_image:
    images:
      - image: vllm/vllm-openai:v0.33.0
"""

RETURN = r"""
images:
  description:
    - Each image with its C(action) (V(unchanged) or V(pulled)), C(pinned) (what to run, by digest), C(id), C(created),
      C(size_bytes), C(cuda_version) (of the image's environment) and C(audio) (whether it decodes audio, where that was
      asked). In check mode C(pinned) and C(id) are empty for an image that is not there yet.
  returned: success
  type: list
  elements: dict
  sample:
    - image: vllm/vllm-openai:v0.33.0
      action: pulled
      pinned: vllm/vllm-openai:v0.33.0@sha256:4c1e...
      id: sha256:9d0c...
      created: "2026-10-20T08:00:00Z"
      size_bytes: 18000000000
      cuda_version: 13.0.1
      audio: null
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image import Images, Options
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import DEFAULT_ROOT
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "images": {"type": "list", "elements": "dict", "required": True},
            "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
            "timeout": {"type": "int", "default": 3600},
            "check_audio": {"type": "bool", "default": True},
            "root": {"type": "path", "default": DEFAULT_ROOT},
        },
        supports_check_mode=True,
    )
    try:
        result = Images(Options(**module.params), module.check_mode).run()
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())
    for warning in result.pop("warnings"):
        module.warn(warning)
    module.exit_json(**result)


if __name__ == "__main__":
    main()
