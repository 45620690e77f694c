#include "memory.hpp"

#include <algorithm>
#include <cmath>

namespace cascadia {
namespace {

constexpr double kBf16Bytes = 2.0;
constexpr double kFp32Bytes = 4.0;
// CUDA context, communication buffers and captured graphs, as engines report them when they start.
constexpr double kFixedReserveBytes = 1.5 * 1024 * 1024 * 1024;
// A cache that holds fewer requests than this serves almost one at a time: such a shape is never worth its GPUs.
constexpr double kUsefulRequests = 4;
constexpr double kUsefulContextTokens = 4096;

double reserve_bytes(const Architecture& a, const Sharding& s, Shape shape, const EngineLimits& limits) {
  const double dense = 2.0 * a.dense_intermediate * s.tensor_share;
  const double routed = a.experts_per_token * (2.0 * a.expert_intermediate * s.tensor_share + a.hidden);
  const double shared = 2.0 * a.shared_intermediate * s.tensor_share;
  const double width = 4.0 * a.hidden + std::max(dense, routed + shared);
  const double rank_share = 1.0 / shape.attention_dp;  // copies of the attention share tokens and sequences
  const double logits = rank_share * limits.max_num_seqs * a.vocab * kFp32Bytes;
  return kFixedReserveBytes + rank_share * limits.max_batched_tokens * width * kBf16Bytes + logits;
}

double stage_weight_bytes(const Architecture& a, const Precision& p, Shape shape, const Sharding& s) {
  const double moe_layers = std::ceil(static_cast<double>(a.moe_layers()) * s.stage_layers / a.layers);
  const double dense_layers = s.stage_layers - moe_layers;
  const double dense_bytes = weight_bits(p.dense) / 8.0;
  const double expert_bytes = weight_bits(p.expert) / 8.0;
  const double attention = attention_parameters_per_gpu(a, s) * dense_bytes + norm_parameters(a) * kBf16Bytes;
  const double dense = dense_ffn_parameters(a) * s.tensor_share * dense_bytes;
  const double moe = a.experts * expert_parameters(a) * s.tensor_share * expert_bytes +
                     shared_expert_parameters(a) * s.tensor_share * dense_bytes + router_parameters(a) * kBf16Bytes;
  // With a pipeline the embedding sits on the first stage and the LM head on the last, so no GPU holds both.
  const double tables = shape.pp == 1 && !a.tied_embeddings ? 2.0 : 1.0;
  return s.stage_layers * attention + dense_layers * dense + moe_layers * moe +
         tables * embedding_parameters(a) * s.tensor_share * kBf16Bytes;
}

}  // namespace

Sharding sharding(const Architecture& a, Shape shape) {
  Sharding s;
  s.stage_layers = (a.layers + shape.pp - 1) / shape.pp;
  s.head_share = 1.0 / shape.tp;
  s.tensor_share = 1.0 / shape.group();
  if (a.latent_attention()) {
    s.kv_head_share = s.head_share;
    s.kv_cache_share = 1.0;
  } else {
    s.kv_head_share = std::ceil(static_cast<double>(a.kv_heads) / shape.tp) / a.kv_heads;
    s.kv_cache_share = s.kv_head_share;
  }
  return s;
}

double attention_parameters_per_gpu(const Architecture& a, const Sharding& s) {
  const double hidden = a.hidden;
  if (!a.latent_attention()) {
    return hidden * a.head_dim * (2.0 * a.heads * s.head_share + 2.0 * a.kv_heads * s.kv_head_share);
  }
  // The down-projections feed every head, so each GPU computes them whole.
  const double whole = hidden * (a.q_lora_rank + a.kv_lora_rank + a.qk_rope_dim);
  return whole + (attention_parameters(a) - whole) * s.head_share;
}

MemoryPlan memory_plan(const Architecture& a, const Precision& p, const Gpu& gpu, Shape shape,
                       const EngineLimits& limits) {
  const Sharding s = sharding(a, shape);
  MemoryPlan plan;
  plan.weight_bytes = stage_weight_bytes(a, p, shape, s);
  plan.reserve_bytes = reserve_bytes(a, s, shape, limits);
  plan.kv_capacity_bytes = gpu.memory_bytes * limits.memory_utilization - plan.weight_bytes - plan.reserve_bytes;
  return plan;
}

double kv_bytes_per_gpu(const Architecture& a, const Precision& p, const Sharding& s, double context_tokens) {
  return kv_cache_bytes(a, p, context_tokens) * s.kv_cache_share * s.stage_layers / a.layers;
}

bool holds_model(const Architecture& a, const Precision& p, const Gpu& gpu, Shape shape, const EngineLimits& limits) {
  const double useful = kUsefulRequests * kv_bytes_per_gpu(a, p, sharding(a, shape), kUsefulContextTokens);
  return memory_plan(a, p, gpu, shape, limits).kv_capacity_bytes >= useful;
}

}  // namespace cascadia
