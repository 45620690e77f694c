#pragma once
#include <algorithm>
#include <bit>
#include <cstdint>
#include <vector>

#include "context_costs.hpp"

namespace cascadia {

/// The contexts of the sequences that decode in one engine, and the KV cache they hold. All of them grow by one token
/// per step, so that their sums, and the blocks they take, follow in closed form over any number of steps.
///
/// Layers with full attention keep whole blocks; layers with a sliding window keep the tokens inside it.
class Contexts {
 public:
  /// `block_tokens` is a power of two.
  Contexts(const ContextCosts& costs, int block_tokens)
      : costs_(&costs),
        shift_(std::countr_zero(static_cast<unsigned>(block_tokens))),
        block_(block_tokens),
        phases_(static_cast<std::size_t>(block_tokens)) {}

  std::int64_t count() const { return count_; }
  /// Decode steps so far.
  std::int64_t steps() const { return steps_; }
  /// Whether the context still grows in windowed layers; that is to end with settle().
  bool add(std::int64_t context);
  void remove(std::int64_t context, bool growing);
  /// One context has reached the window.
  void settle() { --growing_; }
  void advance(std::int64_t steps);

  /// Decode attention of the next step, and by how much that grows from one step to the next.
  double attention_s() const {
    return costs_->sequence_s * static_cast<double>(count_) + costs_->decode_s.full * static_cast<double>(tokens_) +
           costs_->decode_s.windowed * static_cast<double>(in_window_);
  }
  double attention_growth_s() const {
    return costs_->decode_s.full * static_cast<double>(count_) +
           costs_->decode_s.windowed * static_cast<double>(growing_);
  }

  double kv_bytes() const { return bytes(blocks_, in_window_); }
  /// KV cache of one context of that length.
  double kv_bytes_of(std::int64_t context) const {
    return bytes(blocks_of(context), context < window() ? context : window());
  }
  double kv_bytes_after(std::int64_t steps) const {
    return bytes(blocks_ + added_blocks(steps), in_window_ + growing_ * steps);
  }
  /// The same or a little more, and faster.
  double most_bytes_after(std::int64_t steps) const {
    return bytes(blocks_ + ((steps >> shift_) + 1) * count_, in_window_ + growing_ * steps);
  }
  /// How many steps, from 1 to `most`, can start before the cache exceeds the capacity; the first one fits.
  std::int64_t steps_within(double capacity_bytes, std::int64_t most) const;

 private:
  std::int64_t window() const { return static_cast<std::int64_t>(costs_->window); }
  std::int64_t blocks_of(std::int64_t tokens) const { return (tokens + block_ - 1) >> shift_; }
  double bytes(std::int64_t blocks, std::int64_t in_window) const {
    return costs_->kv_bytes_per_token.full * static_cast<double>(blocks << shift_) +
           costs_->kv_bytes_per_token.windowed * static_cast<double>(in_window);
  }
  std::size_t phase(std::int64_t context) const { return static_cast<std::size_t>((context - steps_) & (block_ - 1)); }
  std::int64_t added_blocks(std::int64_t steps) const;

  const ContextCosts* costs_;
  int shift_;
  std::int64_t block_;
  std::vector<std::int32_t> phases_;  // contexts by (length - steps so far) modulo the block, which does not change
  std::int64_t steps_ = 0, count_ = 0, tokens_ = 0, blocks_ = 0;
  std::int64_t in_window_ = 0, growing_ = 0;  // tokens that windowed layers keep, contexts shorter than the window
};

inline bool Contexts::add(std::int64_t context) {
  const bool growing = context < window();
  ++count_;
  tokens_ += context;
  blocks_ += blocks_of(context);
  ++phases_[phase(context)];
  in_window_ += growing ? context : window();
  growing_ += growing;
  return growing;
}

inline void Contexts::remove(std::int64_t context, bool growing) {
  --count_;
  tokens_ -= context;
  blocks_ -= blocks_of(context);
  --phases_[phase(context)];
  in_window_ -= std::min(context, window());
  growing_ -= growing;
}

inline void Contexts::advance(std::int64_t steps) {
  blocks_ += added_blocks(steps);
  tokens_ += count_ * steps;
  in_window_ += growing_ * steps;
  steps_ += steps;
}

// In every step those contexts take another block whose blocks are full.
inline std::int64_t Contexts::added_blocks(std::int64_t steps) const {
  std::int64_t added = (steps >> shift_) * count_;
  for (std::int64_t full = -steps_, left = steps & (block_ - 1); left > 0; --left, --full)
    added += phases_[static_cast<std::size_t>(full & (block_ - 1))];
  return added;
}

inline std::int64_t Contexts::steps_within(double capacity_bytes, std::int64_t most) const {
  if (most_bytes_after(most - 1) <= capacity_bytes) return most;
  std::int64_t fits = 0, exceeds = most;
  while (exceeds - fits > 1) {
    const std::int64_t middle = fits + (exceeds - fits) / 2;
    (kv_bytes_after(middle) <= capacity_bytes ? fits : exceeds) = middle;
  }
  return fits + 1;
}

}  // namespace cascadia
