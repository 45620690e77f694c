"""The paper's results beside ours: the whole comparison on its two cascades and three traces each.

    python -m benchmarks.paper --out DIR [--seeds 5] [--requests 20000] [--jobs N] [--fresh] [--all]

DIR keeps every trial, so that an interrupted run goes on where it was, and the results as DIR/deepseek.json and
DIR/llama.json. What is printed is Markdown: each result of Cascadia (arXiv 2506.04203), what the cases here come to,
and where that is less, why, in a sentence computed from the cases (benchmarks/paper_reasons.py).
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.accuracy_page import markdown
from benchmarks.matched_load import matched
from benchmarks.paper_cases import DEEPSEEK, LLAMA, case, floors
from benchmarks.paper_rows import Found, rows
from cascadia_fast.baselines.systems import SYSTEMS
from cascadia_fast.comparison.running import compare, cores
from cascadia_fast.comparison.setup import DEFAULT_REQUESTS, DEFAULT_SEEDS, CaseSetup, Setup
from cascadia_fast.errors import InputError
from cascadia_fast.planner import Planner
from cascadia_fast.summary_layout import Table


def setup_of(names: Sequence[str], seeds: int, requests: int) -> Setup:
    """Return the comparison of every system on some cases at the floors that stand for the paper's four."""
    cases = []
    for name in names:
        problem = case(name)
        cases.append(CaseSetup.of(name, problem, floors(Planner(problem)), file=f"{name}.yaml"))
    return Setup(tuple(cases), SYSTEMS, tuple(range(seeds)), requests)


def measured(names: Sequence[str], out: Path, options: argparse.Namespace) -> Found:
    """Run the trials of some cases, or finish them, and keep their results in a folder and as JSON beside it."""
    command = f"python -m benchmarks.paper --out {out.parent} --seeds {options.seeds} --requests {options.requests}"
    results = compare(
        setup_of(names, options.seeds, options.requests),
        out=out,
        fresh=options.fresh,
        jobs=options.jobs,
        progress=_progress(out.name),
        command=command,
    )
    out.with_suffix(".json").write_text(json.dumps(results), encoding="utf-8")
    at_scale = out.with_name(f"{out.name}-matched")
    return Found(results, matched(names, at_scale, options.requests, options.jobs or cores(), options.fresh))


def _progress(name: str) -> Callable[[int, int, int], None]:
    def told(done: int, before: int, total: int) -> None:
        if sys.stderr.isatty() or done == total:
            print(f"\r{name}: {done:,} of {total:,} trials ({before:,} kept)", end="", file=sys.stderr)
        if done == total:
            print(file=sys.stderr)

    return told


def table_of(deepseek: Found, llama: Found, every_row: bool = False) -> str:
    """Return the table in Markdown, with what it was made from; every row of it, or those that matter most."""
    header = ("result", "the paper", "here", "why less")
    lines, said = [], set()
    for row in rows(deepseek, llama):
        if not (row.brief or every_row):
            continue
        why = "as above" if row.why in said else row.why or "–"
        said.add(row.why or why)
        lines.append((row.what, row.paper, row.here, why))
    trials = sum(len(found.results["cells"]) + len(found.matched.rows) for found in (deepseek, llama))
    settings = deepseek.results["settings"]
    made = (
        "On equal terms: neither system in overload or below the floor by more than the noise, nor (at the file's "
        "rates) half a point further below it than the other. Traffic at a scale: the largest rate without overload. "
        f"{trials:,} trials of {settings['requests']:,} requests, "
        f"{len(settings['seeds'])} seeds; made by `python -m benchmarks.paper`."
    )
    return f"{markdown(Table(header, tuple(lines), frozenset(header)))}\n\n{made}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder that keeps the trials")
    parser.add_argument("--seeds", type=int, default=DEFAULT_SEEDS)
    parser.add_argument("--requests", type=int, default=DEFAULT_REQUESTS, help="of each trial")
    parser.add_argument("--jobs", type=int, help="processes; default: as many as cores")
    parser.add_argument("--fresh", action="store_true", help="forget what the folder holds")
    parser.add_argument("--all", action="store_true", help="print every row, not only those that matter most")
    options = parser.parse_args()
    try:
        options.out.mkdir(parents=True, exist_ok=True)
        deepseek = measured(DEEPSEEK, options.out / "deepseek", options)
        llama = measured(LLAMA, options.out / "llama", options)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(f"\nstopped; the same command goes on from what {options.out} keeps", file=sys.stderr)
        return 130
    print(table_of(deepseek, llama, options.all))
    return 0


if __name__ == "__main__":
    sys.exit(main())
