"""The latency model's p95 under load beside that of the event simulation, on random engines and traffic.

    python benchmarks/load_accuracy.py [--cases 100] [--strata general,moe] [--cache FILE] [--json FILE] [--quick]

Rows are strata x bands of utilisation (of the simulated capacity). The simulation runs until the p95 is known within
2 %, at 95 % confidence; a configuration that misses that is replaced by another, counted under "loose" and summed up
below the table. Times to first token (TTFT) are those of the same runs, however well known. ``--cache`` keeps what was
simulated, by configuration and step times, so that a changed latency model is measured again in seconds.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import json
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from load_cases import BANDS, DISPATCHED, STRATA, Case, draw, draw_dispatched
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.length_cells import LengthCells, length_cells

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))
from reference import event_simulation

FloatArray = NDArray[np.float64]
HALF_WIDTH = 0.02
BLOCKS = 20
STUDENT = 2.093  # 97.5 % point of Student's t with BLOCKS - 1 degrees of freedom
WARM_UP = 0.1
FIRST_REQUESTS, LONGEST_RUN, MOST_REQUESTS = 50_000, 2_000_000, 8_000_000
MEANS = ("p95_s", "ttft_p95_s", "mean_s", "mean_ttft_s", "mean_running", "preemptions")
DISPATCH_SHARE = 0.4  # of the cases per cell
MOST_DRAWN = 2  # configurations per one that is asked for
SAVE_EVERY = 50
QUICK_CASES = 5
PROBES = 500
UNCAPPED = 0.999  # the utilisation that the latency model itself calls unstable


@dataclass(frozen=True)
class Reference:
    """What the simulation found; rates of all replicas together, half-widths relative to the p95."""

    capacity_per_s: float
    rate_per_s: float
    p95_s: float
    half_width: float
    ttft_p95_s: float
    ttft_half_width: float
    mean_s: float
    mean_ttft_s: float
    mean_running: float
    preemptions: float  # per request
    requests: int


FIELDS = tuple(field.name for field in dataclasses.fields(Reference))  # older caches hold more


@dataclass(frozen=True)
class Prediction:
    p95_s: float
    ttft_p95_s: float
    utilization: float


@dataclass(frozen=True)
class Run:
    """One simulation: p95 of latency and of time to first token (TTFT), of all requests and of blocks of them."""

    p95_s: float
    block_p95_s: FloatArray
    ttft_p95_s: float
    block_ttft_p95_s: FloatArray
    mean_s: float
    mean_ttft_s: float
    mean_running: float
    preemptions: float


def simulate(case: Case) -> Reference:
    """Simulate a configuration until its p95 is known well enough: in one run, or in several of the longest."""
    engine, population = case.engine(), case.population()
    capacity_per_s = case.replicas * event_simulation.capacity_per_s(engine, *population, limits=case.limits)
    rate_per_s = case.utilization * capacity_per_s
    rng = np.random.default_rng((*case.seed, 1))
    requests = FIRST_REQUESTS
    runs = [run(case, rate_per_s, requests, rng)]
    while half_width(runs, "p95_s") > HALF_WIDTH and len(runs) * requests < MOST_REQUESTS:
        if requests < LONGEST_RUN:
            # Widths shrink with the root of the requests.
            growth = np.clip(1.2 * (half_width(runs, "p95_s") / HALF_WIDTH) ** 2, 1.5, 40)
            requests, runs = min(LONGEST_RUN, int(requests * growth)), []
        runs.append(run(case, rate_per_s, requests, rng))
    mean = {name: float(np.mean([getattr(one, name) for one in runs])) for name in MEANS}
    return Reference(
        capacity_per_s=capacity_per_s,
        rate_per_s=rate_per_s,
        half_width=half_width(runs, "p95_s"),
        ttft_half_width=half_width(runs, "ttft_p95_s"),
        requests=len(runs) * requests,
        **mean,
    )


def run(case: Case, rate_per_s: float, requests: int, rng: np.random.Generator) -> Run:
    tokens_in, tokens_out = case.population()
    pick = rng.integers(tokens_in.size, size=requests)
    arrival_s = np.cumsum(rng.gamma(1 / case.cv**2, case.cv**2, requests)) / rate_per_s
    found = event_simulation.simulate(
        case.engine(),
        arrival_s,
        tokens_in[pick],
        tokens_out[pick],
        limits=case.limits,
        replicas=case.replicas,
        dispatch=case.dispatch,
    )
    block = int((1 - WARM_UP) * requests) // BLOCKS
    latency_s, ttft_s = (times[-BLOCKS * block :].reshape(BLOCKS, block) for times in (found.latency_s, found.ttft_s))
    return Run(
        p95_s=float(np.quantile(latency_s, 0.95)),
        block_p95_s=np.quantile(latency_s, 0.95, axis=1),
        ttft_p95_s=float(np.quantile(ttft_s, 0.95)),
        block_ttft_p95_s=np.quantile(ttft_s, 0.95, axis=1),
        mean_s=float(latency_s.mean()),
        mean_ttft_s=float(ttft_s.mean()),
        mean_running=float(found.mean_running.mean()),
        preemptions=found.preemptions / requests,
    )


def half_width(runs: Sequence[Run], quantile: str) -> float:
    """Of the confidence interval of a p95, relative to it, taking blocks as independent."""
    blocks = np.concatenate([getattr(one, f"block_{quantile}") for one in runs])
    p95_s = np.mean([getattr(one, quantile) for one in runs])
    return float(STUDENT * blocks.std(ddof=1) / np.sqrt(blocks.size) / p95_s)


def predict(case: Case, reference: Reference) -> Prediction:
    """What production predicts for one stage; a random split is the same as one replica with thinned arrivals."""
    replicas, rate_per_s, scv = case.replicas, reference.rate_per_s, case.cv**2
    if case.dispatch == "random":
        replicas, rate_per_s, scv = 1, rate_per_s / replicas, 1 + (scv - 1) / replicas
    tokens_in, tokens_out = (tokens.astype(float) for tokens in case.population())
    cells = length_cells(tokens_in, tokens_out, np.ones(tokens_in.size))
    share = np.bincount(cells.cell_of) / tokens_in.size
    found = stage(case.engine(), cells, share, rate_per_s, scv, replicas)
    if not np.isfinite(found["p95_s"]):
        return Prediction(np.inf, np.inf, found["utilization"])
    order = np.argsort(found["first_token_s"], axis=None)
    mass = np.cumsum(np.broadcast_to(share, found["first_token_s"].shape).ravel()[order])
    ttft_p95_s = found["first_token_s"].ravel()[order[np.searchsorted(mass, 0.95 * mass[-1])]]
    return Prediction(found["p95_s"], float(ttft_p95_s), found["utilization"])


def stage(
    engine: _core.Replica,
    cells: LengthCells,
    share: FloatArray,
    rate_per_s: float,
    scv: float,
    replicas: int,
    dispersion: FloatArray | None = None,
) -> _core.StageDetail:
    """Ask production for a cascade of one stage, `replicas` engines that take in `rate_per_s` together."""
    search = _core.CascadeSearch(
        models=_core.Models(replicas=[[engine]], cells=[(cells.tokens_in, cells.tokens_out, cells.spread_out)]),
        stations=[0],
        depth=[0],
        share=[share[None]],
        quality=np.ones(1),
        levels=[],
        routings=np.zeros((1, 0), np.int32),
        traffic=_core.Traffic(rate_per_s=rate_per_s, scv=scv, max_utilization=UNCAPPED, dispersion=dispersion),
    )
    gpus = replicas * engine.shape.gpus
    return search.evaluate(0, 0, _core.Choice(shape=0, replicas=replicas, gpus=gpus, latency_s=0.0))


@dataclass(frozen=True)
class Answer:
    """One configuration with both p95s."""

    case: Case
    reference: Reference
    predicted: Prediction

    @property
    def tight(self) -> bool:
        return self.reference.half_width <= HALF_WIDTH

    @property
    def error(self) -> float:
        return self.predicted.p95_s / self.reference.p95_s - 1

    @property
    def ttft_error(self) -> float:
        return self.predicted.ttft_p95_s / self.reference.ttft_p95_s - 1


class Cache:
    """References on disk."""

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.known: dict[str, dict[str, Any]] = json.loads(path.read_text()) if path and path.exists() else {}

    def fill(self, cases: Sequence[Case], workers: int) -> list[Reference]:
        """Simulate what is missing; return the references of all."""
        keys = [key(case) for case in cases]
        missing = {name: case for name, case in zip(keys, cases, strict=True) if name not in self.known}
        begin_s = time.perf_counter()
        answers = simulated(list(missing.values()), workers)
        for done, (name, found) in enumerate(zip(missing, answers, strict=True), 1):
            self.known[name] = dataclasses.asdict(found)
            if done % SAVE_EVERY == 0 or done == len(missing):
                self.save()
                print(f"{done}/{len(missing)} simulated in {time.perf_counter() - begin_s:.0f} s", file=sys.stderr)
        return [Reference(**{field: self.known[name][field] for field in FIELDS}) for name in keys]

    def save(self) -> None:
        if self.path:
            self.path.write_text(json.dumps(self.known))


def simulated(cases: Sequence[Case], workers: int) -> Iterator[Reference]:
    if workers == 1:
        yield from map(simulate, cases)
        return
    with ProcessPoolExecutor(workers) as pool:
        yield from pool.map(simulate, cases)


def key(case: Case) -> str:
    """Of everything that the answer depends on: the configuration, and what becomes of the first requests of its
    population if they all wait, which takes step times and the simulation's rules through every batch size."""
    tokens = (tokens[:PROBES] for tokens in case.population())
    probe = event_simulation.simulate(case.engine(), np.zeros(PROBES), *tokens, limits=case.limits)
    digest = hashlib.sha256(json.dumps(dataclasses.asdict(case), sort_keys=True).encode())
    # Rounded, since compilers differ in the last digits.
    digest.update(" ".join(f"{finish_s:.9e}" for finish_s in probe.finish_s).encode())
    return digest.hexdigest()


