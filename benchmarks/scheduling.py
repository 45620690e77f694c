"""Scheduling time against GPUs and threads, and the paper's 0/1 program given to HiGHS as it stands.

    python -m benchmarks.scheduling [--draws 8] [--json FILE]

The first table times whole plans, each for traffic that the planner has never seen (a bootstrap of the requests, made
outside the timing); the rate grows with the GPUs, so that every size is loaded alike. The second solves one allocation,
the full cascade at the paper's highest floor but one, twice: by the search that the planner runs, and by the paper's
program on the same look-up tables. Both must find the same optimum.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.accuracy_page import markdown as table
from benchmarks.paper_cases import case, floors
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import MOST_UTILIZATION, StationLoads
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError, PoolTooSmallError
from cascadia_fast.planner import Planner
from cascadia_fast.planning.allocation import paper_milp
from cascadia_fast.problem import Problem
from cascadia_fast.routing import route
from cascadia_fast.summary_layout import Table
from cascadia_fast.workload import Workload

GPUS = (32, 80, 256, 1024)
THREADS = (1, 2)
# The paper's objective, and the one that its cases here are compared under.
OBJECTIVES = ("max_stage_p95", "end_to_end_p95")
TRACE = "deepseek_trace1"
PAPER = {32: "10 to 20 s", 80: "at most 60 s"}
PAPER_CORES = 12
DRAWS = 8
# The program as it stands takes seconds at a thousand GPUs, whatever its tables.
MILP_LIMIT_S = 120.0
REPEATS = 5
AGREEMENT = 1e-6


Made = TypeVar("Made")


@dataclass(frozen=True)
class Timing:
    """Seconds of a plan, median over draws."""

    objective: str
    gpus: int
    threads: int
    seconds: float
    longest_s: float
    plans: int
    proved: int


@dataclass(frozen=True)
class Duel:
    """One allocation by search and by the paper's program: seconds, and the p95 of the slowest stage."""

    gpus: int
    search_s: float
    milp_s: float
    milp_status: str
    binaries: int
    search_p95_s: float
    milp_p95_s: float


def traffic(problem: Problem, gpus: int, draws: int) -> list[Workload]:
    """Return workloads of their own, each a bootstrap of the case's requests at the rate of a cluster so large."""
    rate_per_s = problem.workload.rate_per_s * gpus / problem.gpus
    requests = problem.workload.requests
    return [problem.workload.replace(requests=requests.bootstrap(draw)).with_rate(rate_per_s) for draw in range(draws)]


def timings(draws: int) -> Iterator[Timing]:
    """Time plans of the hardest trace at the paper's highest floor but one, which every bootstrap reaches."""
    problem = case(TRACE)
    q_min = floors(Planner(problem))[1]
    for objective in OBJECTIVES:
        for gpus in GPUS:
            for threads in THREADS:
                planner = Planner(problem.replace(objective=objective, gpus=gpus, q_min=q_min), threads)
                planner.plan(workload=traffic(problem, gpus, 1)[0])  # loads libraries and fills the fleet
                made = [_timed(planner, workload) for workload in traffic(problem, gpus, draws)]
                seconds = [taken_s for taken_s, _ in made]
                proved = sum(plan is not None and plan.status == "optimal" for _, plan in made)
                yield Timing(objective, gpus, threads, statistics.median(seconds), max(seconds), len(made), proved)


def _timed(planner: Planner, workload: Workload) -> tuple[float, Plan | None]:
    started_s = time.perf_counter()
    try:
        plan = planner.plan(workload=workload)
    except NoPlanError:
        plan = None
    return time.perf_counter() - started_s, plan


def duels() -> Iterator[Duel]:
    """Allocate GPUs to one routing of the full cascade by the search, and by the paper's program on the same tables."""
    problem = case(TRACE).replace(objective="max_stage_p95", skip_models=False)
    planner = Planner(problem)
    plan = planner.plan(q_min=floors(planner)[1])
    requests = problem.workload.requests
    visits = route(requests, plan.routing.thresholds) >= np.arange(len(requests.models))[:, None]
    for gpus in GPUS:
        # One cap on utilisation for both: where a fixed load exceeds the goal's, its search goes on with this one.
        larger = problem.replace(
            gpus=gpus,
            rate_per_s=problem.workload.rate_per_s * gpus / problem.gpus,
            max_utilization=MOST_UTILIZATION,
        )
        yield _duel(Case.of(larger), visits, gpus)


