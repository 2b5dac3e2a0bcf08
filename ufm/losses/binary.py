"""Binary cross-entropy: one logistic loss for each class."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.losses.crossentropy import one_hot
from ufm.losses.loss import Curvature
from ufm.losses.parameters import nonnegative, registered


@registered
@dataclass(frozen=True)
class BinaryCrossEntropy:
    """ℓ(z; t) = Σ_j [t_j log(1 + e^{−z_j}) + (1 − t_j) log(1 + e^{z_j})], t = e_y for a label y.

    Li et al. 2025 (arXiv 2505.05813). In nats. Target matrices have entries in [0, 1]. Methods: see
    `ufm.losses.Loss`; S = diag σ(z)σ(−z) has norm at most 1/4.
    """

    convex: ClassVar[bool] = True
    dual: ClassVar[bool] = True

    def null(self, K: int) -> None:
        """None: ℓ is constant along no direction."""

    def check(self, K: int, targets: Any) -> None:  # noqa: ARG002
        """Entries of targets must be probabilities.

        Raises:
            Refused: naming the first one that is not.
        """
        if targets is not None:
            nonnegative(targets, "binary cross-entropy", most=1.0)

    def _matrix(self, t: Any, Z: Array) -> Array:
        return jnp.asarray(t, Z.dtype) if t.ndim > 1 else one_hot(Z, t)

    def value(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j t_j log(1 + e^{−z_j}) + (1 − t_j) log(1 + e^{z_j}), a sum of terms ≥ 0."""
        T = self._matrix(t, Z)
        return jnp.sum(T * jax.nn.softplus(-Z) + (1 - T) * jax.nn.softplus(Z), axis=0)

    def residual(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, "K N"]:
        """(1 − t)σ(z) − tσ(−z) = σ(z) − t, without the cancellation at labels."""
        T = self._matrix(t, Z)
        return (1 - T) * jax.nn.sigmoid(Z) - T * jax.nn.sigmoid(-Z)

    def curvature(self, Z: Float[Array, "K N"], t: Any) -> Curvature:  # noqa: ARG002
        """diag σ(z)σ(−z)."""
        return Curvature(diagonal=jax.nn.sigmoid(Z) * jax.nn.sigmoid(-Z))

    def conjugate(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j q log q + (1 − q) log(1 − q) at q = t + r in [0, 1]: minus binary entropies."""
        T, special = self._matrix(t, R), jax.scipy.special
        # Entries near 1 enter by their distance from 1, so that small |r| lose no digits.
        near = jnp.where(T > 0.5, 1 - T - R, T + R)
        near = jnp.clip(near, 0, 1)
        return jnp.sum(special.xlogy(near, near) + special.xlog1py(1 - near, -near), axis=0)

    def shortfall(self, R: Float[Array, "K N"], t: Any, mean: Any, pi: Any) -> Any:
        """The least s ≥ 0 that keeps (t + r − mean + s t̄)/(1 + s) in [0, 1]."""
        left = self._matrix(t, R) + R - mean[:, None]
        # t̄ may be 1 to rounding, where one class outweighs all others.
        above = jnp.maximum(1 - pi, float(jnp.finfo(R.dtype).eps) ** 2)
        least = jnp.minimum(jnp.min(left / pi[:, None]), jnp.min((1 - left) / above[:, None]))
        return jnp.maximum(-least, 0)

    def feasible(self, R: Float[Array, "K N"], t: Any, mean: Any, mixed: Any, pi: Any) -> Any:
        """Each t + r is mixed with the mean target t̄."""
        T = self._matrix(t, R)
        return jnp.clip((R - mean[:, None] + mixed * (pi[:, None] - T)) / (1 + mixed), -T, 1 - T)

    def reach(self, R: Any, t: Any) -> float:  # noqa: ARG002
        """1, since t + αr is between t and t + r."""
        return 1.0

    def definite(self, targets: Any) -> bool:  # noqa: ARG002
        """True: −ℓ* is a sum of entropies."""
        return True

    def magnitude(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """|ℓ*|."""
        return -self.conjugate(R, t)

    def moved(self, Z: Float[Array, "K N"], t: Any, delta: Any) -> Float[Array, " N"]:
        """Each log(1 + e^z) changes by at most δ, and by at most σ(z)(e^δ − 1)."""
        T = self._matrix(t, Z)
        share = T * jax.nn.sigmoid(-Z) + (1 - T) * jax.nn.sigmoid(Z)
        small = jnp.minimum(delta, share * jnp.expm1(jnp.minimum(delta, 1)))
        return jnp.sum(jnp.where(delta < 1, small, delta), axis=0)

    def residual_rounding(self, R: Any, Z: Any, t: Any, delta: Any) -> Any:  # noqa: ARG002
        """σ(z)σ(−z)δ + 2ε((1 − t)σ(z) + tσ(−z)): the two terms cancel where 0 < t < 1."""
        T, up, down = self._matrix(t, Z), jax.nn.sigmoid(Z), jax.nn.sigmoid(-Z)
        return up * down * delta + 2 * jnp.finfo(Z.dtype).eps * ((1 - T) * up + T * down)

    def smoothness(self, targets: Any = None) -> float:  # noqa: ARG002
        """1/4."""
        return 0.25

    def residual_bound(self, value: Any, targets: Any = None) -> Any:  # noqa: ARG002
        """ℓ/2, since each term is ≥ 0 and its curvature at most 1/4."""
        return value / 2
