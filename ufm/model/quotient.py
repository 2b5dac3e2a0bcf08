"""The same landscape in fewer variables: class means for samples, the row space for R^d.

* **Class means.** For a convex loss f is convex in every feature h_i, so replacing the features of
  a class by their mean never increases f (Jensen), and at a critical point with λ_H > 0 they are
  equal. For equal features f is the objective of G columns (G = K with labels), where column k has
  the weight c_k n_k/N in the loss and ω_k n_k in the decay, that is, of

      Problem(K, d, 1, λ_W, λ_H, λ_b, weights=c_k n_k G/N, decay_weights=ω_k n_k),

  and for balanced classes of Problem(K, d, 1, λ_W, n λ_H, λ_b) with unchanged weights.

* **Row space.** (W Qᵀ, Q H) has the value of (W, H) for every Q with orthonormal columns, and the
  gradient stays in the span of the rows of W and the columns of H: at most K + G dimensions of
  R^d, at a critical point at most K, and with 1ᵀW = 0 at most K − 1.

So every critical point for any n and d comes, by `lift`, from one with n = 1 and d ≤ K (d ≤ K − 1
if 1ᵀW = 0). Everything is traceable.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.check import traced
from ufm.linalg.products import matmul
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


class Restricted(NamedTuple):
    """A point in fewer variables: a smaller problem, params of it, frame Q (d, width), QᵀQ = I."""

    problem: Problem
    params: Params
    frame: Float[Array, "d width"]


def of_width(problem: Problem, width: int) -> Problem:
    """The problem of the class means in `width` dimensions: one column a class."""
    if problem.balanced:
        return dataclasses.replace(problem, d=width, n=1, lam_H=problem.n * problem.lam_H)
    return dataclasses.replace(
        problem, d=width, n=1, weights=weights_of_means(problem),
        decay_weights=_merged(problem, problem.decay_weights, 1.0),
    )  # fmt: skip


def weights_of_means(problem: Problem) -> Any:
    """c_k n_k G/N, the weights in the loss of one column for each class, (G,)."""
    return _merged(problem, problem.weights, problem.groups / problem.N)


def _merged(problem: Problem, weights: Any, unit: float) -> Any:
    share = np.asarray(problem.counts, np.float64) * unit
    if weights is None:
        return share
    return share * (weights if traced(weights) else np.asarray(weights))


def class_means(problem: Problem, H: Float[Array, "d N"]) -> Float[Array, "d K"]:
    """Mean feature of every class (of every column of targets), one column each."""
    if problem.balanced:
        return jnp.mean(H.reshape(H.shape[0], problem.groups, -1), axis=2)
    sums = jax.ops.segment_sum(
        H.T, jnp.asarray(problem.labels), problem.groups, indices_are_sorted=True
    )
    return (sums / jnp.asarray(problem.counts, H.dtype)[:, None]).T


def means_of(problem: Problem, f: Callable, H: Float[Array, "d N"]) -> Array:
    """Class means of columns computed from blocks of H by f: (H_B, labels) ↦ (r, B); (r, G)."""

    def sums(part, labels):
        rows = f(part, labels).T
        return jax.ops.segment_sum(rows, jnp.asarray(labels), problem.groups).T

    return blocks.total(sums, H, problem.labels, problem.K) / jnp.asarray(problem.counts, H.dtype)


def smaller(problem: Problem) -> Problem:
    """The problem of the class means in min(d, K + G) dimensions."""
    return of_width(problem, _width(problem))


def smallest_size(problem: Problem) -> int:
    """The size of `smaller(problem)`, without making it."""
    width, offsets = _width(problem), problem.K if problem.bias else 0
    classifier = 0 if problem.fixed else problem.K * width
    return classifier + width * problem.groups + offsets


def _width(problem: Problem) -> int:
    return min(problem.d, problem.K + problem.groups)


def restrict(problem: Problem, params: Params) -> Restricted:
    """The class means, in min(d, K + G) dimensions that contain them and the rows of W.

    f does not increase if the loss is convex.
    """
    means = class_means(problem, params.H)
    small = smaller(problem)
    frame = jnp.eye(problem.d, dtype=params.W.dtype)
    if small.d < problem.d:
        frame, _ = jnp.linalg.qr(jnp.concatenate([params.W.T, means], axis=1))
    point = Params(matmul(params.W, frame), matmul(frame.T, means), params.b)
    return Restricted(small, point, frame)


def lift(problem: Problem, params: Params, frame: Float[Array, "d width"]) -> Params:
    """(W Qᵀ, Q H, b) with every sample at its class mean: inverts `restrict` for equal features.

    Args:
        problem: the large problem.
        params: of `of_width(problem, width)`.
        frame: Q (d, width) with orthonormal columns.
    """
    H = matmul(frame, params.H)
    H = H if problem.groups == problem.N else H[:, problem.labels]
    return Params(matmul(params.W, frame.T), H, params.b)
