# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Builds model directories, in the layout inference engines read, from what a package registry carries.

Needs gguf, numpy, safetensors and tokenizers; no torch and no transformers.
"""

from __future__ import annotations
