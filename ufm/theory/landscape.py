"""Which theorems on the landscape hold for a problem, and the least eigenvalue that they give.

With G = (P − Y)/N, μ = √(λ_W λ_H) and

    λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²),    λ₋ < 0 iff ‖G‖₂ > μ,

**Bound.** At any point λ_min(∇²f) ≥ min(λ_b, λ₋), and ≥ λ₋ without a bias: the data term of ∇²f is
positive semidefinite but for 2⟨G, ΔW ΔH⟩ ≥ −2‖G‖₂‖ΔW‖‖ΔH‖. Where a unit a has Wa = 0 and Hᵀa = 0,
equality: (u aᵀ, 0) and (0, −a vᵀ), (u, v) the top singular pair of G, leave the logits alone and
span an eigenvector of λ₋, and 1 in b always is one of λ_b.

**Benign.** Let d ≥ K−1 and λ_W, λ_H > 0. At a critical point 1ᵀW = 0 and λ_W WᵀW = λ_H HHᵀ, so W
and Hᵀ share a row space of dimension r ≤ K−1.

* r = K−1: W = U S Qᵀ, U a basis of 1^⊥. From WᵀG = −λ_H H, UᵀG = −λ_H S⁻¹QᵀH, whence
  (UᵀG)(UᵀG)ᵀ = λ_H² S⁻¹Qᵀ(HHᵀ)QS⁻¹ = μ² I. As 1ᵀG = 0, ‖G‖₂ = μ: a global minimiser.
* r < K−1 ≤ d: a direction a is free, so λ_min = min(λ_b, λ₋) < 0 unless ‖G‖₂ ≤ μ.

Every critical point is a global minimiser or a strict saddle. For d ≥ 2 the bound is attained at
all of them: where r = d = K−1 it is 0, like the eigenvalues along the orbit.

**Weights.** All of this holds for any weights c_k of the classes in the loss, with G = [w_i r_i],
and for any loss that is convex and invariant under shifts. With weights Ω in the decay of the
features GΩ^-½ and HΩ^½ stand for G and H in the proofs; only λ₋ is then no eigenvalue, but the
least one of [[λ_W I, G], [Gᵀ, λ_H Ω]] is.

Both are this project's, with no published source known to us; for balanced classes and d > K the
second is theorem 3.2 of Zhu et al. 2021 (arXiv 2105.02375), for d = K see arXiv 2407.10702.
Nothing here imports an optimiser or a probe: agreement with computed spectra is evidence.
"""

from typing import NamedTuple

import numpy as np

from ufm.check import Refused, real
from ufm.linalg import pair
from ufm.model.problem import Problem, check_problem

OURS = "ours, docs/derivations.md"
ZHU = "Zhu et al. 2021, arXiv 2105.02375"


class Theorem(NamedTuple):
    """A theorem, and whether it holds for a problem.

    name: short.  statement: in one sentence.
    fails: the assumptions that the problem does not meet, with its numbers; None if it meets all.
    source: where it is proved.
    """

    name: str
    statement: str
    fails: str | None
    source: str


def least_free_eigenvalue(problem: Problem, spectral_norm: float) -> float:
    """λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²), an eigenvalue wherever a direction is free.

    By `ufm.linalg.pair`: right to rounding also near 0.

    Args:
        problem: any, with scalar decays.
        spectral_norm: ‖G‖₂ ≥ 0, of all N columns of G.

    Raises:
        Refused: array-valued or traced decays, a norm that is negative or no number, weights in
            the decay of the features.
    """
    check_problem(problem)
    if problem.decay_weights is not None:
        raise Refused(
            f"got decay_weights={problem.decay_weights}; allowed: None, where the features have "
            "one decay. With them the number is an eigenvalue of no matrix of theory; take "
            "ufm.hessian.extreme"
        )
    g = real("spectral_norm", spectral_norm, least=0)
    lam_W, lam_H = float(problem.lam_W), float(problem.lam_H)
    return float(pair.eigenvalues(np, lam_W, lam_H, g)[0])


