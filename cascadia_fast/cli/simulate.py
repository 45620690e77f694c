"""``cascadia-fast simulate``: serve requests with a plan in simulation."""

from __future__ import annotations

import os
import reprlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascadia_fast.cli.outcome import INTERRUPTED, outcome, printing, progress
from cascadia_fast.cli.outcome import say as tell
from cascadia_fast.cli.planned import read_problem

if TYPE_CHECKING:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.problem import Problem
    from cascadia_fast.simulation import Simulation

EPILOG = """\
JSON: {schema_version, plan_id, settings, requests {served, timed_out, refused, unfinished}, interrupted, simulated_s,
measured {rule, requests, warm_up, cool_down, start_s, end_s}, latency_s, ttft_s, tpot_s, queueing_s, offered_per_s,
throughput_per_s, slo {slo_s, within_slo, goodput_per_s, smallest_scale_95, attainment[] {scale, share}}, quality,
gear_shares[], cost_usd_per_request, stages[], predictions[] {what, predicted_s, simulated_s, error, inside}, notes[]}.
Percentiles are {p50, p90, p95, p99, count, sections}, each of them and quality {value, low, high} with a 95 % interval,
null where the run is too short for one. A scale is latency over the request's own on an idle system. stages[] holds
index (from 0), model, gpus, replicas, visits, reach, arrived_per_s, finished_per_s, percentiles as above, busy_share,
mean_running, mean_queue, peak_queue, preemptions, preemptions_per_visit, peak_kv_share. error is predicted over
simulated minus one. Exit codes: 0 done, 2 bad input, 130 interrupted (what was simulated so far is printed).
"""

# Options of the run: the parameter of `cascadia_fast.simulate`, and what it takes.
_OPTIONS: dict[str, tuple[str, type]] = {
    "--requests": ("requests", int),
    "--seed": ("seed", int),
    "--rate": ("rate_per_s", float),
    "--arrivals": ("arrivals", str),
    "--concurrency": ("concurrency", int),
    "--dispatch": ("dispatch", str),
    "--batching": ("batching", str),
    "--admission": ("admission", str),
    "--prefix-hits": ("prefix_hit_share", float),
    "--timeout": ("timeout_s", float),
    "--slo": ("slo_s", float),
    "--judge-cv": ("judge_cv", float),
}


def simulate(
    plan: Annotated[
        str | None,
        typer.Argument(metavar="PLAN", help="A plan.json; without it, the built-in example is planned and simulated."),
    ] = None,
    problem: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="Problem file of the plan; else the one it was made from, found by its hash beside PLAN or in the "
            "working directory.",
        ),
    ] = None,
    requests: Annotated[str | None, typer.Option(metavar="N", help="Requests to send; default: 100000.")] = None,
    seed: Annotated[str | None, typer.Option(metavar="S", help="Equal seeds give equal runs; default: 0.")] = None,
    rate: Annotated[
        str | None, typer.Option(metavar="R", help="Mean requests per second; default: those the plan was made for.")
    ] = None,
    arrivals: Annotated[
        str | None,
        typer.Option(metavar="trace|poisson|gamma", help="Kind of arrivals; default: the problem's trace, else gamma."),
    ] = None,
    concurrency: Annotated[
        str | None, typer.Option(metavar="C", help="So many clients that wait for their answers, instead of arrivals.")
    ] = None,
    dispatch: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Which replica gets a request: capacity_weighted (default), least_outstanding, power_of_two, "
            "round_robin, random.",
        ),
    ] = None,
    batching: Annotated[
        str | None, typer.Option(metavar="chunked|prompts_first", help="What a step carries; default: the plan's.")
    ] = None,
    admission: Annotated[
        str | None, typer.Option(metavar="fcfs|shortest_first", help="Who is taken up next; default: fcfs.")
    ] = None,
    prefix_hits: Annotated[
        str | None, typer.Option(metavar="X", help="Share of every prompt that a prefix cache holds, 0 to 1.")
    ] = None,
    timeout: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Cancel requests that take longer, end to end.")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(metavar="SECONDS", help="Deadline, end to end, to count attainment and goodput by.")
    ] = None,
    judge_cv: Annotated[
        str | None, typer.Option(metavar="X", help="Coefficient of variation of the judge's latency; default: 0.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print JSON instead of the summary; its fields stand below.")
    ] = False,
    trace: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Write one row per request to this .parquet, .arrow, .csv or .jsonl file."),
    ] = None,
    timeline: Annotated[
        str | None, typer.Option(metavar="PATH", help="Draw what happened over time into this HTML file.")
    ] = None,
) -> None:
    """Simulate a plan request by request: latencies with confidence intervals against what the plan predicts."""
    texts = {"--requests": requests, "--seed": seed, "--rate": rate, "--arrivals": arrivals}
    texts |= {"--concurrency": concurrency, "--dispatch": dispatch, "--batching": batching, "--admission": admission}
    texts |= {"--prefix-hits": prefix_hits, "--timeout": timeout, "--slo": slo, "--judge-cv": judge_cv}
    given = {option: text for option, text in texts.items() if text is not None}
    files = {"--problem": problem, "--trace": trace, "--timeline": timeline}
    given_files = {option: path for option, path in files.items() if path is not None}
    interrupted = False
    with outcome():
        arguments = {_OPTIONS[option][0]: _value(option, text) for option, text in given.items()}
        with progress() as say:
            say("reading the plan")
            made, made_for = _plan_and_problem(plan, problem)
            _check_outputs(trace, timeline, [*([Path(plan)] if plan is not None else []), *made_for.input_paths()])
            run = _run(made, made_for, arguments, say)
            interrupted = run.interrupted
            # Whoever stops a run waits no longer, and a part of it must not pass for the whole.
            if not interrupted:
                _write(run, trace, timeline, say)
            say("counting")
            document = run.to_json()
        if plan is None:
            what = problem or "the built-in example"
            typer.echo(f"No PLAN given: planning and simulating {what}.\n", err=as_json)
        command = ["cascadia-fast", "simulate", *([plan] if plan is not None else [])]
        _print(run, document if as_json else None, command, {**given_files, **given})
    if interrupted:
        for path in filter(None, (trace, timeline)):
            tell(f"{path} was not written: the run was interrupted")
        raise typer.Exit(INTERRUPTED)


