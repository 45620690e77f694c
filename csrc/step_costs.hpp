#pragma once
#include <span>
#include <utility>
#include <vector>

#include "context_costs.hpp"
#include "step_time.hpp"

namespace cascadia {

/// The step time of one engine taken apart, so that a simulated step costs a few additions: tables over tokens and
/// sequences, and costs of the context, which count only in sum.
struct StepCosts {
  explicit StepCosts(const Replica& replica);
  /// From measured tables instead; throws std::invalid_argument when their sizes do not fit.
  StepCosts(std::vector<double> decode_step_s, std::vector<double> prompt_step_s, std::vector<double> sampled_s,
            ContextCosts context, double kv_capacity_bytes, double request_s);

  /// A step without attention: `tokens` in all, of which `sampled` reach the LM head; the others belong to prompts.
  double step_s(std::size_t tokens, std::size_t sampled) const {
    return tokens == sampled ? decode_step_s[tokens] : prompt_step_s[tokens] + sampled_s[sampled];
  }
  /// What a request's first token takes beyond its steps.
  double fill_s(std::size_t tokens_in) const { return fill_table_s[std::min(tokens_in, fill_table_s.size() - 1)]; }
  /// First token and end of a request that is alone in the engine.
  std::pair<double, double> alone_s(std::size_t tokens_in, std::size_t tokens_out) const;

  std::vector<double> decode_step_s;  // by sequences, 0 to max_num_seqs
  std::vector<double> prompt_step_s;  // by tokens, 0 to max_batched_tokens, nothing sampled
  std::vector<double> sampled_s;      // what sampling adds to it, 0 to max_num_seqs
  std::vector<double> fill_table_s;   // by prompt tokens, up to the last entry
  ContextCosts context;
  double kv_capacity_bytes = 0;
  int max_num_seqs = 0, max_batched_tokens = 0;

 private:
  void check() const;
};

}  // namespace cascadia
