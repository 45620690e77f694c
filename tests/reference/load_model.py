"""The load model of one replica in plain NumPy: slow, readable, written from the formulas and not from the C++.

A birth-death chain over the running batch, a Pollaczek-Khinchine wait for the prefill server, a wait for a batch slot,
and the quantile of the mixture over length cells. Searches rely on it to rise with the rate, so every sample does: it
keeps its own random numbers while the rate moves, and each of its parts is an increasing quantile of them, the wait
(Weibull with the right two moments), the step time an arrival finds in the chain, and the prefills it meets (gamma, by
Wilson-Hilferty). Noise of a mean and a variance would not do: its low quantiles fall as the variance grows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import gamma as gamma_function
from scipy.stats import norm

NODE_STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)  # R3 low-discrepancy sequence

STEP_GRID = np.linspace(-3.5, 3.5, 29)


class Engine(Protocol):
    max_num_seqs: int
    max_batched_tokens: int
    kv_capacity_bytes: float

    def linear_s(self, tokens: float, sampled: float) -> float: ...
    def decode_attention_sum_s(self, tokens_in: float, tokens_out: float) -> float: ...
    def prefill_attention_s(self, tokens: float, before: float) -> float: ...
    def fill_s(self, tokens: float) -> float: ...
    def kv_bytes(self, context_tokens: float) -> float: ...


@dataclass(frozen=True)
class Result:
    quantile_s: float
    capacity_per_s: float
    utilization: float
    batch_limit: int
    latency_s: np.ndarray
    first_token_s: np.ndarray
    weight: np.ndarray


def nodes_per_cell(cells: int) -> int:
    return max(2, min(8, 512 // cells))


def batch_grid(max_num_seqs: int) -> np.ndarray:
    powers = [2**i for i in range(20) if 2**i < max_num_seqs]
    return np.array([0, *powers, max_num_seqs], dtype=float)


def weibull_exponent(scv: float) -> float:
    """Exponent a of W = m E^a / Gamma(1+a), E exponential: Gamma(1+2a)/Gamma(1+a)^2 = 1 + scv, by bisection."""
    lo, hi = 0.02, 4.0
    for _ in range(80):
        mid = (lo + hi) / 2
        if gamma_function(1 + 2 * mid) / gamma_function(1 + mid) ** 2 > 1 + scv:
            hi = mid
        else:
            lo = mid
    return (lo + hi) / 2


def step_quantiles(step_s, probability):
    """Quantiles of the step time at the deviates of STEP_GRID, linear within a state so that they move smoothly."""
    edges = np.r_[step_s[0], (step_s[1:] + step_s[:-1]) / 2, step_s[-1]]
    mass = np.r_[0, np.cumsum(probability)]
    return np.interp(norm.cdf(STEP_GRID), mass / mass[-1], edges)


def evaluate(
    engine: Engine, tokens_in, tokens_out, share, rate_per_s: float, arrival_scv: float = 1.0, q: float = 0.95
):
    """Latency quantile of one replica; +inf where it is unstable."""
    w = np.asarray(share, float) / np.sum(share)
    tin, tout = np.asarray(tokens_in, float), np.asarray(tokens_out, float)
    mean = lambda v: float(np.sum(w * v))  # noqa: E731
    out = mean(tout)
    attention = mean([engine.decode_attention_sum_s(i, o) for i, o in zip(tin, tout, strict=True)]) / out
    held = mean(tout * [engine.kv_bytes(i + o) for i, o in zip(tin, tout, strict=True)]) / out
    limit = int(max(1, min(engine.max_num_seqs, np.floor(engine.kv_capacity_bytes / held))))

    grid = batch_grid(engine.max_num_seqs)
    own, chunks, extra = (np.empty((len(grid), len(tin))) for _ in range(3))
    for j, g in enumerate(grid):
        room = max(engine.max_batched_tokens - g, 1.0)
        full = engine.linear_s(g + room, g)
        for k, t in enumerate(tin):
            c = np.ceil(t / room)
            own[j, k] = (
                (c - 1) * full + engine.linear_s(g + t - (c - 1) * room, g + 1) + engine.prefill_attention_s(t, 0)
            )
            chunks[j, k] = c
            extra[j, k] = max(0.0, own[j, k] - c * engine.linear_s(max(g, 1), max(g, 1)))

    n = np.arange(limit + 1.0)
    step = np.array([engine.linear_s(max(m, 1), max(m, 1)) for m in n]) + n * attention
    mean_extra = np.interp(n, grid, extra @ w)
    along = min(out / mean(chunks[0]), limit)  # sequences decoding where one prompt follows the other
    at_along = lambda table: np.interp(along, grid, table @ w)  # noqa: E731
    prefill_cost = at_along(own) + at_along(chunks) * along * attention
    decode_cost = out * step[limit] / limit + mean_extra[limit]
    capacity = min(1 / prefill_cost, 1 / decode_cost)
    utilization = rate_per_s / capacity
    inf = Result(np.inf, capacity, utilization, limit, *(np.full(len(tin), np.inf),) * 2, w)
    if utilization >= 0.999:
        return inf

    lam, c2 = rate_per_s, max(arrival_scv, 1.0)
    z = 1 + (c2 - 1) / 2
    mu = n * (1 - np.minimum(lam * mean_extra, 0.999)) / (out * step)
    rho = lam / mu[limit]
    ratio = rho ** (1 / z)
    logp = np.r_[0, np.cumsum(np.log(lam / mu[1:]))] / z
    p = np.exp(logp - logp.max())
    tail = p[limit] * ratio / (1 - ratio)
    p, tail = p / (p.sum() + tail), tail / (p.sum() + tail)
    running = float((p * n).sum() + tail * limit)
    pace = running / (float((p * mu).sum() + tail * mu[limit]) * out)
    seen = p[:-1].copy()  # an arrival that finds n - 1 sequences decodes in steps of n
    seen[-1] += p[limit] + tail
    seen /= seen.sum()
    mean_step, step_at = float(seen @ step[1:]), step_quantiles(step[1:], seen)
    p_full = float(tail + p[limit])

    met = min(running, along)
    at = lambda table: np.array([np.interp(met, grid, table[:, k]) for k in range(len(tin))])  # noqa: E731
    c_now = at(chunks)
    pre, x = at(own) + c_now * met * attention, at(extra)
    m1, m2, m3 = mean(pre), mean(pre**2), mean(pre**3)
    busy, busy_x = lam * m1, lam * mean(x)
    scv = m2 / m1**2 - 1
    base_wait = lam * m2 / 2 / (1 - busy)
    wait_mean, p_wait = base_wait, busy
    if c2 > 1:  # Kraemer-Langenbach-Belz
        wait_mean = busy * m1 * (c2 + scv) / 2 / (1 - busy) * np.exp(-(1 - busy) * (c2 - 1) / (c2 + 4 * scv))
        p_wait = busy + (c2 - 1) * busy * (1 - busy) * 4 * busy / (c2 + busy**2 * (4 * c2 + scv))
        p_wait = min(p_wait, 1.0)
    wait_second = (2 * base_wait**2 + lam * m3 / 3 / (1 - busy)) * (wait_mean / base_wait) ** 2
    m = wait_mean / p_wait
    a = weibull_exponent(float(np.clip(wait_second / p_wait / m**2 - 1, 0.05, 8.0)))

    nodes = nodes_per_cell(len(tin))
    i = np.arange(len(tin) * nodes)
    u = (i[None] * np.array(NODE_STEPS)[:, None] + 0.5) % 1
    exponential = -np.log1p(-u[:2])
    gauss = norm.ppf(u[2])
    k = i // nodes
    wait = m * np.maximum(exponential[0] + np.log(p_wait), 0) ** a / gamma_function(1 + a)
    slot = np.maximum(exponential[1] + np.log(max(p_full, 1e-300)), 0) * z / (mu[limit] * (1 - rho))
    fill = np.array([engine.fill_s(min(t, engine.max_batched_tokens)) for t in tin])  # later chunks follow in step
    first = wait + pre[k] + fill[k]
    # Decode time is steps, at the length found and averaged over the request, plus the prefills of others: as many as
    # arrive meanwhile, each delaying the steps further.
    y = tout * out / mean(tout**2)  # decode time over the relaxation time of the batch
    averaging = np.sqrt(2 * (y - 1 + np.exp(-y)) / y**2)
    steps = tout[k] * (mean_step + averaging[k] * (np.interp(gauss, STEP_GRID, step_at) - mean_step))
    x1, var_x = mean(x), mean(x**2) - mean(x) ** 2
    added = np.maximum(lam * x1 / (1 - busy_x) * (tout[k] * mean_step + first), 1e-300)
    v = 1.5 * (var_x + c2 * x1**2) / max(x1, 1e-300) / (1 - busy_x) ** 1.5 / added
    noisy = steps + added * np.maximum(1 - v / 9 + gauss * np.sqrt(v) / 3, 0) ** 3
    slowest = np.maximum(1.1 * m1 / mean(c_now), pace)  # every step carries a chunk
    noisy = np.minimum(np.maximum(noisy, 0.9 * step[min(1, limit)] * tout[k]), slowest * tout[k])
    latency = slot + first + noisy
    weight = (w / nodes)[k]
    order = np.argsort(latency, kind="stable")
    cut = np.searchsorted(np.cumsum(weight[order]), q - 1e-12)
    return Result(
        float(latency[order][min(cut, len(order) - 1)]), capacity, utilization, limit, latency, slot + first, weight
    )
