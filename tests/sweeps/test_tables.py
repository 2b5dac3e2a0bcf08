"""Tables in short: groups, what all rows share, LaTeX."""

import json

import numpy as np
import pytest

import ufm
from ufm import cli
from ufm.check import Refused
from ufm.report import latex
from ufm.sweeps import run as sweeps
from ufm.sweeps import tables
from ufm.sweeps.grid import Grid, Plan

PLAN = Plan(
    (
        Grid(K=3, d=4, n=5, lam=5e-3, optimizer="gd", learning_rate=["safe", 1e4], seed=[0, 1, 2]),
        Grid(K=3, d=4, n=5, lam=5e-3, optimizer="gd", learning_rate=0.5, seed=[0, 1]),
    ),
    steps=60,
    record_every=20,
    record=["index"],
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("tables") / "run"
    sweeps.sweep(PLAN, out)
    return out


def test_a_group_is_the_mean_or_the_median_of_its_rows(folder):
    table, _ = sweeps.load(folder)
    for median, middle in ((False, np.mean), (True, np.median)):
        short = ufm.sweeps.grouped(table, "learning_rate", median=median)
        # Step sizes from the bound differ with the start, and are one group.
        assert short["learning_rate"].tolist() == ["safe", "10000", "0.5"]
        assert short["rows"].tolist() == [3, 3, 2]
        assert short["status"].tolist() == ["step_limit", "diverged", "step_limit"]
        assert short["K"].tolist() == [3, 3, 3]
        for name in ("gap", "nc1", "index"):
            parts = [table[name][rows] for rows in (slice(0, 3), slice(3, 6), slice(6, 8))]
            np.testing.assert_allclose(short[name], [middle(part) for part in parts], rtol=1e-15)
    whole = ufm.sweeps.grouped(table, ("K", "d"))
    assert whole["rows"].tolist() == [8]
    assert whole["status"].tolist() == ["3 diverged, 5 step_limit"]
    for odd in ("depth", (), [["K"]], None):
        with pytest.raises(Refused, match="by="):
            ufm.sweeps.grouped(table, odd)


def test_groups_can_be_grouped_again(folder):
    table, _ = sweeps.load(folder)
    short = ufm.sweeps.grouped(ufm.sweeps.grouped(table, ("learning_rate", "status")), "status")
    assert short["status"].tolist() == ["step_limit", "diverged"]
    assert short["rows"].tolist() == [2, 1]


def test_the_title_says_how_many_of_how_many_and_what_they_share(folder, capsys):
    def printed(*options):
        assert cli.main(["table", str(folder), *options]) == 0
        return capsys.readouterr().out.splitlines()

    title, heads, *rows = printed("--sort", "steps", "--limit", "3")
    assert title.startswith("3 of 8 rows; the same in all: K=3, d=4, n=5, lam_W=0.005")
    assert "optimizer=gd, learning_rate=10000" in title
    assert heads.split() == ["seed", "status", "steps", "value", "gap", "nc1", "index"]
    assert len(rows) == 3
    title, heads, *rows = printed("--group-by", "learning_rate", "--median")
    assert title.startswith("3 groups; the same in all: K=3")
    assert heads.split()[:2] == ["learning_rate", "rows"]
    assert [row.split()[:2] for row in rows] == [["safe", "3"], ["10000", "3"], ["0.5", "2"]]
    assert printed("--group-by", "learning_rate", "--limit", "2")[0].startswith("2 of 3 groups; ")


def test_settings_that_differ_within_a_group_are_named_and_not_averaged(tmp_path, capsys):
    grid = Grid(K=3, d=[3, 4], n=[2, 5], lam=[1e-2, 1e-3], optimizer="gd", learning_rate=0.5)
    table = sweeps.sweep(Plan((grid,), steps=3), tmp_path / "run")
    short = ufm.sweeps.grouped(table, "d")
    assert {"n", "N", "lam_W", "lam_H", "lam_b"}.isdisjoint(short)
    np.testing.assert_allclose(
        short["value"], [np.mean(table["value"][table["d"] == d]) for d in (3, 4)], rtol=1e-15
    )
    assert cli.main(["table", str(tmp_path / "run"), "--group-by", "d", "--columns", "gap"]) == 0
    title, heads, *_ = capsys.readouterr().out.splitlines()
    assert "lam_W=" not in title
    assert title.endswith("; over different n, lam_W, lam_H, lam_b")
    assert heads.split() == ["d", "gap"]
    # One decay a group: then it is a setting like others.
    both = ufm.sweeps.grouped(table, ("d", "lam_W"))
    np.testing.assert_array_equal(both["lam_H"], both["lam_W"])


def test_groups_are_printed_as_latex_and_json(folder, capsys):
    options = ["table", str(folder), "--group-by", "learning_rate", "--columns", "learning_rate",
               "rows", "status", "index"]  # fmt: skip
    assert cli.main([*options, "--latex"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("% 3 groups; the same in all: K=3")
    assert lines[1:4] == [
        r"\begin{tabular}{lrlr}",
        r"\toprule",
        r"$\eta$ & rows & status & index \\",
    ]
    assert lines[5].startswith(r"safe & $3$ & step\_limit & $")
    assert lines[-1] == r"\end{tabular}"
    assert cli.main([*options, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["rows"] for row in found] == [3, 3, 2]
    assert cli.main(["table", str(folder), "--median"]) == 2
    assert cli.main(["table", str(folder), "--group-by", "depth"]) == 2
    assert "got by=" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("x", "told"),
    [
        (0.5, "$0.5$"),
        (1234.5, r"$1.23\times10^{3}$"),
        (1e-3, "$10^{-3}$"),
        (-2.5e-16, r"$-2.5\times10^{-16}$"),
        (0.0, "$0$"),
        (float("nan"), "--"),
        (float("inf"), r"$\infty$"),
        (7, "$7$"),
        (True, "True"),
        ("50% & {x}_1", r"50\% \& \{x\}\_1"),
    ],
)
def test_a_cell_of_latex_is_what_it_shows(x, told):
    assert latex.cell(x) == told


def test_settings_that_say_nothing_are_not_shown(folder):
    table, _ = sweeps.load(folder)
    same = tables.shared(table)
    assert same == {
        "K": 3, "d": 4, "n": 5, "lam_W": 5e-3, "lam_H": 5e-3, "lam_b": 5e-3, "bias": True,
        "loss": "CrossEntropy", "optimizer": "gd",
    }  # fmt: skip
    unequal = sweeps.sweep(Plan(Grid(K=3, d=4, n=[[3, 2, 1]], lam=5e-3), steps=2))
    assert tables.shared(unequal)["counts"] == "3 2 1"
