"""The native simulator against a slow one written from the rules alone: every request, every visit, every replica."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.cascade_simulation import REFUSED, SERVED, TIMED_OUT, UNFINISHED
from simulator_cases import (
    ADMISSIONS,
    BATCHINGS,
    DISPATCHES,
    ROUNDING,
    Case,
    Kind,
    Station,
    check,
    one_engine,
    random_case,
    steady,
)

from cascadia_fast import _core


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("dispatch", DISPATCHES)
@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("batching", BATCHINGS)
def test_agrees(batching: str, admission: str, dispatch: str, seed: int) -> None:
    check(random_case(seed, batching=batching, admission=admission, dispatch=dispatch))


@pytest.mark.parametrize("seed", range(100))
def test_total_order_of_events(seed: int) -> None:
    """All times are sums of sixteenths: events fall together often, and both simulators agree to the last bit."""
    case = random_case(seed, exact=True, attention=0.0, gap_s=1.0)
    expected = check(case, rounding=0.0)
    times_s = expected.times_s[np.isfinite(expected.times_s)]
    assert (times_s * 16 == np.rint(times_s * 16)).all()
    assert np.unique(times_s).size < times_s.size


@pytest.mark.parametrize("seed", range(60))
def test_deadlines_to_the_instant(seed: int) -> None:
    """Steps start, and visits begin, exactly when a deadline is reached: that is too late."""
    check(random_case(seed, exact=True, loop="open", timeout=True, timeout_s=4, stages=3, attention=0.0), rounding=0.0)


@settings(max_examples=150)
@given(st.integers(0, 2**32), st.booleans())
def test_agrees_on_anything(seed: int, exact: bool) -> None:
    check(random_case(seed, exact=exact, requests=40))


FEATURES: dict[str, dict[str, Any]] = {
    "preemption": {"kv": 1.5, "longest": 60, "gap_s": 0.25},
    "preemption of blocks": {"kv": 2.5, "longest": 60, "gap_s": 0.25, "block_tokens": 16},
    "preemption and deadlines": {"kv": 1.5, "longest": 60, "timeout": True},
    "prefix hits": {"prefix_hit_share": 0.5, "block_tokens": 4},
    "prefix hits of whole prompts": {"prefix_hit_share": 1.0, "block_tokens": 1},
    "deadlines": {"timeout": True, "gap_s": 0.25},
    "closed loop": {"loop": "closed"},
    "closed loop with deadlines": {"loop": "closed", "timeout": True, "kv": 1.5},
    "hosted judge": {"judge": "hosted", "stages": 3},
    "hosted judge with deadlines": {"judge": "hosted", "stages": 2, "timeout": True, "loop": "closed"},
    "three stages": {"stages": 3, "gap_s": 1.0},
    "attention": {"attention": 2.0**-7, "longest": 60},
}


@pytest.mark.parametrize("feature", FEATURES)
def test_agrees_where_it_is_hard(feature: str) -> None:
    found = [check(random_case(1000 + seed, **FEATURES[feature])) for seed in range(20)]
    status = np.concatenate([one.status for one in found])
    preemptions = sum(one.preemptions.sum() for one in found)
    assert (status == SERVED).sum() > 100
    assert ("preemption" not in feature) or preemptions > 100
    assert ("deadlines" not in feature) or (status == TIMED_OUT).sum() > 50
    assert (FEATURES[feature].get("kv") != 1.5) or (status == REFUSED).sum() > 10


MODELS: dict[str, Kind] = {}


def model(name: str) -> Kind:
    """Real step times: a dense model, one with sliding windows in a cache of a few thousand tokens, a pipeline."""
    if name not in MODELS:
        made = {
            "dense": lambda: Kind.of_model("llama-3.1-8b", max_num_seqs=8, max_batched_tokens=256),
            "tight": lambda: Kind.of_model("llama-3.1-8b", memory_utilization=0.235),
            "windowed": lambda: Kind.of_model("gpt-oss-20b", 1, 1, "mxfp4", memory_utilization=0.195),
            "pipeline": lambda: Kind.of_model("mixtral-8x7b", 2, 2, max_num_seqs=16),
        }
        MODELS[name] = made[name]()
    return MODELS[name]


@pytest.mark.parametrize("batching", BATCHINGS)
@pytest.mark.parametrize(
    ("name", "rate_per_s", "longest_in", "longest_out", "block_tokens", "preempts"),
    [
        ("dense", 15.0, 300, 40, 16, False),
        ("tight", 30.0, 3000, 600, 16, True),
        ("tight", 30.0, 3000, 600, 1, True),
        ("windowed", 60.0, 1000, 800, 16, True),
        ("windowed", 60.0, 1000, 800, 1, True),
        ("windowed", 20.0, 1500, 100, 16, False),
        ("pipeline", 10.0, 3000, 30, 16, False),
    ],
)
def test_agrees_on_real_engines(
    name: str, rate_per_s: float, longest_in: int, longest_out: int, block_tokens: int, preempts: bool, batching: str
) -> None:
    rng, count = np.random.default_rng(5), 120
    case = one_engine(
        model(name),
        np.cumsum(rng.exponential(1 / rate_per_s, count)),
        rng.integers(1, longest_in, count),
        rng.integers(1, longest_out, count),
        scheduler={"block_tokens": block_tokens, "batching": batching},
    )
    assert (check(case).preemptions[0] > 0) == preempts


@pytest.mark.parametrize("dispatch", DISPATCHES)
def test_agrees_on_a_cascade_of_real_engines(dispatch: str) -> None:
    """Three stages, the middle one of two kinds of engines, and a judge of its own."""
    rng, scored, requests = np.random.default_rng(9), 80, 250
    stages = [
        Station([(model("windowed"), 2, 9.0)], dispatch),
        Station([(model("dense"), 2, 3.0), (model("tight"), 1, 8.0)], dispatch),
        Station([(model("pipeline"), 3, 2.0)], dispatch),
    ]
    lengths = [rng.integers(1, longest, (3, scored)).astype(np.int32) for longest in (1500, 400, 1800, 20)]
    case = Case(
        stages,
        Station([(model("dense"), 2, 1.0)], dispatch),
        {
            "tokens_in": lengths[0],
            "tokens_out": lengths[1],
            "judge_tokens_in": lengths[2],
            "judge_tokens_out": lengths[3],
            "path": rng.integers(1, 8, scored).astype(np.uint16),
            "drawn": rng.integers(0, scored, requests).astype(np.int32),
            "arrival_s": np.cumsum(rng.exponential(1 / 20, requests)),
            "timeout_s": 25.0,
            "seed": 4,
        },
    )
    found = check(case)
    assert found.visits_done > 2.5 * requests


@pytest.mark.parametrize("admission", ADMISSIONS)
@pytest.mark.parametrize("arrival_s", [9.6, 10.1, 10.6, 11.1])
def test_deadlines_pass_while_an_engine_decodes(arrival_s: float, admission: str) -> None:
    """Request 0 waits behind one of two long decodes and is given up at 10 or 10.5; dispatch knows that afterwards."""
    second = Station([(steady(1.0), 2, 1.0)], "least_outstanding", {"admission": admission})
    for seed in range(10):
        arguments = {
            "tokens_in": np.ones((2, 4), np.int32),
            "tokens_out": np.array([[1, 1, 1, 1], [1, 100, 100, 1]], np.int32),
            "path": np.array([3, 2, 2, 2], np.uint16),
            "drawn": np.arange(4, dtype=np.int32),
            "arrival_s": np.array([0.0, 5.0, 5.5, arrival_s]),
            "timeout_s": 10.0,
            "seed": seed,
        }
        check(Case([Station([(steady(8.5), 1, 1.0)]), second], None, arguments), rounding=0.0)


def test_the_first_client_to_be_free_sends_the_last_request() -> None:
    """Not the one whose step ended first: that one's answer may still be with the judge."""
    station = Station([(steady(1.0), 1, 1.0)])
    arguments = {
        "tokens_in": np.ones((2, 3), np.int32),
        "tokens_out": np.ones((2, 3), np.int32),
        "path": np.ones(3, np.uint16),
        "drawn": np.arange(3, dtype=np.int32),
        "arrival_s": None,
        "concurrency": 2,
        "judge_delay_s": np.array([0.0, 5.0]),
    }
    found = [check(Case([station, station], None, {**arguments, "seed": seed}), 0.0) for seed in range(10)]
    assert {float(one.arrived_s[2]) for one in found} == {1.0, 2.0, 6.0}


