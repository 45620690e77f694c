#include "path_branch.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace cascadia {
namespace {

constexpr double kRounding = 1e-12;  // relative: sums of prices in another order
constexpr std::array<LatencyMetric, 2> kPathMetrics{LatencyMetric::end_to_end, LatencyMetric::ttft};

std::size_t index_of(LatencyMetric metric) { return static_cast<std::size_t>(path_metric(metric)); }

}  // namespace

PathBranch::PathBranch(const PathGoal& goal, const Paths& paths, RoutedPaths routed, const PathRouting& routing,
                       double quantile, const PathClock& clock)
    : goal_(goal),
      routed_(std::move(routed)),
      routing_(routing),
      spare_(paths.spare_weight(quantile)),
      clock_(clock),
      use_(routing.stations.size()),
      at_(routing.stations.size()) {}

void PathBranch::order_stations() {
  open_use_.clear();
  for (std::size_t i = 0; i < routing_.stations.size(); ++i) open_use_.push_back(open_use(i));
  order_.resize(open_use_.size());
  std::iota(order_.begin(), order_.end(), std::size_t{0});
  std::stable_sort(order_.begin(), order_.end(),
                   [&](std::size_t a, std::size_t b) { return open_use_[a].all_gpus > open_use_[b].all_gpus; });
}

// From bounds of the work alone to the replicas that really carry it.
void PathBranch::settle() {
  for (PathStation* station : routing_.stations) station->settle();
  order_stations();
}

PathBranch::Use PathBranch::open_use(std::size_t station) const {
  Use use{std::vector<int>(routing_.gpus.size(), 0), std::numeric_limits<int>::max(), kUnreachable};
  const auto ways = routing_.stations[station]->ways();
  for (const auto& way : ways) {
    const int gpus = way.gpus * way.least;
    use.all_gpus = std::min(use.all_gpus, gpus);
    use.usd = std::min(use.usd, gpus * goal_.usd_per_gpu[static_cast<std::size_t>(way.pool)]);
  }
  const bool one_pool = std::all_of(ways.begin(), ways.end(), [&](const auto& w) { return w.pool == ways[0].pool; });
  if (!ways.empty() && one_pool) {
    use.gpus[static_cast<std::size_t>(ways[0].pool)] = use.all_gpus;
    use.usd = 0;
  }
  return use;
}

// What the stations take at least; usd is of those whose pool is still open.
PathBranch::Use PathBranch::total_use(std::size_t without) const {
  Use total{std::vector<int>(routing_.gpus.size(), 0), 0, 0};
  for (std::size_t i = 0; i < use_.size(); ++i) {
    if (i == without) continue;
    for (std::size_t p = 0; p < total.gpus.size(); ++p) total.gpus[p] += use_[i].gpus[p];
    total.all_gpus += use_[i].all_gpus;
    total.usd += use_[i].usd;
  }
  return total;
}

double PathBranch::spend_usd(const Use& total) const {
  double usd = routing_.fixed_usd;
  for (std::size_t p = 0; p < total.gpus.size(); ++p) usd += goal_.usd_per_gpu[p] * total.gpus[p];
  return usd + total.usd * (1 - kRounding);
}

double PathBranch::most_usd() const {
  return goal_.minimise == Minimise::spend ? std::min(goal_.budget_usd, incumbent_.value) : goal_.budget_usd;
}

// GPUs of each pool that the other stations leave.
std::vector<int> PathBranch::room(std::size_t station) const {
  const Use others = total_use(station);
  const double left_usd = most_usd() * (1 + kRounding) - spend_usd(others);
  std::vector<int> gpus(routing_.gpus);
  for (std::size_t p = 0; p < gpus.size(); ++p) {
    gpus[p] -= others.gpus[p];
    const double affordable = left_usd / goal_.usd_per_gpu[p] * (1 + kRounding) + kRounding;
    if (affordable < gpus[p]) gpus[p] = static_cast<int>(std::floor(std::max(affordable, -1.0)));
  }
  return gpus;
}

// Cuts the replicas to what the other stations leave; false: the GPUs or the budget do not suffice.
bool PathBranch::tighten(Node& node) {
  for (std::size_t i = 0; i < node.size(); ++i) {
    if (node[i].way < 0) {
      use_[i] = open_use_[i];
      continue;
    }
    const auto& way = routing_.stations[i]->ways()[static_cast<std::size_t>(node[i].way)];
    use_[i] = {std::vector<int>(routing_.gpus.size(), 0), way.gpus * node[i].lo, 0};
    use_[i].gpus[static_cast<std::size_t>(way.pool)] = use_[i].all_gpus;
  }
  for (std::size_t i = 0; i < node.size(); ++i) {
    const auto left = room(i);
    if (node[i].way < 0) {
      for (std::size_t p = 0; p < left.size(); ++p)
        if (left[p] < use_[i].gpus[p]) return false;
      continue;
    }
    const auto& way = routing_.stations[i]->ways()[static_cast<std::size_t>(node[i].way)];
    const int most = left[static_cast<std::size_t>(way.pool)];
    if (way.gpus > 0 && most < way.gpus * node[i].hi) node[i].hi = most < 0 ? -1 : most / way.gpus;
    if (node[i].hi < node[i].lo) return false;
  }
  return true;
}

