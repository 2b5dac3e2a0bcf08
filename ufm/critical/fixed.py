"""Newton's method in (H, b) for a fixed classifier: a convex problem whose Hessian is an arrow.

With w_j, ω_j of the merged columns j and S_j = ∇²ℓ_j at their logits,

    A_j = w_j WᵀS_jW + λ_H ω_j I,    C_j = w_j WᵀS_j,    D = Σ_j w_j S_j + λ_b I,

the columns are coupled by b only, so a step costs one factorisation of d rows for each column and
one of K rows, of the Schur complement D − Σ_j C_jᵀA_j⁻¹C_j. Steps are halved until f or ‖∇f‖
decreases. W does not change. Everything is traceable and meant for float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Scalar

from ufm.check import Refused
from ufm.critical.newton import COARSEST, EPS, RECORDS, Arrival, Polished, length
from ufm.hessian.stationarity import POLISHED
from ufm.linalg.products import matmul
from ufm.model import magnitudes
from ufm.model import objective as terms
from ufm.model.problem import Params, Problem

LARGEST = 2**31  # bytes of all blocks together
_HALVINGS = 40


class _Loop(NamedTuple):
    params: Params
    value: Array
    slope: Params
    tolerance: Array
    newton_step: Array
    steps: Int[Array, ""]
    status: Int[Array, ""]
    residuals: Float[Array, " records"]


def check(problem: Problem) -> None:
    """Refuse problems that the method cannot solve.

    Args:
        problem: of the merged columns.

    Raises:
        Refused: a loss that is not convex, blocks beyond 2 GiB.
    """
    if not problem.loss.convex:
        raise Refused(
            f"got the loss {type(problem.loss).__name__} with a fixed classifier; allowed: a "
            "convex loss, for which the problem in (H, b) is convex. Use ufm.descend"
        )
    K, d, G = problem.K, problem.d, problem.groups
    size = 8 * G * max(K, d) ** 2
    if size > LARGEST:
        raise Refused(
            f"got K={K}, d={d} and {G} columns, whose blocks take {size / 2**30:.1f} GiB; allowed: "
            f"{LARGEST / 2**30:.0f} GiB. Use ufm.descend with 'lbfgs'"
        )


def scale(problem: Problem, params: Params, G: Float[Array, "K N"]) -> Scalar:
    """(‖W‖ + √N)‖G‖ + λ_H‖HΩ‖ + λ_b‖b‖: size of the terms that cancel in ∇f = 0.

    Without a bias √N is replaced by ε√N, as in `ufm.critical.newton.scale`.
    """
    lams = terms.decays(problem, G.dtype)
    decay = length(lams.H * params.H) + lams.b * length(params.b)
    return _pull(problem, params) * length(G) + decay


def _pull(problem: Problem, params: Params) -> Scalar:
    """The factor of ‖G‖ in `scale`."""
    return length(params.W) + problem.N**0.5 * (1.0 if problem.bias else EPS)


def tolerance(problem: Problem, params: Params, G: Float[Array, "K N"]) -> Scalar:
    """‖∇f‖ up to which a point is critical to rounding, as `ufm.critical.newton.tolerance`."""
    R = terms.residual(problem, params, problem.labels)
    E = magnitudes.gradient_rounding(problem, params, R)
    size, rounding = scale(problem, params, G), _pull(problem, params) * length(E)
    return jnp.maximum(POLISHED * size, jnp.minimum(rounding, COARSEST * size))


def _blocks(problem: Problem, params: Params) -> tuple[Array, Array, Array]:
    """(A_j (N, d, d), C_j (N, d, K), D (K, K)) of the module's docstring."""
    W, dtype, K = params.W, params.W.dtype, problem.K
    S = problem.loss.curvature(terms.logits(problem, params), problem.target(problem.labels))
    units = jnp.broadcast_to(jnp.eye(K, dtype=dtype)[:, :, None], (K, K, problem.N))
    S = jnp.moveaxis(terms.weighed(problem, S.prepared().apply(units), problem.labels), -1, 0)
    lams = terms.decays(problem, dtype)
    C = jnp.einsum("kd,jkl->jdl", W, S, precision=jax.lax.Precision.HIGHEST)
    A = matmul(C, W)
    diagonal = jnp.broadcast_to(lams.H, (problem.N,))
    A = A + diagonal[:, None, None] * jnp.eye(problem.d, dtype=dtype)
    return A, C, jnp.sum(S, axis=0) + lams.b * jnp.eye(K, dtype=dtype)


