#include "step_time.hpp"

#include <algorithm>
#include <cmath>
#include <stdexcept>
#include <string>

#include "shapes.hpp"

namespace cascadia {
namespace {

constexpr double kBf16Bytes = 2.0;
constexpr double kFlopsPerParameter = 2.0;  // one multiplication and one addition per token

/// Peak of the arithmetic a weight format runs in; a GPU without that format unpacks to bf16.
double peak_flops_per_s(const Gpu& gpu, WeightFormat format) {
  const ComputeType type = compute_type(format);
  if (type == ComputeType::fp8 && gpu.fp8_flops_per_s > 0) return gpu.fp8_flops_per_s;
  if (type == ComputeType::int8 && gpu.int8_ops_per_s > 0) return gpu.int8_ops_per_s;
  return gpu.bf16_flops_per_s;
}

Shape checked(const Architecture& a, const EngineLimits& limits, Shape shape) {
  if (shape.tp < 1 || shape.pp < 1 || !allowed(a, shape, limits.gpus_per_node)) {
    throw std::invalid_argument(
        "Shape tp" + std::to_string(shape.tp) + " x pp" + std::to_string(shape.pp) + " is not possible with " +
        std::to_string(a.heads) + " heads, " + std::to_string(a.layers) + " layers and nodes of " +
        std::to_string(limits.gpus_per_node) +
        " GPUs: tp must divide the heads and the node, and tp x pp must be whole nodes plus a power of two.");
  }
  return shape;
}

}  // namespace

Replica::Replica(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& efficiency, Shape shape,
                 const EngineLimits& limits)
    : shape_(checked(a, limits, shape)),
      limits_(limits),
      sharding_(sharding(a, shape)),
      micro_batch_share_(1.0 / shape.pp),
      depth_(static_cast<double>(sharding_.stage_layers) * shape.pp / a.layers),
      window_(a.window) {
  kv_capacity_bytes_ = shape.gpus() * memory_plan(a, p, gpu, shape, limits).kv_capacity_bytes;
  set_gemms(a, p, gpu, efficiency);
  set_attention(a, p, gpu, efficiency);
  set_links(a, gpu, efficiency);
  round_s_ += depth_ * (a.layers * efficiency.layer_overhead_s + a.moe_layers() * efficiency.expert_overhead_s) +
              efficiency.step_overhead_s;
  sequence_s_ = efficiency.sequence_overhead_s;
}

void Replica::set_gemms(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& e) {
  const auto gemm = [&](double count, double parameters, WeightFormat format, double memory, double compute) {
    const double bytes = parameters * weight_bits(format) / 8.0;
    return Gemm{count * bytes / (gpu.bandwidth_bytes_per_s * memory),
                count * kFlopsPerParameter * parameters / (peak_flops_per_s(gpu, format) * compute)};
  };
  const double share = sharding_.tensor_share;
  attention_ =
      gemm(depth_ * a.layers, attention_parameters_per_gpu(a, sharding_), p.dense, e.dense_memory, e.dense_compute);
  dense_ = gemm(depth_ * a.dense_layers, dense_ffn_parameters(a) * share, p.dense, e.dense_memory, e.dense_compute);
  shared_ =
      gemm(depth_ * a.moe_layers(), shared_expert_parameters(a) * share, p.dense, e.dense_memory, e.dense_compute);
  const Gemm router =
      gemm(depth_ * a.moe_layers(), router_parameters(a), WeightFormat::bf16, e.dense_memory, e.dense_compute);
  shared_.read_s += router.read_s;
  shared_.token_s += router.token_s;
  head_ = gemm(1.0, embedding_parameters(a) * share, WeightFormat::bf16, e.dense_memory, e.dense_compute);
  if (a.moe_layers() == 0) return;
  const Gemm one =
      gemm(depth_ * a.moe_layers(), expert_parameters(a) * share, p.expert, e.expert_memory, e.expert_compute);
  expert_read_s_ = a.experts * one.read_s;
  expert_token_s_ = a.experts_per_token * one.token_s;
  log_miss_ = std::log1p(-static_cast<double>(a.experts_per_token) / a.experts);
}

void Replica::set_attention(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& e) {
  const double flops_per_s = gpu.bf16_flops_per_s * e.attention_compute;
  const double heads = a.heads * sharding_.tensor_share;
  const double bytes = kv_elements(a) * p.kv_bytes_per_element * sharding_.kv_cache_share;
  // Decode keeps MLA's queries in the compressed space, prefill expands keys and values to all heads.
  const double decode_width = a.latent_attention() ? 2.0 * a.kv_lora_rank + a.qk_rope_dim : 2.0 * a.head_dim;
  const double prefill_width = a.latent_attention() ? a.qk_nope_dim + a.qk_rope_dim + a.v_head_dim : 2.0 * a.head_dim;
  const double read_s = bytes / (gpu.bandwidth_bytes_per_s * e.attention_memory);
  const double decode_s = std::max(read_s, 2.0 * heads * decode_width / flops_per_s);
  const double prefill_s = 2.0 * heads * prefill_width / flops_per_s;
  const double full = depth_ * (a.layers - a.windowed_layers);
  const double windowed = depth_ * a.windowed_layers;
  // Per micro-batch a round holds a pp-th of the sequences, and each of them passes all layers.
  decode_s_ = {full * decode_s * micro_batch_share_, windowed * decode_s * micro_batch_share_};
  prefill_s_ = {full * prefill_s * micro_batch_share_, windowed * prefill_s * micro_batch_share_};
  // The cache is spread over the stages; counting every stage as full as the longest keeps the ratio to the capacity.
  kv_bytes_ = {full * bytes * shape_.tp, windowed * bytes * shape_.tp};
}

void Replica::set_links(const Architecture& a, const Gpu& gpu, const Efficiency& e) {
  const double token_bytes = a.hidden * kBf16Bytes;
  if (shape_.tp > 1) {
    const double collectives = 2.0 * depth_ * a.layers;
    const double ring = 2.0 * (shape_.tp - 1) / shape_.tp;
    round_s_ += collectives * e.allreduce_latency_s;
    token_s_ += collectives * token_bytes * ring / (gpu.link_bytes_per_s * e.allreduce_bandwidth);
  }
  if (shape_.pp > 1) {
    const int crossings = (shape_.gpus() + limits_.gpus_per_node - 1) / limits_.gpus_per_node - 1;
    const int inside = shape_.pp - 1 - crossings;
    round_s_ += shape_.pp * e.hop_latency_s;  // the last one returns the sampled tokens
    // Each GPU of a stage sends its tp-th of the activations.
    token_s_ += token_bytes * sharding_.tensor_share / e.hop_bandwidth *
                (inside / gpu.link_bytes_per_s + crossings / gpu.internode_bytes_per_s);
  }
}

double Replica::linear_s(double tokens, double sampled) const {
  if (tokens <= 0) return 0;
  const double batch = std::max(tokens * micro_batch_share_, std::min(tokens, 1.0));
  // The last stage of a pipeline alone samples, for one micro-batch after the other, and the others wait for it.
  const double turns = std::min<double>(shape_.pp, std::max(sampled, 1.0));
  const double head = sampled > 0 ? turns * head_(sampled / turns) : 0;
  double time_s = round_s_ + attention_(batch) + dense_(batch) + head + token_s_ * batch + sequence_s_ * sampled;
  if (expert_read_s_ > 0) {
    const double touched = -std::expm1(batch * log_miss_);
    time_s += shared_(batch) + std::max(expert_read_s_ * touched, expert_token_s_ * batch);
  }
  return time_s;
}

double Replica::over_pairs(const PerToken& cost, double tokens, double before) const {
  const double growing = std::clamp(window_ - before, 0.0, tokens);  // tokens that still see the whole prompt
  return cost.full * tokens * (before + 0.5 * tokens) +
         cost.windowed * (growing * (before + 0.5 * growing) + window_ * (tokens - growing));
}

double Replica::decode_attention_sum_s(double tokens_in, double tokens_out) const {
  return over_pairs(decode_s_, tokens_out, tokens_in);
}

double Replica::prefill_attention_s(double tokens, double before) const {
  if (tokens <= 0) return 0;
  // A short chunk after a long prompt is bound by reading the cache, as a decode step is.
  return std::max(over_pairs(prefill_s_, tokens, before), decode_attention_s(before + tokens));
}

double Replica::fill_s(double tokens) const {
  if (shape_.pp == 1 || tokens <= 0) return 0;
  // Arithmetic only: linear, hence monotone; a chunk too short to be bound by arithmetic waits for next to nothing.
  const double per_token_s = attention_.token_s + dense_.token_s + shared_.token_s + expert_token_s_ + token_s_;
  return (1.0 - micro_batch_share_) * per_token_s * tokens + (shape_.pp - 1) * prefill_attention_s(tokens, 0);
}

double Replica::step_s(double sequences, double context_per_sequence, double prompt_tokens,
                       double prompt_before) const {
  const double sampled = sequences + (prompt_tokens > 0 ? 1.0 : 0.0);
  return linear_s(sequences + prompt_tokens, sampled) + sequences * decode_attention_s(context_per_sequence) +
         prefill_attention_s(prompt_tokens, prompt_before);
}

}  // namespace cascadia
