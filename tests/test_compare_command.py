"""``cascadia-fast compare`` as users run it."""

from __future__ import annotations

import csv
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

from cascadia_fast.cli.compare import case_names
from cascadia_fast.errors import InputError

PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()"]
ENVIRONMENT = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
# The least that still compares: one system beside ours, one seed, one rate, few requests, one process.
QUICK = ("--systems", "single", "--seeds", "1", "--requests", "400", "--rates", "0.5x", "--jobs", "1")


def run(*arguments: str | Path, cwd: Path | None = None, command: str = "compare") -> subprocess.CompletedProcess[str]:
    words = [*PROGRAM, command, *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, cwd=cwd, env=ENVIRONMENT, check=False, timeout=300)


def assert_one_error_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


def strict(text: str | bytes) -> dict[str, Any]:
    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    found: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return found


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in example's files, to be copied."""
    directory = tmp_path_factory.mktemp("example")
    assert run("--write-example", directory, command="plan").returncode == 0
    return directory


@pytest.fixture
def folder(example: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(example, tmp_path / "folder"))


@pytest.fixture(scope="module")
def compared(example: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two cases, one of a name in another alphabet, and the results of comparing on both."""
    directory = Path(shutil.copytree(example, tmp_path_factory.mktemp("compared") / "folder"))
    problem = yaml.safe_load((directory / "problem.yaml").read_text(encoding="utf-8"))
    problem["goal"]["q_min"] = 50.0
    for name in ("spät = 日本.yaml", "b.yaml"):
        (directory / name).write_text(yaml.safe_dump(problem), encoding="utf-8")
    result = run("spät = 日本.yaml", "b.yaml", *QUICK, "--q", "b=50,53", "--out", "out", cwd=directory)
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    (directory / "stdout.txt").write_text(result.stdout, encoding="utf-8")
    return directory


def test_everything_is_written_and_the_text_says_where(compared: Path) -> None:
    assert {path.name for path in (compared / "out").iterdir()} == {
        "cells.jsonl",
        "cells.csv",
        "results.json",
        "report.html",
    }
    text = (compared / "stdout.txt").read_text(encoding="utf-8")
    assert "2 systems, 2 cases, 1 seed, 400 requests per trial" in text
    assert "spät = 日本: llama-3.1-8b → llama-3.1-70b → llama-3.1-405b on 32 × h100-sxm-80gb" in text
    assert "q 50  q 50 p95" in text
    assert "keeps up  scale vs ours  p95 vs ours" in text
    assert f"The report is {Path('out') / 'report.html'}" in text


def test_results_and_tables_hold_all_cells(compared: Path) -> None:
    results = strict((compared / "out" / "results.json").read_bytes())
    assert [case["name"] for case in results["cases"]] == ["spät = 日本", "b"]
    assert [case["q"] for case in results["cases"]] == [[50.0], [50.0, 53.0]]
    assert [case["rates"] for case in results["cases"]] == [[30.0], [30.0]]
    assert [system["name"] for system in results["systems"]] == ["ours", "single"]
    assert results["made_by"]["command"].startswith("cascadia-fast compare 'spät = 日本.yaml' b.yaml --systems single")
    assert {cell["status"] for cell in results["cells"]} <= {"served", "unstable", "no_plan"}
    with (compared / "out" / "cells.csv").open(encoding="utf-8", newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == len(results["cells"]) == len((compared / "out" / "cells.jsonl").read_text().splitlines())
    assert {line["case"] for line in lines} == {"spät = 日本", "b"}


def test_the_report_stands_alone(compared: Path) -> None:
    page = (compared / "out" / "report.html").read_text(encoding="utf-8")
    assert "<html" in page
    assert "spät = 日本" in page
    assert "src=" not in page
    assert "<link" not in page


def test_the_same_command_again_tries_nothing_again(compared: Path) -> None:
    folder = Path(shutil.copytree(compared, compared.parent / "again"))
    before = (folder / "out" / "cells.jsonl").read_bytes()
    result = run("spät = 日本.yaml", "b.yaml", *QUICK, "--q", "b=50,53", "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    cells = len(before.splitlines())
    assert f"{cells} trials were kept from before" in result.stdout
    assert (folder / "out" / "cells.jsonl").read_bytes() == before


def test_without_a_file_the_example_is_compared_and_json_is_strict() -> None:
    result = run(*QUICK, "--json")
    assert result.returncode == 0
    assert result.stderr == "No FILE given: comparing on the built-in example.\n"
    found = strict(result.stdout)
    assert found["cases"][0]["name"] == "example"
    assert found["cases"][0]["q"] == [76.0]
    assert found["made_by"]["command"] == f"cascadia-fast compare {' '.join(QUICK)} --json"


def test_without_a_folder_nothing_is_kept_and_that_is_said(tmp_path: Path) -> None:
    result = run(*QUICK, "--q", "50", cwd=tmp_path)
    assert result.returncode == 0
    assert result.stdout.startswith("No FILE given: comparing on the built-in example.\n")
    assert "There is no report; --out DIR writes one" in result.stdout
    assert list(tmp_path.iterdir()) == []


def test_systems_describe_themselves() -> None:
    result = run("--describe")
    assert result.returncode == 0
    for name in ("ours: ", "single: ", "sarathi: "):
        assert f"\n{name}" in f"\n{result.stdout}"
    assert "arXiv 2403.02310" in result.stdout
    only = run("--describe", "--systems", "single").stdout
    assert "\nsingle: " in only
    assert "sarathi: " not in only


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("nowhere.yaml",), ("nowhere.yaml cannot be read",)),
        (("",), ("FILE is empty",)),
        (("--systems", "sinlge"), ("--systems: there is no system 'sinlge'", "did you mean 'single'?")),
        (("--systems", "single,,"), ("--systems is 'single,,'", "commas")),
        (("--q", "eighty"), ("--q has 'eighty'", "numbers")),
        (("--q", ""), ("--q has ''",)),
        (("--q", "101"), ("q of case 'example' is 101", "from 0 to 100")),
        (("--q", "70,70"), ("given twice",)),
        (("--q", "70", "--q", "80"), ("--q is given twice",)),
        (("--q", "exmaple=70"), ("--q exmaple=70 names no case", "did you mean 'example'?")),
        (("--rates", "0"), ("rate of case 'example' is 0",)),
        (("--rates", "-1x"), ("rate of case 'example' is -60",)),
        (("--rates", "x"), ("--rates has 'x'",)),
        (("--rates", "nan"), ("rate of case 'example' is nan",)),
        (("--seeds", "0"), ("--seeds is 0", "from 1 to 1,000")),
        (("--seeds", "many"), ("--seeds is 'many'",)),
        (("--requests", "10"), ("--requests is 10", "from 200")),
        (("--requests", "1e4"), ("--requests is '1e4'", "whole number")),
        (("--jobs", "0"), ("--jobs is 0",)),
        (("--jobs", "two"), ("--jobs is 'two'",)),
        (("--fresh",), ("--fresh", "give --out DIR")),
        (("--out", ""), ("--out is ''",)),
        (("--systems", "single", "--out", "/dev/null"), ("/dev/null is no folder",)),
    ],
)
def test_bad_arguments_are_one_sentence(arguments: tuple[str, ...], words: tuple[str, ...]) -> None:
    assert_one_error_line(run(*arguments), *words)


def test_a_folder_of_something_else_is_refused_before_anything_is_tried(folder: Path) -> None:
    started_s = time.monotonic()
    result = run("problem.yaml", "--out", ".", cwd=folder)
    assert_one_error_line(result, "holds files and no earlier comparison")
    assert time.monotonic() - started_s < 60


def test_where_no_system_is_feasible_the_comparison_says_so(folder: Path) -> None:
    problem = yaml.safe_load((folder / "problem.yaml").read_text(encoding="utf-8"))
    problem["cascade"] = problem["cascade"][2:]  # 405B
    problem["cluster"] = [{"gpu": "a100-40gb", "gpus": 1}]
    (folder / "tiny.yaml").write_text(yaml.safe_dump(problem), encoding="utf-8")
    result = run("tiny.yaml", *QUICK, "--out", "out", cwd=folder)
    assert result.returncode == 0, result.stderr
    assert "no plan" in result.stdout
    assert "No plan of ours: 1 GPU cannot hold a cascade" in result.stdout
    assert "No plan of single: llama-3.1-405b cannot run on fewer than 12 GPUs" in result.stdout
    assert (folder / "out" / "report.html").exists()


def test_files_of_one_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    assert case_names(["a/x.yaml", "b/x.yaml", "c/y.yaml"]) == ["a/x", "b/x", "y"]
    assert case_names(["a/c/x.yaml", "b/c/x.yaml"]) == ["a/c/x", "b/c/x"]
    assert case_names(["x.yaml", "x.yml"]) == ["x.yaml", "x.yml"]
    assert case_names(["x.yaml", "sub/x.yaml"]) == ["x", "sub/x"]
    assert case_names([str(tmp_path / "only.yaml")]) == ["only"]
    with pytest.raises(InputError, match="given twice"):
        case_names(["x.yaml", "./x.yaml"])


def test_ctrl_c_exits_130_and_says_how_to_go_on(tmp_path: Path) -> None:
    arguments = ["compare", "--systems", "single", "--seeds", "40", "--jobs", "2", "--out", "out"]
    process = subprocess.Popen(
        [*PROGRAM, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        start_new_session=True,
    )
    cells = tmp_path / "out" / "cells.jsonl"
    end_s = time.monotonic() + 120
    while not (cells.exists() and cells.stat().st_size):
        assert time.monotonic() < end_s
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    out, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert out == ""
    told, last = errors.splitlines()
    done = len(cells.read_bytes().splitlines())
    assert told.startswith(f"{done} of ")
    assert told.endswith("trials are done and kept in out: the same command goes on from there")
    assert last == "interrupted"


@pytest.mark.parametrize(
    ("limit_bytes", "words"),
    [
        (8_000, ("out/cells.jsonl cannot be written (File too large)", "cells before are kept, so make room")),
        (50_000, ("out/results.json cannot be written (File too large)",)),
    ],
)
def test_a_disk_that_fills_is_told_and_the_same_command_goes_on(
    tmp_path: Path, limit_bytes: int, words: tuple[str, ...]
) -> None:
    """A limit on file sizes stands for the disk."""
    arguments = [*QUICK, "--q", "50", "--out", "out"]
    code = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit_bytes}, resource.RLIM_INFINITY))\n"
    full = subprocess.run(
        [sys.executable, "-c", code + PROGRAM[-1], "compare", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    # Where all is tried and only the results cannot be written, the table is told all the same.
    assert (full.stdout != "") == ("results.json" in words[0])
    assert "The report could not be written" in full.stdout or full.stdout == ""
    assert full.returncode == 2
    (line,) = full.stderr.splitlines()
    assert all(word in line for word in words)
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cells.jsonl"}
    kept = len((tmp_path / "out" / "cells.jsonl").read_bytes().splitlines())
    assert kept >= 5
    result = run(*arguments, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert f"{kept} trials were kept from before" in result.stdout


def test_folders_of_this_machine_are_not_told(tmp_path: Path) -> None:
    found = strict(run(*QUICK, "--q", "50", "--json", f"--out={tmp_path}/out").stdout)
    assert found["made_by"]["command"].endswith("--json --out=out")
    assert str(tmp_path) not in (tmp_path / "out" / "report.html").read_text(encoding="utf-8")


def test_a_defect_is_called_one_and_keeps_what_was_done(tmp_path: Path) -> None:
    code = (
        "import dataclasses\nfrom cascadia_fast.baselines import systems\n"
        "def fail(case): raise ZeroDivisionError('a mistake of mine')\n"
        "systems.SYSTEMS = (systems.SYSTEMS[0], dataclasses.replace(systems.SYSTEMS[1], plan=fail))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code + PROGRAM[-1], "compare", *QUICK, "--q", "50", "--out", "out"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    assert result.returncode == 1
    first, *rest = result.stderr.splitlines()
    assert first.startswith("error: a defect in system single at case 'example', q 50, 30 requests/s, 32 GPUs, seed 0")
    assert first.endswith("please report it; the 1 trials before are kept in out")
    assert rest[-1] == "ZeroDivisionError: a mistake of mine"


def test_without_stderr_nothing_is_lost(tmp_path: Path) -> None:
    words = [*PROGRAM, "compare", *QUICK, "--q", "50", "--out", "out"]
    code = "import os, sys; os.close(2); os.execv(sys.argv[1], sys.argv[1:])"
    result = subprocess.run(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        cwd=tmp_path,
        env=ENVIRONMENT,
        check=False,
        timeout=300,
    )
    assert result.returncode == 0
    assert b"The report is out/report.html" in result.stdout


def test_a_terminal_sees_how_far_it_is(folder: Path) -> None:
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*PROGRAM, "compare", *QUICK, "--q", "50"], stdout=subprocess.PIPE, stderr=theirs, env=ENVIRONMENT, text=True
    )
    os.close(theirs)
    seen = b""
    while True:
        try:
            part = os.read(ours, 4096)
        except OSError:
            break
        if not part:
            break
        seen += part
    os.close(ours)
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    text = seen.decode()
    assert "trials" in text
    assert "left about" in text
    assert "q 50" in out