def least_eigenvalue_bound(problem: Problem, spectral_norm: float) -> float:
    """min(λ_b, λ₋), or λ₋ without a bias: no eigenvalue of ∇²f is smaller, at any point.

    It is the least eigenvalue wherever a unit vector is orthogonal to the rows of W and the columns
    of H, and at every critical point for d ≥ K−1, d ≥ 2 and λ_W, λ_H > 0.

    Args:
        problem: any class counts and any d, with scalar decays, zero ones too.
        spectral_norm: ‖G‖₂ ≥ 0 at the point: `Certificate.spectral_ratio` times μ.

    Raises:
        Refused: array-valued or traced decays, a norm that is negative or no number, weights in
            the decay of the features.
    """
    free = least_free_eigenvalue(problem, spectral_norm)
    return min(float(problem.lam_b), free) if problem.bias else free


def theorems(problem: Problem) -> tuple[Theorem, ...]:
    """Every theorem of the package on the landscape, with the assumptions that this problem fails.

    Args:
        problem: any, with scalar decays.

    Raises:
        Refused: array-valued or traced decays.
    """
    check_problem(problem)
    decays, wide, planar, equal, plain = _assumptions(problem)
    return (
        Theorem(
            "simplex",
            "The global minimisers are simplex ETFs, or zero iff K² n λ_W λ_H ≥ 1.",
            _joined(equal, wide, decays),
            f"{ZHU}, theorem 3.1",
        ),
        Theorem(
            "samples",
            "At critical points the samples of a class are equal, 1ᵀW = 0 and rank W ≤ K−1.",
            _joined(decays),
            ZHU,
        ),
        Theorem(
            "certificate",
            "A critical point with ‖G‖₂ ≤ μ = √(λ_W λ_H) is a global minimiser.",
            _joined(decays),
            ZHU,
        ),
        Theorem(
            "full rank",
            "A critical point with rank W = K−1 is a global minimiser, and there ‖G‖₂ = μ.",
            _joined(wide, decays),
            OURS,
        ),
        Theorem(
            "benign landscape",
            "Every critical point is a global minimiser or a strict saddle.",
            _joined(wide, decays),
            f"{OURS}; balanced and d > K: {ZHU}, theorem 3.2; d = K: arXiv 2407.10702",
        ),
        Theorem(
            "least eigenvalue, bound",
            "λ_min(∇²f) ≥ min(λ_b, λ₋) at every point (λ₋ without a bias).",
            _joined(plain),
            OURS,
        ),
        Theorem(
            "least eigenvalue, equality",
            "λ_min(∇²f) = min(λ_b, λ₋) at every critical point (λ₋ without a bias).",
            _joined(planar, decays, plain),
            OURS,
        ),
    )


def _assumptions(problem: Problem) -> tuple[str | None, ...]:
    """What fails of: positive decays; d ≥ K−1; d ≥ K−1, 2; classes alike; one decay of features."""
    K, d = problem.K, problem.d
    positive = min(float(problem.lam_W), float(problem.lam_H)) > 0
    least = max(K - 1, 2)
    return (
        None
        if positive
        else f"lam_W, lam_H > 0 (got lam_W={problem.lam_W}, lam_H={problem.lam_H})",
        None if d >= K - 1 else f"d >= K-1 (got d={d}, K-1={K - 1})",
        None if d >= least else f"d >= max(K-1, 2) (got d={d}, max(K-1, 2)={least})",
        _alike(problem),
        None if problem.decay_weights is None else "features of one decay (got decay_weights)",
    )


def _alike(problem: Problem) -> str | None:
    if not problem.balanced:
        return f"equal class counts (got n={problem.n})"
    return None if problem.uniform else "classes of one weight (got weights or decay_weights)"


def _joined(*failed: str | None) -> str | None:
    return "; ".join(x for x in failed if x is not None) or None
