"""Elimination of the features that are not 0, where H ≥ 0: ∇²f on the face of a point.

The variables of the face of a point are W, b and the entries of H that are not 0; the zeros of H
stay fixed. With F_j the nonzero entries of column j and λ_j its decay less the shift, its block is

    A_j = λ_j I + w_j W_FᵀS_jW_F,   W_F the columns F_j of W.

Let S = LDLᵀ with a diagonal D of signs, and M_j = λ_j D_j + w_j L_jᵀW_FW_FᵀL_j, which has K rows
whatever d is. Woodbury's formula then gives the parts of the complement (`ufm.hessian.schur`):

    X = w LM⁻¹Lᵀ,   wS − UBᵀ = λ_j X,   U = XW_F,   A⁻¹ = (I_F − W_FᵀXW_F)/λ_j.

Equal samples are merged as for free features: m of them are one column and m − 1 copies of A_j.
"""

from typing import NamedTuple

import numpy as np

from ufm.hessian.reduction import EPS, SAMPLE_BLOCK, Core, by_class, gathered, lifted
from ufm.hessian.schur import Columns, Elimination, add, assembled, zero_sums
from ufm.model.evaluation import Residuals
from ufm.model.problem import Problem

_BLOCK_BYTES = 2**26  # of the matrices A⁻¹ of one block of columns


class _Face(NamedTuple):
    """core: in the coordinates of the point.  moves: (M, d), which entries of a column are free."""

    core: Core
    moves: np.ndarray


def elimination(problem: Problem, at: Residuals) -> Elimination:
    """Eliminate the features of a point with H ≥ 0 that are not 0.

    Args:
        problem: with features="nonnegative".
        at: a point of it.
    """
    near = 64 * EPS * np.max(at.params.H)
    equal = [
        bool(np.all((x > 0) == (x[:, :1] > 0)) and np.max(np.ptp(x, axis=1)) <= near)
        for x in by_class(problem, at.params.H)
    ]
    core = gathered(at, equal)
    face = _Face(core, core.H.T > 0)
    size = problem.K * (problem.d + problem.bias) + int(np.sum(at.params.H > 0))
    return Elimination(
        core,
        size,
        lambda sigma: _complement(face, sigma),
        lambda: np.repeat(*_eigenvalues(face, np.arange(len(core.merged)))),
        lambda: _differences(face),
    )


def _factors(core: Core, part: slice) -> tuple[np.ndarray, np.ndarray]:
    """(√w L, the signs D) of w S = LDLᵀ."""
    values, vectors = np.linalg.eigh(core.S.columns(part).matrices())
    values = np.maximum(values, 0) if core.convex else values
    root = np.sqrt(core.weight[part, None] * np.abs(values))
    return vectors * root[:, None, :], np.where(values < 0, -1.0, 1.0)


def _complement(face: _Face, sigma: float) -> np.ndarray:
    """C(σ), by blocks of columns."""
    core, moves = face
    (K, d), features = core.W.shape, lifted(core)
    sums = zero_sums(K, features.shape[1], d)
    block = min(SAMPLE_BLOCK, max(1, _BLOCK_BYTES // (8 * d * d)))
    dims = np.arange(d)
    for start in range(0, len(features), block):
        part = slice(start, start + block)
        L, D = _factors(core, part)
        left = L.transpose(0, 2, 1)
        rows = (left.reshape(-1, K) @ core.W).reshape(-1, K, d) * moves[part, None, :]  # √w LᵀW_F
        lam = (core.decay[part] - sigma)[:, None, None]
        M = rows @ rows.transpose(0, 2, 1) + lam * (D[:, :, None] * np.eye(K))
        solved = np.linalg.solve(M, np.concatenate([left, rows], axis=2))
        inverse = -(rows.transpose(0, 2, 1) @ solved[:, :, K:])
        inverse[:, dims, dims] += moves[part]
        columns = Columns(features[part], core.G[:, part].T, core.merged[part, None])
        add(sums, columns, lam * (L @ solved[:, :, :K]), L @ solved[:, :, K:], inverse / lam)
    return assembled(core, sigma, sums)


def _eigenvalues(face: _Face, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The eigenvalues of A_j for some columns, one after the other, and how often each occurs.

    Those of W_Fᵀ(wS)W_F are those of Q^½(wS)Q^½, Q = W_FW_Fᵀ, but for zeros.
    """
    core, moves = face
    K, values, times = len(core.W), [np.zeros(0)], [np.zeros(0, int)]
    for start in range(0, len(chosen), SAMPLE_BLOCK):
        part = chosen[start : start + SAMPLE_BLOCK]
        W, count = core.W * moves[part, None, :], moves[part].sum(axis=1)
        squares, axes = np.linalg.eigh(W @ W.transpose(0, 2, 1))
        root = (axes * np.sqrt(np.maximum(squares, 0))[:, None, :]) @ axes.transpose(0, 2, 1)
        S = core.S.columns(part).matrices() * core.weight[part, None, None]
        found = np.linalg.eigvalsh(root @ S @ root)
        found = np.maximum(found, 0) if core.convex else found
        order = np.argsort(-np.abs(found), axis=1)
        found = np.take_along_axis(found, order, axis=1)
        kept = np.arange(K) < count[:, None]  # at most as many as A_j has rows; the rest are zeros
        lam = core.decay[part, None]
        values += [(lam + found).ravel(), lam.ravel()]
        times += [kept.ravel().astype(int), np.maximum(count - K, 0)]
    return np.concatenate(values), np.concatenate(times)


def _differences(face: _Face) -> tuple[np.ndarray, list[int]]:
    """The eigenvalues of differences of equal samples, and how often each occurs."""
    copies = face.core.merged - 1
    found = [_eigenvalues(face, np.array([j])) for j in np.flatnonzero(copies)]
    times = [int(m) * t for m, (_, t) in zip(copies[copies > 0], found, strict=True)]
    values = np.concatenate([np.zeros(0), *(x for x, _ in found)])
    return values, np.concatenate([np.zeros(0, int), *times]).tolist()
