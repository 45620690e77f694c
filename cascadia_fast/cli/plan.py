"""``cascadia-fast plan``: the best plan of a problem file, or of the built-in example."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascadia_fast.cli.outcome import outcome

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem

_EXAMPLE_NOTE = "No FILE given: planning the built-in example."


def plan(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="Problem file (YAML); without it, the built-in example.")
    ] = None,
    gpus: Annotated[int | None, typer.Option(metavar="N", help="GPUs in the cluster.")] = None,
    q_min: Annotated[float | None, typer.Option(metavar="X", help="Quality floor, 0 to 100.")] = None,
    rate: Annotated[float | None, typer.Option(metavar="R", help="Mean requests per second.")] = None,
    method: Annotated[
        str | None, typer.Option(metavar="exact|alternating", help="How to search; default: exact.")
    ] = None,
    objective: Annotated[str | None, typer.Option(metavar="NAME", help="What to minimise.")] = None,
    paper_strict: Annotated[
        bool, typer.Option("--paper-strict", help="The paper's setting: every model runs, every GPU is used.")
    ] = False,
    threads: Annotated[int | None, typer.Option(metavar="T", min=1, help="Threads; default: all cores.")] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PATH", help="Write plan.json here.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print plan.json instead of the summary.")] = False,
    write_example: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write the built-in example's files to DIR and stop.")
    ] = None,
) -> None:
    """Plan the models, GPUs, parallelism and thresholds of a cascade. Options override FILE."""
    with outcome() as warnings:
        if write_example is not None:
            _write_example(write_example, file)
            return
        problem = _problem(file, gpus, q_min, rate, method, objective, paper_strict)
        made = _make_plan(problem, threads)
        if output is not None:
            made.write(output)
        if as_json:
            if file is None:
                typer.echo(_EXAMPLE_NOTE, err=True)
            sys.stdout.buffer.write(made.to_json())
            return
        from cascadia_fast.summary import show

        if file is None:
            typer.echo(f"{_EXAMPLE_NOTE}\n")
        flags = {
            "--gpus": gpus,
            "--q-min": q_min,
            "--rate": rate,
            "--method": method,
            "--objective": objective,
            "--threads": threads,
            "-o": output,
        }
        command = ["cascadia-fast", "plan", *([str(file)] if file else []), *(["--paper-strict"] * paper_strict)]
        given = {name: _text(value) for name, value in flags.items() if value is not None}
        show(made, sys.stdout, command, given)
        warnings[:] = [sentence for sentence in warnings if sentence not in made.warnings]


def _problem(
    file: Path | None,
    gpus: int | None,
    q_min: float | None,
    rate_per_s: float | None,
    method: str | None,
    objective: str | None,
    paper_strict: bool,
) -> Problem:
    from cascadia_fast.problem import Problem

    problem = Problem.example() if file is None else Problem.read(file)
    changes: dict[str, Any] = {
        "gpus": gpus,
        "q_min": q_min,
        "rate_per_s": rate_per_s,
        "method": method,
        "objective": objective,
        "paper_strict": paper_strict or None,
    }
    changes = {name: value for name, value in changes.items() if value is not None}
    return problem.replace(**changes) if changes else problem


def _make_plan(problem: Problem, threads: int | None) -> Plan:
    from cascadia_fast.planner import Planner

    return Planner(problem, threads=threads).plan()


def _write_example(directory: Path, file: Path | None) -> None:
    from cascadia_fast.errors import InputError
    from cascadia_fast.example import write_example

    if file is not None:
        raise InputError(f"--write-example copies the built-in example and takes no FILE; leave out {str(file)!r}")
    for path in write_example(directory):
        typer.echo(str(path))


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
