"""A finished run goes on with more steps, a finished sweep with more cells or more steps."""

import json

import numpy as np
import pytest

import ufm
from ufm import cli
from ufm.runs import record
from ufm.sweeps import batches
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import Grid, Plan

SMALL = {"K": 3, "d": 4, "n": 5, "lam": 5e-3, "optimizer": "gd", "learning_rate": [0.5, 1e4]}
FIRST = Plan(Grid(**SMALL, seed=[0, 2]), steps=60, record_every=20)


def same(table, other, exact=False):
    assert table.keys() == other.keys()
    for name, x in table.items():
        if x.dtype.kind == "f" and not exact:
            # Batches of other sizes, some dozen steps.
            np.testing.assert_allclose(x, other[name], rtol=1e-9, atol=1e-13, err_msg=name)
        else:
            np.testing.assert_array_equal(x, other[name], err_msg=name)


@pytest.fixture
def counted(monkeypatch):
    """The cells that are descended on, by their number in a call."""
    real, calls = batches.rows, []

    def rows(*args):
        calls.append(len(args[1]))
        return real(*args)

    monkeypatch.setattr(sweeps, "_calls", lambda: 1)
    monkeypatch.setattr(batches, "rows", rows)
    return calls


@pytest.mark.parametrize("history", [False, True])
def test_a_sweep_of_more_cells_runs_only_those_that_it_lacks(tmp_path, counted, history):
    more = Plan(Grid(**SMALL | {"d": [3, 4]}, seed=[0, 1, 2]), steps=60, record_every=20)
    first = sweeps.sweep(FIRST, tmp_path / "run", history=history)
    counted.clear()
    grown = sweeps.sweep(more, tmp_path / "run", history=history)
    assert sum(counted) == 12 - 4
    same(grown, sweeps.sweep(more, history=history))
    # Those that were there are kept to the bit.
    kept = [i for i, cell in enumerate(more.cells()) if cell in FIRST.cells()]
    np.testing.assert_array_equal(grown["value"][kept], first["value"])
    counted.clear()
    same(sweeps.sweep(more, tmp_path / "run", history=history), grown, exact=True)
    assert not counted
    with pytest.raises(record.RecordError, match="grids"):
        sweeps.sweep(FIRST, tmp_path / "run", history=history)  # fewer would lose cells


def test_a_sweep_of_more_steps_runs_those_again_that_ended_at_the_limit(tmp_path, counted):
    first = sweeps.sweep(FIRST, tmp_path / "run", history=True)
    assert sorted(first["status"]) == ["diverged"] * 2 + ["step_limit"] * 2
    longer = Plan(Grid(**SMALL, seed=[0, 2]), steps=140, record_every=20)
    counted.clear()
    grown = sweeps.sweep(longer, tmp_path / "run", history=True)
    assert sum(counted) == 2
    same(grown, sweeps.sweep(longer, history=True))
    for other in (
        FIRST,  # fewer steps
        Plan(Grid(**SMALL, seed=[0, 2]), steps=200, record_every=10),
        Plan(Grid(**SMALL, seed=[0, 2]), steps=200, record_every=20, record=["index"]),
    ):
        with pytest.raises(record.RecordError, match="another run"):
            sweeps.sweep(other, tmp_path / "run", history=True)
    same(record.load_run(tmp_path / "run").arrays, grown, exact=True)


def test_a_sweep_that_grows_and_is_cut_off_loses_nothing(tmp_path, counted, monkeypatch):
    sweeps.sweep(FIRST, tmp_path / "run")
    more = Plan(Grid(**SMALL, seed=[0, 1, 2, 3]), steps=60, record_every=20)

    def cut(*_):
        raise KeyboardInterrupt

    real = batches.rows
    monkeypatch.setattr(batches, "rows", cut)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(more, tmp_path / "run")
    monkeypatch.setattr(batches, "rows", real)
    kept, manifest = sweeps.load(tmp_path / "run")
    assert manifest["config"] == json.loads(json.dumps(more.plain()))
    assert kept["cell"].tolist() == [
        i for i, cell in enumerate(more.cells()) if cell.seed in (0, 2)
    ]
    counted.clear()
    same(sweeps.sweep(more, tmp_path / "run"), sweeps.sweep(more))
    assert counted[0] == 4


