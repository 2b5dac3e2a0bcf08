"""Spectra of the Hessian in closed form, at the global minimum and at the origin, for any size.

The simplex ETF is invariant under permutations of the classes, up to rotations of the features, so
its Hessian splits into blocks of at most 5×5 and has at most 17 distinct eigenvalues for any K, d
and n. A loss that is invariant under shifts enters by three numbers: the margin t and, with S its
Hessian in the logits z = t(e_y − 1/K),

    s_own = uᵀSu,  u ∝ e_y − 1/K,      s_wrong = vᵀSv,  v ∝ e_j − e_k  (unit vectors; j, k ≠ y),

for cross-entropy c(1 + (K−1)β) and c with c = √(n λ_W λ_H) < 1/K, β = 1 − Kc. With μ = √(λ_W λ_H)
and p² = t√(λ_W/(n λ_H)) = ‖h_k‖² K/(K−1), q² = t√(λ_H/(n λ_W)) = ‖w_k‖² K/((K−1)n) for a class
mean h_k and a row w_k of W the eigenvalues and their multiplicities are

    [[λ_W + κp², κpq ∓ μ], [κpq ∓ μ, λ_H + κq²]]   κ = s_own/K      −   once
                                                   κ = s_wrong/K    −   K(K−3)/2
                                                   κ = s_wrong/K    +   (K−1)(K−2)/2
    a 4×4 block and λ_W (standard representation)                       K−1
    λ_b                                                                 once
    λ_H + q² s_wrong/K                                                  K(K−2)(n−1)
    λ_H + q² s_own/K                                                    K(n−1)
    λ_H                                                                 K(d−K+1)(n−1)
    0 and λ_W + λ_H                                                     (K−1)(d−K+1) each
    λ_W and λ_H                                                         d−K+1 each

The lower eigenvalue of the block with + is 0. A loss that changes under shifts (squared, binary)
has two more numbers, s_mean = 1ᵀS1/K and s_mixed = uᵀS1/√K. Then 1ᵀδW, with λ_W + p² s_mean/K on
the diagonal, joins the standard block, and δb ∝ 1, with λ_b + s_mean, the first of the blocks.

Derivation (docs/derivations.md has every step): in the basis of the ETF the two factors of a
tangent are K×K matrices A (rows centred) and B (columns centred); the data term depends only on
X = pA + qB + δb 1ᵀ, through (s_wrong/K)‖X‖² + (s_own − s_wrong)/(K−1) ‖diag X‖² for columns X
centred; and ⟨G, ΔW ΔH⟩ = −μ tr(AB) on their doubly centred parts. Both forms are equivariant under
S_K. (The minimum: Zhu et al. 2021, arXiv 2105.02375, theorem 3.1.) Nothing here imports a probe.

Decays and hence eigenvalues may span hundreds of orders of magnitude, and in float64 the small ones
would be lost in the rounding of the large. Everything is computed in decimals, as many as
`ufm.theory.decimals.digits` says, and rounded once, at the end.
"""

from decimal import Decimal
from typing import NamedTuple

import numpy as np

from ufm.check import Refused, integer, normal_decays, real
from ufm.linalg import jacobi, pair
from ufm.losses import SquaredError
from ufm.model import layers
from ufm.model.problem import Problem, check_problem
from ufm.theory import decimals, lookup, minimum, shared, squared, symmetric
from ufm.theory.decimals import scalar_decays

_Table = list[tuple[Decimal, int]]  # eigenvalues and multiplicities


class Spectrum(NamedTuple):
    """Distinct eigenvalues and their multiplicities.

    eigenvalues: (m,) float64, ascending.
    multiplicities: (m,) Python ints; they add up to the number of variables.
    """

    eigenvalues: np.ndarray
    multiplicities: tuple[int, ...]


def group(values, multiplicities, tolerance: float = 0.0) -> Spectrum:
    """Sort eigenvalues and merge neighbours that are at most `tolerance` apart.

    A group has the value of its member of smallest modulus, so an exact 0 stays exact. Entries of
    multiplicity 0 are left out.
    """
    entries = sorted((float(v), m) for v, m in zip(values, multiplicities, strict=True) if m > 0)
    merged: list[tuple[float, int]] = []
    last = -np.inf
    for value, count in entries:
        if value - last <= tolerance:
            head, total = merged.pop()
            merged.append((min(head, value, key=abs), total + count))
        else:
            merged.append((value, count))
        last = value
    return Spectrum(np.array([v for v, _ in merged]), tuple(m for _, m in merged))


