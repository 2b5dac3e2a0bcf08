"""Spectra of the Hessian in closed form, at the global minimum and at the origin, for any size.

Permuting classes and turning features leave the simplex ETF in place, so its Hessian splits into
blocks of at most 4×4 and has at most 16 distinct eigenvalues whatever K, d and n are. There a loss
is three numbers: the margin t, and with its Hessian S in the logits z = t(e_y − 1/K)

    s_own = uᵀSu,  u ∝ e_y − 1/K,      s_wrong = vᵀSv,  v ∝ e_j − e_k  (unit vectors; j, k ≠ y),

for cross-entropy c(1 + (K−1)β) and c with c = √(n λ_W λ_H) < 1/K, β = 1 − Kc. With μ = √(λ_W λ_H)
and p² = t√(λ_W/(n λ_H)) = ‖h_k‖² K/(K−1), q² = t√(λ_H/(n λ_W)) = ‖w_k‖² K/((K−1)n) for a class
mean h_k and a row w_k of W the eigenvalues are, with how often each occurs,

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

The lower eigenvalue of the block with + is 0. Derivation: in the basis of the ETF the two factors
of a tangent are K×K matrices A (rows centred) and B (columns centred); the data term sees only
X = pA + qB + δb 1ᵀ, through (s_wrong/K)‖X‖² + (s_own − s_wrong)/(K−1) ‖diag X‖² for columns X
centred; and ⟨G, ΔW ΔH⟩ = −μ tr(AB) on their doubly centred parts. Both forms are equivariant under
S_K. (The minimum itself: Zhu et al. 2021, arXiv 2105.02375, theorem 3.1.) Nothing here imports a
probe: agreement with `ufm.hessian` is evidence.

Decays and hence eigenvalues may span hundreds of orders of magnitude, where float64 would lose the
small ones beside the large. Everything is computed in decimals of `DIGITS` digits and rounded
once, at the end.
"""

import decimal
import functools
from decimal import Decimal
from typing import NamedTuple

import numpy as np

from ufm.check import Refused, integer, normal_decays, real
from ufm.linalg import pair
from ufm.model.problem import Problem, check_problem
from ufm.theory import minimum

# Of the quotient of any two float64 numbers, 1e±616, and 80 more.
DIGITS = 700
_Table = list[tuple[Decimal, int]]  # eigenvalues and multiplicities


class Spectrum(NamedTuple):
    """Eigenvalues and how often each occurs.

    eigenvalues: (m,) float64, ascending.
    multiplicities: (m,) Python ints; they add up to the number of variables.
    """

    eigenvalues: np.ndarray
    multiplicities: tuple[int, ...]


def group(values, multiplicities, tolerance: float = 0.0) -> Spectrum:
    """Sort eigenvalues and merge neighbours that are at most `tolerance` apart.

    The member of smallest modulus stands for its group, so an exact 0 stays exact. Entries of
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

    r is the rank of [Wᵀ, H]; the orbit is that of (W Qᵀ, Q H), Q ∈ O(d), and of b + s1 when a
    bias goes without decay. At a critical point the Hessian vanishes along it.
    """
    check_problem(problem)
    rank = integer("rank", rank, 0, problem.d)
    free_bias = problem.bias and float(problem.lam_b) == 0.0
    return rank * problem.d - rank * (rank + 1) // 2 + int(free_bias)


def _scalar_decays(problem: Problem) -> tuple[float, float, float]:
    check_problem(problem)
    decays = (problem.lam_W, problem.lam_H, problem.lam_b)
    return tuple(float(lam) for lam in decays)  # type: ignore[return-value]


def _exact(compute):
    """Compute with decimals of `DIGITS` digits, once for each problem."""

    @functools.lru_cache(maxsize=256)
    def kept(*key):
        with decimal.localcontext(decimal.Context(prec=DIGITS)):
            return compute(Problem(*key))

    def exact(problem: Problem) -> _Table:
        decays = _scalar_decays(problem)
        return kept(problem.K, problem.d, problem.n, *decays, problem.bias)

    return exact


def _eigenvalues(A: list[list[Decimal]]) -> list[Decimal]:
    """Eigenvalues of a small symmetric matrix by Jacobi's rotations, to the last digits."""
    size, A = len(A), [list(row) for row in A]
    negligible = max(abs(x) for row in A for x in row) * Decimal(10) ** (10 - DIGITS)
    pairs = [(i, j) for i in range(size) for j in range(i)]
    while any(abs(A[i][j]) > negligible for i, j in pairs):
        for i, j in pairs:
            if not A[i][j]:
                continue
            theta = (A[j][j] - A[i][i]) / (2 * A[i][j])
            t = (1 if theta >= 0 else -1) / (abs(theta) + (theta * theta + 1).sqrt())
            c = 1 / (t * t + 1).sqrt()
            for row in A:
                row[i], row[j] = c * (row[i] - t * row[j]), c * (t * row[i] + row[j])
            A[i], A[j] = (
                [c * (x - t * y) for x, y in zip(A[i], A[j], strict=True)],
                [c * (t * x + y) for x, y in zip(A[i], A[j], strict=True)],
            )
    return [A[i][i] for i in range(size)]


