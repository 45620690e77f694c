"""From tables to scored requests and arrival times: which row is which request, and what is wrong with it."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.errors import CascadiaWarning, InputError, did_you_mean
from cascadia_fast.judge import simulated_scores
from cascadia_fast.readers import Table, read_table, require_columns
from cascadia_fast.workload import ScoredRequests

if TYPE_CHECKING:
    from cascadia_fast.schema import ColumnNames

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
TRACE_PAIRING_SEED = 0


@dataclass(frozen=True)
class ScoredTable:
    """How to read a table of scored requests.

    Parameters
    ----------
    path
        The table, one row per request and model.
    columns
        Which column is what.
    models
        Names of the models in use, small to large, as the table has them.
    score_scale, quality_scale
        The largest possible score and quality in the table; both are brought to 0 to 100. Without a `quality_scale`,
        the `score_scale` serves both.
    needs_score
        Whether routing uses the table's scores (it does not when the judge is simulated).
    drop_incomplete
        Whether requests that lack a row or a value are dropped with a warning instead of refused.
    """

    path: Path
    columns: ColumnNames
    models: tuple[str, ...]
    score_scale: float = 100.0
    quality_scale: float | None = None
    needs_score: bool = True
    drop_incomplete: bool = False


@dataclass(frozen=True)
class Trace:
    """Arrival times of a trace and, where it has them, token counts; all of shape (count,)."""

    times_s: FloatArray
    input_tokens: FloatArray | None
    output_tokens: FloatArray | None


def read_scored_requests(source: ScoredTable) -> ScoredRequests:
    """Read a table with one row per request and model into arrays of shape (models, requests).

    Rows of models that are not in use do not matter. Quality defaults to the score. Where `needs_score` is false the
    quality stands in for the score until a simulated judge replaces it.

    Raises
    ------
    InputError
        When a column or a request is missing, a request comes twice, or a value is out of range.
    """
    columns = source.columns
    # The last stage accepts whatever its score, so a single model needs none.
    routes = source.needs_score and len(source.models) > 1
    optional = {columns.quality or "quality", columns.score} - {columns.quality, columns.weight}
    if routes:
        optional.discard(columns.score)
    numbers = {columns.input_tokens, columns.output_tokens, columns.score, columns.quality or "quality"}
    weighted = () if columns.weight is None else (columns.weight,)
    numbers.update(weighted)
    table = read_table(source.path, numbers, (*columns.request, columns.model), optional)
    quality_name = columns.quality or ("quality" if "quality" in table.numbers else columns.score)
    require_columns(source.path, table.header, {quality_name})
    if routes and quality_name == columns.score:
        warnings.warn(
            f"{source.path} has no quality apart from the score {columns.score!r}; accepting on a score and averaging "
            "the same score over-states quality, so map an independent judgement under workload.columns.quality",
            CascadiaWarning,
            stacklevel=2,
        )
    rows, ids = _rows_by_model(table, source)
    stages = len(source.models)
    needed = {columns.score: stages - 1} if routes else {}
    needed.update(dict.fromkeys((columns.input_tokens, columns.output_tokens, quality_name, *weighted), stages))
    rows, ids = _complete(table, source, rows, ids, needed)
    quality = _on_scale(table, source, rows, quality_name, "quality")
    score = _on_scale(table, source, rows, columns.score, "score") if routes else quality
    return ScoredRequests(
        models=source.models,
        request_ids=ids,
        input_tokens=_lengths(table, source, rows, columns.input_tokens),
        output_tokens=_lengths(table, source, rows, columns.output_tokens),
        score=score,
        quality=quality,
        weight=np.ones(ids.size) if columns.weight is None else _weights(table, source, rows, ids, columns.weight),
    )


def read_trace(path: Path, columns: ColumnNames) -> Trace:
    """Read arrival times and, where the file has them, token counts.

    Rows of zero input or output tokens (requests that failed or were cancelled) are dropped with a counted warning.
    Times that go backwards are refused rather than sorted: they mean a wrong column or files glued together more often
    than a log in order of completion, and a sorted mixture would look like plausible traffic.

    Raises
    ------
    InputError
        When a time or a length is missing, infinite or negative, or the times are not ascending.
    """
    lengths = (columns.trace_input_tokens, columns.trace_output_tokens)
    table = read_table(path, numbers=(columns.arrival_s, *lengths), optional=lengths)
    times = table.numbers[columns.arrival_s]
    _require_rows(path, columns.arrival_s, times, np.isfinite(times), "a finite number of seconds")
    backwards = np.flatnonzero(times[1:] < times[:-1])
    if backwards.size:
        row = int(backwards[0]) + 1
        raise InputError(
            f"{columns.arrival_s} in row {row + 1} of {path} is {times[row]:.10g}, before the {times[row - 1]:.10g} of "
            "the row above; sort the file by arrival time"
        )
    keep = np.ones(table.size, dtype=bool)
    for name in lengths:
        if name in table.numbers:
            tokens = table.numbers[name]
            _require_rows(path, name, tokens, np.isfinite(tokens) & (tokens >= 0), "a number of tokens, not negative")
            keep &= tokens > 0
    dropped = table.size - int(keep.sum())
    if dropped:
        warnings.warn(
            f"{dropped:,} of {table.size:,} rows of {path} have zero input or output tokens and were left out",
            CascadiaWarning,
            stacklevel=2,
        )
    found = [table.numbers[name][keep] if name in table.numbers else None for name in lengths]
    return Trace(times[keep], *found)


def with_trace_lengths(requests: ScoredRequests, trace: Trace, path: Path) -> ScoredRequests:
    """Give requests the joint input and output lengths of a trace, the same for every model.

    Scores and qualities keep coming from `requests`, taken as independent of length: each request is repeated until
    every row of the trace is used about once, which leaves the mean qualities as they were.
    """
    if trace.input_tokens is None or trace.output_tokens is None:
        raise InputError(
            f"lengths is 'trace', but {path} has no columns of input and output tokens; map them under "
            "workload.columns as trace_input_tokens and trace_output_tokens, or use lengths: requests"
        )
    rows = trace.input_tokens.size
    repeats = math.ceil(rows / requests.size)
    repeated = requests.select(np.tile(np.arange(requests.size), repeats)) if repeats > 1 else requests
    order = np.random.default_rng(TRACE_PAIRING_SEED).permutation(max(repeated.size, rows))[: repeated.size] % rows
    stages = (len(requests.models), 1)
    return dataclasses.replace(
        repeated,
        input_tokens=np.tile(trace.input_tokens[order], stages),
        output_tokens=np.tile(trace.output_tokens[order], stages),
    )


def with_simulated_scores(requests: ScoredRequests, auc: float, seed: int) -> ScoredRequests:
    """Replace the scores by those of a simulated judge of the given AUC (see `judge.simulated_scores`)."""
    return dataclasses.replace(requests, score=simulated_scores(requests.quality, auc, seed))


def _rows_by_model(table: Table, source: ScoredTable) -> tuple[IntArray, NDArray[np.str_]]:
    """Return the table's row of every model and request, shape (C, n), -1 where there is none, and the request ids."""
    request_of_row, ids = _request_keys(table, source.columns.request)
    model_of_row = table.texts[source.columns.model]
    rows = np.full((len(source.models), ids.size), -1, dtype=np.int64)
    for stage, model in enumerate(source.models):
        if model not in model_of_row.values:
            shown = ", ".join(map(repr, model_of_row.values[:12])) + (" …" if len(model_of_row.values) > 12 else "")
            raise InputError(
                f"{source.path} has no rows for model {model!r} (column {source.columns.model!r} has {shown}); set "
                f"cascade[{stage}].name_in_requests{did_you_mean(model, model_of_row.values)}"
            )
        of_model = np.flatnonzero(model_of_row.codes == model_of_row.values.index(model))
        requests = request_of_row[of_model]
        rows[stage, requests] = of_model
        twice = of_model[rows[stage, requests] != of_model]
        if twice.size:
            first, request = int(twice[0]), request_of_row[twice[0]]
            raise InputError(
                f"request {str(ids[request])!r} has more than one row for model {model!r} in {source.path} (rows "
                f"{first + 1} and {rows[stage, request] + 1}); keep one, or name all columns that identify a request "
                "under workload.columns.request"
            )
    used = (rows >= 0).any(axis=0)
    return rows[:, used], ids[used]


