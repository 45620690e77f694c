"""Gears in the simulator: which way a request takes depends on the rate when it enters, and on who waits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from reference.cascade_simulation import SERVED, UNFINISHED
from reference.gears import Gears
from simulator_cases import TIMES, Case, Station, check, random_case, steady

from cascadia_fast import _core

SEEDS = st.integers(0, 2**32)
ARRAYS = ("status", "gear", "arrived_s", "first_token_s", "finished_s", "times_s", "replica", "steps", "busy_s")


def contents(found: Any) -> dict[str, bytes]:
    return {name: getattr(found, name).tobytes() for name in ARRAYS}


def geared(case: Case, seed: int, exact: bool = False) -> Case:
    """The case with gears of any paths; in an exact one windows end when requests arrive, and rates meet limits."""
    rng = np.random.default_rng([seed, 1])
    gears, stages, scored = int(rng.integers(2, 5)), len(case.stages), case.arguments["path"].size
    window_s = float(rng.choice([2, 4, 8, 16])) * (1 if exact else 1.0371)
    made = Gears(
        up_to_per_s=sorted(float(count / window_s) for count in rng.integers(0, 12, gears - 1)),
        window_s=window_s,
        queue_factor=float(rng.choice([0.0, 0.125, 1.0, 8.0])),
        first_station=[int(station) for station in rng.integers(0, stages, gears)],
    )
    paths = {
        "path": rng.integers(1, 2**stages, (gears, scored)).astype(np.uint16),
        "judged": rng.integers(0, 2 ** (stages - 1), gears).astype(np.uint16),
    }
    return dataclasses.replace(case, arguments=case.arguments | paths, gears=made)


@pytest.mark.parametrize("seed", range(100))
def test_agrees(seed: int) -> None:
    """With a slow simulator written from the rules alone, on every request, visit and replica."""
    check(geared(random_case(seed, gap_s=1.0), seed))


@pytest.mark.parametrize("seed", range(100))
def test_total_order_of_events(seed: int) -> None:
    check(geared(random_case(seed, exact=True, attention=0.0, gap_s=1.0), seed, exact=True), rounding=0.0)


@settings(max_examples=100)
@given(SEEDS, st.booleans())
def test_agrees_on_anything(seed: int, exact: bool) -> None:
    check(geared(random_case(seed, exact=exact, requests=40), seed, exact))


def test_the_random_cases_shift() -> None:
    """Up, down and over more than one gear at once, and some do not because of their backlog."""
    cases = [geared(random_case(seed, gap_s=1.0, loop="open"), seed) for seed in range(100)]
    shifts = np.concatenate([np.diff(case.core().gear.astype(int)) for case in cases])
    assert {-3, -2, -1, 0, 1, 2, 3} == set(shifts.tolist())
    waited = 0
    for case in cases:
        assert case.gears is not None
        heedless = dataclasses.replace(case, gears=dataclasses.replace(case.gears, queue_factor=0.0))
        waited += not np.array_equal(case.core().gear, heedless.core().gear)
    assert waited >= 5


# ---- worked out by hand: two stages of one place each, which a visit takes for a second


def two_stages(
    arrival_s: ArrayLike, path: ArrayLike, gears: Gears | None = None, step_s: float = 1.0, **more: Any
) -> Case:
    """The same request again and again; `path` by gear."""
    arrival_s = np.asarray(arrival_s, float)
    arguments = {
        "tokens_in": np.ones((2, 1), np.int32),
        "tokens_out": np.ones((2, 1), np.int32),
        "path": np.array(path, np.uint16)[:, None],
        "drawn": np.zeros(arrival_s.size, np.int32),
        "arrival_s": arrival_s,
        **more,
    }
    return Case([Station([(steady(step_s), 1, 1.0)])] * 2, None, arguments, gears)


LARGE_UP_TO_3 = Gears(up_to_per_s=[0.3], window_s=10.0, queue_factor=8.0, first_station=[1, 0])


def gears_of(arrival_s: ArrayLike, gears: Gears = LARGE_UP_TO_3) -> list[int]:
    """Gear 0 is the large model alone, gear 1 the small one."""
    found = check(two_stages(arrival_s, [2, 1], gears), rounding=0.0)
    np.testing.assert_array_equal(found.replica, np.where(found.gear == [[1], [0]], 0, -1))
    gear: list[int] = found.gear.tolist()
    return gear


def test_the_rate_of_the_last_window_counts() -> None:
    """Four in ten seconds are too many for gear 0, three are not."""
    assert gears_of([0, 1, 2, 3, 11, 12, 25]) == [0, 0, 0, 0, 1, 1, 0]
    assert gears_of([0, 1, 2, 11, 12, 13, 14, 21]) == [0, 0, 0, 0, 0, 0, 0, 1]


def test_an_arrival_at_the_end_of_a_window_is_in_the_next() -> None:
    assert gears_of([0, 1, 2, 10, 11]) == [0] * 5
    assert gears_of([0, 1, 2, 9.9, 11]) == [0] * 4 + [1]
    assert gears_of([0, 1, 2, 3, 10]) == [0] * 4 + [1]


def test_a_window_in_which_nobody_came() -> None:
    """Only the last one that has ended counts, not the one before it in which many came."""
    assert gears_of([0, 1, 2, 3, 25]) == [0] * 5
    assert gears_of([30, 31, 32, 33, 41, 60]) == [0] * 4 + [1, 0]


def test_a_backlog_has_to_drain_first() -> None:
    """At 20.1 one request waits, another has its place: 0.3 per second is less than 8 of one, more than 0.1 of one."""
    arrival_s = [0, 1, 2, 3, 12, 19.7, 19.9, 20.1, 20.2, 35]
    assert gears_of(arrival_s) == [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]
    hasty = dataclasses.replace(LARGE_UP_TO_3, queue_factor=0.1)
    assert gears_of(arrival_s, hasty) == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]
    elsewhere = dataclasses.replace(LARGE_UP_TO_3, first_station=[1, 1])
    assert gears_of(arrival_s, elsewhere) == [0, 0, 0, 0, 1, 1, 1, 0, 0, 0]


def test_who_was_given_up_is_no_backlog() -> None:
    """Two of gear 1's requests wait until their deadline; one starts in time but ends too late."""
    case = two_stages([0, 1, 2, 3, 12, 12.5, 13, 30], [2, 1], LARGE_UP_TO_3, step_s=5.0, timeout_s=4.0)
    assert check(case, 0.0).gear.tolist() == [0, 0, 0, 0, 1, 1, 1, 0]


