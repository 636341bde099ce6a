# Copyright: gpufleet.vllm contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

# This module util is **private** to the collection: it can change at any time without notice.

"""What ``vllm serve`` takes, release by release. Written by ``make flags``; ``_vllm_flags.py`` reads it."""

from __future__ import annotations

# Each stands for its series.
RELEASES = """\
0.8.5.post1 0.9.2 0.10.2 0.11.2 0.12.0 0.13.0 0.14.1 0.15.1 0.16.0 0.17.1 0.18.1 0.19.1 0.20.2 0.21.0 0.22.1 0.23.0
0.24.0 0.25.1 0.26.0 0.27.1 0.28.0 0.29.0 0.30.0 0.31.0 0.32.0 0.33.0
"""

# NAME; SERIES SPECIFICATION; ...: from that series on, "-" where it is gone. A specification is the kind of the value
# (with ? where None is one), how many values, other spellings, and after a colon the choices.
FLAGS = """\
additional-config; 0.8 json; 0.9 text
aggregate-engine-logging; 0.11 flag
all2all-backend; 0.11 text? : None allgather_reducescatter deepep_high_throughput deepep_low_latency
  flashinfer_all2allv naive pplx; 0.14 text : allgather_reducescatter deepep_high_throughput deepep_low_latency
  flashinfer_all2allv naive pplx; 0.15 text : allgather_reducescatter deepep_high_throughput deepep_low_latency
  flashinfer_all2allv mori naive pplx; 0.18 text : allgather_reducescatter deepep_high_throughput deepep_low_latency
  flashinfer_all2allv flashinfer_nvlink_one_sided flashinfer_nvlink_two_sided mori naive nixl_ep pplx; 0.23 text :
  allgather_reducescatter deepep_high_throughput deepep_low_latency flashinfer_all2allv flashinfer_nvlink_one_sided
  flashinfer_nvlink_two_sided mori_high_throughput mori_low_latency naive nixl_ep pplx; 0.24 text :
  allgather_reducescatter deepep_high_throughput deepep_low_latency deepep_v2 flashinfer_all2allv
  flashinfer_nvlink_one_sided flashinfer_nvlink_two_sided mori_high_throughput mori_low_latency naive nixl_ep pplx;
  0.31 text : allgather_reducescatter deepep_high_throughput deepep_low_latency deepep_v2 flashinfer_all2allv
  flashinfer_nvlink_one_sided flashinfer_nvlink_two_sided moonep mori_high_throughput mori_low_latency naive nixl_ep
  pplx
allow-credentials; 0.8 flag; 0.10 bool
allow-deprecated-quantization; 0.14 bool
allowed-headers; 0.8 json
allowed-local-media-path; 0.8 text
allowed-media-domains; 0.11 text? +
allowed-methods; 0.8 json
allowed-origins; 0.8 json
anthropic-disabled-thinking-effort; 0.31 text : auto high low max medium none xhigh
api-key; 0.8 text?; 0.10 text? +
api-server-count; 0.9 int -asc
async-scheduling; 0.10 bool
attention-backend; 0.13 text?
attention-config; 0.13 json -ac
aux-output-config; 0.31 json
block-size; 0.8 int : 1 128 16 32 64 8; 0.11 int : 1 128 16 256 32 64 8; 0.18 int
calculate-kv-scales; 0.8 bool; 0.28 -
chat-template; 0.8 text?
chat-template-content-format; 0.8 text : auto openai string
code-revision; 0.8 text?
cohere-format; 0.27 text
cohere-is-reasoning-model; 0.27 bool
collect-detailed-traces; 0.8 text; 0.9 text? + : None all all,model all,worker model model,all model,worker worker
  worker,all worker,model; 0.31 text? + : all model worker
compilation-config; 0.8 json -O; 0.12 json -cc
config; 0.8 text
config-format; 0.8 text : auto hf mistral; 0.10 text
convert; 0.10 text : auto classify embed none reward; 0.14 text : auto classify embed mm_encoder_only none reward;
  0.16 text : auto classify embed none
cp-kv-cache-interleave-size; 0.12 int
cpu-distributed-timeout-seconds; 0.22 int?
cpu-offload-gb; 0.8 float
cpu-offload-params; 0.17 text +
cuda-graph-sizes; 0.9 int +; 0.11 int? +; 0.13 -
cudagraph-capture-sizes; 0.11 int? +; 0.19 int +
cudagraph-metrics; 0.13 bool
custom-histogram-buckets; 0.32 json?
data-parallel-address; 0.9 text -dpa
data-parallel-backend; 0.9 text -dpb
data-parallel-external-lb; 0.11 bool -dpe
data-parallel-hybrid-lb; 0.10 bool; 0.11 bool -dph
data-parallel-multi-port-external-lb; 0.22 flag -dpm
data-parallel-rank; 0.9 int -dpn
data-parallel-rpc-port; 0.9 int -dpp
data-parallel-size; 0.8 int -dp
data-parallel-size-local; 0.9 int -dpl
data-parallel-start-rank; 0.9 int -dpr
data-parallel-supervisor-port; 0.22 int
dbo-decode-token-threshold; 0.11 int
dbo-prefill-token-threshold; 0.11 int
dcp-comm-backend; 0.18 text : a2a ag_rs; 0.29 text? : None a2a ag_rs; 0.31 text? : a2a ag_rs
dcp-kv-cache-interleave-size; 0.11 int
dcp-q-replicate; 0.29 bool
decode-context-parallel-size; 0.10 int -dcp
default-chat-template-kwargs; 0.14 json
default-mm-loras; 0.10 json?
device; 0.8 text; 0.9 text?; 0.10 -
device-ids; 0.24 text
diffusion-config; 0.24 json? -dc
disable-access-log-for-endpoints; 0.16 text?
disable-async-output-proc; 0.8 flag; 0.11 -
disable-cascade-attn; 0.8 flag; 0.9 bool; 0.33 bool --enable-cascade-attn
disable-chunked-mm-input; 0.8 bool; 0.33 bool --enable-chunked-mm-input
disable-custom-all-reduce; 0.8 bool; 0.33 bool --enable-custom-all-reduce
disable-fastapi-docs; 0.8 flag; 0.10 bool; 0.33 bool --enable-fastapi-docs
disable-frontend-multiprocessing; 0.8 flag; 0.10 bool; 0.19 -
disable-hybrid-kv-cache-manager; 0.9 bool; 0.33 bool --enable-hybrid-kv-cache-manager
disable-log-requests; 0.8 flag; 0.10 bool; 0.17 -
disable-log-stats; 0.8 flag
disable-mm-preprocessor-cache; 0.8 flag; 0.9 bool; 0.10 flag; 0.13 -
disable-nccl-for-dp-synchronization; 0.11 bool; 0.33 bool --enable-nccl-for-dp-synchronization
disable-sliding-window; 0.8 flag; 0.9 bool; 0.33 bool --enable-sliding-window
disable-uvicorn-access-log; 0.8 flag; 0.10 bool; 0.33 bool --enable-uvicorn-access-log
distributed-executor-backend; 0.8 text? : None external_launcher mp ray uni; 0.10 text?
distributed-timeout-seconds; 0.18 int?
download-dir; 0.8 text?
dp-supervisor-probe-failure-threshold; 0.22 int
dp-supervisor-probe-interval-s; 0.22 float
dp-supervisor-probe-timeout-s; 0.22 float
dp-sync-interval; 0.30 int
dtype; 0.8 text : auto bfloat16 float float16 float32 half
ec-manager-config; 0.28 json
ec-transfer-config; 0.11 json?
elastic-ep-max-dp-size; 0.30 int
enable-auto-tool-choice; 0.8 flag; 0.10 bool; 0.33 bool --disable-auto-tool-choice
enable-batch-sharded-sampling; 0.29 bool; 0.33 bool --disable-batch-sharded-sampling
enable-bf16x3-router-gemm; 0.26 bool; 0.30 -
enable-chunked-prefill; 0.8 bool; 0.33 bool --disable-chunked-prefill
enable-cumem-allocator; 0.22 bool; 0.33 bool --disable-cumem-allocator
enable-dbo; 0.11 bool; 0.33 bool --disable-dbo
enable-elastic-ep; 0.17 bool; 0.33 bool --disable-elastic-ep
enable-ep-weight-filter; 0.18 bool; 0.33 bool --disable-ep-weight-filter
enable-eplb; 0.9 bool; 0.33 bool --disable-eplb
enable-expert-parallel; 0.8 bool; 0.14 bool -ep; 0.33 bool --disable-expert-parallel -ep
enable-fault-tolerance; 0.27 bool; 0.33 bool --disable-fault-tolerance
enable-flash-late-interaction; 0.20 bool; 0.33 bool --disable-flash-late-interaction
enable-flashinfer-autotune; 0.16 bool; 0.33 bool --disable-flashinfer-autotune
enable-force-include-usage; 0.9 flag; 0.10 bool; 0.33 bool --disable-force-include-usage
enable-hc-sp; 0.32 bool; 0.33 bool --disable-hc-sp
enable-layerwise-nvtx-tracing; 0.13 bool; 0.33 bool --disable-layerwise-nvtx-tracing
enable-log-deltas; 0.14 bool; 0.33 bool --disable-log-deltas
enable-log-outputs; 0.10 bool; 0.33 bool --disable-log-outputs
enable-log-requests; 0.10 bool; 0.33 bool --disable-log-requests
enable-logging-iteration-details; 0.14 bool; 0.33 bool --disable-logging-iteration-details
enable-lora; 0.8 bool; 0.33 bool --disable-lora
enable-lora-bias; 0.8 bool; 0.11 -
enable-mamba-cache-stochastic-rounding; 0.20 bool; 0.33 bool --disable-mamba-cache-stochastic-rounding
enable-mamba-fine-grained-prefix-cache; 0.30 bool; 0.31 -
enable-mamba-shared-prefix-checkpoint; 0.31 bool; 0.33 bool --disable-mamba-shared-prefix-checkpoint
enable-mfu-metrics; 0.14 bool; 0.33 bool --disable-mfu-metrics
enable-mixed-moe-lora-format; 0.22 bool; 0.33 bool --disable-mixed-moe-lora-format
enable-mm-embeds; 0.11 bool; 0.33 bool --disable-mm-embeds
enable-moe-shared-loras; 0.26 bool; 0.33 bool --disable-moe-shared-loras
enable-multimodal-encoder-data-parallel; 0.9 bool; 0.10 flag; 0.13 -
enable-nccl-comm-suspend; 0.30 bool; 0.33 bool --disable-nccl-comm-suspend
enable-offline-docs; 0.14 bool; 0.33 bool --disable-offline-docs
enable-per-request-metrics; 0.25 bool; 0.33 bool --disable-per-request-metrics
enable-prefix-caching; 0.8 bool; 0.33 bool --disable-prefix-caching
enable-prompt-adapter; 0.8 bool; 0.10 -
enable-prompt-embeds; 0.9 bool; 0.33 bool --disable-prompt-embeds
enable-prompt-tokens-details; 0.8 flag; 0.10 bool; 0.33 bool --disable-prompt-tokens-details
enable-reasoning; 0.8 flag; 0.9 bool; 0.10 -
enable-request-id-headers; 0.8 flag; 0.10 bool; 0.33 bool --disable-request-id-headers
enable-return-routed-experts; 0.14 bool; 0.33 bool --disable-return-routed-experts
enable-scale-out; 0.30 bool; 0.33 bool --disable-scale-out
enable-server-load-tracking; 0.8 flag; 0.10 bool; 0.33 bool --disable-server-load-tracking
enable-shm-tensor-arena; 0.32 bool; 0.33 bool --disable-shm-tensor-arena
enable-sleep-mode; 0.8 flag; 0.9 bool; 0.33 bool --disable-sleep-mode
enable-ssl-refresh; 0.8 flag; 0.10 bool; 0.33 bool --disable-ssl-refresh
enable-tokenizer-info-endpoint; 0.10 bool; 0.33 bool --disable-tokenizer-info-endpoint
enable-tower-connector-lora; 0.14 bool; 0.33 bool --disable-tower-connector-lora
enable-trace-replay; 0.29 bool; 0.33 bool --disable-trace-replay
enforce-eager; 0.8 flag; 0.9 bool
engram-config; 0.30 json?
eplb-config; 0.10 json
eplb-log-balancedness; 0.9 bool; 0.12 -
eplb-step-interval; 0.9 int; 0.12 -
eplb-window-size; 0.9 int; 0.12 -
exclude-tools-when-tool-choice-none; 0.10 bool
expand-tools-even-if-tool-choice-none; 0.9 flag; 0.10 -
expert-placement-strategy; 0.11 text : linear round_robin
fail-on-environ-validation; 0.17 bool
fault-tolerance-config; 0.27 json
fingerprint-mode; 0.21 text : custom full hash none
fingerprint-value; 0.21 text?
fully-sharded-loras; 0.8 bool
gdn-prefill-backend; 0.18 text : flashinfer triton; 0.22 text : cutedsl flashinfer triton; 0.32 text : aiter_flydsl
  cutedsl flashinfer triton; 0.33 text : aiter_flydsl cutedsl flashinfer sycl triton
generation-config; 0.8 text?; 0.9 text
gpu-memory-utilization; 0.8 float; 0.31 float --device-memory-utilization
grpc; 0.18 flag
grpc-port; 0.32 int?
guided-decoding-backend; 0.8 text : auto guidance xgrammar; 0.9 text : auto guidance lm-format-enforcer outlines
  xgrammar; 0.11 text; 0.12 -
guided-decoding-disable-additional-properties; 0.9 bool; 0.11 text; 0.12 -
guided-decoding-disable-any-whitespace; 0.9 bool; 0.11 text; 0.12 -
guided-decoding-disable-fallback; 0.9 bool; 0.11 text; 0.12 -
h11-max-header-count; 0.10 int
h11-max-incomplete-event-size; 0.10 int
headless; 0.9 flag
hf-config-path; 0.8 text?
hf-overrides; 0.8 json; 0.9 text
hf-token; 0.8 text ?
host; 0.8 text?
ignore-patterns; 0.8 text; 0.9 text? +; 0.11 text +
interleave-mm-strings; 0.10 bool
io-processor-plugin; 0.10 text?
ir-op-priority; 0.20 json
jit-monitor-mode; 0.25 text : error warn
jit-monitor-verbose; 0.24 bool
kda-decode-backend; 0.30 text : auto flashinfer native triton
kda-prefill-backend; 0.27 text : auto flashkda triton; 0.30 text : auto flashinfer flashkda fused triton
kernel-config; 0.16 json
kv-cache-dtype; 0.8 text : auto fp8 fp8_e4m3 fp8_e5m2; 0.10 text : auto fp8 fp8_e4m3 fp8_e5m2 fp8_inc; 0.11 text :
  auto bfloat16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc; 0.18 text : auto bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3
  fp8_e5m2 fp8_inc; 0.20 text : auto bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head
  int8_per_token_head nvfp4 turboquant_3bit_nc turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4; 0.25 text : auto
  bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head int4_per_token_head int8_per_token_head
  nvfp4 turboquant_3bit_nc turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4; 0.28 text : auto bfloat16 float16
  fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head int4_per_token_head int8_per_token_head nvfp4
  nvfp4_4over6 turboquant_3bit_nc turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4; 0.30 text : auto bfloat16
  float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head int4_per_token_head int8_per_token_head nvfp4
  nvfp4_4over6 nvfp4_ds_mla turboquant_3bit_nc turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4; 0.32 text : auto
  bfloat16 float16 fp8 fp8_ds_mla fp8_e4m3 fp8_e5m2 fp8_inc fp8_per_token_head int4_per_token_head int8_per_token_head
  nvfp4 nvfp4_4over6 nvfp4_ds_mla turboquant_3bit_nc turboquant_4bit_nc turboquant_k3v4_nc turboquant_k8v4
  ultraquant_4bit; 0.33 text
kv-cache-dtype-skip-layers; 0.19 text +
kv-cache-memory-bytes; 0.10 size?
kv-cache-metrics; 0.12 bool
kv-cache-metrics-sample; 0.12 float
kv-events-config; 0.9 text?; 0.10 json?
kv-offloading-backend; 0.11 text? : None lmcache native; 0.14 text : lmcache native
kv-offloading-size; 0.11 float?
kv-sharing-fast-prefill; 0.10 bool
kv-transfer-config; 0.8 json; 0.9 text?; 0.10 json?
language-model-only; 0.17 bool
limit-mm-per-prompt; 0.8 text?; 0.9 text; 0.10 json
linear-backend; 0.22 lower : aiter auto conch cutlass deep_gemm emulation exllama fbgemm flashinfer_cudnn
  flashinfer_cutlass flashinfer_trtllm machete marlin torch triton; 0.24 lower : aiter auto conch cutlass deep_gemm
  emulation exllama fbgemm flashinfer_b12x flashinfer_cudnn flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm
  machete marlin torch triton; 0.25 lower : aiter auto conch cutlass deep_gemm emulation exllama fbgemm
  flashinfer_b12x flashinfer_cudnn flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm humming machete marlin
  torch triton xpu xpu_woq; 0.28 lower : aiter auto b12x conch cutlass deep_gemm emulation exllama fbgemm
  flashinfer_b12x flashinfer_cudnn flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm humming machete marlin
  torch triton xpu xpu_woq
load-format; 0.8 text
log-config-file; 0.9 text; 0.10 text?; 0.31 text
log-error-stack; 0.10 bool
log-level; 0.31 text : CRITICAL DEBUG ERROR INFO NOTSET WARNING
logging-config; 0.31 json
logits-processor-pattern; 0.8 text?; 0.17 -
logits-processors; 0.10 text? +
logprobs-mode; 0.10 text : processed_logits processed_logprobs raw_logits raw_logprobs
long-lora-scaling-factors; 0.8 float? +; 0.10 -
long-prefill-token-threshold; 0.8 int
long-prefill-token-threshold-adaptive; 0.31 bool
lora-dtype; 0.8 text : auto bfloat16 float16
lora-extra-vocab-size; 0.8 int; 0.11 int : 256 512; 0.12 -
lora-modules; 0.8 text? +
lora-target-modules; 0.19 text? +
mamba-backend; 0.20 text
mamba-block-size; 0.11 int?
mamba-cache-dtype; 0.10 text : auto float32; 0.13 text : auto float16 float32; 0.22 text : auto bfloat16 float16
  float32
mamba-cache-mode; 0.15 text : align all none; 0.32 text : align none
mamba-cache-philox-rounds; 0.20 int
mamba-ssm-cache-dtype; 0.10 text : auto float32; 0.13 text : auto float16 float32; 0.22 text : auto bfloat16 float16
  float32
mamba-ssu-algorithm; 0.27 text? : None auto horizontal simple vertical; 0.31 text? : auto horizontal simple vertical
master-addr; 0.11 text
master-port; 0.11 int
max-cpu-loras; 0.8 int?
max-cudagraph-capture-size; 0.11 int?; 0.16 int
max-log-len; 0.8 int; 0.10 int?
max-logprobs; 0.8 int
max-long-partial-prefills; 0.8 int; 0.27 -
max-lora-cls-labels; 0.31 int?
max-lora-rank; 0.8 int; 0.11 int : 1 128 16 256 32 320 512 64 8
max-loras; 0.8 int
max-model-len; 0.8 size; 0.14 size-auto
max-num-active-seqs; 0.31 int?
max-num-batched-tokens; 0.8 int; 0.9 size
max-num-partial-prefills; 0.8 int; 0.27 -
max-num-queued-reqs; 0.29 int?
max-num-queued-tokens; 0.29 size?
max-num-scheduled-tokens; 0.26 size?
max-num-seqs; 0.8 int
max-parallel-loading-workers; 0.8 int?
max-prompt-adapter-token; 0.8 int; 0.10 -
max-prompt-adapters; 0.8 int; 0.10 -
max-seq-len-to-capture; 0.8 int; 0.11 -
media-io-kwargs; 0.9 text; 0.10 json
middleware; 0.8 text?; 0.10 text
mm-device-do-normalize; 0.28 bool
mm-encoder-attn-backend; 0.11 text?
mm-encoder-attn-dtype; 0.21 text? : None fp8; 0.31 text? : fp8
mm-encoder-fp8-scale-path; 0.21 text?
mm-encoder-fp8-scale-save-margin; 0.21 float
mm-encoder-fp8-scale-save-path; 0.21 text?
mm-encoder-only; 0.15 bool
mm-encoder-tp-mode; 0.10 text : data weights
mm-hasher-algorithm; 0.27 text : blake3 sha256 sha512
mm-ipc-gpu-memory-gb; 0.25 float
mm-processor-cache-gb; 0.10 float
mm-processor-cache-type; 0.11 text : lru shm
mm-processor-device; 0.28 text
mm-processor-kwargs; 0.8 json; 0.9 text?; 0.10 json?
mm-shm-cache-max-object-size-mb; 0.11 int
mm-tensor-ipc; 0.19 text : direct_rpc torch_shm
model; 0.8 text
model-class-overrides; 0.25 json
model-impl; 0.8 text : auto transformers vllm; 0.10 text : auto terratorch transformers vllm; 0.11 text
model-loader-extra-config; 0.8 text?; 0.9 text
moe-backend; 0.17 lower : aiter auto cutlass deep_gemm flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm marlin
  triton; 0.20 lower : aiter auto cutlass deep_gemm deep_gemm_mega_moe emulation flashinfer_cutedsl flashinfer_cutlass
  flashinfer_trtllm marlin triton; 0.21 lower : aiter auto cutlass deep_gemm deep_gemm_mega_moe emulation
  flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm humming marlin triton triton_unfused; 0.22 lower : aiter
  auto cutlass deep_gemm deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass
  flashinfer_trtllm humming marlin triton triton_unfused; 0.24 lower : aiter auto cutlass deep_gemm deep_gemm_mega_moe
  emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm flydsl humming marlin triton
  triton_unfused; 0.25 lower : aiter auto cutlass deep_gemm deep_gemm_mega_moe emulation flashinfer_b12x
  flashinfer_cutedsl flashinfer_cutlass flashinfer_trtllm flydsl hpc humming marlin triton triton_unfused; 0.27 lower
  : aiter auto batched_triton cutlass deep_gemm deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl
  flashinfer_cutlass flashinfer_trtllm flydsl hpc humming marlin triton triton_unfused; 0.29 lower : aiter auto b12x
  batched_triton cutlass deep_gemm deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass
  flashinfer_moe_ep_mega_cutedsl flashinfer_moe_ep_mega_deep_gemm flashinfer_trtllm flydsl hpc humming marlin triton
  triton_unfused; 0.30 lower : aiter aiter_triton_mxfp4_bf16 auto b12x batched_triton cutlass deep_gemm
  deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass flashinfer_moe_ep_mega_cutedsl
  flashinfer_moe_ep_mega_deep_gemm flashinfer_trtllm flydsl hpc humming marlin rdna3 triton triton_unfused; 0.32 lower
  : aiter aiter_mega_moe aiter_triton_mxfp4_bf16 auto b12x batched_triton cutlass deep_gemm deep_gemm_mega_moe
  emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass flashinfer_moe_ep_cutedsl
  flashinfer_moe_ep_mega_deep_gemm flashinfer_trtllm flydsl hpc humming marlin rdna3 triton triton_unfused; 0.33 lower
  : aiter aiter_mega_moe aiter_triton_mxfp4_bf16 aiter_triton_mxfp4_mxfp4 auto b12x batched_triton cutlass deep_gemm
  deep_gemm_mega_moe emulation flashinfer_b12x flashinfer_cutedsl flashinfer_cutlass flashinfer_moe_ep_cutedsl
  flashinfer_moe_ep_mega_deep_gemm flashinfer_trtllm flydsl hpc humming marlin rdna3 triton triton_unfused
monokernel; 0.33 bool
multi-step-stream-outputs; 0.8 bool; 0.10 -
nnodes; 0.11 int -n
node-rank; 0.11 int -r
num-gpu-blocks-override; 0.8 int?
num-lookahead-slots; 0.8 int; 0.12 -
num-redundant-experts; 0.9 int; 0.12 -
num-scheduler-steps; 0.8 int; 0.10 -
numa-bind; 0.20 bool
numa-bind-cpus; 0.20 text? +
numa-bind-nodes; 0.20 int? +
offload-backend; 0.17 text : auto prefetch uva
offload-group-size; 0.17 int
offload-num-in-group; 0.17 int
offload-params; 0.17 text +
offload-prefetch-step; 0.17 int
optimization-level; 0.12 text
otlp-traces-endpoint; 0.8 text; 0.9 text?
override-attention-dtype; 0.9 text?; 0.28 -
override-generation-config; 0.8 json; 0.9 text; 0.10 json
override-neuron-config; 0.8 json; 0.9 text; 0.10 -
override-pooler-config; 0.8 json; 0.9 text?; 0.11 json?; 0.12 -
per-request-spec-decode-metrics; 0.29 text : detailed none summary
performance-mode; 0.17 text : balanced interactivity throughput
pipeline-parallel-size; 0.8 int -pp
pooler-config; 0.11 json?
port; 0.8 int
preemption-mode; 0.8 text? : None recompute swap; 0.11 -
prefill-context-parallel-size; 0.12 int -pcp
prefill-schedule-interval; 0.24 int
prefix-cache-retention-interval; 0.29 int?
prefix-caching-hash-algo; 0.8 text : builtin sha256; 0.10 text : sha256 sha256_cbor; 0.13 text : sha256 sha256_cbor
  xxhash xxhash_cbor
prefix-match-unit; 0.26 int?
profiler-config; 0.13 json
prompt-adapters; 0.8 text? +; 0.10 -
pt-load-map-location; 0.9 text
qlora-adapter-name-or-path; 0.8 text; 0.10 -
quantization; 0.8 text? -q
quantization-config; 0.22 json?
ray-workers-use-nsight; 0.8 bool
reasoning-config; 0.19 json?
reasoning-effort-map; 0.33 json
reasoning-parser; 0.8 text?; 0.9 text
reasoning-parser-plugin; 0.11 text
renderer-num-workers; 0.19 int
replayssm-buffer-len; 0.27 int
response-role; 0.8 text?; 0.10 text
return-sampling-mask; 0.28 bool
return-tokens-as-token-ids; 0.8 flag; 0.10 bool
revision; 0.8 text?
root-path; 0.8 text?
rope-scaling; 0.8 json; 0.9 text; 0.10 json; 0.11 -
rope-theta; 0.8 float; 0.9 float?; 0.11 -
runner; 0.10 text : auto draft generate pooling
safetensors-load-strategy; 0.10 text; 0.19 text?; 0.24 text? : None eager lazy prefetch torchao; 0.31 text? : eager
  lazy prefetch torchao
safetensors-prefetch-block-size; 0.21 size
safetensors-prefetch-num-threads; 0.21 int
scheduler-cls; 0.8 text; 0.17 text?
scheduler-delay-factor; 0.8 float; 0.11 -
scheduler-reserve-full-isl; 0.19 bool
scheduling-policy; 0.8 text : fcfs priority
seed; 0.8 int; 0.9 int?; 0.12 int
served-model-name; 0.8 text +; 0.9 text? +
show-hidden-metrics-for-version; 0.8 text; 0.9 text?
shutdown-timeout; 0.18 int
skip-mm-profiling; 0.10 bool
skip-tokenizer-init; 0.8 flag; 0.9 bool
sleep-mode-backend; 0.33 text
sleep-mode-offload-cudagraph; 0.32 bool
sleep-preserve-parameter-names; 0.31 text +
sparse-indexer-topk-backend; 0.30 lower : auto cooperative deep_select flashinfer per_row persistent torch; 0.32 lower
  : aiter auto cooperative deep_select flashinfer per_row persistent torch
spec-method; 0.22 text? : None custom_class deepseek_mtp dflash draft_model eagle eagle3 ernie_mtp exaone4_5_mtp
  exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm_ocr_mtp hy_v3_mtp
  longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp
  qwen3_5_mtp qwen3_next_mtp step3p5_mtp suffix; 0.24 text? : None custom_class deepseek_mtp dflash draft_model eagle
  eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp
  glm_ocr_mtp hy_v3_mtp longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp
  ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp step3p5_mtp suffix; 0.25 text? : None
  bailing_hybrid_mtp custom_class deepseek_mtp dflash draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp
  exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm_ocr_mtp hy_v3_mtp
  longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu
  pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp step3p5_mtp suffix; 0.26 text? : None bailing_hybrid_mtp custom_class
  deepseek_mtp dflash draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states
  gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm_ocr_mtp hy_v3_mtp inkling_mtp longcat_flash_mtp medusa mimo_mtp
  mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp
  qwen3_next_mtp step3p5_mtp suffix; 0.27 text? : None bailing_hybrid_mtp custom_class deepseek_mtp dflash draft_model
  dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp
  glm4_moe_mtp glm_ocr_mtp hy_v3_mtp inkling_mtp kimi_k3_mtp longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp
  minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp
  step3p5_mtp suffix; 0.28 text? : None bailing_hybrid_mtp bailing_hybrid_v3_mtp custom_class deepseek_mtp dflash
  dots3_note_mtp draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states
  gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm_ocr_mtp hy_v3_mtp inkling_mtp kimi_k3_mtp longcat_flash_mtp medusa
  mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp
  qwen3_5_mtp qwen3_next_mtp step3p5_mtp suffix; 0.29 text? : None bailing_hybrid_mtp bailing_hybrid_v3_mtp
  custom_class deepseek_mtp dflash dots3_note_mtp draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp
  exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm_ocr_mtp hy_v3_mtp hy_v4_mtp
  inkling_mtp kimi_k3_mtp longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp
  nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp qwen4_exp_mtp step3p5_mtp suffix; 0.30
  text? : None bailing_hybrid_mtp bailing_hybrid_v3_mtp custom_class deepseek_mtp dflash dots3_note_mtp draft_model
  dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp
  glm4_moe_mtp glm5_next_mtp glm_ocr_mtp hy_v3_mtp hy_v4_mtp inkling_mtp kimi_k3_mtp longcat_flash_mtp medusa mimo_mtp
  mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp
  qwen3_next_mtp qwen4_exp_mtp step3p5_mtp suffix; 0.31 text? : bailing_hybrid_mtp bailing_hybrid_v3_mtp custom_class
  deepseek_mtp dflash dots3_note_mtp draft_model dspark eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp
  extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp glm5_next_mtp glm_ocr_mtp hy_v3_mtp hy_v4_mtp
  inkling_mtp kimi_k3_mtp longcat_flash_mtp medusa mimo_mtp mimo_v2_mtp minimax_m3_mtp mlp_speculator mtp
  nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp qwen4_exp_mtp step3p5_mtp suffix; 0.33
  text? : bailing_hybrid_mtp bailing_hybrid_v3_mtp custom_class deepseek_mtp dflash dots3_note_mtp draft_model dspark
  eagle eagle3 ernie_mtp exaone4_5_mtp exaone_moe_mtp extract_hidden_states gemma4_mtp glm4_moe_lite_mtp glm4_moe_mtp
  glm5_next_mtp glm_ocr_mtp hy_v3_mtp hy_v4_mtp inkling_mtp kimi_k3_mtp longcat_flash_mtp mimo_mtp mimo_v2_mtp
  minimax_m3_mtp mtp nemotron_h_mtp ngram ngram_gpu pangu_ultra_moe_mtp qwen3_5_mtp qwen3_next_mtp qwen4_exp_mtp
  step3p5_mtp step5_mtp suffix
spec-model; 0.22 text?
spec-tokens; 0.22 int
specialize-active-lora; 0.16 bool
speculative-config; 0.8 json; 0.10 json?; 0.19 json? -sc
sse-keep-alive-interval; 0.29 int
ssl-ca-certs; 0.8 text?
ssl-cert-reqs; 0.8 int
ssl-certfile; 0.8 text?
ssl-ciphers; 0.15 text?
ssl-keyfile; 0.8 text?
stream-interval; 0.11 int
structured-outputs-config; 0.11 json
swa-bounded-replay; 0.31 bool
swap-space; 0.8 float; 0.18 -
task; 0.8 text : auto classify embed embedding generate reward score transcription; 0.9 text : auto classify draft
  embed embedding generate reward score transcription; 0.10 text? : None auto classify draft embed embedding generate
  reward score transcription; 0.13 -
tensor-parallel-size; 0.8 int -tp
tokenizer; 0.8 text?; 0.9 text
tokenizer-mode; 0.8 text : auto custom mistral slow; 0.12 text
tokenizer-pool-extra-config; 0.8 text?; 0.9 text; 0.10 -
tokenizer-pool-size; 0.8 int; 0.10 -
tokenizer-pool-type; 0.8 text; 0.10 -
tokenizer-revision; 0.8 text?
tokens-only; 0.11 bool
tool-call-parser; 0.8 text; 0.10 text?
tool-parser-plugin; 0.8 text
tool-server; 0.10 text?
tool-strict-level; 0.31 text : auto function parameter; 0.33 text? : auto function parameter
trust-remote-code; 0.8 flag; 0.9 bool
trust-request-chat-template; 0.11 bool
trust-request-mm-kwargs; 0.31 bool
ubatch-size; 0.14 int
uds; 0.10 text?
use-fp64-gumbel; 0.22 bool
use-gpu-for-pooling-score; 0.17 bool; 0.18 -
use-replayssm; 0.27 bool
use-tqdm-on-load; 0.8 bool
use-v2-block-manager; 0.8 flag; 0.10 -
uvicorn-log-level; 0.8 text : critical debug error info trace warning
video-pruning-method; 0.27 text : evs vidcom2
video-pruning-rate; 0.11 float?
watchdog-config; 0.33 json
watermark; 0.24 float
watermark-config; 0.30 json?
weight-transfer-config; 0.16 json?
worker-cls; 0.8 text
worker-extension-cls; 0.8 text
"""

