"""`ufm descend --fixed-classifier`: held, kept on disk, certified against its own problem."""

import json

import numpy as np
import pytest
from test_cli import run

import ufm
from ufm import theory
from ufm.runs import record

SIZES = ["--K", "4", "--d", "5", "--n", "3", "--lam", "5e-3", "--steps", "300"]
LIMIT = 1e-9


@pytest.mark.parametrize("name", ["etf", "orthogonal", "file"])
def test_a_run_is_held_to_the_classifier_and_certified(name, capsys, tmp_path):
    W = {"etf": np.asarray(ufm.geometry.etf_classifier(4, 5)), "orthogonal": np.eye(4, 5)}
    W["file"] = np.random.default_rng(0).normal(size=(4, 5))
    np.save(tmp_path / "W.npy", W["file"])
    given = tmp_path / "W.npy" if name == "file" else name
    command = ["descend", *SIZES, "--fixed-classifier", given, "--gap-tol", LIMIT, "--json"]
    status, out, _ = run(capsys, *command, "--out", tmp_path / "run")
    told = json.loads(out)
    assert (status, told["status"]) == (0, "certified")
    kept = record.load_run(tmp_path / "run")
    np.testing.assert_allclose(kept.arrays["W"], W[name], atol=1e-15)
    assert kept.manifest["config"]["model"]["fixed"] == ["W"]
    problem = ufm.Problem(4, 5, 3, lam=5e-3, fixed=("W",))
    if name != "file":
        assert abs(told["value"] - theory.fixed_minimum(problem, W[name]).value) <= 2 * LIMIT
    status, out, _ = run(capsys, "certify", tmp_path / "run", "--json")
    proof = json.loads(out)
    assert status == 0
    assert proof["gap"] <= LIMIT
    assert proof["spectral_ratio"] is None
    status, _, err = run(capsys, "probe", tmp_path / "run")
    assert status == 2
    assert "fixed" in err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--d", "3", "--fixed-classifier", "orthogonal"], "d=3 < K=4"),
        (["--d", "2", "--fixed-classifier", "etf"], "d >= 3"),
        (["--fixed-classifier", "frame"], "allowed: etf, orthogonal, or a file"),
        (["--fixed", "H"], "got fixed"),
    ],
)
def test_a_classifier_that_does_not_fit_is_refused(arguments, words, capsys):
    status, _, err = run(capsys, "descend", *SIZES, *arguments)
    assert status == 2
    assert words in err


def test_theory_says_what_is_known_of_it(capsys):
    status, out, _ = run(capsys, "theory", *SIZES[:8], "--fixed", "W", "--json")
    names = [claim["name"] for claim in json.loads(out)["claims"]]
    assert (status, names[0]) == (0, "convex in (H, b)")
