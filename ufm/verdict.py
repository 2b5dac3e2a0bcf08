"""What a critical point is: global minimiser, strict saddle or local minimiser, with evidence.

A critical point is a global minimiser iff ‖G‖₂ ≤ μ = √(λ_W λ_H). Otherwise, with (u, v) the top
singular pair of G and a unit vector a orthogonal to the row space of [Wᵀ, H] (there is one if d
exceeds its dimension), the plane of (u aᵀ, 0) and (0, −a vᵀ) holds an exact eigenvector of ∇²f,

    λ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²) < 0,

so the point is a strict saddle (Zhu et al. 2021, arXiv 2105.02375, theorem 3.2). Without an
orthogonal direction the smallest eigenvalue is computed, and the index counted.
"""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ufm import certificate, reduction
from ufm.check import Refused
from ufm.curvature import in_float64, product
from ufm.inertia import Inertia, inertia, rounding
from ufm.problem import Params, Problem
from ufm.reduction import Core
from ufm.spectra import orbit_dimension

Kind = Literal["global minimiser", "local minimiser", "strict saddle", "not critical", "undecided"]


class Witness(NamedTuple):
    """A direction at a critical point and the curvature along it.

    direction: a unit tangent, float64.
    curvature: ⟨direction, ∇²f direction⟩ by `hessian.product` at the point itself.
    predicted: the eigenvalue that theory gives it.
    explicit: True for the plane of the module's head, False for a computed eigenvector.
    """

    direction: Params
    curvature: float
    predicted: float
    explicit: bool


class Verdict(NamedTuple):
    """What a point is, and the evidence.

    kind: "global minimiser", "local minimiser", "strict saddle", "not critical" or "undecided".
    reason: one sentence with the numbers that decide.
    residual: ‖∇f‖.  gap: certified bound on f − f*.  spectral_ratio: ‖G‖₂/μ.
    curvature: Rayleigh quotient of the witness; NaN if the point is not critical.
    inertia: counts of the Hessian's eigenvalues, where they were needed.
    """

    kind: Kind
    reason: str
    residual: float
    gap: float
    spectral_ratio: float
    curvature: float
    inertia: Inertia | None


def witness(problem: Problem, point: Params) -> Witness:
    """The direction of negative curvature at a critical point that is not a global minimiser.

    At a global minimiser the same construction yields a direction of curvature ≥ 0.

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0.
        point: a critical point, in float64.

    Raises:
        Refused: a point that is not critical, wrong shapes or entries that are not finite;
            arrays that are not real floating, array-valued decays, traced values.
    """
    core = reduction.critical_core(problem, point)
    if core.idle:
        direction, predicted = _orthogonal_direction(core)
    else:
        direction, predicted = _smallest_eigenvector(core)
    with jax.enable_x64(True):
        at, tangent = in_float64(point), in_float64(direction)
        curvature = float(_rayleigh(problem, at, tangent))
    return Witness(tangent, curvature, predicted, core.idle > 0)


@jax.jit
def _rayleigh(problem: Problem, point: Params, tangent: Params) -> jax.Array:
    """⟨tangent, ∇²f tangent⟩."""
    image = product(problem, point, tangent)
    return jnp.sum(jnp.stack([jnp.vdot(x, y) for x, y in zip(tangent, image, strict=True)]))


def _orthogonal_direction(core: Core) -> tuple[Params, float]:
    """α(u aᵀ, 0) + γ(0, −a vᵀ), (α, γ) the lower eigenvector of [[λ_W, −g], [−g, λ_H]]."""
    lam_W, lam_H, _ = core.decays
    U, g, Vt = np.linalg.svd(core.G * np.sqrt(core.weights), full_matrices=False)
    values, vectors = np.linalg.eigh([[lam_W, -g[0]], [-g[0], lam_H]])
    alpha, gamma = vectors[:, 0]
    # The axis that is worst covered by the frame leaves the longest part outside it.
    a = np.zeros(len(core.frame))
    a[np.argmin(np.sum(core.frame**2, axis=1))] = 1.0
    for _ in range(2):
        a -= core.frame @ (core.frame.T @ a)
        a /= np.linalg.norm(a)
    v = (Vt[0] / np.sqrt(core.weights))[core.owner]
    direction = Params(alpha * np.outer(U[:, 0], a), -gamma * np.outer(a, v), np.zeros(len(U)))
    return direction, float(values[0])


