"""The event simulation against closed forms, a hand-computed example, and a simulation that skips nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import ArrayLike, NDArray
from reference import event_simulation
from reference.brute_force import engine
from reference.event_loop import DISPATCHES, WATERMARK
from reference.event_simulation import Simulated

from cascadia_fast import _core

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
ROUNDING = 1e-9


@dataclass(frozen=True)
class Server:
    """An engine with the limits it was made with."""

    engine: _core.Replica
    limits: _core.EngineLimits

    @classmethod
    def of(cls, model: str, *shape: Any, **limits: Any) -> Server:
        return cls(engine(model, *shape, **limits), _core.EngineLimits(**limits))

    def simulate(self, *requests: ArrayLike, **options: Any) -> Simulated:
        return event_simulation.simulate(self.engine, *requests, limits=self.limits, **options)

    def capacity_per_s(self, tokens_in: ArrayLike, tokens_out: ArrayLike) -> float:
        return event_simulation.capacity_per_s(self.engine, tokens_in, tokens_out, limits=self.limits)

    def closed_loop(self, concurrency: int, tokens_in: ArrayLike, tokens_out: ArrayLike, requests: int) -> Simulated:
        return event_simulation.closed_loop(
            self.engine, concurrency, tokens_in, tokens_out, requests, limits=self.limits
        )


def ample() -> Server:
    return Server.of("llama-3.1-8b")


def one_at_a_time() -> Server:
    return Server.of("llama-3.1-8b", max_num_seqs=1)


def tight() -> Server:
    """About 12,000 tokens of KV cache."""
    return Server.of("llama-3.1-8b", memory_utilization=0.235)


def poisson(rng: np.random.Generator, rate_per_s: float, count: int) -> NDArray[np.float64]:
    return np.cumsum(rng.exponential(1 / rate_per_s, count))


@dataclass
class Sequence:
    """A request in the simulation that skips nothing."""

    index: int
    tokens_in: int
    tokens_out: int
    cached: int = 0
    written: int = 0
    times_s: list[float] = field(default_factory=list)  # of its tokens

    @property
    def target(self) -> int:
        return self.tokens_in + self.written


def every_step(
    server: Server, arrival_s: FloatArray, tokens_in: IntArray, tokens_out: IntArray
) -> tuple[list[float], list[float], int]:
    """The rules of the simulation once more, one step and one token at a time, on lists in order of admission."""
    e, budget_all, most = server.engine, server.limits.max_batched_tokens, server.limits.max_num_seqs
    requests = [Sequence(k, int(i), int(o)) for k, (i, o) in enumerate(zip(tokens_in, tokens_out, strict=True))]
    arriving = list(requests)
    waiting: list[Sequence] = []
    running: list[Sequence] = []
    now_s, preemptions = 0.0, 0

    def held(extra: dict[int, int]) -> float:
        return sum(e.kv_bytes(float(s.cached + extra.get(s.index, 0))) for s in running)

    while arriving or waiting or running:
        while arriving and arrival_s[arriving[0].index] <= now_s:
            waiting.append(arriving.pop(0))
        if not waiting and not running:
            now_s = float(arrival_s[arriving[0].index])
            continue
        preempted = []
        decodes = [s for s in running if s.cached == s.target - 1]
        while held({s.index: 1 for s in decodes if s in running}) > e.kv_capacity_bytes:
            preempted.append(running.pop())
        chunk = {s.index: 1 for s in decodes if s in running}
        budget = budget_all - len(chunk)
        for s in [s for s in running if s.index not in chunk]:
            chunk[s.index] = min(budget, s.target - s.cached)
            if held(chunk) > e.kv_capacity_bytes:
                preempted.append(running.pop())
                del chunk[s.index]
            else:
                budget -= chunk[s.index]
        for s in preempted:
            s.cached = 0
            waiting.insert(0, s)
        while waiting and not preempted and budget > 0 and len(running) < most:
            s = waiting[0]
            free = e.kv_capacity_bytes * (1 - WATERMARK if running else 1) - held(chunk)
            if e.kv_bytes(float(s.target)) > free:
                break
            running.append(waiting.pop(0))
            chunk[s.index] = min(budget, s.target)
            budget -= chunk[s.index]
        preemptions += len(preempted)
        writers = [s for s in running if s.cached + chunk[s.index] == s.target]
        now_s += e.linear_s(float(sum(chunk.values())), float(len(writers)))
        for s in running:
            if s in decodes:
                now_s += e.decode_attention_s(float(s.cached + 1))
            else:
                now_s += e.prefill_attention_s(float(chunk[s.index]), float(s.cached))
            s.cached += chunk[s.index]
        for s in writers:
            s.written += 1
            s.times_s.append(now_s + e.fill_s(float(min(s.tokens_in, budget_all))))
        running = [s for s in running if s.written < s.tokens_out]
    assert all(len(s.times_s) == s.tokens_out for s in requests)
    return [s.times_s[0] for s in requests], [s.times_s[-1] for s in requests], preemptions


@pytest.mark.parametrize(
    ("server", "rate_per_s", "longest_in", "longest_out", "preempts"),
    [
        (ample, 30.0, 1500, 60, False),
        (lambda: Server.of("llama-3.1-8b", max_num_seqs=8, max_batched_tokens=64), 15.0, 300, 40, False),
        (lambda: Server.of("gpt-oss-20b", 1, 1, "mxfp4", max_batched_tokens=256), 30.0, 400, 60, False),
        (lambda: Server.of("mixtral-8x7b", 2, 2, max_num_seqs=16), 10.0, 3000, 30, False),
        (tight, 30.0, 3000, 600, True),
        (lambda: Server.of("llama-3.1-8b", memory_utilization=0.235, max_batched_tokens=512), 20.0, 4000, 300, True),
        (lambda: Server.of("gpt-oss-20b", 1, 1, "mxfp4", memory_utilization=0.195), 60.0, 1000, 800, True),
    ],
)
def test_skips_nothing(
    server: Callable[[], Server], rate_per_s: float, longest_in: int, longest_out: int, preempts: bool
) -> None:
    rng = np.random.default_rng(5)
    count = 150
    requests = (
        poisson(rng, rate_per_s, count),
        rng.integers(1, longest_in, count),
        rng.integers(1, longest_out, count),
    )
    found = server().simulate(*requests)
    first_s, finish_s, preemptions = every_step(server(), *requests)
    np.testing.assert_allclose(found.first_token_s, first_s, rtol=ROUNDING)
    np.testing.assert_allclose(found.finish_s, finish_s, rtol=ROUNDING)
    assert found.preemptions == preemptions
    assert (preemptions > 0) == preempts


def test_three_requests_by_hand() -> None:
    """The second comes during the first one's prefill and is cut in two; the third waits for the budget."""
    server = Server.of("llama-3.1-8b", max_batched_tokens=256)
    e = server.engine
    found = server.simulate([1.0, 1.0001, 1.0002], [200, 300, 100], [3, 2, 1])
    step_1 = 1.0 + e.linear_s(200, 1) + e.prefill_attention_s(200, 0)
    step_2 = step_1 + e.linear_s(256, 1) + e.decode_attention_s(201) + e.prefill_attention_s(255, 0)
    rest = e.prefill_attention_s(45, 255) + e.prefill_attention_s(100, 0)
    step_3 = step_2 + e.linear_s(146, 3) + e.decode_attention_s(202) + rest
    step_4 = step_3 + e.linear_s(1, 1) + e.decode_attention_s(301)
    fill_s = e.fill_s([200.0, 256.0, 100.0])  # of the largest chunk
    np.testing.assert_allclose(found.first_token_s, np.array([step_1, step_3, step_3]) + fill_s, rtol=1e-12)
    np.testing.assert_allclose(found.finish_s, np.array([step_3, step_4, step_3]) + fill_s, rtol=1e-12)