def orbit_dimension(problem: Problem, rank: int) -> int:
    """r d − r(r+1)/2, and 1 more if λ_b = 0: dimension of the symmetry orbit of a point.

    The orbit consists of (W Qᵀ, Q H), Q ∈ O(d), with r the rank of [Wᵀ, H], and of b + s n when the
    bias has no decay and the loss is constant along n (n = 1 for a loss that is invariant under
    shifts). At a critical point the Hessian vanishes on its tangents.

    Raises:
        Refused: rank outside 0 … d; features that are not free; array-valued decays.
    """
    check_problem(problem)
    layers.require_free(problem, "theory.orbit_dimension")
    rank = integer("rank", rank, 0, problem.d)
    free_bias = problem.bias and float(problem.lam_b) == 0.0
    free_bias = free_bias and problem.loss.null(problem.K) is not None
    return rank * problem.d - rank * (rank + 1) // 2 + int(free_bias)


class Numbers(NamedTuple):
    """Margin and curvatures of a loss at the balanced ETF: t, s_own, s_wrong, s_mean, s_mixed."""

    t: Decimal
    own: Decimal
    wrong: Decimal
    mean: Decimal = Decimal(0)
    mixed: Decimal = Decimal(0)


def _numbers(problem: Problem) -> Numbers:
    """The numbers of the loss at the minimum, below the threshold."""
    if isinstance(problem.loss, SquaredError):
        one = Decimal(1)
        return Numbers(Decimal(squared.margin(problem)), one, one, one)
    if not shared.plain(problem):
        t, _, _, *curvature = symmetric.least(problem)
        return Numbers(Decimal(t), *map(Decimal, curvature))
    K = problem.K
    lam_W, lam_H, _ = map(Decimal, scalar_decays(problem))
    exact = minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
    c = (Decimal(int(problem.counts[0])) * lam_W * lam_H).sqrt()
    beta = Decimal(exact.numerator) / Decimal(exact.denominator) / (1 + K * c)
    return Numbers((1 + beta / c).ln(), c * (1 + (K - 1) * beta), c)


def _standard_block(problem: Problem, at: Numbers, p2: Decimal, q2: Decimal):
    """Eigenvalues of the standard representation, the single λ_W included.

    Coordinates: the doubly centred parts of W and H, whose X is x(diag u − …) with u ⊥ 1; the
    mean of H over samples, ψ; the bias, φ; 1ᵀδW, ω. Then X = x U + y u1ᵀ + w 1uᵀ with x = pα + qγ,
    y = qψ/√K + φ and w = pω/√K, and the data term is (s_wrong/K)(x² + K y²) +
    (s_own − s_wrong)/(K−1) D² + 2 s_mixed D w/√(K−1) + s_mean w², D = √(1−2/K) x + y.
    """
    lam_W, lam_H, lam_b = map(Decimal, scalar_decays(problem))
    K, zero, p, q = Decimal(problem.K), Decimal(0), p2.sqrt(), q2.sqrt()
    x, y = [p, q, zero, zero, zero], [zero, zero, q / K.sqrt(), Decimal(1), zero]
    w = [zero, zero, zero, zero, p / K.sqrt()]
    diagonal = [(1 - 2 / K).sqrt() * a + b for a, b in zip(x, y, strict=True)]
    # λ_W α² − 2μαγ + λ_H γ² is a square as well.
    decay = [lam_W.sqrt(), -lam_H.sqrt(), zero, zero, zero]
    own, mixed = (at.own - at.wrong) / (K - 1), at.mixed / (K - 1).sqrt()
    terms = (
        *((at.wrong / K, x, x), (at.wrong, y, y), (own, diagonal, diagonal), (at.mean, w, w)),
        *((mixed, diagonal, w), (mixed, w, diagonal), (Decimal(1), decay, decay)),
    )
    block = [
        [sum((c * u[i] * v[j] for c, u, v in terms), zero) for j in range(5)] for i in range(5)
    ]
    for i, lam in ((2, lam_H), (3, lam_b), (4, lam_W)):
        block[i][i] += lam
    # K = 2 has no doubly centred part of this kind.
    kept = [i for i in range(5) if (i > 1 or problem.K > 2) and (i != 3 or problem.bias)]
    return jacobi.eigenvalues([[block[i][j] for j in kept] for i in kept])


