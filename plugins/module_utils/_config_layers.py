# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What each layer of a model keeps of the past: everything, a window, a chunk, a state of constant size, or nothing."""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_reader import Reader, bad_config

FULL = "full"
SLIDING = "sliding"
CHUNKED = "chunked"
STATE = "state"
NONE = "none"

_WIDTH_MAX = 2**24

_NAMES: t.Mapping[str, str] = {
    "attention": FULL,
    "full_attention": FULL,
    "global": FULL,
    "hybrid": STATE,
    "sliding_attention": SLIDING,
    "sliding_window": SLIDING,
    "local_attention": SLIDING,
    "chunked_attention": CHUNKED,
    "conv": STATE,
    "linear_attention": STATE,
    "mamba": STATE,
    "mamba2": STATE,
    "moe": NONE,
    "mlp": NONE,
}
_PATTERN: t.Mapping[str, str] = {"M": STATE, "*": FULL, "-": NONE, "E": NONE}
# Encoders for embeddings and classes: nothing of the past is kept.
_ENCODERS = frozenset(
    {
        "albert",
        "bert",
        "deberta-v2",
        "distilbert",
        "electra",
        "gte",
        "jina_bert",
        "modernbert",
        "mpnet",
        "new",
        "nomic_bert",
        "roberta",
        "xlm-roberta",
    }
)
_SLIDING_PATTERNS: t.Mapping[str, int] = {"gemma2": 2, "gemma3_text": 6, "gemma3": 6, "cohere2": 4}


@dataclass(frozen=True)
class State:
    """The state of one mamba or linear attention layer, for all GPUs together: numbers of values.

    ``conv`` values are of the model's dtype, ``recurrent`` ones of ``recurrent_bytes`` bytes each. Both are divided by
    the tensor parallel size (vLLM, ``model_executor/layers/mamba/mamba_utils.py``), which has to divide ``heads``.
    """

    conv: int
    recurrent: int
    recurrent_bytes: int
    heads: int


def layer_kinds(text: Reader, model_type: str, layers: int) -> tuple[tuple[str, ...], int, int]:
    """The kind of each layer, the sliding window and the chunk (tokens, 0 for none)."""
    window = text.count(("sliding_window",), 0, 2**31, default=0)
    chunk = text.count(("attention_chunk_size",), 0, 2**31, default=0)
    if not text.flag("use_sliding_window", True):
        window = 0
    kinds = () if model_type in _ENCODERS else _named(text, layers)
    kinds = kinds or _derived(text, model_type, layers, window, chunk)
    if not window:
        kinds = tuple(FULL if kind == SLIDING else kind for kind in kinds)
    if not chunk:
        kinds = tuple(FULL if kind == CHUNKED else kind for kind in kinds)
    return kinds, window if SLIDING in kinds else 0, chunk if CHUNKED in kinds else 0


def _named(text: Reader, layers: int) -> tuple[str, ...]:
    """The kinds where the config names them one by one."""
    for key in ("layer_types", "layers_block_type", "layer_type_list"):
        named = text.values.get(key)
        if named is None:
            continue
        if not isinstance(named, list) or not layers <= len(named) <= 2 * layers + 16:
            seen = f"a list of {len(named)}" if isinstance(named, list) else named
            raise bad_config(text.where + key, seen, f"the kind of each of the {layers} layers")
        return tuple(_NAMES.get(kind, FULL) if isinstance(kind, str) else FULL for kind in named[:layers])
    pattern = text.text("hybrid_override_pattern")
    if len(pattern) >= layers:
        return tuple(_PATTERN.get(letter, FULL) for letter in pattern[:layers])
    linear = text.mapping("linear_attn_config")
    if linear is not None and isinstance(linear.get("full_attn_layers"), list):  # Kimi Linear counts from one
        full = [number for number in linear["full_attn_layers"] if isinstance(number, int)]
        return tuple(FULL if number + 1 in full else STATE for number in range(layers))
    return ()


