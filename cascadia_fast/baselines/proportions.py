"""GPUs split by fixed shares, in whole engines: what a system does whose paper says nothing of deployment."""

from __future__ import annotations

from collections.abc import Sequence


def split_gpus(share: Sequence[float], sizes: Sequence[Sequence[int]], gpus: int) -> tuple[int, ...] | None:
    """Return each model's GPUs, as near to the shares as whole engines allow; None where the smallest do not fit.

    Every model starts with its smallest size. Then the one with the fewest GPUs for its share grows to its next size,
    again and again; one whose next size does not fit stays as it is.

    Parameters
    ----------
    share
        Of each model, positive; only ratios matter.
    sizes
        Of each model, ascending: the numbers of GPUs that it can use.
    gpus
        GPUs there are.
    """
    step = [0] * len(share)
    free = gpus - sum(usable[0] for usable in sizes)
    if free < 0:
        return None
    growing = set(range(len(share)))
    while growing:
        model = min(growing, key=lambda m: (sizes[m][step[m]] / share[m], m))
        taken = sizes[model][step[model] + 1] - sizes[model][step[model]] if step[model] + 1 < len(sizes[model]) else 0
        if 0 < taken <= free:
            step[model] += 1
            free -= taken
        else:
            growing.remove(model)
    return tuple(usable[at] for usable, at in zip(sizes, step, strict=True))
