"""What a critical point is: global minimiser, strict saddle or local minimiser, with evidence.

A critical point with ‖G‖₂ ≤ μ = √(λ_W λ_H) is a global minimiser. Otherwise, with (u, v) the top
singular pair of G and a unit vector a orthogonal to the row space of [Wᵀ, H] (there is one if d
exceeds its dimension), the plane of (u aᵀ, 0) and (0, −a vᵀ) holds an exact eigenvector of ∇²f,

    λ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²) < 0,

so the point is a strict saddle. (With weights Ω in the decay of the features, GΩ^-½ replaces G, and
the lowest eigenvector of [[λ_W I, G], [Gᵀ, λ_H Ω]] replaces the plane.) For d ≥ K−1 a always exists
(`ufm.theory.landscape`; Zhu et al. 2021, arXiv 2105.02375, theorem 3.2, for d > K).
For d < K−1 and without an orthogonal direction, the smallest eigenvalue is computed and the index
counted.

(W, H) ↦ (sW, H/s) with s = (λ_W/λ_H)^¼ makes both decays μ. It changes neither the signs of the
eigenvalues (Sylvester) nor the comparisons below, so nothing here depends on λ_H/λ_W.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg

from ufm import certificate
from ufm.hessian import ends, faces, fixed, reduction, sphere
from ufm.hessian.curvature import Linearization, apply, in_float64, linearized
from ufm.hessian.faces import Kind
from ufm.hessian.reduction import Core
from ufm.hessian.signs import Inertia
from ufm.hessian.stationarity import CAUTION, EPS, SHARE, logit_rounding, measured, require_decay
from ufm.model import layers
from ufm.model.evaluation import Evaluated, evaluate
from ufm.model.problem import Params, Problem
from ufm.theory import landscape, squared
from ufm.theory.spectra import orbit_dimension

BLIND = 1e-2  # uncertainty of a residual, in the terms that cancel, beyond which nothing is decided


class Witness(NamedTuple):
    """A direction at a critical point and the curvature along it.

    direction: a unit tangent, float64.
    curvature: ⟨direction, ∇²f direction⟩ at the point, by `hessian.apply`.
    predicted: the eigenvalue of ∇²f that belongs to the direction.
    explicit: True if the direction lies in the plane of (u aᵀ, 0) and (0, −a vᵀ) known from theory,
        False if it is a computed eigenvector.
    """

    direction: Params
    curvature: float
    predicted: float
    explicit: bool


class Verdict(NamedTuple):
    """What kind of critical point a point is, and the evidence.

    kind: "global minimiser", "local minimiser", "strict saddle", "not critical" or "undecided".
    reason: one sentence with the numbers that decide.
    residual: ‖∇f‖.  gap: certified bound on f − f*, in nats.  spectral_ratio: ‖G‖₂/μ.
    curvature: Rayleigh quotient of the witness; NaN if the point is not critical.
    inertia: the signs of the eigenvalues of ∇²f where the verdict needed them, otherwise None; its
        tolerance is in the units of ∇²f in the coordinates in which λ_W = λ_H = μ.
    """

    kind: Kind
    reason: str
    residual: float
    gap: float
    spectral_ratio: float
    curvature: float
    inertia: Inertia | None


class Judged(NamedTuple):
    """A verdict with the certificate and the core from which it was derived.

    core: of the critical point; None if the point is not critical or its features are not free.
    """

    verdict: Verdict
    proof: certificate.Certificate
    core: Core | None


def witness(problem: Problem, point: Params) -> Witness:
    """The direction of negative curvature at a critical point that is not a global minimiser.

    Where a direction orthogonal to the row space of [Wᵀ, H] exists it lies in the plane of
    (u aᵀ, 0) and (0, −a vᵀ), otherwise it is the computed eigenvector of the smallest eigenvalue
    (see `ufm.hessian.decision`). At a global minimiser its curvature is ≥ 0.

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0.
        point: a critical point, in float64.

    Returns:
        A `Witness`.

    Raises:
        Refused: a point that is not critical, wrong shapes or entries that are not finite;
            arrays that are not real floating, array-valued decays, traced values.
    """
    layers.require_free(problem, "hessian.witness")
    at = evaluate(problem, point)
    return _witness(at, reduction.collapsed(measured(at)))


def _witness(at: Evaluated, core: Core) -> Witness:
    if core.idle:
        direction, predicted = _orthogonal_direction(core)
    else:
        direction, predicted = _smallest_eigenvector(core)
    with jax.enable_x64(True):
        tangent = in_float64(direction)
        curvature = float(_rayleigh(linearized(at), tangent))
    return Witness(tangent, curvature, predicted, core.idle > 0)


@jax.jit
def _rayleigh(at: Linearization, tangent: Params) -> jax.Array:
    """⟨tangent, ∇²f tangent⟩."""
    image = apply(at, tangent)
    return jnp.sum(jnp.stack([jnp.vdot(x, y) for x, y in zip(tangent, image, strict=True)]))


def _orthogonal_direction(core: Core) -> tuple[Params, float]:
    """x aᵀ in W and a yᵀ in H, (x, y) the lowest eigenvector of an idle dimension a."""
    x, y, value = reduction.free_direction(core)
    # The axis that is worst covered by the frame leaves the longest part outside it.
    a = np.zeros(len(core.frame))
    a[np.argmin(np.sum(core.frame**2, axis=1))] = 1.0
    for _ in range(2):
        a -= core.frame @ (core.frame.T @ a)
        a /= np.linalg.norm(a)
    y = (y / np.sqrt(core.merged))[core.owner]
    return Params(np.outer(x, a), np.outer(a, y), np.zeros(len(x))), value


def _smallest_eigenvector(core: Core) -> tuple[Params, float]:
    """The lowest eigenpair on the core, as a tangent of the whole problem."""
    (K, s), M = core.W.shape, core.H.shape[1]
    reduction.check_memory(K * (s + core.bias) + s * M, "core Hessian", core)
    values, vectors = scipy.linalg.eigh(reduction.core_matrix(core), subset_by_index=[0, 0])
    outer, inner = np.split(vectors[:, 0], [K * (s + core.bias)])
    outer = outer.reshape(K, s + core.bias)
    scaled = inner.reshape(M, s) / np.sqrt(core.merged)[:, None]
    b = outer[:, s] if core.bias else np.zeros(K)
    direction = Params(outer[:, :s] @ core.frame.T, core.frame @ scaled[core.owner].T, b)
    return direction, float(values[0])


class _Doubt(NamedTuple):
    """The errors of a point that its residual and rounding leave open.

    entries: relative error of the entries of G, and so of what the data term determines.
    decayed: relative error of what only the decay determines, in logits.
    """

    entries: float
    decayed: float

    def of(self, size: float, mu: float) -> float:
        """Error of a quantity of this size that decay changes by about μ."""
        return CAUTION * (self.entries * (size + mu) + self.decayed * mu)


def verdict(problem: Problem, point: Params) -> Verdict:
    """Decide what kind of critical point a point is.

    The conditions are tested in this order; each answer has its own proof.

    1. ∇f is not small beside the terms that cancel in it (`ufm.hessian.stationarity`): "not
       critical". If rounding leaves more than 1e-2 of them uncertain: "undecided".
    2. ‖G‖₂ > μ, and a direction orthogonal to the row space exists, or d ≥ K−1 (every critical
       point that is not a minimiser then has one) and the curvature is negative: "strict saddle".
    3. The certified gap f − f* is within rounding and residual, and these are within 1e-6 f*:
       "global minimiser". For the squared error f* is also known where the certificate is not
       tight, as with fewer dimensions than modes (`ufm.theory.squared`); the reason then says so.
    4. There is no orthogonal direction (r = d): the eigenvalues of ∇²f off the symmetry orbit
       decide. A negative one means "strict saddle"; if all are positive, "local minimiser".
    5. Otherwise "undecided".

    Where the classifier is fixed, step 3 alone decides on the problem in (H, b), which is convex
    for a convex loss; spectral_ratio and curvature are then NaN.

    Every comparison in 2 to 4 allows for 64 times the estimated error: the relative rounding of the
    entries of G times the size of what is compared, plus (1 + max|Z|) μ times the uncertain share
    of ∇f. With λ_W = λ_H = λ and logits of order 10, minima are decided down to the smallest λ and
    saddles whose G is of order 1 down to about 1e-11.

    Where H ≥ 0, the residual is that of the projected gradient. Beside the certificate, the
    multipliers at the zeros of H and the curvature on the face of the other entries decide
    (`ufm.hessian.faces`): a "strict saddle" has negative curvature there; a "local minimiser" has
    positive multipliers and positive curvature off the symmetries of the face.

    On the sphere, the gradient is the Riemannian one, and curvature and counts are those of the
    Hessian in tangents (`ufm.hessian.tangents`, `ufm.hessian.sphere`); spectral_ratio is NaN. Only
    the certificate proves a "global minimiser", and a point whose f is too small for float64 to
    have digits is "undecided".

    Args:
        problem: any class counts, any d, λ_W, λ_H > 0. λ_W may be 0 where W is fixed; on the sphere
            there are no decays.
        point: any point. Points known only in float32 are mostly "not critical": polish them first
            by `ufm.solve`.

    Returns:
        A `Verdict`.

    Raises:
        Refused: λ_W or λ_H zero (f then has no minimum), wrong shapes, non-finite entries;
            arrays that are not real floating, array-valued decays, traced values.
    """
    return judged(evaluate(problem, point)).verdict


def judged(at: Evaluated) -> Judged:
    """`verdict` of a point that has been evaluated."""
    problem = at.problem
    if problem.fixed:
        return _with_fixed_classifier(at)
    if not layers.is_free(problem):
        return _constrained(at)
    require_decay(problem)
    slope, proof = measured(at), certificate.certified(at)
    evidence = (slope.residual, float(proof.gap), float(proof.spectral_ratio))
    if not slope.critical:
        reason = f"{slope.told()}; polish the point with ufm.solve"
        return Judged(Verdict("not critical", reason, *evidence, float("nan"), None), proof, None)
    core = reduction.collapsed(slope)
    curvature = _witness(at, core).curvature
    if slope.uncertainty > BLIND:
        reason = (
            f"float64 leaves {slope.uncertainty:.3g} of the terms that cancel in grad f uncertain "
            f"(more than {BLIND:g}): too small are the decays {core.decays} beside G"
        )
        return Judged(Verdict("undecided", reason, *evidence, curvature, None), proof, core)
    entries = logit_rounding(at.params)
    doubt = _Doubt(entries, entries / (2 * EPS) * slope.uncertainty)
    kind, reason, counts = _decided(problem, core, proof, doubt, curvature)
    return Judged(Verdict(kind, reason, *evidence, curvature, counts), proof, core)


# Where features are not free.
_FACES = {"nonnegative": faces.judged, "sphere": sphere.judged}


def _constrained(at: Evaluated) -> Judged:
    """The verdict where H ≥ 0 (`ufm.hessian.faces`), and on the sphere (`ufm.hessian.sphere`)."""
    proof = certificate.certified(at)
    gap, ratio = float(proof.gap), float(proof.spectral_ratio)
    face = _FACES[at.problem.features](at, gap, float(proof.resolution))
    found = Verdict(
        face.kind, face.reason, at.grad_norm, gap, ratio, face.curvature, face.counts
    )  # fmt: skip
    return Judged(found, proof, None)


def _with_fixed_classifier(at: Evaluated) -> Judged:
    """`judged` where W is fixed, by `ufm.hessian.fixed`."""
    slope, proof = measured(at), certificate.certified(at)
    kind, reason = fixed.decided(at.problem, slope, proof)
    evidence = (slope.residual, float(proof.gap), float("nan"))
    return Judged(Verdict(kind, reason, *evidence, float("nan"), None), proof, None)


def _decided(
    problem: Problem,
    core: Core,
    proof: certificate.Certificate,
    doubt: _Doubt,
    curvature: float,
) -> tuple[Kind, str, Inertia | None]:
    """Steps 2 to 5 of `verdict`: (kind, reason, counts)."""
    lam_W, lam_H, lam_b = core.decays
    mu = lam_W**0.5 * lam_H**0.5
    sigma = core.ratio
    error = doubt.of(sigma, mu)
    least = landscape.benign_width(problem)
    wide = least is not None and problem.d >= least
    # Without an idle dimension W has full rank by rounding alone: the theorem gives a lower one.
    if (core.idle or (wide and curvature < 0)) and sigma - mu > error:
        theorem = (
            f", a strict saddle by the theorem for d >= {landscape.width_name(problem)} "
            f"(d={problem.d}, K={problem.K})"
        )
        reason = (
            f"{'an explicit' if core.idle else 'the lowest'} direction has curvature "
            f"{curvature:.6g}: |G|_2 = {sigma:.6g} exceeds mu = {mu:.6g} by more than {error:.3g}"
            f"{theorem if wide else ''}"
        )
        return "strict saddle", reason, None
    gap, value = float(proof.gap), float(proof.value)
    held = lam_W * np.sum(core.W**2) + lam_b * np.sum(core.b**2)
    held += np.sum(core.H**2 * (core.merged * core.decay))
    slack = 16 * float(proof.resolution) + doubt.of(mu, mu) / mu * float(held)
    known = ""
    if gap > slack and (least_value := _known_minimum(problem)) is not None:
        gap, known = value - least_value, ", the closed form of the squared error,"
    if gap <= slack <= SHARE * value:
        reason = f"f exceeds the global minimum{known} by at most {gap:.3g} (slack {slack:.3g})"
        return "global minimiser", reason, None
    if core.idle == 0:
        counts = _off_the_orbit(problem, core, doubt)
        return *from_counts(problem, core, counts), counts
    lacks = "" if problem.loss.dual else ", and this loss has no certificate"
    return (
        "undecided",
        (
            f"|G|_2 = {sigma:.6g} is within {error:.3g} of mu = {mu:.6g}, and the certified gap is "
            f"{gap:.3g} of f = {value:.3g} (slack {slack:.3g}): "
            f"the point is not known well enough{lacks}"
        ),
        None,
    )


def _known_minimum(problem: Problem) -> float | None:
    """f* of the squared error; the convex bound is not tight where d is below its modes."""
    return squared.global_value(problem) if squared.fails(problem) is None else None


def _off_the_orbit(problem: Problem, core: Core, doubt: _Doubt) -> Inertia:
    """Signs of the eigenvalues of a core without idle dimensions, those of the orbit left out.

    In the coordinates in which λ_W = λ_H = μ. The tangents of the orbit, (W Aᵀ, A H) with A
    antisymmetric and 1 in b if λ_b = 0, are known: adding c QᵀQ, with Q an orthonormal basis of
    them, shifts their eigenvalues from 0 to c.
    """
    (K, s), M = core.W.shape, core.H.shape[1]
    lam_W, lam_H, lam_b = core.decays
    turn, mu = (lam_W / lam_H) ** 0.25, lam_W**0.5 * lam_H**0.5
    core = core._replace(
        W=core.W * turn, H=core.H / turn, decays=(mu, mu, lam_b), decay=core.decay * (mu / lam_H)
    )
    reduction.check_memory(K * (s + core.bias) + s * M, "core Hessian", core)
    matrix, rows = reduction.core_matrix(core), ends.tangents(problem, core)
    size = float(np.max(np.sum(np.abs(matrix), axis=1)))
    matrix = matrix + size * (rows.T @ rows)
    values, error = np.linalg.eigvalsh(matrix), doubt.of(size, mu)
    negative = int(np.sum(values < -error))
    zero = len(rows) + int(np.sum(np.abs(values) <= error))
    return Inertia(negative, zero, problem.size - negative - zero, error, 0.0)


def from_counts(problem: Problem, core: Core, counts: Inertia) -> tuple[Kind, str]:
    """(kind, reason) of a critical point by its inertia alone."""
    orbit, least = orbit_dimension(problem, core.W.shape[1]), landscape.benign_width(problem)
    if counts.negative:
        return "strict saddle", f"the Hessian has {counts.negative} negative eigenvalues"
    if counts.zero == orbit:
        width = landscape.width_name(problem)
        theorem = (
            f"; by the theorem for d >= {width} the critical point near by is a global minimiser, "
            "but the certified gap does not show it"
        )
        return "local minimiser", (
            f"no eigenvalue below {counts.tolerance:.3g} but the {orbit} of the symmetry orbit"
            f"{theorem if least is not None and problem.d >= least else ''}"
        )
    return "undecided", (
        f"no negative eigenvalue, but {counts.zero} within {counts.tolerance:.3g} of 0 where the "
        f"symmetry orbit accounts for {orbit}: higher derivatives decide"
    )
