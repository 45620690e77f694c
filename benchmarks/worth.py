"""What each way of planning is worth, in simulation: plans of one problem by several ways, served request by request.

    python -m benchmarks.worth [--requests 50000] [--seed 0] [--json FILE] [--markdown]

Both cases, four floors of quality, three rates (shares of the most that `exact` carries at the floor). Every plan
serves the same requests at the same arrivals. What is compared is what the simulated cascade does, not what was
predicted: p95 of the slowest stage, and end to end.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import cascadia_fast as cf
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

FLOORS = {"deepseek": (70, 74, 78, 82), "llama20k": (68, 71, 74, 77)}
SHARES = (0.4, 0.7, 0.98)
REQUESTS = 50_000
# Every way is compared with the first.
WAYS: dict[str, dict[str, Any]] = {
    "exact, full cascade": {"skip_models": False},
    "alternating (the paper's)": {"method": "alternating"},
    "skipping models": {},
    "mixed shapes": {"mixed_shapes": True},
    "end_to_end_p95": {"objective": "end_to_end_p95"},
    "utilisation up to 99 %": {"skip_models": False, "max_utilization": 0.99},
}
BASE = next(iter(WAYS))


@dataclass(frozen=True)
class Row:
    """One plan on trial; None where there is no plan, or it does not keep up."""

    case: str
    q_min: float
    share: float
    way: str
    planned: bool
    stage_p95_s: float | None
    end_to_end_p95_s: float | None
    quality: float | None
    gpus: int | None


def rows_of(case: str, requests: int, seed: int) -> Iterator[Row]:
    problem = Problem.read(Path(__file__).parent / "cases" / f"{case}.yaml")
    for q_min in FLOORS[case]:
        most = Planner(problem).plan(q_min=q_min, objective="max_rate", skip_models=False).objective_value or 0.0
        for share in SHARES:
            for way, goal in WAYS.items():
                variant = problem.replace(q_min=float(q_min), rate_per_s=share * most, **goal)
                yield _on_trial(case, q_min, share, way, variant, requests, seed)


def _on_trial(case: str, q_min: float, share: float, way: str, problem: Problem, requests: int, seed: int) -> Row:
    try:
        plan = Planner(problem).plan()
    except NoPlanError:
        return Row(case, q_min, share, way, False, None, None, None, None)
    run = cf.simulate(plan, problem, requests, seed)
    slowest = max((stage.latency.p95.value for stage in run.stages if stage.latency), default=None)
    return Row(case, q_min, share, way, True, slowest, run.latency.p95.value, plan.predicted.quality, plan.gpus)


def compared(rows: Sequence[Row]) -> Iterator[tuple[str, ...]]:
    """One line per way and case: how its p95s compare with those of the same problem planned in the first way."""
    base = {(row.case, row.q_min, row.share): row for row in rows if row.way == BASE}
    for case in dict.fromkeys(row.case for row in rows):
        for way in WAYS:
            if way == BASE:
                continue
            own = [row for row in rows if row.case == case and row.way == way]
            missing = sum(not row.planned for row in own)
            stage = _ratios([(row.stage_p95_s, base[row.case, row.q_min, row.share].stage_p95_s) for row in own])
            whole = _ratios(
                [(row.end_to_end_p95_s, base[row.case, row.q_min, row.share].end_to_end_p95_s) for row in own]
            )
            yield case, way, f"{missing} of {len(own)}", stage, whole


def _ratios(pairs: Sequence[tuple[float | None, float | None]]) -> str:
    ratios = sorted(own / base for own, base in pairs if own is not None and base is not None)
    if not ratios:
        return "–"
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"


HEADER = ("case", "way", "no plan", "slowest stage p95", "end to end p95")


def markdown(rows: Sequence[Row]) -> Iterator[str]:
    yield f"| {' | '.join(HEADER)} |"
    yield f"| {' | '.join(['---'] * len(HEADER))} |"
    for line in compared(rows):
        yield f"| {' | '.join(line)} |"


def lines(rows: Sequence[Row]) -> Iterator[str]:
    for line in (HEADER, *compared(rows)):
        yield f"{line[0]:10s}{line[1]:28s}{line[2]:>10s}{line[3]:>26s}{line[4]:>26s}"
    yield f"Ratios to '{BASE}', median (least to largest); below 1 is faster."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=REQUESTS, help="of each simulation")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, help="file for all figures")
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table instead")
    options = parser.parse_args()
    rows = [row for case in FLOORS for row in rows_of(case, options.requests, options.seed)]
    print("\n".join(markdown(rows) if options.markdown else lines(rows)))
    if options.json:
        options.json.write_text(json.dumps([asdict(row) for row in rows]))


if __name__ == "__main__":
    main()
