#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <bit>
#include <cmath>
#include <map>
#include <memory>
#include <optional>

#include "bindings_arrays.hpp"
#include "cascade.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

using Lengths = py::array_t<std::int32_t, py::array::c_style>;
using Paths = py::array_t<std::uint16_t, py::array::c_style>;

constexpr std::size_t kMostStages = 16;  // bits of a path
constexpr int kMostReplicas = 1'000'000;

// Keeps what its stations refer to.
struct HeldStation {
  Station station;
  std::vector<std::shared_ptr<StepCosts>> kinds;
};

// The arrays of an outcome; shapes as in the stub.
struct Simulated {
  py::object arrived_s, first_token_s, finished_s;
  py::array_t<std::uint8_t> status;
  py::object times_s = py::none(), replica = py::none(), preempted = py::none();
  py::array_t<std::int64_t> steps, prompt_tokens, preemptions;
  py::array_t<std::int32_t> station;
  py::array_t<double> busy_s, decoding_s, peak_kv_share;
  double ended_s = 0;
  bool interrupted = false;
  std::int64_t visits_done = 0;
};

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
  require(block_tokens >= 1 && block_tokens <= 4096 && std::has_single_bit(static_cast<unsigned>(block_tokens)),
          "block_tokens is " + std::to_string(block_tokens) + ": give a power of two up to 4096.");
  require(watermark >= 0 && watermark < 1,
          "watermark is " + std::to_string(watermark) + ": give a share of the KV cache below 1.");
  require(prefix_hit_share >= 0 && prefix_hit_share <= 1,
          "prefix_hit_share is " + std::to_string(prefix_hit_share) + ": give a share of the prompt tokens.");
  return {choose<Batching>(batching, "batching",
                           {{"chunked", Batching::chunked}, {"prompts_first", Batching::prompts_first}}),
          choose<Admission>(admission, "admission",
                            {{"fcfs", Admission::fcfs}, {"shortest_first", Admission::shortest_first}}),
          block_tokens, watermark, prefix_hit_share};
}

