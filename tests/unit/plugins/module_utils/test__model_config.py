# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Published configs as _model_config reads them, with its helpers _config_reader, _config_layers and _config_towers."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._config_reader import Reader
from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import largest_item
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import size
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_plan import propose
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).parent / "fixtures" / "configs"


def config(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def model(name, **changes):
    return read_config({**config(name), **changes})


@pytest.mark.parametrize(
    ("name", "layers", "heads", "kv_heads", "head_dim", "length"),
    [
        ("llama-3.1-8b", 32, 32, 8, 128, 131072),
        ("llama-3.1-70b", 80, 64, 8, 128, 131072),
        ("qwen2.5-vl-3b", 36, 16, 2, 128, 128000),
        ("qwen2.5-vl-7b", 28, 28, 4, 128, 128000),
        ("qwen2.5-vl-72b", 80, 64, 8, 128, 128000),
        ("qwen3-8b", 36, 32, 8, 128, 40960),
        ("qwen3-32b", 64, 64, 8, 128, 40960),
        ("qwen3-30b-a3b", 48, 32, 4, 128, 40960),
        ("qwen3-235b-a22b", 94, 64, 4, 128, 40960),
        ("deepseek-v3", 61, 128, 128, 56, 163840),
        ("gemma-3-27b", 62, 32, 16, 128, 131072),
        ("gemma-3-4b", 34, 8, 4, 256, 131072),
        ("mistral-7b-v0.1", 32, 32, 8, 128, 32768),
        ("whisper-large-v3", 32, 20, 20, 64, 448),
        ("whisper-large-v3-turbo", 4, 20, 20, 64, 448),
        ("qwen3-next-80b-a3b", 48, 16, 2, 256, 262144),
    ],
)
def test_the_shape_of_published_models(name, layers, heads, kv_heads, head_dim, length):
    read = model(name)
    assert (read.layers, read.heads, read.kv_heads, read.head_dim) == (layers, heads, kv_heads, head_dim)
    assert read.max_length == length
    assert len(read.kinds) == layers


def test_every_fixture_is_read():
    names = sorted(path.stem for path in CONFIGS.glob("*.json"))
    assert len(names) >= 20
    for name in names:
        assert model(name).layers > 0, name


def test_the_kinds_of_layers():
    assert Counter(model("gemma-3-27b").kinds) == {"sliding": 52, "full": 10}
    assert model("gemma-3-27b").kinds[:6] == ("sliding",) * 5 + ("full",)
    assert model("gemma-3-27b").window == 1024
    assert Counter(model("mistral-7b-v0.1").kinds) == {"sliding": 32}
    assert Counter(model("qwen3-next-80b-a3b").kinds) == {"state": 36, "full": 12}
    # use_sliding_window is false there, whatever sliding_window says
    assert Counter(model("qwen2-7b").kinds) == {"full": 28}
    assert model("qwen2-7b").window == 0
    some = model("qwen2-7b", use_sliding_window=True, max_window_layers=20)
    assert Counter(some.kinds) == {"full": 20, "sliding": 8}


@pytest.mark.parametrize(
    ("changes", "kinds"),
    [
        ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 128}, ("sliding", "full")),
        ({"layer_types": ["sliding_attention", "full_attention"]}, ("full", "full")),
        ({"layer_types": ["linear_attention", "full_attention"]}, ("state", "full")),
        ({"layers_block_type": ["mamba", "attention"]}, ("state", "full")),
        ({"hybrid_override_pattern": "M-"}, ("state", "none")),
        ({"linear_attn_config": {"full_attn_layers": [2], "num_heads": 4, "head_dim": 8}}, ("state", "full")),
        ({"attention_chunk_size": 8192}, ("chunked", "chunked")),
        ({"attn_layer_period": 2, "attn_layer_offset": 1}, ("state", "full")),
        ({"model_type": "gemma2", "sliding_window": 64}, ("sliding", "full")),
        ({"model_type": "cohere2", "sliding_window": 64, "sliding_window_pattern": 2}, ("sliding", "full")),
        ({"model_type": "mamba", "state_size": 16}, ("state", "state")),
    ],
)
def test_ways_to_name_the_kinds(changes, kinds):
    assert model("llama-3.1-8b", num_hidden_layers=2, **changes).kinds == kinds


