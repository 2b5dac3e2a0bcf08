"""L-BFGS in its compact form: two passes over the memory a step, and sums that devices can share.

From the last m pairs s = x⁺ − x, y = ∇f⁺ − ∇f as columns of S and Y, with R the upper triangle of
SᵀY, D its diagonal and γ = sᵀy/yᵀy of the newest pair, the direction is −p with

    p = γ g + S a − γ Y w,    w = R⁻¹ Sᵀg,    a = R⁻ᵀ ((D + γ YᵀY) w − γ Yᵀg)

(Byrd, Nocedal and Schnabel 1994, Mathematical Programming 63, Theorem 2.2 with H_0 = γ I). It
equals the result of the two-loop recursion, whose 2m inner products depend on one another. On a
mesh of CPUs a loop of sums over devices can deadlock: XLA runs it beside other such sums, and each
waits for threads that the other holds.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array

from ufm.descent import linesearch
from ufm.runtime import blocks

MEMORY = 10
SMALL = 2**16  # entries of a point up to which its arrays are joined
HIGHEST = jax.lax.Precision.HIGHEST


class Memory(NamedTuple):
    """What the next direction is made of.

    steps: how many so far.  point, slope: x and ∇f of the step before.  S, Y: the pairs, one behind
    each index of the leading axis; slots not filled yet, and pairs without positive curvature, are
    zero.  SY, YY: the upper triangles of SᵀY and YᵀY, the oldest pair
    first.  gamma: γ.
    """

    steps: Array
    point: Any
    slope: Any
    S: Any
    Y: Any
    SY: Array
    YY: Array
    gamma: Array


class Known(NamedTuple):
    """f and ∇f at the point, which the line search has evaluated."""

    value: Array
    grad: Any


def lbfgs() -> optax.GradientTransformationExtraArgs:
    """L-BFGS with a line search for the strong Wolfe conditions on W, H, b, as an optax method.

    `update` needs evaluate: x to (f, ∇f). Its state is (`Memory`, `Known`), and `Known` must hold
    f and ∇f at the start.
    """
    towards = direction(MEMORY)

    def init(params):
        unknown = jnp.full((), jnp.nan, params.W.dtype)
        return towards.init(_flat(params)), Known(unknown, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, *, evaluate):
        memory, known = state
        p, memory = towards.update(_flat(updates), memory, _flat(params))
        p = _parted(p, params)
        t, *found = linesearch.search(evaluate, params, p, known.value, updates)
        return jax.tree.map(lambda p: t * p, p), (memory, Known(*found))

    return optax.GradientTransformationExtraArgs(init, update)


def _split(params: Any) -> bool:
    """Whether H lies on several devices."""
    return blocks.devices(params.H) > 1


def _in_one(params: Any) -> bool:
    """Whether all entries go into one vector: a third less to compile, and copies for large H."""
    return not _split(params) and sum(x.size for x in params) <= SMALL


def _flat(params: Any) -> Any:
    """One vector where it is small, else one an array, as XLA keeps the memory in place."""
    if _split(params):
        return params
    parts = jax.tree.map(jnp.ravel, params)
    return jnp.concatenate(parts) if _in_one(params) else parts


def _parted(flat: Any, like: Any) -> Any:
    """The arrays that `_flat` took."""
    if _in_one(like):
        flat = type(like)(*jnp.split(flat, np.cumsum([x.size for x in like])[:-1]))
    return jax.tree.map(lambda x, y: x.reshape(y.shape), flat, like)


def direction(size: int) -> optax.GradientTransformation:
    """−p of the module's head from the last `size` pairs, for any tree of arrays.

    The first step is along −∇f, min(1, 1/‖∇f‖) of it. A pair with sᵀy ≤ ε yᵀy is left out.
    """

    def init(params):
        # Made of the point, so that on a mesh they are split as it is.
        nothing = jax.tree.map(lambda x: 0 * x, params)
        none = jax.tree.map(lambda x: jnp.stack([x] * size), nothing)
        dtype = jnp.result_type(*jax.tree.leaves(params))
        square = jnp.zeros((size, size), dtype)
        one = jnp.ones((), dtype)
        return Memory(jnp.int32(0), params, nothing, none, none, square, square, one)

    def update(g, memory, params):
        steps, point, slope, S, Y, SY, YY, gamma = memory
        s, y = optax.tree.sub(params, point), optax.tree.sub(g, slope)
        sy, yy = _dot(s, y), _dot(y, y)
        sound = (steps > 0) & (sy > jnp.finfo(sy.dtype).eps * yy)
        first = jnp.minimum(1, 1 / jnp.sqrt(_dot(g, g)))
        gamma = jnp.where(sound, sy / yy, jnp.where(steps > 0, gamma, first))
        at = (steps - 1) % size  # the place of the oldest pair becomes that of the newest
        s, y = jax.tree.map(lambda x: jnp.where(sound, x, 0), (s, y))
        S, Y = jax.tree.map(lambda pairs, x: pairs.at[at].set(x), (S, Y), (s, y))
        turn = (at + 1 + jnp.arange(size)) % size  # the oldest first
        Sy, Yy, Sg, Yg = jnp.stack([_dot(S, y), _dot(Y, y), _dot(S, g), _dot(Y, g)])[:, turn]
        SY, YY = _followed(SY, Sy), _followed(YY, Yy)
        back = (jnp.arange(size) - at - 1) % size
        a, w = jnp.stack(_coefficients(SY, YY, gamma, Sg, Yg))[:, back]
        p = jax.tree.map(lambda g, S, Y: gamma * (_sum(w, Y) - g) - _sum(a, S), g, S, Y)
        return p, Memory(steps + 1, params, g, S, Y, SY, YY, gamma)

    return optax.GradientTransformation(init, update)


def _coefficients(SY, YY, gamma, Sg, Yg) -> tuple[Array, Array]:
    """(a, w) of the module's head, the oldest pair first."""
    R, D = jnp.triu(SY), jnp.diagonal(SY)
    R = R + jnp.diag((D == 0).astype(R.dtype))  # a pair left out is a zero row and column
    YY = jnp.triu(YY) + jnp.triu(YY, 1).T
    solve = partial(jax.lax.linalg.triangular_solve, R, left_side=True)
    w = solve(Sg[:, None])
    pulled = gamma * (jnp.matmul(YY, w, precision=HIGHEST) - Yg[:, None])
    return solve(D[:, None] * w + pulled, transpose_a=True)[:, 0], w[:, 0]


def _followed(square: Array, last: Array) -> Array:
    """A matrix of products without the oldest pair, and with those of the newest as last column."""
    newest = jnp.arange(len(square)) == len(square) - 1
    older = jnp.pad(square[1:, 1:], ((0, 1), (0, 1)))
    return jnp.where(newest, last[:, None], older)


def _dot(pairs: Any, x: Any) -> Array:
    """⟨x', x⟩ for every x' behind the leading axis of pairs; ⟨pairs, x⟩ where there is none."""
    parts = jax.tree.map(lambda p, v: jnp.tensordot(p, v, v.ndim, precision=HIGHEST), pairs, x)
    return jax.tree.reduce(jnp.add, parts)


def _sum(coefficients: Array, pairs: Array) -> Array:
    """Σ_i c_i x_i over the leading axis."""
    return jnp.tensordot(coefficients, pairs, 1, precision=HIGHEST)
