"""What must hold of every simulation: nothing is lost, nothing is made up, and the same call says the same."""

from __future__ import annotations

import dataclasses
import itertools
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference.cascade_engine import MeasuredCosts
from reference.cascade_simulation import REFUSED, SERVED, TIMED_OUT, UNFINISHED
from simulator_cases import ADMISSIONS, BATCHINGS, DISPATCHES, Case, Kind, Station, one_engine, random_case

from cascadia_fast import _core

FloatArray = NDArray[np.float64]
ROUNDING = 1e-9
SEEDS = st.integers(0, 2**32)
ARRAYS = (
    "status",
    "arrived_s",
    "first_token_s",
    "finished_s",
    "times_s",
    "replica",
    "preempted",
    "station",
    "steps",
    "busy_s",
    "decoding_s",
    "prompt_tokens",
    "preemptions",
    "peak_kv_share",
)


def contents(found: Any) -> dict[str, bytes]:
    return {name: getattr(found, name).tobytes() for name in ARRAYS}


def changed(case: Case, station: dict[str, Any] | None = None, **arguments: Any) -> Case:
    """The same case with other stations or arguments."""
    stations = [dataclasses.replace(one, **(station or {})) for one in case.stages]
    return Case(stations, case.judge, {**case.arguments, **arguments})


def one_station(seed: int, **fixed: Any) -> Case:
    """All requests reach all replicas' queues from outside, in order of index; nobody is refused or cancelled."""
    open_loop = {"stages": 1, "loop": "open", "timeout": False, "request_s": 0.0, "kv": 6.0, "block_tokens": 4}
    return random_case(seed, **{**open_loop, **fixed})


@settings(max_examples=150)
@given(SEEDS)
def test_every_request_ends_once(seed: int) -> None:
    """Served on its whole path, or lost on the way in a manner that the call allows."""
    case = random_case(seed)
    found, stages = case.core(), len(case.stages)
    served = found.status == SERVED
    assert (found.status != UNFINISHED).all()
    assert np.isfinite(found.arrived_s).all()
    for times_s in (found.first_token_s, found.finished_s):
        np.testing.assert_array_equal(np.isfinite(times_s), served)
    if np.isinf(case.arguments["timeout_s"]):
        assert (found.status != TIMED_OUT).all()
    path = case.arguments["path"][case.arguments["drawn"]]
    on_path = (path >> np.arange(stages)[:, None] & 1).astype(bool)
    reached, answered = (np.isfinite(found.times_s[:, :, when]) for when in (0, 3))
    assert not (reached[:stages] & ~on_path).any()
    np.testing.assert_array_equal(reached[:stages, served], on_path[:, served])
    np.testing.assert_array_equal(found.replica >= 0, reached)
    assert found.visits_done == answered.sum()
    if len(found.times_s) > stages:
        np.testing.assert_array_equal(reached[stages:, served], answered[: stages - 1, served])
    last = stages - 1 - np.argmax(on_path[::-1], axis=0)
    assert (reached[last, np.arange(path.size)] | (found.status == TIMED_OUT)).all()
    assert not answered[last, np.arange(path.size)][found.status == REFUSED].any() or case.judge is not None


@settings(max_examples=150)
@given(SEEDS)
def test_times_are_in_order(seed: int) -> None:
    """On a path, too: a request reaches a station when it has left the one before."""
    case = random_case(seed)
    found, stages = case.core(), len(case.stages)
    steps = np.moveaxis(found.times_s, 2, 0)
    for earlier_s, later_s in itertools.pairwise(steps):
        assert not (earlier_s > later_s).any()
        assert not (np.isnan(earlier_s) & np.isfinite(later_s)).any()
    assert not (found.times_s[:, :, 1] >= found.times_s[:, :, 2]).any()
    left_s = found.arrived_s.copy()
    for row in [row for s in range(stages) for row in (s, stages + s) if row < len(found.times_s)]:
        arrived_s, finished_s = found.times_s[row, :, 0], found.times_s[row, :, 3]
        assert not (arrived_s < left_s).any()
        left_s = np.fmax(left_s, np.fmax(arrived_s, finished_s))
    served = found.status == SERVED
    assert (found.finished_s[served] >= left_s[served]).all()
    assert (found.first_token_s[served] <= found.finished_s[served]).all()


TOKEN_S = 1 / 64


