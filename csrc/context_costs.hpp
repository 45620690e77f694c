#pragma once
#include <algorithm>

namespace cascadia {

/// Cost per context token (or per pair of tokens) in all full layers, and in all layers with a sliding window.
struct PerToken {
  double full = 0;
  double windowed = 0;
};

/// What the contexts of the sequences in an engine cost: time to attend to them, and memory to keep them.
struct ContextCosts {
  double window = 0;
  double sequence_s = 0;  // decode attention of a sequence, whatever its context
  PerToken decode_s;
  PerToken prefill_s;
  PerToken kv_bytes_per_token;

  double over_context(const PerToken& cost, double tokens) const {
    return cost.full * tokens + cost.windowed * (tokens < window ? tokens : window);
  }
  /// Summed over `tokens` tokens, each of which sees those before it: `before` for the first.
  double over_pairs(const PerToken& cost, double tokens, double before) const {
    const double growing = std::clamp(window - before, 0.0, tokens);  // tokens that still see the whole prompt
    return cost.full * tokens * (before + 0.5 * tokens) +
           cost.windowed * (growing * (before + 0.5 * growing) + window * (tokens - growing));
  }
  /// Summed over `steps` steps of a sequence whose context is `context` tokens, a whole number, in the first of them.
  double over_steps(const PerToken& cost, double steps, double context) const {
    const double growing = std::clamp(window - context, 0.0, steps);
    return cost.full * steps * (context + 0.5 * (steps - 1)) +
           cost.windowed * (growing * (context + 0.5 * (growing - 1)) + window * (steps - growing));
  }
  double decode_attention_s(double context_tokens) const { return sequence_s + over_context(decode_s, context_tokens); }
  double prefill_attention_s(double tokens, double before) const {
    if (tokens <= 0) return 0;
    // A short chunk after a long prompt is bound by reading the cache, as a decode step is.
    return std::max(over_pairs(prefill_s, tokens, before), decode_attention_s(before + tokens));
  }
  double kv_bytes(double tokens) const { return over_context(kv_bytes_per_token, tokens); }
};

}  // namespace cascadia