def _value(option: str, text: str) -> int | float | str:
    from cascadia_fast.errors import InputError

    kind = _OPTIONS[option][1]
    try:
        value: int | float | str = kind(text)
    except ValueError:
        what = "a whole number" if kind is int else "a number"
        raise InputError(f"{option} is {reprlib.repr(text)}; give {what}") from None
    return value


def _check_outputs(trace: str | None, timeline: str | None, inputs: list[Path]) -> None:
    """Refuse, before anything is simulated, to write where it cannot be or must not be."""
    from cascadia_fast.errors import InputError

    for option, path in (("--trace", trace), ("--timeline", timeline)):
        if path is None:
            continue
        if path in ("", "-"):
            raise InputError(f"{option} is {path!r}; give the path of a file")
        folder = os.path.dirname(path) or "."
        if os.path.isdir(path):
            raise InputError(f"{option} {path} is a directory; give the path of a file in it")
        if not os.path.isdir(folder):
            raise InputError(f"{option} {path}: there is no directory {folder}; make it, or give another path")
        for read in inputs:
            if os.path.exists(path) and os.path.exists(read) and os.path.samefile(path, read):
                raise InputError(f"{option} {path} is a file that the simulation reads; give another path")
    if trace is None:
        return
    if timeline is not None and os.path.abspath(trace) == os.path.abspath(timeline):
        raise InputError(f"--trace and --timeline are both {trace}; give two paths")
    from cascadia_fast.simulation.table import check_path

    check_path(Path(trace))


def _plan_and_problem(plan: str | None, problem: str | None) -> tuple[Plan, Problem]:
    from cascadia_fast.blueprint import Plan
    from cascadia_fast.errors import InputError
    from cascadia_fast.problem import Problem

    if plan is None:
        from cascadia_fast.planner import Planner

        made_for = Problem.example() if problem is None else Problem.read(problem)
        return Planner(made_for).plan(), made_for
    if plan == "":
        raise InputError("PLAN is empty; give the path of a plan.json")
    made = Plan.read(plan)
    return made, read_problem(made, Path(plan), problem)


def _run(plan: Plan, problem: Problem, arguments: dict[str, Any], say: Callable[[str], None]) -> Simulation:
    from cascadia_fast.errors import InputError
    from cascadia_fast.simulation import simulate as run
    from cascadia_fast.simulation.run import DEFAULT_REQUESTS

    total = arguments.get("requests", DEFAULT_REQUESTS)

    def report(done: int) -> None:
        say(f"simulating: {done:,} of {total:,} requests are done")

    say("simulating")
    try:
        return run(plan, problem, **arguments, progress=report if sys.stderr.isatty() else None)
    except InputError as error:
        # Messages name parameters; users of the program know options.
        sentence = str(error)
        if sentence.startswith("concurrency and "):
            other = "--rate" if "rate_per_s" in arguments else "--arrivals"
            raise InputError(
                f"--concurrency and {other} contradict each other: clients that wait set the rate; give one"
            ) from None
        for option, (name, _) in _OPTIONS.items():
            if sentence.startswith(f"{name} is "):
                raise InputError(f"{option}{sentence.removeprefix(name)}") from None
        raise


def _write(run: Simulation, trace: str | None, timeline: str | None, say: Callable[[str], None]) -> None:
    if trace is not None:
        say(f"writing {trace}")
        run.write_table(trace)
    if timeline is not None:
        from cascadia_fast.timeline import write_timeline

        say(f"writing {timeline}")
        write_timeline(run, timeline)


def _print(run: Simulation, document: bytes | None, command: list[str], flags: dict[str, str]) -> None:
    with printing():
        if document is not None:
            sys.stdout.flush()
            sys.stdout.buffer.write(document)
            return
        from cascadia_fast.simulation.summary import show

        show(run, sys.stdout, command, flags)
