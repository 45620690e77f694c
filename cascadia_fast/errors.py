"""Named errors: bad input, and problems that have no plan.

Every message is one sentence that names the value, the place it stands in, and what would fix it. The command line
prints that sentence and exits with code 2; the Python interface raises the same exceptions.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CascadiaError(Exception):
    """Base of every error this package raises on purpose."""


class InputError(CascadiaError, ValueError):
    """The input is malformed: the message names the value, its place and the fix."""


class NoPlanError(CascadiaError):
    """The input is sound, but no plan satisfies it; the message names the binding constraint."""


class ModelDoesNotFitError(NoPlanError):
    """A model fits no valid (tp, pp) shape of the given GPUs."""


class PoolTooSmallError(NoPlanError):
    """The cluster has too few GPUs for any cascade.

    Parameters
    ----------
    message
        The sentence to print.
    gpus_needed
        The smallest number of GPUs with which a plan exists.
    """

    def __init__(self, message: str, *, gpus_needed: int) -> None:
        super().__init__(message)
        self.gpus_needed = gpus_needed


class QualityUnreachableError(NoPlanError):
    """No routing reaches the quality floor.

    Parameters
    ----------
    message
        The sentence to print.
    best_quality
        The highest mean quality any routing reaches, on the scale 0 to 100.
    thresholds
        The thresholds that reach it (``inf`` means that no score is enough).
    """

    def __init__(self, message: str, *, best_quality: float, thresholds: tuple[float, ...]) -> None:
        super().__init__(message)
        self.best_quality = best_quality
        self.thresholds = thresholds


class RateTooHighError(NoPlanError):
    """No allocation carries the planned rate.

    Parameters
    ----------
    message
        The sentence to print.
    max_rate_per_s
        The largest request rate that some allocation carries, in requests per second.
    """

    def __init__(self, message: str, *, max_rate_per_s: float) -> None:
        super().__init__(message)
        self.max_rate_per_s = max_rate_per_s


class UnsupportedError(NoPlanError):
    """The request is meaningful, but this version cannot answer it; the message says what works instead."""


class CascadiaWarning(UserWarning):
    """Something about the input deserves attention, but a plan can still be made."""


def did_you_mean(value: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to `value`, or an empty string.

    Case does not count, and neither do the separators people mix up in names of models and GPUs.
    """
    by_folded: dict[str, str] = {}
    for word in known:
        by_folded.setdefault(_folded(word), word)
    nearest = difflib.get_close_matches(_folded(value), by_folded, n=1, cutoff=0.5)
    return f"; did you mean {by_folded[nearest[0]]!r}?" if nearest else ""


def _folded(word: str) -> str:
    return word.casefold().replace("_", "-").replace(" ", "-")
