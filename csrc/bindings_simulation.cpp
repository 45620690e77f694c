#include <pybind11/functional.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cmath>
#include <optional>

#include "bindings_stations.hpp"

namespace cascadia {

using namespace pybind11::literals;

namespace {

using Paths = py::array_t<std::uint16_t, py::array::c_style>;

constexpr std::size_t kMostStages = 16;  // bits of a path
constexpr std::size_t kMostGears = 256;  // of a byte
constexpr double kMostSteps = 0x1p39;    // half of what an engine's agenda can count

// The arrays of an outcome; shapes as in the stub.
struct Simulated {
  py::object status, gear, arrived_s, first_token_s, finished_s;
  py::object times_s = py::none(), replica = py::none(), preempted = py::none();
  py::array_t<std::int64_t> steps, prompt_tokens, preemptions;
  py::array_t<std::int32_t> station;
  py::array_t<double> busy_s, decoding_s, peak_kv_share;
  double ended_s = 0;
  bool interrupted = false;
  std::int64_t visits_done = 0;
};

std::span<const std::int32_t> lengths(const Indexes& tokens, const std::string& name, std::size_t rows, std::size_t n) {
  require(tokens.ndim() == 2 && static_cast<std::size_t>(tokens.shape(0)) == rows &&
              static_cast<std::size_t>(tokens.shape(1)) == n,
          name + " must have shape (" + std::to_string(rows) + ", " + std::to_string(n) + "), one row per stage.");
  require_lengths(view(tokens), "A length of " + name);
  return view(tokens);
}

Gears make_gears(const Floats& up_to_per_s, double window_s, double queue_factor, const Indexes& first_station) {
  require(up_to_per_s.ndim() == 1 && first_station.ndim() == 1 && first_station.size() == up_to_per_s.size() + 1,
          "There are " + std::to_string(up_to_per_s.size()) + " limits up_to_per_s for " +
              std::to_string(first_station.size()) + " gears: give one fewer than gears.");
  require(static_cast<std::size_t>(first_station.size()) <= kMostGears,
          "There are " + std::to_string(first_station.size()) + " gears: give at most 256.");
  require(window_s > 0 && std::isfinite(window_s),
          "window_s is " + std::to_string(window_s) + ": give a finite number of seconds above 0.");
  require(queue_factor >= 0 && std::isfinite(queue_factor),
          "queue_factor is " + std::to_string(queue_factor) + ": give a finite number that is not negative.");
  Gears gears{{view(up_to_per_s).begin(), view(up_to_per_s).end()}, window_s, queue_factor, {}};
  double before_per_s = 0;
  for (const double limit_per_s : gears.up_to_per_s) {
    require(limit_per_s >= before_per_s && std::isfinite(limit_per_s),
            "up_to_per_s has " + std::to_string(limit_per_s) + " after " + std::to_string(before_per_s) +
                ": give ascending rates, finite and not negative.");
    before_per_s = limit_per_s;
  }
  for (const std::int32_t station : view(first_station)) {
    require(station >= 0 && static_cast<std::size_t>(station) < kMostStages,
            "The first_station of a gear is " + std::to_string(station) + ": give a position among the stages.");
    gears.first_station.push_back(static_cast<std::size_t>(station));
  }
  return gears;
}

void require_stations(const Gears& gears, std::size_t stages) {
  for (const std::size_t station : gears.first_station)
    require(station < stages, "The first_station of a gear is " + std::to_string(station) + ", but there are " +
                                  std::to_string(stages) + " stages: give a position among them.");
}

// One row of paths where there is one gear, whether or not it is written as a row.
void set_paths(Requests& requests, const Paths& path, std::size_t gears, std::size_t stages) {
  const bool row = path.ndim() == 1 && gears == 1;
  require(path.size() > 0 && (row || (path.ndim() == 2 && static_cast<std::size_t>(path.shape(0)) == gears)),
          gears == 1 ? "path is empty or not 1-D: give the stages of at least one request; several rows need gears."
                     : "path must have shape (" + std::to_string(gears) + ", n), one row per gear, and n at least 1.");
  requests.n = static_cast<std::size_t>(path.shape(path.ndim() - 1));
  requests.path = view(path);
  require_each(
      requests.path, [&](std::uint16_t stops) { return stops != 0 && stops < (1U << stages); },
      [](std::size_t, std::uint16_t stops) {
        return "A path is " + std::to_string(stops) + ": set a bit for every stage visited, at least one.";
      });
}

// Unless said otherwise every answer but the last stage's, which nobody ever judges.
std::vector<std::uint16_t> judged_of(const std::optional<Paths>& judged, std::size_t gears, std::size_t stages) {
  const unsigned all = (1U << (stages - 1)) - 1;
  if (!judged.has_value()) return std::vector<std::uint16_t>(gears, static_cast<std::uint16_t>(all));
  require(judged->ndim() == 1 && static_cast<std::size_t>(judged->size()) == gears,
          "judged must have shape (" + std::to_string(gears) + ",), the stages whose answers are judged in each gear.");
  require_each(
      view(*judged), [&](std::uint16_t asked) { return asked <= all; },
      [](std::size_t, std::uint16_t asked) {
        return "judged is " + std::to_string(asked) + ": set bits of stages before the last only.";
      });
  return {view(*judged).begin(), view(*judged).end()};
}

void set_lengths(Requests& requests, const Indexes& tokens_in, const Indexes& tokens_out,
                 const std::optional<Indexes>& judge_in, const std::optional<Indexes>& judge_out, std::size_t stages,
                 bool hosted) {
  const std::size_t n = requests.n;
  requests.tokens_in = lengths(tokens_in, "tokens_in", stages, n);
  requests.tokens_out = lengths(tokens_out, "tokens_out", stages, n);
  require(hosted == judge_in.has_value() && hosted == judge_out.has_value(),
          "A hosted judge needs judge_tokens_in and judge_tokens_out, an external one none: give both or neither.");
  if (!hosted) return;
  requests.judge_tokens_in = lengths(*judge_in, "judge_tokens_in", stages, n);
  requests.judge_tokens_out = lengths(*judge_out, "judge_tokens_out", stages, n);
}

Stream stream_of(const Indexes& drawn, const std::optional<Floats>& arrival_s, int concurrency, double timeout_s,
                 double stop_s, std::size_t n) {
  require(drawn.ndim() == 1 && drawn.size() >= 1 && drawn.size() <= kMostRequests,
          "drawn has " + std::to_string(drawn.size()) + " entries: give 1 to 16,000,000 requests.");
  require_each(
      view(drawn), [&](std::int32_t request) { return request >= 0 && static_cast<std::size_t>(request) < n; },
      [&](std::size_t, std::int32_t request) {
        return "drawn has an entry of " + std::to_string(request) + ": give indexes below " + std::to_string(n) + ".";
      });
  require(timeout_s > 0, "timeout_s is " + std::to_string(timeout_s) + ": give a positive number of seconds.");
  require(stop_s >= 0, "stop_s is " + std::to_string(stop_s) + ": give a number of seconds that is not negative.");
  require(arrival_s.has_value() == (concurrency == 0) && concurrency >= 0,
          "Give either arrival_s or a concurrency of at least 1.");
  Stream stream;
  stream.drawn = view(drawn);
  stream.clients = static_cast<std::uint32_t>(concurrency);
  stream.timeout_s = timeout_s;
  stream.stop_s = stop_s;
  if (!arrival_s.has_value()) return stream;
  stream.arrival_s = view(*arrival_s);
  require(arrival_s->ndim() == 1 && stream.arrival_s.size() == stream.drawn.size(),
          "arrival_s has " + std::to_string(stream.arrival_s.size()) + " entries and drawn " +
              std::to_string(stream.drawn.size()) + ": give one for each request.");
  double before_s = 0;
  require_each(
      stream.arrival_s,
      [&](double time_s) {
        const bool ascends = time_s >= before_s && time_s < 1e12;  // beyond, doubles lose the milliseconds
        if (ascends) before_s = time_s;
        return ascends;
      },
      [&](std::size_t, double time_s) {
        return "arrival_s has " + std::to_string(time_s) + " after " + std::to_string(before_s) +
               ": give ascending times from 0 to 1e12 s.";
      });
  return stream;
}

// An engine may take a step for every token that is written.
void require_countable(const Requests& requests, const Stream& stream) {
  for (const auto& tokens_out : {requests.tokens_out, requests.judge_tokens_out}) {
    if (tokens_out.empty()) continue;
    const double most = *std::max_element(tokens_out.begin(), tokens_out.end());
    const auto rows = static_cast<double>(tokens_out.size() / requests.n);
    if (most * rows * static_cast<double>(stream.drawn.size()) < kMostSteps) continue;
    double total = 0;
    for (const std::int32_t drawn : stream.drawn)
      for (std::size_t at = static_cast<std::size_t>(drawn); at < tokens_out.size(); at += requests.n)
        total += tokens_out[at];
    require(total < kMostSteps, "The answers have " + std::to_string(total) +
                                    " tokens in all: simulate fewer requests, or shorter ones, below 5e11 tokens.");
  }
}

template <class T>
std::span<T> writable(py::array_t<T>& array) {
  return {array.mutable_data(), static_cast<std::size_t>(array.size())};
}

// The memory of an outcome. It is touched as requests are sent, so that what is reserved for millions costs nothing.
struct Arrays {
  py::array_t<std::uint8_t> status, gear;
  py::array_t<double> ends_s, times_s;
  py::array_t<std::int32_t> replica;
  py::array_t<std::uint8_t> preempted;
  bool visits;

