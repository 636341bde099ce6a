#!/usr/bin/python

# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

DOCUMENTATION = r"""
module: vllm_image_build
short_description: Build an image of vLLM that has what the official one lacks
version_added: 0.1.0
author:
  - gpufleet.vllm contributors (@gpufleet)
description:
  - Builds an image on a host from an image of vLLM and a Dockerfile that adds packages to it, and sees that the result
    decodes audio.
  - The image carries what it was made from in its labels C(gpufleet.vllm.build) and C(gpufleet.vllm.inputs). One that
    was made from the same base and inputs is left alone.
  - Uses the command C(docker) on the host, with BuildKit where Docker has buildx and with the classic builder
    otherwise.
  - The role P(gpufleet.vllm.vllm_audio_image#role) brings the Dockerfile.
extends_documentation_fragment:
  - gpufleet.vllm._attributes
attributes:
  check_mode:
    support: full
    details:
      - RV(id) and RV(pinned) are empty when something would be built. With O(pull=always) it can not tell whether the
        registry has a newer base, nor with O(push=true) whether the registry lost the image, and predicts no change.
  diff_mode:
    support: full
  idempotent:
    support: full
    details:
      - Except with O(rebuild=true).
options:
  base:
    description:
      - The image to start from.
    type: str
    required: true
  name:
    description:
      - The name of the result, without a digest. The default is that of the base with C(-audio), and its tag.
      - An image of that name that was not built by this module is never replaced.
    type: str
    default: ""
  context:
    description:
      - The text of each file of the build by its name. One is C(Dockerfile), which takes the build arguments C(BASE)
        and C(BASE_USER).
      - The build finds O(packages), O(requirements), O(index_url), O(pip_args), O(apt_source) and whether it is offline
        in C(request.json), and the packages of O(files) in C(files).
    type: dict
    required: true
  packages:
    description:
      - Debian packages to install.
    type: list
    elements: str
    default: []
  requirements:
    description:
      - Python packages to install. V(vllm[audio]) stands for those that the extra of the vLLM in the image names.
    type: list
    elements: str
    default: []
  index_url:
    description:
      - The Python package index to use, instead of the one that the image is configured with. Without credentials,
        which would stay readable in the image.
    type: str
    default: ""
  pip_args:
    description:
      - Further arguments of C(pip install), or of C(uv pip install) where the image has it.
    type: list
    elements: str
    default: []
  apt_source:
    description:
      - One line of an apt source to use instead of those of the image, which are not changed.
    type: str
    default: ""
  files:
    description:
      - A directory on the host with C(.whl) and C(.deb) files, which are installed without a network where
        O(network=none).
    type: path
    default: ""
  digests:
    description:
      - The SHA-256 of each package in O(files) by its name, as they will be. For check mode, which does not copy them.
    type: dict
  network:
    description:
      - The network of the build. V(none) builds from O(files) alone, V(host) uses that of the host.
    type: str
    default: default
  proxy:
    description:
      - Proxies for the build. The keys are V(http_proxy), V(https_proxy), V(ftp_proxy), V(all_proxy) and V(no_proxy).
      - May hold credentials. They are not shown, put on a command line or kept in the image.
    type: dict
    default: {}
  pull:
    description:
      - V(missing) pulls the base if it is not on the host. V(always) asks the registry for a newer one. V(never) fails
        where it is missing.
    type: str
    choices: [missing, always, never]
    default: missing
  push:
    description:
      - Whether the result is pushed to the registry that its name says.
    type: bool
    default: false
  rebuild:
    description:
      - Build although nothing changed, and without Docker's cache, for example for newer Debian packages.
    type: bool
    default: false
  check_audio:
    description:
      - Whether the result must decode audio.
    type: bool
    default: true
  timeout:
    description:
      - How long each of a pull, a build and a push may take, in seconds.
    type: int
    default: 3600
  root:
    description:
      - The directory on the host that holds everything this collection keeps there. The build works below it.
    type: path
    default: /var/lib/gpufleet-vllm
seealso:
  - module: gpufleet.vllm.vllm_image
"""

