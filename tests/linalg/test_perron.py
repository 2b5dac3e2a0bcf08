"""The spectral radius of the positive part of a Gram matrix, dense and by Collatz and Wielandt."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm.linalg import perron


def exact(B):
    return np.linalg.eigvalsh(np.maximum(B.T @ B, 0))[-1]


@pytest.mark.parametrize("seed", range(4))
def test_both_ways_give_the_radius(seed):
    B = np.random.default_rng(seed).standard_normal((4, 60))
    np.testing.assert_allclose(perron.radius(jnp.asarray(B)), exact(B), rtol=1e-13)
    # Power iteration settles to 1e-13 a step, so a little above.
    found = float(perron.bound(jnp.asarray(B)))
    assert exact(B) * (1 - 1e-13) <= found <= exact(B) * (1 + 1e-9)


@pytest.mark.parametrize("steps", [1, 2, 5])
def test_every_step_of_the_iteration_gives_an_upper_bound(steps):
    B = np.random.default_rng(7).standard_normal((3, 40))
    assert float(perron.bound(jnp.asarray(B), steps)) >= exact(B) * (1 - 1e-13)


def test_a_matrix_that_falls_apart_has_the_radius_of_its_largest_part():
    # Columns along ±e_1 and ±e_2: four parts, of radii 9·2, 4, 1e-20 and 0.
    B = np.array([[3.0, 3.0, -2.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1e-10, 0.0]])
    np.testing.assert_allclose(perron.bound(jnp.asarray(B)), 18, rtol=1e-12)
    np.testing.assert_allclose(perron.radius(jnp.asarray(B)), 18, rtol=1e-14)


def test_many_columns_are_gone_through_in_blocks(monkeypatch):
    """Blocks of 7 rows of a matrix that is never formed, the last one filled up."""
    B = np.random.default_rng(1).standard_normal((5, 200))
    expected = float(perron.bound(jnp.asarray(B)))
    monkeypatch.setattr(perron, "_BLOCK", 7 * 200)
    np.testing.assert_allclose(perron.bound(jnp.asarray(B)), expected, rtol=1e-13)
    monkeypatch.setattr(perron, "DENSE", 100)
    np.testing.assert_allclose(jax.jit(perron.radius)(jnp.asarray(B)), exact(B), rtol=1e-9)
    assert float(perron.radius(jnp.zeros((3, 200)))) == 0
