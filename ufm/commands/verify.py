"""`ufm verify`: the theory checked on a grid of problems."""

import contextlib
import itertools
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ufm import check
from ufm.check import Refused
from ufm.commands.progress import watched
from ufm.commands.shared import FAILED, LOOK, Compiling
from ufm.critical import search as census
from ufm.critical import verification
from ufm.critical.verification import Cell
from ufm.model.problem import Problem
from ufm.report import stored
from ufm.runs import record, storage, values

COLUMNS = (
    "K", "d", "n", "λ_W", "λ_H", "minimum", "minimisers", "strict saddles", "other minima",
    "undecided", "critical points", "softest saddle", "gap", "escaped", "violations",
)  # fmt: skip


@dataclass(frozen=True)
class Verify(Compiling):
    """Check the theory on every problem of a grid; exit with status 1 on a violation.

    For each cell: the closed-form minimiser and its certificate, its spectrum by two methods, a
    census of the critical points, each with a verdict, and escapes from saddles by gradient
    descent. A cell takes seconds for K <= 5, once compiled, and much longer for larger K. Every
    finished cell is stored in --out: if the command is killed or interrupted, give it again, and it
    computes only the missing cells.

    Example: ufm verify --K 3 4 --d 4 6 --n 5 --lam 1e-3 1e-2 --out verified
    """

    K: tuple[int, ...] = (3, 4)
    """numbers of classes"""
    d: tuple[int, ...] = (4, 6)
    """widths; those below K-1 are refused"""
    n: tuple[int, ...] = (5,)
    """samples per class; one problem for each value"""
    counts: tuple[int, ...] = ()
    """samples of each class of one problem, instead of --n: K numbers"""
    lam: tuple[float, ...] = (1e-3, 1e-2)
    """values of λ_W"""
    ratio: tuple[float, ...] = (1.0,)
    """values of λ_H/λ_W"""
    lam_b: float | None = None
    """λ_b, decay of the bias; by default λ_W"""
    starts: int = 64
    """starts of the census, per source and round"""
    rounds: int = 2
    """most rounds of the census"""
    escapes: int = 4
    """saddles of each cell to escape from; 0 for none"""
    seed: int = 0
    """seed of the census and of the escapes"""
    out: Path | None = None
    """folder of the cells: manifest.json, and at the end verify.json and verify.md"""
    json: bool = False
    """print JSON for machines instead of a table"""

    def act(self) -> int:
        """Verify the cells that the folder lacks, with a progress bar; store each as it ends."""
        problems = self._problems()
        with contextlib.nullcontext() if self.out is None else self._opened() as handle:
            cells = [] if handle is None else _kept(handle)
            if handle is not None and handle.status == "complete":
                print(f"ufm: {handle.path} already holds these cells, finished", file=sys.stderr)
            else:
                self._compute(problems, cells, handle)
                if handle is not None:
                    record.close_run(handle, {}, _state(cells, len(problems)))
        if handle is not None:
            _write_tables(handle.path, cells)
        if self.json:
            print(values.text(_plain(cells)))
        else:
            _print(cells)
        return FAILED if any(cell.violations for cell in cells) else 0

    def _problems(self) -> list[Problem]:
        """The problem of every cell, each inside the theorem."""
        for name in ("K", "d", "n", "lam", "ratio"):
            if not getattr(self, name):
                raise Refused(f"got --{name} without a value; allowed: one or more numbers")
        check.integer("escapes", self.escapes, 0)
        sizes = (self.counts,) if self.counts else self.n
        grid = itertools.product(self.K, self.d, sizes, self.lam, self.ratio)
        problems = [
            Problem(K, d, n, lam_H=lam * r, lam_b=self.lam_b, lam=lam) for K, d, n, lam, r in grid
        ]
        for problem in problems:
            verification.check_assumptions(problem)
            census.check(problem, self.starts, self.rounds)
        return problems

    def _opened(self) -> record.RunHandle:
        config = asdict(self)
        for name in ("out", "json", "seed", "cache", *(() if self.counts else ("counts",))):
            del config[name]
        return record.open_run(str(self.out), "verify", config, seed=self.seed)

    def _compute(
        self, problems: list[Problem], cells: list[Cell], handle: record.RunHandle | None
    ) -> None:
        """Add the cells that are missing, in the order of the grid."""
        bar = (
            BarColumn(), TextColumn("{task.completed}/{task.total} cells"), TimeElapsedColumn(),
            TimeRemainingColumn(), TextColumn("{task.description}"),
        )  # fmt: skip
        with watched(*bar) as progress:
            task = progress.add_task("", total=len(problems), completed=len(cells))
            for i in range(len(cells), len(problems)):

                def report(doing: str, label: str = _name_of(problems[i])) -> None:
                    progress.update(task, description=f"{label}: {doing}")

                cell = verification.verify(
                    problems[i],
                    jax.random.fold_in(check.key(self.seed), i),
                    starts=self.starts,
                    rounds=self.rounds,
                    escapes=self.escapes,
                    report=report,
                )
                cells.append(cell)
                progress.update(task, completed=i + 1)
                if handle is not None:
                    record.save_checkpoint(handle, {}, _state(cells, len(problems)))


