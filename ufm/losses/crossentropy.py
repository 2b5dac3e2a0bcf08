"""Cross-entropy with labels: value, gradient, curvature and conjugate in closed form.

    ℓ(z, y) = −log p_y,   p = softmax(z)

Everything is written through the margin against the wrong classes,

    m = z_y − log Σ_{j≠y} exp z_j,   ℓ = log(1 + e^{−m}),   1 − p_y = σ(−m),

so that nothing cancels when p_y → 1: a loss of 1e-30 keeps its leading digits. Columns are
samples throughout.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm.losses.loss import Curvature

# A residual is the inner loop of every gradient. Up to this many classes both of its sums come
# fastest from one pass; beyond, XLA's pass for two sums at once strides through memory on CPUs.
FEW_CLASSES = 32

Labels = Int[Array | np.ndarray, " N"]


def _is_label(Z: Float[Array, "K N"], labels: Labels) -> Array:
    return jnp.arange(Z.shape[0])[:, None] == labels[None, :]


def margins(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, " N"]:
    """m_i = −log Σ_{j≠y} exp(z_j − z_y) for every column; positive where p_y > 1/2.

    Differences come first, so that a shift common to all logits costs no digits.
    """
    label = _is_label(Z, labels)
    differences = Z - jnp.sum(jnp.where(label, Z, 0), axis=0)
    return -jax.nn.logsumexp(jnp.where(label, -jnp.inf, differences), axis=0)


def cross_entropy(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, " N"]:
    """ℓ_i = −log softmax(z_i)_{y_i} = log(1 + e^{−m_i}), in nats, one value a column."""
    return jax.nn.softplus(-margins(Z, labels))


def probabilities(Z: Float[Array, "K N"]) -> Float[Array, "K N"]:
    """p_i = softmax(z_i), one column a sample."""
    return jax.nn.softmax(Z, axis=0)


@jax.custom_jvp
def residual(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, "K N"]:
    """R = P − Y, the gradient of Σ_i ℓ_i in Z, without forming p_y − 1.

    With e_j = exp(z_j − max z) and s = Σ_{j≠y} e_j:  R_j = e_j/(s + e_y) for the wrong classes
    and R_y = −s/(s + e_y), so every entry keeps its relative accuracy and columns sum to zero.
    Its derivative along δZ is S_i δz_i, in closed form too.
    """
    label = _is_label(Z, labels)
    top = jnp.max(Z, axis=0)
    if Z.shape[0] <= FEW_CLASSES:
        e = jnp.exp(Z - top)
        zero = jnp.zeros((), Z.dtype)
        s, e_y = jax.lax.reduce(
            (jnp.where(label, 0, e), jnp.where(label, e, 0)),
            (zero, zero),
            lambda x, y: (x[0] + y[0], x[1] + y[1]),
            (0,),
        )
    else:
        e = jnp.where(label, 0, jnp.exp(Z - top))
        s = jnp.sum(e, axis=0)
        # "clip" only spares a test: labels are rows of Z.
        e_y = jnp.exp(jnp.take_along_axis(Z, labels[None, :], axis=0, mode="clip")[0] - top)
    scale = 1 / (s + e_y)
    return jnp.where(label, -s * scale, e * scale)


@residual.defjvp
def _residual_jvp(primals, tangents):
    Z, labels = primals
    return residual(Z, labels), curvature(jax.nn.softmax(Z, axis=0), tangents[0])


def curvature(P: Float[Array, "K N"], dZ: Float[Array, "K N"]) -> Float[Array, "K N"]:
    """S_i δz_i with S_i = diag(p_i) − p_i p_iᵀ, the Hessian of ℓ_i, for every column."""
    PdZ = P * dZ
    return PdZ - P * jnp.sum(PdZ, axis=0)


def conjugate(R: Float[Array, "K N"], labels: Labels) -> Float[Array, " N"]:
    """ℓ*(r) = sup_z ⟨r, z⟩ − ℓ(z, y) = Σ_j p_j log p_j at p = e_y + r, minus the entropy of p.

    r must make p a distribution (otherwise ℓ* = +∞; not checked here). p_y = 1 + r_y is taken
    through log1p, so a nearly certain p keeps its accuracy.
    """
    label = _is_label(R, labels)
    wrong = jnp.where(label, 0, R)
    r_y = jnp.sum(jnp.where(label, R, 0), axis=0)
    return jnp.sum(jax.scipy.special.xlogy(wrong, wrong), axis=0) + jax.scipy.special.xlog1py(
        1 + r_y, r_y
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class CrossEntropy:
    """ℓ(z, y) = −log softmax(z)_y, for labels y: the loss of Zhu et al. 2021 (arXiv 2105.02375).

    Methods: see `ufm.losses.Loss`. S = diag(p) − ppᵀ has norm at most 1/2.
    """

    convex: ClassVar[bool] = True
    shift_invariant: ClassVar[bool] = True
    smoothness: ClassVar[float] = 0.5

    def value(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """`cross_entropy`, in nats."""
        return cross_entropy(Z, t)

    def residual(self, Z: Float[Array, "K N"], t: Labels) -> Float[Array, "K N"]:
        """P − Y, by `residual`."""
        return residual(Z, t)

    def curvature(self, Z: Float[Array, "K N"], t: Labels) -> Curvature:  # noqa: ARG002
        """p = softmax(z) of every column; the labels play no part."""
        return Curvature(probabilities(Z))

    def conjugate(self, R: Float[Array, "K N"], t: Labels) -> Float[Array, " N"]:
        """Minus the entropy of e_y + r, by `conjugate`."""
        return conjugate(R, t)

    def shortfall(self, R: Float[Array, "K N"], t: Labels, mean: Any, pi: Any) -> Any:
        """The least s ≥ 0 that leaves no probability of (r − mean + s π)/(1 + s) negative."""
        Y = _is_label(R, t)
        centred = R - mean[:, None]
        lowest = jnp.minimum(
            jnp.min(jnp.where(Y, jnp.inf, centred) / pi[:, None]),
            jnp.min(jnp.where(Y, 1 + centred, jnp.inf) / pi[:, None]),
        )
        return jnp.maximum(-lowest, 0)

    def feasible(self, R: Float[Array, "K N"], t: Labels, mean: Any, mixed: Any, pi: Any) -> Any:
        """(R − mean + s(π − Y))/(1 + s): every e_y + r is mixed with the class frequencies π."""
        Y = _is_label(R, t)
        moved = (R - mean[:, None] + mixed * (pi[:, None] - Y)) / (1 + mixed)
        # Exactly feasible but for rounding, which must not leave a probability of -1e-17.
        return jnp.maximum(moved, jnp.where(Y, -1, 0))

    def moved(self, Z: Float[Array, "K N"], t: Labels, delta: Any) -> Float[Array, " N"]:
        """At most 2δ, and ℓ(m − 2δ) − ℓ(m) ≤ (1 − p_y)(e^{2δ} − 1) or ℓ(m − 2δ) itself.

        A margin moves by at most 2δ.
        """
        twice, m = 2 * delta, margins(Z, t)
        small = jax.nn.sigmoid(-m) * jnp.expm1(jnp.minimum(twice, 1))
        return jnp.minimum(twice, jnp.where(twice < 1, small, jax.nn.softplus(twice - m)))

    def residual_bound(self, value: Any) -> Any:
        """‖p − y‖² ≤ 2(1 − p_y)² ≤ 2 min(1, ℓ)."""
        return 2 * jnp.minimum(1, value)
