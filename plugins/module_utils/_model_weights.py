# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""How the weights of a model split over GPUs: by the tensors of its headers, or by its config where those are unknown.

vLLM cuts the matrices of a layer into as many parts as there are GPUs in a tensor parallel group. What it keeps whole
on each of them: norms, routers, the biases behind a sum, the low-rank projections of latent attention, and what is left
of the key and value projections once there are more GPUs than KV heads (``model_executor/layers/linear.py``,
``models/deepseek_v2.py``).
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_reader import Reader, bad_config

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import Tower
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model
    from ansible_collections.gpufleet.vllm.plugins.module_utils._safetensors import Tensor

_BYTES_MAX = 2**60
_LAYERS_MAX = 4096

_LAYER = re.compile(r"(?:^|\.)(?:layers|layer|h|blocks)\.(\d+)\.")
_TOWER = re.compile(
    r"(?:^|\.)(?:visual|vision_tower|vision_model|vision_encoder|vit|audio_tower|audio_encoder|speech_encoder|"
    r"multi_modal_projector|mm_projector|vision_projection|merger|embed_vision|embed_audio|mlp1|aligner)(?:\.|$)"
)
# Of a model that also speaks, vLLM serves the part that thinks.
_UNUSED = re.compile(
    r"(?:^|\.)(?:mtp|rotary_emb\.inv_freq)(?:\.|$)|(?:^|\.)masked_bias$|(?:^|\.)attn\.bias$|"
    r"^(?:talker|token2wav|code2wav)\."
)
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|tok_embeddings|word_embeddings|embeddings)\.")
_HEAD = re.compile(r"(?:^|\.)(?:lm_head|proj_out|embed_out|output_layer)\.|^output\.weight$")
_WHOLE = re.compile(
    r"norm|(?:^|\.)ln_|layernorm|\.gate\.|router|shared_expert_gate|correction_bias|q_a_proj|kv_a_proj|indexer|"
    r"A_log|dt_bias|(?:o_proj|out_proj|down_proj|dense|fc2|c_proj|dense_4h_to_h)\.bias"
)
_KEY_VALUE = re.compile(r"[._](?:k|v)_proj\.|[._](?:key|value)\.")
_FUSED = re.compile(r"qkv_proj|c_attn|query_key_value|Wqkv|\.qkv\.")
_MODEL_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True)
class LayerWeights:
    """Bytes of one layer: ``split`` over all GPUs, ``key_value`` over KV heads at most, ``whole`` on each."""

    split: int = 0
    key_value: int = 0
    whole: int = 0

    def on_gpu(self, tensor_parallel: int, kv_heads: int, experts: float = 0.0, ranks: int = 1) -> int:
        """Bytes on one GPU of a group of ``tensor_parallel``; the part ``experts`` of what is split is dealt out to
        ``ranks`` such groups."""
        apart = int(self.split * experts) if ranks > 1 else 0
        return (
            _up(self.split - apart, tensor_parallel)
            + _up(apart, tensor_parallel * ranks)
            + _up(self.key_value, min(tensor_parallel, max(1, kv_heads)))
            + self.whole
        )


@dataclass(frozen=True)
class Weights:
    """Bytes as they lie on the GPUs, all of them together.

    ``exact`` says that they come from the headers of the files; ``unused`` is in the files and not loaded (drafts for
    speculative decoding, a head that is tied to the embedding).
    """

    layers: tuple[LayerWeights, ...]
    embedding: int
    head: int
    tower: int
    tower_whole: int
    other: int
    unused: int
    exact: bool
    tensors: int = 0
    dtypes: t.Mapping[str, int] | None = None

    @property
    def total(self) -> int:
        """Bytes to load for one copy of the model."""
        layers = sum(layer.split + layer.key_value + layer.whole for layer in self.layers)
        return layers + self.embedding + self.head + self.tower + self.tower_whole + self.other

    def as_dict(self) -> dict[str, t.Any]:
        """Plain data; :func:`weights_of` reads it."""
        return {
            "exact": self.exact,
            "total_bytes": self.total,
            "layers": [[layer.split, layer.key_value, layer.whole] for layer in self.layers],
            "embedding": self.embedding,
            "head": self.head,
            "tower": self.tower,
            "tower_whole": self.tower_whole,
            "other": self.other,
            "unused": self.unused,
            "tensors": self.tensors,
            "dtypes": dict(self.dtypes or {}),
        }


