"""The Hessian over unit vectors against differences along a retraction, and verdicts."""

import numpy as np
import pytest

import ufm
from ufm import Problem, hessian, theory
from ufm.hessian import tangents
from ufm.losses import LogitAdjusted
from ufm.model.evaluation import evaluate

ON = {"features": "sphere", "bias": False}
P = Problem(4, 3, (3, 2, 1, 2), loss=LogitAdjusted(5.0), weights=(1, 2, 0.5, 1), **ON)


def start(problem, seed=0):
    return ufm.init_params(seed, problem, dtype=np.float64)


def equal(problem, params):
    """The point with the feature of the last sample of a class for all of it."""
    H = np.asarray(params.H)
    return params._replace(H=H[:, np.cumsum(problem.counts) - 1][:, problem.labels])


def by_retraction(problem, params):
    """The second derivative at 0 of f((x + ξ)/‖x + ξ‖), ξ in random orthonormal tangents.

    Complex steps, then central differences: NumPy alone, right to some 1e-9 of the largest entry.
    """
    K, d, m, rng = problem.K, problem.d, problem.d - 1, np.random.default_rng(0)
    X = np.concatenate([params.W, np.asarray(params.H).T]).astype(np.float64)
    F = [np.linalg.qr(np.column_stack([x, rng.normal(size=(d, m))]))[0][:, 1:] for x in X]
    tau = float(getattr(problem.loss, "scale", 1.0))
    own = np.arange(K)[:, None] == problem.labels

    def f(t):
        Y = X + np.einsum("xda,xa->xd", np.array(F), t.reshape(-1, m))
        Y = Y / np.sqrt(np.sum(Y * Y, axis=1, keepdims=True))
        Z = tau * Y[:K] @ Y[K:].T
        wrong = np.sum(np.where(own, 0, np.exp(Z - np.sum(np.where(own, Z, 0), axis=0))), axis=0)
        return np.sum(problem.class_weights[problem.labels] * np.log1p(wrong))

    units, delta, tiny = np.eye(len(X) * m), 1e-5, 1e-30j
    rows = [
        [(f(tiny * x + delta * y) - f(tiny * x - delta * y)).imag for x in units] for y in units
    ]
    rows = np.array(rows) / (2 * delta * tiny.imag)
    return (rows + rows.T) / 2


@pytest.mark.parametrize("collapsed", [False, True])
@pytest.mark.parametrize(
    "problem",
    [P, Problem(3, 2, 2, loss=LogitAdjusted(2.0), **ON), Problem(3, 4, 2, **ON)],
    ids=["weights", "circle", "wide"],
)
def test_eigenvalues_are_those_of_a_retraction_at_any_point(problem, collapsed):
    x = equal(problem, start(problem)) if collapsed else start(problem)
    wanted = np.linalg.eigvalsh(by_retraction(problem, x))
    found = hessian.spectrum(problem, x, 0.0)
    values = np.repeat(found.eigenvalues, found.multiplicities)
    assert values == pytest.approx(wanted, abs=1e-8 * wanted[-1])
    if collapsed:  # differences within a class have blocks of their own
        assert max(found.multiplicities) == max(problem.counts) - 1 or problem.n == 2
        assert len(tangents.tangents(evaluate(problem, x)).matrix) == tangents.size(problem)
    counts = hessian.inertia(problem, x)
    away = np.abs(wanted) > 1e-7
    assert (counts.negative, counts.positive) == (
        np.sum(wanted[away] < 0),
        np.sum(wanted[away] > 0),
    )
    shifted = hessian.inertia(problem, x, shift=0.1, tolerance=1e-6)
    assert shifted.negative == np.sum(wanted < 0.1)


