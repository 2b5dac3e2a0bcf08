"""Critical points up to symmetry: which orbit a point is on, and what kind of point it is.

The symmetries are (W, H) ↦ (W Qᵀ, Q H), Q ∈ O(d), and permutations of classes of equal count and
weights. With D = diag((c_k n_k)^⅔ (ω_k n_k)^⅓), which is diag(n_k) where the classes weigh the same
and differs between all others except by coincidence, and C = D^½ W Wᵀ D^½, an orbit is identified
by f and the sorted

    eigenvalues of C,   C_kk,   C_jk (j < k),   Σ_j C_jk³,

(where H ≥ 0, also those of HᵀH). All are continuous, and the symmetries change none of them. Two
points with equal fingerprints count as one orbit: points of one orbit have equal fingerprints; the
converse is not proved, but no counterexample is known. Where H ≥ 0, only permutations of the axes
and rotations that keep the zeros are symmetries, and the fingerprint includes the number of axes in
use; points that use equally many axes in different ways may count as one orbit.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import certificate
from ufm.check import Refused
from ufm.hessian import faces, reduction
from ufm.hessian.decision import judged
from ufm.hessian.signs import inertia_of
from ufm.linalg.products import matmul
from ufm.model import layers, points, quotient
from ufm.model import objective as terms
from ufm.model.evaluation import evaluate
from ufm.model.fixed import require_free
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.theory.spectra import orbit_dimension

# Distance of fingerprints, relative to their size, up to which two points are on one orbit: points
# polished to 1e-14 agree to 1e-14/λ_min, some 1e-9.
SAME = 1e-7
_KNOWN = ("free", "nonnegative")  # features for which fingerprints are defined
_UNUSED = 1e-6  # largest feature on an axis that is not in use, of the largest of all


class Orbit(NamedTuple):
    """One orbit of critical points: a representative, and its properties.

    params: representative in the coordinates of `ufm.model.quotient`, NumPy float64.
    value: f, in nats.  rank: of [Wᵀ, H].
    groups: sizes of the groups of classes with equal rows of W, largest first.
    morse_index: how many eigenvalues of ∇²f are negative.  nullity: how many are zero.
    orbit_dimension: how many of the zero ones are due to the symmetries O(d) and b + s1.
        Where H ≥ 0 these three are of class means, on the face (`ufm.hessian.faces`).
    smallest: least eigenvalue of ∇²f; where H ≥ 0, of class means, on the face, off symmetries.
    predicted: λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²), with weights in the decay the least
        eigenvalue of [[λ_W I, G], [Gᵀ, λ_H Ω]]; computed independently of `smallest`. NaN where
        H ≥ 0.
    gap: certified bound on f − f*, in nats.  spectral_ratio: ‖G‖₂/μ.
    residual: ‖∇f‖.  newton_step: length of the last Newton step of the polish.
    kind, reason: of `hessian.verdict`.
    hits: how many polished starts ended on the orbit, by source.
    """

    params: Params
    value: float
    rank: int
    groups: tuple[int, ...]
    morse_index: int
    nullity: int
    orbit_dimension: int
    smallest: float
    predicted: float
    gap: float
    spectral_ratio: float
    residual: float
    newton_step: float
    kind: str
    reason: str
    hits: dict[str, int]


def fingerprint(problem: Problem, params: Params) -> Float[Array, " numbers"]:
    """f, log(1 + tr C) in natural units and sorted invariants: equal along an orbit. Traceable.

    The invariants are those in the docstring of `ufm.critical.orbits`, in units of tr C. Points on
    one orbit differ by at most 1e-7 in every entry if polished to a residual of 1e-14.

    Args:
        problem: any problem with free or nonnegative features.
        params: any point of it.

    Raises:
        Refused: features on the sphere, a fixed classifier.
    """
    points.check_types(problem, params)
    require_free(problem)
    layers.require_among(problem, "critical.fingerprint", _KNOWN)
    D = _class_sizes(problem, params.W.dtype)
    A = jnp.sqrt(D)[:, None] * params.W
    C = matmul(A, A.T)
    size = jnp.trace(C)
    C = C / jnp.where(size > 0, size, 1)
    # In units of logits of order 1: small means small whatever λ_H/λ_W is.
    size = size / (jnp.mean(D) * unit_of(problem) ** 2)
    parts = _invariants(C)
    if not layers.is_free(problem):  # H is no multiple of W on its zeros
        gram = matmul(params.H.T, params.H)
        total = jnp.trace(gram)
        parts += _invariants(gram / jnp.where(total > 0, total, 1))
        used = jnp.max(params.H, axis=1) > _UNUSED * jnp.max(params.H)
        parts.append(jnp.sum(used)[None].astype(gram.dtype))
    # The size itself, on a scale on which rounding at the origin does not count.
    value = terms.objective(problem, params)
    head = jnp.stack([value, jnp.log1p(size)])
    # Directions mean nothing where W vanishes to rounding.
    return jnp.concatenate([head] + [jnp.where(size > 1e-16, jnp.sort(x), 0) for x in parts])


def _invariants(C: Array) -> list[Array]:
    """Quantities that, once sorted, no permutation of the rows and columns of C changes."""
    upper = C[np.triu_indices(len(C), 1)]
    return [jnp.linalg.eigvalsh(C), jnp.diagonal(C), upper, jnp.sum(C**3, axis=0)]


def _class_sizes(problem: Problem, dtype) -> Array:
    """The diagonal of D of the module's docstring, (K,)."""
    if problem.targets is not None:  # rows of W are not classes
        return jnp.ones(problem.K, dtype)
    D = jnp.asarray(problem.counts, dtype)
    if problem.weights is not None:
        D = D * jnp.asarray(problem.weights, dtype) ** (2 / 3)
    if problem.decay_weights is not None:
        D = D * jnp.asarray(problem.decay_weights, dtype) ** (1 / 3)
    return D