def _trivial_block(problem: Problem, at: Numbers, p2: Decimal, q2: Decimal) -> list[Decimal]:
    """Eigenvalues of the first block and δb ∝ 1, which s_mixed couples."""
    lam_W, lam_H, lam_b = map(Decimal, scalar_decays(problem))
    K, mu, pq = Decimal(problem.K), (lam_W * lam_H).sqrt(), (p2 * q2).sqrt()
    own, mixed = at.own / K, at.mixed / K.sqrt()
    return jacobi.eigenvalues([
        [lam_W + own * p2, own * pq - mu, mixed * p2.sqrt()],
        [own * pq - mu, lam_H + own * q2, mixed * q2.sqrt()],
        [mixed * p2.sqrt(), mixed * q2.sqrt(), lam_b + at.mean],
    ])  # fmt: skip


def hessian_spectrum(problem: Problem) -> Spectrum:
    """The spectrum of ∇²f at the global minimum, in closed form (table at `ufm.theory.spectra`).

    The Hessian is positive semidefinite there, with nullity d(K−1) − K(K−1)/2 (the O(d) orbit),
    plus 1 if λ_b = 0. At and above the threshold K²nλ_Wλ_H ≥ 1 the minimum is the origin and the
    result that of `origin_spectrum`.

    Args:
        problem: balanced, d ≥ K−1, λ_W, λ_H > 0, λ_b ≥ 0 or no bias, with scalar decays; a bias
            without decay for the squared and the binary loss.

    Returns:
        A `Spectrum`, equal eigenvalues merged; multiplicities add up to `problem.size`.

    Raises:
        Refused: outside the theorem's assumptions; decays that are arrays; an eigenvalue beyond the
            range of float64.
    """
    scalar_decays(problem)
    _check_assumptions(problem)
    return _rounded(_minimum_table(problem))


def _check_assumptions(problem: Problem) -> None:
    """Refuse a minimum that is neither a simplex ETF nor zero."""
    if isinstance(problem.loss, SquaredError):
        squared.margin(problem)
        if not problem.bias or float(problem.lam_b) != 0:
            raise Refused(
                f"got the squared error with bias={problem.bias}, lam_b={problem.lam_b}: the "
                "spectrum in closed form is that of a simplex ETF, the minimum for lam_b=0; take "
                "ufm.hessian.spectrum at ufm.theory.global_minimizer"
            )
    elif shared.plain(problem):
        minimum.check_assumptions(problem)
    else:
        symmetric.least(problem)


