"""A few extreme eigenpairs of a symmetric operator that is known only by its products.

    A v_j ≈ θ_j v_j,   ‖A v_j − θ_j v_j‖ ≤ tol ‖A‖,   the k smallest or the k largest

Block Lanczos with thick restarts (Wu and Simon 2000) and full reorthogonalisation, done twice, in
the form of Davidson (1975): the images of the basis are stored beside it, so that the residual of
every Ritz pair is at hand and the next block may be any directions. Those are the residuals of
the lowest pairs that have not converged (block Lanczos in exact arithmetic), the same through an
approximate inverse of A − θ if there is one, or random directions wherever the Krylov space is
exhausted.

A residual r proves that some eigenvalue lies within r of θ; it cannot tell that none is missing.
Therefore a solve does not end when k pairs have converged: a random block is put in, and the
search goes on for a further third of the steps. A missing copy of a multiple eigenvalue turns up
there with probability near 1, which is a check and no proof: `ufm.hessian.signs` counts exactly.

Nothing here knows a model. Everything is one compiled loop; blocks of vectors are rows.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.linalg.products import matmul
from ufm.linalg.tridiagonal import tridiagonal

STATUSES = ("iteration_limit", "converged", "not_finite")
STEPS = 8  # blocks between two restarts
NORM_STEPS = 10


class Eigenpairs(NamedTuple):
    """What a solve found; the pairs are ordered from the wanted end inwards.

    values: (k,), Rayleigh quotients.  vectors: (k, size), orthonormal rows.
    residuals: (k,), ‖A v − θ v‖ with A applied once more at the end.
    converged: (k,), residual ≤ tol · norm, and the solve as a whole has converged.
    norm: a lower estimate of ‖A‖ from Ritz values.
    products: of A with one vector, all told.  restarts: of the basis.
    status: "converged"; "iteration_limit" (some pair, or the check for missing ones, did not
        end within the products allowed); "not_finite" (the operator returned NaN or infinity).
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k size"]
    residuals: Float[Array, " k"]
    converged: Array
    norm: Float[Array, ""]
    products: Array
    restarts: Array
    status: str


class Sizes(NamedTuple):
    """Sizes of a solve: k wanted, `width` vectors a block, `keep` rows at a restart, `rows`."""

    size: int
    k: int
    width: int
    keep: int
    rows: int


class _State(NamedTuple):
    """V and its images (rows, size), T = V A Vᵀ, and where the search stands."""

    V: Array
    images: Array
    T: Array
    filled: Array
    key: Array
    norm: Array
    products: Array
    restarts: Array
    steps: Array
    calm: Array  # steps since the random block of the check was put in, 0 before
    Y: Array  # coordinates of the k pairs when they were last looked at
    done: Array


def plan(size: int, k: int, which: str, width: int | None = None) -> Sizes:
    """The sizes of a solve; refuses what cannot be solved.

    Raises:
        Refused: k outside 1 … size, width < 1, or an unknown end.
    """
    check.choice("which", which, ("smallest", "largest"))
    k = check.integer("k", k, 1, size, f"this operator has {size} eigenpairs")
    width = 4 if width is None else check.integer("width", width, 1)
    keep = k + 2 * width
    return Sizes(size, k, width, keep, keep + STEPS * width)


@functools.partial(jax.jit, static_argnames="size")
def norm_estimate(operator: Any, size: int, key: Array) -> Float[Array, ""]:
    """A lower estimate of ‖A‖, mostly within a few per cent: 10 Lanczos steps from a random start.

    Args:
        operator: a `jax.tree_util.Partial` from blocks (m, size) to blocks.
        size: number of variables.
        key: draws the start; its draws are in JAX's default precision.
    """
    v = jax.random.normal(key, (size,), float)
    v = v / jnp.linalg.norm(v)
    T = tridiagonal(lambda v: operator(v[None])[0], v, min(NORM_STEPS, size))
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(T)))


