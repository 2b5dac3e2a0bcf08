"""Spectra of the Hessian in closed form, at the global minimum and at the origin, for any size.

Permuting classes and turning features leave the simplex ETF in place, so its Hessian splits into
blocks of at most 4×4 and has at most 16 distinct eigenvalues whatever K, d and n are. With
c = √(n λ_W λ_H) < 1/K, β = 1 − Kc, margin t, μ = √(λ_W λ_H), and p² = t√(λ_W/(n λ_H)) =
‖h_k‖² K/(K−1), q² = t√(λ_H/(n λ_W)) = ‖w_k‖² K/((K−1)n) for a class mean h_k and a row w_k of W,
they are, with how often each occurs,

    [[λ_W + κp², κpq ∓ μ], [κpq ∓ μ, λ_H + κq²]]   κ = (c/K)(1 + (K−1)β)  −   once
                                                   κ = c/K                −   K(K−3)/2
                                                   κ = c/K                +   (K−1)(K−2)/2
    a 4×4 block and λ_W (standard representation)                             K−1
    λ_b                                                                       once
    λ_H + q²c/K                                                               K(K−2)(n−1)
    λ_H + q²c(1 − (K−1)c)                                                     K(n−1)
    λ_H                                                                       K(d−K+1)(n−1)
    0 and λ_W + λ_H                                                           (K−1)(d−K+1) each
    λ_W and λ_H                                                               d−K+1 each

The lower eigenvalue of the block with + is 0. Derivation: in the basis of the ETF the two factors
of a tangent are K×K matrices A (rows centred) and B (columns centred); the data term sees only
X = pA + qB + δb 1ᵀ, through (c/K)‖X‖² + cβ‖diag X‖²; and ⟨G, ΔW ΔH⟩ = −μ tr(AB) on their doubly
centred parts. Both forms are equivariant under S_K. (The minimum itself: Zhu et al. 2021, arXiv
2105.02375, theorem 3.1.) Nothing here imports a probe: agreement with `ufm.hessian` is evidence.
"""

from typing import NamedTuple

import jax
import numpy as np

from ufm import minimum
from ufm.check import Refused
from ufm.problem import Problem


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
    free_bias = problem.bias and float(problem.lam_b) == 0.0
    return rank * problem.d - rank * (rank + 1) // 2 + int(free_bias)


def _scalar_decays(problem: Problem) -> tuple[float, float, float]:
    decays = (problem.lam_W, problem.lam_H, problem.lam_b)
    if any(isinstance(lam, jax.core.Tracer) or np.ndim(lam) for lam in decays):
        raise Refused(
            f"got decays {decays}: a spectrum belongs to one problem; give Python numbers and "
            "loop over them"
        )
    return tuple(float(lam) for lam in decays)  # type: ignore[return-value]


def _pair(diagonal_W: float, diagonal_H: float, coupling: float) -> np.ndarray:
    return np.linalg.eigvalsh([[diagonal_W, coupling], [coupling, diagonal_H]])


