"""Index and nullity of the Hessian at any point, for any number of samples.

After the reductions of `ufm.hessian.reduction` the features are eliminated. By Haynsworth's
additivity of inertia (1968)

    #{λ < σ} = Σ_j #{negative eigenvalues of A_j} + #{negative eigenvalues of C(σ)},

with A_j the blocks of ∇²f − σI in the features and C(σ) the Schur complement on (W, b), of size
K(s+1) whatever N is (`ufm.hessian.schur`). Where H ≥ 0, the zeros of H are no variables of either
(`ufm.hessian.supports`); on the sphere all eigenvalues are computed (`ufm.hessian.tangents`).
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from ufm.check import Refused, real
from ufm.hessian import supports, tangents
from ufm.hessian.reduction import EPS, Core, check_memory, lifted, reduced
from ufm.hessian.schur import Elimination, freely, negatives, width_of
from ufm.model.evaluation import residuals
from ufm.model.fixed import require_free
from ufm.model.problem import Params, Problem, require
from ufm.theory.spectra import Spectrum


class Inertia(NamedTuple):
    """How many eigenvalues of ∇²f lie below, at and above a shift.

    negative: those below shift − tolerance (the Morse index at shift 0).
    zero: those within the tolerance of the shift.
    positive: those above shift + tolerance.
    tolerance, shift: in the units of ∇²f.
    note: a warning if eigenvalues as small as the decays may be within the tolerance; otherwise
        empty.
    """

    negative: int
    zero: int
    positive: int
    tolerance: float
    shift: float
    note: str = ""


class Rounding(NamedTuple):
    """Size of the rounding errors of a count at σ: ε (‖∇²f‖ + |σ| + ‖Ĝ‖²/gap).

    gap is the distance from σ to the eigenvalues of the H-block, by which elimination divides.
    Below λ_W and the least decay λ_H of a feature it is λ_H − σ + λ_W − σ. There elimination has an
    error of E = ε‖Ĝ‖²/(λ_H − σ) in C(σ), which moves a zero of xᵀC(σ)x by E/(1 + ‖y‖²) only, with
    y = A⁻¹Bᵀx its part in H; and where xᵀCx = 0 by cancellation of G, (λ_H − σ)‖y‖² ≥
    (λ_W − σ)‖x‖². For x on which G vanishes this requires E to be small beside λ_W − σ.

    size: a bound on ‖∇²f‖.  pairing: ‖Ĝ‖.  decays: λ_W and λ_H.
    """

    size: float
    pairing: float
    decays: tuple[float, float]

    def at(self, sigma: float, poles: np.ndarray) -> float:
        """The size of the errors at σ.

        Args:
            sigma: σ, in the units of ∇²f.
            poles: the eigenvalues of the H-block.
        """
        gap = float(np.min(np.abs(poles - sigma), initial=np.inf))
        left = self.decays[0] - sigma
        if sigma < self.decays[1] and 64 * EPS * self.pairing**2 <= gap * left:
            gap += left
        coupled = self.pairing * min(self.pairing / gap, 1 / EPS) if gap > 0 else self.pairing / EPS
        return float(EPS * (self.size + abs(sigma) + coupled))


def rounding(core: Core) -> Rounding:
    """The `Rounding` of a point: ‖∇²f‖ ≤ max λ + sup‖S‖(w‖W‖² + ‖Σ w_j h̃_jh̃_jᵀ‖), and ‖Ĝ‖."""
    features = lifted(core) * np.sqrt(core.merged * core.weight)[:, None]
    moment = np.linalg.norm(features.T @ features, 2)
    data = np.linalg.norm(core.W, 2) ** 2 * np.max(core.weight) + moment
    size = max(*core.decays, float(np.max(core.decay))) + core.smoothness * data
    pairing = np.linalg.norm(core.pairing, 2)
    return Rounding(float(size), float(pairing), (core.decays[0], float(np.min(core.decay))))


def inertia(
    problem: Problem, point: Params, shift: float = 0.0, tolerance: float | None = None
) -> Inertia:
    """Count the eigenvalues of ∇²f below, at and above a shift, at any point, without the matrix.

    The features are eliminated, so that the largest matrix has K(s+1) ≤ K(d+1) rows whatever N is,
    s being the rank of [Wᵀ, H] (`ufm.hessian.signs`). zero = #{λ < shift + τ} − #{λ < shift − τ}.
    An eigenvalue within rounding (about 1e-16 ‖∇²f‖) of shift ± τ may be counted on either side.

    At a critical point known to a residual r = ‖∇f‖ the eigenvalues along its symmetry orbit are
    not 0 but O(r/‖W‖): polish it first (`ufm.solve`), or give a tolerance above that.

    Where H ≥ 0, the counts are of ∇²f on the face of the point, at any point: over W, b and the
    entries H_ai > 0, with the zeros of H fixed; the largest matrix has K(d+1) rows. They add up to
    K d + #{H_ai > 0} (+ K with a bias) and say nothing about directions that leave the face.

    On the sphere, the counts are of the Hessian in tangents, at any point (`ufm.hessian.tangents`).

    Args:
        problem: any problem, any class counts, with scalar decays and W not fixed.
        point: any point, upcast to float64.
        shift: σ in the units of ∇²f.
        tolerance: τ > 0. None takes 1024 times the rounding errors; for a shift below λ_H at most a
            quarter of the distance to λ_H, but at least 64 times these errors. Eigenvalues known in
            closed form are then counted with the smaller tolerance that suffices for them. On the
            sphere None takes 1e-11 times the largest modulus.

    Returns:
        An `Inertia`.

    Raises:
        Refused: a tolerance below 32 times the rounding errors, which grow where shift ± τ is close
            to an eigenvalue of the H-block (all are ≥ λ_H for convex ℓ); a shift that is no finite
            number; a complement beyond 2 GiB; wrong shapes, or entries that are not finite or
            beyond 1e150; arrays that are not real floating, array-valued decays, traced values;
            negative entries of H where H ≥ 0; a fixed classifier.
    """
    shift = real("shift", shift)
    if tolerance is not None:
        tolerance = real("tolerance", tolerance, above=0, also="or None")
    require(problem)
    require_free(problem)
    return _COUNTS[problem.features](problem, point, shift, tolerance)


def _of_all(problem: Problem, point: Params, shift: float, tolerance: float | None) -> Inertia:
    return counted(problem, reduced(residuals(problem, point)), shift, tolerance)


def _on_the_face(problem: Problem, point: Params, shift: float, tolerance: float | None) -> Inertia:
    at = residuals(problem, point)
    return _count(supports.elimination(problem, at), shift, tolerance)


def _in_tangents(problem: Problem, point: Params, shift: float, tolerance: float | None) -> Inertia:
    return inertia_of(tangents.spectrum(problem, point, 0.0), shift, tolerance)


# By the kind of features (`ufm.model.layers`).
_COUNTS: dict[str, Callable[[Problem, Params, float, float | None], Inertia]] = {
    "free": _of_all,
    "nonnegative": _on_the_face,
    "sphere": _in_tangents,
}


def counted(
    problem: Problem, core: Core, shift: float = 0.0, tolerance: float | None = None
) -> Inertia:
    """`inertia` at a point with free features that has been reduced to its core.

    Args:
        problem: of the point.
        core: of the point, by `ufm.hessian.reduction`.
        shift, tolerance: as for `inertia`.

    Raises:
        Refused: a tolerance below the rounding errors; a complement beyond 2 GiB.
    """
    return _count(freely(problem, core), shift, tolerance)


def _count(at: Elimination, shift: float, tolerance: float | None) -> Inertia:
    """Haynsworth's sum on both sides of the shift."""
    core = at.core
    check_memory(width_of(core), "Schur complement", core)
    lam_H = float(np.min(core.decay))
    error = rounding(core)
    margin, poles, needed = _margin(at, error, shift, tolerance)
    edges = (shift - margin, shift + margin)
    if not margin >= needed:
        raise Refused(
            f"got tolerance={margin:.3g} at shift={shift:.6g}, where rounding alone needs "
            f"{needed:.3g}: eigenvalues this close to the shift are undecided. Raise the "
            f"tolerance, or move the shift away from lam_H={lam_H:.6g}"
        )
    closed = _closed_margin(core, error.pairing, shift, margin) if tolerance is None else margin
    values, multiplicities = (np.asarray(x) for x in at.outside())
    below = []
    for edge, outer in zip(edges, (shift - closed, shift + closed), strict=True):
        count = int(np.sum(multiplicities[values < outer]))
        if edge > lam_H or not core.convex:
            count += int(np.sum(poles < edge))
        below.append(count + negatives(at.complement(edge)))
    lower, upper = below
    note = _note(core, shift, margin)
    return Inertia(lower, upper - lower, at.size - upper, margin, shift, note)


