#include <pybind11/stl.h>

#include "bindings_arrays.hpp"
#include "exact.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

// Prompt and answer lengths, and how much answers vary within each cell where they do.
LengthCells cells_of(const std::vector<Floats>& arrays) {
  require(arrays.size() == 2 || arrays.size() == 3,
          "Length cells are " + std::to_string(arrays.size()) + " arrays: give tokens_in, tokens_out and spread_out.");
  for (const Floats& array : arrays)
    require(array.size() == arrays[0].size() && array.size() > 0,
            "Length cells need prompt and answer lengths of one size, at least one each.");
  LengthCells cells;
  std::array<std::vector<double>*, 3> parts{&cells.tokens_in, &cells.tokens_out, &cells.spread_out};
  for (std::size_t i = 0; i < arrays.size(); ++i) parts[i]->assign(view(arrays[i]).begin(), view(arrays[i]).end());
  require_spread(cells);
  return cells;
}

// The search views the grid's arrays, so it is kept together with them.
class BoundSearch {
 public:
  BoundSearch(const std::vector<std::vector<Replica>>& replicas, const std::vector<std::vector<Floats>>& cells,
              std::vector<Floats> share, Floats quality, const std::vector<std::size_t>& levels, Indexes routings,
              const Traffic& traffic)
      : share_(std::move(share)), quality_(std::move(quality)), routings_(std::move(routings)) {
    const std::size_t stages = replicas.size();
    require(stages > 0 && cells.size() == stages && share_.size() == stages && levels.size() + 1 == stages,
            "A cascade of " + std::to_string(stages) + " stages needs as many cells and shares, and one level fewer.");
    require(
        traffic.rate_per_s > 0 && traffic.rate_per_s < kUnreachable,
        "The rate is " + std::to_string(traffic.rate_per_s) + " requests per second: give a finite number above 0.");
    require(traffic.max_utilization > 0 && traffic.max_utilization < 1,
            "max_utilization is " + std::to_string(traffic.max_utilization) + ": give a number between 0 and 1.");
    require_quantile(traffic.scv, traffic.quantile);
    std::vector<std::shared_ptr<const StageModel>> models;
    RoutingGrid grid{levels, {}, view(quality_), view(routings_)};
    std::size_t rows = 1;
    for (std::size_t i = 0; i < stages; ++i) {
      const LengthCells stage_cells = cells_of(cells[i]);
      require(static_cast<std::size_t>(share_[i].size()) == rows * stage_cells.size(),
              "share[" + std::to_string(i) + "] must have shape (" + std::to_string(rows) + ", " +
                  std::to_string(stage_cells.size()) + ").");
      require_share(view(share_[i]), "share[" + std::to_string(i) + "]");
      const py::gil_scoped_release release;
      models.push_back(std::make_shared<const StageModel>(replicas[i], stage_cells));
      grid.share.push_back(view(share_[i]));
      if (i < levels.size()) rows *= levels[i];
    }
    require(static_cast<std::size_t>(quality_.size()) == rows,
            "quality must have one entry per threshold combination.");
    check_routings(levels);
    search_ = std::make_unique<CascadeSearch>(std::move(models), std::move(grid), traffic);
  }

  CascadeSearch& operator*() const { return *search_; }
  CascadeSearch* operator->() const { return search_.get(); }

  std::size_t checked_stage(std::size_t stage) const {
    require(stage < share_.size(),
            "Stage " + std::to_string(stage) + " is not one of the " + std::to_string(share_.size()) + " stages.");
    return stage;
  }

  // Index -1 stands for no replicas.
  void check_choice(std::size_t stage, int shape, int replicas) const {
    const int shapes = static_cast<int>(search_->stage(checked_stage(stage)).shapes().size());
    require(shape >= -1 && shape < shapes && replicas >= (shape < 0 ? 0 : 1) && replicas <= 1'000'000,
            "Shape " + std::to_string(shape) + " with " + std::to_string(replicas) +
                " replicas is not a deployment of stage " + std::to_string(stage) + ", which has " +
                std::to_string(shapes) + " shapes.");
  }

  std::size_t checked_routing(std::size_t routing) const {
    require(routing < search_->grid().count(), "Routing " + std::to_string(routing) + " is not one of the " +
                                                   std::to_string(search_->grid().count()) + " distinct routings.");
    return routing;
  }

 private:
  void check_routings(const std::vector<std::size_t>& levels) const {
    const auto flat = view(routings_);
    if (levels.empty()) return;
    require(!flat.empty() && flat.size() % levels.size() == 0, "routings must have shape (R, thresholds), R > 0.");
    for (std::size_t i = 0; i < flat.size(); ++i)
      require(flat[i] >= 0 && static_cast<std::size_t>(flat[i]) < levels[i % levels.size()],
              "routings has a level index that its threshold does not have.");
  }

