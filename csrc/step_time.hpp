#pragma once

#include "context_costs.hpp"
#include "hardware.hpp"
#include "memory.hpp"
#include "model.hpp"

namespace cascadia {

/// One engine: everything about its speed and memory that does not depend on the workload.
///
/// A pipeline (pp > 1) is seen as one virtual engine with pp micro-batches in flight. A round advances every running
/// sequence by one token; it lasts as long as one micro-batch, a pp-th of the work, takes through all stages.
/// Every time is finite and non-decreasing in each of its token arguments, among rounds that carry prompts and among
/// those that carry none; searches rely on that.
class Replica {
 public:
  Replica(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& efficiency, Shape shape,
          const EngineLimits& limits);

  /// One round that carries `tokens` tokens, decoding and prompt together, of which `sampled` reach the LM head:
  /// matrix products, experts, collectives, pipeline hops and overheads, without attention over the context. Tokens
  /// beyond the sampled ones belong to prompts, and a round with prompts is slower to launch.
  double linear_s(double tokens, double sampled) const;
  /// Attention of one decoding sequence over `context_tokens` cached tokens in one round.
  double decode_attention_s(double context_tokens) const { return context_.decode_attention_s(context_tokens); }
  /// The same summed over the rounds of a request that writes `tokens_out` tokens after `tokens_in`.
  double decode_attention_sum_s(double tokens_in, double tokens_out) const;
  /// Attention of a prompt chunk of `tokens` tokens that follows `before` tokens of the same prompt.
  double prefill_attention_s(double tokens, double before) const {
    return context_.prefill_attention_s(tokens, before);
  }
  /// What a request's first token takes beyond its rounds: the front end and, for a last prompt chunk of `tokens`
  /// tokens, crossing the stages of a pipeline one after another and occupying one copy of the attention only.
  double fill_s(double tokens) const;
  /// One round of `sequences` decoding sequences with equal context and one prompt chunk.
  double step_s(double sequences, double context_per_sequence, double prompt_tokens, double prompt_before) const;

  /// KV cache of the whole engine, and what one request takes of it; negative capacity: the weights do not fit.
  double kv_capacity_bytes() const { return kv_capacity_bytes_; }
  double kv_bytes(double context_tokens) const { return context_.kv_bytes(context_tokens); }
  const ContextCosts& context() const { return context_; }

  const Shape& shape() const { return shape_; }
  const EngineLimits& limits() const { return limits_; }

 private:
  /// One matrix product: weights are read once, arithmetic grows with the tokens.
  struct Gemm {
    double read_s = 0;
    double token_s = 0;
    double operator()(double tokens) const;
  };
  /// Sum of a hidden state over a group of GPUs, by the fastest of three ways: in one pass, in two, or in bulk.
  struct AllReduce {
    double count = 0;
    double latency_s = 0, one_pass_s = 0;  // one_pass_s, two_pass_s and bulk_s per token
    double exchange_s = 0, two_pass_s = 0;
    double bulk_latency_s = 0, bulk_s = 0;
    double operator()(double tokens) const;
  };
  void set_gemms(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& e);
  void set_attention(const Architecture& a, const Precision& p, const Gpu& gpu, const Efficiency& e);
  void set_links(const Architecture& a, const Gpu& gpu, const Efficiency& e);
  AllReduce all_reduce(double count, int gpus, const Architecture& a, const Gpu& gpu, const Efficiency& e) const;
  void set_overheads(const Architecture& a, const Efficiency& e);

  Shape shape_;
  EngineLimits limits_;
  Sharding sharding_;
  double kv_capacity_bytes_ = 0;
  double micro_batch_share_ = 1;  // of the tokens of a round
  double rank_share_ = 1;         // of the tokens of a micro-batch, per copy of the attention
  double depth_ = 1;              // length of a pipeline of equal stages, relative to the model's own
  Gemm attention_;                // these and the next two cover all layers of their kind
  Gemm dense_;
  Gemm shared_;
  Gemm head_;
  double expert_read_s_ = 0;  // if every expert were read
  double expert_token_s_ = 0;
  double log_miss_ = 0;  // log of the chance that a token passes an expert by
  double fullest_ = 1;   // load of the fullest GPU over the mean, under expert parallelism
  AllReduce attention_sum_;
  AllReduce feed_forward_sum_;
  double round_s_ = 0;     // overheads and hop latencies
  double prompt_s_ = 0;    // of a round that carries prompts
  double token_s_ = 0;     // hop bytes and hidden states in memory, per token of a micro-batch
  double sequence_s_ = 0;  // per sampled sequence
  double request_s_ = 0;
  ContextCosts context_;
};

}  // namespace cascadia
