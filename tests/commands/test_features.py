"""`--features`: files of a network behind a ReLU, runs and files of unit vectors."""

import json

import numpy as np
import pytest
from jax import numpy as jnp

import ufm
from ufm import cli, theory
from ufm.model.problem import Problem

P = Problem(3, 4, (5, 3, 2), 6e-3, 3e-3, bias=False, features="nonnegative")


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Write the minimiser with one feature moved, run a command, read its JSON."""
    monkeypatch.chdir(tmp_path)

    def run(*words, moved=0.0, status=0):
        W, H, _ = theory.global_minimizer(P, 1)
        H = np.asarray(H.at[0, 0].add(moved))
        np.savez("point.npz", W=W, H=H, labels=P.labels, lam_W=P.lam_W, lam_H=P.lam_H)
        assert cli.main([words[0], "point.npz", *words[1:]]) == status
        out, err = capsys.readouterr()
        return err if status else json.loads(out)

    return run


def test_the_certificate_closes_for_this_model_alone(told):
    behind = told("certify", "--features", "nonnegative", "--json")
    assert behind["gap"] <= 1e-14
    assert told("certify", "--json")["gap"] > 1e-3


def test_a_probe_judges_on_the_face(told):
    found = told("probe", "--features", "nonnegative", "--json")
    assert found["verdict"] == "global minimiser"
    assert found["index"] == 0
    assert "smallest" not in found


def test_measured_features_are_held_against_this_model(told):
    found = told(
        "measure", "--features", "nonnegative", "--lam-W", str(P.lam_W), "--lam-H", str(P.lam_H),
        "--json",
    )  # fmt: skip
    assert found["predicted_norm_W"] == pytest.approx(found["norm_W"], rel=1e-12)
    assert found["predicted_margin"] == pytest.approx(found["margin"], rel=1e-12)
    assert found["gap"] <= 1e-14


def test_negative_features_are_refused_by_their_number(told):
    for command in ("certify", "probe"):
        error = told(command, "--features", "nonnegative", moved=-9.0, status=2)
        assert "1 negative entries in H" in error


def test_a_run_knows_its_own_features(tmp_path, capsys):
    run = tmp_path / "run"
    words = "descend --K 2 --d 2 --n 2 --no-bias --lam .01 --optimizer gd --steps 3 --json"
    assert cli.main([*words.split(), "--features", "nonnegative", "--out", str(run)]) == 0
    assert cli.main(["certify", str(run), "--json"]) == 0
    assert cli.main(["certify", str(run), "--features", "free"]) == 2
    assert "A run holds its own features" in capsys.readouterr().err
    loaded = ufm.record.load_run(run)
    assert loaded.manifest["config"]["model"]["features"] == "nonnegative"
    assert float(jnp.min(loaded.arrays["H"])) >= 0


def test_a_run_on_the_sphere_is_kept_certified_and_probed(tmp_path, capsys):
    run = tmp_path / "run"
    words = "descend --K 3 --d 2 --n 2 --no-bias --lam 0 --features sphere --optimizer gd --json"
    words = [*words.split(), "--loss", "LogitAdjusted(scale=5)", "--steps", "300"]
    assert cli.main([*words, "--out", str(run)]) == 0
    assert json.loads(capsys.readouterr().out)["status"] == "certified"
    least = theory.sphere_value(3, 5.0)
    assert cli.main(["certify", str(run), "--json"]) == 0
    assert 0 <= json.loads(capsys.readouterr().out)["gap"] <= 1e-7 * least
    assert cli.main(["probe", str(run), "--polish", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["index"], found["nullity"]) == ("global minimiser", 0, 1)
    assert found["value"] == pytest.approx(least, rel=1e-12)
    assert cli.main(["descend", "--features", "sphere"]) == 2
    assert "--lam 0" in capsys.readouterr().err


def test_files_of_unit_vectors_are_certified_and_others_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    problem = Problem(3, 2, 1, bias=False, features="sphere", loss="LogitAdjusted(scale=5)")
    W, H, _ = theory.global_minimizer(problem, 1)
    words = ["certify", "point.npz", "--features", "sphere", "--loss", "LogitAdjusted(scale=5)"]
    np.savez("point.npz", W=W, H=H, n=1, lam_W=0.0, lam_H=0.0)
    assert cli.main([*words, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["gap"] <= 1e-14
    np.savez("point.npz", W=2 * W, H=H, n=1, lam_W=0.0, lam_H=0.0)
    assert cli.main(words) == 2
    assert "3 rows of W off norm 1, one of 2" in capsys.readouterr().err
