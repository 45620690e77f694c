"""Student's t for 95 % confidence intervals, without SciPy."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def student_t975(degrees: float) -> float:
    """Return the 97.5 % quantile of Student's t with at least 1, not necessarily whole, degrees of freedom.

    With t = √ν tan θ the probability of |T| < t is c ∫₀^θ cos^(ν-1), smooth enough for 20 Gauss nodes. It is concave in
    θ and the normal quantile lies below the answer, so Newton's steps rise to it without overshooting.
    """
    scale = 2 / math.sqrt(math.pi) * math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2))
    nodes, node_weights = _gauss_legendre()
    theta = math.atan(1.96 / math.sqrt(degrees))
    for _ in range(50):
        integral = float(node_weights @ np.cos((nodes + 1) * theta / 2) ** (degrees - 1)) * theta / 2
        step = (0.95 / scale - integral) / math.cos(theta) ** (degrees - 1)
        theta += step
        if abs(step) <= 1e-14 * theta:
            break
    return math.sqrt(degrees) * math.tan(theta)


@cache
def _gauss_legendre() -> tuple[FloatArray, FloatArray]:
    return np.polynomial.legendre.leggauss(20)
