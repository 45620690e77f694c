"""FrugalGPT: a cascade by a learned scorer, its models and thresholds chosen by token cost alone.

Chen, Zaharia and Zou, "FrugalGPT: How to Use Large Language Models While Reducing Cost and Improving Performance"
(arXiv 2305.05176; TMLR 2024): the LLM cascade, its scoring function, and the joint choice of the list of models and of
the thresholds.

What is implemented: models are asked in turn, small to large; a learned scorer looks at question and answer, and the
first answer whose score reaches its model's threshold is returned; the last model's always is. List and thresholds are
chosen together. The paper maximises accuracy under a budget; here the same frontier is read the other way: the least
cost whose mean quality on the planning half meets the floor, and the best quality where none does. All lists that fit
the GPUs, of any length, are tried with all of 101 thresholds per model; the authors' code tries 40 and prunes lists.

The scorer is simulated: a noisy function of the true quality of each answer whose AUC is 0.75, stated in the plan. The
paper fine-tunes a DistilBERT on labelled answers; the data at hand have no texts. The strong model that judges the
DeepSeek answers has 0.77.

What favours it: the scorer is instant and free, where ours waits for its judge, and pays it. It knows which answers are
good on one scale across all models. A token costs what it takes of the GPUs at hand, on an engine that is kept full,
where the paper goes by list prices of APIs.

The paper ends there: it buys tokens and has no GPUs. Like its optimisation, the deployment here is blind to queues and
tails: GPUs in proportion to the load on each model, in GPU-seconds, in whole engines. It is given the replicas and the
shape of least p95 on each model's GPUs.
"""

from __future__ import annotations

import dataclasses
import time
from typing import TYPE_CHECKING

from cascadia_fast.baselines.costs import gpu_seconds, mean_cost
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.lists import best_list
from cascadia_fast.baselines.routed import ONE_MODEL, groups_that_fit, loads_of, shared_out
from cascadia_fast.planning.plan_parts import cascade_routing
from cascadia_fast.signals import fit_signal, signal_values

if TYPE_CHECKING:
    from cascadia_fast.baselines.case import Case
    from cascadia_fast.blueprint import Plan

SCORER_AUC = 0.75


def plan_frugalgpt(case: Case, auc: float = SCORER_AUC) -> Plan:
    """Return FrugalGPT's plan."""
    started_s = time.perf_counter()
    requests, lists = case.requests, groups_that_fit(case)
    cost = gpu_seconds(case.fleet, requests.input_tokens, requests.output_tokens, requests.weight)
    signal = fit_signal("learned_score", requests, auc, case.seed)
    scored = dataclasses.replace(requests, score=signal_values(signal, requests))
    best = best_list(scored, cost, case.cells, case.q_min, lists)
    models = list(best.models)
    routing = ONE_MODEL
    if len(models) > 1:
        routing = cascade_routing(scored.of_models(models), best.thresholds, len(models), signal)
    loads, served = loads_of(case, models, routing)
    work = [mean_cost(cost[model] * loads.visits[model], requests.weight) for model in loads.models]
    return draw_plan(
        case,
        "frugalgpt",
        loads,
        shared_out(case, loads, work),
        routing,
        quality=served,
        note="the cheapest list of models and thresholds that meets the floor, GPUs in proportion to load",
        started_s=started_s,
        evaluated=len(lists),
    )
