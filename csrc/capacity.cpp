// What a cascade can carry: rates and GPUs under the utilisation cap, and rates within a latency.
#include <algorithm>
#include <cmath>

#include "exact.hpp"
#include "parallel.hpp"

namespace cascadia {
namespace {

constexpr double kMaxRateRatio = 1e15;  // a search for the largest rate ends here, as a multiple of the planned one

}  // namespace

// GPUs that carry `scale` times the planned rate, each station on its most frugal engines.
double CascadeSearch::gpus_at(std::size_t routing, double scale) {
  double gpus = 0;
  for (StageLoad* load : loads_.of(routing)) gpus += load->carrying_gpus(scale);
  return gpus;
}

// GPU-seconds per request, at least; unlike least_gpus without whole engines.
double CascadeSearch::gpu_s(std::size_t routing) {
  double work = 0;
  for (std::size_t i = 0; i < setting_.stations.size(); ++i) {
    const auto shares = loads_.share(routing, i);
    for (std::size_t k = 0; k < shares.size(); ++k)
      if (shares[k] > 0) work += shares[k] * stage(i).least_gpu_s()[k];
  }
  return work;
}

std::vector<std::pair<double, std::size_t>> CascadeSearch::lightest_first(std::span<const std::int64_t> candidates) {
  std::vector<std::pair<double, std::size_t>> order;
  for (std::size_t c = 0; c < candidates.size(); ++c) {
    double gpus = 0;
    for (std::size_t i = 0; i < setting_.stations.size(); ++i)
      gpus += least_gpus(static_cast<std::size_t>(candidates[c]), i);
    order.emplace_back(gpus, c);
  }
  std::sort(order.begin(), order.end());
  return order;
}

double CascadeSearch::max_rate_per_s(const Question& question) {
  const std::scoped_lock hold(lock_);
  double best = 0;
  for (const auto& [bound_gpus, c] : lightest_first(question.candidates)) {
    const auto routing = static_cast<std::size_t>(question.candidates[c]);
    const int gpus = question.most_gpus(c);
    double hi = gpus * traffic().max_utilization / (gpu_s(routing) * traffic().rate_per_s), lo = best;
    if (!(hi > 0 && hi < kMaxRateRatio)) {  // the bound of short prompts with short answers may say nothing
      hi = 1;
      while (hi < kMaxRateRatio && gpus_at(routing, hi) <= gpus) hi *= 2;
    }
    if (!(hi > best) || gpus_at(routing, best * (1 + 1e-9)) > gpus) continue;
    while (hi - lo > 1e-9 * hi) {
      const double mid = (lo + hi) / 2;
      (gpus_at(routing, mid) <= gpus ? lo : hi) = mid;
    }
    best = lo;
  }
  return best * traffic().rate_per_s;
}

std::pair<double, std::int64_t> CascadeSearch::fewest_gpus(std::span<const std::int64_t> candidates) {
  const std::scoped_lock hold(lock_);
  double least = kUnreachable;
  std::int64_t frugal = -1;
  for (const auto& [bound_gpus, c] : lightest_first(candidates)) {
    if (bound_gpus >= least) break;
    const double gpus = gpus_at(static_cast<std::size_t>(candidates[c]), 1);
    if (gpus < least) {
      least = gpus;
      frugal = candidates[c];
    }
  }
  return {least, frugal};
}

namespace {

// What one engine of a shape takes within a limit; where that is no more than `enough_per_s`, that may come back.
double rate_within(StageLoad& load, int shape, double limit_s, double enough_per_s, Scratch& scratch) {
  if (!load.reached() || !load.model().shapes()[static_cast<std::size_t>(shape)].fits()) return 0;
  const double most_per_s =
      std::min(load.rate_per_s(), load.traffic().max_utilization * load.capacity_per_s(shape));  // under the cap
  if (limit_s == kUnreachable) return most_per_s;
  if (enough_per_s > 0) {
    const double asked_per_s = std::min(enough_per_s, most_per_s);
    if (load.latency_s(shape, load.rate_per_s() / asked_per_s, scratch, limit_s) > limit_s) return asked_per_s;
    if (asked_per_s == most_per_s) return most_per_s;
  }
  return load.rate_within(shape, limit_s, scratch);
}

}  // namespace

std::vector<double> CascadeSearch::capacities(std::size_t station, std::span<const std::int64_t> prefixes,
                                              double limit_s, std::span<const double> enough_per_s, int threads,
                                              const std::function<bool()>& interrupted) {
  const StageModel& model = stage(station);
  std::vector<double> shares;
  {
    const std::scoped_lock hold(lock_);
    for (const std::int64_t prefix : prefixes) {
      const auto row = loads_.row(station, static_cast<std::size_t>(prefix));
      shares.insert(shares.end(), row.begin(), row.end());
    }
  }
  const std::size_t options = model.shapes().size(), cells = model.cells();
  std::vector<double> rates_per_s(prefixes.size() * options, 0.0);
  struct Worker {
    StageLoad load;
    Scratch scratch;
  };
  std::vector<Worker> workers(static_cast<std::size_t>(std::max(threads, 1)));
  parallel_for(
      prefixes.size(), threads,
      [&](std::size_t p, std::size_t thread) {
        auto& [load, scratch] = workers[thread];
        load.reset(model, {shares.data() + p * cells, cells}, traffic(), setting_.stations[station].limits);
        for (std::size_t s = 0; s < options; ++s)
          rates_per_s[p * options + s] = rate_within(load, static_cast<int>(s), limit_s,
                                                     enough_per_s.empty() ? 0 : enough_per_s[p * options + s], scratch);
      },
      interrupted);
  return rates_per_s;
}

}  // namespace cascadia
