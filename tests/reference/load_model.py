"""The load model of one replica in plain NumPy: slow, readable, written from the formulas and not from the C++.

Steps. A step that decodes n sequences takes D(n). Prompts share steps, as many as wait and the token budget takes; one
of `in` tokens in a step with v prompt tokens makes it longer by in * r(n, v) plus its own attention, where r is the
extra time per prompt token: fixed costs of a step with prompts spread over its tokens, little while weights are read
anyway, and arithmetic beyond. Rates are tabulated at n = 0, 1, 2, 4 ... and v = 1, 2, 4 ... and interpolated, linearly
in n and in log v. Prompts come in Poisson numbers to a step, negative binomial ones where arrivals are bursty: a burst
shares the fixed costs of few steps. Two lengths with the right three moments stand for all.

Saturation. A full engine of L places completes L/out requests per step and prefills as many, so 1/capacity =
out D(L)/L + x(L/out prompts per step); where the token budget is short, L is what leaves room for the prompts:
L (1 + in/out) = budget. Of the KV cache a request holds what it has read and half of what it will write.

Swings. Where the rate itself wanders, gaps are not independent, and the index of dispersion of counts I (variance over
mean) grows with the window. The batch relaxes at the rate mu'(n), so the arrivals in 1/mu'(n) count, m(n) of them:
z(n) = 1 + (I(m)-1)(o + (1-o) s), o = E[min(T, T')]/E[T], s = 2 (I(m)-I(m/2))/(I(m)-1) the share of swings that outlast
the window. With s = 0 it is the z below; with s = 1 the batch follows the rate, and the chain, whose log density falls
by (mu-lambda)/(mu z), has that of the n with mu(n) = rate for a normal rate. Swings that outlast the window where mu(n)
= lambda are the same over a whole decode. The wait for a place is that of robust queueing (Whitt and You):
sup_m (sqrt(2 e m (I(m)+scv)) - m (top/lambda - 1)) / lambda for an exponential e, here e = max(1, log(P/(1-q))).

Batch. A birth-death chain over the sequences in decode: each lasts out * S(n), S = D plus the prefills met. Arrivals of
peakedness z come at rate (lambda + (z-1) mu(n))/z: many at work tell of a burst. The mean rate is lambda whatever mu
is, so Little's law holds; it is the negative binomial in an infinite-server queue (Wilkinson's fit of peaked traffic)
and exact for one processor-sharing server with geometric bursts. z = 1 + (c2-1) E[min(T, T')]/E[T] (Eick, Massey and
Whitt). With fewest-outstanding dispatch over R replicas one of them sees an R-th of the variance of the whole stream
(state-space collapse of join-the-shortest-queue), plus what ties leave over (fitted: 0.15 of the mean).

First token. Prompts that arrive during a step start together with the next. In steps S' = D + x * (arrivals in S), with
x of mean rho/lambda, a wait has three parts: the rest of the step found, S/2; the work found, M/G/1 with the steps that
full budgets take included (Pollaczek-Khinchine; for bursts GI/M/1 with gamma gaps, scaled by (c2 + scv)/(c2 + 1)); and
what joins the same step, in which nobody is first. Shared steps (share gamma) make the last part S rho and rho/(1+rho)
of the work found. Prompts of one burst share steps: what bursts add to the work found is made of prompts that cost what
they do in a full step.

Decode. out steps of the length found, averaged over the request's time, plus prefills met: rho/(1-rho) of the decode
steps, and again rho' of what has queued behind the own prompt, rho' without what prompts share: a compound Poisson busy
period, gamma by mean and variance. With R replicas the newest requests go elsewhere while a queue builds up:
1/(1-rho') becomes 1 + rho'/(1-rho')/R, and a request meets as many prefills as an arrival finds requests in decode
(rate conservation), fewer than there are on average.

p95 is the quantile of the mixture over length cells; within a cell, answers lie evenly around their mean with the
cell's standard deviation, each sample's at a place of its own. Searches rely on it to rise with the rate, and samples
do with few exceptions: each keeps its random numbers while the rate moves, and each of its parts is an increasing
quantile of them; S is solved for, as iterates of it can fall while it rises. Where answers take a few steps, cheaper
prompts in a larger batch can make waits shorter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy.special import gamma as gamma_function
from scipy.stats import norm

NODE_STEPS = (0.8191725133961645, 0.6710436067037893, 0.5497004779019703)  # R3 low-discrepancy sequence
GOLDEN_RATIO = 0.6180339887498949
STEP_GRID = np.linspace(-3.5, 3.5, 29)
WATERMARK = 0.01  # of the KV cache, kept free when a prompt is admitted
MOST_BUSY = 0.98
TIES = 0.15  # variance over mean of the batch that fewest-outstanding dispatch over many replicas leaves


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


def burst_size(c2: float) -> float:
    """Mean of the logarithmic distribution that makes Poisson bursts a negative binomial number of prompts.

    Its variance over mean is half way from the 1 of short intervals to the c2 of long ones.
    """
    excess = (c2 - 1) / 2
    return float(excess / np.log1p(excess)) if excess > 0 else 1.0


def others(prompts: float, burst: float) -> float:
    """Prompts that share a step with one: e + 1 = prompts / P(any), where bursts of this mean size come Poisson.

    Without bursts, what e + 1 prompts in every step cost each of them, Poisson many do: 1/(1+e) = E[1/(1+N)].
    """
    return -prompts / np.expm1(-prompts / burst) - 1 if prompts > 0 else burst - 1


def two_points(w, values):
    """The two-point distribution with the same three moments (Gauss quadrature): points and shares."""
    mean = np.sum(w * values)
    spread = np.sqrt(np.sum(w * (values - mean) ** 2))
    if spread <= 1e-4 * mean:
        return np.array([mean, mean]), np.array([0.5, 0.5])
    skew = np.sum(w * ((values - mean) / spread) ** 3)
    low, high = (skew - np.sqrt(skew**2 + 4)) / 2, (skew + np.sqrt(skew**2 + 4)) / 2
    return mean + spread * np.array([low, high]), np.array([high, -low]) / (high - low)


def wait_probability(busy: float, c2: float) -> float:
    """GI/M/1: sigma = A*(mu (1 - sigma)), A* the transform of gamma gaps; Newton from the left on a convex function."""
    sigma = busy
    for _ in range(60):
        base = 1 + c2 * (1 - sigma) / busy
        value = base ** (-1 / c2)
        sigma -= (value - sigma) / (value / base / busy - 1)
    return sigma


@dataclass(frozen=True)
class Dispersion:
    """Index of dispersion of a stream that is a random part of one whose index is known for 1, 2, 4 ... requests."""

    index: Sequence[float]
    part: float = 1.0

    def over(self, requests: float) -> float:
        """Linear in the logarithm of the window, constant beyond the known ones."""
        place = np.log2(max(requests / self.part, 1e-300))
        return 1 + self.part * (float(np.interp(place, np.arange(len(self.index)), self.index)) - 1)


def swings(lam: float, mu, grid, along: float, dispersion: Dispersion, overlap: float, replicas: int):
    """1 / z(n) of the batch under arrivals with this dispersion, and the share of its variance that lasts.

    At the grid's batch sizes and linear between them, at most at those that the token budget sustains; the share where
    completions balance arrivals.
    """
    limit = len(mu) - 1
    points = [n for n in grid if n < limit] + [limit]

    def at(n: int) -> tuple[float, float]:
        low, high = max(n - 1, 0), min(n + 1, limit)
        m = replicas * lam / max((mu[high] - mu[low]) / (high - low), 1e-9 * lam)
        m = min(m, dispersion.part * 2 ** (len(dispersion.index) - 1))
        excess = max(dispersion.over(m) - 1, 0)
        s = min(max(2 * (excess + 1 - dispersion.over(m / 2)) / excess, 0), 1) if excess > 0 else 0
        z = (1 + excess * (overlap + (1 - overlap) * s)) / replicas + (1 - 1 / replicas) * TIES
        return 1 / z, excess * s / replicas / z

    calm, slow = np.array([at(min(int(n), max(int(along), 1))) for n in points]).T
    reached = max(i for i in range(len(points) - 1) if i == 0 or mu[int(points[i])] <= lam)
    low, high = (mu[int(points[i])] for i in (reached, reached + 1))
    between = min(max((lam - low) / (high - low), 0), 1)
    return np.interp(np.arange(limit + 1), points, calm), slow[reached] + between * (slow[reached + 1] - slow[reached])


def robust_wait(dispersion: Dispersion, scv: float, spare: float, depth: float) -> float:
    """sup_m sqrt(2 depth m (I(m) + scv)) - spare m, octave by octave as if I were constant in each."""
    most, last = 0.0, len(dispersion.index) - 1
    for k in range(last + 1):
        low, high = (dispersion.part * 2.0**j for j in (k, k + 1))
        about = (dispersion.over(low) + dispersion.over(high)) / 2 + scv
        m = min(max(depth * about / (2 * spare**2), low if k else 0), high if k < last else np.inf)
        most = max(most, np.sqrt(2 * depth * m * (dispersion.over(m) + scv)) - spare * m)
    return most


class Tables:
    """What depends on the engine and the lengths only."""

    def __init__(self, engine: Engine, tin, tout) -> None:
        self.grid = batch_grid(engine.max_num_seqs)
        self.room = np.maximum(engine.max_batched_tokens - self.grid, 1.0)
        self.tokens = 2.0 ** np.arange(0, max(np.ceil(np.log2(engine.max_batched_tokens)), 1) + 1)
        self.step = np.array([engine.linear_s(max(m, 1), max(m, 1)) for m in range(engine.max_num_seqs + 1)])
        self.rate = np.array(
            [[max(engine.linear_s(g + v, g + 1) - self.step[int(g)], 0) / v for v in self.tokens] for g in self.grid]
        )
        self.attention_sum = np.array([engine.decode_attention_sum_s(i, o) for i, o in zip(tin, tout, strict=True)])
        self.prefill_attention = np.array([engine.prefill_attention_s(i, 0) for i in tin])
        self.held = np.array([engine.kv_bytes(i + o / 2) for i, o in zip(tin, tout, strict=True)])
        self.prompt = np.array([engine.kv_bytes(i) for i in tin])
        self.fill = np.array([engine.fill_s(min(i, engine.max_batched_tokens)) for i in tin])

    def rate_at(self, j: int, v):
        """Seconds per prompt token at grid point j in steps with v prompt tokens."""
        return np.interp(np.log2(np.clip(v, 1, self.room[j])), np.log2(self.tokens), self.rate[j])

    def on_grid(self, n: float) -> tuple[int, float]:
        j = int(np.clip(np.searchsorted(self.grid, n, side="right") - 1, 0, len(self.grid) - 2))
        return j, (n - self.grid[j]) / (self.grid[j + 1] - self.grid[j])

    def rate_between(self, n: float, room: float, v):
        """The same with n sequences, which leave `room` tokens of the budget."""
        j, t = self.on_grid(n)
        row = self.rate[j] + t * (self.rate[j + 1] - self.rate[j])
        return np.interp(np.log2(np.clip(v, 1, room)), np.log2(self.tokens), row)


def evaluate(
    engine: Engine,
    tokens_in,
    tokens_out,
    share,
    rate_per_s: float,
    arrival_scv: float = 1.0,
    q: float = 0.95,
    replicas: int = 1,
    spread_out=None,
    dispersion: Dispersion | None = None,
):
    """Latency quantile of one of `replicas` equal replicas, at its rate; +inf where it is unstable.

    `arrival_scv` is that of the whole stream; each request goes to the replica with the fewest outstanding.
    `spread_out` is the standard deviation of the answers within each cell.
    """
    w = np.asarray(share, float) / np.sum(share)
    tin, tout = np.asarray(tokens_in, float), np.asarray(tokens_out, float)
    t = getattr(engine, "tables", None) or Tables(engine, tin, tout)
    mean = lambda v: float(np.sum(w * v))  # noqa: E731
    out, prompt, budget = mean(tout), mean(tin), engine.max_batched_tokens
    spread = np.zeros(len(tout)) if spread_out is None else np.asarray(spread_out, float)
    attention, prefill_attention = mean(t.attention_sum) / out, mean(t.prefill_attention)
    held = mean(tout * t.held) / out
    fit = ((1 - WATERMARK) * engine.kv_capacity_bytes - mean(t.prompt) / 2) / held
    limit = int(max(1, min(engine.max_num_seqs, np.floor(fit))))
    n = np.arange(limit + 1.0)
    step = t.step[: limit + 1] + n * attention
    sizes, size_share = two_points(w, tin)

    # Saturation.
    along = min(budget * out / (prompt + out), limit)

    def shared(rate, prompts: float, burst: float) -> float:
        """Prefill of a mean request in steps with so many prompts."""
        return float(np.sum(size_share * sizes * rate(sizes + others(prompts, burst) * prompt))) + prefill_attention

    def added(rate, d: float, room: float, full: float, guess: float, passes: int) -> float:
        """What prompts add to the mean step S = d + p x(p), p = lambda S, x the prefill of a mean request.

        Where the time of a full step brings prompts for another one, all cost what those do. Else Newton's method.
        """
        grows = min(lam * full * prompt / room, MOST_BUSY)
        if lam * (d + full) >= room / prompt:
            return d * grows / (1 - grows)
        total = lambda p: p * shared(rate, p, burst)  # noqa: E731
        p = float(np.clip(lam * (d + guess), lam * d, lam * (d + full)))
        for _ in range(passes):
            slope = (total(p * (1 + 1e-6)) - total(p)) / (p * 1e-6)
            p = p + (d + total(p) - p / lam) / (1 / lam - slope) if lam * slope < 1 else np.inf
            p = float(np.clip(p, lam * d, lam * (d + full)))
        return p / lam - d

    step_along, room_along = np.interp(along, n, step), max(budget - along, 1)
    rate_along = lambda v: t.rate_between(along, room_along, v)  # noqa: E731
    lam = rate_per_s
    cost = out * step_along / along + shared(rate_along, along / out, 1.0)
    capacity = 1 / cost
    utilization = lam / capacity
    inf = Result(np.inf, capacity, utilization, limit, *(np.full(len(tin), np.inf),) * 2, w)
    if utilization >= 0.999:
        return inf

    # Bursts: of one replica's share of the stream, and of its batch.
    c2 = max(arrival_scv, 1.0)
    own_c2 = c2 / replicas
    damped, bursty = min(own_c2, 1.0), max(own_c2, 1.0)
    burst = burst_size(bursty)
    order = np.argsort(tout, kind="stable")
    above = 1 - np.cumsum(w[order])
    overlap = float(np.sum(w[order] * tout[order] * (2 * above + w[order]))) / out
    z = (1 + (c2 - 1) * overlap) / replicas + (1 - 1 / replicas) * TIES
    area = tout * (t.held if fit < engine.max_num_seqs else 1)
    slot_z = (c2 + mean(area**2) / mean(area) ** 2 - 1) / 2 / replicas

    # The chain.
    full_work = tin * (t.rate_at(0, budget) + t.step[1] / budget) + t.prefill_attention
    work_scv = mean(full_work**2) / mean(full_work) ** 2
    extra = np.empty(len(t.grid))
    prompts = np.empty(len(t.grid))
    for j, g in enumerate(t.grid):
        d, room = t.step[int(g)] + g * attention, t.room[j]
        rate = lambda v: t.rate_at(j, v)  # noqa: B023, E731
        full = room * t.rate_at(j, room) + room / prompt * prefill_attention
        prompts[j] = added(rate, d, room, full, prompts[j - 1] if j else full, 1 if j else 4)
        rho = min(prompts[j] / (d + prompts[j]), MOST_BUSY)
        x = rho / lam
        y = x + d * prompt / room
        busy, sharing = min(lam * y, MOST_BUSY), 1 / (1 + x / full)
        found = lam * work_scv * y**2 / 2 * (1 + busy / (1 - busy) * damped)
        behind = found * (1 - 0.5 * sharing / (0.5 + rho)) * (1 + sharing * rho / (1 + rho))
        behind *= 1 + (bursty - 1) / work_scv * min(1, (full + d) * prompt / room / y)
        behind += x + d * max(1, prompt / room)
        again = min(lam * min(x, full * prompt / room), MOST_BUSY)
        met = rho / (1 - rho) * d + again * (1 + again / (1 - again) * damped) * behind / out
        extra[j] = met * full / (met + full)
    mu = n / (out * (step + np.interp(n, t.grid, extra)))
    top = max(mu[limit], capacity)
    calm, slow = np.full(limit + 1, 1 / z), 0.0
    if dispersion is not None:
        calm, slow = swings(lam, mu, t.grid, along, dispersion, overlap, replicas)
    births = np.maximum(calm * lam + (1 - calm) * np.r_[mu[:-1], top], 1e-9 * lam * calm)
    ratio = births[:-1] / np.r_[mu[1:-1], top]
    p = np.r_[0, np.cumsum(np.log(ratio))]
    p = np.exp(p - p.max())
    beyond = births[limit] / top
    tail = p[limit] * beyond / (1 - beyond)
    p, tail = p / (p.sum() + tail), tail / (p.sum() + tail)
    running = float((p * n).sum() + tail * limit)
    seen = p[:-1] * births[:-1]
    blocked = (p[limit] + tail) * births[limit]
    found_running = float((seen * n[:-1]).sum() + blocked * limit) / (seen.sum() + blocked)
    p_full = blocked / (seen.sum() + blocked)
    seen[-1] += blocked
    seen /= seen.sum()
    mean_step, step_at = float(seen @ step[1:]), step_quantiles(step[1:], seen)

    # First token.
    met_n = min(running, along)
    room = max(budget - met_n, 1)
    d = float(np.interp(met_n, n, step))
    packing = lambda v: min(v, room / prompt)  # noqa: E731
    rates = lambda v: t.rate_between(met_n, room, v)  # noqa: E731
    full = room * float(rates(room)) + room / prompt * prefill_attention
    stretch = added(rates, d, room, full, np.interp(met_n, t.grid, prompts), 2)
    rho = min(stretch / (d + stretch), MOST_BUSY)
    x = rho / lam
    marginal = min(x, full * prompt / room)
    again = lam * marginal
    together = others(packing(lam * (d / (1 - rho) + lam * work_scv * marginal**2 / (1 - again**2))), burst)
    work = tin * rates(tin + together * prompt) + t.prefill_attention
    full_work = work + d / room * tin
    x1, x2 = mean(work), mean(work**2)
    y1, y2, y3 = mean(full_work), mean(full_work**2), mean(full_work**3)
    busy = min(lam * y1, max(utilization, again))
    sigma = wait_probability(busy, bursty)
    scv = y2 / y1**2 - 1
    found = lam * y2 / 2 * (1 + busy / (1 - busy) * damped)
    rise = sigma / (1 - sigma) * (1 - busy) / busy * (bursty + scv) / (bursty + 1) * 2 / (1 + scv) - 1
    found *= 1 + rise * min(1, (marginal + d * prompt / room) / y1)
    sharing = 1 / (1 + x1 / full)
    queued = found * (1 + sharing * sigma / (1 + sigma))
    step_met = d / (1 - rho)
    rest = step_met * ((1 - p[0]) / 2 + sharing * rho)
    a = weibull_exponent(float(np.clip(2 * busy - 1 + 4 / 3 * (1 - busy) * y1 * y3 / y2**2, 0.05, 8.0)))
    own = tin * rates(tin) + t.prefill_attention + d * np.ceil(tin / room)

    # Samples.
    nodes = nodes_per_cell(len(tin))
    i = np.arange(len(tin) * nodes)
    u = (i[None] * np.array(NODE_STEPS)[:, None] + 0.5) % 1
    exponential = -np.log1p(-u[:2])
    gauss = norm.ppf(u[2])
    k = i // nodes
    wait = queued / sigma * np.maximum(exponential[0] + np.log(sigma), 0) ** a / gamma_function(1 + a)
    place_wait = slot_z / (top - lam)
    if dispersion is not None:
        depth = max(1.0, np.log(max(p_full, 1e-300) / (1 - q)))
        scv_of_area = mean(area**2) / mean(area) ** 2 - 1
        place_wait = robust_wait(dispersion, scv_of_area, top / lam - 1, depth) / (depth * replicas * lam)
    slot = np.maximum(exponential[1] + np.log(max(p_full, 1e-300)), 0) * place_wait
    first = rest + wait + own[k] + t.fill[k]
    found_share = min(found_running / running, 1.0)
    stretch = 1 + found_share * rho / (1 - rho)
    y = tout * out / mean(tout**2)  # decode time over the relaxation time of the batch
    averaging = np.sqrt(slow + (1 - slow) * 2 * (y - 1 + np.exp(-y)) / y**2)
    half_width = np.minimum(np.sqrt(3) * spread, np.maximum(tout - 1, 0))
    place = np.argsort(np.argsort((i * GOLDEN_RATIO % 1).reshape(-1, nodes), axis=1), axis=1).ravel() + 0.5
    written = tout[k] + (2 * place / nodes - 1) * half_width[k]
    steps = written * (mean_step + averaging[k] * (np.interp(gauss, STEP_GRID, step_at) - mean_step) * stretch)
    amplified = 1 + again / (1 - again) * damped
    behind = first - 0.5 * sharing / (0.5 + rho) * wait
    added = np.maximum(found_share * (rho / (1 - rho) * mean_step * written + again * amplified * behind), 1e-300)
    v = (x2 + (own_c2 - 1) * marginal**2) / x1 * amplified**2 / added
    noisy = steps + added * np.maximum(1 - v / 9 + gauss * np.sqrt(v) / 3, 0) ** 3
    slowest = max(d + full, step[limit])
    noisy = np.minimum(np.maximum(noisy, 0.9 * step[min(1, limit)] * written), slowest * written)
    latency = slot + first + noisy
    weight = (w / nodes)[k]
    order = np.argsort(latency, kind="stable")
    cut = np.searchsorted(np.cumsum(weight[order]), q - 1e-12)
    return Result(
        float(latency[order][min(cut, len(order) - 1)]), capacity, utilization, limit, latency, slot + first, weight
    )


@dataclass(frozen=True)
class ClosedLoop:
    ttft_s: float
    tpot_s: float
    running: float
    throughput_per_s: float


def closed_loop(engine: Engine, tokens_in, tokens_out, share, concurrency: int, rounds: int = 10) -> ClosedLoop:
    """Means over `rounds` requests of each of `concurrency` clients that start together, by mean-value analysis.

    In a cycle every one of the L requests that fit prefills once: whoever decodes meets the others' prompts. Requests
    that were prefilled in one step end and return together. Outputs of unequal length pull such groups apart, by
    sqrt(12 k var) steps after k rounds, until they are spread over the whole cycle; and where a step takes less than a
    prompt they wait for one another, most when they are half apart. A prompt that is cut takes another step. The
    first round waits for one another's prompts alone, and the last meets half of them.
    """
    w = np.asarray(share, float) / np.sum(share)
    tin, tout = np.asarray(tokens_in, float), np.asarray(tokens_out, float)
    t = getattr(engine, "tables", None) or Tables(engine, tin, tout)
    mean = lambda v: float(np.sum(w * v))  # noqa: E731
    out, prompt, budget = mean(tout), mean(tin), engine.max_batched_tokens
    attention, prefill_attention = mean(t.attention_sum) / out, mean(t.prefill_attention)
    fit = ((1 - WATERMARK) * engine.kv_capacity_bytes - mean(t.prompt) / 2) / (mean(tout * t.held) / out)
    limit = int(max(1, min(engine.max_num_seqs, np.floor(fit))))
    n = np.arange(limit + 1.0)
    step = t.step[: limit + 1] + n * attention
    places = min(concurrency, limit)
    further = max(out - 1, 0.0)
    variance = max(mean(tout**2) - out**2, 0.0)
    decoding = places * further / out
    for _ in range(20):
        others = decoding * (places - 1) / places
        room = max(budget - others, 1.0)
        most = min(room / prompt, places)  # prompts to a step
        chunks = max(1.0, np.ceil(prompt / room))
        group = max(most, 1.0)
        cut = 1 / group if 1 <= most < places else 0.0  # of a full step's prompts, goes on in the next
        own = lambda g: g * (prompt * float(t.rate_between(others, room, g * prompt)) + prefill_attention)  # noqa: B023, E731
        pace, beside = np.interp(decoding, n, step), np.interp(others, n, step)
        full = own(group)
        steps_apart = places / min(group, most)
        ttft = tpot = 0.0
        for k in range(1, rounds):
            window = min(max(steps_apart, further + chunks), steps_apart + np.sqrt(12 * k * variance))
            here = min(1 + (places - 1) / window, group)
            crowd = min(places * chunks / window, 1.0) if most < 1 else 0.0
            met = max(places - here, 0.0) * own(here) / here
            each = min(pace + met / max(further, 1.0), pace + full / chunks)
            first = (chunks * beside + own(here)) * (1 + cut * (here / group) ** 2) + (
                chunks * beside + own(1.0)
            ) * crowd * (1 - crowd) / 2
            ttft += max(first, places / group * full + steps_apart * pace - further * each) / (rounds - 1)
            tpot += each / (rounds - 1)
        cycle = ttft + further * tpot
        decoding = (decoding + places * further * tpot / cycle) / 2
    pace_before = np.interp(decoding / 2, n, step)
    queue = concurrency / places - 1  # cycles that those wait who do not fit
    start = (places / group + 1) / 2 * (chunks * pace_before + full) + queue / 2 * cycle
    steady = ttft + queue * cycle
    return ClosedLoop(
        ttft_s=steady + (start - steady) / rounds + mean(t.fill),
        tpot_s=tpot - (tpot - pace) / 2 / rounds,
        running=places * further * tpot / cycle,
        throughput_per_s=places / cycle,
    )