def priced_by_token(max_num_seqs: int, budget: int, kv_capacity_tokens: float) -> Kind:
    return Kind.measured(
        decode_step_s=TOKEN_S * np.arange(max_num_seqs + 1),
        prompt_step_s=TOKEN_S * np.arange(budget + 1),
        sampled_s=np.zeros(max_num_seqs + 1),
        kv_capacity_tokens=kv_capacity_tokens,
    )


@settings(max_examples=100)
@given(SEEDS, st.sampled_from(BATCHINGS), st.sampled_from([64.0, 150.0, 1e9]), st.sampled_from([0.0, 0.7]))
def test_tokens_are_conserved(seed: int, batching: str, capacity: float, prefix_hit_share: float) -> None:
    """Where time is tokens, the time that an engine works is that of the tokens asked for, and of those read again."""
    rng = np.random.default_rng(seed)
    tokens_in, tokens_out = rng.integers(1, 31, (2, 60))
    kind = priced_by_token(int(rng.integers(1, 9)), int(rng.integers(9, 40)), capacity)
    scheduler = {"batching": batching, "block_tokens": 1, "prefix_hit_share": prefix_hit_share}
    found = one_engine(kind, np.cumsum(rng.exponential(0.4, 60)), tokens_in, tokens_out, scheduler=scheduler).core()
    assert (found.status == SERVED).all()
    cached = np.minimum(np.floor(prefix_hit_share * tokens_in), tokens_in - 1)
    preempted = found.preempted[0]
    read_again = found.prompt_tokens[0] - (tokens_in - cached).sum()
    # Whoever has lost its place writes its next token when it has read everything again.
    decoded = np.rint(found.busy_s[0] / TOKEN_S) - found.prompt_tokens[0]
    assert found.busy_s[0] == pytest.approx((found.prompt_tokens[0] + decoded) * TOKEN_S, rel=ROUNDING)
    assert (tokens_out - 1 - preempted).sum() <= decoded <= (tokens_out - 1).sum()
    assert preempted.sum() == found.preemptions[0]
    assert (read_again > 0) == (preempted.sum() > 0)
    assert 0 <= read_again <= (preempted * (tokens_in + tokens_out)).sum()
    assert 0 < found.peak_kv_share[0] <= 1
    if capacity > 1e6:
        assert preempted.sum() == 0


