"""Named descent methods as optax transformations, and a constant step that cannot diverge.

Curvature bound. On the set where f ≤ F, with δZ = ΔW H + W ΔH + Δb 1ᵀ, the second derivative
along a unit direction (theory of `ufm.model.problem`) is

    Σ_i w_i δz_iᵀ S_i δz_i + 2⟨G, ΔW ΔH⟩ + decay.

S_i has norm ≤ β (1/2 for cross-entropy) and ‖δZ‖² ≤ ‖W‖² + ‖H‖² + N. Decay bounds the norms,
λ_W‖W‖² + λ_H Σ ω_i‖h_i‖² ≤ 2F, hence ‖W‖² + ‖H‖² ≤ 2F/min(λ_W, λ_H ω). Finally, with a concave
bound ‖∇ℓ_i‖² ≤ B(ℓ_i), for cross-entropy ‖p_i − y_i‖² ≤ 2(1 − p_y)² ≤ 2 min(1, ℓ_i), and w the
largest w_i, m = Σ w_i: 2⟨G, ΔW ΔH⟩ ≤ ‖G‖ ≤ √(w m B(F/m)). So the curvature is at most

    L(F) = β N w + 2β w F/min(λ_W, λ_H ω) + √(w m B(F/m)) + max(λ_W, λ_H ω, λ_b)

on that set (β N w and λ_b are absent without a bias); w = 1/N and m = ω = 1 by default.

Descent. Let β be the momentum (0 for plain gradient descent), F = f(x_0) and 0 < η < 2(1−β)/L(F).

- Heavy ball, v⁺ = βv − η∇f, x⁺ = x + v⁺: with E = f + (β/2η)‖v‖² the descent lemma gives
  E⁺ ≤ E − ((1−β)/η − L/2)‖v⁺‖².
- Nesterov as in optax, m⁺ = βm + ∇f, x⁺ = x − η(∇f + βm⁺): with E = f + (αη/2)‖m‖²,
  α = 1 + β − β² − ηL(1 + 2β)/2 ≥ β², E⁺ − E is a quadratic form in (m⁺, m) whose matrix has equal
  diagonal entries and is negative semidefinite exactly when ηL ≤ 2(1−β).

Both start at E_0 = F, so f ≤ F always: the iterates stay where L(F) holds. (The segment between
two iterates does too: at x + s(x⁺ − x), 0 ≤ s ≤ 1, the same lemma gives f ≤ E, and by continuity
the first exit cannot happen.) `safe_step` returns half of the limit, η = (1−β)/L(F).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from ufm import check
from ufm.check import Refused
from ufm.descent import factories
from ufm.descent.adaptive import adaptive
from ufm.descent.lbfgs import lbfgs
from ufm.descent.transformation import Transformation
from ufm.model import layers
from ufm.model.problem import Problem, require

LearningRate = float | str | Callable[[int], float] | None  # as `ufm.descend` takes it

NAMES = ("gd", "heavy_ball", "nesterov", "sgd", "adam", "lbfgs")
FULL_BATCH_ONLY = ("gd", "heavy_ball", "nesterov", "lbfgs")
MOMENTUM = {"heavy_ball": 0.9, "nesterov": 0.9, "sgd": 0.9}
LEARNING_RATE = {"sgd": 0.05, "adam": 1e-3}
# Steps of the full-batch methods by name: tested one by one (`adaptive`), or `safe_step`.
STEPS = ("auto", "safe")


def rate(optimizer: str, learning_rate: Any) -> Any:
    """The learning rate of a method: the given one, or for None the default of a named method.

    The default of the full-batch methods is "auto", an adaptive step. None for "lbfgs", which has a
    line search, and for a factory of optax, which has its own default.
    """
    if optimizer == "lbfgs":
        return None
    if optimizer not in NAMES:
        return learning_rate
    return LEARNING_RATE.get(optimizer, "auto") if learning_rate is None else learning_rate


def curvature_bound(problem: Problem, value):
    """L(F) of the module's docstring: an upper bound on ‖∇²f‖ wherever f ≤ F. Traceable.

    Args:
        problem: λ_W and λ_H must be positive for a finite bound.
        value: F ≥ 0 in nats, for example f at the start of a run.

    Raises:
        Refused: features on the sphere; an F that is no number ≥ 0.
    """
    require(problem)
    layers.require_among(problem, "optimizers.curvature_bound", ("free", "nonnegative"))
    if not isinstance(value, jax.Array):
        value = check.real("value", value, least=0)
    lam_b, beta = problem.lam_b if problem.bias else 0.0, problem.loss.smoothness(problem.targets)
    least = most = problem.lam_H
    if problem.decay_weights is not None:
        omega = jnp.asarray(problem.decay_weights)
        least, most = least * jnp.min(omega), most * jnp.max(omega)
    stretch: Any = 1.0  # N w
    mass: Any = 1.0
    if problem.weights is not None:
        c = jnp.asarray(problem.weights)
        stretch, mass = jnp.max(c), jnp.sum(c * (problem.counts / problem.N))
    smallest = jnp.minimum(problem.lam_W, least)
    largest = jnp.maximum(jnp.maximum(problem.lam_W, most), lam_b)
    norms = 2 * beta * stretch * value / (problem.N * smallest)
    residuals = mass * problem.loss.residual_bound(value / mass, problem.targets)
    coupling = jnp.sqrt(stretch * residuals / problem.N)
    return (beta * stretch if problem.bias else 0.0) + norms + coupling + largest


def safe_step(problem: Problem, value, momentum=0.0):
    """η = (1−β)/L(F), F = f(x_0): with it full-batch gd, heavy ball and Nesterov never diverge.

    Half of the limit proven in the docstring of `ufm.descent.optimizers`. Without decay (λ_W or
    λ_H = 0) the bound L is infinite and η = 0. Traceable.

    Args:
        problem: the model.
        value: F = f(x_0), the objective at the start, in nats.
        momentum: β in [0, 1).

    Raises:
        Refused: features on the sphere; an F that is no number ≥ 0.
    """
    return (1 - momentum) / curvature_bound(problem, value)


def named(name: str, learning_rate, momentum, adapts: bool = False) -> Transformation:
    """The transformation behind a name of `NAMES`; hyperparameters may be traced.

    gd: x − η∇f.  heavy_ball, sgd: Polyak's momentum β.  nesterov: Nesterov's momentum.
    adam: optax's defaults.  lbfgs: history 10, strong Wolfe line search (no learning rate).

    Args:
        name: of the method.
        learning_rate: η, a number or a schedule.
        momentum: β.
        adapts: whether gd, heavy_ball and nesterov test their steps (`ufm.descent.adaptive`); the
            learning rate is then half of the first η tried.
    """
    if adapts:
        return adaptive(learning_rate, momentum, name)
    if name == "lbfgs":
        return lbfgs()
    import optax

    if name == "adam":
        found = optax.adam(learning_rate)
    else:
        found = optax.sgd(learning_rate, None if name == "gd" else momentum, name == "nesterov")
    return Transformation(*optax.with_extra_args_support(found))


class Settings(NamedTuple):
    """A method and its hyperparameters, converted and checked; None stands for a default.

    optimizer: a name of `NAMES`, an optax transformation or a factory of such.
    learning_rate: a float, "auto", "safe" or an optax schedule.
    momentum: a float.  batch_size: an int.
    hyperparameters: all those of a factory, from `factories.checked`.
    """

    optimizer: Any
    learning_rate: Any
    momentum: float | None
    batch_size: int | None
    hyperparameters: Any = ()


def settings(
    optimizer: Any,
    learning_rate: Any = None,
    momentum: Any = None,
    batch_size: Any = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Settings:
    """The method of a descent or of a cell of a sweep, with its hyperparameters checked.

    Numbers of any library are accepted and converted.

    Args:
        optimizer, learning_rate, momentum, batch_size: as for `ufm.descend`.
        hyperparameters: further ones, of a factory of optax; with "adam" they select optax.adam.

    Raises:
        Refused: an unknown method, a hyperparameter out of range or one that the method lacks.
    """
    given = {"learning_rate": learning_rate, "momentum": momentum}
    given = {name: x for name, x in given.items() if x is not None} | dict(hyperparameters or {})
    if not isinstance(optimizer, str) and _is_transformation(optimizer):
        if given:
            raise Refused(
                f"got {', '.join(given)} beside an optax transformation; set them inside it, for "
                "example optax.sgd(0.1, momentum=0.9), or give its factory, optax.sgd"
            )
        return Settings(optimizer, None, None, _batch_size(batch_size))
    if not isinstance(optimizer, str) or optimizer not in NAMES:
        factory = _factory(optimizer)
    elif optimizer == "adam" and hyperparameters:
        factory = factories.named("adam", NAMES)
        given = {"learning_rate": LEARNING_RATE["adam"]} | given
    else:
        return _own(optimizer, learning_rate, momentum, batch_size, hyperparameters or {})
    checked = factories.checked(factory, given)
    return Settings(factory, None, None, _batch_size(batch_size), checked)


def _is_transformation(x: Any) -> bool:
    import optax

    return isinstance(x, optax.GradientTransformation)


def _factory(optimizer: Any) -> Callable[..., Any]:
    """A factory of optax transformations, given by its name in optax or as a function."""
    if isinstance(optimizer, str):
        return factories.named(optimizer, NAMES)
    way = getattr(optimizer, "gradient_transformation", None)
    if callable(optimizer) and not callable(way):
        return optimizer
    hint = ". Give its .gradient_transformation()" if callable(way) else ""
    raise Refused(
        f"got optimizer={check.shown(optimizer)}; allowed: {', '.join(NAMES)}, an optax "
        f"transformation such as optax.adamw(1e-3), or its factory optax.adamw{hint}"
    )


def _own(
    name: str, learning_rate: Any, momentum: Any, batch_size: Any, further: Mapping[str, Any]
) -> Settings:
    """The settings of a name of `NAMES`."""
    if further:
        raise Refused(
            f"got {', '.join(further)} for {name!r}; allowed: learning_rate, momentum, batch_size. "
            "Factories of optax take more, such as 'adamw' or optax.sgd"
        )
    batch_size = _batch_size(batch_size)
    if name in FULL_BATCH_ONLY and batch_size is not None:
        raise Refused(
            f"got batch_size={batch_size} with {name!r}, a full-batch method; allowed with "
            "minibatches: sgd, adam, or an optax transformation"
        )
    if name == "sgd" and batch_size is None:
        raise Refused("got optimizer='sgd' without batch_size; give one, or use 'heavy_ball'")
    rate = _learning_rate(name, learning_rate)
    if momentum is not None:
        if name not in MOMENTUM:
            raise Refused(f"got momentum={check.shown(momentum)} for {name!r}; it has none. Use "
                          "'heavy_ball'")  # fmt: skip
        momentum = check.real("momentum", momentum, least=0, below=1)
    return Settings(name, rate, momentum, batch_size)


def _batch_size(batch_size: Any) -> int | None:
    return None if batch_size is None else check.integer("batch_size", batch_size, 1, check.MOST)


def _learning_rate(name: str, learning_rate: Any) -> Any:
    own = isinstance(learning_rate, str) and learning_rate in STEPS
    if name == "lbfgs" and learning_rate is not None:
        raise Refused("got a learning_rate for 'lbfgs', whose line search finds the step")
    if own and name not in FULL_BATCH_ONLY:
        raise Refused(
            f"got learning_rate={learning_rate!r}, which is for full-batch gd, heavy_ball and "
            f"nesterov; give {name!r} a number or an optax schedule"
        )
    if own or learning_rate is None or callable(learning_rate):
        return learning_rate
    also = "'auto', 'safe', or a schedule"
    return check.real("learning_rate", learning_rate, above=0, also=also)
