"""``cascadia-fast plan``: the best plan of a problem file, or of the built-in example."""

from __future__ import annotations

import os
import reprlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascadia_fast.cli.outcome import outcome, printing
from cascadia_fast.cli.trade_offs import Target, print_front, print_sweep

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem

_EXAMPLE_NOTE = "No FILE given: planning the built-in example."

EPILOG = """\
Deadline, budget, floor and losses are constraints of every objective. A front (--pareto) holds every plan that no
other beats on all its axes at once; with quality among them, only --q-min sets a floor. With -o a front is written as
JSON, or as CSV to a file that ends in .csv. A sweep of the judge (--judge-auc) plans again for judges that are worse
and better than the one at hand, told by the AUC of their scores. Exit codes: 0 done, 2 bad input or no plan, 130
interrupted.
"""

# Options that change one field of the problem: its place in messages, its name, and what it takes.
_OVERRIDES = {
    "--gpus": ("cluster[0].gpus", "gpus", int),
    "--q-min": ("goal.q_min", "q_min", float),
    "--q-confidence": ("goal.q_confidence", "q_confidence", float),
    "--rate": ("workload.rate_per_s", "rate_per_s", float),
    "--method": ("goal.method", "method", str),
    "--latency": ("goal.latency", "latency", str),
    "--objective": ("goal.objective", "objective", str),
    "--slo": ("goal.slo_s", "slo_s", float),
    "--slo-metric": ("goal.slo_metric", "slo_metric", str),
    "--budget": ("goal.budget_usd_per_hour", "budget_usd_per_hour", float),
    "--survive": ("goal.survive", "survive", str),
    "--time-limit": ("goal.time_limit_s", "time_limit_s", float),
}
# Options that switch one field of the problem.
_SWITCHES: dict[str, tuple[str, str, bool]] = {
    "--paper-strict": ("goal.paper_strict", "paper_strict", True),
    "--mixed": ("goal.mixed_shapes", "mixed_shapes", True),
    "--no-skip": ("goal.skip_models", "skip_models", False),
}


