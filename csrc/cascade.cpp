#include "cascade.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <queue>
#include <stdexcept>
#include <string>

#include "event_tree.hpp"
#include "fleet.hpp"

namespace cascadia {
namespace {

constexpr double kNever = std::numeric_limits<double>::infinity();
constexpr double kUnknown = std::numeric_limits<double>::quiet_NaN();
constexpr std::int64_t kEventsBetweenChecks = 1 << 15;
constexpr std::uint32_t kFetchAhead = 8;
// Purposes of random draws; each row of the results has a stream for every one.
constexpr std::uint64_t kPurposes = 4, kDispatch = 0, kJudgeDelay = 2;

// A visit on its way to its next station, or, as nobody, a client about to send its next request.
struct Handover {
  double time_s;
  bool from_outside;
  std::uint64_t order;
  std::uint32_t visit;
  friend bool operator>(const Handover& a, const Handover& b) {
    if (a.time_s != b.time_s) return a.time_s > b.time_s;
    if (a.from_outside != b.from_outside) return b.from_outside;
    return a.order > b.order;
  }
};

struct Lengths {
  std::uint32_t in, out;
};

class Cascade {
 public:
  Cascade(const CascadeSpec& spec, const Requests& requests, const Stream& stream, std::uint64_t seed, Outcome& outcome)
      : spec_(spec),
        requests_(requests),
        stream_(stream),
        outcome_(outcome),
        draws_(seed),
        expires_(std::isfinite(stream.timeout_s)),
        stages_(spec.stages.size()),
        rows_(spec.judge.empty() ? stages_ : 2 * stages_ - 1),
        sent_all_(static_cast<std::uint32_t>(stream.drawn.size())),
        paths_(requests.path.begin(), requests.path.end()),
        shift_(spec.gears),
        visits_(sent_all_),
        fleet_(spec, expires_),
        events_(fleet_.engines.size()) {
    for (std::uint32_t client = 0; client < std::min(stream.clients, sent_all_); ++client) send_at_once(0);
    set_lengths();
    look_outside();
  }

  void run(const std::function<bool(std::int64_t)>& go_on);

 private:
  double next_arrival_s() const {
    return handovers_.empty() ? outside_s_ : std::min(outside_s_, handovers_.top().time_s);
  }
  // Looked at once, since the caller's array may change meanwhile; + 0.0 makes no difference but to -0.0.
  void look_outside() {
    const bool more = next_ < sent_all_ && !stream_.arrival_s.empty();
    outside_s_ = more ? stream_.arrival_s[next_] + 0.0 : kNever;
  }
  void update(std::size_t engine) {
    events_.set(engine, fleet_.engines[engine].event_s(), fleet_.engines[engine].starts());
  }

  void set_lengths();
  void take_arrival(double now_s);
  void enter(double now_s);
  std::size_t gear_of_arrival(double now_s);
  void open_record(std::uint32_t request);
  void arrive(std::uint32_t visit, double now_s);
  void end_steps(std::size_t engine, double now_s);
  void start_step(std::size_t engine, double now_s);
  void hand_on(std::uint32_t visit, double finished_s);
  void judge(std::uint32_t visit, double finished_s);
  bool go_to(std::uint32_t visit, std::size_t after_stage, double time_s);
  void served(std::uint32_t visit, double first_token_s, double finished_s);
  void lost(std::uint32_t visit, Status why, double now_s);
  void forget_after_stop();
  void send_at_once(double time_s);
  void set_row(Visit& v, std::size_t row);
  void record(const Visit& v, double finished_s);
  void record_arrival(const Visit& v, std::size_t replica, double now_s);

