"""The squared error: every critical point in closed form, for any width, counts and targets.

    f = (1/2N)‖WH + b1ᵀ − Y‖² + (λ_W/2)‖W‖² + (λ_H/2)‖H‖² + (λ_b/2)‖b‖²

Without a bias, or with one that has no decay (then Y stands for Y − ȳ1ᵀ), let σ_i be the singular
values of Y, √n_k for classes. The decays amount to μ‖WH‖_*, μ = √(λ_W λ_H), and the singular
directions of Y (*modes*) decouple: a critical point takes a set S of modes with σ_i > Nμ, |S| ≤ d,
each shrunk to s_i = σ_i − Nμ, and

    f = Σ_{i∈S} [(s_i − σ_i)²/2N + μ s_i] + Σ_{i∉S} σ_i²/2N,      W = U_S (√s) Qᵀ, H = Q (√s) V_Sᵀ

up to the scales of W and H. The minimum takes the d largest σ_i: class k vanishes iff n_k ≤
N²λ_Wλ_H. If all σ_i > Nμ are distinct, each S is one orbit, of Morse index

    (d−|S|)·#{i ∉ S: σ_i > Nμ} + #{(i ∉ S, a ∈ S): σ_i > σ_a}

and nullity |S|(|S|−1)/2 + |S|(d−|S|): no local minimum is spurious, for any d.

**A decayed bias.** Let ȳ be orthogonal to the columns of Y − ȳ1ᵀ, as for equal classes. Then ȳ1ᵀ is
one more mode, σ = √N‖ȳ‖, whose squared error has the weight ρ = λ_b/(1+λ_b) in place of 1: it is
shrunk to (σ − Nμ/ρ)₊, with b = (ȳ − z̄)/(1+λ_b), z̄ the mean of WH. With κ = K√n μ equal classes
have a simplex ETF for λ_b ≤ κ/(1−κ), where this mode is 0, and class means of equal cosines

    (s₁−s)/(s₁+(K−1)s),    s = √n(1−κ)₊,  s₁ = √n(1 − κ − κ/λ_b)₊,

beyond, which tend to those of an orthogonal frame as λ_b → ∞ (transition: arXiv 2606.00344).

**All critical points with a decayed bias.** With b minimised out, f = ‖(Z−Y)P^½‖²/2N + …, where P
is I less (1−ρ) times the projection on 1. At a critical point of rank r, AV = μU and AᵀU = μV for
A = (Y−Z)P/N, Z = UΣVᵀ. Let S = (Y−ȳ1ᵀ)(Y−ȳ1ᵀ)ᵀ, û = ȳ/‖ȳ‖, X = UΣUᵀ and c = Nμ. On the range R of
U this is S = (X+c)² − yyᵀ, y = σ(X+c)(X+c/ρ)⁻¹û, and off it qᵀS|_R = −ρσ⟨q,û⟩yᵀ for the part q of
û orthogonal to R. If û ∈ R or û ⟂ R, R is invariant under S: a set of modes. Otherwise Sû = 0 makes
(X+c)(X+c/ρ)û_R a multiple of û_R, so û_R is an eigenvector of X and the plane of û_R and q is
invariant under S: û mixes with a single contrast i. With a = σ_i² and m = ρ²σ² this happens iff
each of the two is stable against the other,

    m/(ρ(σ_i−c)+c) < σ_i    and    a/(σ−c/ρ+c) < ρσ        (i taken and û left out; the reverse),

since both are then minima of f on the circle of directions between them; a third critical point
separates them, a saddle, and `critical_points` refuses. Otherwise the critical points are the sets
of modes, and in each pair exactly one is unstable against the other: this replaces σ_i > σ_a in the
index above where one of the pair is û. The minimum takes the d modes of the largest gain ρ_i s_i².

Sources: Zhou et al. 2022 (arXiv 2203.01238), Tirer and Bruna 2022 (arXiv 2202.08087); regression:
arXiv 2409.04180. The tests compare the list of critical points with censuses.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Array

from ufm import check
from ufm.check import Refused, normal_decays
from ufm.losses import SquaredError
from ufm.model import layers
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem, check_problem
from ufm.theory import geometry, shared

MOST_POINTS = 2**16
_TIE = 1e-10  # relative difference up to which two modes count as equal


class CriticalPoint(NamedTuple):
    """One orbit of critical points.

    modes: indices of the singular values of the targets that it takes, from the largest σ = 0; the
        mode of a decayed bias comes last.  rank: of W, the number of modes.
    value: f.  morse_index, nullity: of ∇²f.
    """

    modes: tuple[int, ...]
    rank: int
    value: float
    morse_index: int
    nullity: int


class _Modes(NamedTuple):
    """Y = U diag(σ) Vᵀ, centred where there is a bias, with the mean as last mode where b decays.

    U (K, m), sigma (m,), Vt (m, G) of unit weight; stiffness ρ (m,); mean ȳ (K,).
    """

    U: np.ndarray
    sigma: np.ndarray
    Vt: np.ndarray
    stiffness: np.ndarray
    mean: np.ndarray


def fails(problem: Problem) -> str | None:
    """The first assumption that a problem does not meet, or None."""
    loss = problem.loss
    if (failed := shared.free(problem)) is not None:
        return failed
    if not isinstance(loss, SquaredError):
        return f"the squared error (got {type(loss).__name__})"
    if (loss.own, loss.shift) != (1.0, 1.0):
        return f"the plain squared error (got own={loss.own}, shift={loss.shift})"
    if problem.weights is not None or problem.decay_weights is not None:
        return "samples of one weight (got weights or decay_weights)"
    if (failed := shared.decays(problem)) is not None:
        return failed
    if not (problem.bias and float(problem.lam_b) > 0):
        return None
    modes = _split(problem)
    if np.max(np.abs(modes.mean @ modes.U[:, :-1]) * modes.sigma[:-1]) > 1e-12 * modes.sigma.max():
        return (
            "no bias, one without decay, or targets whose mean is orthogonal to their contrasts, "
            f"as for equal classes (got lam_b={problem.lam_b})"
        )
    return None


def landscape_fails(problem: Problem) -> str | None:
    """The first assumption of `critical_points` that a problem does not meet, or None."""
    reason = fails(problem)
    if reason is not None:
        return reason
    return _mixing(problem, _split(problem))


def _mixing(problem: Problem, modes: _Modes) -> str | None:
    """Why the mean of a decayed bias may mix with a contrast at critical points, or None."""
    beats, mean = _beats(problem, modes), len(modes.sigma) - 1
    on = np.flatnonzero(_shrunk(problem, modes) > 0)
    if mean not in on or modes.stiffness[mean] == 1:
        return None
    for i in on[:-1]:
        if beats[i, mean] == beats[mean, i]:
            return (
                f"another lam_b (got lam_b={problem.lam_b}: beside the mean of the targets and "
                f"contrast {i} there is a critical point that mixes the two)"
            )
    return None


def _beats(problem: Problem, modes: _Modes) -> np.ndarray:
    """(m, m), [i, a]: whether ∇²f is negative in the direction from a mode a taken to i left out.

    It is iff ρ_i²σ_i²/(ρ_i s_a + Nμ) > ρ_a σ_a.
    """
    rho, c = modes.stiffness, problem.N * float(problem.mu)
    s = _shrunk(problem, modes)
    pull = (rho * modes.sigma)[:, None] ** 2 / (rho[:, None] * s[None, :] + c)
    return pull > (rho * modes.sigma)[None, :] * (1 + _TIE)


def _split(problem: Problem) -> _Modes:
    """The modes of the targets.

    Raises:
        Refused: too many targets for their matrices.
    """
    check.fits(
        f"K={problem.K}, {problem.groups} columns of targets: their singular vectors, four such "
        "matrices",
        4 * 8 * problem.K * problem.groups,
        "Lower K",
        machine=True,
    )
    T = np.eye(problem.K) if problem.targets is None else np.asarray(problem.targets)
    root = np.sqrt(problem.counts.astype(float))
    mean = T @ problem.counts / problem.N if problem.bias else np.zeros(problem.K)
    U, sigma, Vt = np.linalg.svd((T - mean[:, None]) * root, full_matrices=False)
    lam_b, size = float(problem.lam_b), float(np.linalg.norm(mean))
    stiffness = np.ones(len(sigma))
    if problem.bias and lam_b > 0:
        u = mean / size if size else mean
        U, Vt = np.column_stack([U, u]), np.vstack([Vt, root / problem.N**0.5])
        sigma = np.append(sigma, problem.N**0.5 * size)
        stiffness = np.append(stiffness, lam_b / (1 + lam_b))
    return _Modes(U, sigma, Vt, stiffness, mean)


def _modes(problem: Problem) -> _Modes:
    check_problem(problem)
    layers.require_free(problem, "ufm.theory.squared")
    normal_decays(problem)
    reason = fails(problem)
    if reason is not None:
        raise Refused(
            f"got a problem outside the closed form of the squared error, which needs {reason}; "
            "find its minimum with ufm.solve, and bound it with ufm.certify"
        )
    return _split(problem)


def _shrunk(problem: Problem, modes: _Modes) -> np.ndarray:
    """s_i = (σ_i − Nμ/ρ_i)₊."""
    return np.maximum(modes.sigma - problem.N * float(problem.mu) / modes.stiffness, 0)


def _value(problem: Problem, modes: _Modes, on: np.ndarray) -> float:
    """f of a critical point that takes these modes."""
    s, mu, N = np.where(on, _shrunk(problem, modes), 0), float(problem.mu), problem.N
    return float(np.sum(modes.stiffness * (s - modes.sigma) ** 2 / (2 * N) + mu * s))


def _largest(problem: Problem, modes: _Modes) -> np.ndarray:
    """The modes of the global minimum: those with s > 0 among the d of the largest gain ρs²/2N."""
    s = _shrunk(problem, modes)
    first = np.argsort(-modes.stiffness * s**2, kind="stable")[: problem.d]
    return (s > 0) & np.isin(np.arange(len(s)), first)


def global_value(problem: Problem) -> float:
    """f* by the formula of the module's head, in the unit of the squared targets.

    Raises:
        Refused: naming the assumption that fails; array-valued or traced decays.
    """
    modes = _modes(problem)
    return _value(problem, modes, _largest(problem, modes))


def is_collapsed(problem: Problem) -> bool:
    """Whether no σ_i exceeds Nμ/ρ_i, so that the minimum is W = H = 0.

    Raises:
        Refused: as `global_value`.
    """
    return not bool(np.any(_shrunk(problem, _modes(problem))))


def norms(problem: Problem) -> tuple[float, float]:
    """(‖W‖, ‖H‖) at the minimum: ‖W‖² = √(λ_H/λ_W) Σ s_i = (λ_H/λ_W)‖H‖².

    Raises:
        Refused: as `global_value`.
    """
    modes = _modes(problem)
    root = float(np.sum(_shrunk(problem, modes)[_largest(problem, modes)])) ** 0.5
    tilt = shared.tilt(problem)
    return root * tilt, root / tilt


def check_unique(problem: Problem) -> None:
    """Refuse a problem whose minimisers are several orbits: equal gains compete for the last of d.

    Raises:
        Refused: as `global_value`; such a problem.
    """
    modes = _modes(problem)
    taken = _largest(problem, modes)
    gain = modes.stiffness * _shrunk(problem, modes) ** 2
    left = (gain > 0) & ~taken
    if np.any(left) and np.min(gain[taken]) - np.max(gain[left]) <= _TIE * gain.max():
        raise Refused(
            f"got d={problem.d} dimensions for {np.sum(taken | left)} modes, of which equal ones "
            "compete for the last: the minimum has no one geometry; allowed: distinct modes, as "
            "unequal class counts give them, or more dimensions"
        )


def margin(problem: Problem) -> float:
    """t = z_y − z_j = (1 − Nμ/√n)₊ at the minimum of equal classes, for every wrong class j.

    Raises:
        Refused: as `global_value`; unequal classes, targets, or too few dimensions for one margin.
    """
    _modes(problem)
    least = problem.K - 1 if problem.bias else problem.K
    if not problem.uniform or problem.d < least:
        raise Refused(
            "got the squared error with unequal classes, targets or too few dimensions "
            f"(d={problem.d}); allowed: equal classes and d >= K-1 with a bias, d >= K without, "
            "where all samples have one margin"
        )
    return max(1 - problem.N * float(problem.mu) / float(problem.n) ** 0.5, 0.0)


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A global minimiser in a Haar-random orientation.

    Args:
        problem: as `global_value` takes it.
        key: a JAX PRNG key; it draws the orientation. None takes a fixed one.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: as `global_value`; sizes that do not fit into memory.
    """
    modes = _modes(problem)
    check_memory(problem, 8)
    on = _largest(problem, modes)
    s = _shrunk(problem, modes)[on]
    tilt = shared.tilt(problem)
    Q = geometry.numpy_frame(key, problem.d, len(s))
    W = tilt * (modes.U[:, on] * np.sqrt(s)) @ Q.T
    means = Q @ (np.sqrt(s)[:, None] * modes.Vt[on]) / np.sqrt(problem.counts) / tilt
    share = problem.counts / problem.N
    b = (modes.mean - W @ (means @ share)) / (1 + float(problem.lam_b))
    b = b if problem.bias else np.zeros(problem.K)
    return shared.point(dtype, W, means[:, problem.labels], b)


