#include "queueing.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numbers>
#include <numeric>

#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kLanes = 8;

// Weibull waits W = mean * E^a / Gamma(1 + a), E exponential: exponent a and 1 / Gamma(1 + a) for a given squared
// coefficient of variation, tabulated because the relation has no closed inverse.
struct WeibullTable {
  static constexpr int kSize = 2048;
  static constexpr double kLow = 0.05, kHigh = 8.0;
  std::array<double, kSize + 1> exponent, scale;

  WeibullTable() {
    for (int i = 0; i <= kSize; ++i) {
      const double scv = kLow * std::pow(kHigh / kLow, static_cast<double>(i) / kSize);
      double lo = 0.02, hi = 4.0;
      for (int step = 0; step < 60; ++step) {
        const double mid = (lo + hi) / 2;
        (std::lgamma(1 + 2 * mid) - 2 * std::lgamma(1 + mid) > std::log1p(scv) ? hi : lo) = mid;
      }
      exponent[static_cast<std::size_t>(i)] = lo;
      scale[static_cast<std::size_t>(i)] = 1 / std::tgamma(1 + lo);
    }
  }

  std::pair<double, double> operator()(double scv) const {
    const double at = std::log(std::clamp(scv, kLow, kHigh) / kLow) / std::log(kHigh / kLow) * kSize;
    const auto i = std::min(static_cast<std::size_t>(at), static_cast<std::size_t>(kSize - 1));
    const double t = at - static_cast<double>(i);
    return {exponent[i] + t * (exponent[i + 1] - exponent[i]), scale[i] + t * (scale[i + 1] - scale[i])};
  }
};

const WeibullTable& weibull_table() {
  static const WeibullTable table;
  return table;
}

struct Moments {
  double own = 0, own2 = 0, own3 = 0, extra = 0, extra2 = 0, chunks = 0;
};

// Lane-wise sums in a fixed order, so that every instruction set adds alike.
CASCADIA_CLONES Moments moments(std::size_t n, const double* w, const double* own, const double* extra,
                                const double* chunks) {
  double a[6][kLanes] = {};
  for (std::size_t k = 0; k < n; k += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) {
      const double weight = w[k + l], o = own[k + l], x = extra[k + l];
      a[0][l] += weight * o;
      a[1][l] += weight * o * o;
      a[2][l] += weight * o * o * o;
      a[3][l] += weight * x;
      a[4][l] += weight * x * x;
      a[5][l] += weight * chunks[k + l];
    }
  double sum[6] = {};
  for (int i = 0; i < 6; ++i)
    for (std::size_t l = 0; l < kLanes; ++l) sum[i] += a[i][l];
  return {sum[0], sum[1], sum[2], sum[3], sum[4], sum[5]};
}

// For n = 1..limit sequences: mu(n), and r(n) = rate / mu(n), raised to 1/z for bursty arrivals.
CASCADIA_CLONES void birth_ratios(std::size_t limit, double rate, double inverse_z, const double* __restrict unit_rate,
                                  const double* __restrict extra, double* __restrict ratio, double* __restrict mu) {
  for (std::size_t n = 1; n <= limit; ++n) {
    mu[n] = unit_rate[n] * (1.0 - smaller(rate * extra[n], 0.999));
    ratio[n] = rate / mu[n];
  }
  if (inverse_z != 1.0)
    for (std::size_t n = 1; n <= limit; ++n) ratio[n] = fast_pow(ratio[n], inverse_z);
}

