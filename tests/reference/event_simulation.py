"""Identical engines fed by one stream of requests, simulated iteration by iteration: the truth that p95s are held to.

An engine schedules as vLLM's v1 engine does. Every step gives each running decode one token, continues the prompt that
the last step cut off, and fills what is left of the token budget with waiting prompts, first come, first served, the
last of them cut off again. A prompt is admitted when all of it would fit the free part of the KV cache, vLLM's default
since it has ``scheduler_reserve_full_isl`` (its pull request 37307); with room for the first chunk alone, long prompts
drive each other out. 1 % is kept aside, which is a choice: vLLM's own default is 0 (its pull request 44594). Nothing is
reserved: the cache fills with the context, token by token (blocks of 16 would waste 8 tokens per request). When it is
full, the request admitted last loses its place: it goes back to the front of the queue, and later everything it had
read and written is prefilled again.

Step times are those of the core. Nothing is random but arrivals, lengths and dispatch. At equal times requests arrive
first, then a step starts; a request counts as unfinished until then.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from cascadia_fast import _core

from .event_loop import (
    DISPATCHES,
    ENGINE,
    NOBODY,
    REQUEST,
    SLOT,
    Costs,
    PerToken,
    over_context,
    prefill_attention_s,
    run_closed_loop,
    run_open_loop,
)

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Records = NDArray[np.void]
FAR_TOKENS = 2.0**24  # beyond any window, and where reading the cache is nothing beside the arithmetic of a prompt


@dataclass(frozen=True)
class Simulated:
    """What became of the requests; arrays of shape (requests,) in order of arrival, times absolute."""

    arrival_s: FloatArray
    first_token_s: FloatArray
    finish_s: FloatArray
    replica: IntArray
    preemptions: int
    processed_tokens: int  # prompt and decode tokens computed, those computed again included
    mean_running: FloatArray  # sequences in decode, over the whole run; shape (replicas,)

    @property
    def latency_s(self) -> FloatArray:
        return self.finish_s - self.arrival_s

    @property
    def ttft_s(self) -> FloatArray:
        return self.first_token_s - self.arrival_s


def simulate(
    engine: _core.Replica,
    arrival_s: ArrayLike,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    *,
    limits: _core.EngineLimits,
    replicas: int = 1,
    dispatch: str = "least_outstanding",
    seed: int = 0,
) -> Simulated:
    """Serve requests with ascending arrival times; `limits` are those the engine was made with.

    A request is dispatched when it arrives: at random, in turn, or to the engine with the fewest unfinished requests.
    """
    requests = _requests(engine, limits, arrival_s, tokens_in, tokens_out)
    if (np.diff(requests["arrival_s"]) < 0).any():
        raise ValueError("arrival_s goes backwards; sort the requests by arrival")
    engines, slots = _idle_engines(replicas, limits.max_num_seqs)
    uniform = np.random.default_rng(seed).random(requests.size)
    run_open_loop(costs(engine, limits), requests, engines, slots, DISPATCHES.index(dispatch), uniform)
    return _simulated(requests, engines)


def closed_loop(
    engine: _core.Replica,
    concurrency: int,
    tokens_in: ArrayLike,
    tokens_out: ArrayLike,
    requests: int,
    *,
    limits: _core.EngineLimits,
) -> Simulated:
    """Serve a fixed number of clients that start together and send their next request when the last one is answered."""
    lengths = (np.broadcast_to(np.asarray(tokens, np.int64), requests) for tokens in (tokens_in, tokens_out))
    sent = _requests(engine, limits, np.zeros(requests), *lengths)
    engines, slots = _idle_engines(1, limits.max_num_seqs)
    run_closed_loop(costs(engine, limits), sent, engines, slots, concurrency)
    return _simulated(sent, engines)


def capacity_per_s(
    engine: _core.Replica, tokens_in: ArrayLike, tokens_out: ArrayLike, *, limits: _core.EngineLimits
) -> float:
    """Requests per second with all of them waiting from the start; the first fifth served and the last are left out."""
    waiting = np.zeros(np.asarray(tokens_in).size)
    served = np.sort(simulate(engine, waiting, tokens_in, tokens_out, limits=limits).finish_s)
    first, last = served.size // 5, served.size - max(served.size // 5, limits.max_num_seqs)
    if last <= first:
        raise ValueError(f"{served.size} requests do not fill {limits.max_num_seqs} places for long; give more")
    return float((last - first) / (served[last] - served[first]))


def costs(engine: _core.Replica, limits: _core.EngineLimits) -> Costs:
    """Take the core's step time apart into tables and constants, and check that they reproduce it."""
    tokens, sampled = np.arange(limits.max_batched_tokens + 1.0), np.arange(limits.max_num_seqs + 1.0)
    most = np.full_like(sampled, tokens[-1] + sampled[-1])  # always more than are sampled: a step with prompts
    decode_s, window = _per_token(engine.decode_attention_s)
    # With all costs of a prompt in full layers, and with all in windowed ones, both at two lengths.
    pairs = np.array([[t * t / 2, window * t - window * window / 2] for t in (FAR_TOKENS, 2 * FAR_TOKENS)])
    far_s = np.array([engine.prefill_attention_s(t, 0.0) for t in (FAR_TOKENS, 2 * FAR_TOKENS)])
    full_s, windowed_s = np.linalg.solve(pairs, far_s) if window else (far_s[0] / pairs[0, 0], 0.0)
    made = Costs(
        decode_step_s=engine.linear_s(sampled, sampled),
        prompt_step_s=engine.linear_s(tokens, np.zeros_like(tokens)),
        sampled_s=engine.linear_s(most, sampled) - engine.linear_s(most[0], 0.0),
        decode_s=decode_s,
        prefill_s=PerToken(0.0, float(full_s), float(windowed_s)),
        kv_bytes=_per_token(engine.kv_bytes)[0],
        window=window,
        kv_capacity_bytes=engine.kv_capacity_bytes,
        max_num_seqs=limits.max_num_seqs,
        max_batched_tokens=limits.max_batched_tokens,
    )
    _check(engine, made)
    return made


