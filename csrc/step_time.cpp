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
// A roofline (Williams et al., CACM 2009) with a rounded ridge: reading and arithmetic overlap incompletely, and where
// both take as long, a product takes 1 + sqrt(kKnee) times that. Measured on bf16 products.
constexpr double kKnee = 0.0935;
constexpr double kActivationMemory = 0.8;  // of the bandwidth, reached by norms and element-wise kernels
// Matrix products per layer: query-key-value and output; with MLA down, query up, key and value absorbed, output.
constexpr double kAttentionGemms = 2, kLatentAttentionGemms = 5;
constexpr double kFeedForwardGemms = 2;  // gate and up are one

/// Peak of the arithmetic a weight format runs in; a GPU without that format unpacks to bf16.
double peak_flops_per_s(const Gpu& gpu, WeightFormat format) {
  const ComputeType type = compute_type(format);
  if (type == ComputeType::fp8 && gpu.fp8_flops_per_s > 0) return gpu.fp8_flops_per_s;
  if (type == ComputeType::int8 && gpu.int8_ops_per_s > 0) return gpu.int8_ops_per_s;
  return gpu.bf16_flops_per_s;
}

Shape checked(const Architecture& a, const EngineLimits& limits, Shape shape) {
  const std::string why = why_impossible(a, shape, limits.gpus_per_node);
  if (!why.empty()) {
    const auto number = [](int value) { return std::to_string(value); };
    throw std::invalid_argument("Shape tp" + number(shape.tp) + " x pp" + number(shape.pp) + " x attention_dp" +
                                number(shape.attention_dp) + " with ep" + number(shape.ep) +
                                " is not possible: " + why + ".");
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
      rank_share_(1.0 / shape.attention_dp),
      depth_(static_cast<double>(sharding_.stage_layers) * shape.pp / a.layers) {
  context_.window = a.window;
  kv_capacity_bytes_ = shape.gpus() * memory_plan(a, p, gpu, shape, limits).kv_capacity_bytes;
  set_gemms(a, p, gpu, efficiency);
  set_attention(a, p, gpu, efficiency);
  set_links(a, gpu, efficiency);
  set_overheads(a, efficiency);
}

double Replica::Gemm::operator()(double tokens) const {
  const double compute_s = token_s * tokens, apart = read_s - compute_s;
  return 0.5 * (read_s + compute_s + std::sqrt(apart * apart + 4 * kKnee * read_s * compute_s));
}

double Replica::AllReduce::operator()(double tokens) const {
  if (count == 0) return 0;
  const double one = latency_s + one_pass_s * tokens;
  const double two = latency_s + exchange_s + two_pass_s * tokens;
  return count * std::min({one, two, bulk_latency_s + bulk_s * tokens});
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
  // Experts run one after another, some of them bound by reading and others by arithmetic: their times add up.
  const double width = static_cast<double>(a.expert_intermediate) * shape_.ep / shape_.group();
  const double compute = e.expert_compute * width / (width + e.expert_half_width);
  const Gemm one = gemm(depth_ * a.moe_layers(), expert_parameters(a) * share, p.expert, e.expert_memory, compute);
  const double fullest = shape_.ep > 1 ? 1 + e.expert_imbalance : 1;
  expert_read_s_ = a.experts * one.read_s;
  fullest_ = fullest;
  expert_token_s_ = fullest * a.experts_per_token * one.token_s;
  log_miss_ = std::log1p(-static_cast<double>(a.experts_per_token) / a.experts);
}

void Replica::set_attention(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& e) {
  const double flops_per_s = gpu.bf16_flops_per_s * e.attention_compute;
  const double heads = a.heads * sharding_.head_share;
  const double bytes = kv_elements(a) * p.kv_bytes_per_element * sharding_.kv_cache_share;
  // Decode keeps MLA's queries in the compressed space, prefill expands keys and values to all heads (DeepSeek-V2,
  // arXiv 2405.04434, section 2.1).
  const double decode_width = a.latent_attention() ? 2.0 * a.kv_lora_rank + a.qk_rope_dim : 2.0 * a.head_dim;
  const double prefill_width = a.latent_attention() ? a.qk_nope_dim + a.qk_rope_dim + a.v_head_dim : 2.0 * a.head_dim;
  const double read_s = bytes / (gpu.bandwidth_bytes_per_s * e.attention_memory);
  const double decode_s = std::max(read_s, 2.0 * heads * decode_width / flops_per_s);
  const double prefill_s = 2.0 * heads * prefill_width / (gpu.bf16_flops_per_s * e.prefill_compute);
  const double full = depth_ * (a.layers - a.windowed_layers);
  const double windowed = depth_ * a.windowed_layers;
  // Per micro-batch a round holds a pp-th of the sequences, and each of them passes all layers. Copies of the attention
  // share sequences and prompts evenly; what a prompt alone takes longer, on one of them, is in fill_s.
  const double share = micro_batch_share_ * rank_share_;
  context_.decode_s = {full * decode_s * share, windowed * decode_s * share};
  context_.sequence_s = depth_ * a.layers * heads * e.head_s * share;
  context_.prefill_s = {full * prefill_s * share, windowed * prefill_s * share};
  // The cache is spread over the stages; counting every stage as full as the longest keeps the ratio to the capacity.
  context_.kv_bytes_per_token = {full * bytes * shape_.tp, windowed * bytes * shape_.tp};
}

// Inside a node as measured for custom kernels (one pass: every GPU reads all others; two passes: reduce-scatter and
// all-gather, which move 2 (g - 1) / g of the data, Patarasuk and Yuan, JPDC 2009) and for NCCL (bulk). Across nodes
// hierarchically: the sums of each node are reduced over the other links, every GPU carrying its share.
Replica::AllReduce Replica::all_reduce(double count, int gpus, const Architecture& a, const Gpu& gpu,
                                       const Efficiency& e) const {
  if (gpus == 1) return {};
  const int local = std::min(gpus, limits_.gpus_per_node), nodes = gpus / local;
  const double token_bytes = a.hidden * kBf16Bytes, ring = 2.0 * (local - 1) / local;
  const double small_bytes_per_s = gpu.link_bytes_per_s * e.allreduce_bandwidth;
  AllReduce sum{count,
                e.allreduce_latency_s,
                token_bytes * (local - 1) / small_bytes_per_s,
                e.allreduce_exchange_s,
                token_bytes * ring / small_bytes_per_s,
                e.bulk_latency_s,
                token_bytes * ring / (gpu.link_bytes_per_s * e.bulk_bandwidth)};
  if (nodes > 1) {
    const double between_s =
        token_bytes / local * 2.0 * (nodes - 1) / nodes / (gpu.internode_bytes_per_s * e.bulk_bandwidth);
    for (double* latency : {&sum.latency_s, &sum.bulk_latency_s}) *latency += 2.0 * e.hop_latency_s;
    for (double* per_token : {&sum.one_pass_s, &sum.two_pass_s, &sum.bulk_s}) *per_token += between_s;
  }
  return sum;
}

void Replica::set_links(const Architecture& a, const Gpu& gpu, const Efficiency& e) {
  attention_sum_ = all_reduce(depth_ * a.layers, shape_.tp, a, gpu, e);
  feed_forward_sum_ = all_reduce(depth_ * a.layers, shape_.group(), a, gpu, e);
  const double token_bytes = a.hidden * kBf16Bytes;
  token_s_ += depth_ * a.layers * e.activation_passes * token_bytes * rank_share_ /
              (gpu.bandwidth_bytes_per_s * kActivationMemory);
  if (shape_.pp > 1) {
    const int crossings = (shape_.gpus() + limits_.gpus_per_node - 1) / limits_.gpus_per_node - 1;
    const int inside = std::max(shape_.pp - 1 - crossings, 0);
    round_s_ += shape_.pp * e.hop_latency_s;  // the last one returns the sampled tokens
    // Each GPU of a stage sends its share of the activations.
    token_s_ += token_bytes * sharding_.tensor_share / e.hop_bandwidth *
                (inside / gpu.link_bytes_per_s + crossings / gpu.internode_bytes_per_s);
  }
}

void Replica::set_overheads(const Architecture& a, const Efficiency& e) {
  const bool latent = a.latent_attention();
  const double attention_s =
      (latent ? e.latent_attention_s : e.attention_s) + (latent ? kLatentAttentionGemms : kAttentionGemms) * e.gemm_s;
  const double shared_s = (1 + (a.shared_intermediate > 0 ? kFeedForwardGemms : 0)) * e.gemm_s;  // and the router
  round_s_ += e.step_overhead_s +
              depth_ * (a.layers * (attention_s + e.layer_s) + a.dense_layers * kFeedForwardGemms * e.gemm_s +
                        a.moe_layers() * (e.expert_s + shared_s));
  prompt_s_ = depth_ * (a.layers * e.prompt_layer_s + a.moe_layers() * e.prompt_expert_s);
  sequence_s_ = e.sequence_overhead_s;
  request_s_ = e.request_overhead_s;
}

double Replica::linear_s(double tokens, double sampled) const {
  if (tokens <= 0) return 0;
  const double batch = std::max(tokens * micro_batch_share_, std::min(tokens, 1.0));
  const double rank = std::max(batch * rank_share_, std::min(batch, 1.0));
  // The last stage of a pipeline alone samples, for one micro-batch after the other, and the others wait for it.
  const double turns = std::min<double>(shape_.pp, std::max(sampled, 1.0));
  const double head = sampled > 0 ? turns * head_(sampled / turns) : 0;
  double time_s = round_s_ + (tokens > sampled ? prompt_s_ : 0) + attention_(rank) + attention_sum_(rank) +
                  dense_(batch) + feed_forward_sum_(batch) + head + token_s_ * batch + sequence_s_ * sampled;
  if (expert_read_s_ > 0) {
    // Share of distinct experts, 1 - (1 - k/E)^tokens; no GPU reads more than all of its own.
    const double touched = std::min(1.0, -fullest_ * std::expm1(batch * log_miss_));
    time_s += shared_(batch) + expert_read_s_ * touched + expert_token_s_ * batch;
  }
  return time_s;
}

double Replica::decode_attention_sum_s(double tokens_in, double tokens_out) const {
  return context_.sequence_s * tokens_out + context_.over_pairs(context_.decode_s, tokens_out, tokens_in);
}

double Replica::fill_s(double tokens) const {
  const int apart = shape_.pp * shape_.attention_dp;  // parts of the engine that a prompt does not occupy at once
  if (apart == 1 || tokens <= 0) return request_s_;
  // Arithmetic only: linear, hence monotone; a chunk too short to be bound by arithmetic waits for next to nothing.
  const double rank_s = attention_.token_s + attention_sum_.count * attention_sum_.bulk_s;
  const double group_s = dense_.token_s + shared_.token_s + expert_token_s_ + token_s_ +
                         feed_forward_sum_.count * feed_forward_sum_.bulk_s;
  const double alone_s = (1.0 - micro_batch_share_ * rank_share_) * rank_s + (1.0 - micro_batch_share_) * group_s;
  return request_s_ + alone_s * tokens + (apart - 1) * prefill_attention_s(tokens, 0);
}

double Replica::step_s(double sequences, double context_per_sequence, double prompt_tokens,
                       double prompt_before) const {
  const double sampled = sequences + (prompt_tokens > 0 ? 1.0 : 0.0);
  return linear_s(sequences + prompt_tokens, sampled) + sequences * decode_attention_s(context_per_sequence) +
         prefill_attention_s(prompt_tokens, prompt_before);
}

}  // namespace cascadia
