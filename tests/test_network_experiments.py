"""Experiments with networks: their laws, and the committed results judged again."""

import dataclasses
import inspect
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console
from scipy.stats import mannwhitneyu

from experiments import runner
from experiments.networks import n02_against_the_model as n02
from experiments.networks import n05_controlled_collapse as n05
from experiments.networks import n06_all_images as n06
from experiments.networks import n07_unequal_images as n07
from experiments.networks import trainings
from experiments.runner import Options
from experiments.verdicts import HOLDS, NOT_CONVERGED, REFUTED
from ufm import Problem, theory
from ufm.networks import data
from ufm.networks.evaluation import Evaluation
from ufm.runs import record

SCRIPTS = runner.names("n")
ROOT = Path(runner.__file__).parent.parent


def committed(name: str) -> dict[str, np.ndarray]:
    return record.load_run(ROOT / "figures" / "data" / f"{name}_quick").arrays


def outcomes(name: str, arrays) -> dict[str, str]:
    script = runner.module(name)
    return {x.claim: x.outcome for x in script.check(script.Config.quick(), arrays)}


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_says_its_claim_its_source_and_what_would_refute_it(name):
    text = runner.module(name).__doc__
    places = [text.index(word) for word in ("Claim.", "Source.", "Refuted by")]
    assert places == sorted(places)
    members = inspect.getmembers(runner.module(name), inspect.isroutine)
    lines = {key: inspect.getsourcelines(value)[1] for key, value in members if key in
             ("compute", "check", "draw")}  # fmt: skip
    assert sorted(lines, key=lines.get) == ["compute", "check", "draw"]


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_config_is_frozen_has_comments_and_a_smaller_quick_form(name):
    config = runner.module(name).Config
    with pytest.raises(dataclasses.FrozenInstanceError):
        config().seed = 1
    assert config.quick().per_class in range(1, 1000)
    lines = [
        line for cls in (config, trainings.Setting) for line in inspect.getsource(cls).splitlines()
    ]
    for field in dataclasses.fields(config):
        at = next(i for i, line in enumerate(lines) if line.startswith(f"    {field.name}: "))
        assert "  # " in lines[at] or lines[at - 1].startswith("    # "), field.name


@pytest.mark.parametrize("name", SCRIPTS)
def test_committed_results_are_those_of_the_quick_form_and_of_the_committed_verdicts(name):
    script, folder = runner.module(name), ROOT / "figures" / "data" / f"{name}_quick"
    manifest, arrays = record.load_run(folder)
    config = json.loads(json.dumps(dataclasses.asdict(script.Config.quick())))
    assert (manifest["status"], manifest["config"]) == ("complete", config)
    assert sum(path.stat().st_size for path in folder.iterdir()) <= 300_000
    kept = json.loads((ROOT / "figures" / f"{name}_quick.json").read_text())
    found = script.check(script.Config.quick(), arrays)
    assert [x["outcome"] for x in kept["verdicts"]] == [x.outcome for x in found]
    assert NOT_CONVERGED not in outcomes(name, arrays).values()


@pytest.mark.parametrize("name", SCRIPTS)
def test_figures_are_drawn_from_the_committed_results(name):
    script = runner.module(name)
    drawn = script.draw(script.Config.quick(), committed(name))
    assert all(isinstance(figure, Figure) for figure in drawn.values())


