"""Planning by simulation: nothing is better by simulation, threads change nothing, and its numbers can be repeated."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

import cascadia_fast as cf
from cascadia_fast import _core
from cascadia_fast.blueprint import Plan
from cascadia_fast.cli.program import app
from cascadia_fast.errors import InputError, NoPlanError, UnsupportedError
from cascadia_fast.planner import Planner
from cascadia_fast.planning import simulated_stages
from cascadia_fast.problem import Problem
from cascadia_fast.routing import route, routing_grid
from cascadia_fast.simulation.traffic import arrival_times, drawn_requests, whole_tokens
from cascadia_fast.workload import Arrivals, Workload

REQUESTS = 4000


@pytest.fixture(autouse=True)
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparisons hold for any number of requests; few are fast."""
    monkeypatch.setattr(simulated_stages, "LEAST_REQUESTS", REQUESTS)


@pytest.fixture(scope="module")
def deepseek(repository: Path) -> Problem:
    return Problem.read(repository / "benchmarks" / "cases" / "deepseek.yaml")


def renewal(problem: Problem, rate_per_s: float, cv: float = 1.0) -> Problem:
    """The same requests without the trace, which would have to be replayed whole."""
    arrivals = Arrivals.from_rate(rate_per_s, cv)
    return problem.replace(workload=Workload.build(problem.workload.requests, arrivals))


@pytest.fixture(scope="module")
def small(repository: Path) -> Problem:
    """The two distilled models on one node of 8 GPUs: few enough deployments to simulate them all."""
    fields = {
        "cascade": [
            {"model": "deepseek-r1-distill-qwen-7b", "name_in_requests": "R1-Distill-Qwen-7B"},
            {"model": "deepseek-r1-distill-llama-70b", "name_in_requests": "R1-Distill-Llama-70B"},
        ],
        "cluster": [{"gpu": "h100-sxm-80gb", "nodes": 1}],
        "workload": {
            "requests": "deepseek_r1_51prompts.csv",
            "columns": {"request": "prompt_id", "score": "score_gemini25pro", "quality": "score_grok4fast"},
            "score_scale": 10,
            "rate_per_s": 1.2,
            "cv": 1.5,
        },
        "judge": {"latency_s": 0.27},
        "goal": {"q_min": 60, "latency": "simulated"},
    }
    return Problem.from_dict(fields, repository / "benchmarks" / "cases" / "data")