def test_latent_attention_and_experts():
    read = model("deepseek-v3")
    assert (read.mla.kv_lora_rank, read.mla.qk_rope_head_dim, read.mla.indexer) == (512, 64, 0)
    assert (read.moe.experts, read.moe.intermediate, read.moe.shared, read.moe.dense_layers) == (256, 2048, 2048, 3)
    sparse = model("deepseek-v3", model_type="deepseek_v32", index_topk=2048, index_head_dim=128)
    assert sparse.mla.indexer == 128
    # The same keys in a model for which vLLM has no latent attention.
    assert model("deepseek-v3", model_type="minicpm3").mla is None


@pytest.mark.parametrize(
    ("name", "method", "bits", "group", "block"),
    [
        ("qwen2.5-vl-7b-awq", "awq", 4, 128, None),
        ("qwen3-30b-a3b-gptq", "gptq", 4, 128, None),
        ("qwen3-8b-fp8", "fp8", 8, 0, (128, 128)),
        ("deepseek-v3", "fp8", 8, 0, (128, 128)),
    ],
)
def test_quantisation(name, method, bits, group, block):
    read = model(name).quantization
    assert (read.method, read.bits, read.group, read.block) == (method, bits, group, block)


def test_compressed_tensors():
    weights = {"num_bits": 4, "group_size": 32, "strategy": "group"}
    read = model(
        "qwen3-8b",
        quantization_config={"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}},
    ).quantization
    assert (read.method, read.bits, read.group) == ("compressed-tensors", 4, 32)


def test_what_a_config_leaves_to_its_class():
    small = model("gemma-3-4b")
    assert (small.vocab, small.tied, small.window) == (262208, True, 1024)
    assert small.max_length == 131072, "the factor of rope_scaling is in it already"
    assert not model("llama-3.1-8b").tied
    assert model("whisper-large-v3").tied


def test_an_encoder_for_embeddings_keeps_nothing():
    bert = {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_attention_heads": 12,
        "num_hidden_layers": 6,
        "max_position_embeddings": 512,
        "vocab_size": 30522,
    }
    read = read_config(bert)
    assert set(read.kinds) == {"none"}
    sizing = size(read, memory_total_bytes=24 * 2**30)
    assert sizing.fits
    assert (sizing.kv_request_bytes, sizing.kv_bytes_per_token, sizing.max_len_fitting) == (0, 0, 512)
    assert propose(read, [24 * 2**30]).gpu_memory_utilization < 0.1


def test_the_length_with_rope_scaling():
    assert model("qwen3-8b", rope_scaling={"rope_type": "linear", "factor": 2.0}).max_length == 81920
    assert model("qwen3-8b", rope_scaling={"rope_type": "yarn", "factor": 4.0}).max_length == 40960
    assert model("qwen3-8b", max_position_embeddings=None).max_length is None


def test_encoders():
    vision = model("qwen2.5-vl-7b").towers[0]
    assert (vision.layers, vision.hidden, vision.heads, vision.gated) == (32, 1280, 16, True)
    assert vision.tokens == 16384, "12,845,056 pixels of 28 x 28"
    assert model("qwen2.5-vl-7b", image_processor={"max_pixels": 1003520}).towers[0].tokens == 1280
    later = model("qwen2.5-vl-7b", model_type="qwen3_vl").towers[0]
    assert (vision.frames, later.frames) == (14, 1)
    gemma = model("gemma-3-27b").towers[0]
    assert (gemma.positions, gemma.tokens, gemma.frames) == (4096, 256, 1)
    whisper = model("whisper-large-v3-turbo")
    assert (whisper.towers[0].layers, whisper.encoder_positions, whisper.multimodal) == (32, 1500, False)
    audio = {"encoder_layers": 32, "d_model": 1280, "encoder_attention_heads": 20, "encoder_ffn_dim": 5120}
    assert model("qwen2-7b", audio_config=audio).towers[0].kind == "audio"


def test_the_largest_item_that_an_encoder_is_profiled_with():
    vision = model("qwen2.5-vl-7b").towers[0]
    assert largest_item(vision, 128000, {}) == (7 * 65536, 7 * 16384), "a video of 14 frames"
    assert largest_item(vision, 32000, {}) == (65536, 16384), "of two frames, for no more fit"
    assert largest_item(vision, 128000, {"video": 0}) == (65536, 16384)
    assert largest_item(vision, 128000, {"video": 0, "image": 0}) == (0, 0)
    assert largest_item(vision, 128000, {"video": 0}, pixels=1003520) == (5120, 1280)


def test_a_language_model_inside_another_config():
    inner = config("qwen3-8b")
    for key in ("text_config", "llm_config", "language_config"):
        assert read_config({"model_type": "some_vl", key: inner}).layers == 36
    omni = {"thinker_config": {"text_config": inner, "vision_config": config("qwen2.5-vl-7b")["vision_config"]}}
    assert len(read_config(omni).towers) == 1


# ---- what cannot be


@pytest.mark.parametrize("document", [None, [], "x", 3, {}, {"model_type": "llama"}, {"text_config": {"a": 1}}])
def test_no_config_at_all(document):
    with pytest.raises(FleetError) as caught:
        read_config(document)
    assert caught.value.code == "model.bad_config"
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("num_hidden_layers", 10**9),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", -1),
        ("num_hidden_layers", "36"),
        ("num_hidden_layers", True),
        ("num_hidden_layers", 1.5),
        ("hidden_size", 2**40),
        ("hidden_size", {}),
        ("num_key_value_heads", 0),
        ("vocab_size", None),
        ("vocab_size", 10**400),
        ("head_dim", [1, "x"]),
        ("layer_types", ["full_attention"]),
        ("layer_types", "full_attention"),
        ("layer_types", ["full_attention"] * 10_000_000),
        ("sliding_window", -4),
        ("rope_scaling", {"rope_type": "linear", "factor": 1e300}),
    ],
)
def test_a_value_that_cannot_be_is_named(key, value):
    with pytest.raises(FleetError) as caught:
        model("qwen3-8b", **{key: value})
    assert caught.value.code == "model.bad_config"
    assert key.split(".")[0] in caught.value.seen
    assert len(caught.value.seen) < 300


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=200)
@given(st.sampled_from(sorted(path.stem for path in CONFIGS.glob("*.json"))), st.data())
def test_whatever_stands_in_a_config_it_is_read_or_refused(name, data):
    document = config(name)
    for key in data.draw(st.lists(st.sampled_from(sorted(document)), max_size=4, unique=True)):
        document[key] = data.draw(VALUES)
    try:
        read = read_config(document)
    except FleetError as exc:
        seen = exc.seen
        assert seen.count("\n") == 0
        return
    assert 1 <= read.layers == len(read.kinds)
    assert read.kv_heads >= 1


def test_a_reader_takes_the_first_name_that_is_there():
    read = Reader({"a": None, "b": 3.0, "c": [1, 4, 2]}, "x.")
    assert read.count(("a", "b"), 0, 9) == 3
    assert read.count(("c",), 0, 9) == 4, "one for each layer: the largest"
    assert read.count(("d",), 0, 9, default=7) == 7
    with pytest.raises(FleetError) as caught:
        read.count(("d",), 0, 9)
    assert "x.d" in caught.value.seen