@pytest.mark.parametrize(
    ("name", "array", "change", "claim", "outcome"),
    [
        ("n01_collapse", "sgd_train_error", lambda x: x + 0.1, "SGD: training error", REFUTED),
        ("n01_collapse", "sgd_train_error", lambda x: x + 0.1, "SGD: NC1", NOT_CONVERGED),
        ("n01_collapse", "adam_train_nc1", lambda x: 0 * x + 1, "Adam: NC1", REFUTED),
        ("n01_collapse", "lbfgs_train_nc3", lambda x: x[::-1], "L-BFGS: NC3", REFUTED),
        ("n02_against_the_model", "lbfgs_norm_W", lambda x: 1.1 * x, "MLP, L-BFGS: ‖W‖", REFUTED),
        ("n02_against_the_model", "sgd_margin", lambda x: 2 * x, "ResNet, SGD: margin", REFUTED),
        ("n02_against_the_model", "sgd_centred_gap", lambda x: 0 * x + 1, "certified gap", REFUTED),
        (
            "n02_against_the_model",
            "lbfgs_relu_norm_W_star",
            lambda x: 1.1 * x,
            "H ≥ 0 over free",
            REFUTED,
        ),
        ("n02_against_the_model", "sgd_index", lambda x: x - 1, "SGD: index", REFUTED),
        ("n02_against_the_model", "sgd_mean_share", lambda x: x + 0.2, "share of", REFUTED),
        ("n02_against_the_model", "sgd_relu_cosine", lambda x: x**0, "cosine of two", REFUTED),
        ("n03_fixed_classifier", "published", lambda x: x + 1, "learned: parameters", REFUTED),
        ("n03_fixed_classifier", "train_error", lambda x: x + 0.1, "fixed: training", REFUTED),
        (
            "n03_fixed_classifier",
            "test_error",
            lambda x: x + np.arange(4)[:, None] / 5,
            "fixed, d=K: test error",
            REFUTED,
        ),
        ("n04_random_labels", "error", lambda x: x + 0.1, "widest network", REFUTED),
        ("n04_random_labels", "nc1", lambda x: x[::-1], "width and NC1", REFUTED),
        ("n05_controlled_collapse", "fpr95", lambda x: -x, "detection error", REFUTED),
        ("n06_all_images", "resnet_train_error", lambda x: x + 0.1, "ResNet: NC1", NOT_CONVERGED),
        ("n06_all_images", "resnet_train_nc3", lambda x: x[::-1], "ResNet: NC3 at", REFUTED),
        (
            "n06_all_images",
            "resnet_test_nc1",
            lambda x: x / 1e9,
            "ResNet: NC1 of training",
            REFUTED,
        ),
        ("n06_all_images", "mlp_depth_nc1", lambda x: 1 + (x > 0.1), "MLP: 1 − R²", REFUTED),
        (
            "n07_unequal_images",
            "rows",
            lambda x: x + 0.2,
            "ratio 10: cosine of two minority",
            REFUTED,
        ),
        ("n07_unequal_images", "rows", lambda x: 0 * x, "least rise", REFUTED),
    ],
)
def test_other_results_would_refute_the_claim(name, array, change, claim, outcome):
    arrays = committed(name)
    found = outcomes(name, arrays | {array: change(arrays[array])})
    assert outcome in [value for key, value in found.items() if claim in key]
    assert HOLDS in [value for key, value in outcomes(name, arrays).items() if claim in key]


def test_a_network_at_the_global_minimum_of_the_model_is_recognised_as_such():
    problem = Problem(K=3, d=4, n=5, lam_W=5e-3, lam_H=2e-3)
    W, H, b = theory.global_minimizer(problem, jax.random.key(0))
    # A common part of the features, as a ReLU makes one, and the bias that hides it.
    mean = np.arange(1.0, 5.0)[:, None]
    shifted = np.asarray(H) + mean, np.asarray(b) - (np.asarray(W) @ mean)[:, 0]
    seen = Evaluation((shifted[0],), np.asarray(W), shifted[1], problem.labels)
    row = n02.compare(seen, 5e-3)
    assert row["centred_lam_H"] == pytest.approx(2e-3, rel=1e-9)
    assert row["centred_gap"] == pytest.approx(0, abs=1e-12)
    assert row["centred_norm_W_star"] == pytest.approx(row["norm_W"], rel=1e-9)
    assert row["centred_margin_star"] == pytest.approx(row["margin"], rel=1e-9)
    assert row["centred_value"] == pytest.approx(theory.global_value(problem), rel=1e-9)
    assert row["index"] == 0
    assert row["raw_gap"] > 1e-3


def test_a_network_at_the_minimum_with_features_that_are_not_negative_is_recognised_as_such():
    problem = Problem(K=3, d=4, n=5, lam_W=5e-3, lam_H=2e-3, lam_b=5e-3, features="nonnegative")
    W, H, b = (np.asarray(x) for x in theory.global_minimizer(problem, jax.random.key(0)))
    seen = Evaluation((H,), W, b, problem.labels)
    both = n02.compare(seen, 5e-3) | n02.behind_a_relu(seen, 5e-3)
    assert both["relu_gap"] == pytest.approx(0, abs=1e-9)
    assert both["relu_norm_W_star"] == pytest.approx(both["norm_W"], rel=1e-9)
    assert both["relu_margin_star"] == pytest.approx(both["margin"], rel=1e-9)
    assert both["relu_value"] == pytest.approx(theory.global_value(problem), rel=1e-9)
    assert both["mean_share"] == pytest.approx(1 / 3, rel=1e-9)
    assert (both["relu_cosine"], both["relu_index"]) == (pytest.approx(0, abs=1e-9), 0)
    at = {name: np.array([value + 1, value]) for name, value in both.items()}
    assert {x.outcome for x in n02.judge_relu("network", at, ended=True)} == {HOLDS}


def test_detection_counts_pairs_and_false_alarms():
    generator = np.random.default_rng(0)
    native, foreign = generator.normal(0, 1, 200), generator.normal(1, 1, 100)
    auroc, fpr95 = n05.detection(native, foreign)
    pairs = mannwhitneyu(foreign, native).statistic / (len(native) * len(foreign))
    assert auroc == pytest.approx(pairs, rel=1e-12)
    threshold = np.sort(foreign)[5]  # 95 of 100 foreign scores lie at or above
    assert fpr95 == np.mean(native >= threshold)
    assert n05.detection(np.zeros(3), np.ones(4)) == (1.0, 0.0)


