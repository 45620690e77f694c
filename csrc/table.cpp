#include "table.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "mixing.hpp"
#include "vector_math.hpp"

namespace cascadia {

StageModel::StageModel(std::span<const Replica> replicas, const LengthCells& cells) : cells_(cells.size()) {
  const auto nodes = std::make_shared<const Nodes>(cells);
  least_gpu_s_.assign(cells_, kUnreachable);
  for (const Replica& replica : replicas) {
    shapes_.emplace_back(replica, cells, nodes);
    const LoadModel& shape = shapes_.back();
    if (!shape.fits()) continue;
    for (std::size_t k = 0; k < cells_; ++k)
      least_gpu_s_[k] = std::min(least_gpu_s_[k], shape.gpus() * shape.least_work_s()[k]);
    if (least_gpus_ == 0 || shape.gpus() < least_gpus_) least_gpus_ = shape.gpus();
  }
}

int StageLimits::fewest(bool reached, const Traffic& traffic) const {
  if (!reached) return std::max(least_replicas, traffic.idle_stage_keeps_replica ? 1 : 0);
  return std::max(least_replicas, spare_replicas + 1);
}

void StageLoad::reset(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                      const StageLimits& limits) {
  model_ = &model;
  share_ = share;
  traffic_ = traffic;
  limits_ = limits;
  reach_ = sum(share);
  rate_per_s_ = traffic.rate_per_s * reach_;
  answers_ = {};
  shapes_.resize(model.shapes().size());
  for (Shape& shape : shapes_) {
    shape.prepared = false;
    shape.idle_s = -1;
    shape.least_work_s = kUnknown;
    shape.least_replicas = shape.kept_replicas = 0;
    shape.known.clear();
  }
}

void StageLoad::start_near(const StageLoad& other) {
  favourite_ = other.favourite_;
  for (std::size_t s = 0; s < shapes_.size(); ++s) shapes_[s].last_rate_per_s = other.shapes_[s].last_rate_per_s;
}

const Load& StageLoad::load(int shape) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (!s.prepared) {
    model_->shapes()[static_cast<std::size_t>(shape)].prepare(share_, s.load);
    s.prepared = true;
  }
  return s.load;
}

double StageLoad::capacity_per_s(int shape) { return load(shape).capacity_per_s; }

// Splitting a stream at random with probability p moves its squared coefficient of variation towards 1 by p.
Arrivals StageLoad::arrivals(double replicas) const {
  const Dispersion* known = traffic_.dispersion.count > 0 ? &traffic_.dispersion : nullptr;
  return {rate_per_s_ / replicas, 1 + (traffic_.scv - 1) * reach_, replicas, known, reach_};
}

int StageLoad::least_replicas(int shape) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (s.least_replicas == 0) s.least_replicas = count_least_replicas(shape);
  return s.least_replicas;
}

double StageLoad::least_work_s(int shape) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (std::isnan(s.least_work_s))
    s.least_work_s = dot(share_, model_->shapes()[static_cast<std::size_t>(shape)].least_work_s());
  return s.least_work_s;
}

// Whether the work bound alone rules the number out; cheaper than preparing the load.
bool StageLoad::overloads(int shape, double replicas) {
  if (shapes_[static_cast<std::size_t>(shape)].prepared) return replicas < least_load(shape);
  return least_work_s(shape) * traffic_.rate_per_s > traffic_.max_utilization * replicas * (1 + 1e-9);
}

double StageLoad::least_load(int shape) {
  return std::max(1.0, rate_per_s_ / (traffic_.max_utilization * capacity_per_s(shape)));
}

int StageLoad::count_least_replicas(int shape) {
  const double needed = least_load(shape);
  return needed < 1e9 ? static_cast<int>(std::ceil(needed)) : 1'000'000'000;
}

int StageLoad::most_replicas(int shape, int gpus) const {
  return std::min(gpus / model_->shapes()[static_cast<std::size_t>(shape)].gpus(), limits_.most_replicas);
}

int StageLoad::kept_replicas(int shape, Scratch& scratch) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (s.kept_replicas > 0) return s.kept_replicas;
  int kept = std::max(least_replicas(shape), limits_.fewest(true, traffic_));
  if (limits_.spare_replicas > 0 && kept <= limits_.most_replicas) {
    const double survive_s = std::min(limits_.survive_s, std::numeric_limits<double>::max());
    kept = std::max(kept, limits_.spare_replicas +
                              fewest(shape, survive_s, false, limits_.most_replicas - limits_.spare_replicas, scratch));
  }
  return s.kept_replicas = kept;
}

