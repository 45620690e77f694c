"""Signals of other systems: as accurate as they are stated to be, and the same for a request wherever it appears."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from cascadia_fast.blueprint_routing import Signal
from cascadia_fast.errors import InputError
from cascadia_fast.signals import charged_tokens, fit_signal, signal_values
from cascadia_fast.workload import ScoredRequests

Kind = Literal["learned_score", "win_probability", "verification"]
VOTES: dict[Kind, int] = {"learned_score": 0, "win_probability": 0, "verification": 8}
SIZE = 4000


def scored(quality: NDArray[np.float64], **changes: Any) -> ScoredRequests:
    stages, size = quality.shape
    ones = np.ones((stages, size))
    fields: dict[str, Any] = {
        "models": tuple(f"model {stage}" for stage in range(stages)),
        "request_ids": np.array([f"request {index}" for index in range(size)]),
        "input_tokens": 100 * ones,
        "output_tokens": 40 * (ones + np.arange(stages)[:, None]),
        "score": 50 * ones,
        "quality": quality,
    }
    return ScoredRequests(**{**fields, **changes})


def qualities() -> dict[str, ScoredRequests]:
    rng = np.random.default_rng(3)
    ability, difficulty = np.array([[0.0], [0.8], [1.5]]), rng.standard_normal(SIZE)
    latent = ability - difficulty + 0.7 * rng.standard_normal((3, SIZE))
    continuous = 100 / (1 + np.exp(-latent))
    return {
        "continuous": scored(continuous),
        "marks of ten": scored(np.round(continuous, -1)),
        "right or wrong": scored(np.where(latent > 0, 100.0, 0.0)),
        "rare outliers": scored(np.where(rng.random((3, SIZE)) < 0.01, 0.0, 90 + continuous / 10)),
    }


REQUESTS = qualities()


def empirical_auc(quality: NDArray[np.float64], signal: NDArray[np.float64]) -> float:
    """Share of random pairs of unequal quality that the signal orders rightly; a tie of the signal counts half."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, quality.size, (2, 1_000_000))
    difference = quality.ravel()[first] - quality.ravel()[second]
    agreement = np.sign(difference) * np.sign(signal.ravel()[first] - signal.ravel()[second])
    return float((1 + agreement[difference != 0]).mean() / 2)


def judged(kind: Kind, requests: ScoredRequests) -> NDArray[np.float64]:
    """What a signal is to tell apart."""
    if kind == "win_probability":
        return np.asarray(requests.quality[-1] - requests.quality[0], np.float64)
    return requests.quality[0] if kind == "verification" else requests.quality


@pytest.mark.parametrize("auc", [0.55, 0.7, 0.8])
@pytest.mark.parametrize("kind", VOTES)
@pytest.mark.parametrize("name", REQUESTS)
def test_signals_have_the_stated_auc(name: str, kind: Kind, auc: float) -> None:
    requests = REQUESTS[name]
    found = []
    for seed in range(4):
        values = signal_values(fit_signal(kind, requests, auc, seed, VOTES[kind]), requests)
        found.append(empirical_auc(judged(kind, requests), values))
    assert np.mean(found) == pytest.approx(auc, abs=0.012)


@pytest.mark.parametrize("kind", VOTES)
def test_the_auc_is_that_of_requests_drawn_by_weight(kind: Kind) -> None:
    """Where all weight lies on 40 requests the fit is theirs, and where weights are equal it is that of all."""
    requests = REQUESTS["marks of ten"]
    few = np.arange(SIZE) % 100 == 7
    weighted = dataclasses.replace(requests, weight=few.astype(float))
    alone = fit_signal(kind, requests.select(few), 0.7, 0, VOTES[kind])
    found = fit_signal(kind, weighted, 0.7, 0, VOTES[kind])
    assert found.center == pytest.approx(alone.center, rel=0.01)
    assert found.spread == pytest.approx(alone.spread, rel=0.02)
    assert found.noise_sd == pytest.approx(alone.noise_sd, rel=0.05)
    assert fit_signal(kind, requests, 0.7, 0, VOTES[kind]).noise_sd != found.noise_sd


def test_shapes_and_ranges() -> None:
    requests = REQUESTS["continuous"]
    learned = signal_values(fit_signal("learned_score", requests, 0.8, 0), requests)
    assert learned.shape == (3, SIZE)
    assert 0 <= learned.min() < 5 < 95 < learned.max() <= 100
    wins = signal_values(fit_signal("win_probability", requests, 0.8, 0), requests)
    assert wins.shape == (SIZE,)
    assert 0 <= wins.min() < 0.05 < 0.95 < wins.max() <= 1
    votes = signal_values(fit_signal("verification", requests, 0.7, 0, 8), requests)
    assert set(np.unique(votes)) == {count / 8 for count in range(9)}


