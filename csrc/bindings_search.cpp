#include "bindings_search.hpp"

#include <pybind11/stl.h>

namespace cascadia {

using namespace pybind11::literals;

Minimise minimise_of(const std::string& name) {
  if (name == "latency") return Minimise::latency;
  if (name == "spend") return Minimise::spend;
  require(name == "any", "minimise is '" + name + "': use 'latency', 'spend' or 'any'.");
  return Minimise::any;
}

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

BoundModels models_of(const std::vector<std::vector<Replica>>& replicas, const std::vector<std::vector<Floats>>& cells,
                      const std::optional<std::vector<std::vector<int>>>& pools) {
  require(!replicas.empty() && cells.size() == replicas.size(),
          "There are engines of " + std::to_string(replicas.size()) + " models and length cells of " +
              std::to_string(cells.size()) + ": give as many, and at least one.");
  BoundModels models;
  for (std::size_t i = 0; i < replicas.size(); ++i) {
    models.pools.emplace_back(replicas[i].size(), 0);
    if (pools) {
      require(pools->size() == replicas.size() && (*pools)[i].size() == replicas[i].size(),
              "pools must name a pool for each engine of each model.");
      models.pools.back() = (*pools)[i];
    }
    const LengthCells lengths = cells_of(cells[i]);
    const py::gil_scoped_release release;
    models.models.push_back(std::make_shared<const StageModel>(replicas[i], lengths));
  }
  return models;
}

// The arrays are the caller's, who holds them until the answer is there.
Question question_of(const BoundSearch& search, const Routings& candidates, const Indexes& gpus,
                     const std::string& minimise, double limit_s, double usd_per_gpu,
                     const std::optional<Floats>& fixed_usd) {
  search.check_candidates(candidates);
  require(gpus.size() == 1 || gpus.size() == candidates.size(),
          "gpus has " + std::to_string(gpus.size()) + " numbers for " + std::to_string(candidates.size()) +
              " candidates: give one for each, or one for all.");
  require(!std::isnan(limit_s) && limit_s >= 0, "limit_s is " + std::to_string(limit_s) + ": give seconds, or inf.");
  require(usd_per_gpu > 0 && usd_per_gpu < kUnreachable,
          "usd_per_gpu is " + std::to_string(usd_per_gpu) + ": give a finite price above 0.");
  Question question;
  question.candidates = view(candidates);
  question.gpus = view(gpus);
  question.minimise = minimise_of(minimise);
  question.limit_s = limit_s;
  question.usd_per_gpu = usd_per_gpu;
  if (fixed_usd) {
    require(fixed_usd->size() == candidates.size(), "fixed_usd must have one number for each candidate.");
    for (const double usd : view(*fixed_usd))
      if (!(usd >= 0 && usd < kUnreachable))
        throw std::invalid_argument("fixed_usd has " + std::to_string(usd) + ": give finite numbers of at least 0.");
    question.fixed_usd = view(*fixed_usd);
  }
  return question;
}

ExactResult exact(const BoundSearch& search, const Routings& candidates, const Indexes& gpus,
                  const std::string& minimise, double limit_s, double usd_per_gpu,
                  const std::optional<Floats>& fixed_usd, const std::vector<int>& previous_gpus, double beat,
                  double time_limit_s, int threads) {
  Question question = question_of(search, candidates, gpus, minimise, limit_s, usd_per_gpu, fixed_usd);
  question.previous_gpus = previous_gpus;
  question.beat = beat;
  question.time_limit_s = time_limit_s;
  question.threads = threads;
  const py::gil_scoped_release release;
  return search->exact(question, signals());
}

std::vector<ExactResult> front(const BoundSearch& search, const Routings& candidates, const Indexes& gpus,
                               const std::string& minimise, double limit_s, double usd_per_gpu,
                               const std::optional<Floats>& fixed_usd, int threads) {
  Question question = question_of(search, candidates, gpus, minimise, limit_s, usd_per_gpu, fixed_usd);
  question.threads = threads;
  const py::gil_scoped_release release;
  return search->front(question, signals());
}

std::pair<double, std::int64_t> fewest_gpus(const BoundSearch& search, const Routings& candidates) {
  search.check_candidates(candidates);
  const py::gil_scoped_release release;
  return search->fewest_gpus(view(candidates));
}

RouteResult route(const BoundSearch& search, const std::vector<Choice>& deployment, double quality_floor, double mu_s,
                  double span) {
  require(span > 0 && mu_s >= 0, "The Chebyshev objective needs span > 0 and mu >= 0.");
  require(deployment.size() == search->grid().stations(), "The deployment needs one Choice per station.");
  for (std::size_t i = 0; i < deployment.size(); ++i) search.check_choice(i, deployment[i]);
  const py::gil_scoped_release release;
  return search->route(deployment, quality_floor, mu_s, span, signals());
}

// What `work` finds, as Python takes it. Another thread may hold the search's lock and wait for the GIL meanwhile.
template <class Work>
py::dict detail_of(const Work& work) {
  StageEvaluation result;
  {
    const py::gil_scoped_release release;
    result = work();
  }
  const auto nodes = static_cast<py::ssize_t>(result.nodes);
  const auto cells = static_cast<py::ssize_t>(result.latency_s.size()) / nodes;
  return py::dict("p95_s"_a = result.quantile_s, "reach"_a = result.reach, "capacity_per_s"_a = result.capacity_per_s,
                  "utilization"_a = result.utilization, "batch_limit"_a = result.batch_limit,
                  "mean_batch"_a = result.mean_batch, "latency_s"_a = read_only(result.latency_s, {nodes, cells}),
                  "first_token_s"_a = read_only(result.first_token_s, {nodes, cells}));
}

py::dict evaluate(const BoundSearch& search, std::size_t routing, std::size_t station, const Choice& choice) {
  search.checked_routing(routing);
  search.check_choice(station, choice);
  require(choice.shape >= 0, "Shape -1 stands for no replicas: there is nothing to evaluate.");
  require(choice.fill_shape < 0, "A mixed station has two groups: evaluate each with sampled, at the rates of split.");
  return detail_of([&] { return search->evaluate(routing, station, choice.shape, choice.replicas); });
}

py::dict sampled(const BoundSearch& search, std::size_t routing, std::size_t station, int option, double rate_per_s) {
  search.checked_routing(routing);
  search.check_choice(station, {option, 1});
  require(option >= 0, "Option -1 stands for no replicas: there is nothing to evaluate.");
  require(rate_per_s > 0 && rate_per_s < kUnreachable,
          "rate_per_s is " + std::to_string(rate_per_s) + ": give a finite number above 0.");
  return detail_of([&] { return search->sampled(routing, station, option, rate_per_s); });
}

std::pair<double, double> split(const BoundSearch& search, std::size_t routing, std::size_t station,
                                const Choice& choice) {
  search.checked_routing(routing);
  search.check_choice(station, choice);
  const py::gil_scoped_release release;
  const Split parts = search->split(routing, station, choice);
  return {parts.rate_per_s, parts.fill_rate_per_s};
}

py::array_t<double> capacities(const BoundSearch& search, std::size_t station, const Routings& prefixes, double limit_s,
                               const std::optional<Floats>& enough_per_s, int threads) {
  search.checked_station(station);
  const auto rows = static_cast<std::int64_t>(search->grid().rows(station));
  for (const std::int64_t prefix : view(prefixes))
    if (prefix < 0 || prefix >= rows)
      throw std::invalid_argument("Prefix " + std::to_string(prefix) + " is not one of the " + std::to_string(rows) +
                                  " rows of the station's share.");
  require(limit_s >= 0, "limit_s is " + std::to_string(limit_s) + ": give seconds, or inf.");
  const auto options = static_cast<py::ssize_t>(search->stage(station).shapes().size());
  std::span<const double> enough;
  if (enough_per_s) enough = view(*enough_per_s);
  require(!enough_per_s || enough_per_s->size() == prefixes.size() * options,
          "enough_per_s must have shape (" + std::to_string(prefixes.size()) + ", " + std::to_string(options) + ").");
  std::vector<double> rates_per_s;
  {
    const py::gil_scoped_release release;
    rates_per_s = search->capacities(station, view(prefixes), limit_s, enough, threads, signals());
  }
  return read_only(rates_per_s, {prefixes.size(), options});
}

py::tuple table_of(const BoundSearch& search, std::size_t routing, std::size_t station, int gpus, int threads) {
  require(gpus >= 0 && gpus <= 1'000'000, "A table of " + std::to_string(gpus) + " GPUs is out of range (0 to 1e6).");
  search.checked_routing(routing);
  search.checked_station(station);
  std::vector<Choice> table;
  {
    const py::gil_scoped_release release;
    const std::vector<double> share = search->share(routing, station);
    table = latency_table(search->stage(station), share, search->traffic(), search->setting().stations[station].limits,
                          gpus, threads, signals());
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

void register_models(py::module_& m) {
  py::class_<BoundModels>(m, "Models", "Candidate engines of every model on one workload's length cells.")
      .def(py::init(&models_of), py::kw_only(), "replicas"_a, "cells"_a, "pools"_a = std::nullopt,
           "replicas: engines per model, one per option. cells: (tokens_in, tokens_out, spread_out) per model. pools: "
           "index of the pool of each engine; 0 where it is not given.")
      .def("__len__", [](const BoundModels& models) { return models.models.size(); })
      .def(
          "smallest_engine",
          [](const BoundModels& models, std::size_t model) {
            return models.models[models.checked(model)]->least_gpus();
          },
          "model"_a, "GPUs of the smallest engine that can serve the model's longest request; 0: none can.")
      .def(
          "nodes",
          [](const BoundModels& models, std::size_t model) {
            const auto shapes = models.models[models.checked(model)]->shapes();
            return shapes.empty() ? std::size_t{0} : shapes[0].nodes().per_cell;
          },
          "model"_a, "Latency samples per length cell.");
}

void register_results(py::module_& m) {
  py::class_<ExactResult>(m, "ExactResult", "What a search found and how; routing -1: there is no such plan.")
      .def_readonly("routing", &ExactResult::routing)
      .def_property_readonly("stages", [](const ExactResult& r) { return r.allocation.stages; })
      .def_readonly("worst_s", &ExactResult::worst_s)
      .def_readonly("value", &ExactResult::value)
      .def_readonly("bound", &ExactResult::bound)
      .def_readonly("complete", &ExactResult::complete)
      .def_readonly("meet_floor", &ExactResult::candidates)
      .def_readonly("evaluated", &ExactResult::evaluated)
      .def_readonly("pruned_by_load", &ExactResult::by_load)
      .def_readonly("pruned_by_need", &ExactResult::by_need)
      .def_readonly("pruned_by_latency", &ExactResult::by_latency);
  py::class_<RouteResult>(m, "RouteResult",
                          "What `CascadeSearch.route` found; infinite objective: overload everywhere.")
      .def_readonly("routing", &RouteResult::routing)
      .def_readonly("objective", &RouteResult::objective)
      .def_readonly("latency_s", &RouteResult::latency_s)
      .def_readonly("utilization", &RouteResult::utilization)
      .def_readonly("evaluated", &RouteResult::evaluated);
}

using Searches = py::class_<BoundSearch>;

void register_planning(Searches& searches) {
  searches
      .def("exact", &exact, py::kw_only(), "candidates"_a, "gpus"_a, "minimise"_a = "latency",
           "limit_s"_a = kUnreachable, "usd_per_gpu"_a = 1.0, "fixed_usd"_a = std::nullopt,
           "previous_gpus"_a = std::vector<int>{}, "beat"_a = kUnreachable, "time_limit_s"_a = kUnreachable,
           "threads"_a = 1,
           "The best plan over all candidates. latency: least p95 of the slowest station, ties broken "
           "lexicographically; spend: least usd_per_gpu * GPUs + fixed_usd, then least latency; any: some plan.")
      .def("front", &front, py::kw_only(), "candidates"_a, "gpus"_a, "minimise"_a = "latency",
           "limit_s"_a = kUnreachable, "usd_per_gpu"_a = 1.0, "fixed_usd"_a = std::nullopt, "threads"_a = 1,
           "The candidates whose value is below that of every one before, in their order.")
      .def(
          "deploy",
          [](const BoundSearch& search, std::size_t routing, int gpus) {
            search.checked_routing(routing);
            const py::gil_scoped_release release;
            return search->deploy(routing, gpus).stages;
          },
          "routing"_a, "gpus"_a,
          "Best deployment of one routing, a Choice per station; empty when the GPUs do not suffice.")
      .def("route", &route, "deployment"_a, "quality_floor"_a, "mu_s"_a, "span"_a,
           "Routing that minimises L + mu_s * max(0, floor - Q) / span on a fixed deployment.")
      .def(
          "single",
          [](const BoundSearch& search, std::size_t station, int gpus) {
            search.checked_station(station);
            const py::gil_scoped_release release;
            return search->single(station, gpus);
          },
          "station"_a, "gpus"_a, "Best deployment of one station when it alone answers every request.");
}

void register_details(Searches& searches) {
  searches
      .def(
          "columns",
          [](const BoundSearch& search, std::size_t routing, double latency_s, int gpus) {
            search.checked_routing(routing);
            const py::gil_scoped_release release;
            return search->columns(routing, latency_s, gpus);
          },
          "routing"_a, "latency_s"_a, "gpus"_a,
          "GPU counts per station that can matter to an optimum of at most latency_s.")
      .def("table", &table_of, "routing"_a, "station"_a, "gpus"_a, "threads"_a = 1,
           "The paper's look-up table l_i(f), f = 0..gpus: (latency_s, shape, replicas).")
      .def("evaluate", &evaluate, "routing"_a, "station"_a, "choice"_a,
           "One station of one deployment in detail; samples have shape (nodes, cells).")
      .def("sampled", &sampled, py::kw_only(), "routing"_a, "station"_a, "option"_a, "rate_per_s"_a,
           "The same for one engine that takes a part of the station's requests, beside any others.")
      .def("split", &split, "routing"_a, "station"_a, "choice"_a,
           "Requests per second at one replica of a deployment: of its shape, of its fill shape.")
      .def("capacities", &capacities, py::kw_only(), "station"_a, "prefixes"_a, "limit_s"_a,
           "enough_per_s"_a = std::nullopt, "threads"_a = 1,
           "The largest rate one engine takes with p95 <= limit_s and under the utilisation cap, (prefixes, options): "
           "engines hold the limit together where these add up to the station's rate. 0: it takes none. Where it is no "
           "more than enough_per_s, of the same shape, that may come back instead, which is found sooner.")
      .def(
          "share",
          [](const BoundSearch& search, std::size_t routing, std::size_t station) {
            search.checked_routing(routing);
            search.checked_station(station);
            std::vector<double> share;
            {
              const py::gil_scoped_release release;
              share = search->share(routing, station);
            }
            return read_only(share);
          },
          "routing"_a, "station"_a, "Share of all requests that reaches the station, per length cell.")
      .def(
          "max_rate_per_s",
          [](const BoundSearch& search, const Routings& candidates, const Indexes& gpus) {
            const Question question = question_of(search, candidates, gpus, "any", kUnreachable, 1, std::nullopt);
            const py::gil_scoped_release release;
            return search->max_rate_per_s(question);
          },
          "candidates"_a, "gpus"_a, "Largest rate that any allocation carries under the utilisation cap; 0: none.")
      .def(
          "least_gpus",
          [](const BoundSearch& search, const Routings& candidates) { return fewest_gpus(search, candidates).first; },
          "candidates"_a, "Fewest GPUs that carry the rate under the utilisation cap; inf: no number does.")
      .def(
          "lightest",
          [](const BoundSearch& search, const Routings& candidates) { return fewest_gpus(search, candidates).second; },
          "candidates"_a, "The candidate that least_gpus is for; -1: none.");
}

}  // namespace

void register_search(py::module_& m) {
  register_models(m);
  register_results(m);
  Searches searches(m, "CascadeSearch", "One workload on one fleet: routing and deployment together.");
  searches.def(
      py::init([](const BoundModels& models, const std::vector<std::size_t>& stations,
                  const std::vector<std::size_t>& depth, std::vector<Floats> share, Floats quality,
                  const std::vector<std::size_t>& levels, Indexes routings, const Traffic& traffic,
                  const std::vector<StageLimits>& limits,
                  const std::optional<std::tuple<Indexes, Indexes, Floats>>& requests) {
        std::optional<BoundRequests> bound;
        if (requests) bound = {std::get<0>(*requests), std::get<1>(*requests), std::get<2>(*requests)};
        return std::make_unique<BoundSearch>(models, stations, depth, std::move(share), std::move(quality), levels,
                                             std::move(routings), traffic, limits, std::move(bound));
      }),
      py::kw_only(), "models"_a, "stations"_a, "depth"_a, "share"_a, "quality"_a, "levels"_a, "routings"_a, "traffic"_a,
      "limits"_a = std::vector<StageLimits>{}, "requests"_a = std::nullopt,
      "stations: indexes into models, in the order of their depths: how many thresholds decide what reaches each.\n\n"
      "share, quality, levels (counts), routings: those of routing.RoutingGrid. The last share may be empty where "
      "requests are given: (levels they escalate at (n, C - 1), cells of the last station (n,), weights (n,)).");
  register_planning(searches);
  register_details(searches);
}

}  // namespace cascadia
