#include "queueing.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <numbers>

#include "swings.hpp"
#include "vector_math.hpp"
#include "waits.hpp"

namespace cascadia {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::size_t kLanes = 8;
constexpr double kWatermark = 0.01;     // of the KV cache, kept free when a prompt is admitted
constexpr double kMostBusy = 0.98;      // of the prefill server where a state of the chain would overload it
constexpr double kFewestBirths = 1e-9;  // of the mean rate
constexpr double kNever = 1e-9;         // rarer than any sample

// Prefill work of the requests: w of one request beyond decode steps, y with the decode steps that full budgets take.
struct Work {
  double x1 = 0, x2 = 0, y1 = 0, y2 = 0, y3 = 0;
};

// What prompts share a step with.
struct PrefillRow {
  double room, log2_room, step_s, shared_tokens;
};

// Work, and own_s of each cell: its first token without waits for other requests. Lane-wise sums in a fixed order, so
// that every instruction set adds alike.
CASCADIA_CLONES Work prefill_rows(std::size_t n, const PrefillRow at, const double* __restrict rates,
                                  std::size_t columns, const double* __restrict weight, const LoadTables& cell,
                                  double* __restrict own_s) {
  const double step_per_token_s = at.step_s / at.room, per_room = 1 / at.room;
  const double *__restrict in = cell.tokens_in.data(), *__restrict log2_in = cell.log2_in.data(),
               *__restrict attention = cell.prefill_attention_s.data(), *__restrict fill = cell.fill_s.data();
  double a[5][kLanes] = {};
  for (std::size_t k = 0; k < n; k += kLanes)
    for (std::size_t l = 0; l < kLanes; ++l) {
      const double tokens = in[k + l], w = weight[k + l];
      const double alone = tokens * rate_at(rates, columns, smaller(log2_in[k + l], at.log2_room)) + attention[k + l];
      const double together = smaller(larger(tokens + at.shared_tokens, 1.0), at.room);
      const double x = tokens * rate_at(rates, columns, fast_log2(together)) + attention[k + l];
      const double y = x + step_per_token_s * tokens;
      own_s[k + l] = alone + at.step_s * std::ceil(tokens * per_room) + fill[k + l];
      a[0][l] += w * x;
      a[1][l] += w * x * x;
      a[2][l] += w * y;
      a[3][l] += w * y * y;
      a[4][l] += w * y * y * y;
    }
  double sum[5] = {};
  for (int i = 0; i < 5; ++i)
    for (std::size_t l = 0; l < kLanes; ++l) sum[i] += a[i][l];
  return {sum[0], sum[1], sum[2], sum[3], sum[4]};
}

// Standard deviation of a mean over a decode, relative to one step, where the batch relaxes exponentially.
CASCADIA_CLONES void averaging_factors(std::size_t n, double relaxation_tokens, const double* __restrict tokens_out,
                                       double* __restrict averaging) {
  const double per_relaxation = 1 / relaxation_tokens;
  for (std::size_t k = 0; k < n; ++k) {
    const double y = tokens_out[k] * per_relaxation;  // decode time over the relaxation time
    const double exact = 2 * (y - 1 + fast_exp2(-y * std::numbers::log2e)) / (y * y);
    averaging[k] = std::sqrt(larger(y < 1e-4 ? 1 - y / 3 : exact, 0.0));
  }
}

// What a request takes with n in decode, n = 1..limit; on input what an output token takes beyond its steps.
CASCADIA_CLONES void request_times(std::size_t limit, double tokens_out, const double* __restrict step_s,
                                   double* __restrict time_s) {
  for (std::size_t n = 1; n <= limit; ++n) time_s[n] = tokens_out * (step_s[n] + time_s[n]);
}

// lambda / mu(n) for n = 1..limit, mu(n) = n / time_s[n].
CASCADIA_CLONES void poisson_ratios(std::size_t limit, double rate, const double* __restrict time_s,
                                    double* __restrict ratio) {
  for (std::size_t n = 1; n <= limit; ++n) ratio[n] = rate * time_s[n] / static_cast<double>(static_cast<int>(n));
}

// births(n - 1) / mu(n) of the chain for n = 1..limit, mu(n) = n / time_s[n]: see the reference.
CASCADIA_CLONES void birth_ratios(std::size_t limit, double rate, const double* __restrict calm,
                                  const double* __restrict time_s, double* __restrict ratio,
                                  double* __restrict births) {
  const double per_rate = 1 / rate;
  births[0] = calm[0];
  for (std::size_t n = 1; n <= limit; ++n)
    births[n] = larger(calm[n] + (1 - calm[n]) * per_rate * static_cast<double>(static_cast<int>(n)) / time_s[n],
                       kFewestBirths * calm[n]);
  for (std::size_t n = 1; n <= limit; ++n)
    ratio[n] = rate * births[n - 1] * time_s[n] / static_cast<double>(static_cast<int>(n));
}

}  // namespace

