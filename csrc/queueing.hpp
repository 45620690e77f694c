// Latency of one replica under load: a birth-death chain over the running batch, waits for prefill and for a batch
// slot, and the quantile of the mixture over the length cells. tests/reference/load_model.py states the same formulas
// slowly.
#pragma once
#include <array>
#include <cstdint>
#include <limits>
#include <memory>
#include <span>
#include <vector>

#include "lengths.hpp"
#include "sampling.hpp"
#include "step_time.hpp"

namespace cascadia {

inline constexpr double kMaxUtilization = 0.999;  // closer to saturation than this counts as unstable

// What one vector of shares means for one replica; everything that does not depend on the rate.
struct Load {
  double reach = 0, tokens_out = 0, attention_s = 0;  // mean output tokens, decode attention per token of a sequence
  double relaxation_tokens = 0;                       // length-biased mean output
  double along = 0;           // sequences that decode along with a prefill where one prompt follows the other
  double capacity_per_s = 0;  // largest stable rate
  int batch_limit = 0;
  std::vector<double> share;       // padded, sums to 1
  std::vector<double> step_s;      // decode step with n sequences, n = 0..batch_limit
  std::vector<double> unit_rate;   // n / (tokens_out * step_s(n)): completions per second
  std::vector<double> mean_extra;  // prefill seconds beyond the decode steps they replace, with n sequences running
};

// Buffers of one thread.
struct Scratch {
  double running = 0;                      // mean number of sequences in the batch, of the last evaluation
  std::array<double, kDeviates> step_s{};  // quantiles of the step time that arrivals find
  std::vector<double> cell, ratio, latency, first;
  std::vector<std::pair<double, double>> bracket;
};

class LoadModel {
 public:
  LoadModel(const Replica& replica, const LengthCells& cells, std::shared_ptr<const Nodes> nodes);

  // False when the longest request does not fit the KV cache: the replica cannot serve this workload at all.
  bool fits() const { return fits_; }
  std::size_t cells() const { return cells_; }
  std::size_t padded() const { return padded_; }
  const Nodes& nodes() const { return *nodes_; }
  int gpus() const { return gpus_; }

  // share: K values, sum = reach > 0.
  void prepare(std::span<const double> share, Load& load) const;
  // Latency quantile in seconds at `rate_per_s` with arrivals of squared coefficient of variation `scv`; +inf if
  // unstable. A quantile above `at_most_s` may come back as +inf: saying that much takes half the samples or fewer.
  double quantile_s(const Load& load, double rate_per_s, double scv, double q, Scratch& scratch,
                    double at_most_s = std::numeric_limits<double>::infinity()) const;
  // A lower bound of quantile_s at any rate.
  double idle_bound_s(std::span<const double> share, double q) const;
  // Seconds per request of each cell at full batch: what a request costs this replica at least. The mean over a
  // workload's shares bounds 1 / capacity_per_s from below, without preparing its load.
  std::span<const double> least_work_s() const { return {least_work_s_.data(), cells_}; }

 private:
  struct Chain {
    double pace_s, mean_step_s, running, full, slot_s;
  };
  bool chain(const Load& load, double rate_per_s, double z, Scratch& scratch, Chain& result) const;
  void interpolate(double running, double attention_s, double* own, double* extra, double* chunks) const;
  std::pair<std::size_t, double> on_grid(double sequences) const;  // row of the tables, and how far to the next
  void set_least_work();
  double back_to_back_prefill_s(const Load& load) const;

  std::size_t cells_, padded_;
  std::shared_ptr<const Nodes> nodes_;
  int gpus_, max_num_seqs_;
  bool fits_;
  double kv_capacity_bytes_;
  std::vector<double> grid_;                      // batch sizes 0, 1, 2, 4 … max_num_seqs
  std::vector<double> own_s_, extra_s_, chunks_;  // [grid][cell]: prefill time, its excess over decode steps, chunks
  std::vector<double> step_s_;                    // step without attention at n = 0..max_num_seqs
  std::vector<double> tokens_out_, attention_sum_s_, held_, fill_s_;  // per cell
  std::vector<double> least_work_s_;
  std::vector<double> idle_s_;             // per cell: no queue, alone in the batch
  std::vector<std::uint32_t> idle_order_;  // cells by idle latency
};

}  // namespace cascadia
