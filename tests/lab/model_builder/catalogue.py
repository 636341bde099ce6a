# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every model that can be built, and the id under which the lab's hub offers it.

The tiny ones stand under the ids of the models whose architecture they have, so that an inventory for the real models
works on the lab as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from .minilm import build_minilm
from .place import Built
from .qwen_vl import tiny_qwen_vl
from .smollm2 import build_smollm2
from .whisper import tiny_whisper


@dataclass(frozen=True)
class Entry:
    """A model that can be built. ``source``: the option that names its file or directory, where it is made from one."""

    id: str
    summary: str
    build: Callable[[Path, Path | None], Built]
    source: str = ""


CATALOGUE = {
    "smollm2": Entry(
        "HuggingFaceTB/SmolLM2-135M-Instruct", "SmolLM2-135M-Instruct in bfloat16, 0.27 GB", build_smollm2, "gguf"
    ),
    "minilm": Entry("sentence-transformers/all-MiniLM-L6-v2", "all-MiniLM-L6-v2, 0.09 GB", build_minilm, "source"),
    "qwen2.5-vl": Entry(
        "Qwen/Qwen2.5-VL-7B-Instruct",
        "a Qwen2.5-VL of 1.2 million parameters that names colours",
        lambda out, _source: tiny_qwen_vl().build(out),
    ),
    "whisper": Entry(
        "openai-mirror/whisper-large-v3-turbo",
        "a Whisper of 1.2 million parameters that counts to five when it hears something",
        lambda out, _source: tiny_whisper().build(out),
    ),
}


def build_catalogue(root: Path) -> dict[str, Built]:
    """Build all of them below ``root``, in a directory named as the id says; by id. Raises BuildError."""
    return {entry.id: entry.build(root / entry.id, None) for entry in CATALOGUE.values()}
