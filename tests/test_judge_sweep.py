from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from builders import deepseek_plan

import cascadia_fast as cf
from cascadia_fast.blueprint import Objective, Plan
from cascadia_fast.errors import InputError, NoPlanError, UnsupportedError
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.judge_sweep import JudgeRow, JudgeSweep, aucs, parse_range, sweep_judge
from cascadia_fast.routing import RoutingGrid, routing_grid

PRICE = (1.0, 4.0, 16.0)  # of one request at each model, in a planner that knows nothing else


@pytest.fixture(scope="module")
def problem() -> cf.Problem:
    return cf.Problem.example()


def prices_of(grid: RoutingGrid) -> tuple[np.ndarray, list[np.ndarray]]:
    """Price and reach of every distinct routing; a model that accepts nobody's answer is skipped."""
    reach = [grid.reach[stage][grid.rows(stage)] for stage in range(3)]
    after = [*reach[1:], np.zeros(grid.distinct)]
    price = sum(np.where(here > beyond, here * unit, 0) for here, beyond, unit in zip(reach, after, PRICE, strict=True))
    return np.asarray(price), reach


def cheapest(problem: cf.Problem) -> Plan:
    """The cheapest routing that meets the floor, as a plan."""
    grid = routing_grid(problem.workload.requests)
    quality = grid.quality[grid.combinations]
    if quality.max() < problem.goal.q_min:
        raise NoPlanError(f"no routing reaches quality {problem.goal.q_min:g}")
    price, reach = prices_of(grid)
    best = int(np.where(quality >= problem.goal.q_min, price, np.inf).argmin())
    made = deepseek_plan()
    accepting = [k for k in range(3) if reach[k][best] > (reach[k + 1][best] if k < 2 else 0)]
    stages = tuple(dataclasses.replace(made.stages[k], reach=float(reach[k][best])) for k in accepting)
    return _valued(made, float(price[best]), quality=float(quality[best]), stages=stages)


def _valued(made: Plan, value: float, quality: float = 80.0, **changes: Any) -> Plan:
    """A plan whose objective comes to `value`."""
    predicted = dataclasses.replace(made.predicted, max_stage_p95_s=value, quality=quality)
    solver = dataclasses.replace(made.solver, bound=None, gap=None)
    routing = made.routing
    if "stages" in changes:
        between = len(changes["stages"]) - 1
        routing = dataclasses.replace(
            routing, thresholds=(50.0,) * between, threshold_intervals=((None, 50.0),) * between
        )
    return dataclasses.replace(
        made,
        status="feasible",
        objective_value=value,
        latency_s=value,
        predicted=predicted,
        solver=solver,
        routing=routing,
        **changes,
    )


def test_aucs_rise_in_steps_to_the_last() -> None:
    assert aucs(0.6, 0.8, 0.1) == [0.6, 0.7, 0.8]
    assert aucs(0.6, 0.75, 0.1) == [0.6, 0.7, 0.75]
    assert aucs(0.7, 0.7, 0.1) == [0.7]
    assert aucs(0.55, 0.95, 0.05) == pytest.approx(np.arange(55, 96, 5) / 100, abs=0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("0.6..0.95", (0.6, 0.95, 0.05)), (" .6...95:.1 ", (0.6, 0.95, 0.1)), ("0.51..1:5e-2", (0.51, 1.0, 0.05))],
)
def test_a_range_is_read(text: str, expected: tuple[float, float, float]) -> None:
    assert parse_range(text) == expected


