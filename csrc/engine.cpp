#include "engine.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <stdexcept>
#include <string>

namespace cascadia {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr std::int64_t kFarSteps = std::int64_t{1} << 38;

}  // namespace

void check(const Scheduler& scheduler) {
  const auto tokens = static_cast<unsigned>(scheduler.block_tokens);
  if (scheduler.block_tokens < 1 || tokens > 4096 || !std::has_single_bit(tokens))
    throw std::invalid_argument("block_tokens is " + std::to_string(scheduler.block_tokens) +
                                ": give a power of two up to 4096.");
  if (!(scheduler.watermark >= 0 && scheduler.watermark < 1))
    throw std::invalid_argument("watermark is " + std::to_string(scheduler.watermark) +
                                ": give a share of the KV cache below 1.");
  if (!(scheduler.prefix_hit_share >= 0 && scheduler.prefix_hit_share <= 1))
    throw std::invalid_argument("prefix_hit_share is " + std::to_string(scheduler.prefix_hit_share) +
                                ": give a share of the prompt tokens.");
}

Engine::Engine(const StepCosts& costs, const Scheduler& scheduler, bool expires, double opens_s)
    : costs_(&costs),
      scheduler_(&scheduler),
      opens_s_(opens_s),
      expires_(expires),
      contexts_(costs.context, scheduler.block_tokens),
      waiting_(scheduler.admission) {}

void Engine::arrive(Visits& visits, std::uint32_t visit, double now_s) {
  waiting_.push(visits, visit);
  ++unadmitted_;
  if (state_ == State::idle) {
    now_s_ = event_s_ = std::max(now_s, opens_s_);
    state_ = State::between_steps;
  } else if (state_ == State::in_steps && joining_.empty() && partial_ == kNobody && waiting_.head() == visit) {
    // At the next step it is admitted, or, where there is no room before somebody leaves, dropped at its deadline. The
    // cache fills meanwhile: if there is no room by then, the run only was cut in vain.
    const bool room = places() < costs_->max_num_seqs && fits(visits[visit], contexts_.kv_bytes());
    cut_run(room ? now_s : visits[visit].deadline_s);
  }
}

bool Engine::fits(const Visit& v, double held_bytes) const {
  const double usable = costs_->kv_capacity_bytes * (places() == 0 ? 1.0 : 1 - scheduler_->watermark);
  return contexts_.kv_bytes_of(v.to_read()) <= usable - held_bytes;
}

// ---- a step begins

void Engine::start_step(Visits& visits, std::vector<std::uint32_t>& expired) {
  if (expires_) drop_expired(visits, expired);
  const std::int64_t preemptions = counts_.preemptions;
  if (contexts_.kv_bytes() + partial_bytes() > costs_->kv_capacity_bytes) make_room(visits);
  const std::int64_t decodes = scheduler_->batching == Batching::chunked ? contexts_.count() : 0;
  Prompts prompts{costs_->max_batched_tokens - decodes, 0, preemptions};
  prompts.held_bytes = contexts_.kv_bytes() + partial_bytes();
  if (partial_ != kNobody && prompts.budget > 0) read_on(visits, prompts);
  if (!waiting_.empty()) admit(visits, prompts, expired);
  counts_.peak_kv_bytes = std::max(counts_.peak_kv_bytes, prompts.held_bytes);
  if (prompts.tokens > 0) {
    begin_step(prompts);
  } else if (contexts_.count() > 0) {
    begin_run(visits);
    if (counts_.preemptions > preemptions) cut_run(now_s_);  // who was kept out may come in at the next step
  } else {
    state_ = State::idle;
    event_s_ = kInfinity;
  }
}

void Engine::send_back(Visits& visits, std::uint32_t visit) {
  std::uint8_t& times = visits[visit].preempted;
  if (times < std::numeric_limits<std::uint8_t>::max()) ++times;
  waiting_.push_front(visits, visit);
  ++counts_.preemptions;
}

void Engine::preempt_partial(Visits& visits) {
  send_back(visits, partial_);
  partial_ = kNobody;
}

// Takes places away, the latest admission first, until every decode can write its token.
void Engine::make_room(Visits& visits) {
  if (partial_ != kNobody) preempt_partial(visits);
  while (contexts_.kv_bytes() > costs_->kv_capacity_bytes) {
    const std::uint32_t latest = latest_admitted(visits);
    interrupt(visits[latest]);
    agenda_.remove_if([&](std::uint32_t visit) { return visit == latest; });
    send_back(visits, latest);
  }
}

