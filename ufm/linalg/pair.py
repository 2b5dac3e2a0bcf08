"""Eigenvalues of the two-by-two to which everything off the row space reduces.

    [[a, g], [g, b]]:   λ_± = (a+b)/2 ± √(((a−b)/2)² + g²),   a, b ≥ 0

The lower one as it stands loses what is small beside a + b. From the determinant,
λ_− = (√(ab) − |g|)(√(ab) + |g|)/λ_+, it is known to rounding in ab and g². Knows no model.
"""

from decimal import Decimal
from types import ModuleType
from typing import Any

import numpy as np


def eigenvalues(xp: ModuleType, a: Any, b: Any, g: Any) -> tuple[Any, Any]:
    """(λ_−, λ_+) of [[a, g], [g, b]], λ_− to a few ε (ab + g²)/λ_+.

    Args:
        xp: numpy or jax.numpy.
        a, b: ≥ 0; g: any sign; numbers or arrays that broadcast, of the same units.
    """
    upper = a / 2 + b / 2 + xp.hypot((a - b) / 2, g)
    root, g = xp.sqrt(a) * xp.sqrt(b), xp.abs(g)
    # Factor by factor: the product of two small numbers would underflow.
    return (root - g) * ((root + g) / xp.where(upper > 0, upper, 1)), upper


def lower_axis(a: float, b: float, g: float) -> tuple[float, float]:
    """The unit eigenvector of λ_− of [[a, g], [g, b]]: (−sin θ, cos θ), tan 2θ = 2g/(a − b)."""
    angle = np.arctan2(2 * g, a - b) / 2
    return float(-np.sin(angle)), float(np.cos(angle))


def of_determinant(trace: Decimal, determinant: Decimal) -> tuple[Decimal, Decimal]:
    """(λ_−, λ_+) of a two-by-two of trace > 0 whose determinant is known without cancellation."""
    upper = (trace + (trace * trace - 4 * determinant).sqrt()) / 2
    return determinant / upper, upper
