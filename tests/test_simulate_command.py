"""``cascadia-fast simulate`` as users run it."""

from __future__ import annotations

import json
import os
import pty
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()"]
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}


def run(*arguments: str | Path, cwd: Path | None = None, command: str = "simulate") -> subprocess.CompletedProcess[str]:
    words = [*PROGRAM, command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False, timeout=120)


def simulated(*arguments: str | Path, cwd: Path | None = None) -> dict[str, Any]:
    result = run(*arguments, "--json", cwd=cwd)
    assert result.returncode == 0, result.stderr

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


def assert_one_error_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a problem of its own (not the built-in example's bytes), its files, and its plan."""
    directory = tmp_path_factory.mktemp("planned")
    assert run("--write-example", directory, command="plan").returncode == 0
    problem = yaml.safe_load((directory / "problem.yaml").read_text(encoding="utf-8"))
    (directory / "problem.yaml").unlink()
    (directory / "cascade.yaml").write_text(yaml.safe_dump(problem), encoding="utf-8")
    (directory / "another.yaml").write_text("unrelated: true\n", encoding="utf-8")
    result = run("cascade.yaml", "-o", "plan.json", cwd=directory, command="plan")
    assert result.returncode == 0, result.stderr
    return directory


@pytest.fixture
def folder(planned: Path, tmp_path: Path) -> Path:
    """A copy of it to write to."""
    return Path(shutil.copytree(planned, tmp_path / "folder"))


def test_without_a_plan_the_example_is_planned_and_simulated() -> None:
    result = run("--requests", "3000")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    assert result.stdout.startswith(
        "No PLAN given: planning and simulating the built-in example.\n\nSimulation of plan "
    )
    for words in ("3,000 requests at 60 per second (trace)", "llama-3.1-8b", "end to end p95", "MSER-5", "predicted"):
        assert words in result.stdout
    for line in result.stdout.split("Next:\n")[1].strip().splitlines():
        assert line.strip().startswith("cascadia-fast simulate --requests") or "quarter" in line or "picture" in line


def test_json_goes_to_stdout_and_notes_to_stderr() -> None:
    result = run("--requests", "50", "--json")
    assert result.returncode == 0
    assert "built-in example" in result.stderr
    assert json.loads(result.stdout)["settings"]["requests"] == 50


def test_the_plans_own_problem_is_found_by_its_hash(planned: Path, tmp_path: Path) -> None:
    beside = simulated("plan.json", "--requests", "500", cwd=planned)
    from_elsewhere = simulated(planned / "plan.json", "--requests", "500", cwd=tmp_path)
    named = simulated("plan.json", "--problem", "cascade.yaml", "--requests", "500", cwd=planned)
    assert beside == from_elsewhere == named
    moved = tmp_path / "plan.json"
    shutil.copy(planned / "plan.json", moved)
    assert simulated(moved, "--requests", "500", cwd=planned) == beside


def test_a_plan_of_the_built_in_example_needs_no_file(tmp_path: Path) -> None:
    assert run("-o", "plan.json", cwd=tmp_path, command="plan").returncode == 0
    found = simulated("plan.json", "--requests", "100", cwd=tmp_path)
    assert found["requests"]["served"] == 100


def test_what_options_changed_in_the_problem_is_kept(folder: Path) -> None:
    result = run("cascade.yaml", "--gpus", "48", "--rate", "80", "-o", "other.json", cwd=folder, command="plan")
    assert result.returncode == 0, result.stderr
    found = simulated("other.json", "--requests", "200", cwd=folder)
    assert found["settings"]["rate_per_s"] == pytest.approx(80)
    named = simulated("other.json", "--problem", "cascade.yaml", "--requests", "200", cwd=folder)
    assert named == found


def test_a_changed_problem_file_is_named(folder: Path) -> None:
    with (folder / "cascade.yaml").open("a", encoding="utf-8") as file:
        file.write("# changed\n")
    assert_one_error_line(run("plan.json", cwd=folder), "cascade.yaml has changed since plan.json was made")
    given = run("plan.json", "--problem", "cascade.yaml", cwd=folder)
    assert_one_error_line(given, "cascade.yaml has changed since plan")


def test_a_changed_table_is_named(folder: Path) -> None:
    with (folder / "requests.csv.gz").open("ab") as file:
        file.write(b"\0" * 8)
    result = run("plan.json", cwd=folder)
    assert_one_error_line(result, "requests.csv.gz has changed since plan")


def test_a_missing_problem_file_is_named(folder: Path) -> None:
    (folder / "cascade.yaml").unlink()
    assert_one_error_line(run("plan.json", cwd=folder), "cascade.yaml, from which plan.json was made", "--problem")


def test_a_plan_of_another_problem_is_refused(folder: Path) -> None:
    problem = yaml.safe_load((folder / "cascade.yaml").read_text(encoding="utf-8"))
    problem["cascade"][2]["weights"] = "bf16"
    (folder / "other.yaml").write_text(yaml.safe_dump(problem), encoding="utf-8")
    result = run("plan.json", "--problem", "other.yaml", cwd=folder)
    assert_one_error_line(result, "plan.stages[2].weights is 'fp8' and the problem has 'bf16'")


def test_options_reach_the_run(planned: Path) -> None:
    options = ["--requests", "300", "--seed", "7", "--rate", "20", "--arrivals", "gamma", "--dispatch", "round_robin"]
    options += ["--batching", "prompts_first", "--admission", "shortest_first", "--prefix-hits", "0.5"]
    options += ["--timeout", "100", "--slo", "30", "--judge-cv", "0.5"]
    found = simulated("plan.json", *options, cwd=planned)["settings"]
    assert found == {
        "requests": 300,
        "seed": 7,
        "rate_per_s": 20.0,
        "arrivals": "gamma",
        "concurrency": None,
        "dispatch": "round_robin",
        "batching": "prompts_first",
        "admission": "shortest_first",
        "prefix_hit_share": 0.5,
        "timeout_s": 100.0,
        "slo_s": 30.0,
        "judge_cv": 0.5,
    }
    closed = simulated("plan.json", "--requests", "300", "--concurrency", "5", cwd=planned)
    assert closed["settings"]["concurrency"] == 5
    assert closed["predictions"] == []


def test_a_trace_and_a_timeline_are_written(folder: Path) -> None:
    result = run("plan.json", "--requests", "300", "--trace", "run.csv", "--timeline", "run.html", cwd=folder)
    assert result.returncode == 0, result.stderr
    lines = (folder / "run.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 301
    assert lines[0].startswith('"request","scored_request","status","path"')
    assert (folder / "run.html").read_text(encoding="utf-8").lstrip().lower().startswith("<!doctype html>")
    again = run("plan.json", "--requests", "300", cwd=folder)
    assert again.stdout.replace("--timeline timeline.html", "") == result.stdout.replace("--timeline timeline.html", "")


def test_printed_next_commands_work(folder: Path) -> None:
    result = run("plan.json", "--requests", "400", cwd=folder)
    commands = result.stdout.split("Next:\n")[1].strip().splitlines()
    assert len(commands) == 3
    for line in commands:
        words = line.strip().split("  ")[0].split()
        assert words[:2] == ["cascadia-fast", "simulate"]
        again = run(*words[2:], cwd=folder)
        assert again.returncode == 0, again.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.json"], ["nowhere.json cannot be read"]),
        ([""], ["PLAN is empty"]),
        (["cascade.yaml"], ["cascade.yaml is not JSON"]),
        (["plan.json", "--problem", "nowhere.yaml"], ["nowhere.yaml cannot be read"]),
        (["plan.json", "--requests", "0"], ["error: --requests is 0; it must be a whole number from 1 to 16,000,000"]),
        (["plan.json", "--requests", "many"], ["error: --requests is 'many'; give a whole number"]),
        (["plan.json", "--requests", "16000001"], ["error: --requests is 16000001"]),
        (["plan.json", "--seed", "-1"], ["error: --seed is -1"]),
        (["plan.json", "--rate", "fast"], ["error: --rate is 'fast'; give a number"]),
        (["plan.json", "--rate", "nan"], ["error: --rate is nan"]),
        (["plan.json", "--rate", "-2"], ["error: --rate is -2"]),
        (["plan.json", "--arrivals", "posson"], ["error: --arrivals is 'posson'; did you mean 'poisson'?"]),
        (["plan.json", "--concurrency", "0"], ["error: --concurrency is 0"]),
        (["plan.json", "--concurrency", "2", "--rate", "1"], ["concurrency", "contradict"]),
        (["plan.json", "--dispatch", "lucky"], ["error: --dispatch is 'lucky'"]),
        (["plan.json", "--prefix-hits", "2"], ["error: --prefix-hits is 2"]),
        (["plan.json", "--timeout", "0"], ["error: --timeout is 0"]),
        (["plan.json", "--slo", "nan"], ["error: --slo is nan"]),
        (["plan.json", "--trace", "run.xlsx"], ["run.xlsx has no known suffix", ".parquet"]),
        (["plan.json", "--trace", "-"], ["--trace is '-'"]),
        (["plan.json", "--trace", "plan.json"], ["is a file that the simulation reads"]),
        (["plan.json", "--timeline", "requests.csv.gz"], ["is a file that the simulation reads"]),
        (["plan.json", "--timeline", "nowhere/run.html"], ["--timeline nowhere/run.html"]),
        (["plan.json", "--trace", "a.csv", "--timeline", "./a.csv"], ["are both a.csv"]),
    ],
)
def test_bad_arguments_get_one_sentence_and_nothing_is_written(
    arguments: list[str], words: list[str], planned: Path
) -> None:
    before = sorted(planned.iterdir())
    assert_one_error_line(run(*arguments, cwd=planned), *words)
    assert sorted(planned.iterdir()) == before


