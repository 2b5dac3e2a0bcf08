"""Bounds on residuals, weights and rounding at a point, for scaling and for error estimates."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ufm.losses import BinaryCrossEntropy, CrossEntropy
from ufm.model.objective import logits, mean_weighed, weighed
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


def largest_weight(problem: Problem, dtype) -> Array | float:
    """A bound ≥ 1 on c_k and c_k/√ω_k, the factors of the entries of G and GΩ^-½."""
    largest: Array | float = 1.0
    if problem.weights is not None:
        largest = jnp.maximum(largest, jnp.max(jnp.asarray(problem.weights, dtype)))
    if problem.decay_weights is not None:
        omega = jnp.min(jnp.asarray(problem.decay_weights, dtype))
        largest = largest / jnp.sqrt(jnp.minimum(omega, 1))
    return largest


def longest_residual(problem: Problem, dual: Callable, columns: Array) -> Array | float:
    """A bound ≥ 1 on the entries of the r_i: 1 for differences of distributions, else computed.

    Args:
        problem: gives loss, targets and labels.
        dual: (H_B, labels) ↦ the r_i of a block of columns.
        columns: the argument H of `dual`, (d, N).
    """
    loss, targets = problem.loss, problem.targets
    if isinstance(loss, CrossEntropy | BinaryCrossEntropy) and targets is None:
        return 1.0

    def longest(part, labels):
        return problem.K * jnp.max(jnp.abs(dual(part, labels)))

    found = blocks.total(longest, columns, problem.labels, problem.K, jnp.maximum)
    return jnp.maximum(found, 1)


def gradient_rounding(problem: Problem, params: Params, R: Array) -> Array:
    """A bound on the errors of G = [w_i r_i] by the rounding of the logits and of R, (K, N).

    The logits are known to δ = ε/2 max(|W||H| + |b|); longer sums have errors that mostly cancel.

    Args:
        problem, params: any point.
        R: [r_i], its residuals.
    """
    largest = Params(*(jnp.abs(x) for x in params))
    delta = jnp.finfo(params.H.dtype).eps / 2 * jnp.max(logits(problem, largest))
    targets = problem.target(problem.labels)
    found = problem.loss.residual_rounding(R, logits(problem, params), targets, delta)
    return weighed(problem, found, problem.labels)


def value_rounding(problem: Problem, params: Params) -> Scalar | float:
    """A bound on the change of the data term by the rounding of the logits; 0 without `moved`.

    A logit, a sum of d products and a bias, has a rounding of δ = (2 + √d) ε (|W||h| + |b|).
    """
    if not problem.loss.dual:
        return 0.0
    unit = (2 + problem.d**0.5) * jnp.finfo(params.H.dtype).eps
    largest = params._replace(W=jnp.abs(params.W), b=jnp.abs(params.b))

    def moved(H, labels):
        delta = unit * jnp.max(logits(problem, largest._replace(H=jnp.abs(H))), axis=0)
        Z = logits(problem, params._replace(H=H))
        return problem.loss.moved(Z, problem.target(labels), delta)

    return mean_weighed(problem, moved, params.H)
