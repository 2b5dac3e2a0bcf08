"""`ufm sweep`: every cell of a grid, in compiled batches, into one table."""

import sys
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ufm.check import Refused, real
from ufm.commands.progress import watched
from ufm.commands.shared import Compiling
from ufm.commands.table import print_json, print_table
from ufm.sweeps import histories, toml
from ufm.sweeps import run as sweeps

CONNECT = 10  # seconds to wait for a scheduler


@dataclass(frozen=True)
class Sweep(Compiling):
    """Run descent for every combination of settings of a grid, in compiled batches on every core.

    The grid is a TOML file: K, d, n, lam (or lam_W, lam_H, lam_b), bias, optimizer, learning_rate,
    momentum, batch_size and seed take one value or a list; options holds further hyperparameters by
    name; steps, record_every, grad_tol, gap_tol, scale, precision and record (index, lam_min) apply
    to all cells. Each table [[grid]] defines a grid that inherits the keys at the top. The table is
    stored in --out, batch by batch: if the command is killed or interrupted, give it again, and it
    computes only the missing cells. A grid with more cells or more steps extends the table. A cell
    that diverges stays in the table, with status `diverged`.

    Example: ufm sweep grid.toml --out runs/sweep
    """

    grid: Annotated[Path, tyro.conf.Positional]
    """the TOML file"""
    out: Path | None = None
    """folder of the table: manifest.json, arrays.npz"""
    history: bool = False
    """store every record of every cell, not only the ends"""
    memory: float = sweeps.MEMORY / 2**20
    """MiB that concurrent compiled calls may use"""
    scheduler: str | None = None
    """address of a Dask scheduler, such as tcp://10.0.0.7:8786, whose workers compute the cells"""
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

            with _workers(self.scheduler) as executor:
                table = sweeps.sweep(
                    plan, self.out, history=self.history, memory=memory, executor=executor,
                    report=report,
                )  # fmt: skip
        columns, _ = histories.split(table)
        if self.json:
            print_json(columns)
        else:
            print_table(columns)
        return 0


@contextmanager
def _workers(address: str | None) -> Iterator[Executor | None]:
    """The executor of a Dask cluster; None without an address."""
    if address is None:
        yield None
        return
    try:
        from distributed import Client
    except ImportError:
        raise Refused(
            "got --scheduler, for which Dask is missing; install it: pip install 'ufm[dask]'"
        ) from None
    try:
        client = Client(address, timeout=CONNECT)
    except (OSError, ValueError, TypeError) as error:
        raise Refused(
            f"got {address!r} as scheduler, where none answered within {CONNECT} s ({error}); "
            "allowed: the address that `dask scheduler` printed, such as tcp://10.0.0.7:8786"
        ) from None
    with client, client.get_executor() as executor:
        _compare(client)
        if not client.scheduler_info()["workers"]:
            print(f"{address} has no worker yet: start some by `dask worker`", file=sys.stderr)
        yield executor


def _compare(client: Any) -> None:
    """Refuse a scheduler or workers with another version of ufm, or without it."""
    mine = _version()
    try:
        theirs = {"the scheduler": client.run_on_scheduler(_version)} | client.run(_version)
    except Exception as error:  # whatever the other side could not do
        theirs = {"the scheduler or a worker": f"{type(error).__name__}: {error}"}
    others = {place: found for place, found in theirs.items() if found != mine}
    if others:
        place, found = next(iter(others.items()))
        raise Refused(
            f"got {found} on {place}; allowed: ufm {mine} as here, on the scheduler and on every "
            "worker. Install it there and start them again"
        )


def _version() -> str:
    return version("ufm")
