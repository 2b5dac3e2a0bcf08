"""`ufm verify`: cells of the theory hold; what contradicts it is named and fails the command."""

import dataclasses
import json

import jax
import pytest

from ufm import theory
from ufm.cli import main
from ufm.critical import verification
from ufm.model.problem import Problem
from ufm.report import sections
from ufm.runs import record

CELL = Problem(K=3, d=4, n=2, lam_W=1e-2, lam_H=5e-3, lam_b=1e-2)


@pytest.fixture(scope="module")
def cell():
    return verification.verify(CELL, jax.random.key(0), starts=32, rounds=1, escapes=0)


def test_a_cell_below_the_threshold_holds_in_every_respect(cell):
    assert cell.violations == ()
    assert (cell.collapsed, cell.minimisers, cell.local, cell.undecided) == (False, 1, 0, 0)
    assert cell.saddles >= 2  # the origin and the partition 2+1
    assert cell.points + cell.refused == 5 * 32
    assert cell.softest > 0


@pytest.mark.long
def test_perturbed_descent_escapes_from_saddles_to_the_certified_minimum():
    cell = verification.verify(CELL, jax.random.key(0), starts=32, rounds=1, escapes=2)
    assert (cell.escaped, cell.escapes, cell.violations) == (2, 2, ())


def test_above_the_threshold_the_origin_is_the_only_critical_point():
    problem = dataclasses.replace(CELL, lam_W=0.5, lam_H=0.4)
    cell = verification.verify(problem, jax.random.key(0), starts=32, rounds=1)
    assert cell.collapsed
    assert (cell.minimisers, cell.saddles, cell.violations) == (1, 0, ())


def test_a_wrong_theory_is_refuted(monkeypatch):
    # Were f* larger by 1e-6, the minimum found would contradict it.
    true = theory.global_value
    monkeypatch.setattr(theory, "global_value", lambda problem: true(problem) + 1e-6)
    wrong = verification.verify(CELL, jax.random.key(0), starts=32, rounds=1, escapes=0)
    assert any("closed form" in text for text in wrong.violations)


def test_the_command_writes_a_row_a_cell_and_fails_on_a_violation(tmp_path, capsys, monkeypatch):
    line = ["verify", "--K", "3", "--d", "4", "--n", "2", "--lam", "1e-2", "--ratio", "0.5"]
    line += ["--starts", "32", "--rounds", "1", "--escapes", "0", "--out", str(tmp_path / "v")]
    assert main(line) == 0
    assert "escaped" in capsys.readouterr().out
    stored = json.loads((tmp_path / "v" / "verify.json").read_text())
    assert [cell["problem"] for cell in stored["cells"]] == [CELL.describe()]  # λ_b: that of W
    assert "No violation." in (tmp_path / "v" / "verify.md").read_text()
    true = theory.global_value
    monkeypatch.setattr(theory, "global_value", lambda problem: true(problem) + 1e-6)
    assert main([*line, "--json"]) == 0  # kept, not computed again
    assert json.loads(capsys.readouterr().out) == stored["cells"]
    line[line.index("--out") + 1] = str(tmp_path / "w")
    assert main([*line, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["violations"]


def test_a_verification_that_was_cut_off_goes_on_with_the_missing_cells(
    tmp_path, capsys, monkeypatch
):
    """Each cell is told by its number; the second session must make those that the first lacks."""
    out, computed = tmp_path / "v", []

    def verify(problem, key, **_):
        if problem.lam_W == 3e-2 and len(computed) == 2:
            raise KeyboardInterrupt
        computed.append(float(problem.lam_W))
        draw = float(jax.random.uniform(key))
        nan = float("nan")
        return verification.Cell(problem, False, draw, 0.0, 0.0, 1, 0, 1, 1, 0, 0, nan, 0, 0, ())

    monkeypatch.setattr(verification, "verify", verify)
    line = ["verify", "--K", "3", "--d", "4", "--n", "2", "--lam", "1e-2", "2e-2", "3e-2", "4e-2"]
    assert main([*line, "--json"]) == 130
    computed.clear()
    assert main([*line, "--out", str(out)]) == 130
    assert f"interrupted; the same command goes on with {out}" in capsys.readouterr().err
    assert record.load_run(out).manifest["status"] == "interrupted"
    (section,) = sections.read(out)
    assert section.facts["cells"] == "2 of 4"
    computed.append(0.0)
    assert main([*line, "--out", str(out), "--json"]) == 0
    assert computed == [1e-2, 2e-2, 0.0, 3e-2, 4e-2]
    cut = json.loads(capsys.readouterr().out)
    assert main([*line, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == cut
    assert json.loads((out / "verify.json").read_text()) == {"cells": cut, "of": 4}
    assert main([*line[:-1], "--out", str(out)]) == 2
    assert "config.lam" in capsys.readouterr().err


def test_cells_outside_the_theorem_are_refused_before_anything_is_computed(capsys):
    assert main(["verify", "--K", "5", "--d", "3", "--lam", "1e-2"]) == 2
    assert "d >= K-1" in capsys.readouterr().err
    assert main(["verify", "--K", "3", "--d", "4", "--lam", "0"]) == 2
    assert "lam_W" in capsys.readouterr().err
