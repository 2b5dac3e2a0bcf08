"""Lanczos' reduction of a symmetric operator to a tridiagonal matrix of a few rows.

    A V ≈ V T,   VᵀV = I,   V = [v_1 … v_m], starting from v_1,   T = VᵀAV tridiagonal

The eigenvalues of T are within the range of those of A and approximate the outermost ones first;
with the first entries of its eigenvectors they are the nodes and weights of Gauss's quadrature for
v_1 (Golub and Meurant 2010). Every vector is orthogonalised twice against all earlier ones.
Traceable. (`ufm.linalg.minres` has its own recurrence, which stores only the last two vectors.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.linalg.products import matmul


def tridiagonal(
    operator: Callable[[Array], Array], start: Float[Array, " size"], steps: int
) -> Float[Array, "steps steps"]:
    """T = VᵀAV of `steps` Lanczos steps from v_1.

    If the Krylov space is exhausted earlier (A has fewer distinct eigenvalues), its T is in the
    first rows and columns, and the others are 0.

    Args:
        operator: v ↦ A v, A symmetric.
        start: v_1, a unit vector.
        steps: number of rows of T, of products with A, and of vectors in memory.
    """

    def step(carry, i):
        basis, v, scale = carry
        basis = basis.at[i].set(v)
        image = operator(v)
        alpha = jnp.vdot(v, image)
        for _ in range(2):
            image = image - matmul(matmul(basis, image), basis)
        beta = jnp.linalg.norm(image)
        scale = jnp.maximum(scale, jnp.abs(alpha) + beta)
        alive = beta > 1e4 * jnp.finfo(v.dtype).eps * scale
        beta = jnp.where(alive, beta, 0)
        v = jnp.where(alive, image / jnp.where(alive, beta, 1), 0)
        return (basis, v, scale), (alpha, beta)

    basis = jnp.zeros((steps, len(start)), start.dtype)
    first = (basis, start, jnp.zeros((), start.dtype))
    alphas, betas = jax.lax.scan(step, first, jnp.arange(steps))[1]
    return jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
