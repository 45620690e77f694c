"""The list of systems: names, pages, and that each plans whatever case it is given."""

from __future__ import annotations

import pytest
from baseline_cases import small_case

from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.systems import SYSTEMS, System, system_named
from cascadia_fast.blueprint import OURS, Plan
from cascadia_fast.errors import InputError, UnsupportedError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.problem import Problem
from cascadia_fast.simulation import simulate

EVERY = pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: system.name)


def test_names_are_unique_and_a_wrong_one_gets_the_nearest() -> None:
    names = [system.name for system in SYSTEMS]
    assert len(set(names)) == len(names)
    assert all(system_named(name).name == name for name in names)
    with pytest.raises(InputError, match=r"there is no system 'sarathy'; did you mean 'sarathi'\?"):
        system_named("sarathy")
    with pytest.raises(InputError, match=r"there is no system 'xyz'; known are ours, single, "):
        system_named("xyz")


@EVERY
def test_every_system_has_a_page_that_says_whose_it_is(system: System) -> None:
    assert "arXiv" in system.source
    assert system.source.removeprefix("arXiv ") in system.page
    assert len(system.page.splitlines()) >= 10
    assert max(map(len, system.page.splitlines())) <= 120


@EVERY
@pytest.mark.parametrize(("rate_per_s", "q_min"), [(4.0, 60.0), (4.0, 99.9), (2000.0, 50.0)])
def test_every_system_serves_every_case(system: System, rate_per_s: float, q_min: float) -> None:
    case = small_case(3, 1, rate_per_s=rate_per_s, q_min=q_min, weighted=True)
    plan = system.plan(case)
    assert plan.system == (OURS if system.kind == "ours" else system.name)
    assert plan.q_min == q_min
    assert plan.gpus <= case.gpus
    assert (plan.status == "unstable") == (rate_per_s == 2000.0)
    assert plan.workload.rate_per_s == pytest.approx(rate_per_s)
    assert Plan.from_json(plan.to_json()) == plan
    again = system.plan(case)
    assert again.plan_id == plan.plan_id
    if q_min == 99.9:
        assert any("is below the floor" in warning for warning in plan.warnings)


@EVERY
def test_a_plan_serves_as_it_was_predicted(system: System) -> None:
    case = small_case(3, 2, rate_per_s=4.0, q_min=60.0)
    plan = system.plan(case)
    run = simulate(plan, case.problem, requests=6000, seed=1)
    assert run.counts["served"] == 6000
    assert run.quality.value == pytest.approx(plan.predicted.quality, abs=1.5)
    if plan.predicted.end_to_end_p95_s is not None:
        assert run.latency.p95.value == pytest.approx(plan.predicted.end_to_end_p95_s, rel=0.25)
    other = small_case(3, 3, rate_per_s=4.0).problem.workload
    assert simulate(plan, case.problem.replace(workload=other), requests=500).counts["served"] == 500


@EVERY
def test_several_pools_are_planned_or_refused_in_a_sentence(system: System) -> None:
    problem = Problem.example()
    fields = problem.fields.model_dump(exclude_unset=True)
    fields["cluster"] = [
        {"name": "new", "gpu": "h100-sxm-80gb", "nodes": 3},
        {"name": "old", "gpu": "a100-sxm-80gb", "nodes": 1},
    ]
    fields["workload"] = {**fields["workload"], "rate_per_s": 5.0, "arrivals": None}
    case = Case.of(Problem.from_dict(fields, base_dir=EXAMPLE_DIR))
    if system.kind == "baseline" or system.name in ("uniform-allocation", "alternating"):
        with pytest.raises(UnsupportedError, match="the cluster has the pools new, old"):
            system.plan(case)
        return
    assert {group.pool for group in system.plan(case).groups} <= {"new", "old"}


def test_a_case_keeps_its_models_apart() -> None:
    case = small_case(2)
    assert isinstance(case, Case)
    assert case.models == 2
    assert case.mean_quality.tolist() == pytest.approx(case.requests.quality.mean(axis=1).tolist())
