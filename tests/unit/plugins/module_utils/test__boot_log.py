# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import json
from pathlib import Path

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._boot_log import BootLog, Drift, compare, parse
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import read_config
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import GIB, size
from hypothesis import given
from hypothesis import strategies as st

CONFIGS = Path(__file__).parent / "fixtures" / "configs"

LOGS = Path(__file__).parent / "fixtures" / "boot_logs"

# Lines of published logs.
V0_10 = (LOGS / "qwen2-7b-v0.10.1.1.log").read_text(encoding="utf-8")
V0_2X = (LOGS / "one-gpu-v0.2x.log").read_text(encoding="utf-8")
TWO_WORKERS = (LOGS / "two-gpus-v0.27.log").read_text(encoding="utf-8")
NEGATIVE = "(EngineCore pid=207) INFO 04-19 10:21:55 [gpu_worker.py:436] Available KV cache memory: -0.12 GiB\n"
# The one line of vLLM 0.33 (v1/core/kv_cache_utils.py, update_kv_cache_capacity).
V0_33 = (
    "INFO [kv_cache_utils.py:1152] GPU KV cache size: 464,848 tokens, "
    "Maximum concurrency for 16,384 tokens per request: 28.37x"
)


def test_the_lines_of_an_older_release():
    assert parse(V0_10) == BootLog("0.10.1.1", 14.2488, 24.83, 464848, 16384, 28.37, 0.50)


def test_the_lines_of_later_ones():
    assert parse(V0_2X) == BootLog(None, None, 26.32, 492912, 4096, 120.34, 0.37)
    read = parse(V0_33)
    assert (read.tokens, read.max_model_len, read.concurrency) == (464848, 16384, 28.37)


def test_the_gpu_with_the_least_counts():
    assert parse(TWO_WORKERS).available_gib == 6.87
    assert parse(TWO_WORKERS).graphs_gib == 0.36
    assert parse(NEGATIVE).available_gib == -0.12


def test_only_the_last_boot_counts():
    assert parse(V0_10 + "vLLM API server version 0.33.0\n" + NEGATIVE) == BootLog("0.33.0", None, -0.12)


def test_a_log_that_says_nothing():
    assert parse("") == parse("INFO: Application startup complete.") == BootLog()


@given(st.text(max_size=100))
def test_no_text_is_a_crash(text):
    parse(text)
    parse(f"Available KV cache memory: {text} GiB GPU KV cache size: {text} tokens")


@pytest.mark.parametrize("number", ["1.2.3", "9" * 400, ".", ",,,"])
def test_numbers_that_are_none(number):
    parse(f"Available KV cache memory: {number} GiB\nGPU KV cache size: {number} tokens\n")


def sizing(**options):
    document = json.loads((CONFIGS / "qwen2-7b.json").read_text(encoding="utf-8"))
    plain = {"memory_total_bytes": int(79.25 * GIB), "gpu_name": "NVIDIA A100", "utilization": 0.5}
    return size(read_config(document), **{**plain, "max_model_len": 16384, "enforce_eager": True, **options}).as_dict()


def test_the_estimate_against_the_log():
    found = {(one.what, one.unit): one for one in compare(parse(V0_10), sizing())}
    assert set(found) == {
        ("weights", "GiB"),
        ("KV cache", "GiB"),
        ("KV cache", "tokens"),
        ("requests at once", "requests"),
    }
    assert all(abs(one.percent) < 1.5 for one in found.values())
    text = found["KV cache", "GiB"].as_text()
    assert text.startswith("KV cache: reckoned 24.")
    assert "vLLM has 24.83" in text
    assert json.loads(json.dumps(found["KV cache", "GiB"].as_dict()))["seen"] == 24.83


def test_what_the_log_does_not_tell_is_not_compared():
    assert compare(BootLog(), sizing()) == []
    # Another context length: the number of tokens says nothing then.
    assert {one.unit for one in compare(parse(V0_10), sizing(max_model_len=8192))} == {"GiB"}
    assert "CUDA graphs" in {one.what for one in compare(parse(V0_10), sizing(enforce_eager=False))}


@pytest.mark.parametrize("memory", [{}, {"rows": None, "weights_bytes": "many", "concurrency": None}])
def test_a_sum_that_is_none(memory):
    assert compare(parse(V0_10), memory) == []


def test_drift_in_percent():
    assert Drift("KV cache", 11.0, 10.0, "GiB").percent == pytest.approx(10.0)
    assert Drift("KV cache", 9.0, 10.0, "GiB").percent == pytest.approx(-10.0)
    assert Drift("KV cache", 9.0, 0.0, "GiB").percent == 0.0
