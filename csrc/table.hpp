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

// How a stage is deployed: `replicas` engines of one shape, and beside them, in a mixed stage, some of another. shape
// -1: nothing runs. `gpus` and `latency_s` are of both.
struct Choice {
  int shape = -1, replicas = 0, gpus = 0;
  double latency_s = kUnreachable;
  int fill_shape = -1, fill_replicas = 0;
};

// What is common to every routing: rates are thinned from these arrivals.
struct Traffic {
  double rate_per_s = 0, scv = 1;  // of requests entering the cascade
  double max_utilization = 0.9, quantile = 0.95;
  bool idle_stage_keeps_replica = false;  // the paper gives every model at least one replica
  Dispersion dispersion;                  // where it is known, which it is of a trace
  bool mixed = false;                     // two shapes may serve a stage together
};

// What a stage must keep to, whatever its traffic.
struct StageLimits {
  int least_replicas = 0;  // kept even where nobody reaches the stage
  int most_replicas = 1'000'000;
  int spare_replicas = 0;  // with so many fewer, whichever they are, p95 is still within survive_s
  double survive_s = kUnreachable;

  // Fewest replicas of a stage, whatever its load.
  int fewest(bool reached, const Traffic& traffic) const;
};

// How two groups of replicas share a stage so that neither is slower than it has to be.
struct Split {
  double rate_per_s = 0, fill_rate_per_s = 0;  // of one replica
  double latency_s = kUnreachable;             // of the slower group
};

// Numbers of replicas, between whole numbers as well: one that does not hold a limit, or the least that may, and one
// that does.
struct Bracket {
  double fails, holds, fails_s, holds_s;  // with the p95 at either; infinite: not known
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
  void reset(const StageModel& model, std::span<const double> share, const Traffic& traffic,
             const StageLimits& limits = {});

  // Searches begin where those of the other, of the same stage, ended.
  void start_near(const StageLoad& other);

  bool reached() const { return reach_ > 0; }
  double reach() const { return reach_; }
  double rate_per_s() const { return rate_per_s_; }
  // p95 with `replicas` engines of a shape, each request sent to the one with the fewest outstanding; +inf above the
  // utilisation cap. Between whole numbers it is the p95 of an engine that takes that part of the stage's requests
  // beside engines of other shapes. What is above `at_most_s` may come back as +inf.
  double latency_s(int shape, double replicas, Scratch& scratch, double at_most_s = kUnreachable);
  double capacity_per_s(int shape);  // of one replica, at utilisation 1
  double least_work_s(int shape);    // seconds per request entering the cascade, at least; needs no load prepared
  // Largest rate that one engine of a shape takes with p95 <= limit, as a part of the stage's requests; 0: none.
  // Engines hold the limit together where these add up to the rate of the stage.
  double rate_within(int shape, double limit_s, Scratch& scratch);
  Split split(const Choice& choice, Scratch& scratch);
  // Fewest GPUs, at most `gpus`, with p95 <= limit (or < limit).
  Choice need(double limit_s, bool strictly, int gpus, Scratch& scratch);
  // Some p95 below the limit on at most `gpus` GPUs where there is one, else the limit itself or something above.
  double best_below(double limit_s, int gpus, Scratch& scratch);
  // Least p95 on at most `gpus` GPUs, with the fewest GPUs that give it.
  Choice best(int gpus, Scratch& scratch);
  // Where a shape begins to hold a limit, as far as known.
  Bracket bracket(int shape, double limit_s);
  double idle_s(int shape);       // a bound: no number of replicas is faster
  double least_load(int shape);   // replicas, between whole numbers as well, that keep utilisation under the cap
  int least_replicas(int shape);  // the same in whole numbers
  int kept_replicas(int shape, Scratch& scratch);          // fewest that the stage's limits and the cap allow
  bool allows(int shape, int replicas, Scratch& scratch);  // whether they do; cheaper than the fewest
  int most_replicas(int shape, int gpus) const;
  // Fewest GPUs that carry so many times the rate under the cap and the limits, whatever the latency; +inf: none do.
  double carrying_gpus(double scale);
  const Load& load(int shape);
  const StageModel& model() const { return *model_; }
  const StageLimits& limits() const { return limits_; }
  const Traffic& traffic() const { return traffic_; }
  // Of one of so many replicas that are equal, or of one with such a rate beside any others.
  Arrivals arrivals(double replicas) const;
  Arrivals arrivals_at(double rate_per_s) const { return arrivals(rate_per_s_ / rate_per_s); }

 private:
  struct Shape {
    bool prepared = false;
    Load load;
    double idle_s = -1;                         // negative: not computed
    double least_work_s = kUnknown;             // a bound, which may be negative
    int least_replicas = 0, kept_replicas = 0;  // 0: not computed
    double last_rate_per_s = 0;                 // per replica, where the last search of this shape ended, any traffic
    std::vector<std::pair<double, double>> known;  // (replicas, p95), sorted
  };
  struct Answer {  // of need(): the fewest GPUs for a limit, or that `gpus` do not suffice
    double limit_s;
    bool strictly;
    int gpus;
    Choice choice;
  };
  const Answer* remembered(double limit_s, bool strictly, int gpus) const;
  int count_least_replicas(int shape);
  bool overloads(int shape, double replicas);
  bool reaches(int shape, double limit_s, bool strictly, int most, Scratch& scratch);
  Choice search_need(double limit_s, bool strictly, int gpus, Scratch& scratch);
  int fewest(int shape, double limit_s, bool strictly, int most, Scratch& scratch);
  Choice unreached(int gpus) const;
  double carrying_gpus_of_one_shape(double scale);
  double best_below_of_one_shape(double limit_s, int gpus, Scratch& scratch);
  double best_below_of_two(double limit_s, int gpus, Scratch& scratch);
  Choice best_of_one_shape(int gpus, Scratch& scratch);

  const StageModel* model_ = nullptr;
  std::span<const double> share_;
  Traffic traffic_;
  StageLimits limits_;
  double reach_ = 0, rate_per_s_ = 0;
  std::vector<Shape> shapes_;
  std::array<Answer, 4> answers_{};  // the last ones: a stage is asked for the same limits by many routings
  std::size_t next_answer_ = 0;
  int favourite_ = 0;  // the shape that met the last limit is asked first, also for the next routing
};

// l(f) for f = 0..gpus with the choice that attains it; every p95 is evaluated, in parallel.
std::vector<Choice> latency_table(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                                  const StageLimits& limits, int gpus, int threads,
                                  const std::function<bool()>& interrupted);

}  // namespace cascadia
