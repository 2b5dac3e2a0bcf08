"""Gradient descent, heavy ball and Nesterov's method with a step that is tested before it is taken.

With u the velocity in units of length, β the momentum and η the step size, one step tries

    u⁺ = βu + η∇f,   x⁺ = x − u⁺  (heavy ball),   x⁺ = x − (η∇f + βu⁺)  (Nesterov),

and accepts it if the energy E = f + (c/η)‖u‖² decreases enough,

    f(x⁺) + (1/2η)‖u⁺‖² ≤ f(x) + (c/η)‖u‖²,   c = β/2 (heavy ball), (1+β)/4 (Nesterov);

otherwise it halves η and tries again. Heavy ball with β = 0 is plain gradient descent with Armijo's
rule, f(x⁺) ≤ f(x) − (η/2)‖∇f‖². The left side is E⁺ + (κ/η)‖u⁺‖², κ = 1/2 − c ≥ 0: E decreases at
every step that moves, and f never exceeds f(x_0). Where η changes, u is multiplied by √(η⁺/η) if
that is below 1, so that E does not increase by the change.

The test is passed wherever the curvature between x and x⁺ is at most L and η ≤ (1−β)/L: for heavy
ball since f(x⁺) ≤ f − ⟨∇f, u⁺⟩ + (L/2)‖u⁺‖² and η∇f = u⁺ − βu; for Nesterov the difference of the
two sides is a quadratic form in (u⁺, u), at most −((1−β)/4η)‖u‖² there. So η stays above half of
(1−β)/L(f(x_0)), with L the bound of `ufm.descent.optimizers` on the sublevel set, which no step
leaves; and where the landscape is flatter than that bound, as it mostly is, η grows.

Where the terms of the test are of the size of the rounding of f, the test decides nothing. Such a
step is taken, and the next gradient gives the mean curvature along it,

    q = ⟨∇f(x⁺) − ∇f(x), x⁺ − x⟩/‖x⁺ − x‖².

η is halved if q > (1−β)/η, and grows otherwise.

f at the accepted point is stored, and lengths are computed from earlier ones: ‖βu + η∇f‖ from ‖u‖,
‖∇f‖ and ⟨∇f, u⟩. So a tested step costs one more value of f and a few more sums over H than an
untested one.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from ufm.descent.transformation import Transformation
from ufm.model.objective import norm

GROWTH, FIRST = 1.1, 2.0  # factors by which η grows: FIRST until a test fails for the first time
TRIALS = 1100  # most halvings in one step: from 1 to below every normal number
BLIND = 64.0  # the test decides where its terms exceed so many units of the rounding of f


class Pace(NamedTuple):
    """The state on which the next step depends.

    eta: η.  growth: the factor by which η grows before the next trial.
    value: f at the point, NaN before the first step.
    move: x⁺ − x of the last step, which is −u for heavy ball.  slope: ⟨∇f, move⟩ at its start.
    velocity: u for Nesterov's method, () for the others.  lengths: ‖move‖, ‖u‖.
    blind: whether rounding decided the test of the last step.
    """

    eta: Array
    growth: Array
    value: Array
    move: Any
    slope: Array
    velocity: Any
    lengths: tuple[Array, Array]
    blind: Array


class _Seen(NamedTuple):
    """The numbers from which lengths of steps are computed.

    grad: ‖∇f‖.  move, velocity: ‖move‖ and ‖u‖ of the last step.  along_move: ⟨∇f, move⟩.
    along: ⟨∇f, u⟩, for heavy ball and Nesterov's method.
    """

    grad: Array
    move: Array
    velocity: Array
    along_move: Array
    along: Array


def adaptive(first: Any, momentum: Any, name: str) -> Transformation:
    """The methods of the module's docstring as an optax transformation.

    `update` needs value and value_fn, f at params and f as a function; it also takes project, the
    projection on the points of the problem where these are constrained.

    Args:
        first: half of the first η tried.
        momentum: β in [0, 1); 0 for "gd".
        name: "gd", "heavy_ball" or "nesterov".
    """
    share = (1 + momentum) / 4 if name == "nesterov" else momentum / 2

    def update(updates, state, params, *, value, value_fn, project=None, **_: Any):
        seen = _seen(name, updates, state, project is not None)
        speed = jnp.zeros_like(value) if name == "gd" else seen.velocity
        ahead = partial(_ahead, name, momentum, updates, state, params, project)

        def trial(eta):
            """(whether a step passes, whether rounding decides, f(x⁺), (‖x⁺ − x‖, ‖u⁺‖))."""
            point, move, _ = ahead(eta)
            there = value_fn(point)
            lengths = _lengths(name, momentum, seen, state, eta)
            if project is not None:
                lengths = (norm(move),) * 2
            # A factor at a time: squares may leave the numbers where these products do not.
            kept = speed / jnp.maximum(state.eta, eta) * speed * share
            added = lengths[1] / eta * lengths[1] / 2
            passed, blind = _tested(value, kept, there, added)
            return passed | ~jnp.isfinite(seen.grad), blind, there, lengths

        def again(carry):
            eta, count = carry[:2]
            eta = jnp.where(count == 0, eta, eta / 2)
            return eta, count + 1, *trial(eta)

        begun, mapped = state.eta * _growth(momentum, seen, state), jnp.isnan(value)
        # Under vmap batched from the start like f: else it would trace the loop once more.
        count, no = (jnp.where(mapped, x, x) for x in (jnp.int32(0), False))
        begin = (begun, count, no, no, value, state.lengths)
        eta, count, _passed, blind, there, lengths = jax.lax.while_loop(
            lambda carry: ~carry[2] & (carry[1] < TRIALS), again, begin
        )
        growth = jnp.where(count == 1, state.growth, GROWTH).astype(eta.dtype)
        _, move, u = ahead(eta)
        slope = _slope(name, momentum, seen, state, eta)
        if project is not None:
            slope = _dot(updates, move)
        return move, Pace(eta, growth, there, move, slope, u, lengths, blind)

    return Transformation(partial(_begun, first, name), update)


def _begun(first: Any, name: str, params: Any) -> Pace:
    """Before the first step."""
    zero = jnp.zeros((), jnp.result_type(*jax.tree.leaves(params)))
    none = jax.tree.map(jnp.zeros_like, params)
    u = none if name == "nesterov" else ()
    no = jnp.asarray(False)
    return Pace(zero + first, zero + FIRST, zero + jnp.nan, none, zero, u, (zero, zero), no)


def _ahead(
    name: str, momentum: Any, grad: Any, state: Pace, params: Any, project: Any, eta: Array
) -> tuple[Any, Any, Any]:
    """(x⁺, x⁺ − x, u⁺) with a step η."""
    move, u = _stepped(name, momentum, grad, state, eta)
    there = jax.tree.map(jnp.add, params, move)
    if project is not None:
        there = project(there)
        move = jax.tree.map(jnp.subtract, there, params)
    return there, move, u


def _tested(value: Array, kept: Array, there: Array, added: Array) -> tuple[Array, Array]:
    """(whether f(x⁺) + added ≤ f(x) + kept, whether rounding decides)."""
    unit = BLIND * jnp.finfo(value.dtype).eps * jnp.abs(value)
    blind = kept + added <= unit
    return jnp.where(blind, there <= value + unit, there + added <= value + kept), blind


def _seen(name: str, grad: Any, state: Pace, projected: bool) -> _Seen:
    """At most three sums over a point. A projection may have changed the velocity of a step."""
    move, velocity = state.lengths
    if projected:
        move = velocity = norm(state.move)
    along_move = _dot(grad, state.move)
    along = _dot(grad, state.velocity) if name == "nesterov" else -along_move
    return _Seen(norm(grad), move, velocity, along_move, along)


def _kept(momentum: Any, state: Pace, eta: Array) -> Array:
    """The factor of u: β, smaller where η decreases."""
    return momentum * jnp.minimum(1, jnp.sqrt(eta / state.eta))


def _stepped(name: str, momentum: Any, grad: Any, state: Pace, eta: Array) -> tuple[Any, Any]:
    """(x⁺ − x before projection, u⁺) with a step η; u⁺ is () where no velocity is stored."""
    if name == "gd":
        return jax.tree.map(lambda g: -eta * g, grad), ()
    kept = _kept(momentum, state, eta)
    if name == "heavy_ball":
        return jax.tree.map(lambda v, g: kept * v - eta * g, state.move, grad), ()
    u = jax.tree.map(lambda u, g: kept * u + eta * g, state.velocity, grad)
    return jax.tree.map(lambda u, g: -(eta * g + momentum * u), u, grad), u


def _parts(name: str, momentum: Any, state: Pace, eta: Array) -> tuple[Any, Any]:
    """(a, c) of x⁺ − x = −(a∇f + cu)."""
    kept = 0 if name == "gd" else _kept(momentum, state, eta)
    return ((1 + momentum) * eta, momentum * kept) if name == "nesterov" else (eta, kept)


def _lengths(name: str, momentum: Any, seen: _Seen, state: Pace, eta: Array) -> tuple[Array, Array]:
    """(‖x⁺ − x‖, ‖u⁺‖) of a step without projection."""
    if name == "gd":
        return eta * seen.grad, eta * seen.grad
    cosine = seen.along / seen.grad / seen.velocity
    # NaN is 0/0 at the first step; beyond ±1 by rounding, or where the sum over- or underflowed.
    cosine = jnp.clip(jnp.where(jnp.isnan(cosine), 0, cosine), -1, 1)

    def length(a, c):
        """‖a∇f + cu‖."""
        x, y = a * seen.grad, c * seen.velocity
        most = jnp.maximum(x, y)
        most = jnp.where(most > 0, most, 1)
        x, y = x / most, y / most
        return most * jnp.sqrt(jnp.maximum(x * x + y * y + 2 * cosine * x * y, 0))

    return length(*_parts(name, momentum, state, eta)), length(eta, _kept(momentum, state, eta))


def _slope(name: str, momentum: Any, seen: _Seen, state: Pace, eta: Array) -> Array:
    """⟨∇f, x⁺ − x⟩ of a step without projection."""
    a, c = _parts(name, momentum, state, eta)
    return -(a * seen.grad * seen.grad + c * seen.along)


def _growth(momentum: Any, seen: _Seen, state: Pace) -> Array:
    """The factor by which η grows before the next trial."""
    length = seen.move
    turned = (seen.along_move - state.slope) / length  # q‖x⁺ − x‖
    steep = state.blind & (turned > (1 - momentum) * (length / state.eta))
    return jnp.where(steep, 0.5, jnp.where(state.blind, GROWTH, state.growth))


def _dot(x: Any, y: Any) -> Array:
    parts = jax.tree.map(lambda x, y: jnp.sum(x * y), x, y)
    return jax.tree.reduce(jnp.add, parts)