def test_a_plan_of_traffic_in_memory_needs_a_problem(folder: Path) -> None:
    code = (
        "import cascadia_fast as cf; problem = cf.Problem.read('cascade.yaml'); "
        "cf.plan(problem.replace(workload=problem.workload)).write('memory.json')"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True)
    assert_one_error_line(run("memory.json", cwd=folder), "made from a problem in memory", "--problem")
    assert run("memory.json", "--problem", "cascade.yaml", "--requests", "10", cwd=folder).returncode == 0


def test_help_describes_the_json_and_imports_nothing_heavy() -> None:
    text = run("--help").stdout
    for words in ("--requests", "--timeline", "smallest_scale_95", "preemptions_per_visit", "130 interrupted"):
        assert words in text
    code = (
        "import sys\nfrom cascadia_fast.cli.program import app\n"
        "try:\n app(['simulate', '--help'])\nexcept SystemExit:\n pass\n"
        "print([m for m in ('numpy', 'numba', 'highspy', 'yaml', 'rich', 'orjson') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def documented_fields() -> str:
    return run("--help").stdout


def test_every_field_of_the_json_is_documented() -> None:
    text = documented_fields()
    found = simulated("--requests", "200")
    names = {*found, *found["requests"], *found["measured"], *found["slo"], *found["stages"][0]}
    names |= {*found["predictions"][0], *found["latency_s"], *found["latency_s"]["p50"]}
    assert {name for name in names if name not in text} == set()


def interrupted_after(marker: bytes, *arguments: str) -> tuple[int, str, float]:
    """Press Ctrl-C on a terminal once it shows something; returns exit code, what was printed, and the seconds left."""
    master, slave = pty.openpty()
    words = [*PROGRAM, "simulate", *arguments]
    process = subprocess.Popen(
        words, stdin=slave, stdout=subprocess.PIPE, stderr=slave, env={**ENVIRONMENT, "TERM": "xterm"}
    )
    os.close(slave)
    shown = b""
    try:
        while marker not in shown:
            shown += os.read(master, 4096)
        process.send_signal(signal.SIGINT)
        started_s = time.monotonic()
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
        os.close(master)
    return process.returncode, output.decode(), time.monotonic() - started_s


def test_ctrl_c_prints_what_was_simulated_so_far() -> None:
    code, output, elapsed_s = interrupted_after(b"requests are done", "--requests", "4000000")
    assert code == 130
    assert "note         Interrupted: " in output
    assert " of 4,000,000 requests are done" in output
    assert "end to end p95" in output
    assert elapsed_s < 20  # a second on a machine of one's own


def test_ctrl_c_before_the_simulation_ends_quietly() -> None:
    code, output, _ = interrupted_after(b"reading", "--requests", "4000000")
    assert code == 130
    assert "Traceback" not in output
