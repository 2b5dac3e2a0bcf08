"""Sums and columns over the samples, block by block: no K × N matrix need exist as a whole.

    Σ_i s(h_i, y_i)  =  Σ_B S(H_B, y_B),     B blocks of neighbouring columns of H

Logits, residuals and their kin are as large as K × N. Up to `LIMIT` bytes they are made at once,
which is fastest; beyond, a loop over blocks keeps one block of them at a time, so that memory
stays near that of H. Samples that are spread over a mesh are not cut: every device holds its own
part of the columns as it is.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

# Bytes of one matrix of logits: far beyond the caches, a small part of any device's memory.
LIMIT = 2**26


def count(rows: int, H: Any) -> int:
    """Number of blocks for matrices of shape (rows, N) in the precision of H (d, N)."""
    if isinstance(H, np.ndarray) or not jax.typeof(H).sharding.mesh.empty:
        return 1
    return min(-(-rows * H.shape[1] * H.dtype.itemsize // LIMIT), H.shape[1])


def total(f: Callable, H: Any, labels: Any, rows: int, combine: Callable = jnp.add) -> Any:
    """Σ_B f(H_B, y_B): f gives arrays that are sums over the samples of its block.

    Args:
        f: (H_B (d, m), labels (m,)) → any tree of arrays.
        H: features (d, N); labels: (N,).
        rows: rows of the largest matrix over the samples that f makes, K for logits.
        combine: what joins two blocks, a sum by default, `jnp.minimum` for a minimum.
    """
    return sweep(lambda H_B, y_B: (f(H_B, y_B), ()), H, labels, rows, combine)[0]


def sweep(
    f: Callable, H: Any, labels: Any, rows: int, combine: Callable = jnp.add
) -> tuple[Any, Any]:
    """As `total`, for an f that returns (sums, columns): columns are joined along the last axis."""
    blocks = count(rows, H)
    if blocks == 1:
        return f(H, labels)
    N = H.shape[1]
    m = N // blocks
    labels = jnp.asarray(labels)

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
