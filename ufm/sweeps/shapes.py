"""What the cells of one program share, and the cells of one call side by side."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from ufm.descent import columns, factories, optimizers
from ufm.descent.content import by_content
from ufm.descent.loop import Method
from ufm.model.problem import Problem
from ufm.sweeps.grid import Plan, SweepCell


class Shape(NamedTuple):
    """What the cells of one program share: all of a problem but its decays, and the method."""

    problem: Any  # the structure of its pytree
    leaves: tuple[tuple[int, ...], ...]  # the shapes of its decays and weights
    optimizer: str
    batch_size: int | None
    static: factories.Static = ()  # of a factory: what is compiled in, and the names of the numbers
    traced: tuple[str, ...] = ()
    adapts: bool = False

    @classmethod
    def of(cls, cell: SweepCell) -> "Shape":
        """The shape of a cell."""
        leaves, problem = jax.tree.flatten(cell.problem)
        static, traced = factories.split(dict(cell.settings().hyperparameters))
        sizes = tuple(map(np.shape, leaves))
        adapts = optimizers.rate(cell.optimizer, cell.learning_rate) == "auto"
        return cls(problem, sizes, cell.optimizer, cell.batch_size, static, tuple(traced), adapts)

    def example(self) -> SweepCell:
        """A cell of this shape."""
        problem = jax.tree.unflatten(self.problem, [np.ones(shape)[()] for shape in self.leaves])
        options = {name: x.value for name, x in self.static} | dict.fromkeys(self.traced, 0.5)
        named = tuple(options.items())
        fixed = self.optimizer in optimizers.FULL_BATCH_ONLY and self.optimizer != "lbfgs"
        rate = 0.5 if fixed and not self.adapts else None
        return SweepCell(problem, self.optimizer, rate, None, self.batch_size, 0, named)

    def method(self) -> Method:
        """The part of the method that is compiled in."""
        if self.optimizer in optimizers.NAMES and not self.traced:
            return Method(self.optimizer, None, self.batch_size, adapts=self.adapts)
        factory = by_content(self.example().settings().optimizer)
        return Method(factory, None, self.batch_size, self.static)


class Asked(NamedTuple):
    """What a sweep stores beyond the ends of its runs.

    record: the further columns.  history: whether it stores every record.
    """

    record: columns.Columns
    history: bool

    @classmethod
    def of(cls, plan: Plan, history: bool) -> "Asked":
        """What a plan asks for."""
        return cls(columns.split(plan.record), history)

    @property
    def traced(self) -> columns.Traced | None:
        """What is compiled into the loop; None for no history at all."""
        return self.record.traced if self.history else None

    @property
    def every(self) -> bool:
        """Whether Python has something to measure at every record."""
        return self.history and bool(self.record.host)


class Lanes(NamedTuple):
    """The cells of one call: problems and hyperparameters, all fields along a leading axis."""

    problem: Problem
    safe: Any
    rate: Any
    momentum: Any
    seed: Any
    given: dict[str, Any]  # all hyperparameters of a factory


def lanes(cells: Sequence[SweepCell]) -> Lanes:
    """The cells along a leading axis."""
    first = cells[0]
    # Cells hold numbers, None or names: `ufm.sweeps.grid` has converted everything else.
    rates = [optimizers.rate(cell.optimizer, cell.learning_rate) for cell in cells]
    momentum = optimizers.MOMENTUM.get(first.optimizer, 0.0)
    given = [factories.split(dict(cell.settings().hyperparameters))[1] for cell in cells]
    momenta = [momentum if cell.momentum is None else cell.momentum for cell in cells]
    return Lanes(
        jax.tree.map(lambda *x: np.array(x, float), *(cell.problem for cell in cells)),
        np.array([rate == "safe" for rate in rates]),
        np.array([{"auto": 1.0, "safe": 0.0, None: 0.0}.get(x, x) for x in rates], float),
        np.array(momenta, float),
        np.array([cell.seed for cell in cells], np.uint32),
        jax.tree.map(lambda *x: np.array(x, float), *given),
    )
