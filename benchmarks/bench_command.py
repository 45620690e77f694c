"""The program as it is started: a new process each time, from the command line to its end.

`plan` runs with Numba's disk cache filled, the first run ever with an empty one. A bare interpreter is the baseline:
what Python itself takes of each.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

GROUP = "the program in a new process"
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "cascadia-fast")
CASE = Path(__file__).parent / "cases" / "llama20k.yaml"
MEMORY_GPUS = 1024
# A process forked from this one would start with this one's peak; one forked from a bare interpreter does not.
PEAK_OF = """
import resource, subprocess, sys
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
print(peak if sys.platform == "darwin" else peak * 1024)
"""


def run(*command: str, numba_cache: Path | None = None) -> str:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8", "PYTHONSAFEPATH": "1"}
    if numba_cache is not None:
        environment["NUMBA_CACHE_DIR"] = str(numba_cache)
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


@cache
def planned_id() -> str:
    return Planner(Problem.example()).plan().plan_id


def assert_planned(text: str, plan_json: Path) -> None:
    made = Plan.read(plan_json)
    assert made.plan_id == planned_id()
    assert all(stage.model in text for stage in made.stages)


@pytest.mark.benchmark(group=GROUP)
def test_bare_interpreter(benchmark: BenchmarkFixture) -> None:
    assert benchmark.pedantic(run, args=(sys.executable, "-c", "print(1)"), rounds=15, warmup_rounds=1) == "1\n"


@pytest.mark.benchmark(group=GROUP)
def test_help(benchmark: BenchmarkFixture) -> None:
    assert "plan" in benchmark.pedantic(run, args=(PROGRAM, "--help"), rounds=15, warmup_rounds=1)


@pytest.mark.benchmark(group=GROUP)
def test_plan(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    plan_json = tmp_path / "plan.json"
    command = (PROGRAM, "plan", "-o", str(plan_json))
    cache_folder = {"numba_cache": tmp_path / "numba"}
    text = benchmark.pedantic(run, args=command, kwargs=cache_folder, rounds=7, warmup_rounds=1)
    assert_planned(text, plan_json)


@pytest.mark.benchmark(group=GROUP)
def test_first_plan_ever(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    plan_json = tmp_path / "plan.json"
    caches: list[Path] = []

    def arguments() -> tuple[tuple[str, ...], dict[str, Any]]:
        caches.append(tmp_path / f"numba{len(caches)}")
        return (PROGRAM, "plan", "-o", str(plan_json)), {"numba_cache": caches[-1]}

    text = benchmark.pedantic(run, setup=arguments, rounds=2)
    assert_planned(text, plan_json)
    assert any(caches[-1].rglob("*.nbi"))


@pytest.mark.benchmark(group=f"peak memory of planning llama20k on {MEMORY_GPUS:,} GPUs")
def test_peak_memory(benchmark: BenchmarkFixture, tmp_path: Path) -> None:
    problem = Problem.read(CASE)
    rate_per_s = problem.workload.rate_per_s * MEMORY_GPUS / problem.gpus
    plan_json = tmp_path / "plan.json"
    flags = ("--gpus", str(MEMORY_GPUS), "--rate", str(rate_per_s), "-o", str(plan_json))
    command = (sys.executable, "-c", PEAK_OF, PROGRAM, "plan", str(CASE), *flags)
    cache_folder = {"numba_cache": tmp_path / "numba"}
    printed = benchmark.pedantic(run, args=command, kwargs=cache_folder, rounds=3, warmup_rounds=1)
    benchmark.extra_info["peak_bytes"] = int(printed)
    expected = Planner(problem.replace(gpus=MEMORY_GPUS, rate_per_s=rate_per_s)).plan()
    assert Plan.read(plan_json).latency_s == expected.latency_s