def _margin(
    at: Elimination, error: Rounding, shift: float, tolerance: float | None
) -> tuple[float, np.ndarray, float]:
    """(τ, the eigenvalues of the H-block that matter, the least τ that rounding allows)."""
    core = at.core
    lam_H = float(np.min(core.decay))
    poles = np.array([lam_H])
    margin = 1024 * error.at(shift, poles) if tolerance is None else tolerance
    if tolerance is None and shift < lam_H:
        margin = min(margin, max(margin / 16, (lam_H - shift) / 4))
    if shift + margin >= lam_H or not core.convex:
        poles = at.poles()
        margin = 1024 * error.at(shift, poles) if tolerance is None else margin
    if tolerance is None:  # the estimate is infinite at a pole itself, but not close to it
        margin = min(margin, 64 * EPS**0.5 * (error.size + abs(shift) + error.pairing))

    def needed() -> float:
        return 32 * max(error.at(edge, poles) for edge in (shift - margin, shift + margin))

    while tolerance is None and margin < needed():
        margin *= 2
    return float(margin), poles, needed()


def _closed_margin(core: Core, pairing: float, shift: float, margin: float) -> float:
    """τ for the eigenvalues outside the core, whose only errors are those of ‖Ĝ‖ and the decays.

    This holds below λ_H; eigenvalues of merged samples, all ≥ λ_H, have the errors of the others.
    """
    largest = max(core.decays[0], float(np.max(core.decay)))
    closed = 1024 * EPS * (largest + pairing + abs(shift))
    return min(margin, closed) if shift + closed < np.min(core.decay) else margin


