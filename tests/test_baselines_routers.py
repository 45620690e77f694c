"""RouteLLM, FrugalGPT and AutoMix: their optimisations against exhaustive search, and the plans that come of them."""

from __future__ import annotations

import dataclasses
import itertools
import math

import numpy as np
import pytest

from cascadia_fast.baselines.costs import Routed, cheapest, cheapest_index
from cascadia_fast.baselines.lists import ModelList, best_list
from cascadia_fast.baselines.proportions import split_gpus
from cascadia_fast.baselines.tiers import best_tiers
from cascadia_fast.baselines.verifying import Policy, policies
from cascadia_fast.length_cells import all_cells
from cascadia_fast.workload import ScoredRequests

SEEDS = range(20)


def sample(rng: np.random.Generator, models: int, size: int, zero_weights: bool = True) -> ScoredRequests:
    """Requests whose larger models answer better on average, with weights, some of them zero."""
    easy = rng.uniform(0, 60, size)
    quality = np.clip(easy + 15 * np.arange(models)[:, None] + rng.normal(0, 12, (models, size)), 0, 100)
    weight = rng.choice([0.0, 0.5, 1.0, 2.0] if zero_weights else [0.5, 1.0, 2.0], size)
    return ScoredRequests(
        models=tuple(f"m{i}" for i in range(models)),
        request_ids=np.array([f"r{i}" for i in range(size)]),
        input_tokens=rng.integers(10, 900, (models, size)).astype(float),
        output_tokens=rng.integers(10, 2000, (models, size)).astype(float),
        score=np.clip(quality + rng.normal(0, 10, quality.shape), 0, 100),
        quality=quality,
        weight=weight if weight.any() else np.ones(size),
    )


def costs_of(rng: np.random.Generator, requests: ScoredRequests) -> np.ndarray:
    """Costs that rise from model to model by about five times."""
    return np.asarray(requests.output_tokens * 5.0 ** np.arange(len(requests.models))[:, None] * rng.uniform(0.5, 2))


def floors_of(requests: ScoredRequests) -> list[float]:
    """A floor that anything meets, one between the models, one that little meets, and one out of reach."""
    means = np.average(requests.quality, axis=1, weights=requests.weight)
    return [0.0, float(means[:2].mean()), float(means.max()), 101.0]


def lists_of(models: int) -> list[tuple[int, ...]]:
    return [chosen for size in range(1, models + 1) for chosen in itertools.combinations(range(models), size)]


def mean_of(quality: np.ndarray, cost: np.ndarray, requests: ScoredRequests) -> Routed:
    weight = requests.weight
    return Routed(float(np.average(quality, weights=weight)), float(np.average(cost, weights=weight)))


class TestCheapest:
    OPTIONS = (Routed(70.0, 3.0), Routed(80.0, 5.0), Routed(82.0, 5.0), Routed(85.0, 9.0), Routed(85.0, 8.0))

    @pytest.mark.parametrize(
        ("q_min", "index"), [(0.0, 0), (70.0, 0), (70.0 + 1e-10, 0), (71.0, 1), (83.0, 4), (99.0, 4)]
    )
    def test_meets_the_floor_at_least_cost_else_is_the_best(self, q_min: float, index: int) -> None:
        assert cheapest(self.OPTIONS, q_min) is self.OPTIONS[index]

    @pytest.mark.parametrize("q_min", [0.0, 70.0, 71.0, 83.0, 99.0])
    def test_arrays_choose_alike_and_never_what_is_no_option(self, q_min: float) -> None:
        quality = np.array([o.quality for o in self.OPTIONS] + [-np.inf])
        cost = np.array([o.cost for o in self.OPTIONS] + [0.0])
        chosen, wanted = cheapest_index(quality, cost, q_min), cheapest(self.OPTIONS, q_min)
        assert cost[chosen] == wanted.cost


