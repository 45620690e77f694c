// Routing and deployment together for latencies of whole paths: optimal over every routing given and every deployment
// of it with one kind of engine per station.
#pragma once
#include <functional>
#include <memory>
#include <mutex>
#include <span>
#include <unordered_map>
#include <vector>

#include "exact.hpp"
#include "path_branch.hpp"

namespace cascadia {

// Which routings may be chosen, and what for.
struct PathQuery {
  PathGoal goal;
  std::span<const std::int64_t> candidates;
  std::span<const std::int32_t> gpus;  // [candidate][pool]
  std::span<const double> fixed_usd;   // by candidate; empty: 0
  double beat = kUnreachable;          // plans of a larger value are of no interest
  double time_limit_s = kUnreachable;
  int threads = 1;

  std::span<const std::int32_t> gpus_of(std::size_t candidate) const {
    return gpus.subspan(candidate * goal.usd_per_gpu.size(), goal.usd_per_gpu.size());
  }
  double fixed(std::size_t candidate) const { return fixed_usd.empty() ? 0 : fixed_usd[candidate]; }
};

// Replicas of one kind at a station.
struct StationGroup {
  double share = 1;  // of the station's requests
  std::span<const double> latency_s, first_token_s;
};

// Calls may come from any thread; they are served one at a time.
class PathSearch {
 public:
  // The paths are of requests of the search's cascade; the search outlives this.
  PathSearch(CascadeSearch& search, Paths paths);

  double quantile_s(std::size_t routing, const std::vector<Choice>& stages, LatencyMetric metric, double q);
  // The same from the samples of stations that may run several groups of replicas; of a station nobody reaches: none.
  double quantile_s(std::size_t routing, std::span<const std::vector<StationGroup>> stations, PathMetric metric,
                    double q) const;
  ExactResult exact(const PathQuery& query, const std::function<bool()>& interrupted);
  // Every candidate that is strictly better than all before it, in order.
  std::vector<ExactResult> front(const PathQuery& query, const std::function<bool()>& interrupted);

 private:
  struct Candidate {
    double bound = 0;        // no plan has a smaller value
    double gpus = 0;         // that the load takes at least
    std::size_t index = 0;   // in the query
    std::size_t prefix = 0;  // of all thresholds but the last
  };
  struct Prefix {
    PrefixPaths paths;
    PrefixTimes times;  // no deployment of any candidate of the query is faster
  };
  // What one call works with.
  struct Run {
    const PathQuery& query;
    PathClock clock;
    std::function<bool()> interrupted;
    std::vector<double> least_gpus;                      // that loads take, [candidate][station]
    std::unordered_map<std::size_t, Prefix> prefixes{};  // as many as may be kept
  };
  struct Found {
    std::optional<PathPlan> plan;
    bool evaluated = false, finished = false;
  };
  std::vector<Candidate> carried(const Run& run, ExactResult& result) const;
  void set_bounds(Run& run, std::vector<Candidate>& candidates);
  Prefix bounded(const Run& run, std::span<Candidate> of_prefix);
  Prefix timed(const Run& run, std::span<const Candidate> of_prefix, bool& deployable);
  std::vector<int> most_gpus(const Run& run, const Candidate& candidate, std::size_t station) const;
  double spend_usd(const PathQuery& query, const Candidate& candidate) const;
  static std::vector<Candidate> promising(const std::vector<Candidate>& candidates);
  PathStation& shared_station(std::size_t routing, std::size_t station);
  std::size_t routing_of(const PathQuery& query, const Candidate& candidate) const {
    return static_cast<std::size_t>(query.candidates[candidate.index]);
  }
  std::span<const std::int32_t> levels(std::size_t routing) const;
  PrefixPaths prefix_paths(std::size_t routing) const;
  RoutedPaths routed(std::size_t routing, const PrefixPaths& prefix) const;
  bool too_slow(const Run& run, const Candidate& candidate, const Prefix& prefix, PathStation& last,
                double beat_s) const;
  Found explored(const Run& run, const Candidate& candidate, const Prefix& prefix, const PathKey& incumbent,
                 bool only_deployed);
  void forget();
  std::vector<Found> explore(const Run& run, std::span<const Candidate> wave, const PathKey& incumbent,
                             bool only_deployed);

  CascadeSearch& search_;
  Paths paths_;
  std::vector<PathStationModel> models_;
  std::vector<std::unordered_map<std::size_t, std::unique_ptr<PathStation>>> kept_;  // per station but the last
  std::mutex kept_lock_, lock_;
};

}  // namespace cascadia
