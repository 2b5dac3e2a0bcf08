"""A sweep is its single runs; it loses no cell, doubles none, and is told what it cannot mean."""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from compiling import compilations

import ufm
from ufm import cli
from ufm.runs import record
from ufm.runtime import processes, programs
from ufm.sweeps import batches, shapes, toml
from ufm.sweeps import run as sweeps
from ufm.sweeps.grid import Grid, Plan

SMALL = {"K": 3, "d": 4, "n": 5, "lam_W": 5e-3, "lam_H": 5e-3, "lam_b": 1e-2}
PLAN = Plan(
    (
        Grid(**SMALL | {"lam_W": [5e-3, 0.02]}, optimizer="heavy_ball",
             learning_rate=["safe", 0.5]),
        Grid(**SMALL, optimizer="sgd", batch_size=5, learning_rate=0.1, seed=[0, 1]),
        # The poisoned cell: this step leaves for infinity.
        Grid(**SMALL, optimizer="heavy_ball", learning_rate=1e4),
    ),
    steps=300,
    record_every=50,
)  # fmt: skip


@pytest.fixture(scope="module")
def table():
    return sweeps.sweep(PLAN)


def single(cell, plan=PLAN):
    params_key, batch_key = jax.random.split(jax.random.key(cell.seed))
    params = ufm.init_params(params_key, cell.problem, plan.scale, jnp.dtype(plan.precision))
    return ufm.descend(
        cell.problem, params, cell.optimizer, steps=plan.steps, learning_rate=cell.learning_rate,
        batch_size=cell.batch_size, key=None if cell.batch_size is None else batch_key,
        record_every=plan.record_every, gap_tol=plan.gap_tol,
    )  # fmt: skip


def test_every_cell_is_the_run_of_its_own(table):
    for i, cell in enumerate(PLAN.cells()):
        run = single(cell)
        assert table["status"][i] == run.status
        assert table["steps"][i] == run.steps
        proof = ufm.certify(cell.problem, run.params)
        # Two programs, some hundred steps: rounding grows no faster than the steps.
        for name in ("value", "gap", "grad_norm"):
            expected = getattr(proof, name)
            np.testing.assert_allclose(table[name][i], expected, rtol=1e-9, atol=1e-13)
        for name, x in zip("WHb", run.params, strict=True):
            np.testing.assert_allclose(table[f"norm_{name}"][i], jnp.linalg.norm(x), rtol=1e-9)


def test_a_diverged_cell_is_a_row_and_leaves_the_others_alone(table):
    diverged = table["status"] == "diverged"
    assert diverged.tolist() == [False] * 6 + [True]
    assert all(np.all(np.isfinite(table[name])) for name in ("value", "gap", "grad_norm"))


def test_columns_say_what_was_run(table):
    assert table["cell"].tolist() == list(range(7))
    assert table["auto"].tolist() == [True, False, True, False, False, False, False]
    step = ufm.optimizers.safe_step(
        PLAN.cells()[0].problem,
        ufm.objective(PLAN.cells()[0].problem, ufm.init_params(
            jax.random.split(jax.random.key(0))[0], PLAN.cells()[0].problem)),
        0.9,
    )  # fmt: skip
    np.testing.assert_allclose(table["learning_rate"][0], step, rtol=1e-12)
    assert table["f_star"][0] == ufm.theory.global_value(PLAN.cells()[0].problem)
    assert np.all(table["value"] >= table["f_star"] - 1e-12)


def test_a_sweep_in_float32_is_its_single_runs_measured_in_float64():
    plan = dataclasses.replace(PLAN, gap_tol=None, precision="float32")
    table = sweeps.sweep(plan)
    for i, cell in enumerate(plan.cells()):
        run = single(cell, plan)
        assert table["status"][i] == run.status
        if run.status == "diverged":
            continue  # `descend` goes on from the last record to the last sound step
        # Two programs that round at 6e-8 a step and contract.
        point = jax.tree.map(lambda x: x.astype(float), run.params)
        assert run.params.W.dtype == np.float32
        np.testing.assert_allclose(table["value"][i], ufm.objective(cell.problem, point), rtol=1e-5)
        assert table["gap"][i] > -1e-15