def test_more_load_never_waits() -> None:
    """Gear 0's own queue is long when it is left."""
    case = two_stages([0, 0, 0, 0, 10], [2, 1], dataclasses.replace(LARGE_UP_TO_3, queue_factor=1e9), step_s=10.0)
    assert check(case, 0.0).gear.tolist() == [0] * 4 + [1]


def test_a_request_keeps_the_gear_that_it_entered_with() -> None:
    """The judge takes 20 s, by when gear 1, without the second stage, is in."""
    gears = dataclasses.replace(LARGE_UP_TO_3, first_station=[0, 0])
    case = two_stages([0, 1, 2, 3, 11], [3, 1], gears, judge_delay_s=np.array([20.0]))
    found = check(case, 0.0)
    assert found.gear.tolist() == [0] * 4 + [1]
    assert found.finished_s.tolist() == [22, 23, 24, 25, 32]


def test_what_nobody_judges() -> None:
    """Goes straight on, and at the end of its path to the user as it is written; what is judged is shown afterwards."""
    judged: dict[str, Any] = {"judge_delay_s": np.array([20.0])}
    for path, mask, first_s, last_s in [(1, 1, 22, 22), (1, 0, 1, 2), (3, 1, 23, 24), (3, 0, 3, 4), (2, 1, 1, 2)]:
        case = two_stages([0], [path], judged=np.array([mask], np.uint16), **judged)
        case.arguments["tokens_out"] = np.full((2, 1), 2, np.int32)
        found = check(case, 0.0)
        assert (found.first_token_s[0], found.finished_s[0]) == (first_s, last_s)


# ---- what must hold


@settings(max_examples=60)
@given(SEEDS)
def test_gears_that_are_all_alike_are_none(seed: int) -> None:
    plain = random_case(seed)
    case, path = geared(plain, seed), plain.arguments["path"]
    rows, stages = len(case.arguments["path"]), len(case.stages)
    alike = {"path": np.tile(path, (rows, 1)), "judged": np.full(rows, 2 ** (stages - 1) - 1, np.uint16)}
    found, expected = case.core(**alike), plain.core()
    for name in ("status", "replica", *TIMES):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    assert not expected.gear.any()


