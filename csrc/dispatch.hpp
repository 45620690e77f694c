#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "draws.hpp"

namespace cascadia {

enum class Dispatch { round_robin, random, least_outstanding, capacity_weighted, power_of_two };

/// When a replica takes visits. What it has when it closes it finishes.
struct Window {
  double opens_s = 0, closes_s = std::numeric_limits<double>::infinity();
};

/// Chooses a replica for every visit of a station: one of those that are open or, where none is, of those that open
/// soonest. Outstanding are the visits that were sent and have not ended.
class Dispatcher {
 public:
  /// One capacity per replica, of any unit; capacity_weighted takes the least (outstanding + 1) / capacity. One of the
  /// windows has to last for ever.
  Dispatcher(Dispatch policy, std::vector<double> capacity, std::vector<Window> windows);

  /// The replica for a request, at times that ascend; ties are broken at random.
  std::size_t choose(double now_s, const Draws& draws, std::uint64_t stream, std::uint64_t request);
  void sent(std::size_t replica);
  void ended(std::size_t replica);

 private:
  // Added to what is outstanding at a replica that is not to be chosen: it never has the fewest.
  static constexpr std::int32_t kClosed = 1 << 30;

  void find_open(double now_s);
  void weigh(std::size_t replica);
  std::size_t one_of_least(double uniform) const;
  std::size_t least_load(double uniform) const;
  void count_least();

  Dispatch policy_;
  std::vector<double> capacity_;
  std::vector<Window> windows_;
  double next_change_s_ = 0;       // when a window begins or ends
  std::vector<std::size_t> open_;  // the replicas to choose from, ascending
  std::vector<std::int32_t> outstanding_;
  std::int32_t least_ = 0, at_least_ = 0;  // the fewest outstanding, and how many replicas have so few; 0: not counted
  std::vector<double> load_;               // only where capacities differ
  std::size_t turn_ = 0;
};

}  // namespace cascadia
