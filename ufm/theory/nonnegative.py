"""Features H ≥ 0: orthogonal class means, classes that decouple, and classes that stay at h = 0.

A class is called *off* where its features are 0, and *on* otherwise. Let w_k = c_k n_k/N be the
weight of class k in the loss, ρ_k = ω_k n_k that of its mean feature in the decay and a =
√((K−1)/K). For cross-entropy, d ≥ K and no bias,

    q_k = μ√ρ_k a/w_k,   1 − p_y = q_k,   t_k = log((K−1)(1−q_k)/q_k),   class k off iff q_k ≥ a²,
    f* = Σ_on w_k[−log(1−q_k) + q_k t_k] + Σ_off w_k log K

(q_k = N√(λ_Wλ_H/n_k) a for plain weights; Dang et al. 2024, arXiv 2401.02058). The features of a
class that is on point along an axis that no other class uses, where the column of W is a multiple
of e_k − 1/K, and t_k = z_y − z_j. Proof: one column z of logits costs at least μ√ρ‖z‖ in decay,
which gives f* ≤ the above; and the residuals there, r_k = −(q_k/a²)(e_k − 1/K), have ⟨r_j, r_k⟩ < 0
for j ≠ k, so the positive part of their Gram matrix is diagonal, with entries μ² or, for classes
that are off, less: the certificate equals f. With a bias and equal classes Σ_k r_k = 0, so the same
point with b = 0 is the minimum.

The squared error has r_k = (t_k − 1)e_k without a bias (a = 1, t_k = 1 − μ√ρ_k/w_k), for which
⟨r_j, r_k⟩ = 0, and (t − 1)(e_k − 1/K) with a free bias and equal classes (t = 1 − μ√ρ/(a w)).

**Classes that stay off.** Let S be a set of classes with q_k < a². Divide all d axes among these
classes, at least one each, and let the other classes have h = 0. Each class is at the minimum of
its own part of f over all W and H with these zeros; and at every zero the multiplier is positive,
⟨e_j − 1/K, r_k⟩ ∝ 1/K > 0 for an axis of class j and another class k. So cross-entropy has a local
minimum of value

    f_S = Σ_S w_k[−log(1−q_k) + q_k t_k] + Σ_others w_k log K

for every S that is not empty and has at most d members, for equal classes too: with m classes that
can be on and d ≥ m there are 2^m − 2 local minima that are not global, up to how axes are shared.
If some axis belongs to no class, the point is no minimum: a class with q_k < a² can turn on along
it.
"""

import dataclasses
import itertools
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float

from ufm.check import Refused, normal_decays
from ufm.losses import CrossEntropy, SquaredError
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem, check_problem
from ufm.theory import shared

MOST = 16  # classes whose sets are listed


class Classes(NamedTuple):
    """Weights and margin of every class at the minimum, each (K,).

    weight: w_k.  decay: ρ_k.  cost: μ√ρ_k a, the decay that a margin of 1 costs.  t: the margin, 0
    for a class that is off.  value: its share of f.  off: its share of f where it is off.
    """

    weight: np.ndarray
    decay: np.ndarray
    cost: np.ndarray
    t: np.ndarray
    value: np.ndarray
    off: np.ndarray


class SwitchedOff(NamedTuple):
    """A local minimum at which some classes have h_k = 0.

    off: these classes; () at the global minimum if none is off there.
    value: f at the point.
    """

    off: tuple[int, ...]
    value: float


def fails(problem: Problem) -> str | None:
    """The first assumption of the closed form that a problem does not meet, or None."""
    if problem.features != "nonnegative":
        return f"features='nonnegative' (got {problem.features!r})"
    if (failed := shared.labels(problem)) is not None:
        return failed
    loss, plain = problem.loss, shared.plain(problem)
    if not plain and not (isinstance(loss, SquaredError) and (loss.own, loss.shift) == (1.0, 1.0)):
        return f"cross-entropy or the squared error, both plain (got {type(loss).__name__})"
    if (failed := shared.decays(problem)) is not None:
        return failed
    if problem.d < problem.K:
        return f"d >= K (got d={problem.d}, K={problem.K})"
    if problem.bias and not problem.uniform:
        return "no bias, or classes alike (got a bias and unequal counts or weights)"
    if problem.bias and not plain and float(problem.lam_b) > 0:
        return f"a bias without decay, or none, for the squared error (got lam_b={problem.lam_b})"
    return None


def off_fails(problem: Problem) -> str | None:
    """The first assumption of `switched_off` that a problem does not meet, or None."""
    if isinstance(problem.loss, SquaredError):
        return "cross-entropy (got the squared error)"
    if problem.bias:
        return "no bias"
    # The local minima need no d ≥ K.
    return fails(dataclasses.replace(problem, d=max(problem.d, problem.K)))


def classes(problem: Problem) -> Classes:
    """Every class at the minimum, by the formulas of the module's head.

    Raises:
        Refused: naming the assumption that fails.
    """
    _check(fails(problem))
    return _classes(problem)


def _check(reason: str | None) -> None:
    if reason is not None:
        raise Refused(
            f"got a problem outside the closed form for features >= 0, which needs {reason}; find "
            "its minima with ufm.solve from many starts, and bound them with ufm.certify"
        )


