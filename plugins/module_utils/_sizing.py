# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""How much memory a vLLM service needs on each GPU, and how long a context then fits. Pure arithmetic, no I/O.

vLLM's own sum (``v1/worker/gpu_worker.py``, ``determine_available_memory``)::

    budget = ceil(total x gpu_memory_utilization)      and at start-up free memory >= budget
    KV cache = budget - weights - peak of activations - CUDA graphs

The service starts if one request of ``max_model_len`` tokens fits into the cache. Weights and cache are formulas over
the model's headers and config; the peak, the graphs and the contexts are estimates (see :mod:`_sizing_peak`).
"""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, field, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils import _kv_cache, _model_weights, _sizing_peak
from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model, read_config

GIB = _sizing_peak.GIB
MIB = _sizing_peak.MIB

WEIGHTS = "weights"
EMBEDDINGS = "embedding and head"
ENCODER = "encoder weights"
ACTIVATIONS = "activations (peak)"
ENCODER_PEAK = "encoder at work (peak)"
WORKSPACE = "workspaces"
GRAPHS = "CUDA graphs"
REQUEST = "KV cache of one request"
SPARE = "KV cache beyond it"
SHORT = "short"
OUTSIDE = "outside of the budget"

ESTIMATED = frozenset({ACTIVATIONS, ENCODER_PEAK, WORKSPACE, GRAPHS})
"""Rows that are estimates; :data:`SPARE` and :data:`SHORT` are what they leave."""

Row = tuple[str, int]

LENGTH_FALLBACK = 2048
"""vLLM's own for a config that tells no length."""


@dataclass(frozen=True)
class Demand:
    """How a service shall run. ``memory_total_bytes`` is that of a card as CUDA sees it (``_sizing_peak.cuda_bytes``),
    ``max_model_len`` None or 0 the model's own; the rest follows vLLM's flags. ``doubt`` names what is asked for and
    not reckoned, and may make the sum smaller."""

    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    memory_total_bytes: int = 80 * GIB
    gpu_name: str = ""
    utilization: float = _sizing_peak.DEFAULT_UTILIZATION
    max_model_len: int | None = None
    kv_cache_dtype: str = "auto"
    quantization: str = ""
    max_num_batched_tokens: int | None = None
    max_num_seqs: int | None = None
    enforce_eager: bool = False
    kv_cache_memory_bytes: int | None = None
    block_size: int = _kv_cache.BLOCK_TOKENS
    prefix_caching: bool = True
    limits: t.Mapping[str, int] = field(default_factory=dict)
    max_pixels: int = 0
    encoder_data_parallel: bool = False
    expert_parallel: bool = False
    skip_encoder_profiling: bool = False
    data_parallel: int = 1
    context_parallel: int = 1
    cpu_offload_bytes: int = 0
    doubt: str = ""


