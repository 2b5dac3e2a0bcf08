"""Lanczos' reduction of a symmetric operator to a tridiagonal matrix of a few rows.

    A V ≈ V T,   VᵀV = I,   V = [v_1 … v_m] from v_1 on,   T = VᵀAV tridiagonal

Its eigenvalues lie within those of A and find the outermost ones first; with the first entries of
its eigenvectors they are the nodes and weights of Gauss's quadrature for v_1 (Golub and Meurant
2010). Every vector is orthogonalised twice against all before. Knows no model; traceable.

(`ufm.linalg.minres` has its own recurrence: its solution is updated along the way from the last two
vectors, and it stores no others, however many steps it takes.)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.linalg.products import matmul


def tridiagonal(
    operator: Callable[[Array], Array], start: Float[Array, " size"], steps: int
) -> Float[Array, "steps steps"]:
    """T of the module's head.

    A Krylov space that is exhausted earlier (A has fewer distinct eigenvalues) leaves its T in the
    first rows and columns, and 0 in the others.

    Args:
        operator: v ↦ A v, A symmetric.
        start: v_1, a unit vector.
        steps: rows of T, and products with A. Memory: as many vectors.
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