def test_batches_of_any_size_give_the_same_table(table, monkeypatch):
    monkeypatch.setattr(batches, "MOST", {"cpu": 2})
    again = sweeps.sweep(PLAN)
    assert again.keys() == table.keys()
    for name, x in table.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(again[name], x, rtol=1e-9, atol=1e-13)
        else:
            assert again[name].tolist() == x.tolist()


def test_factories_of_optax_are_cells_and_all_their_numbers_one_program(tmp_path):
    axes = {"learning_rate": [0.01, 0.02], "options": {"b2": [0.9, 0.99], "nesterov": [True]}}
    plan = Plan(
        (
            Grid(**SMALL, optimizer=optax.adamw, **axes),
            Grid(**SMALL, optimizer="optax.sgd", learning_rate=0.3, momentum=0.5),
            Grid(**SMALL, optimizer="gd"),
        ),
        steps=60, record_every=20, gap_tol=None,
    )  # fmt: skip
    assert len({shapes.Shape.of(cell) for cell in plan.cells()}) == 3
    table = sweeps.sweep(plan, tmp_path / "kept")
    assert table["optimizer"].tolist() == ["adamw"] * 4 + ["optax.sgd", "gd"]
    assert table["options"][1] == "b2=0.99, nesterov=True"
    assert table["options"][4] == ""
    np.testing.assert_array_equal(table["learning_rate"][:5], [0.01, 0.01, 0.02, 0.02, 0.3])
    assert np.isnan(table["momentum"][0])
    assert table["momentum"][4] == 0.5
    again = sweeps.sweep(plan, tmp_path / "kept")
    np.testing.assert_array_equal(again["value"], table["value"])
    for i, cell in enumerate(plan.cells()[:5]):
        params = ufm.init_params(jax.random.split(jax.random.key(0))[0], cell.problem, plan.scale)
        run = ufm.descend(
            cell.problem, params, cell.optimizer, steps=60, record_every=20,
            learning_rate=cell.learning_rate, momentum=cell.momentum, **dict(cell.options),
        )  # fmt: skip
        np.testing.assert_allclose(table["value"][i], run.history["loss"][-1], rtol=1e-9)


def test_a_sweep_of_another_length_compiles_nothing():
    grid = Grid(**SMALL | {"lam_W": 5e-3}, optimizer="gd", learning_rate=0.5)
    sweeps.sweep(Plan(grid, steps=60, record_every=20))
    with compilations() as found:
        table = sweeps.sweep(Plan(grid, steps=3000, record_every=10, gap_tol=None))
    assert not found
    assert table["steps"].tolist() == [3000]


def test_a_long_table_is_written_when_a_share_of_it_is_new(tmp_path, monkeypatch):
    written = []

    def save(_, columns, state):
        written.append(len(columns["cell"]))
        assert state == {"done": written[-1], "of": 12}

    monkeypatch.setattr(batches, "MOST", {"cpu": 1})
    monkeypatch.setattr(sweeps, "_calls", lambda: 1)
    monkeypatch.setattr(sweeps, "SMALL_TABLE", 3)
    monkeypatch.setattr(sweeps, "SHARE", 2)
    monkeypatch.setattr(record, "save_checkpoint", save)
    grid = Grid(**SMALL | {"lam_W": [5e-3, 0.02]}, optimizer="gd", seed=list(range(6)))
    found = sweeps.sweep(Plan((grid,), steps=5, record_every=5), tmp_path / "out")
    assert len(found["cell"]) == 12  # the end is written anyway
    assert written == [1, 2, 3, 4, 5, 7, 11]  # every row up to 3, then (rows - 3)/2 new ones


