"""Critical points over unit vectors: Newton's method for log f in tangents, down or to any index.

f falls exponentially in the inverse temperature τ, and with it every gradient: at τ = 40 all are
below any absolute tolerance long before a minimum. log f has the same critical points, its slope is
∇f/f and its second derivative Hess f/f − ∇f∇fᵀ/f². A step s in the frames of
`ufm.hessian.tangents`, (λ_j, v_j) the eigenpairs of that matrix and c_j = ⟨v_j, ∇log f⟩, is

    s = −Σ_j c_j/(|λ_j| + σ) v_j      down, taken where log f falls (σ is quartered, else times 4)
    s = −Σ_j λ_j c_j/(λ_j² + σ²) v_j  to a critical point of any index, taken where ‖∇log f‖ falls,

and x⁺ is x + s with all vectors normalised again. The samples of a class share one feature here,
that along their mean: some minimiser has this form, since for given W the best feature of one
sample is as good for the others of its class. Where f is so small that float64 loses its digits,
the search ends with the status "underflow". Everything is traceable and meant for float64.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ufm.check import Refused
from ufm.critical import newton
from ufm.critical.kkt import Reached
from ufm.critical.newton import Arrival, Polished, length
from ufm.hessian import tangents
from ufm.hessian.stationarity import POLISHED
from ufm.model import objective as terms
from ufm.model import quotient, sphere
from ufm.model.problem import Params, Problem

_HANDOVER = 1e-6  # ‖∇f‖, in units of newton.scale, from which on Newton's method takes over
_FIRST, _LEAST, _MOST = 1e-2, 1e-10, 1e10  # σ of the descent, in units of the largest |λ|
_SHORT = 1e-3  # length of a mean feature below which that of the first sample is taken


class _Point(NamedTuple):
    """A point with log f, its slope and second derivative in frames, and ‖∇f‖ and its units."""

    params: Params
    log: Array
    slope: Array
    matrix: Array
    rows: Array
    columns: Array
    residual: Array
    scale: Array
    rounding: Array


class _Loop(NamedTuple):
    at: _Point
    factor: Array
    newton_step: Array
    steps: Array
    status: Array
    residuals: Array


def check(problem: Problem) -> None:
    """Refuse problems too large for dense matrices.

    Raises:
        Refused: naming the number of tangents.
    """
    size = tangents.size(problem)
    if size > newton.DENSE_SIZE:
        raise Refused(
            f"got a problem of {size} tangents of unit vectors, one feature a class; allowed: "
            f"{newton.DENSE_SIZE}. Lower K or d, or use ufm.descend"
        )


def reach(problem: Problem, params: Params, steps: Array, newton_steps: Array) -> Reached:
    """From a start to a critical point with one feature a class, in all samples. Traceable.

    Args:
        problem: with features="sphere".
        params: a start.
        steps: most steps down, 0 for none.
        newton_steps: most steps of Newton's method.
    """
    small = sphere.merged(problem)
    means = quotient.class_means(problem, params.H)
    first = params.H[:, jnp.searchsorted(jnp.asarray(problem.labels), jnp.arange(problem.groups))]
    short = jnp.sum(means * means, axis=0) < _SHORT**2
    point = sphere.project(params._replace(H=jnp.where(short, first, means)))
    point, taken = downhill(small, point, steps)
    polished = polish(small, point, newton_steps)
    H = polished.params.H
    lifted = polished.params._replace(H=H[:, jnp.asarray(problem.labels)])
    G = terms.data_gradient(problem, lifted)
    residual = terms.norm(sphere.tangent(lifted, terms.gradient(problem, lifted, G)))
    u, v = sphere.multipliers(lifted.W, lifted.H, G)
    least = jnp.minimum(jnp.min(u), jnp.min(v))
    scale, zero = newton.scale(problem, lifted, G), newton.tolerance(problem, lifted, G)
    return Reached(lifted, residual, scale, zero, least, taken, polished)


def _at(problem: Problem, params: Params) -> _Point:
    G = terms.data_gradient(problem, params)
    f = sphere.unit(terms.objective(problem, params))  # NaN without digits
    rows, columns = sphere.frames(params.W), sphere.frames(params.H.T)
    whole = terms.gradient(problem, params, G)
    slope = sphere.in_frames(whole.W, whole.H, rows, columns)
    matrix = tangents.matrix(problem, params, rows, columns, G) / f
    matrix = matrix - jnp.outer(slope / f, slope / f)
    scale, rounding = newton.scale(problem, params, G), newton.rounding(problem, params)
    return _Point(
        params, jnp.log(f), slope / f, matrix, rows, columns, length(slope), scale, rounding
    )  # fmt: skip


def _moved(problem: Problem, at: _Point, s: Array) -> _Point:
    """The point after a step, which is shortened so that no vector moves by more than 1."""
    step = sphere.out_of_frames(problem, s, at.rows, at.columns)
    parts = jnp.concatenate([jnp.sum(step.W**2, axis=1), jnp.sum(step.H**2, axis=0)])
    share = 1 / jnp.maximum(1, jnp.sqrt(jnp.max(parts)))
    moved = jax.tree.map(lambda x, y: x + share * y, at.params, step)
    return _at(problem, sphere.project(moved))


def downhill(problem: Problem, params: Params, steps: Array) -> tuple[Params, Array]:
    """Steps that lower log f, until Newton's method takes over: (point, steps taken). Traceable."""

    def going(carry):
        at, factor, taken = carry
        near = at.residual <= jnp.maximum(_HANDOVER * at.scale, at.rounding)
        return ~near & (taken < steps) & (factor <= _MOST) & jnp.isfinite(at.log)

    def ahead(carry):
        at, factor, taken = carry
        values, axes = jnp.linalg.eigh(at.matrix)
        size = jnp.max(jnp.abs(values))
        c = axes.T @ at.slope
        s = -axes @ (c / (jnp.abs(values) + factor * size))
        new = _moved(problem, at, s)
        fell = new.log <= at.log + 1e-4 * jnp.vdot(at.slope, s)
        lost = jnp.isnan(new.log) & jnp.all(jnp.isfinite(new.params.W))  # f has no digits there
        at = jax.tree.map(lambda x, y: jnp.where(fell | lost, x, y), new, at)
        factor = jnp.where(fell, jnp.maximum(factor / 4, _LEAST), jnp.maximum(4 * factor, _FIRST))
        return at, factor, taken + 1

    begin = (_at(problem, params), jnp.asarray(_FIRST, params.W.dtype), jnp.int32(0))
    at, _, taken = jax.lax.while_loop(going, ahead, begin)
    return at.params, taken


