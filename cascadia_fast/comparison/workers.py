"""Processes that try cells: each has a pipe of its own, ends when its parent does, and leaves Ctrl-C to it.

A pool of the standard library would not do: its processes share one queue, so that none notices that the parent was
killed, and Ctrl-C, which a terminal sends to all of them, ends in a traceback per process.
"""

from __future__ import annotations

import multiprocessing
import signal
import traceback
import warnings
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, wait
from typing import TYPE_CHECKING

from cascadia_fast.comparison.cells import Cell
from cascadia_fast.comparison.trial import Row, Trials
from cascadia_fast.errors import CascadiaError, CascadiaWarning, InputError

if TYPE_CHECKING:
    from multiprocessing.context import SpawnProcess

# Cells handed to a process at a time: neighbours have halves and traffic in common, and few are at stake at the end.
BATCH = 8
_PATIENCE_S = 5.0


class Defect(Exception):
    """A cell ended in an error that nobody foresaw; the message names the cell, `details` holds the traceback."""

    def __init__(self, cell: Cell, details: str) -> None:
        super().__init__(f"a defect in system {cell.system} at {cell.place}")
        self.details = details


AllTrials = Mapping[str, Trials]
"""By the name of the case."""

Answer = Row | CascadiaError | str
"""A row, an error with its sentence, or the traceback of a defect."""

Rows = Generator[tuple[Cell, Row], None, None]


def rows_here(trials: AllTrials, cells: Sequence[Cell]) -> Rows:
    """Try cells one after another in this process."""
    for cell in cells:
        yield cell, _row_of(cell, _answer(trials, cell))


def rows_in_processes(trials: AllTrials, cells: Sequence[Cell], processes: int) -> Rows:
    """Try cells in some processes; rows come as they are done.

    Raises
    ------
    InputError
        A process came to its end by itself, such as for want of memory.
    Defect
        A cell ended in an error that nobody foresaw.
    """
    batches = [list(cells[start : start + BATCH]) for start in range(0, len(cells), BATCH)]
    batches.reverse()
    with _started(trials, min(processes, len(batches))) as workers:
        at_work: dict[Connection, list[Cell]] = {}
        for connection in workers:
            _hand_over(connection, batches, at_work, workers)
        while at_work:
            for ready in wait(list(at_work)):
                assert isinstance(ready, Connection)
                cell = at_work[ready].pop(0)
                yield cell, _received(ready, cell, workers[ready])
                if not at_work[ready]:
                    del at_work[ready]
                    _hand_over(ready, batches, at_work, workers)


def _hand_over(
    connection: Connection,
    batches: list[list[Cell]],
    at_work: dict[Connection, list[Cell]],
    workers: Mapping[Connection, SpawnProcess],
) -> None:
    if not batches:
        return
    at_work[connection] = batch = batches.pop()
    try:
        connection.send(batch)
    except OSError:
        raise _ended(workers[connection]) from None


def _received(connection: Connection, cell: Cell, process: SpawnProcess) -> Row:
    try:
        found: Answer = connection.recv()
    except (EOFError, OSError):
        raise _ended(process) from None
    return _row_of(cell, found)


def _row_of(cell: Cell, found: Answer) -> Row:
    if isinstance(found, CascadiaError):
        raise found
    if isinstance(found, str):
        raise Defect(cell, found)
    return found


def _ended(process: SpawnProcess) -> InputError:
    process.join(_PATIENCE_S)
    code = process.exitcode
    how = f"was stopped by signal {-code}" if code is not None and code < 0 else f"ended with exit code {code}"
    return InputError(
        f"a process that tries cells {how}, perhaps for want of memory; use fewer --jobs, or fewer --requests"
    )


@contextmanager
def _started(trials: AllTrials, count: int) -> Iterator[dict[Connection, SpawnProcess]]:
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, SpawnProcess] = {}
    try:
        # Processes inherit that SIGINT is held back, so that no Ctrl-C finds one that is still importing. The standard
        # library's own helper comes first: starting it lets SIGINT through again.
        resource_tracker.ensure_running()
        held = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            for _ in range(count):
                ours, theirs = context.Pipe()
                process = context.Process(target=_work, args=(theirs, dict(trials)), daemon=True)
                process.start()
                theirs.close()
                workers[ours] = process
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, held)
        yield workers
    finally:
        for connection, process in workers.items():
            connection.close()
            process.terminate()
        for process in workers.values():
            process.join(_PATIENCE_S)
            if process.is_alive():
                process.kill()
                process.join()


def _work(connection: Connection, trials: AllTrials) -> None:
    """What a process does: batches come in, one row after another goes out, until the parent has gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(EOFError, OSError):
        while True:
            for cell in connection.recv():
                connection.send(_answer(trials, cell))


def _answer(trials: AllTrials, cell: Cell) -> Answer:
    try:
        return _row(trials, cell)
    except CascadiaError as error:
        return InputError(f"{cell.system} at {cell.place}: {error}")
    except Exception:
        return traceback.format_exc()


def _row(trials: AllTrials, cell: Cell) -> Row:
    """What a plan deserves attention for is no matter of a comparison, which makes hundreds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", CascadiaWarning)
        return trials[cell.case].row(cell)
