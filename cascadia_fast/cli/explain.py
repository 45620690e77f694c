"""``cascadia-fast explain``: why a plan is as it is, and what would change it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from cascadia_fast.cli.outcome import outcome, printing, progress
from cascadia_fast.cli.planned import read_problem

if TYPE_CHECKING:
    from collections.abc import Callable

    from cascadia_fast.blueprint import Plan
    from cascadia_fast.explaining.explanation import Explanation
    from cascadia_fast.problem import Problem

EPILOG = """\
JSON: {schema_version, plan_id, objective, chosen, planned_again, bottleneck {station, index, why[]}, constraints[]
{what, kind, limit, reached, left}, what_ifs[] {change, best, reason}, alternatives[] {kind, models[], station, shape,
best, reason}, certificate[]}. chosen, planned_again and best are {objective_value, latency_s, quality, usd_per_hour,
gpus, models[], stage_gpus[]}, null where there is no plan (then reason says why) and, planned_again, where planning
the problem again gives the plan itself. Exit codes: 0 done, 2 bad input, 130 interrupted.
"""


def explain(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan.json.")],
    problem: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Problem file of the plan; else the one it was made from, found by its hash beside PLAN or in the "
            "working directory.",
        ),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of text; its fields stand below.")
    ] = False,
) -> None:
    """Explain a plan: what binds it, what a little more would buy, and the best plans not chosen."""
    with outcome():
        with progress() as say:
            found = _explain(plan, problem, say)
        with printing():
            if as_json:
                sys.stdout.flush()
                sys.stdout.buffer.write(found.to_json())
            else:
                from cascadia_fast.explaining.text import write

                write(found, sys.stdout)


def _explain(path: str, problem: str | None, say: Callable[[str], None]) -> Explanation:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.errors import InputError
    from cascadia_fast.explaining.explanation import explain as explain_plan
    from cascadia_fast.planner import Planner
    from cascadia_fast.simulation.belonging import check_plan

    if path == "":
        raise InputError("PLAN is empty; give the path of a plan.json")
    say("reading the plan")
    plan = Plan.read(path)
    planned = read_problem(plan, Path(path), problem)
    check_plan(plan, planned)

    def replan(changed: Problem) -> Plan:
        say("planning variants")
        return Planner(changed).plan()

    return explain_plan(plan, planned, replan, Planner(planned).alternatives)
