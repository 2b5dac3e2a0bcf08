"""Lanczos' matrix against the moments of the operator, and where the space is exhausted."""

import jax.numpy as jnp
import numpy as np

from ufm.linalg.tridiagonal import tridiagonal


def operator(eigenvalues, seed=0):
    """(A with these eigenvalues in a random basis, a random unit vector)."""
    generator = np.random.default_rng(seed)
    Q, _ = np.linalg.qr(generator.standard_normal((len(eigenvalues), len(eigenvalues))))
    v = generator.standard_normal(len(eigenvalues))
    return (Q * np.asarray(eigenvalues)) @ Q.T, v / np.linalg.norm(v)


def reduced(A, v, steps):
    return np.asarray(tridiagonal(lambda x: jnp.asarray(A) @ x, jnp.asarray(v), steps))


def test_the_first_entry_of_powers_of_t_is_the_moment_up_to_twice_the_steps():
    """(T^k)_11 = vᵀ A^k v for k ≤ 2m − 1: Gauss's quadrature (Golub and Meurant 2010)."""
    A, v = operator(np.linspace(-1, 1, 30))
    T = reduced(A, v, 6)
    np.testing.assert_array_equal(T, np.triu(np.tril(T, 1), -1))
    for k in range(12):
        moment = v @ np.linalg.matrix_power(A, k) @ v
        np.testing.assert_allclose(np.linalg.matrix_power(T, k)[0, 0], moment, atol=1e-14)
    assert abs(np.linalg.matrix_power(T, 12)[0, 0] - v @ np.linalg.matrix_power(A, 12) @ v) > 1e-6


def test_all_steps_give_all_eigenvalues_however_close():
    """Without orthogonalisation copies of the outer ones would appear."""
    eigenvalues = np.concatenate([np.linspace(0, 1e-3, 38), [1.0, 100.0]])
    A, v = operator(eigenvalues)
    np.testing.assert_allclose(np.linalg.eigvalsh(reduced(A, v, 40)), eigenvalues, atol=1e-12)


def test_an_exhausted_space_leaves_zeros():
    A, v = operator(np.repeat([-2.0, 1.0, 5.0], 7))
    T = reduced(A, v, 8)
    np.testing.assert_allclose(np.linalg.eigvalsh(T[:3, :3]), [-2, 1, 5], rtol=1e-13)
    assert not T[3:].any()
    assert not T[:, 3:].any()