double StageLoad::idle_s(int shape) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (s.idle_s < 0)
    s.idle_s = model_->shapes()[static_cast<std::size_t>(shape)].idle_bound_s(share_, traffic_.quantile);
  return s.idle_s;
}

double StageLoad::latency_s(int shape, double replicas, Scratch& scratch, double at_most_s) {
  if (overloads(shape, replicas) || replicas < least_load(shape)) return kUnreachable;
  auto& known = shapes_[static_cast<std::size_t>(shape)].known;
  const auto at = std::lower_bound(known.begin(), known.end(), replicas,
                                   [](const auto& entry, double wanted) { return entry.first < wanted; });
  if (at != known.end() && at->first == replicas) return at->second;
  const auto& model = model_->shapes()[static_cast<std::size_t>(shape)];
  const double value = model.quantile_s(load(shape), arrivals(replicas), traffic_.quantile, scratch, at_most_s);
  if (value == kUnreachable && at_most_s < kUnreachable) return value;  // not known how slow
  known.emplace(at, replicas, value);
  return value;
}

double StageLoad::carrying_gpus(double scale) {
  if (!reached()) {
    const int kept = limits_.fewest(false, traffic_), least = model_->least_gpus();
    return kept == 0 ? 0 : least == 0 ? kUnreachable : static_cast<double>(kept) * least;
  }
  const double gpus = carrying_gpus_of_one_shape(scale);
  if (!traffic_.mixed) return gpus;
  Scratch scratch;
  return Mixing(*this, scratch).carrying_gpus(scale, gpus);
}

double StageLoad::carrying_gpus_of_one_shape(double scale) {
  double least = kUnreachable;
  const double busy = scale / traffic_.max_utilization;  // replicas per unit of load
  for (int s = 0; s < static_cast<int>(shapes_.size()); ++s) {
    const LoadModel& shape = model_->shapes()[static_cast<std::size_t>(s)];
    if (!shape.fits() || shape.gpus() * busy * traffic_.rate_per_s * least_work_s(s) >= least) continue;
    const double carrying = std::max(std::ceil(busy * rate_per_s_ / capacity_per_s(s)), 1.0);
    const double replicas = std::max<double>(carrying + limits_.spare_replicas, limits_.least_replicas);
    if (replicas <= limits_.most_replicas) least = std::min(least, shape.gpus() * replicas);
  }
  return least;
}

bool StageLoad::allows(int shape, int replicas, Scratch& scratch) {
  if (replicas < limits_.fewest(true, traffic_) || replicas > limits_.most_replicas) return false;
  if (limits_.spare_replicas == 0) return true;
  const double survive_s = std::min(limits_.survive_s, std::numeric_limits<double>::max());
  return latency_s(shape, replicas - limits_.spare_replicas, scratch, survive_s) <= survive_s;
}

Bracket StageLoad::bracket(int shape, double limit_s) {
  Bracket found{kUnreachable, kUnreachable, kUnreachable, kUnreachable};
  if (!model_->shapes()[static_cast<std::size_t>(shape)].fits() || idle_s(shape) > limit_s) return found;
  found.fails = least_load(shape);
  for (const auto& [replicas, latency_s] : shapes_[static_cast<std::size_t>(shape)].known) {
    if (latency_s <= limit_s) {
      found.holds = replicas;
      found.holds_s = latency_s;
      break;
    }
    found.fails = replicas;
    found.fails_s = latency_s;
  }
  return found;
}

Choice StageLoad::unreached(int gpus) const {
  const int replicas = limits_.fewest(false, traffic_);
  if (replicas == 0) return {-1, 0, 0, 0};
  Choice choice;
  const auto shapes = model_->shapes();
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    const int needed = replicas * shapes[s].gpus();
    if (shapes[s].fits() && needed <= gpus && (choice.shape < 0 || needed < choice.gpus))
      choice = {static_cast<int>(s), replicas, needed, 0};
  }
  return choice;
}

