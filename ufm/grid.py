"""A grid of problems and methods: what a sweep runs over, given in Python or as a TOML file.

Every axis of `Grid` is one value or a sequence of values, and a grid stands for all combinations.
In a file the keys at the top hold for all; each table [[grid]] adds a grid of its own to them:

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

import difflib
import itertools
import re
import tomllib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp

from ufm import optimizers
from ufm.check import Refused
from ufm.problem import Problem


class Cell(NamedTuple):
    """One problem and one way to descend on it; None stands for the method's default."""

    K: int
    d: int
    n: int | tuple[int, ...]
    lam_W: float
    lam_H: float
    lam_b: float
    bias: bool
    optimizer: str
    learning_rate: float | str | None
    momentum: float | None
    batch_size: int | None
    seed: int

    def problem(self) -> Problem:
        """The `Problem` of this cell."""
        return Problem(self.K, self.d, self.n, self.lam_W, self.lam_H, self.lam_b, self.bias)


@dataclass(frozen=True)
class Grid:
    """All combinations of its axes; each field is one value or a sequence of them.

    K, d, n, lam_W, lam_H, lam_b, bias: of the problem; n may hold lists of K counts.
    optimizer, learning_rate, momentum, batch_size: as for `ufm.descend`, by name.
    seed: of the start and of the minibatches; equal seeds give equal starts.
    """

    K: Any = 10
    d: Any = 20
    n: Any = 100
    lam_W: Any = 5e-4
    lam_H: Any = 5e-4
    lam_b: Any = 5e-4
    bias: Any = True
    optimizer: Any = "lbfgs"
    learning_rate: Any = None
    momentum: Any = None
    batch_size: Any = None
    seed: Any = 0

    def cells(self) -> list[Cell]:
        """Every combination, the last axis fastest."""
        axes: list[list[Any]] = []
        for name in Cell._fields:
            value = getattr(self, name)
            several = isinstance(value, Sequence) and not isinstance(value, str)
            values = list(value) if several else [value]
            if not values:
                raise Refused(f"got {name} without a value; allowed: one value or more")
            axes.append([tuple(x) if isinstance(x, list) else x for x in values])
        return [Cell._make(combination) for combination in itertools.product(*axes)]


@dataclass(frozen=True)
class Plan:
    """Grids, and what all of their runs share.

    grids: their cells are run one grid after the other.
    steps, record_every, grad_tol, gap_tol: as for `ufm.descend`.
    scale: standard deviation of the random starts.
    precision: "float64" or "float32", of the iterates; certificates are float64.
    """

    grids: tuple[Grid, ...] = (Grid(),)
    steps: int = 10_000
    record_every: int = 100
    grad_tol: float | None = None
    gap_tol: float | None = 1e-8
    scale: float = 0.1
    precision: str = "float64"

    def cells(self) -> list[Cell]:
        """Every cell of every grid, checked.

        Raises:
            Refused: a cell that makes no sense or occurs twice, naming it.
        """
        self._check()
        found: dict[Cell, None] = {}
        for cell in itertools.chain.from_iterable(grid.cells() for grid in self.grids):
            try:
                problem = cell.problem()
                _check_method(cell, problem)
            except (ValueError, TypeError) as error:
                raise type(error)(f"{error} (in the cell {describe(cell)})") from None
            if cell in found:
                raise Refused(f"got the cell {describe(cell)} twice; allowed: each once")
            found[cell] = None
        return list(found)

    def _check(self) -> None:
        if not self.grids:
            raise Refused("got no grid; allowed: one or more")
        for name in ("steps", "record_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise Refused(f"got {name}={value!r}; allowed: an integer >= 1")
        for name in ("grad_tol", "gap_tol", "scale"):
            value = getattr(self, name)
            if value is None and name != "scale":
                continue
            if isinstance(value, bool) or not isinstance(value, int | float) or not value > 0:
                raise Refused(f"got {name}={value!r}; allowed: a number > 0")
        if self.precision not in ("float64", "float32"):
            raise Refused(f"got precision={self.precision!r}; allowed: 'float64', 'float32'")
        eps = float(jnp.finfo(self.precision).eps)
        if self.gap_tol is not None and self.gap_tol < eps:
            raise Refused(
                f"got gap_tol={self.gap_tol} in {self.precision}, which resolves {eps:.1e}; "
                "raise it, or set precision = 'float64'"
            )

    def plain(self) -> dict[str, Any]:
        """As JSON holds it."""
        return asdict(self) | {"grids": [asdict(grid) for grid in self.grids]}


def _check_method(cell: Cell, problem: Problem) -> None:
    if not isinstance(cell.optimizer, str):
        raise Refused(f"got optimizer={cell.optimizer!r}; allowed: a name")
    optimizers.check_method(cell.optimizer, cell.learning_rate, cell.momentum, cell.batch_size)
    if cell.batch_size is not None and not 1 <= cell.batch_size <= problem.N:
        raise Refused(f"got batch_size={cell.batch_size}; allowed: 1 to N={problem.N}")
    if isinstance(cell.seed, bool) or not isinstance(cell.seed, int) or not 0 <= cell.seed < 2**32:
        raise Refused(f"got seed={cell.seed!r}; allowed: an integer from 0 to 2³² − 1")


def describe(cell: Cell) -> str:
    """A cell in one line, defaults left out."""
    return ", ".join(f"{name}={x}" for name, x in cell._asdict().items() if x is not None)


def read(path: Path) -> Plan:
    """The plan in a TOML file, in the form of the module's head.

    Raises:
        Refused: no such file, no TOML, or a key that means nothing, with its line and the
            allowed ones.
    """
    try:
        text = path.read_text(encoding="utf-8")
        table = tomllib.loads(text)
    except FileNotFoundError:
        raise Refused(f"got {path}, which does not exist; allowed: a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Refused(f"got {path}, which is no TOML: {error}") from None
    shared = [f.name for f in fields(Plan) if f.name != "grids"]
    grids = table.pop("grid", [{}])
    if not isinstance(grids, list) or not all(isinstance(grid, dict) for grid in grids):
        raise Refused(f"got {path} with a key `grid`; allowed: tables [[grid]], each a grid")
    for place, keys in enumerate((table, *grids)):
        allowed = [*Cell._fields, *shared] if place == 0 else list(Cell._fields)
        for key in keys:
            if key not in allowed:
                raise Refused(_unknown(path, text, place, key, allowed))
    common = {name: x for name, x in table.items() if name in Cell._fields}
    rest = {name: x for name, x in table.items() if name in shared}
    return Plan(tuple(Grid(**common | grid) for grid in grids), **rest)


def _unknown(path: Path, text: str, place: int, key: str, allowed: list[str]) -> str:
    """What is wrong with a key of the `place`-th table [[grid]], of the top for 0."""
    found, tables = "?", 0
    for i, line in enumerate(text.splitlines(), start=1):
        tables += re.match(r"\s*\[\[\s*grid\s*\]\]", line) is not None
        if tables == place and re.match(rf"\s*[\"']?{re.escape(key)}[\"']?\s*=", line):
            found = str(i)
            break
    near = difflib.get_close_matches(key, allowed, n=1)
    hint = f". Did you mean {near[0]!r}?" if near else ""
    return f"got the key {key!r} in {path}, line {found}; allowed: {', '.join(allowed)}{hint}"
