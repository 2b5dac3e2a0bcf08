"""What the features may be: free, or not negative as behind a ReLU. One entry of a table each.

    f(W, H, b) as in `ufm.model.objective`,   H ∈ C:   C = R^{d×N} (free), or H ≥ 0 (nonnegative)

f and ∇f are the same functions for every member; what differs is which points there are and when
one is stationary: −∇f has no part along which a point of C can move on. With the tangent cone T of
C at H that part is the projection of −∇_H f on T; for H ≥ 0 it is −∇_H f where h > 0 and its
positive part where h = 0, so its norm is 0 exactly at the points of Karush, Kuhn and Tucker.

A function that knows free features alone says so by `require_free`, and never answers for others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm.check import Refused
from ufm.model import fixed
from ufm.model.problem import Params, Problem


class Member(NamedTuple):
    """One kind of features, by what is asked of its set C.

    project: H ↦ the nearest point of C.  draw: Gaussian H ↦ features of a random start.
    slope: (H, ∇_H f) ↦ the negative of what is left of −∇_H f in the tangent cone of C at H.
    wrong: H ↦ why it is not in C, in words, or None; of concrete arrays.
    """

    project: Callable[[Array], Array]
    draw: Callable[[Array], Array]
    slope: Callable[[Array, Array], Array]
    wrong: Callable[[Any], str | None]


def _negative(H: Any) -> str | None:
    xp = np if isinstance(H, np.ndarray) else jnp
    count = int(xp.sum(H < 0))
    if not count:
        return None
    return (
        f"{count} negative entries in H of shape {H.shape}, the most negative {float(H.min()):.6g}"
    )


def _held(H: Array, slope: Array) -> Array:
    """∇_H f where h > 0, and its negative part where h = 0."""
    return jnp.where(H > 0, slope, jnp.minimum(slope, 0))


MEMBERS = {
    "free": Member(lambda H: H, lambda H: H, lambda _, slope: slope, lambda _: None),
    "nonnegative": Member(lambda H: jnp.maximum(H, 0), jnp.abs, _held, _negative),
}


def of(problem: Problem) -> Member:
    """The member that the features of a problem are."""
    return MEMBERS[problem.features]


def is_free(problem: Problem) -> bool:
    """Whether every H is a point of the problem."""
    return problem.features == "free"


def project(problem: Problem, params: Params) -> Params:
    """The nearest point of the problem: (W, max(H, 0), b) for H ≥ 0. Traceable."""
    return params if is_free(problem) else params._replace(H=of(problem).project(params.H))


def slope(problem: Problem, params: Params, gradient: Params) -> Params:
    """The projected gradient: ∇f less what the constraints on H hold against. Traceable.

    It is 0 exactly where the point is stationary; its norm is the residual of descent and `solve`.
    """
    if is_free(problem):
        return gradient
    return gradient._replace(H=of(problem).slope(params.H, gradient.H))


def check_feasible(problem: Problem, params: Params) -> None:
    """Refuse concrete features that are no features of the problem; tracers pass.

    Raises:
        Refused: with how many entries are wrong, the worst one, and how to mend it.
    """
    if is_free(problem) or isinstance(params.H, jax.core.Tracer):
        return
    if wrong := of(problem).wrong(params.H):
        raise Refused(
            f"got {wrong}, with features={problem.features!r}; allowed: features after their ReLU. "
            "Take the nearest ones, params._replace(H=jnp.maximum(params.H, 0)), or "
            'dataclasses.replace(problem, features="free")'
        )


def require_free(problem: Any, what: str) -> None:
    """Refuse features, and a fixed classifier, that a function does not know.

    Args:
        problem: of a caller.
        what: the name of the function, as users call it.

    Raises:
        Refused: no problem, one whose classifier is fixed, or whose features are not free.
    """
    fixed.require_free(problem)
    if not is_free(problem):
        raise Refused(
            f"got features={problem.features!r} in {what}; allowed: features='free', which alone "
            "it knows. For the model without the constraint: dataclasses.replace(problem, "
            'features="free")'
        )
