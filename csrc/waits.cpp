#include "waits.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <numbers>

#include "vector_math.hpp"

namespace cascadia {
namespace {

// Tabulated because the relation has no closed inverse.
struct WeibullTable {
  static constexpr int kSize = 2048;
  static constexpr double kLow = 0.05, kHigh = 8.0;
  std::array<double, kSize + 1> exponent, scale;

  WeibullTable() {
    for (int i = 0; i <= kSize; ++i) {
      const double scv = kLow * std::pow(kHigh / kLow, static_cast<double>(i) / kSize);
      double lo = 0.02, hi = 4.0;
      for (int step = 0; step < 60; ++step) {
        const double mid = (lo + hi) / 2;
        (std::lgamma(1 + 2 * mid) - 2 * std::lgamma(1 + mid) > std::log1p(scv) ? hi : lo) = mid;
      }
      exponent[static_cast<std::size_t>(i)] = lo;
      scale[static_cast<std::size_t>(i)] = 1 / std::tgamma(1 + lo);
    }
  }
};

}  // namespace

double wait_probability(double busy, double scv) {
  if (scv <= 1) return busy;
  // sigma = A*(mu (1 - sigma)), A* the transform of the gaps: convex, so Newton's method climbs to it from below.
  double sigma = busy;
  for (int i = 0; i < 40; ++i) {
    const double base = 1 + scv * (1 - sigma) / busy, value = fast_pow(base, -1 / scv);
    const double move = (value - sigma) / (1 - value / base / busy);
    sigma += move;
    if (move < 1e-12) break;
  }
  return sigma;
}

std::pair<double, double> weibull(double scv) {
  static const WeibullTable table;
  const double at = std::log(std::clamp(scv, WeibullTable::kLow, WeibullTable::kHigh) / WeibullTable::kLow) /
                    std::log(WeibullTable::kHigh / WeibullTable::kLow) * WeibullTable::kSize;
  const auto i = std::min(static_cast<std::size_t>(at), static_cast<std::size_t>(WeibullTable::kSize - 1));
  const double t = at - static_cast<double>(i);
  return {table.exponent[i] + t * (table.exponent[i + 1] - table.exponent[i]),
          table.scale[i] + t * (table.scale[i + 1] - table.scale[i])};
}

std::pair<double, double> others(double prompts, double bursts_per_prompt) {
  const double bursts = prompts * bursts_per_prompt;
  if (bursts < 1e-2) return {(1 + bursts / 2 + bursts * bursts / 12) / bursts_per_prompt - 1, 0.5 + bursts / 6};
  const double none = fast_exp2(-smaller(bursts, 500.0) * std::numbers::log2e), per_any = 1 / (1 - none);
  return {prompts * per_any - 1, per_any * (1 - bursts * per_any * none)};
}

void two_points(double mean, double second, double third, std::array<double, 2>& points,
                std::array<double, 2>& shares) {
  const double spread = std::sqrt(std::max(second - mean * mean, 0.0));
  if (spread <= 1e-4 * mean) {
    points = {mean, mean};
    shares = {mean / 2, mean / 2};
    return;
  }
  const double skew = (third - 3 * mean * second + 2 * mean * mean * mean) / (spread * spread * spread);
  const double root = std::sqrt(skew * skew + 4), low = (skew - root) / 2, high = (skew + root) / 2;
  points = {mean + spread * low, mean + spread * high};
  shares = {points[0] * high / (high - low), points[1] * -low / (high - low)};
}

}  // namespace cascadia