EXAMPLES = r"""
- name: Build an image for Whisper
  gpufleet.vllm.vllm_image_build:
    base: vllm/vllm-openai:v0.33.0
    name: registry.example.com/vllm-openai-audio:v0.33.0
    context:
      Dockerfile: "{{ lookup('ansible.builtin.file', 'Dockerfile') }}"
      install.py: "{{ lookup('ansible.builtin.file', 'install.py') }}"
    packages: [ffmpeg]
    requirements: ["vllm[audio]"]
    index_url: https://mirror.example.com/simple
    pip_args: [--retries, "10"]
    apt_source: deb https://mirror.example.com/ubuntu jammy main universe
    proxy: {https_proxy: "http://proxy.example.com:3128"}
    pull: missing
    push: true
    rebuild: false
    check_audio: true
    timeout: 7200
    root: /var/lib/gpufleet-vllm

- name: Build it without a network
  gpufleet.vllm.vllm_image_build:
    base: vllm/vllm-openai:v0.33.0
    context:
      Dockerfile: "{{ lookup('ansible.builtin.file', 'Dockerfile') }}"
      install.py: "{{ lookup('ansible.builtin.file', 'install.py') }}"
    requirements: [av, soundfile]
    files: /srv/vllm-audio
    digests: {av-17.0.0-cp312-cp312-manylinux_2_28_x86_64.whl: 4c1e0b...}
    network: none
"""

RETURN = r"""
image:
  description: The name of the image.
  returned: success
  type: str
  sample: vllm/vllm-openai-audio:v0.33.0
action:
  description: V(unchanged) or V(built).
  returned: success
  type: str
  sample: built
pushed:
  description: Whether the registry got something new.
  returned: success
  type: bool
  sample: true
id:
  description: The id of the image on this host. Empty in check mode when it would be built.
  returned: success
  type: str
  sample: sha256:9d0c...
pinned:
  description: What to run, by the registry's digest where it was pushed, else by its id.
  returned: success
  type: str
  sample: registry.example.com/vllm-openai-audio:v0.33.0@sha256:4c1e...
base:
  description: The image that it was made from.
  returned: success
  type: str
  sample: vllm/vllm-openai:v0.33.0
base_id:
  description: The id of the base. Empty in check mode when the base would be pulled.
  returned: success
  type: str
  sample: sha256:77aa...
build:
  description: The digest of the base and all inputs, which is the label C(gpufleet.vllm.build).
  returned: success
  type: str
  sample: 5a1f...
builder:
  description: V(buildkit) or V(classic). Empty when nothing was built.
  returned: success
  type: str
  sample: buildkit
audio:
  description: What decodes audio in it.
  returned: success
  type: str
  sample: decoded by soundfile, av
size_bytes:
  description: How large the image is.
  returned: success
  type: int
  sample: 18600000000
msg:
  description: What was done, in words.
  returned: success
  type: str
  sample: vllm/vllm-openai-audio:v0.33.0 was built from vllm/vllm-openai:v0.33.0
"""

from ansible.module_utils.basic import AnsibleModule
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._image_build import Builder, Options
from ansible_collections.gpufleet.vllm.plugins.module_utils._runtimes import DEFAULT_ROOT
from ansible_collections.gpufleet.vllm.plugins.module_utils._stack import as_failure


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "base": {"type": "str", "required": True},
            "name": {"type": "str", "default": ""},
            "context": {"type": "dict", "required": True},
            "packages": {"type": "list", "elements": "str", "default": []},
            "requirements": {"type": "list", "elements": "str", "default": []},
            "index_url": {"type": "str", "default": ""},
            "pip_args": {"type": "list", "elements": "str", "default": []},
            "apt_source": {"type": "str", "default": ""},
            "files": {"type": "path", "default": ""},
            "digests": {"type": "dict"},
            "network": {"type": "str", "default": "default"},
            "proxy": {"type": "dict", "default": {}, "no_log": True},
            "pull": {"type": "str", "choices": ["missing", "always", "never"], "default": "missing"},
            "push": {"type": "bool", "default": False},
            "rebuild": {"type": "bool", "default": False},
            "check_audio": {"type": "bool", "default": True},
            "timeout": {"type": "int", "default": 3600},
            "root": {"type": "path", "default": DEFAULT_ROOT},
        },
        supports_check_mode=True,
    )
    try:
        result = Builder(Options(**module.params), module.check_mode).run()
    except (FleetError, OSError) as exc:
        failure = as_failure(exc)
        module.fail_json(msg=str(failure), **failure.as_result())
    module.exit_json(**result)


if __name__ == "__main__":
    main()
