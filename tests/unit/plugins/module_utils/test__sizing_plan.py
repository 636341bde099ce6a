# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import Demand, size_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_peak import DRIVER_BYTES
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_plan import (
    assess,
    demand_of,
    propose,
    round_length,
)
from hypothesis import given, settings
from hypothesis import strategies as st

CONFIGS = Path(__file__).parent / "fixtures" / "configs"
NAMES = sorted(path.stem for path in CONFIGS.glob("*.json"))
MIB, GIB = 2**20, 2**30
# As nvidia-smi has them: 46,068 and 81,559 MiB.
L40S = 46068 * MIB
H100 = 81559 * MIB


def config(name):
    return json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))


def model(name):
    return read_config(config(name))


def check(name, tensor_parallel=1, memory=L40S, gpu="NVIDIA L40S", length=None, **options):
    arguments = {key.replace("_", "-"): value for key, value in options.items() if key != "allow_long"}
    return assess(
        "svc",
        {"config": config(name), "error": None},
        arguments,
        tensor_parallel=tensor_parallel,
        cards_memory=[memory] * tensor_parallel,
        gpu_name=gpu,
        max_model_len=length,
        allow_long=options.get("allow_long", False),
    )


def only(found):
    assert len(found) == 1, found
    assert found[0].service == "svc"
    assert all((found[0].seen, found[0].expected, found[0].remedy))
    return found[0]


# ---- flags


def test_flags_of_a_service():
    demand = demand_of(
        {
            "gpu-memory-utilization": 0.8,
            "kv_cache_dtype": "fp8",
            "quantization": "fp8",
            "max-num-batched-tokens": "4k",
            "max-num-seqs": "64",
            "enforce-eager": True,
            "kv-cache-memory-bytes": "2G",
            "pipeline-parallel-size": 2,
            "limit-mm-per-prompt": '{"image": 4, "video": {"count": 0, "num_frames": 32}}',
            "mm-processor-kwargs": {"max_pixels": 1003520},
            "mm-encoder-tp-mode": "data",
            "enable-expert-parallel": True,
            "skip-mm-profiling": True,
            "block-size": 32,
            "enable-prefix-caching": False,
        },
        tensor_parallel=4,
        cards_memory=[L40S, L40S - GIB],
        gpu_name="NVIDIA L40S",
        max_model_len="8192",
    )
    assert demand == Demand(
        tensor_parallel=4,
        pipeline_parallel=2,
        memory_total_bytes=L40S - GIB - DRIVER_BYTES,
        gpu_name="NVIDIA L40S",
        utilization=0.8,
        max_model_len=8192,
        kv_cache_dtype="fp8",
        quantization="fp8",
        max_num_batched_tokens=4000,
        max_num_seqs=64,
        enforce_eager=True,
        kv_cache_memory_bytes=2 * GIB,
        block_size=32,
        prefix_caching=False,
        limits={"image": 4, "video": 0},
        max_pixels=1003520,
        encoder_data_parallel=True,
        expert_parallel=True,
        skip_encoder_profiling=True,
    )


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("gpu-memory-utilization", "much"),
        ("gpu-memory-utilization", 7),
        ("gpu-memory-utilization", float("nan")),
        ("max-num-seqs", -1),
        ("max-num-seqs", True),
        ("max-num-seqs", "1e999"),
        ("max-num-batched-tokens", []),
        ("kv-cache-memory-bytes", 2**70),
        ("limit-mm-per-prompt", "{"),
        ("limit-mm-per-prompt", {"image": "x", "video": -1}),
        ("mm-processor-kwargs", "[]"),
        ("block-size", 10**6),
    ],
)
def test_a_flag_that_cannot_be_read_is_left_at_its_default(flag, value):
    assert demand_of({flag: value}) == Demand()


# ---- findings


def test_a_service_that_fits_has_no_finding():
    sizing, found = check("qwen2.5-vl-7b", length=32000)
    assert sizing.fits
    assert found == []


