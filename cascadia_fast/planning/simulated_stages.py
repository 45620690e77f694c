"""A stage simulated alone: the p95 that engines give the requests which a routing sends to their stage.

Every candidate serves the same requests, drawn once, at the same times (common random numbers), so that candidates
differ by what they are and not by luck. A stage sees its requests when they enter the cascade: what the stages before
it do to their times is left out here, and part of the simulation of the whole cascade that follows planning.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.errors import UnsupportedError
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, judge_delays, whole_tokens

if TYPE_CHECKING:
    from cascadia_fast.workload import ScoredRequests, Workload

SEED = 0
# A run has at least so many requests and lasts at least so many times the p95 in question. Measured over 12 seeds on
# the formula's plans: p95s vary by 0.3 to 1.5 % (standard deviation) in the DeepSeek case, by 1.7 to 2.8 % in the Llama
# case, whose 110,000 requests are just 40 p95s. Candidates, which serve the same requests, differ less by chance.
LEAST_REQUESTS = 50_000
P95S = 40
# The first tenth of the requests and the last twentieth are left out, at least four and two such times: at the start a
# stage fills up, at the end it drains.
WARM_UP, COOL_DOWN = 0.1, 0.05
# Seconds per run: beyond, nobody would wait for a plan.
MOST_REQUESTS = 2_000_000
# A stable stage is empty a few p95s after the last arrival; one that needs this share of the run fell behind all along.
DRAIN = 0.5

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]
Reaches = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Replay:
    """The traffic that all simulations of one plan share: N requests of n scored ones, in a cascade of S stages.

    Parameters
    ----------
    requests
        The scored requests.
    tokens_in, tokens_out
        Shape (S, n), whole tokens.
    drawn
        Shape (N,): which scored request each request is.
    arrival_s
        Shape (N,): when it enters the cascade.
    seed
        What they, and the draws of the dispatchers, come from.
    """

    requests: ScoredRequests
    tokens_in: IndexArray
    tokens_out: IndexArray
    drawn: IndexArray
    arrival_s: FloatArray
    seed: int

    @classmethod
    def of(cls, workload: Workload, latency_s: float, seed: int = SEED) -> Replay:
        """Draw traffic at the planned rate: the workload's trace, stretched, or renewal arrivals with its CV.

        Parameters
        ----------
        workload
            Scored requests and arrivals. A trace is replayed whole.
        latency_s
            About the p95 that simulations are to show.

        Raises
        ------
        UnsupportedError
            To show it would take too many requests.
        """
        times_s, rate_per_s = workload.arrivals.times_s, workload.rate_per_s
        trace = 0 if times_s is None else times_s.size
        count = max(LEAST_REQUESTS, trace, math.ceil(P95S * latency_s * rate_per_s))
        if count > MOST_REQUESTS:
            reason = f"the trace has {trace:,} arrivals" if trace == count else f"p95s of {latency_s:.3g} s"
            raise UnsupportedError(
                f"latency simulated would take {count:,} requests per simulation ({reason} at {rate_per_s:,.3g} "
                f"requests/s) and {MOST_REQUESTS:,} are the most; use latency formula, then cascadia-fast simulate"
            )
        requests = workload.requests
        return cls(
            requests=requests,
            tokens_in=whole_tokens(requests.input_tokens, "input"),
            tokens_out=whole_tokens(requests.output_tokens, "output"),
            drawn=drawn_requests(requests, count, seed),
            arrival_s=arrival_times(workload, "trace" if trace else "gamma", rate_per_s, count, seed),
            seed=seed,
        )

    @property
    def count(self) -> int:
        """Number N of requests."""
        return int(self.drawn.size)

    @cached_property
    def measured(self) -> NDArray[np.bool_]:
        """Shape (N,): whether a request is neither warm-up nor cool-down."""
        place = np.arange(self.count)
        return (place >= self.count * WARM_UP) & (place < self.count * (1 - COOL_DOWN))


class StageTraffic:
    """The requests that one routing sends to one stage, and what candidate engines make of them, remembered.

    Parameters
    ----------
    replay
        The traffic of the cascade.
    stage
        The stage.
    reaches
        Shape (n,): whether a scored request reaches the stage.
    """

    def __init__(self, replay: Replay, stage: int, reaches: Reaches) -> None:
        self._replay = replay
        self._stage = stage
        self._reaches = reaches
        self._lock = Lock()
        self.known: dict[tuple[int, int], float] = {}

    def p95_s(self, shape: int, costs: _core.StepCosts, replicas: int) -> float:
        """Return the simulated p95 on so many engines of a shape; infinite when they cannot keep up."""
        # Others that want a value of this stage mostly want this very one.
        with self._lock:
            found = self.known.get((shape, replicas))
            if found is None:
                found = self.known[shape, replicas] = self._simulated(costs, replicas)
            return found

    def _simulated(self, costs: _core.StepCosts, replicas: int) -> float:
        replay, row = self._replay, slice(self._stage, self._stage + 1)
        # Selected anew in each run: thousands of selections, kept, would take gigabytes.
        kept = self._reaches[replay.drawn]
        arrival_s = replay.arrival_s[kept]
        if not arrival_s.size:  # reached by so few that none was drawn: nobody waits
            return 0.0
        run = _core.simulate(
            [_core.Station([(costs, replicas, 1.0)])],
            tokens_in=replay.tokens_in[row],
            tokens_out=replay.tokens_out[row],
            path=np.ones(self._reaches.size, np.uint16),
            drawn=replay.drawn[kept],
            arrival_s=arrival_s,
            seed=replay.seed,
            visits=False,
        )
        _stop_if_interrupted(run)
        if run.ended_s - arrival_s[-1] > DRAIN * (replay.arrival_s[-1] - replay.arrival_s[0]):
            return math.inf
        return _quantile_s((run.finished_s - run.arrived_s)[replay.measured[kept]], 0.95)


@dataclass(frozen=True)
class CascadeRun:
    """What a simulation of the whole cascade shows, in seconds; infinite where requests never end.

    `stage_p95_s` is by stage; those that no measured request reached are missing.
    """

    stage_p95_s: Mapping[int, float]
    p50_s: float
    p95_s: float
    ttft_p95_s: float


def run_cascade(
    replay: Replay,
    accepted_by: NDArray[np.intp],
    engines: Mapping[int, tuple[_core.StepCosts, int]],
    judge_latency_s: float,
) -> CascadeRun:
    """Simulate the whole cascade: escalated requests arrive at the next stage when the one before and the judge end.

    Parameters
    ----------
    replay
        The traffic.
    accepted_by
        Shape (n,): the stage that accepts a scored request.
    engines
        By stage that runs: step costs and number of its engines.
    judge_latency_s
        Latency of one judge call.
    """
    running = sorted(engines)
    place = np.searchsorted(running, accepted_by)
    run = _core.simulate(
        [_core.Station([(costs, replicas, 1.0)]) for costs, replicas in (engines[stage] for stage in running)],
        tokens_in=replay.tokens_in[running],
        tokens_out=replay.tokens_out[running],
        path=((1 << (place + 1)) - 1).astype(np.uint16),
        judge_delay_s=judge_delays(judge_latency_s, 0.0),
        drawn=replay.drawn,
        arrival_s=replay.arrival_s,
        seed=replay.seed,
    )
    _stop_if_interrupted(run)
    assert run.times_s is not None
    stage_p95_s = {}
    for row, stage in enumerate(running):
        measured = replay.measured & (place[replay.drawn] >= row)
        if measured.any():
            stage_p95_s[stage] = _quantile_s((run.times_s[row, :, 3] - run.times_s[row, :, 0])[measured], 0.95)
    latency_s = (run.finished_s - run.arrived_s)[replay.measured]
    first_s = (run.first_token_s - run.arrived_s)[replay.measured]
    return CascadeRun(
        stage_p95_s,
        _quantile_s(latency_s, 0.5),
        _quantile_s(latency_s, 0.95),
        _quantile_s(first_s, 0.95),
    )


def _quantile_s(latency_s: FloatArray, share: float) -> float:
    """Return a quantile of latencies; NaN stands for requests that are never served, none for none."""
    if not latency_s.size:
        return 0.0
    return float(np.quantile(np.nan_to_num(latency_s, nan=math.inf), share, method="inverted_cdf"))


def _stop_if_interrupted(run: _core.Simulated) -> None:
    """A simulation that Ctrl-C ended keeps what it saw, which is no p95."""
    if run.interrupted:
        raise KeyboardInterrupt
