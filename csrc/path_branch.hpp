// Branch and bound over the deployments of one routing, for latencies of whole paths.
#pragma once
#include <array>
#include <chrono>
#include <compare>
#include <cstdint>
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "exact.hpp"
#include "path_station.hpp"
#include "paths.hpp"

namespace cascadia {

enum class LatencyMetric { max_stage, end_to_end, ttft };

inline PathMetric path_metric(LatencyMetric metric) {
  return metric == LatencyMetric::ttft ? PathMetric::ttft : PathMetric::end_to_end;
}

// What is asked of every routing alike.
struct PathGoal {
  Minimise minimise = Minimise::latency;
  LatencyMetric metric = LatencyMetric::end_to_end;                          // that is minimised
  std::array<double, 3> limits_s{kUnreachable, kUnreachable, kUnreachable};  // by metric
  std::vector<double> usd_per_gpu;                                           // by pool
  double budget_usd = kUnreachable;
  std::vector<int> previous_gpus;  // by station

  double limit_s(LatencyMetric of) const { return limits_s[static_cast<std::size_t>(of)]; }
};

// What makes one plan better than another, in this order; smaller is better.
struct PathKey {
  double value = kUnreachable, worst_s = kUnreachable, lost_quality = kUnreachable;
  int gpus = std::numeric_limits<int>::max(), moved_gpus = std::numeric_limits<int>::max();
  std::int64_t routing = std::numeric_limits<std::int64_t>::max();

  auto operator<=>(const PathKey&) const = default;
  bool ties_better(PathKey other) const {  // where the values are the same
    other.value = value;
    return *this < other;
  }
};

struct PathPlan {
  PathKey key;
  std::vector<Choice> stages;  // by station
};

// Says when to give up.
class PathClock {
 public:
  explicit PathClock(double limit_s) : limited_(limit_s < 1e9) {
    if (limited_)
      end_ = Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(limit_s));
  }
  bool out_of_time() const { return limited_ && Clock::now() >= end_; }

 private:
  using Clock = std::chrono::steady_clock;
  bool limited_;
  Clock::time_point end_;
};

struct OutOfTime {};

// One routing and what it may use.
struct PathRouting {
  std::int64_t index = 0;
  double quality = 0, fixed_usd = 0;
  std::vector<int> gpus;  // by pool
  std::vector<PathStation*> stations;
};

class PathBranch {
 public:
  PathBranch(const PathGoal& goal, const Paths& paths, RoutedPaths routed, const PathRouting& routing, double quantile,
             const PathClock& clock);

  // The best deployment, if it is better than `incumbent`. Throws OutOfTime.
  std::optional<PathPlan> best(const PathKey& incumbent);
  // The deployment itself, if it keeps to everything and is better than `incumbent`.
  std::optional<PathPlan> judged(const std::vector<Choice>& stages, const PathKey& incumbent);
  std::int64_t tests() const { return tests_; }

 private:
  struct Pick {
    int way = -1;  // -1: open
    int lo = 0, hi = 0;
  };
  using Node = std::vector<Pick>;
  struct Use {
    std::vector<int> gpus;  // by pool, where the pool is settled
    int all_gpus = 0;
    double usd = 0;  // where it is not
  };

  void order_stations();
  void settle();
  Use open_use(std::size_t station) const;
  Use total_use(std::size_t without) const;
  double spend_usd(const Use& total) const;
  double most_usd() const;
  std::vector<int> room(std::size_t station) const;
  bool tighten(Node& node);
  bool look_up(const Node& node);
  bool may_beat(const Node& node);
  double useful_s(const PathKey& bound) const;
  std::int64_t above(LatencyMetric metric, double limit_s) const;
  bool survives(const Node& node);
  void leave_out();
  void open_next(const Node& node);
  void visit(Node node);
  void search_box(const Node& node);
  void split(const Node& node);
  void take(const Node& node);

  const PathGoal& goal_;
  RoutedPaths routed_;
  const PathRouting& routing_;
  std::int64_t spare_;  // weight that may be above a quantile
  const PathClock& clock_;
  PathKey incumbent_;
  std::optional<PathPlan> found_;
  std::vector<std::size_t> order_;   // stations, those with the largest engines first
  std::vector<Use> open_use_, use_;  // by station; `use_` is of the node that was tightened last
  std::vector<const StationSamples*> at_, root_at_;
  std::array<std::optional<RoutedPaths>, 2> undecided_;  // by path metric
  std::int64_t tests_ = 0, improvements_ = 0;
  bool done_ = false;
};

}  // namespace cascadia
