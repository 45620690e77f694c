"""The native load model against the NumPy one, and what searches rely on: no NaN, and p95 rises with the rate."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from reference import load_model as oracle
from reference.brute_force import engine

from cascadia_fast import _core
from cascadia_fast.planner import Planner
from cascadia_fast.problem import Problem
from cascadia_fast.routing import RoutingGrid, routing_grid

FloatArray = NDArray[np.float64]
# Dense, mixture of experts, latent attention, sliding windows; tensor and pipeline parallel.
ENGINES = [
    ("llama-3.1-8b", 1, 1, "bf16"),
    ("llama-3.1-8b", 2, 2, "fp8"),
    ("llama-3.1-70b", 4, 2, "bf16"),
    ("mixtral-8x7b", 2, 2, "bf16"),
    ("gpt-oss-120b", 2, 1, "mxfp4"),
    ("deepseek-r1", 8, 2, "fp8"),
    ("deepseek-r1", 4, 5, "int4"),
]
# None, a few, and rates that wander slowly: of one window only, falling at first, and as on a day of real requests.
DISPERSIONS = [np.array(index) for index in ([1.0], [3.0], [2.0, 0.5, 4.0], [1 + 0.05 * 2.0**k for k in range(13)])]
# What the waits' exponent is tabulated with instead of solved for; everything else agrees to rounding.
AGREEMENT = 1e-5
# The chain stops where terms fall below 1e-14 of the sum.
ROUNDING = 1e-9
# Where prompts share the fixed cost of a step, more of them make each cheaper, and waits can shrink as the rate grows.
# Of 40,000 random curves (70 rates each) 0.9 % dip somewhere and 0.08 % by more than this, by 12 % at worst, with
# answers of a few tokens; by 0.3 % at worst where answers have 50 tokens or more on average. None do with the lengths
# of real requests, see below.
DIP = 0.01


@dataclass(frozen=True)
class Case:
    """One engine and one traffic."""

    engine: _core.Replica
    limits: dict[str, int]
    tokens_in: FloatArray
    tokens_out: FloatArray
    spread_out: FloatArray
    share: FloatArray
    scv: float
    dispersion: FloatArray | None = None

    @property
    def capacity_per_s(self) -> float:
        (capacity_per_s,) = _core.capacities(
            replica=self.engine, tokens_in=self.tokens_in, tokens_out=self.tokens_out, share=self.share[None]
        )
        return float(capacity_per_s)

    def p95_s(self, *rates_per_s: float, scv: float | None = None, replicas: int = 1, q: float = 0.95) -> FloatArray:
        rates = np.array(rates_per_s)
        return _core.latency_quantiles(
            replica=self.engine,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            share=np.ascontiguousarray(np.broadcast_to(self.share, (rates.size, self.share.size))),
            rate_per_s=rates,
            arrival_scv=self.scv if scv is None else scv,
            replicas=replicas,
            q=q,
            spread_out=self.spread_out,
            dispersion=self.dispersion,
        )


class SlowEngine:
    """The engine with the limits that the oracle asks it for."""

    def __init__(self, case: Case) -> None:
        self._engine = case.engine
        self.max_num_seqs = case.limits["max_num_seqs"]
        self.max_batched_tokens = case.limits["max_batched_tokens"]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


@st.composite
def cases(draw: st.DrawFn, most_cells: int = 65) -> Case:
    """Lengths like those of real requests; shares of zero occur, and reach below one."""
    model = draw(st.sampled_from(ENGINES))
    limits = {
        "max_num_seqs": draw(st.sampled_from([256, 256, 100, 16, 5, 1])),
        "max_batched_tokens": draw(st.sampled_from([8192, 2048, 300])),
    }
    cells = draw(st.sampled_from([k for k in (1, 2, 7, 8, 9, 60, 64, 65, 200, 512) if k <= most_cells]))
    rng = np.random.default_rng(draw(st.integers(0, 10_000)))
    share = rng.dirichlet(np.ones(cells)) * rng.uniform(0.01, 1) * (rng.random(cells) < 0.8)
    tokens_in = np.ceil(np.exp(rng.normal(draw(st.sampled_from([6.0, 6.0, 9.0])), 1.2, cells))).clip(max=20_000)
    tokens_out = np.ceil(np.exp(rng.normal(draw(st.sampled_from([5.5, 5.5, 2.0])), 1.2, cells)))
    return Case(
        engine=engine(*model, **limits),
        limits=limits,
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        spread_out=rng.uniform(0, draw(st.sampled_from([0.0, 1.0])), cells) * tokens_out,
        share=share if share.any() else np.full(cells, 1 / cells),
        scv=draw(st.sampled_from([0.5, 1.0, 1.01, 1.5, 2.5, 6.0, 16.0])),
        dispersion=draw(st.sampled_from([None, *DISPERSIONS])),
    )


def closed_loop(case: Case, *concurrency: float, rounds: int = 10) -> FloatArray:
    """TTFT, TPOT, running and throughput, shape (4, concurrencies)."""
    return np.array(
        _core.closed_loop(
            replica=case.engine,
            tokens_in=case.tokens_in,
            tokens_out=case.tokens_out,
            share=case.share,
            concurrency=np.array(concurrency),
            rounds=rounds,
        )
    )


load_shares = st.one_of(st.floats(1e-6, 0.9989), st.sampled_from([1e-9, 0.5, 0.9, 0.95, 0.99, 0.9989]))


def slow(case: Case, rate_per_s: float, q: float = 0.95, replicas: int = 1, part: float = 1) -> oracle.Result:
    return oracle.evaluate(
        SlowEngine(case),
        case.tokens_in,
        case.tokens_out,
        case.share,
        rate_per_s,
        case.scv,
        q,
        replicas,
        case.spread_out,
        None if case.dispersion is None else oracle.Dispersion(case.dispersion, part),
    )


@settings(max_examples=120)
@given(cases(), load_shares, st.sampled_from([0.5, 0.95, 0.95, 0.99]), st.sampled_from([1, 1, 2, 5, 100]))
def test_quantiles_and_capacities_match_the_reference(case: Case, load: float, q: float, replicas: int) -> None:
    rate_per_s = load * case.capacity_per_s
    expected = slow(case, rate_per_s, q, replicas)
    assert case.capacity_per_s == pytest.approx(expected.capacity_per_s, rel=ROUNDING)
    (found_s,) = case.p95_s(rate_per_s, q=q, replicas=replicas)
    assert found_s == pytest.approx(expected.quantile_s, rel=AGREEMENT)


@settings(max_examples=4)
@given(cases(most_cells=512).filter(lambda case: case.share.size > 65), load_shares)
def test_many_cells_match_the_reference(case: Case, load: float) -> None:
    rate_per_s = load * case.capacity_per_s
    assert case.p95_s(rate_per_s) == pytest.approx([slow(case, rate_per_s).quantile_s], rel=AGREEMENT)


@settings(max_examples=40)
@given(cases(), load_shares)
def test_every_sample_matches_the_reference(case: Case, load: float) -> None:
    rate_per_s = load * case.capacity_per_s
    search = _core.CascadeSearch(
        models=_core.Models(replicas=[[case.engine]], cells=[(case.tokens_in, case.tokens_out, case.spread_out)]),
        stations=[0],
        depth=[0],
        share=[case.share[None]],
        quality=np.array([50.0]),
        levels=[],
        routings=np.zeros((1, 0), np.int32),
        traffic=_core.Traffic(
            rate_per_s=rate_per_s / case.share.sum(),
            scv=1 + (max(case.scv, 1.0) - 1) / case.share.sum(),
            dispersion=case.dispersion,
        ),
    )
    alone = _core.Choice(shape=0, replicas=1, gpus=case.engine.shape.gpus, latency_s=0.0)
    detail, expected = search.evaluate(0, 0, alone), slow(case, rate_per_s, part=case.share.sum())
    assert detail["utilization"] == pytest.approx(expected.utilization, rel=1e-9)
    assert detail["batch_limit"] == expected.batch_limit
    assert 0 <= detail["mean_batch"] <= expected.batch_limit
    # The core keeps samples node by node, the oracle cell by cell.
    assert detail["latency_s"].T.ravel() == pytest.approx(expected.latency_s, rel=AGREEMENT)
    assert detail["first_token_s"].T.ravel() == pytest.approx(expected.first_token_s, rel=AGREEMENT)


@settings(max_examples=80)
@given(cases(), st.lists(load_shares, min_size=2, max_size=12), st.sampled_from([1, 2, 8]))
def test_latency_rises_with_the_rate(case: Case, loads: list[float], replicas: int) -> None:
    latency_s = case.p95_s(*(np.sort(loads) * case.capacity_per_s), replicas=replicas)
    assert np.isfinite(latency_s).all()
    assert (np.diff(latency_s) >= -DIP * latency_s[1:]).all(), latency_s


@pytest.fixture(scope="module")
def example_grid() -> tuple[Planner, RoutingGrid]:
    problem = Problem.example()
    return Planner(problem), routing_grid(problem.workload.requests)


@pytest.mark.parametrize("stage", [0, 1, 2])
@pytest.mark.parametrize("scv", [1.0, 4.0])
def test_latency_of_real_requests_rises_with_every_step_of_the_rate(
    example_grid: tuple[Planner, RoutingGrid], stage: int, scv: float
) -> None:
    planner, grid = example_grid
    cells, shares = grid.cells[stage], grid.cell_weight[stage]
    reached = np.flatnonzero(shares.sum(axis=1))
    for replica in planner.fleet[stage].replicas:
        for row in reached[:: max(1, reached.size // 4)]:
            share = shares[row][None]
            lengths = {"tokens_in": cells.tokens_in, "tokens_out": cells.tokens_out}
            (capacity_per_s,) = _core.capacities(replica=replica, share=share, **lengths)
            rates = np.r_[np.geomspace(1e-5, 0.01, 8), np.linspace(0.01, 0.95, 40)] * capacity_per_s
            many = np.repeat(share, rates.size, axis=0)
            found_s = _core.latency_quantiles(replica=replica, share=many, rate_per_s=rates, arrival_scv=scv, **lengths)
            assert (np.diff(found_s) >= -ROUNDING * found_s[1:]).all()


@settings(max_examples=60)
@given(cases(), st.floats(0.01, 20.0), st.integers(1, 40))
def test_latency_falls_with_more_replicas(case: Case, load: float, replicas: int) -> None:
    """Each has a lower rate and smoother arrivals."""
    rate_per_s = load * case.capacity_per_s
    before_s, after_s = (case.p95_s(rate_per_s / count, replicas=count)[0] for count in (replicas, replicas + 1))
    assert after_s <= before_s * (1 + DIP)


@settings(max_examples=40)
@given(cases(), load_shares)
def test_burstier_arrivals_do_not_help_and_higher_quantiles_are_later(case: Case, load: float) -> None:
    rate_per_s = load * case.capacity_per_s
    smooth_s, bursty_s = (case.p95_s(rate_per_s, scv=scv)[0] for scv in (0.3, 1.0))
    assert smooth_s == bursty_s  # smoother than Poisson counts as Poisson
    quantiles_s = [case.p95_s(rate_per_s, q=q)[0] for q in (0.05, 0.5, 0.9, 0.95, 0.99)]
    assert (np.diff(quantiles_s) >= -ROUNDING * np.array(quantiles_s[1:])).all(), quantiles_s


@given(cases())
def test_unstable_is_infinite_and_never_nan(case: Case) -> None:
    capacity_per_s = case.capacity_per_s
    factors = np.array([1e-12, 0.998, 0.9991, 1.0, 1.001, 2.0, 1e6, 1e300])
    latency_s = case.p95_s(*(factors * capacity_per_s))
    assert np.isfinite(latency_s[:2]).all()
    assert (latency_s[:2] > 0).all()
    assert np.isposinf(latency_s[2:]).all()


@settings(max_examples=60)
@given(cases(), load_shares, st.sampled_from([0.5, 0.95]))
def test_idle_bound_is_below_every_latency(case: Case, load: float, q: float) -> None:
    (bound_s,) = _core.idle_bounds(
        replica=case.engine,
        tokens_in=case.tokens_in,
        tokens_out=case.tokens_out,
        share=case.share[None],
        q=q,
        spread_out=case.spread_out,
    )
    (latency_s,) = case.p95_s(load * case.capacity_per_s, q=q)
    assert 0 < bound_s <= latency_s * (1 + ROUNDING)


concurrencies = st.sampled_from([1.0, 2.0, 3.0, 8.0, 31.0, 100.0, 256.0, 1000.0])


@settings(max_examples=60)
@given(cases(), concurrencies, st.sampled_from([2, 10]))
def test_closed_loops_match_the_reference(case: Case, concurrency: float, rounds: int) -> None:
    found = closed_loop(case, concurrency, rounds=rounds)
    lengths = (case.tokens_in, case.tokens_out, case.share)
    expected = oracle.closed_loop(SlowEngine(case), *lengths, int(concurrency), rounds)
    assert found[:, 0] == pytest.approx(dataclasses.astuple(expected), rel=1e-9)


@settings(max_examples=60)
@given(cases(), concurrencies)
def test_a_closed_loop_keeps_littles_law(case: Case, concurrency: float) -> None:
    """In the long run: of the clients over a whole request, and of the batch over its decode."""
    ttft_s, tpot_s, running, throughput_per_s = closed_loop(case, concurrency, rounds=10_000)[:, 0]
    weight = case.share / case.share.sum()
    further = max(float(weight @ case.tokens_out) - 1, 0)
    fill_s = float(weight @ case.engine.fill_s(np.minimum(case.tokens_in, case.limits["max_batched_tokens"])))
    assert concurrency == pytest.approx(throughput_per_s * (ttft_s - fill_s + further * tpot_s), rel=0.01)
    assert running == pytest.approx(throughput_per_s * further * tpot_s, rel=0.05)


def test_a_client_alone_meets_an_idle_engine() -> None:
    case = simple_case(tokens_in=np.array([1000.0]), tokens_out=np.array([200.0]), share=np.ones(1))
    ttft_s, tpot_s, running, throughput_per_s = closed_loop(case, 1.0)[:, 0]
    prefill_s = case.engine.linear_s(1000.0, 1.0) + case.engine.prefill_attention_s(1000.0, 0.0)
    assert ttft_s == pytest.approx(prefill_s + case.engine.fill_s(1000.0), rel=0.02)  # rates are interpolated
    assert tpot_s == pytest.approx(case.engine.step_s(1.0, 1100.0, 0.0, 0.0), rel=0.01)
    assert running < 1
    assert throughput_per_s == pytest.approx(1 / (prefill_s + 199 * tpot_s), rel=0.02)


def test_a_closed_loop_is_infinitely_slow_where_a_request_does_not_fit() -> None:
    case = simple_case(tokens_in=np.array([500.0, 2000.0, 5e6]))
    assert closed_loop(case, 1.0, 64.0).tolist() == [[math.inf] * 2, [math.inf] * 2, [0.0] * 2, [0.0] * 2]


@pytest.mark.parametrize(
    ("concurrency", "changes", "message"),
    [
        (0.5, {}, r"concurrency is 0\.5"),
        (math.nan, {}, "concurrency is nan"),
        (1.0, {"share": np.zeros(3)}, "zero everywhere"),
        (1.0, {"share": np.ones((1, 3))}, r"share must have shape \(3,\)"),
    ],
)
def test_closed_loops_that_mean_nothing_are_refused(concurrency: float, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        closed_loop(simple_case(**changes), concurrency)


def simple_case(**changes: Any) -> Case:
    limits = {"max_num_seqs": 256, "max_batched_tokens": 8192}
    lengths = np.array([500.0, 2000.0, 80.0])
    return dataclasses.replace(
        Case(
            engine("llama-3.1-8b", **limits), limits, lengths, lengths[::-1].copy(), np.zeros(3), np.full(3, 1 / 3), 1.0
        ),
        **changes,
    )


def test_a_request_beyond_the_kv_cache_cannot_be_served() -> None:
    """Also when no request of its cell comes: cells are what the engine must be able to take."""
    case = simple_case(tokens_in=np.array([500.0, 2000.0, 5e6]), share=np.array([0.5, 0.5, 0.0]))
    assert case.capacity_per_s == 0
    assert np.isposinf(case.p95_s(1e-3)).all()


def test_scaling_the_shares_changes_nothing() -> None:
    case = simple_case()
    halved = dataclasses.replace(case, share=case.share / 2)
    assert halved.capacity_per_s == pytest.approx(case.capacity_per_s, rel=1e-12)
    assert halved.p95_s(1.0, 5.0) == pytest.approx(case.p95_s(1.0, 5.0), rel=1e-12)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokens_in": np.array([1.0, 2.0])}, "2 prompt and 3 answer lengths"),
        ({"tokens_in": np.array([1.0, math.nan, 2.0])}, "cell 1 has nan prompt"),
        ({"tokens_out": np.array([1.0, 2.0, 0.0])}, "cell 2 has .* 0.000000 answer tokens"),
        ({"share": np.array([0.5, 0.5])}, r"share must have shape \(rows, 3\)"),
    ],
)
def test_wrong_cells_get_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simple_case(**changes).p95_s(1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"spread_out": np.ones(2)}, "spread_out has 2 entries"),
        ({"spread_out": np.array([0.0, -1.0, 0.0])}, r"cell 1 spread by -1\.0"),
        ({"spread_out": np.array([0.0, 0.0, math.nan])}, "cell 2 spread by nan"),
        ({"dispersion": np.ones((1, 2))}, "dispersion has 2 entries"),
        ({"dispersion": np.ones(33)}, "dispersion has 33 entries"),
        ({"dispersion": np.array([1.0, -0.1])}, r"index of dispersion is -0\.1"),
    ],
)
def test_wrong_variation_gets_a_sentence(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        simple_case(**changes).p95_s(1.0)


@given(cases(), load_shares, st.sampled_from([1, 3]))
def test_a_dispersion_of_one_is_that_of_poisson_arrivals(case: Case, load: float, replicas: int) -> None:
    p95_s = [
        dataclasses.replace(case, scv=1.0, dispersion=known).p95_s(load * case.capacity_per_s, replicas=replicas)
        for known in (None, np.ones(1), np.ones(7))
    ]
    assert p95_s[1] == pytest.approx(p95_s[0], rel=1e-9)
    assert p95_s[2] == pytest.approx(p95_s[0], rel=1e-9)


def test_answers_are_read_only_and_inputs_may_be_lists_or_strided() -> None:
    case = simple_case()
    expected = case.p95_s(1.0, 2.0)
    assert not expected.flags.writeable
    strided = dataclasses.replace(
        case, tokens_in=np.repeat(case.tokens_in, 2)[::2], tokens_out=case.tokens_out.astype(np.int32)
    )
    assert np.array_equal(strided.p95_s(1.0, 2.0), expected)


@pytest.mark.parametrize("rate_per_s", [0.0, -1.0, math.nan])
def test_rates_that_mean_nothing_are_refused(rate_per_s: float) -> None:
    with pytest.raises(ValueError, match="rate"):
        simple_case().p95_s(rate_per_s)


@pytest.mark.parametrize("share", [[0.0, 0.0, 0.0], [0.5, -0.1, 0.6], [0.5, math.nan, 0.5]])
def test_shares_that_mean_nothing_are_refused(share: list[float]) -> None:
    with pytest.raises(ValueError, match="share"):
        simple_case(share=np.array(share)).p95_s(1.0)


@pytest.mark.parametrize(("scv", "q"), [(math.nan, 0.95), (-1.0, 0.95), (1.0, 0.0), (1.0, 1.0), (1.0, math.nan)])
def test_variation_and_quantile_out_of_range_are_refused(scv: float, q: float) -> None:
    with pytest.raises(ValueError, match=r"scv|quantile|q "):
        simple_case().p95_s(1.0, scv=scv, q=q)
