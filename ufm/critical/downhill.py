"""L-BFGS from any start until Newton's method takes over, or to rounding; in float32 before that.

All descents run in coordinates (W/r, H r) in which λ_W and λ_H are nearly equal; their points are
returned in the coordinates of the problem.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.critical import convex, newton
from ufm.descent.lbfgs import Known
from ufm.descent.loop import Method, start, step
from ufm.model import objective as terms
from ufm.model import points
from ufm.model.problem import Params, Problem
from ufm.runtime import programs

_METHOD, _HYPER = Method("lbfgs", None, None), (0.0, 0.0)
# ‖∇f‖, in units of newton.scale at the start, at which Newton's method takes over. A step takes
# MINRES hundreds of products on large problems and L-BFGS one, so there the descent continues for
# longer (begun too early, MINRES stalled at K = d = 1000).
HANDOVER, HANDOVER_TO_MINRES = 1e-8, 1e-11
# The unit shrinks on the way, by far at decays below 1e-5. It is at most this many times the unit
# at the present point.
_SHRUNK = 1e4
# ‖∇f‖ at the end of a descent to rounding, in the same units. From the handover it takes about as
# many steps as up to there; it may take so many and a few more.
_ROUNDING, _MORE = 1e-15, 50
# A descent in float32 looks every so many steps whether it goes on, and ends after so many looks
# without progress.
_LOOK, _PATIENCE = 20, 5


class Reached(NamedTuple):
    """Where a descent ended: the point, the steps taken, ‖∇f‖ there."""

    params: Params
    steps: Any
    slope: Any


def stretched(problem: Problem, params: Params) -> tuple[Problem, Params, Array]:
    """(problem, point, r) in the coordinates (W/r, H r), r of `newton.ratio`. Traceable.

    In these, fifty steps do what would otherwise take thousands where one decay is a million times
    the other, and a quarter of the steps are enough where one is a hundred times the other.
    """
    r = newton.ratio(problem, params.W.dtype)
    problem = dataclasses.replace(problem, lam_W=problem.lam_W * r**2, lam_H=problem.lam_H / r**2)
    W, H, b = params.W / r, params.H * r, params.b
    # With decays so far apart the start is far from balanced as well: (W s, H/s) has a lower f.
    s = jnp.sqrt(newton.length(H) / newton.length(W))
    s = jnp.where((r != 1) & (s > 0) & jnp.isfinite(s), s, 1)
    return problem, Params(W * s, H / s, b), r


def _size(problem: Problem, params: Params) -> Array:
    return newton.scale(problem, params, terms.data_gradient(problem, params))


def in_float32(problem: Problem, params: Params, steps: Any) -> tuple[Params, Array, Array]:
    """L-BFGS in float32 until ‖∇f‖ is rounding: (point in float64, steps taken, scale at params).

    The start, and 0 steps, where that does not lower f. Traceable.
    """
    smooth, begun, r = stretched(problem, params)
    unit = _size(smooth, begun)
    begun = jax.tree.map(lambda x: x.astype(jnp.float32), begun)
    if convex.applies(smooth):
        begun = convex.step(smooth, begun)
    eps = jnp.finfo(jnp.float32).eps

    def going(carry):
        state, least, idle = carry
        small = least <= eps * _size(smooth, state.params)
        return ~small & (idle < _PATIENCE) & (state.step < steps)

    def ahead(_, pair):
        state = step(smooth, _METHOD, _HYPER, pair[0])
        return state, jnp.minimum(pair[1], terms.norm(state.opt_state[1].grad))

    def look(carry):
        state, least, idle = carry
        count = jnp.minimum(_LOOK, steps - state.step)
        state, lowest = jax.lax.fori_loop(0, count, ahead, (state, least))
        return state, lowest, jnp.where(lowest < least, 0, idle + 1)

    first = (start(smooth, begun, _METHOD, _HYPER), jnp.float32(jnp.inf), jnp.int32(0))
    state, *_ = jax.lax.while_loop(going, look, first)
    W, H, b = points.in_float64(state.params)
    found = Params(W * r, H / r, b)
    lower = terms.objective(problem, found) < terms.objective(problem, params)  # False for NaN
    found = jax.tree.map(lambda x, y: jnp.where(lower, x, y), found, params)
    return found, jnp.where(lower, state.step, 0), unit


def descend(
    problem: Problem,
    params: Params,
    steps: Any,
    handover: Any,
    unit: Any = None,
    to_rounding: bool = False,
) -> Reached:
    """L-BFGS from one start until Newton's method takes over. Traceable.

    Args:
        problem: with free features.
        params: where to start, in float64.
        steps: most steps.
        handover: ‖∇f‖ at the end, in units of `newton.scale` at the start.
        unit: that scale, if it is not the one at params.
        to_rounding: whether to go on from there to 1e-15 of the scale at the end, or the rounding
            of ∇f, for at most as many steps again and a few more.
    """
    smooth, begun, r = stretched(problem, params)

    def going(carry):
        state, slope, target, limit = carry
        return (slope > target) & (state.step < limit)

    def ahead(carry):
        state = step(smooth, _METHOD, _HYPER, carry[0])
        # The line search has evaluated the point that it chose.
        return state, terms.norm(state.opt_state[1].grad), *carry[2:]

    def nearer(carry):
        state, _, target, limit = jax.lax.while_loop(going, ahead, carry)
        # The line search knows them, but not at the start; the scale needs nearly all of it.
        at, memory = state.params, state.opt_state[0]
        G = terms.data_gradient(smooth, at)
        known = Known(terms.objective(smooth, at), terms.gradient(smooth, at, G))
        state, slope = state._replace(opt_state=(memory, known)), terms.norm(known.grad)
        size = newton.scale(smooth, at, G)
        floor = newton.floor(smooth, at, size)
        first = handover * (size if unit is None else unit)
        near = jnp.minimum(target, handover * _SHRUNK * size)
        near = jnp.maximum(jnp.where(target < jnp.inf, near, first), floor)
        near = jnp.where(near < jnp.inf, near, jnp.nan)  # overflow: nothing is near
        if to_rounding:
            close = slope <= near
            near = jnp.where(close, jnp.maximum(_ROUNDING * size, floor), near)
            more = jnp.minimum(2 * state.step + _MORE, limit)
            limit = jnp.where(close & (limit == steps), more, limit)
        return state, slope, near, limit

    # The first pass takes no step but finds f, ∇f (of the shapes of the start) and the target.
    unknown = jnp.full((), jnp.inf, begun.W.dtype)
    begin = start(smooth, begun, _METHOD, _HYPER, value=unknown, slope=begun)
    carry = (begin, unknown, unknown, jnp.asarray(steps, jnp.int32))
    state, *_ = jax.lax.while_loop(lambda x: going(x) | (x[2] == jnp.inf), nearer, carry)
    (W, H, b), g = state.params, state.opt_state[1].grad
    slope = terms.norm(Params(g.W / r, g.H * r, g.b))
    return Reached(Params(W * r, H / r, b), state.step, slope)


def from_many(problem: Problem, starts: Params, steps: int = 10_000) -> tuple[Params, Array]:
    """L-BFGS from many starts until Newton's method takes over: (points, steps taken).

    Args:
        problem: with free features.
        starts: stacked along a leading axis, in float64.
        steps: most steps.
    """
    handover = HANDOVER if problem.size <= newton.DENSE_SIZE else HANDOVER_TO_MINRES
    found = _for_many()(problem, starts, np.int32(steps), handover)
    return found.params, found.steps


@functools.cache
def _for_many() -> Callable:
    mapped = jax.vmap(descend, in_axes=(None, 0, None, None))
    return jax.jit(mapped, compiler_options=programs.options())