std::uint32_t Engine::latest_admitted(Visits& visits) const {
  std::uint32_t latest = agenda_.visit();
  agenda_.for_each([&](std::uint32_t visit) {
    if (visits[visit].admission > visits[latest].admission) latest = visit;
  });
  return latest;
}

void Engine::read_on(Visits& visits, Prompts& prompts) {
  const std::int64_t end = std::min<std::int64_t>(visits[partial_].to_read(), partial_read_ + prompts.budget);
  prompts.held_bytes -= partial_bytes();
  if (prompts.held_bytes + contexts_.kv_bytes_of(end) > costs_->kv_capacity_bytes) {
    preempt_partial(visits);
    return;
  }
  const std::uint32_t visit = partial_;
  partial_ = kNobody;
  read(visits, visit, partial_read_, prompts);
}

void Engine::admit(Visits& visits, Prompts& prompts, std::vector<std::uint32_t>& expired) {
  while (!waiting_.empty()) {
    const std::uint32_t visit = waiting_.head();
    Visit& v = visits[visit];
    if (expires_ && v.deadline_s <= now_s_) {
      waiting_.pop(visits);
      unadmitted_ -= std::isnan(v.admitted_s);
      expired.push_back(visit);
      continue;
    }
    const bool preempted = counts_.preemptions > prompts.preemptions;  // then nobody is admitted, as in vLLM
    if (preempted || prompts.budget == 0 || places() == costs_->max_num_seqs || !fits(v, prompts.held_bytes)) break;
    waiting_.pop(visits);
    if (std::isnan(v.admitted_s)) {
      v.admitted_s = now_s_;
      --unadmitted_;
    }
    v.admission = admissions_++;
    read(visits, visit, cached_tokens(v), prompts);
  }
}

std::int64_t Engine::cached_tokens(const Visit& v) const {
  if (scheduler_->prefix_hit_share == 0) return 0;
  const auto hits = static_cast<std::int64_t>(scheduler_->prefix_hit_share * v.tokens_in);
  // At least one token is computed, and with it its block.
  return std::min<std::int64_t>(hits, v.to_read() - 1) & -static_cast<std::int64_t>(scheduler_->block_tokens);
}

// The step being composed reads on in a prompt, `before` tokens of which are in the cache.
void Engine::read(Visits& visits, std::uint32_t visit, std::int64_t before, Prompts& prompts) {
  const std::int64_t all = visits[visit].to_read(), chunk = std::min(all - before, prompts.budget);
  if (before + chunk == all) {
    joining_.push_back(visit);
  } else {
    partial_ = visit;
    partial_read_ = before + chunk;
  }
  prompts.budget -= chunk;
  prompts.tokens += chunk;
  prompts.held_bytes += contexts_.kv_bytes_of(before + chunk);
  prompts.attention_s += costs_->context.prefill_attention_s(static_cast<double>(chunk), static_cast<double>(before));
}

void Engine::begin_step(const Prompts& prompts) {
  decodes_run_ = scheduler_->batching == Batching::chunked;
  const auto decodes = static_cast<std::size_t>(decodes_run_ ? contexts_.count() : 0);
  run_steps_ = 1;
  first_step_s_ = costs_->step_s(decodes + static_cast<std::size_t>(prompts.tokens), decodes + joining_.size()) +
                  (decodes_run_ ? contexts_.attention_s() : 0) + prompts.attention_s;
  step_growth_s_ = 0;
  counts_.prompt_tokens += prompts.tokens;
  event_s_ = now_s_ + first_step_s_;
  state_ = State::in_steps;
}

// Decodes alone go on until something is due, the cache is full, or a deadline passes.
void Engine::begin_run(Visits& visits) {
  decodes_run_ = true;
  first_step_s_ = costs_->decode_step_s[static_cast<std::size_t>(contexts_.count())] + contexts_.attention_s();
  step_growth_s_ = contexts_.attention_growth_s();
  run_steps_ = contexts_.steps_within(costs_->kv_capacity_bytes, agenda_.step() - contexts_.steps());
  event_s_ = after(run_steps_);
  state_ = State::in_steps;
  visits.expect(agenda_.visit());
  if (expires_) cut_run(next_deadline_s(visits));
}

double Engine::next_deadline_s(Visits& visits) const {
  double next_s = waiting_.empty() ? kInfinity : visits[waiting_.head()].deadline_s;
  agenda_.for_each([&](std::uint32_t visit) { next_s = std::min(next_s, visits[visit].deadline_s); });
  return next_s;
}

