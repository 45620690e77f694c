"""What a summary must say, and that it fits where it is shown."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from builders import (
    GEARED,
    LEARNED,
    ROUTED,
    VERIFIED,
    alternating_report,
    baseline_plan,
    deepseek_plan,
    one_stage_plan,
    two_pools_plan,
)

from cascadia_fast.blueprint import HighsProof, JudgePlan, Plan, Routing, SingleModel
from cascadia_fast.blueprint_routing import Gear, Router
from cascadia_fast.summary import duration, routing_text, show, summarize
from cascadia_fast.summary_layout import Table
from cascadia_fast.summary_units import energy, objective_text

FILE_COMMAND = ("cascadia-fast", "plan", "my case.yaml")


class Screen(io.StringIO):
    """A text file that says of itself whether it is a terminal and what it can encode."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal, self._encoding = terminal, encoding

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return self._encoding

    def isatty(self) -> bool:
        return self._terminal


def shown(plan: Plan, terminal: bool = False, encoding: str = "utf-8", plain: bool = True) -> str:
    screen = Screen(terminal, encoding)
    show(plan, screen, FILE_COMMAND, {})
    return re.sub(r"\x1b\[[0-9;]*m", "", screen.getvalue()) if plain else screen.getvalue()


def squeezed(text: str) -> str:
    return " ".join(text.split())


