"""What plans predict beside what the simulated cascade does: both cases' default plans at shares of their capacity.

    python -m benchmarks.plan_accuracy [--requests 1000000] [--seed 0] [--json FILE] [--markdown]

A plan stays as it is while the rate moves. Arrivals are Poisson, or the case's trace, stretched and repeated; the
latency model is told which. Intervals hold 95 %: of the simulation alone, whose scored requests are taken as given.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.length_cells import all_cells
from cascadia_fast.planner import Planner
from cascadia_fast.planning.deployment import path_latency_s, stations_of
from cascadia_fast.planning.searches import Searches
from cascadia_fast.planning.solving import found_of
from cascadia_fast.planning.subsets import subsets_of
from cascadia_fast.planning.task import Task
from cascadia_fast.problem import Problem
from cascadia_fast.workload import Arrivals, Workload

CASES = ("deepseek", "llama20k")
ARRIVALS = ("poisson", "trace")
SHARES = (0.5, 0.7, 0.85)
REQUESTS = 1_000_000
CLOSE = 0.1


@dataclass(frozen=True)
class Row:
    """One figure of one plan at one rate, in seconds."""

    case: str
    arrivals: str
    share: float  # of the capacity
    figure: str
    predicted_s: float
    simulated_s: float
    low_s: float | None
    high_s: float | None

    @property
    def error(self) -> float:
        return self.predicted_s / self.simulated_s - 1


def predicted_s(planner: Planner, plan: Plan, workload: Workload) -> dict[str, float]:
    """What the latency model says of the plan's deployment and thresholds under this traffic, by figure."""
    problem = planner.problem
    task = Task(workload=workload, pools=problem.pools, goal=problem.goal.model_copy(update={"max_utilization": 0.99}))
    cells = all_cells(workload.requests)
    searches = Searches(problem, task, planner.fleet, subsets_of(task, cells), cells, planner.threads)
    subset = next(one for one in searches.subsets if one.indexes == tuple(stage.index for stage in plan.stages))
    routing = subset.grid.routing_of(subset.requests, plan.routing.thresholds)
    choices = []
    for stage in plan.stages:
        (group,) = stage.replicas
        shapes = [(one.shape.tp, one.shape.pp) for one in planner.fleet[stage.index].replicas]
        choices.append(
            _core.Choice(shape=shapes.index((group.tp, group.pp)), replicas=group.count, gpus=stage.gpus, latency_s=0.0)
        )
    found = found_of(searches, subset, routing, choices)
    stations = stations_of(searches, found)
    return {f"stage {station.model + 1} p95": station.p95_s for station in stations} | {
        "end to end p50": path_latency_s(searches, found, stations, "end_to_end_p95", 0.5),
        "end to end p95": path_latency_s(searches, found, stations, "end_to_end_p95", 0.95),
        "first token p95": path_latency_s(searches, found, stations, "ttft_p95", 0.95),
    }


def rows_of(case: str, requests: int, seed: int) -> Iterator[Row]:
    problem = Problem.read(Path(__file__).parent / "cases" / f"{case}.yaml")
    planner = Planner(problem)
    plan = planner.plan(skip_models=False)  # all stages, so that each is on trial
    capacity_per_s = plan.predicted.max_rate_per_s / plan.max_utilization
    for arrivals in ARRIVALS:
        for share in SHARES:
            rate_per_s = share * capacity_per_s
            workload = problem.workload.with_rate(rate_per_s)
            if arrivals == "poisson":
                workload = Workload.build(workload.requests, Arrivals.from_rate(rate_per_s))
            found = predicted_s(planner, plan, workload)
            run = cf.simulate(plan, problem, requests, seed, rate_per_s, arrivals=arrivals)
            for figure, value in run.figures:
                yield Row(case, arrivals, share, figure, found[figure], value.value, value.low, value.high)


def lines(rows: Sequence[Row]) -> Iterator[str]:
    yield (
        f"{'case':10s}{'arrivals':10s}{'load':>5s}  {'figure':18s}{'predicted':>10s}{'simulated':>11s}{'95 %':>17s}"
        f"{'error':>9s}"
    )
    for row in rows:
        interval = "" if row.low_s is None or row.high_s is None else f"{row.low_s:.2f}–{row.high_s:.2f}"
        yield (
            f"{row.case:10s}{row.arrivals:10s}{row.share:5.0%}  {row.figure:18s}{row.predicted_s:8.2f} s"
            f"{row.simulated_s:9.2f} s{interval:>17s}{row.error:+9.1%}"
        )


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    """One line per case, arrivals and load."""
    figures = list(dict.fromkeys(row.figure for row in rows))
    header = ("case", "arrivals", "load", *figures)
    yield f"| {' | '.join(header)} |"
    yield f"| {' | '.join(['---'] * len(header))} |"
    groups: dict[tuple[str, str, float], dict[str, Row]] = {}
    for row in rows:
        groups.setdefault((row.case, row.arrivals, row.share), {})[row.figure] = row
    for (case, arrivals, share), found in groups.items():
        cells = [f"{one.predicted_s:.3g} / {one.simulated_s:.3g} s, {one.error:+.0%}" for one in found.values()]
        yield f"| {' | '.join((case, arrivals, f'{share:.0%}', *cells))} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each simulation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", action="store_true", help="print a table of predicted / simulated, error instead")
    options = parser.parse_args()
    rows = [row for case in CASES for row in rows_of(case, options.requests, options.seed)]
    print("\n".join(markdown(rows) if options.markdown else lines(rows)))
    if not options.markdown:
        close = sum(abs(row.error) <= CLOSE for row in rows)
        print(f"{close} of {len(rows)} figures within {CLOSE:.0%}")
    if options.json:
        options.json.write_text(json.dumps([{**dataclasses.asdict(row), "error": row.error} for row in rows]))


if __name__ == "__main__":
    main()
