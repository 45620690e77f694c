// One stage of the cascade: its replica shapes under one traffic, and the look-up table l(f) = least p95 on f GPUs.
#pragma once
#include <array>
#include <functional>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "queueing.hpp"

namespace cascadia {

inline constexpr double kUnreachable = std::numeric_limits<double>::infinity();
inline constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();  // not computed yet

// How a stage is deployed: `replicas` engines of one shape. shape -1: nothing runs.
struct Choice {
  int shape = -1, replicas = 0, gpus = 0;
  double latency_s = kUnreachable;
};

// What is common to every routing: rates are thinned from these arrivals.
struct Traffic {
  double rate_per_s = 0, scv = 1;  // of requests entering the cascade
  double max_utilization = 0.9, quantile = 0.95;
  bool idle_stage_keeps_replica = false;  // the paper gives every model at least one replica
  Dispersion dispersion;                  // where it is known, which it is of a trace
};

// All shapes of one stage on one set of length cells.
class StageModel {
 public:
  StageModel(std::span<const Replica> replicas, const LengthCells& cells);

  std::span<const LoadModel> shapes() const { return shapes_; }
  std::size_t cells() const { return cells_; }
  int least_gpus() const { return least_gpus_; }  // of the smallest shape that can serve these lengths; 0: none can
  // GPU-seconds of each cell on its cheapest shape at full batch: sum(share * this) * rate bounds the GPUs from below.
  std::span<const double> least_gpu_s() const { return least_gpu_s_; }

 private:
  std::size_t cells_;
  std::vector<LoadModel> shapes_;
  int least_gpus_ = 0;
  std::vector<double> least_gpu_s_;
};

// A stage under the traffic of one routing. Remembers every p95 it computed; not for use by several threads at once.
class StageLoad {
 public:
  void reset(const StageModel& model, std::span<const double> share, const Traffic& traffic);

  // Searches begin where those of the other, of the same stage, ended.
  void start_near(const StageLoad& other);

  bool reached() const { return reach_ > 0; }
  double reach() const { return reach_; }
  double rate_per_s() const { return rate_per_s_; }
  // p95 with `replicas` engines of a shape, each request sent to the one with the fewest outstanding; +inf above the
  // utilisation cap.
  // What is above `at_most_s` may come back as +inf.
  double latency_s(int shape, int replicas, Scratch& scratch, double at_most_s = kUnreachable);
  double capacity_per_s(int shape);  // of one replica, at utilisation 1
  double least_work_s(int shape);    // seconds per request entering the cascade, at least; needs no load prepared
  // Fewest GPUs, at most `gpus`, with p95 <= limit (or < limit).
  Choice need(double limit_s, bool strictly, int gpus, Scratch& scratch);
  // Some p95 below the limit on at most `gpus` GPUs where there is one, else the limit itself or something above.
  double best_below(double limit_s, int gpus, Scratch& scratch);
  // Least p95 on at most `gpus` GPUs, with the fewest GPUs that give it.
  Choice best(int gpus, Scratch& scratch);
  int least_replicas(int shape);  // that keep utilisation under the cap
  const Load& load(int shape);
  const StageModel& model() const { return *model_; }
  Arrivals arrivals(int replicas) const;

 private:
  struct Shape {
    bool prepared = false;
    Load load;
    double idle_s = -1;                         // negative: not computed
    double least_work_s = kUnknown;             // a bound, which may be negative
    int least_replicas = 0;                     // 0: not computed
    double last_rate_per_s = 0;                 // per replica, where the last search of this shape ended, any traffic
    std::vector<std::pair<int, double>> known;  // (replicas, p95), sorted
  };
  struct Answer {  // of need(): the fewest GPUs for a limit, or that `gpus` do not suffice
    double limit_s;
    bool strictly;
    int gpus;
    Choice choice;
  };
  const Answer* remembered(double limit_s, bool strictly, int gpus) const;
  int count_least_replicas(int shape);
  bool overloads(int shape, int replicas);
  bool reaches(int shape, double limit_s, bool strictly, int most, Scratch& scratch);
  Choice search_need(double limit_s, bool strictly, int gpus, Scratch& scratch);
  double idle_s(int shape);
  int fewest(int shape, double limit_s, bool strictly, int most, Scratch& scratch);
  Choice unreached(int gpus) const;

  const StageModel* model_ = nullptr;
  std::span<const double> share_;
  Traffic traffic_;
  double reach_ = 0, rate_per_s_ = 0;
  std::vector<Shape> shapes_;
  std::array<Answer, 4> answers_{};  // the last ones: a stage is asked for the same limits by many routings
  std::size_t next_answer_ = 0;
  int favourite_ = 0;  // the shape that met the last limit is asked first, also for the next routing
};

// l(f) for f = 0..gpus with the choice that attains it; every p95 is evaluated, in parallel.
std::vector<Choice> latency_table(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                                  int gpus, int threads, const std::function<bool()>& interrupted);

}  // namespace cascadia
