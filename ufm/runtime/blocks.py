"""Sums and columns over the samples, block by block, without a whole K × N matrix in memory.

    Σ_i s(h_i, y_i)  =  Σ_B S(H_B, y_B),     B blocks of neighbouring columns of H

Logits and residuals are K × N matrices. Up to `LIMIT` bytes they are computed at once; larger ones
in a loop, one block at a time, which is as fast for one pass over the samples, so that memory stays
near that of H. Where the samples are split over a mesh (`ufm.mesh`), every device loops over blocks
of its own columns, and the sums of the devices are combined at the end.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Most bytes of a matrix of logits on a CPU: beyond most caches, and enough for products at full
# speed. Other devices need more by a factor.
LIMIT, ELSEWHERE = 2**23, 8
# The axis of a mesh over which samples are split.
AXIS = "samples"


def devices(H: Any) -> int:
    """Over how many devices of a mesh the columns of H are split, by its type; 1 without a mesh."""
    if isinstance(H, np.ndarray):
        return 1
    return jax.typeof(H).sharding.mesh.shape.get(AXIS, 1)


def count(rows: int, H: Any) -> int:
    """Number of blocks, on each device, for matrices (rows, N) in the precision of H (d, N)."""
    if isinstance(H, np.ndarray):
        return 1
    width = H.shape[1] // devices(H)
    limit = LIMIT * (1 if jax.default_backend() == "cpu" else ELSEWHERE)
    return min(-(-rows * width * H.dtype.itemsize // limit), width)


def total(f: Callable, H: Any, labels: Any, rows: int, combine: Any = jnp.add) -> Any:
    """Σ_B f(H_B, y_B), for an f that returns sums over the samples of a block. Traceable.

    Args:
        f: (H_B (d, m), labels (m,)) ↦ any tree of arrays.
        H: features (d, N); labels: (N,).
        rows: rows of the largest matrix over the samples that f computes, K for logits.
        combine: combines two blocks: `jnp.add`, or `jnp.minimum` for a minimum.
    """
    return sweep(lambda H_B, y_B: (f(H_B, y_B), ()), H, labels, rows, combine)[0]


def sweep(f: Callable, H: Any, labels: Any, rows: int, combine: Any = jnp.add) -> tuple[Any, Any]:
    """As `total`, for an f that returns (sums, columns); columns are joined on the last axis."""
    blocks = count(rows, H)
    if blocks == 1:
        return f(H, labels)
    labels, parts = jnp.asarray(labels), devices(H)
    if parts == 1:
        return _in_blocks(f, H, labels, blocks, combine)
    # Under vmap over an axis of devices each loops over blocks of its own columns, and devices
    # exchange nothing before their sums are combined.
    sums, columns = jax.vmap(
        lambda H, labels: _in_blocks(f, H, labels, blocks, combine), (1, 0), (0, -2)
    )(H.reshape(len(H), parts, -1), labels.reshape(parts, -1))
    sums = jax.tree.map(lambda x: combine.reduce(x, axis=0), sums)
    return sums, jax.tree.map(lambda x: x.reshape(*x.shape[:-2], -1), columns)


def _in_blocks(f: Callable, H: Any, labels: Any, blocks: int, combine: Any) -> tuple[Any, Any]:
    """`sweep` over a given number of blocks of columns on one device."""
    N = H.shape[1]
    m = N // blocks

    def at(start, width):
        cut = jax.lax.dynamic_slice_in_dim
        return f(cut(H, start, width, 1), cut(labels, start, width))

    def written(columns, part, start):
        put = jax.lax.dynamic_update_slice_in_dim
        return jax.tree.map(lambda x, y: put(x, y, start, x.ndim - 1), columns, part)

    def body(i, carry):
        sums, columns = carry
        more, part = at(i * m, m)
        return jax.tree.map(combine, sums, more), written(columns, part, i * m)

    sums, part = at(0, m)
    columns = jax.tree.map(lambda x: jnp.zeros((*x.shape[:-1], N), x.dtype), part)
    sums, columns = jax.lax.fori_loop(1, blocks, body, (sums, written(columns, part, 0)))
    if blocks * m < N:  # fewer than `blocks` columns are left
        more, part = at(blocks * m, N - blocks * m)
        sums, columns = jax.tree.map(combine, sums, more), written(columns, part, blocks * m)
    return sums, columns
