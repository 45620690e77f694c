// Two shapes at one stage. An engine that takes the rate x out of a stage's rate is one of rate / x such engines, a
// number r that need not be whole; its p95 falls as r grows. Where r_s is the least r at which shape s holds a limit,
// one engine of it carries the part 1 / r_s of the stage, and n_a + n_b engines hold the limit together if n_a / r_a +
// n_b / r_b >= 1. That is all a mixture needs to be: there is nothing to know about it but r_a and r_b.
#pragma once
#include <vector>

#include "table.hpp"

namespace cascadia {

// Latencies closer than this, relative to them, count as equal where shapes are mixed.
inline constexpr double kResolution = 1e-9;

inline double below(double limit_s) { return limit_s * (1 - kResolution); }

class Mixing {
 public:
  Mixing(StageLoad& stage, Scratch& scratch);

  // Fewest GPUs, at most `gpus`, with p95 <= limit, of mixtures and of single shapes; shape -1: none.
  Choice cheapest(double limit_s, int gpus);
  // Least p95 on at most `gpus` GPUs: `one_shape` unless a mixture is faster.
  Choice fastest(const Choice& one_shape, int gpus);
  // Fewest GPUs that carry so many times the stage's rate under the utilisation cap; `one_shape` need so many.
  double carrying_gpus(double scale, double one_shape);
  Split split(const Choice& choice);
  // The least number of replicas, not only whole ones, that holds the limit; +inf: none does.
  double least_holding(int shape, double limit_s);

 private:
  struct Mix {
    int shape = -1, replicas = 0, fill_shape = -1, fill_replicas = 0, gpus = 0;
  };
  struct Part {  // of the stage that one engine carries, at most and for sure
    double most, sure;
  };
  struct Demand {  // engines that hold a limit together
    double limit_s;
    int replicas, fill_replicas;
  };
  bool may_hold(double limit_s, int gpus);
  Mix candidate(int gpus) const;
  double fewest_gpus(std::size_t shape, std::size_t fill, int fill_replicas) const;
  int fewest_beside(std::size_t shape, std::size_t fill, int fill_replicas) const;
  bool holds(const Mix& mix);
  bool decide(const Mix& mix, const Demand& demand);
  void ask(int shape, double limit_s, double replicas);
  void update(int shape);
  Part part(int shape, double limit_s);
  int gpus(int shape) const;

  StageLoad& stage_;
  Scratch& scratch_;
  double limit_s_ = 0, survive_s_ = 0;
  std::vector<Part> parts_, survive_;  // per shape, at the limit and with engines lost
};

}  // namespace cascadia
