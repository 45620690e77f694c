"""Threads: the same bits for any number of them, other Python threads keep running, Ctrl-C works."""

from __future__ import annotations

import dataclasses
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.routing import routing_grid

GPUS = 10_240


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Problem.example(), threads=2)


def search_of(planner: Planner, rate_per_s: float) -> tuple[_core.CascadeSearch, int]:
    """The planner's search, and the routing under which everybody passes every stage."""
    workload = planner.problem.workload
    grid = routing_grid(workload.requests)
    search = _core.CascadeSearch(
        replicas=[list(stage.replicas) for stage in planner.fleet],
        cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid.cells],
        share=list(grid.cell_weight),
        quality=grid.quality,
        levels=[len(levels) for levels in grid.levels],
        routings=grid.routings,
        traffic=_core.Traffic(rate_per_s=rate_per_s, scv=workload.cv**2),
    )
    return search, grid.distinct - 1


def test_tables_are_bit_equal_for_any_number_of_threads(planner: Planner) -> None:
    search, routing = search_of(planner, 100.0)
    for stage in range(3):
        one, *others = (search.table(routing, stage, 512, threads) for threads in (1, 2, 7, 1))
        assert np.isfinite(one[0]).any()
        for other in others:
            for column, again in zip(one, other, strict=True):
                assert column.tobytes() == again.tobytes()


def as_bytes(plan: Plan) -> bytes:
    assert plan.solver.highs is not None
    solver = dataclasses.replace(plan.solver, seconds=0.0, highs=dataclasses.replace(plan.solver.highs, seconds=0.0))
    return dataclasses.replace(plan, solver=solver).to_json()


def test_plans_are_the_same_bytes_for_any_number_of_threads_and_any_repetition() -> None:
    problem = Problem.example()
    strict = problem.replace(paper_strict=True)
    for one in (problem, strict):
        plans = {as_bytes(Planner(one, threads).plan(q_min=68.0)) for threads in (1, 2, 7, 2, None)}
        assert len(plans) == 1


def test_two_python_threads_may_plan_at_once(planner: Planner) -> None:
    """One planner shared, other goals in turn: each answer is what it is alone."""
    goals = [(32, 60.0), (48, 70.0), (64, 72.0), (40, 66.0)]
    alone = [as_bytes(planner.plan(gpus=gpus, q_min=q_min)) for gpus, q_min in goals]
    barrier = threading.Barrier(2)

    def plan_all(goals: list[tuple[int, float]]) -> list[bytes]:
        barrier.wait(timeout=60)
        return [as_bytes(planner.plan(gpus=gpus, q_min=q_min)) for gpus, q_min in goals]

    with ThreadPoolExecutor(2) as pool:
        forwards, backwards = pool.submit(plan_all, goals), pool.submit(plan_all, goals[::-1])
        assert forwards.result() == alone
        assert backwards.result() == alone[::-1]


def test_one_search_may_be_asked_from_two_threads(planner: Planner) -> None:
    search, _ = search_of(planner, 20.0)
    floors = [60.0, 66.0, 70.0, 72.0] * 3

    def ask(floor: float) -> tuple[int, list[tuple[int, float]]]:
        found = search.exact(32, floor)
        return found.routing, [(choice.gpus, choice.latency_s) for choice in found.stages]

    alone = [ask(floor) for floor in floors]
    fresh, _ = search_of(planner, 20.0)
    search = fresh
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, floors)) == alone


def test_a_search_in_use_is_not_waited_for_with_the_gil_held(planner: Planner) -> None:
    """One thread searches, which asks for the GIL now and then; another wants details of a stage meanwhile."""
    search, _ = search_of(planner, 20.0)
    found = search.exact(32, 66.0)
    shape, replicas = found.stages[0].shape, found.stages[0].replicas
    with ThreadPoolExecutor(2) as pool:
        searches = pool.submit(lambda: [search.exact(32, 66.0).routing for _ in range(30)])
        details = pool.submit(
            lambda: [search.evaluate(found.routing, 0, shape, replicas)["p95_s"] for _ in range(3000)]
        )
        assert set(searches.result(timeout=60)) == {found.routing}
        assert set(details.result(timeout=60)) == {found.stages[0].latency_s}


def ticks_beside(call: Callable[[], object]) -> int:
    """How often another Python thread gets to run while `call` runs."""
    ticks = 0
    stop = threading.Event()

    def tick() -> None:
        nonlocal ticks
        while not stop.is_set():
            ticks += 1
            time.sleep(0.001)

    beside = threading.Thread(target=tick)
    beside.start()
    while ticks == 0:
        time.sleep(0.001)
    before = ticks
    call()
    during = ticks - before
    stop.set()
    beside.join()
    return during


def test_a_python_thread_beside_a_native_call_keeps_running(planner: Planner) -> None:
    """It ticks about every millisecond; a call that held the GIL would let it tick twice, before and after."""
    search, routing = search_of(planner, 400.0)
    assert ticks_beside(lambda: search.table(routing, 0, GPUS, 1)) > 10


def test_a_python_thread_beside_many_evaluations_keeps_running(planner: Planner) -> None:
    replica = planner.fleet[0].replicas[0]
    lengths, rows = np.full(64, 500.0), 20_000
    share, rate_per_s = np.full((rows, 64), 1 / 64), np.linspace(0.1, 5, rows)
    beside = ticks_beside(
        lambda: _core.latency_quantiles(
            replica=replica, tokens_in=lengths, tokens_out=lengths, share=share, rate_per_s=rate_per_s
        )
    )
    assert beside > 10


LONG_CALL = """
import signal, sys
sys.path.insert(0, {tests!r})
from test_threads import Planner, Problem, search_of

running = False

def watch(frame, event, argument):
    global running
    if getattr(argument, "__name__", "") == "table":
        running = event == "c_call"

def interrupt(number, frame):
    print("interrupted inside" if running else "interrupted outside", flush=True)
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
search, routing = search_of(Planner(Problem.example()), 1000.0)
sys.setprofile(watch)
print("calling", flush=True)
while True:
    search.table(routing, 0, 1_000_000, {threads})
"""


@pytest.mark.parametrize("threads", [1, 2])
def test_ctrl_c_ends_a_long_native_call(threads: int) -> None:
    """Python handles a signal when a native call returns; only a call that asks can be left from within."""
    code = LONG_CALL.format(tests=str(Path(__file__).parent), threads=threads)
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, encoding="utf-8"
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline().strip() == "calling"
        time.sleep(0.3)
        child.send_signal(signal.SIGINT)
        output, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert errors.rstrip().endswith("KeyboardInterrupt"), errors
    assert output.split("\n") == ["interrupted inside", ""]
    assert child.returncode != 0
