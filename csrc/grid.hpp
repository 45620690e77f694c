// Every combination of thresholds, and what each of them sends to which station.
#pragma once
#include <cstdint>
#include <span>
#include <vector>

namespace cascadia {

// Where every request leaves, for shares of the last station that are added up when they are asked for.
struct Escalations {
  std::span<const std::int32_t> level;  // [request][threshold]: it escalates from this level index on
  std::span<const std::int32_t> cell;   // of the last station
  std::span<const double> weight;

  std::size_t count() const { return weight.size(); }
};

// A view: the arrays belong to the caller and outlive it.
struct RoutingGrid {
  std::vector<std::size_t> levels;             // levels per threshold
  std::vector<std::size_t> depth;              // per station, ascending: the thresholds that decide what it is sent
  std::vector<std::span<const double>> share;  // station j: [h_1 … h_depth][cell], shares of all requests
  std::span<const double> quality;             // [h_1 … h_{C-1}]
  std::span<const std::int32_t> routings;      // [routing][C-1]: the distinct ones
  Escalations requests;                        // only where the last station's share is empty

  std::size_t thresholds() const { return levels.size(); }
  std::size_t stations() const { return depth.size(); }
  std::size_t last() const { return depth.size() - 1; }
  std::size_t count() const { return thresholds() == 0 ? 1 : routings.size() / thresholds(); }
  std::size_t rows(std::size_t station) const;  // of its share
  // Row of the combination among those of the first `thresholds` thresholds.
  std::size_t row(std::size_t routing, std::size_t first) const;
  std::size_t prefix(std::size_t routing, std::size_t station) const { return row(routing, depth[station]); }
  double quality_of(std::size_t routing) const { return quality[row(routing, thresholds())]; }
  bool lazy() const { return share.back().empty(); }
};

// The rows of the last station's share where there are too many of them to be kept: a block at a time, all levels of
// the last threshold at once, and each block from the one before where only the threshold before the last has risen.
class LazyShare {
 public:
  LazyShare(const RoutingGrid& grid, std::size_t cells);

  std::span<const double> row(std::size_t prefix);  // until the next call
  // For every row the sum over its requests of a value that depends on the cell.
  std::vector<double> sums(std::span<const double> value_of_cell) const;

 private:
  void add_up(std::size_t block);

  const RoutingGrid* grid_;
  std::size_t cells_, last_levels_, inner_levels_;
  std::vector<double> weight_;           // of all requests together 1, in whole multiples of one unit: sums are exact
  std::vector<std::uint32_t> by_inner_;  // requests by their level at the threshold before the last
  std::vector<std::size_t> inner_at_;    // where each level begins in it
  std::size_t block_;                    // whose rows are held, or none
  std::vector<double> bins_, rows_;      // [level of the last threshold][cell], before and after adding up levels
};

}  // namespace cascadia
