# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""The KV cache: bytes per token, per request and per block, as vLLM 0.33 lays it out. Formulas, not estimates.

Sources: ``v1/kv_cache_interface.py`` (what a layer needs), ``v1/core/kv_cache_planning.py`` (groups of layers and
their padding), ``platforms/interface.py`` (blocks of hybrid models), ``config/model.py`` (heads on a GPU).
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._config_layers import CHUNKED, FULL, NONE, SLIDING, STATE

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model

BLOCK_TOKENS = 16
"""Tokens of a block (``--block-size``) where nobody says otherwise; some attention backends raise it."""

# Bits of a value by --kv-cache-dtype; nvfp4 carries a scale of eight bits for sixteen values.
_DTYPE_BITS: t.Mapping[str, float] = {
    "fp8": 8,
    "fp8_e4m3": 8,
    "fp8_e5m2": 8,
    "fp8_ds_mla": 8,
    "fp8_inc": 8,
    "fp8_per_token_head": 8,
    "int8_per_token_head": 8,
    "int4_per_token_head": 4,
    "nvfp4": 4.5,
    "nvfp4_4over6": 4.5,
    "float16": 16,
    "bfloat16": 16,
    "half": 16,
}
_PER_TOKEN_HEAD_SCALE = 4
# A token of a layer with sparse latent attention: 512 values in FP8, four scales and the rotated part in 16 bits.
_SPARSE_MLA_BYTES = {"fp8": 656, "nvfp4": 352}
_INDEXER_SCALE_BYTES = 4


@dataclass(frozen=True)
class Group:
    """Layers of one kind in one pipeline stage: ``token_bytes`` is what one token takes in one of them on one GPU."""

    kind: str
    layers: int
    token_bytes: int
    state_bytes: int = 0


