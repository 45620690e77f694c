// The whole cascade, simulated from event to event: requests arrive, are sent to a replica of a stage, served there,
// and judged; what scores too low moves on to the next stage of its path.
//
// The order of events is total: time; then ends of steps, by station and replica; then arrivals, those from outside
// before those from another stage, each in order of their making; then starts of steps. So a step that starts at some
// time finds everything that has arrived by then.
#pragma once
#include <cstdint>
#include <functional>
#include <limits>
#include <span>
#include <vector>

#include "dispatch.hpp"
#include "engine.hpp"
#include "gears.hpp"

namespace cascadia {

/// The replicas that serve one stage, or that judge. Kinds of engines are referred to and must outlive the station.
struct Station {
  struct Kind {
    const StepCosts* costs = nullptr;
    int count = 1;
    double capacity_per_s = 1;  // of one replica; only ratios count
    Window window;
  };
  std::vector<Kind> engines;
  Scheduler scheduler;
  Dispatch dispatch = Dispatch::capacity_weighted;
};

/// What happens to the `n` different requests that may be drawn. Lengths by station and request, [station][n]; what
/// depends on the gear that a request enters with comes by gear.
struct Requests {
  std::size_t n = 0;
  std::span<const std::int32_t> tokens_in, tokens_out;
  std::span<const std::int32_t> judge_tokens_in, judge_tokens_out;  // with a hosted judge: for the answer of each stage
  std::span<const std::uint16_t> path;                              // [gear][n] bit s: it visits stage s
  // [gear] bit s: what stage s answers is judged before anybody sees it. Other answers go straight on.
  std::vector<std::uint16_t> judged;
};

/// Which requests are sent, and when: at given times, or by clients that wait for an answer before they send the next.
struct Stream {
  std::span<const std::int32_t> drawn;
  std::span<const double> arrival_s;  // ascending; empty in a closed loop
  std::uint32_t clients = 0;
  double timeout_s = std::numeric_limits<double>::infinity();
  double stop_s = std::numeric_limits<double>::infinity();  // nothing later happens
};

enum class Status : std::uint8_t { served, timed_out, refused, unfinished };

/// What became of every request: NaN, -1, 0 and `unfinished` where that is not known. One entry per request, or
/// [row][request] where that is said. Rows: the stages, then the judging of each stage but the last where a judge is
/// hosted; the three arrays by row may be empty.
struct Outcome {
  std::span<std::uint8_t> status;
  std::span<std::uint8_t> gear;  // 0 where it never entered
  std::span<double> ends_s;      // [request][arrived, first token, finished], at the cascade
  std::span<double> times_s;     // [row][request][arrived, admitted, first token, finished]
  std::span<std::int32_t> replica;
  std::span<std::uint8_t> preempted;
  std::vector<EngineCounts> engines;
  std::uint32_t sent = 0;  // requests; when interrupted nothing is written of the others
  double ended_s = 0;
  std::int64_t visits = 0;  // served, by steps that ended
  bool interrupted = false;
};

struct CascadeSpec {
  std::vector<Station> stages;
  std::vector<Station> judge;              // none or one
  std::vector<double> judge_delay_s{0.0};  // equally likely ones of an external judge
  Gears gears;                             // one, unless given
};

/// `go_on` is asked now and then with the number of requests that are done; false ends the simulation as it stands.
void simulate(const CascadeSpec& spec, const Requests& requests, const Stream& stream, std::uint64_t seed,
              const std::function<bool(std::int64_t)>& go_on, Outcome& outcome);

}  // namespace cascadia
