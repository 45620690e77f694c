"""``cascadia-fast compare``: our plans against other serving systems, on the same requests, GPUs and step times."""

from __future__ import annotations

import os
import reprlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cascadia_fast.cli.outcome import outcome, printing
from cascadia_fast.cli.outcome import say as tell

if TYPE_CHECKING:
    from cascadia_fast.baselines.systems import System
    from cascadia_fast.comparison.running import Progress
    from cascadia_fast.comparison.setup import CaseSetup, Setup
    from cascadia_fast.errors import CascadiaError

DEFECT = 1
_EXAMPLE_NOTE = "No FILE given: comparing on the built-in example."

EPILOG = """\
Every trial splits the scored requests in two by its seed: a system plans on one half, and its plan serves requests
drawn from the other in simulation. Trials are kept in DIR as they are done: the same command goes on where it was
interrupted. DIR then holds report.html (open it in a browser), results.json, cells.csv and cells.jsonl. JSON: see
settings, groups[] (means over seeds), ratios[] (over ours, paired by seed), headline[], curves[], savings[] and cells[]
there. Exit codes: 0 done, 1 a defect, 2 bad input, 130 interrupted.
"""


def compare(
    files: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE", help="Problem files (YAML); without any, the built-in example."),
    ] = None,
    systems: Annotated[
        str | None,
        typer.Option(metavar="A,B|all", help="Systems to compare with ours; default: all. --describe names them."),
    ] = None,
    q: Annotated[
        list[str] | None,
        typer.Option(
            "--q",
            metavar="[NAME=]Q,Q",
            help="Quality floors, of all files or of the one called NAME; default: the file's.",
        ),
    ] = None,
    rates: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]R,R",
            help="Mean requests per second, or multiples of the file's as in 0.5x; default: 0.5x,1x,1.5x.",
        ),
    ] = None,
    seeds: Annotated[str | None, typer.Option(metavar="N", help="Seeds per trial; default: 5.")] = None,
    requests: Annotated[str | None, typer.Option(metavar="N", help="Requests per trial; default: 20000.")] = None,
    out: Annotated[
        str | None, typer.Option(metavar="DIR", help="Keep trials, report and tables in this folder.")
    ] = None,
    jobs: Annotated[str | None, typer.Option(metavar="N", help="Processes; default: one per core.")] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Forget what DIR holds and try everything again.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print results.json instead of tables.")] = False,
    describe: Annotated[
        bool, typer.Option("--describe", help="Say what each system is, where it comes from, and stop.")
    ] = False,
) -> None:
    """Compare our plans with other serving systems, on the same requests, GPUs and step times."""
    with outcome():
        chosen = _systems(systems)
        if describe:
            _describe(chosen)
            return
        folder = _folder(out, fresh)
        setup = _setup(files or [], chosen, q or [], rates or [], seeds, requests)
        count = None if jobs is None else _whole("--jobs", jobs)
        results = _compare(setup, folder, fresh, count)
        failed = None if folder is None else _written(results, folder)
        where = "There is no report; --out DIR writes one" if folder is None else f"The report is {_report(folder)}"
        _print(results, where if failed is None else "The report could not be written", as_json, bool(files))
        if failed is not None:  # what was found is told all the same
            raise failed


def _systems(given: str | None) -> tuple[System, ...]:
    """Those asked for, ours first: everything is told relative to it."""
    from cascadia_fast.baselines.systems import SYSTEMS, system_named
    from cascadia_fast.comparison.cells import OURS
    from cascadia_fast.errors import InputError

    if given is None or given.strip() == "all":
        return tuple(SYSTEMS)
    names = [name.strip() for name in given.split(",")]
    if not all(names):
        raise InputError(f"--systems is {reprlib.repr(given)}; give names of systems and commas between them, or all")
    try:
        return tuple(system_named(name) for name in dict.fromkeys([OURS, *names]))
    except InputError as error:
        raise InputError(f"--systems: {error}") from None


def _describe(systems: Sequence[System]) -> None:
    """One page per system, or for all that share one."""
    by_page: dict[str, list[System]] = {}
    for system in systems:
        by_page.setdefault(system.page.strip(), []).append(system)
    with printing():
        for place, (page, own) in enumerate(by_page.items()):
            names = "\n".join(f"{system.name}: {system.title} ({system.kind}; {system.source})" for system in own)
            typer.echo(f"{chr(10) if place else ''}{names}\n\n{page}")