@pytest.mark.parametrize(("prompts", "utilization"), [("equal", 0.5), ("equal", 0.8), ("mixed", 0.5), ("mixed", 0.8)])
def test_pollaczek_khinchine(prompts: str, utilization: float) -> None:
    """One prompt per step and one token per request: an M/D/1 or M/G/1 queue."""
    server, rng, count = one_at_a_time(), np.random.default_rng(1), 400_000
    tokens_in = np.full(count, 1000) if prompts == "equal" else rng.choice([100, 4000], count, p=[0.8, 0.2])
    service_s = server.engine.linear_s(tokens_in, np.ones(count)) + server.engine.prefill_attention_s(
        tokens_in, np.zeros(count)
    )
    rate_per_s = utilization / service_s.mean()
    found = server.simulate(poisson(rng, rate_per_s, count), tokens_in, np.ones(count))
    wait_s = (found.latency_s - service_s - server.engine.fill_s(tokens_in)).mean()
    assert wait_s == pytest.approx(rate_per_s * (service_s**2).mean() / 2 / (1 - utilization), rel=0.03)


def traffic(rate_per_s: float, count: int = 2000) -> tuple[NDArray[Any], ...]:
    rng = np.random.default_rng(2)
    return poisson(rng, rate_per_s, count), rng.integers(50, 2000, count), rng.integers(1, 400, count)


