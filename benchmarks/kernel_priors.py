"""What kernel timings cannot say: how far to trust each constant, and the value of those that no table holds."""

from __future__ import annotations

# How far what an engine reaches may lie from what its kernels reach alone, as a standard deviation of the logarithm.
# Judged from how much the constants move between the two GPUs and between shapes of the same table.
LOG_SIGMA = {
    "dense_memory": 0.05,
    "dense_compute.bf16": 0.1,
    "dense_compute.fp8": 0.15,
    "gemm_s.bf16": 0.15,
    "gemm_s.fp8": 0.15,
    "expert_half_width": 0.5,
    "expert_imbalance": 0.5,
    "expert_memory.bf16": 0.1,
    "expert_memory.fp8": 0.1,
    "expert_memory.int4": 0.15,
    "expert_memory.mxfp4": 0.15,
    "expert_compute.bf16": 0.25,
    "expert_compute.fp8": 0.25,
    "expert_compute.int4": 0.25,
    "expert_compute.mxfp4": 0.25,
    "expert_s.bf16": 0.2,
    "expert_s.fp8": 0.2,
    "expert_s.int4": 0.2,
    "expert_s.mxfp4": 0.2,
    "attention_memory.bf16": 0.1,
    "attention_memory.fp8": 0.3,  # kernels of vLLM only, and fp8 caches are mostly those of TensorRT-LLM
    "head_s": 0.3,
    "attention_s": 0.15,
    "latent_attention_s": 0.3,
    "attention_compute": 0.15,
    "prefill_compute": 0.2,
    "allreduce_latency_s": 0.2,
    "allreduce_exchange_s": 0.2,
    "allreduce_bandwidth": 0.15,
    "bulk_latency_s": 0.5,
    # NCCL here; engines have faster ways for some sizes, such as sums inside the switch.
    "bulk_bandwidth": 0.7,
}

# Value and log-sigma of what the tables do not hold.
ASSUMED = {
    # int8 runs in the tensor cores of fp8; weight-only int4 multiplies in bf16, a little slower for unpacking.
    "dense_compute.int8": (0.55, 0.3),
    "dense_compute.int4": (0.6, 0.3),
    "gemm_s.int8": (7e-6, 0.3),
    "gemm_s.int4": (5e-6, 0.3),
    "expert_memory.int8": (1.0, 0.3),
    "expert_compute.int8": (0.27, 0.4),
    "expert_s.int8": (4.5e-5, 0.3),
    # Norms, rotary embedding, residuals and activation functions: some five small kernels of 1-2 microseconds, and the
    # activations each of them reads and writes.
    "layer_s": (8e-6, 0.3),
    "activation_passes": (10.0, 0.5),
    # Steps with prompts run outside captured graphs, so that launches show.
    "prompt_layer_s": (3e-4, 0.7),
    "prompt_expert_s.bf16": (5e-4, 0.7),
    "prompt_expert_s.fp8": (5e-4, 0.7),
    "prompt_expert_s.int8": (5e-4, 0.7),
    "prompt_expert_s.int4": (5e-4, 0.7),
    "prompt_expert_s.mxfp4": (2e-4, 0.7),
    "hop_latency_s": (1e-5, 0.5),
    "hop_bandwidth": (0.7, 0.3),
    "overhead_scale": (1.0, 0.25),
    "expert_scale": (1.0, 0.25),
    "step_overhead_s": (5e-4, 0.7),
    "sequence_overhead_s": (1e-5, 0.7),
    # Front end, network and client, before the first token; chosen by leaving models out of serving fits.
    "request_overhead_s": (0.07, 0.3),
}
