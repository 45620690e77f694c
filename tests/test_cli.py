"""The program as users run it: separate processes, their output and exit codes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import typer
import yaml

from cascadia_fast.blueprint import Plan
from cascadia_fast.cli.outcome import outcome
from cascadia_fast.errors import CascadiaWarning, InputError, PoolTooSmallError
from cascadia_fast.example import EXAMPLE_DIR

PROGRAM = [sys.executable, "-c", "from cascadia_fast.cli import main; main()"]


def run(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "PYTHONIOENCODING": "utf-8"}
    command = [*PROGRAM, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment, check=False, timeout=120)


def assert_one_error_line(result: subprocess.CompletedProcess[str], *words: str) -> None:
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if not line.startswith("warning: ")]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    for word in words:
        assert word in lines[0]


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built-in example's files, written by the program."""
    directory = tmp_path_factory.mktemp("example")
    result = run("plan", "--write-example", directory)
    assert result.returncode == 0, result.stderr
    *written, after = result.stdout.splitlines()
    assert after == f"Next: cascadia-fast plan {directory / 'problem.yaml'}"
    assert sorted(map(Path, written)) == sorted(directory.iterdir())
    return directory


def edited(example: Path, **sections: object) -> Path:
    """A problem file beside the example's with whole sections replaced."""
    problem = yaml.safe_load((example / "problem.yaml").read_text(encoding="utf-8"))
    path = example / "edited.yaml"
    path.write_text(yaml.safe_dump({**problem, **sections}), encoding="utf-8")
    return path


def test_help_lists_commands_and_options() -> None:
    assert "plan" in run("--help").stdout
    text = run("plan", "--help").stdout
    for option in (
        "--gpus",
        "--q-min",
        "--rate",
        "--method",
        "--objective",
        "--paper-strict",
        "--latency",
        "--threads",
        "--slo",
        "--slo-metric",
        "--budget",
        "--q-confidence",
        "--survive",
        "--mixed",
        "--no-skip",
        "--time-limit",
        "--pareto",
        "--picture",
        "--judge-auc",
    ):
        assert option in text
    assert "explain" in run("--help").stdout