def _check_distinct(modes: _Modes, on: list[int]) -> None:
    """Refuse equal singular values above Nμ of the contrasts."""
    sigma = modes.sigma[modes.stiffness == 1]
    if any(sigma[i] - sigma[i + 1] <= _TIE * sigma[0] for i in on if i + 1 < len(sigma)):
        raise Refused(
            f"got singular values {np.array2string(sigma, precision=6)} of the targets, of which "
            "some are equal: their critical points are not isolated orbits; allowed: distinct "
            "ones, as unequal class counts give them"
        )


def critical_points(problem: Problem) -> tuple[CriticalPoint, ...]:
    """All orbits of critical points of the squared error, by increasing value.

    Formulas: `ufm.theory.squared`. Status: a candidate, compared with censuses.

    Args:
        problem: any counts, any d, any targets; the singular values of the targets above Nμ must
            differ. With a decayed bias the mean of the targets must be orthogonal to their
            contrasts, and no critical point may mix the two.

    Returns:
        A `CriticalPoint` for every set of at most d singular values above Nμ.

    Raises:
        Refused: as `global_value`; equal singular values, whose critical points form a continuum; a
            mean that mixes with a contrast; more than 65,536 sets.
    """
    modes = _modes(problem)
    if (reason := _mixing(problem, modes)) is not None:
        raise Refused(
            "got a problem whose critical points have no closed form here, which needs "
            f"{reason}; find them with ufm.critical.census"
        )
    on = [int(i) for i in np.flatnonzero(_shrunk(problem, modes) > 0)]
    _check_distinct(modes, on)
    count = sum(math.comb(len(on), r) for r in range(min(len(on), problem.d) + 1))
    if count > MOST_POINTS:
        raise Refused(f"got {count:,} critical points; allowed: {MOST_POINTS:,}. Lower d or K")
    beats = _beats(problem, modes)
    found = []
    for r in range(min(len(on), problem.d) + 1):
        for S in itertools.combinations(on, r):
            taken = np.isin(np.arange(len(modes.sigma)), S)
            left = [i for i in on if i not in S]
            index = (problem.d - r) * len(left) + int(np.sum(beats[np.ix_(left, S)]))
            nullity = r * (r - 1) // 2 + r * (problem.d - r)
            found.append(CriticalPoint(S, r, _value(problem, modes, taken), index, nullity))
    return tuple(sorted(found, key=lambda x: x.value))
