"""Style of the figures, and Axes-level functions that draw what they are given.

The functions take arrays and return artists; they compute nothing and know nothing of the model.
Predictions are dashed and black, measurements coloured. Series differ by colour (Okabe and Ito's
palette, safe for colour-blind readers) and by line style or marker.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from ufm.check import Refused
from ufm.runs import storage

# Widths in inches of a column, or of the text where a venue has one column.
WIDTHS = {
    "icml": 3.25,
    "icml_text": 6.75,
    "neurips": 5.5,
    "jmlr": 6.0,
    "ieee": 3.5,
    "ieee_text": 7.16,
}
# Okabe and Ito 2008, without black, which is kept for predictions; yellow last, as it is faint.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
LINES = ("-", (0, (4, 1.2)), (0, (1, 1)), (0, (5, 1, 1, 1)), (0, (7, 1)), (0, (3, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GREY = "#888888"
DASHED = (0, (4, 2))

Look = dict[str, Any]


@contextlib.contextmanager
def style(size: float = 8.0) -> Iterator[None]:
    """Matplotlib settings for print, for as long as the block lasts.

    Args:
        size: of the text, in points; ticks and legends are one point smaller.
    """
    settings: Look = {
        "font.family": "serif",
        "font.serif": ["STIXGeneral"],
        "mathtext.fontset": "stix",
        "font.size": size,
        "axes.labelsize": size,
        "axes.titlesize": size,
        "legend.fontsize": size - 1,
        "xtick.labelsize": size - 1,
        "ytick.labelsize": size - 1,
        "axes.linewidth": 0.6,
        "lines.linewidth": 1.1,
        "lines.markersize": 3.0,
        "xtick.direction": "in",
        "ytick.direction": "in",
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "xtick.minor.width": 0.4,
        "ytick.minor.width": 0.4,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "legend.frameon": False,
        "legend.handlelength": 2.2,
        "figure.dpi": 100,
        "savefig.dpi": 300,
        "pdf.fonttype": 42,
        "ps.fonttype": 42,
    }
    with matplotlib.rc_context(settings):  # type: ignore[arg-type]
        yield


def figure(width: str | float, height: float, rows: int = 1, columns: int = 1, **options: Any):
    """A figure and its Axes (rows, columns), at the printed size.

    Args:
        width: a name of `WIDTHS`, or inches.
        height: in inches.
        rows, columns: of the grid of Axes.
        options: for `Figure.subplots`, for example sharex=True.

    Raises:
        Refused: if the width is no name of `WIDTHS`.
    """
    if isinstance(width, str) and width not in WIDTHS:
        raise Refused(f"got width={width!r}; allowed: inches, or one of {', '.join(WIDTHS)}")
    inches = WIDTHS[width] if isinstance(width, str) else width
    canvas = Figure(figsize=(inches, height), layout="constrained")
    return canvas, canvas.subplots(rows, columns, squeeze=False, **options)


def colour(index: int) -> str:
    """The palette's colour of a series."""
    return PALETTE[index % len(PALETTE)]


def curves(ax: Axes, x, ys, label: str | None = None, index: int = 0, **options: Any):
    """Every run of one series as a line (x, ys[r]); one entry in the legend for all of them.

    Args:
        ax: where to draw.
        x: (steps,), or (runs, steps) if the runs were recorded at different steps.
        ys: (runs, steps) or (steps,); NaN leaves a gap.
        label: of the series.
        index: of the series, chooses colour and line style.
        options: for `Axes.plot`.

    Returns:
        The lines, one a run.
    """
    ys = np.atleast_2d(ys)
    xs = np.broadcast_to(x, ys.shape)
    look: Look = {"color": colour(index), "linestyle": LINES[index % len(LINES)]}
    if len(ys) > 1:
        look |= {"linewidth": 0.8, "alpha": 0.8}
    labels = [label] + [None] * (len(ys) - 1)
    return [
        ax.plot(x, y, label=name, **(look | options))[0]
        for x, y, name in zip(xs, ys, labels, strict=True)
    ]


def band(ax: Axes, x, y, error, label: str | None = None, index: int = 0):
    """A measured curve and the band y ± error around it. Returns the line."""
    ax.fill_between(x, y - error, y + error, color=colour(index), alpha=0.3, linewidth=0)
    return ax.plot(x, y, label=label, color=colour(index))[0]


