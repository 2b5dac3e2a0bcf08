"""Cross-entropy with labels: value, gradient, curvature and conjugate in closed form.

    ℓ(z, y) = −log p_y,   p = softmax(z)

Everything is written through the margin against the wrong classes,

    m = z_y − log Σ_{j≠y} exp z_j,   ℓ = log(1 + e^{−m}),   1 − p_y = σ(−m),

so that nothing cancels when p_y → 1: a loss of 1e-30 has full relative accuracy. Columns are
samples throughout.
"""

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ufm.losses.loss import Curvature, shift
from ufm.losses.parameters import NUMBER, nonnegative, parameter, registered

# A residual is the inner loop of every gradient. Up to this many classes its two sums are fastest
# in one pass; beyond, XLA's pass for two sums at once reads memory with a stride on CPUs.
FEW_CLASSES = 32

Labels = Int[Array | np.ndarray, " N"]


def is_label(Z: Float[Array, "K N"], labels: Labels) -> Array:
    """Whether an entry of a column is that of its label, (K, N)."""
    return jnp.arange(Z.shape[0])[:, None] == labels


def one_hot(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, "K N"]:
    """Y = [e_{y_i}] in the dtype of Z."""
    return is_label(Z, labels).astype(Z.dtype)


def margins(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, " N"]:
    """m_i = −log Σ_{j≠y} exp(z_j − z_y) for every column, (N,); positive where p_y > 1/2.

    Differences are taken first, so that a common shift of all logits costs no accuracy.
    """
    label = is_label(Z, labels)
    differences = Z - jnp.sum(jnp.where(label, Z, 0), axis=0)
    return -jax.nn.logsumexp(jnp.where(label, -jnp.inf, differences), axis=0)


def cross_entropy(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, " N"]:
    """ℓ_i = −log softmax(z_i)_{y_i} = log(1 + e^{−m_i}) for every column, (N,), in nats."""
    return jax.nn.softplus(-margins(Z, labels))


def probabilities(Z: Float[Array, "K N"]) -> Float[Array, "K N"]:
    """p_i = softmax(z_i) for every column, (K, N)."""
    return jax.nn.softmax(Z, axis=0)


@jax.custom_jvp
def residual(Z: Float[Array, "K N"], labels: Labels) -> Float[Array, "K N"]:
    """R = P − Y, (K, N), the gradient of Σ_i ℓ_i in Z, without forming p_y − 1.

    With e_j = exp(z_j − max z) and s = Σ_{j≠y} e_j:  R_j = e_j/(s + e_y) for the wrong classes
    and R_y = −s/(s + e_y), so every entry has full relative accuracy and columns sum to zero. The
    derivative along δZ is S_i δz_i, in closed form as well.
    """
    label = is_label(Z, labels)
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
        # "clip" saves the test for indices out of range: labels are rows of Z.
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
    """ℓ*(r) = sup_z ⟨r, z⟩ − ℓ(z, y) = Σ_j p_j log p_j, p = e_y + r: minus the entropy of p, (N,).

    p must be a distribution (otherwise ℓ* = +∞; not checked here). p_y = 1 + r_y enters through
    log1p, which is accurate where p_y is close to 1.
    """
    label = is_label(R, labels)
    wrong = jnp.where(label, 0, R)
    r_y = jnp.sum(jnp.where(label, R, 0), axis=0)
    return jnp.sum(jax.scipy.special.xlogy(wrong, wrong), axis=0) + jax.scipy.special.xlog1py(
        1 + r_y, r_y
    )


