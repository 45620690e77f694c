"""Evaluations of the latency model on one thread, each of a workload it has never seen, and look-up tables on two.

The workloads are what the distinct routings of the llama20k case send to its largest model: one row of 64 length cells
each, on an engine whose batch holds 256 sequences, at utilisations up to 0.9. `evaluations_per_s` counts everything
between arrays in and arrays out: the engine's tables, what is prepared per workload, and the evaluation. The baseline
is the NumPy reference, on a few of the rows. Step times have a file of their own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pytest_benchmark.fixture import BenchmarkFixture
from reference import load_model as oracle

from cascadia_fast import _core
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, routing_grid

CELLS, BATCH, TP = 64, 256, 8
REFERENCE_ROWS = 8
TABLE_GPUS = 10_240
GROUP = f"fresh evaluations on one thread, {CELLS} cells, batch {BATCH}"
FloatArray = NDArray[np.float64]


@cache
def problem() -> Problem:
    return Problem.read(Path(__file__).parent / "cases" / "llama20k.yaml")


@cache
def grid() -> RoutingGrid:
    return routing_grid(problem().workload.requests)


@dataclass(frozen=True)
class Work:
    """Rows of shares, shape (rows, CELLS), for one engine, with a rate each."""

    engine: dict[str, Any]
    share: FloatArray
    rate_per_s: FloatArray


@cache
def work() -> Work:
    replica = next(r for r in Planner(problem()).fleet[-1].replicas if (r.shape.tp, r.shape.pp) == (TP, 1))
    cells = grid().cells[-1]
    assert cells.tokens_in.size == CELLS
    share = grid().cell_weight[-1]
    share = share[share.sum(axis=1) > 0]
    engine = {"replica": replica, "tokens_in": cells.tokens_in, "tokens_out": cells.tokens_out}
    utilization = np.random.default_rng(0).uniform(0.05, 0.9, len(share))
    return Work(engine, share, utilization * _core.capacities(**engine, share=share))


class Engine:
    """What the reference asks of an engine."""

    def __init__(self, replica: _core.Replica) -> None:
        self.max_num_seqs, self.max_batched_tokens = BATCH, 8192
        self.kv_capacity_bytes = replica.kv_capacity_bytes
        self.linear_s: Callable[[float, float], float] = replica.linear_s
        self.decode_attention_sum_s: Callable[[float, float], float] = replica.decode_attention_sum_s
        self.prefill_attention_s: Callable[[float, float], float] = replica.prefill_attention_s
        self.fill_s: Callable[[float], float] = replica.fill_s
        self.kv_bytes: Callable[[float], float] = replica.kv_bytes


def reference_rows() -> NDArray[np.int64]:
    return np.linspace(0, len(work().share) - 1, REFERENCE_ROWS).astype(np.int64)


def reference(scv: float) -> list[oracle.Result]:
    engine, lengths = Engine(work().engine["replica"]), (work().engine["tokens_in"], work().engine["tokens_out"])
    rows = reference_rows()
    return [oracle.evaluate(engine, *lengths, work().share[k], work().rate_per_s[k], scv) for k in rows]


def report(benchmark: BenchmarkFixture, evaluations: int) -> None:
    if benchmark.stats:  # none when benchmarks are disabled and only the answers are checked
        benchmark.extra_info["evaluations_per_s"] = evaluations / benchmark.stats.stats.median


def scv_of(arrivals: str) -> float:
    return 1.0 if arrivals == "poisson" else problem().workload.cv ** 2


@pytest.mark.benchmark(group=GROUP)
@pytest.mark.parametrize("arrivals", ["poisson", "trace"])
def test_p95(benchmark: BenchmarkFixture, arrivals: str) -> None:
    scv = scv_of(arrivals)
    found_s = benchmark(
        _core.latency_quantiles, **work().engine, share=work().share, rate_per_s=work().rate_per_s, arrival_scv=scv
    )
    report(benchmark, len(work().share))
    expected = reference(scv)
    assert {result.batch_limit for result in expected} == {BATCH}
    np.testing.assert_allclose(found_s[reference_rows()], [result.quantile_s for result in expected], rtol=1e-3)
    assert np.isfinite(found_s).all()


@pytest.mark.benchmark(group=GROUP)
@pytest.mark.parametrize("arrivals", ["poisson", "trace"])
def test_p95_numpy_reference(benchmark: BenchmarkFixture, arrivals: str) -> None:
    expected = benchmark.pedantic(reference, args=(scv_of(arrivals),), rounds=3)
    report(benchmark, REFERENCE_ROWS)
    assert all(np.isfinite(result.quantile_s) for result in expected)


@pytest.mark.benchmark(group=GROUP)
def test_pruning_bound(benchmark: BenchmarkFixture) -> None:
    """What the search asks of a routing before it evaluates it: the largest stable rate and the least latency."""

    def bounds(share: FloatArray) -> tuple[FloatArray, FloatArray]:
        return _core.capacities(**work().engine, share=share), _core.idle_bounds(**work().engine, share=share)

    capacity_per_s, least_s = benchmark(bounds, work().share)
    report(benchmark, len(work().share))
    expected = [result.capacity_per_s for result in reference(1.0)]
    np.testing.assert_allclose(capacity_per_s[reference_rows()], expected, rtol=1e-9)
    for utilization in (0.01, 0.5, 0.9):
        rate_per_s = utilization * capacity_per_s
        p95_s = _core.latency_quantiles(**work().engine, share=work().share, rate_per_s=rate_per_s)
        assert (least_s <= p95_s).all()


@cache
def search() -> _core.CascadeSearch:
    workload = problem().workload
    return _core.CascadeSearch(
        models=_core.Models(
            replicas=[list(stage.replicas) for stage in Planner(problem()).fleet],
            cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid().cells],
        ),
        stations=range(3),
        depth=range(3),
        share=list(grid().cell_weight),
        quality=grid().quality,
        levels=[len(levels) for levels in grid().levels],
        routings=grid().routings,
        traffic=_core.Traffic(
            rate_per_s=workload.rate_per_s * TABLE_GPUS / problem().gpus,
            scv=workload.cv**2,
            max_utilization=problem().goal.max_utilization,
        ),
    )


@pytest.mark.benchmark(group=f"look-up tables of 3 stages x {TABLE_GPUS:,} GPUs")
@pytest.mark.parametrize("threads", [1, 2])
def test_table(benchmark: BenchmarkFixture, threads: int) -> None:
    routing = grid().distinct // 2  # thresholds in the middle: all three models work

    def tables(threads: int) -> list[NDArray[Any]]:
        return [column for stage in range(3) for column in search().table(routing, stage, TABLE_GPUS, threads)]

    found = benchmark.pedantic(tables, args=(threads,), rounds=7, warmup_rounds=1)
    for column, alone in zip(found, tables(1), strict=True):
        assert column.tobytes() == alone.tobytes()
    for latency_s in found[::3]:
        assert np.isfinite(latency_s[-1])
        assert (latency_s[:-1] >= latency_s[1:]).all()
