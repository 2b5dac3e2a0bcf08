"""Eigenvalues of symmetric 2×2 matrices, to which the Hessian reduces off the row space of W.

    [[a, g], [g, b]]:   λ_± = (a+b)/2 ± √(((a−b)/2)² + g²),   a, b ≥ 0

In this form λ_− loses digits where it is small relative to a + b. From the determinant,
λ_− = (√(ab) − |g|)(√(ab) + |g|)/λ_+, it is accurate to rounding in ab and g².
"""

from decimal import Decimal
from types import ModuleType
from typing import Any

import numpy as np


def eigenvalues(xp: ModuleType, a: Any, b: Any, g: Any) -> tuple[Any, Any]:
    """(λ_−, λ_+) of [[a, g], [g, b]], λ_− to a few ε (ab + g²)/λ_+.

    Args:
        xp: numpy or jax.numpy.
        a, b: ≥ 0; g: any sign; numbers or arrays that broadcast, in the same unit.
    """
    upper = a / 2 + b / 2 + xp.hypot((a - b) / 2, g)
    # Roots first, and factor by factor: the product of two small numbers would underflow.
    root, g = xp.sqrt(a) * xp.sqrt(b), xp.abs(g)
    return (root - g) * ((root + g) / xp.where(upper > 0, upper, 1)), upper


def lower_axis(a: float, b: float, g: float) -> tuple[float, float]:
    """The unit eigenvector of λ_− of [[a, g], [g, b]]: (−sin θ, cos θ), tan 2θ = 2g/(a − b)."""
    angle = np.arctan2(2 * g, a - b) / 2
    return float(-np.sin(angle)), float(np.cos(angle))


def of_determinant(trace: Decimal, determinant: Decimal) -> tuple[Decimal, Decimal]:
    """(λ_−, λ_+) of a symmetric 2×2 matrix from its trace > 0 and an accurate determinant."""
    upper = (trace + (trace * trace - 4 * determinant).sqrt()) / 2
    return determinant / upper, upper
