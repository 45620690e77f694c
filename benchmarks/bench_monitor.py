"""`Monitor.observe`: the Cython class against the same through pybind11 and in pure Python, same records in the end.

Each round observes 10,000 visits of a three-stage cascade whose request ids are fresh strings, as in a gateway: their
hashes are not cached yet. The time of a round includes the loop that makes the calls; `per_call_ns` (best round) says
what a call takes with the loop, `per_call_without_loop_ns` what it takes alone.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import pybind11
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from cascadia_fast.monitor import Monitor
from cascadia_fast.traffic import VISIT

CALLS = 10_000
ROUNDS = 30
CAPACITY = 65_536
HERE = Path(__file__).parent
Visit = tuple[str, int, int, int, float, float, float]


class Observer(Protocol):
    def observe(
        self,
        request_id: str,
        stage: int,
        input_tokens: int,
        output_tokens: int,
        score: float,
        latency_s: float,
        now_s: float,
        /,
    ) -> None: ...


class PurePythonMonitor:
    """The ring as a list of tuples, with the checks of the Cython class on plain numbers."""

    def __init__(self, stages: int, capacity: int) -> None:
        self.stages = stages
        self.ring: list[tuple[int, int, float, float, float, float, float] | None] = [None] * capacity
        self.next = 0
        self.observations = 0

    def observe(
        self,
        request_id: str,
        stage: int,
        input_tokens: int,
        output_tokens: int,
        score: float,
        latency_s: float,
        now_s: float,
    ) -> None:
        if not 0 <= stage < self.stages:
            raise ValueError(f"stage is {stage}")
        if not 0 <= input_tokens <= 1e9:
            raise ValueError(f"input_tokens is {input_tokens}")
        if not 0 <= output_tokens <= 1e9:
            raise ValueError(f"output_tokens is {output_tokens}")
        if not (score != score or 0 <= score <= 100):
            raise ValueError(f"score is {score}")
        if not math.isfinite(now_s):
            raise ValueError(f"now_s is {now_s}")
        if not (math.isfinite(latency_s) and latency_s >= 0):
            latency_s = math.nan
        self.ring[self.next] = (hash(request_id), stage, now_s, latency_s, input_tokens, output_tokens, score)
        self.next += 1
        if self.next == len(self.ring):
            self.next = 0
        self.observations += 1

    def visits(self) -> NDArray[Any]:
        return np.array(self.ring[: self.next], VISIT)


def stream(seed: int) -> list[Visit]:
    rng = np.random.default_rng(seed)
    names = rng.bytes(16 * CALLS).hex()
    stages = rng.integers(0, 3, CALLS).tolist()
    tokens = rng.integers(1, 8_000, (2, CALLS)).tolist()
    scores = np.where(rng.random(CALLS) < 0.1, math.nan, 100 * rng.random(CALLS)).tolist()
    latencies_s = rng.exponential(5.0, CALLS).tolist()
    times_s = np.cumsum(rng.exponential(0.01, CALLS)).tolist()
    ids = (names[32 * k : 32 * k + 32] for k in range(CALLS))
    return list(zip(ids, stages, *tokens, scores, latencies_s, times_s, strict=True))


def feed(observe: Callable[..., object], visits: list[Visit]) -> None:
    for request_id, stage, input_tokens, output_tokens, score, latency_s, now_s in visits:
        observe(request_id, stage, input_tokens, output_tokens, score, latency_s, now_s)


def loop_alone_s(visits: list[Visit]) -> float:
    """Time of `feed` without the calls, best of twenty."""
    times_s = []
    for _ in range(20):
        start_s = time.perf_counter()
        for _request_id, _stage, _input_tokens, _output_tokens, _score, _latency_s, _now_s in visits:
            pass
        times_s.append(time.perf_counter() - start_s)
    return min(times_s)


def compiled(folder: Path) -> ModuleType:
    """Build and import the pybind11 class, with the flags of a release build."""
    compiler = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no C++ compiler on the path to build the pybind11 class with")
    library = folder / f"monitor_pybind11{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [f"-I{pybind11.get_include()}", f"-I{sysconfig.get_path('include')}"]
    flags = ["-O3", "-DNDEBUG", "-std=c++20", "-fPIC", "-shared", "-fvisibility=hidden"]
    if sys.platform == "darwin":
        flags += ["-undefined", "dynamic_lookup"]
    subprocess.run([compiler, *flags, *includes, str(HERE / "monitor_pybind11.cpp"), "-o", str(library)], check=True)
    spec = importlib.util.spec_from_file_location("monitor_pybind11", library)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def pybind11_module(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    return compiled(tmp_path_factory.mktemp("monitor_pybind11"))


def measure(
    benchmark: BenchmarkFixture, make: Callable[[], Observer], visits_of: Callable[[Any], NDArray[Any]]
) -> None:
    benchmark.group = f"Monitor.observe, {CALLS:,} visits"
    monitors: list[Observer] = []
    streams: list[list[Visit]] = []

    def set_up() -> tuple[tuple[Any, ...], dict[str, Any]]:
        monitors[:] = [make()]
        streams[:] = [stream(seed=0)]
        return (monitors[0].observe, streams[0]), {}

    benchmark.pedantic(feed, setup=set_up, rounds=ROUNDS)
    expected = Monitor(3, window_s=1e6, capacity=CAPACITY)
    feed(expected.observe, streams[0])
    assert expected.observations == CALLS
    # Bytes, not values: a NaN score is the same answer in both.
    assert visits_of(monitors[0]).tobytes() == expected.window().visits.tobytes()
    assert visits_of(monitors[0])["request"].tolist() == [hash(visit[0]) for visit in streams[0]]
    if benchmark.stats is not None:
        call_s = benchmark.stats.stats.min / CALLS
        benchmark.extra_info["per_call_ns"] = round(call_s * 1e9, 1)
        benchmark.extra_info["per_call_without_loop_ns"] = round((call_s - loop_alone_s(streams[0]) / CALLS) * 1e9, 1)


def test_cython(benchmark: BenchmarkFixture) -> None:
    measure(benchmark, lambda: Monitor(3, window_s=1e6, capacity=CAPACITY), lambda monitor: monitor.window().visits)


def test_pybind11(benchmark: BenchmarkFixture, pybind11_module: ModuleType) -> None:
    measure(benchmark, lambda: pybind11_module.Monitor(3, CAPACITY), lambda monitor: monitor.visits())


def test_pure_python(benchmark: BenchmarkFixture) -> None:
    measure(benchmark, lambda: PurePythonMonitor(3, CAPACITY), lambda monitor: monitor.visits())
