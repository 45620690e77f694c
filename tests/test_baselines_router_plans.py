"""RouteLLM, FrugalGPT and AutoMix as plans: what they say is what their routing does, planned and simulated."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from baseline_cases import small_case

import cascadia_fast
from cascadia_fast import _core
from cascadia_fast.baselines import automix, frugalgpt, routellm
from cascadia_fast.baselines.automix import plan_automix
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.costs import gpu_seconds
from cascadia_fast.baselines.frugalgpt import plan_frugalgpt
from cascadia_fast.baselines.loads import StationLoads
from cascadia_fast.baselines.routed import ONE_MODEL, RoutingOption, groups_that_fit, loads_of
from cascadia_fast.baselines.routellm import plan_routellm, plan_routellm_ours
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import NoPlanError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.signals import charged_tokens, fit_signal, signal_values
from cascadia_fast.simulation.paths import paths

Planned = Callable[[Case], Plan]
ALL = (plan_routellm, plan_routellm_ours, plan_frugalgpt, plan_automix)
EVERY = pytest.mark.parametrize("planned", ALL)


@pytest.fixture(scope="module")
def example() -> Case:
    return Case.of(Problem.read(EXAMPLE_DIR / "problem.yaml"))


def mean(case: Case, values: np.ndarray) -> float:
    return float(np.average(values, weights=case.requests.weight))


def routings_of(case: Case, plan: Plan) -> tuple[StationLoads, np.ndarray]:
    return loads_of(case, [stage.index for stage in plan.stages], plan.routing)


class TestPlans:
    @EVERY
    @pytest.mark.parametrize("q_min", [60.0, 70.0, 75.0])
    def test_meets_the_floor_and_says_what_its_routing_does(
        self, example: Case, planned: Planned, q_min: float
    ) -> None:
        case = example.replace(q_min=q_min, rate_per_s=20.0)
        plan = planned(case)
        loads, served = routings_of(case, plan)
        assert plan.predicted.quality == pytest.approx(mean(case, served))
        assert plan.predicted.quality >= q_min - 1e-9
        assert [stage.reach for stage in plan.stages] == pytest.approx([loads.reach[s.index] for s in plan.stages])
        assert all(stage.reach > 0 for stage in plan.stages)
        assert plan.gpus <= case.gpus
        assert plan.status == "feasible"
        assert plan.system == {plan_routellm: "routellm", plan_routellm_ours: "routellm-ours"}.get(
            planned, planned.__name__.removeprefix("plan_")
        )
        again = Plan.from_json(plan.to_json())
        assert again.to_json() == plan.to_json()
        assert planned(case).plan_id == plan.plan_id

    @EVERY
    def test_the_simulator_agrees(self, example: Case, planned: Planned) -> None:
        case = example.replace(q_min=72.0, rate_per_s=20.0)
        plan = planned(case)
        result = cascadia_fast.simulate(plan, case.problem, requests=20_000, seed=1)
        assert result.quality is not None
        assert result.quality.value == pytest.approx(plan.predicted.quality, abs=1.0)
        for planned_stage, stage in zip(plan.stages, result.stages, strict=True):
            assert stage.reach == pytest.approx(planned_stage.reach, abs=0.02)
        assert plan.predicted.end_to_end_p95_s is not None
        assert result.latency.p95.value == pytest.approx(plan.predicted.end_to_end_p95_s, rel=0.3)

    @EVERY
    def test_a_floor_out_of_reach_gets_the_best_quality(self, example: Case, planned: Planned) -> None:
        case = example.replace(q_min=99.0, rate_per_s=10.0)
        plan = planned(case)
        assert case.mean_quality.max() <= plan.predicted.quality < 99
        assert plan.q_min == 99
        assert any("below the floor" in sentence for sentence in plan.warnings)

    @EVERY
    def test_a_rate_out_of_reach_is_unstable(self, example: Case, planned: Planned) -> None:
        plan = planned(example.replace(q_min=76.0, rate_per_s=900.0))
        assert plan.status == "unstable"
        assert plan.latency_s is None
        assert plan.gpus <= 32

    @EVERY
    @pytest.mark.parametrize("seed", range(4))
    def test_weights_count(self, planned: Planned, seed: int) -> None:
        case = small_case(3, seed, weighted=True, q_min=55)
        plan = planned(case)
        _, served = routings_of(case, plan)
        assert plan.predicted.quality == pytest.approx(mean(case, served))
        assert plan.predicted.quality >= min(55, case.mean_quality.max()) - 1e-6

    @EVERY
    def test_where_one_model_fits_it_is_that_model(self, example: Case, planned: Planned) -> None:
        plan = planned(example.replace(q_min=76.0, gpus=1, rate_per_s=1.0))
        assert [stage.index for stage in plan.stages] == [0]
        assert plan.routing.thresholds == ()
        assert plan.predicted.quality < 76

    def test_seeds_draw_other_signals(self, example: Case) -> None:
        other = Case(example.problem, example.fleet, seed=5)
        signals = [plan_routellm(case).routing.signal for case in (example, other)]
        assert [signal.seed for signal in signals if signal is not None] == [0, 5]

    def test_nobody_asks_a_judge(self, example: Case) -> None:
        case = example.replace(q_min=72.0, rate_per_s=20.0)
        for planned in (plan_routellm, plan_routellm_ours, plan_frugalgpt):
            plan = planned(case, auc=0.8)
            assert not plan.routing.asks_judge
            assert (plan.judge.latency_s, plan.judge.usd_per_call) == (0, 0)


class TestRouteLLM:
    def options(self, case: Case, auc: float) -> Iterator[RoutingOption]:
        requests = case.requests
        cost = gpu_seconds(case.fleet, requests.input_tokens, requests.output_tokens, requests.weight)
        for models in groups_that_fit(case):
            option = routellm._option(case, models, cost, auc)
            if option is not None:
                yield option

    @pytest.mark.parametrize("seed", range(6))
    def test_what_an_option_promises_is_what_its_routing_does(self, seed: int) -> None:
        case = small_case(3, seed, weighted=True, q_min=60)
        cost = gpu_seconds(case.fleet, case.requests.input_tokens, case.requests.output_tokens, case.requests.weight)
        for option in self.options(case, 0.7):
            loads, served = loads_of(case, option.models, option.routing)
            assert option.quality == pytest.approx(mean(case, served))
            assert option.cost == pytest.approx(sum(mean(case, loads.visits[m] * cost[m]) for m in option.models))
            assert loads.visits.sum(axis=0) == pytest.approx(1), "every request goes to one model"

    def test_a_router_that_foresees_better_asks_the_larger_models_less(self, example: Case) -> None:
        case = example.replace(q_min=70.0, rate_per_s=20.0)
        costs = [
            min(o.cost for o in self.options(case, auc) if o.quality >= 70) for auc in (0.55, 0.65, 0.75, 0.85, 1.0)
        ]
        assert costs == sorted(costs, reverse=True)
        assert costs[-1] < costs[0] / 2

    def test_the_two_deploy_one_routing_differently(self, example: Case) -> None:
        case = example.replace(q_min=76.0, rate_per_s=40.0)
        uniform, allocated = plan_routellm(case, auc=0.8), plan_routellm_ours(case, auc=0.8)
        assert uniform.routing == allocated.routing
        gpus = [stage.gpus for stage in uniform.stages]
        assert max(gpus) - min(gpus) < 8, "less than an engine of the largest model apart"
        assert uniform.latency_s is not None
        assert allocated.latency_s is not None
        assert allocated.latency_s < uniform.latency_s

    @pytest.mark.parametrize(("auc", "fewer_calls"), [(0.8, 0.69), (0.65, 0.47)])
    def test_the_calls_that_its_page_says_are_saved(self, example: Case, auc: float, fewer_calls: float) -> None:
        requests = example.requests.of_models((0, 1))
        saved = []
        for seed in range(10):
            values = signal_values(fit_signal("win_probability", requests, auc, seed), requests)
            order = np.argsort(-values)
            gained = np.diff(requests.quality[:, order], axis=0)[0].cumsum() / requests.size
            enough = 0.95 * requests.quality[1].mean() - requests.quality[0].mean()
            saved.append(1 - (np.argmax(gained >= enough) + 1) / requests.size)
        assert np.mean(saved) == pytest.approx(fewer_calls, abs=0.01)
        assert f"{fewer_calls:.0%}".replace("%", " %") in str(routellm.__doc__)


class TestFrugalGPT:
    @pytest.mark.parametrize("q_min", [65.0, 72.0, 76.0])
    def test_gpus_follow_the_work(self, example: Case, q_min: float) -> None:
        case = example.replace(q_min=q_min, rate_per_s=15.0)
        plan = plan_frugalgpt(case)
        loads, _ = routings_of(case, plan)
        cost = gpu_seconds(case.fleet, case.requests.input_tokens, case.requests.output_tokens, case.requests.weight)
        work = np.array([mean(case, loads.visits[s.index] * cost[s.index]) for s in plan.stages])
        given = np.array([stage.gpus for stage in plan.stages])
        assert np.abs(given - 32 * work / work.sum()).max() <= 8, "no more than an engine of the largest off"

    def test_learned_scores_decide(self, example: Case) -> None:
        case = example.replace(q_min=74.0, rate_per_s=20.0)
        plan = plan_frugalgpt(case)
        signal = plan.routing.signal
        assert signal is not None
        assert (signal.kind, signal.auc) == ("learned_score", frugalgpt.SCORER_AUC)
        models = [stage.index for stage in plan.stages]
        assert len(models) > 1
        learned = signal_values(signal, case.requests.of_models(models))
        (path,) = paths(plan.routing, case.requests.of_models(models))
        moves_on = learned[0] < plan.routing.thresholds[0]
        assert ((path > 1) == moves_on).all()


class TestAutoMix:
    @pytest.mark.parametrize("seed", range(6))
    def test_what_a_policy_promises_is_what_its_routing_does(self, seed: int) -> None:
        case = small_case(3, seed, weighted=True, q_min=60)
        verifying = 0
        for option in automix._options(case, 0.7):
            loads, served = loads_of(case, option.models, option.routing)
            assert option.quality == pytest.approx(mean(case, served))
            requests = case.requests.of_models(option.models)
            tokens = charged_tokens(option.routing.signal, requests)
            cost = gpu_seconds([case.fleet[m] for m in option.models], *tokens, requests.weight)
            paid = (loads.visits[list(option.models)] * cost).sum(axis=0)
            assert option.cost == pytest.approx(mean(case, paid))
            if option.routing is not ONE_MODEL:
                verifying += 1
                assert (loads.visits[option.models[0]] == 1).all(), "the first model answers, and verifies, everything"
                assert (loads.visits.sum(axis=0) <= 2).all(), "models in between are skipped"
        assert verifying > 5

    def test_verification_is_charged_to_the_first_model(self, example: Case) -> None:
        option = next(o for o in automix._options(example, 0.7) if len(o.models) > 1 and o.models[0] == 0)
        loads, _ = loads_of(example, option.models, option.routing)
        free = StationLoads(example, loads.visits)
        shape = next(i for i, r in enumerate(example.fleet[0].replicas) if r.shape == _core.Shape(4, 1))
        busy = [one.evaluate(0, one.choice(0, shape, 4))["utilization"] for one in (free, loads)]
        assert busy[1] > 1.2 * busy[0]
        last = option.models[-1]
        others = [one.capacity_per_s(last) for one in (free, loads)]
        assert others[0] == pytest.approx(others[1]), "the others' work stays"

    def test_every_other_model_may_answer_first(self, example: Case) -> None:
        first = {o.models[0] for o in automix._options(example, 0.7) if len(o.models) > 1}
        assert first == {0, 1}


class TestCosts:
    def test_is_what_the_cheapest_full_engine_takes(self) -> None:
        case = small_case(2, 0)
        requests = case.requests
        cost = gpu_seconds(case.fleet, requests.input_tokens, requests.output_tokens, requests.weight)
        for request in (0, 7):
            same = np.tile(requests.input_tokens[:, [request]], requests.size)
            loads = StationLoads(
                case,
                np.ones(same.shape),
                tokens_in=same,
                tokens_out=np.tile(requests.output_tokens[:, [request]], requests.size),
            )
            for model in range(2):
                gpus = np.array([replica.shape.gpus for replica in case.fleet[model].replicas])
                with np.errstate(divide="ignore"):
                    assert cost[model, request] == pytest.approx((gpus / loads.capacity_per_s(model)).min(), rel=1e-6)

    def test_where_no_engine_holds_the_longest_it_is_infinite(self) -> None:
        case = small_case(1, 0)
        long = np.array([[10.0, 5e8]])
        cost = gpu_seconds(case.fleet, long, np.array([[10.0, 10.0]]), np.ones(2))
        assert np.isinf(cost).all(), "an engine must hold the longest request there is"

    def test_groups_are_those_whose_engines_fit_together(self) -> None:
        case = small_case(3, 0)
        least = [case.engines.smallest_engine(model) for model in range(3)]
        for gpus in (1, sum(least) - 1, sum(least)):
            found = groups_that_fit(case.replace(gpus=gpus))
            assert all(sum(least[m] for m in models) <= gpus for models in found)
            assert ((0, 1, 2) in found) == (gpus >= sum(least))

    def test_no_model_that_fits_is_no_plan(self) -> None:
        case = small_case(1, 0)
        huge = case.keeping(lambda model, engine: engine.shape.gpus >= 2)
        with pytest.raises(NoPlanError, match="GPU"):
            groups_that_fit(huge.replace(gpus=1))


@EVERY
def test_planning_takes_a_tenth_of_a_second(example: Case, planned: Planned) -> None:
    """Of processor time, with as much again to spare: it takes 8 to 60 ms."""
    planner = Planner(example.problem, 1)
    planned(example)
    started_s = time.thread_time()
    planned(Case.of(example.problem, planner))
    assert time.thread_time() - started_s < 0.2


def test_the_deepseek_judge_is_as_right_as_frugalgpts_page_says(repository: Path) -> None:
    requests = Problem.read(repository / "benchmarks" / "cases" / "deepseek.yaml").workload.requests
    score, quality = requests.score.ravel(), requests.quality.ravel()
    better = quality[:, None] > quality[None, :]
    told = np.where(score[:, None] == score[None, :], 0.5, score[:, None] > score[None, :])[better].mean()
    assert f"has {told:.2f}" in str(frugalgpt.__doc__)