def points(
    ax: Axes, x, y, converged=None, label: str | None = None, index: int = 0, **options: Any
):
    """Measured points of one series; those that did not converge are drawn hollow, not dropped.

    Args:
        ax: where to draw.
        x, y: (points,).
        converged: (points,) of bool; None means all.
        label, index: name of the series, and its colour and marker.
        options: for `Axes.plot`.

    Returns:
        (filled, hollow) lines.
    """
    x, y = np.broadcast_arrays(x, y)
    converged = np.broadcast_to(True if converged is None else converged, x.shape)
    look: Look = {
        "color": colour(index),
        "marker": MARKERS[index % len(MARKERS)],
        "linestyle": "none",
    }
    look |= {"markeredgewidth": 0.6, **options}
    filled = ax.plot(x[converged], y[converged], label=label, **look)[0]
    hollow = ax.plot(x[~converged], y[~converged], **(look | {"markerfacecolor": "none"}))[0]
    return filled, hollow


def prediction(ax: Axes, x, y, label: str | None = None, **options: Any):
    """A predicted curve: dashed, black, above the measurements. Returns the line."""
    look: Look = {"color": "black", "linestyle": DASHED, "linewidth": 0.9, "zorder": 5}
    return ax.plot(x, y, label=label, **(look | options))[0]


def level(ax: Axes, y: float, label: str | None = None, **options: Any):
    """A predicted constant: dashed, black, across the Axes. Returns the line."""
    look: Look = {"color": "black", "linestyle": DASHED, "linewidth": 0.9, "zorder": 5}
    return ax.axhline(y, label=label, **(look | options))


def tolerance(ax: Axes, y: float, label: str | None = None, **options: Any):
    """What counts as agreement: a thin grey line across the Axes. Returns the line."""
    look: Look = {"color": GREY, "linestyle": "-", "linewidth": 0.7, "zorder": 1}
    return ax.axhline(y, label=label, **(look | options))


def letters(axes: Iterable[Axes], start: str = "a") -> None:
    """Write (a), (b), … above the upper left corner of the Axes."""
    for offset, ax in enumerate(axes):
        ax.set_title(f"({chr(ord(start) + offset)})", loc="left", pad=4)


