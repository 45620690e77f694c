// Length cells: a workload's joint distribution of prompt and answer lengths on a fixed set of representative requests.
// The cells stay while routing moves their weights, so every threshold's workload is one vector of K shares.
#pragma once
#include <cstddef>
#include <vector>

namespace cascadia {

struct LengthCells {
  std::vector<double> tokens_in, tokens_out;  // means of each cell

  std::size_t size() const { return tokens_in.size(); }
};

// Cells rounded up to whole lanes of the vectorised loops.
inline std::size_t padded(std::size_t cells) { return (cells + 7) / 8 * 8; }

}  // namespace cascadia
