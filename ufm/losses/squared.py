"""The squared error: plain for any targets, or rescaled for labels."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.check import Refused
from ufm.losses.crossentropy import one_hot
from ufm.losses.loss import Curvature
from ufm.losses.parameters import NUMBER, parameter, registered


@registered
@dataclass(frozen=True)
class SquaredError:
    """ℓ(z; t) = ½‖z − t‖², or for a label y ½[k(z_y − M)² + Σ_{j≠y} z_j²].

    Plain, k = M = 1, t = e_y: Mixon et al. 2020, Tirer and Bruna 2022 (arXiv 2202.08087), Zhou et
    al. 2022 (arXiv 2203.01238); the last have the rescaled form with k and M. With a target matrix
    it is regression (arXiv 2409.04180). In the unit of the squared targets. Methods: see
    `ufm.losses.Loss`; S is diagonal.

    Args:
        own: k > 0, the weight of the own class.
        shift: M, the target of the own class.
    """

    own: Any = field(default=1.0, metadata=NUMBER)
    shift: Any = field(default=1.0, metadata=NUMBER)

    convex: ClassVar[bool] = True
    dual: ClassVar[bool] = True

    def __post_init__(self):
        parameter(self, "own", above=0)
        parameter(self, "shift")

    def null(self, K: int) -> None:
        """None: ℓ is constant along no direction."""

    def check(self, K: int, targets: Any) -> None:  # noqa: ARG002
        """Target matrices need k = M = 1.

        Raises:
            Refused: other own or shift with a target matrix.
        """
        if targets is not None and (self.own, self.shift) != (1.0, 1.0):
            raise Refused(
                f"got targets with own={self.own}, shift={self.shift}, which rescale the class of "
                "a label; allowed with targets: SquaredError()"
            )

    def _weights(self, Z: Array, t: Any) -> tuple[Any, Array]:
        """(α, m): the weights and centres of ½Σ α_j (z_j − m_j)²."""
        if t.ndim > 1:
            return 1.0, jnp.asarray(t, Z.dtype)
        Y = one_hot(Z, t)
        own, shift = jnp.asarray(self.own, Z.dtype), jnp.asarray(self.shift, Z.dtype)
        return 1 + (own - 1) * Y, shift * Y

    def value(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """½ Σ_j α_j (z_j − m_j)²."""
        alpha, centre = self._weights(Z, t)
        return jnp.sum(alpha * jnp.square(Z - centre), axis=0) / 2

    def residual(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, "K N"]:
        """α(z − m)."""
        alpha, centre = self._weights(Z, t)
        return alpha * (Z - centre)

    def curvature(self, Z: Float[Array, "K N"], t: Any) -> Curvature:
        """diag α."""
        alpha, _ = self._weights(Z, t)
        return Curvature(diagonal=alpha * jnp.ones_like(Z))

    def conjugate(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j r_j²/(2α_j) + r_j m_j, for every r."""
        alpha, centre = self._weights(R, t)
        return jnp.sum(R * (R / (2 * alpha) + centre), axis=0)

    def shortfall(self, R: Any, t: Any, mean: Any, pi: Any) -> Any:  # noqa: ARG002
        """0: every r is in the domain."""
        return jnp.zeros((), R.dtype)

    def feasible(self, R: Any, t: Any, mean: Any, mixed: Any, pi: Any) -> Any:  # noqa: ARG002
        """R − mean, since every r is in the domain."""
        return R - mean[:, None]

    def reach(self, R: Any, t: Any) -> float:  # noqa: ARG002
        """1: every r is in the domain."""
        return 1.0

    def definite(self, targets: Any) -> bool:  # noqa: ARG002
        """False: r m may be negative."""
        return False

    def magnitude(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j r_j²/(2α_j) + |r_j m_j|."""
        alpha, centre = self._weights(R, t)
        return jnp.sum(jnp.abs(R) * (jnp.abs(R) / (2 * alpha) + jnp.abs(centre)), axis=0)

    def moved(self, Z: Float[Array, "K N"], t: Any, delta: Any) -> Float[Array, " N"]:
        """Σ_j α_j(|z_j − m_j| δ + δ²/2), (N,)."""
        alpha, centre = self._weights(Z, t)
        return jnp.sum(alpha * (jnp.abs(Z - centre) * delta + jnp.square(delta) / 2), axis=0)

    def residual_rounding(self, R: Any, Z: Float[Array, "K N"], t: Any, delta: Any) -> Any:
        """αδ + ε|r|: the rounding of z remains where r = α(z − m) is small."""
        alpha, _ = self._weights(Z, t)
        return alpha * delta + jnp.finfo(Z.dtype).eps * jnp.abs(R)

    def smoothness(self, targets: Any = None) -> Any:  # noqa: ARG002
        """max(1, k)."""
        return max(1.0, self.own) if isinstance(self.own, float) else jnp.maximum(1.0, self.own)

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """2 max(1, k) ℓ."""
        return 2 * self.smoothness(targets) * value
