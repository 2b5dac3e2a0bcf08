"""Steps of descent for features that are not free: the step of the method, then the nearest point.

    x⁺ = P(x + u),   P(W, H, b) = (W, max(H, 0), b) for H ≥ 0

Momentum is that of the way that was gone: where P shortens the step of an entry from u to x⁺ − x,
its velocity shrinks by the same factor. Heavy ball is then x⁺ = P(x + β(x − x⁻) − η∇f), iPiano of
Ochs et al. 2014 (arXiv 1404.4805), whose x⁺ minimises ⟨∇f, y⟩ + ‖y − x − βv‖²/2η over a convex set,
v = x − x⁻. Compared with y = x, of this strongly convex function,

    ⟨∇f, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩,

so E = f + (β/2η)‖v‖² falls as in `ufm.descent.optimizers` and, where the projected step is what is
tested, in `ufm.descent.adaptive`: "safe" and "auto" are proven for gd (β = 0) and heavy ball. No
such proof is known to us for Nesterov's method, and L-BFGS measures lengths by its own metric, in
which P is not the nearest point: these two are refused.
"""

from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array

from ufm.check import Refused
from ufm.model import layers
from ufm.model.problem import Params, Problem

_MOMENTUM = ("heavy_ball", "sgd", "nesterov")


def check(problem: Problem, optimizer: Any, rate: Any) -> None:
    """Refuse a method that has no projected step, or a step size that nothing proves.

    Args:
        problem: the model.
        optimizer: as `ufm.descend` takes it.
        rate: learning rate, as `optimizers.rate` gives it.

    Raises:
        Refused: naming a method to take.
    """
    if layers.is_free(problem) or not isinstance(optimizer, str):
        return
    if optimizer == "lbfgs":
        raise Refused(
            f"got optimizer='lbfgs' with features={problem.features!r}; allowed: gd, heavy_ball, "
            "nesterov, sgd, adam, or one of optax. To a stationary point at rounding: ufm.solve"
        )
    if optimizer == "nesterov" and isinstance(rate, str):
        raise Refused(
            f"got learning_rate={rate!r} for 'nesterov' with features={problem.features!r}, for "
            "which nothing is proved; allowed: a number or a schedule, or 'heavy_ball'"
        )


def moved(
    problem: Problem, optimizer: Any, params: Params, updates: Params, state: Any
) -> tuple[Params, Any]:
    """(the point after the updates, the state of the optimiser that goes with it). Traceable.

    Args:
        problem, params: where the step begins.
        optimizer: name of the method; others than its own momentum are left as they are, as is one
            (None) that has tested its projected step itself.
        updates: u of the module's head.
        state: of the optimiser after it made them.
    """
    ahead = optax.apply_updates(params, updates)
    if layers.is_free(problem):
        return ahead, state
    found = layers.project(problem, ahead)
    if optimizer in _MOMENTUM:
        trace = optax.tree.get(state, "trace")
        share = _share(updates.H, found.H - params.H)
        state = optax.tree.set(state, trace=trace._replace(H=trace.H * share))
    return found, state


def _share(wanted: Array, done: Array) -> Array:
    """Which part of every entry of a step was taken: 1 where none was wanted."""
    return jnp.where(wanted == 0, 1, done / jnp.where(wanted == 0, 1, wanted))
