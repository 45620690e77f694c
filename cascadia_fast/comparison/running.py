"""Runs a comparison: what a folder keeps is taken from it, the rest is tried, and everything is put together."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from contextlib import closing, nullcontext
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from cascadia_fast.comparison.cells import Cell, cells_of, digest_of, key_of
from cascadia_fast.comparison.results import results_of
from cascadia_fast.comparison.setup import Setup
from cascadia_fast.comparison.store import Store
from cascadia_fast.comparison.trial import Trials
from cascadia_fast.comparison.workers import Rows, rows_here, rows_in_processes
from cascadia_fast.simulation.settings import require_whole

# A process takes seconds to start: it pays for more cells than these.
CELLS_PER_PROCESS = 16
MAX_JOBS = 1024

Progress = Callable[[int, int, int], None]
"""Told how many cells are done, how many of these were done before, and how many there are."""


def compare(
    setup: Setup,
    *,
    out: Path | None = None,
    fresh: bool = False,
    jobs: int | None = None,
    progress: Progress | None = None,
    command: str = "",
) -> dict[str, Any]:
    """Try every cell of a comparison and return its results, as results.json has them.

    Parameters
    ----------
    setup
        What to compare.
    out
        Folder that keeps every cell as soon as it is done; None: nothing is kept.
    fresh
        Whether to forget what the folder holds.
    jobs
        Processes; None: as many as there are cores.
    progress
        Called after every cell.
    command
        What made the results, for their readers.

    Raises
    ------
    InputError
        The folder cannot be used, or a case cannot be split.
    Defect
        A system failed in a way that nobody foresaw; what is done is kept.
    KeyboardInterrupt
        Ctrl-C; what is done is kept.
    """
    started_s = time.perf_counter()
    if jobs is not None:
        require_whole("jobs", jobs, 1, MAX_JOBS)
    cells = cells_of(setup)
    digests = {case.name: digest_of(case.problem) for case in setup.cases}
    keys = {cell: key_of(cell, digests[cell.case], setup.requests) for cell in cells}
    with nullcontext() if out is None else Store(out, fresh) as store:
        rows = dict(store.rows) if store is not None else {}
        missing = [cell for cell in cells if keys[cell] not in rows]
        before = len(cells) - len(missing)
        if progress is not None:
            progress(before, before, len(cells))
        with closing(_rows(setup, missing, jobs)) as found:
            for done, (cell, row) in enumerate(found, start=before + 1):
                rows[keys[cell]] = row
                if store is not None:
                    store.add(keys[cell], row)
                if progress is not None:
                    progress(done, before, len(cells))
    made_by = {
        "version": version("cascadia-fast"),
        "command": command,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - started_s, 3),
        "cell_seconds": round(sum(rows[keys[cell]]["seconds"] for cell in cells), 3),
        "resumed": before,
        "cores": cores(),
    }
    return results_of(setup, cells, keys, rows, made_by)


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _rows(setup: Setup, missing: list[Cell], jobs: int | None) -> Rows:
    systems = {system.name: system for system in setup.systems}
    trials: Mapping[str, Trials] = {case.name: Trials(case.problem, systems, setup.requests) for case in setup.cases}
    processes = min(jobs or cores(), -(-len(missing) // CELLS_PER_PROCESS))
    return rows_in_processes(trials, missing, processes) if processes > 1 else rows_here(trials, missing)
