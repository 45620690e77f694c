"""The cases that stand for the paper's traces are what the scripts beside them make, and as loaded as they say."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import pytest

from cascadia_fast.planner import Planner

# Last on the path: the package itself stays the installed one.
sys.path.append(str(Path(__file__).resolve().parents[1]))
from benchmarks import make_traces, paper_cases

NAMES = (*paper_cases.DEEPSEEK, *paper_cases.LLAMA)


@pytest.mark.parametrize("source", make_traces.SOURCES, ids=lambda source: source.made.name)
def test_tables_are_what_the_script_makes(source: make_traces.Source) -> None:
    stored = source.made.read_bytes()
    if source.made.suffix == ".gz":  # other builds of zlib compress to other bytes
        stored = gzip.decompress(stored)
    assert stored == make_traces.content(source)


@pytest.mark.parametrize("name", NAMES)
def test_floor_and_rate_are_those_of_the_mapping(name: str) -> None:
    problem = paper_cases.case(name)
    planner = Planner(problem, 1)
    floors = paper_cases.floors(planner)
    assert problem.goal.q_min == floors[0]
    assert f"90 / 85 / 80 / 70 are {' / '.join(map(str, floors))} here" in head(name)
    assert f"more than {paper_cases.best_quality(planner):.1f};" in head(name)
    carried_per_s = planner.plan(objective="max_rate").predicted.max_rate_per_s
    assert 0.5 <= problem.workload.rate_per_s / carried_per_s <= 0.6
    assert (problem.gpus, problem.goal.objective) == (32, "end_to_end_p95")
    requests = problem.workload.requests
    alone = (requests.quality * requests.weight).mean(axis=1)
    assert min(abs(quality - floor) for quality in alone for floor in floors) > 0.9


@pytest.mark.parametrize("family", [paper_cases.DEEPSEEK, paper_cases.LLAMA])
def test_traces_go_from_hard_and_long_to_easy_and_short(family: tuple[str, ...]) -> None:
    qualities, tokens = [], []
    for name in family:
        requests = paper_cases.case(name).workload.requests
        qualities.append(list((requests.quality * requests.weight).mean(axis=1)))
        tokens.append(list((requests.output_tokens * requests.weight).mean(axis=1)))
    for model in range(len(qualities[0])):
        assert qualities[0][model] < qualities[1][model] < qualities[2][model]
        assert tokens[0][model] > tokens[1][model] > tokens[2][model]


def head(name: str) -> str:
    """The comment a file begins with, on one line."""
    lines = (paper_cases.CASES / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    comment = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    return " ".join(comment)
