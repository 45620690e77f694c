#include <algorithm>
#include <cmath>

#include "queueing.hpp"

namespace cascadia {

// Mean-value analysis of one cycle, in which every request that fits prefills once; the reference explains each term.
ClosedLoop LoadModel::closed_loop(const Load& load, double concurrency, int rounds) const {
  const double places = std::min(concurrency, static_cast<double>(load.batch_limit)), prompt = load.tokens_in;
  const double further = std::max(load.tokens_out - 1, 0.0), steps = std::max(further, 1.0);
  const double variance = std::max(load.tokens_out * (load.relaxation_tokens - load.tokens_out), 0.0);
  std::array<double, 32> row;
  const std::span<const double> rates{row.data(), tables_.columns};
  double decoding = places * further / load.tokens_out;
  double ttft_s = 0, tpot_s = 0, cycle_s = 0, pace_s = 0, chunks = 1, group = 1, full_s = 0;
  for (int pass = 0; pass < 20; ++pass) {
    const double others = decoding * (places - 1) / places, room = std::max(tables_.budget - others, 1.0);
    const double most = std::min(room / prompt, places);  // prompts to a step
    chunks = std::max(1.0, std::ceil(prompt / room));
    group = std::max(most, 1.0);
    const double cut = most >= 1 && most < places ? 1 / group : 0.0;  // of a full step's prompts, goes on in the next
    tables_.blend(others, row);
    const auto own_s = [&](double prompts) {
      const double log2_tokens = std::log2(std::clamp(prompts * prompt, 1.0, room));
      return prompts * (prompt * rate_at(row.data(), rates.size(), log2_tokens) + load.prefill_attention_s);
    };
    const double beside_s = step_at(load, others);
    full_s = own_s(group);
    const double apart = places / std::min(group, most);  // steps that all prompts take
    pace_s = step_at(load, decoding);
    ttft_s = tpot_s = 0;
    for (int k = 1; k < rounds; ++k) {
      const double window = std::min(std::max(apart, further + chunks), apart + std::sqrt(12 * k * variance));
      const double here = std::min(1 + (places - 1) / window, group);
      const double crowd = most < 1 ? std::min(places * chunks / window, 1.0) : 0.0;
      const double met_s = std::max(places - here, 0.0) * own_s(here) / here;
      const double each_s = std::min(pace_s + met_s / steps, pace_s + full_s / chunks);
      const double joined = here / group, again = 1 + cut * joined * joined;
      const double first_s =
          (chunks * beside_s + own_s(here)) * again + (chunks * beside_s + own_s(1)) * crowd * (1 - crowd) / 2;
      ttft_s += std::max(first_s, places / group * full_s + apart * pace_s - further * each_s) / (rounds - 1);
      tpot_s += each_s / (rounds - 1);
    }
    cycle_s = ttft_s + further * tpot_s;
    decoding = (decoding + places * further * tpot_s / cycle_s) / 2;
  }
  const double start_s = (places / group + 1) / 2 * (chunks * step_at(load, decoding / 2) + full_s);
  const double queue = concurrency / places - 1;  // cycles that those wait who do not fit
  const double steady_s = ttft_s + queue * cycle_s, first_round_s = start_s + queue / 2 * cycle_s;
  return {steady_s + (first_round_s - steady_s) / rounds + load.fill_s, tpot_s - (tpot_s - pace_s) / 2 / rounds,
          places * further * tpot_s / cycle_s, places / cycle_s};
}

}  // namespace cascadia
