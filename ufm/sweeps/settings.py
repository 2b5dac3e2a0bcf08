"""Columns of a sweep that describe its cells: the fields of problem and method, and f*."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from ufm import theory
from ufm.check import Refused
from ufm.losses import names as losses
from ufm.model.problem import Problem
from ufm.runs import values
from ufm.sweeps.grid import Plan, SweepCell

Columns = dict[str, np.ndarray]


def read_back(problem: Problem) -> Columns:
    """The columns of the traced fields of a batch of problems: decays, weights, losses."""
    columns, count = {}, len(problem.lam_W)
    for path, x in jax.tree.leaves_with_path(problem):
        name = path[0].name
        if name == "loss":
            each = (jax.tree.map(lambda x, i=i: x[i], problem.loss) for i in range(count))
            columns[name] = np.array([losses.text_of(loss) for loss in each])
        elif name != "targets":
            columns[name] = _column(x)
    return columns


def _column(x: Any) -> np.ndarray:
    """One entry a cell: numbers, or the weights of the classes as text, as the flags take them."""
    x = np.asarray(x)
    return x if x.ndim == 1 else np.array([" ".join(f"{c:.17g}" for c in row) for row in x])


def described(cells: Sequence[SweepCell]) -> Columns:
    """The columns of the fields that the results do not contain; "" where there are no weights."""
    problems = [cell.problem.describe(whole=True) for cell in cells]
    columns = {
        name: np.array([x[name] if x[name] is not None else "" for x in problems])
        for name in problems[0]
        if name not in ("n", "targets", "fixed")
    }
    digests = (values.digest(x["targets"])[:12] if x["targets"] else "" for x in problems)
    columns["targets"] = np.array(list(digests))  # which matrix; the plan holds it
    return columns | {
        "fixed": np.array([" ".join(x["fixed"]) for x in problems]),
        "n": np.array([x["n"] if isinstance(x["n"], int) else 0 for x in problems]),  # 0: unequal
        # As --n takes them: one number, or one a class.
        "counts": np.array([" ".join(map(str, np.atleast_1d(x["n"]))) for x in problems]),
        "N": np.array([cell.problem.N for cell in cells]),
        "optimizer": np.array([cell.optimizer for cell in cells]).astype("U32"),
        "batch_size": np.array([cell.batch_size or 0 for cell in cells]),  # 0: full batches
    }


def options(plan: Plan, cells: Sequence[SweepCell]) -> Columns:
    """The further hyperparameters of every cell, if the plan has any."""
    if not any(grid.options for grid in plan.grids):
        return {}
    told = (", ".join(f"{name}={x}" for name, x in cell.options) for cell in cells)
    return {"options": np.array(list(told))}


def predicted(problem: Problem, count: int) -> Columns:
    """The column f_star: f* in closed form, in nats; NaN outside the theorem.

    Args:
        problem: the problems that ran, all fields along a leading axis.
        count: how many of them are cells; the others are copies.
    """
    ran = jax.tree.map(lambda x: np.asarray(x)[:count], problem)

    def closed(problem: Problem) -> np.ndarray:
        try:
            return np.asarray(theory.global_value(problem))
        except Refused:
            return np.array(np.nan)

    together = closed(ran)
    if together.shape:
        return {"f_star": together}
    # At least one of them is outside the theorem.
    each = [closed(jax.tree.map(lambda x, i=i: x[i][()], ran)) for i in range(count)]
    return {"f_star": np.array(each)}
