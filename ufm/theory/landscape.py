"""Which theorems on the landscape hold for a problem, and the least eigenvalue by them.

Let G = (P − Y)/N, μ = √(λ_W λ_H) and

    λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²),    λ₋ < 0 iff ‖G‖₂ > μ.

**Bound.** At any point λ_min(∇²f) ≥ min(λ_b, λ₋), and ≥ λ₋ without a bias: the data term of ∇²f is
positive semidefinite except for 2⟨G, ΔW ΔH⟩ ≥ −2‖G‖₂‖ΔW‖‖ΔH‖. Equality holds where a unit vector a
has Wa = 0 and Hᵀa = 0: with (u, v) the top singular pair of G, the directions (u aᵀ, 0) and
(0, −a vᵀ) do not change the logits, and their plane contains an eigenvector of λ₋; 1 in b is always
an eigenvector of λ_b.

**Benign landscape.** Let d ≥ K−1 and λ_W, λ_H > 0. At a critical point 1ᵀW = 0 and λ_W WᵀW =
λ_H HHᵀ, so W and Hᵀ have the same row space, of dimension r ≤ K−1.

* r = K−1: W = U S Qᵀ, U a basis of 1^⊥. From WᵀG = −λ_H H, UᵀG = −λ_H S⁻¹QᵀH, whence
  (UᵀG)(UᵀG)ᵀ = λ_H² S⁻¹Qᵀ(HHᵀ)QS⁻¹ = μ² I. As 1ᵀG = 0, ‖G‖₂ = μ: a global minimiser.
* r < K−1 ≤ d: a unit vector a as above exists, so λ_min = min(λ_b, λ₋) < 0 unless ‖G‖₂ ≤ μ.

So every critical point is a global minimiser or a strict saddle. For d ≥ 2 the bound is attained at
all of them: where r = d = K−1 it is 0, like the eigenvalues along the orbit.

**Weights.** All of this holds for any weights c_k of the classes in the loss, with G = [w_i r_i],
and for any loss that is convex and invariant under shifts. With weights Ω in the decay of the
features the proofs hold for GΩ^-½ and HΩ^½ in place of G and H. λ₋ is then no longer an eigenvalue;
the least eigenvalue of [[λ_W I, G], [Gᵀ, λ_H Ω]] takes its place.

Both theorems are this project's; we know no published source. For balanced classes and d > K the
second is theorem 3.2 of Zhu et al. 2021 (arXiv 2105.02375); for d = K see arXiv 2407.10702.
Nothing here imports an optimiser or a probe: agreement with computed spectra is evidence.
"""

import numpy as np

from ufm.check import Refused, real
from ufm.linalg import pair
from ufm.losses import CrossEntropy, LogitAdjusted, SquaredError
from ufm.model import layers
from ufm.model.problem import Problem, check_problem
from ufm.theory import candidates, fixed, groups, nonnegative, shared, sphere, squared, symmetric
from ufm.theory.shared import Claim, joined

OURS = "ours, docs/derivations.md"
ZHU = "Zhu et al. 2021, arXiv 2105.02375"


def least_free_eigenvalue(problem: Problem, spectral_norm: float) -> float:
    """λ₋ = (λ_W+λ_H)/2 − √(((λ_W−λ_H)/2)² + ‖G‖₂²), without cancellation near 0.

    It is an eigenvalue of ∇²f wherever a unit vector is orthogonal to the rows of W and the columns
    of H (proof: `ufm.theory.landscape`).

    Args:
        problem: any, with scalar decays.
        spectral_norm: ‖G‖₂ ≥ 0, of all N columns of G.

    Raises:
        Refused: array-valued or traced decays, a norm that is negative or no number, weights in
            the decay of the features.
    """
    check_problem(problem)
    layers.require_free(problem, "theory.least_free_eigenvalue")
    if problem.decay_weights is not None:
        raise Refused(
            f"got decay_weights={problem.decay_weights}; allowed: None, where the features have "
            "one decay. With them no closed form of the eigenvalue is known; take "
            "ufm.hessian.extreme"
        )
    g = real("spectral_norm", spectral_norm, least=0)
    lam_W, lam_H = float(problem.lam_W), float(problem.lam_H)
    return float(pair.eigenvalues(np, lam_W, lam_H, g)[0])


