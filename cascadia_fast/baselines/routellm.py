"""RouteLLM: a router in front sends each request to one model.

Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data" (arXiv 2406.18665; ICLR 2025): the problem
formulation, a win-prediction model and a cost threshold α, and the calibration of α on a sample.

What is implemented: before anything is answered, the router estimates the probability that the strongest model's answer
beats the weakest's, and the request goes to the strong model if and only if that is at least α. With more than two
models each pair of neighbours has a cut of its own (our extension): the higher the probability, the larger the model.
Every set of models that fits the GPUs is tried, with every combination of cuts (beyond 262,144 of them: of evenly
spaced quantiles, as RouteLLM's calibration names its α), and the cheapest one whose mean quality on the planning half
meets the floor is taken; where none does, the best.

The router itself is simulated: its estimate is a noisy function of the true difference in quality whose AUC is 0.65,
stated in the plan. RouteLLM's routers are trained on preferences that the data at hand do not have.

What favours it: the router is instant and free, and no judge is asked, so answers stream from their first token. From
the question alone an AUC of 0.65 is what the authors' routers reach at their best outside of their training data: on
the built-in example it gives 95 % of the 70B model's quality with 47 % fewer calls to it, and they report 95 % of
GPT-4's at 45 % less cost on MMLU and 35 % on GSM8K (85 % on MT Bench; lmsys.org, 1 July 2024). At 0.8 it would be 69 %
fewer: more than a judge knows who has read the smallest model's answer, with 0.54 to 0.69 by the same measure on the
three DeepSeek traces (`python -m benchmarks.paper`). Cost is what a request takes of the GPUs at hand, which the paper,
of API prices, does not know. Any model may be left out.

`routellm` deploys uniformly, as the paper says nothing of deployment: the same number of GPUs for each model in use,
in whole engines, each in the replicas and the shape of least p95. `routellm-ours` is given our way to allocate instead:
of all splits of the GPUs the one whose end-to-end p95 is least by the latency model.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cascadia_fast.baselines.costs import cheapest, gpu_seconds, mean_cost
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.path_allocation import deploy_for_paths
from cascadia_fast.baselines.routed import ONE_MODEL, RoutingOption, groups_that_fit, loads_of, shared_out
from cascadia_fast.baselines.tiers import best_tiers
from cascadia_fast.blueprint import Router, Routing
from cascadia_fast.signals import fit_signal, signal_values

if TYPE_CHECKING:
    from cascadia_fast.baselines.case import Case
    from cascadia_fast.baselines.costs import FloatArray
    from cascadia_fast.blueprint import Plan

ROUTER_AUC = 0.65


def plan_routellm(case: Case, auc: float = ROUTER_AUC) -> Plan:
    """Return RouteLLM's plan on a uniform deployment."""
    return _plan(case, "routellm", auc, uniform=True)


def plan_routellm_ours(case: Case, auc: float = ROUTER_AUC) -> Plan:
    """Return RouteLLM's plan on our allocation."""
    return _plan(case, "routellm-ours", auc, uniform=False)


def _plan(case: Case, system: str, auc: float, *, uniform: bool) -> Plan:
    started_s = time.perf_counter()
    requests = case.requests
    cost = gpu_seconds(case.fleet, requests.input_tokens, requests.output_tokens, requests.weight)
    options = [_option(case, models, cost, auc) for models in groups_that_fit(case)]
    chosen = cheapest([option for option in options if option is not None], case.q_min)
    loads, served = loads_of(case, chosen.models, chosen.routing)
    choices = shared_out(case, loads, [1.0] * len(loads.models)) if uniform else deploy_for_paths(case, loads)
    deployed = "the same GPUs for each model" if uniform else "allocated like ours"
    return draw_plan(
        case,
        system,
        loads,
        choices,
        chosen.routing,
        quality=served,
        note=f"the cheapest cuts that meet the floor, {deployed}",
        started_s=started_s,
        evaluated=len(options),
    )


def _option(case: Case, models: tuple[int, ...], cost: FloatArray, auc: float) -> RoutingOption | None:
    """The best cuts between some of the models; None where no cuts give each of them somebody."""
    requests = case.requests.of_models(models)
    own = cost[list(models)]
    if len(models) == 1:
        model = models[0]
        return RoutingOption(float(case.mean_quality[model]), mean_cost(own[0], requests.weight), models, ONE_MODEL)
    signal = fit_signal("win_probability", requests, auc, case.seed)
    tiers = best_tiers(signal_values(signal, requests), requests.quality, own, requests.weight, case.q_min)
    if tiers is None:
        return None
    router = Router(tiers.cuts, tuple(1 << place for place in range(len(models))))
    return RoutingOption(tiers.quality, tiers.cost, models, Routing("router", (), (), signal, router))
