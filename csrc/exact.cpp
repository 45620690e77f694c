#include "exact.hpp"

#include <algorithm>
#include <cmath>
#include <tuple>

#include "parallel.hpp"
#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr double kQualitySlack = 1e-9;  // points; a mean of n scores is not exact
constexpr double kMaxRateRatio = 1e15;  // a search for the largest rate ends here, as a multiple of the planned one
constexpr std::size_t kAskEvery = 256;  // routings between two looks at the keyboard

void stop_if(const std::function<bool()>& interrupted, std::size_t i) {
  if (interrupted && i % kAskEvery == 0 && interrupted()) throw Cancelled();
}

std::vector<double> worst_first(const Allocation& allocation) {
  std::vector<double> latency_s;
  for (const Choice& choice : allocation.stages) latency_s.push_back(choice.latency_s);
  std::sort(latency_s.begin(), latency_s.end(), std::greater<>());
  return latency_s;
}

int moved_gpus(const Allocation& allocation, const std::vector<int>& previous) {
  int moved = 0;
  for (std::size_t i = 0; i < previous.size() && i < allocation.stages.size(); ++i)
    moved += std::abs(allocation.stages[i].gpus - previous[i]);
  return moved;
}

}  // namespace

std::size_t RoutingGrid::prefix(std::size_t routing, std::size_t stage) const {
  std::size_t index = 0;
  for (std::size_t j = 0; j < stage; ++j)
    index = index * levels[j] + static_cast<std::size_t>(routings[routing * thresholds() + j]);
  return index;
}

CascadeSearch::CascadeSearch(std::vector<std::shared_ptr<const StageModel>> stages, RoutingGrid grid,
                             const Traffic& traffic)
    : stages_(std::move(stages)),
      grid_(std::move(grid)),
      traffic_(traffic),
      kept_(stages_.size()),
      recent_(stages_.size()) {
  for (std::size_t i = 0; i < stages_.size(); ++i)
    work_.emplace_back(grid_.share[i].size() / stages_[i]->cells(), -1.0);
}

std::span<const double> CascadeSearch::share(std::size_t routing, std::size_t stage) const {
  const std::size_t cells = stages_[stage]->cells();
  return {grid_.share[stage].data() + grid_.prefix(routing, stage) * cells, cells};
}

double CascadeSearch::work_gpus(std::size_t stage, std::size_t prefix) {
  double& work = work_[stage][prefix];
  if (work >= 0) return work;
  const StageModel& model = *stages_[stage];
  const double* share = grid_.share[stage].data() + prefix * model.cells();
  const std::span<const double> shares{share, model.cells()};
  const double reach = sum(shares);
  const double gpu_s = reach > 0 && model.least_gpus() > 0 ? dot(shares, model.least_gpu_s()) : 0;
  const bool runs = reach > 0 || traffic_.idle_stage_keeps_replica;
  work = !runs ? 0 : model.least_gpus() == 0 ? kUnreachable : static_cast<double>(model.least_gpus());
  return work = std::max(work, gpu_s * traffic_.rate_per_s / traffic_.max_utilization);
}

std::vector<CascadeSearch::Ranked> CascadeSearch::by_load(double quality_floor) {
  std::vector<Ranked> order;
  for (std::size_t r = 0; r < grid_.count(); ++r) {
    if (grid_.quality[grid_.prefix(r, grid_.thresholds())] < quality_floor - kQualitySlack) continue;
    double gpus = 0;
    for (std::size_t i = 0; i < stages_.size(); ++i) gpus += work_gpus(i, grid_.prefix(r, i));
    order.push_back({gpus, static_cast<std::uint32_t>(r)});
  }
  std::sort(order.begin(), order.end(), [](const Ranked& a, const Ranked& b) {
    return std::tie(a.bound_gpus, a.routing) < std::tie(b.bound_gpus, b.routing);
  });
  return order;
}

StageLoad& CascadeSearch::stage_load(std::size_t routing, std::size_t stage) {
  const std::size_t prefix = grid_.prefix(routing, stage);
  if (stage + 1 == stages_.size()) {
    if (prefix != last_prefix_) last_.reset(*stages_[stage], share(routing, stage), traffic_);
    last_prefix_ = prefix;
    return last_;
  }
  auto& kept = kept_[stage][prefix];
  if (!kept) {
    kept = std::make_unique<StageLoad>();
    kept->reset(*stages_[stage], share(routing, stage), traffic_);
    if (recent_[stage] != nullptr) kept->start_near(*recent_[stage]);
    recent_[stage] = kept.get();
  }
  return *kept;
}