@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    code = (
        "import sys\nfrom cascadia_fast.cli.program import app\n"
        f"try:\n app({arguments!r})\nexcept SystemExit:\n pass\n"
        "print([m for m in ('numpy', 'numba', 'highspy', 'yaml', 'rich', 'orjson') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.splitlines()[-1] == "[]"


def test_version() -> None:
    result = run("--version")
    assert result.returncode == 0
    assert result.stdout.startswith("cascadia-fast 0.")


@pytest.mark.parametrize("arguments", [["plam"], ["plan", "--gpus", "many"], ["plan", "a", "b"], []])
def test_wrong_usage_exits_with_2(arguments: list[str]) -> None:
    result = run(*arguments)
    assert result.returncode == 2
    assert "Traceback" not in result.stderr
    assert len(result.stderr.splitlines()) == (1 if arguments else 0)


def test_example_is_planned_without_a_file() -> None:
    result = run("plan")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("No FILE given: planning the built-in example.\n")
    for word in ("llama-3.1-8b", "scored requests", "Binding stage", "alone", "HiGHS", "simulated", "at most"):
        assert word in result.stdout
    next_commands = result.stdout.split("Next:\n")[1].strip().splitlines()
    assert len(next_commands) == 3
    assert all(line.strip().startswith("cascadia-fast plan") for line in next_commands)


def test_json_is_a_plan_and_nothing_else() -> None:
    result = run("plan", "--json")
    assert result.returncode == 0, result.stderr
    plan = Plan.from_json(result.stdout)
    assert plan.to_json().decode() == result.stdout
    assert plan.predicted.quality >= plan.q_min
    assert plan.solver.highs is not None
    assert plan.solver.highs.status == "optimal"


def test_file_and_example_give_the_same_plan(example: Path) -> None:
    from_file = json.loads(run("plan", example / "problem.yaml", "--json").stdout)
    built_in = json.loads(run("plan", "--json").stdout)
    for timing in (from_file, built_in):
        del timing["solver"]["seconds"], timing["solver"]["highs"]["seconds"]
    assert from_file == built_in


def test_options_override_the_file(example: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.json"
    arguments = ["--gpus", "48", "--q-min", "70", "--rate", "3", "--method", "alternating", "--threads", "1"]
    result = run("plan", example / "problem.yaml", *arguments, "-o", output)
    assert result.returncode == 0, result.stderr
    plan = Plan.read(output)
    assert (plan.pool_gpus, plan.q_min, plan.workload.rate_per_s) == (48, 70.0, 3.0)
    assert plan.solver.method == "alternating"
    assert plan.solver.trace
    assert "--gpus 48 --rate 3 --method alternating --threads 1 --q-min 65" in result.stdout
    assert os.listdir(tmp_path) == ["plan.json"]


def test_printed_next_commands_work(example: Path) -> None:
    result = run("plan", "problem.yaml", cwd=example)
    for line in result.stdout.split("Next:\n")[1].strip().splitlines():
        words = line.strip().split("  ")[0].split()
        assert words[0] == "cascadia-fast"
        again = run(*words[1:], cwd=example)
        assert again.returncode == 0, again.stderr
    explained = run("explain", "plan.json", cwd=example)
    assert explained.returncode == 0, explained.stderr
    (example / "plan.json").unlink()


def test_paper_strict_runs_every_model() -> None:
    plan = Plan.from_json(run("plan", "--paper-strict", "--json").stdout)
    assert plan.paper_strict
    assert plan.skipped_models == ()
    assert plan.solver.highs is not None
    assert plan.solver.highs.columns == len(plan.stages) * (plan.pool_gpus + 1)


def test_threads_do_not_change_the_plan() -> None:
    ids = {json.loads(run("plan", "--json", "--threads", str(count)).stdout)["plan_id"] for count in (1, 2, 7)}
    assert len(ids) == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nowhere.yaml"], ["nowhere.yaml"]),
        (["--gpus", "0"], ["error: --gpus is 0; it must be at least 1"]),
        (["--gpus", "x"], ["error: --gpus is 'x'; give a whole number"]),
        (["--gpus", "1000001"], ["error: --gpus is 1000001; it must be at most 1,000,000"]),
        (["--threads", "0"], ["error: --threads is 0; it must be at least 1"]),
        (["--rate", "fast"], ["error: --rate is 'fast'; give a number"]),
        (["--rate", "1e-300"], ["error: --rate is 1e-300; it must be at least 1e-09"]),
        (["--gpus", "1"], ["1"]),
        (["--q-min", "99.9"], ["99.9"]),
        (["--q-min", "nan"], ["error: --q-min is nan"]),
        (["--q-min", "101"], ["error: --q-min is 101.0; it must be at most 100"]),
        (["--rate", "100000"], ["100000"]),
        (["--rate", "-1"], ["error: --rate is -1.0"]),
        (["--method", "exhaustive"], ["error: --method is 'exhaustive'", "exact"]),
        (["--objective", "beauty"], ["error: --objective is 'beauty'", "max_stage_p95"]),
        (["--slo", "-3"], ["error: --slo is -3.0; it must be above 0"]),
        (["--slo", "soon"], ["error: --slo is 'soon'; give a number"]),
        (["--slo-metric", "ttft_p95"], ["slo_metric (ttft_p95) but no slo_s"]),
        (["--slo", "9", "--slo-metric", "p95"], ["error: --slo-metric is 'p95'", "end_to_end_p95"]),
        (["--budget", "0"], ["error: --budget is 0.0; it must be above 0"]),
        (["--budget", "1"], ["1"]),
        (["--survive", "rack"], ["error: --survive is 'rack'; it must be one of 'none', 'replica' or 'node'"]),
        (["--q-confidence", "2"], ["error: --q-confidence is 2.0; it must be at most 0.999"]),
        (["--time-limit", "0"], ["error: --time-limit is 0.0; it must be above 0"]),
        (["--objective", "min_cost", "--paper-strict"], ["--paper-strict", "--objective min_cost"]),
        (["--objective", "end_to_end_p95", "--mixed"], ["--mixed", "--objective is end_to_end_p95"]),
        (["--pareto", "latency"], ["error: --pareto latency: a front has 1 axis"]),
        (["--pareto", "latency,qualty"], ["no axis 'qualty'", "did you mean 'quality'"]),
        (["--pareto", "latency,quality", "--judge-auc", "0.7..0.9"], ["--pareto and --judge-auc each ask"]),
        (["--picture", "p.html"], ["--picture draws a front; give --pareto"]),
        (["--pareto", "latency,quality", "--picture", ""], ["--picture is ''; give the path of a file"]),
        (["--pareto", "latency,quality", "--picture", "p", "-o", "./p"], ["-o and --picture are both p"]),
        (["--judge-auc", "0.9"], ["error: --judge-auc is '0.9'; give LO..HI"]),
        (["--judge-auc", "0.9..0.7"], ["error: --judge-auc 0.9..0.7: the judge's AUC goes from 0.9 to 0.7"]),
        (["-o", "-"], ["-o is '-'", "--json"]),
        (["-o", ""], ["-o is ''"]),
        (["-o", "x" * 300], ["cannot be written (File name too long)"]),
        (["x" * 300], ["cannot be read: File name too long"]),
        ([""], ["FILE is empty"]),
        (["--write-example", "x" * 300], ["cannot be written: File name too long"]),
        (["--write-example", ""], ["--write-example is ''"]),
        (["--write-example", "d", "--gpus", "4"], ["leave out --gpus"]),
        (["-o", "/nowhere/plan.json"], ["/nowhere/plan.json"]),
        (["x.yaml", "--write-example", "d"], ["x.yaml"]),
    ],
)
def test_bad_arguments_get_one_sentence_and_nothing_is_written(
    arguments: list[str], words: list[str], tmp_path: Path
) -> None:
    output = [] if "-o" in arguments or "--write-example" in arguments else ["-o", str(tmp_path / "plan.json")]
    assert_one_error_line(run("plan", *arguments, *output, cwd=tmp_path), *words)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"goals": {"q_min": 80}}, ["goals", "goal"]),
        ({"goal": {"qmin": 80}}, ["qmin", "q_min"]),
        ({"cluster": [{"gpu": "h100-sxm-80g", "nodes": 4, "gpus_per_node": 8}]}, ["h100-sxm-80g", "h100-sxm-80gb"]),
        ({"cluster": [{"gpu": "h100-sxm-80gb", "nodes": 0, "gpus_per_node": 8}]}, ["nodes"]),
        ({"cascade": []}, ["cascade"]),
        ({"cascade": [{"model": "llama-3.1-9b"}]}, ["llama-3.1-9b", "llama-3.1-8b"]),
        ({"workload": {"rate_per_s": 1, "requests": "absent.csv"}}, ["absent.csv"]),
    ],
)
def test_bad_files_get_one_sentence(example: Path, sections: dict[str, object], words: list[str]) -> None:
    assert_one_error_line(run("plan", edited(example, **sections)), *words)