def project(points, azimuth: float = 0.0, elevation: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The picture plane of points in the plane or in space, seen from far away.

    Args:
        points: (m, 2), returned as it is with depth 0, or (m, 3).
        azimuth, elevation: direction of the viewer in radians.

    Returns:
        (xy (m, 2), depth (m,)); a larger depth is nearer to the viewer.
    """
    points = np.asarray(points)
    if points.shape[1] == 2:
        return points, np.zeros(len(points))
    right = (-np.sin(azimuth), np.cos(azimuth), 0.0)
    towards = np.array([np.cos(azimuth), np.sin(azimuth), 0.0]) * np.cos(elevation)
    towards += np.array([0.0, 0.0, np.sin(elevation)])
    up = np.cross(towards, right)
    return points @ np.stack([right, up], axis=1), points @ towards


class Scene(NamedTuple):
    """One moment of a collapse, in the plane or in space (dim = 2 or 3).

    features (N, dim), labels (N,), means (K, dim): class means, rows (K, dim): classifier rows in
    the units of features, vertices (K, dim): the predicted simplex.
    """

    features: np.ndarray
    labels: np.ndarray
    means: np.ndarray
    rows: np.ndarray
    vertices: np.ndarray


def collapse(ax: Axes, scene: Scene, azimuth: float = 0.0, elevation: float = 0.35) -> None:
    """Features as dots, class means as rings, classifier rows as arrows, the simplex as lines.

    Nearer things are drawn larger and later. Equal scales; the Axes' frame is removed.
    """
    (vertices, at), (features, near) = (
        project(x, azimuth, elevation) for x in (scene.vertices, scene.features)
    )
    means, rows = (project(x, azimuth, elevation) for x in (scene.means, scene.rows))
    span = np.max(np.linalg.norm(scene.vertices, axis=1))
    K = len(vertices)
    edges = [(vertices[j], vertices[k]) for j in range(K) for k in range(j)]
    spokes = [((0.0, 0.0), vertex) for vertex in vertices]
    ax.add_collection(LineCollection(edges, colors="black", linewidths=0.7, linestyles=DASHED))
    ax.add_collection(LineCollection(spokes, colors="black", linewidths=0.4, alpha=0.35))
    for k in np.argsort(at):
        mine, hue = scene.labels == k, colour(int(k))
        size = 10 * (1 + 0.5 * near[mine] / span)
        dots: Look = {"s": size, "color": hue, "alpha": 0.55, "linewidths": 0, "zorder": 3}
        ax.scatter(features[mine, 0], features[mine, 1], clip_on=False, **dots)
        arrow: Look = {"arrowstyle": "-|>,head_width=0.28,head_length=0.5", "mutation_scale": 8}
        arrow |= {"color": hue, "linewidth": 1.6, "zorder": 4 + 0.1 * at[k] / span}
        ax.add_patch(FancyArrowPatch((0, 0), rows[0][k], shrinkA=0, shrinkB=0, **arrow))
        ring: Look = {"mfc": "white", "mec": hue, "mew": 1.3, "ms": 6 + 1.5 * means[1][k] / span}
        ax.plot(*means[0][k], "o", zorder=5 + 0.1 * means[1][k] / span, **ring)
    ax.set_aspect("equal")
    ax.set_axis_off()


def collapse_legend(canvas: Figure, **options: Any) -> None:
    """The key to `collapse`, as a legend of the figure."""
    dark = "#444444"
    handles = [
        Line2D([], [], color=dark, marker="o", ls="none", ms=3, alpha=0.6, label="features"),
        Line2D([], [], mec=dark, mfc="white", marker="o", ls="none", ms=5.5, label="class means"),
        Line2D([], [], color=dark, marker=">", lw=1.6, markevery=[1], label="classifier rows"),
        Line2D([], [], color="black", ls=DASHED, lw=0.7, label="predicted simplex"),
    ]
    canvas.legend(handles=handles, **options)


def save(canvas: Figure, stem: Path, about: Mapping[str, str] | None = None) -> list[Path]:
    """Write stem.pdf and stem.png without dates: equal figures give equal bytes.

    Args:
        canvas: the figure.
        stem: path without suffix.
        about: metadata of both files: Title, Author, Subject or Keywords.

    Raises:
        RecordError: the disk refuses. Former files of these names are replaced.
    """
    written = []
    for kind, dated in (("pdf", "CreationDate"), ("png", "Software")):
        buffer = io.BytesIO()
        canvas.savefig(buffer, format=kind, metadata={**(about or {}), dated: None})
        written.append(_written(stem, kind, buffer))
    return written


def _written(stem: Path, kind: str, buffer: io.BytesIO) -> Path:
    """The file of a figure, whole or absent."""
    path = stem.with_name(f"{stem.name}.{kind}")
    storage.write(path.absolute().parent, path.name, buffer.getvalue())
    return path


class Animation(NamedTuple):
    """Frames drawn one by one, and how long each of them is shown, in milliseconds."""

    frames: Iterable[Figure]
    durations: Sequence[int]


def save_animation(
    animation: Animation,
    stem: Path,
    about: Mapping[str, str] | None = None,
    dpi: int = 110,
    colours: int = 128,
) -> list[Path]:
    """Write stem.gif, which loops for ever; a long last duration makes a pause.

    Args:
        animation: frames and durations.
        stem: path without suffix.
        about: metadata, kept as the comment of the file.
        dpi, colours: resolution, and length of the palette.
    """
    images = []
    for canvas in animation.frames:
        buffer = io.BytesIO()
        canvas.savefig(buffer, format="png", dpi=dpi)
        images.append(Image.open(buffer).convert("RGB"))
    # One palette for all frames keeps colours from flickering; first and last have them all.
    wide, high = images[0].size
    sample = Image.new("RGB", (2 * wide, high))
    sample.paste(images[0], (0, 0))
    sample.paste(images[-1], (wide, 0))
    palette = sample.quantize(colours, kmeans=1)
    # Pillow maps colours coarsely, white to a near white; so nothing near white is left but white.
    entries = np.array(palette.getpalette()).reshape(-1, 3)
    entries[entries.min(axis=1) > 247] = 255
    palette.putpalette(entries.ravel().tolist())
    images = [x.quantize(palette=palette, dither=Image.Dither.NONE) for x in images]
    durations = list(animation.durations)
    comment = "\n".join(f"{key}: {text}" for key, text in (about or {}).items()).encode()
    buffer = io.BytesIO()
    images[0].save(
        buffer, format="gif", save_all=True, append_images=images[1:], duration=durations, loop=0,
        comment=comment,
    )  # fmt: skip
    return [_written(stem, "gif", buffer)]
