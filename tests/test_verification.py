"""`ufm verify`: cells of the theory hold; what contradicts it is named and fails the command."""

import dataclasses
import json

import jax
import pytest

from ufm import theory, verification
from ufm.cli import main
from ufm.problem import Problem

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


@pytest.mark.slow
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
    assert [cell["problem"]["K"] for cell in stored["cells"]] == [3]
    assert "No violation." in (tmp_path / "v" / "verify.md").read_text()
    true = theory.global_value
    monkeypatch.setattr(theory, "global_value", lambda problem: true(problem) + 1e-6)
    assert main([*line, "--json"]) == 0  # kept, not computed again
    assert json.loads(capsys.readouterr().out) == stored["cells"]
    line[line.index("--out") + 1] = str(tmp_path / "w")
    assert main([*line, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["violations"]


def test_cells_outside_the_theorem_are_refused_before_anything_is_computed(capsys):
    assert main(["verify", "--K", "5", "--d", "3", "--lam", "1e-2"]) == 2
    assert "d >= K-1" in capsys.readouterr().err
    assert main(["verify", "--K", "3", "--d", "4", "--lam", "0"]) == 2
    assert "lam_W" in capsys.readouterr().err
