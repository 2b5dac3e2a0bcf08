"""Interactive figures for pages: functions that take arrays and return plotly figures.

The counterpart of `ufm.plots` for the screen; like that module it only draws. Needs plotly, which
the extra [report] installs.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from ufm import plots
from ufm.plots import Scene

FONT = {"family": "STIX Two Text, STIXGeneral, Times New Roman, serif", "size": 15}
SYMBOLS = ("circle", "square", "triangle-up", "diamond", "triangle-down", "cross", "x")
DASHES = ("solid", "dash", "dot", "dashdot", "longdash", "solid", "dash")
GRID = {"showline": True, "linecolor": "black", "gridcolor": "#e4e4e4", "zeroline": False}


def ladder(orbits: Mapping[str, Sequence], title: str = "") -> go.Figure:
    """Value (nats) against Morse index, one dot for each orbit of critical points.

    Args:
        orbits: columns of equal length: value, morse_index and rank, and any others; the hover
            text of a dot shows them all. With a column K there is a view for each number of
            classes, chosen by buttons.
        title: of the figure.
    """
    columns = {name: list(x) for name, x in orbits.items()}
    count = len(columns["value"])
    classes = columns.get("K", [None] * count)
    figure, owners = go.Figure(), []
    for K in dict.fromkeys(classes):
        for rank in sorted({r for r, k in zip(columns["rank"], classes, strict=True) if k == K}):
            own = [i for i in range(count) if columns["rank"][i] == rank and classes[i] == K]
            figure.add_scatter(
                x=[columns["morse_index"][i] for i in own],
                y=[columns["value"][i] for i in own],
                mode="markers",
                name=f"rank {rank}",
                text=[_told(columns, i) for i in own],
                hovertemplate="%{text}<extra></extra>",
                marker={
                    "color": plots.colour(int(rank)), "size": 10, "opacity": 0.85,
                    "symbol": SYMBOLS[int(rank) % len(SYMBOLS)],
                    "line": {"width": 0.8, "color": "white"},
                },
            )  # fmt: skip
            owners.append(K)
    if len(set(owners)) > 1:
        _choose(figure, owners)
    _lay_out(figure, title, "Morse index", "f, nats")
    return figure


def _told(columns: Mapping[str, list], i: int) -> str:
    """The hover text of one orbit."""
    lines = []
    for name, column in columns.items():
        x = column[i]
        if isinstance(x, float | np.floating):
            x = f"{x:.9g}" if name == "value" else f"{x:.3g}"
        lines.append(f"{name.replace('_', ' ')}: {x}")
    return "<br>".join(lines)


def _choose(figure: go.Figure, owners: list) -> None:
    """One button for each number of classes; the last one is active at first."""
    choices = list(dict.fromkeys(owners))
    for trace, K in zip(figure.data, owners, strict=True):
        trace.visible = choices[-1] == K
    shown = {K: [owner == K for owner in owners] for K in choices}
    buttons = [
        {"label": f"K = {K}", "method": "update", "args": [{"visible": shown[K]}]} for K in choices
    ]
    figure.update_layout(
        updatemenus=[
            {
                "type": "buttons", "direction": "right", "buttons": buttons, "x": 0, "y": 1.12,
                "xanchor": "left", "active": len(choices) - 1,
            }
        ]
    )  # fmt: skip


def history(steps, series: Mapping[str, Any], title: str = "") -> go.Figure:
    """Quantities on a logarithmic scale against the step; lines break at values that are not > 0.

    Args:
        steps: (records,).
        series: arrays (records,) by name; the legend switches them on and off.
        title: of the figure.
    """
    figure = go.Figure()
    for i, (name, y) in enumerate(series.items()):
        positive = np.where(np.asarray(y) > 0, y, np.nan)
        figure.add_scatter(
            x=np.asarray(steps), y=positive, name=name, mode="lines",
            line={"color": plots.colour(i), "dash": DASHES[i % len(DASHES)], "width": 2},
            hovertemplate="%{y:.3g}",
        )  # fmt: skip
    _lay_out(figure, title, "step", "")
    figure.update_layout(hovermode="x unified")
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def points(
    x, y, text: Sequence[str], groups: Sequence[str], axes: tuple[str, str], title: str = ""
):
    """Dots on logarithmic scales, one colour for each group.

    Args:
        x, y: (points,); only positive values are visible.
        text: the hover text of each dot, in HTML.
        groups: the name of the group of each dot.
        axes: labels of x and y.
        title: of the figure.
    """
    figure = go.Figure()
    for i, group in enumerate(dict.fromkeys(groups)):
        own = [j for j, name in enumerate(groups) if name == group]
        figure.add_scatter(
            x=[x[j] for j in own], y=[y[j] for j in own], name=group, mode="markers",
            text=[text[j] for j in own], hovertemplate="%{text}<extra></extra>",
            marker={"color": plots.colour(i), "symbol": SYMBOLS[i % len(SYMBOLS)], "size": 9},
        )  # fmt: skip
    _lay_out(figure, title, *axes)
    figure.update_layout(showlegend=True)
    figure.update_xaxes(type="log", exponentformat="power", dtick=1)
    figure.update_yaxes(type="log", exponentformat="power")
    return figure


def collapse(scenes: Sequence[Scene], names: Sequence[str] = (), title: str = "") -> go.Figure:
    """Features, class means, classifier rows and a simplex in three dimensions.

    Args:
        scenes: one `ufm.plots.Scene`, or several moments of a collapse, chosen by a slider.
        names: of the moments.
        title: of the figure.
    """
    traces = [_drawn(scene) for scene in scenes]
    figure = go.Figure(data=traces[-1])
    if len(scenes) > 1:
        figure.frames = [
            go.Frame(data=drawn, name=name) for drawn, name in zip(traces, names, strict=True)
        ]
        show: dict[str, Any] = {"mode": "immediate", "frame": {"duration": 0, "redraw": True}}
        show["transition"] = {"duration": 0}
        steps = [{"label": name, "method": "animate", "args": [[name], show]} for name in names]
        figure.update_layout(
            sliders=[
                {"steps": steps, "active": len(names) - 1, "currentvalue": {"prefix": "step "}}
            ]
        )
    reach = 1.05 * max(float(np.max(np.abs(scene.features))) for scene in scenes)
    axis = {"visible": False, "range": [-reach, reach]}
    # A planar scene is seen from above.
    flat = all(not scene.features[:, 2].any() for scene in scenes)
    eye = (0.0, 0.0, 1.75) if flat else (1.2, 1.13, 0.67)
    _lay_out(figure, title, "", "")
    figure.update_layout(
        scene={"xaxis": axis, "yaxis": axis, "zaxis": axis, "aspectmode": "cube",
               "camera": {"eye": dict(zip("xyz", eye, strict=True))}},
        height=600, showlegend=True,
    )  # fmt: skip
    return figure


def _drawn(scene: Scene) -> list[go.Scatter3d]:
    """The traces of one moment; always the same number, so that frames replace each other."""
    K, hues = len(scene.means), [plots.colour(k) for k in range(len(scene.means))]
    sides = [(j, k) for k in range(len(scene.vertices)) for j in range(k)]
    edges = _lines([(scene.vertices[j], scene.vertices[k]) for j, k in sides])
    names = [f"class {k}" for k in scene.labels]
    traces = [
        go.Scatter3d(
            **_xyz(scene.features), mode="markers", name="features", text=names,
            hovertemplate="%{text}<extra></extra>",
            marker={"size": 3, "opacity": 0.5, "color": [hues[k] for k in scene.labels]},
        ),
        go.Scatter3d(
            **_xyz(scene.means), mode="markers", name="class means",
            text=[f"mean of class {k}<br>length {np.linalg.norm(x):.4g}"
                  for k, x in enumerate(scene.means)],
            hovertemplate="%{text}<extra></extra>",
            marker={"size": 10, "symbol": "circle-open", "color": hues, "line": {"width": 4}},
        ),
        go.Scatter3d(
            **_xyz(edges), mode="lines", name="nearest regular simplex", hoverinfo="skip",
            line={"color": "black", "dash": "dash", "width": 2},
        ),
    ]  # fmt: skip
    for k in range(K):
        traces.append(
            go.Scatter3d(
                **_xyz(np.stack([np.zeros(3), scene.rows[k]])), mode="lines+markers",
                name="classifier rows", legendgroup="rows", showlegend=k == 0,
                hovertemplate=f"row {k} of the classifier<extra></extra>",
                line={"color": hues[k], "width": 6},
                marker={"size": [0, 5], "symbol": "diamond", "color": hues[k]},
            )
        )  # fmt: skip
    return traces


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip("xyz", np.asarray(points, np.float32).T, strict=True))


def _lines(pairs: Sequence[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    """Line segments as one line with gaps."""
    gap = np.full(3, np.nan)
    return np.array([row for pair in pairs for row in (*pair, gap)]).reshape(-1, 3)


def _lay_out(figure: go.Figure, title: str, x: str, y: str) -> None:
    figure.update_layout(
        template="none", font=FONT, height=480, showlegend=True,
        title={"text": title, "font": {"size": 17}, "x": 0, "xanchor": "left", "xref": "container"},
        margin={"l": 62, "r": 12, "t": 60, "b": 60},
        # Below, so that the plot keeps the width of a narrow screen.
        legend={"orientation": "h", "x": 0, "yref": "container", "y": 0, "yanchor": "bottom"},
        hoverlabel={"font": FONT | {"size": 13}, "bgcolor": "white"},
    )  # fmt: skip
    figure.update_xaxes(title={"text": x, "standoff": 8}, automargin=True, tickangle=0, **GRID)
    figure.update_yaxes(title=y, **GRID)