def step(problem: Problem, params: Params, slope: Params) -> Params:
    """The Newton step −(∇²f)⁻¹∇f in (H, b), 0 in W; slope is ∇f there.

    Of least length in b, along which f may be constant (shifts of the logits if λ_b = 0).
    """
    A, C, D = _blocks(problem, params)
    columns = slope.H.T[:, :, None]  # (N, d, 1)
    root = jnp.linalg.cholesky(A)

    def solved(X):
        return jax.scipy.linalg.cho_solve((root, True), X)

    inner, step_b = solved(columns), jnp.zeros_like(slope.b)
    if problem.bias:
        carried = solved(C)
        schur = D - jnp.einsum("jdk,jdl->kl", C, carried, precision=jax.lax.Precision.HIGHEST)
        values, axes = jnp.linalg.eigh((schur + schur.T) / 2)
        floor = 16 * problem.K * EPS * jnp.max(jnp.abs(jnp.diagonal(D)))
        right = slope.b - jnp.einsum("jdk,jd->k", C, inner[:, :, 0])
        parts = matmul(axes.T, right[:, None])[:, 0]
        held = jnp.where(values > floor, parts / jnp.where(values > floor, values, 1), 0)
        step_b = -matmul(axes, held[:, None])[:, 0]
        inner = inner + jnp.einsum("jdk,k->jd", carried, step_b)[:, :, None]
    return Params(jnp.zeros_like(slope.W), -inner[:, :, 0].T, step_b)


def _at(problem: Problem, params: Params) -> tuple[Array, Params, Array]:
    """(f, ∇f, `tolerance`) at a point."""
    G = terms.data_gradient(problem, params)
    slope = terms.gradient(problem, params, G)
    return terms.objective(problem, params), slope, tolerance(problem, params, G)


def _ahead(problem: Problem, state: _Loop, limit) -> _Loop:
    """The state after one step, or with status "stalled"."""
    s, before = step(problem, state.params, state.slope), terms.norm(state.slope)
    descent = sum(jnp.vdot(x, y) for x, y in zip(state.slope, s, strict=True))
    told = descent < -64 * EPS * jnp.abs(state.value)  # below that, the change of f is rounding

    def tried(t):
        point = jax.tree.map(lambda x, y: x + t * y, state.params, s)
        value, slope, zero = _at(problem, point)
        lower = told & (value <= state.value + 1e-4 * t * descent)
        # Not in proportion to t: at the level of rounding any t makes it a little smaller.
        flatter = terms.norm(slope) <= (1 - 1e-4) * before
        return (point, value, slope, zero), lower | flatter

    def halved(carry):
        return carry[0] / 2, *tried(carry[0] / 2)

    one = jnp.ones((), before.dtype)
    _, new, good = jax.lax.while_loop(
        lambda carry: ~carry[2] & (carry[0] > 2.0**-_HALVINGS), halved, (one, *tried(one))
    )
    old = (state.params, state.value, state.slope, state.tolerance)
    params, value, slope, zero = jax.tree.map(lambda x, y: jnp.where(good, x, y), new, old)
    steps = state.steps + 1
    residuals = state.residuals.at[steps].set(terms.norm(slope), mode="drop")
    status = jnp.where(good, _status(slope, zero, steps, limit), Arrival.stalled)
    return _Loop(params, value, slope, zero, terms.norm(s), steps, status, residuals)


def _status(slope: Params, zero: Array, steps: Array, limit) -> Array:
    status = jnp.where(steps >= limit, Arrival.step_limit, Arrival.running)
    arrived = terms.norm(slope) <= zero
    return jnp.where(arrived, Arrival.converged, status).astype(jnp.int32)


def polish(problem: Problem, params: Params, limit=100) -> Polished:
    """From any params to the global minimiser for their W, as `ufm.critical.newton.polish`.

    Args:
        problem: with a fixed classifier and a convex loss, λ_H > 0.
        params: where to start; H = 0, b = 0 is the start instead if f is lower there.
        limit: most steps; may be traced.
    """
    # Where the softmax is saturated in favour of a wrong class, ∇²f has no curvature for a step.
    origin = Params(params.W, jnp.zeros_like(params.H), jnp.zeros_like(params.b))
    far = terms.objective(problem, origin) < terms.objective(problem, params)
    params = jax.tree.map(lambda x, y: jnp.where(far, x, y), origin, params)
    value, slope, zero = _at(problem, params)
    residuals = jnp.full(RECORDS, jnp.nan, params.W.dtype).at[0].set(terms.norm(slope))
    none, untried = jnp.int32(0), jnp.zeros((), params.W.dtype)
    status = _status(slope, zero, none, limit)
    first = _Loop(params, value, slope, zero, untried, none, status, residuals)
    last = jax.lax.while_loop(
        lambda state: state.status == Arrival.running,
        lambda state: _ahead(problem, state, limit),
        first,
    )
    return Polished(
        last.params, terms.norm(last.slope), last.tolerance, last.newton_step, last.steps,
        last.status, last.residuals,
    )  # fmt: skip
