"""GPUs per stage as a 0/1 program: the paper's, as written, and the same optimum on pruned columns.

With ``l_i(f)`` the least p95 of stage ``i`` on ``f`` GPUs (the look-up table), the program of Cascadia
(arXiv 2506.04203) is

    min L   s.t.   Σ_f x_{i,f} = 1,   Σ_{i,f} f·x_{i,f} = N,   L >= Σ_f l_i(f)·x_{i,f},   x_{i,f} in {0, 1}.

It has C·(N+1) binaries and a weak relaxation, so it takes seconds at a thousand GPUs. The planner searches instead, and
uses the program as the proof of what the search found: on columns that could still beat it, of which few are left.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast.errors import CascadiaError, InputError, NoPlanError, PoolTooSmallError
from cascadia_fast.planning import highs

if TYPE_CHECKING:
    import highspy
    from numpy.typing import NDArray

    Columns = tuple[NDArray[np.int64], NDArray[np.float64]]

_LADDER_RUNGS = 64
_QUICK_COLUMNS = 2000  # solved in about a second


@dataclass(frozen=True, slots=True)
class Allocation:
    """GPUs per stage and the latency of the slowest stage.

    Attributes
    ----------
    gpus : GPUs of each stage.
    latency_s : largest ``l_i(gpus[i])`` over the stages, read from the table, not from the solver.
    status : ``"optimal"``, or ``"time_limit"`` when the best allocation found in time is returned without a proof.
    seconds : wall time of building and solving.
    columns : binaries in the program that was solved.
    """

    gpus: tuple[int, ...]
    latency_s: float
    status: str
    seconds: float
    columns: int


def paper_milp(
    latency_s: Sequence[NDArray[np.float64]], gpus: int, exact_sum: bool = True, time_limit_s: float = 60.0
) -> Allocation:
    """Solve the paper's 0/1 program as written.

    Parameters
    ----------
    latency_s : one array per stage, shape (>= N+1,), ``latency_s[i][f]`` of ``f = 0..N`` GPUs; +inf = impossible.
    gpus : pool size N.
    exact_sum : True spends all N GPUs, as the paper's equality demands; False spends at most N.
    time_limit_s : give up after this long.

    Raises
    ------
    InputError
        A table is too short, or holds NaN or a negative latency.
    PoolTooSmallError
        The smallest allocation needs more than N GPUs.
    NoPlanError
        A stage runs on no number of GPUs, no allocation spends exactly N, or none was found in time.
    """
    started_s = time.perf_counter()
    tables = [np.asarray(table, dtype=np.float64) for table in latency_s]
    for stage, table in enumerate(tables):
        if table.ndim != 1 or table.size < gpus + 1:
            raise InputError(
                f"latency table of stage {stage + 1} has shape {table.shape}; give {gpus + 1} entries, f = 0..{gpus}"
            )
    counts = np.arange(gpus + 1, dtype=np.int64)
    columns = [_checked(stage, (counts, table[: gpus + 1])) for stage, table in enumerate(tables)]
    return _solve(columns, gpus, exact_sum, time_limit_s, started_s)


def pruned_milp(
    columns: Sequence[Columns], gpus: int, at_most_s: float = np.inf, time_limit_s: float = 60.0
) -> Allocation:
    """Solve the program with Σ f·x <= N on the columns that can matter; same optimum as all of them.

    Parameters
    ----------
    columns : per stage (GPU counts, latency_s), both of shape (columns_i,), in any order; +inf = impossible.
    gpus : pool size N.
    at_most_s : latency of an allocation believed to exist, e.g. the search's answer. Slower columns are left out, so a
        smaller optimum refutes the search's optimality and ``NoPlanError`` refutes that its answer is attainable.
    time_limit_s : give up after this long.

    Raises
    ------
    InputError, PoolTooSmallError, NoPlanError
        As :func:`paper_milp`.
    """
    started_s = time.perf_counter()
    checked = [_checked(stage, pair) for stage, pair in enumerate(columns)]
    _require_feasible(checked, gpus)
    kept = prune(checked, gpus, at_most_s)
    if sum(int(counts[0]) if counts.size else gpus + 1 for counts, _ in kept) > gpus:
        raise NoPlanError(f"no allocation of {gpus} GPUs reaches {at_most_s:g} s; allow a larger latency")
    return _solve(kept, gpus, False, time_limit_s, started_s)


def prune(columns: Sequence[Columns], gpus: int, at_most_s: float = np.inf) -> list[Columns]:
    """Drop columns without losing the optimum of the Σ f·x <= N program.

    A column stays if no column of its stage with as few GPUs is as fast, if it is no slower than ``at_most_s`` or any
    latency of a coarse ladder that some allocation reaches, and if it fits beside the smallest such column of every
    other stage. What a stage reaches with all GPUs the others can spare is a lower bound on L, so of the columns at or
    below the largest such bound only the smallest is kept.

    Returns
    -------
    Per stage (gpu counts ascending, latency_s strictly descending); empty arrays when nothing is left.
    """
    stairs = [_staircase(counts, latency_s, at_most_s) for counts, latency_s in columns]
    if any(counts.size == 0 for counts, _ in stairs):
        return stairs
    # Why a ladder: without `at_most_s`, the 64 rungs leave HiGHS about a tenth of the columns at 1,024 GPUs.
    rungs_s = np.sort(np.concatenate([latency_s for _, latency_s in stairs]))
    rungs_s = np.append(
        rungs_s[:: rungs_s.size // _LADDER_RUNGS + 1], max(float(latency_s[0]) for _, latency_s in stairs)
    )
    reached_s = rungs_s[_least_gpus(stairs, rungs_s) <= gpus]
    if reached_s.size == 0:
        return stairs
    stairs = [_staircase(counts, latency_s, float(reached_s.min())) for counts, latency_s in stairs]
    spare = gpus - sum(int(counts[0]) for counts, _ in stairs)
    fitting = []
    for counts, latency_s in stairs:
        keep = int(np.searchsorted(counts, counts[0] + spare, side="right"))
        fitting.append((counts[:keep], latency_s[:keep]))
    bound_s = max(float(latency_s[-1]) for _, latency_s in fitting)
    kept = []
    for counts, latency_s in fitting:
        slower = int(np.count_nonzero(latency_s > bound_s))
        kept.append((counts[: slower + 1], latency_s[: slower + 1]))
    return kept


def _least_gpus(stairs: Sequence[Columns], latency_s: NDArray[np.float64]) -> NDArray[np.int64]:
    """GPUs with which all stages together stay within each of the latencies; a huge number where they cannot."""
    total = np.zeros(latency_s.shape, dtype=np.int64)
    for counts, stair_s in stairs:
        first = np.searchsorted(-stair_s, -latency_s)
        total += np.append(counts, np.iinfo(np.int32).max)[first]
    return total


def _staircase(counts: NDArray[np.int64], latency_s: NDArray[np.float64], at_most_s: float) -> Columns:
    """Columns that no other column of the stage beats with as few GPUs, counts ascending."""
    possible = np.isfinite(latency_s) & (latency_s <= at_most_s)
    counts, latency_s = counts[possible], latency_s[possible]
    if counts.size == 0:
        return counts, latency_s
    order = np.lexsort((latency_s, counts))
    counts, latency_s = counts[order], latency_s[order]
    best_s = np.minimum.accumulate(latency_s)
    first = np.concatenate(([True], best_s[1:] < best_s[:-1]))
    return counts[first], latency_s[first]


def _checked(stage: int, columns: Columns) -> Columns:
    counts = np.asarray(columns[0], dtype=np.int64)
    latency_s = np.asarray(columns[1], dtype=np.float64)
    if counts.ndim != 1 or counts.shape != latency_s.shape:
        raise InputError(
            f"columns of stage {stage + 1} have shapes {counts.shape} and {latency_s.shape}; give one latency per "
            "GPU count"
        )
    if np.isnan(latency_s).any() or (latency_s < 0).any() or (counts < 0).any():
        raise InputError(f"columns of stage {stage + 1} hold NaN or a negative number; use +inf for what is impossible")
    return counts, latency_s


def _solve(columns: Sequence[Columns], gpus: int, exact_sum: bool, time_limit_s: float, started_s: float) -> Allocation:
    _require_feasible(columns, gpus)
    import highspy  # 0.1 s to import: only when a program is solved

    sizes = [counts.size for counts, _ in columns]
    starts = np.concatenate(([0], np.cumsum(sizes)))
    solver = highs.solver(time_limit_s)
    highs.check(solver.passModel(_program(columns, gpus, exact_sum)), "the model")
    highs.run(solver, interruptible=int(starts[-1]) > _QUICK_COLUMNS)
    model_status = solver.getModelStatus()
    has_answer = solver.getInfo().primal_solution_status == highspy.SolutionStatus.kSolutionStatusFeasible
    if not has_answer:
        if model_status == highspy.HighsModelStatus.kTimeLimit:
            raise NoPlanError(f"HiGHS found no allocation of {gpus} GPUs in {time_limit_s:g} s; raise the time limit")
        how = "exactly" if exact_sum else "at most"
        raise NoPlanError(f"no allocation spends {how} {gpus} GPUs; change the number of GPUs")
    if model_status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
        raise CascadiaError(
            f"HiGHS stopped with status {solver.modelStatusToString(model_status)!r} on {starts[-1]} columns"
        )
    chosen = np.asarray(solver.getSolution().col_value)[1:]
    picks = [int(np.argmax(chosen[starts[i] : starts[i + 1]])) for i in range(len(sizes))]
    return Allocation(
        gpus=tuple(int(counts[pick]) for (counts, _), pick in zip(columns, picks, strict=True)),
        latency_s=max(float(latency_s[pick]) for (_, latency_s), pick in zip(columns, picks, strict=True)),
        status="optimal" if model_status == highspy.HighsModelStatus.kOptimal else "time_limit",
        seconds=time.perf_counter() - started_s,
        columns=int(starts[-1]),
    )


def _require_feasible(columns: Sequence[Columns], gpus: int) -> None:
    needed = 0
    for stage, (counts, latency_s) in enumerate(columns):
        possible = counts[np.isfinite(latency_s)]
        if possible.size == 0:
            raise NoPlanError(f"stage {stage + 1} runs on no number of GPUs up to {gpus}; add GPUs or lower its rate")
        needed += int(possible.min())
    if needed > gpus:
        raise PoolTooSmallError(
            f"the stages need at least {needed} GPUs together and the pool has {gpus}; add {needed - gpus}",
            gpus_needed=needed,
        )


def _program(columns: Sequence[Columns], gpus: int, exact_sum: bool) -> highspy.HighsLp:
    """Rows: one choice per stage, the GPU sum, L >= latency per stage. Columns: L, then x stage by stage."""
    import highspy

    stages = len(columns)
    stage_of = np.repeat(np.arange(stages, dtype=np.int32), [counts.size for counts, _ in columns])
    counts = np.concatenate([counts for counts, _ in columns]).astype(np.float64)
    latency_s = np.concatenate([latency_s for _, latency_s in columns])
    possible = np.isfinite(latency_s)
    # No allocation beats the stage that is slowest at its best; dividing by it puts the optimum near 1, unless it is so
    # small that coefficients would leave the range in which HiGHS computes safely.
    largest_s = float(latency_s[possible].max())
    bound_s = max(float(latency_s[possible & (stage_of == stage)].min()) for stage in range(stages))
    scale_s = (bound_s if bound_s > 1e-6 * largest_s else largest_s) or 1.0
    binaries = counts.size

    entries = np.empty((binaries, 3))
    entries[:, 0] = 1.0
    entries[:, 1] = counts
    entries[:, 2] = np.where(possible, -latency_s / scale_s, 0.0)
    rows = np.empty((binaries, 3), dtype=np.int32)
    rows[:, 0] = stage_of
    rows[:, 1] = stages
    rows[:, 2] = stages + 1 + stage_of

    lp = highspy.HighsLp()
    lp.num_col_ = binaries + 1
    lp.num_row_ = 2 * stages + 1
    lp.col_cost_ = np.concatenate(([1.0], np.zeros(binaries)))
    lp.col_lower_ = np.zeros(binaries + 1)
    lp.col_upper_ = np.concatenate(([highspy.kHighsInf], possible.astype(np.float64)))
    lp.integrality_ = [highspy.HighsVarType.kContinuous] + [highspy.HighsVarType.kInteger] * binaries
    lp.row_lower_ = np.concatenate((np.ones(stages), [gpus if exact_sum else 0.0], np.zeros(stages)))
    lp.row_upper_ = np.concatenate((np.ones(stages), [float(gpus)], np.full(stages, highspy.kHighsInf)))
    matrix = lp.a_matrix_
    matrix.format_ = highspy.MatrixFormat.kColwise
    matrix.num_col_ = lp.num_col_
    matrix.num_row_ = lp.num_row_
    matrix.start_ = np.concatenate(([0], stages + 3 * np.arange(binaries + 1))).astype(np.int32)
    matrix.index_ = np.concatenate((stages + 1 + np.arange(stages, dtype=np.int32), rows.ravel()))
    matrix.value_ = np.concatenate((np.ones(stages), entries.ravel()))
    return lp