@pytest.mark.parametrize("terminal", [False, True])
def test_says_everything_the_plan_rests_on(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")
    monkeypatch.setenv("TERM", "xterm")
    text = squeezed(shown(deepseek_plan(), terminal))
    for fact in (
        "deepseek-r1-distill-llama-70b bf16 6 1 × tp4 + 2 × tp1 64.7 % 0.970/s 88.4 s 84.0 % 22.2 of 256",
        "deepseek-r1 int4 20 1 × tp4 pp5 47.0 % 0.700/s 135 s 90.0 % 61.0 of 256",
        "stage 1 keeps answers scored 87 or more (the same for any above 86 up to 88)",
        "stage 2 keeps no answer",
        "80.39, floor 80; 95 % interval 74.1 to 86 from 51 scored requests",
        "1.5 requests/s planned (mean); this plan carries at most 2.71 within the utilisation cap of 90 %",
        "predicted end to end p50 92.5 s, p95 242 s; slowest stage p95 135 s; first token of the final answer p95 "
        "1.9 s (earlier stages and judge included)",
        "3 stages on 32 h100-sxm-80gb, quality floor 80, objective max_stage_p95: 135 s",
        "27 of 32 used; 5 idle",
        "cost 64.80 USD per hour, 12 USD per 1,000 requests; energy at most 11.1 kJ per request (board power of busy "
        "GPUs; what they draw while idle is not counted)",
        "work 23.8 of 27 GPUs busy on average, 75.8 % of them at stage 3 (per request: 0.473 GPU-s at stage 1, "
        "5.2 GPU-s at stage 2, 25.7 GPU-s at stage 3)",
        "external, 270 ms per call",
        "exact, optimal for this model, this grid and this sample; 18 evaluated, 185 pruned, 4.2 ms",
        "check HiGHS finds the same 135 s (3 columns, 500 µs)",
        "roofline-2026-11: deepseek-r1-distill-qwen-7b calibrated; deepseek-r1 transferred",
        "warning arrivals are bursty: dispersion 16 over 60 s",
        "deepseek-r1 alone 32 180 s 86.3 76.80 best single model",
        "The cascade has 1.34 times the p95 of deepseek-r1 alone and 0.84 times its cost.",
        "Binding stage: 3 (deepseek-r1), p95 135 s at 90 % utilisation.",
        "cascadia-fast plan 'my case.yaml' --q-min 75",
    ):
        assert fact in text


@pytest.mark.parametrize("width", [40, 60, 80, 100, 160])
def test_tables_and_text_fit_the_width(width: int) -> None:
    text = summarize(deepseek_plan(), width=width, command=("cascadia-fast", "plan"))
    body = text.split("Next:")[0].splitlines()
    assert max(map(len, body)) <= max(width, 70)
    if width >= 80:
        assert max(map(len, body)) <= width


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_terminal_tables_keep_their_numbers(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERM", "xterm")
    text = shown(deepseek_plan(), terminal=True)
    for number in ("61.2 s", "88.4 s", "135 s", "64.7 %", "1.34 times"):
        assert number in text


def test_a_colour_terminal_gets_colours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "100")
    assert "\x1b[" in shown(deepseek_plan(), terminal=True, plain=False)


@pytest.mark.parametrize("terminal", [False, True])
def test_ascii_screens_get_ascii(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "140")
    text = shown(deepseek_plan(), terminal, encoding="ascii")
    assert text.isascii()
    assert "1 x tp4 + 2 x tp1" in text
    assert "?" not in text
    assert deepseek_plan().summary(ascii_only=True).isascii()


def test_interval_wordings() -> None:
    def thresholds(routing: Routing) -> str:
        return squeezed(deepseek_plan(routing=routing).summary(width=160))

    never = Routing("cascade", (math.inf, 0.0), ((99.0, math.inf), (None, 12.5)))
    assert "stage 1 keeps no answer stage 2 keeps answers scored 0 or more (the same for any up to 12.5)" in thresholds(
        never
    )
    open_end = Routing("cascade", (95.0, 3.0), ((90.0, math.inf), (None, math.inf)))
    assert "stage 1 keeps answers scored 95 or more (the same for any above 90) stage 2 keeps" in thresholds(open_end)
    assert "stage 2 keeps answers scored 3 or more (the same for any) quality" in thresholds(open_end)
    narrow = Routing("cascade", (65.41234567, 3.0), ((65.0, 66.0), (-7.123456789, 150.0)))
    assert "stage 1 keeps answers scored 65.41 or more stage 2" in thresholds(narrow)
    assert "stage 2 keeps answers scored 3 or more (the same for any) quality" in thresholds(narrow)


def test_other_systems_say_how_they_route() -> None:
    def said(system: str, routing: Routing, **changes: object) -> str:
        return squeezed(baseline_plan(system, routing, **changes).summary(width=160))

    routed = said("routellm", ROUTED)
    assert "of routellm (feasible): 3 stages" in routed
    assert (
        "router by the probability that the largest model answers better than the smallest, simulated with AUC 0.8: "
        "stage 1 below 0.31, stage 2 from 0.31 to 0.7, stage 3 from 0.7 quality" in routed
    )
    assert "judge" not in routed
    assert "The plan has 1.34 times the p95 of deepseek-r1 alone" in routed
    assert "cascadia-fast compare FILE --systems ours,routellm" in routed
    assert "cascadia-fast plan" not in routed
    verified = said("automix", VERIFIED, skipped_models=("llama-3.1-8b",))
    assert (
        "router by the share of 8 votes of stage 1 for its own answer, simulated with AUC 0.7: stages 1 then 3 below "
        "0.25, stages 1 then 2 from 0.25 to 0.75, stage 1 from 0.75 quality" in verified
    )
    assert "llama-3.1-8b: automix does without" in verified
    learned = said("frugalgpt", LEARNED, batching="prompts_first")
    assert "thresholds stage 1 keeps answers scored 62.5 or more" in learned
    assert "scores are those of a learned scorer, simulated with AUC 0.8; it takes no time and costs nothing" in learned
    assert "batching whole prompts first: a step reads prompts or decodes, never both quality" in learned
    assert "(earlier stages included)" in learned
    geared = said("cascadeserve", GEARED)
    assert (
        "gears up to 0.5/s stage 3 up to 1.25/s stages 1-2-3 at 87 / never beyond stages 1-2 at 55 by the rate of the "
        "last 13.5 s; a gear for less load waits until the rate is 8 times the requests that queue" in geared
    )
    assert "judge external, 270 ms per call" in geared
    assert "batching" not in geared
    alone = dataclasses.replace(GEARED, gears=(Gear(None, (0, 1), (55.0,)),))
    assert "gears at any rate stages 1-2 at 55 quality" in said("cascadeserve", alone)
    sent = dataclasses.replace(ROUTED, router=Router((), (2,)))
    assert "with AUC 0.8: stage 2 quality" in said("routellm", sent)


def test_routing_in_one_line() -> None:
    assert routing_text(deepseek_plan()) == "accept at 87 / never"
    assert routing_text(one_stage_plan()) == "one model"
    lines = [routing_text(baseline_plan("other", routing)) for routing in (LEARNED, ROUTED, VERIFIED, GEARED)]
    assert lines == [
        "learned score: accept at 62.5 / never",
        "probability that the largest model wins: stage 1 | 0.31 | stage 2 | 0.7 | stage 3",
        "verification by stage 1: stages 1-3 | 0.25 | stages 1-2 | 0.75 | stage 1",
        "3 gears: up to 0.5/s stage 3; up to 1.25/s stages 1-2-3 at 87 / never; beyond stages 1-2 at 55",
    ]


def test_stages_that_nothing_reaches_show_no_numbers() -> None:
    *served, last = deepseek_plan().stages
    idle = dataclasses.replace(last, reach=0.0, rate_per_s=0.0, p95_s=0.0, utilization=0.0, mean_batch=0.0)
    text = squeezed(deepseek_plan(stages=(*served, idle)).summary(width=160))
    assert "deepseek-r1 int4 20 1 × tp4 pp5 0.0 % – – – –" in text
    assert "at stage 3" not in text


def test_a_single_model_that_is_better_is_named_first() -> None:
    plan = deepseek_plan()
    assert plan.best_single_model is not None
    faster = dataclasses.replace(plan.best_single_model, p95_s=200.0, gpus=27, cost_usd_per_hour=64.9)
    said = "deepseek-r1 alone is better here: quality 86.3 against 80.39, p95 200 s against 242 s, at the same cost. "
    assert f"{said}Binding stage: 3" in squeezed(deepseek_plan(best_single_model=faster).summary())
    cheaper = dataclasses.replace(faster, cost_usd_per_hour=32.4)
    assert "242 s, at 0.50 times the cost. Binding" in squeezed(deepseek_plan(best_single_model=cheaper).summary())
    for change in ({"quality": 80.1}, {"p95_s": 250.0}, {"cost_usd_per_hour": 66.0}):
        worse = dataclasses.replace(faster, **change)  # type: ignore[arg-type]
        assert "is better here" not in deepseek_plan(best_single_model=worse).summary()
    unpriced = dataclasses.replace(faster, cost_usd_per_hour=None, p95_s=250.0)
    assert "deepseek-r1 alone at the same cost. Binding" in squeezed(
        deepseek_plan(best_single_model=unpriced).summary()
    )


def test_a_plan_of_the_best_single_model_is_not_compared_with_itself() -> None:
    plan = one_stage_plan(best_single_model=SingleModel("tiny", 1, 3.0, 61.0, None, False))
    assert "tiny alone" not in plan.summary()
    other = one_stage_plan(best_single_model=SingleModel("huge", 1, 3.0, 61.0, None, False))
    assert "huge alone" in other.summary()


def test_a_second_solver_that_differs_is_quoted() -> None:
    def check(status: str, objective: float | None) -> str:
        proof = HighsProof(status, objective, 3, 0.0005)
        solver = dataclasses.replace(deepseek_plan().solver, highs=proof)
        return squeezed(deepseek_plan(solver=solver).summary(width=160))

    assert "check HiGHS finds 130 s, status optimal (3 columns, 500 µs)" in check("optimal", 130.0)
    assert "check HiGHS ends with status infeasible and no result" in check("infeasible", None)


def test_no_command_proposes_more_gpus_than_can_be_planned() -> None:
    (pool,) = deepseek_plan().pools
    for gpus, proposed in ((27, True), (600_000, False)):
        stages = tuple(dataclasses.replace(stage) for stage in deepseek_plan().stages)
        plan = deepseek_plan(pools=(dataclasses.replace(pool, gpus=gpus, idle_gpus=()),), stages=stages)
        assert (f"--gpus {2 * gpus}" in plan.summary()) == proposed


@pytest.mark.parametrize("width", [60, 80])
def test_narrow_summaries_keep_models_and_replicas_readable(width: int) -> None:
    text = deepseek_plan().summary(width)
    assert "1 × tp4 + 2 × tp1" in text
    for end in ("n-7b ", "a-70b ", "seek-r1 "):
        assert end in text
    assert ("utilised" in text.splitlines()[3]) == (width == 80)


def test_narrow_tables_keep_models_apart() -> None:
    rows = tuple((f"deepseek-r1-distill-llama-70b ({weights})", "1") for weights in ("int4", "bf16", "fp8"))
    table = Table(("model", "GPUs"), rows, frozenset({"model"})).fitted(26, 2)
    assert len({row[0] for row in table.rows}) == 3
    assert all(len(row[0]) == 20 and row[0].startswith("deeps") and row[0].endswith(")") for row in table.rows)
    tops = tuple((f"{name}-instruct-of-some-length", "1") for name in ("alpha", "alpine"))
    assert len({row[0] for row in Table(("model", "GPUs"), tops, frozenset({"model"})).fitted(26, 2).rows}) == 2


def test_one_stage_without_latency_or_price() -> None:
    text = squeezed(one_stage_plan().summary())
    assert "thresholds" not in text
    assert "judge" not in text
    assert "not used deepseek-r1: no request" in text
    assert "p95 unbounded" in text
    assert "this plan 1 unbounded 61 – end to end" in text


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"quality": 71.0, "feasible": False}, "best single model, below the floor"),
        ({"p95_s": None, "feasible": False}, "best single model, cannot carry the rate"),
    ],
)
def test_infeasible_single_models_are_said_to_be(changes: dict[str, object], note: str) -> None:
    single = deepseek_plan().best_single_model
    assert single is not None
    text = squeezed(deepseek_plan(best_single_model=dataclasses.replace(single, **changes)).summary())  # type: ignore[arg-type]
    assert note in text
    assert "No single model meets the floor at this rate. Binding stage: 3" in text


