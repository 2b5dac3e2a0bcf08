"""How far a point is from critical, block by block, and how far float64 can tell.

‖∇f‖ alone says little where decays are small: at λ = 1e-12 it is small everywhere. Each block of
∇f = 0 is measured by the terms that cancel in it,

    W: ‖GHᵀ + λ_W W‖ / (‖GHᵀ‖ + λ_W‖W‖)      H: ‖WᵀG + λ_H HΩ‖ / (‖WᵀG‖ + λ_H‖HΩ‖)
    b: |G1 + λ_b b|_k / (|G|1 + λ_b|b|)_k, the largest over classes,

and so are three identities of critical points that hold whatever the data term is, so that no
rounding of G hides a violation:

    balance: λ_W WᵀW = λ_H HΩHᵀ, relative to λ_W‖W‖² + λ_H‖HΩ^½‖²
    means:   1ᵀW = 0, relative to √K‖W‖, and 1ᵀb = 0 if λ_b > 0, relative to √K(1 + ‖b‖)

(WᵀGHᵀ occurs in both Wᵀ∇_W and ∇_H Hᵀ. Ω holds the weights of the samples in the decay. The means
are measured only for losses that are invariant under shifts along a direction, written 1 here, for
which 1ᵀG = 0.) Where the balance fails, W and H can be rescaled to (W A, A⁻¹H), which leaves the
data term unchanged and lowers the decay.

A share of up to 1e-8 counts as critical, and so does every point that `ufm.solve` calls converged:
where decays are small beside G, float64 has no point that is closer to critical, and `uncertainty`
says how much remains unknown. A fixed W has no gradient, no means and no balance with H. Computed
by NumPy on the host, from a point that `ufm.model.evaluation` has evaluated.
"""

from typing import NamedTuple

import numpy as np

from ufm.check import Refused
from ufm.model import layers
from ufm.model.evaluation import Evaluated, evaluate
from ufm.model.problem import Params, Problem

EPS = np.finfo(np.float64).eps
TOLERANCE = 1e-8  # share of the terms that cancel, up to which a point counts as critical
CAUTION = 64  # an estimated error is trusted up to this factor
SHARE = 1e-6  # of f, by which a global minimiser may exceed f*
# Residual of a converged point in units of the terms that cancel (`ufm.solve`), if above rounding.
POLISHED = 1e-14
# W and H both shorter than this, in units of their lengths at logits of order 1, are the origin.
ORIGIN = 1e-10
# What holds at critical points only where W moves.
_OF_W = ("the gradient in W", "the sum of the rows of W", "the balance of W and H")


class Stationarity(NamedTuple):
    """How nearly critical a point is.

    residual: ‖∇f‖.
    where: the block or identity with the largest ratio of share to allowed share, in words.
    share: what is left there, relative to the terms that cancel.
    allowed: the share up to which it counts as critical: 1e-8, or more where ‖∇f‖ is at the level
        of rounding.
    uncertainty: the largest share of all blocks and identities, rounding included: the relative
        error of the point.
    at: the point that was measured, which is the origin if the given point is within rounding of
        it (`settled`).
    """

    residual: float
    where: str
    share: float
    allowed: float
    uncertainty: float
    at: Evaluated

    @property
    def critical(self) -> bool:
        """Whether every share is at most what is allowed for it."""
        return self.share <= self.allowed

    def told(self) -> str:
        """The numbers that decide, in words."""
        return (
            f"|grad f| = {self.residual:.3g}, {self.share:.3g} of the terms that cancel in "
            f"{self.where} (allowed: {self.allowed:.3g}, in float64)"
        )


class _Measure(NamedTuple):
    """left: what should cancel.  terms: what cancels in it.  rounding, polished: of `left`."""

    where: str
    left: float
    terms: float
    rounding: float
    polished: float


def length(x: np.ndarray) -> float:
    """Euclidean norm of all entries, scaled before squaring: 1e-200 and 1e200 stay in range."""
    largest = float(np.max(np.abs(x), initial=0.0))
    if not 0 < largest < np.inf:
        return largest
    return largest * float(np.linalg.norm(np.ravel(x / largest)))


def require_decay(problem: Problem) -> None:
    """Refuse a problem whose W or H has no decay.

    Raises:
        Refused: λ_W or λ_H is 0, so that f need not have a minimum.
    """
    if not min(float(problem.lam_W), float(problem.lam_H)) > 0:
        raise Refused(
            f"got lam_W={problem.lam_W}, lam_H={problem.lam_H}; a verdict needs both > 0: "
            "without decay the infimum is not attained"
        )


def logit_rounding(point: Params) -> float:
    """2ε(2 + max(|W||H| + |b|)): relative error of an exponential of logits by their rounding.

    That of the entries of G for cross-entropy with labels, and of the S_i; in general see
    `Evaluated.rounding`.
    """
    W, H, b = point
    return float(2 * EPS * (2 + np.max(np.abs(W) @ np.abs(H) + np.abs(b)[:, None])))


def gradient_rounding(at: Evaluated) -> float:
    """(‖W‖ + ‖H‖ + √N)‖E‖, a bound on the error of ∇f by that of G; as in `ufm.critical.newton`."""
    pull = length(at.params.W) + length(at.params.H)
    return (pull + (at.problem.N**0.5 if at.problem.bias else 0.0)) * length(at.rounding)