def plan(
    file: Annotated[
        str | None, typer.Argument(metavar="FILE", help="Problem file (YAML); without it, the built-in example.")
    ] = None,
    gpus: Annotated[str | None, typer.Option(metavar="N", help="GPUs in the cluster.")] = None,
    q_min: Annotated[str | None, typer.Option(metavar="X", help="Quality floor, 0 to 100.")] = None,
    rate: Annotated[str | None, typer.Option(metavar="R", help="Mean requests per second.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="exact|alternating", help="How to search; default: exact.")
    ] = None,
    latency: Annotated[
        str | None,
        typer.Option(metavar="formula|simulated", help="Where the p95s of stages come from; default: formula."),
    ] = None,
    objective: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="max_stage_p95 (default), end_to_end_p95, ttft_p95, min_cost, min_gpus, or max_rate.",
        ),
    ] = None,
    slo: Annotated[str | None, typer.Option(metavar="SECONDS", help="Deadline: the latency may be no more.")] = None,
    slo_metric: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Latency that --slo limits; default: the objective if it is one, else end_to_end_p95.",
        ),
    ] = None,
    budget: Annotated[str | None, typer.Option(metavar="USD_PER_HOUR", help="What GPUs and judge may cost.")] = None,
    q_confidence: Annotated[
        str | None,
        typer.Option(
            metavar="X", help="Confidence with which the floor holds, such as 0.95; default: only on average."
        ),
    ] = None,
    survive: Annotated[
        str | None,
        typer.Option(metavar="none|replica|node", help="Loss that the plan bears within its deadline; default: none."),
    ] = None,
    mixed: Annotated[bool, typer.Option("--mixed", help="Let a stage have replicas of two shapes.")] = False,
    no_skip: Annotated[
        bool, typer.Option("--no-skip", help="Plan the whole cascade only, not every choice of its models.")
    ] = False,
    time_limit: Annotated[
        str | None,
        typer.Option(metavar="SECONDS", help="Stop searching then, and say how far from the best the plan may be."),
    ] = None,
    paper_strict: Annotated[
        bool,
        typer.Option(
            "--paper-strict",
            help="The paper's setting: every model keeps a replica and its program is solved as written.",
        ),
    ] = False,
    pareto: Annotated[
        str | None,
        typer.Option(metavar="A,B[,C]", help="Find the front over latency, quality, cost instead of one plan."),
    ] = None,
    picture: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw the front of --pareto into this HTML file.")
    ] = None,
    judge_auc: Annotated[
        str | None,
        typer.Option(metavar="LO..HI[:STEP]", help="Sweep how good the judge is instead of making one plan."),
    ] = None,
    threads: Annotated[
        str | None,
        typer.Option(metavar="T", help="Threads for look-up tables and simulations; default: all cores."),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("-o", "--output", metavar="PATH", help="Write plan.json to this file (to print it: --json)."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan.json instead of the summary.")] = False,
    write_example: Annotated[
        str | None, typer.Option(metavar="DIR", help="Write the built-in example's files to DIR and stop.")
    ] = None,
) -> None:
    """Plan the models, GPUs, parallelism and thresholds of a cascade. Options override FILE."""
    texts = {"--gpus": gpus, "--q-min": q_min, "--rate": rate, "--method": method, "--objective": objective}
    texts |= {"--slo": slo, "--slo-metric": slo_metric, "--budget": budget, "--q-confidence": q_confidence}
    texts |= {"--survive": survive, "--time-limit": time_limit, "--latency": latency, "--threads": threads}
    texts |= {"--pareto": pareto, "--picture": picture, "--judge-auc": judge_auc, "-o": output}
    given = {option: text for option, text in texts.items() if text is not None}
    flags = {"--paper-strict": paper_strict, "--mixed": mixed, "--no-skip": no_skip}
    switches = [flag for flag, on in flags.items() if on]
    with outcome() as warnings:
        if write_example is not None:
            others = [*([file] if file is not None else []), *given, *switches, *(["--json"] * as_json)]
            _write_example(write_example, others)
            return
        _check_one_answer(given)
        problem = _problem(file, given, switches)
        for option, path in (("-o", output), ("--picture", picture)):
            if path is not None:
                _check_output(option, path, problem)
        count = None if threads is None else _whole("--threads", threads, least=1)
        if pareto is not None or judge_auc is not None:
            target = Target(output, picture, as_json, _EXAMPLE_NOTE if file is None else None)
            if pareto is not None:
                print_front(problem, count, pareto, floor_given=q_min is not None, target=target)
            else:
                print_sweep(problem, count, judge_auc or "", target=target)
            return
        made = _make_plan(problem, count)
        if output is not None:
            made.write(output)
        if as_json:
            _print_json(made, file)
            return
        _print_summary(made, file, given, switches)
        warnings[:] = [sentence for sentence in warnings if sentence not in made.warnings]


def _check_one_answer(given: Mapping[str, str]) -> None:
    from cascadia_fast.errors import InputError

    if "--pareto" in given and "--judge-auc" in given:
        raise InputError("--pareto and --judge-auc each ask for an answer of their own; give one of them")
    if "--picture" in given and "--pareto" not in given:
        raise InputError("--picture draws a front; give --pareto latency,quality as well")
    picture, output = given.get("--picture"), given.get("-o")
    if picture and output and os.path.abspath(picture) == os.path.abspath(output):
        raise InputError(f"-o and --picture are both {picture}; give two paths")


def _problem(file: str | None, given: Mapping[str, str], switches: Sequence[str]) -> Problem:
    from cascadia_fast.errors import CascadiaError, InputError
    from cascadia_fast.problem import Problem

    if file == "":
        raise InputError("FILE is empty; give the path of a problem file")
    problem = Problem.example() if file is None else Problem.read(file)
    changes = {
        field: _value(option, given[option], kind) for option, (_, field, kind) in _OVERRIDES.items() if option in given
    }
    changes |= {field: value for switch in switches for _, field, value in (_SWITCHES[switch],)}
    try:
        # All at once: a deadline and what it counts by make sense together only.
        return problem.replace(**changes)  # type: ignore[arg-type]
    except CascadiaError as error:
        # The file is sound by now: what is wrong is the options.
        sentence = str(error).removeprefix(f"{problem.where}: ")
        places = {option: place for option, (place, *_) in (*_OVERRIDES.items(), *_SWITCHES.items())}
        for option in (*given, *switches):
            sentence = sentence.replace(places.get(option, option), option)
        raise type(error)(sentence) from None


def _value(option: str, text: str, kind: type) -> int | float | str:
    if kind is int:
        return _whole(option, text)
    if kind is str:
        return text
    from cascadia_fast.errors import InputError

    try:
        return float(text)
    except ValueError:
        raise InputError(f"{option} is {reprlib.repr(text)}; give a number") from None


def _whole(option: str, text: str, least: int | None = None) -> int:
    from cascadia_fast.errors import InputError

    try:
        value = int(text)
    except ValueError:
        raise InputError(f"{option} is {reprlib.repr(text)}; give a whole number") from None
    if least is not None and value < least:
        raise InputError(f"{option} is {value}; it must be at least {least}")
    return value


def _check_output(option: str, output: str, problem: Problem) -> None:
    """Refuse, before any planning, to write where it cannot be or must not be."""
    from cascadia_fast.errors import InputError

    if output in ("", "-"):
        instead = ", or --json to print the result" if option == "-o" else ""
        raise InputError(f"{option} is {output!r}; give the path of a file{instead}")
    for path in problem.input_paths():
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise InputError(f"{option} {output} is a file that the problem is read from; give another path")


def _make_plan(problem: Problem, threads: int | None) -> Plan:
    from cascadia_fast.planner import Planner

    return Planner(problem, threads=threads).plan()


def _print_json(made: Plan, file: str | None) -> None:
    if file is None:
        typer.echo(_EXAMPLE_NOTE, err=True)
    with printing():
        sys.stdout.flush()
        sys.stdout.buffer.write(made.to_json())


def _print_summary(made: Plan, file: str | None, given: Mapping[str, str], switches: Sequence[str]) -> None:
    from cascadia_fast.summary import show

    command = ["cascadia-fast", "plan", *([file] if file is not None else []), *switches]
    with printing():
        if file is None:
            typer.echo(f"{_EXAMPLE_NOTE}\n")
        show(made, sys.stdout, command, given)


def _write_example(directory: str, others: list[str]) -> None:
    from cascadia_fast.errors import InputError
    from cascadia_fast.example import write_example

    if others:
        raise InputError(f"--write-example copies the built-in example and takes nothing else; leave out {others[0]}")
    if not directory:
        raise InputError("--write-example is ''; give the directory to write to")
    paths = write_example(directory)
    with printing():
        for path in paths:
            typer.echo(os.fsencode(path))
        typer.echo(os.fsencode(f"Next: {shlex.join(['cascadia-fast', 'plan', str(Path(paths[0]))])}"))
