"""Steps of descent for features that are not free: the step of the method, then the nearest point.

    x⁺ = P(x + u),   P(W, H, b) = (W, max(H, 0), b) for H ≥ 0, all norms made 1 on the sphere

**H ≥ 0.** Momentum follows the step that was taken: where P shortens the step of an entry from u
to x⁺ − x, its velocity shrinks by the same factor. Heavy ball is then x⁺ = P(x + β(x − x⁻) − η∇f),
iPiano of Ochs et al. 2014 (arXiv 1404.4805), whose x⁺ minimises ⟨∇f, y⟩ + ‖y − x − βv‖²/2η over a
convex set, v = x − x⁻. Compared with y = x, of this strongly convex function,

    ⟨∇f, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩,

so E = f + (β/2η)‖v‖² falls as in `ufm.descent.optimizers` and, where the projected step is what is
tested, in `ufm.descent.adaptive`: "safe" and "auto" are proven for gd (β = 0) and heavy ball. No
such proof is known to us for Nesterov's method, and L-BFGS measures lengths by its own metric, in
which P is not the nearest point: these two are refused.

**Sphere.** The methods see the Riemannian gradient g, and velocities are projected on the tangent
spaces after each step (those of "auto" stay the chord v = x − x⁻). With a = x + βv − ηg and one
unit vector x at a time, x⁺ = a/‖a‖ maximises ⟨a, y⟩ over the sphere, and
⟨a, x⁺ − x⟩ = ‖a‖·‖x⁺ − x‖²/2. As ⟨g, x⟩ = 0 and ⟨v, x⟩ = ‖v‖²/2 ≥ 0, ‖a‖ ≥ ⟨a, x⟩ ≥ 1, and
⟨x, x⁺ − x⟩ = −‖x⁺ − x‖²/2. So, with v⁺ = x⁺ − x,

    ⟨g, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩,

the inequality above. ∇f adds the multiplier's ⟨∇f, x⟩⟨x, v⁺⟩ ≤ |⟨∇f, x⟩|·‖v⁺‖²/2 to it. With Λ the
largest |⟨∇f, x⟩| and L a bound of ∇²f on the products of balls, both finite, L + Λ takes the place
of L: "auto" is proven for gd and heavy ball, its steps stay above half of (1−β)/(L + Λ).
"""

from typing import Any

import optax

from ufm.check import Refused
from ufm.model import layers
from ufm.model.problem import Params, Problem

_MOMENTUM = ("heavy_ball", "sgd", "nesterov")


def check(problem: Problem, optimizer: Any, rate: Any) -> None:
    """Refuse a method that has no projected step, or a step size without a proof of descent.

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
    if rate == "safe" and problem.features == "sphere":
        raise Refused(
            "got learning_rate='safe' with features='sphere'; allowed: 'auto', a number or a "
            "schedule, since that step is made of decays, which the sphere has not"
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
        carried = layers.of(problem).carried(trace, updates, params, found)
        state = optax.tree.set(state, trace=carried)
    return found, state
