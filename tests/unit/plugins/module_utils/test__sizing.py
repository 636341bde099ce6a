# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The sums of _sizing with the estimates of _sizing_peak."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils import _sizing_peak as peak
from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import largest_item
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_weights import from_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import (
    ACTIVATIONS,
    EMBEDDINGS,
    ENCODER,
    ENCODER_PEAK,
    GRAPHS,
    REQUEST,
    SHORT,
    SPARE,
    WEIGHTS,
    WORKSPACE,
    Demand,
    batch_of,
    longest_context,
    model_of,
    size,
    size_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
MIB, GIB = 2**20, 2**30
A100 = int(79.25 * GIB)


def config(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def model(name, **changes):
    return read_config({**config(name), **changes})


# ---- against vLLM's own words


def test_qwen2_7b_on_an_a100():
    """A published boot log of vLLM 0.10.1.1: gpu_memory_utilization 0.5, max_model_len 16384, one A100 80GB.

    "Model loading took 14.2488 GiB", "Available KV cache memory: 24.83 GiB", "GPU KV cache size: 464,848 tokens",
    "Maximum concurrency for 16,384 tokens per request: 28.37x". That release did not count graphs.
    """
    sizing = size(
        model("qwen2-7b"),
        memory_total_bytes=A100,
        gpu_name="NVIDIA A100 80GB PCIe",
        utilization=0.5,
        max_model_len=16384,
        enforce_eager=True,
    )
    assert sizing.weights_bytes / GIB == pytest.approx(14.2488, rel=0.01)
    assert sizing.kv_available_bytes / GIB == pytest.approx(24.83, rel=0.015)
    assert sizing.concurrency == pytest.approx(28.37, rel=0.015)
    assert sizing.concurrency * 16384 == pytest.approx(464848, rel=0.015)


def test_qwen2_7b_on_two_of_them():
    """The same with tensor_parallel_size 2: "Model loading took 7.1217 GiB", "Available KV cache memory: 31.83 GiB",
    "Maximum concurrency for 16,384 tokens per request: 72.76x"."""
    sizing = size(
        model("qwen2-7b"),
        tensor_parallel=2,
        memory_total_bytes=A100,
        gpu_name="NVIDIA A100 80GB PCIe",
        utilization=0.5,
        max_model_len=16384,
        enforce_eager=True,
    )
    assert sizing.weights_bytes / GIB == pytest.approx(7.1217, rel=0.01)
    assert sizing.kv_available_bytes / GIB == pytest.approx(31.83, rel=0.01)
    assert sizing.concurrency == pytest.approx(72.76, rel=0.01)


def test_qwen25_vl_7b_that_did_not_start():
    """A published failure of vLLM 0.23 on one A100 80GB with gpu_memory_utilization 0.22 and no max_model_len: "Encoder
    cache will be initialized with a budget of 114688 tokens, and profiled with 1 video items", "Estimated CUDA graph
    memory: 0.53 GiB", "Available KV cache memory: -14.28 GiB"."""
    sizing = size(model("qwen2.5-vl-7b"), memory_total_bytes=A100, gpu_name="NVIDIA A100 80GB PCIe", utilization=0.22)
    assert not sizing.fits
    rows = dict(sizing.rows)
    left = sizing.budget_bytes - sum(rows[label] for label in rows if label not in (REQUEST, SHORT))
    assert left / GIB == pytest.approx(-14.28, abs=1.7)
    assert largest_item(model("qwen2.5-vl-7b").towers[0], sizing.max_model_len, {})[1] == 114688
    seen = 0.22 * 79.25 + 14.28 - 0.53 - 15.67
    reckoned = (rows[ACTIVATIONS] + rows[ENCODER_PEAK] + rows[WORKSPACE]) / GIB
    assert reckoned == pytest.approx(seen, rel=0.12)


def test_qwen25_7b_on_a_card_of_44_gib():
    """vLLM 0.22, gpu_memory_utilization 0.95, 2,048 tokens and 128 sequences: "Model loading took 14.29 GiB",
    "Estimated CUDA graph memory: 0.37 GiB", "Available KV cache memory: 26.32 GiB", 120.34 times 4,096 tokens."""
    sizing = size(
        model("qwen2-7b"),
        memory_total_bytes=int(44.39 * GIB),
        utilization=0.95,
        max_model_len=4096,
        max_num_batched_tokens=2048,
        max_num_seqs=128,
    )
    assert sizing.kv_available_bytes / GIB == pytest.approx(26.32, rel=0.03)
    assert sizing.concurrency == pytest.approx(120.34, rel=0.03)


@pytest.mark.parametrize(
    ("name", "changes", "parallel", "seen", "within"),
    [
        ("qwen2.5-vl-7b", {}, 1, 15.6271, 0.015),  # QwenLM/Qwen3-VL#1057
        ("qwen2.5-vl-72b", {}, 4, 34.434, 0.01),  # vllm#16570
        ("qwen3-30b-a3b", {}, 4, 14.2474, 0.002),  # vllm#17469
        ("llama-3.1-8b", {}, 1, 14.9888, 0.003),  # vllm#10517
        ("llama-3.1-8b", {}, 2, 7.48, 0.003),  # vllm#10511
        ("deepseek-v3", {}, 8, 79.41, 0.003),  # HabanaAI/vllm-fork#809
        ("gemma-3-27b", {}, 4, 13.1665, 0.035),  # vllm#15676
        ("qwen2-7b", {"num_hidden_layers": 48, "hidden_size": 5120, "intermediate_size": 13824,
                      "num_attention_heads": 40, "num_key_value_heads": 8}, 2, 13.9476, 0.015),  # vllm#13061
    ],
)  # fmt: skip
def test_weights_that_vllm_told(name, changes, parallel, seen, within):
    """``Model loading took ... GiB``, against what the config alone implies."""
    sizing = size(model(name, **changes), tensor_parallel=parallel, memory_total_bytes=141 * GIB, max_model_len=4096)
    assert sizing.weights_bytes / GIB == pytest.approx(seen, rel=within)


def test_tokens_that_vllm_told():
    """Qwen2.5-VL-7B on an H100 had 905,648 tokens (0.8.2); Llama-3-8B 53.29 GiB (0.6)."""
    cache = size(model("qwen2.5-vl-7b"), kv_cache_memory_bytes=905648 * 56 * 1024, max_model_len=128000)
    assert cache.concurrency == pytest.approx(7.08, abs=0.01)
    plain = {"utilization": 0.9, "max_num_seqs": 256, "max_num_batched_tokens": 8192}
    sizing = size(model("llama-3.1-8b"), memory_total_bytes=int(79.22 * GIB), max_model_len=8192, **plain)
    assert sizing.kv_available_bytes / GIB == pytest.approx(53.29, rel=0.02)
    sizing = size(
        model("qwen2.5-vl-7b"),
        memory_total_bytes=int(79.1 * GIB),
        max_model_len=128000,
        limits={"video": 0},
        **plain,
    )
    assert sizing.kv_available_bytes / GIB == pytest.approx(48.37, rel=0.08)


def test_experts_of_eight_data_parallel_ranks():
    """Qwen3-Coder-480B-A35B-FP8 on eight H20 of 141 GB: 62.00 GiB for 262,144 tokens, and 48.66 GiB hold 205,728."""
    changes = {
        "hidden_size": 6144,
        "num_hidden_layers": 62,
        "num_attention_heads": 96,
        "num_key_value_heads": 8,
        "moe_intermediate_size": 2560,
        "num_experts": 160,
        "max_position_embeddings": 262144,
    }
    coder = model("qwen3-235b-a22b-fp8", **changes)
    plain = {"data_parallel": 8, "expert_parallel": True, "max_model_len": 262144}
    sizing = size(coder, memory_total_bytes=int(139.8 * GIB), utilization=0.9, **plain)
    assert sizing.kv_request_bytes / GIB == pytest.approx(62.0, abs=0.01)
    assert size(coder, kv_cache_memory_bytes=int(48.66 * GIB), **plain).max_len_fitting == pytest.approx(205728, abs=32)
    # 5.3 GiB of 125.8 more than vLLM had: what all-to-all takes is not in the sum.
    assert 48.66 < sizing.kv_available_bytes / GIB < 48.66 + 6


def test_qwen3_235b_tokens_of_a_gibibyte():
    """ "Available KV cache memory: 8.11 GiB", "GPU KV cache size: 178,880 tokens" for Qwen3-235B-A22B-FP8 on four
    GPUs (vLLM, discussion 21348)."""
    sizing = size(
        model("qwen3-235b-a22b-fp8"), tensor_parallel=4, kv_cache_memory_bytes=int(8.11 * GIB), max_model_len=40960
    )
    assert sizing.concurrency * 40960 == pytest.approx(178880, rel=0.02)


@pytest.mark.parametrize(
    ("layers", "sequences", "batched", "seen"),
    [
        (28, 1024, 2048, 0.50),  # Qwen2-7B, 67 piecewise graphs of that release
        (32, 256, 8192, 0.73),  # 51 piecewise and 35 full ones of 0.2x, three published logs
        (32, 256, 2048, 0.78),
        (28, 256, 8192, 0.64),
        (32, 128, 2048, 0.37),  # 35 and 19
    ],
)
def test_cuda_graphs_of_published_logs(layers, sequences, batched, seen):
    estimate = peak.graph_bytes(layers, sequences, batched) / GIB
    assert 0.6 < estimate / seen < 1.8


@pytest.mark.parametrize(
    ("total_mib", "seen"), [(46068, 44.4), (81559, 79.2), (23028, 22.06), (24576, 23.69), (15360, 14.58), (4864, 4.75)]
)
def test_what_cuda_sees_of_a_card(total_mib, seen):
    assert peak.cuda_bytes(total_mib * MIB) / GIB == pytest.approx(seen, abs=0.21)


def test_capture_sizes_as_vllm_counts_them():
    assert peak.capture_sizes(512) == 51
    assert peak.capture_sizes(256) == 35
    assert peak.capture_sizes(128) == 19
    assert [peak.capture_sizes(number) for number in (0, 1, 2, 4, 8, 16)] == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("gib", "name", "expected"),
    [
        (24, "", (2048, 256)),
        (79.65, "NVIDIA H100 80GB HBM3", (8192, 1024)),
        (79.25, "NVIDIA A100 80GB PCIe", (2048, 256)),
        (119, "NVIDIA GB10", (2048, 256)),
        (178, "NVIDIA B200", (16384, 1024)),
    ],
)
def test_batches_by_the_card(gib, name, expected):
    assert peak.batch_defaults(int(gib * GIB), name) == expected


def test_batches_of_a_service():
    small = Demand(memory_total_bytes=24 * GIB)
    assert batch_of(model("qwen3-8b"), small) == (2048, 256)
    assert batch_of(model("qwen3-8b"), replace(small, max_num_batched_tokens=512, max_num_seqs=8)) == (512, 8)
    assert batch_of(model("whisper-large-v3-turbo"), replace(small, max_num_seqs=2)) == (896, 2)
    assert batch_of(model("qwen3-8b"), replace(small, max_model_len=4, max_num_seqs=1)) == (4, 1)


# ---- the sum


def test_the_rows_are_the_budget():
    sizing = size(model("qwen2.5-vl-7b"), memory_total_bytes=int(44.42 * GIB), max_model_len=32000)
    rows = dict(sizing.rows)
    assert list(rows)[:3] == [WEIGHTS, EMBEDDINGS, ENCODER]
    assert sum(rows.values()) == sizing.budget_bytes
    assert sizing.fits
    assert rows[REQUEST] / GIB == pytest.approx(1.71, abs=0.005)
    assert rows[SPARE] == sizing.budget_bytes - sum(size for label, size in sizing.rows if label != SPARE)
    assert sizing.slack > 0.4
    assert sizing.short_bytes == 0


def test_what_does_not_fit_says_by_how_much():
    sizing = size(model("llama-3.1-70b"), memory_total_bytes=80 * GIB, max_model_len=8192)
    rows = dict(sizing.rows)
    assert not sizing.fits
    assert SPARE not in rows
    assert rows[SHORT] == sum(size for label, size in sizing.rows if label != SHORT) - sizing.budget_bytes
    assert sizing.max_len_fitting == 0
    assert sizing.kv_available_bytes == 0
    assert sizing.short_bytes > 60 * GIB


def test_weights_on_more_gpus():
    read = replace(model("llama-3.1-70b"), weights=from_config(model("llama-3.1-70b")))
    one, four = (size(read, tensor_parallel=number) for number in (1, 4))
    assert one.weights_bytes == read.weights.total
    assert four.weights_bytes == pytest.approx(one.weights_bytes / 4, rel=0.001)


def test_pipeline_stages_carry_their_part():
    read = model("llama-3.1-70b")
    whole, staged = size(read), size(read, pipeline_parallel=4)
    rows = dict(staged.rows)
    assert rows[WEIGHTS] < dict(whole.rows)[WEIGHTS] / 3.9
    assert rows[EMBEDDINGS] == 128256 * 8192 * 2, "the head is with the last stage"
    assert staged.kv_bytes_per_token == whole.kv_bytes_per_token // 4
    assert staged.outside_bytes > whole.outside_bytes


@pytest.mark.parametrize(
    ("told", "ratio"),
    [
        ({"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}, 0.5),
        ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8, "type": "float"}}, 0.5),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "kv_cache_quant_algo": "NVFP4", "group_size": 16},
            0.28125,
        ),
        ({"quant_method": "modelopt", "kv_cache_quant_algo": None, "kv_cache_scheme": None}, 1),
        ({"quant_method": "fp8", "kv_cache_scheme": {}}, 1),
    ],
)
def test_a_checkpoint_that_says_how_its_cache_is_kept(told, ratio):
    plain = size(model("llama-3.1-8b"), memory_total_bytes=80 * GIB)
    quantised = model("llama-3.1-8b", quantization_config=told)
    assert size(quantised, memory_total_bytes=80 * GIB).kv_bytes_per_token == plain.kv_bytes_per_token * ratio
    named = size(quantised, memory_total_bytes=80 * GIB, kv_cache_dtype="bfloat16")
    assert named.kv_bytes_per_token == plain.kv_bytes_per_token


