"""What a plan costs in money and in energy: the one home of both sums."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cascadia_fast.blueprint import JudgePlan, StagePlan


def gpus_usd_per_hour(gpus: Mapping[str, int], price_usd_per_hour: Mapping[str, float | None]) -> float | None:
    """Price of GPUs.

    Parameters
    ----------
    gpus
        How many of every pool.
    price_usd_per_hour
        Price of one GPU of every pool.

    Returns
    -------
    float | None
        None where GPUs of a pool without a price are among them.
    """
    total = 0.0
    for pool, count in gpus.items():
        price = price_usd_per_hour[pool]
        if count and price is None:
            return None
        total += count * (price or 0.0)
    return total


def cost_usd_per_hour(
    stages: Sequence[StagePlan],
    judge: JudgePlan,
    price_usd_per_hour: Mapping[str, float | None],
    calls_per_s: float | None = None,
) -> float | None:
    """Price of the GPUs that serve, a hosted judge's among them, and of its calls.

    Where `calls_per_s` is not given, an answer of every stage but the last is judged.

    None where the price of some of the GPUs is unknown. Idle GPUs cost nothing here: they can be given back.
    """
    gpus: dict[str, int] = {}
    for group in (*(group for stage in stages for group in stage.replicas), *judge.replicas):
        gpus[group.pool] = gpus.get(group.pool, 0) + group.count * group.tp * group.pp
    gpus_usd = gpus_usd_per_hour(gpus, price_usd_per_hour)
    if gpus_usd is None:
        return None
    if calls_per_s is None:
        serving = [stage for stage in stages if stage.rate_per_s > 0]
        calls_per_s = sum(stage.rate_per_s for stage in serving[:-1])
    return gpus_usd + 3600 * calls_per_s * judge.usd_per_call


def usd_per_request(cost_usd_per_hour: float | None, rate_per_s: float) -> float | None:
    """Cost of one request of the planned traffic; None where the cost is unknown."""
    return None if cost_usd_per_hour is None else cost_usd_per_hour / (3600 * rate_per_s)


def energy_j_per_request(
    stages: Sequence[StagePlan], judge: JudgePlan, power_w: Mapping[str, float | None], rate_per_s: float
) -> float | None:
    """Board power of the GPUs while they are busy, per request of the planned traffic.

    An upper bound of what that work draws, as no work keeps a board at its limit all the time; what the GPUs draw while
    they are idle, and what stands around them, is not counted.

    Parameters
    ----------
    power_w
        Board power of every type of GPU; a hosted judge's among them.

    Returns
    -------
    float | None
        None where the power of some of the GPUs is unknown.
    """
    busy_w = 0.0
    stations = [(stage.replicas, stage.utilization) for stage in stages]
    for groups, busy_share in (*stations, (judge.replicas, judge.utilization or 0.0)):
        for group in groups:
            board_w = power_w[group.gpu]
            if board_w is None:
                return None
            busy_w += group.count * group.tp * group.pp * board_w * busy_share
    return busy_w / rate_per_s