def test_preemption_is_met() -> None:
    """So that the test above does not pass for want of it."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 31, (2, 60))
    found = one_engine(priced_by_token(8, 30, 64.0), np.zeros(60), *lengths, scheduler={"block_tokens": 1}).core()
    assert found.preemptions[0] > 5


def visits_of(found: Any, replica: int) -> FloatArray:
    """Times of the visits to one replica of the first station, in order of arrival."""
    times_s: FloatArray = found.times_s[0, found.replica[0] == replica]
    return times_s[np.argsort(times_s[:, 0], kind="stable")]


@settings(max_examples=100)
@given(SEEDS)
def test_work_is_conserved(seed: int) -> None:
    """An engine works exactly while it has somebody to serve."""
    found = one_station(seed).core()
    for replica, busy_s in enumerate(found.busy_s):
        times_s = visits_of(found, replica)
        ended_s, union_s = -np.inf, 0.0
        for arrived_s, *_, finished_s in times_s:
            union_s += max(finished_s - max(arrived_s, ended_s), 0.0)
            ended_s = max(ended_s, finished_s)
        assert busy_s == pytest.approx(union_s, rel=ROUNDING)


@settings(max_examples=100)
@given(SEEDS, st.sampled_from(BATCHINGS))
def test_littles_law(seed: int, batching: str) -> None:
    """Time integrals of numbers are sums of times: of the system, and of decodes as engines count them."""
    found = one_station(seed, batching=batching, kv=1e9).core()
    events_s = np.concatenate([found.arrived_s, found.finished_s])
    order = np.lexsort((np.repeat([1, 0], found.status.size), events_s))
    in_system = np.cumsum(np.repeat([1, -1], found.status.size)[order])
    integral = (in_system[:-1] * np.diff(events_s[order])).sum()
    assert in_system.min() == 0
    assert in_system[-1] == 0
    span_s = found.ended_s - found.arrived_s[0]
    throughput_per_s = found.status.size / span_s
    latency_s = (found.finished_s - found.arrived_s).mean()
    assert integral / span_s == pytest.approx(throughput_per_s * latency_s, rel=ROUNDING)
    for replica, decoding_s in enumerate(found.decoding_s):
        times_s = visits_of(found, replica)
        assert decoding_s == pytest.approx((times_s[:, 3] - times_s[:, 2]).sum(), rel=ROUNDING)


@settings(max_examples=60)
@given(SEEDS)
def test_first_come_first_served(seed: int) -> None:
    found = one_station(seed, admission="fcfs").core()
    for replica in range(found.steps.size):
        assert (np.diff(visits_of(found, replica)[:, 1]) >= 0).all()


@settings(max_examples=60)
@given(SEEDS)
def test_the_future_changes_nothing(seed: int) -> None:
    """Without the later half of the arrivals, everything before them happens as it did."""
    case = random_case(seed, loop="open")
    half = case.arguments["drawn"].size // 2
    cut_s = case.arguments["arrival_s"][half]
    whole = case.core()
    first = changed(case, drawn=case.arguments["drawn"][:half], arrival_s=case.arguments["arrival_s"][:half]).core()
    for found, expected in [(first.times_s, whole.times_s[:, :half]), (first.finished_s, whole.finished_s[:half])]:
        before = (found < cut_s) | (expected < cut_s)
        np.testing.assert_allclose(found[before], expected[before], rtol=ROUNDING)
    assert np.isfinite(first.times_s).any()


def slower(station: Station) -> Station:
    """Everything takes twice as long."""

    def twice(kind: Kind) -> Kind:
        assert isinstance(kind.slow, MeasuredCosts)
        costs = {field.name: getattr(kind.slow, field.name) for field in dataclasses.fields(kind.slow)}
        return Kind.measured(**{name: value if "kv" in name else 2 * value for name, value in costs.items()})

    return dataclasses.replace(station, engines=[(twice(kind), count, speed) for kind, count, speed in station.engines])


@settings(max_examples=60)
@given(SEEDS)
def test_a_clock_of_half_the_speed(seed: int) -> None:
    """Twice the step times, gaps, delays and deadlines are twice the times, to the last bit."""
    case = random_case(seed)
    given = case.arguments
    arguments: dict[str, Any] = {name: 2 * given[name] for name in ("judge_delay_s", "timeout_s") if name in given}
    arguments["arrival_s"] = None if given["arrival_s"] is None else 2 * given["arrival_s"]
    judge = None if case.judge is None else slower(case.judge)
    once = case.core()
    twice = Case([slower(station) for station in case.stages], judge, {**given, **arguments}).core()
    for name in ARRAYS:
        factor = 2 if name.endswith("_s") else 1
        np.testing.assert_array_equal(getattr(twice, name), factor * getattr(once, name), err_msg=name)


@settings(max_examples=60)
@given(SEEDS)
def test_fewer_requests_delay_nobody_in_a_single_queue(seed: int) -> None:
    """One at a time, first come, first served: by Lindley's recursion a wait rises with all the work before it."""
    case = one_station(seed)
    rng = np.random.default_rng(seed)
    kind = priced_by_token(1, 64, 1e9)
    left = rng.random(case.arguments["drawn"].size) < 0.7
    lengths = [case.arguments[name][0][case.arguments["drawn"]] for name in ("tokens_in", "tokens_out")]
    arrival_s = case.arguments["arrival_s"]
    whole = one_engine(kind, arrival_s, *lengths).core()
    fewer = one_engine(kind, arrival_s[left], *(tokens[left] for tokens in lengths)).core()
    assert (fewer.finished_s <= whole.finished_s[left] * (1 + ROUNDING)).all()


@pytest.mark.parametrize("seed", range(10))
def test_same_seed_same_bytes(seed: int) -> None:
    case = random_case(seed)
    assert contents(case.core()) == contents(case.core())


def test_another_seed_draws_anew() -> None:
    case = random_case(1, dispatch="random", loop="open")
    assert contents(case.core(seed=1)) != contents(case.core(seed=2))


def test_threads_change_nothing() -> None:
    """Eight simulations at once, the stations shared between them, each as if it were alone."""
    case = random_case(11, requests=20_000, gap_s=1.0, loop="open", kv=6.0)
    expected = [contents(case.core(seed=seed)) for seed in range(4)]
    stations = [station.core() for station in case.stages]
    judge = None if case.judge is None else case.judge.core()
    together = threading.Barrier(4)

    def simulated(seed: int) -> dict[str, bytes]:
        together.wait()
        return contents(_core.simulate(stations, judge=judge, **{**case.arguments, "seed": seed}))

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(simulated, [0, 1, 2, 3])) == expected
        assert list(pool.map(simulated, [3, 3, 2, 2])) == [expected[seed] for seed in (3, 3, 2, 2)]