// How variable arrivals are at one replica, and what that does to its batch.
struct LoadModel::Bursts {
  double own_scv, damped, bursty;  // of one replica's part of the stream; at most 1; at least 1
  double per_prompt;               // bursts per prompt
  double chain_rise;               // of waits in the chain, by bursts
  double z, slot_z;                // peakedness of the batch, and of the queue for a place in it

  Bursts(const Load& load, const Arrivals& arrivals) {
    const double scv = std::max(arrivals.scv, 1.0), replicas = arrivals.replicas;
    own_scv = scv / replicas;
    damped = std::min(own_scv, 1.0);
    bursty = std::max(own_scv, 1.0);
    const double excess = (bursty - 1) / 2;
    per_prompt = excess > 0 ? std::log1p(excess) / excess : 1.0;
    chain_rise = (bursty - 1) / (1 + load.work_scv);
    z = (1 + (scv - 1) * load.overlap) / replicas + (1 - 1 / replicas) * kTies;
    slot_z = (scv + load.place_scv) / 2 / replicas;
  }
};

struct LoadModel::Chain {
  double running, idle, full;  // full: chance of an arrival to find no place
  double most_per_s;           // what a full engine completes
  double slow = 0;             // of the batch's variance, the share that outlasts a decode
  double found_share;          // of the prefills of others, those met in decode
  double mean_step_s;
};

// Steps of so many sequences in decode, and what prompts add to them.
struct LoadModel::Batch {
  std::span<const double> rates;
  double log2_room, step_s, most_prompts, full_s, last_prompt_s;  // full_s: all the budget; last_prompt_s: one of these

  Batch(const Load& load, std::span<const double> row, double room, double log2_room_, double decode_s)
      : rates(row), log2_room(log2_room_), step_s(decode_s), most_prompts(room / load.tokens_in) {
    full_s = room * rate_at(rates.data(), rates.size(), log2_room) + most_prompts * load.prefill_attention_s;
    last_prompt_s = full_s / most_prompts;
  }
  // What prompts add if all cost like those.
  double growing_s(double rate) const {
    const double grows = std::min(rate * last_prompt_s, kMostBusy);
    return step_s * grows / (1 - grows);
  }
};

struct LoadModel::Prefill {
  double rho;                                 // of a step, the part that prompts add
  double again;                               // what one more prompt adds to rho
  double wait_probability, exponent, wait_s;  // scale of E^exponent, E exponential
  double behind_share;                        // of the wait, what comes behind the own prompt
  double x1, variance, slowest_step_s;
};

LoadModel::LoadModel(const Replica& replica, const LengthCells& cells, std::shared_ptr<const Nodes> nodes)
    : tables_(replica, cells), nodes_(std::move(nodes)), gpus_(replica.shape().gpus()) {
  const std::size_t places = cells.spread_out.empty() ? 1 : nodes_->per_cell;
  for (std::size_t j = 0; j < places; ++j)
    for (std::size_t k = 0; k < cells.size(); ++k) {
      const double longer = places > 1 ? nodes_->tokens_out[j * tables_.padded + k] - cells.tokens_out[k] : 0;
      idle_.push_back({tables_.idle_s[k] + 0.9 * longer * tables_.step_s[1], static_cast<std::uint32_t>(k)});
    }
  std::stable_sort(idle_.begin(), idle_.end(), [](const Idle& a, const Idle& b) { return a.latency_s > b.latency_s; });
}

double LoadModel::mean(const Load& load, const std::vector<double>& per_cell) const {
  return dot({load.share.data(), tables_.padded}, {per_cell.data(), tables_.padded});
}