def _zero(at: _Point) -> Scalar:
    """`newton.tolerance` at the point."""
    return jnp.maximum(POLISHED * at.scale, at.rounding)


def _arrived(at: _Point, factor: Scalar, steps: Array, limit: Array) -> Array:
    """The status of a polish, as a code of `Arrival`."""
    status = jnp.where(steps >= limit, Arrival.step_limit, Arrival.running)
    status = jnp.where(factor > 1e9, Arrival.stalled, status)
    status = jnp.where(at.residual <= _zero(at), Arrival.converged, status)
    status = jnp.where(jnp.isfinite(at.log), status, Arrival.underflow)
    return status.astype(jnp.int32)


def polish(problem: Problem, params: Params, limit: Array) -> Polished:
    """Newton's method for ∇log f = 0 from one start. Traceable.

    Args:
        problem: with one feature a class (`sphere.merged`).
        params: where to start, unit vectors in float64.
        limit: most steps; may be traced.
    """

    def body(state: _Loop) -> _Loop:
        at = state.at
        values, axes = jnp.linalg.eigh(at.matrix)
        size = length(at.slope)
        sigma = jnp.maximum(state.factor * size, newton.FLOOR * jnp.max(jnp.abs(values)))
        s = -axes @ (values / (values**2 + sigma**2) * (axes.T @ at.slope))
        new = _moved(problem, at, s)
        better = length(new.slope) < (1 - 1e-4) * size  # False for NaN
        at = jax.tree.map(lambda x, y: jnp.where(better, x, y), new, at)
        factor = jnp.where(better, jnp.maximum(state.factor / 8, 1e-3), state.factor * 8)
        steps = state.steps + 1
        residuals = state.residuals.at[steps].set(at.residual, mode="drop")
        return _Loop(
            at, factor, length(s), steps, _arrived(at, factor, steps, limit), residuals
        )  # fmt: skip

    at, none = _at(problem, params), jnp.int32(0)
    one = jnp.ones((), params.W.dtype)
    residuals = jnp.full(newton.RECORDS, jnp.nan, one.dtype).at[0].set(at.residual)
    first = _Loop(at, one, 0 * one, none, _arrived(at, one, none, limit), residuals)
    last = jax.lax.while_loop(lambda state: state.status == Arrival.running, body, first)
    return Polished(
        last.at.params, last.at.residual, _zero(last.at), last.newton_step, last.steps,
        last.status, last.residuals,
    )  # fmt: skip
