"""Global minimum of cross-entropy for unequal classes: merging, laws within a group, SELI.

Classes of equal count and weights form a group; the landscape is symmetric under the permutations
within groups. With w_k = c_k n_k/N the weight of class k in the loss and ρ_k = ω_k n_k that of its
mean feature in the decay, f* is the minimum over logits Z (K, K) of the class means of the convex

    Σ_k w_k ℓ(z_k + b; k) + μ‖Z diag(√ρ)‖_* + (λ_b/2)‖b‖²,      μ = √(λ_W λ_H),

so some minimiser is invariant too: z_jk = A_hg + t_g δ_jk for classes j, k of the groups h, g. On
the contrasts within a group the singular value is t_g √ρ_g; the other singular values are those of
a matrix with one row and one column for each group: K = 1000 classes in three groups lead to a 3×3
matrix.

**Within a group** of more than one class the optimality of t_g reads

    p_own − p_other = (1 − μ√ρ_g/w_g)₊,

which is 1 − Nμ/√n_g for plain decay and 1 − Nμ/n_g for that of the layer-peeled model, ω_k = 1/n_k:
**the classes of a group merge iff √n_g ≤ Nμ**, or n_g ≤ Nμ (Hong and Ling 2023, arXiv 2309.09725;
Fang et al. 2021, arXiv 2101.12699, minority collapse).

**SELI** (Thrampoulidis et al. 2022, arXiv 2208.05512): without a bias, as λ → 0 the direction of
the logits tends to that of Ẑ = Y − 11ᵀ/K whatever the counts. Ẑ has the largest margin for its
nuclear norm iff the entries of UVᵀ off the labels are negative, Ẑ = UΣVᵀ.

The minimum is found by Newton's method in the few numbers above; the dual bound of that convex
problem, in the same block form, certifies it. The tests compare the laws with certificates.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.check import Refused, normal_decays
from ufm.model import layers
from ufm.model.points import check_memory
from ufm.model.problem import Params, Problem, check_problem
from ufm.runtime import programs
from ufm.theory import geometry, shared

MOST_GROUPS = 16  # Newton's Hessian in the numbers of the module's head is dense
_STEPS = 500
_SHORTER = 0.5 ** np.arange(24)  # fractions of a Newton step that are tried


class Groups(NamedTuple):
    """Groups of equal classes, m of them.

    sizes: (m,), classes in each.  weights: (m,), w of one class.  roots: (m,), √ρ of one class.
    of: (K,), the group of each class.
    """

    sizes: np.ndarray
    weights: np.ndarray
    roots: np.ndarray
    of: np.ndarray


class Least(NamedTuple):
    """The minimum for unequal classes, in m groups of equal ones, ordered by their first classes.

    value: f at the minimiser, in nats.  error: certified bound on value − f* ≥ 0.
    t: (m,), margin over the other classes of the group.  A: (m, m), as in `ufm.theory.groups`.
    beta: (m,), the entries of b.
    own, other: (m,), probability of the own class and of another one of the group (NaN if none).
    nuclear: ‖Z diag(√ρ)‖_*.  rank: of Z.
    """

    value: float
    error: float
    t: np.ndarray
    A: np.ndarray
    beta: np.ndarray
    own: np.ndarray
    other: np.ndarray
    nuclear: float
    rank: int


def fails(problem: Problem) -> str | None:
    """The first assumption that a problem does not meet, or None."""
    failed = shared.free(problem) or shared.cross_entropy(problem) or shared.decays(problem)
    if failed is not None:
        return failed
    count = 1 if problem.uniform else len(groups(problem).sizes)
    if count > MOST_GROUPS:
        return f"at most {MOST_GROUPS} groups of classes of equal count and weights (got {count})"
    return shared.wide(problem)


def groups(problem: Problem) -> Groups:
    """The groups of a problem's classes."""
    w = problem.class_weights * problem.counts
    omega = 1.0 if problem.decay_weights is None else np.asarray(problem.decay_weights, float)
    rows = np.column_stack([w, omega * problem.counts])
    _, first, inverse = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    index = np.argsort(order)[inverse.ravel()]
    chosen = rows[first[order]]
    return Groups(np.bincount(index), chosen[:, 0], np.sqrt(chosen[:, 1]), index)


