"""The interface of a loss: what models, certificates and Hessians need of it.

A loss ℓ(z; t) is a function of the K logits z of one sample and its target t: a class label, or a
column of a target matrix. All methods work on columns: Z is (K, N), with one column for each
sample, and `t` holds the targets of the N samples, labels (N,) or targets (K, N). A loss is a
frozen dataclass registered as a pytree, so that its parameters, such as a smoothing, can be mapped
over by `jax.vmap` like the decays.
"""

from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def shift(K: int) -> np.ndarray:
    """The vector 1 of K entries. It takes no memory: most callers ask only whether there is one."""
    return np.broadcast_to(1.0, (K,))


class Curvature(NamedTuple):
    """The Hessians S_j of a loss in the logits of every sample, in one form for all losses.

        S = a diag(t)(diag p − ppᵀ)diag(t) + β uuᵀ + diag s + D,

    Each part is None where a loss lacks it. P, u, diagonal or dense must be given.

    P: distributions p, (K, N).  scale: a, (N,); None is 1.  stretch: t, (K, N); None is 1.
    u, beta: (K, N) and (N,).  diagonal: s, (K, N).  dense: D, symmetric, (K, K, N).
    top: index of the largest entry of every p, (N,), for `apply`; None until `prepared`.
    """

    P: Any = None
    scale: Any = None
    stretch: Any = None
    u: Any = None
    beta: Any = None
    diagonal: Any = None
    dense: Any = None
    top: Any = None

    def prepared(self) -> "Curvature":
        """The same curvature with `top`, which every call of `apply` needs. Traceable."""
        return self if self.P is None else self._replace(top=jnp.argmax(self.P, axis=0))

    def apply(self, dZ: Float[Array, "... K N"]) -> Float[Array, "... K N"]:
        """S_j δz_j for every column, for any leading axes of δZ; of `prepared` data. Traceable."""
        parts = []
        if self.P is not None:
            parts.append(self._multinomial(dZ))
        if self.u is not None:
            parts.append(self.u * (self.beta * jnp.sum(self.u * dZ, axis=-2, keepdims=True)))
        if self.diagonal is not None:
            parts.append(self.diagonal * dZ)
        if self.dense is not None:
            parts.append(jnp.einsum("jkn,...kn->...jn", self.dense, dZ, precision="highest"))
        return sum(parts[1:], parts[0])

    def _multinomial(self, dZ: Array) -> Array:
        """a diag(t)(diag p − ppᵀ)diag(t) δz.

        Since (diag p − ppᵀ)1 = 0, the entry of δz at the largest p is subtracted from all others
        first: then nothing cancels as p tends to a unit vector.
        """
        dZ = dZ if self.stretch is None else dZ * self.stretch
        top = jnp.arange(self.P.shape[0])[:, None] == self.top
        dZ = dZ - jnp.sum(jnp.where(top, dZ, 0), axis=-2, keepdims=True)
        image = self.P * (dZ - jnp.sum(self.P * dZ, axis=-2, keepdims=True))
        image = image if self.scale is None else image * self.scale
        return image if self.stretch is None else image * self.stretch

    def matrices(self) -> Float[np.ndarray, "N K K"]:
        """S_j as matrices, in NumPy; the rows of the first part sum to 0, without cancellation."""
        parts = (self.P, self.u, self.diagonal, self.dense)
        K, N = next(x for x in parts if x is not None).shape[-2:]
        S, classes = np.zeros((N, K, K)), np.arange(K)
        if self.P is not None:
            S = -self.P.T[:, :, None] * self.P.T[:, None, :]
            S[:, classes, classes] = 0
            S[:, classes, classes] = -S.sum(axis=2)
            S = S if self.scale is None else S * self.scale[:, None, None]
            if self.stretch is not None:
                S = S * self.stretch.T[:, :, None] * self.stretch.T[:, None, :]
        if self.u is not None:
            S = S + (self.beta * self.u).T[:, :, None] * self.u.T[:, None, :]
        if self.diagonal is not None:
            S[:, classes, classes] += self.diagonal.T
        if self.dense is not None:
            S = S + np.moveaxis(self.dense, -1, 0)
        return S

    def total(self, weights: Float[Array, " N"]) -> Float[Array, "K K"]:
        """Σ_j w_j S_j. Traceable."""
        highest = jax.lax.Precision.HIGHEST
        parts = []
        if self.P is not None:
            scaled = self.P * (weights if self.scale is None else weights * self.scale)
            t = 1.0 if self.stretch is None else self.stretch
            product = jnp.matmul(scaled * t, (self.P * t).T, precision=highest)
            parts.append(jnp.diag(jnp.sum(scaled * t * t, axis=1)) - product)
        if self.u is not None:
            parts.append(jnp.matmul(self.u * (weights * self.beta), self.u.T, precision=highest))
        if self.diagonal is not None:
            parts.append(jnp.diag(jnp.sum(self.diagonal * weights, axis=1)))
        if self.dense is not None:
            parts.append(jnp.sum(self.dense * weights, axis=-1))
        return sum(parts[1:], parts[0])

    def columns(self, which: Any) -> "Curvature":
        """The curvature of some of the columns."""
        return jax.tree.map(lambda x: x[..., which], self)


