"""An upper bound on the spectral radius of the positive part of a Gram matrix.

    ρ(M),   M = (BᵀB)₊ = [max(⟨b_i, b_j⟩, 0)]

M is symmetric with entries ≥ 0, so ρ is its largest eigenvalue, and for every v > 0

    ρ(M) ≤ max_i (Mv)_i / v_i                                        (Collatz, Wielandt)

with equality at the Perron eigenvector if M is irreducible. Up to `DENSE` columns the eigenvalue is
computed; beyond, M is never formed: v comes from a power iteration on blocks of its rows, and the
bound holds for the v of every step. If M is reducible each irreducible block has its own
eigenvector and ratio, so a positive v is enough.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Scalar

from ufm.linalg.products import matmul

DENSE = 1024  # columns up to which M is formed: 8 MiB
_BLOCK = 2**22  # entries of M that are formed at a time
_STEPS = 300
_GAIN = 1e-13  # relative decrease of the bound in a step, below which the iteration ends


def radius(B: Float[Array, "r m"]) -> Scalar:
    """ρ((BᵀB)₊) up to rounding, or an upper bound on it for more than `DENSE` columns. Traceable.

    Args:
        B: entries whose squares are normal numbers, or 0.
    """
    if B.shape[1] <= DENSE:
        return jnp.linalg.eigvalsh(jnp.maximum(matmul(B.T, B), 0))[-1]
    return bound(B)


def bound(B: Float[Array, "r m"], steps: int = _STEPS) -> Scalar:
    """The least Collatz–Wielandt bound on ρ((BᵀB)₊) along a power iteration. Traceable."""
    floor = jnp.sqrt(jnp.finfo(B.dtype).tiny)

    def unfinished(carry):
        _, step, least, before = carry
        settled = (step > 2) & (before - least <= _GAIN * least)
        return (step < steps) & ~settled

    def body(carry):
        v, step, least, _ = carry
        image = _image(B, v)
        found = jnp.minimum(least, jnp.max(image / v))
        top = jnp.max(image)
        v = jnp.maximum(image / jnp.where(top > 0, top, 1), floor)
        return v, step + 1, found, least

    start = jnp.ones(B.shape[1], B.dtype)
    infinite = jnp.full((), jnp.inf, B.dtype)
    first = (start, jnp.int32(0), infinite, infinite)
    return jax.lax.while_loop(unfinished, body, first)[2]


def _image(B: Array, v: Array) -> Array:
    """Mv, a block of rows at a time."""
    m = B.shape[1]
    rows = max(1, _BLOCK // m)
    blocks = -(-m // rows)
    padded = jnp.pad(B, ((0, 0), (0, blocks * rows - m)))
    parts = padded.T.reshape(blocks, rows, len(B))
    return jax.lax.map(lambda x: matmul(jnp.maximum(matmul(x, B), 0), v), parts).ravel()[:m]
