"""The Schur complement of ∇²f on (W, b), with the features eliminated, and its inertia.

The H-block of ∇²f − σI is block diagonal with blocks A_j = w_j WᵀS_jW + (λ_j−σ)I, λ_j = λ_H ω_j.
With h̃ = (h, 1), B = w_j S_jW, U = BA_j⁻¹ and m_j the number of samples in column j, the complement
C(σ) is a sum of Kronecker products: its entry at the variables (k, a) and (l, b) of [W b] is

    decay − σδ + Σ_j m_j [ (w_j S_j − UBᵀ)_kl h̃_a h̃_b − h̃_a U_kb G_l − G_k U_la h̃_b
                           − G_k G_l (A_j⁻¹)_ab ]

(U and A_j⁻¹ are 0 at the bias). It is assembled by matrix products of shapes (s², M)·(M, K²) over
blocks of samples. Its negative eigenvalues are counted from an LDLᵀ factorisation. Where some
features are held fixed (`ufm.hessian.supports`), U and A_j⁻¹ are 0 there as well.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import scipy.linalg

from ufm.hessian.reduction import (
    SAMPLE_BLOCK,
    Core,
    decay_diagonal,
    feature_eigenvalues,
    lifted,
    outside,
)
from ufm.model.problem import Problem
from ufm.runtime.threads import lapack_on_one_thread


class Elimination(NamedTuple):
    """A point whose features are eliminated, with what a count of eigenvalues needs.

    core: the point.  size: the number of eigenvalues in all.
    complement: σ ↦ C(σ).
    poles: makes the eigenvalues of all A_j + σI, where elimination is singular.
    outside: makes (the eigenvalues outside the core, their multiplicities).
    """

    core: Core
    size: int
    complement: Callable[[float], np.ndarray]
    poles: Callable[[], np.ndarray]
    outside: Callable[[], tuple[np.ndarray, list[int]]]


class Sums(NamedTuple):
    """The three sums over samples from which C(σ) is assembled; r is the rank of the core.

    own: Σ m h̃_a h̃_b (wS − UBᵀ)_kl, packed in (a, b) and in (k, l).
    mixed: Σ m U_kb h̃_a G_l, (K r, width K) in the order (k, b), (a, l).
    turned: Σ m G_k G_l (A⁻¹)_ab, packed in (k, l) and in (a, b).
    """

    own: np.ndarray
    mixed: np.ndarray
    turned: np.ndarray


class Columns(NamedTuple):
    """h̃ (B, width), G (B, K) and the numbers of samples (B, 1) of B columns, one a row."""

    features: np.ndarray
    G: np.ndarray
    merged: np.ndarray


def zero_sums(K: int, width: int, r: int) -> Sums:
    """The sums over no samples."""
    classes = K * (K + 1) // 2
    own, mixed = np.zeros((width * (width + 1) // 2, classes)), np.zeros((K * r, width * K))
    return Sums(own, mixed, np.zeros((classes, r * (r + 1) // 2)))


def width_of(core: Core) -> int:
    """Rows of C(σ): the variables W and b of the core."""
    return core.W.shape[0] * (core.W.shape[1] + core.bias)


# A bisection asks for the same few sizes again and again.
@lru_cache(maxsize=8)
def _upper(size: int) -> tuple[np.ndarray, np.ndarray]:
    return np.triu_indices(size)


def _products(X: np.ndarray) -> np.ndarray:
    """x_a x_b for a ≤ b, one row a sample."""
    rows, columns = _upper(X.shape[1])
    return X.take(rows, axis=1) * X.take(columns, axis=1)


def _packed(A: np.ndarray) -> np.ndarray:
    """Upper triangles of symmetric matrices, one row each."""
    size = A.shape[1]
    rows, columns = _upper(size)
    return A.reshape(len(A), -1).take(rows * size + columns, axis=1)


@lru_cache(maxsize=8)
def _unpacked_index(size: int) -> np.ndarray:
    """The position of entry (a, b) of a symmetric matrix in its packed upper triangle."""
    index = np.zeros((size, size), int)
    rows, columns = _upper(size)
    index[rows, columns] = index[columns, rows] = np.arange(len(rows))
    return index


def add(sums: Sums, columns: Columns, left: np.ndarray, U: np.ndarray, inverse: np.ndarray) -> None:
    """Add the terms of some columns: `left` is wS − UBᵀ, `inverse` A⁻¹."""
    h, g, weights = columns
    sums.own[:] += _products(h).T @ (weights * _packed(left))
    pairs = (h[:, :, None] * g[:, None, :]).reshape(len(h), -1)
    sums.mixed[:] += (weights * U.reshape(len(h), -1)).T @ pairs
    sums.turned[:] += _products(g).T @ (weights * _packed(inverse))


def assembled(core: Core, sigma: float, sums: Sums) -> np.ndarray:
    """C(σ), (K width, K width), from its sums and the decay."""
    (K, s), r = core.W.shape, core.rank
    width = s + core.bias
    classes, dims = _unpacked_index(K), _unpacked_index(width)
    C = sums.own[dims[None, :, None, :], classes[:, None, :, None]]
    cross = sums.mixed.reshape(K, r, width, K).transpose(0, 2, 3, 1)
    C[..., :r] -= cross
    C[:, :r] -= cross.transpose(2, 3, 0, 1)
    inner = _unpacked_index(r)[None, :, None, :]
    C[:, :r, :, :r] -= sums.turned[classes[:, None, :, None], inner]
    gram = (core.G * (core.merged / (core.decay - sigma))) @ core.G.T
    for a in range(r, s):
        C[:, a, :, a] -= gram
    C = C.reshape(K * width, K * width)
    C[np.diag_indices_from(C)] += decay_diagonal(core, width) - sigma
    return C


def complement(core: Core, sigma: float) -> np.ndarray:
    """C(σ), the Schur complement of ∇²f − σI on (W, b) in the core; see the module's docstring.

    Needs O((Ks)²) memory and O(K² + s²) for each sample of a block, never O(Ks·N).
    """
    r, features = core.rank, lifted(core)
    sums = zero_sums(len(core.W), features.shape[1], r)
    for start in range(0, len(features), SAMPLE_BLOCK):
        part = slice(start, start + SAMPLE_BLOCK)
        S = core.S.columns(part).matrices() * core.weight[part, None, None]
        B = S @ core.W[:, :r]
        A = core.W[:, :r].T @ B + (core.decay[part] - sigma)[:, None, None] * np.eye(r)
        inverse = np.linalg.inv(A)
        # One step of iterative refinement, as accurate as a solve: B A⁻¹ Bᵀ is of order 1 where
        # A⁻¹ is as large as 1/λ_H.
        U = B @ inverse
        U += (B - U @ A) @ inverse
        columns = Columns(features[part], core.G[:, part].T, core.merged[part, None])
        add(sums, columns, S - U @ B.transpose(0, 2, 1), U, inverse)
    return assembled(core, sigma, sums)


def poles(core: Core) -> np.ndarray:
    """The eigenvalues of the H-block of the core, λ_j + eig(w_j WᵀS_jW), s for each column."""
    s, M = core.H.shape
    own = core.decay[:, None] + feature_eigenvalues(core, np.arange(M))
    return np.append(own.ravel(), np.repeat(core.decay, s - core.rank))


def freely(problem: Problem, core: Core) -> Elimination:
    """The elimination of all features of a point with free features."""
    return Elimination(
        core,
        problem.size,
        lambda sigma: complement(core, sigma),
        lambda: poles(core),
        lambda: outside(core),
    )


def negatives(C: np.ndarray) -> int:
    """Negative eigenvalues of a symmetric matrix, from its pivots (Bunch and Kaufman 1977).

    D in LDLᵀ, with 1×1 and 2×2 pivots, has the inertia of C (Sylvester); each 2×2 pivot has a
    negative determinant, hence one eigenvalue of either sign.
    """
    if C.shape[0] == 0:
        return 0
    # DCD has the same inertia. With a diagonal near 1 the large entries of W, of size ‖G‖²/λ_H, do
    # not round away the small ones of b. Powers of 2 are exact.
    unit = np.exp2(-np.round(np.log2(np.maximum(np.abs(np.diagonal(C)), np.finfo(float).tiny)) / 2))
    C = C * unit[:, None] * unit
    work, _ = scipy.linalg.lapack.dsytrf_lwork(C.shape[0], lower=1)
    # C is symmetric: its transpose is the same matrix in the order that LAPACK overwrites. On one
    # thread: its panels are many short calls, whose threads wait for each other (0.45 s at 3,250
    # rows against 2 to 14 s on two cores that have other work).
    with lapack_on_one_thread():
        factor, pivots, _ = scipy.linalg.lapack.dsytrf(C.T, lower=1, lwork=int(work), overwrite_a=1)
    singles = pivots > 0
    return int(np.sum(np.diagonal(factor)[singles] < 0)) + int(np.sum(~singles)) // 2
