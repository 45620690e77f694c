// Routing and deployment together: which thresholds and which GPUs are best, over the whole grid of thresholds.
#pragma once
#include <functional>
#include <mutex>

#include "loads.hpp"

namespace cascadia {

enum class Minimise { latency, spend, any };

// Which plan is asked for. Views: the arrays belong to the caller.
struct Question {
  std::span<const std::int64_t> candidates;  // the routings that may be chosen
  std::span<const std::int32_t> gpus;        // the most that each candidate may use; one number for all, or one each
  Minimise minimise = Minimise::latency;
  double limit_s = kUnreachable;  // on every station's p95
  double usd_per_gpu = 1;
  std::span<const double> fixed_usd;   // of each candidate, beside its GPUs; empty: nothing
  std::span<const int> previous_gpus;  // per station; empty: no plan before
  double beat = kUnreachable;          // only plans of at most this value are of interest
  double time_limit_s = kUnreachable;
  int threads = 1;

  int most_gpus(std::size_t candidate) const { return gpus[gpus.size() == 1 ? 0 : candidate]; }
  double fixed(std::size_t candidate) const { return fixed_usd.empty() ? 0 : fixed_usd[candidate]; }
  double spend(std::size_t candidate, double used) const { return usd_per_gpu * used + fixed(candidate); }
};

struct ExactResult {
  std::int64_t routing = -1;  // -1: no plan
  Allocation allocation;
  std::vector<double> worst_s;                            // p95 of the stations, worst first
  double value = kUnreachable;                            // seconds, or dollars for Minimise::spend
  double bound = kUnreachable;                            // no plan has a smaller value
  bool complete = true;                                   // false: stopped at the time limit
  std::int64_t candidates = 0, evaluated = 0;             // evaluated: allocated in full
  std::int64_t by_load = 0, by_need = 0, by_latency = 0;  // and the others, by what ruled them out
};

struct RouteResult {
  std::int64_t routing = -1;
  double objective = kUnreachable, latency_s = kUnreachable, utilization = 0;
  std::int64_t evaluated = 0;
};

// One station of a deployment in detail; samples are node-major, [node][cell].
struct StageEvaluation {
  double quantile_s = 0, reach = 0, capacity_per_s = 0, utilization = 0, mean_batch = 0;
  int batch_limit = 0;
  std::size_t nodes = 1;
  std::vector<double> latency_s, first_token_s;
};

// One workload on one fleet. Calls may come from any thread; they are served one at a time.
class CascadeSearch {
 public:
  CascadeSearch(std::vector<SearchStation> stations, RoutingGrid grid, const Traffic& traffic);

  // The best plan over all candidates. Least latency is lexicographic: p95 of the slowest station, next-worst p95s,
  // quality, fewer GPUs, closeness to the previous plan; it also decides between plans of the same spend.
  ExactResult exact(const Question& question, const std::function<bool()>& interrupted);
  // The candidates whose value is below that of every one before, in their order.
  std::vector<ExactResult> front(const Question& question, const std::function<bool()>& interrupted);
  // Best deployment of one routing.
  Allocation deploy(std::size_t routing, int gpus);
  // Routing that minimises L(theta) + mu * max(0, q_min - Q(theta)) / span on a fixed deployment; where every routing
  // overloads it, the one with the least utilisation.
  RouteResult route(const std::vector<Choice>& deployment, double quality_floor, double mu_s, double span,
                    const std::function<bool()>& interrupted);
  // Best deployment of one station when every request passes on to it and it answers all.
  Choice single(std::size_t station, int gpus);
  std::vector<std::vector<Choice>> columns(std::size_t routing, double latency_s, int gpus);
  // The largest rate any allocation of a candidate carries under the utilisation cap, and the fewest GPUs that carry
  // the present rate (+inf: no number does) with the candidate they are for (-1: none).
  double max_rate_per_s(const Question& question);
  std::pair<double, std::int64_t> fewest_gpus(std::span<const std::int64_t> candidates);

  // The largest rate one engine of each shape takes with p95 <= limit, as a part of the station's requests:
  // [row][shape], 0 where it takes none. Where it is no more than enough_per_s, that may come back: one p95 says so.
  // Empty: exact.
  std::vector<double> capacities(std::size_t station, std::span<const std::int64_t> prefixes, double limit_s,
                                 std::span<const double> enough_per_s, int threads,
                                 const std::function<bool()>& interrupted);

  // One of so many equal engines, and one with such a rate beside any others.
  StageEvaluation evaluate(std::size_t routing, std::size_t station, int shape, int replicas);
  StageEvaluation sampled(std::size_t routing, std::size_t station, int shape, double rate_per_s);
  Split split(std::size_t routing, std::size_t station, const Choice& choice);

  const Setting& setting() const { return setting_; }
  const RoutingGrid& grid() const { return setting_.grid; }
  const Traffic& traffic() const { return setting_.traffic; }
  const StageModel& stage(std::size_t station) const { return *setting_.stations[station].model; }
  std::vector<double> share(std::size_t routing, std::size_t station);
  // Valid until a few hundred others of the station are asked for, the last station's until the next. Callers that
  // hold on to loads serve their own calls one at a time.
  StageLoad& load(std::size_t routing, std::size_t station) { return loads_.at(routing, station); }
  // GPUs that a station takes at least, whatever its latency.
  double least_gpus(std::size_t routing, std::size_t station);
  std::vector<double> least_gpus(std::span<const std::int64_t> candidates);  // [candidate][station]

 private:
  StageEvaluation evaluate(StageLoad& load, int shape, const Arrivals& arrivals);
  double utilization(std::size_t routing, const std::vector<Choice>& deployment);
  double gpus_at(std::size_t routing, double scale);
  double gpu_s(std::size_t routing);
  std::vector<std::pair<double, std::size_t>> lightest_first(std::span<const std::int64_t> candidates);

  Setting setting_;
  Loads loads_;
  std::vector<std::vector<double>> least_gpus_;  // per station and row; negative: not computed
  std::mutex lock_;
};

}  // namespace cascadia
