"""CascadeServe: its sub-problems against exhaustive search and its own words, and the plans that come of them."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

import highspy
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from planning_cases import small_problem

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.baselines import cascadeserve
from cascadia_fast.baselines.cascadeserve import plan_cascadeserve, plan_cascadeserve_tuned
from cascadia_fast.baselines.case import Case
from cascadia_fast.baselines.gear_placement import place_replicas, utilization
from cascadia_fast.baselines.gear_plan import RateRanges, assign, pareto_set
from cascadia_fast.baselines.gear_profile import Profile, smallest_that_fits, tuned_alone
from cascadia_fast.baselines.gear_search import GearPlan, best_plan, gear_plans
from cascadia_fast.baselines.trying import simulated_p95_s
from cascadia_fast.blueprint import Plan
from cascadia_fast.errors import PoolTooSmallError
from cascadia_fast.problem import Problem
from cascadia_fast.simulation.paths import accepting_stages, paths
from cascadia_fast.workload import Arrivals, Workload

FloatArray = NDArray[np.float64]
SEEDS = range(25)


def ranges_of(rate_per_s: list[float], share: list[float]) -> RateRanges:
    return RateRanges(np.array(rate_per_s) * 1.1, np.array(rate_per_s), np.array(share) / sum(share))


def random_ranges(rng: np.random.Generator, count: int) -> RateRanges:
    return ranges_of(np.sort(rng.uniform(1, 10, count)).tolist(), rng.uniform(0.1, 1, count).tolist())


def random_front(rng: np.random.Generator, count: int) -> tuple[FloatArray, FloatArray]:
    """Qualities and costs of a Pareto set, both ascending."""
    return np.sort(rng.uniform(40, 90, count)), np.sort(rng.uniform(0.1, 5, count))


def trace_of(counts: list[int], window_s: float) -> FloatArray:
    """Arrivals of so many requests in one window after the other."""
    windows = [k * window_s + np.linspace(0, 0.9 * window_s, count) for k, count in enumerate(counts)]
    return np.concatenate([*windows, [len(counts) * window_s]])


class TestRateRanges:
    def test_rates_and_shares_are_of_the_window_after(self) -> None:
        ranges = RateRanges.of_times(trace_of([2, 2, 2, 4, 4, 4, 2, 2], 10.0), window_s=10.0, most=8)
        # Windows of 2 come before 2, 2, 4 and 2 requests; windows of 4 before 4, 4 and 2.
        assert ranges.rate_per_s.tolist() == pytest.approx([10 / 40, 10 / 30])
        assert ranges.share.tolist() == pytest.approx([10 / 20, 10 / 20])
        assert ranges.up_to_per_s.tolist() == pytest.approx([0.25, 0.45])

    def test_ranges_that_say_nothing_of_the_rate_to_come_are_one(self) -> None:
        ranges = RateRanges.of_times(trace_of([2, 4, 2, 4, 2, 4], 10.0), window_s=10.0, most=8)
        assert ranges.rate_per_s.tolist() == pytest.approx([16 / 50])
        assert ranges.share.tolist() == [1.0]

    @pytest.mark.parametrize("most", [1, 2, 5, 8, 40])
    @pytest.mark.parametrize("seed", range(5))
    def test_every_request_but_the_first_windows_is_in_one_range(self, seed: int, most: int) -> None:
        times_s = np.cumsum(np.random.default_rng(seed).gamma(0.5, 2.0, 3000))
        ranges = RateRanges.of_times(times_s, 20.0, most)
        assert 1 <= ranges.share.size <= most
        assert ranges.share.sum() == pytest.approx(1)
        assert (ranges.share > 0).all()
        assert (np.diff(ranges.up_to_per_s) > 0).all()
        assert (np.diff(ranges.rate_per_s, prepend=0) > 0).all()
        counts = np.bincount(((times_s - times_s[0]) / 20.0).astype(int))[:-1]
        place = np.searchsorted(ranges.up_to_per_s[:-1], counts[:-1] / 20.0)
        for number, (share, rate_per_s) in enumerate(zip(ranges.share, ranges.rate_per_s, strict=True)):
            in_force = counts[1:][place == number]
            assert share == pytest.approx(in_force.sum() / counts[1:].sum())
            assert rate_per_s == pytest.approx(in_force.mean() / 20.0)

    def test_a_trace_of_one_window_has_one_range(self) -> None:
        ranges = RateRanges.of_times(np.arange(11.0), window_s=100.0, most=8)
        assert (ranges.rate_per_s.tolist(), ranges.share.tolist()) == ([1.0], [1.0])


class TestCascadesOfRanges:
    @pytest.mark.parametrize("seed", SEEDS)
    def test_pareto_set_is_what_nothing_dominates(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        quality, cost = rng.integers(0, 12, 40).astype(float), rng.integers(1, 12, 40).astype(float)
        kept = pareto_set(quality, cost)
        assert (np.diff(cost[kept]) > 0).all()
        assert (np.diff(quality[kept]) > 0).all()
        assert cost[kept[0]] == cost.min()
        assert quality[kept[-1]] == quality.max()
        undominated = {
            (q, c)
            for q, c in zip(quality, cost, strict=True)
            if not any((a >= q and b < c) or (a > q and b <= c) for a, b in zip(quality, cost, strict=True))
        }
        assert set(zip(quality[kept], cost[kept], strict=True)) == undominated

    @pytest.mark.parametrize("seed", SEEDS)
    def test_assignment_is_where_upgrading_the_least_loaded_range_ends(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        ranges, (quality, cost) = random_ranges(rng, 5), random_front(rng, 12)
        floor = float(rng.uniform(quality[0], quality[-1]))
        place, meets = assign(ranges, quality, cost, floor, np.full(5, np.inf))
        # Step by step: the range whose next cascade loads the cluster least gets it, until the floor is met.
        upgraded = np.zeros(5, int)
        while ranges.share @ quality[upgraded] < floor:
            able = np.flatnonzero(upgraded < len(cost) - 1)
            upgraded[able[np.argmin((ranges.rate_per_s * cost[np.minimum(upgraded + 1, len(cost) - 1)])[able])]] += 1
        assert meets
        assert place.tolist() == upgraded.tolist()

    def test_best_everywhere_where_the_floor_is_out_of_reach(self) -> None:
        ranges = ranges_of([1, 2, 3], [1, 1, 1])
        place, meets = assign(ranges, np.array([50.0, 70]), np.array([1.0, 2]), 71, np.full(3, np.inf))
        assert (place.tolist(), meets) == ([1, 1, 1], False)

    def test_a_downgraded_range_is_made_up_for_by_others(self) -> None:
        ranges, quality, cost = ranges_of([1, 2], [1, 1]), np.array([50.0, 60, 70]), np.array([1.0, 2, 3])
        place, meets = assign(ranges, quality, cost, 60, np.full(2, np.inf))
        assert (place.tolist(), meets) == ([2, 0], True)
        place, meets = assign(ranges, quality, cost, 60, np.array([2.0, np.inf]))
        assert (place.tolist(), meets) == ([1, 1], True)


def least_largest_utilization(need: FloatArray, gpus: NDArray[np.int64], total: int) -> float | None:
    counts = [range(1, total // size + 1) if wanted else [0] for wanted, size in zip(need, gpus, strict=True)]
    largest = [
        max((wanted / count for wanted, count in zip(need, chosen, strict=True) if count), default=0.0)
        for chosen in itertools.product(*counts)
        if np.dot(chosen, gpus) <= total
    ]
    return min(largest, default=None)


def balanced_by_program(work: FloatArray, replicas: NDArray[np.int64]) -> float:
    """The paper's linear program: each model's work split over its replicas, the most utilised engine the least so."""
    program = highspy.Highs()  # type: ignore[no-untyped-call]
    program.setOptionValue("output_flag", False)
    most = program.addVariable(0, highspy.kHighsInf, 1.0)
    for wanted, count in zip(work, replicas, strict=True):
        parts = [program.addVariable(0, highspy.kHighsInf, 0.0) for _ in range(count)]
        if parts:
            program.addConstr(sum(parts[1:], start=parts[0]) == wanted)
        for part in parts:
            program.addConstr(part <= most)
    program.minimize()
    return float(program.getInfo().objective_function_value)


class TestPlacement:
    @settings(max_examples=150, deadline=None)
    @given(
        st.lists(st.tuples(st.sampled_from([0.0, 0.3, 1.0, 2.5, 2.0, 7.7]), st.integers(1, 4)), min_size=1, max_size=3),
        st.integers(1, 14),
    )
    def test_equals_enumeration(self, models: list[tuple[float, int]], total: int) -> None:
        need, gpus = np.array([need for need, _ in models]), np.array([size for _, size in models], np.int64)
        work = np.stack([need, need / 2])
        found = place_replicas(work, gpus, total)
        best = least_largest_utilization(need, gpus, total)
        if best is None:
            assert found is None
            return
        assert found is not None
        assert int(found @ gpus) <= total
        assert ((found > 0) == (need > 0)).all()
        assert float(utilization(work, found).max()) == pytest.approx(best)
        # Nothing that fits is left out.
        left = total - int(found @ gpus)
        assert not any(wanted > 0 and size <= left for wanted, size in zip(need, gpus, strict=True))

    @pytest.mark.parametrize("seed", range(8))
    def test_utilization_is_that_of_the_papers_program(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        work = rng.uniform(0, 3, (4, 3)) * (rng.random((4, 3)) < 0.8)
        replicas = place_replicas(work, np.array([1, 2, 4]), 24)
        assert replicas is not None
        busy = utilization(work, replicas)
        for row, utilized in zip(work, busy, strict=True):
            assert utilized.max() == pytest.approx(balanced_by_program(row, replicas))

    def test_spare_gpus_go_to_the_busiest_that_fits(self) -> None:
        # Five GPUs cannot hold a second engine of four, and help the small model.
        found = place_replicas(np.array([[0.1, 3.0]]), np.array([1, 4]), 7)
        assert found is not None
        assert found.tolist() == [3, 1]


def flat_profile(time_s: float, capacity_per_s: float, gpus: int, option: int = 0, cached: float = 1e6) -> Profile:
    """An engine whose requests take the same time at every batch."""
    batches = np.array([1.0, capacity_per_s * time_s])
    return Profile(option, _core.Shape(tp=gpus), np.full(2, time_s), batches / time_s, cached)


class TestProfile:
    profile = Profile(0, _core.Shape(tp=2), np.array([1.0, 1.5, 3.0]), np.array([1.0, 2.0, 4.0]), 100.0)

    def test_time_is_that_of_the_least_batch_that_carries_the_rate(self) -> None:
        mean_s = self.profile.mean_s(np.array([0.0, 0.5, 1.0, 2.0, 3.0, 4.0, 4.1]))
        assert mean_s.tolist() == [1.0, 1.0, 1.0, 1.5, 2.25, 3.0, np.inf]

    def test_smallest_has_room_for_requests_and_no_pipeline_where_one_does(self) -> None:
        tight = flat_profile(1.0, 4.0, 2, cached=8.0)
        piped = Profile(1, _core.Shape(tp=1, pp=3), np.ones(2), np.ones(2), 100.0)
        roomy = flat_profile(1.0, 8.0, 4, cached=64.0)
        assert smallest_that_fits([tight, piped, roomy]) is roomy
        assert smallest_that_fits([tight, piped]) is piped
        assert smallest_that_fits([tight]) is tight

    def test_tuned_has_least_time_alone_or_carries_most(self) -> None:
        slow, fast, huge = flat_profile(9.0, 2.0, 1), flat_profile(3.0, 3.0, 2), flat_profile(1.0, 4.0, 16)
        assert tuned_alone([slow, fast, huge], rate_per_s=10.0, gpus=8) is fast
        assert tuned_alone([slow, fast, huge], rate_per_s=14.0, gpus=8) is slow  # 4 x 3 do not carry it, 8 x 2 do
        assert tuned_alone([fast, slow, huge], rate_per_s=99.0, gpus=8) is slow


class TestSearch:
    # The small model alone, both, and the large one alone.
    quality = np.array([50.0, 60.0, 70.0, 80.0])
    visits = np.array([[1.0, 1.0, 1.0, 0.0], [0.0, 0.3, 0.6, 1.0]])
    profiles = (flat_profile(1.0, 10.0, 1), flat_profile(4.0, 1.0, 4))

    def plans(self, ranges: RateRanges, floor: float, gpus: int) -> list[GearPlan]:
        return list(gear_plans(ranges, self.quality, self.visits, self.profiles, gpus, floor, models=2))

    @pytest.mark.parametrize("floor", [0.0, 55.0, 65.0, 80.0])
    def test_plans_fit_and_meet_the_floor(self, floor: float) -> None:
        ranges = ranges_of([0.5, 1.0, 2.0], [1, 2, 1])
        plans = self.plans(ranges, floor, gpus=16)
        assert plans
        for plan in plans:
            assert plan.replicas @ np.array([1, 4]) <= 16
            served = float(ranges.share @ self.quality[plan.cascade])
            assert plan.shortfall == pytest.approx(max(floor - served, 0))
        best = best_plan(plans)
        assert best.shortfall == 0
        assert best.utilization <= 1

    def test_overloaded_ranges_are_downgraded_while_others_make_up_for_them(self) -> None:
        relieved = 0
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            reach = np.concatenate(([0.0], np.sort(rng.uniform(0.05, 1, 12)), [1.0]))
            quality, visits = 50 + 30 * reach**0.5, np.stack([np.r_[np.ones(13), 0.0], reach])
            ranges = ranges_of(np.sort(rng.uniform(0.5, 6, 4)).tolist(), rng.uniform(0.5, 1, 4).tolist())
            floor = float(rng.uniform(62, 74))
            found = gear_plans(ranges, quality, visits, self.profiles, 12, floor, models=2)
            plans = list(found)[2:]  # after those of one model each
            cost = np.array([0.1, 4.0]) @ visits
            for before, after in itertools.pairwise(plans):
                work = ranges.rate_per_s[:, None] * visits[:, before.cascade].T / np.array([10.0, 1.0])
                worst = int(np.argmax(utilization(work, before.replicas).max(axis=1)))
                assert before.utilization > 1
                assert before.shortfall == 0
                assert cost[after.cascade[worst]] < cost[before.cascade[worst]]
            relieved += plans[0].utilization > 1 and best_plan(plans).utilization <= 1
            assert plans[-1].utilization <= 1 or plans[-1].shortfall > 0 or len(plans) == 32
        assert relieved > 0

    def test_a_floor_out_of_reach_gets_the_best_quality(self) -> None:
        best = best_plan(self.plans(ranges_of([0.5, 1.0], [1, 1]), 90.0, gpus=16))
        assert self.quality[best.cascade].tolist() == [80.0, 80.0]
        assert best.shortfall == pytest.approx(10.0)

    def test_overload_does_not_lower_the_floor(self) -> None:
        best = best_plan(self.plans(ranges_of([9.0], [1]), 75.0, gpus=8))
        assert best.shortfall == 0
        assert best.utilization == pytest.approx(9.0 / 2)

    def test_nothing_where_no_engine_fits(self) -> None:
        large_only = list(
            gear_plans(ranges_of([1], [1]), np.array([80.0]), np.ones((1, 1)), self.profiles[1:], 3, 0, 1)
        )
        assert large_only == []

    @pytest.mark.parametrize(("reach", "p95_s"), [(0.3, 5.0), (0.06, 5.0), (0.04, 1.0)])
    def test_p95_is_over_the_ends_of_paths(self, reach: float, p95_s: float) -> None:
        visits = np.array([[1.0, 1.0, 0.0], [0.0, reach, 1.0]])
        quality = np.array([50.0, 60.0, 55.0])
        plans = gear_plans(ranges_of([1.0], [1]), quality, visits, self.profiles, 16, 60.0, models=2)
        (both,) = [plan for plan in plans if (plan.replicas > 0).all()]
        assert both.p95_s == pytest.approx(p95_s)


DEEPSEEK = Path(__file__).parents[1] / "benchmarks/cases/deepseek.yaml"
Planning = Callable[[Case], Plan]
PLANNERS = (plan_cascadeserve, plan_cascadeserve_tuned)


@pytest.fixture(scope="module")
def deepseek() -> Problem:
    return cf.Problem.read(DEEPSEEK)


def with_trace(problem: Problem, seed: int = 0, count: int = 4000) -> Problem:
    """The problem with bursty arrivals at its rate."""
    rate_per_s = problem.workload.rate_per_s
    times_s = np.cumsum(np.random.default_rng(seed).gamma(0.4, 2.5 / rate_per_s, count))
    arrivals = Arrivals.from_times(times_s).rescaled(rate_per_s)
    return problem.replace(workload=Workload.build(problem.workload.requests, arrivals))


def shares_online(problem: Problem, plan: Plan) -> FloatArray:
    """The share of the trace's requests that each gear serves when gears switch by the rate alone."""
    times_s, switching = problem.workload.arrivals.times_s, plan.routing.switching
    assert times_s is not None
    assert switching is not None
    window = ((times_s - times_s[0]) / switching.window_s).astype(int)
    before = np.concatenate(([0], np.bincount(window)))[window]
    bounds = [gear.up_to_per_s for gear in plan.routing.gears[:-1]]
    gear = np.searchsorted(np.array(bounds, float), before / switching.window_s)
    return np.bincount(gear, minlength=len(plan.routing.gears)) / times_s.size


