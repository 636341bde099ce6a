# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._tensor_parallel import (
    legal_tensor_parallel,
    pipeline_parallel_fault,
    tensor_parallel_fault,
)

CONFIGS = Path(__file__).parent / "fixtures" / "configs"


def model(name, **changes):
    return read_config({**json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8")), **changes})


@pytest.mark.parametrize(
    ("name", "limit", "legal"),
    [
        ("qwen2.5-vl-7b", 64, [1, 2, 4]),
        ("qwen2.5-vl-3b", 64, [1, 2, 4, 8, 16]),
        ("qwen2.5-vl-72b", 8, [1, 2, 4, 8]),
        ("whisper-large-v3-turbo", 64, [1, 2, 4, 5, 10, 20]),
        ("whisper-large-v3", 8, [1, 2, 4, 5]),
        ("llama-3.1-8b", 16, [1, 2, 4, 8, 16]),
        ("qwen3-32b", 8, [1, 2, 4, 8]),
        ("qwen3-30b-a3b", 8, [1, 2, 4, 8]),
        ("qwen3-235b-a22b", 8, [1, 2, 4, 8]),
        ("deepseek-v3", 16, [1, 2, 4, 8, 16]),
        ("qwen3-next-80b-a3b", 32, [1, 2, 4, 8, 16]),
        ("qwen3-8b", 0, []),
    ],
)
def test_legal_sizes(name, limit, legal):
    assert legal_tensor_parallel(model(name), limit) == legal


@pytest.mark.parametrize(
    ("name", "size", "said"),
    [
        ("qwen2.5-vl-7b", 8, "28 attention heads cannot be divided by tensor_parallel_size 8"),
        ("qwen2-7b", 14, "4 KV heads cannot be repeated on 14 GPUs evenly"),
        ("qwen2.5-vl-7b", 28, "18,944 rows of a layer's MLP"),
        ("qwen2-7b", 7, "4 KV heads cannot be repeated on 7 GPUs evenly"),
        ("gemma-3-4b", 3, "8 attention heads"),
        ("whisper-large-v3-turbo", 8, "20 attention heads"),
        ("qwen3-8b", 0, "tensor_parallel_size is 0"),
    ],
)
def test_why_not(name, size, said):
    assert said in tensor_parallel_fault(model(name), size)


def test_kv_heads_that_cannot_be_divided():
    odd = model("qwen2-7b", num_attention_heads=24, num_key_value_heads=6, intermediate_size=18432)
    assert "6 KV heads cannot be divided" in tensor_parallel_fault(odd, 4)
    assert tensor_parallel_fault(odd, 3) is None
    assert tensor_parallel_fault(odd, 12) is None


def test_blocks_of_fp8():
    """A known failure: Qwen3-235B-A22B-FP8 on eight GPUs, whose experts would get 192 rows each."""
    quantised = model("qwen3-235b-a22b-fp8")
    fault = tensor_parallel_fault(quantised, 8)
    assert "192" in fault
    assert "128" in fault
    assert tensor_parallel_fault(quantised, 8, expert_parallel=True) is None
    assert legal_tensor_parallel(quantised, 8) == [1, 2, 4]
    assert legal_tensor_parallel(model("deepseek-v3"), 32) == [1, 2, 4, 8, 16]


def test_groups_of_awq_and_gptq():
    """A known failure: Qwen2.5-72B in groups of 128 on eight GPUs, which would get 3,696 columns each."""
    awq = {"quantization_config": {"quant_method": "awq", "bits": 4, "group_size": 128}}
    fault = tensor_parallel_fault(model("qwen2.5-vl-72b", **awq), 8)
    assert "3,696" in fault
    assert "groups of 128" in fault
    assert tensor_parallel_fault(model("qwen2.5-vl-72b", **awq), 1) is None
    assert legal_tensor_parallel(model("qwen2.5-vl-7b-awq"), 8) == [1, 2, 4]
    # Experts in groups have a kernel that takes parts of one.
    assert legal_tensor_parallel(model("qwen3-30b-a3b-gptq"), 8) == [1, 2, 4, 8]


def test_an_encoder_that_each_gpu_runs_whole():
    three = model("qwen2.5-vl-7b", num_attention_heads=28, num_key_value_heads=7, intermediate_size=18928)
    assert "16 attention heads of the vision encoder" in tensor_parallel_fault(three, 7)
    assert tensor_parallel_fault(three, 7, encoder_data_parallel=True) is None


def test_pipeline_stages():
    assert pipeline_parallel_fault(model("qwen3-8b"), 4) is None
    assert "36 layers" in pipeline_parallel_fault(model("qwen3-8b"), 37)
    assert "WhisperForConditionalGeneration" in pipeline_parallel_fault(model("whisper-large-v3"), 2)
    assert pipeline_parallel_fault(model("qwen3-8b"), 0) is not None
