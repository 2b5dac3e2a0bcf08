"""`ufm table`: the table of a sweep, to look at or to hand on."""

import csv
import io
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from ufm.check import Refused, integer
from ufm.commands.shared import LOOK, refuse_others
from ufm.runs import storage, values
from ufm.sweeps import histories
from ufm.sweeps import run as sweeps

# Columns that differ within a sweep are shown beside these.
_RESULTS = ("status", "steps", "value", "gap", "nc1")
_SETTINGS = (
    "K", "d", "n", "lam_W", "lam_H", "lam_b", "bias", "optimizer", "learning_rate", "batch_size",
    "seed",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """Print the table of a sweep, finished or not, or write it as CSV.

    Python reads it at once: pandas.DataFrame(dict(numpy.load("RUN/arrays.npz"))), likewise polars.

    Example: ufm table runs/sweep --sort gap --limit 20
    """

    run: Annotated[Path, tyro.conf.Positional]
    """folder that `ufm sweep --out` wrote"""
    columns: tuple[str, ...] = ()
    """columns to show; default: the settings that vary, and the main results"""
    sort: str | None = None
    """column to sort by, ascending"""
    limit: int | None = None
    """most rows to show"""
    csv: Path | None = None
    """write every column and row to this new file instead"""
    json: bool = False
    """print JSON for machines, one object a row"""

    def act(self) -> int:
        """Read, sort, choose, print."""
        if self.limit is not None:
            integer("limit", self.limit, 1)
        refuse_others(self.run)
        table, manifest = sweeps.load(self.run)
        columns, _ = histories.split(table)
        if not columns:
            print("no cell is finished yet")
            return 0
        unknown = [name for name in (*self.columns, self.sort) if name and name not in columns]
        if unknown:
            raise Refused(f"got the column {unknown[0]!r}; allowed: {', '.join(columns)}")
        order = np.argsort(columns[self.sort or "cell"], kind="stable")[: self.limit]
        columns = {name: x[order] for name, x in columns.items()}
        if self.csv is not None:
            if os.path.lexists(self.csv):
                raise Refused(f"got --csv {self.csv}, which exists; allowed: a new file")
            storage.write(self.csv.absolute().parent, self.csv.name, _csv(columns).encode())
            print(f"wrote {self.csv}: {len(order)} rows, {len(columns)} columns", file=sys.stderr)
        elif self.json:
            print_json(columns, self.columns)
        else:
            print_table(columns, self.columns)
            if manifest["status"] != "complete":
                print(f"not finished: {len(columns['cell'])} cells so far")
        return 0


def _rows(columns: sweeps.Columns, names: tuple[str, ...]) -> list[dict[str, Any]]:
    chosen = names or tuple(columns)
    lists = [columns[name].tolist() for name in chosen]
    return [dict(zip(chosen, row, strict=True)) for row in zip(*lists, strict=True)]


def _csv(columns: sweeps.Columns) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(row.values() for row in _rows(columns, ()))
    return text.getvalue()


def print_json(columns: sweeps.Columns, names: tuple[str, ...] = ()) -> None:
    """One object a row; NaN and infinities as null."""
    print(values.text(_rows(columns, names)))


def print_table(columns: sweeps.Columns, names: tuple[str, ...] = ()) -> None:
    """A table for people: by default the settings that vary, and the main results."""
    varying = [name for name in _SETTINGS if len(set(map(str, columns[name]))) > 1]
    chosen = names or (*varying, *_RESULTS)
    table = RichTable(title=f"{len(columns['cell'])} cells", **LOOK)
    for name in chosen:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(columns, tuple(dict.fromkeys((*chosen, "status")))):
        failed = row["status"] == "diverged"
        table.add_row(*(_text(row[name]) for name in chosen), style="bold red" if failed else None)
    console = Console()
    # A number cut short is worse than a long line.
    whole = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, whole)).print(table)


def _text(x: Any) -> str:
    if isinstance(x, float):
        return "–" if x != x else f"{x:.4g}"
    return str(x)
