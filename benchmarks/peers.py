"""Planning one model: our planner beside aiconfigurator, in time and in configurations per second.

    python -m benchmarks.peers [--environment DIR] [--json FILE]

aiconfigurator (pinned, from PyPI) is installed into a virtual environment of its own, thrown away unless DIR keeps it,
and run as its users run it; only its speed is looked at. Where it cannot be installed the table says so. Both get one
model, 32 H100 and requests of one length. A configuration is one engine shape at one load: there a batch size, whose
step times it interpolates from measured tables; here a rate, whose 95th percentile latency, queueing included, is
evaluated. Its tables also cover what ours do not (prefill and decode on separate engines), so that its rate is taken
over aggregated engines alone, without starting the program, and with limits on latency that leave nothing out.
"""

from __future__ import annotations

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from benchmarks.accuracy_page import markdown as table
from cascadia_fast import _core
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.summary_layout import Table

PINNED = "aiconfigurator==0.12.0"
GPUS = 32
INPUT_TOKENS, OUTPUT_TOKENS = 1155, 211
LOADS_PER_SHAPE = 2000
REPEATS = 5
INSTALL_LIMIT_S, RUN_LIMIT_S = 900, 600


@dataclass(frozen=True)
class Model:
    """One model by the names of both, and a rate that the GPUs carry."""

    ours: str
    theirs: str
    rate_per_s: float


MODELS = (
    Model("llama-3.1-70b", "meta-llama/Meta-Llama-3.1-70B", 20.0),
    Model("deepseek-v3", "deepseek-ai/DeepSeek-V3", 10.0),
)


@dataclass(frozen=True)
class Speed:
    """Seconds of the command and of one plan without starting a program, and configurations evaluated per second."""

    command_s: float
    plan_s: float
    configurations: int
    configurations_per_s: float


def installed(folder: Path) -> tuple[Path | None, str]:
    """Return the peer's program in a virtual environment in `folder`, made if it is not there, or None and why."""
    program = folder / ("Scripts" if sys.platform == "win32" else "bin") / "aiconfigurator"
    if program.exists():
        return program, ""
    for command in (
        [sys.executable, "-m", "venv", str(folder)],
        [str(program.with_name("python")), "-m", "pip", "install", "--quiet", PINNED],
    ):
        try:
            subprocess.run(command, check=True, capture_output=True, encoding="utf-8", timeout=INSTALL_LIMIT_S)
        except subprocess.CalledProcessError as error:
            return None, (error.stderr.strip().splitlines() or ["no reason given"])[-1]
        except (OSError, subprocess.TimeoutExpired) as error:
            return None, str(error)
    return program, ""


def peer_speed(program: Path, model: Model) -> Speed:
    """Run the peer twice: as a user would, and over aggregated engines alone with nothing left out."""
    command_s, _ = _peer_run(program, model)
    _, printed = _peer_run(program, model, "--serving-mode", "agg", "--ttft", "1000000", "--tpot", "100000")
    count = re.search(r"completed with (\d+) results", printed)
    seconds = re.search(r"completed in ([\d.]+) seconds", printed)
    if count is None or seconds is None:
        raise RuntimeError(f"{PINNED} no longer prints how many results it found and in how many seconds")
    plan_s, configurations = float(seconds[1]), int(count[1])
    return Speed(command_s, plan_s, configurations, configurations / plan_s)


def _peer_run(program: Path, model: Model, *options: str) -> tuple[float, str]:
    lengths = ["--isl", str(INPUT_TOKENS), "--osl", str(OUTPUT_TOKENS)]
    what = ["--model-path", model.theirs, "--total-gpus", str(GPUS), "--system", "h100_sxm", "--backend", "trtllm"]
    return _timed([str(program), "cli", "default", *what, *lengths, "--no-color", *options])


def _timed(command: Sequence[str]) -> tuple[float, str]:
    started_s = time.perf_counter()
    ended = subprocess.run(
        command, check=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, encoding="utf-8", timeout=RUN_LIMIT_S
    )
    return time.perf_counter() - started_s, ended.stdout