@pytest.mark.parametrize("seed", range(10))
def test_what_makes_no_difference(seed: int) -> None:
    """Choices among one, deadlines after the end, blocks of a cache that never fills, orders of equal prompts."""
    case = random_case(seed, timeout=False, kv=1e9)
    whole = contents(case.core())
    assert contents(changed(case, timeout_s=1e12).core()) == whole

    def single(**station: Any) -> Case:
        engines = [[(kind, 1, 1.0) for kind, *_ in station.engines[:1]] for station in case.stages]
        stations = [
            dataclasses.replace(one, engines=alone, **station) for one, alone in zip(case.stages, engines, strict=True)
        ]
        return Case(stations, case.judge, case.arguments)

    alone = [contents(single(dispatch=dispatch).core()) for dispatch in DISPATCHES]
    assert alone == alone[:1] * len(DISPATCHES)
    times = [single(scheduler={"block_tokens": block}).core() for block in (1, 16)]
    assert times[0].times_s.tobytes() == times[1].times_s.tobytes()
    equal = np.full_like(case.arguments["tokens_in"], 7)
    orders = [changed(case, {"scheduler": {"admission": one}}, tokens_in=equal).core() for one in ADMISSIONS]
    assert contents(orders[0]) == contents(orders[1])


@pytest.mark.parametrize("seed", range(10))
def test_equal_replicas_are_weighed_equally(seed: int) -> None:
    case = random_case(seed)
    engines = [[(kind, count, 0.75) for kind, count, _ in station.engines] for station in case.stages]
    found = []
    for dispatch in ("least_outstanding", "capacity_weighted"):
        stations = [
            dataclasses.replace(station, engines=equal, dispatch=dispatch)
            for station, equal in zip(case.stages, engines, strict=True)
        ]
        found.append(contents(Case(stations, case.judge, case.arguments).core()))
    assert found[0] == found[1]


@pytest.mark.parametrize("stage", [0, 1, 2])
def test_a_path_of_one_stage_is_that_stage_alone(stage: int) -> None:
    case = random_case(7, stages=3, judge="external", dispatch="round_robin", loop="open", timeout=False)
    given, scored = case.arguments, case.arguments["path"].size
    of_three = changed(case, path=np.full(scored, 1 << stage, np.uint16)).core()
    lengths = {name: given[name][stage : stage + 1] for name in ("tokens_in", "tokens_out")}
    path = np.ones(scored, np.uint16)
    alone = Case([case.stages[stage]], None, {**given, **lengths, "path": path, "judge_delay_s": np.zeros(1)}).core()
    np.testing.assert_array_equal(of_three.times_s[stage], alone.times_s[0])
    np.testing.assert_array_equal(of_three.steps[of_three.station == stage], alone.steps)


@pytest.mark.parametrize("clients", [1, 3, 20])
@pytest.mark.parametrize("judge", ["external", "hosted"])
def test_closed_loop_keeps_its_clients_busy(clients: int, judge: str) -> None:
    """Whenever a request is done the next one comes, and no other does."""
    case = random_case(5, stages=3, judge=judge, loop="closed", timeout=False, kv=1e9)
    found = changed(case, concurrency=clients).core()
    assert (found.status == SERVED).all()
    assert (np.diff(found.arrived_s) >= 0).all()
    np.testing.assert_array_equal(found.arrived_s[:clients], 0)
    np.testing.assert_array_equal(found.arrived_s[clients:], np.sort(found.finished_s)[:-clients])


def test_arrays_are_read_only() -> None:
    found = random_case(2).core()
    assert not any(getattr(found, name).flags.writeable for name in ARRAYS)


@pytest.mark.skipif(os.name == "nt", reason="signals are POSIX")
def test_ctrl_c_ends_it_with_what_there_is() -> None:
    rng, requests = np.random.default_rng(1), 4_000_000
    lengths = rng.integers(1, 60, (2, requests))
    case = one_engine(priced_by_token(8, 30, 1e9), np.arange(requests) * 0.5, *lengths, visits=False)
    began_s = time.monotonic()
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    found = case.core()
    took_s = time.monotonic() - began_s
    timer.join()
    assert found.interrupted
    assert took_s < 1.3
    done = found.status == SERVED
    assert 0 < done.sum() < requests
    assert (found.finished_s[done] > 0).all()
    assert (found.status[~done] == UNFINISHED).all()
