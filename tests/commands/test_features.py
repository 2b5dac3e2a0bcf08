"""`--features nonnegative` on files of a network behind a ReLU: certify, probe and measure."""

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