def _classes(problem: Problem) -> Classes:
    K = problem.K
    w = problem.class_weights * problem.counts
    decay = problem.class_decays / float(problem.lam_H) * problem.counts
    centred = isinstance(problem.loss, CrossEntropy) or problem.bias
    a = ((K - 1) / K) ** 0.5 if centred else 1.0
    cost = float(problem.mu) * np.sqrt(decay) * a
    if isinstance(problem.loss, SquaredError):
        t = np.maximum(1 - cost / (w * a**2), 0)
        value = w * a**2 * (t - 1) ** 2 / 2 + cost * t
        return Classes(w, decay, cost, t, value, w * a**2 / 2)
    q = np.minimum(cost / w, a**2)
    # (K−1)(1−q)/q − 1 = (K−1−Kq)/q, so that t is accurate where it vanishes.
    t = np.log1p(np.maximum(K - 1 - K * q, 0) / q)
    value = np.where(t > 0, w * (q * t - np.log1p(-q)), w * np.log(K))
    return Classes(w, decay, cost, t, value, w * np.log(K))


def global_value(problem: Problem) -> float:
    """f* by the formula of the module's head, in nats.

    Raises:
        Refused: as `classes`.
    """
    return float(np.sum(classes(problem).value))


def is_collapsed(problem: Problem) -> bool:
    """Whether every class is off, so that the minimum is W = H = 0.

    Raises:
        Refused: as `classes`.
    """
    return not np.any(classes(problem).t)


def margins(problem: Problem) -> Float[np.ndarray, " K"]:
    """t_k = z_y − z_j of every class at the minimum for H ≥ 0, (K,); 0 for a class with h_k = 0.

    t_k = log((K−1)(1−q_k)/q_k) for cross-entropy, q_k = N√(λ_Wλ_H/n_k) √((K−1)/K) (Dang et al.
    2024, arXiv 2401.02058); weights and the squared error: `ufm.theory.nonnegative`.

    Raises:
        Refused: features that are not H ≥ 0, and as `ufm.theory.global_value`.
    """
    check_problem(problem)
    normal_decays(problem)
    return classes(problem).t


def margin(problem: Problem) -> float:
    """The common margin of equal classes.

    Raises:
        Refused: as `classes`; classes of unequal margins.
    """
    t = classes(problem).t
    if not problem.uniform:
        raise Refused(
            "got unequal classes, each with a margin of its own; allowed: classes alike, or "
            "ufm.theory.margins(problem)"
        )
    return float(t[0])


def _lengths(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Length of the column of W and of the features of every class."""
    found = classes(problem)
    root = np.sqrt(found.cost / (float(problem.mu) * np.sqrt(found.decay)) * found.t)
    tilt = shared.tilt(problem) * found.decay**0.25
    return root * tilt, root / tilt


def norms(problem: Problem) -> tuple[float, float]:
    """(‖W‖, ‖H‖) at the minimum; λ_W‖W‖² = λ_H Σ_i ω_i‖h_i‖².

    Raises:
        Refused: as `classes`.
    """
    rows, features = _lengths(problem)
    return float(np.linalg.norm(rows)), float(np.sqrt(np.sum(problem.counts * features**2)))


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A global minimiser, with one axis of R^d for each class.

    Args:
        problem: within the closed form.
        key: a JAX PRNG key; it draws which axes. None takes the first K.
        dtype: floating dtype; None takes JAX's default.

    Raises:
        Refused: as `classes`; sizes that do not fit into memory.
    """
    rows, features = _lengths(problem)
    check_memory(problem, 8)
    K, d = problem.K, problem.d
    axes = np.arange(d) if key is None else np.asarray(jax.random.permutation(key, d))
    frame = np.eye(d)[:, axes[:K]]
    squared = isinstance(problem.loss, SquaredError)
    E = np.eye(K) if squared and not problem.bias else (np.eye(K) - 1 / K) / ((K - 1) / K) ** 0.5
    b = np.full(K, 1 / K) if squared and problem.bias else np.zeros(K)
    return shared.point(dtype, (E * rows) @ frame.T, (frame * features)[:, problem.labels], b)


def switched_off(problem: Problem) -> tuple[SwitchedOff, ...]:
    """Local minima of cross-entropy with H ≥ 0 at which classes have h_k = 0, by increasing value.

    There is one for every non-empty set of at most d of the classes that can have h_k ≠ 0; for
    d ≥ K the first one is global. Values and proof: `ufm.theory.nonnegative`.

    Args:
        problem: cross-entropy with H ≥ 0, no bias, any counts and any d.

    Raises:
        Refused: as `margins`; more than 16 such classes.
    """
    check_problem(problem)
    normal_decays(problem)
    _check(off_fails(problem))
    found = _classes(problem)
    able = [int(k) for k in np.flatnonzero(found.t > 0)]
    most = min(len(able), problem.d)
    if len(able) > MOST:
        raise Refused(f"got {len(able)} classes that may be off; allowed: {MOST}. Raise lam")
    sets = [S for r in range(1, most + 1) for S in itertools.combinations(able, r)]
    every = np.arange(problem.K)
    rows = []
    for S in sets or [()]:
        on = np.isin(every, S)
        value = float(np.sum(np.where(on, found.value, found.off)))
        rows.append(SwitchedOff(tuple(int(k) for k in every[~on]), value))
    return tuple(sorted(rows, key=lambda row: row.value))
