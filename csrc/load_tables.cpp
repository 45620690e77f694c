#include "load_tables.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

namespace cascadia {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

std::vector<double> batch_grid(int max_num_seqs) {
  std::vector<double> grid{0};
  for (int n = 1; n < max_num_seqs; n *= 2) grid.push_back(n);
  grid.push_back(max_num_seqs);
  return grid;
}

std::vector<double> squares(const std::vector<double>& values) {
  std::vector<double> squared(values);
  for (double& value : squared) value *= value;
  return squared;
}

}  // namespace

LoadTables::LoadTables(const Replica& replica, const LengthCells& length_cells)
    : cells(length_cells.size()),
      padded(cascadia::padded(cells)),
      max_num_seqs(replica.limits().max_num_seqs),
      budget(replica.limits().max_batched_tokens),
      kv_capacity_bytes(replica.kv_capacity_bytes()),
      columns(static_cast<std::size_t>(std::max(std::ceil(std::log2(budget)), 1.0)) + 1),
      grid(batch_grid(max_num_seqs)) {
  for (const double g : grid) {
    room.push_back(std::max(budget - g, 1.0));
    log2_room.push_back(std::log2(room.back()));
  }
  set_rates(replica);
  set_cells(replica, length_cells);
  set_idle();
}

void LoadTables::set_rates(const Replica& replica) {
  for (int n = 0; n <= max_num_seqs; ++n) {
    const double sequences = std::max(n, 1);
    step_s.push_back(replica.linear_s(sequences, sequences));
  }
  for (const double g : grid)
    for (std::size_t m = 0; m < columns; ++m) {
      const double tokens = std::ldexp(1.0, static_cast<int>(m));
      const double longer_s = replica.linear_s(g + tokens, g + 1) - step_s[static_cast<std::size_t>(g)];
      rate_s.push_back(std::max(longer_s, 0.0) / tokens);
    }
}

void LoadTables::set_cells(const Replica& replica, const LengthCells& length_cells) {
  tokens_in = length_cells.tokens_in;
  tokens_out = length_cells.tokens_out;
  double least_held_bytes = kInfinity;
  const double full_rate_s = rate_at(rate_s.data(), columns, std::log2(budget)) + step_s[1] / budget;
  for (std::size_t k = 0; k < cells; ++k) {
    const double in = tokens_in[k], out = tokens_out[k], held_bytes = replica.kv_bytes(in + out / 2);
    fits = fits && replica.kv_bytes(in + out) <= kv_capacity_bytes;
    least_held_bytes = std::min(least_held_bytes, held_bytes);
    log2_in.push_back(std::log2(std::max(in, 1.0)));
    attention_sum_s.push_back(replica.decode_attention_sum_s(in, out));
    prefill_attention_s.push_back(replica.prefill_attention_s(in, 0));
    fill_s.push_back(replica.fill_s(std::min(in, budget)));
    held_bytes_out.push_back(out * held_bytes);
    prompt_bytes.push_back(replica.kv_bytes(in));
    full_work_s.push_back(in * full_rate_s + prefill_attention_s.back());
  }
  for (auto* values : {&tokens_in, &tokens_out}) values->resize(padded, 1.0);
  for (auto* values :
       {&log2_in, &attention_sum_s, &prefill_attention_s, &fill_s, &held_bytes_out, &prompt_bytes, &full_work_s})
    values->resize(padded, 0.0);
  tokens_in2 = squares(tokens_in);
  tokens_in3 = tokens_in2;
  for (std::size_t k = 0; k < padded; ++k) tokens_in3[k] *= tokens_in[k];
  tokens_out2 = squares(tokens_out);
  held_bytes_out2 = squares(held_bytes_out);
  full_work_s2 = squares(full_work_s);
  by_output.resize(cells);
  std::iota(by_output.begin(), by_output.end(), 0U);
  std::stable_sort(by_output.begin(), by_output.end(), [&](auto a, auto b) { return tokens_out[a] < tokens_out[b]; });
  set_least_work(least_held_bytes);
}

std::pair<std::size_t, double> LoadTables::on_grid(double sequences) const {
  std::size_t j = 0;
  while (j + 2 < grid.size() && grid[j + 1] <= sequences) ++j;
  return {j, (sequences - grid[j]) / (grid[j + 1] - grid[j])};
}

void LoadTables::blend(double sequences, std::span<double> rates) const {
  const auto [j, t] = on_grid(sequences);
  const auto left = row(j), right = row(j + 1);
  for (std::size_t m = 0; m < columns; ++m) rates[m] = left[m] + t * (right[m] - left[m]);
}

// The first token of a request alone, at the batch size where that is fastest, and decode steps of one sequence.
void LoadTables::set_idle() {
  const double least_log2_room = log2_room.back();
  for (std::size_t k = 0; k < cells; ++k) {
    const double most = std::min(log2_in[k], log2_room[0]), least = std::min(log2_in[k], least_log2_room);
    double prefill_s = kInfinity;
    for (std::size_t j = 0; j < grid.size(); ++j) {
      const double* rates = row(j).data();
      double rate = std::min(rate_at(rates, columns, most), rate_at(rates, columns, least));
      for (double m = std::ceil(least); m < most; ++m) rate = std::min(rate, rates[static_cast<std::size_t>(m)]);
      prefill_s = std::min(prefill_s, tokens_in[k] * rate +
                                          step_s[static_cast<std::size_t>(grid[j])] * std::ceil(tokens_in[k] / budget));
    }
    idle_s.push_back(prefill_s + prefill_attention_s[k] + fill_s[k] + 0.9 * tokens_out[k] * step_s[1]);
  }
  idle_s.resize(padded, 0.0);
}

// Decode steps at the largest batch. Prompts: v tokens take at least c v - h however they share steps, a line below
// every row; so a prompt takes c in - h, with h once for the prompt and once per step that it fills. Only the mean over
// a workload is a bound: small prompts can be negative, and cutting them off at zero would overstate what they cost
// beside large ones.
void LoadTables::set_least_work(double least_held_bytes) {
  const double fit =
      std::clamp(std::floor(kv_capacity_bytes / least_held_bytes), 1.0, static_cast<double>(max_num_seqs));
  double least_step = kInfinity;  // per token
  for (std::size_t n = 1; n <= static_cast<std::size_t>(fit); ++n)
    least_step = std::min(least_step, step_s[n] / static_cast<double>(n));
  double slope_s = kInfinity, hidden_s = 0;
  for (std::size_t j = 0; j < grid.size(); ++j) slope_s = std::min(slope_s, row(j)[columns - 1]);
  for (std::size_t j = 0; j < grid.size(); ++j)
    for (std::size_t m = 0; m < columns; ++m)
      hidden_s = std::max(hidden_s, (slope_s - row(j)[m]) * std::ldexp(1.0, static_cast<int>(m)));
  hidden_s *= 1.07;  // between two columns the interpolated curve lies this much lower at most
  for (std::size_t k = 0; k < cells; ++k)
    least_work_s.push_back(tokens_out[k] * least_step + attention_sum_s[k] + prefill_attention_s[k] +
                           slope_s * tokens_in[k] - hidden_s * (1 + tokens_in[k] / room.back()));
}

}  // namespace cascadia
