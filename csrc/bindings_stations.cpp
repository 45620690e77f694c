#include "bindings_stations.hpp"

#include <pybind11/stl.h>

#include <cmath>
#include <map>
#include <optional>
#include <tuple>
#include <variant>

namespace cascadia {

using namespace pybind11::literals;

namespace {

constexpr int kMostReplicas = 1'000'000;

template <class Choice>
Choice choose(const std::string& given, const std::string& what, const std::map<std::string, Choice>& known) {
  const auto found = known.find(given);
  if (found != known.end()) return found->second;
  std::string names;
  for (const auto& [name, choice] : known) names += (names.empty() ? "" : ", ") + name;
  throw std::invalid_argument(what + " is '" + given + "': use one of " + names + ".");
}

Scheduler make_scheduler(const std::string& batching, const std::string& admission, int block_tokens, double watermark,
                         double prefix_hit_share) {
  const Scheduler scheduler{
      choose<Batching>(batching, "batching",
                       {{"chunked", Batching::chunked}, {"prompts_first", Batching::prompts_first}}),
      choose<Admission>(admission, "admission",
                        {{"fcfs", Admission::fcfs}, {"shortest_first", Admission::shortest_first}}),
      block_tokens, watermark, prefix_hit_share};
  check(scheduler);
  return scheduler;
}

using EngineKind = std::tuple<std::shared_ptr<StepCosts>, int, double>;
using WindowedKind = std::tuple<std::shared_ptr<StepCosts>, int, double, double, double>;

Window window_of(const std::variant<EngineKind, WindowedKind>& kind) {
  if (std::holds_alternative<EngineKind>(kind)) return {};
  const auto& [costs, count, capacity_per_s, opens_s, closes_s] = std::get<WindowedKind>(kind);
  require(opens_s >= 0 && opens_s < 1e12 && closes_s > opens_s,
          "An engine is open from " + std::to_string(opens_s) + " s to " + std::to_string(closes_s) +
              " s: give an opens_s from 0 to 1e12 and a closes_s after it.");
  return {opens_s, closes_s};
}

EngineKind engines_of(const std::variant<EngineKind, WindowedKind>& kind) {
  return std::visit(
      [](const auto& one) -> EngineKind { return {std::get<0>(one), std::get<1>(one), std::get<2>(one)}; }, kind);
}

HeldStation make_station(const std::vector<std::variant<EngineKind, WindowedKind>>& engines,
                         const std::optional<Scheduler>& scheduler, const std::string& dispatch) {
  require(!engines.empty(), "A station has no engines: give at least one.");
  HeldStation held;
  held.station.scheduler = scheduler.value_or(Scheduler{});
  held.station.dispatch = choose<Dispatch>(dispatch, "dispatch",
                                           {{"round_robin", Dispatch::round_robin},
                                            {"random", Dispatch::random},
                                            {"least_outstanding", Dispatch::least_outstanding},
                                            {"capacity_weighted", Dispatch::capacity_weighted},
                                            {"power_of_two", Dispatch::power_of_two}});
  bool lasts = false;
  for (const auto& kind : engines) {
    const auto [costs, count, capacity_per_s] = engines_of(kind);
    require(costs != nullptr, "An engine of a station is None: give its StepCosts.");
    require(count >= 1 && count <= kMostReplicas,
            "A station has " + std::to_string(count) + " engines of a kind: give 1 to 1,000,000.");
    require(capacity_per_s > 0 && std::isfinite(capacity_per_s),
            "capacity_per_s is " + std::to_string(capacity_per_s) + ": give a finite number above 0.");
    held.kinds.push_back(costs);
    held.station.engines.push_back({costs.get(), count, capacity_per_s, window_of(kind)});
    lasts |= held.station.engines.back().window.closes_s == std::numeric_limits<double>::infinity();
  }
  require(lasts, "All engines of a station close for good: leave one open, its closes_s infinite.");
  return held;
}

std::vector<double> step_table(const Floats& table, const std::string& name) {
  require(table.ndim() == 1 && table.size() >= 2 && table.size() <= (1 << 20) + 1,
          name + " has " + std::to_string(table.size()) + " entries: give 2 to 1,048,577 of them, in one dimension.");
  require_each(
      view(table), [](double s) { return s >= 0 && std::isfinite(s); },
      [&](std::size_t i, double s) {
        return name + "[" + std::to_string(i) + "] is " + std::to_string(s) +
               ": give a finite number of seconds that is not negative.";
      });
  return {view(table).begin(), view(table).end()};
}

std::shared_ptr<StepCosts> measured_costs(const Floats& decode_step_s, const Floats& prompt_step_s,
                                          const Floats& sampled_s, double sequence_s, double context_token_s,
                                          double prompt_pair_s, double request_s, double kv_capacity_tokens) {
  for (const auto& [value, name] :
       std::initializer_list<std::pair<double, const char*>>{{sequence_s, "sequence_s"},
                                                             {context_token_s, "context_token_s"},
                                                             {prompt_pair_s, "prompt_pair_s"},
                                                             {request_s, "request_s"},
                                                             {kv_capacity_tokens, "kv_capacity_tokens"}})
    require(value >= 0 && std::isfinite(value),
            std::string(name) + " is " + std::to_string(value) + ": give a finite number that is not negative.");
  auto decode = step_table(decode_step_s, "decode_step_s"), prompt = step_table(prompt_step_s, "prompt_step_s");
  for (const auto* table : {&decode, &prompt})
    require_each(
        std::span<const double>(*table).subspan(1), [](double s) { return s > 0; },
        [](std::size_t i, double) {
          return "A step of " + std::to_string(i + 1) + " takes no time: give more than 0 seconds.";
        });
  ContextCosts context;
  context.sequence_s = sequence_s;
  context.decode_s.full = context_token_s;
  context.prefill_s.full = prompt_pair_s;
  context.kv_bytes_per_token.full = 1;
  return std::make_shared<StepCosts>(std::move(decode), std::move(prompt), step_table(sampled_s, "sampled_s"), context,
                                     kv_capacity_tokens, request_s);
}

py::tuple alone_s(const StepCosts& costs, const Indexes& tokens_in, const Indexes& tokens_out) {
  require(tokens_in.ndim() == 1 && tokens_out.ndim() == 1 && tokens_in.size() == tokens_out.size(),
          "tokens_in and tokens_out differ in shape: give two 1-D arrays of one length.");
  for (const Indexes* tokens : {&tokens_in, &tokens_out}) require_lengths(view(*tokens), "A length");
  const auto in = view(tokens_in), out = view(tokens_out);
  std::vector<double> first_s, last_s;
  {
    const py::gil_scoped_release release;
    for (std::size_t i = 0; i < in.size(); ++i) {
      const auto [first, last] = costs.alone_s(static_cast<std::size_t>(in[i]), static_cast<std::size_t>(out[i]));
      first_s.push_back(first);
      last_s.push_back(last);
    }
  }
  return py::make_tuple(read_only(first_s), read_only(last_s));
}

}  // namespace

void register_stations(py::module_& m) {
  py::class_<StepCosts, std::shared_ptr<StepCosts>>(m, "StepCosts",
                                                    "What steps of one engine take, in tables. Times in seconds.")
      .def(py::init<const Replica&>(), "replica"_a, "Those of a replica of the latency model.")
      .def_static("measured", &measured_costs, py::kw_only(), "decode_step_s"_a, "prompt_step_s"_a, "sampled_s"_a,
                  "sequence_s"_a = 0.0, "context_token_s"_a = 0.0, "prompt_pair_s"_a = 0.0, "request_s"_a = 0.0,
                  "kv_capacity_tokens"_a = 1e15,
                  "Measured ones.\n\n"
                  "decode_step_s: (max_num_seqs + 1,) a step of n decodes. prompt_step_s: (max_batched_tokens + 1,) a "
                  "step with prompts by its tokens, and sampled_s: (max_num_seqs + 1,) what its sampled sequences "
                  "add.\nsequence_s, context_token_s: decode attention per sequence and per token of its context; "
                  "prompt_pair_s: prefill attention per pair of tokens; request_s: front end, per request.")
      .def("alone_s", &alone_s, "tokens_in"_a, "tokens_out"_a,
           "Time to first token and latency [s] of requests alone on an idle engine, each (n,).")
      .def_readonly("max_num_seqs", &StepCosts::max_num_seqs)
      .def_readonly("max_batched_tokens", &StepCosts::max_batched_tokens)
      .def_readonly("kv_capacity_bytes", &StepCosts::kv_capacity_bytes);
  py::class_<Scheduler>(m, "Scheduler", "How an engine composes its steps.")
      .def(py::init(&make_scheduler), py::kw_only(), "batching"_a = "chunked", "admission"_a = "fcfs",
           "block_tokens"_a = 16, "watermark"_a = 0.01, "prefix_hit_share"_a = 0.0,
           "batching: chunked or prompts_first (a step carries prompts or decodes, never both). admission: fcfs or "
           "shortest_first.\nwatermark: share of the KV cache kept free at admission; prefix_hit_share: part of a "
           "prompt that is in the cache already: not computed, but held.");
  py::class_<HeldStation>(m, "Station", "The replicas that serve one stage, or that judge.")
      .def(py::init(&make_station), "engines"_a, py::kw_only(), "scheduler"_a = py::none(),
           "dispatch"_a = "capacity_weighted",
           "engines: (costs, how many, capacity_per_s of one) per kind, and opens_s, closes_s where they take visits "
           "from some time or until some time only; what they have then they finish. While none is open visits wait "
           "at those that open soonest.\ndispatch: round_robin, random, least_outstanding, capacity_weighted or "
           "power_of_two.");
}

}  // namespace cascadia
