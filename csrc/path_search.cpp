#include "path_search.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <tuple>
#include <utility>

#include "parallel.hpp"
#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr std::size_t kKeptStations = 1024;                // of each place; one holds up to a few MB of samples
constexpr std::size_t kFirstWave = 8, kLargestWave = 256;  // candidates tried against one incumbent
constexpr std::size_t kGuesses = 8;                        // of the lightest candidates, and of those with least bounds
constexpr std::size_t kFrontWave = 16;
constexpr std::size_t kKeptPaths = 1 << 22;  // about 100 MB
constexpr std::array<LatencyMetric, 2> kPathMetrics{LatencyMetric::end_to_end, LatencyMetric::ttft};

// Nothing of the same value beats it.
PathKey strictly_below(double value) { return {value, -kUnreachable, 0, 0, 0, 0}; }

void report(PathPlan& plan, ExactResult& result) {
  result.routing = plan.key.routing;
  result.value = result.bound = plan.key.value;
  for (const Choice& choice : plan.stages) result.worst_s.push_back(choice.latency_s);
  std::sort(result.worst_s.begin(), result.worst_s.end(), std::greater<>());
  result.allocation.stages = std::move(plan.stages);
}

}  // namespace

PathSearch::PathSearch(CascadeSearch& search, Paths paths)
    : search_(search), paths_(std::move(paths)), kept_(paths_.stations()) {
  for (const SearchStation& station : search.setting().stations)
    models_.emplace_back(*station.model, station.limits, station.pools);
}

PathStation& PathSearch::shared_station(std::size_t routing, std::size_t station) {
  const std::scoped_lock hold(kept_lock_);
  auto& kept = kept_[station][search_.grid().prefix(routing, station)];
  if (!kept) {
    kept = std::make_unique<PathStation>(models_[station], search_.share(routing, station), search_.traffic());
    kept->settle();
  }
  return *kept;
}

std::span<const std::int32_t> PathSearch::levels(std::size_t routing) const {
  const std::size_t thresholds = search_.grid().thresholds();
  return search_.grid().routings.subspan(routing * thresholds, thresholds);
}

PrefixPaths PathSearch::prefix_paths(std::size_t routing) const {
  const auto of = levels(routing);
  return paths_.prefix(of.first(of.empty() ? 0 : of.size() - 1));
}

RoutedPaths PathSearch::routed(std::size_t routing, const PrefixPaths& prefix) const {
  const auto of = levels(routing);
  return paths_.routed(prefix, of.empty() ? 0 : of.back());
}

// Candidates whose load alone does not take too many GPUs, by prefix.
std::vector<PathSearch::Candidate> PathSearch::carried(const Run& run, ExactResult& result) const {
  std::vector<Candidate> candidates;
  const std::size_t thresholds = search_.grid().thresholds(), stations = paths_.stations();
  result.candidates = static_cast<std::int64_t>(run.query.candidates.size());
  for (std::size_t c = 0; c < run.query.candidates.size(); ++c) {
    const double gpus = sum({run.least_gpus.data() + c * stations, stations});
    const auto there = run.query.gpus_of(c);
    const auto routing = static_cast<std::size_t>(run.query.candidates[c]);
    if (gpus > std::accumulate(there.begin(), there.end(), 0) + 1e-6)
      ++result.by_load;
    else
      candidates.push_back({0, gpus, c, thresholds == 0 ? 0 : search_.grid().row(routing, thresholds - 1)});
  }
  std::stable_sort(candidates.begin(), candidates.end(),
                   [](const Candidate& a, const Candidate& b) { return a.prefix < b.prefix; });
  return candidates;
}

double PathSearch::spend_usd(const PathQuery& query, const Candidate& candidate) const {
  const auto& usd = query.goal.usd_per_gpu;
  return query.fixed(candidate.index) + *std::min_element(usd.begin(), usd.end()) * std::ceil(candidate.gpus - 1e-6);
}

// GPUs of each pool that the load of the other stations leaves at most.
std::vector<int> PathSearch::most_gpus(const Run& run, const Candidate& candidate, std::size_t station) const {
  const auto there = run.query.gpus_of(candidate.index);
  std::vector<int> most(there.begin(), there.end());
  if (most.size() == 1)
    most[0] -= static_cast<int>(
        std::ceil(candidate.gpus - run.least_gpus[candidate.index * paths_.stations() + station] - 1e-6));
  return most;
}