def _duel(fixed: Case, visits: NDArray[np.bool_], gpus: int) -> Duel:
    # A search remembers what it evaluated, so that every repeat needs one of its own.
    search_s, deployed = _median_s(lambda: StationLoads(fixed, visits).deploy(gpus))
    loads = StationLoads(fixed, visits)
    found = paper_milp([_table(loads, model, gpus) for model in loads.models], gpus, time_limit_s=MILP_LIMIT_S)
    return Duel(
        gpus=gpus,
        search_s=search_s,
        milp_s=found.seconds,
        milp_status=found.status,
        binaries=found.columns,
        search_p95_s=max(choice.latency_s for choice in deployed.values()),
        milp_p95_s=found.latency_s,
    )


def _table(loads: StationLoads, model: int, gpus: int) -> NDArray[np.float64]:
    """The least p95 of a model on f GPUs, f = 0..gpus; infinite where none of its engines fits."""
    latency_s = np.full(gpus + 1, np.inf)
    for count in range(1, gpus + 1):
        with suppress(PoolTooSmallError):
            latency_s[count] = loads.best(model, count).latency_s
    return latency_s


def _median_s(make: Callable[[], Made]) -> tuple[float, Made]:
    seconds = []
    for _ in range(REPEATS):
        started_s = time.perf_counter()
        made = make()
        seconds.append(time.perf_counter() - started_s)
    return statistics.median(seconds), made


def timing_table(rows: Sequence[Timing]) -> Table:
    header = (
        "GPUs",
        f"the paper, {PAPER_CORES} cores",
        *(f"{name}, {_threads(n)}" for name in OBJECTIVES for n in THREADS),
    )
    lines = []
    for gpus in GPUS:
        taken = {(row.objective, row.threads): row for row in rows if row.gpus == gpus}
        cells = [_plan_time(taken[objective, threads]) for objective in OBJECTIVES for threads in THREADS]
        lines.append((f"{gpus:,}", PAPER.get(gpus, "–"), *cells))
    return Table(header, tuple(lines), frozenset())


def _threads(count: int) -> str:
    return "1 thread" if count == 1 else f"{count} threads"


def _plan_time(row: Timing) -> str:
    unproved = "" if row.proved == row.plans else f", {row.plans - row.proved} of {row.plans} not proved"
    return f"{1e3 * row.seconds:.3g} ms (at most {1e3 * row.longest_s:.3g}{unproved})"


def duel_table(rows: Sequence[Duel]) -> Table:
    lines = []
    for row in rows:
        agree = abs(row.milp_p95_s / row.search_p95_s - 1) <= AGREEMENT
        p95 = f"{row.search_p95_s:.4g} s, the same" if agree else f"{row.search_p95_s:.4g} and {row.milp_p95_s:.4g} s"
        milp = f"{_seconds(row.milp_s)}, {row.milp_status}"
        lines.append((f"{row.gpus:,}", f"{row.binaries:,}", milp, _seconds(row.search_s), p95))
    header = ("GPUs", "binaries", "the paper's program", "the search", "slowest stage p95")
    return Table(header, tuple(lines), frozenset())


def _seconds(value: float) -> str:
    return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms" if value >= 1e-3 else f"{1e6 * value:.3g} µs"


def markdown(found: Sequence[Timing], allocated: Sequence[Duel]) -> str:
    """Return both tables with what they are of."""
    parts = [
        f"Whole plans of the `{TRACE}` case, new traffic every call, median (longest) of {found[0].plans}:",
        table(timing_table(found)),
        "GPUs for one routing of the full cascade: the paper's 0/1 program as it stands, solved by HiGHS on finished "
        "look-up tables, and the search that stands in its place, which evaluates what it needs of them itself:",
        table(duel_table(allocated)),
    ]
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=DRAWS, help="plans per size, each for traffic of its own")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    found, allocated = list(timings(options.draws)), list(duels())
    print(markdown(found, allocated))
    if options.json:
        rows = {"plans": [asdict(row) for row in found], "allocations": [asdict(row) for row in allocated]}
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