# What vLLM itself says of them.
DEPRECATED = """\
calculate-kv-scales; 0.19 This option is deprecated and will be removed in v0.19.; 0.28 -
cuda-graph-sizes; 0.11 --cuda-graph-sizes is deprecated and will be removed in v0.13.0 or v1.0.0, whichever is
  soonest. Please use --cudagraph-capture-sizes instead.; 0.13 -
device; 0.9 Device type for vLLM execution. This parameter is deprecated and will be removed in a future release. It
  will now be set automatically based on the current platform.; 0.10 -
disable-cascade-attn; 0.32 --disable-cascade-attn is deprecated and has no effect since cascade attention has been
  removed. It will be removed in v0.33.0.
disable-log-requests; 0.10 it is marked as deprecated; 0.17 -
disable-mm-preprocessor-cache; 0.10 --disable-mm-preprocessor-cache is deprecated and will be removed in v0.13. Please
  use --mm-processor-cache-gb 0 instead.; 0.13 -
enable-lora-bias; 0.10 Enable bias for LoRA adapters. This option will be removed in v0.12.0.; 0.11 -
enable-multimodal-encoder-data-parallel; 0.10 --enable-multimodal-encoder-data-parallel is deprecated and will be
  removed in v0.13. Please use --mm-encoder-tp-mode data instead.; 0.13 -
enable-reasoning; 0.9 The --enable-reasoning flag is deprecated as of v0.9.0. Use --reasoning-parser to specify the
  reasoning parser backend instead. This flag (--enable-reasoning) will be removed in v0.10.0. When --reasoning-parser
  is specified, reasoning ...; 0.10 -
eplb-log-balancedness; 0.10 --eplb-log-balancedness will be removed in v0.12.0.; 0.12 -
eplb-step-interval; 0.10 --eplb-step-interval will be removed in v0.12.0.; 0.12 -
eplb-window-size; 0.10 --eplb-window-size will be removed in v0.12.0.; 0.12 -
expand-tools-even-if-tool-choice-none; 0.9 Include tool definitions in prompts even when tool_choice='none'. This is a
  transitional option that will be removed in v0.10.0. In v0.10.0, tool definitions will always be included regardless
  of tool_choice setting. Use this flag now ...; 0.10 -
guided-decoding-backend; 0.11 --guided-decoding-backend will be removed in v0.12.0.; 0.12 -
guided-decoding-disable-additional-properties; 0.11 --guided-decoding-disable-additional-properties will be removed in
  v0.12.0.; 0.12 -
guided-decoding-disable-any-whitespace; 0.11 --guided-decoding-disable-any-whitespace will be removed in v0.12.0.;
  0.12 -
guided-decoding-disable-fallback; 0.11 --guided-decoding-disable-fallback will be removed in v0.12.0.; 0.12 -
ir-op-priority; 0.33 ir_op_priority (--ir-op-priority) is deprecated because vLLM IR is being removed. It will be
  removed in v0.34.0.
log-config-file; 0.31 --log-config-file is deprecated and will be removed in v0.33.0. Use
  --logging-config.pylogging_config_file instead.
lora-extra-vocab-size; 0.10 Maximum size of extra vocabulary that can be present in a LoRA adapter. Will be removed in
  v0.12.0.; 0.12 -
mamba-cache-mode; 0.33 --mamba-cache-mode is deprecated and will be removed in v0.33.0. It has no effect: Mamba prefix
  caching follows --enable-prefix-caching.
num-redundant-experts; 0.10 --num-redundant-experts will be removed in v0.12.0.; 0.12 -
override-pooler-config; 0.11 Use pooler_config instead. This field will be removed in v0.12.0 or v1.0.0, whichever is
  sooner. Should either be a valid JSON string or JSON keys passed individually.; 0.12 -
qlora-adapter-name-or-path; 0.9 The --qlora-adapter-name-or-path has no effect, do not set it, and it will be removed
  in v0.10.0.; 0.10 -
task; 0.10 it is marked as deprecated; 0.13 -
tokenizer-pool-extra-config; 0.8 This parameter is deprecated and will be removed in a future release. Passing this
  parameter will have no effect. Please remove it from your configurations.; 0.9 This parameter is deprecated and will
  be removed in a future release. Passing this parameter will have no effect. Please remove it from your
  configurations. Should either be a valid JSON string or JSON keys passed individually. For ...; 0.10 -
tokenizer-pool-size; 0.8 This parameter is deprecated and will be removed in a future release. Passing this parameter
  will have no effect. Please remove it from your configurations.; 0.10 -
tokenizer-pool-type; 0.8 This parameter is deprecated and will be removed in a future release. Passing this parameter
  will have no effect. Please remove it from your configurations.; 0.10 -
use-v2-block-manager; 0.8 block manager v1 has been removed and SelfAttnBlockSpaceManager (i.e. block manager v2) is
  now the default. Setting this flag to True or False has no effect on vLLM behavior.; 0.10 -
"""

