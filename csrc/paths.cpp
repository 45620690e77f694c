#include "paths.hpp"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <numeric>
#include <utility>

#include "vector_math.hpp"

namespace cascadia {
namespace {

constexpr double kScale = 4503599627370496.0;  // 2^52: weights of a total of one, as whole numbers
constexpr double kSlack = 1e-12;               // of the weight: quantiles are not lost to rounding
constexpr std::size_t kBlock = 512;

CASCADIA_CLONES void add_samples(std::size_t n, const double* __restrict table, const std::int32_t* __restrict at,
                                 double* __restrict sum) {
  for (std::size_t p = 0; p < n; ++p) sum[p] += table[at[p]];
}

CASCADIA_CLONES std::int64_t sum_above(std::size_t n, const double* __restrict value,
                                       const std::int64_t* __restrict weight, double limit) {
  std::int64_t above = 0;
  for (std::size_t p = 0; p < n; ++p) above += value[p] > limit ? weight[p] : 0;
  return above;
}

// Always added in the order of the visits: with every sample no larger, no sum is.
void add_up(const RoutedPaths::Group& group, std::span<const StationSamples* const> stations, PathMetric metric,
            std::size_t begin, std::size_t n, double* sum) {
  std::fill(sum, sum + n, group.delay_s);
  for (std::size_t v = 0; v < group.stations.size(); ++v) {
    const StationSamples& station = *stations[group.stations[v]];
    const bool first = metric == PathMetric::ttft && group.streams && v + 1 == group.stations.size();
    add_samples(n, first ? station.first_token_s.data() : station.latency_s.data(), group.sample(v) + begin, sum);
  }
}

// visit(group, first path, number of paths, their latencies) block by block until it returns false.
template <class Visit>
void each_block(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                const Visit& visit) {
  std::array<double, kBlock> sum;
  for (const auto& group : paths.groups)
    for (std::size_t begin = 0; begin < group.count; begin += kBlock) {
      const std::size_t n = std::min(kBlock, group.count - begin);
      add_up(group, stations, metric, begin, n, sum.data());
      if (!visit(group, begin, n, sum.data())) return;
    }
}

// Latencies fall into bins half a percent wide, from a microsecond to months.
constexpr double kBinsPerOctave = 128, kFirstOctave = -20, kOctaves = 44;
constexpr auto kBins = static_cast<std::size_t>(kBinsPerOctave * kOctaves);

CASCADIA_CLONES void find_bins(std::size_t n, const double* __restrict latency, std::int32_t* __restrict bin) {
  for (std::size_t p = 0; p < n; ++p) {
    const double octave = fast_log2(smaller(larger(latency[p], 1e-300), 1e300)) - kFirstOctave;
    bin[p] = static_cast<std::int32_t>(smaller(larger(octave * kBinsPerOctave, 0.0), kBins - 1.0));
  }
}

// Weight by bin, and a quantile that moves little from one question to the next.
class Histogram {
 public:
  void add(std::int32_t bin, std::int64_t weight) {
    const auto at = static_cast<std::size_t>(bin);
    weight_[at] += weight;
    if (at > at_) above_ += weight;
  }
  double quantile(std::int64_t spare) {
    while (above_ > spare) above_ -= weight_[++at_];
    while (at_ > 0 && above_ + weight_[at_] <= spare) above_ += weight_[at_--];
    // Rounding of the logarithm may have put a latency just above the edge of its bin.
    return at_ == 0 ? 0 : std::exp2(static_cast<double>(at_) / kBinsPerOctave + kFirstOctave) * (1 - 1e-9);
  }

