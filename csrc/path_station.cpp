#include "path_station.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>
#include <utility>

#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr double kRounding = 1 - 1e-12;  // bounds and samples are added up in different ways

bool nowhere_below(const StationSamples& a, const StationSamples& b) {
  for (std::size_t s = 0; s < a.latency_s.size(); ++s)
    if (a.latency_s[s] < b.latency_s[s] || a.first_token_s[s] < b.first_token_s[s]) return false;
  return true;
}

void keep_least(StationSamples& least, const StationSamples& other) {
  for (std::size_t s = 0; s < least.latency_s.size(); ++s) {
    least.latency_s[s] = std::min(least.latency_s[s], other.latency_s[s]);
    least.first_token_s[s] = std::min(least.first_token_s[s], other.first_token_s[s]);
  }
  least.p95_s = std::min(least.p95_s, other.p95_s);
}

StationSamples constant(std::size_t size, double latency_s) {
  return {std::vector<double>(size, latency_s), std::vector<double>(size, latency_s), latency_s};
}

}  // namespace

PathStationModel::PathStationModel(const StageModel& stage, const StageLimits& limits_, std::vector<int> pool_)
    : model(&stage), limits(limits_), pool(std::move(pool_)) {
  for (const LoadModel& shape : stage.shapes()) {
    const std::size_t nodes = shape.nodes().per_cell;
    StationSamples& of = idle.emplace_back(constant(nodes * shape.cells(), 0));
    for (std::size_t j = 0; j < nodes; ++j)
      for (std::size_t k = 0; k < shape.cells(); ++k)
        std::tie(of.latency_s[j * shape.cells() + k], of.first_token_s[j * shape.cells() + k]) =
            shape.idle_sample_s(j, k);
    for (auto* times : {&of.latency_s, &of.first_token_s})
      for (double& time_s : *times) time_s *= kRounding;
    if (!shape.fits()) continue;
    order.push_back(static_cast<int>(idle.size()) - 1);
    if (least_idle.latency_s.empty())
      least_idle = of;
    else
      keep_least(least_idle, of);
  }
  const auto idle_s = [&](int option) { return sum(idle[static_cast<std::size_t>(option)].latency_s); };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return idle_s(a) < idle_s(b); });
  if (least_idle.latency_s.empty()) least_idle = constant(idle.front().latency_s.size(), kUnreachable);
}

PathStation::PathStation(const PathStationModel& model, std::vector<double> share, const Traffic& traffic)
    : model_(model), traffic_(traffic), share_(std::move(share)) {
  load_.reset(*model.model, share_, traffic, model.limits);
  const int kept = model.limits.fewest(load_.reached(), traffic);
  const auto shapes = model.model->shapes();
  if (kept == 0) ways_.push_back({});
  for (const int option : kept > 0 ? std::span<const int>(model.order) : std::span<const int>{}) {
    const double work = load_.least_work_s(option) * traffic.rate_per_s / traffic.max_utilization;
    const int least =
        load_.reached() ? std::max(kept, static_cast<int>(std::min(std::ceil(work * kRounding), 1e9))) : kept;
    const int most = load_.reached() ? model.limits.most_replicas : kept;
    const auto s = static_cast<std::size_t>(option);
    if (least <= most) ways_.push_back({option, shapes[s].gpus(), model.pool[s], least, most});
  }
  samples_.resize(1 + shapes.size());
}

void PathStation::settle() {
  const std::scoped_lock hold(lock_);
  if (settled_ || !load_.reached()) return;
  for (Way& way : ways_) way.least = load_.kept_replicas(way.option, scratch_);
  std::erase_if(ways_, [](const Way& way) { return way.least > way.most; });
  relaxed_.clear();
  settled_ = true;
}

StationSamples PathStation::computed(int option, int replicas) {
  const std::size_t size = model_.least_idle.latency_s.size();
  if (!load_.reached()) return constant(size, 0);
  if (option < 0 || replicas < load_.least_replicas(option)) return constant(size, kUnreachable);
  const LoadModel& shape = model_.model->shapes()[static_cast<std::size_t>(option)];
  const double p95_s = shape.quantile_s(load_.load(option), load_.arrivals(replicas), traffic_.quantile, scratch_);
  if (p95_s == kUnreachable) return constant(size, kUnreachable);
  StationSamples samples{std::vector<double>(size), std::vector<double>(size), p95_s};
  for (std::size_t j = 0; j < shape.nodes().per_cell; ++j)
    for (std::size_t k = 0; k < shape.cells(); ++k) {
      samples.latency_s[j * shape.cells() + k] = scratch_.latency[j * shape.padded() + k];
      samples.first_token_s[j * shape.cells() + k] = scratch_.first[j * shape.padded() + k];
    }
  return samples;
}

const StationSamples& PathStation::known(int option, int replicas) {
  auto& of = samples_[static_cast<std::size_t>(option + 1)];
  const auto at = of.find(replicas);
  return at != of.end() ? at->second : of.emplace(replicas, computed(option, replicas)).first->second;
}

const StationSamples& PathStation::samples(std::size_t way, int replicas) {
  const std::scoped_lock hold(lock_);
  return known(ways_[way].option, replicas);
}

const StationSamples& PathStation::deployed(const Choice& choice) {
  const std::scoped_lock hold(lock_);
  return known(choice.shape, choice.replicas);
}

const StationSamples* PathStation::relaxed(std::span<const int> gpus, int fewer) {
  const std::scoped_lock hold(lock_);
  std::vector<int> replicas(ways_.size(), -1);
  bool any = false;
  for (std::size_t w = 0; w < ways_.size(); ++w) {
    const Way& way = ways_[w];
    const int most = way.gpus == 0 ? 0 : std::min(way.most, gpus[static_cast<std::size_t>(way.pool)] / way.gpus);
    if (most < way.least) continue;
    replicas[w] = most - fewer;
    any = true;
  }
  if (!any) return nullptr;
  const auto before = relaxed_.find(replicas);
  if (before != relaxed_.end()) return &before->second;
  StationSamples least = constant(model_.least_idle.latency_s.size(), kUnreachable);
  for (std::size_t w = 0; w < ways_.size(); ++w) {
    if (replicas[w] < 0) continue;
    if (load_.reached()) {
      const auto option = static_cast<std::size_t>(ways_[w].option);
      if (model_.model->shapes()[option].idle_bound_s(share_, traffic_.quantile) >= least.p95_s &&
          nowhere_below(model_.idle[option], least))
        continue;
    }
    keep_least(least, known(ways_[w].option, replicas[w]));
  }
  return &relaxed_.emplace(std::move(replicas), std::move(least)).first->second;
}

}  // namespace cascadia
