#include "search.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cascadia {
namespace {

// Bisect until the bracket is this narrow, then step over attained values. Late halvings cost little, because every p95
// they ask for is known; at thousands of GPUs, attained values lie so densely that stepping over them would.
constexpr double kNarrow = 1 + 1e-9;

// Needs of the active stages at a limit; false when they exceed the GPUs.
bool needs(std::span<StageLoad* const> stages, std::span<const std::size_t> active, double limit_s, bool strictly,
           int gpus, Scratch& scratch, std::vector<Choice>& choices) {
  std::vector<Choice> found(choices);
  int left = gpus;
  for (const std::size_t i : active) {
    found[i] = stages[i]->need(limit_s, strictly, left, scratch);
    if (found[i].latency_s == kUnreachable) return false;
    left -= found[i].gpus;
  }
  choices = std::move(found);
  return true;
}

double worst(std::span<const std::size_t> active, std::span<const Choice> choices) {
  double latency_s = 0;
  for (const std::size_t i : active) latency_s = std::max(latency_s, choices[i].latency_s);
  return latency_s;
}

// Each stage with all GPUs that the others can spare: no allocation is faster than the slowest of these.
double lower_bound(std::span<StageLoad* const> stages, std::span<const std::size_t> active, int gpus,
                   std::span<const Choice> least, Scratch& scratch) {
  int spare = gpus;
  for (const std::size_t i : active) spare -= least[i].gpus;
  double bound_s = 0;
  for (const std::size_t i : active)
    bound_s = std::max(bound_s, stages[i]->best(least[i].gpus + spare, scratch).latency_s);
  return bound_s;
}

// Says of mixtures how fast they are: until then they are known to hold a limit, which may be slower.
void settle(std::span<StageLoad* const> stages, std::span<const std::size_t> active, Scratch& scratch,
            std::vector<Choice>& choices) {
  const double worst_s = worst(active, choices);
  for (const std::size_t i : active)
    if (choices[i].fill_shape >= 0 && choices[i].latency_s == worst_s)
      choices[i].latency_s = std::min(worst_s, stages[i]->split(choices[i], scratch).latency_s);
}

bool min_max(std::span<StageLoad* const> stages, std::span<const std::size_t> active, int gpus, Scratch& scratch,
             std::vector<Choice>& choices) {
  if (!needs(stages, active, std::numeric_limits<double>::max(), false, gpus, scratch, choices)) return false;
  double lo = lower_bound(stages, active, gpus, choices, scratch), hi = worst(active, choices);
  if (lo < hi && needs(stages, active, lo, false, gpus, scratch, choices)) hi = worst(active, choices);
  while (hi > lo * kNarrow) {
    const double mid = std::sqrt(lo * hi);
    if (!needs(stages, active, mid, false, gpus, scratch, choices)) {
      lo = mid;
      continue;
    }
    settle(stages, active, scratch, choices);
    hi = worst(active, choices);
  }
  while (hi > 0 && needs(stages, active, hi, true, gpus, scratch, choices)) {
    settle(stages, active, scratch, choices);
    hi = worst(active, choices);
  }
  return true;
}

}  // namespace

double Allocation::latency_s() const {
  double latency_s = 0;
  for (const Choice& choice : stages) latency_s = std::max(latency_s, choice.latency_s);
  return latency_s;
}

int Allocation::gpus() const {
  int gpus = 0;
  for (const Choice& choice : stages) gpus += choice.gpus;
  return gpus;
}

Allocation allocate(std::span<StageLoad* const> stages, int gpus, std::span<const int> previous_gpus,
                    Scratch& scratch) {
  std::vector<std::size_t> active(stages.size());
  std::iota(active.begin(), active.end(), std::size_t{0});
  std::vector<Choice> choices(stages.size());
  const auto before = [&](std::size_t i) { return i < previous_gpus.size() ? previous_gpus[i] : 0; };
  while (!active.empty()) {
    if (!min_max(stages, active, gpus, scratch, choices)) return {};
    const auto slowest = std::max_element(active.begin(), active.end(), [&](std::size_t a, std::size_t b) {
      if (choices[a].latency_s != choices[b].latency_s) return choices[a].latency_s < choices[b].latency_s;
      return before(a) > before(b);
    });
    gpus -= choices[*slowest].gpus;
    active.erase(slowest);
  }
  return {std::move(choices)};
}

std::vector<std::vector<Choice>> proof_columns(std::span<StageLoad* const> stages, double latency_s, int gpus,
                                               Scratch& scratch) {
  std::vector<std::size_t> active(stages.size());
  std::iota(active.begin(), active.end(), std::size_t{0});
  std::vector<Choice> least(stages.size());
  std::vector<std::vector<Choice>> columns(stages.size());
  if (!needs(stages, active, latency_s, false, gpus, scratch, least)) return columns;
  const double bound_s = lower_bound(stages, active, gpus, least, scratch);
  int spare = gpus;
  for (const Choice& choice : least) spare -= choice.gpus;
  for (std::size_t i = 0; i < stages.size(); ++i) {
    for (int f = least[i].gpus; f <= least[i].gpus + spare; ++f) {
      const Choice choice = stages[i]->best(f, scratch);
      if (columns[i].empty() || choice.latency_s < columns[i].back().latency_s) columns[i].push_back(choice);
      if (choice.latency_s <= bound_s) break;  // faster than any allocation can be: more GPUs cannot matter
    }
  }
  return columns;
}

}  // namespace cascadia