 private:
  std::vector<std::int64_t> weight_ = std::vector<std::int64_t>(kBins, 0);
  std::size_t at_ = 0;      // the quantile's bin
  std::int64_t above_ = 0;  // weight in the bins after it
};

// A number from 0 to 1 for each call of each path, always the same (splitmix64).
double uniform(std::size_t path, std::size_t call) {
  std::uint64_t x = (static_cast<std::uint64_t>(path) << 8 | call) * 0x9E3779B97F4A7C15ULL + 0x9E3779B97F4A7C15ULL;
  x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9ULL;
  x = (x ^ x >> 27) * 0x94D049BB133111EBULL;
  return static_cast<double>((x ^ x >> 31) >> 11) * 0x1p-53;
}

// Paths of one visit each: those with the same sample become one.
void merge(PathColumns& columns) {
  std::vector<std::int64_t> weight;
  for (std::size_t p = 0; p < columns.weight.size(); ++p) {
    const auto sample = static_cast<std::size_t>(columns.sample[0][p]);
    if (sample >= weight.size()) weight.resize(sample + 1);
    weight[sample] += columns.weight[p];
  }
  columns.sample[0].clear();
  columns.weight.clear();
  for (std::size_t sample = 0; sample < weight.size(); ++sample) {
    if (weight[sample] == 0) continue;
    columns.sample[0].push_back(static_cast<std::int32_t>(sample));
    columns.weight.push_back(weight[sample]);
  }
}

}  // namespace

Paths::Paths(const Arrays& arrays, std::size_t models)
    : models_(models), judge_delay_s_(arrays.judge_delay_s), escalates_(models - 1) {
  if (!arrays.judge_sample.empty()) judged_by_.resize(models - 1);
  sample_.resize(stations());
  double total = 0;
  for (const double w : arrays.weight) total += w;
  std::vector<std::size_t> order(arrays.weight.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  if (models > 1)
    std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
      return arrays.escalates[(a + 1) * (models - 1) - 1] < arrays.escalates[(b + 1) * (models - 1) - 1];
    });
  for (const std::size_t p : order) {
    const auto weight = static_cast<std::int64_t>(std::llround(arrays.weight[p] / total * kScale));
    if (weight == 0) continue;
    weight_.push_back(weight);
    row_.push_back(p);
    total_ += weight;
    for (std::size_t m = 0; m + 1 < models; ++m) {
      escalates_[m].push_back(arrays.escalates[p * (models - 1) + m]);
      if (hosted_judge()) judged_by_[m].push_back(arrays.judge_sample[p * (models - 1) + m]);
    }
    for (std::size_t j = 0; j < stations(); ++j) sample_[j].push_back(arrays.sample[p * stations() + j]);
  }
}

std::int64_t Paths::spare_weight(double q) const {
  return static_cast<std::int64_t>(std::floor((1 - q + kSlack) * static_cast<double>(total_)));
}

Paths Paths::over_groups(std::span<const std::vector<double>> shares, std::span<const std::size_t> samples) const {
  Paths over = *this;
  const auto pick = [&](std::size_t station, std::size_t call, std::vector<std::int32_t>& column) {
    const auto& share = shares[station];
    const double total = std::accumulate(share.begin(), share.end(), 0.0);
    for (std::size_t p = 0; p < column.size() && share.size() > 1; ++p) {
      double at = uniform(row_[p], call) * total;
      std::size_t group = 0;
      while (group + 1 < share.size() && at >= share[group]) at -= share[group++];
      column[p] += static_cast<std::int32_t>(group * samples[station]);
    }
  };
  for (std::size_t model = 0; model < models_; ++model) {
    pick(station_of(model), 2 * model, over.sample_[station_of(model)]);
    if (hosted_judge() && model + 1 < models_) pick(judge_station(), 2 * model + 1, over.judged_by_[model]);
  }
  return over;
}

// Samples of the visits of some paths up to a model, a hosted judge's calls after the models before it.
void Paths::append(PathColumns& columns, std::size_t model, std::span<const std::int32_t> paths) const {
  const auto visit = [&](const std::vector<std::int32_t>& samples) {
    auto& column = columns.sample.emplace_back(paths.size());
    for (std::size_t p = 0; p < paths.size(); ++p) column[p] = samples[static_cast<std::size_t>(paths[p])];
  };
  for (std::size_t m = 0; m <= model; ++m) {
    visit(sample_[station_of(m)]);
    if (hosted_judge() && m + 1 < models_) visit(judged_by_[m]);
  }
  columns.weight.resize(paths.size());
  for (std::size_t p = 0; p < paths.size(); ++p) columns.weight[p] = weight_[static_cast<std::size_t>(paths[p])];
}