// Prefill of a mean request beyond decode steps, in steps with so many prompts that come in so many bursts each, and
// how fast that changes with the prompts.
LoadModel::Shared LoadModel::shared(const Load& load, std::span<const double> rates, double log2_room, double prompts,
                                    double bursts_per_prompt) const {
  const auto [together, more] = others(prompts, bursts_per_prompt);
  const double shared_tokens = together * load.tokens_in, per_log2 = std::numbers::log2e * more * load.tokens_in;
  Shared result{load.prefill_attention_s, 0};
  for (std::size_t i = 0; i < 2; ++i) {
    const double tokens = std::max(load.sizes[i] + shared_tokens, 1.0), log2_tokens = fast_log2(tokens);
    const auto [rate, slope] = rate_and_slope(rates.data(), rates.size(), std::min(log2_tokens, log2_room));
    result.prompt_s += load.size_tokens[i] * rate;
    result.slope_s += log2_tokens < log2_room ? load.size_tokens[i] * slope * per_log2 / tokens : 0.0;
  }
  return result;
}

// What prompts add to the mean step S = step_s + p x(p), p = rate S, with x the prefill of a mean request in steps with
// p prompts: Newton's method from a guess. p x(p) is nearly concave, so that it falls to the root from above.
double LoadModel::added_s(const Load& load, double rate, double bursts_per_prompt, const Batch& batch, double guess_s,
                          int passes) const {
  const double least = rate * batch.step_s, most = rate * (batch.step_s + batch.full_s);
  if (most >= batch.most_prompts) return batch.growing_s(rate);
  double prompts = std::clamp(rate * (batch.step_s + guess_s), least, most);
  for (int pass = 0; pass < passes; ++pass) {
    const auto [prompt_s, slope_s] = shared(load, batch.rates, batch.log2_room, prompts, bursts_per_prompt);
    const double short_s = batch.step_s + prompts * prompt_s - prompts / rate;
    const double falls = 1 / rate - prompt_s - prompts * slope_s;
    prompts = falls > 0 ? std::clamp(prompts + short_s / falls, least, most) : most;
  }
  return prompts / rate - batch.step_s;
}

double LoadModel::step_at(const Load& load, double sequences) {
  const std::size_t n = std::min(static_cast<std::size_t>(sequences), load.step_s.size() - 2);
  return load.step_s[n] + (sequences - static_cast<double>(n)) * (load.step_s[n + 1] - load.step_s[n]);
}

void LoadModel::prepare(std::span<const double> share, Load& load) const {
  const LoadTables& t = tables_;
  load.reach = sum(share);
  load.share.assign(t.padded, 0);
  for (std::size_t k = 0; k < t.cells; ++k) load.share[k] = share[k] / load.reach;
  load.tokens_in = mean(load, t.tokens_in);
  load.tokens_out = mean(load, t.tokens_out);
  load.attention_s = mean(load, t.attention_sum_s) / load.tokens_out;
  load.prefill_attention_s = mean(load, t.prefill_attention_s);
  load.fill_s = mean(load, t.fill_s);
  two_points(load.tokens_in, mean(load, t.tokens_in2), mean(load, t.tokens_in3), load.sizes, load.size_tokens);
  load.relaxation_tokens = mean(load, t.tokens_out2) / load.tokens_out;
  load.averaging.resize(t.padded);
  averaging_factors(t.padded, load.relaxation_tokens, t.tokens_out.data(), load.averaging.data());
  const double work_s = mean(load, t.full_work_s), held = mean(load, t.held_bytes_out);
  load.work_scv = mean(load, t.full_work_s2) / (work_s * work_s) - 1;
  // While a prompt waits until all of it fits, half of it stays free on average.
  const double usable = (1 - kWatermark) * t.kv_capacity_bytes - mean(load, t.prompt_bytes) / 2;
  const double fit = usable / (held / load.tokens_out);
  const auto most = static_cast<double>(t.max_num_seqs);
  load.place_scv =
      fit < most ? mean(load, t.held_bytes_out2) / (held * held) - 1 : load.relaxation_tokens / load.tokens_out - 1;
  load.batch_limit = static_cast<int>(std::clamp(std::floor(fit), 1.0, most));
  double above = 1, overlap = 0;
  for (const auto k : t.by_output) {
    above -= load.share[k];
    overlap += load.share[k] * t.tokens_out[k] * (2 * above + load.share[k]);
  }
  load.overlap = overlap / load.tokens_out;

  const auto limit = static_cast<std::size_t>(load.batch_limit);
  load.step_s.resize(limit + 1);
  for (std::size_t n = 0; n <= limit; ++n)
    load.step_s[n] = t.step_s[n] + static_cast<double>(static_cast<int>(n)) * load.attention_s;
  load.along = std::min(t.budget * load.tokens_out / (load.tokens_in + load.tokens_out), static_cast<double>(limit));
  std::array<double, 32> rates;
  t.blend(load.along, rates);
  const double prompts = load.along / load.tokens_out;  // per step
  const double log2_room = fast_log2(std::max(t.budget - load.along, 1.0));
  const double prompt_s = shared(load, {rates.data(), t.columns}, log2_room, prompts, 1).prompt_s;
  load.capacity_per_s = 1 / (step_at(load, load.along) / prompts + prompt_s);
}

