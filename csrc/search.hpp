// GPUs for every stage under one routing: lexicographic min-max of the stages' p95 by parametric search.
#pragma once
#include <span>
#include <vector>

#include "table.hpp"

namespace cascadia {

struct Allocation {
  std::vector<Choice> stages;  // empty: the GPUs do not suffice

  bool feasible() const { return !stages.empty(); }
  double latency_s() const;  // of the slowest stage
  int gpus() const;
};

// The paper's program min L, sum f_i <= gpus, l_i(f_i) <= L, solved exactly: each stage needs its smallest f with
// l_i(f) <= L; bisect on L, then step down over attained values. The slowest stage keeps its GPUs and the others go on
// with the rest, so spare GPUs go where they help. Of equally slow stages the one that had fewer GPUs before stays
// small.
Allocation allocate(std::span<StageLoad* const> stages, int gpus, std::span<const int> previous_gpus, Scratch& scratch);

// The columns of the proof in HiGHS, where whole tables would take too long: for each stage the GPU counts that an
// allocation of at most `latency_s` can give it, up to the first at which it is faster than any allocation can be.
std::vector<std::vector<Choice>> proof_columns(std::span<StageLoad* const> stages, double latency_s, int gpus,
                                               Scratch& scratch);

}  // namespace cascadia
