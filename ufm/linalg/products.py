"""Matrix products at full precision."""

import jax
import jax.numpy as jnp
from jaxtyping import Array


def matmul(A: Array, B: Array) -> Array:
    """A B at full precision: accelerators otherwise round float32 factors to TF32 or bfloat16."""
    return jnp.matmul(A, B, precision=jax.lax.Precision.HIGHEST)