// Quantiles and mean of the step time that arrivals find: step_s[n] with probability seen[n], linear within a state so
// that they move smoothly with the rate.
double step_quantiles(std::span<const double> step_s, std::span<const double> seen,
                      std::array<double, kDeviates>& quantiles) {
  const std::size_t last = seen.size() - 1, limit = step_s.size() - 1;
  double total = 0, mean = 0;
  for (std::size_t n = 1; n <= last; ++n) {
    total += seen[n];
    mean += seen[n] * step_s[n];
  }
  const auto& probability = deviate_probabilities();
  double mass = 0, low = step_s[1];
  std::size_t g = 0;
  for (std::size_t n = 1; n <= last && g < kDeviates; ++n) {
    const double high = n < limit ? (step_s[n] + step_s[n + 1]) / 2 : step_s[n];
    for (; g < kDeviates && probability[g] * total <= mass + seen[n]; ++g)
      quantiles[g] = low + (high - low) * (probability[g] * total - mass) / seen[n];
    mass += seen[n];
    low = high;
  }
  for (; g < kDeviates; ++g) quantiles[g] = low;
  return mean / total;
}

// Wait for the prefill server, scale_s * E^exponent with the given probability, E exponential.
struct PrefillWait {
  double probability, exponent, scale_s;
};

// Prefills run one after another: an M/G/1 queue (Pollaczek-Khinchine), Kraemer-Langenbach-Belz for bursty arrivals.
PrefillWait prefill_wait(const Moments& m, double rate, double c2) {
  const double busy = rate * m.own, own_scv = std::max(m.own2 / (m.own * m.own) - 1, 0.0);
  const double plain_wait = rate * m.own2 / 2 / (1 - busy);
  double wait_mean = plain_wait, p_wait = busy;
  if (c2 > 1) {
    wait_mean = busy * m.own * (c2 + own_scv) / 2 / (1 - busy) * std::exp(-(1 - busy) * (c2 - 1) / (c2 + 4 * own_scv));
    p_wait += (c2 - 1) * busy * (1 - busy) * 4 * busy / (c2 + busy * busy * (4 * c2 + own_scv));
    p_wait = std::min(p_wait, 1.0);
  }
  const double rise = wait_mean / plain_wait;
  const double wait_second = (2 * plain_wait * plain_wait + rate * m.own3 / 3 / (1 - busy)) * rise * rise;
  const double wait_if = wait_mean / p_wait;
  const auto [exponent, scale] = weibull_table()(wait_second / p_wait / (wait_if * wait_if) - 1);
  return {p_wait, exponent, wait_if * scale};
}

std::vector<double> batch_grid(int max_num_seqs) {
  std::vector<double> grid{0};
  for (int n = 1; n < max_num_seqs; n *= 2) grid.push_back(n);
  grid.push_back(max_num_seqs);
  return grid;
}

}  // namespace

LoadModel::LoadModel(const Replica& replica, const LengthCells& cells, std::shared_ptr<const Nodes> nodes)
    : cells_(cells.size()),
      padded_(cascadia::padded(cells.size())),
      nodes_(std::move(nodes)),
      gpus_(replica.shape().gpus()),
      max_num_seqs_(replica.limits().max_num_seqs),
      fits_(true),
      kv_capacity_bytes_(replica.kv_capacity_bytes()),
      grid_(batch_grid(max_num_seqs_)) {
  const auto budget = static_cast<double>(replica.limits().max_batched_tokens);
  own_s_.assign(grid_.size() * padded_, 1.0);
  extra_s_.assign(grid_.size() * padded_, 0.0);
  chunks_.assign(grid_.size() * padded_, 1.0);
  tokens_out_.assign(padded_, 1.0);
  attention_sum_s_.assign(padded_, 0.0);
  held_.assign(padded_, 0.0);
  fill_s_.assign(padded_, 0.0);
  idle_s_.assign(padded_, 0.0);
  for (std::size_t j = 0; j < grid_.size(); ++j) {
    const double g = grid_[j], room = std::max(budget - g, 1.0);
    const double full_s = replica.linear_s(g + room, g);
    const double decode_s = replica.linear_s(std::max(g, 1.0), std::max(g, 1.0));
    for (std::size_t k = 0; k < cells_; ++k) {
      const double prompt = cells.tokens_in[k], chunks = std::ceil(prompt / room);
      const double last_s = replica.linear_s(g + prompt - (chunks - 1) * room, g + 1);
      const double own = (chunks - 1) * full_s + last_s + replica.prefill_attention_s(prompt, 0);
      own_s_[j * padded_ + k] = own;
      chunks_[j * padded_ + k] = chunks;
      extra_s_[j * padded_ + k] = std::max(0.0, own - chunks * decode_s);
    }
  }
  step_s_.resize(static_cast<std::size_t>(max_num_seqs_) + 1);
  for (std::size_t n = 0; n < step_s_.size(); ++n) {
    const double sequences = std::max(static_cast<double>(n), 1.0);
    step_s_[n] = replica.linear_s(sequences, sequences);
  }
  for (std::size_t k = 0; k < cells_; ++k) {
    const double in = cells.tokens_in[k], out = cells.tokens_out[k];
    tokens_out_[k] = out;
    attention_sum_s_[k] = replica.decode_attention_sum_s(in, out);
    held_[k] = replica.kv_bytes(in + out);
    fits_ = fits_ && held_[k] <= kv_capacity_bytes_;
    fill_s_[k] = replica.fill_s(std::min(in, budget));
    idle_s_[k] = own_s_[k] + fill_s_[k] + 0.9 * out * step_s_[1];
  }
  set_least_work();
  idle_order_.resize(cells_);
  std::iota(idle_order_.begin(), idle_order_.end(), 0U);
  std::stable_sort(idle_order_.begin(), idle_order_.end(), [&](auto a, auto b) { return idle_s_[a] < idle_s_[b]; });
}