def test_a_pool_too_small_says_what_is_enough(example: Path) -> None:
    path = edited(example, cluster=[{"gpu": "l40s", "nodes": 1, "gpus_per_node": 2}])
    assert_one_error_line(run("plan", path), "2 GPUs", "would be enough")


def test_a_model_that_fits_no_shape_is_named(example: Path) -> None:
    path = edited(
        example,
        cascade=[{"model": "llama-3.1-405b", "name_in_requests": "Llama-3.1-405B"}],
        cluster=[{"gpu": "l40s", "nodes": 64, "gpus_per_node": 1}],
        engine={"memory_utilization": 0.1},
    )
    assert_one_error_line(run("plan", path), "llama-3.1-405b")


def test_a_single_stage_is_legal(example: Path) -> None:
    path = edited(example, cascade=[{"model": "llama-3.1-8b", "name_in_requests": "Llama-3.1-8B"}], goal={"q_min": 0})
    plan = Plan.from_json(run("plan", path, "--json").stdout)
    assert plan.routing.thresholds == ()
    assert len(plan.stages) == 1


def test_yaml_that_is_not_a_problem(tmp_path: Path) -> None:
    for number, text in enumerate(["", "[]", "{", "a: &a [*a]", "\x00"]):
        path = tmp_path / f"{number}.yaml"
        path.write_text(text)
        assert_one_error_line(run("plan", path), path.name)


def test_write_example_never_overwrites(example: Path) -> None:
    before = {path: path.read_bytes() for path in example.iterdir()}
    assert_one_error_line(run("plan", "--write-example", example), "exists")
    assert {path: path.read_bytes() for path in example.iterdir()} == before


