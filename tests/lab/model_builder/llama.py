# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""GGUF to Hugging Face, for models of the ``llama`` architecture: configuration and weights."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize

from .errors import BuildError
from .place import Array, bfloat16

Config = dict[str, Any]

_WHOLE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_LAYER_NAME = re.compile(r"blk\.(\d+)\.(\w+)\.weight\Z")


def metadata(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """The value of a GGUF key as plain Python; ``default`` where the file lacks it, BuildError when that is None."""
    found = reader.get_field(key)
    if found is None and default is None:
        raise BuildError(f"the GGUF file has no {key}. Expected: a complete model file. Use another one.")
    return default if found is None else found.contents()


def config(reader: GGUFReader) -> Config:
    """``config.json``. Raises BuildError for an architecture this builder would get wrong."""
    architecture = metadata(reader, "general.architecture")
    if architecture != "llama":
        raise BuildError(f"the GGUF file is of architecture {architecture!r}. Expected: 'llama'. Use another file.")
    scaling = metadata(reader, "llama.rope.scaling.type", "none")
    if scaling != "none":
        raise BuildError(f"the GGUF file scales its RoPE ({scaling!r}). Expected: none. Use another file.")
    heads = metadata(reader, "llama.attention.head_count")
    hidden = metadata(reader, "llama.embedding_length")
    special = special_ids(reader)
    return {
        "architectures": ["LlamaForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": special["bos_token"],
        "eos_token_id": special["eos_token"],
        "head_dim": metadata(reader, "llama.attention.key_length", hidden // heads),
        "hidden_act": "silu",
        "hidden_size": hidden,
        "initializer_range": 0.02,
        "intermediate_size": metadata(reader, "llama.feed_forward_length"),
        "max_position_embeddings": metadata(reader, "llama.context_length"),
        "mlp_bias": False,
        "model_type": "llama",
        "num_attention_heads": heads,
        "num_hidden_layers": metadata(reader, "llama.block_count"),
        "num_key_value_heads": metadata(reader, "llama.attention.head_count_kv", heads),
        "pad_token_id": special["pad_token"],
        "rms_norm_eps": _short(metadata(reader, "llama.attention.layer_norm_rms_epsilon")),
        "rope_scaling": None,
        "rope_theta": _short(metadata(reader, "llama.rope.freq_base", 10000.0)),
        "tie_word_embeddings": all(tensor.name != "output.weight" for tensor in reader.tensors),
        "torch_dtype": "bfloat16",
        "use_cache": True,
        "vocab_size": len(metadata(reader, "tokenizer.ggml.tokens")),
    }


def special_ids(reader: GGUFReader) -> dict[str, int]:
    """Token ids by Hugging Face role: bos, eos, unk and pad (eos where the file names no pad)."""
    eos = metadata(reader, "tokenizer.ggml.eos_token_id")
    return {
        "bos_token": metadata(reader, "tokenizer.ggml.bos_token_id"),
        "eos_token": eos,
        "unk_token": metadata(reader, "tokenizer.ggml.unknown_token_id", eos),
        "pad_token": metadata(reader, "tokenizer.ggml.padding_token_id", eos),
    }


def layout(shape: Config) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a model with the configuration ``shape``, in name order."""
    hidden, inner, head = shape["hidden_size"], shape["intermediate_size"], shape["head_dim"]
    q_rows, kv_rows = head * shape["num_attention_heads"], head * shape["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (q_rows, hidden),
        "self_attn.k_proj": (kv_rows, hidden),
        "self_attn.v_proj": (kv_rows, hidden),
        "self_attn.o_proj": (hidden, q_rows),
        "post_attention_layernorm": (hidden,),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    sizes: dict[str, tuple[int, ...]] = {
        f"model.layers.{index}.{name}.weight": size
        for index in range(shape["num_hidden_layers"])
        for name, size in layer.items()
    }
    sizes["model.embed_tokens.weight"] = (shape["vocab_size"], hidden)
    sizes["model.norm.weight"] = (hidden,)
    if not shape["tie_word_embeddings"]:
        sizes["lm_head.weight"] = (shape["vocab_size"], hidden)
    return dict(sorted(sizes.items()))


def weights(reader: GGUFReader, shape: Config) -> Iterator[Array]:
    """The tensors in the order of ``layout(shape)``, as little-endian bfloat16 bit patterns.

    One at a time, so that the model need not fit in memory. Raises BuildError, before the first one, when a tensor is
    unknown, missing or of another shape than ``shape`` says, and later for one that holds NaN or infinity.
    """
    tensors = {_name(tensor.name): tensor for tensor in reader.tensors}
    sizes = layout(shape)
    # GGUF gives the fastest axis first.
    present = {name: tuple(int(size) for size in reversed(tensor.shape)) for name, tensor in tensors.items()}
    wrong = sorted(name for name in sizes.keys() | present.keys() if sizes.get(name) != present.get(name))
    if wrong:
        raise BuildError(
            f"{len(wrong)} tensor(s) of the GGUF file are missing or of another shape than its metadata says, "
            f"first {wrong[0]}. The file is damaged: fetch it again."
        )
    return (_converted(name, tensors[name], shape) for name in sizes)


def _converted(name: str, tensor: ReaderTensor, shape: Config) -> Array:
    values = np.asarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32)
    if not np.isfinite(values).all():
        raise BuildError(f"tensor {tensor.name} holds values that are no numbers. The GGUF file is damaged.")
    if name.endswith("q_proj.weight"):
        values = _unpermute(values, shape["num_attention_heads"])
    elif name.endswith("k_proj.weight"):
        values = _unpermute(values, shape["num_key_value_heads"])
    return bfloat16(values)


def _name(gguf_name: str) -> str:
    if gguf_name in _WHOLE:
        return _WHOLE[gguf_name]
    match = _LAYER_NAME.match(gguf_name)
    if match is None or match.group(2) not in _LAYER:
        raise BuildError(f"tensor {gguf_name} has no place in a plain Llama model. Use another GGUF file.")
    return f"model.layers.{match.group(1)}.{_LAYER[match.group(2)]}.weight"


def _unpermute(values: Array, heads: int) -> Array:
    """Undo llama.cpp's reordering of the query and key rows.

    It interleaves the two halves that Hugging Face's rotary embedding keeps apart: within a head its row ``2 * i + h``
    is row ``h * half + i`` here.
    """
    rows, columns = values.shape
    return values.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def _short(value: float) -> float:
    """The shortest decimal that is the same float32: 1e-05 instead of 9.999999747378752e-06."""
    return float(str(np.float32(value)))
