"""From any start to a critical point, to rounding: fewer variables, descent, Newton's method.

1. `ufm.model.quotient`: class means in the row space, which does not raise f.
2. `ufm.critical.downhill`: L-BFGS until the gradient is small, in coordinates in which λ_W and λ_H
   are nearly equal; on very large problems first in float32, in half the time, as far as that
   precision goes, and from the step of `ufm.critical.convex` that lowers f most.
3. `ufm.critical.newton`: steps of least length with quadratic convergence, to ‖∇f‖ ≤ 1e-14 of the
   terms that cancel, or the rounding of ∇f if that is larger. On small problems L-BFGS nearly
   always gets as far, in one program with the first and the last part; the first call of a process
   then compiles nothing else.

A fixed classifier replaces 2 and 3 by `ufm.critical.fixed`. Where H ≥ 0, `ufm.critical.kkt`
replaces all of them, and on the sphere `ufm.critical.sphere` does.

The result is lifted back to the original problem, and its residual is computed there.
`hessian.verdict` tells whether it is a minimum or a saddle.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check
from ufm.check import Refused
from ufm.critical import downhill, fixed, kkt, newton, sphere
from ufm.model import layers, points, quotient
from ufm.model import objective as terms
from ufm.model.evaluation import check_entries
from ufm.model.problem import Params, Problem
from ufm.runtime import programs
from ufm.runtime.threads import lapack_on_one_thread

# Beyond so many variables MINRES finishes a descent: a tenth of the time of a factorisation at 400,
# a hundredth at 1800. Below, both take milliseconds, and the factorisation compiles faster.
_MANY = 100
# Up to so many variables, of class means and of all, Newton's method and lifting run for a
# millisecond even as they compile fastest, in half the time, and a descent goes on to rounding.
_FEW, _LIFTED = 1000, 2**15
# Beyond so many variables a descent is longer than the compilation of one in float32 before it.
_VERY_MANY = 2**18


class Solution(NamedTuple):
    """A critical point, or where its search ended; one entry per start if there were several.

    params: float64.
    residual: ‖∇f‖ at params; of the projected gradient where H ≥ 0 and on the sphere.
    scale: size of the terms that cancel in ∇f (`newton.scale`).
    status: "converged" (residual ≤ 1e-14 scale, or the rounding of ∇f in float64, see
        `newton.tolerance`), "stalled" or "step_limit"; on the sphere "underflow" where f is so
        small that float64 loses its digits.
    descent_steps, newton_steps: how many were taken; often 0 of the latter on small problems.
    residuals: ‖∇f‖ at the end of the descent and after each Newton step, in the coordinates of the
        quotient, NaN past the end.
    multiplier: where H ≥ 0, the smallest ∂f/∂h at a zero of H (infinite without zeros); on the
        sphere, the smallest multiplier of the norms; None for free features.
    """

    params: Params
    residual: Any
    scale: Any
    status: Any
    descent_steps: Any
    newton_steps: Any
    residuals: Any
    multiplier: Any = None


def solve(
    problem: Problem,
    params: Params,
    *,
    descend: bool = True,
    steps: int = 10_000,
    newton_steps: int = 100,
) -> Solution:
    """A critical point by descent from params and Newton's method, to a relative ‖∇f‖ of 1e-14.

    The gradient norm is relative to `scale`, the size of the terms that cancel in ∇f. Where the
    rounding of ∇f exceeds that, as for the squared error at small decays, it is the limit,
    up to 1e-6 of `scale`.

    Beyond 262,144 variables of class means, for d ≥ K − 1, the descent begins with a step on the
    convex problem in W H: a start near a saddle does not stay there.

    Computed in float64 whatever the precision of params and of JAX's configuration. Several starts
    of one problem run in one compiled call; each shape is compiled once.

    Args:
        problem: any problem with λ_H > 0 and one number for each decay, or one on the sphere, where
            the point found has one feature a class. A fixed classifier needs a convex loss: the
            point is then the global minimiser for the W of params.
        params: a start, or several stacked along a leading axis.
        descend: False omits the descent: Newton's method then finds a critical point of any index
            near the start, for polishing saddles.
        steps: most steps of the descent.
        newton_steps: most steps of Newton's method.

    Returns:
        A `Solution` with Python numbers and a name as status, or with arrays for several starts.

    Raises:
        Refused: λ_H = 0 (samples need not collapse then), limits below 1, wrong shapes or
            entries that are not finite; negative features where H ≥ 0, vectors off the sphere, or
            more than 2500 variables of class means there; a loss that is not convex with a fixed
            classifier; arrays that are not real floating, mixed dtypes, array-valued decays.
    """
    _check(problem, params, steps, newton_steps)
    descend = check.flag("descend", descend)
    many = params.W.ndim == 3
    if not layers.is_free(problem):
        return _constrained(problem, params, steps if descend else 0, newton_steps)
    with jax.enable_x64(True), lapack_on_one_thread():
        starts = points.in_float64(params)
        if descend and not many and _is_small(problem):
            found = _direct()(problem, starts, np.int32(steps))
            if (solution := _arrived(found)) is not None:
                return solution
            small, taken = found.small, np.array(found.numbers[3], np.int32)
            at = quotient.Restricted(quotient.smaller(problem), small, found.frame)
        else:
            at = _restricted(problem, starts, many)
            small, taken = at.params, np.zeros(len(params.W) if many else (), np.int32)
            if problem.fixed:  # convex: Newton's method needs no descent before it
                fixed.check(at.problem)
            elif descend:
                small, taken = _descended(at.problem, small, steps, many)
        large = at.problem.size > newton.DENSE_SIZE
        polish = _polish(at.problem, descend and at.problem.size > _MANY, many, large)
        polished = polish(at.problem, small, np.int32(newton_steps))
        lift = _compiled(_lifted, many, brief=problem.size <= _LIFTED and not many)
        lifted, *numbers = lift(problem, polished.params, at.frame)
        # Small things only: what is large stays on its device.
        (residual, scale, zero), taken, codes, factorised, residuals = jax.device_get(
            (numbers, taken, polished.status, polished.steps, polished.residuals)
        )
    if not (many or np.isfinite(residual)):
        raise Refused(
            f"got decays and a start whose ∇f is no float64 number (its norm is {residual}); "
            "allowed: those where it is. Scale them down"
        )
    # Lifting rounds: what counts is the residual of the point that is returned.
    lost = (codes == newton.Arrival.converged) & (residual > 4 * zero)
    codes = np.where(lost, newton.Arrival.stalled, codes)
    status = np.array([newton.Arrival(int(code)).name for code in codes.ravel()])
    counts = (residual, scale, status.reshape(codes.shape), taken, factorised)
    counts = counts if many else tuple(x.item() for x in counts)
    return Solution(*(lifted, *counts, residuals))


def _restricted(problem: Problem, starts: Params, many: bool) -> quotient.Restricted:
    """The starts in fewer variables, with the one problem that is common to them."""
    at = _compiled(quotient.restrict, many)(problem, starts)
    return at._replace(problem=jax.tree.map(lambda x: x[0], at.problem)) if many else at


class _Direct(NamedTuple):
    """What `_directly` finds, in few arrays: to hand out one takes as long as a step.

    small, frame: the point in fewer variables, as in `quotient.Restricted`.
    params: the point lifted.
    numbers: its residual, scale and tolerance, the steps taken, ‖∇f‖ of the small point.
    """

    small: Params
    frame: Array
    params: Params
    numbers: Array


def _is_small(problem: Problem) -> bool:
    """Whether the descent goes to rounding, in one program with the first and the last part."""
    few = quotient.smallest_size(problem) <= _FEW and problem.size <= _LIFTED
    return few and not problem.fixed


def _directly(problem: Problem, params: Params, steps: Any) -> _Direct:
    """Fewer variables, L-BFGS to rounding, and back."""
    at = quotient.restrict(problem, params)
    found = downhill.descend(at.problem, at.params, steps, downhill.HANDOVER, to_rounding=True)
    lifted, *numbers = _lifted(problem, found.params, at.frame)
    return _Direct(found.params, at.frame, lifted, jnp.stack([*numbers, found.steps, found.slope]))


@functools.cache
def _direct() -> Callable:
    """`_directly` compiled: optimised, as it may run for ten milliseconds otherwise."""
    return jax.jit(_directly, compiler_options=programs.of_short_sums())


def _arrived(found: _Direct) -> Solution | None:
    """The solution, where L-BFGS has reached it, or None."""
    residual, scale, zero, steps, slope = np.asarray(found.numbers).tolist()
    if not (residual <= zero and np.isfinite(residual)):
        return None
    residuals = np.full(newton.RECORDS, np.nan)
    residuals[0] = slope
    return Solution(found.params, residual, scale, "converged", int(steps), 0, residuals)


def _descended(problem: Problem, params: Params, steps: int, many: bool) -> tuple[Params, Any]:
    """L-BFGS from one start or many, in float32 before that if it is long: (points, steps)."""
    if many:
        return downhill.from_many(problem, params, steps)
    before, unit, large = 0, (), problem.size > newton.DENSE_SIZE
    if problem.size > _VERY_MANY:
        rough = _compiled(downhill.in_float32, False, large)
        params, before, *unit = rough(problem, params, np.int32(steps))
    down = _compiled(downhill.descend, False, large)
    handover = downhill.HANDOVER_TO_MINRES if large else downhill.HANDOVER
    found = down(problem, params, np.int32(steps - before), handover, *unit)
    return found.params, found.steps + before if unit else found.steps


def _polish(problem: Problem, near: bool, many: bool, large: bool) -> Callable:
    """Newton's method for one start or many; near: whether they are ends of a descent."""
    if problem.fixed:
        return _compiled(fixed.polish, many, large)
    brief = problem.size <= _FEW and not many
    dense = _compiled(newton.polish, many, large, brief)
    if not near:
        return dense

    def polished(problem: Problem, params: Params, limit: np.int32) -> newton.Polished:
        found = _compiled(newton.refine, many, large, brief)(problem, params, limit)
        missed = np.asarray(found.status) != newton.Arrival.converged
        if large or not missed.any():
            return found
        # MINRES stalls where ∇²f is nearly singular off the orbit; a factorisation may not. Points
        # that have converged are kept.
        rest = limit - np.max(np.asarray(found.steps)[missed])
        again = dense(problem, found.params, np.int32(rest))
        again = again._replace(steps=found.steps + again.steps)

        def chosen(x: Array, y: Array) -> Array:
            return jnp.where(missed.reshape(missed.shape + (1,) * (x.ndim - missed.ndim)), y, x)

        return jax.tree.map(chosen, found, again)

    return polished


