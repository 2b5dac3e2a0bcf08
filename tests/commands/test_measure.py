"""`ufm measure` of several files, about training means, beside the model: what Python says too."""

import json

import numpy as np
import pytest

import ufm
from ufm import cli, metrics, theory

K, D, N = 3, 5, 60


def made(seed=0, count=N):
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(count) % K)
    W = np.random.default_rng(9).standard_normal((K, D))
    features = 2 * W[labels] + 0.5 * rng.standard_normal((count, D))
    return {"W": W, "b": np.arange(3.0) / 10, "features": features, "labels": labels}


@pytest.fixture
def told(tmp_path, monkeypatch, capsys):
    """Write files, run `ufm measure`, read what it prints."""
    monkeypatch.chdir(tmp_path)

    def run(files, *options, status=0):
        for name, arrays in files.items():
            np.savez(name, **arrays)
        assert cli.main(["measure", *files, *map(str, options)]) == status
        out, err = capsys.readouterr()
        return err if status else out

    return run


def only(arrays, *names):
    return {name: arrays[name] for name in names}


def shards(arrays):
    parts = [{name: arrays[name][i::3] for name in ("features", "labels")} for i in range(3)]
    parts[0] |= only(arrays, "W", "b")
    parts[1] = {"H": parts[1]["features"].T, "labels": parts[1]["labels"], "W": arrays["W"]}
    return {f"{i}.npz": part for i, part in enumerate(parts)}


def whole(arrays, **options):
    return metrics.collapse(
        arrays["W"], arrays["features"].T, arrays.get("b"), arrays["labels"], **options
    )


@pytest.mark.parametrize("mean", ["class", "sample"])
def test_shards_are_measured_as_one(told, mean):
    arrays = made(count=61)
    found = json.loads(told(shards(arrays), "--json", "--mean", mean))
    for name, value in whole(arrays, mean=mean)._asdict().items():
        assert found[name] == pytest.approx(value, rel=1e-10), name
    assert (found["K"], found["d"], found["N"]) == (K, D, 61)


def test_test_features_about_training_means(told):
    train, test = made(0), made(1, 31)
    for name, part in shards(train).items():
        np.savez(name, **part)
    found = json.loads(told({"test.npz": test}, "--json", "--about", *shards(train)))
    means = metrics.Accumulator(train["W"]).add(train["features"], train["labels"]).class_means
    for name, value in whole(test, means=means)._asdict().items():
        assert found[name] == pytest.approx(value, rel=1e-10), name


def test_absent_classes_are_named(told):
    arrays = made()
    some = arrays["labels"] != 1
    left = arrays | {name: arrays[name][some] for name in ("features", "labels")}
    assert "class 1 has no samples" in told({"f.npz": left}, status=2)
    found = json.loads(told({"f.npz": left}, "--json", "--missing", "skip"))
    assert found["missing"] == "1"
    assert found["nc2_means"] is None
    assert found["nc1"] == pytest.approx(whole(left, missing="skip").nc1, rel=1e-12)
    text = told({"f.npz": left}, "--missing", "skip")
    assert "unknown" in text
    err = told({"f.npz": left}, "--missing", "skip", "--generalised", status=2)
    assert "got no samples of class 1" in err


def test_the_geometry_beyond_the_simplex(told):
    arrays = made()
    found = json.loads(told({"f.npz": arrays}, "--json", "--generalised"))
    means = [arrays["features"][arrays["labels"] == k].mean(axis=0) for k in range(K)]
    for name, value in metrics.generalised(arrays["W"], np.stack(means))._asdict().items():
        assert found[name] == pytest.approx(value, rel=1e-9), name


@pytest.mark.parametrize("split", [False, True])
def test_the_model_beside_the_features(told, split):
    arrays = made()
    files = shards(arrays) if split else {"f.npz": arrays}
    found = json.loads(told(files, "--json", "--lam-W", 5e-3, "--lam-b", 1e-2))
    W, b, labels = arrays["W"], arrays["b"], arrays["labels"]
    problem, params = ufm.Problem.from_features(
        W, features=arrays["features"], b=b, labels=labels, lam_W=5e-3, lam_b=1e-2
    )
    assert found["gap"] == pytest.approx(ufm.certify(problem, params).gap, rel=1e-9)
    assert found["lam_H"] == pytest.approx(
        5e-3 * np.sum(W**2) / np.sum(arrays["features"] ** 2), rel=1e-12
    )
    assert found["norm_W"] == pytest.approx(np.linalg.norm(W), rel=1e-13)
    assert found["predicted_norm_W"] == pytest.approx(theory.norms(problem).W, rel=1e-12)
    assert found["predicted_margin"] == pytest.approx(theory.margin(problem), rel=1e-12)
    Z = arrays["features"] @ W.T + b
    margins = [z[y] - max(np.delete(z, y)) for z, y in zip(Z, labels, strict=True)]
    assert found["margin"] == pytest.approx(np.mean(margins), rel=1e-12)


def test_at_the_minimum_the_model_says_what_is_there(told):
    problem = ufm.Problem(K, D, 20, 5e-3, 2e-3, 1e-2)
    W, H, b = (np.asarray(x) for x in ufm.theory.global_minimizer(problem, 0))
    point = {"W": W, "H": H, "b": b, "labels": problem.labels}
    found = json.loads(told({"f.npz": point}, "--json", "--lam-W", 5e-3, "--lam-b", 1e-2))
    assert found["lam_H"] == pytest.approx(2e-3, rel=1e-12)
    assert 0 <= found["gap"] < 1e-12
    for name in ("norm_W", "margin"):
        assert found[name] == pytest.approx(found[f"predicted_{name}"], rel=1e-12)


def test_without_a_closed_form_the_reason_is_told(told):
    found = json.loads(told({"f.npz": made(count=61)}, "--json", "--lam-W", 5e-3, "--lam-H", 1e-4))
    assert found["lam_H"] == 1e-4
    assert found["gap"] > 0
    assert found["predicted_margin"] is None
    assert "unequal class counts" in found["closed_form"]


def test_files_that_are_no_shards_are_refused(told):
    arrays = made()
    parts = shards(arrays)
    parts["1.npz"]["W"] = arrays["W"] + 1
    assert "1.npz with another W than 0.npz" in told(parts, status=2)
    parts["1.npz"].pop("W")
    parts["2.npz"]["b"] = arrays["b"] + 1
    assert "2.npz with another b than 0.npz" in told(parts, status=2)
    parts["2.npz"].pop("b")
    parts["2.npz"].pop("labels")
    assert "missing ['labels']" in told(parts, status=2)
    assert "missing ['W']" in told(dict(list(shards(arrays).items())[2:]), status=2)
    assert "got no file" in told({}, status=2)


def test_a_table_says_what_is_what(told):
    text = told({"f.npz": made()}, "--lam-W", 5e-3)
    for words in ("tr(Σ_W Σ_B⁺)/K", "accuracy", "λ_H (by balance", "margin at the global minimum"):
        assert words in text
