// What a search is about, and the traffic of its stations under one routing after the other.
#pragma once
#include <cstdint>
#include <deque>
#include <memory>
#include <optional>
#include <vector>

#include "grid.hpp"
#include "search.hpp"

namespace cascadia {

// What has GPUs: a model of the cascade, or a judge of its answers.
struct SearchStation {
  std::shared_ptr<const StageModel> model;
  std::vector<int> pools;  // of each shape
  StageLimits limits;
};

struct Setting {
  std::vector<SearchStation> stations;
  RoutingGrid grid;
  Traffic traffic;

  // GPUs that a station takes at least, whatever its latency, under the load of a vector of shares.
  double least_gpus(std::size_t station, double reach, double gpu_s) const;
};

// The load of each station under routing after routing. Keeps those that many routings have in common, and one of the
// last station. Not for use by several threads at once.
class Loads {
 public:
  explicit Loads(const Setting& setting);

  // The load stays until a few hundred others of its station have been asked for; the last station's until the next.
  StageLoad& at(std::size_t routing, std::size_t station);
  std::vector<StageLoad*> of(std::size_t routing);
  // Shares of the cells; the last station's until the next call.
  std::span<const double> row(std::size_t station, std::size_t prefix);
  std::span<const double> share(std::size_t routing, std::size_t station) {
    return row(station, setting_->grid.prefix(routing, station));
  }
  // For every row of the last station's share, made when it is asked for, the sum of a value that depends on the cell.
  std::vector<double> lazy_sums(std::span<const double> value_of_cell) const { return lazy_->sums(value_of_cell); }

  Scratch scratch;

 private:
  struct Kept {
    std::vector<std::unique_ptr<StageLoad>> by_prefix;
    std::deque<std::size_t> order;  // of those that are there
  };
  const Setting* setting_;
  std::vector<Kept> kept_;  // of every station but the last
  StageLoad last_;
  std::size_t last_prefix_ = static_cast<std::size_t>(-1);
  std::vector<double> last_share_;
  std::optional<LazyShare> lazy_;
};

}  // namespace cascadia