def separation(problem: Problem) -> np.ndarray:
    """p_own − p_other at the minimum, for a class and another one of its group, (K,).

    (1 − μ√ρ_k/w_k)₊, which is (1 − Nμ/√n_k)₊ for plain decay and (1 − Nμ/n_k)₊ with decay_weights
    1/n_k. A group has equal counts and weights; NaN for a class that is alone in its group. Source:
    Hong and Ling 2023, arXiv 2309.09725; derivation in `ufm.theory.groups`.

    Raises:
        Refused: the assumption that fails: another loss than plain cross-entropy, targets, features
            that are not free, λ_W or λ_H = 0, d < K−1, more than 16 groups; array-valued decays.
    """
    found = _checked(problem, "theory.separation")
    law = np.maximum(1 - float(problem.mu) * found.roots / found.weights, 0)
    return np.where(found.sizes > 1, law, np.nan)[found.of]


def merged(problem: Problem) -> np.ndarray:
    """Which classes coincide with others of equal count and weights at the minimum, (K,) of bool.

    They do iff √n_k ≤ Nμ, or n_k ≤ Nμ with decay_weights 1/n_k (minority collapse: Fang et al.
    2021, arXiv 2101.12699). False for a class that is alone in its group.

    Raises:
        Refused: as `separation`.
    """
    return separation(problem) == 0


def _checked(problem: Problem, name: str) -> Groups:
    """The groups of a problem that meets all assumptions; `name` is the function that asks."""
    check_problem(problem)
    layers.require_free(problem, name)
    normal_decays(problem)
    reason = fails(problem)
    if reason is not None:
        raise Refused(
            f"got a problem outside the block form of the minimum, which needs {reason}; find its "
            "minimum with ufm.solve, and bound it with ufm.certify"
        )
    return groups(problem)


def seli(problem: Problem) -> np.ndarray:
    """Ẑ = I − 11ᵀ/K (K, K): as λ → 0 the logits of the class means tend to its direction.

    Source: Thrampoulidis et al. 2022, arXiv 2208.05512.

    Raises:
        Refused: features that are not free, a fixed classifier, array-valued decays.
    """
    check_problem(problem)
    layers.require_free(problem, "theory.seli")
    return np.eye(problem.K) - 1 / problem.K


def seli_is_optimal(problem: Problem) -> bool:
    """Whether the logits Ẑ of `seli` have the largest margin for their nuclear norm.

    They do iff the entries of UVᵀ off the labels are negative, where Ẑ diag(√ρ) = UΣVᵀ
    (Thrampoulidis et al. 2022, arXiv 2208.05512).

    Raises:
        Refused: as `separation`.
    """
    found = _checked(problem, "theory.seli_is_optimal")
    U, _, Vt = np.linalg.svd(seli(problem) * found.roots[found.of])
    signs = U[:, :-1] @ Vt[:-1]  # the rank is K−1
    return bool(np.all(signs[~np.eye(problem.K, dtype=bool)] < 0))


def least(problem: Problem) -> Least:
    """The global minimum of a problem with scalar decays, with a certified bound on its error.

    Formula and sources: `ufm.theory.groups`.

    Args:
        problem: plain cross-entropy with labels, any counts and weights that form at most 16
            groups, d ≥ K−1, λ_W, λ_H > 0.

    Raises:
        Refused: naming the assumption that fails; array-valued or traced decays.
    """
    found = _checked(problem, "theory.certified_minimum")
    m, mu = len(found.sizes), float(problem.mu)
    # By the law t = 0 where a group has merged; where it has one class, A holds its margin too.
    on = (found.sizes > 1) & (mu * found.roots < found.weights)
    draw = np.random.default_rng(0).standard_normal(2 * m * m) * 0.3
    x = np.concatenate([draw, np.where(on, 1.0, 0.0), np.zeros(m)])
    given = (found.sizes.astype(float), found.weights, found.roots, mu, float(problem.lam_b))
    free = np.concatenate([np.ones(2 * m * m), on, np.full(m, float(problem.bias))])
    with jax.enable_x64(True):
        x = np.asarray(_minimised(x, free, given))
        value = float(_value(x, given))
    return _result(problem, found, x, value)


