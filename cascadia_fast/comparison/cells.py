"""What is tried: one system on one case, at one quality floor, rate, number of GPUs and seed, is a cell."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import orjson

if TYPE_CHECKING:
    from cascadia_fast.comparison.setup import Setup
    from cascadia_fast.problem import Problem

Purpose = Literal["main", "ramp", "cost"]

OURS = "ours"
# Rates of the curves of throughput against SLO, over a case's middle rate.
RAMP = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5)
# Shares of all GPUs on which the least cost is looked for, and how many seeds that takes.
LADDER = (0.875, 0.75, 0.625, 0.5, 0.375, 0.25)
COST_SEEDS = 2


@dataclass(frozen=True, slots=True)
class Cell:
    """One trial: plan on the planning half of `seed`, serve its test half."""

    case: str
    system: str
    q_min: float
    rate_per_s: float
    gpus: int
    seed: int

    @property
    def place(self) -> str:
        """Where it stands among all cells, for messages."""
        return (
            f"case {self.case!r}, q {self.q_min:g}, {self.rate_per_s:g} requests/s, {self.gpus} GPUs, seed {self.seed}"
        )


def cells_of(setup: Setup) -> dict[Cell, Purpose]:
    """Return every cell of a comparison and what it is for, in the order in which they are tried.

    A cell that serves two ends is tried once. Neighbours share a case, a seed and a rate, and so what processes keep.
    """
    found: dict[Cell, Purpose] = {}
    for purpose, cells in (("main", _main(setup)), ("ramp", _ramp(setup)), ("cost", _cost(setup))):
        for cell in cells:
            found.setdefault(cell, purpose)  # type: ignore[arg-type]
    return found


def _main(setup: Setup) -> Iterator[Cell]:
    for seed in setup.seeds:
        for case in setup.cases:
            for rate_per_s in case.rates_per_s:
                for q_min in case.floors:
                    for system in setup.systems:
                        yield Cell(case.name, system.name, q_min, rate_per_s, case.gpus, seed)


def _ramp(setup: Setup) -> Iterator[Cell]:
    for case in setup.cases:
        for factor in RAMP:
            for q_min in case.floors:
                for system in setup.systems:
                    if system.kind != "ablation":
                        rate_per_s = factor * case.middle_rate_per_s
                        yield Cell(case.name, system.name, q_min, rate_per_s, case.gpus, setup.seeds[0])


def _cost(setup: Setup) -> Iterator[Cell]:
    """Every system on fewer and fewer GPUs; of several pools nobody says which would go."""
    if all(system.name == OURS for system in setup.systems):
        return
    for seed in setup.seeds[:COST_SEEDS]:
        for case in setup.cases:
            if len(case.problem.pools) == 1:
                for gpus in fewer_gpus(case.gpus):
                    for q_min in case.floors:
                        for system in setup.systems:
                            if system.kind != "ablation":
                                yield Cell(case.name, system.name, q_min, case.middle_rate_per_s, gpus, seed)


def fewer_gpus(gpus: int) -> list[int]:
    """Return the numbers of GPUs that the search for the least cost tries, the most first."""
    return sorted({max(1, round(gpus * share)) for share in LADDER} - {gpus}, reverse=True)


def key_of(cell: Cell, case_digest: str, requests: int) -> str:
    """Return the name under which a cell is kept: equal where the same program would do the same work.

    The name of the case is left out: renaming a file changes nothing.
    """
    content = [code_digest(), case_digest, cell.system, cell.q_min, cell.rate_per_s, cell.gpus, cell.seed, requests]
    return hashlib.sha256(orjson.dumps(content)).hexdigest()[:32]


def digest_of(problem: Problem) -> str:
    """Return the SHA-256 of what a problem says and of the files it says it with, whatever its own file is called."""
    fields = problem.fields.model_dump(mode="json")
    own = Path(problem.where).name
    inputs = sorted(digest for name, digest in problem.input_hashes().items() if name != own)
    content: Mapping[str, object] = {"fields": fields, "inputs": inputs}
    return hashlib.sha256(orjson.dumps(content, option=orjson.OPT_SORT_KEYS)).hexdigest()


@cache
def code_digest() -> str:
    """Return the SHA-256 of this version's code and catalogs: what another version found is tried again."""
    from cascadia_fast import _core

    package = Path(__file__).resolve().parents[1]
    files: Sequence[Path] = sorted([*package.rglob("*.py"), *package.rglob("*.json"), Path(_core.__file__)])
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()
