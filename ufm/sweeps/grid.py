"""A grid of problems and methods: what a sweep runs over, given in Python or as a TOML file.

Every axis of `Grid` is one value or a sequence of values, and a grid stands for all combinations.
In a file each table [[grid]] defines a grid, which inherits the keys at the top:

    K = [3, 5]
    lam_W = [1e-3, 1e-4]
    seed = [0, 1, 2]
    steps = 20000

    [[grid]]
    optimizer = "lbfgs"

    [[grid]]
    optimizer = "heavy_ball"
    learning_rate = ["auto", 0.1]
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import jax.numpy as jnp

from ufm import check
from ufm.check import Refused
from ufm.descent import arguments, columns, optimizers, projected
from ufm.descent.records import HISTORY
from ufm.losses import names as losses
from ufm.losses.crossentropy import CrossEntropy
from ufm.model.fields import decays, fixed_parts, target_matrix
from ufm.model.points import check_memory
from ufm.model.problem import DECAYS, Problem
from ufm.sweeps.axes import AXES, options

# Names of keys in other libraries, for the message.
ALIASES = {
    "lr": "learning_rate", "wd": "lam_W", "weight_decay": "lam_W", "epochs": "steps",
    "lambda": "lam",
}  # fmt: skip
# Not stored at its default, so that folders of earlier versions, which lack it, remain the same.
_LATER = {"later": True}
_WHOLE = ("targets", "fixed")  # fields with one value for a grid, even if it is a sequence
DECAY = 5e-4  # the default
# Of the table of a sweep; a column that a user adds needs another name.
COLUMNS = (
    "cell", "K", "d", "n", "counts", "N", "lam_W", "lam_H", "lam_b", "bias", "loss", "weights",
    "decay_weights", "targets", "features", "fixed", "optimizer", "learning_rate", "auto",
    "momentum", "batch_size", "options", "seed", "status", "steps", "value", "lower_bound",
    "spectral_ratio", "f_star",
)  # fmt: skip
MOST_CELLS = 1_000_000  # of a plan; checking them takes seconds


class SweepCell(NamedTuple):
    """One problem and one method of descent; None stands for the method's default."""

    problem: Problem
    optimizer: str
    learning_rate: float | str | None
    momentum: float | None
    batch_size: int | None
    seed: int
    options: tuple[tuple[str, Any], ...] = ()  # further hyperparameters, of a factory of optax

    def settings(self) -> optimizers.Settings:
        """The method, checked.

        Raises:
            Refused: as `ufm.descent.optimizers.settings`.
        """
        return optimizers.settings(*self[1:5], dict(self.options))


PROBLEM = tuple(f.name for f in fields(Problem))  # the first axes of a grid, then the method's


