"""Newton's method over unit vectors: minima to rounding at any temperature, saddles, statuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import ufm
from ufm import Problem, hessian, theory
from ufm.losses import LogitAdjusted

ON = {"features": "sphere", "bias": False}


def starts(problem, count):
    found = [ufm.init_params(seed, problem, dtype=np.float64) for seed in range(count)]
    return jax.tree.map(lambda *x: jnp.stack(x), *found)


def one(params, i):
    return jax.tree.map(lambda x: x[i], params)


@pytest.mark.parametrize("tau", [5.0, 40.0, 300.0])
def test_every_start_ends_at_the_simplex_however_small_f_is(tau):
    problem = Problem(4, 3, 2, loss=LogitAdjusted(tau), **ON)
    found = ufm.solve(problem, starts(problem, 6))
    assert set(found.status) == {"converged"}
    assert np.all(found.residual <= 4e-14 * found.scale)
    least = theory.global_value(problem)
    for i in range(6):
        at = one(found.params, i)
        assert ufm.certify(problem, at).value == pytest.approx(least, rel=1e-11)
        assert hessian.verdict(problem, at).kind == "global minimiser"
        assert np.linalg.norm(at.H, axis=0) == pytest.approx(1, abs=1e-15)


def test_unequal_classes_end_below_the_simplex_with_a_certificate():
    """The value of an independent search: family of (6, 3, 2, 1) at tau = 5."""
    problem = Problem(4, 3, (6, 3, 2, 1), loss=LogitAdjusted(5.0), **ON)
    found = ufm.solve(problem, starts(problem, 3))
    rng, shares = np.random.default_rng(1), np.array([6, 3, 2, 1]) / 12

    def log_f(x):
        W, H = x.reshape(2, 4, 3)
        W, H = (X / np.linalg.norm(X, axis=1, keepdims=True) for X in (W, H))
        Z = 5.0 * W @ H.T
        return np.log(shares @ (np.log(np.exp(Z).sum(axis=0)) - np.diagonal(Z)))

    ends = [scipy.optimize.minimize(log_f, rng.normal(size=24), tol=1e-12).fun for _ in range(4)]
    for i in range(3):
        proof = ufm.certify(problem, one(found.params, i))
        assert proof.value == pytest.approx(np.exp(min(ends)), rel=1e-9)
        assert proof.gap <= 1e-11 * proof.value
    assert proof.value == pytest.approx(0.0034082, abs=5e-8)


@pytest.mark.parametrize(("K", "d"), [(5, 2), (6, 3)])
def test_below_the_simplex_the_lowest_end_is_the_code(K, d):
    problem = Problem(K, d, 1, loss=LogitAdjusted(20.0), **ON)
    found = ufm.solve(problem, starts(problem, 8))
    ends = [ufm.certify(problem, one(found.params, i)).value for i in range(8)]
    assert min(ends) == pytest.approx(theory.code_minimum(problem).value, rel=1e-11)
    kinds = {hessian.verdict(problem, one(found.params, i)).kind for i in range(8)}
    assert kinds <= {"local minimiser", "strict saddle"}


def test_newton_alone_polishes_a_saddle_and_keeps_its_index():
    problem = Problem(3, 3, 2, loss=LogitAdjusted(3.0), **ON)
    angles = np.array([0.0, 0.0, np.pi])  # two classes on one side of a line, one on the other
    W = np.stack([np.cos(angles), np.sin(angles), 0 * angles], axis=1)
    start = ufm.init_params(0, problem, dtype=np.float64)
    near = W + 1e-4 * np.asarray(start.W)
    near = near / np.linalg.norm(near, axis=1, keepdims=True)
    at = ufm.Params(near, near.T[:, problem.labels], np.zeros(3))
    found = ufm.solve(problem, at, descend=False)
    verdict = hessian.verdict(problem, found.params)
    assert (found.status, found.descent_steps) == ("converged", 0)
    assert verdict.kind == "strict saddle"
    assert found.residual <= 1e-14 * found.scale
    down = ufm.solve(problem, at)
    assert hessian.verdict(problem, down.params).kind == "global minimiser"


def test_convergence_is_quadratic():
    problem = Problem(4, 3, 1, loss=LogitAdjusted(10.0), **ON)
    simplex = theory.global_minimizer(problem, 0, np.float64)
    start = ufm.init_params(0, problem, dtype=np.float64)
    W = np.asarray(simplex.W + 1e-3 * start.W)
    W = W / np.linalg.norm(W, axis=1, keepdims=True)
    found = ufm.solve(problem, simplex._replace(W=W), descend=False)
    sizes = found.residuals[np.isfinite(found.residuals)] / found.scale
    assert found.status == "converged"
    assert len(sizes) <= 6
    assert np.all(sizes[1:] <= np.maximum(1e3 * sizes[:-1] ** 2, 1e-14))


def test_f_without_digits_is_never_called_converged():
    problem = Problem(4, 3, 1, loss=LogitAdjusted(900.0), **ON)  # f* = e^−1200
    found = ufm.solve(problem, starts(problem, 3))
    assert set(found.status) == {"underflow"}
    simplex = theory.global_minimizer(problem, 0, np.float64)
    assert ufm.solve(problem, simplex).status == "underflow"


def test_too_many_tangents_are_refused():
    problem = Problem(200, 199, 1, **ON)
    with pytest.raises(ufm.Refused, match="got a problem of 79200 tangents of unit vectors"):
        ufm.solve(problem, theory.global_minimizer(problem, None))
