"""The timeline of a simulation: its numbers against slow ones, its layout, and the page as a browser meets it."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.errors import InputError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.simulation import simulate
from cascadia_fast.simulation.columns import ADMITTED, ARRIVED, REFUSED, SERVED, TIMED_OUT, UNFINISHED, Columns
from cascadia_fast.timeline import timeline_html, write_timeline
from cascadia_fast.timeline.curves import Frame, readout, time_axis
from cascadia_fast.timeline.drawing import TimelineData, timeline_data
from cascadia_fast.timeline.page import page
from cascadia_fast.timeline.requests import FINEST, LINE_PX, Window, busy_spans, window_around
from cascadia_fast.timeline.series import (
    FEWEST_FOR_P95,
    MOST_BINS,
    Bins,
    bins_until,
    busy_intervals,
    latency_series,
    mean_per_bin,
    round_step,
    station_series,
)

NEVER = math.inf


def cascade(
    requests: int = 400,
    rate_per_s: float = 2.0,
    *,
    replicas: tuple[int, ...] = (2, 1),
    hosted: bool = False,
    timeout_s: float = NEVER,
    stop_s: float = NEVER,
    deadline_s: float | None = None,
    names: tuple[str, ...] = ("small", "large"),
    kv_capacity_tokens: float = 1e15,
) -> TimelineData:
    """A run of two stages; half of the requests go on to the second, one in ten is too long for a small cache."""
    costs = _core.StepCosts.measured(
        decode_step_s=np.full(5, 0.02),
        prompt_step_s=np.linspace(0.01, 0.2, 513),
        sampled_s=np.zeros(5),
        kv_capacity_tokens=kv_capacity_tokens,
    )
    draw = np.random.default_rng(5)
    tokens_in = draw.integers(10, 300, (2, requests), dtype=np.int32)
    tokens_out = draw.integers(1, 60, (2, requests), dtype=np.int32)
    tokens_in[:, ::10] = 2000
    judge_tokens = np.full((2, requests), 20, np.int32)
    drawn = np.arange(requests, dtype=np.int32)
    native = _core.simulate(
        [_core.Station([(costs, count, 1.0)]) for count in replicas],
        judge=_core.Station([(costs, 1, 1.0)]) if hosted else None,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        path=np.where(draw.random(requests) < 0.5, 3, 1).astype(np.uint16),
        judge_tokens_in=judge_tokens if hosted else None,
        judge_tokens_out=judge_tokens if hosted else None,
        judge_delay_s=np.array([0.25]),
        drawn=drawn,
        arrival_s=np.cumsum(draw.exponential(1 / rate_per_s, requests)),
        timeout_s=timeout_s,
        stop_s=stop_s,
    )
    system: Any = SimpleNamespace(tokens_in=tokens_in, tokens_out=tokens_out, engines=(None, None))
    return TimelineData(
        plan_id="0123456789abcdef",
        seed=7,
        traffic="poisson",
        judge="hosted" if hosted else "external",
        stages=names,
        replicas=(*replicas, 1) if hosted else replicas,
        columns=Columns(native, system, drawn, 0.25, None if timeout_s == NEVER else timeout_s),
        measured=(drawn >= requests // 10) & (native.status != UNFINISHED),
        deadline_s=deadline_s,
    )


CALM = cascade()
OVERLOADED = cascade(rate_per_s=20.0, timeout_s=8.0, deadline_s=3.0, kv_capacity_tokens=1000)
HOSTED = cascade(hosted=True)
INTERRUPTED = cascade(rate_per_s=20.0, stop_s=10.0)
RUNS = pytest.mark.parametrize("data", [CALM, OVERLOADED, HOSTED, INTERRUPTED], ids=["calm", "over", "hosted", "cut"])


def test_runs_hold_every_fate_that_the_page_can_show() -> None:
    assert set(CALM.columns.native.status) == {SERVED}
    assert {SERVED, TIMED_OUT, REFUSED} <= set(OVERLOADED.columns.native.status)
    assert UNFINISHED in INTERRUPTED.columns.native.status
    assert np.isnan(INTERRUPTED.columns.native.arrived_s).any()


# Numbers

times = st.floats(0, 100, allow_subnormal=False)
stays = st.lists(st.tuples(times, times).map(sorted), min_size=0, max_size=30)


@given(stays, st.integers(1, 40))
def test_mean_per_bin_is_the_time_spent_there(visits: list[list[float]], count: int) -> None:
    bins = Bins(100 / count, count)
    entered_s, left_s = np.array(visits).reshape(-1, 2).T
    edges = np.linspace(0, 100, count + 1)
    spent = [
        sum(max(0.0, min(left, high) - max(enter, low)) for enter, left in visits) for low, high in pairwise(edges)
    ]
    assert mean_per_bin(entered_s, left_s, bins) == pytest.approx(np.array(spent) / bins.width_s, abs=1e-9)


def test_who_never_leaves_counts_until_the_end() -> None:
    assert mean_per_bin(np.array([1.0]), np.array([NEVER]), Bins(2.0, 3)) == pytest.approx([0.5, 1, 1])


@given(st.lists(st.tuples(st.integers(0, 3), st.tuples(times, times).map(sorted)), max_size=30))
def test_busy_intervals_are_the_union_of_the_visits_of_each_replica(visits: list[tuple[int, list[float]]]) -> None:
    replica = np.array([place for place, _ in visits], np.int32)
    start_s, end_s = np.array([span for _, span in visits]).reshape(-1, 2).T
    busy = busy_intervals(start_s, end_s, replica)
    expected = []
    for place in range(4):
        merged: list[list[float]] = []
        for start, end in sorted(span for where, span in visits if where == place):
            if merged and start <= merged[-1][1]:
                merged[-1][1] = max(merged[-1][1], end)
            else:
                merged.append([start, end])
        expected += [[place, *span] for span in merged]
    # Times are shifted by replica, which moves them by rounding; spans that only just touch may then part or meet.
    assert busy.end_s.sum() - busy.start_s.sum() == pytest.approx(
        sum(end - start for _, start, end in expected), abs=1e-9
    )
    assert set(busy.replica) == set(replica)


@RUNS
def test_curves_add_up_to_what_the_visits_took(data: TimelineData) -> None:
    columns = data.columns
    bins = bins_until(columns.native.ended_s)
    for station in data.stations:
        series = station_series(columns, station, bins)
        arrived_s, admitted_s, left_s = (
            np.minimum(np.concatenate([column(row) for row in station.rows]), bins.end_s)
            for column in (columns.visit_arrivals_s, columns.visit_admissions_s, columns.visit_ends_s)
        )
        assert series.visits == arrived_s.size
        assert series.arrivals_per_s.sum() * bins.width_s == pytest.approx(series.visits)
        assert series.waiting.sum() * bins.width_s == pytest.approx((admitted_s - arrived_s).sum(), abs=1e-6)
        assert series.running.sum() * bins.width_s == pytest.approx((left_s - admitted_s).sum(), abs=1e-6)
        assert np.all(series.busy_share <= np.minimum(series.running, 1) + 1e-9)
        assert np.all(series.busy_share >= series.running / station.replicas / 4 - 1e-9)  # engines run 4 at most


def test_busy_share_is_that_of_the_engines() -> None:
    bins = bins_until(CALM.columns.native.ended_s)
    for number, station in enumerate(CALM.stations):
        series = station_series(CALM.columns, station, bins)
        busy_s = CALM.columns.native.busy_s[CALM.columns.native.station == number].sum()
        assert series.busy_share.sum() * bins.width_s * station.replicas == pytest.approx(busy_s, rel=1e-6)


@RUNS
def test_latencies_and_failures_are_those_of_the_requests_of_each_bin(data: TimelineData) -> None:
    native = data.columns.native
    series = latency_series(data.columns, data.deadline_s, bins_until(native.ended_s))
    for k in range(series.bins.count):
        low, high = k * series.bins.width_s, (k + 1) * series.bins.width_s
        here = (native.arrived_s >= low) & (native.arrived_s < high)
        latency_s = (native.finished_s - native.arrived_s)[here & (native.status == SERVED)]
        assert series.arrivals[k] == here.sum()
        assert series.p50_s[k] == pytest.approx(np.median(latency_s) if latency_s.size else math.nan, nan_ok=True)
        p95_s = np.quantile(latency_s, 0.95) if latency_s.size >= FEWEST_FOR_P95 else math.nan
        assert series.p95_s[k] == pytest.approx(p95_s, nan_ok=True)
        assert series.late[k] == np.sum(latency_s > (data.deadline_s or NEVER))
        for status, counts in ((1, series.timed_out), (2, series.refused), (3, series.unfinished)):
            assert counts[k] == np.sum(native.status[here] == status)
    assert series.arrivals.sum() == data.columns.sent


@given(st.floats(1e-9, 1e9))
def test_steps_are_round_and_not_much_longer_than_asked(least_s: float) -> None:
    step_s = round_step(least_s)
    assert least_s * (1 - 1e-9) <= step_s <= 2.5 * least_s * (1 + 1e-9)
    assert 1 <= bins_until(least_s).count <= MOST_BINS
    assert bins_until(least_s).end_s >= least_s * (1 - 1e-9)


@given(st.floats(0, 1e6), st.floats(1e-4, 1e6))
def test_axis_has_few_ticks_in_order_within_its_ends(start_s: float, span_s: float) -> None:
    ticks_s, axis = time_axis(start_s, start_s + span_s)
    assert 1 <= len(ticks_s) <= 8
    assert ticks_s == sorted(ticks_s)
    shares = [float(share) for share in re.findall(r"left:([\d.-]+)%", axis)]
    assert len(shares) == len(ticks_s)
    assert all(-0.01 <= share <= 100.01 for share in shares)


def test_axis_says_its_unit() -> None:
    for span_s, unit in ((0.003, "µs"), (0.01, "ms"), (30, "s"), (1000, "min"), (40_000, "h"), (700_000, "d")):
        assert f'<div class="unit">{unit}</div>' in time_axis(0.0, span_s)[1], span_s


# Request by request


def window(data: TimelineData, moment_s: float | None = None) -> Window:
    return window_around(data, data.columns.native.ended_s / 2 if moment_s is None else moment_s)


@RUNS
def test_window_holds_consecutive_requests_with_all_their_visits(data: TimelineData) -> None:
    seen = window(data)
    assert 0 < len(seen.requests) <= 300
    assert list(seen.requests) == list(range(seen.requests[0], seen.requests[-1] + 1))
    for row in data.rows_in_order:
        visited = {visit.request for visit in seen.visits if visit.row == row}
        assert visited == set(np.flatnonzero(data.columns.visited(row))) & set(seen.requests)
    for visit in seen.visits:
        times_s = data.columns.times(visit.row)[visit.request]
        assert visit.arrived_s == times_s[ARRIVED]
        assert visit.admitted_s == (None if np.isnan(times_s[ADMITTED]) else times_s[ADMITTED])
        assert visit.replica == data.columns.replica(visit.row)[visit.request]


def test_window_lies_around_the_moment() -> None:
    data = cascade(2000)
    arrived_s = data.columns.native.arrived_s
    moment_s = float(arrived_s[1000])
    seen = window(data, moment_s)
    assert arrived_s[seen.requests[0]] < moment_s < arrived_s[seen.requests[-1]]
    assert abs(np.mean(seen.requests) - 1000) <= 1
    assert window(data, 0.0).requests[0] == 0
    assert window(data, NEVER).requests[-1] == 1999


@RUNS
def test_no_two_bars_overlap_and_lanes_hold_theirs(data: TimelineData) -> None:
    seen = window(data)
    lanes = {(lane.station, lane.replica): lane for lane in seen.lanes}
    lines: dict[tuple[int, int, int], list[Any]] = {}
    for visit in seen.visits:
        assert visit.line < lanes[visit.station, visit.replica].lines
        lines.setdefault((visit.station, visit.replica, visit.line), []).append(visit)
    for bars in lines.values():
        ordered = sorted(bars, key=lambda visit: visit.arrived_s)
        assert all(one.end_s < other.arrived_s for one, other in pairwise(ordered))
    ends_px = [lane.top_px + LINE_PX * lane.lines for lane in seen.lanes]
    assert all(end_px <= lane.top_px for end_px, lane in zip(ends_px, seen.lanes[1:], strict=False))
    assert ends_px[-1] <= seen.height_px <= 1700


@RUNS
def test_lanes_are_busy_while_their_bars_run(data: TimelineData) -> None:
    seen = window(data)
    lanes = {(lane.station, lane.replica): lane for lane in seen.lanes}
    slack_s = 1e-6 * seen.end_s
    for visit in seen.visits:
        if visit.admitted_s is not None and visit.left_s > visit.admitted_s:
            spans = lanes[visit.station, visit.replica].busy
            assert any(
                start_s - slack_s <= visit.admitted_s and visit.left_s <= end_s + slack_s for start_s, end_s in spans
            )


def test_background_of_a_lane_is_no_finer_than_can_be_seen() -> None:
    data = cascade(6000, rate_per_s=0.5)
    end_s = data.columns.native.ended_s
    (spans,) = busy_spans(data.columns, (1,), 0.0, end_s).values()
    assert data.columns.visit_arrivals_s(1).size > 2 * FINEST
    assert len(spans) <= FINEST
    assert all(other[0] - one[1] >= end_s / FINEST for one, other in pairwise(spans))


def test_judging_lasts_from_the_last_token_until_the_request_goes_on() -> None:
    judged = [visit for visit in window(CALM).visits if visit.judged_s is not None]
    assert {visit.row for visit in judged} == {0}  # nobody judges the last stage
    assert all(visit.judged_s - visit.left_s == pytest.approx(0.25) for visit in judged)
    # A hosted judge is a station of its own, and leaves no gap.
    assert all(visit.judged_s is None for visit in window(HOSTED).visits)
    assert {visit.row for visit in window(HOSTED).visits} == {0, 1, 2}


def test_crowded_pictures_show_fewer_requests() -> None:
    crowded = window(cascade(2000, rate_per_s=200.0))
    assert len(crowded.requests) < 300
    assert crowded.height_px <= 1700


# The page


class Reader(HTMLParser):
    """Collects what a browser would act on, and checks that elements are closed in order."""

    VOID = frozenset({"meta", "link", "br", "img", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str]] = []
        self.texts: list[tuple[str, str]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.attributes += [(tag, name, value or "") for name, value in attrs]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((self.open[-1] if self.open else "", data))


def read(text: str) -> Reader:
    reader = Reader()
    reader.feed(text)
    reader.close()
    assert reader.open == []
    return reader


def visible(text: str) -> str:
    return "".join(data for tag, data in read(text).texts if tag not in ("style", "script"))


@RUNS
def test_page_is_well_formed_and_loads_nothing(data: TimelineData) -> None:
    text = page(data)
    reader = read(text)
    assert not {name for _, name, _ in reader.attributes} & {"src", "href", "srcset", "action", "data"}
    assert not re.search(r"https?:|//[a-z]|@import|url\(|fetch\(|import\(", text)
    assert "default-src 'none'" in text
    for picture in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(picture)
    assert "nan" not in re.sub(r"<(script|style).*?</\1>", "", text, flags=re.DOTALL).lower()


@RUNS
def test_page_says_what_was_simulated(data: TimelineData) -> None:
    text = visible(page(data))
    for fact in ("0123456789abcdef", "poisson", data.judge, f"{data.measured.size:,}:", *data.stages):
        assert fact in text
    counts = np.bincount(data.columns.native.status, minlength=4)
    assert f"{counts[SERVED]:,} served" in text
    assert f"{counts[UNFINISHED]:,} unfinished" in text
    if data.deadline_s is not None:
        late = np.sum(data.columns.latency_s() > data.deadline_s)
        assert f"({late:,} of them later than 3 s), {counts[TIMED_OUT]:,} timed out after 8 s" in text
    assert "around the busiest moment" in text


def test_page_is_the_same_for_the_same_run() -> None:
    assert page(cascade()) == page(cascade())


@pytest.mark.parametrize(
    "name", ["</script><script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "模型 🚀 א&amp;"]
)
@pytest.mark.parametrize("hosted", [False, True])
def test_names_are_text_whatever_they_hold(name: str, hosted: bool) -> None:
    text = page(cascade(50, names=(name, "large"), hosted=hosted))
    reader = read(text)
    tags = {tag for tag, _, _ in reader.attributes}
    assert "img" not in tags
    assert text.count("<script") == 2
    assert name in visible(text)
    numbers = next(data for tag, data in reader.texts if tag == "script")
    assert json.loads(numbers)["groups"][0]["name"] == name


def test_bars_carry_the_facts_of_their_requests() -> None:
    text = page(OVERLOADED)
    titles = re.findall(r"<title>(request .*?)</title>", text, re.DOTALL)
    native = OVERLOADED.columns.native
    fates = {SERVED: "served", TIMED_OUT: "timed out", REFUSED: "refused"}
    assert len(titles) >= 20
    for title in titles:
        request = int(title.split(":")[0].removeprefix("request ").replace(",", ""))
        assert fates[int(native.status[request])] in title
        assert len(title.splitlines()) == 1 + sum(OVERLOADED.columns.visited(row)[request] for row in (0, 1))
        tokens_in = OVERLOADED.columns.system.tokens_in[0, request]
        assert f"{tokens_in:,} tokens in" in title
        late = native.status[request] == SERVED and OVERLOADED.columns.latency_s()[request] > 3.0
        assert ("served late" in title) == late


def test_numbers_under_the_pointer_are_those_of_the_curves() -> None:
    bins = bins_until(OVERLOADED.columns.native.ended_s)
    series = [station_series(OVERLOADED.columns, place, bins) for place in OVERLOADED.stations]
    latency = latency_series(OVERLOADED.columns, OVERLOADED.deadline_s, bins)
    frame = Frame(bins, OVERLOADED.columns.native.ended_s, None, (0.0, 1.0))
    shown: Any = readout(list(zip(OVERLOADED.stages, series, strict=True)), latency, frame)
    small = {name: values for name, _, values in shown["groups"][0]["series"]}
    assert small["waiting"] == pytest.approx(series[0].waiting, rel=0.01)
    assert small["busy"] == pytest.approx(100 * series[0].busy_share, rel=0.01)
    total = {name: values for name, _, values in shown["groups"][-1]["series"]}
    assert total["timed out"] == pytest.approx(100 * latency.timed_out / np.maximum(latency.arrivals, 1), rel=0.01)
    assert [value is None for value in total["p95"]] == list(np.isnan(latency.p95_s))


def test_one_request_and_none_served() -> None:
    assert "1: 1 served" in visible(page(cascade(1, kv_capacity_tokens=1e9)))
    refused = page(cascade(1, kv_capacity_tokens=100))
    assert "1: 0 served, 1 refused" in visible(refused)
    assert 'class="x"' in refused


def test_run_that_ended_before_anything_arrived() -> None:
    text = page(cascade(10, stop_s=1e-9))
    assert "No request arrived." in visible(text)
    assert "10 unfinished" in visible(text)


def test_interrupted_run_says_so() -> None:
    columns = INTERRUPTED.columns
    names = ("arrived_s", "first_token_s", "finished_s", "status", "times_s", "replica", "preempted", "ended_s")
    native: Any = SimpleNamespace(**{name: getattr(columns.native, name) for name in names}, interrupted=True)
    cut = replace(INTERRUPTED, columns=replace(columns, native=native))
    assert "then interrupted" in visible(page(cut))
    assert "then interrupted" not in visible(page(INTERRUPTED))


def test_page_stays_small_for_many_requests() -> None:
    many = len(page(cascade(100_000, rate_per_s=5.0, replicas=(3, 2))).encode())
    assert many < 500_000


@pytest.fixture(scope="module")
def simulation() -> cf.Simulation:
    problem = cf.Problem.read(EXAMPLE_DIR / "problem.yaml")
    return simulate(cf.plan(problem), problem, requests=2000, seed=3, slo_s=60.0)


def test_timeline_of_a_simulation_is_drawn_from_it(simulation: cf.Simulation) -> None:
    data = timeline_data(simulation)
    assert data.stages == tuple(stage.model for stage in simulation.plan.stages)
    assert sum(data.replicas) == simulation.native.station.size
    text = timeline_html(simulation)
    for fact in (simulation.plan.plan_id, "2,000:", f"{simulation.settings.rate_per_s:g}", "60 s", *data.stages):
        assert fact in visible(text)


def test_timeline_says_when_clients_set_the_rate(simulation: cf.Simulation) -> None:
    closed = simulate(simulation.plan, simulation.problem, requests=200, concurrency=16)
    assert "closed loop of 16 clients" in visible(timeline_html(closed))


def test_file_is_written_whole_or_not_at_all(simulation: cf.Simulation, tmp_path: Path) -> None:
    path = tmp_path / "out.html"
    write_timeline(simulation, str(path))
    assert path.read_text(encoding="utf-8") == timeline_html(simulation)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.html"]
    with pytest.raises(InputError, match="cannot be written"):
        write_timeline(simulation, tmp_path / "none" / "out.html")
    with pytest.raises(InputError, match="not a regular file"):
        write_timeline(simulation, tmp_path)