  std::vector<Floats> share_;
  Floats quality_;
  Indexes routings_;
  std::unique_ptr<CascadeSearch> search_;
};

py::dict evaluate_stage(const BoundSearch& search, std::size_t routing, std::size_t stage, int shape, int replicas) {
  search.check_choice(stage, shape, replicas);
  require(shape >= 0, "Shape -1 stands for no replicas: there is nothing to evaluate.");
  search.checked_routing(routing);
  StageEvaluation result;
  {
    // Another thread may hold the search's lock and wait for the GIL.
    const py::gil_scoped_release release;
    result = search->evaluate(routing, stage, shape, replicas);
  }
  const auto nodes = static_cast<py::ssize_t>(result.nodes);
  const auto cells = static_cast<py::ssize_t>(result.latency_s.size()) / nodes;
  return py::dict("p95_s"_a = result.quantile_s, "reach"_a = result.reach, "capacity_per_s"_a = result.capacity_per_s,
                  "utilization"_a = result.utilization, "batch_limit"_a = result.batch_limit,
                  "mean_batch"_a = result.mean_batch, "latency_s"_a = read_only(result.latency_s, {nodes, cells}),
                  "first_token_s"_a = read_only(result.first_token_s, {nodes, cells}));
}

py::tuple table_of(const BoundSearch& search, std::size_t routing, std::size_t stage, int gpus, int threads) {
  require(gpus >= 0 && gpus <= 1'000'000, "A table of " + std::to_string(gpus) + " GPUs is out of range (0 to 1e6).");
  search.checked_routing(routing);
  search.checked_stage(stage);
  std::vector<Choice> table;
  {
    const py::gil_scoped_release release;
    table =
        latency_table(search->stage(stage), search->share(routing, stage), search->traffic(), gpus, threads, signals());
  }
  std::vector<double> latency;
  std::vector<std::int32_t> shape, replicas;
  for (const Choice& choice : table) {
    latency.push_back(choice.latency_s);
    shape.push_back(choice.shape);
    replicas.push_back(choice.replicas);
  }
  return py::make_tuple(read_only(latency), read_only(shape), read_only(replicas));
}

}  // namespace

