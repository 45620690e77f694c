"""What ``cascadia-fast plan`` answers instead of one plan: a front of plans, or a sweep over judges."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from cascadia_fast.cli.outcome import printing, progress

if TYPE_CHECKING:
    from cascadia_fast.problem import Problem


@dataclass(frozen=True, slots=True)
class Target:
    """Where an answer goes: files, JSON or text on stdout, and a `note` before it that is no part of JSON."""

    output: str | None
    picture: str | None
    as_json: bool
    note: str | None

    def announce(self) -> None:
        """Print the note."""
        if self.note is not None:
            typer.echo(self.note if self.as_json else f"{self.note}\n", err=self.as_json)


def print_front(problem: Problem, threads: int | None, axes: str, *, floor_given: bool, target: Target) -> None:
    """Find the front, write it to the files asked for, and print it."""
    from cascadia_fast.errors import InputError
    from cascadia_fast.pareto.front import checked_axes
    from cascadia_fast.pareto.text import show
    from cascadia_fast.planner import Planner

    try:
        wanted = checked_axes(tuple(axis.strip() for axis in axes.split(",")))
    except InputError as error:
        raise InputError(f"--pareto {axes}: {error}") from None
    floor = problem.goal.q_min
    if "quality" in wanted and not floor_given:
        problem = problem.replace(q_min=0.0)
    with progress() as say:
        say("searching the front")
        front = Planner(problem, threads=threads).front(wanted)
    if target.output is not None:
        front.write(target.output)
    if target.picture is not None:
        from cascadia_fast.pareto.picture import write_picture

        write_picture(front, target.picture, floor=floor)
    with printing():
        target.announce()
        if target.as_json:
            _print_bytes(front.to_json())
        else:
            show(front, sys.stdout)


def print_sweep(problem: Problem, threads: int | None, judges: str, *, target: Target) -> None:
    """Plan for judges of other AUCs, write the sweep to the file asked for, and print it."""
    import orjson

    from cascadia_fast.errors import InputError
    from cascadia_fast.judge_sweep import parse_range, sweep_judge
    from cascadia_fast.plan_json import replace_file
    from cascadia_fast.planner import Planner
    from cascadia_fast.summary_blocks import show

    try:
        low, high, step = parse_range(judges)
    except InputError as error:
        sentence = str(error)
        at = "--" if sentence.startswith("judge-auc ") else f"--judge-auc {judges}: "
        raise InputError(f"{at}{sentence}") from None
    with progress() as say:
        say("planning for each judge")
        sweep = sweep_judge(problem, low, high, step, plan=lambda variant: Planner(variant, threads=threads).plan())
    document = orjson.dumps(sweep.to_dict(), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    if target.output is not None:
        replace_file(Path(target.output), document)
    with printing():
        target.announce()
        if target.as_json:
            _print_bytes(document)
        else:
            show(sweep.blocks(), sys.stdout)


def _print_bytes(document: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(document)
