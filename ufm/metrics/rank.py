"""Effective rank of features (RankMe).

exp(−Σ_j p_j log p_j) with p_j = σ_j/Σσ, σ the singular values of the features (Roy and Vetterli
2007; Garrido et al. 2022, arXiv 2210.02885). NumPy, float64.
"""

import numpy as np

from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics.features import finite, in_numpy
from ufm.metrics.frames import slices


def effective_rank(features) -> float:
    """The effective rank exp(−Σ_j p_j log p_j), p_j = σ_j/Σσ, between 1 and min(N, d).

    The singular values σ come from a QR decomposition that reads the samples in pieces and needs d²
    numbers of memory. Nothing is squared, so small singular values lose no digits. As K classes
    with equal counts and centred means collapse to a simplex, it decreases to K−1. Sources: Roy and
    Vetterli 2007; Garrido et al. 2022, arXiv 2210.02885.

    Args:
        features: (N, d), samples as rows; may be mapped from disk.

    Caution: features are *not* centred, as in RankMe, so a large common offset brings the result
    close to 1; subtract the mean first to avoid this. RankMe adds 1e-7 to every p_j, which adds
    about 1e-6 for every singular value that is 0; nothing is added here.

    Raises:
        Refused: an array that is not real, finite, (N, d); features that are all 0.
    """
    X = in_numpy("features", features)
    if X.ndim != 2 or not X.size:
        raise Refused(f"got features of shape {X.shape}; allowed: (N, d), samples as rows")
    scale, R = 0.0, np.zeros((0, X.shape[1]))
    # At least twice as many rows as R has, so that most of the work is on new rows.
    for part in slices(len(X), X.shape[1], 2 * X.shape[1]):
        block = finite("features", X[part]).astype(np.float64)
        top = float(scaling.binade(np, block)) if block.any() else 0.0
        if top > scale:
            R, scale = R * (scale / top), top
        R = triangle(np.vstack([R, block / (scale or 1.0)]))
    if not scale:
        raise Refused("got features that are all 0; allowed: some that are not 0")
    p = np.linalg.svd(R, compute_uv=False)
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def triangle(A: np.ndarray) -> np.ndarray:
    """R (min(N, d), d) of A = QR (N, d)."""
    return np.asarray(np.linalg.qr(A, mode="r"))