def test_alternating_shows_its_rounds_and_simulated_judges_their_auc() -> None:
    text = squeezed(
        deepseek_plan(solver=alternating_report(), judge=JudgePlan("simulated", 0.0, 0.002, 0.85)).summary(width=160)
    )
    assert "is unknown; 2 rounds, 10 ms" in text
    assert "simulated with AUC 0.85, instant, 0.002 USD per call" in text


def test_pools_shapes_judge_and_constraints_are_said() -> None:
    text = squeezed(two_pools_plan().summary(width=200))
    for fact in (
        "3 stages on 32 h100-sxm-80gb + 8 l40s, quality floor 80, objective min_cost: 70.20 USD per hour",
        "6 1 × tp4 (h100) + 2 × tp1 (l40s) 64.7 %",
        "judge llama-3.1-8b fp8 1 1 × tp1 (l40s) – 2.47/s 270 ms 31.0 % –",
        "quality 80.39, floor 80 met with 95 % confidence: 80.05 or more; 95 % interval",
        "deadline end-to-end p95 of at most 260 s: met with 242 s, 18.3 s (7.04 %) left",
        "budget at most 90.00 USD per hour: met with 70.20, 19.80 (22 %) left",
        "survives the loss of any one replica: its deadline is still met",
        "28 of 40 used (25 of 32 h100, 3 of 8 l40s); 12 idle",
        "not used qwen2.5-32b: the best plan found does without",
        "Slowest stage: 3 (deepseek-r1), p95 135 s",
        "judge hosted, llama-3.1-8b (fp8): 2.47 calls/s, 270 ms per call (p95)",
        "exact, the best found in 60 s, on all pools; no plan has a cost below 69.90 USD per hour, 0.427 % from this "
        "one; 18 evaluated",
        "HiGHS finds the same 70.20 USD per hour (3 columns, 500 µs)",
        "(per request: 0.473 GPU-s at stage 1, 5.2 GPU-s at stage 2, 25.7 GPU-s at stage 3, 0.126 GPU-s at the judge)",
    ):
        assert fact in text
    assert "--gpus" not in text.split("Next:")[1]


