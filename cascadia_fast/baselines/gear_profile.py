"""What CascadeServe knows of an engine: the mean time of a batch, for batches of growing size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cascadia_fast import _core
from cascadia_fast.length_cells import LengthCells

FloatArray = NDArray[np.float64]

LEAST_CACHED = 64  # requests of mean length; a 70B model's weights alone fit engines whose cache holds 8
BATCH_STEP = 2**0.5  # from one profiled batch to the next, about


@dataclass(frozen=True, eq=False)
class Profile:
    """One engine's mean times.

    Parameters
    ----------
    option
        The engine's place among the candidates of its model.
    shape
        Its shape.
    batch_s
        Shape (B,): mean time in seconds that a request takes while so many run, smallest batch first.
    throughput_per_s
        Shape (B,): requests per second at that batch; a larger batch never has less.
    cached
        How many requests of mean length its KV cache holds.
    """

    option: int
    shape: _core.Shape
    batch_s: FloatArray
    throughput_per_s: FloatArray
    cached: float

    @property
    def gpus(self) -> int:
        """GPUs of the engine."""
        return self.shape.gpus

    @property
    def capacity_per_s(self) -> float:
        """Requests per second at the largest batch."""
        return float(self.throughput_per_s[-1])

    def mean_s(self, rate_per_s: FloatArray) -> FloatArray:
        """Return the mean time of a request at the least batch that carries a rate; infinite where none does."""
        carried = np.interp(rate_per_s, self.throughput_per_s, self.batch_s, left=self.batch_s[0])
        mean_s: FloatArray = np.where(rate_per_s <= self.capacity_per_s, carried, np.inf)
        return mean_s


def profile(
    replicas: Sequence[_core.Replica], tokens_in: FloatArray, tokens_out: FloatArray, share: FloatArray, max_batch: int
) -> tuple[Profile, ...]:
    """Return the profiles of those candidate engines of a model that serve requests of all these lengths, (K,) each."""
    batches = np.unique(np.rint(np.geomspace(1, max_batch, int(np.log(max_batch) / np.log(BATCH_STEP)) + 2)))
    mean_tokens = float(share @ (tokens_in + tokens_out) / share.sum())
    found = []
    for option, replica in enumerate(replicas):
        *_, throughput = _core.closed_loop(
            replica=replica, tokens_in=tokens_in, tokens_out=tokens_out, share=share, concurrency=batches
        )
        if throughput[0] > 0:
            cached = replica.kv_capacity_bytes / replica.kv_bytes(mean_tokens)
            carried = np.maximum.accumulate(throughput)
            found.append(Profile(option, replica.shape, batches / throughput, carried, cached))
    return tuple(found)


def on_all_requests(cells: LengthCells, weight: FloatArray) -> FloatArray:
    """Return the share of all requests in each length cell: a profile does not know which ones reach its model."""
    share: FloatArray = np.bincount(cells.cell_of, weights=weight, minlength=cells.tokens_in.size) / weight.sum()
    return share


def smallest_that_fits(profiles: Sequence[Profile]) -> Profile:
    """Return the smallest engine that holds weights and a useful cache, without pipelining where one does."""
    roomy = [profile for profile in profiles if profile.cached >= LEAST_CACHED] or profiles
    unpiped = [profile for profile in roomy if profile.shape.pp == 1] or roomy
    return min(unpiped, key=lambda profile: (profile.gpus, -profile.shape.tp))


def tuned_alone(profiles: Sequence[Profile], rate_per_s: float, gpus: int) -> Profile:
    """Return the engine with the least mean time when the model alone serves everything on all GPUs.

    Where no engine carries that, the one of which all GPUs together carry most.
    """

    def alone(profile: Profile) -> tuple[float, float]:
        replicas = gpus // profile.gpus
        each_per_s = np.array([rate_per_s / replicas if replicas else np.inf])
        return float(profile.mean_s(each_per_s)[0]), -replicas * profile.capacity_per_s

    return min(profiles, key=alone)
