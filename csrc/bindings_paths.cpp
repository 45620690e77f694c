#include <pybind11/stl.h>

#include <cmath>

#include "bindings_search.hpp"
#include "path_search.hpp"
#include "vector_math.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

std::string text(std::size_t number) { return std::to_string(number); }

LatencyMetric metric_of(const std::string& name) {
  if (name == "max_stage_p95") return LatencyMetric::max_stage;
  if (name == "end_to_end_p95") return LatencyMetric::end_to_end;
  require(name == "ttft_p95", "metric is '" + name + "': use 'max_stage_p95', 'end_to_end_p95' or 'ttft_p95'.");
  return LatencyMetric::ttft;
}

void require_quantile_of(double q) {
  require(q > 0 && q < 1, "The quantile is " + std::to_string(q) + ": give a number between 0 and 1.");
}

void check_samples(std::span<const std::int32_t> samples, std::size_t columns, std::size_t column, std::size_t size,
                   const std::string& name) {
  for (std::size_t at = column; at < samples.size(); at += columns)
    require(samples[at] >= 0 && static_cast<std::size_t>(samples[at]) < size,
            name + " of path " + text(at / columns) + " is " + std::to_string(samples[at]) + " and there are " +
                text(size) + " samples.");
}

std::size_t samples_of(const StageModel& stage) {
  return stage.shapes().empty() ? 0 : stage.cells() * stage.shapes()[0].nodes().per_cell;
}

// What a path search is asked for; the arrays are the caller's, who holds them until the answer is there.
struct Asked {
  Routings candidates;
  Indexes gpus;
  std::string metric, minimise;
  std::array<double, 3> limits_s;
  std::vector<double> usd_per_gpu;
  std::optional<Floats> fixed_usd;
  double budget_usd;
};

class BoundPaths {
 public:
  BoundPaths(const BoundSearch& search, const Indexes& escalates, const Indexes& sample,
             const std::optional<Indexes>& judge_sample, const Floats& weight, double judge_delay_s, std::size_t pools)
      : search_(search), pools_(pools) {
    const std::size_t models = search->grid().thresholds() + 1, stations = search->grid().stations();
    const auto paths = static_cast<std::size_t>(weight.size());
    require(stations == models + (judge_sample ? 1 : 0),
            "The search has " + text(stations) + " stations for " + text(models) +
                " models: give judge_sample if, and only if, a judge is one of them.");
    require(paths > 0 && static_cast<std::size_t>(escalates.size()) == paths * (models - 1) &&
                static_cast<std::size_t>(sample.size()) == paths * stations &&
                (!judge_sample || static_cast<std::size_t>(judge_sample->size()) == paths * (models - 1)),
            "For P paths give escalates (P, " + text(models - 1) + "), sample (P, " + text(stations) +
                "), judge_sample (P, " + text(models - 1) + ") and weight (P,), P > 0.");
    require_share(view(weight), "weight");
    require(sum(view(weight)) > 0, "All paths have weight 0: give weights above 0.");
    require(judge_delay_s >= 0 && judge_delay_s < 1e12,
            "judge_delay_s is " + std::to_string(judge_delay_s) + ": give seconds, 0 or more.");
    for (std::size_t j = 0; j < stations; ++j)
      if (!judge_sample || j + 2 != stations)
        check_samples(view(sample), stations, j, samples_of(search->stage(j)), "sample[" + text(j) + "]");
    if (judge_sample) check_samples(view(*judge_sample), 1, 0, samples_of(search->stage(stations - 2)), "judge_sample");
    for (const SearchStation& station : search->setting().stations)
      for (const int pool : station.pools)
        require(pool >= 0 && static_cast<std::size_t>(pool) < pools,
                "An engine belongs to pool " + std::to_string(pool) + " and there are " + text(pools) + " pools.");
    const auto& levels = search->grid().levels;
    for (std::size_t at = 0; at < static_cast<std::size_t>(escalates.size()); ++at) {
      const std::int32_t level = escalates.data()[at];
      require(level >= 0 && static_cast<std::size_t>(level) <= levels[at % (models - 1)],
              "escalates of path " + text(at / (models - 1)) + " is " + std::to_string(level) +
                  " and its threshold has " + text(levels[at % (models - 1)]) + " levels.");
    }
    const Paths::Arrays arrays{view(escalates), view(sample),
                               judge_sample ? view(*judge_sample) : std::span<const std::int32_t>{}, view(weight),
                               judge_delay_s};
    paths_ = std::make_unique<PathSearch>(*search, Paths(arrays, models));
  }