def _state(cells: list[Cell], total: int) -> dict[str, Any]:
    return {"cells": _plain(cells), "of": total}


def _kept(handle: record.RunHandle) -> list[Cell]:
    """The finished cells of a run."""
    manifest = record.load_latest(handle.path).manifest
    return stored.verified(manifest, f"{handle.path / 'manifest.json'}")[0]


def _write_tables(folder: Path, cells: list[Cell]) -> None:
    """Write verify.json and verify.md, unless the folder has them already."""
    plain = values.text(_state(cells, len(cells)))
    for name, text in (("verify.json", plain), ("verify.md", markdown(cells))):
        if not os.path.lexists(folder / name):
            storage.write(folder, name, f"{text}\n".encode())


def _plain(cells: list[Cell]) -> list[dict[str, Any]]:
    """The cells as JSON values, NaN as null."""
    return [values.finite(cell._asdict() | {"problem": cell.problem.describe()}) for cell in cells]


def _row(cell: Cell) -> list[str]:
    problem = cell.problem
    return [
        f"{problem.K}", f"{problem.d}", " ".join(map(str, np.atleast_1d(problem.n))),
        f"{float(problem.lam_W):g}",
        f"{float(problem.lam_H):g}", _minimum(cell),
        f"{cell.minimisers}", f"{cell.saddles}", f"{cell.local}", f"{cell.undecided}",
        f"{cell.points}", f"{cell.softest:.2g}", f"{max(cell.gap, 0):.0e}",
        f"{cell.escaped}/{cell.escapes}", f"{len(cell.violations)}",
    ]  # fmt: skip


def _minimum(cell: Cell) -> str:
    if cell.collapsed:
        return "origin"
    return "ETF" if cell.problem.uniform else "solved"


def markdown(cells: list[Cell]) -> str:
    """The table as Markdown, with the violations listed below it."""
    lines = [f"| {' | '.join(COLUMNS)} |", "|" + "---|" * len(COLUMNS)]
    lines += [f"| {' | '.join(_row(cell))} |" for cell in cells]
    words = [f"- {_name_of(cell.problem)}: {text}" for cell in cells for text in cell.violations]
    return "\n".join([*lines, "", *(words or ["No violation."])])


def _name_of(problem: Problem) -> str:
    return f"K={problem.K}, d={problem.d}, n={problem.n}, λ_W={float(problem.lam_W):g}"


# Short heads for a terminal of 80 columns.
_SHORT = (
    "K", "d", "n", "λ_W", "λ_H", "min", "ETF", "saddle", "other", "und", "points", "softest",
    "gap", "escaped", "viol",
)  # fmt: skip


def _print(cells: list[Cell]) -> None:
    table = Table(title="Theory against computation: orbits of critical points", **LOOK)
    for name in _SHORT:
        table.add_column(name, justify="right", no_wrap=True)
    for cell in cells:
        table.add_row(*_row(cell), style="bold red" if cell.violations else None)
    console = Console()
    console.print(table)
    console.print(
        "min: the global minimum. ETF: minimisers found, simplex ETFs (or the origin) for equal "
        "classes. other: minima that are not global. und: undecided. points: starts that reached a "
        "critical point. softest: least |most negative eigenvalue|. escaped: saddles from which "
        "descent reached the minimum."
    )
    for cell in cells:
        for text in cell.violations:
            print(f"violation: {_name_of(cell.problem)}: {text}", file=sys.stderr)
