"""Steps of descent for features that are not free: the step of the method, then the projection.

    x⁺ = P(x + u),   P(W, H, b) = (W, max(H, 0), b) for H ≥ 0; on the sphere all norms become 1

**H ≥ 0.** Momentum follows the step that was taken: where P shortens the step of an entry from u
to x⁺ − x, its velocity is multiplied by the same factor. Heavy ball is then x⁺ = P(x + β(x − x⁻) −
η∇f), the method iPiano of Ochs et al. 2014 (arXiv 1404.4805), whose x⁺ minimises
⟨∇f, y⟩ + ‖y − x − βv‖²/2η over a convex set, v = x − x⁻. Compared with its value at y = x, for this
strongly convex function,

    ⟨∇f, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩,

so E = f + (β/2η)‖v‖² decreases as in `ufm.descent.optimizers` and, where the projected step is
tested, in `ufm.descent.adaptive`: "safe" and "auto" are proven for gd (β = 0) and heavy ball. We
know no such proof for Nesterov's method, for which both are refused, and L-BFGS measures lengths in
another metric, in which P is not the projection: it is refused altogether.

**Sphere.** The methods use the Riemannian gradient g, and velocities are projected on the tangent
spaces after each step (with "auto" the velocity is the chord v = x − x⁻). With a = x + βv − ηg and
one unit vector x at a time, x⁺ = a/‖a‖ maximises ⟨a, y⟩ over the sphere, and
⟨a, x⁺ − x⟩ = ‖a‖·‖x⁺ − x‖²/2. As ⟨g, x⟩ = 0 and ⟨v, x⟩ = ‖v‖²/2 ≥ 0, ‖a‖ ≥ ⟨a, x⟩ ≥ 1, and
⟨x, x⁺ − x⟩ = −‖x⁺ − x‖²/2. So, with v⁺ = x⁺ − x,

    ⟨g, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩,

which is the inequality above. With ∇f in place of g there is the term of the multiplier in
addition, ⟨∇f, x⟩⟨x, v⁺⟩ ≤ |⟨∇f, x⟩|·‖v⁺‖²/2. With Λ the largest |⟨∇f, x⟩| and L a bound on ∇²f on
the products of balls, both finite, L + Λ replaces L: "auto" is proven for gd and heavy ball, and
its steps stay above half of (1−β)/(L + Λ).
"""

from typing import Any

import jax

from ufm.check import Refused
from ufm.model import layers
from ufm.model.problem import Params, Problem

_MOMENTUM = ("heavy_ball", "sgd", "nesterov")


def check(problem: Problem, optimizer: Any, rate: Any) -> None:
    """Refuse a method that has no projected step, or a step size without a proof of descent.

    Args:
        problem: the model.
        optimizer: as for `ufm.descend`.
        rate: the learning rate, from `optimizers.rate`.

    Raises:
        Refused: naming methods that are allowed.
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
    if rate == "safe" and problem.features == "sphere":
        raise Refused(
            "got learning_rate='safe' with features='sphere'; allowed: 'auto', a number or a "
            "schedule, since that step is derived from decays, of which the sphere has none"
        )


def moved(
    problem: Problem, optimizer: Any, params: Params, updates: Params, state: Any
) -> tuple[Params, Any]:
    """(the point after the updates, the state of the optimiser there). Traceable.

    Args:
        problem, params: where the step begins.
        optimizer: name of the method, whose velocity is adjusted if it is one of heavy_ball, sgd
            and nesterov; None for a method that has projected its step itself.
        updates: u of the module's docstring.
        state: of the optimiser after it computed them.
    """
    ahead = jax.tree.map(lambda x, u: (x + u).astype(x.dtype), params, updates)
    if layers.is_free(problem):
        return ahead, state
    found = layers.project(problem, ahead)
    if optimizer in _MOMENTUM:
        import optax

        trace = optax.tree.get(state, "trace")
        carried = layers.of(problem).carried(trace, updates, params, found)
        state = optax.tree.set(state, trace=carried)
    return found, state
