#include "exact.hpp"

#include <algorithm>
#include <cmath>

#include "hunt.hpp"
#include "vector_math.hpp"

namespace cascadia {

CascadeSearch::CascadeSearch(std::vector<SearchStation> stations, RoutingGrid grid, const Traffic& traffic)
    : setting_{std::move(stations), std::move(grid), traffic}, loads_(setting_) {
  for (std::size_t i = 0; i < setting_.stations.size(); ++i) {
    const bool whole = setting_.grid.lazy() && i == setting_.grid.last();
    least_gpus_.emplace_back(whole ? 0 : setting_.grid.rows(i), -1.0);
  }
}

double CascadeSearch::least_gpus(std::size_t routing, std::size_t station) {
  const StageModel& model = stage(station);
  const bool known = model.least_gpus() > 0;  // else no shape serves anybody, and there is no work to speak of
  std::vector<double>& all = least_gpus_[station];
  if (all.empty()) {
    const std::vector<double> ones(model.cells(), 1.0);
    all = loads_.lazy_sums(ones);
    const auto work = known ? loads_.lazy_sums(model.least_gpu_s()) : all;
    for (std::size_t row = 0; row < all.size(); ++row) all[row] = setting_.least_gpus(station, all[row], work[row]);
  }
  double& gpus = all[grid().prefix(routing, station)];
  if (gpus < 0) {
    const auto shares = loads_.share(routing, station);
    gpus = setting_.least_gpus(station, sum(shares), known ? dot(shares, model.least_gpu_s()) : 0);
  }
  return gpus;
}

std::vector<double> CascadeSearch::least_gpus(std::span<const std::int64_t> candidates) {
  const std::scoped_lock hold(lock_);
  std::vector<double> gpus;
  for (const std::int64_t routing : candidates)
    for (std::size_t i = 0; i < grid().stations(); ++i)
      gpus.push_back(least_gpus(static_cast<std::size_t>(routing), i));
  return gpus;
}

std::vector<double> CascadeSearch::share(std::size_t routing, std::size_t station) {
  const std::scoped_lock hold(lock_);
  const auto shares = loads_.share(routing, station);
  return {shares.begin(), shares.end()};
}

ExactResult CascadeSearch::exact(const Question& question, const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  return Hunt(*this, loads_, question, interrupted).best();
}

std::vector<ExactResult> CascadeSearch::front(const Question& question, const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  return Hunt(*this, loads_, question, interrupted).front();
}

Allocation CascadeSearch::deploy(std::size_t routing, int gpus) {
  const std::scoped_lock hold(lock_);
  return allocate(loads_.of(routing), gpus, {}, loads_.scratch);
}

std::vector<std::vector<Choice>> CascadeSearch::columns(std::size_t routing, double latency_s, int gpus) {
  const std::scoped_lock hold(lock_);
  return proof_columns(loads_.of(routing), latency_s, gpus, loads_.scratch);
}

Choice CascadeSearch::single(std::size_t station, int gpus) {
  const std::scoped_lock hold(lock_);
  // Every threshold before it is `never`: the last of its rows.
  const auto shares = loads_.row(station, grid().rows(station) - 1);
  const std::vector<double> all(shares.begin(), shares.end());
  StageLoad alone;
  alone.reset(stage(station), all, traffic(), setting_.stations[station].limits);
  return alone.best(gpus, loads_.scratch);
}

StageEvaluation CascadeSearch::evaluate(std::size_t routing, std::size_t station, int shape, int replicas) {
  const std::scoped_lock hold(lock_);
  StageLoad& load = loads_.at(routing, station);
  return evaluate(load, shape, load.arrivals(replicas));
}

StageEvaluation CascadeSearch::sampled(std::size_t routing, std::size_t station, int shape, double rate_per_s) {
  const std::scoped_lock hold(lock_);
  StageLoad& load = loads_.at(routing, station);
  return evaluate(load, shape, load.arrivals_at(rate_per_s));
}

Split CascadeSearch::split(std::size_t routing, std::size_t station, const Choice& choice) {
  const std::scoped_lock hold(lock_);
  return loads_.at(routing, station).split(choice, loads_.scratch);
}

StageEvaluation CascadeSearch::evaluate(StageLoad& load, int shape, const Arrivals& arrivals) {
  const LoadModel& model = load.model().shapes()[static_cast<std::size_t>(shape)];
  Scratch& scratch = loads_.scratch;
  StageEvaluation result;
  result.nodes = model.nodes().per_cell;
  result.latency_s.assign(result.nodes * model.cells(), 0);
  result.first_token_s = result.latency_s;
  if (!load.reached()) return result;
  const Load& prepared = load.load(shape);
  result.reach = load.reach();
  result.capacity_per_s = prepared.capacity_per_s;
  result.utilization = arrivals.rate_per_s / prepared.capacity_per_s;
  result.batch_limit = prepared.batch_limit;
  result.quantile_s = model.quantile_s(prepared, arrivals, traffic().quantile, scratch);
  if (result.quantile_s == kUnreachable) return result;
  result.mean_batch = scratch.running;
  for (std::size_t j = 0; j < result.nodes; ++j)
    for (std::size_t k = 0; k < model.cells(); ++k) {
      result.latency_s[j * model.cells() + k] = scratch.latency[j * model.padded() + k];
      result.first_token_s[j * model.cells() + k] = scratch.first[j * model.padded() + k];
    }
  return result;
}

}  // namespace cascadia