@dataclass(frozen=True)
class Grid:
    """All combinations of its axes; each field is one value, or a sequence or array of them.

    Values of any library are converted to Python's numbers when the grid is made:
    `lam_W=np.logspace(-4, -2, 5)` is an axis of five floats.

    K, d, n, lam_W, lam_H, lam_b, bias, loss, weights, decay_weights, targets, features,
        fixed: of the problem.
        Decays are 5e-4 by default; lam is an axis of common values for those that are not given.
        weights = [[1, 1, 5], [1, 1, 10]] are two problems (decay_weights likewise), targets is one
        matrix, and fixed = ["W"] fixes W at its start in every cell. n = 50 means 50 samples a
        class, n = [[50, 10, 5]] one problem with these counts, n = [[50], [10], [5]] three balanced
        problems. n = [50, 10, 5] is refused for K = 3, where it could mean either; otherwise it
        means three balanced problems.
    optimizer, learning_rate, momentum, batch_size: as for `ufm.descend`, by name; optax's factories
        also as functions.
    options: further hyperparameters of factories of optax, {"b2": [0.9, 0.99], "nesterov": True}.
    seed: of the start and of the minibatches; equal seeds give equal starts.

    Raises:
        Refused: an axis without values, or a value that it does not allow.
    """

    K: Any = 10
    d: Any = 20
    n: Any = 100
    lam_W: Any = None
    lam_H: Any = None
    lam_b: Any = None
    bias: Any = True
    loss: Any = field(default=CrossEntropy(), metadata=_LATER)
    weights: Any = field(default=None, metadata=_LATER)
    decay_weights: Any = field(default=None, metadata=_LATER)
    targets: Any = field(default=None, metadata=_LATER)
    features: Any = field(default="free", metadata=_LATER)
    fixed: Any = field(default=(), metadata=_LATER)
    optimizer: Any = "lbfgs"
    learning_rate: Any = None
    momentum: Any = None
    batch_size: Any = None
    seed: Any = 0
    options: Any = field(default=(), metadata=_LATER)
    lam: Any = field(default=None, metadata=_LATER)

    def __post_init__(self):
        object.__setattr__(self, "options", options(self.options))
        missing = [name for name in DECAYS if getattr(self, name) is None]
        if self.lam is None:
            for name in missing:
                object.__setattr__(self, name, DECAY)
        elif not missing:
            decays(dict.fromkeys(DECAYS, 0.0), self.lam, {})  # refuses
        object.__setattr__(self, "fixed", fixed_parts(self.fixed))
        if self.targets is not None:
            matrix = target_matrix(self.targets)
            object.__setattr__(self, "targets", tuple(map(tuple, matrix.tolist())))
        for name, convert in AXES.items():
            value = getattr(self, name)
            if name in _WHOLE or (value is None and name in ("lam", *DECAYS)):
                continue
            values = (
                list(value)
                if name == "n" and getattr(value, "ndim", 0) > 1
                else check.several(value)
            )
            if values is None:
                object.__setattr__(self, name, convert(value))
                continue
            if not values:
                raise Refused(f"got {name} without a value; allowed: one value or more")
            if name == "n":
                _check_meaning(values, self.K)
            object.__setattr__(self, name, tuple(map(convert, values)))

    def axes(self) -> list[tuple[Any, ...]]:
        """The values of lam, of every field of `Problem`, then of the others of `SweepCell`."""
        names = ("lam", *PROBLEM, *SweepCell._fields[1:-1])
        values = ((name, getattr(self, name)) for name in names)
        found = [x if isinstance(x, tuple) and name not in _WHOLE else (x,) for name, x in values]
        options = [[(name, x) for x in values] for name, values in self.options]
        return [*found, tuple(itertools.product(*options))]

    def cells(self) -> list[SweepCell]:
        """Every combination; the last axis varies fastest.

        Raises:
            Refused: values that do not make a `Problem`, naming the cell.
        """
        axes, names = self.axes(), ("lam", *PROBLEM)
        found = []
        for of_problem in itertools.product(*axes[: len(names)]):
            named = dict(zip(names, of_problem, strict=True))
            try:
                problem = Problem(**named)
            except Refused as error:
                raise Refused(f"{error} (in the cell {_line(named)})") from None
            found += [SweepCell(problem, *x) for x in itertools.product(*axes[len(names) :])]
        return found

    def plain(self) -> dict[str, Any]:
        """The grid as JSON values; fields added after version 0.1 only if not at their default."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        late = {f.name: f.default for f in fields(self) if "later" in f.metadata}
        found = {x: y for x, y in found.items() if x not in late or y != late[x]}
        if "options" in found:
            found["options"] = dict(self.options)
        if "loss" in found:
            several = isinstance(self.loss, tuple)
            found["loss"] = [losses.text_of(x) for x in (self.loss if several else (self.loss,))]
        return found


def _check_meaning(n: list[Any], K: Any) -> None:
    """Refuse [50, 10, 5] for K = 3: three balanced problems, or one of these counts?"""
    classes = K if isinstance(K, tuple) else (K,)
    if len(n) > 1 and len(n) in classes and all(check.several(x) is None for x in n):
        counts = ", ".join(map(str, n))
        each = ", ".join(f"[{x}]" for x in n)
        raise Refused(
            f"got n=[{counts}] for K={len(n)}, which could mean two things; write n = [[{counts}]] "
            f"for one problem with these counts of its classes (as --n {' '.join(map(str, n))} on "
            f"the command line), or n = [{each}] for {len(n)} balanced problems"
        )


@dataclass(frozen=True)
class Plan:
    """Grids, and the settings that all of their runs share.

    grids: one or more; the cells of the first one come first.
    steps, record_every, grad_tol, gap_tol: as for `ufm.descend`.
    scale: standard deviation of the entries of the random starts, > 0.
    precision: "float64" or "float32", of the iterates; certificates are float64.
    record: further columns, as for `ufm.descend`; a row has the value at the end, in float64.

    Raises:
        Refused: a value out of range.
    """

    grids: tuple[Grid, ...] = (Grid(),)
    steps: int = 10_000
    record_every: int | None = None
    grad_tol: float | None = None
    gap_tol: float | None = 1e-8
    scale: float = 0.1
    precision: str = "float64"
    record: Any = ()

    def __post_init__(self):
        grids = (self.grids,) if isinstance(self.grids, Grid) else check.several(self.grids)
        if not grids or not all(isinstance(grid, Grid) for grid in grids):
            raise Refused(f"got grids={check.shown(self.grids)}; allowed: one ufm.Grid or more")
        precision = check.choice("precision", self.precision, ("float64", "float32"))
        every, early = arguments.stride(self.record_every)
        values: dict[str, Any] = {
            "grids": tuple(grids),
            "steps": arguments.limit("steps", self.steps),
            "record_every": None if early else every,
            "grad_tol": arguments.tolerance("grad_tol", self.grad_tol),
            "gap_tol": arguments.tolerance("gap_tol", self.gap_tol),
            "scale": check.real("scale", self.scale, above=0),
            "precision": precision,
            "record": columns.given(self.record, tuple(dict.fromkeys((*COLUMNS, *HISTORY)))),
        }
        arguments.check_resolution(values["gap_tol"], precision)
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def cells(self) -> list[SweepCell]:
        """Every cell of every grid, checked.

        Raises:
            Refused: an invalid cell, or one that occurs twice, naming it; more than a million
                cells; a cell that does not fit into memory.
        """
        count = sum(math.prod(map(len, grid.axes())) for grid in self.grids)
        if count > MOST_CELLS:
            raise Refused(
                f"got a plan of {count:,} cells; allowed: at most {MOST_CELLS:,}. Shorten the "
                "axes, or make several sweeps of it"
            )
        found: dict[SweepCell, None] = {}
        for cell in itertools.chain.from_iterable(grid.cells() for grid in self.grids):
            try:
                _check_cell(cell, self.precision)
            except Refused as error:
                raise Refused(f"{error} (in the cell {describe(cell)})") from None
            if cell in found:
                raise Refused(f"got the cell {describe(cell)} twice; allowed: each once")
            found[cell] = None
        return list(found)

    def plain(self) -> dict[str, Any]:
        """The plan as JSON values."""
        shared = {f.name: getattr(self, f.name) for f in fields(self)}
        if self.record:
            shared["record"] = columns.described(self.record)
        else:
            del shared["record"]  # as in folders of version 0.1
        return shared | {"grids": [grid.plain() for grid in self.grids]}

    @classmethod
    def from_plain(cls, config: Mapping[str, Any]) -> "Plan":
        """The plan that `plain` described, without `record`, whose functions are not stored.

        Raises:
            Refused: a config that is no plan.
        """
        try:
            grids = [dict(grid) for grid in config["grids"]]
            for grid in grids:
                if isinstance(grid["n"], list):  # numbers alone could mean two things
                    grid["n"] = [x if isinstance(x, list) else [x] for x in grid["n"]]
            rest = {f.name: config[f.name] for f in fields(cls) if f.name in config}
            return cls(**rest | {"grids": [Grid(**grid) for grid in grids], "record": ()})
        except (KeyError, TypeError, ValueError) as error:
            raise Refused(
                f"got a config that is no plan ({error}); allowed: one of ufm sweep"
            ) from None


def _check_cell(cell: SweepCell, precision: str) -> None:
    problem = cell.problem
    settings = cell.settings()
    if settings.batch_size is not None:
        arguments.check_batch(problem, settings.batch_size)
    rate = optimizers.rate(cell.optimizer, cell.learning_rate)
    projected.check(problem, cell.optimizer, rate)
    if rate == "safe" and not problem.mu > 0:
        raise Refused(
            f"got learning_rate 'safe' with lam_W={problem.lam_W}, lam_H={problem.lam_H}; allowed: "
            "both > 0, since its step is proportional to the smaller one. Give a number or 'auto'"
        )
    check_memory(problem, jnp.dtype(precision).itemsize, records=True)


def describe(cell: SweepCell) -> str:
    """A cell in one line, without fields that are None."""
    named = {name: getattr(cell.problem, name) for name in PROBLEM}
    method = {name: x for name, x in cell._asdict().items() if name not in ("problem", "options")}
    return _line(named | method | dict(cell.options))


def _line(named: dict[str, Any]) -> str:
    shown = {name: check.shown(x) if name == "targets" else x for name, x in named.items()}
    return ", ".join(f"{name}={x}" for name, x in shown.items() if x is not None and x != ())
