# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What took the place of flags that vLLM removed or will remove: from its release notes and deprecation messages."""

from __future__ import annotations

_EPLB = "set eplb-config: {{{key}: ...}} instead"
_GUIDED = "set structured-outputs-config: {{{key}: ...}} instead"
_ROPE = "set hf-overrides: {rope_parameters: {...}} instead"
_PROMPT_ADAPTERS = "delete it: prompt adapters are gone; adapters of today are LoRA (enable-lora, lora-modules)"
_V0 = "delete it: it belonged to the old engine (V0), and nothing took its place"
_NO_EFFECT = "delete it: it had no effect any more"
_SPECULATIVE = "set speculative-config: {{{key}: ...}} instead"

# Gone before the oldest release of the table.
BEFORE = frozenset(
    {
        "disable-logprobs-during-spec-decoding",
        "engine-use-ray",
        "image-feature-size",
        "image-input-shape",
        "image-input-type",
        "image-token-id",
        "max-context-len-to-capture",
        "ngram-prompt-lookup-max",
        "ngram-prompt-lookup-min",
        "num-speculative-tokens",
        "quantization-param-path",
        "spec-decoding-acceptance-method",
        "speculative-disable-by-batch-size",
        "speculative-disable-mqa-scorer",
        "speculative-draft-tensor-parallel-size",
        "speculative-max-model-len",
        "speculative-model",
        "speculative-model-quantization",
        "typical-acceptance-sampler-posterior-alpha",
        "typical-acceptance-sampler-posterior-threshold",
        "worker-use-ray",
    }
)

REPLACED = {
    "calculate-kv-scales": "delete it: scales come from the checkpoint, or are 1.0",
    "cuda-graph-sizes": "set cudagraph-capture-sizes: [...] instead",
    "device": "delete it: vLLM finds the device by itself",
    "disable-async-output-proc": _V0,
    "disable-cascade-attn": _NO_EFFECT,
    "disable-frontend-multiprocessing": _V0,
    "disable-log-requests": "delete it: requests are logged only with enable-log-requests: true",
    "disable-mm-preprocessor-cache": "set mm-processor-cache-gb: 0 instead",
    "enable-bf16x3-router-gemm": "delete it: vLLM chooses the kernel by itself",
    "enable-lora-bias": "delete it: LoRA adapters with a bias are no longer served",
    "enable-mamba-fine-grained-prefix-cache": "set enable-mamba-shared-prefix-checkpoint instead",
    "enable-multimodal-encoder-data-parallel": "set mm-encoder-tp-mode: data instead",
    "enable-prompt-adapter": _PROMPT_ADAPTERS,
    "enable-reasoning": "delete it and set reasoning-parser: NAME alone",
    "engine-use-ray": _V0,
    "eplb-log-balancedness": _EPLB.format(key="log_balancedness"),
    "eplb-step-interval": _EPLB.format(key="step_interval"),
    "eplb-window-size": _EPLB.format(key="window_size"),
    "expand-tools-even-if-tool-choice-none": "delete it: that is what vLLM does now;"
    " exclude-tools-when-tool-choice-none: true turns it off",
    "guided-decoding-backend": _GUIDED.format(key="backend"),
    "guided-decoding-disable-additional-properties": _GUIDED.format(key="disable_additional_properties"),
    "guided-decoding-disable-any-whitespace": _GUIDED.format(key="disable_any_whitespace"),
    "guided-decoding-disable-fallback": "delete it: nothing took its place",
    "ir-op-priority": "delete it: vLLM chooses the kernels by itself",
    "log-config-file": "set logging-config: {pylogging_config_file: PATH} instead",
    "logits-processor-pattern": "delete it; logits-processors: loads processors of your own",
    "long-lora-scaling-factors": "delete it: LongLoRA is no longer served",
    "lora-extra-vocab-size": "delete it: LoRA adapters with words of their own are no longer served",
    "mamba-cache-mode": "delete it: enable-prefix-caching decides",
    "max-context-len-to-capture": "set max-cudagraph-capture-size or cudagraph-capture-sizes, which count"
    " tokens of a batch, or delete it",
    "max-long-partial-prefills": "delete it; long-prefill-token-threshold limits what one long prompt takes",
    "max-num-partial-prefills": "delete it; long-prefill-token-threshold limits what one long prompt takes",
    "max-prompt-adapter-token": _PROMPT_ADAPTERS,
    "max-prompt-adapters": _PROMPT_ADAPTERS,
    "max-seq-len-to-capture": "set max-cudagraph-capture-size or cudagraph-capture-sizes, which count"
    " tokens of a batch, or delete it",
    "multi-step-stream-outputs": _V0,
    "ngram-prompt-lookup-max": _SPECULATIVE.format(key="prompt_lookup_max"),
    "ngram-prompt-lookup-min": _SPECULATIVE.format(key="prompt_lookup_min"),
    "num-lookahead-slots": "delete it: speculative-config decides",
    "num-redundant-experts": _EPLB.format(key="num_redundant_experts"),
    "num-scheduler-steps": "delete it: multi-step scheduling is gone; async-scheduling hides the same gaps",
    "num-speculative-tokens": _SPECULATIVE.format(key="num_speculative_tokens"),
    "override-attention-dtype": "delete it: nothing took its place",
    "override-neuron-config": "set additional-config: {...} instead",
    "override-pooler-config": "set pooler-config: {...} instead",
    "preemption-mode": "delete it: requests that make room are always computed again",
    "prompt-adapters": _PROMPT_ADAPTERS,
    "qlora-adapter-name-or-path": _NO_EFFECT,
    "rope-scaling": _ROPE,
    "rope-theta": _ROPE,
    "scheduler-delay-factor": _V0,
    "speculative-draft-tensor-parallel-size": _SPECULATIVE.format(key="draft_tensor_parallel_size"),
    "speculative-max-model-len": _SPECULATIVE.format(key="max_model_len"),
    "speculative-model": _SPECULATIVE.format(key="model"),
    "speculative-model-quantization": _SPECULATIVE.format(key="quantization"),
    "swap-space": "delete it: requests that make room are computed again; kv-offloading-size: GIB keeps KV blocks"
    " in the host's memory",
    "task": "set runner: generate or pooling, and for pooling models where needed convert: embed or classify",
    "tokenizer-pool-extra-config": _NO_EFFECT,
    "tokenizer-pool-size": _NO_EFFECT,
    "tokenizer-pool-type": _NO_EFFECT,
    "use-gpu-for-pooling-score": "delete it: nothing took its place",
    "use-v2-block-manager": _NO_EFFECT,
    "worker-use-ray": "set distributed-executor-backend: ray instead",
}