def _per_token(cost: Any) -> tuple[PerToken, float]:
    """Fixed, full and windowed share of a cost that grows with the context, and the window."""
    fixed, near, far = cost(0.0), cost(1.0), cost(FAR_TOKENS)
    full = (cost(2 * FAR_TOKENS) - far) / FAR_TOKENS
    windowed = near - fixed - full
    if windowed <= 1e-6 * near:
        return PerToken(fixed, near - fixed, 0.0), 0.0
    return PerToken(fixed, full, windowed), float(np.round((far - fixed - full * FAR_TOKENS) / windowed))


def _check(engine: _core.Replica, c: Costs) -> None:
    rng = np.random.default_rng(0)
    sampled = rng.integers(0, c.max_num_seqs, 50)
    tokens = rng.integers(sampled + 1, c.max_batched_tokens, endpoint=True)
    before, chunk = rng.integers(0, 20_000, 50), rng.integers(1, 10_000, 50)
    attention_s = [prefill_attention_s(c, *one) for one in zip(chunk, before, strict=True)]
    found = [
        (engine.linear_s(tokens, sampled), c.prompt_step_s[tokens] + c.sampled_s[sampled]),
        (engine.decode_attention_s(before), [over_context(c.decode_s, c.window, one) for one in before]),
        (engine.kv_bytes(before), [over_context(c.kv_bytes, c.window, one) for one in before]),
        (engine.prefill_attention_s(chunk, before), attention_s),
    ]
    for expected, taken_apart in found:
        np.testing.assert_allclose(taken_apart, expected, rtol=1e-6, err_msg="the core's step time has a new form")


def _requests(
    engine: _core.Replica, limits: _core.EngineLimits, arrival_s: ArrayLike, tokens_in: ArrayLike, tokens_out: ArrayLike
) -> Records:
    arrivals = np.asarray(arrival_s, float)
    requests = np.zeros(arrivals.size, REQUEST)
    requests["arrival_s"], requests["tokens_in"], requests["tokens_out"] = arrivals, tokens_in, tokens_out
    longest = (requests["tokens_in"] + requests["tokens_out"]).max()
    if limits.max_num_seqs > limits.max_batched_tokens:
        raise ValueError("max_num_seqs is above max_batched_tokens, so that not every decode gets its token")
    if min(requests["tokens_in"].min(), requests["tokens_out"].min()) < 1:
        raise ValueError("tokens_in and tokens_out must be at least 1")
    if engine.kv_bytes(float(longest)) > engine.kv_capacity_bytes:
        raise ValueError(f"a request of {longest} tokens does not fit the KV cache; leave it out")
    requests["fill_s"] = engine.fill_s(np.minimum(requests["tokens_in"], limits.max_batched_tokens).astype(float))
    requests["finish_s"] = np.nan
    return requests


def _idle_engines(replicas: int, max_num_seqs: int) -> tuple[Records, Records]:
    engines = np.zeros(replicas, ENGINE)
    for name in ("end_s", "admit_s"):
        engines[name] = np.inf
    for name in ("head", "tail", "partial"):
        engines[name] = NOBODY
    engines["change"] = np.iinfo(np.int64).max
    return engines, np.zeros((replicas, max_num_seqs), SLOT)


def _simulated(requests: Records, engines: Records) -> Simulated:
    arrival_s, first_token_s, finish_s, replica = (
        requests[name].copy() for name in ("arrival_s", "first_token_s", "finish_s", "replica")
    )
    return Simulated(
        arrival_s=arrival_s,
        first_token_s=first_token_s,
        finish_s=finish_s,
        replica=replica,
        preemptions=int(engines["preemptions"].sum()),
        processed_tokens=int(engines["processed"].sum()),
        mean_running=engines["decoding_s"] / (finish_s.max() - arrival_s[0]),
    )
