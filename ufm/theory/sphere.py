"""Features and classifier rows on the unit sphere: the minimum in closed form, and a bound on it.

    f(W, H) = Σ_k s_k CE(τ W h_k, k),    ‖w_k‖ = ‖h_k‖ = 1,    s_k the share of class k,

with a temperature 1/τ and no decay (Yaras et al. 2022, arXiv 2209.09211). For equal classes and d ≥
K−1 every global minimum is a simplex ETF with w_k = h_k, of value log(1 + (K−1)e^{−τK/(K−1)}).

**Bound.** For every p_k in the simplex, A = [s_k(p_k − e_k)], and all real u, v,

    f* ≥ Σ_k s_k H(p_k) − ½(Σu + Σv) − K max(0, −λ_min(M)),   M = [[diag u, τA], [τAᵀ, diag v]],

by Fenchel's inequality, since X = [W; Hᵀ] has 2K rows of norm 1 and τ⟨A, WH⟩ = ½ tr XᵀMX −
½(Σu + Σv). `sphere_bound` takes for p the softmax of a point and for u, v the multipliers of the
unit norms there, −⟨w, ∂f/∂w⟩ and −⟨h, ∂f/∂h⟩; at a critical point M X = 0, so the bound equals f
where M ≥ 0.

**An unused direction.** Let a unit vector a be orthogonal to all rows and features of a critical
point of a convex loss. Along w_k + x_k a, h_i + y_i a the second derivative of f is
(x, y)ᵀM(x, y), with M made of all samples. So the point is a strict saddle, or M ≥ 0 and it is a
global minimiser.

The rest of the module answers `ufm.theory.lookup` for problems with features="sphere".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy  # its parts are imported at first use
from jaxtyping import Array

from ufm import check
from ufm.check import Refused
from ufm.losses import CrossEntropy, LogitAdjusted
from ufm.metrics.features import finite, in_numpy
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem
from ufm.theory import shared
from ufm.theory.geometry import simplex_etf
from ufm.theory.softmax_codes import SOURCE

YARAS = "Yaras et al. 2022, arXiv 2209.09211"
_UNIT = 1e-8  # how far from 1 a norm may be


class SphereBound(NamedTuple):
    """f at a point, a lower bound on f*, and their difference, in nats."""

    value: float
    lower_bound: float
    gap: float


def sphere_value(K: int, tau: float) -> float:
    """log(1 + (K−1)e^{−τK/(K−1)}), the minimum for equal classes and d ≥ K−1, in nats.

    Source: Yaras et al. 2022, arXiv 2209.09211.

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

    Σ_k s_k H(p_k) − ½(Σu + Σv) − K max(0, −λ_min(M)) with the softmax p of the point and the
    multipliers u, v of its unit norms (proof: `ufm.theory.sphere`). Valid up to rounding at any
    point, for any d and shares; not tight where d is below the rank of the convex problem.

    Args:
        W: (K, d), unit rows.
        H: (d, K), unit columns, one feature for each class.
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
    R[~apart] = -np.sum(np.where(apart, P, 0), axis=0)  # p_k − 1 without cancellation
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
    found = finite(name, in_numpy(name, value).astype(np.float64))
    if found.ndim != 2 or not found.size:
        raise Refused(f"got {name} of shape {found.shape}; allowed: a real, finite matrix")
    norms = np.linalg.norm(found, axis=axis)
    if np.max(np.abs(norms - 1)) > _UNIT:
        what = "rows" if axis else "columns"
        raise Refused(f"got {name} with {what} that are not of norm 1; allowed: unit {what}")
    return found


def _shares(shares, K: int) -> np.ndarray:
    each = [1.0] * K if shares is None else check.several(shares)
    if each is None or len(each) != K:
        raise Refused(f"got shares={check.shown(shares)}; allowed: K={K} numbers > 0, or None")
    found = np.array([check.real(f"shares[{k}]", x, above=0) for k, x in enumerate(each)])
    return found / found.sum()


def temperature(problem: Problem) -> float | None:
    """τ where the loss is cross-entropy of τz; None for another loss."""
    loss = problem.loss
    if isinstance(loss, CrossEntropy) and loss.plain:
        return 1.0
    if isinstance(loss, LogitAdjusted) and np.ndim(loss.scale) == np.ndim(loss.shift) == 0:
        return float(loss.scale)
    return None