class TestPlans:
    @pytest.mark.parametrize("plan_of", PLANNERS)
    @pytest.mark.parametrize("q_min", [60.0, 75.0, 80.0])
    def test_gears_meet_the_floor_as_they_are_switched(
        self, deepseek: Problem, plan_of: Planning, q_min: float
    ) -> None:
        problem = deepseek.replace(q_min=q_min)
        plan = plan_of(Case.of(problem))
        assert plan.predicted.quality >= q_min - 1e-6
        assert (plan.status, plan.routing.kind) == ("feasible", "gears")
        requests = problem.workload.requests.of_models([stage.index for stage in plan.stages])
        served = requests.quality[accepting_stages(paths(plan.routing, requests)), np.arange(requests.size)]
        by_gear = np.average(served, axis=1, weights=requests.weight)
        switched = shares_online(problem, plan) @ by_gear
        assert switched == pytest.approx(plan.predicted.quality, abs=0.5)
        assert (np.diff(by_gear) < 0).all()  # the more load, the cheaper

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_plans_are_whole_and_repeat(self, deepseek: Problem, plan_of: Planning) -> None:
        plan = plan_of(Case.of(deepseek))
        assert Plan.from_json(plan.to_json()) == plan
        assert plan.plan_id == plan_of(Case.of(deepseek)).plan_id
        assert plan.gpus <= 32
        assert plan.solver.seconds < 2
        assert plan.judge.latency_s == deepseek.judge.latency_s

    def test_parallelism_is_the_smallest_or_tuned(self, deepseek: Problem) -> None:
        case = Case.of(deepseek)
        small = {s.index: s.replicas[0].tp for s in plan_cascadeserve(case).stages}
        assert small == {1: 4, 2: 8}  # on tp2 the 70B has room for 8 requests
        tuned = {s.index: s.replicas[0].tp for s in plan_cascadeserve_tuned(case).stages}
        assert tuned == {1: 8, 2: 8}

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_simulated_gears_serve_what_was_planned(self, deepseek: Problem, plan_of: Planning) -> None:
        plan = plan_of(Case.of(deepseek))
        run = cf.simulate(plan, deepseek, requests=19_000, seed=0)
        assert run.gear_shares == pytest.approx(shares_online(deepseek, plan), abs=0.06)
        assert run.quality is not None
        assert run.quality.value == pytest.approx(plan.predicted.quality, abs=1.0)

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_a_floor_out_of_reach_gets_the_best_model(self, deepseek: Problem, plan_of: Planning) -> None:
        plan = plan_of(Case.of(deepseek.replace(q_min=99.0)))
        best = max(np.average(deepseek.workload.requests.quality, axis=1))
        assert best <= plan.predicted.quality < 99
        assert any("below the floor" in warning for warning in plan.warnings)

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_too_high_a_rate_is_unstable(self, deepseek: Problem, plan_of: Planning) -> None:
        plan = plan_of(Case.of(deepseek.replace(rate_per_s=20.0)))
        assert (plan.status, plan.latency_s) == ("unstable", None)
        assert plan.predicted.quality >= deepseek.goal.q_min - 1e-6

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_a_rate_without_a_trace_will_do(self, plan_of: Planning) -> None:
        for cv in (1.0, 3.0):
            problem = small_problem(3, rate_per_s=10.0, cv=cv, q_min=65, weighted=True)
            plan = plan_of(Case.of(problem, seed=1))
            assert plan.predicted.quality >= 65 - 1e-6
            assert plan.routing.switching is not None
            assert plan.routing.switching.window_s in (2.0, 10.0, 40.0)

    @pytest.mark.parametrize("plan_of", PLANNERS)
    def test_its_windows_are_those_that_serve_the_planning_half_faster(
        self, deepseek: Problem, plan_of: Planning, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        case = Case.of(deepseek.replace(q_min=75.0, rate_per_s=2.2))
        chosen = plan_of(case)
        p95_s = {}
        for requests in cascadeserve.REQUESTS_PER_WINDOW:
            with monkeypatch.context() as only:
                only.setattr(cascadeserve, "REQUESTS_PER_WINDOW", (requests,))
                plan = plan_of(case)
            assert plan.routing.switching is not None
            p95_s[plan.routing.switching.window_s] = simulated_p95_s(case, plan)
        assert len(p95_s) == 3
        assert chosen.routing.switching is not None
        assert p95_s[chosen.routing.switching.window_s] == min(p95_s.values())

    def test_a_plan_of_one_gear_wins_where_it_is_the_fastest(self) -> None:
        problem = Problem.read(DEEPSEEK.parent / "llama_trace2.yaml").replace(q_min=69.0, rate_per_s=47.0)
        half = problem.workload.requests.select(np.arange(0, problem.workload.requests.size, 2))
        case = Case.of(problem.replace(workload=Workload.build(half, problem.workload.arrivals)))
        chosen = plan_cascadeserve(case)
        assert len(chosen.routing.gears) == 1
        with pytest.MonkeyPatch.context() as only:
            only.setattr(cascadeserve, "REQUESTS_PER_WINDOW", (20,))
            switching = plan_cascadeserve(case)
        assert len(switching.routing.gears) > 1
        assert simulated_p95_s(case, chosen) < simulated_p95_s(case, switching)

    def test_a_hosted_judge_has_engines_and_load(self, tmp_path: Path) -> None:
        text = DEEPSEEK.read_text().replace("data/", f"{DEEPSEEK.parent}/data/")
        path = tmp_path / "hosted.yaml"
        path.write_text(text.replace("judge: {latency_s: 0.27}", "judge: {model: llama-3.1-8b, output_tokens: 8}"))
        # With other windows the largest model alone is faster, and nobody is judged.
        with pytest.MonkeyPatch.context() as only:
            only.setattr(cascadeserve, "REQUESTS_PER_WINDOW", (100,))
            plan = plan_cascadeserve(Case.of(cf.Problem.read(path)))
        assert plan.routing.asks_judge
        assert plan.judge.kind == "hosted"
        assert plan.judge.gpus >= 1
        assert plan.judge.rate_per_s == pytest.approx(1.5)  # of all answers of the first of two models
        assert plan.gpus <= 32

    def test_no_gpus_for_any_model_are_refused(self, deepseek: Problem) -> None:
        case = Case.of(deepseek.replace(gpus=4)).keeping(lambda model, engine: engine.shape.gpus >= 8)
        with pytest.raises(PoolTooSmallError, match="smallest engine takes 8 GPUs and there are 4; add 4"):
            plan_cascadeserve(case)
