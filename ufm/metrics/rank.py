"""Effective rank of features: how many directions they fill (RankMe).

exp(−Σ_j p_j log p_j), p_j = σ_j/Σσ, of the singular values σ of the features (Roy and Vetterli
2007; Garrido et al. 2022, arXiv 2210.02885). NumPy, float64.
"""

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.linalg import scaling
from ufm.metrics.features import finite, numbers
from ufm.metrics.frames import slices


def effective_rank(features) -> float:
    """The effective rank of features (N, d), samples as rows: between 1 and min(N, d).

    The singular values come from a QR decomposition that reads the samples in pieces and needs
    memory d². Nothing is squared, so small singular values keep their digits. The features may be
    mapped from disk. At perfect collapse of K classes with equal counts it is K−1 for means around
    the origin, which it tends to from above.

    Caution: features are *not* centred, nor are they in RankMe, so a large common offset brings it
    near 1; subtract the mean to see the rest. RankMe adds 1e-7 to every p_j, which adds some 1e-6
    for every singular value that is 0; nothing is added here.

    Raises:
        Refused: an array that is not real, finite, (N, d); features that are all 0.
    """
    if check.traced(features):
        raise Refused("got traced features: this runs on the host; call it outside jit")
    X = np.asarray(numbers("features", features))
    if X.ndim != 2 or not X.size:
        raise Refused(f"got features of shape {X.shape}; allowed: (N, d), samples as rows")
    scale, R = 0.0, np.zeros((0, X.shape[1]))
    # At least twice as many rows as R has, so that most of the work is on what is new.
    for part in slices(len(X), X.shape[1], 2 * X.shape[1]):
        block = finite("features", X[part]).astype(np.float64)
        top = float(scaling.binade(np, block)) if block.any() else 0.0
        if top > scale:
            R, scale = R * (scale / top), top
        R = triangle(np.vstack([R, block / (scale or 1.0)]))
    if not scale:
        raise Refused("got features that are all 0; allowed: features that span something")
    p = np.linalg.svd(R, compute_uv=False)
    p = p[p > 0] / p.sum()
    return float(np.exp(-(p * np.log(p)).sum()))


def triangle(A: np.ndarray) -> np.ndarray:
    """R (min(N, d), d) of A = QR (N, d)."""
    return np.asarray(np.linalg.qr(A, mode="r"))