def unit_of(problem: Problem):
    """(λ_H/λ_W)^¼: the length of W at logits of order 1 and balanced decays, up to N^¼."""
    return (jnp.sqrt(problem.lam_H) / jnp.sqrt(problem.lam_W)) ** 0.5


def groups(W: np.ndarray, unit: float = 1.0) -> tuple[int, ...]:
    """Sizes of the groups of equal rows of W, largest first; unit is the natural size of W."""
    tolerance = 1e-6 * max(float(np.max(np.abs(W))), 1e-6 * unit)
    left, sizes = list(range(len(W))), []
    while left:
        same = [k for k in left if np.max(np.abs(W[k] - W[left[0]])) <= tolerance]
        sizes.append(len(same))
        left = [k for k in left if k not in same]
    return tuple(sorted(sizes, reverse=True))


def counted(sizes: Iterable[int]) -> str:
    """Sizes of groups as text, equal ones counted: (3, 1, 1) is 3+2×1."""
    sizes = list(sizes)
    counts = {size: sizes.count(size) for size in sizes}
    return "+".join(f"{size}" if m == 1 else f"{m}×{size}" for size, m in counts.items())


_lifted = programs.once(quotient.lift, level=1)


def judge(problem: Problem, small: Params, newton_step: float, hits: dict[str, int]) -> Orbit:
    """The `Orbit` of a polished point in the coordinates of the quotient.

    Verdict and gap are those of the problem with one sample a class, as neither depends on n;
    eigenvalues and their counts are those of the problem itself.

    Args:
        problem: any class counts, λ_W, λ_H > 0, free or nonnegative features.
        small: a critical point of `ufm.critical.search.quotient_of(problem)`.
        newton_step, hits: stored in the result.

    Raises:
        Refused: a point that is not critical; features on the sphere, a fixed classifier.
    """
    require_free(problem)
    layers.require_among(problem, "critical.judge", _KNOWN)
    if not layers.is_free(problem):
        return _judged_on_face(problem, small, newton_step, hits)
    mean_problem = quotient.of_width(problem, problem.d)
    at = evaluate(mean_problem, _lifted(mean_problem, small, np.eye(problem.d, small.W.shape[1])))
    found, _, core = judged(at)
    if core is None:
        raise Refused(f"got a point that is {found.kind}: {found.reason}")
    core = reduction.spread_out(problem, core)
    spectrum = reduction.spectrum_of(core)
    counts = inertia_of(spectrum)
    unit, rank = float(unit_of(problem)), _rank(problem, small)
    return Orbit(
        params=jax.tree.map(np.asarray, small),
        value=at.value,
        rank=rank,
        groups=groups(np.asarray(small.W), unit),
        morse_index=counts.negative,
        nullity=counts.zero,
        orbit_dimension=orbit_dimension(problem, rank),
        smallest=float(spectrum.eigenvalues[0]),
        predicted=reduction.free_direction(core)[2],
        gap=found.gap,
        spectral_ratio=found.spectral_ratio,
        residual=found.residual,
        newton_step=newton_step,
        kind=found.kind,
        reason=found.reason,
        hits=hits,
    )


def _rank(problem: Problem, small: Params) -> int:
    """The rank of [Wᵀ, H]."""
    W, H, unit = np.asarray(small.W), np.asarray(small.H), float(unit_of(problem))
    sizes = np.linalg.svd(np.concatenate([W.T / unit, H * unit], axis=1), compute_uv=False)
    # Of order 1 in these units except at the origin, where the rank is that of rounding errors.
    return int(np.sum(sizes > 1e-8 * max(float(sizes[0]), 1.0)))


def _judged_on_face(
    problem: Problem, small: Params, newton_step: float, hits: dict[str, int]
) -> Orbit:
    """`judge` where H ≥ 0: the counts are of the variables of class means off the zeros of H."""
    at = evaluate(quotient.of_width(problem, problem.d), small)
    proof = certificate.certified(at)
    face = faces.judged(at, float(proof.gap), float(proof.resolution))
    if face.counts is None:
        raise Refused(f"got a point that is {face.kind}: {face.reason}")
    return Orbit(
        params=jax.tree.map(np.asarray, small),
        value=at.value,
        rank=_rank(problem, small),
        groups=groups(np.asarray(small.W), float(unit_of(problem))),
        morse_index=face.counts.negative,
        nullity=face.counts.zero,
        orbit_dimension=face.symmetries,
        smallest=face.curvature,
        predicted=float("nan"),
        gap=float(proof.gap),
        spectral_ratio=float(proof.spectral_ratio),
        residual=at.grad_norm,
        newton_step=newton_step,
        kind=face.kind,
        reason=face.reason,
        hits=hits,
    )