class BruteForce:
    """Every routing that meets the floor with every deployment within the utilisation cap, each stage alone."""

    def __init__(self, problem: Problem, planner: Planner, count: int) -> None:
        self.problem, self.fleet, self.count = problem, planner.fleet, count
        workload = problem.workload
        self.requests, self.rate_per_s = workload.requests, workload.rate_per_s
        self.grid = routing_grid(self.requests)
        self.drawn = drawn_requests(self.requests, count, 0)
        self.arrival_s = arrival_times(workload, "gamma", self.rate_per_s, count, 0)
        self.p95s: dict[Any, float] = {}

    def best(self) -> tuple[tuple[float, ...], float, int, tuple[float, ...]]:
        """Worst p95s first, quality lost, GPUs, thresholds."""
        return min(plan for routing in range(self.grid.distinct) for plan in self.plans(routing))

    def plans(self, routing: int) -> Iterator[tuple[tuple[float, ...], float, int, tuple[float, ...]]]:
        quality = float(self.grid.quality[self.grid.combination(routing)])
        if quality < self.problem.goal.q_min - 1e-9:
            return
        accepted_by = route(self.requests, self.grid.thresholds(routing))
        options = [self.options(stage, accepted_by >= stage) for stage in range(len(self.fleet))]
        for choices in itertools.product(*options):
            gpus = sum(gpus for gpus, _ in choices)
            if gpus <= self.problem.gpus:
                worst_s = tuple(sorted((p95_s for _, p95_s in choices), reverse=True))
                yield worst_s, -quality, gpus, self.grid.thresholds(routing)

    def options(self, stage: int, reaches: NDArray[np.bool_]) -> list[tuple[int, float]]:
        """(GPUs, p95) of every deployment of a stage."""
        if not reaches.any():
            return [(0, 0.0)]
        cells = self.grid.cells[stage]
        share = np.bincount(cells.cell_of[reaches], self.requests.weight[reaches], cells.tokens_in.size)
        share /= self.requests.weight.sum()
        found = []
        for replica in self.fleet[stage].replicas:
            (capacity_per_s,) = _core.capacities(
                replica=replica, tokens_in=cells.tokens_in, tokens_out=cells.tokens_out, share=share[None]
            )
            least = share.sum() * self.rate_per_s / (capacity_per_s * self.problem.goal.max_utilization)
            counts = range(max(1, int(np.ceil(least))), self.problem.gpus // replica.shape.gpus + 1)
            found += [(n * replica.shape.gpus, self.p95_s(stage, reaches, replica, n)) for n in counts]
        return found

    def p95_s(self, stage: int, reaches: NDArray[np.bool_], replica: _core.Replica, count: int) -> float:
        key = (stage, reaches.tobytes(), replica.shape, count)
        if key not in self.p95s:
            kept = np.flatnonzero(reaches[self.drawn])
            run = _core.simulate(
                [_core.Station([(_core.StepCosts(replica), count, 1.0)])],
                tokens_in=whole_tokens(self.requests.input_tokens[stage : stage + 1], "input"),
                tokens_out=whole_tokens(self.requests.output_tokens[stage : stage + 1], "output"),
                path=np.ones(self.requests.size, np.uint16),
                drawn=self.drawn[kept],
                arrival_s=self.arrival_s[kept],
                seed=0,
            )
            measured = (kept >= 0.1 * self.count) & (kept < 0.95 * self.count)
            latency_s = np.sort((run.finished_s - run.arrived_s)[measured])
            self.p95s[key] = float(latency_s[int(np.ceil(0.95 * latency_s.size)) - 1])
        return self.p95s[key]


@pytest.mark.parametrize(("q_min", "rate_per_s"), [(60, 1.2), (66, 1.2), (66, 2.3), (0, 4.0)])
def test_no_plan_is_better_by_simulation(small: Problem, q_min: float, rate_per_s: float) -> None:
    problem = small.replace(q_min=q_min, rate_per_s=rate_per_s)
    planner = Planner(problem, threads=2)
    made = planner.plan()
    assert made.solver.simulated is not None
    worst_s, lost, gpus, thresholds = BruteForce(problem, planner, made.solver.simulated.requests).best()
    assert made.latency_s == worst_s[0]
    assert made.gpus == gpus
    assert made.predicted.quality == pytest.approx(-lost)
    intervals = zip(made.routing.threshold_intervals, thresholds, strict=False)
    assert all((low is None or low < threshold) and threshold <= high for (low, high), threshold in intervals)


def test_highs_agrees_and_claims_no_more(small: Problem) -> None:
    made = Planner(small).plan()
    assert made.status == "feasible"
    assert made.solver.bound is None
    assert made.solver.highs is not None
    assert made.solver.highs.status == "optimal"
    assert made.solver.highs.objective == pytest.approx(made.latency_s, rel=1e-6)
    assert made.solver.certificate.startswith("best by simulation")
    assert made.solver.simulated is not None
    assert made.solver.simulated.runs > 0
    assert made.solver.evaluated + made.solver.pruned <= made.solver.distinct_routings


def test_threads_change_nothing(deepseek: Problem) -> None:
    problem = renewal(deepseek, 1.5)
    assert len({Planner(problem, threads).plan(latency="simulated").plan_id for threads in (1, 2, 5)}) == 1


def test_a_planner_keeps_nothing_of_other_traffic(small: Problem) -> None:
    planner = Planner(small)
    before = planner.plan().plan_id
    planner.plan(rate_per_s=3.0, q_min=50)
    assert planner.plan().plan_id == before


def test_predictions_are_those_of_the_simulated_cascade(deepseek: Problem) -> None:
    problem = renewal(deepseek, 1.5, cv=2.0)
    made = Planner(problem).plan(latency="simulated")
    assert made.solver.simulated is not None
    requests = made.solver.simulated.requests
    run = cf.simulate(made, problem, requests, seed=made.solver.simulated.seed)
    measured = slice(requests // 10, requests - requests // 20)
    assert made.predicted.end_to_end_p95_s == pytest.approx(np.quantile(run.latency_s[measured], 0.95), rel=0.01)
    assert made.predicted.end_to_end_p50_s == pytest.approx(np.quantile(run.latency_s[measured], 0.5), rel=0.01)
    assert made.predicted.ttft_p95_s == pytest.approx(np.quantile(run.ttft_s[measured], 0.95), rel=0.01)
    times_s = run.native.times_s
    assert times_s is not None
    for row, stage in enumerate(made.stages):
        p95_s = np.nanquantile((times_s[row, :, 3] - times_s[row, :, 0])[measured], 0.95)
        assert stage.p95_s == pytest.approx(p95_s, rel=0.01)
    assert made.predicted.max_stage_p95_s == max(stage.p95_s or 0 for stage in made.stages)


def bursts(count: int, rate_per_s: float, size: int, factor: float) -> NDArray[np.float64]:
    """Bursts of so many arrivals at a multiple of the rate, and silence after each that keeps the mean."""
    gaps_s = np.random.default_rng(0).exponential(1 / (rate_per_s * factor), (count // size, size))
    return (np.arange(count // size)[:, None] * size / rate_per_s + gaps_s.cumsum(axis=1)).ravel()


def test_simulation_sees_the_bursts_that_the_formula_cannot(deepseek: Problem) -> None:
    """The formula knows how much these arrivals vary, not that they never come faster than three times the mean."""
    arrivals = Arrivals.from_times(bursts(20_000, 1.05, 3000, 3.0))
    problem = deepseek.replace(workload=Workload.build(deepseek.workload.requests, arrivals), q_min=74.0)
    planner = Planner(problem)
    by_formula, by_simulation = planner.plan(skip_models=False), planner.plan(latency="simulated")
    slowest_s = {}
    for made in (by_formula, by_simulation):
        run = cf.simulate(made, problem, 20_000, seed=1)
        slowest_s[made.plan_id] = max(stage.latency.p95.value for stage in run.stages if stage.latency is not None)
    assert slowest_s[by_simulation.plan_id] < 0.9 * slowest_s[by_formula.plan_id]
    assert (by_formula.latency_s or 0) > 1.2 * slowest_s[by_formula.plan_id]
    # This run has six bursts, the planner's has more. The stages before spread them, so that in the cascade the slowest
    # stage is faster than alone, by a tenth here.
    assert by_simulation.predicted.max_stage_p95_s == pytest.approx(slowest_s[by_simulation.plan_id], rel=0.1)
    assert by_simulation.latency_s == pytest.approx(by_simulation.predicted.max_stage_p95_s, rel=0.15)
    assert not any("renewal" in warning for warning in by_simulation.warnings)


def test_the_plan_survives_its_file(small: Problem) -> None:
    made = Planner(small).plan()
    text = made.to_json()
    assert Plan.from_json(text) == made
    assert Plan.from_json(text).to_json() == text
    assert json.loads(text)["solver"]["simulated"]["requests"] >= REQUESTS
    assert json.loads(text)["solver"]["simulated"]["seed"] == 0
    assert Planner(small).plan(latency="formula").solver.simulated is None


def test_the_summary_says_so(small: Problem) -> None:
    made = Planner(small).plan()
    assert made.solver.simulated is not None
    text = " ".join(made.summary().split())
    assert "best by simulation, each stage alone" in text
    assert f"{made.solver.simulated.requests:,} requests of the whole cascade (seed 0)" in text


def test_the_field_and_the_option(small: Problem, tmp_path: Path) -> None:
    assert small.goal.latency == "simulated"
    assert Planner(small.replace(latency="formula")).plan().solver.simulated is None
    result = CliRunner().invoke(app, ["plan", "--latency", "simulated", "--json"])
    assert result.exit_code == 0
    assert json.loads(result.stdout)["solver"]["simulated"]["seed"] == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"latency": "simulation"}, r"goal\.latency is 'simulation'; it must be one of .*did you mean 'simulated'"),
        ({"latency": 1}, r"goal\.latency is 1; it must be one of 'formula' or 'simulated'"),
    ],
)
def test_a_bad_field_is_named(small: Problem, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        small.replace(**changes)


def test_bad_arguments(small: Problem) -> None:
    planner = Planner(small)
    with pytest.raises(InputError, match="latency is 'simulation'; it must be one of 'formula' or 'simulated'"):
        planner.plan(latency="simulation")
    with pytest.raises(UnsupportedError, match="method alternating plans by the latency formula"):
        planner.plan(method="alternating")
    with pytest.raises(UnsupportedError, match="paper_strict plans by the latency formula"):
        Planner(small.replace(paper_strict=True)).plan()


def test_what_would_take_hours_is_refused(small: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_stages, "MOST_REQUESTS", REQUESTS - 1)
    with pytest.raises(UnsupportedError, match=r"would take 4,\d\d\d requests per simulation .* use latency formula"):
        Planner(small).plan()


def test_what_does_not_keep_up_is_no_plan(small: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simulated_stages, "DRAIN", -1.0)  # nothing empties before the last arrival
    with pytest.raises(NoPlanError, match="no allocation of 8 GPUs keeps up with 1.2 requests/s in simulation"):
        Planner(small).plan()


def test_an_overloaded_stage_is_infinitely_slow(small: Problem) -> None:
    """The simulation of one engine that gets what 64 carry ends, and says so."""
    planner = Planner(small)
    replay = simulated_stages.Replay.of(small.workload.with_rate(10.0), 200.0)
    traffic = simulated_stages.StageTraffic(replay, 1, np.ones(small.workload.requests.size, bool))
    costs = _core.StepCosts(planner.fleet[1].replicas[-1])
    assert traffic.p95_s(0, costs, 1) == np.inf
    assert traffic.p95_s(0, costs, 64) < np.inf


def test_requests_that_no_engine_holds_are_infinitely_slow(small: Problem) -> None:
    replay = simulated_stages.Replay.of(small.workload.with_rate(0.01), 10.0)
    traffic = simulated_stages.StageTraffic(replay, 1, np.ones(small.workload.requests.size, bool))
    times_s = np.full(257, 1e-3)
    costs = _core.StepCosts.measured(
        decode_step_s=times_s, prompt_step_s=times_s, sampled_s=np.zeros(257), kv_capacity_tokens=1000
    )
    assert traffic.p95_s(0, costs, 4) == np.inf


def test_what_gets_no_plan_by_formula_gets_none_by_simulation(small: Problem) -> None:
    with pytest.raises(NoPlanError, match="GPUs"):
        Planner(small).plan(rate_per_s=1000.0)