def least_eigenvalue_bound(problem: Problem, spectral_norm: float) -> float:
    """min(λ_b, λ₋), or λ₋ without a bias: no eigenvalue of ∇²f is smaller, at any point.

    It is the least eigenvalue wherever a unit vector is orthogonal to the rows of W and the columns
    of H, and at every critical point for d ≥ K−1, d ≥ 2 and λ_W, λ_H > 0 (proof:
    `ufm.theory.landscape`).

    Args:
        problem: any class counts and any d, with scalar decays, zero ones too.
        spectral_norm: ‖G‖₂ ≥ 0 at the point: `Certificate.spectral_ratio` times μ.

    Raises:
        Refused: array-valued or traced decays, a norm that is negative or no number, weights in
            the decay of the features.
    """
    free = least_free_eigenvalue(problem, spectral_norm)
    return min(float(problem.lam_b), free) if problem.bias else free


def benign_width(problem: Problem) -> int | None:
    """The least d at which every critical point is proved a global minimiser or a strict saddle.

    K−1 for a convex loss that is invariant under shifts of the logits (or of logits in some other
    fixed direction, as the logit-adjusted ones are), K for other convex losses; None where the loss
    is not convex and no theorem is known.
    """
    if not problem.loss.convex:
        return None
    return rank_bound(problem)


def rank_bound(problem: Problem) -> int:
    """The largest rank of W at a critical point for any d: K−1 if nᵀW = 0 there, otherwise K."""
    return problem.K - (problem.loss.null(problem.K) is not None)


def claims(problem: Problem) -> tuple[Claim, ...]:
    """All theorems on the landscape, and for each the assumptions that this problem does not meet.

    Args:
        problem: any, with scalar decays.

    Raises:
        Refused: array-valued or traced decays.
    """
    check_problem(problem)
    if problem.fixed:
        return fixed.claims(problem)
    if problem.features == "nonnegative":
        return (*_nonnegative(problem), *_landscape(problem))
    if problem.features == "sphere":
        return (*sphere.claims(problem), *_landscape(problem))
    code = (candidates.claim(problem),) if problem.d < problem.K - 1 else ()
    return (*_minima(problem), *code, *_landscape(problem))


def _nonnegative(problem: Problem) -> tuple[Claim, ...]:
    """What is known where H ≥ 0."""
    # The paper states it for cross-entropy without a bias; weights and the rest are ours.
    stated = isinstance(problem.loss, CrossEntropy) and not problem.bias
    stated = stated and problem.weights is None and problem.decay_weights is None
    return (
        Claim(
            "orthogonal means",
            "At the minimum the class means are orthogonal. For cross-entropy those with n_k ≤ "
            "N²λ_Wλ_H·K/(K−1) are zero, and the columns of W are along e_k − 1/K.",
            nonnegative.fails(problem),
            "Dang et al. 2024, arXiv 2401.02058" if stated else "ours, ufm.theory.nonnegative",
            "theorem" if stated else "candidate",
        ),
        Claim(
            "classes that stay off",
            "For every set of at most d of the classes that are on at the minimum there is a local "
            "minimum at which only these are on: those of ufm.theory.switched_off.",
            nonnegative.off_fails(problem),
            "ours, ufm.theory.nonnegative",
            "candidate",
        ),
    )


def _minima(problem: Problem) -> tuple[Claim, ...]:
    """The closed form of the minimum that belongs to the loss."""
    if isinstance(problem.loss, SquaredError):
        return (
            Claim(
                "squared minimum",
                "The minimum takes the d largest singular values of the targets, each less Nμ.",
                squared.fails(problem),
                "Zhou et al. 2022, arXiv 2203.01238; regression: arXiv 2409.04180",
            ),
            Claim(
                "squared landscape",
                "Critical points are the sets of at most d singular values above Nμ (distinct "
                "ones; the mean is one if the bias decays); only the minimum is no strict saddle.",
                squared.landscape_fails(problem),
                "ours, ufm.theory.squared",
                "candidate",
            ),
        )
    if isinstance(problem.loss, CrossEntropy) and problem.loss.plain:
        text = "The global minimisers are simplex ETFs, or zero iff K² n λ_W λ_H ≥ 1."
        equal, wide = shared.equal(problem), shared.wide(problem)
        needed = joined(shared.labels(problem), equal, wide, shared.decays(problem))
        return (Claim("simplex", text, needed, f"{ZHU}, theorem 3.1"), *_unequal(problem))
    source = "arXiv 2210.02192, 2402.03979, 2505.05813"
    text = "The global minimisers are simplex ETFs of the margin of ufm.theory.margin, or zero."
    return (Claim("simplex", text, symmetric.fails(problem), source),)


