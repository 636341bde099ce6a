# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What vLLM needs beside weights and cache: activations, CUDA graphs, contexts. Estimates, each with its source.

vLLM measures these when it boots (a profiling run with the largest batch, then a few captured graphs). Nothing but
that run knows them exactly, so they are reckoned from the shapes that bound them, and held against published boot logs
in the tests. :mod:`_boot_log` compares them with the log of a real boot.
"""

from __future__ import annotations

import typing as t

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import largest_item

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._config_towers import Tower
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model

MIB = 2**20
GIB = 2**30

DEFAULT_UTILIZATION = 0.92
"""``--gpu-memory-utilization`` where nobody says otherwise (config/cache.py of 0.33; 0.9 before)."""

DRIVER_BYTES = 512 * MIB
"""What the driver keeps of a card: CUDA sees so much less than nvidia-smi's memory.total. 44.99 GiB of an L40S are 44.4
for CUDA, 79.65 of an H100 79.2, 80.00 of an A100 79.25, 22.49 of an A10 22.06. Of a small card, or a part of one, it is
no more than a fortieth."""

CONTEXT_BYTES = 550 * MIB
"""The CUDA context, its modules and libraries on a card. Taken before vLLM measures, so outside of the budget."""

COMMUNICATION_BYTES = 450 * MIB
"""NCCL's and the custom all-reduce's buffers in a group of GPUs. Outside of the budget as well: the group is formed
before the first measurement (v1/worker/gpu_worker.py, init_device)."""

WORKSPACE_BYTES = 512 * MIB
"""Workspaces of attention and matrix kernels, sampling buffers and what the allocator cannot give back. Published logs
leave 0.25 GiB (vLLM 0.10) to 0.9 GiB (0.22) for them."""

GRAPH_BYTES_PER_LAYER = 288 * 1024
"""Memory of one captured graph per layer, from published logs: 0.53 to 0.78 GiB for 86 graphs of 28 to 32 layers."""

_GRAPHS_BASE = 32 * MIB
_GRAPH_SIZE_MAX = 512


def cuda_bytes(memory_total_bytes: int) -> int:
    """A card's memory as CUDA, and with it vLLM, sees it; ``memory_total_bytes`` is nvidia-smi's."""
    return max(1, memory_total_bytes - min(DRIVER_BYTES, memory_total_bytes // 40))


def batch_defaults(memory_total_bytes: int, gpu_name: str = "") -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) of the API server, by the card (``get_batch_defaults``)."""
    if memory_total_bytes >= 160 * GIB:
        return 16384, 1024
    if memory_total_bytes >= 70 * GIB and "a100" not in gpu_name.lower() and "gb10" not in gpu_name.lower():
        return 8192, 1024
    return 2048, 256


def capture_sizes(largest: int) -> int:
    """How many batch sizes vLLM captures up to ``largest``: 1, 2, 4, multiples of 8 below 256, of 16 from there."""
    if largest < 1:
        return 0
    small = len([size for size in (1, 2, 4) if size <= largest])
    return small + max(0, min(largest, 255) // 8) + (max(0, (largest - 256) // 16 + 1) if largest >= 256 else 0)


def graph_bytes(layers: int, max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """CUDA graphs on one GPU: piecewise ones up to twice the sequences, full ones up to the sequences; 512 at most."""
    piecewise = capture_sizes(min(2 * max_num_seqs, _GRAPH_SIZE_MAX, max_num_batched_tokens))
    full = capture_sizes(min(max_num_seqs, _GRAPH_SIZE_MAX, max_num_batched_tokens))
    return _GRAPHS_BASE + (piecewise + full) * layers * GRAPH_BYTES_PER_LAYER


def activation_bytes(model: Model, tensor_parallel: int, max_num_batched_tokens: int) -> int:
    """The widest moment of a forward pass of ``max_num_batched_tokens``: a layer's MLP or its attention.

    Per token: hidden state, residual, norm and output, and beside them either gate, up and their product (1/TP of
    them), or queries, keys, values and the attention's output (1/TP of the heads). Experts work on as many copies of a
    token as it has experts.
    """
    hidden = 4 * model.hidden
    matrices = 3 if model.gated else 2
    mlp = matrices * -(-model.intermediate // tensor_parallel)
    if model.moe is not None:
        per_token = model.moe.experts_per_token * -(-model.moe.intermediate // tensor_parallel)
        shared = -(-model.moe.shared // tensor_parallel)
        mlp = matrices * (per_token + shared) + model.moe.experts_per_token * model.hidden
    heads = -(-model.heads // tensor_parallel)
    if model.mla is not None:
        mla = model.mla
        queries = 2 * heads * (mla.qk_nope_head_dim + mla.qk_rope_head_dim) + heads * mla.kv_lora_rank
        attention = queries + heads * mla.v_head_dim + 2 * (mla.kv_lora_rank + mla.qk_rope_head_dim)
    else:
        attention = 2 * heads * model.head_dim + 2 * max(1, model.kv_heads // tensor_parallel) * model.head_dim
    return max_num_batched_tokens * (hidden + max(mlp, attention)) * model.dtype_bytes


def logits_bytes(model: Model, max_num_seqs: int, max_num_batched_tokens: int) -> int:
    """The logits of a full batch on the GPU that samples: in the model's dtype, as float32, and once more for sampling.

    Every GPU of the group holds all of them.
    """
    rows = min(max_num_seqs, max_num_batched_tokens)
    return rows * model.vocab * (model.dtype_bytes + 8)


def encoder_bytes(tower: Tower, hidden: int, positions: int, tokens: int, tensor_parallel: int, value: int) -> int:
    """An encoder at work on ``positions`` patches: inputs in float32 and the model's dtype, then its widest layer.

    ``tensor_parallel`` is 1 where each GPU runs the whole encoder (``--mm-encoder-tp-mode data``). The result stays in
    the encoder's cache while the decoder is profiled.
    """
    matrices = 3 if tower.gated else 2
    mlp = matrices * -(-tower.intermediate // tensor_parallel) + 3 * tower.hidden
    attention = 6 * -(-tower.hidden // tensor_parallel) + 3 * tower.hidden
    layer = max(mlp, attention) * value
    return positions * (layer + tower.inputs * (4 + value)) + 2 * tokens * (tower.out_hidden or hidden) * value


def encoders_bytes(
    model: Model,
    max_model_len: int,
    max_num_batched_tokens: int,
    tensor_parallel: int,
    limits: t.Mapping[str, int],
    pixels: int = 0,
    data_parallel: bool = False,
) -> int:
    """The largest profiling run of any encoder: as many of its largest items as the budget of a batch holds."""
    worst = 0
    for tower in model.towers:
        positions, tokens = largest_item(tower, max_model_len, limits, pixels)
        if not positions:
            continue
        budget = max(max_num_batched_tokens, tokens)
        items = max(1, budget // max(1, tokens))
        parts = 1 if data_parallel else tensor_parallel
        worst = max(
            worst,
            encoder_bytes(tower, model.hidden, items * positions, items * tokens, parts, model.dtype_bytes),
        )
    return worst