def _derived(text: Reader, model_type: str, layers: int, window: int, chunk: int) -> tuple[str, ...]:
    """The kinds where the model's code knows them and the config has a number at most."""
    if model_type in _ENCODERS:
        return (NONE,) * layers
    if model_type in ("mamba", "mamba2", "falcon_mamba"):
        return (STATE,) * layers
    if text.values.get("linear_num_value_heads") is not None:
        interval = text.count(("full_attention_interval",), 1, 4096, default=4)
        return tuple(FULL if (number + 1) % interval == 0 else STATE for number in range(layers))
    if text.values.get("attn_layer_period") is not None:  # Jamba
        period = text.count(("attn_layer_period",), 1, 4096)
        offset = text.count(("attn_layer_offset",), 0, 4096, default=0)
        return tuple(FULL if number % period == offset else STATE for number in range(layers))
    if chunk:
        return tuple(FULL if (number + 1) % 4 == 0 else CHUNKED for number in range(layers))
    if not window:
        return (FULL,) * layers
    names = ("sliding_window_pattern", "_sliding_window_pattern")
    period = text.count(names, 0, 4096, default=_SLIDING_PATTERNS.get(model_type, 0))
    if period > 1:
        return tuple(FULL if (number + 1) % period == 0 else SLIDING for number in range(layers))
    first = text.count(("max_window_layers",), 0, 4096, default=0) if model_type.startswith("qwen2") else 0
    return tuple(FULL if number < first else SLIDING for number in range(layers))


def state_of(text: Reader, hidden: int) -> State | None:
    """The state of a layer without a growing cache; None where its form is not known."""
    recurrent_bytes = 4 if text.text("mamba_ssm_dtype") == "float32" else 2
    if text.values.get("linear_num_value_heads") is not None:  # gated delta net: Qwen3-Next, Qwen3.5
        keys = text.count(("linear_num_key_heads",), 1, 65536) * text.count(("linear_key_head_dim",), 1, 65536)
        heads = text.count(("linear_num_value_heads",), 1, 65536)
        width = text.count(("linear_value_head_dim",), 1, 65536)
        past = text.count(("linear_conv_kernel_dim",), 1, 1024, default=4) - 1
        depth = text.count(("linear_key_head_dim",), 1, 65536)
        together = math.gcd(heads, keys // depth)
        return State((2 * keys + heads * width) * past, heads * width * depth, recurrent_bytes, together)
    linear = text.mapping("linear_attn_config")
    if linear is not None:  # Kimi delta attention
        read = Reader(linear, text.where + "linear_attn_config.")
        heads, width = read.count(("num_heads",), 1, 65536), read.count(("head_dim",), 1, 65536)
        past = read.count(("short_conv_kernel_size",), 1, 1024, default=4) - 1
        return State(3 * heads * width * past, heads * width * width, 4, heads)
    heads = text.count(("mamba_n_heads", "mamba_num_heads", "num_heads"), 0, 65536, default=0)
    depth = text.count(("mamba_d_state", "ssm_state_size", "state_size"), 0, 65536, default=0)
    past = text.count(("mamba_d_conv", "conv_kernel", "d_conv"), 1, 1024, default=4) - 1
    if not depth:
        return None
    if heads:
        width = text.count(("mamba_d_head", "mamba_head_dim", "head_dim"), 1, 65536)
        groups = text.count(("mamba_n_groups", "n_groups"), 1, 65536, default=1)
        inner = heads * width
        return State((inner + 2 * groups * depth) * past, inner * depth, recurrent_bytes, heads)
    inner = text.count(("intermediate_size",), 0, _WIDTH_MAX, default=0)
    inner = inner or text.count(("mamba_expand", "expand"), 1, 64, default=2) * hidden
    return State(inner * past, inner * depth, recurrent_bytes, inner)