def test_options_come_in_with_a_later_grid(tmp_path):
    adam = Grid(K=3, d=4, n=5, optimizer="adamw", learning_rate=0.1, options={"b2": 0.9})
    grown = Plan((adam, *FIRST.grids), steps=60, record_every=20)
    sweeps.sweep(FIRST, tmp_path / "run")
    table = sweeps.sweep(grown, tmp_path / "run")
    same(table, sweeps.sweep(grown))
    assert table["options"].tolist() == ["b2=0.9", "", "", "", ""]


@pytest.mark.parametrize(
    "plan",
    [
        Plan(Grid(K=3, n=[[3, 2, 1]], lam=1e-2, loss=["Focal(gamma=2.0)", "CrossEntropy"])),
        Plan(Grid(K=3, n=[[50], [10], [5]], lam_W=1e-2, weights=[[1, 1, 2], [1, 2, 2]])),
        Plan(Grid(K=3, n=[5, 7], bias=[True, False], optimizer="adamw", options={"b2": [0.9, 0.99]},
                  learning_rate=0.1)),
        Plan(Grid(K=3, n=[[2, 2]], targets=np.eye(3)[:, :2], loss="SquaredError"), steps=7),
    ],
)  # fmt: skip
def test_a_plan_is_read_back_from_what_its_folder_holds(plan):
    config = json.loads(json.dumps(plan.plain()))
    assert Plan.from_plain(config).cells() == plan.cells()
    assert Plan.from_plain(config).plain() == json.loads(json.dumps(plan.plain())) | {
        "grids": Plan.from_plain(config).plain()["grids"]
    }
    with pytest.raises(ufm.Refused, match="no plan"):
        Plan.from_plain({"grids": 5})


COMMAND = "descend --K 3 --d 4 --n 5 --optimizer heavy_ball --learning-rate 0.3 --record-every 20"


def descended(capsys, folder, *more):
    assert cli.main([*COMMAND.split(), "--out", str(folder), "--json", *more]) == 0
    captured = capsys.readouterr()
    return json.loads(captured.out), record.load_run(folder).arrays, captured.err


@pytest.mark.parametrize("optimizer", ["heavy_ball", "lbfgs"])
def test_a_run_of_more_steps_goes_on_to_the_same_bits(tmp_path, capsys, optimizer):
    options = ("--gap-tol", "None", "--optimizer", optimizer)
    options += ("--learning-rate", "None") if optimizer == "lbfgs" else ()
    whole = descended(capsys, tmp_path / "whole", "--steps", "80", *options)
    descended(capsys, tmp_path / "run", "--steps", "40", *options)
    grown = descended(capsys, tmp_path / "run", "--steps", "80", *options)
    assert grown[0] == whole[0]
    same(grown[1], whole[1], exact=True)
    assert len(record.load_run(tmp_path / "run").manifest["resumed"]) == 1
    for other in (("--steps", "60"), ("--steps", "90", "--record-every", "10")):
        assert cli.main([*COMMAND.split(), "--out", str(tmp_path / "run"), *options, *other]) == 2
        assert "another run" in capsys.readouterr().err


def test_a_run_that_has_ended_is_finished_for_any_number_of_steps(tmp_path, capsys):
    options = ("--gap-tol", "1e-2", "--steps")
    first, arrays, _ = descended(capsys, tmp_path / "run", *options, "2000")
    assert first["status"] == "certified"
    assert not any(name.startswith("state/") for name in arrays)
    again, _, told = descended(capsys, tmp_path / "run", *options, "9000")
    assert again == first
    assert "already holds this finished run" in told