# The modules for problems whose features are not free.
_MEMBERS = {"nonnegative": kkt, "sphere": sphere}


def _constrained(problem: Problem, params: Params, steps: int, newton_steps: int) -> Solution:
    """`solve` by the module of the features, of one start or of many one after the other."""
    many = params.W.ndim == 3
    with jax.enable_x64(True), lapack_on_one_thread():
        starts = layers.project(problem, points.in_float64(params))
        starts = starts if many else jax.tree.map(lambda x: x[None], starts)
        reached = _compiled(_reached, False)
        found = reached(problem, starts, np.int32(steps), np.int32(newton_steps))
        lifted, found = found.params, jax.device_get(found._replace(params=None))
    codes = found.polished.status
    far = found.residual > 4 * found.tolerance
    lost = (codes == newton.Arrival.converged) & far
    codes = np.where(lost, newton.Arrival.stalled, codes)
    status = np.array([newton.Arrival(int(code)).name for code in codes])
    counts = (found.residual, found.scale, status, found.taken, found.polished.steps)
    last = (found.polished.residuals, found.multiplier)
    if many:
        return Solution(lifted, *counts, *last)
    one = jax.tree.map(lambda x: x[0], lifted)
    numbers: tuple = tuple(x[0].item() for x in counts)
    return Solution(*(one, *numbers, last[0][0], last[1][0].item()))


