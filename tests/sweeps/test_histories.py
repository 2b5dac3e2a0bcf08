"""A sweep keeps the history of every cell, and the columns that a plan asks for."""

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiling import compilations

import ufm
from ufm import cli
from ufm.check import Refused
from ufm.runs import record
from ufm.sweeps import batches, histories, settings
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import COLUMNS, Grid, Plan

GRID = Grid(K=3, d=4, n=5, lam=5e-3, optimizer="gd", learning_rate=[0.5, 1e4], seed=[0, 1])
PLAN = Plan(
    GRID, steps=60, record_every=20, gap_tol=None,
    record={"top": lambda problem, params: problem.lam_W * jnp.max(params.W), "index": "index"},
)  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return sweeps.sweep(PLAN, history=True)


def single(cell):
    key = jax.random.split(jax.random.key(cell.seed))[0]
    return ufm.descend(
        cell.problem, ufm.init_params(key, cell.problem, PLAN.scale), cell.optimizer,
        learning_rate=cell.learning_rate, steps=PLAN.steps, record_every=PLAN.record_every,
        record=dict(PLAN.record),
    )  # fmt: skip


def test_the_history_of_a_cell_is_that_of_its_own_run(table):
    ends, rows = histories.split(table)
    assert len(ends["cell"]) == 4
    assert rows["cell"].tolist() == sorted(rows["cell"].tolist())
    for i, cell in enumerate(PLAN.cells()):
        run, found = single(cell), ufm.sweeps.history(table, i)
        assert found.keys() == run.history.keys()
        for name, x in run.history.items():
            # Two programs, some dozen steps.
            np.testing.assert_allclose(found[name], x, rtol=1e-9, atol=1e-12)
        if run.status == "step_limit":
            for name in ("top", "index"):
                np.testing.assert_allclose(table[name][i], run.history[name][-1], rtol=1e-9)
    assert "diverged" in table["status"]


def test_records_come_densely_at_first_as_those_of_single_runs():
    plan = Plan(replace(GRID, learning_rate=0.5), steps=300, gap_tol=1e-2)
    table = sweeps.sweep(plan, history=True)
    for i, cell in enumerate(plan.cells()):
        key = jax.random.split(jax.random.key(cell.seed))[0]
        params = ufm.init_params(key, cell.problem, plan.scale)
        run = ufm.descend(cell.problem, params, "gd", learning_rate=0.5, steps=300, gap_tol=1e-2)
        own = ufm.sweeps.history(table, i)
        np.testing.assert_array_equal(own["step"], run.history["step"])
        assert len(own["step"]) > 8
        assert table["status"][i] == run.status == "certified"


def test_without_history_a_row_has_the_columns_at_its_end(table, monkeypatch):
    monkeypatch.setattr(batches, "MOST", {"cpu": 2})
    plain = sweeps.sweep(PLAN)
    assert plain.keys() == histories.split(table)[0].keys()
    for name, x in plain.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(x, table[name], rtol=1e-9, atol=1e-13)
    with pytest.raises(Refused, match="without histories"):
        ufm.sweeps.history(plain, 0)


def test_batches_of_any_size_and_a_second_sweep(table, monkeypatch):
    sweeps.sweep(PLAN, history=True)
    with compilations() as found:
        again = sweeps.sweep(PLAN, history=True)
    assert not found
    monkeypatch.setattr(batches, "MOST", {"cpu": 3})
    cut = sweeps.sweep(PLAN, history=True)
    for name, x in table.items():
        np.testing.assert_array_equal(again[name], x)
        if x.dtype.kind == "f":
            np.testing.assert_allclose(cut[name], x, rtol=1e-9, atol=1e-13)


def test_no_column_may_hide_one_of_the_table(table):
    grid = Grid(K=3, d=4, n=5, optimizer="adamw", learning_rate=0.1, options={"b2": 0.9})
    more = sweeps.sweep(Plan(grid, steps=2))
    own = {name for name in (*table, *more) if not name.startswith("history/")} - {"top", "index"}
    known = {*COLUMNS, *histories.split(table)[1]}
    assert own <= known
    for name in ("f_star", "nc1", "options"):
        with pytest.raises(Refused, match=f"'{name}', which"):
            Plan(GRID, record={name: lambda _, __: 0.0})
    with pytest.raises(Refused, match="cannot trace"):
        sweeps.sweep(Plan(GRID, record={"mine": lambda _, params: float(params.b[0])}))
    assert settings.options(PLAN, PLAN.cells()) == {}


def test_a_folder_keeps_the_histories_and_the_commands_read_it(table, tmp_path, capsys):
    path, out = tmp_path / "grid.toml", tmp_path / "run"
    path.write_text(
        'K = 3\nd = 4\nn = 5\nlam = 5e-3\noptimizer = "gd"\nlearning_rate = [0.5, 1e4]\n'
        'seed = [0, 1]\nsteps = 60\nrecord_every = 20\nrecord = ["index"]\n'
    )
    assert cli.main(["sweep", str(path), "--history", "--out", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["index"] for row in rows] == table["index"].tolist()
    kept, manifest = sweeps.load(out)
    assert manifest["config"]["record"] == {"index": "index"}
    own = ufm.sweeps.history(kept, 1)
    np.testing.assert_allclose(own["loss"], ufm.sweeps.history(table, 1)["loss"], rtol=1e-9)
    assert cli.main(["table", str(out), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 4
    assert cli.main(["report", str(out), "--out", str(tmp_path / "page.html")]) == 0
    assert cli.main(["sweep", str(path), "--out", str(out)]) == 2
    assert "history" in capsys.readouterr().err


def test_a_sweep_of_histories_that_was_cut_off_goes_on(table, tmp_path, monkeypatch):
    real, calls = batches.rows, []

    def limited(*args):
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(batches, "MOST", {"cpu": 3})
    monkeypatch.setattr(sweeps, "_calls", lambda: 1)
    monkeypatch.setattr(batches, "rows", limited)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(PLAN, tmp_path / "run", history=True)
    other = Plan(GRID, steps=60, record_every=20, gap_tol=None, record=["index"])
    with pytest.raises(record.RecordError, match=r"config\.record\.top"):
        sweeps.sweep(other, tmp_path / "run", history=True)
    whole = sweeps.sweep(PLAN, tmp_path / "run", history=True)
    for name, x in table.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(whole[name], x, rtol=1e-9, atol=1e-13)
