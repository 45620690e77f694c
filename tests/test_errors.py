from __future__ import annotations

import pytest

from cascadia_fast.errors import (
    CascadiaError,
    InputError,
    ModelDoesNotFitError,
    NoPlanError,
    PoolTooSmallError,
    QualityUnreachableError,
    RateTooHighError,
    UnsupportedError,
    did_you_mean,
)


def test_bad_input_is_a_value_error_and_no_plan_is_not() -> None:
    assert issubclass(InputError, ValueError)
    assert issubclass(InputError, CascadiaError)
    assert not issubclass(InputError, NoPlanError)
    for kind in (ModelDoesNotFitError, PoolTooSmallError, QualityUnreachableError, RateTooHighError, UnsupportedError):
        assert issubclass(kind, NoPlanError)
        assert not issubclass(kind, ValueError)


def test_errors_carry_what_would_fix_them() -> None:
    assert PoolTooSmallError("too few", gpus_needed=20).gpus_needed == 20
    unreachable = QualityUnreachableError("too high", best_quality=84.9, thresholds=(50.0, float("inf")))
    assert (str(unreachable), unreachable.best_quality, unreachable.thresholds[0]) == ("too high", 84.9, 50)
    assert RateTooHighError("too fast", max_rate_per_s=2.5).max_rate_per_s == 2.5


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("wieghts", "; did you mean 'weights'?"),
        ("KV_dtype", "; did you mean 'kv_dtype'?"),
        ("kv-dtype", "; did you mean 'kv_dtype'?"),
        ("zzz", ""),
    ],
)
def test_nearest_known_word(word: str, hint: str) -> None:
    assert did_you_mean(word, ["model", "weights", "kv_dtype"]) == hint