  const CascadeSpec& spec_;
  const Requests& requests_;
  const Stream& stream_;
  Outcome& outcome_;
  Draws draws_;
  bool expires_;
  std::size_t stages_, rows_;
  std::uint32_t sent_all_, next_ = 0;
  double outside_s_ = kNever;  // the next arrival at a given time
  std::int64_t done_ = 0;
  std::vector<Lengths> lengths_;      // [drawn][row]
  std::vector<std::uint16_t> paths_;  // [gear][drawn]
  GearShift shift_;
  Visits visits_;
  Fleet fleet_;
  EventTree events_;
  std::priority_queue<Handover, std::vector<Handover>, std::greater<>> handovers_;
  std::uint64_t handed_ = 0;
  std::vector<std::uint32_t> leaving_;
};

// All lengths of a request side by side: they are looked up one after another.
void Cascade::set_lengths() {
  lengths_.reserve(rows_ * requests_.n);
  for (std::size_t drawn = 0; drawn < requests_.n; ++drawn)
    for (std::size_t row = 0; row < rows_; ++row) {
      const bool judging = row >= stages_;
      const std::size_t at = (judging ? row - stages_ : row) * requests_.n + drawn;
      const std::int32_t in = judging ? requests_.judge_tokens_in[at] : requests_.tokens_in[at];
      const std::int32_t out = judging ? requests_.judge_tokens_out[at] : requests_.tokens_out[at];
      lengths_.push_back({static_cast<std::uint32_t>(in), static_cast<std::uint32_t>(out)});
    }
}

void Cascade::run(const std::function<bool(std::int64_t)>& go_on) {
  for (std::int64_t event = 1;; ++event) {
    const double arrival_s = next_arrival_s(), engine_s = events_.time_s();
    const bool arrival = arrival_s < engine_s || (arrival_s == engine_s && events_.is_start());
    const double now_s = arrival ? arrival_s : engine_s;
    if (!(now_s <= stream_.stop_s) || now_s == kNever) break;
    outcome_.ended_s = std::max(outcome_.ended_s, now_s);
    if (arrival) {
      take_arrival(now_s);
    } else if (events_.is_start()) {
      start_step(events_.first(), now_s);
    } else {
      const std::size_t engine = events_.first();
      end_steps(engine, now_s);
      // The next step starts at once, unless something else happens at the very same time.
      if (next_arrival_s() > now_s && events_.runner_up_s() > now_s) {
        start_step(engine, now_s);
      } else {
        update(engine);
      }
    }
    if (event % kEventsBetweenChecks == 0 && go_on && !go_on(done_)) {
      outcome_.interrupted = true;
      break;
    }
  }
  outcome_.sent = outcome_.interrupted ? next_ : sent_all_;
  for (std::uint32_t request = next_; request < outcome_.sent; ++request) open_record(request);
  if (std::isfinite(stream_.stop_s)) forget_after_stop();
  visits_.for_each_in_flight([this](const Visit& v) {
    if (!std::isnan(v.admitted_s)) record(v, kUnknown);
  });
  for (const Engine& engine : fleet_.engines) outcome_.engines.push_back(engine.counts());
}

void Cascade::take_arrival(double now_s) {
  if (outside_s_ == now_s) {
    enter(now_s);
    return;
  }
  const std::uint32_t visit = handovers_.top().visit;
  handovers_.pop();
  if (visit == kNobody) {
    if (next_ < sent_all_) enter(now_s);
  } else if (visits_[visit].deadline_s <= now_s) {
    lost(visit, Status::timed_out, now_s);
  } else {
    arrive(visit, now_s);
  }
}

// The next request enters the cascade.
void Cascade::enter(double now_s) {
  const std::uint32_t request = next_++, visit = visits_.take();
  open_record(request);
  // Lengths are looked up all over their table; those of a request to come are fetched by the time it enters.
  if (sent_all_ - request > kFetchAhead)
    __builtin_prefetch(&lengths_[static_cast<std::size_t>(stream_.drawn[request + kFetchAhead]) * rows_]);
  Visit& v = visits_[visit];
  v.request = request;
  v.drawn = static_cast<std::uint32_t>(stream_.drawn[request]);
  if (v.drawn >= requests_.n) throw std::out_of_range("drawn has changed during the simulation: leave it as it is.");
  const std::size_t gear = gear_of_arrival(now_s);
  outcome_.gear[request] = static_cast<std::uint8_t>(gear);
  v.path = paths_[gear * requests_.n + v.drawn];
  v.judged = requests_.judged[gear];
  v.deadline_s = now_s + stream_.timeout_s;
  outcome_.ends_s[std::size_t{3} * request] = now_s;
  set_row(v, static_cast<std::size_t>(std::countr_zero(v.path)));
  look_outside();
  arrive(visit, now_s);
}

std::size_t Cascade::gear_of_arrival(double now_s) {
  if (spec_.gears.count() == 1) return 0;
  return shift_.arrive(now_s, [this](std::size_t station) { return fleet_.waiting(station); });
}

// Nothing is known yet. Done request by request, since the memory of millions of them takes seconds to touch.
void Cascade::open_record(std::uint32_t request) {
  outcome_.status[request] = static_cast<std::uint8_t>(Status::unfinished);
  outcome_.gear[request] = 0;
  std::ranges::fill(outcome_.ends_s.subspan(std::size_t{3} * request, 3), kUnknown);
  if (outcome_.times_s.empty()) return;
  for (std::size_t row = 0; row < rows_; ++row) {
    const std::size_t at = row * sent_all_ + request;
    std::ranges::fill(outcome_.times_s.subspan(4 * at, 4), kUnknown);
    outcome_.replica[at] = -1;
    outcome_.preempted[at] = 0;
  }
}

void Cascade::set_row(Visit& v, std::size_t row) {
  const Lengths& lengths = lengths_[v.drawn * rows_ + row];
  v.row = static_cast<std::uint8_t>(row);
  v.tokens_in = lengths.in;
  v.tokens_out = lengths.out;
  v.admitted_s = v.first_token_s = kUnknown;
  v.written = 0;
  v.preempted = 0;
}

// A visit arrives at the station of its row.
void Cascade::arrive(std::uint32_t visit, double now_s) {
  Visit& v = visits_[visit];
  const std::size_t station = std::min<std::size_t>(v.row, stages_);
  Dispatcher& dispatcher = fleet_.dispatchers[station];
  const std::size_t replica = dispatcher.choose(now_s, draws_, kPurposes * v.row + kDispatch, v.request);
  const std::size_t engine = fleet_.first[station] + replica;
  record_arrival(v, replica, now_s);
  if (!fleet_.engines[engine].holds(std::int64_t{v.tokens_in} + v.tokens_out)) {
    if (!go_to(visit, v.row % stages_, now_s)) lost(visit, Status::refused, now_s);
    return;
  }
  dispatcher.sent(replica);
  const double event_s = fleet_.engines[engine].event_s();
  fleet_.engines[engine].arrive(visits_, visit, now_s);
  if (fleet_.engines[engine].event_s() != event_s) update(engine);
}

void Cascade::end_steps(std::size_t engine, double now_s) {
  leaving_.clear();
  fleet_.engines[engine].end_steps(visits_, leaving_);
  if (leaving_.size() > 1)
    std::sort(leaving_.begin(), leaving_.end(),
              [&](auto a, auto b) { return visits_[a].request < visits_[b].request; });
  const std::size_t station = fleet_.station_of[engine];
  for (const std::uint32_t visit : leaving_) {
    const Visit& v = visits_[visit];
    const double finished_s = now_s + fleet_.engines[engine].costs().fill_s(v.tokens_in);
    fleet_.dispatchers[station].ended(engine - fleet_.first[station]);
    ++outcome_.visits;
    record(v, finished_s);
    hand_on(visit, finished_s);
  }
}

void Cascade::start_step(std::size_t engine, double now_s) {
  leaving_.clear();
  fleet_.engines[engine].start_step(visits_, leaving_);
  update(engine);
  const std::size_t station = fleet_.station_of[engine];
  for (const std::uint32_t visit : leaving_) {
    fleet_.dispatchers[station].ended(engine - fleet_.first[station]);
    record(visits_[visit], kUnknown);
    lost(visit, Status::timed_out, now_s);
  }
}

// An answer that is to be judged goes to the judge; any other, and what a judge has seen, goes on along the path, at
// the end of which the user has it: as it was written if nobody had to see it first.
void Cascade::hand_on(std::uint32_t visit, double finished_s) {
  Visit& v = visits_[visit];
  const std::size_t row = v.row;
  if (row < stages_ && (v.judged >> row & 1) != 0) {
    judge(visit, finished_s);
  } else if (!go_to(visit, row % stages_, finished_s)) {
    served(visit, row < stages_ ? v.first_token_s : finished_s, finished_s);
  }
}

void Cascade::judge(std::uint32_t visit, double finished_s) {
  Visit& v = visits_[visit];
  const std::size_t stage = v.row;
  if (!spec_.judge.empty()) {
    set_row(v, stages_ + stage);
    handovers_.push({finished_s, false, handed_++, visit});
    return;
  }
  const auto& delays = spec_.judge_delay_s;
  const double u = delays.size() == 1 ? 0 : draws_.uniform(kPurposes * stage + kJudgeDelay, v.request);
  const double judged_s = finished_s + delays[static_cast<std::size_t>(u * static_cast<double>(delays.size()))];
  if (!go_to(visit, stage, judged_s)) served(visit, judged_s, judged_s);
}

// Sends a visit to the next stage of its path, if there is one.
bool Cascade::go_to(std::uint32_t visit, std::size_t after_stage, double time_s) {
  Visit& v = visits_[visit];
  const unsigned further = v.path >> (after_stage + 1);
  if (further == 0) return false;
  set_row(v, after_stage + 1 + static_cast<std::size_t>(std::countr_zero(further)));
  handovers_.push({time_s, false, handed_++, visit});
  return true;
}

void Cascade::served(std::uint32_t visit, double first_token_s, double finished_s) {
  const std::uint32_t request = visits_[visit].request;
  outcome_.status[request] = static_cast<std::uint8_t>(Status::served);
  outcome_.ends_s[std::size_t{3} * request + 1] = first_token_s;
  outcome_.ends_s[std::size_t{3} * request + 2] = finished_s;
  outcome_.ended_s = std::max(outcome_.ended_s, finished_s);
  visits_.free(visit);
  ++done_;
  if (stream_.clients > 0) handovers_.push({finished_s, false, handed_++, kNobody});
}

void Cascade::lost(std::uint32_t visit, Status why, double now_s) {
  outcome_.status[visits_[visit].request] = static_cast<std::uint8_t>(why);
  visits_.free(visit);
  ++done_;
  if (stream_.clients > 0) send_at_once(now_s);
}

// In a closed loop: a client whose request is lost sends the next one before anything else that arrives then, whereas
// an answer has to reach its client in turn.
void Cascade::send_at_once(double time_s) { handovers_.push({time_s, true, handed_++, kNobody}); }

// What would have come after the simulation stopped, such as answers on their way, is not known.
void Cascade::forget_after_stop() {
  outcome_.ended_s = std::min(outcome_.ended_s, stream_.stop_s);
  for (std::size_t request = 0; request < sent_all_; ++request) {
    const std::span ends = outcome_.ends_s.subspan(3 * request, 3);
    if (!(ends[2] > stream_.stop_s)) continue;
    outcome_.status[request] = static_cast<std::uint8_t>(Status::unfinished);
    ends[1] = ends[2] = kUnknown;
  }
  for (double& time_s : outcome_.times_s)
    if (time_s > stream_.stop_s) time_s = kUnknown;
}

void Cascade::record_arrival(const Visit& v, std::size_t replica, double now_s) {
  if (outcome_.times_s.empty()) return;
  const std::size_t at = std::size_t{v.row} * sent_all_ + v.request;
  outcome_.times_s[4 * at] = now_s;
  outcome_.replica[at] = static_cast<std::int32_t>(replica);
}

void Cascade::record(const Visit& v, double finished_s) {
  if (outcome_.times_s.empty()) return;
  const std::size_t at = std::size_t{v.row} * sent_all_ + v.request;
  const std::span times = outcome_.times_s.subspan(4 * at, 4);
  times[1] = v.admitted_s;
  times[2] = v.first_token_s;
  times[3] = finished_s;
  outcome_.preempted[at] = v.preempted;
}

}  // namespace

void simulate(const CascadeSpec& spec, const Requests& requests, const Stream& stream, std::uint64_t seed,
              const std::function<bool(std::int64_t)>& go_on, Outcome& outcome) {
  Cascade(spec, requests, stream, seed, outcome).run(go_on);
}

}  // namespace cascadia
