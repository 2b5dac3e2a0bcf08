"""Simplex equiangular tight frames and the orthonormal frames that carry them.

A simplex ETF of K classes is the set of unit vectors m_1 … m_K with

    ⟨m_j, m_k⟩ = K/(K−1) · (δ_jk − 1/K),

the most separated configuration of K unit vectors; it spans K−1 dimensions
(Papyan, Han and Donoho 2020, definition 1).
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.linalg.products import matmul
from ufm.runtime import programs


def helmert(K: int) -> Float[np.ndarray, "K K-1"]:
    """Orthonormal basis E (K, K−1) of the complement of 1: EᵀE = I, Eᵀ1 = 0, E Eᵀ = I − 11ᵀ/K.

    Column j = 0 … K−2 is (1, …, 1, −(j+1), 0, …, 0)/√((j+1)(j+2)) with j+1 leading ones (Helmert's
    contrasts), in float64.

    Raises:
        Refused: if K < 1.
    """
    K = check.integer("K", K, 1)
    basis = np.zeros((K, K - 1))
    for j in range(K - 1):
        basis[: j + 1, j] = 1.0
        basis[j + 1, j] = -(j + 1.0)
        basis[:, j] /= np.sqrt((j + 1.0) * (j + 2.0))
    return basis


def orthonormal_frame(key: Array, d: int, r: int, dtype=None) -> Float[Array, "d r"]:
    """Q with QᵀQ = I_r, Haar distributed on the Stiefel manifold of r-frames in R^d.

    QR of a Gaussian matrix with the signs of R's diagonal moved into Q (Mezzadri 2007), without
    which QR would prefer some orientations.

    Raises:
        Refused: if r > d, since no such frame exists.
    """
    d, r = check.integer("d", d, 1), check.integer("r", r, 0)
    if r > d:
        raise Refused(f"got r={r} > d={d}: R^{d} has at most {d} orthonormal vectors; lower r")
    return _haar(check.key(key), d, r, check.floating("dtype", dtype))


@partial(programs.once, level=1, static_argnames=("d", "r", "dtype"))
def _haar(key: Array, d: int, r: int, dtype) -> Array:
    Q, R = jnp.linalg.qr(jax.random.normal(key, (d, r), dtype))
    return Q * jnp.where(jnp.diagonal(R) < 0, -1, 1).astype(Q.dtype)


def numpy_frame(key: Array | None, d: int, r: int) -> np.ndarray:
    """`orthonormal_frame` in NumPy float64, (d, r); without a key the first r unit vectors."""
    if key is None:
        return np.eye(d, r)
    with jax.enable_x64(True):
        return np.asarray(orthonormal_frame(key, d, r, jnp.float64))


def simplex_etf(K: int, d: int, key: Array | None = None, dtype=None) -> Float[Array, "K d"]:
    """Rows m_k of a simplex ETF: M Mᵀ = K/(K−1) (I − 11ᵀ/K), ‖m_k‖ = 1, Σ_k m_k = 0.

    Args:
        K: number of classes, at least 2.
        d: width, at least K − 1.
        key: draws a Haar-random orientation; None puts the frame in the first K−1 coordinates.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: if K < 2 or d < K − 1.
    """
    K = check.integer("K", K, 2, why="a simplex needs two classes")
    d = check.integer("d", d, 1)
    if d < K - 1:
        raise Refused(
            f"got d={d} < K-1={K - 1}: a simplex ETF of K={K} vectors spans K-1 dimensions; "
            f"use d >= {K - 1}"
        )
    check.fits(f"K={K}, d={d}: a frame (K, d)", 4 * K * d, "Lower K or d")
    frame = jnp.asarray(np.sqrt(K / (K - 1)) * helmert(K), check.floating("dtype", dtype))
    if key is None:
        return jnp.pad(frame, ((0, 0), (0, d - K + 1)))
    Q = orthonormal_frame(key, d, K - 1, frame.dtype)
    return matmul(frame, Q.T)


def etf_classifier(K: int, d: int, key: Array | None = None, dtype=None) -> Float[Array, "K d"]:
    """W for a classifier that is fixed to a simplex ETF: logits W h + b, rows of norm 1.

    W = √(K/(K−1)) (I_K − 11ᵀ/K), followed by d − K columns of zeros (Zhu et al. 2021, section
    5.3). In this orientation non-negative features, as a ReLU makes them, can be aligned: h = t e_k
    has the margin t√(K/(K−1)) over every wrong class. For d = K − 1 there is no such orientation
    and the result is `simplex_etf(K, d)`. In any framework, use it as a weight that is not trained:
    `np.asarray(etf_classifier(K, d))`.

    Args:
        K: number of classes, at least 2.
        d: width of the features, at least K − 1.
        key: draws a Haar-random orientation, for features of both signs; None takes the one above.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: if K < 2 or d < K − 1.
    """
    K, d = check.integer("K", K, 2, why="a simplex needs two classes"), check.integer("d", d, 1)
    if key is not None or d < K:
        return simplex_etf(K, d, key, dtype)
    check.fits(f"K={K}, d={d}: W (K, d)", 4 * K * d, "Lower K or d")
    frame = np.sqrt(K / (K - 1)) * (np.eye(K) - 1 / K)
    return jnp.pad(jnp.asarray(frame, check.floating("dtype", dtype)), ((0, 0), (0, d - K)))
