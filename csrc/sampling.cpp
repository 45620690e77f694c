#include "sampling.hpp"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr std::size_t kLanes = 8;

double normal_cdf(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

// Inverse of the normal distribution function by Newton's method; only used to set up nodes.
double normal_quantile(double p) {
  double x = 0;
  for (int i = 0; i < 60; ++i) {
    const double density = std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi);
    const double move = std::clamp((normal_cdf(x) - p) / density, -1.0, 1.0);
    x -= move;
    if (std::abs(move) < 1e-13) break;
  }
  return x;
}

// Sample i of the R3 low-discrepancy sequence as two exponentials and a standard normal.
std::array<double, 3> computed_draw(std::size_t i) {
  const auto fraction = [i](double step) {
    const double x = static_cast<double>(i) * step + 0.5;
    return x - std::floor(x);
  };
  return {-std::log1p(-fraction(0.8191725133961645)), -std::log1p(-fraction(0.6710436067037893)),
          normal_quantile(fraction(0.5497004779019703))};
}

std::array<double, 3> draw(std::size_t i) {
  // All cell counts share the start of the sequence, and normal quantiles are slow.
  static const std::vector<std::array<double, 3>> first = [] {
    std::vector<std::array<double, 3>> draws;
    for (std::size_t n = 0; n < 1024; ++n) draws.push_back(computed_draw(n));
    return draws;
  }();
  return i < first.size() ? first[i] : computed_draw(i);
}

// Node j of cell k takes one of `nodes` places, evenly spread over -1..1 and in an order that differs by cell, so that
// it goes with none of the node's other numbers.
double place_in_cell(std::size_t k, std::size_t j, std::size_t nodes) {
  constexpr double kGoldenRatio = 0.6180339887498949;
  const auto number = [&](std::size_t node) {
    const double x = static_cast<double>(k * nodes + node) * kGoldenRatio;
    return x - std::floor(x);
  };
  double place = 0.5;
  for (std::size_t other = 0; other < nodes; ++other) place += number(other) < number(j) ? 1 : 0;
  return 2 * place / static_cast<double>(nodes) - 1;
}

}  // namespace

const std::array<double, kDeviates>& deviate_probabilities() {
  static const auto table = [] {
    std::array<double, kDeviates> values{};
    for (std::size_t g = 0; g < kDeviates; ++g)
      values[g] = normal_cdf(-kDeviateLimit + kDeviateSpacing * static_cast<double>(g));
    return values;
  }();
  return table;
}

Nodes::Nodes(const LengthCells& cells) {
  const std::size_t padded = cascadia::padded(cells.size());
  per_cell = std::clamp<std::size_t>(512 / std::max<std::size_t>(cells.size(), 1), 2, 8);
  wait.assign(per_cell * padded, 0);
  slot = gauss = table_fraction = wait;
  tokens_out.assign(wait.size(), 1);
  table_index.assign(wait.size(), 0);
  for (std::size_t k = 0; k < cells.size(); ++k)
    for (std::size_t j = 0; j < per_cell; ++j) {
      tokens_out[j * padded + k] = cells.tokens_out[k] + place_in_cell(k, j, per_cell) * cells.half_width(k);
      const auto [e_wait, e_slot, z] = draw(k * per_cell + j);
      wait[j * padded + k] = e_wait;
      slot[j * padded + k] = e_slot;
      gauss[j * padded + k] = z;
      const double at = (std::clamp(z, -kDeviateLimit, kDeviateLimit) + kDeviateLimit) / kDeviateSpacing;
      const double below = std::min(std::floor(at), static_cast<double>(kDeviates - 2));
      table_index[j * padded + k] = static_cast<std::int32_t>(below);
      table_fraction[j * padded + k] = at - below;
    }
}

double step_quantiles(std::span<const double> step_s, std::span<const double> seen,
                      std::array<double, kDeviates>& quantiles) {
  const std::size_t last = seen.size() - 1, limit = step_s.size() - 1;
  double total = 0, mean = 0;
  for (std::size_t n = 1; n <= last; ++n) {
    total += seen[n];
    mean += seen[n] * step_s[n];
  }
  const auto& probability = deviate_probabilities();
  double mass = 0, low = step_s[1];
  std::size_t g = 0;
  for (std::size_t n = 1; n <= last && g < kDeviates; ++n) {
    const double high = n < limit ? (step_s[n] + step_s[n + 1]) / 2 : step_s[n];
    for (; g < kDeviates && probability[g] * total <= mass + seen[n]; ++g)
      quantiles[g] = low + (high - low) * (probability[g] * total - mass) / seen[n];
    mass += seen[n];
    low = high;
  }
  for (; g < kDeviates; ++g) quantiles[g] = low;
  return mean / total;
}

