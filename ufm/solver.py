"""From any start to a critical point at rounding: fewer variables, descent, Newton.

1. `ufm.quotient`: class means in the row space, which does not raise f.
2. L-BFGS down to a small gradient.
3. `ufm.newton`: steps of minimum length, quadratic, to ‖∇f‖ ≤ 1e-14 of the terms that cancel.

The result is lifted back and judged where the caller will use it. Whether it is a minimum or a
saddle is for `hessian.verdict` to say.
"""

from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ufm import newton, quotient
from ufm import problem as model
from ufm.loop import Limits, Method, Status, start, trajectory
from ufm.problem import Params, Problem
from ufm.threads import lapack_on_one_thread

_METHOD, _HYPER = Method("lbfgs", None, None), (0.0, 0.0)
_RECORD_EVERY = 20
_HANDOVER = 1e-7  # ‖∇f‖, in units of newton.scale, at which Newton takes over


class Solution(NamedTuple):
    """A critical point, or how far its search came; one entry a start where many were given.

    params: float64.
    residual: ‖∇f‖ at params.  scale: size of the terms that cancel in it (`newton.scale`).
    status: "converged" (residual ≤ 1e-14 scale), "stalled" or "step_limit".
    descent_steps, newton_steps: how many were taken.
    residuals: ‖∇f‖ before each Newton step, in the coordinates of `quotient`, NaN past the end.
    """

    params: Params
    residual: Any
    scale: Any
    status: Any
    descent_steps: Any
    newton_steps: Any
    residuals: Any


def solve(
    problem: Problem,
    params: Params,
    *,
    descend: bool = True,
    steps: int = 10_000,
    newton_steps: int = 100,
) -> Solution:
    """A critical point near the end of a descent from params, ‖∇f‖ ≤ 1e-14 of what cancels in it.

    Computed in float64 whatever the precision of params and of JAX's configuration. Starts that
    share a problem are solved side by side, compiled once a shape.

    Args:
        problem: any problem with λ_H > 0, one number for each decay.
        params: a start, or many behind one leading axis.
        descend: False leaves out the descent: Newton then finds a critical point of any index
            near the start, for polishing saddles.
        steps: most steps of L-BFGS.
        newton_steps: most steps of Newton's method.

    Returns:
        A `Solution` with Python numbers and a name as status, or with arrays for many starts.

    Raises:
        ValueError: λ_H = 0 (samples need not collapse then), limits below 1, wrong shapes or
            entries that are not finite.
        TypeError: arrays that are not real floating, mixed dtypes, array-valued decays.
    """
    _check(problem, params, steps, newton_steps)
    many = params.W.ndim == 3
    with jax.enable_x64(True), lapack_on_one_thread():
        starts = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), params)
        starts = starts if many else jax.tree.map(lambda x: x[None], starts)
        at = _restrict(problem, starts)
        small, taken = at.params, jnp.zeros(len(starts.W), jnp.int32)
        if descend:
            small, taken = downhill(at.problem, small, steps)
        polished = _polish(at.problem, small, newton_steps)
        points, residual, scale = _lifted(problem, polished.params, at.frame)
        status = np.array([newton.Status(int(code)).name for code in polished.status])
        # Lifting rounds: what counts is the residual of the point that is handed out.
        lost = (status == "converged") & np.asarray(residual > 4 * newton.TOLERANCE * scale)
        status[lost] = "stalled"
        solution = Solution(
            points, np.asarray(residual), np.asarray(scale), status, np.asarray(taken),
            np.asarray(polished.steps), np.asarray(polished.residuals),
        )  # fmt: skip
    return solution if many else _only(solution)


def _only(solution: Solution) -> Solution:
    """The one entry of a solution of one start."""
    points = jax.tree.map(lambda x: x[0], solution.params)
    numbers = [x[0] if x.ndim > 1 else x[0].item() for x in solution[1:]]
    return Solution(points, *numbers)


def _check(problem: Problem, params: Params, steps: int, newton_steps: int) -> None:
    if any(np.ndim(lam) for lam in (problem.lam_W, problem.lam_H, problem.lam_b)):
        raise TypeError("got array-valued decays; allowed: one problem at a time, many starts")
    if not float(problem.lam_H) > 0:
        raise ValueError(
            f"got lam_H={problem.lam_H}; allowed: > 0. Without it samples of a class need not "
            "share their features at a critical point; use ufm.descend"
        )
    for name, value in (("steps", steps), ("newton_steps", newton_steps)):
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < 1:
            raise ValueError(f"got {name}={value!r}; allowed: an integer >= 1")
    if len({np.ndim(x) - axes for x, axes in zip(params, (2, 2, 1), strict=True)}) > 1:
        raise ValueError(
            f"got shapes {[np.shape(x) for x in params]}; allowed: W (K, d), H (d, N), b (K,), or "
            "all three behind one leading axis"
        )
    one = params
    if np.ndim(params.W) == 3:
        if len({len(x) for x in params}) > 1 or len(params.W) == 0:
            raise ValueError(f"got {[len(x) for x in params]} starts in W, H and b")
        one = Params(*(x[0] for x in params))
    model.check_params(problem, one)
    model.check_finite(params)


@jax.jit
def _restrict(problem: Problem, starts: Params) -> quotient.Restricted:
    batched = jax.vmap(partial(quotient.restrict, problem))(starts)
    # The problem is common to all starts: its decays come back once.
    return batched._replace(problem=jax.tree.map(lambda x: x[0], batched.problem))


@jax.jit
def _polish(problem: Problem, starts: Params, limit) -> newton.Polished:
    return jax.vmap(partial(newton.polish, problem, limit=limit))(starts)


@jax.jit
def _lifted(problem: Problem, points: Params, frames):
    """The points of the large problem, ‖∇f‖ and its scale there."""

    def one(small, frame):
        params = quotient.lift(problem, small, frame)
        G = model.data_gradient(problem, params)
        residual = model.norm(model.gradient_from(problem, params, G))
        return params, residual, newton.scale(problem, params, G)

    return jax.vmap(one)(points, frames)


def downhill(problem: Problem, starts: Params, steps: int = 10_000) -> tuple[Params, jax.Array]:
    """L-BFGS to where Newton's method takes over, many starts side by side: (points, steps)."""
    state, tolerance = _begin(problem, starts)
    while True:
        state, going = _leg(problem, state, tolerance, jnp.int32(steps))
        if not bool(jnp.any(going)):
            return state.params, state.step


@jax.jit
@partial(jax.vmap, in_axes=(None, 0))
def _begin(problem: Problem, params: Params):
    size = newton.scale(problem, params, model.data_gradient(problem, params))
    return start(problem, params, _METHOD, _HYPER), _HANDOVER * size


@jax.jit
@partial(jax.vmap, in_axes=(None, 0, 0, None))
def _leg(problem: Problem, state, tolerance, steps):
    limits = Limits(steps, jnp.int32(_RECORD_EVERY), tolerance, jnp.asarray(-jnp.inf))
    state, _, status = trajectory(problem, state, _METHOD, _HYPER, limits, 11)
    return state, status == Status.running