  Arrays(py::ssize_t rows, py::ssize_t n, bool with_visits)
      : status(n), gear(n), ends_s({n, py::ssize_t{3}}), visits(with_visits) {
    if (!visits) return;
    times_s = py::array_t<double>({rows, n, py::ssize_t{4}});
    replica = py::array_t<std::int32_t>({rows, n});
    preempted = py::array_t<std::uint8_t>({rows, n});
  }
  Outcome outcome() {
    Outcome outcome;
    outcome.status = writable(status);
    outcome.gear = writable(gear);
    outcome.ends_s = writable(ends_s);
    if (!visits) return outcome;
    outcome.times_s = writable(times_s);
    outcome.replica = writable(replica);
    outcome.preempted = writable(preempted);
    return outcome;
  }
  // Those of the requests that were sent; the others were never touched.
  void hand_over(Simulated& found, std::size_t sent) {
    for (py::array* array : std::initializer_list<py::array*>{&status, &gear, &ends_s, &times_s, &replica, &preempted})
      array->attr("setflags")("write"_a = false);
    const py::slice first(0, static_cast<py::ssize_t>(sent), 1);
    const py::slice all{py::none(), py::none(), py::none()};
    const py::tuple columns = ends_s[first].attr("T");
    found.status = status[first];
    found.gear = gear[first];
    found.arrived_s = columns[0];
    found.first_token_s = columns[1];
    found.finished_s = columns[2];
    if (!visits) return;
    const py::tuple rows = py::make_tuple(all, first);
    found.times_s = times_s[rows];
    found.replica = replica[rows];
    found.preempted = preempted[rows];
  }
};

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
          const double capacity_bytes = kind.costs->kv_capacity_bytes;
          peak.push_back(capacity_bytes > 0 ? engines[station.size()].peak_kv_bytes / capacity_bytes : 0);
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

// What the simulation asks now and then: report how far it is, and has the user pressed Ctrl-C?
std::function<bool(std::int64_t)> asking(const std::optional<std::function<void(std::int64_t)>>& progress) {
  return [&progress, interrupted = signals()](std::int64_t done) {
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
}

Simulated run_simulation(const std::vector<HeldStation>& stages, const std::optional<HeldStation>& judge,
                         const Indexes& tokens_in, const Indexes& tokens_out, const Paths& path,
                         const std::optional<Gears>& gears, const std::optional<Paths>& judged,
                         const std::optional<Indexes>& judge_tokens_in, const std::optional<Indexes>& judge_tokens_out,
                         const Floats& judge_delay_s, const Indexes& drawn, const std::optional<Floats>& arrival_s,
                         int concurrency, std::uint64_t seed, double timeout_s, double stop_s, bool visits,
                         const std::optional<std::function<void(std::int64_t)>>& progress) {
  CascadeSpec spec = cascade_of(stages, judge, judge_delay_s);
  if (gears.has_value()) spec.gears = *gears;
  require_stations(spec.gears, stages.size());
  Requests requests;
  set_paths(requests, path, spec.gears.count(), stages.size());
  requests.judged = judged_of(judged, spec.gears.count(), stages.size());
  set_lengths(requests, tokens_in, tokens_out, judge_tokens_in, judge_tokens_out, stages.size(), judge.has_value());
  const Stream stream = stream_of(drawn, arrival_s, concurrency, timeout_s, stop_s, requests.n);
  require_countable(requests, stream);
  const auto rows = static_cast<py::ssize_t>(judge.has_value() ? 2 * stages.size() - 1 : stages.size());
  Arrays arrays(rows, drawn.size(), visits);
  Outcome outcome = arrays.outcome();
  {
    const auto go_on = asking(progress);
    const py::gil_scoped_release release;
    simulate(spec, requests, stream, seed, go_on, outcome);
  }
  if (PyErr_Occurred()) {
    if (!PyErr_ExceptionMatches(PyExc_KeyboardInterrupt)) throw py::error_already_set();
    PyErr_Clear();  // the caller learns of Ctrl-C from `interrupted`, with what there is so far
  }
  Simulated found;
  arrays.hand_over(found, outcome.sent);
  set_engines(found, spec, outcome.engines);
  found.ended_s = outcome.ended_s;
  found.interrupted = outcome.interrupted;
  found.visits_done = outcome.visits;
  return found;
}

}  // namespace

void register_simulation(py::module_& m) {
  py::class_<Simulated>(m, "Simulated", "What became of every request; times are absolute, arrays read-only.")
      .def_readonly("status", &Simulated::status)
      .def_readonly("gear", &Simulated::gear)
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
  py::class_<Gears>(m, "Gears", "Ways through the cascade that take turns as load changes.")
      .def(py::init(&make_gears), "up_to_per_s"_a, "window_s"_a, "queue_factor"_a, "first_station"_a,
           "up_to_per_s: (G - 1,) ascending, the rates that all gears but the last are meant for; gear 0 is the first "
           "one.\nwindow_s: once so much time has passed, the next arrival looks at the rate in the last whole window. "
           "A gear for less load has to wait while that rate is below queue_factor times the visits that wait, not yet "
           "admitted, at first_station (G,) of the present gear.");
  m.def(
      "simulate", &run_simulation, "stages"_a, py::kw_only(), "judge"_a = py::none(), "tokens_in"_a, "tokens_out"_a,
      "path"_a, "gears"_a = py::none(), "judged"_a = py::none(), "judge_tokens_in"_a = py::none(),
      "judge_tokens_out"_a = py::none(), "judge_delay_s"_a = std::vector<double>{0.0}, "drawn"_a,
      "arrival_s"_a = py::none(), "concurrency"_a = 0, "seed"_a = 0,
      "timeout_s"_a = std::numeric_limits<double>::infinity(), "stop_s"_a = std::numeric_limits<double>::infinity(),
      "visits"_a = true, "progress"_a = py::none(),
      "Simulate a cascade request by request. Releases the GIL; Ctrl-C ends it with what there is so far.\n\n"
      "tokens_in, tokens_out: (S, n) per stage and scored request; path: (n,) bit s set: it visits stage s. The same "
      "for the judging of each stage where a judge is hosted; else judge_delay_s (K,), equally likely.\n"
      "gears: path has a row for each, (G, n), and a request keeps that of the gear it enters with. judged: (G,) bit s "
      "set: the answer of stage s is judged before anybody sees it; every stage but the last, unless given. What "
      "nobody judges goes straight on.\n"
      "drawn: (N,) the scored request behind each simulated one; arrival_s: (N,) ascending, or `concurrency` clients "
      "that wait for an answer before they send the next.\n"
      "visits: keep the times of every visit. progress: called now and then with the number of requests done. Ctrl-C "
      "reaches the main thread only; after it the arrays hold the requests that were sent.");
}

}  // namespace cascadia