def test_models_that_are_skipped_are_said_to_help_nothing() -> None:
    solver = dataclasses.replace(deepseek_plan().solver, subsets=7)
    text = squeezed(deepseek_plan(solver=solver, skipped_models=("tiny",)).summary(width=200))
    assert "not used tiny: no plan with it is better" in text
    text = squeezed(deepseek_plan(solver=solver, skipped_models=("tiny", "small")).summary(width=200))
    assert "not used tiny, small: no plan with any of them is better" in text


def test_missed_deadlines_and_what_nothing_bounds_are_said() -> None:
    def deadline(**changes: object) -> str:
        return squeezed(deepseek_plan(slo_metric="ttft_p95", **changes).summary(width=200))

    assert "final answer's first token of at most 1.5 s: missed with 1.9 s, 400 ms too much" in deadline(slo_s=1.5)
    unknown = dataclasses.replace(deepseek_plan().predicted, ttft_p95_s=None)
    assert "not met, because nothing bounds it" in deadline(slo_s=1.5, predicted=unknown)
    stopped = dataclasses.replace(alternating_report(), complete=False)
    assert "stopped at its time limit, and nothing is known of better plans; 2 rounds" in deadline(
        slo_s=3.0, solver=stopped, status="feasible"
    )
    survivor = deepseek_plan(survive="node").summary(width=200)
    assert "the loss of any one node: the others still carry the load" in survivor