def _reached(problem: Problem, starts: Params, steps: Any, newton_steps: Any) -> kkt.Reached:
    reach = _MEMBERS[problem.features].reach
    return jax.lax.map(lambda x: reach(problem, x, steps, newton_steps), starts)


@functools.cache
def _compiled(f: Callable, many: bool, large: bool = False, brief: bool = False) -> Callable:
    """f(problem, start, …) compiled, for one start or, if many, for a leading axis of starts.

    One start has a program of its own, since vmap would compute both sides of every branch, of
    which line searches have many.

    Args:
        f: a function of this module or of one that it calls.
        many: whether there is a leading axis.
        large: whether f takes longer to run than to compile.
        brief: whether it runs for a millisecond without optimisation.
    """
    options = {} if large else programs.options(level=0 if brief else 1)
    if not many:
        return jax.jit(f, compiler_options=options)
    polishing = (newton.polish, newton.refine, fixed.polish)
    shared: dict[Callable, tuple] = dict.fromkeys(polishing, (None, 0, None))
    shared |= {_lifted: (None, 0, 0)}
    return jax.jit(jax.vmap(f, in_axes=shared.get(f, (None, 0))), compiler_options=options)


def _check(problem: Problem, params: Params, steps: int, newton_steps: int) -> None:
    points.check_types(problem, params)
    if check.traced(params):
        raise Refused("got traced params: solve runs on the host; call it outside jit and vmap")
    check.one_problem(problem)
    if not float(problem.lam_H) > 0 and problem.features != "sphere":
        raise Refused(
            f"got lam_H={problem.lam_H}; allowed: > 0. Without it samples of a class need not "
            "share their features at a critical point; use ufm.descend"
        )
    check.integer("steps", steps, 1, 2**31 - 1)
    check.integer("newton_steps", newton_steps, 1, 2**31 - 1)
    if len({np.ndim(x) - axes for x, axes in zip(params, (2, 2, 1), strict=True)}) > 1:
        raise Refused(
            f"got shapes {[np.shape(x) for x in params]}; allowed: W (K, d), H (d, N), b (K,), or "
            "all three behind one leading axis"
        )
    one = params
    if np.ndim(params.W) == 3:
        if len({len(x) for x in params}) > 1 or len(params.W) == 0:
            raise Refused(f"got {[len(x) for x in params]} starts in W, H and b")
        one = Params(*(_alike(x) for x in params))
    points.check_params(problem, one)
    check_entries(params)
    if not layers.is_free(problem):
        layers.check_feasible(problem, params)
        _MEMBERS[problem.features].check(problem)


def _alike(stacked: Any) -> Any:
    """An array of the shape and dtype of a row; indexing a JAX array would compile a program."""
    if not isinstance(stacked, jax.Array):
        return stacked[0]
    return np.broadcast_to(np.zeros((), stacked.dtype), stacked.shape[1:])


def _lifted(problem: Problem, small: Params, frame: Array):
    """The point of the large problem, with ‖∇f‖, its scale and its tolerance there."""
    params = quotient.lift(problem, small, frame)
    G = terms.data_gradient(problem, params)
    residual = terms.norm(terms.gradient(problem, params, G))
    at = fixed if problem.fixed else newton
    return params, residual, at.scale(problem, params, G), at.tolerance(problem, params, G)
