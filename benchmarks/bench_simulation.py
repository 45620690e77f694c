"""Simulated requests per second, on one thread and on two, and the memory that ten million of them take.

One replica: llama-3.1-8b on one H100 serves 100,000 requests of the Azure conversation trace, its lengths included, at
seven tenths of its capacity, without the table of visits. The baseline is the tests' simulation in Numba, which walks
through every step; both have to find the same end of every request.

A cascade: the plans of both cases, on 32 and 1,024 GPUs, at seven tenths of what they carry, Poisson arrivals,
bootstrapped requests, with the table of visits. The baseline is the tests' slow, readable simulation in Python, on the
first requests of the same stream. `visits_per_request` says how many stages a request visits; `preempting` has so
little memory for KV caches, and so much load, that they run full.
"""

from __future__ import annotations

import csv
import gzip
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pytest_benchmark.fixture import BenchmarkFixture
from reference import cascade_engine, cascade_simulation, event_simulation

from cascadia_fast import _core
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.simulation.system import SimulatedSystem, build_system

CASES = Path(__file__).parent / "cases"
REQUESTS = 100_000
LOAD = 0.7
MILLIONS = 10
LIMITS = _core.EngineLimits()


@dataclass(frozen=True)
class Stream:
    """Arguments of `_core.simulate` but for the stations."""

    arguments: dict[str, Any]

    @property
    def requests(self) -> int:
        return int(self.arguments["drawn"].size)

    def first(self, requests: int) -> Stream:
        some = {name: self.arguments[name][:requests] for name in ("drawn", "arrival_s")}
        return Stream(self.arguments | some)


@cache
def case(name: str, memory_utilization: float = 0.9) -> Problem:
    fields = yaml.safe_load((CASES / f"{name}.yaml").read_text(encoding="utf-8"))
    return Problem.from_dict(fields | {"engine": {"memory_utilization": memory_utilization}}, CASES)


def report(benchmark: BenchmarkFixture, requests: int, **extra: float) -> None:
    if benchmark.stats:  # none when benchmarks are disabled and only the answers are checked
        benchmark.extra_info["requests_per_s"] = requests / benchmark.stats.stats.median
    benchmark.extra_info.update(extra)


# ---- one replica


@cache
def conversation() -> Stream:
    """The trace end to end until there are enough requests, at seven tenths of what the replica carries."""
    with gzip.open(CASES / "data" / "azure2023_conv.csv.gz", "rt", encoding="utf-8", newline="") as file:
        rows = [(float(r["arrival_s"]), int(r["input_tokens"]), int(r["output_tokens"])) for r in csv.DictReader(file)]
    times_s, tokens_in, tokens_out = np.array(rows).T
    tokens_in, tokens_out = (np.maximum(tokens, 1).astype(np.int32) for tokens in (tokens_in, tokens_out))
    drawn = (np.arange(REQUESTS) % times_s.size).astype(np.int32)
    period_s = (times_s[-1] - times_s[0]) * times_s.size / (times_s.size - 1)
    arrival_s = times_s[drawn] - times_s[0] + np.arange(REQUESTS) // times_s.size * period_s
    capacity_per_s = event_simulation.capacity_per_s(replica(), tokens_in, tokens_out, limits=LIMITS)
    arguments = {
        "tokens_in": tokens_in[None],
        "tokens_out": tokens_out[None],
        "path": np.ones(times_s.size, np.uint16),
        "drawn": drawn,
        "arrival_s": arrival_s * (REQUESTS / arrival_s[-1]) / (LOAD * capacity_per_s),
    }
    return Stream(arguments)


@cache
def replica() -> _core.Replica:
    return next(r for r in Planner(case("llama20k")).fleet[0].replicas if (r.shape.tp, r.shape.pp) == (1, 1))


def walked() -> event_simulation.Simulated:
    a = conversation().arguments
    lengths = (a[name][0][a["drawn"]] for name in ("tokens_in", "tokens_out"))
    return event_simulation.simulate(replica(), a["arrival_s"], *lengths, limits=LIMITS)


def replica_run() -> _core.Simulated:
    # Blocks of one token, as the baseline has them.
    scheduler = _core.Scheduler(block_tokens=1)
    station = _core.Station([(_core.StepCosts(replica()), 1, 1.0)], scheduler=scheduler)
    return _core.simulate([station], **conversation().arguments, visits=False)


@pytest.mark.benchmark(group=f"one replica, {REQUESTS:,} requests of the Azure conversation trace")
def test_replica(benchmark: BenchmarkFixture) -> None:
    expected = walked()
    found = benchmark.pedantic(replica_run, rounds=15, warmup_rounds=2)
    np.testing.assert_allclose(found.finished_s, expected.finish_s, rtol=1e-9)
    report(benchmark, REQUESTS, steps=int(found.steps.sum()))


@pytest.mark.benchmark(group=f"one replica, {REQUESTS:,} requests of the Azure conversation trace")
def test_replica_step_by_step_in_numba(benchmark: BenchmarkFixture) -> None:
    conversation()
    benchmark.pedantic(walked, rounds=5, warmup_rounds=1)
    report(benchmark, REQUESTS)


# ---- a cascade


@dataclass(frozen=True)
class Cascade:
    """What a plan runs, for the native simulation and the slow one, and the stream it serves."""

    system: SimulatedSystem
    replicas: list[tuple[_core.Replica, int]]
    stream: Stream

    def run(self, seed: int = 0) -> _core.Simulated:
        stations = self.system.stations(_core.Scheduler(), "capacity_weighted")
        return _core.simulate(stations, **self.stream.arguments, seed=seed)


