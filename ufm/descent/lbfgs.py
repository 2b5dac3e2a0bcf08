"""L-BFGS in its compact form: two passes over the memory a step, and sums that devices can share.

With the last m pairs s = x⁺ − x, y = ∇f⁺ − ∇f as columns of S and Y, R the upper triangle of SᵀY, D
its diagonal and γ = sᵀy/yᵀy of the newest pair, the direction is −p with

    p = γ g + S a − γ Y w,    w = R⁻¹ Sᵀg,    a = R⁻ᵀ ((D + γ YᵀY) w − γ Yᵀg)

(Byrd, Nocedal and Schnabel 1994, Mathematical Programming 63, Theorem 2.2 with H_0 = γ I). One pass
over S and Y gives Sᵀg⁺ and Yᵀg⁺, another p: Sᵀy = Sᵀg⁺ − Sᵀg and Yᵀy follow from the products of
the step before. The two-loop recursion gives the same p, but its 2m inner products depend on one
another, and on a mesh of CPUs a loop of sums over devices can deadlock: XLA runs it concurrently
with other such sums, and each waits for threads that the other holds.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.descent import linesearch
from ufm.descent.linesearch import HIGHEST, inner
from ufm.descent.transformation import Transformation
from ufm.runtime import blocks

SMALL = 2**16  # entries of a point up to which its arrays are joined
# Pairs that are kept; fewer where reading them takes a third of a step: five take about as many
# steps as ten, each 8 to 35 % shorter.
MEMORY, MEMORY_OF_LARGE = 10, 5


class Memory(NamedTuple):
    """The state from which the next direction is computed.

    steps: how many so far.  point, slope: x and ∇f of the last step.
    S, Y: the pairs, along a leading axis; slots that are not filled yet, and pairs without positive
        curvature, are zero.
    SY, YY: the upper triangles of SᵀY and YᵀY, the oldest pair first.  gamma: γ.
    Sg, Yg: Sᵀg and Yᵀg of the last step, the oldest pair first.
    """

    steps: Array
    point: Any
    slope: Any
    S: Any
    Y: Any
    SY: Array
    YY: Array
    gamma: Array
    Sg: Array
    Yg: Array


class Known(NamedTuple):
    """f and ∇f at the present point, evaluated by the line search."""

    value: Array
    grad: Any


def lbfgs() -> Transformation:
    """L-BFGS with a line search for the strong Wolfe conditions, as an optax transformation.

    Its `update` takes the keyword evaluate, x ↦ (f, ∇f). Its state is (`Memory`, `Known`); the
    first one must hold f and ∇f at the start in `Known`.
    """

    def init(params):
        unknown = jnp.full((), jnp.nan, params.W.dtype)
        memory = nothing(_flat(params), pairs(sum(x.size for x in params)))
        return memory, Known(unknown, jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params, *, evaluate):
        memory, known = state
        p, memory = direction(_flat(updates), memory, _flat(params))
        p = _parted(p, params)
        t, *found = linesearch.search(evaluate, params, p, known.value, updates)
        return jax.tree.map(lambda p: t * p, p), (memory, Known(*found))

    return Transformation(init, update)


def _split(params: Any) -> bool:
    """Whether H lies on several devices."""
    return blocks.devices(params.H) > 1


def _in_one(params: Any) -> bool:
    """Whether all entries are joined to one vector: it compiles faster by a third, but copies H."""
    return not _split(params) and sum(x.size for x in params) <= SMALL


def _flat(params: Any) -> Any:
    """The point as one vector if it is small; else one a part, as XLA then updates in place."""
    if _split(params):
        return params
    parts = jax.tree.map(jnp.ravel, params)
    return jnp.concatenate(parts) if _in_one(params) else parts


def _parted(flat: Any, like: Any) -> Any:
    """The arrays that `_flat` took."""
    if _in_one(like):
        flat = type(like)(*jnp.split(flat, np.cumsum([x.size for x in like])[:-1]))
    return jax.tree.map(lambda x, y: x.reshape(y.shape), flat, like)


def pairs(entries: int) -> int:
    """How many pairs are kept of points with so many entries."""
    return MEMORY if entries <= SMALL else MEMORY_OF_LARGE


def nothing(params: Any, size: int) -> Memory:
    """A memory for so many pairs, before the first step, of points that are any tree of arrays."""
    # Computed from the point, so that on a mesh they are split like it.
    zero = jax.tree.map(lambda x: 0 * x, params)
    none = jax.tree.map(lambda x: jnp.stack([x] * size), zero)
    dtype = jnp.result_type(*jax.tree.leaves(params))
    square = jnp.zeros((size, size), dtype)
    one, row = jnp.ones((), dtype), square[0]
    return Memory(jnp.int32(0), params, zero, none, none, square, square, one, row, row)


def direction(g: Any, memory: Memory, params: Any) -> tuple[Any, Memory]:
    """(−p of the module's docstring, the memory after it) from ∇f at a point.

    The first step is −∇f, at most of length 1. A pair with sᵀy ≤ ε yᵀy is left out.
    """
    steps, point, slope, S, Y, SY, YY, gamma, *before = memory
    size = len(SY)
    s, y = (jax.tree.map(jnp.subtract, *pair) for pair in ((params, point), (g, slope)))
    sy, yy = inner(s, y), inner(y, y)
    numbers = jnp.finfo(sy.dtype)
    # Squares below tiny/ε have lost digits, or all of them.
    sound = (steps > 0) & (sy > numbers.eps * yy) & (yy > numbers.tiny / numbers.eps)
    first = jnp.minimum(1, 1 / jnp.sqrt(inner(g, g)))
    gamma = jnp.where(sound, sy / yy, jnp.where(steps > 0, gamma, first))
    at = (steps - 1) % size  # the newest pair replaces the oldest
    s, y = jax.tree.map(lambda x: jnp.where(sound, x, 0), (s, y))
    # `.at[].set` would be a scatter, which is a loop on CPUs.
    put = partial(jax.lax.dynamic_update_index_in_dim, index=at, axis=0)
    S, Y = jax.tree.map(put, (S, Y), (s, y))
    turn = (at + 1 + jnp.arange(size)) % size  # the oldest first
    Sg, Yg = (inner(pairs, g)[turn] for pairs in (S, Y))
    # The products of the pairs with the last gradient, of the newest pair among them.
    newest = (inner(x, slope) for x in (s, y))
    Sg_old, Yg_old = (jnp.append(x[1:], last) for x, last in zip(before, newest, strict=True))
    SY, YY = _followed(SY, Sg - Sg_old), _followed(YY, Yg - Yg_old)
    back = (jnp.arange(size) - at - 1) % size
    a, w = jnp.stack(_coefficients(SY, YY, gamma, Sg, Yg))[:, back]
    p = jax.tree.map(lambda g, S, Y: gamma * (_sum(w, Y) - g) - _sum(a, S), g, S, Y)
    return p, Memory(steps + 1, params, g, S, Y, SY, YY, gamma, Sg, Yg)


def _coefficients(SY, YY, gamma, Sg, Yg) -> tuple[Array, Array]:
    """(a, w) of the module's docstring, the oldest pair first."""
    R, D = jnp.triu(SY), jnp.diagonal(SY)
    R = R + jnp.diag((D == 0).astype(R.dtype))  # a pair left out is a zero row and column
    YY = jnp.triu(YY) + jnp.triu(YY, 1).T
    solve = partial(jax.lax.linalg.triangular_solve, R, left_side=True)
    w = solve(Sg[:, None])
    pulled = gamma * (jnp.matmul(YY, w, precision=HIGHEST) - Yg[:, None])
    return solve(D[:, None] * w + pulled, transpose_a=True)[:, 0], w[:, 0]


def _followed(square: Array, last: Array) -> Array:
    """A matrix of inner products, without the oldest pair and with the newest as last column."""
    newest = jnp.arange(len(square)) == len(square) - 1
    older = jnp.pad(square[1:, 1:], ((0, 1), (0, 1)))
    return jnp.where(newest, last[:, None], older)


def _sum(coefficients: Array, pairs: Array) -> Array:
    """Σ_i c_i x_i over the leading axis."""
    return jnp.tensordot(coefficients, pairs, 1, precision=HIGHEST)
