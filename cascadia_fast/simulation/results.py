"""What a simulated run says: the part that is measured, results per stage and over time, and the plan's predictions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.simulation.columns import SERVED, Columns, known
from cascadia_fast.simulation.statistics import (
    MOST_WARM_UP,
    SECTIONS,
    Estimate,
    Percentiles,
    WarmUp,
    busy_replicas_at,
    counted_until,
    mean_present,
    most_present,
    percentiles,
    warm_up,
)
from cascadia_fast.simulation.visits import Station, stations_of

if TYPE_CHECKING:
    from cascadia_fast.blueprint import JudgePlan, Plan, StagePlan

# Sections shorter than this many p99 latencies depend on one another, and intervals come out too narrow. Of 100 runs of
# the built-in example with 100,000 requests, six p99 latencies, Poisson arrivals, intervals from 3 sections held the
# true p50, p95 and p99 in 94, 92 and 92 %, from 10 sections in 80, 83 and 94 %.
SECTION_P99S = 2
LEAST_SECTIONS = 3
# However short the run, this share of what the warm-up leaves is measured.
LEAST_MEASURED = 0.5

FloatArray = NDArray[np.float64]


@dataclass(frozen=True)
class Measured:
    """The requests that statistics are of: `start` up to but not including `stop`, in order of arrival.

    Parameters
    ----------
    start, stop
        Before `start` lies the warm-up, from `stop` on the cool-down.
    start_s, end_s
        Arrival of the first and of the last of them.
    warm_up
        What MSER-5 said.
    p99_s
        The latency that warm-up and cool-down last, at least.
    short
        Whether the run is too short for them, so that they were limited, or for the least number of sections.
    ended_s
        End of the whole run.
    """

    start: int
    stop: int
    start_s: float
    end_s: float
    warm_up: WarmUp
    p99_s: float
    short: bool
    ended_s: float

    @property
    def rows(self) -> slice:
        """The range of requests."""
        return slice(self.start, self.stop)

    @property
    def sections(self) -> int:
        """Into how many sections of consecutive requests intervals divide them, at most."""
        if not self.p99_s:
            return SECTIONS
        return min(max(int((self.end_s - self.start_s) / (SECTION_P99S * self.p99_s)), LEAST_SECTIONS), SECTIONS)

    @property
    def count(self) -> int:
        """Number of requests."""
        return self.stop - self.start

    @property
    def rate_per_s(self) -> float | None:
        """Arrivals per second; None when all arrived at once."""
        return (self.count - 1) / (self.end_s - self.start_s) if self.end_s > self.start_s else None

    def per_second(self, events_s: FloatArray) -> float | None:
        """Return events per second while these requests arrived; over the whole run when all arrived at once."""
        known_s = known(events_s)
        if self.end_s > self.start_s:
            inside = np.count_nonzero((known_s > self.start_s) & (known_s <= self.end_s))
            return float(inside) / (self.end_s - self.start_s)
        return known_s.size / self.ended_s if self.ended_s > 0 else None


def measured_part(columns: Columns) -> Measured:
    """Return the requests that are neither warm-up nor cool-down.

    The run starts empty, and is as full as it gets once the longest stays have begun to end. So the warm-up are the
    requests that arrived within one p99 latency of the first, and what MSER-5 leaves out of the end-to-end latencies in
    order of arrival, where that is more. (MSER-5 alone leaves nothing out of a run that fills slowly beside the scatter
    of latencies: of 20,000 requests of the built-in example, Poisson arrivals, p50 then came out 20 % low in the mean
    of 40 runs.) The cool-down are those that arrived less than one p99 latency before the last: what would have come
    after them is missing.
    """
    sent, ended_s = columns.sent, float(columns.native.ended_s)
    latency_s = known(columns.latency_s(slice(sent)))
    warm = warm_up(latency_s)
    if not sent:
        return Measured(0, 0, 0.0, 0.0, warm, 0.0, False, ended_s)
    p99_s = float(np.quantile(latency_s[warm.observations :], 0.99, overwrite_input=True)) if latency_s.size else 0.0
    arrived_s = columns.native.arrived_s[:sent]
    most = int(sent * MOST_WARM_UP)
    filled = int(np.searchsorted(arrived_s, arrived_s[0] + p99_s, side="left"))
    settled = int(np.flatnonzero(columns.native.status[:sent] == SERVED)[warm.observations]) if warm.observations else 0
    start = max(min(filled, most), settled)
    stop = int(np.searchsorted(arrived_s, arrived_s[-1] - p99_s, side="right"))
    kept = max(stop, start + math.ceil((sent - start) * LEAST_MEASURED))
    start_s, end_s = float(arrived_s[start]), float(arrived_s[kept - 1])
    short = filled > most or kept > stop or end_s - start_s < LEAST_SECTIONS * SECTION_P99S * p99_s
    return Measured(start, kept, start_s, end_s, warm, p99_s, short, ended_s)


@dataclass(frozen=True)
class StageResult:
    """What one stage, or a hosted judge, saw. Latencies, rates and numbers of requests are those of the measured part.

    Parameters
    ----------
    index, model, gpus, replicas
        Those of the plan; `index` counts from 0 in the problem's cascade and is None for the judge.
    visits
        Visits in the whole run.
    reach
        Share of requests that came here; calls per request of the judge.
    arrived_per_s, finished_per_s
        Visits begun and finished per second.
    latency, ttft, tpot, queueing
        Percentiles over visits, from arrival at the stage; None without any.
    busy_share
        Share of the whole run, mean over replicas, in which an engine ran steps.
    mean_running, mean_queue, peak_queue
        Visits in engines and waiting for one, over all replicas; the peak is that of the whole run.
    preemptions, peak_kv_share
        Of the whole run: how often a sequence lost its place in the KV cache, and the fullest that any cache became.
    """

    index: int | None
    model: str
    gpus: int
    replicas: int
    visits: int
    reach: float
    arrived_per_s: float | None
    finished_per_s: float | None
    latency: Percentiles | None
    ttft: Percentiles | None
    tpot: Percentiles | None
    queueing: Percentiles | None
    busy_share: float
    mean_running: float
    mean_queue: float
    peak_queue: int
    preemptions: int
    peak_kv_share: float

    @property
    def name(self) -> str:
        """What people call it."""
        return "judge" if self.index is None else f"stage {self.index + 1}"

    @property
    def preemptions_per_visit(self) -> float:
        """How often a visit lost its place in the KV cache."""
        return self.preemptions / self.visits if self.visits else 0.0


def station_result(
    station: Station, measured: Measured, index: int | None, planned: StagePlan | JudgePlan
) -> StageResult:
    """Return what a stage, or a hosted judge, saw; `index` is that of the stage in the problem's cascade."""
    native, rows, sections = station.columns.native, measured.rows, measured.sections
    own = native.station == station.number
    arrived_s, admitted_s = station.arrivals_s(), station.admissions_s()
    start_s, end_s = measured.start_s, measured.end_s
    if end_s <= start_s:
        start_s, end_s = 0.0, measured.ended_s

    visits = arrived_s.size
    arrived_per_s = measured.per_second(arrived_s)
    mean_queue = mean_present(arrived_s, admitted_s, start_s, end_s)
    mean_running = mean_present(admitted_s, station.ends_s(), start_s, end_s)
    peak_queue = most_present(arrived_s, admitted_s)
    del arrived_s, admitted_s  # of ten million visits: 160 MB
    return StageResult(
        index=index,
        model=planned.model or "",
        gpus=planned.gpus,
        replicas=int(own.sum()),
        visits=visits,
        reach=station.visits_per_request(rows) if measured.count else 0.0,
        arrived_per_s=arrived_per_s,
        finished_per_s=measured.per_second(station.finished_s()),
        latency=percentiles(known(station.latency_s(rows)), sections),
        ttft=percentiles(known(station.ttft_s(rows)), sections),
        tpot=percentiles(known(station.tpot_s(rows)), sections),
        queueing=percentiles(known(station.queueing_s(rows)), sections),
        busy_share=float(native.busy_s[own].mean() / native.ended_s) if native.ended_s > 0 else 0.0,
        mean_running=mean_running,
        mean_queue=mean_queue,
        peak_queue=peak_queue,
        preemptions=int(native.preemptions[own].sum()),
        peak_kv_share=float(native.peak_kv_share[own].max()),
    )


