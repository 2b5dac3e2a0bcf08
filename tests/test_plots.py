"""Plots draw the arrays they are given, and write the same bytes for the same figure."""

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch
from PIL import Image

from ufm import plots


@pytest.fixture
def ax():
    return Figure().add_subplot()


def scene(dim: int) -> plots.Scene:
    rng = np.random.default_rng(dim)
    K, n = dim + 1, 3
    points = [rng.normal(size=(size, dim)) for size in (K * n, K, K, K)]
    return plots.Scene(points[0], np.repeat(np.arange(K), n), *points[1:])


def test_style_embeds_true_type_fonts_and_is_undone_afterwards():
    before = dict(matplotlib.rcParams)
    with plots.style(size=9):
        assert matplotlib.rcParams["pdf.fonttype"] == 42
        assert matplotlib.rcParams["font.size"] == 9
        assert not matplotlib.rcParams["text.usetex"]
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(("width", "inches"), [("icml", 3.25), ("neurips", 5.5), (4.2, 4.2)])
def test_figure_has_the_printed_width_and_a_grid_of_axes(width, inches):
    canvas, axes = plots.figure(width, 2, 2, 3)
    assert canvas.get_size_inches() == pytest.approx((inches, 2))
    assert axes.shape == (2, 3)


def test_an_unknown_width_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match=r"got width='journal'; allowed: .*icml"):
        plots.figure("journal", 2)


def test_neighbouring_series_differ_in_colour_line_and_marker():
    for looks in (plots.PALETTE, plots.LINES, plots.MARKERS):
        assert len(set(looks)) == len(looks)
    assert "#000000" not in [to_hex(x) for x in plots.PALETTE]


def test_the_palette_stays_apart_for_the_three_colour_blindnesses():
    # Machado, Oliveira and Fernandes 2009, full severity, in linear RGB.
    blindness = {
        "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216],
                   [-0.003882, -0.048116, 1.051998]],
        "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413],
                   [-0.011820, 0.042940, 0.968881]],
        "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602],
                   [0.004733, 0.691367, 0.303900]],
    }  # fmt: skip
    linear = np.array([to_rgb(x) for x in plots.PALETTE[:4]]) ** 2.2
    for matrix in blindness.values():
        seen = np.clip(linear @ np.transpose(matrix), 0, 1) ** (1 / 2.2)
        distances = np.linalg.norm(seen[:, None] - seen[None], axis=2)
        # A just noticeable difference is about 0.02 in these units.
        assert distances[np.triu_indices(4, 1)].min() > 0.1


def test_curves_draw_every_run_and_name_the_series_once(ax):
    x, ys = np.arange(4), np.arange(12.0).reshape(3, 4)
    lines = plots.curves(ax, x, ys, "runs", 1)
    for line, y in zip(lines, ys, strict=True):
        np.testing.assert_array_equal(line.get_xydata(), np.column_stack([x, y]))
        assert line.get_color() == plots.colour(1)
    assert ax.get_legend_handles_labels()[1] == ["runs"]


def test_curves_take_runs_recorded_at_different_steps(ax):
    xs = np.array([[0, 1, 2], [0, 10, 20]])
    lines = plots.curves(ax, xs, xs**2)
    for line, x in zip(lines, xs, strict=True):
        np.testing.assert_array_equal(line.get_xdata(), x)


def test_points_that_did_not_converge_are_drawn_hollow_and_none_is_dropped(ax):
    x, y, converged = np.arange(5), np.arange(5.0) ** 2, np.array([1, 0, 1, 1, 0], bool)
    filled, hollow = plots.points(ax, x, y, converged, "measured")
    np.testing.assert_array_equal(filled.get_xydata(), np.column_stack([x, y])[converged])
    np.testing.assert_array_equal(hollow.get_xydata(), np.column_stack([x, y])[~converged])
    assert hollow.get_markerfacecolor() == "none" != filled.get_markerfacecolor()
    assert ax.get_legend_handles_labels()[1] == ["measured"]


def test_predictions_are_black_and_dashed_where_they_were_predicted(ax):
    curve = plots.prediction(ax, [1, 2], [3, 4], "theory")
    flat = plots.level(ax, 0.5)
    np.testing.assert_array_equal(curve.get_xydata(), [[1, 3], [2, 4]])
    assert set(flat.get_ydata()) == {0.5}
    for line in (curve, flat):
        assert to_hex(line.get_color()) == "#000000"
        assert line.is_dashed()


def test_letters_count_the_axes():
    _, axes = plots.figure("icml", 2, 2, 2)
    plots.letters(axes.flat)
    assert [ax.get_title(loc="left") for ax in axes.flat] == ["(a)", "(b)", "(c)", "(d)"]


