"""A few extreme eigenpairs of a symmetric operator that is known only by its products.

    A v_j ≈ θ_j v_j,   ‖A v_j − θ_j v_j‖ ≤ tol ‖A‖,   the k smallest or the k largest

Block Lanczos with thick restarts (Wu and Simon 2000) and full reorthogonalisation, done twice, in
the form of Davidson (1975): the images of the basis are stored with it, so that the residual of
every Ritz pair is available and the next block may consist of any directions. These are the
residuals of the lowest pairs that have not converged (block Lanczos in exact arithmetic), possibly
multiplied by an approximate inverse of A − θ, or random directions where the Krylov space is
exhausted.

A residual r proves that some eigenvalue is within r of θ, and not that no eigenvalue is missing.
Therefore a solve does not end when k pairs have converged: a random block is added, and the search
continues for a further third of the steps. A missing copy of a multiple eigenvalue is found there
with probability near 1, which is a check and not a proof; `ufm.hessian.signs` counts exactly.

The operator is any symmetric one. Everything is one compiled loop; blocks of vectors are rows.
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
WIDTH = 4  # vectors in a block
STEPS = 8  # blocks between two restarts
NORM_STEPS = 10


class Eigenpairs(NamedTuple):
    """The result of a solve; the pairs are ordered from the wanted end inwards.

    values: (k,), Rayleigh quotients.  vectors: (k, size), orthonormal rows.
    residuals: (k,), ‖A v − θ v‖ with A applied once more at the end.
    converged: (k,), residual ≤ tol · norm, and the solve as a whole has converged.
    norm: a lower estimate of ‖A‖ from Ritz values.
    products: of A with one vector, in total.  restarts: of the basis.
    status: "converged"; "iteration_limit" (some pair, or the check for missing ones, needed more
        products than allowed); "not_finite" (the operator returned NaN or infinity).
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
    """Sizes of a solve.

    size: number of variables.  k: pairs wanted.  width: rows of a block.
    keep: rows of the basis after a restart.  rows: of the full basis.
    """

    size: int
    k: int
    width: int
    keep: int
    rows: int


class _State(NamedTuple):
    """V and its images (rows, size), T = V A Vᵀ, and the state of the search."""

    V: Array
    images: Array
    T: Array
    filled: Array
    key: Array
    norm: Array
    products: Array
    restarts: Array
    steps: Array
    settled: Array  # steps since the random block of the check was added, 0 before
    Y: Array  # coordinates of the k pairs in V at the last step
    done: Array


def plan(size: int, k: int, which: str) -> Sizes:
    """The sizes of a solve.

    Raises:
        Refused: k outside 1 … size, or an unknown end of the spectrum.
    """
    check.choice("which", which, ("smallest", "largest"))
    k = check.integer("k", k, 1, size, f"this operator has {size} eigenpairs")
    keep = k + 2 * WIDTH
    return Sizes(size, k, WIDTH, keep, keep + STEPS * WIDTH)


@functools.partial(jax.jit, static_argnames="size")
def norm_estimate(operator: Any, size: int, key: Array) -> Float[Array, ""]:
    """A lower estimate of ‖A‖, mostly within a few per cent: 10 Lanczos steps from a random start.

    Args:
        operator: a `jax.tree_util.Partial` from blocks (m, size) to blocks.
        size: number of variables.
        key: draws the start, in JAX's default precision.
    """
    v = jax.random.normal(key, (size,), float)
    v = v / jnp.linalg.norm(v)
    T = tridiagonal(lambda v: operator(v[None])[0], v, min(NORM_STEPS, size))
    return jnp.max(jnp.abs(jnp.linalg.eigvalsh(T)))


def _orthonormal(block: Array, V: Array, key: Array) -> Array:
    """Rows that span the block, orthonormal and orthogonal to V; random where it is dependent.

    Twice: subtract the projection on the rows of V, then diagonalise the Gram matrix of the
    normalised rows (Stathopoulos and Wu 2002). The remainder of a row in the span of V, or of
    dependent rows, is rounding and is redrawn.
    """
    eps = jnp.finfo(V.dtype).eps
    block, alive = _normed(block, 0.0)
    block = _redrawn(block, alive, key)
    for i in range(2):
        # Without the barrier XLA turns this into block Vᵀ, ten times as slow on CPUs.
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
    """Unit rows, 0 for those of length ≤ least or not finite, and a mask of the others."""
    length = jnp.linalg.norm(block, axis=1)
    alive = (length > least) & jnp.isfinite(length)
    scale = jnp.where(alive, 1 / jnp.where(alive, length, 1), 0)
    return jnp.where(alive[:, None], block, 0) * scale[:, None], alive


def _redrawn(block: Array, alive: Array, key: Array) -> Array:
    """The block with random rows of length about 1 in place of those that are not alive."""

    def redraw(block):
        noise = jax.random.normal(key, block.shape, block.dtype) / jnp.sqrt(block.shape[1])
        return jnp.where(alive[:, None], block, noise)

    return jax.lax.cond(jnp.all(alive), lambda x: x, redraw, block)