def test_tokens_and_time_are_conserved() -> None:
    """Every token is computed once, and Little's law holds on the path, not only on average."""
    arrival_s, tokens_in, tokens_out = traffic(10.0)
    found = ample().simulate(arrival_s, tokens_in, tokens_out)
    assert found.preemptions == 0
    assert found.processed_tokens == (tokens_in + tokens_out - 1).sum()
    decoding_s = (found.finish_s - found.first_token_s).sum()
    assert found.mean_running[0] * (found.finish_s.max() - arrival_s[0]) == pytest.approx(decoding_s, rel=ROUNDING)
    assert (found.first_token_s > arrival_s).all()
    assert ((found.finish_s > found.first_token_s) == (tokens_out > 1)).all()


def test_first_come_first_served() -> None:
    found = ample().simulate(*traffic(15.0))
    assert (np.diff(found.first_token_s) >= 0).all()


def test_preemption_costs_tokens_and_time() -> None:
    arrival_s, tokens_in, tokens_out = traffic(10.0)
    short, full = ample().simulate(arrival_s, tokens_in, tokens_out), tight().simulate(arrival_s, tokens_in, tokens_out)
    assert full.preemptions > 0
    assert np.isfinite(full.finish_s).all()
    assert full.processed_tokens > short.processed_tokens
    assert full.latency_s.mean() > short.latency_s.mean()


def test_dispatch() -> None:
    """With one engine all are the same; with four, knowing who is busy beats taking turns, and that beats chance."""
    alone = [ample().simulate(*traffic(15.0), dispatch=dispatch).latency_s for dispatch in DISPATCHES]
    assert all((latency_s == alone[0]).all() for latency_s in alone)
    server = Server.of("llama-3.1-8b", max_num_seqs=32)
    _, *lengths = traffic(1.0, 20_000)
    requests = traffic(4 * 0.8 * server.capacity_per_s(*lengths), 20_000)
    found = {dispatch: server.simulate(*requests, dispatch=dispatch, replicas=4) for dispatch in DISPATCHES}
    p95_s = {dispatch: np.quantile(simulated.latency_s, 0.95) for dispatch, simulated in found.items()}
    assert p95_s["least_outstanding"] < p95_s["round_robin"] < p95_s["random"]
    assert all(np.bincount(simulated.replica).min() > 4500 for simulated in found.values())
    assert (
        found["random"].finish_s.sum()
        != server.simulate(*requests, dispatch="random", replicas=4, seed=1).finish_s.sum()
    )


