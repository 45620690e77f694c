// A stream of requests, and how it varies.
#pragma once
#include <array>
#include <cstddef>

namespace cascadia {

// Index of dispersion of counts (variance over mean) in windows that hold 1, 2, 4 … requests on average: constant but
// for the shortest windows where gaps are independent, growing where the rate itself wanders.
struct Dispersion {
  static constexpr std::size_t kMost = 32;
  std::array<double, kMost> index{};
  std::size_t count = 0;  // 0: not known

  // Linear in the window's octaves (its binary logarithm), constant beyond the ones that are known.
  double at(double octaves) const;
};

// Requests at one replica of several; each goes to the one with the fewest outstanding for what it can take.
struct Arrivals {
  double rate_per_s = 0;  // at this replica
  double scv = 1;         // of the gaps in the whole stream; below 1 counts as 1
  double replicas = 1;    // the whole stream's rate over this replica's: their number where all are equal
  const Dispersion* dispersion = nullptr;  // of a stream that this one is a random part of; null: gaps are independent
  double part = 1;

  // Index of dispersion of the whole stream over a window of so many octaves of the known ones.
  double dispersion_over(double octaves) const { return 1 + part * (dispersion->at(octaves) - 1); }
};

}  // namespace cascadia
