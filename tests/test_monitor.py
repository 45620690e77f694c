"""The monitor: what it records, what it survives, and what it makes of the traffic."""

from __future__ import annotations

import math
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cascadia_fast.errors import InputError
from cascadia_fast.monitor import Monitor


def poisson_traffic(
    monitor: Monitor, *, rate_per_s: float, duration_s: float, seed: int = 0, cv: float = 1.0, start_s: float = 0.0
) -> int:
    """Feed a three-stage cascade: half of the requests go on to stage 1, a fifth of all to stage 2."""
    rng = np.random.default_rng(seed)
    shape = 1 / cv**2
    gaps_s = rng.gamma(shape, 1 / (rate_per_s * shape), int(rate_per_s * duration_s * 1.2))
    arrivals_s = np.cumsum(gaps_s)
    arrivals_s = arrivals_s[arrivals_s < duration_s]
    luck = rng.random(arrivals_s.size)
    visits: list[tuple[Any, ...]] = []
    for k, (arrival_s, fate) in enumerate(zip(arrivals_s + start_s, luck, strict=True)):
        now_s = arrival_s
        for stage, latency_s in enumerate((rng.exponential(4.0), 10.0, 30.0)[: 1 + (fate < 0.5) + (fate < 0.2)]):
            now_s += latency_s
            score = 100 * fate if stage < 2 else math.nan
            visits.append((f"request-{k}", stage, 100 * (stage + 1), 50, score, latency_s, now_s))
    seen = sorted((visit for visit in visits if visit[-1] <= start_s + duration_s), key=lambda visit: visit[-1])
    for visit in seen:
        monitor.observe(*visit)
    return len(seen)


def test_snapshot_measures_known_traffic() -> None:
    monitor = Monitor(3, window_s=600.0)
    recorded = poisson_traffic(monitor, rate_per_s=5.0, duration_s=1800.0)
    snapshot = monitor.snapshot()
    assert snapshot.observations == recorded
    assert snapshot.window_s == 600.0
    assert snapshot.rate_per_s == pytest.approx(5.0, rel=0.05)
    assert snapshot.cv == pytest.approx(1.0, abs=0.08)
    assert snapshot.reach == pytest.approx((1.0, 0.5, 0.2), abs=0.04)
    assert snapshot.mean_input_tokens == (100.0, 200.0, 300.0)
    assert snapshot.mean_output_tokens == (50.0, 50.0, 50.0)
    assert snapshot.mean_score[:2] == pytest.approx((50.0, 25.0), abs=3.0)
    assert math.isnan(snapshot.mean_score[2])
    assert snapshot.score_missing == (0.0, 0.0, 1.0)
    assert snapshot.p95_latency_s == pytest.approx((12.0, 10.0, 30.0), rel=0.1)


@pytest.mark.parametrize("cv", [0.5, 2.0])
def test_burstiness_is_that_of_the_arrivals_not_of_the_answers(cv: float) -> None:
    monitor = Monitor(3, window_s=1200.0)
    poisson_traffic(monitor, rate_per_s=5.0, duration_s=2400.0, cv=cv)
    assert monitor.snapshot().cv == pytest.approx(cv, rel=0.1)


def test_a_young_monitor_knows_the_rate() -> None:
    monitor = Monitor(3, window_s=300.0)
    poisson_traffic(monitor, rate_per_s=5.0, duration_s=90.0)
    snapshot = monitor.snapshot()
    assert snapshot.window_s < 91.0
    assert snapshot.rate_per_s == pytest.approx(5.0, rel=0.15)


def test_the_window_slides() -> None:
    monitor = Monitor(3, window_s=100.0)
    poisson_traffic(monitor, rate_per_s=2.0, duration_s=400.0)
    poisson_traffic(monitor, rate_per_s=8.0, duration_s=400.0, seed=1, start_s=400.0)
    assert monitor.snapshot().rate_per_s == pytest.approx(8.0, rel=0.12)
    assert monitor.snapshot(now_s=400.0).rate_per_s == pytest.approx(2.0, rel=0.3)
    idle = monitor.snapshot(now_s=2000.0)
    assert idle.visits == (0, 0, 0)
    assert idle.rate_per_s == 0.0


def test_a_full_ring_shortens_the_window_and_keeps_the_rate() -> None:
    monitor = Monitor(3, window_s=600.0, capacity=2_000)
    poisson_traffic(monitor, rate_per_s=10.0, duration_s=900.0)
    snapshot = monitor.snapshot()
    assert sum(snapshot.visits) <= 2_000
    assert 100.0 < snapshot.window_s < 130.0
    assert snapshot.rate_per_s == pytest.approx(10.0, rel=0.12)


