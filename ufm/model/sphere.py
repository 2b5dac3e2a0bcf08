"""Rows of W and features on the unit sphere: points, gradients, frames of tangents, multipliers.

    f(W, H) = Σ_i w_i ℓ(W h_i, y_i),   ‖w_k‖ = ‖h_i‖ = 1,

without decay and bias (Yaras et al. 2022, arXiv 2209.09211); a temperature 1/τ belongs to the loss,
`LogitAdjusted(scale=τ)`. Tangents at x, a row of W or a column of H, are orthogonal to x. The
Riemannian gradient is ∇_x f − ⟨∇_x f, x⟩x, and −⟨∇_x f, x⟩ is the multiplier of ‖x‖ = 1. With the
multipliers u of the rows and v of the columns the second derivative of f along great circles with
the velocities ξ is

    ⟨ξ, ∇²f ξ⟩ + Σ_k u_k‖ξ_k‖² + Σ_i v_i‖ξ_i‖².

Since the loss decreases exponentially in τ, residuals and gaps are measured relative to f.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ufm.linalg.products import matmul
from ufm.model import quotient
from ufm.model.problem import Params, Problem

_UNIT = 1e-8  # how far from 1 a norm may be in float64; in float32 64 units of rounding


def project(params: Params) -> Params:
    """(W, H, b) with every row of W and column of H divided by its norm; NaN for zero vectors."""
    W, H, b = params
    xp = np if isinstance(W, np.ndarray) else jnp
    rows = xp.sqrt(xp.sum(xp.square(W), axis=-1, keepdims=True))
    columns = xp.sqrt(xp.sum(xp.square(H), axis=-2, keepdims=True))
    return Params(W / rows, H / columns, b)


def tangent(params: Params, arrow: Params) -> Params:
    """The tangential part of a direction: ξ − ⟨ξ, x⟩x at every vector x of params."""
    W, H, _ = params
    radial_W = jnp.sum(arrow.W * W, axis=-1, keepdims=True)
    radial_H = jnp.sum(arrow.H * H, axis=-2, keepdims=True)
    return arrow._replace(W=arrow.W - radial_W * W, H=arrow.H - radial_H * H)


def wrong(params: Params) -> str | None:
    """Which vectors of concrete arrays do not have norm 1, in words, or None."""
    found = []
    for name, x, axis, what in (("W", params.W, -1, "rows"), ("H", params.H, -2, "columns")):
        norms = np.linalg.norm(np.asarray(x, np.float64), axis=axis)
        short = np.dtype(x.dtype).itemsize < 8
        allowed = 64 * float(jnp.finfo(x.dtype).eps) if short else _UNIT
        far = ~(np.abs(norms - 1) <= allowed)
        if far.any():
            worst = norms[far][np.argmax(np.abs(norms[far] - 1))]
            zero = " (a zero vector has no direction)" if np.any(~(norms[far] > 0)) else ""
            found.append(f"{int(far.sum())} {what} of {name} off norm 1, one of {worst:.6g}{zero}")
    return " and ".join(found) or None


def merged(problem: Problem) -> Problem:
    """The problem with one feature for each class, which has the same minimum.

    For a given W all samples of a class can take the best feature among theirs.
    """
    if problem.balanced:
        return dataclasses.replace(problem, n=1)
    return dataclasses.replace(problem, n=1, weights=quotient.weights_of_means(problem))


def multipliers(W: Any, H: Any, A: Any) -> tuple[Any, Any]:
    """(u, v) for the data gradient A: u_k = −⟨w_k, (AHᵀ)_k⟩ and v_i = −⟨h_i, Wᵀa_i⟩. Traceable."""
    xp = np if isinstance(W, np.ndarray) else jnp
    parts = A * (W @ H if xp is np else matmul(W, H))
    return -xp.sum(parts, axis=1), -xp.sum(parts, axis=0)


def penalty(W: Array, H: Array, A: Float[Array, "K N"]) -> tuple[Scalar, Scalar]:
    """½(Σu + Σv) + ½(K+N) max(0, −λ_min(M)), M = [[diag u, A], [Aᵀ, diag v]], and its rounding.

    ⟨A, WH⟩ ≥ −(this number) for all unit vectors, and for any u, v, since X = [W; Hᵀ] has K + N
    unit rows: ⟨A, WH⟩ = ½ tr XᵀMX − ½(Σu + Σv). Traceable.

    Args:
        W, H: the point whose multipliers are u and v; the bound is tight where M X = 0.
        A: dual variables, (K, N).
    """
    u, v = multipliers(W, H, A)
    M = jnp.block([[jnp.diag(u), A], [A.T, jnp.diag(v)]])
    largest = jnp.max(jnp.abs(M))
    unit = jnp.where((largest > 0) & jnp.isfinite(largest), largest, 1)
    least = unit * jnp.linalg.eigvalsh(M / unit)[0]
    total = jnp.sum(u) + jnp.sum(v)
    size = len(u) + len(v)
    eps = jnp.finfo(A.dtype).eps
    norm = unit * jnp.sqrt(jnp.sum(jnp.square(M / unit)))
    rounding = 4 * eps * (jnp.sum(jnp.abs(u)) + jnp.sum(jnp.abs(v)) + size * norm)
    return total / 2 + size / 2 * jnp.maximum(0, -least), rounding


def frames(X: Float[Array, "m d"]) -> Float[Array, "m d-1 d"]:
    """Orthonormal tangents at each of m unit vectors x: a reflection of e_1 to ±x, without ±x.

    Traceable.
    """
    sign = jnp.where(X[:, :1] < 0, -1.0, 1.0).astype(X.dtype)
    v = X.at[:, :1].add(sign)
    scaled = 2 * v[:, :, None] / jnp.sum(v * v, axis=1)[:, None, None]
    reflected = jnp.eye(X.shape[1], dtype=X.dtype) - scaled * v[:, None, :]
    return reflected[:, 1:, :]


def in_frames(W: Array, H: Array, rows: Array, columns: Array) -> Array:
    """The (K+N)(d−1) coordinates of a tangent or gradient in the frames of rows and columns."""
    first = jnp.einsum("kad,kd->ka", rows, W, precision=jax.lax.Precision.HIGHEST)
    second = jnp.einsum("iad,di->ia", columns, H, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([first.ravel(), second.ravel()])


def out_of_frames(problem: Problem, x: Array, rows: Array, columns: Array) -> Params:
    """The tangent with the coordinates x of `in_frames`."""
    K, d, N = problem.K, problem.d, problem.N
    first, second = x[: K * (d - 1)].reshape(K, d - 1), x[K * (d - 1) :].reshape(N, d - 1)
    W = jnp.einsum("kad,ka->kd", rows, first, precision=jax.lax.Precision.HIGHEST)
    H = jnp.einsum("iad,ia->di", columns, second, precision=jax.lax.Precision.HIGHEST)
    return Params(W, H, jnp.zeros(K, x.dtype))


def unit(value: Any) -> Any:
    """The unit of residuals and gaps: f, or NaN where f is close to underflow."""
    info = jnp.finfo(value.dtype)
    return jnp.where(value < float(info.tiny) / float(info.eps), jnp.nan, value)
