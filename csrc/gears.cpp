#include "gears.hpp"

#include <algorithm>
#include <cmath>

namespace cascadia {

std::size_t GearShift::arrive(double now_s, const std::function<std::int64_t(std::size_t)>& waiting) {
  const double window = std::floor(now_s / gears_->window_s);
  if (window > window_) {
    const bool came = window_ == window - 1;  // else nobody did in the last window that ended
    const double rate_per_s = came ? static_cast<double>(arrivals_) / gears_->window_s : 0;
    const std::size_t wanted = meant_for(rate_per_s);
    const auto backlog = [&] { return static_cast<double>(waiting(gears_->first_station[gear_])); };
    if (wanted > gear_ || rate_per_s >= gears_->queue_factor * backlog()) gear_ = wanted;
    window_ = window;
    arrivals_ = 0;
  }
  ++arrivals_;
  return gear_;
}

std::size_t GearShift::meant_for(double rate_per_s) const {
  const auto& limits = gears_->up_to_per_s;
  return static_cast<std::size_t>(std::lower_bound(limits.begin(), limits.end(), rate_per_s) - limits.begin());
}

}  // namespace cascadia
