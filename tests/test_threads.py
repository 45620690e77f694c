"""Threads: the same bits for any number of them, other Python threads keep running, Ctrl-C works."""

from __future__ import annotations

import dataclasses
import itertools
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.fleet import build_fleet
from cascadia_fast.length_cells import length_cells
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, routing_grid

GPUS = 10_240


@pytest.fixture(scope="module")
def planner() -> Planner:
    return Planner(Problem.example(), threads=2)


def search_of(planner: Planner, rate_per_s: float) -> tuple[_core.CascadeSearch, RoutingGrid]:
    """The planner's search and its grid, whose last routing lets everybody pass every stage."""
    workload = planner.problem.workload
    grid = routing_grid(workload.requests)
    models = _core.Models(
        replicas=[list(stage.replicas) for stage in planner.fleet],
        cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out) for cells in grid.cells],
    )
    search = _core.CascadeSearch(
        models=models,
        stations=[0, 1, 2],
        depth=[0, 1, 2],
        share=list(grid.cell_weight),
        quality=grid.quality,
        levels=[len(levels) for levels in grid.levels],
        routings=grid.routings,
        traffic=_core.Traffic(rate_per_s=rate_per_s, scv=workload.cv**2),
    )
    return search, grid


def four_models(problem: Problem) -> tuple[_core.CascadeSearch, NDArray[np.int64]]:
    """A cascade whose last share is added up as it is asked for, and the routings of at least 60 points.

    The second model is one more of the third's kind with scores and answers between the first's and the third's.
    """
    requests, rng = problem.workload.requests, np.random.default_rng(0)
    between = np.clip(requests.score[:2].mean(axis=0) + rng.normal(0, 10, requests.size), 0, 100)
    order, fleet = [0, 1, 1, 2], build_fleet(problem)
    score = requests.score[order]
    score[1] = between
    quality = requests.quality[order]
    quality[1] = np.where(rng.random(requests.size) < 0.5, quality[0], quality[2])
    levels = np.append(np.arange(0.0, 100.0, 4.0), np.inf)
    bins = [np.searchsorted(levels, scores, "right") for scores in score[:3]]
    cells = [length_cells(requests.input_tokens[i], requests.output_tokens[i], requests.weight) for i in order]
    share, mean, axes = [], np.zeros((levels.size,) * 3), np.zeros(requests.size, np.intp)
    for stage, (own, one) in enumerate(zip(cells, quality, strict=True)):
        gain = requests.weight * (one - quality[stage - 1] if stage else one)
        gains = np.bincount(axes, gain, levels.size**stage).reshape((levels.size,) * stage)
        held = np.zeros((levels.size**stage, own.tokens_in.size))
        np.add.at(held, (axes, own.cell_of), requests.weight)
        held = held.reshape(gains.shape + held.shape[1:])
        for axis in range(stage):
            gains, held = gains.cumsum(axis), held.cumsum(axis)
        mean += gains.reshape(gains.shape + (1,) * (3 - stage))
        share.append(held.reshape(-1, own.tokens_in.size) / requests.weight.sum())
        axes = axes * levels.size + bins[stage] if stage < 3 else axes
    routings = np.indices(mean.shape).reshape(3, -1).T.astype(np.int32)
    search = _core.CascadeSearch(
        models=_core.Models(
            replicas=[list(fleet[i].replicas) for i in order],
            cells=[(own.tokens_in, own.tokens_out, own.spread_out) for own in cells],
        ),
        stations=[0, 1, 2, 3],
        depth=[0, 1, 2, 3],
        share=[*share[:3], np.empty(0)],
        quality=mean.ravel() / requests.weight.sum(),
        levels=[levels.size] * 3,
        routings=np.ascontiguousarray(routings),
        traffic=_core.Traffic(rate_per_s=20.0, scv=4.0),
        requests=(np.stack(bins, axis=1).astype(np.int32), cells[3].cell_of, requests.weight),
    )
    for routing in (0, 77, 4000, len(routings) - 1):
        np.testing.assert_allclose(search.share(routing, 3), share[3][routing], rtol=1e-12, atol=1e-15)
    return search, np.flatnonzero(mean.ravel() / requests.weight.sum() >= 60.0)


def meeting(grid: RoutingGrid, quality_floor: float) -> NDArray[np.int64]:
    return np.flatnonzero(grid.quality[grid.combinations] >= quality_floor)


def test_tables_are_bit_equal_for_any_number_of_threads(planner: Planner) -> None:
    search, grid = search_of(planner, 100.0)
    routing = grid.distinct - 1
    for stage in range(3):
        one, *others = (search.table(routing, stage, 512, threads) for threads in (1, 2, 7, 1))
        assert np.isfinite(one[0]).any()
        for other in others:
            for column, again in zip(one, other, strict=True):
                assert column.tobytes() == again.tobytes()


