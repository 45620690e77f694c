"""``cascadia-fast explain`` as users run it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cascadia_fast.blueprint import Plan
from cascadia_fast.cli.planned import as_planned
from cascadia_fast.example import EXAMPLE_DIR
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem

PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The example's files, and a plan of them with options that change the goal."""
    directory = tmp_path_factory.mktemp("explain")
    shutil.copytree(EXAMPLE_DIR, directory, dirs_exist_ok=True)
    with (directory / "problem.yaml").open("a") as file:
        file.write("# another hash than the built-in example's\n")
    options = ["--gpus", "40", "--rate", "50", "--q-min", "74", "--objective", "min_cost", "--slo", "150"]
    result = run("plan", "problem.yaml", *options, "-o", "plan.json", cwd=directory)
    assert result.returncode == 0, result.stderr
    return directory


def test_the_problem_is_the_one_that_was_planned(folder: Path) -> None:
    plan = Plan.read(folder / "plan.json")
    problem = as_planned(Problem.read(folder / "problem.yaml"), plan)
    assert (problem.gpus, problem.goal.q_min, problem.goal.objective, problem.goal.slo_s) == (
        40,
        74.0,
        "min_cost",
        150.0,
    )
    assert problem.workload.arrivals.rate_per_s == pytest.approx(50.0)
    assert Planner(problem).plan().objective_value == plan.objective_value


def test_text_finds_the_problem_and_says_what_binds(folder: Path) -> None:
    result = run("explain", "plan.json", cwd=folder)
    assert result.returncode == 0, result.stderr
    for words in (
        "objective min_cost",
        "What holds it back:",
        "What a little more, or less, would buy:",
        "one more h100-sxm-80gb",
        "10 % less load",
        "a 10 % later deadline",
        "The best plans not chosen:",
        "What is proved:",
    ):
        assert words in result.stdout
    assert "Planned again" not in result.stdout


def test_json_holds_what_the_text_says(folder: Path) -> None:
    result = run("explain", "plan.json", "--json", "--problem", "problem.yaml", cwd=folder)
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    plan = Plan.read(folder / "plan.json")
    assert (found["plan_id"], found["planned_again"]) == (plan.plan_id, None)
    assert found["chosen"]["objective_value"] == plan.objective_value
    cascades = [tuple(other["models"]) for other in found["alternatives"] if other["kind"] == "models"]
    chosen = tuple(stage.model for stage in plan.stages)
    assert len({*cascades, chosen}) == len(cascades) + 1 == 7
    # What was not chosen is no better, and what is relaxed no worse.
    value = found["chosen"]["objective_value"]
    others = [other["best"] for other in found["alternatives"] if other["best"]]
    assert others
    assert all(other["objective_value"] >= value * (1 - 1e-9) for other in others)
    assert all(what_if["best"]["objective_value"] <= value * (1 + 1e-9) for what_if in found["what_ifs"])
    assert all((other["best"] is None) != (other["reason"] is None) for other in found["alternatives"])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["PLAN"]),
        ([""], ["PLAN is empty; give the path of a plan.json"]),
        (["nowhere.json"], ["nowhere.json cannot be read"]),
        (["problem.yaml"], ["is not JSON"]),
        (["plan.json", "--problem", "nowhere.yaml"], ["nowhere.yaml"]),
    ],
)
def test_bad_arguments_get_one_sentence(arguments: list[str], words: list[str], folder: Path) -> None:
    result = run("explain", *arguments, cwd=folder)
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert all(word in line for word in words)


def test_plans_of_an_older_version_are_refused(folder: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.json"
    old.write_text((folder / "plan.json").read_text().replace('"schema_version": 3', '"schema_version": 1'))
    result = run("explain", old)
    assert result.returncode == 2
    assert "schema_version 1 and this version of cascadia-fast reads 3; plan again" in result.stderr