void register_search(py::module_& m) {
  py::class_<Choice>(m, "Choice", "How one stage is deployed: `replicas` engines of one shape (-1: nothing runs).")
      .def(py::init<int, int, int, double>(), "shape"_a, "replicas"_a, "gpus"_a, "latency_s"_a)
      .def_readonly("shape", &Choice::shape)
      .def_readonly("replicas", &Choice::replicas)
      .def_readonly("gpus", &Choice::gpus)
      .def_readonly("latency_s", &Choice::latency_s);
  py::class_<Traffic>(m, "Traffic", "Arrivals at the cascade and what a deployment must keep to.")
      .def(
          py::init([](double rate_per_s, double scv, double max_utilization, double quantile, bool keeps,
                      const std::optional<Floats>& dispersion) {
            return Traffic{rate_per_s, scv, max_utilization, quantile, keeps, dispersion_of(dispersion)};
          }),
          py::kw_only(), "rate_per_s"_a, "scv"_a = 1.0, "max_utilization"_a = 0.9, "quantile"_a = 0.95,
          "idle_stage_keeps_replica"_a = false, "dispersion"_a = std::nullopt,
          "rate_per_s: of requests entering; scv: squared coefficient of variation of their gaps; dispersion: index of "
          "dispersion of their counts over windows of 1, 2, 4 ... mean gaps, where gaps are not independent.");
  py::class_<ExactResult>(m, "ExactResult", "What `CascadeSearch.exact` found and how; routing -1: no plan exists.")
      .def_readonly("routing", &ExactResult::routing)
      .def_property_readonly("stages", [](const ExactResult& r) { return r.allocation.stages; })
      .def_readonly("meet_floor", &ExactResult::meet_floor)
      .def_readonly("evaluated", &ExactResult::evaluated)
      .def_readonly("pruned_by_load", &ExactResult::pruned_by_load)
      .def_readonly("pruned_by_need", &ExactResult::pruned_by_need)
      .def_readonly("pruned_by_latency", &ExactResult::pruned_by_latency);
  py::class_<RouteResult>(m, "RouteResult",
                          "What `CascadeSearch.route` found; infinite objective: overload everywhere.")
      .def_readonly("routing", &RouteResult::routing)
      .def_readonly("objective", &RouteResult::objective)
      .def_readonly("latency_s", &RouteResult::latency_s)
      .def_readonly("utilization", &RouteResult::utilization)
      .def_readonly("evaluated", &RouteResult::evaluated);
  py::class_<BoundSearch>(m, "CascadeSearch", "One workload on one fleet: routing and deployment together.")
      .def(py::init<const std::vector<std::vector<Replica>>&, const std::vector<std::vector<Floats>>&,
                    std::vector<Floats>, Floats, const std::vector<std::size_t>&, Indexes, const Traffic&>(),
           py::kw_only(), "replicas"_a, "cells"_a, "share"_a, "quality"_a, "levels"_a, "routings"_a, "traffic"_a,
           "replicas: candidate engines per stage, one per shape. cells: (tokens_in, tokens_out, spread_out) per "
           "stage.\n\n"
           "share, quality, levels (counts), routings: those of routing.RoutingGrid.")
      .def(
          "exact",
          [](const BoundSearch& search, int gpus, double quality_floor, const std::vector<int>& previous_gpus) {
            const py::gil_scoped_release release;
            return search->exact(gpus, quality_floor, previous_gpus, signals());
          },
          "gpus"_a, "quality_floor"_a, "previous_gpus"_a = std::vector<int>{},
          "Least p95 of the slowest stage over every routing that meets the floor; ties broken lexicographically.")
      .def(
          "deploy",
          [](const BoundSearch& search, std::size_t routing, int gpus) {
            search.checked_routing(routing);
            const py::gil_scoped_release release;
            return search->deploy(routing, gpus).stages;
          },
          "routing"_a, "gpus"_a,
          "Best deployment of one routing, a Choice per stage; empty when the GPUs do not suffice.")
      .def(
          "route",
          [](const BoundSearch& search, const std::vector<Choice>& deployment, double quality_floor, double mu_s,
             double span) {
            require(span > 0 && mu_s >= 0, "The Chebyshev objective needs span > 0 and mu >= 0.");
            require(deployment.size() == search->grid().share.size(), "The deployment needs one Choice per stage.");
            for (std::size_t i = 0; i < deployment.size(); ++i)
              search.check_choice(i, deployment[i].shape, deployment[i].replicas);
            const py::gil_scoped_release release;
            return search->route(deployment, quality_floor, mu_s, span, signals());
          },
          "deployment"_a, "quality_floor"_a, "mu_s"_a, "span"_a,
          "Routing that minimises L + mu_s * max(0, floor - Q) / span on a fixed deployment.")
      .def(
          "single",
          [](const BoundSearch& search, std::size_t stage, int gpus) {
            search.checked_stage(stage);
            const py::gil_scoped_release release;
            return search->single(stage, gpus);
          },
          "stage"_a, "gpus"_a, "Best deployment of one stage when it alone answers every request.")
      .def(
          "columns",
          [](const BoundSearch& search, std::size_t routing, double latency_s, int gpus) {
            search.checked_routing(routing);
            const py::gil_scoped_release release;
            return search->columns(routing, latency_s, gpus);
          },
          "routing"_a, "latency_s"_a, "gpus"_a,
          "GPU counts per stage that can matter to an optimum of at most latency_s.")
      .def(
          "smallest_engine",
          [](const BoundSearch& search, std::size_t stage) {
            search.checked_stage(stage);
            return search->stage(stage).least_gpus();
          },
          "stage"_a, "GPUs of the smallest engine that can serve the stage's longest request; 0: none can.")
      .def("table", &table_of, "routing"_a, "stage"_a, "gpus"_a, "threads"_a = 1,
           "The paper's look-up table l_i(f), f = 0..gpus: (latency_s, shape, replicas).")
      .def("evaluate", &evaluate_stage, "routing"_a, "stage"_a, "shape"_a, "replicas"_a,
           "One stage of one deployment in detail; samples have shape (nodes, cells).")
      .def(
          "max_rate_per_s",
          [](const BoundSearch& search, int gpus, double quality_floor) {
            const py::gil_scoped_release release;
            return search->max_rate_per_s(gpus, quality_floor);
          },
          "gpus"_a, "quality_floor"_a, "Largest rate that any allocation carries under the utilisation cap; 0: none.")
      .def(
          "least_gpus",
          [](const BoundSearch& search, double quality_floor) {
            const py::gil_scoped_release release;
            return search->least_gpus(quality_floor);
          },
          "quality_floor"_a, "Fewest GPUs that carry the rate under the utilisation cap; inf: no number does.")
      .def(
          "lightest",
          [](const BoundSearch& search, double quality_floor) {
            const py::gil_scoped_release release;
            return search->lightest(quality_floor);
          },
          "quality_floor"_a, "The routing that least_gpus is for; -1: none.");
}

}  // namespace cascadia
