#include "dispatch.hpp"

#include <algorithm>
#include <limits>

namespace cascadia {
Dispatcher::Dispatcher(Dispatch policy, std::vector<double> capacity)
    : policy_(policy), capacity_(std::move(capacity)), outstanding_(capacity_.size()) {
  const auto [least, most] = std::minmax_element(capacity_.begin(), capacity_.end());
  if (policy_ == Dispatch::capacity_weighted) {
    if (*least == *most) {
      policy_ = Dispatch::least_outstanding;
    } else {
      for (const double c : capacity_) load_.push_back(1 / c);
    }
  }
}

std::size_t Dispatcher::choose(const Draws& draws, std::uint64_t stream, std::uint64_t request) {
  const std::size_t replicas = capacity_.size();
  if (replicas == 1) return 0;
  const auto uniform = [&] { return draws.uniform(stream, request); };
  const auto below = [](double u, std::size_t n) { return static_cast<std::size_t>(u * static_cast<double>(n)); };
  switch (policy_) {
    case Dispatch::round_robin:
      return turn_++ % replicas;
    case Dispatch::random:
      return below(uniform(), replicas);
    case Dispatch::least_outstanding:
      if (at_least_ == 0) count_least();
      return one_of_least(at_least_ > 1 ? uniform() : 0);
    case Dispatch::capacity_weighted:
      return least_load(uniform());
    case Dispatch::power_of_two:
      break;
  }
  const std::size_t a = below(uniform(), replicas);
  std::size_t b = below(draws.uniform(stream + 1, request), replicas - 1);
  b += b >= a;
  return outstanding_[b] < outstanding_[a] ? b : a;
}

void Dispatcher::sent(std::size_t replica) {
  if (outstanding_[replica]++ == least_ && at_least_ > 0) --at_least_;
  if (!load_.empty()) load_[replica] = (outstanding_[replica] + 1) / capacity_[replica];
}

void Dispatcher::ended(std::size_t replica) {
  const std::int32_t left = --outstanding_[replica];
  if (left == least_) {
    if (at_least_ > 0) ++at_least_;
  } else if (left < least_) {
    least_ = left;
    at_least_ = 1;
  }
  if (!load_.empty()) load_[replica] = (outstanding_[replica] + 1) / capacity_[replica];
}

// Counting again whenever nobody is left at the least is rare beside the requests.
void Dispatcher::count_least() {
  least_ = std::numeric_limits<std::int32_t>::max();
  for (const std::int32_t count : outstanding_) least_ = std::min(least_, count);
  for (const std::int32_t count : outstanding_) at_least_ += count == least_;
}

std::size_t Dispatcher::one_of_least(double uniform) const {
  auto skip = static_cast<std::int32_t>(uniform * at_least_);
  for (std::size_t r = 0;; ++r)
    if (outstanding_[r] == least_ && skip-- == 0) return r;
}

std::size_t Dispatcher::least_load(double uniform) const {
  const double least = *std::min_element(load_.begin(), load_.end());
  auto skip = static_cast<std::ptrdiff_t>(uniform * static_cast<double>(std::count(load_.begin(), load_.end(), least)));
  for (std::size_t r = 0;; ++r)
    if (load_[r] == least && skip-- == 0) return r;
}

}  // namespace cascadia