def _orthonormal(block: Array, V: Array, key: Array) -> Array:
    """Rows that span the block, orthonormal and orthogonal to V; random where it is dependent.

    Twice: subtract V Vᵀ, then diagonalise the Gram matrix of the normed rows (Stathopoulos and Wu
    2002). What is left of a row inside span V, or of dependent rows, is noise and is redrawn.
    """
    eps = jnp.finfo(V.dtype).eps
    block, alive = _normed(block, 0.0)
    block = _redrawn(block, alive, key)
    for i in range(2):
        # The barrier keeps XLA from turning this into block Vᵀ, ten times as slow on CPUs.
        parts = jax.lax.optimization_barrier(matmul(V, block.T))
        block = block - matmul(parts.T, V)
        block, alive = _normed(block, 1e3 * eps)
        weights, axes = jnp.linalg.eigh(matmul(block, block.T))
        apart = weights > 1e4 * eps
        scale = jnp.where(apart, 1 / jnp.sqrt(jnp.where(apart, weights, 1)), 0)
        block = matmul(scale[:, None] * axes.T, block)
        if i == 0:
            # A dependent row shows up as a small weight: noise is orthogonal to V after pass 2.
            block = _redrawn(block, apart, jax.random.fold_in(key, i))
    return block


def _normed(block: Array, least: Any) -> tuple[Array, Array]:
    """Unit rows, 0 for those of length ≤ least or not finite; and which are alive."""
    length = jnp.linalg.norm(block, axis=1)
    alive = (length > least) & jnp.isfinite(length)
    scale = jnp.where(alive, 1 / jnp.where(alive, length, 1), 0)
    return jnp.where(alive[:, None], block, 0) * scale[:, None], alive


def _redrawn(block: Array, alive: Array, key: Array) -> Array:
    """Random rows of length about 1 in place of those that are not alive."""

    def redraw(block):
        noise = jax.random.normal(key, block.shape, block.dtype) / jnp.sqrt(block.shape[1])
        return jnp.where(alive[:, None], block, noise)

    return jax.lax.cond(jnp.all(alive), lambda x: x, redraw, block)


def _ritz(state: _State) -> tuple[Array, Array]:
    """Eigenpairs of T, those of the rows that are not filled yet moved behind the others."""
    empty = jnp.arange(len(state.T)) >= state.filled
    bound = jnp.max(jnp.sum(jnp.abs(state.T), axis=1))
    return jnp.linalg.eigh(state.T + jnp.diag(jnp.where(empty, 2 * bound + (bound == 0), 0)))


def _append(operator: Any, state: _State, block: Array) -> _State:
    """Orthonormalise a block, apply A to it and fill the rows and columns of T."""
    key, draw = jax.random.split(state.key)
    new = _orthonormal(block, state.V, draw)
    image = operator(new)
    zero = jnp.zeros((), state.filled.dtype)
    V = jax.lax.dynamic_update_slice(state.V, new, (state.filled, zero))
    images = jax.lax.dynamic_update_slice(state.images, image, (state.filled, zero))
    beside = matmul(V, image.T)
    own = jax.lax.dynamic_slice(beside, (state.filled, zero), (len(block), len(block)))
    beside = jax.lax.dynamic_update_slice(beside, (own + own.T) / 2, (state.filled, zero))
    T = jax.lax.dynamic_update_slice(state.T, beside, (zero, state.filled))
    T = jax.lax.dynamic_update_slice(T, beside.T, (state.filled, zero))
    return state._replace(
        V=V, images=images, T=T, key=key,
        filled=state.filled + len(block), products=state.products + len(block),
    )  # fmt: skip