@pytest.mark.parametrize(("K", "d", "n"), [(3, 2, 2), (4, 3, 1), (4, 5, (2, 2, 2, 2)), (3, 5, 1)])
@pytest.mark.parametrize("tau", [3.0, 40.0])
def test_the_simplex_is_a_global_minimum_whose_zeros_are_rotations(K, d, n, tau):
    problem = Problem(K, d, n, loss=LogitAdjusted(tau), **ON)
    at = theory.global_minimizer(problem, 1, np.float64)
    found, rank = hessian.verdict(problem, at), K - 1
    assert found.kind == "global minimiser"
    orbit = rank * (rank - 1) // 2 + rank * (d - rank)
    assert (found.inertia.negative, found.inertia.zero) == (0, orbit)
    assert sum(found.inertia[:3]) == (K + problem.N) * (d - 1)
    dense = np.linalg.eigvalsh(by_retraction(problem, at))
    assert np.sum(np.abs(dense) <= 1e-6 * dense[-1]) == orbit
    assert found.curvature == pytest.approx(dense[orbit], rel=1e-5)


@pytest.mark.parametrize(("K", "d"), [(5, 2), (6, 3)])
def test_codes_are_local_minima_and_never_called_global(K, d):
    """Polygon and orthoplex: the certificate does not close below the rank of the bound."""
    problem = Problem(K, d, 2, loss=LogitAdjusted(6.0), **ON)
    code = theory.code_minimum(problem)
    found = hessian.verdict(problem, code.params)
    assert found.kind == "local minimiser"
    assert found.inertia.zero == d * (d - 1) // 2
    assert found.residual <= 1e-15


def test_equal_rows_are_a_strict_saddle_with_a_direction_left_out():
    problem = Problem(4, 3, 2, loss=LogitAdjusted(3.0), **ON)
    W, H = np.tile([1.0, 0, 0], (4, 1)), np.tile([[1.0], [0], [0]], 8)
    at = ufm.Params(W, H, np.zeros(4))
    found = hessian.verdict(problem, at)
    dense = np.linalg.eigvalsh(by_retraction(problem, at))
    assert found.kind == "strict saddle"
    assert found.inertia.negative == np.sum(dense < -1e-7)
    assert found.inertia.zero == np.sum(np.abs(dense) <= 1e-7)
    assert found.curvature == pytest.approx(dense[0], rel=1e-8)


@pytest.mark.parametrize("seed", range(4))
def test_critical_points_that_leave_a_direction_out_are_saddles_or_global(seed):
    """Ends of the search in a plane, as points of R³: local minima there are saddles here."""
    loss = LogitAdjusted(8.0)
    plane, space = (Problem(4, d, 1, loss=loss, **ON) for d in (2, 3))
    W, H, b = ufm.solve(plane, start(plane, seed)).params
    assert hessian.verdict(plane, ufm.Params(W, H, b)).kind == "local minimiser"
    at = ufm.Params(np.pad(W, ((0, 0), (0, 1))), np.pad(H, ((0, 1), (0, 0))), np.asarray(b))
    found = hessian.verdict(space, at)
    assert (found.kind, found.gap > 1e-3 * ufm.certify(space, at).value) == ("strict saddle", True)
    three = Problem(3, 3, 1, loss=loss, **ON)  # a triangle leaves one out too
    assert hessian.verdict(three, ufm.solve(three, start(three, seed)).params).kind == (
        "global minimiser"
    )


def test_what_is_not_critical_and_what_has_no_digits_is_said():
    assert hessian.verdict(P, start(P)).kind == "not critical"
    cold = Problem(4, 3, 1, loss=LogitAdjusted(600.0), **ON)
    found = hessian.verdict(cold, theory.global_minimizer(cold, 0, np.float64))
    assert found.kind == "undecided"
    assert "loses its digits" in found.reason


def test_too_many_tangents_are_refused_but_for_proven_minima():
    problem = Problem(200, 199, 1, loss=LogitAdjusted(5.0), **ON)
    found = hessian.verdict(problem, theory.global_minimizer(problem, None, np.float64))
    assert (found.kind, found.inertia) == ("global minimiser", None)
    with pytest.raises(ufm.Refused, match=r"got a point of 79200 tangents .*; allowed: 2500"):
        hessian.inertia(problem, start(problem))
    many = Problem(3, 3, 600, **ON)
    assert hessian.inertia(many, equal(many, start(many))).negative > 0
    with pytest.raises(ufm.Refused, match="whose features differ within a class"):
        hessian.inertia(many, start(many))