std::vector<StageLoad*> CascadeSearch::loads(std::size_t routing) {
  std::vector<StageLoad*> all;
  for (std::size_t i = 0; i < stages_.size(); ++i) all.push_back(&stage_load(routing, i));
  return all;
}

// Whether the routing can reach the limits, stage by stage: one evaluation per shape of the last stage, no search.
CascadeSearch::Fit CascadeSearch::fit(std::size_t routing, std::span<const double> limits_s, bool strictly, int gpus) {
  const std::size_t last = stages_.size() - 1;
  double ahead = 0;  // GPUs that the load of the stages still to come takes at least
  for (std::size_t i = 0; i <= last; ++i) ahead += work_gpus(i, grid_.prefix(routing, i));
  for (std::size_t i = 0; i < last; ++i) {
    ahead -= work_gpus(i, grid_.prefix(routing, i));
    const Choice choice = stage_load(routing, i).need(limits_s[i], strictly, gpus, scratch_);
    if (choice.latency_s == kUnreachable) return Fit::too_few_gpus;
    gpus -= choice.gpus;
    if (ahead > gpus + 1e-6) return Fit::too_much_load;  // whole GPUs: far less than one is rounding
  }
  const double best_s = stage_load(routing, last).best_below(limits_s[last], gpus, scratch_);
  return best_s < limits_s[last] ? Fit::below : best_s == limits_s[last] ? Fit::equal : Fit::too_slow;
}

// Whether the routing may be at least as good as the incumbent: all stages below its worst p95, or the same worst p95
// at one stage and the others no worse than its next.
CascadeSearch::Fit CascadeSearch::may_beat(std::size_t routing, std::span<const double> worst, int gpus) {
  auto& limits = limits_s_;
  limits.assign(stages_.size(), worst[0]);
  const Fit strict = fit(routing, limits, true, gpus);
  if (strict == Fit::below || stages_.size() == 1) return strict == Fit::equal ? Fit::below : strict;
  for (std::size_t b = 0; b < stages_.size(); ++b) {
    const bool tie = b + 1 == stages_.size()
                         ? strict == Fit::equal
                         : stage_load(routing, b).need(worst[0], false, gpus, scratch_).latency_s == worst[0];
    if (!tie) continue;
    limits.assign(stages_.size(), worst[1]);
    limits[b] = worst[0];
    const Fit equal = fit(routing, limits, false, gpus);
    if (equal == Fit::below || equal == Fit::equal) return Fit::below;
  }
  return strict;
}

ExactResult CascadeSearch::exact(int gpus, double quality_floor, const std::vector<int>& previous_gpus,
                                 const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  ExactResult result;
  const auto order = by_load(quality_floor);
  result.meet_floor = static_cast<std::int64_t>(order.size());
  const auto key = [&](const Allocation& allocation, std::uint32_t routing) {
    return std::make_tuple(worst_first(allocation), -grid_.quality[grid_.prefix(routing, grid_.thresholds())],
                           allocation.gpus(), moved_gpus(allocation, previous_gpus), routing);
  };
  std::vector<double> worst_s;  // of the incumbent, worst first
  for (std::size_t i = 0; i < order.size(); ++i) {
    stop_if(interrupted, i);
    const auto [bound_gpus, routing] = order[i];
    if (bound_gpus > gpus + 1e-6) {
      result.pruned_by_load += static_cast<std::int64_t>(order.size() - i);
      break;
    }
    if (result.routing >= 0) {
      const Fit verdict = may_beat(routing, worst_s, gpus);
      if (verdict == Fit::too_few_gpus) ++result.pruned_by_need;
      if (verdict == Fit::too_much_load) ++result.pruned_by_load;
      if (verdict == Fit::too_slow || verdict == Fit::equal) ++result.pruned_by_latency;
      if (verdict != Fit::below) continue;
    }
    ++result.evaluated;
    Allocation allocation = allocate(loads(routing), gpus, previous_gpus, scratch_);
    if (!allocation.feasible()) continue;
    if (result.routing < 0 ||
        key(allocation, routing) < key(result.allocation, static_cast<std::uint32_t>(result.routing))) {
      result.allocation = std::move(allocation);
      result.routing = routing;
      worst_s = worst_first(result.allocation);
    }
  }
  return result;
}

