"""What a stationary point with H ≥ 0 is: second-order conditions on the face on which it lies.

The multipliers at a stationary point are M = ∇_H f ≥ 0 at the zeros of H (Karush, Kuhn, Tucker).
If M > 0 (strict complementarity), the variables other than these zeros decide: negative curvature
among them means a saddle; curvature that is positive except along symmetries, a local minimum. For
convex ℓ the samples of a class are equal there, so the conditions are tested at the point of class
means (`ufm.model.quotient`), whose Hessian has the same signs.

**Symmetries of a face.** Rotations (W Qᵀ, Q H) near the identity that keep the zeros of H leave the
point feasible. Their tangents are (−W A, A H) with A antisymmetric and (A H)_ik = 0 wherever
H_ik = 0, such as rotations among axes that only one class uses. Together with b ↦ b + s n, where b
has no decay, they account for the eigenvalues of ∇²f that must be 0.

**Idle axes**, on which W and H are 0, have no multiplier: M = WᵀG + … = 0 there. The second
derivative along (x, h ≥ 0) on such an axis is λ_W‖x‖² + 2⟨x, Gh⟩ + λ_H hᵀΩh and involves no other
variable. So the point is a saddle if ‖GΩ^-½h‖ > μ‖h‖ for some h ≥ 0, and f has positive curvature
on the axis if ρ((Ω^-½GᵀGΩ^-½)₊) < μ² (`ufm.linalg.perron`).
"""

import dataclasses
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm.check import Refused
from ufm.hessian import curvature
from ufm.hessian.reduction import by_class
from ufm.hessian.signs import Inertia
from ufm.hessian.stationarity import (
    CAUTION,
    EPS,
    ORIGIN,
    SHARE,
    TOLERANCE,
    gradient_rounding,
    length,
    logit_rounding,
    require_decay,
)
from ufm.model import quotient
from ufm.model.evaluation import Evaluated, evaluate
from ufm.model.problem import Params

Kind = Literal["global minimiser", "local minimiser", "strict saddle", "not critical", "undecided"]

_IDLE = 1e-6  # largest entries of W and H on an idle axis, of the largest of all
_SMALL = 1e-4  # entries up to which all are small, where λ_W = λ_H
_MOST = 2500  # variables of class means whose Hessian is computed


class Face(NamedTuple):
    """The verdict on a point with H ≥ 0 or on the sphere, and the numbers behind it.

    kind, reason: as in `ufm.hessian.Verdict`.
    curvature: least eigenvalue of ∇²f on the free variables, symmetries left out.
    counts: signs of the eigenvalues of ∇²f on the free variables; None if not critical.
    multiplier: the smallest at a zero of H on an axis in use, infinite without one; on the sphere
        the smallest multiplier of the norms.
    symmetries: how many of the zero eigenvalues are due to symmetries.
    """

    kind: Kind
    reason: str
    curvature: float
    counts: Inertia | None
    multiplier: float
    symmetries: int = 0


def scale(at: Evaluated) -> float:
    """(‖W‖ + ‖H‖ + √N)‖G‖ + λ_W‖W‖ + λ_H‖HΩ‖ + λ_b‖b‖: size of the terms that cancel in ∇f = 0."""
    problem, (W, H, b) = at.problem, at.params
    # Without a bias the origin is stationary, and so are points that float64 cannot tell from it.
    pull = length(W) + length(H) + problem.N**0.5 * (1.0 if problem.bias else EPS)
    decays = problem.class_decays[problem.labels]
    lam_b = float(problem.lam_b) if problem.bias else 0.0
    held = float(problem.lam_W) * length(W) + length(H * decays) + lam_b * length(b)
    return pull * length(at.G) + held