def test_an_illegal_size_is_found_before_any_memory():
    sizing, found = check("qwen2.5-vl-7b", 8)
    one = only(found)
    assert sizing is None
    assert (one.code, one.severity) == ("plan.tensor_parallel_illegal", "error")
    assert one.seen == "28 attention heads cannot be divided by tensor_parallel_size 8"
    assert "1, 2 or 4" in one.expected
    assert "tensor_parallel_size: 4" in one.remedy


def test_experts_that_are_not_cut():
    """Eight GPUs get whole experts of Qwen3-235B-A22B-FP8 with expert parallelism, and too few rows of each without."""
    memory = 144000 * MIB
    sizing, found = check("qwen3-235b-a22b-fp8", 8, memory)
    one = only(found)
    assert one.code == "plan.tensor_parallel_illegal"
    assert "192 columns" in one.seen or "192 rows" in one.seen
    assert "enable-expert-parallel: true" in one.remedy
    assert one.severity == "warning", "vLLM 0.33 refines the blocks, and starts"
    assert sizing.fits
    assert check("qwen3-235b-a22b-fp8", 8, memory, enable_expert_parallel=True)[1] == []


def test_pipeline_stages_of_a_model_that_has_none():
    one = only(check("whisper-large-v3", pipeline_parallel_size=2)[1])
    assert one.code == "plan.tensor_parallel_illegal"
    assert "pipeline" in one.remedy


def test_weights_that_do_not_fit():
    sizing, found = check("llama-3.1-70b", length=8192)
    one = only(found)
    assert (one.code, one.severity) == ("plan.memory_short", "error")
    assert "NVIDIA L40S has 44.49 GiB for CUDA, of which 0.92 may be used (40.93 GiB)" in one.seen
    assert f"needs {sizing.needed_bytes / GIB:.2f} GiB per GPU" in one.seen
    parallel = int(re.search(r"tensor_parallel_size: (\d+)", one.remedy).group(1))
    assert check("llama-3.1-70b", parallel, length=8192)[0].fits, "the remedy holds"


def test_a_context_that_does_not_fit_names_one_that_does():
    one = only(check("llama-3.1-8b", memory=24 * GIB, gpu="")[1])
    assert (one.code, one.severity) == ("plan.context_too_long", "error")
    assert "the GPU has 23.50 GiB for CUDA" in one.seen
    assert "the model's own context of 131072 tokens takes 16.00 GiB" in one.seen
    length = int(re.search(r"max_model_len: (\d+)", one.remedy).group(1))
    assert length % 1024 == 0
    assert check("llama-3.1-8b", memory=24 * GIB, length=length)[0].fits
    assert not check("llama-3.1-8b", memory=24 * GIB, length=length + 2048)[0].fits


def test_a_video_can_be_what_is_too_much():
    sizing, found = check("qwen2.5-vl-7b", memory=24 * GIB, length=100000)
    one = only(found)
    assert f"at most {sizing.max_len_fitting} tokens" in one.expected
    assert sizing.max_len_fitting > 16384, "with a shorter video"
    assert one.code == "plan.context_too_long"
    assert "go to the encoder at work on the largest image or video" in one.seen
    assert one.severity == "error"
    one = only(check("qwen2.5-vl-7b", memory=32 * GIB, length=100000)[1])
    assert """limit-mm-per-prompt: '{"video": 0}'""" in one.remedy
    images = check("qwen2.5-vl-7b", memory=32 * GIB, length=100000, limit_mm_per_prompt='{"video": 0}')
    assert images[0].fits


def test_a_context_that_the_model_was_not_made_for():
    one = only(check("whisper-large-v3-turbo", length=32000)[1])
    assert (one.code, one.severity) == ("plan.context_too_long", "error")
    assert "448" in one.seen
    assert "max_model_len: 448" in one.remedy
    assert check("qwen3-8b", length=65536, memory=H100, allow_long=True)[1] == []