Allocation CascadeSearch::deploy(std::size_t routing, int gpus) {
  const std::scoped_lock hold(lock_);
  return allocate(loads(routing), gpus, {}, scratch_);
}

std::vector<std::vector<Choice>> CascadeSearch::columns(std::size_t routing, double latency_s, int gpus) {
  const std::scoped_lock hold(lock_);
  return proof_columns(loads(routing), latency_s, gpus, scratch_);
}

Choice CascadeSearch::single(std::size_t stage, int gpus) {
  const std::scoped_lock hold(lock_);
  const std::size_t cells = stages_[stage]->cells();
  StageLoad alone;
  alone.reset(*stages_[stage], grid_.share[stage].last(cells), traffic_);  // every threshold before it is `never`
  return alone.best(gpus, scratch_);
}

RouteResult CascadeSearch::route(const std::vector<Choice>& deployment, double quality_floor, double mu_s, double span,
                                 const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  const std::size_t last = stages_.size() - 1;
  const auto latency_s = [&](std::size_t routing, std::size_t i, double at_most_s) {
    StageLoad& stage = stage_load(routing, i);
    if (!stage.reached()) return 0.0;
    return deployment[i].shape < 0 ? kUnreachable
                                   : stage.latency_s(deployment[i].shape, deployment[i].replicas, scratch_, at_most_s);
  };
  struct Candidate {
    double bound, penalty, earlier_s;
    std::uint32_t routing;
  };
  std::vector<Candidate> order;
  for (std::size_t r = 0; r < grid_.count(); ++r) {
    const double deficit = quality_floor - grid_.quality[grid_.prefix(r, grid_.thresholds())];
    const double penalty = mu_s * std::max(0.0, deficit) / span;
    double earlier_s = 0;
    for (std::size_t i = 0; i < last; ++i) earlier_s = std::max(earlier_s, latency_s(r, i, kUnreachable));
    if (earlier_s == kUnreachable) continue;
    double bound = earlier_s;
    const auto weights = share(r, last);
    if (deployment[last].shape >= 0 && std::any_of(weights.begin(), weights.end(), [](double s) { return s > 0; }))
      bound = std::max(bound, stages_[last]->shapes()[static_cast<std::size_t>(deployment[last].shape)].idle_bound_s(
                                  weights, traffic_.quantile));
    order.push_back({bound + penalty, penalty, earlier_s, static_cast<std::uint32_t>(r)});
  }
  std::sort(order.begin(), order.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.bound, a.routing) < std::tie(b.bound, b.routing);
  });
  RouteResult result;
  for (std::size_t i = 0; i < order.size() && order[i].bound < result.objective; ++i) {
    stop_if(interrupted, i);
    ++result.evaluated;
    const double useful_s = result.objective - order[i].penalty;  // slower ones cannot improve the objective
    const double worst_s = std::max(order[i].earlier_s, latency_s(order[i].routing, last, useful_s));
    if (worst_s + order[i].penalty < result.objective)
      result = {order[i].routing, worst_s + order[i].penalty, worst_s, 0, result.evaluated};
  }
  if (result.routing >= 0) {
    result.utilization = utilization(static_cast<std::size_t>(result.routing), deployment);
    return result;
  }
  result.utilization = kUnreachable;
  for (std::size_t r = 0; r < grid_.count(); ++r) {
    const double used = utilization(r, deployment);
    if (result.routing < 0 || used < result.utilization) {
      result.routing = static_cast<std::int64_t>(r);
      result.utilization = used;
    }
  }
  return result;
}