double LoadModel::idle_bound_s(std::span<const double> share, double q) const {
  const double per_place = static_cast<double>(tables_.cells) / static_cast<double>(idle_.size());
  const double spare = (1 - q + 1e-9) * sum(share);  // may be slower
  double above = 0;
  for (const Idle& sample : idle_) {
    above += share[sample.cell] * per_place;
    if (above > spare) return sample.latency_s;
  }
  return idle_.back().latency_s;
}

std::pair<double, double> LoadModel::idle_sample_s(std::size_t node, std::size_t cell) const {
  const double decode_step_s = 0.9 * tables_.step_s[1], mean_s = decode_step_s * tables_.tokens_out[cell];
  const double decode_s = decode_step_s * nodes_->tokens_out[node * tables_.padded + cell];
  const double first_s = tables_.idle_s[cell] - mean_s;
  return {first_s + decode_s, first_s};
}

// Prefills met per output token while as many sequences decode as at point j of the grid. `prompts_s` is what prompts
// add to the mean step; on input at the point before, a guess.
double LoadModel::met_s(const Load& load, double rate, const Bursts& bursts, std::size_t j, double& prompts_s) const {
  const double decode_s =
      tables_.step_s[static_cast<std::size_t>(tables_.grid[j])] + tables_.grid[j] * load.attention_s;
  const Batch batch(load, tables_.row(j), tables_.room[j], tables_.log2_room[j], decode_s);
  prompts_s = added_s(load, rate, bursts.per_prompt, batch, j == 0 ? batch.full_s : prompts_s, j == 0 ? 4 : 1);
  const double rho = std::min(prompts_s / (decode_s + prompts_s), kMostBusy), x = rho / rate;
  const double in_room = 1 / batch.most_prompts;
  const double again = std::min(rate * std::min(x, batch.last_prompt_s), kMostBusy);
  const double y = x + decode_s * in_room, busy = std::min(rate * y, kMostBusy),
               sharing = batch.full_s / (batch.full_s + x);
  const double found = rate * (1 + load.work_scv) * y * y / 2 * (1 + busy / (1 - busy) * bursts.damped);
  const double bursty = 1 + bursts.chain_rise * std::min(1.0, (batch.last_prompt_s + decode_s * in_room) / y);
  double behind = found * (1 - 0.5 * sharing / (0.5 + rho)) * (1 + sharing * rho / (1 + rho)) * bursty;
  behind += x + decode_s * std::max(1.0, in_room);
  const double met =
      rho / (1 - rho) * decode_s + again * (1 + again / (1 - again) * bursts.damped) * behind / load.tokens_out;
  return met * batch.full_s / (met + batch.full_s);
}