void LoadModel::prepare(std::span<const double> share, Load& load) const {
  load.reach = sum(share);
  load.share.assign(padded_, 0);
  for (std::size_t k = 0; k < cells_; ++k) load.share[k] = share[k] / load.reach;
  const double* w = load.share.data();
  const double* out = tokens_out_.data();
  load.tokens_out = dot({w, padded_}, tokens_out_);
  load.attention_s = dot({w, padded_}, attention_sum_s_) / load.tokens_out;
  double out2 = 0, held = 0;
  for (std::size_t k = 0; k < cells_; ++k) {
    out2 += w[k] * out[k] * out[k];
    held += w[k] * out[k] * held_[k];
  }
  load.relaxation_tokens = out2 / load.tokens_out;
  const double fit = std::floor(kv_capacity_bytes_ / (held / load.tokens_out));
  load.batch_limit = static_cast<int>(std::clamp(fit, 1.0, static_cast<double>(max_num_seqs_)));

  const auto limit = static_cast<std::size_t>(load.batch_limit);
  load.step_s.resize(limit + 1);
  load.unit_rate.resize(limit + 1);
  load.mean_extra.resize(limit + 1);
  for (std::size_t n = 0; n <= limit; ++n) {
    const auto m = static_cast<double>(n);
    load.step_s[n] = step_s_[n] + m * load.attention_s;
    load.unit_rate[n] = m / (load.tokens_out * load.step_s[n]);
  }
  double left = dot({w, padded_}, {extra_s_.data(), padded_});
  for (std::size_t j = 0; j + 1 < grid_.size() && grid_[j] <= static_cast<double>(limit); ++j) {
    const double right = dot({w, padded_}, {extra_s_.data() + (j + 1) * padded_, padded_});
    const double slope = (right - left) / (grid_[j + 1] - grid_[j]);
    const auto begin = static_cast<std::size_t>(grid_[j]), end = static_cast<std::size_t>(grid_[j + 1]);
    for (std::size_t n = begin; n <= std::min(end, limit); ++n)
      load.mean_extra[n] = left + slope * (static_cast<double>(n) - grid_[j]);
    left = right;
  }
  load.along = std::min(load.tokens_out / dot({w, padded_}, {chunks_.data(), padded_}), static_cast<double>(limit));
  const double prefill_s = back_to_back_prefill_s(load);
  load.capacity_per_s = std::min(1 / prefill_s, 1 / (1 / load.unit_rate[limit] + load.mean_extra[limit]));
}

std::pair<std::size_t, double> LoadModel::on_grid(double sequences) const {
  std::size_t j = 0;
  while (j + 2 < grid_.size() && grid_[j + 1] <= sequences) ++j;
  return {j, (sequences - grid_[j]) / (grid_[j + 1] - grid_[j])};
}

