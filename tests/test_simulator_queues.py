"""Engines set up to be the queues of the textbooks: the native simulator meets their closed forms.

A step with n prompts of one token or decodes takes ``decode_step_s[n]``, so a request alone in its engine is served for
its output tokens times the step. Seeds are fixed, so every run says the same; a formula with a load 10 % off must be
outside of what the simulation allows, as the true one must be inside.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.stats
from numpy.typing import ArrayLike, NDArray
from simulator_cases import Case, Kind, Station, one_engine

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int32]
REQUESTS = 600_000
WARM_UP = REQUESTS // 50  # from empty; far longer than any of these queues remembers
BATCHES = 40
LEVEL = 0.999
MEAN_TOKENS = 1000
STEP_S = 1.0 / MEAN_TOKENS  # so that a request is served for 1 s on average


def within(values: ArrayLike, expected: float, wrong: float) -> None:
    """The mean of a series is `expected` and not `wrong`; batch means take care of what neighbours have in common.

    Means of batches are nearly independent and normal, so Student's t gives the confidence interval (Law, "Simulation
    Modeling and Analysis", 5th edition, section 9.5.3).
    """
    series = np.asarray(values)[WARM_UP:]
    means = series[: series.size // BATCHES * BATCHES].reshape(BATCHES, -1).mean(axis=1)
    half_width = scipy.stats.t.ppf(0.5 + LEVEL / 2, BATCHES - 1) * means.std(ddof=1) / math.sqrt(BATCHES)
    assert abs(means.mean() - expected) < half_width
    assert abs(means.mean() - wrong) > half_width


def engine(step_s: Callable[[NDArray[Any]], ArrayLike], places: int) -> Kind:
    """Steps by the number of sequences, prompts of one token."""
    steps_s = np.asarray(step_s(np.arange(places + 1)), float) * np.ones(places + 1)
    return Kind.measured(decode_step_s=steps_s, prompt_step_s=steps_s, sampled_s=np.zeros(places + 1))


def one_at_a_time() -> Kind:
    return engine(lambda n: STEP_S * (n > 0), 1)


def shared(places: int = 200) -> Kind:
    """All sequences of a step together do what one would do alone in the time."""
    return engine(lambda n: STEP_S * n, places)


def arrivals(rng: np.random.Generator, rate_per_s: float) -> FloatArray:
    return np.cumsum(rng.exponential(1 / rate_per_s, REQUESTS))


def exponential(rng: np.random.Generator, *shape: int) -> IntArray:
    """Geometric, which at this many steps is as good as exponential."""
    return rng.geometric(1 / MEAN_TOKENS, shape or REQUESTS).astype(np.int32)


def constant(rng: np.random.Generator) -> IntArray:
    return np.full(REQUESTS, MEAN_TOKENS, np.int32)


def two_lengths(rng: np.random.Generator) -> IntArray:
    """A fifth of the requests is eleven times as long as the others."""
    return rng.choice(np.array([MEAN_TOKENS // 3, 11 * MEAN_TOKENS // 3], np.int32), REQUESTS, p=[0.8, 0.2])


SECOND_MOMENT = {"constant": 1.0, "exponential": 2.0, "two_lengths": 0.8 / 9 + 0.2 * 121 / 9}


def waits_s(found: Any) -> FloatArray:
    wait_s: FloatArray = found.times_s[0, :, 1] - found.times_s[0, :, 0]
    return wait_s


def sojourns_s(found: Any) -> FloatArray:
    sojourn_s: FloatArray = found.finished_s - found.arrived_s
    return sojourn_s


def test_m_m_1() -> None:
    rng, load = np.random.default_rng(1), 0.7
    found = one_engine(one_at_a_time(), arrivals(rng, load), 1, exponential(rng)).core()
    within(sojourns_s(found), 1 / (1 - load), 1 / (1 - 1.1 * load))
    # The whole distribution is exponential: a tenth is above ln(10) means.
    within(sojourns_s(found) > math.log(10) / (1 - load), 0.1, math.exp(-math.log(10) * (1 - 1.1 * load) / (1 - load)))
    assert found.busy_s[0] / found.ended_s == pytest.approx(load, rel=0.01)


def erlang_c(servers: int, load: float) -> float:
    """Probability to wait (Erlang's C formula), by the recursion of his B formula."""
    offered, blocked = servers * load, 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


@pytest.mark.parametrize(("servers", "load"), [(2, 0.8), (8, 0.85)])
def test_m_m_c(servers: int, load: float) -> None:
    """A batch in which a step takes the same for any number of sequences: each has a server of its own."""
    rng = np.random.default_rng(2)
    kind = engine(lambda n: STEP_S * (n > 0), servers)
    found = one_engine(kind, arrivals(rng, servers * load), 1, exponential(rng)).core()

    def wait_s(load: float) -> float:
        return erlang_c(servers, load) / (servers * (1 - load))

    within(waits_s(found), wait_s(load), wait_s(1.1 * load))
    # Whoever has to wait at all does so for longer than the step in flight.
    within(waits_s(found) > STEP_S, erlang_c(servers, load), erlang_c(servers, 1.1 * load))


def pollaczek_khinchine_s(load: float, second_moment: float) -> float:
    return load * second_moment / (2 * (1 - load))


@pytest.mark.parametrize("tokens", [constant, exponential, two_lengths])
@pytest.mark.parametrize("load", [0.4, 0.8])
def test_m_d_1_and_m_g_1(tokens: Callable[[np.random.Generator], IntArray], load: float) -> None:
    rng = np.random.default_rng(3)
    found = one_engine(one_at_a_time(), arrivals(rng, load), 1, tokens(rng)).core()
    expected_s = pollaczek_khinchine_s(load, SECOND_MOMENT[tokens.__name__])
    within(waits_s(found), expected_s, pollaczek_khinchine_s(1.1 * load, SECOND_MOMENT[tokens.__name__]))


def prompts_only(budget: int) -> Kind:
    """A prompt of t tokens takes t times a thousandth second; nobody else rides along."""
    return Kind.measured(
        decode_step_s=[0.0, STEP_S], prompt_step_s=STEP_S * np.arange(budget + 1), sampled_s=np.zeros(2)
    )


@pytest.mark.parametrize("budget", [64, 4096])
def test_m_g_1_of_prompts(budget: int) -> None:
    """Cut into chunks or in one piece, a prompt takes as long."""
    rng, load = np.random.default_rng(4), 0.7
    found = one_engine(prompts_only(budget), arrivals(rng, load), two_lengths(rng), 1).core()
    second = SECOND_MOMENT["two_lengths"]
    within(waits_s(found), pollaczek_khinchine_s(load, second), pollaczek_khinchine_s(1.1 * load, second))


def test_shortest_first_is_a_priority_queue() -> None:
    """Cobham's formula: W_k = W_0 / ((1 - load of the shorter ones) (1 - that and one's own))."""
    rng, load = np.random.default_rng(5), 0.8
    tokens = two_lengths(rng)
    case = one_engine(prompts_only(4096), arrivals(rng, load), tokens, 1, scheduler={"admission": "shortest_first"})
    wait_s = waits_s(case.core())

    def cobham_s(load: float) -> tuple[float, float]:
        residual_s, of_short = load * SECOND_MOMENT["two_lengths"] / 2, load * 0.8 / 3
        return residual_s / (1 - of_short), residual_s / ((1 - of_short) * (1 - load))

    for k, mine in enumerate([tokens == tokens.min(), tokens == tokens.max()]):
        within(wait_s[mine], cobham_s(load)[k], cobham_s(1.1 * load)[k])


@pytest.mark.parametrize("tokens", [constant, exponential, two_lengths])
def test_m_g_1_processor_sharing(tokens: Callable[[np.random.Generator], IntArray]) -> None:
    """Only the mean length matters, and each request takes its own length times the same factor."""
    rng, load = np.random.default_rng(6), 0.7
    lengths = tokens(rng)
    sojourn_s = sojourns_s(one_engine(shared(), arrivals(rng, load), 1, lengths).core())
    within(sojourn_s, 1 / (1 - load), 1 / (1 - 1.1 * load))
    for shorter in (True, False):
        mine = (lengths < MEAN_TOKENS) == shorter
        if mine.sum() > REQUESTS / 10:
            factor = sojourn_s[mine] / lengths[mine] / STEP_S
            # A new request waits for the end of a step, which is much for the shortest ones: leave them out.
            factor = factor[lengths[mine] > MEAN_TOKENS / 4]
            within(factor, 1 / (1 - load), 1 / (1 - 1.1 * load))


@pytest.mark.parametrize("clients", [1, 3, 12])
def test_machine_repair(clients: int) -> None:
    """M/M/1//N: clients think (here: an external judge) for 5 s on average, whatever the distribution."""
    rng, think_s = np.random.default_rng(7), 5.0
    case = Case(
        [Station([(one_at_a_time(), 1, 1.0)]), Station([(one_at_a_time(), 1, 1.0)])],
        None,
        {
            "tokens_in": np.ones((2, REQUESTS), np.int32),
            "tokens_out": exponential(rng, 2, REQUESTS),
            "path": np.ones(REQUESTS, np.uint16),  # stage 0 only, judged
            "drawn": np.arange(REQUESTS, dtype=np.int32),
            "arrival_s": None,
            "concurrency": clients,
            "judge_delay_s": think_s * np.repeat([0.5, 2.0], [2, 1]),
        },
    )
    found = case.core()

    def response_s(service_s: float) -> float:
        """By mean value analysis (Reiser and Lavenberg 1980)."""
        queue = response = 0.0
        for n in range(1, clients + 1):
            response = service_s * (1 + queue)
            queue = n * response / (response + think_s)
        return response

    stage_s = found.times_s[0, :, 3] - found.times_s[0, :, 0]
    within(stage_s, response_s(1.0), response_s(1.1))
    assert REQUESTS / found.ended_s == pytest.approx(clients / (response_s(1.0) + think_s), rel=0.01)


@pytest.mark.parametrize("clients", [4, 30])
@pytest.mark.parametrize("kind", [one_at_a_time(), shared()])
def test_closed_loop_without_thinking(kind: Kind, clients: int) -> None:
    """The engine always works: it serves one request a second, and each takes as many seconds as there are clients."""
    rng = np.random.default_rng(8)
    found = one_engine(kind, None, 1, exponential(rng, REQUESTS), concurrency=clients).core()
    within(sojourns_s(found), clients, 1.1 * clients)
    assert found.busy_s[0] == pytest.approx(found.ended_s, rel=1e-9)


def test_random_dispatch_splits_a_poisson_stream() -> None:
    rng, load, replicas = np.random.default_rng(9), 0.7, 4
    case = one_engine(one_at_a_time(), arrivals(rng, replicas * load), 1, exponential(rng))
    found = Case([Station([(one_at_a_time(), replicas, 1.0)], "random")], None, case.arguments).core()
    within(sojourns_s(found), 1 / (1 - load), 1 / (1 - 1.1 * load))


def test_round_robin_makes_erlang_arrivals() -> None:
    """E_2/M/1 at each of two replicas: the sojourn is 1 / (1 - s), s = (2 r / (2 r + 1 - s))^2 at load r."""
    rng, load = np.random.default_rng(10), 0.8
    case = one_engine(one_at_a_time(), arrivals(rng, 2 * load), 1, exponential(rng))
    found = Case([Station([(one_at_a_time(), 2, 1.0)], "round_robin")], None, case.arguments).core()

    def sojourn_s(load: float) -> float:
        s = 0.5
        for _ in range(500):
            s = (2 * load / (2 * load + 1 - s)) ** 2
        return 1 / (1 - s)

    within(sojourns_s(found), sojourn_s(load), sojourn_s(1.1 * load))
    assert sojourn_s(load) < 0.85 / (1 - load)


def test_cascade_is_a_jackson_network() -> None:
    """Departures of an M/M/1 queue are Poisson (Burke), and so is a share of them drawn at random."""
    rng, load, escalated = np.random.default_rng(11), 0.8, 0.75
    case = Case(
        [Station([(one_at_a_time(), 1, 1.0)]), Station([(one_at_a_time(), 1, 1.0)])],
        None,
        {
            "tokens_in": np.ones((2, REQUESTS), np.int32),
            "tokens_out": exponential(rng, 2, REQUESTS),
            "path": np.where(rng.random(REQUESTS) < escalated, 3, 1).astype(np.uint16),
            "drawn": np.arange(REQUESTS, dtype=np.int32),
            "arrival_s": arrivals(rng, load),
            "judge_delay_s": np.array([3.0]),
        },
    )
    found = case.core()

    def latency_s(load: float) -> float:
        judged_s = 3.0
        return 1 / (1 - load) + judged_s + escalated / (1 - escalated * load)

    within(sojourns_s(found), latency_s(load), latency_s(1.1 * load))
    at_second = found.times_s[1, :, 3] - found.times_s[1, :, 0]
    second_s = at_second[np.isfinite(at_second)]
    within(second_s, 1 / (1 - escalated * load), 1 / (1 - 1.1 * escalated * load))
