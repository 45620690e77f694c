// Routing and deployment together: which thresholds and which GPUs are best, over the whole grid of thresholds.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <vector>

#include "search.hpp"

namespace cascadia {

// Every threshold combination of a cascade of C stages: level indexes h_1 … h_{C-1}, and what each routes where.
// A view: the arrays belong to the caller and outlive it.
struct RoutingGrid {
  std::vector<std::size_t> levels;             // levels per threshold, C-1
  std::vector<std::span<const double>> share;  // stage i: [prefix h_1…h_i][cell], shares of all requests
  std::span<const double> quality;             // [h_1…h_{C-1}]
  std::span<const std::int32_t> routings;      // [routing][C-1]: the distinct ones

  std::size_t thresholds() const { return levels.size(); }
  std::size_t count() const { return thresholds() == 0 ? 1 : routings.size() / thresholds(); }
  std::size_t prefix(std::size_t routing, std::size_t stage) const;  // row of share[stage], or of quality for C-1
};

struct ExactResult {
  std::int64_t routing = -1;  // -1: no plan
  Allocation allocation;
  std::int64_t meet_floor = 0, evaluated = 0, pruned_by_load = 0, pruned_by_need = 0, pruned_by_latency = 0;
};

struct RouteResult {
  std::int64_t routing = -1;
  double objective = kUnreachable, latency_s = kUnreachable, utilization = 0;
  std::int64_t evaluated = 0;
};

// One stage of a deployment in detail; samples are node-major, [node][cell].
struct StageEvaluation {
  double quantile_s = 0, reach = 0, capacity_per_s = 0, utilization = 0, mean_batch = 0;
  int batch_limit = 0;
  std::size_t nodes = 1;
  std::vector<double> latency_s, first_token_s;
};

// One workload on one fleet. Calls may come from any thread; they are served one at a time.
class CascadeSearch {
 public:
  CascadeSearch(std::vector<std::shared_ptr<const StageModel>> stages, RoutingGrid grid, const Traffic& traffic);

  // Lexicographic: quality floor, least p95 of the slowest stage, next-worst p95s, quality, fewer GPUs, closeness to
  // `previous_gpus` (empty: none). Optimal over every routing of the grid.
  ExactResult exact(int gpus, double quality_floor, const std::vector<int>& previous_gpus,
                    const std::function<bool()>& interrupted);
  // Best deployment of one routing.
  Allocation deploy(std::size_t routing, int gpus);
  // Routing that minimises L(theta) + mu * max(0, q_min - Q(theta)) / span on a fixed deployment; where every routing
  // overloads it, the one with the least utilisation.
  RouteResult route(const std::vector<Choice>& deployment, double quality_floor, double mu_s, double span,
                    const std::function<bool()>& interrupted);
  // Best deployment of one stage when it alone answers every request.
  Choice single(std::size_t stage, int gpus);
  std::vector<std::vector<Choice>> columns(std::size_t routing, double latency_s, int gpus);
  // The largest rate any allocation of a routing that meets the floor carries under the utilisation cap, and the fewest
  // GPUs that carry the present rate (+inf: no number does).
  double max_rate_per_s(int gpus, double quality_floor);
  double least_gpus(double quality_floor);
  // The routing that least_gpus is for; -1: none.
  std::int64_t lightest(double quality_floor);

  StageEvaluation evaluate(std::size_t routing, std::size_t stage, int shape, int replicas);

  const StageModel& stage(std::size_t i) const { return *stages_[i]; }
  std::span<const double> share(std::size_t routing, std::size_t stage) const;
  const RoutingGrid& grid() const { return grid_; }
  const Traffic& traffic() const { return traffic_; }

 private:
  struct Ranked {
    double bound_gpus;
    std::uint32_t routing;
  };
  double work_gpus(std::size_t stage, std::size_t prefix);  // least GPUs the load of a stage can take
  std::vector<Ranked> by_load(double quality_floor);
  StageLoad& stage_load(std::size_t routing, std::size_t stage);
  std::vector<StageLoad*> loads(std::size_t routing);
  enum class Fit { below, equal, too_few_gpus, too_much_load, too_slow };
  Fit fit(std::size_t routing, std::span<const double> limits_s, bool strictly, int gpus);
  Fit may_beat(std::size_t routing, std::span<const double> worst_s, int gpus);
  double utilization(std::size_t routing, const std::vector<Choice>& deployment);
  double gpus_at(std::size_t routing, double scale);
  std::pair<double, std::int64_t> fewest_gpus(double quality_floor);

  std::vector<std::shared_ptr<const StageModel>> stages_;
  RoutingGrid grid_;
  Traffic traffic_;
  std::vector<std::unordered_map<std::size_t, std::unique_ptr<StageLoad>>> kept_;  // per stage but the last, by prefix
  std::vector<const StageLoad*> recent_;                                           // per stage: the one made last
  StageLoad last_;
  std::size_t last_prefix_ = static_cast<std::size_t>(-1);
  std::vector<std::vector<double>> work_;  // per stage and prefix; negative: not computed
  std::vector<double> limits_s_;
  Scratch scratch_;
  std::mutex lock_;
};

}  // namespace cascadia