// Bounds of the candidates' values; those that break a ceiling or the budget however they are deployed go.
void PathSearch::set_bounds(Run& run, std::vector<Candidate>& candidates) {
  std::vector<std::span<Candidate>> prefixes;
  for (std::size_t begin = 0, end = 0; begin < candidates.size(); begin = end) {
    while (end < candidates.size() && candidates[end].prefix == candidates[begin].prefix) ++end;
    prefixes.push_back(std::span(candidates).subspan(begin, end - begin));
  }
  const bool keep = prefixes.size() * paths_.size() <= kKeptPaths;
  std::mutex keeping;
  for (std::size_t begin = 0; begin < prefixes.size(); begin += kKeptStations) {
    const auto some = std::span(prefixes).subspan(begin, std::min(kKeptStations, prefixes.size() - begin));
    parallel_for(
        some.size(), run.query.threads,
        [&](std::size_t i, std::size_t) {
          if (run.clock.out_of_time()) return;
          Prefix prefix = bounded(run, some[i]);
          const std::scoped_lock hold(keeping);
          if (keep) run.prefixes.emplace(some[i][0].prefix, std::move(prefix));
        },
        run.interrupted);
    forget();
  }
  std::erase_if(candidates, [](const Candidate& candidate) { return candidate.bound == kUnreachable; });
  std::stable_sort(candidates.begin(), candidates.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.bound, a.gpus, a.index) < std::tie(b.bound, b.gpus, b.index);
  });
}

PathSearch::Prefix PathSearch::bounded(const Run& run, std::span<Candidate> of_prefix) {
  const PathQuery& query = run.query;
  bool deployable = true;
  Prefix prefix = timed(run, of_prefix, deployable);
  for (Candidate& candidate : of_prefix) {
    const double usd = spend_usd(query, candidate);
    if (query.goal.minimise == Minimise::spend) candidate.bound = usd;
    if (!deployable || usd > query.goal.budget_usd * (1 + 1e-9)) candidate.bound = kUnreachable;
  }
  for (const LatencyMetric metric : kPathMetrics) {
    const bool minimised = query.goal.minimise == Minimise::latency && metric == query.goal.metric;
    const double limit_s = query.goal.limit_s(metric);
    if (prefix.times.late_s.empty() || (!minimised && limit_s == kUnreachable)) continue;
    const auto least_s = least_quantiles(prefix.paths, prefix.times, models_.back().least_idle.of(path_metric(metric)),
                                         search_.grid().levels.back(), paths_.spare_weight(search_.traffic().quantile));
    for (Candidate& candidate : of_prefix) {
      const double bound_s = least_s[static_cast<std::size_t>(levels(routing_of(query, candidate)).back())];
      if (minimised) candidate.bound = std::max(candidate.bound, bound_s);
      if (bound_s > std::min(limit_s, minimised ? query.beat : kUnreachable)) candidate.bound = kUnreachable;
    }
  }
  return prefix;
}

// The paths up to the last station with all GPUs, at each station, that the load of the others leaves to it under any
// of the candidates.
PathSearch::Prefix PathSearch::timed(const Run& run, std::span<const Candidate> of_prefix, bool& deployable) {
  const std::size_t first = routing_of(run.query, of_prefix[0]), last = paths_.stations() - 1;
  Prefix prefix{prefix_paths(first), {}};
  std::vector<const StationSamples*> least;
  for (std::size_t i = 0; i < last; ++i) {
    std::vector<int> most = most_gpus(run, of_prefix[0], i);
    for (const Candidate& candidate : of_prefix) {
      const auto other = most_gpus(run, candidate, i);
      for (std::size_t p = 0; p < most.size(); ++p) most[p] = std::max(most[p], other[p]);
    }
    least.push_back(shared_station(first, i).relaxed(most, 0));
    deployable = deployable && least.back() != nullptr;
  }
  if (deployable && last > 0) prefix.times = times_of(paths_, prefix.paths, least);
  return prefix;
}

// Whether the paths take too long even so, with all GPUs that the load of the others leaves to the last station.
bool PathSearch::too_slow(const Run& run, const Candidate& candidate, const Prefix& prefix, PathStation& last,
                          double beat_s) const {
  if (prefix.times.late_s.empty()) return false;
  const StationSamples* least = last.relaxed(most_gpus(run, candidate, paths_.stations() - 1), 0);
  if (least == nullptr || least->p95_s > run.query.goal.limit_s(LatencyMetric::max_stage)) return true;
  for (const LatencyMetric metric : kPathMetrics) {
    const PathGoal& goal = run.query.goal;
    double limit_s = goal.limit_s(metric);
    if (goal.minimise == Minimise::latency && metric == goal.metric) limit_s = std::min(limit_s, beat_s);
    if (limit_s < kUnreachable && cascadia::too_slow(prefix.paths, prefix.times, least->of(path_metric(metric)),
                                                     levels(routing_of(run.query, candidate)).back(), limit_s,
                                                     paths_.spare_weight(search_.traffic().quantile)))
      return true;
  }
  return false;
}

