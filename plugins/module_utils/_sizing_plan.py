# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""From sums to decisions: how a service's flags read, what to propose, and what is wrong. Pure, on the controller."""

from __future__ import annotations

import math
import typing as t
from dataclasses import dataclass, replace

from ansible_collections.gpufleet.vllm.plugins.module_utils._errors import FleetError
from ansible_collections.gpufleet.vllm.plugins.module_utils._findings import ERROR, INFO, WARNING, Finding
from ansible_collections.gpufleet.vllm.plugins.module_utils._plan_hub import remedy_of
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing import (
    ENCODER_PEAK,
    GIB,
    MIB,
    Demand,
    Sizing,
    context_length,
    gib,
    longest_context,
    model_of,
    size_of,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_flags import (
    doubt_of,
    limits_of,
    number,
    offload_of,
    pixels_of,
    plain_flags,
    whole,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._sizing_peak import (
    CONTEXT_BYTES,
    DEFAULT_UTILIZATION,
    cuda_bytes,
)
from ansible_collections.gpufleet.vllm.plugins.module_utils._tensor_parallel import (
    legal_tensor_parallel,
    pipeline_parallel_fault,
    tensor_parallel_fault,
)

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model

TIGHT = 0.10
"""The part of the budget that shall stay free: the estimates in the sum are no better than that."""

SMALL_SHARE = 0.5
"""A service that needs less than this part of a card gets a stated share of it, and not the whole card."""

CONCURRENT = 16
"""Requests of full length that a proposed share of a card holds at once."""

_TENSOR_PARALLEL_MAX = 64
_LENGTH_STEP = 1024
_SHORTEST = 2048


@dataclass(frozen=True)
class Proposal:
    """What to write for a service. ``kv_cache_memory_bytes`` is set for small models only: with it vLLM takes so much
    for the cache, whatever ``gpu_memory_utilization`` says, which then is the share that has to be free at the start.
    ``sizing.fits`` is False where nothing within the cards does."""

    tensor_parallel_size: int
    max_model_len: int
    gpu_memory_utilization: float
    kv_cache_memory_bytes: int | None
    sizing: Sizing

    def as_dict(self) -> dict[str, t.Any]:
        return {
            "tensor_parallel_size": self.tensor_parallel_size,
            "max_model_len": self.max_model_len,
            "gpu_memory_utilization": self.gpu_memory_utilization,
            "kv_cache_memory_bytes": self.kv_cache_memory_bytes,
            "fits": self.sizing.fits,
            "sizing": self.sizing.as_dict(),
        }


# --- flags -----------------------------------------------------------------------------------------------------------


def demand_of(
    arguments: t.Mapping[str, t.Any],
    *,
    tensor_parallel: int = 1,
    cards_memory: t.Sequence[int] = (),
    gpu_name: str = "",
    max_model_len: int | str | None = None,
) -> Demand:
    """What the flags of a service (names with dashes, as under ``args:``) ask for, on the smallest of its cards.

    ``cards_memory`` is nvidia-smi's memory.total of each, in bytes.

    Flags that cannot be read are left at vLLM's defaults: whether they may stand is for others to say.
    """
    flags = plain_flags(arguments)
    base = Demand(
        tensor_parallel=max(1, tensor_parallel),
        pipeline_parallel=whole(flags.get("pipeline-parallel-size")) or 1,
        gpu_name=gpu_name,
        max_model_len=whole(max_model_len),
        kv_cache_dtype=str(flags.get("kv-cache-dtype") or "auto"),
        quantization=str(flags.get("quantization") or ""),
        max_num_batched_tokens=whole(flags.get("max-num-batched-tokens")),
        max_num_seqs=whole(flags.get("max-num-seqs")),
        enforce_eager=flags.get("enforce-eager") is True,
        kv_cache_memory_bytes=whole(flags.get("kv-cache-memory-bytes")),
        prefix_caching=flags.get("enable-prefix-caching") is not False,
        limits=limits_of(flags),
        max_pixels=pixels_of(flags),
        encoder_data_parallel=flags.get("mm-encoder-tp-mode") == "data",
        expert_parallel=flags.get("enable-expert-parallel") is True,
        skip_encoder_profiling=flags.get("skip-mm-profiling") is True,
        data_parallel=whole(flags.get("data-parallel-size")) or 1,
        context_parallel=(whole(flags.get("decode-context-parallel-size")) or 1)
        * (whole(flags.get("prefill-context-parallel-size")) or 1),
        cpu_offload_bytes=offload_of(flags),
        doubt=doubt_of(flags),
    )
    if cards_memory:
        base = replace(base, memory_total_bytes=cuda_bytes(min(cards_memory)))
    share = number(flags.get("gpu-memory-utilization", flags.get("device-memory-utilization")))
    if share is not None and 0 < share <= 1:
        base = replace(base, utilization=share)
    block = whole(flags.get("block-size"))
    return replace(base, block_size=block) if block and block <= 4096 else base


# --- proposals -------------------------------------------------------------------------------------------------------


def propose(
    model: Model,
    cards_memory: t.Sequence[int],
    demand: Demand | None = None,
    *,
    concurrent: int = CONCURRENT,
) -> Proposal | None:
    """The fewest of the cards that serve the longest context, and how; None where there is no card.

    ``cards_memory`` is nvidia-smi's memory.total of each, in bytes.

    A ``max_model_len`` of the demand is kept. Where the model's own length does not fit on any legal number of cards,
    the longest that does is proposed, in steps of 1,024 tokens.
    """
    if not cards_memory:
        return None
    demand = demand or Demand()
    cards = sorted(map(cuda_bytes, cards_memory), reverse=True)
    sizes = _legal(model, demand, len(cards)) or [1]
    tried = []
    for parallel in sizes:
        # The smallest of the largest cards decides: vLLM gives all GPUs of a group the same cache.
        one = replace(demand, tensor_parallel=parallel, memory_total_bytes=cards[parallel - 1])
        sizing = size_of(model, one)
        tried.append((one, sizing))
        if sizing.fits and sizing.slack >= TIGHT:
            return _proposal(model, one, sizing, concurrent)
    fitting = [pair for pair in tried if pair[1].fits]
    if fitting:
        return _proposal(model, *fitting[-1], concurrent)
    if demand.max_model_len:
        return _proposal(model, *tried[-1], concurrent)
    lengths = [(longest_context(model, one), one) for one, _sizing in tried]
    length, one = max(lengths, key=lambda pair: (pair[0], pair[1].tensor_parallel))
    if round_length(length):
        one = replace(one, max_model_len=round_length(length))
    return _proposal(model, one, size_of(model, one), concurrent)


def round_length(length: int) -> int:
    """A context length to write down: a multiple of 1,024 (of 16 below that), never above ``length``."""
    step = _LENGTH_STEP if length >= _SHORTEST else 16
    return length // step * step


def _proposal(model: Model, demand: Demand, sizing: Sizing, concurrent: int) -> Proposal:
    """A proposal for a demand; a small model gets a share of the card."""
    length = context_length(model, demand)
    whole = Proposal(demand.tensor_parallel, length, demand.utilization, demand.kv_cache_memory_bytes, sizing)
    if not sizing.fits or demand.kv_cache_memory_bytes:
        return whole
    fixed = sizing.budget_bytes - sizing.kv_available_bytes
    least = sizing.needed_bytes - fixed
    wanted = math.ceil(max(least, sizing.kv_used_bytes * concurrent) / MIB) * MIB
    share = math.ceil((fixed + wanted) * (1 + TIGHT) / demand.memory_total_bytes * 100) / 100
    if share > SMALL_SHARE or share >= demand.utilization:
        return whole
    smaller = replace(demand, kv_cache_memory_bytes=wanted, utilization=share)
    return Proposal(demand.tensor_parallel, length, share, wanted, size_of(model, smaller))


# --- findings --------------------------------------------------------------------------------------------------------


def assess(
    service: str,
    entry: object,
    arguments: t.Mapping[str, t.Any],
    *,
    tensor_parallel: int,
    cards_memory: t.Sequence[t.Any],
    gpu_name: str = "",
    max_model_len: int | str | None = None,
    allow_long: bool = False,
) -> tuple[Sizing | None, list[Finding]]:
    """The sum and the findings of one service, from its entry of vllm_model_info's ``models`` and its flags.

    Nothing is held against a service whose model or cards are not known. ``allow_long`` is
    VLLM_ALLOW_LONG_MAX_MODEL_LEN.
    """
    try:
        model = model_of(entry) if entry is not None else None
    except FleetError as exc:
        return None, [_unknown(service, exc)]
    if model is None:
        return None, [_unknown(service, None)]
    known = [size for size in cards_memory if isinstance(size, int) and not isinstance(size, bool) and size > 0]
    demand = demand_of(
        arguments,
        tensor_parallel=tensor_parallel,
        cards_memory=known,
        gpu_name=gpu_name,
        max_model_len=max_model_len,
    )
    faults = check_parallel(service, model, demand)
    if not known or any(fault.severity == ERROR for fault in faults):
        return None, faults
    if max_model_len in ("auto", -1):
        demand = replace(demand, max_model_len=longest_context(model, demand) or None)
    sizing = size_of(model, demand)
    if model.multimodal and not sizing.fits:
        # A shorter context has a smaller encoder at work, so that more of it fits than what is left now would hold.
        sizing = replace(sizing, max_len_fitting=longest_context(model, demand))
    if sizing.fits and not {"gpu-memory-utilization", "device-memory-utilization"} & set(plain_flags(arguments)):
        least = _proposal(model, demand, sizing, CONCURRENT)
        if least.kv_cache_memory_bytes and not demand.kv_cache_memory_bytes:
            sizing = replace(sizing, enough=(least.gpu_memory_utilization, least.kv_cache_memory_bytes))
    return sizing, [*faults, *check(service, model, demand, sizing, allow_long)]


def check_parallel(service: str, model: Model, demand: Demand) -> list[Finding]:
    """plan.tensor_parallel_illegal: what vLLM refuses while it loads, whatever the memory."""
    how = (demand.tensor_parallel, demand.expert_parallel, demand.encoder_data_parallel)
    fault = tensor_parallel_fault(model, *how)
    if fault is not None:
        legal = _legal(model, demand, max(8, demand.tensor_parallel))
        below = [size for size in legal if size <= demand.tensor_parallel]
        remedy = f"set tensor_parallel_size: {below[-1]}, and gpus: to as many" if below else "use another model"
        expected = f"a tensor_parallel_size of {_listed(legal)}" if legal else "a model that can be divided"
        if model.moe is not None and not demand.expert_parallel and "an expert" in fault:
            remedy += ", or enable-expert-parallel: true under args:"
        if tensor_parallel_fault(model, *how, lenient=True) is None:
            fault += "; vLLM 0.33 makes the blocks smaller, releases before it refuse to load the model"
            return [Finding("plan.tensor_parallel_illegal", WARNING, fault, expected, remedy, service)]
        # What is said of a model by flags alone is not read.
        severity = WARNING if _other_config(demand) else ERROR
        return [Finding("plan.tensor_parallel_illegal", severity, fault, expected, remedy, service)]
    fault = pipeline_parallel_fault(model, demand.pipeline_parallel)
    if fault is not None:
        most = 1 if model.encoder_decoder else model.layers
        expected = f"a pipeline-parallel-size of at most {most}"
        remedy = "delete pipeline-parallel-size under args:"
        return [Finding("plan.tensor_parallel_illegal", ERROR, fault, expected, remedy, service)]
    return []


def check(service: str, model: Model, demand: Demand, sizing: Sizing, allow_long: bool = False) -> list[Finding]:
    """What is wrong with a service's memory: plan.context_too_long, plan.memory_short, plan.memory_tight."""
    own = model.max_length
    if demand.max_model_len and own and demand.max_model_len > own and not allow_long and not _other_config(demand):
        return [
            Finding(
                "plan.context_too_long",
                ERROR,
                f"max_model_len is {demand.max_model_len}, and the model was made for {own} tokens",
                f"at most {own} tokens; vLLM refuses more",
                f"set max_model_len: {own}, or leave it out",
                service,
            )
        ]
    if sizing.budget_bytes + sizing.outside_bytes > sizing.memory_total_bytes:
        return [_over_committed(service, model, demand, sizing)]
    if sizing.fits:
        return [_tight(service, model, demand, sizing)] if sizing.slack < TIGHT and not _fixed_cache(demand) else []
    longest = longest_context(model, demand)
    if round_length(longest):
        return [_context(service, model, demand, sizing, longest)]
    return [_short(service, model, demand, sizing)]


def _other_config(demand: Demand) -> bool:
    """Whether the flags say more of the model than its config.json does."""
    return "hf-" in demand.doubt


def _fixed_cache(demand: Demand) -> bool:
    return demand.kv_cache_memory_bytes is not None


def _unknown(service: str, exc: FleetError | None) -> Finding:
    seen = exc.seen if exc is not None else "the model's config.json was not read"
    remedy = remedy_of(exc.code, exc.remedy, service) if exc is not None else ""
    remedy = remedy or "let the host reach the hub, or fetch the model first"
    expected = "a config.json and safetensors headers, so that the memory can be reckoned"
    return Finding("plan.model_unknown", INFO, seen, expected, remedy, service)


def _context(service: str, model: Model, demand: Demand, sizing: Sizing, longest: int) -> Finding:
    more = _more_cards(model, demand)
    stated = "max_model_len" if demand.max_model_len else "the model's own context"
    taken = f"{stated} of {sizing.max_model_len} tokens takes {gib(sizing.kv_request_bytes)} of KV cache"
    encoder = dict(sizing.rows).get(ENCODER_PEAK, 0)
    if encoder >= GIB:
        taken += f", and {gib(encoder)} go to the encoder at work on the largest image or video"
    share = _larger_share(model, demand)
    remedy = f"set max_model_len: {round_length(longest)}"
    remedy += f", or gpu_memory_utilization: {share:g} if so much of the card is free" if share else ""
    remedy += f", or tensor_parallel_size: {more} with as many GPUs" if more else ""
    if _fits_without_video(model, demand):
        remedy += ", or limit-mm-per-prompt: '{\"video\": 0}' under args: if no videos are asked about"
    return Finding(
        "plan.context_too_long",
        _severity(model, demand, sizing),
        f"{_needs(demand, sizing)}: {taken}{_doubt(model, demand, sizing)}",
        f"a context of at most {longest} tokens",
        remedy,
        service,
    )


def _fits_without_video(model: Model, demand: Demand) -> bool:
    videos = any(tower.frames > 1 for tower in model.towers) and demand.limits.get("video", 1) > 0
    return videos and size_of(model, replace(demand, limits={**demand.limits, "video": 0})).fits


def _short(service: str, model: Model, demand: Demand, sizing: Sizing) -> Finding:
    return Finding(
        "plan.memory_short",
        _severity(model, demand, sizing),
        f"{_needs(demand, sizing)}: {gib(sizing.weights_bytes)} of weights leave no room for one request"
        f"{_doubt(model, demand, sizing)}",
        f"at most {gib(sizing.budget_bytes)} per GPU",
        _more_room(model, demand),
        service,
    )


def _more_room(model: Model, demand: Demand) -> str:
    """What to do where the weights leave none."""
    more = _more_cards(model, demand)
    share = _larger_share(model, demand)
    if share:
        return f"set gpu_memory_utilization: {share:g}, if so much of the card is free"
    if more:
        return f"set tensor_parallel_size: {more}, with as many GPUs"
    if model.quantization is None and not demand.quantization:
        return "use a quantised variant of the model (FP8, AWQ), larger cards, or pipeline-parallel-size under args:"
    return "use larger cards, or pipeline-parallel-size under args:"


def _over_committed(service: str, model: Model, demand: Demand, sizing: Sizing) -> Finding:
    """vLLM wants its whole budget free at the start, and the CUDA context is there before it looks."""
    total, outside = sizing.memory_total_bytes, sizing.outside_bytes
    most = math.floor((total - outside) / total * 100) / 100
    if demand.kv_cache_memory_bytes:
        cache = max(0, demand.kv_cache_memory_bytes - (sizing.budget_bytes + outside - total)) // MIB * MIB
        enough = cache >= sizing.kv_request_bytes
        remedy = f"set kv-cache-memory-bytes: {cache} under args:" if enough else _more_room(model, demand)
        seen = f"{gib(sizing.budget_bytes)} per GPU, with {gib(demand.kv_cache_memory_bytes)} of KV cache"
    else:
        remedy = f"set gpu_memory_utilization: {most:g}"
        seen = f"gpu_memory_utilization is {demand.utilization:g}, which asks for {gib(sizing.budget_bytes)} per GPU"
    return Finding(
        "plan.memory_short",
        ERROR if _certain(demand, sizing) > total and not _guessed(model, demand, sizing) else WARNING,
        f"{seen}; {_card(demand)} {gib(total)} for CUDA, of which about {gib(outside)} go to the CUDA context"
        + (" and NCCL" if sizing.tensor_parallel * sizing.pipeline_parallel > 1 else ""),
        f"at most {gib(total - outside)} per GPU: vLLM refuses to start when less is free than it asks for",
        remedy,
        service,
    )


def _guessed(model: Model, demand: Demand, sizing: Sizing) -> bool:
    """A share of the card is what the user states; beside a cache of so many bytes the weights have to be known."""
    known = model.known or sizing.exact_weights
    return bool(demand.kv_cache_memory_bytes and (_unfollowed(model, demand) or not known))


def _unfollowed(model: Model, demand: Demand) -> str:
    """The flags that the sum cannot follow; the method of a checkpoint that is quantised changes none of its bytes."""
    named = demand.doubt.split(", ") if demand.doubt else []
    return ", ".join(name for name in named if name != "quantization" or model.quantization is None)


def _certain(demand: Demand, sizing: Sizing) -> int:
    """What is taken for certain: of a cache of so many bytes not the estimates beside it, which are gone before it is
    there, and of what the contexts take less than half."""
    fixed = demand.kv_cache_memory_bytes
    certain = CONTEXT_BYTES // 2 + max(0, sizing.outside_bytes - CONTEXT_BYTES) // 4
    return (sizing.weights_bytes + fixed if fixed else sizing.budget_bytes) + certain


def _tight(service: str, model: Model, demand: Demand, sizing: Sizing) -> Finding:
    spare = max(0, sizing.budget_bytes - sizing.needed_bytes)
    more = _more_cards(model, demand, TIGHT)
    # A tenth of the budget stays free with as much less cache.
    free = math.ceil(sizing.budget_bytes * TIGHT) - spare
    per_token = max(1, sizing.kv_bytes_per_token)
    shorter = round_length(sizing.max_model_len - math.ceil(free / per_token))
    remedies = []
    if shorter >= _SHORTEST:
        remedies.append(f"set max_model_len: {shorter}")
    if more:
        remedies.append(f"set tensor_parallel_size: {more} with as many GPUs")
    remedies.append("or try it as it is: an estimate that is off by so little cannot tell")
    return Finding(
        "plan.memory_tight",
        WARNING,
        f"{_needs(demand, sizing)}: {gib(spare)} ({sizing.slack:.1%}) are left",
        f"{TIGHT:.0%} of the budget free, since activations and CUDA graphs are estimates",
        "; ".join(remedies),
        service,
    )


def _severity(model: Model, demand: Demand, sizing: Sizing) -> str:
    """An error where it cannot start whatever the estimates are worth; nothing is refused on a guess."""
    return WARNING if _doubt(model, demand, sizing) else ERROR


def _doubt(model: Model, demand: Demand, sizing: Sizing) -> str:
    """Why it may start all the same."""
    unfollowed = _unfollowed(model, demand)
    if unfollowed:
        return f"; but {unfollowed} may change that, and the sum does not follow it"
    if not model.known:
        return f"; but the cache of {model.model_type or 'such a model'} may be another than the sum has it"
    if sizing.short_bytes > sizing.margin_bytes:
        return ""
    return f"; it is {gib(sizing.short_bytes)} short, and the estimates may be off by {gib(sizing.margin_bytes)}"


def _needs(demand: Demand, sizing: Sizing) -> str:
    return (
        f"needs {gib(sizing.needed_bytes)} per GPU; {_card(demand)} {gib(sizing.memory_total_bytes)} for CUDA, of "
        f"which {demand.utilization:g} may be used ({gib(sizing.budget_bytes)})"
    )


def _card(demand: Demand) -> str:
    return f"{demand.gpu_name} has" if demand.gpu_name else "the GPU has"


def _more_cards(model: Model, demand: Demand, slack: float = 0.0) -> int:
    """The smallest larger tensor parallel size that fits on cards of this size; 0 where there is none."""
    for size in _legal(model, demand, _TENSOR_PARALLEL_MAX):
        if size > demand.tensor_parallel:
            sizing = size_of(model, replace(demand, tensor_parallel=size))
            if sizing.fits and sizing.slack >= slack:
                return size
    return 0


def _larger_share(model: Model, demand: Demand) -> float:
    """The share of the card with which it fits, a tenth of it free, where less than vLLM's default is stated; else 0.

    The estimates do not depend on it.
    """
    if demand.kv_cache_memory_bytes or demand.utilization >= DEFAULT_UTILIZATION:
        return 0.0
    needed = size_of(model, demand).needed_bytes
    share = math.ceil(needed / (1 - TIGHT) / demand.memory_total_bytes * 100) / 100
    return share if share <= DEFAULT_UTILIZATION else 0.0


def _legal(model: Model, demand: Demand, limit: int) -> list[int]:
    return legal_tensor_parallel(model, limit, demand.expert_parallel, demand.encoder_data_parallel)


def _listed(sizes: t.Sequence[int]) -> str:
    return ", ".join(str(size) for size in sizes[:-1]) + (" or " if len(sizes) > 1 else "") + str(sizes[-1])