def _folder(out: str | None, fresh: bool) -> Path | None:
    from cascadia_fast.errors import InputError

    if out is None:
        if fresh:
            raise InputError("--fresh forgets what a folder holds, and without --out nothing is kept; give --out DIR")
        return None
    if out in ("", "-"):
        raise InputError(f"--out is {out!r}; give the path of a folder")
    return Path(out)


def _setup(
    files: Sequence[str],
    systems: Sequence[System],
    q: Sequence[str],
    rates: Sequence[str],
    seeds: str | None,
    requests: str | None,
) -> Setup:
    from cascadia_fast.comparison.setup import DEFAULT_REQUESTS, DEFAULT_SEEDS, MAX_SEEDS, Setup
    from cascadia_fast.errors import InputError

    names = case_names(files) if files else ["example"]
    floors, rates_per_s = _by_case("--q", q, names), _by_case("--rates", rates, names)
    cases = [
        _case(name, files[place] if files else None, floors.get(name), rates_per_s.get(name))
        for place, name in enumerate(names)
    ]
    count = DEFAULT_SEEDS if seeds is None else _whole("--seeds", seeds)
    if not 1 <= count <= MAX_SEEDS:
        raise InputError(f"--seeds is {count}; it must be a whole number from 1 to {MAX_SEEDS:,}")
    with _options_for_parameters():
        return Setup(
            cases=tuple(cases),
            systems=tuple(systems),
            seeds=tuple(range(count)),
            requests=DEFAULT_REQUESTS if requests is None else _whole("--requests", requests),
        )


def case_names(files: Sequence[str]) -> list[str]:
    """Return what cases are called: their files' stems, with as many folders before them as tell them apart.

    Raises
    ------
    InputError
        A file is given twice.
    """
    from cascadia_fast.errors import InputError

    for place, file in enumerate(files):
        if file == "":
            raise InputError("FILE is empty; give the path of a problem file")
        if os.path.abspath(file) in map(os.path.abspath, files[:place]):
            raise InputError(f"{file} is given twice; give each file once")
    parts = [Path(file).with_suffix("").parts for file in files]
    depth = 1
    names = [path[-1] for path in parts]
    while len(set(names)) < len(names):
        depth += 1
        longer = ["/".join(path[-depth:]) for path in parts]
        if longer == names:  # c.yaml beside c.yml
            return [str(Path(file)) for file in files]
        names = [new if names.count(old) > 1 else old for old, new in zip(names, longer, strict=True)]
    return names


def _case(name: str, file: str | None, floors: list[str] | None, rates: list[str] | None) -> CaseSetup:
    from cascadia_fast.comparison.setup import CaseSetup
    from cascadia_fast.problem import Problem

    problem = Problem.example() if file is None else Problem.read(file)
    own_per_s = problem.workload.arrivals.rate_per_s
    return CaseSetup.of(
        name,
        problem,
        None if floors is None else [_number("--q", text) for text in floors],
        None if rates is None else [_rate(text, own_per_s) for text in rates],
        "the built-in example" if file is None else Path(file).name,
    )


@contextmanager
def _options_for_parameters() -> Iterator[None]:
    """Messages name parameters; users of the program know options."""
    from cascadia_fast.errors import InputError

    try:
        yield
    except InputError as error:
        parameter = str(error).partition(" ")[0]
        raise InputError(f"--{error}" if parameter in ("requests", "jobs") else str(error)) from None


def _by_case(option: str, texts: Sequence[str], names: Sequence[str]) -> dict[str, list[str]]:
    """The list of every case: one given without a name is of all those that have none of their own."""
    from cascadia_fast.errors import InputError, did_you_mean

    found: dict[str | None, list[str]] = {}
    for text in texts:
        name, equals, values = text.rpartition("=")
        case = name if equals else None
        if case is not None and case not in names:
            hint = did_you_mean(case, names) or f"; the cases are {', '.join(names)}"
            raise InputError(f"{option} {text} names no case{hint}")
        if case in found:
            raise InputError(f"{option} is given twice{f' for {case}' if case else ''}; give one list with commas")
        found[case] = [value.strip() for value in values.split(",")]
    return {name: found.get(name, found.get(None, [])) for name in names if name in found or None in found}


