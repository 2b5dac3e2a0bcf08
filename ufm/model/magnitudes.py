"""How large the numbers of a point may be: bounds that keep squares and rounding within range."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ufm.losses import BinaryCrossEntropy, CrossEntropy
from ufm.model.objective import logits, mean_weighed
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


def largest_weight(problem: Problem, dtype) -> Array | float:
    """A bound ≥ 1 on c_k/√ω_k and c_k, by which weights may enlarge the entries of G."""
    largest: Array | float = 1.0
    if problem.weights is not None:
        largest = jnp.maximum(largest, jnp.max(jnp.asarray(problem.weights, dtype)))
    if problem.decay_weights is not None:
        omega = jnp.min(jnp.asarray(problem.decay_weights, dtype))
        largest = largest / jnp.sqrt(jnp.minimum(omega, 1))
    return largest


def longest_residual(problem: Problem, dual: Callable, columns: Array) -> Array | float:
    """A bound ≥ 1 on ‖r_i‖: 1 serves for differences of distributions, others are computed.

    Args:
        problem: gives loss, targets and labels.
        dual: (H_B, labels) ↦ the r_i of a block of columns.
        columns: what `dual` makes them of.
    """
    loss, targets = problem.loss, problem.targets
    if isinstance(loss, CrossEntropy | BinaryCrossEntropy) and targets is None:
        return 1.0

    def longest(part, labels):
        return problem.K * jnp.max(jnp.abs(dual(part, labels)))

    found = blocks.total(longest, columns, problem.labels, problem.K, jnp.maximum)
    return jnp.maximum(found, 1)


def value_rounding(problem: Problem, params: Params) -> Scalar | float:
    """The change of the data term by the rounding of the logits.

    A logit is a sum of d products and a bias: it is known to δ = (2 + √d) ε (|W||h| + |b|).
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
