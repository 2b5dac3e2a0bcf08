"""NC2 and NC3 against predicted geometries: the minimum reads 0 there, and not at the simplex."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ufm
from ufm import Problem, metrics, theory

UNEQUAL = {
    "two groups": Problem(4, 5, (9, 9, 2, 2), 2e-3, 1e-3, 1e-2),
    "all differ, no bias": Problem(3, 3, (6, 3, 1), 1e-3, 2e-3, bias=False),
    "layer-peeled": Problem(3, 4, (8, 8, 2), 2e-3, 1e-2, decay_weights=[0.125, 0.125, 0.5]),
    "squared": Problem(4, 4, (7, 5, 3, 2), 2e-3, 1e-3, bias=False, loss="SquaredError"),
    "squared, d below its modes": Problem(
        4, 2, (7, 5, 3, 2), 2e-3, 1e-3, bias=False, loss="SquaredError"
    ),
}  # fmt: skip


def class_means(problem, H):
    labels = problem.labels
    return np.stack([np.asarray(H)[:, labels == k].mean(axis=1) for k in range(problem.K)])


@pytest.mark.parametrize("name", UNEQUAL)
def test_descent_arrives_at_the_predicted_geometry_and_at_no_simplex(name):
    problem = UNEQUAL[name]
    start = ufm.init_params(jax.random.key(3), problem, 1.0, jnp.float64)
    found = ufm.solve(problem, start)
    assert found.status == "converged"
    seen = metrics.alignment(
        found.params.W, class_means(problem, found.params.H), theory.geometry_of(problem)
    )
    # The residual of solve, over the smallest curvature off the orbit, in units of ‖W‖.
    assert max(seen.nc2, seen.nc2_means, seen.nc3) < 1e-8
    assert seen.nc2_simplex > 1e-2
    assert seen.nc3_simplex > 1e-3
    assert f"K={problem.K}" in seen.against


def test_behind_a_relu_class_means_are_orthogonal_about_zero_and_a_mean_of_all_shows():
    problem = Problem(4, 5, (7, 5, 3, 2), 2e-3, 1e-3, bias=False, features="nonnegative")
    W, H, _ = theory.global_minimizer(problem, jax.random.key(0))
    means, frame = class_means(problem, H), theory.geometry_of(problem)
    seen = metrics.alignment(W, means, frame)
    assert max(*seen[:3], seen.nc2_uncentred) < 1e-12
    # The Gram matrix about 0, entry by entry, of means that share a part: centred, nothing moves.
    lengths = np.sum(means**2, axis=1)
    moved = means + 0.5
    gram = np.array([[sum(x * y for x, y in zip(a, b, strict=True)) for b in moved] for a in moved])
    first = gram / np.sqrt(np.sum(gram**2))
    apart = first - np.diag(lengths) / np.sqrt(np.sum(lengths**2))
    seen = metrics.alignment(W, moved, frame)
    assert seen.nc2_uncentred == pytest.approx(np.sqrt(np.sum(apart**2)))
    assert seen.nc2_uncentred > 0.1
    assert max(seen[:3]) < 1e-12


def test_for_equal_classes_both_are_the_fields_of_collapse():
    problem = Problem(4, 6, 3, 5e-3, 5e-3, 1e-2)
    W, H, b = ufm.init_params(jax.random.key(0), problem, 1.0, jnp.float64)
    seen = metrics.alignment(W, class_means(problem, H), theory.geometry_of(problem))
    told = metrics.collapse(np.asarray(W), np.asarray(H), np.asarray(b), problem.labels)
    expected = [told.nc2, told.nc2_means, told.nc3]
    np.testing.assert_allclose(seen[:3], expected, rtol=1e-12)
    np.testing.assert_allclose(seen[3:6], expected, rtol=1e-12)


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e200])
def test_scale_and_orientation_mean_nothing(scale):
    rng = np.random.default_rng(0)
    W, means = rng.standard_normal((2, 4, 6))
    Q = np.linalg.qr(rng.standard_normal((6, 6)))[0]
    frame = metrics.geometry(scale * W @ Q, means @ Q * 3, "itself, turned")
    assert max(metrics.alignment(W, scale * means, frame)[:3]) < 1e-14


def test_zero_has_no_geometry_and_counts_as_distance_one():
    frame = theory.geometry_of(UNEQUAL["two groups"])
    seen = metrics.alignment(np.zeros((4, 5)), np.zeros((4, 5)), frame)
    np.testing.assert_allclose(seen[:6], 1, rtol=1e-14)


@pytest.mark.parametrize(
    ("problem", "word"),
    [
        (Problem(3, 3, (2, 1, 1), 5.0, 5.0), "W = H = 0"),
        (Problem(4, 2, 3, 1e-3, 1e-3, bias=False, loss="SquaredError"), "no one geometry"),
        (
            Problem(3, 3, 2, 1e-3, 1e-3, bias=False, loss="SquaredError", targets=np.eye(3)),
            "targets",
        ),
        (Problem(4, 2, (9, 9, 2, 2), 2e-3, 1e-3), "d >= K-1"),
    ],
)
def test_a_minimum_without_one_geometry_is_refused(problem, word):
    with pytest.raises(ufm.Refused, match=word):
        theory.geometry_of(problem)


def test_a_prediction_of_other_classes_or_of_zeros_is_refused():
    frame = theory.geometry_of(UNEQUAL["two groups"])
    with pytest.raises(ufm.Refused, match=r"allowed: \(3, 3\)"):
        metrics.alignment(np.eye(3), np.eye(3), frame)
    with pytest.raises(ufm.Refused, match="not zero"):
        metrics.alignment(np.eye(4), np.eye(4), frame._replace(means=np.zeros((4, 4))))