bool LoadModel::chain(const Load& load, const Arrivals& arrivals, const Bursts& bursts, Scratch& scratch,
                      Chain& result) const {
  const auto limit = static_cast<std::size_t>(load.batch_limit);
  const double rate = arrivals.rate_per_s;
  scratch.chain.resize(5 * (limit + 1));
  double *ratio = scratch.chain.data(), *births = ratio + limit + 1, *time_s = births + limit + 1,
         *seen = time_s + limit + 1, *calm = seen + limit + 1;
  double prompts_s = 0, left = met_s(load, rate, bursts, 0, prompts_s);
  scratch.prompts_s[0] = prompts_s;
  for (std::size_t j = 0; j + 1 < tables_.grid.size() && tables_.grid[j] <= static_cast<double>(limit); ++j) {
    const double right = met_s(load, rate, bursts, j + 1, prompts_s);
    scratch.prompts_s[j + 1] = prompts_s;
    const double slope = (right - left) / (tables_.grid[j + 1] - tables_.grid[j]);
    const auto begin = static_cast<int>(tables_.grid[j]), end = static_cast<int>(tables_.grid[j + 1]);
    for (int n = begin; n <= std::min(end, load.batch_limit); ++n) time_s[n] = left + slope * (n - begin);
    left = right;
  }
  request_times(limit, load.tokens_out, load.step_s.data(), time_s);
  const bool poisson = arrivals.dispersion == nullptr && bursts.z == 1.0;
  std::fill(calm, calm + limit + 1, 1 / bursts.z);
  if (arrivals.dispersion != nullptr)
    result.slow = set_calm(arrivals, load.overlap, load.along, tables_.grid, {time_s, limit + 1}, {calm, limit + 1});
  if (poisson)
    poisson_ratios(limit, rate, time_s, ratio);
  else
    birth_ratios(limit, rate, calm, time_s, ratio, births);
  // However prefills are met, a full engine keeps up with its capacity.
  const double mu = static_cast<double>(limit) / time_s[limit], top = std::max(mu, load.capacity_per_s);
  ratio[limit] *= mu / top;
  double p = 1, sum = 1, sum_n = 0, sum_seen = 0, found = 0;
  std::size_t last = limit;
  for (std::size_t n = 1; n <= limit; ++n) {
    const auto m = static_cast<double>(static_cast<int>(n));
    seen[n] = poisson ? p : p * births[n - 1];  // an arrival that finds n - 1 running decodes in steps of n
    sum_seen += seen[n];
    found += seen[n] * (m - 1);
    p *= ratio[n];
    sum += p;
    sum_n += p * m;
    if (p > 1e200) {
      constexpr double kScale = 1e-200;
      p *= kScale, sum *= kScale, sum_n *= kScale, sum_seen *= kScale, found *= kScale;
      for (std::size_t earlier = 1; earlier <= n; ++earlier) seen[earlier] *= kScale;
    }
    const double next = poisson ? p : p * larger(births[n], 1.0);
    if (ratio[n] < 0.999 && next < 1e-14 * sum_seen * (1 - ratio[n])) {
      p = 0;
      last = n;
      break;
    }
  }
  const double births_top =
      poisson ? 1 : larger(calm[limit] + (1 - calm[limit]) * top / rate, kFewestBirths * calm[limit]);
  const double fall = rate * births_top / top, tail = p * fall / (1 - fall), b = static_cast<double>(limit);
  const double blocked = (p + tail) * births_top;
  result.running = (sum_n + tail * b) / (sum + tail);
  result.idle = seen[1] / (poisson ? 1 : births[0]) / (sum + tail);
  result.full = blocked / (sum_seen + blocked);
  result.most_per_s = top;
  const double met = (found + blocked * b) / (sum_seen + blocked) / result.running;
  result.found_share = std::min(met, 1.0);
  seen[last] += blocked;
  result.mean_step_s = step_quantiles(load.step_s, {seen, last + 1}, scratch.step_s);
  return fall < 1;
}

// At the mean batch. Leaves the time to the first token, without waits for other requests, in scratch.cell.
LoadModel::Prefill LoadModel::prefill(const Load& load, double rate, const Bursts& bursts, const Chain& batch,
                                      Scratch& scratch) const {
  const double running = std::min(batch.running, load.along), room = std::max(tables_.budget - running, 1.0);
  const double log2_room = fast_log2(room), step_s = step_at(load, running);
  tables_.blend(running, scratch.rates);
  const std::span<const double> rates{scratch.rates.data(), tables_.columns};
  const Batch steps(load, rates, room, log2_room, step_s);
  Prefill result;
  const auto [j, t] = tables_.on_grid(running);
  const double guess_s = scratch.prompts_s[j] + t * (scratch.prompts_s[j + 1] - scratch.prompts_s[j]);
  const double prompts_s = added_s(load, rate, bursts.per_prompt, steps, guess_s, 2);
  result.rho = std::min(prompts_s / (step_s + prompts_s), kMostBusy);
  const double rho = result.rho, marginal = std::min(rho / rate, steps.last_prompt_s);
  result.again = rate * marginal;
  // Arrivals see long steps more often.
  const double seen_s =
      step_s / (1 - rho) + rate * (1 + load.work_scv) * marginal * marginal / (1 - result.again * result.again);
  const double together = others(std::min(rate * seen_s, steps.most_prompts), bursts.per_prompt).first * load.tokens_in;
  const PrefillRow at{room, log2_room, step_s, together};
  scratch.cell.resize(tables_.padded);
  double* own_s = scratch.cell.data();
  const Work work = prefill_rows(tables_.padded, at, rates.data(), rates.size(), load.share.data(), tables_, own_s);

  const double busy = std::min(rate * work.y1, std::max(rate / load.capacity_per_s, result.again));
  const double scv = work.y2 / (work.y1 * work.y1) - 1;
  const double sigma = wait_probability(busy, bursts.bursty);
  double found = rate * work.y2 / 2 * (1 + busy / (1 - busy) * bursts.damped);
  const double rise =
      sigma / (1 - sigma) * (1 - busy) / busy * (bursts.bursty + scv) / (bursts.bursty + 1) * 2 / (1 + scv) - 1;
  found *= 1 + rise * std::min(1.0, (marginal + step_s / steps.most_prompts) / work.y1);
  const double sharing = steps.full_s / (steps.full_s + work.x1);
  const auto [exponent, scale] = weibull(2 * busy - 1 + 4.0 / 3 * (1 - busy) * work.y1 * work.y3 / (work.y2 * work.y2));
  result.wait_probability = sigma;
  result.exponent = exponent;
  result.wait_s = found * (1 + sharing * sigma / (1 + sigma)) / sigma * scale;
  result.behind_share = 1 - 0.5 * sharing / (0.5 + rho);
  result.x1 = work.x1;
  result.variance = work.x2 + (bursts.own_scv - 1) * marginal * marginal;
  result.slowest_step_s = step_s + steps.full_s;
  const double rest_s = step_s / (1 - rho) * ((1 - batch.idle) / 2 + sharing * rho);
  for (std::size_t k = 0; k < tables_.padded; ++k) own_s[k] += rest_s;
  return result;
}

