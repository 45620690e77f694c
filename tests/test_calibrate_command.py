"""``cascadia-fast calibrate`` as users run it."""

from __future__ import annotations

import csv
import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cascadia_fast.calibration_summary import evaluation_text, plain
from cascadia_fast.profile import Profile

DATA = Path(__file__).parent / "data"
SAMPLE = DATA / "serving_runs_43.csv"
VLLM = DATA / "vllm_bench_serve.json"
PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()", "calibrate"]
METRIC = {"rows", "predicted", "median_abs_error", "mean_abs_error", "p90_abs_error", "bias", "spearman"}


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=120)


def evaluated(*arguments: str | Path) -> dict[str, Any]:
    result = run(*arguments, "--evaluate", "--json")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""

    def refuse(name: str) -> None:
        raise AssertionError(f"{name} is not strict JSON")

    found: dict[str, Any] = json.loads(result.stdout, parse_constant=refuse)
    return found


def assert_one_error_line(result: subprocess.CompletedProcess[str], words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert words in lines[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dozen runs of two models, so that a fit with cross-validation takes a second."""
    path = tmp_path_factory.mktemp("small") / "runs.csv"
    with SAMPLE.open(encoding="utf-8", newline="") as file:
        rows = [
            row for row in csv.DictReader(file) if row["model_path"].startswith("meta-llama") or "minimax" in row["id"]
        ]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows[4:16])
    return path


def test_evaluation_covers_every_run_and_group() -> None:
    found = evaluated(SAMPLE)
    assert (found["rows"], found["rejected"]) == (42, 0)
    assert found["files"][0]["name"] == SAMPLE.name
    named = {(group["model"], group["gpu"], group["engine"], group["precision"]) for group in found["groups"]}
    assert len(named) == len(found["groups"]) == 10
    assert ("openai/gpt-oss-120b", "h200-sxm-141gb", "vllm", "mxfp4") in named
    for metric in ("ttft", "tpot"):
        assert set(found["overall"][metric]) == METRIC
        assert found["overall"][metric]["rows"] == found["overall"][metric]["predicted"] == 42
        assert sum(group[metric]["rows"] for group in found["groups"]) == 42
        # Predictions a factor of three off, or in the wrong unit, would not pass.
        assert found["overall"][metric]["median_abs_error"] < 0.6
        assert found["overall"][metric]["spearman"] > 0.7
    assert found["unpredicted"] == []


def test_evaluation_says_why_runs_have_no_prediction(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    lines = SAMPLE.read_text(encoding="utf-8").splitlines()
    unknown = lines[1].replace("h200_sxm", "h2000_sxm").replace(",64.0,", ",8.0,")
    # The 70B in bf16 does not fit one GPU of 80 GB.
    large = next(line for line in lines if "llama_3_1_70b_h100" in line).replace(",fp8,agg,", ",bf16,agg,")
    path.write_text(
        "\n".join([*lines, unknown, large.replace(",4.0,1.0,1.0,4.0,1.0,", ",1.0,1.0,1.0,1.0,1.0,")]) + "\n"
    )
    found = evaluated(path)
    assert (found["rows"], found["rejected"]) == (43, 1)
    reasons = [line["reason"] for line in found["unpredicted"]]
    assert len(reasons) == sum(found["unpredicted_reasons"].values()) == 2
    assert any("unknown GPU 'h2000_sxm'" in reason for reason in reasons)
    text = run(path, "--evaluate").stdout
    assert "2 runs without a prediction, by reason:" in text
    assert "42 of 44" in text
    # The run on an unknown GPU belongs to no group.
    assert sum(group["tpot"]["rows"] for group in found["groups"]) == 43


def test_evaluation_of_runs_that_nobody_can_predict(tmp_path: Path) -> None:
    path = tmp_path / "runs.csv"
    header, row = SAMPLE.read_text(encoding="utf-8").splitlines()[:2]
    path.write_text(f"{header}\n{row.replace('h200_sxm', 'abacus')}\n")
    found = evaluated(path)
    assert found["overall"]["tpot"] == dict.fromkeys(METRIC) | {"rows": 1, "predicted": 0}
    assert len(found["unpredicted"]) == 1
    assert run(path, "--evaluate").returncode == 0
    assert_one_error_line(
        run(path),
        "no run of 1 can be used, such as dsr1_h200_trtllm_fp8_agg_1024x1024_c64_cfg181: unknown GPU 'abacus'",
    )


def test_a_benchmark_result_is_evaluated_with_what_options_add(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    content = json.loads(VLLM.read_text())
    del content["gpu"], content["tp"]
    path.write_text(json.dumps(content))
    assert_one_error_line(run(path, "--evaluate"), "gpu is not given; give it with --gpu")
    (group,) = evaluated(path, "--gpu", "h100", "--tp", "4", "--weights", "fp8", "--kv", "fp8")["groups"]
    assert (group["gpu"], group["precision"], group["tpot"]["predicted"]) == ("h100-sxm-80gb", "fp8", 1)


def test_a_fit_writes_a_profile_that_evaluates(small: Path, tmp_path: Path) -> None:
    profile = tmp_path / "profile.json"
    result = run(small, "-o", profile, "--name", "ours")
    assert result.returncode == 0, result.stderr
    assert result.stderr == ""
    for words in (
        "Fitted to 12 runs; median absolute errors before (profile",
        "(profile 'h100+h200",
        "Cross-validation: errors of runs that the fit did not see, each fit started from the kernel timings, ",
        "numbers stay at their start, because the runs pull them too little: ",
        f"Wrote {profile}",
    ):
        assert words in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 120
    written = Profile.read(profile)
    assert written.name == "ours"
    assert written.provenance.files[0][0] == small.name
    # No directory of this machine stands in the file.
    assert written.provenance.command == "cascadia-fast calibrate runs.csv -o profile.json --name ours"
    found = evaluated(small, "--profile", profile)
    assert found["profile"] == "ours"
    assert found["overall"]["statuses"] == {"calibrated": 12}
    assert evaluated(small, "--profile", "kernels")["overall"]["statuses"] == {"roofline": 12}
    assert os.listdir(tmp_path) == ["profile.json"]


def test_a_fit_prints_json(small: Path) -> None:
    result = run(small, "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert found.keys() == {"profile", "before", "after", "cross_validation", "kept", "contradictory"}
    assert found["profile"] == "runs"
    assert set(found["cross_validation"]["model"]["all"]["tpot"]) == METRIC
    assert found["before"]["overall"]["tpot"]["rows"] == found["after"]["overall"]["tpot"]["rows"] == 12


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.csv"], "nowhere.csv does not exist"),
        ([str(DATA)], "is a directory"),
        ([str(SAMPLE), "--evaluate", "-o", "x.json"], "--evaluate fits no profile"),
        ([str(SAMPLE), "-o", "-"], "-o is '-'; give the path of a file"),
        ([str(SAMPLE), "-o", str(DATA)], "is a directory or lies in none"),
        ([str(SAMPLE), "-o", "nowhere/x.json"], "is a directory or lies in none"),
        ([str(SAMPLE), "-o", str(SAMPLE)], "is a file that calibration reads"),
        ([str(SAMPLE), "--evaluate", "--profile", "nowhere.json"], "nowhere.json cannot be read"),
        ([str(SAMPLE), "--evaluate", "--profile", str(VLLM)], "has no schema_version"),
        ([str(SAMPLE), "--model-config", "x"], "--model-config is 'x'; give NAME=FILE"),
        ([str(SAMPLE), "--gpu", "h9"], "gpu is given as 'h9': unknown GPU 'h9'"),
        ([str(SAMPLE), "--tp", "0"], "see cascadia-fast calibrate --help"),
        ([], "see cascadia-fast calibrate --help"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], words: str) -> None:
    assert_one_error_line(run(*arguments), words)


def test_help_documents_the_json_and_imports_nothing_heavy() -> None:
    text = " ".join(run("--help").stdout.split())
    for words in ("--evaluate", "--profile", "--model-config", "median_abs_error", "unpredicted_reasons", "Exit codes"):
        assert words in text
    code = (
        "import sys\nfrom cascadia_fast.cli.program import app\n"
        "try:\n app(['calibrate', '--help'])\nexcept SystemExit:\n pass\n"
        "print([m for m in ('numpy', 'numba', 'scipy', 'yaml', 'rich', 'orjson') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_a_terminal_gets_drawn_tables_and_progress(small: Path) -> None:
    main, side = pty.openpty()
    environment = {**os.environ, "COLUMNS": "100", "TERM": "xterm", "PYTHONIOENCODING": "utf-8"}
    with subprocess.Popen([*PROGRAM, str(small)], stdout=side, stderr=side, env=environment) as process:
        os.close(side)
        shown = b""
        while True:
            try:
                chunk = os.read(main, 4096)
            except OSError:  # Linux reports the end of a terminal so
                break
            if not chunk:
                break
            shown += chunk
    os.close(main)
    assert process.returncode == 0
    text = shown.decode()
    assert "fitting to 12 runs" in text
    assert "───" in text
    assert "The profile is not saved; give -o PATH" in text


def test_text_fits_narrow_and_ascii_places() -> None:
    blocks = evaluation_text(evaluated(SAMPLE))
    assert max(map(len, plain(blocks, 100).splitlines())) <= 100
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    result = subprocess.run([*PROGRAM, SAMPLE, "--evaluate"], capture_output=True, env=environment, check=True)
    assert result.stdout.isascii()


def test_unicode_paths_work(tmp_path: Path) -> None:
    path = tmp_path / "Läufe 漢.csv"
    shutil.copy(SAMPLE, path)
    assert evaluated(path)["files"][0]["name"] == "Läufe 漢.csv"