@registered
@dataclass(frozen=True)
class CrossEntropy:
    """ℓ(z; t) = s log Σ_j e^{z_j} − ⟨T, z⟩, s = ΣT: −log softmax(z)_y for a label y, T = e_y.

    Zhu et al. 2021 (arXiv 2105.02375). With label smoothing T = (1−ε) e_y + ε/K (Zhou et al. 2022,
    arXiv 2210.02192). A target matrix may be any T ≥ 0 without zero columns: soft labels, mixtures,
    next-token counts (arXiv 2408.15417), or several labels of one sample (pick-all-labels loss,
    arXiv 2310.15903). In nats. S = s(diag p − ppᵀ) has norm at most s/2. Methods: see
    `ufm.losses.Loss`.

    Args:
        smoothing: ε in [0, 1).
    """

    smoothing: Any = field(default=0.0, metadata=NUMBER)

    convex: ClassVar[bool] = True
    dual: ClassVar[bool] = True

    def __post_init__(self):
        parameter(self, "smoothing", least=0, below=1)

    @property
    def plain(self) -> bool:
        """Whether there is no smoothing."""
        return isinstance(self.smoothing, float) and bool(self.smoothing == 0)

    def null(self, K: int) -> Any:
        """The vector 1: a common shift of all logits does not change ℓ."""
        return shift(K)

    def check(self, K: int, targets: Any) -> None:  # noqa: ARG002
        """Targets must be ≥ 0, with a positive sum in each column.

        Raises:
            Refused: naming the first column that is not.
        """
        if targets is not None:
            nonnegative(targets, "cross-entropy")

    def _matrix(self, t: Any, Z: Array) -> Array:
        """The targets T as a matrix, smoothed, (K, N)."""
        T = one_hot(Z, t) if t.ndim == 1 else jnp.asarray(t, Z.dtype)
        return T if self.plain else self._smoothed(T)

    def _smoothed(self, T: Array) -> Array:
        eps = jnp.asarray(self.smoothing, T.dtype)
        return (1 - eps) * T + eps / T.shape[0] * jnp.sum(T, axis=0)

    def _moved_targets(self, t: Labels, Z: Array) -> Array:
        """T − e_y = ε(1/K − e_y), (K, N), with the relative accuracy of ε."""
        eps = jnp.asarray(self.smoothing, Z.dtype)
        return eps / Z.shape[0] - eps * one_hot(Z, t)

    def value(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """s(log Σ_j e^{z_j} − max z) + ⟨T, max z − z⟩, a sum of terms ≥ 0."""
        if self.plain and t.ndim == 1:
            return cross_entropy(Z, t)
        T = self._matrix(t, Z)
        top = jnp.max(Z, axis=0)
        first = jnp.arange(Z.shape[0])[:, None] == jnp.argmax(Z, axis=0)
        rest = jnp.log1p(jnp.sum(jnp.where(first, 0, jnp.exp(Z - top)), axis=0))
        return jnp.sum(T, axis=0) * rest + jnp.sum(T * (top - Z), axis=0)

    def residual(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, "K N"]:
        """s p − T; for labels by `crossentropy.residual`."""
        if t.ndim == 1:
            R = residual(Z, t)
            return R if self.plain else R - self._moved_targets(t, Z)
        T = self._matrix(t, Z)
        return jnp.sum(T, axis=0) * probabilities(Z) - T

    def curvature(self, Z: Float[Array, "K N"], t: Any) -> Curvature:
        """s(diag p − ppᵀ)."""
        scale = None if t.ndim == 1 else jnp.sum(jnp.asarray(t, Z.dtype), axis=0)
        return Curvature(probabilities(Z), scale)

    def conjugate(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j q_j log q_j − s log s at q = T + r ≥ 0."""
        if t.ndim == 1:
            if not self.plain:  # of q − e_y
                R = R + self._moved_targets(t, R)
            return conjugate(R, t)
        T = self._matrix(t, R)
        q, s = jnp.maximum(T + R, 0), jnp.sum(T, axis=0)
        xlogy = jax.scipy.special.xlogy
        return jnp.sum(xlogy(q, q), axis=0) - xlogy(s, s)

    def shortfall(self, R: Float[Array, "K N"], t: Any, mean: Any, pi: Any) -> Any:
        """The least s ≥ 0 that leaves no entry of (T + r − mean + s t̄)/(1 + s) negative."""
        if self.plain and t.ndim == 1:
            return shortfall(R, t, mean, pi)
        left = self._matrix(t, R) + R - mean[:, None]
        return jnp.maximum(-jnp.min(left / self._mean(pi)[:, None]), 0)

    def _mean(self, pi: Array) -> Array:
        return pi if self.plain else self._smoothed(pi[:, None])[:, 0]

    def feasible(self, R: Float[Array, "K N"], t: Any, mean: Any, mixed: Any, pi: Any) -> Any:
        """Each T + r is mixed with the mean target t̄."""
        if self.plain and t.ndim == 1:
            return feasible(R, t, mean, mixed, pi)
        T = self._matrix(t, R)
        moved = (R - mean[:, None] + mixed * (self._mean(pi)[:, None] - T)) / (1 + mixed)
        return jnp.maximum(moved, -T)

    def reach(self, R: Float[Array, "K N"], t: Any) -> float:  # noqa: ARG002
        """1, since T + αr = (1−α)T + α(T + r) ≥ 0."""
        return 1.0

    def definite(self, targets: Any) -> bool:
        """True for labels, where −ℓ* is an entropy."""
        return targets is None

    def magnitude(self, R: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """Σ_j |q_j log q_j| + |s log s|."""
        T = self._matrix(t, R)
        q, s = jnp.maximum(T + R, 0), jnp.sum(T, axis=0)
        xlogy = jax.scipy.special.xlogy
        return jnp.sum(jnp.abs(xlogy(q, q)), axis=0) + jnp.abs(xlogy(s, s))

    def moved(self, Z: Float[Array, "K N"], t: Any, delta: Any) -> Float[Array, " N"]:
        """2sδ, since ‖sp − T‖₁ ≤ 2s; for labels the sharper bound of `crossentropy.moved`."""
        if self.plain and t.ndim == 1:
            return moved(Z, t, delta)
        return 2 * delta * (1.0 if t.ndim == 1 else jnp.sum(jnp.asarray(t, Z.dtype), axis=0))

    def residual_rounding(self, R: Any, Z: Float[Array, "K N"], t: Any, delta: Any) -> Any:
        """2sp(1 − p)δ + ε(2sp + T); for labels that of `residual`, and ε|T − e_y| if smoothed."""
        eps = jnp.finfo(Z.dtype).eps
        if t.ndim == 1:
            if self.plain:
                return residual_rounding(R, delta)
            moved = self._moved_targets(t, Z)
            return residual_rounding(R + moved, delta) + eps * jnp.abs(moved)
        T, P = self._matrix(t, Z), probabilities(Z)
        s = jnp.sum(T, axis=0)
        return 2 * s * P * (1 - P) * delta + eps * (2 * s * P + T)

    def smoothness(self, targets: Any = None) -> Any:
        """s/2."""
        return 0.5 if targets is None else 0.5 * jnp.max(jnp.sum(jnp.asarray(targets), axis=0))

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """2 min(1, ℓ) ≥ 2(1 − p_y)² ≥ ‖p − e_y‖²; in general 2 sup‖S‖ ℓ, since ℓ ≥ 0."""
        if self.plain and targets is None:
            return 2 * jnp.minimum(1, value)
        return 2 * self.smoothness(targets) * value


def residual_rounding(R: Float[Array, "K N"], delta: Any) -> Float[Array, "K N"]:
    """(2δ + 2ε)|r|: an error of δ in the logits moves log p_j and log(1 − p_y) by at most 2δ."""
    return (2 * delta + 2 * jnp.finfo(R.dtype).eps) * jnp.abs(R)


def shortfall(R: Float[Array, "K N"], labels: Labels, mean: Any, pi: Any) -> Any:
    """The least s ≥ 0 that leaves no probability of y + (r − mean + s(π − y))/(1 + s) negative."""
    Y = is_label(R, labels)
    centred = R - mean[:, None]
    lowest = jnp.minimum(
        jnp.min(jnp.where(Y, jnp.inf, centred) / pi[:, None]),
        jnp.min(jnp.where(Y, 1 + centred, jnp.inf) / pi[:, None]),
    )
    return jnp.maximum(-lowest, 0)


def feasible(R: Float[Array, "K N"], labels: Labels, mean: Any, mixed: Any, pi: Any) -> Any:
    """(R − mean + s(π − Y))/(1 + s): each e_y + r is mixed with the class frequencies π."""
    Y = is_label(R, labels)
    centred = (R - mean[:, None] + mixed * (pi[:, None] - Y)) / (1 + mixed)
    # Rounding may leave a probability of -1e-17, outside the domain of ℓ*.
    return jnp.maximum(centred, jnp.where(Y, -1, 0))


def moved(Z: Float[Array, "K N"], labels: Labels, delta: Any) -> Float[Array, " N"]:
    """A bound on the change of ℓ when every logit changes by at most δ, (N,).

    The margin changes by at most 2δ, hence ℓ by at most min(2δ, ℓ(m − 2δ) − ℓ(m)), where the latter
    is at most (1 − p_y)(e^{2δ} − 1) and at most ℓ(m − 2δ).
    """
    twice, m = 2 * delta, margins(Z, labels)
    small = jax.nn.sigmoid(-m) * jnp.expm1(jnp.minimum(twice, 1))
    return jnp.minimum(twice, jnp.where(twice < 1, small, jax.nn.softplus(twice - m)))
