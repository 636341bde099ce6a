# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The encoders beside a language model: what config.json says about its images and audio."""

from __future__ import annotations

import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_reader import Reader

_WIDTH_MAX = 2**24

QWEN_PIXELS = 12845056
"""What the image processors of Qwen2-VL and Qwen2.5-VL scale a larger image down to (preprocessor_config.json)."""

QWEN3_PIXELS = 16777216
"""The same of Qwen3-VL and its kin."""

QWEN_FRAMES = 14
"""Frames of the longest video that vLLM profiles these models with (model_executor/models/qwen2_vl.py)."""


@dataclass(frozen=True)
class Tower:
    """An encoder. ``inputs`` are the values of one patch (or of one position of a spectrogram) that go in.

    ``positions`` are the patches or positions of the largest single item, ``merge`` how many of them become one token.
    ``frames`` is above 1 where a video of so many frames is an item too, two of which share a patch.
    """

    kind: str
    layers: int
    hidden: int
    heads: int
    intermediate: int
    gated: bool
    inputs: int
    positions: int
    merge: int
    patch: int = 0
    frames: int = 1
    out_hidden: int = 0

    @property
    def tokens(self) -> int:
        """Tokens that the decoder gets for the largest item (for a video: for one pair of frames)."""
        return max(1, self.positions // max(1, self.merge))

    def positions_of_pixels(self, pixels: int) -> int:
        """Patches of an image of so many pixels, a whole number of tokens."""
        side = max(1, self.patch)
        return max(1, pixels // (side * side * self.merge)) * self.merge


def towers_of(top: Reader) -> tuple[Tower, ...]:
    thinker = top.mapping("thinker_config")
    if thinker is not None:
        top = Reader(thinker, "thinker_config.")
    towers = []
    for key in ("vision_config", "visual", "vit_config"):
        values = top.mapping(key)
        if values is not None:
            towers.append(_vision(Reader(values, f"{key}."), top))
            break
    for key in ("audio_config", "encoder_config"):
        values = top.mapping(key)
        if values is not None and not (key == "encoder_config" and "d_model" not in values):
            towers.append(_audio(Reader(values, f"{key}.")))
            break
    return tuple(towers)


def _vision(read: Reader, top: Reader) -> Tower:
    hidden = read.count(("hidden_size", "embed_dim", "width"), 1, _WIDTH_MAX, default=1152)
    patch = read.count(("patch_size", "spatial_patch_size"), 1, 4096, default=14)
    merge = read.count(("spatial_merge_size",), 1, 64, default=1) ** 2
    frames = read.count(("temporal_patch_size",), 1, 64, default=1)
    channels = read.count(("in_channels", "in_chans", "num_channels"), 1, 64, default=3)
    width = read.count(("intermediate_size",), 0, _WIDTH_MAX, default=0)
    if not width:
        width = int(hidden * read.number("mlp_ratio", 0.1, 64, 4.0))
    model_type = top.text("model_type")
    pixel_based = model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen2_5_omni", "qwen3_omni", "qwen3_5"))
    if pixel_based:
        processor = Reader(top.mapping("image_processor") or {}, "image_processor.")
        largest = QWEN_PIXELS if patch == 14 else QWEN3_PIXELS
        largest = processor.count(("max_pixels",), 1, 2**40, default=largest)
        positions = max(1, largest // (patch * patch * merge)) * merge
    else:
        side = read.count(("image_size",), 1, 65536, default=448) // patch
        positions = max(1, side * side)
        tokens = top.count(("mm_tokens_per_image",), 0, 65536, default=0)
        merge = max(merge, positions // tokens) if tokens else merge
    return Tower(
        kind="vision",
        layers=read.count(("depth", "num_hidden_layers", "layers"), 1, 4096, default=27),
        hidden=hidden,
        heads=read.count(("num_heads", "num_attention_heads"), 1, 65536, default=16),
        intermediate=width,
        gated=model_type.startswith("qwen2_5"),
        inputs=channels * frames * patch * patch,
        positions=positions,
        merge=merge,
        patch=patch,
        # Later ones bound a whole video like one image.
        frames=QWEN_FRAMES if model_type.startswith(("qwen2_vl", "qwen2_5_vl", "qwen2_5_omni")) else 1,
        out_hidden=read.count(("out_hidden_size",), 0, _WIDTH_MAX, default=0),
    )


def _audio(read: Reader) -> Tower:
    hidden = read.count(("d_model", "hidden_size"), 1, _WIDTH_MAX, default=1280)
    return Tower(
        kind="audio",
        layers=read.count(("encoder_layers", "num_hidden_layers"), 1, 4096, default=32),
        hidden=hidden,
        heads=read.count(("encoder_attention_heads", "num_attention_heads"), 1, 65536, default=20),
        intermediate=read.count(("encoder_ffn_dim", "intermediate_size"), 1, _WIDTH_MAX, default=4 * hidden),
        gated=False,
        inputs=2 * read.count(("num_mel_bins",), 1, 65536, default=128),
        positions=read.count(("max_source_positions",), 1, 2**31, default=1500),
        merge=2,
    )


def largest_item(tower: Tower, length: int, limits: t.Mapping[str, int], pixels: int = 0) -> tuple[int, int]:
    """(positions, tokens) of the largest item that vLLM profiles the encoder with; (0, 0) where none is allowed.

    An image counts where ``limits`` (``--limit-mm-per-prompt``) allow one, and a video of as many frames as fit
    ``length`` tokens where they allow one (``get_num_frames_with_most_features`` in vLLM).
    """
    single = tower.positions_of_pixels(pixels) if pixels and tower.patch else tower.positions
    tokens = max(1, single // max(1, tower.merge))
    if tower.kind == "audio":
        return (single, tokens) if limits.get("audio", 1) else (0, 0)
    pairs = 1 if limits.get("image", 1) else 0
    if tower.frames > 1 and limits.get("video", 1):
        pairs = max(1, min(tower.frames // 2, length // tokens))
    return single * pairs, tokens * pairs