def _step(operator: Any, preconditioner: Any, sizes: Sizes, tol, state: _State) -> _State:
    """Look at the lowest Ritz pairs, decide whether the search ends, add the next block."""
    values, axes = _ritz(state)
    known = jnp.arange(sizes.rows) < state.filled
    norm = jnp.maximum(state.norm, jnp.max(jnp.where(known, jnp.abs(values), 0)))
    lowest = sizes.k + sizes.width
    Y, theta = axes[:, :lowest].T, values[:lowest, None]
    residual = matmul(Y, state.images) - theta * matmul(Y, state.V)
    fine = jnp.linalg.norm(residual, axis=1) <= tol * norm
    fine = fine & (jnp.arange(lowest) < state.filled)
    wanted = jnp.all(fine[: sizes.k])
    calm = jnp.where(wanted, state.calm + 1, 0)
    done = (wanted & (calm > 3 + (state.steps - calm) // 3)) | ~jnp.isfinite(norm)
    order = jnp.argsort(fine, stable=True)[: sizes.width]
    key, draw = jax.random.split(state.key)
    block = _redrawn(residual[order], jnp.full(sizes.width, calm != 1), draw)
    block = preconditioner(block, values[0])
    state = state._replace(
        key=key, norm=norm, calm=calm, Y=Y[: sizes.k], done=done, steps=state.steps + 1
    )
    return _append(operator, state, block)


def _restart(sizes: Sizes, state: _State) -> _State:
    """Keep the lowest Ritz vectors and their images."""
    values, axes = _ritz(state)
    Y = axes[:, : sizes.keep].T
    V = jnp.zeros_like(state.V).at[: sizes.keep].set(matmul(Y, state.V))
    images = jnp.zeros_like(state.V).at[: sizes.keep].set(matmul(Y, state.images))
    kept = jnp.arange(sizes.rows) < sizes.keep
    return state._replace(
        V=V, images=images, T=jnp.diag(jnp.where(kept, values, 0)),
        filled=jnp.full_like(state.filled, sizes.keep), restarts=state.restarts + 1,
    )  # fmt: skip


@functools.partial(jax.jit, static_argnames="sizes")
def _solve(operator, preconditioner, sign, sizes: Sizes, start, key, norm, tol, limit):
    """The compiled loop: cycles of steps between restarts, then the pairs and their residuals.

    It looks for the smallest end of sign · A.
    """
    dtype = start.dtype

    def signed(block):
        return sign * operator(block)

    def steer(block, theta):
        return preconditioner(block, sign * theta)

    number = functools.partial(jnp.asarray, dtype=jnp.int32)
    state = _State(
        V=jnp.zeros((sizes.rows, sizes.size), dtype),
        images=jnp.zeros((sizes.rows, sizes.size), dtype),
        T=jnp.zeros((sizes.rows, sizes.rows), dtype),
        filled=number(0), key=key, norm=jnp.asarray(norm, dtype), products=number(NORM_STEPS),
        restarts=number(0), steps=number(0), calm=number(0),
        Y=jnp.zeros((sizes.k, sizes.rows), dtype), done=jnp.asarray(False),
    )  # fmt: skip
    state = _append(signed, state, start)
    step = functools.partial(_step, signed, steer, sizes, tol)

    def going(state):
        return ~state.done & ((state.products < limit) | (state.steps == 0))

    def room(state):
        return going(state) & (state.filled + sizes.width <= sizes.rows)

    def cycle(state):
        full = state.filled + sizes.width > sizes.rows
        state = jax.lax.cond(full, functools.partial(_restart, sizes), lambda x: x, state)
        return jax.lax.while_loop(room, step, state)

    state = jax.lax.while_loop(going, cycle, state)
    # Not the newest Ritz vectors: among equal eigenvalues those mix with unconverged copies.
    return *_measured(operator, sign, matmul(state.Y, state.V)), state


def _measured(operator: Any, sign: Array, X: Array) -> tuple[Array, Array, Array]:
    """Rayleigh quotients, vectors and residuals of unit rows, by products; sorted."""
    X = X / jnp.linalg.norm(X, axis=1, keepdims=True)
    images = operator(X)
    values = jnp.sum(X * images, axis=1)
    residuals = jnp.linalg.norm(images - values[:, None] * X, axis=1)
    order = jnp.argsort(sign * values)
    return values[order], X[order], residuals[order]


@functools.partial(jax.jit, static_argnames="k")
def _dense(operator, sign, k: int, identity):
    """All eigenpairs of a matrix that is no larger than the basis would be."""
    A = operator(identity)
    values, axes = jnp.linalg.eigh((A + A.T) / 2)
    order = jnp.argsort(sign * values)[:k]
    return *_measured(operator, sign, axes.T[order]), jnp.max(jnp.abs(values))


def _unchanged(block: Array, _: Array) -> Array:
    """No preconditioner."""
    return block


def extreme_pairs(
    operator: Any,
    size: int,
    k: int,
    key: Array,
    *,
    which: str = "smallest",
    preconditioner: Any = None,
    start: Array | None = None,
    norm: Any = 0.0,
    tol: float = 1e-10,
    max_products: int = 100_000,
    width: int | None = None,
) -> Eigenpairs:
    """The k smallest or largest eigenpairs of a symmetric operator, with their residuals.

    Matrices no larger than the basis would be (k + 10 blocks, two more for room) are formed and
    solved densely. Runs in JAX's default precision unless `start` has another.

    Args:
        operator: a `jax.tree_util.Partial` of a function of the module level and its arrays, so
            that one compilation serves all arrays of a shape; maps blocks (m, size) to blocks.
        size: number of variables.
        k: pairs wanted.
        key: a JAX PRNG key; draws the start and whatever is refilled.
        which: the end of the spectrum.
        preconditioner: a `Partial` of (block, θ), near |A − θ|⁻¹; changes the cost, never the
            result. None leaves block Lanczos.
        start: (k + width, size), the first block; None draws it.
        norm: an estimate of ‖A‖ from below, if there is one.
        tol: residuals are relative to the norm.
        max_products: the cap, tested after every block.
        width: vectors a block, 4 by default.

    Raises:
        Refused: k, width, tol, max_products or which out of range, or a start of wrong shape.
    """
    sizes, sign = plan(size, k, which, width), 1 if which == "smallest" else -1
    tol = check.real("tol", tol, above=0, below=1, also="relative to the norm")
    max_products = check.integer("max_products", max_products, 1, 2**31 - 1)
    rows = (k + sizes.width, size)
    if start is not None and start.shape != rows:
        raise Refused(f"got a start of shape {start.shape}; allowed: {rows}")
    if size < sizes.rows + 2 * sizes.width:
        dtype = float if start is None else start.dtype
        *pairs, norm = _dense(operator, sign, k, jnp.eye(size, dtype=dtype))
        return _packed(pairs, norm, tol, size + k, 0, True)
    draw, key = jax.random.split(key)
    start = jax.random.normal(draw, rows, float) if start is None else start
    norm = np.maximum(norm, norm_estimate(operator, size, draw))
    steer = preconditioner or jax.tree_util.Partial(_unchanged)
    *pairs, state = _solve(operator, steer, sign, sizes, start, key, norm, tol, max_products)
    products = int(state.products) + k
    return _packed(pairs, state.norm, tol, products, state.restarts, bool(state.done))


def _packed(pairs, norm, tol: float, products, restarts, done: bool) -> Eigenpairs:
    """The record, with its status; nothing counts as converged unless the whole search did."""
    values, vectors, residuals = pairs
    fine = np.asarray(residuals) <= tol * float(norm)
    if not np.isfinite(float(norm)) or not np.all(np.isfinite(np.asarray(values))):
        status = STATUSES[2]
    else:
        status = STATUSES[int(done and bool(np.all(fine)))]
    converged = jnp.asarray(fine & (status == STATUSES[1]))
    return Eigenpairs(
        values, vectors, residuals, converged, norm, jnp.asarray(products),
        jnp.asarray(restarts), status,
    )  # fmt: skip