@pytest.mark.parametrize("text", ["", "..", "0.6", "0.6-0.9", "0.6..good", "0.6..0.9:", "nan..0.9"])
def test_what_is_no_range_is_refused(text: str) -> None:
    with pytest.raises(InputError, match=r"give LO\.\.HI or LO\.\.HI:STEP"):
        parse_range(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0.9..0.6", "a range that rises"),
        ("0.5..0.9", "above 0.5"),
        ("0.6..1.1", "up to 1"),
        ("0.6..0.9:0", "must be positive"),
        ("0.6..0.9:-1", "must be positive"),
        ("0.6..0.9:1e-6", "300,001 values"),
    ],
)
def test_aucs_out_of_range_are_refused(text: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        parse_range(text)


def test_a_better_judge_allows_more(problem: cf.Problem) -> None:
    sweep = sweep_judge(problem.replace(q_min=74), 0.6, 1.0, 0.1, plan=cheapest)
    assert [row.auc for row in sweep.rows] == [0.6, 0.7, 0.8, 0.9, 1.0]
    best = [row.best_quality for row in sweep.rows]
    assert best == sorted(best)
    prices = [row.objective_value for row in sweep.rows if row.objective_value is not None]
    assert prices == sorted(prices, reverse=True)
    # A judge that is always right finds the best of three answers nearly always.
    quality = problem.workload.requests.quality
    assert best[-1] == pytest.approx(quality.max(axis=0).mean(), abs=0.5)


def test_rows_are_plans_for_such_a_judge(problem: cf.Problem) -> None:
    sweep = sweep_judge(problem.replace(q_min=74), 0.7, 0.8, 0.1, plan=cheapest)
    for row in sweep.rows:
        direct = cheapest(problem.replace(q_min=74, simulated_auc=row.auc))
        assert row.objective_value == direct.objective_value
        assert row.quality == direct.predicted.quality
        assert row.reach is not None
        assert [reach for reach in row.reach if reach > 0] == [stage.reach for stage in direct.stages]
        assert row.usd_per_hour == direct.predicted.cost_usd_per_hour


@pytest.mark.parametrize("q_min", [50, 60, 74, 77])
def test_the_single_model_is_the_cheapest_that_meets_the_floor_alone(problem: cf.Problem, q_min: float) -> None:
    sweep = sweep_judge(problem.replace(q_min=q_min), 0.8, 0.8, plan=cheapest)
    means = problem.workload.requests.quality.mean(axis=1)
    expected = next(k for k in range(3) if means[k] >= q_min)
    assert sweep.single_model == deepseek_plan().stages[expected].model
    assert sweep.single_value == pytest.approx(PRICE[expected])


def test_it_says_where_the_floor_breaks(problem: cf.Problem) -> None:
    means = problem.workload.requests.quality.mean(axis=1)
    sweep = sweep_judge(problem.replace(q_min=float(means.max()) + 3), 0.6, 0.95, 0.05, plan=cheapest)
    assert sweep.single_model is None
    assert sweep.floor_breaks is not None
    below, above = sweep.floor_breaks
    assert above is not None
    for row in sweep.rows:
        assert (row.reason is None) == (row.auc >= above)
        assert row.pays == (row.auc >= above)
        assert (row.best_quality >= sweep.q_min) == (row.auc >= above)
    assert above - below == pytest.approx(0.05)
    assert f"A plan meets the floor down to an AUC of {above:g}; at {below:g}, no routing reaches" in sweep.text()
    assert sweep.stops_paying == sweep.floor_breaks


def test_it_says_where_the_cascade_stops_paying(problem: cf.Problem) -> None:
    # Half a point below the best model, a cascade needs a good judge to be cheaper than that model.
    floor = float(problem.workload.requests.quality.mean(axis=1).max()) - 0.5
    sweep = sweep_judge(problem.replace(q_min=floor), 0.51, 0.91, 0.05, plan=cheapest)
    assert sweep.floor_breaks is None
    for row in sweep.rows:
        assert row.objective_value is not None
        assert sweep.single_value is not None
        assert row.pays == (row.objective_value < sweep.single_value)
    assert sweep.rows[-1].pays


def row(auc: float, pays: bool, reason: str | None = None) -> JudgeRow:
    return JudgeRow(auc, 80.0, 10.0, 78.0, (1.0, 0.5), None, pays, reason)


def sweep_of(*rows: JudgeRow) -> JudgeSweep:
    return JudgeSweep("min_gpus", 77.0, ("small", "large"), 0, "large", 12.0, rows)


@pytest.mark.parametrize(
    ("pays", "expected", "verdict"),
    [
        ((True, True, True), None, "beats the best single model down to an AUC of 0.6, the lowest tried"),
        ((False, True, True), (0.6, 0.7), "down to an AUC of 0.7, and not at 0.6"),
        ((True, False, True), (0.7, 0.8), "down to an AUC of 0.8, and not at 0.7"),
        ((True, True, False), (0.8, None), "at no AUC up to 0.8"),
    ],
)
def test_break_even_is_the_first_failure_below_the_best_judge(
    pays: tuple[bool, ...], expected: tuple[float, float | None] | None, verdict: str
) -> None:
    sweep = sweep_of(*(row(auc, held) for auc, held in zip((0.6, 0.7, 0.8), pays, strict=True)))
    assert sweep.stops_paying == expected
    assert verdict in sweep.text()


def test_text_and_json_say_the_same() -> None:
    sweep = sweep_of(JudgeRow(0.6, 76.0, None, None, None, None, False, "it is too bad"), row(0.7, True))
    text = sweep.text()
    assert "The best model alone is large: 12 GPUs" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["0.6", "no", "plan", "–", "76.00", "–", "–", "no"] in lines
    assert ["0.7", "10", "GPUs", "78.00", "80.00", "100", "%", "/", "50", "%", "–", "yes"] in lines
    assert "A plan meets the floor down to an AUC of 0.7; at 0.6, it is too bad." in text
    found = json.loads(json.dumps(sweep.to_dict(), allow_nan=False))
    assert found["floor_breaks"] == [0.6, 0.7]
    assert found["stops_paying"] == [0.6, 0.7]
    assert [line["auc"] for line in found["rows"]] == [0.6, 0.7]


def fixed(value_of: Callable[[cf.Problem], float], objective: Objective) -> Callable[[cf.Problem], Plan]:
    def plan(problem: cf.Problem) -> Plan:
        value = value_of(problem)
        if objective == "max_stage_p95":
            return _valued(deepseek_plan(), value)
        made = _valued(deepseek_plan(), 135.0)
        return dataclasses.replace(
            made, objective=objective, objective_value=value, latency_metric="end_to_end_p95", latency_s=241.7
        )

    return plan


@pytest.mark.parametrize(("objective", "pays"), [("max_stage_p95", False), ("max_rate", True)])
def test_more_is_better_for_the_rate_only(problem: cf.Problem, objective: Objective, pays: bool) -> None:
    def value_of(problem: cf.Problem) -> float:
        return 1.0 if np.ptp(problem.workload.requests.score) == 0 else 2.0

    sweep = sweep_judge(problem.replace(objective=objective), 0.8, 0.8, plan=fixed(value_of, objective))
    assert [row.pays for row in sweep.rows] == [pays]


def test_equal_objectives_do_not_pay(problem: cf.Problem) -> None:
    sweep = sweep_judge(problem, 0.8, 0.8, plan=fixed(lambda _: 1.0, "max_stage_p95"))
    assert [row.pays for row in sweep.rows] == [False]


def test_what_no_judge_can_change_is_raised(problem: cf.Problem) -> None:
    def unsupported(problem: cf.Problem) -> Plan:
        raise UnsupportedError("this cannot be planned")

    with pytest.raises(UnsupportedError, match="this cannot be planned"):
        sweep_judge(problem, 0.8, 0.9, plan=unsupported)


def test_one_model_has_no_judge() -> None:
    fields = cf.Problem.example().fields.model_dump(exclude_unset=True)
    alone = cf.Problem.from_dict({**fields, "cascade": fields["cascade"][:1]}, EXAMPLE_DIR)
    with pytest.raises(InputError, match="the cascade has one model"):
        sweep_judge(alone, 0.8, 0.9, plan=cheapest)


def test_the_planner_sweeps_judges(problem: cf.Problem) -> None:
    problem = problem.replace(q_min=74, rate_per_s=20.0)
    sweep = sweep_judge(problem, 0.75, 0.85, 0.1, plan=cf.plan)
    for row in sweep.rows:
        direct = cf.plan(problem.replace(simulated_auc=row.auc))
        assert row.objective_value == direct.objective_value
        assert row.usd_per_hour == direct.predicted.cost_usd_per_hour
    single = direct.best_single_model
    assert single is not None
    assert sweep.single_model == single.model
    assert sweep.single_value == pytest.approx(single.p95_s)