@dataclass(frozen=True)
class OverTime:
    """The run at G evenly spaced times, per station: the S stages and, last, a hosted judge.

    Parameters
    ----------
    times_s
        Shape (G,): from one interval after the start to the end.
    arrived_per_s, finished_per_s
        Shape (stations, G): visits begun and finished per second in the interval that ends at each time.
    running, waiting
        Shape (stations, G): visits in engines and waiting for one, at each time.
    busy_share
        Shape (stations, G): share of the replicas that run steps.
    """

    times_s: FloatArray
    arrived_per_s: FloatArray
    finished_per_s: FloatArray
    running: NDArray[np.int64]
    waiting: NDArray[np.int64]
    busy_share: FloatArray


def over_time(columns: Columns, points: int, ended_s: float) -> OverTime:
    """Return the run at evenly spaced times."""
    times_s = np.linspace(0.0, ended_s, points + 1)[1:]
    interval_s = max(ended_s / points, np.finfo(float).tiny)
    arrived, finished, running, waiting, busy = [], [], [], [], []
    for station in stations_of(columns):
        came = counted_until(station.arrivals_s(), times_s)
        admitted = counted_until(station.admissions_s(), times_s)
        done = counted_until(known(station.finished_s()), times_s)
        arrived.append(np.diff(came, prepend=0) / interval_s)
        finished.append(np.diff(done, prepend=0) / interval_s)
        running.append(admitted - counted_until(station.ends_s(), times_s))
        waiting.append(came - admitted)
        busy.append(_busy_share(station, times_s))
    return OverTime(
        times_s, np.array(arrived), np.array(finished), np.array(running), np.array(waiting), np.array(busy)
    )