def weights_of(values: object) -> Weights:
    """What :meth:`Weights.as_dict` wrote. Raises FleetError for anything else."""
    read = Reader(values, "weights.")
    rows = read.values.get("layers")
    if not isinstance(rows, list) or len(rows) > _LAYERS_MAX:
        raise bad_config("weights.layers", None, f"a list of at most {_LAYERS_MAX} layers")
    layers = []
    for row in rows:
        one = Reader(
            dict(zip(("split", "key_value", "whole"), row)) if isinstance(row, list) else row, "weights.layers."
        )
        layers.append(LayerWeights(*(one.count((name,), 0, _BYTES_MAX) for name in ("split", "key_value", "whole"))))

    def part(name: str) -> int:
        return read.count((name,), 0, _BYTES_MAX, default=0)

    return Weights(
        layers=tuple(layers),
        embedding=part("embedding"),
        head=part("head"),
        tower=part("tower"),
        tower_whole=part("tower_whole"),
        other=part("other"),
        unused=part("unused"),
        exact=read.flag("exact", False),
        tensors=part("tensors"),
    )


# --- from the headers ------------------------------------------------------------------------------------------------


def from_tensors(model: Model, tensors: t.Iterable[Tensor]) -> Weights:
    """Weights from the tensors of the files, grouped by their names."""
    layers = [[0, 0, 0] for _number in range(model.layers)]
    sums = dict.fromkeys(("embedding", "head", "tower", "tower_whole", "other", "unused"), 0)
    dtypes: dict[str, int] = {}
    count = 0
    for tensor in tensors:
        count += 1
        dtypes[tensor.dtype] = dtypes.get(tensor.dtype, 0) + tensor.size
        size = _loaded_size(model, tensor)
        group, layer = _place(model, tensor.name)
        if layer < 0:
            sums[group] += size
        else:
            for part, share in enumerate(_shares(model, tensor.name, size)):
                layers[layer][part] += share
    return Weights(layers=tuple(LayerWeights(*row) for row in layers), exact=True, tensors=count, dtypes=dtypes, **sums)


def _loaded_size(model: Model, tensor: Tensor) -> int:
    """Bytes on a GPU: vLLM loads the values of a model that is not quantised in the model's dtype."""
    if model.quantization is None and tensor.dtype in _MODEL_DTYPES and "correction_bias" not in tensor.name:
        return tensor.elements * model.dtype_bytes
    return tensor.size


def _place(model: Model, name: str) -> tuple[str, int]:
    """The group of a tensor, and its layer where it belongs to one of the language model (else -1)."""
    if _UNUSED.search(name):
        return "unused", -1
    encoder = model.encoder_decoder and re.search(r"(?:^|\.)encoder\.", name) is not None
    if encoder or _TOWER.search(name):
        return ("tower_whole" if _WHOLE.search(name) or "conv" in name or "embed" in name else "tower"), -1
    if _HEAD.search(name):
        return ("unused" if model.tied else "head"), -1
    found = _LAYER.search(name)
    if found is not None:
        layer = int(found.group(1)[:6])
        return ("layers", layer) if layer < model.layers else ("unused", -1)
    return ("embedding" if _EMBEDDING.search(name) else "other"), -1


def _shares(model: Model, name: str, size: int) -> tuple[int, int, int]:
    """(split, key_value, whole) of a layer's tensor."""
    if _WHOLE.search(name) and ".experts." not in name:
        return 0, 0, size
    if _KEY_VALUE.search(name):
        return 0, size, 0
    if _FUSED.search(name) and model.mla is None:
        key_value = size * 2 * model.kv_heads // max(1, model.heads + 2 * model.kv_heads)
        return size - key_value, key_value, 0
    return size, 0, 0


# --- from the config -------------------------------------------------------------------------------------------------


def from_config(model: Model, total_bytes: int | None = None) -> Weights:
    """Weights from the architecture alone: an estimate, scaled to ``total_bytes`` where the files' size is known."""
    layers = tuple(_layer(model, number) for number in range(model.layers))
    embedding = model.vocab * model.hidden * model.dtype_bytes
    tower = sum(_tower_values(tower, model.hidden) for tower in model.towers) * model.dtype_bytes
    estimate = Weights(
        layers=layers,
        embedding=embedding,
        head=0 if model.tied else embedding,
        tower=tower,
        tower_whole=0,
        other=model.hidden * model.dtype_bytes,
        unused=0,
        exact=False,
    )
    return estimate if not total_bytes else _scaled(estimate, total_bytes)