def test_a_sweep_of_many_shapes_does_not_run_out_of_memory_maps(tmp_path, monkeypatch):
    limit = tmp_path / "max_map_count"
    monkeypatch.setattr(programs, "LIMIT", limit)

    def held():
        return programs.MAPS.read_bytes().count(b"\n")

    plan = Plan((Grid(**SMALL | {"K": [2, 3, 4], "d": [5]}, optimizer="gd"),), steps=5)
    limit.write_text("0")  # every shape makes room
    sweeps.sweep(plan)
    before = held()
    sweeps.sweep(plan)
    # Programs of three shapes would be some thousand maps more.
    assert held() < before + 500
    limit.unlink()  # a system that does not tell
    programs.make_room()


def test_a_memory_budget_is_kept_and_one_too_small_is_refused(monkeypatch):
    monkeypatch.setattr(batches, "MOST", {"cpu": 64})
    plan = Plan((Grid(**SMALL, optimizer="heavy_ball", seed=list(range(64))),), steps=1)
    sizes = []
    for budget in (2**18, 2**20, 2**30):
        size, used = batches.fitted(plan, plan.cells(), budget, 1)
        assert 0 < used <= budget
        sizes.append(size)
    assert sizes == sorted(sizes)
    assert sizes[0] < sizes[-1] == 64
    with pytest.raises(ValueError, match="MiB"):
        sweeps.sweep(plan, memory=1000)


def test_an_interrupted_sweep_goes_on_with_the_missing_cells(table, tmp_path, monkeypatch):
    real, calls = batches.rows, []

    def limited(*args):
        calls.append(len(args[1]))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(batches, "MOST", {"cpu": 4})
    monkeypatch.setattr(sweeps, "_calls", lambda: 1)
    monkeypatch.setattr(batches, "rows", limited)
    with pytest.raises(KeyboardInterrupt):
        sweeps.sweep(PLAN, tmp_path / "run")
    kept, manifest = sweeps.load(tmp_path / "run")
    assert manifest["status"] == "interrupted"
    assert len(kept["cell"]) == 4
    whole = sweeps.sweep(PLAN, tmp_path / "run")
    assert calls == [4, 1, 1, 2]  # the call that was cut off, and no finished cell again
    assert whole["cell"].tolist() == table["cell"].tolist()
    np.testing.assert_allclose(whole["value"], table["value"], rtol=1e-9)
    assert sweeps.sweep(PLAN, tmp_path / "run")["value"].tolist() == whole["value"].tolist()
    with pytest.raises(record.RecordError, match="steps"):
        sweeps.sweep(Plan(PLAN.grids, steps=299, record_every=50), tmp_path / "run")


TOML = """
K = 3
d = 4
n = 5
lam_W = [5e-3, 1e-2]
lam_H = 5e-3
steps = 400
gap_tol = 1e-6

[[grid]]
optimizer = "lbfgs"

[[grid]]
optimizer = "heavy_ball"
learning_rate = [0.5, 1.0]
"""


def test_a_file_is_the_plan_it_describes(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(TOML)
    common = {"K": 3, "d": 4, "n": 5, "lam_W": [5e-3, 1e-2], "lam_H": 5e-3}
    grids = (
        Grid(**common, optimizer="lbfgs"),
        Grid(**common, optimizer="heavy_ball", learning_rate=[0.5, 1.0]),
    )
    assert toml.read(path) == Plan(grids, steps=400, gap_tol=1e-6)
    assert len(toml.read(path).cells()) == 2 + 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("lam_W", "lamW"), r"'lamW'.*line 5.*lam_W.*Did you mean 'lam_W'"),
        (("learning_rate", "steps"), r"'steps'.*line 15"),
        (("[5e-3, 1e-2]", "[5e-3,, 1e-2]"), r"no TOML.*line 5"),
        (("[5e-3, 1e-2]", "[5e-3, -1.0]"), r"lam_W=-1.0.*in .*grid.toml"),
        (("[5e-3, 1e-2]", "[5e-3, 5e-3]"), "twice"),
        (("[5e-3, 1e-2]", "[]"), "without a value"),
        (('"lbfgs"', '"newton"'), r"optimizer='newton'.*lbfgs"),
        (('"lbfgs"', '"sgd"'), "batch_size"),
        (("K = 3", "K = 1"), "K=1"),
        (("1e-6", "-1.0"), "gap_tol=-1.0"),
        (("steps = 400", "steps = 0"), "steps=0"),
        (("steps = 400", 'precision = "half"'), "half"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path, capsys, change, message):
    path = tmp_path / "grid.toml"
    path.write_text(TOML.replace(*change, 1))
    with pytest.raises((ValueError, TypeError), match=message):
        toml.read(path).cells()
    assert cli.main(["sweep", str(path), "--out", str(tmp_path / "run")]) == 2
    assert not (tmp_path / "run").exists()
    assert capsys.readouterr().err.startswith("ufm: got")