def _note(core: Core, shift: float, margin: float) -> str:
    """The warning of an `Inertia`."""
    lam_W, lam_H, lam_b = core.decays[0], float(np.min(core.decay)), core.decays[2]
    least = min(lam for lam in (lam_W, lam_H, lam_b if core.bias else 0.0, np.inf) if lam > 0)
    if not abs(shift) <= margin or margin < least:
        return ""
    return (
        f"the tolerance {margin:.3g} exceeds the smallest decay {least:.3g}: eigenvalues of that "
        "size count as zero"
    )


def inertia_of(spectrum: Spectrum, shift: float = 0.0, tolerance: float | None = None) -> Inertia:
    """Index and nullity of a spectrum: how many eigenvalues lie below, at and above a shift.

    Args:
        spectrum: from `spectrum`, or a closed form (`ufm.theory.hessian_spectrum`).
        shift: σ in the units of ∇²f.
        tolerance: τ ≥ 0; None takes 1e-11 times the largest modulus.

    Returns:
        An `Inertia`.

    Raises:
        Refused: no `Spectrum`; a shift or a tolerance that is no finite number.
    """
    if not isinstance(spectrum, Spectrum):
        raise Refused(f"got a {type(spectrum).__name__} as spectrum; allowed: a hessian.Spectrum")
    values, shift = spectrum.eigenvalues, real("shift", shift)
    if tolerance is None:
        tolerance = 1e-11 * float(np.max(np.abs(values)))
    tolerance = real("tolerance", tolerance, least=0, also="or None")
    pairs = list(zip(values, spectrum.multiplicities, strict=True))
    lower = sum(m for v, m in pairs if v < shift - tolerance)
    upper = sum(m for v, m in pairs if v > shift + tolerance)
    return Inertia(lower, sum(spectrum.multiplicities) - lower - upper, upper, tolerance, shift)
