"""HiGHS on one allocation: the paper's program as written against pruned columns, same optimum."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture

from cascadia_fast.planning.allocation import paper_milp, pruned_milp

POOLS = (32, 256, 1024)


@cache
def tables(gpus: int) -> tuple[NDArray[np.float64], ...]:
    """Queue-like latencies of three stages that together load the pool to about a third."""
    count = np.arange(gpus + 1)
    made = []
    for smallest, load_share, service_s in ((1, 0.04, 9.0), (2, 0.11, 25.0), (8, 0.17, 33.0)):
        load = load_share * gpus
        usable = (count > load) & (count >= smallest)
        latency_s = np.full(gpus + 1, np.inf)
        latency_s[usable] = service_s / (1 - load / count[usable])
        made.append(latency_s)
    return tuple(made)


@cache
def optimum_s(gpus: int) -> float:
    """Smallest L with which the stages' smallest sufficient counts fit the pool."""
    latency_s = np.unique(np.concatenate(tables(gpus)))
    enough = [
        float(limit_s)
        for limit_s in latency_s[np.isfinite(latency_s)]
        if all((table <= limit_s).any() for table in tables(gpus))
        and sum(int(np.argmax(table <= limit_s)) for table in tables(gpus)) <= gpus
    ]
    return enough[0]


@pytest.mark.parametrize("gpus", POOLS)
def test_as_written(benchmark: BenchmarkFixture, gpus: int) -> None:
    benchmark.group = f"HiGHS on one allocation, {gpus} GPUs"
    rounds = 1 if gpus >= 1024 else 5
    found = benchmark.pedantic(paper_milp, args=(tables(gpus), gpus), rounds=rounds, iterations=1)
    assert found.latency_s == pytest.approx(optimum_s(gpus), rel=1e-9)


@pytest.mark.parametrize("gpus", POOLS)
def test_pruned(benchmark: BenchmarkFixture, gpus: int) -> None:
    benchmark.group = f"HiGHS on one allocation, {gpus} GPUs"
    columns = [(np.arange(gpus + 1), table) for table in tables(gpus)]
    found = benchmark(pruned_milp, columns, gpus)
    assert found.latency_s == pytest.approx(optimum_s(gpus), rel=1e-9)


@pytest.mark.parametrize("gpus", POOLS)
def test_pruned_proving_a_known_answer(benchmark: BenchmarkFixture, gpus: int) -> None:
    benchmark.group = f"HiGHS on one allocation, {gpus} GPUs"
    columns = [(np.arange(gpus + 1), table) for table in tables(gpus)]
    found = benchmark(pruned_milp, columns, gpus, at_most_s=optimum_s(gpus))
    assert found.latency_s == pytest.approx(optimum_s(gpus), rel=1e-9)
