"""Times per request and per visit of a simulated run.

The native run holds about a hundred bytes per request, so nothing here keeps a second copy: columns are computed from
views of it when they are asked for.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.simulation.system import SimulatedSystem

SERVED, TIMED_OUT, REFUSED, UNFINISHED = range(4)
STATUSES = ("served", "timed_out", "refused", "unfinished")
ARRIVED, ADMITTED, FIRST_TOKEN, FINISHED = range(4)
_ALL = slice(None)

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Columns:
    """Times of N requests; every method takes the range of requests it is to speak of, in order of arrival.

    Methods of a `stage` take any row of the table of visits: row S + s holds the visits of a hosted judge that judge
    what stage s of S wrote.

    Parameters
    ----------
    native
        What happened.
    system
        The engines and the scored requests.
    drawn
        Shape (N,): which scored request each request is.
    judge_s
        Mean delay of a call of an external judge; 0 where nobody asks one.
    timeout_s
        After which requests are cancelled, if any are.
    """

    native: _core.Simulated
    system: SimulatedSystem
    drawn: NDArray[np.int32]
    judge_s: float
    timeout_s: float | None

    @property
    def stages(self) -> int:
        """Number of stages that run."""
        return len(self.system.engines)

    @property
    def judge_rows(self) -> tuple[int, ...]:
        """The rows of a hosted judge's visits; none where the judge is external."""
        return tuple(range(self.stages, len(self._visits[0])))

    @cached_property
    def sent(self) -> int:
        """Requests that arrived; all of them unless the run was interrupted."""
        return self.native.arrived_s.size - int(np.count_nonzero(np.isnan(self.native.arrived_s)))

    def latency_s(self, rows: slice = _ALL) -> FloatArray:
        """End to end, judge calls included; NaN unless served."""
        return self.native.finished_s[rows] - self.native.arrived_s[rows]

    def ttft_s(self, rows: slice = _ALL) -> FloatArray:
        """From arrival to the first token that the client sees; NaN unless served."""
        return self.native.first_token_s[rows] - self.native.arrived_s[rows]

    def queueing_s(self, rows: slice = _ALL) -> FloatArray:
        """Time before engines took the request up, over all stages and a hosted judge; NaN unless served."""
        total_s = np.where(self.native.status[rows] == SERVED, 0.0, np.nan)
        for stage in (*range(self.stages), *self.judge_rows):
            times = self.times(stage, rows)
            waited_s = times[:, ADMITTED] - times[:, ARRIVED]
            np.add(total_s, waited_s, out=total_s, where=~np.isnan(waited_s))
        return total_s

    def tpot_s(self, rows: slice = _ALL) -> FloatArray:
        """Time per output token after the first of the accepted answer; NaN unless served and longer than one."""
        found = np.full(self.drawn[rows].size, np.nan)
        accepted_by = self.accepted_by(rows)
        for stage in range(self.stages):
            here = accepted_by == stage
            times = self.times(stage, rows)
            written_s = times[:, FINISHED][here] - times[:, FIRST_TOKEN][here]
            found[here] = self._per_token_s(stage, written_s, self.drawn[rows][here])
        return found

    def accepted_by(self, rows: slice = _ALL) -> NDArray[np.int8]:
        """Stage, among those that run, whose answer was accepted; -1 unless served."""
        by_gear, drawn = self.system.accepted_by, self.drawn[rows]
        stage = by_gear[0][drawn] if len(by_gear) == 1 else by_gear[self.native.gear[rows], drawn]
        stage[self.native.status[rows] != SERVED] = -1
        return stage

    def in_gears(self, rows: slice = _ALL) -> NDArray[np.intp]:
        """Return, shape (G,), how many requests were served in each gear."""
        served = self.native.status[rows] == SERVED
        gears = len(self.system.path)
        return served.sum(keepdims=True) if gears == 1 else np.bincount(self.native.gear[rows][served], minlength=gears)

    def slo_scale(self, rows: slice = _ALL) -> FloatArray:
        """Latency over what it is on an idle system along the request's own path; NaN unless served."""
        alone_s = np.zeros(self.drawn[rows].size)
        for stage in (*range(self.stages), *self.judge_rows):
            visited = ~np.isnan(self.times(stage, rows)[:, FINISHED])
            one_s = self.system.alone_s(stage)[self.drawn[rows]]
            if stage < self.stages and self.judge_s and not self.judge_rows:
                one_s += self.judge_s * self._held_back(stage, rows)
            np.add(alone_s, one_s, out=alone_s, where=visited)
        latency_s = self.latency_s(rows)
        return np.divide(latency_s, alone_s, out=latency_s, where=alone_s > 0)

    def judge_calls(self, rows: slice = _ALL) -> float:
        """Judge calls per request served."""
        served = int(np.count_nonzero(self.native.status[rows] == SERVED))
        if not served or not self.system.asks_judge:
            return 0.0
        calls = sum(
            int(np.count_nonzero(~np.isnan(self.times(stage, rows)[:, FINISHED]) & self._held_back(stage, rows)))
            for stage in range(self.stages - 1)
        )
        return calls / served

    def _held_back(self, stage: int, rows: slice) -> NDArray[np.bool_]:
        """Whether a request's answer of the stage is judged before anybody sees it: one for all, or one for each."""
        by_gear: NDArray[np.bool_] = (self.system.held_back >> stage & 1) == 1
        return by_gear if by_gear.size == 1 else by_gear[self.native.gear[rows]]

    def visited(self, stage: int, rows: slice = _ALL) -> NDArray[np.bool_]:
        """Whether the request was dispatched to a replica of the stage."""
        return self.replica(stage, rows) >= 0

    def stage_latency_s(self, stage: int, rows: slice = _ALL) -> FloatArray:
        """From arrival at the stage to its last token; NaN where it was not finished there."""
        times = self.times(stage, rows)
        return times[:, FINISHED] - times[:, ARRIVED]

    def stage_ttft_s(self, stage: int, rows: slice = _ALL) -> FloatArray:
        """From arrival at the stage to its first token."""
        times = self.times(stage, rows)
        return times[:, FIRST_TOKEN] - times[:, ARRIVED]

    def stage_queueing_s(self, stage: int, rows: slice = _ALL) -> FloatArray:
        """From arrival at the stage to admission by an engine."""
        times = self.times(stage, rows)
        return times[:, ADMITTED] - times[:, ARRIVED]

    def stage_tpot_s(self, stage: int, rows: slice = _ALL) -> FloatArray:
        """Time per output token after the first; NaN for a single one."""
        times = self.times(stage, rows)
        return self._per_token_s(stage, times[:, FINISHED] - times[:, FIRST_TOKEN], self.drawn[rows])

    def _per_token_s(self, stage: int, written_s: FloatArray, drawn: NDArray[np.int32]) -> FloatArray:
        """Turn the time from first to last token, in place, into that per token after the first."""
        more = (self.system.tokens(stage)[1] - 1)[drawn]
        np.divide(written_s, more, out=written_s, where=more > 0)
        written_s[more == 0] = np.nan
        return written_s

    def visit_arrivals_s(self, stage: int) -> FloatArray:
        """Return, per visit of a stage, when it arrived there."""
        return self._of_visits(stage, ARRIVED)

    def visit_admissions_s(self, stage: int) -> FloatArray:
        """Return, per visit of a stage, when it stopped waiting: admitted by an engine, or gone before that."""
        admitted_s = self._of_visits(stage, ADMITTED)
        never = np.flatnonzero(np.isnan(admitted_s))
        if never.size:
            admitted_s[never] = self.visit_ends_s(stage)[never]
        return admitted_s

    def visit_ends_s(self, stage: int) -> FloatArray:
        """Return, per visit of a stage, when it left; infinity where it was still there when the run ended."""
        left_s = self._of_visits(stage, FINISHED)
        open_ended = np.isnan(left_s)
        if open_ended.any():
            requests = np.flatnonzero(self.visited(stage, self._sent_rows))[open_ended]
            left_s[open_ended] = self._gone_s(requests, self.times(stage)[requests, ARRIVED])
        return left_s

    def visit_replicas(self, stage: int) -> NDArray[np.int32]:
        """Return, per visit of a stage, its replica."""
        replica = self.replica(stage, self._sent_rows)
        return replica[replica >= 0]

    def _of_visits(self, stage: int, event: int) -> FloatArray:
        return self.times(stage, self._sent_rows)[:, event][self.visited(stage, self._sent_rows)]

    @property
    def _sent_rows(self) -> slice:
        """An interrupted run may have sent a hundredth of its requests, and should not look at the rest."""
        return slice(self.sent)

    def _gone_s(self, requests: NDArray[np.intp], arrived_s: FloatArray) -> FloatArray:
        """When visits without an end left: at the deadline, at once where refused, or never."""
        status = self.native.status[requests]
        deadline_s = self.native.arrived_s[requests] + (math.inf if self.timeout_s is None else self.timeout_s)
        gone_s: FloatArray = np.where(status == UNFINISHED, np.inf, arrived_s)
        np.maximum(deadline_s, arrived_s, out=gone_s, where=status == TIMED_OUT)
        return gone_s

    def preempted(self, stage: int, rows: slice = _ALL) -> NDArray[np.uint8]:
        """How often the request lost its place in the KV cache at the stage; 255 stands for more, too."""
        return self._visits[2][stage, rows]

    def times(self, stage: int, rows: slice = _ALL) -> FloatArray:
        """Shape (…, 4), absolute: arrived, admitted, first token, finished; NaN where that did not happen."""
        return self._visits[0][stage, rows]

    def replica(self, stage: int, rows: slice = _ALL) -> NDArray[np.int32]:
        """Replica of the stage, -1 where the request did not visit it."""
        return self._visits[1][stage, rows]

    @cached_property
    def _visits(self) -> tuple[FloatArray, NDArray[np.int32], NDArray[np.uint8]]:
        """Times, replicas and preemptions by stage and request."""
        native = self.native
        if native.times_s is None or native.replica is None or native.preempted is None:
            raise ValueError("this run kept no visits")
        return native.times_s, native.replica, native.preempted


def known(values: FloatArray) -> FloatArray:
    """Return what is not NaN: the column itself where all of it is known, else a copy."""
    unknown = np.isnan(values)
    return values[~unknown] if unknown.any() else values
