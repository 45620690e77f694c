"""What a simulated run cannot claim, and what went wrong in it: one sentence each, the gravest first."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from cascadia_fast.simulation.overload import overloads
from cascadia_fast.simulation.traffic import MAX_REQUESTS
from cascadia_fast.summary import duration

if TYPE_CHECKING:
    from cascadia_fast.simulation import Simulation
    from cascadia_fast.simulation.statistics import Percentiles

# A quantile stands on the requests beyond it: fewer than these in a section, and its interval is guesswork.
LEAST_TAIL = 10
WIDE = 0.1
LEAST_TURNS = 5  # requests of a client in a closed loop
NAMED = 3
SAME_RATE = 0.01


def notes_of(run: Simulation) -> tuple[str, ...]:
    """Return the sentences."""
    overloaded = tuple(_overloaded(run))
    # More requests make no steady state of an overload.
    unsteady = () if overloaded else (*_not_steady(run), *_too_short(run))
    return (
        *_interrupted(run),
        *overloaded,
        *_lost(run),
        *_few_turns(run),
        *unsteady,
        *_preempted(run),
        *_other_traffic(run),
        *_other_settings(run),
    )


def _interrupted(run: Simulation) -> Iterator[str]:
    if run.interrupted:
        done = run.requests - run.counts["unfinished"]
        yield f"Interrupted: {done:,} of {run.settings.requests:,} requests are done, and all figures are of those"


def _overloaded(run: Simulation) -> Iterator[str]:
    for found in overloads(run):
        station = run.stations[found.station]
        effect = (
            f"{found.waiting:,} wait at the last arrival, and latencies grow with the length of the run"
            if found.grows
            else "the others time out"
        )
        times = (
            f", {found.arrived_per_s / found.able_per_s:.2f} times what it can do"
            if found.able_per_s is not None
            else ""
        )
        yield (
            f"{station.name.capitalize()} ({station.model}) is overloaded: {found.arrived_per_s:.3g} requests/s arrive "
            f"and {found.finished_per_s:.3g} are finished meanwhile{times}; {effect}"
        )


def _few_turns(run: Simulation) -> Iterator[str]:
    clients = run.settings.concurrency
    if clients is not None and run.settings.requests < LEAST_TURNS * clients:
        yield (
            f"{clients:,} clients wait for answers and {run.settings.requests:,} requests are sent, so that most "
            f"of them send few or only one; give --requests of at least {LEAST_TURNS * clients:,}"
        )


def _lost(run: Simulation) -> Iterator[str]:
    for status, what in (
        ("timed_out", f"timed out after {duration(run.settings.timeout_s)}"),
        ("refused", "were refused, as no engine of their last stage has room for their KV cache"),
    ):
        count = run.counts[status]
        if count:
            others = "latencies are those of the others" if run.counts["served"] else "there are no latencies"
            yield f"{count:,} of {run.requests:,} requests ({100 * count / run.requests:.3g} %) {what}; {others}"


def _not_steady(run: Simulation) -> Iterator[str]:
    if run.measured.warm_up.at_limit:
        yield (
            "No steady state shows: the warm-up rule reached its limit of half the run, so latencies still change; "
            "simulate more requests, or a lower rate"
        )
    if run.measured.short:
        span_s = _span_s(run)
        yield (
            f"The run is short: its requests arrive {f'within {duration(span_s)}' if span_s else 'at once'} and 1 % of "
            f"them take {duration(run.measured.p99_s)} or more, so it is measured while it still fills, or "
            "intervals come out too narrow; simulate more requests"
        )


def _span_s(run: Simulation) -> float:
    sent = run.columns.sent
    return float(run.native.arrived_s[sent - 1] - run.native.arrived_s[0]) if sent else 0.0


def _too_short(run: Simulation) -> Iterator[str]:
    """Quantiles that stand on too few requests, or are known to no better than 10 %: p95 and p99 of a request's path,
    and p95 of the stations."""
    pairs = [(f"{name} of {what}", found, share, getattr(found, name)) for what, found, name, share in _claims(run)]
    without = [(-found.count, what) for what, found, _, _ in pairs if not found.sections]
    if without:
        yield f"Too few requests for a confidence interval of the {_worst(without)}; simulate more"
    tails = [(LEAST_TAIL / found.tail(share), what) for what, found, share, _ in pairs if found.sections]
    thin = [(times, what) for times, what in tails if times > 1 + 1e-9]
    if thin:
        advice = _more(run, max(thin)[0])
        yield (
            f"Fewer than {LEAST_TAIL} requests lie beyond the {_worst(thin)} in each section that intervals come "
            f"from; {advice}"
        )
    widths = [(estimate.relative_half_width, what) for what, found, _, estimate in pairs if found.sections]
    wide = [(width, f"{what} (± {100 * width:,.0f} %)") for width, what in widths if width > WIDE]
    if wide:
        yield f"Known to no better than 10 %: {_worst(wide)}; {_more(run, (max(wide)[0] / WIDE) ** 2)}"


def _claims(run: Simulation) -> Iterator[tuple[str, Percentiles, str, float]]:
    for what, found in (("latency", run.latency), ("time to first token", run.ttft)):
        if found is not None:
            yield from ((what, found, "p95", 0.95), (what, found, "p99", 0.99))
    for station in run.stations:
        if station.latency is not None:
            name = "the judge" if station.index is None else station.name
            yield f"latency of {name}", station.latency, "p95", 0.95


def _worst(found: Sequence[tuple[float, str]]) -> str:
    """The worst few by name, and how many more there are."""
    ordered = [what for _, what in sorted(found, reverse=True)]
    more = len(ordered) - NAMED
    return _listed([*ordered[:NAMED], f"{more} more"] if more > 1 else ordered)


def _preempted(run: Simulation) -> Iterator[str]:
    for station in run.stations:
        if station.preemptions:
            yield (
                f"{station.name.capitalize()} ran out of KV cache: {station.preemptions:,} preemptions, "
                f"{100 * station.preemptions_per_visit:.2g} per 100 visits, each read again what it had lost"
            )


def _other_traffic(run: Simulation) -> Iterator[str]:
    planned = run.plan.workload
    if run.settings.rate_per_s is None:
        return
    if abs(run.settings.rate_per_s / planned.rate_per_s - 1) > SAME_RATE:
        yield (
            f"The predictions are for {planned.rate_per_s:.4g} requests/s ({planned.rate_from}, headroom "
            f"{planned.headroom:g}) and this run has {run.settings.rate_per_s:.4g}"
        )


def _other_settings(run: Simulation) -> Iterator[str]:
    """What the latency model, which the predictions come from, knows nothing of."""
    settings = run.settings
    unknown = {
        "a timeout": settings.timeout_s is not None,
        "prefix hits": settings.prefix_hit_share > 0,
        "prompts first": settings.batching != "chunked",
        "the shortest prompt first": settings.admission != "fcfs",
        f"{settings.dispatch} dispatch": settings.dispatch not in ("capacity_weighted", "least_outstanding"),
        "a judge whose latency varies": settings.judge_cv > 0,
    }
    found = [what for what, given in unknown.items() if given]
    if found and settings.concurrency is None:
        yield f"The predictions know nothing of {_listed(found)}; compare without"


def _listed(words: list[str]) -> str:
    return " and ".join([", ".join(words[:-1]), words[-1]]) if len(words) > 1 else words[0]


def _more(run: Simulation, times: float) -> str:
    """Advice to simulate so many times the requests; two digits are enough for it."""
    requests = max(run.columns.sent, 1) * times
    size = 10 ** max(math.floor(math.log10(requests)) - 1, 0)
    needed = math.ceil(requests / size) * size
    if needed > MAX_REQUESTS:
        return f"that would need more than the {MAX_REQUESTS:,} requests that can be simulated"
    return f"simulate about {needed:,} requests"
