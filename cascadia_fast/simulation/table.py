"""One row per simulated request, as an Arrow table or a file; files are written in pieces, so large runs fit memory."""

from __future__ import annotations

import importlib
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from cascadia_fast.errors import InputError
from cascadia_fast.simulation.columns import STATUSES

if TYPE_CHECKING:
    import pyarrow as pa

    from cascadia_fast.simulation import Simulation

_ROWS = 100_000  # of a piece: some 20 MB
Write = Callable[["pa.RecordBatch"], object]


def arrow_table(run: Simulation) -> pa.Table:
    """Return the whole table.

    Raises
    ------
    InputError
        pyarrow is not installed.
    """
    arrow = _arrow()
    return arrow.Table.from_batches(list(_batches(run)))


def check_path(path: Path) -> None:
    """Refuse, before anything is simulated, a table that could not be written.

    Raises
    ------
    InputError
        The suffix is unknown, there is no such folder, the path is no regular file, or pyarrow is not installed.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"{path} has no known suffix for a table; use one of {', '.join(_WRITERS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: {path.parent} is no folder; make it first")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise InputError(f"{path} is not a regular file; give the path of a file to write")
    _arrow()


def write_table(run: Simulation, path: Path) -> None:
    """Write the table beside its place, then rename it, so that nobody sees half of it; raises as `check_path`."""
    check_path(path)
    temporary = path.with_name(f".simulation.{os.getpid()}.{threading.get_ident()}")
    try:
        with temporary.open("xb") as file:
            _WRITERS[path.suffix.lower()](_batches(run), file)
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"{path} cannot be written ({error.strerror}); give a path in a folder with room") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def _arrow() -> Any:
    try:
        return importlib.import_module("pyarrow")
    except ImportError:
        raise InputError("tables need pyarrow; run: pip install 'cascadia-fast[parquet]'") from None


def _batches(run: Simulation) -> Iterator[pa.RecordBatch]:
    for start in range(0, run.requests, _ROWS):
        yield _batch(run, slice(start, min(start + _ROWS, run.requests)))


def _batch(run: Simulation, rows: slice) -> pa.RecordBatch:
    arrow = _arrow()
    columns, system, native = run.columns, run.system, run.native
    drawn = run.drawn[rows]
    accepted_by = columns.accepted_by(rows)
    served = accepted_by >= 0
    answer = np.maximum(accepted_by, 0)
    number = np.array([stage.index + 1 for stage in run.plan.stages], np.int8)

    def seconds(values: Any) -> Any:
        return arrow.array(np.ascontiguousarray(values), from_pandas=True)  # NaN becomes null

    def where(known: Any, values: Any) -> Any:
        return arrow.array(values, mask=~known)

    cells = {
        "request": arrow.array(np.arange(rows.start, rows.stop)),
        "scored_request": arrow.array(system.requests.request_ids[drawn]),
        "status": arrow.array(np.array(STATUSES)[native.status[rows]]),
        "path": arrow.array(_paths(run, rows)),
        "accepted_by": where(served, number[answer]),
        "arrived_s": seconds(native.arrived_s[rows]),
        "first_token_s": seconds(native.first_token_s[rows]),
        "finished_s": seconds(native.finished_s[rows]),
        "latency_s": seconds(columns.latency_s(rows)),
        "ttft_s": seconds(columns.ttft_s(rows)),
        "queueing_s": seconds(columns.queueing_s(rows)),
        "tpot_s": seconds(columns.tpot_s(rows)),
        "input_tokens": where(served, system.tokens_in[answer, drawn]),
        "output_tokens": where(served, system.tokens_out[answer, drawn]),
        "slo_scale": seconds(columns.slo_scale(rows)),
    }
    if len(system.path) > 1:
        cells["gear"] = arrow.array(native.gear[rows].astype(np.int16) + 1)
    for stage in (*range(columns.stages), *columns.judge_rows):
        replica, times = columns.replica(stage, rows), columns.times(stage, rows)
        name = f"{'stage' if stage < columns.stages else 'judge'}{number[stage % columns.stages]}"
        cells[f"{name}_replica"] = where(replica >= 0, replica)
        for place, event in enumerate(("arrived_s", "admitted_s", "first_token_s", "finished_s")):
            cells[f"{name}_{event}"] = seconds(times[:, place])
        cells[f"{name}_preempted"] = where(replica >= 0, columns.preempted(stage, rows))
    return arrow.RecordBatch.from_pydict(cells)


def _paths(run: Simulation, rows: slice) -> Any:
    """The stages that requests went to, such as ``1>2``."""
    visited = sum(
        (run.columns.visited(stage, rows).astype(np.int64) << stage for stage in range(run.columns.stages)),
        start=np.zeros(1, np.int64),
    )
    masks, place = np.unique(visited, return_inverse=True)
    texts = [
        ">".join(str(stage.index + 1) for bit, stage in enumerate(run.plan.stages) if mask >> bit & 1)
        for mask in masks.tolist()
    ]
    return np.array(texts)[place]


def _write_parquet(batches: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    parquet = importlib.import_module("pyarrow.parquet")
    first = next(batches)
    with parquet.ParquetWriter(file, first.schema, compression="zstd") as writer:
        _each(first, batches, writer.write_batch)


def _write_arrow(batches: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    first = next(batches)
    with _arrow().ipc.new_file(file, first.schema) as writer:
        _each(first, batches, writer.write_batch)


def _write_csv(batches: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    csv = importlib.import_module("pyarrow.csv")
    first = next(batches)
    with csv.CSVWriter(file, first.schema, write_options=csv.WriteOptions(quoting_style="needed")) as writer:
        _each(first, batches, writer.write_batch)


def _write_jsonl(batches: Iterator[pa.RecordBatch], file: IO[bytes]) -> None:
    import orjson

    for batch in batches:
        file.writelines(orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE) for row in batch.to_pylist())


def _each(first: pa.RecordBatch, others: Iterator[pa.RecordBatch], write: Write) -> None:
    write(first)
    for batch in others:
        write(batch)


_WRITERS: dict[str, Callable[[Iterator[pa.RecordBatch], IO[bytes]], None]] = {
    ".parquet": _write_parquet,
    ".arrow": _write_arrow,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