def our_speed(model: Model) -> Speed:
    """Time the same model here: the command, a plan for traffic never seen, and the latency model alone."""
    with tempfile.TemporaryDirectory() as folder:
        path = _problem_file(Path(folder), model)
        command = [str(Path(sys.executable).with_name("cascadia-fast")), "plan", str(path)]
        _timed(command)  # the first run compiles
        command_s = statistics.median(_timed(command)[0] for _ in range(REPEATS))
        problem = Problem.read(path)
        planner = Planner(problem, 1)
        planner.plan()
        plan_s = statistics.median(
            _seconds_of(planner, model.rate_per_s * (0.9 + 0.01 * draw)) for draw in range(REPEATS)
        )
    configurations, seconds = _evaluated(planner)
    return Speed(command_s, plan_s, configurations, configurations / seconds)


def _problem_file(folder: Path, model: Model) -> Path:
    (folder / "requests.csv").write_text(
        f"request,model,input_tokens,output_tokens,quality\nonly,{model.ours},{INPUT_TOKENS},{OUTPUT_TOKENS},100\n",
        encoding="utf-8",
    )
    path = folder / "problem.yaml"
    path.write_text(
        f"cascade: [{{model: {model.ours}}}]\n"
        f"cluster: [{{gpu: h100-sxm-80gb, nodes: {GPUS // 8}, gpus_per_node: 8}}]\n"
        f"workload: {{requests: requests.csv, rate_per_s: {model.rate_per_s}}}\n"
        "goal: {q_min: 0, objective: end_to_end_p95}\n",
        encoding="utf-8",
    )
    return path


def _seconds_of(planner: Planner, rate_per_s: float) -> float:
    started_s = time.perf_counter()
    planner.plan(rate_per_s=rate_per_s)
    return time.perf_counter() - started_s


def _evaluated(planner: Planner) -> tuple[int, float]:
    """Evaluate every engine shape of the model on one thread at loads up to nine tenths of what it carries."""
    tokens_in, tokens_out = np.array([float(INPUT_TOKENS)]), np.array([float(OUTPUT_TOKENS)])
    share, load = np.ones((LOADS_PER_SHAPE, 1)), np.linspace(0.001, 0.9, LOADS_PER_SHAPE)
    started_s = time.perf_counter()
    for replica in planner.fleet[0].replicas:
        carried_per_s = _core.capacities(replica=replica, tokens_in=tokens_in, tokens_out=tokens_out, share=share[:1])
        found_s = _core.latency_quantiles(
            replica=replica, tokens_in=tokens_in, tokens_out=tokens_out, share=share, rate_per_s=load * carried_per_s
        )
        if not np.isfinite(found_s).all():
            raise RuntimeError("the latency model left a stable load without an answer")
    return LOADS_PER_SHAPE * len(planner.fleet[0].replicas), time.perf_counter() - started_s


def speed_table(ours: Sequence[Speed], theirs: Sequence[Speed] | None) -> Table:
    """Two rows per model, ours and the peer's; only ours where it is not installed."""
    lines = []
    for place, model in enumerate(MODELS):
        rows = [("cascadia_fast", ours[place])]
        if theirs is not None:
            rows.append((PINNED.replace("==", " "), theirs[place]))
        for name, speed in rows:
            lines.append((model.ours, name, *_cells(speed)))
    header = ("model", "planner", "command", "one plan", "configurations", "configurations per s")
    return Table(header, tuple(lines), frozenset(("model", "planner")))


def _cells(speed: Speed) -> tuple[str, ...]:
    plan = f"{speed.plan_s:.3g} s" if speed.plan_s >= 1 else f"{1e3 * speed.plan_s:.3g} ms"
    return f"{speed.command_s:.2f} s", plan, f"{speed.configurations:,}", f"{speed.configurations_per_s:,.0f}"


def measured(folder: Path) -> tuple[list[Speed], list[Speed] | None, str]:
    """Return our speeds, the peer's (None where it cannot be installed) and a note."""
    program, why = installed(folder)
    ours = [our_speed(model) for model in MODELS]
    if program is None:
        return ours, None, f"{PINNED} is left out: it could not be installed ({why})."
    return ours, [peer_speed(program, model) for model in MODELS], ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environment", type=Path, help="virtual environment of the peer, kept for the next time")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        ours, theirs, note = measured(options.environment or Path(folder) / "peer")
    print(table(speed_table(ours, theirs)))
    if note:
        print(f"\n{note}")
    if options.json:
        figures = {"ours": [asdict(row) for row in ours], "theirs": [asdict(row) for row in theirs or ()], "note": note}
        options.json.write_text(json.dumps(figures, indent=1), encoding="utf-8")


if __name__ == "__main__":
    main()
