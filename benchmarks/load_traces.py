"""What becomes of the p95 under load on real request traces, whose bursts no renewal process has.

    python benchmarks/load_traces.py TRACE.csv... [--json FILE]

A trace has columns arrival_s, input_tokens and output_tokens. Its own arrivals and requests, in their own order, are
simulated on engines behind least-outstanding dispatch, with time stretched or compressed so that the mean rate is a
share of the simulated capacity; nothing is repeated, so the length of the run is printed. Beside it: the same arrivals
with the requests shuffled, a gamma renewal stream of the same CV, and a Poisson stream. Predictions, all of them by the
analytic model:

swings      what production does: the mean rate, and the dispersion over the time in which the batch relaxes
cv          the mean rate, and the CV of the gaps, as if they were independent
minute      the same at the rate of ``rate_from: p95_1min``
dispersion  the mean rate; in the place of CV^2 the index of dispersion of counts over a mean time in the system
settling    the same over a mean time in the system divided by the idle share, which is how long a queue takes to
            settle; the mean time is the one predicted with that dispersion

The last lines of the summary hold predictions to the streams that they were made for: the model's own error.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from load_accuracy import FloatArray, stage
from load_cases import EngineSpec, IntArray

from cascadia_fast import _core
from cascadia_fast.length_cells import length_cells
from cascadia_fast.readers import read_table
from cascadia_fast.workload import MIN_WINDOWS, Arrivals

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from reference import event_simulation


def spec_of(model: str, weights: str, gpu: str, tp: int) -> EngineSpec:
    return EngineSpec(
        model=model,
        weights=weights,
        gpu=gpu,
        tp=tp,
        pp=1,
        max_num_seqs=256,
        max_batched_tokens=8192,
        memory_utilization=0.9,
    )


ENGINES = (
    spec_of("llama-3.1-8b", "bf16", "h100-sxm-80gb", tp=1),
    spec_of("llama-3.1-70b", "fp8", "h100-sxm-80gb", tp=4),
    spec_of("deepseek-r1", "fp8", "h200-sxm-141gb", tp=8),
)
REPLICAS = (1, 2, 4, 8)
UTILIZATIONS = (0.4, 0.6, 0.8)
STREAMS = 10  # renewal streams are as many times longer than the trace: one as short has a p95 that scatters
ROUNDS = 8  # window and dispersion in turn
TOO_LOW = 0.9  # of the p95 simulated on the trace
CLOSE = 0.2  # of it, either way


@dataclass(frozen=True)
class Trace:
    name: str
    arrivals: Arrivals
    tokens_in: IntArray
    tokens_out: IntArray
    dropped: int  # requests without a prompt or without an answer

    @classmethod
    def read(cls, path: Path) -> Trace:
        columns = read_table(path, ("arrival_s", "input_tokens", "output_tokens")).numbers
        tokens_in, tokens_out = columns["input_tokens"], columns["output_tokens"]
        served = (tokens_in >= 1) & (tokens_out >= 1)
        return cls(
            name=path.stem,
            arrivals=Arrivals.from_times(columns["arrival_s"][served]),
            tokens_in=tokens_in[served].astype(np.int64),
            tokens_out=tokens_out[served].astype(np.int64),
            dropped=int((~served).sum()),
        )

    @property
    def size(self) -> int:
        return self.tokens_in.size

    def times_s(self, rate_per_s: float) -> FloatArray:
        times_s = self.arrivals.rescaled(rate_per_s).times_s
        assert times_s is not None
        return times_s


@dataclass(frozen=True)
class Row:
    """One configuration: p95 of the latency in seconds, simulated on four streams and predicted in several ways."""

    trace: str
    model: str
    replicas: int
    utilization: float
    run_s: float
    minute: float  # rate of rate_from: p95_1min over the mean rate
    window_s: dict[str, float]
    dispersion: dict[str, float]
    simulated_s: dict[str, float]
    predicted_s: dict[str, float]

    def ratios(self) -> dict[str, float]:
        """What the summary lists, by name."""
        on, by = self.simulated_s, self.predicted_s
        return {
            **{f"simulated, {name}": p95_s / on["trace"] for name, p95_s in on.items() if name != "trace"},
            **{f"predicted, {name}": p95_s / on["trace"] for name, p95_s in by.items() if name != "poisson"},
            "predicted, cv / simulated, gamma": by["cv"] / on["gamma"],
            "predicted / simulated, poisson": by["poisson"] / on["poisson"],
        }


class Model:
    """The analytic model of one configuration, by rate and squared CV."""

    def __init__(self, trace: Trace, spec: EngineSpec, replicas: int) -> None:
        self.engine, self.replicas = spec.engine(), replicas
        self.cells = length_cells(trace.tokens_in.astype(float), trace.tokens_out.astype(float), np.ones(trace.size))
        self.share = np.bincount(self.cells.cell_of) / trace.size

    def p95_s(self, rate_per_s: float, scv: float, swings: FloatArray | None = None) -> float:
        return self._stage(rate_per_s, scv, swings)["p95_s"]

    def mean_s(self, rate_per_s: float, scv: float) -> float:
        found = self._stage(rate_per_s, scv)
        if not np.isfinite(found["p95_s"]):
            return np.inf
        return float(np.average(found["latency_s"].mean(axis=0), weights=self.share))

    def _stage(self, rate_per_s: float, scv: float, swings: FloatArray | None = None) -> _core.StageDetail:
        return stage(self.engine, self.cells, self.share, rate_per_s, scv, self.replicas, swings)


def measure(trace: Trace, spec: EngineSpec, capacity_per_s: float, replicas: int, utilization: float) -> Row:
    rate_per_s = utilization * replicas * capacity_per_s
    model, arrivals = Model(trace, spec, replicas), trace.arrivals.rescaled(rate_per_s)
    times_s = trace.times_s(rate_per_s)
    minute_per_s, scv = arrivals.rate_by("p95_1min"), arrivals.cv**2
    window_s = {"dispersion": model.mean_s(rate_per_s, 1.0)}
    window_s["settling"] = settling_s(model, rate_per_s, times_s, 1 - utilization)
    dispersions = {name: dispersion(times_s, width_s) for name, width_s in window_s.items()}
    return Row(
        trace=trace.name,
        model=spec.model,
        replicas=replicas,
        utilization=utilization,
        run_s=float(times_s[-1] - times_s[0]),
        minute=minute_per_s / rate_per_s,
        window_s=window_s,
        dispersion=dispersions,
        simulated_s=simulated(trace, spec, times_s, rate_per_s, replicas),
        predicted_s={
            "poisson": model.p95_s(rate_per_s, 1.0),
            "swings": model.p95_s(rate_per_s, scv, arrivals.swings),
            "cv": model.p95_s(rate_per_s, scv),
            "minute": model.p95_s(minute_per_s, scv),
            **{name: model.p95_s(rate_per_s, value) for name, value in dispersions.items()},
        },
    )


def settling_s(model: Model, rate_per_s: float, times_s: FloatArray, idle: float) -> float:
    """Mean time in the system over the idle share, at the dispersion over that time; from below."""
    scv = 1.0
    for _ in range(ROUNDS):
        width_s = model.mean_s(rate_per_s, scv) / idle
        scv = dispersion(times_s, width_s)
    return width_s


def simulated(
    trace: Trace, spec: EngineSpec, times_s: FloatArray, rate_per_s: float, replicas: int
) -> dict[str, float]:
    rng = np.random.default_rng(0)
    engine, limits, count = spec.engine(), spec.limits, times_s.size

    def p95_s(arrival_s: FloatArray, pick: IntArray) -> float:
        found = event_simulation.simulate(
            engine, arrival_s, trace.tokens_in[pick], trace.tokens_out[pick], limits=limits, replicas=replicas
        )
        return float(np.quantile(found.latency_s, 0.95))

    def renewal_s(scv: float) -> float:
        gaps = rng.gamma(1 / scv, scv, STREAMS * count)
        # Exactly at the rate of the trace, so that a difference lies in the bursts alone.
        arrival_s = np.cumsum(gaps / gaps.mean() / rate_per_s)
        return p95_s(arrival_s, np.concatenate([rng.permutation(count) for _ in range(STREAMS)]))

    return {
        "trace": p95_s(times_s, np.arange(count)),
        "shuffled": p95_s(times_s, rng.permutation(count)),
        "gamma": renewal_s(trace.arrivals.cv**2),
        "poisson": renewal_s(1.0),
    }


def dispersion(times_s: FloatArray, window_s: float) -> float:
    """Index of dispersion of counts over windows of any length, or over the longest that it can be measured for."""
    window_s = min(window_s, (times_s[-1] - times_s[0]) / (MIN_WINDOWS + 1))
    return Arrivals.from_times(times_s / window_s).dispersion[1]


def measured(trace: Trace) -> list[Row]:
    rows = []
    mixed = np.random.default_rng(0).permutation(trace.tokens_in.size)  # lengths drift in the course of a trace
    for spec in ENGINES:
        requests = trace.tokens_in[mixed], trace.tokens_out[mixed]
        capacity_per_s = event_simulation.capacity_per_s(spec.engine(), *requests, limits=spec.limits)
        for replicas, utilization in itertools.product(REPLICAS, UTILIZATIONS):
            rows.append(measure(trace, spec, capacity_per_s, replicas, utilization))
            print(line(rows[-1]), flush=True)
    return rows


HEADER = (
    f"{'':43s}|{'simulated / on the trace':^25s}|{'':8s}|{'':14s}|{'predicted / simulated on the trace':^34s}\n"
    f"{'':15s} dp load  run s  p95 on trace|shuffled   gamma poisson|  minute| dispersions  |"
    f"{'cv':>7s}  minute dispersion settling"
)


def line(row: Row) -> str:
    of_trace = row.ratios()
    streams = " ".join(f"{of_trace[f'simulated, {name}']:7.2f}" for name in ("shuffled", "gamma", "poisson"))
    spread = " ".join(f"{value:6.1f}" for value in row.dispersion.values())
    predicted = (of_trace[f"predicted, {name}"] for name in ("cv", "minute", "dispersion", "settling"))
    return (
        f"{row.model:15s}{row.replicas:3d} {row.utilization:4.1f}{row.run_s:7.0f}{row.simulated_s['trace']:14.2f}| "
        f"{streams} |{row.minute:7.2f} |{spread} |"
        + "".join(f"{ratio:{width}.2f}" for ratio, width in zip(predicted, (7, 8, 11, 9), strict=True))
    )


SUMMARY = f"{'of the p95 simulated on the trace':69s}" + "".join(
    f"{name:>{width}s}"
    for name, width in (("median", 8), ("5 %", 8), ("95 %", 8), ("±20 %", 8), ("< 0.9", 8), ("inf", 6))
)


def summary(name: str, rows: Sequence[Row]) -> list[str]:
    """One line per way to simulate or predict: quantiles of the ratio over the configurations."""
    lines = []
    for what in rows[0].ratios():
        ratios = np.array([row.ratios()[what] for row in rows])
        # No interpolation: it would make no number of a finite and an infinite ratio.
        low, median, high = np.quantile(ratios, (0.05, 0.5, 0.95), method="higher")
        close, too_low = np.mean(np.abs(ratios - 1) <= CLOSE), np.mean(ratios < TOO_LOW)
        lines.append(
            f"{name:36s}{what:33s}{median:8.2f}{low:8.2f}{high:8.2f}{close:8.0%}{too_low:8.0%}"
            f"{np.mean(np.isinf(ratios)):6.0%}"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("traces", type=Path, nargs="+", metavar="TRACE.csv")
    parser.add_argument("--json", type=Path, help="file for every configuration")
    options = parser.parse_args()
    rows: dict[str, list[Row]] = {}
    for path in options.traces:
        trace = Trace.read(path)
        arrivals = trace.arrivals
        dispersions = ", ".join(f"{value:.1f} over {window_s} s" for window_s, value in arrivals.dispersion.items())
        print(
            f"\n{trace.name}: {arrivals.count:,} requests ({trace.dropped:,} of length zero dropped) in "
            f"{arrivals.duration_s:,.0f} s, {arrivals.rate_per_s:.1f}/s, CV {arrivals.cv:.2f}, dispersion {dispersions}"
        )
        print(HEADER)
        rows[trace.name] = measured(trace)
    print(f"\n{SUMMARY}")
    every = [row for found in rows.values() for row in found]
    groups = {**rows, "all": every} if len(rows) > 1 else rows
    for name, found in groups.items():
        print("\n".join(summary(name, found)))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(row) for row in every]))


if __name__ == "__main__":
    main()