  PathSearch* operator->() const { return paths_.get(); }

  PathQuery query(const Asked& asked) const {
    search_.check_candidates(asked.candidates);
    const auto count = static_cast<std::size_t>(asked.candidates.size());
    require(static_cast<std::size_t>(asked.gpus.size()) == count * pools_,
            "gpus must have shape (" + text(count) + ", " + text(pools_) + "): candidates and pools.");
    require(asked.usd_per_gpu.size() == pools_,
            "usd_per_gpu has " + text(asked.usd_per_gpu.size()) + " prices and there are " + text(pools_) + " pools.");
    for (const double usd : asked.usd_per_gpu)
      require(usd > 0 && usd < kUnreachable,
              "usd_per_gpu has " + std::to_string(usd) + ": give finite prices above 0.");
    for (const double limit_s : asked.limits_s)
      require(limit_s >= 0, "limits_s has " + std::to_string(limit_s) + ": give seconds, or inf for no ceiling.");
    require(asked.budget_usd >= 0, "budget_usd is " + std::to_string(asked.budget_usd) + ": give a number, or inf.");
    require(!asked.fixed_usd || static_cast<std::size_t>(asked.fixed_usd->size()) == count,
            "fixed_usd must have one number for each candidate.");
    if (asked.fixed_usd)
      for (const double usd : view(*asked.fixed_usd))
        require(usd >= 0 && usd < kUnreachable,
                "fixed_usd has " + std::to_string(usd) + ": give finite numbers of at least 0.");
    PathQuery query;
    query.goal.minimise = minimise_of(asked.minimise);
    query.goal.metric = metric_of(asked.metric);
    query.goal.limits_s = asked.limits_s;
    query.goal.usd_per_gpu = asked.usd_per_gpu;
    query.goal.budget_usd = asked.budget_usd;
    query.candidates = view(asked.candidates);
    query.gpus = view(asked.gpus);
    if (asked.fixed_usd) query.fixed_usd = view(*asked.fixed_usd);
    return query;
  }

  double quantile(std::size_t routing, const std::vector<Choice>& stages, const std::string& metric, double q) const {
    search_.checked_routing(routing);
    require_quantile_of(q);
    require(stages.size() == search_->grid().stations(),
            "A deployment needs one Choice for each of the " + text(search_->grid().stations()) + " stations.");
    for (std::size_t i = 0; i < stages.size(); ++i) search_.check_choice(i, stages[i]);
    const LatencyMetric of = metric_of(metric);
    const py::gil_scoped_release release;
    return paths_->quantile_s(routing, stages, of, q);
  }

  using Group = std::tuple<double, Floats, Floats>;  // share, latency_s, first_token_s

  double quantile_of(std::size_t routing, const std::vector<std::vector<Group>>& stations, const std::string& metric,
                     double q) const {
    search_.checked_routing(routing);
    require_quantile_of(q);
    const LatencyMetric of = metric_of(metric);
    require(of != LatencyMetric::max_stage, "quantile_of adds up whole paths: give 'end_to_end_p95' or 'ttft_p95'.");
    require(stations.size() == search_->grid().stations(),
            "Give the groups of each of the " + text(search_->grid().stations()) + " stations.");
    std::vector<std::vector<StationGroup>> groups(stations.size());
    for (std::size_t i = 0; i < stations.size(); ++i)
      for (const auto& [share, latency_s, first_token_s] : stations[i]) {
        const std::size_t size = samples_of(search_->stage(i));
        require(share > 0 && share < kUnreachable,
                "A group of station " + text(i) + " takes the share " + std::to_string(share) + ": give one above 0.");
        require(static_cast<std::size_t>(latency_s.size()) == size && first_token_s.size() == latency_s.size(),
                "Samples of station " + text(i) + " must have " + text(size) + " entries: (nodes, cells).");
        groups[i].push_back({share, view(latency_s), view(first_token_s)});
      }
    const py::gil_scoped_release release;
    return paths_->quantile_s(routing, groups, path_metric(of), q);
  }

