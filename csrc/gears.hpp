// Gears, as in CascadeServe (arXiv 2406.14424): several ways through the cascade, one of which new requests take,
// depending on how many have come lately.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <limits>
#include <vector>

namespace cascadia {

struct Gears {
  std::vector<double> up_to_per_s;  // ascending: the most that each gear but the last is meant for
  double window_s = std::numeric_limits<double>::infinity();
  double queue_factor = 0;                    // of arrivals per second, over visits that wait
  std::vector<std::size_t> first_station{0};  // of each gear

  std::size_t count() const { return first_station.size(); }
};

/// Shifts between gears as requests arrive. Time is cut into windows; once one has ended, the next arrival looks at the
/// rate in it. A gear for less load has to wait until the backlog at the present one's first station has drained.
class GearShift {
 public:
  /// The gears are referred to and must outlive it.
  explicit GearShift(const Gears& gears) : gears_(&gears) {}

  /// The gear of a request that arrives now, at times that ascend. `waiting`: visits at a station, not yet admitted.
  std::size_t arrive(double now_s, const std::function<std::int64_t(std::size_t)>& waiting);

 private:
  std::size_t meant_for(double rate_per_s) const;

  const Gears* gears_;
  std::size_t gear_ = 0;
  double window_ = 0;  // its number, a whole one
  std::int64_t arrivals_ = 0;
};

}  // namespace cascadia
