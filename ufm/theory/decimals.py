"""Decimals as long as the decays of a problem need, and their rounding to float64."""

import dataclasses
import decimal
import functools
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from ufm.check import Refused
from ufm.model import layers
from ufm.model.problem import Problem, check_problem

DIGITS = 700  # the most: quotients of float64 numbers span 1e±616; 80 digits more


def scalar_decays(problem: Problem) -> tuple[float, float, float]:
    """(λ_W, λ_H, λ_b) as Python numbers; refuses arrays, and features that are not free."""
    check_problem(problem)
    layers.require_free(problem, "ufm.theory.spectra")
    decays = (problem.lam_W, problem.lam_H, problem.lam_b)
    return tuple(float(lam) for lam in decays)  # type: ignore[return-value]


def digits(problem: Problem) -> int:
    """80, and ten for each power of ten that a decay or a size is from 1; `DIGITS` at most.

    An eigenvalue of a block of five rows is at least its determinant over the fourth power of its
    norm: ten factors of the magnitude of the decays and sizes, or their inverses.
    """
    given = (*scalar_decays(problem), problem.K, problem.N)
    farthest = max(abs(math.log10(x)) for x in given if x > 0)
    return min(DIGITS, 80 + math.ceil(10 * farthest))


def exact(compute: Callable) -> Callable:
    """Compute with decimals of `digits` digits, once for each problem."""

    @functools.lru_cache(maxsize=256)
    def cached(problem):
        with decimal.localcontext(decimal.Context(prec=digits(problem))):
            return compute(problem)

    @functools.wraps(compute)
    def call(problem: Problem) -> Any:
        lam_W, lam_H, lam_b = scalar_decays(problem)
        return cached(dataclasses.replace(problem, lam_W=lam_W, lam_H=lam_H, lam_b=lam_b))

    return call


def rounded(value: Decimal) -> float:
    """The nearest float64.

    Raises:
        Refused: it would be infinite, 0 for a number that is not 0, or subnormal.
    """
    result = float(value)
    if value and not float(np.finfo(np.float64).tiny) <= abs(result) < np.inf:
        raise Refused(
            f"got decays at which a result is {value:.3g}, beyond float64; allowed: decays that "
            "are closer to one another"
        )
    return result
