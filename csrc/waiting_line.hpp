#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>

#include "visits.hpp"

namespace cascadia {

enum class Admission { fcfs, shortest_first };

/// Visits that wait at one engine. Whoever was preempted stands in front, the last one first; behind them stand the
/// others in order of arrival or, the shortest prompt first, by length and then arrival.
class WaitingLine {
 public:
  explicit WaitingLine(Admission admission) : by_length_(admission == Admission::shortest_first) {}

  bool empty() const { return head_ == kNobody && shortest_.empty(); }
  std::uint32_t head() const { return head_ != kNobody || shortest_.empty() ? head_ : shortest_.front().visit; }

  void push(Visits& visits, std::uint32_t visit) {
    if (by_length_) {
      shortest_.push_back({visits[visit].tokens_in, arrivals_++, visit});
      std::push_heap(shortest_.begin(), shortest_.end(), later);
      return;
    }
    visits[visit].next = kNobody;
    (head_ == kNobody ? head_ : visits[tail_].next) = visit;
    tail_ = visit;
  }
  void push_front(Visits& visits, std::uint32_t visit) {
    if (head_ == kNobody) tail_ = visit;
    visits[visit].next = head_;
    head_ = visit;
  }
  void pop(Visits& visits) {
    if (head_ != kNobody) {
      head_ = visits[head_].next;
      return;
    }
    std::pop_heap(shortest_.begin(), shortest_.end(), later);
    shortest_.pop_back();
  }

 private:
  struct ByLength {
    std::uint32_t tokens_in, arrival, visit;
  };
  static bool later(const ByLength& a, const ByLength& b) {
    return a.tokens_in != b.tokens_in ? a.tokens_in > b.tokens_in : a.arrival > b.arrival;
  }

  bool by_length_;
  std::uint32_t head_ = kNobody, tail_ = kNobody;
  std::uint32_t arrivals_ = 0;
  std::vector<ByLength> shortest_;
};

}  // namespace cascadia