 private:
  const BoundSearch& search_;
  std::size_t pools_;
  std::unique_ptr<PathSearch> paths_;
};

}  // namespace

void register_paths(py::module_& m) {
  py::class_<BoundPaths>(m, "PathSearch", "Routing and deployment together for latencies of whole paths.")
      .def(py::init<const BoundSearch&, const Indexes&, const Indexes&, const std::optional<Indexes>&, const Floats&,
                    double, std::size_t>(),
           py::kw_only(), py::keep_alive<1, 2>(), "search"_a, "escalates"_a, "sample"_a, "judge_sample"_a, "weight"_a,
           "judge_delay_s"_a, "pools"_a = 1,
           "escalates: (P, C - 1), lowest level index at which a path leaves each model for the next. sample: (P, "
           "stations), index node * cells + cell into each station's samples. judge_sample: (P, C - 1), the same of a "
           "hosted judge's calls, whose column of sample is not used; None: every call takes judge_delay_s.")
      .def("quantile", &BoundPaths::quantile, "routing"_a, "stages"_a, "metric"_a, "q"_a = 0.95,
           "Quantile of a latency under one deployment, in seconds; inf where it cannot carry the load.")
      .def("quantile_of", &BoundPaths::quantile_of, py::kw_only(), "routing"_a, "stations"_a, "metric"_a, "q"_a = 0.95,
           "Quantile of a latency over whole paths. stations: for each its groups of replicas as (share of its "
           "requests, "
           "latency_s, first_token_s), samples of shape (nodes, cells); none where nobody gets to it.")
      .def(
          "exact",
          [](const BoundPaths& paths, const Routings& candidates, const Indexes& gpus, const std::string& metric,
             const std::string& minimise, const std::array<double, 3>& limits_s, const std::vector<double>& usd_per_gpu,
             const std::optional<Floats>& fixed_usd, double budget_usd, const std::vector<int>& previous_gpus,
             double beat, double time_limit_s, int threads) {
            const Asked asked{candidates, gpus, metric, minimise, limits_s, usd_per_gpu, fixed_usd, budget_usd};
            PathQuery query = paths.query(asked);
            query.goal.previous_gpus = previous_gpus;
            require(!std::isnan(beat), "beat is not a number: give the largest value of interest, or inf.");
            require(time_limit_s > 0, "time_limit_s is " + std::to_string(time_limit_s) + ": give seconds above 0.");
            query.beat = beat;
            query.time_limit_s = time_limit_s;
            query.threads = threads;
            const py::gil_scoped_release release;
            return paths->exact(query, signals());
          },
          py::kw_only(), "candidates"_a, "gpus"_a, "metric"_a, "minimise"_a = "latency",
          "limits_s"_a = std::array<double, 3>{kUnreachable, kUnreachable, kUnreachable},
          "usd_per_gpu"_a = std::vector<double>{1.0}, "fixed_usd"_a = std::nullopt, "budget_usd"_a = kUnreachable,
          "previous_gpus"_a = std::vector<int>{}, "beat"_a = kUnreachable, "time_limit_s"_a = kUnreachable,
          "threads"_a = 1, "The best plan over all candidates.")
      .def(
          "front",
          [](const BoundPaths& paths, const Routings& candidates, const Indexes& gpus, const std::string& metric,
             const std::string& minimise, const std::array<double, 3>& limits_s, const std::vector<double>& usd_per_gpu,
             const std::optional<Floats>& fixed_usd, double budget_usd, int threads) {
            const Asked asked{candidates, gpus, metric, minimise, limits_s, usd_per_gpu, fixed_usd, budget_usd};
            PathQuery query = paths.query(asked);
            query.threads = threads;
            const py::gil_scoped_release release;
            return paths->front(query, signals());
          },
          py::kw_only(), "candidates"_a, "gpus"_a, "metric"_a, "minimise"_a = "latency",
          "limits_s"_a = std::array<double, 3>{kUnreachable, kUnreachable, kUnreachable},
          "usd_per_gpu"_a = std::vector<double>{1.0}, "fixed_usd"_a = std::nullopt, "budget_usd"_a = kUnreachable,
          "threads"_a = 1, "The candidates whose value is below that of every one before, in their order.");
}

}  // namespace cascadia