def _smallest_eigenvector(core: Core) -> tuple[Params, float]:
    """The lowest eigenpair on the core, turned back into a tangent of the whole problem."""
    (K, s), M = core.W.shape, core.H.shape[1]
    reduction.check_memory(K * (s + core.bias) + s * M, "core Hessian", core)
    values, vectors = scipy.linalg.eigh(reduction.core_matrix(core), subset_by_index=[0, 0])
    outer, inner = np.split(vectors[:, 0], [K * (s + core.bias)])
    outer = outer.reshape(K, s + core.bias)
    scaled = inner.reshape(M, s) / np.sqrt(core.weights)[:, None]
    b = outer[:, s] if core.bias else np.zeros(K)
    direction = Params(outer[:, :s] @ core.frame.T, core.frame @ scaled[core.owner].T, b)
    return direction, float(values[0])


def verdict(problem: Problem, point: Params) -> Verdict:
    """Decide what a point is, in this order, each step with its own proof.

    1. residual ‖∇f‖ above `reduction.critical_residual`: "not critical".
    2. curvature along the witness below −τ: "strict saddle".
    3. certified gap f − f* within rounding and residual: "global minimiser".
    4. inertia: a negative eigenvalue makes a "strict saddle"; none, and a nullity equal to the
       dimension of the symmetry orbit, a "local minimiser"; otherwise "undecided".

    τ is 1024 times rounding plus residual/min(λ_W, λ_H), an estimate of how far the exact critical
    point may be: what lies within it is left to the next step.

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0.
        point: any point; a critical one in float64 is needed for anything but "not critical".

    Raises:
        Refused: λ_W or λ_H zero (f then has no minimum), wrong shapes, non-finite entries;
            arrays that are not real floating, array-valued decays, traced values.
    """
    least = min(float(problem.lam_W), float(problem.lam_H))
    if not least > 0:
        raise Refused(
            f"got lam_W={problem.lam_W}, lam_H={problem.lam_H}; a verdict needs both > 0: "
            "without decay the infimum is not attained"
        )
    proof = certificate.certify(problem, point)
    residual, allowed = reduction.critical_residual(problem, point)
    evidence = (residual, float(proof.gap), float(proof.spectral_ratio))
    if not residual <= allowed:
        reason = (
            f"|grad f| = {residual:.3g} exceeds {allowed:.3g} in float64; polish the point with "
            "ufm.solve"
        )
        return Verdict("not critical", reason, *evidence, float("nan"), None)
    core, distance = reduction.critical_core(problem, point), residual / least
    tolerance = 1024 * rounding(core, 0.0, np.array([core.decays[1]])) + distance
    curvature = witness(problem, point).curvature
    if curvature < -tolerance:
        reason = f"an explicit direction has curvature {curvature:.6g} < -{tolerance:.3g}"
        return Verdict("strict saddle", reason, *evidence, curvature, None)
    slack = 16 * float(proof.resolution) + 16 * distance
    if proof.gap <= slack:
        reason = f"f exceeds the global minimum by at most {proof.gap:.3g} (slack {slack:.3g})"
        return Verdict("global minimiser", reason, *evidence, curvature, None)
    counts = inertia(problem, point, tolerance=tolerance)
    kind, reason = from_counts(problem, core, counts)
    return Verdict(kind, reason, *evidence, curvature, counts)


def from_counts(problem: Problem, core: Core, counts: Inertia) -> tuple[Kind, str]:
    """The verdict on a critical point by its inertia alone, and the sentence that says why."""
    orbit = orbit_dimension(problem, core.W.shape[1])
    if counts.negative:
        return "strict saddle", f"the Hessian has {counts.negative} negative eigenvalues"
    if counts.zero == orbit:
        return "local minimiser", (
            f"no eigenvalue below {counts.tolerance:.3g} but the {orbit} of the symmetry orbit"
        )
    return "undecided", (
        f"no negative eigenvalue, but {counts.zero} within {counts.tolerance:.3g} of 0 where the "
        f"symmetry orbit accounts for {orbit}: higher derivatives decide"
    )
