"""Scaling by powers of two, so that squares neither overflow nor underflow.

Squares of float64 numbers beyond 1e±154, or of float32 numbers beyond 1e±19, leave the range of
their type. Norms are therefore computed from x/s, where s is the power of two just below the
largest |x|. Division by a power of two is exact: where nothing over- or underflows, the result has
the same digits. XLA replaces subnormal numbers by 0, and so do these functions.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Entries up to which a second pass costs less than compiling a branch that saves it: 40 ms.
SMALL = 2**15


def binade(xp: ModuleType, *arrays: Any) -> Any:
    """The power of two s with s ≤ max|x| < 2s; s and 1/s are normal numbers. Traceable.

    Args:
        xp: numpy or jax.numpy.
        arrays: of one floating dtype.

    Returns:
        s, a scalar of that dtype: 1 if all entries are 0 or one of them is not finite, and at most
        1/(smallest normal number), so that max|x| < 4s for all finite x.
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
    """The flag; under `vmap`, whether it holds for any element of the batch, as one number.

    A branch on a batched flag would evaluate both sides and select element by element.
    """
    return flag


@anyone.def_vmap
def _anyone_of(_size, _batched, flag):
    return anyone(jnp.any(flag)), False


def norm(squares: jax.Array, again: Callable[[], Any]) -> jax.Array:
    """`length` of arrays whose Σ‖x‖² is given and may have over- or underflowed. Traceable.

    Args:
        squares: Σ‖x‖².
        again: computes the arrays, called only where it did, so that they need not be stored.
    """
    info = jnp.finfo(squares.dtype)
    # Squares below the smallest normal number count as 0; in a much larger sum they do not matter.
    lost = ~((squares > float(info.tiny) / float(info.eps)) & (squares < jnp.inf))
    return jax.lax.cond(anyone(lost), lambda: length(*again()), lambda: jnp.sqrt(squares))


def length(*arrays: jax.Array) -> jax.Array:
    """√Σ‖x‖² of JAX arrays, without over- or underflow, in two passes over them. Traceable."""
    s = binade(jnp, *arrays)
    return s * jnp.sqrt(sum(squared_norm(x / s) for x in arrays))


def squared_norm(x: jax.Array) -> jax.Array:
    """‖x‖², summed axis by axis, since one long float32 sum over a large H would lose digits."""
    x = jnp.square(x)
    while x.ndim:
        x = jnp.sum(x, axis=0)
    return x


def squares(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(‖x/s‖², s) with s the `binade` of x: ‖x‖² = s²‖x/s‖² without over- or underflow."""
    s = binade(jnp, x)
    return squared_norm(x * (1 / s)), s
