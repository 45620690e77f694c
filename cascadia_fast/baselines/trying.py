"""Systems tried by simulation on the planning half, at the planned rate and on the case's arrivals.

Which shape serves a single model best is left open by the papers, and the latency model knows of chunked prefill only.
So every promising engine is simulated; the best are simulated again for longer, and the least p95 wins. Whole plans are
told apart in the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.blueprint import Plan
from cascadia_fast.simulation import simulate
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, whole_tokens

MOST_SHAPES = 6
# Requests of the first look at every engine, and of the second at the best of them. The first takes 2 ms an engine.
SCREENED, CONFIRMED = 4000, 16_000
FINALISTS = 4
WARM_UP = 0.1
# Requests of the run that tells plans apart, and the part of them that counts, the same for all.
TRIED, TRIED_PART = 20_000, (0.2, 0.9)

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Trial:
    """An engine to be tried: which of the fleet, how many, its token budget per step, and what its steps cost."""

    option: int
    replicas: int
    tokens: int
    costs: _core.StepCosts


@dataclass(frozen=True, eq=False)
class Traffic:
    """What every engine is shown: one model's lengths (1, n), requests drawn and their arrivals."""

    tokens_in: IndexArray
    tokens_out: IndexArray
    drawn: IndexArray
    arrival_s: FloatArray
    seed: int

    @classmethod
    def of(cls, case: Case, model: int) -> Traffic:
        """Return the traffic of a case when one model serves all of it."""
        requests, workload = case.requests, case.problem.workload
        kind = "gamma" if workload.arrivals.times_s is None else "trace"
        return cls(
            tokens_in=whole_tokens(requests.input_tokens[model : model + 1], "input"),
            tokens_out=whole_tokens(requests.output_tokens[model : model + 1], "output"),
            drawn=drawn_requests(requests, CONFIRMED, case.seed),
            arrival_s=arrival_times(workload, kind, workload.rate_per_s, CONFIRMED, case.seed),
            seed=case.seed,
        )

    def p95_s(self, trial: Trial, batching: Literal["chunked", "prompts_first"], count: int) -> float:
        """Return the p95 of the first `count` requests, less a tenth that warms up; infinite where too few end."""
        scheduler = _core.Scheduler(batching=batching)
        run = _core.simulate(
            [_core.Station([(trial.costs, trial.replicas, 1.0)], scheduler=scheduler)],
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            path=np.ones(self.tokens_in.shape[1], np.uint16),
            drawn=self.drawn[:count],
            arrival_s=self.arrival_s[:count],
            seed=self.seed,
            visits=False,
        )
        if run.interrupted:
            raise KeyboardInterrupt
        latency_s = (run.finished_s - run.arrived_s)[int(count * WARM_UP) :]
        return float(np.quantile(np.nan_to_num(latency_s, nan=math.inf), 0.95, method="inverted_cdf"))


def promising(loads: StationLoads, model: int) -> list[_core.Choice]:
    """Return the best shapes by the latency model, each with as many engines as fit, at most `MOST_SHAPES`."""
    gpus = loads.case.gpus
    loads.best(model, gpus)  # raises where nothing fits
    capacity_per_s = loads.capacity_per_s(model)
    found = [
        loads.choice(model, option, gpus // engine.shape.gpus)
        for option, engine in enumerate(loads.case.fleet[model].replicas)
        if engine.shape.gpus <= gpus and capacity_per_s[option] > 0
    ]
    found.sort(key=lambda choice: (choice.latency_s, -choice.replicas * capacity_per_s[choice.shape]))
    return found[:MOST_SHAPES]


def fastest(traffic: Traffic, trials: list[Trial], batching: Literal["chunked", "prompts_first"]) -> Trial:
    """Return the trial of the least simulated p95: all of them a short while, then the best for longer."""
    ranked = sorted(trials, key=lambda trial: traffic.p95_s(trial, batching, SCREENED))
    return min(ranked[:FINALISTS], key=lambda trial: traffic.p95_s(trial, batching, CONFIRMED))


def simulated_p95_s(case: Case, plan: Plan) -> float:
    """Return the p95 of the planning half served by a plan, from the same requests for every plan."""
    run = simulate(plan, case.problem, TRIED, case.seed)
    if run.interrupted:
        raise KeyboardInterrupt
    counted = slice(int(TRIED * TRIED_PART[0]), int(TRIED * TRIED_PART[1]))
    latency_s = np.nan_to_num(run.columns.latency_s(counted), nan=math.inf)
    return float(np.quantile(latency_s, 0.95, method="inverted_cdf"))
