"""The smallest and the largest eigenvalue against all eigenvalues of the dense Hessian."""

import jax
import numpy as np
import pytest

import ufm
from ufm import hessian, theory
from ufm.check import Refused
from ufm.hessian import ends, reduction

RTOL = 1e-12  # of ‖∇²f‖; bisection and Brent's method end at some ε of it

PROBLEMS = {
    "narrow": ufm.Problem(K=5, d=2, n=3, lam_W=3e-3, lam_H=1e-3, lam_b=1e-2),
    "wide-one-sample": ufm.Problem(K=3, d=5, n=1, lam_W=2e-2, lam_H=3e-4, lam_b=7e-3),
    "square-one-sample": ufm.Problem(K=3, d=3, n=1, lam_W=2e-2, lam_H=3e-4, lam_b=7e-3),
    "unequal-free-bias": ufm.Problem(K=3, d=4, n=(4, 1, 2), lam_W=8e-3, lam_H=2e-3, lam_b=0.0),
    "no-bias": ufm.Problem(K=4, d=6, n=(2, 5, 2, 1), lam_W=2e-3, lam_H=4e-3, bias=False),
    "squared-error": ufm.Problem(3, 4, 3, 2e-3, 3e-3, 4e-3, loss="SquaredError"),
    "not-convex": ufm.Problem(3, 4, 3, 2e-3, 3e-3, 4e-3, loss="Focal(gamma=2)"),
    "weights": ufm.Problem(3, 4, 3, 2e-3, 3e-3, 4e-3, weights=(1, 2, 4), decay_weights=(1, 3, 2)),
}


def points(problem):
    """A random point, one on the way, and the critical point beside the origin or beyond."""
    far = ufm.init_params(1, problem, 0.7)
    yield far
    yield ufm.descend(problem, far, "gd", steps=20, learning_rate=0.5, record_every=20).params
    yield ufm.solve(problem, ufm.init_params(2, problem, 0.1), descend=False).params


def off_the_orbit(problem, params, M):
    """The smallest eigenvalue of M orthogonal to the tangents, from the generators of rotations."""
    (W, H, _), d = map(np.asarray, params), problem.d
    tangents = []
    for a in range(d):
        for b in range(a):
            A = np.zeros((d, d))
            A[a, b], A[b, a] = 1.0, -1.0
            tangents.append(np.concatenate([(W @ A.T).ravel(), (A @ H).ravel()]))
    tangents = np.pad(np.array(tangents), ((0, 0), (0, problem.K * problem.bias)))
    if problem.bias and problem.lam_b == 0 and problem.loss.null(problem.K) is not None:
        tangents = np.vstack(
            [tangents, np.r_[np.zeros(problem.size - problem.K), np.ones(problem.K)]]
        )
    _, sizes, rows = np.linalg.svd(tangents)
    basis = rows[int(np.sum(sizes > 1e-12 * sizes[0])) :]
    return np.linalg.eigvalsh(basis @ M @ basis.T)[0]


@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_outermost_eigenvalues_come_as_often_as_they_occur(problem):
    for params in points(problem):
        values = np.linalg.eigvalsh(np.asarray(hessian.dense(problem, params)))
        atol = RTOL * np.max(np.abs(values))
        core = reduction.reduce(problem, params)
        for k in 1, 7:
            for sign, (found, residuals) in zip((1, -1), ends.outermost(core, k), strict=True):
                np.testing.assert_allclose(found, values[::sign][:k], rtol=0, atol=atol)
                assert np.max(residuals) <= atol


@pytest.mark.parametrize("dense", [600, 0], ids=["dense", "complement"])
@pytest.mark.parametrize("problem", PROBLEMS.values(), ids=PROBLEMS.keys())
def test_the_ends_are_those_of_the_dense_hessian(problem, dense, monkeypatch):
    monkeypatch.setattr(ends, "DENSE", dense)
    for params in points(problem):
        M = np.asarray(hessian.dense(problem, params))
        values = np.linalg.eigvalsh(M)
        atol = RTOL * np.max(np.abs(values))
        np.testing.assert_allclose(hessian.smallest(problem, params), values[0], 0, atol)
        np.testing.assert_allclose(hessian.largest(problem, params), values[-1], 0, atol)
        found, off = (
            hessian.smallest(problem, params, orbit=True),
            off_the_orbit(problem, params, M),
        )
        np.testing.assert_allclose(found, off, 0, atol)


def test_at_a_minimum_of_any_size_the_ends_are_those_of_the_closed_form():
    problem = ufm.Problem(K=6, d=9, n=2000, lam_W=5e-3, lam_H=1e-5, lam_b=1e-2)
    params = theory.global_minimizer(problem, jax.random.key(0))
    values = theory.hessian_spectrum(problem).eigenvalues
    atol = RTOL * np.max(values)
    np.testing.assert_allclose(hessian.largest(problem, params), np.max(values), 0, atol)
    positive = np.min(values[values > atol])
    np.testing.assert_allclose(hessian.smallest(problem, params, orbit=True), positive, 0, atol)
    np.testing.assert_allclose(hessian.smallest(problem, params), 0, 0, atol)


def test_what_is_no_flag_or_no_point_is_refused():
    problem = PROBLEMS["narrow"]
    with pytest.raises(Refused, match="orbit"):
        hessian.smallest(problem, ufm.init_params(0, problem), orbit=1)
    with pytest.raises(Refused, match="shape"):
        hessian.largest(problem, ufm.init_params(0, PROBLEMS["no-bias"]))