def test_a_share_that_leaves_no_room_for_the_context_of_cuda():
    one = only(check("qwen3-8b", memory=24 * GIB, length=8192, gpu_memory_utilization=0.99)[1])
    assert (one.code, one.severity) == ("plan.memory_short", "error")
    share = float(re.search(r"gpu_memory_utilization: ([0-9.]+)", one.remedy).group(1))
    assert check("qwen3-8b", memory=24 * GIB, length=8192, gpu_memory_utilization=share)[0].fits
    one = only(check("qwen3-8b", memory=24 * GIB, length=8192, kv_cache_memory_bytes=20 * GIB)[1])
    size = int(re.search(r"kv-cache-memory-bytes: (\d+)", one.remedy).group(1))
    assert check("qwen3-8b", memory=24 * GIB, length=8192, kv_cache_memory_bytes=size)[0].fits


def test_what_fits_by_a_hair_is_a_warning_with_a_way_out():
    fits = size_of(model("qwen3-8b"), Demand(memory_total_bytes=24 * GIB - DRIVER_BYTES, gpu_name="NVIDIA A10"))
    length = fits.max_len_fitting - 512
    one = only(check("qwen3-8b", memory=24 * GIB, gpu="NVIDIA A10", length=length)[1])
    assert (one.code, one.severity) == ("plan.memory_tight", "warning")
    shorter = int(re.search(r"max_model_len: (\d+)", one.remedy).group(1))
    assert check("qwen3-8b", memory=24 * GIB, gpu="NVIDIA A10", length=shorter)[1] == []


def test_nothing_is_refused_on_a_guess():
    """What misses by less than the estimates may be off is a warning, and says so."""
    fits = size_of(model("qwen3-8b"), Demand(memory_total_bytes=24 * GIB - DRIVER_BYTES))
    near = check("qwen3-8b", memory=24 * GIB, gpu="", length=fits.max_len_fitting + 1024)
    assert not near[0].fits
    one = only(near[1])
    assert (one.code, one.severity) == ("plan.context_too_long", "warning")
    assert "the estimates may be off by" in one.seen
    far = only(check("llama-3.1-8b", memory=24 * GIB)[1])
    assert far.severity == "error"
    assert "may be off" not in far.seen
    # 0.98 of the card leave 0.47 GiB for a context of about 0.54.
    doubtful = only(check("qwen3-8b", memory=24 * GIB, length=8192, gpu_memory_utilization=0.98)[1])
    assert (doubtful.code, doubtful.severity) == ("plan.memory_short", "warning")


def test_a_share_that_is_too_small_names_one_that_is_not():
    """Before more cards are asked for: the rest of the card may be free."""
    one = only(check("whisper-large-v3", gpu_memory_utilization=0.06)[1])
    assert one.code == "plan.memory_short"
    share = float(re.search(r"^set gpu_memory_utilization: ([0-9.]+)", one.remedy).group(1))
    assert 0.06 < share < 0.3
    assert check("whisper-large-v3", gpu_memory_utilization=share)[1] == []
    one = only(check("llama-3.1-8b", length=65536, gpu_memory_utilization=0.5)[1])
    share = float(re.search(r"gpu_memory_utilization: ([0-9.]+)", one.remedy).group(1))
    assert check("llama-3.1-8b", length=65536, gpu_memory_utilization=share)[0].fits
    assert "gpu_memory_utilization" not in only(check("llama-3.1-70b", length=8192)[1]).remedy


def test_the_share_of_a_card_that_would_do():
    """For a model that takes a whole card and needs a twelfth of it; with both flags it holds 16 clips."""
    sizing, found = check("whisper-large-v3-turbo")
    assert found == []
    assert sizing.enough is not None
    share, cache = sizing.enough
    assert 0.05 < share < 0.12
    assert sizing.as_dict()["enough"] == {"gpu_memory_utilization": share, "kv_cache_memory_bytes": cache}
    smaller, found = check("whisper-large-v3-turbo", gpu_memory_utilization=share, kv_cache_memory_bytes=cache)
    assert found == []
    assert smaller.fits
    assert smaller.enough is None
    assert smaller.kv_available_bytes // smaller.kv_used_bytes >= 16
    assert check("whisper-large-v3-turbo", gpu_memory_utilization=0.5)[0].enough is None, "somebody has chosen"
    assert check("llama-3.1-8b", length=32768)[0].enough is None, "half of the card and more"