def test_more_stages_than_layers_are_no_endless_sum():
    """It is a fault that is found elsewhere, and no reason to reckon 60,000 stages without a layer."""
    sizes = [size(model("qwen3-8b"), pipeline_parallel=stages).weights_bytes for stages in (36, 2**59)]
    assert sizes[0] == sizes[1]


def test_the_encoder_on_every_gpu():
    read = model("qwen2.5-vl-72b")
    cut = dict(size(read, tensor_parallel=8).rows)
    copied = dict(size(read, tensor_parallel=8, encoder_data_parallel=True).rows)
    assert copied[ENCODER] > cut[ENCODER] * 7


def test_the_encoder_at_work():
    read = model("qwen2.5-vl-7b")
    video = dict(size(read, max_model_len=128000).rows)
    image = dict(size(read, max_model_len=128000, limits={"video": 0}).rows)
    small = dict(size(read, max_model_len=128000, limits={"video": 0}, max_pixels=1003520).rows)
    assert video[ENCODER_PEAK] > 6 * image[ENCODER_PEAK] > 0
    assert ENCODER_PEAK not in small or small[ENCODER_PEAK] < image[ENCODER_PEAK]
    assert ENCODER_PEAK not in dict(size(read, limits={"video": 0, "image": 0}).rows)
    assert ENCODER_PEAK not in dict(size(read, skip_encoder_profiling=True).rows)


