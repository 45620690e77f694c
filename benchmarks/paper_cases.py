"""The paper's cases: which problem files stand for its traces, and which floors for its four.

python benchmarks/paper_cases.py    print best quality, floors, and what the cluster carries, of every case

The paper asks for qualities of 90, 85, 80 and 70 of its own judge, on data of its own, of which the best quality that
can be reached is not known. Here a floor q of the paper is ``SHARE * q / 90`` of the best quality that the planner
reaches on the trace, to a whole number.

With 0.95 every floor lies a point or more from what any single model reaches on all requests of its trace. On half of
them, as a comparison plans, that is within the noise, above all for the 51 DeepSeek prompts: the smallest model that
meets a floor differs from seed to seed, and the table of benchmarks/paper.py says how often it was which.
"""

from __future__ import annotations

from pathlib import Path

from cascadia_fast.errors import QualityUnreachableError
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

CASES = Path(__file__).resolve().parent / "cases"
DEEPSEEK = ("deepseek_trace1", "deepseek_trace2", "deepseek_trace3")
LLAMA = ("llama_trace1", "llama_trace2", "llama_trace3")
PAPER_FLOORS = (90, 85, 80, 70)
SHARE = 0.95


def case(name: str) -> Problem:
    """Return the problem of a case."""
    return Problem.read(CASES / f"{name}.yaml")


def best_quality(planner: Planner) -> float:
    """Return the highest mean quality that any routing of the planner's cascades reaches."""
    try:
        planner.plan(q_min=100)
    except QualityUnreachableError as error:
        return error.best_quality
    return 100.0


def floors(planner: Planner) -> tuple[int, ...]:
    """Return the floors that stand for the paper's four, the highest first."""
    best = best_quality(planner)
    return tuple(round(SHARE * best * floor / PAPER_FLOORS[0]) for floor in PAPER_FLOORS)


def describe(name: str) -> str:
    """Return a case's best quality, floors, and the rates it carries at each of them, as lines of text."""
    problem = case(name)
    planner = Planner(problem)
    rate_per_s = problem.workload.rate_per_s
    lines = [f"{name}: {rate_per_s:g} requests/s, best quality {best_quality(planner):.1f}"]
    for floor in floors(planner):
        most = planner.plan(q_min=floor, objective="max_rate")
        carried_per_s = most.predicted.max_rate_per_s
        plan = planner.plan(q_min=floor)
        stages = ", ".join(f"{stage.model} {stage.gpus} GPUs reach {stage.reach:.2f}" for stage in plan.stages)
        load = f"{rate_per_s / carried_per_s:.0%} of {carried_per_s:.3g}/s"
        lines.append(f"  q_min {floor}: {load}; p95 {plan.predicted.end_to_end_p95_s:.3g} s; {stages}")
    return "\n".join(lines)


if __name__ == "__main__":
    for name in (*DEEPSEEK, *LLAMA):
        print(describe(name))
