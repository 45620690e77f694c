// What the load model needs to know of one engine and one set of length cells, whatever their shares and the rate.
#pragma once
#include <cstdint>
#include <span>
#include <utility>
#include <vector>

#include "lengths.hpp"
#include "step_time.hpp"
#include "vector_math.hpp"

namespace cascadia {

// A step that decodes n sequences takes step_s[n] and their attention. `in` prompt tokens in a step with v of them make
// it longer by in * rate(n, v) and the attention of their prompts, however many prompts they come from; rates are
// tabulated at n = 0, 1, 2, 4 … max_num_seqs and v = 1, 2, 4 …
struct LoadTables {
  LoadTables(const Replica& replica, const LengthCells& length_cells);

  // Row of the tables below a number of sequences, and how far it is to the next one.
  std::pair<std::size_t, double> on_grid(double sequences) const;
  std::span<const double> row(std::size_t j) const { return {rate_s.data() + j * columns, columns}; }
  // The row for any number of sequences.
  void blend(double sequences, std::span<double> rates) const;

  std::size_t cells, padded;
  int max_num_seqs;
  double budget, kv_capacity_bytes;
  bool fits = true;  // the longest request fits the KV cache
  std::size_t columns;
  std::vector<double> grid, room, log2_room;  // batch sizes, and what they leave of the token budget
  std::vector<double> rate_s;                 // [grid][column], seconds per prompt token
  std::vector<double> step_s;                 // n = 0..max_num_seqs, without attention
  // Per cell, padded.
  std::vector<double> tokens_in, tokens_in2, tokens_in3, log2_in, tokens_out, tokens_out2;
  std::vector<double> attention_sum_s, prefill_attention_s, fill_s;
  std::vector<double> held_bytes_out, held_bytes_out2;          // KV cache held over the decode steps, and its square
  std::vector<double> prompt_bytes, full_work_s, full_work_s2;  // prefill in steps that are full
  std::vector<std::uint32_t> by_output;                         // cells, shortest output first
  std::vector<double> least_work_s;                             // may be negative, see the implementation
  std::vector<double> idle_s;                                   // no queue, alone in the batch: a lower bound

 private:
  void set_rates(const Replica& replica);
  void set_cells(const Replica& replica, const LengthCells& length_cells);
  void set_idle();
  void set_least_work(double least_held_bytes);
};

// A rate at the logarithm of the prompt tokens in a step, and how fast it changes.
[[gnu::always_inline]] inline std::pair<double, double> rate_and_slope(const double* row, std::size_t columns,
                                                                       double log2_tokens) {
  const int last = static_cast<int>(columns) - 2, whole = static_cast<int>(log2_tokens);
  const int m = whole < last ? whole : last;
  const double slope = row[m + 1] - row[m];
  return {row[m] + (log2_tokens - m) * slope, slope};
}

[[gnu::always_inline]] inline double rate_at(const double* row, std::size_t columns, double log2_tokens) {
  return rate_and_slope(row, columns, log2_tokens).first;
}

}  // namespace cascadia
