"""``cascadia-fast plan`` with goals, fronts and sweeps, as users run it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from cascadia_fast.blueprint import Plan

PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()"]


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def test_options_set_goal_and_constraints(tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    arguments = ["--objective", "min_cost", "--slo", "120", "--slo-metric", "max_stage_p95", "--budget", "120"]
    arguments += ["--no-skip", "--q-confidence", "0.8", "--q-min", "72", "--time-limit", "30"]
    result = run("plan", *arguments, "-o", output)
    assert result.returncode == 0, result.stderr
    plan = Plan.read(output)
    assert (plan.objective, plan.slo_s, plan.slo_metric) == ("min_cost", 120.0, "max_stage_p95")
    assert (plan.budget_usd_per_hour, plan.q_confidence, plan.q_min) == (120.0, 0.8, 72.0)
    assert plan.solver.subsets == 1
    assert plan.objective_value == plan.predicted.cost_usd_per_hour
    assert plan.latency_s is not None
    assert plan.latency_s <= 120.0
    assert "deadline" in result.stdout
    assert "budget" in result.stdout
    # What is proposed next keeps all of it.
    assert "--no-skip" in result.stdout
    assert "--slo 120 --slo-metric max_stage_p95 --budget 120" in result.stdout


def test_a_front_is_printed_written_and_drawn(tmp_path: Path) -> None:
    arguments: list[str | Path] = ["--pareto", "latency,quality", "--picture", tmp_path / "front.html"]
    printed = run("plan", *arguments, "-o", tmp_path / "front.csv")
    assert printed.returncode == 0, printed.stderr
    note, text = printed.stdout.split("\n\n", 1)
    assert note == "No FILE given: planning the built-in example."
    assert text.startswith("Front of latency (p95 of the slowest stage) and quality on 32 h100-sxm-80gb")
    document = json.loads(run("plan", "--pareto", "latency,quality", "--json").stdout)
    points = document["points"]
    rows = (tmp_path / "front.csv").read_text().splitlines()
    assert len(rows) == 1 + len(points)
    assert "floor 76" in (tmp_path / "front.html").read_text()
    # A front is one: latency and quality rise together.
    for before, after in pairwise(points):
        assert before["latency_s"] < after["latency_s"]
        assert before["quality"] < after["quality"]
    # The plan of a floor is the front's first point that meets it.
    plan = json.loads(run("plan", "--json").stdout)
    first = next(point for point in points if point["quality"] >= 76 - 1e-9)
    assert first["latency_s"] == pytest.approx(plan["latency_s"], rel=1e-9)
    floored = json.loads(run("plan", "--pareto", "latency,quality", "--q-min", "76", "--json").stdout)
    assert floored["points"] == [point for point in points if point["quality"] >= 76 - 1e-9]


def test_a_sweep_of_the_judge_is_printed_and_written(tmp_path: Path) -> None:
    output = tmp_path / "sweep.json"
    result = run("plan", "--judge-auc", "0.8..0.9:0.1", "-o", output)
    assert result.returncode == 0, result.stderr
    assert "Judges simulated from the measured quality" in result.stdout
    assert "The cascade beats the best single model" in result.stdout
    assert [row["auc"] for row in json.loads(output.read_text())["rows"]] == [0.8, 0.9]