// Prefill time of a request where one prompt follows the other.
double LoadModel::back_to_back_prefill_s(const Load& load) const {
  const std::span<const double> w{load.share.data(), padded_};
  const auto mean = [&](const std::vector<double>& table, std::size_t j) {
    return dot(w, {table.data() + j * padded_, padded_});
  };
  const auto [j, t] = on_grid(load.along);
  const double own = mean(own_s_, j), chunks = mean(chunks_, j);
  const double chunks_there = chunks + t * (mean(chunks_, j + 1) - chunks);
  return own + t * (mean(own_s_, j + 1) - own) + chunks_there * load.along * load.attention_s;
}

double LoadModel::idle_bound_s(std::span<const double> share, double q) const {
  double mass = 0;
  const double enough = (q - 1e-9) * sum(share);
  for (const auto k : idle_order_) {
    mass += share[k];
    if (mass >= enough) return idle_s_[k];
  }
  return idle_s_[idle_order_.back()];
}

void LoadModel::set_least_work() {
  double least_held = kInfinity;
  for (std::size_t k = 0; k < cells_; ++k) least_held = std::min(least_held, held_[k]);
  const double fit = std::clamp(std::floor(kv_capacity_bytes_ / least_held), 1.0, static_cast<double>(max_num_seqs_));
  double least_step = kInfinity;  // per token
  for (std::size_t n = 1; n <= static_cast<std::size_t>(fit); ++n)
    least_step = std::min(least_step, step_s_[n] / static_cast<double>(n));
  least_work_s_.resize(cells_);
  for (std::size_t k = 0; k < cells_; ++k) {
    double least_extra = kInfinity;
    for (std::size_t j = 0; j < grid_.size(); ++j) least_extra = std::min(least_extra, extra_s_[j * padded_ + k]);
    least_work_s_[k] = tokens_out_[k] * least_step + attention_sum_s_[k] + least_extra;
  }
}

bool LoadModel::chain(const Load& load, double rate, double z, Scratch& scratch, Chain& result) const {
  const auto limit = static_cast<std::size_t>(load.batch_limit);
  scratch.ratio.resize(3 * (limit + 1));
  double *ratio = scratch.ratio.data(), *mu = ratio + limit + 1, *seen = mu + limit + 1;
  birth_ratios(limit, rate, 1 / z, load.unit_rate.data(), load.mean_extra.data(), ratio, mu);
  const double rho = rate / mu[limit];
  if (!(rho < 1)) return false;
  double p = 1, sum = 1, sum_n = 0, sum_mu = 0;
  std::size_t last = limit;
  for (std::size_t n = 1; n <= limit; ++n) {
    const auto m = static_cast<double>(n);
    seen[n] = p;  // an arrival that finds n - 1 running decodes in steps of n
    p *= ratio[n];
    sum += p;
    sum_n += p * m;
    sum_mu += p * mu[n];
    if (p > 1e200) {
      constexpr double kScale = 1e-200;
      p *= kScale, sum *= kScale, sum_n *= kScale, sum_mu *= kScale;
      for (std::size_t earlier = 1; earlier <= n; ++earlier) seen[earlier] *= kScale;
    }
    if (ratio[n] < 0.999 && p < 1e-14 * sum * (1 - ratio[n])) {
      p = 0;
      last = n;
      break;
    }
  }
  const double fall = z == 1 ? rho : fast_pow(rho, 1 / z);
  const double tail = p * fall / (1 - fall), b = static_cast<double>(limit), total = sum + tail;
  seen[last] += p + tail;
  result.running = (sum_n + tail * b) / total;
  result.pace_s = (sum_n + tail * b) / ((sum_mu + tail * mu[limit]) * load.tokens_out);
  result.full = (p + tail) / total;
  result.slot_s = z / (mu[limit] * (1 - rho));
  result.mean_step_s = step_quantiles(load.step_s, {seen, last + 1}, scratch.step_s);
  return true;
}