def _request_keys(table: Table, names: Sequence[str]) -> tuple[IntArray, NDArray[np.str_]]:
    """Return the request number of each row, and the ids of the requests in order of first appearance."""
    first = table.texts[names[0]]
    codes, ids = first.codes, np.array(first.values)
    for name in names[1:]:
        more = table.texts[name]
        pairs, first_row, inverse = np.unique(
            codes * len(more.values) + more.codes, return_index=True, return_inverse=True
        )
        order = np.argsort(first_row)
        rank = np.empty_like(order)
        rank[order] = np.arange(order.size)
        left, right = np.divmod(pairs[order], len(more.values))
        ids = np.array([f"{ids[a]}/{more.values[b]}" for a, b in zip(left, right, strict=True)])
        codes = rank[inverse]
    return codes, ids


def _complete(
    table: Table, source: ScoredTable, rows: IntArray, ids: NDArray[np.str_], needed: dict[str, int]
) -> tuple[IntArray, NDArray[np.str_]]:
    """Refuse or drop requests that lack a row, or a value in the first `needed[column]` stages."""
    absent = rows < 0
    lacking = absent.copy()
    for name, stages in needed.items():
        lacking[:stages] |= np.isnan(table.numbers[name][rows[:stages]])
    incomplete = lacking.any(axis=0)
    if not incomplete.any():
        return rows, ids
    request = int(np.argmax(incomplete))
    stage = int(np.argmax(lacking[:, request]))
    if absent[stage, request]:
        what = "row"
    else:
        value = table.numbers
        what = next(
            name for name, stages in needed.items() if stage < stages and np.isnan(value[name][rows[stage, request]])
        )
    count = int(incomplete.sum())
    subject = f"request {str(ids[request])!r} has no {what} for model {source.models[stage]!r} in {source.path}"
    if not source.drop_incomplete:
        others = f" ({count - 1:,} more are incomplete)" if count > 1 else ""
        raise InputError(f"{subject}{others}; add it, or set workload.drop_incomplete: true to leave such requests out")
    if count == ids.size:
        raise InputError(f"{subject}, and no request is complete; add the missing rows")
    warnings.warn(
        f"{count:,} of {ids.size:,} requests are incomplete and were left out: {subject}", CascadiaWarning, stacklevel=3
    )
    return rows[:, ~incomplete], ids[~incomplete]


