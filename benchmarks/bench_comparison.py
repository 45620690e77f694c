"""A whole comparison: plans, simulations and everything that is said of them.

The DeepSeek cascade on its three traces, four floors, three rates and five seeds, 20,000 requests per trial, and with
them the trials of the curves and of the savings. What is asserted: every trial is there, each served all its requests
or says why not, and what two processes find one finds. Baseline of the small one, in its group: one process.
"""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from benchmarks.paper_cases import DEEPSEEK, case, floors
from cascadia_fast.baselines.systems import system_named
from cascadia_fast.comparison.running import compare
from cascadia_fast.comparison.setup import CaseSetup, Setup
from cascadia_fast.planner import Planner

SYSTEMS = ("ours", "single", "sarathi", "cascadeserve", "routellm-ours", "frugalgpt", "automix")
REQUESTS = 20_000
RATES = 3


def _setup(traces: tuple[str, ...], seeds: int) -> Setup:
    cases = []
    for name in traces:
        problem = case(name)
        cases.append(CaseSetup.of(name, problem, floors(Planner(problem)), file=f"{name}.yaml"))
    return Setup(tuple(cases), tuple(map(system_named, SYSTEMS)), tuple(range(seeds)), REQUESTS)


def _measured(results: dict[str, Any]) -> list[Any]:
    return [cell["measured"] for cell in results["cells"]]


@pytest.mark.slow
@pytest.mark.benchmark(group="comparison, DeepSeek, whole")
def test_whole(benchmark: BenchmarkFixture) -> None:
    setup = _setup(DEEPSEEK, seeds=5)
    results = benchmark.pedantic(partial(compare, setup, jobs=2), rounds=1)
    cells = results["cells"]
    purposes = Counter(cell["purpose"] for cell in cells)
    assert purposes["main"] == len(SYSTEMS) * len(DEEPSEEK) * 4 * RATES * 5
    assert all((cell["measured"] is None) == (cell["status"] == "no_plan") for cell in cells)
    assert {group["system"] for group in results["groups"]} == set(SYSTEMS)
    benchmark.extra_info["trials"] = len(cells)
    benchmark.extra_info["main_trials"] = purposes["main"]


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.benchmark(group="comparison, DeepSeek, one trace and one seed")
def test_processes(benchmark: BenchmarkFixture, jobs: int) -> None:
    setup = _setup(DEEPSEEK[:1], seeds=1)
    results = benchmark.pedantic(partial(compare, setup, jobs=jobs), rounds=1)
    alone = compare(setup, jobs=1) if jobs > 1 else results
    assert _measured(results) == _measured(alone)
    benchmark.extra_info["trials"] = len(results["cells"])
