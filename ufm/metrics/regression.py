"""Collapse in regression, NRC1–NRC3 (Andriopoulos et al. 2024, arXiv 2409.04180).

For features h_i (d,), targets y_i (n,) and a linear layer W (n, d): at collapse the centred
features are in the span of their n leading principal components and in that of the rows of W, and
WWᵀ is a function of the covariance of the targets. NumPy, float64, features in pieces.
"""

from typing import NamedTuple

import numpy as np

from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics import frames
from ufm.metrics import moments as in_one_pass
from ufm.metrics.centred import rounding
from ufm.metrics.features import finite, in_numpy


class RegressionCollapse(NamedTuple):
    """NRC1 and NRC2, in [0, 1], and NRC3, in [0, 4]; 0 at collapse. h̃ = (h − h̄)/‖h − h̄‖.

    nrc1: mean of ‖h̃ − P h̃‖², P the projection onto the n leading principal components of h.
    nrc2: mean of ‖h̃ − Q h̃‖², Q the projection onto the row space of W.
    nrc3: ‖WWᵀ/‖WWᵀ‖_F − T/‖T‖_F‖²_F with T = Σ^{1/2} − γ^{1/2} I, Σ the covariance of the targets,
        at the γ in [0, λ_min(Σ)] that minimises it.
    gamma: that γ, in the squared unit of the targets.

    Caution: features are centred here, since the mean may be part of b or of W h̄; code that does
    not centre gives other values. Features equal to their mean contribute 0. With one target nrc3
    is 0 for every W ≠ 0 and carries no information. nrc1 is 0 wherever n ≥ rank of the centred
    features.
    """

    nrc1: float
    nrc2: float
    nrc3: float
    gamma: float


def regression(W, features, targets) -> RegressionCollapse:
    """Measure NRC1–NRC3 of features and a linear layer.

    Source: Andriopoulos et al. 2024, arXiv 2409.04180.

    Args:
        W: last layer (n, d), a row a target.
        features: (N, d), samples as rows; may be mapped from disk.
        targets: (N, n), or (N,) for one target.

    Raises:
        Refused: arrays that are not real and finite or do not fit, fewer than 2 samples, targets
            that do not vary.
    """
    W = finite("W", in_numpy("W", W).astype(np.float64))
    H = in_numpy("features", features)
    Y = finite("targets", in_numpy("targets", targets).astype(np.float64))
    Y = Y[:, None] if Y.ndim == 1 else Y
    shapes = f"got W {W.shape}, features {H.shape} and targets {Y.shape}"
    if (
        not W.ndim == H.ndim == Y.ndim == 2
        or W.shape != (Y.shape[1], H.shape[1])
        or len(H) != len(Y)
    ):
        raise Refused(f"{shapes}; allowed: W (n, d), features (N, d) and targets (N, n)")
    if len(Y) < 2 or not W.size:
        raise Refused(f"{shapes}; allowed: N >= 2 samples, n >= 1 targets, d >= 1")
    for part in frames.slices(*H.shape):
        finite("features", H[part])
    unit = float(scaling.binade(np, Y))
    Y = Y / unit
    Y = Y - Y.mean(axis=0)
    if not Y.any():
        raise Refused("got targets that are all the same; allowed: targets that vary")
    W = W / scaling.binade(np, W)
    nrc3, gamma = _shape(W @ W.T, Y.T @ Y / len(Y))
    return RegressionCollapse(*_outside(W, H), nrc3, gamma * unit * unit)


def _outside(W: np.ndarray, H: np.ndarray) -> tuple[float, float]:
    """(NRC1, NRC2): mean squared norms of the parts of h̃ orthogonal to the two subspaces."""
    n, d = W.shape
    moments = in_one_pass.empty(1, d, scatter=True)
    in_one_pass.absorb(moments, H, np.zeros(len(H), np.intp))
    assert moments.scatter is not None
    _, vectors = np.linalg.eigh(moments.scatter, UPLO="U")
    _, s, Vt = np.linalg.svd(W, full_matrices=False)
    bases = vectors[:, -n:], Vt[s > np.finfo(float).eps * max(W.shape) * s[0]].T
    totals, floor = np.zeros(2), rounding(moments.total(), len(H))
    for part in frames.slices(*H.shape):
        X = H[part].astype(np.float64) / moments.unit - moments.means[0]
        X[np.einsum("id,id->i", X, X) <= floor] = 0
        units = frames.directions(X)
        for i, basis in enumerate(bases):
            totals[i] += ((units - (units @ basis) @ basis.T) ** 2).sum()
    return float(totals[0] / len(H)), float(totals[1] / len(H))


def _shape(G: np.ndarray, covariance: np.ndarray) -> tuple[float, float]:
    """(NRC3, γ) for G = WWᵀ.

    With r = √γ the cosine between G and S − rI, S = Σ^{1/2}, is (p − qr)/√(s − 2tr + nr²) up to
    ‖G‖; its derivative vanishes at one r only, so it is largest there or at an end.
    """
    n = len(G)
    values, vectors = np.linalg.eigh(covariance)
    roots = np.sqrt(np.maximum(values, 0))
    S = (vectors * roots) @ vectors.T
    p, q, s, t = (G * S).sum(), np.trace(G), (S**2).sum(), np.trace(S)
    candidates = [0.0, float(roots[0])]
    if q * t != p * n:
        candidates.append(float(np.clip((q * s - p * t) / (q * t - p * n), 0, roots[0])))

    def away(r):
        T = S - r * np.eye(n)
        sizes = np.linalg.norm(G), np.linalg.norm(T)
        # If Σ is a multiple of I, T is one too, and 0 at the end of the interval.
        if sizes[1] <= 1e-12 * np.linalg.norm(S):
            return np.inf
        return float(((G / (sizes[0] or 1.0) - T / sizes[1]) ** 2).sum())

    best = min(candidates, key=away)
    return away(best), best**2