def _standard_block(K, c, p, q, decays, bias: bool) -> np.ndarray:
    """Eigenvalues of the standard representation, without its λ_W.

    Coordinates: the doubly centred parts of W and H, whose X is x(diag u − …) with u ⊥ 1; the
    mean of H over samples, ψ; the bias, φ. Then X = x U + y 1ᵀ with x = pα + qγ and
    y = qψ/√K + φ, and the data term is (c/K)(x² + K y²) + cβ(√(1−2/K) x + y)².
    """
    lam_W, lam_H, lam_b = decays
    x, y = np.array([p, q, 0.0, 0.0]), np.array([0.0, 0.0, q / np.sqrt(K), 1.0])
    diagonal = np.sqrt(1 - 2 / K) * x + y
    data = c / K * np.outer(x, x) + c * np.outer(y, y)
    block = data + c * (1 - K * c) * np.outer(diagonal, diagonal)
    block += np.diag([lam_W, lam_H, lam_H, lam_b])
    block[0, 1] -= np.sqrt(lam_W) * np.sqrt(lam_H)
    block[1, 0] = block[0, 1]
    # K = 2 has no doubly centred part of this kind.
    keep = np.array([K > 2, K > 2, True, bias])
    return np.linalg.eigvalsh(block[np.ix_(keep, keep)])


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
            decays that are arrays.
    """
    decays = lam_W, lam_H, lam_b = _scalar_decays(problem)
    if minimum.is_collapsed(problem):
        return origin_spectrum(problem)
    K, d, n = problem.K, problem.d, int(problem.counts[0])
    c, t = float(minimum.wrong_probability(problem)), float(minimum.margin(problem))
    ratio, mu = np.sqrt(lam_W / lam_H), np.sqrt(lam_W) * np.sqrt(lam_H)
    p, q = np.sqrt(t / np.sqrt(n) * ratio), np.sqrt(t / np.sqrt(n) / ratio)

    def pair(kappa, sign):
        return _pair(lam_W + kappa * p**2, lam_H + kappa * q**2, kappa * p * q + sign * mu)

    lifted = lam_W + lam_H + c / K * (p**2 + q**2)
    standard = _standard_block(K, c, p, q, decays, problem.bias)
    antisymmetric, orthogonal = (K - 1) * (K - 2) // 2, d - K + 1
    table = [
        *((value, 1) for value in pair(c / K * (1 + (K - 1) * (1 - K * c)), -1)),
        *((value, max(K * (K - 3) // 2, 0)) for value in pair(c / K, -1)),
        (0.0, antisymmetric),
        (lifted, antisymmetric),
        *((value, K - 1) for value in standard),
        (lam_W, K - 1),
        (lam_b, int(problem.bias)),
        (lam_H + q**2 * c / K, K * (K - 2) * (n - 1)),
        (lam_H + q**2 * c * (1 - (K - 1) * c), K * (n - 1)),
        (lam_H, K * orthogonal * (n - 1)),
        (0.0, (K - 1) * orthogonal),
        (lam_W + lam_H, (K - 1) * orthogonal),
        (lam_W, orthogonal),
        (lam_H, orthogonal),
    ]
    return _merged(table)


def origin_spectrum(problem: Problem) -> Spectrum:
    """The spectrum of ∇²f at W = 0, H = 0, b = 0, a critical point of every balanced problem.

        (λ_W+λ_H)/2 ± √(((λ_W−λ_H)/2)² + 1/(K²n))   d(K−1) times each
        λ_W  d times,   λ_H  d(N−K+1) times,   λ_b once,   λ_b + 1/K  K−1 times

    The Morse index is d(K−1) below the threshold K²nλ_Wλ_H = 1 and 0 from it on; any d ≥ 1.

    Raises:
        Refused: unequal class counts (the origin is then no critical point in b);
            decays that are arrays.
    """
    lam_W, lam_H, lam_b = _scalar_decays(problem)
    if not problem.balanced:
        raise Refused(
            f"got unequal class counts n={problem.n}: the closed form at the origin assumes "
            "balanced classes; use ufm.hessian.spectrum at the critical point itself"
        )
    K, d, N = problem.K, problem.d, problem.N
    s = 1 / np.sqrt(float(K * N))
    upper = (lam_W + lam_H) / 2 + np.hypot((lam_W - lam_H) / 2, s)
    # The product of the two is λ_W λ_H − s²: no cancellation near the threshold.
    mu = np.sqrt(lam_W) * np.sqrt(lam_H)
    lower = (mu - s) * (mu + s) / upper
    bias = int(problem.bias)
    table = [
        (lower, d * (K - 1)),
        (upper, d * (K - 1)),
        (lam_W, d),
        (lam_H, d * (N - K + 1)),
        (lam_b, bias),
        (lam_b + 1 / K, bias * (K - 1)),
    ]
    return _merged(table)


def _merged(table) -> Spectrum:
    values, multiplicities = zip(*table, strict=True)
    rounding = 8 * np.finfo(np.float64).eps * max(map(abs, values))
    return group(values, multiplicities, rounding)


def _range_off_the_orbit(problem: Problem) -> tuple[float, float]:
    """Smallest and largest eigenvalue at the global minimum, those of the orbit left out."""
    values, multiplicities = hessian_spectrum(problem)
    rank = 0 if minimum.is_collapsed(problem) else problem.K - 1
    rounding = 8 * np.finfo(np.float64).eps * values[-1]
    zeros = sum(m for v, m in zip(values, multiplicities, strict=True) if abs(v) <= rounding)
    if zeros > orbit_dimension(problem, rank):
        return 0.0, float(values[-1])
    return float(values[values > rounding][0]), float(values[-1])


def condition_number(problem: Problem) -> float:
    """λ_max/λ_min of ∇²f at the global minimum, on the quotient by the symmetry orbit.

    Infinite exactly at the threshold K²nλ_Wλ_H = 1, where the minimum is degenerate.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    smallest, largest = _range_off_the_orbit(problem)
    return largest / smallest if smallest > 0 else float("inf")


def gd_rate(problem: Problem, learning_rate: float) -> float:
    """max |1 − ηλ| over the eigenvalues λ off the orbit, at the global minimum.

    The factor by which a step of gradient descent shrinks the distance to the set of global
    minima, asymptotically (the minimum is Morse–Bott); 1 or more means that it does not converge.

    Raises:
        Refused: as `hessian_spectrum`.
    """
    return max(abs(1 - learning_rate * value) for value in _range_off_the_orbit(problem))


def optimal_step(problem: Problem) -> float:
    """η = 2/(λ_min + λ_max), the step of smallest `gd_rate`, which is then (κ−1)/(κ+1).

    Raises:
        Refused: as `hessian_spectrum`.
    """
    return 2 / sum(_range_off_the_orbit(problem))