def row(name: str, band: str, found: Sequence[Answer]) -> str:
    """One line of the table; a rate that the model calls unstable is an infinite error."""
    tight = [answer for answer in found if answer.tight]
    if not tight:
        return f"{name:36s}{band:8s}   0 {'':27s}| {'':27s}| {'':6s}{len(found):6d}{0:9d}"
    unstable = sum(answer.predicted.p95_s == np.inf for answer in tight)
    widths = np.array([answer.reference.half_width for answer in tight])
    return (
        f"{name:36s}{band:8s}{len(tight):4d} {figures([a.error for a in tight])} | "
        f"{figures([a.ttft_error for a in tight])} | {np.median(widths):6.2%}{len(found) - len(tight):6d}{unstable:9d}"
    )


def figures(errors: Sequence[float]) -> str:
    """Median and 95th percentile of the absolute errors, and the bias."""
    # No interpolation: it would make no number of a finite and an infinite error.
    median, high = np.quantile(np.abs(errors), (0.5, 0.95), method="higher")
    return f"{median:8.1%}{high:9.1%}{np.quantile(errors, 0.5, method='higher'):+9.1%}"


HEADER = (
    f"{'':44s}{'n':>4s} {'median':>8s}{'95th':>9s}{'bias':>9s} | {'TTFT':>8s}{'95th':>9s}{'bias':>9s} | "
    f"{'width':>6s}{'loose':>6s}{'unstable':>9s}"
)