HeldStation make_station(const std::vector<std::tuple<std::shared_ptr<StepCosts>, int, double>>& engines,
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
  for (const auto& [costs, count, capacity_per_s] : engines) {
    require(costs != nullptr, "An engine of a station is None: give its StepCosts.");
    require(count >= 1 && count <= kMostReplicas,
            "A station has " + std::to_string(count) + " engines of a kind: give 1 to 1,000,000.");
    require(capacity_per_s > 0 && std::isfinite(capacity_per_s),
            "capacity_per_s is " + std::to_string(capacity_per_s) + ": give a finite number above 0.");
    held.kinds.push_back(costs);
    held.station.engines.push_back({costs.get(), count, capacity_per_s});
  }
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

void require_lengths(std::span<const std::int32_t> tokens, const std::string& name) {
  require_each(
      tokens, [](std::int32_t length) { return length >= 1 && length <= 1'000'000'000; },
      [&](std::size_t i, std::int32_t length) {
        return name + " is " + std::to_string(length) + " at position " + std::to_string(i) +
               ": give 1 to 1,000,000,000 tokens.";
      });
}

py::tuple alone_s(const StepCosts& costs, const Lengths& tokens_in, const Lengths& tokens_out) {
  require(tokens_in.ndim() == 1 && tokens_out.ndim() == 1 && tokens_in.size() == tokens_out.size(),
          "tokens_in and tokens_out differ in shape: give two 1-D arrays of one length.");
  for (const Lengths* tokens : {&tokens_in, &tokens_out}) require_lengths(view(*tokens), "A length");
  std::vector<double> first_s, last_s;
  for (py::ssize_t i = 0; i < tokens_in.size(); ++i) {
    const auto [first, last] =
        costs.alone_s(static_cast<std::size_t>(tokens_in.data()[i]), static_cast<std::size_t>(tokens_out.data()[i]));
    first_s.push_back(first);
    last_s.push_back(last);
  }
  return py::make_tuple(read_only(first_s), read_only(last_s));
}

std::span<const std::int32_t> lengths(const Lengths& tokens, const std::string& name, std::size_t rows, std::size_t n) {
  require(tokens.ndim() == 2 && static_cast<std::size_t>(tokens.shape(0)) == rows &&
              static_cast<std::size_t>(tokens.shape(1)) == n,
          name + " must have shape (" + std::to_string(rows) + ", " + std::to_string(n) + "), one row per stage.");
  require_lengths(view(tokens), "A length of " + name);
  return view(tokens);
}

Requests requests_of(const Lengths& tokens_in, const Lengths& tokens_out, const Paths& path,
                     const std::optional<Lengths>& judge_in, const std::optional<Lengths>& judge_out,
                     std::size_t stages, bool hosted) {
  const auto n = static_cast<std::size_t>(path.size());
  require(path.ndim() == 1 && n > 0, "path is empty or not 1-D: give the stages of at least one request.");
  Requests requests;
  requests.n = n;
  requests.tokens_in = lengths(tokens_in, "tokens_in", stages, n);
  requests.tokens_out = lengths(tokens_out, "tokens_out", stages, n);
  requests.path = view(path);
  require_each(
      requests.path, [&](std::uint16_t stops) { return stops != 0 && stops < (1U << stages); },
      [](std::size_t, std::uint16_t stops) {
        return "A path is " + std::to_string(stops) + ": set a bit for every stage visited, at least one.";
      });
  require(hosted == (judge_in.has_value() && judge_out.has_value()),
          "A hosted judge needs judge_tokens_in and judge_tokens_out, an external one none: give both or neither.");
  if (hosted) {
    requests.judge_tokens_in = lengths(*judge_in, "judge_tokens_in", stages, n);
    requests.judge_tokens_out = lengths(*judge_out, "judge_tokens_out", stages, n);
  }
  return requests;
}

Stream stream_of(const Lengths& drawn, const std::optional<Floats>& arrival_s, int concurrency, double timeout_s,
                 double stop_s, std::size_t n) {
  require(drawn.ndim() == 1 && drawn.size() >= 1 && drawn.size() <= kMostRequests,
          "drawn has " + std::to_string(drawn.size()) + " entries: give 1 to 16,000,000 requests.");
  require_each(
      view(drawn), [&](std::int32_t request) { return request >= 0 && static_cast<std::size_t>(request) < n; },
      [&](std::size_t, std::int32_t request) {
        return "drawn has an entry of " + std::to_string(request) + ": give indexes below " + std::to_string(n) + ".";
      });
  require(timeout_s > 0 && stop_s >= 0, "timeout_s and stop_s must be positive numbers of seconds.");
  require(arrival_s.has_value() == (concurrency == 0) && concurrency >= 0,
          "Give either arrival_s or a concurrency of at least 1.");
  Stream stream;
  stream.drawn = view(drawn);
  stream.clients = static_cast<std::uint32_t>(concurrency);
  stream.timeout_s = timeout_s;
  stream.stop_s = stop_s;
  if (!arrival_s.has_value()) return stream;
  stream.arrival_s = view(*arrival_s);
  require(stream.arrival_s.size() == stream.drawn.size(),
          "arrival_s has " + std::to_string(stream.arrival_s.size()) + " entries and drawn " +
              std::to_string(stream.drawn.size()) + ": give one for each request.");
  double before_s = 0;
  require_each(
      stream.arrival_s,
      [&](double time_s) {
        const bool ascends = time_s >= before_s && time_s < 1e15;
        if (ascends) before_s = time_s;
        return ascends;
      },
      [&](std::size_t, double time_s) {
        return "arrival_s has " + std::to_string(time_s) + " after " + std::to_string(before_s) +
               ": give ascending times from 0 on.";
      });
  return stream;
}

template <class T>
std::span<T> writable(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

template <class T, class Value>
py::array_t<T> per_engine(const std::vector<EngineCounts>& engines, const Value& value) {
  std::vector<T> values;
  for (const EngineCounts& counts : engines) values.push_back(value(counts));
  return read_only(values);
}

void set_engines(Simulated& found, const CascadeSpec& spec, const std::vector<EngineCounts>& engines) {
  std::vector<std::int32_t> station;
  std::vector<double> peak;
  std::int32_t number = 0;
  for (const auto* stations : {&spec.stages, &spec.judge})
    for (const Station& one : *stations) {
      for (const Station::Kind& kind : one.engines)
        for (int r = 0; r < kind.count; ++r) {
          peak.push_back(engines[station.size()].peak_kv_bytes / kind.costs->kv_capacity_bytes);
          station.push_back(number);
        }
      ++number;
    }
  found.station = read_only(station);
  found.peak_kv_share = read_only(peak);
  found.steps = per_engine<std::int64_t>(engines, [](const EngineCounts& c) { return c.steps; });
  found.prompt_tokens = per_engine<std::int64_t>(engines, [](const EngineCounts& c) { return c.prompt_tokens; });
  found.preemptions = per_engine<std::int64_t>(engines, [](const EngineCounts& c) { return c.preemptions; });
  found.busy_s = per_engine<double>(engines, [](const EngineCounts& c) { return c.busy_s; });
  found.decoding_s = per_engine<double>(engines, [](const EngineCounts& c) { return c.decoding_s; });
}

CascadeSpec cascade_of(const std::vector<HeldStation>& stages, const std::optional<HeldStation>& judge,
                       const Floats& judge_delay_s) {
  require(!stages.empty() && stages.size() <= kMostStages,
          "There are " + std::to_string(stages.size()) + " stages: give 1 to 16.");
  CascadeSpec spec;
  for (const HeldStation& stage : stages) spec.stages.push_back(stage.station);
  if (judge.has_value()) spec.judge.push_back(judge->station);
  require(judge_delay_s.ndim() == 1 && judge_delay_s.size() >= 1,
          "judge_delay_s is empty or not 1-D: give at least one delay.");
  spec.judge_delay_s.assign(view(judge_delay_s).begin(), view(judge_delay_s).end());
  require_each(
      std::span<const double>(spec.judge_delay_s), [](double delay_s) { return delay_s >= 0 && delay_s < 1e12; },
      [](std::size_t, double delay_s) {
        return "A judge delay is " + std::to_string(delay_s) + " seconds: give finite numbers that are not negative.";
      });
  return spec;
}

Simulated run_simulation(const std::vector<HeldStation>& stages, const std::optional<HeldStation>& judge,
                         const Lengths& tokens_in, const Lengths& tokens_out, const Paths& path,
                         const std::optional<Lengths>& judge_tokens_in, const std::optional<Lengths>& judge_tokens_out,
                         const Floats& judge_delay_s, const Lengths& drawn, const std::optional<Floats>& arrival_s,
                         int concurrency, std::uint64_t seed, double timeout_s, double stop_s, bool visits,
                         const std::optional<std::function<void(std::int64_t)>>& progress) {
  const CascadeSpec spec = cascade_of(stages, judge, judge_delay_s);
  const Requests requests =
      requests_of(tokens_in, tokens_out, path, judge_tokens_in, judge_tokens_out, stages.size(), judge.has_value());
  const Stream stream = stream_of(drawn, arrival_s, concurrency, timeout_s, stop_s, requests.n);
  const auto n = static_cast<py::ssize_t>(drawn.size());
  const auto rows = static_cast<py::ssize_t>(judge.has_value() ? 2 * stages.size() - 1 : stages.size());
  Simulated found;
  found.status = py::array_t<std::uint8_t>(n);
  py::array_t<double> ends_s({n, py::ssize_t{3}});
  Outcome outcome;
  outcome.status = writable(found.status);
  outcome.ends_s = writable(ends_s);
  py::array_t<double> times_s;
  py::array_t<std::int32_t> replica;
  py::array_t<std::uint8_t> preempted;
  if (visits) {
    times_s = py::array_t<double>({rows, n, py::ssize_t{4}});
    replica = py::array_t<std::int32_t>({rows, n});
    preempted = py::array_t<std::uint8_t>({rows, n});
    outcome.times_s = writable(times_s);
    outcome.replica = writable(replica);
    outcome.preempted = writable(preempted);
  }
  const auto interrupted = signals();
  const auto go_on = [&](std::int64_t done) {
    if (interrupted()) return false;
    if (!progress.has_value()) return true;
    const py::gil_scoped_acquire hold;
    try {
      (*progress)(done);
    } catch (const py::error_already_set& error) {
      if (!error.matches(PyExc_KeyboardInterrupt)) throw;  // Ctrl-C may reach the callback first
      return false;
    }
    return true;
  };
  {
    const py::gil_scoped_release release;
    simulate(spec, requests, stream, seed, go_on, outcome);
  }
  if (outcome.interrupted) PyErr_Clear();  // the caller learns of Ctrl-C from `interrupted`, with what there is so far
  for (py::array* array : std::initializer_list<py::array*>{&found.status, &ends_s, &times_s, &replica, &preempted})
    array->attr("setflags")("write"_a = false);
  const py::tuple columns = ends_s.attr("T");
  found.arrived_s = columns[0];
  found.first_token_s = columns[1];
  found.finished_s = columns[2];
  if (visits) {
    found.times_s = times_s;
    found.replica = replica;
    found.preempted = preempted;
  }
  set_engines(found, spec, outcome.engines);
  found.ended_s = outcome.ended_s;
  found.interrupted = outcome.interrupted;
  found.visits_done = outcome.visits;
  return found;
}

void register_parts(py::module_& m) {
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
           "engines: (costs, how many, capacity_per_s of one) per kind. dispatch: round_robin, random, "
           "least_outstanding, capacity_weighted or power_of_two.");
}

}  // namespace

void register_simulation(py::module_& m) {
  register_parts(m);
  py::class_<Simulated>(m, "Simulated", "What became of every request; times are absolute, arrays read-only.")
      .def_readonly("status", &Simulated::status)
      .def_readonly("arrived_s", &Simulated::arrived_s)
      .def_readonly("first_token_s", &Simulated::first_token_s)
      .def_readonly("finished_s", &Simulated::finished_s)
      .def_readonly("times_s", &Simulated::times_s)
      .def_readonly("replica", &Simulated::replica)
      .def_readonly("preempted", &Simulated::preempted)
      .def_readonly("station", &Simulated::station)
      .def_readonly("steps", &Simulated::steps)
      .def_readonly("busy_s", &Simulated::busy_s)
      .def_readonly("decoding_s", &Simulated::decoding_s)
      .def_readonly("prompt_tokens", &Simulated::prompt_tokens)
      .def_readonly("preemptions", &Simulated::preemptions)
      .def_readonly("peak_kv_share", &Simulated::peak_kv_share)
      .def_readonly("ended_s", &Simulated::ended_s)
      .def_readonly("interrupted", &Simulated::interrupted)
      .def_readonly("visits_done", &Simulated::visits_done);
  m.def("simulate", &run_simulation, "stages"_a, py::kw_only(), "judge"_a = py::none(), "tokens_in"_a, "tokens_out"_a,
        "path"_a, "judge_tokens_in"_a = py::none(), "judge_tokens_out"_a = py::none(),
        "judge_delay_s"_a = std::vector<double>{0.0}, "drawn"_a, "arrival_s"_a = py::none(), "concurrency"_a = 0,
        "seed"_a = 0, "timeout_s"_a = std::numeric_limits<double>::infinity(),
        "stop_s"_a = std::numeric_limits<double>::infinity(), "visits"_a = true, "progress"_a = py::none(),
        "Simulate a cascade request by request. Releases the GIL; Ctrl-C ends it with what there is so far.\n\n"
        "tokens_in, tokens_out: (S, n) per stage and scored request; path: (n,) bit s set: it visits stage s. The same "
        "for the judging of each stage where a judge is hosted; else judge_delay_s (K,), equally likely.\n"
        "drawn: (N,) the scored request behind each simulated one; arrival_s: (N,) ascending, or `concurrency` clients "
        "that wait for an answer before they send the next.\n"
        "visits: keep the times of every visit. progress: called now and then with the number of requests done.");
}

}  // namespace cascadia
