# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

from __future__ import annotations

import pytest
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_flags import (
    doubt_of,
    limits_of,
    number,
    offload_of,
    pixels_of,
    plain_flags,
    whole,
)


def test_names_as_vllm_has_them():
    flags = plain_flags({"enforce_eager": True, "no-enable-prefix-caching": True, "block-size": 32, "no-x": "y"})
    assert flags == {"enforce-eager": True, "enable-prefix-caching": False, "block-size": 32, "x": "y"}


def test_a_key_of_a_flag_on_a_line_of_its_own():
    flags = plain_flags(
        {
            "limit-mm-per-prompt": '{"image": 2}',
            "limit_mm_per_prompt.video": 0,
            "mm-processor-kwargs.max_pixels": 50176,
            "compilation-config.pass_config.fuse_norm": True,
            "compilation-config.level": 3,
        }
    )
    assert limits_of(flags) == {"image": 2, "video": 0}
    assert pixels_of(flags) == 50176
    assert flags["compilation-config"] == {"pass_config": {"fuse_norm": True}, "level": 3}


def test_limits_as_numbers_and_with_options():
    assert limits_of({"limit-mm-per-prompt": {"image": {"count": 3, "width": 512}, "video": 1}}) == {
        "image": 3,
        "video": 1,
    }
    for odd in ("image=3", "[", [1], {"image": -1}, {"image": True}, {"image": "2"}, {"image": {}}, None):
        assert limits_of({"limit-mm-per-prompt": odd}) == {}
    assert limits_of({"language-model-only": True, "limit-mm-per-prompt": {"image": 3}})["image"] == 0


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({}, ""),
        ({"kv-cache-dtype": "fp8", "quantization": "fp8", "runner": "generate", "offload-backend": "auto"}, ""),
        ({"kv-cache-dtype": "turboquant_4bit_nc"}, "kv-cache-dtype"),
        ({"quantization": "torchao"}, "quantization"),
        ({"hf-overrides": "{}"}, ""),
        ({"hf-overrides": {"num_hidden_layers": 2}, "runner": "pooling"}, "hf-overrides, runner"),
        ({"task": "embed"}, "task"),
        ({"mm-encoder-only": False}, ""),
        ({"offload-group-size": 8}, "offload-group-size"),
    ],
)
def test_what_the_sum_does_not_follow(flags, expected):
    assert doubt_of(flags) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("2G", 2**31), ("25.6k", 25600), ("1T", 2**40), (8192, 8192), ("-1", None), ("auto", None), (True, None)],
)
def test_sizes_as_vllm_reads_them(text, expected):
    assert whole(text) == expected


@pytest.mark.parametrize("odd", ["", None, True, "nan", "1e999", 10**400, [], {}, "0x10"])
def test_what_is_no_number(odd):
    assert number(odd) is None


@pytest.mark.parametrize(("value", "expected"), [(8, 2**33), ("1.5", 3 * 2**29), (-1, 0), ("many", 0), (1e308, 2**60)])
def test_what_stays_in_the_memory_of_the_host(value, expected):
    assert offload_of({"cpu-offload-gb": value}) == expected
