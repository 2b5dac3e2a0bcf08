"""Descent over unit vectors: retraction, steps that are proven, tolerances that are shares of f."""

import jax
import numpy as np
import optax
import pytest

import ufm
from ufm import Problem, theory
from ufm.losses import LogitAdjusted

ON = {"features": "sphere", "bias": False}
P = Problem(4, 3, 2, loss=LogitAdjusted(6.0), **ON)
METHODS = [
    ("gd", {}),
    ("heavy_ball", {}),
    ("nesterov", {"learning_rate": 0.2}),
    ("adam", {"learning_rate": 0.02}),
    (optax.sgd(0.5, momentum=0.5), {}),
]


def start(problem, seed=0, dtype=np.float64):
    return ufm.init_params(seed, problem, dtype=dtype)


@pytest.mark.parametrize(("optimizer", "options"), METHODS)
def test_every_method_stays_on_the_sphere_and_comes_near_the_minimum(optimizer, options):
    run = ufm.descend(P, start(P), optimizer, steps=3000, gap_tol=1e-6, **options)
    for x, axis in ((run.params.W, 1), (run.params.H, 0)):
        assert np.abs(np.linalg.norm(x, axis=axis) - 1).max() <= 1e-15
    assert run.history["norm_W"] == pytest.approx(2)
    least = theory.global_value(P)
    assert run.history["loss"][-1] <= least * (
        1 + (1e-6 if optimizer in ("gd", "heavy_ball") else 1e-2)
    )


def test_minibatches_come_down_too():
    run = ufm.descend(P, start(P), "sgd", steps=500, batch_size=3, key=1, learning_rate=0.02)
    assert run.history["loss"][-1] <= 1e-2 * run.history["loss"][0]