def test_alone_on_an_idle_engine() -> None:
    """`StepCosts.alone_s` is what the slow simulator says of one request by itself."""
    rng = np.random.default_rng(3)
    tokens_in, tokens_out = (rng.integers(1, longest, 12).astype(np.int32) for longest in (3000, 300))
    for name in ("dense", "windowed", "pipeline"):
        first_s, latency_s = model(name).core.alone_s(tokens_in, tokens_out)
        for k in range(tokens_in.size):
            slow = one_engine(model(name), [0.0], tokens_in[k], tokens_out[k]).slow()
            assert first_s[k] == pytest.approx(slow.first_token_s[0], rel=ROUNDING)
            assert latency_s[k] == pytest.approx(slow.finished_s[0], rel=ROUNDING)


@pytest.mark.parametrize("seed", range(10))
def test_stopped_in_time(seed: int) -> None:
    """What was done before is the same as without an end; nothing happens after it."""
    case = random_case(seed, gap_s=1.0, loop="open")
    whole = case.core()
    stop_s = float(np.median(case.arguments["arrival_s"]))
    found = case.core(stop_s=stop_s)
    done = (whole.finished_s <= stop_s) & (whole.status == SERVED)
    np.testing.assert_array_equal(found.status == SERVED, done)
    np.testing.assert_array_equal(found.finished_s[done], whole.finished_s[done])
    np.testing.assert_array_equal(np.isfinite(found.arrived_s), whole.arrived_s <= stop_s)
    assert (found.status[whole.arrived_s > stop_s] == UNFINISHED).all()
    assert found.ended_s <= stop_s


def test_without_the_table_of_visits() -> None:
    case = random_case(3)
    bare, whole = case.core(visits=False), case.core()
    assert bare.times_s is None
    assert bare.replica is None
    assert bare.preempted is None
    for name in ("status", "finished_s", "steps", "busy_s"):
        assert getattr(bare, name).tobytes() == getattr(whole, name).tobytes()


def test_limits_that_no_engine_has() -> None:
    with pytest.raises(ValueError, match="max_num_seqs"):
        _core.StepCosts.measured(decode_step_s=np.ones(9), prompt_step_s=np.ones(5), sampled_s=np.zeros(9))
