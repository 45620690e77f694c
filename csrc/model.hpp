#pragma once

#include <string_view>

namespace cascadia {

/// Shape of a transformer, as its Hugging Face configuration states it. Zero means "absent".
struct Architecture {
  int layers = 0;
  int hidden = 0;
  int heads = 0;
  int kv_heads = 0;
  int head_dim = 0;
  int vocab = 0;
  int dense_layers = 0;  // layers whose feed-forward is dense; the others are mixtures of experts
  int dense_intermediate = 0;
  int experts = 0;
  int experts_per_token = 0;
  int expert_intermediate = 0;
  int shared_intermediate = 0;  // width of all shared experts of a layer together
  int q_lora_rank = 0;          // multi-head latent attention (MLA) when kv_lora_rank > 0
  int kv_lora_rank = 0;
  int qk_nope_dim = 0;
  int qk_rope_dim = 0;
  int v_head_dim = 0;
  int window = 0;  // sliding-window length [tokens] of windowed_layers layers
  int windowed_layers = 0;
  bool tied_embeddings = false;
  bool gated = true;  // SwiGLU: three matrices per feed-forward, otherwise two

  bool latent_attention() const { return kv_lora_rank > 0; }
  int moe_layers() const { return layers - dense_layers; }
};

/// Throws std::invalid_argument with one sentence naming the field, its value and the fix.
void validate(const Architecture& a);

enum class WeightFormat { bf16, fp8, int8, int4, mxfp4 };
enum class ComputeType { bf16, fp8, int8 };

/// Stored bits per weight, block scales included.
double weight_bits(WeightFormat format);
/// Arithmetic the matrix products run in; int4 and mxfp4 store weights only and compute in bf16.
ComputeType compute_type(WeightFormat format);

/// How weights and KV cache are stored. Embeddings, LM head, router and norms stay in bf16.
struct Precision {
  WeightFormat dense = WeightFormat::bf16;   // attention projections, dense and shared feed-forwards
  WeightFormat expert = WeightFormat::bf16;  // routed experts
  double kv_bytes_per_element = 2.0;
};

/// Names: weights bf16, fp8, int8, int4, mxfp4 (routed experts only); kv bf16, fp8.
Precision parse_precision(std::string_view weights, std::string_view kv);

// Parameters of one layer's parts.
double attention_parameters(const Architecture& a);
double dense_ffn_parameters(const Architecture& a);
double expert_parameters(const Architecture& a);  // one routed expert
double shared_expert_parameters(const Architecture& a);
double router_parameters(const Architecture& a);
double norm_parameters(const Architecture& a);  // both norms of a layer

/// Parameters of the input embedding table; the LM head is another table of this size unless tied.
double embedding_parameters(const Architecture& a);

double total_parameters(const Architecture& a);
/// Parameters one token is multiplied with: the LM head counts, the embedding look-up does not.
double active_parameters(const Architecture& a);

/// Bytes of all weights, stored once.
double weight_bytes(const Architecture& a, const Precision& p);

/// Elements one cached token holds in one layer, all heads together.
double kv_elements(const Architecture& a);
/// Bytes the KV cache of one request with `context_tokens` tokens takes, stored once.
double kv_cache_bytes(const Architecture& a, const Precision& p, double context_tokens);

}  // namespace cascadia
