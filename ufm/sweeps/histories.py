"""Histories of the cells of a sweep: the recorded rows of all cells, concatenated.

In a table they are separate columns, "history/cell", "history/step", "history/loss", …, whose
length is not that of the other columns. They are in the order of the cells.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from ufm import check
from ufm.check import Refused

PREFIX = "history/"
Columns = dict[str, np.ndarray]


def split(table: Columns) -> tuple[Columns, Columns]:
    """(one row a cell, one row a record) of a table; names of the second lose "history/".

    Args:
        table: what `ufm.sweep(…, history=True)` returned, or `numpy.load` of its file.
    """
    ends = {name: x for name, x in table.items() if not name.startswith(PREFIX)}
    rows = {name.removeprefix(PREFIX): x for name, x in table.items() if name not in ends}
    return ends, rows


def history(table: Columns, cell: int) -> Columns:
    """The history of one cell, as a dict of columns like `ufm.Run.history`.

    Args:
        table: what `ufm.sweep(…, history=True)` returned, or `numpy.load` of its file.
        cell: its number, as in the column `cell`.

    Raises:
        Refused: no table, one without histories, or one without this cell.
    """
    try:
        _, rows = split(dict(table))
    except (TypeError, ValueError, AttributeError):
        raise Refused(
            f"got table={check.shown(table)}; allowed: the dict that ufm.sweep returns"
        ) from None
    if "cell" not in rows:
        raise Refused(
            "got a table without histories; allowed: one of ufm.sweep(…, history=True), or of "
            "`ufm sweep --history`"
        )
    own = rows.pop("cell") == check.integer("cell", cell, 0)
    if not np.any(own):
        raise Refused(f"got cell={cell}, of which the table holds no row; allowed: one that it has")
    return {name: x[own] for name, x in rows.items()}


def gathered(calls: Sequence[dict[str, Any]]) -> Columns:
    """The history columns of the cells of a batch, from the history of every call.

    Args:
        calls: arrays (cells, records) by name, with step −1 where nothing was recorded. The first
            record of every call but the first repeats the last one of the call before.
    """
    kept = [call["step"] >= 0 for call in calls]
    for again in kept[1:]:
        again[:, 0] = False
    cells = [np.nonzero(rows)[0] for rows in kept]
    order = np.argsort(np.concatenate(cells), kind="stable")
    found = {"cell": np.concatenate(cells)[order]}
    for name in ["step", *(name for name in calls[0] if name != "step")]:
        values = [call[name][rows] for call, rows in zip(calls, kept, strict=True)]
        found[name] = np.concatenate(values)[order]
    return {f"{PREFIX}{name}": x for name, x in found.items()}


def ordered(table: Columns) -> Columns:
    """The table with its cells, and its histories, in the order of their numbers."""
    parts = {name: table[name] for name in ("cell", f"{PREFIX}cell") if name in table}
    orders = {name: np.argsort(x, kind="stable") for name, x in parts.items()}
    return {
        name: x[orders[f"{PREFIX}cell" if name.startswith(PREFIX) else "cell"]]
        for name, x in table.items()
    }