def assessed(values, tensor_parallel=1, memory=24 * GIB, length=None, weights=None, **options):
    """What is found for a config, by its severity."""
    entry = {"config": values, "error": None, "weights": weights}
    flags = {key.replace("_", "-"): value for key, value in options.items()}
    sizing, found = assess(
        "svc",
        entry,
        flags,
        tensor_parallel=tensor_parallel,
        cards_memory=[memory] * tensor_parallel,
        max_model_len=length,
    )
    return sizing, [one.severity for one in found]


@pytest.mark.parametrize(
    "flags",
    [
        {"cpu-offload-gb": 120},
        {"offload-group-size": 8, "offload-num-in-group": 6},
        {"offload-backend": "prefetch"},
        {"hf-overrides": '{"num_hidden_layers": 8}'},
        {"hf-overrides.num_hidden_layers": 8},
        {"quantization": "torchao"},
        {"quantization-config": '{"global_scheme": "fp8"}'},
        {"runner": "pooling"},
        {"worker-cls": "mine.Worker"},
    ],
)
def test_flags_that_the_sum_does_not_follow_refuse_nothing(flags):
    """A model that is far too large without them."""
    plain = check("llama-3.1-70b", length=8192)[1]
    assert [one.severity for one in plain] == ["error"]
    named = {key.replace("-", "_"): value for key, value in flags.items()}
    found = check("llama-3.1-70b", length=8192, **named)[1]
    assert "error" not in [one.severity for one in found]


def test_the_method_of_a_quantised_checkpoint_is_no_doubt():
    for flags in ({}, {"quantization": "awq_marlin"}):
        found = check("qwen2.5-vl-7b-awq", length=128000, memory=8 * GIB, **flags)[1]
        assert [one.severity for one in found] == ["error"], flags


def test_weights_in_the_memory_of_the_host():
    sizing, found = check("llama-3.1-70b", length=8192, cpu_offload_gb=100)
    assert sizing.fits
    assert found == []
    sizing, found = check("llama-3.1-70b", length=8192, cpu_offload_gb="20")
    assert [one.severity for one in found] == ["error"], "the other 110 GiB are too much all the same"


def test_experts_are_dealt_out_to_data_parallel_groups():
    """DeepSeek-V3 as it is served on one host of eight H200: attention on each, experts on one of them."""
    flags = {"data_parallel_size": 8, "enable_expert_parallel": True}
    sizing, found = check("deepseek-v3", memory=143771 * MIB, length=32768, gpu="NVIDIA H200", **flags)
    assert sizing.fits
    assert [one.severity for one in found if one.severity == "error"] == []
    assert 90 < sizing.weights_bytes / GIB < 105
    alone = check("deepseek-v3", memory=143771 * MIB, length=32768, gpu="NVIDIA H200")
    assert alone[1][0].severity == "error"


def test_context_parallel_gpus_share_the_tokens():
    one, _found = check("deepseek-v3", 8, 143771 * MIB, length=163840)
    shared, _found = check("deepseek-v3", 8, 143771 * MIB, length=163840, decode_context_parallel_size=8)
    assert shared.kv_request_bytes == pytest.approx(one.kv_request_bytes / 8, rel=0.01)
    assert shared.concurrency == pytest.approx(8 * one.concurrency, rel=0.01)


def test_encoders_that_are_not_loaded():
    plain = check("qwen2.5-vl-7b", length=32000)[0]
    text = check("qwen2.5-vl-7b", length=32000, language_model_only=True)[0]
    none = check("qwen2.5-vl-7b", length=32000, limit_mm_per_prompt={"image": 0, "video": 0})[0]
    assert text.weights_bytes == none.weights_bytes < plain.weights_bytes - GIB
    assert "encoder at work (peak)" not in dict(text.rows)


