#include "model.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

namespace cascadia {
namespace {

constexpr double kBf16Bytes = 2.0;
// One fp32 scale per 128 x 128 block (fp8), one bf16 scale per output channel of a few thousand weights (int8).
constexpr double kFp8Bits = 8.0 + 32.0 / (128.0 * 128.0);
constexpr double kInt8Bits = 8.0 + 16.0 / 4096.0;
// Groups of 128 with a 16-bit scale and a 16-bit zero point (int4); groups of 32 with an 8-bit exponent (mxfp4).
constexpr double kFourBits = 4.25;

void require(bool holds, const std::string& field, int value, const std::string& fix) {
  if (!holds) {
    throw std::invalid_argument("Architecture field " + field + " is " + std::to_string(value) + ": " + fix + ".");
  }
}

double matrices(const Architecture& a) { return a.gated ? 3.0 : 2.0; }

double stored_bytes(double parameters, WeightFormat format) { return parameters * weight_bits(format) / 8.0; }

void validate_feed_forward(const Architecture& a) {
  require(a.dense_layers >= 0 && a.dense_layers <= a.layers, "dense_layers", a.dense_layers,
          "it must lie between 0 and layers");
  if (a.dense_layers > 0) {
    require(a.dense_intermediate > 0, "dense_intermediate", a.dense_intermediate, "dense layers need a width above 0");
  }
  if (a.moe_layers() > 0) {
    require(a.experts > 0, "experts", a.experts, "layers without a dense feed-forward need routed experts");
    require(a.experts_per_token > 0 && a.experts_per_token <= a.experts, "experts_per_token", a.experts_per_token,
            "it must lie between 1 and experts");
    require(a.expert_intermediate > 0, "expert_intermediate", a.expert_intermediate, "experts need a width above 0");
    require(a.shared_intermediate >= 0, "shared_intermediate", a.shared_intermediate, "it must not be negative");
  }
}

void validate_attention(const Architecture& a) {
  if (a.latent_attention()) {
    require(a.q_lora_rank >= 0, "q_lora_rank", a.q_lora_rank, "it must not be negative");
    require(a.qk_nope_dim > 0, "qk_nope_dim", a.qk_nope_dim, "latent attention needs a width above 0");
    require(a.qk_rope_dim > 0, "qk_rope_dim", a.qk_rope_dim, "latent attention needs a width above 0");
    require(a.v_head_dim > 0, "v_head_dim", a.v_head_dim, "latent attention needs a width above 0");
  } else {
    require(a.kv_lora_rank == 0, "kv_lora_rank", a.kv_lora_rank, "it must not be negative");
    require(a.kv_heads > 0 && a.kv_heads <= a.heads, "kv_heads", a.kv_heads, "it must lie between 1 and heads");
    require(a.head_dim > 0, "head_dim", a.head_dim, "it must be above 0");
  }
  require(a.windowed_layers >= 0 && a.windowed_layers <= a.layers, "windowed_layers", a.windowed_layers,
          "it must lie between 0 and layers");
  require(a.window >= (a.windowed_layers > 0 ? 1 : 0), "window", a.window,
          "windowed layers need a window of at least one token");
}

}  // namespace

void validate(const Architecture& a) {
  require(a.layers > 0, "layers", a.layers, "a model needs at least one layer");
  require(a.hidden > 0, "hidden", a.hidden, "it must be above 0");
  require(a.heads > 0, "heads", a.heads, "it must be above 0");
  require(a.vocab > 0, "vocab", a.vocab, "it must be above 0");
  validate_attention(a);
  validate_feed_forward(a);
}

double weight_bits(WeightFormat format) {
  switch (format) {
    case WeightFormat::bf16:
      return 16.0;
    case WeightFormat::fp8:
      return kFp8Bits;
    case WeightFormat::int8:
      return kInt8Bits;
    case WeightFormat::int4:
    case WeightFormat::mxfp4:
      return kFourBits;
  }
  throw std::logic_error("unknown weight format");
}

ComputeType compute_type(WeightFormat format) {
  switch (format) {
    case WeightFormat::fp8:
      return ComputeType::fp8;
    case WeightFormat::int8:
      return ComputeType::int8;
    case WeightFormat::bf16:
    case WeightFormat::int4:
    case WeightFormat::mxfp4:
      return ComputeType::bf16;
  }
  throw std::logic_error("unknown weight format");
}

Precision parse_precision(std::string_view weights, std::string_view kv) {
  Precision p;
  if (weights == "bf16") {
    p.dense = p.expert = WeightFormat::bf16;
  } else if (weights == "fp8") {
    p.dense = p.expert = WeightFormat::fp8;
  } else if (weights == "int8") {
    p.dense = p.expert = WeightFormat::int8;
  } else if (weights == "int4") {
    p.dense = p.expert = WeightFormat::int4;
  } else if (weights == "mxfp4") {
    p.expert = WeightFormat::mxfp4;
  } else {
    throw std::invalid_argument("Weight precision '" + std::string(weights) +
                                "' is unknown: use bf16, fp8, int8, int4 or mxfp4.");
  }
  if (kv != "bf16" && kv != "fp8") {
    throw std::invalid_argument("KV precision '" + std::string(kv) + "' is unknown: use bf16 or fp8.");
  }
  p.kv_bytes_per_element = kv == "fp8" ? 1.0 : 2.0;
  return p;
}

double attention_parameters(const Architecture& a) {
  const double hidden = a.hidden;
  const double heads = a.heads;
  if (!a.latent_attention()) {
    return hidden * a.head_dim * (2.0 * heads + 2.0 * a.kv_heads);
  }
  const double query_width = heads * (a.qk_nope_dim + a.qk_rope_dim);
  const double query = a.q_lora_rank > 0 ? a.q_lora_rank * (hidden + query_width) : hidden * query_width;
  const double compress = hidden * (a.kv_lora_rank + a.qk_rope_dim);
  const double expand = a.kv_lora_rank * heads * (a.qk_nope_dim + a.v_head_dim);
  return query + compress + expand + heads * a.v_head_dim * hidden;
}

double dense_ffn_parameters(const Architecture& a) { return matrices(a) * a.hidden * a.dense_intermediate; }

double expert_parameters(const Architecture& a) { return matrices(a) * a.hidden * a.expert_intermediate; }

double shared_expert_parameters(const Architecture& a) { return matrices(a) * a.hidden * a.shared_intermediate; }

double router_parameters(const Architecture& a) { return static_cast<double>(a.hidden) * a.experts; }

double norm_parameters(const Architecture& a) { return 2.0 * a.hidden; }

double embedding_parameters(const Architecture& a) { return static_cast<double>(a.vocab) * a.hidden; }

double total_parameters(const Architecture& a) {
  const double moe = a.experts * expert_parameters(a) + shared_expert_parameters(a) + router_parameters(a);
  return a.layers * (attention_parameters(a) + norm_parameters(a)) + a.dense_layers * dense_ffn_parameters(a) +
         a.moe_layers() * moe + (a.tied_embeddings ? 1.0 : 2.0) * embedding_parameters(a) + a.hidden;
}

double active_parameters(const Architecture& a) {
  const double moe = a.experts_per_token * expert_parameters(a) + shared_expert_parameters(a) + router_parameters(a);
  return a.layers * (attention_parameters(a) + norm_parameters(a)) + a.dense_layers * dense_ffn_parameters(a) +
         a.moe_layers() * moe + embedding_parameters(a) + a.hidden;
}

double weight_bytes(const Architecture& a, const Precision& p) {
  const double dense = a.layers * attention_parameters(a) + a.dense_layers * dense_ffn_parameters(a) +
                       a.moe_layers() * shared_expert_parameters(a);
  const double experts = static_cast<double>(a.moe_layers()) * a.experts * expert_parameters(a);
  return stored_bytes(dense, p.dense) + stored_bytes(experts, p.expert) +
         kBf16Bytes * (total_parameters(a) - dense - experts);
}

double kv_elements(const Architecture& a) {
  return a.latent_attention() ? static_cast<double>(a.kv_lora_rank) + a.qk_rope_dim : 2.0 * a.kv_heads * a.head_dim;
}

double kv_cache_bytes(const Architecture& a, const Precision& p, double context_tokens) {
  const double windowed = std::min(context_tokens, static_cast<double>(a.window));
  return kv_elements(a) * p.kv_bytes_per_element *
         ((a.layers - a.windowed_layers) * context_tokens + a.windowed_layers * windowed);
}

}  // namespace cascadia
