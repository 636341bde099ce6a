# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The tensors of published architectures, by the names and shapes that their checkpoints have."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from ansible_collections.gpufleet.vllm.plugins.module_utils._safetensors import BITS, Tensor


def tensor(name: str, *shape: int, dtype: str = "BF16") -> Tensor:
    count = 1
    for length in shape:
        count *= length
    return Tensor(name, dtype, tuple(shape), count * BITS[dtype] // 8)


def decoder(
    config: dict[str, Any], prefix: str = "model.", bias: bool = False, head_norms: bool = False
) -> list[Tensor]:
    """Llama, Qwen2 (with biases), Qwen3 (with norms of the heads); dense or with experts."""
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size = config.get("head_dim") or hidden // heads
    found = [
        tensor(f"{prefix}embed_tokens.weight", config["vocab_size"], hidden),
        tensor(f"{prefix}norm.weight", hidden),
    ]
    if not config["tie_word_embeddings"]:
        found.append(tensor("lm_head.weight", config["vocab_size"], hidden))
    for number in range(config["num_hidden_layers"]):
        layer = f"{prefix}layers.{number}."
        found += [
            tensor(layer + "self_attn.q_proj.weight", heads * size, hidden),
            tensor(layer + "self_attn.k_proj.weight", kv * size, hidden),
            tensor(layer + "self_attn.v_proj.weight", kv * size, hidden),
            tensor(layer + "self_attn.o_proj.weight", hidden, heads * size),
            tensor(layer + "input_layernorm.weight", hidden),
            tensor(layer + "post_attention_layernorm.weight", hidden),
        ]
        if bias:
            found += [
                tensor(layer + "self_attn.q_proj.bias", heads * size),
                tensor(layer + "self_attn.k_proj.bias", kv * size),
                tensor(layer + "self_attn.v_proj.bias", kv * size),
            ]
        if head_norms:
            found += [tensor(layer + f"self_attn.{side}_norm.weight", size) for side in "qk"]
        found += _mlp(config, layer, hidden)
    return found


def _mlp(config: dict[str, Any], layer: str, hidden: int) -> list[Tensor]:
    if "num_experts" not in config:
        return _gated(layer + "mlp.", hidden, config["intermediate_size"])
    found = [tensor(layer + "mlp.gate.weight", config["num_experts"], hidden)]
    for expert in range(config["num_experts"]):
        found += _gated(f"{layer}mlp.experts.{expert}.", hidden, config["moe_intermediate_size"])
    return found


def _gated(prefix: str, hidden: int, width: int) -> list[Tensor]:
    return [
        tensor(prefix + "gate_proj.weight", width, hidden),
        tensor(prefix + "up_proj.weight", width, hidden),
        tensor(prefix + "down_proj.weight", hidden, width),
    ]


def qwen_vision(config: dict[str, Any]) -> list[Tensor]:
    """The vision encoder of Qwen2.5-VL."""
    hidden, width, out = config["hidden_size"], config["intermediate_size"], config["out_hidden_size"]
    found = [
        tensor("visual.patch_embed.proj.weight", hidden, 3, 2, 14, 14),
        tensor("visual.merger.ln_q.weight", hidden),
        tensor("visual.merger.mlp.0.weight", 4 * hidden, 4 * hidden),
        tensor("visual.merger.mlp.0.bias", 4 * hidden),
        tensor("visual.merger.mlp.2.weight", out, 4 * hidden),
        tensor("visual.merger.mlp.2.bias", out),
    ]
    for number in range(config["depth"]):
        block = f"visual.blocks.{number}."
        found += [
            tensor(block + "norm1.weight", hidden),
            tensor(block + "norm2.weight", hidden),
            tensor(block + "attn.qkv.weight", 3 * hidden, hidden),
            tensor(block + "attn.qkv.bias", 3 * hidden),
            tensor(block + "attn.proj.weight", hidden, hidden),
            tensor(block + "attn.proj.bias", hidden),
        ]
        for one, rows, columns in (("gate", width, hidden), ("up", width, hidden), ("down", hidden, width)):
            found += [
                tensor(f"{block}mlp.{one}_proj.weight", rows, columns),
                tensor(f"{block}mlp.{one}_proj.bias", rows),
            ]
    return found


def whisper(config: dict[str, Any]) -> list[Tensor]:
    """Whisper, as its checkpoints have it: no key projection has a bias, and the head is not in the file."""
    hidden, vocab = config["d_model"], config["vocab_size"]
    found = [
        tensor("model.encoder.conv1.weight", hidden, config["num_mel_bins"], 3, dtype="F16"),
        tensor("model.encoder.conv1.bias", hidden, dtype="F16"),
        tensor("model.encoder.conv2.weight", hidden, hidden, 3, dtype="F16"),
        tensor("model.encoder.conv2.bias", hidden, dtype="F16"),
        tensor("model.encoder.embed_positions.weight", config["max_source_positions"], hidden, dtype="F16"),
        tensor("model.decoder.embed_tokens.weight", vocab, hidden, dtype="F16"),
        tensor("model.decoder.embed_positions.weight", config["max_target_positions"], hidden, dtype="F16"),
    ]
    for side in ("encoder", "decoder"):
        found += _norm(f"model.{side}.layer_norm", hidden)
        for number in range(config[f"{side}_layers"]):
            layer = f"model.{side}.layers.{number}."
            for name in ["self_attn"] + (["encoder_attn"] if side == "decoder" else []):
                found += _norm(f"{layer}{name}_layer_norm", hidden)
                for part in "kvq":
                    found.append(tensor(f"{layer}{name}.{part}_proj.weight", hidden, hidden, dtype="F16"))
                    if part != "k":
                        found.append(tensor(f"{layer}{name}.{part}_proj.bias", hidden, dtype="F16"))
                found.append(tensor(f"{layer}{name}.out_proj.weight", hidden, hidden, dtype="F16"))
                found.append(tensor(f"{layer}{name}.out_proj.bias", hidden, dtype="F16"))
            width = config[f"{side}_ffn_dim"]
            found += [
                tensor(f"{layer}fc1.weight", width, hidden, dtype="F16"),
                tensor(f"{layer}fc1.bias", width, dtype="F16"),
                tensor(f"{layer}fc2.weight", hidden, width, dtype="F16"),
                tensor(f"{layer}fc2.bias", hidden, dtype="F16"),
            ]
            found += _norm(f"{layer}final_layer_norm", hidden)
    return found


def _norm(name: str, hidden: int) -> list[Tensor]:
    return [tensor(f"{name}.weight", hidden, dtype="F16"), tensor(f"{name}.bias", hidden, dtype="F16")]


def deepseek(config: dict[str, Any], layers: Iterable[int]) -> list[Tensor]:
    """A few layers of DeepSeek-V3 in FP8 with block scales: ``layers`` are their numbers."""
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    rank, rope, nope = config["kv_lora_rank"], config["qk_rope_head_dim"], config["qk_nope_head_dim"]
    found = [
        tensor("model.embed_tokens.weight", config["vocab_size"], hidden),
        tensor("model.norm.weight", hidden),
        tensor("lm_head.weight", config["vocab_size"], hidden),
    ]

    def scaled(name: str, rows: int, columns: int) -> list[Tensor]:
        return [
            tensor(name + ".weight", rows, columns, dtype="F8_E4M3"),
            tensor(name + ".weight_scale_inv", -(-rows // 128), -(-columns // 128), dtype="F32"),
        ]

    for number in layers:
        layer = f"model.layers.{number}."
        attention = layer + "self_attn."
        found += scaled(attention + "q_a_proj", config["q_lora_rank"], hidden)
        found += scaled(attention + "q_b_proj", heads * (nope + rope), config["q_lora_rank"])
        found += scaled(attention + "kv_a_proj_with_mqa", rank + rope, hidden)
        found += scaled(attention + "kv_b_proj", heads * (nope + config["v_head_dim"]), rank)
        found += scaled(attention + "o_proj", hidden, heads * config["v_head_dim"])
        found += [
            tensor(attention + "q_a_layernorm.weight", config["q_lora_rank"]),
            tensor(attention + "kv_a_layernorm.weight", rank),
            tensor(layer + "input_layernorm.weight", hidden),
            tensor(layer + "post_attention_layernorm.weight", hidden),
        ]
        if number < config["first_k_dense_replace"]:
            experts = [("mlp.", config["intermediate_size"])]
        else:
            found.append(tensor(layer + "mlp.gate.weight", config["n_routed_experts"], hidden))
            found.append(tensor(layer + "mlp.gate.e_score_correction_bias", config["n_routed_experts"], dtype="F32"))
            width = config["moe_intermediate_size"]
            experts = [("mlp.shared_experts.", width)]
            experts += [(f"mlp.experts.{expert}.", width) for expert in range(config["n_routed_experts"])]
        for name, width in experts:
            found += scaled(f"{layer}{name}gate_proj", width, hidden)
            found += scaled(f"{layer}{name}up_proj", width, hidden)
            found += scaled(f"{layer}{name}down_proj", hidden, width)
    return found


def awq(config: dict[str, Any], number: int) -> list[Tensor]:
    """One layer of a Qwen2 in AWQ with groups of 128."""
    hidden, heads, kv = config["hidden_size"], config["num_attention_heads"], config["num_key_value_heads"]
    size = hidden // heads
    layer = f"model.layers.{number}."
    found: list[Tensor] = []

    def packed(name: str, columns: int, rows: int) -> list[Tensor]:
        return [
            tensor(name + ".qweight", columns, rows // 8, dtype="I32"),
            tensor(name + ".qzeros", columns // 128, rows // 8, dtype="I32"),
            tensor(name + ".scales", columns // 128, rows, dtype="F16"),
        ]

    found += packed(layer + "self_attn.q_proj", hidden, heads * size)
    found += packed(layer + "self_attn.k_proj", hidden, kv * size)
    found += packed(layer + "self_attn.v_proj", hidden, kv * size)
    found += packed(layer + "self_attn.o_proj", heads * size, hidden)
    for one in ("gate", "up"):
        found += packed(f"{layer}mlp.{one}_proj", hidden, config["intermediate_size"])
    found += packed(layer + "mlp.down_proj", config["intermediate_size"], hidden)
    found += [tensor(layer + "input_layernorm.weight", hidden, dtype="F16")]
    return found


def header(tensors: Iterable[Tensor]) -> tuple[bytes, int]:
    """(the first bytes of a safetensors file up to its tensors, the size of the whole file)."""
    rows: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for one in tensors:
        rows[one.name] = {
            "dtype": one.dtype,
            "shape": list(one.shape),
            "data_offsets": [position, position + one.size],
        }
        position += one.size
    body = json.dumps(rows).encode()
    body += b" " * (-len(body) % 8)
    return len(body).to_bytes(8, "little") + body, 8 + len(body) + position