// ---- its end

double Engine::after(std::int64_t steps) const {
  const auto k = static_cast<double>(steps);
  return now_s_ + (k * first_step_s_ + step_growth_s_ * (0.5 * k * (k - 1)));
}

// The first end of a step at or after `time_s`; what the root of the quadratic rounds away is made up for.
std::int64_t Engine::steps_until(double time_s) const {
  const double wait_s = time_s - now_s_, slope = first_step_s_ - 0.5 * step_growth_s_;
  if (wait_s <= first_step_s_) return 1;
  const double root = 2 * wait_s / (slope + std::sqrt(slope * slope + 2 * step_growth_s_ * wait_s));
  auto steps = static_cast<std::int64_t>(std::ceil(std::min(root, static_cast<double>(kFarSteps))));
  while (steps > 1 && after(steps - 1) >= time_s) --steps;
  while (after(steps) < time_s) ++steps;
  return steps;
}

// Ends the run at the first end of a step at or after `time_s`.
void Engine::cut_run(double time_s) {
  if (time_s > after(run_steps_ - 1)) return;
  run_steps_ = steps_until(time_s);
  event_s_ = after(run_steps_);
}

void Engine::end_steps(Visits& visits, std::vector<std::uint32_t>& served) {
  const double took_s = event_s_ - now_s_;
  counts_.steps += run_steps_;
  counts_.busy_s += took_s;
  counts_.decoding_s += took_s * static_cast<double>(contexts_.count());
  now_s_ = event_s_;
  if (decodes_run_) {
    if (contexts_.most_bytes_after(run_steps_ - 1) > counts_.peak_kv_bytes)
      counts_.peak_kv_bytes = std::max(counts_.peak_kv_bytes, contexts_.kv_bytes_after(run_steps_ - 1));
    contexts_.advance(run_steps_);
    settle_agenda(visits, served);
  }
  for (const std::uint32_t visit : joining_) join(visits, visit, served);
  joining_.clear();
  state_ = State::between_steps;
}

void Engine::settle_agenda(Visits& visits, std::vector<std::uint32_t>& served) {
  while (!agenda_.empty() && agenda_.step() == contexts_.steps()) {
    const std::uint32_t visit = agenda_.visit();
    agenda_.pop();
    Visit& v = visits[visit];
    if (written(v) < v.tokens_out) {
      v.growing = false;
      contexts_.settle();
      note(visits, visit);
    } else {
      v.written = v.tokens_out;
      contexts_.remove(v.to_read(), v.growing);
      served.push_back(visit);
    }
  }
}

void Engine::join(Visits& visits, std::uint32_t visit, std::vector<std::uint32_t>& served) {
  Visit& v = visits[visit];
  if (++v.written == 1) v.first_token_s = now_s_ + costs_->fill_s(v.tokens_in);
  if (v.written == v.tokens_out) {
    served.push_back(visit);
    return;
  }
  v.growing = contexts_.add(v.to_read());
  v.joined_step = static_cast<std::uint32_t>(contexts_.steps());
  note(visits, visit);
}

// Puts on the agenda what a decode is due for next: its end, unless its context reaches the window before that.
void Engine::note(Visits& visits, std::uint32_t visit) {
  const Visit& v = visits[visit];
  const std::int64_t so_far = written(v);
  std::int64_t due = v.tokens_out - so_far;
  if (v.growing) due = std::min(due, static_cast<std::int64_t>(costs_->context.window) - v.tokens_in - so_far);
  agenda_.add(contexts_.steps() + due, visit);
}

// Takes a visit out of the decodes, but for its entry on the agenda.
void Engine::interrupt(Visit& v) {
  v.written = written(v);
  contexts_.remove(v.to_read(), v.growing);
}

void Engine::drop_expired(Visits& visits, std::vector<std::uint32_t>& expired) {
  if (partial_ != kNobody && visits[partial_].deadline_s <= now_s_) {
    expired.push_back(partial_);
    partial_ = kNobody;
  }
  const std::size_t before = expired.size();
  agenda_.for_each([&](std::uint32_t visit) {
    if (visits[visit].deadline_s <= now_s_) expired.push_back(visit);
  });
  if (expired.size() == before) return;
  for (std::size_t i = before; i < expired.size(); ++i) interrupt(visits[expired[i]]);
  agenda_.remove_if([&](std::uint32_t visit) { return visits[visit].deadline_s <= now_s_; });
}

}  // namespace cascadia