class TestTiers:
    def exhaustive(
        self, signal: np.ndarray, quality: np.ndarray, cost: np.ndarray, weight: np.ndarray, q_min: float
    ) -> Routed:
        """Every way to put the distinct signals that count, in order, into as many tiers, none of them empty."""
        distinct = np.unique(signal[weight > 0])
        found = []
        for cuts in itertools.combinations(distinct[1:], len(quality) - 1):
            model = np.searchsorted(cuts, signal, "right")
            at = np.arange(signal.size)
            found.append(
                Routed(
                    float(np.average(quality[model, at], weights=weight)),
                    float(np.average(cost[model, at], weights=weight)),
                )
            )
        return cheapest(found, q_min)

    @pytest.mark.parametrize("models", [2, 3, 4])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_equals_exhaustive_search(self, models: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        requests = sample(rng, models, 18)
        cost = costs_of(rng, requests)
        signal = np.round(rng.uniform(0, 1, 18) + 0.01 * requests.quality[-1], 1)  # rounded: ties
        for q_min in floors_of(requests):
            tiers = best_tiers(signal, requests.quality, cost, requests.weight, q_min)
            wanted = self.exhaustive(signal, requests.quality, cost, requests.weight, q_min)
            assert tiers is not None
            assert (tiers.quality, tiers.cost) == pytest.approx((wanted.quality, wanted.cost))
            assert list(tiers.cuts) == sorted(set(tiers.cuts))
            model, at = np.searchsorted(tiers.cuts, signal, "right"), np.arange(18)
            assert set(model[requests.weight > 0]) == set(range(models))
            assert np.average(requests.quality[model, at], weights=requests.weight) == pytest.approx(tiers.quality)
            assert np.average(cost[model, at], weights=requests.weight) == pytest.approx(tiers.cost)

    def test_fewer_signals_than_models_make_no_tiers(self) -> None:
        rng = np.random.default_rng(0)
        requests = sample(rng, 3, 10)
        signal = np.repeat([0.2, 0.7], 5)
        assert best_tiers(signal, requests.quality, costs_of(rng, requests), requests.weight, 50.0) is None

    def test_neighbouring_floats_are_told_apart(self) -> None:
        low = 0.5
        signal = np.array([low, np.nextafter(low, 1)])
        tiers = best_tiers(
            signal, np.array([[0.0, 0.0], [9.0, 9.0]]), np.array([[1.0, 1.0], [2.0, 2.0]]), np.ones(2), 0
        )
        assert tiers is not None
        assert np.searchsorted(tiers.cuts, signal, "right").tolist() == [0, 1]

    def test_large_samples_are_cut_at_quantiles_and_lose_almost_nothing(self) -> None:
        rng = np.random.default_rng(3)
        requests = sample(rng, 3, 3000)
        cost = costs_of(rng, requests)
        signal = rng.uniform(0, 1, 3000) + 0.005 * (requests.quality[-1] - requests.quality[0])
        coarse = best_tiers(signal, requests.quality, cost, requests.weight, 55.0)
        every = np.sort(signal)[1:]
        least = np.inf
        share = requests.weight / requests.weight.sum()
        for cut in every[::25]:  # of all pairs with this cut the cheapest that meets the floor
            first = np.where(signal < cut, requests.quality[0] - requests.quality[1], 0.0) @ share
            order = np.argsort(signal)
            saved = (requests.quality[1] - requests.quality[2])[order] * share[order]
            of_second = np.cumsum(saved) + requests.quality[2] @ share + first
            paid = np.cumsum(((cost[1] - cost[2]) * share)[order]) + cost[2] @ share
            paid = paid + np.where(signal < cut, cost[0] - cost[1], 0.0) @ share
            allowed = (signal[order] >= cut) & (of_second >= 55.0)
            least = min(least, np.min(paid, where=allowed, initial=np.inf))
        assert coarse is not None
        assert coarse.quality >= 55.0
        assert coarse.cost <= least * 1.01


class TestLists:
    LEVELS = (*range(101), math.inf)

    def exhaustive(self, requests: ScoredRequests, learned: np.ndarray, cost: np.ndarray, q_min: float) -> Routed:
        """Every list, and of every threshold each level that routes unlike the one below."""
        found = []
        n = requests.size
        for chosen in lists_of(len(requests.models)):
            levels = [self.telling(learned[model]) for model in chosen[:-1]]
            for thresholds in itertools.product(*levels):
                quality, paid = np.zeros(n), np.zeros(n)
                for request in range(n):
                    for model, threshold in zip(chosen, (*thresholds, -1.0), strict=True):
                        paid[request] += cost[model, request]
                        if learned[model, request] >= threshold:
                            quality[request] = requests.quality[model, request]
                            break
                found.append(mean_of(quality, paid, requests))
        return cheapest(found, q_min)

    def telling(self, scores: np.ndarray) -> list[float]:
        return [
            level
            for below, level in zip((-1.0, *self.LEVELS), self.LEVELS, strict=False)
            if ((scores >= below) != (scores >= level)).any() or level == 0
        ]

    @pytest.mark.parametrize("seed", SEEDS)
    def test_equals_exhaustive_search(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        requests = sample(rng, 3, 9)
        cost = costs_of(rng, requests)
        learned = np.clip(requests.quality + rng.normal(0, 20, requests.quality.shape), 0, 100)
        for q_min in floors_of(requests):
            best = best_list(
                dataclasses.replace(requests, score=learned), cost, all_cells(requests), q_min, lists_of(3)
            )
            wanted = self.exhaustive(requests, learned, cost, q_min)
            assert (best.quality, best.cost) == pytest.approx((wanted.quality, wanted.cost))
            self.check(best, requests, learned)

    def check(self, best: ModelList, requests: ScoredRequests, learned: np.ndarray) -> None:
        reaching = requests.weight > 0
        for model, threshold in zip(best.models, best.thresholds, strict=False):
            reaching = reaching & (learned[model] < threshold)
        assert reaching.any(), "somebody asks the last model, else it would not be on the list"
        assert len(best.thresholds) == len(best.models) - 1

    def test_four_models_of_many_requests(self) -> None:
        rng = np.random.default_rng(1)
        requests = sample(rng, 4, 700)
        cost, learned = costs_of(rng, requests), requests.score
        best = best_list(dataclasses.replace(requests, score=learned), cost, all_cells(requests), 70.0, lists_of(4))
        assert len(best.models) > 1
        assert best.quality >= 70.0
        place = np.argmax(learned[list(best.models)] >= np.array([*best.thresholds, -1.0])[:, None], axis=0)
        quality = requests.quality[np.array(best.models)[place], np.arange(700)]
        paid = cost[list(best.models)].cumsum(axis=0)[place, np.arange(700)]
        assert np.average(quality, weights=requests.weight) == pytest.approx(best.quality)
        assert np.average(paid, weights=requests.weight) == pytest.approx(best.cost)


class TestPolicies:
    VOTES = 3

    def case(self, seed: int, models: int, size: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(seed)
        requests = sample(rng, models, size)
        votes = rng.binomial(self.VOTES, requests.quality[0] / 100)
        return votes, requests.quality, costs_of(rng, requests), requests.weight

    def every(
        self, votes: np.ndarray, quality: np.ndarray, cost: np.ndarray, weight: np.ndarray
    ) -> dict[tuple[int, ...], tuple[float, float]]:
        """Mean quality and cost of all ways to answer each verdict."""
        found = {}
        at = np.arange(votes.size)
        for answers_by in itertools.product(range(len(quality)), repeat=self.VOTES + 1):
            model = np.array(answers_by)[votes]
            paid = cost[0] + np.where(model > 0, cost[model, at], 0.0)
            found[answers_by] = (
                float(np.average(quality[model, at], weights=weight)),
                float(np.average(paid, weights=weight)),
            )
        return found

    @pytest.mark.parametrize("models", [2, 3, 4])
    @pytest.mark.parametrize("seed", SEEDS)
    def test_every_trade_off_between_quality_and_cost_is_there(self, models: int, seed: int) -> None:
        votes, quality, cost, weight = self.case(seed, models)
        found = policies(votes, self.VOTES, quality, cost, weight, smoothing=0)
        every = self.every(votes, quality, cost, weight)
        for policy in found:
            assert (policy.quality, policy.cost) == pytest.approx(every[policy.answers_by])
        for price in np.geomspace(1e-6, 1e2, 200):
            best = max(q - price * c for q, c in every.values())
            assert max(p.quality - price * p.cost for p in found) == pytest.approx(best)
        for policy in found:  # none is there that no λ would choose
            gains = [
                min(policy.quality - price * policy.cost - (q - price * c) for q, c in every.values())
                for price in self.prices(found)
            ]
            assert max(gains) >= -1e-9 * max(abs(c) for _, c in every.values())

    def prices(self, found: list[Policy]) -> list[float]:
        steps = [
            (after.quality - before.quality) / (after.cost - before.cost)
            for before, after in itertools.pairwise(found)
            if after.cost > before.cost
        ]
        return [0.0, *steps, 1e9]

    def test_quality_and_cost_rise_from_policy_to_policy(self) -> None:
        found = policies(*self.arguments(self.case(5, 3)), smoothing=0)
        assert len(found) > 3
        assert found[0].answers_by == (0,) * (self.VOTES + 1)
        assert [p.quality for p in found] == sorted(p.quality for p in found)
        assert [p.cost for p in found] == sorted(p.cost for p in found)

    def arguments(self, case: tuple[np.ndarray, ...]) -> tuple[np.ndarray, int, np.ndarray, np.ndarray, np.ndarray]:
        votes, quality, cost, weight = case
        return votes, self.VOTES, quality, cost, weight

    @pytest.mark.parametrize("smoothing", [0.0, 2.0])
    def test_verdicts_that_nobody_got_are_answered_like_the_nearest(self, smoothing: float) -> None:
        votes = np.array([0, 0, 3, 3, 1])
        quality = np.array([[10.0, 10.0, 90.0, 90.0, 50.0], [80.0, 80.0, 90.0, 90.0, 50.0]])
        weight = np.array([1.0, 1.0, 1.0, 1.0, 0.0])  # nobody who counts got 1 vote
        found = policies(votes, 3, quality, np.array([[1.0] * 5, [5.0] * 5]), weight, smoothing)
        assert (1, 1, 0, 0) in {policy.answers_by for policy in found}

    def test_smoothing_lends_rare_verdicts_what_their_neighbours_know(self) -> None:
        votes = np.array([0] * 50 + [1] + [2] * 50 + [3] * 50)
        quality = np.stack([np.repeat([10.0, 95.0, 50.0, 80.0], [50, 1, 50, 50]), np.full(151, 85.0)])
        cost = np.array([[1.0] * 151, [5.0] * 151])
        raw = policies(votes, 3, quality, cost, np.ones(151), smoothing=0)
        smooth = policies(votes, 3, quality, cost, np.ones(151))
        assert (1, 1, 1, 0) not in {policy.answers_by for policy in raw}
        assert (1, 1, 1, 0) in {policy.answers_by for policy in smooth}

    def test_a_larger_model_that_is_worse_everywhere_is_never_asked(self) -> None:
        votes, quality, cost, weight = self.case(2, 3)
        quality = quality.copy()
        quality[1] = quality[0] - 1
        for policy in policies(votes, self.VOTES, quality, cost, weight):
            assert 1 not in policy.answers_by


class TestSplit:
    def test_follows_the_shares_in_whole_engines(self) -> None:
        assert split_gpus([1.0, 3.0], [range(1, 33), range(1, 33)], 32) == (8, 24)
        assert split_gpus([1.0, 1.0, 1.0], [range(1, 33), range(2, 33, 2), [8, 16, 24, 32]], 32) == (12, 12, 8)

    def test_every_model_gets_its_smallest_engine(self) -> None:
        assert split_gpus([0.001, 1.0], [[4, 8], range(1, 9)], 8) == (4, 4)

    def test_what_does_not_fit_is_told(self) -> None:
        assert split_gpus([1.0, 1.0], [[4], [5]], 8) is None

    @pytest.mark.parametrize("seed", SEEDS)
    def test_no_split_leaves_the_tightest_model_more_gpus_for_its_share(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        share = rng.uniform(0.1, 2, 3).tolist()
        sizes = [sorted(set((rng.choice([1, 2, 4]) * rng.integers(1, 13, 9)).tolist())) for _ in range(3)]
        gpus = sum(usable[0] for usable in sizes) + int(rng.integers(0, 24))
        split = split_gpus(share, sizes, gpus)
        assert split is not None

        def tightest(counts: tuple[int, ...]) -> float:
            return min(count / own for count, own in zip(counts, share, strict=True))

        best = max(tightest(counts) for counts in itertools.product(*sizes) if sum(counts) <= gpus)
        assert tightest(split) == pytest.approx(best)
