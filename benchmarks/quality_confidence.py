"""How often the routing chosen on a sample truly meets its floor, by mean quality and by confidence bounds.

    python -m benchmarks.quality_confidence [--samples 60] [--compare] [--seed 0] [--json FILE]

A population stands for all traffic. Samples are drawn from it; on each, the cheapest routing that passes a rule is
chosen, at the thresholds that a plan would print, and its quality and cost are looked up in the population. Cost stands
in for a planner: output tokens times the model's parameters, summed over the models that a request visits.

Populations: the 20,000 requests of the case llama20k, one by one or by question (all rows of a question that is drawn,
a sample being the question); and DeepSeek's 51 prompts with noise of 6 points on scores and qualities, 20,000 times.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

if __name__ == "__main__":
    # `python -m` puts the source tree first on the import path, and that has no native modules.
    sys.path.append(sys.path.pop(0))

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.planning.confidence import quality_bounds
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, middle_thresholds, route, routing_grid
from cascadia_fast.workload import ScoredRequests

CASES = Path(__file__).resolve().parent / "cases"
CONFIDENCE = 0.95
NORMAL = NormalDist().inv_cdf(CONFIDENCE)
MARGINS = np.linspace(20.0, 0.0, 401)  # points above the floor, in the order in which half a sample is tested
NOISE = 6.0

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Population:
    """All traffic, and the floor that is asked of it."""

    name: str
    requests: ScoredRequests
    parameters: tuple[float, ...]  # billions, active
    floor: float
    sizes: tuple[int, ...]
    by_question: bool = False

    def sample(self, size: int, rng: np.random.Generator) -> ScoredRequests:
        """Draw `size` requests or questions with replacement."""
        if not self.by_question:
            rows = rng.integers(0, self.requests.size, size)
            return dataclasses.replace(self.requests.select(rows), source=np.arange(size))
        order = np.argsort(self.requests.source, kind="stable")
        rows_of = np.split(order, np.flatnonzero(np.diff(self.requests.source[order])) + 1)
        drawn = [rows_of[k] for k in rng.integers(0, len(rows_of), size)]
        source = np.repeat(np.arange(size), [rows.size for rows in drawn])
        return dataclasses.replace(self.requests.select(np.concatenate(drawn)), source=source)

    def truth(self, thresholds: Sequence[float]) -> tuple[float, float]:
        """Quality and cost of routing all traffic by these thresholds."""
        accepted_by = route(self.requests, thresholds)
        quality = self.requests.quality[accepted_by, np.arange(self.requests.size)].mean()
        visits = zip(self.parameters, self.requests.output_tokens, strict=True)
        cost = sum(size * (tokens * (accepted_by >= k)).mean() for k, (size, tokens) in enumerate(visits))
        return float(quality), float(cost)

    def cost(self, grid: RoutingGrid) -> FloatArray:
        """Cost, as far as the grid's sample knows it, of every combination of levels."""
        axes = [level.size for level in grid.levels]
        total = np.zeros(axes)
        for stage, (size, cells, weight) in enumerate(zip(self.parameters, grid.cells, grid.cell_weight, strict=True)):
            total += size * (weight @ cells.tokens_out).reshape(axes[:stage] + [1] * (len(axes) - stage))
        return total.ravel()

    def least_cost(self) -> float:
        """The cost of the cheapest routing that truly meets the floor."""
        grid = routing_grid(self.requests)
        return float(self.cost(grid)[grid.quality >= self.floor].min())


def populations() -> list[Population]:
    """The three populations."""
    zero_eval = Problem.read(CASES / "llama20k.yaml").workload.requests
    alone = dataclasses.replace(zero_eval, source=np.arange(zero_eval.size))
    prompts = Problem.read(CASES / "deepseek.yaml").workload.requests
    llama, deepseek = (8.0, 70.0, 405.0), (7.6, 70.6, 37.0)
    return [
        Population("llama20k, requests", alone, llama, 72.0, (500, 1000, 2000, 5000)),
        Population("llama20k, questions", zero_eval, llama, 72.0, (500, 1000, 2000), by_question=True),
        Population("deepseek, smoothed", smoothed(prompts, 20_000), deepseek, 76.0, (51, 500, 1000, 2000, 5000)),
    ]


def smoothed(prompts: ScoredRequests, size: int) -> ScoredRequests:
    """`size` requests like the given ones, with noise on scores and qualities, both in whole points."""
    rng = np.random.default_rng(0)
    drawn = prompts.select(rng.integers(0, prompts.size, size))
    score, quality = (
        np.clip(np.rint(values + rng.normal(0, NOISE, values.shape)), 0, 100) for values in (drawn.score, drawn.quality)
    )
    return dataclasses.replace(drawn, score=score, quality=quality, source=np.arange(size))


@dataclass(frozen=True, eq=False)
class Draw:
    """One sample with its grid, and the cost of every combination of levels."""

    population: Population
    requests: ScoredRequests
    grid: RoutingGrid
    cost: FloatArray

    @classmethod
    def of(cls, population: Population, requests: ScoredRequests) -> Draw:
        grid = routing_grid(requests)
        return cls(population, requests, grid, population.cost(grid))

    def standard_error(self) -> FloatArray:
        """Standard error of the mean quality of every combination of levels."""
        squares = dataclasses.replace(self.requests, quality=self.requests.quality**2 / 100)
        variance = 100 * routing_grid(squares).quality - self.grid.quality**2
        return np.sqrt(np.maximum(variance, 0) / (self.requests.effective_size - 1))

    def cheapest(self, passes: NDArray[np.bool_]) -> int | None:
        """The cheapest combination that passes."""
        return int(np.where(passes, self.cost, np.inf).argmin()) if passes.any() else None