PathSearch::Found PathSearch::explored(const Run& run, const Candidate& candidate, const Prefix& prefix,
                                       const PathKey& incumbent, bool only_deployed) {
  Found found;
  const PathQuery& query = run.query;
  const std::size_t index = routing_of(query, candidate), last = paths_.stations() - 1;
  PathStation own(models_[last], search_.share(index, last), search_.traffic());
  if (!only_deployed && too_slow(run, candidate, prefix, own, incumbent.value)) return {{}, false, true};
  const auto gpus = query.gpus_of(candidate.index);
  PathRouting routing{static_cast<std::int64_t>(index),
                      search_.grid().quality_of(index),
                      query.fixed(candidate.index),
                      {gpus.begin(), gpus.end()},
                      {}};
  for (std::size_t i = 0; i < last; ++i) routing.stations.push_back(&shared_station(index, i));
  routing.stations.push_back(&own);
  PathBranch branch(query.goal, paths_, routed(index, prefix.paths), routing, search_.traffic().quantile, run.clock);
  try {
    if (only_deployed) {
      const auto stages = search_.deploy(index, gpus[0]).stages;
      if (!stages.empty()) found.plan = branch.judged(stages, incumbent);
    } else {
      found.plan = branch.best(incumbent);
    }
    found.finished = true;
  } catch (const OutOfTime&) {
  }
  found.evaluated = branch.tests() > 1;
  return found;
}

// Each candidate against the same incumbent, so that what is found does not depend on the threads.
// Four models have ten thousand prefixes, of which one wave of routings asks for few. No thread may hold a station.
void PathSearch::forget() {
  for (auto& stations : kept_)
    if (stations.size() > kKeptStations) stations.clear();
}

std::vector<PathSearch::Found> PathSearch::explore(const Run& run, std::span<const Candidate> wave,
                                                   const PathKey& incumbent, bool only_deployed) {
  forget();
  std::vector<std::size_t> order(wave.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(),
                   [&](std::size_t a, std::size_t b) { return wave[a].prefix < wave[b].prefix; });
  std::vector<std::span<const std::size_t>> runs;
  for (std::size_t begin = 0, end = 0; begin < order.size(); begin = end) {
    while (end < order.size() && wave[order[end]].prefix == wave[order[begin]].prefix) ++end;
    runs.push_back(std::span(order).subspan(begin, end - begin));
  }
  std::vector<Found> found(wave.size());
  parallel_for(
      runs.size(), run.query.threads,
      [&](std::size_t r, std::size_t) {
        const auto kept = run.prefixes.find(wave[runs[r][0]].prefix);
        Prefix made;
        if (kept == run.prefixes.end()) {
          std::vector<Candidate> members;
          for (const std::size_t i : runs[r]) members.push_back(wave[i]);
          bool deployable = true;
          made = timed(run, members, deployable);
        }
        const Prefix& prefix = kept == run.prefixes.end() ? made : kept->second;
        for (const std::size_t i : runs[r]) found[i] = explored(run, wave[i], prefix, incumbent, only_deployed);
      },
      run.interrupted);
  return found;
}

// A few candidates to deploy for a first incumbent.
std::vector<PathSearch::Candidate> PathSearch::promising(const std::vector<Candidate>& candidates) {
  std::vector<Candidate> lightest(candidates), chosen;
  const std::size_t count = std::min(kGuesses, candidates.size());
  std::partial_sort(
      lightest.begin(), lightest.begin() + static_cast<std::ptrdiff_t>(count), lightest.end(),
      [](const Candidate& a, const Candidate& b) { return std::tie(a.gpus, a.index) < std::tie(b.gpus, b.index); });
  chosen.assign(candidates.begin(), candidates.begin() + static_cast<std::ptrdiff_t>(count));
  chosen.insert(chosen.end(), lightest.begin(), lightest.begin() + static_cast<std::ptrdiff_t>(count));
  return chosen;
}