@pytest.mark.parametrize(
    "wanted",
    [
        {"gpus": 64},
        {"gpus": 24, "minimise": "spend", "limit_s": 60.0},
        {"gpus": 24, "limit_s": 40.0},
        {"gpus": 64, "minimise": "any", "limit_s": 15.0},
    ],
)
def test_searches_find_and_count_the_same_for_any_number_of_threads(wanted: dict[str, Any]) -> None:
    """Seventeen thousand routings of four models: the search goes through them in more than one order."""
    search, candidates = four_models(Problem.example())
    assert len(candidates) > 5000
    found = [search.exact(candidates=candidates, **wanted, threads=threads) for threads in (1, 2, 7)]
    again, _ = four_models(Problem.example())
    found.append(again.exact(candidates=candidates, **wanted, threads=3))
    assert found[0].routing >= 0
    assert found[0].complete
    counts = ("evaluated", "pruned_by_load", "pruned_by_need", "pruned_by_latency")
    answers = {
        (one.routing, one.value, one.bound, *one.worst_s, *(getattr(one, name) for name in counts)) for one in found
    }
    assert len(answers) == 1
    if wanted.get("minimise") != "any":
        assert sum(getattr(found[0], name) for name in counts) == len(candidates)
        # No neighbour of the best is better, and it is as good alone as among all.
        alone = search.exact(candidates=np.array([found[0].routing]), **wanted)
        assert (alone.routing, alone.value, alone.worst_s) == (found[0].routing, found[0].value, found[0].worst_s)
        some = np.random.default_rng(0).choice(candidates, 300)
        assert search.exact(candidates=some, **wanted).value >= found[0].value


def test_fronts_are_the_same_for_any_number_of_threads() -> None:
    search, candidates = four_models(Problem.example())
    fronts = [search.front(candidates=candidates[::-1].copy(), gpus=32, threads=threads) for threads in (1, 2, 7)]
    assert len(fronts[0]) > 3
    assert len({tuple((one.routing, one.value, one.evaluated) for one in front) for front in fronts}) == 1
    # Whatever comes before a point of the front is no better than the point before it.
    for before, after in itertools.pairwise(fronts[0]):
        upto = candidates[::-1][: int(np.flatnonzero(candidates[::-1] == after.routing)[0])]
        assert search.exact(candidates=upto.copy(), gpus=32).value == before.value > after.value


@pytest.mark.parametrize("wanted", [{"gpus": 64}, {"gpus": 24, "minimise": "spend", "limit_s": 60.0}])
def test_a_search_stopped_at_its_time_limit_says_what_is_proved(wanted: dict[str, Any]) -> None:
    search, candidates = four_models(Problem.example())
    whole = search.exact(candidates=candidates, **wanted)
    fresh, _ = four_models(Problem.example())
    stopped = fresh.exact(candidates=candidates, **wanted, time_limit_s=0.0)
    assert not stopped.complete
    assert 0 < stopped.bound <= whole.value <= stopped.value
    assert stopped.bound < stopped.value
    counts = ("evaluated", "pruned_by_load", "pruned_by_need", "pruned_by_latency")
    assert sum(getattr(stopped, name) for name in counts) < len(candidates)


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
    search, grid = search_of(planner, 20.0)
    floors = [60.0, 66.0, 70.0, 72.0] * 3

    def ask(floor: float) -> tuple[int, list[tuple[int, float]]]:
        found = search.exact(candidates=meeting(grid, floor), gpus=32)
        return found.routing, [(choice.gpus, choice.latency_s) for choice in found.stages]

    alone = [ask(floor) for floor in floors]
    fresh, _ = search_of(planner, 20.0)
    search = fresh
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(ask, floors)) == alone


def test_a_search_in_use_is_not_waited_for_with_the_gil_held(planner: Planner) -> None:
    """One thread searches, which asks for the GIL now and then; another wants details of a stage meanwhile."""
    search, grid = search_of(planner, 20.0)
    candidates = meeting(grid, 66.0)
    found = search.exact(candidates=candidates, gpus=32)
    with ThreadPoolExecutor(2) as pool:
        searches = pool.submit(lambda: [search.exact(candidates=candidates, gpus=32).routing for _ in range(30)])
        details = pool.submit(
            lambda: [search.evaluate(found.routing, 0, found.stages[0])["p95_s"] for _ in range(3000)]
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
    search, grid = search_of(planner, 400.0)
    assert ticks_beside(lambda: search.table(grid.distinct - 1, 0, GPUS, 1)) > 10


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
import numpy as np
from test_threads import Planner, Problem, four_models, search_of

running = False

def watch(frame, event, argument):
    global running
    if getattr(argument, "__name__", "") in ("table", "exact", "front"):
        running = event == "c_call"

def interrupt(number, frame):
    print("interrupted inside" if running else "interrupted outside", flush=True)
    raise KeyboardInterrupt

signal.signal(signal.SIGINT, interrupt)
search, grid = search_of(Planner(Problem.example()), 1000.0)
four, candidates = four_models(Problem.example())
sys.setprofile(watch)
print("calling", flush=True)
while True:
    {call}
"""


@pytest.mark.parametrize(
    "call",
    [
        "search.table(grid.distinct - 1, 0, 1_000_000, 1)",
        "search.table(grid.distinct - 1, 0, 1_000_000, 2)",
        "four.exact(candidates=np.tile(candidates, 200), gpus=1024, threads=1)",
        "four.exact(candidates=np.tile(candidates, 200), gpus=1024, threads=2)",
        "four.front(candidates=np.repeat(candidates, 200), gpus=1024)",
    ],
)
def test_ctrl_c_ends_a_long_native_call(call: str) -> None:
    """Python handles a signal when a native call returns; only a call that asks can be left from within."""
    code = LONG_CALL.format(tests=str(Path(__file__).parent), call=call)
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
