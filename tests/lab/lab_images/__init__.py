# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Builds the images that the lab's registry holds, as archives: real vLLM for CPUs, and the engine simulator.

``vllm-openai:VERSION``         real vLLM, with the official image's entry point and user, and like it without audio
``vllm-openai-audio:VERSION``   the same with what decodes audio
``engine-sim:1``, ``:2``        the simulator, twice: the same files under another label, so the digests differ
``engine-sim:noaudio``          the simulator in an image that fails the audio check

``build_all()`` makes what the cache lacks. An image's ``layers`` are uncompressed archives, first the root file system;
the two real ones share it. Its ``config`` goes into the image's configuration as it is. Needs root and mmdebstrap.
"""

from __future__ import annotations

from .errors import ImageError
from .image import IMAGES, Image, build_all

__all__ = ["IMAGES", "Image", "ImageError", "build_all"]
