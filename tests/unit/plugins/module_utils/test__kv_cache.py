# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._kv_cache import (
    cache_of,
    layer_token_bytes,
    stage_layers,
    state_bytes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
KIB, MIB, GIB = 2**10, 2**20, 2**30


def model(name, **changes):
    return read_config({**json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")), **changes})


def cache(name, tensor_parallel=1, dtype="auto", **changes):
    read = model(name, **changes)
    return cache_of(read, range(read.layers), tensor_parallel, dtype)


@pytest.mark.parametrize(
    ("name", "tensor_parallel", "token_bytes"),
    [
        ("qwen2.5-vl-7b", 1, 56 * KIB),
        ("qwen2.5-vl-7b", 2, 28 * KIB),
        ("qwen2.5-vl-7b", 4, 14 * KIB),
        ("llama-3.1-8b", 1, 128 * KIB),
        ("llama-3.1-8b", 8, 16 * KIB),
        ("llama-3.1-8b", 32, 16 * KIB),  # 8 KV heads: more GPUs hold copies
        ("llama-3.1-70b", 1, 320 * KIB),
        ("deepseek-v3", 1, 70272),
        ("deepseek-v3", 8, 70272),  # one latent head: on every GPU
        ("qwen3-235b-a22b", 4, 47 * KIB),
        ("whisper-large-v3-turbo", 1, 20 * KIB),
        ("whisper-large-v3", 1, 160 * KIB),
    ],
)
def test_bytes_of_a_token_on_one_gpu(name, tensor_parallel, token_bytes):
    assert cache(name, tensor_parallel).token_bytes == token_bytes


def test_a_context_of_qwen25_vl():
    assert cache("qwen2.5-vl-7b").request_bytes(32000, 0) / GIB == pytest.approx(1.71, abs=0.005)
    assert cache("qwen2.5-vl-7b", 2).request_bytes(32000, 0) / GIB == pytest.approx(0.85, abs=0.005)
    assert cache("llama-3.1-8b").request_bytes(131072, 0) == 16 * GIB


def test_whisper_keeps_its_text_and_its_audio():
    read = model("whisper-large-v3-turbo")
    own = cache_of(read, range(4), 1)
    assert own.request_bytes(448, 0) / MIB == 8.75
    both = cache_of(read, range(4), 1, cross_tokens=2048)
    # vLLM sets aside a whole batch of encoder tokens; one clip has 1,500 of them.
    assert (both.request_bytes(448, 0) - own.request_bytes(448, 0)) / MIB == 40
    assert (both.used_bytes(448, 1500, 0) - own.request_bytes(448, 0)) / MIB == pytest.approx(29.3, abs=0.1)


@pytest.mark.parametrize(
    ("dtype", "part"),
    [("auto", 1), ("bfloat16", 1), ("fp8", 0.5), ("fp8_e5m2", 0.5), ("nvfp4", 4.5 / 16), ("something-new", 1)],
)
def test_the_dtype_of_the_cache(dtype, part):
    assert layer_token_bytes(model("llama-3.1-8b"), "full", 1, dtype) == 4096 * part


def test_scales_for_each_token_and_head():
    assert layer_token_bytes(model("llama-3.1-8b"), "full", 1, "int8_per_token_head") == 2048 + 2 * 8 * 4


def test_a_sparse_indexer_caches_in_fp8_unless_told_otherwise():
    sparse = model("deepseek-v3", model_type="deepseek_v32", index_topk=2048)
    assert layer_token_bytes(sparse, "full", 8) == 656 + 128 + 4
    assert layer_token_bytes(sparse, "full", 8, "bfloat16") == 1152 + 128 + 4
    assert layer_token_bytes(model("deepseek-v3"), "full", 8, "fp8") == 576


def test_a_sliding_window_is_a_bound():
    mistral = cache("mistral-7b-v0.1")
    flight = 4096
    short, long = mistral.request_bytes(2048, flight), mistral.request_bytes(32768, flight)
    assert short == (2048 // 16 + 1) * 16 * 128 * KIB
    assert long == (-(-(4095 + flight) // 16) + 1) * 16 * 128 * KIB
    assert mistral.request_bytes(10**6, flight) == long


def test_layers_of_two_kinds_share_a_pool():
    """As vLLM groups Gemma 3: 52 sliding and 10 full layers are seven groups of ten, eight of them padding."""
    gemma = cache("gemma-3-27b")
    assert (gemma.group_layers, gemma.page_bytes) == (10, 8 * KIB * 16)
    assert gemma.token_bytes == 62 * 8 * KIB
    sliding = 6 * (-(-(1023 + 2048) // 16) + 1)
    assert gemma.blocks(131072, 2048) == 131072 // 16 + sliding
    # 12 and 13 layers become 13 each, not 12 and 24.
    near = cache("qwen3-8b", num_hidden_layers=25, layer_types=["sliding_attention"] * 12 + ["full_attention"] * 13,
                 sliding_window=128, use_sliding_window=True)  # fmt: skip
    assert near.group_layers == 13


def qwen35(**changes):
    """The attention of Qwen3.5 on Qwen3-Next's other values: 8 of 32 layers are full, the state is kept in float32."""
    shape = {"num_hidden_layers": 32, "num_key_value_heads": 4, "mamba_ssm_dtype": "float32"}
    return model("qwen3-next-80b-a3b", **{**shape, **changes})


def test_hybrid_blocks_are_as_large_as_a_state():
    """What vLLM logs for Qwen3.5-9B: "Setting attention block size to 528 tokens to ensure that attention page size is
    >= mamba page size", "Padding mamba page size by 0.76%"; for the 27B with a cache in FP8: 1568 tokens, 0.13%."""
    for read, dtype, tokens, padding in (
        (qwen35(), "auto", 528, 1.0076),
        (qwen35(linear_num_value_heads=48), "fp8", 1568, 1.0013),
    ):
        hybrid = cache_of(read, range(read.layers), 1, dtype)
        assert hybrid.block_tokens == tokens
        state = max(group.state_bytes for group in hybrid.groups)
        assert hybrid.page_bytes / state == pytest.approx(padding, abs=0.0001)


def test_hybrid_requests_as_vllm_counts_them():
    """Two published logs without prefix caching. Qwen3.5-9B: "Available KV cache memory: 20.27 GiB", "Maximum
    concurrency for 262,144 tokens per request: 2.52x"; Qwen3.5-4B: 11.11 GiB, 137.80x for 1,024 tokens."""
    hybrid = cache_of(qwen35(), range(32), 1, prefix_caching=False)
    assert hybrid.concurrency(int(20.27 * GIB), 262144, 0) == pytest.approx(2.52, abs=0.01)
    assert hybrid.concurrency(int(11.11 * GIB), 1024, 0) == pytest.approx(137.80, abs=0.005)
    kept = cache_of(qwen35(), range(32), 1)
    assert kept.blocks(1024, 0) == hybrid.blocks(1024, 0) + 3


def test_padded_groups_as_vllm_counts_them():
    """A published log of Gemma-3-27B: "Available KV cache memory: 109.86 GiB", "Add 8 padding layers", num_gpu_blocks
    89994, "Maximum concurrency for 4,096 tokens per request: 50.05x"."""
    gemma = cache("gemma-3-27b")
    assert int(109.86 * GIB) // gemma.block_bytes == pytest.approx(89994, abs=5)
    assert gemma.concurrency(int(109.86 * GIB), 4096, 8192) == pytest.approx(50.05, abs=0.01)


def test_a_state_is_cut_and_does_not_grow():
    read = model("qwen3-next-80b-a3b")
    whole = (2 * 16 * 128 + 32 * 128) * 3 * 2 + 32 * 128 * 128 * 2
    assert state_bytes(read, 1) == whole
    assert state_bytes(read, 4) == whole // 4
    pure = model("mistral-7b-v0.1", model_type="mamba2", sliding_window=None, num_heads=64, head_dim=64, state_size=128)
    states = cache_of(pure, range(32), 1)
    assert states.request_bytes(100, 0) == states.request_bytes(10**6, 0) > 0


def test_other_layers_cost_nothing():
    half = ["attention", "mlp"] * 16
    assert cache("llama-3.1-8b", layers_block_type=half).token_bytes == 64 * KIB
    assert cache("llama-3.1-8b", num_kv_shared_layers=16).token_bytes == 64 * KIB
    wide = cache("llama-3.1-8b", global_head_dim=256, num_global_key_value_heads=2, sliding_window=512,
                 sliding_window_pattern=2)  # fmt: skip
    assert {group.kind: group.token_bytes for group in wide.groups} == {"full": 2048, "sliding": 4096}


@pytest.mark.parametrize(
    ("layers", "stages", "counts"),
    [(80, 4, [20] * 4), (61, 4, [15, 15, 16, 15]), (62, 4, [15, 16, 16, 15]), (28, 1, [28]), (2, 3, [1, 1, 0])],
)
def test_stages_as_vllm_deals_them_out(layers, stages, counts):
    found = stage_layers(layers, stages)
    assert [len(stage) for stage in found] == counts
    assert [number for stage in found for number in stage] == list(range(layers))


def test_the_longest_context_and_how_many_fit():
    llama = cache("llama-3.1-8b")
    block = 16 * 128 * KIB
    assert llama.longest(block * 100, 0, 131072) == 99 * 16, "one block is the pool's own"
    assert llama.longest(block * 10**6, 0, 131072) == 131072
    assert llama.longest(block, 0, 131072) == 0
    assert llama.longest(-5, 0, 131072) == 0
    assert llama.longest(10**9, 0, 0) == 0
    assert llama.concurrency(16 * GIB * 3, 131072, 0) == 3.0
    assert llama.concurrency(-1, 131072, 0) == 0.0


@settings(max_examples=150)
@given(
    st.sampled_from(NAMES),
    st.sampled_from([1, 2, 4, 8, 16]),
    st.sampled_from(["auto", "fp8", "nvfp4"]),
    st.integers(0, 300_000),
    st.integers(0, 300_000),
    st.integers(0, 40_000),
)
def test_need_never_falls_with_length_nor_rises_with_gpus(name, tensor_parallel, dtype, first, second, flight):
    one, more = cache(name, tensor_parallel, dtype), cache(name, 2 * tensor_parallel, dtype)
    short, long = sorted((first, second))
    assert 0 < one.request_bytes(short, flight) <= one.request_bytes(long, flight)
    assert more.token_bytes <= one.token_bytes
    # A block of a hybrid model is rounded up to sixteen tokens.
    assert more.request_bytes(long, flight) <= one.request_bytes(long, flight) * 1.05
    room = one.request_bytes(long, flight) + one.block_bytes
    assert one.longest(room, flight, 300_000) >= long
