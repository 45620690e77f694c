#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "visits.hpp"

namespace cascadia {

/// What is due at which step, earliest first. A sorted array: for the few hundred sequences of an engine moving the
/// entries behind a new one, most often near the end, costs half of what a binary heap does.
class Agenda {
 public:
  bool empty() const { return first_ == entries_.size(); }
  std::int64_t step() const { return static_cast<std::int64_t>(entries_[first_] >> kHandleBits); }
  std::uint32_t visit() const { return handle(entries_[first_]); }
  void pop() {
    if (++first_ == entries_.size()) {
      entries_.clear();
      first_ = 0;
    }
  }
  void add(std::int64_t step, std::uint32_t visit) {
    if (entries_.size() == entries_.capacity() && first_ >= entries_.size() / 2) compact();
    const std::uint64_t entry = static_cast<std::uint64_t>(step) << kHandleBits | visit;
    entries_.push_back(entry);
    std::size_t at = entries_.size() - 1;
    for (; at > first_ && entries_[at - 1] > entry; --at) entries_[at] = entries_[at - 1];
    entries_[at] = entry;
  }
  template <class Look>
  void for_each(const Look& look) const {
    for (std::size_t i = first_; i < entries_.size(); ++i) look(handle(entries_[i]));
  }
  template <class Gone>
  void remove_if(const Gone& gone) {
    compact();
    std::erase_if(entries_, [&](std::uint64_t entry) { return gone(handle(entry)); });
  }

 private:
  static std::uint32_t handle(std::uint64_t entry) {
    return static_cast<std::uint32_t>(entry & ((1U << kHandleBits) - 1));
  }
  void compact() {
    entries_.erase(entries_.begin(), entries_.begin() + static_cast<std::ptrdiff_t>(first_));
    first_ = 0;
  }
  std::vector<std::uint64_t> entries_;  // step << 24 | visit
  std::size_t first_ = 0;
};

}  // namespace cascadia