def _scaled(weights: Weights, total: int) -> Weights:
    """The same in ``total`` bytes: what is quantised are the layers, so they take up the difference where they can."""
    rest = weights.total - sum(layer.split + layer.key_value for layer in weights.layers)
    scalable = weights.total - rest
    if total > rest and scalable:
        layers = tuple(
            replace(
                layer,
                split=layer.split * (total - rest) // scalable,
                key_value=layer.key_value * (total - rest) // scalable,
            )
            for layer in weights.layers
        )
        return replace(weights, layers=layers)
    whole = max(1, weights.total)
    return Weights(
        layers=tuple(
            LayerWeights(layer.split * total // whole, layer.key_value * total // whole, layer.whole * total // whole)
            for layer in weights.layers
        ),
        embedding=weights.embedding * total // whole,
        head=weights.head * total // whole,
        tower=weights.tower * total // whole,
        tower_whole=0,
        other=weights.other * total // whole,
        unused=0,
        exact=False,
    )


def expert_part(model: Model, number: int) -> float:
    """The part of a layer's split weights that are its experts'; data parallel groups share these among them."""
    if model.moe is None or number < model.moe.dense_layers:
        return 0.0
    matrices = 3 if model.gated else 2
    experts = matrices * model.hidden * model.moe.experts * model.moe.intermediate
    bits = 8 * model.dtype_bytes if model.quantization is None else model.quantization.bits
    return min(1.0, experts * bits / 8 / max(1, _layer(model, number).split))


def _layer(model: Model, number: int) -> LayerWeights:
    """Bytes of one layer from the shapes that its config implies."""
    hidden = model.hidden
    split, key_value, whole = 0, 0, 4 * hidden * model.dtype_bytes
    bits: float = 8 * model.dtype_bytes
    if model.quantization is not None:
        # A scale and a zero point of 16 bits and of the weights' width stand for each group.
        group = model.quantization.group
        bits = model.quantization.bits + ((16 + model.quantization.bits) / group if group else 0)
    kind = model.kinds[number]
    if model.mla is not None and kind == "full":
        mla = model.mla
        head = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        down = hidden * (mla.q_lora_rank + mla.kv_lora_rank + mla.qk_rope_head_dim)
        query = (mla.q_lora_rank or hidden) * model.heads * head
        up = mla.kv_lora_rank * model.heads * (mla.qk_nope_head_dim + mla.v_head_dim)
        split += query + up + model.heads * mla.v_head_dim * hidden
        whole += int(down * bits / 8)
    elif kind == "state":
        values = model.state.recurrent if model.state is not None else 0
        split += 4 * hidden * hidden if not values else 3 * hidden * max(hidden, values // 128)
    elif kind != "none":
        split += 2 * hidden * model.heads * model.head_dim * (2 if model.encoder_decoder else 1)
        key_value += 2 * hidden * model.kv_heads * model.head_dim * (2 if model.encoder_decoder else 1)
    matrices = 3 if model.gated else 2
    if model.moe is not None and number >= model.moe.dense_layers:
        split += matrices * hidden * (model.moe.experts * model.moe.intermediate + model.moe.shared)
        whole += hidden * model.moe.experts * model.dtype_bytes
    else:
        split += matrices * hidden * model.intermediate
    return LayerWeights(int(split * bits / 8), int(key_value * bits / 8), whole)


def _tower_values(tower: Tower, hidden: int) -> int:
    matrices = 3 if tower.gated else 2
    layer = 4 * tower.hidden * tower.hidden + matrices * tower.hidden * tower.intermediate
    merged = tower.hidden * tower.merge
    joint = merged * (merged + tower.out_hidden) if tower.out_hidden else tower.hidden * hidden
    return tower.layers * layer + tower.hidden * tower.inputs + joint


# --- on one GPU ------------------------------------------------------------------------------------------------------


ONLINE: t.Mapping[str, float] = {
    "fp8": 0.5,
    "fp8_per_tensor": 0.5,
    "fp8_per_block": 0.5,
    "ptpc_fp8": 0.5,
    "experts_int8": 0.5,
    "int8_per_channel_weight_only": 0.5,
    "mxfp8": 0.52,
    "mxfp4": 0.27,
    "bitsandbytes": 0.28,
}
"""What is left of the layers' 16-bit weights when ``--quantization`` makes them smaller while loading."""


def quantised_online(weights: Weights, factor: float) -> Weights:
    """The weights after ``--quantization`` on a checkpoint that is not quantised: the layers shrink, nothing else."""
    layers = tuple(
        replace(layer, split=int(layer.split * factor), key_value=int(layer.key_value * factor))
        for layer in weights.layers
    )
    return replace(weights, layers=layers, exact=False)


def _up(size: int, parts: int) -> int:
    return -(-size // max(1, parts))