void LoadModel::interpolate(double running, double attention_s, double* own, double* extra, double* chunks) const {
  const auto [j, t] = on_grid(running);
  const double others_s = running * attention_s;
  const std::size_t a = j * padded_, b = a + padded_;
  for (std::size_t k = 0; k < padded_; ++k) {
    chunks[k] = chunks_[a + k] + t * (chunks_[b + k] - chunks_[a + k]);
    extra[k] = extra_s_[a + k] + t * (extra_s_[b + k] - extra_s_[a + k]);
    own[k] = own_s_[a + k] + t * (own_s_[b + k] - own_s_[a + k]) + chunks[k] * others_s;
  }
}

double LoadModel::quantile_s(const Load& load, double rate, double scv, double q, Scratch& scratch,
                             double at_most_s) const {
  if (!(rate < kMaxUtilization * load.capacity_per_s)) return kInfinity;
  const double c2 = std::max(scv, 1.0), z = 1 + (c2 - 1) / 2;
  Chain batch;
  if (!chain(load, rate, z, scratch, batch)) return kInfinity;
  scratch.running = batch.running;

  const std::size_t n = padded_, nodes = nodes_->per_cell;
  scratch.cell.resize(6 * n);
  double *own = scratch.cell.data(), *extra = own + n, *chunks = extra + n, *averaging = chunks + n,
         *floor = averaging + n, *ceiling = floor + n;
  interpolate(std::min(batch.running, load.along), load.attention_s, own, extra, chunks);
  const Moments m = moments(n, load.share.data(), own, extra, chunks);

  const double free_share = 1 - rate * m.extra;
  const PrefillWait wait = prefill_wait(m, rate, c2);

  // As many prefills of others as arrive while a request decodes, each delaying its steps further.
  const double added_share = rate * m.extra / free_share;
  const double extra_variance = std::max(m.extra2 - m.extra * m.extra, 0.0);
  const double added_scale_s = 1.5 * (extra_variance + c2 * m.extra * m.extra) / std::max(m.extra, 1e-300) /
                               (free_share * std::sqrt(free_share));
  const SampleConstants constants{
      std::log(wait.probability), wait.exponent, wait.scale_s, std::log(std::max(batch.full, 1e-300)), batch.slot_s,
      batch.mean_step_s,          added_share,   added_scale_s};
  const double slowest_s = std::max(1.1 * m.own / m.chunks, batch.pace_s);  // every step carries a chunk
  for (std::size_t k = 0; k < n; ++k) {
    const double out = tokens_out_[k];
    const double y = out / load.relaxation_tokens;  // decode time over the relaxation time of the batch
    averaging[k] = std::sqrt(y < 1e-4 ? 1 - y / 3 : 2 * (y - 1 + fast_exp2(-y * std::numbers::log2e)) / (y * y));
    floor[k] = 0.9 * load.step_s[1] * out;
    ceiling[k] = slowest_s * out;
    own[k] += fill_s_[k];
  }
  scratch.latency.resize(nodes * n);
  scratch.first.resize(nodes * n);
  double below = 0;  // mass of the samples so far that is no slower than at_most_s
  for (std::size_t j = 0; j < nodes; ++j) {
    double* latency = &scratch.latency[j * n];
    const std::size_t at = j * n;
    sample_row(n, constants, {tokens_out_.data(), own, averaging, floor, ceiling},
               {&nodes_->wait[at], &nodes_->slot[at], &nodes_->gauss[at], &nodes_->table_fraction[at],
                &nodes_->table_index[at]},
               scratch.step_s.data(), latency, &scratch.first[at]);
    if (at_most_s == kInfinity) continue;
    below += mass_up_to(n, 1, load.share.data(), latency, at_most_s);
    const auto rest = static_cast<double>(nodes - j - 1), all = static_cast<double>(nodes);
    if (below + rest < (q - 1e-9) * all) return kInfinity;
  }
  return weighted_quantile(load.share, nodes, scratch.latency, q, scratch.bracket);
}

}  // namespace cascadia
