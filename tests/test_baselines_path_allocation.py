"""The allocation for whole paths against every split of the GPUs, drawn as a plan and predicted."""

from __future__ import annotations

import itertools
import math

import pytest
from baseline_cases import small_case

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.drawing import draw_plan
from cascadia_fast.baselines.path_allocation import deploy_for_paths
from cascadia_fast.baselines.routed import groups_that_fit, loads_of
from cascadia_fast.baselines.routellm import plan_routellm, plan_routellm_ours
from cascadia_fast.blueprint import Router, Routing
from cascadia_fast.signals import fit_signal


def routing_over(case: Case, models: tuple[int, ...]) -> Routing:
    """A third of the requests each, or so, by a router's signal."""
    cuts = tuple((place + 1) / len(models) for place in range(len(models) - 1))
    router = Router(cuts, tuple(1 << place for place in range(len(models))))
    return Routing("router", (), (), fit_signal("win_probability", case.requests.of_models(models), 0.7, 1), router)


@pytest.mark.parametrize("seed", range(5))
def test_no_split_of_the_gpus_is_predicted_to_be_faster(seed: int) -> None:
    case = small_case(3, seed, rate_per_s=4.0 + 2 * seed, q_min=50.0, weighted=seed % 2 == 0)
    models = groups_that_fit(case)[-1]
    routing = routing_over(case, models)
    loads, served = loads_of(case, models, routing)

    def predicted_s(gpus: tuple[int, ...]) -> float:
        choices = {model: loads.best(model, count) for model, count in zip(models, gpus, strict=True)}
        if any(math.isinf(choice.latency_s) for choice in choices.values()):
            return math.inf
        plan = draw_plan(case, "routellm", loads, choices, routing, quality=served, note="", started_s=0.0)
        return plan.predicted.end_to_end_p95_s or math.inf

    found = deploy_for_paths(case, loads)
    assert sum(choice.gpus for choice in found.values()) <= case.gpus
    least = [case.engines.smallest_engine(model) for model in models]
    counts = itertools.product(*(range(gpus, case.gpus + 1) for gpus in least))
    best_s = min(predicted_s(gpus) for gpus in counts if sum(gpus) == case.gpus)
    # Waits are drawn anew for every plan.
    assert predicted_s(tuple(found[model].gpus for model in models)) <= best_s * 1.05


def test_a_load_that_no_split_carries_gets_what_carries_most() -> None:
    case = small_case(3, 1, rate_per_s=2000.0, q_min=50.0)
    models = groups_that_fit(case)[-1]
    loads, _ = loads_of(case, models, routing_over(case, models))
    found, most = deploy_for_paths(case, loads), loads.deploy()
    assert {model: (choice.shape, choice.replicas) for model, choice in found.items()} == {
        model: (choice.shape, choice.replicas) for model, choice in most.items()
    }


def test_it_is_faster_than_equal_shares() -> None:
    case = small_case(3, 2, rate_per_s=6.0, q_min=70.0)
    uniform, allocated = plan_routellm(case), plan_routellm_ours(case)
    assert uniform.routing == allocated.routing
    assert len(uniform.stages) > 1
    assert allocated.predicted.end_to_end_p95_s <= uniform.predicted.end_to_end_p95_s * 1.02