def test_options_that_save():
    read = model("qwen3-8b")
    plain = size(read)
    assert GRAPHS not in dict(size(read, enforce_eager=True).rows)
    assert size(read, kv_cache_dtype="fp8").kv_bytes_per_token == plain.kv_bytes_per_token // 2
    half = size(read, quantization="fp8")
    assert dict(half.rows)[WEIGHTS] == pytest.approx(dict(plain.rows)[WEIGHTS] / 2, rel=0.001)
    assert dict(half.rows)[EMBEDDINGS] == dict(plain.rows)[EMBEDDINGS]
    # What is quantised already does not shrink again.
    stored = model("qwen3-8b-fp8")
    assert size(stored, quantization="fp8").weights_bytes == size(stored).weights_bytes


def test_a_cache_of_so_many_bytes():
    sizing = size(model("qwen3-8b"), kv_cache_memory_bytes=8 * GIB, max_model_len=8192)
    assert sizing.fits
    assert sizing.kv_available_bytes == 8 * GIB
    assert sizing.budget_bytes < 40 * GIB
    assert not size(model("qwen3-8b"), kv_cache_memory_bytes=GIB, max_model_len=40960).fits


def test_the_budget_has_to_be_free_beside_the_context():
    read = model("qwen3-8b")
    assert size(read, memory_total_bytes=24 * GIB, utilization=0.97, max_model_len=2048).fits
    assert not size(read, memory_total_bytes=24 * GIB, utilization=0.98, max_model_len=2048).fits
    assert not size(read, memory_total_bytes=24 * GIB, tensor_parallel=2, utilization=0.97, max_model_len=2048).fits


