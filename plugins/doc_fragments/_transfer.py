# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations


class ModuleDocFragment:
    # The argument spec is transfer_argument_spec() in module_utils/_artifact_module.py.
    DOCUMENTATION = r"""
options:
  connections:
    description:
      - The most connections that fetch at a time. A transfer begins with 4 and takes more while that makes it faster;
        when the hub answers that it is overloaded, it takes half as many.
      - All files share them. A large file is fetched in ranges over as many as there are to spare; where the hub does
        not honour ranges, over one.
    type: int
    default: 32
  bandwidth:
    description:
      - The most that is fetched per second, all connections together, such as V(200MB), V(1.5GiB) or V(800Mbit). Empty
        means no limit.
    type: str
    default: ""
  retries:
    description:
      - Tries in a row that may pass without a byte of progress before a file is given up. The wait doubles from one
        second to a minute, 8 retries are about two minutes; progress gives the whole number back.
    type: int
    default: 8
  allow_pickle:
    description:
      - Whether to take files that are Python pickles by their ending (C(.bin), C(.pt), C(.pth), C(.ckpt), C(.pkl) and
        the like). Loading one runs whatever its author put into it.
      - If V(false), they are left out where the weights are there as safetensors or GGUF too (C(left_out) names
        them), and the model is refused where they are not.
    type: bool
    default: false
  engine:
    description:
      - V(native) is this collection's own transfer. It needs the Python standard library alone.
      - V(modelscope) lets the official client fetch what is missing, inside the same checks of paths and contents and
        the same publication. O(connections), O(bandwidth) and O(retries) are without effect then.
    type: str
    choices: [native, modelscope]
    default: native
  client:
    description:
      - The official client's command on the managed host, for O(engine=modelscope). The role
        C(gpufleet.vllm.modelscope_client) installs it.
    type: str
    default: modelscope
"""
