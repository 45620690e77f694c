"""One model answers everything: what is served today (the "single model" of arXiv 2506.04203, section 5).

The smallest model whose mean quality on the planning half meets the floor answers every request; where none does, the
model of the best quality. No judge is asked and nobody waits for one.

All GPUs of the cluster are its own. Engines of one shape (tensor and pipeline parallelism) serve it, as many as fit.
The promising shapes, at most six by our latency model, are simulated on the planning half, and the least p95 wins. The
paper tunes its single model too.

Engines read whole prompts first: a step carries prompts or decodes, never both, as SGLang did when the paper was
written. The same model with chunked prefill is the system `sarathi`, whose shape is found in the same way.

What its paper leaves open, taken in its favour: the shape is tuned for the very load (rate, lengths, bursts) of the
case, by simulation, where ours trusts its latency model; and limits on replicas in the problem file do not bind it. A
rate that no deployment carries gets one that carries most.
"""

from __future__ import annotations

import time

import numpy as np

from cascadia_fast import _core
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.trying import Traffic, Trial, fastest, promising
from cascadia_fast.blueprint import Plan, Routing

ALONE = Routing("cascade", (), ())


def plan_single(case: Case) -> Plan:
    """Plan one model on all GPUs, whole prompts first.

    Raises
    ------
    NoPlanError
        The model fits no number of these GPUs.
    """
    started_s = time.perf_counter()
    model = smallest_model(case)
    loads = StationLoads(case, alone(case, model))
    engines = case.fleet[model].replicas
    trials = [
        Trial(choice.shape, choice.replicas, case.problem.max_batched_tokens, _core.StepCosts(engines[choice.shape]))
        for choice in promising(loads, model)
    ]
    best = fastest(Traffic.of(case, model), trials, "prompts_first")
    return draw_plan(
        case,
        "single",
        loads,
        {model: loads.choice(model, best.option, best.replicas)},
        ALONE,
        quality=case.requests.quality[model],
        note=f"the smallest model that meets the floor, in the fastest of {len(trials)} shapes tried",
        started_s=started_s,
        batching="prompts_first",
        evaluated=len(trials),
    )


def smallest_model(case: Case) -> int:
    """Return the smallest model whose mean quality meets the floor; the best one where none does."""
    meeting = [model for model, quality in enumerate(case.mean_quality) if case.meets(float(quality))]
    return meeting[0] if meeting else int(np.argmax(case.mean_quality))


def alone(case: Case, model: int) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Return the visits of a model that everyone visits, and nobody any other."""
    visits = np.zeros(case.requests.quality.shape)
    visits[model] = 1.0
    return visits
