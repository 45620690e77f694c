// Latency of one replica under load: a birth-death chain over the running batch, waits for the first token and for a
// batch slot, and the quantile of the mixture over the length cells. tests/reference/load_model.py derives the formulas
// and states them slowly.
#pragma once
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "arrivals.hpp"
#include "lengths.hpp"
#include "load_tables.hpp"
#include "sampling.hpp"
#include "step_time.hpp"

namespace cascadia {

inline constexpr double kMaxUtilization = 0.999;  // closer to saturation than this counts as unstable

// What one vector of shares means for one replica; everything that does not depend on the rate.
struct Load {
  double reach = 0, tokens_in = 0, tokens_out = 0;
  double attention_s = 0, prefill_attention_s = 0, fill_s = 0;  // decode attention per token of a sequence, per prompt
  std::array<double, 2> sizes{}, size_tokens{};  // of prompts, as two points with three moments; tokens times share
  double relaxation_tokens = 0;                  // of the answer that an output token belongs to
  double overlap = 0;                            // E[min(T, T')] / E[T] of two outputs
  double place_scv = 0;       // of what a request takes of the scarce resource, batch slots or KV cache
  double work_scv = 0;        // of prefill work
  double along = 0;           // sequences that decode in a full engine
  double capacity_per_s = 0;  // largest stable rate
  int batch_limit = 0;
  std::vector<double> share;      // padded, sums to 1
  std::vector<double> averaging;  // per cell: how much of the spread of step times is left over a whole decode
  std::vector<double> step_s;     // decode step with n sequences, n = 0..batch_limit
};

// Means over the requests of clients that each wait for an answer before they send the next request.
struct ClosedLoop {
  double ttft_s = 0, tpot_s = 0, running = 0, throughput_per_s = 0;
};

// Buffers of one thread.
struct Scratch {
  double running = 0;                      // mean number of sequences in the batch, of the last evaluation
  std::array<double, kDeviates> step_s{};  // quantiles of the step time that arrivals find
  std::array<double, 32> rates{};          // seconds per prompt token at the mean batch
  std::array<double, 32> prompts_s{};      // added by prompts to steps, along the grid of batch sizes
  std::vector<double> chain, cell, averaging, latency, first;
  std::vector<std::pair<double, double>> bracket;
};

class LoadModel {
 public:
  LoadModel(const Replica& replica, const LengthCells& cells, std::shared_ptr<const Nodes> nodes);

  // False when the longest request does not fit the KV cache: the replica cannot serve this workload at all.
  bool fits() const { return tables_.fits; }
  std::size_t cells() const { return tables_.cells; }
  std::size_t padded() const { return tables_.padded; }
  const Nodes& nodes() const { return *nodes_; }
  int gpus() const { return gpus_; }

  // share: K values, sum = reach > 0.
  void prepare(std::span<const double> share, Load& load) const;
  // Latency quantile in seconds; +inf if unstable. A quantile above `at_most_s` may come back as +inf: saying that much
  // takes half the samples or fewer.
  double quantile_s(const Load& load, const Arrivals& arrivals, double q, Scratch& scratch,
                    double at_most_s = std::numeric_limits<double>::infinity()) const;
  // Means over `rounds` requests of each of `concurrency` clients that start together.
  ClosedLoop closed_loop(const Load& load, double concurrency, int rounds) const;
  // A lower bound of quantile_s at any rate.
  double idle_bound_s(std::span<const double> share, double q) const;
  // Lower bounds of one sample at any rate: latency, and time to the first token.
  std::pair<double, double> idle_sample_s(std::size_t node, std::size_t cell) const;
  // Seconds per request of each cell at full batch: the mean over a workload's shares bounds 1 / capacity_per_s from
  // below, without preparing its load.
  std::span<const double> least_work_s() const { return {tables_.least_work_s.data(), tables_.cells}; }

 private:
  struct Bursts;
  struct Chain;
  struct Prefill;
  double mean(const Load& load, const std::vector<double>& per_cell) const;
  struct Shared {
    double prompt_s, slope_s;
  };
  Shared shared(const Load& load, std::span<const double> rates, double log2_room, double prompts,
                double bursts_per_prompt) const;
  struct Batch;
  double added_s(const Load& load, double rate, double bursts_per_prompt, const Batch& batch, double guess_s,
                 int passes) const;
  static double step_at(const Load& load, double sequences);  // decode step, between whole numbers as well
  double met_s(const Load& load, double rate, const Bursts& bursts, std::size_t j, double& prompts_s) const;
  bool chain(const Load& load, const Arrivals& arrivals, const Bursts& bursts, Scratch& scratch, Chain& result) const;
  Prefill prefill(const Load& load, double rate, const Bursts& bursts, const Chain& batch, Scratch& scratch) const;

  LoadTables tables_;
  std::shared_ptr<const Nodes> nodes_;
  int gpus_;
  struct Idle {
    double latency_s;
    std::uint32_t cell;
  };
  std::vector<Idle> idle_;  // the same number for each cell, slowest first
};

}  // namespace cascadia