def _unequal(problem: Problem) -> tuple[Claim, ...]:
    """What is known of cross-entropy for any counts."""
    fails = groups.fails(problem)
    bias = "no bias" if problem.bias else None
    return (
        Claim(
            "groups",
            "The minimum is invariant under permutations of classes of equal count and weights; "
            "ufm.theory.certified_minimum computes it and certifies its value.",
            fails,
            "ours, ufm.theory.groups",
        ),
        Claim(
            "within a group",
            "p_own − p_other = (1 − Nμ/√n)₊ among classes of one count n, so they merge iff "
            "√n ≤ Nμ (n ≤ Nμ with decay_weights 1/n).",
            fails,
            "arXiv 2309.09725, 2101.12699; derived in ufm.theory.groups",
        ),
        Claim(
            "SELI",
            "As the decays fall to 0 the direction of the logits tends to that of I − 11ᵀ/K, "
            "whatever the counts.",
            joined(fails, bias),
            "arXiv 2208.05512",
            "candidate",
        ),
    )


def _landscape(problem: Problem) -> tuple[Claim, ...]:
    """What holds for every convex loss."""
    free, convex = shared.free(problem), shared.convex(problem)
    decays = joined(free, shared.decays(problem))
    one = None if problem.decay_weights is None else "features of one decay (got decay_weights)"
    d, least, name = problem.d, rank_bound(problem), width_name(problem)
    wide = None if d >= least else f"d >= {name} (got d={d}, {name}={least})"
    two = max(least, 2)
    planar = None if d >= two else f"d >= max({name}, 2) (got d={d}, max({name}, 2)={two})"
    norm = "‖G‖₂" if one is None else "‖GΩ^-½‖₂"
    n = "n" if isinstance(problem.loss, LogitAdjusted) else "1"
    mean = f"{n}ᵀW = 0 and rank W ≤ K−1" if least < problem.K else "rank W ≤ K"
    return (
        Claim(
            "samples",
            f"At critical points the samples of a class are equal, {mean}.",
            joined(convex, decays),
            ZHU,
        ),
        Claim(
            "certificate",
            f"A critical point with {norm} ≤ μ = √(λ_W λ_H) is a global minimiser.",
            joined(convex, decays),
            ZHU,
        ),
        Claim(
            "full rank",
            f"A critical point with rank W = {name} is a global minimiser, and there {norm} = μ.",
            joined(convex, wide, decays),
            OURS,
        ),
        Claim(
            "benign landscape",
            "Every critical point is a global minimiser or a strict saddle.",
            joined(convex, wide, decays),
            f"{OURS}; cross-entropy, balanced and d > K: {ZHU}, theorem 3.2; d = K: arXiv "
            "2407.10702",
        ),
        Claim(
            "least eigenvalue, bound",
            "λ_min(∇²f) ≥ min(λ_b, λ₋) at every point (λ₋ without a bias).",
            joined(convex, free, one),
            OURS,
        ),
        Claim(
            "least eigenvalue, equality",
            "λ_min(∇²f) = min(λ_b, λ₋) at every critical point (λ₋ without a bias).",
            joined(convex, _unit_bias(problem), planar, decays, one),
            OURS,
        ),
    )


def width_name(problem: Problem) -> str:
    """`rank_bound` as a formula."""
    return "K-1" if rank_bound(problem) < problem.K else "K"


def _unit_bias(problem: Problem) -> str | None:
    """λ_b is an eigenvalue only where the loss is constant along a direction of the logits."""
    if not problem.bias or problem.loss.null(problem.K) is not None:
        return None
    return "no bias, or a loss that is constant in some direction of the logits"
