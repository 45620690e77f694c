// What one request sees: sampled paths through the cascade, each with its own draw at every station, and the weighted
// quantile of their latencies. Lengths of one request correlate over the models, so quantiles are never added.
#pragma once
#include <cstdint>
#include <memory>
#include <span>
#include <vector>

namespace cascadia {

enum class PathMetric { end_to_end, ttft };

// Samples of one deployment of one station, by node * cells + cell.
struct StationSamples {
  std::vector<double> latency_s, first_token_s;
  double p95_s = 0;

  // What the last model of a path adds to a metric.
  std::span<const double> of(PathMetric metric) const { return metric == PathMetric::ttft ? first_token_s : latency_s; }
};

// Paths side by side.
struct PathColumns {
  std::vector<std::vector<std::int32_t>> sample;  // [visit][path]
  std::vector<std::int64_t> weight;
};

// The paths of one routing by the model that accepts them.
struct RoutedPaths {
  struct Group {
    std::shared_ptr<const PathColumns> columns;
    std::size_t begin = 0, count = 0;   // of them
    std::vector<std::size_t> stations;  // that such a path visits, hosted judge calls included
    double delay_s = 0;                 // of judge calls that are a constant
    bool streams = false;               // the last model that is reached shows its answer while it writes

    const std::int32_t* sample(std::size_t visit) const { return columns->sample[visit].data() + begin; }
    const std::int64_t* weight() const { return columns->weight.data() + begin; }
  };
  std::vector<Group> groups;
  std::int64_t above = 0;  // weight of paths left out because they are above the limit anyway
};

// The paths under all thresholds but the last: where it stands decides only how many of the late ones escalate.
struct PrefixPaths {
  std::vector<std::shared_ptr<PathColumns>> early;  // accepted by each model but the last two
  std::shared_ptr<PathColumns> late;                // in the order of `escalates`; visits up to the last model
  std::vector<std::int32_t> escalates;              // of the late ones: lowest level of the last threshold
};

class Paths {
 public:
  // The caller's arrays, row-major, one row per path.
  struct Arrays {
    std::span<const std::int32_t> escalates;     // [path][model but the last]: lowest level index that sends it on
    std::span<const std::int32_t> sample;        // [path][station]
    std::span<const std::int32_t> judge_sample;  // [path][model but the last]; empty: judge calls take `judge_delay_s`
    std::span<const double> weight;
    double judge_delay_s = 0;
  };
  Paths(const Arrays& arrays, std::size_t models);

  std::size_t size() const { return weight_.size(); }
  std::size_t models() const { return models_; }
  std::size_t stations() const { return models_ + (judged_by_.empty() ? 0 : 1); }
  bool hosted_judge() const { return !judged_by_.empty(); }
  std::size_t judge_station() const { return models_ - 1; }
  // Stations are in the order of the models, a hosted judge just before the last.
  std::size_t station_of(std::size_t model) const { return model + 1 < models_ ? model : stations() - 1; }
  // The most weight that may lie above the q-quantile.
  std::int64_t spare_weight(double q) const;

  // Each path at one of a station's groups of replicas, which take these shares of its requests; the samples of the
  // groups lie behind one another, so many each.
  Paths over_groups(std::span<const std::vector<double>> shares, std::span<const std::size_t> samples) const;

  // `levels` of all thresholds but the last, and of the last.
  PrefixPaths prefix(std::span<const std::int32_t> levels) const;
  RoutedPaths routed(const PrefixPaths& prefix, std::int32_t last_level) const;
  // Some paths as if a model accepted them all; it is the last that is reached, or not.
  RoutedPaths::Group group(std::size_t accepted_by, bool streams, std::shared_ptr<const PathColumns> columns,
                           std::size_t begin, std::size_t end) const;

 private:
  void append(PathColumns& columns, std::size_t model, std::span<const std::int32_t> paths) const;

  std::size_t models_;
  double judge_delay_s_;
  // [model or station][path], the paths in the order of the last level they escalate at
  std::vector<std::vector<std::int32_t>> escalates_, sample_, judged_by_;
  std::vector<std::size_t> row_;  // of the caller's arrays
  // Whole numbers, so that sums do not depend on their order and "is the quantile at most L?" has one answer.
  std::vector<std::int64_t> weight_;
  std::int64_t total_ = 0;
};

// Weight of the paths slower than `limit_s`; once it is more than `enough`, some number above that.
std::int64_t weight_above(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                          double limit_s, std::int64_t enough);
// Latencies of a prefix's paths up to the last model, which is left out, under some samples of the other stations.
struct PrefixTimes {
  std::vector<std::vector<double>> early_s;
  std::vector<double> late_s;
};

PrefixTimes times_of(const Paths& paths, const PrefixPaths& prefix, std::span<const StationSamples* const> stations);
// For every level of the last threshold a lower bound of the quantile, less than 1 % below it; 0 where no path gets to
// the last model, which makes the one before the last. `last_s` are samples of the last station.
std::vector<double> least_quantiles(const PrefixPaths& prefix, const PrefixTimes& times, std::span<const double> last_s,
                                    std::size_t levels, std::int64_t spare);
// Whether more than `spare` of the weight is above the limit at a level; false where no path gets to the last model.
bool too_slow(const PrefixPaths& prefix, const PrefixTimes& times, std::span<const double> last_s, std::int32_t level,
              double limit_s, std::int64_t spare);
// The least latency with at most `spare` of the weight above it; paths that are left out are above it.
double weighted_quantile(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                         std::int64_t spare);
// The paths that these samples do not put above the limit.
RoutedPaths undecided(const RoutedPaths& paths, std::span<const StationSamples* const> stations, PathMetric metric,
                      double limit_s);

}  // namespace cascadia