class ThreeNumbers(NamedTuple):
    """What a loss is at the balanced ETF: t, s_own and s_wrong of the module's head."""

    t: Decimal
    own: Decimal
    wrong: Decimal


def _three_numbers(problem: Problem) -> ThreeNumbers:
    """Of cross-entropy at its minimum, below the threshold."""
    K = problem.K
    lam_W, lam_H, _ = map(Decimal, _scalar_decays(problem))
    exact = minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
    c = (Decimal(int(problem.counts[0])) * lam_W * lam_H).sqrt()
    beta = Decimal(exact.numerator) / Decimal(exact.denominator) / (1 + K * c)
    return ThreeNumbers((1 + beta / c).ln(), c * (1 + (K - 1) * beta), c)


def _standard_block(problem: Problem, at: ThreeNumbers, p2: Decimal, q2: Decimal):
    """Eigenvalues of the standard representation, without its λ_W.

    Coordinates: the doubly centred parts of W and H, whose X is x(diag u − …) with u ⊥ 1; the
    mean of H over samples, ψ; the bias, φ. Then X = x U + y 1ᵀ with x = pα + qγ and
    y = qψ/√K + φ, and the data term is (s_wrong/K)(x² + K y²) +
    (s_own − s_wrong)/(K−1) (√(1−2/K) x + y)².
    """
    lam_W, lam_H, lam_b = map(Decimal, _scalar_decays(problem))
    K, zero, p, q = Decimal(problem.K), Decimal(0), p2.sqrt(), q2.sqrt()
    x, y = [p, q, zero, zero], [zero, zero, q / K.sqrt(), Decimal(1)]
    diagonal = [(1 - 2 / K).sqrt() * a + b for a, b in zip(x, y, strict=True)]
    # λ_W α² − 2μαγ + λ_H γ² as a square too.
    decay = [lam_W.sqrt(), -lam_H.sqrt(), zero, zero]
    own = (at.own - at.wrong) / (K - 1)
    terms = (at.wrong / K, x), (at.wrong, y), (own, diagonal), (Decimal(1), decay)
    block = [[sum((w * v[i] * v[j] for w, v in terms), zero) for j in range(4)] for i in range(4)]
    block[2][2] += lam_H
    block[3][3] += lam_b
    # K = 2 has no doubly centred part of this kind.
    kept = [i for i in range(4) if (i > 1 or problem.K > 2) and (i < 3 or problem.bias)]
    return _eigenvalues([[block[i][j] for j in kept] for i in kept])


def hessian_spectrum(problem: Problem) -> Spectrum:
    """The spectrum of ∇²f at the global minimum, by the table at the head of this module.

    The Hessian is positive semidefinite there, with nullity d(K−1) − K(K−1)/2 (the O(d) orbit),
    plus 1 if λ_b = 0. At and above the threshold K²nλ_Wλ_H ≥ 1 the minimum is the origin and the
    result that of `origin_spectrum`.

    Args:
        problem: balanced, d ≥ K−1, λ_W, λ_H > 0, λ_b ≥ 0 or no bias, with scalar decays.

    Returns:
        A `Spectrum`, equal eigenvalues merged; multiplicities add up to `problem.size`.

    Raises:
        Refused: outside the theorem's assumptions;
            decays that are arrays; an eigenvalue beyond the range of float64.
    """
    _scalar_decays(problem)
    minimum.check_assumptions(problem)
    return _rounded(_minimum_table(problem))


