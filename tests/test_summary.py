"""What a summary must say, and that it fits where it is shown."""

from __future__ import annotations

import dataclasses
import io
import math
import re

import pytest
from builders import alternating_report, deepseek_plan, one_stage_plan

from cascadia_fast.blueprint import JudgePlan, Plan, Routing
from cascadia_fast.summary import duration, show, summarize

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
        "deepseek-r1-distill-llama-70b bf16 6 1 × tp4 + 2 × tp1 64.7 % 0.97/s 88.4 s 84 % 22.2 of 256",
        "deepseek-r1 int4 20 1 × tp4 pp5 47 % 0.7/s 135 s 90 % 61 of 256",
        "stage 1 accepts a score of 87 or more (any threshold above 86 up to 88 routes these requests alike)",
        "stage 2 never accepts",
        "80.39, floor 80; 95 % interval 74.1 to 86 from 51 scored requests",
        "1.5 requests/s planned (mean); this plan carries at most 2.71",
        "predicted end to end p50 92.5 s, p95 242 s; slowest stage p95 135 s; time to first token p95 1.9 s",
        "27 of 32 used, 64.80 USD per hour; 5 idle",
        "external, 270 ms per call",
        "exact, optimal for this model, this grid and this sample; 203 distinct routings, 18 evaluated, 185 pruned",
        "optimal at 135 s on 3 columns, 500 µs",
        "roofline-2026-11, provisional",
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
    assert "stage 1 never accepts (nor would it at any threshold above 99)" in thresholds(never)
    assert "stage 2 accepts a score of 0 or more (any threshold up to 12.5 routes these requests alike)" in thresholds(
        never
    )
    open_end = Routing("cascade", (95.0, 3.0), ((94.0, math.inf), (None, math.inf)))
    assert "stage 1 accepts a score of 95 or more (any threshold above 94 routes" in thresholds(open_end)
    assert "stage 2 accepts a score of 3 or more quality" in thresholds(open_end)


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
    assert "2 rounds, objective J overload → 140" in text
    assert "simulated with AUC 0.85, 0 µs, 0.002 USD per call" in text


def test_reweighted_requests_state_what_they_are_worth() -> None:
    workload = dataclasses.replace(deepseek_plan().workload, effective_size=20.4, headroom=1.2)
    text = squeezed(deepseek_plan(workload=workload).summary(width=160))
    assert "from 51 scored requests (worth 20.4 after reweighting)" in text
    assert "planned (mean, headroom × 1.2)" in text


def test_next_commands_keep_what_was_asked_and_change_one_thing() -> None:
    asked = {"--q-min": "3", "-o": "out.json", "--gpus": "27"}
    text = summarize(deepseek_plan(q_min=3.0, idle_gpus=()), command=("cascadia-fast", "plan", "a.yaml"), flags=asked)
    assert "cascadia-fast plan a.yaml --gpus 27 --q-min 0 " in text
    assert "cascadia-fast plan a.yaml --q-min 3 --gpus 27 --rate 1.88 " in text
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
    ],
)
def test_durations_are_humane(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