def test_the_largest_rate_is_said_to_be_one() -> None:
    plan = deepseek_plan(objective="max_rate", objective_value=1.5, solver=alternating_report())
    text = squeezed(plan.summary(width=200))
    assert "objective max_rate: 1.5 requests/s" in text
    assert "1.5 requests/s is the largest that meets every constraint; this plan carries at most 2.71 within" in text
    unpriced = dataclasses.replace(
        plan.predicted, cost_usd_per_hour=None, usd_per_request=None, energy_j_per_request=None
    )
    assert "cost unknown, as not every pool has a price work" in squeezed(
        deepseek_plan(predicted=unpriced).summary(width=200)
    )


def test_reweighted_requests_state_what_they_are_worth() -> None:
    workload = dataclasses.replace(deepseek_plan().workload, effective_size=20.4, headroom=1.2)
    text = squeezed(deepseek_plan(workload=workload).summary(width=160))
    assert "from 51 scored requests (worth 20.4 after reweighting)" in text
    assert "planned (mean, headroom × 1.2)" in text


def test_next_commands_keep_what_was_asked_and_change_one_thing() -> None:
    asked = {"--q-min": "3", "-o": "out.json", "--gpus": "27"}
    text = summarize(deepseek_plan(q_min=3.0), command=("cascadia-fast", "plan", "a.yaml"), flags=asked)
    assert "cascadia-fast plan a.yaml --gpus 27 --q-min 0 " in text
    assert "cascadia-fast explain out.json " in text
    floorless = summarize(deepseek_plan(q_min=0.0), command=("cascadia-fast", "plan"))
    assert "--method alternating" in floorless
    assert "--write-example DIR" in floorless


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "unbounded"),
        (0.0000005, "0.5 µs"),
        (0.27, "270 ms"),
        (61.24, "61.2 s"),
        (599.0, "599 s"),
        (750.0, "12.5 min"),
        (36000.0, "10 h"),
        (3.6e7, "10,000 h"),
        (0.9996, "1 s"),
        (0.00099996, "1 ms"),
        (599.9, "10 min"),
        (7199.0, "2 h"),
        (1e-20, "0 µs"),
        (1e12, "277,777,778 h"),
    ],
)
def test_durations_are_humane(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(5.0, "5.00 s"), (0.27, "270 ms"), (61.0, "61.0 s"), (0.9996, "1.00 s")])
def test_durations_in_columns_keep_their_zeros(seconds: float, text: str) -> None:
    assert duration(seconds, zeros=True) == text


@pytest.mark.parametrize(
    ("objective", "value", "text"),
    [
        ("max_stage_p95", 61.24, "61.2 s"),
        ("ttft_p95", None, "unbounded"),
        ("min_cost", 1234.5, "1,234.50 USD per hour"),
        ("min_cost", None, "–"),
        ("max_rate", 2.714, "2.71 requests/s"),
        ("max_rate", None, "–"),
        ("min_gpus", 1.0, "1 GPU"),
        ("min_gpus", 1024.0, "1,024 GPUs"),
    ],
)
def test_objectives_have_their_units(objective: str, value: float | None, text: str) -> None:
    assert objective_text(objective, value) == text


@pytest.mark.parametrize(
    ("joules", "text"), [(0.5, "0.5 J"), (999.0, "999 J"), (999.6, "1 kJ"), (11107.0, "11.1 kJ"), (2.4e6, "2.4 MJ")]
)
def test_energies_are_humane(joules: float, text: str) -> None:
    assert energy(joules) == text
