"""The paper's case at several quality floors, beside the paper's own setting (every model keeps a replica).

python benchmarks/floors.py    prints the table
"""

from __future__ import annotations

from pathlib import Path

from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

CASE = Path(__file__).parent / "cases" / "deepseek.yaml"
FLOORS = (84.0, 80.0, 76.0, 71.0, 70.0)
HEADER = ("floor", "GPUs", "reach", "slowest stage p95", "quality", "GPUs, paper's setting", "p95, paper's setting")


def gpus(plan: Plan, stages: int) -> str:
    """GPUs of every model of the cascade, as 4/8/20."""
    used = {stage.index: stage.gpus for stage in plan.stages}
    return "/".join(str(used.get(index, 0)) for index in range(stages))


def row(problem: Problem, q_min: float) -> tuple[str, ...]:
    """One line of the table."""
    stages = len(problem.stages)
    free = Planner(problem).plan(q_min=q_min)
    reach = {stage.index: stage.reach for stage in free.stages}
    cells = (
        f"{q_min:g}",
        gpus(free, stages),
        "/".join(f"{100 * reach.get(index, 0.0):.0f}" for index in range(stages)) + " %",
        f"{free.latency_s:.1f} s",
        f"{free.predicted.quality:.1f}",
    )
    try:
        strict = Planner(problem.replace(paper_strict=True)).plan(q_min=q_min)
    except NoPlanError:
        return (*cells, "no plan", "–")
    return (*cells, gpus(strict, stages), f"{strict.latency_s:.1f} s")


def table() -> str:
    """The table, in Markdown."""
    problem = Problem.read(CASE)
    lines = [HEADER, ("---",) * len(HEADER), *(row(problem, q_min) for q_min in FLOORS)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