@dataclass(frozen=True)
class Sizing:
    """The sum for one GPU, that of the fullest pipeline stage. All sizes in bytes.

    ``rows`` add up to ``budget_bytes`` where the service fits; where it does not, the row :data:`SHORT` says by how
    much they exceed it. ``kv_request_bytes`` is what vLLM sets aside for one request of ``max_model_len`` tokens, and
    ``kv_used_bytes`` what such a request holds (less, for an encoder-decoder model). ``max_len_fitting`` is the longest
    context that fits the cache that there is, and ``concurrency`` how many requests of ``max_model_len`` fit at once.
    ``exact_weights`` says that the weights come from the headers of the files. ``enough`` is, for a model that is small
    for its card and has the whole of it, the share and the bytes of cache that would do: (utilization, bytes).
    """

    rows: tuple[Row, ...]
    fits: bool
    memory_total_bytes: int
    budget_bytes: int
    needed_bytes: int
    weights_bytes: int
    kv_bytes_per_token: int
    kv_request_bytes: int
    kv_used_bytes: int
    kv_available_bytes: int
    max_model_len: int
    max_len_fitting: int
    concurrency: float
    outside_bytes: int
    tensor_parallel: int
    pipeline_parallel: int
    utilization: float
    exact_weights: bool
    enough: tuple[float, int] | None = None

    @property
    def short_bytes(self) -> int:
        """What one request of ``max_model_len`` lacks; 0 where it fits."""
        return max(0, self.needed_bytes - self.budget_bytes)

    @property
    def margin_bytes(self) -> int:
        """How far the sum may be above what vLLM needs: half a GiB, all of graphs (that releases before 0.21 take
        beside the budget) and workspaces, half of the other estimates, and 2 % of weights that are reckoned from the
        config. What misses by more cannot start."""
        rows = dict(self.rows)
        halves = rows.get(ACTIVATIONS, 0) + rows.get(ENCODER_PEAK, 0)
        wholes = rows.get(GRAPHS, 0) + rows.get(WORKSPACE, 0)
        return 512 * MIB + wholes + halves // 2 + (0 if self.exact_weights else self.weights_bytes // 50)

    @property
    def slack(self) -> float:
        """The part of the budget that is left when one request of the full length is served."""
        return (self.budget_bytes - self.needed_bytes) / self.budget_bytes if self.budget_bytes else 0.0

    def as_dict(self) -> dict[str, t.Any]:
        """Plain data, for plans and reports."""
        return {
            "rows": [
                {"label": label, "bytes": size, "estimate": label in ESTIMATED or not self.exact_weights}
                if label in (WEIGHTS, EMBEDDINGS, ENCODER)
                else {"label": label, "bytes": size, "estimate": label in ESTIMATED or label in (SPARE, SHORT)}
                for label, size in self.rows
            ],
            "fits": self.fits,
            "memory_total_bytes": self.memory_total_bytes,
            "budget_bytes": self.budget_bytes,
            "needed_bytes": self.needed_bytes,
            "weights_bytes": self.weights_bytes,
            "kv_bytes_per_token": self.kv_bytes_per_token,
            "kv_request_bytes": self.kv_request_bytes,
            "kv_used_bytes": self.kv_used_bytes,
            "kv_available_bytes": self.kv_available_bytes,
            "max_model_len": self.max_model_len,
            "max_len_fitting": self.max_len_fitting,
            "concurrency": round(self.concurrency, 2),
            "outside_bytes": self.outside_bytes,
            "margin_bytes": self.margin_bytes,
            "tensor_parallel_size": self.tensor_parallel,
            "pipeline_parallel_size": self.pipeline_parallel,
            "gpu_memory_utilization": self.utilization,
            "exact_weights": self.exact_weights,
            "enough": {"gpu_memory_utilization": self.enough[0], "kv_cache_memory_bytes": self.enough[1]}
            if self.enough
            else None,
        }

    def as_table(self) -> str:
        """The sum as a person reads it, one GPU::

        weights                       13.19 GiB
        activations (peak)             0.36 GiB  estimate
        KV cache of one request        1.71 GiB  32,000 tokens, 56.0 KiB each
        """
        lines = []
        for label, size in self.rows:
            lines.append(_line(label, size, self._note(label)))
        lines.append(_line("budget", self.budget_bytes, f"{self.utilization:g} of {gib(self.memory_total_bytes)}"))
        lines.append(_line(OUTSIDE, self.outside_bytes, "CUDA context and NCCL, estimate"))
        return "\n".join(lines)

    def _note(self, label: str) -> str:
        if label in ESTIMATED or (label in (WEIGHTS, EMBEDDINGS, ENCODER) and not self.exact_weights):
            return "estimate"
        if label == REQUEST:
            return f"{self.max_model_len:,} tokens, {self.kv_bytes_per_token / 1024:,.1f} KiB each"
        if label == SPARE:
            return f"{self.concurrency:.2f} requests of this length at once"
        return ""


def model_of(entry: object) -> Model:
    """The model of one entry of ``models`` as vllm_model_info returns it. Raises FleetError.

    ``entry`` needs ``config``; weights come from ``weights`` where the headers were read, else from the config and
    ``bytes_total``.
    """
    if not isinstance(entry, dict):
        raise _no_entry("it is no mapping")
    error = entry.get("error")
    if isinstance(error, dict):
        raise FleetError(*(_clean(error.get(key)) for key in ("code", "seen", "expected", "remedy")))
    model = read_config(entry.get("config"))
    if isinstance(entry.get("weights"), dict):
        weights = _model_weights.weights_of(entry["weights"])
        if len(weights.layers) == model.layers:
            return replace(model, weights=weights)
    total = entry.get("bytes_total")
    usable = isinstance(total, int) and not isinstance(total, bool) and total > 0
    return replace(model, weights=_model_weights.from_config(model, total if usable else None))


def size(
    model: Model,
    *,
    tensor_parallel: int = 1,
    pipeline_parallel: int = 1,
    memory_total_bytes: int = 80 * GIB,
    utilization: float = _sizing_peak.DEFAULT_UTILIZATION,
    max_model_len: int | None = None,
    kv_cache_dtype: str = "auto",
    quantization: str = "",
    max_num_batched_tokens: int | None = None,
    max_num_seqs: int | None = None,
    **others: t.Any,
) -> Sizing:
    """The sum for one GPU; the arguments are those of :class:`Demand`."""
    return size_of(
        model,
        Demand(
            tensor_parallel=tensor_parallel,
            pipeline_parallel=pipeline_parallel,
            memory_total_bytes=memory_total_bytes,
            utilization=utilization,
            max_model_len=max_model_len,
            kv_cache_dtype=kv_cache_dtype,
            quantization=quantization,
            max_num_batched_tokens=max_num_batched_tokens,
            max_num_seqs=max_num_seqs,
            **others,
        ),
    )