@dataclass(frozen=True)
class Cache:
    """The cache of one GPU. A request takes blocks from one pool; ``block_bytes`` is the size of one of them.

    ``state_blocks`` is what a layer without a growing cache takes: one for the state, and one that prefix caching keeps
    of the past (``mamba_cache_mode`` align).
    """

    groups: tuple[Group, ...]
    group_layers: int
    page_bytes: int
    block_tokens: int
    window: int
    chunk: int
    cross_tokens: int = 0
    state_blocks: int = 2

    @property
    def block_bytes(self) -> int:
        return self.group_layers * self.page_bytes

    @property
    def token_bytes(self) -> int:
        """Bytes that one more token takes while no window is full, all layers together."""
        return sum(group.layers * group.token_bytes for group in self.groups)

    def blocks(self, length: int, in_flight: int) -> int:
        """Blocks that vLLM sets aside for one request of ``length`` tokens.

        ``in_flight`` are the tokens that can be scheduled and not yet settled: a sliding window keeps them too
        (``SlidingWindowSpec.max_admission_blocks_per_request``).
        """
        total = 0
        for group in self.groups:
            parts = -(-group.layers // self.group_layers)
            total += parts * self._group_blocks(group, max(1, length), in_flight)
        if self.cross_tokens:
            total += self._cross_parts() * -(-self.cross_tokens // self.block_tokens)
        return total

    def used_bytes(self, length: int, encoder_positions: int, in_flight: int) -> int:
        """Bytes that a request of ``length`` tokens really holds: of cross attention, no more than its one item."""
        cross = min(self.cross_tokens, encoder_positions)
        return replace(self, cross_tokens=cross).request_bytes(length, in_flight)

    def request_bytes(self, length: int, in_flight: int) -> int:
        """Bytes of the blocks of one request."""
        return self.blocks(length, in_flight) * self.block_bytes

    def longest(self, available: int, in_flight: int, limit: int) -> int:
        """The most tokens, up to ``limit``, of which one request fits into ``available`` bytes; 0 for none at all.

        As vLLM's ``_estimate_max_model_len_from_groups``: by halves, since need never falls with length.
        """
        usable = available - self.block_bytes  # one block is the pool's own
        if usable < self.request_bytes(1, in_flight) or limit < 1:
            return 0
        low, high = 1, limit
        while low < high:
            middle = (low + high + 1) // 2
            if self.request_bytes(middle, in_flight) <= usable:
                low = middle
            else:
                high = middle - 1
        return low

    def concurrency(self, available: int, length: int, in_flight: int) -> float:
        """Requests of ``length`` tokens that fit at once; vLLM logs it as ``Maximum concurrency``."""
        blocks = self.blocks(length, in_flight)
        return max(0, available // max(1, self.block_bytes)) / blocks if blocks else 0.0

    def _group_blocks(self, group: Group, length: int, in_flight: int) -> int:
        if group.kind == STATE:
            return self.state_blocks
        tokens = self._tokens_of_block(group)
        if group.kind == SLIDING:
            return -(-min(self.window - 1 + in_flight, length) // tokens) + 1
        if group.kind == CHUNKED:
            return -(-min(self.chunk + in_flight, length) // tokens)
        return -(-length // tokens)

    def _tokens_of_block(self, group: Group) -> int:
        """A group with smaller pages puts more tokens into one, so that all pages are of one size."""
        ratio = self.page_bytes // max(1, group.token_bytes * self.block_tokens)
        return self.block_tokens * max(1, ratio)

    def _cross_parts(self) -> int:
        layers = sum(group.layers for group in self.groups)
        return -(-layers // self.group_layers)


def known_dtype(dtype: str) -> bool:
    """Whether the bytes of a value of ``--kv-cache-dtype`` are known; of packed ones they are not."""
    return dtype in ("auto", "") or dtype in _DTYPE_BITS


def value_bits(dtype: str, model_bytes: int) -> float:
    """Bits of one cached value for ``--kv-cache-dtype``; auto is the model's own dtype."""
    return _DTYPE_BITS.get(dtype, 8 * model_bytes)


def heads_on_gpu(kv_heads: int, tensor_parallel: int) -> int:
    """KV heads on one GPU: divided, and repeated where there are more GPUs (``get_num_kv_heads``)."""
    return max(1, kv_heads // max(1, tensor_parallel))


def layer_token_bytes(model: Model, kind: str, tensor_parallel: int, dtype: str = "auto") -> int:
    """Bytes that one token takes in one layer on one GPU.

    GQA and MHA: 2 x heads on the GPU x head size x bytes of a value. MLA: (kv_lora_rank + qk_rope_head_dim) x bytes,
    and the same on every GPU, since there is one latent head; a sparse indexer keeps a key in FP8 beside it.
    """
    bits = value_bits(dtype, model.dtype_bytes)
    if model.mla is not None:
        mla = model.mla
        width = mla.kv_lora_rank + mla.qk_rope_head_dim
        if not mla.indexer:
            return int(width * bits / 8)
        # Models with a sparse indexer cache in FP8 unless told otherwise.
        packed = _SPARSE_MLA_BYTES.get("nvfp4" if "nvfp4" in dtype else "fp8", 0) if _is_small(dtype) else 2 * width
        return packed + mla.indexer + _INDEXER_SCALE_BYTES
    heads, size = model.kv_heads, model.head_dim
    if kind == FULL and model.global_head_dim:
        heads, size = model.global_kv_heads or heads, model.global_head_dim
    on_gpu = heads_on_gpu(heads, tensor_parallel)
    scales = 2 * on_gpu * _PER_TOKEN_HEAD_SCALE if dtype.endswith("per_token_head") else 0
    return int(2 * on_gpu * size * bits / 8) + scales


def cache_of(
    model: Model,
    layers: t.Sequence[int],
    tensor_parallel: int,
    dtype: str = "auto",
    cross_tokens: int = 0,
    block_tokens: int = BLOCK_TOKENS,
    prefix_caching: bool = True,
) -> Cache:
    """The cache of one GPU that runs ``layers`` (their numbers)."""
    last = model.layers - model.shared_kv_layers  # later layers read the cache of earlier ones
    counts: dict[str, int] = {}
    for number in layers:
        kind = model.kinds[number]
        if kind != NONE and number < last:
            counts[kind] = counts.get(kind, 0) + 1
    groups = []
    for kind, count in sorted(counts.items()):
        if kind == STATE:
            groups.append(Group(kind, count, 0, state_bytes(model, tensor_parallel)))
        else:
            groups.append(Group(kind, count, layer_token_bytes(model, kind, tensor_parallel, dtype)))
    widest = max((group.token_bytes for group in groups), default=0)
    state = max((group.state_bytes for group in groups), default=0)
    if state and widest:
        # Attention blocks of a hybrid model are made as large as a state.
        block_tokens = block_tokens * max(1, -(-state // (block_tokens * widest)))
    page = max(widest * block_tokens, state, 1)
    return Cache(
        groups=tuple(groups),
        group_layers=_group_layers([group.layers for group in groups]),
        page_bytes=page,
        block_tokens=block_tokens,
        window=model.window,
        chunk=model.chunk,
        cross_tokens=cross_tokens,
        state_blocks=2 if prefix_caching else 1,
    )


def state_bytes(model: Model, tensor_parallel: int) -> int:
    """Bytes of the state of one mamba or linear attention layer on one GPU; 0 where its form is not known."""
    if model.state is None:
        return 0
    conv = model.state.conv * model.dtype_bytes
    return -(-(conv + model.state.recurrent * model.state.recurrent_bytes) // max(1, tensor_parallel))


def stage_layers(layers: int, stages: int) -> list[range]:
    """The layers of each pipeline stage, as vLLM's ``get_pp_indices`` deals them out."""
    each, rest = divmod(layers, max(1, stages))
    counts = [each] * max(1, stages)
    for number in range(2, rest + 2):
        counts[-number] += 1
    starts = [sum(counts[:number]) for number in range(len(counts))]
    return [range(start, start + count) for start, count in zip(starts, counts)]


def _group_layers(counts: t.Sequence[int]) -> int:
    """Layers that share one block table: the smallest number of any kind, or the largest where that pads less."""
    if not counts:
        return 1
    smallest, largest = min(counts), max(counts)
    return largest if largest < 1.5 * smallest else smallest


def _is_small(dtype: str) -> bool:
    return dtype in ("auto", "") or dtype.startswith(("fp8", "nvfp4"))