def test_projection_splits_a_point_into_picture_and_depth_without_loss():
    points = np.random.default_rng(0).normal(size=(7, 3))
    xy, depth = plots.project(points, azimuth=0.7, elevation=-0.3)
    np.testing.assert_allclose(np.sum(xy**2, 1) + depth**2, np.sum(points**2, 1), rtol=1e-13)


def test_projection_looks_from_where_it_is_told_with_z_upwards():
    xy, depth = plots.project(np.eye(3), azimuth=0.0, elevation=0.0)
    np.testing.assert_allclose(xy, [[0, 0], [1, 0], [0, 1]], atol=1e-15)
    np.testing.assert_allclose(depth, [1, 0, 0], atol=1e-15)


def test_points_in_the_plane_are_not_moved():
    points = np.random.default_rng(0).normal(size=(4, 2))
    xy, depth = plots.project(points, azimuth=1.0)
    np.testing.assert_array_equal(xy, points)
    assert not depth.any()


@pytest.mark.parametrize("dim", [2, 3])
def test_collapse_draws_every_feature_mean_row_and_edge_in_its_place(ax, dim):
    seen, view = scene(dim), {"azimuth": 0.4, "elevation": 0.2}
    plots.collapse(ax, seen, **view)
    xy = {name: plots.project(getattr(seen, name), **view)[0] for name in seen._fields if
          name != "labels"}  # fmt: skip
    edges, _ = [x for x in ax.collections if isinstance(x, LineCollection)]
    K = dim + 1
    assert len(edges.get_segments()) == K * (K - 1) // 2
    corners = np.unique(np.concatenate(edges.get_segments()).round(12), axis=0)
    np.testing.assert_allclose(corners, np.unique(xy["vertices"].round(12), axis=0))
    dots = {to_hex(x.get_facecolor()[0]): x.get_offsets() for x in ax.collections[2:]}
    arrows = [x for x in ax.patches if isinstance(x, FancyArrowPatch)]
    tips = {to_hex(x.get_edgecolor()): x._posA_posB[1] for x in arrows}
    rings = {to_hex(x.get_markeredgecolor()): x.get_xydata()[0] for x in ax.lines}
    for k in range(K):
        hue = to_hex(plots.colour(k))
        np.testing.assert_array_equal(dots[hue], xy["features"][seen.labels == k])
        np.testing.assert_array_equal(tips[hue], xy["rows"][k])
        np.testing.assert_array_equal(rings[hue], xy["means"][k])


def test_nearer_class_means_are_drawn_later(ax):
    seen = scene(3)
    plots.collapse(ax, seen, azimuth=0.3)
    _, depth = plots.project(seen.means, 0.3, 0.35)
    hues = [to_hex(plots.colour(k)) for k in np.argsort(depth)]
    rings = sorted(ax.lines, key=lambda x: x.get_zorder())
    assert [to_hex(x.get_markeredgecolor()) for x in rings] == hues


def test_equal_figures_are_saved_as_equal_bytes_without_dates(tmp_path):
    written = []
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        with plots.style():
            canvas, axes = plots.figure("icml", 2)
            plots.curves(axes[0, 0], np.arange(3), np.arange(3.0), "$x^2$")
            written.append(plots.save(canvas, tmp_path / folder / "c01.small"))
    assert [path.name for path in written[0]] == ["c01.small.pdf", "c01.small.png"]
    for first, second in zip(*written, strict=True):
        assert first.read_bytes() == second.read_bytes()
    assert b"CreationDate" not in written[0][0].read_bytes()


def test_an_animation_loops_for_ever_and_pauses_at_its_end(tmp_path):
    def frames():
        for share in (0.1, 0.5, 0.9):
            canvas = Figure(figsize=(1, 1))
            canvas.add_axes((0, 0, share, 1)).set(xticks=[], yticks=[])
            yield canvas

    (path,) = plots.save_animation(
        plots.Animation(frames(), [60, 60, 3000]), tmp_path / "c03", dpi=50
    )
    with Image.open(path) as image:
        assert image.size == (50, 50)
        assert (image.n_frames, image.info["loop"]) == (3, 0)
        durations = []
        for index in range(3):
            image.seek(index)
            durations.append(image.info["duration"])
            assert image.convert("RGB").getpixel((48, 25)) == (255, 255, 255)
    assert durations == [60, 60, 3000]


def test_a_band_reaches_the_error_to_both_sides_of_its_curve():
    ax = plots.figure("icml", 2)[1][0, 0]
    x, y, error = np.arange(3.0), np.array([1.0, 2.0, 4.0]), np.array([0.5, 0.25, 1.0])
    line = plots.band(ax, x, y, error, "measured")
    np.testing.assert_array_equal(line.get_ydata(), y)
    corners = ax.collections[0].get_paths()[0].vertices
    for at, low, high in zip(x, y - error, y + error, strict=True):
        assert {low, high} <= set(corners[corners[:, 0] == at, 1])
