"""Sets of admissible points: free, H ≥ 0 as behind a ReLU, or unit vectors.

    f(W, H, b) as in `ufm.model.objective`,   (W, H) ∈ C:   C = everything (free), H ≥ 0
    (nonnegative), or ‖w_k‖ = ‖h_i‖ = 1 (sphere, `ufm.model.sphere`)

f and ∇f are the same functions for every kind of features; what differs is which points are
admissible and which are stationary. A point is stationary where the projection of −∇f on the
tangent cone of C is 0. For H ≥ 0 this projection is −∇_H f where h > 0 and its positive part where
h = 0, so it vanishes exactly at the Karush–Kuhn–Tucker points; on the sphere it is the negative
Riemannian gradient.

A function for free features alone calls `require_free`, which refuses all others.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from ufm.check import Refused, traced
from ufm.model import fixed, sphere
from ufm.model.problem import Params, Problem


class Member(NamedTuple):
    """One kind of features, given by operations on its set C.

    project: a point ↦ the nearest one of C.  draw: Gaussian params ↦ a random start.
    slope: (params, ∇f) ↦ the projected gradient, minus the projection of −∇f on the tangent cone.
    along: (params, ∇f) ↦ the gradient that a step uses before the point is projected.
    carried: (velocity, unconstrained step, point before, point after) ↦ the velocity after a step.
    unit: f ↦ the unit of ‖∇f‖ and of the gap in stopping rules; NaN if f underflows.
    wrong: concrete params ↦ why they are not in C, in words, or None.
    mend: allowed points and how to obtain them, for a message.
    """

    project: Callable[[Params], Params]
    draw: Callable[[Params], Params]
    slope: Callable[[Params, Params], Params]
    along: Callable[[Params, Params], Params]
    carried: Callable[[Params, Params, Params, Params], Params]
    unit: Callable[[Any], Any]
    wrong: Callable[[Any], str | None]
    mend: str


def _negative(params: Params) -> str | None:
    H = params.H
    xp = np if isinstance(H, np.ndarray) else jnp
    count = int(xp.sum(H < 0))
    if not count:
        return None
    return (
        f"{count} negative entries in H of shape {H.shape}, the most negative {float(H.min()):.6g}"
    )


def _clipped(params: Params) -> Params:
    xp = np if isinstance(params.H, np.ndarray) else jnp
    return params._replace(H=xp.maximum(params.H, 0))


def _held(params: Params, gradient: Params) -> Params:
    """∇_H f where h > 0, and its negative part where h = 0."""
    slope = gradient.H
    return gradient._replace(H=jnp.where(params.H > 0, slope, jnp.minimum(slope, 0)))


def _shortened(velocity: Params, wanted: Params, before: Params, after: Params) -> Params:
    """The velocity times the share of the step that the constraint let through, entry by entry."""
    step, done = wanted.H, after.H - before.H
    share = jnp.where(step == 0, 1, done / jnp.where(step == 0, 1, step))
    return velocity._replace(H=velocity.H * share)


MEMBERS = {
    "free": Member(
        project=lambda params: params,
        draw=lambda params: params,
        slope=lambda _, gradient: gradient,
        along=lambda _, gradient: gradient,
        carried=lambda velocity, *_: velocity,
        unit=lambda _: 1.0,
        wrong=lambda _: None,
        mend="",
    ),
    "nonnegative": Member(
        project=_clipped,
        draw=lambda params: params._replace(H=jnp.abs(params.H)),
        slope=_held,
        along=lambda _, gradient: gradient,
        carried=_shortened,
        unit=lambda _: 1.0,
        wrong=_negative,
        mend="features after their ReLU. Take the nearest ones, "
        "params._replace(H=jnp.maximum(params.H, 0)), or "
        'dataclasses.replace(problem, features="free")',
    ),
    "sphere": Member(
        project=sphere.project,
        draw=sphere.project,
        slope=sphere.tangent,
        along=sphere.tangent,
        carried=lambda velocity, _wanted, _before, after: sphere.tangent(after, velocity),
        unit=sphere.unit,
        wrong=sphere.wrong,
        mend="rows of W and columns of H of norm 1. Divide them by their norms: "
        "ufm.model.sphere.project(params)",
    ),
}


def of(problem: Problem) -> Member:
    """The `Member` for the features of a problem."""
    return MEMBERS[problem.features]


def is_free(problem: Problem) -> bool:
    """Whether W and H are unconstrained."""
    return problem.features == "free"


def project(problem: Problem, params: Params) -> Params:
    """The nearest point of the problem, such as (W, max(H, 0), b) for H ≥ 0. Traceable."""
    return of(problem).project(params)


def slope(problem: Problem, params: Params, gradient: Params) -> Params:
    """The projected gradient, minus the projection of −∇f on the tangent cone. Traceable.

    It is 0 exactly where the point is stationary; its norm is the residual of descent and `solve`.
    """
    return of(problem).slope(params, gradient)


def check_feasible(problem: Problem, params: Params) -> None:
    """Refuse concrete params that violate the constraints of the problem; tracers pass.

    Raises:
        Refused: naming the constraint, its largest violation, and how to satisfy it.
    """
    if is_free(problem) or traced(params):
        return
    if wrong := of(problem).wrong(params):
        raise Refused(
            f"got {wrong}, with features={problem.features!r}; allowed: {of(problem).mend}"
        )


def check_scale(problem: Problem, scale: float) -> None:
    """Refuse random starts of scale 0 on the sphere.

    Raises:
        Refused: scale = 0 on the sphere.
    """
    if problem.features == "sphere" and scale == 0:
        raise Refused(
            "got scale=0 with features='sphere'; allowed: > 0, since a zero vector has no direction"
        )


def require_free(problem: Any, what: str) -> None:
    """Refuse features that are not free, and a fixed classifier.

    Args:
        problem: what the user gave.
        what: the name of the function, as users call it.

    Raises:
        Refused: no problem, one whose classifier is fixed, or whose features are not free.
    """
    fixed.require_free(problem)
    require_among(problem, what, ("free",))


def require_among(problem: Problem, what: str, known: tuple[str, ...]) -> None:
    """Refuse features other than those that a function supports.

    Raises:
        Refused: naming the supported features.
    """
    if problem.features not in known:
        names = " or ".join(map(repr, known))
        raise Refused(
            f"got features={problem.features!r} in {what}; allowed: features={names}. For the "
            'model without the constraint: dataclasses.replace(problem, features="free")'
        )