PrefixPaths Paths::prefix(std::span<const std::int32_t> levels) const {
  PrefixPaths prefix;
  std::vector<std::int32_t> reaching(size()), escalating;
  std::iota(reaching.begin(), reaching.end(), 0);
  for (std::size_t model = 0; model + 2 < models_; ++model) {
    std::vector<std::int32_t> accepted(reaching.size());
    escalating.resize(reaching.size());
    std::size_t stay = 0, go = 0;
    for (const std::int32_t p : reaching) {
      const bool goes = levels[model] >= escalates_[model][static_cast<std::size_t>(p)];
      accepted[stay] = escalating[go] = p;
      goes ? ++go : ++stay;
    }
    accepted.resize(stay);
    escalating.resize(go);
    auto& columns = *prefix.early.emplace_back(std::make_shared<PathColumns>());
    append(columns, model, accepted);
    if (columns.sample.size() == 1) merge(columns);
    std::swap(reaching, escalating);
  }
  prefix.late = std::make_shared<PathColumns>();
  if (models_ > 1) {
    prefix.escalates.reserve(reaching.size());
    for (const std::int32_t p : reaching)
      prefix.escalates.push_back(escalates_[models_ - 2][static_cast<std::size_t>(p)]);
  }
  append(*prefix.late, models_ - 1, reaching);
  return prefix;
}

RoutedPaths::Group Paths::group(std::size_t accepted_by, bool streams, std::shared_ptr<const PathColumns> columns,
                                std::size_t begin, std::size_t end) const {
  const std::size_t judged = accepted_by + (streams ? 0 : 1);  // nobody doubts the last model that is reached
  RoutedPaths::Group group{std::move(columns), begin, end - begin, {}, 0, streams};
  if (!hosted_judge()) group.delay_s = static_cast<double>(judged) * judge_delay_s_;
  for (std::size_t m = 0; m <= accepted_by; ++m) {
    group.stations.push_back(station_of(m));
    if (hosted_judge() && m < judged) group.stations.push_back(judge_station());
  }
  return group;
}

RoutedPaths Paths::routed(const PrefixPaths& prefix, std::int32_t last_level) const {
  const auto& levels = prefix.escalates;
  const std::size_t late = prefix.late->weight.size();
  const auto escalating =
      models_ == 1
          ? late
          : static_cast<std::size_t>(std::upper_bound(levels.begin(), levels.end(), last_level) - levels.begin());
  RoutedPaths routed;
  bool streams = true;  // the deepest that is reached
  const auto add = [&](std::size_t model, const std::shared_ptr<PathColumns>& columns, std::size_t begin,
                       std::size_t end) {
    if (begin == end) return;
    routed.groups.push_back(group(model, streams, columns, begin, end));
    streams = false;
  };
  add(models_ - 1, prefix.late, 0, escalating);
  if (models_ > 1) add(models_ - 2, prefix.late, escalating, late);
  for (std::size_t model = prefix.early.size(); model-- > 0;)
    add(model, prefix.early[model], 0, prefix.early[model]->weight.size());
  return routed;
}

std::int64_t weight_above(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                          double limit_s, std::int64_t enough) {
  std::int64_t above = paths.above;
  each_block(paths, stations, metric, [&](const auto& group, std::size_t begin, std::size_t n, const double* latency) {
    above += sum_above(n, latency, group.weight() + begin, limit_s);
    return above <= enough;
  });
  return above;
}

PrefixTimes times_of(const Paths& paths, const PrefixPaths& prefix, std::span<const StationSamples* const> stations) {
  const auto sums = [&](std::size_t model, const std::shared_ptr<PathColumns>& columns) {
    RoutedPaths alone;
    alone.groups.push_back(paths.group(model, false, columns, 0, columns->weight.size()));
    std::vector<double> sum;
    sum.reserve(columns->weight.size());
    each_block(alone, stations, PathMetric::end_to_end,
               [&](const auto&, std::size_t, std::size_t n, const double* latency) {
                 sum.insert(sum.end(), latency, latency + n);
                 return true;
               });
    return sum;
  };
  PrefixTimes times;
  for (std::size_t model = 0; model < prefix.early.size(); ++model)
    times.early_s.push_back(sums(model, prefix.early[model]));
  times.late_s = sums(paths.models() - 2, prefix.late);
  return times;
}