def by_mean(draw: Draw) -> int | None:
    return draw.cheapest(draw.grid.quality >= draw.population.floor)


def each_alone(draw: Draw) -> int | None:
    return draw.cheapest(draw.grid.quality - NORMAL * draw.standard_error() >= draw.population.floor)


def all_routings(draw: Draw) -> int | None:
    return _bounded(draw, None)


def near_the_floor(draw: Draw) -> int | None:
    return _bounded(draw, draw.population.floor)


def _bounded(draw: Draw, floor: float | None) -> int | None:
    (bounds,) = quality_bounds([(draw.requests, draw.grid)], CONFIDENCE, floor=floor)
    passes = np.zeros(draw.cost.size, np.bool_)
    passes[draw.grid.combinations[bounds >= draw.population.floor]] = True
    return draw.cheapest(passes)


def half_held_back(draw: Draw) -> int | None:
    """Order routings on one half, the surest first, and test them on the other in that order until one fails."""
    halves = [draw.requests.select(draw.requests.source % 2 == k) for k in (0, 1)]
    first, second = (Draw.of(draw.population, half) for half in halves)
    lower = second.grid.quality - NORMAL * second.standard_error()
    chosen = None
    for margin in MARGINS:
        candidate = first.cheapest(first.grid.quality >= draw.population.floor + margin)
        if candidate is not None:
            if lower[candidate] < draw.population.floor:
                break
            chosen = candidate
    return chosen


# What the package does last: `near_the_floor` is `quality_bounds` with a floor.
RULES: dict[str, Callable[[Draw], int | None]] = {
    "mean": by_mean,
    "bounds, each alone": each_alone,
    "half held back": half_held_back,
    "bounds, all routings": all_routings,
    "bounds, near the floor": near_the_floor,
}
SHOWN = ("mean", "bounds, near the floor")


@dataclass(frozen=True)
class Row:
    """What one rule did on the samples of one population and size."""

    population: str
    floor: float
    size: int
    rule: str
    samples: int
    no_plan: int
    met: int
    above_floor: tuple[float, ...]  # true quality less the floor, in points, of every sample with a plan
    loss: tuple[float, ...]  # true cost over that of the cheapest routing that truly meets the floor, less 1

    def cells(self) -> tuple[str, ...]:
        planned = self.samples - self.no_plan
        low, high = wilson(self.met, planned)
        cells = (self.population, f"{self.size:,}", self.rule, f"{self.no_plan / self.samples:.0%}")
        if planned == 0:
            return (*cells, "–", "–", "–")
        return (
            *cells,
            f"{self.met / planned:.0%} ({low:.0%}–{high:.0%})",
            _spread(self.above_floor, "{:+.1f}"),
            _spread(self.loss, "{:+.0%}"),
        )


HEADER = ("population", "sample", "rule", "no plan", "meets the floor (95 % CI)", "points above", "extra cost")


def _spread(values: Sequence[float], form: str) -> str:
    low, median, high = (form.format(value) for value in np.quantile(values, [0.05, 0.5, 0.95]))
    return f"{median} ({low} … {high})"


def wilson(met: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    if of == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.975)
    middle = (met + z * z / 2) / (of + z * z)
    half_width = z / (of + z * z) * math.sqrt(met * (of - met) / of + z * z / 4)
    return middle - half_width, middle + half_width


def study(population: Population, size: int, rules: Sequence[str], samples: int, seed: int) -> list[Row]:
    """Draw `samples` samples and apply every rule to each."""
    least = population.least_cost()
    outcomes: dict[str, list[tuple[float, float]]] = {rule: [] for rule in rules}
    for index in range(samples):
        drawn = population.sample(size, np.random.default_rng((seed, size, index)))
        draw = Draw.of(population, drawn)
        shape = [level.size for level in draw.grid.levels]
        for rule in rules:
            chosen = RULES[rule](draw)
            if chosen is not None:
                levels = zip(draw.grid.levels, np.unravel_index(chosen, shape), strict=True)
                thresholds = middle_thresholds(drawn, [float(level[k]) for level, k in levels])
                quality, cost = population.truth(thresholds)
                outcomes[rule].append((quality - population.floor, cost / least - 1))
    return [
        Row(
            population=population.name,
            floor=population.floor,
            size=size,
            rule=rule,
            samples=samples,
            no_plan=samples - len(found),
            met=sum(above >= 0 for above, _ in found),
            above_floor=tuple(above for above, _ in found),
            loss=tuple(loss for _, loss in found),
        )
        for rule, found in outcomes.items()
    ]


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.quality_confidence",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--samples", type=int, default=60, help="samples of each size (60)")
    parser.add_argument("--compare", action="store_true", help="also the rules that were not chosen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every row there")
    arguments = parser.parse_args(words)
    rules = list(RULES) if arguments.compare else list(SHOWN)
    rows: list[Row] = []
    for line in (HEADER, ("---",) * len(HEADER)):
        print(f"| {' | '.join(line)} |")
    for population in populations():
        for size in population.sizes:
            found = study(population, size, rules, arguments.samples, arguments.seed)
            rows += found
            for row in found:
                print(f"| {' | '.join(row.cells())} |", flush=True)
    if arguments.json:
        arguments.json.write_text(json.dumps([dataclasses.asdict(row) for row in rows]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