def form_fails(problem: Problem) -> str | None:
    """The first assumption that a problem does not meet for f to be the one above, or None."""
    if problem.features != "sphere":
        return f"features='sphere' (got {problem.features!r})"
    if (failed := shared.labels(problem)) is not None:
        return failed
    if temperature(problem) is None:
        return f"cross-entropy with one temperature (got {type(problem.loss).__name__})"
    return None


def fails(problem: Problem) -> str | None:
    """The first assumption of the closed form that a problem does not meet, or None."""
    return form_fails(problem) or shared.alike(problem) or shared.wide(problem)


def _check(problem: Problem) -> float:
    """τ, or a refusal outside the closed form."""
    if (reason := fails(problem)) is not None:
        raise Refused(
            f"got a problem outside the closed form on the sphere, which needs {reason}; find its "
            "minima with ufm.solve from many starts, bound them with ufm.certify, and for d < K-1 "
            "see ufm.theory.code_minimum"
        )
    return temperature(problem) or 1.0


def global_value(problem: Problem) -> float:
    """`sphere_value` of the problem, in nats.

    Raises:
        Refused: naming the assumption that fails.
    """
    return sphere_value(problem.K, _check(problem))


def is_collapsed(problem: Problem) -> bool:
    """False: unit vectors are never 0.

    Raises:
        Refused: as `global_value`.
    """
    _check(problem)
    return False


def margin(problem: Problem) -> float:
    """K/(K−1) = z_y − z_j for the logits WH, before the temperature.

    Raises:
        Refused: as `global_value`.
    """
    _check(problem)
    return problem.K / (problem.K - 1)


def norms(problem: Problem) -> tuple[float, float]:
    """(‖W‖, ‖H‖) = (√K, √N).

    Raises:
        Refused: as `global_value`.
    """
    _check(problem)
    return problem.K**0.5, problem.N**0.5


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A simplex ETF with the features of a class at its row, as `lookup.global_minimizer`.

    Raises:
        Refused: as `global_value`; sizes that do not fit into memory.
    """
    _check(problem)
    check_memory(problem, 8)
    with jax.enable_x64(True):
        W = np.asarray(simplex_etf(problem.K, problem.d, key, jnp.float64))
    return shared.point(dtype, W, W.T[:, problem.labels], np.zeros(problem.K))


def at_rows(problem: Problem, rows: np.ndarray) -> tuple[float, float, Params]:
    """(f, τ, the point) with W a matrix of unit rows and the features of a class at its row.

    The value is never below f*. The point is critical by symmetry for a polygon, of value
    log Σ_j e^{−τ(1−cos 2πj/K)}, and for an orthoplex, log(1 + (K−2)e^{−τ} + e^{−2τ}).

    Raises:
        Refused: another loss than cross-entropy with one temperature; rows not of norm 1.
    """
    if (reason := form_fails(problem)) is not None:
        raise Refused(f"got a problem outside the form, which needs {reason}; take ufm.solve")
    U = _units("rows", rows, 1)
    U = U / np.linalg.norm(U, axis=1, keepdims=True)
    tau = temperature(problem) or 1.0
    depths = tau * (U @ U.T - 1)
    wrong = np.sum(np.where(np.eye(len(U), dtype=bool), 0, np.exp(depths)), axis=0)
    value = float((problem.class_weights * problem.counts) @ np.log1p(wrong))
    return value, tau, Params(U, U.T[:, problem.labels], np.zeros(problem.K))


def claims(problem: Problem) -> tuple[shared.Claim, ...]:
    """What is known on the sphere."""
    low = None if problem.d < problem.K - 1 else f"d < K-1 (got d={problem.d}, K={problem.K})"
    return (
        shared.Claim(
            "simplex on the sphere",
            "The global minimisers are simplex ETFs with every feature at the row of its class.",
            fails(problem),
            YARAS,
        ),
        shared.Claim(
            "certificate by multipliers",
            "A critical point whose matrix M of multipliers and residuals is positive semidefinite "
            "is a global minimiser.",
            shared.convex(problem),
            "ours, ufm.theory.sphere",
        ),
        shared.Claim(
            "an unused direction",
            "A critical point with a direction orthogonal to all its rows and features is a global "
            "minimiser or a strict saddle.",
            shared.convex(problem),
            "ours, ufm.theory.sphere",
        ),
        shared.Claim(
            "code on the sphere",
            "As τ increases the minimum tends to a softmax code; ufm.theory.code_minimum gives the "
            "value at a code, for an orthoplex or a polygon that of a critical point.",
            shared.joined(form_fails(problem), shared.alike(problem), low),
            SOURCE,
            "candidate",
        ),
    )