@_exact
def _minimum_table(problem: Problem) -> _Table:
    if minimum.is_collapsed(problem):
        return _origin_table(problem)
    K, d, n = problem.K, problem.d, int(problem.counts[0])
    lam_W, lam_H, lam_b = map(Decimal, _scalar_decays(problem))
    at, root, mu = _three_numbers(problem), Decimal(n).sqrt(), (lam_W * lam_H).sqrt()
    p2, q2 = at.t * mu / (lam_H * root), at.t * mu / (lam_W * root)
    own, wrong = at.own / K, at.wrong / K

    def block(kappa):  # with −, whose determinant is 4κ(pq)μ
        trace = lam_W + lam_H + kappa * (p2 + q2)
        return pair.of_determinant(trace, 4 * kappa * at.t / root * mu)

    antisymmetric, orthogonal = (K - 1) * (K - 2) // 2, d - K + 1
    return [
        *((value, 1) for value in block(own)),
        *((value, max(K * (K - 3) // 2, 0)) for value in block(wrong)),
        (Decimal(0), antisymmetric),
        (lam_W + lam_H + wrong * (p2 + q2), antisymmetric),
        *((value, K - 1) for value in _standard_block(problem, at, p2, q2)),
        (lam_W, K - 1),
        (lam_b, int(problem.bias)),
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

        (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + 1/(K²n))   d(K−1) times each
        λ_W  d times,   λ_H  d(N−K+1) times,   λ_b once,   λ_b + 1/K  K−1 times

    The Morse index is d(K−1) below the threshold K²nλ_Wλ_H = 1 and 0 from it on; any d ≥ 1.

    Raises:
        Refused: unequal class counts (the origin is then no critical point in b);
            decays that are arrays.
    """
    _scalar_decays(problem)
    normal_decays(problem)
    minimum.check_uniform(problem)
    if not problem.balanced:
        raise Refused(
            f"got unequal class counts n={problem.n}: the closed form at the origin assumes "
            "balanced classes; use ufm.hessian.spectrum at the critical point itself"
        )
    return _rounded(_origin_table(problem))


@_exact
def _origin_table(problem: Problem) -> _Table:
    lam_W, lam_H, lam_b = map(Decimal, _scalar_decays(problem))
    K, d, N = problem.K, problem.d, problem.N
    exact = minimum.below_threshold(problem, problem.lam_W, problem.lam_H)
    # λ_W λ_H − 1/(K² n): exactly 0 at the threshold.
    determinant = -Decimal(exact.numerator) / Decimal(exact.denominator) / (K * N)
    lower, upper = pair.of_determinant(lam_W + lam_H, determinant)
    bias = int(problem.bias)
    return [
        (lower, d * (K - 1)),
        (upper, d * (K - 1)),
        (lam_W, d),
        (lam_H, d * (N - K + 1)),
        (lam_b, bias),
        (lam_b + 1 / Decimal(K), bias * (K - 1)),
    ]


def _double(value: Decimal) -> float:
    """The nearest float64.

    Raises:
        Refused: it would be infinite, or 0 for another number, or lose digits below 2.2e-308.
    """
    result = float(value)
    if value and not float(np.finfo(np.float64).tiny) <= abs(result) < np.inf:
        raise Refused(
            f"got decays at which a result is {value:.3g}, beyond float64; allowed: decays that "
            "are closer to one another"
        )
    return result


def _rounded(table: _Table) -> Spectrum:
    values, multiplicities = zip(*((_double(v), m) for v, m in table if m), strict=True)
    return group(values, multiplicities)


def _range_off_the_orbit(problem: Problem) -> tuple[Decimal, Decimal]:
    """Smallest and largest eigenvalue at the global minimum, those of the orbit left out."""
    _scalar_decays(problem)
    minimum.check_assumptions(problem)
    table = [(value, m) for value, m in _minimum_table(problem) if m]
    rank = 0 if minimum.is_collapsed(problem) else problem.K - 1
    largest, zeros = max(table)[0], sum(m for value, m in table if not value)
    if zeros > orbit_dimension(problem, rank):
        return Decimal(0), largest
    return min(value for value, _ in table if value), largest


def condition_number(problem: Problem) -> float:
    """λ_max/λ_min of ∇²f at the global minimum, on the quotient by the symmetry orbit.

    Infinite exactly at the threshold K²nλ_Wλ_H = 1, where the minimum is degenerate.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    smallest, largest = _range_off_the_orbit(problem)
    return _double(largest / smallest) if smallest else float("inf")


def gd_rate(problem: Problem, learning_rate: float) -> float:
    """max |1 − ηλ| over the eigenvalues λ off the orbit, at the global minimum.

    The factor by which a step of gradient descent shrinks the distance to the set of global
    minima, asymptotically (the minimum is Morse–Bott); 1 or more means that it does not converge.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    rate = Decimal(real("learning_rate", learning_rate, least=0))
    return _double(max(abs(1 - rate * value) for value in _range_off_the_orbit(problem)))


def optimal_step(problem: Problem) -> float:
    """η = 2/(λ_min + λ_max), the step of smallest `gd_rate`, which is then (κ−1)/(κ+1).

    Raises:
        Refused: as `hessian_spectrum`.
    """
    return _double(2 / sum(_range_off_the_orbit(problem), Decimal(0)))