def test_no_data_at_all() -> None:
    monitor = Monitor(2)
    for snapshot in (monitor.snapshot(), monitor.snapshot(now_s=1e9)):
        assert snapshot.observations == 0
        assert snapshot.visits == (0, 0)
        assert snapshot.rate_per_s == 0.0
        assert snapshot.window_s == 0.0
        assert all(math.isnan(value) for value in (snapshot.cv, *snapshot.reach, *snapshot.mean_score))


def test_one_visit() -> None:
    monitor = Monitor(2)
    monitor.observe("a", 0, 10, 20, 50.0, 1.0, 100.0)
    snapshot = monitor.snapshot()
    assert snapshot.visits == (1, 0)
    assert snapshot.reach == (1.0, 0.0)
    assert math.isnan(snapshot.cv)


@pytest.mark.parametrize(
    ("position", "value", "sentence"),
    [
        (1, 3, "stage given to Monitor.observe is 3; give the index of the visited model, 0 to 2"),
        (1, -1, "stage given to Monitor.observe is -1"),
        (1, 0.5, "stage given to Monitor.observe is 0.5"),
        (1, 1 << 80, "stage given to Monitor.observe is 1208925819614629174706176"),
        (2, -5, "input_tokens given to Monitor.observe is -5; give the number of prompt tokens, 0 to 1e9"),
        (2, None, "input_tokens given to Monitor.observe is None"),
        (3, -1, "output_tokens given to Monitor.observe is -1"),
        (3, math.nan, "output_tokens given to Monitor.observe is nan"),
        (3, 10**400, "output_tokens given to Monitor.observe is 1000"),
        (4, 101.0, "score given to Monitor.observe is 101.0"),
        (4, -0.5, "score given to Monitor.observe is -0.5"),
        (4, "high", "score given to Monitor.observe is 'high'"),
        (6, math.inf, "now_s given to Monitor.observe is inf"),
        (6, None, "now_s given to Monitor.observe is None"),
    ],
)
def test_bad_arguments_get_a_sentence_and_record_nothing(position: int, value: Any, sentence: str) -> None:
    monitor = Monitor(3)
    visit: list[Any] = ["a", 0, 10, 20, 50.0, 1.0, 100.0]
    monitor.observe(*visit)
    before = monitor.snapshot()
    visit[position] = value
    with pytest.raises(InputError) as caught:
        monitor.observe(*visit)
    assert str(caught.value).startswith(sentence)
    assert monitor.observations == 1
    assert repr(monitor.snapshot()) == repr(before)


def test_a_request_id_is_text() -> None:
    with pytest.raises(TypeError, match="request_id"):
        Monitor(1).observe(7, 0, 10, 20, 50.0, 1.0, 100.0)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"stages": 0}, "stages of Monitor is 0"),
        ({"stages": 2.5}, "stages of Monitor is 2.5"),
        ({"stages": 2, "window_s": 0}, "window_s of Monitor is 0"),
        ({"stages": 2, "window_s": math.nan}, "window_s of Monitor is nan"),
        ({"stages": 2, "capacity": 1}, "capacity of Monitor is 1"),
        ({"stages": 2, "capacity": 10**30}, "capacity of Monitor is 1000000000000000000000000000000"),
    ],
)
def test_bad_construction_gets_a_sentence(arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence):
        Monitor(**arguments)


def test_failed_judges_unknown_latencies_and_foreign_numbers_are_visits() -> None:
    monitor = Monitor(2)
    monitor.observe("ключ-鍵-🔑", 0, 10, 20, math.nan, math.nan, 1.0)
    monitor.observe("", 0, np.int64(10), np.float32(20), None, None, np.float64(2.0))
    monitor.observe("a" * 100_000, True, 10.0, 20, np.float32(80), -3.0, 3)
    monitor.observe("\ud800", 0, 0, 0, 0, 0, 4.0)
    snapshot = monitor.snapshot()
    assert snapshot.visits == (3, 1)
    assert snapshot.mean_score == (0.0, 80.0)
    assert snapshot.score_missing == pytest.approx((2 / 3, 0.0))
    assert snapshot.p95_latency_s[0] == 0.0
    assert math.isnan(snapshot.p95_latency_s[1])


def test_a_clock_that_falls_back_a_little_holds_the_window() -> None:
    monitor = Monitor(1, window_s=100.0)
    for now_s in (*range(1, 101), *range(91, 101)):
        monitor.observe("a", 0, 10, 20, 50.0, 0.0, float(now_s))
    snapshot = monitor.snapshot()
    assert snapshot.end_s == 100.0
    assert snapshot.visits == (110,)


def test_a_clock_that_restarts_starts_the_statistics_afresh() -> None:
    monitor = Monitor(1, window_s=100.0)
    for now_s in (*range(10_000, 10_100), *range(50)):
        monitor.observe("a", 0, 10, 20, 50.0, 0.0, float(now_s))
    snapshot = monitor.snapshot()
    assert snapshot.end_s == 49.0
    assert snapshot.visits == (50,)


