"""What a loss of logits is: the interface that every model, certificate and Hessian asks.

A loss ℓ(z; t) is a function of the K logits z of one sample and its target t. Everything here works
on columns: Z is (K, N), a column a sample, and `t` holds the targets of the N samples, class labels
(N,) for the losses of classification. A loss is a frozen dataclass registered as a pytree: what is
traced in it, such as a temperature, can be swept under `jax.vmap` like the decays.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Curvature(NamedTuple):
    """The Hessians of a loss in the logits of every sample: S_j = diag(p_j) − p_j p_jᵀ.

    P: distributions p_j, (K, N), of NumPy or JAX.
    top: index of the largest entry of every p_j, (N,), for `apply`; None until `prepared`.
    """

    P: Any
    top: Any = None

    def prepared(self) -> "Curvature":
        """With what every call of `apply` shares. Traceable."""
        return self._replace(top=jnp.argmax(self.P, axis=0))

    def apply(self, dZ: Float[Array, "... K N"]) -> Float[Array, "... K N"]:
        """S_j δz_j for every column, behind any leading axes. Traceable, of `prepared` data.

        S_j 1 = 0: measured from the largest entry of p_j the product keeps its digits as p_j tends
        to a unit vector.
        """
        top = jnp.arange(self.P.shape[0])[:, None] == self.top
        dZ = dZ - jnp.sum(jnp.where(top, dZ, 0), axis=-2, keepdims=True)
        return self.P * (dZ - jnp.sum(self.P * dZ, axis=-2, keepdims=True))

    def matrices(self) -> Float[np.ndarray, "N K K"]:
        """S_j as matrices, in NumPy, without cancellation: the rows sum to 0."""
        S = -self.P.T[:, :, None] * self.P.T[:, None, :]
        classes = np.arange(self.P.shape[0])
        S[:, classes, classes] = 0
        S[:, classes, classes] = -S.sum(axis=2)
        return S

    def total(self, weights: Float[Array, " N"]) -> Float[Array, "K K"]:
        """Σ_j w_j S_j. Traceable."""
        scaled = self.P * weights
        product = jnp.matmul(scaled, self.P.T, precision=jax.lax.Precision.HIGHEST)
        return jnp.diag(jnp.sum(scaled, axis=1)) - product

    def columns(self, which: Any) -> "Curvature":
        """Some of the columns."""
        return jax.tree.map(lambda x: x[..., which], self)


@runtime_checkable
class Loss(Protocol):
    """A loss ℓ(z; t) of the logits; columns are samples throughout.

    convex: whether ℓ is convex in z, so that every S_j is positive semidefinite.
    shift_invariant: whether ℓ(z + s1; t) = ℓ(z; t), so that residuals sum to 0.
    smoothness: a bound on ‖S_j‖₂ over all z and t.
    """

    convex: bool
    shift_invariant: bool
    smoothness: float

    def value(self, Z: Any, t: Any) -> Any:
        """ℓ_i ≥ 0 for every column, (N,), in nats for a negative log-likelihood."""
        ...

    def residual(self, Z: Any, t: Any) -> Any:
        """∇_z ℓ_i, (K, N), every entry with its relative accuracy; differentiable."""
        ...

    def curvature(self, Z: Any, t: Any) -> Curvature:
        """∇²_z ℓ_i of every column."""
        ...

    def conjugate(self, R: Any, t: Any) -> Any:
        """ℓ*_i(r) = sup_z ⟨r, z⟩ − ℓ(z; t_i) for every column of R in its domain, (N,)."""
        ...

    def feasible(self, R: Any, t: Any, mean: Any, mixed: Any, pi: Any) -> Any:
        """Dual variables of zero weighted row sums near R: (R − mean + s(π − Y))/(1 + s)."""
        ...

    def shortfall(self, R: Any, t: Any, mean: Any, pi: Any) -> Any:
        """The least s ≥ 0 that keeps `feasible` within the domain of ℓ* for these columns."""
        ...

    def moved(self, Z: Any, t: Any, delta: Any) -> Any:
        """How far ℓ_i moves at most when every logit of column i moves by at most δ_i, (N,)."""
        ...

    def residual_bound(self, value: Any) -> Any:
        """An upper bound on the mean of ‖∇_z ℓ_i‖² where the mean of ℓ_i is `value`."""
        ...
