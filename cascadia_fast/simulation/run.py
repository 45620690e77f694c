"""A plan on trial: the whole cascade simulated request by request, and what the run says of it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.economics import gpus_usd_per_hour
from cascadia_fast.errors import InputError
from cascadia_fast.problem import Problem
from cascadia_fast.simulation.belonging import pools_by_name
from cascadia_fast.simulation.columns import STATUSES, Columns, known
from cascadia_fast.simulation.results import (
    Comparison,
    Measured,
    OverTime,
    StageResult,
    comparisons,
    figures,
    measured_part,
    over_time,
    station_result,
)
from cascadia_fast.simulation.settings import Settings, require_number, require_whole
from cascadia_fast.simulation.statistics import (
    Estimate,
    Percentiles,
    attainment,
    mean_of_drawn,
    percentiles,
    smallest_scale,
    within_scale,
)
from cascadia_fast.simulation.system import SimulatedSystem, build_system
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, judge_delays
from cascadia_fast.simulation.visits import stations_of

if TYPE_CHECKING:
    import pyarrow as pa

DEFAULT_REQUESTS = 100_000
SLO_SHARE = 0.95

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False, repr=False)
class Simulation:
    """A simulated run of N requests through the S stages of a plan that run.

    Columns, such as `latency_s`, are computed when they are asked for; they have one entry per request, in order of
    arrival, and NaN where there is nothing to say. Statistics are of the `measured` requests only and are kept.

    Parameters
    ----------
    plan, problem
        What was simulated.
    settings
        How.
    system
        The engines, and the scored requests as they were sent.
    drawn
        Shape (N,): which scored request each request is.
    native
        What happened.
    """

    plan: Plan
    problem: Problem
    settings: Settings
    system: SimulatedSystem
    drawn: NDArray[np.int32]
    native: _core.Simulated

    def __repr__(self) -> str:
        became = ", ".join(f"{count:,} {what}" for what, count in self.counts.items() if count)
        return f"Simulation(plan {self.plan.plan_id}: {became})"

    @property
    def requests(self) -> int:
        """Number N of requests."""
        return int(self.drawn.size)

    @property
    def interrupted(self) -> bool:
        """Whether Ctrl-C ended the run before all requests were done."""
        return bool(self.native.interrupted)

    @cached_property
    def counts(self) -> dict[str, int]:
        """Requests by what became of them: served, timed out, refused (no room for their KV cache), unfinished."""
        found = np.bincount(self.native.status, minlength=4)
        return dict(zip(STATUSES, map(int, found), strict=True))

    @cached_property
    def columns(self) -> Columns:
        """Latencies and the like per request and per visit of a stage."""
        judge_s = self.problem.judge.latency_s if self.system.asks_judge else 0.0
        return Columns(self.native, self.system, self.drawn, judge_s, self.settings.timeout_s)

    @cached_property
    def measured(self) -> Measured:
        """The requests that statistics are of: those after the warm-up and before the cool-down."""
        return measured_part(self.columns)

    @property
    def mask(self) -> NDArray[np.bool_]:
        """Shape (N,): whether a request is among the measured ones."""
        place = np.arange(self.requests)
        return (place >= self.measured.start) & (place < self.measured.stop)

    @property
    def latency_s(self) -> FloatArray:
        """From arrival to the end of the last judge call or of the last token."""
        return self.columns.latency_s()

    @property
    def ttft_s(self) -> FloatArray:
        """From arrival to the first token that the client sees; a judged answer is shown once it is accepted."""
        return self.columns.ttft_s()

    @property
    def tpot_s(self) -> FloatArray:
        """Time per output token after the first, at the stage whose answer was accepted; NaN for one token."""
        return self.columns.tpot_s()

    @property
    def queueing_s(self) -> FloatArray:
        """Time before the engine took a request up, summed over the stages on its path."""
        return self.columns.queueing_s()

    @cached_property
    def latency(self) -> Percentiles | None:
        """Percentiles of `latency_s`."""
        return self._percentiles(self.columns.latency_s)

    @cached_property
    def ttft(self) -> Percentiles | None:
        """Percentiles of `ttft_s`."""
        return self._percentiles(self.columns.ttft_s)

    @cached_property
    def tpot(self) -> Percentiles | None:
        """Percentiles of `tpot_s`."""
        return self._percentiles(self.columns.tpot_s)

    @cached_property
    def queueing(self) -> Percentiles | None:
        """Percentiles of `queueing_s`."""
        return self._percentiles(self.columns.queueing_s)

    def _percentiles(self, column: Callable[[slice], FloatArray]) -> Percentiles | None:
        return percentiles(known(column(self.measured.rows)), self.measured.sections)

    @cached_property
    def stages(self) -> tuple[StageResult, ...]:
        """What each stage that runs saw."""
        pairs = zip(stations_of(self.columns), self.plan.stages, strict=False)
        return tuple(station_result(station, self.measured, stage.index, stage) for station, stage in pairs)

    @cached_property
    def judge(self) -> StageResult | None:
        """What a hosted judge saw; None where the judge is external."""
        last = stations_of(self.columns)[-1]
        return station_result(last, self.measured, None, self.plan.judge) if last.is_judge else None

    @property
    def stations(self) -> tuple[StageResult, ...]:
        """What runs on GPUs: the stages and, last, a hosted judge."""
        return self.stages if self.judge is None else (*self.stages, self.judge)

    @cached_property
    def figures(self) -> tuple[tuple[str, Estimate], ...]:
        """What a plan predicts, as it was simulated: names and values in seconds."""
        return tuple(figures(self.latency, self.ttft, self.stations))

    @cached_property
    def predictions(self) -> tuple[Comparison, ...]:
        """What the plan predicted against what the run shows; nothing in a closed loop, which no plan is for."""
        if self.settings.concurrency is not None:
            return ()
        return comparisons(self.plan, self.figures)

    @cached_property
    def slo_scales(self) -> FloatArray:
        """Latency over the request's own on an idle system, ascending, of the measured requests that were served."""
        ratios = known(self.columns.slo_scale(self.measured.rows))
        ratios.sort()
        return ratios

    def attainment(self, scale: float) -> float:
        """Return the share of measured requests within `scale` times their own latency on an idle system."""
        return attainment(self.slo_scales, scale, self._ended)

    def smallest_slo_scale(self, share: float = SLO_SHARE) -> float | None:
        """Return the smallest scale that this share of the measured requests attains; None if too few were served."""
        require_number("share", share, 0, 1)
        return smallest_scale(self.slo_scales, share, self._ended)

    @cached_property
    def within_slo(self) -> float | None:
        """Share of measured requests served within `slo_s`; None where no deadline was given."""
        if self.settings.slo_s is None:
            return None
        on_time = int(np.count_nonzero(self.columns.latency_s(self.measured.rows) <= self.settings.slo_s))
        return on_time / self._ended if self._ended else 0.0

    @cached_property
    def _ended(self) -> int:
        """Measured requests whose end is known."""
        return int(np.count_nonzero(self.native.status[self.measured.rows] <= 2))

    @property
    def offered_per_s(self) -> float | None:
        """Requests that arrived per second while requests were measured."""
        return self.measured.rate_per_s

    @cached_property
    def throughput_per_s(self) -> float | None:
        """Requests served per second while requests were measured."""
        return self.measured.per_second(self.native.finished_s)

    def goodput_per_s(self, scale: float | None = None) -> float | None:
        """Return the part of the throughput served within `slo_s`, or within `scale` times the idle latency."""
        if scale is not None:
            on_time = within_scale(self.columns.slo_scale(), scale)
        elif self.settings.slo_s is not None:
            on_time = self.latency_s <= self.settings.slo_s
        else:
            return None
        return self.measured.per_second(self.native.finished_s[on_time])

    @cached_property
    def cost_usd_per_request(self) -> float | None:
        """Price of the plan's GPUs and of the judge, per request served; None where some price is not known."""
        gpus: Counter[str] = Counter()
        for group in self.plan.groups:
            gpus[group.pool] += group.count * group.tp * group.pp
        prices = {name: pool.price_usd_per_hour for name, pool in pools_by_name(self.plan, self.problem).items()}
        usd_per_hour = gpus_usd_per_hour(gpus, prices)
        if usd_per_hour is None or not self.throughput_per_s:
            return None
        gpus_usd = usd_per_hour / 3600 / self.throughput_per_s
        return gpus_usd + self.columns.judge_calls(self.measured.rows) * self.problem.judge.usd_per_call

    @cached_property
    def quality(self) -> Estimate | None:
        """Mean quality of the answers served; the interval also covers that the scored requests are a sample."""
        rows, requests = self.measured.rows, self.system.requests
        stage = self.columns.accepted_by(rows)
        served = stage >= 0
        if not served.any():
            return None
        answered = requests.quality[stage[served], self.drawn[rows][served]]
        # What a scored request gets, over the gears as often as they were in use.
        by_gear = requests.quality[self.system.accepted_by, np.arange(requests.size)]
        by_request = np.average(by_gear, axis=0, weights=self.columns.in_gears(rows))
        return mean_of_drawn(answered, by_request, requests.weight, requests.effective_size, top=100.0)

    @cached_property
    def gear_shares(self) -> tuple[float, ...]:
        """Share of each gear among the measured requests that were served; a single one unless gears shift."""
        counts = self.columns.in_gears(self.measured.rows)
        return tuple((counts / max(counts.sum(), 1)).tolist())

    def over_time(self, points: int = 200) -> OverTime:
        """Return arrivals, ends, running, waiting and busy engines of every station at evenly spaced times."""
        require_whole("points", points, 2, 100_000)
        return over_time(self.columns, points, float(self.native.ended_s))

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What the run cannot claim, and what went wrong in it: one sentence each."""
        from cascadia_fast.simulation.notes import notes_of

        return notes_of(self)

    def table(self) -> pa.Table:
        """Return one row per request as an Arrow table; needs pyarrow."""
        from cascadia_fast.simulation.table import arrow_table

        return arrow_table(self)

    def write_table(self, path: str | Path) -> None:
        """Write one row per request to a .parquet, .arrow, .csv or .jsonl file, in one step; needs pyarrow."""
        from cascadia_fast.simulation.table import write_table

        write_table(self, Path(path))

    def to_dict(self) -> dict[str, Any]:
        """Return all statistics as plain numbers, texts and None."""
        from cascadia_fast.simulation.document import document

        return document(self)

    def to_json(self) -> bytes:
        """Return all statistics as JSON: no NaN, no infinity, the same bytes for the same run."""
        import orjson

        return orjson.dumps(self.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)

    def summary(self, width: int = 100, ascii_only: bool = False) -> str:
        """Readable plain text, wrapped at `width` columns."""
        from cascadia_fast.simulation.summary import summarize

        return summarize(self, width=width, ascii_only=ascii_only)


def simulate(
    plan: Plan,
    problem: Problem,
    requests: int = DEFAULT_REQUESTS,
    seed: int = 0,
    rate_per_s: float | None = None,
    *,
    arrivals: str | None = None,
    concurrency: int | None = None,
    dispatch: str = "capacity_weighted",
    batching: str | None = None,
    admission: str = "fcfs",
    prefix_hit_share: float = 0.0,
    timeout_s: float | None = None,
    slo_s: float | None = None,
    judge_cv: float = 0.0,
    progress: Callable[[int], None] | None = None,
) -> Simulation:
    """Serve requests with a plan in simulation; the same arguments give the same run.

    Parameters
    ----------
    plan, problem
        A plan, and the problem it was made from.
    requests, seed
        How many requests to send. Each is a scored request of the problem, drawn with replacement by weight.
    rate_per_s
        Mean rate of the arrivals; None: the problem's own.
    arrivals
        ``trace``: the problem's, stretched to the rate and repeated as often as needed. ``poisson``, or ``gamma`` with
        the CV of the problem's. None: the trace if there is one, else gamma.
    concurrency
        Instead of arrivals so many clients, each sending its next request when the one before is done.
    dispatch
        Which replica of a stage gets a request: ``capacity_weighted`` (fewest outstanding per capacity),
        ``least_outstanding``, ``power_of_two``, ``round_robin`` or ``random``.
    batching
        ``chunked``: steps carry decodes and chunks of prompts up to max_batched_tokens. ``prompts_first``: one or the
        other, prompts first. None: as the plan says.
    admission
        ``fcfs``, or ``shortest_first``: by length of the prompt.
    prefix_hit_share
        Share of every prompt that a prefix cache holds, 0 to 1.
    timeout_s
        Requests that are not served so long after they arrived are cancelled.
    slo_s
        Deadline of a request, end to end, for `within_slo` and `goodput_per_s`; it changes nothing in the run.
    judge_cv
        Coefficient of variation of an external judge's latency, lognormal; 0: constant.
    progress
        Called now and then with the number of requests done.

    Raises
    ------
    InputError
        The plan is not one of this problem, or an argument is out of range.
    """
    for name, value, kind in (("plan", plan, Plan), ("problem", problem, Problem)):
        if not isinstance(value, kind):
            raise InputError(f"{name} is a {type(value).__name__}; give a {kind.__name__}")
    if concurrency is not None and (rate_per_s is not None or arrivals is not None):
        given = "rate_per_s" if rate_per_s is not None else "arrivals"
        raise InputError(f"concurrency and {given} contradict each other: clients that wait set the rate; give one")
    traffic = problem.workload.arrivals
    if concurrency is None:
        rate_per_s = traffic.rate_per_s if rate_per_s is None else rate_per_s
        arrivals = arrivals or ("gamma" if traffic.times_s is None else "trace")
    settings = Settings(
        requests=requests,
        seed=seed,
        rate_per_s=rate_per_s,
        arrivals=arrivals,
        concurrency=concurrency,
        dispatch=dispatch,
        batching=plan.batching if batching is None else batching,
        admission=admission,
        prefix_hit_share=prefix_hit_share,
        timeout_s=timeout_s,
        slo_s=slo_s,
        judge_cv=judge_cv,
    )
    system = build_system(plan, problem)
    if judge_cv and system.judge is not None:
        raise InputError(
            f"judge_cv is {judge_cv:g}, but the judge is hosted: its latency follows from its load; drop it"
        )
    drawn = drawn_requests(system.requests, requests, seed)
    arrival_s = None
    if rate_per_s is not None and arrivals is not None:
        arrival_s = arrival_times(problem.workload, arrivals, rate_per_s, requests, seed)
    scheduler = _core.Scheduler(batching=settings.batching, admission=admission, prefix_hit_share=prefix_hit_share)
    native = _core.simulate(
        system.stations(scheduler, dispatch),
        tokens_in=system.tokens_in,
        tokens_out=system.tokens_out,
        path=system.path,
        gears=system.gears,
        judged=system.held_back,
        judge=system.judge_station(scheduler, dispatch),
        judge_tokens_in=None if system.judge is None else system.judge.tokens_in,
        judge_tokens_out=None if system.judge is None else system.judge.tokens_out,
        judge_delay_s=judge_delays(problem.judge.latency_s if system.asks_judge else 0.0, judge_cv),
        drawn=drawn,
        arrival_s=arrival_s,
        concurrency=concurrency or 0,
        seed=seed,
        timeout_s=math.inf if timeout_s is None else timeout_s,
        progress=progress,
    )
    # When it was interrupted there are only the requests that were sent.
    return Simulation(plan, problem, settings, system, drawn[: native.status.size], native)
