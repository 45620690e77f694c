// Length cells: a workload's joint distribution of prompt and answer lengths on a fixed set of representative requests.
// The cells stay while routing moves their weights, so every threshold's workload is one vector of K shares.
#pragma once
#include <algorithm>
#include <cstddef>
#include <numbers>
#include <vector>

namespace cascadia {

struct LengthCells {
  std::vector<double> tokens_in, tokens_out;  // means of each cell
  std::vector<double> spread_out;             // standard deviation of the answers in each cell; empty: none vary

  std::size_t size() const { return tokens_in.size(); }
  // Answers are taken to lie evenly this far to either side of the mean, at least one token long.
  double half_width(std::size_t k) const {
    if (spread_out.empty()) return 0;
    return std::min(std::numbers::sqrt3 * spread_out[k], std::max(tokens_out[k] - 1, 0.0));
  }
};

// Cells rounded up to whole lanes of the vectorised loops.
inline std::size_t padded(std::size_t cells) { return (cells + 7) / 8 * 8; }

}  // namespace cascadia
