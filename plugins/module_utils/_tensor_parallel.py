# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""Which tensor parallel sizes a model can run with: vLLM refuses the others while it loads. Pure.

Sources: ``config/model.py`` (heads), ``model_executor/layers/linear.py`` (KV heads), ``models/qwen2_5_vl.py`` (heads of
the encoder), ``distributed/utils.py`` (groups), ``layers/quantization/utils/fp8_utils.py`` (blocks of FP8).
"""

from __future__ import annotations

import typing as t

if t.TYPE_CHECKING:
    from ansible_collections.gpufleet.vllm.plugins.module_utils._model_config import Model, Quantization

_CUT_ENCODERS = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5")


def legal_tensor_parallel(
    model: Model, limit: int, expert_parallel: bool = False, encoder_data_parallel: bool = False
) -> list[int]:
    """The tensor parallel sizes up to ``limit`` that the model can run with, smallest first."""
    return [
        size
        for size in range(1, max(0, limit) + 1)
        if tensor_parallel_fault(model, size, expert_parallel, encoder_data_parallel) is None
    ]


def tensor_parallel_fault(
    model: Model,
    size: int,
    expert_parallel: bool = False,
    encoder_data_parallel: bool = False,
    lenient: bool = False,
) -> str | None:
    """Why ``size`` GPUs cannot share the model, as a sentence that names the numbers; None where they can.

    ``lenient`` leaves out what vLLM 0.33 takes and releases before it refuse: experts and merged matrices of FP8 whose
    parts are no whole blocks (``fused_moe/oracle/fp8.py``, ``layers/linear.py``).
    """
    if size < 1:
        return f"tensor_parallel_size is {size}"
    if model.heads % size:
        return f"{model.heads} attention heads cannot be divided by tensor_parallel_size {size}"
    if not model.known:
        return None
    fault = _key_value_fault(model.kv_heads, size) if model.mla is None and model.heads else None
    if fault is not None:
        return fault
    for what, number in _divided(model, expert_parallel, encoder_data_parallel):
        if number % size:
            return f"{number:,} {what} cannot be divided by tensor_parallel_size {size}"
    if model.quantization is None or size == 1:
        return None
    return _quantization_fault(model, model.quantization, size, expert_parallel, lenient)


def pipeline_parallel_fault(model: Model, size: int) -> str | None:
    """Why the model cannot run in ``size`` pipeline stages; None where it can."""
    if size < 1:
        return f"pipeline_parallel_size is {size}"
    if size > model.layers:
        return f"{model.layers} layers cannot be dealt out to {size} pipeline stages"
    if size > 1 and model.encoder_decoder:
        return f"{model.architecture or 'an encoder-decoder model'} cannot run in pipeline stages"
    return None


def _divided(model: Model, expert_parallel: bool, encoder_data_parallel: bool) -> t.Iterator[tuple[str, int]]:
    """What is cut into equal parts as well, one for each GPU."""
    if model.state is not None:
        yield "heads of the linear attention", model.state.heads
    if model.moe is None or model.moe.dense_layers:
        yield "rows of a layer's MLP (intermediate_size)", model.intermediate
    if model.moe is not None and not expert_parallel:
        yield "rows of an expert (moe_intermediate_size)", model.moe.intermediate
    for tower in model.towers:
        # Other encoders are not cut, or left whole where they cannot be (``models/intern_vit.py``).
        cut = model.encoder_decoder or model.model_type.startswith(_CUT_ENCODERS)
        if cut and (model.encoder_decoder or not encoder_data_parallel):
            yield f"attention heads of the {tower.kind} encoder", tower.heads


def _key_value_fault(kv_heads: int, size: int) -> str | None:
    if size >= kv_heads:
        return f"{kv_heads} KV heads cannot be repeated on {size} GPUs evenly" if size % kv_heads else None
    return f"{kv_heads} KV heads cannot be divided by tensor_parallel_size {size}" if kv_heads % size else None


def _quantization_fault(
    model: Model, quantization: Quantization, size: int, expert_parallel: bool, lenient: bool
) -> str | None:
    """Each GPU needs whole groups, or whole blocks, of the quantised matrices."""
    inputs = []  # of matrices that are cut along their input
    outputs = []  # of matrices that are cut along their output
    if model.mla is None and model.heads:
        inputs.append(("attention's output", model.heads * model.head_dim))
        outputs.append(("queries", model.heads * model.head_dim))
        outputs.append(("keys and values", max(size, model.kv_heads) * model.head_dim))
    elif model.mla is not None:
        inputs.append(("attention's output", model.heads * model.mla.v_head_dim))
    if model.moe is None or model.moe.dense_layers:
        inputs.append(("a layer's MLP", model.intermediate))
        outputs.append(("a layer's MLP", model.intermediate))
    # Experts in groups have a kernel that takes parts of one (moe_wna16); those in blocks have none.
    if model.moe is not None and not expert_parallel and quantization.block and not lenient:
        inputs.append(("an expert", model.moe.intermediate))
        outputs.append(("an expert", model.moe.intermediate))
    rows, columns = quantization.block or (0, quantization.group)
    for what, width in inputs:
        if columns and width // size % columns:
            kind = "blocks" if quantization.block else "groups"
            return (
                f"the {width // size:,} columns that each of {size} GPUs gets of {what} are no whole {kind} of "
                f"{columns} ({quantization.method})"
            )
    for what, width in [] if lenient else outputs:
        if rows and width // size % rows:
            return (
                f"the {width // size:,} rows that each of {size} GPUs gets of {what} are no whole blocks of {rows} "
                f"({quantization.method})"
            )
    return None