def test_reader_that_goes_away_is_no_traceback() -> None:
    process = subprocess.Popen([*PROGRAM, "plan", "--json"], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    errors = process.stderr.read().decode()
    process.stderr.close()
    assert process.wait(timeout=120) == 141
    assert "Traceback" not in errors
    assert "Exception ignored" not in errors


@pytest.mark.parametrize("name", ["problem.yaml", "requests.csv.gz", "arrivals.csv.gz"])
def test_inputs_are_never_overwritten(name: str, tmp_path: Path) -> None:
    shutil.copytree(EXAMPLE_DIR, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / name).read_bytes()
    result = run("plan", "problem.yaml", "-o", name, cwd=tmp_path)
    assert_one_error_line(result, f"-o {name} is a file that the problem is read from")
    assert (tmp_path / name).read_bytes() == before


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("arguments", [["--help"], ["plan", "--help"], ["plan"], ["plan", "--json"]])
def test_a_full_disk_behind_stdout_is_one_sentence(arguments: list[str], tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "plan.json")] if "--help" not in arguments else []
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [*PROGRAM, *arguments, *output], stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=120
        )
    assert result.returncode == 2
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert errors == ["error: stdout cannot be written (No space left on device); print to a place with room"]
    assert "Traceback" not in result.stderr
    assert "Exception" not in result.stderr
    if output:
        assert Plan.read(output[1]).status == "optimal"


@pytest.mark.parametrize("arguments", [["--help"], ["plan"], ["plan", "--json"]])
def test_a_closed_stdout_loses_no_plan(arguments: list[str], tmp_path: Path) -> None:
    output = ["-o", str(tmp_path / "plan.json")] if "--help" not in arguments else []
    command = ["sh", "-c", 'exec "$@" >&-', "sh", *PROGRAM, *arguments, *output]
    result = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, timeout=120)
    assert result.returncode == 141
    assert "Traceback" not in result.stderr
    if output:
        assert Plan.read(output[1]).status == "optimal"


def test_file_names_that_are_not_utf8(tmp_path: Path) -> None:
    folder = os.fsencode(tmp_path) + b"/\xff"
    os.mkdir(folder)
    for name in os.listdir(EXAMPLE_DIR):
        shutil.copyfile(os.fsencode(EXAMPLE_DIR / name), folder + b"/" + os.fsencode(name))
    os.rename(folder + b"/problem.yaml", folder + b"/p\xfe.yaml")
    path = os.fsdecode(folder + b"/p\xfe.yaml")
    result = run("plan", path, "--json")
    assert result.returncode == 0, result.stderr
    assert "p\ufffd.yaml" in Plan.from_json(result.stdout).provenance.inputs
    assert run("plan", path).returncode == 0


INTERRUPTED_IMPORT = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "typer":
            raise KeyboardInterrupt
sys.meta_path.insert(0, Finder())
from cascadia_fast.cli import main
main()
"""


def test_interrupt_during_imports_is_one_word() -> None:
    command = [sys.executable, "-c", INTERRUPTED_IMPORT]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert (result.returncode, result.stdout, result.stderr) == (130, "", "interrupted\n")


SLEEPER = """
import sys, time
import cascadia_fast.cli.plan as command
def slow(problem, threads):
    print("planning", flush=True)
    time.sleep(60)
command._make_plan = slow
from cascadia_fast.cli import main
sys.argv = ["cascadia-fast", "plan", "-o", sys.argv[1]]
main()
"""


def test_interrupt_is_one_word_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SLEEPER, str(tmp_path / "plan.json")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "planning\n"
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert errors.strip() == "interrupted"
    assert os.listdir(tmp_path) == []


def code_of(error: type[BaseException] | BaseException, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    with pytest.raises(typer.Exit) as caught, outcome():
        raise error
    return caught.value.exit_code, capsys.readouterr().err


def test_outcome_of_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert code_of(InputError("q_min is 200;\n give 0 to 100"), capsys) == (2, "error: q_min is 200; give 0 to 100\n")
    assert code_of(PoolTooSmallError("add 3 GPUs", gpus_needed=3), capsys) == (2, "error: add 3 GPUs\n")
    assert code_of(KeyboardInterrupt, capsys) == (130, "")  # the program says it


def test_outcome_prints_warnings_once_and_lets_bugs_through(capsys: pytest.CaptureFixture[str]) -> None:
    import warnings

    with outcome() as sentences:
        warnings.warn("arrivals are bursty", CascadiaWarning, stacklevel=1)
        warnings.warn("arrivals are bursty", CascadiaWarning, stacklevel=1)
        warnings.warn("shown elsewhere", CascadiaWarning, stacklevel=1)
        sentences.remove("shown elsewhere")
    assert capsys.readouterr().err == "warning: arrivals are bursty\n"
    with pytest.raises(ZeroDivisionError), outcome():
        raise ZeroDivisionError
