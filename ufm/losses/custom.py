"""User-defined losses, given by their value alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.losses.loss import Curvature, shift


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["function", "convex", "shift_invariant", "bound"],
)
@dataclass(frozen=True)
class FromValue:
    """ℓ(z; t) given by a function of one sample, with derivatives by automatic differentiation.

    Descents, critical points, spectra, indices and censuses work with this loss. Not available are
    certificates, which need the conjugate, and with them the verdict "global minimiser"; closed
    forms; and, without `bound`, the step "safe". `check_loss` tests whether the properties stated
    here hold.

    Args:
        function: (z (K,), t) → ℓ ≥ 0, traceable and twice differentiable; t is a label or a column
            of the target matrix, (K,). With a function of a module, not a lambda made at each
            call, compiled programs are reused.
        convex: whether ℓ is convex in z.
        shift_invariant: whether ℓ(z + s1; t) = ℓ(z; t).
        bound: an upper bound on ‖∇²_z ℓ‖₂ over all z, where one is known.

    Raises:
        Refused: no function, properties that are not True or False, a bound that is not positive.
    """

    function: Callable[[Any, Any], Any]
    convex: bool = False
    shift_invariant: bool = False
    bound: float | None = None

    dual: ClassVar[bool] = False

    def __post_init__(self):
        if not callable(self.function):
            raise Refused(
                f"got function={check.shown(self.function)}; allowed: a function (z, t) → ℓ"
            )
        object.__setattr__(self, "convex", check.flag("convex", self.convex))
        flag = check.flag("shift_invariant", self.shift_invariant)
        object.__setattr__(self, "shift_invariant", flag)
        if self.bound is not None:
            object.__setattr__(self, "bound", check.real("bound", self.bound, above=0))

    def null(self, K: int) -> Any:
        """The vector 1 if `shift_invariant`, or None."""
        return shift(K) if self.shift_invariant else None

    def check(self, K: int, targets: Any) -> None:
        """Any targets are accepted."""

    def value(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """The function, column by column."""
        return jax.vmap(self.function, (1, -1))(Z, jnp.asarray(t))

    def residual(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, "K N"]:
        """Its gradient."""
        return jax.vmap(jax.grad(self.function), (1, -1), 1)(Z, jnp.asarray(t))

    def curvature(self, Z: Float[Array, "K N"], t: Any) -> Curvature:
        """Its Hessian, K² numbers for each sample."""
        dense = jax.vmap(jax.hessian(self.function), (1, -1), 2)(Z, jnp.asarray(t))
        return Curvature(dense=(dense + jnp.swapaxes(dense, 0, 1)) / 2)

    def residual_rounding(self, R: Any, Z: Float[Array, "K N"], t: Any, delta: Any) -> Any:
        """|S|δ + ε(2|r| + |r₀|), r₀ = ∇ℓ(0).

        What cancels inside the function is not known. An estimate is the part of ∇ℓ that vanishes
        on the way from z = 0: log Σ_j exp z_j − z_y has the gradient p − e_y, known to ε.
        """
        at_zero = self.residual(jnp.zeros_like(Z), t)
        own = jnp.finfo(Z.dtype).eps * (2 * jnp.abs(R) + jnp.abs(at_zero))
        return jnp.sum(jnp.abs(self.curvature(Z, t).dense), axis=1) * delta + own

    def smoothness(self, targets: Any = None) -> float:  # noqa: ARG002
        """The given bound, or infinity."""
        return float("inf") if self.bound is None else self.bound

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """2 sup‖S‖ ℓ, since ℓ ≥ 0."""
        return 2 * self.smoothness(targets) * value

    def _no_dual(self, *_: Any) -> NoReturn:
        raise Refused(
            "got a loss that is known by its value alone, without the conjugate that a certificate "
            "needs; allowed: the losses of ufm.losses, or a class of your own with all of "
            "ufm.losses.Loss"
        )

    conjugate = feasible = shortfall = reach = moved = definite = magnitude = _no_dual