# NAME:+SERIES,-SERIES: read from that series on, and no longer from the other.
ENVIRONMENT = """\
VLLM_ADAPTIVE_VERIFICATION_PROFILE_CONTEXT_LEN:+0.28 VLLM_ALL2ALL_BACKEND:+0.9,-0.16
VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE:+0.10 VLLM_ALLOW_INSECURE_SERIALIZATION:+0.9
VLLM_ALLOW_LONG_MAX_MODEL_LEN:+0.8 VLLM_ALLOW_RUNTIME_LORA_UPDATING:+0.8 VLLM_ALLREDUCE_USE_FLASHINFER:+0.17
VLLM_ALLREDUCE_USE_FLASHINFER_PCIE_IPC:+0.30 VLLM_ALLREDUCE_USE_SYMM_MEM:+0.10 VLLM_API_KEY:+0.8
VLLM_ASSETS_CACHE:+0.8 VLLM_ASSETS_CACHE_MODEL_CLEAN:+0.11 VLLM_ATTENTION_BACKEND:+0.8,-0.15
VLLM_AUDIO_FETCH_TIMEOUT:+0.8 VLLM_B12X_MOE_FP4_FORCE_A16:+0.29 VLLM_BATCH_INVARIANT:+0.19
VLLM_BEAM_ALWAYS_CONSTRAIN_OUTPUT:+0.33 VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER:+0.14 VLLM_BUILD_COMMIT:+0.26
VLLM_BUILD_PIPELINE:+0.26 VLLM_BUILD_URL:+0.26 VLLM_CACHE_ROOT:+0.8 VLLM_CHAT_TEMPLATE_FUEL:+0.33
VLLM_CHAT_TEMPLATE_RENDER_TIMEOUT:+0.32 VLLM_CI_USE_S3:+0.8,-0.26
VLLM_COHERE2_ATTN_MOE_DUAL_STREAM_TOKEN_THRESHOLD:+0.33 VLLM_COMPILE_CACHE_SAVE_FORMAT:+0.11
VLLM_COMPUTE_NANS_IN_LOGITS:+0.9 VLLM_CONFIGURE_LOGGING:+0.8 VLLM_CONFIG_ROOT:+0.8 VLLM_CPU_ATTN_SPLIT_KV:+0.20
VLLM_CPU_CI_ENV:+0.29 VLLM_CPU_INT4_W4A8:+0.20 VLLM_CPU_KVCACHE_SPACE:+0.8 VLLM_CPU_MOE_PREPACK:+0.8,-0.12
VLLM_CPU_NUM_OF_RESERVED_CPU:+0.9 VLLM_CPU_OMP_THREADS_BIND:+0.8 VLLM_CPU_SGL_KERNEL:+0.9,-0.28
VLLM_CUDART_SO_PATH:+0.8 VLLM_CUDA_COMPATIBILITY_PATH:+0.17 VLLM_CUSTOM_SCOPES_FOR_PROFILING:+0.10
VLLM_DBO_COMM_SMS:+0.11 VLLM_DCP_Q_REPLICATE:+0.27 VLLM_DEBUG_DUMP_PATH:+0.11 VLLM_DEBUG_LOG_API_SERVER_RESPONSE:+0.8
VLLM_DEBUG_MFU_METRICS:+0.14 VLLM_DEBUG_WORKSPACE:+0.13 VLLM_DEEPEPLL_NVFP4_DISPATCH:+0.12
VLLM_DEEPEP_BUFFER_SIZE_MB:+0.11 VLLM_DEEPEP_HIGH_THROUGHPUT_FORCE_INTRA_NODE:+0.11
VLLM_DEEPEP_LOW_LATENCY_USE_MNNVL:+0.11 VLLM_DEEPEP_V2_ALLOW_HYBRID_MODE:+0.24
VLLM_DEEPEP_V2_ALLOW_MULTIPLE_REDUCTION:+0.24 VLLM_DEEPEP_V2_PREFER_OVERLAP:+0.24 VLLM_DEEP_GEMM_WARMUP:+0.11
VLLM_DISABLED_KERNELS:+0.8 VLLM_DISABLE_COMPILE_CACHE:+0.8 VLLM_DISABLE_DSV4_MEGAMOE_SHARED_EXPERT_FUSION:+0.29
VLLM_DISABLE_FLASHINFER_PREFILL:+0.11,-0.15 VLLM_DISABLE_LOG_LOGO:+0.15 VLLM_DISABLE_PAD_FOR_CUDAGRAPH:+0.10,-0.11
VLLM_DISABLE_PYNCCL:+0.11 VLLM_DISABLE_REQUEST_ID_RANDOMIZATION:+0.17 VLLM_DISABLE_SHARED_EXPERTS_STREAM:+0.11
VLLM_DISTRIBUTED_USE_SPLIT_GROUP:+0.23 VLLM_DOCKER_BUILD_CONTEXT:+0.10 VLLM_DO_NOT_TRACK:+0.8 VLLM_DP_MASTER_IP:+0.8
VLLM_DP_MASTER_PORT:+0.8 VLLM_DP_RANK:+0.8 VLLM_DP_RANK_LOCAL:+0.8 VLLM_DP_SIZE:+0.8 VLLM_EC_SIDE_CHANNEL_HOST:+0.26
VLLM_EC_SIDE_CHANNEL_PORT:+0.26 VLLM_ELASTIC_EP_DRAIN_REQUESTS:+0.17 VLLM_ELASTIC_EP_SCALE_UP_LAUNCH:+0.17
VLLM_ENABLE_COHERE_API:+0.27 VLLM_ENABLE_CUDAGRAPH_GC:+0.10 VLLM_ENABLE_CUDA_COMPATIBILITY:+0.17
VLLM_ENABLE_FLA_PACKED_RECURRENT_DECODE:+0.18 VLLM_ENABLE_FUSED_MOE_ACTIVATION_CHUNKING:+0.9,-0.18
VLLM_ENABLE_GEMM_RS:+0.31 VLLM_ENABLE_HPC_OPS:+0.29 VLLM_ENABLE_INDUCTOR_COORDINATE_DESCENT_TUNING:+0.11
VLLM_ENABLE_INDUCTOR_MAX_AUTOTUNE:+0.11 VLLM_ENABLE_MOE_ALIGN_BLOCK_SIZE_TRITON:+0.8,-0.9
VLLM_ENABLE_MOE_DP_CHUNK:+0.13,-0.20 VLLM_ENABLE_PREGRAD_PASSES:+0.17 VLLM_ENABLE_RESPONSES_API_STORE:+0.10
VLLM_ENABLE_STARTUP_PLAN:+0.26 VLLM_ENABLE_V1_MULTIPROCESSING:+0.8 VLLM_ENFORCE_STRICT_TOOL_CALLING:+0.21
VLLM_ENGINE_ITERATION_TIMEOUT_S:+0.8,-0.32 VLLM_ENGINE_READY_TIMEOUT_S:+0.14 VLLM_EXECUTE_MODEL_TIMEOUT_SECONDS:+0.9
VLLM_FASTSAFETENSORS_QUEUE_SIZE:+0.24 VLLM_FLASHINFER_ALLREDUCE_BACKEND:+0.17
VLLM_FLASHINFER_ALLREDUCE_FUSION_THRESHOLDS_MB:+0.10,-0.26 VLLM_FLASHINFER_AUTOTUNE_CACHE_DIR:+0.22
VLLM_FLASHINFER_AUTOTUNE_SKIP_OPS:+0.26 VLLM_FLASHINFER_DISABLE_Q_QUANTIZATION:+0.10,-0.15
VLLM_FLASHINFER_FORCE_TENSOR_CORES:+0.8,-0.10 VLLM_FLASHINFER_MOE_A2A_LOW_PRECISION_COMBINE:+0.32
VLLM_FLASHINFER_MOE_BACKEND:+0.10,-0.24 VLLM_FLASHINFER_WORKSPACE_BUFFER_SIZE:+0.11
VLLM_FLASH_ATTN_MAX_NUM_SPLITS_FOR_CUDA_GRAPH:+0.11,-0.15 VLLM_FLASH_ATTN_VERSION:+0.8,-0.15
VLLM_FLAT_LOGPROBS:+0.11,-0.12 VLLM_FLOAT32_MATMUL_PRECISION:+0.13 VLLM_FORCE_AOT_LOAD:+0.11
VLLM_FUSED_MOE_CHUNK_SIZE:+0.8,-0.18 VLLM_GC_DEBUG:+0.11 VLLM_GDN_DECODE_KERNEL:+0.28
VLLM_GPT_OSS_HARMONY_SYSTEM_INSTRUCTIONS:+0.10 VLLM_GPT_OSS_SYSTEM_TOOL_MCP_LABELS:+0.11
VLLM_GPT_OSS_USE_CONTAINER_TOOL:+0.10,-0.11 VLLM_GPU_NIC_PCIE_MAPPING:+0.23 VLLM_GPU_SYNC_CHECK:+0.25
VLLM_HAS_FLASHINFER_CUBIN:+0.10 VLLM_HOST_IP:+0.8 VLLM_HPU_USE_DELAYED_SAMPLING:+0.8,-0.10
VLLM_HTTP_MAX_REQUEST_BODY_SIZE:+0.33 VLLM_HTTP_TIMEOUT_KEEP_ALIVE:+0.9 VLLM_HUMMING_INPUT_QUANT_CONFIG:+0.20
VLLM_HUMMING_MOE_GEMM_TYPE:+0.20 VLLM_HUMMING_ONLINE_QUANT_CONFIG:+0.20 VLLM_HUMMING_USE_F16_ACCUM:+0.20
VLLM_IMAGE_FETCH_TIMEOUT:+0.8 VLLM_IMAGE_TAG:+0.26 VLLM_KEEP_ALIVE_ON_ENGINE_DEATH:+0.8
VLLM_KIMI_K3_AUX_ATTN_RES_STREAM:+0.28 VLLM_KIMI_K3_GEMM_AR:+0.29 VLLM_KIMI_K3_GEMM_RS:+0.28,-0.31
VLLM_KIMI_K3_SHARD_SP_SHARED_EXPERT:+0.27 VLLM_KV_CACHE_LAYOUT:+0.9 VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES:+0.10
VLLM_KV_OFFLOAD_MAX_BATCH_DESCRIPTORS:+0.29 VLLM_LOGGING_COLOR:+0.12 VLLM_LOGGING_CONFIG_PATH:+0.8
VLLM_LOGGING_LEVEL:+0.8 VLLM_LOGGING_PREFIX:+0.8 VLLM_LOGGING_STREAM:+0.10 VLLM_LOGITS_PROCESSOR_THREADS:+0.8,-0.11
VLLM_LOG_BATCHSIZE_INTERVAL:+0.8 VLLM_LOG_MODEL_INSPECTION:+0.14 VLLM_LOG_STATS_INTERVAL:+0.10 VLLM_LOOPBACK_IP:+0.10
VLLM_LORA_DISABLE_PDL:+0.15 VLLM_LORA_ENABLE_DUAL_STREAM:+0.20 VLLM_LORA_RESOLVER_CACHE_DIR:+0.9
VLLM_LORA_RESOLVER_HF_REPO_LIST:+0.16 VLLM_MAIN_CUDA_VERSION:+0.11 VLLM_MARLIN_INPUT_DTYPE:+0.12
VLLM_MARLIN_USE_ATOMIC_ADD:+0.8 VLLM_MAX_AUDIO_CLIP_FILESIZE_MB:+0.10 VLLM_MAX_AUDIO_DECODE_BYTES:+0.28
VLLM_MAX_AUDIO_DECODE_DURATION_S:+0.24 VLLM_MAX_AUDIO_PREPROCESS_WORKERS:+0.24 VLLM_MAX_BAD_WORDS_TOTAL_TOKENS:+0.28
VLLM_MAX_COMPLETION_PROMPTS:+0.26 VLLM_MAX_EMBED_DECODE_BYTES:+0.30 VLLM_MAX_IMAGE_PIXELS:+0.25
VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB:+0.29 VLLM_MAX_MEDIA_REQUEST_DECODE_BYTES:+0.33
VLLM_MAX_MEDIA_REQUEST_DOWNLOAD_SIZE_MB:+0.33 VLLM_MAX_NUM_BAD_WORDS:+0.28 VLLM_MAX_N_SEQUENCES:+0.19
VLLM_MAX_STOP_STRINGS:+0.28 VLLM_MAX_TOKENS_PER_EXPERT_FP4_MOE:+0.9 VLLM_MEDIA_CACHE:+0.20
VLLM_MEDIA_CACHE_MAX_SIZE_MB:+0.20 VLLM_MEDIA_CACHE_TTL_HOURS:+0.20 VLLM_MEDIA_CONNECTOR:+0.11
VLLM_MEDIA_FETCH_MAX_RETRIES:+0.19 VLLM_MEDIA_LOADING_THREAD_COUNT:+0.10 VLLM_MEDIA_URL_ALLOW_REDIRECTS:+0.11
VLLM_MEMORY_PROFILER_ESTIMATE_CUDAGRAPHS:+0.18 VLLM_MLA_DISABLE:+0.8 VLLM_MM_HASHER_ALGORITHM:+0.15,-0.30
VLLM_MM_INPUT_CACHE_GIB:+0.8,-0.13 VLLM_MODEL_REDIRECT_PATH:+0.8 VLLM_MOE_DP_CHUNK_SIZE:+0.9,-0.20
VLLM_MOE_ROUTING_SIMULATION_STRATEGY:+0.10 VLLM_MOE_SKIP_PADDING:+0.25 VLLM_MOE_USE_DEEP_GEMM:+0.11
VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT:+0.13 VLLM_MOONCAKE_BOOTSTRAP_PORT:+0.13 VLLM_MOONCAKE_CONNECTOR_TIMEOUT:+0.31
VLLM_MOONCAKE_DISK_STAGING_USABLE_RATIO:+0.22 VLLM_MOONCAKE_LOAD_RECV_THREADS:+0.25 VLLM_MOONCAKE_STORE_TIER_LOG:+0.22
VLLM_MORIIO_CONNECTOR_READ_MODE:+0.14,-0.23 VLLM_MORIIO_NUM_WORKERS:+0.14,-0.23
VLLM_MORIIO_POST_BATCH_SIZE:+0.14,-0.23 VLLM_MORIIO_QP_PER_TRANSFER:+0.14,-0.23 VLLM_MQ_MAX_CHUNK_BYTES_MB:+0.9
VLLM_MSGPACK_ZERO_COPY_THRESHOLD:+0.8 VLLM_MULTI_STREAM_GEMM_TOKEN_THRESHOLD:+0.20
VLLM_MXFP4_EMULATION_DEQUANT_AT_LOAD:+0.31 VLLM_MXFP4_USE_MARLIN:+0.10,-0.24
VLLM_MXFP8_EMULATION_DEQUANT_AT_LOAD:+0.24 VLLM_NCCL_INCLUDE_PATH:+0.11 VLLM_NCCL_SO_PATH:+0.8
VLLM_NIC_SELECTION_VARS:+0.23 VLLM_NIXL_ABORT_REQUEST_TIMEOUT:+0.10,-0.22 VLLM_NIXL_EP_MAX_NUM_RANKS:+0.18,-0.30
VLLM_NIXL_SIDE_CHANNEL_HOST:+0.9 VLLM_NIXL_SIDE_CHANNEL_PORT:+0.9 VLLM_NO_DEPRECATION_WARNING:+0.8,-0.10
VLLM_NO_USAGE_STATS:+0.8 VLLM_NVFP4_GEMM_BACKEND:+0.11,-0.24 VLLM_NVTX_SCOPES_FOR_PROFILING:+0.11
VLLM_OBJECT_STORAGE_SHM_BUFFER_NAME:+0.11 VLLM_P2P_HANDSHAKE_TIMEOUT_S:+0.32 VLLM_P2P_IDLE_TIMEOUT_S:+0.32
VLLM_P2P_MAX_PEERS:+0.32 VLLM_P2P_SIDE_CHANNEL_HOST:+0.26 VLLM_P2P_SIDE_CHANNEL_PORT:+0.26
VLLM_PATTERN_MATCH_DEBUG:+0.11 VLLM_PLE_CPU_OFFLOAD:+0.30,-0.31 VLLM_PLUGINS:+0.8 VLLM_PORT:+0.8
VLLM_PP_LAYER_PARTITION:+0.8 VLLM_PREFIX_CACHE_RETENTION_INTERVAL:+0.23,-0.30 VLLM_PROCESS_NAME_PREFIX:+0.10
VLLM_PROFILER_DELAY_ITERS:+0.12,-0.16 VLLM_PROFILER_MAX_ITERS:+0.12,-0.16 VLLM_QUARK_EMU_MEM_OPT:+0.9,-0.10
VLLM_RAISE_ON_LOGIT_NANS:+0.28 VLLM_RANDOMIZE_DP_DUMMY_INPUTS:+0.9 VLLM_RAY_BUNDLE_INDICES:+0.8
VLLM_RAY_DP_PACK_STRATEGY:+0.11 VLLM_RAY_DP_PLACEMENT_NODE_IPS:+0.23 VLLM_RAY_EXTRA_ENV_VARS_TO_COPY:+0.17
VLLM_RAY_EXTRA_ENV_VAR_PREFIXES_TO_COPY:+0.17 VLLM_RAY_PER_WORKER_GPUS:+0.8 VLLM_REGEX_COMPILATION_TIMEOUT_S:+0.24
VLLM_REPLICATE_EMBED:+0.29 VLLM_REQUEST_BODY_LOG_LEVEL:+0.33 VLLM_RINGBUFFER_WARNING_INTERVAL:+0.8
VLLM_ROCM_AITER_MEGA_MOE_FUSE_SHARED_EXPERTS:+0.32,-0.33 VLLM_ROCM_AITER_MLA_ASM_PADDING:+0.28
VLLM_ROCM_AITER_MLA_DCP_VERIFY:+0.31,-0.33 VLLM_ROCM_AITER_MOE_DISPATCH_POLICY:+0.23
VLLM_ROCM_CUSTOM_PAGED_ATTN:+0.8,-0.19 VLLM_ROCM_FP8_MFMA_PAGE_ATTN:+0.11 VLLM_ROCM_FP8_PADDING:+0.8
VLLM_ROCM_MOE_PADDING:+0.8 VLLM_ROCM_MONO_DECODE:+0.32,-0.33 VLLM_ROCM_MUSE_MOE_ONLINE_QUANT:+0.33
VLLM_ROCM_MUSE_MOE_REDUCE_DTYPE:+0.33 VLLM_ROCM_QUICK_REDUCE_CAST_BF16_TO_FP16:+0.9
VLLM_ROCM_QUICK_REDUCE_MAX_SIZE_BYTES_MB:+0.9 VLLM_ROCM_QUICK_REDUCE_MIN_SIZE_BYTES_MB:+0.22
VLLM_ROCM_QUICK_REDUCE_QUANTIZATION:+0.9 VLLM_ROCM_QUICK_REDUCE_QUANTIZATION_MIN_SIZE_KB:+0.22
VLLM_ROCM_SHUFFLE_KV_CACHE_LAYOUT:+0.15 VLLM_ROCM_SLEEP_MEM_CHUNK_SIZE:+0.11 VLLM_ROCM_USE_AITER:+0.8
VLLM_ROCM_USE_AITER_CUSTOM_AR:+0.25 VLLM_ROCM_USE_AITER_FP4BMM:+0.15
VLLM_ROCM_USE_AITER_FP4_ASM_GEMM:+0.11,-0.29,+0.31,-0.33 VLLM_ROCM_USE_AITER_FP8BMM:+0.10
VLLM_ROCM_USE_AITER_FUSION_SHARED_EXPERTS:+0.11 VLLM_ROCM_USE_AITER_LINEAR:+0.8
VLLM_ROCM_USE_AITER_LINEAR_HIPBMM:+0.23 VLLM_ROCM_USE_AITER_MHA:+0.9 VLLM_ROCM_USE_AITER_MLA:+0.8
VLLM_ROCM_USE_AITER_MOE:+0.8 VLLM_ROCM_USE_AITER_MOE_A4W4_DSV4:+0.32 VLLM_ROCM_USE_AITER_MOE_SITUV2:+0.31
VLLM_ROCM_USE_AITER_MOE_SITUV2_A8W4:+0.28,-0.31 VLLM_ROCM_USE_AITER_PAGED_ATTN:+0.8,-0.26
VLLM_ROCM_USE_AITER_RMSNORM:+0.8 VLLM_ROCM_USE_AITER_TRITON_GEMM:+0.11 VLLM_ROCM_USE_AITER_TRITON_ROPE:+0.11
VLLM_ROCM_USE_AITER_TRITON_SPARSE_MLA:+0.32 VLLM_ROCM_USE_AITER_UNIFIED_ATTENTION:+0.11 VLLM_ROCM_USE_SKINNY_GEMM:+0.8
VLLM_RPC_BASE_PATH:+0.8 VLLM_RPC_TIMEOUT:+0.8,-0.23 VLLM_RUST_FRONTEND_PATH:+0.22 VLLM_SERVER_DEV_MODE:+0.8
VLLM_SHARED_EXPERTS_STREAM_TOKEN_THRESHOLD:+0.11 VLLM_SKIP_DEEP_GEMM_WARMUP:+0.10,-0.11
VLLM_SKIP_MODEL_NAME_VALIDATION:+0.21 VLLM_SKIP_P2P_CHECK:+0.8 VLLM_SKIP_PRECOMPILED_VERSION_SUFFIX:+0.13
VLLM_SKIP_VERSION_SUFFIX:+0.31 VLLM_SLEEP_WHEN_IDLE:+0.9,-0.18 VLLM_SPARSE_INDEXER_MAX_LOGITS_MB:+0.19
VLLM_SSM_CONV_STATE_LAYOUT:+0.20 VLLM_STEP5_SHARD_SP_SHARED_EXPERT:+0.33 VLLM_SYSTEM_START_DATE:+0.17
VLLM_TARGET_DEVICE:+0.8 VLLM_TEST_DYNAMO_FULLGRAPH_CAPTURE:+0.8,-0.11 VLLM_TEST_FORCE_FP8_MARLIN:+0.8,-0.29
VLLM_TEST_FORCE_LOAD_FORMAT:+0.8 VLLM_TEST_USE_PRECOMPILED_NIGHTLY_WHEEL:+0.8,-0.13
VLLM_TOOL_JSON_ERROR_AUTOMATIC_RETRY:+0.11 VLLM_TOOL_PARSE_REGEX_TIMEOUT_SECONDS:+0.9
VLLM_TORCH_CUDA_PROFILE:+0.11,-0.16 VLLM_TORCH_PROFILER_DIR:+0.8,-0.16
VLLM_TORCH_PROFILER_DISABLE_ASYNC_LLM:+0.12,-0.16 VLLM_TORCH_PROFILER_DUMP_CUDA_TIME_TOTAL:+0.12,-0.16
VLLM_TORCH_PROFILER_RECORD_SHAPES:+0.10,-0.16 VLLM_TORCH_PROFILER_USE_GZIP:+0.12,-0.16
VLLM_TORCH_PROFILER_WITH_FLOPS:+0.10,-0.16 VLLM_TORCH_PROFILER_WITH_PROFILE_MEMORY:+0.10,-0.16
VLLM_TORCH_PROFILER_WITH_STACK:+0.10,-0.16 VLLM_TPU_BUCKET_PADDING_GAP:+0.8,-0.26 VLLM_TPU_MOST_MODEL_LEN:+0.9,-0.26
VLLM_TPU_USING_PATHWAYS:+0.10 VLLM_TRACE_FUNCTION:+0.8 VLLM_TRITON_ATTN_USE_TD:+0.22,-0.29
VLLM_TRITON_FORCE_FIRST_CONFIG:+0.24 VLLM_TRITON_JIT_WARMUP_NUM_THREADS:+0.31 VLLM_TRITON_USE_TD:+0.26
VLLM_TUNED_CONFIG_FOLDER:+0.10 VLLM_USAGE_SOURCE:+0.8 VLLM_USAGE_STATS_SERVER:+0.8
VLLM_USE_AITER_UNIFIED_ATTENTION:+0.10,-0.11 VLLM_USE_AOT_COMPILE:+0.11 VLLM_USE_BREAKABLE_CUDAGRAPH:+0.22
VLLM_USE_BYTECODE_HOOK:+0.11 VLLM_USE_CUDNN_PREFILL:+0.10,-0.15 VLLM_USE_DEEP_GEMM:+0.8 VLLM_USE_DEEP_GEMM_E8M0:+0.10
VLLM_USE_DEEP_GEMM_E8M0_HOPPER:+0.10,-0.11 VLLM_USE_DEEP_GEMM_TMA_ALIGNED_SCALES:+0.15 VLLM_USE_DIRECT_DCP_A2A:+0.28
VLLM_USE_DIRECT_DCP_KV_GATHER:+0.28 VLLM_USE_DIRECT_DCP_Q_GATHER:+0.28 VLLM_USE_EXPERIMENTAL_PARSER_CONTEXT:+0.13
VLLM_USE_FASTOKENS:+0.22 VLLM_USE_FBGEMM:+0.11,-0.24 VLLM_USE_FLASHINFER_MOE_FP16:+0.11,-0.24
VLLM_USE_FLASHINFER_MOE_FP4:+0.10,-0.24 VLLM_USE_FLASHINFER_MOE_FP8:+0.10,-0.24 VLLM_USE_FLASHINFER_MOE_INT4:+0.16
VLLM_USE_FLASHINFER_MOE_MXFP4_BF16:+0.10,-0.24 VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8:+0.10,-0.24
VLLM_USE_FLASHINFER_MOE_MXFP4_MXFP8_CUTLASS:+0.10,-0.24 VLLM_USE_FLASHINFER_SAMPLER:+0.8
VLLM_USE_FUSED_MOE_GROUPED_TOPK:+0.10 VLLM_USE_HPU_CONTIGUOUS_CACHE_FETCH:+0.8,-0.10 VLLM_USE_HW_AGNOSTIC:+0.28
VLLM_USE_LAYERNAME:+0.20 VLLM_USE_MEGA_AOT_ARTIFACT:+0.15 VLLM_USE_MODELSCOPE:+0.8 VLLM_USE_NCCL_SYMM_MEM:+0.11
VLLM_USE_NVFP4_CT_EMULATIONS:+0.9,-0.24 VLLM_USE_OINK_OPS:+0.17 VLLM_USE_PRECOMPILED:+0.8
VLLM_USE_PRECOMPILED_RUST:+0.22 VLLM_USE_RAY_COMPILED_DAG:+0.8,-0.11 VLLM_USE_RAY_COMPILED_DAG_CHANNEL_TYPE:+0.8,-0.33
VLLM_USE_RAY_COMPILED_DAG_OVERLAP_COMM:+0.8,-0.33 VLLM_USE_RAY_SPMD_WORKER:+0.8,-0.11
VLLM_USE_RAY_V2_EXECUTOR_BACKEND:+0.20,-0.33 VLLM_USE_RAY_WRAPPED_PP_COMM:+0.10,-0.33 VLLM_USE_RUST_BENCH:+0.27
VLLM_USE_RUST_FRONTEND:+0.22 VLLM_USE_SIMPLE_KV_OFFLOAD:+0.19 VLLM_USE_SPINLOOP_EXT:+0.22
VLLM_USE_STANDALONE_COMPILE:+0.9 VLLM_USE_TRITON_AWQ:+0.8 VLLM_USE_TRITON_FLASH_ATTN:+0.8,-0.11
VLLM_USE_TRTLLM_ATTENTION:+0.10,-0.15 VLLM_USE_TRTLLM_FP4_GEMM:+0.10,-0.11
VLLM_USE_TRTLLM_RAGGED_DEEPSEEK_PREFILL:+0.11,-0.15 VLLM_USE_V1:+0.8,-0.11 VLLM_USE_V2_MODEL_RUNNER:+0.12
VLLM_V0_USE_OUTLINES_CACHE:+0.8,-0.11 VLLM_V1_OUTPUT_PROC_CHUNK_SIZE:+0.8 VLLM_V1_USE_OUTLINES_CACHE:+0.10
VLLM_V1_USE_PREFILL_DECODE_ATTENTION:+0.9,-0.15 VLLM_VIDEO_FETCH_TIMEOUT:+0.8 VLLM_VIDEO_LOADER_BACKEND:+0.9
VLLM_WEIGHT_OFFLOADING_DISABLE_PIN_MEMORY:+0.17 VLLM_WEIGHT_OFFLOADING_DISABLE_UVA:+0.17
VLLM_WORKER_MULTIPROC_METHOD:+0.8 VLLM_WORKER_SHUTDOWN_TIMEOUT_SECONDS:+0.24 VLLM_WSL2_ENABLE_PIN_MEMORY:+0.24
VLLM_XGRAMMAR_CACHE_MB:+0.8 VLLM_XLA_CACHE_PATH:+0.8 VLLM_XLA_CHECK_RECOMPILATION:+0.8 VLLM_XLA_USE_SPMD:+0.9
VLLM_XPU_ENABLE_XPU_GRAPH:+0.19,-0.31 VLLM_XPU_FORCE_N_CONTIG_WEIGHT:+0.29 VLLM_XPU_INC_WNA16_BACKEND:+0.29
VLLM_XPU_PP_MICROBATCH:+0.31 VLLM_XPU_USE_SAMPLER_KERNEL:+0.21 VLLM_ZENTORCH_WEIGHT_PREPACK:+0.18
"""
