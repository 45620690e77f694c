#include "hunt.hpp"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "parallel.hpp"

namespace cascadia {
namespace {

constexpr double kFinite = std::numeric_limits<double>::max();
// Candidates are tested against one incumbent in batches, so that which are tested, and how, is the same for any number
// of threads. Batches grow, because the first ones improve the incumbent most.
constexpr std::size_t kBatch = 1024, kLazyBatch = 16384, kChunk = 256;
constexpr std::size_t kFirst = 512;  // candidates taken by load before the others are taken in the order of their rows

std::vector<double> worst_first(const Allocation& allocation) {
  std::vector<double> latency_s;
  for (const Choice& choice : allocation.stages) latency_s.push_back(choice.latency_s);
  std::sort(latency_s.begin(), latency_s.end(), std::greater<>());
  return latency_s;
}

int moved_gpus(const Allocation& allocation, std::span<const int> previous) {
  int moved = 0;
  for (std::size_t i = 0; i < previous.size() && i < allocation.stages.size(); ++i)
    moved += std::abs(allocation.stages[i].gpus - previous[i]);
  return moved;
}

}  // namespace

Hunt::Hunt(CascadeSearch& search, Loads& loads, const Question& question, const std::function<bool()>& interrupted)
    : search_(search),
      setting_(search.setting()),
      grid_(search.grid()),
      question_(question),
      interrupted_(interrupted),
      started_(std::chrono::steady_clock::now()),
      ceiling_s_(std::min(question.limit_s, kFinite)),
      last_(search.grid().last()) {
  if (question.minimise == Minimise::latency) ceiling_s_ = std::min(ceiling_s_, question.beat);
  workers_.push_back({&loads, {}});
  result_.candidates = static_cast<std::int64_t>(question.candidates.size());
}

// The candidates that their load does not rule out, in their order.
std::vector<Hunt::Candidate> Hunt::not_overloaded() {
  const double cap_usd = question_.minimise == Minimise::spend ? question_.beat : kUnreachable;
  std::vector<Candidate> order;
  for (std::size_t c = 0; c < question_.candidates.size(); ++c) {
    const auto routing = static_cast<std::uint32_t>(question_.candidates[c]);
    double gpus = 0;
    for (std::size_t i = 0; i <= last_; ++i) gpus += search_.least_gpus(routing, i);
    const double bound = question_.minimise == Minimise::spend ? question_.spend(c, gpus) : gpus;
    if (gpus <= question_.most_gpus(c) && bound <= cap_usd)
      order.push_back({bound, routing, static_cast<std::uint32_t>(c)});
  }
  result_.by_load = result_.candidates - static_cast<std::int64_t>(order.size());
  return order;
}

double Hunt::floor_gpus(const Worker& worker, std::uint32_t routing, std::size_t from) {
  double gpus = search_.least_gpus(routing, last_);
  for (std::size_t i = from; i < last_; ++i) {
    const auto& floor = worker.floor_gpus;
    const double raised = floor.empty() ? 0 : floor[i][grid_.prefix(routing, i)];
    gpus += std::max(raised, search_.least_gpus(routing, i));
  }
  return gpus;
}

void Hunt::raise_floor(Worker& worker, std::uint32_t routing, std::size_t station, double gpus) {
  if (worker.floor_gpus.empty())
    for (std::size_t i = 0; i < last_; ++i) worker.floor_gpus.emplace_back(grid_.rows(i), 0.0);
  double& floor = worker.floor_gpus[station][grid_.prefix(routing, station)];
  floor = std::max(floor, gpus);
}

// Whether the routing can reach the limits, station by station: one evaluation per shape of the last one, no search.
Hunt::Fit Hunt::fit(Worker& worker, std::uint32_t routing, std::span<const double> limits_s, bool strictly, int gpus) {
  Loads& loads = *worker.loads;
  for (std::size_t i = 0; i < last_; ++i) {
    const Choice choice = loads.at(routing, i).need(limits_s[i], strictly, gpus, loads.scratch);
    if (choice.latency_s == kUnreachable) return Fit::too_few_gpus;
    gpus -= choice.gpus;
    if (strictly_) raise_floor(worker, routing, i, choice.gpus);
    if (floor_gpus(worker, routing, i + 1) > gpus) return Fit::too_few_gpus;
  }
  const double best_s = loads.at(routing, last_).best_below(limits_s[last_], gpus, loads.scratch);
  return best_s < limits_s[last_] ? Fit::below : best_s == limits_s[last_] ? Fit::equal : Fit::too_slow;
}

// Whether the routing may be at least as fast as the incumbent: all stations below its worst p95, or the same worst p95
// at one station and the others no worse than its next.
Hunt::Fit Hunt::may_be_faster(Worker& worker, std::uint32_t routing, int gpus) {
  const std::vector<double>& worst_s = result_.worst_s;
  Loads& loads = *worker.loads;
  if (floor_gpus(worker, routing, 0) > gpus) return Fit::too_few_gpus;
  std::vector<std::size_t> tied;  // stations that reach the worst p95, but with these GPUs nothing below
  int left = gpus;
  for (std::size_t i = 0; i < last_; ++i) {
    const Choice choice = loads.at(routing, i).need(worst_s[0], false, left, loads.scratch);
    if (choice.latency_s == kUnreachable) return Fit::too_few_gpus;
    left -= choice.gpus;
    if (choice.latency_s == worst_s[0]) tied.push_back(i);
    if (question_.minimise == Minimise::latency) raise_floor(worker, routing, i, choice.gpus);
    if (floor_gpus(worker, routing, i + 1) > left) return Fit::too_few_gpus;
  }
  std::vector<double> limits_s(last_ + 1, worst_s[0]);
  if (tied.empty()) {
    const double best_s = loads.at(routing, last_).best_below(worst_s[0], left, loads.scratch);
    if (best_s > worst_s[0]) return Fit::too_slow;
    if (best_s < worst_s[0] || last_ == 0) return Fit::below;
    tied.push_back(last_);
  } else {
    const Fit strict = fit(worker, routing, limits_s, true, gpus);
    if (strict == Fit::below) return strict;
    if (strict == Fit::equal) tied.push_back(last_);
  }
  Fit verdict = Fit::too_slow;
  for (const std::size_t i : tied) {
    limits_s.assign(last_ + 1, worst_s[1]);
    limits_s[i] = worst_s[0];
    verdict = fit(worker, routing, limits_s, false, gpus);
    if (verdict == Fit::below || verdict == Fit::equal) return Fit::below;
  }
  return verdict;
}

// Fewest GPUs with which every station meets the ceiling; -1: these do not suffice.
int Hunt::needed_gpus(Worker& worker, std::uint32_t routing, int gpus) {
  if (floor_gpus(worker, routing, 0) > gpus) return -1;
  int left = gpus;
  for (std::size_t i = 0; i <= last_; ++i) {
    const Choice choice = worker.loads->at(routing, i).need(ceiling_s_, false, left, worker.loads->scratch);
    if (choice.latency_s == kUnreachable) return -1;
    left -= choice.gpus;
    if (i == last_) continue;
    raise_floor(worker, routing, i, choice.gpus);
    if (floor_gpus(worker, routing, i + 1) > left) return -1;
  }
  return gpus - left;
}

Hunt::Fit Hunt::may_spend_less(Worker& worker, const Candidate& candidate) {
  const bool found = result_.routing >= 0;
  const double cap_usd = found ? result_.value : question_.beat, fixed = question_.fixed(candidate.index);
  if (candidate.bound > cap_usd) return Fit::too_few_gpus;
  int gpus = question_.most_gpus(candidate.index);
  const double affordable = std::floor((cap_usd - fixed) / question_.usd_per_gpu + 1e-6);
  if (affordable < gpus) gpus = static_cast<int>(affordable);
  while (gpus >= 0 && question_.spend(candidate.index, gpus) > cap_usd) --gpus;
  const int needed = gpus < 0 ? -1 : needed_gpus(worker, candidate.routing, gpus);
  if (needed < 0) return Fit::too_few_gpus;
  if (!found || question_.spend(candidate.index, needed) < cap_usd) return Fit::below;
  return strictly_ ? Fit::equal : may_be_faster(worker, candidate.routing, needed);
}

// Whether the candidate may replace the incumbent, or be the first.
Hunt::Fit Hunt::test(Worker& worker, const Candidate& candidate) {
  const int gpus = question_.most_gpus(candidate.index);
  if (question_.minimise == Minimise::spend) return may_spend_less(worker, candidate);
  if (result_.routing < 0) return needed_gpus(worker, candidate.routing, gpus) < 0 ? Fit::too_few_gpus : Fit::below;
  if (!strictly_) return may_be_faster(worker, candidate.routing, gpus);
  if (floor_gpus(worker, candidate.routing, 0) > gpus) return Fit::too_few_gpus;
  const std::vector<double> limits_s(last_ + 1, result_.worst_s[0]);
  return fit(worker, candidate.routing, limits_s, true, gpus);
}

void Hunt::test(std::span<const Candidate> batch, std::vector<Fit>& verdicts) {
  verdicts.resize(batch.size());
  std::vector<std::uint32_t> order(batch.size());
  std::iota(order.begin(), order.end(), 0U);
  // A row of the last station that is made lazily costs little only soon after one before it.
  if (grid_.lazy())
    std::sort(order.begin(), order.end(),
              [&](std::uint32_t a, std::uint32_t b) { return batch[a].routing < batch[b].routing; });
  const std::size_t chunks = (batch.size() + kChunk - 1) / kChunk;
  const auto wanted = std::min(static_cast<std::size_t>(std::max(question_.threads, 1)), chunks);
  while (workers_.size() < wanted) {
    more_loads_.push_back(std::make_unique<Loads>(setting_));
    workers_.push_back({more_loads_.back().get(), {}});
  }
  parallel_for(
      chunks, static_cast<int>(wanted),
      [&](std::size_t chunk, std::size_t thread) {
        const std::size_t end = std::min((chunk + 1) * kChunk, batch.size());
        for (std::size_t i = chunk * kChunk; i < end; ++i) verdicts[order[i]] = test(workers_[thread], batch[order[i]]);
      },
      interrupted_);
}

Allocation Hunt::allocation_of(const Candidate& candidate) {
  Loads& loads = *workers_[0].loads;
  int gpus = question_.most_gpus(candidate.index);
  if (question_.minimise != Minimise::latency) gpus = needed_gpus(workers_[0], candidate.routing, gpus);
  return gpus < 0 ? Allocation{} : allocate(loads.of(candidate.routing), gpus, question_.previous_gpus, loads.scratch);
}

Hunt::Key Hunt::key_of(const Candidate& candidate, const Allocation& allocation) const {
  const int gpus = allocation.gpus();
  return {question_.minimise == Minimise::spend ? question_.spend(candidate.index, gpus) : 0,
          worst_first(allocation),
          -grid_.quality_of(candidate.routing),
          gpus,
          moved_gpus(allocation, question_.previous_gpus),
          candidate.routing};
}

// Whether it is better than the incumbent, which it then replaces.
bool Hunt::evaluate(const Candidate& candidate) {
  ++result_.evaluated;
  Allocation allocation = allocation_of(candidate);
  if (!allocation.feasible()) return false;
  Key key = key_of(candidate, allocation);
  if (result_.routing >= 0 && !(key < key_)) return false;
  key_ = std::move(key);
  result_.routing = candidate.routing;
  result_.allocation = std::move(allocation);
  result_.worst_s = std::get<1>(key_);
  result_.value = question_.minimise == Minimise::spend ? std::get<0>(key_) : result_.worst_s[0];
  return true;
}

bool Hunt::out_of_time() const {
  const std::chrono::duration<double> spent = std::chrono::steady_clock::now() - started_;
  return spent.count() > question_.time_limit_s;
}

// Goes through the candidates and takes what is better than the incumbent. Returns how many it has gone through, which
// are all unless the time is over; `found` may end it early.
std::size_t Hunt::run(std::span<const Candidate> order, const std::function<bool()>& found) {
  std::vector<Fit> verdicts;
  std::size_t at = 0;
  for (std::size_t size = 1; at < order.size(); size = std::min(2 * size, grid_.lazy() ? kLazyBatch : kBatch)) {
    if (at > 0 && out_of_time()) break;
    const auto batch = order.subspan(at, std::min(size, order.size() - at));
    test(batch, verdicts);
    bool improved = false;
    for (std::size_t i = 0; i < batch.size(); ++i) {
      if (improved && verdicts[i] == Fit::below) verdicts[i] = test(workers_[0], batch[i]);
      if (verdicts[i] != Fit::below) {
        ++(verdicts[i] == Fit::too_few_gpus ? result_.by_need : result_.by_latency);
      } else if (evaluate(batch[i])) {
        improved = true;
        if (!found()) return order.size();
      }
    }
    at += batch.size();
  }
  return at;
}

ExactResult Hunt::best() {
  auto order = not_overloaded();
  std::sort(order.begin(), order.end(), [](const Candidate& a, const Candidate& b) {
    return std::tie(a.bound, a.routing) < std::tie(b.bound, b.routing);
  });
  if (grid_.lazy() && order.size() > kFirst)
    std::sort(order.begin() + kFirst, order.end(),
              [](const Candidate& a, const Candidate& b) { return a.routing < b.routing; });
  const std::span<const Candidate> all(order);
  const std::size_t done = run(all, [&] { return question_.minimise != Minimise::any; });
  result_.complete = done == all.size();
  result_.bound = result_.complete ? result_.value : bound_of(all.subspan(done));
  return std::move(result_);
}

std::vector<ExactResult> Hunt::front() {
  strictly_ = true;
  std::vector<ExactResult> found;
  run(not_overloaded(), [&] {
    result_.bound = result_.value;
    found.push_back(result_);
    return true;
  });
  return found;
}

// A value that neither the incumbent nor any candidate that is left can fall below. Of latencies: that of the stations
// which the first threshold decides, each with all GPUs that the others can spare.
double Hunt::bound_of(std::span<const Candidate> left) {
  double bound = kUnreachable;
  if (question_.minimise == Minimise::any) return 0;
  if (question_.minimise == Minimise::spend) {
    for (const Candidate& candidate : left) bound = std::min(bound, candidate.bound);
    return std::min(bound, result_.value);
  }
  std::size_t shallow = 0;
  while (shallow < last_ && grid_.depth[shallow] <= 1) ++shallow;
  const std::size_t groups = grid_.thresholds() == 0 ? 1 : grid_.levels[0];
  struct Group {
    std::uint32_t routing = 0;
    std::vector<int> most_gpus;  // of each of the stations; empty: no candidate is left
  };
  std::vector<Group> by_first(groups);
  for (const Candidate& candidate : left) {
    const double spare = question_.most_gpus(candidate.index) - floor_gpus(workers_[0], candidate.routing, 0);
    if (spare < 0) continue;
    Group& group = by_first[grid_.row(candidate.routing, std::min<std::size_t>(1, grid_.thresholds()))];
    group.routing = candidate.routing;
    group.most_gpus.resize(shallow);
    for (std::size_t i = 0; i < shallow; ++i) {
      const double others = floor_gpus(workers_[0], candidate.routing, i + 1);
      const double own = floor_gpus(workers_[0], candidate.routing, i) - others;
      group.most_gpus[i] = std::max(group.most_gpus[i], static_cast<int>(spare + own));
    }
  }
  for (const Group& group : by_first) {
    double slowest_s = group.most_gpus.empty() && shallow > 0 ? kUnreachable : 0;
    for (std::size_t i = 0; i < group.most_gpus.size(); ++i)
      slowest_s = std::max(
          slowest_s,
          workers_[0].loads->at(group.routing, i).best(group.most_gpus[i], workers_[0].loads->scratch).latency_s);
    bound = std::min(bound, slowest_s);
  }
  return std::min(bound, result_.value);
}

}  // namespace cascadia
