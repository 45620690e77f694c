#include "dispatch.hpp"

#include <algorithm>
#include <limits>

namespace cascadia {
Dispatcher::Dispatcher(Dispatch policy, std::vector<double> capacity, std::vector<Window> windows)
    : policy_(policy), capacity_(std::move(capacity)), windows_(std::move(windows)), outstanding_(capacity_.size()) {
  const auto [least, most] = std::minmax_element(capacity_.begin(), capacity_.end());
  if (policy_ == Dispatch::capacity_weighted) {
    if (*least == *most) {
      policy_ = Dispatch::least_outstanding;
    } else {
      load_.resize(capacity_.size());
    }
  }
  find_open(0);
}

// Which replicas there are to choose from, until a window begins or ends.
void Dispatcher::find_open(double now_s) {
  next_change_s_ = std::numeric_limits<double>::infinity();
  double opening_s = next_change_s_;  // of those that open soonest: now, or later where none is open
  for (const Window& window : windows_) {
    for (const double time_s : {window.opens_s, window.closes_s})
      if (time_s > now_s) next_change_s_ = std::min(next_change_s_, time_s);
    if (now_s < window.closes_s) opening_s = std::min(opening_s, std::max(now_s, window.opens_s));
  }
  open_.clear();
  for (std::size_t r = 0; r < windows_.size(); ++r) {
    const bool open = windows_[r].opens_s <= opening_s && now_s < windows_[r].closes_s;
    if (open) open_.push_back(r);
    outstanding_[r] = outstanding_[r] % kClosed + (open ? 0 : kClosed);
    weigh(r);
  }
  least_ = at_least_ = 0;
}

std::size_t Dispatcher::choose(double now_s, const Draws& draws, std::uint64_t stream, std::uint64_t request) {
  if (now_s >= next_change_s_) find_open(now_s);
  const std::size_t turn = turn_++, replicas = open_.size();
  if (replicas == 1) return open_.front();
  const auto uniform = [&] { return draws.uniform(stream, request); };
  const auto below = [](double u, std::size_t n) { return static_cast<std::size_t>(u * static_cast<double>(n)); };
  switch (policy_) {
    case Dispatch::round_robin:
      return open_[turn % replicas];
    case Dispatch::random:
      return open_[below(uniform(), replicas)];
    case Dispatch::least_outstanding:
      if (at_least_ == 0) count_least();
      return one_of_least(at_least_ > 1 ? uniform() : 0);
    case Dispatch::capacity_weighted:
      return least_load(uniform());
    case Dispatch::power_of_two:
      break;
  }
  const std::size_t first = below(uniform(), replicas);
  std::size_t second = below(draws.uniform(stream + 1, request), replicas - 1);
  second += second >= first;
  const std::size_t a = open_[first], b = open_[second];
  return outstanding_[b] < outstanding_[a] ? b : a;
}

void Dispatcher::sent(std::size_t replica) {
  if (outstanding_[replica]++ == least_ && at_least_ > 0) --at_least_;
  weigh(replica);
}

void Dispatcher::ended(std::size_t replica) {
  const std::int32_t left = --outstanding_[replica];
  if (left == least_) {
    if (at_least_ > 0) ++at_least_;
  } else if (left < least_) {
    least_ = left;
    at_least_ = 1;
  }
  weigh(replica);
}

void Dispatcher::weigh(std::size_t replica) {
  if (load_.empty()) return;
  const bool closed = outstanding_[replica] >= kClosed;
  load_[replica] = closed ? std::numeric_limits<double>::infinity() : (outstanding_[replica] + 1) / capacity_[replica];
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
