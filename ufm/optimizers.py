"""Named descent methods as optax transformations, and a step size that cannot diverge.

Curvature bound. On the set where f ≤ F, with δZ = ΔW H + W ΔH + Δb 1ᵀ, the second derivative
along a unit direction (theory of `ufm.problem`) is

    (1/N) Σ_i δz_iᵀ S_i δz_i + 2⟨G, ΔW ΔH⟩ + decay.

S_i has norm ≤ 1/2 and ‖δZ‖² ≤ ‖W‖² + ‖H‖² + N. Decay bounds the norms, λ_W‖W‖² + λ_H‖H‖² ≤ 2F,
hence ‖W‖² + ‖H‖² ≤ 2F/min(λ_W, λ_H). Finally ‖p_i − y_i‖² ≤ 2(1 − p_y)² ≤ 2 min(1, ℓ_i) gives
2⟨G, ΔW ΔH⟩ ≤ ‖G‖ ≤ √(2 min(1, F)/N). So the curvature is at most

    L(F) = 1/2 + F/(N min(λ_W, λ_H)) + √(2 min(1, F)/N) + max(λ_W, λ_H, λ_b)

on that set (1/2 and λ_b fall away without a bias).

Descent. Let β be the momentum (0 for plain gradient descent), F = f(x_0) and 0 < η < 2(1−β)/L(F).

- Heavy ball, v⁺ = βv − η∇f, x⁺ = x + v⁺: with E = f + (β/2η)‖v‖² the descent lemma gives
  E⁺ ≤ E − ((1−β)/η − L/2)‖v⁺‖².
- Nesterov as in optax, m⁺ = βm + ∇f, x⁺ = x − η(∇f + βm⁺): with E = f + (αη/2)‖m‖²,
  α = 1 + β − β² − ηL(1 + 2β)/2 ≥ β², E⁺ − E is a quadratic form in (m⁺, m) whose matrix has equal
  diagonal entries and is negative semidefinite exactly when ηL ≤ 2(1−β).

Both start at E_0 = F, so f ≤ F for ever: the iterates stay where L(F) holds. (The segment between
two iterates does too: at x + s(x⁺ − x), 0 ≤ s ≤ 1, the same lemma gives f ≤ E, and by continuity
the first exit cannot happen.) `auto_step` returns half of the limit, η = (1−β)/L(F).
"""

import math
from collections.abc import Callable

import jax.numpy as jnp
import optax

from ufm.check import Refused
from ufm.lbfgs import lbfgs
from ufm.problem import Problem

LearningRate = float | str | Callable[[int], float] | None

NAMES = ("gd", "heavy_ball", "nesterov", "sgd", "adam", "lbfgs")
FULL_BATCH_ONLY = ("gd", "heavy_ball", "nesterov", "lbfgs")
MOMENTUM = {"heavy_ball": 0.9, "nesterov": 0.9, "sgd": 0.9}
LEARNING_RATE = {"sgd": 0.05, "adam": 1e-3}


def curvature_bound(problem: Problem, value):
    """L(F) of the module's head: ‖∇²f‖ from above wherever f ≤ F.

    Args:
        problem: λ_W and λ_H must be positive for a finite bound.
        value: F, for example f at the start of a run.
    """
    lam_b = problem.lam_b if problem.bias else 0.0
    smallest = jnp.minimum(problem.lam_W, problem.lam_H)
    largest = jnp.maximum(jnp.maximum(problem.lam_W, problem.lam_H), lam_b)
    norms = value / (problem.N * smallest)
    coupling = jnp.sqrt(2 * jnp.minimum(1, value) / problem.N)
    return (0.5 if problem.bias else 0.0) + norms + coupling + largest


def auto_step(problem: Problem, value, momentum=0.0):
    """η = (1−β)/L(F), F = f(x_0): full-batch gd, heavy ball and Nesterov never diverge.

    Half of the proven limit derived in the module's head. Without decay (λ_W or λ_H = 0) the
    bound is infinite and η = 0.

    Args:
        problem: the model.
        value: F = f(x_0), the objective at the start.
        momentum: β in [0, 1).
    """
    return (1 - momentum) / curvature_bound(problem, value)


def named(name: str, learning_rate, momentum) -> optax.GradientTransformationExtraArgs:
    """The optax transformation behind a name of `NAMES`; hyperparameters may be traced.

    gd: x − η∇f.  heavy_ball, sgd: Polyak's momentum β.  nesterov: Nesterov's.
    adam: optax's defaults.  lbfgs: history 10, zoom line search (no learning rate).
    """
    if name == "gd":
        return optax.with_extra_args_support(optax.sgd(learning_rate))
    if name in ("heavy_ball", "sgd"):
        return optax.with_extra_args_support(optax.sgd(learning_rate, momentum))
    if name == "nesterov":
        return optax.with_extra_args_support(optax.sgd(learning_rate, momentum, nesterov=True))
    if name == "adam":
        return optax.with_extra_args_support(optax.adam(learning_rate))
    return lbfgs()


def check_method(name, learning_rate, momentum, batch_size) -> None:
    """Refuse an unknown name or hyperparameters that its method does not have.

    Raises:
        Refused: with what was got and what is allowed.
    """
    if isinstance(name, optax.GradientTransformation):
        if learning_rate is not None or momentum is not None:
            raise Refused(
                "got learning_rate or momentum beside an optax transformation; set them inside "
                "it, for example optax.sgd(0.1, momentum=0.9)"
            )
        return
    if name not in NAMES:
        raise Refused(
            f"got optimizer={name!r}; allowed: {', '.join(NAMES)}, or an optax transformation "
            "such as optax.adamw(1e-3)"
        )
    if name in FULL_BATCH_ONLY and batch_size is not None:
        raise Refused(
            f"got batch_size={batch_size} with {name!r}, a full-batch method; allowed with "
            "minibatches: sgd, adam, or an optax transformation"
        )
    if name == "sgd" and batch_size is None:
        raise Refused("got optimizer='sgd' without batch_size; give one, or use 'heavy_ball'")
    if name == "lbfgs" and learning_rate is not None:
        raise Refused("got a learning_rate for 'lbfgs', whose line search finds the step")
    _check_hyperparameters(name, learning_rate, momentum, batch_size)


def _check_hyperparameters(name: str, learning_rate, momentum, batch_size) -> None:
    if learning_rate == "auto" and (batch_size is not None or name == "adam"):
        raise Refused(
            "got learning_rate='auto', which is derived for full-batch gd, heavy_ball and "
            f"nesterov; give {name!r} a number or an optax schedule"
        )
    if isinstance(learning_rate, str) and learning_rate != "auto":
        raise Refused(f"got learning_rate={learning_rate!r}; allowed: 'auto' or a number > 0")
    if isinstance(learning_rate, int | float) and not (
        math.isfinite(learning_rate) and learning_rate > 0
    ):
        raise Refused(f"got learning_rate={learning_rate}; allowed: finite and > 0")
    if momentum is not None and name not in MOMENTUM:
        raise Refused(f"got momentum={momentum} for {name!r}; it has none. Use 'heavy_ball'")
    if isinstance(momentum, int | float) and not 0 <= momentum < 1:
        raise Refused(f"got momentum={momentum}; allowed: 0 <= momentum < 1")