CASCADIA_CLONES void sample_row(std::size_t n, const SampleConstants constants, const CellTimes cell,
                                const NodeRow node, const double* __restrict step_s, double* __restrict latency,
                                double* __restrict first_token) {
  const auto [wait_shift, wait_exponent, wait_scale, slot_shift, slot_scale, mean_step_s, stretch, added_per_token_s,
              added_behind, behind_share, added_scale_s, least_step_s, slowest_step_s] = constants;
  const double* __restrict own = cell.own;
  const double* __restrict averaging = cell.averaging;
  const double* __restrict tokens_node = node.tokens_out;
  const double* __restrict wait_node = node.wait;
  const double* __restrict slot_node = node.slot;
  const double* __restrict gauss = node.gauss;
  const double* __restrict fraction = node.table_fraction;
  const std::int32_t* __restrict index = node.table_index;
  for (std::size_t k = 0; k < n; ++k) {
    const double e = larger(wait_node[k] + wait_shift, 1e-12);
    const double wait = wait_scale * fast_pow(e, wait_exponent);
    const double slot = slot_scale * larger(slot_node[k] + slot_shift, 0.0);
    const double first = wait + own[k];
    const double left = step_s[index[k]], found = left + fraction[k] * (step_s[index[k] + 1] - left);
    const double tokens_out = tokens_node[k];
    const double steps = tokens_out * (mean_step_s + averaging[k] * (found - mean_step_s) * stretch);
    const double behind = own[k] + behind_share * wait;
    const double added = larger(added_per_token_s * tokens_out + added_behind * behind, 1e-300);
    const double deviation = std::sqrt(added_scale_s / added);
    const double root = larger(1.0 - deviation * deviation / 9 + gauss[k] * deviation / 3, 0.0);
    const double decode = steps + added * (root * root * root);
    first_token[k] = slot + first;
    latency[k] = slot + first + smaller(larger(decode, least_step_s * tokens_out), slowest_step_s * tokens_out);
  }
}

CASCADIA_CLONES double mass_up_to(std::size_t cells, std::size_t nodes, const double* share, const double* latency,
                                  double x) {
  double a[kLanes] = {};
  for (std::size_t j = 0; j < nodes; ++j, latency += cells)
    for (std::size_t k = 0; k < cells; k += kLanes)
      for (std::size_t l = 0; l < kLanes; ++l) {
        const double weight = share[k + l];
        a[l] += latency[k + l] <= x ? weight : 0.0;
      }
  return (((a[0] + a[1]) + (a[2] + a[3])) + ((a[4] + a[5]) + (a[6] + a[7]))) / static_cast<double>(nodes);
}

// Bisects on the value, then sorts what is left in the bracket.
double weighted_quantile(std::span<const double> share, std::size_t nodes, std::span<const double> latency, double q,
                         std::vector<std::pair<double, double>>& bracket) {
  const std::size_t n = share.size();
  const double enough = q - 1e-12;
  double lo = 0, hi = 0, below = 0;
  for (std::size_t i = 0; i < nodes * n; ++i) hi = std::max(hi, latency[i]);
  for (int pass = 0; pass < 8; ++pass) {
    const double mid = (lo + hi) / 2, mass = mass_up_to(n, nodes, share.data(), latency.data(), mid);
    if (mass >= enough) {
      hi = mid;
    } else {
      lo = mid;
      below = mass;
    }
  }
  bracket.clear();
  for (std::size_t j = 0; j < nodes; ++j)
    for (std::size_t k = 0; k < n; ++k) {
      const double x = latency[j * n + k];
      if (x > lo && x <= hi && share[k] > 0) bracket.emplace_back(x, share[k] / static_cast<double>(nodes));
    }
  std::sort(bracket.begin(), bracket.end());
  for (const auto& [x, mass] : bracket) {
    below += mass;
    if (below >= enough) return x;
  }
  return bracket.empty() ? hi : bracket.back().first;
}

}  // namespace cascadia
