"""One serving engine, step by step: slow, and meant to be read beside the rules of the simulator.

Every step is composed and carried out on its own; every sum is formed anew. Lengths are whole tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core

FloatArray = NDArray[np.floating[Any]]
FAR_TOKENS = 2.0**24  # beyond any sliding window


class Costs(Protocol):
    """What the steps of an engine take, and what its KV cache holds."""

    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_batched_tokens(self) -> int: ...
    @property
    def kv_capacity(self) -> float: ...
    def linear_s(self, tokens: int, sampled: int) -> float: ...
    def decode_attention_s(self, context: int) -> float: ...
    def prefill_attention_s(self, chunk: int, before: int) -> float: ...
    def fill_s(self, tokens: int) -> float: ...
    def kv(self, context: int, block_tokens: int) -> float: ...


@dataclass(frozen=True)
class MeasuredCosts:
    """The arguments of `_core.StepCosts.measured`; the KV cache is counted in tokens."""

    decode_step_s: Sequence[float] | FloatArray
    prompt_step_s: Sequence[float] | FloatArray
    sampled_s: Sequence[float] | FloatArray
    sequence_s: float = 0.0
    context_token_s: float = 0.0
    prompt_pair_s: float = 0.0
    request_s: float = 0.0
    kv_capacity_tokens: float = 1e15

    @property
    def max_num_seqs(self) -> int:
        return len(self.decode_step_s) - 1

    @property
    def max_batched_tokens(self) -> int:
        return len(self.prompt_step_s) - 1

    @property
    def kv_capacity(self) -> float:
        return self.kv_capacity_tokens

    def linear_s(self, tokens: int, sampled: int) -> float:
        if tokens == sampled:
            return float(self.decode_step_s[tokens])
        return float(self.prompt_step_s[tokens] + self.sampled_s[sampled])

    def decode_attention_s(self, context: int) -> float:
        return self.sequence_s + self.context_token_s * context

    def prefill_attention_s(self, chunk: int, before: int) -> float:
        return max(self.prompt_pair_s * chunk * (before + chunk / 2), self.decode_attention_s(before + chunk))

    def fill_s(self, tokens: int) -> float:
        return self.request_s

    def kv(self, context: int, block_tokens: int) -> float:
        return float(math.ceil(context / block_tokens) * block_tokens)


@dataclass(frozen=True)
class ReplicaCosts:
    """A replica of the core, asked for every single step."""

    replica: _core.Replica
    limits: _core.EngineLimits

    @property
    def max_num_seqs(self) -> int:
        return self.limits.max_num_seqs

    @property
    def max_batched_tokens(self) -> int:
        return self.limits.max_batched_tokens

    @property
    def kv_capacity(self) -> float:
        return self.replica.kv_capacity_bytes

    def linear_s(self, tokens: int, sampled: int) -> float:
        return self.replica.linear_s(float(tokens), float(sampled))

    def decode_attention_s(self, context: int) -> float:
        return self.replica.decode_attention_s(float(context))

    def prefill_attention_s(self, chunk: int, before: int) -> float:
        return self.replica.prefill_attention_s(float(chunk), float(before))

    def fill_s(self, tokens: int) -> float:
        return self.replica.fill_s(float(tokens))

    def kv(self, context: int, block_tokens: int) -> float:
        """Layers with full attention keep whole blocks, those with a sliding window what the window holds."""
        in_full_layers = (self.replica.kv_bytes(2 * FAR_TOKENS) - self.replica.kv_bytes(FAR_TOKENS)) / FAR_TOKENS
        in_windowed_layers = self.replica.kv_bytes(float(context)) - in_full_layers * context
        return in_full_layers * (math.ceil(context / block_tokens) * block_tokens) + in_windowed_layers


@dataclass(frozen=True)
class Scheduler:
    """The arguments of `_core.Scheduler`."""

    batching: str = "chunked"
    admission: str = "fcfs"
    block_tokens: int = 16
    watermark: float = 0.01
    prefix_hit_share: float = 0.0


@dataclass(eq=False)
class Visit:
    """A request at one engine."""

    request: int
    row: int
    tokens_in: int
    tokens_out: int
    arrived_s: float
    deadline_s: float
    replica: int = -1
    order: int = -1  # of arrival at the engine
    written: int = 0
    cached: int = 0  # prompt tokens in the cache when the step in flight has ended; 0 before admission
    admission: int = -1  # number of its latest admission
    preemptions: int = 0
    admitted_s: float = math.nan
    first_token_s: float = math.nan
    finished_s: float = math.nan

    @property
    def context(self) -> int:
        """What a decode reads: the token written last is read now."""
        return self.tokens_in + self.written

    @property
    def to_read(self) -> int:
        """A prompt; after preemption also what had been written."""
        return self.tokens_in + self.written


@dataclass
class Step:
    decodes: list[Visit] = field(default_factory=list)  # those that take part
    chunks: list[tuple[int, int]] = field(default_factory=list)  # of prompts: tokens, and tokens before them
    joins: list[Visit] = field(default_factory=list)
    duration_s: float = 0.0

    @property
    def prompt_tokens(self) -> int:
        return sum(chunk for chunk, _ in self.chunks)


@dataclass
class Engine:
    """One replica. `start` composes a step, `end` carries it out."""

    costs: Costs
    scheduler: Scheduler
    capacity_per_s: float
    waiting: list[Visit] = field(default_factory=list)
    preempted: list[Visit] = field(default_factory=list)  # the last one is the head of the queue
    decodes: list[Visit] = field(default_factory=list)
    partial: Visit | None = None
    step: Step | None = None  # in flight
    start_is_due: bool = False
    outstanding: int = 0
    arrivals: int = 0
    admissions: int = 0
    steps: int = 0
    busy_s: float = 0.0
    decoding_s: float = 0.0
    prompt_tokens: int = 0
    preemptions: int = 0
    peak_kv_share: float = 0.0

    @property
    def has_work(self) -> bool:
        return bool(self.waiting or self.preempted or self.decodes or self.partial)

    def could_hold(self, visit: Visit) -> bool:
        return self._kv(visit.tokens_in + visit.tokens_out) <= self.costs.kv_capacity

    def enqueue(self, visit: Visit) -> None:
        visit.order = self.arrivals
        self.arrivals += 1
        self.outstanding += 1
        self.waiting.append(visit)

    def start(self, now_s: float) -> tuple[float | None, list[Visit]]:
        """Compose a step; return how long it takes, None if nothing is left to do, and who was cancelled."""
        cancelled = self._cancel_running(now_s)
        preemptions = self.preemptions
        self._make_room()
        step = Step()
        chunked = self.scheduler.batching == "chunked"
        budget = self.costs.max_batched_tokens - (len(self.decodes) if chunked else 0)
        if self.partial is not None and budget > 0:
            budget -= self._read_on(step, budget)
        while (head := self._head()) is not None:
            if head.deadline_s <= now_s:
                self._take(head)
                cancelled.append(head)
                continue
            # A step that takes somebody's place away gives none to anybody.
            if self.preemptions > preemptions or not self._may_admit(head, step, budget):
                break
            self._take(head)
            budget -= self._admit(head, step, budget, now_s)
        if chunked or not step.chunks:
            step.decodes = list(self.decodes)
        self.outstanding -= len(cancelled)
        if not step.decodes and not step.chunks:
            return None, cancelled
        step.duration_s = self._duration_s(step)
        self.peak_kv_share = max(self.peak_kv_share, self._held(step.joins) / self.costs.kv_capacity)
        self.step = step
        return step.duration_s, cancelled

    def end(self, now_s: float) -> list[Visit]:
        """Hand out the tokens of the step in flight; return who is finished."""
        assert self.step is not None
        step, self.step = self.step, None
        self.steps += 1
        self.busy_s += step.duration_s
        self.decoding_s += len(self.decodes) * step.duration_s
        self.prompt_tokens += step.prompt_tokens
        for visit in step.decodes + step.joins:
            visit.written += 1
            after_s = now_s + self._fill_s(visit)
            if visit.written == 1:
                visit.first_token_s = after_s
            if visit.written == visit.tokens_out:
                visit.finished_s = after_s
        running = self.decodes + step.joins
        self.decodes = [visit for visit in running if visit.written < visit.tokens_out]
        finished = [visit for visit in running if visit.written == visit.tokens_out]
        self.outstanding -= len(finished)
        return sorted(finished, key=lambda visit: visit.request)

    def _kv(self, context: int) -> float:
        return self.costs.kv(context, self.scheduler.block_tokens)

    def _fill_s(self, visit: Visit) -> float:
        return self.costs.fill_s(min(visit.tokens_in, self.costs.max_batched_tokens))

    def _held(self, joins: Sequence[Visit] = ()) -> float:
        prompts = [*joins, *([self.partial] if self.partial else [])]
        return sum(self._kv(v.context) for v in self.decodes) + sum(self._kv(v.cached) for v in prompts)

    def _cancel_running(self, now_s: float) -> list[Visit]:
        cancelled = [visit for visit in self.decodes if visit.deadline_s <= now_s]
        self.decodes = [visit for visit in self.decodes if visit.deadline_s > now_s]
        if self.partial is not None and self.partial.deadline_s <= now_s:
            cancelled.append(self.partial)
            self.partial = None
        return cancelled

    def _make_room(self) -> None:
        while self._held() > self.costs.kv_capacity:
            if self.partial is not None:
                self._preempt_partial()
            else:
                latest = max(self.decodes, key=lambda visit: visit.admission)
                self.decodes.remove(latest)
                self._preempt(latest)

    def _preempt_partial(self) -> None:
        assert self.partial is not None
        visit, self.partial = self.partial, None
        self._preempt(visit)

    def _preempt(self, visit: Visit) -> None:
        visit.cached = 0
        visit.preemptions += 1
        self.preemptions += 1
        self.preempted.append(visit)

    def _read_on(self, step: Step, budget: int) -> int:
        """Continue the partial prompt, if the cache has room for it; return the tokens read."""
        visit = self.partial
        assert visit is not None
        chunk = min(visit.to_read - visit.cached, budget)
        if self._held() - self._kv(visit.cached) + self._kv(visit.cached + chunk) > self.costs.kv_capacity:
            self._preempt_partial()
            return 0
        self._read(visit, chunk, step)
        return chunk

    def _read(self, visit: Visit, chunk: int, step: Step) -> None:
        step.chunks.append((chunk, visit.cached))
        visit.cached += chunk
        if visit.cached == visit.to_read:
            step.joins.append(visit)
            self.partial = None
        else:
            self.partial = visit

    def _head(self) -> Visit | None:
        if self.preempted:
            return self.preempted[-1]
        if self.scheduler.admission == "fcfs":
            return min(self.waiting, key=lambda visit: visit.order, default=None)
        return min(self.waiting, key=lambda visit: (visit.tokens_in, visit.order), default=None)

    def _take(self, head: Visit) -> None:
        (self.preempted if self.preempted else self.waiting).remove(head)

    def _may_admit(self, visit: Visit, step: Step, budget: int) -> bool:
        places = len(self.decodes) + len(step.joins) + (self.partial is not None)
        usable = self.costs.kv_capacity * (1.0 if places == 0 else 1.0 - self.scheduler.watermark)
        free = usable - self._held(step.joins)
        return budget > 0 and places < self.costs.max_num_seqs and self._kv(visit.to_read) <= free

    def _admit(self, visit: Visit, step: Step, budget: int, now_s: float) -> int:
        """Start to read a prompt; return the tokens read."""
        if math.isnan(visit.admitted_s):
            visit.admitted_s = now_s
        visit.admission = self.admissions
        self.admissions += 1
        block = self.scheduler.block_tokens
        shared = math.floor(self.scheduler.prefix_hit_share * visit.tokens_in)
        visit.cached = min(shared, visit.to_read - 1) // block * block
        chunk = min(visit.to_read - visit.cached, budget)
        self._read(visit, chunk, step)
        return chunk

    def _duration_s(self, step: Step) -> float:
        tokens = len(step.decodes) + step.prompt_tokens
        step_s = self.costs.linear_s(tokens, len(step.decodes) + len(step.joins))
        step_s += sum(self.costs.decode_attention_s(visit.context) for visit in step.decodes)
        return step_s + sum(self.costs.prefill_attention_s(chunk, before) for chunk, before in step.chunks)