def test_a_cache_in_bytes_is_not_there_while_the_encoder_is_profiled():
    """15.4 GiB of weights and 20 GiB of cache fit a card of 44; the peak of the profiling run is over by then."""
    found = check("qwen2.5-vl-7b", length=128000, kv_cache_memory_bytes="20G")[1]
    assert [one.severity for one in found] == ["warning"]


def test_weights_beside_which_no_cache_has_room():
    """No smaller cache is the cure, only more cards are; and it is certain whatever the estimates are worth."""
    one = only(check("llama-3.1-70b", length=8192, kv_cache_memory_bytes="10G")[1])
    assert (one.code, one.severity) == ("plan.memory_short", "error")
    assert one.remedy.startswith("set tensor_parallel_size: ")
    parallel = int(re.search(r"tensor_parallel_size: (\d+)", one.remedy).group(1))
    assert check("llama-3.1-70b", parallel, length=8192, kv_cache_memory_bytes="10G")[0].fits
    found = check("llama-3.1-70b", length=8192, kv_cache_memory_bytes="10G", hf_overrides={"num_hidden_layers": 4})[1]
    assert [one.severity for one in found] == ["warning"]


LLAMA = {
    "model_type": "llama",
    "num_hidden_layers": 80,
    "hidden_size": 8192,
    "num_attention_heads": 64,
    "vocab_size": 9,
}
NAS = {**LLAMA, "model_type": "nemotron-nas", "num_key_value_heads": None, "max_position_embeddings": 131072}


def test_architectures_that_are_not_known_are_only_warned_of():
    """Llama-Nemotron has its KV heads in block_configs: eight times fewer than a reading as Llama has them."""
    llama = {**NAS, "model_type": "llama"}
    assert assessed(llama, 8, 48 * GIB)[1] == ["error"]
    assert assessed(NAS, 8, 48 * GIB)[1] == ["warning"]
    assert assessed({**NAS, "num_attention_heads": 60}, 8, 48 * GIB)[1] == ["error"], "vLLM asks that of every model"


def test_encoders_that_are_left_whole_are_no_fault():
    """InternViT has 25 heads, and Whisper before another decoder 20; neither is cut into eight."""
    small = {"num_hidden_layers": 4, "hidden_size": 1024, "intermediate_size": 4096, "vocab_size": 1024}
    text = {"model_type": "qwen2", "num_attention_heads": 16, "num_key_value_heads": 8, **small}
    vision = {"hidden_size": 3200, "num_attention_heads": 25, "num_hidden_layers": 45, "patch_size": 14}
    config_ = {"model_type": "internvl_chat", "llm_config": text, "vision_config": vision}
    assert assessed(config_, 8, 80 * GIB, 4096)[1] == []
    audio = {"d_model": 1280, "encoder_attention_heads": 20, "encoder_layers": 32, "encoder_ffn_dim": 5120}
    config_ = {"model_type": "qwen2_audio", "text_config": text, "audio_config": audio}
    assert assessed(config_, 8, 80 * GIB, 4096)[1] == []


def test_contexts_that_some_release_takes():
    """YaRN in config.json: releases before 0.33 multiply the first length, 0.33 reads max_position_embeddings."""
    values = {**config("qwen3-8b"), "max_position_embeddings": 40960}
    assert "error" in assessed(values, memory=H100, length=131072)[1]
    values["rope_scaling"] = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
    assert "error" not in assessed(values, memory=H100, length=131072)[1]
    assert "error" in assessed(values, memory=H100, length=131073)[1]
    overrides = {"rope_parameters": {"rope_type": "yarn", "factor": 4.0}}
    plain = config("qwen3-8b")
    assert "error" not in assessed(plain, memory=H100, length=131072, hf_overrides=overrides)[1]
    assert "error" not in assessed({**plain, "model_max_length": 65536}, memory=H100, length=65536)[1]


