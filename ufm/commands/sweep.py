"""`ufm sweep`: every cell of a grid, in compiled batches, into one table."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ufm.check import real
from ufm.commands.progress import watched
from ufm.commands.shared import Compiling
from ufm.commands.table import print_json, print_table
from ufm.sweeps import histories, toml
from ufm.sweeps import run as sweeps


@dataclass(frozen=True)
class Sweep(Compiling):
    """Descend on every combination of a grid, cells of one shape side by side, on every core.

    The grid is a TOML file: K, d, n, lam (or lam_W, lam_H, lam_b), bias, optimizer, learning_rate,
    momentum, batch_size and seed take one value or a list, options further hyperparameters by
    name; steps, record_every, grad_tol, gap_tol, scale, precision and record (index, lam_min) hold
    for all; a table [[grid]] adds a grid of its own. With --out the table is kept, batch by batch:
    killed or interrupted, the same command goes on with the cells that are missing; so does a grid
    with more cells, or more steps, than the one there. A diverged cell is a row with its status.

    Example: ufm sweep grid.toml --out runs/sweep
    """

    grid: Annotated[Path, tyro.conf.Positional]
    """the TOML file"""
    out: Path | None = None
    """folder that keeps the table: manifest.json, arrays.npz"""
    history: bool = False
    """keep every record of every cell, not only the ends"""
    memory: float = sweeps.MEMORY / 2**20
    """MiB that the compiled calls that run at a time may use"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Sweep with a progress bar and an estimate of the time left."""
        memory = int(real("memory", self.memory, above=0, below=2**43) * 2**20)
        plan = toml.read(self.grid)
        total = len(plan.cells())
        bar = (
            BarColumn(), TextColumn("{task.fields[done]}/{task.total} cells"), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        with watched(*bar) as progress:
            task = progress.add_task("", total=total, done=0)

            def report(share: float, doing: str) -> None:
                done = share * total
                progress.update(task, completed=done, done=int(done), description=doing)

            table = sweeps.sweep(plan, self.out, history=self.history, memory=memory, report=report)
        columns, _ = histories.split(table)
        if self.json:
            print_json(columns)
        else:
            print_table(columns)
        return 0
