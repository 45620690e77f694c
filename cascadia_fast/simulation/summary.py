"""A simulated run as text for people: stages, what was measured, the plan's predictions, and what it cannot claim."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import IO, TYPE_CHECKING

from cascadia_fast.simulation.traffic import MAX_REQUESTS
from cascadia_fast.summary import duration
from cascadia_fast.summary_layout import Report, Table, text_of, write

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation
    from cascadia_fast.simulation.results import Comparison, StageResult
    from cascadia_fast.simulation.statistics import Estimate, Percentiles

DEFAULT_COMMAND = ("cascadia-fast", "simulate", "plan.json")

_NOTHING = "–"
_CLOSE = 0.1  # relative; nearer predictions are called good even where the interval is narrower still


def summarize(
    run: Simulation,
    *,
    width: int = 100,
    ascii_only: bool = False,
    command: Sequence[str] = DEFAULT_COMMAND,
    flags: Mapping[str, str] | None = None,
) -> str:
    """Plain text of a run, wrapped at `width` columns.

    Parameters
    ----------
    run : the run.
    width : columns; at least 40 are used.
    ascii_only : write ``x`` for the multiplication sign and so on.
    command, flags : how the run was asked for, so that the next commands repeat it with one thing changed.
    """
    return text_of(report_of(run, command, flags or {}), width, ascii_only)


def show(run: Simulation, file: IO[str], command: Sequence[str], flags: Mapping[str, str]) -> None:
    """Write the summary to `file`: drawn as wide as the terminal on one, plain text elsewhere."""
    write(report_of(run, command, flags), file)


def report_of(run: Simulation, command: Sequence[str], flags: Mapping[str, str]) -> Report:
    """What the summary of a run says."""
    return Report(_title(run), _stages(run), _facts(run), _versus(run), _verdict(run), _next(run, command, flags))


def _title(run: Simulation) -> str:
    settings = run.settings
    if settings.concurrency is not None:
        traffic = f"from {_plural(settings.concurrency, 'client')} in a closed loop"
    else:
        traffic = f"at {settings.rate_per_s:,.4g} per second ({settings.arrivals})"
    return (
        f"Simulation of plan {run.plan.plan_id}: {_plural(run.requests, 'request')} {traffic}, seed {settings.seed}, "
        f"{_time(run.measured.ended_s)} until the last is done"
    )


def _stages(run: Simulation) -> Table:
    header = (
        "stage",
        "model",
        "GPUs",
        "replicas",
        "reach",
        "rate",
        "p95",
        "TTFT p95",
        "queue p95",
        "not idle",
        "batch",
    )
    return Table(header, tuple(_station_row(station) for station in run.stations), frozenset({"model"}))


def _station_row(station: StageResult) -> tuple[str, ...]:
    return (
        "judge" if station.index is None else str(station.index + 1),
        station.model,
        f"{station.gpus:,}",
        f"{station.replicas:,}",
        f"{100 * station.reach:.1f} %",
        _rate(station.arrived_per_s),
        _p95(station.latency),
        _p95(station.ttft),
        _p95(station.queueing),
        f"{100 * station.busy_share:.1f} %",
        f"{station.mean_running / station.replicas:,.1f}",
    )


def _p95(quantiles: Percentiles | None) -> str:
    return _NOTHING if quantiles is None else _aligned(quantiles.p95.value)


def _time(seconds: float) -> str:
    return duration(seconds) if seconds else "0 s"


def _aligned(seconds: float | None) -> str:
    """A duration in a column of numbers."""
    return "0 s" if seconds == 0 else duration(seconds, zeros=True)


def _plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def _rate(per_s: float | None) -> str:
    return _NOTHING if per_s is None else f"{per_s:,.3g}/s"


def _facts(run: Simulation) -> tuple[tuple[str, str], ...]:
    found = [
        ("requests", _counts(run)),
        ("measured", _measured(run)),
        ("latency", _quantiles(run.latency)),
        ("first token", _quantiles(run.ttft)),
        ("per token", _quantiles(run.tpot)),
        ("queueing", _quantiles(run.queueing)),
        ("throughput", _throughput(run)),
        ("SLO scale", _slo(run)),
    ]
    if len(run.gear_shares) > 1:
        found.append(("gears", _gears(run)))
    if run.quality is not None:
        found.append(("quality", f"{run.quality.value:.4g}, {_interval(run.quality, lambda value: f'{value:.4g}')}"))
    if run.cost_usd_per_request is not None:
        found.append(("cost", f"{1000 * run.cost_usd_per_request:,.3g} USD per 1,000 requests served"))
    return (*found, *(("note", note) for note in run.notes))


def _gears(run: Simulation) -> str:
    shares = ", ".join(f"{100 * share:.3g} % in gear {place}" for place, share in enumerate(run.gear_shares, 1))
    return f"{shares} of those served"


def _counts(run: Simulation) -> str:
    return ", ".join(
        f"{count:,} {status.replace('_', ' ')}" for status, count in run.counts.items() if count or status == "served"
    )


def _measured(run: Simulation) -> str:
    measured = run.measured
    after = run.columns.sent - measured.stop
    if measured.start == after == 0:
        return f"{_plural(measured.count, 'request')}, none left out"
    return (
        f"{_plural(measured.count, 'request')}; left out are the first {measured.start:,} (warm-up: a p99 latency of "
        f"{_time(measured.p99_s)}, or more if MSER-5 says so, at most half) and the last {after:,} (cool-down: a p99 "
        "latency, at most half of the others)"
    )


def _quantiles(found: Percentiles | None) -> str:
    if found is None:
        return "no request was served"
    return ", ".join(
        f"{name} {_time(estimate.value)}{_plus_minus(estimate)}"
        for name, estimate in (("p50", found.p50), ("p90", found.p90), ("p95", found.p95), ("p99", found.p99))
    )


def _plus_minus(estimate: Estimate) -> str:
    if estimate.low is None or not estimate.value:
        return ""
    width = 100 * estimate.relative_half_width
    return f" (± {width:,.{0 if width >= 10 else 1}f} %)"


def _interval(estimate: Estimate, text: object) -> str:
    assert callable(text)
    if estimate.low is None or estimate.high is None:
        return "too few requests for an interval"
    return f"95 % interval {text(estimate.low)} to {text(estimate.high)}"


def _throughput(run: Simulation) -> str:
    if run.throughput_per_s is None:
        return _NOTHING
    text = f"{run.throughput_per_s:,.4g} requests/s served"
    if run.offered_per_s is not None:
        text += f" while {run.offered_per_s:,.4g} arrive"
    goodput = run.goodput_per_s()
    if goodput is not None and run.within_slo is not None:
        text += (
            f"; {goodput:,.4g} within {duration(run.settings.slo_s)}, which {100 * run.within_slo:.4g} % of the "
            "requests attain"
        )
    return text


def _slo(run: Simulation) -> str:
    scale = run.smallest_slo_scale()
    shares = ", ".join(f"{100 * run.attainment(scale):.3g} % within {scale:g} ×" for scale in (1.5, 2, 3, 5))
    if scale is None:
        return f"not 95 % are served at all; of their own latency on an idle system: {shares}"
    return f"95 % within {scale:.3g} × their own latency on an idle system; {shares}"


def _versus(run: Simulation) -> Table:
    """Predicted against simulated figures; the latter alone where nothing is predicted."""
    left = frozenset({"figure", "note"})
    if run.predictions:
        header = ("figure", "predicted", "simulated", "95 % interval", "error", "note")
        return Table(header, tuple(_comparison_row(found) for found in run.predictions), left)
    rows = tuple((what, _aligned(found.value), _between(found)) for what, found in run.figures)
    return Table(("figure", "simulated", "95 % interval"), rows or (("none", _NOTHING, _NOTHING),), left)


def _comparison_row(found: Comparison) -> tuple[str, ...]:
    return (
        found.what,
        _aligned(found.predicted_s),
        _aligned(found.simulated.value),
        _between(found.simulated),
        _NOTHING if found.error is None else f"{100 * found.error:+.1f} %",
        "in the interval" if found.inside else "",
    )


def _between(found: Estimate) -> str:
    if found.low is None or found.high is None:
        return _NOTHING
    return f"{_aligned(found.low)} – {_aligned(found.high)}"


def _verdict(run: Simulation) -> str:
    if run.settings.concurrency is not None:
        return "A closed loop is no traffic that a plan predicts, so there is nothing to compare with."
    errors = [(abs(found.error), found) for found in run.predictions if found.error is not None]
    if not errors:
        return "There is nothing to compare with."
    if all(found.simulated.low is None for found in run.predictions):
        return "Too few requests to tell how right the predictions are."
    inside = sum(found.inside for found in run.predictions)
    close = sum(error <= _CLOSE for error, _ in errors)
    worst_error, worst = max(errors, key=lambda pair: pair[0])
    side = "above" if (worst.error or 0.0) > 0 else "below"
    return (
        f"Of {_plural(len(run.predictions), 'prediction')}, {inside} lie in the interval and {close} within "
        f"{100 * _CLOSE:.0f} % of the simulated figure; the farthest, {worst.what}, lies {100 * worst_error:.1f} % "
        f"{side} it."
    )


def _next(run: Simulation, command: Sequence[str], flags: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    def line(name: str, value: str) -> str:
        # What is only tried must not overwrite what was stored.
        asked = {key: given for key, given in flags.items() if key not in (name, "--trace", "--timeline")}
        return shlex.join([*command, *(word for pair in {**asked, name: value}.items() for word in pair)])

    found = []
    overloaded = any("is overloaded" in note for note in run.notes)
    if 4 * run.requests <= MAX_REQUESTS and not overloaded:
        found.append((line("--requests", str(4 * run.requests)), "half as wide intervals"))
    if run.settings.concurrency is not None:
        found.append((line("--concurrency", str(2 * run.settings.concurrency)), "twice the clients"))
    elif run.settings.rate_per_s is not None and overloaded:
        found.append((line("--rate", f"{0.9 * run.plan.predicted.max_rate_per_s:.3g}"), "what the plan carries"))
    elif run.settings.rate_per_s is not None:
        found.append((line("--rate", f"{1.25 * run.settings.rate_per_s:.3g}"), "a quarter more traffic"))
    found.append((line("--timeline", "timeline.html"), "a picture of the run"))
    return tuple(found)