@cache
def cascade(name: str, gpus: int, memory_utilization: float = 0.9, load: float = LOAD) -> Cascade:
    problem = case(name, memory_utilization)
    # With half the memory the GPUs carry half the rate.
    rate_per_s = problem.workload.rate_per_s * gpus / problem.gpus * (1 if memory_utilization == 0.9 else 0.5)
    problem = problem.replace(gpus=gpus, rate_per_s=rate_per_s)
    planner = Planner(problem)
    plan = planner.plan(skip_models=False)  # all three stages are at work
    system = build_system(plan, problem)
    replicas = []
    for stage in plan.stages:
        (group,) = stage.replicas
        shape = _core.Shape(group.tp, group.pp)
        replicas.append((next(r for r in planner.fleet[stage.index].replicas if r.shape == shape), group.count))
    rng = np.random.default_rng(0)
    rate_per_s = load * plan.predicted.max_rate_per_s / plan.max_utilization
    arguments = {
        "tokens_in": system.tokens_in,
        "tokens_out": system.tokens_out,
        "path": system.path[0],
        "judge_delay_s": np.array([problem.judge.latency_s]),
        "drawn": rng.integers(0, system.path.size, REQUESTS).astype(np.int32),
        "arrival_s": np.cumsum(rng.exponential(1 / rate_per_s, REQUESTS)),
    }
    return Cascade(system, replicas, Stream(arguments))


def assert_served(found: _core.Simulated, made: Cascade) -> None:
    """Everybody is served along the own path, and the pieces add up."""
    assert not found.status.any()
    drawn, path = made.stream.arguments["drawn"], made.system.path[0]
    assert found.visits_done == np.bitwise_count(path[drawn]).sum()
    assert found.times_s is not None
    visited = np.isfinite(found.times_s[:, :, 3])
    np.testing.assert_array_equal(visited, path[drawn] >> np.arange(len(visited))[:, None] & 1)
    assert (found.finished_s > found.arrived_s).all()


@pytest.mark.parametrize("gpus", [32, 1024])
@pytest.mark.parametrize("name", ["deepseek", "llama20k"])
def test_cascade(benchmark: BenchmarkFixture, name: str, gpus: int) -> None:
    benchmark.group = f"three stages, {name}, {gpus:,} GPUs, {REQUESTS:,} requests"
    made = cascade(name, gpus)
    found = benchmark.pedantic(made.run, rounds=9, warmup_rounds=1)
    assert_served(found, made)
    report(benchmark, REQUESTS, visits_per_request=found.visits_done / REQUESTS)


@pytest.mark.benchmark(group=f"three stages, llama20k, 32 GPUs, {REQUESTS:,} requests")
def test_cascade_preempting(benchmark: BenchmarkFixture) -> None:
    made = cascade("llama20k", 32, 0.5, 0.95)
    found = benchmark.pedantic(made.run, rounds=9, warmup_rounds=1)
    assert_served(found, made)
    assert found.preemptions.sum() > 0
    preemptions = int(found.preemptions.sum()) / found.visits_done
    report(benchmark, REQUESTS, visits_per_request=found.visits_done / REQUESTS, preemptions_per_visit=preemptions)


@pytest.mark.benchmark(group=f"three stages, llama20k, 32 GPUs, {REQUESTS:,} requests")
def test_cascade_slowly_in_python(benchmark: BenchmarkFixture) -> None:
    made, few = cascade("llama20k", 32), 200
    stations = [
        cascade_simulation.Station([(cascade_engine.ReplicaCosts(one, LIMITS), count, 1.0)])
        for one, count in made.replicas
    ]
    stream = made.stream.first(few)
    expected = benchmark.pedantic(
        cascade_simulation.simulate, args=(stations,), kwargs=stream.arguments, rounds=1, warmup_rounds=0
    )
    found = Cascade(made.system, made.replicas, stream).run()
    np.testing.assert_allclose(found.finished_s, expected.finished_s, rtol=1e-9)
    report(benchmark, few)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.benchmark(group="eight independent runs of the DeepSeek cascade")
def test_runs(benchmark: BenchmarkFixture, threads: int) -> None:
    made = cascade("deepseek", 32)

    def runs() -> list[_core.Simulated]:
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(made.run, range(8)))

    found = benchmark.pedantic(runs, rounds=5, warmup_rounds=1)
    for seed in (0, 7):
        assert found[seed].finished_s.tobytes() == made.run(seed).finished_s.tobytes()
    report(benchmark, 8 * REQUESTS)


# ---- memory

PEAK = """
import re, sys
import cascadia_fast as cf
from cascadia_fast.problem import Problem
problem = Problem.read(sys.argv[1])
result = cf.simulate(cf.plan(problem), problem, requests=int(sys.argv[2]))
latency_s = result.latency.p95.value  # statistics count, too
# Linux; ru_maxrss would start from what the calling process had.
peak_kb = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]
print(result.counts["served"], int(peak_kb) * 1024, latency_s)
"""


@pytest.mark.slow
@pytest.mark.benchmark(group=f"peak memory of simulating the llama20k cascade, {MILLIONS} million requests")
def test_peak_memory(benchmark: BenchmarkFixture) -> None:
    def peak(requests: int) -> list[float]:
        command = [sys.executable, "-c", PEAK, str(CASES / "llama20k.yaml"), str(requests)]
        return [float(n) for n in subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()]

    served, peak_bytes, _ = benchmark.pedantic(peak, args=(MILLIONS * 1_000_000,), rounds=1)
    assert served == MILLIONS * 1_000_000
    benchmark.extra_info["peak_bytes"] = peak_bytes
    benchmark.extra_info["bytes_per_request"] = (peak_bytes - peak(1000)[1]) / served
