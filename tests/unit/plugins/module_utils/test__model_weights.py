# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_weights import (
    LayerWeights,
    from_config,
    from_tensors,
    quantised_online,
    weights_of,
)

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))

import model_checkpoints as checkpoints

CONFIGS = Path(__file__).parent / "fixtures" / "configs"


def config(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def exact(name, tensors):
    return from_tensors(read_config(config(name)), tensors)


def llama():
    return checkpoints.decoder(config("llama-3.1-8b"))


def qwen_vl(name="qwen2.5-vl-7b"):
    values = config(name)
    return checkpoints.decoder(values, bias=True) + checkpoints.qwen_vision(values["vision_config"])


# What the index of the published checkpoint says (total_size), or the file without its header.
PUBLISHED = {
    "llama-3.1-8b": 16060522496,
    "llama-3.1-70b": 141107412992,
    "qwen3-8b": 16381470720,
    "qwen3-32b": 65524246528,
    "qwen3-30b-a3b": 61064245248,
    "qwen2-7b": 15231233024,
    "qwen2.5-vl-3b": 7509245952,
    "qwen2.5-vl-7b": 16584333312,
    "qwen2.5-vl-72b": 146821554688,
    "whisper-large-v3-turbo": 1617756160,
}


def tensors_of(name):
    if name.startswith("whisper"):
        return checkpoints.whisper(config(name))
    if name.startswith("qwen2.5-vl"):
        return qwen_vl(name)
    return checkpoints.decoder(config(name), bias=name.startswith("qwen2"), head_norms=name.startswith("qwen3"))


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_sum_of_a_published_checkpoint(name):
    weights = exact(name, tensors_of(name))
    assert weights.total == PUBLISHED[name]
    assert weights.unused == 0
    assert weights.exact


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_the_config_alone_comes_within_two_percent(name):
    weights = exact(name, tensors_of(name))
    estimate = from_config(read_config(config(name)))
    assert not estimate.exact
    assert abs(estimate.total / weights.total - 1) < 0.02
    on_one = sum(layer.on_gpu(4, 8) for layer in weights.layers)
    assert abs(sum(layer.on_gpu(4, 8) for layer in estimate.layers) / on_one - 1) < 0.02


def test_what_is_cut_and_what_is_whole_on_each_gpu():
    layer = exact("llama-3.1-8b", llama()).layers[0]
    assert layer.key_value == 2 * 1024 * 4096 * 2
    assert layer.whole == 2 * 4096 * 2, "two norms"
    assert layer.split == (2 * 4096 * 4096 + 3 * 14336 * 4096) * 2
    assert layer.on_gpu(4, 8) == layer.split // 4 + layer.key_value // 4 + layer.whole
    # 8 KV heads on 16 GPUs: each head is on two of them.
    assert layer.on_gpu(16, 8) == layer.split // 16 + layer.key_value // 8 + layer.whole


def test_the_encoder_is_apart():
    weights = exact("qwen2.5-vl-7b", qwen_vl())
    assert weights.tower + weights.tower_whole == 1353100288
    assert weights.tower_whole < 2**22, "norms and the embedding of patches"
    turbo = exact("whisper-large-v3-turbo", tensors_of("whisper-large-v3-turbo"))
    assert turbo.tower + turbo.tower_whole == 1273937920
    assert turbo.head == 0, "tied"


def test_experts_are_cut_and_routers_are_not():
    values = config("qwen3-30b-a3b")
    layer = exact("qwen3-30b-a3b", checkpoints.decoder(values, head_norms=True)).layers[0]
    assert layer.split > 128 * 3 * 768 * 2048 * 2
    assert layer.whole == 128 * 2048 * 2 + 2 * 2048 * 2 + 2 * 128 * 2


def test_latent_attention_keeps_its_low_rank_projections_whole_and_leaves_the_draft_layer():
    values = config("deepseek-v3")
    weights = exact("deepseek-v3", checkpoints.deepseek(values, [0, 3, 61]))
    dense, experts = weights.layers[0], weights.layers[3]
    down = (1536 + 512 + 64) * 7168
    assert down < dense.whole < down * 1.1, "in FP8, with scales and norms"
    assert experts.split > 256 * 3 * 2048 * 7168
    assert weights.unused > experts.split * 0.9, "layer 61 is for speculative decoding"
    assert weights.layers[1].split == 0, "not in these files"
    assert dense.key_value == 0


def test_awq_is_counted_as_it_lies_there():
    values = config("qwen2.5-vl-7b-awq")
    weights = exact("qwen2.5-vl-7b-awq", checkpoints.awq(values, 0))
    plain = from_config(read_config(config("qwen2.5-vl-7b"))).layers[0]
    packed = weights.layers[0]
    assert packed.split + packed.key_value == pytest.approx((plain.split + plain.key_value) * 0.26, rel=0.01)
    estimate = from_config(read_config(values)).layers[0]
    assert estimate.split == pytest.approx(packed.split, rel=0.01)


def test_float32_is_loaded_in_sixteen_bits():
    tensors = [replace(one, dtype="F32", size=2 * one.size) for one in llama()]
    assert exact("llama-3.1-8b", tensors).total == PUBLISHED["llama-3.1-8b"]


def test_a_head_that_is_tied_is_not_loaded_twice():
    values = {**config("llama-3.1-8b"), "tie_word_embeddings": True}
    weights = from_tensors(read_config(values), llama())
    assert weights.head == 0
    assert weights.unused == 128256 * 4096 * 2


def test_a_fused_projection():
    values = config("llama-3.1-8b")
    fused = [checkpoints.tensor("transformer.h.0.attn.qkv_proj.weight", (32 + 16) * 128, 4096)]
    layer = from_tensors(read_config(values), fused).layers[0]
    assert layer.key_value == 2 * 8 * 128 * 4096 * 2
    assert layer.split == 32 * 128 * 4096 * 2


def test_a_known_size_scales_what_is_quantised():
    read = read_config(config("qwen3-8b"))
    plain = from_config(read)
    smaller = from_config(read, 6_000_000_000)
    assert smaller.total == pytest.approx(6_000_000_000, rel=1e-6)
    assert (smaller.embedding, smaller.head) == (plain.embedding, plain.head)
    tiny = from_config(read, 1000)
    assert tiny.total <= 1000


def test_quantised_while_loading():
    weights = exact("llama-3.1-8b", llama())
    half = quantised_online(weights, 0.5)
    assert not half.exact
    assert half.embedding == weights.embedding
    assert half.layers[0].split == weights.layers[0].split // 2
    assert half.layers[0].whole == weights.layers[0].whole


def test_plain_data_there_and_back():
    weights = exact("qwen2.5-vl-7b", qwen_vl())
    plain = json.loads(json.dumps(weights.as_dict()))
    again = weights_of(plain)
    assert replace(again, dtypes=weights.dtypes) == weights
    assert plain["total_bytes"] == PUBLISHED["qwen2.5-vl-7b"]
    assert plain["dtypes"] == {"BF16": PUBLISHED["qwen2.5-vl-7b"]}


@pytest.mark.parametrize(
    "values",
    [
        None,
        [],
        {"layers": [[1, 2]]},
        {"layers": [7]},
        {"layers": [[1, 2, -3]]},
        {"layers": [[1, 2, "x"]]},
        {"head": -1},
    ],
)
def test_plain_data_of_another_kind(values):
    with pytest.raises(FleetError):
        weights_of(values)


def test_rounding_goes_up():
    assert LayerWeights(10, 7, 1).on_gpu(4, 2) == 3 + 4 + 1