@settings(max_examples=60)
@given(SEEDS)
def test_one_gear_is_none(seed: int) -> None:
    """Nor are several, if no window ever ends."""
    plain = random_case(seed)
    expected = contents(plain.core())
    alone = dataclasses.replace(plain, gears=Gears([], 1.0, 8.0, [0]))
    assert contents(alone.core()) == expected
    assert contents(alone.core(path=plain.arguments["path"][None])) == expected
    endless = Gears([0.0], 1e12, 8.0, [0, 0])
    paths = {"path": np.stack([plain.arguments["path"], np.ones_like(plain.arguments["path"])])}
    assert contents(dataclasses.replace(plain, gears=endless).core(**paths)) == expected


@settings(max_examples=60)
@given(SEEDS)
def test_every_request_takes_the_path_of_its_gear(seed: int) -> None:
    case = geared(random_case(seed, loop="open"), seed)
    found, stages = case.core(), len(case.stages)
    path = case.arguments["path"][found.gear, case.arguments["drawn"]]
    on_path = (path >> np.arange(stages)[:, None] & 1).astype(bool)
    served = found.status == SERVED
    np.testing.assert_array_equal(np.isfinite(found.times_s[:stages, served, 0]), on_path[:, served])
    assert (found.gear < len(case.arguments["path"])).all()


def test_the_same_again() -> None:
    case = geared(random_case(3, requests=2000), 3)
    assert contents(case.core()) == contents(case.core())
    bare = case.core(visits=False)
    assert bare.gear.tobytes() == case.core().gear.tobytes()


def test_who_never_entered_has_gear_0() -> None:
    found = two_stages([0, 1, 2, 3, 11, 50], [2, 1], LARGE_UP_TO_3).core(stop_s=20.0)
    assert found.gear.tolist() == [0, 0, 0, 0, 1, 0]
    assert found.status[-1] == UNFINISHED
    with pytest.raises(ValueError, match="read-only"):
        found.gear[0] = 1


def test_times_are_those_of_the_reference_on_many_requests() -> None:
    case = geared(random_case(8, requests=1000, gap_s=1.0, loop="open"), 8)
    found = check(case)
    assert len(set(found.gear.tolist())) > 1


# ---- bad input


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"up_to_per_s": [0.3, 0.4]}, "2 limits up_to_per_s for 2 gears: give one fewer"),
        ({"up_to_per_s": [-0.1]}, "up_to_per_s has -0.1"),
        ({"up_to_per_s": [np.nan]}, "up_to_per_s has nan"),
        ({"up_to_per_s": [np.inf]}, "up_to_per_s has inf"),
        ({"up_to_per_s": [0.3, 0.2], "first_station": [0, 0, 0]}, "0.2.* after 0.3"),
        ({"window_s": 0.0}, "window_s is 0.0"),
        ({"window_s": np.inf}, "window_s is inf"),
        ({"window_s": np.nan}, "window_s is nan"),
        ({"queue_factor": -1.0}, "queue_factor is -1"),
        ({"queue_factor": np.nan}, "queue_factor is nan"),
        ({"first_station": [0, -1]}, "first_station of a gear is -1"),
        ({"up_to_per_s": np.arange(256.0), "first_station": np.zeros(257)}, "257 gears: give at most 256"),
    ],
)
def test_refuses_gears(changes: dict[str, Any], message: str) -> None:
    gears = dataclasses.replace(LARGE_UP_TO_3, **changes)
    with pytest.raises(ValueError, match=message):
        two_stages([0], [2, 1], gears).core()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"path": np.ones(1, np.uint16)}, r"path must have shape \(2, n\)"),
        ({"path": np.ones((3, 1), np.uint16)}, r"path must have shape \(2, n\)"),
        ({"path": np.ones((2, 0), np.uint16)}, r"path must have shape \(2, n\)"),
        ({"path": np.ones((2, 2), np.uint16)}, r"tokens_in must have shape \(2, 2\)"),
        ({"path": np.array([[1], [0]], np.uint16)}, "A path is 0"),
        ({"path": np.array([[1], [4]], np.uint16)}, "A path is 4"),
        ({"gears": None}, "several rows need gears"),
        ({"judged": np.zeros(1, np.uint16)}, r"judged must have shape \(2,\)"),
        ({"judged": np.array([0, 2], np.uint16)}, "judged is 2: set bits of stages before the last"),
        (
            {"gears": _core.Gears(np.array([0.3]), 10.0, 8.0, np.array([0, 2], np.int32))},
            "is 2, but there are 2 stages",
        ),
    ],
)
def test_refuses_paths(changes: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        two_stages([0], [2, 1], LARGE_UP_TO_3).core(**changes)
