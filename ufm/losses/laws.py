"""The laws that every loss must satisfy, tested at random and at extreme logits."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.losses.loss import Loss

SCALES = (0.1, 1.0, 5.0, 30.0)  # standard deviations of the random logits
LARGEST = 1e4  # logits at which nothing may overflow
EPS = float(np.finfo(np.float64).eps)


class LossErrors(NamedTuple):
    """The largest error of each law, in units of the float64 rounding that is allowed for it.

    value: relative to the exact values; NaN where none were given.
    residual: relative to automatic differentiation of the value.
    curvature: `Curvature.apply` relative to automatic differentiation of the gradient.
    matrices: `Curvature.matrices` relative to products with unit vectors.
    fenchel_young: of ℓ(z) + ℓ*(∇ℓ) = ⟨∇ℓ, z⟩; of ≥ for a loss that is not convex; 0 where the
        conjugate is not known.
    null: of nᵀ∇ℓ = 0, n the direction along which the loss is said to be constant.
    convexity: the most negative eigenvalue of S, for a convex loss.
    smoothness, residual_bound, moved: by how much these bounds are exceeded; 0 where they hold,
        and for `moved` where the conjugate is not known.
    rounding: the change of the residual at logits moved by δ, in units of twice
        `residual_rounding`.
    """

    value: float
    residual: float
    curvature: float
    matrices: float
    fenchel_young: float
    null: float
    convexity: float
    smoothness: float
    residual_bound: float
    moved: float
    rounding: float


def check_loss(
    loss: Loss,
    K: int = 5,
    targets: Callable[[np.random.Generator, int], Any] | None = None,
    exact: Callable[[np.ndarray, Any], float] | None = None,
    seed: int = 0,
) -> LossErrors:
    """Test a loss against its laws: derivatives, conjugate, bounds, and no overflow at ±1e4.

    In float64, at 64 columns of logits of standard deviation 0.1 to 30 and at columns of ±1e4.

    Args:
        loss: of `ufm.losses.Loss`.
        K: number of logits, at least 2.
        targets: (generator, N) → targets of N samples, with samples along the last axis; None
            draws labels 0 … K−1.
        exact: (z (K,), target) → ℓ(z; t) as a float, accurate to all digits; None skips that test.
        seed: of the random logits.

    Returns:
        The errors, each at most 1.

    Raises:
        Refused: the first law that fails, with its error; a method of `Loss` that is missing.
    """
    if not isinstance(loss, Loss):
        names = (x for x in (*Loss.__annotations__, *vars(Loss)) if not x.startswith("_"))
        missing = [x for x in names if not hasattr(loss, x)]
        raise Refused(
            f"got a {type(loss).__name__} without {', '.join(missing)}; allowed: a loss with all "
            "attributes of ufm.losses.Loss"
        )
    K, seed = check.integer("K", K, 2), check.integer("seed", seed, 0)
    generator = np.random.default_rng(seed)
    N = 16 * len(SCALES)
    Z = generator.standard_normal((K, N)) * np.repeat(SCALES, 16)
    t = generator.integers(0, K, N) if targets is None else targets(generator, N)
    with jax.enable_x64(True):
        errors = _errors(loss, jnp.asarray(Z), jnp.asarray(t), generator)
    if exact is not None:
        errors = errors._replace(value=_against(loss, exact, Z, t))
    for law, error in errors._asdict().items():
        if not error <= 1 and (law, exact) != ("value", None):
            raise Refused(
                f"got {type(loss).__name__}, whose law {law!r} fails by {error:.3g} times what "
                "rounding allows; ufm.losses.laws.LossErrors defines each law"
            )
    _check_extremes(loss, K, t)
    return errors


def _errors(loss: Loss, Z: Any, t: Any, generator: np.random.Generator) -> LossErrors:
    K, N = Z.shape
    unit = 8 * EPS * (1 + jnp.max(jnp.abs(Z), axis=0))
    dZ = jnp.asarray(generator.standard_normal(Z.shape))
    value, R, curvature = loss.value(Z, t), loss.residual(Z, t), loss.curvature(Z, t)
    slope, second = jax.jvp(jax.grad(lambda Z: jnp.sum(loss.value(Z, t))), (Z,), (dZ,))
    S, ready = np.asarray(jax.tree.map(np.asarray, curvature).matrices()), curvature.prepared()
    image = ready.apply(dZ)
    smoothness = float(loss.smoothness(t if t.ndim > 1 else None))
    products = np.stack([np.asarray(ready.apply(jnp.eye(K)[:, [k]] + 0 * Z)) for k in range(K)])
    eigenvalues = np.linalg.eigvalsh(S)
    # A loss without a bound is measured by its own curvature.
    steep = smoothness if np.isfinite(smoothness) else float(np.max(np.abs(eigenvalues)))
    size = float(max(steep, 1.0) * jnp.max(jnp.abs(dZ)))
    n = loss.null(K)
    drift = 0.0 if n is None else jnp.abs(n @ R) / jnp.max(jnp.abs(n))
    delta = jnp.asarray(10.0 ** generator.uniform(-9, 1, N))
    signs = jnp.asarray(generator.choice([-1.0, 1.0], Z.shape))
    young, moved = _of_the_dual(loss, Z, t, delta, signs) if loss.dual else (0.0, 0.0)
    largest = jnp.max(jnp.abs(R), axis=0)
    bound = loss.residual_bound(value, t if t.ndim > 1 else None)
    return LossErrors(
        value=float("nan"),
        residual=float(jnp.max(jnp.abs(slope - R) / (unit * (1 + largest)))),
        curvature=float(jnp.max(jnp.abs(second - image) / (unit * size))),
        matrices=float(np.max(np.abs(products.transpose(2, 0, 1) - S)) / (8 * EPS * size)),
        fenchel_young=float(jnp.max(young / (4 * unit))),
        null=0.0 if n is None else float(jnp.max(drift / (2 * K * EPS * (1 + largest)))),
        convexity=float(max(0.0, -np.min(eigenvalues)) / (64 * EPS * size)) if loss.convex else 0.0,
        smoothness=float(max(0.0, np.max(np.abs(eigenvalues)) / smoothness - 1) / (64 * EPS)),
        residual_bound=float(jnp.max(jnp.sum(R * R, axis=0) / bound - 1).clip(0) / (64 * EPS)),
        moved=float(jnp.max(moved / (unit * (1 + value))).clip(0)),
        rounding=_of_the_rounding(loss, Z, t, signs),
    )


def _of_the_rounding(loss: Loss, Z: Any, t: Any, signs: Any) -> float:
    """The largest change of R at logits moved by δ, in units of twice its bound."""
    largest, R, bounds = jnp.max(jnp.abs(Z), axis=0), loss.residual(Z, t), []
    for share in (EPS, 1e-8):
        delta = share * (1 + largest)
        bound = 2 * loss.residual_rounding(R, Z, t, delta) + float(np.finfo(float).tiny)
        bounds.append(jnp.max(jnp.abs(loss.residual(Z + delta * signs, t) - R) / bound))
    return float(jnp.max(jnp.stack(bounds)))


def _of_the_dual(loss: Loss, Z: Any, t: Any, delta: Any, signs: Any) -> tuple[Any, Any]:
    """The errors of Fenchel–Young, relative to its terms, and of the bound `moved`, (N,) each."""
    value, R = loss.value(Z, t), loss.residual(Z, t)
    # For a loss that is not convex the conjugate is that of its hull, which may be below the loss.
    dual = R if loss.convex else loss.reach(R, t) * R
    young = value + loss.conjugate(dual, t) - jnp.sum(dual * Z, axis=0)
    young = jnp.abs(young) if loss.convex else jnp.maximum(-young, 0)
    moved = jnp.abs(loss.value(Z + delta * signs, t) - value)
    return young / (1 + value + jnp.sum(jnp.abs(R * Z), axis=0)), moved - loss.moved(Z, t, delta)


def _against(loss: Loss, exact: Callable, Z: np.ndarray, t: Any) -> float:
    """The largest relative error of the value, in units of the rounding of the logits."""
    with jax.enable_x64(True):
        values = np.asarray(loss.value(jnp.asarray(Z), jnp.asarray(t)))
    truth = np.array([float(exact(z, t[..., i])) for i, z in enumerate(Z.T)])
    unit = 8 * EPS * (1 + np.ptp(Z, axis=0))
    return float(np.max(np.abs(values - truth) / (unit * np.abs(truth) + np.finfo(float).tiny)))


def _check_extremes(loss: Loss, K: int, t: Any) -> None:
    """Refuse a loss that is not finite at logits of ±1e4."""
    N = t.shape[-1]
    top = np.arange(K)[:, None] == np.arange(N) % K
    with jax.enable_x64(True):
        Z, t = jnp.asarray(LARGEST * np.where(top, 1.0, -1.0)), jnp.asarray(t)
        found = {
            "value": loss.value(Z, t),
            "residual": loss.residual(Z, t),
            "curvature": loss.curvature(Z, t).prepared().apply(jnp.ones_like(Z)),
        }
        if loss.dual:
            found["conjugate"] = loss.conjugate(loss.residual(Z, t), t)
        for name, x in found.items():
            if not bool(jnp.all(jnp.isfinite(x))):
                raise Refused(
                    f"got {type(loss).__name__}, whose {name} is not finite at logits of "
                    f"±{LARGEST:g}; allowed: finite numbers. Subtract the largest logit first"
                )
