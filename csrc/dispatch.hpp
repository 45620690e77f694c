#pragma once
#include <cstdint>
#include <vector>

#include "draws.hpp"

namespace cascadia {

enum class Dispatch { round_robin, random, least_outstanding, capacity_weighted, power_of_two };

/// Chooses a replica for every visit of a station. Outstanding are the visits that were sent and have not ended.
class Dispatcher {
 public:
  /// One capacity per replica, of any unit; capacity_weighted takes the least (outstanding + 1) / capacity.
  Dispatcher(Dispatch policy, std::vector<double> capacity);

  /// The replica for a request; ties are broken at random.
  std::size_t choose(const Draws& draws, std::uint64_t stream, std::uint64_t request);
  void sent(std::size_t replica);
  void ended(std::size_t replica);

 private:
  std::size_t one_of_least(double uniform) const;
  std::size_t least_load(double uniform) const;
  void count_least();

  Dispatch policy_;
  std::vector<double> capacity_;
  std::vector<std::int32_t> outstanding_;
  std::int32_t least_ = 0, at_least_ = 0;  // the fewest outstanding, and how many replicas have so few; 0: not counted
  std::vector<double> load_;               // only where capacities differ
  std::size_t turn_ = 0;
};

}  // namespace cascadia
