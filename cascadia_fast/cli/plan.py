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

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem

_EXAMPLE_NOTE = "No FILE given: planning the built-in example."

# Options that change one field of the problem: its place in messages, its name, and what it takes.
_OVERRIDES = {
    "--gpus": ("cluster[0].gpus", "gpus", int),
    "--q-min": ("goal.q_min", "q_min", float),
    "--rate": ("workload.rate_per_s", "rate_per_s", float),
    "--method": ("goal.method", "method", str),
    "--latency": ("goal.latency", "latency", str),
    "--objective": ("goal.objective", "objective", str),
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
        str | None, typer.Option(metavar="NAME", help="What to minimise; this version knows max_stage_p95.")
    ] = None,
    paper_strict: Annotated[
        bool,
        typer.Option(
            "--paper-strict",
            help="The paper's setting: every model keeps a replica and its program is solved as written.",
        ),
    ] = False,
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
    texts |= {"--latency": latency, "--threads": threads, "-o": output}
    given = {option: text for option, text in texts.items() if text is not None}
    switches = ["--paper-strict"] * paper_strict + ["--json"] * as_json
    with outcome() as warnings:
        if write_example is not None:
            _write_example(write_example, [*([file] if file is not None else []), *given, *switches])
            return
        problem = _problem(file, given, paper_strict)
        if output is not None:
            _check_output(output, problem)
        made = _make_plan(problem, _whole("--threads", threads, least=1) if threads is not None else None)
        if output is not None:
            made.write(output)
        if as_json:
            _print_json(made, file)
            return
        _print_summary(made, file, given, paper_strict)
        warnings[:] = [sentence for sentence in warnings if sentence not in made.warnings]


def _problem(file: str | None, given: Mapping[str, str], paper_strict: bool) -> Problem:
    from cascadia_fast.errors import CascadiaError, InputError
    from cascadia_fast.problem import Problem

    if file == "":
        raise InputError("FILE is empty; give the path of a problem file")
    problem = Problem.example() if file is None else Problem.read(file)
    for option, (place, field, kind) in _OVERRIDES.items():
        if option not in given:
            continue
        try:
            problem = problem.replace(**{field: _value(option, given[option], kind)})  # type: ignore[arg-type]
        except CascadiaError as error:
            # The file is sound by now: what is wrong is the option.
            sentence = str(error).removeprefix(f"{problem.where}: ")
            raise type(error)(sentence.replace(place, option, 1) if sentence.startswith(place) else sentence) from None
    return problem.replace(paper_strict=True) if paper_strict else problem


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


def _check_output(output: str, problem: Problem) -> None:
    """Refuse, before any planning, to write the plan where it cannot be or must not be."""
    from cascadia_fast.errors import InputError

    if output in ("", "-"):
        raise InputError(f"-o is {output!r}; give the path of a file, or --json to print plan.json")
    for path in problem.input_paths():
        if os.path.exists(output) and os.path.exists(path) and os.path.samefile(output, path):
            raise InputError(f"-o {output} is a file that the problem is read from; give another path")


def _make_plan(problem: Problem, threads: int | None) -> Plan:
    from cascadia_fast.planner import Planner

    return Planner(problem, threads=threads).plan()


def _print_json(made: Plan, file: str | None) -> None:
    if file is None:
        typer.echo(_EXAMPLE_NOTE, err=True)
    with printing():
        sys.stdout.flush()
        sys.stdout.buffer.write(made.to_json())


def _print_summary(made: Plan, file: str | None, given: Mapping[str, str], paper_strict: bool) -> None:
    from cascadia_fast.summary import show

    command = ["cascadia-fast", "plan", *([file] if file is not None else []), *(["--paper-strict"] * paper_strict)]
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