def test_the_models_own_length_where_nobody_says_one():
    assert size(model("qwen3-8b")).max_model_len == 40960
    assert size(model("qwen3-8b", max_position_embeddings=None)).max_model_len == 2048
    demand = Demand(memory_total_bytes=24 * GIB)
    longest = longest_context(model("qwen3-8b"), demand)
    assert size_of(model("qwen3-8b"), replace(demand, max_model_len=longest)).fits
    assert not size_of(model("qwen3-8b"), replace(demand, max_model_len=longest + 16)).fits
    assert longest_context(model("llama-3.1-70b"), demand) == 0


def test_as_plain_data_and_as_a_table():
    sizing = size(model("qwen2.5-vl-7b"), memory_total_bytes=45 * GIB, max_model_len=32000)
    plain = json.loads(json.dumps(sizing.as_dict()))
    assert {row["label"]: row["bytes"] for row in plain["rows"]} == dict(sizing.rows)
    estimates = {row["label"] for row in plain["rows"] if row["estimate"]}
    assert ACTIVATIONS in estimates
    assert REQUEST not in estimates
    assert plain["fits"] is True
    assert plain["max_model_len"] == 32000
    table = sizing.as_table()
    assert "KV cache of one request          1.71 GiB  32,000 tokens, 56.0 KiB each" in table
    assert "budget                          41.40 GiB  0.92 of 45.00 GiB" in table
    assert all(len(line) < 100 for line in table.splitlines())