def _ritz(state: _State) -> tuple[Array, Array]:
    """Eigenpairs of T, with those of the rows that are not filled yet after all others."""
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
    """Test the lowest Ritz pairs for convergence, decide whether to end, add the next block."""
    values, axes = _ritz(state)
    known = jnp.arange(sizes.rows) < state.filled
    norm = jnp.maximum(state.norm, jnp.max(jnp.where(known, jnp.abs(values), 0)))
    lowest = sizes.k + sizes.width
    Y, theta = axes[:, :lowest].T, values[:lowest, None]
    residual = matmul(Y, state.images) - theta * matmul(Y, state.V)
    fine = jnp.linalg.norm(residual, axis=1) <= tol * norm
    fine = fine & (jnp.arange(lowest) < state.filled)
    wanted = jnp.all(fine[: sizes.k])
    settled = jnp.where(wanted, state.settled + 1, 0)
    done = (wanted & (settled > 3 + (state.steps - settled) // 3)) | ~jnp.isfinite(norm)
    order = jnp.argsort(fine, stable=True)[: sizes.width]
    key, draw = jax.random.split(state.key)
    block = _redrawn(residual[order], jnp.full(sizes.width, settled != 1), draw)
    block = preconditioner(block, values[0])
    state = state._replace(
        key=key, norm=norm, settled=settled, Y=Y[: sizes.k], done=done, steps=state.steps + 1
    )
    return _append(operator, state, block)


def _restart(sizes: Sizes, state: _State) -> _State:
    """The state with the lowest Ritz vectors and their images as its basis."""
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
    """The compiled loop for the smallest end of sign · A, then the pairs and their residuals."""
    dtype = start.dtype

    def signed(block):
        return sign * operator(block)

    def directions(block, theta):
        return preconditioner(block, sign * theta)

    number = functools.partial(jnp.asarray, dtype=jnp.int32)
    state = _State(
        V=jnp.zeros((sizes.rows, sizes.size), dtype),
        images=jnp.zeros((sizes.rows, sizes.size), dtype),
        T=jnp.zeros((sizes.rows, sizes.rows), dtype),
        filled=number(0), key=key, norm=jnp.asarray(norm, dtype), products=number(NORM_STEPS),
        restarts=number(0), steps=number(0), settled=number(0),
        Y=jnp.zeros((sizes.k, sizes.rows), dtype), done=jnp.asarray(False),
    )  # fmt: skip
    state = _append(signed, state, start)
    step = functools.partial(_step, signed, directions, sizes, tol)

    def unfinished(state):
        return ~state.done & ((state.products < limit) | (state.steps == 0))

    def fits(state):
        return unfinished(state) & (state.filled + sizes.width <= sizes.rows)

    def cycle(state):
        full = state.filled + sizes.width > sizes.rows
        state = jax.lax.cond(full, functools.partial(_restart, sizes), lambda x: x, state)
        return jax.lax.while_loop(fits, step, state)

    state = jax.lax.while_loop(unfinished, cycle, state)
    # Not the newest Ritz vectors: among equal eigenvalues these mix with unconverged copies.
    return *_measured(operator, sign, matmul(state.Y, state.V)), state


def _measured(operator: Any, sign: Array, X: Array) -> tuple[Array, Array, Array]:
    """Rayleigh quotients, vectors and residuals of the rows, from products with them; sorted."""
    X = X / jnp.linalg.norm(X, axis=1, keepdims=True)
    images = operator(X)
    values = jnp.sum(X * images, axis=1)
    residuals = jnp.linalg.norm(images - values[:, None] * X, axis=1)
    order = jnp.argsort(sign * values)
    return values[order], X[order], residuals[order]


@functools.partial(jax.jit, static_argnames="k")
def _dense(operator, sign, k: int, identity):
    """k eigenpairs of a matrix that is no larger than the basis would be, and its norm."""
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
    dense: int = 0,
) -> Eigenpairs:
    """The k smallest or largest eigenpairs of a symmetric operator, with their residuals.

    A matrix of fewer than k + 48 rows is formed and solved densely. Runs in JAX's default precision
    unless `start` has another. Method: Wu and Simon 2000; Davidson 1975.

    Args:
        operator: a `jax.tree_util.Partial` of a function of the module level and its arrays, so
            that one compilation serves all arrays of a shape; maps blocks (m, size) to blocks.
        size: number of variables.
        k: number of pairs wanted.
        key: a JAX PRNG key; draws the start and the random blocks.
        which: the end of the spectrum, "smallest" or "largest".
        preconditioner: a `Partial` of (block, θ), an approximation of |A − θ|⁻¹; it changes the
            cost, never the result. None is block Lanczos.
        start: (k + 4, size), the first block; None draws it.
        norm: a lower estimate of ‖A‖, if one is known.
        tol: on the residuals, relative to the norm.
        max_products: limit of products with one vector, tested after every block.
        dense: rows up to which a larger matrix is solved densely as well.

    Raises:
        Refused: k, tol, max_products or which out of range, or a start of wrong shape.
    """
    sizes, sign = plan(size, k, which), 1 if which == "smallest" else -1
    tol = check.real("tol", tol, above=0, below=1, also="relative to the norm")
    max_products = check.integer("max_products", max_products, 1, 2**31 - 1)
    rows = (k + sizes.width, size)
    if start is not None and start.shape != rows:
        raise Refused(f"got a start of shape {start.shape}; allowed: {rows}")
    if size < sizes.rows + 2 * sizes.width or size <= dense:
        dtype = jnp.zeros((), float).dtype if start is None else start.dtype
        *pairs, norm = _dense(operator, sign, k, np.eye(size, dtype=dtype))
        return _packed(pairs, norm, tol, size + k, 0, True)
    draw, key = jax.random.split(key)
    start = jax.random.normal(draw, rows, float) if start is None else start
    norm = np.maximum(norm, norm_estimate(operator, size, draw))
    approximate = preconditioner or jax.tree_util.Partial(_unchanged)
    *pairs, state = _solve(operator, approximate, sign, sizes, start, key, norm, tol, max_products)
    products = int(state.products) + k
    return _packed(pairs, state.norm, tol, products, state.restarts, bool(state.done))


def _packed(pairs, norm, tol: float, products, restarts, done: bool) -> Eigenpairs:
    """The result with its status; no pair counts as converged unless the whole search did."""
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