def test_the_commands_keep_show_and_export_the_table(tmp_path, capsys):
    path, out, csv = tmp_path / "grid.toml", tmp_path / "run", tmp_path / "table.csv"
    path.write_text(TOML)
    assert cli.main(["sweep", str(path), "--out", str(out), "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["optimizer"] for row in rows] == ["lbfgs"] * 2 + ["heavy_ball"] * 4
    assert all(row["gap"] <= 1e-6 for row in rows if row["status"] == "certified")
    assert cli.main(["table", str(out), "--sort", "value", "--limit", "2", "--columns", "cell",
                     "value", "--json"]) == 0  # fmt: skip
    least = json.loads(capsys.readouterr().out)
    assert [row["value"] for row in least] == sorted(row["value"] for row in rows)[:2]
    assert cli.main(["table", str(out), "--csv", str(csv)]) == 0
    read = np.genfromtxt(csv, delimiter=",", names=True, dtype=None, encoding="utf-8")
    assert read["value"].tolist() == [row["value"] for row in rows]
    capsys.readouterr()
    assert cli.main(["table", str(out)]) == 0
    shown = capsys.readouterr().out
    assert "…" not in shown
    title, _, *lines = shown.splitlines()
    assert title.startswith("6 rows; the same in all: K=3, d=4, n=5, lam_H=0.005, lam_b=0.0005")
    assert [line.split()[-5] for line in lines] == [r["status"] for r in rows]
    assert cli.main(["table", str(out), "--csv", str(csv)]) == 2  # a file is never replaced
    assert cli.main(["table", str(out), "--columns", "size"]) == 2
    assert "allowed: cell" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_sweep_loses_no_finished_cell_and_ends_with_the_same_bits(tmp_path):
    path = tmp_path / "grid.toml"
    path.write_text(TOML.replace("steps = 400", "steps = 20000").replace("1e-6", "1e-12"))
    command = [sys.executable, "-m", "ufm.cli", "sweep", str(path), "--json", "--out"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    subprocess.run([*command, str(whole)], check=True, capture_output=True)
    process = subprocess.Popen([*command, str(killed)], stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if len(sweeps.load(killed)[0].get("cell", ())) > 0:
                break
        except record.RecordError:
            time.sleep(0.02)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    before, manifest = sweeps.load(killed)
    assert manifest["status"] == "running"
    assert 0 < len(before["cell"]) < 6
    subprocess.run([*command, str(killed)], check=True, capture_output=True)
    first, second = sweeps.load(whole)[0], sweeps.load(killed)[0]
    assert first.keys() == second.keys()
    for name, x in first.items():
        assert x.tobytes() == second[name].tobytes(), name


@pytest.mark.slow
def test_other_processes_give_the_same_bits_and_leave_with_the_sweep(monkeypatch):
    plan = Plan((Grid(**SMALL | {"K": 10, "d": 20}, learning_rate=0.5, optimizer="heavy_ball",
                      seed=list(range(12))),), steps=4000, gap_tol=None)  # fmt: skip
    monkeypatch.setattr(batches, "MOST", {"cpu": 2})
    monkeypatch.setattr(sweeps, "_calls", lambda: 1)
    here = sweeps.sweep(plan)
    monkeypatch.setattr(sweeps, "_calls", lambda: 3)
    monkeypatch.setattr(processes, "PATIENCE", 0.0)
    seen, children, masks = [], set(), []

    def report(share, _):
        seen.append(share)
        children.update(multiprocessing.active_children())
        for path in (Path(f"/proc/{child.pid}/status") for child in children):
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                masks.append(int(re.search(r"SigBlk:\s*(\w+)", path.read_text())[1], 16))

    beside = sweeps.sweep(plan, report=report)
    assert here["cell"].tolist() == beside["cell"].tolist() == list(range(12))
    for name, x in here.items():
        assert x.tobytes() == beside[name].tobytes(), name
    assert seen[0] == 0
    assert max(seen) <= 1
    assert len(children) == 2
    assert not any(child.is_alive() for child in children)
    # From their first moment on, an interrupt of the group is not for them.
    assert masks or not Path("/proc").is_dir()
    assert all(mask >> (signal.SIGINT - 1) & 1 for mask in masks)


@pytest.mark.slow
def test_cells_are_spread_over_the_devices_of_a_process(tmp_path):
    script = """
import numpy as np
from ufm.sweeps import sweep
from test_sweeps import PLAN
import jax
assert len(jax.devices()) == 4
np.savez("four.npz", **sweep(PLAN))
"""
    environment = os.environ | {
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "PYTHONPATH": os.pathsep.join(map(str, Path(__file__).parents[:2])),
    }
    subprocess.run([sys.executable, "-c", script], check=True, cwd=tmp_path, env=environment)
    four, one = np.load(tmp_path / "four.npz"), sweeps.sweep(PLAN)
    np.testing.assert_allclose(four["value"], one["value"], rtol=1e-9)
    assert four["status"].tolist() == one["status"].tolist()


@pytest.mark.slow
def test_whole_shapes_dealt_to_processes_give_the_table_of_batches(tmp_path, monkeypatch):
    """The cells of three shapes, one of them done before; with histories and a host's column."""
    widths = Grid(**SMALL | {"d": [4, 5, 6]}, optimizer=["gd", "lbfgs"], seed=[0, 1, 2])
    record = {"norm": ufm.host(lambda _, params: float(np.sum(np.square(params.W))))}
    plan = Plan((widths,), steps=30, record_every=10, record=record)
    dealt = sweeps.sweep(plan, history=True)
    with monkeypatch.context() as patch:
        patch.setattr(sweeps, "BRIEF", 0.0)
        batched = sweeps.sweep(plan, history=True)
    assert dealt.keys() == batched.keys()
    for name, x in batched.items():
        assert x.tobytes() == dealt[name].tobytes(), name
    first = Grid(**SMALL | {"d": [4]}, optimizer=["gd", "lbfgs"], seed=[0, 1, 2])
    few = dataclasses.replace(plan, grids=(first,))
    sweeps.sweep(few, tmp_path / "out", history=True)
    grown = sweeps.sweep(plan, tmp_path / "out", history=True)
    for name, x in batched.items():
        assert x.tobytes() == grown[name].tobytes(), name


def test_a_shape_of_long_descents_is_dealt_batch_by_batch(monkeypatch):
    """So that finished cells are kept, and all processes have work to the end."""
    seen = []
    monkeypatch.setattr(sweeps, "_side_by_side", lambda *_: seen.append("shapes") or {})
    monkeypatch.setattr(sweeps, "_group", lambda *_: seen.append("batches") or {})
    monkeypatch.setattr(sweeps, "_calls", lambda: 2)
    grid = Grid(**SMALL | {"d": [4, 5]}, optimizer="gd")
    for steps, memory in ((10, 2**30), (10**7, 2**30), (10, 2**20)):
        task = sweeps._Task(Plan((grid,), steps=steps), Plan((grid,)).cells(), memory, None, False)
        sweeps._rows(task, {}, lambda *_: None, lambda _: None)
    assert seen == ["shapes", "batches", "batches", "batches", "batches"]