def _rate(text: str, own_per_s: float) -> float:
    """A rate, or a multiple of the file's own."""
    factor = text.removesuffix("x")
    return _number("--rates", text, factor) * (own_per_s if factor != text else 1.0)


def _number(option: str, text: str, number: str | None = None) -> float:
    from cascadia_fast.errors import InputError

    try:
        return float(text if number is None else number)
    except ValueError:
        raise InputError(f"{option} has {reprlib.repr(text)}; give numbers and commas between them") from None


def _whole(option: str, text: str) -> int:
    from cascadia_fast.errors import InputError

    try:
        return int(text)
    except ValueError:
        raise InputError(f"{option} is {reprlib.repr(text)}; give a whole number") from None


def _compare(setup: Setup, folder: Path | None, fresh: bool, jobs: int | None) -> dict[str, Any]:
    from cascadia_fast.comparison.running import compare as run
    from cascadia_fast.comparison.workers import Defect

    reached = [0, 0]
    try:
        with _options_for_parameters(), _progress() as show:

            def told(done: int, before: int, total: int) -> None:
                reached[:] = done, total
                show(done, before, total)

            return run(setup, out=folder, fresh=fresh, jobs=jobs, progress=told, command=_command())
    except KeyboardInterrupt:
        done, total = reached
        kept = f"kept in {folder}: the same command goes on from there" if folder else "lost: --out DIR keeps them"
        if done:
            tell(f"{done:,} of {total:,} trials are done and {kept}")
        raise
    except Defect as defect:
        kept = f"; the {reached[0]:,} trials before are kept in {folder}" if folder else ""
        tell(f"error: {defect}, please report it{kept}\n{defect.details.rstrip()}")
        raise typer.Exit(DEFECT) from None


@contextmanager
def _progress() -> Iterator[Progress]:
    """A bar on the terminal with the time left; nothing elsewhere."""
    if sys.stderr is None or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("done, left about"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("trials", total=None)

        def show(done: int, before: int, total: int) -> None:
            if done == before:  # what was kept took no time, and says nothing of the rest
                bar.reset(task, total=total, completed=done)
            bar.update(task, completed=done, total=total)

        yield show


def _command() -> str:
    """The command as typed, without where absolute paths lie on this machine."""
    return shlex.join(["cascadia-fast", *(_without_folders(word) for word in sys.argv[1:])])


def _without_folders(word: str) -> str:
    option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
    return f"{option}{equals}{os.path.basename(value.rstrip('/')) if os.path.isabs(value) else value}"


def _written(results: Mapping[str, Any], folder: Path) -> CascadiaError | None:
    """Write results, table and report; what prevented it, if anything did."""
    from cascadia_fast.comparison.store import OUTPUTS
    from cascadia_fast.comparison.tables import cells_csv
    from cascadia_fast.errors import CascadiaError
    from cascadia_fast.plan_json import replace_file
    from cascadia_fast.report import report_html

    contents = (_document(results), cells_csv(results), report_html(dict(results)).encode())
    try:
        for name, content in zip(OUTPUTS, contents, strict=True):
            replace_file(folder / name, content)
    except CascadiaError as error:
        return error
    return None


def _document(results: Mapping[str, Any]) -> bytes:
    import orjson

    return orjson.dumps(results, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def _report(folder: Path) -> Path:
    from cascadia_fast.comparison.store import OUTPUTS

    return folder / OUTPUTS[-1]


def _print(results: Mapping[str, Any], where: str, as_json: bool, files_given: bool) -> None:
    if as_json:
        if not files_given:
            tell(_EXAMPLE_NOTE)
        with printing():
            sys.stdout.flush()
            sys.stdout.buffer.write(_document(results))
        return
    from cascadia_fast.comparison.text import blocks_of
    from cascadia_fast.summary_blocks import show

    made_by = results["made_by"]
    kept = f"; {made_by['resumed']:,} trials were kept from before" if made_by["resumed"] else ""
    note = [] if files_given else [_EXAMPLE_NOTE]
    with printing():
        show([*note, *blocks_of(results), f"{where} ({made_by['seconds']:.3g} s{kept})"], sys.stdout)