@decimals.exact
def _minimum_table(problem: Problem) -> _Table:
    if lookup.is_collapsed(problem):
        return _origin_table(problem)
    K, d, n = problem.K, problem.d, int(problem.counts[0])
    lam_W, lam_H, lam_b = map(Decimal, scalar_decays(problem))
    at, root, mu = _numbers(problem), Decimal(n).sqrt(), (lam_W * lam_H).sqrt()
    p2, q2 = at.t * mu / (lam_H * root), at.t * mu / (lam_W * root)
    own, wrong = at.own / K, at.wrong / K

    def block(kappa):  # with −, whose determinant is 4κ(pq)μ
        trace = lam_W + lam_H + kappa * (p2 + q2)
        return pair.of_determinant(trace, 4 * kappa * at.t / root * mu)

    antisymmetric, orthogonal = (K - 1) * (K - 2) // 2, d - K + 1
    first = [*block(own), *[lam_b + at.mean] * problem.bias]
    return [
        *((value, 1) for value in (_trivial_block(problem, at, p2, q2) if at.mixed else first)),
        *((value, max(K * (K - 3) // 2, 0)) for value in block(wrong)),
        (Decimal(0), antisymmetric),
        (lam_W + lam_H + wrong * (p2 + q2), antisymmetric),
        *((value, K - 1) for value in _standard_block(problem, at, p2, q2)),
        (lam_H + q2 * wrong, K * (K - 2) * (n - 1)),
        (lam_H + q2 * own, K * (n - 1)),
        (lam_H, K * orthogonal * (n - 1)),
        (Decimal(0), (K - 1) * orthogonal),
        (lam_W + lam_H, (K - 1) * orthogonal),
        (lam_W, orthogonal),
        (lam_H, orthogonal),
    ]


def origin_spectrum(problem: Problem) -> Spectrum:
    """The spectrum of ∇²f at W = 0, H = 0, b = 0, a critical point of every balanced problem.

        (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + g²)   d(K−1) times each
        λ_W  d times,   λ_H  d(N−K+1) times,   λ_b once,   λ_b + s  K−1 times

    g = ‖G‖₂ = 1/(K√n) and s = 1/K for cross-entropy, with smoothing g = (1−ε)/(K√n). For the
    squared and the binary loss, whose point has b ∝ 1, λ_b + s_mean takes the place of λ_b, and s
    and g are those of the loss.

    The Morse index is d(K−1) below the threshold K²nλ_Wλ_H = 1 and 0 from it on; any d ≥ 1.

    Raises:
        Refused: unequal class counts or weights (the origin is then not critical in b); losses that
            do not treat all classes alike; decays that are arrays; an eigenvalue beyond the range
            of float64.
    """
    scalar_decays(problem)
    normal_decays(problem)
    if isinstance(problem.loss, SquaredError):
        _check_assumptions(problem)
    elif not shared.plain(problem):
        symmetric.check_origin(problem)
    minimum.check_uniform(problem)
    if not problem.balanced:
        raise Refused(
            f"got unequal class counts n={problem.n}: the closed form at the origin assumes "
            "balanced classes; use ufm.hessian.spectrum at the critical point itself"
        )
    return _rounded(_origin_table(problem))


@decimals.exact
def _origin_table(problem: Problem) -> _Table:
    lam_W, lam_H, lam_b = map(Decimal, scalar_decays(problem))
    K, d, N = problem.K, problem.d, problem.N
    if shared.plain(problem):
        exact = minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
        # λ_W λ_H − 1/(K² n), exactly 0 at the threshold.
        determinant = -Decimal(exact.numerator) / Decimal(exact.denominator) / (K * N)
        curvature, mean = 1 / Decimal(K), Decimal(0)
    else:
        pull, curvature, mean = _origin_numbers(problem)
        determinant = lam_W * lam_H - pull * pull
    lower, upper = pair.of_determinant(lam_W + lam_H, determinant)
    bias = int(problem.bias)
    return [
        (lower, d * (K - 1)),
        (upper, d * (K - 1)),
        (lam_W, d),
        (lam_H, d * (N - K + 1)),
        (lam_b + mean, bias),
        (lam_b + curvature, bias * (K - 1)),
    ]


def _origin_numbers(problem: Problem) -> tuple[Decimal, Decimal, Decimal]:
    """‖G‖₂, and the curvatures of the loss on 1^⊥ and along 1, at the origin."""
    if isinstance(problem.loss, SquaredError):
        return 1 / (problem.K * Decimal(int(problem.counts[0])).sqrt()), Decimal(1), Decimal(1)
    pull, curvature, mean = symmetric.at_origin(problem)
    return Decimal(pull), Decimal(curvature), Decimal(mean)


def _rounded(table: _Table) -> Spectrum:
    values, multiplicities = zip(*((decimals.rounded(v), m) for v, m in table if m), strict=True)
    return group(values, multiplicities)


def _range_off_the_orbit(problem: Problem) -> tuple[Decimal, Decimal]:
    """Smallest and largest eigenvalue at the global minimum, except the zeros of the orbit."""
    scalar_decays(problem)
    _check_assumptions(problem)
    table = [(value, m) for value, m in _minimum_table(problem) if m]
    rank = 0 if lookup.is_collapsed(problem) else problem.K - 1
    largest, zeros = max(table)[0], sum(m for value, m in table if not value)
    if zeros > orbit_dimension(problem, rank):
        return Decimal(0), largest
    return min(value for value, _ in table if value), largest


def condition_number(problem: Problem) -> float:
    """λ_max/λ_min of ∇²f at the global minimum, except the zeros along the symmetry orbit.

    Infinite exactly at the threshold K²nλ_Wλ_H = 1, where the minimum is degenerate.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    smallest, largest = _range_off_the_orbit(problem)
    return decimals.rounded(largest / smallest) if smallest else float("inf")


def gd_rate(problem: Problem, learning_rate: float) -> float:
    """max |1 − ηλ| over the eigenvalues λ at the global minimum, except the zeros of the orbit.

    It is the asymptotic factor by which a step of gradient descent with learning rate η reduces the
    distance to the set of global minima (the minimum is Morse–Bott); with 1 or more, descent does
    not converge.

    Raises:
        Refused: as `hessian_spectrum`; a learning rate that is negative or not finite.
    """
    rate = Decimal(real("learning_rate", learning_rate, least=0))
    return decimals.rounded(max(abs(1 - rate * value) for value in _range_off_the_orbit(problem)))


def optimal_step(problem: Problem) -> float:
    """η = 2/(λ_min + λ_max), the step of least `gd_rate`, (κ−1)/(κ+1), κ the condition number.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    return decimals.rounded(2 / sum(_range_off_the_orbit(problem), Decimal(0)))