@runtime_checkable
class Loss(Protocol):
    """A loss ℓ(z; t) of the logits; columns are samples throughout.

    convex: whether ℓ is convex in z, so that every S_j is positive semidefinite.
    dual: whether `conjugate` is known, and with it a certificate.
    """

    convex: Any
    dual: Any

    def value(self, Z: Any, t: Any) -> Any:
        """ℓ_i ≥ 0 for every column, (N,), in nats for a negative log-likelihood."""
        ...

    def residual(self, Z: Any, t: Any) -> Any:
        """∇_z ℓ_i, (K, N); differentiable. Its errors are bounded by `residual_rounding`."""
        ...

    def curvature(self, Z: Any, t: Any) -> Curvature:
        """∇²_z ℓ_i of every column."""
        ...

    def conjugate(self, R: Any, t: Any) -> Any:
        """ℓ*_i(r) = sup_z ⟨r, z⟩ − ℓ(z; t_i) for every column of R in its domain, (N,).

        For a loss that is not convex this is the conjugate of its convex hull.
        """
        ...

    def feasible(self, R: Any, t: Any, mean: Any, mixed: Any, pi: Any) -> Any:
        """Dual variables near R whose weighted row sums are 0: (R − mean + s(t̄ − t))/(1 + s).

        mean (K,): the weighted mean of R.  mixed: s.  pi (K,): the weighted mean t̄ of the targets,
        for labels the class frequencies.
        """
        ...

    def shortfall(self, R: Any, t: Any, mean: Any, pi: Any) -> Any:
        """The least s ≥ 0 that keeps `feasible` within the domain of ℓ* for these columns."""
        ...

    def reach(self, R: Any, t: Any) -> Any:
        """The largest α ≤ 1 that keeps αR within the domain of ℓ* for these columns."""
        ...

    def definite(self, targets: Any) -> bool:
        """Whether all terms of ℓ* have one sign, so that ℓ* is known to its relative rounding."""
        ...

    def magnitude(self, R: Any, t: Any) -> Any:
        """The sum of the moduli of the terms of ℓ*, (N,), whose rounding is that of ℓ*."""
        ...

    def moved(self, Z: Any, t: Any, delta: Any) -> Any:
        """A bound on the change of ℓ_i when the logits of column i change by at most δ_i, (N,)."""
        ...

    def residual_rounding(self, R: Any, Z: Any, t: Any, delta: Any) -> Any:
        """A bound on the errors of R = `residual`, (K, N), at logits known to δ_i in column i.

        To first order in δ and in the precision ε of Z, with δ at least ε/2 max|Z|. Entries that
        are differences of larger terms have errors of the size of these terms times ε.
        """
        ...

    def smoothness(self, targets: Any = None) -> Any:
        """A bound on ‖S_j‖₂ over all z, for these targets (None: all labels)."""
        ...

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """An upper bound on the mean of ‖∇_z ℓ_i‖² where the mean of ℓ_i is `value`."""
        ...

    def null(self, K: int) -> Any:
        """A direction n (K,) with ℓ(z + sn; t) = ℓ(z; t), so that nᵀ∇ℓ = 0, or None.

        1 for losses that are invariant under shifts of the logits.
        """
        ...

    def check(self, K: int, targets: Any) -> None:
        """Refuse a number of classes or a target matrix (None for labels) that does not fit."""
        ...