@pytest.mark.parametrize("kind", ["learned_score", "win_probability"])
def test_an_auc_of_one_orders_everything(kind: Kind) -> None:
    requests = REQUESTS["continuous"]
    values = signal_values(fit_signal(kind, requests, 1.0, 0), requests)
    order = np.argsort(judged(kind, requests), axis=None)
    assert (np.diff(values.ravel()[order]) >= 0).all()


@pytest.mark.parametrize("kind", VOTES)
def test_a_request_has_one_signal_among_any_others(kind: Kind) -> None:
    """What is planned on one half must not depend on the order of requests, nor on how long other names are."""
    requests = REQUESTS["continuous"]
    signal = fit_signal(kind, requests, 0.7, 5, VOTES[kind])
    whole = signal_values(signal, requests)
    chosen = np.random.default_rng(1).permutation(SIZE)[:500]
    assert np.array_equal(signal_values(signal, requests.select(chosen)), whole[..., chosen])
    longer = dataclasses.replace(requests, request_ids=np.append(requests.request_ids[:-1], "x" * 40))
    assert np.array_equal(signal_values(signal, longer)[..., :-1], whole[..., :-1])
    other = signal_values(dataclasses.replace(signal, seed=6), requests)
    assert not np.array_equal(other, whole)


def test_learned_scores_do_not_depend_on_which_other_models_there_are() -> None:
    requests = REQUESTS["marks of ten"]
    signal = fit_signal("learned_score", requests, 0.8, 2)
    whole = signal_values(signal, requests)
    assert np.array_equal(signal_values(signal, requests.of_models([0, 2])), whole[[0, 2]])


def test_answers_to_one_request_share_half_of_the_noise() -> None:
    requests = scored(np.tile(np.linspace(0, 100, SIZE), (2, 1)))
    signal = Signal("learned_score", 0.7, 0, 50.0, 1e12, 1.0)  # noise alone
    first, second = signal_values(signal, requests)
    # Uniform ranks of normals of correlation 1/2 have 6/π asin(1/4).
    assert np.corrcoef(first, second)[0, 1] == pytest.approx(6 / np.pi * np.arcsin(0.25), abs=0.04)
    assert first.mean() == pytest.approx(50, abs=1.5)
    assert first.std() == pytest.approx(100 / np.sqrt(12), rel=0.03)


def test_a_fitted_signal_is_a_map_for_other_requests() -> None:
    """Quality and noise of the request alone decide: a better answer never looks worse with the same noise."""
    requests = REQUESTS["continuous"]
    signal = fit_signal("verification", requests, 0.7, 0, 8)
    better = dataclasses.replace(requests, quality=np.minimum(requests.quality + 5, 100))
    assert (signal_values(signal, better) >= signal_values(signal, requests)).all()


@pytest.mark.parametrize("kind", VOTES)
def test_equal_qualities_leave_nothing_to_order(kind: Kind) -> None:
    requests = scored(np.full((2, 50), 70.0))
    signal = fit_signal(kind, requests, 0.8, 0, VOTES[kind])
    assert (signal.spread, signal.noise_sd) == (1.0, 0.0)
    if kind != "verification":
        assert np.unique(signal_values(signal, requests)).tolist() == [50.0 if kind == "learned_score" else 0.5]


def test_few_votes_cannot_be_very_accurate() -> None:
    requests = REQUESTS["continuous"]
    with pytest.raises(InputError, match=r"verification by 1 votes is 0\.8; so few votes reach at most 0\.75"):
        fit_signal("verification", requests, 0.8, 0, 1)
    assert fit_signal("verification", requests, 0.8, 0, 8).noise_sd > 0


@pytest.mark.parametrize(
    ("kind", "auc", "votes", "message"),
    [
        ("learned_score", 0.5, 0, "Signal.auc is 0.5"),
        ("win_probability", 1.1, 0, "Signal.auc is 1.1"),
        ("verification", 0.7, 0, "Signal.votes is 0"),
        ("learned_score", 0.7, 8, "Signal.votes is 8"),
    ],
)
def test_bad_numbers_are_refused(kind: Kind, auc: float, votes: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        fit_signal(kind, REQUESTS["continuous"], auc, 0, votes)


def test_verification_is_charged_to_the_first_model() -> None:
    requests = REQUESTS["continuous"]
    tokens_in, tokens_out = charged_tokens(fit_signal("verification", requests, 0.7, 0, 8), requests)
    assert set(tokens_in[0]) == {100 + 100 + 40}
    assert set(tokens_out[0]) == {40 + 8}
    assert np.array_equal(tokens_in[1:], requests.input_tokens[1:])
    assert np.array_equal(tokens_out[1:], requests.output_tokens[1:])
    for signal in (
        None,
        fit_signal("win_probability", requests, 0.7, 0),
        fit_signal("learned_score", requests, 0.7, 0),
    ):
        assert charged_tokens(signal, requests) == (requests.input_tokens, requests.output_tokens)
