// One inference engine under continuous batching, from event to event. As in vLLM's v1 engine, every step gives each
// decode a token, reads on in the prompt that the last step cut off, and fills what is left of the token budget with
// waiting prompts. Nothing is reserved: the KV cache fills as contexts grow, and when it is full the request admitted
// last loses its place and is read again later. With prompts_first a step carries prompts or decodes, as SGLang's do
// unless told otherwise; the room that SGLang keeps at admission for tokens still to be written is not modelled.
//
// Steps in which nothing but decoding happens form a run. Its end follows in closed form, exactly: step times are
// linear in the contexts, which grow by a token per step. Rounding stays below 1e-15 of the simulated time per run.
#pragma once
#include <cstdint>
#include <limits>
#include <vector>

#include "agenda.hpp"
#include "contexts.hpp"
#include "step_costs.hpp"
#include "visits.hpp"
#include "waiting_line.hpp"

namespace cascadia {

enum class Batching { chunked, prompts_first };

/// How an engine composes its steps.
struct Scheduler {
  Batching batching = Batching::chunked;  // prompts_first: a step carries prompts or decodes, never both
  Admission admission = Admission::fcfs;
  int block_tokens = 16;  // a power of two
  // Share of the KV cache kept free when a prompt is admitted to an engine that is not empty. vLLM's own default is 0
  // (its pull request 44594), with more preemptions; the latency model is held to engines that keep a hundredth.
  double watermark = 0.01;
  double prefix_hit_share = 0;  // of a prompt, found in the cache: not computed, but held
};

/// Throws std::invalid_argument, saying what is out of range.
void check(const Scheduler& scheduler);

/// What an engine has done.
struct EngineCounts {
  std::int64_t steps = 0, prompt_tokens = 0, preemptions = 0;
  double busy_s = 0, decoding_s = 0;  // decoding_s: summed over sequences
  double peak_kv_bytes = 0;
};

class Engine {
 public:
  /// `expires`: visits have deadlines. No step starts before `opens_s`.
  Engine(const StepCosts& costs, const Scheduler& scheduler, bool expires, double opens_s);

  const StepCosts& costs() const { return *costs_; }
  const EngineCounts& counts() const { return counts_; }
  /// Whether the KV cache could ever hold that many tokens of one request.
  bool holds(std::int64_t tokens) const { return contexts_.kv_bytes_of(tokens) <= costs_->kv_capacity_bytes; }

  /// Visits that have never been admitted.
  std::int64_t waiting() const { return unadmitted_; }

  /// When something happens next if nothing arrives; infinite in an idle engine.
  double event_s() const { return event_s_; }
  /// Whether that is the start of a step rather than the end of one or more.
  bool starts() const { return state_ == State::between_steps; }

  void arrive(Visits& visits, std::uint32_t visit, double now_s);
  /// Appends the visits that are served; they leave the engine.
  void end_steps(Visits& visits, std::vector<std::uint32_t>& served);
  /// Appends the visits whose deadline has passed; they leave the engine.
  void start_step(Visits& visits, std::vector<std::uint32_t>& expired);

 private:
  enum class State : std::uint8_t { idle, between_steps, in_steps };
  // What the step being composed carries of prompts.
  struct Prompts {
    std::int64_t budget, tokens = 0;
    std::int64_t preemptions;  // before the step
    double attention_s = 0, held_bytes = 0;
  };

  double partial_bytes() const { return partial_ == kNobody ? 0 : contexts_.kv_bytes_of(partial_read_); }
  std::int64_t places() const {
    return contexts_.count() + static_cast<std::int64_t>(joining_.size()) + (partial_ != kNobody);
  }
  bool fits(const Visit& v, double held_bytes) const;

  void send_back(Visits& visits, std::uint32_t visit);
  void preempt_partial(Visits& visits);
  void make_room(Visits& visits);
  void read(Visits& visits, std::uint32_t visit, std::int64_t before, Prompts& prompts);
  void read_on(Visits& visits, Prompts& prompts);
  void admit(Visits& visits, Prompts& prompts, std::vector<std::uint32_t>& expired);
  std::int64_t cached_tokens(const Visit& v) const;
  void begin_step(const Prompts& prompts);
  void begin_run(Visits& visits);

  double after(std::int64_t steps) const;
  std::int64_t steps_until(double time_s) const;
  void cut_run(double time_s);
  double next_deadline_s(Visits& visits) const;

  // Output tokens of a decode so far.
  std::uint32_t written(const Visit& v) const {
    return v.written + (static_cast<std::uint32_t>(contexts_.steps()) - v.joined_step);
  }
  void note(Visits& visits, std::uint32_t visit);
  void join(Visits& visits, std::uint32_t visit, std::vector<std::uint32_t>& served);
  void interrupt(Visit& v);
  void settle_agenda(Visits& visits, std::vector<std::uint32_t>& served);
  std::uint32_t latest_admitted(Visits& visits) const;
  void drop_expired(Visits& visits, std::vector<std::uint32_t>& expired);

  const StepCosts* costs_;
  const Scheduler* scheduler_;
  double event_s_ = std::numeric_limits<double>::infinity();
  double now_s_ = 0;          // start of the steps in flight, or the time between steps
  double first_step_s_ = 0;   // duration of the first of them,
  double step_growth_s_ = 0;  // and by how much each takes longer than the one before
  std::int64_t run_steps_ = 0;
  bool decodes_run_ = false;  // in the steps in flight
  double opens_s_;
  bool expires_;
  State state_ = State::idle;
  Contexts contexts_;
  Agenda agenda_;  // of the decodes: a visit is due when it has written all, or before that at the sliding window
  std::vector<std::uint32_t> joining_;  // their prompts are read by the end of the step in flight
  std::uint32_t partial_ = kNobody;     // the prompt that the token budget cut off,
  std::int64_t partial_read_ = 0;       // and how many of its tokens are in the cache
  std::uint32_t admissions_ = 0;
  WaitingLine waiting_;
  std::int64_t unadmitted_ = 0;  // of those that wait; the others were preempted
  EngineCounts counts_;
};

}  // namespace cascadia
