"""Rows of W and features on the unit sphere: points, slopes, frames of tangents, multipliers.

    f(W, H) = Σ_i w_i ℓ(W h_i, y_i),   ‖w_k‖ = ‖h_i‖ = 1,

without decay and bias (Yaras et al. 2022, arXiv 2209.09211); a temperature 1/τ is that of the loss,
`LogitAdjusted(scale=τ)`. At x, a row of W or a column of H, tangents are orthogonal to x. The slope
there is ∇_x f − ⟨∇_x f, x⟩x, and the number −⟨∇_x f, x⟩ is the multiplier of ‖x‖ = 1: with u of the
rows and v of the columns the second derivative of f along unit-speed great circles is

    ⟨ξ, ∇²f ξ⟩ + Σ_k u_k‖ξ_k‖² + Σ_i v_i‖ξ_i‖².

As the loss falls exponentially in τ, f has no scale of its own: residuals and gaps are compared
with f.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Scalar

from ufm.check import traced
from ufm.linalg.products import matmul
from ufm.model.problem import Params, Problem

_UNIT = 1e-8  # how far from 1 a norm may be in float64; below 64 units of rounding


def project(params: Params) -> Params:
    """(W, H, b) with every row of W and column of H divided by its norm; NaN for zeros."""
    W, H, b = params
    xp = np if isinstance(W, np.ndarray) else jnp
    rows = xp.sqrt(xp.sum(xp.square(W), axis=-1, keepdims=True))
    columns = xp.sqrt(xp.sum(xp.square(H), axis=-2, keepdims=True))
    return Params(W / rows, H / columns, b)


def tangent(params: Params, arrow: Params) -> Params:
    """The tangential part of a direction: ξ − ⟨ξ, x⟩x of every vector x."""
    W, H, _ = params
    radial_W = jnp.sum(arrow.W * W, axis=-1, keepdims=True)
    radial_H = jnp.sum(arrow.H * H, axis=-2, keepdims=True)
    return arrow._replace(W=arrow.W - radial_W * W, H=arrow.H - radial_H * H)


def wrong(params: Params) -> str | None:
    """Which vectors of concrete arrays are not of norm 1, in words, or None."""
    told = []
    for name, x, axis, what in (("W", params.W, -1, "rows"), ("H", params.H, -2, "columns")):
        norms = np.linalg.norm(np.asarray(x, np.float64), axis=axis)
        short = np.dtype(x.dtype).itemsize < 8
        allowed = 64 * float(jnp.finfo(x.dtype).eps) if short else _UNIT
        far = ~(np.abs(norms - 1) <= allowed)
        if far.any():
            worst = norms[far][np.argmax(np.abs(norms[far] - 1))]
            zero = " (a zero vector has no direction)" if np.any(~(norms[far] > 0)) else ""
            told.append(f"{int(far.sum())} {what} of {name} off norm 1, one of {worst:.6g}{zero}")
    return " and ".join(told) or None


def merged(problem: Problem) -> Problem:
    """The problem of one feature a class, of the same minimum.

    For given W all samples of a class can take the best feature among them.
    """
    share = np.asarray(problem.counts, np.float64) * (problem.groups / problem.N)
    c = problem.weights
    if problem.balanced:
        return dataclasses.replace(problem, n=1)
    weights = share if c is None else share * (c if traced(c) else np.asarray(c))
    return dataclasses.replace(problem, n=1, weights=weights)


def multipliers(W: Any, H: Any, A: Any) -> tuple[Any, Any]:
    """(u, v) of the module's head, u_k = −⟨w_k, (AHᵀ)_k⟩ and v_i = −⟨h_i, Wᵀa_i⟩. Traceable."""
    xp = np if isinstance(W, np.ndarray) else jnp
    parts = A * (W @ H if xp is np else matmul(W, H))
    return -xp.sum(parts, axis=1), -xp.sum(parts, axis=0)


def penalty(W: Array, H: Array, A: Float[Array, "K N"]) -> tuple[Scalar, Scalar]:
    """½(Σu + Σv) + ½(K+N) max(0, −λ_min(M)), M = [[diag u, A], [Aᵀ, diag v]], and its rounding.

    ⟨A, WH⟩ is at least the negative of it for any unit vectors and any u, v, since X = [W; Hᵀ] has
    K + N unit rows: ⟨A, WH⟩ = ½ tr XᵀMX − ½(Σu + Σv). Traceable.

    Args:
        W, H: where u and v are the multipliers: the bound is tight where they solve M X = 0.
        A: dual variables, one column a column of H.
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
    """Orthonormal tangents at each of m unit vectors: the other rows of a reflection of e_1 on x.

    Traceable.
    """
    sign = jnp.where(X[:, :1] < 0, -1.0, 1.0).astype(X.dtype)
    v = X.at[:, :1].add(sign)
    scaled = 2 * v[:, :, None] / jnp.sum(v * v, axis=1)[:, None, None]
    reflected = jnp.eye(X.shape[1], dtype=X.dtype) - scaled * v[:, None, :]
    return reflected[:, 1:, :]


def in_frames(W: Array, H: Array, rows: Array, columns: Array) -> Array:
    """A tangent, or gradient, (W, H) in the frames of rows and columns, as one vector."""
    first = jnp.einsum("kad,kd->ka", rows, W, precision=jax.lax.Precision.HIGHEST)
    second = jnp.einsum("iad,di->ia", columns, H, precision=jax.lax.Precision.HIGHEST)
    return jnp.concatenate([first.ravel(), second.ravel()])


def out_of_frames(problem: Problem, x: Array, rows: Array, columns: Array) -> Params:
    """The tangent whose coordinates `in_frames` gives."""
    K, d, N = problem.K, problem.d, problem.N
    first, second = x[: K * (d - 1)].reshape(K, d - 1), x[K * (d - 1) :].reshape(N, d - 1)
    W = jnp.einsum("kad,ka->kd", rows, first, precision=jax.lax.Precision.HIGHEST)
    H = jnp.einsum("iad,ia->di", columns, second, precision=jax.lax.Precision.HIGHEST)
    return Params(W, H, jnp.zeros(K, x.dtype))


def unit(value: Any) -> Any:
    """What residuals and gaps are measured in: f, or NaN where f is too small for its digits."""
    info = jnp.finfo(value.dtype)
    return jnp.where(value < float(info.tiny) / float(info.eps), jnp.nan, value)
