"""Measured times beside those of the simulator, as tables and as JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.real_engine_client import FloatArray, Load, Served
from benchmarks.real_engine_fit import BEND_TOKENS, StepFit
from benchmarks.real_engine_servers import BLOCK_TOKENS
from cascadia_fast import _core
from cascadia_fast.summary_layout import Table

WARM_UP = 0.1  # of the requests, the first ones, count nowhere
METRICS = ("E2E", "TTFT", "TPOT")
QUANTILES = (50, 95)
TARGET = 0.10
SEEDS = 20  # which server a tie goes to is drawn; the simulation says what all draws give


@dataclass(frozen=True)
class Run:
    """What the simulator said: times from the start, arrays of shape (requests,)."""

    arrival_s: FloatArray
    first_token_s: FloatArray
    finished_s: FloatArray
    busy: float  # share of the time that the engines work


@dataclass(frozen=True)
class Level:
    """One load, measured and simulated."""

    share: float  # of the simulated capacity
    rate_per_s: float
    load: Load
    measured: Served
    simulated: Sequence[Run]  # by seed
    client_cpu: float  # share of a core

    def quantiles_s(self, metric: str, quantile: int) -> tuple[float, float]:
        """Measured and simulated."""
        simulated = np.concatenate([self._times_s(one, metric) for one in self.simulated])
        return _quantile(self._times_s(self.measured, metric), quantile), _quantile(simulated, quantile)

    def error(self, metric: str, quantile: int) -> float:
        """Of the simulated quantile, relative."""
        measured_s, simulated_s = self.quantiles_s(metric, quantile)
        return simulated_s / measured_s - 1

    def spread(self, metric: str, quantile: int) -> float:
        """Half the range of the simulated quantile over the draws, relative."""
        found = [_quantile(self._times_s(one, metric), quantile) for one in self.simulated]
        return (max(found) - min(found)) / (max(found) + min(found))

    def _times_s(self, served: Served | Run, metric: str) -> FloatArray:
        writing_s = served.finished_s - served.first_token_s
        found = {
            "E2E": served.finished_s - served.arrival_s,
            "TTFT": served.first_token_s - served.arrival_s,
            "TPOT": writing_s / (self.load.tokens_out - 1),
        }[metric]
        return found[int(WARM_UP * found.size) :]


def simulated(fit: StepFit, engines: int, load: Load, *, seed: int = 0, concurrency: int = 0) -> Run:
    """The same requests in the simulator; with `concurrency` in a closed loop."""
    station = _core.Station(
        [(fit.costs(), engines, 1.0)],
        scheduler=_core.Scheduler(block_tokens=BLOCK_TOKENS),
        dispatch="least_outstanding",
    )
    found = _core.simulate(
        [station],
        tokens_in=load.tokens_in[None].astype(np.int32),
        tokens_out=load.tokens_out[None].astype(np.int32),
        path=np.ones(load.size, np.uint16),
        drawn=np.arange(load.size, dtype=np.int32),
        arrival_s=None if concurrency else load.arrival_s,
        concurrency=concurrency,
        seed=seed,
        visits=False,
    )
    busy = float(found.busy_s.mean() / found.finished_s.max())
    return Run(found.arrived_s, found.first_token_s, found.finished_s, busy)


def throughput_per_s(run: Run, concurrency: int) -> float:
    """Requests per second, without the first ones and those at the end, when clients run out of requests."""
    finished_s = np.sort(run.finished_s)
    first, last = concurrency, finished_s.size - concurrency - 1
    return float((last - first) / (finished_s[last] - finished_s[first]))


def tables(fit: StepFit, levels: Sequence[Level]) -> list[tuple[str, Table]]:
    """The calibration and the comparison, with titles."""
    return [
        ("Steps in closed loops", _fit_table(fit)),
        ("Poisson arrivals, milliseconds", _level_table(levels)),
    ]


def _fit_table(fit: StepFit) -> Table:
    rows = (
        ("step of decodes", f"{1e3 * fit.decode_base_s:.1f} ms"),
        ("  each of them", f"{1e3 * fit.decode_sequence_s:.2f} ms"),
        ("  a token of their context", f"{1e6 * fit.context_token_s:.2f} µs"),
        ("step with prompts", f"{1e3 * fit.prompt_base_s:.1f} ms"),
        (f"  a token of it, the first {BEND_TOKENS}", f"{1e6 * fit.prompt_token_s:.0f} µs"),
        ("  a later token", f"{1e6 * fit.late_token_s:.0f} µs"),
        ("  a sequence that gets a token", f"{1e3 * fit.sampled_s:.2f} ms"),
        ("  a pair of tokens of one prompt", f"{1e9 * fit.pair_s:.0f} ns"),
        ("front end", f"{1e3 * fit.request_s:.1f} ms"),
        ("decode steps fitted, median error", f"{fit.decode_steps:,}, {fit.decode_scatter:.1%}"),
        ("steps with prompts fitted, median error", f"{fit.prompt_steps:,}, {fit.prompt_scatter:.1%}"),
    )
    return Table(("cost", "found"), rows, frozenset({"cost"}))


def _level_table(levels: Sequence[Level]) -> Table:
    header: tuple[str, ...] = ("load", "rate/s", "busy", "requests", "time")
    for quantile in QUANTILES:
        header += (f"p{quantile} measured", "simulated", "error", "± draws")
    rows = tuple(
        (
            f"{level.share:.0%}",
            f"{level.rate_per_s:.2f}",
            f"{level.simulated[0].busy:.0%}",
            str(level.load.size - int(WARM_UP * level.load.size)),
            metric,
            *(cell for quantile in QUANTILES for cell in _cells(level, metric, quantile)),
        )
        for level in levels
        for metric in METRICS
    )
    return Table(header, rows, frozenset({"time"}))


def _cells(level: Level, metric: str, quantile: int) -> tuple[str, ...]:
    measured_s, simulated_s = level.quantiles_s(metric, quantile)
    error, spread = level.error(metric, quantile), level.spread(metric, quantile)
    return f"{1e3 * measured_s:,.1f}", f"{1e3 * simulated_s:,.1f}", f"{error:+.1%}", f"{spread:.1%}"


def verdict(levels: Sequence[Level]) -> str:
    """Whether the end-to-end quantiles are as near as they should be."""
    worst, where = max(
        (abs(level.error(METRICS[0], quantile)), f"p{quantile} at {level.share:.0%} load")
        for level in levels
        for quantile in QUANTILES
    )
    met = "are within" if worst <= TARGET else "are not all within"
    return (
        f"p50 and p95 end to end {met} {TARGET:.0%} of what was measured; the largest error is {worst:.1%} ({where})."
    )


def as_json(setting: Mapping[str, Any], fit: StepFit, levels: Sequence[Level]) -> dict[str, Any]:
    """Everything that was measured, request by request, and what the simulator said of it."""
    return {
        "setting": dict(setting),
        "fit": _json(fit),
        "levels": [_level_json(level) for level in levels],
    }


def _level_json(level: Level) -> dict[str, Any]:
    compared = {}
    for metric in METRICS:
        for quantile in QUANTILES:
            measured_s, simulated_s = level.quantiles_s(metric, quantile)
            compared[f"{metric} p{quantile}"] = {
                "measured_s": measured_s,
                "simulated_s": simulated_s,
                "error": level.error(metric, quantile),
                "spread_over_draws": level.spread(metric, quantile),
            }
    return {
        "share": level.share,
        "rate_per_s": level.rate_per_s,
        "busy": level.simulated[0].busy,
        "client_cpu": level.client_cpu,
        "compared": compared,
        "load": _json(level.load),
        "measured": _json(level.measured),
    }


def _json(found: Any) -> dict[str, Any]:
    fields = dataclasses.asdict(found)
    return {name: field.tolist() if isinstance(field, np.ndarray) else field for name, field in fields.items()}


def _quantile(times_s: FloatArray, quantile: int) -> float:
    return float(np.percentile(times_s, quantile))