def judged(at: Evaluated, gap: float, resolution: float) -> Face:
    """The verdict on a point, by its certificate or by the conditions in the module's docstring.

    Args:
        at: a point with H ≥ 0.
        gap, resolution: of its certificate, in nats.

    Raises:
        Refused: λ_W or λ_H zero; a loss that is not convex; more than 2500 variables of class
            means.
    """
    problem = at.problem
    require_decay(problem)
    if not problem.loss.convex:
        raise Refused(
            f"got the loss {type(problem.loss).__name__} with features={problem.features!r}; "
            "allowed: a convex loss, for which the samples of a class are equal"
        )
    unit = scale(at) or 1.0
    share, error = at.grad_norm / unit, gradient_rounding(at) / unit
    if share > TOLERANCE + 4 * error:
        reason = (
            f"|projected grad f| = {at.grad_norm:.3g} is {share:.3g} of the terms that cancel "
            f"(allowed: {TOLERANCE + 4 * error:.3g}); polish the point with ufm.solve"
        )
        return Face("not critical", reason, float("nan"), None, float("nan"))
    held = float(problem.lam_W) * np.sum(at.params.W**2) + float(problem.lam_b) * np.sum(
        at.params.b**2
    )
    held += np.sum(at.params.H**2 * problem.class_decays[problem.labels])
    error = max(error, logit_rounding(at.params))
    slack = 16 * resolution + CAUTION * (share + error) * float(held)
    face = _of_means(_balanced(at))
    if gap <= slack <= SHARE * at.value:
        reason = f"f exceeds the global minimum by at most {gap:.3g} (slack {slack:.3g})"
        return face._replace(kind="global minimiser", reason=reason)
    return face


def _balanced(at: Evaluated) -> Evaluated:
    """The class means, in the coordinates in which λ_W = λ_H = μ."""
    problem = quotient.of_width(at.problem, at.problem.d)
    if problem.size > _MOST:
        raise Refused(
            f"got {problem.size} variables of class means; allowed: {_MOST}, whose Hessian is "
            "computed. Lower K or d"
        )
    W, H, b = at.params
    H = np.stack([x.mean(axis=1) for x in by_class(at.problem, H)], axis=1)
    turn = float(problem.lam_W) ** 0.25 / float(problem.lam_H) ** 0.25
    mu = float(problem.mu)
    problem = dataclasses.replace(problem, lam_W=mu, lam_H=mu)
    W, H = W * turn, H / turn
    # Features so short that f does not change with them are set to 0, as in `stationarity.settled`.
    # An axis is idle if all entries on it are small: f depends on their squares.
    top = [max(float(np.max(np.abs(x))), _SMALL) for x in (W, H)]
    idle = (np.abs(W).max(axis=0) <= _IDLE * top[0]) & (H.max(axis=1) <= _IDLE * top[1])
    H = np.where(~idle[:, None] & (top[1] * ORIGIN < H), H, 0.0)
    return evaluate(problem, Params(np.where(idle, 0.0, W), H, b))


def _of_means(at: Evaluated) -> Face:
    """The conditions at class means: idle axes, multipliers, eigenvalues."""
    problem, (W, H, _), mu = at.problem, at.params, float(at.problem.lam_W)
    idle = ~(np.any(H, axis=1) | np.any(W, axis=0))
    entries = logit_rounding(at.params)
    multipliers = at.gradient.H[~idle][H[~idle] == 0]
    least = float(np.min(multipliers, initial=np.inf))
    doubt = CAUTION * (2 * float(np.max(np.abs(W).T @ at.rounding)) + at.grad_norm)
    values, known, error = _eigenvalues(at, idle, entries)
    negative = int(np.sum(values < -error))
    zero = int(np.sum(np.abs(values) <= error))
    counts = Inertia(negative, zero + known, len(values) - negative - zero, error, 0.0)
    lowest = float(np.min(values, initial=np.inf))
    if negative:
        reason = f"{negative} eigenvalues of the Hessian on the face are below {-error:.3g}"
        return Face("strict saddle", reason, lowest, counts, least, known)
    if idle.any():
        root = np.sqrt(problem.class_decays / mu)
        found, bound = _over_orthant(at.G / root)
        error_of_G = max(entries * (found + mu), 2 * float(np.linalg.norm(at.rounding / root, 2)))
        slack = CAUTION * (error_of_G + at.grad_norm)
        if found > mu + slack:
            reason = f"on an idle axis |G h| = {found:.6g} |h| exceeds mu = {mu:.6g} for an h >= 0"
            return Face("strict saddle", reason, mu - found, counts, least, known)
        if bound >= mu - slack:
            reason = f"on an idle axis |G h| <= {bound:.6g} |h| for h >= 0, beside mu = {mu:.6g}"
            return Face("undecided", reason, lowest, counts, least, known)
    if least <= doubt:
        reason = f"a multiplier of {least:.3g} is within {doubt:.3g} of 0"
        return Face("undecided", reason, lowest, counts, least, known)
    if zero:
        reason = f"{zero} eigenvalues on the face within {error:.3g} of 0 are no symmetries"
        return Face("undecided", reason, lowest, counts, least, known)
    reason = (
        f"on the face all eigenvalues but the {known} of its symmetries are at least "
        f"{lowest:.3g}, and multipliers at least {least:.3g}"
    )
    return Face("local minimiser", reason, lowest, counts, least, known)