def settled(at: Evaluated) -> Evaluated:
    """The point itself, or W = H = 0 where both are shorter than 1e-10 of their natural lengths.

    These follow from logits WH of order 1 and from the balance of the decays: ‖W‖² = √(N λ_H/λ_W)
    and ‖H‖² = √(N λ_W/λ_H), with Σ_i ω_i in place of N where the decay has weights. Such a W and H
    change f by about 1e-20 of its value.
    """
    problem, point = at.problem, at.params
    lam_W, lam_H = float(problem.lam_W), float(problem.lam_H)
    if problem.fixed or not min(lam_W, lam_H) > 0 or not (np.any(point.W) or np.any(point.H)):
        return at
    omega = problem.N if problem.decay_weights is None else float(np.sum(_omega(problem)))
    ratio, size = (lam_H**0.25) / (lam_W**0.25), omega**0.25
    if length(point.W) <= ORIGIN * size * ratio and length(point.H) <= ORIGIN * size / ratio:
        origin = point._replace(W=np.zeros_like(point.W), H=np.zeros_like(point.H))
        return evaluate(problem, origin)
    return at


def _omega(problem: Problem) -> np.ndarray:
    """ω of every sample, (N,)."""
    return np.asarray(problem.decay_weights, np.float64)[problem.labels]


def stationarity(problem: Problem, point: Params) -> Stationarity:
    """Measure every block of ∇f and every identity of the module's head at a point.

    Raises:
        Refused: as `ufm.model.evaluation.evaluate`.
    """
    layers.require_free(problem, "hessian.stationarity")
    return measured(evaluate(problem, point))


def measured(given: Evaluated) -> Stationarity:
    """`stationarity` of a point that has been evaluated."""
    residual, at = given.grad_norm, settled(given)
    measures = [m for m in _measures(at) if m.terms > 0]
    if not measures:  # logits so large that G is 0, at the origin of W and H
        return Stationarity(residual, "the gradient", 0.0, TOLERANCE, 0.0, at)
    limits = [TOLERANCE + max(m.rounding, m.polished) / m.terms for m in measures]
    shares = [m.left / m.terms for m in measures]
    worst = int(np.argmax([share / limit for share, limit in zip(shares, limits, strict=True)]))
    uncertainty = max((m.left + m.rounding) / m.terms for m in measures)
    return Stationarity(
        residual, measures[worst].where, shares[worst], limits[worst], float(uncertainty), at
    )


def _measures(at: Evaluated) -> list[_Measure]:
    """Every block of ∇f and every identity."""
    problem, point, G, slope = at.problem, at.params, at.G, at.gradient
    (W, H, b), root = point, problem.K**0.5
    lam_W, lam_H, lam_b = (float(x) for x in (problem.lam_W, problem.lam_H, problem.lam_b))
    eta, error = logit_rounding(point), 2 * at.rounding
    omega = 1.0 if problem.decay_weights is None else _omega(problem)
    size_W, size_H, size_b = length(W), length(H * omega), length(b)
    scale = (size_W + length(H) + (problem.N**0.5 if problem.bias else 0.0)) * length(G)
    scale += lam_H * size_H + (lam_b * size_b if problem.bias else 0.0)
    scale += 0.0 if problem.fixed else lam_W * size_W
    # What `ufm.solve` calls converged.
    polished = 4 * max(POLISHED * scale, gradient_rounding(at))

    terms_W = length(slope.W - lam_W * W) + lam_W * size_W
    terms_H = length(slope.H - lam_H * H * omega) + lam_H * size_H
    rounding_W = length(error @ np.abs(H).T) + 4 * EPS * terms_W
    rounding_H = length(np.abs(W).T @ error) + 4 * EPS * terms_H
    found = [
        _Measure("the gradient in W", length(slope.W), terms_W, rounding_W, polished),
        _Measure("the gradient in H", length(slope.H), terms_H, rounding_H, polished),
    ]
    null = problem.loss.null(problem.K)
    n = null if null is None else np.asarray(null) * (root / length(np.asarray(null)))
    if lam_W > 0 and n is not None:
        mean, slack = length(n @ W), root * polished / lam_W
        found.append(_Measure("the sum of the rows of W", mean, root * size_W, 0.0, slack))
    # In units of the longer of √λ_W W and √λ_H H, so that no square leaves the range of float64.
    unit = max(lam_W**0.5 * size_W, lam_H**0.5 * length(H * omega**0.5))
    if unit > 0:
        V, U = lam_W**0.5 * W / unit, lam_H**0.5 * H * omega**0.5 / unit
        slack = polished * (size_W / unit + length(H) / unit) / unit
        terms = length(V) ** 2 + length(U) ** 2
        found.append(_Measure("the balance of W and H", length(V.T @ V - U @ U.T), terms, 0, slack))
    if problem.bias:
        terms_b = np.abs(G).sum(axis=1) + lam_b * np.abs(b)
        k = int(np.argmax(np.abs(slope.b) / np.where(terms_b > 0, terms_b, 1)))
        left, terms = abs(float(slope.b[k])), float(terms_b[k])
        rounding = 2 * (float(error[k].sum()) + eta * lam_b * abs(float(b[k])))
        found.append(_Measure("the gradient in b", left, terms, rounding, polished))
    if problem.bias and lam_b > 0 and n is not None:
        terms, slack = root * (1 + size_b), root * polished / lam_b
        found.append(_Measure("the sum of b", abs(float(n @ b)), terms, 0.0, slack))
    return [x for x in found if not (problem.fixed and x.where in _OF_W)]
