"""Cross-entropy of logits that are scaled and shifted: temperature, LDAM, CDT and VS."""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm.check import Refused
from ufm.losses import crossentropy
from ufm.losses.crossentropy import Labels
from ufm.losses.loss import Curvature, shift
from ufm.losses.parameters import labels_only, numbers, registered


@registered
@dataclass(frozen=True)
class LogitAdjusted:
    """ℓ(z; y) = cross-entropy of diag(a) z + ι_y, for labels y, in nats.

    a is an inverse temperature, or one scale for each class (CDT, Ye et al. 2020); ι has one shift
    for each logit (logit adjustment, Menon et al. 2021), or one for each pair of logit and true
    class (LDAM, Cao et al. 2019, has −aΔ_y at the logit of y); both together are the vector-scaling
    loss (Kini et al. 2021; in this model Behnia et al. 2023, arXiv 2303.07608). Methods: see
    `ufm.losses.Loss`.

    Args:
        scale: a > 0, a number or K of them.
        shift: ι, a number (which changes nothing), K numbers, or (K, K) with ι[j, y].
    """

    scale: Any = 1.0
    shift: Any = 0.0

    convex: ClassVar[bool] = True
    dual: ClassVar[bool] = True

    def __post_init__(self):
        numbers(self, "scale", 1, above=0)
        numbers(self, "shift", 2)

    def null(self, K: int) -> Any:
        """The vector 1/a, or 1 where all logits have one scale."""
        scale = self.scale if hasattr(self.scale, "ndim") else np.asarray(self.scale)
        return 1 / scale if scale.ndim else shift(K)

    def check(self, K: int, targets: Any) -> None:
        """Scale and shift must have the number of classes; no target matrices.

        Raises:
            Refused: another number of entries; a target matrix.
        """
        labels_only(targets, "the logit-adjusted loss")
        for name, shapes in (("scale", [(), (K,)]), ("shift", [(), (K,), (K, K)])):
            got = np.shape(getattr(self, name))
            if got not in shapes:
                raise Refused(f"got {name} of shape {got} for K={K}; allowed: {shapes}")

    def _scale(self, Z: Array) -> Array:
        """a as a column, (K, 1) or (1, 1)."""
        return jnp.reshape(jnp.asarray(self.scale, Z.dtype), (-1, 1))

    def _shift(self, Z: Array, t: Labels) -> Array:
        """ι of every sample, (K, N), (K, 1) or (1, 1)."""
        shift = jnp.asarray(self.shift, Z.dtype)
        return shift[:, t] if shift.ndim == 2 else jnp.reshape(shift, (-1, 1))

    def _adjusted(self, Z: Array, t: Labels) -> Array:
        return self._scale(Z) * Z + self._shift(Z, t)

    def value(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """The cross-entropy of the adjusted logits."""
        return crossentropy.cross_entropy(self._adjusted(Z, t), t)

    def residual(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, "K N"]:
        """a(p − y)."""
        return self._scale(Z) * crossentropy.residual(self._adjusted(Z, t), t)

    def curvature(self, Z: Float[Array, "K N"], t: Labels) -> Curvature:
        """diag(a)(diag p − ppᵀ)diag(a)."""
        P = crossentropy.probabilities(self._adjusted(Z, t))
        return Curvature(P, stretch=self._scale(Z) * jnp.ones_like(P))

    def conjugate(self, R: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """That of cross-entropy at r/a, less ⟨r/a, ι⟩."""
        R = R / self._scale(R)
        return crossentropy.conjugate(R, t) - jnp.sum(R * self._shift(R, t), axis=0)

    def shortfall(self, R: Any, t: Labels, mean: Any, pi: Any) -> Any:
        """That of cross-entropy at r/a."""
        a = self._scale(R)
        return crossentropy.shortfall(R / a, t, mean / a[:, 0], pi)

    def feasible(self, R: Any, t: Labels, mean: Any, mixed: Any, pi: Any) -> Any:
        """That of cross-entropy at r/a, times a."""
        a = self._scale(R)
        return a * crossentropy.feasible(R / a, t, mean / a[:, 0], mixed, pi)

    def reach(self, R: Any, t: Any) -> float:  # noqa: ARG002
        """1, as for cross-entropy with labels."""
        return 1.0

    def definite(self, targets: Any) -> bool:  # noqa: ARG002
        """False: the terms of the shifts have any sign."""
        return False

    def magnitude(self, R: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """That of cross-entropy at r/a, plus Σ_j |r_j ι_j/a_j|."""
        R = R / self._scale(R)
        return jnp.sum(jnp.abs(R * self._shift(R, t)), axis=0) - crossentropy.conjugate(R, t)

    def moved(self, Z: Float[Array, "K N"], t: Labels, delta: Any) -> Float[Array, " N"]:
        """That of cross-entropy for max a δ, by which the adjusted logits change at most."""
        return crossentropy.moved(self._adjusted(Z, t), t, delta * jnp.max(self._scale(Z)))

    def residual_rounding(self, R: Any, Z: Float[Array, "K N"], t: Labels, delta: Any) -> Any:
        """That of cross-entropy, where the adjusted logits are known to aδ and their rounding."""
        a, moved = self._scale(Z), self._adjusted(Z, t)
        sizes = a * jnp.abs(Z) + jnp.abs(moved)
        delta = jnp.max(a) * delta + jnp.finfo(Z.dtype).eps / 2 * jnp.max(sizes, axis=0)
        return crossentropy.residual_rounding(R, delta)

    def smoothness(self, targets: Any = None) -> Any:  # noqa: ARG002
        """max a²/2."""
        return jnp.max(jnp.asarray(self.scale, float)) ** 2 / 2

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """max a² times that of cross-entropy."""
        return 4 * self.smoothness(targets) * jnp.minimum(1, value)
