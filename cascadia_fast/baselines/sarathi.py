"""One model with chunked prefill: Sarathi-Serve (arXiv 2403.02310).

The model is that of the system `single`: the smallest whose mean quality meets the floor, alone on all GPUs, with no
judge. Every step of an engine carries at most tau tokens: first one for every running decode, then the next chunk of
the prompt that was cut off, then chunks of new prompts (algorithm 3 of the paper), so that long prompts do not stall
decodes.

The paper sets tau by hand for a deadline on the time between tokens. Here it is tuned per case, in its favour: every
tau of 256, 512, 1,024 and 2,048 tokens with every promising shape (tensor and pipeline parallelism, as many engines as
the GPUs hold) is simulated on the planning half at the planned rate, on the case's own arrivals; the best pairs are
simulated again for longer, and the least p95 wins. Promising are at most six shapes, those of the least p95 by our
latency model, or of the largest capacity where none carries the rate. Our own plans are not tuned by simulation.

Limits on replicas in the problem file do not bind it.
"""

from __future__ import annotations

import dataclasses
import time

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.single import ALONE, alone, smallest_model
from cascadia_fast.baselines.trying import Traffic, Trial, fastest, promising
from cascadia_fast.blueprint import Plan
from cascadia_fast.engine_parts import EngineParts
from cascadia_fast.fleet import StageFleet

BUDGETS_TOKENS = (256, 512, 1024, 2048)


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
    trials = [
        Trial(choice.shape, choice.replicas, tokens, _core.StepCosts(fleet.replicas[choice.shape]))
        for choice in promising(StationLoads(case, visits), model)
        for tokens, fleet in fleets.items()
    ]
    best = fastest(Traffic.of(case, model), trials, "chunked")
    tuned = dataclasses.replace(case, fleet=(*case.fleet[:model], fleets[best.tokens], *case.fleet[model + 1 :]))
    loads = StationLoads(tuned, visits)
    return draw_plan(
        tuned,
        "sarathi",
        loads,
        {model: loads.choice(model, best.option, best.replicas)},
        ALONE,
        quality=case.requests.quality[model],
        note=f"chunks of {best.tokens} tokens per step; the fastest of {len(trials)} pairs of chunk and shape tried",
        started_s=started_s,
        max_batched_tokens=best.tokens,
        evaluated=len(trials),
    )


def _fleet(case: Case, model: int, tokens: int) -> StageFleet:
    """The model's engines with another number of tokens per step."""
    stage, fleet = case.problem.stages[model], case.fleet[model]
    parts = [EngineParts.of(case.problem, stage, pool, max_batched_tokens=tokens) for pool in case.problem.pools]
    replicas = (parts[pool].replica(engine.shape) for pool, engine in zip(fleet.pools, fleet.replicas, strict=True))
    return dataclasses.replace(fleet, replicas=tuple(replicas))
