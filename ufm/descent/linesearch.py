"""A line search that compiles f once: bracketing and zooming in one loop.

    f(x + t p) ≤ f(x) + 10⁻⁴ t ⟨∇f(x), p⟩,   |⟨∇f(x + t p), p⟩| ≤ 0.9 |⟨∇f(x), p⟩|

the strong Wolfe conditions, by Algorithms 3.5 and 3.6 of Nocedal and Wright, *Numerical
Optimization*. Near a minimum, where f(x + t p) − f(x) is rounding, a condition on the slopes
replaces the first one: equations (23) and (27) of Hager and Zhang (2006), *ACM Transactions on
Mathematical Software* 32. The decisions are those of `optax.scale_by_zoom_linesearch`, whose
program contains f and ∇f three times, each as much to compile as the rest of the search.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

STEPS = 20
_DECREASE, _CURVATURE, _APPROXIMATE = 1e-4, 0.9, 1e-6
_SHORTEST = 1e-5  # length of a bracket below which any decrease is accepted
HIGHEST = jax.lax.Precision.HIGHEST

Point = Float[Array, "3"]  # t, f(x + t p), ⟨∇f(x + t p), p⟩


class _Line(NamedTuple):
    """The search so far.

    low, high: the ends of the bracket; high is at t = ∞ until there is one.
    last: the end that was replaced last.
    kept: the best point so far.  grad: ∇f there.  tried: how many evaluations.
    t: the next one to try.
    made: the decisions after the last one. They are stored for XLA, which would otherwise repeat
        them in ten kernels, one for each array that depends on them.
    """

    low: Point
    high: Point
    last: Point
    kept: Point
    grad: Any
    tried: Array
    going: Array
    t: Array
    made: tuple[Array, ...]


def search(
    evaluate: Callable[[Any], tuple[Array, Any]], params: Any, p: Any, value: Array, grad: Any
) -> tuple[Array, Array, Any]:
    """(t, f, ∇f) at the end of a search from x along p, which tries t = 1 first. Traceable.

    Args:
        evaluate: x ↦ (f, ∇f).
        params: x, any tree of arrays.
        p: the direction.
        value, grad: f, ∇f at x.

    Returns:
        t that satisfies the conditions of the module's docstring. If none is found within 20
        evaluations or in a bracket longer than 1e-5: the best t that satisfies the first one, else
        the last t tried; 0 if f is not finite at any of them.
    """
    zero = jnp.zeros((), value.dtype)
    begun = jnp.stack([zero, value, inner(grad, p)])

    def body(line: _Line) -> _Line:
        f, g = evaluate(jax.tree.map(lambda x, p: x + line.t * p, params, p))
        return _judged(line, begun, jnp.stack([line.t, f, inner(g, p)]), g)

    # Under vmap batched from the start like f: else it would trace the loop once more.
    mapped = jnp.isnan(value)
    none, tried, going, t = (
        jnp.where(mapped, x, x)
        for x in (jnp.full(3, jnp.inf, value.dtype), jnp.int32(0), True, zero + 1)
    )
    first = _Line(begun, none, none, begun, grad, tried, going, t, (going,) * 4)
    line = jax.lax.while_loop(lambda line: line.going, body, first)
    return line.kept[0], line.kept[1], line.grad


def _judged(line: _Line, begun: Point, new: Point, g: Any) -> _Line:
    """The search after an evaluation: (t, f, slope) and ∇f there."""
    low, high, _, kept, grad, tried, *_ = line
    zooming = high[0] < jnp.inf
    falls = _falls(begun, new)
    good = falls & (jnp.abs(new[2]) <= _CURVATURE * jnp.abs(begun[2]))
    # The new point replaces the far end of the bracket, or the near one.
    far = ~falls | ((new[1] >= low[1]) & (zooming | (tried > 0)))
    turned = ~far & (new[2] * (high[0] - low[0]) >= 0)
    ahead = jnp.where(far, new, jnp.where(turned, low, high))
    short = zooming & (jnp.abs(high[0] - low[0]) <= _SHORTEST)
    # The lowest of the points that satisfy the first condition; without a bracket the farthest.
    best = falls & (~zooming | (new[1] < kept[1]))
    ended = ~good & ((tried + 1 >= STEPS) | (short & (best | (kept[0] > 0))))
    stuck = ended & ~(kept[0] > 0) & jnp.isfinite(new[1] + new[2])
    take = good | best | stuck
    ends = jnp.where(far, low, new), ahead, jnp.where(far | turned, high, low)
    return _Line(
        *ends, jnp.where(take, new, kept),
        jax.tree.map(lambda g, old: jnp.where(take, g, old), g, grad),
        tried + 1, ~(good | ended), _next(*ends), (falls, far, turned, take),
    )  # fmt: skip


def _falls(begun: Point, new: Point) -> Array:
    """Whether f decreases enough, or stays within 1e-6 |f| while its slope becomes flatter."""
    t, f, slope = new
    enough = f - begun[1] - _DECREASE * t * begun[2] <= 0
    level = f - begun[1] - _APPROXIMATE * jnp.abs(begun[1]) <= 0
    flatter = slope - (2 * _DECREASE - 1) * begun[2] <= 0
    return (enough | (level & flatter)) & jnp.isfinite(slope)


def _next(low: Point, high: Point, last: Point) -> Array:
    """The next t: twice the last one; in a bracket the minimum of a cubic or else of a parabola.

    The middle of the bracket where these minima are near its ends.
    """
    (a, f_a, slope), (b, f_b, _), (c, f_c, _) = low, high, last
    B, C = b - a, c - a
    rise_b, rise_c = f_b - f_a - slope * B, f_c - f_a - slope * C
    unit = jnp.square(B * C) * (B - C)
    cube, square = (C**2 * rise_b - B**2 * rise_c) / unit, (B**3 * rise_c - C**3 * rise_b) / unit
    cubic = a + (jnp.sqrt(square**2 - 3 * cube * slope) - square) / (3 * cube)
    parabola = a - slope * B**2 / (2 * rise_b)
    left, width = jnp.minimum(a, b), jnp.abs(B)

    def inside(x, margin):
        return (x > left + margin * width) & (x < left + (1 - margin) * width)

    middle = jnp.where(inside(parabola, 0.1), parabola, (a + b) / 2)
    middle = jnp.where(inside(cubic, 0.2), cubic, middle)
    return jnp.where(b < jnp.inf, middle, jnp.where(a > 0, 2 * a, 1))


def inner(x: Any, y: Any) -> Array:
    """⟨x, y⟩ of two trees of arrays; one for every entry of the leading axis that only x has."""
    parts = jax.tree.map(lambda x, y: jnp.tensordot(x, y, y.ndim, precision=HIGHEST), x, y)
    return jax.tree.reduce(jnp.add, parts)