# ---- entries


def test_an_entry_with_headers_with_a_size_and_with_neither():
    read = model("qwen3-8b")
    weights = from_config(read)
    exact = model_of({"config": config("qwen3-8b"), "weights": {**weights.as_dict(), "exact": True}})
    assert exact.weights.exact
    assert exact.weights.total == weights.total
    sized = model_of({"config": config("qwen3-8b"), "weights": None, "bytes_total": 9_000_000_000})
    assert sized.weights.total == pytest.approx(9_000_000_000, rel=1e-6)
    assert model_of({"config": config("qwen3-8b"), "bytes_total": "many"}).weights.total == weights.total


@pytest.mark.parametrize("entry", [None, [], "x", {}, {"config": None}, {"config": {"num_hidden_layers": 10**30}}])
def test_an_entry_that_is_none(entry):
    with pytest.raises(FleetError) as caught:
        model_of(entry)
    assert caught.value.code in ("model.bad_entry", "model.bad_config")


def test_an_entry_with_an_error_raises_it():
    error = {"code": "hub.not_found", "seen": "nothing there", "expected": "a model", "remedy": "look"}
    with pytest.raises(FleetError) as caught:
        model_of({"config": None, "error": error})
    assert caught.value.as_result() == error
    error["seen"] = "red \x1b[31m\n" + "x" * 10_000
    with pytest.raises(FleetError) as caught:
        model_of({"error": {**error, "remedy": 7}})
    assert caught.value.seen.startswith("red  [31m x")
    assert len(caught.value.seen) < 700
    assert caught.value.remedy == ""


# ---- what holds for every model

SIZES = st.sampled_from([1, 2, 4, 8])
MEMORY = st.integers(1, 300).map(lambda gib: gib * GIB)


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(NAMES), SIZES, MEMORY, st.integers(1, 200_000), st.integers(0, 200_000))
def test_never_less_for_a_longer_context(name, parallel, memory, length, more):
    demand = Demand(tensor_parallel=parallel, memory_total_bytes=memory, max_num_batched_tokens=4096)
    short = size_of(model(name), replace(demand, max_model_len=length))
    long = size_of(model(name), replace(demand, max_model_len=length + more))
    assert short.needed_bytes <= long.needed_bytes
    assert short.concurrency >= long.concurrency
    assert short.fits or not long.fits


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(NAMES), SIZES, MEMORY, st.integers(1, 100_000))
def test_never_more_on_one_gpu_of_more(name, parallel, memory, length):
    demand = Demand(tensor_parallel=parallel, memory_total_bytes=memory, max_model_len=length)
    few, many = (size_of(model(name), replace(demand, tensor_parallel=number)) for number in (parallel, 2 * parallel))
    assert many.weights_bytes <= few.weights_bytes
    assert many.needed_bytes <= few.needed_bytes * 1.01
    assert many.kv_bytes_per_token <= few.kv_bytes_per_token