// Samples that no deployment of the node undercuts, in `at_`; false: there is no such deployment.
bool PathBranch::look_up(const Node& node) {
  for (std::size_t i = 0; i < node.size(); ++i) {
    PathStation& station = *routing_.stations[i];
    at_[i] = node[i].way < 0 ? station.relaxed(room(i), 0)
                             : &station.samples(static_cast<std::size_t>(node[i].way), node[i].hi);
    if (at_[i] == nullptr || at_[i]->p95_s == kUnreachable) return false;
  }
  return true;
}

// Whether some deployment of the node, which is tightened, may keep to everything and be better than the incumbent.
bool PathBranch::may_beat(const Node& node) {
  if ((++tests_ & 15) == 0 && clock_.out_of_time()) throw OutOfTime{};
  if (!look_up(node)) return false;
  const Use total = total_use(use_.size());
  PathKey bound{0, 0, -routing_.quality, total.all_gpus, 0, routing_.index};
  for (const auto* samples : at_) bound.worst_s = std::max(bound.worst_s, samples->p95_s);
  if (bound.worst_s > goal_.limit_s(LatencyMetric::max_stage)) return false;
  const double usd = spend_usd(total);
  if (usd > goal_.budget_usd) return false;
  if (goal_.minimise == Minimise::spend) bound.value = usd;
  const bool by_path = goal_.minimise == Minimise::latency && goal_.metric != LatencyMetric::max_stage;
  if (goal_.minimise == Minimise::latency && !by_path) bound.value = bound.worst_s;
  if (!by_path && !(bound < incumbent_)) return false;
  for (const LatencyMetric metric : kPathMetrics) {
    double limit_s = goal_.limit_s(metric);
    if (by_path && metric == goal_.metric) limit_s = std::min(limit_s, useful_s(bound));
    if (limit_s < kUnreachable && above(metric, limit_s) > spare_) return false;
  }
  return survives(node);
}

// The largest value of a path metric that still makes a plan better than the incumbent.
double PathBranch::useful_s(const PathKey& bound) const {
  if (incumbent_.value == kUnreachable || bound.ties_better(incumbent_)) return incumbent_.value;
  return std::nextafter(incumbent_.value, -kUnreachable);
}

std::int64_t PathBranch::above(LatencyMetric metric, double limit_s) const {
  const auto& kept = undecided_[index_of(metric)];
  return weight_above(kept ? *kept : routed_, at_, path_metric(metric), limit_s, spare_);
}

// The ceilings hold with any one station short of its spare replicas.
bool PathBranch::survives(const Node& node) {
  for (std::size_t i = 0; i < node.size(); ++i) {
    PathStation& station = *routing_.stations[i];
    const int lost = station.limits().spare_replicas;
    if (lost == 0 || !station.reached()) continue;
    const StationSamples* whole = at_[i];
    at_[i] = node[i].way < 0 ? station.relaxed(room(i), lost)
                             : &station.samples(static_cast<std::size_t>(node[i].way), node[i].hi - lost);
    bool holds = at_[i]->p95_s < kUnreachable && at_[i]->p95_s <= station.limits().survive_s;
    for (const LatencyMetric metric : kPathMetrics) {
      const double limit_s = goal_.limit_s(metric);
      holds = holds &&
              (limit_s == kUnreachable || weight_above(routed_, at_, path_metric(metric), limit_s, spare_) <= spare_);
    }
    at_[i] = whole;
    if (!holds) return false;
  }
  return true;
}

std::optional<PathPlan> PathBranch::best(const PathKey& incumbent) {
  incumbent_ = incumbent;
  found_.reset();
  done_ = false;
  Node root(routing_.stations.size());
  order_stations();
  if (!tighten(root) || !may_beat(root)) return found_;
  settle();
  if (!tighten(root) || !may_beat(root)) return found_;
  root_at_ = at_;
  leave_out();
  open_next(root);
  return found_;
}

std::optional<PathPlan> PathBranch::judged(const std::vector<Choice>& stages, const PathKey& incumbent) {
  incumbent_ = incumbent;
  found_.reset();
  settle();
  Node node(stages.size());
  for (std::size_t i = 0; i < stages.size(); ++i) {
    const auto ways = routing_.stations[i]->ways();
    for (std::size_t w = 0; w < ways.size(); ++w)
      if (ways[w].option == stages[i].shape && stages[i].fill_replicas == 0 && ways[w].least <= stages[i].replicas &&
          stages[i].replicas <= ways[w].most)
        node[i] = {static_cast<int>(w), stages[i].replicas, stages[i].replicas};
    if (node[i].way < 0) return found_;
  }
  if (tighten(node) && may_beat(node)) take(node);
  return found_;
}

