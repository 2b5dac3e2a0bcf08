"""The two-by-two against 60 digits, over forty decades of its entries."""

from decimal import Decimal, localcontext

import jax.numpy as jnp
import numpy as np
import pytest

from ufm.linalg import pair

EPS = np.finfo(np.float64).eps


def entries(count, seed):
    """(a, b, g): random, at and beside the threshold g² = ab, and with zeros."""
    generator = np.random.default_rng(seed)
    for i in range(count):
        a, b, g = 10 ** generator.uniform(-20, 20, 3)
        g *= generator.choice([-1, 1])
        if i % 3 == 0:  # λ₋ is almost nothing beside λ₊
            g = np.sqrt(a) * np.sqrt(b) * (1 + generator.choice([-1, 1]) * 10 ** -(i % 16))
        yield a, b, g
    yield from [(1.0, 0.0, 0.0), (0.0, 2.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, -3.0), (1e-200,) * 3]


def exact(a, b, g):
    """(λ₋, λ₊, (ab + g²)/λ₊) in 60 digits beyond the hundred that the range of entries takes."""
    with localcontext() as context:
        context.prec = 160
        a, b, g = map(Decimal, (float(a), float(b), float(g)))
        root = (((a - b) / 2) ** 2 + g * g).sqrt()
        mean = (a + b) / 2
        scale = (a * b + g * g) / (mean + root) if mean + root else Decimal(0)
        return mean - root, mean + root, scale


@pytest.mark.parametrize("xp", [np, jnp], ids=["numpy", "jax"])
def test_both_eigenvalues_are_exact_to_rounding_in_the_terms_of_the_determinant(xp):
    a, b, g = (xp.asarray(x) for x in np.array(list(entries(300, 0))).T)
    lower, upper = map(np.asarray, pair.eigenvalues(xp, a, b, g))
    for found, top, numbers in zip(lower, upper, zip(a, b, g, strict=True), strict=True):
        least, most, scale = exact(*numbers)
        assert abs(Decimal(float(top)) - most) <= Decimal(4 * EPS) * most
        # √a √b, its sum and difference with g, the quotient and λ₊: eight roundings.
        assert abs(Decimal(float(found)) - least) <= Decimal(8 * EPS) * scale


def test_the_axis_is_a_unit_eigenvector_of_the_lower_eigenvalue():
    for a, b, g in entries(100, 1):
        alpha, gamma = pair.lower_axis(a, b, g)
        assert alpha**2 + gamma**2 == pytest.approx(1, rel=4 * EPS)
        least, most, _ = exact(a, b, g)
        left = a * alpha + g * gamma - float(least) * alpha, g * alpha + b * gamma
        assert abs(left[0]) <= 8 * EPS * float(most)
        assert abs(left[1] - float(least) * gamma) <= 8 * EPS * float(most)


def test_the_form_of_the_determinant_is_the_same_two_by_two():
    for a, b, g in entries(100, 2):
        least, most, scale = exact(a, b, g)
        if not most:
            continue
        with localcontext() as context:
            context.prec = 160
            a, b, g = map(Decimal, (float(a), float(b), float(g)))
            lower, upper = pair.of_determinant(a + b, a * b - g * g)
        assert abs(lower - least) <= Decimal("1e-60") * max(scale, abs(least))
        assert abs(upper - most) <= Decimal("1e-60") * most
