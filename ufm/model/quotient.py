"""The same landscape in fewer variables: class means for samples, the row space for R^d.

* **Class means.** For a convex loss f is convex in every feature h_i, so replacing the features of
  a class by their mean never raises f (Jensen), and at a critical point with λ_H > 0 they are equal
  already. On equal features f is exactly the f of G columns, G = K classes, that of class k with
  the weight c_k n_k/N in the loss and ω_k n_k in the decay: of

      Problem(K, d, 1, λ_W, λ_H, λ_b, weights=c_k n_k G/N, decay_weights=ω_k n_k),

  and for balanced classes of Problem(K, d, 1, λ_W, n λ_H, λ_b), weights as they are.

* **Row space.** (W Qᵀ, Q H) has the value of (W, H) for every Q with orthonormal columns, and the
  gradient stays in the span of the rows of W and the columns of H: at most K + G dimensions of
  R^d, at a critical point at most K, and with 1ᵀW = 0 at most K − 1.

So a critical point of any n and d is one of n = 1 and d ≤ K (with 1ᵀW = 0, d ≤ K − 1), lifted.
Everything is traceable.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.check import traced
from ufm.linalg.products import matmul
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks


class Restricted(NamedTuple):
    """A point in fewer variables. problem: theirs. params: of it. frame: (d, width), QᵀQ = I."""

    problem: Problem
    params: Params
    frame: Float[Array, "d width"]


def of_width(problem: Problem, width: int) -> Problem:
    """The problem of the class means in `width` dimensions: one column a class."""
    if problem.balanced:
        return dataclasses.replace(problem, d=width, n=1, lam_H=problem.n * problem.lam_H)
    share = np.asarray(problem.counts, np.float64)

    def merged(weights, unit):
        if weights is None:
            return share * unit
        return share * unit * (weights if traced(weights) else np.asarray(weights))

    c, omega = problem.weights, problem.decay_weights
    return dataclasses.replace(
        problem, d=width, n=1, weights=merged(c, problem.groups / problem.N),
        decay_weights=merged(omega, 1.0),
    )  # fmt: skip


def class_means(problem: Problem, H: Float[Array, "d N"]) -> Float[Array, "d K"]:
    """Mean feature of every class, one column each."""
    if problem.balanced:
        return jnp.mean(H.reshape(H.shape[0], problem.groups, -1), axis=2)
    sums = jax.ops.segment_sum(
        H.T, jnp.asarray(problem.labels), problem.groups, indices_are_sorted=True
    )
    return (sums / jnp.asarray(problem.counts, H.dtype)[:, None]).T


def means_of(problem: Problem, f: Callable, H: Float[Array, "d N"]) -> Array:
    """`class_means` of columns that f makes of blocks of H, (H_B, labels) ↦ (K, m)."""

    def sums(part, labels):
        rows = f(part, labels).T
        return jax.ops.segment_sum(rows, jnp.asarray(labels), problem.groups).T

    return blocks.total(sums, H, problem.labels, problem.K) / jnp.asarray(problem.counts, H.dtype)


def restrict(problem: Problem, params: Params) -> Restricted:
    """Class means in min(d, K + G) dimensions that contain them and the rows of W.

    f does not rise if the loss is convex.
    """
    means = class_means(problem, params.H)
    width = min(problem.d, problem.K + problem.groups)
    frame = jnp.eye(problem.d, dtype=params.W.dtype)
    if width < problem.d:
        frame, _ = jnp.linalg.qr(jnp.concatenate([params.W.T, means], axis=1))
    small = Params(matmul(params.W, frame), matmul(frame.T, means), params.b)
    return Restricted(of_width(problem, width), small, frame)


def lift(problem: Problem, params: Params, frame: Float[Array, "d width"]) -> Params:
    """(W Qᵀ, Q H, b) with every sample at the mean of its class: the inverse of `restrict`.

    Args:
        problem: the large problem.
        params: of `of_width(problem, width)`.
        frame: Q (d, width) with orthonormal columns.
    """
    H = matmul(frame, params.H)
    H = H if problem.groups == problem.N else H[:, problem.labels]
    return Params(matmul(params.W, frame.T), H, params.b)
