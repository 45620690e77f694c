#include "table.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <tuple>

#include "parallel.hpp"
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

void StageLoad::reset(const StageModel& model, std::span<const double> share, const Traffic& traffic) {
  model_ = &model;
  share_ = share;
  traffic_ = traffic;
  reach_ = sum(share);
  rate_per_s_ = traffic.rate_per_s * reach_;
  answers_ = {};
  shapes_.resize(model.shapes().size());
  for (Shape& shape : shapes_) {
    shape.prepared = false;
    shape.idle_s = -1;
    shape.least_work_s = kUnknown;
    shape.least_replicas = 0;
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
Arrivals StageLoad::arrivals(int replicas) const {
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
bool StageLoad::overloads(int shape, int replicas) {
  const int least = shapes_[static_cast<std::size_t>(shape)].least_replicas;
  if (least > 0) return replicas < least;
  return least_work_s(shape) * traffic_.rate_per_s > traffic_.max_utilization * replicas * (1 + 1e-9);
}

int StageLoad::count_least_replicas(int shape) {
  const double needed = rate_per_s_ / (traffic_.max_utilization * capacity_per_s(shape));
  return needed < 1e9 ? std::max(1, static_cast<int>(std::ceil(needed))) : 1'000'000'000;
}

double StageLoad::idle_s(int shape) {
  Shape& s = shapes_[static_cast<std::size_t>(shape)];
  if (s.idle_s < 0)
    s.idle_s = model_->shapes()[static_cast<std::size_t>(shape)].idle_bound_s(share_, traffic_.quantile);
  return s.idle_s;
}

double StageLoad::latency_s(int shape, int replicas, Scratch& scratch, double at_most_s) {
  if (overloads(shape, replicas) || replicas < least_replicas(shape)) return kUnreachable;
  auto& known = shapes_[static_cast<std::size_t>(shape)].known;
  const auto at = std::lower_bound(known.begin(), known.end(), replicas,
                                   [](const auto& entry, int wanted) { return entry.first < wanted; });
  if (at != known.end() && at->first == replicas) return at->second;
  const auto& model = model_->shapes()[static_cast<std::size_t>(shape)];
  const double value = model.quantile_s(load(shape), arrivals(replicas), traffic_.quantile, scratch, at_most_s);
  if (value == kUnreachable && at_most_s < kUnreachable) return value;  // not known how slow
  known.emplace(at, replicas, value);
  return value;
}

Choice StageLoad::unreached(int gpus) const {
  if (!traffic_.idle_stage_keeps_replica) return {-1, 0, 0, 0};
  Choice choice;
  const auto shapes = model_->shapes();
  for (std::size_t s = 0; s < shapes.size(); ++s)
    if (shapes[s].fits() && shapes[s].gpus() <= gpus && (choice.shape < 0 || shapes[s].gpus() < choice.gpus))
      choice = {static_cast<int>(s), 1, shapes[s].gpus(), 0};
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
      hi = std::min(hi, replicas);
      break;
    }
    lo = std::max(lo, replicas + 1);
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
  const Choice choice = search_need(limit_s, strictly, gpus, scratch);
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
    const int most = (found.shape < 0 ? gpus : found.gpus) / model.gpus();
    if (!model.fits() || overloads(shape, most) || most < least_replicas(shape)) continue;
    if (turn > 0 && !reaches(shape, limit_s, strictly, most, scratch)) continue;
    const int replicas = fewest(shape, limit_s, strictly, most, scratch);
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
  const auto shapes = model_->shapes();
  const int count = static_cast<int>(shapes.size());
  double least_s = kUnreachable;
  for (int turn = 0; turn < count; ++turn) {
    const int shape = (favourite_ + turn) % count, replicas = gpus / shapes[static_cast<std::size_t>(shape)].gpus();
    if (!shapes[static_cast<std::size_t>(shape)].fits() || replicas == 0 || overloads(shape, replicas) ||
        idle_s(shape) > limit_s)
      continue;
    least_s = std::min(least_s, latency_s(shape, replicas, scratch, limit_s));
    if (least_s < limit_s) {
      favourite_ = shape;
      break;
    }
  }
  return least_s;
}

Choice StageLoad::best(int gpus, Scratch& scratch) {
  if (!reached()) return unreached(gpus);
  Choice found;
  const auto shapes = model_->shapes();
  for (std::size_t s = 0; s < shapes.size(); ++s) {
    const int replicas = gpus / shapes[s].gpus();
    if (!shapes[s].fits() || replicas == 0 || idle_s(static_cast<int>(s)) > found.latency_s) continue;
    const Choice choice{static_cast<int>(s), replicas, replicas * shapes[s].gpus(),
                        latency_s(static_cast<int>(s), replicas, scratch)};
    if (choice.latency_s < found.latency_s ||
        (choice.latency_s == found.latency_s && found.shape >= 0 && choice.gpus < found.gpus))
      found = choice;
  }
  return found;
}

std::vector<Choice> latency_table(const StageModel& model, std::span<const double> share, const Traffic& traffic,
                                  int gpus, int threads, const std::function<bool()>& interrupted) {
  StageLoad stage;
  stage.reset(model, share, traffic);
  std::vector<Choice> table(static_cast<std::size_t>(gpus) + 1);
  if (!stage.reached()) {
    Scratch scratch;
    for (int f = 0; f <= gpus; ++f) table[static_cast<std::size_t>(f)] = stage.need(0, false, f, scratch);
    return table;
  }
  struct Block {
    int shape, begin, end;
  };
  std::vector<Block> blocks;  // runs of replica counts of one shape
  constexpr int kBlock = 64;
  for (std::size_t s = 0; s < model.shapes().size(); ++s) {
    if (!model.shapes()[s].fits()) continue;
    // The load is prepared here once and then only read.
    const int least = stage.least_replicas(static_cast<int>(s)), most = gpus / model.shapes()[s].gpus();
    for (int begin = least; begin <= most; begin += kBlock)
      blocks.push_back({static_cast<int>(s), begin, std::min(begin + kBlock, most + 1)});
  }
  std::vector<std::vector<double>> latency(blocks.size());
  std::vector<Scratch> scratch(static_cast<std::size_t>(std::max(threads, 1)));
  parallel_for(
      blocks.size(), threads,
      [&](std::size_t b, std::size_t thread) {
        const Block& block = blocks[b];
        const LoadModel& shape = model.shapes()[static_cast<std::size_t>(block.shape)];
        const Load& load = stage.load(block.shape);
        for (int replicas = block.begin; replicas < block.end; ++replicas)
          latency[b].push_back(shape.quantile_s(load, stage.arrivals(replicas), traffic.quantile, scratch[thread]));
      },
      interrupted);
  for (std::size_t b = 0; b < blocks.size(); ++b)
    for (int replicas = blocks[b].begin; replicas < blocks[b].end; ++replicas) {
      const int g = model.shapes()[static_cast<std::size_t>(blocks[b].shape)].gpus() * replicas;
      const double value = latency[b][static_cast<std::size_t>(replicas - blocks[b].begin)];
      Choice& entry = table[static_cast<std::size_t>(g)];
      if (value < entry.latency_s) entry = {blocks[b].shape, replicas, g, value};
    }
  for (std::size_t f = 1; f < table.size(); ++f)  // GPUs may stay idle
    if (!(table[f].latency_s < table[f - 1].latency_s)) table[f] = table[f - 1];
  return table;
}

}  // namespace cascadia
