"""MINRES: the shortest x that minimises ‖A x − b‖, A symmetric, indefinite or singular.

Lanczos vectors v_1 ∝ b, v_2, … reduce A to a tridiagonal matrix, whose least-squares problem is
updated by Givens rotations (Paige and Saunders 1975, SIAM J. Numer. Anal. 12:617). Started from
zero the iterates stay in the Krylov space of b, so for a consistent singular system (b orthogonal
to the null space) the limit is the solution of minimum length. Traceable.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# In a few hundred steps Lanczos cannot tell eigenvalues below about this share of ‖A‖ from 0.
FLAT = 1e-7


class _Loop(NamedTuple):
    """v, v_old, beta: Lanczos. d, d_old: search directions. c, s, c_old, s_old: rotations.

    phi: ‖r‖ up to its sign. largest: a lower estimate of ‖A‖. flat: A r = 0 up to `FLAT`.
    """

    x: Array
    v: Array
    v_old: Array
    beta: Array
    d: Array
    d_old: Array
    c: Array
    s: Array
    c_old: Array
    s_old: Array
    phi: Array
    step: Array
    largest: Array
    flat: Array


def minres(
    operator: Callable[[Array], Array], b: Float[Array, " size"], tolerance, limit: int
) -> Float[Array, " size"]:
    """x with ‖A x − b‖ ≤ tolerance ‖b‖, or the iterate of least residual.

    The iteration ends where A r = 0 for the residual r, up to ‖A r‖ ≤ `FLAT` ‖A‖ ‖r‖, since further
    steps would divide rounding by a number close to 0; or after `limit` steps.

    Args:
        operator: v ↦ A v, A symmetric.
        b: right-hand side.
        tolerance: on the residual, relative to ‖b‖; may be traced.
        limit: on the number of products.

    Returns:
        x, (size,); 0 for b = 0. One product a step, five vectors of memory.
    """
    eps = jnp.finfo(b.dtype).eps
    size = jnp.linalg.norm(b)

    def unfinished(state: _Loop):
        # beta = 0: the Krylov space is exhausted, and x is exact within it.
        return (
            (state.step < limit)
            & (jnp.abs(state.phi) > tolerance * size)
            & ((state.beta > eps * size) | (state.step == 0))
            & ~state.flat
        )

    def body(state: _Loop) -> _Loop:
        image = operator(state.v) - state.beta * jnp.where(state.step > 0, 1, 0) * state.v_old
        alpha = jnp.vdot(state.v, image, precision=jax.lax.Precision.HIGHEST)
        image = image - alpha * state.v
        beta = jnp.linalg.norm(image)
        # Row of the tridiagonal matrix under the last two rotations, then the new rotation.
        below = jnp.where(state.step > 0, state.beta, 0)
        epsilon = state.s_old * below
        delta_bar = state.c_old * below
        delta = state.c * delta_bar + state.s * alpha
        gamma_bar = -state.s * delta_bar + state.c * alpha
        gamma = jnp.hypot(gamma_bar, beta)
        safe = jnp.where(gamma > 0, gamma, 1)
        c, s = gamma_bar / safe, beta / safe
        d = (state.v - delta * state.d - epsilon * state.d_old) / safe
        d = jnp.where(gamma > 0, d, 0)
        # ‖A r‖/‖r‖ of the present residual: if it is about 0 this step would amplify rounding.
        largest = jnp.maximum(state.largest, gamma)
        flat = jnp.hypot(gamma_bar, state.c * beta) <= FLAT * largest
        x = jnp.where(flat, state.x, state.x + c * state.phi * d)
        v = image / jnp.where(beta > 0, beta, 1)
        return _Loop(
            x, v, state.v, beta, d, state.d, c, s, state.c, state.s, -s * state.phi,
            state.step + 1, largest, flat,
        )  # fmt: skip

    zero, none = jnp.zeros_like(b), jnp.zeros((), b.dtype)
    one = jnp.ones((), b.dtype)
    v = b / jnp.where(size > 0, size, 1)
    first = _Loop(
        zero, v, zero, none, zero, zero, one, none, one, none, size, jnp.int32(0), none,
        jnp.array(False),
    )  # fmt: skip
    return jax.lax.while_loop(unfinished, body, first).x
