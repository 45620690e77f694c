"""Generates what the README prints, between markers: the results of the benchmarks, and what other commands print.

python benchmarks/tables.py                    run the benchmarks, then write all of them
python benchmarks/tables.py --load ROWS.json   also p95 under load (ROWS: benchmarks/load_accuracy.py --json)
python benchmarks/tables.py --paper DIR        also the paper's results beside ours (DIR keeps the trials; minutes)
python benchmarks/tables.py RUN.json           write the table of a run (pytest --benchmark-json=RUN.json)
python benchmarks/tables.py RUN.json --check   exit 1 unless the README holds exactly that table
python benchmarks/tables.py --check            exit 1 unless the README holds these rows, whatever was measured
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path.append(str(ROOT))  # last: the package itself stays the installed one

from benchmarks.readme_blocks import Block, Missing, blocks  # noqa: E402

README = ROOT / "README.md"
RESULTS = "results"  # the name in the markers
HEADER = ("what", "today's best", "target", "measured (median)")
SIZES = (32, 80, 1024, 10240)

PAPER = "10–20 s at 32 GPUs, ≤ 60 s at 80, heuristic, on 12 cores (Cascadia, arXiv 2506.04203)"
PEER_RATE = "27.8 k/s, prefill and decode steps from tables (aiconfigurator 0.12.0, on 2 cores)"
PEER_SIMULATOR = "753–831/s (vidur 7d47513, one model)"
PEER_COMMAND = "6.8 s for one dense model, 24 s for one MoE (aiconfigurator 0.12.0, on 2 cores)"


@dataclass(frozen=True)
class Run:
    """The benchmarks of one run by ``file::test[parameters]``, without ``benchmarks/bench_`` and ``.py``."""

    benchmarks: dict[str, dict[str, Any]]
    machine: str
    date: str

    @classmethod
    def read(cls, path: Path) -> Run:
        content = json.loads(path.read_text(encoding="utf-8"))
        info = content["machine_info"]
        cpu = f"{info['cpu'].get('brand_raw', info['machine'])}, {info['cpu']['count']} cores"
        named = {
            entry["fullname"].removeprefix("benchmarks/bench_").replace(".py::test_", "::"): entry
            for entry in content["benchmarks"]
        }
        machine = f"{cpu}, {info['python_implementation']} {info['python_version']} on {info['system']}"
        return cls(named, machine, content["datetime"][:10])

    def _entry(self, name: str) -> dict[str, Any]:
        if name not in self.benchmarks:
            raise Missing(f"the run has no benchmark {name!r}; run all of them: python benchmarks/tables.py")
        return self.benchmarks[name]

    def median_s(self, name: str) -> float:
        return float(self._entry(name)["stats"]["median"])

    def extra(self, name: str, key: str) -> float:
        return float(self._entry(name)["extra_info"][key])


@dataclass(frozen=True)
class Row:
    """One line of the table; `best` and `measured` are texts made from the run."""

    what: str
    best: Callable[[Run], str]
    target: str
    measured: Callable[[Run], str]


def _said(text: str) -> Callable[[Run], str]:
    return lambda run: text


def _time(seconds: float) -> str:
    """Three digits with the unit that suits them."""
    for unit, scale in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= scale:
            return f"{_three(seconds / scale)} {unit}"
    return f"{_three(seconds * 1e9)} ns"


def _rate(per_s: float) -> str:
    for unit, scale in ((" M/s", 1e6), (" k/s", 1e3)):
        if per_s >= scale:
            return f"{_three(per_s / scale)}{unit}"
    return f"{_three(per_s)}/s"


def _three(value: float) -> str:
    digits = next((digits for limit, digits in ((9.995, 2), (99.95, 1)) if value < limit), 0)
    return f"{value:,.{digits}f}"


def _median(name: str, label: str = "") -> Callable[[Run], str]:
    return lambda run: f"{label}{_time(run.median_s(name))}"


def _per_s(name: str, label: str = "", key: str = "evaluations_per_s") -> Callable[[Run], str]:
    return lambda run: f"{label}{_rate(run.extra(name, key))}"


def _plans(method: str, case: str) -> Row:
    names = {gpus: f"planner::plan[{method}-{case}-{gpus}]" for gpus in SIZES}
    sizes = ", ".join(f"{gpus:,}" for gpus in SIZES)

    def measured(run: Run) -> str:
        times = " / ".join(_time(run.median_s(name)) for name in names.values())
        counts = [f"{run.extra(names[SIZES[-1]], key):,.0f} {key}" for key in ("evaluated", "pruned")]
        routings = f"{run.extra(names[SIZES[-1]], 'distinct_routings'):,.0f} routings"
        return f"{times}; {', '.join([routings, *(counts if method == 'exact' else [])])}"

    return Row(f"`{method}` plan, {case} case, {sizes} GPUs, new traffic every call", _said(PAPER), "≤ 25 ms", measured)


def _mixed(case: str) -> Row:
    def measured(run: Run) -> str:
        return " / ".join(_time(run.median_s(f"objectives::shapes[mixed-{case}-{gpus}]")) for gpus in SIZES)

    def best(run: Run) -> str:
        one = " / ".join(_time(run.median_s(f"objectives::shapes[one-{case}-{gpus}]")) for gpus in SIZES)
        return f"one shape per stage: {one}"

    what = f"`exact`, mixed shapes, all subsets of the models, {case} case, {', '.join(f'{n:,}' for n in SIZES)} GPUs"
    return Row(what, best, "≤ 100 ms", measured)


def _end_to_end(gpus: int, target: str) -> Row:
    def measured(run: Run) -> str:
        def said(case: str) -> str:
            return f"{_time(run.median_s(f'objectives::objective[end_to_end_p95-{case}-{gpus}]'))} {case}"

        return "; ".join(said(case) for case in ("deepseek", "llama20k"))

    return Row(f"`end_to_end_p95`, proved, grid × allocations, {gpus} GPUs", _said("–"), target, measured)


def _front() -> Row:
    def measured(run: Run) -> str:
        def said(objective: str, case: str) -> str:
            name = f"objectives::front[{objective}-{case}]"
            return f"{_time(run.median_s(name))} {case} ({run.extra(name, 'points'):.0f} points)"

        cases = ("deepseek", "llama20k")
        texts = [f"{', '.join(said(name, case) for case in cases)}" for name in ("max_stage_p95", "end_to_end_p95")]
        return f"slowest stage: {texts[0]}; end to end: {texts[1]}"

    return Row("exact front of latency and quality, 32 GPUs, two threads", _said("–"), "≤ 0.5 s", measured)


def _four_models() -> Row:
    def measured(run: Run) -> str:
        names = [f"objectives::four_models[{gpus}]" for gpus in (32, 80)]
        times = " / ".join(_time(run.median_s(name)) for name in names)
        return f"{times}; {run.extra(names[0], 'distinct_routings'):,.0f} distinct routings"

    return Row("four models, 102³ threshold combinations, proved, 32 / 80 GPUs", _said("–"), "≤ 5 s", measured)


def _three_pools() -> Row:
    def measured(run: Run) -> str:
        def said(objective: str) -> str:
            name = f"objectives::three_pools[{objective}]"
            return f"{_time(run.median_s(name))} {objective} (gap {100 * run.extra(name, 'gap'):.2g} %)"

        return "; ".join(said(objective) for objective in ("max_stage_p95", "min_cost"))

    return Row("three GPU types, 256 GPUs, llama20k, all subsets", _said("–"), "≤ 5 s, gap ≤ 1 %", measured)


def _observe() -> Row:
    def call(test: str) -> Callable[[Run], str]:
        return lambda run: _time(run.extra(f"monitor::{test}", "per_call_ns") * 1e-9)

    def best(run: Run) -> str:
        return f"{call('pybind11')(run)} as a pybind11 class, {call('pure_python')(run)} in Python"

    return Row("`Monitor.observe()`, best round, with the loop that calls it", best, "≤ 0.3 µs", call("cython"))


def _grid() -> Row:
    def best(run: Run) -> str:
        seconds = run.extra("routing::numpy_per_threshold[1000000]", "whole_grid_s")
        return f"{_time(seconds)} in NumPy, threshold by threshold (from 3 of them)"

    def measured(run: Run) -> str:
        raw_s, binned_s = (run.median_s(f"routing::{test}[1000000]") for test in ("from_raw_arrays", "once_binned"))
        return f"{_time(raw_s)}; {_time(binned_s)} once binned"

    return Row(
        "threshold grid, 1 M requests × 3 stages, 102 × 102 levels",
        best,
        "≤ 50 ms, ≥ 100 times as fast; ≤ 15 ms once binned",
        measured,
    )


def _p95() -> Row:
    name = "latency_model::p95"

    def measured(run: Run) -> str:
        poisson, trace = (_rate(run.extra(f"{name}[{a}]", "evaluations_per_s")) for a in ("poisson", "trace"))
        return f"{poisson}; {trace} with the trace's burstiness"

    best = _per_s(f"{name}_numpy_reference[poisson]", "the reference in NumPy: ")
    return Row("full p95 per thread (64 cells, batch 256)", best, "≥ 0.2 M/s", measured)


def _table_fill() -> Row:
    def measured(run: Run) -> str:
        alone_s, both_s = (run.median_s(f"latency_model::table[{threads}]") for threads in (1, 2))
        return f"{_time(both_s)}, {alone_s / both_s:.2f} times as fast"

    best = _median("latency_model::table[1]", "one thread: ")
    return Row("look-up tables, 3 stages × 10,240 GPUs, on two threads", best, "≥ 1.8 times as fast", measured)


def _highs(gpus: int, target: str) -> Row:
    best = _median(f"allocation::as_written[{gpus}]", "the paper's program as written: ")
    return Row(f"HiGHS on one allocation, {gpus:,} GPUs", best, target, _median(f"allocation::pruned[{gpus}]"))


def _replica() -> Row:
    best = _per_s("simulation::replica_step_by_step_in_numba", "step by step in Numba: ", "requests_per_s")
    what = "simulation of one replica, 100,000 requests of the Azure conversation trace, per thread"
    return Row(what, best, "≥ 5 M/s", _per_s("simulation::replica", key="requests_per_s"))


def _cascade(gpus: int, target: str, *further: tuple[str, str]) -> Row:
    cases = [(case, f"cascade[{case}-{gpus}]") for case in ("deepseek", "llama20k")]

    def measured(run: Run) -> str:
        def said(label: str, name: str) -> str:
            visits = run.extra(f"simulation::{name}", "visits_per_request")
            return f"{_rate(run.extra(f'simulation::{name}', 'requests_per_s'))} {label} ({visits:.2f} stages each)"

        return "; ".join(said(label, name) for label, name in [*cases, *further])

    slow = _per_s("simulation::cascade_slowly_in_python", "; step by step in Python: ", "requests_per_s")
    what = f"simulation of a cascade, 3 stages on {gpus:,} GPUs, requests per thread"
    return Row(what, lambda run: PEER_SIMULATOR + slow(run), target, measured)


def _by_simulation() -> Row:
    name = "simulated_latency::plan_by_simulation"
    best = f"{PAPER}; by the formula here: "
    return Row(
        "`exact` plan with `latency: simulated`, deepseek case, 32 GPUs, new traffic every call, two threads",
        lambda run: best + _time(run.median_s(f"{name}[formula]")),
        "≤ 5 s",
        _median(f"{name}[simulated]"),
    )


def _runs() -> Row:
    def measured(run: Run) -> str:
        alone_s, both_s = (run.median_s(f"simulation::runs[{threads}]") for threads in (1, 2))
        return f"{_time(both_s)}, {alone_s / both_s:.2f} times as fast"

    best = _median("simulation::runs[1]", "one thread: ")
    return Row("eight independent simulations on two threads", best, "≥ 1.8 times as fast", measured)


def _simulated_memory() -> Row:
    def measured(run: Run) -> str:
        peak, each = (run.extra("simulation::peak_memory", key) for key in ("peak_bytes", "bytes_per_request"))
        return f"{peak / 1e9:.2f} GB; {each:.0f} bytes per request, inputs and every visit's times included"

    return Row("peak memory of simulating 10 M requests, statistics included", _said("–"), "≤ 2 GB", measured)


def _comparison() -> Row:
    def measured(run: Run) -> str:
        one, two = (run.median_s(f"comparison::processes[{jobs}]") for jobs in (1, 2))
        main, trials = (run.extra("comparison::whole", key) for key in ("main_trials", "trials"))
        return (
            f"{_time(run.median_s('comparison::whole'))}, with {trials - main:,.0f} more for curves and savings; "
            f"a small one: two processes {one / two:.2f} times as fast as one"
        )

    what = "whole comparison, DeepSeek: 7 systems × 3 traces × 4 floors × 3 rates × 5 seeds × 20,000 requests"
    return Row(what, _said("–"), "≤ 180 s", measured)


def _memory() -> Row:
    def measured(run: Run) -> str:
        return f"{run.extra('command::peak_memory', 'peak_bytes') / 1e6:,.0f} MB"

    return Row("peak memory, llama20k case, 1,024 GPUs", _said("–"), "≤ 300 MB", measured)


ROWS = (
    *(_plans(method, case) for method in ("exact", "alternating") for case in ("deepseek", "llama20k")),
    *(_mixed(case) for case in ("deepseek", "llama20k")),
    _end_to_end(32, "≤ 0.2 s"),
    _end_to_end(80, "≤ 1 s"),
    _front(),
    _four_models(),
    _three_pools(),
    _highs(32, "≤ 10 ms"),
    _highs(1024, "≤ 50 ms"),
    Row(
        "step times per thread",
        _said(PEER_RATE),
        "≥ 5 M/s",
        _per_s("step_time::step_times[batch]", key="step_times_per_s"),
    ),
    Row("pruning bounds per thread (64 cells)", _said("–"), "≥ 1 M/s", _per_s("latency_model::pruning_bound")),
    _p95(),
    _table_fill(),
    _grid(),
    _replica(),
    _cascade(32, "≥ 2 M/s", ("llama20k with full KV caches", "cascade_preempting")),
    _cascade(1024, "≥ 1 M/s"),
    _runs(),
    _simulated_memory(),
    _comparison(),
    _by_simulation(),
    _observe(),
    Row("`cascadia-fast plan`, new process", _said(PEER_COMMAND), "≤ 1 s", _median("command::plan")),
    Row("the same, first run ever", _said("–"), "≤ 8 s", _median("command::first_plan_ever")),
    Row(
        "`cascadia-fast --help`",
        _median("command::bare_interpreter", "a bare interpreter: "),
        "≤ 0.15 s",
        _median("command::help"),
    ),
    _memory(),
)


def block(run: Run) -> str:
    """Return the table."""
    lines = [_line(HEADER), _line(["---"] * len(HEADER))]
    lines += [_line([row.what, row.best(run), row.target, row.measured(run)]) for row in ROWS]
    made = f"Measured on {run.date} on {run.machine}; made by `python benchmarks/tables.py`."
    return "\n".join([*lines, "", made])


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def same_rows(table: str) -> bool:
    """Whether a table has these rows with these targets, whatever it says was measured."""
    lines = [line.strip("| ").split(" | ") for line in table.splitlines() if line.startswith("|")]
    found = [(cells[0], cells[2]) for cells in lines[2:] if len(cells) == len(HEADER)]
    return found == [(row.what, row.target) for row in ROWS]


def run_benchmarks(path: Path) -> None:
    """Run all benchmarks; -P keeps the source tree, which has no native modules, off the import path."""
    command = [sys.executable, "-P", "-m", "pytest", "benchmarks", "--benchmark-only", "-q"]
    subprocess.run([*command, f"--benchmark-json={path}"], cwd=ROOT, check=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write or check the README's table of results.")
    parser.add_argument("run", nargs="?", type=Path, help="JSON of a benchmark run; without it, run them")
    parser.add_argument("--check", action="store_true", help="only say whether the README is up to date")
    parser.add_argument(
        "--load", type=Path, help="rows of benchmarks/load_accuracy.py --json, for the table under load"
    )
    parser.add_argument("--paper", type=Path, help="folder that keeps the trials of benchmarks.paper, for its table")
    arguments = parser.parse_args()
    try:
        text = README.read_text(encoding="utf-8")
        if arguments.check:
            _, table, _ = Block(RESULTS, str).split(text)
            current = same_rows(table) if arguments.run is None else table.strip() == block(Run.read(arguments.run))
            print(f"{README.name} is {'up to date' if current else 'out of date; run python benchmarks/tables.py'}")
            return 0 if current else 1
        with tempfile.TemporaryDirectory() as folder:
            path = arguments.run or Path(folder) / "run.json"
            if arguments.run is None:
                run_benchmarks(path)
            made = block(Run.read(path))
        for part in (Block(RESULTS, lambda: made), *blocks(arguments.load, arguments.paper)):
            text = part.put_into(text)
        README.write_text(text, encoding="utf-8")
    except (Missing, OSError, subprocess.CalledProcessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
