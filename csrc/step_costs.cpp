#include "step_costs.hpp"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace cascadia {

StepCosts::StepCosts(const Replica& replica)
    : context(replica.context()),
      kv_capacity_bytes(replica.kv_capacity_bytes()),
      max_num_seqs(replica.limits().max_num_seqs),
      max_batched_tokens(replica.limits().max_batched_tokens) {
  check();
  const double many = max_batched_tokens + 1;  // more tokens than are ever sampled: a step with prompts
  for (int n = 0; n <= max_num_seqs; ++n) {
    decode_step_s.push_back(replica.linear_s(n, n));
    sampled_s.push_back(replica.linear_s(many, n) - replica.linear_s(many, 0));
  }
  for (int tokens = 0; tokens <= max_batched_tokens; ++tokens) prompt_step_s.push_back(replica.linear_s(tokens, 0));
  // The same for every prompt where all GPUs work on it at once.
  const int longest = replica.fill_s(1) == replica.fill_s(max_batched_tokens) ? 0 : max_batched_tokens;
  for (int tokens = 0; tokens <= longest; ++tokens) fill_table_s.push_back(replica.fill_s(std::max(tokens, 1)));
}

StepCosts::StepCosts(std::vector<double> decode_step, std::vector<double> prompt_step, std::vector<double> sampled,
                     ContextCosts context_costs, double kv_capacity, double request)
    : decode_step_s(std::move(decode_step)),
      prompt_step_s(std::move(prompt_step)),
      sampled_s(std::move(sampled)),
      fill_table_s{request},
      context(context_costs),
      kv_capacity_bytes(kv_capacity),
      max_num_seqs(static_cast<int>(decode_step_s.size()) - 1),
      max_batched_tokens(static_cast<int>(prompt_step_s.size()) - 1) {
  if (sampled_s.size() != decode_step_s.size() || max_num_seqs < 1)
    throw std::invalid_argument("sampled_s has " + std::to_string(sampled_s.size()) + " entries and decode_step_s " +
                                std::to_string(decode_step_s.size()) +
                                ": give both max_num_seqs + 1 of them, for 0, 1, 2 ... sequences.");
  check();
}

void StepCosts::check() const {
  if (max_num_seqs > max_batched_tokens)
    throw std::invalid_argument("max_num_seqs is " + std::to_string(max_num_seqs) + " and max_batched_tokens " +
                                std::to_string(max_batched_tokens) +
                                ": give room for a token of every sequence in a step.");
}

std::pair<double, double> StepCosts::alone_s(std::size_t tokens_in, std::size_t tokens_out) const {
  const auto budget = static_cast<std::size_t>(max_batched_tokens);
  double first_s = fill_s(tokens_in);
  for (std::size_t read = 0; read < tokens_in;) {
    const std::size_t chunk = std::min(tokens_in - read, budget);
    first_s += step_s(chunk, read + chunk == tokens_in ? 1 : 0) +
               context.prefill_attention_s(static_cast<double>(chunk), static_cast<double>(read));
    read += chunk;
  }
  double last_s = first_s;
  if (tokens_out > 1) {
    const auto steps = static_cast<double>(tokens_out - 1);
    last_s += steps * (decode_step_s[1] + context.sequence_s) +
              context.over_steps(context.decode_s, steps, static_cast<double>(tokens_in) + 1);
  }
  return {first_s, last_s};
}

}  // namespace cascadia