def _lengths(table: Table, source: ScoredTable, rows: IntArray, name: str) -> FloatArray:
    tokens = table.numbers[name]
    used = np.zeros(table.size, dtype=bool)
    used[rows] = True
    _require_rows(
        source.path, name, tokens, ~used | (np.isfinite(tokens) & (tokens > 0)), "a positive number of tokens"
    )
    return tokens[rows]


def _weights(table: Table, source: ScoredTable, rows: IntArray, ids: NDArray[np.str_], name: str) -> FloatArray:
    """Return the weight of each request, shape (n,), which all of its rows must state alike."""
    weight = table.numbers[name]
    used = np.zeros(table.size, dtype=bool)
    used[rows] = True
    _require_rows(source.path, name, weight, ~used | (np.isfinite(weight) & (weight >= 0)), "a number, not negative")
    by_model = weight[rows]
    unequal = (by_model != by_model[0]).any(axis=0)
    if unequal.any():
        request = int(np.argmax(unequal))
        stage = int(np.argmax(by_model[:, request] != by_model[0, request]))
        raise InputError(
            f"{name} of request {str(ids[request])!r} is {by_model[0, request]:.10g} in row {rows[0, request] + 1} of "
            f"{source.path} and {by_model[stage, request]:.10g} in row {rows[stage, request] + 1}; give all rows of a "
            "request one weight"
        )
    if not by_model[0].any():
        raise InputError(f"{name} is 0 for every request in {source.path}; give at least one a positive weight")
    return np.asarray(by_model[0])


def _on_scale(table: Table, source: ScoredTable, rows: IntArray, name: str, what: str) -> FloatArray:
    """Return the scores or qualities (`what`) of a column on the scale 0 to 100, shape (C, n)."""
    own = source.score_scale if what == "score" else source.quality_scale
    scale = source.score_scale if own is None else own
    values = table.numbers[name]
    used = np.zeros(table.size, dtype=bool)
    used[rows] = True
    ok = ~used | np.isnan(values) | ((values >= 0) & (values <= scale))
    which = f"{what}_scale" if own is not None else f"{what}_scale (score_scale unless given)"
    _require_rows(source.path, name, values, ok, f"from 0 to {scale:g}, the workload.{which}")
    largest = np.nanmax(np.where(used, values, np.nan))
    if scale == 100 and 0 < largest <= 1:
        plural = {"score": "scores", "quality": "qualities"}[what]
        warnings.warn(
            f"{plural} lie between 0 and 1 (column {name!r} of {source.path}); set workload.{what}_scale: 1 unless "
            "they are meant on a scale of 0 to 100",
            CascadiaWarning,
            stacklevel=3,
        )
    return np.minimum(values[rows] * (100 / scale), 100)


def _require_rows(path: Path, name: str, values: FloatArray, ok: NDArray[np.bool_], expected: str) -> None:
    if not ok.all():
        row = int(np.argmin(ok))
        raise InputError(f"{name} in row {row + 1} of {path} is {values[row]:.10g}; it must be {expected}")