def size_of(model: Model, demand: Demand) -> Sizing:
    """The sum for the GPU with the least room for the cache, among the pipeline's stages."""
    if demand.pipeline_parallel > model.layers:  # which is a fault of its own
        demand = replace(demand, pipeline_parallel=model.layers)
    stages = _kv_cache.stage_layers(model.layers, demand.pipeline_parallel)
    sums = [_stage(model, demand, stage, layers) for stage, layers in enumerate(stages)]
    return min(sums, key=lambda one: (one.max_len_fitting, one.slack))


def longest_context(model: Model, demand: Demand) -> int:
    """The most tokens, up to ``max_model_len`` or the model's own length, with which the service starts; 0 for none.

    A shorter context can make room for more of itself: vLLM profiles the encoder with the longest video that fits it.
    """
    low, high = 0, context_length(model, demand)
    while low < high:
        middle = (low + high + 1) // 2
        if size_of(model, replace(demand, max_model_len=middle)).fits:
            low = middle
        else:
            high = middle - 1
    return low


def context_length(model: Model, demand: Demand) -> int:
    """``max_model_len``, or the model's own length where nobody says one."""
    return demand.max_model_len or model.default_length or LENGTH_FALLBACK


def cache_dtype(model: Model, demand: Demand) -> str:
    """``--kv-cache-dtype``, or what the checkpoint says where that is auto."""
    told = model.quantization.cache if model.quantization is not None else ""
    return told if told and demand.kv_cache_dtype in ("", "auto") else demand.kv_cache_dtype


def batch_of(model: Model, demand: Demand) -> tuple[int, int]:
    """(max_num_batched_tokens, max_num_seqs) as vLLM sets them (``engine/arg_utils.py``)."""
    tokens, sequences = _sizing_peak.batch_defaults(demand.memory_total_bytes, demand.gpu_name)
    sequences = demand.max_num_seqs or sequences
    if demand.max_num_batched_tokens:
        return demand.max_num_batched_tokens, sequences
    length = context_length(model, demand)
    if model.encoder_decoder:  # no chunked prefill
        tokens = max(tokens, length)
    return max(1, min(tokens, sequences * length)), sequences


def in_flight(demand: Demand, batched: int) -> int:
    """Tokens that may be scheduled and not settled: one batch for each step at once (``max_in_flight_tokens``).

    Asynchronous scheduling, which is the default, has one step more than pipeline stages.
    """
    return (demand.pipeline_parallel + 1) * batched


def weights_for(model: Model, demand: Demand) -> _model_weights.Weights:
    """The weights that this service loads: from the headers or the config, smaller where it quantises while loading."""
    weights = model.weights or _model_weights.from_config(model)
    factor = _model_weights.ONLINE.get(demand.quantization)
    if factor is None or model.quantization is not None:
        return weights
    return _model_weights.quantised_online(weights, factor)


