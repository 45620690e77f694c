"""The step-time model once more: one layer at a time, one token at a time, nothing precomputed.

An oracle for ``csrc/step_time.cpp`` and ``csrc/memory.cpp``, written from the description of the model, not from them.
A pipeline is walked stage by stage; layers are dealt out evenly and every stage is as long as the longest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

BYTES = {"bf16": 2.0, "fp8": 1.0 + 4 / 128**2, "int8": 1.0 + 2 / 4096, "int4": 4.25 / 8, "mxfp4": 4.25 / 8}


@dataclass(frozen=True)
class Engine:
    """What one engine consists of: `spec`, `gpu` and `eff` have the attributes of the package's own classes."""

    spec: Any
    gpu: Any
    eff: Any
    weights: str
    kv: str
    tp: int
    pp: int
    attention_dp: int = 1
    ep: int = 1
    gpus_per_node: int = 8

    @property
    def group(self) -> int:
        return self.tp * self.attention_dp

    @property
    def dense_weights(self) -> str:
        return "bf16" if self.weights == "mxfp4" else self.weights

    @property
    def stages(self) -> list[int]:
        """Layers counted per stage."""
        return [math.ceil(self.spec.layers / self.pp)] * self.pp

    @property
    def stretch(self) -> float:
        return sum(self.stages) / self.spec.layers

    def peak(self, weights: str) -> float:
        if weights == "fp8" and self.gpu.fp8_flops_per_s:
            return self.gpu.fp8_flops_per_s
        if weights == "int8" and self.gpu.int8_ops_per_s:
            return self.gpu.int8_ops_per_s
        return self.gpu.bf16_flops_per_s

    def read_s(self, n_bytes: float, efficiency: float) -> float:
        return n_bytes / (self.gpu.bandwidth_bytes_per_s * efficiency)

    def matmul_s(self, tokens: float, parameters: float, weights: str) -> float:
        """`tokens` rows times a matrix of `parameters` weights on one GPU."""
        arithmetic_s = 2 * tokens * parameters / (self.peak(weights) * self.eff.dense_compute)
        return knee(arithmetic_s, self.read_s(parameters * BYTES[weights], self.eff.dense_memory))


def knee(a: float, b: float) -> float:
    """The larger of the two; where both are equal, 1 + sqrt(0.0935) times as much."""
    return (a + b + math.sqrt((a - b) ** 2 + 4 * 0.0935 * a * b)) / 2


def attention_projection_parameters(e: Engine) -> float:
    """Of one layer, on one GPU."""
    s, heads = e.spec, e.spec.heads / e.tp
    if s.kv_lora_rank:
        qk = s.qk_nope_dim + s.qk_rope_dim
        q_down = s.hidden * s.q_lora_rank
        q_up = (s.q_lora_rank or s.hidden) * heads * qk
        kv_down = s.hidden * (s.kv_lora_rank + s.qk_rope_dim)
        k_up, v_up = s.kv_lora_rank * heads * s.qk_nope_dim, s.kv_lora_rank * heads * s.v_head_dim
        return q_down + q_up + kv_down + k_up + v_up + heads * s.v_head_dim * s.hidden
    kv_heads = math.ceil(s.kv_heads / e.tp)
    return s.hidden * s.head_dim * (heads + 2 * kv_heads + heads)


def feed_forward_s(e: Engine, tokens: float, layer: int) -> float:
    s = e.spec
    matrices = 3 if s.gated else 2
    if layer < s.dense_layers:
        dense = matrices * s.hidden * s.dense_intermediate / e.group
        return e.matmul_s(tokens, dense, e.dense_weights) + 2 * e.eff.gemm_s
    # On the fullest GPU: experts / ep experts, each cut to width.
    width = s.expert_intermediate / (e.group / e.ep)
    expert = matrices * s.hidden * width
    fullest = 1 + e.eff.expert_imbalance if e.ep > 1 else 1
    distinct = 1 - (1 - s.experts_per_token / s.experts) ** tokens
    touched = s.experts / e.ep * min(1.0, distinct * fullest)
    visits = tokens * s.experts_per_token / e.ep * fullest
    compute = e.eff.expert_compute * width / (width + e.eff.expert_half_width)
    experts_s = 2 * visits * expert / (e.peak(e.weights) * compute)
    experts_s += e.read_s(touched * expert * BYTES[e.weights], e.eff.expert_memory)
    # Router and shared experts run as one product: both are small and the same tokens pass them.
    shared = matrices * s.hidden * s.shared_intermediate / e.group
    router = s.hidden * s.experts
    together_s = knee(
        2 * tokens * shared / (e.peak(e.dense_weights) * e.eff.dense_compute)
        + 2 * tokens * router / (e.gpu.bf16_flops_per_s * e.eff.dense_compute),
        e.read_s(shared * BYTES[e.dense_weights] + router * 2, e.eff.dense_memory),
    )
    gemms = 3 if s.shared_intermediate else 1
    return experts_s + together_s + e.eff.expert_s + gemms * e.eff.gemm_s