// Fewest replicas of a shape, at most `most`, that meet the limit; `most` + 1 if none do. p95 falls as replicas are
// added.
int StageLoad::fewest(int shape, double limit_s, bool strictly, int most, Scratch& scratch) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  const auto meets = [&](double latency_s) { return strictly ? latency_s < limit_s : latency_s <= limit_s; };
  int lo = least_replicas(shape), hi = most + 1;  // hi meets the limit or is out of range
  if (lo > most || !meets(idle_s(shape))) return most + 1;
  for (const auto& [replicas, latency_s] : s.known) {
    if (meets(latency_s)) {
      hi = static_cast<int>(std::min<double>(hi, std::ceil(replicas)));
      break;
    }
    lo = std::max(lo, static_cast<int>(std::floor(replicas)) + 1);
  }
  // Neighbouring routings load a replica alike: start where the last search ended and widen from there.
  const double guess = s.last_rate_per_s > 0 ? std::ceil(rate_per_s_ / s.last_rate_per_s) : lo;
  for (int at = static_cast<int>(std::clamp<double>(guess, lo, std::max(lo, hi - 1))), step = 1; lo < hi; step *= 2) {
    if (meets(latency_s(shape, at, scratch))) {
      hi = at;
      if (at - step < lo) break;
      at -= step;
    } else {
      lo = at + 1;
      if (at + step >= hi) break;
      at += step;
    }
  }
  while (lo < hi) {
    const int mid = lo + (hi - 1 - lo) / 2;
    if (meets(latency_s(shape, mid, scratch)))
      hi = mid;
    else
      lo = mid + 1;
  }
  if (hi <= most) s.last_rate_per_s = rate_per_s_ / hi;
  return hi;
}

Choice StageLoad::need(double limit_s, bool strictly, int gpus, Scratch& scratch) {
  if (!reached()) return unreached(gpus);
  if (const Answer* known = remembered(limit_s, strictly, gpus)) {
    return known->choice.gpus <= gpus ? known->choice : Choice{};
  }
  Choice choice = search_need(limit_s, strictly, gpus, scratch);
  if (traffic_.mixed) {
    const int fewer = choice.shape < 0 ? gpus : choice.gpus - 1;
    const Choice mixed = Mixing(*this, scratch).cheapest(strictly ? below(limit_s) : limit_s, fewer);
    if (mixed.shape >= 0) choice = mixed;
  }
  answers_[next_answer_] = {limit_s, strictly, gpus, choice};
  next_answer_ = (next_answer_ + 1) % answers_.size();
  return choice;
}

// An answer holds for every number of GPUs that includes its choice; a failure for fewer GPUs as well.
const StageLoad::Answer* StageLoad::remembered(double limit_s, bool strictly, int gpus) const {
  for (const Answer& answer : answers_)
    if (answer.limit_s == limit_s && answer.strictly == strictly && answer.gpus > 0 &&
        (answer.choice.shape >= 0 || gpus <= answer.gpus))
      return &answer;
  return nullptr;
}

// Whether `most` replicas of a shape meet the limit. Asks first at a coarser, larger number: searches come back with
// many nearby numbers, and one failure there answers them all.
bool StageLoad::reaches(int shape, double limit_s, bool strictly, int most, Scratch& scratch) {
  const auto meets = [&](double latency_s) { return strictly ? latency_s < limit_s : latency_s <= limit_s; };
  if (!meets(idle_s(shape))) return false;
  const int step = std::max(1, static_cast<int>(std::bit_floor(static_cast<unsigned>(most))) / 16);
  const int coarse = (most + step - 1) / step * step;
  return meets(latency_s(shape, coarse, scratch)) && meets(latency_s(shape, most, scratch));
}