double LoadModel::quantile_s(const Load& load, const Arrivals& arrivals, double q, Scratch& scratch,
                             double at_most_s) const {
  const double rate = arrivals.rate_per_s;
  if (!(rate < kMaxUtilization * load.capacity_per_s)) return kInfinity;
  const Bursts bursts(load, arrivals);
  Chain batch;
  if (!chain(load, arrivals, bursts, scratch, batch)) return kInfinity;
  scratch.running = batch.running;
  const Prefill first = prefill(load, rate, bursts, batch, scratch);

  const std::size_t n = tables_.padded, nodes = nodes_->per_cell;
  const double *own = scratch.cell.data(), *averaging = load.averaging.data();
  if (batch.slow > 0) {
    scratch.averaging.resize(n);
    lasting_averages(n, batch.slow, averaging, scratch.averaging.data());
    averaging = scratch.averaging.data();
  }
  const double met_again = first.rho / (1 - first.rho) * batch.found_share;
  const double amplified = 1 + first.again / (1 - first.again) * bursts.damped;
  double place_wait_s = bursts.slot_z / (batch.most_per_s - rate);  // of those who find no place
  if (arrivals.dispersion != nullptr && batch.full > kNever)
    place_wait_s = robust_wait_s(arrivals, load.place_scv, batch.most_per_s, std::log(batch.full / (1 - q)));
  const SampleConstants constants{std::log(first.wait_probability),
                                  first.exponent,
                                  first.wait_s,
                                  std::log(std::max(batch.full, 1e-300)),
                                  place_wait_s,
                                  batch.mean_step_s,
                                  1 + met_again,
                                  met_again * batch.mean_step_s,
                                  batch.found_share * first.again * amplified,
                                  first.behind_share,
                                  first.variance / first.x1 * amplified * amplified,
                                  0.9 * load.step_s[1],
                                  std::max(first.slowest_step_s, load.step_s.back())};
  scratch.latency.resize(nodes * n);
  scratch.first.resize(nodes * n);
  double below = 0;  // mass of the samples so far that is no slower than at_most_s
  for (std::size_t j = 0; j < nodes; ++j) {
    double* latency = &scratch.latency[j * n];
    const std::size_t at = j * n;
    sample_row(n, constants, {own, averaging},
               {&nodes_->tokens_out[at], &nodes_->wait[at], &nodes_->slot[at], &nodes_->gauss[at],
                &nodes_->table_fraction[at], &nodes_->table_index[at]},
               scratch.step_s.data(), latency, &scratch.first[at]);
    if (at_most_s == kInfinity) continue;
    below += mass_up_to(n, 1, load.share.data(), latency, at_most_s);
    const auto rest = static_cast<double>(nodes - j - 1), all = static_cast<double>(nodes);
    if (below + rest < (q - 1e-9) * all) return kInfinity;
  }
  return weighted_quantile(load.share, nodes, scratch.latency, q, scratch.bracket);
}

}  // namespace cascadia
