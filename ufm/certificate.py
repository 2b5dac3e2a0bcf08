"""A lower bound on the global minimum from any point, by duality, up to rounding.

Decay on both factors amounts to a nuclear norm, so f is bounded below by a convex problem,

    f(W, H, b) ≥ min_{Z, b} g(Z + b1ᵀ) + μ‖Z‖_* + (λ_b/2)‖b‖²,    μ = √(λ_W λ_H),

g the mean cross-entropy. Every A with columns (p_i − y_i)/N, p_i a distribution, and ‖A‖₂ ≤ μ is
feasible for its Fenchel dual; the gradient G of the data term, scaled by α = min(1, μ/‖G‖₂), is
one. With p_i^α = (1−α) y_i + α p_i this gives

    f* ≥ mean entropy of the p_i^α − α²‖G1‖²/(2λ_b)

for every width d and any class counts, tight at the global minimum wherever the convex problem
has a solution of rank ≤ d (Zhu et al. 2021, proof of theorem 3.2, use the same convex problem).
For λ_b = 0 the dual asks for A1 = 0, and G is moved there first; without a bias the last term is
absent.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ufm import blocks, losses
from ufm.problem import (
    Params,
    Problem,
    check_finite,
    check_params,
    gradient,
    logits,
    matmul,
    norm,
    objective,
)


class Certificate(NamedTuple):
    """What duality says of a point, in floating-point arithmetic: true up to rounding.

    value: f at the point, in nats.
    lower_bound: no point of this problem has a smaller objective.
    gap: value − lower_bound ≥ value − f* ≥ 0: the point is suboptimal by at most this much.
    grad_norm: ‖∇f‖.
    spectral_ratio: ‖G‖₂/μ; a critical point is a global minimum iff it is at most 1 (infinite
        where μ = 0 and G ≠ 0). For λ_b = 0 of the G whose mean column is removed, which at a
        critical point is G itself.
    resolution: an estimate of the rounding errors in gap, not a bound by interval arithmetic; a
        gap below it cannot be told from 0.
    """

    value: Float[Array, ""] | float
    lower_bound: Float[Array, ""] | float
    gap: Float[Array, ""] | float
    grad_norm: Float[Array, ""] | float
    spectral_ratio: Float[Array, ""] | float
    resolution: Float[Array, ""] | float


def _root(gram: Float[Array, "m m"]) -> Scalar:
    """‖A‖₂, the largest singular value of A, from the Gram matrix A Aᵀ or Aᵀ A."""
    return jnp.sqrt(jnp.maximum(jnp.linalg.eigvalsh(gram)[-1], 0))


def _centring(problem: Problem, residual, H) -> tuple[Array, Scalar]:
    """(mean column m, mixing weight s) that bring the dual variables to zero row sums, λ_b = 0.

    The mean column of R = P − Y is subtracted; where that makes a probability negative, all p_i
    are mixed with the class frequencies π, whose residual π − y_i has zero row sums too, just
    enough to end at 0.
    """
    labels, K = problem.labels, problem.K
    mean = blocks.total(lambda *part: jnp.sum(residual(*part), axis=1), H, labels, K) / problem.N
    pi = jnp.asarray(problem.counts / problem.N, H.dtype)[:, None]

    def lowest(H, labels):
        Y = jnp.arange(K)[:, None] == labels[None, :]
        centred = residual(H, labels) - mean[:, None]
        return jnp.minimum(
            jnp.min(jnp.where(Y, jnp.inf, centred) / pi),
            jnp.min(jnp.where(Y, 1 + centred, jnp.inf) / pi),
        )

    return mean, jnp.maximum(-blocks.total(lowest, H, labels, K, jnp.minimum), 0)


def _dual(problem: Problem, params: Params):
    """Columns of the dual variables N A = P' − Y of a block of samples; P' = P where λ_b > 0."""

    def residual(H, labels):
        return losses.residual(logits(problem, params._replace(H=H)), labels)

    if not problem.bias:
        return residual
    H, dtype = params.H, params.H.dtype
    pi = jnp.asarray(problem.counts / problem.N, dtype)[:, None]
    mean, shortfall = jax.lax.cond(
        jnp.asarray(problem.lam_b, dtype) > 0,
        lambda: (jnp.zeros(problem.K, dtype), jnp.zeros((), dtype)),
        lambda: _centring(problem, residual, H),
    )

    def centred(H, labels):
        Y = jnp.arange(problem.K)[:, None] == labels[None, :]
        R = residual(H, labels) - mean[:, None]
        mixed = (R + shortfall * (pi - Y)) / (1 + shortfall)
        # Exactly feasible but for rounding, which must not leave a probability of -1e-17.
        return jnp.maximum(mixed, jnp.where(Y, -1, 0))

    return centred


def lower_bound(problem: Problem, params: Params) -> tuple[Scalar, Scalar]:
    """The dual bound of the module's head from a point's G = (P − Y)/N, and ‖G‖₂. Traceable.

    Returns:
        (bound, ‖G‖₂); for λ_b = 0 the norm is that of the centred G.
    """
    K, N, H, labels = problem.K, problem.N, params.H, problem.labels
    dual = _dual(problem, params)

    def moments(H, labels):
        A = dual(H, labels) / N
        return (matmul(A, A.T) if K <= N else matmul(A.T, A)), jnp.sum(A, axis=1)

    # Beyond N classes the Gram matrix of the samples is the smaller one, and they stay together.
    gram, sums = blocks.total(moments, H, labels, K) if K <= N else moments(H, labels)
    sigma, mu = _root(gram), jnp.asarray(problem.mu, H.dtype)
    penalty = jnp.zeros((), H.dtype)
    if problem.bias:
        lam_b = jnp.asarray(problem.lam_b, H.dtype)
        squares = jnp.sum(jnp.square(sums))
        penalty = jnp.where(lam_b > 0, squares / (2 * jnp.where(lam_b > 0, lam_b, 1)), 0)
    alpha = jnp.where(sigma > mu, mu / jnp.where(sigma > 0, sigma, 1), 1)

    def entropy(H, labels):
        return -jnp.sum(losses.conjugate(alpha * dual(H, labels), labels))

    return blocks.total(entropy, H, labels, K) / N - alpha**2 * penalty, sigma


def _certificate(problem: Problem, params: Params) -> Certificate:
    value = objective(problem, params)
    bound, sigma = lower_bound(problem, params)
    grad_norm = norm(gradient(problem, params))
    mu = jnp.asarray(problem.mu, sigma.dtype)
    ratio = jnp.where(mu > 0, sigma / jnp.where(mu > 0, mu, 1), jnp.where(sigma > 0, jnp.inf, 0))
    resolution = 16 * jnp.finfo(value.dtype).eps * (jnp.abs(value) + jnp.abs(bound))
    return Certificate(value, bound, value - bound, grad_norm, ratio, resolution)


_certificate_compiled = jax.jit(_certificate)


def certify(problem: Problem, params: Params) -> Certificate:
    """Bound the suboptimality of any point, for any class counts, any d, with or without bias.

    Computed in float64 whatever the precision of params and of JAX's configuration, and returned
    as Python floats. Under jit or vmap the precision is that of params, and fields are arrays.

    Args:
        problem: any problem; with λ_W λ_H = 0 the bound is the trivial 0.
        params: any point of it.

    Returns:
        A `Certificate`; gap ≥ f − f* ≥ 0 up to `resolution`.

    Raises:
        Refused: wrong shapes, or entries that are not finite;
            arrays that are not real floating, or mixed dtypes.
    """
    check_params(problem, params)
    if any(isinstance(x, jax.core.Tracer) for x in jax.tree.leaves((problem, params))):
        return _certificate(problem, params)
    check_finite(params)
    with jax.enable_x64(True):
        params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        return Certificate(*map(float, _certificate_compiled(problem, params)))