def _split(x, m: int):
    square = m * m
    U, V = x[:square].reshape(m, m), x[square : 2 * square].reshape(m, m)
    return U, V, x[2 * square : 2 * square + m], x[2 * square + m :]


def _logits(x, given):
    """(A (m, m), t, β, M) of the module's head, M the matrix of the groups in units of √ρ."""
    sizes, _, roots, *_ = given
    m, xp = len(sizes), jnp if isinstance(x, jax.Array) else np
    U, V, t, beta = _split(x, m)
    M = U @ V
    A = (M - xp.diag(t * roots)) / (xp.sqrt(sizes)[:, None] * xp.sqrt(sizes) * roots)
    return A, t, beta, M


def _objective(x: Array, given) -> Array:
    """f of the module's head, the nuclear norm as (‖U‖² + ‖V‖²)/2."""
    sizes, weights, roots, mu, lam_b = given
    A, t, beta, _ = _logits(x, given)
    Z = A + beta[:, None]
    own = jnp.diagonal(Z) + t
    # Σ_j exp(z_j − z_own) over the wrong classes j, by which ℓ = log(1 + wrong).
    counts = jnp.asarray(sizes)[:, None] - jnp.eye(len(sizes))
    wrong = jnp.sum(counts * jnp.exp(Z - own), axis=0)
    m = len(sizes)
    norm = jnp.sum((sizes - 1) * roots * t) + jnp.sum(x[: 2 * m * m] ** 2) / 2
    data = jnp.sum(sizes * weights * jnp.log1p(wrong))
    return data + mu * norm + lam_b / 2 * jnp.sum(sizes * beta**2)


_value = programs.once(_objective, level=1)


@jax.jit
def _minimised(x: Array, free: Array, given) -> Array:
    """Newton's method with |∇²f|: the best fraction of a bounded step; full steps at the end."""

    def slope_and_step(x):
        g = free * jax.grad(_objective)(x, given)
        H = jax.hessian(_objective)(x, given) * free[:, None] * free
        values, vectors = jnp.linalg.eigh(H)
        size = jnp.abs(values)
        inverse = jnp.where(size > 1e-13 * jnp.max(size), 1 / size, 0)
        step = -free * (vectors @ (inverse * (vectors.T @ g)))
        return step * jnp.minimum(1, 10 / jnp.linalg.norm(step)), -g @ step

    def descend(state):
        x, _, count = state
        step, decrement = slope_and_step(x)
        trials = x + jnp.asarray(_SHORTER)[:, None] * step
        values = jax.vmap(lambda y: _objective(y, given))(trials)
        best = jnp.argmin(jnp.where(jnp.isnan(values), jnp.inf, values))
        return trials[best], decrement, count + 1

    def on(state):
        return (state[1] > 1e-22) & (state[2] < _STEPS)

    x, _, _ = jax.lax.while_loop(on, descend, (x, jnp.inf, 0))
    return jax.lax.fori_loop(0, 4, lambda _, y: y + slope_and_step(y)[0], x)


def _result(problem: Problem, found: Groups, x: np.ndarray, value: float) -> Least:
    """The minimum from the numbers x that were found."""
    sizes, weights, roots, _ = found
    given = (sizes.astype(float), weights, roots, float(problem.mu), float(problem.lam_b))
    A, t, beta, M = _logits(x, given)
    Z = A + beta[:, None]
    own = np.diagonal(Z) + t
    E = np.exp(Z - own)  # of one class of each group, relative to the own class
    total = 1 + np.sum((sizes[:, None] - np.eye(len(sizes))) * E, axis=0)
    P = E / total
    modes = np.linalg.svd(M, compute_uv=False)
    bound = _bound(problem, found, P, 1 - 1 / total)
    # The nuclear norm of M itself; (‖U‖² + ‖V‖²)/2 exceeds it by rounding.
    nuclear = float(np.sum((sizes - 1) * roots * t) + modes.sum())
    rank = int(np.sum((sizes - 1)[t > 0]) + np.sum(modes > 1e-9 * max(modes[0], 1e-9)))
    other = np.where(sizes > 1, np.diagonal(P), np.nan)
    return Least(value, max(value - bound, 0.0), t, A, beta, 1 / total, other, nuclear, rank)


