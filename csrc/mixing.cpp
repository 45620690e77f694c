#include "mixing.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

namespace cascadia {
namespace {

constexpr double kWhole = 1 - 1e-12;  // parts of a stage add up to it; the rest is rounding
constexpr double kClose = 1e-11;      // a bracket as narrow as this, relative to its ends, is one number
constexpr double kMany = 1e6;         // replicas; what so many do not hold, none do

// Narrows lo < hi around the place where a rising f goes through zero: f(lo) <= 0 < f(hi), which may be infinite.
template <class F>
void narrow(const F& f, double& lo, double f_lo, double& hi, double f_hi) {
  int side = 0;
  for (int i = 0; hi - lo > kClose * hi && i < 200; ++i) {
    const double width = hi - lo, secant = lo - width * f_lo / (f_hi - f_lo);
    // Stay off the ends: a step beside one that is almost the root brings the other close.
    const bool halve = std::isinf(f_lo) || std::isinf(f_hi) || i % 8 == 7;
    const double margin = std::min(width / 4, kClose * hi / 2);
    const double x = halve ? lo + width / 2 : std::clamp(secant, lo + margin, hi - margin);
    const double value = f(x);
    if (value <= 0) {
      lo = x;
      f_lo = value;
      if (side < 0) f_hi /= 2;  // Illinois: the end that stays counts for less
      side = -1;
    } else {
      hi = x;
      f_hi = value;
      if (side > 0) f_lo /= 2;
      side = 1;
    }
  }
}

int whole(double replicas) { return static_cast<int>(std::min(std::ceil(replicas - 1e-9), kMany)); }

}  // namespace

Mixing::Mixing(StageLoad& stage, Scratch& scratch)
    : stage_(stage),
      scratch_(scratch),
      survive_s_(std::min(stage.limits().survive_s, std::numeric_limits<double>::max())) {}

int Mixing::gpus(int shape) const { return stage_.model().shapes()[static_cast<std::size_t>(shape)].gpus(); }

double Mixing::least_holding(int shape, double limit_s) {
  Bracket at = stage_.bracket(shape, limit_s);
  if (at.fails == kUnreachable || limit_s == kUnreachable) return at.fails;
  if (at.fails_s == kUnreachable) at.fails_s = stage_.latency_s(shape, at.fails, scratch_);
  if (at.fails_s <= limit_s) return at.fails;
  for (double step = 1.25; at.holds == kUnreachable; step *= 2) {
    if (at.fails > kMany) return kUnreachable;
    const double replicas = at.fails * step, latency_s = stage_.latency_s(shape, replicas, scratch_);
    (latency_s <= limit_s ? at.holds : at.fails) = replicas;
    (latency_s <= limit_s ? at.holds_s : at.fails_s) = latency_s;
  }
  // Along the rate of an engine the logarithm is almost straight.
  const auto above = [&](double part) { return std::log(stage_.latency_s(shape, 1 / part, scratch_) / limit_s); };
  double lo = 1 / at.holds, hi = 1 / at.fails;
  narrow(above, lo, std::log(at.holds_s / limit_s), hi, std::log(at.fails_s / limit_s));
  return 1 / lo;
}

Mixing::Part Mixing::part(int shape, double limit_s) {
  const Bracket at = stage_.bracket(shape, limit_s);
  if (at.fails >= kMany) return {0, 0};
  const double most = 1 / at.fails, sure = 1 / at.holds;
  return {most - sure <= 4 * kClose * most ? sure : most, sure};
}

void Mixing::update(int shape) {
  parts_[static_cast<std::size_t>(shape)] = part(shape, limit_s_);
  if (stage_.limits().spare_replicas > 0) survive_[static_cast<std::size_t>(shape)] = part(shape, survive_s_);
}

// Whether some shape holds the limit on so many GPUs where its last engine may be broken into parts: if none does,
// nothing made of them does.
bool Mixing::may_hold(double limit_s, int gpus) {
  bool holds = false;
  for (int s = 0; s < static_cast<int>(parts_.size()); ++s) {
    const Bracket at = stage_.bracket(s, limit_s);
    const double replicas = static_cast<double>(gpus) / this->gpus(s);
    if (replicas < at.fails) continue;
    holds = holds || replicas >= at.holds || stage_.latency_s(s, replicas, scratch_) <= limit_s;
  }
  return holds;
}

// Fewest engines of a shape beside so many of another that may do; 0: however many, they do not.
int Mixing::fewest_beside(std::size_t shape, std::size_t fill, int fill_replicas) const {
  const StageLimits& limits = stage_.limits();
  const auto beside = [](double one, double others) {
    if (others >= kWhole) return 0;
    int replicas = one > 0 ? whole((1 - others) / one) : static_cast<int>(kMany);
    while (replicas < kMany && replicas * one + others < kWhole) ++replicas;
    return replicas;
  };
  int fewest = std::max(beside(parts_[shape].most, fill_replicas * parts_[fill].most), 1);
  fewest = std::max(fewest, limits.fewest(true, stage_.traffic()) - fill_replicas);
  const int spare = limits.spare_replicas;
  if (spare > 0) {
    // Lost are engines of one shape, then of the other: the mixtures in between lose less than either end does.
    const double one = survive_[shape].most, filler = survive_[fill].most;
    const int alone = beside(filler, 0) + spare - fill_replicas;  // where all of the shape's engines are lost
    fewest = std::max(fewest, alone <= spare ? alone : spare + beside(one, fill_replicas * filler));
    const int lost = std::min(spare, fill_replicas);
    fewest = std::max(fewest, spare - lost + beside(one, (fill_replicas - lost) * filler));
  }
  return fewest < kMany ? fewest : 0;
}

// GPUs of so many engines of a shape and what they leave to another that carries more per GPU, were it in parts.
double Mixing::fewest_gpus(std::size_t shape, std::size_t fill, int fill_replicas) const {
  const double left = std::max((kWhole - fill_replicas * parts_[fill].most) / parts_[shape].most, 1.0);
  return left * gpus(static_cast<int>(shape)) + static_cast<double>(fill_replicas) * gpus(static_cast<int>(fill));
}

// The mixture with the fewest GPUs that may hold, by what is known so far; shape -1: none of at most `gpus`.
Mixing::Mix Mixing::candidate(int gpus) const {
  const StageLimits& limits = stage_.limits();
  const bool limited = limits.spare_replicas > 0 || limits.least_replicas > 2 || limits.most_replicas < gpus;
  Mix found;
  found.gpus = gpus + 1;
  const auto per_gpu = [&](std::size_t s) { return parts_[s].most / this->gpus(static_cast<int>(s)); };
  for (std::size_t a = 0; a < parts_.size(); ++a) {
    if (per_gpu(a) * (found.gpus - 1) < kWhole) continue;
    const int size = this->gpus(static_cast<int>(a));
    // What is known may leave it open whether the shape can do alone, with which the bound on fills below compares.
    const int alone = fewest_beside(a, a, 0);
    if (alone > 0 && alone <= limits.most_replicas && static_cast<double>(alone) * size < found.gpus)
      found = {static_cast<int>(a), alone, -1, 0, alone * size};
    for (std::size_t b = 0; b < parts_.size(); ++b) {
      const int fill = this->gpus(static_cast<int>(b));
      const bool useless = parts_[b].most <= 0 && !limited;  // it may still stand in for an engine that is lost
      if (a == b || useless || per_gpu(a) < per_gpu(b) || (per_gpu(a) == per_gpu(b) && a > b)) continue;
      // So many of b take the GPUs of a whole number of a, which carry at least as much.
      const int enough = limited ? gpus : size / std::gcd(size, fill) - 1;
      for (int fills = 1; fills <= enough && fewest_gpus(a, b, fills) < found.gpus; ++fills) {
        const int replicas = fewest_beside(a, b, fills);
        const double needed = static_cast<double>(replicas) * size + static_cast<double>(fills) * fill;
        if (replicas == 0 || needed >= found.gpus || replicas + fills > limits.most_replicas) continue;
        found = {static_cast<int>(a), replicas, static_cast<int>(b), fills, static_cast<int>(needed)};
      }
    }
  }
  return found;
}

void Mixing::ask(int shape, double limit_s, double replicas) {
  const Bracket at = stage_.bracket(shape, limit_s);
  if (at.fails < replicas && replicas < at.holds)
    stage_.latency_s(shape, replicas, scratch_);
  else
    least_holding(shape, limit_s);
  update(shape);
}

// Evaluates until it is known whether the engines hold the limit together, asking for the number that decides it first.
bool Mixing::decide(const Mix& mix, const Demand& demand) {
  auto& parts = demand.limit_s == limit_s_ ? parts_ : survive_;
  const int fill_shape = mix.fill_shape < 0 ? mix.shape : mix.fill_shape;
  const Part &a = parts[static_cast<std::size_t>(mix.shape)], &b = parts[static_cast<std::size_t>(fill_shape)];
  const double n = demand.replicas, m = demand.fill_replicas;
  while (n * a.most + m * b.most >= kWhole) {
    if (n * a.sure + m * b.sure >= kWhole) return true;
    if (n * (a.most - a.sure) >= m * (b.most - b.sure))
      ask(mix.shape, demand.limit_s, n / (1 - m * b.sure));
    else
      ask(fill_shape, demand.limit_s, m / (1 - n * a.sure));
  }
  return false;
}

bool Mixing::holds(const Mix& mix) {
  const int spare = stage_.limits().spare_replicas, n = mix.replicas, m = mix.fill_replicas;
  if (!decide(mix, {limit_s_, n, m})) return false;
  if (spare == 0) return true;
  const int most = std::min(spare, n), fewest = spare - std::min(spare, m);  // of n that are lost
  return decide(mix, {survive_s_, n - most, m - (spare - most)}) &&
         decide(mix, {survive_s_, n - fewest, m - (spare - fewest)});
}

Choice Mixing::cheapest(double limit_s, int gpus) {
  limit_s_ = limit_s;
  const std::size_t shapes = stage_.model().shapes().size();
  parts_.resize(shapes);
  survive_.resize(shapes);
  if (!may_hold(limit_s, gpus)) return {};
  for (int s = 0; s < static_cast<int>(shapes); ++s) update(s);
  for (Mix mix = candidate(gpus); mix.shape >= 0; mix = candidate(gpus)) {
    if (!holds(mix)) continue;  // and is no candidate any more
    double slower_s = mix.fill_shape < 0 ? stage_.latency_s(mix.shape, mix.replicas, scratch_) : 0;
    for (const int shape : {mix.shape, mix.fill_shape})
      if (mix.fill_shape >= 0 && parts_[static_cast<std::size_t>(shape)].sure > 0)  // otherwise it takes no requests
        slower_s = std::max(slower_s, stage_.bracket(shape, limit_s).holds_s);
    return {mix.shape, mix.replicas, mix.gpus, slower_s, mix.fill_shape, mix.fill_replicas};
  }
  return {};
}

double Mixing::carrying_gpus(double scale, double one_shape) {
  const auto shapes = stage_.model().shapes();
  parts_.assign(shapes.size(), {0, 0});
  for (int s = 0; s < static_cast<int>(shapes.size()); ++s) {
    if (!shapes[static_cast<std::size_t>(s)].fits()) continue;
    const double most_per_s = stage_.traffic().max_utilization * stage_.capacity_per_s(s);
    const double part = std::min(most_per_s / (scale * stage_.rate_per_s()), 1.0);
    parts_[static_cast<std::size_t>(s)] = {part, part};
  }
  survive_ = parts_;
  const Mix mix = candidate(static_cast<int>(std::min(one_shape, kMany)) - 1);
  return mix.shape < 0 ? one_shape : mix.gpus;
}

Choice Mixing::fastest(const Choice& one_shape, int gpus) {
  Choice found = one_shape;
  double bound_s = kUnreachable;
  const auto shapes = stage_.model().shapes();
  for (int s = 0; s < static_cast<int>(shapes.size()); ++s)
    if (shapes[static_cast<std::size_t>(s)].fits() && stage_.idle_s(s) < found.latency_s)
      bound_s = std::min(bound_s, stage_.latency_s(s, static_cast<double>(gpus) / this->gpus(s), scratch_));
  const auto improve = [&](double limit_s) {
    Choice mix = cheapest(std::min(limit_s, std::numeric_limits<double>::max()), gpus);
    if (mix.shape < 0) return false;
    mix.latency_s = split(mix).latency_s;
    found = mix;
    return true;
  };
  // Halve what is left in between as well: there may be many mixtures, each a little faster than the last.
  while (bound_s < below(found.latency_s) && improve(below(found.latency_s))) {
    const double middle_s = std::sqrt(bound_s * found.latency_s);
    if (!improve(middle_s)) bound_s = middle_s;
  }
  return found;
}

Split Mixing::split(const Choice& choice) {
  const double rate_per_s = stage_.rate_per_s();
  if (choice.shape < 0) return {};
  if (choice.fill_shape < 0)
    return {rate_per_s / choice.replicas, 0, stage_.latency_s(choice.shape, choice.replicas, scratch_)};
  const double n = choice.replicas, m = choice.fill_replicas;
  const double least = stage_.least_load(choice.shape), fill_least = stage_.least_load(choice.fill_shape);
  double lo = std::max(0.0, 1 - m / fill_least), hi = std::min(1.0, n / least);  // of the stage's requests
  if (lo > hi) return {};
  // Who takes nothing is as slow as an idle engine at least.
  const auto slow_s = [&](int shape, double replicas, double part, double fewest) {
    return part > 0 ? stage_.latency_s(shape, std::max(replicas / part, fewest), scratch_) : stage_.idle_s(shape);
  };
  const auto first_s = [&](double part) { return slow_s(choice.shape, n, part, least); };
  const auto second_s = [&](double part) { return slow_s(choice.fill_shape, m, 1 - part, fill_least); };
  const auto slower = [&](double part) { return std::log(first_s(part) / second_s(part)); };
  const auto at = [&](double part) {
    const double latency_s = std::max(part > 0 ? first_s(part) : 0, part < 1 ? second_s(part) : 0);
    return Split{rate_per_s * part / n, rate_per_s * (1 - part) / m, latency_s};
  };
  const double f_lo = slower(lo), f_hi = slower(hi);
  if (f_lo > 0 || lo == hi) return at(lo);
  if (f_hi <= 0) return at(hi);
  narrow(slower, lo, f_lo, hi, f_hi);
  const Split below = at(lo), above = at(hi);
  return above.latency_s < below.latency_s ? above : below;
}

double StageLoad::rate_within(int shape, double limit_s, Scratch& scratch) {
  return reached() ? rate_per_s_ / Mixing(*this, scratch).least_holding(shape, limit_s) : 0;
}

Split StageLoad::split(const Choice& choice, Scratch& scratch) {
  return reached() ? Mixing(*this, scratch).split(choice) : Split{0, 0, 0};
}

}  // namespace cascadia
