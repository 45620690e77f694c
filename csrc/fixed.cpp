// Routing on a deployment that stands.
#include <algorithm>
#include <tuple>

#include "exact.hpp"
#include "parallel.hpp"

namespace cascadia {
namespace {

constexpr std::size_t kAskEvery = 256;  // routings between two looks at the keyboard

}  // namespace

RouteResult CascadeSearch::route(const std::vector<Choice>& deployment, double quality_floor, double mu_s, double span,
                                 const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  const std::size_t last = grid().last();
  Scratch& scratch = loads_.scratch;
  const auto latency_s = [&](std::size_t routing, std::size_t i, double at_most_s) {
    StageLoad& stage = loads_.at(routing, i);
    if (!stage.reached()) return 0.0;
    return deployment[i].shape < 0 ? kUnreachable
                                   : stage.latency_s(deployment[i].shape, deployment[i].replicas, scratch, at_most_s);
  };
  struct Candidate {
    double bound, penalty, earlier_s;
    std::uint32_t routing;
  };
  std::vector<Candidate> order;
  for (std::size_t r = 0; r < grid().count(); ++r) {
    const double deficit = quality_floor - grid().quality_of(r);
    const double penalty = mu_s * std::max(0.0, deficit) / span;
    double earlier_s = 0;
    for (std::size_t i = 0; i < last; ++i) earlier_s = std::max(earlier_s, latency_s(r, i, kUnreachable));
    if (earlier_s == kUnreachable) continue;
    double bound = earlier_s;
    const auto weights = loads_.share(r, last);
    if (deployment[last].shape >= 0 && std::any_of(weights.begin(), weights.end(), [](double s) { return s > 0; }))
      bound = std::max(bound, stage(last).shapes()[static_cast<std::size_t>(deployment[last].shape)].idle_bound_s(
                                  weights, traffic().quantile));
    order.push_back({bound + penalty, penalty, earlier_s, static_cast<std::uint32_t>(r)});
  }
  std::sort(order.begin(), order.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.bound, a.routing) < std::tie(b.bound, b.routing);
  });
  RouteResult result;
  for (std::size_t i = 0; i < order.size() && order[i].bound < result.objective; ++i) {
    if (interrupted && i % kAskEvery == 0 && interrupted()) throw Cancelled();
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
  for (std::size_t r = 0; r < grid().count(); ++r) {
    const double used = utilization(r, deployment);
    if (result.routing < 0 || used < result.utilization) {
      result.routing = static_cast<std::int64_t>(r);
      result.utilization = used;
    }
  }
  return result;
}

double CascadeSearch::utilization(std::size_t routing, const std::vector<Choice>& deployment) {
  double worst = 0;
  for (std::size_t i = 0; i < setting_.stations.size(); ++i) {
    StageLoad& stage = loads_.at(routing, i);
    if (!stage.reached()) continue;
    if (deployment[i].shape < 0) return kUnreachable;
    worst = std::max(worst, stage.rate_per_s() / (deployment[i].replicas * stage.capacity_per_s(deployment[i].shape)));
  }
  return worst;
}

}  // namespace cascadia
