"""Features and classifier rows on the unit sphere: the minimum in closed form, and a bound on it.

    f(W, H) = Σ_k s_k CE(τ W h_k, k),    ‖w_k‖ = ‖h_k‖ = 1,    s_k the share of class k,

with a temperature 1/τ and no decay (Yaras et al. 2022, arXiv 2209.09211). For equal classes and d ≥
K−1 every minimum is a simplex ETF with w_k = h_k, of value log(1 + (K−1)e^{−τK/(K−1)}).

**Bound.** For every p_k in the simplex, A = [s_k(p_k − e_k)], and all real u, v,

    f* ≥ Σ_k s_k H(p_k) − ½(Σu + Σv) − K max(0, −λ_min(M)),   M = [[diag u, τA], [τAᵀ, diag v]],

by Fenchel's inequality and X = [W; Hᵀ], whose 2K rows have norm 1: τ⟨A, WH⟩ = ½ tr XᵀMX − ½(Σu +
Σv).
At a point, p is its softmax and u, v are the multipliers of the unit norms, −⟨w, ∂f/∂w⟩ and
−⟨h, ∂f/∂h⟩; at a critical point M X = 0, so the bound is tight where M ≥ 0.
"""

from typing import NamedTuple

import numpy as np
import scipy  # its parts are imported at first use

from ufm import check
from ufm.check import Refused

_UNIT = 1e-8  # how far from 1 a norm may be


class SphereBound(NamedTuple):
    """f at a point, a lower bound on f*, and their difference, in nats."""

    value: float
    lower_bound: float
    gap: float


def sphere_value(K: int, tau: float) -> float:
    """log(1 + (K−1)e^{−τK/(K−1)}), the minimum for equal classes and d ≥ K−1, in nats.

    Args:
        K: number of classes, at least 2.
        tau: τ > 0, the inverse temperature.

    Raises:
        Refused: K or τ out of range.
    """
    K = check.integer("K", K, 2, check.MOST)
    tau = check.real("tau", tau, above=0)
    return float(np.log1p((K - 1) * np.exp(-tau * K / (K - 1))))


def sphere_bound(W, H, tau: float, shares=None) -> SphereBound:
    """A lower bound on f* from a point: f = Σ_k s_k CE(τ W h_k, k) with unit rows and features.

    The dual bound at the head of `ufm.theory.sphere`, with the point's softmax and the multipliers
    of its unit norms. Valid up to rounding at any point, for any d and shares; not tight for d
    below the rank of the convex problem.

    Args:
        W: (K, d), unit rows.
        H: (d, K), unit columns, the feature of each class: samples of a class share the best one.
        tau: τ > 0.
        shares: s_k > 0, K numbers; None takes 1/K each. They are divided by their sum.

    Raises:
        Refused: another shape, rows or columns that are not of norm 1, shares out of range.
    """
    W, H = _units("W", W, 1), _units("H", H, 0)
    K, tau = len(W), check.real("tau", tau, above=0)
    if H.shape != W.shape[::-1] or K < 2:
        raise Refused(
            f"got W {W.shape} and H {H.shape}; allowed: (K, d) and (d, K), K >= 2, a column a class"
        )
    s = _shares(shares, K)
    Z = tau * (W @ H)
    margins = Z - np.diagonal(Z)  # z_j − z_k in column k
    apart = ~np.eye(K, dtype=bool)
    logs = margins - scipy.special.logsumexp(margins, axis=0)
    P = np.exp(logs)
    R = P.copy()
    R[~apart] = -np.sum(np.where(apart, P, 0), axis=0)  # p_k − 1 with its own digits
    wrong = np.sum(np.where(apart, np.exp(margins), 0), axis=0)
    value = float(s @ np.log1p(wrong))
    A = tau * R * s
    u, v = -np.sum(W * (A @ H.T), axis=1), -np.sum(H * (W.T @ A), axis=0)
    M = np.block([[np.diag(u), A], [A.T, np.diag(v)]])
    least = float(np.linalg.eigvalsh(M)[0])
    entropy = float(s @ -np.sum(P * logs, axis=0))
    bound = entropy - (float(np.sum(u)) + float(np.sum(v))) / 2 - K * max(0.0, -least)
    return SphereBound(value, max(bound, 0.0), value - max(bound, 0.0))


def _units(name: str, value, axis: int) -> np.ndarray:
    try:
        found = check.array(value)
    except ValueError:
        found = np.asarray(None)
    if found.dtype.kind not in "iuf" or found.ndim != 2 or not np.all(np.isfinite(found)):
        raise Refused(f"got {name}={check.shown(value)}; allowed: a real, finite matrix")
    found = found.astype(np.float64)
    norms = np.linalg.norm(found, axis=axis)
    if found.size == 0 or np.max(np.abs(norms - 1)) > _UNIT:
        what = "rows" if axis else "columns"
        raise Refused(f"got {name} with {what} that are not of norm 1; allowed: unit {what}")
    return found


def _shares(shares, K: int) -> np.ndarray:
    each = [1.0] * K if shares is None else check.several(shares)
    if each is None or len(each) != K:
        raise Refused(f"got shares={check.shown(shares)}; allowed: K={K} numbers > 0, or None")
    found = np.array([check.real(f"shares[{k}]", x, above=0) for k, x in enumerate(each)])
    return found / found.sum()
