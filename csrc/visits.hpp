#pragma once
#include <cstdint>
#include <memory>

namespace cascadia {

inline constexpr std::uint32_t kNobody = 0xffffffff;
inline constexpr int kHandleBits = 24;  // of a visit, in an engine's agenda
inline constexpr std::uint32_t kMostRequests = 16'000'000;
static_assert(kMostRequests <= 1U << kHandleBits);

/// One request at one station, while it waits or is served there, in one line of the cache.
struct alignas(64) Visit {
  double admitted_s, first_token_s, deadline_s;
  std::uint32_t request, drawn;  // of the simulated ones, and of those it was drawn from
  std::uint32_t tokens_in, tokens_out;
  std::uint32_t written;      // output tokens, when it last joined or left the decodes
  std::uint32_t joined_step;  // low bits of the number of the step when it last joined them
  std::uint32_t admission;    // number of its latest admission to the engine
  std::uint32_t next;         // in a queue, or among the free ones
  std::uint16_t path;         // bit s: the request visits stage s
  std::uint16_t judged;       // bit s: what stage s answers is judged before anybody sees it
  std::uint8_t row;           // of the results
  std::uint8_t preempted;
  bool growing;  // its context is shorter than the window

  std::uint32_t to_read() const { return tokens_in + written; }
};

static_assert(sizeof(Visit) == 64);

/// Visits in flight by handle. The one freed last is taken first: it is still in the cache. Memory for as many as there
/// are requests is reserved, and used as far as they are in flight at once.
class Visits {
 public:
  explicit Visits(std::uint32_t most) : slots_(std::make_unique_for_overwrite<Visit[]>(most)) {}

  Visit& operator[](std::uint32_t handle) { return slots_[handle]; }
  void expect(std::uint32_t handle) const { __builtin_prefetch(&slots_[handle]); }
  std::uint32_t take() {
    if (free_ == kNobody) return used_++;
    const std::uint32_t handle = free_;
    free_ = slots_[handle].next;
    return handle;
  }
  void free(std::uint32_t handle) {
    slots_[handle].request = kNobody;
    slots_[handle].next = free_;
    free_ = handle;
  }
  template <class Look>
  void for_each_in_flight(const Look& look) const {
    for (std::uint32_t handle = 0; handle < used_; ++handle)
      if (slots_[handle].request != kNobody) look(slots_[handle]);
  }

 private:
  std::unique_ptr<Visit[]> slots_;
  std::uint32_t used_ = 0, free_ = kNobody;
};

}  // namespace cascadia
