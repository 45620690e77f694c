"""Replicas that open or close while the simulation runs, as when a plan gives way to another."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from reference.cascade_simulation import SERVED, TIMED_OUT
from reference.gears import Gears
from simulator_cases import DISPATCHES, Case, Kind, Station, check, random_case, steady

from cascadia_fast import _core

SEEDS = st.integers(0, 2**32)
ARRAYS = ("status", "arrived_s", "first_token_s", "finished_s", "times_s", "replica", "steps", "busy_s", "preempted")
Window = tuple[float, float]
ALWAYS = (0.0, math.inf)


def contents(found: Any) -> dict[str, bytes]:
    return {name: getattr(found, name).tobytes() for name in ARRAYS}


def random_windows(rng: np.random.Generator, count: int, span_s: float, exact: bool) -> list[Window]:
    """One of them lasts; they open before, while and after requests arrive, often together."""
    round_s = math.floor if exact else float
    windows = []
    for lasts in rng.permutation(np.arange(count) == 0):
        opens_s = round_s(float(rng.choice([0.0, 0.1, 0.3, 0.6, 1.5])) * span_s)
        open_s = round_s(1 + float(rng.uniform(0.0, 0.8)) * span_s)
        windows.append((float(opens_s), math.inf if lasts or rng.random() < 0.3 else float(opens_s + open_s)))
    return windows


def windowed(case: Case, seed: int, exact: bool = False) -> Case:
    """The case with windows of any kind."""
    rng = np.random.default_rng([seed, 2])
    arrival_s = case.arguments["arrival_s"]
    span_s = 60.0 if arrival_s is None else float(arrival_s[-1]) + 1

    def opened(station: Station) -> Station:
        windows = random_windows(rng, len(station.engines), span_s, exact)
        engines: list[Any] = [(*kind[:3], *window) for kind, window in zip(station.engines, windows, strict=True)]
        return dataclasses.replace(station, engines=engines)

    judge = None if case.judge is None else opened(case.judge)
    return dataclasses.replace(case, stages=[opened(station) for station in case.stages], judge=judge)


def windows_of(station: Station) -> NDArray[np.float64]:
    """Opens and closes, by replica."""
    return np.array([kind[3:] for kind in station.engines for _ in range(kind[1])])


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_agrees(dispatch: str, seed: int) -> None:
    """With a slow simulator written from the rules alone, on every request, visit and replica."""
    check(windowed(random_case(seed, dispatch=dispatch, gap_s=1.0), seed))


@pytest.mark.parametrize("seed", range(100))
def test_total_order_of_events(seed: int) -> None:
    """Replicas open and close exactly when requests arrive and steps start."""
    check(windowed(random_case(seed, exact=True, attention=0.0, gap_s=1.0), seed, exact=True), rounding=0.0)


@settings(max_examples=100)
@given(SEEDS, st.booleans())
def test_agrees_on_anything(seed: int, exact: bool) -> None:
    check(windowed(random_case(seed, exact=exact, requests=40), seed, exact))


def test_agrees_with_deadlines_at_an_engine_that_is_not_open() -> None:
    cases = [random_case(seed, timeout=True, timeout_s=6.0, loop="open", gap_s=1.0) for seed in range(40)]
    status = np.concatenate([check(windowed(case, seed)).status for seed, case in enumerate(cases)])
    assert (status == TIMED_OUT).sum() > 500
    assert (status == SERVED).sum() > 500


@settings(max_examples=60)
@given(SEEDS)
def test_always_open_is_no_window(seed: int) -> None:
    case = random_case(seed)
    stages = [
        dataclasses.replace(station, engines=[(*kind[:3], *ALWAYS) for kind in station.engines])
        for station in case.stages
    ]
    assert contents(dataclasses.replace(case, stages=stages).core()) == contents(case.core())


@settings(max_examples=60)
@given(SEEDS)
def test_windows_are_kept(seed: int) -> None:
    """A visit is sent to an open replica, or to one that opens soonest if none is; nothing starts too early."""
    case = windowed(random_case(seed, judge="external"), seed)
    found = case.core()
    for row, station in enumerate(case.stages):
        arrived_s, admitted_s = found.times_s[row, :, 0], found.times_s[row, :, 1]
        came = np.flatnonzero(found.replica[row] >= 0)
        opens_s, closes_s = windows_of(station).T
        is_open = (opens_s <= arrived_s[came, None]) & (arrived_s[came, None] < closes_s)
        still = arrived_s[came, None] < closes_s
        soonest_s = np.where(still, np.maximum(opens_s, arrived_s[came, None]), math.inf)
        replica = found.replica[row, came]
        np.testing.assert_array_equal(
            soonest_s[np.arange(came.size), replica],
            np.where(is_open.any(axis=1), arrived_s[came], soonest_s.min(axis=1)),
        )
        assert not (admitted_s[came] < opens_s[replica]).any()


# ---- worked out by hand: replicas with one place, which a visit takes for a second


def one_station(
    windows: list[Window], arrival_s: ArrayLike, dispatch: str = "round_robin", kind: Kind | None = None, **more: Any
) -> Case:
    arrival_s = np.asarray(arrival_s, float)
    arguments = {
        "tokens_in": np.ones((1, 1), np.int32),
        "tokens_out": np.ones((1, 1), np.int32),
        "path": np.ones(1, np.uint16),
        "drawn": np.zeros(arrival_s.size, np.int32),
        "arrival_s": arrival_s,
        **more,
    }
    engines = [(kind or steady(1.0), 1, 1.0, *window) for window in windows]
    return Case([Station(engines, dispatch)], None, arguments)


def test_closed_is_closed_and_open_is_open_at_the_instant() -> None:
    """One replica takes over from the other at 5."""
    found = check(one_station([(0.0, 5.0), (5.0, math.inf)], [0, 4.5, 5, 5.5]), 0.0)
    assert found.replica[0].tolist() == [0, 0, 1, 1]
    assert found.finished_s.tolist() == [1, 5.5, 6, 7]


def test_what_a_closed_replica_has_it_finishes() -> None:
    found = check(one_station([(0.0, 2.0), (50.0, math.inf)], [0, 1, 1, 1, 2]), 0.0)
    assert found.replica[0].tolist() == [0, 0, 0, 0, 1]
    assert found.finished_s.tolist() == [1, 2, 3, 4, 51]


def test_who_comes_too_early_waits() -> None:
    """They are all there when the replica opens, behind one another."""
    found = check(one_station([(10.0, math.inf)], [0, 3, 10]), 0.0)
    assert found.times_s[0, :, 1].tolist() == [10, 11, 12]
    patient = Kind.measured(decode_step_s=[1.0] * 9, prompt_step_s=[1.0] * 9, sampled_s=[0.0] * 9)
    found = check(one_station([(10.0, math.inf)], [0, 3, 10], kind=patient), 0.0)
    assert found.finished_s.tolist() == [11, 11, 11]
    assert found.busy_s.tolist() == [1]


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_those_that_open_soonest_share_what_waits(dispatch: str) -> None:
    """And the one that opens later gets nothing until then."""
    windows = [(20.0, math.inf), (10.0, math.inf), (0.0, 1.0), (10.0, math.inf), (10.0, math.inf)]
    found = check(one_station(windows, np.full(300, 2.0), dispatch), 0.0)
    counts = np.bincount(found.replica[0], minlength=5)
    assert counts[[0, 2]].tolist() == [0, 0]
    even = (100, 100) if dispatch not in ("random", "power_of_two") else (70, 130)
    assert even[0] <= counts[[1, 3, 4]].min() <= counts[[1, 3, 4]].max() <= even[1]


@pytest.mark.parametrize("dispatch", ["least_outstanding", "capacity_weighted", "power_of_two"])
def test_a_closed_replica_is_not_the_idlest(dispatch: str) -> None:
    """It has nothing to do, the others have, also once it has finished what it had."""
    windows = [(0.0, 3.0), ALWAYS, ALWAYS, (1000.0, math.inf)]
    found = check(one_station(windows, np.arange(100) / 10, dispatch), 0.0)
    early = found.arrived_s < 3
    assert set(found.replica[0, early].tolist()) == {0, 1, 2}
    assert set(found.replica[0, ~early].tolist()) == {1, 2}


def test_capacities_that_differ() -> None:
    """Of a slow and a fast open replica; one that is closed would be faster still."""
    engines: list[Any] = [
        (steady(1.0), 1, 1e-12, *ALWAYS),
        (steady(1.0), 1, 3e-12, *ALWAYS),
        (steady(1.0), 1, 1e12, 0.0, 1.0),
    ]
    case = one_station([ALWAYS], 2 + np.arange(80) / 1000)
    found = check(dataclasses.replace(case, stages=[Station(engines, "capacity_weighted")]), 0.0)
    assert np.bincount(found.replica[0], minlength=3).tolist() == [20, 60, 0]


def test_a_replica_that_opens_joins_in() -> None:
    """Two requests a second are too many for one; from 10 on there are three."""
    arrival_s = np.arange(40) / 2
    found = check(one_station([ALWAYS, (10.0, math.inf), (10.0, math.inf)], arrival_s, "least_outstanding"), 0.0)
    wait_s = found.times_s[0, :, 1] - arrival_s
    assert wait_s[19] == 9.5
    assert wait_s[20:].tolist() == [0.0] * 20
    assert set(found.replica[0, 20:].tolist()) == {1, 2}


def test_deadlines_pass_before_it_opens() -> None:
    found = check(one_station([(10.0, math.inf)], [0, 7], timeout_s=6.0), 0.0)
    assert found.status.tolist() == [TIMED_OUT, SERVED]
    assert found.finished_s[1] == 11


def test_a_judge_that_opens_late() -> None:
    arguments = {"judge_tokens_in": np.ones((2, 1), np.int32), "judge_tokens_out": np.ones((2, 1), np.int32)}
    stage = one_station([ALWAYS], [0.0])
    tokens = {name: np.ones((2, 1), np.int32) for name in ("tokens_in", "tokens_out")}
    judge = Station([(steady(1.0), 1, 1.0, 30.0, math.inf)])
    found = check(Case([*stage.stages] * 2, judge, {**stage.arguments, **tokens, **arguments}), 0.0)
    assert found.finished_s.tolist() == [31]


def test_whoever_waits_for_a_replica_to_open_is_a_backlog() -> None:
    """Of gear 1, which is left for gear 0 only once its queue is short."""
    arguments: dict[str, Any] = {
        "tokens_in": np.ones((2, 1), np.int32),
        "tokens_out": np.ones((2, 1), np.int32),
        "path": np.array([[2], [1]], np.uint16),
    }
    gears = Gears(up_to_per_s=[0.3], window_s=10.0, queue_factor=8.0, first_station=[1, 0])
    one = one_station([(25.0, math.inf)], [0, 1, 2, 3, 12, 13, 20, 50], **arguments)
    other = one_station([ALWAYS], [0]).stages[0]
    found = check(Case([one.stages[0], other], None, one.arguments, gears), 0.0)
    assert found.gear.tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


# ---- bad input


@pytest.mark.parametrize(
    "window", [(-1.0, 5.0), (5.0, 5.0), (5.0, 4.0), (math.nan, 5.0), (0.0, math.nan), (1e12, 1e13)]
)
def test_refuses_windows(window: Window) -> None:
    with pytest.raises(ValueError, match="is open from .* give an opens_s from 0 to 1e12 and a closes_s after it"):
        one_station([ALWAYS, window], [0]).core()


def test_refuses_a_station_that_closes_for_good() -> None:
    with pytest.raises(ValueError, match="All engines of a station close for good"):
        one_station([(0.0, 5.0), (5.0, 1e9)], [0]).core()
    costs = steady(1.0).core
    with pytest.raises(TypeError):
        _core.Station([(costs, 1, 1.0, 5.0)])  # type: ignore[list-item]
