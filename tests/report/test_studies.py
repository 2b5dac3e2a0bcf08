"""A sweep as a figure: every cell once, in the panel, the colour and the style of its settings."""

import matplotlib
import numpy as np
import pytest

from ufm import cli, plots
from ufm.check import Refused
from ufm.report.studies import study
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import Grid, Plan

PLAN = Plan(
    Grid(K=3, d=[4, 5], n=5, lam_W=[5e-3, 1e-2], optimizer="gd", learning_rate=[0.5, "auto"],
         seed=[0, 1]),
    steps=400, record_every=50, gap_tol=1e-2,
)  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("studies") / "run"
    sweeps.sweep(PLAN, out, history=True)
    return out


@pytest.fixture(scope="module")
def table(folder):
    return sweeps.load(folder)[0]


def test_every_cell_is_a_curve_of_its_history(table):
    canvas = study(table, "step", "gap", panel="d", colour="lam_W", style="learning_rate")
    assert [ax.get_title(loc="left") for ax in canvas.axes] == ["$d$ = 4", "$d$ = 5"]
    assert (canvas.axes[-1].get_xlabel(), canvas.axes[0].get_ylabel()) == ("step", "gap, nats")
    rates = ["0.5", "auto"]
    for ax, d in zip(canvas.axes, (4, 5), strict=True):
        cells = np.nonzero(table["d"] == d)[0]
        assert len(ax.lines) == len(cells) == 8
        for line, cell in zip(ax.lines, cells, strict=True):
            own = table["history/cell"] == cell
            np.testing.assert_array_equal(line.get_ydata(), table["history/gap"][own])
            np.testing.assert_array_equal(line.get_xdata(), table["history/step"][own])
            assert line.get_color() == plots.colour([5e-3, 1e-2].index(table["lam_W"][cell]))
            style = plots.LINES[rates.index("auto" if table["auto"][cell] else "0.5")]
            expected = matplotlib.lines.Line2D([], [], linestyle=style)
            assert line._unscaled_dash_pattern == expected._unscaled_dash_pattern
    (legend,) = canvas.legends
    told = [text.get_text() for text in legend.get_texts()]
    assert told == [r"$\lambda_W$ = 0.005", r"$\lambda_W$ = 0.01", "0.5", "auto"]


def test_ends_are_points_and_those_that_did_not_arrive_are_hollow(table):
    canvas = study(table, "lam_W", "gap", colour="learning_rate")
    (ax,) = canvas.axes
    filled = [line for line in ax.lines if line.get_markerfacecolor() != "none"]
    points = np.concatenate([line.get_ydata() for line in filled])
    arrived = table["status"] == "certified"
    assert 0 < arrived.sum() < 16
    assert sorted(points) == sorted(table["gap"][arrived])
    hollow = np.concatenate([line.get_ydata() for line in ax.lines if line not in filled])
    assert sorted(hollow) == sorted(table["gap"][~arrived])


def test_the_squared_error_is_no_log_likelihood(table):
    ends = {name: x for name, x in table.items() if not name.startswith("history/")}
    loss = np.array(["CrossEntropy"] * 15 + ["SquaredError(own=2.0)"])
    assert study(ends | {"loss": loss}, "lam_W", "gap").axes[0].get_ylabel() == "gap"


def test_an_axis_is_logarithmic_over_two_decades_of_positive_values(table):
    ends = {name: x for name, x in table.items() if not name.startswith("history/")}
    for y, scale in (
        (np.geomspace(1e-9, 1.0, 16), "log"),
        (np.r_[-1e-16, np.geomspace(1e-9, 1.0, 15)], "log"),  # a gap within its rounding
        (np.r_[-0.1, np.geomspace(1e-9, 1.0, 15)], "linear"),
        (np.linspace(1.0, 3.0, 16), "linear"),
    ):
        (ax,) = study(ends | {"gap": y}, "lam_W", "gap").axes
        assert (ax.get_xscale(), ax.get_yscale()) == ("linear", scale)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": 5}, "table=5"),
        ({"x": "depth"}, "x='depth'; allowed: cell"),
        ({"x": "value", "y": "step"}, "one of the history and one of the ends"),
        ({"panel": "step"}, "panel='step'"),
        ({"colour": "value"}, "16 values; allowed: at most 7"),
        ({"x": "status", "y": "steps"}, "'status' to draw, which holds text"),
        ({"width": "letter"}, "width='letter'"),
    ],
)
def test_what_cannot_be_drawn_is_refused(table, change, message):
    with pytest.raises(Refused, match=message):
        study(**{"table": table, "x": "step", "y": "loss"} | change)


def test_a_sweep_without_histories_says_how_to_get_them(table):
    ends = {name: x for name, x in table.items() if not name.startswith("history/")}
    with pytest.raises(Refused, match=r"'step'.*--history"):
        study(ends, "step", "gap")


def test_the_command_draws_beside_the_folder_and_replaces_only_its_own(folder, capsys):
    command = ["plot", str(folder), "-x", "step", "-y", "gap", "--panel", "d", "--colour", "lam_W"]
    first = folder.with_name("run_gap.pdf")
    assert cli.main(command) == 0
    assert capsys.readouterr().out.splitlines()[0] == f"drew {first}"
    drawn = first.read_bytes()
    assert cli.main(command) == 0
    assert first.read_bytes() == drawn
    first.write_bytes(b"mine")
    assert cli.main(command) == 2
    assert first.read_bytes() == b"mine"
    assert cli.main([*command, "--width", "3.0", "--figure", str(folder.with_name("own"))]) == 0
    assert folder.with_name("own.png").exists()
