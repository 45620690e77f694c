"""AutoMix: the small model verifies its own answer, and the verdict decides who answers in the end.

Aggarwal, Madaan et al., "AutoMix: Automatically Mixing Language Models" (arXiv 2310.12963; NeurIPS 2024): few-shot
self-verification by k = 8 votes, and the POMDP router that double-checks it.

What is implemented: the first model answers and votes 8 times on whether its own answer is right. For each number of
favourable votes the router knows from the planning half what every larger model is expected to gain and to cost
(smoothed over neighbouring verdicts, as in the authors' code), and takes the action of the largest expected quality
less λ times cost: let the answer stand, or ask one of the larger models, which may skip those in between. With one
verification the paper's POMDP has one step, so this is its optimal policy. λ is swept over all values, and the cheapest
policy whose mean quality on the planning half meets the floor is taken; where none does, the best.

The verdicts are simulated: votes are drawn with a probability that is a noisy function of the answer's quality, so that
their number has an AUC of 0.7, stated in the plan. Their cost is real: the first model reads prompt and answer once
more and writes a token per vote, for every request.

What favours it: which model answers first is left open, so every one but the largest is tried. A policy that does the
same for every verdict asks for none and goes straight to its model. All votes share one reading of the answer. Costs
are what requests take of the GPUs at hand, on engines that are kept full. The paper says nothing of deployment; it is
given our way to allocate: of all splits of the GPUs the one whose end-to-end p95 is least by the latency model.

What does not: with three models the paper may verify the second one's answer too; here only the first one's. The
verification is read and written in one visit with the answer, whose tokens then already see the longer context.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast.baselines.costs import cheapest, gpu_seconds, mean_cost
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.path_allocation import deploy_for_paths
from cascadia_fast.baselines.routed import ONE_MODEL, RoutingOption, groups_that_fit, loads_of
from cascadia_fast.baselines.verifying import policies
from cascadia_fast.blueprint import Router, Routing
from cascadia_fast.signals import charged_tokens, fit_signal, signal_values

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cascadia_fast.baselines.case import Case
    from cascadia_fast.blueprint import Plan, Signal

VOTES = 8
VERIFIER_AUC = 0.7


def plan_automix(case: Case, auc: float = VERIFIER_AUC) -> Plan:
    """Return AutoMix's plan."""
    started_s = time.perf_counter()
    options = list(_options(case, auc))
    chosen = cheapest(options, case.q_min)
    loads, served = loads_of(case, chosen.models, chosen.routing)
    return draw_plan(
        case,
        "automix",
        loads,
        deploy_for_paths(case, loads),
        chosen.routing,
        quality=served,
        note="the cheapest verdict policy that meets the floor, allocated like ours",
        started_s=started_s,
        evaluated=len(options),
    )


def _options(case: Case, auc: float) -> Iterator[RoutingOption]:
    """Every model alone, and every policy of every model that may verify itself."""
    groups, requests = groups_that_fit(case), case.requests
    cost = gpu_seconds(case.fleet, requests.input_tokens, requests.output_tokens, requests.weight)
    alone = [group[0] for group in groups if len(group) == 1]
    for model in alone:
        yield RoutingOption(
            float(case.mean_quality[model]), mean_cost(cost[model], requests.weight), (model,), ONE_MODEL
        )
    for place, first in enumerate(alone[:-1]):
        larger = alone[place + 1 :]
        yield from (option for option in _verified(case, first, larger, auc) if option.models in groups)


def _verified(case: Case, first: int, larger: list[int], auc: float) -> Iterator[RoutingOption]:
    """The policies of one model that verifies its answers, where they do not treat all verdicts alike."""
    models = [first, *larger]
    requests = case.requests.of_models(models)
    signal = fit_signal("verification", requests, auc, case.seed, VOTES)
    votes = np.rint(signal_values(signal, requests) * VOTES).astype(np.int64)
    fleet = [case.fleet[model] for model in models]
    cost = gpu_seconds(fleet, *charged_tokens(signal, requests), requests.weight)
    for policy in policies(votes, VOTES, requests.quality, cost, requests.weight):
        answers_by = [models[place] for place in policy.answers_by]
        if len(set(answers_by)) > 1:
            running = tuple(sorted({first, *answers_by}))
            yield RoutingOption(policy.quality, policy.cost, running, _routing(signal, running, answers_by))


def _routing(signal: Signal, running: tuple[int, ...], answers_by: list[int]) -> Routing:
    """Paths through the models that run, one for each stretch of verdicts that are answered alike."""
    changes = [votes for votes in range(1, VOTES + 1) if answers_by[votes] != answers_by[votes - 1]]
    paths = tuple(1 | 1 << running.index(answers_by[votes]) for votes in (0, *changes))
    return Routing("router", (), (), signal, Router(tuple((votes - 0.5) / VOTES for votes in changes), paths))
