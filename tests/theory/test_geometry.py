"""Laws of the simplex ETF and of the orthonormal frames that carry it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ufm.theory import geometry

FIXED = [(2, 1, None), (3, 2, None), (17, 20, None)]
TURNED = [(2, 1, 0), (5, 12, 0)]
DTYPES = [jnp.float32, jnp.float64]


def rounding(dtype, size):
    """Inner products of `size` terms, each off by a few units in the last place."""
    return 8 * float(jnp.finfo(dtype).eps) * np.sqrt(size)


@functools.cache
def simplex(K, d, seed=None, dtype=jnp.float64):
    key = None if seed is None else jax.random.key(seed)
    return geometry.simplex_etf(K, d, key, dtype=dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "d", "seed"), FIXED + TURNED)
def test_simplex_rows_are_unit_vectors_at_equal_angles(K, d, seed, dtype):
    M = simplex(K, d, seed, dtype)
    assert M.shape == (K, d)
    assert M.dtype == dtype
    gram = np.asarray(M, float) @ np.asarray(M, float).T
    expected = np.where(np.eye(K) == 1, 1.0, -1 / (K - 1))
    np.testing.assert_allclose(gram, expected, rtol=0, atol=rounding(dtype, d))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("K", "d", "seed"), FIXED + TURNED)
def test_simplex_rows_sum_to_zero(K, d, seed, dtype):
    M = np.asarray(simplex(K, d, seed, dtype), float)
    np.testing.assert_allclose(M.sum(axis=0), 0, atol=K * rounding(dtype, d))


def test_simplex_without_a_key_lies_in_the_first_coordinates():
    M = np.asarray(geometry.simplex_etf(4, 6))
    assert np.all(M[:, 3:] == 0)
    np.testing.assert_array_equal(M, simplex(4, 6))


def test_keys_turn_the_simplex_and_keep_its_shape():
    first, second = (np.asarray(simplex(5, 12, seed)) for seed in (0, 1))
    assert np.max(np.abs(first - second)) > 0.1
    np.testing.assert_allclose(first @ first.T, second @ second.T, atol=rounding(jnp.float64, 12))
    again = np.asarray(geometry.simplex_etf(5, 12, jax.random.key(0)))
    np.testing.assert_array_equal(first, again)


@pytest.mark.parametrize(("K", "d", "got"), [(1, 3, "K=1"), (0, 3, "K=0"), (4, 2, "d=2")])
def test_simplex_refuses_sizes_that_cannot_carry_it(K, d, got):
    with pytest.raises(ValueError, match=got):
        geometry.simplex_etf(K, d)


@pytest.mark.parametrize("K", [2, 3, 7, 60])
def test_helmert_columns_are_an_orthonormal_basis_of_the_complement_of_ones(K):
    E = np.asarray(geometry.helmert(K))
    tolerance = rounding(np.float64, K)
    assert E.shape == (K, K - 1)
    assert E.dtype == np.float64
    np.testing.assert_allclose(E.T @ E, np.eye(K - 1), atol=tolerance)
    np.testing.assert_allclose(E @ E.T, np.eye(K) - 1 / K, atol=tolerance)
    np.testing.assert_allclose(E.sum(axis=0), 0, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("d", "r"), [(1, 1), (12, 4)])
def test_frame_columns_are_orthonormal(d, r, dtype):
    Q = geometry.orthonormal_frame(jax.random.key(3), d, r, dtype)
    assert Q.shape == (d, r)
    assert Q.dtype == dtype
    gram = np.asarray(Q, float).T @ np.asarray(Q, float)
    np.testing.assert_allclose(gram, np.eye(r), atol=rounding(dtype, d))


def test_frame_refuses_more_vectors_than_dimensions():
    with pytest.raises(ValueError, match="r=4"):
        geometry.orthonormal_frame(jax.random.key(0), 3, 4)


def test_frames_have_the_moments_of_the_haar_measure():
    # Of Haar on O(d): E tr Q = 0, E (tr Q)^2 = 1, E det Q = 0 and E Q_ij^2 = 1/d. A QR without its
    # sign correction fails the first three. Five standard errors of the sampled mean.
    draws, d = 4000, 3
    keys = jax.random.split(jax.random.key(11), draws)
    Q = np.asarray(jax.vmap(lambda key: geometry.orthonormal_frame(key, d, d))(keys))
    trace = np.trace(Q, axis1=1, axis2=2)
    statistics = {
        "trace": (trace, 0.0),
        "square of the trace": (trace**2, 1.0),
        "determinant": (np.linalg.det(Q), 0.0),
        "square of an entry": (Q[:, 0, 1] ** 2, 1 / d),
        "corner entry": (Q[:, 0, 0], 0.0),
    }
    for name, (sample, mean) in statistics.items():
        standard_error = np.std(sample) / np.sqrt(draws)
        assert abs(np.mean(sample) - mean) < 5 * standard_error, name


@pytest.mark.parametrize(("K", "d"), [(2, 2), (4, 4), (4, 9)])
def test_a_fixed_classifier_is_a_simplex_that_features_of_one_sign_can_align_with(K, d):
    W = np.asarray(geometry.etf_classifier(K, d))
    expected = np.where(np.eye(K) == 1, 1.0, -1 / (K - 1))
    np.testing.assert_allclose(W @ W.T, expected, atol=rounding(jnp.float64, d))
    # h = e_k ≥ 0 has the same margin over every wrong class, √(K/(K−1)).
    logits = W[:, :K]
    margins = np.diag(logits)[None] - logits
    np.testing.assert_allclose(margins[np.eye(K) == 0], np.sqrt(K / (K - 1)), rtol=1e-14)


def test_a_fixed_classifier_of_width_k_minus_one_or_with_a_key_is_the_simplex():
    np.testing.assert_array_equal(geometry.etf_classifier(4, 3), geometry.simplex_etf(4, 3))
    key = jax.random.key(0)
    turned = geometry.etf_classifier(4, 6, key)
    np.testing.assert_array_equal(turned, geometry.simplex_etf(4, 6, key))
    with pytest.raises(ValueError, match="d=2 < K-1=3"):
        geometry.etf_classifier(4, 2)
