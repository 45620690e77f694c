from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.special import ndtr

from cascadia_fast.errors import InputError
from cascadia_fast.judge import normal_cdf, simulated_scores, solve_noise_sd

RNG = np.random.default_rng(7)
QUALITIES = {
    "right or wrong": 100.0 * (RNG.random((3, 4000)) < np.array([[0.56], [0.73], [0.78]])),
    "continuous": 100 * RNG.beta(2, 1, (3, 4000)),
    "halves from 1 to 10": RNG.integers(2, 21, (4, 3000)) / 2,
    "a fifth tied at the top": np.minimum(RNG.normal(70, 30, (3, 4000)), 100),
    "rare outliers": np.where(RNG.random((3, 4000)) < 0.001, 0.0, 90 + RNG.random((3, 4000))),
}


def empirical_auc(quality: NDArray[np.float64], score: NDArray[np.float64], pairs: int = 1_000_000) -> float:
    """Share of random pairs of unequal quality that the score orders rightly; a tied score counts half."""
    rng = np.random.default_rng(0)
    first, second = rng.integers(0, quality.size, (2, pairs))
    difference = quality.ravel()[first] - quality.ravel()[second]
    agreement = np.sign(difference) * np.sign(score.ravel()[first] - score.ravel()[second])
    return float((1 + agreement[difference != 0]).mean() / 2)


@pytest.mark.parametrize("auc", [0.6, 0.75, 0.85, 0.95, 0.99])
@pytest.mark.parametrize("name", QUALITIES)
def test_scores_have_the_stated_auc(name: str, auc: float) -> None:
    quality = QUALITIES[name]
    found = [empirical_auc(quality, simulated_scores(quality, auc, seed)) for seed in range(3)]
    assert np.mean(found) == pytest.approx(auc, abs=0.01)


@pytest.mark.parametrize("name", QUALITIES)
def test_auc_one_reproduces_the_order(name: str) -> None:
    quality = QUALITIES[name]
    score = simulated_scores(quality, 1.0, 0)
    order = np.argsort(quality, axis=None)
    steps = np.diff(score.ravel()[order])
    assert (steps >= 0).all()
    assert np.array_equal(steps > 0, np.diff(quality.ravel()[order]) > 0)


def exact_auc(quality: NDArray[np.float64], noise_sd: float, share: float) -> float:
    """The definition, pair by pair."""
    stages, size = quality.shape
    answers = [(prompt, quality[stage, prompt]) for stage in range(stages) for prompt in range(size)]
    right = []
    for index, (prompt, value) in enumerate(answers):
        for other_prompt, other in answers[:index]:
            if value != other:
                own = 1 - share if prompt == other_prompt else 1.0
                right.append(ndtr(abs(value - other) / (noise_sd * math.sqrt(2 * own))))
    return float(np.mean(right))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
@pytest.mark.parametrize("auc", [0.55, 0.8, 0.97])
def test_noise_solves_the_pairwise_definition(auc: float, share: float) -> None:
    # Few prompts, so that pairs of one prompt weigh heavily.
    for quality in (RNG.integers(0, 2, (3, 8)) * 100.0, RNG.random((4, 7)) * 100):
        assert exact_auc(quality, solve_noise_sd(quality, auc, share), share) == pytest.approx(auc, abs=1e-3)


def test_answers_to_one_prompt_share_their_noise() -> None:
    quality = np.tile(100.0 * (RNG.random(20_000) < 0.5), (2, 1))
    for share in (0.0, 0.5, 0.9):
        # Back from the score to the noise; the few saturated scores are cut off.
        z = np.clip(simulated_scores(quality, 0.8, 3, share), 1e-9, 100 - 1e-9) / 100
        noise = np.interp(z, ndtr(np.linspace(-8, 8, 4001)), np.linspace(-8, 8, 4001)) - np.sign(quality - 50)
        assert np.corrcoef(noise)[0, 1] == pytest.approx(share, abs=0.03)


def test_scores_are_set_by_the_seed() -> None:
    quality = QUALITIES["right or wrong"]
    assert np.array_equal(simulated_scores(quality, 0.8, 5), simulated_scores(quality, 0.8, 5))
    assert not np.array_equal(simulated_scores(quality, 0.8, 5), simulated_scores(quality, 0.8, 6))


@given(
    st.lists(st.floats(0, 100), min_size=2, max_size=30).filter(lambda values: max(values) - min(values) > 1e-6),
    st.floats(0.51, 1.0),
)
def test_scores_stay_in_range(values: list[float], auc: float) -> None:
    score = simulated_scores(np.array([values]), auc, 0)
    assert score.shape == (1, len(values))
    assert np.isfinite(score).all()
    assert score.min() >= 0
    assert score.max() <= 100


def test_normal_cdf_agrees_with_scipy() -> None:
    values = np.linspace(-10, 10, 100_001)
    assert np.abs(normal_cdf(values) - ndtr(values)).max() < 2e-7
    assert (np.diff(normal_cdf(values)) >= 0).all()


@pytest.mark.parametrize(
    ("quality", "auc", "seed", "says"),
    [
        ([[1.0, 2.0]], 0.5, 0, "simulated_auc is 0.5"),
        ([[1.0, 2.0]], 1.01, 0, "simulated_auc is 1.01"),
        ([[1.0, 2.0]], float("nan"), 0, "simulated_auc is nan"),
        ([[1.0, 2.0]], 0.8, -1, "seed"),
        ([[3.0, 3.0]], 0.8, 0, "every answer has quality 3"),
        ([[3.0, float("nan")]], 0.8, 0, "missing"),
        ([1.0, 2.0], 0.8, 0, "shape"),
    ],
)
def test_bad_input_is_named(quality: list[object], auc: float, seed: int, says: str) -> None:
    with pytest.raises(InputError, match=says):
        simulated_scores(quality, auc, seed)  # type: ignore[arg-type]


def test_scores_of_a_case_have_the_auc_it_states(repository: Path) -> None:
    from cascadia_fast.problem import Problem

    problem = Problem.read(repository / "benchmarks" / "cases" / "llama20k.yaml")
    requests = problem.workload.requests
    assert problem.judge.simulated_auc is not None
    assert empirical_auc(requests.quality, requests.score) == pytest.approx(problem.judge.simulated_auc, abs=0.01)
