"""How often the predicted best parallelism is the measured best one.

A group is one model on one GPU type under one release of one engine, in one format, with prompts and answers of one
length, measured in at least two shapes (tensor, expert and attention-data parallelism), each at three or more numbers
of clients without queueing. For a bound on the time per output token, a shape's throughput is that of a full node of
such engines at the largest load that keeps the bound, between the measured loads by straight lines in logarithms. The
choice is the shape with the highest *predicted* throughput; its score is its *measured* throughput over that of the
measured best. Where no shape is predicted to keep the bound, none is chosen and all is lost. A group's loss is the mean
over its bounds.

python benchmarks/choosing.py MEASUREMENTS.csv [--profile FILE]    prints the share of choices within 5 %
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cascadia_fast.closed_loop import Runs
from cascadia_fast.evaluation import saturated
from cascadia_fast.measurements import Measurement, read_measurements
from cascadia_fast.profile import Profile

NODE_GPUS = 8
QUARTILES = (0.25, 0.5, 0.75)  # of the measured TPOTs of a group: the bounds
WITHIN = 0.05
LEAST_LOADS = 3
NO_SHAPE = "none"

Vector = NDArray[np.float64]
Group = tuple[str, str, str, str, float, float]
Run = tuple[Measurement, float, float]  # with its predicted TTFT and TPOT


@dataclass(frozen=True)
class Choice:
    """One group under one bound: the predicted best shape, the measured best, and measured throughputs [tokens/s]."""

    group: Group
    bound_s: float
    chosen: str
    best: str
    chosen_per_s: float
    best_per_s: float

    @property
    def loss(self) -> float:
        return 1 - self.chosen_per_s / self.best_per_s


@dataclass(frozen=True)
class Curve:
    """Throughput of a node of equal engines against the time per output token, at rising numbers of clients."""

    tpot_s: Vector
    tokens_per_s: Vector

    def at(self, bound_s: float) -> float:
        """Throughput under the bound; 0 if the lightest load breaks it."""
        # Measured times jitter: what counts at a load is the best that it or a lighter one keeps.
        order = np.argsort(self.tpot_s)
        tpot_s, tokens_per_s = self.tpot_s[order], np.maximum.accumulate(self.tokens_per_s[order])
        if bound_s < tpot_s[0]:
            return 0.0
        return math.exp(np.interp(math.log(bound_s), np.log(tpot_s), np.log(tokens_per_s)))


def choices(rows: Sequence[Measurement], profile: Profile, quartiles: Sequence[float] = QUARTILES) -> list[Choice]:
    """Choose a shape for every group and bound."""
    predicted = Runs(rows).predict(profile)
    groups: dict[Group, dict[str, list[Run]]] = {}
    for row, ttft_s, tpot_s, queued in zip(
        rows, predicted.ttft_s.tolist(), predicted.tpot_s.tolist(), saturated(rows).tolist(), strict=True
    ):
        if row.ttft_s is None or row.tpot_s is None or queued or math.isnan(tpot_s):
            continue
        release = f"{row.engine} {row.engine_version or ''}".strip()
        group = (row.model, row.gpu, release, row.weights, row.tokens_in, row.tokens_out)
        groups.setdefault(group, {}).setdefault(_shape(row), []).append((row, ttft_s, tpot_s))
    found = []
    for group, every in groups.items():
        shapes = {
            shape: runs for shape, runs in every.items() if len({row.concurrency for row, _, _ in runs}) >= LEAST_LOADS
        }
        if len(shapes) < 2:
            continue
        tpots = [row.tpot_s or math.nan for runs in shapes.values() for row, _, _ in runs]
        curves = {shape: (_curve(runs, measured=True), _curve(runs, measured=False)) for shape, runs in shapes.items()}
        for bound_s in np.quantile(tpots, quartiles).tolist():
            measured = {shape: real.at(bound_s) for shape, (real, _) in curves.items()}
            expected = {shape: model.at(bound_s) for shape, (_, model) in curves.items()}
            best = max(measured, key=measured.__getitem__)
            chosen = max(expected, key=expected.__getitem__)
            if expected[chosen] == 0:  # no shape is predicted to keep the bound, though one was measured to
                chosen = NO_SHAPE
            found.append(Choice(group, bound_s, chosen, best, measured.get(chosen, 0.0), measured[best]))
    return found


def share_within(losses: Collection[float], within: float = WITHIN) -> float:
    """Share of losses that are at most `within`."""
    return sum(loss <= within for loss in losses) / len(losses)


def group_losses(found: Sequence[Choice]) -> dict[Group, float]:
    """Mean loss of each group over its bounds."""
    losses: dict[Group, list[float]] = {}
    for choice in found:
        losses.setdefault(choice.group, []).append(choice.loss)
    return {group: sum(inside) / len(inside) for group, inside in losses.items()}


def _shape(row: Measurement) -> str:
    return f"tp{row.tp} pp{row.pp} ep{row.ep} attention_dp{row.attention_dp}"


def _curve(runs: Sequence[Run], measured: bool) -> Curve:
    points = []
    for row, ttft_s, tpot_s in runs:
        first_s, each_s = (row.ttft_s, row.tpot_s) if measured else (ttft_s, tpot_s)
        engines = NODE_GPUS / (row.tp * row.pp * row.attention_dp)
        request_s = (first_s or 0.0) + (row.tokens_out - 1) * (each_s or 0.0)
        points.append((each_s or 0.0, engines * row.concurrency * row.tokens_out / request_s))
    tpot_s, tokens_per_s = np.array(points, float).T
    return Curve(tpot_s, tokens_per_s)


def main() -> None:
    parser = argparse.ArgumentParser(description="Compare the predicted best parallelism with the measured best.")
    parser.add_argument("tables", type=Path, nargs="+", help="measurement files")
    parser.add_argument("--profile", type=Path, help="profile to predict with; the shipped one without it")
    arguments = parser.parse_args()
    profile = Profile.read(arguments.profile) if arguments.profile else Profile.shipped()
    found = choices(read_measurements(arguments.tables).rows, profile)
    groups = group_losses(found)
    shares = share_within(groups.values()), share_within([choice.loss for choice in found])
    print(f"chosen by the fitted profile {profile.name!r}: ", end="")
    print(f"within {WITHIN:.0%} of the measured best: {shares[0]:.1%} of {len(groups)} groups, ", end="")
    print(f"{shares[1]:.1%} of {len(found)} choices")
    for choice in sorted(found, key=lambda choice: -choice.loss):
        if choice.loss > WITHIN:
            group = " ".join(f"{part}" for part in choice.group)
            print(f"{group}, {choice.bound_s * 1e3:.1f} ms: {choice.chosen}, best {choice.best}, {-choice.loss:+.1%}")


if __name__ == "__main__":
    main()