Choice StageLoad::search_need(double limit_s, bool strictly, int gpus, Scratch& scratch) {
  Choice found;
  const auto shapes = model_->shapes();
  const int count = static_cast<int>(shapes.size());
  for (int turn = 0; turn < count; ++turn) {
    const int shape = (favourite_ + turn) % count;
    const LoadModel& model = shapes[static_cast<std::size_t>(shape)];
    // The favourite is searched; any other must first show that it gets by with no more GPUs.
    const int most = most_replicas(shape, found.shape < 0 ? gpus : found.gpus);
    if (!model.fits() || overloads(shape, most) || most < least_replicas(shape)) continue;
    if (turn > 0 && !reaches(shape, limit_s, strictly, most, scratch)) continue;
    const int fast = fewest(shape, limit_s, strictly, most, scratch);
    if (fast > most || !allows(shape, most, scratch)) continue;
    const int replicas = std::max(fast, kept_replicas(shape, scratch));
    if (replicas > most) continue;
    const Choice choice{shape, replicas, replicas * model.gpus(), latency_s(shape, replicas, scratch)};
    if (found.shape < 0 ||
        std::tie(choice.gpus, choice.latency_s, choice.shape) < std::tie(found.gpus, found.latency_s, found.shape))
      found = choice;
  }
  if (found.shape >= 0) favourite_ = found.shape;
  return found;
}

double StageLoad::best_below(double limit_s, int gpus, Scratch& scratch) {
  if (!reached()) return unreached(gpus).latency_s;
  return traffic_.mixed ? best_below_of_two(limit_s, gpus, scratch) : best_below_of_one_shape(limit_s, gpus, scratch);
}

double StageLoad::best_below_of_one_shape(double limit_s, int gpus, Scratch& scratch) {
  const auto shapes = model_->shapes();
  const int count = static_cast<int>(shapes.size());
  double least_s = kUnreachable;
  for (int turn = 0; turn < count; ++turn) {
    const int shape = (favourite_ + turn) % count, replicas = most_replicas(shape, gpus);
    if (!shapes[static_cast<std::size_t>(shape)].fits() || replicas == 0 || overloads(shape, replicas) ||
        idle_s(shape) > limit_s)
      continue;
    const double value = latency_s(shape, replicas, scratch, limit_s);
    if (value > limit_s || !allows(shape, replicas, scratch)) continue;
    least_s = std::min(least_s, value);
    if (least_s < limit_s) {
      favourite_ = shape;
      break;
    }
  }
  return least_s;
}

// One evaluation per shape as well where none can: no mixture on so many GPUs is faster than the fastest shape that may
// break its last engine into parts.
double StageLoad::best_below_of_two(double limit_s, int gpus, Scratch& scratch) {
  const auto shapes = model_->shapes();
  const int count = static_cast<int>(shapes.size());
  double least_s = kUnreachable;
  bool may_mix = false;
  for (int turn = 0; turn < count; ++turn) {
    const int shape = (favourite_ + turn) % count, replicas = most_replicas(shape, gpus);
    const double parts = static_cast<double>(gpus) / shapes[static_cast<std::size_t>(shape)].gpus();
    if (!shapes[static_cast<std::size_t>(shape)].fits() || overloads(shape, parts) || idle_s(shape) > limit_s) continue;
    const double bound_s = latency_s(shape, parts, scratch, limit_s);
    if (bound_s > limit_s) continue;
    may_mix = may_mix || bound_s < limit_s;
    if (replicas == 0 || !allows(shape, replicas, scratch)) continue;
    least_s = std::min(least_s, latency_s(shape, replicas, scratch));
    if (least_s < limit_s) {
      favourite_ = shape;
      return least_s;
    }
  }
  return may_mix ? std::min(least_s, Mixing(*this, scratch).cheapest(below(limit_s), gpus).latency_s) : least_s;
}

Choice StageLoad::best(int gpus, Scratch& scratch) {
  if (!reached()) return unreached(gpus);
  const Choice one = best_of_one_shape(gpus, scratch);
  return traffic_.mixed ? Mixing(*this, scratch).fastest(one, gpus) : one;
}

Choice StageLoad::best_of_one_shape(int gpus, Scratch& scratch) {
  Choice found;
  const auto shapes = model_->shapes();
  for (int s = 0; s < static_cast<int>(shapes.size()); ++s) {
    const LoadModel& model = shapes[static_cast<std::size_t>(s)];
    const int replicas = most_replicas(s, gpus);
    if (!model.fits() || replicas == 0 || idle_s(s) > found.latency_s) continue;
    const Choice choice{s, replicas, replicas * model.gpus(), latency_s(s, replicas, scratch)};
    const bool better = choice.latency_s < found.latency_s ||
                        (choice.latency_s == found.latency_s && found.shape >= 0 && choice.gpus < found.gpus);
    if (better && allows(s, replicas, scratch)) found = choice;
  }
  return found;
}

}  // namespace cascadia