def _busy_share(station: Station, times_s: FloatArray) -> FloatArray:
    """An engine runs steps exactly while somebody is there."""
    replicas = int((station.columns.native.station == station.number).sum())
    arrived_s, left_s = station.arrivals_s(), station.ends_s()
    return busy_replicas_at(arrived_s, left_s, station.replicas(), replicas, times_s) / max(replicas, 1)


@dataclass(frozen=True)
class Comparison:
    """One figure of the plan against the run; `predicted_s` is None where the plan says that load is unstable."""

    what: str
    predicted_s: float | None
    simulated: Estimate

    @property
    def error(self) -> float | None:
        """Predicted over simulated, minus one."""
        if self.predicted_s is None or self.simulated.value <= 0:
            return None
        return self.predicted_s / self.simulated.value - 1

    @property
    def inside(self) -> bool:
        """Whether the prediction lies in the run's confidence interval."""
        return self.predicted_s is not None and self.simulated.holds(self.predicted_s)


def figures(
    latency: Percentiles | None, ttft: Percentiles | None, stations: Sequence[StageResult]
) -> list[tuple[str, Estimate]]:
    """Return what plans predict as it was simulated: p95 of the stations, p50 and p95 of paths, p95 of first tokens."""
    found = [(f"{station.name} p95", station.latency.p95) for station in stations if station.latency]
    if latency:
        found += [("end to end p50", latency.p50), ("end to end p95", latency.p95)]
    if ttft:
        found.append(("first token p95", ttft.p95))
    return found


def comparisons(plan: Plan, simulated: Sequence[tuple[str, Estimate]]) -> tuple[Comparison, ...]:
    """Return the plan's predictions of some figures against these."""
    predicted = plan.predicted
    value_s = {f"stage {stage.index + 1} p95": stage.p95_s for stage in plan.stages} | {
        "judge p95": plan.judge.p95_s,
        "end to end p50": predicted.end_to_end_p50_s,
        "end to end p95": predicted.end_to_end_p95_s,
        "first token p95": predicted.ttft_p95_s,
    }
    return tuple(Comparison(what, value_s[what], found) for what, found in simulated)
