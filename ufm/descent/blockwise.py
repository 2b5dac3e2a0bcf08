"""A step through blocks of samples, in the memory of H and of the state of the optimiser.

    for every block B of columns:  H_B ← H_B + u(WᵀG_B + λ_H H_B Ω_B);   then W and b

The whole gradient ∇_H f would be another array as large as H. The updates u of gradient descent,
of its momentum methods and of Adam act on each entry by itself, so a block needs no other columns.
On CPUs; elsewhere a branch in a loop waits for the host.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from ufm.descent.transformation import Transformation
from ufm.linalg.scaling import anyone
from ufm.model import layers
from ufm.model import objective as terms
from ufm.model.fixed import held
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks

METHODS = ("gd", "heavy_ball", "nesterov", "adam")  # with a given step size
# Bytes of H from which on steps go through blocks; bytes of a block, which fits into a cache, and
# columns that it has at least, as many as there are classes if these are more, for fast products.
LARGE, BLOCK, WIDTH = 2**25, 2**20, 128


def applies(problem: Problem, optimizer: Any, H: jax.Array) -> bool:
    """Whether a full-batch step of this method goes through blocks."""
    if not (isinstance(optimizer, str) and optimizer in METHODS and layers.is_free(problem)):
        return False
    large = problem.d * problem.N * H.dtype.itemsize >= LARGE
    return large and jax.default_backend() == "cpu" and blocks.devices(H) == 1


def step(
    problem: Problem, optimizer: Transformation, params: Params, state: Any
) -> tuple[Params, Any]:
    """(the point, the state of the optimiser) after a step, NaN where ∇f is not finite. Traceable.

    Args:
        problem: with free features.
        optimizer: of one of `METHODS`.
        params, state: before the step.
    """
    W, H, b = params
    labels, N = jnp.asarray(problem.labels), H.shape[1]
    width = min(N, max(BLOCK // (problem.d * H.dtype.itemsize), problem.K, WIDTH))

    def body(start: Any, carry: tuple, width: int = width) -> tuple:
        H, state, dW, db = carry
        cut = partial(jax.lax.dynamic_slice_in_dim, start_index=start, slice_size=width, axis=-1)
        part, y = Params(W, cut(H), b), cut(labels)
        G = terms.weighed(problem, terms.residual(problem, part, y), y)
        data = terms.pullback(problem, part, G)
        slope = terms.add_decay(problem, part, data, y).H
        # A branch is a kernel of its own: else XLA would compute the new columns of H and those of
        # the state each from both old ones, and copy both arrays to keep them.
        new, ahead = jax.lax.cond(
            anyone(G[0, 0] < jnp.inf), partial(_moved, optimizer), _lost,
            slope, _map(lambda x: cut(x.H), state), part.H,
        )  # fmt: skip
        put = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=-1)
        state = _map(lambda x, x_B: x._replace(H=put(x.H, x_B)), state, ahead)
        return put(H, new), state, dW + data.W, db + data.b

    carry = H, state, jnp.zeros_like(W), jnp.zeros_like(b)
    carry = jax.lax.fori_loop(0, N // width, lambda i, carry: body(i * width, carry), carry)
    if N % width:
        carry = body(N - N % width, carry, N % width)
    H, state, dW, db = carry
    # The rest of the point, with no columns of H.
    none = jnp.zeros((problem.d, 0), H.dtype)
    rest = Params(W, none, b)
    slope = terms.add_decay(problem, rest, Params(dW, none, db), labels[:0])
    updates, ahead = optimizer.update(slope, _map(lambda x: x._replace(H=none), state), rest)
    W, _, b = jax.tree.map(_added, rest, held(problem, updates))
    # Numbers such as Adam's count of steps are those of this update.
    state = _map(lambda x_rest, x: x_rest._replace(H=x.H), ahead, state)
    return Params(W, H, b), state


def _moved(optimizer: Transformation, slope: Any, state: Any, H: Any) -> tuple[Any, Any]:
    updates, state = optimizer.update(slope, state, H)
    return _added(H, updates), state


def _lost(_slope: Any, state: Any, H: Any) -> tuple[Any, Any]:
    return jnp.full_like(H, jnp.nan), state


def _added(x: Any, update: Any) -> Any:
    return (x + update).astype(x.dtype)


def _map(f: Any, state: Any, *others: Any) -> Any:
    """f of every point in the state, such as a velocity, with what others hold in its place."""

    def each(x: Any, *rest: Any) -> Any:
        return f(x, *rest) if isinstance(x, Params) else x

    return jax.tree.map(each, state, *others, is_leaf=lambda x: isinstance(x, Params))
