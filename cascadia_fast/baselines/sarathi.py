"""One model with chunked prefill: Sarathi-Serve (arXiv 2403.02310).

The model is that of the system `single`: the smallest whose mean quality meets the floor, alone on all GPUs, with no
judge. Every step of an engine carries at most tau tokens: first one for every running decode, then the next chunk of
the prompt that was cut off, then chunks of new prompts (algorithm 3 of the paper), so that long prompts do not stall
decodes.

The paper sets tau by hand for a deadline on the time between tokens. Here it is tuned per case, in its favour: every
tau of 256, 512, 1,024 and 2,048 tokens with every promising shape (tensor and pipeline parallelism, as many engines as
the GPUs hold) is simulated on the planning half at the planned rate, on the case's own arrivals; the best pairs are
simulated again for longer, and the least p95 wins. Promising are at most six shapes, those of the least p95 by our
latency model, or of the largest capacity where none carries the rate. Neither `single` nor our own plans are tuned by
simulation.

Limits on replicas in the problem file do not bind it.
"""

from __future__ import annotations

import dataclasses
import math
import time
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.single import ALONE, alone, smallest_model
from cascadia_fast.blueprint import Plan
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.fleet import StageFleet
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, whole_tokens

BUDGETS_TOKENS = (256, 512, 1024, 2048)
MOST_SHAPES = 6
# Requests of the first look at every pair, and of the second at the best of them. The first takes 2 ms a pair.
SCREENED, CONFIRMED = 4000, 16_000
FINALISTS = 4
WARM_UP = 0.1

FloatArray = NDArray[np.float64]
IndexArray = NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class _Traffic:
    """What every pair is shown: one model's lengths (1, n), requests drawn and their arrivals."""

    tokens_in: IndexArray
    tokens_out: IndexArray
    drawn: IndexArray
    arrival_s: FloatArray
    seed: int

    @classmethod
    def of(cls, case: Case, model: int) -> _Traffic:
        requests, workload = case.requests, case.problem.workload
        kind = "gamma" if workload.arrivals.times_s is None else "trace"
        return cls(
            tokens_in=whole_tokens(requests.input_tokens[model : model + 1], "input"),
            tokens_out=whole_tokens(requests.output_tokens[model : model + 1], "output"),
            drawn=drawn_requests(requests, CONFIRMED, case.seed),
            arrival_s=arrival_times(workload, kind, workload.rate_per_s, CONFIRMED, case.seed),
            seed=case.seed,
        )

    def p95_s(self, costs: _core.StepCosts, replicas: int, count: int) -> float:
        run = _core.simulate(
            [_core.Station([(costs, replicas, 1.0)])],
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


def plan_sarathi(case: Case) -> Plan:
    """Plan one model on all GPUs, its prompts in chunks.

    Raises
    ------
    NoPlanError
        The model fits no number of these GPUs.
    """
    started_s = time.perf_counter()
    model = smallest_model(case)
    visits = alone(case, model)
    fleets = {tokens: _fleet(case, model, tokens) for tokens in BUDGETS_TOKENS}
    pairs = [
        (tokens, choice.shape, choice.replicas)
        for choice in promising(StationLoads(case, visits), model)
        for tokens in BUDGETS_TOKENS
    ]
    tokens, option, replicas = _fastest(_Traffic.of(case, model), fleets, pairs)
    tuned = dataclasses.replace(case, fleet=(*case.fleet[:model], fleets[tokens], *case.fleet[model + 1 :]))
    loads = StationLoads(tuned, visits)
    return draw_plan(
        tuned,
        "sarathi",
        loads,
        {model: loads.choice(model, option, replicas)},
        ALONE,
        quality=case.requests.quality[model],
        note=f"chunks of {tokens} tokens per step; the fastest of {len(pairs)} pairs of chunk and shape simulated",
        started_s=started_s,
        max_batched_tokens=tokens,
        evaluated=len(pairs),
    )


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


def _fastest(
    traffic: _Traffic, fleets: dict[int, StageFleet], pairs: list[tuple[int, int, int]]
) -> tuple[int, int, int]:
    """The pair of the least simulated p95: all of them a short while, then the best for longer."""
    costs = {
        (tokens, option): _core.StepCosts(fleets[tokens].replicas[option])
        for tokens, option in {pair[:2] for pair in pairs}
    }
    ranked = sorted(pairs, key=lambda pair: traffic.p95_s(costs[pair[:2]], pair[2], SCREENED))
    return min(ranked[:FINALISTS], key=lambda pair: traffic.p95_s(costs[pair[:2]], pair[2], CONFIRMED))


def _fleet(case: Case, model: int, tokens: int) -> StageFleet:
    """The model's engines with another number of tokens per step."""
    stage, fleet = case.problem.stages[model], case.fleet[model]
    parts = [EngineParts.of(case.problem, stage, pool, max_batched_tokens=tokens) for pool in case.problem.pools]
    replicas = (parts[pool].replica(engine.shape) for pool, engine in zip(fleet.pools, fleet.replicas, strict=True))
    return dataclasses.replace(fleet, replicas=tuple(replicas))