ExactResult PathSearch::exact(const PathQuery& query, const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  ExactResult result;
  Run run{query, PathClock(query.time_limit_s), interrupted, search_.least_gpus(query.candidates)};
  auto candidates = carried(run, result);
  result.by_latency = static_cast<std::int64_t>(candidates.size());
  set_bounds(run, candidates);
  result.by_latency -= static_cast<std::int64_t>(candidates.size());
  PathKey incumbent;
  incumbent.value = query.beat;
  std::optional<PathPlan> best;
  double open_bound = kUnreachable;  // of what was not searched to the end
  const auto keep = [&](Found& of) {
    if (!of.plan || !(of.plan->key < incumbent)) return;
    incumbent = of.plan->key;
    best = std::move(of.plan);
  };
  if (query.goal.usd_per_gpu.size() == 1)
    for (auto& found : explore(run, promising(candidates), incumbent, true)) keep(found);
  std::size_t begin = 0;
  for (std::size_t wave = kFirstWave; begin < candidates.size() && candidates[begin].bound <= incumbent.value;
       begin += wave, wave = std::min(2 * wave, kLargestWave)) {
    if (run.clock.out_of_time() || (query.goal.minimise == Minimise::any && best)) break;
    wave = std::min(wave, candidates.size() - begin);
    while (candidates[begin + wave - 1].bound > incumbent.value) --wave;
    const auto there = std::span(candidates).subspan(begin, wave);
    auto found = explore(run, there, incumbent, false);
    for (std::size_t i = 0; i < wave; ++i) {
      ++(found[i].evaluated ? result.evaluated : result.by_latency);
      if (!found[i].finished) open_bound = std::min(open_bound, there[i].bound);
      keep(found[i]);
    }
  }
  const bool enough = query.goal.minimise == Minimise::any && best;
  if (begin < candidates.size() && !enough) {
    if (candidates[begin].bound <= incumbent.value) open_bound = std::min(open_bound, candidates[begin].bound);
    result.by_latency += static_cast<std::int64_t>(candidates.size() - begin);
  }
  result.complete = open_bound == kUnreachable || enough;
  if (best) report(*best, result);
  if (!result.complete) result.bound = std::min(result.value, open_bound);
  return result;
}

std::vector<ExactResult> PathSearch::front(const PathQuery& query, const std::function<bool()>& interrupted) {
  const std::scoped_lock hold(lock_);
  ExactResult counts;
  Run run{query, PathClock(kUnreachable), interrupted, search_.least_gpus(query.candidates)};
  auto candidates = carried(run, counts);
  set_bounds(run, candidates);
  std::sort(candidates.begin(), candidates.end(),
            [](const Candidate& a, const Candidate& b) { return a.index < b.index; });
  std::vector<ExactResult> front;
  PathKey incumbent = strictly_below(query.beat);
  std::vector<Candidate> wave;
  for (std::size_t next = 0; next < candidates.size();) {
    wave.clear();
    for (; next < candidates.size() && wave.size() < kFrontWave; ++next)
      if (candidates[next].bound < incumbent.value) wave.push_back(candidates[next]);
    for (Found& found : explore(run, wave, incumbent, false)) {
      if (!found.plan || !(found.plan->key.value < incumbent.value)) continue;
      incumbent = strictly_below(found.plan->key.value);
      report(*found.plan, front.emplace_back());
    }
  }
  return front;
}

double PathSearch::quantile_s(std::size_t routing, const std::vector<Choice>& stages, LatencyMetric metric, double q) {
  const std::scoped_lock hold(lock_);
  const std::size_t last = paths_.stations() - 1;
  PathStation own(models_[last], search_.share(routing, last), search_.traffic());
  std::vector<const StationSamples*> samples;
  double worst_s = 0;
  for (std::size_t i = 0; i <= last; ++i) {
    PathStation& station = i < last ? shared_station(routing, i) : own;
    samples.push_back(&station.deployed(stages[i]));
    worst_s = std::max(worst_s, samples.back()->p95_s);
  }
  if (metric == LatencyMetric::max_stage || worst_s == kUnreachable) return worst_s;
  return weighted_quantile(routed(routing, prefix_paths(routing)), samples, path_metric(metric),
                           paths_.spare_weight(q));
}

double PathSearch::quantile_s(std::size_t routing, std::span<const std::vector<StationGroup>> stations,
                              PathMetric metric, double q) const {
  std::vector<std::vector<double>> shares(stations.size());
  std::vector<std::size_t> sizes;
  std::vector<StationSamples> joined(stations.size());
  std::vector<const StationSamples*> samples;
  for (std::size_t i = 0; i < stations.size(); ++i) {
    sizes.push_back(models_[i].least_idle.latency_s.size());
    for (const StationGroup& group : stations[i]) {
      shares[i].push_back(group.share);
      joined[i].latency_s.insert(joined[i].latency_s.end(), group.latency_s.begin(), group.latency_s.end());
      joined[i].first_token_s.insert(joined[i].first_token_s.end(), group.first_token_s.begin(),
                                     group.first_token_s.end());
    }
    joined[i].latency_s.resize(std::max(joined[i].latency_s.size(), sizes[i]), 0.0);
    joined[i].first_token_s.resize(joined[i].latency_s.size(), 0.0);
    samples.push_back(&joined[i]);
  }
  const Paths over = paths_.over_groups(shares, sizes);
  const auto of = levels(routing);
  return weighted_quantile(
      over.routed(over.prefix(of.first(of.empty() ? 0 : of.size() - 1)), of.empty() ? 0 : of.back()), samples, metric,
      over.spare_weight(q));
}

}  // namespace cascadia