@settings(max_examples=120, deadline=None)
@given(st.sampled_from(NAMES), SIZES, st.integers(1, 30_000), st.integers(0, 30_000), st.integers(1, 2048))
def test_never_less_for_a_larger_batch(name, parallel, batched, more, sequences):
    demand = Demand(tensor_parallel=parallel, max_model_len=4096, max_num_seqs=sequences)
    small = size_of(model(name), replace(demand, max_num_batched_tokens=batched))
    large = size_of(model(name), replace(demand, max_num_batched_tokens=batched + more))
    assert small.needed_bytes <= large.needed_bytes


@settings(max_examples=150, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(1, 16),
    st.integers(1, 8),
    st.integers(1, 2**45),
    st.floats(0.01, 1.0),
    st.integers(1, 2**31),
    st.sampled_from(["auto", "fp8", "nvfp4", "", "x"]),
    st.integers(1, 2**20),
    st.integers(1, 2**16),
)
def test_never_negative_and_always_a_sum(name, parallel, stages, memory, share, length, dtype, batched, sequences):
    sizing = size(
        model(name),
        tensor_parallel=parallel,
        pipeline_parallel=stages,
        memory_total_bytes=memory,
        utilization=share,
        max_model_len=length,
        kv_cache_dtype=dtype,
        max_num_batched_tokens=batched,
        max_num_seqs=sequences,
    )
    rows = dict(sizing.rows)
    assert all(size >= 0 for size in rows.values())
    assert sum(rows.values()) - 2 * rows.get(SHORT, 0) == sizing.budget_bytes
    assert sizing.concurrency >= 0
    assert sizing.max_len_fitting >= 0
    assert json.loads(json.dumps(sizing.as_dict()))
    assert sizing.as_table()


# ---- the documentation

PAGE = Path(__file__).parents[4].joinpath("docs", "sizing.md").read_text(encoding="utf-8")
CARDS = {"L40S": 44.42, "H100": 79.19, "H200": 139.8}
FILES = {
    "Whisper large-v3-turbo": "whisper-large-v3-turbo",
    "Qwen3-235B-A22B-FP8": "qwen3-235b-a22b-fp8",
    "Qwen2.5-VL-7B, no video": "qwen2.5-vl-7b",
}


def documented():
    """The rows of the worked table."""
    lines = PAGE.partition("## Worked")[2].splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
    return [row for row in rows if " x " in row[1]]


@pytest.mark.parametrize("row", documented(), ids=lambda row: f"{row[0]}, {row[1]}, {row[2]}")
def test_the_table_of_the_page_is_what_is_reckoned(row):
    name, gpus, length, *figures = row
    count, card = gpus.split(" x ")
    sizing = size(
        model(FILES.get(name, name.lower())),
        tensor_parallel=int(count),
        memory_total_bytes=int(CARDS[card] * GIB),
        gpu_name=card,
        max_model_len=int(length.replace(",", "")),
        limits={"video": 0} if "no video" in name else {},
    )
    rows = dict(sizing.rows)
    peaks = sum(rows.get(label, 0) for label in (ACTIVATIONS, ENCODER_PEAK, WORKSPACE, GRAPHS))
    reckoned = [
        f"{sizing.weights_bytes / GIB:.2f}",
        f"{peaks / GIB:.2f}",
        f"{sizing.kv_bytes_per_token / 1024:.1f}",
        f"{sizing.kv_request_bytes / GIB:.2f}",
        f"{sizing.kv_available_bytes / GIB:.2f}",
        f"{sizing.concurrency:.1f}",
    ]
    assert figures == reckoned


def test_the_sum_of_the_page_is_what_is_printed():
    sizing = size(
        model("qwen2.5-vl-7b"), memory_total_bytes=int(44.42 * GIB), gpu_name="NVIDIA L40S", max_model_len=32000
    )
    assert len(documented()) >= 14
    for line in replace(sizing, exact_weights=True).as_table().splitlines():
        assert line in PAGE
