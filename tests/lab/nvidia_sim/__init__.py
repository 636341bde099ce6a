# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""NVIDIA at its outermost edge: nvidia-smi, NVML, the container hook and CDI for GPUs that a small file describes."""

from nvidia_sim.build import binding, digest, install, library
from nvidia_sim.state import Gpu, SimError, State, expand, types

__all__ = ["Gpu", "SimError", "State", "binding", "digest", "expand", "install", "library", "types"]
