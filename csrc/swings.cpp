#include "swings.hpp"

#include <algorithm>
#include <cmath>

#include "vector_math.hpp"
namespace cascadia {
namespace {

constexpr double kSlowest = 1e-9;  // relaxation of a batch, per arrival

struct Swings {
  double calm, slow;
};

// Of a batch that relaxes at this rate: what counts are the arrivals in that time. Swings that outlast it (where the
// dispersion still grows) move the batch along without relaxing, however decodes overlap.
Swings swings(const Arrivals& arrivals, double overlap, double relaxes_per_s) {
  const double replicas = arrivals.replicas, longest = static_cast<double>(arrivals.dispersion->count) - 1;
  const double octaves = std::min(fast_log2(replicas * arrivals.rate_per_s / (relaxes_per_s * arrivals.part)), longest);
  const double excess = std::max(arrivals.dispersion_over(octaves) - 1, 0.0);
  const double latest = excess + 1 - arrivals.dispersion_over(octaves - 1);
  const double lasting = excess > 0 ? std::clamp(2 * latest / excess, 0.0, 1.0) : 0;
  const double z = (1 + excess * (overlap + (1 - overlap) * lasting)) / replicas + (1 - 1 / replicas) * kTies;
  return {1 / z, excess * lasting / replicas / z};
}

}  // namespace

double Dispersion::at(double octaves) const {
  if (count == 1) return index[0];
  const double place = std::clamp(octaves, 0.0, static_cast<double>(count - 1));
  const auto k = std::min(static_cast<std::size_t>(place), count - 2);
  return index[k] + (place - static_cast<double>(k)) * (index[k + 1] - index[k]);
}

double set_calm(const Arrivals& arrivals, double overlap, double along, std::span<const double> grid,
                std::span<const double> time_s, std::span<double> calm) {
  const int limit = static_cast<int>(calm.size()) - 1, sustained = std::max(static_cast<int>(along), 1);
  const double rate = arrivals.rate_per_s;
  const auto completed = [&](int n) { return n > 0 ? n / time_s[static_cast<std::size_t>(n)] : 0; };
  const auto swings_at = [&](int n) {
    const int low = std::max(n - 1, 0), high = std::min(n + 1, limit);
    return swings(arrivals, overlap, std::max((completed(high) - completed(low)) / (high - low), kSlowest * rate));
  };
  double slow = 0;
  Swings left = swings_at(0);
  calm[0] = left.calm;
  for (std::size_t j = 0; j + 1 < grid.size() && grid[j] < limit; ++j) {
    const int begin = static_cast<int>(grid[j]), end = std::min(static_cast<int>(grid[j + 1]), limit);
    const Swings right = swings_at(std::min(end, sustained));
    const double step = (right.calm - left.calm) / (end - begin);
    for (int n = begin + 1; n <= end; ++n) calm[static_cast<std::size_t>(n)] = left.calm + step * (n - begin);
    if (completed(begin) <= rate) {  // completions balance arrivals here or further on
      const double between = std::clamp((rate - completed(begin)) / (completed(end) - completed(begin)), 0.0, 1.0);
      slow = left.slow + between * (right.slow - left.slow);
    }
    left = right;
  }
  return slow;
}

double robust_wait_s(const Arrivals& arrivals, double place_scv, double most_per_s, double rarity) {
  const double depth = std::max(rarity, 1.0), spare = most_per_s / arrivals.rate_per_s - 1;
  const auto variance = [&](double octaves) { return arrivals.dispersion_over(octaves) + place_scv; };
  double most = 0, to = arrivals.part, variance_to = variance(0);
  for (std::size_t k = 0; k < arrivals.dispersion->count; ++k) {
    const double from = to, variance_from = variance_to;
    to = 2 * from;
    variance_to = variance(static_cast<double>(k) + 1);
    // As if it were constant in the octave.
    const double best = depth * (variance_from + variance_to) / 2 / (2 * spare * spare);
    double requests = best, at = 0;
    if (k > 0 && best <= from) {
      requests = from, at = variance_from;
    } else if (k + 1 < arrivals.dispersion->count && best >= to) {
      requests = to, at = variance_to;
    } else {
      at = variance(fast_log2(best / arrivals.part));
    }
    most = std::max(most, std::sqrt(2 * depth * requests * at) - spare * requests);
  }
  return most / (depth * arrivals.replicas * arrivals.rate_per_s);
}

CASCADIA_CLONES void lasting_averages(std::size_t n, double lasting, const double* __restrict averaging,
                                      double* __restrict lasting_averaging) {
  for (std::size_t k = 0; k < n; ++k)
    lasting_averaging[k] = std::sqrt(lasting + (1 - lasting) * averaging[k] * averaging[k]);
}

}  // namespace cascadia
