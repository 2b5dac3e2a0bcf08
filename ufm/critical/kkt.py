"""Stationary points with H ≥ 0: projected descent, then Newton's method on the free variables.

For given W and b each feature is the unique minimiser of a strongly convex function over h ≥ 0 (for
a convex loss), so the samples of a class are equal at every stationary point. The search is
therefore for class means (`ufm.model.quotient`), in all d dimensions, since rotations would not
keep the zeros.

1. Spectral projected gradients (Birgin, Martínez and Raydan 2000): x⁺ = x + t(P(x − α∇f) − x) with
   the step α of Barzilai and Borwein and t halved until f is below the largest of the last ten.
2. Newton steps s(σ) of `ufm.critical.newton` in W, b and F = {h > 0} ∪ {h = 0, ∂f/∂h < 0}: zeros
   with a negative multiplier are released. Entries that would become negative leave F and are set
   to 0, and the step is solved for again until there are none, so that W and b are consistent with
   the features after the step. (Clamping alone stalls where multipliers are 0, as for the squared
   error without a bias, for which ∂f/∂h = 0 at every zero: ∇²f vanishes along rotations there, and
   half of the step along one leaves H ≥ 0.) Every accepted step lowers the norm of the projected
   gradient, to which σ is proportional.

Everything is traceable and meant for float64.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Scalar

from ufm.check import Refused
from ufm.critical import newton
from ufm.critical.newton import FLOOR, Polished, length
from ufm.hessian.curvature import flatten, matrix, unflatten
from ufm.model import layers, quotient
from ufm.model import objective as terms
from ufm.model.problem import Params, Problem

_MEMORY = 10  # values of f that a step may not exceed
_HANDOVER = 1e-7  # projected gradient, in units of newton.scale, at which Newton takes over
_ARMIJO, _LEAST, _MOST = 1e-4, 1e-10, 1e10


class Reached(NamedTuple):
    """A stationary point of the large problem, and how it was found.

    params, residual, scale: as in `ufm.Solution`.
    tolerance: `newton.tolerance` at params.
    multiplier: the smallest ∂f/∂h at a zero of H, infinite where there is none.
    taken: steps of descent.  polished: the result of Newton's method, for the class means.
    """

    params: Params
    residual: Scalar
    scale: Scalar
    tolerance: Scalar
    multiplier: Scalar
    taken: Array
    polished: Polished


def check(problem: Problem) -> None:
    """Refuse problems too large for dense matrices.

    Raises:
        Refused: naming the number of variables.
    """
    size = quotient.of_width(problem, problem.d).size
    if size > newton.DENSE_SIZE:
        raise Refused(
            f"got a problem of {size} variables of class means with features="
            f"{problem.features!r}; allowed: {newton.DENSE_SIZE}. Lower K or d, or use ufm.descend"
        )


def reach(problem: Problem, params: Params, steps: Any, newton_steps: Any) -> Reached:
    """From a start to a stationary point, by way of the class means. Traceable.

    Args:
        problem: with H ≥ 0.
        params: a start.
        steps: most steps of descent, 0 for none; may be traced.
        newton_steps: most steps of Newton's method; may be traced.
    """
    small = quotient.of_width(problem, problem.d)
    point = params._replace(H=quotient.class_means(problem, params.H))
    point, taken = downhill(small, point, steps)
    polished = polish(small, point, newton_steps)
    H = polished.params.H
    H = H if problem.groups == problem.N else H[:, problem.labels]
    lifted = polished.params._replace(H=H)
    G = terms.data_gradient(problem, lifted)
    slope = terms.gradient(problem, lifted, G)
    residual = terms.norm(layers.slope(problem, lifted, slope))
    least = jnp.min(jnp.where(H > 0, jnp.inf, slope.H))
    scale, zero = newton.scale(problem, lifted, G), newton.tolerance(problem, lifted, G)
    return Reached(lifted, residual, scale, zero, least, taken, polished)


def _slope(problem: Problem, params: Params, G: Array) -> tuple[Params, Params]:
    """(∇f, the projected gradient) at a point, from G there."""
    g = terms.gradient(problem, params, G)
    return g, layers.slope(problem, params, g)


def _dot(x: Params, y: Params) -> Scalar:
    return sum((jnp.vdot(a, b) for a, b in zip(x, y, strict=True)), jnp.zeros(()))


class _Descent(NamedTuple):
    x: Params
    g: Params
    alpha: Array
    values: Array
    near: Array
    step: Array


def downhill(problem: Problem, params: Params, steps: Any) -> tuple[Params, Array]:
    """Spectral projected gradients from one start until Newton's method takes over. Traceable.

    In the coordinates of `newton.stretch`, in which H ≥ 0 means the same.

    Args:
        problem: with H ≥ 0.
        params: where to start.
        steps: most steps; may be traced.

    Returns:
        (the last point, the number of steps).
    """
    r = newton.stretch(problem, params.W.dtype)
    problem = dataclasses.replace(problem, lam_W=problem.lam_W * r**2, lam_H=problem.lam_H / r**2)
    x = layers.project(problem, Params(params.W / r, params.H * r, params.b))

    def at_point(x):
        G = terms.data_gradient(problem, x)
        g, held = _slope(problem, x, G)
        size = newton.scale(problem, x, G)
        near = jnp.maximum(_HANDOVER * size, newton.floor(problem, x, size))
        return g, held, terms.norm(held) <= near

    def ahead(state: _Descent) -> _Descent:
        moved = jax.tree.map(lambda x, g: x - state.alpha * g, state.x, state.g)
        d = jax.tree.map(jnp.subtract, layers.project(problem, moved), state.x)
        downwards, most = _dot(state.g, d), jnp.max(state.values)

        def at(t):
            return jax.tree.map(lambda x, d: x + t * d, state.x, d)

        def high(carry):
            t, value = carry
            return ~(value <= most + _ARMIJO * t * downwards) & (t > 1e-12)

        def shorter(carry):
            t = carry[0] / 2
            return t, terms.objective(problem, at(t))

        one = jnp.ones((), x.W.dtype)
        t, value = jax.lax.while_loop(high, shorter, (one, terms.objective(problem, at(one))))
        new = layers.project(problem, at(t))
        g, _, near = at_point(new)
        s = jax.tree.map(jnp.subtract, new, state.x)
        bent = _dot(s, jax.tree.map(jnp.subtract, g, state.g))
        alpha = jnp.where(bent > 0, _dot(s, s) / jnp.where(bent > 0, bent, 1), 10 * state.alpha)
        values = jnp.roll(state.values, 1).at[0].set(value)
        return _Descent(new, g, jnp.clip(alpha, _LEAST, _MOST), values, near, state.step + 1)

    g, held, near = at_point(x)
    value = terms.objective(problem, x)
    values = jnp.full(_MEMORY, -jnp.inf, value.dtype).at[0].set(value)
    alpha = 1 / jnp.maximum(terms.norm(held), 1e-12)
    begin = _Descent(x, g, alpha, values, near, jnp.int32(0))
    last = jax.lax.while_loop(lambda state: ~state.near & (state.step < steps), ahead, begin)
    W, H, b = last.x
    return Params(W * r, H / r, b), last.step


def polish(problem: Problem, params: Params, limit: Any = 100) -> Polished:
    """Newton's method on the free variables from one start. Traceable.

    Args:
        problem: of class means; decays may be mapped over.
        params: where to start; its dtype should be float64.
        limit: most steps; may be traced.
    """
    D = newton.units(problem, params.W.dtype)

    def measured(x):
        point = unflatten(problem, x)
        G = terms.data_gradient(problem, point)
        g, held = _slope(problem, point, G)
        free = point._replace(
            W=jnp.ones_like(point.W, bool), H=(point.H > 0) | (g.H < 0),
            b=jnp.ones_like(point.b, bool),
        )  # fmt: skip
        return flatten(problem, held), newton.tolerance(problem, point, G), flatten(problem, free)

    none = jnp.full((problem.K, problem.d), -jnp.inf), jnp.full(problem.K, -jnp.inf)

    def step(x, held, factor):
        free, point = measured(x)[2], unflatten(problem, x)
        M = matrix(problem, point) * D * D[:, None]
        sigma = factor * length(D * held) / (1 + length(x / D))
        least = flatten(problem, Params(none[0], -point.H, none[1])) / D

        def ahead(carry):
            free, *_ = carry
            to_zero = jnp.where(free, 0, least)
            inner = jnp.where(free & free[:, None], M, 0)
            shift = jnp.maximum(sigma, FLOOR * jnp.max(jnp.sum(jnp.abs(inner), axis=1)))
            shifted = inner + jnp.diag(jnp.where(free, 1j * shift, 1))
            g = jnp.where(free, D * held + M @ to_zero, 0)
            s = to_zero - jnp.linalg.solve(shifted, g.astype(shifted.dtype)).real
            below = free & (s < least)
            return free & ~below, s, jnp.any(below)

        first = (free, jnp.zeros_like(x), jnp.ones((), bool))
        return D * jax.lax.while_loop(lambda carry: carry[2], ahead, first)[1]

    def moved(x, s):
        return flatten(problem, layers.project(problem, unflatten(problem, x + s)))

    return newton.iterate(
        problem,
        flatten(problem, layers.project(problem, params)),
        lambda x: measured(x)[:2],
        step,
        limit,
        moved,
    )
