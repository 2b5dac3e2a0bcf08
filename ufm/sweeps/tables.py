"""Summaries of the tables of sweeps: rows grouped over seeds, and the settings that all share."""

from typing import Any

import numpy as np

from ufm import check
from ufm.check import Refused
from ufm.descent.records import HISTORY
from ufm.sweeps.grid import COLUMNS
from ufm.sweeps.histories import split

Columns = dict[str, np.ndarray]
# The columns of settings, in the order in which they are shown.
SETTINGS = (
    "K", "d", "n", "counts", "lam_W", "lam_H", "lam_b", "bias", "loss", "weights", "decay_weights",
    "targets", "features", "fixed", "optimizer", "learning_rate", "momentum", "batch_size",
    "options", "seed",
)  # fmt: skip
RESULTS = ("status", "steps", "value", "gap", "nc1")
ABSENT = ("", "nan", "0", "free")  # no weights, no momentum, full batches, free features


def named(table: Columns) -> Columns:
    """The table with "auto" and "safe" as learning rates where these were the settings."""
    auto, rates = table.get("auto"), table.get("learning_rate")
    if auto is None or rates is None or rates.dtype.kind != "f" or not np.any(auto):
        return table
    pairs = zip(rates.tolist(), auto.tolist(), strict=True)
    return table | {"learning_rate": np.array([_named_rate(*pair) for pair in pairs])}


def _named_rate(rate: float, auto: bool) -> str:
    if auto:  # an adaptive step has no number
        return "safe" if rate == rate else "auto"
    return f"{rate:.6g}" if rate == rate else ""


def shown(table: Columns) -> tuple[str, ...]:
    """The names of the columns to show: settings that vary, main results, those of a user."""
    known = {*COLUMNS, *HISTORY, "rows"}
    settings = [name for name in _settings(table) if name not in shared(table)]
    count = ["rows"] if "rows" in table else []
    results = [name for name in RESULTS if name in table]
    return (*settings, *count, *results, *(name for name in table if name not in known))


def shared(table: Columns) -> dict[str, Any]:
    """The settings that are the same in all rows, without those at an empty default."""
    same = {name: table[name] for name in _settings(table) if len(set(map(str, table[name]))) == 1}
    found = {name: x[0].item() for name, x in same.items()}
    return {name: x for name, x in found.items() if str(x) not in ABSENT}


def _settings(table: Columns) -> list[str]:
    """Names of settings: `counts` instead of n if classes are unequal, and no empty columns."""
    unequal = np.any(table.get("n", np.ones(1)) == 0)
    found = [x for x in SETTINGS if x in table and x != ("n" if unequal else "counts")]
    return [name for name in found if set(map(str, table[name])) - set(ABSENT)]


def grouped(table: Columns, by: Any, *, median: bool = False) -> Columns:
    """One row for each group of rows that agree in some columns.

    Args:
        table: what `ufm.sweep` returned; histories are left out.
        by: names of the columns that define the groups, such as ("d", "lam_W").
        median: take the median of numbers; otherwise the mean. Values that are no numbers, such as
            a status, are counted where they differ: "2 certified, 1 diverged".

    Returns:
        The columns of `by`, `rows` (the size of each group), then the others; groups are in the
        order of their first rows. A setting that differs within a group is left out, since the
        mean of several λ is no λ of any row.

    Raises:
        Refused: no table, or a column that it lacks.
    """
    try:
        table, _ = split(dict(table))
        columns = named(table)
    except (TypeError, ValueError, KeyError, AttributeError):
        raise Refused(
            f"got table={check.shown(table)}; allowed: the dict that ufm.sweep returns"
        ) from None
    names = [by] if isinstance(by, str) else check.several(by)
    odd = [name for name in names or [None] if not isinstance(name, str) or name not in columns]
    if odd or names is None:
        raise Refused(
            f"got by={check.shown(by)}; allowed: one or more of the columns {', '.join(columns)}"
        )
    middle = np.median if check.flag("median", median) else np.mean
    groups: dict[tuple[str, ...], list[int]] = {}
    for i in range(len(columns[names[0]])):
        groups.setdefault(tuple(str(columns[name][i]) for name in names), []).append(i)
    members = list(groups.values())
    firsts = [rows[0] for rows in members]
    found = {name: columns[name][firsts] for name in dict.fromkeys(names)}
    found["rows"] = np.array([len(rows) for rows in members])
    left_out = {*found, "cell", "seed", *_mixed(columns, members)}
    rest = {name: x for name, x in columns.items() if name not in left_out}
    return found | {name: _together(x, members, middle) for name, x in rest.items()}


def _mixed(columns: Columns, members: list[list[int]]) -> list[str]:
    """The settings that differ within a group."""
    return [
        name
        for name in (*SETTINGS, "N")
        if name in columns and any(len(set(map(str, columns[name][x]))) > 1 for x in members)
    ]


def mixed(table: Columns, groups: Columns) -> list[str]:
    """The settings other than the seed that differ within some groups of a table."""
    return [x for x in _settings(table) if x not in groups and x != "seed"]


def _together(column: np.ndarray, members: list[list[int]], middle: Any) -> np.ndarray:
    """One entry a group."""
    parts = [column[rows] for rows in members]
    if all(len(set(map(str, part))) == 1 for part in parts):
        return np.array([part[0] for part in parts])
    if column.dtype.kind in "iuf":
        return np.array([middle(part) for part in parts])
    return np.array([_counted(part) for part in parts])


def _counted(part: np.ndarray) -> str:
    names, counts = np.unique(part, return_counts=True)
    if len(names) == 1:
        return str(names[0])
    return ", ".join(f"{count} {name}" for name, count in zip(names, counts, strict=True))
