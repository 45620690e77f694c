#pragma once

#include "hardware.hpp"
#include "model.hpp"

namespace cascadia {

/// How the parts of a model are divided over the GPUs of one engine. Shares are of the GPU that holds most.
struct Sharding {
  int stage_layers = 0;       // layers of the longest pipeline stage
  double head_share = 1;      // attention heads, split over tp GPUs
  double tensor_share = 1;    // all other matrices, split over the whole group
  double kv_head_share = 1;   // KV heads: replicated once tp exceeds their number
  double kv_cache_share = 1;  // KV cache: as the heads; MLA's compressed cache is whole on every GPU
};

Sharding sharding(const Architecture& a, Shape shape);

/// Attention weights of one layer that one GPU holds and multiplies with [parameters].
double attention_parameters_per_gpu(const Architecture& a, const Sharding& s);

/// Memory of the fullest GPU of an engine.
struct MemoryPlan {
  double weight_bytes = 0;
  double reserve_bytes = 0;      // activations, logits, CUDA context
  double kv_capacity_bytes = 0;  // negative when the weights do not fit
};

MemoryPlan memory_plan(const Architecture& a, const Precision& p, const Gpu& gpu, Shape shape,
                       const EngineLimits& limits);

/// KV cache on the fullest GPU for one request with `context_tokens` tokens.
double kv_bytes_per_gpu(const Architecture& a, const Precision& p, const Sharding& s, double context_tokens);

/// Whether the weights fit and leave a KV cache worth having.
bool holds_model(const Architecture& a, const Precision& p, const Gpu& gpu, Shape shape, const EngineLimits& limits);

}  // namespace cascadia
