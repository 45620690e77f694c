"""What happened at one station: a stage, or a hosted judge, who is visited after every stage but the last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.simulation.columns import FINISHED, Columns

FloatArray = NDArray[np.float64]
Number = TypeVar("Number", bound=np.generic)


@dataclass(frozen=True, eq=False)
class Station:
    """Columns of one station.

    Parameters
    ----------
    columns
        What happened.
    number
        Place among the stations: the stages that run, then a hosted judge.
    rows
        Its rows in the table of visits: one, or several for a judge.
    """

    columns: Columns
    number: int
    rows: tuple[int, ...]

    @property
    def is_judge(self) -> bool:
        """Whether it judges what stages write."""
        return self.number == self.columns.stages

    def visits_per_request(self, requests: slice) -> float:
        """Mean number of visits; of a stage that is its reach."""
        return float(sum(self.columns.visited(row, requests).mean() for row in self.rows))

    def latency_s(self, requests: slice) -> FloatArray:
        """From arrival at the station to the last token; NaN where it was not finished there."""
        return self._by_request(self.columns.stage_latency_s, requests)

    def ttft_s(self, requests: slice) -> FloatArray:
        """From arrival at the station to the first token."""
        return self._by_request(self.columns.stage_ttft_s, requests)

    def queueing_s(self, requests: slice) -> FloatArray:
        """From arrival at the station to admission by an engine."""
        return self._by_request(self.columns.stage_queueing_s, requests)

    def tpot_s(self, requests: slice) -> FloatArray:
        """Time per output token after the first; NaN for a single one."""
        return self._by_request(self.columns.stage_tpot_s, requests)

    def finished_s(self) -> FloatArray:
        """When visits ended with an answer; NaN where there was none, and no visit."""
        return self._by_visit(lambda row: self.columns.times(row)[:, FINISHED])

    def arrivals_s(self) -> FloatArray:
        """Return, per visit, when it arrived."""
        return self._by_visit(self.columns.visit_arrivals_s)

    def admissions_s(self) -> FloatArray:
        """Return, per visit, when it stopped waiting."""
        return self._by_visit(self.columns.visit_admissions_s)

    def ends_s(self) -> FloatArray:
        """Return, per visit, when it left; infinity where it was still there when the run ended."""
        return self._by_visit(self.columns.visit_ends_s)

    def replicas(self) -> NDArray[np.int32]:
        """Return, per visit, its replica."""
        return self._by_visit(self.columns.visit_replicas)

    def _by_request(self, column: Callable[[int, slice], FloatArray], requests: slice) -> FloatArray:
        """All rows in order of the requests, which carries the correlation that intervals need."""
        if len(self.rows) == 1:
            return column(self.rows[0], requests)
        return np.stack([column(row, requests) for row in self.rows], axis=1).ravel()

    def _by_visit(self, column: Callable[[int], NDArray[Number]]) -> NDArray[Number]:
        if len(self.rows) == 1:
            return column(self.rows[0])
        return np.concatenate([column(row) for row in self.rows])


def stations_of(columns: Columns) -> tuple[Station, ...]:
    """Return the stages that run and, last, a hosted judge."""
    stages = tuple(Station(columns, stage, (stage,)) for stage in range(columns.stages))
    judged = columns.judge_rows
    return (*stages, Station(columns, columns.stages, judged)) if judged else stages