def test_longrope_starts_with_its_first_length():
    """Phi-3-medium-128k takes 25 GiB for one request of its whole length, and vLLM starts it with 4,096 tokens."""
    phi = {
        "model_type": "phi3",
        "hidden_size": 5120,
        "intermediate_size": 17920,
        "num_hidden_layers": 40,
        "num_attention_heads": 40,
        "num_key_value_heads": 10,
        "vocab_size": 32064,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "rope_scaling": {"type": "longrope", "long_factor": [1.0], "short_factor": [1.0]},
    }
    sizing, found = assessed(phi, memory=L40S)
    assert sizing.max_model_len == 4096
    assert found == []
    sizing, found = assessed(phi, memory=L40S, length=131072)
    assert found == ["error"]


def test_auto_takes_what_fits():
    sizing, found = check("llama-3.1-8b", memory=24 * GIB, length="auto")
    assert sizing.fits
    assert 40000 < sizing.max_model_len < 50000
    assert [one.code for one in found] == ["plan.memory_tight"]
    assert only(check("llama-3.1-70b", memory=24 * GIB, length="auto")[1]).code == "plan.memory_short"


def test_unknown_models_and_cards_are_held_against_nobody():
    sizing, found = assess("svc", None, {}, tensor_parallel=1, cards_memory=[H100])
    assert sizing is None
    assert (only(found).code, found[0].severity) == ("plan.model_unknown", "info")
    error = {"code": "model.gguf", "seen": "GGUF", "expected": "safetensors", "remedy": "Set max_model_len"}
    _sizing, found = assess("svc", {"error": error}, {}, tensor_parallel=1, cards_memory=[H100])
    assert (only(found).seen, found[0].remedy) == ("GGUF", "Set max_model_len")
    error = {"code": "hub.tls", "seen": "not trusted", "expected": "one", "remedy": "Check endpoint"}
    _sizing, found = assess("svc", {"error": error}, {}, tensor_parallel=1, cards_memory=[H100])
    assert only(found).remedy.startswith("install the authority's certificate on the host")
    entry = {"config": config("llama-3.1-70b"), "error": None}
    assert assess("svc", entry, {}, tensor_parallel=1, cards_memory=[]) == (None, [])
    assert assess("svc", entry, {}, tensor_parallel=1, cards_memory=[None, 0, True, "x"]) == (None, [])


@settings(max_examples=100, deadline=None)
@given(
    st.sampled_from(NAMES),
    st.integers(0, 9),
    st.lists(st.one_of(st.none(), st.integers(-1, 2**40)), max_size=3),
    st.dictionaries(
        st.sampled_from(["max-num-seqs", "gpu-memory-utilization", "limit-mm-per-prompt", "kv-cache-dtype", "x"]),
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.lists(st.none())),
        max_size=3,
    ),
    st.one_of(st.none(), st.just("auto"), st.integers(-5, 2**40)),
)
def test_whatever_is_written_there_are_findings_and_no_crash(name, parallel, cards, arguments, length):
    entry = {"config": config(name), "weights": None, "error": None}
    sizing, found = assess("svc", entry, arguments, tensor_parallel=parallel, cards_memory=cards, max_model_len=length)
    assert sizing is None or sizing.fits or found
    # A number of GPUs that some releases refuse is told beside what the memory lacks.
    assert len({one.code for one in found} - {"plan.tensor_parallel_illegal"}) <= 1
    assert len([one for one in found if one.severity == "error"]) <= 1


# ---- proposals


def test_a_small_model_gets_a_share_of_a_card():
    proposal = propose(model("whisper-large-v3-turbo"), [H100])
    assert proposal.tensor_parallel_size == 1
    assert proposal.max_model_len == 448
    assert proposal.gpu_memory_utilization <= 0.06
    assert proposal.kv_cache_memory_bytes < GIB
    assert proposal.sizing.fits
    assert proposal.sizing.budget_bytes < 4 * GIB
    large = propose(model("whisper-large-v3"), [24 * GIB])
    assert large.gpu_memory_utilization < 0.5
    assert large.sizing.fits


def test_the_fewest_cards_that_serve_the_whole_context():
    assert propose(model("llama-3.1-8b"), [H100] * 8).tensor_parallel_size == 1
    assert propose(model("qwen3-32b"), [L40S] * 4).tensor_parallel_size == 4
    seventy = propose(model("llama-3.1-70b"), [H100] * 8)
    assert (seventy.tensor_parallel_size, seventy.max_model_len) == (4, 131072)
    assert seventy.kv_cache_memory_bytes is None
    assert propose(model("qwen2.5-vl-72b"), [H100] * 8).sizing.fits