def _stage(model: Model, demand: Demand, stage: int, layers: range) -> Sizing:
    """The sum for one GPU of one pipeline stage."""
    parallel = max(1, demand.tensor_parallel)
    first, last = stage == 0, stage == demand.pipeline_parallel - 1
    weights = weights_for(model, demand)
    batched, sequences = batch_of(model, demand)
    length = context_length(model, demand)
    flight = in_flight(demand, batched)
    cache = _kv_cache.cache_of(
        model,
        layers,
        parallel,
        cache_dtype(model, demand),
        cross_tokens=batched if model.encoder_decoder else 0,
        block_tokens=demand.block_size,
        prefix_caching=demand.prefix_caching,
    )
    fixed = dict(_weight_rows(model, demand, weights, layers, first, last))
    weights_bytes = sum(fixed.values())
    fixed.update(_peak_rows(model, demand, batched, sequences, first, last))
    if not demand.enforce_eager:
        fixed[GRAPHS] = _sizing_peak.graph_bytes(len(layers), sequences, batched)
    # Context parallel GPUs have a part of each request's tokens.
    ranks = max(1, demand.context_parallel)
    part = -(-length // ranks)
    request = cache.request_bytes(part, flight)
    needed = sum(fixed.values()) + (request + cache.block_bytes if cache.groups else 0)
    if demand.kv_cache_memory_bytes:
        available = demand.kv_cache_memory_bytes
        budget = sum(fixed.values()) + available
    else:
        budget = math.ceil(demand.memory_total_bytes * demand.utilization)
        available = budget - sum(fixed.values())
    outside = _sizing_peak.CONTEXT_BYTES
    outside += _sizing_peak.COMMUNICATION_BYTES if parallel * demand.pipeline_parallel > 1 else 0
    fits = needed <= budget and budget + outside <= demand.memory_total_bytes
    spare = budget - sum(fixed.values()) - request
    rows = [row for row in fixed.items() if row[1]]
    rows.append((REQUEST, request))
    rows.append((SPARE, spare) if spare >= 0 else (SHORT, -spare))
    return Sizing(
        rows=tuple(rows),
        fits=fits,
        memory_total_bytes=demand.memory_total_bytes,
        budget_bytes=budget,
        needed_bytes=needed,
        weights_bytes=weights_bytes,
        kv_bytes_per_token=cache.token_bytes,
        kv_request_bytes=request,
        kv_used_bytes=cache.used_bytes(part, model.encoder_positions, flight),
        kv_available_bytes=max(0, available),
        max_model_len=length,
        max_len_fitting=ranks * cache.longest(available, flight, max(model.max_length or 0, length) // ranks),
        concurrency=cache.concurrency(available, part, flight),
        outside_bytes=outside,
        tensor_parallel=parallel,
        pipeline_parallel=demand.pipeline_parallel,
        utilization=demand.utilization,
        exact_weights=weights.exact,
    )


def _weight_rows(
    model: Model, demand: Demand, weights: _model_weights.Weights, layers: range, first: bool, last: bool
) -> t.Iterator[Row]:
    """Bytes of weights on one GPU. The embedding is with the first stage, the head (or a tied embedding) with the last,
    both cut along the vocabulary; an encoder is with the first."""
    parallel = max(1, demand.tensor_parallel)
    ranks = max(1, demand.data_parallel)
    stacked = sum(
        weights.layers[number].on_gpu(
            parallel, model.kv_heads, _model_weights.expert_part(model, number) if ranks > 1 else 0.0, ranks
        )
        for number in layers
    )
    yield WEIGHTS, max(0, stacked - demand.cpu_offload_bytes) + weights.other
    vocabulary = weights.embedding if first or (last and model.tied) else 0
    vocabulary += weights.head if last else 0
    yield EMBEDDINGS, -(-vocabulary // parallel)
    if first and not _without_encoders(model, demand):
        parts = 1 if demand.encoder_data_parallel else parallel
        yield ENCODER, -(-weights.tower // parts) + weights.tower_whole


def _without_encoders(model: Model, demand: Demand) -> bool:
    """Where a request may hold nothing for an encoder, vLLM does not load it."""
    kinds = {"vision": ("image", "video"), "audio": ("audio",)}
    asked = [kind for tower in model.towers for kind in kinds.get(tower.kind, ())]
    return model.multimodal and all(demand.limits.get(kind) == 0 for kind in asked)


def _peak_rows(model: Model, demand: Demand, batched: int, sequences: int, first: bool, last: bool) -> t.Iterator[Row]:
    """The peak of the profiling run: a forward pass, then the sampler; one gives back what it took before the other."""
    parallel = max(1, demand.tensor_parallel)
    forward = _sizing_peak.activation_bytes(model, parallel, batched)
    sampling = _sizing_peak.logits_bytes(model, sequences, batched) if last else 0
    yield ACTIVATIONS, max(forward, sampling)
    if first and model.towers and not demand.skip_encoder_profiling:
        encoder = _sizing_peak.encoders_bytes(
            model,
            context_length(model, demand),
            batched,
            parallel,
            demand.limits,
            demand.max_pixels,
            demand.encoder_data_parallel,
        )
        yield ENCODER_PEAK, max(0, encoder - max(forward, sampling))
    yield WORKSPACE, _sizing_peak.WORKSPACE_BYTES


def gib(size_bytes: float) -> str:
    """``41.23 GiB``"""
    return f"{size_bytes / GIB:.2f} GiB"


def _line(label: str, size_bytes: int, note: str) -> str:
    return f"{label:<28}{size_bytes / GIB:>9,.2f} GiB  {note}".rstrip()


def _clean(value: object) -> str:
    """Words of a host, fit for a table: one line without control characters."""
    text = value if isinstance(value, str) else ""
    return "".join(char if char.isprintable() else " " for char in text[:600]).strip()


def _no_entry(why: str) -> FleetError:
    return FleetError(
        "model.bad_entry",
        f"A model's entry cannot be used: {why}",
        "what gpufleet.vllm.vllm_model_info returned",
        "Gather it again",
    )
