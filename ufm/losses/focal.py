"""The focal loss, which is not convex."""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm.losses import crossentropy
from ufm.losses.crossentropy import Labels, is_label, margins
from ufm.losses.loss import Curvature, shift
from ufm.losses.parameters import NUMBER, labels_only, parameter, registered

_LOWEST, _HIGHEST = -60.0, 800.0  # margins between which φ′ = −τ is solved
_HALVINGS = 60


@registered
@dataclass(frozen=True)
class Focal:
    """ℓ(z; y) = φ(m), φ(m) = (1 − p)^γ log(1/p), p = σ(m), m = z_y − log Σ_{j≠y} e^{z_j}.

    Lin et al. 2017; in this model Zhou et al. 2022 (arXiv 2210.02192). In nats. φ is not convex for
    γ > 0 (φ″ < 0 at very negative margins); the conjugate is that of its convex hull, whose slopes
    are −1 … 0. Methods: see `ufm.losses.Loss`. With q the softmax of the wrong classes and τ = −φ′,

        ∇ℓ = τ(q − e_y),   S = τ(diag q − qqᵀ) + φ″(e_y − q)(e_y − q)ᵀ.

    Args:
        gamma: γ ≥ 0; 0 is cross-entropy.
    """

    gamma: Any = field(default=2.0, metadata=NUMBER)

    convex: ClassVar[bool] = False
    dual: ClassVar[bool] = True

    def __post_init__(self):
        parameter(self, "gamma", least=0)

    def null(self, K: int) -> Any:
        """The vector 1: a common shift of all logits does not change ℓ."""
        return shift(K)

    def check(self, K: int, targets: Any) -> None:  # noqa: ARG002
        """Labels only, no target matrices.

        Raises:
            Refused: a target matrix.
        """
        labels_only(targets, "the focal loss")

    def _slopes(self, m: Array) -> tuple[Array, Array, Array]:
        """φ, τ/σ(−m) and φ″ at margins m."""
        gamma = jnp.asarray(self.gamma, m.dtype)
        p, q, loss = jax.nn.sigmoid(m), jax.nn.sigmoid(-m), jax.nn.softplus(-m)
        power = jnp.exp(-gamma * jax.nn.softplus(m))  # σ(−m)^γ
        ratio = jnp.where(q > 0, loss / jnp.where(q > 0, q, 1), 1)  # → 1
        share = power * (gamma * p * ratio + 1)
        second = power * p * (gamma**2 * p * loss + (2 * gamma + 1) * q - gamma * q * loss)
        return power * loss, share, second

    def value(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """φ(m)."""
        return self._slopes(margins(Z, t))[0]

    def residual(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, "K N"]:
        """τ(q − e_y), by the residual of cross-entropy, which is σ(−m)(q − e_y)."""
        return crossentropy.residual(Z, t) * self._slopes(margins(Z, t))[1]

    def curvature(self, Z: Float[Array, "K N"], t: Labels) -> Curvature:
        """τ(diag q − qqᵀ) + φ″(e_y − q)(e_y − q)ᵀ."""
        m, label = margins(Z, t), is_label(Z, t)
        q = jax.nn.softmax(jnp.where(label, -jnp.inf, Z), axis=0)
        _, share, second = self._slopes(m)
        tau = jax.nn.sigmoid(-m) * share
        return Curvature(P=q, scale=tau, u=jnp.where(label, 1, -q), beta=second)

    def conjugate(self, R: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """φ*(−τ) + τ Σ_j q_j log q_j with τ = −r_y, τq the other entries of r."""
        wrong = jnp.where(is_label(R, t), 0, jnp.maximum(R, 0))
        tau = jnp.sum(wrong, axis=0)
        entropy = jnp.sum(jax.scipy.special.xlogy(wrong, wrong), axis=0)
        entropy -= jax.scipy.special.xlogy(tau, tau)
        return self._supremum(tau) + entropy

    def _supremum(self, tau: Float[Array, " N"]) -> Float[Array, " N"]:
        """φ*(−τ) = sup_m −τm − φ(m) for 0 ≤ τ ≤ 1, at the m with φ′(m) = −τ.

        There is one such m, and −φ′ > τ at all smaller ones, so it is found by bisection. An error
        in m changes the supremum by its square.
        """

        def halve(_, ends):
            low, high = ends
            middle = (low + high) / 2
            steep = jax.nn.sigmoid(-middle) * self._slopes(middle)[1] > tau
            return jnp.where(steep, middle, low), jnp.where(steep, high, middle)

        ends = jnp.full_like(tau, _LOWEST), jnp.full_like(tau, _HIGHEST)
        low, high = jax.lax.fori_loop(0, _HALVINGS, halve, ends)
        m = (low + high) / 2
        return jnp.where(tau > 0, -tau * m - self._slopes(m)[0], 0)

    def shortfall(self, R: Any, t: Labels, mean: Any, pi: Any) -> Any:
        """That of cross-entropy: τ ≤ 1 means 1 + r_y ≥ 0 here too."""
        return crossentropy.shortfall(R, t, mean, pi)

    def feasible(self, R: Any, t: Labels, mean: Any, mixed: Any, pi: Any) -> Any:
        """That of cross-entropy."""
        return crossentropy.feasible(R, t, mean, mixed, pi)

    def reach(self, R: Float[Array, "K N"], t: Labels) -> Any:
        """min(1, 1/max τ): the slope of φ may exceed those of its hull, which are at most 1."""
        return 1 / jnp.maximum(1, jnp.max(jnp.where(is_label(R, t), -R, 0)))

    def definite(self, targets: Any) -> bool:  # noqa: ARG002
        """False: the entropy and φ* may have different signs."""
        return False

    def magnitude(self, R: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """|φ*(−τ)| and the entropies of the wrong classes."""
        wrong = jnp.where(is_label(R, t), 0, jnp.maximum(R, 0))
        tau, xlogy = jnp.sum(wrong, axis=0), jax.scipy.special.xlogy
        entropies = jnp.sum(jnp.abs(xlogy(wrong, wrong)), axis=0) + jnp.abs(xlogy(tau, tau))
        return jnp.abs(self._supremum(tau)) + entropies

    def moved(self, Z: Any, t: Any, delta: Any) -> Float[Array, " N"]:  # noqa: ARG002
        """2δ(1 + γ/e): a margin changes by at most 2δ, and −φ′ ≤ 1 + γ sup p log(1/p)."""
        return 2 * delta * self._steepest()

    def _steepest(self) -> Any:
        return 1 + self.gamma / jnp.e

    def residual_rounding(self, R: Any, Z: Any, t: Any, delta: Any) -> Any:  # noqa: ARG002
        """(1 + γ)(2δ + 2ε)|r|: that of cross-entropy, with the power γ of σ(−m)."""
        return (1 + self.gamma) * crossentropy.residual_rounding(R, delta)

    def smoothness(self, targets: Any = None) -> Any:  # noqa: ARG002
        """2 sup|φ″| + sup τ/2, with |φ″| ≤ γ²/(2e) + (2γ+1)/4 + γ/e term by term."""
        second = self.gamma**2 / (2 * jnp.e) + (2 * self.gamma + 1) / 4 + self.gamma / jnp.e
        return 2 * second + self._steepest() / 2

    def residual_bound(self, value: Any, targets: Any = None) -> Any:  # noqa: ARG002
        """2 sup τ², since ‖q − e_y‖² ≤ 2."""
        return 2 * self._steepest() ** 2 * jnp.ones_like(jnp.asarray(value, float))