def test_a_shorter_context_where_no_number_of_cards_serves_the_whole():
    proposal = propose(model("llama-3.1-8b"), [24 * GIB])
    assert proposal.tensor_parallel_size == 1
    assert proposal.max_model_len == 40960
    assert proposal.sizing.fits
    vision = propose(model("qwen2.5-vl-7b"), [24 * GIB])
    assert vision.sizing.fits
    assert 16384 <= vision.max_model_len < 40000


def test_nothing_fits_and_no_card():
    proposal = propose(model("deepseek-v3"), [H100] * 8)
    assert not proposal.sizing.fits
    assert proposal.tensor_parallel_size == 8
    assert propose(model("qwen3-8b"), []) is None


def test_a_stated_length_is_kept():
    proposal = propose(model("llama-3.1-8b"), [24 * GIB] * 2, Demand(max_model_len=65536))
    assert (proposal.max_model_len, proposal.tensor_parallel_size) == (65536, 2)
    assert not propose(model("llama-3.1-8b"), [24 * GIB], Demand(max_model_len=131072)).sizing.fits


def test_cards_of_different_sizes():
    """A group's smallest card decides, so that the largest ones go first."""
    proposal = propose(model("qwen3-32b"), [24 * GIB, H100, H100, 24 * GIB])
    assert proposal.tensor_parallel_size == 2
    assert proposal.sizing.memory_total_bytes == H100 - DRIVER_BYTES


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(NAMES), st.lists(st.integers(1, 200).map(lambda gib: gib * GIB), min_size=1, max_size=8))
def test_a_proposal_holds_what_it_says(name, cards):
    read = model(name)
    proposal = propose(read, cards)
    again = size_of(
        read,
        replace(
            Demand(),
            tensor_parallel=proposal.tensor_parallel_size,
            max_model_len=proposal.max_model_len,
            utilization=proposal.gpu_memory_utilization,
            kv_cache_memory_bytes=proposal.kv_cache_memory_bytes,
            memory_total_bytes=proposal.sizing.memory_total_bytes,
        ),
    )
    assert again == proposal.sizing
    assert proposal.tensor_parallel_size <= len(cards)
    assert 0 < proposal.gpu_memory_utilization <= 0.92
    assert json.loads(json.dumps(proposal.as_dict()))["fits"] == proposal.sizing.fits


def test_lengths_to_write_down():
    assert [round_length(length) for length in (0, 15, 17, 2047, 2048, 18500)] == [0, 0, 16, 2032, 2048, 18432]


def test_a_flag_that_is_turned_off_is_off():
    off = demand_of({"no-enforce-eager": True, "no_skip_mm_profiling": True})
    assert (off.enforce_eager, off.skip_encoder_profiling) == (False, False)
    assert demand_of({"no-enforce-eager": False}).enforce_eager is True
    assert demand_of({"no-enable-prefix-caching": True}) == demand_of({"enable-prefix-caching": False})


def test_words_of_a_hub_move_no_cursor():
    """The method of quantisation and the type of the model are said in findings, and came from a stranger."""
    evil = "\x1b[2J\u202efp8\n[gpu-01] all is well"
    quantised = {**config("qwen3-8b-fp8"), "max_position_embeddings": 40960}
    quantised["quantization_config"] = {**quantised["quantization_config"], "quant_method": evil}
    quantised["intermediate_size"] = 12288 + 64
    strange = {**config("qwen3-8b"), "model_type": evil, "num_hidden_layers": 4000}
    for values, parallel in ((quantised, 8), (strange, 1)):
        entry = {"config": values, "error": None}
        _sizing, found = assess("svc", entry, {}, tensor_parallel=parallel, cards_memory=[24 * GIB] * parallel)
        assert found
        assert all(text.isprintable() for one in found for text in (one.seen, one.expected, one.remedy))