def all_reduce_s(e: Engine, tokens: float, gpus: int) -> float:
    """Sum of `tokens` hidden states over `gpus` GPUs, the fastest way."""
    if gpus == 1:
        return 0.0
    local = min(gpus, e.gpus_per_node)
    size, link = tokens * e.spec.hidden * 2, e.gpu.link_bytes_per_s
    reading_all = (local - 1) * size / (link * e.eff.allreduce_bandwidth)
    scatter_gather = 2 * (local - 1) / local * size
    ways = [
        e.eff.allreduce_latency_s + reading_all,
        e.eff.allreduce_latency_s + e.eff.allreduce_exchange_s + scatter_gather / (link * e.eff.allreduce_bandwidth),
        e.eff.bulk_latency_s + scatter_gather / (link * e.eff.bulk_bandwidth),
    ]
    nodes, between_s = gpus // local, 0.0
    if nodes > 1:
        share = size / local * 2 * (nodes - 1) / nodes
        between_s = 2 * e.eff.hop_latency_s + share / (e.gpu.internode_bytes_per_s * e.eff.bulk_bandwidth)
    return min(ways) + between_s


def hops_s(e: Engine, tokens: float) -> float:
    """Stage s runs on GPUs s * group up to (s + 1) * group; the last hop brings back token ids, a few bytes."""
    if e.pp == 1:
        return 0.0
    total_s = e.eff.hop_latency_s
    for stage in range(e.pp - 1):
        same_node = (stage * e.group) // e.gpus_per_node == ((stage + 1) * e.group) // e.gpus_per_node
        link = e.gpu.link_bytes_per_s if same_node else e.gpu.internode_bytes_per_s
        total_s += e.eff.hop_latency_s + tokens * e.spec.hidden * 2 / e.group / (link * e.eff.hop_bandwidth)
    return total_s


def linear_s(e: Engine, tokens: float, sampled: float) -> float:
    if tokens <= 0:
        return 0.0
    batch = max(tokens / e.pp, min(tokens, 1.0))
    rank = max(batch / e.attention_dp, min(batch, 1.0))  # tokens of one copy of the attention
    s, eff = e.spec, e.eff
    total_s = eff.step_overhead_s + eff.sequence_overhead_s * sampled + hops_s(e, batch)
    for layer in range(s.layers):
        one_s = e.matmul_s(rank, attention_projection_parameters(e), e.dense_weights)
        one_s += 5 * eff.gemm_s + eff.latent_attention_s if s.kv_lora_rank else 2 * eff.gemm_s + eff.attention_s
        one_s += feed_forward_s(e, batch, layer) + eff.layer_s
        one_s += all_reduce_s(e, rank, e.tp) + all_reduce_s(e, batch, e.group)
        hidden_bytes = eff.activation_passes * batch / e.attention_dp * s.hidden * 2
        one_s += e.read_s(hidden_bytes, 0.8)
        if tokens > sampled:
            one_s += eff.prompt_layer_s + (layer >= s.dense_layers) * eff.prompt_expert_s
        total_s += one_s * e.stretch
    if sampled > 0:
        micro_batches = min(e.pp, max(sampled, 1.0))  # the last stage samples them in turn
        total_s += micro_batches * e.matmul_s(sampled / micro_batches, e.spec.vocab * e.spec.hidden / e.group, "bf16")
    return total_s


def kv_bytes_per_token_and_layer(e: Engine) -> float:
    """On one GPU."""
    s, size = e.spec, {"bf16": 2, "fp8": 1}[e.kv]
    if s.kv_lora_rank:
        return (s.kv_lora_rank + s.qk_rope_dim) * size
    return 2 * math.ceil(s.kv_heads / e.tp) * s.head_dim * size


def decode_attention_s(e: Engine, context: float) -> float:
    s, total_s = e.spec, 0.0
    # Scores and weighted sum; latent attention does both in the compressed space.
    width = (s.kv_lora_rank + s.qk_rope_dim) + s.kv_lora_rank if s.kv_lora_rank else 2 * s.head_dim
    for layer in range(s.layers):
        seen = min(context, s.window) if layer < s.windowed_layers else context
        arithmetic_s = 2 * seen * width * s.heads / e.tp / (e.gpu.bf16_flops_per_s * e.eff.attention_compute)
        total_s += max(e.read_s(seen * kv_bytes_per_token_and_layer(e), e.eff.attention_memory), arithmetic_s)
        total_s += s.heads / e.tp * e.eff.head_s
    return total_s * e.stretch / e.pp / e.attention_dp


def decode_attention_sum_s(e: Engine, tokens_in: int, tokens_out: int) -> float:
    """Each output token costs what half a token more than the cached ones would."""
    return float(np.sum([decode_attention_s(e, tokens_in + i + 0.5) for i in range(tokens_out)]))


def prefill_attention_s(e: Engine, tokens: int, before: int) -> float:
    if tokens == 0:
        return 0.0
    s, arithmetic_s = e.spec, 0.0
    width = s.qk_nope_dim + s.qk_rope_dim + s.v_head_dim if s.kv_lora_rank else 2 * s.head_dim
    position = before + np.arange(tokens) + 0.5
    for layer in range(s.layers):
        seen = np.minimum(position, s.window) if layer < s.windowed_layers else position
        flops = 2 * float(np.sum(seen)) * width * s.heads / e.tp
        arithmetic_s += flops / (e.gpu.bf16_flops_per_s * e.eff.prefill_compute)
    return max(arithmetic_s * e.stretch / e.pp / e.attention_dp, decode_attention_s(e, before + tokens))


def kv_bytes(e: Engine, context: float) -> float:
    s, per_gpu = e.spec, 0.0
    for layer in range(s.layers):
        seen = min(context, s.window) if layer < s.windowed_layers else context
        per_gpu += seen * kv_bytes_per_token_and_layer(e)
    return per_gpu * e.stretch * e.tp