def cases_of(stratum: str, band: str, indices: range, seed: int) -> dict[str, list[Case]]:
    """Configurations of one line, or of the two lines of a stratum that is dispatched over replicas, by name."""
    if not stratum.endswith("-dp"):
        return {stratum: [draw(stratum, band, k, seed) for k in indices]}
    pairs = [draw_dispatched(stratum.removesuffix("-dp"), band, k, seed) for k in indices]
    return {f"{stratum}, {pair[0].dispatch}": list(pair) for pair in zip(*pairs, strict=True)}


def answers_of(
    stratum: str, band: str, count: int, seed: int, cache: Cache, workers: int
) -> defaultdict[str, list[Answer]]:
    """Draw until each line has `count` configurations whose p95 is known well enough; loose ones are kept beside."""
    found: defaultdict[str, list[Answer]] = defaultdict(list)
    drawn, missing = 0, count
    while missing > 0 and drawn < MOST_DRAWN * count:
        more = range(drawn, min(drawn + missing, MOST_DRAWN * count))
        for name, cases in cases_of(stratum, band, more, seed).items():
            references = cache.fill(cases, workers)
            found[name] += [Answer(case, r, predict(case, r)) for case, r in zip(cases, references, strict=True)]
        drawn = more.stop
        missing = count - min(sum(answer.tight for answer in line) for line in found.values())
    return found


def main() -> None:
    strata = (*STRATA, *(f"{name}-dp" for name in DISPATCHED))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--cases", type=int, default=100, help="tight ones per stratum and band; two fifths of it with replicas"
    )
    parser.add_argument("--strata", default=",".join(strata), help=f"of {', '.join(strata)}")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--cache", type=Path, help="file that keeps what was simulated")
    parser.add_argument("--json", type=Path, help="file for every configuration with both answers")
    parser.add_argument("--workers", type=int, default=1, help="processes that simulate")
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_CASES} cases per stratum and band")
    options = parser.parse_args()
    chosen = options.strata.split(",")
    for stratum in chosen:
        if stratum not in strata:
            parser.error(f"unknown stratum {stratum!r}; known are {', '.join(strata)}")
    cache = Cache(options.cache)
    answers: list[Answer] = []
    print(HEADER)
    for stratum, band in itertools.product(chosen, BANDS):
        count = QUICK_CASES if options.quick else options.cases
        if stratum.endswith("-dp"):
            count = max(1, round(DISPATCH_SHARE * count))
        for name, found in answers_of(stratum, band, count, options.seed, cache, options.workers).items():
            print(row(name, band, found), flush=True)
            answers += found
    loose = [answer for answer in answers if not answer.tight]
    if loose:
        width = np.median([answer.reference.half_width for answer in loose])
        print(f"{len(loose)} loose, within {width:.1%} in the median: {figures([a.error for a in loose]).strip()}")
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(answer) for answer in answers]))


if __name__ == "__main__":
    main()
