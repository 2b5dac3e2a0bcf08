"""`ufm table`: the table of a sweep, printed or exported."""

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
from ufm.report import latex
from ufm.runs import storage, values
from ufm.sweeps import histories, tables
from ufm.sweeps import run as sweeps


@dataclass(frozen=True)
class Table:
    """Print the table of a sweep, finished or not, as text, LaTeX or JSON, or write it as CSV.

    With --group-by the rows that agree in these columns become one row of means or medians over the
    other settings, such as seeds. A line above the table lists the settings that all rows share.

    Python reads the stored table: pandas.DataFrame(dict(numpy.load("PATH/arrays.npz"))), likewise
    polars.

    Example: ufm table runs/sweep --group-by d lam_W --median --latex
    """

    run: Annotated[Path, tyro.conf.Positional]
    """folder that `ufm sweep --out` wrote"""
    columns: tuple[str, ...] = ()
    """columns to show; default: the settings that vary, and the main results"""
    sort: str | None = None
    """column to sort by, ascending"""
    limit: int | None = None
    """most rows to show"""
    group_by: tuple[str, ...] = ()
    """columns; rows that agree in all of them become one row"""
    median: bool = False
    """show the median of each group instead of the mean"""
    latex: bool = False
    """print LaTeX, for the package booktabs"""
    csv: Path | None = None
    """write every column and the chosen rows to this new file instead"""
    json: bool = False
    """print JSON for machines, one object a row"""

    def act(self) -> int:
        """Read the table, group, sort and print it."""
        if self.limit is not None:
            integer("limit", self.limit, 1)
        refuse_others(self.run)
        table, manifest = sweeps.load(self.run)
        columns, _ = histories.split(table)
        if self.median and not self.group_by:
            raise Refused("got --median without --group-by; allowed: both, as --group-by d lam_W")
        if not columns:
            print("no cell is finished yet")
            return 0
        total, order = len(columns["cell"]), "cell"
        over: list[str] = []
        if self.group_by:
            groups = tables.grouped(columns, self.group_by, median=self.median)
            over, columns, order = tables.mixed(columns, groups), groups, self.group_by[0]
        unknown = [name for name in (*self.columns, self.sort) if name and name not in columns]
        if unknown:
            raise Refused(f"got the column {unknown[0]!r}; allowed: {', '.join(columns)}")
        whole = len(columns[order])
        first = np.argsort(columns[self.sort], kind="stable") if self.sort else np.arange(whole)
        columns = {name: x[first[: self.limit]] for name, x in columns.items()}
        unit = "group" if self.group_by else "row"
        title = _title(columns, len(columns[order]), whole, unit)
        if over:
            title += f"; over different {', '.join(over)}"
        if manifest["status"] != "complete":
            title += f"; not finished: {total} cells so far"
        self._print(columns, title)
        return 0

    def _print(self, columns: sweeps.Columns, title: str) -> None:
        """Print or write the table in the chosen format."""
        if self.csv is not None:
            if os.path.lexists(self.csv):
                raise Refused(f"got --csv {self.csv}, which exists; allowed: a new file")
            storage.write(self.csv.absolute().parent, self.csv.name, _csv(columns).encode())
            rows = len(next(iter(columns.values())))
            print(f"wrote {self.csv}: {rows} rows, {len(columns)} columns", file=sys.stderr)
        elif self.json:
            print_json(columns, self.columns)
        elif self.latex:
            print(latex.table(_rows(tables.named(columns), self._shown(columns)), title))
        else:
            print_table(columns, self._shown(columns), title)

    def _shown(self, columns: sweeps.Columns) -> tuple[str, ...]:
        """The columns to print: the chosen ones, or the settings that vary and the results."""
        chosen = (*self.group_by, *tables.shown(tables.named(columns)))
        return tuple(dict.fromkeys((*self.group_by, *self.columns) if self.columns else chosen))


def _title(columns: sweeps.Columns, rows: int, whole: int, unit: str) -> str:
    """The number of rows, and the settings that are the same in all that are shown."""
    unit += "s" if whole != 1 else ""
    counted = f"{rows} of {whole} {unit}" if rows < whole else f"{rows} {unit}"
    same = tables.shared(tables.named(columns))
    words = {name: f"{x:.6g}" if isinstance(x, float) else x for name, x in same.items()}
    told = ", ".join(f"{name}={x}" for name, x in words.items())
    return f"{counted}; the same in all: {told}" if told else counted


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
    """Print one JSON object for each row; NaN and infinities as null."""
    print(values.text(_rows(columns, names)))


def print_table(columns: sweeps.Columns, names: tuple[str, ...] = (), title: str = "") -> None:
    """Print a table; by default of the settings that vary and the main results."""
    columns = tables.named(columns)
    rows = len(columns["status"])
    title = title or _title(columns, rows, rows, "row")
    chosen = names or tables.shown(columns)
    table = RichTable(**LOOK)
    for name in chosen:
        table.add_column(name, justify="right", no_wrap=True)
    for row in _rows(columns, tuple(dict.fromkeys((*chosen, "status")))):
        failed = row["status"] == "diverged"
        table.add_row(*(_text(row[name]) for name in chosen), style="bold red" if failed else None)
    console = Console()
    console.print(title, soft_wrap=True, markup=False, highlight=False)
    # Lines longer than the terminal, rather than truncated numbers.
    whole = Measurement.get(console, console.options.update(max_width=10_000), table).maximum
    Console(width=max(console.width, whole)).print(table)


def _text(x: Any) -> str:
    if isinstance(x, float):
        return "–" if x != x else f"{x:.4g}"
    return str(x)