def test_one_wild_reading_of_the_clock_passes() -> None:
    monitor = Monitor(1, window_s=100.0)
    for now_s in (*range(50), 1e12, *range(50, 100)):
        monitor.observe("a", 0, 10, 20, 50.0, 0.0, float(now_s))
    assert monitor.snapshot().end_s == 99.0
    assert monitor.snapshot().visits == (100,)


def test_reach_joins_by_request_and_counts_retries_once() -> None:
    monitor = Monitor(2, window_s=100.0)
    for k in range(40):
        monitor.observe(f"r{k}", 0, 10, 20, 50.0, 0.5, float(k))
        if k % 4 == 0:
            for _ in range(3):
                monitor.observe(f"r{k}", 1, 10, 20, math.nan, 0.5, float(k) + 0.1)
    monitor.observe("a request that the first stage never saw", 1, 10, 20, math.nan, 0.5, 41.0)
    snapshot = monitor.snapshot()
    assert snapshot.reach == (1.0, 0.25)
    assert snapshot.visits == (40, 31)


def test_reach_waits_for_paths_to_end() -> None:
    """With 30 s at the last stage, a plain ratio over the last 60 s of growing traffic would come out far too low."""
    monitor = Monitor(3, window_s=60.0)
    for k in range(4):
        poisson_traffic(monitor, rate_per_s=5.0 * (k + 1), duration_s=60.0, seed=k, start_s=60.0 * k)
    poisson_traffic(monitor, rate_per_s=20.0, duration_s=120.0, seed=9, start_s=240.0)
    assert monitor.snapshot().reach == pytest.approx((1.0, 0.5, 0.2), abs=0.06)


def test_threads_lose_nothing() -> None:
    monitor = Monitor(4, capacity=1 << 17)
    each, threads = 20_000, 4
    switch_s = sys.getswitchinterval()

    def feed(thread: int) -> None:
        for k in range(each):
            monitor.observe(f"{thread}-{k}", thread, thread, k, thread, 0.0, 1.0)

    def look() -> Iterator[int]:
        while any(worker.is_alive() for worker in workers):
            visits = monitor.window().visits
            # A torn record would mix the fields of two threads.
            assert np.array_equal(visits["stage"], visits["input_tokens"])
            assert np.array_equal(visits["stage"], visits["score"])
            yield visits.size

    workers = [threading.Thread(target=feed, args=(thread,)) for thread in range(threads)]
    sys.setswitchinterval(1e-5)
    try:
        for worker in workers:
            worker.start()
        sizes = list(look())
    finally:
        sys.setswitchinterval(switch_s)
        for worker in workers:
            worker.join()
    assert sizes == sorted(sizes)
    assert monitor.observations == each * threads
    visits = monitor.window().visits
    for thread in range(threads):
        assert np.array_equal(visits["output_tokens"][visits["stage"] == thread], np.arange(each))


def test_memory_does_not_grow() -> None:
    monitor = Monitor(3, capacity=4_096)
    observe = monitor.observe
    ids = [f"request-{k}" for k in range(1_000)]
    tracemalloc.start()
    try:
        held = []
        # The first reading comes after a few rounds: the interpreter fills caches of its own.
        for rounds in (20, 1_000, 1_000):
            for k in range(rounds):
                for request_id in ids:
                    observe(request_id, k % 3, 512, 700, 55.5, 1.5, 2.0)
            held.append(tracemalloc.get_traced_memory()[0])
            tracemalloc.reset_peak()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert monitor.observations == 2_020_000
    assert max(held) - held[0] < 1_024
    assert peak - held[0] < 1_024


def test_the_same_visits_give_the_same_snapshot() -> None:
    first, second = Monitor(3), Monitor(3)
    for monitor in (first, second):
        poisson_traffic(monitor, rate_per_s=3.0, duration_s=200.0)
    assert first.snapshot() == second.snapshot() == first.snapshot()


@settings(max_examples=40)
@given(
    st.lists(
        st.tuples(
            st.text(max_size=3),
            st.integers(0, 2),
            st.floats(0, 1e9),
            st.integers(0, 10**9),
            st.one_of(st.floats(0, 100), st.just(math.nan), st.none()),
            st.one_of(st.floats(), st.none()),
            st.floats(-1e300, 1e300),
        ),
        max_size=70,
    )
)
def test_any_stream_gives_a_sound_snapshot(visits: list[tuple[Any, ...]]) -> None:
    monitor = Monitor(3, window_s=10.0, capacity=64)
    for visit in visits:
        monitor.observe(*visit)
    snapshot = monitor.snapshot()
    assert snapshot.observations == len(visits)
    assert sum(snapshot.visits) <= min(len(visits), 64)
    assert 0 <= snapshot.window_s <= 10.0
    assert 0 <= snapshot.rate_per_s < math.inf
    assert all(math.isnan(share) or 0 <= share <= 1 for share in snapshot.reach)
