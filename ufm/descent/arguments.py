"""The arguments of a descent, converted and checked against their ranges before a step is taken."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import check as checks
from ufm.check import Refused
from ufm.descent import columns, lbfgs, optimizers, projected
from ufm.descent.records import HISTORY
from ufm.model import layers
from ufm.model.objective import objective
from ufm.model.points import check_memory, check_point, check_precision
from ufm.model.problem import Params, Problem
from ufm.runtime import programs

_objective = programs.once(objective)
EVERY = 100  # steps between records by default
EARLY = 64  # more than the records that come at shorter distances at first


class Checked(NamedTuple):
    """The arguments of `descend`, converted.

    early: whether records are denser at first.  record: the further columns.  value: f at params.
    """

    settings: optimizers.Settings
    key: Array | None
    steps: int
    record_every: int
    early: bool
    grad_tol: float | None
    gap_tol: float | None
    record: columns.Columns
    value: Array


def check(
    problem: Problem,
    params: Params,
    optimizer: Any,
    *,
    steps: int,
    learning_rate: optimizers.LearningRate = None,
    momentum: float | None = None,
    batch_size: int | None = None,
    key: Array | None = None,
    record_every: int | None = None,
    grad_tol: float | None = None,
    gap_tol: float | None = None,
    record: Any = None,
    hyperparameters: Mapping[str, Any] | None = None,
) -> Checked:
    """Convert the arguments of `descend` and refuse invalid ones, before a step is taken.

    Raises:
        Refused: as `descend`.
    """
    check_point(problem, params)
    layers.check_feasible(problem, params)
    check_precision(params)
    settings = optimizers.settings(optimizer, learning_rate, momentum, batch_size, hyperparameters)
    projected.check(problem, settings.optimizer, optimizers.rate(*settings[:2]))
    # State of the optimiser beside params, gradient and their update, in copies of the params.
    copies = {"lbfgs": 2 * lbfgs.pairs(problem.size), "adam": 2, "gd": 0}.get(str(optimizer), 1)
    if optimizers.rate(settings.optimizer, settings.learning_rate) == "auto":
        copies += 2  # the step before, and the point that is tried
    check_memory(problem, params.W.dtype.itemsize, 3 + copies, records=True)
    steps, (every, early) = limit("steps", steps), stride(record_every)
    tolerances = tolerance("grad_tol", grad_tol), tolerance("gap_tol", gap_tol)
    check_resolution(tolerances[1], params.W.dtype)
    if settings.batch_size is not None:
        check_batch(problem, settings.batch_size)
        if key is None:
            raise Refused(
                "got batch_size without key; minibatches need one: key=jax.random.key(seed)"
            )
    key = None if key is None else checks.key(key)
    recorded = columns.split(columns.given(record, HISTORY))
    columns.check_features(recorded, problem)
    columns.check_traceable(recorded, problem, params)
    _check_decays(problem, params.W.dtype)
    value = _objective(problem, params)
    if not math.isfinite(float(value)):
        raise Refused(
            f"got params at which f is {float(value)} in {params.W.dtype}; allowed: a start where "
            "it is finite. Lower its scale"
        )
    return Checked(settings, key, steps, every, early, *tolerances, recorded, value)


def _check_decays(problem: Problem, dtype: Any) -> None:
    for name in ("lam_W", "lam_H", "lam_b"):
        if np.max(getattr(problem, name)) > float(jnp.finfo(dtype).max):
            raise Refused(
                f"got {name}={getattr(problem, name)}, which is infinite in {dtype}; allowed: a "
                "decay that is a number there. Lower it, or give params of float64"
            )


def limit(name: str, value: Any) -> int:
    """A number of steps, 1 to 2³¹ − 1, as the compiled loop counts in 32 bits.

    Raises:
        Refused: no such integer.
    """
    return checks.integer(name, value, 1, 2**31 - 1)


def stride(record_every: Any) -> tuple[int, bool]:
    """(steps between records, whether records are denser at first).

    Raises:
        Refused: neither None nor a number of steps.
    """
    if record_every is None:
        return EVERY, True
    return limit("record_every", record_every), False


def tolerance(name: str, value: Any) -> float | None:
    """A tolerance > 0, or None for none.

    Raises:
        Refused: anything else.
    """
    return None if value is None else checks.real(name, value, above=0, also="or None")


def check_resolution(gap_tol: float | None, dtype: Any) -> None:
    """Refuse a tolerance below the rounding of the gap in the precision of a run.

    Raises:
        Refused: gap_tol < ε of the dtype.
    """
    eps = float(jnp.finfo(dtype).eps)
    if gap_tol is not None and gap_tol < eps:
        raise Refused(
            f"got gap_tol={gap_tol} in {jnp.dtype(dtype)}, which resolves {eps:.1e}; raise it, or "
            "run in float64: jax.config.update('jax_enable_x64', True), precision = 'float64'"
        )


def check_batch(problem: Problem, batch_size: int) -> None:
    """Refuse minibatches larger than the set of samples.

    Raises:
        Refused: batch_size > N.
    """
    if batch_size > problem.N:
        raise Refused(f"got batch_size={batch_size}; allowed: 1 to N={problem.N}")
