"""Powers of two that bring numbers to the order of 1, so that squares neither overflow nor vanish.

Squares of float64 numbers beyond 1e±154 are no float64 numbers, of float32 beyond 1e±19. What is
made of squares is therefore made of x/s, with s the power of two just below the largest |x|.
Dividing by a power of two is exact: wherever nothing over- or underflowed, every digit stays the
same. XLA takes subnormal numbers for 0, and so does everything here.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def binade(xp: ModuleType, *arrays: Any) -> Any:
    """The power of two s with s ≤ max|x| < 2s; s and 1/s are normal numbers. Traceable.

    Args:
        xp: numpy or jax.numpy.
        arrays: of one floating dtype.

    Returns:
        s, a scalar of that dtype: 1 if all entries are 0 or one of them is not finite, and at most
        1/(smallest normal number), so that max|x| < 4s always.
    """
    top = arrays[0].dtype.type(0)
    for x in arrays:
        top = xp.maximum(top, _top(xp, x))
    info = xp.finfo(top.dtype)
    bits = np.dtype(f"u{top.dtype.itemsize}")
    exponent = bits.type(((1 << info.nexp) - 1) << info.nmant)
    s = (top.view(bits) & exponent).view(top.dtype)
    s = xp.where((s > 0) & (s < xp.inf), s, 1)
    return xp.minimum(s, 1 / info.tiny).astype(top.dtype)


def _top(xp: ModuleType, x: Any) -> Any:
    """max |x|, in one kernel where x is small."""
    if x.size <= 4096:
        return xp.max(xp.abs(x), initial=0)
    x = xp.abs(x)
    while x.ndim:  # axis by axis: XLA does not use the vector units for one long reduction
        x = xp.max(x, axis=0)
    return x


@jax.custom_batching.custom_vmap
def anyone(flag: jax.Array) -> jax.Array:
    """flag; under a map, whether it holds in any lane: one number for all of them.

    A branch on a number of each lane would take both sides, and choose lane by lane.
    """
    return flag


@anyone.def_vmap
def _anyone_of(_size, _batched, flag):
    return anyone(jnp.any(flag)), False


def norm(squares: jax.Array, again: Callable[[], Any]) -> jax.Array:
    """√Σ‖x‖² of JAX arrays, whose Σ‖x‖² is given and may have over- or underflowed. Traceable.

    Args:
        squares: Σ‖x‖².
        again: makes the arrays, where it did; otherwise they need not be kept.
    """
    info = jnp.finfo(squares.dtype)

    def scaled():
        arrays = tuple(again())
        s = binade(jnp, *arrays)
        return s * jnp.sqrt(sum(jnp.sum(jnp.square(x / s)) for x in arrays))

    # Squares below the smallest normal number count as 0: far above it nothing of them is missed.
    lost = ~((squares > float(info.tiny) / float(info.eps)) & (squares < jnp.inf))
    return jax.lax.cond(anyone(lost), scaled, lambda: jnp.sqrt(squares))


def squared_norm(x: jax.Array) -> jax.Array:
    """‖x‖², summed axis by axis: one long float32 sum over a large H would lose digits."""
    x = jnp.square(x)
    while x.ndim:
        x = jnp.sum(x, axis=0)
    return x


def squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(‖x/s‖², s) with s the `binade` of x: ‖x‖² as a sum that neither overflows nor vanishes."""
    s = binade(jnp, x)
    return squared_norm(x * (1 / s)), s