@pytest.mark.parametrize("optimizer", ["gd", "heavy_ball"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tested_steps_never_lift_f_above_its_start(optimizer, seed):
    problem = Problem(5, 3, (4, 2, 1, 1, 1), loss=LogitAdjusted(12.0), **ON)
    run = ufm.descend(problem, start(problem, seed), optimizer, steps=300, record_every=1)
    loss = run.history["loss"]
    assert loss.max() <= loss[0]
    if optimizer == "gd":
        assert np.diff(loss).max() <= 1e-13 * loss[0]
    assert loss[-1] < 0.1 * loss[0]


def test_a_step_is_the_riemannian_gradient_and_a_retraction():
    x, eta = start(P), 0.3
    run = ufm.descend(P, x, "gd", steps=1, learning_rate=eta)
    Z = 6.0 * np.asarray(x.W) @ np.asarray(x.H)
    G = 6.0 * (np.exp(Z) / np.exp(Z).sum(axis=0) - np.eye(4)[:, P.labels]) / P.N
    for old, slope, new in ((x.W, G @ x.H.T, run.params.W), (x.H.T, G.T @ x.W, run.params.H.T)):
        y, g = np.asarray(old), np.asarray(slope)
        moved = y - eta * (g - np.sum(g * y, axis=1, keepdims=True) * y)
        wanted = moved / np.linalg.norm(moved, axis=1, keepdims=True)
        assert np.asarray(new) == pytest.approx(wanted, abs=1e-14)


def test_the_inequality_behind_tested_steps_holds_at_every_point():
    """⟨∇f, v⁺⟩ ≤ −‖v⁺‖²/η + (β/η)⟨v⁺, v⟩ + |⟨∇f, x⟩| ‖v⁺‖²/2, whatever ∇f is."""
    rng = np.random.default_rng(0)
    for _ in range(500):
        d, eta, beta = int(rng.integers(2, 6)), 10 ** rng.uniform(-3, 3), rng.uniform(0, 0.99)
        before, x = rng.normal(size=(2, d))
        before, x = before / np.linalg.norm(before), x / np.linalg.norm(x)
        v, slope = x - before, 10 ** rng.uniform(-3, 3) * rng.normal(size=d)
        g = slope - (slope @ x) * x
        there = x + beta * v - eta * g
        ahead = there / np.linalg.norm(there) - x
        most = -(ahead @ ahead) / eta + beta / eta * (ahead @ v)
        most += abs(slope @ x) * (ahead @ ahead) / 2
        assert slope @ ahead <= most + 1e-12 * (np.linalg.norm(slope) + 1 / eta)


@pytest.mark.parametrize("tau", [10.0, 40.0])
def test_a_run_at_high_temperature_ends_at_the_minimum_and_not_where_gradients_are_small(tau):
    """At tau = 40 all gradients are below 1e-12 long before the margin is that of the simplex."""
    problem = Problem(4, 3, 1, loss=LogitAdjusted(tau), **ON)
    run = ufm.descend(problem, start(problem), "gd", steps=20_000, grad_tol=1e-6)
    assert run.status == "converged"
    W, H, _ = run.params
    Z = np.asarray(W @ H)
    margins = np.diagonal(Z) - np.max(Z - 9 * np.eye(4), axis=0)
    assert margins == pytest.approx(4 / 3, abs=1e-6)
    assert run.history["loss"][-1] == pytest.approx(theory.global_value(problem), rel=1e-9)


def test_f_without_digits_is_a_status_of_its_own():
    problem = Problem(3, 2, 1, loss=LogitAdjusted(600.0), **ON)  # f* = e^−900
    simplex = theory.global_minimizer(problem, 0, np.float64)
    run = ufm.descend(problem, simplex, "gd", steps=10, grad_tol=1e-3, gap_tol=1e-3)
    assert (run.status, run.steps) == ("underflow", 0)
    single = Problem(3, 2, 1, loss=LogitAdjusted(60.0), **ON)  # f* = e^−90, below 1e-38
    at = theory.global_minimizer(single, 0, np.float32)
    assert ufm.descend(single, at, "gd", steps=10, grad_tol=1e-3).status == "underflow"
    at = theory.global_minimizer(single, 0, np.float64)
    assert ufm.descend(single, at, "gd", steps=10, grad_tol=1e-3).status == "converged"


@pytest.mark.parametrize(
    ("optimizer", "rate", "told"),
    [
        ("lbfgs", None, "got optimizer='lbfgs' with features='sphere'; allowed: gd, heavy_ball"),
        ("nesterov", None, "got learning_rate='auto' for 'nesterov' with features='sphere'"),
        ("gd", "safe", "got learning_rate='safe' with features='sphere'; allowed: 'auto'"),
        ("nesterov", "safe", "for which nothing is proved"),
    ],
)
def test_methods_without_a_proof_are_refused(optimizer, rate, told):
    with pytest.raises(ufm.Refused, match=told):
        ufm.descend(P, start(P), optimizer, steps=1, learning_rate=rate)
    grid = ufm.Grid(K=4, d=3, n=1, lam=0, bias=False, features="sphere", optimizer=optimizer,
                    learning_rate=rate)  # fmt: skip
    with pytest.raises(ufm.Refused, match="allowed"):
        ufm.Plan(grid).cells()


def test_sweeps_run_on_the_sphere_and_know_the_minimum():
    grid = ufm.Grid(K=4, d=3, n=1, lam=0, bias=False, features="sphere", loss=P.loss, seed=[0, 1],
                    optimizer="gd")  # fmt: skip
    table = ufm.sweep(ufm.Plan(grid, steps=2000, gap_tol=1e-6))
    assert set(table["status"]) == {"certified"}
    assert table["value"] == pytest.approx(table["f_star"], rel=1e-6)
    assert set(table["features"]) == {"sphere"}


def test_a_run_goes_on_bit_for_bit():
    whole = ufm.descend(P, start(P), "heavy_ball", steps=60, record_every=20)
    half = ufm.descend(P, start(P), "heavy_ball", steps=40, record_every=20)
    rest = ufm.descend(P, start(P), "heavy_ball", steps=60, record_every=20, resume=half)
    assert all(
        np.array_equal(a, b)
        for a, b in zip(*map(jax.tree.leaves, (whole.params, rest.params)), strict=True)
    )
