"""The cascade simulator once more: slow, readable, and written from its rules alone, as an oracle of the native one.

One event after another, in the order (time, kind, sequence): step ends, by station and replica; arrivals, first those
from outside by index, then hand-overs in order of creation; step starts, by station and replica. Engines are those of
``cascade_engine``.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .cascade_engine import Costs, Engine, Scheduler, Visit
from .gears import Gearbox, Gears

SERVED, TIMED_OUT, REFUSED, UNFINISHED = range(4)
STEP_END, ARRIVAL, STEP_START = range(3)
FROM_OUTSIDE, HANDED_OVER = range(2)
CLIENT = -1  # where a request goes when it is done
NOWHERE = -2
DISPATCH, SECOND_CHOICE, JUDGE_DELAY = range(3)


@dataclass(frozen=True)
class Station:
    """The arguments of `_core.Station`."""

    # What its steps take, how many, capacity of one; when it opens and closes, unless it is always open.
    engines: Sequence[tuple[Costs, int, float] | tuple[Costs, int, float, float, float]]
    scheduler: Scheduler = field(default_factory=Scheduler)
    dispatch: str = "capacity_weighted"


@dataclass(frozen=True)
class Simulated:
    """As `_core.Simulated`."""

    status: NDArray[np.uint8]
    gear: NDArray[np.uint8]
    arrived_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    finished_s: NDArray[np.float64]
    times_s: NDArray[np.float64]
    replica: NDArray[np.int32]
    preempted: NDArray[np.uint8]
    station: NDArray[np.int32]
    steps: NDArray[np.int64]
    busy_s: NDArray[np.float64]
    decoding_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    peak_kv_share: NDArray[np.float64]
    ended_s: float
    visits_done: int


def uniform(seed: int, stream: int, index: int) -> float:
    """A draw in [0, 1) that depends on nothing but its number."""
    golden, mask = 0x9E3779B97F4A7C15, 2**64 - 1

    def mix(z: int) -> int:
        z ^= z >> 30
        z = z * 0xBF58476D1CE4E5B9 & mask
        z ^= z >> 27
        z = z * 0x94D049BB133111EB & mask
        return z ^ z >> 31

    h = mix(seed + golden & mask)
    h = mix(h + golden * (stream + 1) & mask)
    h = mix(h + golden * (index + 1) & mask)
    return float((h >> 11) * 2.0**-53)


class Group:
    """The replicas of a station, and how a visit finds one of them."""

    def __init__(self, station: Station, seed: int) -> None:
        self.seed = seed
        self.dispatch = station.dispatch
        self.dispatched = 0
        self.engines: list[Engine] = []
        self.windows_s: list[tuple[float, float]] = []
        for costs, count, capacity_per_s, *window_s in station.engines:
            opens_s, closes_s = window_s or (0.0, math.inf)
            for _ in range(count):
                self.engines.append(Engine(costs, station.scheduler, capacity_per_s))
                self.windows_s.append((opens_s, closes_s))

    def available(self, now_s: float) -> list[int]:
        """The open replicas; where none is, those that open soonest."""
        is_open = [r for r, (opens_s, closes_s) in enumerate(self.windows_s) if opens_s <= now_s < closes_s]
        to_open = [opens_s for opens_s, _ in self.windows_s if opens_s > now_s]
        return is_open or [r for r, (opens_s, _) in enumerate(self.windows_s) if opens_s == min(to_open)]

    def choose(self, now_s: float, row: int, request: int) -> int:
        available = self.available(now_s)
        return available[self._choose([self.engines[r] for r in available], row, request)]

    def _choose(self, engines: list[Engine], row: int, request: int) -> int:
        replicas = len(engines)
        outstanding = [engine.outstanding for engine in engines]
        u = uniform(self.seed, 4 * row + DISPATCH, request)
        self.dispatched += 1
        match self.dispatch:
            case "round_robin":
                return (self.dispatched - 1) % replicas
            case "random":
                return math.floor(u * replicas)
            case "least_outstanding":
                return _one_of_the_least(outstanding, u)
            case "capacity_weighted":
                return _one_of_the_least([(engine.outstanding + 1) / engine.capacity_per_s for engine in engines], u)
            case "power_of_two":
                if replicas == 1:
                    return 0
                a = math.floor(u * replicas)
                b = math.floor(uniform(self.seed, 4 * row + SECOND_CHOICE, request) * (replicas - 1))
                b += b >= a
                return b if outstanding[b] < outstanding[a] else a
        raise ValueError(f"dispatch is {self.dispatch!r}")


def _one_of_the_least(values: Sequence[float], u: float) -> int:
    least = [r for r, value in enumerate(values) if value == min(values)]
    return least[math.floor(u * len(least))]


@dataclass
class Run:
    """A simulation in progress. Row s of visits is stage s, row S + s the hosted judge after stage s."""

    groups: list[Group]  # the stages, and the hosted judge if there is one
    stages: int
    tokens: list[tuple[NDArray[Any], NDArray[Any]]]  # in and out, per row
    path: NDArray[Any]  # by gear and scored request
    judged: NDArray[Any]  # by gear
    gearbox: Gearbox | None
    gear: list[int]
    drawn: NDArray[Any]
    judge_delay_s: NDArray[Any]
    closed_loop: bool
    seed: int
    timeout_s: float
    status: list[int]
    arrived_s: list[float]
    finished_s: list[float]
    visits: dict[tuple[int, int], Visit] = field(default_factory=dict)  # by row and request
    events: list[tuple[float, int, int, int, int, int]] = field(default_factory=list)
    sent: int = 0
    handed_over: int = 0
    visits_done: int = 0
    ended_s: float = 0.0

    # Events: (time, kind, sequence in two parts, request, row) on a heap.

    def until(self, stop_s: float) -> None:
        while self.events and self.events[0][0] <= stop_s:
            now_s, kind, first, second, request, row = heapq.heappop(self.events)
            self.ended_s = now_s
            if kind == STEP_END:
                self._end_step(now_s, station=first, replica=second)
            elif kind == STEP_START:
                self._start_step(now_s, station=first, replica=second)
            elif first == FROM_OUTSIDE:
                self.arrived_s[request] = now_s
                if self.gearbox is not None:
                    self.gear[request] = self.gearbox.take(now_s, self._waiting)
                self._enter(now_s, request, self._stage_after(request, -1))
            else:
                self._receive(now_s, request, row)

    def send_next(self, at_s: float) -> None:
        """The next request is going to come from outside."""
        heapq.heappush(self.events, (at_s, ARRIVAL, FROM_OUTSIDE, self.sent, self.sent, NOWHERE))
        self.sent += 1

    def _hand_over(self, at_s: float, request: int, row: int) -> None:
        heapq.heappush(self.events, (at_s, ARRIVAL, HANDED_OVER, self.handed_over, request, row))
        self.handed_over += 1

    def _start_soon(self, now_s: float, station: int, replica: int) -> None:
        engine = self.groups[station].engines[replica]
        if engine.step is None and not engine.start_is_due:
            engine.start_is_due = True
            opens_s, _ = self.groups[station].windows_s[replica]
            heapq.heappush(self.events, (max(now_s, opens_s), STEP_START, station, replica, NOWHERE, NOWHERE))

    def _start_step(self, now_s: float, station: int, replica: int) -> None:
        engine = self.groups[station].engines[replica]
        engine.start_is_due = False
        step_s, cancelled = engine.start(now_s)
        if step_s is not None:
            heapq.heappush(self.events, (now_s + step_s, STEP_END, station, replica, NOWHERE, NOWHERE))
        for visit in cancelled:
            self._done(now_s, visit.request, TIMED_OUT)

    def _end_step(self, now_s: float, station: int, replica: int) -> None:
        engine = self.groups[station].engines[replica]
        for visit in engine.end(now_s):
            self._answered(visit)
        if engine.has_work:
            self._start_soon(now_s, station, replica)

    # The way of one request.

    def _receive(self, now_s: float, request: int, row: int) -> None:
        """A hand-over arrives, at a station or back at the client."""
        if row == CLIENT:
            self.finished_s[request] = now_s
            self._done(now_s, request, SERVED)
        elif now_s >= self._deadline_s(request):
            self._done(now_s, request, TIMED_OUT)
        else:
            self._enter(now_s, request, row)

    def _enter(self, now_s: float, request: int, row: int) -> None:
        tokens_in, tokens_out = (int(tokens[self.drawn[request]]) for tokens in self.tokens[row])
        visit = Visit(request, row, tokens_in, tokens_out, now_s, self._deadline_s(request))
        self.visits[row, request] = visit
        station = min(row, self.stages)
        visit.replica = self.groups[station].choose(now_s, row, request)
        engine = self.groups[station].engines[visit.replica]
        if engine.could_hold(visit):
            engine.enqueue(visit)
            self._start_soon(now_s, station, visit.replica)
        elif (later := self._stage_after(request, row % self.stages)) == CLIENT:
            self._done(now_s, request, REFUSED)
        else:
            self._hand_over(now_s, request, later)

    def _answered(self, visit: Visit) -> None:
        """A visit is finished; the answer is judged unless nobody asks for it, or it has just been."""
        self.visits_done += 1
        request, stage = visit.request, visit.row % self.stages
        just_judged = visit.row >= self.stages
        later = self._stage_after(request, stage)
        if just_judged or not self._is_judged(request, stage):
            self._hand_over(visit.finished_s, request, later)
        elif len(self.groups) > self.stages:
            self._hand_over(visit.finished_s, request, self.stages + stage)
        else:
            u = uniform(self.seed, 4 * stage + JUDGE_DELAY, request)
            delay_s = self.judge_delay_s[math.floor(u * self.judge_delay_s.size)]
            self._hand_over(visit.finished_s + float(delay_s), request, later)

    def _done(self, now_s: float, request: int, status: int) -> None:
        self.status[request] = status
        if self.closed_loop and self.sent < self.drawn.size:
            self.send_next(now_s)

    def _deadline_s(self, request: int) -> float:
        return self.arrived_s[request] + self.timeout_s

    def _stage_after(self, request: int, stage: int) -> int:
        return next((s for s in self._stages_of(request) if s > stage), CLIENT)

    def _stages_of(self, request: int) -> list[int]:
        mask = int(self.path[self.gear[request], self.drawn[request]])
        return [s for s in range(self.stages) if mask >> s & 1]

    def _is_judged(self, request: int, stage: int) -> bool:
        return bool(int(self.judged[self.gear[request]]) >> stage & 1)

    def _waiting(self, station: int) -> int:
        return sum(len(engine.waiting) for engine in self.groups[station].engines)

    # What became of it all.

    def first_token_s(self, request: int) -> float:
        """Of the stage at the end of the path, if nobody judges it; a judged answer is shown once it is accepted."""
        if self.status[request] != SERVED:
            return math.nan
        stage = self._stages_of(request)[-1]
        judged = self._is_judged(request, stage)
        return self.finished_s[request] if judged else self.visits[stage, request].first_token_s

    def result(self) -> Simulated:
        rows, requests = len(self.tokens), self.drawn.size
        times_s = np.full((rows, requests, 4), math.nan)
        replica = np.full((rows, requests), -1, np.int32)
        preempted = np.zeros((rows, requests), np.uint8)
        for (row, request), visit in self.visits.items():
            times_s[row, request] = visit.arrived_s, visit.admitted_s, visit.first_token_s, visit.finished_s
            replica[row, request] = visit.replica
            preempted[row, request] = min(visit.preemptions, 255)
        engines = [(station, engine) for station, group in enumerate(self.groups) for engine in group.engines]
        return Simulated(
            status=np.array(self.status, np.uint8),
            gear=np.array(self.gear, np.uint8),
            arrived_s=np.array(self.arrived_s),
            first_token_s=np.array([self.first_token_s(request) for request in range(requests)]),
            finished_s=np.array(self.finished_s),
            times_s=times_s,
            replica=replica,
            preempted=preempted,
            station=np.array([station for station, _ in engines], np.int32),
            steps=np.array([engine.steps for _, engine in engines]),
            busy_s=np.array([engine.busy_s for _, engine in engines]),
            decoding_s=np.array([engine.decoding_s for _, engine in engines]),
            prompt_tokens=np.array([engine.prompt_tokens for _, engine in engines]),
            preemptions=np.array([engine.preemptions for _, engine in engines]),
            peak_kv_share=np.array([engine.peak_kv_share for _, engine in engines]),
            ended_s=self.ended_s,
            visits_done=self.visits_done,
        )


def simulate(
    stages: Sequence[Station],
    *,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    path: ArrayLike,
    gears: Gears | None = None,
    judged: ArrayLike | None = None,
    drawn: ArrayLike,
    arrival_s: ArrayLike | None = None,
    concurrency: int = 0,
    judge: Station | None = None,
    judge_tokens_in: ArrayLike | None = None,
    judge_tokens_out: ArrayLike | None = None,
    judge_delay_s: ArrayLike = (0.0,),
    seed: int = 0,
    timeout_s: float = math.inf,
    stop_s: float = math.inf,
) -> Simulated:
    """As `_core.simulate`."""
    requests = np.asarray(drawn).size
    tokens = list(zip(np.asarray(tokens_in), np.asarray(tokens_out), strict=True))
    if judge is not None:
        answers = list(zip(np.asarray(judge_tokens_in), np.asarray(judge_tokens_out), strict=True))
        tokens += answers[: len(stages) - 1]  # nobody judges the last stage
    paths = np.atleast_2d(np.asarray(path))
    run = Run(
        groups=[Group(station, seed) for station in (*stages, *([judge] if judge else []))],
        stages=len(stages),
        tokens=tokens,
        path=paths,
        judged=np.full(len(paths), 2 ** (len(stages) - 1) - 1) if judged is None else np.asarray(judged),
        gearbox=None if gears is None else Gearbox(gears),
        gear=[0] * requests,
        drawn=np.asarray(drawn),
        judge_delay_s=np.asarray(judge_delay_s, float),
        closed_loop=arrival_s is None,
        seed=seed,
        timeout_s=timeout_s,
        status=[UNFINISHED] * requests,
        arrived_s=[math.nan] * requests,
        finished_s=[math.nan] * requests,
    )
    for at_s in np.zeros(min(concurrency, requests)) if arrival_s is None else np.asarray(arrival_s, float):
        run.send_next(float(at_s))
    run.until(stop_s)
    return run.result()