StageEvaluation CascadeSearch::evaluate(std::size_t routing, std::size_t stage, int shape, int replicas) {
  const std::scoped_lock hold(lock_);
  StageLoad& traffic = stage_load(routing, stage);
  const LoadModel& model = stages_[stage]->shapes()[static_cast<std::size_t>(shape)];
  StageEvaluation result;
  result.nodes = model.nodes().per_cell;
  result.latency_s.assign(result.nodes * model.cells(), 0);
  result.first_token_s = result.latency_s;
  if (!traffic.reached()) return result;
  const Load& load = traffic.load(shape);
  const Arrivals arrivals = traffic.arrivals(replicas);
  result.reach = traffic.reach();
  result.capacity_per_s = load.capacity_per_s;
  result.utilization = arrivals.rate_per_s / load.capacity_per_s;
  result.batch_limit = load.batch_limit;
  result.quantile_s = model.quantile_s(load, arrivals, traffic_.quantile, scratch_);
  if (result.quantile_s == kUnreachable) return result;
  result.mean_batch = scratch_.running;
  for (std::size_t j = 0; j < result.nodes; ++j)
    for (std::size_t k = 0; k < model.cells(); ++k) {
      result.latency_s[j * model.cells() + k] = scratch_.latency[j * model.padded() + k];
      result.first_token_s[j * model.cells() + k] = scratch_.first[j * model.padded() + k];
    }
  return result;
}

double CascadeSearch::utilization(std::size_t routing, const std::vector<Choice>& deployment) {
  double worst = 0;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    StageLoad& stage = stage_load(routing, i);
    if (!stage.reached()) continue;
    if (deployment[i].shape < 0) return kUnreachable;
    worst = std::max(worst, stage.rate_per_s() / (deployment[i].replicas * stage.capacity_per_s(deployment[i].shape)));
  }
  return worst;
}

// GPUs that carry `scale` times the planned rate under the utilisation cap, each stage on its most frugal shape.
double CascadeSearch::gpus_at(std::size_t routing, double scale) {
  double gpus = 0;
  for (std::size_t i = 0; i < stages_.size(); ++i) {
    StageLoad& stage = stage_load(routing, i);
    if (!stage.reached()) {
      gpus += traffic_.idle_stage_keeps_replica ? stages_[i]->least_gpus() : 0;
      continue;
    }
    double least = kUnreachable;
    for (int s = 0; s < static_cast<int>(stages_[i]->shapes().size()); ++s) {
      const LoadModel& shape = stages_[i]->shapes()[static_cast<std::size_t>(s)];
      const double busy = scale / traffic_.max_utilization;  // replicas per unit of load
      if (!shape.fits() || shape.gpus() * busy * traffic_.rate_per_s * stage.least_work_s(s) >= least) continue;
      const double replicas = std::ceil(busy * stage.rate_per_s() / stage.capacity_per_s(s));
      least = std::min(least, shape.gpus() * std::max(replicas, 1.0));
    }
    gpus += least;
  }
  return gpus;
}

double CascadeSearch::max_rate_per_s(int gpus, double quality_floor) {
  const std::scoped_lock hold(lock_);
  double best = 0;
  for (const auto& [bound_gpus, routing] : by_load(quality_floor)) {
    double work = 0;  // GPUs per planned rate; unlike bound_gpus without the floor of one replica per stage
    for (std::size_t i = 0; i < stages_.size(); ++i) {
      const auto shares = share(routing, i);
      for (std::size_t k = 0; k < shares.size(); ++k)
        if (shares[k] > 0) work += shares[k] * stages_[i]->least_gpu_s()[k];
    }
    double hi = gpus * traffic_.max_utilization / (work * traffic_.rate_per_s), lo = best;
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
  return best * traffic_.rate_per_s;
}

std::pair<double, std::int64_t> CascadeSearch::fewest_gpus(double quality_floor) {
  double least = kUnreachable;
  std::int64_t frugal = -1;
  for (const auto& [bound_gpus, routing] : by_load(quality_floor)) {
    if (bound_gpus >= least) break;
    const double gpus = gpus_at(routing, 1);
    if (gpus < least) {
      least = gpus;
      frugal = routing;
    }
  }
  return {least, frugal};
}

double CascadeSearch::least_gpus(double quality_floor) {
  const std::scoped_lock hold(lock_);
  return fewest_gpus(quality_floor).first;
}

std::int64_t CascadeSearch::lightest(double quality_floor) {
  const std::scoped_lock hold(lock_);
  return fewest_gpus(quality_floor).second;
}

}  // namespace cascadia
