"""Replica counts for one routing on several pools, as an integer program in HiGHS.

With ``c_s`` the largest rate at which a replica of option ``s`` (an engine in a pool) stays within a latency, a station
that gets ``λ`` requests per second stays within it, requests dispatched by capacity, exactly if its replicas' rates sum
to ``λ``. So the counts ``n`` are feasible where

    Σ_s n_{i,s}·c_{i,s} >= λ_i  for every station i,    Σ_{i,s} n_{i,s}·a_{s,k} <= N_k  for every resource k

(GPUs of each pool, and the budget), within the stations' limits on replicas. That a station must also hold after losing
``k`` replicas adds ``Σ_s n_s·d_s - k·d_t >= λ`` for every option ``t`` in use, with ``d`` the rates then allowed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from cascadia_fast.errors import CascadiaError
from cascadia_fast.planning import highs

if TYPE_CHECKING:
    import highspy
    from numpy.typing import NDArray

    FloatArray = NDArray[np.float64]
    IntArray = NDArray[np.int64]

TOLERANCE = 1e-9  # relative, of a load that is carried
ROUNDED = 1 - 10 * TOLERANCE  # of a load: what the solver's own tolerances may leave of it
MANY = 100_000  # a limit of so many replicas is none
INTERRUPTIBLE_S = 2.0  # a solve with more time than this may be long


@dataclass(frozen=True, eq=False, slots=True)
class Demand:
    """What one station needs under one routing and one limit of latency; arrays have an entry per option.

    Attributes
    ----------
    rate_per_s : requests that reach the station.
    capacity_per_s : shape (S,), the most one replica may get; 0: the option is too slow.
    survivor_per_s : the same after a loss.
    usage : shape (S, K), what one replica takes of each resource.
    least_replicas, most_replicas : limits of the count.
    spare_replicas : how many may be lost.
    """

    rate_per_s: float
    capacity_per_s: FloatArray
    survivor_per_s: FloatArray
    usage: FloatArray
    least_replicas: int = 0
    most_replicas: int = 1_000_000
    spare_replicas: int = 0

    def holds(self, counts: IntArray) -> bool:
        """Whether these replicas carry the load, before and after the loss, within the limits of their number."""
        enough = self.rate_per_s * ROUNDED
        if not self.least_replicas <= counts.sum() <= self.most_replicas or counts @ self.capacity_per_s < enough:
            return False
        if self.rate_per_s == 0 or self.spare_replicas == 0:
            return True
        used = self.survivor_per_s[counts > 0]
        return bool(counts @ self.survivor_per_s - self.spare_replicas * used.max(initial=0) >= enough)

    def useful(self) -> IntArray:
        """Return the options that no other one beats.

        Where as many GPUs hold several replicas of a smaller engine in the same pool, and these carry no less, the
        larger one is not needed; unless replicas are few, since then several do not stand for one.
        """
        runs = np.ones(len(self.usage), bool)
        if self.rate_per_s > 0:
            runs = (self.capacity_per_s > 0) | (self.survivor_per_s > 0) * (self.spare_replicas > 0)
            runs |= self.least_replicas > 0
        kept = np.flatnonzero(runs)
        if self.spare_replicas > 1:
            return kept
        with np.errstate(divide="ignore", invalid="ignore"):
            times = self.usage[kept, None] / self.usage[None, kept]  # times[s, t]: replicas of t in the place of one s
        times = np.where(np.isnan(times), np.inf, times).min(axis=2)
        times = np.where(times >= 1, np.floor(times + 1e-9) if self.most_replicas >= MANY else 1.0, 0.0)
        beats = times > 0
        for rate_per_s in (self.capacity_per_s, self.survivor_per_s):
            beats &= times * rate_per_s[None, kept] >= rate_per_s[kept, None]
        both = beats & beats.T  # alike: the first stays
        beats &= ~(both & (np.arange(kept.size)[None, :] >= np.arange(kept.size)[:, None]))
        return kept[~beats.any(axis=1)]


@dataclass(frozen=True, eq=False, slots=True)
class Counts:
    """What the program answers.

    Attributes
    ----------
    status : ``"optimal"``, ``"infeasible"`` or ``"time_limit"``.
    replicas : per station, shape (S,): replicas of each option; empty when none were found.
    bound : no feasible counts cost less; minus infinity where nothing is minimised.
    """

    status: str
    replicas: tuple[IntArray, ...]
    bound: float

    @property
    def found(self) -> bool:
        """Whether there are counts."""
        return bool(self.replicas)


@dataclass(frozen=True, eq=False, slots=True)
class Relaxation:
    """Fractional counts: the least share of every resource that carries the load, and the resources' worth.

    Attributes
    ----------
    share : above 1, no counts are feasible; infinite where a station has no option.
    worth : shape (K,), shadow prices that prove it; they value all resources together at 1.
    """

    share: float
    worth: FloatArray


def solve_counts(
    demands: Sequence[Demand],
    supply: FloatArray,
    cost: Sequence[FloatArray] | None,
    time_limit_s: float,
    most: float = math.inf,
) -> Counts:
    """Return feasible replica counts, the cheapest ones where there are costs.

    Parameters
    ----------
    demands : of each station.
    supply : shape (K,), what there is of each resource.
    cost : per station, shape (S,), of one replica; None: any counts will do.
    time_limit_s : give up after this long.
    most : what the counts may cost.
    """
    import highspy

    program = _Program(demands, supply, cost, most)
    if program.hopeless:
        return Counts("infeasible", (), math.inf)
    solver = highs.solver(time_limit_s)
    highs.check(solver.passModel(program.lp()), "the model")
    highs.run(solver, interruptible=time_limit_s > INTERRUPTIBLE_S)
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return Counts("infeasible", (), math.inf)
    if status not in (highspy.HighsModelStatus.kOptimal, highspy.HighsModelStatus.kTimeLimit):
        raise CascadiaError(f"HiGHS stopped with status {solver.modelStatusToString(status)!r} on a capacity program")
    info = solver.getInfo()
    name = "optimal" if status == highspy.HighsModelStatus.kOptimal else "time_limit"
    bound = float(info.mip_dual_bound) * program.cost_scale if cost is not None else -math.inf
    if info.primal_solution_status != highspy.SolutionStatus.kSolutionStatusFeasible:
        return Counts(name, (), bound)
    replicas = program.counts(np.asarray(solver.getSolution().col_value))
    if not all(demand.holds(counts) for demand, counts in zip(demands, replicas, strict=True)):
        raise CascadiaError(
            "HiGHS says that replicas carry a load that they do not; this is a defect, please report it with the "
            "problem file"
        )
    return Counts(name, replicas, bound)


def relax(demands: Sequence[Demand], supply: FloatArray) -> Relaxation:
    """Return the least share of every resource with which fractional counts carry the load."""
    import highspy

    program = _Program(demands, supply)
    if program.hopeless:
        return Relaxation(math.inf, np.ones(len(supply)) / len(supply))
    solver = highs.solver(math.inf, presolve="off")
    highs.check(solver.passModel(program.share_lp()), "the relaxation")
    highs.run(solver, interruptible=False)
    if solver.getModelStatus() == highspy.HighsModelStatus.kInfeasible:  # however many resources there were
        return Relaxation(math.inf, np.ones(len(supply)) / len(supply))
    solution = solver.getSolution()
    worth = np.maximum(-np.asarray(solution.row_dual)[: len(supply)], 0.0) / np.maximum(supply, 1.0)  # rows are scaled
    return Relaxation(float(solver.getInfo().objective_function_value), worth)


class _Program:
    """Columns: counts of the useful options, station by station, then whether they are in use where that matters."""

    def __init__(
        self,
        demands: Sequence[Demand],
        supply: FloatArray,
        cost: Sequence[FloatArray] | None = None,
        most: float = math.inf,
    ) -> None:
        self._demands = demands
        self._supply = supply
        self._options = [demand.useful() for demand in demands]
        self.hopeless = any(
            (demand.rate_per_s > 0 or demand.least_replicas > 0) and options.size == 0
            for demand, options in zip(demands, self._options, strict=True)
        )
        if self.hopeless:
            return
        self._usage = np.concatenate([d.usage[kept] for d, kept in zip(demands, self._options, strict=True)])
        self._most = np.concatenate([self._most_of(d, kept) for d, kept in zip(demands, self._options, strict=True)])
        given = (
            np.zeros(len(self._usage))
            if cost is None
            else np.concatenate([c[kept] for c, kept in zip(cost, self._options, strict=True)])
        )
        self.cost_scale = float(given.max(initial=0.0)) or 1.0
        self._cost = given / self.cost_scale
        self._most_cost = most / self.cost_scale

    def _most_of(self, demand: Demand, kept: IntArray) -> FloatArray:
        usage = demand.usage[kept]
        with np.errstate(divide="ignore", invalid="ignore"):
            fit = np.where(usage > 0, self._supply / usage, np.inf).min(axis=1, initial=np.inf)
        return np.asarray(np.minimum(np.floor(fit + 1e-9), demand.most_replicas))

    def lp(self) -> highspy.HighsLp:
        """Return the integer program."""
        rows = _Rows()
        for resource, supply in enumerate(self._supply):
            used = np.flatnonzero(self._usage[:, resource])
            scale = max(supply, 1.0)
            rows.add(used, self._usage[used, resource] / scale, -math.inf, supply / scale)
        if math.isfinite(self._most_cost) and self._cost.any():
            paid = np.flatnonzero(self._cost)
            scale = max(self._most_cost, 1.0)
            rows.add(paid, self._cost[paid] / scale, -math.inf, self._most_cost / scale * (1 + TOLERANCE))
        binaries = 0
        most = [self._most]
        for demand, columns, kept in self._stations():
            if demand.rate_per_s > 0:
                rows.add(columns, _part(demand.capacity_per_s[kept], demand.rate_per_s), 1.0, math.inf)
            if demand.least_replicas > 0 or demand.most_replicas < MANY:
                rows.add(columns, np.ones(columns.size), float(demand.least_replicas), float(demand.most_replicas))
            if demand.rate_per_s > 0 and demand.spare_replicas > 0:
                first = len(self._usage) + binaries
                self._add_spare(rows, demand, columns, kept, first)
                most.append(np.ones(kept.size))
                binaries += kept.size
        return rows.lp(np.append(self._cost, np.zeros(binaries)), np.concatenate(most), integer=True)

    def share_lp(self) -> highspy.HighsLp:
        """Return the relaxation: minimise the share, the last column, of all resources."""
        rows = _Rows()
        share = len(self._usage)
        for resource, supply in enumerate(self._supply):
            used = np.flatnonzero(self._usage[:, resource])
            scale = max(supply, 1.0)
            coefficients = np.append(self._usage[used, resource] / scale, -supply / scale)
            rows.add(np.append(used, share), coefficients, -math.inf, 0.0)
        for demand, columns, kept in self._stations():
            if demand.rate_per_s > 0:
                rows.add(columns, _part(demand.capacity_per_s[kept], demand.rate_per_s), 1.0, math.inf)
            if demand.least_replicas > 0 or demand.most_replicas < MANY:
                rows.add(columns, np.ones(columns.size), float(demand.least_replicas), float(demand.most_replicas))
        return rows.lp(np.append(np.zeros(share), 1.0), np.full(share + 1, np.inf), integer=False)

    def counts(self, values: FloatArray) -> tuple[IntArray, ...]:
        """Return what a solution of the integer program says, per station and option."""
        found = []
        for demand, columns, kept in self._stations():
            replicas = np.zeros(len(demand.usage), np.int64)
            replicas[kept] = np.rint(values[columns]).astype(np.int64)
            found.append(replicas)
        return tuple(found)

    def _stations(self) -> list[tuple[Demand, IntArray, IntArray]]:
        ends = np.cumsum([kept.size for kept in self._options])
        return [
            (demand, np.arange(end - kept.size, end), kept)
            for demand, kept, end in zip(self._demands, self._options, ends, strict=True)
        ]

    def _add_spare(self, rows: _Rows, demand: Demand, columns: IntArray, kept: IntArray, first: int) -> None:
        survive = _part(demand.survivor_per_s[kept], demand.rate_per_s)
        for at in range(kept.size):
            used = first + at
            lost = -demand.spare_replicas * survive[at]
            rows.add(np.append(columns, used), np.append(survive, lost), 1.0, math.inf)
            rows.add(np.array([columns[at], used]), np.array([1.0, -self._most[columns[at]]]), -math.inf, 0.0)


def _part(capacity_per_s: FloatArray, rate_per_s: float) -> FloatArray:
    """What one replica carries of the load; more than all of it is not needed."""
    return np.asarray(np.minimum(capacity_per_s / rate_per_s, 1.0))


class _Rows:
    """A program, row by row."""

    def __init__(self) -> None:
        self._index: list[NDArray[np.int32]] = []
        self._value: list[FloatArray] = []
        self._lower: list[float] = []
        self._upper: list[float] = []

    def add(self, columns: IntArray, values: FloatArray, lower: float, upper: float) -> None:
        self._index.append(columns.astype(np.int32))
        self._value.append(values)
        self._lower.append(lower)
        self._upper.append(upper)

    def lp(self, cost: FloatArray, most: FloatArray, *, integer: bool) -> highspy.HighsLp:
        import highspy

        lp = highspy.HighsLp()
        lp.num_col_ = cost.size
        lp.num_row_ = len(self._lower)
        lp.col_cost_ = cost
        lp.col_lower_ = np.zeros(cost.size)
        lp.col_upper_ = np.where(np.isinf(most), highspy.kHighsInf, most)
        if integer:
            lp.integrality_ = [highspy.HighsVarType.kInteger] * cost.size
        lp.row_lower_ = np.array(self._lower)
        lp.row_upper_ = np.array(self._upper)
        matrix = lp.a_matrix_
        matrix.format_ = highspy.MatrixFormat.kRowwise
        matrix.num_col_ = lp.num_col_
        matrix.num_row_ = lp.num_row_
        matrix.start_ = np.concatenate(([0], np.cumsum([index.size for index in self._index]))).astype(np.int32)
        matrix.index_ = np.concatenate(self._index)
        matrix.value_ = np.concatenate(self._value)
        return lp