def _bound(problem: Problem, found: Groups, P: np.ndarray, miss: np.ndarray) -> float:
    """A lower bound on f* from probabilities P (m, m) of one class a group, miss = 1 − p_own.

    −Σ w ℓ*(αr) − α²‖A1‖²/(2λ_b), as in `ufm.certificate`, its matrices in block form.
    """
    sizes, weights, roots, _ = found
    wrong = P.copy()  # r_j of another class j of the group h, for a class of the group g
    own, others = -miss, sizes[:, None] - np.eye(len(sizes))
    mean = _row_sums(found, wrong, own)
    if problem.bias and float(problem.lam_b) == 0:
        mass = float(np.sum(sizes * weights))
        wrong, own, mean = wrong - mean[:, None] / mass, own - mean / mass, 0 * mean
    root = np.sqrt(sizes.astype(float))
    B = wrong * root[:, None] * root * weights / roots
    np.fill_diagonal(B, weights * (own + (sizes - 1) * np.diagonal(wrong)) / roots)
    contrast = weights * (np.diagonal(wrong) - own) / roots
    norm = max(float(np.linalg.norm(B, 2)), float(np.max(contrast[sizes > 1], initial=0)))
    alpha = min(1.0, float(problem.mu) / norm) if norm > 0 else 1.0
    if np.min(wrong) < 0 or np.max(-own) > 1:
        return 0.0
    p = alpha * wrong
    safe = np.where(p > 0, p, 1)
    entropy = -np.sum(others * p * np.log(safe), axis=0) - (1 + alpha * own) * np.log1p(alpha * own)
    penalty = 0.0
    if problem.bias and float(problem.lam_b) > 0:
        penalty = alpha**2 * float(np.sum(sizes * mean**2)) / (2 * float(problem.lam_b))
    return float(np.sum(sizes * weights * entropy) - penalty)


def _row_sums(found: Groups, wrong: np.ndarray, own: np.ndarray) -> np.ndarray:
    """A1, one entry a group."""
    sizes, weights, _, _ = found
    others = sizes[None, :] - np.eye(len(sizes))
    return (wrong * others) @ weights + weights * own


def norms(problem: Problem) -> tuple[float, float]:
    """(‖W‖, ‖H‖) at the minimum: λ_W‖W‖² = λ_H‖H‖² = μ‖Z diag(√ρ)‖_*.

    Raises:
        Refused: as `least`; decay_weights, with which λ_H‖H‖² is not the decay of H.
    """
    if problem.decay_weights is not None:
        raise Refused(
            f"got decay_weights={problem.decay_weights}; allowed: None, where one norm of H gives "
            "its decay. Take the norms of ufm.theory.global_minimizer"
        )
    root, tilt = least(problem).nuclear ** 0.5, shared.tilt(problem)
    return root * tilt, root / tilt


def is_collapsed(problem: Problem) -> bool:
    """Whether the minimum is W = H = 0.

    Raises:
        Refused: as `least`.
    """
    return least(problem).rank == 0


def global_minimizer(problem: Problem, key: Array | None, dtype=None) -> Params:
    """A global minimiser in a Haar-random orientation, as `ufm.theory.global_minimizer`.

    Raises:
        Refused: as `least`; sizes that do not fit into memory.
    """
    answer, found = least(problem), groups(problem)
    check_memory(problem, 8)
    at, roots = found.of, found.roots[found.of]
    X = (answer.A[np.ix_(at, at)] + np.diag(answer.t[at])) * roots
    U, s, Vt = np.linalg.svd(X)
    r = answer.rank  # beyond it singular values are rounding, whose roots would be 1e-8
    half, tilt = np.sqrt(s[:r]), shared.tilt(problem)
    Q = geometry.numpy_frame(key, problem.d, r)
    W = tilt * (U[:, :r] * half) @ Q.T
    means = Q @ (half[:, None] * Vt[:r]) / roots / tilt
    return shared.point(dtype, W, means[:, problem.labels], answer.beta[at])
