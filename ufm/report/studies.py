"""A sweep as a figure: panels × series × seeds, from the columns of its table.

Every cell is drawn as the curve of its history, or as a point at its end. One column of settings
defines the panels, one the colours, and one the line styles or markers; cells that agree in all
three, such as those of several seeds, look the same.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from ufm import check, plots
from ufm.check import Refused
from ufm.descent.loop import Status
from ufm.losses.squared import SquaredError
from ufm.report.latex import HEADS
from ufm.sweeps import histories, tables

MOST_PANELS, ABREAST, HEIGHT = 24, 4, 1.6  # in a row; inches of a panel
DECADES = 2.0  # span from which on an axis is logarithmic
ARRIVED = (Status.certified.name, Status.converged.name)  # points of other cells are hollow
IN_NATS = ("value", "f_star", "loss", "gap")  # columns, where losses are log-likelihoods
Columns = dict[str, np.ndarray]


def study(
    table: Columns,
    x: str,
    y: str,
    *,
    panel: str | None = None,
    colour: str | None = None,
    style: str | None = None,
    width: str | float = "icml_text",
) -> Figure:
    """Draw a column of a sweep against another, cell by cell.

    Two columns of the history (`step`, `loss`, `gap`, …; `sweep(…, history=True)`) are drawn as one
    curve for each cell. Two other columns are drawn as one point for each cell at its end, hollow
    unless the cell reached its tolerance. An axis is logarithmic if its values are positive and
    span two decades or more; y values that are negative or 0 by rounding, such as a gap at the
    minimum, are then left out.

    Args:
        table: what `ufm.sweep` returned.
        x, y: columns.
        panel: a column; each of its values has a panel, at most 24.
        colour: a column that determines the colour, with at most 7 values.
        style: a column that determines the line style or the marker, with at most 6 values.
        width: of the figure, as for `ufm.plots.figure`.

    Returns:
        A figure, for `ufm.plots.save`, in the surrounding `ufm.plots.style`.

    Raises:
        Refused: no table, a column that it lacks, or one with too many values.
    """
    ends, rows = _tables(table)
    _check(ends, rows, (x, y), (panel, colour, style))
    along = x in rows and y in rows
    panels = _values(ends, panel, "panel", MOST_PANELS)
    looks = (
        (colour, _values(ends, colour, "colour", len(plots.PALETTE))),
        (style, _values(ends, style, "style", len(plots.LINES))),
    )
    down = -(-len(panels) // ABREAST)
    canvas, axes = plots.figure(
        width, HEIGHT * down + 0.4, down, min(len(panels), ABREAST), sharex=True, sharey=True
    )
    for ax in axes.flat[len(panels) :]:
        ax.set_axis_off()
    for value, ax in zip(panels, axes.flat, strict=False):
        for i in np.nonzero(_is(ends, panel, value))[0].tolist():
            look = [_place(ends, column, values, i) for column, values in looks]
            _draw(ax, ends, rows, i, (x, y), look, along)
        if panel is not None:
            ax.set_title(f"{_head(panel)} = {_told(value)}", loc="left")
    _scales(axes.flat[0], *((rows[x], rows[y]) if along else (ends[x], ends[y])))
    for ax in axes[-1]:
        ax.set_xlabel(_axis(ends, x))
    for ax in axes[:, 0]:
        ax.set_ylabel(_axis(ends, y))
    handles = _handles(looks, along)
    if handles:
        canvas.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 6))
    return canvas


def _tables(table: Any) -> tuple[Columns, Columns]:
    try:
        ends, rows = histories.split(dict(table))
        return tables.named({name: np.asarray(column) for name, column in ends.items()}), rows
    except (TypeError, ValueError, AttributeError):
        raise Refused(
            f"got table={check.shown(table)}; allowed: the dict that ufm.sweep returns"
        ) from None


def _check(ends: Columns, rows: Columns, drawn: Sequence[Any], settings: Sequence[Any]) -> None:
    for name, column in zip(("x", "y"), drawn, strict=True):
        if not isinstance(column, str) or column not in {*ends, *rows}:
            more = ". 'step' and others need a sweep with history=True (--history)"
            raise Refused(
                f"got {name}={check.shown(column)}; allowed: {', '.join({**ends, **rows})}"
                + ("" if rows else more)
            )
    parted = [name for name in drawn if name not in ends]
    if parted and not all(name in rows for name in drawn):
        raise Refused(
            f"got x={drawn[0]!r}, y={drawn[1]!r}, one of the history and one of the ends; allowed: "
            f"two of the history ({', '.join(rows)}), or two of the ends"
        )
    if not parted or rows:
        for name, column in zip(("panel", "colour", "style"), settings, strict=True):
            if column is not None and (not isinstance(column, str) or column not in ends):
                raise Refused(f"got {name}={check.shown(column)}; allowed: {', '.join(ends)}")
    source = rows if all(name in rows for name in drawn) else ends
    if odd := [name for name in drawn if source[name].dtype.kind not in "biuf"]:
        raise Refused(f"got the column {odd[0]!r} to draw, which holds text; allowed: numbers")


def _values(ends: Columns, column: str | None, name: str, most: int) -> list[Any]:
    """The values of a column in ascending order; [None] without a column."""
    if column is None:
        return [None]
    found = np.unique(ends[column]).tolist()
    if len(found) > most:
        raise Refused(
            f"got {name}={column!r}, which has {len(found)} values; allowed: at most {most}. Take "
            "another column, or fewer cells"
        )
    return found


def _is(ends: Columns, column: str | None, value: Any) -> np.ndarray:
    if column is None:
        return np.ones(len(ends["cell"]), bool)
    # NaN, as for methods without momentum, is a value, too.
    return (ends[column] == value) | ((ends[column] != ends[column]) & (value != value))


def _place(ends: Columns, column: str | None, values: list[Any], i: int) -> int:
    return next(k for k, value in enumerate(values) if _is(ends, column, value)[i])


def _draw(
    ax: Axes,
    ends: Columns,
    rows: Columns,
    i: int,
    drawn: tuple[str, str],
    look: list[int],
    along: bool,
) -> None:
    """One cell."""
    hue, kind = look
    if along:
        own = rows["cell"] == ends["cell"][i]
        x, y = (rows[name][own] for name in drawn)
        plots.curves(ax, x, y, index=hue, linestyle=plots.LINES[kind], linewidth=0.8, alpha=0.8)
        return
    arrived = np.array([ends["status"][i] in ARRIVED])
    x, y = (ends[name][i : i + 1] for name in drawn)
    plots.points(ax, x, y, arrived, index=hue, marker=plots.MARKERS[kind])


def _scales(ax: Axes, x: np.ndarray, y: np.ndarray) -> None:
    """Make axes logarithmic where this is appropriate; all panels share them."""
    for name, values in (("x", x), ("y", y)):
        positive = values[np.isfinite(values) & (values > 0)]
        if not len(positive):
            continue
        top = float(np.max(positive))
        rounding = name == "y" and np.all(~(values <= 0) | (np.abs(values) <= 1e-9 * top))
        wide = math.log10(top / float(np.min(positive))) >= DECADES
        if wide and (rounding or len(positive) == len(values)):
            {"x": ax.set_xscale, "y": ax.set_yscale}[name]("log", nonpositive="mask")


def _handles(looks: Any, along: bool) -> list[Line2D]:
    """The entries of the legend: one for each colour, then one for each style."""
    (colour, hues), (style, kinds) = looks
    found = []
    for k, value in enumerate(hues if colour is not None else []):
        shape: dict[str, Any] = {} if along else {"marker": plots.MARKERS[0], "linestyle": "none"}
        label = f"{_head(colour)} = {_told(value)}"
        found.append(Line2D([], [], color=plots.colour(k), label=label, **shape))
    for k, value in enumerate(kinds if style is not None else []):
        if along:
            shape = {"linestyle": plots.LINES[k]}
        else:
            shape = {"marker": plots.MARKERS[k], "linestyle": "none"}
        found.append(Line2D([], [], color=plots.GREY, label=_told(value), **shape))
    return found


def _axis(ends: Columns, column: str) -> str:
    """The label of an axis, with its unit."""
    losses = [str(loss).partition("(")[0] for loss in ends["loss"]]
    nats = column in IN_NATS and SquaredError.__name__ not in losses
    return f"{_head(column)}, nats" if nats else _head(column)


def _head(column: str | None) -> str:
    return HEADS.get(column or "", (column or "").replace("_", " "))


def _told(value: Any) -> str:
    if value == "" or value != value:
        return "none"
    return f"{value:.6g}" if isinstance(value, float) else str(value).replace("_", " ")
