# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A signed package repository with the NVIDIA Container Toolkit, whose programs are the simulator's."""

from .build import VERSIONS, Published, packages, publish

__all__ = ["VERSIONS", "Published", "packages", "publish"]