// Paths that are too slow on any deployment are so from now on.
void PathBranch::leave_out() {
  for (const LatencyMetric metric : kPathMetrics) {
    double limit_s = goal_.limit_s(metric);
    if (goal_.minimise == Minimise::latency && metric == goal_.metric) limit_s = std::min(limit_s, incumbent_.value);
    auto& kept = undecided_[index_of(metric)];
    if (limit_s < kUnreachable) kept = undecided(kept ? *kept : routed_, root_at_, path_metric(metric), limit_s);
  }
}

// Tries every way to run the next station.
void PathBranch::open_next(const Node& node) {
  const auto next = std::find_if(order_.begin(), order_.end(), [&](std::size_t i) { return node[i].way < 0; });
  if (next == order_.end()) return search_box(node);
  const auto ways = routing_.stations[*next]->ways();
  struct Child {
    double p95_s;
    Node node;
  };
  std::vector<Child> children;
  for (std::size_t w = 0; w < ways.size(); ++w) {
    Node child = node;
    child[*next] = {static_cast<int>(w), ways[w].least, ways[w].most};
    if (tighten(child) && may_beat(child)) children.push_back({at_[*next]->p95_s, std::move(child)});
  }
  std::stable_sort(children.begin(), children.end(), [](const Child& a, const Child& b) { return a.p95_s < b.p95_s; });
  const std::int64_t before = improvements_;
  for (Child& child : children) {
    if (done_) return;
    if (improvements_ != before && !(tighten(child.node) && may_beat(child.node))) continue;
    open_next(child.node);
  }
}

void PathBranch::visit(Node node) {
  if (!done_ && tighten(node) && may_beat(node)) search_box(node);
}

// Every station has its way, and the node may beat the incumbent.
void PathBranch::search_box(const Node& node) {
  if (goal_.minimise == Minimise::spend) {
    Node low = node;
    for (Pick& pick : low) pick.hi = pick.lo;
    if (tighten(low) && may_beat(low)) return take(low);  // anything else costs more
    return split(node);
  }
  Node high = node;
  for (Pick& pick : high) pick.lo = pick.hi;
  if (!tighten(high)) return split(node);
  take(high);  // nothing else is faster
  done_ = goal_.minimise == Minimise::any;
  // What is as good with fewer GPUs: at least one station has a replica less.
  Node rest = node;
  for (std::size_t i = 0; i < rest.size() && !done_; ++i) {
    if (rest[i].lo == rest[i].hi) continue;
    Node fewer = rest;
    --fewer[i].hi;
    if (tighten(fewer) && may_beat(fewer)) split(fewer);
    rest[i].lo = rest[i].hi;
  }
}

// Halves the replicas of the station where that is most GPUs.
void PathBranch::split(const Node& node) {
  std::size_t widest = 0;
  int most = 0;
  for (std::size_t i = 0; i < node.size(); ++i) {
    const auto& way = routing_.stations[i]->ways()[static_cast<std::size_t>(node[i].way)];
    const int gpus = way.gpus * (node[i].hi - node[i].lo);
    if (gpus > most) {
      most = gpus;
      widest = i;
    }
  }
  if (most == 0) {
    if (goal_.minimise != Minimise::spend) visit(node);
    return;
  }
  const int middle = node[widest].lo + (node[widest].hi - node[widest].lo) / 2;
  Node lower = node, upper = node;
  lower[widest].hi = middle;
  upper[widest].lo = middle + 1;
  visit(std::move(lower));
  visit(std::move(upper));
}

// Makes the node's largest deployment the incumbent if it is better.
void PathBranch::take(const Node& node) {
  Node exact = node;
  for (Pick& pick : exact) pick.lo = pick.hi;
  if (!tighten(exact) || !look_up(exact)) return;
  PathPlan plan;
  const Use total = total_use(use_.size());
  plan.key = {0, 0, -routing_.quality, total.all_gpus, 0, routing_.index};
  for (std::size_t i = 0; i < exact.size(); ++i) {
    const auto& way = routing_.stations[i]->ways()[static_cast<std::size_t>(exact[i].way)];
    Choice choice;
    choice.shape = way.option;
    choice.replicas = exact[i].hi;
    choice.gpus = way.gpus * exact[i].hi;
    choice.latency_s = at_[i]->p95_s;
    plan.stages.push_back(choice);
    plan.key.worst_s = std::max(plan.key.worst_s, choice.latency_s);
    if (i < goal_.previous_gpus.size()) plan.key.moved_gpus += std::abs(choice.gpus - goal_.previous_gpus[i]);
  }
  if (goal_.minimise == Minimise::spend) plan.key.value = spend_usd(total);
  if (goal_.minimise == Minimise::latency) {
    const auto& kept = undecided_[index_of(goal_.metric)];
    plan.key.value = goal_.metric == LatencyMetric::max_stage
                         ? plan.key.worst_s
                         : weighted_quantile(kept ? *kept : routed_, at_, path_metric(goal_.metric), spare_);
  }
  if (!(plan.key < incumbent_)) return;
  incumbent_ = plan.key;
  found_ = std::move(plan);
  ++improvements_;
  if (!root_at_.empty()) leave_out();
}

}  // namespace cascadia
