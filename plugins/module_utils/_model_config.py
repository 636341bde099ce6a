# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""A model's config.json, read into one typed description of what decides its memory. Pure; everything is untrusted.

The names follow vLLM 0.33 (``transformers_utils/model_arch_config_convertor.py`` and ``transformers_utils/config.py``),
since its reading of a config is the one that counts. Where a published config leaves out a value that its class in
transformers has by default, :data:`_DEFAULTS` has it.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_layers import (
    FULL,
    State,
    layer_kinds,
    state_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._config_reader import Reader, bad_config, words
from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import Tower, towers_of

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_weights import Weights

CONFIG_NAME = "config.json"
CONFIG_MAX = 4 * 1024 * 1024

LAYERS_MAX = 4096
_WIDTH_MAX = 2**24
_LENGTH_MAX = 2**31

_DTYPE_BYTES = {"float16": 2, "bfloat16": 2, "half": 2, "float32": 2, "float": 2, "float64": 2, "auto": 2}
"""Bytes of a value in vLLM's ``--dtype auto``, which loads float32 as float16 or bfloat16 (config/model.py)."""

_TEXT_CONFIGS = ("text_config", "llm_config", "language_config")

# Multi-head latent attention, as vLLM lists it in is_deepseek_mla().
_MLA_TYPES = frozenset(
    {
        "axk1",
        "bailing_hybrid",
        "deepseek_mtp",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots3_note",
        "glm4_moe_lite",
        "glm5_next",
        "glm5_next_text",
        "glm_moe_dsa",
        "hy_v4",
        "k3_dspark",
        "kimi_k2",
        "kimi_linear",
        "longcat_flash",
        "pangu_ultra_moe",
    }
)

# Architectures whose layers, heads and cache are read here as vLLM reads them; of others the sum is a guess.
_KNOWN_TYPES = frozenset(
    {
        "arcee",
        "baichuan",
        "chatglm",
        "cohere",
        "cohere2",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "ernie4_5",
        "ernie4_5_moe",
        "exaone",
        "falcon",
        "gemma",
        "gemma2",
        "gemma3",
        "gemma3_text",
        "glm",
        "glm4",
        "glm4_moe",
        "gpt2",
        "gpt_neox",
        "gpt_oss",
        "granite",
        "granitemoe",
        "internlm2",
        "internlm3",
        "kimi_k2",
        "llama",
        "llama4_text",
        "mistral",
        "mixtral",
        "nemotron",
        "olmo",
        "olmo2",
        "olmoe",
        "opt",
        "phi",
        "phi3",
        "phimoe",
        "qwen2",
        "qwen2_5_vl",
        "qwen2_5_vl_text",
        "qwen2_moe",
        "qwen2_vl",
        "qwen2_vl_text",
        "qwen3",
        "qwen3_5_moe_text",
        "qwen3_5_text",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_vl_moe_text",
        "qwen3_vl_text",
        "seed_oss",
        "smollm3",
        "stablelm",
        "starcoder2",
        "whisper",
    }
)

# What transformers fills in where a published config.json is silent.
_DEFAULTS: t.Mapping[str, t.Mapping[str, t.Any]] = {
    "gemma": {"tie_word_embeddings": True},
    "gemma2": {"tie_word_embeddings": True, "head_dim": 256, "sliding_window": 4096},
    "gemma3_text": {
        "vocab_size": 262208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "max_position_embeddings": 131072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
    "gemma4_text": {"tie_word_embeddings": True},
    "cohere": {"tie_word_embeddings": True},
    "cohere2": {"tie_word_embeddings": True},
    "whisper": {"tie_word_embeddings": True},
    "mistral": {"num_key_value_heads": 8, "vocab_size": 32000},
    "llama": {"vocab_size": 32000},
}


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: the ranks and head sizes. ``indexer`` is the head size of a sparse indexer, or 0."""

    kv_lora_rank: int
    qk_rope_head_dim: int
    qk_nope_head_dim: int
    v_head_dim: int
    q_lora_rank: int
    indexer: int


@dataclass(frozen=True)
class Moe:
    """Experts: how many, how wide, and which layers have them (the others are dense)."""

    experts: int
    experts_per_token: int
    intermediate: int
    shared: int
    dense_layers: int


@dataclass(frozen=True)
class Quantization:
    """How the weights of the layers are stored. ``group`` is the size of a group along the input, 0 for none;
    ``block`` is (rows, columns) of a scale in FP8 with block scales. ``cache`` is what the checkpoint says of the KV
    cache (``fp8``), which holds where ``--kv-cache-dtype`` is auto; empty where it says nothing."""

    method: str
    bits: int
    group: int
    block: tuple[int, int] | None
    cache: str = ""


@dataclass(frozen=True)
class Model:
    """What decides a model's memory. Sizes are numbers of values unless they say bytes.

    ``max_length`` is the longest context that any release of vLLM takes without being told to take longer ones, and
    ``default_length`` what it takes where nobody says one. ``known`` says that the architecture is one whose cache and
    parallelism are read as vLLM reads them.
    """

    architecture: str
    model_type: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    dtype_bytes: int
    tied: bool
    max_length: int | None
    kinds: tuple[str, ...]
    default_length: int | None = None
    known: bool = True
    window: int = 0
    chunk: int = 0
    global_kv_heads: int = 0
    global_head_dim: int = 0
    shared_kv_layers: int = 0
    gated: bool = True
    encoder_decoder: bool = False
    encoder_positions: int = 0
    mla: Mla | None = None
    moe: Moe | None = None
    state: State | None = None
    quantization: Quantization | None = None
    towers: tuple[Tower, ...] = ()
    weights: Weights | None = field(default=None, compare=False)

    @property
    def multimodal(self) -> bool:
        """Whether an encoder for images or audio comes before the decoder (Whisper's is part of the model)."""
        return bool(self.towers) and not self.encoder_decoder


def read_config(document: object) -> Model:
    """The model that a parsed config.json describes. Raises FleetError (``model.bad_config``) for what is none."""
    top = Reader(document, "")
    text = _text_reader(top)
    model_type = text.text("model_type") or top.text("model_type")
    text = text.with_defaults(_DEFAULTS.get(model_type, {}))
    if top.text("model_type") == "whisper":
        return _whisper(top.with_defaults(_DEFAULTS["whisper"]))
    layers = text.count(("num_hidden_layers", "n_layer", "num_layers", "n_layers"), 1, LAYERS_MAX)
    hidden = text.count(("hidden_size", "n_embd", "d_model"), 1, _WIDTH_MAX)
    heads = text.count(("num_attention_heads", "n_head", "n_heads"), 0, 65536, default=0)
    mla = _mla(text, model_type)
    kinds, window, chunk = layer_kinds(text, model_type, layers)
    if heads == 0 and any(kind not in ("state", "none") for kind in kinds):
        raise bad_config("num_attention_heads", None, "the number of attention heads")
    return Model(
        architecture=_architecture(top),
        model_type=model_type[:120],
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=_kv_heads(text, heads),
        head_dim=_head_dim(text, hidden, heads),
        intermediate=text.count(
            ("intermediate_size", "ffn_dim", "n_inner", "ffn_hidden_size"), 0, _WIDTH_MAX, 4 * hidden
        ),
        vocab=text.count(("vocab_size", "padded_vocab_size"), 1, _WIDTH_MAX),
        dtype_bytes=_dtype_bytes(top, text),
        tied=text.flag("tie_word_embeddings", top.flag("tie_word_embeddings", False)),
        max_length=_max_length(text, model_type),
        default_length=_default_length(text, model_type),
        known=_is_known(top, text, model_type),
        kinds=kinds,
        window=window,
        chunk=chunk,
        global_kv_heads=text.count(("num_global_key_value_heads",), 0, 65536, default=0),
        global_head_dim=text.count(("global_head_dim",), 0, 65536, default=0),
        shared_kv_layers=min(text.count(("num_kv_shared_layers",), 0, LAYERS_MAX, default=0), layers - 1),
        gated=_is_gated(text, model_type),
        mla=mla,
        moe=_moe(text, layers),
        state=state_of(text, hidden) if "state" in kinds else None,
        quantization=_quantization(top, text),
        towers=towers_of(top),
    )


def _text_reader(top: Reader) -> Reader:
    """The part that describes the language model; what it leaves out stands one level above."""
    for key in _TEXT_CONFIGS:
        if top.mapping(key) is not None:
            return Reader({**top.values, **(top.mapping(key) or {})}, f"{key}.")
    thinker = top.mapping("thinker_config")
    if thinker is not None:
        return _text_reader(Reader(thinker, "thinker_config."))
    return top


def _architecture(top: Reader) -> str:
    named = top.values.get("architectures")
    return words(named[0])[:120] if isinstance(named, list) and named else ""


def _kv_heads(text: Reader, heads: int) -> int:
    if text.flag("multi_query", False) and not text.flag("new_decoder_architecture", False):
        return 1  # Falcon
    names = ("n_head_kv", "num_kv_heads", "num_key_value_heads", "multi_query_group_num", "num_attention_groups")
    return text.count(names, 1, 65536, default=max(heads, 1))


def _head_dim(text: Reader, hidden: int, heads: int) -> int:
    named = text.count(("head_dim", "hidden_size_per_head"), 0, 65536, default=0)
    return named or (hidden // heads if heads else 0)


def _dtype_bytes(top: Reader, text: Reader) -> int:
    name = (text.text("dtype") or text.text("torch_dtype") or top.text("dtype") or top.text("torch_dtype")).lower()
    return _DTYPE_BYTES.get(name.replace("torch.", ""), 2)


def _is_known(top: Reader, text: Reader, model_type: str) -> bool:
    """Encoders among the decoders' types (for embeddings) keep nothing of the past, and are not known therefore."""
    both_ways = text.flag("use_bidirectional_attention", False) or not text.flag("is_causal", True)
    return model_type in _KNOWN_TYPES and not both_ways and top.flag("is_causal", True)


def _rope(text: Reader) -> tuple[Reader, str]:
    """How positions are scaled, and by which rule."""
    rope = Reader(text.mapping("rope_scaling") or text.mapping("rope_parameters") or {}, "rope_scaling.")
    return rope, rope.text("rope_type") or rope.text("type") or "default"


def _default_length(text: Reader, model_type: str) -> int | None:
    """With LongRoPE vLLM starts with the context of the first training."""
    _values, kind = _rope(text)
    first = text.count(("original_max_position_embeddings",), 0, _LENGTH_MAX, default=0)
    return first if first and kind == "longrope" else _derived_length(text, model_type)


def _max_length(text: Reader, model_type: str) -> int | None:
    """The longest context that is taken: releases before 0.33 multiply the first length of YaRN by its factor."""
    derived = _derived_length(text, model_type)
    if derived is None:
        return None
    rope, kind = _rope(text)
    longest = [derived]
    first = rope.count(("original_max_position_embeddings",), 0, _LENGTH_MAX, default=0)
    if kind == "yarn" and first:
        longest.append(int(first * rope.number("factor", 1.0, 1024.0, 1.0)))
    longest.append(text.count(("model_max_length",), 0, _LENGTH_MAX, default=0))
    return max(longest)


def _derived_length(text: Reader, model_type: str) -> int | None:
    """The longest context, as vLLM derives it (config/model.py, ``_get_and_verify_max_len``)."""
    names = (
        "max_position_embeddings",
        "n_positions",
        "max_seq_len",
        "seq_length",
        "model_max_length",
        "max_target_positions",
        "max_sequence_length",
        "max_seq_length",
        "seq_len",
    )
    found = [text.count((name,), 1, _LENGTH_MAX, default=0) for name in names if text.values.get(name) is not None]
    lengths = [length for length in found if length]
    if not lengths:
        return None
    rope, kind = _rope(text)
    scaled = ("default", "mrope", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling")
    factor = 1.0 if kind in scaled or "gemma3" in model_type else rope.number("factor", 1.0, 1024.0, 1.0)
    return int(min(lengths) * factor)


def _is_gated(text: Reader, model_type: str) -> bool:
    """Whether a layer's MLP has three matrices (gate, up, down) rather than two."""
    if model_type in ("gpt2", "gpt_neox", "gpt_bigcode", "falcon", "opt", "phi", "bloom", "mpt", "starcoder2", "bert"):
        return False
    return text.text("hidden_act") not in ("relu2", "gelu_new")


def _mla(text: Reader, model_type: str) -> Mla | None:
    rank = text.count(("kv_lora_rank",), 0, _WIDTH_MAX, default=0)
    if not rank or model_type not in _MLA_TYPES:
        return None
    sparse = text.count(("index_topk",), 0, _LENGTH_MAX, default=0)
    return Mla(
        kv_lora_rank=rank,
        qk_rope_head_dim=text.count(("qk_rope_head_dim",), 0, 65536, default=0),
        qk_nope_head_dim=text.count(("qk_nope_head_dim",), 0, 65536, default=128),
        v_head_dim=text.count(("v_head_dim",), 0, 65536, default=128),
        q_lora_rank=text.count(("q_lora_rank",), 0, _WIDTH_MAX, default=0),
        indexer=text.count(("index_head_dim",), 0, 65536, default=128) if sparse else 0,
    )


def _moe(text: Reader, layers: int) -> Moe | None:
    names = ("num_experts", "moe_num_experts", "n_routed_experts", "num_local_experts")
    experts = text.count(names, 0, 65536, default=0)
    if experts < 2:
        return None
    width = text.count(("moe_intermediate_size", "expert_intermediate_size", "intermediate_size"), 1, _WIDTH_MAX)
    shared = text.count(("shared_expert_intermediate_size",), 0, _WIDTH_MAX, default=0)
    if not shared:
        shared = width * text.count(("n_shared_experts", "moe_num_shared_experts"), 0, 1024, default=0)
    dense = text.count(("first_k_dense_replace",), 0, LAYERS_MAX, default=0)
    named = text.values.get("mlp_only_layers")
    if isinstance(named, list):
        dense = max(dense, len(named))
    return Moe(
        experts=experts,
        experts_per_token=text.count(
            ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_topk", "moe_top_k", "top_k"),
            1,
            65536,
            2,
        ),
        intermediate=width,
        shared=shared,
        dense_layers=min(dense, layers),
    )


def _quantization(top: Reader, text: Reader) -> Quantization | None:
    values = top.mapping("quantization_config") or top.mapping("compression_config")
    values = values or text.mapping("quantization_config")
    if values is None:
        return None
    read = Reader(values, "quantization_config.")
    method = read.text("quant_method").lower().replace("_", "-") or "unknown"
    weights = _compressed_weights(read)
    bits = read.count(("bits", "w_bit", "weight_bits"), 1, 32, default=0)
    group = read.number("group_size", -1, _WIDTH_MAX, 0) or read.number("q_group_size", -1, _WIDTH_MAX, 0)
    block = None
    shape = read.values.get("weight_block_size")
    if weights is not None:
        bits = bits or weights.count(("num_bits",), 1, 32, default=0)
        group = group or weights.number("group_size", -1, _WIDTH_MAX, 0)
        shape = shape or weights.values.get("block_structure")
    if isinstance(shape, list) and len(shape) == 2 and all(_is_side(side) for side in shape):
        block = (shape[0], shape[1])
    if not bits:
        bits = 4 if "fp4" in method + read.text("quant_algo").lower() or read.flag("load_in_4bit", False) else 8
    return Quantization(method[:40], bits, max(0, int(group)), block, _cache_dtype(read))


def _cache_dtype(read: Reader) -> str:
    """``get_kv_cache_quant_algo_string`` of vLLM, and compressed-tensors' ``kv_cache_scheme``."""
    scheme = read.mapping("kv_cache_scheme")
    if scheme is not None:
        return {8: "fp8", 4: "nvfp4"}.get(Reader(scheme, "kv_cache_scheme.").count(("num_bits",), 0, 64, 0), "")
    named = read.text("kv_cache_quant_algo").lower()
    return "nvfp4" if "fp4" in named else "fp8" if "fp8" in named or "int8" in named else ""


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 65536


def _compressed_weights(read: Reader) -> Reader | None:
    """How compressed-tensors stores the weights of its first group."""
    groups = read.mapping("config_groups")
    for group in (groups or {}).values():
        weights = group.get("weights") if isinstance(group, dict) else None
        if isinstance(weights, dict):
            return Reader(weights, "quantization_config.config_groups.")
    return None


def _whisper(top: Reader) -> Model:
    """Whisper: the decoder is the language model, with cross attention; the encoder is a tower of its own."""
    hidden = top.count(("d_model",), 1, _WIDTH_MAX)
    layers = top.count(("decoder_layers",), 1, LAYERS_MAX)
    heads = top.count(("decoder_attention_heads",), 1, 65536)
    positions = top.count(("max_source_positions",), 1, _LENGTH_MAX, 1500)
    encoder = Tower(
        kind="audio",
        layers=top.count(("encoder_layers",), 1, LAYERS_MAX),
        hidden=hidden,
        heads=top.count(("encoder_attention_heads",), 1, 65536),
        intermediate=top.count(("encoder_ffn_dim",), 1, _WIDTH_MAX),
        gated=False,
        inputs=2 * top.count(("num_mel_bins",), 1, 65536, 80),
        positions=positions,
        merge=1,
    )
    return Model(
        architecture=_architecture(top),
        model_type="whisper",
        layers=layers,
        hidden=hidden,
        heads=heads,
        kv_heads=heads,
        head_dim=hidden // heads,
        intermediate=top.count(("decoder_ffn_dim",), 1, _WIDTH_MAX),
        vocab=top.count(("vocab_size",), 1, _WIDTH_MAX),
        dtype_bytes=_dtype_bytes(top, top),
        tied=True,
        max_length=top.count(("max_target_positions",), 1, _LENGTH_MAX, 448),
        default_length=top.count(("max_target_positions",), 1, _LENGTH_MAX, 448),
        kinds=(FULL,) * layers,
        gated=False,
        encoder_decoder=True,
        encoder_positions=positions,
        quantization=_quantization(top, top),
        towers=(encoder,),
    )
