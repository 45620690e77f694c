// The samples of a load model: fixed random numbers per length cell, latencies made of them, and their quantile.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lengths.hpp"

namespace cascadia {

// Quantiles of the step time are tabulated at evenly spaced normal deviates.
inline constexpr double kDeviateLimit = 3.5, kDeviateSpacing = 0.25;
inline constexpr std::size_t kDeviates = 29;

// Fixed random numbers of every (node, cell) sample, node-major. Samples keep theirs while the rate moves, and each of
// their parts is an increasing quantile of them: so samples rise with the rate, and every quantile does. The exception:
// where a larger batch makes others' prefills cheaper and answers take a few steps, p95 can dip.
struct Nodes {
  explicit Nodes(const LengthCells& cells);
  std::size_t per_cell;
  std::vector<double> tokens_out;         // of the answer, somewhere in its cell
  std::vector<double> wait, slot, gauss;  // exponential, exponential, standard normal
  std::vector<std::int32_t> table_index;  // where gauss lies in the table of step times, and how far to the next entry
  std::vector<double> table_fraction;
};

// Per evaluation; shifts are logarithms of the probabilities to wait.
struct SampleConstants {
  double wait_shift, wait_exponent, wait_scale, slot_shift, slot_scale;
  double mean_step_s, stretch;  // of decode steps; noise counts as often as prefills stretch a step
  double added_per_token_s, added_behind, behind_share, added_scale_s;  // prefills of others met in decode
  double least_step_s, slowest_step_s;                                  // that a decode takes per token
};

// Per cell, arrays of one length.
struct CellTimes {
  const double *own, *averaging;
};

// Per sample of one row.
struct NodeRow {
  const double *tokens_out, *wait, *slot, *gauss, *table_fraction;
  const std::int32_t* table_index;
};

// Probability below each tabulated deviate.
const std::array<double, kDeviates>& deviate_probabilities();

// Quantiles and mean of the step time that arrivals find: step_s[n] with probability seen[n], linear within a state so
// that they move smoothly with the rate.
double step_quantiles(std::span<const double> step_s, std::span<const double> seen,
                      std::array<double, kDeviates>& quantiles);

// One row of samples (one node of every cell): latency = slot wait + prefill wait + prefill + decode. Decode is steps,
// at the length found and averaged over the request, plus the prefills of others, gamma by Wilson-Hilferty.
void sample_row(std::size_t n, SampleConstants constants, CellTimes cell, NodeRow node, const double* step_s,
                double* latency, double* first_token);

// Share of the samples [node][cell] that is at most x.
double mass_up_to(std::size_t cells, std::size_t nodes, const double* share, const double* latency, double x);

// The q-quantile of the samples [node][cell], weighted by the cells' shares. `bracket` is a buffer.
double weighted_quantile(std::span<const double> share, std::size_t nodes, std::span<const double> latency, double q,
                         std::vector<std::pair<double, double>>& bracket);

}  // namespace cascadia
