"""How right the latency model is: one page of tables and pictures, and the headline figures on the terminal.

    python -m benchmarks.accuracy [MEASUREMENTS.csv ...] [--against CSV] [--load JSON] [-o accuracy.html]

Predictions are those of the shipped profile, and those of fits that saw nothing of a run's model, number of GPUs or GPU
type; beside them, with --against, another tool's for the same runs (columns id, pred_ttft_ms, pred_tpot_ms, error), and
with --load the p95 under load beside the event simulation's. Without files it takes those in benchmarks/latency: the
runs behind the shipped profile, and what aiconfigurator 0.12.0 says of them.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    # `python -m` puts the source tree first on the import path, and that has no native modules.
    sys.path.append(sys.path.pop(0))

from benchmarks import accuracy_load, accuracy_plots, accuracy_runs
from benchmarks.accuracy_page import markdown, page
from benchmarks.accuracy_sections import Found, Inputs, headline, sections, summary
from benchmarks.choosing import choices
from cascadia_fast.calibration_summary import show
from cascadia_fast.cli.outcome import progress
from cascadia_fast.errors import InputError
from cascadia_fast.measurements import read_measurements
from cascadia_fast.plan_json import replace_file
from cascadia_fast.profile import Profile

LATENCY = Path(__file__).resolve().parent / "latency"
TABLE, PREDICTIONS = LATENCY / "silicon_serving_h100_h200.csv", LATENCY / "aiconfigurator_0.12.0_predictions.csv"


def main(words: Sequence[str] | None = None) -> int:
    arguments = _parser().parse_args(words)
    against = arguments.against if arguments.tables else arguments.against or PREDICTIONS
    inputs = Inputs(arguments.tables or [TABLE], against, arguments.load, arguments.profile)
    try:
        found = _report(inputs, arguments.output)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    tables = headline(found)
    if arguments.markdown:
        print("\n\n".join(f"{title}:\n\n{markdown(table)}" for title, table in tables))
    else:
        show([block for title, table in tables for block in (title, table)], sys.stdout)
        print(f"\nWrote {arguments.output}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", type=Path, nargs="*", help="measurement files; default: the published runs")
    parser.add_argument("--against", type=Path, metavar="CSV", help="another tool's predictions of the same runs")
    parser.add_argument("--load", type=Path, metavar="JSON", help="rows written by benchmarks/load_accuracy.py --json")
    parser.add_argument("--profile", type=Path, metavar="JSON", help="profile to judge; the shipped one without it")
    parser.add_argument("--markdown", action="store_true", help="print the headline tables as Markdown")
    parser.add_argument("-o", "--output", type=Path, default=Path("accuracy.html"), help="the page (accuracy.html)")
    return parser


def _report(inputs: Inputs, output: Path) -> Found:
    """Write the page; bad input is said before anything that takes long."""
    accuracy_plots.require_matplotlib()
    if not output.resolve().parent.is_dir():
        raise InputError(f"-o {output} lies in no folder; give a path in an existing one")
    profile = Profile.read(inputs.profile) if inputs.profile else Profile.shipped()
    answers = accuracy_load.read_answers(inputs.load) if inputs.load else []
    with progress() as say:
        measurements = read_measurements(inputs.tables)
        comparison = accuracy_runs.compare(measurements, profile, inputs.against, say)
        say("drawing")
        found = Found(measurements, profile, comparison, choices(measurements.rows, profile), answers)
        content = page("How right the latency model is", summary(found), sections(found, inputs))
    replace_file(output, content.encode())
    return found


if __name__ == "__main__":
    sys.exit(main())
