// What arrivals whose rate wanders do to a batch, and to the queue for a place in it: tests/reference/load_model.py
// derives the formulas.
#pragma once
#include <cstddef>
#include <span>

#include "arrivals.hpp"

namespace cascadia {

inline constexpr double kTies = 0.15;  // variance over mean of the batch that dispatch over many replicas leaves

// Sets calm[n] = 1 / z(n), the inverse of the batch's variance over its mean with n in decode, and returns the share of
// it that outlasts a decode. overlap: E[min(T, T')] / E[T] of two decodes; along: sequences that the token budget
// sustains; grid: batch sizes to evaluate, the others lie between; time_s[n]: of a request with n in decode.
double set_calm(const Arrivals& arrivals, double overlap, double along, std::span<const double> grid,
                std::span<const double> time_s, std::span<double> calm);

// Mean wait for a place in a full engine, which completes most_per_s, by robust queueing (Whitt and You): the largest
// surplus of arrivals over any window, as rare as exp(-rarity), at least 1; over that. place_scv: of what requests
// take.
double robust_wait_s(const Arrivals& arrivals, double place_scv, double most_per_s, double rarity);

// What is left of the spread of step times over a whole decode, per cell, where a share of their variance lasts longer
// than any decode.
void lasting_averages(std::size_t n, double lasting, const double* averaging, double* lasting_averaging);

}  // namespace cascadia