std::vector<double> least_quantiles(const PrefixPaths& prefix, const PrefixTimes& times, std::span<const double> last_s,
                                    std::size_t levels, std::int64_t spare) {
  Histogram slow;
  const std::size_t late = times.late_s.size();
  std::vector<std::int32_t> staying(late), moving(late);
  for (std::size_t model = 0; model < times.early_s.size(); ++model) {
    std::vector<std::int32_t> bin(times.early_s[model].size());
    find_bins(bin.size(), times.early_s[model].data(), bin.data());
    for (std::size_t p = 0; p < bin.size(); ++p) slow.add(bin[p], prefix.early[model]->weight[p]);
  }
  std::vector<double> to_the_end(times.late_s);
  add_samples(late, last_s.data(), prefix.late->sample.back().data(), to_the_end.data());
  find_bins(late, times.late_s.data(), staying.data());
  find_bins(late, to_the_end.data(), moving.data());
  for (std::size_t p = 0; p < late; ++p) slow.add(staying[p], prefix.late->weight[p]);
  std::vector<double> least;
  std::size_t moved = 0;
  for (std::size_t level = 0; level < levels; ++level) {
    for (; moved < late && prefix.escalates[moved] <= static_cast<std::int32_t>(level); ++moved) {
      slow.add(staying[moved], -prefix.late->weight[moved]);
      slow.add(moving[moved], prefix.late->weight[moved]);
    }
    least.push_back(moved == 0 ? 0 : slow.quantile(spare));
  }
  return least;
}

bool too_slow(const PrefixPaths& prefix, const PrefixTimes& times, std::span<const double> last_s, std::int32_t level,
              double limit_s, std::int64_t spare) {
  const auto& levels = prefix.escalates;
  const auto moving = static_cast<std::size_t>(std::upper_bound(levels.begin(), levels.end(), level) - levels.begin());
  if (moving == 0) return false;
  const std::int64_t* weight = prefix.late->weight.data();
  std::int64_t above = sum_above(levels.size() - moving, times.late_s.data() + moving, weight + moving, limit_s);
  for (std::size_t model = 0; model < times.early_s.size(); ++model)
    above += sum_above(times.early_s[model].size(), times.early_s[model].data(), prefix.early[model]->weight.data(),
                       limit_s);
  std::array<double, kBlock> sum;
  for (std::size_t begin = 0; begin < moving && above <= spare; begin += kBlock) {
    const std::size_t n = std::min(kBlock, moving - begin);
    std::copy_n(times.late_s.data() + begin, n, sum.data());
    add_samples(n, last_s.data(), prefix.late->sample.back().data() + begin, sum.data());
    above += sum_above(n, sum.data(), weight + begin, limit_s);
  }
  return above > spare;
}

double weighted_quantile(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                         std::int64_t spare) {
  std::vector<std::pair<double, std::int64_t>> slowest;
  each_block(paths, stations, metric, [&](const auto& group, std::size_t begin, std::size_t n, const double* latency) {
    for (std::size_t p = 0; p < n; ++p) slowest.emplace_back(latency[p], group.weight()[begin + p]);
    return true;
  });
  std::make_heap(slowest.begin(), slowest.end());
  std::int64_t above = paths.above;
  while (true) {
    const auto [latency_s, weight] = slowest.front();
    above += weight;
    if (above > spare || slowest.size() == 1) return latency_s;
    std::pop_heap(slowest.begin(), slowest.end());
    slowest.pop_back();
  }
}

RoutedPaths undecided(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                      double limit_s) {
  RoutedPaths left;
  left.above = paths.above;
  std::vector<std::shared_ptr<PathColumns>> columns;
  for (const auto& group : paths.groups) {
    columns.push_back(std::make_shared<PathColumns>());
    columns.back()->sample.resize(group.stations.size());
    left.groups.push_back({columns.back(), 0, 0, group.stations, group.delay_s, group.streams});
  }
  each_block(paths, stations, metric, [&](const auto& group, std::size_t begin, std::size_t n, const double* latency) {
    const auto at = static_cast<std::size_t>(&group - paths.groups.data());
    for (std::size_t p = 0; p < n; ++p) {
      if (latency[p] > limit_s) {
        left.above += group.weight()[begin + p];
        continue;
      }
      ++left.groups[at].count;
      columns[at]->weight.push_back(group.weight()[begin + p]);
      for (std::size_t v = 0; v < group.stations.size(); ++v)
        columns[at]->sample[v].push_back(group.sample(v)[begin + p]);
    }
    return true;
  });
  return left;
}

}  // namespace cascadia