def test_least_outstanding_avoids_the_busy_engine() -> None:
    found = ample().simulate([0.0, 0.1, 0.2, 0.3], [10] * 4, [2000, 1000, 1, 1], replicas=2)
    assert found.replica[0] != found.replica[1]
    later = ample().simulate([0.0, 0.001, 50.0], [10] * 3, [20_000, 1, 1], replicas=2)
    assert later.replica[2] == later.replica[1]  # the first one still decodes
    idle = ample().simulate(np.arange(400) * 10.0, [10] * 400, [10] * 400, replicas=4)
    assert np.bincount(idle.replica).min() > 70  # ties are broken at random


def test_replicas_split_at_random_do_not_see_each_other() -> None:
    arrival_s, tokens_in, tokens_out = traffic(30.0)
    together = ample().simulate(arrival_s, tokens_in, tokens_out, dispatch="random", replicas=3)
    for r in range(3):
        mine = together.replica == r
        alone = ample().simulate(arrival_s[mine], tokens_in[mine], tokens_out[mine])
        assert (alone.finish_s == together.finish_s[mine]).all()


@pytest.mark.parametrize("concurrency", [1, 4, 40])
def test_closed_loop(concurrency: int) -> None:
    found = ample().closed_loop(concurrency, 500, 100, 400)
    outstanding = np.searchsorted(found.arrival_s, found.finish_s) - np.arange(400)
    assert outstanding.max() == concurrency
    assert (np.sort(found.arrival_s)[concurrency:] == np.sort(found.finish_s)[:-concurrency]).all()
    if concurrency == 1:
        idle = ample().simulate([0.0], [500], [100])
        np.testing.assert_allclose(found.latency_s, idle.latency_s[0], rtol=ROUNDING)


def test_capacity() -> None:
    """Of one request at a time: the inverse of its latency. Of batches: what ends no later than the arrivals do."""
    server = one_at_a_time()
    # What a request waits for outside its steps keeps nobody else from being served.
    idle_s = server.simulate([0.0], [700], [20]).latency_s[0] - server.engine.fill_s(700.0)
    assert server.capacity_per_s([700] * 100, [20] * 100) == pytest.approx(1 / idle_s)
    server = Server.of("llama-3.1-8b", max_num_seqs=64)
    _, tokens_in, tokens_out = traffic(1.0, 20_000)
    most_per_s = server.capacity_per_s(tokens_in, tokens_out)
    lag_s = {}
    for load in (0.9, 1.1):
        arrival_s = np.arange(20_000) / (load * most_per_s)
        lag_s[load] = server.simulate(arrival_s, tokens_in, tokens_out).finish_s.max() - arrival_s[-1]
    assert lag_s[0.9] < 20
    assert lag_s[1.1] == pytest.approx(20_000 / most_per_s * (1 - 1 / 1.1), rel=0.1)


def test_refuses_what_would_never_end() -> None:
    with pytest.raises(ValueError, match="a request of 200010 tokens does not fit the KV cache"):
        tight().simulate([0.0], [10], [200_000])
    with pytest.raises(ValueError, match="goes backwards"):
        ample().simulate([1.0, 0.0], [10, 10], [10, 10])
    with pytest.raises(ValueError, match="max_num_seqs is above max_batched_tokens"):
        Server.of("llama-3.1-8b", max_batched_tokens=128).simulate([0.0], [10], [10])
    with pytest.raises(ValueError, match="at least 1"):
        ample().simulate([0.0], [10], [0])
    with pytest.raises(ValueError, match="do not fill 256 places"):
        ample().capacity_per_s([10] * 50, [10] * 50)


def test_longest_request_fits_exactly() -> None:
    """Alone in the engine a request may take the part of the cache that admission keeps free."""
    server = tight()
    most = math.floor(server.engine.kv_capacity_bytes / server.engine.kv_bytes(1.0))
    found = server.simulate([0.0, 0.0], [most - 20, most - 20], [20, 20])
    assert np.isfinite(found.finish_s).all()
    assert found.preemptions == 0
