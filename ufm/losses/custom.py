"""A loss of one's own, from its value alone."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ufm import check
from ufm.check import Refused
from ufm.losses.loss import Curvature


@partial(
    jax.tree_util.register_dataclass,
    data_fields=[],
    meta_fields=["function", "convex", "shift_invariant", "bound"],
)
@dataclass(frozen=True)
class FromValue:
    """ℓ(z; t) from a function of one sample; its derivatives are automatic.

    Descents, critical points, spectra, indices and censuses are those of this loss. What it lacks
    is what needs the conjugate: certificates, and so the verdict "global minimiser"; closed forms;
    and, without `bound`, the step "safe". `check_loss` tells whether what is said of it holds.

    Args:
        function: (z (K,), t) → ℓ ≥ 0, traceable and twice differentiable; t is a label or a column
            of the target matrix, (K,). A function of a module, not a lambda made anew at each call,
            lets compiled programs be used again.
        convex: whether ℓ is convex in z.
        shift_invariant: whether ℓ(z + s1; t) = ℓ(z; t).
        bound: sup ‖∇²_z ℓ‖₂, where it is known.
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
        """1 if the loss is said to be invariant under shifts."""
        return np.ones(K) if self.shift_invariant else None

    def check(self, K: int, targets: Any) -> None:
        """Any targets: the function knows."""

    def value(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, " N"]:
        """The function, column by column."""
        return jax.vmap(self.function, (1, -1))(Z, jnp.asarray(t))

    def residual(self, Z: Float[Array, "K N"], t: Any) -> Float[Array, "K N"]:
        """Its gradient."""
        return jax.vmap(jax.grad(self.function), (1, -1), 1)(Z, jnp.asarray(t))

    def curvature(self, Z: Float[Array, "K N"], t: Any) -> Curvature:
        """Its Hessian: K² numbers a sample."""
        dense = jax.vmap(jax.hessian(self.function), (1, -1), 2)(Z, jnp.asarray(t))
        return Curvature(dense=(dense + jnp.swapaxes(dense, 0, 1)) / 2)

    def smoothness(self, targets: Any = None) -> float:  # noqa: ARG002
        """The given bound; infinite without one."""
        return float("inf") if self.bound is None else self.bound

    def residual_bound(self, value: Any, targets: Any = None) -> Any:
        """2 sup‖S‖ ℓ, as ℓ ≥ 0."""
        return 2 * self.smoothness(targets) * value

    def _no_dual(self, *_: Any) -> NoReturn:
        raise Refused(
            "got a loss that is known by its value alone, whose conjugate no certificate can use; "
            "allowed: the losses of ufm.losses, or a class of your own with all of ufm.losses.Loss"
        )

    conjugate = feasible = shortfall = reach = moved = definite = magnitude = _no_dual
