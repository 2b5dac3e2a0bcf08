"""A history and its rows: what is measured at a point of a descent. Traceable."""

from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from ufm import certificate
from ufm.descent.columns import Traced
from ufm.linalg import scaling
from ufm.metrics import measures as metrics
from ufm.model import objective as terms
from ufm.model.objective import decay, gradient_norm, logits, objective, weighed
from ufm.model.problem import Params, Problem
from ufm.runtime import blocks

# The columns of every history.
HISTORY = (
    "step", "loss", "grad_norm", "gap", "nc1", "nc2", "nc3", "nc4", "norm_W", "norm_H", "norm_b",
    "accuracy",
)  # fmt: skip
COLLAPSE = ("nc1", "nc2", "nc3", "nc4")
LARGE = 2**25  # bytes of H from which on a run holds as few arrays of that size as possible


def criteria(problem: Problem, params: Params, loss: Array | None = None) -> dict[str, Array]:
    """The quantities of the stopping rules at a point: "loss", "grad_norm" and "gap". Traceable.

    Args:
        problem, params: the point.
        loss: f there, if it is known.
    """
    R = G = None
    loss = objective(problem, params) if loss is None else loss
    if blocks.count(problem.K, params.H) == 1:
        # The barrier makes R an array: XLA would compute the exponentials in every kernel again.
        R = jax.lax.optimization_barrier(terms.residual(problem, params, problem.labels))
        G = weighed(problem, R, problem.labels)
    bound = certificate.lower_bound(problem, params, R, any_size=False).value
    slope = gradient_norm(problem, params, G)
    return {"loss": loss, "grad_norm": slope, "gap": loss - bound}


def _seen(problem: Problem, params: Params) -> tuple[Array, Array, Array]:
    """(Σ w_i ℓ_i, how many predictions are right, the predictions) in one pass over the samples."""

    def block(H, labels):
        Z, targets = logits(problem, params._replace(H=H)), problem.target(labels)
        found = metrics.first_largest(Z)
        right = found == labels
        if problem.targets is not None:
            own = jnp.take_along_axis(targets, found[None, :], axis=0)[0]
            right = own == jnp.max(targets, axis=0)
        value = problem.loss.value(Z, targets)
        if problem.weights is not None:
            value = weighed(problem, value, labels) * problem.N
        return (jnp.sum(value), jnp.sum(right.astype(Z.dtype))), found

    (value, right), found = blocks.sweep(block, params.H, problem.labels, problem.K)
    return value / problem.N, right, found


def measurements(problem: Problem, params: Params, record: Traced = ()) -> dict[str, Array]:
    """One row of the history at a point, with the keys of `Run.history` but "step". Traceable.

    With a target matrix NC1–NC4, which need classes, are NaN, and a prediction is right if it is
    among the largest targets.

    Args:
        problem, params: the point.
        record: further columns, functions of (problem, params).
    """
    squares = Params(*map(scaling.squares, params))
    value, right, found = _seen(problem, params)
    row = criteria(problem, params, value + decay(problem, params, squares))
    loss = row["loss"]
    row["accuracy"] = right / problem.N
    if problem.targets is None:

        def collapse() -> dict[str, Array]:
            return metrics.some(COLLAPSE, *params, problem.labels, found)

        # This and ‖∇f‖ each need an array as large as H. The branch orders them if H is large.
        if params.H.nbytes < LARGE:
            row |= collapse()
        else:
            unknown = dict.fromkeys(COLLAPSE, jnp.full((), jnp.nan, loss.dtype))
            row |= jax.lax.cond(jnp.isfinite(row["grad_norm"]), collapse, lambda: unknown)
    else:
        row |= dict.fromkeys(COLLAPSE, jnp.full((), jnp.nan, loss.dtype))
    for name, (total, s) in zip("WHb", squares, strict=True):
        row[f"norm_{name}"] = s * jnp.sqrt(total)
    added = ((name, jnp.asarray(f.value(problem, params))) for name, f in record)
    return row | {name: x.astype(loss.dtype) for name, x in added}


class Told(NamedTuple):
    """What a run has recorded, along a leading axis if there are several.

    steps: (records,), −1 in rows that are not filled.  table: (records, columns), NaN there.
    status: code of `ufm.descent.loop.Status`; 0 while it runs.
    """

    steps: Array
    table: Array
    status: Array


def nothing(xp: ModuleType, state: Any, records: int, record: Traced | None) -> Told:
    """An empty record of a run in numpy or jax.numpy.

    Args:
        xp: the module.
        state: of the run, or of several along a leading axis.
        records: capacity.
        record: further columns, or None for no column but "step".
    """
    runs, columns = jnp.shape(state.start), len(names(record))
    return Told(
        xp.full((*runs, records), -1, state.step.dtype),
        # One row a record: writing to a dozen arrays would be a dozen kernels.
        xp.full((*runs, records, columns), xp.nan, state.params.W.dtype),
        xp.full(runs, 0, np.int32),
    )


def names(record: Traced | None) -> list[str]:
    """The columns of a table: those of every history but "step", and further ones."""
    return [] if record is None else [*HISTORY[1:], *(name for name, _ in record)]


def history(told: Told, record: Traced | None) -> dict[str, Any]:
    """The columns of a history, by name."""
    columns = {name: told.table[..., i] for i, name in enumerate(names(record))}
    return {"step": told.steps} | columns