def test_the_entropy_bonus_is_the_mean_log_distance_to_the_nearest_neighbour():
    class Network:
        projector = None

        def layers(self, x):
            return (x,)

        def head(self, features):
            return features

    x = np.random.default_rng(0).normal(size=(6, 3))
    u = x / np.linalg.norm(x, axis=1, keepdims=True)
    nearest = [min(np.linalg.norm(u[i] - u[j]) for j in range(6) if j != i) for i in range(6)]
    values = [float(n05.spread(Network(), x, np.zeros(6, int), weight)) for weight in (0.0, 2.0)]
    assert values[0] - values[1] == pytest.approx(2 * np.mean(np.log(nearest)), abs=1e-6)


def test_a_law_of_equal_steps_is_a_line_of_its_slope():
    slope, straight = n06.line(5 * 0.3 ** np.arange(6))
    assert slope == pytest.approx(np.log(0.3), rel=1e-12)
    assert straight == pytest.approx(1, abs=1e-12)
    assert n06.line(np.exp([0.0, -1, 0, -1]))[1] == pytest.approx(0.2, rel=1e-9)


def test_half_of_the_classes_are_cut_and_the_others_stay():
    labels = np.repeat(np.arange(10, dtype=np.int32), 20)
    part = n07.cut(data.Images(np.arange(200), labels), 10)
    assert np.bincount(part.labels).tolist() == [20] * 5 + [2] * 5
    np.testing.assert_array_equal(labels[part.pixels], part.labels)


def test_cosines_of_a_network_at_the_minimum_for_unequal_counts_are_the_models():
    problem = Problem(K=10, d=12, n=(20,) * 5 + (2,) * 5, lam_W=2e-3, lam_H=1e-4)
    W, H, b = (np.asarray(x) for x in theory.global_minimizer(problem, jax.random.key(0)))
    seen = Evaluation((H,), W, b, problem.labels)
    found = n07.measures(seen, seen, 2e-3)
    for name in ("rows", "means"):
        # λ_H is that of the point's own balance.
        np.testing.assert_allclose(found[name], found[f"model_{name}"], atol=1e-6)
    assert found["rows"][1] > found["rows"][0]
    assert found["test_error"].tolist() == [0, 0]


def test_the_terminal_phase_begins_at_the_first_record_without_an_error():
    assert trainings.zero_from(np.array([0.9, 0, 0.1, 0, 0])) == 1
    assert trainings.zero_from(np.array([0.9, 0.1])) is None
    assert trainings.zero_from(np.zeros(2)) == 0


@pytest.mark.parametrize("form", ["one", "all"])
def test_without_data_a_script_stops_with_the_ways_to_get_them(monkeypatch, tmp_path, capsys, form):
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    monkeypatch.setenv(data.VARIABLE, "")
    arguments = ["--quick", "--data", str(tmp_path / "absent")]
    call = {
        "one": lambda: runner.main("n01_collapse", arguments, trainings.Options),
        "all": lambda: runner.main_all([*arguments, "--only", "n04"], trainings.AllOptions, "n"),
    }[form]
    with pytest.raises(SystemExit) as stop:
        call()
    assert stop.value.code == 2
    said = capsys.readouterr().err
    assert all(way in said for way in ("absent", "apt install", "--data", "--download"))


def test_results_of_other_images_are_kept_apart(monkeypatch, tmp_path):
    monkeypatch.setenv(data.VARIABLE, "")
    for name in (*data.CIFAR_TRAIN, data.CIFAR_TEST):
        (tmp_path / name).write_bytes(bytes(3073))
    marks = [trainings.Options(data=place).mark() for place in ("", str(tmp_path))]
    assert marks[0] == ""
    config = runner.module("n01_collapse").Config.quick()
    folders = [runner.place("n01_collapse", config, mark)[0] for mark in marks]
    assert [folder.parent.name for folder in folders] == ["data", "runs"]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_runs_on_the_real_images(monkeypatch, tmp_path, name):
    try:
        data.load()
    except data.DataError:
        pytest.skip("FashionMNIST is not installed")
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    small = {"per_class": 20, "test_per_class": 20, "widths": (4, 8), "epochs": 5, "records": 3}
    more = {
        "n01_collapse": {"iterations": 5, "hidden": (8, 4)},
        "n02_against_the_model": {"iterations": 5, "hidden": (8, 12), "widths": (4, 12)},
        "n03_fixed_classifier": {"widths": (4, 12), "timed": 1},
        "n04_random_labels": {"sizes": (8, 16)},
        "n05_controlled_collapse": {"starts": 1},
        "n06_all_images": {"widths": (4, 12), "hidden": (12, 12)},
        "n07_unequal_images": {"ratios": (1, 10), "hidden": (16, 12), "iterations": 5},
    }[name]
    config = dataclasses.replace(runner.module(name).Config.quick(), **small | more)
    verdicts = runner.run(name, config, Options(), Console(quiet=True))
    assert verdicts
    assert not list((tmp_path / "runs" / "checkpoints").iterdir())
    again = runner.run(name, config, Options(redraw=True), Console(quiet=True))
    assert [x.outcome for x in again] == [x.outcome for x in verdicts]
