"""Dual variables from the residuals of a point, with zero row sums where the dual requires them.

A dual variable of sample i is an r_i in the domain of ℓ*_i, and the residuals ∇ℓ_i are in it. For
λ_b = 0 the dual of the problem requires Σ_i w_i r_i = 0, which holds only where ∇_b f = 0:
`feasible` maps the residuals of any point to dual variables with these sums. Used by
`ufm.certificate`; traceable.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ufm.model.objective import weighed
from ufm.model.problem import Problem
from ufm.runtime import blocks


def centring(problem: Problem, residual: Callable, columns: Array) -> tuple[Array, Scalar]:
    """(mean column m, mixing weight s) that bring the dual variables to zero row sums.

    The weighted mean of R is subtracted; where the result is outside the domain of ℓ*, all r_i are
    mixed with t̄ − t_i, whose row sums are zero too (t̄ is the weighted mean of the targets). s is
    the least weight that reaches the domain.
    """
    K, loss = problem.K, problem.loss

    def summed(part, labels):
        return jnp.sum(weighed(problem, residual(part, labels), labels), axis=1)

    mean = blocks.total(summed, columns, problem.labels, K) / mass(problem, columns.dtype)
    pi = mean_target(problem, columns.dtype)

    def shortfall(part, labels):
        return loss.shortfall(residual(part, labels), problem.target(labels), mean, pi)

    return mean, blocks.total(shortfall, columns, problem.labels, K, jnp.maximum)


def mass(problem: Problem, dtype) -> Array | float:
    """Σ_i w_i, the weight of all samples: 1 without weights of classes."""
    if problem.weights is None:
        return 1.0
    return jnp.sum(shares(problem, dtype))


def shares(problem: Problem, dtype) -> Array:
    """c_k n_k/N, the weight of every class, (G,)."""
    share = jnp.asarray(problem.counts / problem.N, dtype)
    return share if problem.weights is None else share * jnp.asarray(problem.weights, dtype)


def mean_target(problem: Problem, dtype) -> Array:
    """t̄, the weighted mean of the targets, (K,): the frequencies of the classes for labels."""
    pi = shares(problem, dtype) / mass(problem, dtype)
    pi = pi if problem.targets is None else jnp.asarray(problem.targets, dtype) @ pi
    # A class whose share is below the rounding of the others would need infinite mixing.
    return jnp.maximum(pi, float(jnp.finfo(dtype).eps) ** 2)


def penalised(problem: Problem, dtype) -> Array:
    """Whether λ_b > ε min(μ, 1), so that the decay of b admits any row sums.

    For smaller λ_b the condition A1 = 0 lowers the bound by no more than rounding, (λ_b/2)‖b*‖²
    with f* ~ μ, and ‖A1‖²/(2λ_b) would be made of rounding.
    """
    mu = jnp.asarray(problem.mu, dtype)
    return jnp.asarray(problem.lam_b, dtype) > jnp.finfo(dtype).eps * jnp.minimum(mu, 1)


def feasible(problem: Problem, columns: Array, residual: Callable):
    """The map (block of columns, labels) ↦ dual variables; `residual` itself if b decays."""
    if not (problem.bias and problem.loss.dual):
        return residual
    dtype, loss = columns.dtype, problem.loss
    mean, shortfall = jax.lax.cond(
        penalised(problem, dtype),
        lambda: (jnp.zeros(problem.K, dtype), jnp.zeros((), dtype)),
        lambda: centring(problem, residual, columns),
    )
    pi = mean_target(problem, dtype)

    def centred(part, labels):
        targets = problem.target(labels)
        return loss.feasible(residual(part, labels), targets, mean, shortfall, pi)

    return centred