def _eigenvalues(at: Evaluated, idle: np.ndarray, entries: float) -> tuple[np.ndarray, int, float]:
    """(eigenvalues of ∇²f on the face off its symmetries, how many of these, their error)."""
    problem, (W, H, b) = at.problem, at.params
    free = Params(np.broadcast_to(~idle, W.shape), H > 0, np.full(b.shape, problem.bias))
    chosen = np.asarray(curvature.flatten(problem, jax.tree.map(jnp.asarray, free)))
    with jax.enable_x64(True):
        matrix = np.asarray(curvature.dense(problem, at.params))[np.ix_(chosen, chosen)]
    rows = _symmetries(at, idle)[:, chosen]
    size = float(np.max(np.sum(np.abs(matrix), axis=1), initial=0.0))
    matrix = matrix + size * (rows.T @ rows)
    values = np.linalg.eigvalsh(matrix) if len(matrix) else np.zeros(0)
    # The point is known to ∇f, and third derivatives are of the order of the second ones.
    error = CAUTION * (entries * size + at.grad_norm * (1 + size / float(problem.lam_W) ** 0.5))
    # The eigenvalues of the symmetries are `size` now, among the positive ones.
    return values, len(rows), error


def _symmetries(at: Evaluated, idle: np.ndarray) -> np.ndarray:
    """Orthonormal tangents of the symmetries of the face, as rows in all variables."""
    problem, (W, H, b) = at.problem, at.params
    axes = np.flatnonzero(~idle)
    pairs = [(i, j) for x, i in enumerate(axes) for j in axes[x + 1 :]]
    turns, left = [], []
    for i, j in pairs:
        A = np.zeros((problem.d, problem.d))
        A[i, j], A[j, i] = 1.0, -1.0
        turned = A @ H
        left.append(turned[H == 0])
        turns.append(np.concatenate([(-W @ A).ravel(), turned.ravel(), np.zeros(len(b))]))
    rows = np.zeros((0, W.size + H.size + len(b)))
    if pairs:
        rows = _null(np.array(left).reshape(len(pairs), -1)) @ np.array(turns)
    null = problem.loss.null(problem.K)
    if problem.bias and float(problem.lam_b) == 0 and null is not None:
        shift = np.concatenate([np.zeros(W.size + H.size), np.asarray(null, float)])
        rows = np.vstack([rows, shift])
    rows = rows if problem.bias else rows[:, : W.size + H.size]
    _, s, Vt = np.linalg.svd(rows, full_matrices=False)
    return Vt[s > 1e-8 * np.max(s, initial=0.0)]


def _null(left: np.ndarray) -> np.ndarray:
    """Orthonormal coefficients, as rows, that combine the pairs to rotations that move no zero."""
    if left.shape[1] == 0:
        return np.eye(len(left))
    U, s, _ = np.linalg.svd(left, full_matrices=True)
    rank = int(np.sum(s > 1e-10 * np.max(s, initial=0.0)))
    return U[:, rank:].T


def _over_orthant(G: np.ndarray) -> tuple[float, float]:
    """Lower and upper bound on max ‖Gh‖ over unit h ≥ 0."""
    gram = G.T @ G
    values, vectors = np.linalg.eigh(np.maximum(gram, 0))
    tried = [np.abs(vectors[:, -1]), *np.eye(len(gram))]
    found = max(float(np.linalg.norm(G @ h)) for h in tried)
    return found, float(max(values[-1], 0) ** 0.5)
