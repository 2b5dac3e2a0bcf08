"""What a critical point over unit vectors is: by its certificate, or by the signs of Hess f.

Only the certificate proves a "global minimiser" (`ufm.certificate`, from the multipliers of the
norms). Negative curvature among the tangents means a strict saddle; curvature that is positive
except along rotations, a local minimum (`ufm.hessian.tangents`). Errors are measured in units of f,
which falls exponentially in the inverse temperature; where f is so small that float64 loses its
digits, the verdict is "undecided".
"""

import numpy as np

from ufm.hessian.faces import Face, Kind
from ufm.hessian.signs import Inertia
from ufm.hessian.stationarity import (
    CAUTION,
    EPS,
    SHARE,
    TOLERANCE,
    gradient_rounding,
    length,
)
from ufm.hessian.tangents import MOST, Tangents, size, tangents
from ufm.model import sphere
from ufm.model.evaluation import Evaluated
from ufm.model.problem import Problem


def heat(problem: Problem) -> float:
    """The factor of the logits in the loss: τ, or the largest scale; 1 for cross-entropy.

    √(2 sup‖S‖) and at least 1; 1 where no bound on the curvature of the loss is known.
    """
    found = float(2 * problem.loss.smoothness(problem.targets)) ** 0.5
    return max(1.0, found) if np.isfinite(found) else 1.0


def judged(at: Evaluated, gap: float, resolution: float) -> Face:
    """The verdict on a point, with the least curvature and the signs of the eigenvalues of Hess f.

    Both are NaN and None where the certificate decides and Hess f has more than 2500 rows.

    Args:
        at: a point of unit vectors.
        gap, resolution: of its certificate, in nats.

    Raises:
        Refused: more than 2500 tangents at a point that its certificate does not decide.
    """
    unknown = float("nan")
    if not float(sphere.unit(np.float64(at.value))) > 0:
        reason = f"f = {at.value:.3g} is so small that float64 loses its digits; lower the scale"
        return Face("undecided", reason, unknown, None, unknown)
    W, H, _ = at.params
    pull = (length(W) + length(H)) * length(at.G)
    share, error = at.grad_norm / (pull or 1.0), gradient_rounding(at) / (pull or 1.0)
    if share > TOLERANCE + 4 * error:
        reason = (
            f"|Riemannian grad f| = {at.grad_norm:.3g} is {share:.3g} of the terms that cancel "
            f"(allowed: {TOLERANCE + 4 * error:.3g}); polish the point with ufm.solve"
        )
        return Face("not critical", reason, unknown, None, unknown)
    u, v = sphere.multipliers(W, H, at.G)
    entries, least = 2 * EPS * (2 + heat(at.problem)), float(min(u.min(), v.min()))
    held = float(np.sum(np.abs(u)) + np.sum(np.abs(v)))
    slack = 16 * resolution + CAUTION * (share + max(error, entries)) * held
    proven = gap <= slack <= SHARE * at.value
    reason = f"f exceeds the global minimum by at most {gap:.3g} (slack {slack:.3g})"
    if proven and size(at.problem) > MOST:
        return Face("global minimiser", reason, unknown, None, least)
    face = _by_signs(at, tangents(at), entries)._replace(multiplier=least)
    return face._replace(kind="global minimiser", reason=reason) if proven else face


def _by_signs(at: Evaluated, found: Tangents, entries: float) -> Face:
    """The second-order conditions at a critical point."""
    turns, whole = found.turns, found.matrix
    largest = float(np.max(np.sum(np.abs(whole), axis=1)))
    # The eigenvalues of the rotations are `largest` now, among the positive ones.
    inner = np.linalg.eigvalsh(whole + largest * (turns.T @ turns))
    values = np.concatenate([inner, found.within])
    times = np.concatenate([np.ones(len(inner), int), np.array(found.times, int)])
    error = CAUTION * (entries * largest + float(at.grad_norm) * (1 + heat(at.problem)))
    negative = int(np.sum(times[values < -error]))
    zero = int(np.sum(times[np.abs(values) <= error]))
    known, total, lowest = len(turns), int(np.sum(times)), float(np.min(values))
    counts = Inertia(negative, zero + known, total - negative - zero - known, error, 0.0)
    kind: Kind = "strict saddle" if negative else "undecided" if zero else "local minimiser"
    reason = (
        f"in tangents all eigenvalues but the {known} of rotations are at least {lowest:.3g}; the "
        "certificate does not close"
    )
    if zero:
        reason = f"{zero} eigenvalues in tangents within {error:.3g} of 0 are no rotations"
    if negative:
        reason = (
            f"{negative} eigenvalues of the Hessian in tangents are below {-error:.3g}, the lowest "
            f"{lowest:.6g}"
        )
    return Face(kind, reason, lowest, counts, float("nan"), known)
