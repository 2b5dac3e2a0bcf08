"""A fixed classifier: described, held by every method, and certified by a dual of its own."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import ufm
from ufm import hessian, theory
from ufm.model.problem import Problem

LOSSES = ("CrossEntropy", "CrossEntropy(smoothing=0.1)", "SquaredError", "BinaryCrossEntropy",
          "Focal(gamma=2.0)")  # fmt: skip


def held(K=3, d=5, n=(4, 2, 1), **kwargs) -> Problem:
    decays = {"lam_W": 4e-3, "lam_H": 6e-3, "lam_b": 2e-2} | kwargs
    return Problem(K, d, n, fixed=("W",), **decays)


def drawn(problem, seed=0, scale=1.0):
    return ufm.init_params(seed, problem, scale)


def test_it_is_described_and_read_back():
    problem = held()
    told = json.loads(json.dumps(problem.describe()))
    assert told["fixed"] == ["W"]
    assert Problem.from_description(told) == problem
    assert "fixed" not in dataclasses.replace(problem, fixed=()).describe()
    assert problem.size == problem.d * problem.N + problem.K


@pytest.mark.parametrize("fixed", ["W", ("H",), ("W", "W"), 1, None, ["w"], [("W",)]])
def test_other_parts_cannot_be_fixed(fixed):
    with pytest.raises(ufm.Refused, match=r'got fixed=.*allowed: \(\) or \("W",\)'):
        Problem(3, 4, 2, lam=1e-3, fixed=fixed)


def test_the_gradient_is_that_of_the_objective_in_h_and_b_alone():
    problem = held(weights=(1.0, 3.0, 0.5), decay_weights=(0.5, 1.0, 2.0))
    params = drawn(problem)
    expected = jax.grad(lambda x: ufm.objective(problem, x))(params)
    got = ufm.gradient(problem, params)
    assert not np.any(got.W)
    np.testing.assert_allclose(got.H, expected.H, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(got.b, expected.b, rtol=1e-12, atol=1e-15)
    norm = np.sqrt(np.sum(expected.H**2) + np.sum(expected.b**2))
    assert ufm.certify(problem, params).grad_norm == pytest.approx(norm, rel=1e-12)
    free = dataclasses.replace(problem, fixed=())
    assert float(ufm.objective(problem, params)) == float(ufm.objective(free, params))


@pytest.mark.parametrize(
    ("optimizer", "options"),
    [
        ("gd", {}), ("heavy_ball", {}), ("nesterov", {}), ("lbfgs", {}), ("adam", {}),
        ("sgd", {"batch_size": 3, "key": 0}),
        ("adamw", {"learning_rate": 1e-2, "weight_decay": 0.5}),  # would decay W by itself
        (optax.noisy_sgd(1e-2, 0.1, 0.55, 0), {}),  # would shake it
    ],
)  # fmt: skip
def test_no_method_moves_the_classifier(optimizer, options):
    problem = held()
    start = drawn(problem)
    run = ufm.descend(problem, start, optimizer, steps=40, **options)
    np.testing.assert_array_equal(run.params.W, start.W)
    assert not np.array_equal(run.params.H, start.H)
    assert run.history["loss"][-1] < run.history["loss"][0]


def test_a_descent_is_certified_against_this_problem_and_not_the_free_one():
    problem = held()
    run = ufm.descend(problem, drawn(problem), "lbfgs", steps=500, gap_tol=1e-12)
    assert run.status == "certified"
    free = dataclasses.replace(problem, fixed=())
    assert ufm.certify(free, run.params).gap > 1e-2


SHAPES = {  # of random counts; decays vary within one program
    "CrossEntropy": (3, 2, (4, 1, 2), True, None),
    "CrossEntropy(smoothing=0.1)": (4, 5, (1, 3, 1, 2), True, None),
    "SquaredError": (3, 4, (1, 1, 5), True, (1.0, 0.3, 2.0)),
    "BinaryCrossEntropy": (2, 1, (3, 2), False, None),
    "Focal(gamma=2.0)": (3, 3, (2, 1, 1), True, None),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_the_certificate_is_never_above_the_minimum_and_its_gap_is_that_of_the_gradient(loss):
    """Random decays from 1e-4 to 1 and points: the gap is ‖∇_H‖²/(2λ_H) + ‖∇_b‖²/(2λ_b)."""
    K, d, n, bias, omega = SHAPES[loss]
    rng = np.random.default_rng(5)
    for i in range(12):
        lams = 10.0 ** rng.uniform(-4, 0, 3)
        lams[2] *= i % 3 > 0
        problem = Problem(K, d, n, *lams, bias, loss, decay_weights=omega, fixed=("W",))
        start = drawn(problem, i, scale=(0.1, 1.0, 4.0)[i % 3])
        proof = ufm.certify(problem, start)
        assert np.isnan(proof.spectral_ratio)
        if not problem.loss.convex:
            run = ufm.descend(problem, start, "lbfgs", steps=100)
            assert proof.lower_bound <= ufm.certify(problem, run.params).value
            continue
        solved = ufm.solve(problem, start)
        least = ufm.certify(problem, solved.params)
        # Of these the residual is a difference of larger numbers, and ‖∇f‖ no smaller than theirs.
        differs = loss in ("SquaredError", "CrossEntropy(smoothing=0.1)")
        assert solved.status == "converged" or (differs and solved.status == "stalled")
        assert proof.lower_bound <= least.value + least.resolution
        assert least.gap <= 1e-12 * least.value
        if bias and lams[2] == 0:  # G was moved to G1 = 0: the gap is no square of the gradient
            continue
        slope = ufm.gradient(problem, start)
        each = np.asarray(problem.class_decays)[problem.labels]
        left = np.sum(np.asarray(slope.H) ** 2 / each) / 2
        left += np.sum(np.asarray(slope.b) ** 2) / (2 * lams[2]) if bias else 0.0
        left = min(left, proof.value)  # no bound is below the trivial 0
        assert proof.gap == pytest.approx(left, rel=1e-9, abs=2 * proof.resolution + 1e-13)


@pytest.mark.parametrize("loss", LOSSES[:4])
@pytest.mark.parametrize("bias", [True, False])
def test_the_solved_point_is_the_minimum_that_scipy_finds(loss, bias):
    """L-BFGS-B of SciPy over (H, b), from another start, on sizes that no page gives."""
    problem = held(4, 3, (1, 5, 2, 3), bias=bias, loss=loss)
    start = drawn(problem, 3)
    solved = ufm.solve(problem, start)
    shapes = start.H.shape, (problem.K,)

    def of(x):
        H, b = np.split(x, [start.H.size])
        return start._replace(H=jnp.asarray(H.reshape(shapes[0])), b=jnp.asarray(b) * bias)

    value = jax.jit(jax.value_and_grad(lambda x: ufm.objective(problem, x)))

    def f(x):
        found, slope = value(of(x))
        return float(found), np.concatenate([np.ravel(slope.H), np.asarray(slope.b) * bias])

    begin = np.random.default_rng(1).normal(size=start.H.size + problem.K)
    best = scipy.optimize.minimize(f, begin, jac=True, method="L-BFGS-B", tol=1e-15)
    proof = ufm.certify(problem, solved.params)
    assert proof.value == pytest.approx(best.fun, rel=1e-9)
    assert proof.value <= best.fun * (1 + 1e-14)
    assert proof.gap <= 1e-12 * proof.value
    assert hessian.verdict(problem, solved.params).kind == "global minimiser"


def test_a_point_that_is_not_solved_is_not_critical():
    problem = held()
    assert hessian.verdict(problem, drawn(problem)).kind == "not critical"


def test_many_classifiers_are_solved_side_by_side():
    problem = held()
    starts = jax.tree.map(lambda *x: jnp.stack(x), *(drawn(problem, i) for i in range(3)))
    many = ufm.solve(problem, starts)
    assert list(many.status) == ["converged"] * 3
    for i in range(3):
        one = ufm.solve(problem, drawn(problem, i)).params
        np.testing.assert_allclose(many.params.H[i], one.H, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("W", [np.ones((4, 3)), np.ones(3), np.full((3, 5), np.nan), "W", [[1], 2]])
def test_a_classifier_that_does_not_fit_is_refused(W):
    with pytest.raises(ufm.Refused, match="got W"):
        ufm.init_params(0, held(), W=W)
    with pytest.raises(ufm.Refused, match="got W"):
        theory.fixed_minimum(held(n=2, bias=False), W)


def test_a_loss_that_is_not_convex_is_left_to_descent():
    problem = held(loss="Focal(gamma=2.0)")
    with pytest.raises(ufm.Refused, match="convex loss"):
        ufm.solve(problem, drawn(problem))


def test_a_sweep_holds_every_cell_to_the_classifier_of_its_start():
    grid = ufm.Grid(K=3, d=5, n=[[4, 2, 1]], lam=1e-2, fixed=["W"], optimizer="gd")
    table = ufm.sweep(ufm.Plan(grid, steps=1))
    assert grid.cells()[0].problem.fixed == ("W",)
    assert list(table["fixed"]) == ["W"]
    assert np.isnan(table["spectral_ratio"][0])  # of the certificate of this problem
    assert np.isnan(table["f_star"][0])
    assert table["lower_bound"][0] < table["value"][0]


def test_the_free_problem_compiles_as_if_nothing_could_be_fixed(monkeypatch):
    problem = Problem(3, 5, (4, 2, 1), lam=1e-3)
    params = drawn(problem)
    texts = []
    for hold in (None, lambda _, x: x):
        if hold is not None:
            monkeypatch.setattr("ufm.model.objective.held", hold)
        lowered = jax.jit(lambda x: ufm.gradient(problem, x)).lower(params)
        texts.append(lowered.as_text())
    assert texts[0] == texts[1]
